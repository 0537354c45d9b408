"""SAS files: values by their formats, kinds of missing values, layouts, and what is refused."""

import datetime as dt
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
import pytest

from e2i_dagster.config.mapping import FileFormat
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources.check import check_folder
from e2i_dagster.sources.files import read, read_file
from e2i_dagster.sources.formats import open_records, recognise, sas
from e2i_dagster.tables.vocabulary import load_vocabulary

EXAMPLE = CHECKOUT / "docs/examples/sas"
ROWS = pd.DataFrame(
    {
        "USUBJID": ["S-1", "S-2", "S-3  "],
        "AGE": [34.0, np.nan, 51.5],
        "RFSTDTC": ["2023-04", "2023-05-02", ""],
        "TRTSDT": [dt.date(2023, 4, 1), None, dt.date(9999, 12, 31)],
        "ADTM": [dt.datetime(2023, 4, 1, 12, 30), None, dt.datetime(1959, 12, 31, 23, 59, 59)],
        "ATM": [dt.time(12, 30), None, dt.time(1, 2, 3)],
    }
).astype({"AGE": float})  # fmt: skip


def transport(path: Path, version: int, rows: pd.DataFrame = ROWS) -> Path:
    pyreadstat.write_xport(
        rows,
        path,
        file_format_version=version,
        table_name="ADSL",
        column_labels={"USUBJID": "Unique Subject Identifier"},
    )
    return path


def refused(path: Path, form: FileFormat | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_file(path, form or FileFormat())
    return str(error.value)


@pytest.mark.parametrize("version", [5, 8])
def test_a_transport_file_by_its_formats(tmp_path, version, monkeypatch):
    # Two rows at a time, so that the file is read in several pieces.
    monkeypatch.setattr(sas, "BATCH_BYTES", 100)
    given = read_file(transport(tmp_path / "any.name", version), FileFormat())
    assert given.rows.to_pydict() == {
        "USUBJID": ["S-1", "S-2", "S-3"],
        "AGE": [34.0, None, 51.5],
        "RFSTDTC": ["2023-04", "2023-05-02", None],
        "TRTSDT": [dt.date(2023, 4, 1), None, dt.date(9999, 12, 31)],
        "ADTM": [dt.datetime(2023, 4, 1, 12, 30), None, dt.datetime(1959, 12, 31, 23, 59, 59)],
        "ATM": ["12:30:00", None, "01:02:03"],
    }
    assert given.summary.columns["USUBJID"].label == "Unique Subject Identifier"
    assert given.summary.missing_kinds() == []


def test_special_missing_values_of_a_transport_file_are_counted_by_letter(tmp_path):
    content = bytearray(transport(tmp_path / "adsl.xpt", 5).read_bytes())
    missing = content.index(b".\0\0\0\0\0\0\0", content.rindex(b"!!!!!!!"))
    content[missing] = ord("U")
    (tmp_path / "adsl.xpt").write_bytes(content)
    given = read_file(tmp_path / "adsl.xpt", FileFormat())
    assert given.rows["AGE"].to_pylist() == [34.0, None, 51.5]
    assert given.summary.missing_kinds() == ["AGE: special missing values .U 1"]


@pytest.mark.parametrize("version", [5, 8])
def test_every_cut_of_a_transport_file_is_noticed(tmp_path, version):
    whole = transport(tmp_path / "adsl.xpt", version).read_bytes()
    rows = whole.rindex(b"!!!!!!!") + 39
    path = tmp_path / "cut.xpt"
    for size in (*range(80, rows, 80), rows + 1, rows + 49, rows + 80, rows + 140):
        path.write_bytes(whole[:size])
        assert "cut off" in refused(path), size
    path.write_bytes(b"")
    assert "0 bytes" in refused(path)


def test_a_transport_file_of_two_datasets_is_refused(tmp_path):
    whole = transport(tmp_path / "adsl.xpt", 5).read_bytes()
    (tmp_path / "adsl.xpt").write_bytes(whole + whole[240:])
    assert "holds 2 datasets. Write one file for each" in refused(tmp_path / "adsl.xpt")


def test_the_encoding_of_a_transport_file_is_declared(tmp_path):
    path = transport(tmp_path / "adsl.xpt", 5, pd.DataFrame({"NAME": ["Mull x"], "N": [1.0]}))
    path.write_bytes(path.read_bytes().replace(b"Mull", b"M\xfcll"))
    assert read_file(path, FileFormat(encoding="cp1252")).rows["NAME"].to_pylist() == ["Müll x"]
    assert "`encoding: cp1252`" in refused(path)


def test_a_dataset_its_labels_and_its_catalogue(monkeypatch):
    monkeypatch.setattr(sas, "_CHUNK", 5_000)
    given = read_file(EXAMPLE / "adqs.sas7bdat", FileFormat())
    assert given.rows.num_rows == 96
    assert given.rows.slice(0, 1).to_pylist() == [
        {
            "USUBJID": "EX-301-101-001", "PARAMCD": "UAS7", "AVISITN": 0.0, "ADT": dt.date(2023, 6, 23),
            "AVAL": None, "SEXN": 1.0,
        }
    ]  # fmt: skip
    assert given.summary.missing_kinds() == ["AVAL: special missing values .A 6, .N 5"]
    assert given.summary.columns["AVAL"].label == "Analysis Value"
    assert given.summary.columns["SEXN"].values == {"1": "Male", "2": "Female"}


def test_a_dataset_that_cannot_be_read_is_one_error(tmp_path):
    whole = (EXAMPLE / "adqs.sas7bdat").read_bytes()
    path = tmp_path / "adqs.sas7bdat"
    path.write_bytes(whole[:-4096])
    assert "It is cut off, damaged, encrypted or password protected" in refused(path)
    # As encryption leaves a file: a header, and pages that say nothing.
    path.write_bytes(whole[:4196] + bytes(255 - one for one in whole[4196:]))
    assert "no column of it can be read" in refused(path)
    shutil.copy(EXAMPLE / "formats.sas7bcat", tmp_path)
    assert "a SAS catalogue, which is not read" in refused(tmp_path / "formats.sas7bcat")


@pytest.mark.parametrize(
    ("display", "kind"),
    [
        ("DATE9", "date"), ("YYMMDD10.", "date"), ("E8601DA10.", "date"), ("MONYY7", "date"),
        ("DATETIME20.3", "datetime"), ("B8601DN", "datetime"), ("E8601DT19.", "datetime"), ("TIME8.", "time"),
        ("HHMM5", "time"), ("E8601TM8", "time"),
        ("BEST12.", None), ("8.2", None), ("DATEX", None), (None, None),
    ],
)  # fmt: skip
def test_what_a_format_means(display, kind):
    assert sas.kind_of(display) == kind


def test_a_day_that_no_calendar_has_is_refused(tmp_path):
    rows = pd.DataFrame({"ADT": [1e9]})
    pyreadstat.write_xport(rows, tmp_path / "x.xpt", variable_format={"ADT": "DATE9."})
    assert "column ADT has a value beyond the years 1 to 9999" in refused(tmp_path / "x.xpt")


def test_the_trial_of_the_example_is_read_by_its_mapping():
    delivery = read(EXAMPLE, EXAMPLE / "mapping.yaml")
    assert {name: len(frame) for name, frame in delivery.items()} == {
        "patient_journeys": 24, "patient_clinical": 24, "treatment_events": 47,
    }  # fmt: skip
    event = delivery["treatment_events"].iloc[0]
    assert (event["treatment_event_id"], event["patient_id"]) == ("EX-301-101-001-1", "EX-301-101-001")
    assert delivery.delivered["treatment_events"].completed["precision"].value_counts().to_dict() == {
        "month": 16
    }
    assert delivery.not_read == {
        "formats.sas7bcat": "a SAS catalogue, which is not read. Its value labels are shown where it lies beside the "
        "sas7bdat files that use them; it has no rows",
        "mapping.yaml": "a mapping or another document, no data",
    }


def test_labels_propose_columns_and_a_catalogue_proposes_values(tmp_path):
    """USUBJID is the patient, RFSTDTC the start; 1 and 2 are sexes because the catalogue says so."""
    shutil.copy(EXAMPLE / "formats.sas7bcat", tmp_path)
    shutil.copy(EXAMPLE / "adqs.sas7bdat", tmp_path)
    records = open_records(tmp_path / "adqs.sas7bdat", FileFormat())
    assert recognise(tmp_path / "adqs.sas7bdat") is sas.DATASET
    assert records.summary.columns["SEXN"].display == "SEXF"
    rows = pd.DataFrame(
        {
            "SUBJID": ["1", "2"],
            "USUBJID": ["E-1", "E-2"],
            "RFSTDTC": ["2023-01-02", "2023-02-03"],
            "SEX": ["F", "M"],
        }
    )
    pyreadstat.write_xport(
        rows,
        tmp_path / "patient_journeys.xpt",
        column_labels={"SUBJID": "Patient Journey Identifier", "SEX": "Sex"},
    )
    (tmp_path / "adqs.sas7bdat").unlink()
    found = check_folder(tmp_path, load_vocabulary())
    (table,) = found.tables
    assert found.mapping.table("patient_journeys").rename == {
        "SUBJID": "patient_journey_id", "USUBJID": "patient_id", "RFSTDTC": "journey_start_date", "SEX": "gender",
    }  # fmt: skip
    assert table.formats == {"patient_journeys.xpt": "SAS transport (XPT)"}
    assert table.labels == {"SUBJID": "Patient Journey Identifier", "SEX": "Sex"}
