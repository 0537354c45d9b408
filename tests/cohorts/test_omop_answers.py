"""Known answers of ``cohorts.omop``, one feature of Circe each.

Cases marked "after circe-be" ask the question of a test of OHDSI/circe-be (src/test, Apache-2.0) with frames
of our own; the answers were computed by hand and agree with what its generated SQL gives.
"""

from __future__ import annotations

import json

import pytest
from omop_cases import (
    CONDITION,
    cohort_of,
    concept_set,
    condition,
    counted,
    drug,
    expression,
    group,
    period,
    rows,
    rule,
    window,
    write_folder,
)

from e2i_dagster.cohorts.omop import build

YEAR = {"observation_period": [period(1)]}


def starts(cohort):
    return [(subject, start) for subject, start, _ in rows(cohort)]


def test_an_event_ends_with_the_observation_period(tmp_path):
    tables = {**YEAR, "drug_exposure": [drug(1, 1, "2000-03-01"), drug(2, 1, "2000-05-01", concept=9)]}
    assert rows(cohort_of(tmp_path, tables)) == [(1, "2000-03-01", "2001-01-01")]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_text_path_and_document_are_the_same_definition(tmp_path, file_format):
    folder = write_folder(
        tmp_path / "cdm", {**YEAR, "drug_exposure": [drug(1, 1, "2000-03-01")]}, file_format
    )
    document = expression()
    (tmp_path / "circe.json").write_text(json.dumps(document))
    answers = [
        rows(build(given, folder))
        for given in (document, json.dumps(document), tmp_path / "circe.json", str(tmp_path / "circe.json"))
    ]
    assert answers == [[(1, "2000-03-01", "2001-01-01")]] * 4


def test_continuous_observation_includes_its_ends(tmp_path):
    tables = {
        "observation_period": [period(person, "2000-01-01", "2000-12-31") for person in (1, 2, 3, 4)],
        "drug_exposure": [
            drug(1, 1, "2000-01-31"),  # day 30
            drug(2, 2, "2000-01-30"),  # day 29
            drug(3, 3, "2000-12-21"),  # 10 days left
            drug(4, 4, "2000-12-22"),  # 9 days left
        ],
    }
    definition = expression()
    definition["PrimaryCriteria"]["ObservationWindow"] = {"PriorDays": 30, "PostDays": 10}
    assert starts(build(definition, write_folder(tmp_path, tables))) == [(1, "2000-01-31"), (3, "2000-12-21")]


@pytest.mark.parametrize(
    ("limit", "day"), [("First", "2000-02-01"), ("Last", "2000-06-01"), ("All", "2000-02-01")]
)
def test_primary_limit_counts_events_with_enough_observation(tmp_path, limit, day):
    """The first event is the first of those observed long enough, not the first of all."""
    tables = {
        **YEAR,
        "drug_exposure": [
            drug(k, 1, day) for k, day in enumerate(("2000-01-02", "2000-02-01", "2000-06-01"))
        ],
    }
    definition = expression()
    definition["PrimaryCriteria"]["ObservationWindow"]["PriorDays"] = 20
    definition["PrimaryCriteria"]["PrimaryCriteriaLimit"]["Type"] = limit
    assert starts(build(definition, write_folder(tmp_path, tables))) == [(1, day)]


def test_limits_apply_one_after_the_other(tmp_path):
    """After circe-be's limitTest: qualified and expression limits see what the step before left."""
    days = ("2000-02-01", "2000-06-01", "2000-10-01")
    tables = {
        **YEAR,
        "drug_exposure": [drug(k, 1, day) for k, day in enumerate(days)],
        "condition_occurrence": [condition(1, 1, "2000-05-01"), condition(2, 1, "2000-09-01")],
    }
    after_condition = group(counted(CONDITION, None, 0))
    offset = {"DateOffset": {"DateField": "StartDate", "Offset": 10}}

    def first_days(primary: str, qualified: str, included: str, **more):
        definition = expression(EndStrategy=offset, AdditionalCriteria=after_condition, **more)
        definition["PrimaryCriteria"]["PrimaryCriteriaLimit"]["Type"] = primary
        definition["QualifiedLimit"]["Type"] = qualified
        definition["ExpressionLimit"]["Type"] = included
        folder = tmp_path / f"{primary}{qualified}{included}{len(more)}"
        return [start for _, start in starts(build(definition, write_folder(folder, tables)))]

    assert first_days("All", "All", "All") == list(days[1:])
    assert first_days("First", "All", "All") == []
    assert first_days("All", "First", "All") == [days[1]]
    assert first_days("All", "Last", "All") == [days[2]]
    assert first_days("All", "All", "Last") == [days[2]]
    two = {"InclusionRules": [rule("two conditions before", counted(CONDITION, None, 0, count=2))]}
    assert first_days("All", "First", "All", **two) == []
    assert first_days("All", "All", "First", **two) == [days[2]]


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [(2, 1, [2, 3]), (2, 2, [3]), (1, 0, [1]), (1, 1, [1, 2]), (0, 0, [1]), (0, 1, [2]), (2, 0, [1, 2, 3])],
)
def test_occurrences_are_counted(tmp_path, kind, count, expected):
    """After circe-be's correlatedCriteria countsTest: 0, 1 and 2 conditions before the index."""
    tables = {
        "observation_period": [period(person) for person in (1, 2, 3)],
        "drug_exposure": [drug(person, person, "2000-06-01") for person in (1, 2, 3)],
        "condition_occurrence": [
            condition(1, 2, "2000-05-01"),
            condition(2, 3, "2000-05-01"),
            condition(3, 3, "2000-05-02"),
        ],
    }
    cohort = cohort_of(
        tmp_path, tables, AdditionalCriteria=group(counted(CONDITION, -60, -1, kind=kind, count=count))
    )
    assert [subject for subject, *_ in rows(cohort)] == expected


def test_windows_include_both_ends(tmp_path):
    days = ("2000-05-01", "2000-05-02", "2000-05-31", "2000-06-01")  # -31, -30, -1, 0 days
    tables = {
        "observation_period": [period(person) for person in range(4)],
        "drug_exposure": [drug(person, person, "2000-06-01") for person in range(4)],
        "condition_occurrence": [condition(k, k, day) for k, day in enumerate(days)],
    }
    cohort = cohort_of(tmp_path, tables, AdditionalCriteria=group(counted(CONDITION, -30, -1)))
    assert [subject for subject, *_ in rows(cohort)] == [1, 2]


def test_windows_of_ends(tmp_path):
    """Start windows look at the start, end windows at the end, unless told otherwise."""
    stay = {"condition_end_date": "2000-06-20"}
    tables = {
        **YEAR,
        "drug_exposure": [drug(1, 1, "2000-06-01", drug_exposure_end_date="2000-06-10")],
        "condition_occurrence": [condition(1, 1, "2000-05-01", **stay)],
    }

    def found(name: str, **parts):
        criterion = counted(CONDITION, **parts)
        return len(cohort_of(tmp_path / name, tables, AdditionalCriteria=group(criterion)).rows)

    assert found("start", start=-31, end=-31) == 1
    assert found("event end", start_window=window(19, 19, UseEventEnd=True)) == 1
    assert found("index end", start_window=window(-40, -40, UseIndexEnd=True)) == 1
    assert found("end window", EndWindow=window(19, 19)) == 1
    assert found("end window missed", EndWindow=window(18, 18)) == 0
    assert found("end window of start", EndWindow=window(-31, -31, UseEventEnd=False)) == 1
    assert found("end window from end", EndWindow=window(10, 10, UseIndexEnd=True)) == 1


def test_counted_events_lie_in_the_observation_period_of_the_index(tmp_path):
    tables = {
        "observation_period": [
            period(1, "1999-01-01", "1999-12-31", number=1),
            period(1, "2000-02-01", "2000-12-31", number=2),
        ],
        "drug_exposure": [drug(1, 1, "2000-06-01")],
        "condition_occurrence": [condition(1, 1, "1999-06-01"), condition(2, 1, "2000-01-15")],
    }
    before = counted(CONDITION, -1000, 0)
    assert rows(cohort_of(tmp_path / "a", tables, AdditionalCriteria=group(before))) == []
    ignoring = {**before, "IgnoreObservationPeriod": True, "Occurrence": {"Type": 0, "Count": 2}}
    assert len(cohort_of(tmp_path / "b", tables, AdditionalCriteria=group(ignoring)).rows) == 1
    unbounded = {**counted(CONDITION, None, None), "IgnoreObservationPeriod": True}
    assert len(cohort_of(tmp_path / "c", tables, AdditionalCriteria=group(unbounded)).rows) == 1


@pytest.mark.parametrize(
    ("column", "distinct", "many"),
    [(None, 2, 3), ("START_DATE", 2, 3), ("VISIT_ID", 1, 2)],
)
def test_distinct_counts(tmp_path, column, distinct, many):
    """After circe-be's distinctDefault, distinctStart and distinctVisit."""
    tables = {
        **YEAR,
        "drug_exposure": [drug(1, 1, "2000-06-01")],
        "condition_occurrence": [
            condition(1, 1, "2000-05-01", concept=2, visit_occurrence_id=7),
            condition(2, 1, "2000-05-01", concept=3, visit_occurrence_id=7),
            condition(3, 1, "2000-05-02", concept=2, visit_occurrence_id=7),
        ],
    }
    for count, persons in ((distinct, 1), (many, 0)):
        occurrence = {"IsDistinct": True, "CountColumn": column}
        criterion = counted({"ConditionOccurrence": {}}, -90, 0, count=count, occurrence=occurrence)
        cohort = cohort_of(tmp_path / str(count), tables, AdditionalCriteria=group(criterion))
        assert cohort.persons == persons


def test_restricted_to_the_visit_of_the_index(tmp_path):
    tables = {
        "observation_period": [period(1), period(2), period(3)],
        "drug_exposure": [
            drug(1, 1, "2000-06-01", visit_occurrence_id=10),
            drug(2, 2, "2000-06-01", visit_occurrence_id=20),
            drug(3, 3, "2000-06-01"),
        ],
        "condition_occurrence": [
            condition(1, 1, "2000-06-01", visit_occurrence_id=10),
            condition(2, 2, "2000-06-01", visit_occurrence_id=21),
            condition(3, 3, "2000-06-01"),  # without a visit nothing is in the same visit
        ],
    }
    criterion = counted(CONDITION, 0, 0, RestrictVisit=True)
    assert [s for s, *_ in rows(cohort_of(tmp_path, tables, AdditionalCriteria=group(criterion)))] == [1]


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("ALL", None, [3]),
        ("ANY", None, [1, 2, 3]),
        ("AT_LEAST", 2, [3]),
        ("AT_LEAST", 0, [0, 1, 2, 3]),
        ("AT_MOST", 1, [0, 1, 2]),
        ("AT_MOST", 0, [0]),
    ],
)
def test_groups_count_what_is_met(tmp_path, kind, count, expected):
    """After circe-be's groupTest. Bit 0 of a person: a condition; bit 1: an exposure of set 3, nested."""
    tables = {
        "observation_period": [period(person) for person in range(4)],
        "drug_exposure": [drug(person, person, "2000-06-01") for person in range(4)]
        + [drug(10 + person, person, "2000-06-02", concept=3) for person in (2, 3)],
        "condition_occurrence": [condition(person, person, "2000-05-01") for person in (1, 3)],
    }
    nested = group(counted({"DrugExposure": {"CodesetId": 3}}, 0, 5))
    outer = group(counted(CONDITION, -90, 0), kind=kind, Count=count, Groups=[nested])
    assert [s for s, *_ in rows(cohort_of(tmp_path, tables, AdditionalCriteria=outer))] == expected


def test_empty_groups_are_met(tmp_path):
    tables = {**YEAR, "drug_exposure": [drug(1, 1, "2000-06-01")]}
    cohort = cohort_of(
        tmp_path, tables, InclusionRules=[rule("nothing asked"), rule("nested", Groups=[group()])]
    )
    assert cohort.inclusion_masks == {0b11: 1}
    assert cohort.persons == 1


def test_masks_count_persons_by_their_best_event_and_events(tmp_path):
    """Bit i is rule i. Person 1: events that meet {}, {0}, {1}; the best is the earlier rule's."""
    tables = {
        "observation_period": [period(1), period(2), period(3)],
        "drug_exposure": [
            drug(1, 1, "2000-02-01"),
            drug(2, 1, "2000-05-01", drug_exposure_end_date="2000-05-02"),
            drug(3, 1, "2000-09-01", drug_exposure_end_date="2000-09-20"),
            drug(4, 2, "2000-05-01", drug_exposure_end_date="2000-05-20"),
            drug(5, 3, "2000-02-01"),
        ],
        "condition_occurrence": [condition(1, 1, "2000-04-25"), condition(2, 2, "2000-04-25")],
    }
    long = {"DrugExposure": {"CodesetId": 1, "OccurrenceStartDate": {"Value": "2000-05-01", "Op": "gte"}}}
    longer = counted(long, 0, 0, EndWindow=window(10, None))
    cohort = cohort_of(
        tmp_path, tables, InclusionRules=[rule("diagnosed", counted(CONDITION, -10, 0)), rule("long", longer)]
    )
    assert cohort.event_masks == {0b00: 2, 0b01: 1, 0b10: 1, 0b11: 1}
    assert cohort.inclusion_masks == {0b00: 1, 0b01: 1, 0b11: 1}
    assert cohort.rules == ("diagnosed", "long")
    assert starts(cohort) == [(2, "2000-05-01")]
    assert cohort.rule_counts.to_dict("list") == {
        "rule": ["diagnosed", "long"],
        "persons": [2, 1],
        "gain": [0, 1],
    }


def test_without_rules_there_are_no_masks(tmp_path):
    cohort = cohort_of(tmp_path, {**YEAR, "drug_exposure": [drug(1, 1, "2000-06-01")]})
    assert cohort.inclusion_masks == {} == cohort.event_masks


def test_concept_sets_with_descendants_and_exclusions(tmp_path):
    tables = {
        "observation_period": [period(person) for person in range(1, 7)],
        "drug_exposure": [drug(person, person, "2000-06-01", concept=person) for person in range(1, 7)],
        "concept_ancestor": [
            {"ancestor_concept_id": above, "descendant_concept_id": below}
            for above, below in ((1, 1), (1, 2), (1, 3), (1, 4), (3, 3), (3, 4), (5, 5), (5, 6))
        ],
    }
    branch = concept_set(1, 1, excluded=(3,), below=True)
    assert [s for s, *_ in rows(cohort_of(tmp_path / "a", tables, ConceptSets=[branch]))] == [1, 2]
    branch["expression"]["items"][1]["includeDescendants"] = False
    assert [s for s, *_ in rows(cohort_of(tmp_path / "b", tables, ConceptSets=[branch]))] == [1, 2, 4]
    tables["concept"] = [{"concept_id": k, "invalid_reason": "D" if k == 2 else None} for k in range(1, 7)]
    assert [s for s, *_ in rows(cohort_of(tmp_path / "c", tables, ConceptSets=[branch]))] == [1, 4]
    assert rows(cohort_of(tmp_path / "d", tables, ConceptSets=[concept_set(1)])) == []


def test_source_concepts_join_the_standard_ones(tmp_path):
    tables = {
        **YEAR,
        "drug_exposure": [
            drug(1, 1, "2000-03-01", drug_source_concept_id=3),
            drug(2, 1, "2000-02-01", drug_source_concept_id=2),
        ],
    }
    both = {"DrugExposure": {"CodesetId": 1, "DrugSourceConcept": 3}}
    assert starts(cohort_of(tmp_path, tables, primary=[both])) == [(1, "2000-03-01")]


def test_first_is_the_first_of_the_concept_set_before_other_filters(tmp_path):
    """After circe-be's firstOccurrenceTest: the first record decides, even if another filter removes it."""
    tables = {
        "observation_period": [period(1), period(2)],
        "drug_exposure": [
            drug(1, 1, "2000-02-01", concept=9, days_supply=30),
            drug(2, 1, "2000-03-01", days_supply=30),
            drug(3, 1, "2000-04-01", days_supply=30),
            drug(4, 2, "2000-02-01", days_supply=5),
            drug(5, 2, "2000-03-01", days_supply=30),
        ],
    }
    first = {"DrugExposure": {"CodesetId": 1, "First": True, "DaysSupply": {"Value": 30, "Op": "gte"}}}
    assert starts(cohort_of(tmp_path, tables, primary=[first])) == [(1, "2000-03-01")]


# ---- exits ------------------------------------------------------------------------------------------


def test_fixed_offsets_stop_at_the_observation_period(tmp_path):
    """After circe-be's fixedOffset tests."""
    tables = {
        "observation_period": [period(1), period(2)],
        "drug_exposure": [
            drug(1, 1, "2000-03-01", drug_exposure_end_date="2000-03-11"),
            drug(2, 2, "2000-12-20"),
        ],
    }
    start = {"DateOffset": {"DateField": "StartDate", "Offset": 30}}
    end = {"DateOffset": {"DateField": "EndDate", "Offset": 30}}
    back = {"DateOffset": {"DateField": "StartDate", "Offset": -1}}
    assert rows(cohort_of(tmp_path / "a", tables, EndStrategy=start)) == [
        (1, "2000-03-01", "2000-03-31"),
        (2, "2000-12-20", "2001-01-01"),
    ]
    assert rows(cohort_of(tmp_path / "b", tables, EndStrategy=end))[0] == (1, "2000-03-01", "2000-04-10")
    assert rows(cohort_of(tmp_path / "c", tables, EndStrategy=back)) == []


def test_continuous_drug_eras(tmp_path):
    """After circe-be's continuousExposure: gaps of at most 30 days join, the offset extends the end."""
    tables = {
        **YEAR,
        "drug_exposure": [
            drug(1, 1, "2000-01-10", days_supply=20),  # to 2000-01-30
            drug(2, 1, "2000-02-29", drug_exposure_end_date="2000-03-10"),  # 30 days later: joins
            drug(3, 1, "2000-04-15", days_supply=10),  # 36 days later: a new era, to 2000-04-25
            drug(4, 1, "2000-06-01", concept=9, drug_source_concept_id=1),  # by source concept, one day
        ],
    }
    era = {"CustomEra": {"DrugCodesetId": 1, "GapDays": 30, "Offset": 0}}
    assert rows(cohort_of(tmp_path / "a", tables, EndStrategy=era)) == [
        (1, "2000-01-10", "2000-03-10"),
        (1, "2000-04-15", "2000-04-25"),
    ]
    era["CustomEra"]["Offset"] = 5
    # An offset widens what joins as well: 36 days are within 30 + 5 + 1 only with one more day.
    assert rows(cohort_of(tmp_path / "b", tables, EndStrategy=era))[-1] == (1, "2000-04-15", "2000-04-30")
    era["CustomEra"] = {"DrugCodesetId": 1, "GapDays": 10, "Offset": 0, "DaysSupplyOverride": 7}
    assert rows(cohort_of(tmp_path / "c", tables, EndStrategy=era))[0] == (1, "2000-01-10", "2000-01-17")


def test_censoring_events_end_at_the_first_on_or_after_the_start(tmp_path):
    """After circe-be's censorEvent: an event before the start does not censor, one on the day does."""
    tables = {
        "observation_period": [period(1), period(2), period(3)],
        "drug_exposure": [drug(person, person, "2000-06-01") for person in (1, 2, 3)],
        "condition_occurrence": [
            condition(1, 1, "2000-05-31"),
            condition(2, 1, "2000-08-01"),
            condition(3, 1, "2000-07-01"),
            condition(4, 2, "2000-06-01"),
            condition(5, 3, "2000-05-31"),
        ],
    }
    assert rows(cohort_of(tmp_path, tables, CensoringCriteria=[CONDITION])) == [
        (1, "2000-06-01", "2000-07-01"),
        (2, "2000-06-01", "2000-06-01"),
        (3, "2000-06-01", "2001-01-01"),
    ]


def test_eras_collapse_within_the_pad(tmp_path):
    """After circe-be's eraDupes: equal and touching periods are one; the pad does not lengthen the end."""
    tables = {
        **YEAR,
        "drug_exposure": [
            drug(1, 1, "2000-02-01"),
            drug(2, 1, "2000-02-01"),
            drug(3, 1, "2000-02-16"),  # 5 days after the end of the first
            drug(4, 1, "2000-03-03"),  # 6 days after
        ],
    }
    offset = {"DateOffset": {"DateField": "StartDate", "Offset": 10}}
    padded = {"CollapseType": "ERA", "EraPad": 5}
    assert rows(cohort_of(tmp_path / "a", tables, EndStrategy=offset, CollapseSettings=padded)) == [
        (1, "2000-02-01", "2000-02-26"),
        (1, "2000-03-03", "2000-03-13"),
    ]
    assert len(cohort_of(tmp_path / "b", tables, EndStrategy=offset).rows) == 3


def test_censor_window_cuts_periods(tmp_path):
    """After circe-be's censorWindow."""
    tables = {
        "observation_period": [period(1), period(2), period(3)],
        "drug_exposure": [drug(1, 1, "2000-02-01"), drug(2, 2, "2000-06-01"), drug(3, 3, "2000-10-01")],
    }
    offset = {"DateOffset": {"DateField": "StartDate", "Offset": 60}}
    window_2000 = {"StartDate": "2000-03-01", "EndDate": "2000-07-01"}
    assert rows(cohort_of(tmp_path, tables, EndStrategy=offset, CensorWindow=window_2000)) == [
        (1, "2000-03-01", "2000-04-01"),
        (2, "2000-06-01", "2000-07-01"),
    ]


def test_events_about_events(tmp_path):
    """A criterion of its own about the primary event, counted around it."""
    tables = {
        "observation_period": [period(1), period(2)],
        "drug_exposure": [drug(1, 1, "2000-06-01"), drug(2, 2, "2000-06-01")],
        "condition_occurrence": [condition(1, 1, "2000-05-20"), condition(2, 2, "2000-04-20")],
    }
    about = {"DrugExposure": {"CodesetId": 1, "CorrelatedCriteria": group(counted(CONDITION, -30, 0))}}
    assert starts(cohort_of(tmp_path, tables, primary=[about])) == [(1, "2000-06-01")]


def test_shifted_dates(tmp_path):
    tables = {
        **YEAR,
        "drug_exposure": [
            drug(1, 1, "2000-03-01", drug_exposure_end_date="2000-03-11"),
            drug(2, 1, "2000-05-01"),
        ],
    }
    shifted = {"StartWith": "START_DATE", "StartOffset": 3, "EndWith": "END_DATE", "EndOffset": -2}
    primary = [{"DrugExposure": {"CodesetId": 1, "DateAdjustment": shifted}}]
    offset = {"DateOffset": {"DateField": "EndDate", "Offset": 0}}
    # The second exposure lasts one day: shifted, it ends before it starts and is no event.
    assert rows(cohort_of(tmp_path, tables, primary=primary, EndStrategy=offset)) == [
        (1, "2000-03-04", "2000-03-09")
    ]


def test_demographics_at_the_event(tmp_path):
    tables = {
        "person": [
            {"person_id": 1, "year_of_birth": 1982, "gender_concept_id": 8507, "race_concept_id": 8527},
            {"person_id": 2, "year_of_birth": 1983, "gender_concept_id": 8532, "race_concept_id": 8527},
            {"person_id": 3, "year_of_birth": 1982, "gender_concept_id": 8532, "race_concept_id": 8516},
        ],
        "observation_period": [period(person) for person in (1, 2, 3, 4)],
        "drug_exposure": [drug(person, person, "2000-06-01") for person in (1, 2, 3, 4)],
    }

    def persons(name: str, **demographic):
        definition = group(DemographicCriteriaList=[demographic])
        return [s for s, *_ in rows(cohort_of(tmp_path / name, tables, AdditionalCriteria=definition))]

    assert persons("age", Age={"Value": 18, "Op": "gte"}) == [1, 3]
    assert persons("gender", Gender=[{"CONCEPT_ID": 8532}]) == [2, 3]
    assert persons("race", Race=[{"CONCEPT_ID": 8527}]) == [1, 2]
    assert persons("date", OccurrenceStartDate={"Value": "2000-06-01", "Op": "gt"}) == []
    assert persons("any") == [1, 2, 3]  # a person without a row in the person table meets nothing
