"""What a result shows of itself: values that the orchestrator's UI and the HTML pages draw each in its own way.

``to_metadata()`` of a result returns plain values, and for what is more than one value a :class:`Table`, a
:class:`Figure` or :class:`Words`. Numbers stay numbers in them. How a value is written is decided by :func:`text`;
markup and its escaping belong to those who draw.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

#: What stands for a value that there is not.
ABSENT = "–"
#: From here on a number is written without decimals.
_LARGE = 1_000
_CLASS = "display"


@dataclass(frozen=True)
class Table:
    """Named columns and rows of values.

    Attributes:
        columns: names, each once.
        rows: a value for each column. It is a string, a number, a truth value or None; a tuple of two numbers is an
            interval, of three a value with its interval. Dates and times become ISO text, lists their items.
        formats: column -> format specification of its numbers (``.1%``); without one as :func:`text` says.
        note: what is to be said below the table.
        empty: what is said instead of a table without rows.

    Raises:
        ValueError: a column stands twice, or a row has not one value for each column.
    """

    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]
    formats: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    empty: str = "none"

    def __post_init__(self) -> None:
        columns, rows = tuple(self.columns), tuple(tuple(map(_cell, row)) for row in self.rows)
        if len(set(columns)) < len(columns) or any(len(row) != len(columns) for row in rows):
            raise ValueError(f"columns {columns} are not unique, or a row has another number of values")
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "rows", rows)

    @property
    def texts(self) -> list[list[str]]:
        """The rows as people read them."""
        formats = [self.formats.get(name, "") for name in self.columns]
        return [[text(cell, one) for cell, one in zip(row, formats, strict=True)] for row in self.rows]

    @property
    def types(self) -> list[str]:
        """Of each column ``int``, ``float``, ``bool`` or ``interval``; ``string`` when it has text or nothing."""
        return [_type({type(row[place]) for row in self.rows}) for place in range(len(self.columns))]


@dataclass(frozen=True)
class Figure:
    """A picture with the words for those who cannot see it; ``data`` is the base64 text of its bytes."""

    data: str
    alt: str
    media: str = "image/png"

    @classmethod
    def png(cls, picture: bytes, alt: str) -> Figure:
        """The figure of PNG bytes."""
        return cls(base64.b64encode(picture).decode("ascii"), alt)

    @classmethod
    def svg(cls, picture: str, alt: str) -> Figure:
        """The figure of SVG text."""
        return cls(base64.b64encode(picture.encode()).decode("ascii"), alt, "image/svg+xml")

    @property
    def uri(self) -> str:
        """The picture as an address that needs no file."""
        return f"data:{self.media};base64,{self.data}"


@dataclass(frozen=True)
class Words:
    """Paragraphs of plain text, the items of a list, or pieces of code."""

    parts: Sequence[str]
    kind: Literal["paragraphs", "list", "code"] = "paragraphs"


_CLASSES = {one.__name__: one for one in (Table, Figure, Words)}


def text(value: Any, form: str = "") -> str:
    """``value`` as people read it.

    Args:
        value: as in a cell of :class:`Table`.
        form: format specification of numbers. Without one integers have separators of thousands, and other numbers
            four digits, or from 1,000 on no decimals.
    """
    match value:
        case None | (None, _) | (_, None) | (None, _, _):
            written = ABSENT
        case bool():
            written = "yes" if value else "no"
        case int():
            written = format(value, form or ",")
        case float():
            written = format(value, form or (",.0f" if abs(value) >= _LARGE else ".4g"))
        case (lower, upper):
            written = f"{text(lower, form)} to {text(upper, form)}"
        case (point, *interval):
            written = f"{text(point, form)} ({text(tuple(interval), form)})"
        case _:
            written = str(value)
    return written


def rounded(value: float) -> float:
    """``value`` to the digits that :func:`text` writes."""
    return float(text(float(value)).replace(",", ""))


def to_plain(value: Any) -> Any:
    """What stands for a value that JSON has not, for ``json.dumps(default=to_plain)``: its text, or a mapping that
    :func:`from_plain` knows."""
    name = type(value).__name__
    return {_CLASS: name, **asdict(value)} if name in _CLASSES else str(value)


def from_plain(value: Any) -> Any:
    """The value that :func:`to_plain` made ``value`` of; every other one as it is."""
    if not isinstance(value, dict) or _CLASS not in value:
        return value
    return _CLASSES[value[_CLASS]](**{name: one for name, one in value.items() if name != _CLASS})


def _cell(value: Any) -> Any:
    if hasattr(value, "item"):  # a scalar of NumPy
        value = value.item()
    if isinstance(value, (list, tuple)):
        numbers = len(value) in (2, 3) and all(one is None or isinstance(one, float) for one in value)
        return tuple(map(_cell, value)) if numbers else ", ".join(text(_cell(one)) for one in value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else f"{value:g}"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _type(types: set[type]) -> str:
    known = types - {type(None)}
    if known == {int, float}:
        return "float"
    if len(known) != 1 or known == {str}:
        return "string"
    return "interval" if known == {tuple} else known.pop().__name__
