"""One million units assigned by stratified permuted blocks: seconds, and the worst imbalance inside a stratum.

The imbalance is the largest difference of the two arms' counts in any stratum after any unit, not only at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time

import numpy as np
import pandas as pd

from e2i_dagster.experiments.designs.randomization import RandomizationPlan, assign, batch_seal

SECONDS = 5.0
KEY = b"the key of the benchmark, thirty-two characters"


def million(units: int, seed: int = 42) -> pd.DataFrame:
    """Units in 60 strata of very different sizes."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "unit_id": pd.array(np.char.add("U", np.arange(units).astype(str)), dtype="string[pyarrow]"),
            "region": rng.choice(["north", "south", "east", "west"], units, p=[0.6, 0.25, 0.1, 0.05]),
            "specialty": rng.choice([f"s{number}" for number in range(15)], units),
        }
    )


def running_imbalance(assigned: pd.DataFrame) -> int:
    """Largest difference of the arms' counts in a stratum, over all units in order."""
    step = pd.Series(np.where(assigned["variant"].to_numpy() == "treatment", 1, -1))
    return int(step.groupby(assigned["stratum"].to_numpy()).cumsum().abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    plan = RandomizationPlan(
        experiment="benchmark", method="stratified", arms=("control", "treatment"), ratios=(0.5, 0.5),
        weights=(1, 1), strata=("region", "specialty"), block_sizes=(4, 6, 8), seed=1,
    )  # fmt: skip
    units = million(options.units)
    seconds = []
    for number in range(options.repeat):
        began = time.perf_counter()
        assigned = assign(units, plan, key=KEY)
        seconds.append(time.perf_counter() - began)
        print(f"run {number + 1}: {options.units:,} units in {seconds[-1]:.2f} s", flush=True)
    began = time.perf_counter()
    batch_seal(assigned, key=KEY, previous="")
    seal = time.perf_counter() - began
    worst = running_imbalance(assigned)
    half = max(plan.block_sizes) // 2
    median = statistics.median(seconds)
    print(
        f"strata {assigned['stratum'].nunique()}, worst running imbalance {worst}, seal {seal:.2f} s",
        flush=True,
    )
    figures = {
        "stratified_blocks": {
            "value": round(median, 3), "unit": "s", "goal": SECONDS, "peer": f"{options.units:,} units, median",
            "holds": median < SECONDS,
        },
        "worst_imbalance": {
            "value": worst, "unit": "units", "goal": half, "peer": "half the largest block", "holds": worst <= half,
        },
        "seal": {
            "value": round(seal, 3), "unit": "s", "goal": None, "peer": "keyed digest of the batch", "holds": True,
        },
    }  # fmt: skip
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "randomization", "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
