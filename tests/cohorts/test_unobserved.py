"""Days of which no rows are kept are unknown: for a lookback, a washout, and any absence, on every engine."""

from datetime import date, timedelta

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts import build_cohort, count_cohort, write_cohort
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.versions.coverage import Coverage

WASHOUT = {"washout": {"event": "rx", "days": 180}}
PRESENT = {"has_event": {"event": "rx", "within": [-180, -1]}}


def definition(*criteria, lookback=180):
    return CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}, *criteria],
            "temporal_requirements": {"lookback_days": lookback, "followup_days": 0},
        }
    )


def patients(**index_dates):
    return pd.DataFrame(
        {
            "patient_id": list(index_dates),
            "patient_journey_id": [f"J{name}" for name in index_dates],
            "age": 40,
            "diagnosis_date": pd.to_datetime(list(index_dates.values())),
            "first_observation_date": pd.Timestamp("2020-01-01"),
            "last_observation_date": pd.Timestamp("2024-12-31"),
        }
    )


#: 180 days before the first lie in full after 2022-01-01; of the second one day does not.
FRAME = patients(whole="2022-06-30", reaches="2022-06-29", late="2023-06-01")


@pytest.mark.parametrize("engine", ["pandas", "duckdb", "file"])
def test_a_lookback_before_the_kept_days_is_unknown(engine, tmp_path):
    rules = definition()
    known = {"data_start": "2022-01-01", "data_end": "2024-12-31"}
    if engine == "file":
        path = tmp_path / "patients.parquet"
        FRAME.to_parquet(path)
        attrition = write_cohort(rules, path, folder=tmp_path / "written", **known)
        kept = set(pd.read_parquet(tmp_path / "written" / "eligible.parquet")["patient_id"])
        pd.testing.assert_frame_equal(attrition, count_cohort(rules, path, **known))
    else:
        built = build_cohort(rules, FRAME, engine=engine, **known)
        kept, attrition = set(built.eligible["patient_id"]), built.attrition
    assert kept == {"whole", "late"}
    lookback = attrition.set_index("criterion").loc["lookback"]
    assert (lookback["removed"], lookback["unknown"]) == (1, 1)
    # Without a first kept day the dates of the patient frame alone decide, as before.
    assert len(build_cohort(rules, FRAME, data_end="2024-12-31").eligible) == 3


@pytest.mark.parametrize(
    ("criterion", "kept"),
    [(WASHOUT, {"whole"}), (PRESENT, {"late", "seen"})],
    ids=["absence", "presence"],
)
def test_a_washout_over_days_that_are_not_kept_is_unknown_and_presence_is_proved(criterion, kept):
    frame = patients(whole="2022-06-30", reaches="2022-06-29", seen="2022-06-29", late="2023-06-01")
    events = pd.DataFrame(
        {
            "patient_id": ["late", "seen"],
            "event_type": "rx",
            "event_date": pd.to_datetime(["2023-05-01", "2022-03-01"]),
        }
    )
    built = build_cohort(
        definition(criterion, lookback=0), frame, events, data_start="2022-01-01", data_end="2024-12-31"
    )
    assert set(built.eligible["patient_id"]) == kept
    assert built.attrition["unknown"].sum() == 1


def said(criterion, frame, events, *, lookback=180, **times):
    """Patient -> True, False, or None for unknown: what the rule on events says, alone."""
    rules = definition({**criterion, "name": "asked", "on_unknown": "include"}, lookback=lookback)
    times = {"lookback_days": lookback, "followup_days": 0, **times}
    rules = CohortDefinition.model_validate(rules.model_dump(mode="json") | {"temporal_requirements": times})
    built = build_cohort(rules, frame, events, data_start="2022-01-01", data_end="2024-12-31")
    bit = next(rule.bit for rule in rules.rules if rule.name == "asked")
    reasons = built.reasons.set_index("patient_id")
    return {
        name: None if row["unknown_mask"] & bit else not row["mask"] & bit for name, row in reasons.iterrows()
    }


def fills(**days):
    rows = [(name, day) for name, of_patient in days.items() for day in of_patient]
    return pd.DataFrame(
        {
            "patient_id": [name for name, _ in rows],
            "event_type": "rx",
            "event_date": pd.to_datetime([day for _, day in rows]),
        }
    )


#: 180 days of lookback are kept before `long`, 179 before `short`.
LONG, SHORT = {"long": "2022-06-30"}, {"short": "2022-06-29"}


@pytest.mark.parametrize(
    "absence",
    [
        {"no_event": {"event": "rx", "within": [None, -1]}},
        {"has_event": {"event": "rx", "within": [None, -1], "at_most": 0}},
    ],
    ids=["no_event", "at_most"],
)
def test_never_before_is_said_only_of_who_was_observed_for_the_lookback(absence):
    frame = patients(**LONG, **SHORT, had="2022-06-29")
    assert said(absence, frame, fills(had=["2022-02-01"])) == {"long": True, "short": None, "had": False}


def test_no_prior_outcome_is_unknown_of_who_was_observed_for_less_than_the_lookback():
    frame = patients(**LONG, **SHORT, had="2022-06-29", before="2022-06-29")
    # The fill of `before` lies outside the kept days: it is no part of the data.
    events = fills(had=["2022-02-01"], before=["2021-12-31"])
    asked = {"prior_outcome": {"event": "rx"}}
    assert said(asked, frame, events) == {"long": False, "short": None, "had": True, "before": None}


def test_the_first_event_of_all_needs_its_own_observed_lookback():
    frame = patients(first="2023-06-01", early="2022-09-01", late="2023-06-01", none="2023-06-01")
    events = fills(
        first=["2023-05-01"],
        # 100 days of kept time before it: an earlier one may have been.
        early=["2022-04-11", "2022-08-01"],
        late=["2022-11-30", "2023-05-01"],
    )
    first = {"has_event": {"event": "rx", "within": [-180, -1], "occurrence": "first"}}
    assert said(first, frame, events) == {"first": True, "early": None, "late": False, "none": False}
    assert said(first, frame, events, lookback=100)["early"] is True
    not_first = {"no_event": {"event": "rx", "within": [-180, -1], "occurrence": "first"}}
    assert said(not_first, frame, events) == {"first": False, "early": None, "late": True, "none": True}


def test_a_first_event_that_lies_before_the_window_is_no_doubt_not_in_it():
    frame = patients(reaches="2022-03-01")
    first = {"has_event": {"event": "rx", "within": [-30, -1], "occurrence": "first"}}
    assert said(first, frame, fills(reaches=["2022-01-05"])) == {"reaches": False}


def test_the_last_event_of_all_needs_the_follow_up_after_it():
    frame = patients(last="2024-06-01", open="2024-06-01", later="2024-06-01")
    events = fills(last=["2024-06-10"], open=["2024-11-01"], later=["2024-06-10", "2024-12-20"])
    last = {"has_event": {"event": "rx", "within": [0, 180], "occurrence": "last"}}
    found = said(last, frame, events, followup_days=90)
    assert found == {"last": True, "open": None, "later": False}


def test_never_after_is_said_only_of_who_was_followed():
    frame = patients(followed="2024-06-01", pending="2024-12-01")
    never = {"no_event": {"event": "rx", "within": [1, None]}}
    found = said(never, frame, fills(), followup_days=90)
    assert found == {"followed": True, "pending": None}


def test_the_definition_says_what_first_and_open_windows_mean():
    words = " ".join(
        definition(
            {"prior_outcome": {"event": "rx"}},
            {"has_event": {"event": "rx", "within": [-30, 0], "occurrence": "first"}},
            lookback=200,
        ).sentences()
    )
    assert "The window begins where observation began" in words
    assert "First means since observation began; it is unknown where fewer than 200 days before" in words


DAY = date(2023, 1, 1)
windows = st.tuples(st.integers(-8, 8), st.integers(0, 6)).map(lambda t: [t[0], t[0] + t[1]])
asked = st.one_of(
    st.builds(
        lambda w, n: {"has_event": {"event": "rx", "within": w, "at_least": n}}, windows, st.integers(1, 3)
    ),
    st.builds(
        lambda w, n: {"has_event": {"event": "rx", "within": w, "at_most": n}}, windows, st.integers(0, 2)
    ),
    st.builds(lambda n: {"washout": {"event": "rx", "days": n}}, st.integers(1, 8)),
    st.builds(lambda w, n: {"gap": {"event": "rx", "within": w, "days": n}}, windows, st.integers(1, 4)),
)
near = st.integers(-12, 12).map(lambda n: DAY + timedelta(n))


@pytest.mark.parametrize("followup", ["require", "censor"])
def test_a_month_that_was_never_loaded_is_unknown_for_lookback_absence_and_follow_up(followup):
    hole = (date(2023, 3, 1), date(2023, 3, 31))
    frame = patients(
        before="2023-02-01", inside="2023-03-10", after="2023-04-01", whole="2023-10-01", seen="2023-04-01"
    )
    events = fills(seen=["2023-03-20"], before=["2023-01-15"])
    rules = definition({**PRESENT, "name": "asked", "on_unknown": "include"})
    times = {"lookback_days": 180, "followup_days": 60, "followup": followup}
    rules = CohortDefinition.model_validate(rules.model_dump(mode="json") | {"temporal_requirements": times})
    built = build_cohort(
        rules, frame, events, data_start="2022-01-01", data_end="2024-12-31", unobserved=(hole,)
    )
    bits = {rule.name: rule.bit for rule in rules.rules}
    unknown = built.reasons.set_index("patient_id")["unknown_mask"]

    def of(rule):
        return {name for name, mask in unknown.items() if mask & bits[rule]}

    assert of("lookback") == {"inside", "after", "seen"}
    assert of("asked") == {"inside", "after"}
    assert of("followup") == ({"before", "inside"} if followup == "require" else {"inside"})
    # Unknown is counted where it removes: `inside` and `after`, `seen` at the lookback; `before` at its follow-up.
    attrition = built.attrition.set_index("criterion")["unknown"]
    assert (attrition["lookback"], attrition["followup"]) == (3, int(followup == "require"))
    ends = build_cohort(
        definition(lookback=0).model_copy(update={"temporal_requirements": rules.temporal_requirements}),
        frame, unobserved=(hole,), data_end="2024-12-31",
    ).eligible.set_index("patient_id")["followup_end"]  # fmt: skip
    assert ends["whole"] == pd.Timestamp("2024-12-31")
    assert ("before" in ends) == (followup == "censor")
    if followup == "censor":
        assert ends["before"] == pd.Timestamp("2023-02-28")


def test_months_that_were_never_loaded_shorten_or_interrupt_what_is_covered():
    months = [f"2024-{month:02d}" for month in range(1, 9)]
    found = Coverage.of_months(months, {"2024-02", "2024-03", "2024-06"})
    assert (found.start, found.end) == (date(2024, 2, 1), date(2024, 6, 30))
    assert found.unobserved == ((date(2024, 4, 1), date(2024, 5, 31)),)
    nothing = Coverage.of_months(months, ())
    assert nothing.unobserved == ((date(2024, 1, 1), date(2024, 8, 31)),)


@settings(max_examples=25, deadline=None)
@given(asked, st.lists(near, min_size=1, max_size=4), st.lists(near, max_size=8), near, st.integers(0, 12))
def test_fewer_kept_days_make_answers_unknown_and_never_other_answers(
    criterion, index, happened, start, length
):
    frame = patients(**{f"p{n}": day for n, day in enumerate(index)})
    events = fills(**{f"p{n}": happened for n in range(len(index))})
    rules = definition({**criterion, "name": "asked", "on_unknown": "include"}, lookback=0)
    bit = next(rule.bit for rule in rules.rules if rule.name == "asked")
    whole, part = (
        build_cohort(rules, frame, events, **kept).reasons
        for kept in ({}, {"data_start": start, "data_end": start + timedelta(length)})
    )
    assert not (whole["unknown_mask"] & bit).any()
    known = (part["unknown_mask"] & bit) == 0
    assert ((part["mask"] & bit) == (whole["mask"] & bit))[known].all()
