"""Experiments in the warehouse: registration, transitions, amendments, units, assignments, events, outcomes.

Every writer takes the row of its experiment first, so that one process at a time enrols or looks, and ids of
append-only rows rise in the order in which they become visible.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.experiment import ENDED_STATES, ExperimentSpec, LifecyclePolicy, State
from e2i_dagster.errors import ConfigError, E2IError, InputError, VerdictError
from e2i_dagster.experiments.conduct import enrolment
from e2i_dagster.experiments.conduct.intake import Taken, of_one_kind
from e2i_dagster.experiments.conduct.lifecycle import (
    Approval,
    Review,
    Situation,
    bound_to_stop,
    check_transition,
    review_of,
)
from e2i_dagster.experiments.conduct.records import InterimAnalysis, Transition
from e2i_dagster.experiments.designs.randomization import RandomizationPlan, assign, batch_seal, verify
from e2i_dagster.experiments.designs.randomization_key import key_fingerprint, randomization_key
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.tables.description import experiments as tables
from e2i_dagster.tables.frames import json_text

Source = Literal["observed", "simulated"]


@dataclass(frozen=True)
class Experiment:
    """An experiment as the warehouse knows it; ``spec`` is the design in force."""

    name: str
    state: State
    version: int
    spec: ExperimentSpec
    locked_at: dt.datetime | None
    source: Source | None
    decision: str | None

    @property
    def simulated(self) -> bool:
        """True when its units are invented."""
        return self.source == "simulated"


@dataclass(frozen=True)
class Records:
    """Everything recorded of an experiment's units, up to a look when one is named."""

    screened: pd.DataFrame
    assignments: pd.DataFrame
    events: pd.DataFrame
    outcomes: pd.DataFrame

    def states(self, policy: LifecyclePolicy) -> pd.DataFrame:
        """What the events say of each assigned unit (:func:`.enrolment.unit_states`)."""
        return enrolment.unit_states(
            self.assignments,
            self.events,
            minor_deviations_that_exclude=policy.minor_deviations_that_exclude,
        )

    def analysis_frame(self, spec: ExperimentSpec, policy: LifecyclePolicy) -> pd.DataFrame:
        """One row per assigned unit with sets, attributes and metrics (:func:`.enrolment.analysis_frame`)."""
        attributes = of_one_kind(enrolment.attribute_frame(self.screened))
        return enrolment.analysis_frame(self.states(policy), self.outcomes, attributes, spec)

    @property
    def digest(self) -> str:
        """Digest of all rows."""
        from e2i_dagster.versions.digest import frame_digest

        left_out = ["attributes", "failed_criteria"]
        if "denominator" in self.outcomes.columns and self.outcomes["denominator"].isna().all():
            # Rows without any ratio keep the digest of the looks that froze them.
            left_out.append("denominator")
        return digest_of(
            [
                frame_digest(frame.drop(columns=left_out, errors="ignore"))
                for frame in (self.assignments, self.events, self.outcomes)
            ]
        )


def register(connection: sa.Connection, spec: ExperimentSpec, *, actor: str) -> Experiment:
    """Enter ``spec`` as a draft, or take over its changes.

    A draft or an experiment in review takes every change (a new version of the design). Until the first
    unit is assigned, a change sends it back: approvals hold for one design. From then on the design is locked.

    Raises:
        VerdictError: the design is locked and differs; it says how to amend it.
    """
    table = tables.ab_experiments
    stored = (
        connection.execute(sa.select(table).where(table.c.name == spec.name).with_for_update())
        .mappings()
        .one_or_none()
    )
    if stored is None:
        connection.execute(
            table.insert().values(
                name=spec.name,
                state="draft",
                design_version=1,
                design_digest=spec.design_digest,
                created_by=actor,
            )
        )
        _store_design(connection, spec, 1, amendment=False, reason="registered", actor=actor)
        _store_transition(connection, spec.name, None, "draft", "registered", {}, actor)
        return read(connection, spec.name)
    experiment = read(connection, spec.name)
    # Compared as they are read: a design stored before a field existed has that field's default.
    if experiment.spec.design_digest == spec.design_digest:
        return experiment
    if stored["locked_at"] is not None:
        raise VerdictError(
            f"The design of experiment {spec.name} is locked since its first assignment, and its file has changed.",
            remedy=f"Take the change back, or record it as an amendment: e2i experiment amend {spec.name} "
            f"--reason TEXT.",
        )
    if stored["state"] not in ("draft", "in_review"):
        raise VerdictError(
            f"The design of experiment {spec.name} changed after its approval.",
            remedy=f"Take the change back, or cancel it (e2i experiment transition {spec.name} cancelled "
            f"--reason TEXT) and give the new design a new name.",
        )
    _new_design(
        connection, spec, stored["design_version"] + 1, amendment=False, reason="file changed", actor=actor
    )
    return read(connection, spec.name)


def amend(connection: sa.Connection, spec: ExperimentSpec, *, reason: str, actor: str) -> Experiment:
    """Take over a changed design of a locked experiment, on record.

    Raises:
        InputError: nothing changed, or nothing is locked yet.
        VerdictError: the change touches what randomization rests on (unit, arms, method of a cluster), what the
            looks made so far rest on, or data collection is over.
    """
    experiment = read_locked(connection, spec.name)
    if experiment.locked_at is None:
        raise InputError(
            f"Experiment {spec.name} has no assignments yet.",
            file=f"config/experiments/{spec.name}.yaml",
            remedy="Change its file, no amendment is needed.",
        )
    if experiment.spec.design_digest == spec.design_digest:
        raise InputError(
            f"The design of experiment {spec.name} is the one in force.",
            file=f"config/experiments/{spec.name}.yaml",
            remedy="Change the file first, then amend.",
        )
    if experiment.state in ENDED_STATES:
        raise VerdictError(
            f"Experiment {spec.name} is {experiment.state}: data collection is over, and its design is what was "
            "carried out."
        )
    made = InterimAnalysis.read_all(connection, spec.name)
    fixed = [
        name
        for name, before, after in (
            *_fixed_by_looks(experiment.spec, spec, len(made)),
            ("unit", experiment.spec.unit, spec.unit),
            ("names of the arms", tuple(experiment.spec.ratios), tuple(spec.ratios)),
            ("control", experiment.spec.control, spec.control),
            ("primary metric", experiment.spec.metrics.primary.name, spec.metrics.primary.name),
            ("alpha", experiment.spec.looks.alpha, spec.looks.alpha),
            ("cluster", experiment.spec.randomization.cluster, spec.randomization.cluster),
        )
        if before != after
    ]
    if fixed:
        raise VerdictError(
            f"Experiment {spec.name}: {', '.join(fixed)} cannot be amended after the first "
            f"{'look' if made else 'assignment'}. End it and register another experiment."
        )
    reason += _proposal_taken(experiment.spec, spec, made)
    _new_design(connection, spec, experiment.version + 1, amendment=True, reason=reason, actor=actor)
    return read(connection, spec.name)


def _fixed_by_looks(before: ExperimentSpec, after: ExperimentSpec, made: int) -> list[tuple[str, Any, Any]]:
    """What the looks made so far rest on, as name, value before and value after."""
    if not made:
        return []
    first, second = before.looks, after.looks
    fixed: list[tuple[str, Any, Any]] = [
        (
            "rule of the looks",
            (first.rule, first.sides, first.gamma),
            (second.rule, second.sides, second.gamma),
        ),
        ("fractions of looks made", first.information_fractions[:made], second.information_fractions[:made]),
        ("the confidence sequence", first.always_valid, second.always_valid),
        ("kind of the primary metric", before.metrics.primary.kind, after.metrics.primary.kind),
    ]
    if first.rule in ("obrien_fleming", "pocock", "haybittle_peto"):
        fixed += [
            ("information fractions", first.information_fractions, second.information_fractions),
            ("sample size", before.information_target, after.information_target),
        ]
    return fixed


def _proposal_taken(before: ExperimentSpec, after: ExperimentSpec, made: list[InterimAnalysis]) -> str:
    """Beside the reason of an amendment of the size: whether it is what a look proposed."""
    if before.information_target == after.information_target:
        return ""
    for look in made:
        found = look.metrics_snapshot.size_proposal
        if found is not None and found.size is not None:
            taken = "takes up" if found.size == after.information_target else "differs from"
            return f" ({taken} the proposal of look {look.analysis_number})"
    return ""


def read(connection: sa.Connection, name: str) -> Experiment:
    """The experiment ``name`` with the design in force.

    Raises:
        InputError: it is not registered.
    """
    table, designs = tables.ab_experiments, tables.ab_experiment_designs
    row = (
        connection.execute(
            sa.select(table, designs.c.design)
            .join(
                designs,
                (designs.c.experiment == table.c.name) & (designs.c.version == table.c.design_version),
            )
            .where(table.c.name == name)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        remedy = f"e2i experiment run {name}"
        raise InputError(f"Experiment {name} is not registered yet: {remedy}.", file=name, remedy=remedy)
    return Experiment(
        name=name,
        state=row["state"],
        version=row["design_version"],
        spec=ExperimentSpec.model_validate(row["design"]),
        locked_at=row["locked_at"],
        source=row["source"],
        decision=row["decision"],
    )


def read_all(connection: sa.Connection) -> dict[str, Experiment]:
    """All registered experiments by name."""
    names = connection.execute(sa.select(tables.ab_experiments.c.name).order_by(tables.ab_experiments.c.name))
    return {name: read(connection, name) for name in names.scalars()}


def approve(
    connection: sa.Connection, name: str, *, role: str, reason: str, actor: str, policy: LifecyclePolicy
) -> None:
    """Record the approval of exactly the design in force.

    Raises:
        InputError: the role is unknown, or the experiment is not in review.
        VerdictError: this role or this person has approved the design already, or the person submitted it.
    """
    experiment = read_locked(connection, name)
    if role not in policy.approvals.roles:
        raise InputError(
            f"There is no role {role!r} to approve.",
            field="role",
            value=role,
            remedy=f"Roles: {', '.join(policy.approvals.roles)}.",
        )
    if experiment.state != "in_review":
        raise InputError(
            f"Experiment {name} is {experiment.state}; a design is approved while it is in_review.",
            field="state",
            value=experiment.state,
            remedy=f"`e2i experiment status {name}` shows what comes next.",
        )
    valid = [
        approval
        for approval in approvals(connection, name)
        if approval.design_digest == experiment.spec.design_digest
    ]
    if any(approval.role == role or approval.by == actor for approval in valid):
        raise VerdictError(f"Experiment {name}: {role} or {actor} has approved this design already.")
    if _submitted_by(connection, name) == actor:
        raise VerdictError(f"Experiment {name}: {actor} submitted it; a second person approves.")
    connection.execute(
        tables.ab_experiment_approvals.insert().values(
            experiment=name,
            role=role,
            design_digest=experiment.spec.design_digest,
            reason=reason,
            recorded_by=actor,
        )
    )


def approvals(connection: sa.Connection, name: str) -> tuple[Approval, ...]:
    """All approvals of an experiment, of whatever design."""
    table = tables.ab_experiment_approvals
    rows = connection.execute(sa.select(table).where(table.c.experiment == name).order_by(table.c.id))
    return tuple(Approval(row.role, row.recorded_by, row.design_digest, row.recorded_at) for row in rows)


def review(connection: sa.Connection, experiment: Experiment, policy: LifecyclePolicy) -> Review:
    """Approvals of the design in force, and when they are due."""
    submitted = newest_transition(connection, experiment.name, "in_review")
    return review_of(
        policy,
        experiment.spec.design_digest,
        approvals(connection, experiment.name),
        None if submitted is None else submitted.recorded_at,
    )


def transition(
    connection: sa.Connection,
    name: str,
    to: str,
    *,
    reason: str,
    actor: str,
    policy: LifecyclePolicy,
    decision: str | None = None,
    evidence: Mapping[str, str] | None = None,
    now: dt.datetime | None = None,
) -> Experiment:
    """Take the experiment to the state ``to``, with who, why and what was checked.

    ``evidence``: more that the decision rests on, recorded beside what was checked.

    Raises:
        InputError, VerdictError: see :func:`e2i_dagster.experiments.conduct.lifecycle.check_transition`.
    """
    experiment = read_locked(connection, name)
    now = now or dt.datetime.now(dt.UTC)
    found = _situation(connection, experiment, actor, decision)
    checked = check_transition(experiment.spec, policy, found, to, now=now)
    table = tables.ab_experiments
    values: dict[str, Any] = {"state": to, "updated_at": now}
    if to == "decided":
        values["decision"] = decision
    connection.execute(table.update().where(table.c.name == name).values(**values))
    _store_transition(connection, name, experiment.state, to, reason, {**checked, **(evidence or {})}, actor)
    return read(connection, name)


def screen(
    connection: sa.Connection,
    name: str,
    units: pd.DataFrame,
    *,
    cohorts: Mapping[str, CohortDefinition],
    source: Source,
    actor: str,
) -> Taken:
    """Record screened units with their attributes and which criteria they fail; each row for itself.

    A corrected unit is a row of its own, of which the newest holds, while the unit has no arm: an assignment stands
    on the values at screening.

    Args:
        units: ``unit_id``, ``screened_at`` and the attributes that criteria, strata and covariates need.

    Raises:
        InputError: a column is missing, or invented and observed units would mix.
        VerdictError: the experiment does not enrol in its state.
    """
    experiment, records = _enrolling(connection, name, source), read_records(connection, name)
    judged = enrolment.check_units(
        units,
        spec=experiment.spec,
        cohorts=cohorts,
        known=records.screened,
        assignments=records.assignments,
        events=records.events,
    )
    new = judged.rows
    if new.empty:
        return judged.taken
    frame = pd.DataFrame(new["attributes"].tolist(), index=new.index)
    failed = enrolment.eligibility(frame, *experiment.spec.criteria(cohorts))
    rows = pd.DataFrame(
        {
            "unit_id": new["unit_id"].astype(object),
            "unit_type": experiment.spec.unit,
            "screened_at": new["screened_at"],
            "attributes": new["attributes"].map(json_text),
            "eligible": [not names for names in failed],
            "failed_criteria": [json_text(names) for names in failed],
        }
    )
    _append(connection, tables.ab_experiment_units, name, rows, actor)
    experiments = tables.ab_experiments
    connection.execute(experiments.update().where(experiments.c.name == name).values(source=source))
    return judged.taken


def record_events(
    connection: sa.Connection, name: str, events: pd.DataFrame, *, source: Source, actor: str
) -> Taken:
    """Record enrolment events that can be used; the others are refused with their reasons.

    Raises:
        InputError: see :func:`e2i_dagster.experiments.conduct.enrolment.check_events`.
    """
    experiment = _following(connection, name, source)
    records = read_records(connection, name)
    judged = enrolment.check_events(
        events,
        screened=records.screened,
        assignments=records.assignments,
        known=records.events,
        consent=experiment.spec.eligibility.consent,
        arms=tuple(experiment.spec.ratios),
    )
    _append(connection, tables.ab_experiment_enrollments, name, judged.rows, actor)
    return judged.taken


def record_outcomes(
    connection: sa.Connection, name: str, outcomes: pd.DataFrame, *, source: Source, actor: str
) -> Taken:
    """Record outcomes that can be used; the others are refused with their reasons.

    Raises:
        InputError: see :func:`e2i_dagster.experiments.conduct.enrolment.check_outcomes`.
    """
    experiment = _following(connection, name, source)
    records = read_records(connection, name)
    judged = enrolment.check_outcomes(
        outcomes,
        spec=experiment.spec,
        assignments=records.assignments,
        events=records.events,
        known=records.outcomes,
    )
    _append(connection, tables.ab_experiment_outcomes, name, judged.rows, actor)
    return judged.taken


def randomize(
    connection: sa.Connection, name: str, *, actor: str, assigned_at: pd.Series | None = None
) -> pd.DataFrame:
    """Assign every eligible unit that consented and has no arm yet, in the order of screening.

    A unit without a value of an attribute that the plan reads waits (:func:`not_assignable`); the others do not.

    The first assignment locks the design. Enrolment ends with the planned sample size.

    Args:
        assigned_at: by unit_id, when the assignment holds from (a simulated stream); default is now.

    Returns:
        The new assignments.

    Raises:
        VerdictError: the experiment is not running, or its key is another one than before.
    """
    experiment = read_locked(connection, name)
    if experiment.state != "running":
        raise VerdictError(
            f"Experiment {name} is {experiment.state}; units are assigned while it is running."
        )
    if bound_to_stop(InterimAnalysis.read_all(connection, name)):
        raise VerdictError(
            f"Experiment {name}: the newest look stopped it for futility by a binding rule; nobody is assigned any "
            f"more. e2i experiment transition {name} stopped_futility --reason TEXT."
        )
    key = randomization_key()
    batches = tables.ab_randomization_batches
    previous = connection.execute(
        sa.select(batches).where(batches.c.experiment == name).order_by(batches.c.batch.desc()).limit(1)
    ).one_or_none()
    if previous is not None and previous.key_fingerprint != key_fingerprint(key):
        raise VerdictError(
            f"Experiment {name} was begun with another randomization key.",
            remedy="Go on with that key: the lists of another one would break balance and audit.",
        )
    records = read_records(connection, name)
    plan = RandomizationPlan.of(experiment.spec)
    waiting = _waiting(records, experiment.spec)
    waiting = waiting[waiting[list(plan.attributes)].notna().all(axis=1).to_numpy(dtype=bool)]
    free = experiment.spec.sample_size.total - len(records.assignments)
    before = records.assignments.merge(
        enrolment.attribute_frame(records.screened, plan.factors)[["unit_id", *plan.factors]],
        on="unit_id",
        how="left",
    )
    new = assign(waiting.head(max(free, 0)), plan, key=key, before=before)
    if new.empty:
        return new
    now = dt.datetime.now(dt.UTC)
    number = 1 if previous is None else previous.batch + 1
    connection.execute(
        batches.insert().values(
            experiment=name,
            batch=number,
            first_sequence=int(new["sequence"].iloc[0]),
            units=len(new),
            design_digest=experiment.spec.design_digest,
            plan=plan.model_dump(mode="json"),
            key_fingerprint=key_fingerprint(key),
            seal=batch_seal(new, key=key, previous="" if previous is None else previous.seal),
            recorded_by=actor,
        )
    )
    rows = new.assign(
        unit_type=experiment.spec.unit,
        batch=number,
        randomization_method=plan.method,
        assigned_at=now if assigned_at is None else new["unit_id"].map(assigned_at),
    )
    _append(connection, tables.ab_experiment_assignments, name, rows, actor)
    experiments = tables.ab_experiments
    connection.execute(
        experiments.update()
        .where(experiments.c.name == name, experiments.c.locked_at.is_(None))
        .values(locked_at=now)
    )
    return new


@dataclass(frozen=True)
class Audit:
    """What an audit with the key found: batches and units checked, seals broken, units that differ."""

    batches: int
    units: int
    broken_seals: tuple[int, ...]
    different: int

    @property
    def passed(self) -> bool:
        """True if every seal and every assignment is as drawn."""
        return not self.broken_seals and not self.different


def audit(connection: sa.Connection, name: str) -> Audit:
    """Draw every batch again with the key, and check the chain of seals."""
    key = randomization_key()
    records = read_records(connection, name)
    batches = tables.ab_randomization_batches
    rows = connection.execute(
        sa.select(batches).where(batches.c.experiment == name).order_by(batches.c.batch)
    ).all()
    attributes = enrolment.attribute_frame(records.screened)
    seal, broken, different = "", [], 0
    for row in rows:
        plan = RandomizationPlan.model_validate(row.plan)
        batch = records.assignments[records.assignments["batch"] == row.batch]
        before = records.assignments[records.assignments["batch"] < row.batch].merge(
            attributes[["unit_id", *plan.factors]], on="unit_id", how="left"
        )
        if batch_seal(batch, key=key, previous=seal) != row.seal or len(batch) != row.units:
            broken.append(row.batch)
        different += len(verify(batch, attributes, plan, key=key, before=before))
        seal = row.seal
    outside = ~records.assignments["batch"].isin([row.batch for row in rows])
    return Audit(len(rows), len(records.assignments), tuple(broken), different + int(outside.sum()))


def read_records(
    connection: sa.Connection, name: str, *, last_event: int | None = None, last_outcome: int | None = None
) -> Records:
    """What is recorded of the units, up to the given rows of events and outcomes (a frozen look)."""
    frames = {}
    for key, table, last in (
        ("screened", tables.ab_experiment_units, None),
        ("assignments", tables.ab_experiment_assignments, None),
        ("events", tables.ab_experiment_enrollments, last_event),
        ("outcomes", tables.ab_experiment_outcomes, last_outcome),
    ):
        left_out = {"experiment", "recorded_by"}
        columns = [column for column in table.c if column.name not in left_out]
        query = sa.select(*columns).where(table.c.experiment == name).order_by(table.c.id)
        if last is not None:
            query = query.where(table.c.id <= last)
        rows = connection.execute(query).all()
        frames[key] = _typed(pd.DataFrame(rows, columns=[column.name for column in columns]), table)
    # A corrected unit has a row for each delivery.
    frames["screened"] = frames["screened"].drop_duplicates("unit_id", keep="last", ignore_index=True)
    return Records(**frames)


def newest_transition(connection: sa.Connection, name: str, to: State) -> Transition | None:
    """The last time that the experiment came to the state ``to``; None if it never did."""
    transitions = Transition.read_all(connection, name)
    return next((made for made in reversed(transitions) if made.to_state == to), None)


def paused_at(connection: sa.Connection, name: str) -> dt.datetime | None:
    """When it was paused last; None if it never was."""
    paused = newest_transition(connection, name, "paused")
    return None if paused is None else paused.recorded_at


def open_report(connection: sa.Connection, name: str, *, what: str, reason: str, actor: str) -> None:
    """Record that the unblinded report was opened, before it is shown."""
    if not reason.strip():
        raise InputError(
            "The unblinded report is opened with a reason, which is recorded.",
            field="reason",
            remedy="Say why.",
        )
    connection.execute(
        tables.ab_unblinding_log.insert().values(experiment=name, what=what, reason=reason, recorded_by=actor)
    )


def information(spec: ExperimentSpec, outcomes: pd.DataFrame) -> float:
    """Information fraction: units (events, for survival) with a primary outcome, of those planned."""
    rows = outcomes[outcomes["metric"] == spec.metrics.primary.name]
    seen = int(rows["event"].fillna(False).sum()) if spec.metrics.primary.kind == "survival" else len(rows)
    return seen / spec.information_target


def read_locked(connection: sa.Connection, name: str) -> Experiment:
    """The experiment, its row locked until the transaction ends."""
    table = tables.ab_experiments
    connection.execute(sa.select(table.c.name).where(table.c.name == name).with_for_update())
    return read(connection, name)


def _enrolling(connection: sa.Connection, name: str, source: Source) -> Experiment:
    experiment = _following(connection, name, source)
    if experiment.state not in ("scheduled", "running"):
        raise VerdictError(
            f"Experiment {name} is {experiment.state}; units are screened while it is scheduled or running."
        )
    return experiment


def _following(connection: sa.Connection, name: str, source: Source) -> Experiment:
    experiment = read_locked(connection, name)
    if experiment.source not in (None, source):
        raise InputError(
            f"Experiment {name} has {experiment.source} units; {source} ones never mix with them.",
            remedy="Use another experiment.",
        )
    return experiment


def not_assignable(records: Records, spec: ExperimentSpec) -> dict[str, int]:
    """Why eligible, consenting units wait for their arm: reason -> units, each under all of its reasons."""
    attributes = list(RandomizationPlan.of(spec).attributes)
    lacking = _waiting(records, spec)[attributes].isna().sum()
    return {f"no value of {name}": int(count) for name, count in lacking.items() if count}


def _waiting(records: Records, spec: ExperimentSpec) -> pd.DataFrame:
    """Eligible, consenting, not assigned units with their attributes, in the order of screening."""
    screened = records.screened
    fit = screened["eligible"].astype(bool) & ~screened["unit_id"].isin(records.assignments["unit_id"])
    if spec.eligibility.consent.required:
        events = records.events
        agreed = events.loc[events["event_type"] == "consented", "unit_id"]
        gone = events.loc[events["event_type"] == "consent_withdrawn", "unit_id"]
        fit &= screened["unit_id"].isin(agreed) & ~screened["unit_id"].isin(gone)
    waiting = screened[fit].sort_values(["screened_at", "id"], kind="stable")
    return enrolment.attribute_frame(waiting, RandomizationPlan.of(spec).attributes).reset_index(drop=True)


def _situation(
    connection: sa.Connection, experiment: Experiment, actor: str, decision: str | None
) -> Situation:
    records = read_records(connection, experiment.name)
    made = InterimAnalysis.read_all(connection, experiment.name)
    results = tables.ab_experiment_results
    others: dict[str, tuple[ExperimentSpec, State]] = {
        name: (other.spec, other.state)
        for name, other in read_all(connection).items()
        if name != experiment.name
    }
    times = [
        records.screened["screened_at"], records.events["occurred_at"], records.outcomes["observed_at"],
    ]  # fmt: skip
    present = [part.max() for part in times if len(part)]
    return Situation(
        state=experiment.state,
        actor=actor,
        design_digest=experiment.spec.design_digest,
        submitted_by=_submitted_by(connection, experiment.name),
        approvals=approvals(connection, experiment.name),
        others=others,
        key_ready=_key_ready(),
        newest_decision=made[-1].decision if made else None,
        looks_done=len(made),
        information=information(experiment.spec, records.outcomes),
        as_of=max(present).date() if present else None,
        paused_at=paused_at(connection, experiment.name),
        results=bool(
            connection.scalar(
                sa.select(sa.func.count()).select_from(results).where(results.c.experiment == experiment.name)
            )
        ),
        decision=decision,
        assigned=len(records.assignments),
        bound_to_stop=bound_to_stop(made),
    )


def _key_ready() -> bool:
    try:
        randomization_key()
    except E2IError:
        return False
    return True


def _submitted_by(connection: sa.Connection, name: str) -> str | None:
    submitted = newest_transition(connection, name, "in_review")
    return None if submitted is None else submitted.recorded_by


def _new_design(
    connection: sa.Connection, spec: ExperimentSpec, version: int, *, amendment: bool, reason: str, actor: str
) -> None:
    _store_design(connection, spec, version, amendment=amendment, reason=reason, actor=actor)
    table = tables.ab_experiments
    connection.execute(
        table.update()
        .where(table.c.name == spec.name)
        .values(design_version=version, design_digest=spec.design_digest)
    )


def _store_design(
    connection: sa.Connection, spec: ExperimentSpec, version: int, *, amendment: bool, reason: str, actor: str
) -> None:
    connection.execute(
        tables.ab_experiment_designs.insert().values(
            experiment=spec.name,
            version=version,
            design_digest=spec.design_digest,
            design=spec.model_dump(mode="json"),
            amendment=amendment,
            reason=reason,
            recorded_by=actor,
        )
    )


def _store_transition(
    connection: sa.Connection,
    name: str,
    before: str | None,
    after: str,
    reason: str,
    evidence: Mapping[str, str],
    actor: str,
) -> None:
    if not reason.strip():
        raise InputError("Every transition is recorded with its reason.", field="reason", remedy="Say why.")
    connection.execute(
        tables.ab_experiment_transitions.insert().values(
            experiment=name,
            from_state=before,
            to_state=after,
            reason=reason,
            evidence=dict(evidence),
            recorded_by=actor,
        )
    )


def _append(connection: sa.Connection, table: sa.Table, name: str, rows: pd.DataFrame, actor: str) -> None:
    """COPY ``rows`` into ``table``, in their order."""
    if rows.empty:
        return
    given = rows.assign(experiment=name, recorded_by=actor)
    columns = [column.name for column in table.c if column.name in given.columns]
    values = given[columns].astype(object).where(given[columns].notna(), None)
    driver = connection.connection.driver_connection
    if driver is None:
        raise ConfigError(
            "The warehouse's connection was closed before its rows were written.",
            remedy="Write the rows while the connection is open.",
        )
    from psycopg import sql

    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in values.itertuples(index=False, name=None):
            copy.write_row(row)


def _typed(frame: pd.DataFrame, table: sa.Table) -> pd.DataFrame:
    """Texts as Arrow strings, times in UTC, whatever the number of rows."""
    for column in table.c:
        if column.name not in frame.columns:
            continue
        if isinstance(column.type, sa.Text):
            frame[column.name] = frame[column.name].astype("string[pyarrow]")
        elif isinstance(column.type, sa.DateTime):
            frame[column.name] = pd.to_datetime(frame[column.name], utc=True)
        elif isinstance(column.type, sa.Double):
            frame[column.name] = frame[column.name].astype("float64")
        elif isinstance(column.type, sa.Boolean):
            frame[column.name] = frame[column.name].astype("boolean")
        elif isinstance(column.type, sa.BigInteger | sa.Integer):
            frame[column.name] = frame[column.name].astype("int64")
    return frame
