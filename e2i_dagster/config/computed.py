"""Columns that a mapping computes and rows that it chooses: a small declared list, no Python and no SQL.

What each means is in ``docs/mapping.md``; ``sources.compute`` does it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from e2i_dagster.policy_files.base import PolicyModel

#: Kinds of expressions, and the keys that may stand beside each.
_BESIDE: Mapping[str, tuple[str, ...]] = {
    "from": ("map", "else", "unit", "to", "molar_mass"),
    "constant": (),
    "concat": ("separator", "map", "else"),
    "first_of": ("where", "map", "else"),
    "list": ("where",),
    "sum": (),
    "days_between": ("format", "partial"),
    "years_between": ("format", "partial"),
    "day_after": ("days", "format", "partial"),
    "key": ("prefix",),
    "lookup": ("in", "by", "take", "map", "else"),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "unit": ("to",), "to": ("unit",), "molar_mass": ("unit",), "else": ("map",),
    "day_after": ("days",), "lookup": ("in", "by"),
}  # fmt: skip


def is_pattern(name: str) -> bool:
    """Whether ``name`` stands for several columns: ``dx*``, or ``dx{n}`` with a number for ``n``."""
    return "*" in name or "{n}" in name


def date_format(value: str) -> str:
    """``value`` if it is a strptime format with a year.

    Raises:
        ValueError: it is none.
    """
    example = dt.datetime(2013, 7, 15, tzinfo=dt.UTC)
    try:
        dt.datetime.strptime(example.strftime(value), value)
    except ValueError:
        raise ValueError("not a strptime format; for example %d.%m.%Y, %Y%m%d, %d-%b-%Y") from None
    if not re.search("%[YyGxc]", value):
        raise ValueError("a date without a year; for example %d.%m.%Y") from None
    return value


DateFormat = Annotated[str, AfterValidator(date_format)]


def _as_written(value: Any) -> Any:
    """A day as its text; any other value that YAML reads as more than text is asked for in quotes."""
    if isinstance(value, dt.date):
        return value.isoformat()
    if not isinstance(value, str):
        raise ValueError("not text: YAML reads it as another value than a cell holds; write it in quotes")
    return value


Cell = Annotated[str, BeforeValidator(_as_written)]


@cache
def units() -> Any:
    """The registry of units; read from its file when first asked for."""
    import pint

    return pint.UnitRegistry()


def converted(values: Any, unit: str, to: str, molar_mass: float | None) -> Any:
    """``values`` (numbers or an array) in ``unit`` as numbers in ``to``.

    Args:
        molar_mass: of the substance in g/mol, to go between an amount and a mass.

    Raises:
        ValueError: one of the units is not known, or the two do not measure the same.
    """
    import pint

    registry = units()
    for name in (unit, to):
        try:
            registry.parse_units(name)
        except (pint.errors.PintError, AttributeError, ValueError) as error:
            raise ValueError(f"{name!r} is no unit ({error}); for example mg/day, mmol/L, kg, degF") from None
    given = registry.Quantity(values, unit)
    try:
        if molar_mass is not None:
            return given.to(to, "chemistry", mw=registry.Quantity(molar_mass, "g/mol")).magnitude
        return given.to(to).magnitude
    except pint.DimensionalityError as error:
        amounts = "[substance]" in str(error) and molar_mass is None
        more = "; between an amount and a mass say `molar_mass`, in g/mol" if amounts else ""
        raise ValueError(f"{unit} and {to} do not measure the same{more}") from None


class RowRule(PolicyModel):
    """What a cell of ``column`` must be for the row to be taken; exactly one of the other keys."""

    column: str
    state: Literal["empty", "filled"] | None = Field(default=None, alias="is")
    equals: Cell | None = None
    not_equals: Cell | None = None
    values: tuple[Cell, ...] = Field(default=(), alias="in")
    not_in: tuple[Cell, ...] = ()
    at_least: float | dt.date | None = None
    more_than: float | dt.date | None = None
    at_most: float | dt.date | None = None
    less_than: float | dt.date | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> RowRule:
        if len(self.model_dump(by_alias=True, exclude_defaults=True)) != 2:
            raise ValueError(
                "say exactly one of `is: empty`, `is: filled`, `equals`, `not_equals`, `in`, `not_in`, `at_least`, "
                "`more_than`, `at_most`, `less_than`"
            )
        return self

    @property
    def condition(self) -> tuple[str, Any]:
        """The key of the condition and its value."""
        (found,) = (
            item
            for item in self.model_dump(by_alias=True, exclude_defaults=True).items()
            if item[0] != "column"
        )
        return found

    @property
    def broken(self) -> str:
        """Why the rule leaves a row out, in words."""
        key, value = self.condition
        if key == "is":
            return f"{self.column} is {'filled' if value == 'empty' else 'empty'}"
        words = {"equals": "not", "not_equals": "", "in": "none of", "not_in": "one of"}
        shown = (
            ", ".join(value)
            if isinstance(value, tuple)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )
        return " ".join([self.column, "is", words.get(key, f"not {key.replace('_', ' ')}"), shown]).replace(
            "  ", " "
        )


class Expression(PolicyModel):
    """How the cells of one column are made; exactly one kind. A text is short for ``from: <text>``.

    ``from`` a column, with ``unit`` and ``to`` converted (``molar_mass`` in g/mol between an amount and a mass);
    ``constant``; ``concat`` with ``separator``, of what is filled; ``first_of`` the first that is filled; ``list`` of
    those that are filled; ``sum``; ``days_between`` and ``years_between`` two days; the day ``days`` after
    ``day_after``; ``key``, a hash of columns; ``lookup`` of a column ``in`` another file, ``by`` our column to
    its column. ``map`` with ``else`` replaces whole values of the result.
    """

    column: str | None = Field(default=None, alias="from")
    constant: Cell | None = None
    concat: tuple[Expression, ...] = ()
    first_of: tuple[Expression, ...] = ()
    items: tuple[Expression, ...] = Field(default=(), alias="list")
    sum: tuple[Expression, ...] = ()
    days_between: tuple[Expression, Expression] | None = None
    years_between: tuple[Expression, Expression] | None = None
    day_after: Expression | None = None
    key: tuple[Expression, ...] = ()
    lookup: str | None = None
    replaced: dict[Cell, Cell] = Field(default_factory=dict, alias="map")
    otherwise: Cell | None = Field(default=None, alias="else")
    unit: str | None = None
    to: str | None = None
    molar_mass: float | None = Field(default=None, gt=0)
    separator: str = ""
    where: RowRule | None = None
    format: DateFormat | None = None
    partial: Literal["first", "middle", "last"] | None = None
    days: Expression | int | None = None
    prefix: str = ""
    file: tuple[str, ...] = Field(default=(), alias="in")
    by: dict[str, str] = Field(default_factory=dict)
    take: Literal["first", "last", "earliest", "latest"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"from": given} if isinstance(given, str) else given

    @field_validator("concat", "first_of", "items", "sum", "key", "file", mode="before")
    @classmethod
    def _pattern_alone(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _holds_together(self) -> Expression:
        said = self._said()
        kinds = [name for name in _BESIDE if name in said]
        if len(kinds) != 1:
            found = f"found {' and '.join(kinds)}" if kinds else "found none"
            raise ValueError(f"say exactly one of {', '.join(_BESIDE)} ({found})")
        (kind,) = kinds
        wrong = [name for name in said if name != kind and name not in _BESIDE[kind]]
        if wrong:
            beside = ", ".join(_BESIDE[kind]) or "nothing"
            raise ValueError(f"{', '.join(wrong)} does not go with {kind}; beside it may stand {beside}")
        for name, needed in _NEEDED.items():
            missing = [key for key in needed if name in said and key not in said]
            if missing:
                raise ValueError(f"{name} needs {' and '.join(missing)} beside it")
        for operand in self.operands:
            if operand.makes != "text":
                raise ValueError(f"{operand.kind} makes a {operand.makes} and stands alone, not in {kind}")
        if self.unit is not None and self.to is not None:
            converted(1.0, self.unit, self.to, self.molar_mass)
        return self

    def _said(self) -> set[str]:
        names = {name: field.alias or name for name, field in Expression.model_fields.items()}
        return {names[name] for name in self.model_fields_set}

    @property
    def kind(self) -> str:
        """Which kind of expression it is, as written."""
        said = self._said()
        return next(name for name in _BESIDE if name in said)

    @property
    def makes(self) -> Literal["text", "number", "date", "list"]:
        """What the cells are: text may go anywhere, the others only into columns of their kind."""
        if self.unit is not None or self.kind in ("sum", "days_between", "years_between"):
            return "number"
        return "date" if self.kind == "day_after" else "list" if self.kind == "list" else "text"

    @property
    def operands(self) -> tuple[Expression, ...]:
        """The expressions within it."""
        pairs = (*(self.days_between or ()), *(self.years_between or ()))
        single = tuple(operand for operand in (self.day_after, self.days) if isinstance(operand, Expression))
        return (*self.concat, *self.first_of, *self.items, *self.sum, *self.key, *pairs, *single)

    def names(self, *, among_others: bool = False) -> Iterator[tuple[str, bool]]:
        """What it reads of the rows, and whether that may be a pattern; those within it too.

        Args:
            among_others: it is one of several operands.
        """
        if self.column is not None:
            yield self.column, among_others and self._said() == {"from"}
        if self.where is not None:
            yield self.where.column, True
        yield from ((name, False) for name in self.by)
        several = (*self.concat, *self.first_of, *self.items, *self.sum, *self.key)
        for operand in self.operands:
            yield from operand.names(among_others=operand in several)

    def used_up(self) -> Iterator[str]:
        """The columns and patterns whose cells are in the result: all but those of keys, conditions, lookups."""
        if self.column is not None:
            yield self.column
        for operand in () if self.key else self.operands:
            yield from operand.used_up()

    def files(self) -> Iterator[str]:
        """Patterns of the files that it looks up in."""
        yield from self.file
        for operand in self.operands:
            yield from operand.files()


class Unpivot(PolicyModel):
    """One row for each number of numbered columns: ``columns: {code: "dx{n}"}``, the number under ``number``.

    Several columns are aligned by their number. A number at which none of them is filled makes no row.
    """

    columns: dict[str, str] = Field(min_length=1)
    number: str = "n"

    @model_validator(mode="after")
    def _numbered(self) -> Unpivot:
        wrong = [pattern for pattern in self.columns.values() if pattern.count("{n}") != 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: write the number as {{n}}, once, for example dx{{n}}")
        if self.number in self.columns:
            raise ValueError(f"{self.number} is both a column and the number; name one of them otherwise")
        return self


class OneRow(PolicyModel):
    """Of the rows that agree in ``per``, that with the ``earliest`` or the ``latest`` day is taken."""

    per: str
    earliest: str | None = None
    latest: str | None = None

    @model_validator(mode="after")
    def _one_end(self) -> OneRow:
        if (self.earliest is None) == (self.latest is None):
            raise ValueError("say either `earliest: <date column>` or `latest: <date column>`")
        return self

    @property
    def broken(self) -> str:
        """Why the rule leaves a row out, in words."""
        which, column = ("earliest", self.earliest) if self.earliest else ("latest", self.latest)
        return f"not the {which} {column} of its {self.per}"


def circle(columns: Mapping[str, Expression]) -> list[str]:
    """Columns that are computed from each other in a circle, the first named again at the end; empty if none are.

    A column that reads its own name reads that of the file.
    """
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for read, _ in columns[name].names():
            if read in columns and read != name and (found := follow(read, [*way, name])):
                return found
        done.add(name)
        return []

    return next((found for name in columns if (found := follow(name, []))), [])
