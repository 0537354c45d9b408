"""What a cohort is built from, in the versions that the ledger calls current. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.cohort_fields import EVENT_COLUMNS, OBSERVATION
from e2i_dagster.errors import InputError
from e2i_dagster.tables.frames import conform
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake

PATIENT_TABLES = ("patient_journeys", "patient_clinical")
EVENT_TABLES = tuple(EVENT_COLUMNS)


def read_current(
    engine: sa.Engine,
    lake: Lake,
    tables: Sequence[str],
    *,
    months: Sequence[str],
    needs_events: bool = False,
) -> dict[str, pd.DataFrame]:
    """The current rows of raw ``tables``; an event table that is absent has none.

    Args:
        months: months (``YYYY-MM``) that event tables are kept for; what the lake has of others is not read.
        needs_events: rules on events read them: without any event table, of nobody would be known whether an
            event was there.

    Raises:
        InputError: a table was never materialized, one of patients is absent, or all event tables are that are
            needed; all of them are named.
    """
    versions = {table: ledger.current(engine, table, months=months) for table in tables}
    missing = [table for table, found in versions.items() if not found]
    absent = [table for table in missing if ledger.why_absent(engine, table)]
    if lacking := [table for table in absent if table in PATIENT_TABLES]:
        raise InputError(
            f"{', '.join(lacking)}: absent, no delivery holds it.",
            field="source.folder",
            value=lacking,
            remedy="A cohort needs it: deliver it.",
        )
    events = [table for table in tables if table in EVENT_TABLES]
    if needs_events and set(events) <= set(absent):
        raise InputError(
            f"{', '.join(events)}: absent, no delivery holds any of them.",
            field="source.folder",
            value=events,
            remedy="Rules on events need at least one of them: deliver it, or take the rules out of the definition.",
        )
    missing = [table for table in missing if table not in absent]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: never loaded.",
            remedy="Load data first: `e2i load --from FOLDER`, or `e2i run` for the invented set.",
        )
    return {
        table: conform(table, pd.DataFrame())
        if table in absent
        else lake.read_frame([version.file for version in found.values() if version.file])
        for table, found in versions.items()
    }


@dataclass(frozen=True)
class Observed:
    """What rules on time and events read beside the patients; None where they read nothing of it."""

    events: pd.DataFrame | None
    periods: pd.DataFrame | None


def read_observed(
    engine: sa.Engine, lake: Lake, tables: Sequence[str], journeys: pd.DataFrame, *, months: Sequence[str]
) -> Observed:
    """The current rows of ``tables``; observation periods only where some were delivered.

    Args:
        months: as in :func:`read_current`.

    Raises:
        InputError: an event table was never materialized, or all of them are absent.
    """
    wanted = [table for table in tables if table != OBSERVATION]
    found = read_current(engine, lake, wanted, months=months, needs_events=bool(wanted))
    events = event_frame(found, journeys) if wanted else None
    delivered = ledger.current(engine, OBSERVATION) if OBSERVATION in tables else {}
    periods = read_current(engine, lake, [OBSERVATION], months=months)[OBSERVATION] if delivered else None
    return Observed(events, periods if periods is not None and len(periods) else None)


def event_frame(tables: Mapping[str, pd.DataFrame], journeys: pd.DataFrame) -> pd.DataFrame:
    """The events of all event tables in one frame, one row per event: what criteria on events read.

    ``event_type`` and ``event_date`` are those of each table. Codes are in the column of their system, as
    delivered; ``code``, which is counted and shown, is the National Drug Code where there is one and else the
    first diagnosis code. Every other column keeps its name and is null for events of
    tables that do not have it. Contacts without a patient are left out; those that name a journey only get
    its patient.
    """
    parts = []
    patient_of = journeys.set_index("patient_journey_id")["patient_id"]
    for table, (kind, day) in EVENT_COLUMNS.items():
        if table not in tables:
            continue
        part = tables[table].rename(columns={kind: "event_type", day: "event_date"})
        if "patient_id" not in part:
            part = part.assign(patient_id=part["patient_journey_id"].map(patient_of))
        parts.append(part[part["patient_id"].notna()].assign(table=table, code=_code(part)))
    if not parts:
        return pd.DataFrame()
    # A column without any value has no type that the others would have to agree with.
    joined = pd.concat([part.dropna(axis="columns", how="all") for part in parts], ignore_index=True)
    # It keeps the type of its table all the same: a rule on a text that nobody has yet finds nobody.
    typed = {name: part[name].iloc[:0] for part in reversed(parts) for name in part.columns}
    empty = {name: typed[name].reindex(joined.index) for name in typed if name not in joined}
    return joined.assign(**empty)[list(dict.fromkeys(name for part in parts for name in part.columns))]


def _code(events: pd.DataFrame) -> pd.Series:
    nothing = pd.Series(pd.NA, index=events.index, dtype="string[pyarrow]")
    if "drug_ndc" not in events:
        return nothing
    if "icd_codes" not in events:
        return events["drug_ndc"]
    first = events["icd_codes"].str.extract(r'^\s*\[\s*"([^"]+)"', expand=False)
    return events["drug_ndc"].fillna(first.astype("string[pyarrow]"))
