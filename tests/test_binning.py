"""Bins of numbers: a frequent value has one of its own, and merging bins can only lower a stability index."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.binning import Bins, quantile_bins
from e2i_dagster.monitoring.drift import population_stability_index

NUMBERS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 2.5]), st.floats(-1e6, 1e6)), min_size=1, max_size=300
)


def by_value(shares: list[float], other: list[float]) -> float:
    p, q = np.array(shares), np.array(other)
    return float(np.sum((q - p) * np.log(q / p)))


def test_five_per_cent_ones_against_sixty_is_the_index_by_value():
    reference = pd.Series(np.repeat([0.0, 1.0], [950, 50]))
    current = pd.Series(np.repeat([0.0, 1.0], [400, 600]))
    expected = by_value([0.95, 0.05], [0.40, 0.60])
    assert expected == pytest.approx(1.84, abs=0.005)
    for kind in ("float64", "int64", "boolean", "bool", "Int64"):
        found = population_stability_index(reference.astype(kind), current.astype(kind))
        assert found == pytest.approx(expected, abs=1e-12), kind


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
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=2, max_size=10),
    st.lists(st.integers(0, 3), min_size=10, max_size=10),
)
@settings(max_examples=150, deadline=None)
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
