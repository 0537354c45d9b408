"""Figures and self-contained pages that the reports of all stages are made of."""

from e2i_dagster.reports.figures import figure_markdown, figure_png, image_markdown, new_figure
from e2i_dagster.reports.page import Image, Link, Section, Table, html_page

__all__ = [
    "Image",
    "Link",
    "Section",
    "Table",
    "figure_markdown",
    "figure_png",
    "html_page",
    "image_markdown",
    "new_figure",
]
