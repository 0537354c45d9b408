"""Explanations: SHAP values summed to features, importance, narrative, figure."""

from e2i_dagster.explain.shapley import Explanation, FeatureEffect, explain, explain_validation

__all__ = ["Explanation", "FeatureEffect", "explain", "explain_validation"]
