"""The life cycle of an experiment: which state may follow, and what must be there first."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from e2i_dagster.config.experiment import ENDED_STATES, OPEN_STATES, ExperimentSpec, LifecyclePolicy, State
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments.conduct.records import InterimAnalysis


@dataclass(frozen=True)
class Approval:
    """One approval of exactly one design."""

    role: str
    by: str
    design_digest: str
    at: dt.datetime | None = None


@dataclass(frozen=True)
class Situation:
    """What is known when a transition is asked for.

    Attributes:
        state: the present state. actor: who asks. submitted_by: who submitted the design for review.
        others: designs of other experiments by name, with their states.
        key_ready: the randomization key is there.
        newest_decision: decision of the newest look (None without one); ``looks_done`` of them.
        information: information fraction reached. as_of: newest day of the data.
        paused_at: since when it is paused. results: the final results are recorded.
        decision: what shall be decided.
        assigned: units assigned. bound_to_stop: the newest look stopped it for futility by a binding rule.
    """

    state: State
    actor: str
    design_digest: str
    submitted_by: str | None = None
    approvals: tuple[Approval, ...] = ()
    others: Mapping[str, tuple[ExperimentSpec, State]] = field(default_factory=dict)
    key_ready: bool = False
    newest_decision: str | None = None
    looks_done: int = 0
    information: float = 0.0
    as_of: dt.date | None = None
    paused_at: dt.datetime | None = None
    results: bool = False
    decision: str | None = None
    assigned: int = 0
    bound_to_stop: bool = False


def check_transition(
    spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, to: str, *, now: dt.datetime
) -> dict[str, str]:
    """What was checked for the transition to ``to``, and found.

    Raises:
        InputError: there is no such state, or it cannot follow the present one.
        VerdictError: something that the state needs is not there; everything that is missing is listed.
    """
    if to not in policy.transitions:
        remedy = f"States: {', '.join(policy.transitions)}."
        raise InputError(f"There is no state {to!r}. {remedy}", field="state", value=to, remedy=remedy)
    after = policy.transitions[situation.state]
    if to not in after:
        remedy = f"It may become {', '.join(after)}." if after else "Nothing follows."
        raise InputError(
            f"Experiment {spec.name} is {situation.state}; {to} cannot follow. {remedy}",
            file=spec.name, field="state", value=to, remedy=remedy,
        )  # fmt: skip
    checks = dict(_CHECKS.get(to, _nothing)(spec, policy, situation, now))
    if situation.bound_to_stop and situation.state in ("running", "paused"):
        checks["binding futility"] = (
            to in ("stopped_futility", "stopped_other"),
            "the newest look stopped it for futility, and the design makes that binding",
        )
    missing = [f"{name}: {text}" for name, (fine, text) in checks.items() if not fine]
    if missing:
        raise VerdictError(f"Experiment {spec.name} cannot become {to}: " + "; ".join(missing) + ".")
    return {name: text for name, (_, text) in checks.items()}


Found = Iterator[tuple[str, tuple[bool, str]]]


def _nothing(spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime) -> Found:
    yield from ()


def _for_review(
    spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime
) -> Found:
    primary = spec.metrics.primary
    yield (
        "minimum effect",
        (
            primary.minimum_effect is not None,
            "metrics.primary.minimum_effect is "
            + ("given" if primary.minimum_effect is not None else "not given"),
        ),
    )
    days = (spec.dates.end - spec.dates.start).days + 1
    reachable = days * spec.sample_size.per_day
    yield (
        "duration",
        (
            reachable >= spec.sample_size.total,
            f"{days} days at {spec.sample_size.per_day:g} units a day enrol {reachable:,.0f} of "
            f"{spec.sample_size.total:,}",
        ),
    )
    yield "overlap", _overlap(spec, situation)


def _overlap(spec: ExperimentSpec, situation: Situation) -> tuple[bool, str]:
    """Another open experiment that may meet the same units at the same time."""
    clashing = [
        name
        for name, (other, state) in situation.others.items()
        if state in OPEN_STATES
        and other.unit == spec.unit
        and other.brand == spec.brand
        and other.eligibility.cohort == spec.eligibility.cohort
        and other.dates.start <= spec.dates.end
        and spec.dates.start <= other.dates.end
        and name not in spec.may_overlap_with
    ]
    if not clashing:
        return True, "no open experiment meets the same units"
    return False, (
        f"{', '.join(clashing)} meets the same units in the same time; end it, or name it in may_overlap_with"
    )


def _approved(spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime) -> Found:
    valid = {
        approval.role: approval.by
        for approval in situation.approvals
        if approval.design_digest == situation.design_digest
    }
    for role in policy.approvals.roles:
        by = valid.get(role)
        yield f"approval of {role}", (by is not None, f"by {by}" if by else "is missing for this design")
    people = [valid[role] for role in policy.approvals.roles if role in valid]
    yield "different people", (len(set(people)) == len(people), f"{len(set(people))} approved")
    own = situation.submitted_by in people
    yield (
        "second person",
        (not own, "the one who submitted it approved it" if own else "not the one who submitted it"),
    )


def _before_launch(
    spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime
) -> Found:
    yield "randomization", (
        situation.key_ready, "the key is there" if situation.key_ready else "the key cannot be read",
    )  # fmt: skip
    yield "overlap", _overlap(spec, situation)
    if situation.state == "paused" and situation.paused_at is not None:
        days = (now - situation.paused_at).total_seconds() / 86_400
        yield (
            "pause",
            (
                days <= policy.longest_pause_days,
                f"paused for {days:.1f} of at most {policy.longest_pause_days} days",
            ),
        )


def _stopped(decision: str) -> Callable[..., Found]:
    def found(spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime) -> Found:
        newest = situation.newest_decision
        yield "newest look", (newest == decision, f"says {newest or 'nothing yet'}, needed is {decision}")

    return found


def _completed(
    spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime
) -> Found:
    over = situation.as_of is not None and situation.as_of > spec.dates.end
    yield (
        "information",
        (
            situation.information >= 1 - 1e-9 or over,
            f"{situation.information:.0%} of the planned information, data up to {situation.as_of or 'no day'}, "
            f"planned end {spec.dates.end}",
        ),
    )


def _analyzed(spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime) -> Found:
    yield (
        "results",
        (
            situation.results,
            "are recorded" if situation.results else f"are not recorded: run e2i experiment run {spec.name}",
        ),
    )


def _decided(spec: ExperimentSpec, policy: LifecyclePolicy, situation: Situation, now: dt.datetime) -> Found:
    yield (
        "decision",
        (
            situation.decision in policy.decisions,
            f"{situation.decision or 'none was given'} (one of {', '.join(policy.decisions)})",
        ),
    )
    if situation.bound_to_stop:
        yield (
            "binding futility",
            (
                situation.decision != "implement_treatment",
                "the experiment stopped for futility by a binding rule, so the treatment is not implemented",
            ),
        )


_CHECKS: Mapping[str, Callable[..., Found]] = {
    "in_review": _for_review,
    "approved": _approved,
    "scheduled": _before_launch,
    "running": _before_launch,
    "stopped_success": _stopped("stop_efficacy"),
    "stopped_futility": _stopped("stop_futility"),
    "stopped_harm": _stopped("stop_safety"),
    "completed": _completed,
    "analyzed": _analyzed,
    "decided": _decided,
}


def bound_to_stop(made: Sequence[InterimAnalysis]) -> bool:
    """True when the newest of the looks ``made`` stopped for futility by a rule that the design makes binding."""
    return bool(made) and made[-1].metrics_snapshot.binding_stop


@dataclass(frozen=True)
class Review:
    """The approvals of the design in force: by role who and when, and until when they were due."""

    due: dt.datetime | None
    given: Mapping[str, Approval]
    missing: tuple[str, ...]

    def late(self, approval: Approval) -> bool:
        """True when it came after the time it was due."""
        return self.due is not None and approval.at is not None and approval.at > self.due

    def overdue(self, now: dt.datetime) -> bool:
        """True when a role is missing although the time is over."""
        return bool(self.missing) and self.due is not None and now > self.due


def review_of(
    policy: LifecyclePolicy,
    design_digest: str,
    approvals: Sequence[Approval],
    submitted_at: dt.datetime | None,
) -> Review:
    """Approvals of one design, due so many hours after it was submitted."""
    given = {approval.role: approval for approval in approvals if approval.design_digest == design_digest}
    return Review(
        due=None if submitted_at is None else submitted_at + dt.timedelta(hours=policy.approvals.hours),
        given=given,
        missing=tuple(role for role in policy.approvals.roles if role not in given),
    )


def may_read_results(state: State) -> bool:
    """True once data collection is over: before that results are for the data monitoring committee alone."""
    return state in ENDED_STATES
