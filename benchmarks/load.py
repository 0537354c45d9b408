"""Loading treatment events with validation, rejects and keys, against bare COPY of the same rows.

Both sides fill the same keyed table (primary key, foreign keys, indexes) on the same server, in turn,
and the medians are compared. Bare COPY gets the accepted rows already encoded; the loader gets the
delivered frame, of which some rows are bad. Making the rows is in neither time.
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
import psycopg

from e2i_dagster.loading import staging
from e2i_dagster.loading.load import load, load_table
from e2i_dagster.synthetic.raw_tables import npi

GOAL = 1.6
TEXT = "string[pyarrow]"
BAD_EVERY = 200


def _keys(prefix: str, width: int, count: int) -> np.ndarray:
    return np.char.add(prefix, np.char.zfill(np.arange(1, count + 1).astype(str), width))


def parents(journeys: int, professionals: int) -> dict[str, pd.DataFrame]:
    """HCPs and journeys that the events refer to."""
    hcps = _keys("HCP", 8, professionals)
    start = np.datetime64("2022-01-01") + (np.arange(journeys) % 700)
    return {
        "hcp_profiles": pd.DataFrame({"hcp_id": hcps, "npi": npi(np.arange(professionals))}, dtype=TEXT),
        "patient_journeys": pd.DataFrame(
            {
                "patient_journey_id": pd.array(_keys("PJ", 16, journeys), dtype=TEXT),
                "patient_id": pd.array(_keys("PAT", 8, journeys), dtype=TEXT),
                "journey_start_date": start.astype("datetime64[us]"),
                "hcp_id": pd.array(hcps[np.arange(journeys) % professionals], dtype=TEXT),
            }
        ),
    }


def events(rows: int, journeys: int, professionals: int, seed: int = 42) -> pd.DataFrame:
    """Treatment events with every usual column; one in ``BAD_EVERY`` breaks a rule."""
    rng = np.random.default_rng(seed)
    journey = rng.integers(0, journeys, rows)
    kinds = np.array(["prescription", "consultation", "lab_test", "procedure"], dtype=object)
    kind = kinds[rng.choice(4, rows, p=[0.7, 0.15, 0.1, 0.05])]
    kind[::BAD_EVERY] = "unheard_of"
    duration = pd.array(rng.integers(7, 90, rows), dtype="Int64")
    brands = np.array(["Remibrutinib", "Fabhalta", "Kisqali"], dtype=object)
    brand = rng.integers(0, 3, rows)
    return pd.DataFrame(
        {
            "treatment_event_id": pd.array(_keys("TE", 25, rows), dtype=TEXT),
            "patient_journey_id": pd.array(_keys("PJ", 16, journeys)[journey], dtype=TEXT),
            "patient_id": pd.array(_keys("PAT", 8, journeys)[journey], dtype=TEXT),
            "hcp_id": pd.array(
                _keys("HCP", 8, professionals)[rng.integers(0, professionals, rows)], dtype=TEXT
            ),
            "event_date": (np.datetime64("2022-01-01") + rng.integers(0, 1096, rows)).astype(
                "datetime64[us]"
            ),
            "event_type": pd.array(kind, dtype=TEXT),
            "event_subtype": pd.array(np.where(kind == "prescription", "refill", "visit"), dtype=TEXT),
            "brand": pd.array(brands[brand], dtype=TEXT),
            "drug_ndc": pd.array(
                np.array(["00078-0001-15", "00078-0002-15", "00078-0003-15"])[brand], dtype=TEXT
            ),
            "drug_class": pd.array(
                np.array(["BTK_inhibitor", "factor_B", "CDK4_6_inhibitor"])[brand], dtype=TEXT
            ),
            "duration_days": duration,
            "location_type": pd.array(rng.choice(["office", "hospital"], rows), dtype=TEXT),
            "cost": np.round(rng.gamma(2.0, 150.0, rows), 2),
            "outcome_indicator": pd.array(rng.choice(["improved", "stable", "worsened"], rows), dtype=TEXT),
            "adverse_event_flag": pd.array(rng.random(rows) < 0.03, dtype="boolean"),
            "discontinuation_flag": pd.array(rng.random(rows) < 0.05, dtype="boolean"),
            "sequence_number": pd.array(rng.integers(1, 12, rows), dtype="Int64"),
            "days_from_diagnosis": pd.array(rng.integers(-300, 600, rows), dtype="Int64"),
            "data_source": pd.array(np.full(rows, "synthetic"), dtype=TEXT),
        }
    )


def _emptied(owner: Any, checkpoint: Callable[[], Any]) -> None:
    """Both sides start from an empty table, with nothing of the other side left to be written."""
    with staging.connected(owner) as connection:
        connection.execute("TRUNCATE treatment_events, load_rejects")
        connection.commit()
    checkpoint()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def measure(
    owner: Any, engine: Any, checkpoint: Callable[[], Any], *, rows: int, repeats: int, batch_size: int
) -> dict[str, Any]:
    """Times of both sides in turn, and their ratio."""
    import pyarrow as pa
    from psycopg import sql

    journeys, professionals = max(rows // 40, 100), max(rows // 200, 20)
    before = load(parents(journeys, professionals), engine=engine)
    if not before.success:
        raise SystemExit(f"the parents were not loaded: {before.failures}")
    frame = events(rows, journeys, professionals)
    good = frame[frame["event_type"] != "unheard_of"]
    good = good.assign(event_date=good["event_date"].dt.date)
    encoded = memoryview(staging.encode(pa.Table.from_pandas(good, preserve_index=False)))
    names = sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    statement = sql.SQL("COPY treatment_events ({}) FROM STDIN (FORMAT csv)").format(names)

    def bare() -> None:
        with staging.connected(engine) as connection:
            with connection.cursor().copy(statement) as copy:
                copy.write(encoded)
            connection.commit()

    def loader() -> Any:
        return load_table("treatment_events", frame, engine=engine, batch_size=batch_size)

    seconds: dict[str, list[float]] = {"bare": [], "loader": []}
    again: list[float] = []
    for repeat in range(repeats):
        sides: list[tuple[str, Callable[[], Any]]] = [("bare", bare), ("loader", loader)]
        for side, work in sides:
            _emptied(owner, checkpoint)
            taken, result = _timed(work)
            seconds[side].append(taken)
            print(
                f"{repeat + 1}/{repeats} {side:<6} {taken:7.2f} s  {rows / taken:10,.0f} rows/s", flush=True
            )
        done = result.tables["treatment_events"]
        if done.inserted != len(good) or done.rejected != rows - len(good):
            raise SystemExit(f"the loader took {done.inserted} and rejected {done.rejected} of {rows} rows")
    taken, result = _timed(loader)
    again.append(taken)
    if result.tables["treatment_events"].unchanged != len(good):
        raise SystemExit("the second load of the same rows changed something")
    print(f"again, nothing to change: {taken:.2f} s", flush=True)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratio = medians["loader"] / medians["bare"]
    return {
        "ratio_to_bare_copy": {
            "value": round(ratio, 3),
            "unit": "x",
            "goal": GOAL,
            "peer": f"bare COPY of the same rows into the same keyed table, {medians['bare']:.2f} s",
            "holds": ratio <= GOAL,
        },
        "rows_per_second": {
            "value": round(rows / medians["loader"]),
            "unit": "rows/s",
            "goal": None,
            "peer": None,
            "holds": True,
        },
        "reload_unchanged": {
            "value": round(again[0], 2),
            "unit": "s",
            "goal": None,
            "peer": None,
            "holds": True,
        },
    }


def main() -> None:
    """Run on an embedded server of its own in a temporary folder, which is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="e2i-load-") as folder:
        os.environ["E2I_HOME"] = folder
        os.environ.pop("E2I_DATABASE_URL", None)
        from e2i_dagster.database import server
        from e2i_dagster.database.connection import engine

        try:
            app, owner = engine(role="app"), engine(role="owner")
            # Only the administrator of the embedded server may ask for a checkpoint.
            address = server._conninfo(server.ensure_server(), server.DATABASE)
            with psycopg.connect(address, autocommit=True) as admin:
                figures = measure(
                    owner,
                    app,
                    lambda: admin.execute("CHECKPOINT"),
                    rows=options.rows,
                    repeats=options.repeats,
                    batch_size=options.batch_size,
                )
        finally:
            server.remove_server(Path(folder))
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "load", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
