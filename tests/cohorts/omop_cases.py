"""Small OMOP folders and Circe expressions for the tests of ``cohorts.omop``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd

from e2i_dagster.cohorts.omop import OmopCohort, build
from e2i_dagster.cohorts.omop.domains import TABLES

Tables = dict[str, list[dict[str, Any]]]


def write_folder(folder: Path, tables: Tables, file_format: str = "csv") -> Path:
    """The given tables as files, with every column that is read."""
    folder.mkdir(parents=True, exist_ok=True)
    for table, records in tables.items():
        frame = pd.DataFrame(records)
        for column in TABLES[table]:
            if column.removesuffix("*") not in frame:
                frame[column.removesuffix("*")] = None
        if file_format == "csv":
            frame.to_csv(folder / f"{table}.csv", index=False)
        else:
            for column in frame:
                if column.endswith("_date"):
                    frame[column] = frame[column].astype("datetime64[us]")
            frame.to_parquet(folder / f"{table}.parquet", index=False)
    return folder


def rows(cohort: OmopCohort) -> list[tuple[int, str, str]]:
    return [
        (int(subject), f"{start:%Y-%m-%d}", f"{end:%Y-%m-%d}")
        for subject, start, end in cohort.rows.itertuples(index=False)
    ]


def period(
    person: int, start: str = "2000-01-01", end: str | None = "2001-01-01", **more: Any
) -> dict[str, Any]:
    return {
        "observation_period_id": more.pop("number", person),
        "person_id": person,
        "observation_period_start_date": start,
        "observation_period_end_date": end,
        **more,
    }


def drug(number: int, person: int, start: str, concept: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "drug_exposure_id": number,
        "person_id": person,
        "drug_concept_id": concept,
        "drug_exposure_start_date": start,
        **more,
    }


def condition(number: int, person: int, start: str, concept: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "condition_occurrence_id": number,
        "person_id": person,
        "condition_concept_id": concept,
        "condition_start_date": start,
        **more,
    }


def concept_set(
    number: int, *concepts: int, excluded: tuple[int, ...] = (), below: bool = False
) -> dict[str, Any]:
    items = [
        {"concept": {"CONCEPT_ID": one}, "isExcluded": one in excluded, "includeDescendants": below}
        for one in (*concepts, *excluded)
    ]
    return {"id": number, "name": f"set {number}", "expression": {"items": items}}


SETS = [concept_set(1, 1), concept_set(2, 2), concept_set(3, 3)]
DRUG: dict[str, Any] = {"DrugExposure": {"CodesetId": 1}}
CONDITION: dict[str, Any] = {"ConditionOccurrence": {"CodesetId": 2}}


def expression(*primary: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Every exposure of set 1 starts an event, unless told otherwise; all events count."""
    return copy.deepcopy(
        {
            "ConceptSets": SETS,
            "PrimaryCriteria": {
                "CriteriaList": list(primary) or [DRUG],
                "ObservationWindow": {"PriorDays": 0, "PostDays": 0},
                "PrimaryCriteriaLimit": {"Type": "All"},
            },
            "QualifiedLimit": {"Type": "All"},
            "ExpressionLimit": {"Type": "All"},
            **more,
        }
    )


def window(start: int | None, end: int | None, **more: Any) -> dict[str, Any]:
    """Days from the index; None before is all days before, None after all days after."""
    first = {"Days": None if start is None else abs(start), "Coeff": -1 if start is None or start < 0 else 1}
    last = {"Days": None if end is None else abs(end), "Coeff": 1 if end is None or end >= 0 else -1}
    return {"Start": first, "End": last, **more}


def counted(
    criteria: dict[str, Any],
    start: int | None = None,
    end: int | None = None,
    kind: int = 2,
    count: int = 1,
    **more: Any,
) -> dict[str, Any]:
    """A correlated criterion: ``kind`` 0 exactly, 1 at most, 2 at least ``count``."""
    occurrence = {"Type": kind, "Count": count, **more.pop("occurrence", {})}
    return {
        "Criteria": criteria,
        "StartWindow": more.pop("start_window", window(start, end)),
        "Occurrence": occurrence,
        **more,
    }


def group(*criteria: dict[str, Any], kind: str = "ALL", **more: Any) -> dict[str, Any]:
    return {"Type": kind, "CriteriaList": list(criteria), "DemographicCriteriaList": [], "Groups": [], **more}


def rule(name: str, *criteria: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "expression": group(*criteria, **more)}


def cohort_of(folder: Path, tables: Tables, **parts: Any) -> OmopCohort:
    """The cohort of an expression with the given parts."""
    primary = parts.pop("primary", ())
    return build(expression(*primary, **parts), write_folder(folder, tables, "parquet"))
