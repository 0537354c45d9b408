"""Folders of published shapes: recognised, proposed a mapping, loaded by it as it stands; every row accounted for."""

import json
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from published_shapes import FOLDERS, write

from e2i_dagster.config.mapping import ImportMapping
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.loading.load import LoadReport, load
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources import files
from e2i_dagster.sources.check import check_folder
from e2i_dagster.tables.vocabulary import load_vocabulary

EXAMPLES = CHECKOUT / "docs/examples"


def loaded(name: str, folder: Path) -> LoadReport:
    """The report of `import check --write-mapping`, then a load with what it wrote."""
    from commands.cli import main

    write(name, folder)
    told = CliRunner().invoke(main, ["import", "check", str(folder), "--write-mapping", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["problems"] == []
    # Of what the shape does not have, quality control beside the mapping expects nothing.
    settings = QualityPolicy.load(beside=folder).settings
    expected = {table: settings.tables[table].expected for table in settings.tables}
    mapping = ImportMapping.load(folder / "mapping.yaml")
    judged = check_folder(folder, load_vocabulary(), mapping, expected=expected).tables
    assert judged and not any(table.not_delivered for table in judged)
    delivery = files.read(folder, mapping)
    tried = load(delivery, dry_run=True)
    report = load(delivery)
    assert counts(tried) == counts(report)
    return report


def counts(report: LoadReport) -> dict[str, tuple[int, int, int, int]]:
    """Table -> rows delivered, inserted, repeated, left out."""
    return {
        name: (done.source, done.inserted, done.duplicate, done.rows_left_out)
        for name, done in report.tables.items()
    }


def rows(engine: sa.Engine, statement: str) -> list[tuple]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_example_folders_are_what_the_generators_write(name, tmp_path):
    made = write(name, tmp_path / name)
    there = {path.name: path.read_text() for path in (EXAMPLES / name).iterdir()}
    assert there == {path.name: path.read_text() for path in made.iterdir()}


def test_claims_with_numbered_diagnoses(database, tmp_path):
    report = loaded("claims", tmp_path / "in")
    folder = FOLDERS["claims"]()
    assert report.success and not any(done.rejected for done in report.tables.values())
    given = pd.concat([folder[name] for name in folder if "patient_Claims" in name], ignore_index=True)
    dated = given[given["CLM_FROM_DT"] != ""]
    fills = folder["DE1_0_Prescription_Drug_Events_Sample_1.csv"]
    patients = set(dated["DESYNPUF_ID"]) | set(fills["DESYNPUF_ID"])
    diagnoses = dated[[name for name in dated.columns if name.startswith("ICD9")]]
    with_code = dated[(diagnoses != "").any(axis=1)]
    physicians = given["AT_PHYSN_NPI"][given["AT_PHYSN_NPI"] != ""]
    assert counts(report) == {
        "hcp_profiles": (35, 2, len(physicians) - 2, 35 - len(physicians)),
        "patient_journeys": (24, len(patients), 0, 24 - len(patients)),
        "patient_clinical": (
            35,
            with_code["DESYNPUF_ID"].nunique(),
            0,
            35 - with_code["DESYNPUF_ID"].nunique(),
        ),
        "treatment_events": (35 + 20, len(dated) + 20, 0, 1),
    }
    # The codes of a claim in their order, empty ones left out.
    by_claim = {
        f"CLM-{claim.CLM_ID}-{claim.SEGMENT}": [
            code for k in range(1, 11) if (code := getattr(claim, f"ICD9_DGNS_CD_{k}"))
        ]
        for claim in dated.itertuples()
    }
    kept = rows(
        database,
        "SELECT treatment_event_id, icd_codes FROM treatment_events WHERE event_type <> 'prescription'",
    )
    assert {key: codes or [] for key, codes in kept} == by_claim
    first = min(dated["CLM_FROM_DT"].where(dated["DESYNPUF_ID"] == given["DESYNPUF_ID"][1]).dropna())
    born = {"1": "M", "2": "F"}
    (journey,) = rows(
        database,
        "SELECT to_char(journey_start_date, 'YYYYMMDD'), gender, state FROM patient_journeys WHERE patient_id = "
        f"'{given['DESYNPUF_ID'][1]}'",
    )
    place = list(folder["DE1_0_2022_Beneficiary_Summary_File_Sample_1.csv"]["DESYNPUF_ID"]).index(
        given["DESYNPUF_ID"][1]
    )
    assert journey[0] <= first and journey[1] == born[["1", "2"][place % 2]]
    assert journey[2] == ["CA", "NY", None][place % 3]


def test_synthea(database, tmp_path):
    report = loaded("synthea", tmp_path / "in")
    folder = FOLDERS["synthea"]()
    assert report.success and not any(done.rejected for done in report.tables.values())
    visits, conditions = folder["encounters.csv"], folder["conditions.csv"]
    assert counts(report) == {
        "hcp_profiles": (2, 2, 0, 0),
        "patient_journeys": (8, visits["PATIENT"].nunique(), 0, 8 - visits["PATIENT"].nunique()),
        "patient_clinical": (12, conditions["PATIENT"].nunique(), 0, 12 - conditions["PATIENT"].nunique()),
        "treatment_events": (20 + 12 + 12 + 12, 20 + 12 + 12 + 4, 0, 8),
        "observation_periods": (8, visits["PATIENT"].nunique(), 0, 8 - visits["PATIENT"].nunique()),
    }
    starts = dict(
        rows(database, "SELECT patient_id, to_char(journey_start_date, 'YYYY-MM-DD') FROM patient_journeys")
    )
    assert starts == visits["START"].str[:10].groupby(visits["PATIENT"]).min().to_dict()
    assert rows(
        database,
        "SELECT DISTINCT event_type, duration_days FROM treatment_events WHERE drug_name IS NOT NULL",
    ) == [("prescription", 14)]
    assert rows(
        database, "SELECT DISTINCT loinc_codes FROM treatment_events WHERE event_type = 'lab_test'"
    ) == [(["718-7"],)]
    assert {row[0] for row in rows(database, "SELECT extra ->> 'snomed' FROM patient_clinical")} <= {
        "444814009",
        "38341003",
    }


def test_omop_as_a_source_of_the_raw_tables(database, tmp_path):
    report = loaded("omop", tmp_path / "in")
    folder = FOLDERS["omop"]()
    assert report.success and not any(done.rejected for done in report.tables.values())
    conditions = folder["condition_occurrence.csv"]
    assert counts(report) == {
        "hcp_profiles": (1, 1, 0, 0),
        "patient_journeys": (10, 9, 0, 1),
        "patient_clinical": (
            15,
            conditions["PERSON_ID"].nunique(),
            0,
            15 - conditions["PERSON_ID"].nunique(),
        ),
        "treatment_events": (15 + 14 + 6 + 13, 15 + 14 + 6 + 13, 0, 0),
        "observation_periods": (9, 9, 0, 0),
    }
    # The concept where the source names one, else what the source wrote.
    coded = dict(
        rows(
            database,
            "SELECT treatment_event_id, icd_codes[1] FROM treatment_events WHERE event_type = 'diagnosis'",
        )
    )
    expected = {"45591453": "L50.1", "0": "L50.8"}
    assert coded == {
        f"C-{key}": expected[concept]
        for key, concept in zip(
            conditions["CONDITION_OCCURRENCE_ID"], conditions["CONDITION_SOURCE_CONCEPT_ID"], strict=True
        )
    }
    # Born on 15 March 1950, and in 1951: 72 and 70 on 1 June 2022, the second taken as born on 1 July.
    ages = dict(rows(database, "SELECT patient_id, age_at_diagnosis FROM patient_journeys"))
    assert (ages["1"], ages["2"]) == (72, 70)


def test_the_registry_of_providers(database, tmp_path):
    report = loaded("nppes", tmp_path / "in")
    assert report.success and counts(report) == {"hcp_profiles": (7, 5, 0, 2)}
    assert report.tables["hcp_profiles"].left_out == {
        "Entity Type Code is not 1": 1,
        "NPI Deactivation Date is filled": 1,
    }
    # What was left out stays known after the load.
    assert rows(
        database, "SELECT delivered, left_out ->> 'Entity Type Code is not 1' FROM ml_table_loads"
    ) == [(7, "1")]
    assert rows(database, "SELECT last_name, specialty, state FROM hcp_profiles ORDER BY last_name") == [
        ("Name0", "207N00000X", "MA"),
        ("Name1", "207K00000X", "CA"),
        ("Name2", "207N00000X", "NY"),
        ("Name3", "207N00000X", None),
        ("Name4", "207N00000X", None),
    ]


def test_what_a_folder_of_a_shape_lacks_is_left_out_of_its_mapping(tmp_path):
    folder = write("omop", tmp_path / "in")
    for name in ("provider", "concept", "drug_exposure", "measurement", "visit_occurrence"):
        (folder / f"{name}.csv").unlink()
    found = check_folder(folder, load_vocabulary())
    assert not found.problems and found.shape == "OMOP CDM 5.3 or 5.4"
    assert [table.table for table in found.tables] == [
        "patient_journeys",
        "patient_clinical",
        "treatment_events",
        "observation_periods",
    ]
    assert all("hcp_id" not in table.columns for table in found.mapping.tables.values())
    # Without its persons it is none, and the answer says what is missing for a table of ours.
    (folder / "person.csv").unlink()
    assert check_folder(folder, load_vocabulary()).shape is None
