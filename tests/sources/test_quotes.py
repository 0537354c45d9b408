"""Quotation marks that are text: no line is folded into another, whatever their place."""

import gzip
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.mapping import FileFormat
from e2i_dagster.errors import InputError
from e2i_dagster.sources import files
from e2i_dagster.sources.check import check_folder
from e2i_dagster.sources.formats import delimited

COLUMNS = ("a", "b", "c")
SEPARATORS = (",", "|", "\t", ";")


def grid(rows: int) -> list[list[str]]:
    return [[f"{column}{row}" for column in COLUMNS] for row in range(rows)]


def written(cells: list[list[str]], separator: str, end: str, *, closed: bool) -> bytes:
    lines = [separator.join(row) for row in [list(COLUMNS), *cells]]
    return (end.join(lines) + (end if closed else "")).encode()


def same_or_refused(path, cells, form: FileFormat, block_size: int) -> None:
    """Every line is a row, read or malformed, with its text; or the file is refused by the line."""
    try:
        read = delimited.read(path, form, block_size).read()
    except InputError as error:
        assert f"{path.name}, line " in str(error)
        assert "`quote: none`" in str(error)
    else:
        malformed = {number for number, _ in read.malformed}
        assert read.rows.num_rows + len(malformed) == read.lines == len(cells)
        kept = [row for number, row in enumerate(cells, 1) if number not in malformed]
        for row, got in zip(kept, read.rows.to_pylist(), strict=True):
            # A cell between two quotation marks is a quoted cell.
            assert list(got.values()) == [
                cell[1:-1] or None if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell for cell in row
            ]
    # The remedy that the error names holds always.
    plain = delimited.read(path, form.model_copy(update={"quote": "none"}), block_size).read()
    assert [list(row.values()) for row in plain.rows.to_pylist()] == cells
    assert (plain.malformed, plain.lines) == ([], len(cells))


PLACES = [
    (row, column, edge)
    for row in range(3)
    for column in range(len(COLUMNS))
    for edge in ("start", "middle", "end", "alone")
]


def with_quotes(cells: list[list[str]], places) -> list[list[str]]:
    for row, column, edge in places:
        text = cells[row][column]
        cells[row][column] = {
            "start": f'"{text}', "middle": f'{text[:1]}"{text[1:]}', "end": f'{text}"', "alone": '"',
        }[edge]  # fmt: skip
    return cells


@pytest.mark.parametrize(
    ("separator", "end", "block_size"),
    [(",", "\n", 64), ("|", "\r\n", 64), ("\t", "\n", 1 << 22), (";", "\r\n", 1 << 22)],
)
def test_every_arrangement_of_one_and_two_quotation_marks(tmp_path, separator, end, block_size):
    path = tmp_path / "few.csv"
    form = FileFormat(separator=separator)
    pairs = list(itertools.combinations(PLACES, 2))
    for number, places in enumerate([*((place,) for place in PLACES), *pairs]):
        cells = with_quotes(grid(3), places)
        path.write_bytes(written(cells, separator, end, closed=number % 2 == 0))
        same_or_refused(path, cells, form, block_size)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    places=st.lists(
        st.tuples(
            st.integers(0, 59), st.integers(0, 2), st.sampled_from(["start", "middle", "end", "alone"])
        ),
        max_size=4,
    ),
    separator=st.sampled_from(SEPARATORS),
    end=st.sampled_from(["\n", "\r\n"]),
    closed=st.booleans(),
    block_size=st.integers(40, 400),
)
def test_any_quotation_marks_across_blocks(
    tmp_path_factory, rows, places, separator, end, closed, block_size
):
    path = tmp_path_factory.mktemp("blocks") / "many.csv"
    distinct = {(row % rows, column): edge for row, column, edge in places}
    cells = with_quotes(grid(rows), [(*place, edge) for place, edge in distinct.items()])
    path.write_bytes(written(cells, separator, end, closed=closed))
    same_or_refused(path, cells, FileFormat(separator=separator), block_size)


@pytest.mark.parametrize("marks", [(5,), (5, 150_000), (199_990, 199_999), (100_000, 100_001)])
def test_files_of_more_than_one_block_of_the_parser(tmp_path, marks):
    path = tmp_path / "large.csv"
    lines = [f"{row},drug number {row},x\n" for row in range(200_000)]
    for row in marks:
        lines[row] = f'{row},"drug number {row},x\n'
    path.write_text("a,b,c\n" + "".join(lines))
    assert path.stat().st_size > 1 << 22
    with pytest.raises(InputError, match=rf"large\.csv, line {marks[0] + 2}: .*`quote: none`"):
        files.read_file(path, FileFormat())
    plain = files.read_file(path, FileFormat(quote="none"))
    assert plain.rows.num_rows == plain.lines == 200_000
    assert plain.rows["b"][marks[0]].as_py() == f'"drug number {marks[0]}'


def test_cells_with_line_breaks(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text('a,b\n1,"two\nlines"\n\n2,"6"" tube, ""x"""\n')
    read = files.read_file(path, FileFormat())
    assert [row["b"] for row in read.rows.to_pylist()] == ["two\nlines", '6" tube, "x"']
    assert (read.rows.num_rows, read.lines) == (2, 3)
    path.write_text('a,b\n1,"Main Street 1,\nSpringfield"\n')
    with pytest.raises(InputError, match=r"line 2: .*`line_breaks: true`"):
        files.read_file(path, FileFormat())
    declared = files.read_file(path, FileFormat(line_breaks=True))
    assert declared.rows["b"].to_pylist() == ["Main Street 1,\nSpringfield"]
    assert (declared.rows.num_rows, declared.lines) == (1, 2)


@pytest.mark.parametrize("text", ['"a,b\n1,2\n3,4\n', 'a,"b\n1,2\n3,4"\n'])
def test_a_quotation_mark_in_the_header(tmp_path, text):
    path = tmp_path / "head.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"head\.csv, line 1: .*`quote: none`"):
        files.read_file(path, FileFormat())
    assert files.read_file(path, FileFormat(quote="none")).rows.num_rows == 2


def test_another_quotation_mark_and_wide_text(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text("a,b\n1,'x,y'\n2,\"z\n", encoding="utf-16")
    read = files.read_file(path, FileFormat(quote="'", encoding="utf-16"))
    assert read.rows["b"].to_pylist() == ["x,y", '"z']
    with pytest.raises(InputError, match="line 3"):
        files.read_file(path, FileFormat(encoding="utf-16"))


EVENTS = "treatment_event_id,patient_journey_id,patient_id,event_date,drug_name\n"


def test_import_check_proposes_what_reads_the_file(tmp_path):
    path = tmp_path / "treatment_events.csv"
    rows = [f"e{row},j{row},p{row},2024-03-01,drug\n" for row in range(2_000)]
    rows[10] = 'e10,j10,p10,2024-03-01,"drug\n'
    path.write_text(EVENTS + "".join(rows))
    with pytest.raises(InputError, match="line 12"):
        files.read(tmp_path)
    found = proposal(tmp_path)
    assert found.mapping.format.quote == "none"
    assert found.tables[0].rows == len(files.read(tmp_path, found.mapping)["treatment_events"]) == 2_000
    rows[10] = 'e10,j10,p10,2024-03-01,"drug,\nsecond line"\n'
    path.write_text(EVENTS + "".join(rows))
    found = proposal(tmp_path)
    assert found.mapping.format.line_breaks
    assert found.tables[0].rows == 2_000


def proposal(folder):
    from e2i_dagster.tables.vocabulary import load_vocabulary

    return check_folder(folder, load_vocabulary())


@pytest.mark.parametrize(
    ("name", "separator", "declared"),
    [
        ("treatment_events.csv.gz", ",", None),
        ("treatment_events.tsv", "\t", None),
        ("treatment_events.tsv.gz", "\t", None),
        ("treatment_events.TXT", "|", "|"),
        ("treatment_events.txt.gz", "|", "|"),
    ],
)
def test_other_kinds_of_text_files(tmp_path, name, separator, declared):
    content = (EVENTS + "e1,j1,p1,2024-03-01,drug\n").replace(",", separator).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    mapping = files.ImportMapping.model_validate({"format": {"separator": declared}} if declared else {})
    read = files.read(tmp_path, mapping)
    assert read["treatment_events"]["drug_name"].tolist() == ["drug"]
    assert read.delivered["treatment_events"].lines == 1
    assert read.not_read == {}
    found = proposal(tmp_path)
    assert (found.problems, found.tables[0].rows) == ((), 1)
    if declared:
        with pytest.raises(InputError, match="separator is not declared"):
            files.read(tmp_path)


def test_what_is_not_read_is_named(tmp_path):
    (tmp_path / "treatment_events.csv").write_text(EVENTS + "e1,j1,p1,2024-03-01,drug\n")
    (tmp_path / "triggers.xlsx").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("words")
    (tmp_path / "mapping.yaml").write_text("")
    (tmp_path / "older").mkdir()
    said = files.read(tmp_path).not_read
    assert set(said) == {"triggers.xlsx", "README.txt", "mapping.yaml", "older"}
    assert said["triggers.xlsx"].startswith("an Excel workbook, which is not read. Save each sheet as CSV")
    assert proposal(tmp_path).not_read == said
    with pytest.raises(InputError, match="same rows in two formats"):
        (tmp_path / "treatment_events.csv.gz").write_bytes(gzip.compress(b"x"))
        files.read(tmp_path)


def test_a_broken_gzip_file_is_said(tmp_path):
    (tmp_path / "treatment_events.csv.gz").write_bytes(gzip.compress(EVENTS.encode() * 9)[:40])
    with pytest.raises(InputError, match="not readable as gzip"):
        files.read(tmp_path)


KINDS = [
    ("marks.csv", ","),
    ("marks.csv.gz", ","),
    ("marks.tsv", "\t"),
    ("marks.tsv.gz", "\t"),
    ("marks.txt", "|"),
]


def delivered(path, text: str, separator: str) -> FileFormat:
    """Write ``text`` as the file's name says; its format, with a separator only where the name has none."""
    content = text.replace(",", separator).encode()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return FileFormat() if separator in ",\t" else FileFormat(separator=separator)


@pytest.mark.parametrize(("name", "separator"), KINDS)
def test_the_mark_is_doubled_inside_a_quoted_cell(tmp_path, name, separator):
    path = tmp_path / name
    text = 'a,b,c\n1,"a 6" tube",x\n2,y,"z"\n'
    form = delivered(path, text, separator)
    with pytest.raises(
        InputError, match=r'line 2: text follows .* double the mark inside quoted cells \(""\)'
    ):
        files.read_file(path, form)
    delivered(path, text.replace('6"', '6""'), separator)
    read = files.read_file(path, form)
    assert read.rows["b"].to_pylist() == ['a 6" tube', "y"]
    assert (read.rows.num_rows, read.lines, read.malformed) == (2, 2, [])
    # A cell that opens and is never closed is closed, its own mark doubled.
    delivered(path, 'a,b,c\n1,"6 tube,x\n2,y,z\n', separator)
    with pytest.raises(InputError, match=r"line 2: a quotation mark is never closed.*double the mark"):
        files.read_file(path, form)
    delivered(path, 'a,b,c\n1,"""6 tube",x\n2,y,z\n', separator)
    assert files.read_file(path, form).rows["b"].to_pylist() == ['"6 tube', "y"]


@pytest.mark.parametrize(("name", "separator"), KINDS)
@pytest.mark.parametrize("offset", [-1, 0])
def test_a_mark_at_the_border_of_a_block(tmp_path, name, separator, offset):
    """The mark is the last byte of one block of four MiB, or the first of the next."""
    path = tmp_path / name
    border = (1 << 22) + offset
    head, line = "a,b,c\n", "1," + "drug " * 200 + ",x\n"
    before = head + line * ((border - len(head)) // len(line) - 1)
    filled = before + "1," + "y" * (border - len(before) - 7) + ",x\n2,"
    assert len(filled) == border
    text = filled + '"6 tube,x\n' + line * 3
    form = delivered(path, text, separator)
    rows = text.count("\n") - 1
    with pytest.raises(InputError, match=rf"{name}, line {rows - 2}: a quotation mark is never closed"):
        files.read_file(path, form)
    plain = files.read_file(path, form.model_copy(update={"quote": "none"}))
    assert plain.rows.num_rows == plain.lines == rows
    assert plain.rows["b"][rows - 4].as_py() == '"6 tube'


def test_a_parser_that_gives_fewer_rows_than_there_are_lines_is_not_believed(tmp_path, monkeypatch):
    from pyarrow import csv

    real = csv.open_csv
    monkeypatch.setattr(
        csv, "open_csv", lambda *given, **options: (batch.slice(1) for batch in real(*given, **options))
    )
    path = tmp_path / "treatment_events.csv"
    path.write_text(EVENTS + "e1,j1,p1,2024-03-01,drug\ne2,j1,p1,2024-03-01,drug\n")
    with pytest.raises(InputError, match=r"2 rows by its lines, 1 by the parser"):
        files.read(tmp_path)


def test_what_is_to_be_loaded_says_the_lines_of_each_file(tmp_path):
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.loading.delivery import DeliveryRequest, prepare_delivery

    text = EVENTS + 'e1,j1,p1,2024-03-01,"two\nlines"\n'
    (tmp_path / "treatment_events_1.csv").write_text(text)
    (tmp_path / "treatment_events_2.csv.gz").write_bytes(
        gzip.compress((EVENTS + "e2,j1,p1,2024-03-01,x\n").encode())
    )
    (tmp_path / "notes.txt").write_text("words")
    request = DeliveryRequest(folder=str(tmp_path))
    manifest = prepare_delivery(request, current_policy().sources, tmp_path / "state")
    assert {file.name: file.lines for file in manifest.files} == {
        "notes.txt": None,
        "treatment_events_1.csv": 2,
        "treatment_events_2.csv.gz": 1,
    }
    shown = {row[0]: row[1:4:2] for row in manifest.to_metadata()["files"].rows}
    assert shown["treatment_events_1.csv"] == ("CSV", 2) and shown["notes.txt"][1] is None
