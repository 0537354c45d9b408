"""Search: 50 trials against the same 50 trials by hand, and what a warm start gains.

By hand is Optuna with the same sampler, pruner, seeds and reports on a study in memory, and XGBoost on the matrix
that scikit-learn prepared. Both sides run in this process on one thread and take turns; figures are CPU seconds.
Ours also stores every trial in the warehouse, so that the CPU of the database server counts, too. Both try the same
points and find the same values, which is checked.

The warm start is that of a scope that nobody searched for: nine other synthetic scopes are remembered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import statistics
import sys
import time

import numpy as np
import optuna
import pandas as pd
import psutil
import sqlalchemy as sa
import xgboost
from sklearn.metrics import roc_auc_score
from xgboost.callback import TrainingCallback

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.modelling.estimators import one_thread
from e2i_dagster.modelling.model_input import LabelledRows, feature_columns, feature_kinds, labelled_rows
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training import SearchResult, search_hyperparameters
from e2i_dagster.training.optuna_space import suggest

ALGORITHM = "XGBoost"


def patients(n: int, seed: int, *, scope: int = 0) -> LabelledRows:
    """Twenty features of which eight matter, with an interaction; each scope has coefficients of its own."""
    draw, coefficients = np.random.default_rng(seed), np.random.default_rng(1_000 + scope)
    values = pd.DataFrame(draw.normal(size=(n, 20)), columns=[f"x{number}" for number in range(20)])
    signal = values.to_numpy()[:, :8] @ coefficients.normal(0, 0.6, 8)
    signal += 0.8 * np.sign(values["x0"]) * values["x1"] + coefficients.normal(0, 0.5)
    values["label"] = (draw.random(n) < 1 / (1 + np.exp(-signal))).astype("int64")
    values["patient_id"] = [f"PAT{number:08d}" for number in range(n)]
    return labelled_rows(values, feature_kinds(values, feature_columns(values)))


def asked_for(trials: int, warm: int = 0) -> OptunaPolicy:
    """The shipped settings with another number of trials and without the brake of time."""
    shipped = OptunaPolicy.load()
    budget = shipped.optimization.model_copy(update={"n_trials": trials, "timeout_seconds": 7200.0})
    start = shipped.warm_start.model_copy(update={"maximum_trials": warm})
    return shipped.model_copy(update={"optimization": budget, "warm_start": start})


class ByHand(TrainingCallback):
    """Reports as ours does."""

    def __init__(
        self, trial: optuna.Trial, matrix: xgboost.DMatrix, target: np.ndarray, interval: int
    ) -> None:
        self.trial, self.matrix, self.target, self.interval, self.pruned = (
            trial,
            matrix,
            target,
            interval,
            False,
        )

    def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: object) -> bool:
        done = epoch + 1
        if done % self.interval == 0 and done < self.trial.params["n_estimators"]:
            self.trial.report(roc_auc_score(self.target, model.predict(self.matrix)), done)
            self.pruned = self.trial.should_prune()
        return self.pruned


def by_hand(rows: VisibleRows, policy: OptunaPolicy) -> list[float | None]:
    """The values of the trials of a study that somebody writes down for these rows."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    declared = AlgorithmsPolicy.load().algorithm(ALGORITHM)
    pruner = optuna.pruners.MedianPruner(policy.pruner.n_startup_trials, policy.pruner.n_warmup_steps)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    with one_thread():
        features = rows.train.features
        prepare = build_preprocessor(feature_kinds(features, list(features.columns)), 50).fit(features)
        learn, check = prepare.transform(features), prepare.transform(rows.validation.features)
        for number in range(policy.optimization.n_trials):
            study.sampler = optuna.samplers.TPESampler(
                seed=policy.sampler.seed + number,
                n_startup_trials=policy.sampler.n_startup_trials,
                multivariate=policy.sampler.multivariate,
            )
            if number == 0:
                study.enqueue_trial(declared.start)
            trial = study.ask()
            drawn = suggest(trial, declared.search_space)
            reporter = ByHand(trial, xgboost.DMatrix(check), rows.validation.target, policy.pruner.interval)
            model = xgboost.XGBClassifier(
                **drawn, tree_method="hist", n_jobs=1, random_state=policy.sampler.seed,
                early_stopping_rounds=policy.early_stopping.rounds, callbacks=[reporter],
            )  # fmt: skip
            model.fit(learn, rows.train.target, eval_set=[(check, rows.validation.target)], verbose=False)
            if reporter.pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, roc_auc_score(rows.validation.target, model.predict_proba(check)[:, 1]))
    return [trial.value if trial.state.name == "COMPLETE" else None for trial in study.trials]


def cpu_seconds(server: list[psutil.Process]) -> float:
    """CPU of this process and of the backend of the database, so far."""
    used = time.process_time()
    for process in server:
        times = process.cpu_times()
        used += times.user + times.system
    return used


def server_processes(engine: sa.Engine) -> list[psutil.Process]:
    """The backend that the engine's pooled connection talks to."""
    with engine.connect() as connection:
        return [psutil.Process(connection.scalar(sa.text("SELECT pg_backend_pid()")))]


def cost(trials: int, n: int, repeats: int, engine: sa.Engine) -> dict[str, float]:
    """Medians of CPU seconds: by hand, ours in memory, ours stored."""
    rows = VisibleRows(patients(n, 1), patients(n // 3, 2))
    policy = asked_for(trials)
    taken: dict[str, list[float]] = {"hand": [], "memory": [], "stored": []}
    by_hand(rows, asked_for(2))
    search_hyperparameters(ALGORITHM, rows, scope="warm", policy=asked_for(2), engine=engine)
    server = server_processes(engine)
    for _ in range(repeats):
        began = cpu_seconds(server)
        values = by_hand(rows, policy)
        taken["hand"].append(cpu_seconds(server) - began)
        for name, used in (("memory", None), ("stored", engine)):
            began = cpu_seconds(server)
            found = search_hyperparameters(
                ALGORITHM, rows, scope=f"bench-{secrets.token_hex(4)}", policy=policy, engine=used
            )
            taken[name].append(cpu_seconds(server) - began)
            ours = [trial.value for trial in found.trials]
            if not np.allclose([value or 0 for value in ours], [value or 0 for value in values], atol=1e-6):
                raise SystemExit("ours and by hand tried other points or found other values")
        print({name: round(values[-1], 2) for name, values in taken.items()}, flush=True)
    return {name: statistics.median(values) for name, values in taken.items()}


def warm_gain(scopes: int, n: int) -> tuple[float, float, int]:
    """Median over ``scopes`` of the best of the first ten trials with less that without memory; its median in
    units of what 40 cold trials gain over the defaults; and in how many scopes memory is at least as good."""
    seen = [
        VisibleRows(patients(n, 10 + scope, scope=scope), patients(n // 3, 500 + scope, scope=scope))
        for scope in range(scopes)
    ]
    cold: list[SearchResult] = []
    for scope, rows in enumerate(seen):
        cold.append(search_hyperparameters(ALGORITHM, rows, scope=f"scope{scope}", policy=asked_for(40)))
        print(f"scope {scope}: cold, best of 40 {cold[-1].best_value:.4f}", flush=True)
    gains: list[float] = []
    shares: list[float] = []
    for scope, rows in enumerate(seen):
        memory = [found.to_pattern() for other, found in enumerate(cold) if other != scope]
        # Ten draws differ by chance alone: several seeds.
        both: list[tuple[float, float]] = []
        for seed in (42, 142, 242):
            best: list[float] = []
            for warm in (0, 5):
                policy = asked_for(10, warm)
                sampler = policy.sampler.model_copy(update={"seed": seed})
                found = search_hyperparameters(
                    ALGORITHM, rows, scope=f"scope{scope}", memory=memory,
                    policy=policy.model_copy(update={"sampler": sampler}),
                )  # fmt: skip
                best.append(found.best_value)
            both.append((best[0], best[1]))
        gain = statistics.mean(warm - without for without, warm in both)
        reach = cold[scope].best_value - (cold[scope].default_value or 0.0)
        gains.append(gain)
        shares.append(gain / reach if reach > 0 else 0.0)
        print(
            f"scope {scope}: warm start gains {gain:+.4f}, best of 40 over defaults {reach:.4f}", flush=True
        )
    return statistics.median(gains), statistics.median(shares), sum(gain >= 0 for gain in gains)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1_200, help="training patients")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scopes", type=int, default=10)
    options = parser.parse_args()
    from e2i_dagster.database.connection import engine

    taken = cost(options.trials, options.rows, options.repeats, engine(role="app"))
    stored, memory = taken["stored"] / taken["hand"], taken["memory"] / taken["hand"]
    gain, share, as_good = warm_gain(options.scopes, options.rows)
    peer = f"{options.trials} trials by hand, {taken['hand']:.1f} s"
    figures = {
        "search with stored trials": {
            "value": round(stored, 2), "unit": "x CPU", "goal": 1.15, "peer": peer, "holds": stored <= 1.15,
        },
        "search in memory": {
            "value": round(memory, 2), "unit": "x CPU", "goal": 1.15, "peer": peer, "holds": memory <= 1.15,
        },
        "warm start, best of the first 10": {
            "value": round(gain, 4), "unit": "ROC-AUC more", "goal": 0.0,
            "peer": f"cold start; at least as good in {as_good} of {options.scopes} scopes, {share:.0%} of the way "
            "from the defaults to the best of 40", "holds": gain >= 0,
        },
    }  # fmt: skip
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "training", "figures": figures, "machine": machine}))
    return 0 if all(figure["holds"] for figure in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
