"""What happened to registered versions, in order: ``ml_model_stage_history``, to which rows are only added."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.display import Table
from e2i_dagster.policy_files.actors import Actor, Authentication
from e2i_dagster.registry.stages import Evidence, Transition
from e2i_dagster.tables.description.models import ml_model_stage_history

Action = Literal["registered", "proposed", "approved", "rejected", "promoted", "rolled_back", "archived"]


class StageEvent(BaseModel):
    """One thing that happened to a version.

    Attributes:
        evidence: as it was measured then; None where nothing was judged.
        rules: each rule of the transition with what was found.
        simulated_days: of the days in the stage before, those that were simulated.
        deployment_id: the deployment in the slot of the stage; None when nothing was deployed.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_name: str
    model_version: str
    action: Action
    from_stage: str | None = None
    to_stage: str
    actor: str
    authentication: Authentication
    reason: str
    evidence_digest: str | None = None
    evidence: Evidence | None = None
    rules: tuple[dict[str, Any], ...] | None = None
    simulated_days: float = 0.0
    deployment_id: str | None = None
    run_id: str | None = None
    recorded_at: dt.datetime | None = None

    @classmethod
    def of(
        cls,
        action: Action,
        name: str,
        version: str,
        *,
        by: Actor,
        to_stage: str,
        reason: str,
        evidence: Evidence | None = None,
        verdict: Transition | None = None,
        **more: Any,
    ) -> StageEvent:
        """The event of ``action`` by a person or a rule."""
        return cls(
            model_name=name,
            model_version=version,
            action=action,
            to_stage=to_stage,
            actor=by.name,
            authentication=by.authentication,
            reason=reason,
            evidence=evidence,
            evidence_digest=None if evidence is None else evidence.measured_digest(),
            rules=None
            if verdict is None
            else tuple(result.model_dump(mode="json") for result in verdict.results),
            simulated_days=0.0 if evidence is None else evidence.simulated_days,
            **more,
        )


def record_events(bind: sa.Engine | sa.Connection, events: Sequence[StageEvent]) -> None:
    """Add ``events`` to the history, all or none."""
    rows = [event.model_dump(mode="json", exclude={"recorded_at"}) for event in events]
    if isinstance(bind, sa.Engine):
        with bind.begin() as connection:
            connection.execute(sa.insert(ml_model_stage_history), rows)
    else:
        bind.execute(sa.insert(ml_model_stage_history), rows)


def stage_history(
    bind: sa.Engine | sa.Connection, model_name: str, version: str | None = None
) -> tuple[StageEvent, ...]:
    """What happened to the model, or to one version of it, oldest first."""
    table = ml_model_stage_history
    query = sa.select(table).where(table.c.model_name == model_name).order_by(table.c.id)
    if version is not None:
        query = query.where(table.c.model_version == version)
    if isinstance(bind, sa.Engine):
        with bind.connect() as connection:
            rows = connection.execute(query).mappings().all()
    else:
        rows = bind.execute(query).mappings().all()
    return tuple(StageEvent.model_validate(dict(row)) for row in rows)


def open_proposals(events: Sequence[StageEvent]) -> list[StageEvent]:
    """The proposals among ``events`` (of one model, oldest first) that nobody has decided, oldest first."""
    waiting: dict[str, StageEvent] = {}
    for event in events:
        if event.action == "proposed":
            waiting[event.model_version] = event
        elif event.action in ("rejected", "promoted", "archived"):
            waiting.pop(event.model_version, None)
    return list(waiting.values())


def holder_before(events: Sequence[StageEvent], stage: str, current: str) -> str | None:
    """The version that had ``stage`` before ``current`` got it; None when there was none."""
    holders = [
        event.model_version
        for event in events
        if event.action in ("promoted", "rolled_back") and event.to_stage == stage
    ]
    return next((holder for holder in reversed(holders) if holder != current), None)


def history_table(events: Sequence[StageEvent]) -> Table:
    """The history as people read it."""
    return Table(
        ("at", "version", "what", "from", "to", "by", "known by", "evidence", "simulated days", "reason"),
        [
            (
                None if event.recorded_at is None else f"{event.recorded_at:%Y-%m-%d %H:%M}",
                event.model_version,
                event.action.replace("_", " "),
                event.from_stage,
                event.to_stage,
                event.actor,
                event.authentication,
                event.evidence_digest,
                event.simulated_days or None,
                event.reason,
            )
            for event in events
        ],
        empty="Nothing has happened to it.",
    )
