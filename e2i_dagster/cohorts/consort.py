"""The CONSORT figure: who came in, what each rule removed, who is left. Drawn as SVG text."""

from __future__ import annotations

from html import escape
from textwrap import wrap

from e2i_dagster.cohorts.disclosure import ShownStep

_WIDTH, _BOX, _GAP, _LINE = 860, 300, 24, 17
_INK, _PAPER, _EDGE = "#1f2933", "#ffffff", "#7b8794"
_MAIN, _SIDE, _UNKNOWN = "#eef4fb", "#fbf3ee", "#fff6d6"


def consort_svg(
    *,
    title: str,
    start: str,
    steps: tuple[ShownStep, ...],
    end: str,
    aside: tuple[str, ...] = (),
) -> str:
    """The figure for an attrition that may be shown.

    Args:
        start: text of the first box. steps: suppressed steps; those that removed nobody are named in
            one line below the last box. end: word for those who remain after the last step.
        aside: lines of a box of its own beside the last one, such as those kept with an unknown value.
    """
    active = [step for step in steps if step.removed != "0"]
    silent = [step.criterion for step in steps if step.removed == "0"]
    parts: list[str] = []
    y = 56
    y = _main_box(parts, y, [start])
    for step in active:
        why = step.description if step.side == "exclusion" else f"Not met: {step.description}"
        label = [f"Removed: {step.removed}", *wrap(why, 58)]
        if step.unknown not in ("0", "suppressed"):
            fate = "removed as well" if step.on_unknown == "exclude" else "kept"
            label.append(f"Unknown: {step.unknown}, {fate}")
        height = _LINE * len(label) + 14
        parts.append(_arrow(_MARGIN + _BOX / 2, y, _MARGIN + _BOX / 2, y + height + _GAP))
        middle = y + (height + _GAP) / 2
        parts.append(_arrow(_MARGIN + _BOX / 2, middle, _SIDE_X, middle))
        parts.append(_box(_SIDE_X, middle - height / 2, _WIDTH - _SIDE_X - _MARGIN, label, _SIDE))
        y = _main_box(parts, y + height + _GAP, [f"Remaining: {step.remaining}"])
    parts.append(_arrow(_MARGIN + _BOX / 2, y, _MARGIN + _BOX / 2, y + _GAP))
    top = y + _GAP
    y = _main_box(parts, top, [f"{steps[-1].remaining} {end}" if steps else end])
    if aside:
        middle = (top + y) / 2
        parts.append(_arrow(_MARGIN + _BOX, middle, _SIDE_X, middle))
        parts.append(_box(_SIDE_X, top, _WIDTH - _SIDE_X - _MARGIN, list(aside), _UNKNOWN))
        y = max(y, top + _LINE * len(aside) + 14)
    if silent:
        for line in wrap(f"Removed nobody: {', '.join(silent)}", 110):
            y += _LINE + 4
            parts.append(_text(_MARGIN, y, line, size=12))
    height = y + 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" font-family="system-ui, sans-serif" font-size="13">'
        f"<title>{escape(title)}</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{_EDGE}"/></marker></defs>'
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>'
        f"{_text(_MARGIN, 32, title, size=16, weight=600)}{''.join(parts)}</svg>"
    )


_MARGIN = 30
_SIDE_X = _MARGIN + _BOX + 50


def _main_box(parts: list[str], y: float, lines: list[str]) -> float:
    parts.append(_box(_MARGIN, y, _BOX, lines, _MAIN))
    return y + _LINE * len(lines) + 14


def _box(x: float, y: float, width: float, lines: list[str], fill: str) -> str:
    height = _LINE * len(lines) + 14
    texts = "".join(_text(x + 12, y + 7 + _LINE * (k + 0.78), line) for k, line in enumerate(lines))
    return (
        f'<rect x="{x:.0f}" y="{y:.1f}" width="{width:.0f}" height="{height:.1f}" rx="4" '
        f'fill="{fill}" stroke="{_EDGE}"/>{texts}'
    )


def _text(x: float, y: float, text: str, *, size: int = 13, weight: int = 400) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{_INK}">'
        f"{escape(text)}</text>"
    )


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.0f}" y1="{y1:.1f}" x2="{x2:.0f}" y2="{y2:.1f}" stroke="{_EDGE}" '
        'marker-end="url(#tip)"/>'
    )
