"""A database that cannot be reached, in words: its address without password, the reason, the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.environment import database_url


def shown_url(url: str | sa.URL) -> str:
    """``url`` as it may be shown: user, place and database, no password and no options."""
    url = sa.make_url(url)
    host = url.query.get("host") or url.host or "localhost"
    place = host if isinstance(host, str) else ", ".join(host)
    port = f":{url.port}" if url.port else ""
    return f"{url.username or ''}@{place}{port}/{url.database or ''}"


@contextmanager
def explained(url: str | sa.URL) -> Iterator[None]:
    """Turn a server that cannot be reached into an :class:`UnavailableError` with address and remedy."""
    try:
        yield
    except exc.OperationalError as error:
        if not _is_connection_failure(error):
            raise
        reason = _first_line(error.orig)
        remedy = (
            "Check that the server runs and E2I_DATABASE_URL is right."
            if database_url()
            else "Run e2i status; e2i down and a new start may help."
        )
        raise UnavailableError(
            f"The database {shown_url(url)} cannot be used: {reason}",
            file=None if database_url() is None else "E2I_DATABASE_URL",
            remedy=remedy,
        ) from None


def _is_connection_failure(error: exc.OperationalError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state[:2] in ("08", "28", "3D", "53", "57")


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next(
        (line for line in lines if "FATAL" in line or "failed" in line), lines[0] if lines else "no answer"
    )
    return said if said.endswith(".") else said + "."
