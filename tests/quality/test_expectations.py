"""Layer 3: suites run, failures are attributed to their month, errors are errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.quality import ExpectationSpec, QualityPolicy, Suite
from e2i_dagster.quality.expectations import PartExpectations, _Runner, validate
from e2i_dagster.quality.typed import typed


def _run(frame: pd.DataFrame, months: pd.Series | None, policy: QualityPolicy) -> dict[str, PartExpectations]:
    if months is None:
        return validate(frame, "treatment_events", policy=policy)
    codes, labels = pd.factorize(months, sort=True)
    return validate(frame, "treatment_events", policy=policy, codes=codes, labels=list(labels))


def _titles(outcome: PartExpectations) -> list[str]:
    return [failure.title for failure in outcome.failures]


def test_clean_months_pass(events: pd.DataFrame, months: pd.Series, policy: QualityPolicy) -> None:
    outcome = _run(events, months, policy)
    assert set(outcome) == {"2023-12", "2024-01", "2024-02"}
    assert all(part.failures == () and part.pass_rate == 1 for part in outcome.values())


def test_a_bad_month_fails_although_the_whole_is_within_its_share(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[frame.index[months == "2024-01"][:8], "event_type"] = "unheard"  # 2 % of all, 7 % of the month
    together = _run(frame, months, policy)
    assert _titles(together["2024-01"]) == ["event_type in_set event_type (at least 95%)"]
    assert not together["2023-12"].failures
    for month, part in together.items():  # the verdict does not depend on what came in the same call
        alone = _run(frame[months == month], months[months == month], policy)
        assert alone[month] == part


def test_critical_failures_say_so(events: pd.DataFrame, months: pd.Series, policy: QualityPolicy) -> None:
    frame = events.copy()
    frame.loc[months == "2024-02", "event_type"] = None
    failures = {failure.title: failure for failure in _run(frame, months, policy)["2024-02"].failures}
    assert failures["event_type not_null (at least 95%)"].critical


def test_an_empty_frame_fails_its_row_count_only(events: pd.DataFrame, policy: QualityPolicy) -> None:
    assert _titles(_run(events.iloc[:0], None, policy)["all"]) == ["row_count min 1"]


def test_a_month_without_rows_fails_its_row_count(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    codes, labels = pd.factorize(months, sort=True)
    outcome = validate(
        events, "treatment_events", policy=policy, codes=codes, labels=[*list(labels), "2024-03"]
    )
    assert _titles(outcome["2024-03"]) == ["row_count min 1"]
    assert not outcome["2024-02"].failures


def test_a_table_without_a_suite_has_nothing_evaluated(policy: QualityPolicy) -> None:
    frame = pd.DataFrame({"observation_period_id": ["a"]})
    without = dataclasses.replace(policy, suites={})
    outcome = validate(frame, "observation_periods", policy=without)["all"]
    assert (outcome.evaluated, outcome.pass_rate) == (0, None)


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ({"expect": "row_count", "min": 2}, [1.0, 2.0], [1.0]),
        ({"expect": "not_null", "column": "cost"}, [1.0, 2.0], [1.0, None]),
        ({"expect": "between", "column": "cost", "min": 1, "max": 2}, [1.0, 2.0], [1.0, 2.1]),
        ({"expect": "in_set", "column": "cost", "values": [1, 2]}, [1.0, 2.0], [3.0, 1.0]),
        ({"expect": "unique", "column": "cost"}, [1.0, 2.0], [1.0, 1.0]),
    ],
)
def test_each_kind_can_pass_and_fail(
    policy: QualityPolicy, spec: dict, good: list[float], bad: list[float]
) -> None:
    suite = Suite(table="treatment_events", expectations=(ExpectationSpec(because="test", **spec),))
    own = dataclasses.replace(policy, suites={"treatment_events": suite})
    for values, failures in ((good, 0), (bad, 1)):
        outcome = validate(pd.DataFrame({"cost": values}), "treatment_events", policy=own)
        assert len(outcome["all"].failures) == failures
        assert outcome["all"].evaluated == 1


@pytest.mark.parametrize(
    ("spec", "column", "good", "bad"),
    [
        ({"expect": "matches", "column": "dosage", "pattern": r"^\d+mg"}, "dosage", "25mg", "much"),
        (
            {"expect": "not_before", "column": "event_date", "other": "event_date"},
            "event_date",
            "2024-01-01",
            None,
        ),
    ],
)
def test_text_and_pairs(policy: QualityPolicy, spec: dict, column: str, good: str, bad: str | None) -> None:
    suite = Suite(table="treatment_events", expectations=(ExpectationSpec(because="test", **spec),))
    own = dataclasses.replace(policy, suites={"treatment_events": suite})
    assert not validate(pd.DataFrame({column: [good, None]}), "treatment_events", policy=own)["all"].failures
    if bad is not None:
        outcome = validate(pd.DataFrame({column: [good, bad]}), "treatment_events", policy=own)
        assert len(outcome["all"].failures) == 1


def test_what_cannot_be_evaluated_is_an_error_and_never_passed(policy: QualityPolicy) -> None:
    # Text cannot be compared with a number: Great Expectations raises inside the metric.
    spec = ExpectationSpec(expect="between", column="dosage", min=1, because="test")
    own = dataclasses.replace(
        policy, suites={"treatment_events": Suite(table="treatment_events", expectations=(spec,))}
    )
    outcome = validate(pd.DataFrame({"dosage": ["canary", "25mg"]}), "treatment_events", policy=own)["all"]
    assert outcome.passed == 0
    assert outcome.failures[0].error is not None
    assert "canary" not in outcome.failures[0].error


def test_the_frame_is_not_changed(events: pd.DataFrame, months: pd.Series, policy: QualityPolicy) -> None:
    before = events.copy(deep=True)
    _run(events, months, policy)
    pd.testing.assert_frame_equal(events, before)
    assert np.array_equal(before.index, events.index)


@pytest.mark.parametrize("seed", [1, 2])
def test_one_pass_gives_each_month_what_its_own_run_gives(policy: QualityPolicy, seed: int) -> None:
    """Counting the failing rows by month is what Great Expectations says of each month alone."""
    draw = np.random.default_rng(seed)
    n, labels = 160, ["2024-01", "2024-02", "2024-03", "2024-04"]
    codes = draw.integers(0, 3, n)  # the last month has no rows
    start = pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 30, n), unit="D")
    frame = pd.DataFrame(
        {
            "trigger_id": [f"t{i}" for i in draw.integers(0, 400, n)],
            "priority": draw.choice(["high", "low", "odd", None], n, p=[0.5, 0.3, 0.1, 0.1]),
            "confidence_score": np.where(draw.random(n) < 0.2, np.nan, draw.random(n)),
            "trigger_timestamp": start,
            "delivery_timestamp": start + pd.to_timedelta(draw.integers(-3, 30, n), unit="D"),
        }
    )
    frame.loc[codes == 1, "confidence_score"] = np.nan
    kinds = [
        {"expect": "not_null", "column": "priority", "mostly": 0.9},
        {"expect": "in_set", "column": "priority", "values": ["high", "low"], "mostly": 0.88},
        {"expect": "between", "column": "confidence_score", "min": 0.2, "mostly": 0.8},
        {"expect": "matches", "column": "priority", "pattern": "^(?:high|odd)", "mostly": 0.6},
        {
            "expect": "not_before",
            "column": "delivery_timestamp",
            "other": "trigger_timestamp",
            "mostly": 0.9,
        },
        {"expect": "unique", "column": "trigger_id", "mostly": 0.9},
        {"expect": "row_count", "min": 50},
    ]
    suite = Suite(
        table="triggers", expectations=tuple(ExpectationSpec(because="test", **kind) for kind in kinds)
    )
    own = dataclasses.replace(policy, suites={"triggers": suite})
    together = validate(frame, "triggers", policy=own, codes=codes, labels=labels)
    found = 0
    for code, label in enumerate(labels):
        part = typed(frame[codes == code], "triggers").frame
        alone = _Runner(own)(part, dict(enumerate(suite.expectations)))
        assert {failure.position for failure in together[label].failures} == set(alone), label
        found += len(alone)
    assert found > 4


def test_a_day_is_not_before_a_moment_of_that_day(policy: QualityPolicy) -> None:
    """As the rule ``schema_order`` has it: by the day where one of the two is a day, else by the clock."""
    moments = ["2022-09-09", "2022-09-09T09:00:00Z", "2022-09-09T10:00:00Z", "2022-09-08", None]
    pairs = [(later, first) for later in moments for first in moments]
    frame = pd.DataFrame(pairs, columns=["delivery_timestamp", "trigger_timestamp"])
    day = {
        "expect": "not_before",
        "column": "delivery_timestamp",
        "other": "trigger_timestamp",
        "because": "test",
    }
    suite = Suite(table="triggers", expectations=(ExpectationSpec.model_validate(day),))
    own = dataclasses.replace(policy, suites={"triggers": suite})
    (failure,) = _Runner(own)(typed(frame, "triggers").frame, dict(enumerate(suite.expectations))).values()
    assert failure.rows is not None and failure.error is None
    assert [pairs[row] for row in failure.rows] == [
        ("2022-09-09T09:00:00Z", "2022-09-09T10:00:00Z"),
        *(("2022-09-08", first) for first in moments[:3]),
    ]
