"""Advisory locks of the server: held by a transaction, a connection or the run of a scope.

A lock ends with the transaction or connection that holds it, also when the process is killed.

One run of a scope at a time: the stages of a scope read each other's newest value. Between those of one run another
run must not put its own.
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
_KEY = "hashtextextended(:name, 0)"
# The holder's session is named after its run, with the time: what else a session does, other users may not see.
_NAME = sa.text("SELECT set_config('application_name', :holder, false)")
_HOLDER = sa.text(
    "SELECT session.application_name FROM pg_locks lock "
    "JOIN pg_stat_activity session ON session.pid = lock.pid "
    "WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 1 "
    "AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    f"AND (lock.classid::bigint << 32 | lock.objid::bigint) = {_KEY}"
)


#: Called with what a run of this process waits for.
observers: list[Callable[[str], None]] = []
#: The connection that holds the lock of a run of this process and a scope.
_connections: dict[tuple[str, str], sa.Connection] = {}


def lock_transaction(connection: sa.Connection, name: str) -> None:
    """Wait for the lock ``name`` and hold it until the transaction of ``connection`` ends."""
    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_KEY})"), {"name": name})


def acquire_lock(
    url: sa.URL | str,
    name: str,
    *,
    seconds: float = WAIT_SECONDS,
    waiting: Callable[[sa.Connection], None] | None = None,
) -> sa.Connection:
    """A connection of its own that holds the lock ``name`` until it is closed.

    Args:
        seconds: how long another holder is waited for.
        waiting: called each time that another session has the lock.

    Raises:
        TimeoutError: another session holds it for longer.
    """
    deadline = time.monotonic() + seconds
    server = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    connection = server.connect()
    try:
        while not connection.execute(
            sa.text(f"SELECT pg_try_advisory_lock({_KEY})"), {"name": name}
        ).scalar_one():
            if waiting is not None:
                waiting(connection)
            if time.monotonic() > deadline:
                raise TimeoutError(f"The lock {name!r} was not free within {seconds:g} s.")
            time.sleep(0.1)
    except BaseException:
        connection.close()
        raise
    return connection


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
        waiting: called once with who holds it and since when; so are the ``observers``.

    Raises:
        UnavailableError: the other run did not end within ``seconds``.
    """
    if (run_id, scope) in _connections:
        return
    name = f"e2i scope {scope}"
    holder = ""

    def report(connection: sa.Connection) -> None:
        nonlocal holder
        session = connection.execute(_HOLDER, {"name": name}).scalar() or ""
        # Without a name it has just ended, or just begun.
        if session.startswith("run ") and not holder:
            run, _, since = session.rpartition(" ")
            holder = f"{run}, since {since} UTC"
            for call in (waiting, *observers):
                call(f"waiting for scope {scope}, held by {holder}")

    try:
        connection = acquire_lock(engine.url, name, seconds=seconds, waiting=report)
    except TimeoutError:
        remedy = "Wait for it to end or stop it, then run again."
        raise UnavailableError(
            f"Scope {scope} is held by {holder or 'another run'}. {remedy}",
            field="scope",
            value=scope,
            remedy=remedy,
        ) from None
    _connections[run_id, scope] = connection
    connection.execute(_NAME, {"holder": f"run {run_id} {dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S}"})


def release(run_id: str) -> None:
    """Let go of every scope that the run holds."""
    for key in [key for key in _connections if key[0] == run_id]:
        # A connection that broke holds nothing any more.
        with suppress(DBAPIError):
            _connections.pop(key).close()


__all__ = ["acquire_lock", "hold", "lock_transaction", "observers", "release"]
