"""A complete data set with every defect at once: each is found by the layer that should find it, with its verdict.

What each layer finds alone is in the tests of that layer; layer 1 is asked here for every rule of every table.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality import check_table
from e2i_dagster.quality.report import QualityReport
from e2i_dagster.quality.rules import Rule, rules_for
from e2i_dagster.quality.schemas import check_schema
from e2i_dagster.synthetic.generate import generate
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, date_column

END = dt.date(2024, 12, 31)
Tables = dict[str, pd.DataFrame]
#: Tables that have defects of more than one layer.
SEVERAL = (
    "treatment_events",
    "patient_clinical",
    "engagement_events",
    "business_metrics",
    "agent_activities",
)
_UNREADABLE = {"text": "a\x00b", "boolean": "perhaps"}


@pytest.fixture(scope="module")
def drawn() -> Tables:
    tables = dict(
        generate(
            n_hcps=120, n_patients=300, n_treatments=900, n_metrics=120, n_causal_paths=60, n_activities=60
        )
    )
    journeys = tables["patient_journeys"]
    tables["observation_periods"] = pd.DataFrame(
        {
            "observation_period_id": [f"OP{i:06d}" for i in range(len(journeys))],
            "patient_id": journeys["patient_id"],
            "start_date": pd.Timestamp("2021-01-01"),
            "end_date": pd.Timestamp("2024-12-31"),
        }
    )
    return tables


def _violate(frame: pd.DataFrame, rule: Rule, row: int, ordered: list[str]) -> None:
    """Make ``row`` violate ``rule`` and nothing else."""
    value: Any = None
    match rule.kind:
        case "type":
            value = _UNREADABLE.get(rule.family, "soon")
        case "unique_key":
            value = frame[rule.column].iloc[-1]
        case "finite":
            value = np.inf if rule.column in ordered[1:] else -np.inf  # still in order
        case "range":
            upwards = rule.maximum is not None and rule.column not in ordered[:1]  # still in order
            value = cast(float, rule.maximum) + 1 if upwards else (rule.minimum or 0) - 1
        case "vocabulary":
            value = "unheard"
        case "key_format" | "check_digit":
            value = "1234567890"  # ten digits, of which the last is wrong
            if rule.family == "list":
                value = f'["{value}"]'
        case "order":
            for name in ordered:
                frame.loc[row, name] = "2022-01-01" if name == ordered[0] else None
            moments = rule.family in ("date", "timestamp")
            value, earlier = ("2024-06-01", "2024-02-01") if moments else (0.4, 0.3)
            frame.loc[row, rule.other] = earlier
    frame.loc[row, rule.column] = value


def _spoil(
    frame: pd.DataFrame, table: str, policy: QualityPolicy
) -> tuple[pd.DataFrame, dict[str, set[int]]]:
    """``frame`` with one violation of each rule on values, each in a row of its own, and which row it is."""
    rules = [rule for rule in rules_for(table, policy) if not rule.kind.endswith("_column")]
    spoiled = frame.reset_index(drop=True).astype(object)
    for rule in rules:
        for name in filter(None, (rule.column, rule.other)):
            if name not in spoiled:
                spoiled[name] = None
    ordered = list(dict.fromkeys(name for one in rules if one.other for name in (one.column, one.other)))
    planted: dict[str, set[int]] = {}
    for row, rule in enumerate(rules):
        _violate(spoiled, rule, row, ordered)
        planted[rule.label] = {row, len(spoiled) - 1} if rule.kind == "unique_key" else {row}
    return spoiled, planted


@pytest.mark.parametrize("table", (*RAW_TABLES, *OPTIONAL_RAW_TABLES))
def test_every_rule_of_every_table_finds_exactly_its_rows(
    drawn: Tables, policy: QualityPolicy, table: str
) -> None:
    assert check_schema(drawn[table], table, policy).faults == ()
    spoiled, planted = _spoil(drawn[table], table, policy)
    found = check_schema(spoiled, table, policy).faults
    assert {fault.rule.label: set(fault.positions.tolist()) for fault in found} == planted


def _month(frame: pd.DataFrame, table: str) -> pd.Series:
    return pd.to_datetime(frame[date_column(table)], utc=True, format="ISO8601", errors="coerce").dt.strftime(
        "%Y-%m"
    )


def _everything(drawn: Tables, policy: QualityPolicy) -> Tables:
    """Every rule of layer 1 in every table, and after those rows what the other layers are there for."""
    tables = {name: _spoil(frame, name, policy)[0] for name, frame in drawn.items()}
    events, clinical = tables["treatment_events"], tables["patient_clinical"]
    later, free = _month(events, "treatment_events"), events.index[100:]
    events.loc[free[(later[free] == "2023-05")], "event_type"] = None
    events.loc[free[(later[free] == "2023-07")], ["hcp_id", "data_source"]] = None
    rows = iter(free[~later[free].isin(["2023-05", "2023-07"])])
    events.loc[next(rows), "hcp_id"] = "HCP99999999"
    row = next(rows)
    events.loc[row, "patient_id"] = events["patient_id"][
        events["patient_id"] != events["patient_id"][row]
    ].iloc[-1]
    events.loc[next(rows), "event_date"] = pd.Timestamp("1900-01-01")
    events.loc[next(rows), "event_date"] = pd.Timestamp("2025-03-01")
    common = events["data_source"].mode().iloc[0]
    for _ in range(40):  # in months of their own rows, one category in two spellings
        events.loc[next(rows), "data_source"] = common.lower()
    clinical.loc[200, "urticaria_severity_uas7"] = 41.5
    clinical.loc[201, "ldh_ratio"] = 0.0
    clinical.loc[202, "egfr"] = 1.4
    clinical.loc[203, "proteinuria_g_day"] = 2100.0
    clinical.loc[204, "ecog_performance_status"] = 2.5
    engagements = tables["engagement_events"]
    engagements.loc[60:120, "engagement_event_id"] = engagements["engagement_event_id"].iloc[-1]
    metrics = tables["business_metrics"]
    metrics.loc[50:, "confidence_interval_upper"] = 1.0
    metrics.loc[50:, "confidence_interval_lower"] = 2.0
    activities = tables["agent_activities"]
    activities.loc[40:, ["agent_tier", "status"]] = "unheard"
    activities.loc[40:, ["confidence_level", "processing_duration_ms", "records_processed"]] = -1
    return tables


@pytest.fixture(scope="module")
def reports(drawn: Tables, policy: QualityPolicy) -> dict[str, QualityReport]:
    tables = _everything(drawn, policy)
    made = {}
    for name in SEVERAL:
        frame = tables[name]
        labels = _month(frame, name).fillna("undated") if name == "treatment_events" else None
        made[name] = check_table(name, frame, policy=policy, partitions=labels, as_of=END, references=drawn)
    return made


def _found(report: QualityReport) -> set[tuple[str, str, str | None]]:
    return {(one.layer, one.rule, one.column) for one in report.findings}


def test_nothing_of_layer_one_is_hidden_by_the_others(
    reports: dict[str, QualityReport], policy: QualityPolicy
) -> None:
    for name, report in reports.items():
        wanted = {
            (rule.id, rule.column): rule.severity
            for rule in rules_for(name, policy)
            if not rule.kind.endswith("_column")
        }
        found = {(one.rule, one.column): one.severity for one in report.findings if one.layer == "schema"}
        assert wanted.items() <= found.items(), name
        assert report.verdict == "failed" and "check_error" not in {one.rule for one in report.findings}


@pytest.mark.parametrize(
    ("table", "layer", "rule", "column", "partition", "blocks"),
    [
        ("treatment_events", "expectations", "expectation_critical", "event_type", "2023-05", True),
        ("treatment_events", "dimensions", "dimension_completeness", None, "2023-07", True),
        ("treatment_events", "plausibility", "plausibility_orphan_key", "hcp_id", None, True),
        ("treatment_events", "plausibility", "plausibility_other_patient", "patient_id", None, True),
        ("treatment_events", "plausibility", "plausibility_before_birth", "event_date", "1900-01", False),
        ("treatment_events", "plausibility", "plausibility_before_journey", "event_date", "1900-01", False),
        (
            "treatment_events",
            "plausibility",
            "plausibility_outside_observation",
            "event_date",
            "1900-01",
            False,
        ),
        ("treatment_events", "plausibility", "plausibility_future", "event_date", "2025-03", False),
        ("treatment_events", "plausibility", "plausibility_spelling", "data_source", None, False),
        ("patient_clinical", "plausibility", "plausibility_clinical_range", "ldh_ratio", None, False),
        (
            "patient_clinical",
            "plausibility",
            "plausibility_clinical_range",
            "ecog_performance_status",
            None,
            False,
        ),
        ("patient_clinical", "plausibility", "plausibility_unit", "egfr", None, False),
        ("patient_clinical", "plausibility", "plausibility_unit", "proteinuria_g_day", None, False),
        ("engagement_events", "dimensions", "dimension_uniqueness", None, None, True),
        ("business_metrics", "dimensions", "dimension_consistency", None, None, True),
        ("agent_activities", "dimensions", "dimension_validity", None, None, True),
    ],
)
def test_each_layer_finds_its_own_among_all(
    reports: dict[str, QualityReport],
    table: str,
    layer: str,
    rule: str,
    column: str | None,
    partition: str | None,
    blocks: bool,
) -> None:
    found = [
        one
        for one in reports[table].findings
        if (one.layer, one.rule, one.column) == (layer, rule, column) and partition in (None, one.partition)
    ]
    assert found, sorted(_found(reports[table]), key=str)
    assert {one in reports[table].blocking for one in found} == {blocks}
