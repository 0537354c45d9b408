"""Monitoring: what the endpoint was asked on a day, and whether that still looks like the training data."""

import datetime as dt

import dagster as dg

from assets.execution import Produced
from assets.partitions import DAYS_BY_SCOPE, SCOPE_OF_DAY
from assets.stage import stage_asset
from assets.values import DataFrame, RegisteredVersion, StoredModel
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
    produces="e2i_dagster.monitoring.drift:DriftReport",
    group_name=GROUP,
    kinds={"scipy"},
    partitions_def=DAYS_BY_SCOPE,
    ins={
        "training_frame": of_scope("training_frame"),
        "splits": of_scope("splits"),
        "trained_model": of_scope("trained_model"),
        "registered_model": of_scope("registered_model"),
    },
    description="Drift of every feature and of the predictions against the training rows, with what follows.",
)
def drift_report(
    context: dg.AssetExecutionContext,
    prediction_log: DataFrame,
    training_frame: DataFrame,
    splits: DataFrame,
    trained_model: StoredModel,
    registered_model: RegisteredVersion,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.monitoring.compare import compare_with_training
    from e2i_dagster.monitoring.history import record_drift
    from e2i_dagster.splits.rows import visible_rows

    day, scope = day_and_scope(context)
    model = trained_model.model()
    report = compare_with_training(
        model,
        visible_rows(training_frame, splits, model.features, problem_type=model.problem_type),
        prediction_log,
        policy=DriftPolicy.load(config_folder()),
        scope=scope,
        day=day,
        model_id=f"{registered_model.name}/{registered_model.version}",
    )
    with warehouse.engine().begin() as connection:
        record_drift(connection, report, context.run.run_id)
    return Produced(report, report)
