"""The shipped question end to end on planted patients: treatment, study, checks, page, rows of the warehouse."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.causal.pages import study_page
from e2i_dagster.causal.question import causal_frame, question_words, treated_before
from e2i_dagster.causal.records import record_effects
from e2i_dagster.causal.study import CausalEstimates, study_effect, study_heterogeneity
from e2i_dagster.config.policy import load_policy
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.versions.coverage import Coverage


@pytest.fixture(scope="module")
def scope():
    return load_policy(CHECKOUT / "config").scopes["remibrutinib_csu_initiation"]


def test_only_contacts_of_quality_in_the_window_treat(causal_policy):
    index = dt.date(2024, 6, 1)
    patients = pd.DataFrame({"patient_journey_id": list("abcdefg"), "index_date": [index] * 7})
    days = {"a": 1, "b": 180, "c": 181, "d": 0, "e": -5, "f": 10}
    contacts = pd.DataFrame(
        {
            "patient_journey_id": [*days, None],
            "engagement_date": [index - dt.timedelta(days=ahead) for ahead in days.values()] + [index],
            "quality_score": [5.0, 9.0, 9.0, 9.0, 9.0, 4.9, 9.0],
        }
    )
    treated = treated_before(patients, contacts, causal_policy.question)
    assert treated.name == "high_engagement"
    assert treated.tolist() == [True, True, False, False, False, False, False]


def test_no_contact_in_days_that_are_not_kept_is_unknown_and_not_untreated(scope, causal_policy):
    start = dt.date(2023, 12, 1)
    window = dt.timedelta(days=causal_policy.question.window_days)
    whole, reaches = start + window, start + window - dt.timedelta(days=1)
    patients = pd.DataFrame(
        {"patient_journey_id": list("abcd"), "index_date": [whole, reaches, reaches, reaches]}
    )
    contacts = pd.DataFrame(
        {
            "patient_journey_id": ["c", "d"],
            "engagement_date": [start, start - dt.timedelta(days=1)],
            "quality_score": 9.0,
        }
    )
    treated = treated_before(patients, contacts, causal_policy.question, covered=Coverage(start))
    assert [None if one is pd.NA else bool(one) for one in treated] == [False, None, True, None]
    frame = patients.assign(
        patient_id=list("abcd"), label=[0, 1, 0, 1], disease_severity=1.0, academic_hcp=1, age_at_diagnosis=40,
        insurance_type="medicare", gender="F", geographic_region="west",
    )  # fmt: skip
    hole = (start, start + dt.timedelta(days=1))
    interrupted = Coverage(start - dt.timedelta(days=30), unobserved=(hole,))
    treated = treated_before(patients, contacts, causal_policy.question, covered=interrupted)
    assert [None if one is pd.NA else bool(one) for one in treated] == [None, None, True, True]
    splits = pd.DataFrame({"patient_id": list("abcd"), "split": "train"})
    found = causal_frame(scope, frame, splits, contacts, causal_policy, covered=Coverage(start))
    assert dict(zip(found["patient_id"], found["high_engagement"], strict=True)) == {"a": False, "c": True}


def test_sealed_rows_stay_sealed_and_unknown_features_are_named(scope, causal_policy):
    size = 40
    frame = pd.DataFrame(
        {
            "patient_id": [f"p{k}" for k in range(size)],
            "patient_journey_id": [f"j{k}" for k in range(size)],
            "index_date": dt.date(2024, 1, 1),
            "label": np.arange(size) % 2 == 0,
            "disease_severity": 1.0, "academic_hcp": 1, "age_at_diagnosis": 40, "insurance_type": "medicare",
            "gender": "F", "geographic_region": "west",
        }
    )  # fmt: skip
    splits = pd.DataFrame(
        {"patient_id": frame["patient_id"], "split": ["train", "validation", "test", "holdout"] * (size // 4)}
    )
    contacts = pd.DataFrame(
        {"patient_journey_id": ["j0"], "engagement_date": [dt.date(2023, 12, 1)], "quality_score": [7.0]}
    )
    found = causal_frame(scope, frame, splits, contacts, causal_policy)
    assert set(found["patient_id"]) == set(
        splits.loc[splits["split"].isin(["train", "validation"]), "patient_id"]
    )
    assert found.loc[found["patient_id"] == "p0", "high_engagement"].all()
    assert found["high_engagement"].sum() == 1
    with pytest.raises(InputError, match="names gender, which the features of scope"):
        causal_frame(scope, frame.drop(columns="gender"), splits, contacts, causal_policy)
    assert "180 days before the index date" in question_words(scope, causal_policy.question)


@pytest.mark.parametrize("key", ["fabhalta_pnh_therapy_course", "remibrutinib_csu_time_to_fill"])
def test_no_effect_on_classes_or_times(key, causal_policy):
    scope = load_policy(CHECKOUT / "config").scopes[key]
    with pytest.raises(VerdictError, match="difference of means or of probabilities") as caught:
        causal_frame(scope, pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), causal_policy)
    assert (caught.value.field, caught.value.value) == ("problem_type", scope.problem_type)


def studied(frame, policy, **changes) -> CausalEstimates:
    generator = np.random.default_rng(3)
    given = frame.assign(
        gender=generator.choice(["F", "M", "U"], len(frame)), region=generator.choice(list("abc"), len(frame))
    )
    quick = policy.model_copy(update={"refutation": policy.refutation.model_copy(update={"repetitions": 3})})
    arguments = {
        "question": "What does it do?", "treatment": "treated", "outcome": "outcome",
        "confounders": ["severity", "academic"], "controls": ["gender", "region"],
    } | changes  # fmt: skip
    return study_effect(given, **arguments, policy=quick)


@pytest.fixture(scope="module")
def sound(plant, causal_policy):
    return studied(plant(1.5), causal_policy)


@pytest.fixture(scope="module")
def separated(plant, causal_policy):
    frame = plant(1.5)
    return studied(frame.assign(treated=frame["severity"] > 0), causal_policy)


def test_checks_pass_on_a_sound_estimate(sound):
    from assets.causal import balance, overlap, refutation

    for check in (overlap, balance, refutation):
        assert check(sound).passed, check


def test_checks_fail_with_the_reason(sound, separated, plant, causal_policy):
    from assets.causal import balance, overlap, refutation

    assert not overlap(separated).passed
    assert "almost perfectly" in overlap(separated).description
    assert not refutation(separated).passed
    nothing = studied(plant(1.5).head(20), causal_policy)
    assert "20 rows" in overlap(nothing).description
    assert not balance(nothing).passed
    unbalanced = sound.model_copy(update={"balanced_difference": 0.001})
    assert not balance(unbalanced).passed
    assert "severity" in balance(unbalanced).description
    refuted = studied(plant(0.0, rows=500), causal_policy)
    assert not refutation(refuted).passed
    assert "unobserved_confounder" in refutation(refuted).description


def test_the_pages_say_what_was_found(sound, separated, plant, causal_policy):
    told = sound.to_metadata()
    assert {"forest_plot", "love_plot", "overlap_plot"} <= set(told)
    assert told["agreement_score"] == 1.0
    assert told["estimates"].texts[-1][0] == "consensus"
    assert "placebo_treatment" in [row[0] for row in told["refuters"].rows]
    assert "E-value" in [row[0] for row in told["sensitivity"].rows]
    heterogeneity = study_heterogeneity(
        plant(1.5), treatment="treated", outcome="outcome", confounders=["severity", "academic"],
        policy=causal_policy, estimable=True,
    )  # fmt: skip
    page = study_page(sound, heterogeneity)
    assert page.count("<img") == 5
    assert "Who to treat" in page
    refused = separated.to_metadata()
    assert refused["effect_state"] == "not_estimable"
    assert "forest_plot" not in refused
    assert "overlap_plot" in refused  # refused with its figure
    assert "Not estimable" in study_page(separated)


def test_figures_do_not_depend_on_what_was_imported(sound):
    """CausalML changes the style of all figures of a process."""
    import matplotlib as mpl

    assert mpl.rcParams["axes.facecolor"] == mpl.rcParamsDefault["axes.facecolor"]
    assert sound.to_metadata()["forest_plot"] == sound.to_metadata()["forest_plot"]


def test_a_stored_study_reads_back_and_durations_are_no_result(sound):
    from e2i_dagster.versions.lake import value_digest

    record = sound.to_record()
    again = CausalEstimates.model_validate_json(sound.model_dump_json())
    assert again.found.consensus_effect == sound.found.consensus_effect
    record["found"]["effects"]["estimates"][0]["seconds"] = 99.0
    assert value_digest(CausalEstimates.model_validate(record)) == value_digest(sound)


def test_effects_are_recorded_once(database: sa.Engine, sound, separated):
    with database.begin() as connection:
        for _ in range(2):
            record_effects(connection, sound, scope="s", run_id="r1")
        record_effects(connection, separated, scope="s", run_id="r2")
        rows = pd.read_sql(sa.text("SELECT * FROM ml_causal_estimates"), connection)
        refuters = pd.read_sql(sa.text("SELECT * FROM ml_causal_refutations"), connection)
    first = rows[rows["run_id"] == "r1"].set_index("library")
    assert len(first) == 7
    assert first.loc["consensus", "effect"] == pytest.approx(sound.found.consensus_effect)
    assert first.loc["dowhy", "in_consensus"]
    refused = rows[rows["run_id"] == "r2"].iloc[0]
    assert refused["state"] == "not_estimable"
    assert np.isnan(refused["effect"])
    assert len(refuters) == 5
