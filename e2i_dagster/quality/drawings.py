"""Drawings of the report as SVG text: columns by dimensions, and scores along the partitions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from e2i_dagster.config.quality import DIMENSIONS
from e2i_dagster.quality.dimensions import ColumnScore

#: Lower border of a band and its colour; below the last: the alarm colour.
_BANDS = ((0.99, "#9fd8a4"), (0.95, "#cfe8a9"), (0.90, "#f6e6a0"), (0.80, "#f5c48a"))
_BELOW, _NOTHING = "#ec9a9a", "#eeeeee"
_VERDICT_COLOURS = {"passed": "#2e8540", "warning": "#b7791f", "failed": "#c0392b", "error": "#7b241c"}
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" font-family="sans-serif" font-size="11">'
)


def heat_map(columns: Sequence[ColumnScore]) -> str:
    """Columns by dimensions; grey: the dimension does not measure the column, or nothing was there."""
    row, left, width = 18, 260, 92
    parts = [_HEAD.format(left + len(DIMENSIONS) * width + 10, row * (len(columns) + 3) + 8)]
    for place, name in enumerate(DIMENSIONS):
        parts.append(_text(left + (place + 0.5) * width, 13, name, "middle"))
    for position, column in enumerate(columns, start=1):
        top = row * position
        parts.append(_text(left - 6, top + 13, column.column, "end"))
        for place, name in enumerate(DIMENSIONS):
            value, x = column.dimension(name), left + place * width
            parts.append(_box(x, top, width - 2, row - 2, _colour(value)))
            if value is not None:
                parts.append(_text(x + width / 2, top + 13, f"{value:.3f}", "middle"))
    top = row * (len(columns) + 1) + 8
    legend = [(f"{border:.2f} or more", colour) for border, colour in _BANDS]
    for place, (words, colour) in enumerate([*legend, ("less", _BELOW), ("not measured", _NOTHING)]):
        x = 10 + place * 115
        parts.extend([_box(x, top, 14, 14, colour), _text(x + 19, top + 11, words)])
    return "".join([*parts, "</svg>"])


def score_trend(
    labels: Sequence[str], scores: Sequence[float | None], verdicts: Sequence[str], *, required: float
) -> str:
    """Overall score of each partition in order; the colour of a point is the verdict."""
    left, top, height = 44, 14, 130
    step = max(18.0, min(60.0, 640 / max(len(labels), 1)))
    width = left + step * len(labels) + 20
    known = [score for score in scores if score is not None]
    low = min([*known, required]) - 0.02
    span = max(1.0 - low, 0.02)

    def height_of(score: float) -> float:
        return top + height * (1 - (score - low) / span)

    line = height_of(required)
    parts = [_HEAD.format(round(width + 90), top + height + 62)]
    ticks = sorted({1.0, round(required, 2), round(low + 0.02, 2)})
    parts.extend(_text(left - 6, height_of(tick) + 4, f"{tick:.2f}", "end") for tick in ticks)
    parts.append(
        f'<line x1="{left}" y1="{line:.1f}" x2="{width:.0f}" y2="{line:.1f}" stroke="#c0392b" stroke-dasharray="4 3"/>'
    )
    parts.append(_text(width + 4, line + 4, "required"))
    points = [
        (left + step * (place + 0.5), height_of(score)) if score is not None else None
        for place, score in enumerate(scores)
    ]
    drawn = [point for point in points if point is not None]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#8a94a0"/>')
    every = max(1, len(labels) // 18)
    for place, (label, point, verdict) in enumerate(zip(labels, points, verdicts, strict=True)):
        x = left + step * (place + 0.5)
        y = point[1] if point is not None else top + height
        colour = _VERDICT_COLOURS.get(verdict, "#555555")
        title = f"<title>{escape(label)}: {escape(verdict)}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{title}</circle>')
        if place % every == 0:
            parts.append(
                f'<text transform="translate({x + 4:.1f},{top + height + 48}) rotate(-90)">{escape(label)}</text>'
            )
    return "".join([*parts, "</svg>"])


def _colour(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return next((colour for limit, colour in _BANDS if value >= limit), _BELOW)


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}"/>'
