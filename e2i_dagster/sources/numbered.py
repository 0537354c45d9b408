"""Numbered columns of a file (dx1 to dx25) that are the cells of one list of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from e2i_dagster.sources.compute import expanded
from e2i_dagster.tables import facts, raw_table
from e2i_dagster.tables.cells import kind_of
from e2i_dagster.tables.codes import SYSTEMS, cell_shape

#: So many columns that differ in their number alone are numbered columns.
_FEWEST = 3
#: Share of the filled cells that are codes of the system.
_CODES = 0.9
#: Letters of a word that tell it.
_LETTERS = 3


def proposed_lists(
    table: str, cells: Mapping[str, pd.Series], words_of: Callable[[str], Sequence[str]]
) -> dict[str, str]:
    """List column of ``table`` -> the pattern of the numbered columns that seem to be its cells.

    They are called like the code system of the list (``words_of`` gives the words of a name), and hold its codes.

    Args:
        cells: file column -> its filled cells, as text.
    """
    found: dict[str, str] = {}
    for pattern, columns in _numbered(list(cells)).items():
        filled = pd.concat([cells[name] for name in columns], ignore_index=True)
        words = [word for word in words_of(pattern.replace("{n}", " ")) if len(word) >= _LETTERS]
        for column in raw_table(table).columns:
            systems = facts(column).codes
            if kind_of(column) != "list" or not systems or column.name in (*found, *cells):
                continue
            called = re.findall(r"[a-z]{3,}", " ".join(SYSTEMS[name].title for name in systems).lower())
            alike = any(word.startswith(name) or name.startswith(word) for word in words for name in called)
            shape = cell_shape(systems).removeprefix("^").removesuffix("$")
            if alike and len(filled) and filled.str.fullmatch(shape).mean() >= _CODES:
                found[column.name] = pattern
                break
    return found


def _numbered(names: Sequence[str]) -> dict[str, list[str]]:
    """Pattern -> its columns, by number."""
    parts = [match.groups() for name in names if (match := re.fullmatch(r"(.*?)(\d+)(\D*)", name))]
    patterns = dict.fromkeys(f"{before}{{n}}{after}" for before, _, after in parts)
    found = {pattern: list(expanded(pattern, names).values()) for pattern in patterns}
    return {pattern: columns for pattern, columns in found.items() if len(columns) >= _FEWEST}
