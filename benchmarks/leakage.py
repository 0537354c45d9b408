"""The leakage audit: its time on a large frame, and false findings on clean frames with strong predictors.

The large frame has 100,000 patients, 30 features of all kinds and four splits. The clean frames have honest
predictors up to a single-feature AUC of 0.85, features that move together, dates, gaps and free text; each
finding on one of them, a warning too, is counted as false. Planted leaks show that the same audit is not
blind: each of them must be found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.quality.leakage import LeakageReport, audit

SPLITS = (["train", "validation", "test", "holdout"], [0.6, 0.2, 0.15, 0.05])


def clean_frame(rows: int, seed: int) -> pd.DataFrame:
    """Thirty features without a leak; ``strong`` alone has an AUC of about 0.85."""
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=rows)
    severity = rng.beta(2, 5, rows) * 10
    # 2.35 against logistic noise: AUC 0.85.
    label = (2.35 * strong + 0.2 * (severity - 3) + rng.logistic(size=rows) > 0.4).astype(int)
    visits = rng.poisson(1.2, rows)
    index = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, rows), unit="D")
    seen = np.where(visits > 0, rng.integers(1, 180, rows), 0)
    frame = pd.DataFrame(
        {
            "patient_id": [f"P{number}" for number in range(rows)],
            "index_date": index,
            "label": pd.array(label, dtype="Int64"),
            "strong": strong,
            "strong_in_bands": np.digitize(strong + rng.normal(scale=0.5, size=rows), [-1, 0, 1]),
            "severity": severity,
            "age": rng.integers(18, 90, rows),
            "visits": visits,
            "quality_mean": np.where(visits > 0, rng.normal(5, 2, rows).round(1), np.nan),
            "days_since_last_visit": np.where(visits > 0, seen, np.nan),
            "region": rng.choice(["south", "west", "midwest", "northeast"], rows),
            "academic": rng.random(rows) < 0.3,
            "note": [f"free text {value:x}" for value in rng.integers(0, 2**40, rows)],
            "last_visit_date": pd.Series(index - pd.to_timedelta(seen, unit="D"))
            .where(visits > 0)
            .to_numpy(),
            "mostly_empty": np.where(rng.random(rows) < 0.97, np.nan, rng.normal(size=rows)),
        }
    )
    frame["quality_best"] = frame["quality_mean"] + rng.integers(0, 2, rows)
    frame["visits_squared"] = frame["visits"] ** 2
    frame["segment"] = pd.Series(
        np.where(strong + rng.normal(size=rows) > 0, "high", "low"), dtype="category"
    )
    for number in range(30 - (len(frame.columns) - 4)):
        frame[f"noise_{number}"] = rng.normal(size=rows)
    frame["split"] = rng.choice(SPLITS[0], rows, p=SPLITS[1])
    return frame


def checked(frame: pd.DataFrame) -> LeakageReport:
    """The audit as the gate runs it."""
    return audit(frame, target="label", index_date="index_date", splits="split", horizon_days=90)


def planted(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name of each leak and the frame with it."""
    label = frame["label"].to_numpy(dtype=int)
    rng = np.random.default_rng(0)
    columns: dict[str, Callable[[], Any]] = {
        "linear": lambda: label + rng.normal(scale=0.1, size=len(label)),
        "sign_flipped": lambda: -3.0 * label,
        "boolean": lambda: label.astype(bool),
        "categorical": lambda: np.where(label == 1, rng.choice(["a", "b"], len(label)), "c"),
        "nonlinear": lambda: (
            np.where(label == 1, rng.choice([-3.0, 3.0], len(label)), 0.0)
            + rng.normal(scale=0.2, size=len(label))
        ),
        "missingness": lambda: np.where(label == 1, rng.normal(size=len(label)), np.nan),
        "code_in_text": lambda: np.char.add(
            np.where(label == 1, "Y-", "N-"), np.arange(len(label)).astype(str)
        ),
        "window": lambda: (
            frame["index_date"]
            - pd.to_timedelta(np.where(label == 1, 10, 100) + rng.integers(0, 20, len(label)), unit="D")
        ),
        "future_date": lambda: frame["index_date"] + pd.Timedelta(days=3),
        "risk_score": lambda: rng.random(len(label)),
    }
    for name, make in columns.items():
        yield name, frame.assign(**{name if name == "risk_score" else f"planted_{name}": make()})
    for name, near in (("exact_copies", False), ("near_copies", True)):
        yield name, with_copies(frame, rows=10, near=near)
    patient = frame["patient_id"].copy()
    patient[frame.index[frame["split"] == "test"][0]] = patient[frame.index[frame["split"] == "train"][0]]
    yield "shared_patient", frame.assign(patient_id=patient)


def with_copies(frame: pd.DataFrame, *, rows: int, near: bool) -> pd.DataFrame:
    """``frame`` where ``rows`` patients of validation come again in test under new identifiers."""
    source = frame[frame["split"] == "validation"].head(rows)
    copies = source.assign(split="test", patient_id=[f"C{number}" for number in range(rows)])
    if near:
        rng = np.random.default_rng(1)
        copies["severity"] += rng.normal(scale=0.001, size=rows)
        copies["age"] += 1
        copies["region"] = "elsewhere"
    return pd.concat([frame, copies], ignore_index=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--frames", type=int, default=50)
    arguments.add_argument("--frame-rows", type=int, default=5_000)
    given = arguments.parse_args()
    frame = clean_frame(given.rows, 1)
    checked(clean_frame(2_000, 0))
    seconds = []
    for number in range(3):
        began = time.perf_counter()
        report = checked(frame)
        seconds.append(time.perf_counter() - began)
        print(
            f"audit {number + 1}: {given.rows:,} x {len(report.features)} in {seconds[-1]:.2f} s", flush=True
        )
    false = 0
    for seed in range(given.frames):
        found = checked(clean_frame(given.frame_rows, 100 + seed)).findings
        false += bool(found)
        for finding in found:
            print(
                f"clean frame {seed}: {finding.rule} {', '.join(finding.columns)[:60]}: {finding.evidence}",
                flush=True,
            )
    print(f"{false} of {given.frames} clean frames with a finding", flush=True)
    missed = []
    for name, leaking in planted(clean_frame(given.frame_rows, 7)):
        blocked = checked(leaking).blocking
        missed += [] if blocked else [name]
        print(f"planted {name}: {'found' if blocked else 'MISSED'}", flush=True)
    figures = {
        "leakage_audit_seconds": _figure(min(seconds), "s", 5.0, "limit for 100,000 x 30 with four splits"),
        "leakage_false_findings": _figure(false, f"of {given.frames} clean frames", 1, "limit"),
        "leakage_planted_missed": _figure(len(missed), "planted leaks", 0, "limit"),
    }
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "leakage", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


def _figure(value: float, unit: str, goal: float, peer: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "goal": goal, "peer": peer, "holds": value <= goal}


if __name__ == "__main__":
    main()
