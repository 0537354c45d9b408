"""Raw tables: a delivery is checked, each table loaded into the warehouse, accepted rows kept in the lake."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from assets.execution import Produced
from assets.partitions import MONTHS
from assets.stage import stage_asset
from assets.values import DeliveryManifest
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    date_column,
    loaded_after,
    primary_key,
    related_tables,
)
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from e2i_dagster.loading.delivery import DeliveryRequest

GROUP = "raw"
#: Tables that others are loaded after or compared with.
PARENTS = frozenset(
    parent
    for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
    for parent in (*loaded_after(table), *related_tables(table))
)


class DeliveryConfig(dg.Config):
    """What to load. Everything left empty comes from config/sources.yaml."""

    folder: str | None = Field(default=None, description="Folder with your own files.")
    mapping: str | None = Field(default=None, description="Mapping file for your columns and codes.")
    dgp: str | None = Field(default=None, description="Process of the synthetic set.")
    scale: float | None = Field(
        default=None, description="Size of the synthetic set; 1.0 is 25,000 patients."
    )
    seed: int | None = Field(default=None, description="Seed of the synthetic set.")
    dirty: bool = Field(default=False, description="Synthetic set with planted defects.")
    threshold: float | None = Field(default=None, description="Accepted share of good rows; needs a reason.")
    reason: str | None = Field(default=None, description="Why a lower threshold is acceptable; recorded.")
    resubmit: bool = Field(default=False, description="The folder holds corrected rejects.")

    def request(self) -> "DeliveryRequest":
        """The request in the words of the core."""
        from e2i_dagster.loading.delivery import DeliveryRequest

        return DeliveryRequest.model_validate(self.model_dump())


@stage_asset(
    produces="e2i_dagster.loading.delivery:DeliveryManifest",
    always=True,
    group_name=GROUP,
    kinds={"file"},
    description="The files to be loaded: found or drawn, read once, every problem of the folder in one message.",
)
def source_files(context: dg.AssetExecutionContext, config: DeliveryConfig, warehouse: Warehouse) -> Produced:
    from e2i_dagster.loading.delivery import absent_tables, prepare_delivery, resubmit_rejects
    from e2i_dagster.versions import ledger

    policy = current_policy()
    sources = policy.sources
    request = config.request()
    manifest = prepare_delivery(request, sources, state_folder(), policy.cohorts)
    if manifest.resubmit:
        report = resubmit_rejects(
            manifest, engine=warehouse.engine(), run_id=context.run.run_id, kept=sources.kept_months
        )
        return Produced(manifest, report)
    ledger.record_absent(warehouse.engine(), absent_tables(request, sources, warehouse.engine()))
    return Produced(manifest, manifest)


def raw_asset(table: str) -> dg.AssetsDefinition:
    """The asset of one raw table; event tables by month, a range of months in a single run."""
    dated_by = date_column(table)

    @stage_asset(
        name=table,
        gated=False,
        of_table=table,
        # What others wait for has to be handed over, if only as nothing.
        output_required=table in PARENTS,
        group_name=GROUP,
        kinds={"postgres", "parquet"},
        deps=loaded_after(table),
        partitions_def=MONTHS if dated_by else None,
        backfill_policy=dg.BackfillPolicy.single_run() if dated_by else None,
        description=f"Accepted rows of {table}, one per {primary_key(table)}"
        + (f", by month of {dated_by}." if dated_by else "."),
    )
    def rows(
        context: dg.AssetExecutionContext, source_files: DeliveryManifest, warehouse: Warehouse
    ) -> Produced:
        from e2i_dagster.loading.delivery import deliver_table

        sources = current_policy().sources
        months = list(context.partition_keys) if dated_by else None
        delivered = deliver_table(
            source_files,
            table,
            engine=warehouse.engine(),
            run_id=context.run.run_id,
            months=months,
            all_months=months == sources.months,
            kept=sources.kept_months,
        )
        return Produced(delivered.frame, delivered, withheld=delivered.withheld, partition_column=dated_by)

    return rows


raw_tables = [raw_asset(table) for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)]
