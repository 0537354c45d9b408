"""What results show of themselves, as metadata of Dagster's UI: tables, figures, words and numbers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from e2i_dagster.display import Figure, Table, Words, from_plain, rounded

#: In its list of metadata the UI cuts off what is wider (in characters), and what is longer hides the rest.
_WIDEST, _LONGEST = 48, 20
#: Markdown of so many characters is shown in a window of its own, where it can be scrolled.
_IN_A_WINDOW = 1_000
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!&])")
_AT_LINE_START = re.compile(r"^[ \t]*(\d*)([-+=.)])", re.MULTILINE)


def dagster_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata for the UI of ``values``, as ``to_metadata()`` returns them or as they were stored.

    A table becomes Dagster's, with the types of its columns; the UI writes cells as they are, so they are given as
    text. One that the list of metadata has no room for becomes Markdown that opens in a window, and so does code. A
    table's note is an entry of its own. Figures and words become Markdown, mappings and lists JSON, other numbers are
    rounded. Null is left out.
    """
    return {name: entry for key, value in values.items() for name, entry in _entries(key, from_plain(value))}


def _entries(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case None:
            return
        case Table():
            yield key, _table(value)
            if value.note:
                yield f"{key}_note", value.note
        case Figure():
            yield key, dg.MetadataValue.md(f"![{_escaped(value.alt)}]({value.uri})")
        case Words(parts, "code"):
            yield key, _in_a_window("\n\n".join(f"~~~\n{part}\n~~~" for part in parts))
        case Words(parts, kind):
            item = "- " if kind == "list" else ""
            yield key, dg.MetadataValue.md("\n\n".join(item + _escaped(part) for part in parts))
        case dict():
            yield key, dg.MetadataValue.json(value)
        case list() | tuple():
            yield key, dg.MetadataValue.json(list(value))
        case float():
            yield key, rounded(value)
        case _:
            yield key, value


def _table(table: Table) -> dg.MetadataValue:
    names, rows = list(table.columns), table.texts
    if not rows:
        return dg.MetadataValue.text(table.empty)
    widths = (max(map(len, column)) + 2 for column in zip(names, *rows, strict=True))
    if len(rows) > _LONGEST or sum(widths) > _WIDEST:
        lines = [names, *([cell.replace("\n", " ") for cell in row] for row in rows)]
        head, *body = [f"| {' | '.join(map(_escaped, line))} |" for line in lines]
        return _in_a_window("\n".join([head, "|---" * len(names) + "|", *body]))
    columns = [dg.TableColumn(name, kind) for name, kind in zip(names, table.types, strict=True)]
    records = [dg.TableRecord(dict(zip(names, row, strict=True))) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def _in_a_window(markdown: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(markdown.ljust(_IN_A_WINDOW))


def _escaped(text: str) -> str:
    """Markdown that shows ``text`` as it is, line by line."""
    literal = _AT_LINE_START.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", text.strip()))
    return literal.replace("\n", "\\\n")
