"""Experiments: the statistics of designs, looks and results.

Names are loaded from their modules when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2i_dagster.experiments.design.designs import Design, design
    from e2i_dagster.experiments.design.planning import (
        SampleSize,
        inflation_factor,
        minimum_detectable_effect,
        power,
        sample_size,
    )
    from e2i_dagster.experiments.design.reestimation import Reestimation, blinded_reestimation, promising_zone
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
    "AACheck": "aa",
    "AlwaysValid": "estimation",
    "Analysis": "results",
    "ArmSummary": "results",
    "Boundaries": "interim",
    "Comparison": "results",
    "Design": "designs",
    "FinalEstimate": "estimation",
    "Heterogeneity": "forest",
    "Look": "interim",
    "Reestimation": "reestimation",
    "SampleSize": "planning",
    "SequentialSrm": "srm",
    "SrmResult": "srm",
    "SubgroupAnalysis": "subgroups",
    "SufficientStatistics": "sufficient",
    "aa_check": "aa",
    "adjusted": "multiplicity",
    "always_valid": "estimation",
    "analyze": "analysis",
    "analyze_statistics": "analysis",
    "analyze_subgroups": "subgroups",
    "blinded_reestimation": "reestimation",
    "boundaries": "interim",
    "conditional_power": "interim",
    "design": "designs",
    "evaluate_look": "interim",
    "final_estimate": "estimation",
    "heterogeneity": "forest",
    "inflation_factor": "planning",
    "merge": "sufficient",
    "minimum_detectable_effect": "planning",
    "mixture_variance": "estimation",
    "power": "planning",
    "predictive_power": "interim",
    "promising_zone": "reestimation",
    "repeated_intervals": "estimation",
    "sample_size": "planning",
    "sequential_srm_test": "srm",
    "srm_test": "srm",
    "stagewise_p_value": "estimation",
    "summarize": "sufficient",
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
