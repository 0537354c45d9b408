"""Splits: train, validation, test, holdout by patient, stable, shared by all scopes of a cohort."""

import dagster as dg

from assets.execution import Produced
from assets.partitions import SCOPES
from assets.stage import stage_asset
from assets.values import DataFrame
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.policy_files.environment import actor
from resources.warehouse import Warehouse

GROUP = "splits"


@stage_asset(
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=SCOPES,
    description="60/20/15/5 by patient: what the registry holds never moves, new patients fill the largest gap.",
)
def splits(scope_spec: ScopeSpec, training_frame: DataFrame, warehouse: Warehouse) -> Produced:
    from e2i_dagster.splits import split_scope

    with warehouse.engine().begin() as connection:
        made = split_scope(connection, scope_spec, training_frame, created_by=actor()[0])
    return Produced(made.assignments, made.report)


def split_check(name: str, description: str) -> dg.AssetChecksDefinition:
    """One rule of :func:`e2i_dagster.splits.validate_splits` as a check."""

    @dg.asset_check(
        asset=splits,
        name=name,
        blocking=True,
        description=description,
        additional_ins={"training_frame": dg.AssetIn("training_frame")},
    )
    def check(
        context: dg.AssetCheckExecutionContext, splits: DataFrame, training_frame: DataFrame
    ) -> dg.AssetCheckResult:
        from e2i_dagster.splits.leakage_check import check_rule

        scope = current_policy().scope(context.op_execution_context.partition_key)
        found = check_rule(name, scope, splits, training_frame)
        return dg.AssetCheckResult(
            passed=found.status != "failed", description=f"{found.status}: {found.detail}"
        )

    return check


split_checks = [
    split_check("ratios", "Shares are within 2 points of 60/20/15/5 from 500 patients on."),
    split_check("patient_isolation", "Every patient is in exactly one split."),
    split_check("temporal_order", "Splits in time do not overlap; skipped with its reason in hash mode."),
]
