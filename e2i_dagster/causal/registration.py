"""The model of effects on record: MLflow, warehouse and registry; promoted, or not with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.causal.model import fit_effect_model, why_not_fitted
from e2i_dagster.causal.study import CausalEstimates
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.errors import VerdictError
from e2i_dagster.registry.training_runs import TrackedRun, register_and_stage, track_training
from e2i_dagster.registry.versions import RegisteredVersion
from e2i_dagster.training import Evaluation


class EffectModel(BaseModel):
    """What became of the model of individual effects of a scope.

    Attributes:
        state: ``promoted`` to staging, or ``not_promoted`` for ``reasons``.
        tracked: its run; None when nothing could be fitted. version: in the registry, when it is there.
    """

    model_config = ConfigDict(frozen=True)
    #: Pictures and durations are no result.
    volatile_fields: ClassVar[dict[str, Any]] = {"evaluation": Evaluation.volatile_fields}

    scope: str
    state: Literal["promoted", "not_promoted"]
    reasons: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    tracked: TrackedRun | None = None
    version: RegisteredVersion | None = None

    def damage(self) -> str:
        """What is wrong with the stored model in words; empty when it is what was logged."""
        stored = self.version or self.tracked
        return stored.damage() if stored else ""

    def to_metadata(self) -> dict[str, Any]:
        """State, judgement and version for the UI."""
        return {
            **(self.evaluation.to_metadata() if self.evaluation else {}),
            **(self.version.to_metadata() if self.version else {}),
            "state": self.state,
            **({"reason": " ".join(self.reasons)} if self.reasons else {}),
        }

    def to_record(self) -> dict[str, Any]:
        """All fields but the figure as plain values."""
        return self.model_dump(mode="json", exclude=self.volatile_fields)

    def sentence(self) -> str:
        """State with version or reasons, for people."""
        if self.version is None:
            return f"not promoted: {' '.join(self.reasons)}"
        return (
            f"{self.version.name} version {self.version.version} in {self.version.stage}; `e2i causal deploy`"
        )

    def require_promoted(self) -> None:
        """Refuses to go on with a model that is not in staging.

        Raises:
            VerdictError: with the reasons.
        """
        if self.state != "promoted":
            raise VerdictError(
                f"The model of effects of scope {self.scope} is not deployed, since it is not promoted: "
                f"{' '.join(self.reasons)} The limits are in config/causal.yaml."
            )


def make_effect_model(
    frame: pd.DataFrame,
    study: CausalEstimates,
    *,
    engine: sa.Engine,
    scope: ScopeSpec,
    cohort_approved: bool,
    digests: Mapping[str, str],
    actor: str,
    tracking_uri: str,
    policy: CausalPolicy,
) -> EffectModel:
    """Fit, judge, log to the active MLflow run, register when every criterion is met, and move to staging.

    A model that misses a criterion stays a run on record, without name or alias in the registry. One that a
    rule of ``config/registry.yaml`` holds back (such as a draft cohort) is registered in stage development.

    Raises:
        UnavailableError: no MLflow run is active, or the tracking store does not answer.
    """
    reason = why_not_fitted(frame, study, policy)
    if reason:
        return EffectModel(scope=scope.key, state="not_promoted", reasons=(f"{reason}.",))
    fitted = fit_effect_model(frame, study, policy=policy)
    tracked = track_training(
        engine,
        fitted.model,
        fitted.evaluation,
        scope=scope,
        digests=digests,
        created_by=actor,
        more={**fitted.served, "model_name": scope.effect_model_name},
    )
    version, reasons = None, tracked.reasons
    if tracked.accepted:
        try:
            version = register_and_stage(
                engine,
                fitted.model,
                fitted.evaluation,
                scope=scope,
                cohort_approved=cohort_approved,
                tracked=tracked,
                proposed_by=actor,
                tracking_uri=tracking_uri,
                name=scope.effect_model_name,
            )
        except VerdictError as error:
            reasons = (str(error),)
    return EffectModel(
        scope=scope.key,
        state="not_promoted" if version is None else "promoted",
        reasons=reasons,
        evaluation=fitted.evaluation,
        tracked=tracked,
        version=version,
    )
