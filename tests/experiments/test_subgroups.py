"""Subgroups, multiplicity, heterogeneity by forest, and the A/A check."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import aa_check, adjusted, analyze, analyze_subgroups, heterogeneity


@pytest.fixture(scope="module")
def units() -> pd.DataFrame:
    """The effect is 1.5 for severe units and 0 for the others; region changes nothing."""
    rng = np.random.default_rng(23)
    n = 2_400
    arm = rng.choice(["control", "treated"], n)
    severe = rng.random(n) < 0.5
    cluster = np.repeat(np.arange(n // 20), 20)
    return pd.DataFrame(
        {
            "arm": arm,
            "severe": severe,
            "region": rng.choice(["north", "south", "west"], n),
            "age": rng.normal(50, 10, n),
            "cluster": cluster,
            "y": 1.5 * (severe & (arm == "treated")) + rng.normal(0, 1.5, n),
            "shared": rng.normal(0, 1, n // 20)[cluster] + rng.normal(0, 1, n),
            "time": np.ceil(rng.exponential(np.where(severe & (arm == "treated"), 40, 20))),
            "event": (rng.random(n) < 0.8).astype(int),
        }
    )


SHARED = {"arm": "arm", "outcome": "y", "control": "control"}


def test_the_interaction_is_found_where_it_is(units):
    found = analyze_subgroups(units, **SHARED, subgroups=["severe", "region"])
    severe, region = found.subgroups
    assert severe.adjusted_interaction_p_value < 0.001
    assert region.adjusted_interaction_p_value > 0.05
    assert severe.degrees_of_freedom == 1 and region.degrees_of_freedom == 2
    for level in severe.levels:
        part = units[units["severe"].astype(str) == level.level]
        assert level.comparison.effect == pytest.approx(analyze(part, **SHARED).effect)
        assert level.units == len(part)
    # With two levels Cochran's Q is the square of the difference over its error.
    a, b = (level.comparison for level in severe.levels)
    z = (a.effect - b.effect) / np.hypot(a.standard_error, b.standard_error)
    assert severe.interaction_statistic == pytest.approx(z**2)
    assert "severe" in str(found.to_metadata()["interaction"].texts) and found.to_record()["arm"] == "treated"


def test_interaction_of_hazard_ratios_is_on_the_log_scale(units):
    found = analyze_subgroups(
        units,
        arm="arm",
        outcome="time",
        event="event",
        kind="survival",
        control="control",
        subgroups=["severe"],
    )
    a, b = (level.comparison for level in found.subgroups[0].levels)
    z = (np.log(a.effect) - np.log(b.effect)) / np.hypot(a.standard_error, b.standard_error)
    assert found.subgroups[0].interaction_statistic == pytest.approx(z**2)
    assert found.subgroups[0].interaction_p_value < 0.001


def test_false_findings_among_many_subgroups_are_held():
    """Twelve subgroups that change nothing: plain p-values of levels find some, adjusted ones none."""
    rng = np.random.default_rng(4)
    names = [f"g{k}" for k in range(12)]
    frame = pd.DataFrame(rng.integers(0, 2, (800, 12)), columns=names)
    frame = frame.assign(arm=rng.choice(["c", "t"], 800), y=rng.normal(size=800))
    found = analyze_subgroups(frame, arm="arm", outcome="y", control="c", subgroups=names)
    levels = [level for group in found.subgroups for level in group.levels]
    assert min(level.comparison.p_value for level in levels) < 0.05
    assert min(level.adjusted_p_value for level in levels) > 0.05
    assert all(group.adjusted_interaction_p_value > 0.05 for group in found.subgroups)


def test_a_level_with_few_units_says_so(units):
    rare = units.assign(rare=np.where(units.index < 15, "rare", "usual"))
    group = analyze_subgroups(rare, **SHARED, subgroups=["rare"]).subgroups[0]
    assert group.status == "not_estimable" and "needs two" in group.reason
    few = next(level for level in group.levels if level.level == "rare")
    assert few.comparison.status == "not_estimable" and few.adjusted_p_value is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subgroups": []}, "pre-registered"),
        ({"subgroups": ["severe", "severe"]}, "once"),
        ({"subgroups": ["severe"], "strata": "region"}, "strata"),
        ({"subgroups": ["nothing"]}, "no column"),
        ({"subgroups": ["severe"], "multiplicity": "sidak"}, "multiplicity"),
    ],
)
def test_wrong_subgroups_are_named(units, arguments, message):
    with pytest.raises(InputError, match=message):
        analyze_subgroups(units, **SHARED, **arguments)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_are_those_of_statsmodels(p):
    from statsmodels.stats.multitest import multipletests

    for ours, theirs in (("holm", "holm"), ("benjamini_hochberg", "fdr_bh")):
        assert adjusted(p, ours) == pytest.approx(list(multipletests(p, method=theirs)[1]))


def test_adjusted_p_values_are_those_of_the_definitions():
    p = [0.01, 0.04, 0.03, 0.005]
    assert adjusted(p, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted(p, "benjamini_hochberg") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjusted([0.04, None, 0.01], "holm") == [0.04, None, 0.02]
    assert adjusted([None]) == [None]
    assert adjusted([0.2, 0.1], "none") == [0.2, 0.1]
    with pytest.raises(InputError, match="outside"):
        adjusted([1.2])


def test_the_forest_finds_planted_heterogeneity_and_nothing_where_there_is_none(units):
    shared = {
        "arm": "arm",
        "control": "control",
        "treated": "treated",
        "covariates": ["severe", "age", "region"],
    }
    found = heterogeneity(units, outcome="y", **shared, trees=48)
    assert found.status == "estimated" and found.p_value < 0.001
    assert max(found.importance, key=found.importance.get) == "severe"
    low, _, high = found.groups
    assert high.lower > low.upper
    assert sum(group.units for group in found.groups) == len(units)
    assert found.average_effect == pytest.approx(0.75, abs=0.25)
    none = heterogeneity(units.assign(flat=stats.zscore(units["age"].sample(frac=1, random_state=1).to_numpy())),
                         outcome="flat", **shared, trees=48)  # fmt: skip
    assert none.p_value > 0.01
    assert len(found.to_metadata()["groups"].rows) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.head(20), "a forest needs"),
        (lambda f: f.assign(y=1.0), "does not vary"),
        (lambda f: f.assign(age=f["age"].mask(f.index == 3)), "missing values"),
        (lambda f: f.assign(age=1.0), "no covariate varies"),
        (lambda f: f[f["arm"] == "control"], "treated has 0"),
    ],
)
def test_a_forest_that_cannot_be_grown_says_why(units, change, reason):
    found = heterogeneity(
        change(units), arm="arm", outcome="y", control="control", treated="treated", covariates=["age"]
    )
    assert found.status == "not_estimable" and reason in found.reason
    assert found.p_value is None and not found.groups
    assert found.to_metadata()["reason"] == found.reason


def test_wrong_columns_of_a_forest_are_named(units):
    for wrong in (
        {"outcome": "nothing"},
        {"covariates": ["nothing"]},
        {"covariates": []},
        {"outcome": "region"},
    ):
        with pytest.raises(InputError):
            heterogeneity(
                units, **({"arm": "arm", "outcome": "y", "control": "control", "treated": "treated",
                           "covariates": ["age"]} | wrong),
            )  # fmt: skip


def test_the_aa_check_passes_a_right_analysis_and_catches_ignored_clusters(units):
    assert aa_check(units, outcome="y", draws=150).status == "passed"
    ignored = aa_check(units, outcome="shared", randomized="cluster", draws=100)
    assert ignored.status == "failed" and ignored.share > 0.2
    assert (
        aa_check(units, outcome="shared", randomized="cluster", cluster="cluster", draws=100).status
        == "passed"
    )


def test_the_aa_check_says_what_it_cannot_judge(units):
    assert "does not vary" in aa_check(units.assign(y=1.0), outcome="y", draws=100).detail
    assert aa_check(units.head(20), outcome="y", draws=100).status == "not_estimable"
    with pytest.raises(InputError, match="at least 100"):
        aa_check(units, outcome="y", draws=10)
    with pytest.raises(InputError, match="no column"):
        aa_check(units, outcome="y", randomized="nothing")
