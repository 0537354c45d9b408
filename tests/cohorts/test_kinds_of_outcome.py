"""Outcomes of several classes and numbers: labels by hand, what is left out, and what is refused."""

import pandas as pd
import pytest
import yaml
from test_outcome import END, INDEX, cohort

from e2i_dagster.cohorts import CohortInputError, ScopeRefused, label_outcome
from e2i_dagster.cohorts.outcome import days_covered
from e2i_dagster.config.names import KnownNames, scope_problems
from e2i_dagster.config.scope import ScopeSpec, read_scope, scope_folder
from e2i_dagster.errors import ConfigError

BRAND = "Remibrutinib"
CHOICE = {
    "choice": [
        {"name": "kept", "table": "outcome_events", "event_type": "adherent", "brand": BRAND},
        {"name": "switched", "table": "outcome_events", "event_type": "switch", "brand": BRAND},
    ],
    "otherwise": "neither",
}
COST = {"sum": {"table": "treatment_events", "column": "cost"}}
VISITS = {"count": {"table": "treatment_events", "event_type": "consultation"}}
COVERED = {
    "days_covered": {"table": "treatment_events", "event_type": "prescription", "column": "duration_days"}
}
TIME = {"time_to": {"table": "outcome_events", "event_type": "switch", "brand": BRAND}}
COMPETING = TIME | {"competing": [{"table": "outcome_events", "event_type": "discontinue"}]}
PROBLEM = {"choice": "multiclass_classification", "time_to": "survival"}


def scope(outcome, **changes):
    document = yaml.safe_load((scope_folder() / "remibrutinib_csu_initiation.yaml").read_text())
    kind = next(iter(outcome))
    document |= {
        "key": "demo",
        "problem_type": PROBLEM.get(kind, "regression"),
        "outcome": outcome,
        "success_criteria": {},
        "minimum_sample": {"labelled": 1, "events_per_feature": 1},
    }
    return ScopeSpec.model_validate(document | changes)


def care(*events):
    """Events of P0 by day after the index date: (day, kind, cost, days supplied)."""
    rows = [
        ("P0", INDEX + pd.Timedelta(days=day), kind, BRAND, cost, supply)
        for day, kind, cost, supply in events
    ]
    columns = ["patient_id", "event_date", "event_type", "brand", "cost", "duration_days"]
    return {"treatment_events": pd.DataFrame(rows, columns=columns), **journeys()}


def seen(*events):
    rows = [("P0", INDEX + pd.Timedelta(days=day), kind, BRAND) for day, kind in events]
    columns = ["patient_id", "outcome_date", "outcome_type", "brand"]
    return {"outcome_events": pd.DataFrame(rows, columns=columns), **journeys()}


def journeys():
    return {"patient_journeys": pd.DataFrame({"patient_journey_id": ["JP0"], "hcp_id": ["H1"]})}


def labelled(outcome, tables, **more):
    return label_outcome(scope(outcome), cohort(), tables, **{"data_end": END, **more})


def label(outcome, tables, **more):
    return labelled(outcome, tables, **more).frame["label"].iloc[0]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([(40, "adherent"), (20, "switch")], "switched"),
        ([(20, "switch"), (20, "adherent")], "kept"),
        ([(91, "switch")], "neither"),
        ([(5, "discontinue")], "neither"),
        ([], "neither"),
    ],
)
def test_a_choice_is_the_first_class_in_the_window_and_on_one_day_the_first_named(events, expected):
    assert label(CHOICE, seen(*events)) == expected


def test_days_that_were_not_loaded_before_the_first_class_may_hide_another():
    def unloaded(first, last):
        days = [tuple((INDEX + pd.Timedelta(days=day)).date() for day in (first, last))]
        return labelled(CHOICE, seen((40, "adherent")), unobserved=days)

    assert unloaded(41, 60).frame["label"].tolist() == ["kept"]
    assert unloaded(10, 20).excluded["reason"].tolist() == ["unknown: months of its table were never loaded"]


def test_costs_are_added_up_over_the_window_and_those_before_it_stay_out():
    tables = care((0, "visit", 5.0, None), (1, "visit", 10.5, None), (90, "lab_test", 20.0, None))
    assert label(COST, tables) == 30.5
    assert label(COST, care()) == 0.0


def test_a_sum_with_a_missing_value_is_unknown_not_smaller():
    labels = labelled(COST, care((1, "visit", 10.0, None), (2, "visit", None, None)))
    assert labels.labelled_count == 0
    assert labels.excluded["reason"].tolist() == ["unknown: a row in the window has no value"]
    assert labels.attrition.set_index("criterion").loc["outcome_observed", "unknown"] == 1


def test_a_number_needs_the_whole_window_whatever_was_seen():
    spec = scope(COST)
    short = cohort(observed=INDEX + pd.Timedelta(days=89))
    labels = label_outcome(spec, short, care((1, "visit", 10.0, None)), data_end=END)
    assert labels.excluded["reason"].tolist() == ["not observed until the window's end"]


def test_events_are_counted():
    events = [(1, "consultation", 1.0, None), (9, "consultation", 1.0, None), (9, "lab_test", 1.0, None)]
    assert label(VISITS, care(*events)) == 2.0


@pytest.mark.parametrize(
    ("supplies", "days"),
    [
        ([(1, 30), (61, 30)], 60),
        # The second begins when the first is used up: days 1 to 60.
        ([(1, 30), (16, 30)], 60),
        # Ten days are left over at the window's end.
        ([(71, 30)], 20),
        # Twenty of the days supplied five days before the window are left on day 1: -5 to 24.
        ([(-5, 30)], 24),
        ([(-40, 30)], 0),
        ([], 0),
    ],
)
def test_proportion_of_days_covered_by_hand(supplies, days):
    tables = care(*((day, "prescription", None, supply) for day, supply in supplies))
    assert label(COVERED, tables) == pytest.approx(days / 90)


def test_days_covered_of_several_patients_do_not_mix():
    supplies = pd.DataFrame(
        {"patient": [1, 0, 1], "day": [1, 1, 5], "value": [10.0, 30.0, 10.0]}, index=[7, 8, 9]
    )
    assert days_covered(supplies, (1, 90), 3).tolist() == [30.0, 20.0, 0.0]


@pytest.mark.parametrize(
    ("events", "observed", "expected"),
    [
        ([(30, "switch"), (60, "switch")], 200, 30),
        ([(91, "switch")], 200, -90),
        ([], 40, -40),
        ([], 90, -90),
        # What was seen counts, whenever the follow-up ends.
        ([(30, "switch")], 20, 30),
    ],
)
def test_times_are_days_to_the_event_or_negative_days_without_it(events, observed, expected):
    spec, until = scope(TIME), INDEX + pd.Timedelta(days=observed)
    labels = label_outcome(spec, cohort(observed=until), seen(*events), data_end=END)
    assert labels.frame["label"].tolist() == [expected]
    censored = expected < 0 and expected > -90
    assert (labels.frame["reason"].iloc[0] == "no outcome until the end of follow-up") == censored


def test_nobody_is_labelled_who_was_not_observed_in_the_window():
    labels = label_outcome(scope(TIME), cohort(observed=INDEX), seen(), data_end=END)
    assert labels.excluded["reason"].tolist() == ["not observed on any day of the window"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([(20, "discontinue"), (50, "switch")], -90),
        ([(50, "discontinue"), (20, "switch")], 20),
        ([(20, "discontinue"), (20, "switch")], 20),
    ],
)
def test_behind_a_competing_event_the_patient_stays_at_risk_without_the_event(events, expected):
    assert label(COMPETING, seen(*events)) == expected


def test_a_time_without_any_end_of_follow_up_is_refused():
    nobody = cohort().assign(followup_end=pd.NaT)
    with pytest.raises(CohortInputError, match="no patient of the cohort has an end of follow-up") as caught:
        label_outcome(scope(TIME), nobody, seen(), data_end=END)
    assert caught.value.field == "followup_end"
    assert "last_observation_date" in caught.value.remedy


def test_times_with_few_events_are_refused():
    found = refusal(TIME, [-90.0] * 500 + [30.0] * 9, events_per_feature=10)
    assert "<11 patients with the event of the time to switch" in str(found)
    assert (found.field, found.value) == ("outcome.time_to", "<11")


def test_scoring_patients_have_no_label():
    labels = labelled(COST, care(), data_end="2024-04-01")
    assert labels.scoring["label"].isna().tolist() == [True]


def many(outcome, values):
    """Labels as if ``values`` had been measured."""
    spec = scope(outcome)
    n = len(values)
    tables = care() | seen()
    tables["patient_journeys"] = pd.DataFrame(
        {"patient_journey_id": [f"JP{k}" for k in range(n)], "hcp_id": "H1"}
    )
    labels = label_outcome(spec, cohort(n), tables, data_end=END)
    labels.frame["label"] = pd.array(values, dtype=labels.frame["label"].dtype)
    return labels


def refusal(outcome, values, **minimum):
    spec = scope(outcome, minimum_sample={"labelled": 1, "events_per_feature": 1} | minimum)
    with pytest.raises(ScopeRefused) as caught:
        many(outcome, values).check_sample(spec)
    return caught.value


def test_a_class_of_three_patients_is_refused_by_name():
    found = refusal(CHOICE, ["neither"] * 500 + ["kept"] * 500 + ["switched"] * 3, events_per_feature=10)
    assert "<11 patients in class 'switched'" in str(found)
    assert (found.file, found.field) == ("config/scopes/demo.yaml", "outcome.choice.switched")
    assert found.remedy == "Join it with another class, or name fewer features."
    assert "'kept'" not in str(found)


def test_a_number_with_one_value_is_refused():
    found = refusal(COST, [0.0] * 400)
    assert "every labelled patient has 0 as the sum of cost" in str(found)
    assert (found.field, found.value) == ("outcome.sum", 0.0)
    assert found.remedy.startswith("Check event type")


def test_too_few_patients_for_a_number_are_refused():
    found = refusal(COST, [float(k) for k in range(200)], labelled=300)
    assert "regression needs at least 300" in str(found)
    assert found.field == "minimum_sample.labelled"


def test_metadata_of_each_kind():
    classes = many(CHOICE, ["neither"] * 50 + ["kept"] * 30 + ["switched"] * 20).to_metadata()["classes"]
    assert dict(classes.rows) == {"kept": "30", "switched": "20", "neither": "50"}
    small = many(CHOICE, ["neither"] * 50 + ["kept"] * 47 + ["switched"] * 3).to_metadata()["classes"]
    assert set(dict(small.rows).values()) == {"suppressed"}
    (row,) = many(COST, [0.0] * 50 + [10.0] * 50).to_metadata()["outcome"].rows
    assert row[0] == 5.0
    assert row[-1] == 0.5
    assert many(COST, [0.0, 1.0]).to_metadata()["outcome"] == "suppressed"
    times = many(TIME, [-90.0] * 50 + [30.0] * 20).to_metadata()
    assert (times["with_outcome"], times["without_outcome"]) == ("20", "50")


@pytest.mark.parametrize(
    ("outcome", "problem_type", "words"),
    [
        ({}, "regression", "exactly one of event, choice, sum, count, days_covered, time_to"),
        (COST | VISITS, "regression", "found: sum, count"),
        (COST, "binary_classification", "outcome.sum answers regression only"),
        (CHOICE, "regression", "regression needs outcome.sum or outcome.count or outcome.days_covered"),
        (COST, "causal_inference", "config/causal.yaml"),
        ({"choice": CHOICE["choice"]}, "multiclass_classification", "needs otherwise"),
        (CHOICE | {"otherwise": "kept"}, "multiclass_classification", "named twice"),
        (CHOICE | {"choice": CHOICE["choice"][:1]}, "multiclass_classification", "a single one is an event"),
        (COST | {"otherwise": "none"}, "regression", "names a class of a choice"),
        (COST | {"incomplete_followup": "negative"}, "regression", "part of the window"),
        (TIME | {"incomplete_followup": "exclude"}, "survival", "time without censoring"),
        (COST | {"competing": COMPETING["competing"]}, "regression", "belong to a time_to"),
        (TIME, "regression", "time_to answers survival only"),
        ({"sum": {"table": "treatment_events", "column": "costs"}}, "regression", "Did you mean 'cost'"),
        ({"sum": {"table": "treatment_events", "column": "brand"}}, "regression", "is no number of"),
    ],
)
def test_a_wrong_outcome_is_refused(tmp_path, outcome, problem_type, words):
    document = yaml.safe_load((scope_folder() / "remibrutinib_csu_initiation.yaml").read_text())
    document |= {"problem_type": problem_type, "outcome": outcome, "success_criteria": {}}
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=words):
        ScopeSpec.from_yaml(path)


def test_criteria_belong_to_the_kind_of_question(tmp_path):
    with pytest.raises(ValueError, match="min_auc do not belong to regression"):
        scope(COST, success_criteria={"min_auc": 0.7})
    with pytest.raises(ValueError, match="min_recall do not belong to multiclass"):
        scope(CHOICE, success_criteria={"min_recall": 0.7})


def test_names_in_every_class_are_checked():
    known = KnownNames((), (), (BRAND,), {"outcome_events": ("adherent",), "treatment_events": ()})
    (place, words), *_ = scope_problems(scope(CHOICE), known)
    assert place == ("outcome", "choice", 1, "event_type", 0)
    assert "'switch'" in words


def test_the_shipped_questions_in_words():
    words = read_scope("kisqali_hr_her2_bc_adherence").sentences()
    assert "the proportion of days covered by duration_days of prescription of Kisqali" in words[1]
    assert "which comes first, adherent" in read_scope("fabhalta_pnh_therapy_course").sentences()[1]
