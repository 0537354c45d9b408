"""Features: the point-in-time frame and the values of a view, each against hand-written DuckDB SQL in the same run.

The frame: every shipped feature for 250,000 patients from the files that Feast reads. The hand-written statement is
one SELECT of five ASOF joins over the same Parquet files, fetched as Arrow; ours also proves the files whole and
gives a pandas frame. The values: 50 features over events in one view, from Arrow-backed frames, against one
hand-written SELECT with the same filters over the same frames, fetched as a pandas frame as ours is. All cells are
compared. Sides take turns; times are medians; memory is that of a process of its own that only makes the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feature_views import TIMESTAMP, FeatureView, feature_names
from e2i_dagster.features.compute import compute_view
from e2i_dagster.features.frame import training_frame
from e2i_dagster.features.snapshots import FeatureFiles, write_views

KINDS = ("prescription", "consultation", "lab_test", "procedure", "hospitalization")
WINDOWS = (30, 60, 90, 180, 365)
FIRST = pd.Timestamp("2023-01-01")


def feature_files(folder: Path, patients: int) -> tuple[pd.DataFrame, FeatureFiles]:
    """Rows to join, and files with one snapshot of each patient and monthly ones of professionals and markets."""
    draw = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "patient_id": pd.array([f"PAT{n:08d}" for n in range(patients)], "string[pyarrow]"),
            "patient_journey_id": pd.array([f"PJ{n:016d}" for n in range(patients)], "string[pyarrow]"),
            "hcp_id": pd.array([f"HCP{n:08d}" for n in draw.integers(0, 5_000, patients)], "string[pyarrow]"),
            "brand": pd.array(["Remibrutinib"] * patients, "string[pyarrow]"),
            "region": pd.array(draw.choice(["north", "south", "west"], patients), "string[pyarrow]"),
            "index_date": FIRST + pd.to_timedelta(draw.integers(60, 700, patients), "D"),
        }
    )
    frames = {}
    for view in feature_views():
        keys = rows[list(view.keys)].drop_duplicates()
        if "patient_id" in keys:
            days = rows["index_date"] - pd.Timedelta(days=1)
            frame = keys.assign(day=days)
        else:
            ends = pd.DataFrame({"day": pd.date_range(FIRST, periods=24, freq="ME")})
            frame = keys.merge(ends, how="cross")
        stamps = pd.to_datetime(frame.pop("day")).dt.as_unit("us") + pd.Timedelta(days=1).as_unit("us")
        frame[TIMESTAMP] = (stamps - pd.Timedelta(microseconds=1).as_unit("us")).dt.tz_localize("UTC")
        for feature in view.features:
            numbers = draw.integers(0, 40, len(frame))
            values = pd.Series(numbers, index=frame.index).where(draw.random(len(frame)) > 0.1)
            kinds = {"int": "Int64", "float": "float64", "string": "string[pyarrow]"}
            frame[feature.name] = values.astype("Int64").astype(kinds[feature.dtype])
        frames[view.name] = frame.reset_index(drop=True)
    return rows, write_views(frames, folder)


def hand_written_frame(rows: pd.DataFrame, files: FeatureFiles) -> pa.Table:
    """Five ASOF joins over the files, in the order of ``rows``."""
    import duckdb

    asked = rows.assign(
        row=np.arange(len(rows)), stamp=rows["index_date"].dt.tz_localize("UTC").dt.as_unit("us")
    )
    joins = []
    for view in feature_views():
        met = " AND ".join(f"asked.{key} = {view.name}.{key}" for key in view.keys)
        joins.append(
            f"ASOF LEFT JOIN read_parquet('{files.of(view.name).path}') {view.name} "
            f"ON {met} AND asked.stamp > {view.name}.{TIMESTAMP}"
        )
    with duckdb.connect() as connection:
        connection.register("asked", pa.Table.from_pandas(asked))
        return connection.sql(
            f"SELECT {', '.join(feature_names(feature_views()))} FROM asked {' '.join(joins)} ORDER BY row"
        ).to_arrow_table()


def events_view() -> FeatureView:
    """Fifty features: counts by kind and window, and of cost its sum, mean, largest, last value and days since."""
    features: list[dict[str, Any]] = []
    for kind in KINDS:
        for days in WINDOWS:
            asked = {"event": kind, "within": [-days, -1]}
            features += [
                {"name": f"n_{kind}_{days}", "description": "Events.", "count": asked},
                {"name": f"cost_{kind}_{days}", "description": "Cost.", "sum": asked | {"column": "cost"}},
            ]
    return FeatureView.model_validate(
        {"name": "events_view", "keys": ["patient_id"], "description": "Events.", "features": features}
    )


def events(patients: int) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Entities, and ten events for each patient; Arrow-backed as the lake gives them."""
    draw = np.random.default_rng(2)
    keys = pd.Series([f"PAT{n:08d}" for n in range(patients)], dtype="string[pyarrow]")
    owner = draw.integers(0, patients, 10 * patients)

    def days(count: int) -> pd.Series:
        return pd.Series(FIRST.to_datetime64() + draw.integers(0, 730, count).astype("timedelta64[D]"))

    journeys = pd.DataFrame({"patient_id": keys, "patient_journey_id": keys.str.replace("PAT", "PJ")})
    journeys["journey_start_date"] = FIRST
    journeys["source_timestamp"] = pd.Series(pd.NaT, index=journeys.index, dtype="datetime64[us, UTC]")
    kinds = pd.Series(pd.Categorical.from_codes(draw.integers(0, len(KINDS), len(owner)), list(KINDS)))
    treatments = pd.DataFrame(
        {
            "patient_id": keys.take(owner).reset_index(drop=True),
            "event_date": days(len(owner)),
            "event_type": kinds.astype("string[pyarrow]"),
            "cost": draw.integers(1, 100, len(owner)).astype("float64"),
        }
    )
    treatments["source_timestamp"] = pd.Series(pd.NaT, index=treatments.index, dtype="datetime64[us, UTC]")
    return journeys[["patient_id"]].assign(as_of=days(patients)), {
        "patient_journeys": journeys,
        "treatment_events": treatments,
    }


def hand_written_values(entities: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The same fifty numbers by one SELECT over the same frames."""
    import duckdb

    columns = []
    for kind in KINDS:
        for days in WINDOWS:
            asked = f"FILTER (WHERE t.event_type = '{kind}' AND t.event_date > e.as_of - {days})"
            columns.append(f"count(*) {asked} AS n_{kind}_{days}")
            columns.append(f"coalesce(fsum(t.cost) {asked}, 0) AS cost_{kind}_{days}")
    asked_for = entities.assign(row=np.arange(len(entities)))
    with duckdb.connect() as connection:
        connection.register("asked", pa.Table.from_pandas(asked_for))
        columns_read = ["patient_id", "event_date", "event_type", "cost"]
        connection.register("rows", pa.Table.from_pandas(tables["treatment_events"][columns_read]))
        return connection.sql(
            f"""WITH e AS (SELECT row, patient_id, as_of::DATE AS as_of FROM asked),
                t AS (SELECT patient_id, event_type, cost, event_date::DATE AS event_date FROM rows)
            SELECT {", ".join(columns)} FROM e
            LEFT JOIN t ON t.patient_id = e.patient_id AND t.event_date <= e.as_of AND t.event_date > e.as_of - 365
            GROUP BY e.row ORDER BY e.row"""
        ).df()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of both, measured in turns."""
    times = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    return statistics.median(first for first, _ in times), statistics.median(other for _, other in times)


def peak_of(what: str, count: int) -> float:
    """Peak memory in GB of a process that makes the inputs and then the numbers."""
    done = subprocess.run(
        [sys.executable, __file__, "--only", what, "--patients", str(count)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def figure(value: float, unit: str, goal: float | None, peer: str | None) -> dict[str, Any]:
    """One figure in the form of all benchmarks."""
    holds = goal is None or value <= goal
    return {"value": round(value, 3), "unit": unit, "goal": goal, "peer": peer, "holds": bool(holds)}


def of_frame(patients: int, repeats: int) -> dict[str, Any]:
    """The frame against five ASOF joins."""
    with tempfile.TemporaryDirectory() as name:
        rows, files = feature_files(Path(name), patients)
        found, expected = training_frame(rows, files), hand_written_frame(rows, files)
        for column in feature_names(feature_views()):
            other = expected[column].to_pandas(integer_object_nulls=True).astype(found[column].dtype)
            pd.testing.assert_series_equal(found[column], other, check_names=False)
        ours, theirs = in_turns(
            lambda: training_frame(rows, files), lambda: hand_written_frame(rows, files), repeats
        )
    memory = peak_of("frame", patients)
    print(f"frame of {patients:,}: {ours:.2f} s, by hand {theirs:.2f} s, {memory:.2f} GB", flush=True)
    peer = "five ASOF joins by hand"
    return {
        f"frame_{patients}_x_{len(feature_names(feature_views()))}": figure(ours / theirs, "x", 2.0, peer),
        f"frame_{patients}_seconds": figure(ours, "s", None, f"{theirs:.2f} s by hand"),
        f"frame_{patients}_memory": figure(memory, "GB", 2.0, None),
    }


def of_values(patients: int, repeats: int) -> dict[str, Any]:
    """Fifty features against one SELECT."""
    view = events_view()
    entities, tables = events(patients)
    found, expected = compute_view(view, entities, tables), hand_written_values(entities, tables)
    for column in view.feature_names:
        np.testing.assert_array_equal(found[column].to_numpy("float64"), expected[column].to_numpy("float64"))
    ours, theirs = in_turns(
        lambda: compute_view(view, entities, tables), lambda: hand_written_values(entities, tables), repeats
    )
    memory = peak_of("values", patients)
    print(f"50 features of {patients:,}: {ours:.2f} s, by hand {theirs:.2f} s, {memory:.2f} GB", flush=True)
    return {
        f"values_{patients}_x_{10 * patients}": figure(ours / theirs, "x", 1.5, "one SELECT by hand"),
        f"values_{patients}_seconds": figure(ours, "s", None, f"{theirs:.2f} s by hand"),
        f"values_{patients}_memory": figure(memory, "GB", 4.0, None),
    }


def only(what: str, patients: int) -> None:
    """Make the numbers once and print the peak memory in GB."""
    if what == "frame":
        with tempfile.TemporaryDirectory() as name:
            training_frame(*feature_files(Path(name), patients))
    else:
        compute_view(events_view(), *events(patients))
    # Not getrusage, which also counts what the process that started this one held.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024**2)


def main() -> None:
    """Files go into a temporary folder, which is taken away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=250_000, help="patients of the frame")
    parser.add_argument("--with-events", type=int, default=1_000_000, help="patients with ten events each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("frame", "values"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        only(options.only, options.patients)
        return
    figures = of_frame(options.patients, options.repeats) | of_values(options.with_events, options.repeats)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "features", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
