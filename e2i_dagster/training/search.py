"""Hyperparameter search: Optuna, fitted on training rows, scored on validation rows, never more.

A study is named by what it searches (scope, algorithm, rows, space), so that running it again goes on
where it stopped, and a finished one answers at once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.algorithms import Algorithm, AlgorithmsPolicy, Choice, Dimension, FloatRange, IntRange
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.display import Table, text
from e2i_dagster.errors import UnavailableError, VerdictError
from e2i_dagster.modelling.estimators import build_estimator, one_thread, raw_scores
from e2i_dagster.modelling.model_input import LabelledRows, feature_kinds
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.modelling.problem import headline
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.splits.rows import VisibleRows


class Trial(BaseModel):
    """One trial of a study. ``value`` is None unless it ran to its end."""

    model_config = ConfigDict(frozen=True)

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    seconds: float


class SearchResult(BaseModel):
    """A study and its best parameters (defaults completed by the best trial's values).

    ``default_value`` is the defaults' score, None where one of them lies outside the space; ``note`` then says so.
    """

    model_config = ConfigDict(frozen=True)
    volatile_fields: ClassVar[dict[str, Any]] = {
        "seconds": True,
        "resumed_trials": True,
        "trials": {"__all__": {"seconds"}},
    }

    study_name: str
    algorithm: str
    problem_type: str
    metric: str
    parameters: dict[str, Any]
    best_trial: int
    best_value: float
    default_value: float | None
    trials: tuple[Trial, ...]
    n_completed: int
    n_pruned: int
    n_failed: int
    resumed_trials: int
    stopped_by: Literal["trials", "timeout"]
    search_space: dict[str, Any]
    fixed_parameters: dict[str, Any]
    note: str = ""
    seconds: float

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows: counts, the best parameters and the trials."""
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
            "trials": Table(
                ("trial", "state", "value", "parameters"),
                [
                    (
                        *(trial.number, trial.state, trial.value),
                        [f"{name} {text(value)}" for name, value in trial.parameters.items()],
                    )
                    for trial in self.trials
                ],
            ),
        }

    def to_record(self) -> dict[str, Any]:
        """Values of the row in ``ml_hpo_studies`` that the study itself knows."""
        return {
            "study_name": self.study_name,
            "algorithm_name": self.algorithm,
            "problem_type": self.problem_type,
            "direction": "maximize",
            "sampler_name": "TPESampler",
            "pruner_name": "MedianPruner",
            "metric": self.metric,
            "search_space": self.search_space,
            "fixed_params": self.fixed_parameters,
            "n_trials": len(self.trials),
            "n_completed": self.n_completed,
            "n_pruned": self.n_pruned,
            "n_failed": self.n_failed,
            "best_trial_number": self.best_trial,
            "best_value": self.best_value,
            "best_params": self.parameters,
            "duration_seconds": self.seconds,
            "status": "completed" if self.stopped_by == "trials" else "timeout",
        }


def search_hyperparameters(
    algorithm: str,
    rows: VisibleRows,
    *,
    scope: str,
    problem_type: str = "binary_classification",
    algorithms: AlgorithmsPolicy | None = None,
    policy: OptunaPolicy | None = None,
    storage: str | None = None,
) -> SearchResult:
    """Search the space of ``algorithm`` for the parameters that score best on the validation rows.

    The first trial is the defaults; one that lies outside a narrowed space is moved to its nearest point, or drawn
    where choices have no order, and the result's note says so. Each trial draws with a seed
    of its own (sampler seed + number of finished trials), so that a study that was interrupted ends like
    one that was not.

    Args:
        rows: preprocessing and estimators are fitted on its training rows; its validation rows score a
            trial: ROC-AUC (of several classes the mean of each against the rest), C-index, or minus the root mean
            squared error.
        scope: first part of the study's name.
        storage: SQLAlchemy URL of the study database; None keeps the study in memory.

    Raises:
        VerdictError: one of the outcomes is missing in train or validation.
        UnavailableError: the study database cannot be used.
    """
    import optuna

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
    metric = getattr(policy.metric, problem_type)

    with _quiet_optuna(), one_thread():
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=policy.pruner.n_startup_trials, n_warmup_steps=policy.pruner.n_warmup_steps
        )
        study = _open_study(name, storage, pruner)
        stale = [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
        for trial in stale:
            # Left by a process that was killed: its number stays, the work is done again.
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        resumed = _finished(study)

        preprocessor = build_preprocessor(
            feature_kinds(train.features, list(train.features.columns)), policy.preprocessing.max_levels
        ).fit(train.features)
        learn = preprocessor.transform(train.features)
        judge = preprocessor.transform(validation.features)
        stopped_by: Literal["trials", "timeout"] = "trials"
        for finished in range(resumed, policy.optimization.n_trials):
            if time.perf_counter() - started > policy.optimization.timeout_seconds and finished > 0:
                stopped_by = "timeout"
                break
            study.sampler = optuna.samplers.TPESampler(
                seed=policy.sampler.seed + finished,
                n_startup_trials=policy.sampler.n_startup_trials,
                multivariate=policy.sampler.multivariate,
            )
            if finished == 0 and declared.start:
                study.enqueue_trial(declared.start, skip_if_exists=True)
            trial = study.ask()
            parameters = {**declared.defaults, **suggest(trial, declared.search_space)}
            estimator = build_estimator(algorithm, problem_type, parameters, seed=policy.sampler.seed)
            value = _fit_and_score(
                estimator,
                trial,
                learn=learn,
                learn_target=train.target,
                judge=judge,
                judge_target=validation.target,
                problem_type=problem_type,
                policy=policy,
            )
            if value is None:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, value)
        return _result(
            study,
            algorithm=algorithm,
            problem_type=problem_type,
            metric=metric,
            declared=declared,
            resumed=resumed,
            stopped_by=stopped_by,
            fixed={"random_state": policy.sampler.seed, "n_jobs": 1},
            seconds=time.perf_counter() - started,
        )


def default_storage() -> str:
    """Address of the study database: ``optuna`` in the warehouse's server, made if it is missing."""
    from e2i_dagster.database.connection import ensure_database

    return ensure_database("optuna")


def suggest(trial: Any, space: dict[str, Dimension]) -> dict[str, Any]:
    """One point of ``space`` drawn by an Optuna trial."""
    drawn: dict[str, Any] = {}
    for name, dimension in space.items():
        match dimension:
            case IntRange():
                drawn[name] = trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step)
            case FloatRange():
                drawn[name] = trial.suggest_float(
                    name, dimension.low, dimension.high, step=dimension.step, log=dimension.log
                )
            case Choice():
                drawn[name] = trial.suggest_categorical(name, list(dimension.choices))
    return drawn


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
                mode="json", include={"sampler", "pruner", "metric", "preprocessing"}
            ),
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


def _open_study(name: str, storage: str | None, pruner: Any) -> Any:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.create_study(
            storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        # The URL may hold a password, so the message names only what happened.
        raise UnavailableError(
            f"the study database cannot be used ({type(error).__name__}).",
            remedy="Start the database and run again; finished trials are kept.",
        ) from None


def _finished(study: Any) -> int:
    import optuna

    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=done))


def _fit_and_score(
    estimator: Any,
    trial: Any,
    *,
    learn: np.ndarray,
    learn_target: np.ndarray,
    judge: np.ndarray,
    judge_target: np.ndarray,
    problem_type: str,
    policy: OptunaPolicy,
) -> float | None:
    """Validation score of the fitted estimator, or None when the median pruner stopped it early."""

    def score(candidate: Any) -> float:
        return validation_score(judge_target, raw_scores(candidate, judge, problem_type), problem_type)

    def hopeless(step: int, value: float) -> bool:
        trial.report(value, step)
        return bool(trial.should_prune())

    size = _tree_count(estimator)
    if size is None:
        # Linear models have no steps; XGBoost and LightGBM grow in one native call.
        estimator.fit(learn, learn_target)
        return score(estimator)
    name, total = size
    estimator.set_params(warm_start=True)
    for percent in (*policy.pruner.checkpoints, 100):
        estimator.set_params(**{name: max(1, round(total * percent / 100))})
        estimator.fit(learn, learn_target)
        value = score(estimator)
        if percent < 100 and hopeless(percent, value):
            return None
    return value


def _tree_count(estimator: Any) -> tuple[str, int] | None:
    """Parameter that counts the trees of a scikit-learn ensemble and its value; None for other models."""
    if not type(estimator).__module__.startswith("sklearn.ensemble"):
        return None
    parameters = estimator.get_params()
    name = "n_estimators" if "n_estimators" in parameters else "max_iter"
    return name, int(parameters[name])


def validation_score(target: np.ndarray, predicted: np.ndarray, problem_type: str) -> float:
    """ROC-AUC of probabilities, C-index of times, minus the root mean squared error of numbers: larger is better."""
    if problem_type != "regression":
        return headline(problem_type, target, predicted)
    return -float(np.sqrt(np.mean((target - predicted) ** 2)))


def _result(
    study: Any,
    *,
    algorithm: str,
    problem_type: str,
    metric: str,
    declared: Algorithm,
    resumed: int,
    stopped_by: Literal["trials", "timeout"],
    fixed: dict[str, Any],
    seconds: float,
) -> SearchResult:
    import optuna

    states = optuna.trial.TrialState
    trials = study.get_trials(deepcopy=False)
    best = study.best_trial
    return SearchResult(
        study_name=study.study_name,
        algorithm=algorithm,
        problem_type=problem_type,
        metric=metric,
        parameters={**declared.defaults, **best.params},
        best_trial=best.number,
        best_value=float(best.value),
        default_value=next(
            (
                trial.value
                for trial in trials
                if not declared.moved and trial.system_attrs.get("fixed_params") and trial.value is not None
            ),
            None,
        ),
        trials=tuple(
            Trial(
                number=trial.number,
                state=trial.state.name.lower(),
                value=trial.value if trial.state == states.COMPLETE else None,
                parameters=dict(trial.params),
                seconds=trial.duration.total_seconds() if trial.duration else 0.0,
            )
            for trial in trials
        ),
        n_completed=sum(trial.state == states.COMPLETE for trial in trials),
        n_pruned=sum(trial.state == states.PRUNED for trial in trials),
        n_failed=sum(trial.state == states.FAIL for trial in trials),
        resumed_trials=resumed,
        stopped_by=stopped_by,
        search_space={
            name: dimension.model_dump(mode="json") for name, dimension in declared.search_space.items()
        },
        fixed_parameters=fixed,
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
