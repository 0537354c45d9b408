"""Fields of a definition against the raw tables: the grain and the names are checked when it is read."""

import re

import pytest
import yaml

from e2i_dagster.cohorts import CohortConfigError, CohortDefinition, read_cohort, read_cohorts
from e2i_dagster.config.cohort import cohort_folder
from e2i_dagster.config.cohort_fields import table_fields
from e2i_dagster.config.criteria import Criterion, Group
from e2i_dagster.policy_files.environment import CHECKOUT

ADULT = {"field": "age_at_diagnosis", "operator": ">=", "value": 18}
MINIMAL = {"brand": "Kisqali", "indication": "demo", "inclusion_criteria": [ADULT]}


@pytest.fixture(scope="module")
def fields():
    return table_fields()


def read(tmp_path, fields, **change):
    path = tmp_path / "kisqali_demo.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | change, sort_keys=False), encoding="utf-8")
    return CohortDefinition.from_yaml(path, fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"inclusion_criteria": [ADULT, {"field": "egf", "operator": ">=", "value": 30}]},
            r"demo.yaml:7: inclusion_criteria.1.field: no column 'egf'.*'egfr'.*own_fields: \{egf: number\}",
        ),
        (
            {"exclusion_criteria": [{"field": "drug_name", "operator": "==", "value": "x"}]},
            r"exclusion_criteria.0.field: 'drug_name' is a column of the events.*a patient has many.*has_event",
        ),
        (
            {"exclusion_criteria": [{"field": "npi", "operator": "==", "value": "1"}]},
            "'npi' is a column of hcp_profiles",
        ),
        (
            {"inclusion_criteria": [{"any_of": [ADULT, {"at_least": {"n": 1, "of": [ADULT | {"field": "agee"}]}}]}]},
            r":\d+: inclusion_criteria.0.any_of.1.at_least.of.0.field: no column 'agee'",
        ),
        (
            {"inclusion_criteria": [{"no_event": {"event": "perscription"}}]},
            r"inclusion_criteria.0.no_event.event: no event type 'perscription'. Did you mean 'prescription'",
        ),
        (
            {"inclusion_criteria": [
                {"has_event": {"where": [{"field": "gender", "operator": "==", "value": "F"}]}}
            ]},
            r"0.has_event.where.0.field: 'gender' is a column of the patient",
        ),
        (
            {"inclusion_criteria": [{"has_event": {"event": "diagnosis", "distinct": "icd_code"}}]},
            r"0.has_event.distinct: the events have no column 'icd_code'. Did you mean 'icd_codes'",
        ),
        (
            {"inclusion_criteria": [
                {"has_event": {"where": [{"field": "cost", "operator": "==", "value": "high"}]}}
            ]},
            r"where.0.value: 'cost is high' does not fit: cost holds numbers",
        ),
        (
            {"inclusion_criteria": [{"field": "secondary_diagnosis_codes", "operator": "<", "value": 1}]},
            "codes have no order",
        ),
        (
            {"inclusion_criteria": [{"has_event": {"codes": ["95004"], "code_system": "tpc"}}]},
            r":\d+: inclusion_criteria.0.*no code system 'tpc'",
        ),
        ({"temporal_requirements": {"index_date_field": "diagnosis_dat"}}, "Did you mean 'diagnosis_date'"),
        ({"index": {"field": "diagnosis_dat"}}, r":\d+: index.field: no column 'diagnosis_dat'"),
        ({"index": {"field": "gender"}}, "'gender' holds texts; expected a column of dates"),
        ({"index": {"event": "rx"}}, "index.event: no event type 'rx'"),
        ({"index": {"event": "diagnosis", "after": "egfr"}}, "index.after: 'egfr' holds numbers"),
        ({"derived": {"age": {"years_since": "birth_date"}}}, "derived.age.years_since: no column 'birth_date'"),
        ({"own_fields": ["egfr"]}, "own_fields: 'egfr' is a column of the raw tables already"),
        ({"inclusion_criteria": [ADULT | {"value": "2024-01-01"}]}, "age_at_diagnosis holds numbers"),
        (
            {"inclusion_criteria": [{"field": "gender", "operator": ">", "value": 1}]},
            "inclusion_criteria.0.value: .*texts, which have no order",
        ),
        (
            {"inclusion_criteria": [{"field": "pregnancy_status", "operator": "==", "value": "yes"}]},
            "true or false",
        ),
        (
            {"inclusion_criteria": [{"field": "diagnosis_date", "operator": "==", "value": "May"}]},
            "dates",
        ),
        (
            {"inclusion_criteria": [{"field": "comorbidities", "operator": "contains", "value": "a"}]},
            "cannot be compared",
        ),
    ],
)  # fmt: skip
def test_a_field_that_the_tables_do_not_answer_is_refused_when_it_is_read(tmp_path, fields, change, words):
    with pytest.raises(CohortConfigError, match=words):
        read(tmp_path, fields, **change)


def test_own_columns_and_derived_fields_are_declared_and_decide_nothing(tmp_path, fields):
    own = {"field": "tryptase", "operator": ">=", "value": 8}
    years = {"field": "years_observed", "operator": ">=", "value": 1}
    change = {
        "inclusion_criteria": [ADULT, own, years],
        "derived": {"years_observed": {"years_since": "first_observation_date"}},
    }
    # How a column is read decides who is in; that it is kept as text decides nothing.
    bare = CohortDefinition.model_validate(MINIMAL | change)
    listed = {"inclusion_criteria": [ADULT, own | {"operator": "==", "value": "8"}, years]}
    text = read(tmp_path, fields, own_fields=["tryptase"], **(change | listed))
    number = read(tmp_path, fields, own_fields={"tryptase": "number"}, **change)
    assert text.own_fields == {"tryptase": "text"}
    assert text.definition_hash == CohortDefinition.model_validate(MINIMAL | change | listed).definition_hash
    assert number.definition_hash != bare.definition_hash
    assert CohortDefinition.model_validate(number.model_dump(mode="json")) == number


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        ({"operator": ">=", "value": 8}, "number"),
        ({"operator": "between", "value": [1, 2.5]}, "number"),
        ({"operator": "==", "value": 8}, "number"),
        ({"operator": "in", "value": [True]}, "boolean"),
        ({"operator": "<", "value": "2024-01-01"}, "date"),
    ],
)
def test_an_own_column_that_is_text_is_compared_with_texts_and_the_remedy_works(
    tmp_path, fields, criterion, kind
):
    change = {"inclusion_criteria": [ADULT, {"field": "tryptase", **criterion}]}
    for listed in (["tryptase"], {"tryptase": "text"}):
        with pytest.raises(CohortConfigError, match="read as text") as caught:
            read(tmp_path, fields, own_fields=listed, **change)
    remedy = re.search(r"own_fields: (\{.*\})", str(caught.value))
    assert remedy and yaml.safe_load(remedy[1]) == {"tryptase": kind}
    assert read(tmp_path, fields, own_fields=yaml.safe_load(remedy[1]), **change).own_fields == {
        "tryptase": kind
    }


def test_an_own_column_is_an_index_date_only_as_a_date(tmp_path, fields):
    times = {"temporal_requirements": {"index_date_field": "biopsy_day"}}
    with pytest.raises(CohortConfigError, match=r"own_fields: \{biopsy_day: date\}"):
        read(tmp_path, fields, own_fields=["biopsy_day"], **times)
    assert read(tmp_path, fields, own_fields={"biopsy_day": "date"}, **times)


def test_an_own_column_of_codes_is_compared_by_its_system(tmp_path, fields):
    coded = {"field": "kit", "operator": "in", "value": ["0002-8215-01"]}
    change = {"inclusion_criteria": [ADULT, {"any_of": [coded, ADULT | {"value": 90}]}]}
    found = read(tmp_path, fields, own_fields={"kit": "ndc"}, **change)
    group = found.inclusion_criteria[1]
    assert isinstance(group, Group) and isinstance(group.members[0], Criterion)
    assert group.members[0].code_system == "ndc"
    change = {"inclusion_criteria": [ADULT, coded | {"value": ["L50.1"], "code_system": "icd10cm"}]}
    with pytest.raises(CohortConfigError, match="declared as ndc in own_fields and compared as icd10cm"):
        read(tmp_path, fields, own_fields={"kit": "ndc"}, **change)
    with pytest.raises(CohortConfigError, match="'text', 'number', 'boolean', 'date', 'icd10cm'"):
        read(tmp_path, fields, own_fields={"kit": "integer"}, inclusion_criteria=[ADULT])


def test_every_problem_is_named_at_once(tmp_path, fields):
    wrong = [ADULT | {"field": "agee"}, ADULT | {"field": "egf"}]
    with pytest.raises(CohortConfigError) as caught:
        read(tmp_path, fields, inclusion_criteria=wrong)
    assert len(str(caught.value).splitlines()) == 2


def test_definitions_of_the_configuration_are_read_against_the_tables(tmp_path, fields):
    assert not read_cohorts()[1]
    CohortDefinition.from_yaml(CHECKOUT / "docs/examples/claims_protocol.yaml", fields)
    shipped = (cohort_folder() / "fabhalta_c3g.yaml").read_text(encoding="utf-8")
    (tmp_path / "fabhalta_c3g.yaml").write_text(
        shipped.replace("field: egfr", "field: egfrs"), encoding="utf-8"
    )
    assert "Did you mean 'egfr'" in str(read_cohorts(tmp_path)[1]["fabhalta_c3g"])
    with pytest.raises(CohortConfigError, match="Did you mean 'egfr'"):
        read_cohort("fabhalta_c3g", tmp_path)


def test_lists_of_codes_are_compared_by_their_codes(tmp_path, fields):
    rules = [
        {"field": "secondary_diagnosis_codes", "operator": "in", "value": ["L50.*"]},
        {"has_event": {"codes": ["95004"], "code_system": "cpt"}},
        {
            "has_event": {
                "where": [{"field": "icd_codes", "operator": "==", "value": "J30.1", "position": "first"}]
            }
        },
    ]
    definition = read(tmp_path, fields, inclusion_criteria=rules)
    assert "icd10cm" in repr(definition.inclusion_criteria[0])
    assert "the first of icd_codes is J30.1" in definition.inclusion_criteria[2].words()
