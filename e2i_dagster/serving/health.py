"""Health of a served model from its last answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from e2i_dagster.config.serving import HealthPolicy

Level = Literal["healthy", "degraded", "unhealthy"]

#: Value of the gauge ``e2i_model_health_status``.
GAUGE: dict[Level, float] = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}


@dataclass(frozen=True)
class Health:
    """Level and what it is concluded from.

    Attributes:
        answers: number of answers looked at (at most the policy's window).
        error_rate: share of them that failed on the server's side; a refused request is none.
        latency_ms: 95th percentile of their latency, milliseconds; None without answers.
    """

    level: Level
    answers: int
    error_rate: float
    latency_ms: float | None


def assess(latencies_ms: list[float], errors: int, policy: HealthPolicy) -> Health:
    """Health from the latencies of the last answers and the number of them that failed.

    The 95th percentile is the smallest latency that at least 95 % of the answers do not exceed.
    """
    answers = len(latencies_ms)
    if not answers:
        return Health("healthy", 0, 0.0, None)
    rate = errors / answers
    latency = sorted(latencies_ms)[-(-answers * 95 // 100) - 1]
    level: Level = "healthy"
    if answers >= policy.min_answers:
        if rate > policy.unhealthy_error_rate or latency > policy.unhealthy_latency_ms:
            level = "unhealthy"
        elif rate >= policy.degraded_error_rate or latency >= policy.degraded_latency_ms:
            level = "degraded"
    return Health(level, answers, rate, latency)


class Answers:
    """The last answers of one model in one worker process."""

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self._last: deque[tuple[float, bool]] = deque(maxlen=policy.window)

    def add(self, latency_ms: float, *, failed: bool) -> None:
        """Note one answer."""
        self._last.append((latency_ms, failed))

    def health(self) -> Health:
        """Health of the model now."""
        last = list(self._last)
        return assess([latency for latency, _ in last], sum(failed for _, failed in last), self._policy)
