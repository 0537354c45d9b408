"""Plausibility: what the rules of one column cannot see, because it takes a second table or a sense of scale.

* keys that refer to nothing, and events whose patient is not the patient of their journey;
* dates before the patient's birth year, before or after the journey, outside the observed time, after the
  end of the data;
* clinical values outside their scale, and values that look as if they were in another unit;
* several spellings of one category that differ in case or white space only.

Dates are compared with the journey that a row names, or with all journeys of its patient where it names
none. The birth year is not delivered: it is the year of the diagnosis (of the journey's start without one)
minus ``age_at_diagnosis``, or the year before, so that only a date before both is implausible.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import PlausibilityKind, QualityPolicy, Severity
from e2i_dagster.quality.typed import TypedFrame, typed
from e2i_dagster.tables import date_column, facts, parents, raw_table, row_date_column
from e2i_dagster.tables.constraints import families

_CATEGORIES = ("public", "internal", "quasi")
JOURNEYS, CLINICAL = "patient_journeys", "patient_clinical"

#: Columns of a reference table that are looked at.
REFERENCE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "hcp_profiles": ("hcp_id",),
    JOURNEYS: (
        "patient_journey_id",
        "patient_id",
        "journey_start_date",
        "journey_end_date",
        "age_at_diagnosis",
    ),
    CLINICAL: ("patient_journey_id", "diagnosis_date", "first_observation_date", "last_observation_date"),
}


@dataclass(frozen=True)
class PlausibilityFault:
    """One implausibility: its rows (positions, ascending) and the mask of the rows that were looked at."""

    rule: PlausibilityKind
    column: str
    severity: Severity
    detail: str
    positions: np.ndarray
    looked_at: np.ndarray


def check_plausibility(
    given: pd.DataFrame | TypedFrame,
    table: str,
    policy: QualityPolicy,
    *,
    references: Mapping[str, pd.DataFrame] | None = None,
    as_of: dt.date | None = None,
    codes: np.ndarray | None = None,
) -> tuple[PlausibilityFault, ...]:
    """Everything implausible about the rows of ``table``.

    Args:
        given: rows of the table.
        table: raw table.
        policy: ``plausibility`` of config/quality.yaml, and vocabularies.
        references: raw tables of :func:`.related_tables`; what needs one that is not given is not asked.
        as_of: last day of the data; without it nothing lies in the future.
        codes: partition of each row as a number; spellings are compared within a partition, so that a
            verdict does not depend on what came in the same call.
    """
    read = given if isinstance(given, TypedFrame) else typed(given, table)
    if read.frame.empty:
        return ()
    checks = _Checks(read, table, policy, dict(references or {}))
    parts = np.zeros(len(read.frame), dtype=int) if codes is None else codes
    found = [
        *checks.orphans(),
        *checks.patients_of_journeys(),
        *checks.dates(),
        *checks.future(as_of),
        *checks.clinical_ranges(),
        *checks.units(),
        *checks.spellings(parts),
    ]
    return tuple(fault for fault in found if len(fault.positions))


class _Checks:
    def __init__(
        self, read: TypedFrame, table: str, policy: QualityPolicy, references: Mapping[str, pd.DataFrame]
    ) -> None:
        self.read, self.frame, self.table, self.policy = read, read.frame, table, policy
        self.settings = policy.settings.plausibility
        self.references = references

    def has(self, *columns: str) -> bool:
        """The table describes the columns and the input has them."""
        return all(name in self.frame.columns and name not in self.read.absent for name in columns)

    def fault(
        self, rule: PlausibilityKind, column: str, wrong: np.ndarray, looked_at: np.ndarray, detail: str
    ) -> PlausibilityFault:
        return PlausibilityFault(
            rule, column, self.settings.severities[rule], detail, np.flatnonzero(wrong), looked_at
        )

    def orphans(self) -> Iterator[PlausibilityFault]:
        """Keys that refer to no row of their table."""
        targets = {
            name: (parent, _key_of(parent))
            for name, parent in parents(self.table).items()
            if parent != self.table
        }
        if self.table != JOURNEYS and "patient_id" in self.frame.columns:
            targets["patient_id"] = (JOURNEYS, "patient_id")
        for name, (parent, key) in targets.items():
            known = self.references.get(parent)
            if known is None or key not in known.columns or not self.has(name):
                continue
            looked_at = self.frame[name].notna().to_numpy(dtype=bool)
            wrong = looked_at & (_places(self.frame[name], known[key]) < 0)
            yield self.fault("orphan_key", name, wrong, looked_at, f"keys that no row of {parent} has")

    def patients_of_journeys(self) -> Iterator[PlausibilityFault]:
        """Rows whose patient is another than the patient of their journey."""
        known = self.references.get(JOURNEYS)
        if known is None or not self.has("patient_journey_id", "patient_id") or "patient_id" not in known:
            return
        place = _places(self.frame["patient_journey_id"], known["patient_journey_id"])
        owner = _taken(known["patient_id"].astype(object), place)
        looked_at = (owner.notna() & self.frame["patient_id"].notna()).to_numpy(dtype=bool)
        wrong = looked_at & (owner != self.frame["patient_id"].astype(object)).to_numpy(dtype=bool)
        detail = "rows whose patient is not the patient of their journey"
        yield self.fault("other_patient", "patient_id", wrong, looked_at, detail)

    def dates(self) -> Iterator[PlausibilityFault]:
        """Dates of rows before the birth year, outside the journey, outside the observed time."""
        name = row_date_column(self.table)
        if name is None or not self.has(name) or self.references.get(JOURNEYS) is None:
            return
        bounds = self._bounds()
        if bounds is None:
            return
        when = _day(self.frame[name])
        known = when.notna().to_numpy(dtype=bool)

        def date_fault(
            rule: PlausibilityKind, wrong: pd.Series, looked_at: pd.Series, detail: str
        ) -> PlausibilityFault:
            seen = known & looked_at.to_numpy(dtype=bool)
            return self.fault(rule, name, seen & wrong.to_numpy(dtype=bool), seen, detail)

        born = bounds["born"]
        detail = "dates before the year in which the patient can have been born"
        yield date_fault("before_birth", when.dt.year < born, born.notna(), detail)
        if date_column(self.table) is None and self.table != CLINICAL:
            return
        start, end = bounds["start"], bounds["end"]
        yield date_fault("before_journey", when < start, start.notna(), "dates before the journey starts")
        yield date_fault("after_journey", when > end, end.notna(), "dates after the journey has ended")
        if self.table == CLINICAL:  # layer 1 compares its columns with each other
            return
        first, last = bounds["first"], bounds["last"]
        outside = (when < first) | (when > last)
        detail = "dates outside the time in which the patient is observed"
        yield date_fault("outside_observation", outside, first.notna() | last.notna(), detail)

    def _bounds(self) -> pd.DataFrame | None:
        """Of each row: birth year, start and end of its journey, first and last day of observation."""
        journeys = _journey_bounds(self.references[JOURNEYS], self.references.get(CLINICAL))
        if self.has("patient_journey_id"):
            place = _places(self.frame["patient_journey_id"], journeys["patient_journey_id"])
            own = journeys.drop(columns=["patient_journey_id", "patient_id"])
        elif self.has("patient_id"):
            place_of = journeys.dropna(subset=["patient_id"]).groupby("patient_id", sort=False)
            own = place_of[["born", "start", "first"]].min()
            # One open end leaves the patient's last journey open.
            own["end"] = place_of["end"].max().where(place_of["end"].count() == place_of.size())
            own["last"] = place_of["last"].max()
            place = _places(self.frame["patient_id"], own.index.to_series())
            own = own.reset_index(drop=True)
        else:
            return None
        return pd.DataFrame({name: _taken(own[name], place) for name in own.columns})

    def future(self, as_of: dt.date | None) -> Iterator[PlausibilityFault]:
        """Dates after the last day of the data."""
        if as_of is None:
            return
        end = pd.Timestamp(as_of)
        allowed = self.settings.may_be_future.get(self.table, ())
        for name, kind in families(self.table).items():
            if kind not in ("date", "timestamp") or name in allowed or not self.has(name):
                continue
            when = _day(self.frame[name])
            detail = f"dates after the last day of the data, {as_of:%Y-%m-%d}"
            yield self.fault(
                "future", name, (when > end).to_numpy(dtype=bool), when.notna().to_numpy(dtype=bool), detail
            )

    def clinical_ranges(self) -> Iterator[PlausibilityFault]:
        """Values that their clinical scale does not have."""
        for name, scale in self.settings.clinical_ranges.get(self.table, {}).items():
            if not self.has(name):
                continue
            values = self.frame[name].to_numpy(dtype="float64", na_value=np.nan)
            wrong = ~scale.holds(values) & np.isfinite(values)
            yield self.fault("clinical_range", name, wrong, np.isfinite(values), f"{scale.words} expected")

    def units(self) -> Iterator[PlausibilityFault]:
        """Values that are not typical as they are and would be in another unit."""
        for name, unit in self.settings.units.get(self.table, {}).items():
            if not self.has(name):
                continue
            values = self.frame[name].to_numpy(dtype="float64", na_value=np.nan)
            low, high = unit.typical
            converted = values * unit.factor
            wrong = ((values < low) | (values > high)) & (converted >= low) & (converted <= high)
            described = facts(raw_table(self.table).columns[name]).unit or "the described unit"
            detail = (
                f"values that look as if they were in {unit.other} instead of {described} "
                f"({low:g} to {high:g} is typical)"
            )
            yield self.fault("unit", name, wrong, np.isfinite(values), detail)

    def spellings(self, codes: np.ndarray) -> Iterator[PlausibilityFault]:
        """Rarer spellings of a category that a partition also has in another case or spacing."""
        for name in category_columns(self.read):
            spelled = self.frame[name]
            numbers, values = pd.factorize(spelled)
            if not 1 < len(values) <= self.settings.max_categories:
                continue
            forms = (
                pd.Series(np.asarray(values, dtype=object), dtype=object)
                .str.split()
                .str.join(" ")
                .str.casefold()
            )
            if forms.is_unique:
                continue
            present = numbers >= 0
            pairs = pd.DataFrame({"part": codes, "value": numbers})[present]
            sizes = pairs.groupby(["part", "value"], sort=True).size().rename("rows").reset_index()
            sizes["form"] = forms.to_numpy(dtype=object)[sizes["value"]]
            of_form = sizes.groupby(["part", "form"])["rows"]
            # The most frequent spelling stays, among equals the first in the data.
            sizes["kept"] = sizes.index == of_form.transform("idxmax")
            rare = sizes.loc[~sizes["kept"], ["part", "value"]]
            if rare.empty:
                continue
            wrong = np.zeros(len(numbers), dtype=bool)
            keys = codes.astype(np.int64) * (len(values) + 1) + numbers
            wrong[present] = np.isin(keys[present], rare["part"] * (len(values) + 1) + rare["value"])
            groups = sizes[sizes.groupby("form")["value"].transform("nunique") > 1]["form"].nunique()
            detail = f"rarer spellings of {groups} categories, which differ in case or white space only"
            yield self.fault("spelling", name, wrong, present, detail)


def category_columns(read: TypedFrame) -> list[str]:
    """Text columns that may hold categories: no keys, no lists or documents, no names of persons."""
    found = []
    for name, kind in families(read.table).items():
        described = raw_table(read.table).columns[name]
        about = facts(described)
        plain = kind == "text" and described.type.python_type is str
        key = about.pattern is not None or described.primary_key or described.foreign_keys
        if plain and not key and about.privacy in _CATEGORIES and name not in read.absent:
            found.append(name)
    return found


def _journey_bounds(journeys: pd.DataFrame, clinical: pd.DataFrame | None) -> pd.DataFrame:
    """One row per journey: key, patient, earliest birth year, start, end, first and last observed day."""
    frame = journeys.reset_index(drop=True)
    empty = pd.Series(pd.NaT, index=frame.index, dtype="datetime64[us]")

    def day(source: pd.DataFrame | None, name: str) -> pd.Series:
        if source is None or name not in source.columns:
            return empty
        if source is frame:
            return _day(frame[name])
        place = _places(frame["patient_journey_id"], source["patient_journey_id"])
        return _taken(_day(source[name]), place)

    start, diagnosed = day(frame, "journey_start_date"), day(clinical, "diagnosis_date")
    age = frame.get("age_at_diagnosis")
    years = pd.Series(np.nan, index=frame.index) if age is None else age.astype("Float64").astype("float64")
    return pd.DataFrame(
        {
            "patient_journey_id": frame["patient_journey_id"],
            "patient_id": frame.get("patient_id"),
            "born": diagnosed.fillna(start).dt.year - years - 1,
            "start": start,
            "end": day(frame, "journey_end_date"),
            "first": day(clinical, "first_observation_date"),
            "last": day(clinical, "last_observation_date"),
        }
    )


def _day(column: pd.Series) -> pd.Series:
    if not pd.api.types.is_datetime64_any_dtype(column.dtype):
        column = pd.to_datetime(column, errors="coerce", utc=True)
    plain = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
    return plain.dt.floor("D").astype("datetime64[us]")


def _key_of(table: str) -> str:
    return next(iter(raw_table(table).primary_key.columns)).name


def _places(keys: pd.Series, known: pd.Series) -> np.ndarray:
    """Position of each key in ``known`` (its first, where it is repeated), -1 without one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.large_string()
    listed, wanted = pa.array(known, type=text), pa.array(keys, type=text)
    place = pc.index_in(wanted, value_set=listed, skip_nulls=True)  # type: ignore[attr-defined]
    return pc.fill_null(place, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _taken(values: pd.Series, place: np.ndarray) -> pd.Series:
    """``values`` at ``place``; empty where the place is -1."""
    return values.reset_index(drop=True).reindex(place).reset_index(drop=True)
