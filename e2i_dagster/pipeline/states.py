"""How the execution of a stage ends: its state in the ledger, and who watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2i_dagster.versions.ledger import Bind, StageState, State


@dataclass(frozen=True)
class StageEvent:
    """A stage began or ended; what the terminal shows while a plan runs."""

    stage: str
    partition: str
    state: str
    reason: str
    rows: int | None
    seconds: float


#: Called with every StageEvent of this process.
observers: list[Callable[[StageEvent], None]] = []


@dataclass(frozen=True)
class Execution:
    """One execution of a stage for its partitions, by one run.

    Attributes:
        partitions: those of the run; ``[None]`` for a stage without.
        started: when it began, on the clock of :func:`time.monotonic`.
    """

    stage: str
    partitions: Sequence[str | None]
    run_id: str
    started: float = field(default_factory=time.monotonic)

    @property
    def label(self) -> str:
        """The partition, ``first..last`` of several; empty without."""
        if list(self.partitions) == [None]:
            return ""
        first, last = self.partitions[0], self.partitions[-1]
        return str(first) if len(self.partitions) == 1 else f"{first}..{last}"

    def state(
        self, state: State, reason: str = "", *, rows: int | None = None, data_version: str | None = None
    ) -> StageState:
        """``state``, reached now."""
        from e2i_dagster.versions import ledger

        return ledger.StageState(
            stage=self.stage,
            partition=self.label or None,
            state=state,
            reason=reason or None,
            rows=rows,
            seconds=time.monotonic() - self.started,
            data_version=data_version,
            run_id=self.run_id,
        )

    def record(self, bind: Bind, state: State, reason: str = "") -> None:
        """Record ``state`` and tell who watches."""
        from e2i_dagster.versions import ledger

        reached = self.state(state, reason)
        ledger.record_state(bind, reached)
        announce(reached)


def announce(state: StageState) -> None:
    """Tell who watches that ``state`` was reached and recorded."""
    event = StageEvent(
        state.stage, state.partition or "", state.state, state.reason or "", state.rows, state.seconds or 0.0
    )
    for observer in observers:
        observer(event)


def joined(*reasons: str | None) -> str:
    """The ``reasons`` that there are, as one."""
    return "; ".join(reason for reason in reasons if reason)


__all__ = ["Execution", "StageEvent", "announce", "joined", "observers"]
