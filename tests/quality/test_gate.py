"""The gate holds across runs: verdicts of exact versions under exact rules."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator

import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.quality import (
    DataRef,
    QCGateBlockedError,
    check_table,
    find_verdicts,
    leakage,
    record_leakage,
    record_verdicts,
    require_gate,
    require_raw_gate,
    ruleset_hash,
)
from e2i_dagster.tables.description import quality as tables

END = dt.date(2024, 12, 31)
DIGESTS = {"2023-12": "d1", "2024-01": "d2", "2024-02": "d3"}


@pytest.fixture
def connection(database: sa.Engine) -> Iterator[sa.Connection]:
    with database.connect() as made:
        yield made
        made.rollback()


@pytest.fixture
def bad_events(events: pd.DataFrame) -> pd.DataFrame:
    frame = events.copy()
    frame.loc[[200, 201], "cost"] = -5.0  # 2024-01
    return frame


def _refs(**digests: str) -> list[DataRef]:
    return [DataRef("treatment_events", month, digest) for month, digest in {**DIGESTS, **digests}.items()]


def test_passed_versions_open_the_gate(
    connection: sa.Connection, events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    stored = record_verdicts(connection, report, DIGESTS, run_id="run-1")
    assert [verdict.blocking for verdict in stored] == [False, False, False]
    found = require_gate(connection, _refs(), ruleset_hash(policy, "treatment_events"))
    assert [verdict.digest for verdict in found] == ["d1", "d2", "d3"]
    assert found[0].run_id == "run-1"
    assert require_raw_gate(
        connection, [("raw/treatment_events", "2024-01", "d2"), ("cohort", None, "x")], policy
    )


def test_a_failed_part_blocks_and_is_named(
    connection: sa.Connection, bad_events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", bad_events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS)
    with pytest.raises(QCGateBlockedError) as caught:
        require_gate(connection, _refs(), {"treatment_events": ruleset_hash(policy, "treatment_events")})
    said = str(caught.value)
    assert isinstance(caught.value, VerdictError)
    assert "table treatment_events, partition 2024-01: schema_range on cost, 2 rows" in said
    assert "docs/rules/schema_range.md" in said
    assert "e2i load" in said
    assert "2023-12" not in said
    require_gate(connection, _refs()[:1], ruleset_hash(policy, "treatment_events"))


def test_a_fault_in_a_column_that_is_not_read_only_warns(
    connection: sa.Connection, bad_events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", bad_events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS)
    current = ruleset_hash(policy, "treatment_events")
    found = require_gate(
        connection, _refs(), current, reads={"treatment_events": ("patient_id", "event_date")}
    )
    assert [[one.column for one in verdict.elsewhere] for verdict in found] == [[], ["cost"], []]
    for reads in ({"treatment_events": ("cost",)}, {"triggers": ("patient_id",)}, None):
        with pytest.raises(QCGateBlockedError, match="schema_range on cost"):
            require_gate(connection, _refs(), current, reads=reads)


def test_faults_of_the_table_stop_everybody(
    connection: sa.Connection, events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    events = pd.concat([events, events.tail(1).assign(cost=1.0)], ignore_index=True)
    months = pd.concat([months, months.tail(1)], ignore_index=True)
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS)
    with pytest.raises(QCGateBlockedError, match="schema_unique_key on treatment_event_id"):
        require_gate(
            connection,
            _refs(),
            ruleset_hash(policy, "treatment_events"),
            reads={"treatment_events": ("cost",)},
        )


def test_what_was_never_checked_counts_as_blocked(
    connection: sa.Connection, events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS)
    current = ruleset_hash(policy, "treatment_events")
    with pytest.raises(QCGateBlockedError, match="partition 2024-01: not_checked"):
        require_gate(connection, _refs(**{"2024-01": "another version"}), current)
    with pytest.raises(QCGateBlockedError, match="2024-03: not_checked"):
        require_gate(connection, [*_refs(), DataRef("treatment_events", "2024-03", "d3")], current)
    with pytest.raises(QCGateBlockedError, match="table triggers, partition 2024-01: not_checked"):
        require_gate(connection, [DataRef("triggers", "2024-01", "d2")], {"treatment_events": current})


def test_changed_rules_need_a_new_check(
    connection: sa.Connection, events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS)
    stricter = dataclasses.replace(policy, settings=policy.settings.model_copy(update={"overall": 0.9}))
    with pytest.raises(QCGateBlockedError, match="not_checked"):
        require_raw_gate(connection, [("treatment_events", "2024-01", "d2")], stricter)


def test_a_check_that_was_interrupted_blocks_without_naming_a_rule(
    connection: sa.Connection, events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS)
    connection.execute(tables.ml_gate_verdicts.update().values(blocking=True, verdict="failed", rules=[]))
    with pytest.raises(QCGateBlockedError, match="the check did not finish"):
        require_gate(connection, _refs(), ruleset_hash(policy, "treatment_events"))


def test_checking_again_replaces_the_verdict(
    connection: sa.Connection,
    events: pd.DataFrame,
    bad_events: pd.DataFrame,
    months: pd.Series,
    policy: QualityPolicy,
) -> None:
    for frame in (bad_events, events):
        report = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END)
        record_verdicts(connection, report, DIGESTS)
    require_gate(connection, _refs(), ruleset_hash(policy, "treatment_events"))
    assert len(find_verdicts(connection, table="treatment_events")) == 3
    reports = connection.scalar(sa.select(sa.func.count()).select_from(tables.ml_data_quality_reports))
    assert reports == 6


def test_findings_are_stored_with_their_report(
    connection: sa.Connection, bad_events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", bad_events, policy=policy, partitions=months, as_of=END)
    record_verdicts(connection, report, DIGESTS, run_id="run-2")
    results, reports = tables.data_quality_results, tables.ml_data_quality_reports
    rows = connection.execute(
        sa.select(results.c.rule_id, results.c.rows_failed, reports.c.digest, reports.c.run_id)
        .join(reports, reports.c.id == results.c.report_id)
        .where(results.c.severity == "fatal")
    ).all()
    assert [tuple(row) for row in rows] == [("schema_range", 2, "d2", "run-2")]


def test_a_part_without_stored_data_gets_no_verdict(
    connection: sa.Connection, bad_events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    report = check_table("treatment_events", bad_events, policy=policy, partitions=months, as_of=END)
    stored = record_verdicts(connection, report, {"2023-12": "d1"})
    assert [verdict.partition for verdict in stored] == ["2023-12"]
    with pytest.raises(InputError, match="2099-01"):
        record_verdicts(connection, report, {"2099-01": "d1"})


def test_tables_without_partitions_are_all(
    connection: sa.Connection, journeys: pd.DataFrame, policy: QualityPolicy
) -> None:
    report = check_table("patient_journeys", journeys, policy=policy)
    record_verdicts(connection, report, {"all": "d9"})
    assert require_raw_gate(connection, [("patient_journeys", None, "d9")], policy)[0].verdict == "passed"


def test_nothing_to_read_is_allowed(connection: sa.Connection) -> None:
    assert require_gate(connection, [], {}) == ()


def test_leakage_audits_are_stored(connection: sa.Connection) -> None:
    frame = pd.DataFrame({"patient_id": range(60), "label": [0, 1] * 30, "copy": [0, 1] * 30})
    report = leakage.audit(frame, target="label")
    record_leakage(connection, report, subject="training_frame/some_scope", digest="d1")
    stored = connection.execute(
        sa.select(tables.ml_leakage_audit.c.check_type, tables.ml_leakage_audit.c.passed)
    ).all()
    assert sorted(tuple(row) for row in stored) == [
        ("known_at", True),
        ("target", False),
        ("window", True),
    ]
