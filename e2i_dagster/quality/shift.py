"""Distribution shift between loads: each part against what it was before, or against the part before it.

A profile is counts only: of a category column the rows of each value, of a numeric column the rows between
its deciles and of each frequent value. Values of a vocabulary stand in it as they are, other categories
as their digest. Shift is the population stability index over those bins (an empty cell is a bin of its own),
less what it is on average between two samples of one distribution, (bins - 1) (1/n + 1/m) (Yurdakul, Statistical
Properties of Population Stability Index, 2018), so that small months do not shift by themselves. A shift is
reported and decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.binning import Bins, quantile_bins, stability_index
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.policy_files.base import PolicyModel
from e2i_dagster.quality.plausibility import category_columns
from e2i_dagster.quality.typed import TypedFrame
from e2i_dagster.tables import facts, raw_table
from e2i_dagster.tables.constraints import families

_OTHER = "(other)"
_DECILES = 10


class ColumnProfile(PolicyModel):
    """Rows of one column in one part: by value (``values``), or by number; ``empty`` cells apart.

    Numbers: rows between ``edges``, then rows of each of ``points``, which are not in those.
    ``hidden``: the values are digests.
    """

    edges: tuple[float, ...] = ()
    points: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    hidden: bool = False
    counts: tuple[int, ...]
    empty: int

    @property
    def rows(self) -> int:
        """All rows of the part."""
        return sum(self.counts) + self.empty


Profile = Mapping[str, ColumnProfile]


class Shift(PolicyModel):
    """One column of one part that differs from its reference."""

    column: str
    psi: float
    reference: str
    rows: int


def profiles(
    read: TypedFrame, codes: np.ndarray, labels: Sequence[str], policy: QualityPolicy
) -> dict[str, dict[str, ColumnProfile]]:
    """Profile of every part with enough rows: label to column to counts."""
    settings = policy.settings.shift
    parts = _parts(codes, labels)
    wanted = {label: rows for label, rows in parts.items() if len(rows) >= settings.min_rows}
    found: dict[str, dict[str, ColumnProfile]] = {label: {} for label in wanted}
    for name in _columns(read) if wanted else ():
        cells = _cells(read, name, policy)
        for label, rows in wanted.items():
            own = cells.taken(rows)
            if own.filled:
                found[label][name] = own.profile(settings.max_values)
    return found


def shifts(
    read: TypedFrame,
    codes: np.ndarray,
    labels: Sequence[str],
    own: Mapping[str, Profile],
    before: Mapping[str, Profile],
    policy: QualityPolicy,
) -> dict[str, list[Shift]]:
    """Columns of each part whose distribution differs from the part's reference.

    Args:
        read, codes, labels: the rows and their parts.
        own: :func:`profiles` of the rows.
        before: profiles of the previous data version of each part; a part without one is compared with
            the newest earlier part (previous or of this load).
        policy: limits.
    """
    parts = _parts(codes, labels)
    references = {label: _reference(label, own, before) for label in own}
    found: dict[str, list[Shift]] = {}
    compared = {
        name for label, (reference, _) in references.items() for name in own[label] if name in reference
    }
    for name in _columns(read):
        if name not in compared:
            continue
        cells = _cells(read, name, policy)
        for label, (reference, of) in references.items():
            if name not in own[label] or name not in reference:
                continue
            past = reference[name]
            here = cells.taken(parts[label]).counted(past)
            psi = excess_index(np.asarray([*here.counts, here.empty]), np.asarray([*past.counts, past.empty]))
            if psi > policy.settings.shift.max_psi:
                found.setdefault(label, []).append(Shift(column=name, psi=psi, reference=of, rows=here.rows))
    return found


def excess_index(here: np.ndarray, past: np.ndarray) -> float:
    """Stability index of two vectors of counts over the same bins, less its mean under no shift; at least 0."""
    used = int(((here + past) > 0).sum())
    return max(0.0, stability_index(past, here) - (used - 1) * (1 / here.sum() + 1 / past.sum()))


def _reference(label: str, own: Mapping[str, Profile], before: Mapping[str, Profile]) -> tuple[Profile, str]:
    if label in before:
        return before[label], "the previous data version"
    earlier = max((other for other in {*own, *before} if other < label), default=None)
    if earlier is None:
        return {}, ""
    return (own[earlier] if earlier in own else before[earlier]), f"partition {earlier}"


def _columns(read: TypedFrame) -> list[str]:
    kinds = families(read.table)
    numbers = [name for name, kind in kinds.items() if kind in ("number", "integer")]
    flags = [name for name, kind in kinds.items() if kind == "boolean"]
    return [name for name in (*numbers, *flags, *category_columns(read)) if name not in read.absent]


def _parts(codes: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Positions of the rows of each part."""
    order = np.argsort(codes, kind="stable")
    borders = np.searchsorted(codes[order], np.arange(len(labels) + 1))
    return {label: order[borders[code] : borders[code + 1]] for code, label in enumerate(labels)}


@dataclass(frozen=True)
class _Numbers:
    """Cells of a numeric column; empty and infinite ones are NaN."""

    values: np.ndarray

    def taken(self, rows: np.ndarray) -> _Numbers:
        return _Numbers(self.values[rows])

    @property
    def filled(self) -> int:
        return int(np.count_nonzero(~np.isnan(self.values)))

    def profile(self, max_values: int) -> ColumnProfile:
        del max_values  # deciles do not grow with the values
        bins = quantile_bins(self.values[~np.isnan(self.values)], _DECILES)
        return self.counted(ColumnProfile(edges=bins.edges, points=bins.points, counts=(), empty=0))

    def counted(self, bins: ColumnProfile) -> ColumnProfile:
        numbers = self.values[~np.isnan(self.values)]
        counts = Bins(bins.edges, bins.points).counts(numbers)
        empty = len(self.values) - len(numbers)
        return bins.model_copy(update={"counts": tuple(counts.tolist()), "empty": empty})


@dataclass(frozen=True)
class _Categories:
    """Cells of a category column as numbers of their names, -1 where empty."""

    numbers: np.ndarray
    names: tuple[str, ...]
    accepted: tuple[str, ...]

    def taken(self, rows: np.ndarray) -> _Categories:
        return _Categories(self.numbers[rows], self.names, self.accepted)

    @property
    def filled(self) -> int:
        return int(np.count_nonzero(self.numbers >= 0))

    def profile(self, max_values: int) -> ColumnProfile:
        if self.accepted:
            return self.counted(ColumnProfile(values=(*self.accepted, _OTHER), counts=(), empty=0))
        sizes = np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.names))
        common = np.argsort(-sizes, kind="stable")[:max_values]
        values = sorted(self.names[number] for number in common if sizes[number])
        return self.counted(ColumnProfile(values=(*values, _OTHER), hidden=True, counts=(), empty=0))

    def counted(self, bins: ColumnProfile) -> ColumnProfile:
        place = pd.Index(bins.values).get_indexer(pd.Index(self.names))
        place = np.where(place < 0, len(bins.values) - 1, place)
        known = self.numbers[self.numbers >= 0]
        counts = np.bincount(place[known], minlength=len(bins.values))
        empty = len(self.numbers) - len(known)
        return bins.model_copy(update={"counts": tuple(counts.tolist()), "empty": empty})


def _cells(read: TypedFrame, name: str, policy: QualityPolicy) -> _Numbers | _Categories:
    column, kind = read.frame[name], families(read.table)[name]
    if kind in ("number", "integer"):
        values = column.to_numpy(dtype="float64", na_value=np.nan)
        return _Numbers(np.where(np.isfinite(values), values, np.nan))
    vocabulary = facts(raw_table(read.table).columns[name]).vocabulary
    accepted = policy.vocabulary(vocabulary) if vocabulary else ()
    numbers, values = pd.factorize(column)
    names = tuple(str(value) for value in values)
    if kind == "boolean":
        accepted = ("False", "True")
    elif not accepted:
        names = tuple(hashlib.sha256(name.encode()).hexdigest()[:12] for name in names)
    return _Categories(np.asarray(numbers), names, accepted)
