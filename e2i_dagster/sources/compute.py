"""What a mapping computes of delivered rows: columns, rows of numbered columns, which rows are taken.

The language is ``config.computed``. A cell that cannot be computed stays as it was delivered, in a column of numbers,
days or lists, so that the loader rejects its row and the reject shows it.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.config.computed import Expression, OneRow, RowRule, converted, is_pattern
from e2i_dagster.config.mapping import PartMapping
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import did_you_mean
from e2i_dagster.tables import moments
from e2i_dagster.tables.arrow import compute, text_array
from e2i_dagster.tables.cells import as_text, numbers_of, read
from e2i_dagster.tables.frames import cell_text

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

TEXT = pd.StringDtype("pyarrow")
#: Between the cells of a key; no text file has it in a cell.
_BETWEEN = "\x1f"
_KEY_DIGITS = 32
#: Decimal digits that every double holds.
_DIGITS = 15
_DAYS = (np.datetime64("0001-01-01", "D").astype(int), np.datetime64("9999-12-31", "D").astype(int))

#: Rows of the files that fit patterns, with their text cells.
OtherFile = Callable[[tuple[str, ...]], pd.DataFrame]


def expanded(name: str, known: Sequence[str]) -> dict[str, str]:
    """The columns that ``name`` stands for, by what stands in the place of its ``*`` or ``{n}``, in order.

    A name that is a column is that one. Numbers are ordered as numbers, ``*`` as the columns are.
    """
    if name in known or not is_pattern(name):
        return {"": name} if name in known else {}
    if "{n}" in name:
        before, _, after = name.partition("{n}")
        found = [
            (int(number), column)
            for column in known
            if column.startswith(before) and column.endswith(after)
            and (number := column[len(before) : len(column) - len(after)]).isdecimal()
        ]  # fmt: skip
        return {str(number): column for number, column in sorted(found)}
    return {column: column for column in known if fnmatch.fnmatchcase(column, name)}


@dataclass(frozen=True)
class Chosen:
    """Delivered rows after ``unpivot`` and ``where``, with what was computed.

    Attributes:
        frame: their cells under the file's column names, without those that only computed columns hold.
        computed: our column -> its cells.
        taken: for each row its position in the file.
        left_out: rule -> rows that it left out.
        added: rows that ``unpivot`` made of a line beside the first.
    """

    frame: pd.DataFrame
    computed: Mapping[str, pd.Series]
    taken: np.ndarray
    left_out: Mapping[str, int] = field(default_factory=dict)
    added: int = 0


def choose(
    frame: pd.DataFrame, part: PartMapping, form: FileFormat, keep: Sequence[str], other: OtherFile
) -> Chosen:
    """``frame`` (one file's rows under its own column names) as the mapping wants it.

    Args:
        keep: columns that stay though a computed column holds their cells: those of the table.
        other: reads files to look up in.
    """
    taken = np.arange(len(frame))
    if not part.computes:
        return Chosen(frame, {}, taken)
    left_out: dict[str, int] = {}
    added = 0
    early = [
        rule for rule in part.where if rule.column in frame.columns or rule.column in part.rename.values()
    ]
    early = [rule for rule in early if rule.column not in part.columns]
    frame, taken = _where(frame, taken, early, part, form, other, left_out)
    if part.unpivot is not None:
        lines = len(frame)
        frame, places = _unpivoted(frame, part)
        without = lines - len(np.unique(places))
        if without:
            left_out[f"all of {', '.join(part.unpivot.columns.values())} are empty"] = without
        added = len(places) - (lines - without)
        taken = taken[places]
    late = [rule for rule in part.where if rule not in early]
    frame, taken = _where(frame, taken, late, part, form, other, left_out)
    cells = _Cells(frame, part, form, other)
    computed = {name: cells[name].rename(name) for name in part.columns}
    used = {
        column
        for expression in part.columns.values()
        for name in expression.used_up()
        for column in expanded(name, list(frame.columns)).values()
    }
    numbered = () if part.unpivot is None else (*part.unpivot.columns, part.unpivot.number)
    spent = [name for name in (*used, *numbered) if name not in keep and name not in part.rename]
    return Chosen(frame.drop(columns=spent, errors="ignore"), computed, taken, left_out, added)


def unknown_names(part: PartMapping, names: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """What the mapping names and the file, whose columns are ``names``, does not have.

    Returns:
        For each: key of the mapping, the name, what is wrong with it, the remedy.
    """
    found = f"Found: {', '.join(names)}."
    numbered = [] if part.unpivot is None else [*part.unpivot.columns, part.unpivot.number]
    own = [*part.columns, *part.constants, *part.rename.values()]
    asked = [
        (f"columns.{key}", *name) for key, expression in part.columns.items() for name in expression.names()
    ]
    asked += [(f"where.{number}", rule.column, False) for number, rule in enumerate(part.where)]
    for place, name, several in asked:
        known = [*own, *numbered, *names]
        if place == f"columns.{name}":
            # Within its own expression a name is the file's.
            known = [column for column in known if column != name or name in names]
        if is_pattern(name) and name not in known and not several:
            said = f"names {name}, which stands for several columns"
            yield place, name, said, "Say `first_of`, `list` or `sum` of them."
        elif not expanded(name, known):
            near = did_you_mean(name, known)
            yield place, name, f"names {name}, which is no column", f"{near} {found}".lstrip()
    for name, pattern in {} if part.unpivot is None else part.unpivot.columns.items():
        if not expanded(pattern, names):
            yield f"unpivot.columns.{name}", pattern, f"is {pattern}, which no column fits", found
    yield from (
        ("unpivot", name, f"makes a column {name}, which the file has too", "Name it otherwise.")
        for name in numbered
        if name in names
    )


def _where(
    frame: pd.DataFrame,
    taken: np.ndarray,
    rules: Sequence[RowRule],
    part: PartMapping,
    form: FileFormat,
    other: OtherFile,
    left_out: dict[str, int],
) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows that fulfil all rules; each of the others is counted under the first that it breaks."""
    if not rules:
        return frame, taken
    cells = _Cells(frame, part, form, other)
    kept = np.ones(len(frame), dtype=bool)
    for rule in rules:
        fulfilled = fulfils(cells[rule.column], rule, form)
        if broken := int((kept & ~fulfilled).sum()):
            left_out[rule.broken] = left_out.get(rule.broken, 0) + broken
        kept &= fulfilled
    return frame[kept].reset_index(drop=True), taken[kept]


def fulfils(cells: pd.Series, rule: RowRule, form: FileFormat) -> np.ndarray:
    """Which text cells are as ``rule`` wants; an empty one only if it is asked to be, or not to be some value.

    A comparison reads numbers, or days where the rule has a day; a cell that is none does not fulfil it.
    """
    key, wanted = rule.condition
    if key == "is":
        return (cells.isna() if wanted == "empty" else cells.notna()).to_numpy(dtype=bool)
    if key in ("equals", "in", "not_equals", "not_in"):
        among = cells.isin([wanted] if isinstance(wanted, str) else list(wanted)).to_numpy(dtype=bool)
        return ~among if key.startswith("not") else among
    if isinstance(wanted, dt.date):
        given = _days(cells, None, None).to_numpy()
        wanted = np.datetime64(wanted, "D")
    else:
        given = _numbers(cells, form).to_numpy()
    compare = {
        "at_least": np.greater_equal, "more_than": np.greater, "at_most": np.less_equal, "less_than": np.less,
    }[key]  # fmt: skip
    return compare(given, wanted)


def _unpivoted(frame: pd.DataFrame, part: PartMapping) -> tuple[pd.DataFrame, np.ndarray]:
    """One row for each number of each line at which a column is filled, and the line of each row."""
    assert part.unpivot is not None
    names = list(frame.columns)
    numbered = {name: expanded(pattern, names) for name, pattern in part.unpivot.columns.items()}
    numbers = sorted({number for found in numbered.values() for number in found}, key=int)
    empty = pd.Series([None] * len(frame), dtype=TEXT, index=frame.index)
    stacked: dict[str, list[pd.Series]] = {name: [] for name in numbered}
    lines: list[np.ndarray] = []
    for number in numbers:
        at = {name: frame[found[number]] if number in found else empty for name, found in numbered.items()}
        filled = np.flatnonzero(np.logical_or.reduce([cells.notna().to_numpy(bool) for cells in at.values()]))
        lines.append(filled)
        for name, cells in at.items():
            stacked[name].append(text_of(cells.iloc[filled]))
    places = np.concatenate(lines)
    # Stable: within a line by number.
    order = np.argsort(places, kind="stable")
    places = places[order]
    spent = {column for found in numbered.values() for column in found.values()}
    rows = frame[[name for name in names if name not in spent]].iloc[places].reset_index(drop=True)
    which = (
        pd.Series(np.repeat(numbers, [len(line) for line in lines]), dtype=TEXT)
        .iloc[order]
        .reset_index(drop=True)
    )
    made = {
        name: pd.concat(cells, ignore_index=True).iloc[order].reset_index(drop=True)
        for name, cells in stacked.items()
    }
    return rows.assign(**made, **{part.unpivot.number: which}), places


def one_row_mask(frame: pd.DataFrame, rule: OneRow) -> np.ndarray:
    """Which rows of ``frame`` (under our names) the rule takes; of equal days the first row, without ``per`` all."""
    column, sign = (rule.earliest, 1) if rule.earliest else (rule.latest, -1)
    days = _days(text_of(frame[str(column)]), None, None)
    missing = days.isna().to_numpy()
    rank = np.where(
        missing, np.iinfo(np.int64).max, sign * days.to_numpy().astype("datetime64[D]").astype(np.int64)
    )
    order = np.argsort(rank, kind="stable")
    groups = frame[rule.per].iloc[order]
    kept = np.zeros(len(frame), dtype=bool)
    kept[order] = ~groups.duplicated().to_numpy(bool) | groups.isna().to_numpy(bool)
    return kept


def text_of(cells: pd.Series) -> pd.Series:
    """Cells of any type as text, as a CSV file would have them."""
    if cells.dtype == TEXT:
        return cells
    if cells.dtype == object:
        return cell_text(cells).astype(TEXT)
    return pd.Series(as_text(cells), index=cells.index, dtype=TEXT)


class _Cells(Mapping[str, pd.Series]):
    """Columns of rows by every name that a mapping may use, as text; each is made once, when it is asked for.

    A name is a column of ours that the mapping makes, else one of the file. Within its own expression it is the file's.
    """

    def __init__(self, frame: pd.DataFrame, part: PartMapping, form: FileFormat, other: OtherFile) -> None:
        self._frame = frame
        self._part = part
        self._form = form
        self._other = other
        self._made: dict[str, pd.Series] = {}
        self._file_column = {ours: theirs for theirs, ours in part.rename.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._part.made, *self._file_column, *self._frame.columns)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> pd.Series:
        if name not in self._part.columns:
            return self._delivered(name)
        if name not in self._made:
            self._made[name] = self._evaluate(self._part.columns[name], name)
        return self._made[name]

    def _delivered(self, name: str) -> pd.Series:
        if name in self._part.constants:
            return self._constant(self._part.constants[name])
        return text_of(self._frame[self._file_column.get(name, name)])

    def _constant(self, value: str) -> pd.Series:
        return pd.Series([value or None], dtype=TEXT).repeat(len(self._frame)).set_axis(self._frame.index)

    def _cells(self, name: str, of: str) -> pd.Series:
        return self._delivered(name) if name == of else self[name]

    def _evaluate(self, expression: Expression, of: str) -> pd.Series:
        """The cells of an expression for the column ``of``."""
        match expression.kind:
            case "from":
                result = self._cells(str(expression.column), of)
                if expression.unit is not None:
                    result = self._converted(result, expression)
            case "constant":
                result = self._constant(str(expression.constant))
            case "concat":
                result = self._joined(expression, of)
            case "first_of":
                result = _first(self._under(expression.where, expression.first_of, of), self._frame.index)
            case "list":
                result = _listed(self._under(expression.where, expression.items, of), self._frame.index)
            case "sum":
                result = _summed(self._operands(expression.sum, of), self._form)
            case "day_after":
                assert expression.day_after is not None
                result = self._day_after(expression, of)
            case "key":
                result = _hashed(self._operands(expression.key, of), expression.prefix)
            case "lookup":
                result = self._looked_up(expression, of)
            case _:
                result = self._between(expression, of)
        if expression.replaced:
            result = _replaced(result, expression.replaced, expression.otherwise)
        return result

    def _operands(self, operands: Sequence[Expression], of: str) -> list[pd.Series]:
        """The cells of each operand, a pattern as the columns that it stands for."""
        return [cells for operand in operands for cells in self._several(operand, of).values()]

    def _several(self, expression: Expression, of: str) -> dict[str, pd.Series]:
        if expression.column is None or not is_pattern(expression.column):
            return {"": self._evaluate(expression, of)}
        columns = expanded(expression.column, list(self._frame.columns))
        return {where: text_of(self._frame[column]) for where, column in columns.items()}

    def _under(self, rule: RowRule | None, operands: Sequence[Expression], of: str) -> list[pd.Series]:
        """The cells of the operands, empty where the column of ``rule`` at the same place does not fulfil it."""
        if rule is None:
            return self._operands(operands, of)
        found = [item for operand in operands for item in self._several(operand, of).items()]
        if is_pattern(rule.column):
            names = expanded(rule.column, list(self._frame.columns))
            empty = self._constant("")
            at = [text_of(self._frame[names[where]]) if where in names else empty for where, _ in found]
        else:
            at = [self._cells(rule.column, of)] * len(found)
        return [
            cells.where(fulfils(judged, rule, self._form))
            for (_, cells), judged in zip(found, at, strict=True)
        ]

    def _joined(self, expression: Expression, of: str) -> pd.Series:
        """What is filled, with the separator between; empty where all but constants is."""
        parts = [
            (cells, operand) for operand in expression.concat for cells in self._several(operand, of).values()
        ]
        result = _chained([cells for cells, _ in parts], expression.separator, self._frame.index)
        empty = [cells.isna().to_numpy(bool) for cells, operand in parts if operand.kind != "constant"]
        return result.mask(np.logical_and.reduce(empty)) if empty else result

    def _converted(self, cells: pd.Series, expression: Expression) -> pd.Series:
        numbers = _numbers(cells, self._form)
        given = numbers.to_numpy()
        made = converted(given, str(expression.unit), str(expression.to), expression.molar_mass)
        return _with_unread(pd.Series(made, index=cells.index), [cells], [numbers])

    def _between(self, expression: Expression, of: str) -> pd.Series:
        pair = expression.days_between or expression.years_between
        assert pair is not None
        cells = [self._evaluate(operand, of) for operand in pair]
        first, last = (_days(given, expression.format, expression.partial) for given in cells)
        starts, ends = (days.to_numpy().astype("datetime64[D]") for days in (first, last))
        if expression.days_between:
            found = (ends - starts).astype(float)
        else:
            years = ends.astype("datetime64[Y]").astype(int) - starts.astype("datetime64[Y]").astype(int)
            # 29 February is over on 1 March of a common year.
            before = _month_and_day(ends) < _month_and_day(starts)
            found = (years - before).astype(float)
        missing = np.isnat(starts) | np.isnat(ends)
        return _with_unread(
            pd.Series(np.where(missing, np.nan, found), index=cells[0].index), cells, [first, last]
        )

    def _day_after(self, expression: Expression, of: str) -> pd.Series:
        assert expression.day_after is not None
        cells = self._evaluate(expression.day_after, of)
        days = _days(cells, expression.format, expression.partial)
        if isinstance(expression.days, Expression):
            given = self._evaluate(expression.days, of)
            read_as = _numbers(given, self._form)
            # Half a day is none.
            read_as = read_as.where(read_as == np.floor(read_as))
        else:
            given = self._constant(str(expression.days))
            read_as = _numbers(given, self._form)
        number = days.to_numpy().astype("datetime64[D]").astype(np.int64)
        missing = (days.isna() | read_as.isna()).to_numpy()
        sums = np.where(missing, 0.0, number + read_as.fillna(0).to_numpy())
        outside = (sums < _DAYS[0]) | (sums > _DAYS[1])
        found = np.where(outside | missing, 0, sums).astype(np.int64).astype("datetime64[D]")
        text = pd.Series(np.datetime_as_string(found), index=cells.index, dtype=TEXT).mask(missing | outside)
        return _unread(text, [cells, given], [days, read_as.mask(outside)])

    def _looked_up(self, expression: Expression, of: str) -> pd.Series:
        rows, where = self._other(expression.file), ", ".join(expression.file)
        asked = [*expression.by.values(), str(expression.lookup)]
        if absent := [name for name in asked if name not in rows.columns]:
            near = did_you_mean(absent[0], rows.columns)
            raise InputError(
                f"{where}: `columns.{of}` looks up {absent[0]}, which is no column of it.",
                file=where, field=f"columns.{of}", value=absent[0],
                remedy=f"{near} Found: {', '.join(rows.columns)}.".lstrip(),
            )  # fmt: skip
        known = pd.DataFrame(
            {
                "key": _key_of([text_of(rows[name]) for name in expression.by.values()]),
                "cell": text_of(rows[str(expression.lookup)]),
            }
        ).dropna()
        if expression.take in ("earliest", "latest"):
            known = known.sort_values("cell", kind="stable")
        elif expression.take is None:
            known = known.drop_duplicates()
            if several := int(known["key"][known["key"].duplicated()].nunique()):
                by = ", ".join(expression.by.values())
                raise InputError(
                    f"{where}: `columns.{of}` looks up {expression.lookup}, which has several values for one {by} "
                    f"({several:,} of them).",
                    file=where, field=f"columns.{of}", value=expression.lookup,
                    remedy="Say which to `take`: first, last, earliest or latest.",
                )  # fmt: skip
        known = known.drop_duplicates(
            "key", keep="last" if expression.take in ("last", "latest") else "first"
        )
        mine = _key_of([self._cells(name, of) for name in expression.by])
        found = pd.Index(known["key"]).get_indexer(pd.Index(mine))
        # An empty key is nobody's.
        found[mine.isna().to_numpy(bool)] = -1
        taken = known["cell"].array.take(found, allow_fill=True)
        return pd.Series(taken, index=mine.index, dtype=TEXT)


def _arrow(cells: pd.Series) -> pa.Array:
    import pyarrow as pa

    array = pa.array(cells.array)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.cast(pa.large_string())


def _series(array: pa.Array, index: pd.Index) -> pd.Series:
    return pd.Series(pd.arrays.ArrowStringArray(array.cast("large_string")), index=index).astype(TEXT)


def _by_distinct(cells: pd.Series, function: Callable[[str], str | None]) -> pd.Series:
    codes, distinct = pd.factorize(cells)
    taken = pd.array([function(str(value)) for value in distinct], dtype=TEXT).take(codes, allow_fill=True)
    return pd.Series(taken, index=cells.index)


def _replaced(cells: pd.Series, to: Mapping[str, str], otherwise: str | None) -> pd.Series:
    """Whole cells replaced; an empty target is an empty cell, and ``""`` among the sources too."""
    result = _by_distinct(
        cells, lambda value: to.get(value, value if otherwise is None else otherwise) or None
    )
    return result.mask(cells.isna(), to[""]) if to.get("") else result


def _first(columns: Sequence[pd.Series], index: pd.Index) -> pd.Series:
    if not columns:
        return pd.Series([None] * len(index), index=index, dtype=TEXT)
    return _series(compute().coalesce(*map(_arrow, columns)), index)


def _listed(columns: Sequence[pd.Series], index: pd.Index) -> pd.Series:
    """The filled cells of each row as a JSON list; empty where there is none."""
    quoted = [_by_distinct(cells, lambda value: json.dumps(value, ensure_ascii=False)) for cells in columns]
    return "[" + _chained(quoted, ", ", index) + "]"


def _chained(columns: Sequence[pd.Series], separator: str, index: pd.Index) -> pd.Series:
    """The filled cells of each row with the separator between; empty where none is filled."""
    pc = compute()
    between = text_array([separator])[0]
    # Not one join over all columns that skips nulls: Arrow's leaves out the rows in which all are null.
    chain = text_array([None] * len(index))
    for cells in map(_arrow, columns):
        chain = pc.coalesce(pc.binary_join_element_wise(chain, cells, between), chain, cells)
    return _series(chain, index)


def _summed(columns: Sequence[pd.Series], form: FileFormat) -> pd.Series:
    """The sum of the filled cells with as many decimals as the cells have; empty where none is filled."""
    numbers = [_numbers(cells, form) for cells in columns]
    total = np.nansum(np.column_stack([number.to_numpy() for number in numbers]), axis=1)
    none = np.logical_and.reduce([number.isna().to_numpy() for number in numbers])
    # What binary fractions add beyond the delivered digits is no part of the sum.
    decimals = _decimals(columns)
    exact = np.where(np.abs(total) < 10.0 ** (_DIGITS - decimals), np.round(total, decimals), total)
    return _with_unread(pd.Series(exact, index=columns[0].index).mask(none), columns, numbers)


def _decimals(columns: Sequence[pd.Series]) -> int:
    """Most digits behind the decimal mark of any cell; 9 where one is written with an exponent."""
    pc = compute()
    most = 0
    for cells in columns:
        array = _arrow(cells)
        if pc.any(pc.match_substring(array, "e", ignore_case=True)).as_py():
            return 9
        behind = pc.struct_field(pc.extract_regex(array, r"[.,](?P<digits>\d+)\s*$"), 0)
        most = max(most, pc.max(pc.utf8_length(behind)).as_py() or 0)
    return min(most, 9)


def _hashed(columns: Sequence[pd.Series], prefix: str) -> pd.Series:
    """A hash (SHA-256, 128 bits) of the cells, in which an empty one counts; empty where all are."""
    whole = [cells.fillna("\x00") for cells in columns]
    joined = whole[0]
    for cells in whole[1:]:
        joined = joined.str.cat(cells, sep=_BETWEEN)
    joined = joined.mask(np.logical_and.reduce([cells.isna().to_numpy() for cells in columns]))
    return _by_distinct(joined, lambda text: prefix + hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS])


def _key_of(columns: Sequence[pd.Series]) -> pd.Series:
    """The cells of a row as one text; empty where one of them is."""
    joined = columns[0]
    for cells in columns[1:]:
        joined = joined.str.cat(cells, sep=_BETWEEN)
    return joined


def _numbers(cells: pd.Series, form: FileFormat) -> pd.Series:
    return numbers_of(cells.str.replace(",", ".", regex=False) if form.decimal == "," else cells)


def _days(cells: pd.Series, form: str | None, partial: Any) -> pd.Series:
    """The day of each cell, ``datetime64[s]``, by the strptime format ``form``, else as ISO or YYYYMMDD."""
    from e2i_dagster.tables.moments import iso_text

    if form is not None:
        cells = _by_distinct(cells, lambda value: iso_text(value, form) or value)
    if partial is not None:
        cells = _by_distinct(
            cells,
            lambda value: (
                value if (moment := moments.completed(value, partial)) is None else moment.day.isoformat()
            ),
        )
    found = read("date", _arrow(cells)).values
    return pd.Series(found.to_numpy(zero_copy_only=False).astype("datetime64[s]"), index=cells.index)


def _month_and_day(days: np.ndarray) -> np.ndarray:
    months = days.astype("datetime64[M]")
    return (months.astype(int) % 12) * 31 + (days - months).astype(int)


def _with_unread(numbers: pd.Series, cells: Sequence[pd.Series], read_as: Sequence[pd.Series]) -> pd.Series:
    """Numbers as text, and in the place of those of a cell that could not be read that cell."""
    values = numbers.to_numpy(dtype=float)
    distinct, codes = np.unique(values, return_inverse=True)
    written = [None if np.isnan(number) else _number_text(number) for number in distinct]
    text = pd.Series(pd.array(written, dtype=TEXT).take(codes), index=numbers.index)
    return _unread(text, cells, read_as)


def _number_text(value: float) -> str:
    """The shortest decimal of 15 significant digits, never with an exponent."""
    return np.format_float_positional(float(f"{value:.{_DIGITS}g}") + 0, trim="-")


def _unread(result: pd.Series, cells: Sequence[pd.Series], read_as: Sequence[pd.Series]) -> pd.Series:
    for given, values in zip(cells, read_as, strict=True):
        wrong = (given.notna() & values.isna()).to_numpy(bool)
        result = result.mask(wrong, given)
    return result
