"""Layer 2: five dimension scores of a raw table, per partition and as a whole, in one aggregate.

Every count is a Narwhals expression, so the same definition runs on pandas, DuckDB and PySpark. What conforms
is counted, not what violates: a mask that is false or null in an empty cell counts nothing on any engine.

Formulas (n: a count within the part that is scored):

* completeness = n(filled cells) / n(applicable cells), over the table's ``expected`` columns. A clinical
  column with ``applies_to`` applies to rows whose diagnosis code belongs to one of those indications
  (``indications`` of config/quality.yaml); a row without a known code has only the columns that apply to
  all. An absent column has no filled cell.
* validity = 1 - n(invalid cells) / n(filled cells), over all columns with a rule on values: type, finite,
  range, vocabulary, check digit. A cell that cannot be read as its type is filled and invalid.
* consistency = mean over checks, each a share: one check is the share of expected columns that are
  there and hold their described type only; each ordered pair is the share of rows, among those with
  both values, in which the first is not later (or larger) than the second.
* uniqueness = n(distinct keys) / n(rows with a key), within the part. Layer 1 says which keys repeat; here a
  whole on DuckDB tells keys apart by their hashes (:func:`engine.distinct`).
* timeliness = min(1, max_age_days / age), age = days from the newest row date to the as-of date; only
  tables whose rows are dated. The as-of date of a month is its last day, or ``as_of`` if that is earlier;
  that of the whole is the latest of its parts, so that an old month alone is not late.
* overall = weighted mean of the dimensions that were measured. A dimension without anything to count is
  None: not measured, never a default.

What it costs (1,000,000 rows of 20 columns as DuckDB stores them): one to one and a half times the largest value
of each column; two fifths of it are the count of distinct keys.
"""

from __future__ import annotations

import calendar
import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import DIMENSIONS, Dimension, QualityPolicy
from e2i_dagster.policy_files.base import PolicyModel
from e2i_dagster.quality.engine import (
    Engine,
    EngineFrame,
    distinct,
    either,
    engine_frame,
    value,
    with_vocabularies,
)
from e2i_dagster.quality.rules import Rule, rules_for
from e2i_dagster.tables import date_column, facts, primary_key, raw_table
from e2i_dagster.tables.constraints import conforms, families, sound
from e2i_dagster.tables.constraints import filled as is_filled

#: Name of the part of a frame without partitions.
WHOLE = "all"
_PART = "partition label"
_VALUE_RULES = ("finite", "range", "vocabulary", "check_digit")


class Scores(PolicyModel):
    """Scores (0 to 1) of one part. ``None``: nothing to measure. ``age_days``: of the newest row."""

    rows: int
    completeness: float | None
    validity: float | None
    consistency: float | None
    uniqueness: float | None
    timeliness: float | None
    overall: float | None
    age_days: float | None = None

    def dimension(self, name: Dimension) -> float | None:
        """The score of the dimension ``name``."""
        return cast(float | None, getattr(self, name))


class ColumnScore(PolicyModel):
    """One column over all parts: applicable, filled and invalid cells, and the dimensions that it has.

    Consistency is that of the worst ordered pair the column is in, uniqueness that of the key, timeliness
    that of the column which dates the rows.
    """

    column: str
    expected: bool
    applicable: int
    filled: int
    invalid: int
    completeness: float | None
    validity: float | None
    consistency: float | None = None
    uniqueness: float | None = None
    timeliness: float | None = None

    def dimension(self, name: Dimension) -> float | None:
        """The score of the dimension ``name``; completeness only where it counts (``expected``)."""
        if name == "completeness" and not self.expected:
            return None
        return cast(float | None, getattr(self, name))


class DimensionScores(PolicyModel):
    """Scores of a table: as a whole, of each partition, and of each column."""

    table: str
    whole: Scores
    partitions: dict[str, Scores]
    columns: tuple[ColumnScore, ...]

    @property
    def overall(self) -> float | None:
        """Overall score of the table as a whole."""
        return self.whole.overall


def score(
    frame: Any,
    table: str,
    *,
    policy: QualityPolicy,
    as_of: dt.date | None = None,
    partitions: pd.Series | str | None = None,
    engine: Engine = "duckdb",
) -> DimensionScores:
    """Scores of ``frame`` by the engine: one aggregate per partition, all counts at once.

    Without partitions the distinct keys of a DuckDB frame are counted by themselves, which takes less time.

    Args:
        frame: pandas frame or :class:`TypedFrame` (brought to its described types first), or a DuckDB
            relation or any other frame that Narwhals knows (columns of described types expected; a
            column of another type family counts as invalid throughout).
        table: raw table that describes the columns.
        policy: weights, floors, expected columns, vocabularies.
        as_of: date that the data is as of; without it timeliness is not measured.
        partitions: for pandas, one label (``YYYY-MM``) for each row; for other frames, the name of the
            column that holds the label; None scores the whole only.
        engine: what computes the aggregates of a pandas frame.
    """
    labels = {}
    by = partitions if isinstance(partitions, str) else None
    if isinstance(partitions, pd.Series):
        by = _PART
        labels[by] = np.asarray(partitions.astype("string[pyarrow]"), dtype=object)
    on = engine_frame(frame, table, engine=engine, labels=labels)
    plan = _Plan(with_vocabularies(on, rules_for(table, policy)), table, policy)
    return _scores(plan.collect(by), plan, table, policy, as_of)


class _Plan:
    """Names and expressions of every count of one table."""

    def __init__(self, on: EngineFrame, table: str, policy: QualityPolicy) -> None:
        import narwhals as nw

        self.table = table
        self.on = on
        absent = on.absent
        self.present = [name for name in families(table) if name not in absent]
        self.expected = policy.settings.tables[table].expected
        self.rules = [rule for rule in rules_for(table, policy) if rule.kind in _VALUE_RULES]
        self.pairs = [
            rule
            for rule in rules_for(table, policy)
            if rule.kind == "order" and rule.column not in absent and rule.other not in absent
        ]
        self.faulty = on.unreadable
        self.wrong_type = on.foreign
        by_column: dict[str, list[Rule]] = {}
        for rule in self.rules:
            if rule.column not in absent and rule.column not in self.wrong_type:
                by_column.setdefault(rule.column, []).append(rule)
        masks: dict[str, Any] = {}
        #: What the engine's own count of values counts, by the name of the count.
        self.values: dict[str, Any] = {}
        schema = on.native.collect_schema()
        for name in families(table):
            cohorts = facts(raw_table(table).columns[name]).applies_to
            applies = _applies(policy, cohorts, "diagnosis_code" not in absent) if cohorts else None
            if applies is not None:
                masks[f"applicable {name}"] = applies
            if name in absent:
                continue
            self.values[f"filled {name}"] = value(name, schema[name])
            if applies is not None:
                masks[f"applicable filled {name}"] = applies & is_filled(name, schema[name])
            if name in on.known and len(by_column[name]) == 1:
                self.values[f"sound {name}"] = nw.col(on.known[name])
            elif name in by_column:
                masks[f"sound {name}"] = sound(by_column[name], on.known)
            if name in self.faulty:
                masks[f"broken {name}"] = nw.col(self.faulty[name])
        for position, rule in enumerate(self.pairs):
            second = cast(str, rule.other)
            both = nw.when(is_filled(rule.column, schema[rule.column])).then(value(second, schema[second]))
            self.values[f"pairs {position}"] = both
            floats = schema[rule.column].is_float() or schema[second].is_float()
            ordered = nw.when(conforms(rule))
            self.values[f"in order {position}"] = ordered.then(both if floats else nw.lit(1))
        self.values |= {alias: nw.when(mask).then(nw.lit(1)) for alias, mask in masks.items()}
        self.key = primary_key(table)
        self.date = date_column(table)

    def collect(self, by: str | None) -> dict[str, dict[str, Any]]:
        """Of each partition label (column ``by``): rows, distinct keys, newest date and every count."""
        import narwhals as nw

        native = self.on.native
        keys = distinct(self.on, self.key) if by is None and self.key in self.present else None
        whole: dict[str, Any] = {"rows": nw.len()}
        if keys is None and self.key in self.present:
            whole["keys"] = nw.col(self.key).n_unique()
        if self.date in self.present and self.date not in self.wrong_type:
            whole["newest"] = nw.col(cast(str, self.date)).max()
        if by is None:
            found = native.select(**whole, **{name: cells.count() for name, cells in self.values.items()})
        else:
            counted = {name: nw.col(name).count() for name in self.values}
            found = native.with_columns(**self.values).group_by(by).agg(**whole, **counted).sort(by)
        rows = (found.collect() if isinstance(found, nw.LazyFrame) else found).rows(named=True)
        parts = {WHOLE if by is None else str(row.pop(by)): row for row in rows if row["rows"]}
        for part in parts.values():
            if keys is not None:
                part["keys"] = keys
            elif "keys" in part:
                # An engine counts null as one more distinct value.
                part["keys"] -= part["rows"] > part[f"filled {self.key}"]
        return parts


def _applies(policy: QualityPolicy, cohorts: tuple[str, ...], coded: bool) -> Any:
    import narwhals as nw

    if not coded:
        return nw.lit(False)
    code = nw.col("diagnosis_code").str.replace_all(".", "", literal=True).str.to_uppercase()
    starts = [
        code.str.starts_with(p) for cohort in cohorts for p in policy.settings.indications[cohort].prefixes
    ]
    return ~nw.col("diagnosis_code").is_null() & either(starts)


def _scores(
    parts: Mapping[str, Mapping[str, Any]],
    plan: _Plan,
    table: str,
    policy: QualityPolicy,
    as_of: dt.date | None,
) -> DimensionScores:
    names = dict.fromkeys(name for counts in parts.values() for name in counts if name != "newest")
    total: dict[str, Any] = {name: sum(counts[name] for counts in parts.values()) for name in names}
    dates = [counts["newest"] for counts in parts.values() if pd.notna(counts.get("newest"))]
    total["newest"] = max(dates, default=None)
    moments = {label: _moment(label, as_of) for label in parts}
    dated = [moment for moment in moments.values() if moment is not None]
    whole = _one(total, plan, policy, max(dated, default=as_of))
    return DimensionScores(
        table=table,
        whole=whole,
        partitions={label: _one(counts, plan, policy, moments[label]) for label, counts in parts.items()},
        columns=tuple(_column(name, total, plan, whole) for name in families(table)),
    )


def _moment(label: str, as_of: dt.date | None) -> dt.date | None:
    """Last day of the month ``label``, at the latest ``as_of``; ``as_of`` for another label."""
    match = re.match(r"^(\d{4})-(\d{2})(-01)?$", label)
    if match is None or as_of is None:
        return as_of
    year, month = int(match[1]), int(match[2])
    if not 1 <= month <= 12:
        return as_of
    return min(as_of, dt.date(year, month, calendar.monthrange(year, month)[1]))


def _share(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def _cells(name: str, row: Mapping[str, Any], plan: _Plan) -> tuple[int, int, int, int]:
    """Applicable, filled and applicable, filled (readable or not), invalid cells of one column."""
    rows = int(row.get("rows", 0))
    applicable = int(row.get(f"applicable {name}", rows))
    readable = int(row.get(f"filled {name}", 0))
    broken = int(row.get(f"broken {name}", 0))
    used = int(row.get(f"applicable filled {name}", readable + broken))
    sound = 0 if name in plan.wrong_type else int(row.get(f"sound {name}", readable))
    return applicable, used, readable + broken, readable - sound + broken


def _one(row: Mapping[str, Any], plan: _Plan, policy: QualityPolicy, as_of: dt.date | None) -> Scores:
    cells = {name: _cells(name, row, plan) for name in families(plan.table)}
    checked = {rule.column for rule in plan.rules} | set(plan.faulty) | plan.wrong_type
    applicable = sum(cells[name][0] for name in plan.expected)
    used = sum(cells[name][1] for name in plan.expected)
    filled = sum(cells[name][2] for name in checked)
    invalid = sum(cells[name][3] for name in checked)
    rows = int(row.get("rows", 0))
    age = None
    if as_of is not None and plan.date is not None and pd.notna(row.get("newest")):
        newest = pd.Timestamp(row["newest"])
        newest = newest.tz_localize(None) if newest.tzinfo else newest
        age = max(0.0, float((pd.Timestamp(as_of) - newest.normalize()).days))
    keys = None
    if plan.key in plan.present:
        keys = _share(int(row.get("keys", 0)), int(row[f"filled {plan.key}"]) if rows else 0)
    measured: dict[Dimension, float | None] = {
        "completeness": _share(used, applicable),
        "validity": 1 - invalid / filled if filled else None,
        "consistency": _consistency(row, plan) if rows else None,
        "uniqueness": keys,
        "timeliness": None if age is None else min(1.0, policy.settings.max_age_days / max(age, 1.0)),
    }
    weights: dict[Dimension, float] = {
        name: policy.settings.weights[name] for name in DIMENSIONS if measured[name] is not None
    }
    total = sum(weights.values())
    overall = sum(weights[name] * cast(float, measured[name]) for name in weights) / total if total else None
    return Scores(rows=rows, overall=overall, age_days=age, **measured)


def _consistency(row: Mapping[str, Any], plan: _Plan) -> float:
    sound = [
        name in plan.present and name not in plan.wrong_type and not int(row.get(f"broken {name}", 0))
        for name in plan.expected
    ]
    checks = [sum(sound) / len(sound)]
    for position in range(len(plan.pairs)):
        both = int(row[f"pairs {position}"])
        if both:
            checks.append(int(row[f"in order {position}"]) / both)
    return sum(checks) / len(checks)


def _column(name: str, total: Mapping[str, Any], plan: _Plan, whole: Scores) -> ColumnScore:
    applicable, used, filled, invalid = _cells(name, total, plan)
    ordered = [
        int(total[f"in order {position}"]) / int(total[f"pairs {position}"])
        for position, rule in enumerate(plan.pairs)
        if name in (rule.column, rule.other) and int(total.get(f"pairs {position}", 0))
    ]
    return ColumnScore(
        column=name,
        expected=name in plan.expected,
        applicable=applicable,
        filled=used,
        invalid=invalid,
        completeness=_share(used, applicable),
        validity=1 - invalid / filled if filled else None,
        consistency=min(ordered, default=None),
        uniqueness=whole.uniqueness if name == plan.key else None,
        timeliness=whole.timeliness if name == plan.date else None,
    )
