"""The rules of a look on rows in memory: several arms, classical boundaries, overrun, harm, nothing to estimate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.experiments.conduct.final_analysis import _set_result, _subgroups, effects_table, grow_forest
from e2i_dagster.experiments.conduct.interim_looks import (
    _at_planned,
    answered,
    due_look,
    evaluate,
    look_boundaries,
)
from e2i_dagster.experiments.conduct.records import ArmLook, InterimAnalysis, LookReport
from e2i_dagster.experiments.conduct.store import Records
from e2i_dagster.experiments.statistics.stopping import boundaries
from e2i_dagster.policy_files.environment import config_folder
from tests.experiments.conftest import DESIGN

START = pd.Timestamp("2025-01-06", tz="UTC")


def design(**changed) -> ExperimentSpec:
    return ExperimentSpec.model_validate({**DESIGN, **changed})


def records(rates, per_arm=100, complaints=None) -> Records:
    """Exactly ``rates`` of each arm respond; units of the arms alternate."""
    arms = list(rates)
    unit = np.arange(per_arm * len(arms))
    variant = np.array(arms, dtype=object)[unit % len(arms)]
    position = unit // len(arms)
    parts = {"responded": rates, **({"complained": complaints} if complaints else {})}
    outcomes = pd.concat(
        pd.DataFrame(
            {
                "unit_id": unit,
                "metric": metric,
                "value": [float(p < share[arm] * per_arm) for p, arm in zip(position, variant, strict=True)],
                "event": pd.array([None] * len(unit), dtype="boolean"),
                "observed_at": START + pd.to_timedelta(unit, unit="h"),
            }
        )
        for metric, share in parts.items()
    ).reset_index(drop=True)
    outcomes.insert(0, "id", np.arange(1, len(outcomes) + 1))
    outcomes["denominator"] = np.nan
    assignments = pd.DataFrame({"unit_id": unit, "variant": variant, "cluster": None, "assigned_at": START})
    screened = pd.DataFrame({"unit_id": unit, "attributes": [{"region": "north"}] * len(unit)})
    events = pd.DataFrame(
        {
            name: pd.Series(dtype=object)
            for name in ("unit_id", "event_type", "occurred_at", "severity", "consent_method", "consent_version",
                         "variant_received")
        }
    )  # fmt: skip
    return Records(screened, assignments, events, outcomes)


def look(spec, given, reached=(0.5,), earlier=(), final=False, times=None):
    return evaluate(
        spec, given, reached=reached, earlier=earlier, final=final, times=times,
        policy=LifecyclePolicy.load(config_folder()),
    )  # fmt: skip


def test_one_arm_of_two_shows_its_benefit_at_half_of_alpha():
    spec = design(
        arms=[
            {"name": "usual", "ratio": 0.334, "control": True}, {"name": "low", "ratio": 0.333},
            {"name": "high", "ratio": 0.333},
        ],
        randomization={"method": "block", "block_sizes": [3, 6]},
    )  # fmt: skip
    report = look(spec, records({"usual": 0.30, "low": 0.32, "high": 0.65}))
    assert report.advice == "stop_efficacy"
    assert {arm.arm: arm.advice for arm in report.arms}["low"] != "stop_efficacy"
    assert report.boundary_z == boundaries("lan_demets_obf", [0.5], alpha=0.025).z
    assert report.alpha_spent == pytest.approx(
        2 * boundaries("lan_demets_obf", [0.5], alpha=0.025).alpha_spent[0]
    )


def test_benefit_of_a_metric_that_should_fall():
    metrics = {
        "primary": {"name": "responded", "kind": "proportion", "direction": "decrease", "baseline": 0.6}
    }
    found = look(design(metrics=metrics), records({"usual": 0.65, "treated": 0.30}))
    (arm,) = found.arms
    assert arm.z is not None
    assert arm.effect is not None
    assert arm.z > found.boundary_z[0]
    assert arm.effect < 0
    assert found.advice == "stop_efficacy"
    worse = look(design(metrics=metrics), records({"usual": 0.30, "treated": 0.65}))
    assert worse.advice == "stop_futility"


def test_harm_stops_before_anything_else():
    stopping = {
        "harm": [{"metric": "complained", "relative_worsening": 0.15, "alpha": 0.05, "minimum_per_arm": 50}]
    }
    good = {"usual": 0.30, "treated": 0.65}
    harmful = look(design(stopping=stopping), records(good, complaints={"usual": 0.05, "treated": 0.20}))
    assert harmful.advice == "stop_safety"
    assert "complained" in harmful.rationale
    none_before = look(design(stopping=stopping), records(good, complaints={"usual": 0.0, "treated": 0.20}))
    assert none_before.advice == "stop_safety"
    assert "the control's mean is 0" in none_before.rationale
    fewer = look(design(stopping=stopping), records(good, complaints={"usual": 0.20, "treated": 0.05}))
    assert fewer.advice == "stop_efficacy"
    small = look(design(stopping=stopping), records(good, 40, complaints={"usual": 0.05, "treated": 0.50}))
    assert not small.harm[0].harmful
    assert "fewer than 50" in small.harm[0].reason


def test_minima_of_the_design_hold_an_efficacy_stop_back():
    held = design(stopping={"efficacy": {"minimum_days": 60, "minimum_per_arm": 20}})
    report = look(held, records({"usual": 0.30, "treated": 0.65}))
    assert report.advice == "continue"
    assert "60 days" in report.rationale


def test_what_cannot_be_tested_is_not_evaluable_and_spends_no_alpha():
    stopping = {"harm": [{"metric": "complained", "relative_worsening": 0.15, "minimum_per_arm": 5}]}
    few = records({"usual": 0.3, "treated": 0.6}, 8, complaints={"usual": 0.0, "treated": 0.5})
    report = look(design(stopping=stopping), few)
    assert not report.arms[0].estimable and not report.answered
    assert report.arms[0].effect is None and report.arms[0].reason
    assert report.advice == "not_evaluable" and report.alpha_spent == 0
    (harm,) = report.harm
    assert harm.harmful is None and harm.status == "not_evaluable"
    assert any("harm by complained" in text for text in report.not_evaluable)
    assert not look(design(), few, final=True).final
    # What harm says while benefit stops is told beside it.
    stops = records({"usual": 0.3, "treated": 0.65}, complaints={"usual": 0.0, "treated": 0.5})
    lost = stops.outcomes["metric"].eq("complained") & stops.outcomes["unit_id"].ge(30)
    part = Records(stops.screened, stops.assignments, stops.events, stops.outcomes[~lost])
    found = look(design(stopping=stopping), part)
    assert found.advice == "stop_efficacy" and "harm by complained is not evaluable" in found.rationale


def test_a_look_without_an_answer_is_as_if_it_had_not_been_made():
    silent, spoke = (
        InterimAnalysis.model_construct(
            metrics_snapshot=LookReport.model_construct(
                arms=(ArmLook(arm="treated", estimable=False, z=z),), spending_time=0.5
            )
        )
        for z in (None, 1.0)
    )
    assert answered(design(), [silent, spoke]) == [spoke]
    classical = design(looks={"rule": "obrien_fleming", "information_fractions": [0.5, 1.0]})
    assert answered(classical, [silent, spoke]) == [silent, spoke]


def test_a_look_recorded_before_sizes_could_change_spent_alpha_at_its_fraction():
    recorded = look(
        design(), records({"usual": 0.3, "treated": 0.5}), reached=(1.25,), final=True
    ).to_record()
    del recorded["spending_time"], recorded["information_target"]
    assert LookReport.model_validate(recorded).spending_time == 1.0


def nine_to_one(events_1: int, events_0: int) -> Records:
    """50 treated units and 450 others, of whom so many have the primary outcome."""
    given = records({"usual": 0.0, "treated": 0.0}, 250)
    variant = np.array(["treated"] * 50 + ["usual"] * 450, dtype=object)
    value = np.zeros(500)
    value[:events_1] = 1
    value[50 : 50 + events_0] = 1
    return Records(
        given.screened,
        given.assignments.assign(variant=variant),
        given.events,
        given.outcomes.assign(value=value),
    )


def test_two_events_of_fifty_do_not_stop_where_a_look_may_spend_three_thousandths():
    spec = design(
        arms=[{"name": "usual", "ratio": 0.9, "control": True}, {"name": "treated", "ratio": 0.1}],
        randomization={"method": "block", "block_sizes": [10]}, stopping={}, sample_size={"total": 1000, "per_day": 20},
    )  # fmt: skip
    report = look(spec, nine_to_one(2, 0))
    assert report.alpha_spent == pytest.approx(0.003, abs=1e-4)
    (arm,) = report.arms
    assert report.advice == "continue" and arm.z == pytest.approx(2.469, abs=1e-3)
    # The repeated interval holds no effect as long as the boundary is not reached.
    assert arm.lower < 0 < arm.upper
    four = look(spec, nine_to_one(4, 0))
    assert four.advice == "stop_efficacy" and four.arms[0].lower > 0


def test_harm_by_few_events_is_judged_by_the_exact_test():
    spec = design(
        arms=[{"name": "usual", "ratio": 0.9, "control": True}, {"name": "treated", "ratio": 0.1}],
        randomization={"method": "block", "block_sizes": [10]},
        metrics={"primary": {"name": "responded", "kind": "proportion", "direction": "decrease", "baseline": 0.6}},
        stopping={"harm": [{"metric": "responded", "relative_worsening": 0.15, "alpha": 0.05, "minimum_per_arm": 50}]},
    )  # fmt: skip
    # One event has p 0.0787 in the small arm, the worst that could be: it cannot be told from no harm.
    for events in ((0, 0), (1, 0), (0, 1)):
        report = look(spec, nine_to_one(*events))
        (none,) = report.harm
        assert (none.status, none.harmful, none.p_value) == ("not_evaluable", None, None)
        assert "too few" in none.reason and report.advice == "not_evaluable"
    (one,) = look(spec, nine_to_one(1, 1)).harm
    assert one.status == "evaluated" and one.harmful is False
    (many,) = look(spec, nine_to_one(5, 0)).harm
    assert many.harmful is True


def deaths(events_1: int, events_0: int, per_arm: int = 150) -> Records:
    """Time to the primary event; everybody else is censored at day 100."""
    given = records({"usual": 0.0, "treated": 0.0}, per_arm)
    position, treated = np.arange(2 * per_arm) // 2, np.arange(2 * per_arm) % 2 == 1
    event = np.where(treated, position < events_1, position < events_0)
    return Records(
        given.screened,
        given.assignments,
        given.events,
        given.outcomes.assign(
            event=pd.array(event, dtype="boolean"), value=np.where(event, 1.0 + position, 100.0)
        ),
    )


@pytest.mark.parametrize("events", [(0, 0), (1, 0), (0, 1), (4, 0), (2, 2)])
def test_events_that_no_arrangement_makes_extreme_are_not_evaluable(events):
    """Of four deaths 1:1 the most extreme arrangement has p 0.0625: neither harm nor benefit could be seen."""
    spec = design(
        metrics={"primary": {"name": "responded", "kind": "survival", "direction": "decrease", "baseline": 0.3}},
        stopping={"harm": [{"metric": "responded", "relative_worsening": 0.15, "alpha": 0.05, "minimum_per_arm": 50}]},
        sample_size={"total": 600, "events": 24, "per_day": 20},
    )  # fmt: skip
    report = look(spec, deaths(*events), final=True)
    (arm,), (harm,) = report.arms, report.harm
    assert report.advice == "not_evaluable" and not report.answered and not report.final
    assert report.alpha_spent == 0 and arm.z is None
    assert (harm.status, harm.harmful, harm.p_value) == ("not_evaluable", None, None)
    assert len(report.not_evaluable) == 2
    # One more event and harm could have been seen, two more and benefit; now it can be said that it is not there.
    five, six = look(spec, deaths(0, 5)), look(spec, deaths(0, 6))
    assert (five.harm[0].harmful, five.answered, five.advice) == (False, False, "not_evaluable")
    assert (six.harm[0].harmful, six.answered) == (False, True)


@pytest.mark.parametrize("events", [(0, 0), (1, 0)])
def test_rates_without_enough_events_spend_no_alpha(events):
    spec = design(
        arms=[{"name": "usual", "ratio": 0.9, "control": True}, {"name": "treated", "ratio": 0.1}],
        randomization={"method": "block", "block_sizes": [10]}, stopping={},
    )  # fmt: skip
    report = look(spec, nine_to_one(*events))
    assert report.advice == "not_evaluable" and report.alpha_spent == 0 and not report.answered


@pytest.mark.parametrize("direction", ["increase", "decrease"])
def test_an_arm_without_deaths_is_judged_by_the_log_rank_test(direction):
    spec = design(
        metrics={
            "primary": {"name": "responded", "kind": "survival", "direction": direction, "baseline": 0.3}
        },
        stopping={
            "harm": [
                {"metric": "responded", "relative_worsening": 0.15, "alpha": 0.05, "minimum_per_arm": 50}
            ]
        },
        sample_size={"total": 600, "events": 24, "per_day": 20},
    )
    report = look(spec, deaths(12, 0))
    (arm,), (harm,) = report.arms, report.harm
    assert not arm.estimable and arm.effect is None and abs(arm.z) > 3
    assert "no finite estimate" in arm.reason
    if direction == "decrease":
        assert harm.harmful is True and harm.p_value < 0.001 and report.advice == "stop_safety"
    else:
        assert harm.harmful is False and report.advice == "stop_efficacy"


@pytest.mark.parametrize("values", [None, [], [0.0], ["high"], [float("inf")]])
def test_a_covariate_that_cannot_serve_leaves_look_harm_and_results_their_effect(values):
    """Recorded for nobody, missing for all, constant, text, infinite."""
    metric = {"name": "responded", "kind": "proportion", "baseline": 0.3}
    stopping = {"harm": [{"metric": "responded", "relative_worsening": 0.1, "minimum_per_arm": 50}]}
    spec = design(metrics={"primary": {**metric, "covariate": "score"}}, stopping=stopping)
    given = records({"usual": 0.6, "treated": 0.3})
    if values is not None:
        attributes = pd.Series([{"score": values[0] if values else None}] * len(given.screened))
        given = Records(
            given.screened.assign(attributes=attributes), given.assignments, given.events, given.outcomes
        )
    found = look(spec, given)
    plain = look(design(metrics={"primary": metric}, stopping=stopping), given)
    assert found.arms[0].effect == plain.arms[0].effect
    assert found.alpha_spent == plain.alpha_spent > 0
    assert "without the covariate" in found.arms[0].rationale
    assert found.harm[0].p_value == plain.harm[0].p_value
    assert found.advice == plain.advice == "stop_safety"
    policy = LifecyclePolicy.load(config_folder())
    frame = given.analysis_frame(spec, policy)
    results = _set_result(frame, spec, "responded", "itt", policy)
    assert "without the covariate" in effects_table([results]).texts[0][-1]


def test_classical_looks_are_frozen_at_the_planned_information():
    spec = design(looks={"rule": "obrien_fleming", "information_fractions": [0.5, 1.0]})
    given = records({"usual": 0.3, "treated": 0.6}, per_arm=80)
    frozen = _at_planned(given, spec, 0.5)
    assert len(frozen.outcomes) == 100
    assert look_boundaries(spec, [0.5], final=False).z == boundaries("obrien_fleming", [0.5, 1.0]).z


def test_alpha_is_spent_once_also_when_more_came_than_was_planned():
    bounds = look_boundaries(design(), [0.5, 1.2], final=True)
    assert bounds.alpha_spent[-1] == pytest.approx(0.05, abs=1e-6)
    assert bounds.information_fractions == pytest.approx((0.5 / 1.2, 1.0))
    short = look_boundaries(design(), [0.5, 0.8], final=True)
    assert short.alpha_spent[-1] == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(
    ("information", "made", "ended", "due"),
    [
        (0.49, 0, False, None),
        (0.5, 0, False, 1),
        (0.9, 1, False, None),
        (1.0, 1, False, 2),
        (0.7, 1, True, 2),
        (1.0, 2, True, None),
    ],
)
def test_a_look_is_due_once(information, made, ended, due):
    assert due_look(design(), information, made, ended=ended) == due


def test_a_subgroup_and_a_forest_covariate_that_nobody_has_leave_the_others():
    policy = LifecyclePolicy.load(config_folder())
    spec = design(
        subgroups=["region", "never_asked"],
        heterogeneity={"covariates": ["size", "never_asked"], "trees": 40},
    )
    given = records({"usual": 0.3, "treated": 0.6}, per_arm=220)
    frame = given.analysis_frame(spec, policy)
    frame["size"] = np.random.default_rng(2).normal(size=len(frame))
    (found,) = _subgroups(frame, spec, policy)
    assert [level.comparison.status for level in found.subgroups[0].levels] == ["estimated"]
    assert [level.level for level in found.subgroups[1].levels] == ["missing"]
    assert spec.heterogeneity is not None
    forest = grow_forest(frame, spec, policy, "treated", spec.heterogeneity)
    assert forest.status == "estimated"
    assert forest.reason == "without never_asked: no unit has a value"
    assert forest.to_metadata()["reason"] == forest.reason
