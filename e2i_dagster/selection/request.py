"""What a scope asks of the algorithm, as one small value."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from e2i_dagster.policy_files.base import PolicyModel


class SelectionRequest(PolicyModel):
    """Problem and limits. ``max_latency_ms`` is for one prediction, ``max_memory_gb`` for the model."""

    problem_type: str
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_memory_gb: float | None = Field(default=None, gt=0)
    interpretability_required: bool = False
    preferred: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def request_of(scope: Any) -> SelectionRequest:
    """The request in ``scope``: a ``ScopeSpec`` with ``constraints`` and ``preferences``, or the request itself."""
    if isinstance(scope, SelectionRequest):
        return scope
    constraints, preferences = scope.constraints, scope.preferences
    return SelectionRequest(
        problem_type=scope.problem_type,
        max_latency_ms=constraints.max_latency_ms,
        max_memory_gb=constraints.max_memory_gb,
        interpretability_required=constraints.interpretability_required,
        preferred=tuple(preferences.preferred_algorithms),
        excluded=tuple(preferences.excluded_algorithms),
    )
