"""Data docs of Great Expectations: pages of a suite and of its outcome for some partitions.

Results hold counts and shares; no value of a row is asked for, so none can be on a page.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality.expectations import expectation
from e2i_dagster.quality.schemas import TypedFrame, typed

_COUNTS_ONLY = {
    "result_format": "BASIC",
    "exclude_unexpected_values": True,
    "partial_unexpected_count": 0,
    "return_unexpected_index_query": False,
}


def build_data_docs(
    parts: Mapping[str, pd.DataFrame | TypedFrame], table: str, *, policy: QualityPolicy, folder: Path
) -> Path:
    """Run the suite of ``table`` on each part and write the pages into ``folder``, which is replaced.

    Args:
        parts: label of a partition to its rows.
        table: raw table with a suite.
        policy: suites and vocabularies.
        folder: where the pages go.

    Returns:
        The page to open.

    Raises:
        KeyError: the table has no suite.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    suite = policy.suites[table]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.analytics_enabled = False
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    context.add_data_docs_site(
        site_name="quality",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        },
    )
    stored = context.suites.add(
        gx.ExpectationSuite(
            name=table,
            expectations=[
                expectation(policy, position, spec) for position, spec in enumerate(suite.expectations)
            ],
        )
    )
    source = context.data_sources.add_pandas(table)
    for label, rows in parts.items():
        read = rows if isinstance(rows, TypedFrame) else typed(rows, table)
        batches = source.add_dataframe_asset(label).add_batch_definition_whole_dataframe(label)
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=f"{table} {label}", data=batches, suite=stored)
        )
        definition.run(
            batch_parameters={"dataframe": read.frame.reset_index(drop=True)}, result_format=_COUNTS_ONLY
        )
    context.build_data_docs(site_names=["quality"])
    return folder / "index.html"
