"""Experiments, in three rooms: ``designs`` (before), ``statistics`` (tests and estimates, without a database) and
``conduct`` (what happens to units, looks and results in the warehouse). ``conduct`` may use ``designs``, both may use
``statistics``, never the other way round.

Names are loaded from their modules when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2i_dagster.experiments.designs.planning import (
        SampleSize,
        inflation_factor,
        minimum_detectable_effect,
        power,
        sample_size,
    )
    from e2i_dagster.experiments.designs.reestimation import (
        Reestimation,
        blinded_reestimation,
        promising_zone,
    )
    from e2i_dagster.experiments.designs.sequential import Design, design
    from e2i_dagster.experiments.statistics.aa_test import AACheck, aa_check
    from e2i_dagster.experiments.statistics.analysis import analyze, analyze_statistics
    from e2i_dagster.experiments.statistics.causal_forest import Heterogeneity, heterogeneity
    from e2i_dagster.experiments.statistics.comparison_results import Analysis, ArmSummary, Comparison
    from e2i_dagster.experiments.statistics.estimation import (
        AlwaysValid,
        FinalEstimate,
        always_valid,
        final_estimate,
        mixture_variance,
        repeated_intervals,
        stagewise_p_value,
    )
    from e2i_dagster.experiments.statistics.multiplicity import adjusted
    from e2i_dagster.experiments.statistics.sample_ratio import (
        SequentialSrm,
        SrmResult,
        sequential_srm_test,
        srm_test,
    )
    from e2i_dagster.experiments.statistics.stopping import (
        Boundaries,
        Look,
        boundaries,
        conditional_power,
        evaluate_look,
        predictive_power,
    )
    from e2i_dagster.experiments.statistics.subgroups import SubgroupAnalysis, analyze_subgroups
    from e2i_dagster.experiments.statistics.sufficient_statistics import (
        SufficientStatistics,
        merge,
        summarize,
    )

_WHERE = {
    "AACheck": "statistics.aa_test",
    "AlwaysValid": "statistics.estimation",
    "Analysis": "statistics.comparison_results",
    "ArmSummary": "statistics.comparison_results",
    "Boundaries": "statistics.stopping",
    "Comparison": "statistics.comparison_results",
    "Design": "designs.sequential",
    "FinalEstimate": "statistics.estimation",
    "Heterogeneity": "statistics.causal_forest",
    "Look": "statistics.stopping",
    "Reestimation": "designs.reestimation",
    "SampleSize": "designs.planning",
    "SequentialSrm": "statistics.sample_ratio",
    "SrmResult": "statistics.sample_ratio",
    "SubgroupAnalysis": "statistics.subgroups",
    "SufficientStatistics": "statistics.sufficient_statistics",
    "aa_check": "statistics.aa_test",
    "adjusted": "statistics.multiplicity",
    "always_valid": "statistics.estimation",
    "analyze": "statistics.analysis",
    "analyze_statistics": "statistics.analysis",
    "analyze_subgroups": "statistics.subgroups",
    "blinded_reestimation": "designs.reestimation",
    "boundaries": "statistics.stopping",
    "conditional_power": "statistics.stopping",
    "design": "designs.sequential",
    "evaluate_look": "statistics.stopping",
    "final_estimate": "statistics.estimation",
    "heterogeneity": "statistics.causal_forest",
    "inflation_factor": "designs.planning",
    "merge": "statistics.sufficient_statistics",
    "minimum_detectable_effect": "designs.planning",
    "mixture_variance": "statistics.estimation",
    "power": "designs.planning",
    "predictive_power": "statistics.stopping",
    "promising_zone": "designs.reestimation",
    "repeated_intervals": "statistics.estimation",
    "sample_size": "designs.planning",
    "sequential_srm_test": "statistics.sample_ratio",
    "srm_test": "statistics.sample_ratio",
    "stagewise_p_value": "statistics.estimation",
    "summarize": "statistics.sufficient_statistics",
}

__all__ = [
    "AACheck",
    "AlwaysValid",
    "Analysis",
    "ArmSummary",
    "Boundaries",
    "Comparison",
    "Design",
    "FinalEstimate",
    "Heterogeneity",
    "Look",
    "Reestimation",
    "SampleSize",
    "SequentialSrm",
    "SrmResult",
    "SubgroupAnalysis",
    "SufficientStatistics",
    "aa_check",
    "adjusted",
    "always_valid",
    "analyze",
    "analyze_statistics",
    "analyze_subgroups",
    "blinded_reestimation",
    "boundaries",
    "conditional_power",
    "design",
    "evaluate_look",
    "final_estimate",
    "heterogeneity",
    "inflation_factor",
    "merge",
    "minimum_detectable_effect",
    "mixture_variance",
    "power",
    "predictive_power",
    "promising_zone",
    "repeated_intervals",
    "sample_size",
    "sequential_srm_test",
    "srm_test",
    "stagewise_p_value",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
