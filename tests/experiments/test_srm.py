"""Sample ratio mismatch: fixed, exact and sequential."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import sequential_srm_test, srm_test


def test_chi_squared_of_any_number_of_arms():
    counts, ratio = [520, 260, 220], [0.5, 0.25, 0.25]
    found = srm_test(counts, ratio)
    reference = stats.chisquare(counts, np.array(ratio) * 1000)
    assert found.statistic == pytest.approx(reference.statistic)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.degrees_of_freedom, found.method, found.severity) == (2, "chi_squared", "none")


@pytest.mark.parametrize(
    ("counts", "severity"), [((5000, 5000), "none"), ((5135, 4865), "warning"), ((5200, 4800), "critical")]
)
def test_severities(counts, severity):
    found = srm_test(dict(zip("ab", counts, strict=True)), {"b": 0.5, "a": 0.5})
    assert found.severity == severity
    assert found.detected == (severity != "none")
    assert set(found.to_metadata()) and found.to_record()["severity"] == severity


def test_two_to_one_is_no_mismatch():
    assert srm_test(
        {"control": 1000, "treatment": 2000}, {"control": 1 / 3, "treatment": 2 / 3}
    ).p_value == pytest.approx(1)


def test_series_name_their_arms():
    found = srm_test(pd.Series({"b": 50, "a": 30}), pd.Series({"a": 0.4, "b": 0.6}))
    assert found.counts == {"a": 30, "b": 50}


def test_small_counts_are_exact():
    two = srm_test([1, 8], [0.5, 0.5])
    assert (two.method, two.p_value) == ("exact_binomial", pytest.approx(stats.binomtest(1, 9).pvalue))
    three = srm_test([0, 6, 2], [0.25, 0.25, 0.5])
    assert three.method == "exact_multinomial"
    every = [(a, b, 8 - a - b) for a in range(9) for b in range(9 - a)]
    probability = stats.multinomial(8, [0.25, 0.25, 0.5]).pmf(every)
    here = stats.multinomial(8, [0.25, 0.25, 0.5]).pmf([0, 6, 2])
    assert three.p_value == pytest.approx(probability[probability <= here * (1 + 1e-9)].sum())


def test_an_arm_without_units_is_the_strongest_mismatch():
    assert srm_test([0, 400], [0.5, 0.5]).severity == "critical"


@pytest.mark.parametrize(
    ("counts", "ratio", "message"),
    [
        ([0, 0], [0.5, 0.5], "0 units"),
        ([10, 10], [0.5, 0.6], "sums to 1.1"),
        ([10, 10], [0.5, 0.4], "not to 1"),
        ([10, 10], [1.0, 0.0], "part is above 0"),
        ([10], [1.0], "at least two"),
        ([10, 10, 10], [0.5, 0.5], "3 values for 2 arms"),
        ([10, -1], [0.5, 0.5], "whole number"),
        ([10.5, 3], [0.5, 0.5], "whole number"),
        ([10, None], [0.5, 0.5], "whole number"),
        ({"a": 3, "b": 4}, {"a": 0.5, "c": 0.5}, "not in the ratio"),
        ({"a": 3}, {"a": 0.5, "c": 0.5}, "have no count"),
        ({"a": 3, "b": 4}, [0.2, 0.3, 0.5], "3 values for 2 arms"),
        ([3, 4], ["x", 0.5], "not a number"),
    ],
)
def test_wrong_counts_and_ratios_are_named(counts, ratio, message):
    with pytest.raises(InputError, match=message):
        srm_test(counts, ratio)


def test_thresholds_must_be_ordered():
    with pytest.raises(InputError, match="critical"):
        srm_test([5, 5], [0.5, 0.5], warning=0.001, critical=0.01)


def test_the_sequential_test_keeps_its_error_at_every_look_and_finds_a_mismatch():
    """Looked at after every 50 of 5,000 units: at most 1 in 100 null streams ever falls below p = 0.01."""
    rng = np.random.default_rng(5)
    ratio = {"a": 0.5, "b": 0.3, "c": 0.2}

    def ever(share, streams):
        found = 0
        for _ in range(streams):
            counts = np.cumsum(rng.multinomial(50, share, size=100), axis=0)
            state = None
            for row in counts:
                state = sequential_srm_test(dict(zip(ratio, map(int, row), strict=True)), ratio, before=state)
                if state.p_value < 0.01:
                    found += 1
                    break
        return found / streams

    assert ever(list(ratio.values()), 200) <= 0.03
    assert ever([0.45, 0.33, 0.22], 20) == 1.0


def test_the_sequential_evidence_is_not_forgotten_and_counts_do_not_fall():
    first = sequential_srm_test([700, 300], [0.5, 0.5])
    later = sequential_srm_test([1000, 1000], [0.5, 0.5], before=first)
    assert later.log_e_value < first.log_e_value == later.log_e_maximum
    assert later.severity == "critical"
    with pytest.raises(InputError, match="fewer units"):
        sequential_srm_test([600, 400], [0.5, 0.5], before=first)
    with pytest.raises(InputError, match="concentration"):
        sequential_srm_test([600, 400], [0.5, 0.5], concentration=0)


def test_the_evidence_is_a_bayes_factor():
    """Dirichlet-multinomial against multinomial, by scipy."""
    alpha = 100 * np.array([0.5, 0.5])
    found = sequential_srm_test([40, 70], [0.5, 0.5]).log_e_value
    mixture = stats.dirichlet_multinomial(alpha, 110).logpmf([40, 70])
    assert found == pytest.approx(mixture - stats.multinomial(110, [0.5, 0.5]).logpmf([40, 70]))
