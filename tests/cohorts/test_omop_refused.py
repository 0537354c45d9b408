"""What ``cohorts.omop`` refuses: parts of a definition by JSON path, folders by table, column and file."""

from __future__ import annotations

import copy
import json

import pytest
from omop_cases import (
    CONDITION,
    DRUG,
    concept_set,
    counted,
    drug,
    expression,
    group,
    period,
    rule,
    write_folder,
)

from e2i_dagster.cohorts.omop import build, read_expression
from e2i_dagster.cohorts.omop.expression import UNREAD_DOMAINS
from e2i_dagster.errors import ConfigError, InputError

TABLES = {
    "observation_period": [period(1)],
    "drug_exposure": [drug(1, 1, "2000-06-01")],
    "person": [{"person_id": 1}],
}


def changed(path: str, value: object) -> dict:
    """A definition with rules, with one value set at a path such as ``InclusionRules.0.name``."""
    definition = expression(InclusionRules=[rule("one", counted(CONDITION, -30, 0))])
    here: object = definition
    *before, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in before:
        here = here[part]  # type: ignore[index]
    here[last] = value  # type: ignore[index]
    return definition


CRITERION = "InclusionRules.0.expression.CriteriaList.0"
CRITERION_PATH = "$.InclusionRules[0].expression.CriteriaList[0]"


@pytest.mark.parametrize(
    ("path", "value", "where", "what"),
    [
        ("Frobnicate", 1, "$.Frobnicate", "not supported"),
        ("PrimaryCriteria.CriteriaLst", [], "$.PrimaryCriteria.CriteriaLst", "did you mean CriteriaList?"),
        ("PrimaryCriteria.CriteriaList.0.DrugExposre", {}, "$.PrimaryCriteria.CriteriaList[0].DrugExposre",
         "did you mean DrugExposure?"),
        ("PrimaryCriteria.CriteriaList", [], "$.PrimaryCriteria.CriteriaList", "at least 1"),
        ("PrimaryCriteria.CriteriaList.0", {}, "$.PrimaryCriteria.CriteriaList[0]", "exactly one domain"),
        (
            "PrimaryCriteria.CriteriaList.0.DrugExposure.ProviderSpecialty",
            [{"CONCEPT_ID": 1}],
            "$.PrimaryCriteria.CriteriaList[0].DrugExposure.ProviderSpecialty",
            "provider table",
        ),
        (
            "PrimaryCriteria.CriteriaList.0.DrugExposure.CodesetId",
            77,
            "$.PrimaryCriteria.CriteriaList[0].DrugExposure.CodesetId",
            "no concept set 77; defined: 1, 2, 3",
        ),
        (
            "PrimaryCriteria.CriteriaList.0.DrugExposure.Age",
            {"Value": 18.5, "Op": "gt"},
            "$.PrimaryCriteria.CriteriaList[0].DrugExposure.Age.Value",
            "valid integer",
        ),
        (
            "PrimaryCriteria.CriteriaList.0.DrugExposure.Age",
            {"Value": 18, "Op": ">="},
            "$.PrimaryCriteria.CriteriaList[0].DrugExposure.Age.Op",
            "'lt'",
        ),
        (
            "PrimaryCriteria.CriteriaList.0.DrugExposure.Age",
            {"Value": 18, "Op": "bt"},
            "$.PrimaryCriteria.CriteriaList[0].DrugExposure.Age",
            "needs an Extent",
        ),
        (
            "PrimaryCriteria.CriteriaList.0.DrugExposure.Age",
            {"Value": 18, "Op": "bt", "Extent": 10},
            "$.PrimaryCriteria.CriteriaList[0].DrugExposure.Age",
            "Value is above Extent",
        ),
        ("PrimaryCriteria.PrimaryCriteriaLimit.Type", "Second", "$.PrimaryCriteria.PrimaryCriteriaLimit.Type", "First"),
        (f"{CRITERION}.Occurrence.Type", -99, f"{CRITERION_PATH}.Occurrence.Type", "0, 1 or 2"),
        (f"{CRITERION}.Occurrence.Count", -1, f"{CRITERION_PATH}.Occurrence.Count", "greater than or equal to 0"),
        (
            f"{CRITERION}.Occurrence",
            {"Type": 2, "Count": 1, "IsDistinct": True, "CountColumn": "REFILLS"},
            f"{CRITERION_PATH}.Occurrence.CountColumn",
            "REFILLS does not exist in ConditionOccurrence",
        ),
        (f"{CRITERION}.StartWindow", None, f"{CRITERION_PATH}.StartWindow", "should be an object"),
        (f"{CRITERION}.StartWindow.Start.Coeff", 2, f"{CRITERION_PATH}.StartWindow.Start.Coeff", "-1 or 1"),
        (f"{CRITERION}.StartWindow.Start.Days", "30", f"{CRITERION_PATH}.StartWindow.Start.Days", "valid integer"),
        (f"{CRITERION}.StartWindow.Start.Days", 10**9, f"{CRITERION_PATH}.StartWindow.Start.Days", "366000"),
        ("InclusionRules.0.expression.Type", "SOME", "$.InclusionRules[0].expression.Type", "'ALL'"),
        ("InclusionRules.0.expression.Type", "AT_LEAST", "$.InclusionRules[0].expression", "needs a Count"),
        (
            "InclusionRules.0.expression.DemographicCriteriaList",
            [{"RaceCS": {"CodesetId": 1}}],
            "$.InclusionRules[0].expression.DemographicCriteriaList[0].RaceCS",
            "list the concepts instead",
        ),
        (
            "ConceptSets.1.expression.items.0.includeMapped",
            True,
            "$.ConceptSets[1].expression.items[0].includeMapped",
            "concept_relationship",
        ),
        ("ConceptSets.1.id", 1, "$.ConceptSets", "the id 1 is given to 2 concept sets"),
        ("EndStrategy", {"Never": {}}, "$.EndStrategy.Never", "known here: DateOffset, CustomEra"),
        ("EndStrategy", {}, "$.EndStrategy", "exactly one of DateOffset and CustomEra"),
        ("EndStrategy", {"CustomEra": {"GapDays": 3}}, "$.EndStrategy.CustomEra.DrugCodesetId", "is missing"),
        ("CollapseSettings", {"CollapseType": "NONE"}, "$.CollapseSettings.CollapseType", "'ERA'"),
        ("CensorWindow", {"StartDate": "01.02.2000"}, "$.CensorWindow.StartDate", "valid date"),
        ("CensoringCriteria", [{"DrugEra": {"GapDays": {"Value": 1, "Op": "gt"}}}],
         "$.CensoringCriteria[0].DrugEra.GapDays", "EraLength"),
        ("PrimaryCriteria", None, "$.PrimaryCriteria", "should be an object"),
    ],
)  # fmt: skip
def test_parts_outside_the_subset_are_refused_by_path(tmp_path, path, value, where, what):
    """Before any work: the folder does not even exist."""
    with pytest.raises(ConfigError) as refused:
        build(changed(path, value), tmp_path / "nowhere")
    assert f"{where}: " in str(refused.value)
    assert what in str(refused.value)


@pytest.mark.parametrize("domain", sorted(UNREAD_DOMAINS))
def test_domains_that_are_not_read(domain):
    with pytest.raises(ConfigError) as refused:
        read_expression(expression({domain: {}}))
    assert f"$.PrimaryCriteria.CriteriaList[0].{domain}: not supported; domains that are read: " in str(
        refused.value
    )
    assert "did you mean" not in str(refused.value)


def test_every_part_is_named_at_once():
    definition = expression(
        {"Specimen": {}}, {"DoseEra": {}}, AdditionalCriteria=group({"Criteria": DRUG, "Frob": 1})
    )
    with pytest.raises(ConfigError) as refused:
        read_expression(definition)
    said = str(refused.value)
    assert "CriteriaList[0].Specimen" in said and "CriteriaList[1].DoseEra" in said
    assert "$.AdditionalCriteria.CriteriaList[0].Frob" in said


def test_known_keys_without_a_value_are_fine():
    """Atlas writes null and empty lists for what was never touched."""
    definition = changed(
        "PrimaryCriteria.CriteriaList.0.DrugExposure",
        {"CodesetId": 1, "ProviderSpecialty": [], "ProviderSpecialtyCS": None, "Gender": None, "First": None},
    )
    definition["CensoringCriteria"] = None
    assert read_expression(definition).primary_criteria.criteria_list[0].drug_exposure is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"PrimaryCriteria": ', ":1:21: not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"name": "x", "expression": {}}', "Give the value of `expression`"),
    ],
)
def test_text_that_is_no_expression(tmp_path, text, said):
    with pytest.raises(ConfigError, match="cohort expression") as refused:
        read_expression(text)
    assert said in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: the file cannot be read"):
        read_expression(tmp_path / "none.json")


def test_more_rules_than_a_mask_has_bits():
    with pytest.raises(ConfigError, match=r"\$\.InclusionRules: .*at most 62"):
        read_expression(expression(InclusionRules=[rule(str(k)) for k in range(63)]))


# ---- folders ----------------------------------------------------------------------------------------


def test_missing_tables_are_named_together(tmp_path):
    folder = write_folder(tmp_path, TABLES)
    (folder / "drug_exposure.csv").unlink()
    (folder / "person.csv").unlink()
    definition = expression({"DrugExposure": {"Age": {"Value": 18, "Op": "gte"}}})
    with pytest.raises(InputError) as refused:
        build(definition, folder)
    assert "drug_exposure (read at $.PrimaryCriteria.CriteriaList[0].DrugExposure)" in str(refused.value)
    assert "person (read at" in str(refused.value)


def test_tables_that_are_not_asked_for_are_not_needed(tmp_path):
    folder = write_folder(tmp_path, TABLES)
    (folder / "person.csv").unlink()
    assert build(expression(), folder).persons == 1


def test_descendants_need_the_ancestor_table(tmp_path):
    definition = expression(ConceptSets=[concept_set(1, 1, below=True)])
    with pytest.raises(InputError, match=r"concept_ancestor \(read at \$\.ConceptSets\[0\]"):
        build(definition, write_folder(tmp_path, TABLES))


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        build(expression(), tmp_path / "nowhere")


def test_a_table_twice(tmp_path):
    folder = write_folder(tmp_path, TABLES)
    (folder / "PERSON.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="the table person is there twice"):
        build(expression(), folder)


@pytest.mark.parametrize("content", ["", "person_id,drug_concept_id\n1,2\n"])
def test_missing_columns(tmp_path, content):
    folder = write_folder(tmp_path, TABLES)
    (folder / "drug_exposure.csv").write_text(content)
    with pytest.raises(InputError, match=r"drug_exposure\.csv: (columns are missing|cannot be read)"):
        build(expression(), folder)


def test_a_column_that_only_this_definition_needs(tmp_path):
    folder = write_folder(tmp_path, TABLES)
    frame = "drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date\n1,1,1,2000-06-01\n"
    (folder / "drug_exposure.csv").write_text(frame)
    assert build(expression(), folder).persons == 1
    definition = expression({"DrugExposure": {"Quantity": {"Value": 1, "Op": "gt"}}})
    where = r"quantity \(asked for at \$\.PrimaryCriteria\.CriteriaList\[0\]\.DrugExposure\.Quantity\)"
    with pytest.raises(InputError, match=where):
        build(definition, folder)


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("drug_exposure_start_date", "01.06.2000 secret", "dates"),
        ("drug_exposure_start_date", "05-01-23", "dates"),
        ("drug_exposure_start_date", "2013-07", "dates"),
        ("person_id", "secret", "whole numbers"),
        ("drug_concept_id", "1.5", "whole numbers"),
        ("days_supply", "secret", "whole numbers"),
    ],
)
def test_values_of_another_type_name_the_column_and_no_value(tmp_path, column, value, kind):
    tables = copy.deepcopy(TABLES)
    tables["drug_exposure"][0][column] = value
    with pytest.raises(InputError, match=f"{column}: a value is not one of {kind}") as refused:
        build(expression(), write_folder(tmp_path, tables))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_period_without_its_start_is_an_error_that_names_it(tmp_path, kind):
    tables = copy.deepcopy(TABLES)
    tables["observation_period"][0]["observation_period_start_date"] = None
    with pytest.raises(InputError, match="observation_period_start_date is empty in 1 rows"):
        build(expression(), write_folder(tmp_path, tables, kind))


@pytest.mark.parametrize("limit", ["all", "first", "LAST"])
def test_limits_in_any_case(tmp_path, limit):
    definition = expression(ExpressionLimit={"Type": limit})
    titled = expression(ExpressionLimit={"Type": limit.capitalize()})
    folder = write_folder(tmp_path, TABLES)
    assert build(definition, folder).rows.equals(build(titled, folder).rows)


def test_values_that_no_date_can_hold(tmp_path):
    tables = copy.deepcopy(TABLES)
    tables["drug_exposure"][0]["days_supply"] = 123456789012
    with pytest.raises(InputError, match="too large to count with") as refused:
        build(expression(), write_folder(tmp_path, tables))
    assert "123456789012" not in str(refused.value)


@pytest.mark.parametrize("table", ["person", "visit_occurrence"])
def test_rows_that_events_are_joined_to_are_unique(tmp_path, table):
    tables = copy.deepcopy(TABLES)
    tables[table] = [{f"{table}_id": 1, "person_id": 1}] * 3
    definition = expression(
        {"DrugExposure": {"Gender": [{"CONCEPT_ID": 1}], "VisitType": [{"CONCEPT_ID": 1}]}}
    )
    tables.setdefault("visit_occurrence", [])
    with pytest.raises(InputError, match=rf"{table}\.csv: {table}_id is not unique \(2 rows too many\)"):
        build(definition, write_folder(tmp_path, tables))


def test_a_torn_csv_does_not_quote_its_rows(tmp_path):
    folder = write_folder(tmp_path, TABLES)
    head = "drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date\n"
    (folder / "drug_exposure.csv").write_text(head + "1,1,1,2000-06-01\n" * 3 + '2,1,"secret,2000-07-01\n')
    with pytest.raises(InputError, match=r"drug_exposure\.csv") as refused:
        build(expression(), folder)
    assert "secret" not in str(refused.value)


def test_a_torn_parquet_file(tmp_path):
    folder = write_folder(tmp_path, TABLES, "parquet")
    content = (folder / "drug_exposure.parquet").read_bytes()
    (folder / "drug_exposure.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"drug_exposure\.parquet: cannot be read as PARQUET"):
        build(expression(), folder)


def test_files_as_other_tools_write_them(tmp_path):
    """Upper case names, tabs, numbers as 1.0, dates with a time or without dashes, NA, parts in a folder."""
    (tmp_path / "OBSERVATION_PERIOD.CSV").write_text(
        "PERSON_ID\tOBSERVATION_PERIOD_START_DATE\tOBSERVATION_PERIOD_END_DATE\n1.0\t20000101\t2001-01-01 00:00:00\n"
    )
    parts = tmp_path / "drug_exposure"
    head = "drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,days_supply\n"
    parts.mkdir()
    (parts / "part-1.csv").write_text(head + "1,1,1,2000-06-01,NA\n")
    (parts / "part-2.csv").write_text(head + "2,1,1,2000-08-01,30\n")
    definition = expression(EndStrategy={"DateOffset": {"DateField": "EndDate", "Offset": 0}})
    cohort = build(json.dumps(definition), tmp_path)
    assert [f"{day:%Y-%m-%d}" for day in cohort.rows["cohort_end_date"]] == ["2000-06-02", "2000-08-31"]


def test_empty_tables_give_an_empty_cohort(tmp_path):
    empty = {"observation_period": [], "drug_exposure": [], "condition_occurrence": []}
    cohort = build(
        expression(InclusionRules=[rule("one", counted(CONDITION))]), write_folder(tmp_path, empty)
    )
    assert (cohort.persons, cohort.inclusion_masks) == (0, {})
    assert list(cohort.rows) == ["subject_id", "cohort_start_date", "cohort_end_date"]
