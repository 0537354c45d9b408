"""One self-contained HTML page: no script, no font and no image from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; margin: .7rem 0; } th, td { border: 1px solid #d0d7de; padding: .25rem .6rem; }
th { background: #f6f8fa; text-align: left; } img { max-width: 100%; } .note { color: #57606a; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if subtitle %}<p class="note">{{ subtitle }}</p>{% endif %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.paragraphs %}<p>{{ paragraph }}</p>
{% endfor %}
{% for link in section.links %}<p><a href="{{ link.address }}">{{ link.text }}</a></p>
{% endfor %}
{% for table in section.tables %}<table>
<tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
{% for image in section.images %}<p><img alt="{{ image.alt }}" src="data:{{ image.media }};base64,{{ image.data }}"></p>
{% endfor %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Table:
    """Column names and rows; every value is shown as text and escaped."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Image:
    """A PNG (or, by ``media``, another kind of picture) with its description."""

    png: bytes
    alt: str
    media: str = "image/png"

    @property
    def data(self) -> str:
        """Base64 of the bytes."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Link:
    """Another page: its address, relative to this one, and what is shown."""

    address: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then links, tables and images."""

    title: str
    paragraphs: Sequence[str] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    images: Sequence[Image] = field(default_factory=tuple)
    links: Sequence[Link] = field(default_factory=tuple)


def html_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The page as text. All values are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE).render(title=title, subtitle=subtitle, sections=sections)
