"""Attrition from counts: how many index dates and persons stand behind each combination of failed rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.config.cohort import Rule

#: Stands for "failed no rule" where the bit of the first failed rule is meant; above every rule's bit.
PAST = 1 << 62


@dataclass(frozen=True)
class Counts:
    """What the attrition is read off; arrays of int64, one group of arrays for index dates and one for persons.

    Attributes:
        mask, unknown_mask, records: index dates by their failed and their unknown rules.
        furthest: the bit of the rule that removed the last of a person's index dates; ``PAST`` if one is eligible.
        unknown: rules that were unknown for one of the person's index dates when it reached them.
        alone: rules that are all that one of the person's index dates failed.
        persons: persons with this furthest, unknown and alone.
    """

    mask: np.ndarray
    unknown_mask: np.ndarray
    records: np.ndarray
    furthest: np.ndarray
    unknown: np.ndarray
    alone: np.ndarray
    persons: np.ndarray

    @classmethod
    def of_single(cls, mask: np.ndarray, unknown_mask: np.ndarray, records: np.ndarray) -> Counts:
        """Counts when every person has one index date, so that index dates and persons are the same."""
        first = first_failed(mask)
        reached = unknown_mask & (first | (first - 1))
        return cls(mask, unknown_mask, records, first, reached, np.where(mask == first, mask, 0), records)

    @classmethod
    def of_rows(cls, mask: np.ndarray, unknown_mask: np.ndarray, person: np.ndarray, persons: int) -> Counts:
        """Counts of single rows; ``person`` numbers the person of each from 0 to ``persons`` - 1."""
        if persons == len(mask):
            return cls.of_single(*combinations(mask, unknown_mask))
        first = first_failed(mask)
        furthest, unknown, alone = (np.zeros(persons, dtype=np.int64) for _ in range(3))
        np.maximum.at(furthest, person, first)
        np.bitwise_or.at(unknown, person, unknown_mask & (first | (first - 1)))
        np.bitwise_or.at(alone, person, np.where(mask == first, mask, 0))
        ones = np.ones(persons, dtype=np.int64)
        return cls(*combinations(mask, unknown_mask), furthest, unknown, alone, ones)


def combinations(
    mask: np.ndarray, unknown_mask: np.ndarray, records: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct pairs of masks and how many rows (or ``records``) each stands for."""
    import pyarrow as pa

    ones = np.ones(len(mask), dtype=np.int64) if records is None else records
    table = pa.table({"mask": mask, "unknown_mask": unknown_mask, "records": ones})
    counts = table.group_by(["mask", "unknown_mask"], use_threads=False).aggregate([("records", "sum")])
    found = (counts[name].to_numpy() for name in ("mask", "unknown_mask", "records_sum"))
    first, second, third = (values.astype(np.int64, copy=False) for values in found)
    return first, second, third


def first_failed(mask: np.ndarray) -> np.ndarray:
    """The bit of the first failed rule, ``PAST`` where none failed."""
    return np.where(mask == 0, PAST, mask & -mask)


def attrition(rules: tuple[Rule, ...], counts: Counts) -> pd.DataFrame:
    """One row per rule, as :class:`.result.Cohort` describes.

    ``share`` is the Shapley value of the rule in who is excluded: an index date that fails k rules counts
    1/k for each, so it does not depend on the order.
    """
    failing = np.bitwise_count(counts.mask.astype(np.uint64)).astype(np.int64)
    excluded = int(counts.records[counts.mask != 0].sum())
    first = first_failed(counts.mask)
    outside = counts.furthest != PAST
    remaining, remaining_records = int(counts.persons.sum()), int(counts.records.sum())
    steps = []
    for rule in rules:
        fails = (counts.mask & rule.bit) != 0
        now = int(counts.persons[counts.furthest > rule.bit].sum())
        now_records = int(counts.records[first > rule.bit].sum())
        # Dropping only this rule returns those who fail nothing else and are not in by another journey.
        gained = outside & ((counts.alone & rule.bit) != 0)
        steps.append(
            {
                "order": rule.order,
                "criterion": rule.name,
                "type": rule.side,
                "operator": rule.operator,
                "value": _shown(rule.value),
                "removed": remaining - now,
                "remaining": now,
                "unknown": int(counts.persons[(counts.unknown & rule.bit) != 0].sum()),
                "marginal_gain": int(counts.persons[gained].sum()),
                "share": float((counts.records[fails] / failing[fails]).sum() / excluded)
                if excluded
                else 0.0,
                "on_unknown": rule.on_unknown,
                "description": rule.description,
                "removed_records": remaining_records - now_records,
                "remaining_records": now_records,
            }
        )
        remaining, remaining_records = now, now_records
    return pd.DataFrame(steps)


def _shown(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values)
