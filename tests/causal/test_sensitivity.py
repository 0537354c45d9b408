"""E-values and robustness values against the figures that their authors published."""

import numpy as np
import pytest

from e2i_dagster.causal.nuisances import fit_nuisances
from e2i_dagster.causal.rows import causal_rows
from e2i_dagster.causal.sensitivity import (
    adjusted_estimate,
    assess_sensitivity,
    benchmark_strength,
    e_value,
    robustness_value,
)


def test_the_published_e_value():
    """VanderWeele and Ding (2017): risk ratio 3.9 (1.8 to 8.7) has E-values 7.26 and 3.0."""
    found = e_value(3.9, 1.8, 8.7)
    assert found.point == pytest.approx(7.26, abs=0.01)
    assert found.limit == pytest.approx(3.0, abs=0.01)
    inverse = e_value(1 / 3.9, 1 / 8.7, 1 / 1.8)
    assert (inverse.point, inverse.limit) == pytest.approx((found.point, found.limit))
    assert e_value(1.1, 0.9, 1.3).limit == 1.0
    assert e_value(1.0, 1.0, 1.0).point == 1.0
    with pytest.raises(ValueError, match="expected 0 < lower"):
        e_value(0.0, 0.0, 1.0)


def test_the_published_robustness_values():
    """Cinelli and Hazlett (2020), table 1, Darfur: t = 4.18 on 783 degrees of freedom: 13.9 % and 7.6 %."""
    assert robustness_value(4.18445, 783) == pytest.approx(0.1388, abs=1e-4)
    assert robustness_value(4.18445, 783, alpha=0.05) == pytest.approx(0.0763, abs=1e-4)
    assert robustness_value(1.0, 783, alpha=0.05) == 0.0


@pytest.mark.parametrize(
    ("multiple", "strength", "estimate", "error"),
    [
        (1, (0.00916, 0.12464), 0.07522, 0.02187),
        (2, (0.01833, 0.24928), 0.05292, 0.02036),
        (3, (0.02749, 0.37392), 0.03040, 0.01867),
    ],
)
def test_the_published_bounds(multiple, strength, estimate, error):
    """The same study, bounds by the covariate female (R package sensemakr): 1, 2 and 3 times as strong."""
    implied = benchmark_strength(0.0090820, 0.1090, multiple)
    assert implied == pytest.approx(strength, rel=0.01)
    found = adjusted_estimate(0.09732, 0.02326, 783, r2_treatment=strength[0], r2_outcome=strength[1])
    assert found == pytest.approx((estimate, error), abs=2e-4)


def test_an_impossible_confounder_is_not_invented():
    assert benchmark_strength(0.4, 0.3, 3) is None


def test_bounds_move_against_the_sign_of_the_effect(plant):
    for effect, sign in ((1.5, 1), (-1.5, -1)):
        rows = causal_rows(
            plant(effect), treatment="treated", outcome="outcome", confounders=["severity", "academic"]
        )
        nuisances = fit_nuisances(rows, floor=0.02, seed=1)
        found = assess_sensitivity(rows, nuisances, level=0.95)
        assert np.sign(found.linear_effect) == sign
        left = [one.estimate for one in found.bounds if one.estimate is not None]
        assert np.all(np.diff([found.linear_effect, *left]) * sign < 0)
        assert found.e_value.point > found.e_value.limit > 1
        assert 0 < found.robustness_value_significant < found.robustness_value < 1


def test_a_continuous_outcome_has_an_approximate_e_value(plant):
    frame = plant(0.0)
    frame["days"] = 10.0 * frame["treated"] + np.random.default_rng(1).normal(scale=10, size=len(frame))
    rows = causal_rows(frame, treatment="treated", outcome="days", confounders=["severity"])
    found = assess_sensitivity(rows, fit_nuisances(rows, floor=0.02, seed=1), level=0.95).e_value
    assert found.scale == "approximate"
    assert found.risk_ratio == pytest.approx(np.exp(0.91 * 10 / frame["days"].std()), rel=0.1)
