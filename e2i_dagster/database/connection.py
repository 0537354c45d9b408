"""Connections to the warehouse: the server of ``E2I_DATABASE_URL``, or the embedded one.

Addresses of the embedded server hold no password: they name the file that has it (libpq's ``passfile``),
so that they can be handed to MLflow, Optuna, Feast and Dagster.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import exc

from e2i_dagster.database.failures import explained, shown_url
from e2i_dagster.database.roles import ROLE_NAMES, Role, taking_on
from e2i_dagster.database.server import DATABASE, Server, ensure_server
from e2i_dagster.errors import ConfigError, UnavailableError
from e2i_dagster.policy_files.environment import database_url

_DRIVER = "postgresql+psycopg"
_CONNECT_SECONDS = 10

_guard = threading.RLock()
_engines: dict[tuple[int, str], sa.Engine] = {}
_migrated: set[tuple[int, str]] = set()


def connect_url(role: Role = "app", database: str = DATABASE) -> str:
    """Address of ``database`` for the privileges of ``role``, for SQLAlchemy with psycopg.

    With ``E2I_DATABASE_URL`` set, the warehouse is the database that it names, and any other ``database``
    is one on the same server. Otherwise the embedded server is started if need be. The warehouse is
    migrated when it is not at the newest revision.

    Raises:
        UnavailableError: the server cannot be reached or started; the message has no password.
        ConfigError: ``E2I_DATABASE_URL`` is not the address of a PostgreSQL database.
    """
    if role not in ROLE_NAMES:
        raise ConfigError(f"There is no role {role!r}.", remedy=f"Use one of: {', '.join(ROLE_NAMES)}.")
    # Asked once: to look whether it is up, the server begins a process.
    server = ensure_server() if database_url() is None else None
    if database == DATABASE:
        _ensure_migrated(server)
    return _text(_url(role, database, server))


def warehouse_url(server: Server) -> str:
    """Address of the warehouse on the embedded ``server``, wherever that is, for whoever migrates."""
    return _text(_url("login", DATABASE, server))


def engine(role: Role = "app", database: str = DATABASE) -> sa.Engine:
    """An engine for ``database`` with the privileges of ``role``; the same one for each call in a process.

    Sessions are in UTC and UTF-8. Raises as :func:`connect_url`.
    """
    return _engine(connect_url(role, database))


def refresh_vocabulary() -> None:
    """Bring the database's vocabularies to ``config/vocabulary.yaml`` as it is now.

    For processes that live longer than an edit of the file; called before each load.

    Raises:
        ConfigError: the file is wrong, or takes out a value that rows still have.
    """
    connect_url("owner")
    with _guard:
        _migrated.clear()
        _ensure_migrated()


def ensure_database(name: str) -> str:
    """Address of the database ``name`` on the warehouse's server, made if it is missing.

    It belongs to ``e2i_app``: for the tables of MLflow, Optuna, Feast or Dagster, which migrate their own.

    Raises:
        UnavailableError: the server cannot be reached, or the user may not create databases; the message
            has the statement for whoever may.
    """
    import psycopg.errors

    # Whoever logs in may create databases; the role that owns the tables may not.
    url = _url("login", DATABASE)
    with _admin(url) as connection:
        if (
            connection.scalar(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name})
            is None
        ):
            quoted = connection.dialect.identifier_preparer.quote(name)
            may_own = connection.scalar(
                sa.text(
                    "SELECT count(*) FROM pg_roles WHERE rolname = 'e2i_app' AND pg_has_role(oid, :privilege)"
                ),
                {"privilege": taking_on(connection)},
            )
            owner = " OWNER e2i_app" if may_own else ""
            try:
                connection.exec_driver_sql(f"CREATE DATABASE {quoted}{owner}")
                connection.exec_driver_sql(f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC")
            except exc.ProgrammingError as error:
                if isinstance(error.orig, psycopg.errors.DuplicateDatabase):
                    return connect_url("app", name)
                raise UnavailableError(
                    f"The user of {shown_url(url)} may not create the database {name}.",
                    file="E2I_DATABASE_URL",
                    remedy=f"Have it created: CREATE DATABASE {quoted}{owner};",
                ) from None
            except exc.IntegrityError:
                # Another process made it at the same moment.
                return connect_url("app", name)
    return connect_url("app", name)


def scratch_database(name: str) -> str:
    """Address of a new, empty database ``name`` for the owner. For developers and tests."""
    with _admin(_url("owner", DATABASE)) as connection:
        quoted = connection.dialect.identifier_preparer.quote(name)
        connection.exec_driver_sql(f"CREATE DATABASE {quoted}")
    return _text(_url("owner", name))


def drop_database(name: str) -> None:
    """Drop the database ``name``, if it is there, and whatever connection it has.

    The server's own workers, which clean up tables, cannot be ended and are waited for.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

    with _admin(_url("owner", DATABASE)) as connection:
        quoted = connection.dialect.identifier_preparer.quote(name)
        for attempt in Retrying(
            retry=retry_if_exception(_cannot_be_ended),
            stop=stop_after_delay(30),
            wait=wait_fixed(0.5),
            reraise=True,
        ):
            with attempt:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")


def _cannot_be_ended(error: BaseException) -> bool:
    import psycopg

    return isinstance(getattr(error, "orig", None), psycopg.errors.InsufficientPrivilege)


def dispose() -> None:
    """Close the idle connections of this process and forget what was migrated."""
    with _guard:
        for engine in _engines.values():
            engine.dispose()
        _engines.clear()
        _migrated.clear()


@contextmanager
def _admin(url: sa.URL) -> Iterator[sa.Connection]:
    """A connection outside of transactions, for statements about databases."""
    admin = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    try:
        with explained(url), admin.connect() as connection:
            yield connection
    finally:
        admin.dispose()


def _engine(url: str) -> sa.Engine:
    key = (os.getpid(), url)
    with _guard:
        if key not in _engines:
            _engines[key] = sa.create_engine(
                url,
                pool_pre_ping=True,
                # Values of rows stay out of error messages.
                hide_parameters=True,
                connect_args={"client_encoding": "utf8", "connect_timeout": _CONNECT_SECONDS},
            )
        return _engines[key]


def _ensure_migrated(server: Server | None = None) -> None:
    """Migrate the warehouse if this process has not yet seen that it is up to date."""
    from e2i_dagster.database import schema

    url = _text(_url("login", DATABASE, server))
    key = (os.getpid(), url)
    if key in _migrated:
        return
    with _guard:
        if key in _migrated:
            return
        with schema._connected(url) as connection:
            up_to_date = schema.is_current(connection)
        if not up_to_date:
            schema.migrate(url)
        _migrated.add(key)


def _url(role: str, database: str, server: Server | None = None) -> sa.URL:
    """Address for ``role``; ``login`` is whoever migrates. ``server``: the embedded one, if it is known to be up."""
    given = database_url()
    if given is None:
        server = server or ensure_server()
        return sa.URL.create(
            _DRIVER,
            username=ROLE_NAMES["owner" if role == "login" else role],
            database=database,
            query={
                "host": server.socket_folder,
                "passfile": server.passfile,
                "options": "-c timezone=UTC",
            },
        )
    url = _given_url(given)
    if database != DATABASE:
        url = url.set(database=database)
    options = "-c timezone=UTC"
    if role != "login" and _takes_roles(given):
        options += f" -c role={ROLE_NAMES[role]}"
    return url.update_query_dict({"options": options})


_roles_taken: dict[str, bool] = {}


def _takes_roles(given: str) -> bool:
    """True if the user of ``given`` may take on our roles. Asked once, after the first migration."""
    from e2i_dagster.database import roles, schema

    if given not in _roles_taken:
        url = _text(_url("login", DATABASE))
        with schema._connected(url) as connection:
            found = roles.usable(connection)
        if not found:
            return False
        _roles_taken[given] = True
    return _roles_taken[given]


def _given_url(given: str) -> sa.URL:
    try:
        url = sa.make_url(given)
    except (exc.ArgumentError, ValueError):
        raise ConfigError(
            "E2I_DATABASE_URL is not an address.",
            file="E2I_DATABASE_URL",
            remedy="Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
        ) from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigError(
            f"E2I_DATABASE_URL is for {url.get_backend_name()}; the warehouse is PostgreSQL.",
            file="E2I_DATABASE_URL",
            remedy="Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
        )
    return url.set(drivername=_DRIVER)


def _text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


__all__ = [
    "connect_url",
    "dispose",
    "drop_database",
    "engine",
    "ensure_database",
    "refresh_vocabulary",
    "scratch_database",
    "warehouse_url",
]
