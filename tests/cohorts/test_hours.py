"""Windows in hours, and windows that end with an event: known answers, and every engine against a plain evaluation."""

from datetime import date, datetime, timedelta

import pandas as pd
import pytest
from hours_by_hand import hours_truth
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts import CohortInputError, build_cohort
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.policy_files.environment import CHECKOUT

DAY = date(2024, 3, 1)
TYPES = ("admission", "discharge", "death")


def definition(rule: dict, **more) -> CohortDefinition:
    return CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "index": {"event": "admission"},
            "inclusion_criteria": [{"name": "asked", "on_unknown": "include", **rule}],
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0, "followup": "censor"},
            **more,
        }
    )


def at(hours: float | None, kind: str, person: str = "A") -> dict:
    """An event so many hours after midnight of the first day; None: on that day, at no known time."""
    moment = None if hours is None else datetime(2024, 3, 1) + timedelta(hours=hours)
    return {
        "patient_id": person,
        "event_type": kind,
        "event_date": DAY if moment is None else moment.date(),
        "event_time": moment,
    }


def frames(events: list[dict], people=("A",), first=DAY - timedelta(30), last=DAY + timedelta(60)):
    patients = pd.DataFrame(
        {
            "patient_id": people,
            "patient_journey_id": [f"J{one}" for one in people],
            "first_observation_date": pd.to_datetime([first] * len(people)).astype("datetime64[us]"),
            "last_observation_date": pd.to_datetime([last] * len(people)).astype("datetime64[us]"),
        }
    )
    table = pd.DataFrame(events, columns=["patient_id", "event_type", "event_date", "event_time"])
    for name in table:
        table[name] = (
            table[name].astype("string[pyarrow]")
            if name in ("patient_id", "event_type")
            else pd.to_datetime(table[name]).astype("datetime64[us]")
        )
    return patients, table


def answer(built: CohortDefinition, patients, events) -> dict[str, bool | None]:
    """Truth of the rule ``asked`` by patient; None: unknown."""
    reasons = build_cohort(built, patients, events).reasons
    bit = next(rule.bit for rule in built.rules if rule.name == "asked")
    found = {}
    for row in reasons.to_dict("records"):
        unknown = bool(row["unknown_mask"] & bit)
        found[row["patient_id"]] = None if unknown else not row["mask"] & bit
    return found


@pytest.mark.parametrize(
    ("rule", "events", "expected"),
    [
        # Admitted at 10:00; 24 h later is 10:00 of the next day, both ends included.
        ({"event": "death", "hours": [0, 24]}, [at(10, "admission"), at(34, "death")], True),
        ({"event": "death", "hours": [0, 24]}, [at(10, "admission"), at(34.001, "death")], False),
        ({"event": "death", "hours": [0, 24], "ends": "[)"}, [at(10, "admission"), at(34, "death")], False),
        ({"event": "death", "hours": [24, 48], "ends": "(]"}, [at(10, "admission"), at(34, "death")], False),
        # By the day alone both would be the same.
        ({"event": "death", "hours": [48, None]}, [at(10, "admission"), at(57.9, "death")], False),
        # The stay ends with the discharge; what comes later is no death in hospital.
        (
            {"event": "death", "hours": [24, None], "until": {"event": "discharge"}},
            [at(10, "admission"), at(90, "discharge"), at(120, "death")],
            False,
        ),
        (
            {"event": "death", "hours": [24, None], "until": {"event": ["discharge", "death"]}},
            [at(10, "admission"), at(80, "death"), at(90, "discharge")],
            True,
        ),
        # Nobody saw the stay end.
        (
            {"event": "death", "hours": [24, None], "until": {"event": "discharge"}},
            [at(10, "admission"), at(80, "death")],
            None,
        ),
        # Without a time it may lie before or after the bound, unless its whole day is inside.
        ({"event": "death", "hours": [0, 5]}, [at(10, "admission"), at(None, "death")], None),
        ({"event": "death", "hours": [-10, 14]}, [at(10, "admission"), at(None, "death")], True),
        ({"event": "death", "hours": [15, 50]}, [at(10, "admission"), at(None, "death")], False),
        # The admission itself has no time.
        ({"event": "death", "hours": [0, 5]}, [at(None, "admission"), at(12, "death")], None),
    ],
)
def test_known_answers(rule, events, expected):
    assert answer(definition({"has_event": rule}), *frames(events)) == {"A": expected}


def test_an_end_that_may_have_been_missed_makes_the_window_unknown():
    rule = {"has_event": {"event": "death", "hours": [0, None], "until": {"event": ["discharge", "death"]}}}
    events = [at(10, "admission"), at(200, "death")]
    assert answer(definition(rule), *frames(events)) == {"A": True}
    seen = frames(events, last=DAY + timedelta(3))
    # Observation stopped in between: a discharge before the death may be missing.
    assert answer(definition(rule), *seen) == {"A": None}
    # In a window of hours alone, what was seen is true.
    hours = {"has_event": {"event": "death", "hours": [0, 240]}}
    assert answer(definition(hours), *seen) == {"A": True}


events = st.lists(
    st.builds(
        lambda day, second, kind, person, timed: {
            "patient_id": person,
            "event_type": kind,
            "event_date": DAY + timedelta(day),
            "event_time": datetime(2024, 3, 1) + timedelta(days=day, seconds=second) if timed else None,
        },
        st.integers(-2, 4),
        st.sampled_from([0, 1, 3_599, 36_000, 43_200, 86_399]),
        st.sampled_from(TYPES),
        st.sampled_from("AB"),
        st.integers(0, 9).map(bool),
    ),
    max_size=10,
)
hour = st.one_of(st.none(), st.integers(-30, 60))


@st.composite
def rules(draw):
    body = {
        "event": draw(st.sampled_from([*TYPES, ("death", "discharge")])),
        "hours": [draw(hour), draw(hour)],
        "ends": draw(st.sampled_from(["[]", "[)", "(]", "()"])),
    }
    if draw(st.booleans()):
        body["until"] = {"event": draw(st.sampled_from([*TYPES, ("death", "discharge")]))}
    kind = draw(st.sampled_from(["has_event", "no_event"]))
    if kind == "has_event":
        body |= draw(st.sampled_from([{}, {"at_least": 2}, {"at_most": 1}]))
    try:
        return definition({kind: body})
    except ValueError as error:
        assert "reversed" in str(error)
        reject()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rules(), events, st.integers(-3, 1), st.integers(0, 6))
def test_engines_agree_with_a_plain_evaluation(tmp_path_factory, built, events, first, last):
    observed = (DAY + timedelta(first), DAY + timedelta(last))
    patients, table = frames(events, ("A", "B"), *observed)
    (rule,) = built.inclusion_criteria
    expected = {}
    for person in "AB":
        mine = [event for event in events if event["patient_id"] == person]
        days = [event["event_date"] for event in mine if event["event_type"] == "admission"]
        expected[person] = hours_truth(rule, min(days), "admission", observed, mine) if days else None
    assert answer(built, patients, table) == expected
    folder = tmp_path_factory.mktemp("files")
    patients.to_parquet(folder / "p.parquet")
    table.to_parquet(folder / "e.parquet")
    assert answer(built, folder / "p.parquet", folder / "e.parquet") == expected


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"has_event": {"event": "death", "hours": [5, 1]}}, "reversed: hour 5 is after hour 1"),
        ({"has_event": {"event": "death", "hours": [0, 1], "within": [0, 1]}}, "keep hours or within"),
        ({"has_event": {"event": "death", "until": {"event": "discharge"}}}, "until ends a window in hours"),
        ({"washout": {"event": "death", "hours": [0, 1], "days": 3}}, "washout says its window in days"),
        ({"has_event": {"event": "death", "hours": [0, 1], "occurrence": "first"}}, "are counted"),
    ],
)
def test_what_cannot_be_meant_is_refused(rule, words):
    with pytest.raises(ValueError, match=words):
        definition(rule)


def test_hours_need_a_moment():
    with pytest.raises(ValueError, match="hours count from the moment of an index event"):
        definition({"has_event": {"event": "death", "hours": [0, 24]}}, index=None)
    patients, table = frames([at(10, "admission")])
    built = definition({"has_event": {"event": "death", "hours": [0, 24]}})
    with pytest.raises(CohortInputError, match="event_time"):
        build_cohort(built, patients, table.drop(columns="event_time"))


def test_a_definition_in_days_keeps_its_hash():
    built = definition({"has_event": {"event": "death", "within": [0, 30]}})
    assert "hours" not in str(built.sentences())
    hours = definition({"has_event": {"event": "death", "hours": [0, 720]}})
    assert "from hour 0 to hour 720" in str(hours.sentences())
    assert built.definition_hash == "588d246218507aeb" and hours.definition_hash != built.definition_hash


@pytest.mark.parametrize("name", ["in_hospital_mortality", "readmission_30_days"])
def test_published_tasks_run_and_their_examples_hold(name):
    from e2i_dagster.cohorts.lint import lint

    path = CHECKOUT / "docs" / "examples" / "event_windows" / f"{name}.yaml"
    built = CohortDefinition.from_file(path)
    assert len(built.examples) >= 5
    report = lint(built)
    assert not [one for one in report.findings if one.severity == "error"], report.to_metadata()
