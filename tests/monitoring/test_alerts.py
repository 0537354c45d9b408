"""Alerts reach the table always and the channels that are configured; people acknowledge and silence them."""

import datetime as dt
import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.monitoring.alert_actions import acknowledge, list_alerts, list_silences, silence
from e2i_dagster.monitoring.alerts import Alert, send, send_digest
from e2i_dagster.monitoring.channels import Channels, Message
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.description.monitoring import ml_monitoring_alerts

ALERTS = AlertsPolicy.load(CHECKOUT / "config")
NOW = dt.datetime(2025, 1, 10, 12, tzinfo=dt.UTC)
ALERT = Alert(
    alert_type="run_failure",
    title="scope_pipeline failed",
    severity="high",
    subject="scope_pipeline",
    partition="kisqali_hr_her2_bc_initiation",
    message="quality gate blocked",
    next_command="e2i status",
)


@pytest.fixture
def webhook():
    received: list[dict] = []

    class Receiver(BaseHTTPRequestHandler):
        status, waits = 200, 0.0

        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            time.sleep(type(self).waits)
            self.send_response(type(self).status)
            if type(self).status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args):
            return

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", received, Receiver
    server.shutdown()
    thread.join()
    server.server_close()


def to(url):
    return Channels(webhook_url=url)


def rows(connection):
    return connection.execute(sa.select(ml_monitoring_alerts)).mappings().all()


def test_without_a_webhook_the_table_has_it(database):
    with database.begin() as connection:
        assert send(connection, ALERT, ALERTS, Channels(), NOW) == "not_configured"
        (row,) = rows(connection)
    assert (row["owner"], row["partition"]) == ("ml-ops", "kisqali_hr_her2_bc_initiation")


def test_the_webhook_gets_what_a_person_needs(database, webhook):
    url, received, _ = webhook
    with database.begin() as connection:
        assert send(connection, ALERT, ALERTS, to(url), NOW) == "webhook sent"
    assert received[0]["partition"] == "kisqali_hr_her2_bc_initiation"
    assert received[0]["next_command"] == "e2i status"
    assert received[0]["since"] == NOW.isoformat()


def test_the_same_alert_is_not_sent_twice_within_the_time(database, webhook):
    url, received, _ = webhook
    later = NOW + dt.timedelta(seconds=ALERTS.deduplicate_seconds + 1)
    with database.begin() as connection:
        send(connection, ALERT, ALERTS, to(url), NOW)
        assert send(connection, ALERT, ALERTS, to(url), NOW + dt.timedelta(seconds=10)) == "deduplicated"
        assert rows(connection)[0]["occurrences"] == 2
        assert send(connection, ALERT, ALERTS, to(url), later + dt.timedelta(seconds=10)) == "webhook sent"
    assert len(received) == 2


WARNING = ALERT.model_copy(update={"severity": "medium", "title": "triggers has warnings"})


def test_warnings_wait_and_are_told_once_in_one_message(database, webhook):
    url, received, _ = webhook
    other = WARNING.model_copy(update={"subject": "business_metrics"})
    day = dt.timedelta(days=1)
    with database.begin() as connection:
        assert send(connection, WARNING, ALERTS, to(url), NOW) == "waits_for_digest"
        # Hours later and not yet told: still the same warning.
        assert send(connection, WARNING, ALERTS, to(url), NOW + dt.timedelta(hours=5)) == "deduplicated"
        send(connection, other, ALERTS, to(url), NOW)
        assert received == []
        digest = send_digest(connection, ALERTS, to(url), NOW + day)
        assert (digest.warnings, digest.notification) == (2, "webhook sent")
        assert len(received) == 1 and received[0]["warnings"] == 2
        assert "x2" in received[0]["text"] and "quality gate blocked" in received[0]["text"]
        assert {row["notification"] for row in rows(connection)} == {"webhook sent"}
        assert send_digest(connection, ALERTS, to(url), NOW + 2 * day).notification == "nothing_to_tell"
        # What comes up again after it was told is told again.
        assert send(connection, WARNING, ALERTS, to(url), NOW + 2 * day) == "waits_for_digest"
        assert send_digest(connection, ALERTS, to(url), NOW + 3 * day).warnings == 1
    assert len(received) == 2


def test_a_digest_that_nobody_received_is_told_the_next_day(database, webhook):
    url, received, receiver = webhook
    receiver.status = 500
    with database.begin() as connection:
        send(connection, WARNING, ALERTS, to(url), NOW)
        assert send_digest(connection, ALERTS, to(url), NOW).notification == "webhook failed: status 500"
        receiver.status = 200
        assert send_digest(connection, ALERTS, to(url), NOW).notification == "webhook sent"
    assert len(received) == 2


def test_a_digest_lists_so_many_and_counts_the_rest(database, webhook):
    url, received, _ = webhook
    policy = ALERTS.model_copy(update={"digest_lists": 2})
    with database.begin() as connection:
        for number in range(5):
            send(
                connection,
                WARNING.model_copy(update={"subject": f"table_{number}"}),
                policy,
                to(url),
                NOW,
            )
        assert send_digest(connection, policy, to(url), NOW).warnings == 5
    assert received[0]["text"].endswith("- and 3 more in ml_monitoring_alerts")


def test_a_webhook_that_refuses_is_recorded(database, webhook):
    url, _, receiver = webhook
    receiver.status = 500
    with database.begin() as connection:
        assert send(connection, ALERT, ALERTS, to(url), NOW) == "webhook failed: status 500"
        assert rows(connection)[0]["notification"] == "webhook failed: status 500"
    with database.begin() as connection:
        other = ALERT.model_copy(update={"subject": "monitor"})
        assert (
            send(connection, other, ALERTS, to("http://127.0.0.1:9/"), NOW) == "webhook failed: ConnectError"
        )


def test_a_webhook_that_redirects_is_not_followed(webhook):
    """The body goes to no address that nobody configured."""
    url, received, receiver = webhook
    receiver.status = 302
    channels = to(url)
    assert channels.send(MESSAGE, ["webhook"], 5) == "webhook failed: redirect 302"
    assert len(received) == 1


def test_a_webhook_that_is_slow_is_given_up(webhook):
    url, _, receiver = webhook
    receiver.waits = 1.0
    assert to(url).send(MESSAGE, ["webhook"], 0.2) == "webhook failed: ReadTimeout"


def test_a_wrong_address_is_a_failure_and_told_without_it():
    outcome = Channels(slack_url="http://127.0.0.1:port/secret").send(MESSAGE, ["slack"], 1)
    assert outcome == "slack failed: InvalidURL"


MESSAGE = Message(
    title="[high] scope_pipeline failed",
    text="quality gate <blocked> & more",
    fields={"link": "/runs/abc", "next_command": "e2i status", "since": NOW.isoformat(), "owner": "ml-ops"},
)


def test_slack_gets_text_and_a_block_with_link_and_next_command(webhook):
    url, received, _ = webhook
    channels = Channels(slack_url=url, ui_url="http://127.0.0.1:3000/")
    assert channels.send(MESSAGE, ["slack", "email"], 5) == "slack sent"
    (body,) = received
    assert set(body) == {"text", "blocks"} and body["text"] == "[high] scope_pipeline failed"
    shown = body["blocks"][0]["text"]
    assert shown["type"] == "mrkdwn" and "&lt;blocked&gt; &amp; more" in shown["text"]
    assert "Run: http://127.0.0.1:3000/runs/abc" in shown["text"] and "Next: e2i status" in shown["text"]


@pytest.fixture
def smtp():
    """A mail server that takes what it is sent and offers no encryption."""
    mails: list[str] = []

    class Receiver(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                word = line.strip().upper()
                if word.startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    mail = b""
                    while not (part := self.rfile.readline()).startswith(b".\r\n"):
                        mail += part
                    mails.append(mail.decode())
                elif word.startswith(b"QUIT"):
                    self.wfile.write(b"221 bye\r\n")
                    return
                self.wfile.write(b"250 well\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", mails
    server.shutdown()
    thread.join()
    server.server_close()


def test_email_reaches_a_mail_server(smtp):
    address, mails = smtp
    channels = Channels(
        smtp_url=f"smtp://{address}", email_from="e2i@here.example", email_to="a@b.example, c@d.example"
    )
    title = MESSAGE.title + "\nBcc: everybody@else.example"
    message = Message(title=title, text=MESSAGE.text, fields=MESSAGE.fields)
    assert channels.send(message, ["email"], 5) == "email sent"
    (mail,) = mails
    head, _, body = mail.partition("\r\n\r\n")
    assert "To: a@b.example, c@d.example" in head and "\r\nBcc:" not in head
    assert "quality gate <blocked> & more" in body and "Run: /runs/abc" in body and "Next: e2i status" in body


def test_a_password_is_not_sent_unencrypted(smtp):
    address, mails = smtp
    channels = Channels(smtp_url=f"smtp://user:secret@{address}", email_to="a@b.example")
    outcome = channels.send(MESSAGE, ["email"], 5)
    assert outcome == "email failed: the server offers no encryption for the password" and not mails


def test_a_mail_server_that_is_not_there_is_recorded():
    outcome = Channels(smtp_url="smtp://127.0.0.1:9", email_to="a@b.example").send(MESSAGE, ["email"], 1)
    assert outcome == "email failed: ConnectionRefusedError"


def test_a_severity_goes_to_its_channels(database, webhook):
    url, received, _ = webhook
    channels = Channels(webhook_url=url, slack_url=url)
    routes = {**ALERTS.routes, "high": ("slack",), "critical": ()}
    policy = ALERTS.model_copy(update={"routes": routes})
    with database.begin() as connection:
        assert send(connection, ALERT, policy, channels, NOW) == "slack sent"
        worse = ALERT.model_copy(update={"severity": "critical", "title": "other"})
        assert send(connection, worse, policy, channels, NOW) == "not_configured"
    assert len(received) == 1 and "blocks" in received[0]


def test_what_goes_on_is_sent_again_once(database, webhook):
    url, received, _ = webhook
    channels, policy = to(url), ALERTS.model_copy(update={"escalate_after": 3})
    with database.begin() as connection:
        outcomes = [
            send(connection, ALERT, policy, channels, NOW + dt.timedelta(seconds=10 * number))
            for number in range(5)
        ]
    assert outcomes == [
        "webhook sent", "deduplicated", "escalated: webhook sent", "deduplicated", "deduplicated",
    ]  # fmt: skip
    assert received[1]["text"].startswith("[high] still going on, 3 times: scope_pipeline failed")
    assert received[1]["occurrences"] == 3 and received[1]["since"] == NOW.isoformat()


def later(hours):
    return NOW + dt.timedelta(hours=hours)


def test_an_acknowledged_alert_is_counted_in_silence_until_the_end(database, webhook):
    url, received, _ = webhook
    channels, policy = to(url), ALERTS.model_copy(update={"escalate_after": 2})
    with database.begin() as connection:
        send(connection, ALERT, policy, channels, NOW)
        (listed,) = list_alerts(connection, since=later(-1))
        about = {"person": "Ann", "reason": "the feed is being repaired", "policy": policy, "now": later(1)}
        done = acknowledge(connection, listed["id"], days=1, **about)
        assert (done["status"], done["acknowledged_by"]) == ("acknowledged", "Ann")
        assert list_alerts(connection, since=later(-1)) == []
        tomorrow = ALERT.model_copy(update={"partition": "another day"})
        assert send(connection, tomorrow, policy, channels, later(2)) == "deduplicated"
        assert send(connection, tomorrow, policy, channels, later(20)) == "deduplicated"
        (row,) = rows(connection)
        assert row["occurrences"] == 3 and row["escalated_at"] is None
        assert send(connection, tomorrow, policy, channels, later(26)) == "webhook sent"
    assert len(received) == 2


def test_a_silenced_kind_is_recorded_and_sent_to_nobody(database, webhook):
    url, received, _ = webhook
    channels = to(url)
    about = {"person": "Ann", "authentication": "self-declared", "reason": "moving house", "policy": ALERTS}
    with database.begin() as connection:
        silence(connection, alert_type="run_failure", subject="scope_pipeline", days=0.5, now=NOW, **about)
        assert [row["reason"] for row in list_silences(connection, now=NOW)] == ["moving house"]
        assert send(connection, ALERT, ALERTS, channels, later(1)).startswith(
            "silenced until 2025-01-11 00:00"
        )
        other = ALERT.model_copy(update={"subject": "monitor"})
        assert send(connection, other, ALERTS, channels, later(1)) == "webhook sent"
        assert list_silences(connection, now=later(13)) == []
        assert send(connection, ALERT, ALERTS, channels, later(13)) == "webhook sent"
    assert len(received) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alert_type": "drfit"}, "'drfit' is no kind of alerts.* Kinds: run_failure, drift"),
        ({"reason": " "}, "reason: empty.* Say why"),
        ({"days": 31}, "days: 31; more than 0 and at most 30"),
        ({"days": 0}, "days: 0; more than 0"),
    ],
)
def test_a_silence_that_cannot_be_is_refused(database, change, said):
    given = {"alert_type": "drift", "subject": "", "reason": "why", "days": 1, **change}
    with database.begin() as connection, pytest.raises(InputError, match=said):
        silence(connection, person="Ann", authentication="self-declared", policy=ALERTS, now=NOW, **given)


@pytest.mark.parametrize("key", ["", "ffffffff", "%"])
def test_an_alert_that_is_not_there_is_refused(database, key):
    with database.begin() as connection:
        send(connection, ALERT, ALERTS, Channels(), NOW)
        with pytest.raises(InputError, match=r"no alert has such a key. `e2i alerts list` shows"):
            acknowledge(connection, key, person="Ann", reason="why", days=1, policy=ALERTS, now=NOW)
