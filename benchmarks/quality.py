"""Quality control: layer 2 against a bare scan and against pandas, layer 1, all layers, clean draws.

The bare scan is one ``max`` of every column over the same table in DuckDB's memory by the same engine: every
value is read (over a Parquet file DuckDB would answer it from the file's statistics). The pandas way is what an
analyst writes to get the same numbers, one column and rule at a time: type, filled and invalid cells of each
column, disordered pairs, distinct keys, and from them every score of each column and of the table. One cell in
200 is wrong or empty, and the run ends unless both sides agree in every count and score. pandas is asked twice:
with its default object columns, and with Arrow strings. The table lies in the engine as DuckDB stores any table
(after a checkpoint: compressed, texts that repeat as dictionaries), and putting it there is not counted, as making
the frame is not for pandas; ``dimensions_of_frame_speedup_over_pandas`` is layer 2 of the typed frame itself, which
the engine reads as it is. Times are medians over repeats in which the sides take turns.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

TABLE = "patient_journeys"
COLUMNS = (
    "patient_journey_id", "patient_id", "journey_start_date", "journey_end_date", "journey_stage",
    "journey_status", "primary_diagnosis_code", "brand", "age_group", "age_at_diagnosis", "gender",
    "geographic_region", "state", "insurance_type", "risk_score", "data_source", "hcp_id", "disease_severity",
    "academic_hcp", "engagement_score",
)  # fmt: skip
AS_OF = dt.date(2024, 12, 31)
#: What a spoiled cell of a column holds; the key of the first row for keys.
SPOILED: dict[str, Any] = {
    "patient_journey_id": "the first key", "gender": None, "brand": "unheard", "state": "XX", "risk_score": 1.5,
    "disease_severity": float("inf"), "age_at_diagnosis": 130, "insurance_type": "",
    "journey_end_date": pd.Timestamp("1990-01-01"),
}  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of ``work``."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def patients(rows: int) -> pd.DataFrame:
    """``rows`` patient-like rows of 20 columns: 10,000 drawn journeys under new keys, one cell in 200 spoiled."""
    from e2i_dagster.synthetic.generate import generate

    drawn = generate(n_hcps=500, n_patients=10_000, n_treatments=30_000, seed=42)[TABLE]
    frame = drawn[list(COLUMNS)].iloc[np.arange(rows) % len(drawn)].reset_index(drop=True)
    frame["patient_journey_id"] = pd.Series(np.arange(rows), dtype="string[pyarrow]").str.zfill(16)
    draw = np.random.default_rng(1)
    for name, wrong in SPOILED.items():
        value = frame["patient_journey_id"].iloc[0] if name == "patient_journey_id" else wrong
        frame.loc[draw.random(rows) < 1 / 200, name] = value
    return frame


def column_by_column(frame: pd.DataFrame, policy: Any) -> dict[str, Any]:
    """The counts and scores of layer 2 in plain pandas, one column and rule at a time."""
    from e2i_dagster.quality.rules import rules_for
    from e2i_dagster.tables.constraints import families

    rules = rules_for(TABLE, policy)
    of_table = policy.settings.tables[TABLE]
    rows = len(frame)
    counts: dict[str, tuple[int, int, float | None]] = {}
    sound = checked = wrong = used = 0
    for name, family in families(TABLE).items():
        if name not in frame.columns:
            counts[name] = (0, 0, None)
            continue
        cells = frame[name]
        filled = cells.notna()
        invalid = pd.Series(False, index=frame.index)
        if family == "text" and cells.dtype == object and pd.api.types.infer_dtype(cells) != "string":
            invalid |= filled & ~cells.map(lambda cell: isinstance(cell, str))
        typed = not invalid.any()
        ruled = False
        for rule in rules:
            if rule.column != name:
                continue
            if rule.kind == "finite":
                invalid |= cells.isin([np.inf, -np.inf])
            elif rule.kind == "range":
                low = -np.inf if rule.minimum is None else rule.minimum
                high = np.inf if rule.maximum is None else rule.maximum
                invalid |= filled & ~cells.between(low, high)
            elif rule.kind == "vocabulary":
                invalid |= filled & ~cells.isin(rule.values)
            ruled = ruled or rule.kind in ("finite", "range", "vocabulary")
        n_filled, n_invalid = int(filled.sum()), int(invalid.sum())
        counts[name] = (n_filled, n_invalid, 1 - n_invalid / n_filled)
        if ruled or not typed:
            checked += n_filled
            wrong += n_invalid
        if name in of_table.expected:
            used += n_filled
            sound += typed
    checks = [sound / len(of_table.expected)]
    for first, second in ((rule.column, rule.other) for rule in rules if rule.other is not None):
        if first in frame.columns and second in frame.columns:
            both = frame[first].notna() & frame[second].notna()
            checks.append(1 - int((both & (frame[first] > frame[second])).sum()) / int(both.sum()))
    key = frame["patient_journey_id"]
    scores = {
        "completeness": used / (rows * len(of_table.expected)),
        "validity": 1 - wrong / checked,
        "consistency": sum(checks) / len(checks),
        "uniqueness": key.nunique() / int(key.notna().sum()),
    }
    weights = {name: policy.settings.weights[name] for name in scores}
    scores["overall"] = sum(weights[name] * scores[name] for name in weights) / sum(weights.values())
    return {"columns": counts, "scores": scores}


def disagreement(layer_2: Any, pandas: dict[str, Any]) -> list[str]:
    """What the two sides do not agree in: counts exactly, scores to twelve digits."""
    found = [
        f"{column.column}: layer 2 {mine}, pandas {theirs}"
        for column in layer_2.columns
        for mine, theirs in zip(
            (column.filled, column.invalid, column.validity), pandas["columns"][column.column], strict=True
        )
        if mine != theirs
    ]
    return found + [
        f"{name}: layer 2 {getattr(layer_2.whole, name)}, pandas {value}"
        for name, value in pandas["scores"].items()
        if abs(getattr(layer_2.whole, name) - value) > 1e-12
    ]


def dimensions(rows: int, repeats: int, policy: Any) -> dict[str, Any]:
    """Layer 2 of ``rows`` rows against the bare scan and against pandas."""
    import duckdb

    from e2i_dagster.quality.dimensions import score
    from e2i_dagster.quality.typed import typed

    connection = duckdb.connect()
    frame = patients(rows)
    connection.register("given", frame)
    connection.execute("CREATE TABLE patients AS SELECT * FROM given")
    connection.unregister("given")
    connection.execute("CHECKPOINT")
    score(connection.table("patients"), TABLE, policy=policy, as_of=AS_OF)
    # Before the other side makes its own copy of the rows.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    texts = [name for name in COLUMNS if frame[name].dtype == "string"]
    arrow = frame.astype(dict.fromkeys(texts, "string[pyarrow]"))
    plain = frame.astype(dict.fromkeys(texts, object))
    read = typed(frame, TABLE)
    del frame
    bare = f"SELECT {', '.join(f'max({name})' for name in COLUMNS)} FROM patients"
    sides: dict[str, Callable[[], Any]] = {
        "scan": lambda: connection.execute(bare).fetchall(),
        "layer 2": lambda: score(connection.table("patients"), TABLE, policy=policy, as_of=AS_OF),
        "layer 2 of the frame": lambda: score(read, TABLE, policy=policy, as_of=AS_OF),
        "pandas": lambda: column_by_column(plain, policy),
        "pandas, Arrow strings": lambda: column_by_column(arrow, policy),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    sides["scan"]()
    for repeat in range(1, repeats + 1):
        for side, work in sides.items():
            taken, results[side] = timed(work)
            seconds[side].append(taken)
            print(f"{repeat}/{repeats} {side:<22} {taken:7.3f} s", flush=True)
    for side in ("pandas", "pandas, Arrow strings"):
        for mine in ("layer 2", "layer 2 of the frame"):
            if found := disagreement(results[mine], results[side]):
                raise SystemExit(f"{side} and {mine} disagree: {'; '.join(found)}")
    middle = {side: statistics.median(taken) for side, taken in seconds.items()}
    to_scan, over_pandas = middle["layer 2"] / middle["scan"], middle["pandas"] / middle["layer 2"]
    return {
        "dimensions_ratio_to_scan": figure(
            to_scan,
            "x",
            4.0,
            f"max of each column by the same engine, {middle['scan']:.3f} s",
            to_scan <= 4.0,
        ),
        "dimensions_speedup_over_pandas": figure(
            over_pandas, "x", 10.0, f"column by column, {middle['pandas']:.2f} s", over_pandas >= 10.0
        ),
        "dimensions_speedup_over_pandas_with_arrow_strings": figure(
            middle["pandas, Arrow strings"] / middle["layer 2"], "x", None, "the same, Arrow strings", True
        ),
        "dimensions_of_frame_speedup_over_pandas": figure(
            middle["pandas"] / middle["layer 2 of the frame"], "x", None, "column by column", True
        ),
        "dimensions_seconds": figure(middle["layer 2"], "s", None, None, True),
        "peak_memory": figure(memory, "GB", 1.5, None, memory < 1.5),
    }


def layers(repeats: int, policy: Any) -> dict[str, Any]:
    """Layer 1 on 10,000 rows, and all layers on 25,000: the first table of a process and a second one."""
    import great_expectations  # noqa: F401 - imports are no part of the times
    import pandera.pandas  # noqa: F401 - imports are no part of the times

    from e2i_dagster.quality import check_table
    from e2i_dagster.quality.schemas import check_schema
    from e2i_dagster.quality.typed import typed
    from e2i_dagster.synthetic.generate import generate

    tables = dict(generate(seed=42))
    first, _ = timed(lambda: check_table(TABLE, tables[TABLE], policy=policy, as_of=AS_OF, references=tables))
    print(f"first table  {first:.2f} s", flush=True)
    second = []
    for _ in range(repeats):
        taken, _ = timed(
            lambda: check_table(
                "patient_clinical", tables["patient_clinical"], policy=policy, as_of=AS_OF, references=tables
            )
        )
        second.append(taken)
        print(f"second table {taken:.2f} s", flush=True)
    read = typed(tables[TABLE][list(COLUMNS)].head(10_000), TABLE)
    schema = [timed(lambda: check_schema(read, TABLE, policy))[0] for _ in range(2 + 3 * repeats)][2:]
    warm, layer_1 = statistics.median(second), statistics.median(schema) * 1000
    return {
        "all_layers_25000_rows": figure(first, "s", 5.0, None, first < 5.0),
        "all_layers_warm_second_table": figure(warm, "s", 2.0, None, warm < 2.0),
        "layer_1_10000_rows": figure(layer_1, "ms", 10.0, None, layer_1 <= 10.0),
    }


def clean_draws(draws: int, policy: Any) -> dict[str, Any]:
    """Blocking findings of all layers in all tables of ``draws`` small clean sets."""
    from e2i_dagster.quality import check_table
    from e2i_dagster.synthetic.generate import generate
    from e2i_dagster.tables import RAW_TABLES

    processes = ("simple_linear", "confounded", "heterogeneous", "time_series", "selection_bias")
    blocked = 0
    for seed in range(draws):
        tables = dict(generate(processes[seed % 5], n_hcps=60, n_patients=200, n_treatments=650, seed=seed))
        reports = [
            check_table(name, tables[name], policy=policy, as_of=AS_OF, references=tables)
            for name in RAW_TABLES
        ]
        found = [(report.table, finding.rule) for report in reports for finding in report.blocking]
        blocked += bool(found)
        if found or (seed + 1) % 10 == 0:
            print(f"draw {seed + 1}/{draws}: {found or 'nothing blocks'}", flush=True)
    return {f"clean_draws_blocked_of_{draws}": figure(blocked, "draws", 0, None, blocked == 0)}


def figure(value: float, unit: str, goal: float | None, peer: str | None, holds: bool) -> dict[str, Any]:
    """One figure in the form of all benchmarks."""
    return {"value": round(value, 3), "unit": unit, "goal": goal, "peer": peer, "holds": bool(holds)}


def main() -> None:
    """Everything in memory; nothing is written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draws", type=int, default=50)
    options = parser.parse_args()
    from e2i_dagster.config.quality import current_quality_policy

    policy = current_quality_policy()
    # Milliseconds are measured before millions of cells have been through the memory of the process.
    figures = layers(options.repeats, policy)
    figures |= dimensions(options.rows, options.repeats, policy)
    figures |= clean_draws(options.draws, policy)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "quality", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
