"""Whether an assignment keeps the rules of splits: ratios, one split per patient, order in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import HIDDEN, is_small, shown_count
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.splits.assign import RATIOS, SPLITS, UNASSIGNED, Ratios

#: Shares may differ by 2 points (the prior platform's tolerance) ...
TOLERANCE = 0.02
#: ... from this many patients on; below, by one row per stratum.
SHARES_JUDGED_FROM = 500


class SplitCheck(BaseModel):
    """One rule: passed, failed, or skipped with the reason in ``detail``."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str


class SplitReport(BaseModel):
    """The checks of one assignment, and the sizes of its splits."""

    model_config = ConfigDict(frozen=True)

    patients: int
    counts: dict[str, int]
    checks: tuple[SplitCheck, ...]

    @property
    def violations(self) -> tuple[str, ...]:
        """What is wrong, one sentence per failed check."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if check.status == "failed")

    @property
    def passed(self) -> bool:
        return not self.violations

    def to_metadata(self) -> dict[str, Any]:
        assigned = sum(self.counts[name] for name in SPLITS)
        # A small split hides the others' figures too: their sum is shown.
        small = any(map(is_small, self.counts.values()))
        rows = [
            (
                name,
                HIDDEN if small else count,
                None if small or name == UNASSIGNED or not assigned else count / assigned,
            )
            for name, count in self.counts.items()
        ]
        checks = [(check.name, check.status, None if small else check.detail) for check in self.checks]
        return {
            "patients": shown_count(self.patients),
            "violations": len(self.violations),
            "splits": Table(("split", "patients", "share"), rows, {"share": ".3f"}),
            "checks": Table(("check", "status", "detail"), checks),
        }

    def to_record(self) -> dict[str, Any]:
        """Exact values for the ledger of the run."""
        return self.model_dump(mode="json") | {"violations": list(self.violations)}


def validate_splits(
    assignments: pd.DataFrame,
    *,
    ratios: Ratios = RATIOS,
    strata: Sequence[Any] | pd.Series | None = None,
    index_dates: Sequence[Any] | pd.Series | None = None,
    gap_days: int = 0,
) -> SplitReport:
    """Check ``assignments`` (patient_id, split).

    Args:
        strata: stratum of each row; only their number matters (the tolerance of small samples).
        index_dates: index date of each row. Given only for splits in time; without it ``temporal_order``
            is skipped.
        gap_days: days that must lie between two splits in time.

    Raises:
        InputError: a column is missing.
    """
    missing = [name for name in ("patient_id", "split") if name not in assignments.columns]
    if missing:
        raise InputError(
            f"Assignments need the columns patient_id and split; missing: {', '.join(missing)}.",
            field=missing[0],
            remedy="Add them.",
        )
    split = assignments["split"].astype("string")
    counts = {name: int((split == name).sum()) for name in (*SPLITS, UNASSIGNED)}
    return SplitReport(
        patients=int(assignments["patient_id"].nunique()),
        counts=counts,
        checks=(
            _values(split),
            _ratios(counts, ratios, 1 if strata is None else int(pd.Series(strata).nunique(dropna=False))),
            _isolation(assignments),
            _temporal_order(split, index_dates, gap_days),
        ),
    )


def _values(split: pd.Series) -> SplitCheck:
    wrong = int((~split.isin([*SPLITS, UNASSIGNED])).sum())
    if wrong:
        return SplitCheck(
            name="split_values",
            status="failed",
            detail=f"{wrong:,} row(s) have no known split; expected {', '.join(SPLITS)}",
        )
    return SplitCheck(name="split_values", status="passed", detail="every row has a known split")


def _ratios(counts: dict[str, int], ratios: Ratios, strata: int) -> SplitCheck:
    total = sum(counts[name] for name in SPLITS)
    if not total:
        return SplitCheck(name="ratios", status="failed", detail="no patient is assigned to a split")
    allowed = TOLERANCE * total if total >= SHARES_JUDGED_FROM else float(strata)
    words = (
        f"{TOLERANCE * 100:g} points" if total >= SHARES_JUDGED_FROM else f"{strata} row(s) (one per stratum)"
    )
    off = [
        f"{name} has {counts[name] / total:.1%} instead of {ratio:.0%}"
        for name, ratio in zip(SPLITS, ratios, strict=True)
        if abs(counts[name] - ratio * total) > allowed + 1e-9
    ]
    if off:
        return SplitCheck(name="ratios", status="failed", detail=f"{'; '.join(off)} (allowed: {words})")
    return SplitCheck(name="ratios", status="passed", detail=f"all shares within {words}")


def _isolation(assignments: pd.DataFrame) -> SplitCheck:
    per_patient = assignments.groupby("patient_id", observed=True)["split"].nunique(dropna=False)
    straddling = int((per_patient > 1).sum())
    repeated = int(assignments["patient_id"].duplicated().sum())
    if straddling:
        detail = f"{straddling:,} patient(s) are in more than one split"
        return SplitCheck(name="patient_isolation", status="failed", detail=detail)
    if repeated:
        detail = f"{repeated:,} row(s) repeat a patient; expected one row per patient"
        return SplitCheck(name="patient_isolation", status="failed", detail=detail)
    return SplitCheck(name="patient_isolation", status="passed", detail="each patient is in one split")


def _temporal_order(
    split: pd.Series, index_dates: Sequence[Any] | pd.Series | None, gap_days: int
) -> SplitCheck:
    name = "temporal_order"
    if index_dates is None:
        return SplitCheck(
            name=name, status="skipped", detail="splits by hash are not ordered in time (mode: hash)"
        )
    dates = pd.to_datetime(pd.Series(index_dates).reset_index(drop=True))
    dates = dates.to_numpy(dtype="datetime64[us]").astype("datetime64[D]")
    if len(dates) != len(split):
        raise InputError(
            f"{len(dates):,} index dates for {len(split):,} rows.",
            field="index_dates",
            value=len(dates),
            remedy="Give one for each.",
        )
    values = split.to_numpy(dtype=object, na_value="")
    last, last_name = None, ""
    wrong = []
    for current in SPLITS:
        mine = dates[values == current]
        if not len(mine):
            continue
        if last is not None and not mine.min() - last > np.timedelta64(gap_days, "D"):
            wrong.append(f"{current} begins {mine.min()}, {last_name} ends {last}")
        last, last_name = mine.max(), current
    if wrong:
        detail = f"{'; '.join(wrong)} (a gap of {gap_days} days is needed)"
        return SplitCheck(name=name, status="failed", detail=detail)
    return SplitCheck(name=name, status="passed", detail=f"splits follow each other, {gap_days} days apart")
