"""Which patient is in which split: by keyed hash inside strata, or by index date."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError

SPLITS = ("train", "validation", "test", "holdout")
#: A patient whose index date lies in the gap between two splits in time.
UNASSIGNED = "unassigned"
#: Train, validation, test, holdout: the prior platform's ratios.
RATIOS = (0.60, 0.20, 0.15, 0.05)
Ratios = tuple[float, float, float, float]


def assign_splits(
    ids: Sequence[str] | pd.Series,
    *,
    salt: str,
    strata: Sequence[Any] | pd.Series | None = None,
    index_dates: Sequence[Any] | pd.Series | None = None,
    existing: pd.DataFrame | None = None,
    ratios: Ratios = RATIOS,
    gap_days: int = 0,
) -> pd.DataFrame:
    """Assign patients to train, validation, test and holdout.

    Without ``index_dates`` new patients are ranked by a keyed hash inside their stratum and fill the
    splits that are furthest below their share. With ``index_dates`` the splits follow each other in time:
    train ends before validation begins, and so on; patients less than ``gap_days`` before the next split
    are ``unassigned``.

    Args:
        ids: patient ids, unique and not null. Their order does not matter.
        salt: key of the hash. Configuration, not a secret.
        strata: stratum of each id, in the same order (null is a stratum of its own).
        index_dates: index date of each id, in the same order; switches to splits in time.
        existing: patient_id, split of patients that were assigned before. They never move.
        ratios: shares in the order of ``SPLITS``.

    Returns:
        patient_id, split: one row per id, in the order of ``ids``.

    Raises:
        InputError: null or repeated ids, lengths that differ, unknown splits in ``existing``, null dates.
    """
    keys = _ids(ids)
    n = len(keys)
    if min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-9:
        raise InputError(
            f"The four ratios must be above 0 and add up to 1; they add up to {sum(ratios):g}.",
            field="ratios",
            value=f"{sum(ratios):g}",
            remedy="Make them add up to 1.",
        )
    split = _existing_splits(keys, existing)
    new = np.flatnonzero(split < 0)
    if index_dates is not None:
        if strata is not None:
            raise InputError(
                "Splits in time have no strata.",
                field="strata",
                remedy="Give strata or index_dates, not both.",
            )
        split = _in_time(split, _dates(index_dates, n), ratios, gap_days)
    elif len(new):
        stratum = _strata(strata, n)
        ranks = keyed_hash(keys, salt)
        order = np.lexsort((keys.astype(str), ranks))
        carried = np.zeros(len(SPLITS))
        for value in pd.unique(stratum[np.argsort(stratum, kind="stable")]):
            rows = order[stratum[order] == value]
            fresh = rows[split[rows] < 0]
            have = np.bincount(split[rows][split[rows] >= 0], minlength=len(SPLITS) + 1)[: len(SPLITS)]
            counts, carried = _fill(np.array(ratios) * len(rows) - have, len(fresh), carried)
            split[fresh] = np.repeat(np.arange(len(SPLITS)), counts)
    names = np.array([*SPLITS, UNASSIGNED], dtype=object)
    return pd.DataFrame(
        {
            "patient_id": pd.array(keys, dtype="string[pyarrow]"),
            "split": pd.array(names[split], dtype="string[pyarrow]"),
        }
    )


def keyed_hash(ids: np.ndarray, salt: str) -> np.ndarray:
    """SipHash-2-4 of each id under a key derived from ``salt`` (uint64), the same on every machine."""
    key = hashlib.sha256(salt.encode()).hexdigest()[:16]
    return pd.util.hash_array(ids, hash_key=key, categorize=False)


def _ids(ids: Sequence[str] | pd.Series) -> np.ndarray:
    series = pd.Series(ids, dtype=object) if not isinstance(ids, pd.Series) else ids
    if series.isna().any():
        raise InputError(
            f"{int(series.isna().sum()):,} patient id(s) are null.",
            field="patient_id",
            remedy="Give each row its patient.",
        )
    if series.duplicated().any():
        raise InputError(
            f"{int(series.duplicated().sum()):,} patient id(s) occur twice.",
            field="patient_id",
            remedy="Keep one row of each patient.",
        )
    return series.astype(str).to_numpy(dtype=object)


def _existing_splits(keys: np.ndarray, existing: pd.DataFrame | None) -> np.ndarray:
    """Position of each id's split in ``SPLITS`` (4 for unassigned), -1 for new ids."""
    if existing is None or not len(existing):
        return np.full(len(keys), -1)
    names = [*SPLITS, UNASSIGNED]
    unknown = set(existing["split"].unique()) - set(names)
    if unknown:
        raise InputError(
            f"Unknown split(s) in the registry: {sorted(map(str, unknown))}.",
            field="split",
            remedy=f"Known: {', '.join(names)}.",
        )
    if existing["patient_id"].duplicated().any():
        raise InputError(
            "The registry has a patient twice.", field="patient_id", remedy="Keep one row of each patient."
        )
    codes = pd.Categorical(existing["split"].astype(str), categories=names).codes
    registry = pd.Series(codes.astype(int), index=existing["patient_id"].astype(str).to_numpy(dtype=object))
    return registry.reindex(keys).fillna(-1).to_numpy(dtype=int)


def _strata(strata: Sequence[Any] | pd.Series | None, n: int) -> np.ndarray:
    if strata is None:
        return np.zeros(n, dtype=int)
    series = pd.Series(strata) if not isinstance(strata, pd.Series) else strata
    if len(series) != n:
        raise InputError(
            f"{len(series):,} strata for {n:,} patients.",
            field="strata",
            value=len(series),
            remedy="Give one for each.",
        )
    texts = series.astype("string").fillna("\uffff")  # null sorts last, as a stratum of its own
    return pd.factorize(texts.astype(str), sort=True)[0]


def _dates(index_dates: Sequence[Any] | pd.Series, n: int) -> np.ndarray:
    dates = pd.to_datetime(pd.Series(index_dates).reset_index(drop=True))
    if len(dates) != n:
        raise InputError(
            f"{len(dates):,} index dates for {n:,} patients.",
            field="index_dates",
            value=len(dates),
            remedy="Give one for each.",
        )
    if dates.isna().any():
        raise InputError(
            f"{int(dates.isna().sum()):,} index date(s) are null, and splits in time need them all.",
            field="index_dates",
            remedy="Give each patient one.",
        )
    return dates.to_numpy(dtype="datetime64[us]").astype("datetime64[D]")


def _fill(deficits: np.ndarray, new: int, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many new rows each split takes, largest deficit first.

    ``deficits`` are rows below (or above) the share that the stratum will have; they add up to ``new``
    (or more, when unassigned rows are in the stratum). ``carried`` is what rounding owes each split from
    earlier strata, so that many small strata do not all round the same way.
    """
    positive = np.clip(deficits, 0, None)
    # The water level: taking `new` rows off lowers the largest deficits first, to one common level
    # (projection on the simplex: Duchi et al., ICML 2008).
    falling = np.sort(positive)[::-1]
    level = float(((np.cumsum(falling) - new) / np.arange(1, len(falling) + 1)).max())
    wanted = np.clip(positive - max(level, 0.0), 0, None)
    counts = np.floor(wanted + 1e-9).astype(int)
    left = new - int(counts.sum())
    # Each split takes at most one row above the whole part of its share.
    owed = wanted - counts + carried
    extra = np.argsort(-owed, kind="stable")[:left]
    counts[extra] += 1
    return counts, carried + wanted - counts


def _in_time(split: np.ndarray, dates: np.ndarray, ratios: Ratios, gap_days: int) -> np.ndarray:
    """Splits by date. A day is never divided: all index dates of one day are in the same split."""
    split = split.copy()
    starts = _boundaries(split, dates, ratios, gap_days)
    new = split < 0
    position = np.searchsorted(starts, dates, side="right")
    following = np.append(starts, np.datetime64("9999-12-31", "D"))[position]
    in_gap = (following - dates).astype("int64") <= gap_days
    split[new] = np.where(in_gap, len(SPLITS), position)[new]
    return split


def _boundaries(split: np.ndarray, dates: np.ndarray, ratios: Ratios, gap_days: int) -> np.ndarray:
    """First day of validation, test and holdout, in accord with what was assigned before."""
    never = np.datetime64("9999-12-31", "D")
    ordered = np.sort(dates)
    assigned = (split >= 0) & (split < len(SPLITS))
    starts = np.full(len(ratios) - 1, never)
    for k, share in enumerate(np.cumsum(ratios)[:-1], start=1):
        later, earlier = dates[assigned & (split >= k)], dates[assigned & (split < k)]
        if len(later):
            starts[k - 1] = later.min()
        elif len(ordered):
            place = min(int(np.ceil(share * len(ordered) - 1e-9)), len(ordered) - 1)
            starts[k - 1] = ordered[place]
            if len(earlier):
                starts[k - 1] = max(starts[k - 1], earlier.max() + gap_days + 1)
    return np.maximum.accumulate(starts)
