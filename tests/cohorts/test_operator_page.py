"""Every line of the specification on every engine in memory, and the page that is written from it."""

import pandas as pd
import pytest
from operator_tables import (
    EVENTS,
    GROUPS,
    KEPT,
    OPERATORS,
    PAGE,
    PAIRS,
    REPORTED,
    TRIPLES,
    TWO_OF_THREE,
    F,
    T,
    U,
    page,
)

from e2i_dagster.cohorts import build_cohort
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.criteria import Operator

ANSWERS = {T: True, F: False, U: None}
RULE = {"lookback_days": 0, "followup_days": 0, "index_date_field": "seen"}


def built(engine, columns, criterion, side="inclusion"):
    """The cohort of one rule on patients that have nothing else against them."""
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    frame["patient_id"] = frame["patient_journey_id"] = [f"P{n:03}" for n in range(len(frame))]
    for name in ("seen", "first_observation_date", "last_observation_date"):
        frame[name] = pd.Timestamp("2024-01-01")
    always = {"field": "seen", "operator": ">=", "value": "2000-01-01"}
    rules = {"inclusion_criteria": [always], "exclusion_criteria": []}
    rules[f"{side}_criteria"].append({"name": "rule", **criterion})
    definition = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", "temporal_requirements": RULE, **rules}
    )
    cohort = build_cohort(definition, frame, engine=engine)
    bit = next(rule.bit for rule in definition.rules if rule.name == "rule")
    unknown = (cohort.reasons["unknown_mask"] & bit) != 0
    kept = (cohort.reasons["mask"] & bit) == 0
    return cohort, [U if u else T if k else F for u, k in zip(unknown, kept, strict=True)]


@pytest.mark.parametrize("engine", ["pandas", "duckdb"])
@pytest.mark.parametrize(("criterion", "kind", "answers"), OPERATORS, ids=lambda x: str(x)[:40])
def test_an_operator_answers_as_specified(criterion, kind, answers, engine):
    values = [value for value, _ in answers]
    _, found = built(engine, {"x": values}, {"field": "x", **criterion})
    assert found == [answer for _, answer in answers]


def test_every_operator_is_specified_with_a_null():
    assert {criterion["operator"] for criterion, _, _ in OPERATORS} == set(Operator.__args__)
    assert all(answers[-1] == (None, U) for _, _, answers in OPERATORS)


def members(rows):
    columns = {f"m{n}": [ANSWERS[row[n]] for row in rows] for n in range(len(rows[0]))}
    return columns, [{"field": name, "operator": "==", "value": True} for name in columns]


@pytest.mark.parametrize("kind", GROUPS)
def test_a_group_answers_as_specified(kind):
    columns, criteria = members(PAIRS)
    assert built(None, columns, {kind: criteria})[1] == GROUPS[kind]


def test_at_least_two_of_three_answers_as_specified():
    columns, criteria = members(TRIPLES)
    assert built(None, columns, {"at_least": {"n": 2, "of": criteria}})[1] == TWO_OF_THREE


@pytest.mark.parametrize(("criterion", "answers"), EVENTS, ids=str)
def test_a_count_answers_as_specified_where_the_window_was_observed_and_where_not(criterion, answers):
    index = pd.Timestamp("2024-01-20")
    cases = [
        (days, first, answer)
        for days, *both in answers
        for first, answer in zip((-10, -5), both, strict=True)
    ]
    names = [f"P{n:03}" for n in range(len(cases))]
    patients = pd.DataFrame({"patient_id": names, "patient_journey_id": names, "seen": index})
    patients["first_observation_date"] = [index + pd.Timedelta(days=first) for _, first, _ in cases]
    patients["last_observation_date"] = index
    events = [
        {"patient_id": name, "event_type": "rx", "event_date": index + pd.Timedelta(days=day)}
        for name, (days, _, _) in zip(names, cases, strict=True)
        for day in days
    ]
    definition = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", "temporal_requirements": RULE, "inclusion_criteria": [criterion]}
    )
    reasons = build_cohort(
        definition, patients, pd.DataFrame(events, columns=["patient_id", "event_type", "event_date"])
    ).reasons
    bit = definition.rules[1].bit
    found = [
        U if unknown & bit else F if mask & bit else T
        for mask, unknown in zip(reasons["mask"], reasons["unknown_mask"], strict=True)
    ]
    assert found == [answer for _, _, answer in cases]


@pytest.mark.parametrize("engine", ["pandas", "duckdb"])
@pytest.mark.parametrize(("case", "kept"), KEPT.items(), ids=str)
def test_what_becomes_of_a_patient(case, kept, engine):
    side, written, answer = case
    rule = {"field": "x", "operator": "==", "value": True, "on_unknown": written}
    cohort, _ = built(engine, {"x": [ANSWERS[answer]]}, rule, side)
    assert cohort.eligible_count == kept
    assert cohort.kept_with_unknown == (answer == U and (side, written) in REPORTED)


def test_the_page_is_what_the_tables_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/cohorts/operator_tables.py"
