"""Tables whose rows are only ever added: a trigger refuses UPDATE, DELETE and TRUNCATE, whoever asks."""

from __future__ import annotations

import sqlalchemy as sa

from e2i_dagster.tables.description import experiments, models

APPEND_ONLY = (*experiments.APPEND_ONLY, *models.APPEND_ONLY)

_FUNCTION = """
CREATE OR REPLACE FUNCTION public.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $refuse$
BEGIN
  RAISE EXCEPTION '% is append-only: its rows are never changed or deleted', TG_TABLE_NAME
    USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME,
      HINT = 'Record what is right as a new row.';
END
$refuse$"""


def create_checks(connection: sa.Connection) -> None:
    """Create or replace the trigger of every append-only table. Run by the owner; repeating it changes nothing."""
    # A literal percent sign must reach the server as it is.
    connection.exec_driver_sql(_FUNCTION.replace("%", "%%"))
    # While a migration is being written, the newest tables are not there yet.
    present = set(sa.inspect(connection).get_table_names(schema="public"))
    for name in present.intersection(APPEND_ONLY):
        connection.exec_driver_sql(
            f"CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.{name} "
            "FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()"
        )
