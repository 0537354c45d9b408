"""Roles and their privileges: owner, app and read, from the first migration on.

* ``e2i_owner`` owns the tables and migrates them.
* ``e2i_app`` reads and writes rows, and makes staging tables in the schema ``e2i_staging``. It cannot
  change tables, vocabularies or the migration state.
* ``e2i_read`` reads, but not the rejected rows, which hold deliveries as they came, nor what would unblind an
  experiment.

On the embedded server each of them logs in with its own password. On a server of the user's they are
roles without login, which the user of ``E2I_DATABASE_URL`` takes on with ``SET ROLE``. When that user may
not create roles and nobody else did, it works with its own privileges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import psycopg
import sqlalchemy as sa
from sqlalchemy import exc

from e2i_dagster.database.locks import lock_transaction

Role = Literal["owner", "app", "read"]
ROLE_NAMES: Mapping[str, str] = {"owner": "e2i_owner", "app": "e2i_app", "read": "e2i_read"}
STAGING_SCHEMA = "e2i_staging"

#: Tables whose rows only the owner changes.
_OWNER_ONLY = ("alembic_version", "vocabulary")
#: Tables to which rows are only added.
_APPEND_ONLY = ("ml_patient_level_access",)
#: Tables that the read role does not see.
_NOT_FOR_READERS = (
    "load_rejects",
    "load_withdrawals",
    # Arm and outcome together, or a look, would unblind an experiment while its data are collected.
    "ab_experiment_assignments",
    "ab_interim_analyses",
    "ab_fidelity_comparisons",
)


def set_up_embedded(connection: psycopg.Connection, passwords: Mapping[str, str], database: str) -> None:
    """Make the roles with login and the warehouse's database on a new embedded server.

    Args:
        connection: superuser, autocommit.
        passwords: login to password; only its SCRAM verifier is sent.
        database: name of the warehouse's database, owned by ``e2i_owner``.
    """
    from psycopg import sql

    for login, password in passwords.items():
        verifier = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256")
        extra = sql.SQL("CREATEDB") if login == ROLE_NAMES["owner"] else sql.SQL("NOCREATEDB")
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEROLE {} PASSWORD {}").format(
                sql.Identifier(login), extra, sql.Literal(verifier.decode())
            )
        )
    connection.execute("GRANT e2i_app, e2i_read TO e2i_owner")
    connection.execute("REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC")
    connection.execute("GRANT CONNECT ON DATABASE postgres TO e2i_owner")
    name = sql.Identifier(database)
    connection.execute(sql.SQL("CREATE DATABASE {} OWNER e2i_owner").format(name))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))


def create_missing(connection: sa.Connection) -> bool:
    """Create the roles that are missing and let the current user take them on.

    Returns:
        True if all roles are there and the current user may take them on; False if it may not create
        or take on roles, so that it works with its own privileges.
    """
    if usable(connection):
        return True
    may_create = connection.scalar(
        sa.text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    )
    if not may_create:
        return False
    # Roles belong to the whole server: another database's migration may create them at the same time.
    lock_transaction(connection, "e2i roles")
    there = set(
        connection.scalars(
            sa.text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names)"),
            {"names": list(ROLE_NAMES.values())},
        )
    )
    for name in ROLE_NAMES.values():
        if name not in there:
            connection.execute(sa.text(f"CREATE ROLE {name} NOLOGIN"))
    if not usable(connection):
        try:
            # Since PostgreSQL 16 whoever creates a role may grant it, and has to before taking it on.
            with connection.begin_nested():
                connection.execute(sa.text(f"GRANT {', '.join(ROLE_NAMES.values())} TO CURRENT_USER"))
        except exc.ProgrammingError as error:
            if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise
            # Somebody else made the roles: this user goes on with its own privileges.
            return False
    return usable(connection)


def usable(connection: sa.Connection) -> bool:
    """True if all roles are there and the session's user may take them on."""
    found = connection.scalar(
        sa.text(
            "SELECT count(*) FROM pg_roles WHERE rolname = ANY(:names) "
            "AND pg_has_role(session_user, oid, :privilege)"
        ),
        {"names": list(ROLE_NAMES.values()), "privilege": taking_on(connection)},
    )
    return found == len(ROLE_NAMES)


def taking_on(connection: sa.Connection) -> str:
    """The privilege of ``pg_has_role`` that lets a user take on a role: membership alone until PostgreSQL 15."""
    version = int((connection.dialect.server_version_info or (0,))[0])
    return "SET" if version >= 16 else "MEMBER"


def prepare_ownership(connection: sa.Connection) -> None:
    """Let ``e2i_owner`` make tables in the public schema of this database, and the other roles connect."""
    database = connection.dialect.identifier_preparer.quote(
        str(connection.scalar(sa.text("SELECT current_database()")))
    )
    connection.execute(sa.text(f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO e2i_owner"))
    connection.execute(sa.text(f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO e2i_app"))
    connection.execute(sa.text(f"GRANT CONNECT ON DATABASE {database} TO e2i_read"))
    connection.execute(sa.text("GRANT USAGE, CREATE ON SCHEMA public TO e2i_owner"))


def grant(connection: sa.Connection) -> None:
    """Give each role exactly its privileges on what is there and on what the owner will make.

    Run by ``e2i_owner``; repeating it changes nothing.
    """
    run = connection.exec_driver_sql
    run("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    run("GRANT USAGE ON SCHEMA public TO e2i_app, e2i_read")
    run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO e2i_app")
    run("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO e2i_app")
    run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO e2i_read")
    run("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO e2i_app")
    run("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO e2i_app")
    run("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO e2i_read")
    present = set(sa.inspect(connection).get_table_names(schema="public"))
    for name in present.intersection(_OWNER_ONLY):
        run(f"REVOKE INSERT, UPDATE, DELETE ON {name} FROM e2i_app")
    for name in present.intersection(_APPEND_ONLY):
        run(f"REVOKE UPDATE, DELETE ON {name} FROM e2i_app")
    for name in present.intersection(_NOT_FOR_READERS):
        run(f"REVOKE SELECT ON {name} FROM e2i_read")
    run(f"CREATE SCHEMA IF NOT EXISTS {STAGING_SCHEMA}")
    run(f"GRANT USAGE, CREATE ON SCHEMA {STAGING_SCHEMA} TO e2i_app")
