"""Warm start: which trials of earlier studies a new one tries first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.algorithms import Dimension
from e2i_dagster.config.optuna_config import WarmStart


class StudyData(BaseModel):
    """What studies are compared by."""

    model_config = ConfigDict(frozen=True)

    algorithm: str
    problem_type: str
    metric: str
    training_rows: int
    n_features: int


class RememberedTrial(BaseModel):
    """A good trial of a finished study."""

    model_config = ConfigDict(frozen=True)

    number: int
    parameters: dict[str, Any]
    value: float


class Pattern(BaseModel):
    """A finished study in ``hpo_pattern_memory``, its best trials first."""

    model_config = ConfigDict(frozen=True)

    study_name: str
    scope: str
    data: StudyData
    trials: tuple[RememberedTrial, ...]


class WarmTrial(BaseModel):
    """A trial taken over: from which study and trial, how similar that is, and its value there."""

    model_config = ConfigDict(frozen=True)

    study_name: str
    scope: str
    number: int
    similarity: float
    value: float
    parameters: dict[str, Any]

    @property
    def origin(self) -> str:
        """Study and trial in one word."""
        return f"{self.study_name}#{self.number}"


def similarity(first: StudyData, second: StudyData) -> float:
    """How similar two studies are, in [0, 1].

    0.4 for the same algorithm, 0.3 for the same problem type, 0.1 for the same metric, and up to 0.1 each for
    numbers of rows within three powers of ten and for numbers of features near each other (the prior platform's
    weights).
    """
    decades = abs(math.log10(first.training_rows + 1) - math.log10(second.training_rows + 1))
    features = abs(first.n_features - second.n_features) / max(first.n_features, second.n_features, 1)
    return (
        0.4 * (first.algorithm == second.algorithm)
        + 0.3 * (first.problem_type == second.problem_type)
        + 0.1 * (first.metric == second.metric)
        + 0.1 * (1 - min(1.0, decades / 3))
        + 0.1 * (1 - min(1.0, features))
    )


def warm_trials(
    memory: Sequence[Pattern],
    data: StudyData,
    space: Mapping[str, Dimension],
    policy: WarmStart,
    *,
    study_name: str,
) -> tuple[WarmTrial, ...]:
    """The trials of ``memory`` to try first: the best of each similar study, then the second of each, and so on.

    Only studies of the same algorithm and problem type count; more similar ones come first. A trial outside
    ``space`` and one that is there already are left out.

    Args:
        study_name: the study that begins; its own earlier trials are resumed, not remembered.
    """
    measured = [(similarity(data, pattern.data), pattern) for pattern in memory]
    similar = sorted(
        (
            (near, pattern)
            for near, pattern in measured
            if near >= policy.minimum_similarity
            and pattern.study_name != study_name
            and (pattern.data.algorithm, pattern.data.problem_type) == (data.algorithm, data.problem_type)
        ),
        key=lambda found: (-found[0], found[1].study_name),
    )
    chosen: list[WarmTrial] = []
    for rank in range(max((len(pattern.trials) for _, pattern in similar), default=0)):
        for _, pattern in similar:
            if rank >= len(pattern.trials) or len(chosen) == policy.maximum_trials:
                continue
            trial = pattern.trials[rank]
            point = {name: trial.parameters[name] for name in space if name in trial.parameters}
            inside = len(point) == len(space) and all(
                space[name].holds(value) for name, value in point.items()
            )
            if inside and point not in [taken.parameters for taken in chosen]:
                chosen.append(_taken_over(pattern, trial.model_copy(update={"parameters": point}), data))
    return tuple(chosen)


def remembered(origins: Sequence[str], memory: Sequence[Pattern], data: StudyData) -> tuple[WarmTrial, ...]:
    """The trials of ``memory`` that trials with these ``origins`` were taken over from."""
    return tuple(
        found
        for pattern in memory
        for trial in pattern.trials
        if (found := _taken_over(pattern, trial, data)).origin in origins
    )


def _taken_over(pattern: Pattern, trial: RememberedTrial, data: StudyData) -> WarmTrial:
    return WarmTrial(
        study_name=pattern.study_name,
        scope=pattern.scope,
        number=trial.number,
        similarity=round(similarity(data, pattern.data), 6),
        value=trial.value,
        parameters=trial.parameters,
    )
