"""Jobs of the model registry: promotion, approval, rejection, rollback; history and comparison of versions."""

from collections.abc import Callable
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from assets.metadata import dagster_metadata
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.registry import RegistryPolicy
from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import E2IError, InputError
from e2i_dagster.policy_files.actors import actor_of_run
from e2i_dagster.policy_files.environment import config_folder
from resources.bentoml import Serving
from resources.lake import LakeIOManager
from resources.mlflow import MlflowResource
from resources.stages import refusal
from resources.warehouse import Warehouse

_MODEL = "Registered model, such as e2i-remibrutinib-csu-initiation, or the name of its scope."
_REASON = "Why; recorded in the history and read by the next person."


def _act(
    context: dg.OpExecutionContext,
    serving: Serving,
    mlflow: MlflowResource,
    lake: LakeIOManager,
    reason: str,
    action: Callable[[Any], Any],
) -> None:
    """Let the person who launched the run act on the registry, and show what became of it."""
    from e2i_dagster.serving.promotion import Registrar

    try:
        if not reason.strip():
            raise InputError("No reason is given.", field="reason", remedy="Say why in one sentence.")
        registrar = Registrar(
            engine=serving.warehouse.engine(),
            tracking_uri=mlflow.uri(),
            actor=actor_of_run(context.run.run_id, context.run.tags),
            policy=current_policy(),
            frames=lambda scope: lake.load("training_frame", [scope]),
            registry=RegistryPolicy.load(config_folder()),
            serving=ServingPolicy.load(config_folder()),
            run_id=context.run.run_id,
            host=serving.host,
            progress=context.log.info,
        )
        outcome = action(registrar)
    except E2IError as error:
        # What a person can mend is said in one sentence; trying again cannot help.
        raise refusal(error) from error
    context.add_output_metadata(
        {
            **dagster_metadata(outcome.to_metadata()),
            "outcome": outcome.model_dump(mode="json"),
            **_dossier(context, registrar, outcome.model, outcome.version),
        }
    )


def _dossier(context: dg.OpExecutionContext, registrar: Any, model: str, version: str) -> dict[str, Any]:
    """The version's dossier with what has just been recorded, also linked from the page of `registered_model`."""
    from e2i_dagster.registry.dossier import write_dossier
    from e2i_dagster.registry.evidence import find_version

    try:
        found = find_version(model, version, tracking_uri=registrar.tracking_uri)
        written = write_dossier(
            registrar.engine, found, registrar.policy, tracking_uri=registrar.tracking_uri
        )
    except E2IError as error:
        # What was decided is done and recorded; the dossier can be written again.
        context.log.warning(str(error))
        return {"dossier": f"not written: {error}"}
    shown = {
        "dossier": dg.MetadataValue.path(str(written.html)),
        "stage": found.stage,
        "version": found.version,
    }
    if found.scope is not None:
        context.log_event(
            dg.AssetObservation(asset_key="registered_model", partition=found.scope, metadata=shown)
        )
    return {"dossier": shown["dossier"]}


class PromoteConfig(dg.Config):
    """Which version is promoted, and to which stage."""

    model: str = Field(description=_MODEL)
    to_stage: Literal["staging", "shadow", "production"] = Field(
        description="Next stage; none is skipped. Where it needs an approval the promotion is proposed."
    )
    version: str = Field(default="", description="Version. Empty: the one that has the stage below.")
    reason: str = Field(description=_REASON)
    simulated_days: float = Field(
        default=0.0,
        description="Days in the stage below that did not pass. Only in development; recorded as simulated.",
    )


@dg.op(
    name="promote",
    description="Judges the measured evidence by the rules, deploys to the slot of the stage, moves the version.",
)
def promote_op(
    context: dg.OpExecutionContext,
    config: PromoteConfig,
    serving: Serving,
    mlflow: MlflowResource,
    lake: dg.ResourceParam[LakeIOManager],
) -> None:
    def action(registrar: Any) -> Any:
        return registrar.promote(
            config.model,
            config.to_stage,
            version=config.version or None,
            reason=config.reason,
            simulated_days=config.simulated_days,
        )

    _act(context, serving, mlflow, lake, config.reason, action)


_PROMOTE_FORM = {"model": "", "to_stage": "shadow", "version": "", "reason": "", "simulated_days": 0.0}


@dg.job(
    name="promote_model",
    config={"ops": {"promote": {"config": _PROMOTE_FORM}}},
    description="The job of `e2i promote`: one stage up, on measured evidence, with the slot that serves it.",
)
def promote_model() -> None:
    promote_op()


class ApproveConfig(dg.Config):
    """Which proposal is approved."""

    model: str = Field(description=_MODEL)
    version: str = Field(default="", description="Version. Empty: the one that is proposed.")
    evidence: str = Field(
        default="",
        description="Digest of the evidence that you have seen (e2i history); refused when it is another one now.",
    )
    reason: str = Field(description=_REASON)


@dg.op(
    name="approve",
    description="A second person's consent to a proposed promotion, bound to its evidence; it is then carried out.",
)
def approve_op(
    context: dg.OpExecutionContext,
    config: ApproveConfig,
    serving: Serving,
    mlflow: MlflowResource,
    lake: dg.ResourceParam[LakeIOManager],
) -> None:
    def action(registrar: Any) -> Any:
        return registrar.approve(
            config.model,
            version=config.version or None,
            reason=config.reason,
            evidence=config.evidence or None,
        )

    _act(context, serving, mlflow, lake, config.reason, action)


_APPROVE_FORM = {"model": "", "version": "", "evidence": "", "reason": ""}


@dg.job(
    name="approve_model",
    config={"ops": {"approve": {"config": _APPROVE_FORM}}},
    description="The job of `e2i approve`. The person who proposed the promotion cannot approve it.",
)
def approve_model() -> None:
    approve_op()


class RejectConfig(dg.Config):
    """Which proposal is rejected."""

    model: str = Field(description=_MODEL)
    version: str = Field(default="", description="Version. Empty: the one that is proposed.")
    reason: str = Field(description=_REASON)


@dg.op(name="reject", description="Decides against a proposed promotion; the version stays where it is.")
def reject_op(
    context: dg.OpExecutionContext,
    config: RejectConfig,
    serving: Serving,
    mlflow: MlflowResource,
    lake: dg.ResourceParam[LakeIOManager],
) -> None:
    def action(registrar: Any) -> Any:
        return registrar.reject(config.model, version=config.version or None, reason=config.reason)

    _act(context, serving, mlflow, lake, config.reason, action)


@dg.job(
    name="reject_model",
    config={"ops": {"reject": {"config": {"model": "", "version": "", "reason": ""}}}},
    description="The job of `e2i reject`.",
)
def reject_model() -> None:
    reject_op()


class RollbackConfig(dg.Config):
    """To which version slot production goes back."""

    model: str = Field(description=_MODEL)
    to_version: str = Field(default="", description="Version. Empty: the one that had production before.")
    reason: str = Field(description=_REASON)


@dg.op(
    name="rollback",
    description="Gives slot production back to an earlier version: switched when it is warm, else deployed.",
)
def rollback_op(
    context: dg.OpExecutionContext,
    config: RollbackConfig,
    serving: Serving,
    mlflow: MlflowResource,
    lake: dg.ResourceParam[LakeIOManager],
) -> None:
    def action(registrar: Any) -> Any:
        return registrar.rollback(config.model, to_version=config.to_version or None, reason=config.reason)

    _act(context, serving, mlflow, lake, config.reason, action)


@dg.job(
    name="rollback_model",
    config={"ops": {"rollback": {"config": {"model": "", "to_version": "", "reason": ""}}}},
    description="The job of `e2i rollback`.",
)
def rollback_model() -> None:
    rollback_op()


class HistoryConfig(dg.Config):
    """Whose history is shown."""

    model: str = Field(description=_MODEL)
    version: str = Field(default="", description="One version. Empty: all.")


@dg.op(
    name="show_history", description="What happened to a model's versions: who, when, why, on which evidence."
)
def show_history(
    context: dg.OpExecutionContext, config: HistoryConfig, warehouse: Warehouse, mlflow: MlflowResource
) -> None:
    from e2i_dagster.registry.evidence import find_model
    from e2i_dagster.registry.history import history_table, stage_history

    try:
        name = find_model(config.model, current_policy(), tracking_uri=mlflow.uri())
    except E2IError as error:
        raise refusal(error) from error
    events = stage_history(warehouse.engine(), name, config.version or None)
    context.add_output_metadata(dagster_metadata({"model": name, "history": history_table(events)}))


@dg.job(
    name="model_history",
    config={"ops": {"show_history": {"config": {"model": "", "version": ""}}}},
    description="The job of `e2i history`; the table is in the metadata of its output. Changes nothing.",
)
def model_history() -> None:
    show_history()


class CompareConfig(dg.Config):
    """Which two versions are compared."""

    first: str = Field(description="MODEL/VERSION or MODEL@STAGE.")
    second: str = Field(description="MODEL/VERSION or MODEL@STAGE.")


@dg.op(
    name="compare",
    description="Two versions beside each other: every metric of every split with its interval.",
)
def compare_op(context: dg.OpExecutionContext, config: CompareConfig, mlflow: MlflowResource) -> None:
    from e2i_dagster.registry.evidence import compare_versions, read_reference

    try:
        found = compare_versions(
            *(
                read_reference(version, current_policy(), tracking_uri=mlflow.uri())
                for version in (config.first, config.second)
            ),
            tracking_uri=mlflow.uri(),
        )
    except E2IError as error:
        raise refusal(error) from error
    context.add_output_metadata(dagster_metadata(found))


@dg.job(
    name="compare_models",
    config={"ops": {"compare": {"config": {"first": "", "second": ""}}}},
    description="The job of `e2i compare`; the table is in the metadata of its output. Changes nothing.",
)
def compare_models() -> None:
    compare_op()


REGISTRY_JOBS = [promote_model, approve_model, reject_model, rollback_model, model_history, compare_models]
