"""Cohort engine: masks and counts against hand-written DuckDB SQL, and the usual pandas way; sizes up to 10,000,000.

The hand-written SQL reads the same Parquet file with the same rules and the same treatment of nulls, and writes
patient, index date and rule mask; its masks are compared with ours. Our side also proves the keys unique and writes
journey, last day observed, unknown values, eligible patients and attrition in the timed region; both sides
compress with Snappy, ours without dictionaries of the keys and statistics of the journey key. The patients are in
the order of their keys, which is the cheapest proof that these are unique. Sides take turns; times are medians.
The loops over pandas rows run over some patients, are scaled to all, and are checked patient by patient against
our reasons.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

FLAGS = (
    "active_autoimmune_condition",
    "concurrent_immunosuppressive",
    "pregnancy_status",
    "severe_hepatic_impairment",
)
DATA_END = "2024-12-31"


def write_patients(path: Path, rows: int) -> None:
    """Patients in order of their keys, one journey each, with nulls in every clinical column."""
    import duckdb

    flags = ", ".join(
        f"CASE WHEN hash(i, {n}) % 50 = 0 THEN NULL ELSE hash(i, {n}) % 20 = 1 END AS {flag}"
        for n, flag in enumerate(FLAGS)
    )
    duckdb.sql(
        f"""COPY (SELECT 'PAT' || lpad(i::VARCHAR, 8, '0') AS patient_id,
            'PJ' || lpad(i::VARCHAR, 16, '0') AS patient_journey_id,
            CASE WHEN hash(i, 11) % 90 = 0 THEN NULL ELSE (5 + hash(i, 12) % 80)::DOUBLE END AS age_at_diagnosis,
            ['L50.1', 'L50.8', 'L50.9', 'L50.3', 'C50.1', 'D59.5'][1 + (hash(i, 13) % 6)::INT] AS diagnosis_code,
            CASE WHEN hash(i, 14) % 40 = 0 THEN NULL ELSE (hash(i, 15) % 43)::DOUBLE END
                AS urticaria_severity_uas7,
            CASE WHEN hash(i, 16) % 40 = 0 THEN NULL ELSE hash(i, 17) % 5 > 0 END AS prior_antihistamine_therapy,
            {flags},
            DATE '2022-06-01' + (hash(i, 18) % 900)::INT AS diagnosis_date,
            DATE '2021-06-01' + (hash(i, 19) % 700)::INT AS first_observation_date,
            DATE '2023-06-01' + (hash(i, 20) % 570)::INT AS last_observation_date
        FROM range({rows}) s(i)) TO '{path}' (FORMAT parquet)"""
    )


def mask_sql(definition: Any) -> str:
    """The rules of remibrutinib_csu as one would write them by hand."""
    code = "upper(replace(trim(diagnosis_code), '.', ''))"
    waits = f"diagnosis_date + 90 > DATE '{DATA_END}'"
    inside = f"(diagnosis_date <= last_observation_date AND diagnosis_date <= DATE '{DATA_END}')"
    conditions = {
        "index_date": "diagnosis_date IS NULL",
        "age_at_diagnosis": "NOT coalesce(age_at_diagnosis >= 18, false)",
        "diagnosis_code": f"NOT coalesce({code} IN ('L501', 'L508', 'L509'), false)",
        "urticaria_severity_uas7": "NOT coalesce(urticaria_severity_uas7 >= 16, false)",
        "prior_antihistamine_therapy": "NOT coalesce(prior_antihistamine_therapy, false)",
        **{flag: f"coalesce({flag}, false)" for flag in FLAGS},
        "lookback": "NOT coalesce(diagnosis_date - first_observation_date >= 180, false)",
        "followup": f"NOT coalesce(CASE WHEN {waits} THEN {inside} "
        "ELSE last_observation_date - diagnosis_date >= 90 END, false)",
        "followup_pending": f"coalesce({waits}, false)",
    }
    parts = [
        f"CASE WHEN {conditions[rule.name]} THEN {rule.bit} ELSE 0 END"
        for rule in definition.rules
        if rule.name in conditions
    ]
    return " + ".join(parts)


def definition() -> Any:
    """The shipped cohort of chronic spontaneous urticaria: eight criteria and the rules of time."""
    from e2i_dagster.config.cohort import read_cohort

    return read_cohort("remibrutinib_csu")


def timed(work: Callable[[], Any]) -> float:
    """Seconds of ``work``."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against_sql(folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Masks written and counted, by us and by hand-written SQL."""
    import duckdb

    from e2i_dagster.cohorts import count_cohort, write_cohort

    path, cohort = folder / "patients.parquet", definition()
    write_patients(path, rows)
    mask = mask_sql(cohort)
    by_hand = folder / "by_hand.parquet"
    count = ", ".join(f"count(*) FILTER (WHERE mask & {rule.bit} = 0)" for rule in cohort.rules)
    sides: dict[str, Callable[[], Any]] = {
        "masks by hand": lambda: duckdb.connect().execute(
            f"COPY (SELECT patient_id, diagnosis_date AS index_date, {mask} AS mask FROM '{path}') "
            f"TO '{by_hand}' (FORMAT parquet)"
        ),
        "cohort written": lambda: write_cohort(cohort, path, folder=folder / "ours", data_end=DATA_END),
        "counts by hand": lambda: (
            duckdb.connect().execute(f"SELECT {count} FROM (SELECT {mask} AS mask FROM '{path}')").fetchall()
        ),
        "cohort counted": lambda: count_cohort(cohort, path, data_end=DATA_END),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, work in sides.items():
            seconds[side].append(timed(work))
            print(
                f"{rows:,} patients, {repeat + 1}/{repeats}: {side:<15} {seconds[side][-1]:6.2f} s",
                flush=True,
            )
    (different,) = (
        duckdb.connect()
        .execute(
            f"SELECT count(*) FROM '{by_hand}' h FULL JOIN '{folder}/ours/reasons.parquet' o USING (patient_id) "
            "WHERE h.mask IS DISTINCT FROM o.mask OR h.index_date IS DISTINCT FROM o.index_date"
        )
        .fetchall()[0]
    )
    if different:
        raise SystemExit(f"{different:,} masks differ from those of the SQL")
    middle = {side: statistics.median(taken) for side, taken in seconds.items()}
    masks = middle["cohort written"] / middle["masks by hand"]
    counts = middle["cohort counted"] / middle["counts by hand"]
    return {
        "ratio_to_duckdb_masks": figure(
            masks, "x", 1.5, f"SQL, {middle['masks by hand']:.2f} s", masks <= 1.5
        ),
        "ratio_to_duckdb_count": figure(
            counts, "x", 3.0, f"SQL, {middle['counts by hand']:.2f} s", counts <= 3
        ),
    }


def mask_loop_with_trail(frame: pd.DataFrame) -> list[list[str]]:
    """The usual way: a mask per criterion with what it removes, then patient by patient the rules that failed.

    The trail asks each criterion about a pandas Series of the patient's one value, as code does that has a
    function of a column for each criterion and no masks kept.
    """
    criteria: dict[str, Callable[[pd.Series], pd.Series]] = {
        "age_at_diagnosis": lambda values: values >= 18,
        "diagnosis_code": lambda values: values.isin(["L50.1", "L50.8", "L50.9"]),
        "urticaria_severity_uas7": lambda values: values >= 16,
        "prior_antihistamine_therapy": lambda values: values == True,  # noqa: E712
        **dict.fromkeys(FLAGS, lambda values: values != True),  # noqa: E712
    }
    remaining, removed = frame, {}
    for name, test in criteria.items():
        kept = remaining[test(remaining[name])]
        removed[name] = len(remaining) - len(kept)
        remaining = kept
    trail = []
    for _, row in frame.iterrows():
        failed = [name for name, test in criteria.items() if not test(pd.Series([row[name]])).iloc[0]]
        trail.append(failed + time_rules(row))
    return trail


def plain_row_loop(frame: pd.DataFrame) -> list[list[str]]:
    """The same trail with as little pandas as possible: the rows of ``iterrows`` and plain comparisons."""
    trail = []
    for _, row in frame.iterrows():
        failed = []
        if not row["age_at_diagnosis"] >= 18:
            failed.append("age_at_diagnosis")
        if row["diagnosis_code"] not in {"L50.1", "L50.8", "L50.9"}:
            failed.append("diagnosis_code")
        if not row["urticaria_severity_uas7"] >= 16:
            failed.append("urticaria_severity_uas7")
        if row["prior_antihistamine_therapy"] is not True:
            failed.append("prior_antihistamine_therapy")
        failed += [flag for flag in FLAGS if row[flag] is True]
        trail.append(failed + time_rules(row))
    return trail


def time_rules(row: pd.Series) -> list[str]:
    """Lookback and follow-up of one patient, where they fail."""
    failed = []
    if not (row["diagnosis_date"] - row["first_observation_date"]).days >= 180:
        failed.append("lookback")
    if not (row["last_observation_date"] - row["diagnosis_date"]).days >= 90:
        failed.append("followup")
    return failed


def in_memory(folder: Path, repeats: int) -> dict[str, Any]:
    """100,000 patients in pandas with reasons and attrition, and against loops over some of them."""
    from e2i_dagster.cohorts import build_cohort

    path, cohort = folder / "memory.parquet", definition()
    write_patients(path, 100_000)
    frame = pd.read_parquet(path)
    words = build_cohort(cohort, frame).reasons["words"]
    ours: list[float] = []
    loops: dict[Callable[[pd.DataFrame], list[list[str]]], list[float]] = {}
    for loop, rows in ((mask_loop_with_trail, 1_000), (plain_row_loop, 20_000)):
        part = frame.head(rows).astype(object)
        trail: list[list[str]] = []
        loops[loop] = []
        for _ in range(repeats):
            ours.append(timed(lambda: build_cohort(cohort, frame, data_end=DATA_END)))
            loops[loop].append(timed(lambda: trail.extend(loop(part))) * len(frame) / rows)  # noqa: B023
        different = sum("; ".join(row) != word for row, word in zip(trail, words[:rows], strict=False))
        if different:
            raise SystemExit(f"{different:,} trails of {loop.__name__} differ from ours")
        print(
            f"100,000 patients in memory {statistics.median(ours):.3f} s, {loop.__name__} "
            f"{statistics.median(loops[loop]):.1f} s (scaled from {rows:,})",
            flush=True,
        )
    seconds = statistics.median(ours)
    usual, plain = (statistics.median(taken) for taken in loops.values())
    return {
        "in_memory_100000": figure(seconds, "s", 0.5, None, seconds < 0.5),
        "speedup_over_pandas_trail": figure(
            usual / seconds,
            "x",
            100.0,
            f"mask loop, then a Series per patient and criterion: {usual:.1f} s scaled from 1,000",
            usual / seconds >= 100,
        ),
        "speedup_over_plain_row_loop": figure(
            plain / seconds,
            "x",
            None,
            f"iterrows and plain comparisons: {plain:.1f} s scaled from 20,000",
            True,
        ),
    }


def large(folder: Path, rows: int) -> dict[str, Any]:
    """``rows`` patients from Parquet, in a process of their own for its memory."""
    path = folder / "large.parquet"
    write_patients(path, rows)
    done = subprocess.run(
        [sys.executable, __file__, "--only-write", str(path)], capture_output=True, text=True, check=True
    )
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    print(f"{rows:,} patients written in {seconds:.1f} s, {memory:.2f} GB", flush=True)
    return {
        f"written_{rows}": figure(seconds, "s", 15.0, None, seconds < 15),
        f"memory_{rows}": figure(memory, "GB", 4.0, None, memory < 4),
    }


def with_events(folder: Path, rows: int) -> dict[str, Any]:
    """Index by event, a washout and a count in a window over ten events per patient."""
    import duckdb

    from e2i_dagster.cohorts import count_cohort
    from e2i_dagster.config.cohort import CohortDefinition

    patients, events = folder / "patients_of_events.parquet", folder / "events.parquet"
    write_patients(patients, rows)
    duckdb.sql(
        f"""COPY (SELECT 'PAT' || lpad((hash(i, 1) % {rows})::VARCHAR, 8, '0') AS patient_id,
            DATE '2021-06-01' + (hash(i, 2) % 1300)::INT AS event_date,
            ['prescription', 'lab_test', 'consultation', 'diagnosis'][1 + (hash(i, 3) % 4)::INT] AS event_type
        FROM range({10 * rows}) s(i)) TO '{events}' (FORMAT parquet)"""
    )
    cohort = CohortDefinition.model_validate(
        {
            "brand": "Remibrutinib",
            "indication": "csu_events",
            "index": {"event": "prescription", "occurrence": "first", "after": "diagnosis_date"},
            "inclusion_criteria": [
                {"field": "age_at_diagnosis", "operator": ">=", "value": 18},
                {"name": "new", "washout": {"event": "prescription", "days": 180}},
                {"name": "seen", "has_event": {"event": "consultation", "within": [-365, -1]}},
            ],
            "temporal_requirements": {"lookback_days": 180, "followup_days": 90},
        }
    )
    seconds = timed(lambda: count_cohort(cohort, patients, events, data_end=DATA_END))
    print(f"{rows:,} patients x {10 * rows:,} events in {seconds:.1f} s", flush=True)
    return {f"events_{rows}_x_{10 * rows}": figure(seconds, "s", 10.0, None, seconds < 10)}


def figure(value: float, unit: str, goal: float | None, peer: str | None, holds: bool) -> dict[str, Any]:
    """One figure in the form of all benchmarks."""
    return {"value": round(value, 3), "unit": unit, "goal": goal, "peer": peer, "holds": bool(holds)}


def only_write(path: Path) -> None:
    """Write one cohort and print seconds and peak memory in GB."""
    from e2i_dagster.cohorts import write_cohort

    seconds = timed(lambda: write_cohort(definition(), path, folder=path.parent / "out", data_end=DATA_END))
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2]))


def main() -> None:
    """Files go into a temporary folder, which is taken away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="patients of the ratios to SQL")
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--events", type=int, default=1_000_000, help="patients of the event rules")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_write:
        only_write(options.only_write)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = against_sql(folder, options.rows, options.repeats)
        figures |= in_memory(folder, options.repeats)
        figures |= large(folder, options.large)
        figures |= with_events(folder, options.events)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "cohorts", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
