"""``e2i status``: what was made and what runs, from the ledger and the service state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from e2i_dagster.errors import ConfigError, UnavailableError
from e2i_dagster.policy_files.environment import database_url, state_folder


def status_report() -> dict[str, Any]:
    """Stages (last state of each stage and partition), rows of tables, endpoints, warehouse, wrong policy files.

    Months that are not kept any more are left out of the stages; their rows are counted by reason.

    The keys are documented in docs/pipeline.md. It starts the embedded server when it is down,
    because the ledger is in it.
    """
    from e2i_dagster.database.connection import engine
    from e2i_dagster.loading.read import rows_not_kept
    from e2i_dagster.serving.deployment import endpoints
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES
    from e2i_dagster.versions.coverage import never_loaded
    from e2i_dagster.versions.ledger import notes, states

    warehouse = engine(role="app")
    months = _months()
    kept = (months[0], months[-1]) if months else None
    with warehouse.connect() as connection:
        waiting = notes(connection)
        stages = [
            {
                "name": state.stage,
                "partition": state.partition,
                "state": state.state,
                "reason": state.reason,
                "note": waiting.get((state.stage, state.partition), ""),
                "rows": state.rows,
                "seconds": state.seconds,
                "data_version": state.data_version,
                "at": state.at,
            }
            for state in states(connection)
            if kept is None or _is_kept(state.partition, kept)
        ]
        tables = {
            name: connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one()
            for name in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
        }
        not_kept = {
            name: found
            for name in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
            if kept is not None and (found := rows_not_kept(connection, name, kept))
        }
        missing = never_loaded(connection, months) if months else None
        version = connection.execute(sa.text("SHOW server_version")).scalar_one()
    url = warehouse.url
    return {
        "stages": stages,
        "tables": tables,
        "not_kept": not_kept,
        "never_loaded": missing,
        "configuration": _configuration_errors(),
        "endpoints": [endpoint.model_dump() for endpoint in endpoints(state_folder())],
        "warehouse": {
            "server": f"PostgreSQL {version} ({'embedded' if database_url() is None else 'E2I_DATABASE_URL'})",
            "address": f"{url.query.get('host') or url.host}/{url.database}",
        },
    }


def months_never_loaded() -> dict[str, list[str]] | None:
    """Configured months of event tables that were never loaded; None where no warehouse answers.

    Nothing is started to ask it: what was never made has no months either.
    """
    from e2i_dagster.database.connection import engine
    from e2i_dagster.database.server import running_server
    from e2i_dagster.versions.coverage import never_loaded

    if database_url() is None and running_server() is None:
        return None
    try:
        return never_loaded(engine(role="app"), _months())
    except UnavailableError:
        return None


def never_loaded_words(months: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each table."""
    return [
        f"Never loaded, so unknown: {table}: {', '.join(stretches)}" for table, stretches in months.items()
    ]


def _months() -> list[str]:
    """The months that are kept, in order; none when the policy files do not say it."""
    from e2i_dagster.config.policy import current_policy

    try:
        return current_policy().sources.months
    except ConfigError:
        return []


def _is_kept(partition: str | None, kept: tuple[str, str]) -> bool:
    """Whether a month, or some month of a range ``first..last``, is kept; other partitions are no months."""
    months = re.fullmatch(r"(\d{4}-\d{2})(?:\.\.(\d{4}-\d{2}))?", partition or "")
    return months is None or (months[1] <= kept[1] and (months[2] or months[1]) >= kept[0])


def _configuration_errors() -> list[dict[str, Any]]:
    """What is wrong with the policy files, one record for each."""
    from e2i_dagster.config.validate import folder_errors
    from e2i_dagster.policy_files.environment import config_folder

    return [error.to_record() for error in folder_errors(config_folder())]
