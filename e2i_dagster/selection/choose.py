"""The choice of one algorithm: filters, measurement, ranking, and the reasons in words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.algorithms import PROBLEM_TYPES, Algorithm, AlgorithmsPolicy, SelectionPolicy
from e2i_dagster.display import Table
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.modelling.estimators import TRAINABLE, build_estimator, one_thread, raw_scores
from e2i_dagster.modelling.model_input import LabelledRows, feature_kinds
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.modelling.problem import CLASSIFICATION, HEADLINE, headline
from e2i_dagster.selection.request import SelectionRequest, request_of
from e2i_dagster.splits.rows import VisibleRows


class Candidate(BaseModel):
    """One algorithm of the registry and what became of it.

    ``performance`` is the benchmark's mean (ROC-AUC, or R² for a number) or the mean of the history;
    ``latency_ms`` (median of single-row predictions) and ``memory_mb`` (stored size) are measured, the
    ``declared_*`` figures are from ``config/algorithms.yaml``.
    """

    model_config = ConfigDict(frozen=True)

    algorithm: str
    state: Literal["chosen", "ranked", "removed"]
    reason: str
    performance: float | None = None
    deviation: float | None = None
    score: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    declared_latency_ms: float
    declared_memory_gb: float
    interpretability: float
    suitability: float


class AlgorithmChoice(BaseModel):
    """The chosen algorithm, every candidate with its reason, and the rationale in words."""

    model_config = ConfigDict(frozen=True)
    volatile_fields: ClassVar[dict[str, Any]] = {
        "seconds": True,
        "candidates": {"__all__": {"latency_ms", "memory_mb"}},
    }

    algorithm: str
    alternatives: tuple[str, ...]
    problem_type: str
    metric: Literal["roc_auc", "r2", "c_index"]
    measured: Literal["benchmark", "history", "nothing"]
    benchmark_rows: int
    candidates: tuple[Candidate, ...]
    rationale: str
    seconds: float

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows."""
        return {
            "algorithm": self.algorithm,
            "alternatives": ", ".join(self.alternatives) or "none",
            "measured_by": self.measured,
            "benchmark_rows": self.benchmark_rows,
            "seconds": self.seconds,
            "rationale": self.rationale,
            "candidates": Table(
                (
                    *("algorithm", self.metric, "fold deviation", "latency (ms)", "declared latency (ms)"),
                    *("stored (MB)", "interpretability", "verdict"),
                ),
                [
                    (
                        *(
                            candidate.algorithm,
                            candidate.performance,
                            candidate.deviation,
                            candidate.latency_ms,
                            candidate.declared_latency_ms,
                        ),
                        *(
                            candidate.memory_mb,
                            candidate.interpretability,
                            f"{candidate.state}: {candidate.reason}",
                        ),
                    )
                    for candidate in self.candidates
                ],
            ),
        }

    def to_record(self) -> dict[str, Any]:
        """The choice as JSON values, without the time it took (equal inputs, equal record)."""
        return self.model_dump(mode="json", exclude=self.volatile_fields)


def select_algorithm(
    scope: Any,
    *,
    history: Mapping[str, Sequence[float]] | None = None,
    visible: VisibleRows | None = None,
    policy: AlgorithmsPolicy | None = None,
    max_levels: int = 50,
    seed: int = 42,
) -> AlgorithmChoice:
    """Choose the algorithm for ``scope``.

    Filters (problem type; declared latency and memory against the scope's limits; exclusions;
    interpretability), then ranks by measured performance: a cross-validated benchmark on the training rows of
    ``visible``, else ``history``. Performances within ``tie_margin`` of the best are equal, and equal ones are
    ordered by preference and by declared latency, memory and interpretability. Measured latency and memory are
    compared with the limits only, so that the choice is the same on a slow and on a fast machine.

    Args:
        scope: a ``ScopeSpec`` or a :class:`SelectionRequest`.
        history: algorithm -> validation performances of earlier runs of the same scope (ROC-AUC or R²).
        visible: its training rows are the benchmark's; more than ``benchmark_rows`` are thinned by a fixed draw.

    Raises:
        ConfigError: unknown problem type, or an unknown algorithm is preferred or excluded.
        VerdictError: no algorithm passes the filters; names what removed each.
    """
    started = time.perf_counter()
    policy = policy or AlgorithmsPolicy.load()
    rules = policy.selection
    request = request_of(scope)
    _check(request, policy)

    removed = {
        name: reason
        for name, algorithm in policy.algorithms.items()
        if (reason := _obstacle(name, algorithm, request, rules)) is not None
    }
    remaining = [name for name in policy.algorithms if name not in removed]
    metric: Literal["roc_auc", "r2", "c_index"] = HEADLINE.get(request.problem_type, "roc_auc")  # type: ignore[assignment]
    measures: dict[str, dict[str, float]] = {}
    source: Literal["benchmark", "history", "nothing"] = "nothing"
    rows = 0
    if visible is not None and request.problem_type in TRAINABLE and remaining:
        source = "benchmark"
        thinned = _thin(visible.train, rules.benchmark_rows, request.problem_type, seed)
        rows = len(thinned)
        measures = _benchmark(
            remaining,
            thinned,
            problem_type=request.problem_type,
            policy=policy,
            max_levels=max_levels,
            seed=seed,
        )
        for name, measured in measures.items():
            reason = _measured_obstacle(measured, request)
            if reason is not None:
                removed[name] = reason
        remaining = [name for name in remaining if name not in removed]
    elif history:
        measures = {
            name: {"performance": float(np.mean(history[name])), "deviation": float(np.std(history[name]))}
            for name in remaining
            if name in history and len(history[name])
        }
        source = "history" if measures else "nothing"
    if not remaining:
        raise VerdictError(
            f"no algorithm is left for {request.problem_type}: "
            + "; ".join(f"{name}: {reason}" for name, reason in removed.items())
            + ". Widen the scope's constraints or preferences."
        )

    suitability = {
        name: _suitability(name, algorithm, request, rules) for name, algorithm in policy.algorithms.items()
    }
    scores = {
        name: measures[name]["performance"] - rules.deviation_penalty * measures[name]["deviation"]
        for name in remaining
        if name in measures
    }
    ranking = _rank(remaining, scores, suitability, rules.tie_margin)
    candidates = [
        _candidate(
            name,
            policy.algorithms[name],
            "chosen" if place == 0 else "ranked",
            place=place,
            measures=measures,
            scores=scores,
            suitability=suitability,
        )
        for place, name in enumerate(ranking)
    ] + [
        Candidate(
            algorithm=name,
            state="removed",
            reason=reason,
            performance=measures.get(name, {}).get("performance"),
            deviation=measures.get(name, {}).get("deviation"),
            latency_ms=measures.get(name, {}).get("latency_ms"),
            memory_mb=measures.get(name, {}).get("memory_mb"),
            **_declared(policy.algorithms[name]),
            suitability=suitability[name],
        )
        for name, reason in removed.items()
    ]
    return AlgorithmChoice(
        algorithm=ranking[0],
        alternatives=tuple(ranking[1 : 1 + rules.alternatives]),
        problem_type=request.problem_type,
        metric=metric,
        measured=source,
        benchmark_rows=rows,
        candidates=tuple(candidates),
        rationale=_rationale(
            request,
            ranking,
            removed=removed,
            scores=scores,
            measures=measures,
            source=source,
            rows=rows,
            metric=metric,
            policy=policy,
        ),
        seconds=time.perf_counter() - started,
    )


def _check(request: SelectionRequest, policy: AlgorithmsPolicy) -> None:
    if request.problem_type not in PROBLEM_TYPES:
        raise ConfigError(
            f"problem type {request.problem_type!r} has no algorithms.",
            field="problem_type",
            value=request.problem_type,
            remedy=f"Use one of: {', '.join(PROBLEM_TYPES)}.",
        )
    for name in (*request.preferred, *request.excluded):
        policy.algorithm(name)


def _obstacle(
    name: str, algorithm: Algorithm, request: SelectionRequest, rules: SelectionPolicy
) -> str | None:
    if request.problem_type not in algorithm.problem_types:
        return f"solves {', '.join(algorithm.problem_types)}, not {request.problem_type}"
    if request.max_latency_ms is not None and algorithm.latency_ms > request.max_latency_ms:
        return f"declared latency {algorithm.latency_ms:g} ms is above the limit of {request.max_latency_ms:g} ms"
    if request.max_memory_gb is not None and algorithm.memory_gb > request.max_memory_gb:
        return (
            f"declared memory {algorithm.memory_gb:g} GB is above the limit of {request.max_memory_gb:g} GB"
        )
    if name in request.excluded:
        return "excluded by the scope"
    if request.interpretability_required and algorithm.interpretability < rules.minimum_interpretability:
        return (
            f"interpretability {algorithm.interpretability:g} is below the required "
            f"{rules.minimum_interpretability:g}"
        )
    return None


def _measured_obstacle(measured: Mapping[str, float], request: SelectionRequest) -> str | None:
    latency, memory = measured["latency_ms"], measured["memory_mb"] / 1024
    if request.max_latency_ms is not None and latency > request.max_latency_ms:
        return f"measured latency {latency:.1f} ms is above the limit of {request.max_latency_ms:g} ms"
    if request.max_memory_gb is not None and memory > request.max_memory_gb:
        return f"measured memory {memory:.2f} GB is above the limit of {request.max_memory_gb:g} GB"
    return None


def _thin(sample: LabelledRows, rows: int, problem_type: str, seed: int) -> LabelledRows:
    if len(sample) <= rows:
        return sample
    from sklearn.model_selection import train_test_split

    strata = _strata(sample, problem_type)
    kept, _ = train_test_split(np.arange(len(sample)), train_size=rows, random_state=seed, stratify=strata)
    kept.sort()
    return replace(sample, features=sample.features.iloc[kept], target=sample.target[kept])


def _strata(sample: LabelledRows, problem_type: str) -> np.ndarray | None:
    """What each part of the rows must have its share of: classes, or whether the event was seen."""
    if problem_type == "survival":
        return (sample.target > 0).astype("int64")
    return sample.target if problem_type in CLASSIFICATION else None


def _benchmark(
    names: Sequence[str],
    sample: LabelledRows,
    *,
    problem_type: str,
    policy: AlgorithmsPolicy,
    max_levels: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Cross-validated performance, measured latency (ms) and stored size (MB) of each name."""
    import pickle

    from sklearn.model_selection import KFold, StratifiedKFold

    rules = policy.selection
    strata = _strata(sample, problem_type)
    if strata is not None:
        counts = np.bincount(strata, minlength=len(sample.classes) or 2)
        if counts.min() < rules.folds:
            raise VerdictError(
                f"the benchmark needs at least {rules.folds} training patients of each outcome; "
                f"the rarest of {len(sample)} has {counts.min()}."
            )
    splitter = (KFold if strata is None else StratifiedKFold)(rules.folds, shuffle=True, random_state=seed)
    kinds = feature_kinds(sample.features, list(sample.features.columns))
    results: dict[str, list[float]] = {name: [] for name in names}
    latency: dict[str, float] = {}
    size: dict[str, float] = {}
    with one_thread():
        for fold, (learn, test) in enumerate(splitter.split(np.zeros(len(sample)), strata)):
            # Preprocessing is fitted on the learning part of each fold alone, once for all algorithms.
            preprocessor = build_preprocessor(kinds, max_levels).fit(sample.features.iloc[learn])
            learn_matrix = preprocessor.transform(sample.features.iloc[learn])
            test_matrix = preprocessor.transform(sample.features.iloc[test])
            one_row = sample.features.iloc[test[:1]]
            for name in names:
                estimator = build_estimator(name, problem_type, policy.algorithm(name).defaults, seed=seed)
                estimator.fit(learn_matrix, sample.target[learn])
                predicted = raw_scores(estimator, test_matrix, problem_type)
                results[name].append(headline(problem_type, sample.target[test], predicted))
                if fold == rules.folds - 1:
                    times = []
                    for _ in range(rules.latency_repeats):
                        started = time.perf_counter()
                        raw_scores(estimator, preprocessor.transform(one_row), problem_type)
                        times.append(time.perf_counter() - started)
                    latency[name] = 1000 * float(np.median(times))
                    size[name] = len(pickle.dumps(estimator)) / 2**20
    return {
        name: {
            "performance": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)),
            "latency_ms": latency[name],
            "memory_mb": size[name],
        }
        for name, values in results.items()
    }


def _suitability(name: str, algorithm: Algorithm, request: SelectionRequest, rules: SelectionPolicy) -> float:
    """Weighted declared figures; the prior platform's formula without its assumed history."""
    weights = rules.weights
    return round(
        weights.latency * max(0.0, 1 - algorithm.latency_ms / rules.latency_scale_ms)
        + weights.memory * max(0.0, 1 - algorithm.memory_gb / rules.memory_scale_gb)
        + weights.interpretability * algorithm.interpretability
        + weights.preferred * (name in request.preferred),
        6,
    )


def _rank(
    names: Sequence[str], scores: Mapping[str, float], suitability: Mapping[str, float], margin: float
) -> list[str]:
    """Best first: measured before unmeasured; groups within ``margin`` of their best by suitability."""
    by_fit = {name: (-suitability[name], name) for name in names}
    left = sorted((name for name in names if name in scores), key=lambda name: (-scores[name], name))
    ranking: list[str] = []
    while left:
        best = scores[left[0]]
        tied = [name for name in left if best - scores[name] <= margin]
        first = min(tied, key=by_fit.__getitem__)
        ranking.append(first)
        left.remove(first)
    return ranking + sorted((name for name in names if name not in scores), key=by_fit.__getitem__)


def _declared(algorithm: Algorithm) -> dict[str, float]:
    return {
        "declared_latency_ms": algorithm.latency_ms,
        "declared_memory_gb": algorithm.memory_gb,
        "interpretability": algorithm.interpretability,
    }


def _candidate(
    name: str,
    algorithm: Algorithm,
    state: Literal["chosen", "ranked"],
    *,
    place: int,
    measures: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, float],
    suitability: Mapping[str, float],
) -> Candidate:
    measured = measures.get(name, {})
    return Candidate(
        algorithm=name,
        state=state,
        reason=f"place {place + 1}" + ("" if name in scores else ", by declared figures only"),
        performance=measured.get("performance"),
        deviation=measured.get("deviation"),
        score=scores.get(name),
        latency_ms=measured.get("latency_ms"),
        memory_mb=measured.get("memory_mb"),
        **_declared(algorithm),
        suitability=suitability[name],
    )


def _rationale(
    request: SelectionRequest,
    ranking: Sequence[str],
    *,
    removed: Mapping[str, str],
    scores: Mapping[str, float],
    measures: Mapping[str, Mapping[str, float]],
    source: str,
    rows: int,
    metric: str,
    policy: AlgorithmsPolicy,
) -> str:
    chosen = ranking[0]
    rules = policy.selection
    shown = {"roc_auc": "ROC-AUC", "r2": "R²", "c_index": "C-index"}[metric]
    sentences = [
        f"{len(ranking)} of {len(policy.algorithms)} algorithms can solve this {request.problem_type} problem "
        f"within the scope's limits; {len(removed)} were removed."
    ]
    if chosen not in scores:
        sentences.append(
            f"Nothing was measured: {chosen} has the best declared latency, memory and interpretability. "
            "Declared figures say nothing about accuracy."
        )
        return " ".join(sentences)
    measured = measures[chosen]
    where = (
        f"in {rules.folds}-fold cross-validation on {rows} training rows"
        if source == "benchmark"
        else "over earlier runs"
    )
    best = max(scores, key=lambda name: (scores[name], name))
    sentences.append(f"{chosen} reached a mean {shown} of {measured['performance']:.3f} {where}.")
    if best != chosen:
        sentences.append(
            f"{best} was {scores[best] - scores[chosen]:.4f} better (mean less {rules.deviation_penalty:g} "
            f"deviations), within the margin of {rules.tie_margin:g} that counts as equal; {chosen} goes first for "
            + ("being preferred by the scope, and for " if chosen in request.preferred else "")
            + "its declared latency, memory and interpretability."
        )
    elif len(ranking) > 1 and ranking[1] in scores:
        sentences.append(f"Next is {ranking[1]} with {measures[ranking[1]]['performance']:.3f}.")
    return " ".join(sentences)
