"""One self-contained HTML page: no script, no font and no image from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from e2i_dagster.display import Figure, Table, Words

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; margin: .7rem 0; } th, td { border: 1px solid #d0d7de; padding: .25rem .6rem; }
th { background: #f6f8fa; text-align: left; } td.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; } .note { color: #57606a; }
@media print {
  body { max-width: none; margin: 0; font-size: 11px; } h2 { break-after: avoid; } tr, img { break-inside: avoid; }
  td, th { overflow-wrap: anywhere; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if subtitle %}<p class="note">{{ subtitle }}</p>{% endif %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for one in section.content %}
{% if one is string %}<p>{{ one }}</p>
{% elif one.address is defined %}<p><a href="{{ one.address }}">{{ one.text }}</a></p>
{% elif one.uri is defined %}<p><img alt="{{ one.alt }}" src="{{ one.uri }}"></p>
{% elif one.columns is defined %}
{% if one.rows %}{% set types = one.types %}<table>
<tr>{% for name in one.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in one.texts %}<tr>
{% for value in row %}<td{% if types[loop.index0] in ("int", "float") %} class="number"{% endif %}>{{ value }}</td>
{% endfor %}</tr>
{% endfor %}</table>
{% else %}<p>{{ one.empty }}</p>
{% endif %}
{% if one.note %}<p class="note">{{ one.note }}</p>{% endif %}
{% elif one.kind == "list" %}<ul>{% for part in one.parts %}<li>{{ part }}</li>{% endfor %}</ul>
{% else %}{% set tag = "pre" if one.kind == "code" else "p" %}
{% for part in one.parts %}<{{ tag }}>{{ part }}</{{ tag }}>{% endfor %}
{% endif %}
{% endfor %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Link:
    """Another page: its address, relative to this one, and what is shown."""

    address: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading, and below it paragraphs of text, tables, figures and links in their order."""

    title: str
    content: Sequence[str | Table | Figure | Words | Link]


def html_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The page as text. All values are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE).render(title=title, subtitle=subtitle, sections=sections)
