"""What Alembic runs: migrate, then bring roles, checks and vocabularies up to date, in one transaction."""

from alembic import context

from e2i_dagster.database import schema

if context.is_offline_mode():
    from e2i_dagster.errors import ConfigError

    raise ConfigError(
        "Migrations are run with a connection only.",
        remedy="Run them by e2i_dagster.database.schema.migrate(url).",
    )

schema.run_migrations(context)
