"""Serving: a release as a bento, a live endpoint, and the patients who are to be scored through it."""

from functools import partial

import dagster as dg

from assets.execution import Produced
from assets.metadata import dagster_metadata
from assets.partitions import SCOPES
from assets.stage import stage_asset
from assets.values import DataFrame, Deployment, RegisteredVersion, Release
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.policy_files.environment import config_folder
from resources.bentoml import Serving
from resources.lake import LakeIOManager
from resources.mlflow import MlflowResource
from resources.warehouse import Warehouse

scope_asset = partial(stage_asset, group_name="serving", partitions_def=SCOPES)
STAGE = "staging"


def not_live(deployment: Deployment) -> str:
    """What is wrong when the release of ``deployment`` does not answer now; empty when it does."""
    from e2i_dagster.serving.endpoints import endpoints

    live = any(
        endpoint.bento_tag == deployment.bento_tag and endpoint.health == "healthy"
        for endpoint in endpoints()
    )
    return "" if live else "no longer there"


def go_live(
    context: dg.AssetExecutionContext,
    release: Release,
    serving: Serving,
    mlflow: MlflowResource,
    lake: LakeIOManager,
) -> Deployment:
    """``release`` in slot staging, proven by rows of the training frames of its models' scopes."""
    from e2i_dagster.serving.active import models_of_release, parity_samples

    models = models_of_release(release, tracking_uri=mlflow.uri())
    return serving.deploy(
        release,
        stages={model.model_name: STAGE for model in models},
        parity=parity_samples(
            models,
            lambda scope: lake.load("training_frame", [scope]),
            ServingPolicy.load(config_folder()),
        ),
        progress=context.log.info,
    )


def parity_result(deployment: Deployment) -> dg.AssetCheckResult:
    """Passes when every compared answer was that of the offline model, and there was one."""
    return dg.AssetCheckResult(
        passed=deployment.parity_holds and bool(deployment.parity),
        metadata=dagster_metadata({"parity": deployment.parity_table}),
    )


def health_result(deployment: Deployment, serving: Serving) -> dg.AssetCheckResult:
    """Passes when the endpoint of ``deployment`` says now that it is healthy."""
    from e2i_dagster.serving.active import health_of

    found = health_of(deployment, serving.endpoints())
    return dg.AssetCheckResult(passed=found == "healthy", description=f"{deployment.url}: {found}")


@scope_asset(
    code=["e2i_dagster.serving.service"],
    produces="e2i_dagster.serving.release:Release",
    kinds={"bentoml"},
    fault=lambda release: release.damage(),
    # A release holds the models of all scopes, so a new version of any scope makes it stale.
    deps=[dg.AssetDep("registered_model", partition_mapping=dg.AllPartitionMapping())],
    description="One bento for the scope's service, with its model versions in staging and the digests of their "
    "files.",
)
def bento(scope_spec: ScopeSpec, serving: Serving, mlflow: MlflowResource) -> Produced:
    from e2i_dagster.serving.active import models_at_stage

    policy = ServingPolicy.load(config_folder())
    service = policy.require_service(scope_spec.problem_type)
    names = [
        scope.model_name
        for scope in current_policy().scopes.values()
        if policy.service_of(scope.problem_type) == service
    ]
    release = serving.build(models_at_stage(names, STAGE, tracking_uri=mlflow.uri()), service)
    return Produced(release, release)


@scope_asset(
    outside=True,
    produces="e2i_dagster.serving.deployment:Deployment",
    kinds={"bentoml"},
    fault=not_live,
    deps=["online_features"],
    description="The live endpoint in slot staging, switched to after health and parity with the offline model.",
)
def deployment(
    context: dg.AssetExecutionContext,
    bento: Release,
    serving: Serving,
    mlflow: MlflowResource,
    lake: dg.ResourceParam[LakeIOManager],
) -> Produced:
    deployed = go_live(context, bento, serving, mlflow, lake)
    return Produced(deployed, deployed)


@dg.asset_check(
    asset=deployment,
    blocking=True,
    description="Training rows sent through HTTP got the answers of the offline model.",
)
def parity(deployment: Deployment) -> dg.AssetCheckResult:
    return parity_result(deployment)


@dg.asset_check(
    asset=deployment, blocking=True, description="The endpoint answers now and says it is healthy."
)
def endpoint_health(deployment: Deployment, serving: Serving) -> dg.AssetCheckResult:
    return health_result(deployment, serving)


@scope_asset(
    outside=True,
    # Patients whom this model version has scored are not scored and logged once more because it moved.
    where=["deployment"],
    kinds={"bentoml"},
    description="The patients whose outcome is not known yet, scored through the live endpoint and logged; a row "
    "without a value that the model needs waits with its reason.",
)
def live_scores(
    scoring_frame: DataFrame,
    deployment: Deployment,
    registered_model: RegisteredVersion,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.serving.client import score_answerable, waiting_words, with_waiting
    from e2i_dagster.serving.logged import wait_until_logged

    answers, waiting = score_answerable(deployment.url, scoring_frame, model_name=registered_model.name)
    logged = wait_until_logged(warehouse.engine(), answers)
    metadata = {
        "model": registered_model.name,
        "rows_in_prediction_log": logged,
        "rows_waiting": len(waiting),
        "waiting_for": waiting["reason"].value_counts().to_dict(),
    }
    note = waiting_words(waiting)
    return Produced(with_waiting(answers, waiting), metadata=metadata, note=note)
