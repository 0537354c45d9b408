"""Rows of different patients with the same, or nearly the same, features in two splits.

A pair of rows is *identifying* when independent patients would hardly ever agree so well. With N rows and
p_j the share of rows that agree with the row in column j, an exact copy is one when

    N^2 * product of p_j  <  0.01        (fewer than one such pair by chance in a hundred frames)

For a near copy p_j is the share of rows that are at least as close, which is uniform for strangers; k of them
are combined as by Fisher (Statistical Methods for Research Workers, 1925), and the choice of the columns that
may differ is paid for:

    N^2 * C(columns, differing) * P(chi-square with 2k degrees > -2 * sum of log p_j)  <  0.01

Columns that move together (by rank, or in being empty) count once, with the rarest of them (in a near copy
times their number), because features of one event agree together. Rows that agree in common values only
(patients without any event) count by their number: more than there would be if the same rows had been dealt to the
splits at random.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.quality.proxies import as_numbers, hashable

_SEED = 20240229
_CHANCE = 0.01
_TOGETHER = 0.3
_SAMPLE = 5_000
_BLOCKS = 4
_LARGEST_BUCKET = 8
_MOST_PAIRS = 400_000
#: Near-duplicates are searched on grids this wide, in standard deviations; the candidates are then compared.
_GRID = 0.25
_FEWEST_COLUMNS = 4
#: A number with more values than this is compared within a tolerance.
_CONTINUOUS = 64


@dataclass(frozen=True)
class Copies:
    """Rows of ``second`` that repeat a row of ``first`` under another patient."""

    first: str
    second: str
    rows: int
    near: bool
    by_chance: float


@dataclass(frozen=True)
class _Table:
    """The rows of all splits as arrays.

    ``codes`` (rows x columns) number equal values, 0 is empty; ``scaled`` has continuous columns in standard
    deviations and NaN elsewhere; ``cluster`` says which columns move together.
    """

    codes: np.ndarray
    scaled: np.ndarray
    continuous: np.ndarray
    cluster: np.ndarray
    split: np.ndarray
    person: np.ndarray


def find_copies(
    parts: dict[str, pd.DataFrame],
    *,
    id_column: str,
    columns: list[str],
    near_share: float,
    tolerance: float,
) -> list[Copies]:
    """Exact and near copies over all pairs of ``parts``.

    Args:
        parts: split name to frame with ``id_column`` and ``columns``.
        columns: features that are compared.
        near_share: share of the columns that must agree in a near copy.
        tolerance: difference, in standard deviations, up to which continuous values agree.
    """
    if len(parts) < 2 or not columns:
        return []
    table = _table(parts, id_column, columns)
    if not table.codes.size:
        return []
    found: list[Copies] = []
    names = list(parts)
    prints = _hash(table.codes)
    for first, second in itertools.combinations(range(len(names)), 2):
        rows, chance = _exact(table, prints, first, second)
        if rows:
            found.append(Copies(names[first], names[second], rows, False, chance))
    if table.codes.shape[1] < _FEWEST_COLUMNS:
        return found
    left, right = _near_pairs(table, near_share, tolerance)
    for first, second in itertools.combinations(range(len(names)), 2):
        over = (table.split[left] == first) & (table.split[right] == second)
        over |= (table.split[left] == second) & (table.split[right] == first)
        if over.sum() > 1:
            later = np.where(table.split[left] == second, left, right)[over]
            found.append(Copies(names[first], names[second], len(np.unique(later)), True, 0.0))
    return found


def _table(parts: dict[str, pd.DataFrame], id_column: str, columns: list[str]) -> _Table:
    rows = pd.concat([part[[id_column, *columns]] for part in parts.values()], ignore_index=True)
    split = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    codes, scaled, continuous, ranks, empty = [], [], [], [], []
    sample = np.random.default_rng(_SEED).permutation(len(rows))[:_SAMPLE]
    for name in columns:
        numbered = np.asarray(pd.factorize(hashable(rows[name]), use_na_sentinel=True)[0]) + 1
        if numbered.size and (numbered == numbered[0]).all():
            continue
        number = as_numbers(rows[name])
        spread = float(np.nanstd(number)) if number is not None and np.isfinite(number).any() else 0.0
        is_continuous = spread > 0 and np.isfinite(spread) and numbered.max() > _CONTINUOUS
        codes.append(numbered)
        continuous.append(is_continuous)
        scaled.append(number / spread if is_continuous and number is not None else np.full(len(rows), np.nan))
        measured = numbered if number is None else number
        ranks.append(pd.Series(measured[sample]).rank(na_option="top").to_numpy())
        empty.append((numbered[sample] == 0).astype(float))
    if not codes:
        none = np.empty((len(rows), 0))
        return _Table(none.astype(np.int64), none, np.empty(0, bool), np.empty(0, int), split, split)
    person = np.asarray(pd.factorize(hashable(rows[id_column]))[0])
    return _Table(
        np.column_stack(codes).astype(np.int64),
        np.column_stack(scaled),
        np.array(continuous, dtype=bool),
        _clusters(np.column_stack(ranks), np.column_stack(empty)),
        split,
        person,
    )


def _clusters(ranks: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Number of the cluster of each column: connected by rank correlation or by being empty together."""
    from scipy.sparse.csgraph import connected_components

    with np.errstate(invalid="ignore", divide="ignore"):
        together = [np.nan_to_num(np.abs(np.corrcoef(values, rowvar=False))) for values in (ranks, empty)]
    joined = np.atleast_2d(np.maximum(*together)) > _TOGETHER
    return connected_components(joined, directed=False)[1]


def _hash(codes: np.ndarray) -> np.ndarray:
    """One 64-bit number for each row: a random linear form of its codes."""
    weights = np.random.default_rng(_SEED).integers(1, 2**63, codes.shape[1], dtype=np.uint64) | np.uint64(1)
    with np.errstate(over="ignore"):
        return (codes.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)


def _exact(table: _Table, prints: np.ndarray, first: int, second: int) -> tuple[int, float]:
    """Rows of split ``second`` that repeat a row of ``first`` beyond chance, and what chance explains."""
    inside = [table.split == first, table.split == second]
    both = np.intersect1d(table.person[inside[0]], table.person[inside[1]])
    other = ~np.isin(table.person, both)
    left, right = (np.flatnonzero(mask & other) for mask in inside)
    if not len(left) or not len(right):
        return 0, 0.0
    hits = right[np.isin(prints[right], prints[left])]
    certain = int(_identifying(table, hits).sum())
    sizes = np.unique(prints[np.concatenate([left, right])], return_counts=True)[1]
    expected, deviation = _by_chance(sizes[sizes > 1], len(left), len(right))
    beyond = len(hits) > expected + 4 * np.sqrt(deviation**2 + 1)
    return (len(hits), expected) if beyond else (certain, 0.0)


def _by_chance(sizes: np.ndarray, first: int, second: int) -> tuple[float, float]:
    """How many of the ``second`` rows repeat one of the ``first`` when rows are dealt at random, and the deviation.

    ``sizes`` are those of the groups of equal rows. Of a group of ``m`` among ``N`` rows the number ``K`` in the
    first split is hypergeometric; the others repeat a row of it unless ``K`` is 0. Groups are few among the rows, so
    their variances add up.
    """
    from scipy.stats import hypergeom

    rows = first + second
    share = second / rows
    nobody = hypergeom.pmf(0, rows, sizes, first)
    mean = sizes * share - sizes * nobody
    spread = sizes * share * (1 - share) * (rows - sizes) / max(rows - 1, 1)
    variance = spread + (sizes * share) ** 2 - sizes**2 * nobody - mean**2
    return float(mean.sum()), float(np.sqrt(np.maximum(variance, 0).sum()))


def _identifying(table: _Table, rows: np.ndarray) -> np.ndarray:
    """Which of ``rows`` no other patient would equal by chance."""
    n = len(table.codes)
    share = np.empty((len(rows), table.codes.shape[1]))
    for position in range(table.codes.shape[1]):
        counts = np.bincount(table.codes[:, position])
        # The pair itself is no evidence of how common the value is; a continuous column hardly repeats one.
        collisions = float((counts * (counts - 1.0)).sum()) / n**2
        floor = max(min(collisions, 1 / n), 1 / n**2)
        share[:, position] = np.maximum((counts[table.codes[rows, position]] - 2) / n, floor)
    return _rarer_than_chance(table, share, n)


def _rarer_than_chance(table: _Table, share: np.ndarray, n: int) -> np.ndarray:
    logarithm = np.zeros(len(share))
    for cluster in np.unique(table.cluster):
        logarithm += np.log(share[:, table.cluster == cluster].min(axis=1))
    return 2 * np.log(n) + logarithm < np.log(_CHANCE)


def _near_pairs(table: _Table, near_share: float, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows of different patients and splits that nearly agree and are identifying.

    Columns are dealt to four blocks; rows that differ in a few columns agree on two whole blocks. Continuous
    columns are cut by two grids half a step apart, so that a small shift crosses at most one of them.
    """
    columns = table.codes.shape[1]
    dealt = np.argsort(-table.codes.max(axis=0), kind="stable")
    blocks = [dealt[start::_BLOCKS] for start in range(_BLOCKS)]
    n = len(table.codes)
    found: list[np.ndarray] = []
    for offset in (0.0, 0.5):
        grid = np.nan_to_num(np.floor(table.scaled / _GRID + offset), nan=-1e6).astype(np.int64)
        keyed = np.where(table.continuous, grid, table.codes)
        hashes = [_hash(np.where(np.isin(np.arange(columns), block), keyed, 0)) for block in blocks]
        for first, two in itertools.combinations(range(_BLOCKS), 2):
            with np.errstate(over="ignore"):
                found.append(_bucket_pairs(hashes[first] + hashes[two], table))
    joined = np.unique(np.concatenate(found))[:_MOST_PAIRS]
    left, right = joined // n, joined % n
    same = table.codes[left] == table.codes[right]
    exact = same.all(axis=1)
    with np.errstate(invalid="ignore"):
        same |= np.abs(table.scaled[left] - table.scaled[right]) <= tolerance
    close = (same.mean(axis=1) >= near_share) & ~exact
    left, right, same = left[close], right[close], same[close]
    if not len(left):
        return left, right
    certain = _closer_than_chance(table, left, right, same)
    return left[certain], right[certain]


def _closer_than_chance(table: _Table, left: np.ndarray, right: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Which pairs agree so well in the columns ``same`` that no strangers would."""
    from scipy.special import gammaln
    from scipy.stats import chi2

    n, columns = table.codes.shape
    share = np.ones(same.shape)
    for position in range(columns):
        counts = np.bincount(table.codes[:, position])
        rare = counts[table.codes[left, position]] / n
        if table.continuous[position]:
            ordered = np.sort(table.scaled[:, position])
            value = table.scaled[left, position]
            apart = np.abs(value - table.scaled[right, position])
            within = np.searchsorted(ordered, value + apart, side="right") - np.searchsorted(
                ordered, value - apart
            )
            rare = np.where(np.isfinite(value), within / n, rare)
        share[:, position] = np.where(same[:, position], np.clip(rare, 1 / n, 1), 1)
    logarithm, combined = np.zeros(len(left)), np.zeros(len(left))
    for cluster in np.unique(table.cluster):
        inside = table.cluster == cluster
        rarest = np.minimum(share[:, inside].min(axis=1) * inside.sum(), 1)
        logarithm += np.log(rarest)
        combined += same[:, inside].any(axis=1)
    differing = columns - same.sum(axis=1)
    choices = gammaln(columns + 1) - gammaln(differing + 1) - gammaln(columns - differing + 1)
    chance = chi2.logsf(-2 * logarithm, 2 * np.maximum(combined, 1))
    return 2 * np.log(n) + choices + chance < np.log(_CHANCE)


def _bucket_pairs(key: np.ndarray, table: _Table) -> np.ndarray:
    """Pairs of rows with the same key, as ``smaller * n + larger``; too full buckets identify nobody."""
    n = len(key)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, n])
    small = np.repeat((sizes > 1) & (sizes <= _LARGEST_BUCKET), sizes)
    found = []
    for step in range(1, _LARGEST_BUCKET):
        near = np.flatnonzero(small[:-step] & (ordered[step:] == ordered[:-step])) if n > step else []
        first, two = order[near], order[np.asarray(near, dtype=int) + step]
        apart = (table.split[first] != table.split[two]) & (table.person[first] != table.person[two])
        low, high = np.minimum(first, two)[apart], np.maximum(first, two)[apart]
        found.append(low * n + high)
    return np.concatenate(found)
