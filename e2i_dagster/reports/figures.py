"""Figures as text: PNG inside markdown or HTML, the same bytes for the same drawing."""

from __future__ import annotations

import base64
import io
from typing import Any


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


def image_markdown(png: bytes, alt: str) -> str:
    """One markdown image that carries its PNG bytes."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def figure_markdown(figure: Any, alt: str = "figure") -> str:
    """``figure`` as one markdown image that needs no file."""
    return image_markdown(figure_png(figure), alt)
