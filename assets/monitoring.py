"""Monitoring: what the endpoint was asked on a day, and whether that still looks like the training data."""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

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
from e2i_dagster.errors import E2IError, InputError
from e2i_dagster.policy_files.environment import config_folder
from resources.lake import LakeIOManager
from resources.warehouse import Warehouse

GROUP = "monitoring"


def of_scope(asset: str) -> dg.AssetIn:
    """The partition of the scope that the day belongs to."""
    return dg.AssetIn(asset, partition_mapping=SCOPE_OF_DAY)


def days_of_scope(context: dg.AssetExecutionContext) -> tuple[dict[str | None, dt.date], str]:
    """The day of each partition of the run, oldest first, and their scope.

    Raises:
        InputError: the partitions are of several scopes.
    """
    keys = {
        key: key.keys_by_dimension for key in context.partition_keys if isinstance(key, dg.MultiPartitionKey)
    }
    scopes = sorted({dimensions["scope"] for dimensions in keys.values()})
    if len(scopes) != 1:
        raise InputError(
            f"a run watches days of one scope, this one has {len(scopes)}: {', '.join(scopes)}.",
            field="scope",
            value=scopes,
            remedy="Start a run for each scope (`e2i monitor --scope SCOPE --from DAY --to DAY`).",
        )
    days = {key: dt.date.fromisoformat(dimensions["day"]) for key, dimensions in keys.items()}
    return dict(sorted(days.items(), key=lambda item: item[1])), scopes[0]


def made_by_day(
    days: Mapping[str | None, dt.date], make: Callable[[dt.date], Any]
) -> tuple[dict[str | None, Any], dict[str, str]]:
    """What ``make`` gives for each day, and why not for those on which it failed.

    Of a run over several days a day that fails is withheld, and the others go on; a run of one day fails.
    """
    made: dict[str | None, Any] = {}
    withheld: dict[str, str] = {}
    for key, day in days.items():
        try:
            made[key] = make(day)
        except Exception as error:
            if len(days) == 1:
                raise
            # What no error of the product says may hold values of patients.
            withheld[str(key)] = str(error) if isinstance(error, E2IError) else type(error).__name__
    if not made:
        raise InputError(
            f"every one of the {len(days)} days failed: {'; '.join(dict.fromkeys(withheld.values()))}",
            field="day",
            value=len(days),
            remedy="Run one of them alone to see its whole error (`e2i monitor --scope SCOPE --from DAY`).",
        )
    return made, withheld


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
    from e2i_dagster.monitoring.prediction_log import read_prediction_log

    days, scope = days_of_scope(context)
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
    from e2i_dagster.monitoring.history import record_performance
    from e2i_dagster.monitoring.labels import update_ledger
    from e2i_dagster.monitoring.performance import PerformanceHistory

    days, scope = days_of_scope(context)
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

    def report_of(day: dt.date) -> Any:
        report = history.report(day)
        with warehouse.engine().begin() as connection:
            record_performance(connection, report, run_id)
        return report

    reports, withheld = made_by_day(days, report_of)
    (only,) = reports.values() if len(days) == 1 else (None,)
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
    from e2i_dagster.monitoring.compare import compare_with_profile
    from e2i_dagster.monitoring.history import record_drift
    from e2i_dagster.monitoring.page import severities_by_day, write_page
    from e2i_dagster.monitoring.performance import PerformanceReport

    days, scope = days_of_scope(context)
    keys = {day: key for key, day in days.items()}
    profile = reference_profile.require_model(registered_model.model_digest, scope)
    policy, kinds = DriftPolicy.load(config_folder()), trained_model.model().kinds
    pages: dict[dt.date, dict[str, Any]] = {}

    def report_of(day: dt.date) -> Any:
        performance = lake.load("performance_report", [keys[day]], PerformanceReport)
        report = compare_with_profile(
            profile,
            lake.load("prediction_log", [keys[day]]),
            kinds=kinds,
            policy=policy,
            scope=scope,
            day=day,
            model_id=f"{registered_model.name}/{registered_model.version}",
            label=performance.label,
        )
        with warehouse.engine().begin() as connection:
            record_drift(connection, report, performance, context.run.run_id)
            history = severities_by_day(connection, scope, until=day)
        pages[day] = write_page(report, performance, history)
        return report

    reports, withheld = made_by_day(days, report_of)
    (only,) = reports.values() if len(days) == 1 else (None,)
    return Produced(
        by_partition=reports, withheld=withheld, report=only, metadata=pages[only.day] if only else {}
    )
