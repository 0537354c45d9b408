"""Allocation ratios as people write them: ``[2, 1]``, ``"2:1"``, ``{a: 2, b: 1}`` or shares that sum to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Shares may miss 1 by rounding: 0.333 three times.
RATIO_TOLERANCE = 0.001


def allocation_shares(
    value: Any, arms: Sequence[str] | None = None, *, field: str = "ratio"
) -> dict[str, float]:
    """Share of each arm, scaled to sum to exactly 1.

    Args:
        value: shares (sum 1 +- 0.001) or whole parts, by arm or in the order of ``arms``; or text as ``"2:1"``.
        arms: names of the arms; by default those of ``value``, or ``arm_1``, ``arm_2``, ...
        field: what the message calls the value.

    Raises:
        ValueError: naming ``field``, the arm and the value that is wrong.
    """
    if isinstance(value, str):
        parts: Any = [part.strip() for part in value.split(":")]
    elif isinstance(value, Mapping):
        parts = {str(arm): part for arm, part in value.items()}
    elif isinstance(value, (int, float)) or not hasattr(value, "__iter__"):
        raise ValueError(
            f'{field}: {value!r} is one value. Write "2:1" in quotes (YAML reads 2:1 without them as 121), [2, 1], '
            "or shares as [0.6667, 0.3333]."
        )
    else:
        parts = list(value)
    if isinstance(parts, dict):
        named = parts
        if arms is not None and set(arms) != set(named):
            raise ValueError(
                f"{field}: it names the arms {', '.join(named)}, the arms are {', '.join(arms)}."
            )
        names = list(named) if arms is None else list(arms)
        parts = [named[name] for name in names]
    else:
        names = [f"arm_{k}" for k in range(1, len(parts) + 1)] if arms is None else [str(arm) for arm in arms]
        if len(names) != len(parts):
            raise ValueError(f"{field}: {len(parts)} values for {len(names)} arms ({', '.join(names)}).")
    if len(names) < 2:
        raise ValueError(f"{field}: {len(names)} arm(s); an experiment has at least two.")
    numbers = [_number(part, name, field) for part, name in zip(parts, names, strict=True)]
    total = sum(numbers)
    if abs(total - 1.0) > RATIO_TOLERANCE + 1e-12 and any(number != math.floor(number) for number in numbers):
        shown = ", ".join(f"{name} {number:g}" for name, number in zip(names, numbers, strict=True))
        raise ValueError(
            f"{field}: {shown} sums to {total:g}, not to 1, and the values are not whole numbers. Give shares that "
            "sum to 1, or whole parts as 2:1."
        )
    return {name: number / total for name, number in zip(names, numbers, strict=True)}


def _number(part: Any, arm: str, field: str) -> float:
    try:
        number = math.nan if isinstance(part, bool) or part is None else float(part)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{field}: arm {arm} has {part!r}, which is not a number.")
    if number <= 0:
        raise ValueError(f"{field}: arm {arm} has {number:g}; every arm's part is above 0.")
    return number
