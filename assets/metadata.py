"""What results show of themselves, as metadata of Dagster's UI: tables, figures, words and numbers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from e2i_dagster.display import Figure, Table, Words, from_plain, rounded

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!&])")
_AT_LINE_START = re.compile(r"^[ \t]*(\d*)([-+=.)])", re.MULTILINE)


def dagster_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata for the UI of ``values``, as ``to_metadata()`` returns them or as they were stored.

    Tables become Dagster's, with the types of their columns; a table's note becomes an entry of its own. The UI
    writes cells as they are, so they are given as text. Figures and words become Markdown, mappings and lists JSON,
    other numbers are rounded. Null is left out.
    """
    return {name: entry for key, value in values.items() for name, entry in _entries(key, from_plain(value))}


def _entries(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case None:
            return
        case Table():
            yield key, _table(value) if value.rows else value.empty
            if value.note:
                yield f"{key}_note", value.note
        case Figure():
            yield key, dg.MetadataValue.md(f"![{_escaped(value.alt)}]({value.uri})")
        case Words():
            yield key, dg.MetadataValue.md("\n\n".join(_markdown(value)))
        case dict():
            yield key, dg.MetadataValue.json(value)
        case list() | tuple():
            yield key, dg.MetadataValue.json(list(value))
        case float():
            yield key, rounded(value)
        case _:
            yield key, value


def _table(table: Table) -> dg.TableMetadataValue:
    names = list(table.columns)
    columns = [dg.TableColumn(name, kind) for name, kind in zip(names, table.types, strict=True)]
    records = [dg.TableRecord(dict(zip(names, row, strict=True))) for row in table.texts]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def _markdown(words: Words) -> Iterator[str]:
    for part in words.parts:
        match words.kind:
            case "code":
                yield f"~~~\n{part}\n~~~"
            case "list":
                yield f"- {_escaped(part)}"
            case _:
                yield _escaped(part)


def _escaped(text: str) -> str:
    """Markdown that shows ``text`` as it is, line by line."""
    literal = _AT_LINE_START.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", text.strip()))
    return literal.replace("\n", "\\\n")
