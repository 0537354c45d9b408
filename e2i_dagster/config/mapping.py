"""The import mapping: how a supplier's files become our raw tables (``docs/loading.md``).

A mapping is optional. It says only what differs: other column names, date formats, codes, a
separator, file names. Rows and values that the mapping does not mention pass through as they are.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, field_validator, model_validator

from e2i_dagster.config.computed import DateFormat, Expression, OneRow, RowRule, Unpivot, circle
from e2i_dagster.policy_files.base import Place, PolicyModel, did_you_mean, read_yaml
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, raw_table
from e2i_dagster.tables.cells import kind_of
from e2i_dagster.tables.own_types import OWN_TABLE, OwnType


def _known_encoding(value: str) -> str:
    try:
        return codecs.lookup(value).name
    except LookupError:
        raise ValueError("not an encoding; for example utf-8, utf-16, latin-1, cp1252") from None


Encoding = Annotated[str, AfterValidator(_known_encoding)]


def _quoting(value: str) -> str:
    if value != "none" and (len(value) != 1 or not value.isascii() or value in "\r\n"):
        raise ValueError("not one ASCII character, such as '\"', nor none (written without quoting)")
    return value


Quote = Annotated[str, AfterValidator(_quoting)]


def _known_zone(value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("not a time zone; for example Europe/Berlin, America/New_York, UTC") from None


Zone = Annotated[str, AfterValidator(_known_zone)]


class FileFormat(PolicyModel):
    """How CSV files are written.

    ``separator`` is one character; ``decimal`` is the decimal mark of numbers; ``encoding`` any
    encoding that Python knows; ``nulls`` are further spellings of an empty field. ``quote`` is the mark
    around cells that hold a separator, or ``none`` where the supplier writes without quoting and a
    quotation mark is text like any other. ``line_breaks`` declares that quoted cells may hold line breaks
    together with separators, which otherwise is read as a quotation mark that is text. ``time_zone`` is the zone
    of moments without an offset in timestamp columns, of text as of Parquet. ``components`` says how many components
    of a FHIR Observation become columns (``component1_value``).
    """

    separator: str = Field(default=",", min_length=1, max_length=1)
    encoding: Encoding = "utf-8"
    decimal: str = Field(default=".", pattern=r"^[.,]$")
    nulls: tuple[str, ...] = ()
    quote: Quote = '"'
    line_breaks: bool = False
    time_zone: Zone = "UTC"
    components: int = Field(default=0, ge=0, le=50)


class ReversalMark(PolicyModel):
    """What distinguishes a reversal from other rows: ``is: negative`` or ``in: [R, V]`` of a delivered column."""

    column: str
    sign: Literal["negative"] | None = Field(default=None, alias="is")
    values: tuple[str, ...] = Field(default=(), alias="in")

    @model_validator(mode="after")
    def _one_mark(self) -> ReversalMark:
        if (self.sign is None) == (not self.values):
            raise ValueError("say either `is: negative` or `in: [<value>, ...]`")
        return self


class ReversalRule(PolicyModel):
    """Rows that take an earlier row back, and how its original is found.

    ``where`` tells reversals from other rows. ``matches_on`` are columns that are equal in both rows,
    ``amounts`` columns whose value is equal but for the sign, ``refers_to`` is a column of the reversal that
    holds the key of its original. What is declared must hold together.
    """

    where: ReversalMark
    matches_on: tuple[str, ...] = ()
    amounts: tuple[str, ...] = ()
    refers_to: str | None = None

    @model_validator(mode="after")
    def _finds_one(self) -> ReversalRule:
        if not self.matches_on and self.refers_to is None:
            raise ValueError("say how the original is found: `matches_on`, or `refers_to`")
        if not self.amounts and (self.where.sign is not None or self.refers_to is None):
            raise ValueError(
                "`amounts` is missing: without it the reversal of a part looks like that of the whole"
            )
        return self


class PartMapping(PolicyModel):
    """How files of one shape become rows of a table.

    ``files`` are patterns relative to the folder; ``rename`` is file column -> our column; all other keys name OUR
    columns: ``columns`` computes them from what was delivered, ``dates`` gives a strptime format, ``values`` maps
    delivered values to ours, ``constants`` adds columns with one value. ``ignore`` drops file columns. ``unpivot``
    makes rows of numbered columns, ``where`` says which rows are taken. The format fields override the mapping's
    defaults.
    """

    files: tuple[str, ...] = ()
    rename: dict[str, str] = Field(default_factory=dict)
    unpivot: Unpivot | None = None
    where: tuple[RowRule, ...] = ()
    columns: dict[str, Expression] = Field(default_factory=dict)
    dates: dict[str, DateFormat] = Field(default_factory=dict)
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    constants: dict[str, str] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    encoding: Encoding | None = None
    decimal: str | None = Field(default=None, pattern=r"^[.,]$")
    nulls: tuple[str, ...] | None = None
    quote: Quote | None = None
    line_breaks: bool | None = None
    components: int | None = Field(default=None, ge=0, le=50)
    time_zone: Zone | None = None

    @field_validator("columns")
    @classmethod
    def _no_circle(cls, columns: dict[str, Expression]) -> dict[str, Expression]:
        if way := circle(columns):
            raise ValueError(
                f"{' -> '.join(way)} go round in a circle. Compute one of them from columns of the file; `rename` swaps"
            )
        return columns

    @model_validator(mode="after")
    def _one_source_per_column(self) -> Self:
        targets = list(self.rename.values())
        twice = sorted({name for name in targets if targets.count(name) > 1})
        if twice:
            raise ValueError(f"rename gives {', '.join(twice)} more than once; keep one source per column")
        ways = {"renamed": targets, "a constant": self.constants, "computed": self.columns}
        for (way, names), (other, others) in itertools.combinations(ways.items(), 2):
            if both := sorted(set(names) & set(others)):
                raise ValueError(f"{', '.join(both)} is both {way} and {other}; keep one of them")
        return self

    @property
    def made(self) -> tuple[str, ...]:
        """Our columns that no column of a file need be: constants and computed ones."""
        return (*self.constants, *self.columns)

    @property
    def computes(self) -> bool:
        """Whether anything is computed or chosen."""
        return bool(self.columns or self.where or self.unpivot)

    @property
    def looked_up(self) -> tuple[str, ...]:
        """Patterns of the files that columns are looked up in."""
        return tuple(dict.fromkeys(name for column in self.columns.values() for name in column.files()))


class TableMapping(PartMapping):
    """What differs for one table.

    The keys of :class:`PartMapping`, where ``files`` are by default ``<table>.csv|parquet`` and
    ``<table>_*.csv|parquet``, or ``parts``: several of them, for files of several shapes. For the whole table:
    ``partial_dates`` says what becomes of a year or month without a
    day (``first``, ``middle`` or ``last`` day of it, or ``reject``, as without it; also of own columns that are
    declared as ``date``). ``restates: month``:
    the delivery holds every row of the months that it has rows of, so what it does not hold is withdrawn;
    ``restates: all`` says the same of a table without months. ``reversals`` declares rows that take others back.
    ``one_row`` takes one of the rows that agree in a column. ``own`` declares the types of columns of one's own,
    under which their cells are checked; what it does not name is text.
    """

    parts: tuple[PartMapping, ...] = ()
    one_row: OneRow | None = None
    partial_dates: dict[str, Literal["first", "middle", "last", "reject"]] = Field(default_factory=dict)
    own: dict[str, OwnType] = Field(default_factory=dict)
    restates: Literal["month", "all"] | None = None
    reversals: ReversalRule | None = None

    @model_validator(mode="after")
    def _parts_say_it_all(self) -> Self:
        of_part = {name for name in PartMapping.model_fields if name not in FileFormat.model_fields}
        both = sorted(of_part & self.model_fields_set)
        if self.parts and both:
            raise ValueError(f"{', '.join(both)} beside `parts`: write it in the parts that it is for")
        if nameless := [str(number + 1) for number, part in enumerate(self.parts) if not part.files]:
            raise ValueError(f"part {', '.join(nameless)} names no `files`; say which files it is for")
        return self

    @property
    def as_parts(self) -> tuple[PartMapping, ...]:
        """The shapes of its files: ``parts``, or the table itself."""
        return self.parts or (self,)


class ImportMapping(PolicyModel):
    """All tables of one delivery; ``format`` holds for every file unless a table says otherwise.

    ``ignore`` are patterns of files that are not read.
    """

    format: FileFormat = FileFormat()
    ignore: tuple[str, ...] = ()
    tables: dict[str, TableMapping] = Field(default_factory=dict)

    @field_validator("tables")
    @classmethod
    def _own_columns_are_clinical(cls, tables: dict[str, TableMapping]) -> dict[str, TableMapping]:
        wrong = sorted(name for name, table in tables.items() if table.own and name != OWN_TABLE)
        if wrong:
            raise ValueError(
                f"`own` stands under {', '.join(wrong)}, but only {OWN_TABLE} keeps columns of your own: deliver them "
                f"there, by patient_journey_id, and declare them under tables.{OWN_TABLE}.own"
            )
        return tables

    def table(self, name: str) -> TableMapping:
        """The mapping of table ``name``; an empty one if the mapping does not mention it."""
        return self.tables.get(name, TableMapping())

    def format_of(self, name: str, part: PartMapping | None = None) -> FileFormat:
        """The file format of table ``name``: its own fields, and those of one of its parts, over the defaults."""
        given = {
            field: value
            for own in (self.table(name), part)
            for field in FileFormat.model_fields
            if own is not None and (value := getattr(own, field)) is not None
        }
        # Only what was said is set, so that a file's name can decide what was not.
        return FileFormat.model_validate({**self.format.model_dump(exclude_unset=True), **given})

    @property
    def named_files(self) -> tuple[str, ...]:
        """Patterns of the files that are named for a table."""
        return tuple(dict.fromkeys(name for part in self._all_parts for name in part.files))

    @property
    def looked_up_files(self) -> tuple[str, ...]:
        """Patterns of the files that columns are looked up in."""
        return tuple(dict.fromkeys(name for part in self._all_parts for name in part.looked_up))

    @property
    def _all_parts(self) -> list[PartMapping]:
        return [part for table in self.tables.values() for part in table.as_parts]

    @classmethod
    def load(cls, path: Path) -> ImportMapping:
        """Read a mapping file.

        Raises:
            ConfigError: the file is missing or a field is wrong (line, field, value, remedy).
        """
        return read_yaml(path, cls, _computed_kinds)


def _computed_kinds(mapping: ImportMapping) -> Iterable[Place]:
    """Computed columns whose cells are of another kind than the column that they are for."""
    for name, table in mapping.tables.items():
        if name not in RAW_TABLES + OPTIONAL_RAW_TABLES:
            continue
        for number, part in enumerate(table.as_parts):
            place = ("tables", name, *(("parts", number) if table.parts else ()), "columns")
            for column, expression in part.columns.items():
                yield from (
                    ((*place, column), said)
                    for said in _misfit(name, column, expression, table.own.get(column))
                )


def _misfit(table: str, name: str, expression: Expression, own: OwnType | None) -> Iterator[str]:
    if expression.makes == "text":
        return
    known = raw_table(table).columns
    kind = kind_of(known[name]) if name in known else own
    fits = {"number": ("number", "integer"), "date": ("date", "timestamp"), "list": ("list",)}[
        expression.makes
    ]
    if kind in fits:
        return
    if kind is None and table == OWN_TABLE and expression.makes != "list":
        yield f"{expression.kind} makes a {expression.makes}. Declare `own: {{{name}: {expression.makes}}}`"
    elif kind is None:
        near = did_you_mean(name, known.keys())
        yield f"{expression.kind} makes a {expression.makes}, and {table} has no column {name}. {near}".rstrip()
    else:
        fitting = [column.name for column in known if kind_of(column) in fits] or ["none"]
        yield (
            f"{expression.kind} makes a {expression.makes}, and {name} is {kind}. Such columns of {table}: "
            f"{', '.join(fitting)}"
        )


class HandedMapping(FileFormat):
    """How one file that is handed to a command is written, in the words of the import mapping.

    The fields of :class:`FileFormat`, and ``rename``, ``dates``, ``values`` and ``ignore`` as for a table, where all
    but ``rename`` name columns after renaming. ``text`` names columns that are text whatever they look like, such as
    codes and numbers that identify.
    """

    rename: dict[str, str] = Field(default_factory=dict)
    dates: dict[str, str] = Field(default_factory=dict)
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    text: tuple[str, ...] = ()

    @property
    def form(self) -> FileFormat:
        """How the file is written; only what was said is set, so that a file's name can decide the rest."""
        return FileFormat.model_validate(
            self.model_dump(include=set(FileFormat.model_fields), exclude_unset=True)
        )

    @classmethod
    def load(cls, path: Path) -> HandedMapping:
        """Read a mapping file.

        Raises:
            ConfigError: the file is missing or a field is wrong (line, field, value, remedy).
        """
        return read_yaml(path, cls)
