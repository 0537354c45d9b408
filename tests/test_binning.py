"""Bins of numbers: a frequent value has one of its own, and merging bins can only lower a stability index."""

import datetime as dt
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from e2i_dagster.binning import Bins, quantile_bins
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.drift import detect_drift, population_stability_index
from e2i_dagster.policy_files.environment import CHECKOUT

NUMBERS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 2.5]), st.floats(-1e6, 1e6)), min_size=1, max_size=300
)


def by_value(reference: list[int], current: list[int]) -> float:
    """The index with one more observation a side, spread as both sides together are."""
    r, c = np.array(reference, dtype=float), np.array(current, dtype=float)
    spread = (r + c) / (r + c).sum()
    p, q = (r + spread) / (r.sum() + 1), (c + spread) / (c.sum() + 1)
    return float(np.sum((q - p) * np.log(q / p)))


def test_five_per_cent_ones_against_sixty_is_the_index_by_value():
    reference = pd.Series(np.repeat([0.0, 1.0], [950, 50]))
    current = pd.Series(np.repeat([0.0, 1.0], [400, 600]))
    expected = by_value([950, 50], [400, 600])
    plain = (0.6 - 0.05) * np.log(0.6 / 0.05) + (0.4 - 0.95) * np.log(0.4 / 0.95)
    assert plain == pytest.approx(1.84, abs=0.005) and expected == pytest.approx(plain, rel=4e-3)
    kinds = ("float64", "int64", "boolean", "bool", "Int64")
    for kind, other in itertools.product(kinds, kinds):
        found = population_stability_index(reference.astype(kind), current.astype(other))
        assert found == pytest.approx(expected, abs=1e-12), (kind, other)


def test_a_boolean_beside_a_number_is_not_another_thing():
    """What a source writes as true and false one month and as 1 and 0 the next has not drifted."""
    policy = DriftPolicy.load(CHECKOUT / "config")
    truths = pd.Series([False, True] * 500)
    for reference, current in itertools.permutations((truths, truths.astype(float))):
        report = detect_drift(
            pd.DataFrame({"flag": reference}),
            pd.DataFrame({"flag": current}),
            policy=policy,
            scope="s",
            day=dt.date(2024, 1, 1),
            model_id="m/1",
        )
        assert (report.features[0].severity, report.features[0].psi) == ("none", 0.0)


@pytest.mark.parametrize("to", [-1.0, 1e-9, 40.0], ids=["below", "just above", "above"])
def test_what_leaves_a_frequent_value_to_either_side_counts(to):
    """96 % zeros, the others spread over 1 to 30; a third of the zeros moves."""
    reference = pd.Series(np.r_[np.zeros(960), np.linspace(1, 30, 40)])
    current = reference.where(np.arange(1_000) >= 320, to)
    assert population_stability_index(reference, current) > 0.8


@given(NUMBERS, st.integers(2, 12))
@settings(max_examples=150, deadline=None)
def test_bins_take_every_number_and_keep_frequent_values_alone(numbers, count):
    values = np.array(numbers)
    bins = quantile_bins(values, count)
    places = bins.place(values)
    assert bins.counts(values).sum() == len(values)
    distinct, repeats = np.unique(values, return_counts=True)
    for value in distinct[(repeats * count >= len(values)) | (len(distinct) <= count)]:
        here, just_below, just_above = bins.place(
            np.array([value, np.nextafter(value, -np.inf), np.nextafter(value, np.inf)])
        )
        assert set(values[places == here]) == {value}
        assert here not in (just_below, just_above)
        assert just_below != just_above
    # Bins of several values follow the order of the numbers.
    order = places[(places < len(bins.edges) + 1)][np.argsort(values[places < len(bins.edges) + 1])]
    assert (np.diff(order) >= 0).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=30, max_size=200, unique=True))
@settings(max_examples=50, deadline=None)
def test_without_ties_the_edges_are_the_quantiles(numbers):
    expected = np.quantile(numbers, np.linspace(0, 1, 11)[1:-1])
    assert quantile_bins(np.array(numbers), 10).edges == pytest.approx(np.unique(expected).tolist())


@given(
    # Values that only one side has are half of what drift is.
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=2, max_size=10).filter(
        lambda rows: all(sum(side) > 0 for side in zip(*rows, strict=True))
    ),
    st.lists(st.integers(0, 3), min_size=10, max_size=10),
)
@example([(400, 400), (300, 0), (300, 0)], [0, 1, 1] + [0] * 7)
@example([(100, 1000), *[(100, 0)] * 9], [0] + [1] * 9)
@settings(max_examples=200, deadline=None)
def test_no_coarsening_of_values_has_a_larger_index(rows, groups):
    """Log sum inequality, for numbers, and the same for the same values as text."""
    reference = np.repeat(np.arange(len(rows)), [count for count, _ in rows])
    current = np.repeat(np.arange(len(rows)), [count for _, count in rows])
    coarser = np.array(groups[: len(rows)])
    fine, coarse = (
        population_stability_index(pd.Series(first), pd.Series(second))
        for first, second in ((reference, current), (coarser[reference], coarser[current]))
    )
    assert coarse <= fine + 1e-9
    as_text = population_stability_index(
        pd.Series(reference.astype(str), dtype="string"), pd.Series(current.astype(str), dtype="string")
    )
    assert as_text == pytest.approx(fine, abs=1e-9)


def test_no_numbers_have_one_bin():
    assert quantile_bins(np.array([]), 10) == Bins()
    assert Bins().counts(np.array([1.0, 2.0])).tolist() == [2]
