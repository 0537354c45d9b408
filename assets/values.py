"""Types of the values that stages and checks read of the lake.

The type checker sees the classes. Dagster sees types of their names, which ask for the class when there is a value to
compare: the code location loads without the libraries of the stages.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from pandas import DataFrame

    from e2i_dagster.causal.heterogeneity import EffectHeterogeneity
    from e2i_dagster.causal.registration import EffectModel
    from e2i_dagster.causal.study import CausalEstimates
    from e2i_dagster.explain.shapley import Explanation
    from e2i_dagster.features.selection import FeatureSelection
    from e2i_dagster.features.snapshots import FeatureFiles
    from e2i_dagster.features.store import MaterializationReport
    from e2i_dagster.loading.delivery import DeliveryManifest
    from e2i_dagster.monitoring.performance import PerformanceReport
    from e2i_dagster.monitoring.profile import ReferenceProfile
    from e2i_dagster.registry.storage import StoredModel
    from e2i_dagster.registry.training_runs import TrackedRun
    from e2i_dagster.registry.versions import RegisteredVersion
    from e2i_dagster.selection.choose import AlgorithmChoice
    from e2i_dagster.serving.deployment import Deployment
    from e2i_dagster.serving.release import Release
    from e2i_dagster.training.evaluate import Evaluation
    from e2i_dagster.training.search import SearchResult
else:

    def _at(place: str) -> dg.DagsterType:
        return dg.DagsterType(
            lambda _, value: isinstance(value, resolve_name(place)), key=place, name=place.partition(":")[2]
        )

    DataFrame = _at("pandas:DataFrame")
    EffectHeterogeneity = _at("e2i_dagster.causal.heterogeneity:EffectHeterogeneity")
    EffectModel = _at("e2i_dagster.causal.registration:EffectModel")
    CausalEstimates = _at("e2i_dagster.causal.study:CausalEstimates")
    Explanation = _at("e2i_dagster.explain.shapley:Explanation")
    FeatureSelection = _at("e2i_dagster.features.selection:FeatureSelection")
    FeatureFiles = _at("e2i_dagster.features.snapshots:FeatureFiles")
    MaterializationReport = _at("e2i_dagster.features.store:MaterializationReport")
    PerformanceReport = _at("e2i_dagster.monitoring.performance:PerformanceReport")
    ReferenceProfile = _at("e2i_dagster.monitoring.profile:ReferenceProfile")
    StoredModel = _at("e2i_dagster.registry.storage:StoredModel")
    TrackedRun = _at("e2i_dagster.registry.training_runs:TrackedRun")
    RegisteredVersion = _at("e2i_dagster.registry.versions:RegisteredVersion")
    AlgorithmChoice = _at("e2i_dagster.selection.choose:AlgorithmChoice")
    Deployment = _at("e2i_dagster.serving.deployment:Deployment")
    Release = _at("e2i_dagster.serving.release:Release")
    DeliveryManifest = _at("e2i_dagster.loading.delivery:DeliveryManifest")
    Evaluation = _at("e2i_dagster.training.evaluate:Evaluation")
    SearchResult = _at("e2i_dagster.training.search:SearchResult")
