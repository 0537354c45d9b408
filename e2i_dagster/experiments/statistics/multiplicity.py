"""P-values adjusted for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from e2i_dagster.errors import InputError

METHODS = ("holm", "benjamini_hochberg", "none")


def adjusted(p_values: Sequence[float | None], method: str = "holm") -> list[float | None]:
    """Adjusted p-values, in the order given; None (not estimable) stays None and does not count as a test.

    ``holm`` (Scandinavian Journal of Statistics 6, 1979) holds the probability of any false finding,
    ``benjamini_hochberg`` (JRSS B 57, 1995) the expected share of false ones among the findings.

    Raises:
        InputError: the method is not known or a p-value lies outside [0, 1].
    """
    if method not in METHODS:
        raise InputError(
            f"multiplicity: {method!r} is not known; known are {', '.join(METHODS)}.", field="multiplicity"
        )
    places = [place for place, value in enumerate(p_values) if value is not None]
    values = np.array([p_values[place] for place in places], dtype=float)
    if values.size and not ((values >= 0) & (values <= 1)).all():
        raise InputError("multiplicity: a p-value lies outside [0, 1].", field="multiplicity")
    result = list(p_values)
    if method == "benjamini_hochberg":
        from scipy.stats import false_discovery_control

        values = false_discovery_control(values, method="bh")
    elif method == "holm":
        # Not by statsmodels: there every call collects the garbage of the whole process, which takes longer than an
        # analysis, and an A/A check makes hundreds of them.
        order = np.argsort(values)
        remaining = np.arange(values.size, 0, -1)
        values[order] = np.minimum(np.maximum.accumulate(remaining * values[order]), 1.0)
    for place, value in zip(places, values, strict=True):
        result[place] = float(value)
    return result
