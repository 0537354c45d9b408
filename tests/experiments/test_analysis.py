"""Results against independent implementations, merging of partitions, analysis sets, missing outcomes."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import analyze, analyze_statistics, merge, summarize


@pytest.fixture(scope="module")
def units() -> pd.DataFrame:
    rng = np.random.default_rng(17)
    n = 3_000
    before = rng.normal(0, 1, n)
    arm = rng.choice(["control", "treated"], n, p=[0.4, 0.6])
    cluster = rng.integers(0, 60, n)
    shared = rng.normal(0, 0.5, 60)[cluster]
    treated = arm == "treated"
    visits = rng.poisson(4, n) + 1
    time = np.ceil(rng.exponential(20 / np.where(treated, 0.7, 1.0)))
    censoring = rng.integers(5, 40, n)
    return pd.DataFrame(
        {
            "unit": np.arange(n),
            "arm": arm,
            "before": before,
            "spend": 50 + 2 * before + 0.4 * treated + shared + rng.normal(0, 1, n),
            "responded": rng.random(n) < 0.25 + 0.07 * treated,
            "visits": visits,
            "scripts": rng.binomial(visits, 0.3 + 0.03 * treated),
            "region": rng.choice(["north", "south", "west"], n),
            "cluster": cluster,
            "time": np.minimum(time, censoring),
            "event": (time <= censoring).astype(int),
        }
    )


def both(units, column):
    return units.loc[units["arm"] == "treated", column], units.loc[units["arm"] == "control", column]


def test_means_are_welchs(units):
    found = analyze(units, arm="arm", outcome="spend", control="control").comparison()
    treated, control = both(units, "spend")
    reference = stats.ttest_ind(treated, control, equal_var=False)
    interval = reference.confidence_interval()
    assert found.effect == pytest.approx(treated.mean() - control.mean())
    assert (found.statistic, found.p_value) == pytest.approx((reference.statistic, reference.pvalue))
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.degrees_of_freedom == pytest.approx(reference.df)
    assert 2 * stats.norm.sf(abs(found.z)) == pytest.approx(found.p_value)


def test_many_events_are_the_score_test_and_its_interval():
    from scipy.optimize import minimize_scalar

    frame = pd.DataFrame(
        {"arm": ["t"] * 900 + ["c"] * 700, "y": [1] * 300 + [0] * 600 + [1] * 260 + [0] * 440}
    )
    found = analyze(frame, arm="arm", outcome="y", kind="proportion", control="c").comparison()
    table = [[300, 600], [260, 440]]
    assert found.statistic**2 == pytest.approx(stats.chi2_contingency(table, correction=False).statistic)
    assert found.z == found.statistic and found.method == "score test, score interval"
    for limit, side in zip(found.interval, (1, -1), strict=True):
        # The most likely rates that differ by the limit, found by brute force.
        rate = minimize_scalar(
            lambda p, gap=limit: -stats.binom.logpmf(300, 900, p) - stats.binom.logpmf(260, 700, p - gap),
            bounds=(max(0.0, limit) + 1e-9, min(1.0, 1.0 + limit) - 1e-9), method="bounded", options={"xatol": 1e-10},
        ).x  # fmt: skip
        variance = rate * (1 - rate) / 900 + (rate - limit) * (1 - rate + limit) / 700
        assert (found.effect - limit) / variance**0.5 == pytest.approx(side * 1.959964, abs=1e-5)


def test_a_rate_of_zero_is_not_certain():
    frame = pd.DataFrame({"arm": ["t"] * 40 + ["c"] * 40, "y": [1] * 8 + [0] * 72})
    found = analyze(frame, arm="arm", outcome="y", kind="proportion", control="c").comparison()
    assert found.effect == 0.2 and found.lower < 0.11 and found.upper > 0.3
    assert found.standard_error == pytest.approx((found.effect - found.lower) / 1.959964, rel=1e-6)
    assert found.relative_effect is None
    every = analyze(
        frame.assign(y=1 - frame["y"]), arm="arm", outcome="y", kind="proportion", control="c"
    ).comparison()
    assert every.relative_effect == pytest.approx(-0.2) and every.relative_lower is None


def test_ratio_by_the_delta_method_agrees_with_the_bootstrap(units):
    found = analyze(
        units, arm="arm", outcome="scripts", denominator="visits", kind="ratio", control="control"
    ).comparison()
    rng = np.random.default_rng(1)
    draws = {}
    for name in ("treated", "control"):
        part = units[units["arm"] == name]
        top, bottom = part["scripts"].to_numpy(), part["visits"].to_numpy()
        pick = rng.integers(0, len(part), (1_000, len(part)))
        draws[name] = top[pick].sum(1) / bottom[pick].sum(1)
    difference = draws["treated"] - draws["control"]
    assert found.standard_error == pytest.approx(difference.std(), rel=0.08)
    treated, control = (units[units["arm"] == name] for name in ("treated", "control"))
    assert found.effect == pytest.approx(
        treated["scripts"].sum() / treated["visits"].sum()
        - control["scripts"].sum() / control["visits"].sum()
    )


def test_cuped_is_the_pooled_slope_and_shrinks_the_variance(units):
    import statsmodels.api as sm

    found = analyze(units, arm="arm", outcome="spend", covariate="before", control="control").comparison()
    design = np.column_stack([np.ones(len(units)), units["arm"] == "treated", units["before"]]).astype(float)
    reference = sm.OLS(units["spend"].to_numpy(), design).fit(cov_type="HC1")
    assert found.effect == pytest.approx(reference.params[1], rel=1e-9)
    assert found.standard_error == pytest.approx(reference.bse[1], rel=0.01)
    correlation = np.corrcoef(units["spend"], units["before"])[0, 1]
    assert found.variance_reduction == pytest.approx(correlation**2, abs=0.02)
    assert found.unadjusted_effect == pytest.approx(
        analyze(units, arm="arm", outcome="spend", control="control").effect
    )


def test_an_unrelated_covariate_changes_next_to_nothing(units):
    noise = units.assign(noise=np.random.default_rng(2).normal(size=len(units)))
    plain = analyze(noise, arm="arm", outcome="spend", control="control").comparison()
    found = analyze(noise, arm="arm", outcome="spend", covariate="noise", control="control").comparison()
    assert found.variance_reduction == pytest.approx(0.0, abs=0.005)
    assert found.effect == pytest.approx(plain.effect, abs=0.02)


@pytest.mark.parametrize("nested", [False, True])
def test_clustered_errors_are_statsmodels(units, nested):
    import statsmodels.api as sm

    frame = units.assign(arm=np.where(units["cluster"] % 2 == 0, "control", "treated")) if nested else units
    found = analyze(frame, arm="arm", outcome="spend", cluster="cluster", control="control").comparison()
    design = sm.add_constant((frame["arm"] == "treated").to_numpy(float))
    reference = sm.OLS(frame["spend"].to_numpy(), design).fit(
        cov_type="cluster", cov_kwds={"groups": frame["cluster"].to_numpy(), "use_correction": False}
    )
    assert found.effect == pytest.approx(reference.params[1])
    if not nested:
        assert found.standard_error == pytest.approx(reference.bse[1] * np.sqrt(60 / 59), rel=1e-9)
        assert found.degrees_of_freedom == 59
        return
    # CR2 (Bell and McCaffrey): each cluster's residual total over the root of 1 - its share of the arm.
    variance = 0.0
    for _, part in frame.groupby("arm"):
        residual = (part["spend"] - part["spend"].mean()).groupby(part["cluster"]).sum() / len(part)
        variance += (residual**2 / (1 - part.groupby("cluster").size() / len(part))).sum()
    assert found.standard_error >= variance**0.5 - 1e-12
    assert found.standard_error == pytest.approx(variance**0.5, rel=0.01)
    assert 40 < found.degrees_of_freedom <= 58


def test_clusters_in_strata_are_weighted_by_their_units(units):
    """Territories of whole clusters: each stratum is an experiment of its own, weighted by its units."""
    import statsmodels.api as sm

    frame = units.assign(territory=(units["cluster"] % 3).astype(str))
    found = analyze(
        frame, arm="arm", outcome="spend", cluster="cluster", strata="territory", control="control"
    ).comparison()
    effect = variance = 0.0
    for _, part in frame.groupby("territory"):
        design = sm.add_constant((part["arm"] == "treated").to_numpy(float))
        reference = sm.OLS(part["spend"].to_numpy(), design).fit(
            cov_type="cluster", cov_kwds={"groups": part["cluster"].to_numpy(), "use_correction": False}
        )
        weight = len(part) / len(frame)
        effect += weight * reference.params[1]
        variance += weight**2 * reference.bse[1] ** 2
    assert found.effect == pytest.approx(effect)
    assert found.standard_error == pytest.approx((variance * 60 / 59) ** 0.5)


def test_clusters_of_one_are_units(units):
    small = units.head(600)
    one = analyze(
        small, arm="arm", outcome="spend", cluster="unit", covariate="before", control="control"
    ).comparison()
    plain = analyze(small, arm="arm", outcome="spend", covariate="before", control="control").comparison()
    assert one.effect == pytest.approx(plain.effect, abs=2e-3)
    assert one.standard_error == pytest.approx(plain.standard_error, rel=0.01)


def test_strata_are_weighted_by_their_units(units):
    found = analyze(units, arm="arm", outcome="spend", strata="region", control="control").comparison()
    effect = variance = 0.0
    for _, part in units.groupby("region"):
        treated, control = both(part, "spend")
        weight = len(part) / len(units)
        effect += weight * (treated.mean() - control.mean())
        variance += weight**2 * (treated.var() / len(treated) + control.var() / len(control))
    assert (found.effect, found.standard_error) == pytest.approx((effect, variance**0.5))


def test_time_to_event_is_statsmodels(units):
    from statsmodels.duration.hazard_regression import PHReg
    from statsmodels.duration.survfunc import survdiff

    arguments = {"arm": "arm", "outcome": "time", "event": "event", "kind": "survival", "control": "control"}
    treated = (units["arm"] == "treated").to_numpy(float)
    for strata in (None, "region"):
        found = analyze(units, **arguments, strata=strata).comparison()
        groups = None if strata is None else units[strata].to_numpy()
        chi2, p = survdiff(units["time"], units["event"], treated, strata=groups)
        assert found.statistic**2 == pytest.approx(chi2)
        assert found.p_value == pytest.approx(p)
        cox = PHReg(units["time"], treated[:, None], status=units["event"], strata=groups, ties="efron").fit(
            disp=0
        )
        assert np.log(found.effect) == pytest.approx(cox.params[0], abs=1e-6)
        assert found.standard_error == pytest.approx(cox.bse[0], rel=1e-4)
        assert found.effect < 1 and found.z < 0


def test_log_rank_and_cox_on_freireichs_leukaemia_trial():
    """Freireich et al. (1963), 6-MP against placebo: log-rank chi-squared 16.79, O 9 and E 19.25; Cox (Efron)
    log hazard ratio 1.572, standard error 0.412 for placebo (Kleinbaum and Klein, Survival Analysis)."""
    mp = [(t, 1) for t in (6, 6, 6, 7, 10, 13, 16, 22, 23)]
    mp += [(t, 0) for t in (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35)]
    placebo = [(t, 1) for t in (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)]
    frame = pd.DataFrame(mp + placebo, columns=["time", "event"]).assign(arm=["6-MP"] * 21 + ["placebo"] * 21)
    found = analyze(
        frame, arm="arm", outcome="time", event="event", kind="survival", control="6-MP"
    ).comparison()
    assert found.statistic**2 == pytest.approx(16.79, abs=5e-3)
    assert np.log(found.effect) == pytest.approx(1.572, abs=5e-4)
    assert found.standard_error == pytest.approx(0.412, abs=5e-4)


def test_restricted_mean_without_censoring_is_the_mean():
    rng = np.random.default_rng(9)
    frame = pd.DataFrame({"arm": np.repeat(["c", "t"], 400), "time": rng.exponential(1, 800), "event": 1})
    found = analyze(
        frame, arm="arm", outcome="time", event="event", kind="survival", control="c", horizon=1.5
    ).comparison()
    capped = frame.assign(time=frame["time"].clip(upper=1.5))
    treated, control = (capped.loc[capped["arm"] == name, "time"] for name in ("t", "c"))
    assert found.restricted_mean_difference == pytest.approx(treated.mean() - control.mean())
    half = 1.959964 * np.sqrt(treated.var(ddof=0) / 400 + control.var(ddof=0) / 400)
    assert found.restricted_mean_upper - found.restricted_mean_difference == pytest.approx(half, rel=1e-5)


CASES = [
    {"outcome": "spend", "covariate": "before"},
    {"outcome": "spend", "covariate": "before", "strata": "region"},
    {"outcome": "spend", "covariate": "before", "cluster": "cluster"},
    {"outcome": "spend", "covariate": "before", "cluster": "cluster", "strata": "region"},
    {"outcome": "responded", "kind": "proportion"},
    {"outcome": "scripts", "denominator": "visits", "kind": "ratio", "covariate": "before"},
    {"outcome": "time", "event": "event", "kind": "survival", "strata": "region"},
]


def with_gaps(units):
    outcome, covariate = units["spend"], units["before"]
    return units.assign(
        spend=outcome.mask(units["unit"] % 13 == 0), before=covariate.mask(units["unit"] % 7 == 0)
    )


def figures(analysis):
    values = []
    for item in (*analysis.arms, *analysis.comparisons):
        values += [value for value in item.model_dump().values() if isinstance(value, (int, float))]
    return values


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 2_999), min_size=1, max_size=4, unique=True), case=st.sampled_from(CASES))
def test_partitions_merge_to_the_whole(units, cuts, case):
    frame = with_gaps(units)
    edges = [0, *sorted(cuts), len(frame)]
    parts = [summarize(frame.iloc[a:b], arm="arm", **case) for a, b in itertools.pairwise(edges)]
    merged = analyze_statistics(merge(parts), control="control")
    whole = analyze(frame, arm="arm", control="control", **case)
    assert figures(merged) == pytest.approx(figures(whole), rel=1e-8, abs=1e-10)
    # The order of the parts does not matter.
    turned = analyze_statistics(merge(parts[::-1]), control="control")
    assert figures(turned) == pytest.approx(figures(whole), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engine_says_what_pandas_says(units, case, tmp_path):
    frame = with_gaps(units)
    frame.to_parquet(tmp_path / "units.parquet")
    before = frame.copy(deep=True)
    here = analyze(frame, arm="arm", control="control", **case)
    there = analyze(tmp_path / "units.parquet", arm="arm", control="control", **case)
    assert figures(here) == pytest.approx(figures(there), rel=1e-9, abs=1e-11)
    pd.testing.assert_frame_equal(frame, before)


def test_large_values_do_not_cancel():
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"arm": np.repeat(["c", "t"], 500), "y": rng.normal(0, 1, 1000)})
    plain = analyze(frame, arm="arm", outcome="y", control="c").comparison()
    shifted = analyze(frame.assign(y=frame["y"] + 1e9), arm="arm", outcome="y", control="c").comparison()
    assert shifted.standard_error == pytest.approx(plain.standard_error, rel=1e-6)


def test_analysis_sets(units):
    rng = np.random.default_rng(8)
    switched = rng.random(len(units)) < 0.1
    other = units["arm"].map({"control": "treated", "treated": "control"})
    frame = units.assign(received=units["arm"].mask(switched, other), kept=rng.random(len(units)) < 0.9)
    frame.loc[frame.index[:5], "received"] = None
    shared = {"arm": "arm", "outcome": "spend", "control": "control"}
    itt = analyze(frame, **shared)
    assert itt.not_analysed == 0 and sum(arm.units for arm in itt.arms) == len(frame)
    per_protocol = analyze(frame, **shared, analysis_set="per_protocol", received="received", adherent="kept")
    mask = (frame["received"] == frame["arm"]) & frame["kept"]
    assert sum(arm.units for arm in per_protocol.arms) == mask.sum()
    assert per_protocol.not_analysed == (~mask).sum()
    assert per_protocol.effect == pytest.approx(analyze(frame[mask], **shared).effect)
    treated = analyze(frame, **shared, analysis_set="as_treated", received="received")
    known = frame.dropna(subset=["received"])
    assert treated.effect == pytest.approx(analyze(known.assign(arm=known["received"]), **shared).effect)
    assert treated.not_analysed == 5
    assert any("randomization" in note for note in treated.notes)


def test_missing_outcomes_follow_the_policy(units):
    rng = np.random.default_rng(12)
    gone = rng.random(len(units)) < np.where(units["arm"] == "treated", 0.15, 0.03)
    frame = units.assign(responded=units["responded"].astype(float).mask(gone))
    shared = {"arm": "arm", "outcome": "responded", "kind": "proportion", "control": "control"}
    complete = analyze(frame, **shared)
    assert complete.effect == pytest.approx(analyze(frame.dropna(subset=["responded"]), **shared).effect)
    assert complete.arms[1].missing == int(gone[units["arm"] == "treated"].sum())
    assert any("missing outcomes differ" in note for note in complete.notes)
    none = analyze(frame, **shared, missing="non_responder")
    assert none.effect == pytest.approx(analyze(frame.fillna({"responded": 0}), **shared).effect)
    bounds = analyze(frame, **shared, missing="bounds").comparison()
    low = frame.assign(responded=frame["responded"].fillna((frame["arm"] == "control").astype(float)))
    high = frame.assign(responded=frame["responded"].fillna((frame["arm"] == "treated").astype(float)))
    assert bounds.bounds == pytest.approx((analyze(low, **shared).effect, analyze(high, **shared).effect))
    with pytest.raises(InputError, match="missing='refuse'"):
        analyze(frame, **shared, missing="refuse")
    with pytest.raises(InputError, match="outcome_range"):
        analyze(frame, arm="arm", outcome="spend", control="control", missing="bounds")


def test_several_arms_are_adjusted(units):
    arm = units["arm"].where(units["unit"] % 3 != 0, "other")
    found = analyze(units.assign(arm=arm), arm="arm", outcome="spend", control="control")
    assert [item.arm for item in found.comparisons] == ["other", "treated"]
    p = sorted(item.p_value for item in found.comparisons)
    assert sorted(item.adjusted_p_value for item in found.comparisons) == pytest.approx(
        sorted([min(1, 2 * p[0]), max(min(1, 2 * p[0]), p[1])])
    )
    with pytest.raises(InputError, match="name one of the arms"):
        _ = found.effect


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        (lambda f: f.head(20), {}, "at least 20 are needed"),
        (lambda f: f, {"arms": ["control", "treated", "third"]}, "third has no unit"),
        (lambda f: f.assign(spend=1.0), {}, "does not vary"),
        (lambda f: f.assign(spend=f["spend"].mask(f["arm"] == "treated")), {}, "treated has 0 units"),
        (lambda f: f.assign(spend=0.1), {}, "does not vary"),
        (lambda f: f.assign(cluster=f["cluster"] % 3), {"cluster": "cluster"}, "at least 5"),
        (lambda f: f.assign(visits=0), {"kind": "ratio", "denominator": "visits"}, "sums to 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_estimated_says_why(units, change, arguments, reason):
    found = analyze(change(units), **({"arm": "arm", "outcome": "spend", "control": "control"} | arguments))
    refused = [item for item in found.comparisons if item.status == "not_estimable"]
    assert (refused and reason in refused[-1].reason) or any(reason in item.reason for item in refused)
    for item in refused:
        assert item.effect is None and item.p_value is None and item.interval is None and item.z is None
    assert "not estimable" in [row[1] for row in found.to_metadata()["comparisons"].rows]


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        (
            lambda f: f.assign(event=f["event"] * (f["arm"] == "control")),
            {"outcome": "time", "kind": "survival", "event": "event"}, "no finite estimate",
        ),
        (
            lambda f: f.assign(event=(f["unit"] < 4).astype(int)),
            {"outcome": "time", "kind": "survival", "event": "event"}, "fewer than 10 events",
        ),
        (
            lambda f: f.assign(time=np.where(f["arm"] == "control", 1.0, 2.0), event=1),
            {"outcome": "time", "kind": "survival", "event": "event"}, "no maximum",
        ),
    ],
)  # fmt: skip
def test_a_test_that_exists_is_given_where_a_hazard_ratio_does_not(units, change, arguments, reason):
    found = analyze(change(units), **({"arm": "arm", "control": "control"} | arguments))
    tested = [item for item in found.comparisons if item.status == "tested"]
    assert tested and any(reason in item.reason for item in tested)
    for item in tested:
        assert item.effect is None and item.interval is None and 0 <= item.p_value <= 1 and item.z is not None
    assert "not estimable" in [row[1] for row in found.to_metadata()["comparisons"].rows]


@pytest.mark.parametrize(
    ("change", "helpers", "note"),
    [
        (lambda f: f.assign(before=0.0), {"covariate": "before"}, "without the covariate: it does not vary"),
        # The mean of this constant is not the constant itself, by rounding.
        (lambda f: f.assign(before=0.1), {"covariate": "before"}, "without the covariate: it does not vary"),
        (lambda f: f.assign(before=np.nan), {"covariate": "before"}, "without the covariate: no unit has it"),
        (
            lambda f: f.assign(region=f["region"].mask(f["unit"] == 0, "alone")),
            {"strata": "region"}, "pooled over the strata: arm",
        ),
        (
            lambda f: f.assign(region=np.where((f["arm"] == "treated") & (f["unit"] % 2 == 0), "one arm", "both")),
            {"strata": "region"}, "fewer than 2 units with outcome in stratum one arm",
        ),
        (lambda f: f.assign(before=f["spend"]), {"covariate": "before"}, "leaves the outcome without variation"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cluster", [None, "cluster"])
@pytest.mark.parametrize("kind", [{"outcome": "spend"}, {"outcome": "responded", "kind": "proportion"},
                                  {"outcome": "scripts", "kind": "ratio", "denominator": "visits"}])  # fmt: skip
def test_a_helper_that_fails_leaves_the_plain_effect(units, change, helpers, note, cluster, kind):
    changed = change(units)
    shared = {"arm": "arm", "control": "control", "cluster": cluster, **kind}
    found = analyze(changed, **shared, **helpers).comparison()
    if "leaves the outcome" in note and kind["outcome"] != "spend":
        assert found.note is None
        return
    if cluster and "stratum one arm" in note:
        # Clusters of both arms cross the strata: enough of them are in each.
        note = "pooled over the strata" if found.note else ""
    plain = analyze(changed, **shared).comparison()
    assert found.status == "estimated"
    if note:
        assert found.note is not None and note in found.note
        assert found.method == plain.method
        for name in ("effect", "standard_error", "lower", "upper", "p_value", "z", "relative_effect"):
            assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-9)
        assert any(note in line for line in analyze(changed, **shared, **helpers).notes)


def test_a_tiny_stratum_leaves_the_hazard_ratio_and_a_subgroup_its_levels(units):
    shared = {"arm": "arm", "control": "control", "outcome": "time", "kind": "survival", "event": "event"}
    alone = units.assign(region=units["arm"])
    found = analyze(alone, **shared, strata="region").comparison()
    assert found.note == "pooled over the strata: at no event time were units of both arms at risk"
    assert found.effect == pytest.approx(analyze(units, **shared).effect)
    from e2i_dagster.experiments import analyze_subgroups

    empty = units.assign(before=units["before"].mask(units["region"] == "north"))
    grouped = analyze_subgroups(
        empty, arm="arm", control="control", outcome="spend", covariate="before", subgroups=["region"]
    )
    assert all(level.comparison.status == "estimated" for level in grouped.subgroups[0].levels)
    assert any("no unit has it" in (level.comparison.note or "") for level in grouped.subgroups[0].levels)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda f: f.iloc[:0], {}, "no rows"),
        (lambda f: f, {"control": "placebo"}, "'placebo' is no arm"),
        (lambda f: f[f["arm"] == "control"], {}, "one arm alone"),
        (lambda f: f, {"outcome": "nothing"}, "no column 'nothing'"),
        (lambda f: f, {"outcome": "region"}, "numbers or truth values"),
        (lambda f: f.assign(arm=f["arm"].mask(f["unit"] == 3)), {}, "1 units have none"),
        (lambda f: f.assign(spend=f["spend"].mask(f["unit"] == 3, np.inf)), {}, "infinite"),
        (lambda f: f, {"kind": "proportion"}, "not 0 or 1"),
        (lambda f: f, {"kind": "median"}, "Use one of"),
        (lambda f: f, {"kind": "ratio"}, "denominator"),
        (lambda f: f, {"kind": "survival", "outcome": "time"}, "event"),
        (lambda f: f.assign(time=-1), {"kind": "survival", "outcome": "time", "event": "event"}, "negative"),
        (lambda f: f, {"kind": "survival", "outcome": "time", "event": "visits"}, "not 0 or 1"),
        (lambda f: f, {"kind": "survival", "outcome": "time", "event": "event", "horizon": 1e9}, "horizon"),
        (lambda f: f, {"analysis_set": "everyone"}, "Use one of"),
        (lambda f: f, {"analysis_set": "as_treated"}, "received"),
        (lambda f: f, {"received": "arm"}, "no use"),
        (lambda f: f, {"missing": "non_responder"}, "non_responder"),
        (lambda f: f, {"confidence": 1.0}, "confidence"),
        (lambda f: f, {"arms": ["control", "other"]}, "not among the arms"),
        (lambda f: f, {"multiplicity": "bonferoni"}, "multiplicity"),
        (lambda f: f, {"min_per_arm": 1}, "min_per_arm"),
        (lambda f: f, {"unit": "cluster"}, "assigned twice with different arms"),
        (lambda f: pd.concat([f, f.head(3)]), {"unit": "unit"}, "3 units in 'unit' have several rows"),
        (
            lambda f: f.assign(a=pd.Timestamp("2024-02-01"), o=pd.Timestamp("2024-01-01")),
            {"assigned_at": "a", "outcome_at": "o"}, "before the assignment",
        ),
        (
            lambda f: f.assign(a=pd.Timestamp("2024-02-01"), o=pd.Timestamp("2024-03-01")),
            {"assigned_at": "a", "covariate": "before", "covariate_at": "o"}, "not measured before",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_named(units, change, arguments, message):
    with pytest.raises(InputError, match=message):
        analyze(change(units), **({"arm": "arm", "outcome": "spend", "control": "control"} | arguments))


@pytest.mark.parametrize("engine", ["pandas", "arrow", "duckdb"])
def test_frames_of_every_make_say_the_same(units, engine):
    """Categories, nullable integers, times with and without zone, dates."""
    import datetime as dt

    import duckdb
    import pyarrow as pa

    frame = units.assign(
        arm=pd.Categorical(units["arm"]), visits=units["visits"].astype("Int64").mask(units["unit"] == 3),
        assigned=pd.Timestamp("2024-01-01", tz="UTC"), seen=pd.Timestamp("2024-01-05"), day=dt.date(2024, 1, 4),
    )  # fmt: skip
    table = pa.Table.from_pandas(frame)
    given_ = {"pandas": frame, "arrow": table, "duckdb": duckdb.from_arrow(table)}[engine]
    shared = {
        "arm": "arm",
        "outcome": "visits",
        "control": "control",
        "assigned_at": "assigned",
        "unit": "unit",
    }
    plain = analyze(units[units["unit"] != 3], arm="arm", outcome="visits", control="control").effect
    assert analyze(given_, **shared, outcome_at="seen").effect == pytest.approx(plain)
    if engine != "pandas":
        assert analyze(given_, **shared, outcome_at="day").effect == pytest.approx(plain)
    with pytest.raises(InputError, match="dates or times"):
        analyze(given_, **shared, outcome_at="spend")


@pytest.mark.parametrize("engine", ["pandas", "arrow", "duckdb"])
def test_a_day_of_the_assignment_is_neither_early_nor_late(units, engine):
    """An outcome or baseline dated the day of an assignment at 13:52 is taken, the day before or after is not."""
    import duckdb
    import pyarrow as pa

    frame = units.assign(a=pd.Timestamp("2024-02-01T13:52"), same=pd.Timestamp("2024-02-01"),
                         before_it=pd.Timestamp("2024-01-31"), after_it=pd.Timestamp("2024-02-02"))  # fmt: skip
    table = pa.Table.from_pandas(frame)
    given_ = {"pandas": frame, "arrow": table, "duckdb": duckdb.from_arrow(table)}[engine]
    shared = {"arm": "arm", "outcome": "spend", "control": "control", "assigned_at": "a"}
    assert analyze(given_, **shared, outcome_at="same").effect is not None
    assert analyze(given_, **shared, covariate="before", covariate_at="same").effect is not None
    with pytest.raises(InputError, match="before the assignment"):
        analyze(given_, **shared, outcome_at="before_it")
    with pytest.raises(InputError, match="not measured before"):
        analyze(given_, **shared, covariate="before", covariate_at="after_it")
    with pytest.raises(InputError, match="not measured before"):
        analyze(given_, **shared, covariate="before", covariate_at="a")


@pytest.mark.parametrize(
    ("given_", "message"), [([1, 2], "is no frame"), ("nothing.parquet", "cannot be read")]
)
def test_what_is_no_frame_is_named(given_, message):
    with pytest.raises(InputError, match=message):
        analyze(given_, arm="arm", outcome="y", control="c")


def test_parts_that_differ_are_not_merged(units):
    mean = summarize(units, arm="arm", outcome="spend")
    with pytest.raises(InputError, match="differ in kind"):
        merge([mean, summarize(units, arm="arm", outcome="responded", kind="proportion")])
    with pytest.raises(InputError, match="clusters"):
        merge([mean, summarize(units, arm="arm", outcome="spend", cluster="cluster")])
    with pytest.raises(InputError, match="nothing"):
        merge([])


def test_a_covariate_that_the_treatment_moved_is_noted(units):
    moved = units.assign(before=units["before"] + 1.0 * (units["arm"] == "treated"))
    found = analyze(moved, arm="arm", outcome="spend", covariate="before", control="control")
    assert any("before the assignment" in note for note in found.notes)


def test_shown_means_of_few_units_are_withheld(units):
    found = analyze(units.head(12), arm="arm", outcome="spend", control="control", min_per_arm=2)
    assert {row[1:] for row in found.to_metadata()["arms"].rows} == {("<11", "<11", "0", None)}
