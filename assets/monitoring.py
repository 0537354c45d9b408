"""Monitoring: what the endpoint was asked on a day, and whether that still looks like the training data."""

import datetime as dt

import dagster as dg

from assets.execution import Produced
from assets.partitions import DAYS_BY_SCOPE, SCOPE_OF_DAY, SCOPES
from assets.stage import stage_asset
from assets.values import (
    DataFrame,
    Evaluation,
    Explanation,
    ReferenceProfile,
    RegisteredVersion,
    StoredModel,
)
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import config_folder
from resources.lake import LakeIOManager
from resources.warehouse import Warehouse

GROUP = "monitoring"


def of_scope(asset: str) -> dg.AssetIn:
    """The partition of the scope that the day belongs to."""
    return dg.AssetIn(asset, partition_mapping=SCOPE_OF_DAY)


@stage_asset(
    always=True,
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=DAYS_BY_SCOPE,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={"trained_model": of_scope("trained_model")},
    deps=[dg.AssetDep("live_scores", partition_mapping=SCOPE_OF_DAY)],
    description="Live answers of the scope's model on a day, with the features as the endpoint received them.",
)
def prediction_log(
    context: dg.AssetExecutionContext, trained_model: StoredModel, warehouse: Warehouse
) -> Produced:
    from e2i_dagster.monitoring.day_partitions import days_of_scope
    from e2i_dagster.monitoring.prediction_log import read_prediction_log

    days, scope = days_of_scope(context.partition_keys)
    about = {"model_name": current_policy().scope(scope).model_name, "features": list(trained_model.kinds)}
    with warehouse.engine().connect() as connection:
        logs = {key: read_prediction_log(connection, day=day, **about) for key, day in days.items()}
    return Produced(by_partition=logs)


@stage_asset(
    produces="e2i_dagster.monitoring.profile:ReferenceProfile",
    group_name="models",
    kinds={"numpy"},
    partitions_def=SCOPES,
    description="What later days are compared with: training rows, scores and performance of the model, read once.",
)
def reference_profile(
    training_frame: DataFrame,
    splits: DataFrame,
    trained_model: StoredModel,
    evaluation: Evaluation,
    explanations: Explanation,
) -> Produced:
    from e2i_dagster.monitoring.compare import profile_model
    from e2i_dagster.splits.rows import visible_rows

    model = trained_model.model()
    profile = profile_model(
        model,
        visible_rows(training_frame, splits, model.features, problem_type=model.problem_type),
        policy=DriftPolicy.load(config_folder()),
        evaluation=evaluation,
        importance=explanations.shares,
    )
    return Produced(profile, profile)


@stage_asset(
    always=True,
    produces="e2i_dagster.monitoring.performance:PerformanceReport",
    group_name=GROUP,
    kinds={"numpy", "postgres"},
    partitions_def=DAYS_BY_SCOPE,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={name: of_scope(name) for name in ("reference_profile", "outcome_labels", "registered_model")},
    deps=["prediction_log"],
    description="Performance by window: measured with closed labels, estimated before, and whether both agree.",
)
def performance_report(
    context: dg.AssetExecutionContext,
    reference_profile: ReferenceProfile,
    outcome_labels: DataFrame,
    registered_model: RegisteredVersion,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.monitoring.day_partitions import days_of_scope
    from e2i_dagster.monitoring.days import only_one, performance_by_day
    from e2i_dagster.monitoring.labels import update_ledger
    from e2i_dagster.monitoring.performance import PerformanceHistory

    days, scope = days_of_scope(context.partition_keys)
    run_id = context.run.run_id
    about = {"day": max(days.values()), "run_id": run_id, "now": dt.datetime.now(dt.UTC)}
    with warehouse.engine().begin() as connection:
        ledger = update_ledger(connection, current_policy().scope(scope), outcome_labels, **about)
    profile = reference_profile.require_model(registered_model.model_digest, scope)
    history = PerformanceHistory(
        profile.model,
        ledger,
        unavailable=profile.unavailable,
        policy=DriftPolicy.load(config_folder()),
        scope=scope,
        model_id=f"{registered_model.name}/{registered_model.version}",
    )

    reports, withheld = performance_by_day(warehouse.engine(), history, days, run_id=run_id)
    only = only_one(reports)
    return Produced(by_partition=reports, withheld=withheld, report=only, note=only.note if only else "")


@stage_asset(
    produces="e2i_dagster.monitoring.drift_report:DriftReport",
    group_name=GROUP,
    kinds={"scipy"},
    partitions_def=DAYS_BY_SCOPE,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={name: of_scope(name) for name in ("reference_profile", "trained_model", "registered_model")},
    # Read day by day: what is wrong with the log of one does not reach the others.
    deps=["prediction_log", "performance_report"],
    description="Drift of features, predictions and all together against training, by what it does to the model.",
)
def drift_report(
    context: dg.AssetExecutionContext,
    reference_profile: ReferenceProfile,
    trained_model: StoredModel,
    registered_model: RegisteredVersion,
    warehouse: Warehouse,
    lake: dg.ResourceParam[LakeIOManager],
) -> Produced:
    from e2i_dagster.monitoring.day_partitions import days_of_scope
    from e2i_dagster.monitoring.days import drift_by_day, only_one
    from e2i_dagster.monitoring.performance import PerformanceReport

    days, scope = days_of_scope(context.partition_keys)
    reports, withheld, page = drift_by_day(
        warehouse.engine(),
        reference_profile.require_model(registered_model.model_digest, scope),
        days,
        read=lambda key: (
            lake.load("prediction_log", [key]),
            lake.load("performance_report", [key], PerformanceReport),
        ),
        kinds=trained_model.model().kinds,
        policy=DriftPolicy.load(config_folder()),
        scope=scope,
        model_id=f"{registered_model.name}/{registered_model.version}",
        run_id=context.run.run_id,
    )
    only = only_one(reports)
    return Produced(by_partition=reports, withheld=withheld, report=only, metadata=page if only else {})
