"""Hyperparameter search: Optuna, fitted on training rows, scored on validation rows, never more.

A study is named by what it searches (scope, algorithm, rows, space), so that running it again goes on
where it stopped, and a finished one answers at once. Optuna works in memory; its trials are stored by
:mod:`.studies`, which several processes share.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.algorithms import Algorithm, AlgorithmsPolicy, Choice, IntRange
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.display import Table, text
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.modelling.estimators import build_estimator, one_thread
from e2i_dagster.modelling.model_input import LabelledRows, feature_kinds
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.modelling.problem import headline
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training.optuna_space import distribution, suggest
from e2i_dagster.training.studies import FINISHED, StudyTrials, TrialRow, opened_study
from e2i_dagster.training.trial_fit import TREES, FittedTrial, TrialRows, fit_trial
from e2i_dagster.training.warm_start import (
    Pattern,
    RememberedTrial,
    StudyData,
    WarmTrial,
    remembered,
    warm_trials,
)

#: Draws of one trial that may meet points that were tried already; then the space counts as searched through.
_DRAWS = 20
#: Where a trial comes from that is neither the defaults nor remembered.
_DRAWN, _DEFAULTS = "drawn", "defaults"
#: Between two looks at trials that other processes run.
_POLL_SECONDS = 0.2
#: Best trials of a finished study that are remembered.
_REMEMBERED = 5


class Trial(BaseModel):
    """One trial of a study. ``value`` is None unless it ran to its end.

    Attributes:
        origin: ``drawn``, ``defaults``, or study and trial that it was taken over from.
        rounds: boosting rounds that were kept, when fewer than its parameters ask for.
        steps: trees and metric, as reported on the way.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    seconds: float
    origin: str = _DRAWN
    rounds: int | None = None
    steps: tuple[tuple[int, float], ...] = ()


class SearchResult(BaseModel):
    """A study and its best parameters (defaults completed by the best trial's values).

    Attributes:
        default_value: the defaults' score, None where one of them lies outside the space; ``note`` then says so.
        data: what later studies compare themselves with.
        warm_start: trials that were taken over from earlier studies.
        restarted_trials: trials whose process was lost; they were begun anew.
        stopped_by: ``space`` when every point that could be drawn was tried.
    """

    model_config = ConfigDict(frozen=True)
    volatile_fields: ClassVar[dict[str, Any]] = {
        "seconds": True,
        "resumed_trials": True,
        "restarted_trials": True,
        "trials": {"__all__": {"seconds"}},
    }

    study_name: str
    scope: str
    data: StudyData
    sampler: str
    pruner: str
    parameters: dict[str, Any]
    best_trial: int
    best_value: float
    default_value: float | None
    trials: tuple[Trial, ...]
    warm_start: tuple[WarmTrial, ...] = ()
    n_completed: int
    n_pruned: int
    resumed_trials: int
    restarted_trials: int
    stopped_by: Literal["trials", "timeout", "space"]
    search_space: dict[str, Any]
    fixed_parameters: dict[str, Any]
    note: str = ""
    seconds: float

    @property
    def algorithm(self) -> str:
        """The algorithm that was searched."""
        return self.data.algorithm

    @property
    def problem_type(self) -> str:
        """Problem type."""
        return self.data.problem_type

    @property
    def metric(self) -> str:
        """Metric on validation rows; larger is better."""
        return self.data.metric

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows: counts, the best parameters, the trials, and figures of them."""
        from e2i_dagster.training.search_figures import search_figures

        return ({"note": self.note} if self.note else {}) | {
            "study": self.study_name,
            "algorithm": self.algorithm,
            f"best_validation_{self.metric}": self.best_value,
            "completed": self.n_completed,
            "pruned": self.n_pruned,
            "taken_from_earlier_run": self.resumed_trials,
            "stopped_by": self.stopped_by,
            "seconds": self.seconds,
            "parameters": Table(("parameter", "value"), self.parameters.items()),
            "trials": self.trials_table(),
            "warm_start": Table(
                ("study", "trial", "scope", "similarity", "value there"),
                [
                    (trial.study_name, trial.number, trial.scope, trial.similarity, trial.value)
                    for trial in self.warm_start
                ],
                empty="no earlier study of this algorithm and problem type",
            ),
            **search_figures(self),
        }

    def trials_table(self) -> Table:
        """Every trial with its state, score, origin and parameters."""
        return Table(
            ("trial", "state", "value", "trees kept", "origin", "parameters"),
            [
                (
                    *(trial.number, trial.state, trial.value, trial.rounds, trial.origin),
                    [f"{name} {text(value)}" for name, value in trial.parameters.items()],
                )
                for trial in self.trials
            ],
        )

    def to_record(self) -> dict[str, Any]:
        """Values of the row in ``ml_hpo_studies`` that the study itself knows."""
        return {
            "study_name": self.study_name,
            "algorithm_name": self.algorithm,
            "problem_type": self.problem_type,
            "direction": "maximize",
            "sampler_name": self.sampler,
            "pruner_name": self.pruner,
            "metric": self.metric,
            "search_space": self.search_space,
            "fixed_params": self.fixed_parameters,
            "n_trials": len(self.trials),
            "n_completed": self.n_completed,
            "n_pruned": self.n_pruned,
            "n_failed": self.restarted_trials,
            "best_trial_number": self.best_trial,
            "best_value": self.best_value,
            "best_params": self.parameters,
            "duration_seconds": self.seconds,
            "status": "timeout" if self.stopped_by == "timeout" else "completed",
        }

    def to_pattern(self) -> Pattern:
        """What of the study later ones can begin with."""
        complete = [trial for trial in self.trials if trial.value is not None]
        best = sorted(complete, key=lambda trial: (-float(trial.value or 0), trial.number))[:_REMEMBERED]
        return Pattern(
            study_name=self.study_name,
            scope=self.scope,
            data=self.data,
            trials=tuple(
                RememberedTrial(number=trial.number, parameters=trial.parameters, value=trial.value)
                for trial in best
                if trial.value is not None
            ),
        )


def search_hyperparameters(
    algorithm: str,
    rows: VisibleRows,
    *,
    scope: str,
    problem_type: str = "binary_classification",
    algorithms: AlgorithmsPolicy | None = None,
    policy: OptunaPolicy | None = None,
    engine: sa.Engine | None = None,
    memory: Sequence[Pattern] = (),
) -> SearchResult:
    """Search the space of ``algorithm`` for the parameters that score best on the validation rows.

    The first trial is the defaults; one that lies outside a narrowed space is moved to its nearest point, or drawn
    where choices have no order, and the result's note says so. Then come the best trials of similar studies of
    ``memory``; a study that was begun keeps those that it began with. Each trial draws with a seed
    of its own (sampler seed + trials before it), so that a study that was interrupted ends like
    one that was not. Processes that search the same study share its trials and try no point twice.

    Args:
        rows: preprocessing and estimators are fitted on its training rows; its validation rows score a
            trial: ROC-AUC (of several classes the mean of each against the rest), C-index, or minus the root mean
            squared error.
        scope: first part of the study's name.
        engine: of the warehouse, whose ``ml_hpo_trials`` keeps the trials; None keeps them in memory.
        memory: earlier studies, as ``hpo_pattern_memory`` has them.

    Raises:
        VerdictError: one of the outcomes is missing in train or validation.
        ConfigError: the sampler needs a package that is not installed.
        UnavailableError: the database cannot be used.
    """
    started = time.perf_counter()
    algorithms = algorithms or AlgorithmsPolicy.load()
    policy = policy or OptunaPolicy.load()
    declared = algorithms.algorithm(algorithm)
    train, validation = rows.train, rows.validation
    require_both_outcomes(train, validation, problem_type)
    digest = _study_digest(
        train,
        validation,
        algorithm=algorithm,
        problem_type=problem_type,
        algorithms=algorithms,
        policy=policy,
    )
    name = f"{scope}-{algorithm}-{digest}"
    data = StudyData(
        algorithm=algorithm,
        problem_type=problem_type,
        metric=getattr(policy.metric, problem_type),
        training_rows=len(train),
        n_features=train.features.shape[1],
    )
    warm = warm_trials(memory, data, declared.search_space, policy.warm_start, study_name=name)
    timeout = policy.optimization.timeout_seconds

    with (
        _quiet_optuna(),
        one_thread(),
        opened_study(engine, name, lost_after=timeout) as trials,
    ):
        worker = _Worker(trials, declared, policy, data, policy.optimization.trials_of(scope))
        worker.begin(warm)
        resumed = len(worker.done)
        stopped_by: Literal["trials", "timeout", "space"] = "trials"
        prepared: TrialRows | None = None
        try:
            while worker.open:
                if worker.done and time.perf_counter() - started > timeout:
                    stopped_by = "timeout"
                    break
                if batch := worker.claim(policy.optimization.n_jobs):
                    prepared = prepared or _prepared(rows, policy)
                    worker.run(batch, prepared)
                elif worker.others:
                    time.sleep(_POLL_SECONDS)
                else:
                    stopped_by = "space"
                    break
        finally:
            worker.give_back()
        return _result(
            worker,
            scope=scope,
            memory=memory,
            resumed=resumed,
            stopped_by=stopped_by,
            seconds=time.perf_counter() - started,
        )


class _Worker:
    """One process at a study: Optuna's view of it in memory, kept in step with the stored trials.

    Attributes:
        done: finished trials by number, also those of other processes.
        others: trials that wait or run, of any process.
        claimed: numbers of the trials that this process runs.
    """

    def __init__(
        self,
        trials: StudyTrials,
        declared: Algorithm,
        policy: OptunaPolicy,
        data: StudyData,
        n_trials: int,
    ) -> None:
        import optuna

        self.trials, self.declared, self.policy, self.data = trials, declared, policy, data
        self.n_trials = n_trials
        self.space = {name: distribution(declaration) for name, declaration in declared.search_space.items()}
        self.study = optuna.create_study(
            study_name=trials.name, direction="maximize", pruner=_pruner(policy, declared)
        )
        self.done: dict[int, TrialRow] = {}
        self.others: list[TrialRow] = []
        self.claimed: list[int] = []

    @property
    def open(self) -> bool:
        """Whether trials are left."""
        return len(self.done) < self.n_trials

    def begin(self, warm: Sequence[WarmTrial]) -> None:
        """Let the defaults and the trials taken over wait, unless the study was begun before."""
        self._look(first=True)
        if self.done or self.others:
            return
        points = [(_DEFAULTS, self.declared.start), *((trial.origin, trial.parameters) for trial in warm)]
        number = 0
        for origin, point in points[: self.n_trials]:
            added = self.trials.add(TrialRow(number, self._completed(point), origin, "waiting"))
            number += added

    def claim(self, count: int) -> list[tuple[TrialRow, Any]]:
        """Up to ``count`` trials for this process, each as stored and as Optuna's; empty when none is left."""
        claimed: list[tuple[TrialRow, Any]] = []
        attempt = 0
        while len(claimed) < count:
            self._look()
            waiting = next((row for row in self.others if row.state == "waiting"), None)
            taken = len(self.done) + len(self.others)
            if waiting is not None and waiting.number < self.n_trials:
                if self.trials.claim_waiting(waiting.number):
                    self.claimed.append(waiting.number)
                    claimed.append((waiting, self._ask(waiting.number, waiting.parameters)))
                continue
            if taken >= self.n_trials or attempt == _DRAWS:
                break
            trial = self._ask(taken, {}, attempt)
            row = TrialRow(taken, dict(trial.params), _DRAWN, "running")
            if self.trials.add(row):
                self.claimed.append(row.number)
                claimed.append((row, trial))
                attempt = 0
            else:
                self._forget(trial)
                attempt += 1
        return claimed

    def run(self, batch: Sequence[tuple[TrialRow, Any]], rows: TrialRows) -> None:
        """Fit the trials of ``batch`` at once, then tell of them in order: which thread is first decides nothing."""
        fit = partial(self._fit, rows)
        if len(batch) == 1:
            fits = [fit(batch[0])]
        else:
            from threadpoolctl import threadpool_limits

            # OpenMP counts its threads for each thread that uses it.
            with ThreadPoolExecutor(len(batch), initializer=threadpool_limits, initargs=(1,)) as pool:
                fits = list(pool.map(fit, batch))
        for (row, trial), (fitted, seconds) in zip(batch, fits, strict=True):
            self._tell(row, trial, fitted, seconds)

    def give_back(self) -> None:
        """Let the trials wait again that this process claimed and did not finish."""
        for number in self.claimed:
            self.trials.give_back(number)

    def _look(self, *, first: bool = False) -> None:
        """Take notice of what other processes did since."""
        found = self.trials.rows(without=sorted(self.done))
        if self.trials.recover(found, own=first):
            found = self.trials.rows(without=sorted(self.done))
        self.others = [row for row in found if row.state not in FINISHED]
        for row in found:
            if row.state in FINISHED:
                self._learn(row)

    def _learn(self, row: TrialRow) -> None:
        import optuna

        self.done[row.number] = row
        self.study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[row.state.upper()],
                value=row.value,
                params=dict(row.parameters),
                distributions=self.space,
                system_attrs=dict(row.sampler_state),
                intermediate_values=dict(row.steps),
            )
        )

    def _ask(self, before: int, point: Mapping[str, Any], attempt: int = 0) -> Any:
        """Optuna's trial at ``point``, what is missing of it drawn with the seed of ``before`` earlier trials."""
        self.study.sampler = _sampler(self.policy, self.policy.sampler.seed + before + 7919 * attempt)
        if point:
            self.study.enqueue_trial(dict(point))
        trial = self.study.ask()
        suggest(trial, self.declared.search_space)
        return trial

    def _completed(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """``point`` with what is missing of it drawn, as the first trial of a study draws."""
        if set(point) == set(self.space):
            return dict(point)
        trial = self._ask(0, point)
        self._forget(trial)
        return dict(trial.params)

    def _forget(self, trial: Any) -> None:
        import optuna

        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _fit(self, rows: TrialRows, claimed: tuple[TrialRow, Any]) -> tuple[FittedTrial, float]:
        _, trial = claimed
        began = time.perf_counter()

        def report(trees: int, value: float) -> bool:
            trial.report(value, trees)
            return bool(trial.should_prune())

        fitted = fit_trial(
            build_estimator(
                self.data.algorithm,
                self.data.problem_type,
                {**self.declared.defaults, **trial.params},
                seed=self.policy.sampler.seed,
            ),
            rows,
            report,
            lambda predicted: validation_score(rows.validation_target, predicted, self.data.problem_type),
            problem_type=self.data.problem_type,
            interval=self.policy.pruner.interval,
            patience=self.policy.early_stopping.rounds,
        )
        return fitted, time.perf_counter() - began

    def _tell(self, row: TrialRow, trial: Any, fitted: FittedTrial, seconds: float) -> None:
        import optuna

        if fitted.value is None:
            finished = self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            finished = self.study.tell(trial, fitted.value)
        ended = replace(
            row,
            state="pruned" if fitted.value is None else "complete",
            value=fitted.value,
            steps=tuple(finished.intermediate_values.items()),
            sampler_state=finished.system_attrs,
            rounds=fitted.rounds,
            seconds=seconds,
        )
        self.trials.finish(ended)
        self.claimed.remove(row.number)
        self.done[row.number] = ended


def _prepared(rows: VisibleRows, policy: OptunaPolicy) -> TrialRows:
    train, validation = rows.train, rows.validation
    kinds = feature_kinds(train.features, list(train.features.columns))
    preprocessor = build_preprocessor(kinds, policy.preprocessing.max_levels).fit(train.features)
    return TrialRows(
        preprocessor.transform(train.features),
        train.target,
        preprocessor.transform(validation.features),
        validation.target,
    )


def _sampler(policy: OptunaPolicy, seed: int) -> Any:
    import optuna

    asked = policy.sampler
    match asked.name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "cmaes":
            if find_spec("cmaes") is None:
                raise ConfigError(
                    "config/optuna_config.yaml: sampler.name: 'cmaes' needs the package cmaes, which is not "
                    "installed.",
                    file="config/optuna_config.yaml",
                    field="sampler.name",
                    value="cmaes",
                    remedy="Install it (`pip install cmaes`), or use tpe or random.",
                )
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=asked.n_startup_trials, warn_independent_sampling=False
            )
        case _:
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=asked.n_startup_trials, multivariate=asked.multivariate
            )


def _pruner(policy: OptunaPolicy, declared: Algorithm) -> Any:
    import optuna

    asked = policy.pruner
    match asked.name:
        case "median":
            return optuna.pruners.MedianPruner(
                n_startup_trials=asked.n_startup_trials, n_warmup_steps=asked.n_warmup_steps
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=asked.interval,
                max_resource=max(asked.interval, _most_trees(declared)),
                reduction_factor=asked.reduction_factor,
            )
        case _:
            return optuna.pruners.NopPruner()


def _most_trees(declared: Algorithm) -> int:
    """The largest number of trees of the space; 1 for models without trees."""
    for name in TREES:
        match declared.search_space.get(name):
            case IntRange() as whole:
                return whole.high
            case Choice() as choice:
                return int(max(map(float, choice.choices)))
    return max((int(declared.defaults.get(name, 1)) for name in TREES), default=1)


def require_both_outcomes(train: LabelledRows, validation: LabelledRows, problem_type: str) -> None:
    """Raise VerdictError when a split is empty, or lacks a class of the outcome."""
    for part, rows in (("training", train), ("validation", validation)):
        if not len(rows):
            raise VerdictError(f"there are no {part} rows.")
        if problem_type == "survival" and not (rows.target > 0).any():
            raise VerdictError(
                f"none of the {len(rows)} {part} rows has the event; times without one teach nothing.",
                remedy="Check the scope's outcome window and the cohort's size.",
            )
        if problem_type == "binary_classification" and len(np.unique(rows.target)) < 2:
            raise VerdictError(
                f"all {len(rows)} {part} rows have the same outcome; both outcomes are needed to learn.",
                remedy="Check the scope's outcome window and the cohort's size.",
            )
        absent = [name for code, name in enumerate(rows.classes) if not (rows.target == code).any()]
        if absent:
            raise VerdictError(
                f"none of the {len(rows)} {part} rows is of class {absent[0]!r}; every class is needed to learn.",
                field="outcome.choice",
                value=absent[0],
                remedy="Join it with another class of the scope's outcome, or load more patients.",
            )


def _study_digest(
    train: LabelledRows,
    validation: LabelledRows,
    *,
    algorithm: str,
    problem_type: str,
    algorithms: AlgorithmsPolicy,
    policy: OptunaPolicy,
) -> str:
    declared = algorithms.algorithm(algorithm)
    return digest_of(
        {
            "algorithm": declared.model_dump(mode="json", include={"defaults", "search_space"}),
            "problem_type": problem_type,
            "rows": [rows_digest(train), rows_digest(validation)],
            "policy": policy.model_dump(
                mode="json", include={"sampler", "pruner", "early_stopping", "metric", "preprocessing"}
            ),
            "n_jobs": policy.optimization.n_jobs,
        }
    )


def rows_digest(rows: LabelledRows) -> str:
    """Digest of features, their order and the target, row order included."""
    import hashlib

    import pandas as pd

    state = hashlib.sha256("\x1f".join(map(str, rows.features.columns)).encode())
    state.update(pd.util.hash_pandas_object(rows.features, index=False).to_numpy().tobytes())
    state.update(np.ascontiguousarray(rows.target).tobytes())
    return state.hexdigest()[:16]


def validation_score(target: np.ndarray, predicted: np.ndarray, problem_type: str) -> float:
    """ROC-AUC of probabilities, C-index of times, minus the root mean squared error of numbers: larger is better."""
    if problem_type != "regression":
        return headline(problem_type, target, predicted)
    return -float(np.sqrt(np.mean((target - predicted) ** 2)))


def _result(
    worker: _Worker,
    *,
    scope: str,
    memory: Sequence[Pattern],
    resumed: int,
    stopped_by: Literal["trials", "timeout", "space"],
    seconds: float,
) -> SearchResult:
    declared, policy, space = worker.declared, worker.policy, worker.declared.search_space
    rows = [worker.done[number] for number in sorted(worker.done)]
    complete = [row for row in rows if row.value is not None]
    best = max(complete, key=lambda row: (row.value, -row.number))
    kept = {name: best.rounds for name in TREES if best.rounds is not None and name in declared.defaults}
    return SearchResult(
        study_name=worker.trials.name,
        scope=scope,
        data=worker.data,
        sampler=type(_sampler(policy, 0)).__name__,
        pruner=type(worker.study.pruner).__name__,
        parameters={**declared.defaults, **best.parameters, **kept},
        best_trial=best.number,
        best_value=float(best.value or 0.0),
        default_value=next(
            (row.value for row in rows if not declared.moved and row.origin == _DEFAULTS), None
        ),
        trials=tuple(
            Trial(
                number=row.number,
                state=row.state,
                value=row.value,
                parameters={name: row.parameters[name] for name in space},
                seconds=row.seconds or 0.0,
                origin=row.origin,
                rounds=row.rounds,
                steps=tuple(row.steps),
            )
            for row in rows
        ),
        warm_start=remembered([row.origin for row in rows], memory, worker.data),
        n_completed=len(complete),
        n_pruned=len(rows) - len(complete),
        resumed_trials=resumed,
        restarted_trials=sum(row.restarts for row in rows),
        stopped_by=stopped_by,
        search_space={name: dimension.model_dump(mode="json") for name, dimension in space.items()},
        fixed_parameters={"random_state": policy.sampler.seed, "n_jobs": 1},
        note="; ".join(f"{name}: {words}" for name, words in declared.moved.items()),
        seconds=seconds,
    )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna without its line for each trial and without its notices about experimental parts."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
