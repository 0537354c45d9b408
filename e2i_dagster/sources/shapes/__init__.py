"""Folders of a published shape: recognised by their headers, with the mapping that reads them.

A shape is a YAML file beside this module. ``roles`` says which columns tell a kind of file, ``without`` which it has
not, ``needed`` which kinds must be there, ``mapping`` is an import mapping in whose ``files`` and ``in`` a role stands
for its files. What a folder does not have is left out of the mapping: files, columns, lookups, tables that nothing
feeds, and references to tables that are not delivered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from e2i_dagster.config.computed import is_pattern
from e2i_dagster.config.mapping import ImportMapping
from e2i_dagster.policy_files.base import PolicyModel, read_yaml
from e2i_dagster.sources.compute import expanded
from e2i_dagster.tables import parents, required_columns

#: File name -> its column names.
Headers = Mapping[str, Sequence[str]]


class Shape(PolicyModel):
    """What the YAML file of a shape says."""

    title: str
    roles: dict[str, tuple[str, ...]]
    without: dict[str, tuple[str, ...]] = {}
    needed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    mapping: dict[str, Any]


@dataclass(frozen=True)
class Recognised:
    """The shape of a folder and the mapping that reads it; ``ignored`` are files that the shape does not read."""

    title: str
    mapping: ImportMapping
    notes: tuple[str, ...]
    ignored: tuple[str, ...] = field(default=())


@cache
def shapes() -> tuple[Shape, ...]:
    """All shapes that are known."""
    return tuple(read_yaml(path, Shape) for path in sorted(Path(__file__).parent.glob("*.yaml")))


def recognised(headers: Headers, formats: Mapping[str, Mapping[str, Any]]) -> Recognised | None:
    """The shape of files with these headers; None where they are of no shape that is known.

    Args:
        formats: file name -> what the mapping must say of its format.
    """
    for shape in shapes():
        files = _roles(shape, headers)
        if set(shape.needed) <= set(files):
            document = _Filled(files, headers, formats).document(shape.mapping)
            read = {name for names in files.values() for name in names}
            left = tuple(name for name in headers if name not in read)
            if left:
                document["ignore"] = list(left)
            return Recognised(shape.title, ImportMapping.model_validate(document), shape.notes, left)
    return None


def _roles(shape: Shape, headers: Headers) -> dict[str, list[str]]:
    """Role -> the files that have its columns, whatever the case of their letters."""
    found: dict[str, list[str]] = {}
    for name, header in headers.items():
        has = {column.lower() for column in header}
        for role, columns in shape.roles.items():
            strange = {column.lower() for column in shape.without.get(role, ())}
            if {column.lower() for column in columns} <= has and not strange & has:
                found.setdefault(role, []).append(name)
    return found


@dataclass(frozen=True)
class _Filled:
    """A shape's mapping with the files and the spellings of one folder."""

    files: Mapping[str, Sequence[str]]
    headers: Headers
    formats: Mapping[str, Mapping[str, Any]]

    def document(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        tables: dict[str, Any] = {}
        for table, described in mapping["tables"].items():
            shared = {key: value for key, value in described.items() if key in ("one_row", "own")}
            own_parts = described.get("parts") or [
                {key: value for key, value in described.items() if key not in shared}
            ]
            parts = [filled for part in own_parts for filled in self._parts(table, part)]
            if parts:
                tables[table] = shared | ({"parts": parts} if len(parts) > 1 else parts[0])
        return {"tables": self._without_orphans(tables)}

    def _without_orphans(self, tables: dict[str, Any]) -> dict[str, Any]:
        for table, described in tables.items():
            lost = {column for column, parent in parents(table).items() if parent not in tables}
            for part in described.get("parts", [described]):
                for column in lost - set(required_columns(table)):
                    part["columns"].pop(column, None)
        return tables

    def _parts(self, table: str, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The part as its files, whose headers may differ, need it: none where there are no files."""
        found: list[dict[str, Any]] = []
        for name in (name for role in part["files"] for name in self.files.get(role, ())):
            filled = self._part(part, name)
            if not set(required_columns(table)) <= set(filled["columns"]):
                continue
            alike = next(
                (shape for shape in found if shape | {"files": None} == filled | {"files": None}), None
            )
            if alike is None:
                found.append(filled)
            else:
                alike["files"] = [*alike["files"], *filled["files"]]
        return found

    def _part(self, part: Mapping[str, Any], file: str) -> dict[str, Any]:
        header = self.headers[file]
        columns = {
            name: made
            for name, expression in part["columns"].items()
            if (made := self._expression(expression, header, {*part["columns"]} - {name})) is not None
        }
        rules = [self._expression(rule, header, set(columns)) for rule in part.get("where", ())]
        result: dict[str, Any] = {"files": [file], **self.formats[file]}
        if rules := [rule for rule in rules if rule is not None]:
            result["where"] = rules
        # A shape says all that is wanted; what else a file has does not pass through by its name.
        return result | {"columns": columns, "ignore": ["*"]}

    def _expression(self, given: Any, header: Sequence[str], made: Set[str]) -> Any:
        """An expression (or a rule) in the spelling of a file; None where the file lacks what it needs."""
        if isinstance(given, str):
            return given if given in made and given not in header else _spelt(given, header)
        result = dict(given)
        for key, value in given.items():
            if key in ("from", "column", "day_after"):
                result[key] = self._expression(value, header, made)
            elif key in ("concat", "first_of", "list", "sum", "key"):
                several = [value] if isinstance(value, str) else value
                result[key] = [
                    read for part in several if (read := self._expression(part, header, made)) is not None
                ] or None
            elif key in ("days_between", "years_between"):
                pair = [self._expression(item, header, made) for item in value]
                result[key] = None if None in pair else pair
            elif key == "where":
                result[key] = self._expression(value, header, made)
            elif key == "lookup":
                result |= self._lookup(given, header, made)
        return None if None in result.values() else result

    def _lookup(self, given: Mapping[str, Any], header: Sequence[str], made: Set[str]) -> dict[str, Any]:
        names = self.files.get(given["in"])
        if not names:
            return {"lookup": None}
        other = self.headers[names[0]]
        by = {self._expression(mine, header, made): _spelt(its, other) for mine, its in given["by"].items()}
        if None in by or None in by.values():
            return {"lookup": None}
        return {"lookup": _spelt(given["lookup"], other), "in": list(names), "by": by}


def _spelt(name: str, header: Sequence[str]) -> str | None:
    """``name``, or the pattern, as the columns of a file are written; None where it has none."""
    if is_pattern(name):
        shape = re.compile(
            re.escape(name).replace(re.escape("{n}"), r"\d+").replace(r"\*", ".*"), re.IGNORECASE
        )
        fitting = next((column for column in header if shape.fullmatch(column)), None)
        if fitting is None:
            return None
        before, _, after = name.partition("{n}")
        pattern = f"{fitting[: len(before)]}{{n}}{fitting[len(fitting) - len(after) :] if after else ''}"
        return pattern if expanded(pattern, header) else None
    return next((column for column in header if column.lower() == name.lower()), None)
