"""Figures of matplotlib as pictures: the same bytes for the same drawing."""

from __future__ import annotations

import io
from typing import Any

from e2i_dagster.display import Figure


def new_figure(width: float = 8.0, height: float = 4.0) -> Any:
    """An empty matplotlib ``Figure`` of that many inches, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Any, dpi: int = 80) -> bytes:
    """PNG bytes of ``figure``, without date or software version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def drawn(figure: Any, alt: str) -> Figure:
    """The picture of a matplotlib ``figure``."""
    return Figure.png(figure_png(figure), alt)
