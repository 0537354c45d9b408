"""Values as of a day: known answers, windows, nothing from later days, refusals."""

import datetime as dt

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.current_features import feature_views, view_named
from e2i_dagster.config.feature_views import FEATURE_TABLES
from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.features.compute import compute_view
from e2i_dagster.versions.coverage import Coverage
from e2i_dagster.versions.digest import frame_digest

INDEX = dt.date(2024, 1, 10)
AS_OF = dt.date(2024, 1, 9)  # over New Year on purpose
PATIENT = {"patient_id": "P1", "patient_journey_id": "J1", "hcp_id": "H1"}


def before(days: int) -> dt.date:
    """A day that many days before the index date."""
    return INDEX - dt.timedelta(days=days)


def journey(**values):
    return {
        "patient_journey_id": "J1",
        "patient_id": "P1",
        "hcp_id": "H1",
        "journey_start_date": before(300),
        "geographic_region": "south",
    } | values


def treated(days: int, kind: str, **values):
    return PATIENT | {"event_date": before(days), "event_type": kind} | values


def contacted(days: int, **values):
    contact = {"patient_journey_id": "J1", "hcp_id": "H1", "engagement_date": before(days)}
    return contact | {"channel": "email", "quality_score": 5.0, "duration_minutes": 10.0} | values


def one(view: str, tables, **keys):
    keys = keys or {"patient_id": "P1"}
    return compute_view(view, pd.DataFrame([keys | {"as_of": AS_OF}]), tables).iloc[0]


def test_patient_features_known_answers(hand_written):
    tables = hand_written(
        patient_journeys=[journey(age_at_diagnosis=44, gender="F", disease_severity=6.5, academic_hcp=1)],
        treatment_events=[
            treated(100, "diagnosis"),
            treated(40, "diagnosis"),
            treated(30, "prescription", event_subtype="switch"),
            treated(20, "consultation"),
            treated(400, "hospitalization"),
            treated(12, "lab_test"),
            treated(11, "lab_test"),
            treated(3, "lab_test"),
            treated(0, "hospitalization"),
        ],
    )
    found = one("patient_features", tables)
    assert found["event_timestamp"] == pd.Timestamp("2024-01-09 23:59:59.999999", tz="UTC")
    assert found[["age_at_diagnosis", "gender", "disease_severity", "academic_hcp"]].tolist() == [
        44,
        "F",
        6.5,
        1,
    ]
    assert found["days_since_diagnosis"] == 99
    assert found["treatment_count"] == 7
    assert found[["prior_prescriptions", "prior_consultations", "prior_lab_tests"]].tolist() == [1, 1, 3]
    assert found["days_since_last_event"] == 2
    # The switch and the three tests; the first hospitalization is too old, the second is on the index day.
    assert found["risk_factors"] == 2


def test_engagement_windows_are_closed_at_both_ends(hand_written):
    tables = hand_written(
        patient_journeys=[journey()],
        engagement_events=[
            contacted(181, quality_score=9.9, channel="portal"),
            contacted(180, quality_score=7.0, channel="portal"),
            contacted(91, quality_score=None, channel="portal"),
            contacted(90, quality_score=6.0),
            contacted(1, quality_score=2.0),
            contacted(0, quality_score=10.0),
        ],
    )
    found = one("engagement_features", tables)
    assert found["recent_touches"] == 2
    assert found["best_contact_quality"] == 7.0
    assert found["mean_contact_quality"] == 5.0
    assert found["contact_minutes"] == 40.0
    assert found["days_since_last_contact"] == 0
    # Two by either; the e-mail was the last.
    assert found["channel_preferences"] == "email"


def test_equally_used_channels_are_decided_by_the_last_use_then_by_name(hand_written):
    contacts = [contacted(5, channel="portal"), contacted(4, channel="email")]
    tables = hand_written(patient_journeys=[journey()], engagement_events=contacts)
    assert one("engagement_features", tables)["channel_preferences"] == "email"
    same_day = [contacted(5, channel="portal"), contacted(5, channel="email")]
    tables = hand_written(patient_journeys=[journey()], engagement_events=same_day)
    assert one("engagement_features", tables)["channel_preferences"] == "email"


def test_triggers_count_until_the_last_instant_before_the_index_day(hand_written):
    midnight = pd.Timestamp(INDEX, tz="UTC")
    raised = [midnight - pd.Timedelta(microseconds=1), midnight, midnight - pd.Timedelta(days=180, seconds=1)]
    tables = hand_written(
        patient_journeys=[journey()],
        triggers=[
            {"patient_id": "P1", "trigger_timestamp": stamp, "priority": "high", "confidence_score": 0.5}
            for stamp in raised
        ],
    )
    found = one("trigger_features", tables)
    assert found["triggers_180d"] == found["urgent_triggers_180d"] == 1
    assert found["trigger_confidence"] == 0.5
    assert found["days_since_last_trigger"] == 0


def test_hcp_features_known_answers(hand_written):
    tables = hand_written(
        hcp_profiles=[{"hcp_id": "H1", "specialty": "allergist", "practice_type": "solo"}, {"hcp_id": "H2"}],
        patient_journeys=[
            journey(),
            journey(patient_journey_id="J2", patient_id="P2", journey_start_date=before(400)),
            journey(patient_journey_id="J3", patient_id="P2", journey_start_date=before(1)),
            journey(patient_journey_id="J4", patient_id="P4", journey_start_date=before(0)),
        ],
        engagement_events=[contacted(100), contacted(2), contacted(3, patient_journey_id=None)],
        treatment_events=[treated(180, "prescription"), treated(181, "prescription"), treated(2, "lab_test")],
    )
    found = one("hcp_features", tables, hcp_id="H1")
    assert found[["specialty", "practice_type"]].tolist() == ["allergist", "solo"]
    # J2 began 400 days before, J4 on the index day.
    assert found[["patient_volume", "hcp_contacts_90d", "engagement_rate"]].tolist() == [2, 2, 1.5]
    assert found[["hcp_prescriptions_180d", "prescriptions_per_patient_180d"]].tolist() == [1, 1.0]
    without = one("hcp_features", tables, hcp_id="H2")
    assert without["patient_volume"] == 0
    assert pd.isna(without["engagement_rate"])
    assert (
        one("hcp_features", tables, hcp_id="H9")[list(view_named("hcp_features").feature_names)].isna().all()
    )


def test_market_features_known_answers(hand_written):
    script = {"event_type": "prescription"}
    tables = hand_written(
        patient_journeys=[journey(), journey(patient_journey_id="J2", geographic_region="west")],
        treatment_events=[
            PATIENT | script | {"event_date": before(90), "brand": "Remibrutinib"},
            PATIENT | script | {"event_date": before(1), "brand": "Remibrutinib"},
            PATIENT | script | {"event_date": before(2), "brand": "competitor"},
            PATIENT | script | {"event_date": before(91), "brand": "Remibrutinib"},
            PATIENT | script | {"event_date": before(0), "brand": "Remibrutinib"},
            {"patient_journey_id": "J2", "event_date": before(5), "brand": "Remibrutinib"} | script,
        ],
        engagement_events=[contacted(7, brand="Remibrutinib"), contacted(7, brand="Fabhalta")],
        business_metrics=[
            {
                "metric_id": str(days),
                "metric_date": before(days),
                "metric_type": "market_share",
                "value": value,
            }
            | {"brand": "Remibrutinib", "region": "south"}
            for days, value in ((50, 0.2), (5, 0.3), (0, 0.9))
        ],
    )
    found = one("market_features", tables, brand="Remibrutinib", region="south")
    assert found["brand_growth_90d"] == 2.0
    assert found["brand_share_90d"] == pytest.approx(2 / 3, abs=1e-9)
    assert found["brand_contacts_per_prescription_90d"] == 0.5
    assert found["reported_market_share"] == 0.3


def test_the_named_journey_gives_the_static_columns_else_the_one_begun_last(hand_written):
    tables = hand_written(
        patient_journeys=[
            journey(disease_severity=1.0, journey_start_date=before(500)),
            journey(patient_journey_id="J2", disease_severity=2.0, journey_start_date=before(20)),
            journey(patient_journey_id="J3", disease_severity=3.0, journey_start_date=INDEX),
        ]
    )
    assert one("patient_features", tables)["disease_severity"] == 2.0
    assert (
        one("patient_features", tables, patient_id="P1", patient_journey_id="J1")["disease_severity"] == 1.0
    )


def test_a_patient_without_events_has_zero_counts_and_an_unknown_one_has_nulls(hand_written):
    tables = hand_written(patient_journeys=[journey()])
    known = one("patient_features", tables)
    assert known[["treatment_count", "risk_factors"]].tolist() == [0, 0]
    assert pd.isna(known["days_since_last_event"])
    assert one("trigger_features", tables)["triggers_180d"] == 0
    assert one("engagement_features", tables)["contact_minutes"] == 0
    for view in ("patient_features", "engagement_features", "trigger_features"):
        unknown = one(view, tables, patient_id="P9")
        assert unknown[list(view_named(view).feature_names)].isna().all()


FOLLOWED = {"patient_journey_id": "PJ" + "0" * 16, "patient_id": "PAT" + "0" * 8, "hcp_id": "HCP00000003"}


@pytest.fixture(scope="module")
def values_without_future(drawn_tables):
    """Entities and, by view, their values from the drawn tables."""
    entities = pd.DataFrame([FOLLOWED | {"brand": "Remibrutinib", "region": "south", "as_of": AS_OF}])
    return entities, {view.name: compute_view(view, entities, drawn_tables) for view in feature_views()}


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.integers(0, 23))
@settings(max_examples=5, deadline=None)
def test_rows_of_the_index_day_and_later_change_nothing(
    hand_written, drawn_tables, values_without_future, offsets, hour
):
    key = FOLLOWED
    days = [INDEX + dt.timedelta(days=offset) for offset in offsets]
    stamp = dt.timedelta(hours=hour)
    planted = hand_written(
        patient_journeys=[
            key | {"patient_journey_id": f"X{n}", "journey_start_date": day, "geographic_region": "south"}
            for n, day in enumerate(days)
        ],
        treatment_events=[
            key | {"event_date": day, "event_type": kind, "brand": "Remibrutinib", "event_subtype": "switch"}
            for day in days
            for kind in ("prescription", "hospitalization", "lab_test", "diagnosis", "procedure")
        ],
        engagement_events=[
            {k: key[k] for k in ("patient_journey_id", "hcp_id")}
            | {"engagement_date": day, "quality_score": 10.0, "channel": "crm", "brand": "Remibrutinib"}
            for day in days
        ],
        triggers=[
            {"patient_id": key["patient_id"], "trigger_timestamp": pd.Timestamp(day, tz="UTC") + stamp}
            for day in days
        ],
        business_metrics=[
            {"metric_id": f"X{n}", "metric_date": day, "metric_type": "market_share", "value": 9.0}
            | {"brand": "Remibrutinib", "region": "south"}
            for n, day in enumerate(days)
        ],
    )
    entities, expected = values_without_future
    with_future = {
        name: pd.DataFrame(
            [*frame.to_dict("records"), *planted[name].to_dict("records")], columns=frame.columns
        )
        for name, frame in drawn_tables.items()
    }
    for view in feature_views():
        pd.testing.assert_frame_equal(compute_view(view, entities, with_future), expected[view.name])


def test_order_of_rows_does_not_matter_and_inputs_stay_as_they_were(drawn_tables, cohort):
    entities = cohort.assign(as_of=cohort["index_date"] - pd.Timedelta(days=1))
    copies = {name: frame.copy() for name, frame in drawn_tables.items()}
    shuffled = {name: frame.sample(frac=1, random_state=3) for name, frame in drawn_tables.items()}
    for view in ("patient_features", "engagement_features", "trigger_features"):
        found = compute_view(view, entities, drawn_tables)
        assert found["patient_id"].tolist() == cohort["patient_id"].tolist()
        assert str(found["event_timestamp"].dtype) == "datetime64[us, UTC]"
        assert frame_digest(found) == frame_digest(compute_view(view, entities, shuffled))
    for name, frame in copies.items():
        pd.testing.assert_frame_equal(drawn_tables[name], frame)


def test_canonical_and_plain_dtypes_give_the_same_values(drawn_tables, cohort):
    entities = cohort.assign(as_of=cohort["index_date"] - pd.Timedelta(days=1))
    typed = {name: frame.copy() for name, frame in drawn_tables.items()}
    typed["treatment_events"]["event_date"] = pd.to_datetime(typed["treatment_events"]["event_date"])
    typed["treatment_events"]["event_type"] = typed["treatment_events"]["event_type"].astype(
        "string[pyarrow]"
    )
    typed["patient_journeys"]["age_at_diagnosis"] = typed["patient_journeys"]["age_at_diagnosis"].astype(
        "Int64"
    )
    pd.testing.assert_frame_equal(
        compute_view("patient_features", entities, typed),
        compute_view("patient_features", entities, drawn_tables),
    )


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([{"patient_id": "P1"}], "lack as_of"),
        ([{"patient_id": "P1", "as_of": AS_OF}] * 2, "1 entities repeat"),
        ([{"patient_id": None, "as_of": AS_OF}], "1 entities have no value"),
    ],
)
def test_wrong_entities_are_refused(hand_written, entities, message):
    with pytest.raises(InputError, match=message):
        compute_view("patient_features", pd.DataFrame(entities), hand_written())


def test_missing_tables_columns_and_views_are_named(hand_written):
    entities = pd.DataFrame([{"patient_id": "P1", "as_of": AS_OF}])
    tables = hand_written(patient_journeys=[journey()])
    with pytest.raises(InputError, match="reads the table treatment_events"):
        compute_view("patient_features", entities, {"patient_journeys": tables["patient_journeys"]})
    with pytest.raises(InputError, match="event_type are missing"):
        broken = tables | {"treatment_events": tables["treatment_events"].drop(columns="event_type")}
        compute_view("patient_features", entities, broken)
    with pytest.raises(InputError, match=r"treatment_events\.event_date.*cannot be read"):
        wrong = tables["treatment_events"].copy()
        wrong.loc[0] = None
        wrong["event_date"] = "soon"
        compute_view("patient_features", entities, tables | {"treatment_events": wrong})
    with pytest.raises(ConfigError, match="Expected one of: engagement_features"):
        view_named("shoe_features")


def since(start, *unobserved):
    return dict.fromkeys(FEATURE_TABLES, Coverage(start, unobserved=unobserved))


@pytest.mark.parametrize(
    ("hole", "recent", "quality"),
    [((89, 89), True, True), ((90, 90), False, True), ((179, 170), False, True), ((180, 180), False, False)],
)
def test_days_that_were_never_loaded_make_their_windows_unknown_and_no_others(
    hand_written, hole, recent, quality
):
    tables = hand_written(
        patient_journeys=[journey(age_at_diagnosis=44)], engagement_events=[contacted(30, quality_score=7.0)]
    )
    asked = pd.DataFrame([{"patient_id": "P1", "as_of": AS_OF}])
    days = tuple(AS_OF - dt.timedelta(days=ahead) for ahead in hole)
    covered = since(AS_OF - dt.timedelta(days=400), days)
    found = compute_view("engagement_features", asked, tables, covered=covered).iloc[0]
    assert pd.isna(found["recent_touches"]) == recent and pd.isna(found["best_contact_quality"]) == quality
    # The hole is part of the record: since when there was no contact is unknown.
    assert pd.isna(found["days_since_last_contact"])
    patient = compute_view("patient_features", asked, tables, covered=covered).iloc[0]
    assert patient["age_at_diagnosis"] == 44 and pd.isna(patient["treatment_count"]) == quality
    # Of another table than the one with the hole nothing is lost.
    other = compute_view(
        "patient_features", asked, tables, covered={"engagement_events": covered["engagement_events"]}
    )
    assert other.iloc[0]["treatment_count"] == 0


def test_a_feature_over_days_that_are_not_kept_is_missing_and_not_zero(hand_written):
    tables = hand_written(patient_journeys=[journey()], engagement_events=[contacted(30)])
    asked = pd.DataFrame([{"patient_id": "P1", "as_of": AS_OF}])

    def values(start):
        return compute_view("engagement_features", asked, tables, covered=since(start)).iloc[0]

    # The window of 90 days begins on its first kept day; a day later one day of it is unknown.
    whole = values(AS_OF - dt.timedelta(days=89))
    assert whole["recent_touches"] == 1
    assert pd.isna(whole["mean_contact_quality"]) and pd.isna(whole["channel_preferences"])
    cut = values(AS_OF - dt.timedelta(days=88))
    assert pd.isna(cut["recent_touches"]) and cut["days_since_last_contact"] == 29
    everything = values(AS_OF - dt.timedelta(days=400))
    assert everything["contact_minutes"] == 10 and everything["channel_preferences"] == "email"


def test_what_is_on_record_begins_on_the_first_kept_day(hand_written):
    tables = hand_written(patient_journeys=[journey()], engagement_events=[contacted(30), contacted(3)])
    asked = pd.DataFrame([{"patient_id": "P1", "as_of": AS_OF}])
    # Rows before it are no part of the record, whoever hands them over.
    contacts = compute_view(
        "engagement_features", asked, tables, covered=since(AS_OF - dt.timedelta(days=10))
    ).iloc[0]
    alone = hand_written(patient_journeys=[journey()], engagement_events=[contacted(3)])
    assert contacts["days_since_last_contact"] == 2
    pd.testing.assert_series_equal(
        contacts,
        compute_view("engagement_features", asked, alone, covered=since(AS_OF - dt.timedelta(days=10))).iloc[
            0
        ],
    )


def test_a_row_counts_from_its_arrival_and_not_from_its_date(hand_written):
    """Of four prescriptions before the index date, two are known the day before it."""
    night = pd.Timestamp(AS_OF, tz="UTC") + pd.Timedelta(hours=23)
    rows = [
        treated(30, "prescription", source_timestamp=night),
        treated(30, "prescription", source_timestamp=night + pd.Timedelta(hours=1)),
        # Stamped before its date: a row is never known before it happened.
        treated(3, "prescription", source_timestamp=pd.Timestamp("2023-06-01", tz="UTC")),
        treated(-1, "prescription", source_timestamp=pd.Timestamp("2023-06-01", tz="UTC")),
    ]
    tables = hand_written(
        hcp_profiles=[{"hcp_id": "H1"}], patient_journeys=[journey()], treatment_events=rows
    )
    asked = {"patient_id": "P1"}
    assert one("patient_features", tables, **asked)["prior_prescriptions"] == 2
    assert one("hcp_features", tables, hcp_id="H1")["hcp_prescriptions_180d"] == 2
    # A live look the day after the index date has what has arrived since.
    later = pd.DataFrame([asked | {"as_of": INDEX + dt.timedelta(days=1)}])
    assert compute_view("patient_features", later, tables).iloc[0]["prior_prescriptions"] == 4


@pytest.mark.parametrize(("days", "touches"), [(14, 0), (15, 1)])
def test_a_row_without_arrival_time_is_known_after_the_source_lag(hand_written, days, touches):
    tables = hand_written(patient_journeys=[journey()], engagement_events=[contacted(days)])
    asked = pd.DataFrame([{"patient_id": "P1", "as_of": AS_OF}])
    seen = compute_view("engagement_features", asked, tables, source_lag_days=14).iloc[0]
    assert seen["recent_touches"] == touches
    assert compute_view("engagement_features", asked, tables).iloc[0]["recent_touches"] == 1
