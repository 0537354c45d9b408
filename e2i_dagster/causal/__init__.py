"""Causal effects: estimation by several libraries, their agreement, and what would overturn them."""

from e2i_dagster.causal.effects import CrossValidation, EffectEstimates, LibraryEstimate
from e2i_dagster.causal.estimate import cross_validate, estimate_effects
from e2i_dagster.causal.overlap import Balance, Overlap

__all__ = [
    "Balance",
    "CrossValidation",
    "EffectEstimates",
    "LibraryEstimate",
    "Overlap",
    "cross_validate",
    "estimate_effects",
]
