"""The one place that joins assets, checks, resources, jobs, sensors and schedules.

Importing it reads only ``config/``: no connection is opened and no variable is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from assets import (
    causal,
    cohorts,
    configuration,
    experiments,
    features,
    models,
    monitoring,
    quality,
    raw,
    serving,
    splits,
)
from assets import gate_checks as gate
from jobs.all_jobs import JOBS
from resources.alerts import Alerts
from resources.bentoml import Serving
from resources.feature_store import FeatureStore
from resources.lake import LakeIOManager, asset_name
from resources.mlflow import MlflowResource
from resources.warehouse import Warehouse
from sensors.chain import cohorts_after_load, scopes_after_cohorts
from sensors.deliveries import missing_deliveries
from sensors.drift import drift_sensor
from sensors.experiments import experiment_monitor
from sensors.failures import alert_on_run_failure
from sensors.freshness import feature_freshness
from sensors.schedules import daily_digest, monthly_load
from sensors.services import service_watch

MODULES = (
    configuration,
    raw,
    quality,
    cohorts,
    features,
    splits,
    gate,
    models,
    serving,
    monitoring,
    experiments,
    causal,
)


def build_resources() -> dict[str, Any]:
    """The resources of a deployment; everything else about it is in the environment."""
    warehouse = Warehouse()
    return {
        "warehouse": warehouse,
        "lake": LakeIOManager(warehouse=warehouse),
        "feature_store": FeatureStore(),
        "mlflow": MlflowResource(),
        "serving": Serving(warehouse=warehouse),
        "alerts": Alerts(warehouse=warehouse),
    }


def build_definitions(resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The code location; ``resources`` override those of the deployment by name."""
    return dg.Definitions(
        assets=dg.load_assets_from_modules(MODULES),
        asset_checks=dg.load_asset_checks_from_modules(MODULES),
        jobs=JOBS,
        sensors=[
            alert_on_run_failure,
            drift_sensor,
            experiment_monitor,
            missing_deliveries,
            feature_freshness,
            service_watch,
            cohorts_after_load,
            scopes_after_cohorts,
        ],
        schedules=[monthly_load, daily_digest],
        resources={**build_resources(), **(resources or {})},
        # A process for each step costs seconds; production isolates runs by its launcher.
        executor=dg.in_process_executor,
    )


defs = build_definitions()


def graph_lines() -> Iterator[str]:
    """One line for each asset and check: key, group, partitions, what it reads; sorted."""
    graph = defs.resolve_asset_graph()
    for key in sorted(graph.get_all_asset_keys(), key=asset_name):
        node = graph.get(key)
        partitions = (
            type(node.partitions_def).__name__.removesuffix("PartitionsDefinition")
            if node.partitions_def
            else "-"
        )
        parents = ", ".join(sorted(map(asset_name, node.parent_keys))) or "-"
        yield f"{asset_name(key)} | {node.group_name} | {partitions} | {parents}"
    for check in sorted(graph.asset_check_keys, key=lambda one: (asset_name(one.asset_key), one.name)):
        yield f"check {asset_name(check.asset_key)}:{check.name}"
