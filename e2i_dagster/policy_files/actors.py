"""Who acts, and how that is known.

The proxy of a deployment authenticates people and passes the name on (``X-Forwarded-User``), together with a secret
that only it and the product's processes know (``E2I_PROXY_TOKEN``): a header alone can be sent by anybody who reaches
the port. Where the web server queues a run, the name becomes a tag of the run, signed with that secret for this very
run, so that a tag which somebody typed into the launch form is no proof. Everything else is a name that people give
themselves.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from e2i_dagster.errors import VerdictError
from e2i_dagster.policy_files.environment import actor, production

#: Headers that the proxy sets on every request.
USER_HEADER = "X-Forwarded-User"
TOKEN_HEADER = "X-E2I-Proxy-Token"
#: The secret that proxy and product share.
TOKEN_VARIABLE = "E2I_PROXY_TOKEN"
#: Tags of a run that an authenticated person launched.
USER_TAG = "e2i/user"
SIGNATURE_TAG = "e2i/user_signature"

Authentication = Literal["authenticated", "self-declared", "automatic"]


class Actor(NamedTuple):
    """A name, and how it is known: by the proxy, by the person's own word, or that a rule acted."""

    name: str
    authentication: Authentication

    def is_same_person(self, name: str) -> bool:
        """Whether ``name`` is this one's; case and surrounding blanks make no other person."""
        return self.name.strip().casefold() == name.strip().casefold()


def user_of_request(header: Callable[[str], str | None]) -> str | None:
    """The authenticated user of a web request; None when the request does not come from the proxy.

    Args:
        header: gives the value of a header by its name.
    """
    token = os.environ.get(TOKEN_VARIABLE) or ""
    shown = header(TOKEN_HEADER) or ""
    if not token or not hmac.compare_digest(shown.encode(), token.encode()):
        return None
    return (header(USER_HEADER) or "").strip() or None


def tags_of_user(run_id: str, user: str) -> dict[str, str]:
    """Tags that say, provably, that ``user`` launched the run ``run_id``."""
    return {USER_TAG: user, SIGNATURE_TAG: _signature(run_id, user, os.environ[TOKEN_VARIABLE])}


def actor_of_run(run_id: str, tags: Mapping[str, str]) -> Actor:
    """Who launched the run: the user of its signed tags, else ``E2I_ACTOR`` or the login, self-declared.

    Raises:
        VerdictError: the run names a user without the proxy's signature for this run.
    """
    user = tags.get(USER_TAG)
    if user is None:
        return Actor(*actor())
    token = os.environ.get(TOKEN_VARIABLE) or ""
    expected = _signature(run_id, user, token)
    if not token or not hmac.compare_digest(tags.get(SIGNATURE_TAG, "").encode(), expected.encode()):
        raise VerdictError(
            f"The run is tagged {USER_TAG}={user!r}, which is not signed for this run.",
            field=USER_TAG,
            value=user,
            remedy="Launch it through the proxy, without that tag; a repeated run has to be launched by a person.",
        )
    return Actor(user, "authenticated")


def require_authenticated(who: Actor, what: str) -> None:
    """Refuse ``what`` by a self-declared person where ``E2I_ENVIRONMENT`` is ``production``.

    Raises:
        VerdictError: names the person and what has to be done instead.
    """
    if production() and who.authentication != "authenticated":
        raise VerdictError(
            f"{what} needs an authenticated person when E2I_ENVIRONMENT is production; {who.name!r} is "
            f"{who.authentication}.",
            file="E2I_ENVIRONMENT",
            field="actor",
            value=who.name,
            remedy="Launch the job of the same name in the Dagster UI, through the proxy (deploy/README.md).",
        )


def _signature(run_id: str, user: str, token: str) -> str:
    return hmac.new(token.encode(), f"{run_id}\n{user}".encode(), hashlib.sha256).hexdigest()
