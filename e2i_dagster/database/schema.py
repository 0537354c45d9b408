"""The warehouse's schema: migrated by Alembic from the one description of the tables.

After the migrations, in the same transaction, everything that can be repeated is brought up to date: the
roles' privileges, the refusals of append-only tables, the checks of vocabulary columns, the lookup table of
vocabularies.

For developers, after a change of a table description::

    python -m e2i_dagster.database.revision "why the tables change"

writes the next migration, by comparing the descriptions with a scratch database that has all earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from e2i_dagster.database import append_only, roles
from e2i_dagster.database import vocabulary_checks as vocabularies
from e2i_dagster.database.failures import explained
from e2i_dagster.database.locks import lock_transaction
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.tables import all_metadata
from e2i_dagster.tables.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"

_INSUFFICIENT_PRIVILEGE = "42501"


def migrate(url: str, revision: str = "head") -> str:
    """Migrate the database at ``url`` to ``revision``, from whatever it is at, also from empty.

    Safe to call from several processes at once; calling it again changes nothing.

    Returns:
        The revision that the database is at.

    Raises:
        UnavailableError: the database cannot be reached.
        InputError: the database is at a revision that this version of the product does not know.
    """
    from alembic import command
    from alembic.util import CommandError

    with _connected(url) as connection:
        try:
            command.upgrade(_configuration(connection), revision)
        except exc.ProgrammingError as error:
            if getattr(error.orig, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
                raise
            said = str(error.orig).splitlines()[0]
            raise UnavailableError(
                f"The user of the database may not migrate the warehouse: {said}.",
                file="E2I_DATABASE_URL",
                remedy="Let its owner migrate, or grant CREATE on the database and on its schema public.",
            ) from None
        except CommandError as error:
            raise InputError(
                f"The warehouse cannot be migrated ({error}). It was made by another version of this "
                "product.",
                file="E2I_DATABASE_URL",
                remedy="Use the version of the product that made it, or an empty database.",
            ) from error
        return _current(connection) or ""


def current(url: str) -> str | None:
    """The revision that the database at ``url`` is at; None if it was never migrated."""
    with _connected(url) as connection:
        return _current(connection)


@cache
def head() -> str:
    """The newest revision of this installation."""
    from alembic.script import ScriptDirectory

    found = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if found is None:
        raise InputError(
            f"There is no migration in {MIGRATIONS}.",
            remedy="Write one: python -m e2i_dagster.database.revision MESSAGE.",
        )
    return found


@cache
def revisions() -> frozenset[str]:
    """All revisions of this installation."""
    from alembic.script import ScriptDirectory

    return frozenset(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def is_current(connection: sa.Connection) -> bool:
    """True if the database has the newest revision and the configured vocabularies."""
    return _current(connection) == head() and vocabularies.in_step(connection, load_vocabulary())


def differences(url: str) -> list[Any]:
    """What differs between the table descriptions and the database at ``url``; empty when nothing does."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with _connected(url) as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_object": _is_ours}
        return compare_metadata(MigrationContext.configure(connection, opts=options), all_metadata())


def write_revision(message: str, url: str) -> Path:
    """Write the migration from the newest revision to the table descriptions. For developers.

    Args:
        message: why the tables change.
        url: an empty scratch database.

    Returns:
        The new file.
    """
    from alembic import command

    if any(MIGRATIONS.glob("versions/*.py")):
        migrate(url)
    with _connected(url) as connection:
        configuration = _configuration(connection)
        configuration.attributes["writing"] = True
        script = command.revision(configuration, message=message, autogenerate=True)
    assert script is not None and not isinstance(script, list)
    return Path(script.path)


def run_migrations(context: Any) -> None:
    """Run by Alembic's ``env.py`` with its context."""
    connection: sa.Connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=all_metadata(),
        compare_type=True,
        compare_server_default=True,
        include_object=_is_ours,
    )
    writing = context.config.attributes.get("writing", False)
    with context.begin_transaction():
        # One process at a time migrates a database.
        lock_transaction(connection, "e2i migrations")
        owned = roles.create_missing(connection)
        if owned:
            roles.prepare_ownership(connection)
            connection.exec_driver_sql(f"SET LOCAL ROLE {roles.ROLE_NAMES['owner']}")
        context.run_migrations()
        if not writing and _current(connection) == head():
            append_only.create_checks(connection)
            vocabularies.create_checks(connection)
            vocabularies.synchronize(connection, load_vocabulary())
            if owned:
                roles.grant(connection)


def _is_ours(item: Any, name: str | None, kind: str, reflected: bool, compared_to: Any) -> bool:
    """Tables that others put into the same database are none of our business."""
    del item
    return not (kind == "table" and reflected and compared_to is None and not (name or "").startswith("ml_"))


def _current(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version", schema="public"):
        return None
    return connection.scalar(sa.text("SELECT version_num FROM public.alembic_version"))


def _configuration(connection: sa.Connection) -> Config:
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    configuration.attributes["connection"] = connection
    return configuration


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with explained(url), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
