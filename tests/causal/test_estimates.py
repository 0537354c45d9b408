"""Effects that were planted are found by every library; what cannot be estimated is not."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from e2i_dagster import causal
from e2i_dagster.causal.effects import LibraryEstimate, agreement_score, median_interval
from e2i_dagster.errors import InputError
from e2i_dagster.synthetic.generate import FULL, generate
from e2i_dagster.synthetic.truth import true_effects

CONFOUNDERS = ["severity", "academic"]
ASKED = {"treatment": "treated", "outcome": "outcome", "confounders": CONFOUNDERS}


@pytest.fixture(scope="module")
def planted_frame(plant):
    return plant(1.5)


@pytest.fixture(scope="module")
def found(planted_frame, causal_policy):
    return causal.cross_validate(planted_frame, **ASKED, policy=causal_policy)


def estimate(point, lower, upper, name="a"):
    return LibraryEstimate(
        name=name, library="l", estimand="ate", state="estimated", point=point, lower=lower, upper=upper,
        seconds=0, in_consensus=True,
    )  # fmt: skip


def test_every_library_covers_the_planted_effect(found, planted_frame):
    truth = planted_frame.attrs["ate"]
    naive = planted_frame.groupby("treated")["outcome"].mean().diff().iloc[-1]
    assert naive > truth + 0.1
    for one in found.effects.estimates:
        assert one.state == "estimated", one.reason
        assert one.version
        if one.in_consensus:
            assert one.lower < truth < one.upper, one.label
    lower, upper = found.consensus_interval
    assert lower < truth < upper
    assert found.agreement_score == 1.0
    assert {one.library for one in found.effects.estimates} == {"econml", "dowhy", "causalml"}


def test_the_consensus_is_the_median_of_the_points_that_target_the_ate(found):
    points = [one.point for one in found.effects.estimates if one.in_consensus]
    assert found.consensus_effect == pytest.approx(np.median(points))
    assert found.left_out == {
        "econml LinearDML": "estimand overlap_weighted, not the ATE",
        "econml DRLearner": "the mean of LinearDRLearner again, counted once",
    }
    assert len(found.libraries) == 4


def test_the_dr_learner_repeats_the_linear_one_and_counts_where_that_is_not_asked(
    found, planted_frame, causal_policy
):
    repeated = found.effects.by_label("econml DRLearner")
    assert repeated.point == pytest.approx(found.effects.by_label("econml LinearDRLearner").point, abs=1e-9)
    assert not repeated.in_consensus
    alone = causal.cross_validate(planted_frame, **ASKED, estimators=["DRLearner"], policy=causal_policy)
    assert alone.libraries == ("econml DRLearner",)
    assert alone.consensus_effect == pytest.approx(repeated.point)


def test_scores_reproduce_each_librarys_own_point_and_error(found):
    """The bootstrap resamples scores: they must be those behind the libraries' own figures."""
    size = found.effects.rows
    for one in found.effects.estimates:
        scores = found.effects.scores[one.label]
        assert scores.shape == (size,)
        assert scores.mean() == pytest.approx(one.point, abs=1e-9), one.label
        own_error = (one.upper - one.lower) / 2 / 1.959964
        assert scores.std() / np.sqrt(size) == pytest.approx(own_error, rel=0.01), one.label


def test_the_weighting_estimate_is_the_normalized_one(planted_frame, causal_policy):
    """Known answer: with the propensities that were used, Hajek's difference of weighted means."""
    from e2i_dagster.causal.nuisances import fit_nuisances
    from e2i_dagster.causal.rows import causal_rows

    rows = causal_rows(planted_frame, **ASKED)
    e = fit_nuisances(rows, floor=causal_policy.propensity_floor, seed=42).propensity
    by_hand = np.average(rows.y, weights=rows.t / e) - np.average(rows.y, weights=(1 - rows.t) / (1 - e))
    only = causal.estimate_effects(
        planted_frame, **ASKED, estimators=["propensity_score_weighting"], policy=causal_policy
    )
    assert only.estimates[0].point == pytest.approx(by_hand)


def test_the_same_seed_gives_the_same_answer_and_the_frame_stays(planted_frame, found, causal_policy):
    before = planted_frame.copy(deep=True)
    again = causal.cross_validate(planted_frame, **ASKED, policy=causal_policy)
    pd.testing.assert_frame_equal(before, planted_frame)
    assert again.consensus_effect == found.consensus_effect
    assert again.consensus_interval == found.consensus_interval


def test_users_see_no_warning_of_the_libraries(plant, causal_policy, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        causal.cross_validate(plant(0.5, rows=400), **ASKED, policy=causal_policy)
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == ""


def test_agreement_needs_overlap_and_the_same_sign():
    near, far, negative = estimate(0.2, 0.1, 0.3), estimate(0.6, 0.5, 0.7), estimate(-0.02, -0.3, 0.26)
    assert agreement_score((near, near)) == 1.0
    assert agreement_score((near, far)) == 0.0
    assert agreement_score((near, negative)) == 0.0  # the intervals overlap, the signs differ
    assert agreement_score((near, near, far)) == pytest.approx(1 / 3)
    assert agreement_score((near, estimate(0.4, 0.3, 0.5))) == 1.0  # touching counts
    assert agreement_score((near,)) is None


def test_the_bootstrap_keeps_the_correlation_of_the_libraries():
    """Equal scores: the median is as uncertain as one of them, not narrower by the root of their number."""
    scores = np.random.default_rng(1).normal(0.3, 1.0, size=2_000)
    lower, upper = median_interval(np.column_stack([scores] * 4), level=0.95, draws=2_000, seed=3)
    assert (upper - lower) / 2 == pytest.approx(1.96 * scores.std() / np.sqrt(2_000), rel=0.08)
    assert lower < scores.mean() < upper


def test_an_absent_library_is_named_and_left_out(planted_frame, causal_policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "dowhy", None)
    found = causal.cross_validate(
        planted_frame,
        **ASKED,
        estimators=["LinearDRLearner", "propensity_score_weighting"],
        policy=causal_policy,
    )
    absent = found.effects.by_label("dowhy propensity_score_weighting")
    assert absent.state == "unavailable"
    assert absent.point is None
    assert "dowhy" in absent.reason
    assert "e2i-dagster[causal]" in absent.reason
    assert found.libraries == ("econml LinearDRLearner",)
    assert found.agreement_score is None  # nobody to agree with
    assert "dowhy propensity_score_weighting" in found.left_out


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_the_consensus_covers_the_true_effect_of_the_synthetic_process(seed, causal_policy):
    volumes = {
        name: 10 for name in FULL if name not in ("n_hcps", "n_patients", "n_treatments", "n_engagements")
    }
    journeys = generate("confounded", n_hcps=60, n_patients=2_000, seed=seed, **volumes)["patient_journeys"]
    frame = journeys[["disease_severity", "academic_hcp", "treatment_initiated"]].assign(
        high_engagement=journeys["engagement_score"] >= 5
    )
    found = causal.cross_validate(
        frame,
        treatment="high_engagement",
        outcome="treatment_initiated",
        confounders=["disease_severity", "academic_hcp"],
        estimators=["LinearDRLearner", "propensity_score_weighting", "BaseDRLearner"],
        policy=causal_policy,
    )
    truth = true_effects("confounded", n_patients=2_000, seed=seed).ate
    lower, upper = found.consensus_interval
    assert lower <= truth <= upper
    assert upper - lower < 0.12


# Bad input


def refused(frame, match, **changes):
    with pytest.raises(InputError, match=match):
        causal.estimate_effects(frame, **{**ASKED, **changes})


def test_what_is_wrong_with_the_frame_is_said(planted_frame):
    frame = planted_frame
    refused(frame.assign(treated=True), "one level .all treated.")
    refused(frame.assign(treated=frame["severity"]), "expected 0/1")
    refused(
        frame.assign(treated=frame["treated"].astype("boolean").where(frame.index != 3)), "1 rows have none"
    )
    refused(frame.assign(outcome=frame["outcome"].where(frame.index > 4)), "5 of 1,200 rows have none")
    refused(frame.assign(outcome="yes"), "no number or boolean")
    refused(frame.assign(severity=np.where(frame.index == 2, np.inf, 0.0)), "infinite")
    refused(frame.iloc[:0], "no row")
    refused(frame, "no column 'age'", confounders=["age"])
    refused(frame, "named twice", confounders=["severity", "treated"])
    refused(frame, "No confounder", confounders=[])
    refused(frame.assign(severity=1.0, academic=False), "one value only")
    refused(frame.assign(code=frame.index.astype(str)), "1,200 levels", confounders=["code"])
    refused(frame, "Unknown estimator", estimators=["Magic"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame.head(20), "20 rows"),
        (lambda frame: frame.assign(treated=frame["severity"] > 0), "almost perfectly"),
        (lambda frame: frame.assign(outcome=1), "one value in all rows"),
        (lambda frame: frame[~frame["treated"] | (frame.index < 40)], "the smaller arm"),
    ],
)
def test_not_estimable_says_why_and_invents_nothing(planted_frame, change, reason, causal_policy):
    found = causal.cross_validate(change(planted_frame), **ASKED, policy=causal_policy)
    assert found.state == "not_estimable"
    assert reason in found.reason
    assert found.consensus_effect is None
    assert found.consensus_interval is None
    assert found.agreement_score is None
    assert found.effects.estimates == ()


def test_want_of_overlap_is_refused_with_its_figure(plant, causal_policy):
    found = causal.estimate_effects(plant(1.0, confounding=4.0), **ASKED, policy=causal_policy)
    assert found.state == "not_estimable"
    assert "no overlap" in found.reason
    assert found.overlap.share_outside > 0.10
    assert f"{found.overlap.share_outside:.0%}" in found.reason


def test_missing_outcomes_are_dropped_only_when_asked_and_counted(planted_frame, causal_policy):
    holes = planted_frame.assign(
        outcome=planted_frame["outcome"].astype(float).where(planted_frame.index >= 100)
    )
    found = causal.estimate_effects(
        holes, **ASKED, missing_outcome="drop", estimators=["LinearDML"], policy=causal_policy
    )
    assert (found.rows, found.dropped) == (1_100, 100)


def test_missing_confounders_and_categories_are_used(planted_frame, causal_policy):
    coarse = pd.cut(planted_frame["severity"], [-9, -0.5, 0.5, 9], labels=["low", "medium", "high"])
    frame = planted_frame.assign(
        band=coarse.astype("string").where(planted_frame.index % 9 != 0),
        severity=planted_frame["severity"].where(planted_frame.index % 7 != 0),
    )
    found = causal.estimate_effects(
        frame, treatment="treated", outcome="outcome", confounders=["band", "severity"],
        estimators=["LinearDRLearner"], policy=causal_policy,
    )  # fmt: skip
    names = {one.confounder for one in found.overlap.balance}
    assert names == {"band=low", "band=medium", "band=missing", "severity", "severity=missing"}
    assert found.estimates[0].state == "estimated"


def test_a_continuous_outcome_keeps_its_unit(plant, causal_policy):
    frame = plant(0.0)
    noise = np.random.default_rng(5).normal(size=len(frame))
    frame["days"] = 20 + 3 * frame["severity"] + 7.0 * frame["treated"] + noise
    found = causal.cross_validate(
        frame, treatment="treated", outcome="days", confounders=CONFOUNDERS, policy=causal_policy
    )
    assert not found.effects.outcome_is_binary
    lower, upper = found.consensus_interval
    assert lower < 7.0 < upper
    assert upper - lower < 0.6


def test_weighting_balances_what_was_confounded(found, causal_policy):
    severity = next(one for one in found.effects.overlap.balance if one.confounder == "severity")
    assert severity.before > 0.5
    assert found.effects.overlap.worst_after < causal_policy.balanced_difference


def test_the_record_carries_no_row(found):
    record = found.to_record()
    assert "scores" not in record["effects"]
    assert causal.CrossValidation.model_validate(record).consensus_effect == found.consensus_effect
    with pytest.raises(InputError, match="carry no scores"):
        causal.cross_validate(causal.EffectEstimates.model_validate(record["effects"]))
