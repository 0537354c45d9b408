"""Runs of the code location in the process of the test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import sqlalchemy as sa

#: A range over New Year, with the same months of the year before in the delivery.
FIRST, LAST = "2023-11", "2024-02"
MONTHS = ("2023-11", "2023-12", "2024-01", "2024-02")

#: What is loaded for tests of months, and for tests of cohorts.
EVENTS = ("hcp_profiles", "patient_journeys", "treatment_events")
PATIENTS = ("hcp_profiles", "patient_journeys", "patient_clinical")


class Pipeline:
    """Runs the jobs of the code location against one warehouse, lake and instance."""

    def __init__(self, instance: dg.DagsterInstance, warehouse: sa.Engine, lake: Path) -> None:
        from e2i_dagster.definitions import defs

        self.defs = defs
        self.instance = instance
        self.warehouse = warehouse
        self.lake = lake

    def run(
        self,
        job: str,
        *,
        partition: str | None = None,
        months: tuple[str, str] | None = None,
        assets: Sequence[str] | None = None,
        folder: Path | None = None,
        mapping: Path | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Execute ``job`` for a partition or a range of months; ``assets`` narrows it, with their checks."""
        tags = {}
        if months is not None:
            tags = dict(
                zip(
                    ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end"),
                    months,
                    strict=True,
                )
            )
        config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        if folder is not None:
            given = {"folder": str(folder)} | ({"mapping": str(mapping)} if mapping else {})
            config["ops"] = {"source_files": {"config": given}}
        return self.defs.resolve_job_def(job).execute_in_process(
            run_config=config,
            instance=self.instance,
            partition_key=partition,
            tags=tags,
            asset_selection=None
            if assets is None
            else [dg.AssetKey(name.split("/")) for name in dict.fromkeys(assets)],
            raise_on_error=False,
        )

    def load(
        self,
        folder: Path,
        *tables: str,
        months: tuple[str, str] = (FIRST, LAST),
        checked: bool = True,
        mapping: Path | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Load ``tables`` of ``folder``; ``checked`` says whether the last one goes through quality control."""
        quality = [f"quality/{name}" for name in tables if name != "hcp_profiles"] if checked else []
        return self.run(
            "load_and_qc",
            months=months,
            assets=["source_files", *tables, *quality],
            folder=folder,
            mapping=mapping,
        )

    def versions(self, asset: str) -> dict[str | None, Any]:
        """The current version of each partition of ``asset``."""
        from e2i_dagster.versions import ledger

        return ledger.current(self.warehouse, asset)

    def stored(self, asset: str, partition: str | None = None) -> pd.DataFrame:
        """The current rows of ``asset`` as a consumer reads them."""
        manager = self.defs.resources["lake"]
        return manager.load(asset, [partition])

    def rows(self, statement: str) -> list[Any]:
        """The rows that ``statement`` selects in the warehouse."""
        with self.warehouse.connect() as connection:
            return list(connection.execute(sa.text(statement)).mappings())


def materialized(
    assets: Sequence[Any], pipeline: Pipeline, selection: Any = None
) -> dg.ExecuteInProcessResult:
    """Materialize ``assets`` of a test's own, with the resources of the code location."""
    from e2i_dagster.definitions import build_resources

    return dg.materialize(
        assets,
        instance=pipeline.instance,
        resources=build_resources(),
        selection=selection,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def said(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps of a run said."""
    texts = []
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        texts.append(
            (data.user_failure_data.description if data.user_failure_data else None)
            or (data.error.to_string() if data.error else "")
        )
    return "\n".join(filter(None, texts))
