"""Labels: window edges, prior outcomes, follow-up, the closing of the window, and the minimum sample."""

import pandas as pd
import pytest

from e2i_dagster.cohorts import CohortInputError, ScopeRefused, label_outcome
from e2i_dagster.cohorts.outcome import Labels
from e2i_dagster.config.scope import read_scope
from e2i_dagster.errors import VerdictError

INDEX = pd.Timestamp("2024-03-01")
END = "2024-12-31"


def scope(**outcome):
    spec = read_scope("remibrutinib_csu_initiation")
    return spec.model_copy(update={"outcome": spec.outcome.model_copy(update=outcome)})


def cohort(n=1, index=INDEX, observed=END, pending=False):
    keys = [f"P{k}" for k in range(n)]
    return pd.DataFrame(
        {
            "patient_id": keys,
            "patient_journey_id": [f"J{k}" for k in keys],
            "index_date": index,
            "followup_end": pd.Timestamp(observed),
            "pending": pending,
        }
    )


def tables(events, patients=("P0",)):
    rows = [
        {"patient_id": "P0", "event_type": "prescription", "brand": "Remibrutinib", **event}
        for event in events
    ]
    columns = ["patient_id", "event_type", "brand", "event_date"]
    return {
        "treatment_events": pd.DataFrame(rows, columns=columns),
        "patient_journeys": pd.DataFrame({"patient_journey_id": [f"J{p}" for p in patients], "hcp_id": "H1"}),
    }


def label_of(labels: Labels):
    return None if not len(labels.frame) else labels.frame["label"].iloc[0]


@pytest.mark.parametrize(("day", "label"), [(1, 1), (90, 1), (91, 0)])
def test_the_window_is_closed_at_both_ends(day, label):
    event = {"event_date": INDEX + pd.Timedelta(days=day)}
    assert label_of(label_outcome(scope(), cohort(), tables([event]), data_end=END)) == label


@pytest.mark.parametrize("day", [0, -1, -400])
def test_an_outcome_on_the_index_date_or_before_removes_the_patient(day):
    events = [{"event_date": INDEX + pd.Timedelta(days=d)} for d in (day, 5)]
    labels = label_outcome(scope(), cohort(), tables(events), data_end=END)
    assert len(labels.frame) == 0
    assert labels.excluded["reason"].tolist() == ["outcome before the window"]
    assert labels.attrition.set_index("criterion").loc["prior_outcome", "removed"] == 1
    kept = label_outcome(scope(prior_outcome="keep"), cohort(), tables(events), data_end=END)
    assert label_of(kept) == 1


@pytest.mark.parametrize(
    "event", [{"brand": "Kisqali"}, {"brand": None}, {"event_type": "lab_test"}, {"patient_id": "Q"}]
)
def test_other_events_do_not_count(event):
    labels = label_outcome(
        scope(), cohort(), tables([{"event_date": INDEX + pd.Timedelta(days=5)} | event]), data_end=END
    )
    assert label_of(labels) == 0


def test_a_window_and_its_lag_must_be_closed():
    event = {"event_date": INDEX + pd.Timedelta(days=5)}
    closing = INDEX + pd.Timedelta(days=90 + 14)
    labels = label_outcome(scope(), cohort(), tables([event]), data_end=closing.date())
    assert labels.frame["set"].tolist() == ["labelled"]
    labels = label_outcome(
        scope(), cohort(), tables([event]), data_end=(closing - pd.Timedelta(days=1)).date()
    )
    assert labels.frame["set"].tolist() == ["scoring"]
    assert pd.isna(label_of(labels))  # although the outcome was seen: those without it are not known yet
    assert "not closed" in labels.frame["reason"].iloc[0]


def test_pending_patients_are_always_scored():
    labels = label_outcome(scope(), cohort(pending=True), tables([]), data_end=END)
    assert labels.scoring["patient_id"].tolist() == ["P0"]
    assert labels.labelled_count == 0


def test_incomplete_follow_up_is_not_a_negative_unless_it_is_said_to_be():
    short = cohort(observed="2024-04-01")
    labels = label_outcome(scope(), short, tables([]), data_end=END)
    assert len(labels.frame) == 0
    assert labels.excluded["reason"].tolist() == ["not observed until the window's end"]
    assert (
        label_of(label_outcome(scope(incomplete_followup="negative"), short, tables([]), data_end=END)) == 0
    )
    seen = tables([{"event_date": INDEX + pd.Timedelta(days=5)}])
    assert label_of(label_outcome(scope(), short, seen, data_end=END)) == 1


def test_no_outcome_in_a_month_that_was_never_loaded_is_unknown_and_counted_with_its_reason():
    def labelled(*holes, events=(), lookback=0, **outcome):
        days = [tuple((INDEX + pd.Timedelta(days=d)).date() for d in hole) for hole in holes]
        given = {"data_end": END, "unobserved": days, "lookback_days": lookback}
        return label_outcome(scope(**outcome), cohort(), tables(events), **given)

    for outcome in ({}, {"incomplete_followup": "negative"}):
        assert label_of(labelled((91, 120), **outcome)) == 0
        unknown = labelled((90, 120), **outcome)
        assert unknown.excluded["reason"].tolist() == ["unknown: months of its table were never loaded"]
        assert unknown.attrition.set_index("criterion").loc["outcome_observed", "unknown"] == 1
    assert label_of(labelled((20, 40), events=[{"event_date": INDEX + pd.Timedelta(days=5)}])) == 1
    # What came before is judged by the days that the cohort's lookback asks for.
    assert label_of(labelled((-40, -31), lookback=30)) == 0
    prior = labelled((-40, -30), lookback=30)
    assert prior.excluded["reason"].tolist() == [
        "unknown before the window: months of its table were never loaded"
    ]
    assert prior.attrition.set_index("criterion").loc["prior_outcome", ["removed", "unknown"]].tolist() == [
        1,
        1,
    ]
    assert label_of(labelled((-40, -30), lookback=30, prior_outcome="keep")) == 0


def test_follow_up_until_the_last_day_of_the_window_is_complete():
    last = INDEX + pd.Timedelta(days=90)
    for observed, label in ((last, 0), (last - pd.Timedelta(days=1), None)):
        labels = label_outcome(scope(), cohort(observed=observed), tables([]), data_end=END)
        assert label_of(labels) == label


def test_branches_add_up_and_the_frame_has_the_columns_of_the_next_stages():
    frame = pd.concat([cohort(3), cohort(1, pending=True).replace({"P0": "P9", "JP0": "JP9"})])
    given = tables([{"event_date": INDEX + pd.Timedelta(days=5)}], patients=("P0", "P1", "P2", "P9"))
    labels = label_outcome(scope(), frame, given, data_end=END)
    assert labels.frame.columns.tolist() == [
        "patient_id",
        "patient_journey_id",
        "hcp_id",
        "index_date",
        "label",
        "set",
        "reason",
    ]
    assert str(labels.frame["label"].dtype) == "Int64"
    assert labels.attrition["removed"].sum() + labels.labelled_count == labels.start == 4
    assert (labels.labelled_count, labels.positive_count) == (3, 1)
    shown = labels.to_metadata()
    assert shown["with_outcome"] == shown["prevalence"] == "suppressed"


def labelled(positive, negative):
    frame = pd.DataFrame({"label": pd.array([1] * positive + [0] * negative, dtype="Int64")})
    frame["set"], frame["patient_id"] = "labelled", [f"P{n}" for n in frame.index]
    return Labels("demo", INDEX.date(), frame, frame.iloc[:0], pd.DataFrame(), positive + negative)


def test_a_sample_too_small_is_refused_with_every_reason():
    spec = scope()
    labelled(200, 300).check_sample(spec, features=20)
    with pytest.raises(
        ScopeRefused, match="499 labelled patients; binary_classification needs at least 500"
    ) as caught:
        labelled(150, 349).check_sample(spec, features=20)
    assert isinstance(caught.value, VerdictError)
    assert len(caught.value.reasons) == 2
    with pytest.raises(ScopeRefused, match="20 feature"):
        labelled(150, 3_000).check_sample(spec, features=20)
    with pytest.raises(ScopeRefused, match="no labelled patient with the outcome"):
        labelled(0, 600).check_sample(spec)
    with pytest.raises(ScopeRefused, match="<11 labelled"):
        labelled(2, 3).check_sample(spec)


def test_bad_input_is_named():
    with pytest.raises(CohortInputError, match=r"CC_002.*treatment_events, which was not given"):
        label_outcome(scope(), cohort(), {}, data_end=END)
    with pytest.raises(CohortInputError, match=r"CC_004.*twice"):
        label_outcome(scope(), pd.concat([cohort(), cohort()]), tables([]), data_end=END)
    with pytest.raises(CohortInputError, match="nearest: 'event_dat'"):
        given = tables([])
        given["treatment_events"] = given["treatment_events"].rename(columns={"event_date": "event_dat"})
        label_outcome(scope(), cohort(), given, data_end=END)


def test_synthetic_labels_equal_the_extract_column_and_cohorts_have_their_share():
    from e2i_dagster.cohorts import build_cohort, cohort_frame, patient_frame, read_cohort
    from e2i_dagster.config.scope import read_scopes
    from e2i_dagster.synthetic.generate import generate

    raw = generate(n_hcps=500, n_patients=6_000, n_treatments=18_000)
    patients = patient_frame(raw["patient_journeys"], raw["patient_clinical"])
    initiated = raw["patient_journeys"].set_index("patient_journey_id")["treatment_initiated"]
    scopes, _ = read_scopes()
    for spec in (spec for spec in scopes.values() if spec.target == "initiation"):
        built = build_cohort(read_cohort(spec.cohort), patients, data_end=END)
        assert 0.28 < built.eligible_count / 1_500 < 0.42
        assert (built.attrition.loc[built.attrition["type"] != "temporal", "removed"] > 0).all()
        labels = label_outcome(spec, cohort_frame(built), raw, data_end=END)
        found = labels.labelled
        assert (initiated.loc[found["patient_journey_id"]].to_numpy() == found["label"].to_numpy()).all()
        assert 0.25 < labels.prevalence < 0.55


BOTH = ("P0", "P1")


def at_days(*rows):
    """A cohort of (patient, days after INDEX), everybody observed to the end."""
    return pd.concat(
        [
            cohort(1, index=INDEX + pd.Timedelta(days=day)).assign(
                patient_id=patient, patient_journey_id=f"J{patient}"
            )
            for patient, day in rows
        ],
        ignore_index=True,
    )


def test_a_patient_is_labelled_once_for_each_index_date_and_counted_once():
    frame = at_days(("P0", 60), ("P0", 0), ("P1", 0))
    events = [{"event_date": INDEX + pd.Timedelta(days=day)} for day in (80, 140)]
    found = label_outcome(scope(prior_outcome="keep"), frame, tables(events, BOTH), data_end=END)
    # Day 80 lies in both windows.
    assert found.frame[["patient_id", "label"]].to_numpy().tolist() == [["P0", 1], ["P0", 1], ["P1", 0]]
    assert found.frame["index_date"][0] == INDEX
    assert (found.start, found.labelled_count, found.positive_count) == (2, 2, 1)
    assert found.prevalence == pytest.approx(2 / 3)
    # Who had the outcome between two index dates is labelled at the first, not at the second.
    again = label_outcome(
        scope(), at_days(("P0", 0), ("P0", 100), ("P1", 0)), tables(events, BOTH), data_end=END
    )
    assert again.frame["label"].tolist() == [1, 0]
    prior = again.attrition.set_index("criterion").loc["prior_outcome"]
    assert prior[["removed", "remaining", "removed_records", "remaining_records"]].tolist() == [0, 2, 1, 2]


def test_of_open_windows_a_patient_is_scored_at_the_last_index_date():
    frame = at_days(("P0", 280), ("P0", 0), ("P0", 250), ("P1", 260))
    found = label_outcome(scope(), frame, tables([], BOTH), data_end=END)
    assert found.scoring["index_date"].tolist() == [INDEX + pd.Timedelta(days=day) for day in (280, 260)]
    assert found.labelled["index_date"].tolist() == [INDEX]
    assert found.excluded["reason"].tolist() == ["the patient is scored at a later index date"]


def test_numbers_and_times_are_those_of_each_index_date():
    spec = read_scope("kisqali_hr_her2_bc_adherence")
    supply = {
        "event_date": INDEX + pd.Timedelta(days=10),
        "event_type": "prescription",
        "brand": "Kisqali",
        "duration_days": 30,
    }
    given = tables([]) | {"treatment_events": pd.DataFrame([{"patient_id": "P0"} | supply])}
    spec = spec.model_copy(update={"outcome": spec.outcome.model_copy(update={"prior_outcome": "keep"})})
    found = label_outcome(spec, at_days(("P0", 0), ("P0", 20)), given, data_end=END)
    # Days 10 to 39 of the first window of 180 days; days 1 to 19 of the second.
    assert found.frame["label"].tolist() == [pytest.approx(30 / 180), pytest.approx(19 / 180)]


def test_an_index_date_that_a_patient_has_twice_is_refused():
    with pytest.raises(CohortInputError, match=r"1 index date.* occur twice"):
        label_outcome(scope(), at_days(("P0", 0), ("P0", 0)), tables([]), data_end=END)
