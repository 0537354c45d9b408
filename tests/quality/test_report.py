"""Three layers, one verdict for each partition; nothing of a patient in what is shown."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality import check_table, decide
from e2i_dagster.quality import expectations as layer_three
from e2i_dagster.synthetic.generate import generate
from e2i_dagster.tables import RAW_TABLES, date_column

END = dt.date(2024, 12, 31)


def test_clean_months_pass(events: pd.DataFrame, months: pd.Series, policy: QualityPolicy) -> None:
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    assert report.verdict == "passed"
    assert [part.partition for part in report.partitions] == ["2023-12", "2024-01", "2024-02"]
    assert all(part.verdict == "passed" and part.rows == 120 for part in report.partitions)
    assert report.findings == ()


def test_only_the_bad_month_is_blocked(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[200, "cost"] = -5.0  # 2024-01
    frame.loc[300, "hcp_id"] = "own-1"  # 2024-02: another shape of key
    report = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END)
    assert report.failing_partitions == ("2024-01",)
    assert {part.partition: part.verdict for part in report.partitions} == {
        "2023-12": "passed",
        "2024-01": "failed",
        "2024-02": "warning",
    }
    blocking = report.blocking
    assert [(one.rule, one.column, one.count, one.checked) for one in blocking] == [
        ("schema_range", "cost", 1, 120)
    ]
    assert blocking[0].page == "docs/rules/schema_range.md"


def test_a_key_in_two_months_concerns_both(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[359, "treatment_event_id"] = frame.loc[0, "treatment_event_id"]
    report = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END)
    assert report.failing_partitions == ("2023-12", "2024-02")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"hcp_id": None, "data_source": None}, "dimension_completeness"),
        ({"event_type": None}, "expectation_critical"),
        ({"event_type": "unheard"}, "dimension_validity"),
        ({"treatment_event_id": "same"}, "dimension_uniqueness"),
    ],
)
def test_each_layer_blocks_by_itself(
    events: pd.DataFrame, policy: QualityPolicy, change: dict, rule: str
) -> None:
    report = check_table("treatment_events", events.assign(**change), policy=policy, as_of=END)
    assert rule in {one.rule for one in report.blocking}
    assert report.verdict == "failed"


def test_the_overall_rule_can_fire_by_itself(events: pd.DataFrame, policy: QualityPolicy) -> None:
    settings = policy.settings.model_copy(update={"floors": {}, "overall": 0.9})
    old = check_table(
        "treatment_events",
        events,
        policy=dataclasses.replace(policy, settings=settings),
        as_of=dt.date(2030, 1, 1),
    )
    assert [one.rule for one in old.blocking] == ["overall_score"]
    assert "dimension_timeliness" in {one.rule for one in old.findings}


def test_an_error_in_a_check_blocks_every_partition(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise RuntimeError("PAT00000001 is in this text")

    monkeypatch.setattr(layer_three, "validate", stops)
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    assert report.verdict == "error"
    assert report.failing_partitions == ("2023-12", "2024-01", "2024-02")
    finding = report.blocking[0]
    assert finding.rule == "check_error"
    assert "RuntimeError" in finding.detail
    assert "PAT00000001" not in str(report.to_metadata())


def test_empty_one_row_and_expected_months(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    empty = check_table("treatment_events", events.iloc[:0], policy=policy, as_of=END)
    assert empty.verdict == "failed"
    assert {one.rule for one in empty.findings} >= {"no_rows", "expectation_critical"}
    no_scores = check_table("ml_predictions", pd.DataFrame(), policy=policy, as_of=END)
    assert {one.rule for one in no_scores.blocking} == {"schema_required_column"}
    one = check_table("treatment_events", events.iloc[:1], policy=policy, partitions=months[:1], as_of=END)
    assert one.verdict == "passed"
    ranged = check_table(
        "treatment_events",
        events,
        policy=policy,
        partitions=months,
        expected_partitions=["2023-12", "2024-03"],
        as_of=END,
    )
    assert ranged.failing_partitions == ("2024-03",)
    assert ranged.partition("2024-03").rows == 0


def test_partitions_must_label_every_row(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    with pytest.raises(ValueError, match="3 labels for 360 rows"):
        check_table("treatment_events", events, policy=policy, partitions=months[:3])
    with pytest.raises(ValueError, match="rows have no partition label"):
        check_table("treatment_events", events, policy=policy, partitions=months.where(months != "2024-01"))


def test_the_verdict_does_not_depend_on_the_order_of_rows_or_on_other_months(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[[125, 130], "event_type"] = None
    whole = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END)
    order = np.random.default_rng(1).permutation(len(frame))
    shuffled = check_table(
        "treatment_events", frame.iloc[order], policy=policy, partitions=months.iloc[order], as_of=END
    )
    assert shuffled.partitions == whole.partitions
    month = frame[months == "2024-01"]
    alone = check_table(
        "treatment_events", month, policy=policy, partitions=months[months == "2024-01"], as_of=END
    )
    assert alone.partition("2024-01") == whole.partition("2024-01")


def test_metadata_is_for_people_and_holds_no_patient(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[5, "event_type"] = "canary-5417"
    frame.loc[6, "hcp_id"] = "canary-5417"
    shown = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END)
    metadata = shown.to_metadata()
    assert metadata["verdict"] == "failed"
    assert "schema_vocabulary" in [row[2] for row in metadata["findings"].rows]
    assert [row[0] for row in metadata["partitions"].rows] == ["2023-12", "2024-01", "2024-02"]
    encoded = metadata["heat_map"].data
    assert base64.b64decode(encoded).startswith(b"<svg")
    everything = str([metadata, shown.to_record()])
    assert "canary-5417" not in everything + base64.b64decode(encoded).decode()
    assert "PAT0" not in everything


def test_records_have_a_row_for_each_partition_and_finding(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[200, "cost"] = -5.0
    report = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END)
    records = report.to_record()
    assert [row["overall_status"] for row in records["ml_data_quality_reports"]] == [
        "passed",
        "failed",
        "passed",
    ]
    findings = records["data_quality_results"]
    assert len(findings) == len(report.findings)
    assert {row["report_id"] for row in findings} <= {row["id"] for row in records["ml_data_quality_reports"]}


def test_findings_that_are_not_fatal_do_not_block(events: pd.DataFrame, policy: QualityPolicy) -> None:
    report = check_table(
        "treatment_events", events.assign(hcp_id="own"), policy=policy, as_of=dt.date(2024, 3, 1)
    )
    assert report.verdict == "warning"
    assert decide(report.findings) == ()


def test_the_clean_synthetic_set_has_no_blocking_finding(policy: QualityPolicy) -> None:
    tables = generate(n_hcps=200, n_patients=800, n_treatments=2_400, seed=3)
    for name in RAW_TABLES:
        dated = date_column(name)
        by_month = name in ("treatment_events", "outcome_events")
        labels = tables[name][dated].dt.strftime("%Y-%m") if dated and by_month else None
        report = check_table(name, tables[name], policy=policy, partitions=labels, as_of=END)
        assert report.blocking == (), name
        assert report.whole is not None
        assert report.whole.overall is not None
        assert report.whole.overall > 0.95
