"""Lint: each finding has a definition that causes it."""

import pandas as pd
import pytest

from e2i_dagster.cohorts import CohortDefinition, lint, read_cohort, read_cohorts


def definition(inclusion, exclusion=(), examples=(), **more):
    return CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "inclusion_criteria": inclusion,
            "exclusion_criteria": exclusion,
            "examples": examples,
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
        }
        | more
    )


def rule(field, operator, value, **more):
    return {"field": field, "operator": operator, "value": value, **more}


def kinds(report, severity=None):
    return [f.kind for f in report.findings if severity in (None, f.severity)]


@pytest.mark.parametrize(
    ("inclusion", "exclusion"),
    [
        ([rule("x", ">=", 18), rule("x", "<", 18)], []),
        ([rule("x", "between", [1, 5]), rule("x", ">", 5)], []),
        ([rule("x", ">=", 18)], [rule("x", ">", 17)]),
        ([rule("x", "in", ["a", "b"]), rule("x", "==", "c")], []),
        ([rule("x", "==", True)], [rule("x", "in", [True])]),
        (
            [rule("x", "in", ["L50.1"], code_system="icd10cm")],
            [rule("x", "==", "l501", code_system="icd10cm")],
        ),
    ],
)
def test_contradictions(inclusion, exclusion):
    assert "contradiction" in kinds(lint(definition(inclusion, exclusion)), "error")


@pytest.mark.parametrize(
    ("inclusion", "exclusion"),
    [
        ([rule("x", ">=", 18), rule("x", "<=", 18)], []),
        ([rule("x", "in", ["a", "b"])], [rule("x", "==", "b")]),
        (
            [rule("x", "in", ["L50.*"], code_system="icd10cm")],
            [rule("x", "==", "L50.1", code_system="icd10cm")],
        ),
    ],
)
def test_narrow_rules_are_no_contradiction(inclusion, exclusion):
    assert "contradiction" not in kinds(lint(definition(inclusion, exclusion)))


def test_examples_that_the_definition_does_not_meet():
    day = "2024-01-01"
    patient = {"x": 1, "diagnosis_date": day, "first_observation_date": day, "last_observation_date": day}
    examples = [
        {"name": "right", "patient": patient, "expect": "in"},
        {"name": "wrong", "patient": patient, "expect": {"out": "x"}},
        {"name": "odd", "patient": patient | {"y": 1}, "expect": "in"},
    ]
    report = lint(definition([rule("x", "==", 1)], examples=examples))
    assert kinds(report, "error") == ["example_field", "example_verdict"]
    assert "'wrong': expected x, the definition says in" in report.findings[1].message
    assert not report.passed
    assert kinds(lint(definition([rule("x", "==", 1)])), "warning") == ["no_examples"]
    assert "example_verdict" in str(report.to_metadata()["findings"].texts)


def data(**columns):
    day = pd.Timestamp("2024-01-01")
    frame = pd.DataFrame(columns)
    keys = [str(k) for k in range(len(frame))]
    return frame.assign(
        patient_id=keys,
        patient_journey_id=keys,
        diagnosis_date=day,
        first_observation_date=day,
        last_observation_date=day + pd.Timedelta(days=10),
    )


def test_what_the_data_make_of_a_definition():
    rules = [rule("code", "in", ["L50.1", "L50.9"], code_system="icd10cm"), rule("x", ">", 0)]
    frame = data(code=["L50.1"] * 5, x=[1.0, None, None, None, 2.0])
    assert kinds(lint(definition(rules), frame)) == ["no_examples", "unused_codes", "mostly_null"]
    never = lint(definition([rule("x", ">", 5)]), frame)
    assert {"never_true", "empty"} <= set(kinds(never, "error"))
    long = definition(rules, temporal_requirements={"lookback_days": 5, "followup_days": 6})
    assert "windows_longer_than_data" in kinds(lint(long, frame), "error")
    assert kinds(lint(definition(rules), frame.iloc[:0]), "error") == ["empty"]


def test_shipped_definitions_are_clean():
    assert lint(read_cohort("fabhalta_pnh")).passed


@pytest.mark.parametrize("key", sorted(read_cohorts()[0]))
def test_every_shipped_rule_has_an_example_and_every_example_its_verdict(key):
    definition = read_cohort(key)
    report = lint(definition)
    assert report.findings == ()
    assert report.examples >= 6
    assert any(None in example.patient.values() for example in definition.examples), "a null"
    # Nobody waits for a follow-up that is not required.
    waits = definition.temporal_requirements.followup == "require"
    assert any(example.expect == "pending" for example in definition.examples) == waits, "the end of the data"


def test_a_rule_that_no_example_meets_is_named():
    patient = {"x": 1, "diagnosis_date": "2024-01-01", "first_observation_date": "2024-01-01",
               "last_observation_date": "2024-01-01"}  # fmt: skip
    examples = [{"name": "right", "patient": patient, "expect": "in"}]
    (finding,) = lint(definition([rule("x", "==", 1)], examples=examples)).findings
    assert finding.kind == "rule_without_example"
    assert finding.rule == "index_date, x, lookback, followup, followup_pending"
