"""Which format a file is of, by its content; those that are not read are named, with what to do."""

import gzip
import shutil

import pandas as pd
import pytest

from e2i_dagster.config.mapping import FileFormat, ImportMapping
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources.check import check_folder
from e2i_dagster.sources.files import read, read_file
from e2i_dagster.sources.formats import delimited, meds, parquet, recognise
from e2i_dagster.sources.formats.refused import REFUSED
from e2i_dagster.tables.vocabulary import load_vocabulary

#: First bytes of formats that are not read.
KNOWN = {
    "an Excel workbook": b"PK\x03\x04\x14\x00[Content_Types].xml xl/workbook.xml",
    "a ZIP archive": b"PK\x03\x04\x14\x00patients.csv",
    "an Excel workbook of before 2007": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a SAS file by PROC CPORT": b"**COMPRESSED** **COMPRESSED**",
    "an SPSS file": b"$FL2@(#) SPSS DATA FILE",
    "a Stata file": b"<stata_dta><header>",
    "an HL7 v2 message": b"MSH|^~\\&|LAB|HOSP|",
    "an X12 interchange, such as an 835 or 837 claim": b"ISA*00*          *00*",
    "a CDA document (C-CDA)": b'<?xml version="1.0"?>\n<ClinicalDocument xmlns="urn:hl7-org:v3">',
    "a CDISC ODM or Dataset-XML file": b'<?xml version="1.0"?>\n<ODM>',
    "an Avro file": b"Obj\x01",
    "FHIR resources of a type that is not read": b'{"resourceType":"Organization","id":"o1"}',
    "a SQLite database": b"SQLite format 3\x00",
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_format_that_is_not_read_is_refused_by_its_name_whatever_the_file_is_called(tmp_path, name):
    (refused,) = [one for one in REFUSED if one.name == name]
    path = tmp_path / "treatment_events.csv"
    path.write_bytes(KNOWN[name])
    with pytest.raises(InputError) as error:
        read_file(path, FileFormat())
    assert str(error.value) == f"treatment_events.csv: {name}, which is not read. {refused.remedy}."
    with pytest.raises(InputError, match="no file that is read") as error:
        check_folder(tmp_path, load_vocabulary())
    assert f"treatment_events.csv: {name}, which is not read. {refused.remedy}." in str(error.value)


def test_the_content_decides_and_then_the_ending(tmp_path):
    pd.DataFrame({"hcp_id": ["H1"]}).to_parquet(tmp_path / "hcp_profiles.data")
    assert recognise(tmp_path / "hcp_profiles.data") is parquet.FORMAT
    assert read(tmp_path)["hcp_profiles"]["hcp_id"].tolist() == ["H1"]
    (tmp_path / "hcp_profiles.data").rename(tmp_path / "hcp_profiles.csv")
    assert read(tmp_path)["hcp_profiles"]["hcp_id"].tolist() == ["H1"]
    (tmp_path / "x.TSV.gz").write_bytes(gzip.compress(b"a\tb\n"))
    assert recognise(tmp_path / "x.TSV.gz") is delimited.FORMAT
    (tmp_path / "notes.md").write_text("words")
    assert recognise(tmp_path / "notes.md") is None


def test_a_compressed_file_of_a_binary_format_is_refused(tmp_path):
    content = (CHECKOUT / "docs/examples/sas/adsl.xpt").read_bytes()
    (tmp_path / "adsl.xpt.gz").write_bytes(gzip.compress(content))
    with pytest.raises(
        InputError, match=r"SAS transport \(XPT\) inside gzip, which is not read. Decompress it"
    ):
        read_file(tmp_path / "adsl.xpt.gz", FileFormat())


def test_meds_is_told_by_its_columns_and_their_types_and_codes_come_apart(tmp_path):
    given = ["1950-02-03", "2023-01-10 10:00", None, "2023-01-11", "2023-02-01"]
    time = pd.to_datetime(given, format="ISO8601")
    rows = pd.DataFrame(
        {
            "subject_id": [1, 1, 1, 1, 1],
            "time": time.astype("datetime64[us]"),
            "code": ["MEDS_BIRTH", "ICD10CM//L50.1//x", "GENDER//F", None, "MEDS_DEATH"],
            "numeric_value": pd.Series([None] * 5, dtype="float32"),
        }
    )
    rows.to_parquet(tmp_path / "0.parquet")
    assert recognise(tmp_path / "0.parquet") is meds.FORMAT
    found = read_file(tmp_path / "0.parquet", FileFormat())
    table = found.rows.to_pydict()
    assert table["code_system"] == ["MEDS_BIRTH", "ICD10CM", "GENDER", None, "MEDS_DEATH"]
    assert table["code_value"] == [None, "L50.1//x", "F", None, None]
    assert [one is not None for one in table["birth_time"]] == [True, False, False, False, False]
    assert [one is not None for one in table["care_time"]] == [False, True, False, True, False]
    assert found.summary.notes == ["1 rows have no time (static facts of subjects)"]
    # The same names with other types are a table of one's own.
    rows.assign(subject_id="A").to_parquet(tmp_path / "1.parquet")
    assert recognise(tmp_path / "1.parquet") is parquet.FORMAT
    (tmp_path / "2.parquet").write_bytes(b"PAR1 cut off")
    assert recognise(tmp_path / "2.parquet") is parquet.FORMAT


def test_a_workbook_that_the_mapping_names_is_an_error(tmp_path):
    (tmp_path / "HCP.xlsx").write_bytes(KNOWN["an Excel workbook"])
    mapping = ImportMapping.model_validate({"tables": {"hcp_profiles": {"files": ["HCP.xlsx"]}}})
    with pytest.raises(
        InputError, match=r"HCP.xlsx: an Excel workbook, which is not read. Save each sheet as CSV"
    ):
        read(tmp_path, mapping)


@pytest.mark.parametrize(
    ("folder", "shape", "rows"),
    [
        ("meds", "MEDS", {"patient_journeys": 12, "patient_clinical": 12, "treatment_events": 48}),
        ("sas", "CDISC (SDTM or ADaM)", {"patient_journeys": 24, "treatment_events": 47}),
        ("dataset_json", "CDISC (SDTM or ADaM)", {"patient_journeys": 24, "treatment_events": 47}),
        (
            "fhir",
            "FHIR R4 bulk export",
            {"hcp_profiles": 2, "patient_journeys": 12, "patient_clinical": 12, "treatment_events": 60},
        ),
    ],
)
def test_a_folder_of_a_known_shape_gets_a_mapping_that_passes(tmp_path, folder, shape, rows):
    shutil.copytree(
        CHECKOUT / "docs/examples" / folder, tmp_path / "in", ignore=shutil.ignore_patterns("*.yaml")
    )
    found = check_folder(tmp_path / "in", load_vocabulary())
    assert (found.shape, found.problems, found.unassigned) == (shape, (), {})
    assert {table.table: table.rows for table in found.tables} == rows
    assert not any(table.rejected for table in found.tables)


def test_the_page_names_what_is_not_read():
    page = (CHECKOUT / "docs/formats.md").read_text(encoding="utf-8")
    for one in REFUSED:
        assert f"| {one.name} | " + one.remedy.replace("|", "\\|") + " |" in page


def test_whole_numbers_of_a_typed_file_are_mapped_by_their_digits(tmp_path):
    rows = pd.DataFrame({"hcp_id": ["H1", "H2"], "geographic_region": [1.0, None]})
    rows.to_parquet(tmp_path / "hcp_profiles.parquet")
    mapping = {"tables": {"hcp_profiles": {"values": {"geographic_region": {"1": "west"}}}}}
    read_rows = read(tmp_path, ImportMapping.model_validate(mapping))["hcp_profiles"]
    assert read_rows["geographic_region"].tolist()[0] == "west"
