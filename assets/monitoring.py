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
    PerformanceReport,
    ReferenceProfile,
    RegisteredVersion,
    StoredModel,
)
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import config_folder
from resources.warehouse import Warehouse

GROUP = "monitoring"


def of_scope(asset: str) -> dg.AssetIn:
    """The partition of the scope that the day belongs to."""
    return dg.AssetIn(asset, partition_mapping=SCOPE_OF_DAY)


def day_and_scope(context: dg.AssetExecutionContext) -> tuple[dt.date, str]:
    """The two dimensions of the partition."""
    keys = context.multi_partition_key.keys_by_dimension
    return dt.date.fromisoformat(keys["day"]), keys["scope"]


@stage_asset(
    always=True,
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=DAYS_BY_SCOPE,
    ins={"trained_model": of_scope("trained_model")},
    deps=[dg.AssetDep("live_scores", partition_mapping=SCOPE_OF_DAY)],
    description="Live answers of the scope's model on a day, with the features as the endpoint received them.",
)
def prediction_log(
    context: dg.AssetExecutionContext, trained_model: StoredModel, warehouse: Warehouse
) -> Produced:
    from e2i_dagster.monitoring.prediction_log import read_prediction_log

    day, scope = day_and_scope(context)
    with warehouse.engine().connect() as connection:
        log = read_prediction_log(
            connection,
            day=day,
            model_name=current_policy().scope(scope).model_name,
            features=list(trained_model.kinds),
        )
    return Produced(log)


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
    from e2i_dagster.monitoring.history import record_performance
    from e2i_dagster.monitoring.labels import update_ledger
    from e2i_dagster.monitoring.performance import performance_report

    day, scope = day_and_scope(context)
    about = {"day": day, "run_id": context.run.run_id, "now": dt.datetime.now(dt.UTC)}
    with warehouse.engine().begin() as connection:
        ledger = update_ledger(connection, current_policy().scope(scope), outcome_labels, **about)
        profile = reference_profile.require_model(registered_model.model_digest, scope)
        report = performance_report(
            profile.model,
            ledger,
            unavailable=profile.unavailable,
            policy=DriftPolicy.load(config_folder()),
            scope=scope,
            day=day,
            model_id=f"{registered_model.name}/{registered_model.version}",
        )
        record_performance(connection, report, context.run.run_id)
    return Produced(report, report, note=report.note)


@stage_asset(
    produces="e2i_dagster.monitoring.drift_report:DriftReport",
    group_name=GROUP,
    kinds={"scipy"},
    partitions_def=DAYS_BY_SCOPE,
    ins={name: of_scope(name) for name in ("reference_profile", "trained_model", "registered_model")},
    description="Drift of features, predictions and all together against training, by what it does to the model.",
)
def drift_report(
    context: dg.AssetExecutionContext,
    prediction_log: DataFrame,
    reference_profile: ReferenceProfile,
    performance_report: PerformanceReport,
    trained_model: StoredModel,
    registered_model: RegisteredVersion,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.monitoring.compare import compare_with_profile
    from e2i_dagster.monitoring.history import record_drift
    from e2i_dagster.monitoring.page import severities_by_day, write_page

    day, scope = day_and_scope(context)
    report = compare_with_profile(
        reference_profile.require_model(registered_model.model_digest, scope),
        prediction_log,
        kinds=trained_model.model().kinds,
        policy=DriftPolicy.load(config_folder()),
        scope=scope,
        day=day,
        model_id=f"{registered_model.name}/{registered_model.version}",
        label=performance_report.label,
    )
    with warehouse.engine().begin() as connection:
        record_drift(connection, report, performance_report, context.run.run_id)
        history = severities_by_day(connection, scope, until=day)
    return Produced(report, report, metadata=write_page(report, performance_report, history))
