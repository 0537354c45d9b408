"""Causal effects: what a treatment does to a scope's outcome, what speaks against it, and for whom."""

from functools import partial

import dagster as dg

from assets.execution import Produced, input_versions
from assets.metadata import dagster_metadata
from assets.models import cohort_approved
from assets.partitions import ALL_MONTHS, SCOPES
from assets.serving import STAGE, go_live, health_result, not_live, parity_result
from assets.stage import stage_asset
from assets.values import CausalEstimates, DataFrame, Deployment, EffectHeterogeneity, EffectModel, Release
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.policy_files.environment import actor, config_folder
from resources.bentoml import Serving
from resources.lake import LakeIOManager
from resources.mlflow import MlflowResource
from resources.warehouse import Warehouse

scope_asset = partial(
    stage_asset,
    group_name="causal",
    partitions_def=SCOPES,
)


def policy() -> CausalPolicy:
    """``config/causal.yaml``."""
    return CausalPolicy.load(config_folder())


@scope_asset(
    pure=True,
    kinds={"pandas"},
    ins={"engagement_events": dg.AssetIn("engagement_events", partition_mapping=ALL_MONTHS)},
    description="Train and validation patients with treatment, outcome and what was fixed before the treatment.",
)
def treated_patients(
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    engagement_events: DataFrame,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.causal.question import causal_frame, visible_frame

    covered = warehouse.coverage("engagement_events")
    frame = causal_frame(scope_spec, training_frame, splits, engagement_events, policy(), covered=covered)
    unknown = len(visible_frame(scope_spec, training_frame, splits)) - len(frame)
    return Produced(frame, metadata={"treatment_unknown": unknown})


@scope_asset(
    produces="e2i_dagster.causal.study:CausalEstimates",
    kinds={"scikitlearn"},
    description="The average effect by EconML, DoWhy and CausalML, their agreement, refuters, negative controls.",
)
def causal_estimates(
    context: dg.AssetExecutionContext,
    scope_spec: ScopeSpec,
    treated_patients: DataFrame,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.causal.question import OUTCOME, question_words
    from e2i_dagster.causal.records import record_effects
    from e2i_dagster.causal.study import study_effect

    question = policy().question
    study = study_effect(
        treated_patients,
        question=question_words(scope_spec, question),
        treatment=question.treatment,
        outcome=OUTCOME,
        confounders=question.confounders,
        controls=question.negative_controls,
        policy=policy(),
    )
    with warehouse.engine().begin() as connection:
        record_effects(connection, study, scope=scope_spec.key, run_id=context.run.run_id)
    return Produced(study, study)


@dg.asset_check(
    asset=causal_estimates, description="Treated and control patients are comparable: no refusal for overlap."
)
def overlap(causal_estimates: CausalEstimates) -> dg.AssetCheckResult:
    found = causal_estimates.found.effects.overlap
    return dg.AssetCheckResult(
        passed=found is not None and not found.refusal,
        severity=dg.AssetCheckSeverity.WARN,
        description=(found.refusal or f"cross-fitted ROC-AUC of the propensity {found.auc:.3f}")
        if found
        else causal_estimates.found.reason,
    )


@dg.asset_check(
    asset=causal_estimates, description="Every confounder is balanced after weighting (config/causal.yaml)."
)
def balance(causal_estimates: CausalEstimates) -> dg.AssetCheckResult:
    judged = causal_estimates.found.effects.overlap is not None
    unbalanced = ", ".join(causal_estimates.unbalanced)
    return dg.AssetCheckResult(
        passed=judged and not unbalanced,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"not balanced: {unbalanced}"
        if unbalanced
        else causal_estimates.found.reason or "balanced",
    )


@dg.asset_check(asset=causal_estimates, description="No refuter speaks against the estimate.")
def refutation(causal_estimates: CausalEstimates) -> dg.AssetCheckResult:
    from e2i_dagster.causal.pages import refuters_table

    refuted = ", ".join(causal_estimates.refuted_by)
    return dg.AssetCheckResult(
        passed=bool(causal_estimates.refutations) and not refuted,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"refuted by {refuted}"
        if refuted
        else causal_estimates.found.reason or "every refuter passed",
        metadata=dagster_metadata({"refuters": refuters_table(causal_estimates)}),
    )


@scope_asset(
    pure=True,
    produces="e2i_dagster.causal.heterogeneity:EffectHeterogeneity",
    kinds={"scikitlearn"},
    description="For whom the effect is larger, whether that is more than noise, and what treating them is worth.",
)
def effect_heterogeneity(treated_patients: DataFrame, causal_estimates: CausalEstimates) -> Produced:
    from e2i_dagster.causal.question import OUTCOME
    from e2i_dagster.causal.study import study_heterogeneity

    question = policy().question
    found: EffectHeterogeneity = study_heterogeneity(
        treated_patients,
        treatment=question.treatment,
        outcome=OUTCOME,
        confounders=question.confounders,
        policy=policy(),
        estimable=causal_estimates.found.state == "estimated",
        reason=causal_estimates.found.reason,
    )
    return Produced(found, found)


@scope_asset(
    produces="e2i_dagster.causal.registration:EffectModel",
    fault=lambda made: made.damage(),
    kinds={"scikitlearn", "mlflow"},
    description="The model of individual effects: registered and staged only when its criteria are met.",
)
def effect_model(
    context: dg.AssetExecutionContext,
    scope_spec: ScopeSpec,
    treated_patients: DataFrame,
    causal_estimates: CausalEstimates,
    effect_heterogeneity: EffectHeterogeneity,
    mlflow: MlflowResource,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.causal.pages import study_page
    from e2i_dagster.causal.registration import make_effect_model

    with mlflow.run(context, scope_spec) as client:
        made = make_effect_model(
            treated_patients,
            causal_estimates,
            engine=warehouse.engine(),
            scope=scope_spec,
            cohort_approved=cohort_approved(scope_spec.key),
            digests={asset: digest for asset, _, digest in input_versions(context, warehouse)},
            actor=actor()[0],
            tracking_uri=mlflow.uri(),
            policy=policy(),
        )
        client.log_text(study_page(causal_estimates, effect_heterogeneity, made), "causal/effect.html")
    return Produced(made, made)


@dg.asset_check(
    asset=effect_model, description="The model of effects is in staging; without heterogeneity it is not."
)
def effect_promoted(effect_model: EffectModel) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=effect_model.state == "promoted",
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(effect_model.reasons) or "every criterion is met",
    )


@scope_asset(
    produces="e2i_dagster.serving.release:Release",
    kinds={"bentoml"},
    # A release holds the models of effects of all scopes, of which only one is an input.
    always=True,
    description="One bento for the causal service, with the models of effects that are in staging.",
)
def effect_bento(effect_model: EffectModel, serving: Serving, mlflow: MlflowResource) -> Produced:
    from e2i_dagster.serving.active import models_at_stage

    effect_model.require_promoted()
    names = [scope.effect_model_name for scope in current_policy().scopes.values()]
    release = serving.build(models_at_stage(names, STAGE, tracking_uri=mlflow.uri()), service="causal")
    return Produced(release, release)


@scope_asset(
    outside=True,
    produces="e2i_dagster.serving.deployment:Deployment",
    kinds={"bentoml"},
    fault=not_live,
    deps=["online_features"],
    description="The causal service in slot staging, switched to after health and parity with the offline model.",
)
def effect_deployment(
    context: dg.AssetExecutionContext,
    effect_bento: Release,
    serving: Serving,
    mlflow: MlflowResource,
    lake: dg.ResourceParam[LakeIOManager],
) -> Produced:
    deployed = go_live(context, effect_bento, serving, mlflow, lake)
    return Produced(deployed, deployed)


@dg.asset_check(
    asset=effect_deployment,
    blocking=True,
    description="Patients sent through HTTP got the effects of the offline model.",
)
def effect_parity(effect_deployment: Deployment) -> dg.AssetCheckResult:
    return parity_result(effect_deployment)


@dg.asset_check(
    asset=effect_deployment, blocking=True, description="The causal service answers now and is healthy."
)
def effect_endpoint_health(effect_deployment: Deployment, serving: Serving) -> dg.AssetCheckResult:
    return health_result(effect_deployment, serving)
