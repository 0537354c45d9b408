"""The full synthetic set: time to draw it, and time to load its files into an empty warehouse.

Loading starts at Parquet files, as a supplier delivers them, and ends when every row is merged or
rejected: reading, validation, keys, references and reconciliation are in its time. Both are medians.
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

GENERATE_GOAL = 5.0
LOAD_GOAL = 15.0


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of ``work``."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def measure(folder: Path, owner: Any, app: Any, *, repeats: int) -> dict[str, Any]:
    """Times of drawing and loading; the tables are emptied before each load."""
    from e2i_dagster.loading import staging
    from e2i_dagster.loading.load import load
    from e2i_dagster.sources.files import read
    from e2i_dagster.synthetic.generate import generate, write
    from e2i_dagster.tables import RAW_TABLES

    seconds: dict[str, list[float]] = {"generate": [], "load": []}
    for repeat in range(1, repeats + 1):
        taken, tables = timed(lambda: generate("confounded", seed=42))
        rows = sum(map(len, tables.values()))
        seconds["generate"].append(taken)
        print(f"{repeat}/{repeats} generate {taken:6.2f} s  {rows:,} rows", flush=True)
        write(tables, folder, format="parquet")
        with staging.connected(owner) as connection:
            connection.execute(f"TRUNCATE {', '.join(RAW_TABLES)}, load_rejects CASCADE")
            connection.commit()
        taken, report = timed(lambda: load(read(folder), engine=app))
        loaded = sum(table.loaded for table in report.tables.values())
        if loaded != rows:
            raise SystemExit(f"{loaded:,} of {rows:,} rows were loaded: {report.failures}")
        seconds["load"].append(taken)
        print(f"{repeat}/{repeats} load     {taken:6.2f} s  {rows / taken:,.0f} rows/s", flush=True)
    drawn, taken = statistics.median(seconds["generate"]), statistics.median(seconds["load"])
    return {
        "generate_full_set": figure(drawn, GENERATE_GOAL),
        "load_full_set": figure(taken, LOAD_GOAL),
    }


def figure(seconds: float, goal: float) -> dict[str, Any]:
    """A time with its goal."""
    return {"value": round(seconds, 2), "unit": "s", "goal": goal, "peer": None, "holds": seconds < goal}


def main() -> None:
    """Run on an embedded server of its own in a temporary folder, which is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="e2i-set-") as folder:
        state = Path(folder)
        os.environ["E2I_HOME"] = folder
        os.environ.pop("E2I_DATABASE_URL", None)
        from e2i_dagster.database import server
        from e2i_dagster.database.connection import engine

        try:
            figures = measure(
                state / "delivery", engine(role="owner"), engine(role="app"), repeats=options.repeats
            )
        finally:
            server.remove_server(state)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "synthetic", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
