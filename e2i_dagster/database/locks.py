"""One run of a scope at a time: a lock of the server that a run holds until it ends.

The stages of a scope read each other's newest value. Between those of one run another run must not put its own.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from e2i_dagster.errors import UnavailableError

#: How long a run waits for another one of its scope.
WAIT_SECONDS = 3600.0
_TAKE = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
# The holder's session is named after its run, with the time: what else a session does, other users may not see.
_NAME = sa.text("SELECT set_config('application_name', :holder, false)")
_HOLDER = sa.text(
    "SELECT session.application_name FROM pg_locks held "
    "JOIN pg_stat_activity session ON session.pid = held.pid "
    "WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1 "
    "AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (held.classid::bigint << 32 | held.objid::bigint) = hashtextextended(:name, 0)"
)


#: Called with what a run of this process waits for.
observers: list[Callable[[str], None]] = []
#: What each run of this process holds. A lock ends with its connection, also when the process is killed.
_held: dict[tuple[str, str], sa.Connection] = {}


def hold(
    engine: sa.Engine,
    scope: str,
    run_id: str,
    waiting: Callable[[str], None],
    *,
    seconds: float = WAIT_SECONDS,
) -> None:
    """Take the lock of ``scope`` for the run, unless it has it already; another run of the scope is waited for.

    Args:
        waiting: told once who holds it and since when; so are the ``observers``.

    Raises:
        UnavailableError: the other run did not end within ``seconds``.
    """
    if (run_id, scope) in _held:
        return
    server = sa.create_engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    connection = server.connect()
    try:
        _take(connection, scope, waiting, time.monotonic() + seconds)
        connection.execute(_NAME, {"holder": f"run {run_id} {dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S}"})
    except BaseException:
        connection.close()
        raise
    _held[run_id, scope] = connection


def release(run_id: str) -> None:
    """Let go of every scope that the run holds."""
    for key in [key for key in _held if key[0] == run_id]:
        # A connection that broke holds nothing any more.
        with suppress(DBAPIError):
            _held.pop(key).close()


def _take(connection: sa.Connection, scope: str, waiting: Callable[[str], None], deadline: float) -> None:
    name = {"name": f"e2i scope {scope}"}
    told = False
    while not connection.execute(_TAKE, name).scalar_one():
        holder = connection.execute(_HOLDER, name).scalar()
        if not holder or not holder.startswith("run "):
            # It has just ended, or just begun and has no name yet.
            time.sleep(0.01)
            continue
        run, _, since = holder.rpartition(" ")
        who = f"{run}, since {since} UTC"
        if time.monotonic() > deadline:
            remedy = "Wait for it to end or stop it, then run again."
            raise UnavailableError(
                f"Scope {scope} is held by {who}. {remedy}", field="scope", value=scope, remedy=remedy
            )
        if not told:
            for tell in (waiting, *observers):
                tell(f"waiting for scope {scope}, held by {who}")
            told = True
        time.sleep(0.2)
