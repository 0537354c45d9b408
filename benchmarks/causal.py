"""Coverage of the consensus and of each library on processes with known effects; error of individual effects.

Coverage: seeds of `confounded` whose 95 % interval holds the true average effect. PEHE: root mean squared error of
individual effects on `heterogeneous`, forest against S-learner. Usage:
``python benchmarks/causal.py [--seeds 100] [--patients 2000] [--processes 2]``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster import causal
from e2i_dagster.causal.heterogeneity import forest_effects, s_learner_effects
from e2i_dagster.causal.rows import causal_rows
from e2i_dagster.causal.study import nuisances_of
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.synthetic.generate import FULL, generate
from e2i_dagster.synthetic.truth import Truth, true_effects

CONFOUNDERS = ["disease_severity", "academic_hcp", "age_at_diagnosis", "insurance_type"]
ASKED = {"treatment": "high_engagement", "outcome": "treatment_initiated", "confounders": CONFOUNDERS}
CONSENSUS = "consensus"


def drawn(dgp: str, patients: int, seed: int) -> tuple[pd.DataFrame, Truth]:
    """Patients of the process with treatment and outcome, and the truth."""
    small: Any = {
        name: 10 for name in FULL if name not in ("n_hcps", "n_patients", "n_treatments", "n_engagements")
    }
    journeys = generate(dgp, n_hcps=60, n_patients=patients, seed=seed, **small)["patient_journeys"]
    frame = journeys[[*CONFOUNDERS, "treatment_initiated"]].assign(
        high_engagement=journeys["engagement_score"] >= 5
    )
    return frame, true_effects(dgp, n_patients=patients, seed=seed)


def covered(patients: int, seed: int) -> dict[str, tuple[bool, float]]:
    """By estimator: whether its interval holds the truth, and its error."""
    frame, truth = drawn("confounded", patients, seed)
    found = causal.cross_validate(frame, **ASKED, seed=seed)
    results = {
        estimate.label: (bool(estimate.lower <= truth.ate <= estimate.upper), estimate.point - truth.ate)
        for estimate in found.effects.estimates
        if estimate.point is not None and estimate.lower is not None and estimate.upper is not None
    }
    if found.consensus_effect is not None and found.consensus_interval is not None:
        lower, upper = found.consensus_interval
        results[CONSENSUS] = (bool(lower <= truth.ate <= upper), found.consensus_effect - truth.ate)
    return results


def pehe(patients: int, seed: int) -> tuple[float, float]:
    """Root mean squared error of individual effects: forest, S-learner."""
    policy = CausalPolicy.load(config_folder())
    frame, truth = drawn("heterogeneous", patients, seed)
    rows = causal_rows(frame, **ASKED)
    nuisances = nuisances_of(rows, policy, seed)
    cate = truth.patients["cate"].to_numpy()
    effects = (forest_effects(rows, nuisances, policy, seed), s_learner_effects(rows, nuisances, seed))
    forest, s_learner = (float(np.sqrt(np.mean(np.square(effect - cate)))) for effect in effects)
    return forest, s_learner


def each_seed(patients: int, seeds: int, processes: int) -> Iterator[dict[str, tuple[bool, float]]]:
    numbers = range(1, seeds + 1)
    if processes == 1:
        yield from (covered(patients, seed) for seed in numbers)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(covered, [patients] * seeds, numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--patients", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    begun = time.perf_counter()
    results = []
    for result in each_seed(given.patients, given.seeds, given.processes):
        results.append(result)
        if len(results) % 10 == 0 or len(results) == given.seeds:
            hits = sum(result[CONSENSUS][0] for result in results)
            print(
                f"{len(results)} of {given.seeds} seeds, consensus covers {hits}, {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
    figures = {}
    for label in results[0]:
        hits = sum(result[label][0] for result in results)
        bias = float(np.mean([result[label][1] for result in results]))
        print(f"{label}: covers {hits} of {len(results)}, mean error {bias:+.4f}", flush=True)
        goal = math.ceil(0.9 * given.seeds)
        figures[f"coverage_{label.replace(' ', '_')}"] = {
            "value": hits,
            "unit": f"of {len(results)} seeds",
            "goal": goal if label == CONSENSUS else None,
            "peer": "true effect of `confounded`",
            "holds": label != CONSENSUS or hits >= goal,
        }
    errors = np.array([pehe(given.patients, seed) for seed in range(1, 6)]).mean(axis=0)
    print(f"PEHE on heterogeneous: forest {errors[0]:.4f}, S-learner {errors[1]:.4f}", flush=True)
    figures["pehe_forest"] = {
        "value": round(float(errors[0]), 4),
        "unit": "probability",
        "goal": None,
        "peer": f"S-learner {errors[1]:.4f}",
        "holds": True,
    }
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "causal", "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
