import datetime as dt

import pytest

from e2i_dagster.registry import Approval, Evidence, check_transition


def evidence(auc=0.9, **more):
    base = {
        "model_digest": "m",
        "problem_type": "binary_classification",
        "auc": {"test": auc},
        "criteria_met": True,
        "cohort_approved": True,
        "proposed_by": "ann",
    }
    return Evidence(**base | more)


def approved(by, found, digest=None):
    approval = Approval(
        by=by, at=dt.datetime(2025, 1, 1, tzinfo=dt.UTC), evidence_digest=digest or found.measured_digest()
    )
    return found.model_copy(update={"approvals": (approval,)})


@pytest.mark.parametrize(
    ("way", "auc", "allowed"),
    [
        (("development", "staging"), 0.70, True),
        (("development", "staging"), 0.6999, False),
        (("staging", "shadow"), 0.75, True),
        (("staging", "shadow"), 0.749, False),
    ],
)
def test_limits_are_reached_at_the_limit(way, auc, allowed):
    assert check_transition(*way, evidence(auc)).allowed is allowed


@pytest.mark.parametrize(
    "way",
    [("development", "shadow"), ("development", "production"), ("staging", "production"), ("staging", "development"),
     ("production", "staging"), ("archived", "staging"), ("archived", "archived")],
)  # fmt: skip
def test_no_stage_is_skipped_and_none_taken_back(way):
    verdict = check_transition(*way, evidence(days_in_stage=30, days_superseded=90))
    assert next(item for item in verdict.results if item.rule == "order").passed is False


def test_production_needs_days_in_shadow_and_a_second_person():
    found = evidence(days_in_stage=7)
    way = ("shadow", "production")
    assert check_transition(*way, found).reasons() == ("Nobody has approved it.",)
    assert "second person" in check_transition(*way, approved("ann", found)).reasons()[0]
    assert "other evidence" in check_transition(*way, approved("bob", found, "old")).reasons()[0]
    assert check_transition(*way, approved("bob", found)).allowed
    early = approved("bob", evidence(days_in_stage=6.9))
    assert [item.rule for item in check_transition(*way, early).results if not item.passed] == [
        "days_in_stage"
    ]


def test_an_approval_is_of_the_evidence_that_was_seen():
    seen = approved("bob", evidence(0.9, days_in_stage=8))
    changed = seen.model_copy(update={"auc": {"test": 0.81}})
    assert not check_transition("shadow", "production", changed).allowed


def test_what_was_not_measured_does_not_pass():
    verdict = check_transition("development", "staging", evidence(auc=0.9).model_copy(update={"auc": {}}))
    assert verdict.reasons() == ("ROC-AUC on test was not measured, staging needs 0.70.",)


def test_where_auc_means_nothing_the_criteria_decide():
    found = evidence().model_copy(update={"auc": {}, "problem_type": "regression"})
    assert check_transition("development", "staging", found).allowed
    missed = found.model_copy(update={"criteria_met": False})
    assert not check_transition("development", "staging", missed).allowed


def test_archiving_needs_a_month_since_a_newer_version():
    assert not check_transition("staging", "archived", evidence()).allowed
    assert not check_transition("staging", "archived", evidence(days_superseded=29)).allowed
    assert check_transition("staging", "archived", evidence(days_superseded=30)).allowed


@pytest.mark.parametrize("way", [("development", "staging"), ("staging", "shadow"), ("shadow", "production")])
def test_a_model_on_a_draft_cohort_stays_where_it_is(way):
    verdict = check_transition(*way, evidence(cohort_approved=False))
    assert not verdict.allowed
    assert any("definition is a draft" in reason for reason in verdict.reasons())
