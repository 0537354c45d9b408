"""Experiments: type-I error of every stopping rule, time of boundaries, analysis of many units, coverage.

Each part prints its progress and returns figures; ``PARTS`` lists them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.experiments import analyze, boundaries, final_estimate
from e2i_dagster.experiments.designs.cluster_simulation import DESIGNS, SIZES, cluster_p_values, draw_clusters
from e2i_dagster.experiments.statistics.stopping import RULES

ALPHA = 0.05
LOOKS = (2, 3, 5, 10)
RANGE = (0.047, 0.053)
LEVEL_OF_CLUSTERS = 0.055
GOAL_OF_REFUTERS = 0.05
SECONDS_PER_ANALYSIS = 5.0


def figure(
    value: float, unit: str, *, goal: Any = None, peer: str | None = None, holds: bool = True
) -> dict[str, Any]:
    return {"value": value, "unit": unit, "goal": goal, "peer": peer, "holds": bool(holds)}


def _gamma(rule: str) -> float | None:
    return -4.0 if rule == "hwang_shih_decani" else None


def _statistics(looks: int, trials: int, rng: np.random.Generator) -> np.ndarray:
    """Standardized statistics (trials, looks) without any effect, at equal steps of information."""
    number = np.arange(1, looks + 1)
    return np.cumsum(rng.normal(size=(trials, looks)), axis=1) / np.sqrt(number)


def type_one_error(options: argparse.Namespace) -> dict[str, Any]:
    """Share of null trials that ever cross, beside looking at every look with the fixed boundary."""
    rng = np.random.default_rng(options.seed)
    figures: dict[str, Any] = {}
    for looks in LOOKS:
        z = np.abs(_statistics(looks, options.trials, rng))
        naive = float((z >= 1.959964).any(axis=1).mean())
        for rule in RULES:
            plan = boundaries(rule, np.arange(1, looks + 1) / looks, alpha=ALPHA, gamma=_gamma(rule))
            error = float((z >= np.array(plan.z)).any(axis=1).mean())
            print(
                f"type-I error {rule:<18} {looks:>2} looks {error:.4f}  (1.96 at each: {naive:.4f})",
                flush=True,
            )
            figures[f"type_1_error_{rule}_{looks}_looks"] = figure(
                round(error, 4), f"of {options.trials:,} null trials", goal=RANGE,
                peer=f"1.96 at every look: {naive:.4f}", holds=RANGE[0] <= error <= RANGE[1],
            )  # fmt: skip
    # Looks that nobody planned: their fractions are drawn anew for every block of trials.
    crossed = []
    for _ in range(200):
        fractions = np.sort(rng.uniform(0.05, 1.0, 4))
        fractions[-1] = 1.0
        step = np.diff(fractions, prepend=0.0)
        score = np.cumsum(rng.normal(size=(options.trials // 200, 4)) * np.sqrt(step), axis=1)
        plan = boundaries("lan_demets_obf", fractions, alpha=ALPHA)
        crossed.append((np.abs(score / np.sqrt(fractions)) >= np.array(plan.z)).any(axis=1).mean())
    error = float(np.mean(crossed))
    print(f"type-I error lan_demets_obf, unplanned looks {error:.4f}", flush=True)
    figures["type_1_error_unplanned_looks"] = figure(
        round(error, 4), f"of {options.trials:,} null trials", goal=RANGE,
        holds=RANGE[0] <= error <= RANGE[1],
    )  # fmt: skip
    return figures


def level_of_few_clusters(options: argparse.Namespace) -> dict[str, Any]:
    """Largest share of null trials of 5 to 20 clusters an arm that reject, over sizes and kinds of outcome."""
    largest, where = 0.0, ""
    draws = min(options.trials, 20_000)
    for clusters in DESIGNS:
        for sizes, given in SIZES.items():
            units = [np.resize(given, count) for count in clusters]
            for binary in (False, True):
                rng = np.random.default_rng(options.seed)
                totals = [draw_clusters(n, draws, rng, binary=binary) for n in units]
                error = float((cluster_p_values(totals, units) < ALPHA).mean())
                name = f"{clusters[0]} v {clusters[1]}, {sizes}, {'0/1' if binary else 'continuous'}"
                print(f"type-I error clusters {name}: {error:.4f}", flush=True)
                if error > largest:
                    largest, where = error, name
    return {
        "largest_type_1_error_few_clusters": figure(
            round(largest, 4), f"of {draws:,} null trials", goal=LEVEL_OF_CLUSTERS, peer=where,
            holds=largest <= LEVEL_OF_CLUSTERS,
        )
    }  # fmt: skip


def refuters(options: argparse.Namespace) -> dict[str, Any]:
    """Share of right answers that a refuter fails, and of planted unmeasured confounders that are caught.

    Trials of 400 units, randomized and confounded by measured columns alike, with effects of 0 to 2 standard
    deviations. The refuter of an unobserved confounder bounds an effect and is judged where one is planted.
    """
    from e2i_dagster.causal.nuisances import fit_nuisances
    from e2i_dagster.causal.refute import refute, unobserved_confounder
    from e2i_dagster.causal.rows import CausalRows, causal_rows
    from e2i_dagster.causal.sensitivity import assess_sensitivity
    from e2i_dagster.config.causal import CausalPolicy
    from e2i_dagster.policy_files.environment import CHECKOUT

    policy = CausalPolicy.load(CHECKOUT / "config")

    def trial(rng: np.random.Generator, confounding: float, size: float, hidden: float) -> CausalRows:
        severity, academic, unseen = rng.normal(size=(3, 400))
        treated = rng.random(400) < 1 / (1 + np.exp(-confounding * severity - hidden * unseen))
        outcome = severity + 0.5 * academic + hidden * unseen + rng.normal(size=400)
        outcome += size * outcome.std() * treated
        columns = {"severity": severity, "academic": academic, "treated": treated, "outcome": outcome}
        return causal_rows(
            pd.DataFrame(columns),
            treatment="treated",
            outcome="outcome",
            confounders=["severity", "academic"],
        )

    failed: dict[str, int] = {}
    trials = 0
    for draw in range(options.draws):
        for confounding in (0.0, 0.8):
            for size in (0.0, 0.5, 1.0, 1.5, 2.0):
                seeds = [options.seed, draw, int(10 * confounding), int(10 * size)]
                rows = trial(np.random.default_rng(seeds), confounding, size, 0.0)
                nuisances = fit_nuisances(rows, floor=policy.propensity_floor, seed=options.seed)
                bounds = assess_sensitivity(rows, nuisances, level=policy.level)
                trials += 1
                for refutation in refute(rows, nuisances, bounds, policy, seed=options.seed):
                    if refutation.name != "unobserved_confounder":
                        failed[refutation.name] = failed.get(refutation.name, 0) + (not refutation.passed)
    for name, count in failed.items():
        print(f"refuter {name}: fails {count} of {trials} right answers", flush=True)
    planted, caught = 5 * options.draws, 0
    for draw in range(planted):
        rows = trial(np.random.default_rng([options.seed, draw]), 0.8, 0.0, 0.8)
        nuisances = fit_nuisances(rows, floor=policy.propensity_floor, seed=options.seed)
        bounds = assess_sensitivity(rows, nuisances, level=policy.level)
        caught += not unobserved_confounder(bounds, policy).passed
    worst = max(failed, key=lambda name: failed[name])
    share, missed = failed[worst] / trials, 1 - caught / planted
    return {
        "largest_false_failures_of_a_refuter": figure(
            round(share, 4), f"of {trials} draws", goal=GOAL_OF_REFUTERS, peer=worst, holds=share <= GOAL_OF_REFUTERS
        ),
        "planted_unmeasured_confounder_missed": figure(
            round(missed, 4), f"of {planted} draws", goal=GOAL_OF_REFUTERS, holds=missed <= GOAL_OF_REFUTERS
        ),
    }  # fmt: skip


def boundary_time(options: argparse.Namespace) -> dict[str, Any]:
    """Slowest rule, median of repeats."""
    figures = {}
    for looks, goal in ((5, 0.05), (20, 1.0)):
        slowest, name = 0.0, ""
        for rule in RULES:
            times = []
            for _ in range(options.repeats):
                began = time.perf_counter()
                boundaries(rule, np.arange(1, looks + 1) / looks, gamma=_gamma(rule))
                times.append(time.perf_counter() - began)
            if (median := statistics.median(times)) > slowest:
                slowest, name = median, rule
        print(f"boundaries of {looks} looks: {slowest * 1000:.1f} ms ({name})", flush=True)
        figures[f"boundaries_{looks}_looks"] = figure(
            round(slowest * 1000, 2),
            "ms",
            goal=goal * 1000,
            peer=f"slowest rule: {name}",
            holds=slowest < goal,
        )
    return figures


def share_of(trials: int, count: int, expected: float, peer: str | None = None) -> dict[str, Any]:
    """A share that is to lie within three standard errors of ``expected``."""
    slack = 3 * np.sqrt(expected * (1 - expected) / trials)
    return figure(
        round(count / trials, 4), f"of {trials:,} trials", peer=peer,
        goal=[round(expected - slack, 4), round(expected + slack, 4)],
        holds=abs(count / trials - expected) <= slack,
    )  # fmt: skip


def one_sided_errors(units_1: int, units_0: int, level: float) -> np.ndarray:
    """One-sided error, for more and for fewer events, of the test of rates at each common rate from 0 to 0.5.

    Every table of the two arms is enumerated. Among tables with the same number of events in both arms the test is
    monotone in those of the treated arm; and exact tests order all tables by Fisher's p-value, so that bisection
    finds the rejected ones.
    """
    from scipy.stats import binom, hypergeom, norm

    from e2i_dagster.experiments.statistics.rates import Counts, rate_test

    first, second = np.arange(units_1 + 1)[:, None], np.arange(units_0 + 1)[None, :]
    total, critical = units_1 + units_0, float(norm.isf(level))
    rates = np.linspace(0.0, 0.5, 101)
    weight_1, weight_0 = binom.pmf(first, units_1, rates), binom.pmf(second.T, units_0, rates)
    errors = []
    for sign, fisher in (
        (1, hypergeom.sf(first - 1, total, first + second, units_1)),
        (-1, hypergeom.cdf(first, total, first + second, units_1)),
    ):
        flat = np.argsort(fisher, axis=None)
        low, high = 0, flat.size
        while low < high:
            middle = (low + high) // 2
            x1, x0 = np.unravel_index(flat[middle], fisher.shape)
            if sign * rate_test(Counts(int(x1), units_1, int(x0), units_0)).z >= critical - 1e-12:
                low = middle + 1
            else:
                high = middle
        limit = -1.0 if low == 0 else fisher.ravel()[flat[low - 1]]
        rejected = fisher <= limit
        errors.append(np.einsum("ir,ij,jr->r", weight_1, rejected, weight_0, optimize=True))
    return np.array(errors)


def error_of_rates(options: argparse.Namespace) -> dict[str, Any]:
    """Largest one-sided error of the test of rates over all tables of arms of 10 to 300 units, 1:1 to 1:10."""
    figures = {}
    for level in (0.025, 0.003, 0.0005):
        worst, where = -1.0, ""
        for small in (10, 15, 20, 30, 45, 50, 70, 100, 150, 200, 300):
            for ratio in (1, 1.5, 2, 3, 5, 9, 10):
                units = (small, round(small * ratio))
                if units[1] > 300 and units != (50, 450):
                    continue
                error = float(one_sided_errors(*units, level).max())
                if error > worst:
                    worst, where = error, f"{units[0]}:{units[1]}"
        print(f"one-sided error of rates at {level:g}: at most {worst:.5f} ({where})", flush=True)
        figures[f"one_sided_error_of_rates_at_{level:g}"] = figure(
            round(worst, 5), "by enumeration", goal=level + 0.002, peer=f"largest at {where}",
            holds=worst <= level + 0.002,
        )  # fmt: skip
    return figures


def coverage_after_stopping(options: argparse.Namespace) -> dict[str, Any]:
    """Do the stagewise interval and the plain one hold the truth, when trials stop at a Pocock boundary?"""
    rng = np.random.default_rng(options.seed + 1)
    plan = boundaries("pocock", np.arange(1, 5) / 4)
    drift, trials = 2.0, max(200, options.trials // 100)
    number = np.arange(1, 5)
    z = _statistics(4, trials, rng) + drift * np.sqrt(number / 4)
    stop = np.abs(z) >= np.array(plan.z)
    stop[:, -1] = True
    look = stop.argmax(axis=1)
    covered = above = plain = 0
    for trial, index in enumerate(look):
        value, error = float(z[trial, index]), float(1 / np.sqrt((index + 1) / 4))
        found = final_estimate(plan, int(index) + 1, value, standard_error=error)
        covered += found.lower <= drift <= found.upper
        above += found.median_unbiased > drift
        plain += abs(value * error - drift) <= 1.959964 * error
    print(f"coverage after stopping: {covered / trials:.4f}, plain interval {plain / trials:.4f}", flush=True)
    return {
        "coverage_of_stagewise_interval": share_of(
            trials, covered, 0.95, f"plain interval: {plain / trials:.4f}"
        ),
        "median_unbiased_estimate_above_truth": share_of(trials, above, 0.5),
    }


def analysis_of_many_units(options: argparse.Namespace) -> dict[str, Any]:
    """Unit rows in Parquet through the engine, beside the same means and variances in plain SQL."""
    import duckdb

    cases: dict[str, dict[str, Any]] = {
        "mean": {"outcome": "spend"},
        "mean_with_cuped_in_strata": {"outcome": "spend", "covariate": "before", "strata": "region"},
        "proportion": {"outcome": "responded", "kind": "proportion"},
        "ratio": {"outcome": "scripts", "denominator": "visits", "kind": "ratio"},
        "clusters": {"outcome": "spend", "cluster": "territory"},
        "time_to_event": {"outcome": "day", "event": "event", "kind": "survival"},
    }
    figures = {}
    with tempfile.TemporaryDirectory(prefix="e2i-experiments-") as folder:
        path = Path(folder) / "units.parquet"
        duckdb.sql(
            f"""COPY (
                SELECT i AS unit, CASE WHEN hash(i) % 2 = 0 THEN 'control' ELSE 'treated' END AS arm,
                    50 + 10 * random() + 0.02 * (hash(i) % 2) AS spend, random() AS before,
                    (random() < 0.2)::INT AS responded, 'region ' || (i % 4) AS region, i % 2000 AS territory,
                    1 + i % 5 AS visits, (3 * random())::INT AS scripts,
                    1 + (60 * random())::INT AS day, (random() < 0.3)::INT AS event
                FROM range({options.rows}) AS numbers(i)
            ) TO '{path}' (FORMAT parquet)"""
        )
        began = time.perf_counter()
        duckdb.sql(f"SELECT arm, count(*), avg(spend), var_samp(spend) FROM '{path}' GROUP BY arm").fetchall()
        plain = time.perf_counter() - began
        print(f"{options.rows:,} rows, plain SQL of one mean: {plain:.2f} s", flush=True)
        for name, case in cases.items():
            times = []
            for _ in range(options.repeats):
                began = time.perf_counter()
                result = analyze(path, arm="arm", control="control", **case)
                times.append(time.perf_counter() - began)
            if result.status != "estimated":
                raise SystemExit(f"{name} was not estimated: {result.reason}")
            taken = statistics.median(times)
            print(f"{options.rows:,} rows, {name}: {taken:.2f} s", flush=True)
            figures[f"analysis_{name}"] = figure(
                round(taken, 2), f"s for {options.rows:,} rows", goal=SECONDS_PER_ANALYSIS,
                peer=f"count, mean and variance by arm in plain DuckDB: {plain:.2f} s",
                holds=taken < SECONDS_PER_ANALYSIS,
            )  # fmt: skip
    return figures


#: What is measured, in order.
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "type_one_error": type_one_error,
    "level_of_few_clusters": level_of_few_clusters,
    "refuters": refuters,
    "boundary_time": boundary_time,
    "error_of_rates": error_of_rates,
    "coverage_after_stopping": coverage_after_stopping,
    "analysis_of_many_units": analysis_of_many_units,
}


def main() -> None:
    """Measure the parts asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--draws", type=int, default=6, help="of each kind of trial in refuters")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.parts:
        figures |= PARTS[name](options)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "experiments", "figures": figures, "machine": machine}))
    sys.exit(0 if all(item["holds"] for item in figures.values()) else 1)


if __name__ == "__main__":
    main()
