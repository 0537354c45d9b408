"""Drift is measured against the rows that the model was trained on, and its answers for validation rows."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from model_rows import numbers, rows, visible

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.errors import InputError
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.monitoring.compare import compare_with_profile, profile_model
from e2i_dagster.monitoring.profile import ReferenceProfile
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.training import evaluate, train

POLICY = DriftPolicy.load(CHECKOUT / "config")


@pytest.fixture(scope="module")
def trained():
    """Validation patients are much sicker than those of training."""
    later = numbers(rows(500, 1))
    sicker = later.features.assign(severity=later.features["severity"] + 3)
    seen = visible(numbers(rows(500)), LabelledRows(sicker, later.target + 6))
    model = train(seen, algorithm="Ridge", parameters={"alpha": 1.0}, problem_type="regression")
    return model, seen


def report(model, profile, features, predictions):
    return compare_with_profile(
        profile,
        features.assign(prediction=predictions),
        kinds=model.kinds,
        policy=POLICY,
        scope="s",
        day=dt.date(2025, 1, 2),
        model_id="m/1",
    )


def severities(trained, features, predictions):
    model, seen = trained
    found = report(model, profile_model(model, seen, policy=POLICY), features, predictions)
    return {item.name: item.severity for item in found.features}


def test_training_rows_and_answers_for_validation_rows_are_the_reference(trained):
    model, seen = trained
    answers = model.scores(seen.validation.features)
    assert set(severities(trained, seen.train.features, answers).values()) == {"none"}


def test_requests_like_the_validation_rows_drift(trained):
    model, seen = trained
    found = severities(trained, seen.validation.features, model.scores(seen.validation.features))
    assert found.pop("severity") == "critical"
    assert found.pop("domain_classifier") == "critical"
    found.pop("pca_reconstruction")
    assert set(found.values()) == {"none"}


def test_answers_like_those_for_training_rows_drift(trained):
    model, seen = trained
    found = severities(trained, seen.train.features, model.scores(seen.train.features))
    assert found.pop("prediction") == "critical"
    assert set(found.values()) == {"none"}


@pytest.fixture(scope="module")
def classifier():
    """A model of a binary outcome, its profile with what it reached and what it uses, and later patients."""
    seen = visible(rows(1_500), rows(1_000, 1))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0})
    judged = evaluate(model, seen, criteria=SuccessCriteria())
    used = {"severity": 0.6, "engagement": 0.2, "academic": 0.15, "visits": 0.05, "noise": 0.0}
    profile = profile_model(model, seen, policy=POLICY, evaluation=judged, importance=used)
    return model, profile, rows(1_000, 2).features


def drift_of(classifier, features):
    model, profile, _ = classifier
    return {one.name: one for one in report(model, profile, features, model.scores(features)).features}


def test_a_profile_read_back_compares_alike(classifier):
    model, profile, later = classifier
    again = ReferenceProfile.model_validate_json(profile.model_dump_json())
    answers = model.scores(later)
    assert report(model, again, later, answers) == report(model, profile, later, answers)


def test_later_patients_of_the_same_kind_raise_nothing(classifier):
    assert {one.severity for one in drift_of(classifier, classifier[2]).values()} == {"none"}


def test_a_shift_of_what_the_model_does_not_use_is_a_note(classifier):
    found = drift_of(classifier, classifier[2].assign(noise=lambda rows: rows["noise"] + 3))["noise"]
    assert (found.effect_severity, found.severity) == ("critical", "low")
    assert "a note" in found.reason and found.importance == 0


def test_a_shift_that_costs_nothing_is_a_note_and_says_what_it_costs(classifier):
    """Many more academic patients: the model uses it, and ranks them as well as before."""
    more = classifier[2].assign(academic=np.where(np.arange(1_000) % 4 == 0, 0.0, 1.0))
    found = drift_of(classifier, more)["academic"]
    assert found.effect_severity in ("high", "critical") and found.severity == "low"
    assert abs(found.expected_loss) < 0.02 and "expected loss of roc_auc" in found.reason


def test_a_shift_beyond_what_validation_patients_have_counts_by_its_size(classifier):
    found = drift_of(classifier, classifier[2].assign(severity=lambda rows: rows["severity"] + 4))["severity"]
    assert found.severity == "critical" and found.expected_loss is None


def test_new_lost_and_missing_values_are_named(classifier):
    later = classifier[2].copy()
    later["region"] = np.where(later["region"] == "south", "islands", later["region"])
    later.loc[later.index[:400], "engagement"] = np.nan
    found = drift_of(classifier, later)
    assert found["region"].new_categories == ("islands",) and found["region"].lost_categories == ("south",)
    assert found["region"].reason.startswith("new values 'islands'; no more 'south'")
    assert found["engagement"].reason.startswith("missing ")


def test_a_value_of_few_rows_is_not_named(classifier):
    later = classifier[2].copy()
    later["region"] = np.where(later["region"] == "south", "islands", later["region"]).astype(object)
    later.loc[later.index[:10], "region"] = "CANARY7Q"
    found = drift_of(classifier, later)["region"]
    assert found.new_categories == ("islands",) and "CANARY7Q" not in found.model_dump_json()


def test_what_no_feature_shows_alone_is_seen_by_all_together(classifier):
    """Severity of one patient with the noise of another is as before; severity equal to noise is not."""
    later = classifier[2]
    same = later.assign(noise=later["severity"].to_numpy())
    found = drift_of(classifier, same)
    assert found["noise"].severity == "none" and found["severity"].severity == "none"
    assert found["domain_classifier"].severity != "none"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.assign(engagement=np.nan),
        lambda rows: rows.assign(visits=2.0),
        lambda rows: rows.head(20),
        lambda rows: rows.head(0),
    ],
    ids=["all null", "constant", "20 rows", "no rows"],
)
def test_a_poor_day_is_a_report(classifier, change):
    model, profile, later = classifier
    poor = change(later)
    found = {one.name: one for one in report(model, profile, poor, 0.5).features}
    assert {one.state for one in found.values()} == ({"skipped"} if len(poor) < 100 else {"executed"})
    if poor["engagement"].isna().all() and len(poor):
        assert found["engagement"].severity == "critical"
        assert found["engagement"].reason.startswith("missing ")


def test_the_same_prediction_twice_counts_once(classifier):
    model, profile, later = classifier
    log = later.assign(prediction_id=np.arange(len(later)).astype(str))
    twice = pd.concat([log, log.tail(500)])
    found = report(model, profile, twice, 0.5)
    assert {one.current_count for one in found.features} == {1_000}


def test_the_reference_of_another_model_is_refused_by_name(classifier):
    with pytest.raises(
        InputError, match=r"reference_profile of s: .*Materialize reference_profile of s"
    ) as refused:
        classifier[1].require_model("another", "s")
    assert refused.value.file == "reference_profile"
