"""FHIR bulk exports: elements to columns, references, lines that are no resources."""

import gzip
import json
import re
from pathlib import Path

import pytest

from e2i_dagster.config.mapping import FileFormat
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources.files import FileRows, read, read_file
from e2i_dagster.sources.formats import fhir, recognise

EXAMPLE = CHECKOUT / "docs/examples/fhir"


def written(path: Path, *resources: object, form: FileFormat | None = None) -> FileRows:
    """The rows of a file of these resources (dictionaries, or lines as they are)."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in resources]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return read_file(path, form or FileFormat())


def filled(row: dict) -> dict:
    return {name: cell for name, cell in row.items() if cell is not None}


def of_us_core(name: str, *members: tuple[str, str]) -> dict:
    inner = [
        {"url": "text", "valueString": f"any {name}"},
        *({"url": "ombCategory", "valueCoding": {"code": code, "display": words}} for code, words in members),
    ]
    return {"url": f"{fhir.US_CORE}/us-core-{name}", "extension": inner}


def test_a_patient_with_extensions_and_partial_dates(tmp_path):
    patient = {
        "resourceType": "Patient", "id": "p1", "birthDate": "1960-05", "gender": "female", "deceasedDateTime": "2020",
        "identifier": [{"value": "x"}, {"type": {"text": "Medical Record Number"}, "value": "M1"}],
        "extension": [
            {"url": "other", "valueString": "x"},
            of_us_core("race", ("2106-3", "White"), ("2028-9", "Asian")),
            of_us_core("ethnicity", ("2186-5", "Not Hispanic or Latino")),
        ],
        "address": [{"state": "MA", "postalCode": "02115"}], "unknownElement": {"deep": [1]},
    }  # fmt: skip
    given = written(
        tmp_path / "a.ndjson.gz", patient, {"resourceType": "Patient", "id": "p2", "extension": []}
    )
    assert recognise(tmp_path / "a.ndjson.gz") is fhir.FORMAT
    first, second = given.rows.to_pylist()
    assert filled(first) == {
        "id": "p1", "mrn": "M1", "birth_date": "1960-05", "gender": "female", "death_date": "2020",
        "race_code": "2106-3",
        "race": "White; Asian", "race_text": "any race", "ethnicity_code": "2186-5",
        "ethnicity": "Not Hispanic or Latino", "state": "MA", "zip_code": "02115",
    }  # fmt: skip
    assert filled(second) == {"id": "p2"}
    assert list(first) == list(fhir.COLUMNS["Patient"])


def test_codings_by_system_and_values_by_type(tmp_path):
    coded = {
        "coding": [
            {"system": fhir.SNOMED, "code": "1"},
            {"system": fhir.LOINC, "code": "33914-3", "display": "eGFR"},
        ]
    }
    rows = written(
        tmp_path / "o.ndjson",
        {
            "resourceType": "Observation",
            "id": "a",
            "code": coded,
            "valueQuantity": {"value": 5, "unit": "mL"},
        },
        {"resourceType": "Observation", "id": "b", "code": coded, "valueBoolean": False},
    ).rows.to_pylist()
    assert filled(rows[0]) == {
        "id": "a", "code_loinc": "33914-3", "code_snomed": "1", "code_code": "1", "code_system": fhir.SNOMED,
        "code_display": "eGFR", "value": 5.0, "unit": "mL",
    }  # fmt: skip
    assert rows[1]["value_boolean"] is False


def coded(loinc: str, **more: object) -> dict:
    return {"code": {"coding": [{"system": fhir.LOINC, "code": loinc}]}, **more}


def pressure(key: str, *components: dict) -> dict:
    return {"resourceType": "Observation", "id": key, **coded("85354-9"), "component": list(components)}


SYSTOLIC = coded("8480-6", valueQuantity={"value": 121.5, "unit": "mmHg"})
DIASTOLIC = coded("8462-4", valueQuantity={"value": 80, "unit": "mmHg"})


def test_components_become_as_many_columns_as_the_mapping_says_and_the_others_are_counted(tmp_path):
    alone = {"resourceType": "Observation", "id": "o3", **coded("718-7", valueQuantity={"value": 13})}
    resources = (
        pressure("o1", SYSTOLIC, DIASTOLIC),
        pressure(
            "o2", coded("8480-6", dataAbsentReason={"coding": [{"code": "unknown"}]}), DIASTOLIC, SYSTOLIC
        ),
        alone,
        pressure("o4"),
    )
    given = written(tmp_path / "a.ndjson", *resources, form=FileFormat(components=2))
    first, second, third, fourth = given.rows.to_pylist()
    mine = {name: cell for name, cell in filled(first).items() if name.startswith("component")}
    assert mine == {
        "component1_loinc": "8480-6", "component1_code": "8480-6", "component1_system": fhir.LOINC,
        "component1_value": 121.5, "component1_unit": "mmHg",
        "component2_loinc": "8462-4", "component2_code": "8462-4", "component2_system": fhir.LOINC,
        "component2_value": 80.0, "component2_unit": "mmHg",
    }  # fmt: skip
    assert (second["component1_absent_reason"], second["component1_value"]) == ("unknown", None)
    assert second["component2_value"] == 80.0
    for row in (third, fourth):
        assert not [name for name in filled(row) if name.startswith("component")]
    assert (third["code_loinc"], third["value"]) == ("718-7", 13.0)
    assert given.summary.notes == [
        "1 Observations have more than 2; `components: N` in the mapping reads the first N"
    ]
    without = written(tmp_path / "b.ndjson", *resources)
    assert list(without.rows.column_names) == list(fhir.COLUMNS["Observation"])
    assert without.summary.notes == [
        "2 Observations have components, which are not read; `components: N` in the mapping reads the first N"
    ]


def test_a_mapping_makes_a_row_of_each_component(tmp_path):
    written(tmp_path / "Observation.ndjson", pressure("o1", SYSTOLIC, DIASTOLIC), pressure("o2", SYSTOLIC))
    (tmp_path / "mapping.yaml").write_text(
        """
tables:
  patient_clinical:
    files: [Observation.ndjson]
    components: 2
    unpivot: {columns: {component_loinc: "component{n}_loinc", component_value: "component{n}_value"}}
    where: [{column: component_loinc, equals: 8480-6}]
    columns: {patient_journey_id: id, egfr: component_value}
"""
    )
    found = read(tmp_path, tmp_path / "mapping.yaml")["patient_clinical"]
    assert found[["patient_journey_id", "egfr"]].astype(str).to_numpy().tolist() == [
        ["o1", "121.5"],
        ["o2", "121.5"],
    ]


def test_references_become_ids_and_lost_ones_are_counted(tmp_path):
    written(tmp_path / "Patient.ndjson", {"resourceType": "Patient", "id": "p1"})
    written(
        tmp_path / "Practitioner.ndjson",
        {
            "resourceType": "Practitioner", "id": "d1",
            "identifier": [{"system": "s", "value": "0"}, {"system": fhir.NPI, "value": "9"}],
        },
    )  # fmt: skip
    by_npi = f"Practitioner?identifier={fhir.NPI}|"
    subjects = [
        "Patient/p1",
        "urn:uuid:p1",
        "http://test/fhir/Patient/p1/_history/2",
        "Patient/p9",
        "Group/g1",
        "#p1",
    ]
    asserters = [by_npi + "9", by_npi + "8", "Practitioner/d1", None, None, None]
    given = written(
        tmp_path / "Condition.ndjson",
        *(
            {
                "resourceType": "Condition", "id": str(number), "subject": {"reference": subject},
                "encounter": {"reference": "Encounter/e"}, "asserter": {"reference": asserter},
            }
            for number, (subject, asserter) in enumerate(zip(subjects, asserters, strict=True))
        ),
    )  # fmt: skip
    assert given.rows["patient_id"].to_pylist() == ["p1", "p1", "p1", "p9", None, None]
    assert given.rows["practitioner_id"].to_pylist() == ["d1", None, "d1", None, None, None]
    assert given.summary.notes == [
        "patient_id: 1 references are to a Group, none to a Patient",
        "patient_id: 1 references name no Patient of the folder by id or identifier",
        "patient_id: 1 different Patient resources are not in the Patient files of the folder",
        "encounter_id: 1 different Encounter resources are referred to, and the folder has no Encounter file",
        "practitioner_id: 1 references name no Practitioner of the folder by id or identifier",
    ]


def test_lines_that_are_no_resources_are_named_by_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(fhir, "BATCH_BYTES", 90)
    good = [{"resourceType": "Patient", "id": f"p{number}"} for number in range(20)]
    wrong = [
        '{"resourceType":"Patient","id":"x"',
        '{"resourceType": "Patient", "birthDate": 5}',
        '{"resourceType": "Group"}',
    ]
    given = written(
        tmp_path / "Patient.ndjson", *good[:5], wrong[0], "", *good[5:9], wrong[1], wrong[2], *good[9:]
    )
    assert given.rows["id"].to_pylist() == [one["id"] for one in good]
    assert given.malformed == [(6, wrong[0]), (12, wrong[1]), (13, wrong[2])]
    assert (given.lines, given.numbers.tolist()) == (23, [1, 2, 3, 4, 5, 8, 9, 10, 11, *range(14, 25)])
    content = (tmp_path / "Patient.ndjson").read_bytes().replace(b'"p3"', b'"p\xff"')
    (tmp_path / "Patient.ndjson").write_bytes(content)
    assert [number for number, _ in read_file(tmp_path / "Patient.ndjson", FileFormat()).malformed] == [
        4,
        6,
        12,
        13,
    ]


def test_the_export_of_the_example_is_read_by_its_mapping():
    delivery = read(EXAMPLE, EXAMPLE / "mapping.yaml")
    assert {name: len(frame) for name, frame in delivery.items()} == {
        "hcp_profiles": 2, "patient_journeys": 12, "patient_clinical": 12, "treatment_events": 48,
    }  # fmt: skip
    journey = delivery["patient_journeys"].iloc[1]
    assert journey[["patient_journey_id", "patient_id", "primary_diagnosis_code", "state"]].tolist() == [
        "co-2", "pa-2", "L50.1", "MA",
    ]  # fmt: skip
    # Named by its NPI in the file.
    assert set(delivery["patient_journeys"]["hcp_id"]) == {"pr-1", "pr-2"}
    assert set(delivery["treatment_events"]["patient_journey_id"]) == {
        f"co-{number}" for number in range(1, 13)
    }
    assert delivery.delivered["patient_clinical"].notes == (
        "Observation.ndjson: practitioner_id: 1 different Practitioner resources are not in the Practitioner "
        "files of the folder",
    )


def test_the_page_has_every_column():
    page = (CHECKOUT / "docs/fhir.md").read_text(encoding="utf-8").split("## Columns\n", 1)[1]
    told = {
        title: dict(re.findall(r"^\| `(\w+)` \| `(.+?)`", rows, re.MULTILINE))
        for title, rows in re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL)
    }
    told["Observation"] = {
        name: path for name, path in told["Observation"].items() if not name.startswith("component")
    }
    assert told == {
        name: {key: one.path for key, one in columns.items()} for name, columns in fhir.COLUMNS.items()
    }
    of_components = dict(re.findall(r"^\| `(component1_\w+)` \| `(.+?)`", page, re.MULTILINE))
    assert of_components == {name: one.path for name, one in fhir.component_columns(1).items()}


@pytest.mark.parametrize(
    "text", ['{"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Patient"}}]}', '{"a": 1}']
)
def test_other_json_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"a FHIR Bundle.*jq -c|JSON of no known kind"):
        read_file(tmp_path / "x.json", FileFormat())
