import json
from itertools import chain

import dagster as dg
import pytest
from markdown_it import MarkdownIt

from assets.metadata import dagster_metadata
from e2i_dagster.display import Figure, Table, Words, from_plain, to_plain
from e2i_dagster.reports import Link, Section, drawn, figure_png, html_page, new_figure

COUNTS = Table(
    ("name", "n", "share", "effect", "met", "at"),
    [
        ("<script> a|b", 12_345, 0.25, (0.5, 0.123456, 0.9), True, None),
        ("*b*\n", None, 1 / 3, (None, None, None), False, float("nan")),
    ],
    {"share": ".1%"},
    note="2 more & others",
)


def drawing():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_the_same_drawing_gives_the_same_bytes():
    assert figure_png(drawing()) == figure_png(drawing())


def test_values_are_written_in_one_way():
    assert COUNTS.texts == [
        ["<script> a|b", "12,345", "25.0%", "0.5 (0.1235 to 0.9)", "yes", "–"],
        ["*b*\n", "–", "33.3%", "–", "no", "–"],
    ]
    assert COUNTS.types == ["string", "int", "float", "interval", "bool", "string"]


@pytest.mark.parametrize("rows", [[(1,)], [(1, 2, 3)]])
def test_a_row_has_a_value_for_each_column(rows):
    with pytest.raises(ValueError, match="another number of values"):
        Table(("a", "b"), rows)


def test_what_was_stored_is_shown_alike():
    """A reused version shows what was kept of it as JSON."""
    values = {"counts": COUNTS, "picture": drawn(drawing(), "a line"), "said": Words(["a"], "list"), "n": 3}
    stored = json.loads(json.dumps(values, default=to_plain))
    assert {key: from_plain(value) for key, value in stored.items()}["counts"] == COUNTS
    assert dagster_metadata(stored) == dagster_metadata(values)


def test_the_ui_gets_a_table_with_the_types_of_its_columns():
    table = Table(("name", "n"), [("a|b", 12_345), ("c", None)], note="and others")
    shown = dagster_metadata(
        {"counts": table, "findings": Table(("a",), [], empty="No findings."), "no": None}
    )
    assert set(shown) == {"counts", "counts_note", "findings"}
    assert [(one.name, one.type) for one in shown["counts"].schema.columns] == [
        ("name", "string"),
        ("n", "int"),
    ]
    assert [one.data for one in shown["counts"].records] == [
        {"name": "a|b", "n": "12,345"},
        {"name": "c", "n": "–"},
    ]
    assert shown["findings"] == dg.TextMetadataValue("No findings.")


@pytest.mark.parametrize(
    "table", [Table(("a_b", "c"), [("x|y*", "w" * 60)]), Table(("a_b", "c"), [("x|y*", 1)] * 21)]
)
def test_the_ui_gets_a_table_without_room_in_the_list_as_markdown_for_a_window(table):
    markdown = dagster_metadata({"counts": table})["counts"].value
    assert len(markdown) >= 1_000
    cells = [
        leaf.children or [] for leaf in MarkdownIt().enable("table").parse(markdown) if leaf.type == "inline"
    ]
    assert ["".join(part.content for part in cell) for cell in cells] == [
        *table.columns,
        *chain(*table.texts),
    ]


def test_the_ui_gets_words_as_markdown_that_shows_them_as_they_are():
    said = "a_b_c *not* <b>bold</b> | `x` [y](z)\n- 1. &amp;"
    for words in (
        Words([said, "1. second"]),
        Words([said], "list"),
        Words(["curl '*a_b*' \\\n -d 1"], "code"),
    ):
        markdown = dagster_metadata({"said": words})["said"].value
        tokens = MarkdownIt().parse(markdown)
        leaves = [leaf for one in tokens for leaf in (one.children or [one])]
        assert {leaf.type for leaf in leaves} & {
            "em_open",
            "code_inline",
            "link_open",
            "html_inline",
        } == set()
        seen = "".join("\n" if leaf.type == "hardbreak" else leaf.content for leaf in leaves)
        assert seen.strip() == "".join(words.parts)
        assert markdown.count("<li>") == 0 and ("bullet_list_open" in {one.type for one in tokens}) == (
            words.kind == "list"
        )


def test_numbers_of_the_ui_have_the_digits_of_tables():
    assert dagster_metadata({"a": 0.123456, "b": 12345.678, "c": 12345, "d": True}) == {
        "a": 0.1235,
        "b": 12346.0,
        "c": 12345,
        "d": True,
    }


def test_a_page_is_self_contained_and_escapes_what_it_shows():
    content = [
        "a & b",
        COUNTS,
        drawn(drawing(), "a line"),
        Figure.svg("<svg/>", "square"),
        Link("docs", "read"),
    ]
    page = html_page(
        "Report <1>",
        [
            Section("Counts", [*content, Table(("a",), [], empty="Nothing <b>.")]),
            Section("Words", [Words(["x<y"], "list"), Words(["1<2"], "code"), Words(["p&q"])]),
        ],
        subtitle="today",
    )
    assert "<script>" not in page and "&lt;script&gt; a|b" in page
    assert '<td class="number">12,345</td>' in page
    assert (
        "<p>a &amp; b</p>" in page and "2 more &amp; others" in page and "<p>Nothing &lt;b&gt;.</p>" in page
    )
    assert "<li>x&lt;y</li>" in page and "<pre>1&lt;2</pre>" in page and "<p>p&amp;q</p>" in page
    assert "data:image/png;base64,iVBOR" in page and "data:image/svg+xml;base64," in page
    assert '<a href="docs">read</a>' in page
    assert "http" not in page
