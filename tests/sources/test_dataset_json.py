"""CDISC Dataset-JSON: documents and NDJSON give the same rows; what is no row is named by its number."""

import gzip
import json
from pathlib import Path

import pytest

from e2i_dagster.config.mapping import FileFormat
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources.files import read, read_file
from e2i_dagster.sources.formats import dataset_json, recognise

EXAMPLE = CHECKOUT / "docs/examples/dataset_json"
ABOUT = {
    "datasetJSONCreationDateTime": "2024-01-01T00:00:00", "datasetJSONVersion": "1.1.0", "records": 3, "name": "DM",
    "columns": [
        {"itemOID": "a", "name": "USUBJID", "label": "Unique Subject Identifier", "dataType": "string"},
        {"itemOID": "b", "name": "AGE", "label": "Age", "dataType": "integer"},
        {"itemOID": "c", "name": "RFSTDTC", "label": "Start", "dataType": "date"},
        {"itemOID": "d", "name": "DOSE", "label": "Dose", "dataType": "decimal"},
        {"itemOID": "e", "name": "W", "label": "Weight", "dataType": "float"},
        {"itemOID": "f", "name": "OK", "label": "Okay", "dataType": "boolean"},
    ],
}  # fmt: skip
ROWS = [
    ["S1", 34, "2023-04", "1.50", 70.5, True],
    ["S2", None, "", None, 80, None],
    ["S,3", 0, "2023", "2", None, False],
]
CELLS = {
    "USUBJID": ["S1", "S2", "S,3"], "AGE": [34, None, 0], "RFSTDTC": ["2023-04", None, "2023"],
    "DOSE": ["1.50", None, "2"], "W": [70.5, 80.0, None], "OK": [True, None, False],
}  # fmt: skip


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_file(path, FileFormat())
    return str(error.value)


@pytest.mark.parametrize("piece", [7, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**ABOUT, "rows": ROWS}),
        json.dumps({**ABOUT, "rows": ROWS}, indent=2),
        json.dumps({"rows": ROWS, **ABOUT}),
        "\ufeff" + lines(ABOUT, *ROWS),
    ],
    ids=["one line", "indented", "rows first", "ndjson"],
)
def test_every_way_to_write_it_gives_the_same_rows(tmp_path, monkeypatch, text, piece):
    monkeypatch.setattr(dataset_json, "BATCH_BYTES", max(piece, 1000) if text.startswith("\ufeff") else piece)
    monkeypatch.setattr(dataset_json, "_ROWS", 2)
    path = tmp_path / "dm.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert recognise(path) is dataset_json.FORMAT
    given = read_file(path, FileFormat())
    assert given.rows.to_pydict() == CELLS
    assert (given.malformed, given.summary.columns["AGE"].label) == ([], "Age")


def test_what_is_no_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "dm.ndjson"
    wrong = ['["S4", 1', ["S5"], ["S6", "old", None, None, None, None], ["S7", True, None, None, None, None]]
    path.write_text(lines({**ABOUT, "records": 7}, ROWS[0], *wrong, "", *ROWS[1:]))
    given = read_file(path, FileFormat())
    assert given.rows.to_pydict() == CELLS
    assert [number for number, _ in given.malformed] == [2, 3, 4, 5]
    assert given.malformed[0][1] == '["S4", 1'
    assert (given.numbers.tolist(), given.lines) == ([1, 7, 8], 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps({**ABOUT, "rows": ROWS})[:-30], "is no JSON after row 2: it is cut off or damaged"),
        (json.dumps({**ABOUT, "rows": ROWS})[:300], "is no JSON: it is cut off"),
        (json.dumps({**ABOUT, "records": 4, "rows": ROWS}), "says 4 records and has 3"),
        (lines({**ABOUT, "records": 4}, *ROWS), "says 4 records and has 3"),
        (json.dumps({**ABOUT, "datasetJSONVersion": "1.0.0", "rows": ROWS}), "is Dataset-JSON 1.0.0, and 1.1 is read"),
        (json.dumps({**ABOUT, "columns": 1, "rows": ROWS}), "no list `columns`"),
        (json.dumps({**ABOUT, "columns": ABOUT["columns"][:1] * 2, "rows": []}), "two columns of one name"),
        (json.dumps({**ABOUT, "rows": [["x", 2**70, None, None, None, None]]}), "a whole number beyond 64 bits"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused(tmp_path, text, said):
    path = tmp_path / "dm.json"
    path.write_text(text)
    assert said in refused(path)


def test_text_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "dm.json"
    path.write_bytes(
        json.dumps({**ABOUT, "rows": [["M\u00fcll", 1, None, None, None, None]]}, ensure_ascii=False).encode(
            "cp1252"
        )
    )
    assert "is not UTF-8 text" in refused(path)


def test_the_example_is_read_by_its_mapping():
    delivery = read(EXAMPLE, EXAMPLE / "mapping.yaml")
    assert {name: len(frame) for name, frame in delivery.items()} == {
        "patient_journeys": 24,
        "treatment_events": 47,
    }
    assert delivery["treatment_events"]["dosage"].iloc[0].endswith(" mg")
    assert delivery.delivered["treatment_events"].lines == 47
