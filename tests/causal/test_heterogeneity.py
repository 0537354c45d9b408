"""Whose effect is larger: found where it was planted, not found where it was not; who to treat."""

import numpy as np
import pytest

from e2i_dagster.causal.heterogeneity import (
    calibration_slope,
    effect_groups,
    forest_effects,
    policy_values,
    qini_area,
    s_learner_effects,
    uplift_curve,
)
from e2i_dagster.causal.pages import heterogeneity_sentence
from e2i_dagster.causal.rows import causal_rows
from e2i_dagster.causal.study import nuisances_of, study_heterogeneity
from e2i_dagster.synthetic.generate import FULL, generate
from e2i_dagster.synthetic.truth import true_effects

ASKED = {
    "treatment": "high_engagement", "outcome": "treatment_initiated",
    "confounders": ["disease_severity", "academic_hcp"],
}  # fmt: skip
PATIENTS = 3_000


@pytest.fixture(scope="module")
def process_frame():
    small = {
        name: 10 for name in FULL if name not in ("n_hcps", "n_patients", "n_treatments", "n_engagements")
    }
    journeys = generate("heterogeneous", n_hcps=60, n_patients=PATIENTS, seed=3, **small)["patient_journeys"]
    frame = journeys[["disease_severity", "academic_hcp", "treatment_initiated"]].assign(
        high_engagement=journeys["engagement_score"] >= 5
    )
    frame.attrs["cate"] = (
        true_effects("heterogeneous", n_patients=PATIENTS, seed=3).patients["cate"].to_numpy()
    )
    return frame


@pytest.fixture(scope="module")
def found(process_frame, causal_policy):
    return study_heterogeneity(process_frame, **ASKED, policy=causal_policy, estimable=True)


def test_planted_heterogeneity_is_found(found, process_frame):
    assert found.slope_p_value < 1e-6
    assert found.qini_lower > 0
    assert "can be predicted" in heterogeneity_sentence(found)
    assert found.contrasts[0].confounder == "disease_severity"
    assert found.contrasts[0].standardized_difference > 1
    smallest, largest = found.groups[0], found.groups[-1]
    assert largest.effect > 3 * smallest.effect
    truth = np.sort(process_frame.attrs["cate"])
    assert largest.lower < truth[-PATIENTS // 5 :].mean() + 0.1


def test_treating_above_cost_beats_treating_everyone_when_it_is_dear(process_frame, causal_policy):
    dear = causal_policy.model_copy(update={"treatment_cost": 0.2})
    cate = process_frame.attrs["cate"]
    noise = np.random.default_rng(1).normal(size=len(cate))
    everyone, chosen = policy_values(cate + noise, cate, dear)
    assert everyone.share_treated == 1
    assert everyone.value == pytest.approx((cate + noise).mean() - 0.2)
    assert chosen.value > everyone.value
    assert chosen.share_treated == pytest.approx((cate > 0.2).mean())


def test_the_forest_is_nearer_to_the_truth_than_no_heterogeneity(process_frame, causal_policy):
    rows = causal_rows(process_frame, **ASKED)
    nuisances = nuisances_of(rows, causal_policy, 42)
    cate = process_frame.attrs["cate"]

    def pehe(effects):
        return float(np.sqrt(np.mean(np.square(effects - cate))))

    assert pehe(forest_effects(rows, nuisances, causal_policy, 42)) < 0.8 * cate.std()
    assert pehe(s_learner_effects(rows, nuisances, 42)) < cate.std()


def test_without_heterogeneity_ranking_is_not_said_to_help(plant, causal_policy):
    frame = plant(0.0)
    noise = np.random.default_rng(9).normal(size=len(frame))
    frame["days"] = 5.0 * frame["treated"] + frame["severity"] + noise
    found = study_heterogeneity(
        frame, treatment="treated", outcome="days", confounders=["severity", "academic"], policy=causal_policy,
        estimable=True,
    )  # fmt: skip
    assert found.slope_p_value > 0.01
    assert found.qini_lower <= 0
    assert "not shown to beat lot" in heterogeneity_sentence(found)


def test_the_curve_ends_where_everyone_is_treated():
    generator = np.random.default_rng(3)
    predicted = generator.normal(size=500)
    scores = predicted + generator.normal(size=500)
    curve = uplift_curve(scores, predicted, 0.95)
    assert (curve[0].gain, curve[0].share) == (0.0, 0.0)
    assert curve[-1].gain == pytest.approx(scores.mean())
    assert curve[-1].random == pytest.approx(scores.mean())
    assert max(one.gain for one in curve) > scores.mean()


def test_the_area_is_that_between_curve_and_lot(causal_policy):
    """Known answer: scores equal to ranks; the area is that of the covariance with the rank."""
    scores = np.arange(1000.0)[::-1]
    area, lower, upper = qini_area(scores, scores, causal_policy, 1)
    shares = np.arange(1000) / 1000
    assert area == pytest.approx(-np.cov(scores, shares, ddof=0)[0, 1])
    assert lower < area < upper
    worst, _, _ = qini_area(scores, -scores, causal_policy, 1)
    assert worst < 0


def test_groups_and_slope_without_varying_effects():
    scores = np.random.default_rng(1).normal(size=200)
    assert calibration_slope(scores, np.full(200, 0.3)) == (None, None)
    assert sum(group.rows for group in effect_groups(scores, scores, 0.95)) == 200


def test_not_estimable_is_passed_on(process_frame, causal_policy):
    found = study_heterogeneity(
        process_frame, **ASKED, policy=causal_policy, estimable=False, reason="no overlap: 40 % of the rows"
    )
    assert found.to_metadata() == {"effect_state": "not_estimable", "reason": "no overlap: 40 % of the rows"}
    assert found.groups == ()


def test_small_cells_are_not_given_away(plant, causal_policy):
    frame = plant(1.0, rows=600).reset_index(drop=True)
    frame["rare"] = frame.index % 25 == 0  # about five in a fifth
    frame["common"] = frame.index % 2 == 0
    found = study_heterogeneity(
        frame, treatment="treated", outcome="outcome", confounders=["severity", "rare", "common"],
        policy=causal_policy, estimable=True,
    )  # fmt: skip
    shown = {one.confounder for one in found.contrasts}
    assert "severity" in shown
    assert "rare" not in shown
