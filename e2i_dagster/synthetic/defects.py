"""What ``dirty=True`` does to a clean set: missing values, measurement error, planted defects.

Every defect is listed in :data:`DEFECTS` with its table, column, share and what the product is expected to
say of it, so that a demonstration can be checked against the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from e2i_dagster.sources import Tables
from e2i_dagster.synthetic.streams import Flags, Streams

#: Share of values set to null, by table and column (the prior platform's missingness).
MISSINGNESS: Mapping[tuple[str, str], float] = {
    ("patient_journeys", "insurance_type"): 0.08,
    ("patient_journeys", "age_at_diagnosis"): 0.05,
    ("patient_journeys", "comorbidities"): 0.12,
    ("patient_clinical", "prior_antihistamine_therapy"): 0.15,
    ("patient_clinical", "prior_cdk46_inhibitor"): 0.15,
    ("engagement_events", "quality_score"): 0.10,
}

#: Standard deviation of the relative error of measured values, by table, column and the range kept.
MEASUREMENT_ERROR: Mapping[tuple[str, str], tuple[float, float, float]] = {
    ("patient_journeys", "disease_severity"): (0.10, 0.0, 10.0),
    ("engagement_events", "quality_score"): (0.15, 0.0, 10.0),
    ("outcome_events", "value"): (0.12, 0.0, np.inf),
}

Kind = Literal["npi_check_digit", "value", "duplicate", "conflict", "date_order", "null_date"]


@dataclass(frozen=True)
class Defect:
    """One planted defect.

    Attributes:
        name: key. table, column: where. share: of the table's rows, at least one row.
        expected: what the product says of such a row.
    """

    name: str
    kind: Kind
    table: str
    column: str
    share: float
    expected: str
    value: str | float | None = None


#: Every planted defect.
DEFECTS: tuple[Defect, ...] = (
    Defect("wrong_npi", "npi_check_digit", "hcp_profiles", "npi", 0.004, "rejected: wrong check digit"),
    Defect(
        "unknown_region",
        "value",
        "patient_journeys",
        "geographic_region",
        0.002,
        "rejected: not in the vocabulary",
        "atlantis",
    ),
    Defect(
        "severity_out_of_range",
        "value",
        "patient_journeys",
        "disease_severity",
        0.002,
        "rejected: out of range",
        14.0,
    ),
    Defect(
        "end_before_start",
        "date_order",
        "patient_journeys",
        "journey_end_date",
        0.002,
        "rejected or reported: the journey ends before it starts",
    ),
    Defect(
        "unknown_professional",
        "value",
        "treatment_events",
        "hcp_id",
        0.003,
        "rejected: no such professional",
        "HCP99999999",
    ),
    Defect(
        "unknown_patient",
        "value",
        "treatment_events",
        "patient_id",
        0.003,
        "rejected: no such patient",
        "PAT99999999",
    ),
    Defect(
        "unknown_event_type",
        "value",
        "treatment_events",
        "event_type",
        0.003,
        "rejected: not in the vocabulary",
        "teleportation",
    ),
    Defect(
        "missing_event_date",
        "null_date",
        "treatment_events",
        "event_date",
        0.002,
        "rejected: a required value is missing",
    ),
    Defect(
        "repeated_event",
        "duplicate",
        "treatment_events",
        "treatment_event_id",
        0.005,
        "counted as duplicate, loaded once",
    ),
    Defect(
        "same_key_other_content",
        "conflict",
        "treatment_events",
        "treatment_event_id",
        0.002,
        "rejected: the key occurs with different content",
    ),
    Defect(
        "confidence_above_one",
        "value",
        "triggers",
        "confidence_score",
        0.004,
        "rejected: out of range",
        1.4,
    ),
)


def soil(tables: Tables, streams: Streams) -> dict[str, pd.DataFrame]:
    """A copy of ``tables`` with :data:`MISSINGNESS`, :data:`MEASUREMENT_ERROR` and :data:`DEFECTS`.

    Tables that nothing is done to are the same objects. Duplicated rows add to the volume.
    """
    touched = {name for name, _ in (*MISSINGNESS, *MEASUREMENT_ERROR)} | {item.table for item in DEFECTS}
    soiled = {name: frame.copy() if name in touched else frame for name, frame in tables.items()}
    for (name, column), (deviation, low, high) in MEASUREMENT_ERROR.items():
        frame = soiled[name]
        error = 1.0 + deviation * streams.normal(f"dirty.error.{name}.{column}", len(frame))
        frame[column] = (frame[column] * error).clip(low, high).round(2)
    for (name, column), share in MISSINGNESS.items():
        frame = soiled[name]
        lost = streams.happens(f"dirty.missing.{name}.{column}", share, len(frame))
        frame[column] = frame[column].mask(lost)
    for defect in DEFECTS:
        soiled[defect.table] = _plant(soiled[defect.table], defect, streams)
    return soiled


def _rows(frame: pd.DataFrame, defect: Defect, streams: Streams) -> Any:
    count = max(1, round(defect.share * len(frame)))
    return np.sort(streams.order(f"dirty.defect.{defect.name}", len(frame))[:count])


def _plant(frame: pd.DataFrame, defect: Defect, streams: Streams) -> pd.DataFrame:
    rows = _rows(frame, defect, streams)
    chosen: Flags = np.zeros(len(frame), dtype=bool)
    chosen[rows] = True
    column = defect.column
    if defect.kind == "duplicate":
        return pd.concat([frame, frame.iloc[rows]], ignore_index=True)
    if defect.kind == "conflict":
        other = frame.iloc[rows].copy()
        other["cost"] = other["cost"].fillna(0.0) + 1.0
        return pd.concat([frame, other], ignore_index=True)
    if defect.kind == "npi_check_digit":
        old = frame[column].astype("string[pyarrow]")
        wrong = (old.str[-1].astype("Int64") + 1) % 10
        frame[column] = old.mask(chosen, old.str[:-1] + wrong.astype("string[pyarrow]"))
    elif defect.kind == "date_order":
        before = frame["journey_start_date"] - pd.Timedelta(days=30)
        frame[column] = frame[column].mask(chosen, before)
    elif defect.kind == "null_date":
        frame[column] = frame[column].mask(chosen)
    else:
        frame[column] = frame[column].mask(chosen, defect.value)
    return frame
