"""What the tables of the warehouse are: their description, the rules of their rows, the one parser of their cells.

Here belongs what is true of a table or a cell without a database. Here do not belong connections and migrations
(``database``), stored versions (``versions``) and loads (``loading``).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

import sqlalchemy as sa

from e2i_dagster.errors import InputError
from e2i_dagster.tables import description
from e2i_dagster.tables.description.base import ColumnFacts, column, facts, metadata
from e2i_dagster.tables.description.raw import MAINTAINED_COLUMNS

#: Names of the eleven raw tables in load order: parents before children.
RAW_TABLES: tuple[str, ...] = (
    "hcp_profiles",
    "patient_journeys",
    "patient_clinical",
    "treatment_events",
    "engagement_events",
    "outcome_events",
    "ml_predictions",
    "triggers",
    "business_metrics",
    "causal_paths",
    "agent_activities",
)

#: Raw tables that a delivery may have or not; loaded after the eleven.
OPTIONAL_RAW_TABLES: tuple[str, ...] = ("observation_periods",)

#: Columns of the raw tables that name a patient or a journey.
PATIENT_COLUMNS = ("patient_id", "patient_journey_id")

_DATE_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "treatment_events": "event_date",
        "engagement_events": "engagement_date",
        "outcome_events": "outcome_date",
        "ml_predictions": "prediction_timestamp",
        "triggers": "trigger_timestamp",
        "business_metrics": "metric_date",
        "causal_paths": "discovery_date",
        "agent_activities": "activity_timestamp",
    }
)

#: Tables whose rows are dated although they are no events and have no monthly partitions.
_DATED_BY: Mapping[str, str] = MappingProxyType(
    {"patient_clinical": "diagnosis_date", "observation_periods": "start_date"}
)


def all_metadata() -> sa.MetaData:
    """The metadata with every table of every stage (imports all modules of ``description``)."""
    for module in sorted(found.name for found in pkgutil.iter_modules(description.__path__)):
        importlib.import_module(f"{description.__name__}.{module}")
    return metadata


def raw_table(name: str) -> sa.Table:
    """The raw table ``name``.

    Raises:
        InputError: no raw table has this name; the known ones are listed.
    """
    if name not in RAW_TABLES and name not in OPTIONAL_RAW_TABLES:
        known = ", ".join(RAW_TABLES + OPTIONAL_RAW_TABLES)
        raise InputError(f"There is no raw table {name!r}.", remedy=f"Use one of: {known}.")
    return metadata.tables[name]


def frame_columns(name: str) -> tuple[str, ...]:
    """Names of the columns that a frame of the raw table ``name`` has, in order.

    All columns but those that the database maintains (``created_at``, ``updated_at``).
    """
    return tuple(col.name for col in raw_table(name).columns if col.name not in MAINTAINED_COLUMNS)


def required_columns(name: str) -> tuple[str, ...]:
    """Names of the columns without which no row can be loaded: not null and without default."""
    return tuple(
        col.name
        for col in raw_table(name).columns
        if not col.nullable and col.server_default is None and col.name not in MAINTAINED_COLUMNS
    )


def primary_key(name: str) -> str:
    """Name of the key column of the raw table ``name``."""
    return next(iter(raw_table(name).primary_key.columns)).name


def date_column(name: str) -> str | None:
    """Name of the column that dates the rows of an event table; None for the other tables."""
    raw_table(name)
    return _DATE_COLUMNS.get(name)


def row_date_column(name: str) -> str | None:
    """Name of the column that ``known_at: row`` refers to; None if no column of the table is ``row``."""
    raw_table(name)
    return _DATE_COLUMNS.get(name) or _DATED_BY.get(name)


def parents(name: str) -> Mapping[str, str]:
    """Foreign key columns of the raw table ``name`` and the raw table that each refers to."""
    return MappingProxyType(
        {col.name: key.column.table.name for col in raw_table(name).columns for key in col.foreign_keys}
    )


def references(name: str) -> list[tuple[str, str]]:
    """(column, parent table) of every reference; parent ``patient`` where only the loader checks."""
    found = list(parents(name).items())
    if "patient_id" in frame_columns(name) and name != "patient_journeys":
        found.append(("patient_id", "patient"))
    return found


def loaded_after(name: str) -> tuple[str, ...]:
    """Raw tables whose rows must be there before those of ``name``, in the order of their names."""
    named = {"patient_journeys" if parent == "patient" else parent for _, parent in references(name)}
    return tuple(sorted(named))


def tables_referring_to(name: str) -> tuple[str, ...]:
    """Raw tables with rows that refer to rows of ``name``, in load order."""
    return tuple(other for other in RAW_TABLES + OPTIONAL_RAW_TABLES if name in loaded_after(other))


def related_tables(name: str) -> tuple[str, ...]:
    """Raw tables that rows of ``name`` can be checked against, in the order of their names.

    Those of :func:`loaded_after`, and for dated rows of patients what is clinically known of them.
    """
    named = set(loaded_after(name))
    if "patient_journeys" in named and row_date_column(name) is not None:
        named.add("patient_clinical")
    return tuple(sorted(named - {name}))


__all__ = [
    "MAINTAINED_COLUMNS",
    "OPTIONAL_RAW_TABLES",
    "PATIENT_COLUMNS",
    "RAW_TABLES",
    "ColumnFacts",
    "all_metadata",
    "column",
    "date_column",
    "facts",
    "frame_columns",
    "loaded_after",
    "metadata",
    "parents",
    "primary_key",
    "raw_table",
    "references",
    "related_tables",
    "required_columns",
    "row_date_column",
    "tables_referring_to",
]
