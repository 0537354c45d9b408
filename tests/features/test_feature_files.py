"""Features of a team's own: every calculation with known answers, and files that are refused with their place."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.feature_files import read_feature_file, read_feature_files
from e2i_dagster.config.feature_problems import growing
from e2i_dagster.config.feature_views import FeatureView, source_columns
from e2i_dagster.errors import ConfigError
from e2i_dagster.features.compute import compute_view
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.vocabulary import load_vocabulary
from e2i_dagster.versions.coverage import Coverage

INDEX = dt.date(2024, 1, 10)
JOURNEY = {
    "patient_journey_id": "J1",
    "patient_id": "P1",
    "hcp_id": "H1",
    "journey_start_date": INDEX - dt.timedelta(days=300),
}


def event(days: int, kind: str = "lab_test", **values):
    """An event that many days before the index date."""
    given = {"patient_id": "P1", "patient_journey_id": "J1", "event_type": kind} | values
    return given | {"event_date": INDEX - dt.timedelta(days=days), "treatment_event_id": f"T{days:03d}"}


@pytest.fixture
def view_of(tmp_path):
    """The view of a file with these features."""

    def read(*features: dict, keys=("patient_id",)) -> FeatureView:
        named = [{"name": f"f{n}", "description": "One."} | one for n, one in enumerate(features)]
        content = {"keys": list(keys), "description": "Own.", "features": named}
        (tmp_path / "own.yaml").write_text(json.dumps(content, indent=1))
        return read_feature_file(tmp_path / "own.yaml", load_vocabulary(CHECKOUT / "config"))

    return read


def values(view, tables, **options):
    asked = pd.DataFrame([{"patient_id": "P1", "as_of": INDEX - dt.timedelta(days=1)}])
    return compute_view(view, asked, tables, **options)[list(view.feature_names)].iloc[0].tolist()


def covering(start, *unobserved):
    return {"treatment_events": Coverage(start, unobserved=unobserved)}


WINDOW = {"within": [-100, -1]}
COSTS = [
    event(120, cost=1.0),
    event(100, cost=5.0),
    event(50, cost=2.0),
    event(20, cost=None),
    event(1, cost=8.0),
]
#: Calculation, value over ``COSTS``, value without any row.
CALCULATIONS = [
    ({"count": WINDOW}, 4, 0),
    ({"count": {"within": [-100, 0], "ends": "()"}}, 3, 0),
    ({"count": {"within": [-100, -20]}}, 3, 0),
    ({"any": WINDOW | {"at_least": 5}}, 0, 0),
    ({"any": {"at_least": 5}}, 1, 0),
    ({"distinct": {"column": "event_type"}}, 1, 0),
    ({"sum": WINDOW | {"column": "cost"}}, 15.0, 0.0),
    ({"mean": WINDOW | {"column": "cost"}}, 5.0, None),
    ({"min": WINDOW | {"column": "cost"}}, 2.0, None),
    ({"max": {"column": "cost"}}, 8.0, None),
    ({"first": WINDOW | {"column": "cost"}}, 5.0, None),
    # The last cost that is known: the event 20 days before has none.
    ({"last": {"column": "cost", "within": [-365, -15]}}, 2.0, None),
    ({"days_since": WINDOW}, 0, None),
    ({"days_since": WINDOW | {"occurrence": "first"}}, 99, None),
    ({"days_since": {"within": [-5, -2]}, "on_missing": 999}, 999, 999),
    ({"ratio": [{"count": WINDOW}, {"count": {}}]}, 0.8, None),
    ({"difference": [{"count": {}}, {"count": WINDOW}]}, 1.0, 0.0),
    ({"score": {"of": [{"name": "a", "event": "lab_test", "points": 2, "unless": ["b"]},
                       {"name": "b", "event": "lab_test", "points": 6, "at_least": 4}]}}, 6, 0),
]  # fmt: skip


def test_the_slope_is_that_of_least_squares(view_of, hand_written):
    tables = hand_written(patient_journeys=[JOURNEY], treatment_events=COSTS)
    (found,) = values(view_of({"slope": WINDOW | {"column": "cost"}}), tables)
    assert found == pytest.approx(np.polyfit([-99, -49, 0], [5.0, 2.0, 8.0], 1)[0], abs=1e-9)


def test_every_calculation_has_its_known_answer_and_one_without_rows(view_of, hand_written):
    view = view_of(*(calculation for calculation, _, _ in CALCULATIONS))
    tables = hand_written(patient_journeys=[JOURNEY], treatment_events=[*COSTS, event(0, cost=99.0)])
    assert values(view, tables) == [answer for _, answer, _ in CALCULATIONS]
    empty = [None if pd.isna(one) else one for one in values(view, hand_written(patient_journeys=[JOURNEY]))]
    assert empty == [answer for _, _, answer in CALCULATIONS]
    unknown = hand_written(patient_journeys=[JOURNEY | {"patient_id": "P2"}])
    assert all(pd.isna(one) for one in values(view, unknown))


def test_the_most_frequent_value_and_rows_of_one_day_are_decided_by_rule(view_of, hand_written):
    same_day = [
        event(3, cost=1.0) | {"treatment_event_id": key, "cost": cost}
        for key, cost in (("B", 7.0), ("A", 4.0))
    ]
    view = view_of(
        {"last": {"column": "cost"}}, {"first": {"column": "cost"}}, {"most_frequent": {"column": "brand"}}
    )
    rows = [*same_day, event(9, cost=2.0, brand="x"), event(8, brand="x"), event(1, brand="y")]
    assert values(view, hand_written(patient_journeys=[JOURNEY], treatment_events=rows)) == [4.0, 2.0, "x"]


def test_codes_and_conditions_are_those_of_the_cohort_language(view_of, hand_written):
    view = view_of(
        {"count": {"codes": ["E11.*"]}},
        {"count": {"codes": ["E11"], "descendants": True, "position": "first"}},
        {"count": {"codes": ["00078-0946-61"], "code_system": "ndc"}},
        {"count": {"where": [{"field": "cost", "operator": "between", "value": [2, 4]}]}},
        {"distinct": {"column": "icd_codes", "event": ["diagnosis"]}},
    )
    rows = [
        event(5, "diagnosis", icd_codes='["E11.9", "I10"]', cost=2.0),
        event(6, "diagnosis", icd_codes='["I10", "e119"]', cost=4.0),
        event(7, "prescription", drug_ndc="78-946-61", cost=5.0),
        event(8, "prescription", drug_ndc="0078-0946-61"),
    ]
    tables = hand_written(patient_journeys=[JOURNEY], treatment_events=rows)
    assert values(view, tables) == [2, 1, 1, 2, 2]


def test_a_row_counts_when_it_was_known_and_a_window_before_the_data_is_unknown(view_of, hand_written):
    late = pd.Timestamp(INDEX, tz="UTC") + pd.Timedelta(days=9)
    view = view_of({"count": WINDOW}, {"ratio": [{"count": WINDOW}, {"count": {"within": [-30, -1]}}]})
    rows = [event(10, source_timestamp=late), event(20), event(21)]
    tables = hand_written(patient_journeys=[JOURNEY], treatment_events=rows)
    assert values(view, tables) == [2, 1.0]
    assert values(view, tables, source_lag_days=20)[0] == 1
    start = INDEX - dt.timedelta(days=99)
    assert all(pd.isna(one) for one in values(view, tables, covered=covering(start)))
    assert values(view, tables, covered=covering(start - dt.timedelta(days=1))) == [2, 1.0]


def test_every_window_of_a_feature_must_be_covered_and_only_its_own_days(view_of, hand_written):
    view = view_of(
        {"count": {}},
        {"count": {"within": [-20, -11]}},
        {"ratio": [{"count": {"within": [-20, -11]}}, {"count": {"within": [-10, -1]}}]},
    )
    tables = hand_written(patient_journeys=[JOURNEY], treatment_events=[event(15), event(5)])

    def unknown(*ahead):
        holes = [(day, day) for day in (INDEX - dt.timedelta(days=days) for days in ahead)]
        found = values(view, tables, covered=covering(INDEX - dt.timedelta(days=30), *holes))
        return [bool(pd.isna(one)) for one in found]

    assert unknown() == [False, False, False]
    assert unknown(25) == [True, False, False]
    assert unknown(20) == unknown(11) == [True, True, True]
    assert unknown(10) == unknown(1) == [True, False, True]
    # On record since the first covered day: without any covered day before the index nothing is known.
    assert values(view, tables, covered=covering(INDEX - dt.timedelta(days=1)))[0] == 0
    assert pd.isna(values(view, tables, covered=covering(INDEX))[0])


def test_columns_of_the_entity_and_of_ones_own_are_values_as_of_the_index(view_of, hand_written):
    view = view_of(
        {"value": "patient_journeys.age_at_diagnosis", "on_missing": 50},
        {"value": "patient_clinical.egfr"},
        {"value": "patient_clinical.my_score", "own_type": "number"},
        {"value": "patient_clinical.never_delivered", "own_type": "text"},
    )
    clinical = {
        "patient_journey_id": "J1", "diagnosis_date": INDEX, "egfr": 61.5, "extra": '{"my_score": "2.5"}',
    }  # fmt: skip
    tables = hand_written(patient_journeys=[JOURNEY])
    found = values(view, tables | {"patient_clinical": pd.DataFrame([clinical])})
    assert found[:3] == [50, 61.5, 2.5] and pd.isna(found[3])
    later = clinical | {"diagnosis_date": INDEX + dt.timedelta(days=1)}
    assert all(pd.isna(one) for one in values(view, tables | {"patient_clinical": pd.DataFrame([later])})[1:])
    assert source_columns(view)["patient_clinical"] == (
        "egfr",
        "patient_journey_id",
        "diagnosis_date",
        "extra",
    )


COUNT = {"count": {}}
BROKEN = [
    ([{"max": {"column": "nothing"}}], r"own.yaml:\d+: features.0.max.column: .* has no column 'nothing'"),
    ([{"value": "patient_journeys.risk_score"}], r"features.0.value: patient_journeys.risk_score is known only at"),
    ([{"count": {"where": [{"field": "adverse_event_flag", "operator": "==", "value": True}]}}],
     r"features.0.count.where.0.field: treatment_events.adverse_event_flag is known only at"),
    ([{"count": {"within": [-30, 0]}}], r"features.0.count.within: the window ends day 0; .* End it with -1"),
    ([{"count": {"within": [-30, None]}}], r"features.0.count.within: the window ends open"),
    ([{"ratio": ["f1", COUNT]}, {"difference": [COUNT, "f0"]}], r"features.0.ratio: f0 -> f1 -> f0 is a circle"),
    ([{"ratio": ["f0", COUNT]}], r"f0 -> f0 is a circle"),
    ([{"ratio": ["f9", COUNT]}], r"features.0.ratio.0: there is no feature of patient_id in this file 'f9'"),
    ([{"ratio": ["f1", COUNT]}, {"value": "patient_journeys.gender"}], r"features.0.ratio.0: 'f1' is a text"),
    ([{"mean": {"column": "brand"}}], r"features.0.mean.column: .*brand holds texts"),
    ([{"max": {"column": "event_date"}}], r"features.0.max.column: .* holds days: use days_since"),
    ([{"max": {"column": "icd_codes"}}], r"features.0.max.column: .* holds lists"),
    ([{"mean": {}}], r"features.0.mean: mean needs the column"),
    ([{"count": {"column": "cost"}}], r"features.0.count.column: count counts rows: remove column"),
    ([{"count": {"table": "outcome_events"}}], r"features.0.count.table: outcome_events is what models predict"),
    ([{"count": {"table": "treatment_event"}}], r"count.table: there is no table .* Did you mean 'treatment_events'"),
    ([{"count": {"table": "business_metrics"}}], r"count.table: .* cannot be found by patient_id"),
    ([{"count": {"event": "perscription"}}], r"count.event: there is no event_type .* Did you mean 'prescription'"),
    ([{"value": "hcp_profiles.specialty"}], r"features.0.value: 'hcp_profiles' has no row that is"),
    ([{"value": "patient_clinical.mine"}], r"features.0.value: .* A column of your own needs own_type"),
    ([COUNT | {"any": {}}], r"features.0: .*expected exactly one of .*; found count and any"),
    ([COUNT | {"on_missing": "none"}], r"features.0.on_missing: found 'none'; f0 is a whole number"),
    ([COUNT | {"name": "label"}], r"features.0.name: 'label' has another meaning"),
    ([COUNT, COUNT | {"name": "f0"}], r"features.1.name: 'f0' is a feature of this file already"),
    ([{"conut": {}}], r"features.0.conut: .*Did you mean 'count'"),
]  # fmt: skip


@pytest.mark.parametrize(("features", "message"), BROKEN)
def test_what_cannot_be_a_feature_is_refused_with_its_place(features, message, view_of):
    with pytest.raises(ConfigError, match=message):
        view_of(*features)


def test_files_that_share_a_name_and_unknown_keys_are_refused(view_of, tmp_path):
    with pytest.raises(ConfigError, match="keys: found trigger_id; expected one of: patient_id; hcp_id"):
        view_of(COUNT, keys=("trigger_id",))
    (tmp_path / "features").mkdir()
    (tmp_path / "vocabulary.yaml").write_text((CHECKOUT / "config/vocabulary.yaml").read_text())
    text = json.dumps(
        {"keys": ["patient_id"], "description": "x", "features": [COUNT | {"name": "n", "description": "x"}]}
    )
    for name in ("a", "b"):
        (tmp_path / f"features/{name}.yaml").write_text(text)
    views, problems = read_feature_files(tmp_path)
    assert list(views) == ["a"]
    assert "'n' is a feature of a.yaml, too" in str(problems[str(tmp_path / "features/b.yaml")])


def test_what_grows_with_the_time_since_the_data_began_is_told(view_of):
    view = view_of(
        COUNT, {"count": WINDOW}, {"days_since": {}}, {"days_since": {"occurrence": "first"}},
        {"ratio": [COUNT, COUNT]}, {"mean": {"column": "cost"}},
    )  # fmt: skip
    assert list(growing(view)) == ["f0", "f3"]
    assert "within: [-365, -1]" in growing(view)["f0"]


#: Diagnoses, Charlson index, Elixhauser score with van Walraven's weights: added up by hand from the papers' tables.
COMORBID = [
    ("I21.4", 1, 0),
    ("E11.9", 1, 0),
    # Of two grades the worse counts.
    ("E11.9 E11.21", 2, 0),
    ("K70.30 K76.6", 3, 11),
    ("C50.911 C78.00", 6, 12),
    ("C50.911", 2, 4),
    ("C81.90", 2, 9),
    ("B20", 6, 0),
    ("I50.9 I48.91", 1, 7 + 5),
    ("N18.3 D50.0 E66.9", 2, 5 - 2 - 4),
    ("G81.90 I63.9", 2 + 1, 7),
    ("F32.9 F11.20 I34.0", 0, -3 - 7 - 1),
    ("I10 I42.1 E03.9", 0, 0),
]


def test_comorbidity_indices_are_those_of_the_published_tables(hand_written):
    templates = CHECKOUT / "config/features/templates"
    journeys, events = [], []
    for number, (codes, _, _) in enumerate(COMORBID):
        keys = {"patient_id": f"P{number}", "patient_journey_id": f"J{number}"}
        journeys.append(JOURNEY | keys)
        events += [event(30, "diagnosis", icd_codes=json.dumps([code])) | keys for code in codes.split()]
        events.append(event(400, "diagnosis", icd_codes='["C78.00"]') | keys)
    tables = hand_written(patient_journeys=journeys, treatment_events=events)
    asked = pd.DataFrame(journeys)[["patient_id"]].assign(as_of=INDEX - dt.timedelta(days=1))
    for file, place in (("charlson_quan", 1), ("elixhauser_van_walraven", 2)):
        view = read_feature_file(templates / f"{file}.yaml", load_vocabulary(CHECKOUT / "config"))
        assert "Med Care" in view.source
        (name,) = view.feature_names
        assert compute_view(view, asked, tables)[name].tolist() == [row[place] for row in COMORBID]
