"""Reading folders of files: what is read, and the one clear message when something is wrong."""

import datetime as dt
import gzip
from pathlib import Path

import pandas as pd
import pytest

from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.sources import files

HEADER = "hcp_id,npi,zip_code,decile,drug_note\n"


@pytest.fixture
def folder(tmp_path):
    def write(**contents: str | bytes) -> Path:
        for name, content in contents.items():
            path = tmp_path / name.replace("__", ".", 1)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


def problem(folder: Path, **options) -> str:
    with pytest.raises(InputError) as error:
        files.read(folder, **options)
    return str(error.value)


def test_csv_values_are_text_and_unknown_columns_are_kept(folder):
    where = folder(hcp_profiles__csv=HEADER + 'HCP00000001,0123456789,01234,,"two\nlines in one cell"\n')
    delivery = files.read(where)
    frame = delivery["hcp_profiles"]
    assert list(delivery) == ["hcp_profiles"]
    assert frame.loc[0].tolist()[:3] == ["HCP00000001", "0123456789", "01234"]
    assert frame["decile"].isna().all()
    assert frame.loc[0, "drug_note"] == "two\nlines in one cell"
    assert set(map(str, frame.dtypes)) == {"string"}


def test_parquet_keeps_its_types(tmp_path):
    given = pd.DataFrame(
        {
            "metric_id": ["a", "b"],
            "metric_date": [dt.date(2024, 1, 1), None],
            "value": [0.5, None],
            "sample_size": [3, None],
        }
    )
    given.to_parquet(tmp_path / "business_metrics.parquet")
    frame = files.read(tmp_path)["business_metrics"]
    assert frame["metric_date"].tolist()[0] == dt.date(2024, 1, 1)
    assert frame["value"].tolist()[0] == 0.5


def test_several_files_of_a_table_keep_where_each_row_came_from(folder):
    where = folder(
        treatment_events_2024_03__csv="treatment_event_id,patient_journey_id,patient_id,event_date\nc,j,p,2024-03-01\n",
        treatment_events_2024_01__csv="treatment_event_id,patient_journey_id,patient_id,event_date,cost\n"
        "a,j,p,2024-01-01,1\nshort\nb,j,p,2024-01-02,2\n",
    )
    table = files.read(where).delivered["treatment_events"]
    assert table.frame["treatment_event_id"].tolist() == ["a", "b", "c"]
    assert table.frame["cost"].tolist()[:2] == ["1", "2"]
    assert table.row_numbers.tolist() == [1, 3, 1]
    assert [file.rows for file in table.files] == [2, 1]
    assert table.malformed[["row_number", "text"]].values.tolist() == [[2, "short"]]
    assert table.file_of_rows(pd.Series([0, 2]).to_numpy()) == [
        "treatment_events_2024_01.csv",
        "treatment_events_2024_03.csv",
    ]


def test_the_split_of_a_delivery_and_the_times_of_the_database_are_ignored(folder):
    where = folder(hcp_profiles__csv="hcp_id,data_split,split_config_id,created_at\nH1,train,x,2024-01-01\n")
    assert list(files.read(where)["hcp_profiles"].columns) == ["hcp_id"]


def test_known_aliases_are_translated(folder):
    where = folder(
        patient_journeys__csv="patient_journey_id,patient_id,journey_start_date,current_stage,brand,gender\n"
        "J1,P1,2024-01-01,diagnosis,iptacopan,female\n",
        business_metrics__csv="metric_id,metric_date,brand\nM,2024-01-01,All_Brands\n",
    )
    delivery = files.read(where)
    row = delivery["patient_journeys"].loc[0]
    assert row[["journey_stage", "brand", "gender"]].tolist() == ["diagnosis", "Fabhalta", "F"]
    assert delivery["business_metrics"]["brand"].isna().all()


def test_a_mapping_says_what_differs(folder):
    where = folder(
        export_1__csv="ID;Seen;Score;Region;junk\nH1;01.02.2024;0,5;1;z\nH2;31.02.2024;n/a;9;z\n".encode(
            "utf-16"
        ),
        mapping__yaml="""
format: {separator: ";", encoding: utf-16, decimal: ",", nulls: [n/a]}
tables:
  hcp_profiles:
    files: ["export_*.csv"]
    rename: {ID: hcp_id, Seen: last_interaction_date, Score: digital_engagement_score, Region: geographic_region}
    dates: {last_interaction_date: "%d.%m.%Y"}
    values: {geographic_region: {"1": west, "9": ""}}
    constants: {state: CA}
    ignore: [junk]
""",
    )
    table = files.read(where, where / "mapping.yaml").delivered["hcp_profiles"]
    assert table.frame.fillna("-").values.tolist() == [
        ["H1", "2024-02-01", "0.5", "west", "CA"],
        ["H2", "31.02.2024", "-", "-", "CA"],
    ]
    assert table.raw.loc[0].tolist() == ["H1", "01.02.2024", "0,5", "1", "z"]


def test_everything_that_is_wrong_is_in_one_message(folder):
    where = folder(
        hcp_profiles__csv=b"",
        patient_journeys__csv="patient_journey_id;patient_id;journey_start_date\nJ1;P1;2024-01-01\n",
        treatment_events__csv="treatment_event_id,patient_id\nT,P\n".encode("utf-16"),
        engagement_events__csv="engagement_event_id,hcp,engagement_date\nE,H,2024-01-01\n",
        outcome_events__csv="outcome_event_id,outcome_event_id\n",
        triggers__csv="trigger_id,caf\xe9\nT,caf\xe9\n".encode("latin-1"),
        causal_paths__parquet=b"no parquet",
        hcp_profile__csv="a\n",
    )
    text = problem(where)
    assert text.splitlines()[0].endswith("8 problems; nothing was loaded.")
    for part in (
        "hcp_profiles.csv: the file is empty, without even a header",
        'patient_journeys.csv: the fields are separated by ";", expected ",". Write `separator: ";"`',
        "treatment_events.csv: the file is UTF-16, expected utf-8. Save it as UTF-8, or write `encoding: utf-16`",
        "engagement_events.csv: required column hcp_id is missing; column hcp looks like it",
        "outcome_events.csv: the header repeats outcome_event_id",
        "triggers.csv: not utf-8 text",
        "causal_paths.parquet: not readable as Parquet",
        "hcp_profile.csv: belongs to no raw table (did you mean hcp_profiles?)",
    ):
        assert part in text, part


def test_a_header_without_rows_is_a_table_without_rows(folder):
    where = folder(
        hcp_profiles__csv="hcp_id,npi", causal_paths__csv="path_id,discovery_date,causal_chain\n\n"
    )
    delivery = files.read(where)
    assert {name: len(frame) for name, frame in delivery.items()} == {"hcp_profiles": 0, "causal_paths": 0}
    assert list(delivery["hcp_profiles"].columns) == ["hcp_id", "npi"]


def test_folders_without_anything_to_read(folder, tmp_path):
    assert "does not exist" in problem(tmp_path / "nowhere")
    assert "no file that is read (CSV, TSV," in problem(tmp_path)
    where = folder(hcp_profiles__csv="hcp_id\nH1\n")
    assert "is a file, not a folder" in problem(where / "hcp_profiles.csv")
    text = problem(where, tables=["hcp_profiles", "triggers", "nonsense"])
    assert "triggers: no file triggers.csv" in text
    assert "nonsense: not a raw table" in text


def test_only_the_named_tables_are_read(folder):
    where = folder(hcp_profiles__csv="hcp_id\nH1\n", triggers__csv=b"", other__csv="x\n")
    assert list(files.read(where, tables=["hcp_profiles"])) == ["hcp_profiles"]


def test_one_table_in_two_formats_is_refused(folder, tmp_path):
    pd.DataFrame({"hcp_id": ["H1"]}).to_parquet(tmp_path / "hcp_profiles_1.parquet")
    said = problem(folder(hcp_profiles_2__csv="hcp_id\nH1\n"))
    assert "the same rows in two formats?" in said and "to another folder" in said


@pytest.mark.parametrize("ending", ["csv.gz", "CSV.GZ", "Tsv.Gz"])
def test_what_is_compressed_is_told_by_the_ending_in_any_case(tmp_path, ending):
    mark = "\t" if ending.startswith("T") else ","
    text = mark.join(["hcp_id", "npi"]) + "\n" + mark.join(["H1", "x"]) + "\n"
    (tmp_path / f"hcp_profiles.{ending}").write_bytes(gzip.compress(text.encode()))
    assert files.read(tmp_path)["hcp_profiles"].values.tolist() == [["H1", "x"]]


def test_a_part_whose_ending_says_its_separator_keeps_it_beside_one_whose_separator_is_declared(folder):
    where = folder(
        hcp_profiles_1__csv="hcp_id,npi\nH1,a\n",
        hcp_profiles_2__tsv="hcp_id\tnpi\nH2\tb|c\n",
        hcp_profiles_3__txt="hcp_id|npi\nH3|d,e\n",
        hcp_profiles_4__csv="hcp_id|npi\nH4|f,g\n",
        m__yaml='tables: {hcp_profiles: {separator: "|"}}',
    )
    read = files.read(where, where / "m.yaml")["hcp_profiles"]
    assert read.values.tolist() == [["H1", "a"], ["H2", "b|c"], ["H3", "d,e"], ["H4", "f,g"]]
    folder(hcp_profiles_5__csv="hcp_id;npi\nH5;h\n")
    said = problem(where, mapping=where / "m.yaml")
    assert 'hcp_profiles_5.csv: the fields are separated by ";", expected "|"' in said
    assert "save parts alike" in said


@pytest.mark.parametrize(
    "mapping, said",
    [
        ("tables: {hcp_profiles: {rename: {ID: npi}}}", "the mapping renames ID, which the file lacks"),
        (
            "tables: {hcp_profiles: {constants: {npi: x}}}",
            "npi is a constant of the mapping, but the file has",
        ),
        ("tables: {hcp_profiles: {dates: {born: '%Y'}}}", "the mapping's `dates` names born"),
        ("tables: {hcp_profiles: {rename: {hcp_id: npi}}}", "two columns become npi"),
        ("tables: {hcp_profiles: {files: ['x*.csv']}}", "no file matches x*.csv"),
        ("tables: {hcps: {}}", "hcps: not a raw table"),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_input_error(folder, mapping, said):
    where = folder(hcp_profiles__csv="hcp_id,npi\nH1,x\n", m__yaml=mapping)
    assert said in problem(where, mapping=where / "m.yaml")


@pytest.mark.parametrize(
    "mapping, said",
    [
        ("format: {encoding: utf-99}", "not an encoding"),
        ("format: {separator: ';;'}", "separator"),
        ("tables: {hcp_profiles: {rename: {a: npi, b: npi}}}", "more than once"),
        ("tables: {hcp_profiles: {column: {}}}", "columns"),
    ],
)
def test_a_mapping_file_that_is_wrong_is_a_configuration_error(folder, mapping, said):
    where = folder(hcp_profiles__csv="hcp_id,npi\nH1,x\n", m__yaml=mapping)
    with pytest.raises(ConfigError, match=said):
        files.read(where, where / "m.yaml")
