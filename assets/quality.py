"""Quality: each raw table in three layers, a verdict for each month, and the gate that blocks."""

import dagster as dg
import pandas as pd

from assets.partitions import MONTHS
from assets.stage import Produced, input_versions, stage_asset
from e2i_dagster.config.policy import current_policy
from e2i_dagster.quality.plausibility import reference_tables
from e2i_dagster.warehouse.tables import RAW_TABLES, date_column
from resources.warehouse import Warehouse

GROUP = "quality"


def quality_key(table: str) -> dg.AssetKey:
    """The asset of a raw table's quality report."""
    return dg.AssetKey(["quality", table])


def quality_asset(table: str) -> dg.AssetsDefinition:
    """The quality report of one raw table."""
    dated_by = date_column(table)

    @stage_asset(
        key=quality_key(table),
        gated=False,
        group_name=GROUP,
        kinds={"pandera", "greatexpectations"},
        ins={"rows": dg.AssetIn(table)},
        deps=[dg.AssetKey(name) for name in reference_tables(table)],
        partitions_def=MONTHS if dated_by else None,
        backfill_policy=dg.BackfillPolicy.single_run() if dated_by else None,
        definition=lambda partition: _rules(table),
        description=f"Schema, five dimensions and expectations of {table}, judged "
        + ("month by month." if dated_by else "as a whole."),
    )
    def report(context: dg.AssetExecutionContext, rows: pd.DataFrame, warehouse: Warehouse) -> Produced:
        from e2i_dagster.quality.judge import judge_table

        judged = judge_table(
            table,
            rows,
            months=list(context.partition_keys) if dated_by else None,
            versions=input_versions(context, warehouse),
            as_of=current_policy().sources.data_end,
            engine=warehouse.engine(),
            run_id=context.run.run_id,
        )
        return Produced(report=judged.report, by_partition=judged.parts)

    return report


def gate_check(table: str) -> dg.AssetChecksDefinition:
    """The gate over the partitions of a run."""

    @dg.asset_check(
        asset=quality_key(table),
        name="qc_gate",
        blocking=True,
        description=f"Blocks unless every checked version of {table} passed under the current rules.",
    )
    def qc_gate(context: dg.AssetCheckExecutionContext, warehouse: Warehouse) -> dg.AssetCheckResult:
        from e2i_dagster.quality.judge import gate_result

        months = context.op_execution_context.partition_keys if date_column(table) else None
        result = gate_result(warehouse.engine(), table, months)
        return dg.AssetCheckResult(
            passed=result.passed, description=result.text, metadata={"versions": result.versions}
        )

    return qc_gate


def every_partition_check(table: str) -> dg.AssetChecksDefinition:
    """The gate over all partitions that the ledger has, whatever ran last."""

    @dg.asset_check(
        asset=quality_key(table),
        name="every_partition_ok",
        description=f"Names each partition of {table} whose newest verdict fails, whatever ran last.",
    )
    def every_partition_ok(warehouse: Warehouse) -> dg.AssetCheckResult:
        from e2i_dagster.quality.judge import gate_result

        result = gate_result(warehouse.engine(), table, None)
        return dg.AssetCheckResult(
            passed=result.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=result.text,
            metadata={"versions": result.versions},
        )

    return every_partition_ok


def _rules(table: str) -> str:
    from e2i_dagster.quality import current_quality_policy, ruleset_hash

    return ruleset_hash(current_quality_policy(), table)


quality_reports = [quality_asset(table) for table in RAW_TABLES]
quality_checks = [
    *(gate_check(table) for table in RAW_TABLES),
    *(every_partition_check(table) for table in RAW_TABLES if date_column(table)),
]
