"""Suppression of small cells in an attrition, so that none can be found by subtraction.

The shown chain is ``start - removed = remaining - removed = ...``. A removed count of 1 to 10 is hidden
together with the remaining count behind it and the removed count next to it (the complement), so that
only the sum of the hidden cells is known, and that sum is 11 or more. A small remaining count hides
everything from the step that made it to the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Counts of 1 to 10 patients are not shown (CMS cell size policy: below 11).
SMALLEST_SHOWN = 11
HIDDEN = "suppressed"
SMALL = "<11"


@dataclass(frozen=True)
class ShownStep:
    """One step of an attrition with counts as text: digits, ``<11`` or ``suppressed``."""

    order: int
    criterion: str
    side: str
    description: str
    removed: str
    remaining: str
    unknown: str
    marginal_gain: str
    on_unknown: str


def is_small(count: int) -> bool:
    """True for 1 to 10. Zero is shown."""
    return 0 < count < SMALLEST_SHOWN


def shown_count(count: int) -> str:
    """A count that stands alone: the number, or ``<11``."""
    return SMALL if is_small(count) else f"{count:,}"


def shown_partition(counts: Mapping[str, int], *, total_shown: bool = True) -> dict[str, str]:
    """Disjoint groups as they may be shown, largest first.

    Args:
        counts: persons by group. total_shown: whether their sum is shown beside them; then hidden groups
            are at least two and hold 11 or more persons together, so that none can be found by subtraction.
    """
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    hidden = [name for name, count in ordered.items() if is_small(count)]
    if total_shown and hidden:
        spare = [name for name in ordered if ordered[name] >= SMALLEST_SHOWN]
        while spare and (len(hidden) < 2 or sum(ordered[name] for name in hidden) < SMALLEST_SHOWN):
            hidden.append(spare.pop())
    return {name: HIDDEN if name in hidden else f"{count:,}" for name, count in ordered.items()}


def shown_steps(attrition: pd.DataFrame, start: int) -> tuple[ShownStep, ...]:
    """``attrition`` (columns as in ``Cohort.attrition``) as it may be shown; ``start`` persons came in."""
    removed = attrition["removed"].to_numpy(dtype=np.int64)
    remaining = attrition["remaining"].to_numpy(dtype=np.int64)
    hide_removed, hide_remaining = suppressed(removed, start)
    steps = []
    for k, row in enumerate(attrition.to_dict("records")):
        hidden = bool(hide_removed[k])
        steps.append(
            ShownStep(
                order=int(row["order"]),
                criterion=str(row["criterion"]),
                side=str(row["type"]),
                description=str(row["description"]),
                removed=HIDDEN if hidden else f"{removed[k]:,}",
                remaining=HIDDEN if hide_remaining[k] else f"{remaining[k]:,}",
                unknown=HIDDEN if hidden else shown_count(int(row["unknown"])),
                marginal_gain=HIDDEN if hidden else shown_count(int(row["marginal_gain"])),
                on_unknown=str(row["on_unknown"]),
            )
        )
    return tuple(steps)


def suppressed(removed: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Which removed and which remaining counts of a chain must be hidden.

    Args:
        removed: persons removed by each step. start: persons before the first step.

    Returns:
        Two boolean arrays of the length of ``removed``. The last remaining count is the final cell.
    """
    n = len(removed)
    hide_removed = np.zeros(n, dtype=bool)
    hide_remaining = np.zeros(n, dtype=bool)
    if n == 0:
        return hide_removed, hide_remaining
    remaining = start - np.cumsum(removed)
    # From the first small remaining count on, everything up to the final cell is one hidden run.
    tail = next((k for k in range(n) if is_small(int(remaining[k]))), n)
    if tail < n:
        begin = tail
        while begin > 0 and not _safe(np.append(removed[begin:], remaining[-1])):
            begin -= 1
        hide_removed[begin:] = True
        hide_remaining[-1] = True
    for k in range(tail):
        if not is_small(int(removed[k])):
            continue
        last = k
        while last + 1 < tail and not _safe(removed[k : last + 1]):
            last += 1
        begin = k
        while begin > 0 and not _safe(removed[begin : last + 1]):
            begin -= 1
        hide_removed[begin : last + 1] = True
        if last == n - 1 and not _safe(removed[begin:]):
            hide_remaining[-1] = True  # no other step can hide it: the final count does
    # Between two hidden removed counts the remaining count is hidden: adjacent runs become one.
    hide_remaining[:-1] = hide_removed[:-1] & hide_removed[1:]
    return hide_removed, hide_remaining


def _safe(cells: np.ndarray) -> bool:
    """At least two cells with somebody in them, and 11 or more persons together."""
    return int(np.count_nonzero(cells)) > 1 and int(cells.sum()) >= SMALLEST_SHOWN
