"""What a person does to an experiment, as one call: the job ``change_experiment`` performs these."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.policy import Policy
from e2i_dagster.errors import InputError
from e2i_dagster.experiments import simulation, store
from e2i_dagster.experiments.final import compute_results
from e2i_dagster.experiments.looks import answered
from e2i_dagster.warehouse.tables import experiments as tables

Kind = Literal["units", "events", "outcomes"]
#: Who acts in a simulated stream; recorded like this, and only where the stream is simulated.
SIMULATED_PEOPLE = "simulated:"


class Change(BaseModel):
    """One change of an experiment.

    Attributes:
        action: ``transition`` (to ``state``, with ``decision`` for decided), ``approve`` (as ``role``), ``amend``
            (take over the changed file), ``record`` (``kind`` of rows in ``file``), ``simulate`` (until the next
            look, or until ``days`` after the start).
        alignment: for decided, how well the treatment fits the strategy, from 0 to 1; scored and recorded.
        reason: why; recorded. people: name of the invented person who acts in a simulated stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    action: Literal["transition", "approve", "amend", "record", "simulate"]
    reason: str = ""
    state: str | None = None
    decision: str | None = None
    alignment: float | None = None
    role: str | None = None
    kind: Kind | None = None
    file: str | None = None
    days: int | None = None
    people: str | None = None


def perform(
    connection: sa.Connection, change: Change, policy: Policy, lifecycle: LifecyclePolicy, *, actor: str
) -> dict[str, Any]:
    """Do ``change`` and say what became of it.

    Raises:
        InputError: the experiment has no file, or something of the change is wrong.
        VerdictError: the life cycle or the locked design says no.
    """
    name = change.experiment
    if name not in policy.experiments:
        known = ", ".join(sorted(policy.experiments)) or "none"
        raise InputError(f"There is no experiment {name!r} in config/experiments. Known: {known}.")
    spec = policy.experiments[name]
    if change.action == "amend":
        held = store.amend(connection, spec, reason=change.reason, actor=actor)
        return {"design_version": held.version, "design_digest": held.spec.design_digest}
    store.register(connection, spec, actor=actor)
    if change.people is not None:
        actor = _simulated_person(connection, name, change.people)
    if change.action == "transition":
        scored = _scored(connection, change, lifecycle, actor) if change.state == "decided" else {}
        held = store.transition(
            connection, name, change.state or "", reason=change.reason, actor=actor, policy=lifecycle,
            decision=change.decision, evidence=scored,
        )  # fmt: skip
        return {"state": held.state, **scored}
    if change.action == "approve":
        store.approve(
            connection, name, role=change.role or "", reason=change.reason, actor=actor, policy=lifecycle
        )
        return {"approved_as": change.role}
    if change.action == "record":
        return record_file(connection, change, policy, actor=actor)
    return advance(connection, name, policy, days=change.days, actor=actor)


def _scored(
    connection: sa.Connection, change: Change, lifecycle: LifecyclePolicy, actor: str
) -> dict[str, str]:
    """The score that a decision is taken beside, to be recorded with it."""
    page = compute_results(
        connection, change.experiment, policy=lifecycle, actor=actor, alignment=change.alignment
    )
    if page.scorecard is None:
        return {"scorecard": page.reason or "the primary metric is not estimable"}
    judged = {} if change.alignment is None else {"alignment": f"{change.alignment:g}"}
    parts = "; ".join(f"{part.name}: {part.found}" for part in page.scorecard.parts)
    return {"scorecard": page.scorecard.sentence, "scorecard parts": parts, **judged}


def record_file(connection: sa.Connection, change: Change, policy: Policy, *, actor: str) -> dict[str, Any]:
    """Record the rows of a CSV or Parquet file.

    Raises:
        InputError: the file cannot be read, or a row is wrong.
    """
    path = Path(change.file or "")
    try:
        frame = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype={"unit_id": "string"})
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as CSV or Parquet ({error}).") from None
    shared: dict[str, Any] = {"source": "observed", "actor": actor}
    if change.kind == "units":
        new = store.screen(connection, change.experiment, frame, cohorts=policy.cohorts, **shared)
    elif change.kind == "events":
        new = store.record_events(connection, change.experiment, frame, **shared)
    else:
        new = store.record_outcomes(connection, change.experiment, frame, **shared)
    return {"rows": len(frame), "new": new, "known": len(frame) - new}


def advance(
    connection: sa.Connection, name: str, policy: Policy, *, days: int | None, actor: str
) -> dict[str, Any]:
    """Take a simulated stream further: to ``days`` after the start, or until the next look is due.

    Raises:
        InputError: the experiment has observed units, or cannot be simulated.
        VerdictError: it is not running.
    """
    held = store.read(connection, name)
    if held.source == "observed":
        raise InputError(f"Experiment {name} has observed units; a simulated stream never mixes with them.")
    spec = held.spec
    stream = simulation.limited(
        simulation.draw_stream(spec, seed=spec.randomization.seed), spec, policy.cohorts
    )
    start = pd.Timestamp(spec.dates.start, tz="UTC")
    made = len(answered(spec, store.looks(connection, name)))
    planned = spec.looks.information_fractions
    goal = planned[min(made, len(planned) - 1)]
    day = days if days is not None else simulation.day_of_information(stream, spec, goal)
    _until(connection, name, stream, start + pd.Timedelta(days=day), policy, actor)
    reached = store.information(spec, store.read_records(connection, name).outcomes)
    return {
        "day": day,
        "information_fraction": round(reached, 4),
        "next_look_at": goal,
        "true_effect": stream.true_effect,
    }


def _until(
    connection: sa.Connection,
    name: str,
    stream: simulation.Stream,
    until: pd.Timestamp,
    policy: Policy,
    actor: str,
) -> None:
    shared: dict[str, Any] = {"source": "simulated", "actor": actor}
    store.screen(connection, name, simulation.screened_until(stream, until), cohorts=policy.cohorts, **shared)
    held = store.read(connection, name)
    screened = store.read_records(connection, name).screened
    eligible = screened.loc[screened["eligible"].astype(bool), "unit_id"]
    agreed = simulation.consents(stream, held.spec, eligible)
    store.record_events(connection, name, agreed[agreed["occurred_at"] < until], **shared)
    store.randomize(connection, name, actor=actor, assigned_at=simulation.assignment_times(stream))
    assigned = store.read_records(connection, name).assignments
    store.record_events(
        connection, name, simulation.later_events(stream, held.spec, assigned, until), **shared
    )
    outcomes = simulation.observed_outcomes(stream, held.spec, assigned, until)
    store.record_outcomes(connection, name, outcomes, **shared)


def _simulated_person(connection: sa.Connection, name: str, people: str) -> str:
    """Mark the experiment as simulated before an invented person acts in it: observed units are refused then."""
    held = store.read(connection, name)
    if held.source == "observed":
        raise InputError(f"Experiment {name} has observed units; invented people decide nothing in it.")
    table = tables.ab_experiments
    connection.execute(table.update().where(table.c.name == name).values(source="simulated"))
    return f"{SIMULATED_PEOPLE}{people}"
