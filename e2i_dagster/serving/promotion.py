"""Promotion, approval, rejection and rollback of a registered version, with the slot that serves its stage.

The order is: judge, deploy, record. What a rule refuses changes nothing; what cannot be deployed leaves registry and
slot as they were. One promotion of a model at a time.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.policy import Policy
from e2i_dagster.config.registry import WAY_UP, RegistryPolicy
from e2i_dagster.config.serving import ServingPolicy, Slot
from e2i_dagster.display import Table
from e2i_dagster.errors import ConfigError, DamagedError, InputError, UnavailableError, VerdictError
from e2i_dagster.policy_files.actors import Actor, require_authenticated
from e2i_dagster.policy_files.environment import production
from e2i_dagster.registry.evidence import find_model, find_version, read_evidence
from e2i_dagster.registry.history import (
    StageEvent,
    holder_before,
    open_proposals,
    record_events,
    stage_history,
)
from e2i_dagster.registry.records import write_stage
from e2i_dagster.registry.stages import Approval, Evidence, Transition, check_transition
from e2i_dagster.registry.versions import (
    RegisteredVersion,
    assess_promotion,
    models_with,
    require_allowed,
    set_back,
    set_stage,
    version_at,
    versions_of,
)
from e2i_dagster.serving.active import models_at_stage, parity_samples
from e2i_dagster.serving.control import Progress
from e2i_dagster.serving.deployment import Deployment, deploy, switch_back
from e2i_dagster.serving.records import write_deployment
from e2i_dagster.serving.release import ModelToServe, Release, build_release

if TYPE_CHECKING:
    import pandas as pd

#: Who acts where a rule does.
RULE = Actor("config/registry.yaml", "automatic")
_TRY_LOCK = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")


class Outcome(BaseModel):
    """What became of a request about a version.

    Attributes:
        state: ``promoted``, ``proposed`` (waits for a second person), ``rejected``, ``rolled_back``, ``unchanged``, or
            ``planned`` of a dry run.
        evidence_digest: digest of the evidence that was judged, to which an approval is bound.
        rules: each rule of the transition, whether it is met, and what was found.
        replaced: version that had the stage before.
        simulated_days: days of the evidence that did not pass.
        warm: of a rollback, whether the release was still warm, so that nothing had to be started.
        seconds: how long it took from the judgement to the switch.
        archived: versions that the rule for superseded ones archived.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    state: Literal["promoted", "proposed", "rejected", "rolled_back", "unchanged", "planned"]
    from_stage: str
    to_stage: str
    by: str
    authentication: str
    evidence_digest: str | None = None
    rules: tuple[dict[str, Any], ...] = ()
    replaced: str | None = None
    simulated_days: float = 0.0
    url: str | None = None
    bento: str | None = None
    warm: bool | None = None
    seconds: float | None = None
    archived: tuple[str, ...] = ()
    next: str = ""

    def to_metadata(self) -> dict[str, Any]:
        """What the run's page shows."""
        return {
            **{
                name: value
                for name, value in self.model_dump(mode="json", exclude={"rules", "archived"}).items()
                if value not in (None, "")
            },
            "archived": ", ".join(self.archived) or "none",
            "rules": rules_table(self.rules),
        }


def rules_table(rules: tuple[dict[str, Any], ...]) -> Table:
    """The rules of a transition as people read them."""
    return Table(
        ("rule", "met", "found"),
        [(rule["rule"], rule["passed"], rule["reason"]) for rule in rules],
        empty="No rule was asked.",
    )


@dataclass(frozen=True)
class Registrar:
    """Acts on registered versions for one person.

    Attributes:
        engine: the warehouse. tracking_uri: address of the MLflow store.
        actor: who acts, and how that is known.
        policy: scopes and cohorts as they are now.
        frames: scope -> training frame, whose rows prove that a slot answers as the offline model.
        run_id: the Dagster run that acts, for the history.
    """

    engine: sa.Engine
    tracking_uri: str
    actor: Actor
    policy: Policy
    frames: Callable[[str], pd.DataFrame]
    registry: RegistryPolicy
    serving: ServingPolicy
    run_id: str | None = None
    state: Path | None = None
    host: str = "127.0.0.1"
    progress: Progress | None = None

    def promote(
        self,
        model: str,
        to_stage: Slot,
        *,
        version: str | None = None,
        reason: str,
        simulated_days: float = 0.0,
        dry_run: bool = False,
    ) -> Outcome:
        """Move a version one stage up and deploy it to the slot of that name.

        Where the stage needs an approval and everything else is met, the promotion is proposed; :meth:`approve`
        completes it.

        Args:
            version: by default the one that has the stage below.
            simulated_days: days in the stage below that did not pass; recorded with the evidence.
            dry_run: judge and change nothing.

        Raises:
            InputError: there is no such model or version.
            ConfigError: simulated days outside of development.
            VerdictError: a rule is not met; each is named. Or the person is not authenticated in production.
            UnavailableError: another promotion of the model is under way.
            DeploymentError: the slot does not answer as the offline model; nothing was changed.
        """
        require_simulation_allowed(simulated_days)
        if to_stage not in WAY_UP[1:]:
            raise InputError(
                f"No version is promoted to stage {to_stage!r}.",
                field="to",
                value=to_stage,
                remedy=f"Use one of: {', '.join(WAY_UP[1:])}.",
            )
        name = find_model(model, self.policy, tracking_uri=self.tracking_uri)
        below = WAY_UP[WAY_UP.index(to_stage) - 1]
        with self._alone(name):
            wanted = version or self._candidate(name, below, to_stage)
            found = find_version(name, wanted, tracking_uri=self.tracking_uri)
            evidence = read_evidence(
                found,
                self.policy,
                proposed_by=self.actor.name,
                simulated_days=simulated_days,
                tracking_uri=self.tracking_uri,
            )
            return self._promote(found, to_stage, evidence, reason, dry_run=dry_run)

    def approve(
        self,
        model: str,
        *,
        version: str | None = None,
        reason: str,
        evidence: str | None = None,
        dry_run: bool = False,
    ) -> Outcome:
        """Consent to an open proposal as a second person; the version is then promoted.

        Args:
            version: by default the one that is proposed.
            evidence: digest of the evidence that the person has seen; refused when it is not that of the proposal.

        Raises:
            VerdictError: nothing is proposed, it is one's own proposal, the evidence has changed since, a rule is not
                met any more, or the person is not authenticated in production.
        """
        name = find_model(model, self.policy, tracking_uri=self.tracking_uri)
        with self._alone(name):
            proposal = self._proposal(name, version)
            if self.actor.is_same_person(proposal.actor):
                raise VerdictError(
                    f"{self.actor.name} has proposed {name} version {proposal.model_version} for "
                    f"{proposal.to_stage}; a second person must approve it.",
                    field="actor",
                    value=self.actor.name,
                    remedy="Have somebody else approve it, under their own name (E2I_ACTOR, or the proxy's user).",
                )
            require_authenticated(self.actor, f"Approving {name} for {proposal.to_stage}")
            require_simulation_allowed(proposal.simulated_days)
            found = find_version(name, proposal.model_version, tracking_uri=self.tracking_uri)
            now = read_evidence(
                found,
                self.policy,
                proposed_by=proposal.actor,
                simulated_days=proposal.simulated_days,
                tracking_uri=self.tracking_uri,
            )
            self._require_evidence(proposal, now, evidence)
            consent = Approval(
                by=self.actor.name, at=dt.datetime.now(dt.UTC), evidence_digest=now.measured_digest()
            )
            approved = now.model_copy(update={"approvals": (consent,)})
            return self._promote(
                found, cast("Slot", proposal.to_stage), approved, reason, approval=True, dry_run=dry_run
            )

    def reject(self, model: str, *, version: str | None = None, reason: str) -> Outcome:
        """Decide against an open proposal; a new one can be made.

        Raises:
            InputError: nothing is proposed. VerdictError: the person is not authenticated in production.
        """
        name = find_model(model, self.policy, tracking_uri=self.tracking_uri)
        with self._alone(name):
            proposal = self._proposal(name, version)
            require_authenticated(self.actor, f"Rejecting {name} for {proposal.to_stage}")
            event = StageEvent.of(
                "rejected",
                name,
                proposal.model_version,
                by=self.actor,
                to_stage=proposal.to_stage,
                from_stage=proposal.from_stage,
                reason=reason,
                evidence=proposal.evidence,
                run_id=self.run_id,
            )
            record_events(self.engine, [event])
        return Outcome(
            model=name,
            version=proposal.model_version,
            state="rejected",
            from_stage=proposal.from_stage or "",
            to_stage=proposal.to_stage,
            by=self.actor.name,
            authentication=self.actor.authentication,
            evidence_digest=proposal.evidence_digest,
            simulated_days=proposal.simulated_days,
        )

    def rollback(
        self, model: str, *, to_version: str | None = None, reason: str, dry_run: bool = False
    ) -> Outcome:
        """Give slot production back to a version that had it before.

        Its release is switched to when it is still warm, otherwise deployed. No approval is asked: the version was
        approved when it came to production.

        Args:
            to_version: by default the one before the present one.

        Raises:
            InputError: nothing is in production, there is no earlier version, or it is unknown.
            DamagedError: the model of the version is gone or damaged.
            VerdictError: the version was never in production, or the person is not authenticated in production.
        """
        name = find_model(model, self.policy, tracking_uri=self.tracking_uri)
        stage: Slot = "production"
        with self._alone(name):
            present = find_version(name, stage, tracking_uri=self.tracking_uri)
            wanted = to_version or holder_before(stage_history(self.engine, name), stage, present.version)
            if wanted is None:
                raise InputError(
                    f"{name} had no version in production before {present.version}.",
                    field="to",
                    remedy="There is nothing to go back to; promote another version instead.",
                )
            found = find_version(name, wanted, tracking_uri=self.tracking_uri)
            self._require_was_there(found, present, stage)
            require_whole(found)
            if dry_run:
                return self._outcome("planned", found, stage, present.version, replaced=present.version)
            require_authenticated(self.actor, f"Rolling {name} back in {stage}")
            began = time.monotonic()
            deployed, warm = self._back_in_slot(found, stage)
            set_back(found, stage, tracking_uri=self.tracking_uri)
            event = StageEvent.of(
                "rolled_back",
                name,
                found.version,
                by=self.actor,
                to_stage=stage,
                from_stage=f"{stage} (version {present.version})",
                reason=reason,
                deployment_id=deployed.deployment_id,
                run_id=self.run_id,
            )
            record_events(self.engine, [event])
            return self._outcome(
                "rolled_back",
                found,
                stage,
                stage,
                replaced=present.version,
                url=deployed.url,
                bento=deployed.bento_tag,
                warm=warm,
                seconds=deployed.seconds["switch"] if warm else time.monotonic() - began,
                archived=archive_superseded(
                    name, self.engine, registry=self.registry, tracking_uri=self.tracking_uri
                ),
            )

    def _promote(
        self,
        version: RegisteredVersion,
        to_stage: Slot,
        evidence: Evidence,
        reason: str,
        *,
        approval: bool = False,
        dry_run: bool,
    ) -> Outcome:
        name = version.name
        present, measured, verdict = assess_promotion(
            version, to_stage, evidence, policy=self.registry, tracking_uri=self.tracking_uri
        )
        if present.stage == to_stage:
            return self._outcome("unchanged", present, to_stage, to_stage)
        judged: dict[str, Any] = {
            "evidence_digest": measured.measured_digest(),
            "rules": tuple(result.model_dump(mode="json") for result in verdict.results),
            "simulated_days": measured.simulated_days,
        }
        if set(verdict.unmet) - ({"approval"} if not approval else set()):
            require_allowed(present, verdict)
        require_whole(present)
        ask = f"Have a second person run: e2i approve {name} --version {present.version} --reason ..."
        proposed = "approval" in verdict.unmet
        if dry_run:
            return self._outcome(
                "planned", present, to_stage, present.stage, next=ask if proposed else "", **judged
            )
        if to_stage == "production":
            require_authenticated(self.actor, f"Promoting {name} to {to_stage}")
        if proposed:
            event = self._event("proposed", present, to_stage, reason, measured, verdict)
            record_events(self.engine, [event])
            return self._outcome("proposed", present, to_stage, present.stage, next=ask, **judged)
        before = version_at(name, to_stage, tracking_uri=self.tracking_uri)
        began = time.monotonic()
        deployed = self._into_slot(present, to_stage)
        set_stage(present, to_stage, measured, tracking_uri=self.tracking_uri)
        write_stage(self.engine, name, present.version, to_stage)
        events = [
            self._event(action, present, to_stage, reason, measured, verdict, deployed.deployment_id)
            for action in (("approved", "promoted") if approval else ("promoted",))
        ]
        record_events(self.engine, events)
        return self._outcome(
            "promoted",
            present,
            to_stage,
            present.stage,
            replaced=None if before is None or before.version == present.version else before.version,
            url=deployed.url,
            bento=deployed.bento_tag,
            seconds=time.monotonic() - began,
            archived=archive_superseded(
                name, self.engine, registry=self.registry, tracking_uri=self.tracking_uri
            ),
            **judged,
        )

    def _candidate(self, name: str, below: str, to_stage: str) -> str:
        """The version that has the stage below; the one that already has ``to_stage`` when there is none below it."""
        for stage in (below, to_stage):
            if version_at(name, stage, tracking_uri=self.tracking_uri) is not None:
                return stage
        return below

    def _proposal(self, name: str, version: str | None) -> StageEvent:
        waiting = open_proposals(stage_history(self.engine, name))
        found = [proposal for proposal in waiting if version in (None, proposal.model_version)]
        if len(found) == 1:
            return found[0]
        if found:
            versions = ", ".join(proposal.model_version for proposal in found)
            raise InputError(
                f"Several versions of {name} are proposed: {versions}.",
                field="version",
                remedy="Say which one.",
            )
        there = ", ".join(f"{proposal.model_version} for {proposal.to_stage}" for proposal in waiting)
        raise InputError(
            f"No promotion of {name}{'' if version is None else f' version {version}'} is proposed.",
            field="version",
            value=version,
            remedy=f"Proposed: {there}." if there else f"Propose one: e2i promote {name} --to production.",
        )

    @staticmethod
    def _require_evidence(proposal: StageEvent, now: Evidence, seen: str | None) -> None:
        digest = now.measured_digest()
        for what, other in (
            ("the proposal was made on", proposal.evidence_digest),
            ("you name", seen or digest),
        ):
            if other != digest:
                raise VerdictError(
                    f"The evidence about {proposal.model_name} version {proposal.model_version} is {digest}, {what} "
                    f"{other}.",
                    field="evidence",
                    value=other,
                    remedy="Look at the evidence again (`e2i history`), and propose it anew if it has changed.",
                )

    def _require_was_there(self, version: RegisteredVersion, present: RegisteredVersion, stage: str) -> None:
        name = version.name
        if version.version == present.version:
            raise InputError(
                f"{name} version {version.version} is in {stage} now.",
                field="to",
                value=version.version,
                remedy="Name an earlier version, or leave it out for the one before.",
            )
        if version.stage == "archived":
            raise VerdictError(
                f"{name} version {version.version} is archived; an archived version does not come back.",
                field="to",
                value=version.version,
                remedy="Name a version that is not (`e2i history`), or register a new one.",
            )
        events = stage_history(self.engine, name, version.version)
        if version.stage != stage or not any(
            event.to_stage == stage and event.action == "promoted" for event in events
        ):
            raise VerdictError(
                f"{name} version {version.version} was never in {stage} (it is in stage {version.stage}).",
                field="to",
                value=version.version,
                remedy="Name a version that was (`e2i history`), or promote this one.",
            )

    def _release(self, version: RegisteredVersion, slot: Slot) -> tuple[Release, list[ModelToServe]]:
        """The release of ``slot`` with ``version`` in it, beside the other models of the service there."""
        (serve,) = models_at_stage([version.name], version.version, tracking_uri=self.tracking_uri)
        service = self.serving.service_of(serve.problem_type)
        if service is None:
            raise InputError(
                f"No service takes {serve.problem_type} models.",
                file="config/serving.yaml",
                field="services",
                value=serve.problem_type,
                remedy="Add the problem type to a service.",
            )
        others = [name for name in models_with(slot, tracking_uri=self.tracking_uri) if name != version.name]
        beside = [
            name
            for name in models_at_stage(others, slot, tracking_uri=self.tracking_uri)
            if self.serving.service_of(name.problem_type) == service
        ]
        models = [serve, *beside]
        return build_release(models, service=service, state=self.state, policy=self.serving), models

    def _into_slot(self, version: RegisteredVersion, slot: Slot) -> Deployment:
        release, models = self._release(version, slot)
        deployed = deploy(
            release,
            stages={model.model_name: slot for model in models},
            parity=parity_samples(models, self.frames, self.serving),
            slot=slot,
            state=self.state,
            policy=self.serving,
            host=self.host,
            deployed_by=self.actor.name,
            progress=self.progress,
        )
        write_deployment(self.engine, deployed)
        return deployed

    def _back_in_slot(self, version: RegisteredVersion, slot: Slot) -> tuple[Deployment, bool]:
        release, _ = self._release(version, slot)
        deployed = switch_back(
            release,
            slot=slot,
            state=self.state,
            policy=self.serving,
            deployed_by=self.actor.name,
            progress=self.progress,
        )
        if deployed is None:
            return self._into_slot(version, slot), False
        write_deployment(self.engine, deployed)
        return deployed, True

    def _event(
        self,
        action: Literal["proposed", "approved", "promoted"],
        version: RegisteredVersion,
        to_stage: str,
        reason: str,
        evidence: Evidence,
        verdict: Transition,
        deployment_id: str | None = None,
    ) -> StageEvent:
        return StageEvent.of(
            action,
            version.name,
            version.version,
            by=self.actor,
            from_stage=version.stage,
            to_stage=to_stage,
            reason=reason,
            evidence=evidence,
            verdict=verdict,
            deployment_id=deployment_id,
            run_id=self.run_id,
        )

    def _outcome(
        self, state: Any, version: RegisteredVersion, to_stage: str, from_stage: str, **more: Any
    ) -> Outcome:
        return Outcome(
            model=version.name,
            version=version.version,
            state=state,
            from_stage=from_stage,
            to_stage=to_stage,
            by=self.actor.name,
            authentication=self.actor.authentication,
            **more,
        )

    @contextmanager
    def _alone(self, model: str) -> Iterator[None]:
        """One promotion of a model at a time; the lock ends with its connection, also when the process is killed."""
        server = sa.create_engine(self.engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            if not connection.execute(_TRY_LOCK, {"name": f"e2i promotion {model}"}).scalar_one():
                raise UnavailableError(
                    f"Another promotion, approval or rollback of {model} is under way.",
                    field="model",
                    value=model,
                    remedy="Wait until it has ended, look at `e2i history`, and try again.",
                )
            yield


def archive_superseded(
    model: str, engine: sa.Engine, *, registry: RegistryPolicy, tracking_uri: str
) -> tuple[str, ...]:
    """Archive the versions of ``model`` that were superseded long enough by the rule and have no stage any more."""
    versions = versions_of(model, tracking_uri=tracking_uri)
    in_use = {
        found.version
        for stage in WAY_UP
        if (found := version_at(model, stage, tracking_uri=tracking_uri)) is not None
    }
    archived = []
    for version in versions:
        if version.stage == "archived" or version.superseded_since is None or version.version in in_use:
            continue
        days = (dt.datetime.now(dt.UTC) - version.superseded_since).total_seconds() / 86_400
        evidence = Evidence(
            model_digest=version.model_digest,
            problem_type="",
            auc={},
            criteria_met=False,
            days_superseded=days,
            proposed_by=RULE.name,
        )
        verdict = check_transition(version.stage, "archived", evidence, policy=registry)
        if not verdict.allowed:
            continue
        set_stage(version, "archived", evidence, tracking_uri=tracking_uri)
        write_stage(engine, model, version.version, "archived")
        reason = " ".join(result.reason for result in verdict.results if result.rule == "days_superseded")
        event = StageEvent.of(
            "archived",
            model,
            version.version,
            by=RULE,
            from_stage=version.stage,
            to_stage="archived",
            reason=reason,
            verdict=verdict,
        )
        record_events(engine, [event])
        archived.append(version.version)
    return tuple(archived)


def require_simulation_allowed(days: float) -> None:
    """Refuse simulated days where ``E2I_ENVIRONMENT`` is not ``development``.

    Raises:
        ConfigError: this is production. InputError: the days are negative.
    """
    if days < 0:
        raise InputError(
            f"{days:g} simulated days.", field="simulated_days", value=days, remedy="Give 0 or more."
        )
    if days and production():
        raise ConfigError(
            f"{days:g} simulated days: in production a version spends its days in the stage before.",
            file="E2I_ENVIRONMENT",
            field="simulated_days",
            value=days,
            remedy="Wait for the days to pass, or try it where E2I_ENVIRONMENT is development.",
        )


def require_whole(version: RegisteredVersion) -> None:
    """Refuse a version whose stored model is gone or is not what was logged.

    Raises:
        DamagedError: names the file.
    """
    if found := version.damage():
        raise DamagedError(
            f"The model of {version.name} version {version.version} cannot be served: {found}.",
            file=version.uri,
            field="version",
            value=version.version,
            remedy="Restore the file in the lake, or name another version (`e2i history`).",
        )
