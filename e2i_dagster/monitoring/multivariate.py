"""Drift of all features together, which no feature may show alone: a domain classifier and principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.modelling.estimators import one_thread
from e2i_dagster.modelling.model_input import feature_kinds
from e2i_dagster.modelling.preprocessing import build_preprocessor, column_origins
from e2i_dagster.monitoring.drift_report import FeatureDrift
from e2i_dagster.monitoring.profile import NumberProfile, ReferenceProfile

_SEED = 42
_LEVELS = 20


def joint_drift(profile: ReferenceProfile, current: pd.DataFrame, policy: DriftPolicy) -> list[FeatureDrift]:
    """``domain_classifier`` and ``pca_reconstruction`` of the profile's sample rows and ``current``."""
    names = [name for name in profile.sample if name in current.columns]
    sizes = len(next(iter(profile.sample.values()))), len(current)
    needed = 2 * policy.minimum_sample.psi
    if min(sizes) < needed or not names:
        reason = f"needs {needed} rows on both sides, found {sizes[0]} and {sizes[1]}"
        return [
            FeatureDrift(
                name=name, kind="multivariate", state="skipped", reason=reason,
                reference_count=sizes[0], current_count=sizes[1],
            )
            for name in ("domain_classifier", "pca_reconstruction")
        ]  # fmt: skip
    reference = sample_frame(profile)[names]
    drawn = current[names].sample(min(policy.multivariate.sample, len(current)), random_state=_SEED)
    with one_thread():
        kinds = feature_kinds(reference, names)
        encoder = build_preprocessor(kinds, _LEVELS).fit(reference)
        before, now = (np.asarray(encoder.transform(rows), dtype="float64") for rows in (reference, drawn))
        auc, auc_p, drivers = _domain_classifier(before, now, policy, column_origins(encoder))
        shift, shift_p = _reconstruction(before, now, policy)
    counts: dict[str, Any] = {"reference_count": len(before), "current_count": len(now)}
    reason = f"told apart by {', '.join(drivers)}" if drivers else ""
    return [
        FeatureDrift(
            name="domain_classifier", kind="multivariate", state="executed", test="domain_classifier",
            statistic=auc, p_value=auc_p, reason=reason, **counts,
        ),
        FeatureDrift(
            name="pca_reconstruction", kind="multivariate", state="executed", test="pca_reconstruction",
            statistic=shift, p_value=shift_p, reason="the features relate to each other in another way", **counts,
        ),
    ]  # fmt: skip


def sample_frame(profile: ReferenceProfile) -> pd.DataFrame:
    """The sample rows of ``profile`` with the types that models read."""
    return pd.DataFrame(
        {
            name: pd.Series(
                [np.nan if value is None else value for value in values],
                dtype="float64" if isinstance(profile.features[name], NumberProfile) else object,
            )
            for name, values in profile.sample.items()
        }
    )


def _domain_classifier(
    before: np.ndarray, now: np.ndarray, policy: DriftPolicy, origins: Sequence[str]
) -> tuple[float, float, list[str]]:
    """Area under the ROC curve of cross-fitted predictions of which side a row is from, its p, and what decides.

    Each fold's rows are ranked among themselves, so that folds are not compared; p by the normal approximation of
    the Mann-Whitney statistic (Mann and Whitney 1947), one-sided: below 0.5 is chance.
    """
    from scipy.stats import norm
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    matrix = np.vstack([before, now])
    side = np.repeat([0, 1], [len(before), len(now)])
    folds = StratifiedKFold(policy.multivariate.folds, shuffle=True, random_state=_SEED)
    areas, importance = [], np.zeros(matrix.shape[1])
    for fitted, judged in folds.split(matrix, side):
        model = ExtraTreesClassifier(
            100, min_samples_leaf=10, max_features="sqrt", class_weight="balanced", random_state=_SEED
        ).fit(matrix[fitted], side[fitted])
        areas.append(roc_auc_score(side[judged], model.predict_proba(matrix[judged])[:, 1]))
        importance += model.feature_importances_
    auc = float(np.mean(areas))
    spread = np.sqrt((len(side) + 1) / (12 * len(before) * len(now)))
    by_feature = pd.Series(importance).groupby(list(origins)).sum().sort_values(ascending=False)
    return auc, float(norm.sf((auc - 0.5) / spread)), [str(name) for name in by_feature.index[:3]]


def _reconstruction(before: np.ndarray, now: np.ndarray, policy: DriftPolicy) -> tuple[float, float]:
    """Change of the mean error of reconstruction from principal components, in standard deviations, and its p.

    Components are of one half of the reference rows and errors of the other: on the rows that they were fitted to
    they would be too small, and every day would drift. p by Welch's test, two-sided.
    """
    from scipy.stats import ttest_ind
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    half = len(before) // 2
    scale = StandardScaler().fit(before[:half])
    components = PCA(policy.multivariate.explained_variance, svd_solver="full").fit(
        scale.transform(before[:half])
    )

    def errors(rows: np.ndarray) -> np.ndarray:
        scaled = scale.transform(rows)
        return np.linalg.norm(scaled - components.inverse_transform(components.transform(scaled)), axis=1)

    then, today = errors(before[half:]), errors(now)
    spread = then.std()
    if spread == 0:
        return 0.0, 1.0
    result: Any = ttest_ind(today, then, equal_var=False)
    return float(abs(today.mean() - then.mean()) / spread), float(np.nan_to_num(result.pvalue, nan=1.0))
