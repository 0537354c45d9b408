from e2i_dagster.reports import Image, Section, Table, figure_markdown, figure_png, html_page, new_figure


def drawing():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_a_figure_is_one_image_without_a_file():
    assert figure_markdown(drawing(), "a line").startswith("![a line](data:image/png;base64,iVBOR")


def test_the_same_drawing_gives_the_same_bytes():
    assert figure_png(drawing()) == figure_png(drawing())


def test_a_page_is_self_contained_and_escapes_what_it_shows():
    page = html_page(
        "Report <1>",
        [
            Section(
                "Counts",
                paragraphs=["a & b"],
                tables=[Table(("name", "n"), [("<script>", 3)])],
                images=[Image(figure_png(drawing()), "a line")],
            )
        ],
        subtitle="today",
    )
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page
    assert "data:image/png;base64,iVBOR" in page
    assert "http" not in page
