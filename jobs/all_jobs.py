"""The jobs of the plan, and those of the commands that change state."""

import dagster as dg

from jobs.alerts import ALERT_JOBS
from jobs.experiments import EXPERIMENT_JOBS
from jobs.gate import GATE_JOBS
from jobs.operations import OPERATIONS_JOBS
from jobs.registry import REGISTRY_JOBS

_loading = dg.AssetSelection.groups("configuration", "raw", "quality")

load_and_qc = dg.define_asset_job(
    "load_and_qc", selection=_loading, description="Load a delivery and judge it."
)
load = dg.define_asset_job("load", selection=_loading, description="The job of `e2i load`.")
resubmit_rejects = dg.define_asset_job(
    "resubmit_rejects", selection=_loading, description="The job of `e2i rejects resubmit`."
)
build_cohorts = dg.define_asset_job(
    "build_cohorts", selection=dg.AssetSelection.groups("cohorts"), description="One cohort."
)
scope_pipeline = dg.define_asset_job(
    "scope_pipeline",
    selection=dg.AssetSelection.groups("features", "splits", "models", "explain", "registry", "serving"),
    description="One scope: labels, features, split, model, explanation, endpoint.",
)
monitor = dg.define_asset_job(
    "monitor",
    selection=dg.AssetSelection.groups("monitoring"),
    description="One day of one scope: prediction log, performance, drift.",
)
_causal_service = dg.AssetSelection.assets("effect_bento", "effect_deployment")
estimate_effects = dg.define_asset_job(
    "estimate_effects",
    selection=dg.AssetSelection.groups("causal") - _causal_service,
    description="The effect of the question in config/causal.yaml on one scope's outcome; after scope_pipeline.",
)
deploy_effects = dg.define_asset_job(
    "deploy_effects",
    selection=_causal_service,
    description="The causal service with the promoted models of effects; after estimate_effects.",
)

JOBS = [
    load_and_qc,
    load,
    resubmit_rejects,
    build_cohorts,
    scope_pipeline,
    monitor,
    *GATE_JOBS,
    *ALERT_JOBS,
    *EXPERIMENT_JOBS,
    *REGISTRY_JOBS,
    *OPERATIONS_JOBS,
    estimate_effects,
    deploy_effects,
]
