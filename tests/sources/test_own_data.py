"""Somebody else's files, brand and codes, several journeys per patient: in by configuration alone."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from click.testing import CliRunner
from foreign_delivery import BRAND, COHORT, foreign_tables, write_foreign

import e2i_dagster
from e2i_dagster.config.mapping import ImportMapping
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources.check import check_folder, mapping_yaml
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES
from e2i_dagster.tables.vocabulary import load_vocabulary
from resources.lake import LakeIOManager
from resources.warehouse import Warehouse

#: What this supplier has not, as the check says it.
NOT_DELIVERED = {
    "hcp_profiles": ["npi", "practice_type", "geographic_region", "priority_tier", "decile"],
    "patient_journeys": [
        "primary_diagnosis_code", "age_group", "data_source", "disease_severity", "academic_hcp",
    ],
    "patient_clinical": [],
    "treatment_events": ["hcp_id", "data_source"],
}  # fmt: skip

#: What reads the configuration when it is imported: the partitions of the code location, and all that has them.
DEFINITIONS = "e2i_dagster.definitions"
CODE_LOCATION = re.compile(rf"(assets|sensors|resources)(\..*)?|{re.escape(DEFINITIONS)}")


@pytest.fixture
def own_config(tmp_path, monkeypatch) -> Path:
    """A configuration with the brand, its cohort and the months of the delivery; nothing else changed."""
    config = shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    vocabulary = (config / "vocabulary.yaml").read_text(encoding="utf-8")
    assert "values: [Remibrutinib," in vocabulary
    (config / "vocabulary.yaml").write_text(
        vocabulary.replace("values: [Remibrutinib,", f"values: [{BRAND}, Remibrutinib,"), encoding="utf-8"
    )
    sources = (config / "sources.yaml").read_text(encoding="utf-8")
    (config / "sources.yaml").write_text(
        sources.replace('first_month: "2022-01"', 'first_month: "2023-01"'), encoding="utf-8"
    )
    quality = yaml.safe_load((config / "quality.yaml").read_text(encoding="utf-8"))
    for table, absent in NOT_DELIVERED.items():
        kept = [name for name in quality["tables"][table]["expected"] if name not in absent]
        quality["tables"][table]["expected"] = kept
    (config / "quality.yaml").write_text(yaml.safe_dump(quality), encoding="utf-8")
    (config / "cohorts" / "examplumab_migraine.yaml").write_text(COHORT, encoding="utf-8")
    monkeypatch.setenv("E2I_CONFIG", str(config))
    return config


@pytest.fixture
def own_code_location(own_config, tmp_path, monkeypatch) -> Iterator[None]:
    """The code location as a new process would import it with that configuration, and a lake of its own."""
    monkeypatch.setenv("E2I_LAKE", str(tmp_path / "lake"))
    before = {name: sys.modules.pop(name) for name in filter(CODE_LOCATION.fullmatch, list(sys.modules))}
    # `launch` sets variables for the rest of its process.
    with patch.dict(os.environ):
        yield
    for name in filter(CODE_LOCATION.fullmatch, list(sys.modules)):
        del sys.modules[name]
    sys.modules.update(before)
    if DEFINITIONS in before:
        setattr(e2i_dagster, DEFINITIONS.rpartition(".")[2], before[DEFINITIONS])


def test_the_proposal_finds_tables_columns_and_dates(tmp_path):
    settings = QualityPolicy.load().settings
    expected = {table: one.expected for table, one in settings.tables.items()}
    found = check_folder(write_foreign(tmp_path / "in"), load_vocabulary(), expected=expected)
    assert {table.table: list(table.not_delivered) for table in found.tables} == NOT_DELIVERED
    assert not found.problems and not found.unassigned
    tables = {table.table: table for table in found.tables}
    assert {name: table.files for name, table in tables.items()} == {
        "hcp_profiles": ("prescribers.csv",),
        "patient_journeys": ("episodes.csv",),
        "patient_clinical": ("episode_findings.csv",),
        "treatment_events": ("drug_events.csv",),
    }
    journeys = {match.file_column: match for match in tables["patient_journeys"].matches}
    assert {name: match.column for name, match in journeys.items()} == {
        "EpisodeNo": "patient_journey_id",
        "MemberID": "patient_id",
        "EpisodeStartDt": "journey_start_date",
        "PrescriberNo": "hcp_id",
        "Product": "brand",
        "Sex": "gender",
        "Age_at_Dx": "age_at_diagnosis",
        "Rgn": "geographic_region",
        "Payer": "insurance_type",
    }
    assert journeys["EpisodeStartDt"].date_format == "%d.%m.%Y"
    assert journeys["Rgn"].values == {"West": "west", "South": "south"}
    assert f"'{BRAND}'" in journeys["Product"].notes[0]
    assert tables["patient_clinical"].kept_as_own == ("monthly_migraine_days", "triptan_overuse")
    assert tables["patient_clinical"].own == {"monthly_migraine_days": "number", "triptan_overuse": "boolean"}
    assert tables["treatment_events"].rejected == {
        "unknown_value in event_type": 534,
        "unknown_value in brand": 534,
    }
    assert (found.mapping.format.separator, found.mapping.format.decimal) == (";", ",")
    written = tmp_path / "mapping.yaml"
    written.write_text(mapping_yaml(found), encoding="utf-8")
    assert ImportMapping.load(written) == found.mapping
    assert "patient_clinical: no match for file column(s) monthly_migraine_days" in written.read_text()


def test_files_with_our_names_need_no_mapping(tmp_path):
    """The synthetic set as a supplier would deliver it: nothing to map, nothing rejected, rules find patients."""
    from commands.cli import main
    from e2i_dagster.synthetic.generate import generate, write

    tables = generate("confounded", n_hcps=20, n_patients=120, n_treatments=360, n_metrics=6,
                      n_causal_paths=6, n_activities=6, seed=3)  # fmt: skip
    folder = tmp_path / "in"
    write(tables, folder, format="parquet")
    found = check_folder(folder, load_vocabulary())
    assert [table.table for table in found.tables] == list(found.delivery or ())
    assert len(found.tables) == 11 and not found.unassigned and not found.problems
    assert found.mapping == ImportMapping()
    assert not any(table.rejected or table.unmatched or table.missing_required for table in found.tables)
    told = CliRunner().invoke(main, ["import", "check", str(folder), "--json"])
    assert told.exit_code == 0, told.output
    rules = json.loads(told.output)["rules"]
    assert {rule["cohort"] for rule in rules if rule["codes"] and " 0" not in rule["codes"]}
    assert not any(rule["problem"] for rule in rules)


def test_no_value_of_a_patient_is_in_the_proposal(tmp_path):
    tables = foreign_tables()
    journeys = tables["episodes"]
    journeys.loc[0, ["MemberID", "Product"]] = ["CANARY-1", "CANARY-2"]
    found = check_folder(write_foreign(tmp_path / "in", "prescribers", episodes=journeys), load_vocabulary())
    assert "CANARY" not in json.dumps(found.to_record())
    assert "1 other value(s)" in json.dumps(found.to_record())


def test_an_ambiguous_date_is_a_question(tmp_path):
    tables = foreign_tables()
    events = tables["drug_events"].assign(EvtDt="03/04/2024")
    found = check_folder(write_foreign(tmp_path / "in", "prescribers", drug_events=events), load_vocabulary())
    match = next(
        match
        for table in found.tables
        for match in table.matches
        if (table.table, match.column) == ("treatment_events", "event_date")
    )
    assert "fit equally well" in match.notes[0]


def test_several_files_of_a_table_are_one_pattern_and_need_one_header(tmp_path):
    events = foreign_tables()["drug_events"]
    parts = {f"drug_events_2024{month}": events.iloc[place::3] for place, month in enumerate((10, 11, 12))}
    folder = write_foreign(tmp_path / "in", "prescribers", **parts)
    found = check_folder(folder, load_vocabulary())
    assert found.mapping.tables["treatment_events"].files == ("drug_events_*.csv",)
    (checked,) = (table for table in found.tables if table.table == "treatment_events")
    assert (len(checked.files), checked.rows) == (3, len(events))
    other = parts["drug_events_202411"].rename(columns={"EvtDt": "EventDate"})
    other.to_csv(folder / "drug_events_202411.csv", sep=";", index=False, encoding="cp1252")
    said = check_folder(folder, load_vocabulary()).problems
    assert said[0].startswith("drug_events_202411.csv: not the columns of drug_events_202410.csv")
    assert "without EvtDt; with EventDate" in said[0]


def test_what_cannot_be_placed_is_named(tmp_path):
    folder = write_foreign(tmp_path / "in", "prescribers")
    (folder / "weather.csv").write_text("station;rain\nA;1\n")
    found = check_folder(folder, load_vocabulary())
    assert set(found.unassigned) == {"weather.csv"}
    (folder / "nothing.csv").write_text("")
    with pytest.raises(InputError, match=r"nothing\.csv: the file is empty"):
        check_folder(folder, load_vocabulary())
    with pytest.raises(InputError, match="does not exist"):
        check_folder(tmp_path / "nowhere", load_vocabulary())


def test_a_table_is_proposed_only_when_its_required_columns_can_be_had(tmp_path):
    (tmp_path / "persons.csv").write_text("person,age,sex\nA,41,F\nB,50,M\n")
    found = check_folder(tmp_path, load_vocabulary())
    assert found.tables == ()
    assert set(found.unassigned) == {"persons.csv"}
    assert re.search(r"nearest to \w+, without \w+|would need \w+", found.unassigned["persons.csv"])


def test_without_a_table_nothing_is_proposed_and_each_file_is_named_once(tmp_path):
    from commands.cli import main

    (tmp_path / "other.csv").write_text("foo,bar\n1,2\n")
    told = CliRunner().invoke(main, ["import", "check", str(tmp_path), "--write-mapping"])
    assert told.exit_code == 3 and not (tmp_path / "mapping.yaml").exists()
    assert told.output.count("other.csv") == 1, told.output
    assert "no mapping is proposed" in told.output and "e2i load" not in told.output


def test_the_command_writes_once_and_says_what_the_rules_find(tmp_path, own_config):
    from commands.cli import main

    folder = write_foreign(tmp_path / "in")
    arguments = ["import", "check", str(folder)]
    first = CliRunner().invoke(main, [*arguments, "--write-mapping"])
    assert first.exit_code == 0, first.output
    assert "No row has a code of: fabhalta_c3g" in first.output
    assert CliRunner().invoke(main, [*arguments, "--write-mapping"]).exit_code == 2
    told = CliRunner().invoke(main, [*arguments, "--mapping", str(folder / "mapping.yaml"), "--json"])
    assert told.exit_code == 0, told.output
    rules = {
        rule["rule"]: rule
        for rule in json.loads(told.output)["rules"]
        if rule["cohort"] == "examplumab_migraine"
    }
    clinical = foreign_tables()["episode_findings"]
    migraine = int(clinical["Dx_Cd"].str.startswith("G43.7").sum())
    assert rules["diagnosis_code"]["codes"] == f"G43.7.* {migraine}"
    assert rules["monthly_migraine_days"]["known"] == "100%"
    many = int((clinical["monthly_migraine_days"].str.replace(",", ".").astype(float) >= 4).sum())
    assert rules["monthly_migraine_days"]["rows_true"] == str(many)


def test_load_quality_and_cohort_with_configuration_only(tmp_path, own_config, database, own_code_location):
    """From the supplier's folder to a cohort: checked against the supplier's own table, by hand."""
    from commands.launch import failure_text, launch
    from jobs.sequence import PlannedRun

    folder = write_foreign(tmp_path / "in")
    proposal = yaml.safe_load(mapping_yaml(check_folder(folder, load_vocabulary(own_config))))
    # What the proposal asked a person: what RX is.
    proposal["tables"]["treatment_events"]["values"] = {"event_type": {"RX": "prescription"}}
    mapping = folder / "mapping.yaml"
    mapping.write_text(yaml.safe_dump(proposal), encoding="utf-8")
    files = {"source_files": {"folder": str(folder), "mapping": str(mapping)}}
    for planned, config in (
        (PlannedRun("load_and_qc", "2024-11", "2024-12"), files),
        (PlannedRun("build_cohorts", "examplumab_migraine"), None),
    ):
        result = launch(planned.job, config, planned=planned, show=False)
        assert result.success, failure_text(result)

    # Of what nobody delivers there are no versions, no reports and no checks; who asks is told.
    from e2i_dagster.database.connection import engine
    from e2i_dagster.versions import ledger

    told = {
        state.stage: state.reason or "" for state in ledger.states(engine("app")) if state.state == "absent"
    }
    assert sorted(told) == sorted({*RAW_TABLES, *OPTIONAL_RAW_TABLES} - NOT_DELIVERED.keys())
    assert "no file of in holds it" in told["engagement_events"]
    assert not ledger.current(engine("app"), "engagement_events")
    assert not ledger.current(engine("app"), "quality/engagement_events")
    lake = LakeIOManager(url=os.environ["E2I_LAKE"], warehouse=Warehouse())
    assert lake.load("engagement_events", ["2024-11", "2024-12"]).columns[0] == "engagement_event_id"
    with pytest.raises(InputError, match="never materialized"):
        lake.load("features", ["examplumab"])

    tables = foreign_tables()
    rows = tables["episodes"].merge(tables["episode_findings"], on="EpisodeNo", validate="one_to_one")
    days = rows["monthly_migraine_days"].str.replace(",", ".").astype(float)
    eligible = rows[
        (rows["Age_at_Dx"] >= 18)
        & rows["Dx_Cd"].str.startswith("G43.7")
        & (days >= 4)
        & (rows["triptan_overuse"] != "true")
    ]
    with database.connect() as connection:
        from e2i_dagster.cohorts.executions import find_execution, read_execution

        recorded = read_execution(connection, find_execution(connection, "examplumab_migraine"))
    assert set(recorded.eligible["patient_id"]) == set(eligible["MemberID"])
    assert not recorded.eligible["patient_id"].duplicated().any()
    assert recorded.input_patients == 400 and len(recorded.reasons) == 534
    assert recorded.execution.data_version and recorded.execution.code_version
    assert recorded.definition.approval is None


def _checked(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return check_folder(folder, load_vocabulary())


def test_a_case_is_no_patient_journey_by_that_word_alone(tmp_path):
    """A CRM log with cases has all that contacts need; its cases are nobody's journeys."""
    header = "case.id,hcp_id,engagement_event_id,engagement_date,engagement_type,brand"
    contacts = f"{header}\nC1,H1,E1,2024-01-02,visit,Kisqali\n"
    (alone,) = _checked(tmp_path / "crm", log=contacts).tables
    assert alone.table == "engagement_events" and "case.id" in alone.unmatched
    # Beside a patient it may be one, and a person is asked.
    episodes = "case.id,patient_id,start_date,brand\nC1,P1,2024-01-02,Kisqali\n"
    (table,) = _checked(tmp_path / "clinic", cases=episodes).tables
    (match,) = [one for one in table.matches if one.file_column == "case.id"]
    assert (table.table, match.column) == ("patient_journeys", "patient_journey_id")
    assert match.notes == ("'case' has many meanings: is it really the patient journey?",)


def test_an_identifier_is_ours_only_where_what_it_identifies_is_said(tmp_path):
    """Members are no journeys, and stand in the way of no other file."""
    members = "member_id,gender,age,birth_year\n1,F,20,1990\n2,M,30,1980\n"
    findings = "case.id,patient.id,dx.code,dx.date\nc1,p1,L50.1,2024-01-01\nc2,p2,L50.8,2024-02-02\n"
    found = _checked(tmp_path / "both", members=members, diagnoses=findings)
    assert [(one.table, one.files) for one in found.tables] == [("patient_clinical", ("diagnoses.csv",))]
    assert not found.problems and found.delivery is not None
    assert found.unassigned == {
        "members.csv": "nearest to patient_journeys, without patient_journey_id, journey_start_date"
    }
    # The name of the file may say it.
    (doctors,) = _checked(tmp_path / "doctors", doctors="id,npi\nA,1234567893\nB,1245319599\n").tables
    assert {one.file_column: one.column for one in doctors.matches} == {"id": "hcp_id", "npi": "npi"}
    assert doctors.matches[0].notes == ("is it really the key, another one in every row?",)


def test_what_repeats_is_no_key(tmp_path):
    """A log of processes: 3 activities in 60 rows."""
    rows = [
        f"{case},{act},2024-01-{case + 1:02}T00:00:00Z,r\n"
        for case in range(20)
        for act in ("in", "do", "out")
    ]
    found = _checked(tmp_path / "in", hospital_log="case.id,activity,timestamp,resource\n" + "".join(rows))
    assert found.tables == ()
    said = "activity is called like its key activity_id but repeats (3 values in 60 rows), so it is no key"
    assert found.unassigned == {
        "hospital_log.csv": f"nearest to agent_activities, without activity_id. {said}"
    }


def test_the_nearest_table_is_the_one_that_knows_most_columns(tmp_path):
    found = _checked(tmp_path / "in", persons="person_id,age,sex\nA,41,F\nB,50,M\n", zzz="x,y\n1,2\n")
    assert found.unassigned["persons.csv"].startswith(
        "nearest to patient_journeys, without patient_journey_id"
    )
    assert found.unassigned["zzz.csv"] == "no column is like one of any table"


def test_a_file_with_the_name_of_a_table_needs_its_required_columns_too(tmp_path):
    good = "hcp_id,npi\nH1,1234567893\n"
    found = _checked(
        tmp_path / "in", treatment_events="patient_id,event_date\nP1,2024-01-02\n", hcp_profiles=good
    )
    assert [table.table for table in found.tables] == ["hcp_profiles"]
    why = found.unassigned["treatment_events.csv"]
    assert why.startswith(
        "named like treatment_events, without treatment_event_id, patient_journey_id: a load takes it"
    )
