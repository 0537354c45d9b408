"""Synthetic raw tables with known effects: :func:`generate` draws them, :func:`write` puts them into files.

The equations of the five processes are in ``synthetic_processes``; what is true of a set is in ``truth``.
No table holds a probability, a potential outcome or an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.local_files import replacing
from e2i_dagster.sources import Tables
from e2i_dagster.synthetic.defects import soil
from e2i_dagster.synthetic.population import COHORTS, draw_population
from e2i_dagster.synthetic.processes import PROCESSES
from e2i_dagster.synthetic.raw_tables import (
    agent_activities,
    business_metrics,
    causal_paths,
    draw_professionals,
    engagement_events,
    hcp_profiles,
    ml_predictions,
    outcome_events,
    patient_clinical,
    patient_journeys,
    treated_count,
    treating_professional,
    treatment_events,
    triggers,
)
from e2i_dagster.synthetic.streams import Streams, pc

#: The processes by name, the default first in use.
DGPS: tuple[str, ...] = tuple(PROCESSES)
#: The cohorts that can be drawn from.
COHORT_KEYS: tuple[str, ...] = tuple(COHORTS)
#: Volumes of the full set (the prior platform's), as arguments of :func:`generate`.
FULL: dict[str, int] = {
    "n_hcps": 5_000,
    "n_patients": 25_000,
    "n_treatments": 75_000,
    "n_engagements": 15_000,
    "n_outcomes": 10_000,
    "n_predictions": 20_000,
    "n_triggers": 12_000,
    "n_metrics": 10_000,
    "n_causal_paths": 500,
    "n_activities": 2_500,
}
#: A tenth of everything.
SMALL: dict[str, int] = {name: count // 10 for name, count in FULL.items()}


def generate(
    dgp: str = "confounded",
    n_hcps: int = 5_000,
    n_patients: int = 25_000,
    n_treatments: int | None = None,
    seed: int = 42,
    *,
    cohorts: Sequence[str] | None = None,
    dirty: bool = False,
    n_engagements: int | None = None,
    n_outcomes: int | None = None,
    n_predictions: int | None = None,
    n_triggers: int | None = None,
    n_metrics: int = 10_000,
    n_causal_paths: int = 500,
    n_activities: int = 2_500,
) -> Tables:
    """The eleven raw tables of one process, as frames in the dtypes of the warehouse.

    Args:
        dgp: name of the process (``DGPS``).
        n_hcps, n_patients: professionals (at least 6) and patients, one journey each.
        n_treatments, n_engagements, n_outcomes, n_predictions, n_triggers: rows of the event tables. Not
            given, they grow with the patients: 75,000, 15,000, 10,000, 20,000 and 12,000 for 25,000.
        seed: integer of 0 or more; the same arguments give the same tables on every platform. Fresh
            patients of the same process are drawn by another seed.
        cohorts: cohorts that the patients are drawn from, evenly; all four by default.
        dirty: apply missingness, measurement error and planted defects (``synthetic_defects``).
        n_metrics, n_causal_paths, n_activities: rows of the remaining tables.

    Returns:
        One frame per name of ``RAW_TABLES``, each with exactly the rows asked for (``dirty`` adds
        duplicates). All dates lie between 2022-01-01 and 2024-12-31.

    Raises:
        InputError: unknown process or cohort, or a volume that cannot hold the rows that carry treatment
            and outcome; the least possible volume is named.
    """
    _check_volumes(
        n_hcps=n_hcps,
        n_treatments=n_treatments,
        n_engagements=n_engagements,
        n_outcomes=n_outcomes,
        n_predictions=n_predictions,
        n_triggers=n_triggers,
        n_metrics=n_metrics,
        n_causal_paths=n_causal_paths,
        n_activities=n_activities,
    )
    streams = Streams(seed)
    people = draw_population(dgp, n_patients, seed, cohorts)
    hcps = draw_professionals(n_hcps, streams)
    hcp = treating_professional(people, hcps, streams)

    def volume(asked: int | None, name: str, least: int = 0) -> int:
        if asked is not None:
            return asked
        return max(round(n_patients * FULL[name] / FULL["n_patients"]), least)

    contacts, score = engagement_events(
        people, hcps, hcp, volume(n_engagements, "n_engagements", treated_count(people)), streams
    )
    journeys = patient_journeys(people, hcps, hcp, score, streams)
    least = int(
        people.outcome.sum() + people.covariates.consultations.sum() + people.covariates.prescriptions.sum()
    )
    tables = {
        "hcp_profiles": hcp_profiles(hcps, streams),
        "patient_journeys": journeys,
        "patient_clinical": patient_clinical(people),
        "treatment_events": treatment_events(
            people, hcp, volume(n_treatments, "n_treatments", least), streams
        ),
        "engagement_events": contacts,
        "outcome_events": outcome_events(people, hcp, volume(n_outcomes, "n_outcomes"), streams),
        "ml_predictions": ml_predictions(people, hcp, volume(n_predictions, "n_predictions"), streams),
        "triggers": triggers(people, hcp, volume(n_triggers, "n_triggers"), streams),
        "business_metrics": business_metrics(n_metrics, streams),
        "causal_paths": causal_paths(n_causal_paths, streams),
        "agent_activities": agent_activities(n_activities, streams),
    }
    return soil(tables, streams) if dirty else tables


def _check_volumes(**volumes: int | None) -> None:
    for name, value in volumes.items():
        if value is not None and value < 0:
            raise InputError(
                f"{name}={value} is no number of rows.",
                field=name,
                value=value,
                remedy="Give 0 or more rows.",
            )


def write(tables: Tables, folder: Path | str, format: Literal["csv", "parquet"] = "csv") -> list[Path]:
    """Write each table to ``folder/<table>.<format>``; the files read back by ``sources.files``.

    CSV: header row, ISO dates, UTC timestamps with Z, lower-case true and false, empty field for null.
    A file is written aside and renamed, so no half file is ever seen.

    Returns:
        The paths of the files, in the order of the tables.

    Raises:
        InputError: the format is neither csv nor parquet.
        UnavailableError: the folder cannot be written to.
    """
    if format not in ("csv", "parquet"):
        raise InputError(
            f"format={format!r} is not written.", field="format", value=format, remedy="Use csv or parquet."
        )
    target = Path(folder)
    written: list[Path] = []
    try:
        for name, frame in tables.items():
            path = target / f"{name}.{format}"
            with replacing(path) as aside:
                _write_frame(frame, aside, format)
            written.append(path)
    except OSError as error:
        raise UnavailableError(
            f"{target}: cannot be written to ({error.strerror or error}).",
            remedy="Give another folder, or free space and permissions.",
        ) from error
    return written


def _write_frame(frame: pd.DataFrame, path: Path, format: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(None)
    if format == "parquet":
        parquet.write_table(table, path)
        return
    columns: list[Any] = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_timestamp(field.type):
            # Whole days are written as dates, instants in ISO 8601 with Z.
            if field.type.tz is None:
                columns.append(column.cast(pa.date32()))
            else:
                columns.append(
                    pc.strftime(column.cast(pa.timestamp("s", tz="UTC")), format="%Y-%m-%dT%H:%M:%SZ")
                )
        elif pa.types.is_floating(field.type):
            # NaN is how pandas says null.
            columns.append(pc.if_else(pc.is_nan(column), None, column))
        else:
            columns.append(column)
    import duckdb

    plain = pa.table(columns, names=table.column_names)
    with duckdb.connect() as connection:
        connection.from_arrow(plain).write_csv(str(path), header=True)


__all__ = ["COHORT_KEYS", "DGPS", "FULL", "SMALL", "generate", "write"]
