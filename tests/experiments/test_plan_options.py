"""What a plan may declare: kinds of metrics, binding futility, confidence sequence, size review, forest, scorecard."""

from __future__ import annotations

import datetime as dt
import math
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments import analyze, boundaries, conditional_power
from e2i_dagster.experiments.conduct import run, store
from e2i_dagster.experiments.conduct.digital_twin import TwinSimulation, record_simulation
from e2i_dagster.experiments.conduct.final_analysis import explore_heterogeneity, grow_forest
from e2i_dagster.experiments.conduct.interim_looks import (
    evaluate,
    look_boundaries,
    make_look,
    present_intervals,
    progress,
)
from e2i_dagster.experiments.conduct.lifecycle import Approval, review_of
from e2i_dagster.experiments.conduct.monitor import observe
from e2i_dagster.experiments.conduct.pages import boundary_figure
from e2i_dagster.experiments.conduct.records import ArmLook, InterimAnalysis, LookReport
from e2i_dagster.experiments.conduct.scorecard import score_result
from e2i_dagster.experiments.conduct.store import Records
from e2i_dagster.experiments.conduct.watch import long_pause, overdue_review, weekly_balance
from e2i_dagster.experiments.statistics.estimation import FinalEstimate
from e2i_dagster.experiments.statistics.stopping import z_of_conditional_power
from e2i_dagster.tables.description import experiments as tables
from tests.experiments.conftest import DESIGN, outcomes
from tests.experiments.test_experiment_flow import enrol, observe_outcomes
from tests.experiments.test_looks import records

STEP = {"actor": "carla", "reason": "test"}


def design(**changed) -> ExperimentSpec:
    """The small design with values replaced; ``a__b`` is key b of block a."""
    document = deepcopy(dict(DESIGN))
    for path, value in changed.items():
        target = document
        *outer, last = path.split("__")
        for part in outer:
            target = target.setdefault(part, {})
        target[last] = value
    return ExperimentSpec.model_validate(document)


REVIEW = {"look": 1, "rule": "blinded_variance", "most": 400}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"looks__always_valid": True, "metrics__primary__baseline": None}, "give metrics.primary.baseline"),
        ({"looks__reestimation": {**REVIEW, "look": 2}}, "must come before the last of 2 looks"),
        ({"looks__reestimation": {**REVIEW, "most": 100}}, "below the 200 planned"),
        ({"looks__reestimation": REVIEW, "looks__rule": "pocock"}, "use a spending rule"),
        (
            {
                "looks__reestimation": {**REVIEW, "rule": "promising_zone"},
                "looks__information_fractions": [0.3, 0.6, 1.0],
            },
            "the last look but one, look 2",
        ),
        (
            {
                "heterogeneity": {"covariates": ["years"]},
                "metrics__primary__kind": "survival",
                "sample_size__events": 90,
            },
            "takes a mean or a proportion, not survival",
        ),
        ({"subgroups": ["region", "region"]}, "one is named twice"),
        ({"economics": {"value_of_effect": 0, "cost_per_unit": 1}}, "greater than 0"),
        ({"multiplicity": "none"}, "benjamini_hochberg"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(changed, says):
    with pytest.raises(ValidationError, match=says):
        design(**changed)


# --- metrics of other kinds -----------------------------------------------------------------------------------


def metrics_of_other_kinds():
    primary = {"name": "accepted", "kind": "ratio", "sd": 0.4, "minimum_effect": 0.1}
    return {
        "metrics": {"primary": primary, "secondary": [{"name": "days", "kind": "survival"}]},
        "subgroups": ["region"],
        "multiplicity": "benjamini_hochberg",
    }


def test_ratio_and_survival_metrics_from_rows_to_results(warehouse, lifecycle, running):
    spec = ExperimentSpec.model_validate({**DESIGN, **metrics_of_other_kinds()})
    name = running(spec)
    rng = np.random.default_rng(3)
    with warehouse.begin() as connection:
        assigned = enrol(connection, name)
        treated = (assigned["variant"] == "treated").to_numpy()
        contacts = rng.integers(1, 8, len(assigned)).astype(float)
        given = pd.DataFrame(
            {
                "unit_id": assigned["unit_id"], "metric": "accepted", "denominator": contacts,
                "value": rng.binomial(contacts.astype(int), np.where(treated, 0.7, 0.4)).astype(float),
                "observed_at": assigned["assigned_at"] + pd.Timedelta(days=20),
            }
        )  # fmt: skip
        days = pd.DataFrame(
            {
                "unit_id": assigned["unit_id"], "metric": "days", "event": rng.random(len(assigned)) < 0.8,
                "value": 1 + rng.exponential(np.where(treated, 15, 40)),
                "observed_at": assigned["assigned_at"] + pd.Timedelta(days=20),
            }
        )  # fmt: skip
        observed = {"source": "observed", "actor": "site"}
        bare = store.record_outcomes(connection, name, given.drop(columns="denominator"), **observed)
        assert (bare.new, len(bare.refused)) == (0, len(given))
        assert "is no number of 0 or more, which a ratio needs" in bare.refused[0].reason
        foreign = store.record_outcomes(connection, name, days.assign(denominator=1.0), **observed)
        assert (foreign.new, foreign.refused[0].column) == (0, "denominator")
        assert store.record_outcomes(connection, name, given, **observed).new == len(given)
        assert store.record_outcomes(connection, name, given, **observed).known == len(given)
        other = given.assign(denominator=contacts + 1)
        changed = store.record_outcomes(connection, name, other, **observed)
        assert (changed.known, len(changed.refused)) == (0, len(given))
        assert "recorded already with another value" in changed.refused[0].reason
        store.record_outcomes(connection, name, days, **observed)
        run.look_page(connection, name, lifecycle, actor="dmc")
        (look,) = InterimAnalysis.read_all(connection, name)
        assert look.decision == "stop_efficacy"
        store.transition(connection, name, "stopped_success", policy=lifecycle, **STEP)
        page = run.results_page(connection, name, lifecycle, actor="carla")
    by_hand = analyze(
        given.assign(arm=assigned["variant"].to_numpy()),
        arm="arm", outcome="value", kind="ratio", denominator="denominator", control="usual",
    )  # fmt: skip
    found = {one.metric: one for one in page.results if one.analysis_set == "itt"}
    assert found["accepted"].analysis.effect == pytest.approx(by_hand.effect)
    assert found["accepted"].analysis.interval == pytest.approx(by_hand.interval)
    assert found["days"].analysis.effect > 1.5
    assert found["days"].adjusted_p_values["treated"] == pytest.approx(found["days"].analysis.p_value)
    assert found["accepted"].adjusted_p_values == {}
    (subgroups,) = page.subgroups
    assert subgroups.multiplicity == "benjamini_hochberg"
    assert {level.level for level in subgroups.subgroups[0].levels} == {"north", "south"}
    assert page.adjusted.lower < found["accepted"].analysis.effect < page.adjusted.upper


# --- futility -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("fraction", [0.25, 0.7])
def test_the_boundary_of_futility_has_the_conditional_power_it_is_made_for(power, fraction):
    z = z_of_conditional_power(power, fraction, final_z=1.98)
    assert conditional_power(z, fraction, final_z=1.98) == pytest.approx(power)


@pytest.mark.parametrize("binding", [True, False])
def test_binding_futility_ends_enrolment_looks_and_choices_and_advice_does_not(
    warehouse, lifecycle, running, binding
):
    spec = design(stopping__futility={"conditional_power_below": 0.2, "binding": binding})
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name, count=150)
        observe_outcomes(connection, name, rates={"usual": 0.5, "treated": 0.35})
        found = make_look(connection, name, policy=lifecycle, actor="dmc")
        assert (found.advice, found.binding_stop) == ("stop_futility", binding)
        assert found.arms[0].z < found.arms[0].futility_z
        if not binding:
            known = set(store.read_records(connection, name).outcomes["unit_id"])
            later = enrol(connection, name, count=300)
            later = outcomes(later[~later["unit_id"].isin(known)], {"usual": 0.5, "treated": 0.9})
            store.record_outcomes(connection, name, later, source="observed", actor="site")
            last = make_look(connection, name, policy=lifecycle, actor="dmc")
            assert last.look == 2
            assert "went on after look 1 had said futility (non-binding)" in last.rationale
            return
        with pytest.raises(VerdictError, match="nobody is assigned any more"):
            store.randomize(connection, name, actor="site")
        # The job goes on without assigning or looking, also when more outcomes come.
        run.assign_waiting(connection, name, actor="site")
        assert make_look(connection, name, policy=lifecycle, actor="dmc") is None
        with pytest.raises(VerdictError, match="binding futility"):
            store.transition(connection, name, "completed", policy=lifecycle, **STEP)
        store.transition(connection, name, "stopped_futility", policy=lifecycle, **STEP)
        page = run.results_page(connection, name, lifecycle, actor="carla")
        # The rule was obeyed: the estimate allows for it.
        assert page.adjusted.lower < page.results[0].analysis.effect < page.adjusted.upper
        store.transition(connection, name, "analyzed", policy=lifecycle, **STEP)
        with pytest.raises(VerdictError, match="binding futility"):
            store.transition(
                connection, name, "decided", policy=lifecycle, decision="implement_treatment", **STEP
            )
        store.transition(connection, name, "decided", policy=lifecycle, decision="no_change", **STEP)


def test_the_figure_of_a_trial_that_ended_early_has_no_look_after_the_final_one():
    spec = design(looks__information_fractions=[0.3, 0.6, 1.0])
    look, last = (
        InterimAnalysis.model_construct(
            information_fraction=fraction, target_sample_size=spec.information_target, boundary_z=z,
            analysis_type=kind,
            metrics_snapshot=LookReport.model_construct(
                arms=(ArmLook(arm="treated", estimable=True, z=1.0),), spending_time=fraction
            ),
        )
        for fraction, z, kind in ((0.3, 3.9, "scheduled"), (0.5, 1.97, "final"))
    )  # fmt: skip
    going_on, ended = (
        boundary_figure(spec, made, blinded=False).axes[0].lines[0].get_xdata()
        for made in ([look], [look, last])
    )
    assert list(going_on) == pytest.approx([0.3, 0.6, 1.0])
    assert list(ended) == pytest.approx([0.3, 0.5])


# --- confidence sequence --------------------------------------------------------------------------------------


def test_the_confidence_sequence_goes_on_from_look_to_look_and_between_them(lifecycle):
    spec = design(looks__always_valid=True)
    first = evaluate(
        spec, records({"usual": 0.3, "treated": 0.5}, 50), reached=[0.5], earlier=(), final=False,
        policy=lifecycle,
    )  # fmt: skip
    one = first.arms[0].always_valid
    assert one.lower < first.arms[0].effect < one.upper
    # It is wider than the plain interval at one look: the price of looking whenever one likes.
    plain = analyze(
        pd.DataFrame({"a": ["u"] * 50 + ["t"] * 50, "y": [1.0] * 15 + [0.0] * 35 + [1.0] * 25 + [0.0] * 25}),
        arm="a", outcome="y", kind="proportion", control="u",
    )  # fmt: skip
    assert one.upper - one.lower > plain.interval[1] - plain.interval[0]
    more = records({"usual": 0.3, "treated": 0.5}, 100)
    made = [InterimAnalysis.model_construct(metrics_snapshot=first)]
    (now,) = present_intervals(spec, more, made, lifecycle)
    assert one.lower <= now.lower < now.upper <= one.upper
    assert now.p_value <= one.p_value
    assert present_intervals(design(), more, made, lifecycle) == ()
    # Rows that contradict everything before are a finding, not a failure.
    (odd,) = present_intervals(spec, records({"usual": 0.9, "treated": 0.1}, 200), made, lifecycle)
    assert odd.effect is None
    assert "nothing in common" in odd.reason


# --- size looked at again -------------------------------------------------------------------------------------


def test_a_size_proposal_is_taken_up_by_an_amendment_and_alpha_is_spent_once(warehouse, lifecycle, running):
    spec = design(
        metrics__primary={"name": "responded", "kind": "mean", "sd": 0.3, "minimum_effect": 0.2},
        looks__reestimation=REVIEW,
    )
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name, count=150)
        observe_outcomes(connection, name, rates={"usual": 0.5, "treated": 0.55})
        page = run.look_page(connection, name, lifecycle, actor="dmc")
        (look,) = InterimAnalysis.read_all(connection, name)
        proposal = look.metrics_snapshot.size_proposal
        # 0.5 against a planned deviation of 0.3: more than twice the variance, so the largest size allowed.
        assert (proposal.size, proposal.planned) == (400, 200)
        # No arm was looked at: it is shown while blinded.
        assert "200 planned, 400 proposed" in page.size_proposal
        assert "set sample_size.total to 400" in page.size_proposal
        before = look_boundaries(spec, *progress(spec, [look])[:1], final=False).z[0]
        larger = ExperimentSpec.model_validate(
            {**spec.model_dump(mode="json"), "sample_size": {"total": 400, "per_day": 20}}
        )
        held = store.amend(connection, larger, reason="more variance", actor="carla")
        said = connection.execute(
            sa.select(tables.ab_experiment_designs.c.reason).order_by(
                tables.ab_experiment_designs.c.id.desc()
            )
        ).scalar()
        assert said == "more variance (takes up the proposal of look 1)"
        reached, times = progress(held.spec, [look])
        assert reached == pytest.approx([look.information_fraction / 2])
        # The boundary of the look that was made stays, and the whole plan spends alpha once.
        whole = look_boundaries(held.spec, [*reached, 1.0], times=[*times, 1.0], final=True)
        assert whole.z[0] == pytest.approx(before, abs=1e-6)
        assert whole.alpha_spent[-1] == pytest.approx(0.05, abs=1e-6)
        assert "taken it up" in run.look_page(connection, name, lifecycle, actor="dmc").size_proposal
        # What a look rests on cannot change any more.
        for changed in ({"looks__rule": "lan_demets_pocock"}, {"looks__information_fractions": [0.4, 1.0]}):
            other = design(sample_size={"total": 400, "per_day": 20}, **changed)
            other = other.model_copy(update={"metrics": larger.metrics})
            with pytest.raises(VerdictError, match="after the first look"):
                store.amend(connection, other, reason="test", actor="carla")


def test_a_size_proposed_by_the_effect_is_for_the_committee_alone(warehouse, lifecycle, running):
    name = running(design(looks__reestimation={**REVIEW, "rule": "promising_zone"}))
    with warehouse.begin() as connection:
        enrol(connection, name, count=150)
        observe_outcomes(connection, name, rates={"usual": 0.3, "treated": 0.45})
        page = run.look_page(connection, name, lifecycle, actor="dmc")
        (look,) = InterimAnalysis.read_all(connection, name)
        found = look.metrics_snapshot.size_proposal
        assert found.rule == "promising_zone"
        assert page.size_proposal == "made at look 1; its proposal is in the committee's report"
        assert found.rationale not in str(page.to_record())
        html = run.report_html(connection, name, lifecycle, blinded=False, actor="dmc")
        assert found.zone in ("efficacy", "favourable", "promising", "unfavourable")
        assert f"{found.planned:,} planned, {found.size:,} proposed" in html


def test_no_amendment_after_data_collection(warehouse, lifecycle, running):
    name = running(design())
    with warehouse.begin() as connection:
        enrol(connection, name)
        observe_outcomes(connection, name)
        make_look(connection, name, policy=lifecycle, actor="dmc")
        store.transition(connection, name, "stopped_success", policy=lifecycle, **STEP)
        with pytest.raises(VerdictError, match="data collection is over"):
            store.amend(connection, design(missing_outcomes="non_responder"), reason="test", actor="carla")


# --- forest of effects ----------------------------------------------------------------------------------------


def test_a_declared_forest_is_looked_for_once_for_the_same_rows_and_says_why_it_is_not_there(
    warehouse, lifecycle, running
):
    spec = design(heterogeneity={"covariates": ["years", "region"], "trees": 8})
    name = running(spec)
    table = tables.ab_experiment_results
    recorded = sa.select(sa.func.count()).where(table.c.analysis_type == "heterogeneity")
    with warehouse.begin() as connection:
        enrol(connection, name)
        observe_outcomes(connection, name)
        make_look(connection, name, policy=lifecycle, actor="dmc")
        with pytest.raises(VerdictError, match="when data collection is over"):
            explore_heterogeneity(connection, name, ["years"], policy=lifecycle)
        store.transition(connection, name, "stopped_success", policy=lifecycle, **STEP)
        (explored,) = explore_heterogeneity(connection, name, ["years"], policy=lifecycle)
        assert explored.status == "not_estimable"
        page = run.results_page(connection, name, lifecycle, actor="carla")
        (found,) = page.heterogeneity
        assert found.status == "not_estimable"
        assert "a forest needs at least 200" in found.reason
        assert page.to_metadata()["forest_of_effects_treated_status"] == "not_estimable"
        assert run.results_page(connection, name, lifecycle, actor="carla").heterogeneity == (found,)
        assert connection.scalar(recorded) == 1


def test_a_declared_forest_takes_numbers_texts_and_truth_values_and_misses_no_column_silently(lifecycle):
    spec = design(heterogeneity={"covariates": ["years", "region", "academic"], "trees": 8})
    rng = np.random.default_rng(6)
    frame = pd.DataFrame(
        {
            "variant": rng.choice(["usual", "treated"], 900), "years": rng.normal(size=900),
            "region": rng.choice(["north", "south"], 900), "academic": rng.random(900) < 0.5,
        }
    )  # fmt: skip
    chance = 0.3 + 0.5 * ((frame["variant"] == "treated") & (frame["years"] > 0))
    frame["responded"] = (rng.random(900) < chance).astype(float)
    plan = spec.heterogeneity
    found = grow_forest(frame, spec, lifecycle, "treated", plan)
    assert found.status == "estimated"
    assert found.p_value < 0.01
    assert max(found.importance, key=found.importance.get) == "years"
    absent = grow_forest(frame.drop(columns="region"), spec, lifecycle, "treated", plan)
    assert absent.status == "estimated"
    assert absent.reason == "without region: no unit has a value"


# --- scorecard ------------------------------------------------------------------------------------------------


def result(control=0.30, treated=0.42, per_arm=1000):
    counts = {"usual": control, "treated": treated}
    frame = pd.DataFrame(
        [(arm, float(n < share * per_arm)) for arm, share in counts.items() for n in range(per_arm)],
        columns=["arm", "y"],
    )
    return analyze(frame, arm="arm", outcome="y", kind="proportion", control="usual")


def test_a_score_is_the_sum_of_its_weighted_parts(lifecycle):
    spec = design(
        metrics__primary__minimum_effect=0.05, economics={"value_of_effect": 1000, "cost_per_unit": 80}
    )
    scored = score_result(spec, result(), lifecycle.scorecard, alignment=0.5)
    parts = {part.name: part.score for part in scored.parts}
    # 0.12 of 1000 over 80 is 1.5 times the cost, half of the 3 wanted.
    assert parts == {
        "significance": 1.0, "practical": 1.0, "confidence": 1.0, "roi": pytest.approx(0.5), "alignment": 0.5,
    }  # fmt: skip
    assert scored.low == scored.high == pytest.approx(0.25 + 0.25 + 0.20 + 0.10 + 0.05)
    assert scored.recommendation == "strong_go"
    harmful = score_result(spec, result(0.42, 0.30), lifecycle.scorecard, alignment=0.5)
    assert {part.name: part.score for part in harmful.parts}["significance"] == 0.0
    assert harmful.recommendation == "no_go"


def test_what_is_not_known_stays_open_and_is_not_zero(lifecycle):
    scored = score_result(design(metrics__primary__minimum_effect=0.05), result(), lifecycle.scorecard)
    assert {part.name for part in scored.parts if part.score is None} == {"roi", "alignment"}
    assert (scored.low, scored.high) == (pytest.approx(0.70), pytest.approx(1.0))
    # 0.70 alone would be go, 1.00 strong go: no recommendation before it is known.
    assert scored.recommendation is None
    assert "open: roi, alignment" in scored.sentence
    assert score_result(design(), result(per_arm=8), lifecycle.scorecard) is None
    with pytest.raises(InputError, match="alignment"):
        score_result(design(), result(), lifecycle.scorecard, alignment=2)


def test_the_adjusted_p_decides_significance(lifecycle):
    scored = score_result(
        design(), result(), lifecycle.scorecard, adjusted=FinalEstimate.model_construct(p_value=0.2)
    )
    assert scored.parts[0].score == 0.0
    assert "adjusted for the looks" in scored.parts[0].found


# --- monitor --------------------------------------------------------------------------------------------------


def arms_with(share_north, days=20, per_day=20) -> Records:
    """Units of 20 days; the share of the north differs by arm."""
    rng = np.random.default_rng(4)
    number = np.arange(days * per_day)
    variant = np.where(number % 2, "treated", "usual")
    chance = np.array([share_north[arm] for arm in variant])
    north = rng.random(len(number)) < chance
    given = records({"usual": 0.3, "treated": 0.3}, len(number) // 2)
    assigned = pd.DataFrame(
        {
            "unit_id": number, "variant": variant, "stratum": "", "cluster": None,
            "assigned_at": pd.Timestamp("2025-01-06", tz="UTC") + pd.to_timedelta(number // per_day, unit="D"),
        }
    )  # fmt: skip
    screened = pd.DataFrame(
        {
            "unit_id": number,
            "attributes": [{"region": "north" if one else "south"} for one in north],
            "screened_at": assigned["assigned_at"],
        }
    )
    return Records(screened, assigned, given.events, given.outcomes)


def test_uneven_arms_are_told_once_a_week_and_chance_is_not(lifecycle):
    uneven = arms_with({"usual": 0.4, "treated": 0.7})
    found = weekly_balance(design(), uneven, lifecycle)
    assert found.kind == "balance"
    assert "after 14 days" in found.message
    assert "region" in found.message
    assert found.once == "example:balance:2"
    assert weekly_balance(design(), arms_with({"usual": 0.5, "treated": 0.5}), lifecycle) is None
    assert weekly_balance(design(), arms_with({"usual": 0.4, "treated": 0.7}, days=6), lifecycle) is None


def test_approvals_are_due_and_late_ones_are_shown_as_late(lifecycle):
    submitted = dt.datetime(2025, 1, 1, 9, tzinfo=dt.UTC)
    late = Approval("brand_lead", "ben", "d1", submitted + dt.timedelta(hours=49))
    early = Approval("analytics_lead", "anna", "d1", submitted + dt.timedelta(hours=2))
    old = Approval("brand_lead", "ben", "d0", submitted)
    waiting = review_of(lifecycle, "d1", [early, old], submitted)
    assert waiting.missing == ("brand_lead",)
    assert overdue_review("example", waiting, submitted + dt.timedelta(hours=48)) is None
    finding = overdue_review("example", waiting, submitted + dt.timedelta(hours=50))
    assert "brand_lead was due 2025-01-03 09:00" in finding.message
    both = review_of(lifecycle, "d1", [early, late], submitted)
    assert [both.late(both.given[role]) for role in ("analytics_lead", "brand_lead")] == [False, True]
    assert overdue_review("example", both, submitted + dt.timedelta(hours=500)) is None


def test_a_pause_that_lasts_too_long_is_told(lifecycle):
    begun = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    assert long_pause("example", begun, lifecycle, begun + dt.timedelta(days=14)) is None
    assert (
        "stopped_other" in long_pause("example", begun, lifecycle, begun + dt.timedelta(days=15)).next_command
    )


def test_alerts_of_a_blinded_experiment_do_not_tell_the_effect(warehouse, lifecycle, running):
    harm = [{"metric": "complained", "relative_worsening": 0.15, "minimum_per_arm": 50}]
    spec = design(stopping={"harm": harm})
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name)
        good = observe_outcomes(connection, name, rates={"usual": 0.3, "treated": 0.75})
        treated = (
            store.read_records(connection, name).assignments.set_index("unit_id")["variant"] == "treated"
        )
        complaints = good.assign(metric="complained", value=good["unit_id"].map(treated).astype(float))
        complaints["value"] *= np.arange(len(complaints)) % 2
        store.record_outcomes(connection, name, complaints, source="observed", actor="site")
        twin = TwinSimulation(
            experiment=name, estimator="x", trees=4, seed=1, training_rows=1, training_digest="x",
            treated_share=0.5, confounders=("years",), twins=100, ate=0.05, lower=0.04, upper=0.06,
            standard_error=0.01, standard_error_of_model=0.01, deciles=(0.05,), recommendation="deploy",
            rationale="",
        )  # fmt: skip
        record_simulation(connection, twin, actor="x")
        assert make_look(connection, name, policy=lifecycle, actor="dmc").advice == "stop_safety"
        now = dt.datetime.now(dt.UTC)
        (seen,) = observe(connection, lifecycle, now=now, actor="test")
        assert [(one.kind, one.severity) for one in seen.findings] == [("look", "high")]
        assert "stop for review" in seen.findings[0].message
        assert run.fidelity_page(connection, name, lifecycle, actor="x").comparisons == ()
        store.transition(connection, name, "stopped_harm", policy=lifecycle, **STEP)
        (seen,) = observe(connection, lifecycle, now=now, actor="test")
        assert [one.kind for one in seen.findings] == ["fidelity"]
        assert seen.findings[0].once


# --- bad input ------------------------------------------------------------------------------------------------


def test_an_empty_arm_and_twenty_rows_are_not_estimable_anywhere(lifecycle):
    one_arm = records({"usual": 0.3, "treated": 0.6}, 60)
    only = one_arm.assignments["variant"] == "usual"
    kept = one_arm.assignments[only].reset_index(drop=True)
    seen = one_arm.outcomes[one_arm.outcomes["unit_id"].isin(kept["unit_id"])].reset_index(drop=True)
    empty = Records(one_arm.screened, kept, one_arm.events, seen)
    for given in (empty, records({"usual": 0.3, "treated": 0.6}, 10)):
        found = evaluate(
            design(looks__always_valid=True), given, reached=[0.5], earlier=(), final=False, policy=lifecycle
        )
        assert not found.arms[0].estimable
        assert found.arms[0].effect is None
        assert found.arms[0].always_valid is None
        assert found.advice == "not_evaluable"


def test_missing_outcomes_follow_the_plan(lifecycle):
    given = records({"usual": 0.3, "treated": 0.6})
    # Every third treated unit has no outcome.
    gone = given.assignments.loc[given.assignments["variant"] == "treated", "unit_id"].iloc[::3]
    less = Records(
        given.screened, given.assignments, given.events,
        given.outcomes[~given.outcomes["unit_id"].isin(gone)].reset_index(drop=True),
    )  # fmt: skip

    def effect(policy):
        found = evaluate(
            design(missing_outcomes=policy), less, reached=[0.5], earlier=(), final=False, policy=lifecycle
        )
        return found.arms[0].effect

    assert effect("non_responder") < effect("complete_cases")
    with pytest.raises(InputError, match="missing='refuse'"):
        effect("refuse")


def test_the_plan_of_a_survival_metric_has_its_power():
    spec = design(
        metrics__primary={
            "name": "responded", "kind": "survival", "direction": "increase", "baseline": 0.5, "minimum_effect": 1.6,
        },
        sample_size__events=150,
    )  # fmt: skip
    power = run.planned_power(spec)
    assert power is not None
    assert 0.5 < power < 0.99
    plan = boundaries("lan_demets_obf", [0.5, 1.0])
    # Schoenfeld: the drift is |ln HR| sqrt(events / 4); the looks cost little of it.
    events = 200 * (0.5 + 1 - 0.5**1.6) / 2
    drift = math.log(1.6) * math.sqrt(events / 4)
    assert power == pytest.approx(0.5 * math.erfc((plan.z[-1] - drift) / math.sqrt(2)), abs=0.02)
