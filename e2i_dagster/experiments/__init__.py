"""Experiments: the statistics of designs, looks and results.

Names are loaded from their modules when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2i_dagster.experiments.analysis import analyze, analyze_statistics
    from e2i_dagster.experiments.designs import Design, design
    from e2i_dagster.experiments.interim import (
        Boundaries,
        Look,
        boundaries,
        conditional_power,
        evaluate_look,
        predictive_power,
    )
    from e2i_dagster.experiments.planning import (
        SampleSize,
        inflation_factor,
        minimum_detectable_effect,
        power,
        sample_size,
    )
    from e2i_dagster.experiments.results import Analysis, ArmSummary, Comparison
    from e2i_dagster.experiments.srm import SequentialSrm, SrmResult, sequential_srm_test, srm_test
    from e2i_dagster.experiments.sufficient import SufficientStatistics, merge, summarize

_WHERE = {
    "Analysis": "results",
    "ArmSummary": "results",
    "Boundaries": "interim",
    "Comparison": "results",
    "Design": "designs",
    "Look": "interim",
    "SampleSize": "planning",
    "SequentialSrm": "srm",
    "SrmResult": "srm",
    "SufficientStatistics": "sufficient",
    "analyze": "analysis",
    "analyze_statistics": "analysis",
    "boundaries": "interim",
    "conditional_power": "interim",
    "design": "designs",
    "evaluate_look": "interim",
    "inflation_factor": "planning",
    "merge": "sufficient",
    "minimum_detectable_effect": "planning",
    "power": "planning",
    "predictive_power": "interim",
    "sample_size": "planning",
    "sequential_srm_test": "srm",
    "srm_test": "srm",
    "summarize": "sufficient",
}

__all__ = [
    "Analysis",
    "ArmSummary",
    "Boundaries",
    "Comparison",
    "Design",
    "Look",
    "SampleSize",
    "SequentialSrm",
    "SrmResult",
    "SufficientStatistics",
    "analyze",
    "analyze_statistics",
    "boundaries",
    "conditional_power",
    "design",
    "evaluate_look",
    "inflation_factor",
    "merge",
    "minimum_detectable_effect",
    "power",
    "predictive_power",
    "sample_size",
    "sequential_srm_test",
    "srm_test",
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
