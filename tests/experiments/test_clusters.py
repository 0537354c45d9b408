"""Few clusters: the level of the analysis, and the power that planning promises, in simulation."""

import numpy as np
import pytest
from scipy import stats

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import analyze, minimum_detectable_effect, power, sample_size
from e2i_dagster.experiments.designs.cluster_simulation import DESIGNS, SIZES, cluster_p_values, draw_clusters
from e2i_dagster.experiments.statistics.comparisons import (
    FEWEST_CLUSTERS,
    MOST_OF_ONE_CLUSTER,
    satterthwaite_clusters,
)

DRAWS = 5_000


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("clusters", DESIGNS)
def test_the_level_holds_with_few_clusters(clusters, sizes, binary):
    rng = np.random.default_rng(17)
    units = [np.resize(SIZES[sizes], count) for count in clusters]
    totals = [draw_clusters(n, DRAWS, rng, binary=binary) for n in units]
    assert (cluster_p_values(totals, units) < 0.05).mean() <= 0.055


@pytest.mark.parametrize("clusters", DESIGNS)
def test_the_simulated_test_is_that_of_the_analysis(clusters):
    import pandas as pd

    rng = np.random.default_rng(3)
    units = [np.resize(SIZES["unequal"], count) for count in clusters]
    totals = [draw_clusters(n, 20, rng, binary=True) for n in units]
    shown = cluster_p_values(totals, units)
    for draw in range(3):
        parts = []
        for arm, total, n in zip(("treated", "control"), totals, units, strict=True):
            ones = total[draw].astype(int)
            values = [np.repeat([1.0, 0.0], [k, size - k]) for k, size in zip(ones, n, strict=True)]
            names = np.repeat([f"{arm} {k}" for k in range(len(n))], n)
            parts.append(pd.DataFrame({"arm": arm, "cluster": names, "y": np.concatenate(values)}))
        found = analyze(
            pd.concat(parts, ignore_index=True), arm="arm", outcome="y", control="control", cluster="cluster"
        )
        assert found.p_value == pytest.approx(shown[draw])


def of_sizes(*sizes: int):
    """Both arms with clusters of these sizes, outcomes drawn."""
    import pandas as pd

    names = np.repeat(np.arange(len(sizes)), sizes)
    arms = np.repeat(["treated", "control"], len(names))
    y = np.random.default_rng(5).normal(size=2 * len(names))
    clusters = [f"{arm} {k}" for arm, k in zip(arms, np.tile(names, 2), strict=True)]
    frame = pd.DataFrame({"arm": arms, "cluster": clusters, "y": y, "site": np.arange(len(y)) % 2})
    return frame, {"arm": "arm", "outcome": "y", "control": "control", "cluster": "cluster"}


@pytest.mark.parametrize("sizes", [(200, 5, 5, 5, 5), (200, 5, 5, 5, 5, 5), (2000, 100, 100, 100, 100, 100)])
@pytest.mark.parametrize("strata", [None, "site"])
def test_an_arm_that_is_one_cluster_is_not_estimable(sizes, strata):
    frame, named = of_sizes(*sizes)
    found = analyze(frame, **named, strata=strata).comparison()
    assert (found.status, found.p_value, found.interval) == ("not_estimable", None, None)
    assert "one cluster is" in found.reason and "cannot tell its error" in found.reason


@pytest.mark.parametrize("clusters", DESIGNS)
@pytest.mark.parametrize("icc", [0.1, 0.6])
def test_the_level_holds_up_to_the_largest_cluster_that_is_judged(clusters, icc):
    rng = np.random.default_rng(23)
    units = [np.array([300 * (count - 1), *[100] * (count - 1)]) for count in clusters]
    assert max(n.max() / n.sum() for n in units) == MOST_OF_ONE_CLUSTER
    totals = [draw_clusters(n, DRAWS, rng, icc=icc) for n in units]
    assert (cluster_p_values(totals, units) < 0.05).mean() <= 0.055
    frame, named = of_sizes(60, 5, 5, 5, 5)
    assert analyze(frame, **named).status == "estimated"


def test_the_degrees_of_freedom_of_clusters_of_one_size_are_their_number_less_one():
    assert satterthwaite_clusters(np.full(5, 0.2)) == pytest.approx(4)
    assert 1 <= satterthwaite_clusters(np.array([0.9, 0.05, 0.03, 0.02])) < 2


@pytest.mark.parametrize(
    ("effect", "icc", "ratio"), [(0.8, 0.1, 1.0), (0.5, 0.1, 1.0), (0.6, 0.05, 3.0), (0.5, 0.2, 1.0)]
)
def test_planned_power_is_the_realised_one_and_the_plan_can_be_analysed(effect, icc, ratio):
    found = sample_size(effect=effect, cluster_size=20, icc=icc, ratio=ratio)
    assert found.clusters is not None and min(found.clusters.values()) >= FEWEST_CLUSTERS
    planned = power(n=found.total, effect=effect, cluster_size=20, icc=icc, ratio=ratio)
    assert planned >= 0.80
    rng = np.random.default_rng(5)
    units = [np.full(found.clusters[arm], 20) for arm in ("treatment", "control")]
    totals = [draw_clusters(n, 20_000, rng, icc=icc) for n in units]
    totals[0] = totals[0] + effect * units[0]
    realised = (cluster_p_values(totals, units) < 0.05).mean()
    assert realised == pytest.approx(planned, abs=3 * np.sqrt(0.25 / 20_000))


def test_the_power_of_equal_clusters_is_that_of_students_t():
    sd = np.sqrt((1 + 19 * 0.1) / 20)
    shift = 0.5 / (sd * np.sqrt(2 / 11))
    exact = stats.nct.sf(stats.t.isf(0.025, 20), 20, shift)
    assert power(n=440, effect=0.5, cluster_size=20, icc=0.1) == pytest.approx(exact, abs=0.02)


def test_planning_refuses_what_an_analysis_refuses():
    shared = {"cluster_size": 20, "icc": 0.1}
    assert sample_size(effect=3.0, **shared).clusters == {"control": 5, "treatment": 5}
    with pytest.raises(InputError, match="n: 4 clusters in an arm; an analysis needs at least 5"):
        power(n=160, effect=0.5, **shared)
    with pytest.raises(InputError, match="4 clusters in an arm"):
        minimum_detectable_effect(n=160, **shared)
    with pytest.raises(InputError, match="not for kind survival"):
        sample_size("survival", effect=0.5, event_probability=0.3, **shared)


def test_planning_refuses_an_arm_of_which_one_cluster_is_more_than_an_analysis_can_judge():
    shared = {"effect": 3.0, "cluster_size": 20, "icc": 0.05}
    # 400 of 500 units are four fifths of an arm of 25 clusters, and 400 of 540 less than three quarters.
    with pytest.raises(InputError, match=r"of 25 clusters in an arm one would be 80% of it") as refused:
        power(n=1000, largest_cluster=400, **shared)
    assert refused.value.remedy and refused.value.field == "n"
    small = {**shared, "effect": 0.3}
    assert power(n=1080, largest_cluster=400, **small) < 0.8 * power(n=1080, **small)
    assert sample_size(largest_cluster=400, **shared).clusters == {"control": 27, "treatment": 27}
    # What is only known as a coefficient of variation is held to the same: its largest of five is 0.9 of them.
    with pytest.raises(InputError, match="one would be"):
        power(n=200, cluster_size_cv=4.0, **shared)
    with pytest.raises(
        InputError, match="largest_cluster: 10 units; it is at least the mean cluster_size 20"
    ):
        power(n=1000, largest_cluster=10, **shared)


@pytest.mark.parametrize(("cv", "clusters"), [(2.0, 8), (1.5, 6)])
def test_planned_power_counts_arms_that_an_analysis_refuses(cv, clusters):
    """Of clusters drawn by the gamma law one may be more than three quarters of its arm."""
    shared = {"kind": "mean", "sd": 1.0, "effect": 100.0, "cluster_size": 20, "icc": 0.1}
    sizes = np.random.default_rng(5).gamma(cv**-2, size=(2, 50_000, clusters))
    judged = (sizes.max(2) <= 0.75 * sizes.sum(2)).all(0).mean()
    planned = power(n=2 * 20 * clusters, cluster_size_cv=cv, **shared)
    assert planned == pytest.approx(judged, abs=0.01)
