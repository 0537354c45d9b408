"""The import mapping: how a supplier's files become our raw tables (``docs/loading.md``).

A mapping is optional. It says only what differs: other column names, date formats, codes, a
separator, file names. Rows and values that the mapping does not mention pass through as they are.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from e2i_dagster.config.base import PolicyModel, read_yaml


def _known_encoding(value: str) -> str:
    try:
        return codecs.lookup(value).name
    except LookupError:
        raise ValueError("not an encoding; for example utf-8, utf-16, latin-1, cp1252") from None


Encoding = Annotated[str, AfterValidator(_known_encoding)]


class FileFormat(PolicyModel):
    """How CSV files are written.

    ``separator`` is one character; ``decimal`` is the decimal mark of numbers; ``encoding`` any
    encoding that Python knows; ``nulls`` are further spellings of an empty field.
    """

    separator: str = Field(default=",", min_length=1, max_length=1)
    encoding: Encoding = "utf-8"
    decimal: str = Field(default=".", pattern=r"^[.,]$")
    nulls: tuple[str, ...] = ()


class TableMapping(PolicyModel):
    """What differs for one table.

    ``files`` are patterns relative to the folder (default: ``<table>.csv|parquet`` and
    ``<table>_*.csv|parquet``); ``rename`` is file column -> our column; all other keys name OUR
    columns: ``dates`` gives a strptime format, ``values`` maps delivered values to ours, ``constants``
    adds columns with one value. ``ignore`` drops file columns. ``restates: month``: the delivery holds every row of the
    months that it has rows of, so what it does not hold is withdrawn. The format fields override the
    mapping's defaults.
    """

    files: tuple[str, ...] = ()
    rename: dict[str, str] = Field(default_factory=dict)
    dates: dict[str, str] = Field(default_factory=dict)
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    constants: dict[str, str] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    restates: Literal["month"] | None = None
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    encoding: Encoding | None = None
    decimal: str | None = Field(default=None, pattern=r"^[.,]$")
    nulls: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_source_per_column(self) -> TableMapping:
        targets = list(self.rename.values())
        twice = sorted({name for name in targets if targets.count(name) > 1})
        if twice:
            raise ValueError(f"rename gives {', '.join(twice)} more than once; keep one source per column")
        both = sorted(set(targets) & set(self.constants))
        if both:
            raise ValueError(f"{', '.join(both)} is both renamed and a constant; keep one of them")
        return self


class ImportMapping(PolicyModel):
    """All tables of one delivery; ``format`` holds for every file unless a table says otherwise."""

    format: FileFormat = FileFormat()
    tables: dict[str, TableMapping] = Field(default_factory=dict)

    def table(self, name: str) -> TableMapping:
        """The mapping of table ``name``; an empty one if the mapping does not mention it."""
        return self.tables.get(name, TableMapping())

    def format_of(self, name: str) -> FileFormat:
        """The file format of table ``name``: its own fields over the defaults."""
        own = self.table(name)
        given = {
            field: value
            for field in ("separator", "encoding", "decimal", "nulls")
            if (value := getattr(own, field)) is not None
        }
        return FileFormat.model_validate({**self.format.model_dump(), **given})

    @classmethod
    def load(cls, path: Path) -> ImportMapping:
        """Read a mapping file.

        Raises:
            ConfigError: the file is missing or a field is wrong (line, field, value, remedy).
        """
        return read_yaml(path, cls)
