"""One experiment through the warehouse: life cycle, units, assignments, events, looks, results, refusals."""

from __future__ import annotations

import datetime as dt

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments import run, store
from e2i_dagster.experiments.interim import boundaries
from e2i_dagster.experiments.looks import make_look, replay
from e2i_dagster.experiments.monitor import observe
from e2i_dagster.warehouse.tables import experiments as tables
from tests.experiments.conftest import DESIGN, consents, outcomes, screening

NOW = dt.datetime.now(dt.UTC)


def enrol(connection, name, count=240):
    """Screen, consent, assign; returns the assignments."""
    store.screen(connection, name, screening(count), cohorts={}, source="observed", actor="site")
    screened = store.read_records(connection, name).screened
    eligible = screened.loc[screened["eligible"].astype(bool), "unit_id"]
    store.record_events(connection, name, consents(eligible), source="observed", actor="site")
    store.randomize(connection, name, actor="site")
    return store.read_records(connection, name).assignments


def observe_outcomes(connection, name, share=1.0, rates=None):
    assigned = store.read_records(connection, name).assignments
    given = outcomes(assigned, rates or {"usual": 0.3, "treated": 0.75})
    given = given[: int(share * len(given))]
    store.record_outcomes(connection, name, given, source="observed", actor="site")
    return given


def test_a_state_needs_what_it_needs(warehouse, spec, lifecycle):
    step = {"policy": lifecycle, "reason": "test"}
    with warehouse.begin() as connection:
        assert store.register(connection, spec, actor="carla").state == "draft"
        with pytest.raises(InputError, match="may become in_review, cancelled"):
            store.transition(connection, spec.name, "running", actor="carla", **step)
        store.transition(connection, spec.name, "in_review", actor="carla", **step)
        with pytest.raises(VerdictError, match="approval of analytics_lead: is missing"):
            store.transition(connection, spec.name, "approved", actor="carla", **step)
        with pytest.raises(VerdictError, match="a second person approves"):
            store.approve(connection, spec.name, role="analytics_lead", actor="carla", **step)
        store.approve(connection, spec.name, role="analytics_lead", actor="anna", **step)
        with pytest.raises(VerdictError, match="has approved this design already"):
            store.approve(connection, spec.name, role="brand_lead", actor="anna", **step)
        store.approve(connection, spec.name, role="brand_lead", actor="ben", **step)
        store.transition(connection, spec.name, "approved", actor="carla", **step)
        changed = spec.model_copy(update={"looks": spec.looks.model_copy(update={"alpha": 0.01})})
        with pytest.raises(VerdictError, match="changed after its approval"):
            store.register(connection, changed, actor="carla")
        said = [(one["to_state"], one["recorded_by"]) for one in store.history(connection, spec.name)]
    assert said == [("draft", "carla"), ("in_review", "carla"), ("approved", "carla")]


def test_an_approval_holds_for_one_design_and_overlap_is_refused(warehouse, spec, lifecycle, running):
    step = {"policy": lifecycle, "reason": "test"}
    running(spec)
    other = ExperimentSpec.model_validate({**DESIGN, "name": "other"})
    with warehouse.begin() as connection:
        store.register(connection, other, actor="carla")
        with pytest.raises(VerdictError, match="example meets the same units"):
            store.transition(connection, "other", "in_review", actor="carla", **step)
    allowed = ExperimentSpec.model_validate({**DESIGN, "name": "other", "may_overlap_with": ["example"]})
    with warehouse.begin() as connection:
        store.register(connection, allowed, actor="carla")
        store.transition(connection, "other", "in_review", actor="carla", **step)
        store.approve(connection, "other", role="analytics_lead", actor="anna", **step)
        changed = allowed.model_copy(update={"missing_outcomes": "non_responder"})
        store.register(connection, changed, actor="carla")
        with pytest.raises(VerdictError, match="approval of analytics_lead: is missing for this design"):
            store.transition(connection, "other", "approved", actor="carla", **step)


def test_from_screening_to_results(warehouse, spec, lifecycle, running):
    name = running(spec)
    with warehouse.begin() as connection:
        assigned = enrol(connection, name)
        records = store.read_records(connection, name)
        screened = records.screened
        assert 0.6 < screened["eligible"].mean() < 0.95
        assert len(assigned) == min(int(screened["eligible"].sum()), 200)
        assert set(assigned["unit_id"]) <= set(screened.loc[screened["eligible"].astype(bool), "unit_id"])
        assert store.read(connection, name).locked_at is not None
        assert store.randomize(connection, name, actor="site").empty
        assert run.assign_waiting(connection, name, actor="site").worst_stratum_imbalance <= 2
        # Nothing is due, and nothing is told, before the information is there.
        observe_outcomes(connection, name, share=0.3)
        assert make_look(connection, name, policy=lifecycle, actor="dmc") is None
        observe_outcomes(connection, name, share=0.6)
        page = run.look_page(connection, name, lifecycle, actor="dmc")
        assert [look["says"] for look in page.looks] == ["stop for review"]
        shown = str(page.to_record())
        made = store.looks(connection, name)
        assert made[0]["decision"] == "stop_efficacy"
        assert f"{made[0]['test_statistic']:.3f}" not in shown
        assert "z" not in page.looks[0]
        # The same look again: nothing new, no alpha.
        again = run.look_page(connection, name, lifecycle, actor="dmc")
        assert again.looks == page.looks
        assert not run.results_page(connection, name, lifecycle, actor="dmc").available
        # Rows that come later leave the frozen look as it was.
        observe_outcomes(connection, name)
        assert replay(connection, name, 1)
        store.transition(connection, name, "stopped_success", actor="dmc", reason="look 1", policy=lifecycle)
        results = run.results_page(connection, name, lifecycle, actor="carla")
        assert results.available
        itt = results.results[0].analysis
        assert itt is not None
        assert itt.effect is not None
        assert 0.25 < itt.effect < 0.65
        # No treatment received was recorded: as treated is not estimable, and says so.
        assert (
            "no treatment received" in {one.analysis_set: one.reason for one in results.results}["as_treated"]
        )
        assert results.adjusted is not None
        for state, decision in (("analyzed", None), ("decided", "implement_treatment")):
            step = {"actor": "ben", "reason": "test", "policy": lifecycle}
            store.transition(connection, name, state, decision=decision, **step)
        assert store.audit(connection, name).passed
        html = run.report_html(connection, name, lifecycle, blinded=False, actor="carla")
    assert "HCP0000" not in html
    assert "implement_treatment" in html


def test_no_look_on_arms_that_were_not_assigned_as_designed(warehouse, spec, lifecycle, running):
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name)
        extra = [f"X{number}" for number in range(120)]
        rows = [
            {
                "experiment": name, "unit_id": unit, "unit_type": "hcp", "variant": "treated",
                "sequence": 1000 + number, "batch": 99, "randomization_method": "stratified", "stratum": "",
                "assigned_at": NOW, "recorded_by": "nobody",
            }
            for number, unit in enumerate(extra)
        ]  # fmt: skip
        connection.execute(tables.ab_experiment_assignments.insert(), rows)
        observe_outcomes(connection, name)
        passed, said = run.judge_ratio(connection, name, lifecycle, actor="test")
        assert not passed
        assert said.startswith("critical")
        with pytest.raises(VerdictError, match="before this mismatch is explained"):
            make_look(connection, name, policy=lifecycle, actor="dmc")
        assert store.audit(connection, name).different >= 120
        found = observe(connection, lifecycle, now=NOW, actor="test")
    assert {finding.kind for finding in found[0].findings} >= {"srm"}


def test_rows_are_only_ever_added(warehouse, spec, running):
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name, count=20)
    for statement in (
        "UPDATE ab_experiment_assignments SET variant = 'treated'",
        "DELETE FROM ab_experiment_enrollments",
        "TRUNCATE ab_experiment_transitions",
    ):
        with pytest.raises(exc.IntegrityError, match="append-only"), warehouse.begin() as connection:
            connection.execute(sa.text(statement))


def test_a_locked_design_changes_by_amendment_alone(warehouse, spec, running):
    name = running(spec)
    changed = spec.model_copy(update={"missing_outcomes": "non_responder"})
    with warehouse.begin() as connection:
        with pytest.raises(InputError, match="no amendment is needed"):
            store.amend(connection, changed, reason="test", actor="carla")
        enrol(connection, name, count=20)
        with pytest.raises(VerdictError, match="e2i experiment amend example"):
            store.register(connection, changed, actor="carla")
        held = store.amend(connection, changed, reason="agreed with the committee", actor="carla")
        assert (held.version, held.spec.missing_outcomes) == (2, "non_responder")
        moved = changed.model_copy(update={"unit": "patient"})
        with pytest.raises(VerdictError, match="unit cannot be amended"):
            store.amend(connection, moved, reason="test", actor="carla")


def test_another_key_is_refused_and_finds_nothing_right(warehouse, spec, running, monkeypatch):
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name, count=60)
    monkeypatch.setenv("E2I_RANDOMIZATION_KEY", "another key of forty characters, or more")
    with warehouse.begin() as connection:
        with pytest.raises(VerdictError, match="another randomization key"):
            store.randomize(connection, name, actor="site")
        found = store.audit(connection, name)
    assert found.broken_seals == (1,)
    assert found.different > 0


def test_invented_and_observed_units_never_mix(warehouse, spec, running):
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name, count=20)
        with pytest.raises(InputError, match="never mix"):
            store.screen(connection, name, screening(30), cohorts={}, source="simulated", actor="x")


def test_units_without_consent_wait_and_those_who_withdrew_are_not_assigned(warehouse, spec, running):
    name = running(spec)
    with warehouse.begin() as connection:
        store.screen(connection, name, screening(60), cohorts={}, source="observed", actor="site")
        assert store.randomize(connection, name, actor="site").empty
        screened = store.read_records(connection, name).screened
        eligible = screened.loc[screened["eligible"].astype(bool), "unit_id"]
        store.record_events(connection, name, consents(eligible[:20]), source="observed", actor="site")
        gone = pd.DataFrame(
            {
                "unit_id": eligible[:5],
                "event_type": "consent_withdrawn",
                "occurred_at": "2025-01-21T00:00:00Z",
            }
        )
        store.record_events(connection, name, gone, source="observed", actor="site")
        assert len(store.randomize(connection, name, actor="site")) == 15
        # The same delivery again is recognised.
        assert store.record_events(connection, name, gone, source="observed", actor="site") == 0


def test_the_monitor_says_what_is_wrong_and_what_is_due(warehouse, spec, lifecycle, running):
    name = running(spec)
    with warehouse.begin() as connection:
        enrol(connection, name, count=100)
        observe_outcomes(connection, name, rates={"usual": 0.3, "treated": 0.3})
        late = dt.datetime.now(dt.UTC) + dt.timedelta(hours=80)
        (seen,) = observe(connection, lifecycle, now=late, actor="test")
        assert seen.due is None
        assert {(one.kind, one.severity) for one in seen.findings} == {("stale", "critical")}
        assert "record example" in seen.findings[0].next_command
        enrol(connection, name)
        observe_outcomes(connection, name, rates={"usual": 0.3, "treated": 0.3}, share=0.7)
        (seen,) = observe(connection, lifecycle, now=dt.datetime.now(dt.UTC), actor="test")
        assert seen.due == 1
        assert seen.findings == ()


def test_a_look_that_cannot_be_evaluated_alerts_and_spends_no_alpha(warehouse, lifecycle, running):
    early = ExperimentSpec.model_validate(
        {**DESIGN, "looks": {"rule": "lan_demets_obf", "information_fractions": [0.1, 1.0]}}
    )
    name = running(early)
    with warehouse.begin() as connection:
        enrol(connection, name)
        # About ten units in each arm: fewer than any analysis takes.
        observe_outcomes(connection, name, share=0.12)
        page = run.look_page(connection, name, lifecycle, actor="dmc")
        (made,) = store.looks(connection, name)
        assert [look["says"] for look in page.looks] == ["not evaluable"]
        assert (made["decision"], made["cumulative_alpha_spent"]) == ("not_evaluable", 0)
        assert page.next_fraction == 0.1
        (seen,) = observe(connection, lifecycle, now=NOW, actor="test")
        (told,) = [one for one in seen.findings if one.kind == "look"]
        assert "look 1 is not evaluable" in told.message and told.once
        with pytest.raises(VerdictError, match="says not_evaluable"):
            store.transition(connection, name, "stopped_success", actor="dmc", reason="no", policy=lifecycle)
        # No second look at the same rows; with more of them the first look is made, with the alpha of a first one.
        assert make_look(connection, name, policy=lifecycle, actor="dmc") is None
        observe_outcomes(connection, name, share=0.5)
        report = make_look(connection, name, policy=lifecycle, actor="dmc")
        assert report is not None
        assert (report.look, report.answered) == (2, True)
        assert (
            report.alpha_spent == boundaries("lan_demets_obf", [report.information_fraction]).alpha_spent[0]
        )
        assert store.looks(connection, name)[1]["boundary_z"] == report.boundary_z[0]
        html = run.report_html(connection, name, lifecycle, blinded=False, actor="carla")
    assert "not evaluable" in html


def test_pages_of_an_empty_experiment_say_so(warehouse, spec, lifecycle, running):
    name = running(spec)
    with warehouse.begin() as connection:
        assert run.assign_waiting(connection, name, actor="site").counts == {"usual": 0, "treated": 0}
        assert run.enrolment_page(connection, name, lifecycle).as_of is None
        assert run.look_page(connection, name, lifecycle, actor="dmc").looks == ()
        assert "running" in run.results_page(connection, name, lifecycle, actor="dmc").reason
        assert run.judge_ratio(connection, name, lifecycle, actor="dmc") == (True, "no unit is assigned yet")
        assert "no twin" in run.fidelity_page(connection, name, lifecycle, actor="dmc").reason
        assert run.report_html(connection, name, lifecycle, blinded=True, actor="dmc").startswith(
            "<!doctype html>"
        )
