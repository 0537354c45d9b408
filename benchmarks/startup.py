"""Loading the code location, against `import dagster` alone, each in a fresh process, in turn.

The UI, the daemon and every run load the definitions; nobody should have to wait for libraries that
only a stage needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

GOAL = 3.0
SIDES = {"dagster": "import dagster", "definitions": "from e2i_dagster.definitions import defs"}


def seconds_of(statement: str) -> float:
    """Seconds that a fresh Python process needs for ``statement``, from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


def measure(repeats: int) -> dict[str, Any]:
    """Medians of both sides and their ratio; the first round warms the file cache and is not counted."""
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(repeats + 1):
        for side, statement in SIDES.items():
            seconds = seconds_of(statement)
            print(f"{repeat}/{repeats} {side:<12} {seconds:6.2f} s", flush=True)
            if repeat:
                taken[side].append(seconds)
    bare, ours = (statistics.median(taken[side]) for side in SIDES)
    return {
        "definitions_load": {
            "value": round(ours, 2),
            "unit": "s",
            "goal": GOAL,
            "peer": None,
            "holds": ours < GOAL,
        },
        "ratio_to_import_dagster": {
            "value": round(ours / bare, 2),
            "unit": "x",
            "goal": None,
            "peer": f"`import dagster` in the same run, {bare:.2f} s",
            "holds": True,
        },
    }


def main() -> None:
    """Print progress and, as the last line, the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    figures = measure(parser.parse_args().repeats)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "startup", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
