"""What a person does to an experiment, as one call: the job ``change_experiment`` performs these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.mapping import HandedMapping
from e2i_dagster.config.policy import Policy
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.conduct import simulation, store
from e2i_dagster.experiments.conduct.final_analysis import compute_results
from e2i_dagster.experiments.conduct.interim_looks import answered
from e2i_dagster.experiments.conduct.records import InterimAnalysis
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.sources.handed import HandedRows, RefusedRow, read_rows_handed
from e2i_dagster.tables.description import experiments as tables

Kind = Literal["units", "events", "outcomes"]
_TIME_COLUMNS = ("screened_at", "occurred_at", "observed_at")
#: Refused rows that are listed; all of them are in the file.
_SHOWN = 20
#: Who acts in a simulated stream; recorded like this, and only where the stream is simulated.
SIMULATED_PEOPLE = "simulated:"


class Change(BaseModel):
    """One change of an experiment.

    Attributes:
        action: ``transition`` (to ``state``, with ``decision`` for decided), ``approve`` (as ``role``), ``amend``
            (take over the changed file), ``record`` (``kind`` of rows in ``file``, written as
            the file ``mapping`` says), ``simulate`` (until the next
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
    mapping: str | None = None
    days: int | None = None
    people: str | None = None


def perform(
    connection: sa.Connection, change: Change, policy: Policy, lifecycle: LifecyclePolicy, *, actor: str
) -> dict[str, Any]:
    """Do ``change`` and say what became of it.

    Raises:
        InputError: the experiment has no file, or something of the change is wrong.
        ConfigError: the experiment's file is wrong.
        VerdictError: the life cycle or the locked design says no.
    """
    name = change.experiment
    spec = policy.experiment(name)
    if change.action == "amend":
        experiment = store.amend(connection, spec, reason=change.reason, actor=actor)
        return {"design_version": experiment.version, "design_digest": experiment.spec.design_digest}
    store.register(connection, spec, actor=actor)
    if change.people is not None:
        actor = _simulated_person(connection, name, change.people)
    if change.action == "transition":
        scored = _scored(connection, change, lifecycle, actor) if change.state == "decided" else {}
        experiment = store.transition(
            connection, name, change.state or "", reason=change.reason, actor=actor, policy=lifecycle,
            decision=change.decision, evidence=scored,
        )  # fmt: skip
        return {"state": experiment.state, **scored}
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
    """Record the rows of a CSV or Parquet file that can be used; a row that cannot stops no other.

    Refused rows are written as delivered, with their reasons, to a file that can be corrected and recorded
    (:func:`refused_file`), which only its owner may read.

    Returns:
        ``rows`` = ``new`` + ``updated`` + ``known`` + ``duplicate`` + ``refused``; with refused rows their number by
        reason, the first of them by row and column, and the file. Values are in the file alone.

    Raises:
        InputError: the file cannot be read, lacks a column, or none of its rows can be used.
    """
    path = Path(change.file or "")
    mapping = None if change.mapping is None else HandedMapping.load(Path(change.mapping))
    handed = read_rows_handed(path, text=None, times=_TIME_COLUMNS, mapping=mapping)
    shared: dict[str, Any] = {"source": "observed", "actor": actor}
    name = change.experiment
    if change.kind == "units":
        taken = store.screen(connection, name, handed.frame, cohorts=policy.cohorts, **shared)
    elif change.kind == "events":
        taken = store.record_events(connection, name, handed.frame, **shared)
    else:
        taken = store.record_outcomes(connection, name, handed.frame, **shared)
    taken = replace(taken, refused=tuple(sorted((*handed.refused, *taken.refused), key=lambda row: row.row)))
    rows = len(handed.delivered) + len(handed.uneven)
    counts = {key: getattr(taken, key) for key in ("new", "updated", "known", "duplicate")}
    report: dict[str, Any] = {"rows": rows, **counts, "refused": len(taken.refused)}
    file = refused_file(name, change.kind or "")
    file.unlink(missing_ok=True)
    if not taken.refused:
        return report
    _write_refused(file, handed, taken.refused)
    if len(taken.refused) == rows:
        said = "; ".join(f"{count:,} with {reason}" for reason, count in taken.reasons.items())
        remedy = f"The rows are in {file} with their reasons: correct them there and record that file."
        raise InputError(
            f"{path.name}: none of the {rows:,} rows can be used: {said}. {remedy}", file=path, remedy=remedy
        )
    report["refused_because"] = taken.reasons
    report["refused_rows"] = [
        {"row": row.row, "column": row.column, "reason": row.reason} for row in taken.refused[:_SHOWN]
    ]
    report["refused_file"] = str(file)
    return report


def refused_file(experiment: str, kind: str) -> Path:
    """Where the refused rows of the newest delivery of ``kind`` are, to be corrected."""
    return state_folder() / "experiments" / experiment / f"refused_{kind}.csv"


def refused_values(report: Mapping[str, Any], mapping: Path | None) -> list[dict[str, Any]]:
    """The refused rows in the ``report`` of :func:`record_file`, with what was delivered; a unit by its row alone."""
    shown = report.get("refused_rows", [])
    if not shown:
        return []
    given = None if mapping is None else HandedMapping.load(mapping)
    handed = read_rows_handed(Path(report["refused_file"]), text=None, mapping=given)
    # One row of the file for each that was refused, in their order.
    place = {row: number for number, row in enumerate(sorted({refusal["row"] for refusal in shown}), start=1)}
    return [
        {
            **refusal,
            "value": None
            if refusal["column"] == "unit_id"
            else handed.value(RefusedRow(place[refusal["row"]], refusal["column"], None, "")),
        }
        for refusal in shown
    ]


def _write_refused(file: Path, handed: HandedRows, refused: Sequence[RefusedRow]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding=handed.mapping.encoding, newline="") as stream:
        handed.write(stream, refused)


def advance(
    connection: sa.Connection, name: str, policy: Policy, *, days: int | None, actor: str
) -> dict[str, Any]:
    """Take a simulated stream further: to ``days`` after the start, or until the next look is due.

    Raises:
        InputError: the experiment has observed units, or cannot be simulated.
        VerdictError: it is not running.
    """
    experiment = store.read(connection, name)
    if experiment.source == "observed":
        raise InputError(
            f"Experiment {name} has observed units; a simulated stream never mixes with them.",
            field="name",
            value=name,
            remedy="Simulate an experiment of another name.",
        )
    spec = experiment.spec
    stream = simulation.limited(
        simulation.draw_stream(spec, seed=spec.randomization.seed), spec, policy.cohorts
    )
    start = pd.Timestamp(spec.dates.start, tz="UTC")
    made = len(answered(spec, InterimAnalysis.read_all(connection, name)))
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
    screened = simulation.screened_until(stream, until)
    store.screen(connection, name, screened, cohorts=policy.cohorts, **shared).whole("simulated units")
    experiment = store.read(connection, name)
    known = store.read_records(connection, name).screened
    agreed = simulation.consents(
        stream, experiment.spec, known.loc[known["eligible"].astype(bool), "unit_id"]
    )
    agreed = agreed[agreed["occurred_at"] < until]
    store.record_events(connection, name, agreed, **shared).whole("simulated consents")
    store.randomize(connection, name, actor=actor, assigned_at=simulation.assignment_times(stream))
    assigned = store.read_records(connection, name).assignments
    later = simulation.later_events(stream, experiment.spec, assigned, until)
    store.record_events(connection, name, later, **shared).whole("simulated events")
    outcomes = simulation.observed_outcomes(stream, experiment.spec, assigned, until)
    store.record_outcomes(connection, name, outcomes, **shared).whole("simulated outcomes")


def _simulated_person(connection: sa.Connection, name: str, people: str) -> str:
    """Mark the experiment as simulated before an invented person acts in it: observed units are refused then."""
    experiment = store.read(connection, name)
    if experiment.source == "observed":
        raise InputError(
            f"Experiment {name} has observed units; invented people decide nothing in it.",
            field="name",
            value=name,
            remedy="Simulate an experiment of another name.",
        )
    table = tables.ab_experiments
    connection.execute(table.update().where(table.c.name == name).values(source="simulated"))
    return f"{SIMULATED_PEOPLE}{people}"
