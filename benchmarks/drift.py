"""Drift and performance: speed against peers on the same frames, false alarms, power, and what alarms are worth.

Speed is CPU seconds: of this product with a stored reference profile and with the profile made anew, of a straight
computation of the same figures feature by feature with pandas and SciPy (what the profile replaces), and of NannyML's
univariate drift where an interpreter with NannyML is given (``--nannyml /path/to/python``; its libraries do not go
together with ours).

Usefulness: months of scored patients whose labels come late (:func:`months`), with planted shifts of the patients, with
changes of what the model does not use, and with a change of the outcome itself. The level of each month's alarm is
compared with the loss of performance that its labels show afterwards.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from e2i_dagster.binning import quantile_bins, stability_index
from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.monitoring.compare import compare_with_profile, profile_model
from e2i_dagster.monitoring.drift import detect_drift
from e2i_dagster.monitoring.labels import settle_labels
from e2i_dagster.monitoring.performance import performance_report
from e2i_dagster.monitoring.profile import profile_frame
from e2i_dagster.monitoring.retraining import alarm_level, alarm_score
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training import evaluate, train

POLICY = DriftPolicy.load(CHECKOUT / "config")
#: Months that a report looks back on; the labels of the older ones were in reports before.
RECENT = POLICY.model_copy(
    update={"performance": POLICY.performance.model_copy(update={"windows": 3, "resamples": 200})}
)
ABOUT: dict[str, Any] = {"policy": POLICY, "scope": "s", "day": dt.date(2025, 1, 1), "model_id": "m/1"}
DRAWS = 500


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process for ``work``, and what it returns."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def wide(rows: int, columns: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """Four numbers for each text."""
    rng = np.random.default_rng(seed)
    levels = np.array([f"level {number}" for number in range(12)])
    made = {}
    for number in range(columns):
        if number % 5 == 4:
            drawn = levels[rng.integers(0, 12, rows)]
            made[f"x{number}"] = pd.Series(drawn, dtype="string[pyarrow]")
        else:
            made[f"x{number}"] = rng.normal(shift if number == 0 else 0, 1, rows)
    return pd.DataFrame(made)


def by_feature(reference: pd.DataFrame, current: pd.DataFrame) -> float:
    """The same figures from two frames, feature by feature, with the libraries' own functions."""
    found = []
    tests: Any = stats
    for name in reference.columns:
        then, now = reference[name], current[name]
        if pd.api.types.is_numeric_dtype(then):
            first, second = then.dropna().to_numpy(), now.dropna().to_numpy()
            bins = quantile_bins(first, POLICY.psi_bins)
            found.append(stability_index(bins.counts(first), bins.counts(second)))
            found.append(tests.ks_2samp(first, second, method="asymp").pvalue)
            found.append(tests.chi2_contingency([[1, len(first)], [1, len(second)]]).pvalue)
        else:
            texts = [side.astype("string").fillna("(missing)").astype(object) for side in (then, now)]
            frequent = texts[0].value_counts().index[:50]
            names = [*frequent, "(other)"]
            counts = [
                text.where(text.isin(frequent), "(other)")
                .value_counts()
                .reindex(names, fill_value=0)
                .to_numpy(float)
                for text in texts
            ]
            found.append(stability_index(*counts))
            table = np.array(counts)
            found.append(tests.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)
    return float(np.sum(found))


NANNYML = """
import json, sys, time
import pandas as pd
import nannyml as nml
reference, current = pd.read_parquet(sys.argv[1]), pd.read_parquet(sys.argv[2])
texts = [name for name in reference if not pd.api.types.is_numeric_dtype(reference[name])]
numbers = [name for name in reference if name not in texts]
def go():
    began = time.process_time()
    calculator = nml.UnivariateDriftCalculator(
        column_names=list(reference.columns), treat_as_categorical=texts, chunk_number=1,
        continuous_methods=["kolmogorov_smirnov", "jensen_shannon", "wasserstein"],
        categorical_methods=["chi2", "jensen_shannon"],
    ).fit(reference)
    fitted = time.process_time()
    calculator.calculate(current)
    return time.process_time() - began, time.process_time() - fitted
print(json.dumps(min(go() for _ in range(2))))
"""


def nannyml_seconds(python: str, reference: pd.DataFrame, current: pd.DataFrame) -> tuple[float, float]:
    """CPU seconds of NannyML on the same frames: in all, and without the fit on the reference."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.parquet" for name in ("reference", "current")]
        for path, frame in zip(paths, (reference, current), strict=True):
            frame.astype({name: object for name in frame if frame[name].dtype == "string"}).to_parquet(path)
        done = subprocess.run(
            [python, "-c", NANNYML, *map(str, paths)],
            capture_output=True,
            text=True,
            check=True,
            env={"HOME": folder},
        )
    total, calculate = json.loads(done.stdout.splitlines()[-1])
    return total, calculate


def false_alarms(rows: int, draws: int) -> int:
    """Draws without drift in which anything has a severity."""
    flagged = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        sides = [
            pd.DataFrame(
                {
                    "normal": rng.normal(size=rows),
                    "count": rng.poisson(3, rows).astype(float),
                    "skewed": rng.lognormal(size=rows),
                    "text": rng.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1]),
                }
            )
            for _ in range(2)
        ]
        flagged += detect_drift(*sides, **ABOUT).worst != "none"
    return flagged


def power(draws: int = 100) -> float:
    """Share of draws in which a shift of 0.3 standard deviations of one of 30 features is found, n = 5,000."""
    found = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        reference, current = (pd.DataFrame(rng.normal(size=(5_000, 30))).add_prefix("x") for _ in range(2))
        current["x7"] += 0.3
        report = detect_drift(reference, current, **ABOUT)
        found += next(feature.severity for feature in report.features if feature.name == "x7") != "none"
    return found / draws


def small_shift_severity() -> str:
    """Severity of a shift of 0.03 standard deviations at n = 100,000."""
    rng = np.random.default_rng(1)
    frames = (pd.DataFrame({"x": rng.normal(mean, 1, 100_000)}) for mean in (0.0, 0.03))
    return detect_drift(*frames, **ABOUT).worst


def patients(
    rows: int,
    seed: int,
    *,
    severity: float = 0.0,
    spread: float = 1.0,
    unused: float = 0.0,
    concept: float = 1.0,
) -> LabelledRows:
    """Patients of a month with their outcomes.

    Args:
        severity, spread: shift and scale of the strongest feature. unused: shift of what nothing depends on.
        concept: what remains of the dependence of the outcome on the features (1: as in training).
    """
    rng = np.random.default_rng(seed)
    features = pd.DataFrame(
        {
            "severity": rng.normal(severity, spread, rows),
            "engagement": rng.normal(0, spread, rows),
            "visits": rng.poisson(3, rows).astype(float),
            "distance": rng.normal(unused, 1, rows),
            "region": rng.choice(["north", "south", "west"], rows, p=[0.5, 0.3, 0.2]).astype(object),
        }
    )
    odds = 1.3 * features["severity"] + 0.8 * features["engagement"] + 0.25 * (features["visits"] - 3)
    odds += 0.4 * (features["region"] == "south") - 0.2
    chance = 1 / (1 + np.exp(-concept * odds.to_numpy()))
    return LabelledRows(features, (rng.random(rows) < chance).astype("int64"))


#: Planted in each month. The outcome changes for good: patients do not turn back to what they were.
PLANTED: tuple[dict[str, float], ...] = (
    {}, {}, {"unused": 1.0}, {"spread": 0.8}, {"unused": 2.0}, {"spread": 0.6}, {"severity": 0.4},
    {"spread": 0.4}, {"unused": 3.0}, {"spread": 0.5, "unused": 1.0}, {"severity": -0.4}, {},
    {"spread": 0.7}, {"severity": 0.8}, *[{"concept": 0.6}] * 5, *[{"concept": 0.3}] * 5,
)  # fmt: skip


def months(rows: int, seed: int) -> list[LabelledRows]:
    """The scored patients of consecutive months with the labels that come two months later."""
    return [patients(rows, seed + number, **planted) for number, planted in enumerate(PLANTED)]


def usefulness(rows: int, seed: int) -> dict[str, float]:
    """Rank correlation of alarm and loss, and the error of estimated AUC, over months."""
    seen = VisibleRows(patients(4_000, seed + 900), patients(2_000, seed + 901))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0})
    judged = evaluate(model, seen, criteria=SuccessCriteria())
    effects = abs(model.estimator.coef_[0])
    used = {name: 0.0 for name in model.features}
    for name, effect in zip(
        model.pipeline.named_steps["preprocess"].get_feature_names_out(), effects, strict=True
    ):
        base = next(feature for feature in sorted(used, key=len, reverse=True) if feature in name)
        used[base] += float(effect)
    shares = {name: value / sum(used.values()) for name, value in used.items()}
    profile = profile_model(model, seen, policy=POLICY, evaluation=judged, importance=shares)
    assert profile.model is not None
    step = POLICY.performance.window_days
    start = dt.date(2025, 1, 1)
    predictions, arrivals, table = [], [], []
    scored = months(rows, seed)
    for number, month in enumerate(scored):
        last = start + dt.timedelta(days=step * (number + 1) - 1)
        at = dt.datetime.combine(last, dt.time(9), dt.UTC)
        closes = last + dt.timedelta(days=2 * step)
        scores = model.scores(month.features)
        keys = [f"{number}-{row}" for row in range(rows)]
        predictions.append(
            pd.DataFrame(
                {
                    "prediction_id": keys, "model_id": "m/1", "patient_id": keys, "predicted_at": at,
                    "score": scores, "closes_on": closes,
                }
            )
        )  # fmt: skip
        known = dt.datetime.combine(closes, dt.time(3), dt.UTC)
        arrivals.append(
            pd.DataFrame({"prediction_id": keys, "label": month.target.astype(float), "arrived_at": known})
        )
        came = pd.concat(arrivals)
        came = came[came["arrived_at"] <= pd.Timestamp(at)]
        settled = settle_labels(pd.concat(predictions), came, as_of=last)
        performance = performance_report(
            profile.model, settled, policy=POLICY, scope="s", day=last, model_id="m/1"
        )
        log = month.features.assign(prediction=scores, prediction_id=keys)
        drift = compare_with_profile(
            profile, log, kinds=model.kinds, policy=POLICY, scope="s", day=last, model_id="m/1"
        )
        estimated = performance.windows[-1].estimated
        truth = _auc(month.target, scores)
        table.append(
            {
                "planted": PLANTED[number],
                "level": SEVERITIES.index(alarm_level(drift, performance)),
                "score": alarm_score(drift, performance, POLICY),
                "drift_alone": sum(
                    POLICY.severity_weight[feature.effect_severity]
                    for feature in drift.tested
                    if feature.kind == "data"
                ),
                "estimated": None if estimated is None else estimated.value,
                "auc": truth,
                "loss": (profile.model.performance.value or 0.0) - truth,
            }
        )
    found = pd.DataFrame(table)
    same = found[[row.get("concept", 1.0) == 1.0 for row in found["planted"]]]
    errors = (same["estimated"] - same["auc"]).abs()
    for row in table:
        print(f"  {row}", flush=True)
    return {
        "level": _rank_correlation(found["level"], found["loss"]),
        "score": _rank_correlation(found["score"], found["loss"]),
        "drift_alone": _rank_correlation(found["drift_alone"], found["loss"]),
        "error": float(errors.mean()),
    }


def _rank_correlation(first: pd.Series, second: pd.Series) -> float:
    result: Any = stats.spearmanr(first, second)
    return float(result.statistic)


def _auc(target: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(target, scores))


def figure(value: float, unit: str, goal: float | None, peer: str, *, at_least: bool) -> dict[str, Any]:
    """One figure of the last line."""
    holds = goal is None or (value >= goal if at_least else value <= goal)
    return {"value": round(float(value), 3), "unit": unit, "goal": goal, "peer": peer, "holds": bool(holds)}


def speed(rows: int, columns: int) -> tuple[float, float, float]:
    """CPU seconds with a stored profile, with the profile made anew, and feature by feature from two frames."""
    reference, current = wide(rows, columns, 0), wide(rows, columns, 1, shift=0.1)
    making, profile = cpu(lambda: profile_frame(reference, bins=POLICY.psi_bins))
    # The first statistics of a process load the library.
    detect_drift(profile, current.head(1_000), **ABOUT)
    stored = min(cpu(lambda: detect_drift(profile, current, **ABOUT))[0] for _ in range(2))
    before = cpu(lambda: by_feature(reference, current))[0]
    print(
        f"{rows:,} x {columns}: stored profile {stored:.2f} s, making it {making:.2f} s, by feature {before:.2f} s",
        flush=True,
    )
    return stored, stored + making, before


def against_stored(rows: int, columns: int) -> float:
    """Peak resident memory in GB of a process that compares a day of that size, in a file, with a stored profile."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import drift as b; from pathlib import Path;"
        "from e2i_dagster.monitoring.profile import ParquetColumns;"
        f"p = b.profile_frame(b.wide(50_000, {columns}, 0), bins=10);"
        "b.detect_drift(p, ParquetColumns(Path(sys.argv[2])), **b.ABOUT);"
        "status = Path('/proc/self/status').read_text().split();"
        "print(int(status[status.index('VmHWM:') + 1]) / 1024**2)"
    )
    # Not `ru_maxrss`: it begins with the memory of the process that started this one.
    here = str(Path(__file__).resolve().parent)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "day.parquet")
        wide(rows, columns, 1).to_parquet(path)
        done = subprocess.run(
            [sys.executable, "-c", program, here, path], capture_output=True, text=True, check=True
        )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--nannyml", help="A Python interpreter that has NannyML.")
    options = parser.parse_args()
    figures: dict[str, Any] = {}

    stored, anew, before = speed(100_000, 30)
    figures["speed_100k_x_30"] = figure(
        before / anew, "x", None, "feature by feature, profile made anew", at_least=True
    )
    if options.nannyml:
        total, calculate = nannyml_seconds(
            options.nannyml, wide(100_000, 30, 0), wide(100_000, 30, 1, shift=0.1)
        )
        print(f"NannyML {total:.2f} s, without its fit {calculate:.2f} s", flush=True)
        figures["nannyml_with_fit"] = figure(
            total / anew, "x", 1.5, "NannyML, fit and calculate", at_least=True
        )
        figures["nannyml_stored"] = figure(calculate / stored, "x", 1.5, "NannyML, calculate", at_least=True)
    large, _, large_before = speed(options.rows, options.columns)
    peer = f"{options.rows:,} x {options.columns}"
    figures["stored_profile"] = figure(
        large_before / large, "x", 15, f"feature by feature, {peer}", at_least=True
    )
    memory = against_stored(options.rows, options.columns)
    figures["memory"] = figure(
        memory, "GB", 1.5, f"{options.rows:,} x {options.columns} with the frame", at_least=False
    )

    for rows in (100, 1_000, 5_000, 10_000):
        flagged = false_alarms(rows, options.draws)
        print(f"no drift, n = {rows:,}: {flagged} of {options.draws} draws flagged", flush=True)
        figures[f"false_alarms_{rows}"] = figure(
            flagged, "draws", 37 * options.draws / DRAWS, f"of {options.draws}", at_least=False
        )
    figures["power"] = figure(
        power(), "share", 0.95, "0.3 SD in one of 30 features, n = 5,000", at_least=True
    )
    small = SEVERITIES.index(small_shift_severity())
    figures["small_shift"] = figure(small, "severity", 1, "0.03 SD at n = 100,000; 1 is low", at_least=False)

    worth = [usefulness(1_500, seed) for seed in (0, 10_000)]
    mean = {name: float(np.mean([row[name] for row in worth])) for name in worth[0]}
    print(f"usefulness {worth}", flush=True)
    figures["alarm_and_loss"] = figure(mean["level"], "rank correlation", 0.6, "realised loss", at_least=True)
    figures["score_and_loss"] = figure(
        mean["score"], "rank correlation", None, "realised loss", at_least=True
    )
    figures["drift_alone"] = figure(
        mean["drift_alone"], "rank correlation", None, "size of drift alone and realised loss", at_least=True
    )
    figures["estimated_auc"] = figure(
        mean["error"], "mean absolute error", 0.03, "realised AUC without concept drift", at_least=False
    )
    machine = {
        "cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
    }  # fmt: skip
    print(json.dumps({"benchmark": "drift", "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
