"""Drawings and self-contained HTML pages that the reports of all stages are made of."""

from e2i_dagster.reports.figures import drawn, figure_png, new_figure
from e2i_dagster.reports.page import Link, Section, html_page

__all__ = ["Link", "Section", "drawn", "figure_png", "html_page", "new_figure"]
