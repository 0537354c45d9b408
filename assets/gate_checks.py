"""The gate as checks that block: raw tables by quality, training frame and splits by leakage."""

from typing import TYPE_CHECKING

import dagster as dg

from assets.features import training_frame as training_frame_asset
from assets.metadata import dagster_metadata
from assets.quality import quality_key
from assets.splits import splits as splits_asset
from assets.values import DataFrame
from e2i_dagster.config.policy import current_policy
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, date_column
from resources.alerts import Alerts
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from e2i_dagster.quality.table_check import GateResult


def gate_check(table: str) -> dg.AssetChecksDefinition:
    """The gate over the partitions of a run."""

    @dg.asset_check(
        asset=quality_key(table),
        name="qc_gate",
        blocking=True,
        description=f"Blocks unless every checked version of {table} passed under the current rules.",
    )
    def qc_gate(
        context: dg.AssetCheckExecutionContext, warehouse: Warehouse, alerts: Alerts
    ) -> dg.AssetCheckResult:
        from e2i_dagster.monitoring.alerts import gate_alerts
        from e2i_dagster.quality.table_check import gate_result

        months = context.op_execution_context.partition_keys if date_column(table) else None
        result = gate_result(warehouse.engine(), table, months)
        alerts.send_all(gate_alerts(table, result, run_id=context.run.run_id))
        return check_result(result)

    return qc_gate


def every_partition_check(table: str) -> dg.AssetChecksDefinition:
    """The gate over all partitions that the ledger has, whatever ran last and whoever waived it."""

    @dg.asset_check(
        asset=quality_key(table),
        name="every_partition_ok",
        description=f"Names each partition of {table} whose newest verdict fails, whatever ran last.",
    )
    def every_partition_ok(warehouse: Warehouse) -> dg.AssetCheckResult:
        from e2i_dagster.quality.table_check import gate_result

        result = gate_result(warehouse.engine(), table, None, waivers=False)
        return dg.AssetCheckResult(
            passed=result.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=result.text,
            metadata={"versions": result.versions},
        )

    return every_partition_ok


@dg.asset_check(
    asset=training_frame_asset,
    name="leakage_gate",
    blocking=True,
    description="No feature of the training frame knows the future, the label or the extract.",
)
def training_frame_leakage_gate(
    context: dg.AssetCheckExecutionContext,
    training_frame: DataFrame,
    warehouse: Warehouse,
    alerts: Alerts,
) -> dg.AssetCheckResult:
    from e2i_dagster.monitoring.alerts import gate_alerts
    from e2i_dagster.splits.leakage_check import audit_frame

    scope = current_policy().scope(context.op_execution_context.partition_key)
    result = audit_frame(warehouse.engine(), scope, training_frame, run_id=context.run.run_id)
    alerts.send_all(gate_alerts("training_frame", result, run_id=context.run.run_id, partition=scope.key))
    return check_result(result)


@dg.asset_check(
    asset=splits_asset,
    name="leakage_gate",
    blocking=True,
    description="No patient and no row, or nearly the same row, is in two splits; no feature knows the label.",
    additional_ins={"training_frame": dg.AssetIn("training_frame")},
)
def splits_leakage_gate(
    context: dg.AssetCheckExecutionContext,
    splits: DataFrame,
    training_frame: DataFrame,
    warehouse: Warehouse,
    alerts: Alerts,
) -> dg.AssetCheckResult:
    from e2i_dagster.monitoring.alerts import gate_alerts
    from e2i_dagster.splits.leakage_check import audit_splits

    scope = current_policy().scope(context.op_execution_context.partition_key)
    result = audit_splits(warehouse.engine(), scope, training_frame, splits, run_id=context.run.run_id)
    alerts.send_all(gate_alerts("splits", result, run_id=context.run.run_id, partition=scope.key))
    return check_result(result)


def check_result(result: "GateResult") -> dg.AssetCheckResult:
    """What the gate says; under a waiver it passes as a warning."""
    return dg.AssetCheckResult(
        passed=result.passed,
        severity=dg.AssetCheckSeverity.WARN if result.waived else dg.AssetCheckSeverity.ERROR,
        description=result.text,
        metadata=dagster_metadata(result.to_metadata()),
    )


gate_checks = [
    *(gate_check(table) for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)),
    *(every_partition_check(table) for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES) if date_column(table)),
    training_frame_leakage_gate,
    splits_leakage_gate,
]
