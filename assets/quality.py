"""Quality: each raw table in three layers, a verdict for each month, and the gate that blocks."""

import dagster as dg

from assets.execution import QUALITY, Produced, input_versions
from assets.partitions import MONTHS
from assets.stage import stage_asset
from assets.values import DataFrame
from e2i_dagster.config.policy import current_policy
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, date_column, related_tables
from resources.warehouse import Warehouse

GROUP = QUALITY


def quality_key(table: str) -> dg.AssetKey:
    """The asset of a raw table's quality report."""
    return dg.AssetKey([QUALITY, table])


def quality_asset(table: str) -> dg.AssetsDefinition:
    """The quality report of one raw table."""
    dated_by = date_column(table)

    @stage_asset(
        key=quality_key(table),
        produces="e2i_dagster.quality.report:PartitionQuality",
        gated=False,
        of_table=table,
        output_required=False,
        group_name=GROUP,
        kinds={"narwhals", "greatexpectations"},
        ins={"rows": dg.AssetIn(table)},
        deps=[dg.AssetKey(name) for name in related_tables(table)],
        partitions_def=MONTHS if dated_by else None,
        backfill_policy=dg.BackfillPolicy.single_run() if dated_by else None,
        description=f"Schema, five dimensions and expectations of {table}, judged "
        + ("month by month." if dated_by else "as a whole."),
    )
    def report(context: dg.AssetExecutionContext, rows: DataFrame, warehouse: Warehouse) -> Produced:
        from e2i_dagster.quality.table_check import check_raw_table

        judged = check_raw_table(
            table,
            rows,
            months=list(context.partition_keys) if dated_by else None,
            versions=input_versions(context, warehouse),
            as_of=current_policy().sources.data_end,
            engine=warehouse.engine(),
            run_id=context.run.run_id,
        )
        return Produced(report=judged.report, by_partition=judged.parts, metadata=judged.pages)

    return report


quality_reports = [quality_asset(table) for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)]
