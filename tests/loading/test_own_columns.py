"""Own clinical columns: kept as text as delivered, checked and read under the type that is declared, or text."""

import csv
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts import build_cohort, lint, patient_frame
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.mapping import ImportMapping
from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.loading import rejects
from e2i_dagster.loading.delivery import DeliveryRequest, prepare_delivery
from e2i_dagster.loading.load import load
from e2i_dagster.loading.resubmission import resubmit
from e2i_dagster.sources.check import check_folder, mapping_yaml, proposed_type
from e2i_dagster.sources.files import read
from e2i_dagster.tables.codes import fits
from e2i_dagster.tables.frames import conform, extra_frame
from e2i_dagster.tables.own_columns import read_as
from e2i_dagster.tables.own_types import CODE_SYSTEMS
from e2i_dagster.tables.rules import check, row_documents
from e2i_dagster.tables.vocabulary import load_vocabulary

TEXT = "string[pyarrow]"
VOCABULARY = load_vocabulary()
KEYS = [f"PJ{i:016d}" for i in range(40)]
#: Cells that were read as something else at one time or another, and any others.
CELLS = st.one_of(
    st.sampled_from(
        ["F", "M", "t", "0", "1", "1.0", "250.00", "0123", "12345678901234567", "1e5", "NA", "null", "NaN", "inf",
         "<0.1", "yes", "2024-05-10", "2024-05", "05/01/2027", "L50.1", "0002-8215-01", " 7 ", "true", "718-7", "+5"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), min_size=1, max_size=8),
)  # fmt: skip
DELIVERIES = st.lists(st.lists(st.none() | CELLS, min_size=1, max_size=6), min_size=1, max_size=4)
TYPES = ("text", "number", "boolean", "date", *CODE_SYSTEMS)


def mapping_with(**clinical) -> ImportMapping:
    return ImportMapping.model_validate({"tables": {"patient_clinical": clinical}})


def delivered(folder, kind, cells):
    """A folder with one delivery of the own column ``x``, as CSV or as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    if kind == "parquet":
        table = pa.table({"patient_journey_id": KEYS[: len(cells)], "x": pa.array(cells, pa.string())})
        pq.write_table(table, folder / "patient_clinical.parquet")
    else:
        with (folder / "patient_clinical.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerows([["patient_journey_id", "x"], *zip(KEYS, cells, strict=False)])
    return folder


def read_back(frame, own=None):
    """The own column ``x`` as it is kept, and the rows that its declared type refuses."""
    checked = check("patient_clinical", frame, VOCABULARY, own)
    kept = extra_frame(conform("patient_clinical", checked.rows.to_pandas()))
    return [None if pd.isna(cell) else cell for cell in kept["x"]], checked


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries=DELIVERIES, own=st.sampled_from(TYPES))
def test_a_cell_reads_back_as_delivered_and_converts_by_itself(tmp_path, kind, deliveries, own):
    """Whatever else is in the column, the delivery, or came before: the text is the text, the value its own."""
    for cells in deliveries:
        mapping = mapping_with(own={"x": own}, line_breaks=True)
        found = read(delivered(tmp_path / "in", kind, cells), mapping)["patient_clinical"]
        kept, checked = read_back(found, {"x": own})
        assert kept == cells
        values, lost = read_as(pd.Series(kept, dtype=TEXT), own)
        alone = [read_as(pd.Series([cell], dtype=TEXT), own) for cell in cells]
        for value, (one, _) in zip(values, alone, strict=True):
            assert (pd.isna(value) and pd.isna(one[0])) or value == one[0]
        # What the loader refuses is what the cohort does not know.
        assert lost == sum(count for _, count in alone) == int(checked.bad.sum())


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (pa.array([True, None]), ["true", None]),
        (pa.array([250.0, 0.1]), ["250", "0.1"]),
        (pa.array([12345678901234567, 2]), ["12345678901234567", "2"]),
        (pa.array(["250.00", "1.5"]).cast(pa.decimal128(10, 2)), ["250.00", "1.50"]),
        (pa.array(["2024-05-10", None]).cast(pa.date32()), ["2024-05-10", None]),
        (pa.array([{"n": 1, "of": ["x"]}, None]), ['{"n":1,"of":["x"]}', None]),
        (pa.array([["2024-05-10"], None]).cast(pa.list_(pa.date32())), ['["2024-05-10"]', None]),
        (pa.array([b"ab", b"\xff"]), ["ab", "\\xff"]),
    ],
)
def test_typed_cells_of_parquet_are_kept_in_one_form(tmp_path, typed, text):
    table = pa.table({"patient_journey_id": KEYS[:2], "x": typed})
    pq.write_table(table, tmp_path / "patient_clinical.parquet")
    delivery = read(tmp_path)["patient_clinical"]
    assert read_back(delivery)[0] == text
    # What is told of a rejected row, and the check before the load, know such cells, too.
    assert [json.loads(row).get("x") is None for row in row_documents(delivery)] == [
        cell is None for cell in text
    ]
    assert check_folder(tmp_path, VOCABULARY).tables[0].table == "patient_clinical"


@pytest.mark.parametrize(
    ("own", "good", "bad", "reason"),
    [
        ("number", ["1.5", "-2", " 3e2 "], ["<0.1", "1,5", "n/a", "inf"], "number_format"),
        ("boolean", ["true", "No", "1"], ["F?", "2"], "boolean_format"),
        ("date", ["2024-05-10", "20240510", "2024-05-10T14:07:25Z"], ["10. Mai"], "date_format"),
        ("date", ["2024-05-10"], ["05/01/2027"], "ambiguous_date"),
        ("date", ["2024-05-10"], ["2024-05"], "partial_date"),
        ("icd10cm", ["L50.1", "l501"], ["L5", "250.00"], "code_format"),
        ("icd9cm", ["250.00", "25000", "V58.1", "E8500"], ["L50.1"], "code_format"),
        ("ndc", ["0002-8215-01", "00002821501", "0002821501"], ["12345"], "code_format"),
        ("cpt", ["99213", "0001F"], ["9921"], "code_format"),
        ("hcpcs", ["J1234", "99213"], ["J12"], "code_format"),
        ("loinc", ["718-7", "4548-4"], ["718-8"], "code_format"),
        ("npi", ["1234567893"], ["1234567890", "123"], "code_format"),
    ],
)
def test_a_declared_column_says_by_name_what_does_not_fit(own, good, bad, reason):
    frame = pd.DataFrame(
        {"patient_journey_id": KEYS[: len(good + bad)], "x": pd.array(good + bad, dtype=TEXT)}
    )
    kept, checked = read_back(frame, {"x": own})
    assert kept == good + bad
    assert checked.bad.tolist() == [False] * len(good) + [True] * len(bad)
    faults = checked.faults_frame()
    assert faults[["reason", "column"]].drop_duplicates().to_numpy().tolist() == [[reason, "x"]]
    assert faults["value"].tolist() == bad
    assert not check("patient_clinical", frame, VOCABULARY).bad.any()


@pytest.mark.parametrize("system", CODE_SYSTEMS)
def test_no_text_is_an_error_of_a_code_system(system):
    assert not any(fits(text, system) for text in ("", " ", "?", "x" * 50, "\n"))


def test_a_cell_that_no_database_can_hold_is_named(database):
    frame = pd.DataFrame({"patient_journey_id": KEYS[:1], "x": pd.array(["a\x00b"], dtype=TEXT)})
    faults = check("patient_clinical", frame, VOCABULARY).faults_frame()
    assert faults[["reason", "column"]].to_numpy().tolist() == [["invalid_text", "x"]]


def test_what_the_mapping_declares_is_done_to_own_columns_and_nothing_else(tmp_path):
    (tmp_path / "patient_clinical.csv").write_text(
        "patient_journey_id;dose;code;seen;smokes\nPJ1;1,50;250,00;10.05.2024;ja\nPJ2;<0,1;1,5;2024-05-10;nein\n"
    )
    mapping = mapping_with(
        separator=";",
        decimal=",",
        own={"dose": "number", "seen": "date", "smokes": "boolean"},
        dates={"seen": "%d.%m.%Y"},
        values={"smokes": {"ja": "yes", "nein": "no"}},
    )
    found = read(tmp_path, mapping)
    rows = found["patient_clinical"].drop(columns="patient_journey_id").to_numpy().tolist()
    assert rows == [["1.50", "250,00", "2024-05-10", "yes"], ["<0,1", "1,5", "2024-05-10", "no"]]
    checked = check(
        "patient_clinical", found["patient_clinical"], VOCABULARY, found.delivered["patient_clinical"].own
    )
    assert checked.faults_frame()[["position", "reason", "column", "value"]].to_numpy().tolist() == [
        [1, "number_format", "dose", "<0,1"]
    ]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"patient_clinical": {"own": {"x": "integer"}}},
         r"mapping.yaml:\d+: tables.patient_clinical.own.x: .*'text', 'number', 'boolean', 'date', 'icd10cm'"),
        ({"treatment_events": {"own": {"x": "text"}}}, "only patient_clinical keeps columns of your own"),
    ],
)  # fmt: skip
def test_a_declaration_is_checked_when_the_mapping_is_read(tmp_path, tables, words):
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump({"tables": tables}))
    with pytest.raises(ConfigError, match=words):
        ImportMapping.load(path)


def test_a_declared_column_has_to_be_delivered_and_to_be_the_teams_own(tmp_path):
    folder = delivered(tmp_path / "in", "csv", ["1"])
    with pytest.raises(InputError, match=r"`own` declares xx, no column after renaming \(did you mean x\?\)"):
        read(folder, mapping_with(own={"xx": "number"}))
    with pytest.raises(InputError, match="`own` declares egfr, which is a column of patient_clinical"):
        read(folder, mapping_with(own={"egfr": "number"}))


def test_types_do_not_follow_the_delivery(database, content, hcps, journeys, tmp_path):
    load({"hcp_profiles": hcps, "patient_journeys": journeys})
    wide = pa.table({"patient_journey_id": KEYS[:2], "sex2": ["F", "F"], "code9": ["250.00", "250.0"],
                     "big": ["12345678901234567", "1"]})  # fmt: skip
    (tmp_path / "in").mkdir()
    pq.write_table(wide, tmp_path / "in" / "patient_clinical.parquet")
    assert load(read(tmp_path / "in")).success
    assert (
        content("patient_clinical", "extra").iloc[:, 0].tolist()
        == wide.drop_columns("patient_journey_id").to_pylist()
    )
    with_m = pd.DataFrame({"patient_journey_id": KEYS[2:4], "sex2": ["F", "M"]}, dtype=TEXT)
    assert load({"patient_clinical": with_m}).success
    found = [document["sex2"] for document in content("patient_clinical", "extra").iloc[:, 0]]
    assert found == ["F", "F", "F", "M"]


def test_a_corrected_row_is_held_against_the_declared_type_again(database, content, hcps, journeys, tmp_path):
    load({"hcp_profiles": hcps, "patient_journeys": journeys})
    folder = delivered(tmp_path / "in", "csv", ["0.5", "<0.1", "2"])
    done = load(read(folder, mapping_with(own={"x": "number"})), success_threshold=0).tables[
        "patient_clinical"
    ]
    assert (done.inserted, done.reasons) == (2, {"number_format": 1})
    for cell, taken in (("< 0.2", False), ("0.05", True)):
        (path,) = rejects.export(database, tmp_path / "corrections")
        rows = pd.read_csv(path, dtype=TEXT)
        assert rows["_reasons"].tolist() == ["number_format x"]
        rows.assign(x=cell).to_csv(path, index=False)
        again = resubmit(database, tmp_path / "corrections").tables["patient_clinical"]
        assert (again.inserted, again.rejected) == ((1, 0) if taken else (0, 1))
    assert [one["x"] for one in content("patient_clinical", "extra").iloc[:, 0]] == ["0.5", "0.05", "2"]
    assert rejects.summary(database).empty


# --- cohorts


def definition(own, criterion, **more):
    return CohortDefinition.model_validate(
        {
            "brand": "Remibrutinib",
            "indication": "own",
            "own_fields": own,
            "inclusion_criteria": [{"field": "x", **criterion}],
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
            **more,
        }
    )


def patients(cells):
    keys = KEYS[: len(cells)]
    journeys = pd.DataFrame(
        {"patient_journey_id": keys, "patient_id": [f"P{key}" for key in keys]}, dtype=TEXT
    )
    clinical = pd.DataFrame({"patient_journey_id": keys, "x": pd.array(cells, dtype=TEXT)})
    day = pd.Timestamp("2024-05-10")
    dates = dict.fromkeys(("diagnosis_date", "first_observation_date", "last_observation_date"), day)
    return patient_frame(journeys, conform("patient_clinical", clinical.assign(**dates)))


@pytest.mark.parametrize("engine", ["pandas", "duckdb"])
@pytest.mark.parametrize(
    ("own", "criterion", "cells", "eligible"),
    [
        ("number", {"operator": ">=", "value": 1}, ["1.50", "0.5", "<0.1", None], [0]),
        ("boolean", {"operator": "==", "value": True}, ["yes", "f", "maybe", None], [0]),
        (
            "date",
            {"operator": "<", "value": "2024-06-01"},
            ["2024-05-10", "2024-07-01", "05/01/2024", None],
            [0],
        ),
        (
            "ndc",
            {"operator": "in", "value": ["0002-8215-01"]},
            ["00002821501", "00002-8216-01", "12", None],
            [0],
        ),
        ("text", {"operator": "==", "value": "250.00"}, ["250.00", "250.0", "250", None], [0]),
    ],
)
def test_a_cohort_reads_the_declared_type_and_what_does_not_convert_is_unknown(
    own, criterion, cells, eligible, engine
):
    built = build_cohort(definition({"x": own}, criterion), patients(cells), engine=engine)
    assert built.eligible["patient_journey_id"].tolist() == [KEYS[place] for place in eligible]
    unreadable = 0 if own == "text" else 1
    assert built.attrition.set_index("criterion").loc["x", "unknown"] == 1 + unreadable
    assert built.not_converted == ({"x": 1} if unreadable else {})


def test_what_does_not_convert_is_named_where_the_cohort_is_shown():
    demanding = definition({"x": "number"}, {"operator": ">=", "value": 1})
    many = patients(["<0.1"] * 12 + ["5"] * 20)
    words = "x: 12 rows hold no number and are unknown"
    assert build_cohort(demanding, many).to_metadata()["own_fields_not_converted"] == words
    assert "own_field_not_converted" in {finding.kind for finding in lint(demanding, many).findings}
    few = build_cohort(demanding, patients(["<0.1"] * 3 + ["5"] * 20))
    assert "3" not in few.to_metadata()["own_fields_not_converted"]


@pytest.mark.parametrize(("value", "verdict"), [(8, "in"), ("8", "in"), ("<0.1", {"out": "x"})])
def test_examples_are_read_like_rows(value, verdict):
    day = "2024-05-10"
    example = {
        "name": "one",
        "patient": {
            "x": value,
            "diagnosis_date": day,
            "first_observation_date": day,
            "last_observation_date": day,
        },
        "expect": verdict,
    }
    found = lint(definition({"x": "number"}, {"operator": ">=", "value": 1}, examples=[example]))
    assert found.passed, found.findings


# --- the proposal


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2.5", "0.25", None], "number"),
        (["4.0", "6.3"], "number"),
        (["250.00", "250.0"], "text"),
        (["250", "250.10"], "text"),
        (["0123", "1"], "text"),
        (["12345678901234567"], "text"),
        (["123456789012345"], "number"),
        (["1", "<0.1"], "text"),
        (["1e5"], "text"),
        (["F", "F"], "text"),
        (["true", "True"], "text"),
        (["true", "false", None], "boolean"),
        (["yes", "No"], "boolean"),
        (["true", "no"], "text"),
        (["t", "f"], "text"),
        (["2024-05-10", "2023-01-01"], "date"),
        (["2024-05-10", "2024-02-30"], "text"),
        (["20240510"], "number"),
        (["05/01/2027"], "text"),
        ([None, None], "text"),
    ],
)
def test_another_type_than_text_is_proposed_only_where_nothing_is_lost(cells, kind):
    assert proposed_type(pd.Series(cells, dtype=TEXT)) == kind


def test_the_check_proposes_types_and_judges_a_mapping_by_them(tmp_path):
    (tmp_path / "patient_clinical.csv").write_text(
        "patient_journey_id;marker;site\n" + "".join(f"{key};{n},5;0{n}\n" for n, key in enumerate(KEYS))
    )
    found = check_folder(tmp_path, VOCABULARY)
    (table,) = found.tables
    assert table.own == {"marker": "number", "site": "text"} and not table.rejected
    assert found.delivery is not None
    assert found.delivery["patient_clinical"]["marker"].iloc[1] == "1.5"
    written = tmp_path / "mapping.yaml"
    written.write_text(mapping_yaml(found))
    assert "own: types proposed" in written.read_text()
    given_mapping = ImportMapping.load(written)
    assert given_mapping == found.mapping
    pd.testing.assert_frame_equal(
        read(tmp_path, given_mapping)["patient_clinical"], found.delivery["patient_clinical"]
    )
    stricter = given_mapping.model_copy(
        update={"tables": {"patient_clinical": given_mapping.table("patient_clinical").model_copy(
            update={"own": {"site": "date"}})}}
    )  # fmt: skip
    assert check_folder(tmp_path, VOCABULARY, stricter).tables[0].rejected == {"date_format in site": 40}


def test_mapping_and_cohort_agree_or_the_load_is_refused(tmp_path):
    from e2i_dagster.config.policy import current_policy

    folder = delivered(tmp_path / "in", "csv", ["1"])
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump({"tables": {"patient_clinical": {"own": {"x": "date"}}}}))
    cohorts = {"mine": definition({"x": "number"}, {"operator": ">=", "value": 1})}
    request = DeliveryRequest(folder=str(folder), mapping=str(path))
    sources = current_policy().sources
    with pytest.raises(
        ConfigError, match=r"mapping.yaml: own column 'x' is date in the mapping .* number in cohort mine"
    ):
        prepare_delivery(request, sources, tmp_path, cohorts)
    # Both remedies, and a cohort that reads text.
    listed = {"mine": definition(["x"], {"operator": "==", "value": "1"})}
    assert prepare_delivery(request, sources, tmp_path, listed)
    for own in ({"x": "number"}, {}):
        path.write_text(yaml.safe_dump({"tables": {"patient_clinical": {"own": own}}}))
        assert prepare_delivery(request, sources, tmp_path, cohorts)
