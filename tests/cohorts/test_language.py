"""Reading definitions: what is refused, and with which words."""

import pytest
import yaml
from pydantic import ValidationError

from e2i_dagster.cohorts import (
    CohortConfigError,
    CohortDefinition,
    Criterion,
    lint,
    read_cohort,
    read_cohorts,
)
from e2i_dagster.config.cohort import cohort_folder
from e2i_dagster.config.criteria import EventCriterion

MINIMAL = {
    "brand": "Examplumab",
    "indication": "demo",
    "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}],
}


def write(folder, content, name="examplumab_demo"):
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ({"operator": "between", "value": [5, 1]}, "reversed"),
        ({"operator": "between", "value": [5]}, r"\[low, high\]"),
        ({"operator": "in", "value": []}, "at least one value"),
        ({"operator": "in", "value": 3}, "needs a list"),
        ({"operator": ">=", "value": "many"}, "number or a date"),
        ({"operator": ">=", "value": True}, "number or a date"),
        ({"operator": "==", "value": None}, "on_unknown"),
        ({"operator": "==", "value": [1]}, "needs a text, number"),
        ({"operator": "contains", "value": 3}, "needs a text"),
        ({"operator": "like", "value": "a"}, "Input should be"),
        ({"operator": "==", "value": "L50.[12]", "code_system": "icd10cm"}, "is not a code"),
        ({"operator": "==", "value": "L*50", "code_system": "icd10cm"}, "is not a code"),
        ({"operator": ">", "value": 1, "code_system": "icd10cm"}, "codes have no order"),
        ({"operator": "in", "value": ["a"], "descendants": True}, "code_system"),
        ({"operator": "==", "value": 1, "on_unknown": "maybe"}, "Input should be"),
        ({"operator": "==", "value": 1, "valeu": 2}, "Extra inputs"),
    ],
)
def test_a_wrong_criterion_is_refused(criterion, words):
    with pytest.raises(ValidationError, match=words):
        Criterion(**{"field": "x", **criterion})


def test_an_error_names_file_line_and_field(tmp_path):
    path = write(
        tmp_path,
        "brand: Examplumab\nindication: demo\ninclusion_criteria:\n  - field: age\n    operator: between\n"
        "    value: [9, 1]\n",
    )
    with pytest.raises(
        CohortConfigError, match=r"CC_001.*examplumab_demo.yaml:6: inclusion_criteria.0.value"
    ):
        CohortDefinition.from_yaml(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index": {"event": "diagnosis", "occurrence": "second"}}, "index.occurrence"),
        ({"index": {"event": "rx", "field": "seen"}}, "a field or an event, not both"),
        (
            {"index": {"event": "rx"}, "temporal_requirements": {"index_date_field": "seen"}},
            "from events and from",
        ),
        ({"journeys": "last"}, "first_eligible"),
        ({"inclusion_criteria": [{"any_of": []}]}, "at least 1 item"),
        (
            {"inclusion_criteria": [{"at_least": {"n": 2, "of": [{"prior_outcome": {"event": "rx"}}]}}]},
            "never",
        ),
        ({"inclusion_criteria": [{"has_event": {"event": "rx", "within": [-1, -180]}}]}, "reversed"),
        ({"inclusion_criteria": [{"has_event": {"within": [-180, -1]}}]}, "which events are meant"),
        ({"inclusion_criteria": [{"has_event": {"event": "rx", "at_least": 3, "at_most": 2}}]}, "is below"),
        ({"inclusion_criteria": [{"washout": {"event": "rx"}}]}, "needs days"),
        ({"inclusion_criteria": [{"washout": {"event": "rx", "days": 9, "within": [-9, 0]}}]}, "itself"),
        ({"inclusion_criteria": [{"gap": {"event": "rx", "days": 30}}]}, "closed window"),
        ({"inclusion_criteria": []}, "at least 1 item"),
        ({"inclusion_criteria": MINIMAL["inclusion_criteria"] * 2}, "stated twice"),
        (
            {"exclusion_criteria": [{"field": "y", "operator": "==", "value": 1, "name": "lookback"}]},
            "used twice: lookback",
        ),
        ({"temporal_requirements": {"lookback_days": -1}}, "greater than or equal to 0"),
        ({"index": {"field": "a"}, "temporal_requirements": {"index_date_field": "b"}}, "differ"),
        ({"examples": [{"name": "e", "patient": {}, "expect": {"out": "agee"}}]}, "Did you mean 'age'"),
        ({"key": "other"}, "Rename the file"),
        ({"exclusion_criterias": []}, "Did you mean 'exclusion_criteria'"),
        ({"temporal_requirements": {"lookback_day": 9}}, "Did you mean 'lookback_days'"),
        ({"inclusion_criteria": [{"has_evnt": {"event": "rx"}}]}, "Did you mean 'has_event'"),
        ({"inclusion_criteria": [{"prior_outcome": {"evnt": "rx"}}]}, "Did you mean 'event'"),
        (
            {"inclusion_criteria": [{"any_of": [{"field": "a", "operator": "==", "valeu": 1}]}]},
            "Did you mean 'value'",
        ),
        ({"version": "one"}, "pattern"),
    ],
)
def test_a_definition_outside_the_language_is_refused(tmp_path, change, words):
    with pytest.raises(CohortConfigError, match=words):
        CohortDefinition.from_yaml(write(tmp_path, MINIMAL | change))


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"events": []}, "events", "'events' belongs under examples."),
        ({"lookback_days": 3}, "lookback_days", "'lookback_days' belongs under temporal_requirements."),
        (
            {"field": "age"},
            "field",
            "'field' belongs under index.where or under inclusion_criteria or under exclusion_criteria.",
        ),
        (
            {"temporal_requirements": {"brand": "x"}},
            "temporal_requirements.brand",
            "'brand' belongs at the top of the file.",
        ),
        (
            {"observation": {"lookback_days": 9}},
            "observation.lookback_days",
            "'lookback_days' belongs under temporal_requirements.",
        ),
        (
            {"inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18, "ends": "[]"}]},
            "inclusion_criteria.0.ends",
            None,
        ),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(tmp_path, change, field, remedy):
    with pytest.raises(CohortConfigError) as caught:
        CohortDefinition.from_yaml(write(tmp_path, MINIMAL | change))
    told = [one for one in (caught.value, *caught.value.parts) if one.field == field]
    assert told and told[0].remedy == remedy
    assert "Did you mean" not in str(caught.value) and (remedy or "") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("  - {field: age, operator: '>=', value: 18}\n", r"yaml:5: inclusion_criteria.1: criterion 'age is at "),
        ("  - {field: x, operator: '==', value: F, name: age}\n", r"yaml:5: inclusion_criteria.1: rule name .*: age"),
        ("examples:\n  - {name: e, patient: {}, expect: in}\n  - {name: f, patient: {}, expect: {out: agee}}\n",
         r"yaml:7: examples.1.expect: example 'f' expects the unknown rule 'agee'. Did you mean 'age'"),
    ],
)  # fmt: skip
def test_a_repeated_rule_and_a_wrong_example_are_named_by_their_line(tmp_path, content, words):
    head = "brand: Examplumab\nindication: demo\ninclusion_criteria:\n  - {field: age, operator: '>=', value: 18}\n"
    with pytest.raises(CohortConfigError, match=words):
        CohortDefinition.from_yaml(write(tmp_path, head + content))


def test_one_field_in_two_rules_gets_two_names():
    rules = [
        {"field": "age", "operator": ">=", "value": 18},
        {"field": "age", "operator": "<", "value": 65},
    ]
    definition = CohortDefinition.model_validate(MINIMAL | {"inclusion_criteria": rules})
    assert [rule.name for rule in definition.rules][1:3] == ["age is at least 18", "age is less than 65"]


def test_index_by_field_is_the_same_as_the_field_of_the_time_requirements():
    one = CohortDefinition.model_validate(MINIMAL | {"index": {"field": "first_visit"}})
    other = CohortDefinition.model_validate(
        MINIMAL | {"temporal_requirements": {"index_date_field": "first_visit"}}
    )
    assert one.definition_hash == other.definition_hash


def test_the_hash_is_of_the_rules_and_not_of_the_wording():
    base = CohortDefinition.model_validate(MINIMAL)
    worded = CohortDefinition.model_validate(MINIMAL | {"title": "Adults", "version": "2.0.0"})
    other = CohortDefinition.model_validate(
        MINIMAL | {"inclusion_criteria": [{"field": "age", "operator": ">=", "value": 19}]}
    )
    assert base.definition_hash == worded.definition_hash != other.definition_hash
    assert base.cohort_id == "cohort_examplumab_demo_v1.0.0"


def test_each_version_has_an_identifier_of_its_own():
    names = {
        CohortDefinition.model_validate(MINIMAL | {"version": version}).cohort_id
        for version in ("1.10.0", "11.0.0", "1.1.00", "110.0.0")
    }
    assert len(names) == 4


def test_five_cohorts_are_shipped_and_their_examples_hold():
    definitions, broken = read_cohorts()
    assert not broken
    assert sorted(definitions) == [
        *("fabhalta_c3g", "fabhalta_on_therapy", "fabhalta_pnh", "kisqali_hr_her2_bc", "remibrutinib_csu")
    ]
    for definition in definitions.values():
        report = lint(definition)
        assert report.findings == ()
        assert report.examples >= 6
        assert len(definition.sentences()) == len(definition.rules) + 1


def test_a_brand_finds_its_definition_in_any_case_and_an_unknown_one_lists_the_known():
    assert CohortDefinition.from_brand("remibrutinib", "CSU").key == "remibrutinib_csu"
    with pytest.raises(
        CohortConfigError, match=r"fabhalta/c3g, fabhalta/on_therapy, fabhalta/pnh, kisqali/hr_her2_bc"
    ):
        CohortDefinition.from_brand("kisqali", "psoriasis")
    with pytest.raises(CohortConfigError, match="Did you mean 'remibrutinib_csu'"):
        read_cohort("remibrutinib")


def test_a_broken_file_does_not_take_the_others_down(tmp_path):
    for path in cohort_folder().glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    write(tmp_path, "brand: [", name="broken")
    definitions, broken = read_cohorts(tmp_path)
    assert len(definitions) == 5
    assert list(broken) == ["broken"]


def test_meningococcal_vaccination_must_be_documented():
    for key in ("fabhalta_pnh", "fabhalta_c3g"):
        rules = {rule.name: rule for rule in read_cohort(key).rules}
        assert rules["meningococcal_vaccination_current"].on_unknown == "exclude"
        assert rules["active_serious_infection"].on_unknown == "report"


@pytest.mark.parametrize(
    ("within", "ends", "days"),
    [
        ([-180, 0], "[]", (-180, 0)),
        ([-180, 0], "[)", (-180, -1)),
        ([-180, 0], "(]", (-179, 0)),
        ([-180, 0], "()", (-179, -1)),
        ([None, 0], "()", (None, -1)),
    ],
)
def test_a_round_end_does_not_belong_to_the_window(within, ends, days):
    read = EventCriterion.model_validate({"has_event": {"event": "rx", "within": within, "ends": ends}})
    assert read == EventCriterion.model_validate({"has_event": {"event": "rx", "within": days}})


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ({"has_event": {"event": "rx", "within": [0, 1], "ends": "()"}}, "no day lies in the window"),
        ({"has_event": {"event": "rx", "within": [0, 1], "ends": "[["}}, "ends is"),
        ({"has_event": {"event": "rx", "ends": "[)"}}, "give within"),
        ({"has_event": {"event": "rx", "within": ["a", 1], "ends": "[)"}}, "two whole days"),
        ({"washout": {"event": "rx", "days": 9, "ends": "[)"}}, "remove ends"),
    ],
)
def test_wrong_ends_of_a_window_are_refused(criterion, words):
    with pytest.raises(ValidationError, match=words):
        EventCriterion.model_validate(criterion)
