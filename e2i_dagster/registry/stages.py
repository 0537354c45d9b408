"""Stages of a model version: what must be shown before it reaches the next one. Pure decisions."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.registry import WAY_UP, RegistryPolicy, Stage
from e2i_dagster.display import Table
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.training import Evaluation

_MEASURED = {
    *("model_digest", "problem_type", "auc", "criteria_met", "cohort_approved"),
    *("evaluation_digest", "scope_digest", "simulated_days"),
}


class Approval(BaseModel):
    """A person's consent. ``evidence_digest`` is that of the evidence they saw."""

    model_config = ConfigDict(frozen=True)

    by: str
    at: dt.datetime
    evidence_digest: str


class Evidence(BaseModel):
    """What was measured about a version.

    Attributes:
        auc: split -> measured ROC-AUC; empty where it means nothing.
        criteria_met: whether every success criterion of the scope was met.
        cohort_approved: whether the cohort's definition is approved; a draft's models stay in development.
        evaluation_digest: digest of the whole evaluation, with every metric and criterion.
        scope_digest: digest of the scope's definition under which it was made; empty when not recorded.
        stale: why the evidence does not hold any more; empty when it does.
        simulated_days: days in the present stage that did not pass; only for development.
        days_in_stage: days since the version reached its present stage.
        days_superseded: days since a newer version took its place, None when none has.
        proposed_by: who asks for the promotion.
        approvals: consents.
    """

    model_config = ConfigDict(frozen=True)

    model_digest: str
    problem_type: str
    auc: dict[str, float]
    criteria_met: bool
    cohort_approved: bool = False
    evaluation_digest: str = ""
    scope_digest: str = ""
    stale: str = ""
    simulated_days: float = 0.0
    days_in_stage: float = 0.0
    days_superseded: float | None = None
    proposed_by: str
    approvals: tuple[Approval, ...] = ()

    @classmethod
    def from_evaluation(cls, evaluation: Evaluation, *, proposed_by: str, **more: Any) -> Evidence:
        """Evidence of one evaluation; ``more`` are the other fields."""
        auc = {
            split: value
            for split in evaluation.splits
            if (value := evaluation.metric(split, "roc_auc")) is not None
        }
        return cls(
            model_digest=evaluation.model_digest,
            problem_type=evaluation.problem_type,
            auc=auc,
            criteria_met=evaluation.accepted,
            evaluation_digest=digest_of(evaluation.to_record()),
            proposed_by=proposed_by,
            **more,
        )

    def measured_digest(self) -> str:
        """Digest of what was measured, and of days that were simulated: what an approval consents to."""
        return digest_of(self.model_dump(mode="json", include=_MEASURED))


class RuleResult(BaseModel):
    """One rule of a transition."""

    model_config = ConfigDict(frozen=True)

    rule: Literal[
        "order",
        "evidence",
        "min_auc",
        "criteria_met",
        "cohort_approved",
        "days_in_stage",
        "approval",
        "days_superseded",
    ]
    passed: bool
    reason: str


class Transition(BaseModel):
    """The verdict about one transition."""

    model_config = ConfigDict(frozen=True)

    from_stage: str
    to_stage: str
    results: tuple[RuleResult, ...]

    @property
    def allowed(self) -> bool:
        """Whether every rule is met."""
        return all(result.passed for result in self.results)

    def reasons(self) -> tuple[str, ...]:
        """Why not, one sentence for each rule that is not met."""
        return tuple(result.reason for result in self.results if not result.passed)

    @property
    def unmet(self) -> tuple[str, ...]:
        """Names of the rules that are not met."""
        return tuple(result.rule for result in self.results if not result.passed)

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows."""
        return {
            "from_stage": self.from_stage,
            "to_stage": self.to_stage,
            "allowed": self.allowed,
            "rules": Table(
                ("rule", "met", "found"),
                [(result.rule, result.passed, result.reason) for result in self.results],
            ),
        }


def check_transition(
    from_stage: Stage, to_stage: Stage, evidence: Evidence, *, policy: RegistryPolicy | None = None
) -> Transition:
    """Judge the way from one stage to another by ``config/registry.yaml``. Changes nothing."""
    policy = policy or RegistryPolicy.load()
    rules = policy.rules(to_stage)
    results = [_order(from_stage, to_stage)]
    if evidence.stale:
        results.append(RuleResult(rule="evidence", passed=False, reason=evidence.stale))
    if rules.min_auc is not None and evidence.problem_type == "binary_classification":
        value = evidence.auc.get(rules.split)
        results.append(
            RuleResult(
                rule="min_auc",
                passed=value is not None and value >= rules.min_auc,
                reason=f"ROC-AUC on {rules.split} "
                + ("was not measured" if value is None else f"is {value:.4f}")
                + f", {to_stage} needs {rules.min_auc:.2f}.",
            )
        )
    if rules.criteria_met:
        results.append(
            RuleResult(
                rule="criteria_met",
                passed=evidence.criteria_met,
                reason="The scope's success criteria are "
                + ("met." if evidence.criteria_met else "not met."),
            )
        )
    if rules.cohort_approved:
        results.append(
            RuleResult(
                rule="cohort_approved",
                passed=evidence.cohort_approved,
                reason="The cohort's definition is approved."
                if evidence.cohort_approved
                else "The cohort's definition is a draft: when its rules are agreed, write "
                "`status: {approved: {by: ..., on: ...}}` into its file.",
            )
        )
    if rules.min_days_in_previous is not None:
        days = evidence.days_in_stage + evidence.simulated_days
        simulated = f" ({evidence.simulated_days:g} of them simulated)" if evidence.simulated_days else ""
        results.append(
            RuleResult(
                rule="days_in_stage",
                passed=days >= rules.min_days_in_previous,
                reason=f"{days:.1f} days in {from_stage}{simulated}, {to_stage} needs "
                f"{rules.min_days_in_previous:g}.",
            )
        )
    if rules.approval:
        results.append(_approval(evidence))
    if rules.min_days_superseded is not None:
        days = evidence.days_superseded
        results.append(
            RuleResult(
                rule="days_superseded",
                passed=days is not None and days >= rules.min_days_superseded,
                reason=(
                    "No newer version has taken its place"
                    if days is None
                    else f"Superseded for {days:.1f} days"
                )
                + f", {to_stage} needs {rules.min_days_superseded:g}.",
            )
        )
    return Transition(from_stage=from_stage, to_stage=to_stage, results=tuple(results))


def _order(from_stage: Stage, to_stage: Stage) -> RuleResult:
    if to_stage == "archived":
        passed = from_stage != "archived"
        reason = f"From {from_stage} to archived."
    elif from_stage == "archived":
        passed, reason = False, "An archived version does not come back; register a new one."
    else:
        step = WAY_UP.index(to_stage) - WAY_UP.index(from_stage)
        passed = step == 1
        reason = (
            f"From {from_stage} the next stage is {WAY_UP[WAY_UP.index(from_stage) + 1]}, not {to_stage}."
            if not passed and from_stage != WAY_UP[-1]
            else f"From {from_stage} to {to_stage}" + ("." if passed else ": it is the last stage.")
        )
    return RuleResult(rule="order", passed=passed, reason=reason)


def _approval(evidence: Evidence) -> RuleResult:
    digest = evidence.measured_digest()
    proposer = evidence.proposed_by.strip().casefold()
    own = [item.by.strip().casefold() == proposer for item in evidence.approvals]
    valid = [
        item.by
        for item, is_own in zip(evidence.approvals, own, strict=True)
        if not is_own and item.evidence_digest == digest
    ]
    if valid:
        reason = f"Approved by {', '.join(valid)}."
    elif not evidence.approvals:
        reason = "Nobody has approved it."
    elif all(own):
        reason = "Only the person who proposed it has approved it; a second person must."
    else:
        reason = f"The approvals are for other evidence than {digest}."
    return RuleResult(rule="approval", passed=bool(valid), reason=reason)
