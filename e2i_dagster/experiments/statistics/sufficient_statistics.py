"""Sufficient statistics of an experiment: they add up over strata, partitions and days.

One pass of the engine reduces the unit rows to a few numbers per arm and stratum (means and centred
products), to totals per cluster, or to a life table. Everything that ``analyze`` reports follows from these
alone, so that partitions can be summarized where they lie and merged afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError

Kind = Literal["mean", "proportion", "ratio", "survival"]
AnalysisSet = Literal["itt", "per_protocol", "as_treated"]
Missing = Literal["complete_cases", "refuse", "non_responder", "bounds"]
KINDS: tuple[str, ...] = get_args(Kind)
ANALYSIS_SETS: tuple[str, ...] = get_args(AnalysisSet)
MISSING: tuple[str, ...] = get_args(Missing)
#: Different outcomes up to which their frequencies are kept: of more, the plain tests of means are good enough.
MOST_VALUES = 10_000
#: The stratum of an analysis without strata.
WHOLE = "all"


@dataclass(frozen=True)
class Moments:
    """Count, means (k,) and centred sums of products (k, k) of k variables over some units."""

    count: int
    mean: np.ndarray
    products: np.ndarray

    @classmethod
    def none(cls, size: int) -> Moments:
        """Of no units at all."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def merged(self, other: Moments) -> Moments:
        """Of the units of both (Chan, Golub and LeVeque, The American Statistician 37, 1983)."""
        if not other.count:
            return self
        if not self.count:
            return other
        count = self.count + other.count
        step = other.mean - self.mean
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean + step * (other.count / count),
            self.products + other.products + weight * np.outer(step, step),
        )

    def covariance(self) -> np.ndarray:
        """Sample covariance (k, k), divisor n - 1."""
        return self.products / (self.count - 1)


@dataclass(frozen=True)
class Cell:
    """One arm in one stratum.

    ``complete``: moments of the outcome variables and, last, of the covariate; ``bare``: of the outcome
    variables of units whose covariate is missing. ``missing``: units without outcome.
    """

    units: int
    missing: int
    complete: Moments
    bare: Moments

    def merged(self, other: Cell) -> Cell:
        return Cell(
            self.units + other.units,
            self.missing + other.missing,
            self.complete.merged(other.complete),
            self.bare.merged(other.bare),
        )

    def without_covariate(self) -> Cell:
        """All units with outcome as units of an analysis that has no covariate."""
        size = len(self.bare.mean)
        known = Moments(self.complete.count, self.complete.mean[:size], self.complete.products[:size, :size])
        return Cell(self.units, self.missing, known.merged(self.bare), Moments.none(size))

    def moments(self, covariate_fill: float | None) -> Moments:
        """All units with outcome; a missing covariate counts as ``covariate_fill``."""
        if covariate_fill is None or not self.bare.count:
            return self.complete
        size = len(self.bare.mean)
        products = np.zeros((size + 1, size + 1))
        products[:size, :size] = self.bare.products
        filled = Moments(self.bare.count, np.append(self.bare.mean, covariate_fill), products)
        return self.complete.merged(filled)


_VALUE_KEYS = ["arm", "stratum", "v0"]
_LIFE = ["arm", "stratum", "time", "events", "censored"]


@dataclass(frozen=True)
class SufficientStatistics:
    """What ``summarize`` makes of unit rows.

    ``cells`` by (arm, stratum). ``clusters`` (clustered designs): totals per arm, stratum and cluster.
    ``life`` (survival): events and censorings per arm, stratum and time. ``values`` (means and ratios of units, up to
    :data:`MOST_VALUES` different outcomes): ``units`` per arm, stratum and outcome ``v0``.
    ``not_analysed``: units outside the analysis set.
    """

    kind: Kind
    analysis_set: AnalysisSet
    missing: Missing
    variables: int
    covariate: bool
    stratified: bool
    cells: Mapping[tuple[str, str], Cell]
    clusters: pd.DataFrame | None = field(default=None, repr=False)
    life: pd.DataFrame | None = field(default=None, repr=False)
    values: pd.DataFrame | None = field(default=None, repr=False)
    not_analysed: int = 0

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(sorted({arm for arm, _ in self.cells}))

    @property
    def strata(self) -> tuple[str, ...]:
        return tuple(sorted({stratum for _, stratum in self.cells}))

    def cell(self, arm: str, stratum: str | None = None) -> Cell:
        """One arm in one stratum, or over all strata; of no units where there are none."""
        width = self.variables + int(self.covariate)
        empty = Cell(0, 0, Moments.none(width), Moments.none(self.variables))
        found = [
            self.cells[arm, name]
            for name in (self.strata if stratum is None else (stratum,))
            if (arm, name) in self.cells
        ]
        return reduce(Cell.merged, found, empty)

    def of_stratum(self, stratum: str) -> SufficientStatistics:
        """The statistics of one stratum as those of a whole."""
        return SufficientStatistics(
            kind=self.kind, analysis_set=self.analysis_set, missing=self.missing, variables=self.variables,
            covariate=self.covariate, stratified=False,
            cells={(arm, WHOLE): cell for (arm, name), cell in self.cells.items() if name == stratum},
            clusters=_of_stratum(self.clusters, stratum),
            life=_of_stratum(self.life, stratum),
            values=_of_stratum(self.values, stratum),
            not_analysed=0,
        )  # fmt: skip

    def pooled(self) -> SufficientStatistics:
        """The same units without their strata."""
        return replace(
            self,
            stratified=False,
            cells={(arm, WHOLE): self.cell(arm) for arm in self.arms},
            clusters=_pooled(self.clusters, ["arm", "stratum", "cluster"]),
            life=_pooled(self.life, ["arm", "stratum", "time"]),
            values=_pooled(self.values, _VALUE_KEYS),
        )

    def without_covariate(self) -> SufficientStatistics:
        """The same units without their covariate."""
        if not self.covariate:
            return self
        return replace(
            self,
            covariate=False,
            cells={key: cell.without_covariate() for key, cell in self.cells.items()},
            clusters=None if self.clusters is None else self.clusters.drop(columns=["x", "x_missing"]),
        )

    def covariate_fill(self, arms: Iterable[str]) -> float | None:
        """Mean of the covariate over the units of ``arms`` that have one."""
        if not self.covariate:
            return None
        merged = reduce(Moments.merged, (self.cell(arm).complete for arm in arms))
        return float(merged.mean[-1]) if merged.count else None


def _of_stratum(table: pd.DataFrame | None, stratum: str) -> pd.DataFrame | None:
    if table is None:
        return None
    return table[table["stratum"] == stratum].assign(stratum=WHOLE).reset_index(drop=True)


def _pooled(table: pd.DataFrame | None, keys: list[str]) -> pd.DataFrame | None:
    return None if table is None else _added([table.assign(stratum=WHOLE)], keys)


def merge(parts: Iterable[SufficientStatistics]) -> SufficientStatistics:
    """The statistics of all units of ``parts``, which hold different units of one experiment.

    Raises:
        InputError: there is no part, or the parts were not summarized alike.
    """
    several = list(parts)
    if not several:
        raise InputError(
            "merge: nothing to merge; give the statistics of at least one partition.", field="merge"
        )
    first = several[0]
    for name in ("kind", "analysis_set", "missing", "variables", "covariate", "stratified"):
        values = {getattr(part, name) for part in several}
        if len(values) > 1:
            raise InputError(
                f"merge: the parts differ in {name} ({sorted(map(str, values))}); summarize them alike.",
                field="merge",
            )
    if len({part.clusters is None for part in several}) > 1:
        raise InputError(
            "merge: some parts have clusters and some have none; summarize them alike.", field="merge"
        )
    cells: dict[tuple[str, str], Cell] = {}
    for part in several:
        for key, cell in part.cells.items():
            cells[key] = cells[key].merged(cell) if key in cells else cell
    values = None
    if all(part.values is not None for part in several):
        values = _few_values(_added([part.values for part in several], _VALUE_KEYS))
    return SufficientStatistics(
        kind=first.kind, analysis_set=first.analysis_set, missing=first.missing, variables=first.variables,
        covariate=first.covariate, stratified=first.stratified, cells=cells,
        clusters=_added([part.clusters for part in several], ["arm", "stratum", "cluster"]),
        life=_added([part.life for part in several], ["arm", "stratum", "time"]),
        values=values,
        not_analysed=sum(part.not_analysed for part in several),
    )  # fmt: skip


def _few_values(values: pd.DataFrame | None) -> pd.DataFrame | None:
    return values if values is not None and values["v0"].nunique() <= MOST_VALUES else None


def _added(tables: list[pd.DataFrame | None], keys: list[str]) -> pd.DataFrame | None:
    given = [table for table in tables if table is not None]
    if not given:
        return None
    return pd.concat(given, ignore_index=True).groupby(keys, as_index=False, sort=True).sum()


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of the unit rows."""

    arm: str
    outcome: str
    denominator: str | None
    event: str | None
    covariate: str | None
    cluster: str | None
    strata: str | None
    received: str | None
    adherent: str | None
    unit: str | None
    assigned_at: str | None
    outcome_at: str | None
    covariate_at: str | None


def summarize(
    frame: Any,
    *,
    arm: str,
    outcome: str,
    kind: Kind | str = "mean",
    denominator: str | None = None,
    event: str | None = None,
    covariate: str | None = None,
    cluster: str | None = None,
    strata: str | None = None,
    analysis_set: AnalysisSet | str = "itt",
    received: str | None = None,
    adherent: str | None = None,
    missing: Missing | str = "complete_cases",
    unit: str | None = None,
    assigned_at: str | None = None,
    outcome_at: str | None = None,
    covariate_at: str | None = None,
) -> SufficientStatistics:
    """Reduce unit rows to sufficient statistics, on the engine that holds them.

    Args:
        frame: one row per unit: pandas frame, DuckDB relation, Narwhals frame, any frame that Narwhals knows,
            or the path of a Parquet file or pattern (read by DuckDB). It is never changed.
        Others: as in ``analyze``.

    Raises:
        InputError: a column is absent or has the wrong type or values, a unit has no arm or two arms, an
            outcome lies before the assignment, or a covariate after it.
    """
    import narwhals as nw

    for name, value, known in (
        ("kind", kind, KINDS), ("analysis_set", analysis_set, ANALYSIS_SETS), ("missing", missing, MISSING),
    ):  # fmt: skip
        if value not in known:
            raise InputError(
                f"{name}: {value!r} is not known.",
                field=name,
                value=value,
                remedy=f"Use one of: {', '.join(known)}.",
            )
    columns = _Columns(
        arm, outcome, denominator, event, covariate, cluster, strata, received, adherent, unit,
        assigned_at, outcome_at, covariate_at,
    )  # fmt: skip
    _check_combination(str(kind), str(analysis_set), str(missing), columns)
    table = _lazy(frame)
    selected, variables = _selected(table, columns, str(analysis_set))
    assigned = selected.filter(nw.col("in_set"))
    not_analysed = _check_units(selected, columns)
    if missing == "non_responder":
        assigned = assigned.with_columns(
            nw.col("v0").is_null().alias("no_outcome"), nw.col("v0").fill_null(0.0).alias("v0")
        )
    else:
        absent = nw.col("v0").is_null()
        for name in variables[1:]:
            absent = absent | nw.col(name).is_null()
        assigned = assigned.with_columns(absent.alias("no_outcome"))
    totals = _totals(assigned, columns, str(kind), variables)
    if totals.empty:
        raise InputError(
            f"analysis_set: no unit is in the {analysis_set} set; check {received or adherent or arm}.",
            field="analysis_set",
        )
    present = assigned if missing == "non_responder" else assigned.filter(~nw.col("no_outcome"))
    common: dict[str, Any] = {
        "kind": kind, "analysis_set": analysis_set, "missing": missing, "variables": len(variables),
        "covariate": covariate is not None, "stratified": strata is not None, "not_analysed": not_analysed,
    }  # fmt: skip
    if kind == "survival":
        life = _collected(
            present.group_by("arm", "stratum", "v0").agg(
                nw.col("v1").sum().alias("events"), nw.len().alias("rows")
            )
        ).rename(columns={"v0": "time"})
        life["events"] = life["events"].astype("int64")
        life["censored"] = life["rows"].astype("int64") - life["events"]
        life = life.sort_values(["arm", "stratum", "time"], ignore_index=True)[_LIFE]
        seen = life.groupby(["arm", "stratum"])[["events", "censored"]].sum().sum(axis=1).to_dict()
        cells = {
            key: Cell(
                int(row["units"]),
                int(row["missing"]),
                Moments(
                    int(seen.get(key, 0)),
                    np.zeros(2),
                    np.zeros((2, 2)),
                ),
                Moments.none(2),
            )
            for key, row in _by_cell(totals)
        }
        return SufficientStatistics(**common, cells=cells, life=life)
    names = [*variables, *(["x"] if covariate else [])]
    cells = _cells(present, totals, variables, names)
    clusters = None if cluster is None else _cluster_totals(present, names)
    values = None
    if kind != "proportion" and cluster is None and totals["different"].max() <= MOST_VALUES:
        counted = _collected(present.group_by(_VALUE_KEYS).agg(nw.len().alias("units")))
        values = _few_values(counted.sort_values(_VALUE_KEYS, ignore_index=True))
    return SufficientStatistics(**common, cells=cells, clusters=clusters, values=values)


def _check_combination(kind: str, analysis_set: str, missing: str, columns: _Columns) -> None:
    """What the kind needs is named, and what it cannot use is refused."""
    problems = []
    if (kind == "ratio") != (columns.denominator is not None):
        problems.append("denominator: kind ratio needs it, and no other kind has one")
    if (kind == "survival") != (columns.event is not None):
        problems.append("event: kind survival needs the column of event (1) or censoring (0), no other kind")
    if kind == "survival" and columns.covariate:
        problems.append("covariate: not for kind survival; use strata")
    if kind == "survival" and columns.cluster:
        problems.append("cluster: not for kind survival")
    if missing == "non_responder" and kind != "proportion":
        problems.append(
            f"missing: non_responder (missing means no success) is for kind proportion, not {kind}"
        )
    if missing == "bounds" and kind not in ("mean", "proportion"):
        problems.append(f"missing: bounds are for kinds mean and proportion, not {kind}")
    if analysis_set == "per_protocol" and not (columns.received or columns.adherent):
        problems.append("analysis_set: per_protocol needs the column received or adherent")
    if analysis_set == "as_treated" and not columns.received:
        problems.append("analysis_set: as_treated needs the column received")
    if analysis_set == "itt" and (columns.received or columns.adherent):
        problems.append("received, adherent: an analysis as assigned (itt) makes no use of them")
    if (columns.outcome_at or columns.covariate_at) and not columns.assigned_at:
        problems.append("assigned_at: needed to judge outcome_at and covariate_at")
    if columns.covariate_at and not columns.covariate:
        problems.append("covariate_at: there is no covariate")
    if problems:
        raise InputError("; ".join(problems) + ".", field=problems[0].partition(":")[0])


def _lazy(frame: Any) -> Any:
    import narwhals as nw

    if isinstance(frame, (str, Path)):
        import duckdb

        try:
            return nw.from_native(duckdb.connect().read_parquet(str(frame))).lazy()
        except duckdb.Error as error:
            raise InputError(
                f"frame: {frame} cannot be read as Parquet ({str(error).splitlines()[0]}).", field="frame"
            ) from error
    try:
        table = nw.from_native(frame).lazy()
    except TypeError:
        raise InputError(
            f"frame: {type(frame).__name__} is no frame; give a pandas frame, a DuckDB relation or a Parquet path.",
            field="frame",
        ) from None
    if table.implementation.is_pyarrow():
        import duckdb

        return nw.from_native(duckdb.connect().from_arrow(table.collect().to_native())).lazy()
    return table


def _collected(table: Any) -> pd.DataFrame:
    return table.collect().to_pandas()


def _selected(table: Any, columns: _Columns, analysis_set: str) -> tuple[Any, list[str]]:
    """The columns that the analysis reads, under their own names and types; and the outcome variables."""
    import narwhals as nw

    schema = table.collect_schema()
    wanted = {
        argument: name for argument, name in vars(columns).items() if name is not None
    }  # argument -> column of the frame
    for argument, name in wanted.items():
        if name not in schema.names():
            raise InputError(
                f"{argument}: the frame has no column {name!r}.",
                field=argument,
                value=name,
                remedy=f"Columns: {', '.join(map(str, schema.names()[:20]))}.",
            )

    def text(name: str) -> Any:
        column = nw.col(name)
        if schema[name] == nw.Boolean:
            return nw.when(column).then(nw.lit("True")).otherwise(nw.when(~column).then(nw.lit("False")))
        return column.cast(nw.String)

    def number(argument: str) -> Any:
        name = wanted[argument]
        if not (schema[name].is_numeric() or schema[name] == nw.Boolean):
            raise InputError(
                f"{argument}: column {name!r} is {schema[name]}.",
                field=argument,
                value=name,
                remedy="Give numbers or truth values.",
            )
        column = nw.col(name).cast(nw.Float64)
        return nw.when((~column.is_nan()).fill_null(False)).then(column)

    read = {"assigned": text(columns.arm), "v0": number("outcome")}
    variables = ["v0"]
    if columns.denominator or columns.event:
        variables.append("v1")
        read["v1"] = number("denominator" if columns.denominator else "event")
    if columns.covariate:
        read["x"] = number("covariate")
    read["stratum"] = nw.lit(WHOLE) if columns.strata is None else text(columns.strata).fill_null("missing")
    if columns.cluster:
        read["cluster"] = text(columns.cluster)
    if columns.unit:
        read["unit"] = nw.col(columns.unit)
    for argument in ("assigned_at", "outcome_at", "covariate_at"):
        if argument in wanted:
            read[argument] = _moment(table, argument, wanted[argument])
    if columns.received:
        read["received"] = text(columns.received)
    if columns.adherent:
        if schema[columns.adherent] != nw.Boolean:
            raise InputError(
                f"adherent: column {columns.adherent!r} is {schema[columns.adherent]}, not boolean.",
                field="adherent",
            )
        read["adherent"] = nw.col(columns.adherent).fill_null(False)
    selected = table.select(**{name: expression.alias(name) for name, expression in read.items()})
    return _with_set(selected, columns, analysis_set), variables


def _moment(table: Any, argument: str, name: str) -> Any:
    """A column of dates or times as times of UTC without zone; dates are the start of their day."""
    import narwhals as nw

    kind = table.collect_schema()[name]
    if kind == nw.Date:
        return nw.col(name).cast(nw.Datetime("us"))
    if kind != nw.Datetime:
        raise InputError(
            f"{argument}: column {name!r} is {kind}.",
            field=argument,
            value=name,
            remedy="Give dates or times.",
        )
    if getattr(kind, "time_zone", None) is None:
        return nw.col(name)
    # DuckDB keeps the zone in the connection and knows no other.
    aware = nw.col(name) if table.implementation.is_duckdb() else nw.col(name).dt.convert_time_zone("UTC")
    return aware.dt.replace_time_zone(None)


def _with_set(selected: Any, columns: _Columns, analysis_set: str) -> Any:
    """``arm`` that a unit counts for, and ``in_set``: whether it is in the analysis set."""
    import narwhals as nw

    group, inside = nw.col("assigned"), nw.lit(True)
    if columns.received and analysis_set == "as_treated":
        group, inside = nw.col("received"), ~nw.col("received").is_null()
    elif columns.received:
        inside = (nw.col("received") == nw.col("assigned")).fill_null(False)
    if columns.adherent:
        inside = inside & nw.col("adherent")
    return selected.with_columns(group.alias("arm"), inside.alias("in_set"))


def _is_day(name: str) -> Any:
    import narwhals as nw

    return nw.col(name) == nw.col(name).dt.truncate("1d")


def _earlier(left: str, other: str) -> Any:
    """Whether a time lies before another at the coarser precision of the two (:func:`.tables.moments.earlier`)."""
    import narwhals as nw

    days = nw.col(left).dt.truncate("1d") < nw.col(other).dt.truncate("1d")
    by_day = _is_day(left) | _is_day(other)
    return (by_day & days) | (~by_day & (nw.col(left) < nw.col(other)))


def _check_units(selected: Any, columns: _Columns) -> int:
    """Every unit has an arm and one arm only, and times are in order. Units outside the analysis set."""
    import narwhals as nw

    faults = {"no_arm": nw.col("assigned").is_null()}
    if columns.outcome_at:
        faults["early_outcome"] = _earlier("outcome_at", "assigned_at")
    if columns.covariate_at:
        same_moment = (nw.col("covariate_at") == nw.col("assigned_at")) & ~_is_day("assigned_at")
        faults["late_covariate"] = _earlier("assigned_at", "covariate_at") | same_moment
    if columns.cluster:
        faults["no_cluster"] = nw.col("cluster").is_null()
    found = _collected(
        selected.select(
            nw.len().alias("rows"),
            nw.col("in_set").cast(nw.Int64).sum().alias("kept"),
            *(mask.fill_null(False).cast(nw.Int64).sum().alias(name) for name, mask in faults.items()),
        )
    ).iloc[0]
    if int(found["rows"]) == 0:
        raise InputError("frame: it has no rows; nothing can be analysed.", field="frame")
    messages = {
        "no_arm": f"arm: {{n}} units have none in {columns.arm!r}; a unit is analysed once it is assigned.",
        "early_outcome": (
            f"outcome_at: {{n}} outcomes in {columns.outcome!r} lie before the assignment ({columns.assigned_at!r}); "
            "an outcome before assignment is no outcome."
        ),
        "late_covariate": (
            f"covariate_at: {{n}} values of {columns.covariate!r} were not measured before the assignment; "
            "adjusting for them biases the effect."
        ),
        "no_cluster": f"cluster: {{n}} units have none in {columns.cluster!r}.",
    }
    wrong = [messages[name].format(n=int(found[name])) for name in faults if int(found[name] or 0)]
    if wrong:
        raise InputError(
            " ".join(wrong), field=wrong[0].partition(":")[0], remedy="Correct these rows, or leave them out."
        )
    if columns.unit is not None:
        _check_identifiers(selected, columns.unit)
    return int(found["rows"]) - int(found["kept"])


def _check_identifiers(selected: Any, unit: str) -> None:
    """One row per unit."""
    import narwhals as nw

    distinct = _collected(
        selected.select(
            nw.len().alias("rows"),
            nw.col("unit").count().alias("named"),
            nw.col("unit").n_unique().alias("units"),
        )
    ).iloc[0]
    if int(distinct["named"]) < int(distinct["rows"]):
        raise InputError(
            f"unit: {int(distinct['rows'] - distinct['named'])} rows have no {unit!r}.", field="unit"
        )
    if int(distinct["units"]) == int(distinct["rows"]):
        return
    repeated = _collected(
        selected.group_by("unit")
        .agg(nw.len().alias("rows"), nw.col("assigned").n_unique().alias("arms"))
        .filter(nw.col("rows") > 1)
        .select(nw.len().alias("units"), (nw.col("arms") > 1).cast(nw.Int64).sum().alias("switched"))
    ).iloc[0]
    if int(repeated["switched"] or 0):
        raise InputError(
            f"unit: {int(repeated['switched'])} units in {unit!r} are assigned twice with different arms; "
            "the assignment is wrong and nothing can be concluded from it.",
            field="unit",
        )
    if int(repeated["units"] or 0):
        raise InputError(
            f"unit: {int(repeated['units'])} units in {unit!r} have several rows.",
            field="unit",
            remedy=f"Give one row per unit, or give cluster={unit!r} instead.",
        )


def _not_binary(name: str) -> Any:
    import narwhals as nw

    column = nw.col(name)
    return ((column != 0) & (column != 1) & ~column.is_null()).fill_null(False).cast(nw.Int64)


def _totals(assigned: Any, columns: _Columns, kind: str, variables: list[str]) -> pd.DataFrame:
    """Units, missing outcomes and sums per arm and stratum; values that cannot be are refused."""
    import narwhals as nw

    names = [*variables, *(["x"] if columns.covariate else [])]
    marked = assigned.with_columns(
        nw.col("no_outcome").cast(nw.Int64).alias("missing"),
        *(
            (nw.col(name).abs() == math.inf).fill_null(False).cast(nw.Int64).alias(f"infinite_{name}")
            for name in names
        ),
        _not_binary("v0").alias("not_binary"),
        (nw.col("v0") < 0).fill_null(False).cast(nw.Int64).alias("negative"),
        *([_not_binary("v1").alias("not_event")] if kind == "survival" else []),
    )
    sums = ["missing", "not_binary", "negative", *(f"infinite_{name}" for name in names)]
    sums += ["not_event"] if kind == "survival" else []
    totals = _collected(
        marked.group_by("arm", "stratum").agg(
            nw.len().alias("units"),
            nw.col("v0").n_unique().alias("different"),
            *(nw.col(name).sum().alias(name) for name in sums),
            *(nw.col(name).sum().alias(f"sum_{name}") for name in names),
            *(nw.col(name).count().alias(f"count_{name}") for name in names),
        )
    )
    given = {"v0": columns.outcome, "v1": columns.denominator or columns.event, "x": columns.covariate}
    for name in names:
        if count := int(totals[f"infinite_{name}"].sum()):
            raise InputError(
                f"column {given[name]!r}: {count} values are infinite and have no mean.",
                field=given[name],
                remedy="Give finite numbers; leave a missing one empty.",
            )
    if kind == "proportion" and (count := int(totals["not_binary"].sum())):
        raise InputError(
            f"outcome: {count} values of {columns.outcome!r} are not 0 or 1; kind proportion needs them.",
            field="outcome",
        )
    if kind == "survival":
        if count := int(totals["negative"].sum()):
            raise InputError(f"outcome: {count} times in {columns.outcome!r} are negative.", field="outcome")
        if count := int(totals["not_event"].sum()):
            raise InputError(f"event: {count} values of {columns.event!r} are not 0 or 1.", field="event")
    return totals


def _by_cell(totals: pd.DataFrame) -> list[tuple[tuple[str, str], Any]]:
    """Rows by (arm, stratum), in order."""
    ordered = totals.sort_values(["arm", "stratum"])
    return [((str(row["arm"]), str(row["stratum"])), row) for row in ordered.to_dict("records")]


def _cells(
    present: Any, totals: pd.DataFrame, variables: list[str], names: list[str]
) -> dict[tuple[str, str], Cell]:
    """Moments per arm and stratum. Products are taken about the overall means, so that nothing cancels."""
    import narwhals as nw

    centre = {}
    for name in names:
        count = float(totals[f"count_{name}"].sum())
        centre[name] = float(totals[f"sum_{name}"].sum()) / count if count else 0.0
    has_covariate = ~nw.col("x").is_null() if "x" in names else nw.lit(True)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    centred = present.with_columns(
        has_covariate.alias("complete"), *((nw.col(name) - centre[name]).alias(f"c_{name}") for name in names)
    ).with_columns(*((nw.col(f"c_{a}") * nw.col(f"c_{b}")).alias(f"p_{a}_{b}") for a, b in pairs))
    sums = _collected(
        centred.group_by("arm", "stratum", "complete").agg(
            nw.len().alias("count"),
            *(nw.col(f"c_{name}").sum().alias(f"c_{name}") for name in names),
            *(nw.col(f"p_{a}_{b}").sum().alias(f"p_{a}_{b}") for a, b in pairs),
        )
    )
    moments = {
        (str(row["arm"]), str(row["stratum"]), bool(row["complete"])): _moments(
            row, names if row["complete"] else variables, centre
        )
        for row in sums.to_dict("records")
    }
    return {
        key: Cell(
            int(row["units"]),
            int(row["missing"]),
            moments.get((*key, True), Moments.none(len(names))),
            moments.get((*key, False), Moments.none(len(variables))),
        )
        for key, row in _by_cell(totals)
    }


def _moments(row: Mapping[Any, Any], names: list[str], centre: Mapping[str, float]) -> Moments:
    count = int(row["count"])
    first = np.array([float(row[f"c_{name}"]) for name in names]) / count
    products = np.empty((len(names), len(names)))
    for i, a in enumerate(names):
        for j in range(i, len(names)):
            products[i, j] = products[j, i] = float(row[f"p_{a}_{names[j]}"]) - count * first[i] * first[j]
    mean = first + np.array([centre[name] for name in names])
    return Moments(count, mean, products)


def _cluster_totals(present: Any, names: list[str]) -> pd.DataFrame:
    """Units and sums per arm, stratum and cluster; ``x_missing`` counts units without covariate."""
    import narwhals as nw

    counted = (
        present.with_columns(nw.col("x").is_null().cast(nw.Int64).alias("x_missing"))
        if "x" in names
        else present
    )
    return (
        _collected(
            counted.group_by("arm", "stratum", "cluster").agg(
                nw.len().alias("units"),
                *(nw.col(name).sum().alias(name) for name in names),
                *([nw.col("x_missing").sum()] if "x" in names else []),
            )
        )
        .astype({"units": "int64"} | ({"x_missing": "int64"} if "x" in names else {}))
        .sort_values(["arm", "stratum", "cluster"], ignore_index=True)
    )
