"""Events and outcomes: what is refused, what derives from them; twin fidelity and what it cannot say."""

from __future__ import annotations

import datetime as dt
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.cohort import Criterion
from e2i_dagster.config.experiment import Consent, ExperimentSpec, FidelityGrades
from e2i_dagster.config.policy import current_policy
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.conduct import enrolment
from e2i_dagster.experiments.conduct.digital_twin import grade_fidelity, simulate_twin
from e2i_dagster.experiments.conduct.run import simulate_and_record
from e2i_dagster.tables.moments import earlier
from tests.experiments.conftest import DESIGN

DAY = pd.Timestamp("2025-02-01", tz="UTC")
SCREENED = pd.DataFrame({"unit_id": ["A", "B", "C"], "screened_at": DAY})
ASSIGNED = pd.DataFrame(
    {"unit_id": ["A", "B"], "variant": ["usual", "treated"], "assigned_at": DAY + pd.Timedelta(days=1)}
)
NO_EVENTS = pd.DataFrame({name: pd.Series(dtype=object) for name in enrolment.EVENT_COLUMNS})
NO_OUTCOMES = pd.DataFrame({name: pd.Series(dtype=object) for name in enrolment.OUTCOME_COLUMNS})


def event(unit="A", kind="consented", day=2, **more):
    given = {"consent_method": "email", "consent_version": "1.0"} if kind == "consented" else {}
    return {"unit_id": unit, "event_type": kind, "occurred_at": DAY + pd.Timedelta(days=day), **given, **more}


def judge(*events, known=NO_EVENTS):
    return enrolment.check_events(
        pd.DataFrame(list(events)), screened=SCREENED, assignments=ASSIGNED, known=known, consent=Consent(),
        arms=("usual", "treated"),
    )  # fmt: skip


def checked(*events, known=NO_EVENTS):
    """The events that are recorded; all that are not known have to be."""
    found = judge(*events, known=known)
    assert found.taken.refused == ()
    return found.rows


@pytest.mark.parametrize(
    ("wrong", "column", "value", "says"),
    [
        (event(kind="vanished"), "event_type", "vanished", "is none of consented,"),
        (event(unit="Z"), "unit_id", "Z", "is no unit that was screened"),
        (event(unit=None), "unit_id", None, "is missing"),
        (event(day=-1), "occurred_at", "2025-01-31 00:00:00+00:00", "lies before the unit was screened"),
        (event(occurred_at=None), "occurred_at", None, "is missing or no time"),
        (event(consent_method=None), "consent_method", None, "consent is never implied"),
        (event(consent_method="implied"), "consent_method", "implied", "consent is never implied"),
        (event(consent_version="0.9"), "consent_version", "0.9", "is none of 1.0"),
        (event(kind="consent_withdrawn"), "event_type", "consent_withdrawn", "a consent that was not given before"),
        (event(unit="C", kind="deviation", severity="minor"), "unit_id", "C", "is a unit that is not assigned"),
        (event(kind="deviation", severity="terrible"), "severity", "terrible", "is none of minor, major, critical"),
        (event(kind="withdrawn"), "initiated_by", None, "is none of subject, investigator"),
        (event(kind="withdrawn", day=0, initiated_by="subject"), "occurred_at", "2025-02-01 00:00:00+00:00",
         "lies before the unit was assigned"),
        (event(kind="treatment_received", variant_received="other"), "variant_received", "other",
         "is none of usual, treated"),
    ],
)  # fmt: skip
def test_a_wrong_event_is_refused_with_row_column_and_value_and_stops_no_other(wrong, column, value, says):
    good = event(unit="B")
    found = judge(good, wrong, event(unit="C"))
    assert found.rows["unit_id"].tolist() == ["B", "C"]
    (refused,) = found.taken.refused
    assert (refused.row, refused.column, refused.value) == (2, column, value)
    assert says in refused.reason
    assert (found.taken.new, found.taken.known) == (2, 0)
    # With the row corrected the file takes that row alone.
    corrected = event(day=5)
    again = judge(good, corrected, event(unit="C"), known=found.rows)
    assert again.rows["unit_id"].tolist() == ["A"]
    assert (again.taken.new, again.taken.known, again.taken.refused) == (1, 2, ())


def test_what_rests_on_a_refused_event_falls_with_it_and_a_second_end_is_refused():
    gone = event(kind="consent_withdrawn", day=10)
    found = judge(event(consent_version="0.9"), gone, event(unit="B"))
    assert [(one.row, one.column) for one in found.taken.refused] == [
        (1, "consent_version"),
        (2, "event_type"),
    ]
    assert found.rows["unit_id"].tolist() == ["B"]
    both = judge(event(kind="completed"), event(kind="lost_to_followup", day=9))
    assert [one.row for one in both.taken.refused] == [1, 2]
    first = checked(event(kind="completed"))
    later = judge(event(kind="completed"), event(kind="lost_to_followup", day=9), known=first)
    assert (later.taken.known, [one.row for one in later.taken.refused]) == (1, [2])


def test_unknown_and_missing_columns_are_told_with_the_nearest_name():
    with pytest.raises(InputError, match=r"unknown column.s. mood"):
        judge(event() | {"mood": "good"})
    with pytest.raises(InputError, match=r"unknown column.s. occured_at. Did you mean 'occurred_at'"):
        judge({"unit_id": "A", "event_type": "completed", "occured_at": DAY})


def test_a_changed_event_is_never_called_known():
    """The same event with another severity is told by name; given twice unchanged it is a duplicate."""
    minor = event(kind="deviation", severity="minor")
    first = checked(minor)
    found = judge(minor, minor, {**minor, "severity": "major"}, known=first)
    assert (found.taken.known, found.taken.duplicate, found.taken.new) == (1, 1, 0)
    (refused,) = found.taken.refused
    assert (refused.row, refused.column, refused.value) == (3, "severity", "major")
    assert "recorded already with another value" in refused.reason
    twice = judge(minor, {**minor, "severity": "major"})
    assert [one.row for one in twice.taken.refused] == [1, 2]


def test_a_day_is_compared_with_a_moment_by_the_day(monkeypatch):
    """An outcome and a withdrawal dated the day of a consent or assignment at 13:52 are not earlier."""
    afternoon = ASSIGNED.assign(assigned_at=DAY + pd.Timedelta("1d 13:52:00"))
    monkeypatch.setattr(sys.modules[__name__], "ASSIGNED", afternoon)
    assert len(taken(outcome(day=1))) == 1
    (early,) = outcomes_of(outcome(observed_at=DAY + pd.Timedelta("1d 13:51:00"))).taken.refused
    assert "lies before the unit was assigned" in early.reason
    assert len(checked(event(kind="deviation", day=1, severity="minor"))) == 1
    agreed = event(occurred_at=DAY + pd.Timedelta("2d 09:00:00"))
    assert len(checked(agreed, event(kind="consent_withdrawn", day=2))) == 2
    gone = checked(event(), event(kind="consent_withdrawn", day=10))
    assert len(taken(outcome(observed_at=DAY + pd.Timedelta("10d 08:00:00")), events=gone)) == 1
    # On day 0 the day of screening counts; the day before makes that row alone wait.
    screened = SCREENED.assign(screened_at=DAY + pd.Timedelta("11:00:00"))
    monkeypatch.setattr(sys.modules[__name__], "SCREENED", screened)
    found = judge(event(day=0), event(unit="B", day=-1), event(unit="C", day=0))
    assert found.rows["unit_id"].tolist() == ["A", "C"]
    assert [one.row for one in found.taken.refused] == [2]


def outcome(unit="A", value: float | str | None = 1.0, day=30, **more):
    return {
        "unit_id": unit,
        "metric": "responded",
        "value": value,
        "observed_at": DAY + pd.Timedelta(days=day),
        **more,
    }


def outcomes_of(*outcomes, known=NO_OUTCOMES, events=NO_EVENTS, design=DESIGN):
    return enrolment.check_outcomes(
        pd.DataFrame(list(outcomes)), spec=ExperimentSpec.model_validate(design), assignments=ASSIGNED,
        events=events, known=known,
    )  # fmt: skip


def taken(*outcomes, **more):
    """The outcomes that are recorded; all that are not known have to be."""
    found = outcomes_of(*outcomes, **more)
    assert found.taken.refused == ()
    return found.rows


@pytest.mark.parametrize(
    ("wrong", "column", "says"),
    [
        (outcome(day=0), "observed_at", "lies before the unit was assigned"),
        (outcome(unit="C"), "unit_id", "is a unit that is not assigned"),
        (outcome(metric="unheard_of"), "metric", "is none of responded, complained"),
        (outcome(value=0.5), "value", "is neither 0 nor 1"),
        (outcome(value=None), "value", "leave a missing outcome out"),
        (outcome(value=float("inf")), "value", "is neither 0 nor 1"),
        (outcome(value="maybe"), "value", "is neither 0 nor 1"),
        (outcome(denominator=3.0), "denominator", "belongs to a ratio alone"),
        (outcome(event="perhaps"), "event", "cannot be read"),
        (outcome(observed_at=None), "observed_at", "is missing or no time"),
    ],
)
def test_a_wrong_outcome_is_refused_and_stops_no_other(wrong, column, says):
    good = outcome(unit="B", value="yes" if isinstance(wrong["value"], str) else 1.0)
    found = outcomes_of(good, wrong)
    assert found.rows["unit_id"].tolist() == ["B"]
    assert found.rows["value"].tolist() == [1.0]
    (refused,) = found.taken.refused
    assert (refused.row, refused.column) == (2, column)
    assert says in refused.reason
    again = outcomes_of(good, outcome(), known=found.rows)
    assert (again.taken.new, again.taken.known) == (1, 1)


def test_an_outcome_is_recorded_once_and_never_after_consent_was_withdrawn():
    first = taken(outcome(), outcome(unit="B", value=0.0))
    assert taken(outcome(), known=first).empty
    gone = checked(event(), event(kind="consent_withdrawn", day=10))
    assert len(taken(outcome(day=9), events=gone)) == 1
    (late,) = outcomes_of(outcome(day=11), events=gone).taken.refused
    assert "after the unit withdrew its consent" in late.reason
    twice = outcomes_of(outcome(), outcome(value=0.0), outcome(unit="B"), outcome(unit="B"))
    assert [one.row for one in twice.taken.refused] == [1, 2]
    assert (twice.taken.new, twice.taken.duplicate) == (1, 1)


@pytest.mark.parametrize(
    ("changed", "column"),
    [({"value": 0.0}, "value"), ({"observed_at": DAY + pd.Timedelta(days=31)}, "observed_at"),
     ({"event": True}, "event"), ({"denominator": 2.0}, "denominator")],
)  # fmt: skip
def test_a_changed_outcome_is_never_called_known(changed, column):
    first = taken(outcome())
    found = outcomes_of({**outcome(), **changed}, known=first)
    assert found.taken.known == 0 and found.rows.empty
    assert [one.column for one in found.taken.refused] == [column]


def test_the_same_outcome_dated_by_its_day_and_by_its_moment_is_known():
    first = taken(outcome(observed_at=DAY + pd.Timedelta("30d 10:00:00")))
    assert outcomes_of(outcome(day=30), known=first).taken.known == 1


MOMENTS = st.datetimes(min_value=dt.datetime(2024, 1, 1), max_value=dt.datetime(2024, 1, 4))


@given(one=MOMENTS, other=MOMENTS)
@settings(max_examples=200, deadline=None)
def test_a_day_and_a_moment_are_compared_as_dates(one, other):
    """Whatever the moment and the day: the answer of the rule is that of the two dates."""
    moment, day = pd.Series([pd.Timestamp(one, tz="UTC")]), pd.Series([pd.Timestamp(other.date(), tz="UTC")])
    assert earlier(moment, day)[0] == (one.date() < other.date())
    assert earlier(day, moment)[0] == (other.date() < one.date())
    both = pd.Series([pd.Timestamp(other, tz="UTC")])
    if one.time() != dt.time.min and other.time() != dt.time.min:
        assert earlier(moment, both)[0] == (one < other)


def test_states_and_analysed_sets_derive_from_events():
    events = checked(
        event(), event(unit="B"),
        event(kind="treatment_received", variant_received="usual"),
        event(unit="B", kind="treatment_received", variant_received="usual"),
        *(event(unit="B", kind="deviation", severity="minor", day=day) for day in (3, 4, 5)),
        event(kind="consent_withdrawn", day=10), event(unit="B", kind="completed", day=90),
    )  # fmt: skip
    states = enrolment.unit_states(ASSIGNED, events, minor_deviations_that_exclude=3).set_index("unit_id")
    assert states.loc["A", "status"] == "withdrawn"
    assert states.loc["B", "status"] == "completed"
    assert states["received"].tolist() == ["usual", "usual"]
    # Both stay in the intention-to-treat set, in the arm they were assigned; none adhered.
    assert states["variant"].tolist() == ["usual", "treated"]
    assert states["adherent"].tolist() == [False, False]
    assert (
        enrolment.unit_states(ASSIGNED, NO_EVENTS, minor_deviations_that_exclude=3)["received"].isna().all()
    )


def test_unknown_values_are_judged_as_the_cohort_language_says():
    units = pd.DataFrame({"unit_id": ["A", "B", "C"], "age": [40, None, 12], "pregnant": [False, True, None]})
    adult = Criterion(field="age", operator=">=", value=18)
    pregnant = Criterion(field="pregnant", operator="==", value=True)
    failed = enrolment.eligibility(units, [adult], [pregnant])
    assert failed.tolist() == [[], ["age", "pregnant"], ["age"]]
    with pytest.raises(InputError, match="age"):
        enrolment.eligibility(units.drop(columns="age"), [adult], [])


GRADES = FidelityGrades(excellent=0.10, good=0.20, fair=0.35)


@pytest.mark.parametrize(
    ("predicted", "actual", "error", "grade"),
    [
        (0.21, 0.20, 0.05, "excellent"), (0.23, 0.20, 0.15, "good"), (0.26, 0.20, 0.30, "fair"),
        (0.30, 0.20, 0.50, "poor"), (-0.20, -0.21, 1 / 21, "excellent"),
    ],
)  # fmt: skip
def test_grades_follow_the_error_relative_to_the_observed_effect(predicted, actual, error, grade):
    found = grade_fidelity(
        (predicted, predicted - 0.05, predicted + 0.05), (actual, actual - 0.05, actual + 0.05), GRADES
    )
    assert found[0] == pytest.approx(error)
    assert found[1] == grade


def test_fidelity_is_undefined_where_an_effect_may_be_zero():
    error, grade, why = grade_fidelity((0.2, 0.1, 0.3), (0.05, -0.02, 0.12), GRADES)
    assert (error, grade) == (None, "unvalidated")
    assert "observed" in why


TWIN = {"scope": "any", "feature": "quality", "at_least": 5, "confounders": ["severity", "site"], "size": 500}


def observational(count=1_000, effect=0.3, seed=0):
    """Confounded rows: the severe are treated more often and respond more often by themselves."""
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=count)
    treated = rng.random(count) < 1 / (1 + np.exp(-severity))
    chance = np.clip(0.3 + 0.1 * severity + effect * treated, 0.02, 0.98)
    return pd.DataFrame(
        {
            "severity": np.where(rng.random(count) < 0.02, np.nan, severity),
            "site": rng.choice(["north", "south"], count),
            "quality": np.where(treated, 7.0, np.where(rng.random(count) < 0.5, 2.0, np.nan)),
            "label": (rng.random(count) < chance).astype(int),
        }
    )


def test_the_twin_finds_a_planted_effect_and_none_where_there_is_none():
    spec = ExperimentSpec.model_validate({**DESIGN, "twin": TWIN})
    frame = observational()
    kept = frame.copy()
    found = simulate_twin(spec, frame, trees=48, least_per_arm=100)
    pd.testing.assert_frame_equal(frame, kept)
    naive = (
        frame.loc[frame["quality"] >= 5, "label"].mean() - frame.loc[~(frame["quality"] >= 5), "label"].mean()
    )
    assert found.lower < 0.3 < found.upper
    assert abs(found.ate - 0.3) < abs(naive - 0.3)
    assert found.standard_error >= found.standard_error_of_model > 0.005
    assert found.recommendation == "deploy"
    nothing = simulate_twin(spec, observational(effect=0.0), trees=48, least_per_arm=100)
    assert nothing.lower < 0 < nothing.upper
    assert nothing.recommendation == "refine"


def test_a_harmful_intervention_is_never_deployed_and_too_few_rows_are_refused():
    spec = ExperimentSpec.model_validate({**DESIGN, "twin": TWIN})
    harmful = observational(effect=-0.25)
    assert simulate_twin(spec, harmful, trees=48, least_per_arm=100).recommendation == "skip"
    with pytest.raises(InputError, match="it needs 100 with and without"):
        simulate_twin(spec, observational(count=20), trees=48, least_per_arm=100)
    with pytest.raises(InputError, match="no column severity"):
        simulate_twin(spec, harmful.drop(columns="severity"), trees=48, least_per_arm=100)


def test_a_confounder_that_no_patient_has_is_left_out_of_the_twin_and_named():
    more = {**TWIN, "confounders": [*TWIN["confounders"], "never_measured"]}
    spec = ExperimentSpec.model_validate({**DESIGN, "twin": more})
    frame = observational().assign(never_measured=np.nan)
    found = simulate_twin(spec, frame, trees=24, least_per_arm=100)
    assert "never_measured" not in found.confounders
    assert "without the confounder(s) never_measured" in found.rationale
    assert np.isfinite(found.ate)


def test_a_twin_is_fitted_and_drawn_without_test_and_holdout_patients(warehouse, lifecycle):
    scopes = current_policy().scopes
    spec = ExperimentSpec.model_validate({**DESIGN, "twin": {**TWIN, "scope": next(iter(scopes))}})
    frame = observational(count=900).assign(patient_id=[f"p{number}" for number in range(900)])
    splits = pd.DataFrame({"patient_id": frame["patient_id"], "split": ["train"] * 500 + ["validation"] * 200
                           + ["test"] * 150 + ["holdout"] * 50})  # fmt: skip
    other_outcomes = frame.assign(label=np.where(frame.index < 700, frame["label"], 1 - frame["label"]))
    small = lifecycle.model_copy(
        update={"analysis": lifecycle.analysis.model_copy(update={"twin_trees": 24})}
    )
    with warehouse.begin() as connection:
        found, without = (
            simulate_and_record(connection, spec, rows, splits, small, scopes=scopes, actor="carla")
            for rows in (frame, other_outcomes)
        )
    assert (found.training_rows, found.trees) == (700, 24)
    assert found.training_digest == without.training_digest
    assert found.ate == pytest.approx(without.ate, abs=1e-9)
