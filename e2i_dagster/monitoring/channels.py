"""Channels of alerts: a webhook, a Slack-compatible webhook, e-mail.

Each says ``sent``, or ``failed`` with the kind of failure and nothing of the address, which may hold a secret.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from e2i_dagster.config.alerts import Channel

#: Longest text of a block that Slack shows.
_SLACK_TEXT = 2_900


@dataclass(frozen=True)
class Message:
    """What is sent. ``fields``: of the alert, for programs; ``link`` and ``next_command`` among them are shown."""

    title: str
    text: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Channels:
    """Where messages go; an empty address is a channel that is not configured.

    Attributes:
        webhook_url: gets the fields as JSON, with ``text``.
        slack_url: gets ``text`` and ``blocks``, as incoming webhooks of Slack and of what is compatible do.
        smtp_url: ``smtp://[user:password@]host[:port]`` (encrypted where the server offers it) or ``smtps://``.
        email_from, email_to: addresses; several recipients with commas.
        ui_url: address of the UI, before the link of an alert.
    """

    webhook_url: str = ""
    slack_url: str = ""
    smtp_url: str = ""
    email_from: str = ""
    email_to: str = ""
    ui_url: str = ""

    @property
    def configured(self) -> set[Channel]:
        """Channels that have an address."""
        addresses: dict[Channel, str] = {
            "webhook": self.webhook_url,
            "slack": self.slack_url,
            "email": self.smtp_url and self.email_to,
        }
        return {name for name, address in addresses.items() if address}

    def send(self, message: Message, to: Sequence[Channel], seconds: float) -> str:
        """Send ``message`` to those of the channels ``to`` that are configured; what became of it, by channel."""
        used = [name for name in to if name in self.configured]
        if not used:
            return "not_configured"
        ways = {"webhook": self._webhook, "slack": self._slack, "email": self._email}
        return ", ".join(f"{name} {ways[name](message, seconds)}" for name in used)

    def _link(self, message: Message) -> str:
        link = str(message.fields.get("link") or "")
        return f"{self.ui_url.rstrip('/')}{link}" if link and self.ui_url else link

    def _plain(self, message: Message) -> str:
        fields = message.fields
        lines = [
            message.text,
            f"Since {fields['since']}, owner {fields['owner']}" if "since" in fields else "",
            f"Run: {self._link(message)}" if self._link(message) else "",
            f"Next: {fields['next_command']}" if fields.get("next_command") else "",
        ]
        return "\n".join(line for line in lines if line)

    def _webhook(self, message: Message, seconds: float) -> str:
        text = f"{message.title}: {message.text}"
        return _post(self.webhook_url, {**message.fields, "link": self._link(message), "text": text}, seconds)

    def _slack(self, message: Message, seconds: float) -> str:
        text = _slack_text(f"*{message.title}*\n{self._plain(message)}")
        block = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
        return _post(self.slack_url, {"text": _slack_text(message.title), "blocks": [block]}, seconds)

    def _email(self, message: Message, seconds: float) -> str:
        address = urlsplit(self.smtp_url)
        mail = EmailMessage()
        mail["Subject"] = " ".join(message.title.split())
        mail["From"] = self.email_from or self.email_to.split(",")[0].strip()
        mail["To"] = self.email_to
        mail.set_content(self._plain(message))
        tls = ssl.create_default_context()
        try:
            if address.scheme == "smtps":
                server = smtplib.SMTP_SSL(
                    address.hostname or "", address.port or 465, timeout=seconds, context=tls
                )
            else:
                server = smtplib.SMTP(address.hostname or "", address.port or 25, timeout=seconds)
            with server:
                server.ehlo()
                secure = address.scheme == "smtps"
                if not secure and server.has_extn("starttls"):
                    server.starttls(context=tls)
                    secure = True
                if address.username:
                    if not secure:
                        return "failed: the server offers no encryption for the password"
                    server.login(unquote(address.username), unquote(address.password or ""))
                server.send_message(mail)
        except (OSError, smtplib.SMTPException) as error:
            return f"failed: {type(error).__name__}"
        return "sent"


def _post(url: str, body: dict[str, Any], seconds: float) -> str:
    """Post ``body``; redirects are not followed: they would carry it to an address that nobody configured."""
    import httpx

    try:
        # Headers are enough: a server that sends its answer byte by byte keeps nobody waiting.
        with httpx.stream("POST", url, json=body, timeout=seconds, follow_redirects=False) as response:
            if response.is_redirect:
                return f"failed: redirect {response.status_code}"
            return "sent" if response.is_success else f"failed: status {response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"failed: {type(error).__name__}"


def _slack_text(text: str) -> str:
    """``text`` with what Slack reads as markup escaped, cut to what it shows."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped if len(escaped) <= _SLACK_TEXT else f"{escaped[:_SLACK_TEXT]} ..."
