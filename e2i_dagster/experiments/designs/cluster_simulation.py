"""Simulated trials of randomized clusters, many at once: what the level and the power of their analysis are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from e2i_dagster.experiments.statistics.comparisons import cluster_error, satterthwaite_clusters

#: Clusters of both arms, and their sizes (repeated), over which the level is looked at.
DESIGNS = ((5, 5), (5, 20), (20, 5), (8, 8))
SIZES = {"equal": (20,), "unequal": (10, 20, 30), "very unequal": (5, 10, 15, 60)}


def draw_clusters(
    units: np.ndarray, draws: int, rng: np.random.Generator, *, icc: float = 0.2, binary: bool = False
) -> np.ndarray:
    """Totals of the clusters of one arm, shape (draws, clusters).

    Units have mean 0 and variance 1, of which ``icc`` lies between clusters; with ``binary`` they are 0 or 1 with
    odds of 0.3 : 0.7, log-normal between clusters (standard deviation of the log 0.8).
    """
    between = rng.normal(size=(draws, len(units)))
    if binary:
        return rng.binomial(units, 1.0 / (1.0 + np.exp(-(np.log(0.3 / 0.7) + 0.8 * between)))).astype(float)
    within = rng.normal(size=(draws, len(units))) * np.sqrt(units * (1.0 - icc))
    return units * np.sqrt(icc) * between + within


def cluster_p_values(
    totals: Sequence[np.ndarray], units: Sequence[np.ndarray], alpha: float = 0.05
) -> np.ndarray:
    """Two-sided p-values of the analysis of clusters, one per draw; 1 where nothing varies.

    Args:
        totals: of each of two arms, shape (draws, clusters). units: of each, shape (clusters,).
    """
    from scipy.special import stdtr

    means, parts = [], []
    for total, count in zip(totals, units, strict=True):
        share = count / count.sum()
        mean = total.sum(axis=1) / count.sum()
        line = (total - mean[:, None] * count) / count.sum() / np.sqrt(1.0 - share)
        means.append(mean)
        parts.append(((line**2).sum(axis=1), satterthwaite_clusters(share), float(share @ share)))
    variance = np.stack([part[0] for part in parts])[..., None]
    freedom, unit = (np.array([part[k] for part in parts])[:, None, None] + 0.0 * variance for k in (1, 2))
    known = variance.sum(axis=(0, 2)) > 0
    result = np.ones(len(known))
    error, degrees = cluster_error(variance[:, known], freedom[:, known], unit[:, known], alpha / 2.0)
    result[known] = 2.0 * stdtr(degrees, -np.abs((means[0] - means[1])[known]) / np.sqrt(error))
    return result
