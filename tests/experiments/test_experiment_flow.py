"""One experiment through the warehouse: life cycle, units, assignments, events, looks, results, refusals."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy import exc

from commands.cli import main
from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.config.policy import current_policy
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments.conduct import run, store
from e2i_dagster.experiments.conduct.actions import Change, record_file
from e2i_dagster.experiments.conduct.interim_looks import make_look, replay
from e2i_dagster.experiments.conduct.monitor import observe
from e2i_dagster.experiments.conduct.records import InterimAnalysis, Transition
from e2i_dagster.experiments.statistics.stopping import boundaries
from e2i_dagster.tables.description import experiments as tables
from tests.experiments.conftest import DESIGN, consents, outcomes, screening

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def policy():
    return current_policy()


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
        history = [(made.to_state, made.recorded_by) for made in Transition.read_all(connection, spec.name)]
    assert history == [("draft", "carla"), ("in_review", "carla"), ("approved", "carla")]


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
        (made,) = InterimAnalysis.read_all(connection, name)
        assert made.decision == "stop_efficacy"
        assert f"{made.test_statistic:.3f}" not in shown
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
        passed, said = run.check_sample_ratio(connection, name, lifecycle, actor="test")
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
    # The command tells the same to people and to programs.
    told = CliRunner().invoke(main, ["experiment", "audit", name], catch_exceptions=False)
    as_json = CliRunner().invoke(main, ["experiment", "audit", name, "--json"], catch_exceptions=False)
    assert told.exit_code == as_json.exit_code == 4
    answer = json.loads(as_json.stdout)
    error = answer["error"]
    assert answer["success"] is False and answer["broken_seals"] == [1]
    assert [error[key] for key in ("code", "file", "field", "value")] == ["refused", name, "broken_seals", 1]
    assert error["remedy"] in error["message"] and told.stderr == f"Error: {error['message']}\n"


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
        assert store.record_events(connection, name, gone, source="observed", actor="site").known == 5


def test_a_unit_without_a_stratum_waits_and_is_assigned_once_corrected(
    warehouse, spec, running, tmp_path, policy
):
    name = running(spec)
    units = screening(200).assign(years=5, in_other_study=False)
    units.loc[7, "region"] = None
    file = tmp_path / "units.csv"
    units.to_csv(file, index=False)
    record = Change(experiment=name, action="record", kind="units", file=str(file))
    with warehouse.begin() as connection:
        told = record_file(connection, record, policy, actor="site")
        assert told == {"rows": 200, "new": 200, "updated": 0, "known": 0, "duplicate": 0, "refused": 0}
        store.record_events(connection, name, consents(units["unit_id"]), source="observed", actor="site")
        report = run.assign_waiting(connection, name, actor="site")
        assert sum(report.counts.values()) == 199
        assert report.waiting == {"no value of region": 1}
        assert record_file(connection, record, policy, actor="site")["known"] == 200

        units.loc[7, "region"] = "north"
        units.loc[8, "region"] = "south" if units.loc[8, "region"] == "north" else "north"
        units.to_csv(file, index=False)
        told = record_file(connection, record, policy, actor="site")
        counts = {key: told[key] for key in ("rows", "new", "updated", "known", "duplicate", "refused")}
        assert counts == {"rows": 200, "new": 0, "updated": 1, "known": 198, "duplicate": 0, "refused": 1}
        (refused,) = told["refused_rows"]
        assert (refused["row"], refused["column"]) == (9, "region")
        assert "differs from what the unit was assigned by" in refused["reason"]
        report = run.assign_waiting(connection, name, actor="site")
        assert sum(report.counts.values()) == 200 and report.waiting == {}
        assert store.audit(connection, name).passed


def test_a_corrected_unit_is_judged_again(warehouse, spec, running):
    name = running(spec)
    units = screening(20).assign(years=5, in_other_study=False)
    units.loc[3, "years"] = 1
    observed = {"cohorts": {}, "source": "observed", "actor": "site"}
    with warehouse.begin() as connection:
        store.screen(connection, name, units, **observed)
        given = units.loc[[3]].assign(years=4)
        assert store.screen(connection, name, given, **observed).updated == 1
        screened = store.read_records(connection, name).screened
        assert screened["eligible"].astype(bool).all()
        # Another time of the screening is a change as well, and none that lies after an event of the unit.
        later = given.assign(screened_at=pd.Timestamp("2025-01-10T08:00Z"))
        assert store.screen(connection, name, later, **observed).updated == 1
        store.record_events(connection, name, consents(given["unit_id"]), source="observed", actor="site")
        (refused,) = store.screen(
            connection, name, later.assign(screened_at=pd.Timestamp("2025-02-10T08:00Z")), **observed
        ).refused
        assert (refused.row, refused.column) == (4, "screened_at")


def test_a_unit_that_cannot_be_used_stops_no_other(warehouse, spec, running, tmp_path, policy, monkeypatch):
    """Each row is judged for itself: the file of refused rows, corrected, brings them alone."""
    monkeypatch.setenv("E2I_HOME", str(tmp_path / "state"))
    name = running(spec)
    units = screening(12).assign(years=5, in_other_study=False).astype({"screened_at": str}).astype(object)
    units.loc[0, "unit_id"] = None
    units.loc[1, "screened_at"] = "05/01/2025"
    units.loc[2, "years"] = "<3"
    units.loc[3, "in_other_study"] = "perhaps"
    units.loc[4, "screened_at"] = "2999-01-01"
    units.loc[6] = units.loc[5]
    units.loc[8, "unit_id"] = units.loc[7, "unit_id"]
    file = tmp_path / "units.csv"
    units.to_csv(file, index=False)
    with file.open("a", encoding="utf-8") as stream:
        stream.write("HCP99999999,2025-01-06,north,5\n")
    record = Change(experiment=name, action="record", kind="units", file=str(file))
    with warehouse.begin() as connection:
        told = record_file(connection, record, policy, actor="site")
        counts = {key: told[key] for key in ("rows", "new", "updated", "known", "duplicate", "refused")}
        assert counts == {"rows": 13, "new": 4, "updated": 0, "known": 0, "duplicate": 1, "refused": 8}
        assert [(one["row"], one["column"]) for one in told["refused_rows"]] == [
            (1, "unit_id"), (2, "screened_at"), (3, "years"), (4, "in_other_study"), (5, "screened_at"),
            (8, "unit_id"), (9, "unit_id"), (13, ""),
        ]  # fmt: skip
        # No value is told where the UI and its log could show it; they are in the file, for its owner alone.
        assert "<3" not in str(told)
        refused = Path(told["refused_file"])
        assert refused.stat().st_mode & 0o77 == 0
        rows = pd.read_csv(refused, dtype=str)
        assert rows["_row"].tolist() == ["1", "2", "3", "4", "5", "8", "9", "13"]
        assert rows["years"][2] == "<3"
        rows["unit_id"] = [f"HCP1000000{number}" for number in range(8)]
        rows.loc[rows.index != 2, "years"] = "5"
        rows[["screened_at", "in_other_study", "region"]] = ["2025-01-06", "no", "north"]
        rows.to_csv(tmp_path / "corrected.csv", index=False)
        again = record_file(
            connection,
            record.model_copy(update={"file": str(tmp_path / "corrected.csv")}),
            policy,
            actor="site",
        )
        assert (again["new"], again["refused"]) == (7, 1)
        rows.loc[2, "years"] = "3"
        rows.to_csv(tmp_path / "corrected.csv", index=False)
        again = record_file(
            connection,
            record.model_copy(update={"file": str(tmp_path / "corrected.csv")}),
            policy,
            actor="site",
        )
        assert (again["new"], again["known"], again["refused"]) == (1, 7, 0)
        assert not refused.exists()


def test_a_file_without_a_usable_row_or_a_column_is_refused_by_name(
    warehouse, spec, running, tmp_path, policy, monkeypatch
):
    monkeypatch.setenv("E2I_HOME", str(tmp_path / "state"))
    name = running(spec)
    file = tmp_path / "units.csv"
    record = Change(experiment=name, action="record", kind="units", file=str(file))
    screening(3).assign(unit_id=None).to_csv(file, index=False)
    with warehouse.begin() as connection:
        with pytest.raises(InputError, match="none of the 3 rows can be used: 3 with unit_id: is missing"):
            record_file(connection, record, policy, actor="site")
        screening(3).rename(columns={"region": "regoin"}).to_csv(file, index=False)
        with pytest.raises(InputError, match=r"region \(randomization.strata\) Did you mean 'regoin'\?"):
            record_file(connection, record, policy, actor="site")


def test_a_value_is_the_same_whatever_else_a_delivery_holds(
    warehouse, spec, lifecycle, running, tmp_path, policy, monkeypatch
):
    """Sites 1 and 2 in one delivery, A in the next: the repeated rows of the first are known, not changed."""
    monkeypatch.setenv("E2I_HOME", str(tmp_path / "state"))
    name = running(spec)
    file = tmp_path / "units.csv"
    record = Change(experiment=name, action="record", kind="units", file=str(file))
    first = screening(4).assign(region=["1", "2", "1", "2"], years=5)
    later = screening(6).assign(region=["1", "2", "1", "2", "A", "007"], years=5)
    with warehouse.begin() as connection:
        for units, known in ((first, 0), (later, 4)):
            units.to_csv(file, index=False)
            told = record_file(connection, record, policy, actor="site")
            assert (told["known"], told["refused"], told["updated"]) == (known, 0, 0)
        store.record_events(connection, name, consents(later["unit_id"]), source="observed", actor="site")
        store.randomize(connection, name, actor="site")
        frame = store.read_records(connection, name).analysis_frame(spec, lifecycle)
        eligible = later.loc[~later["in_other_study"], "region"]
        assert sorted(frame["region"]) == sorted(eligible)


def test_a_number_that_no_double_holds_refuses_its_row_alone(
    warehouse, spec, running, tmp_path, policy, monkeypatch
):
    monkeypatch.setenv("E2I_HOME", str(tmp_path / "state"))
    name = running(spec)
    file = tmp_path / "rows.csv"
    record = Change(experiment=name, action="record", kind="units", file=str(file))
    units = screening(6).assign(years=["5", "1e400", "5", "5", "5", "5"], code=["7E999", *"abcde"])
    units.to_csv(file, index=False)
    with warehouse.begin() as connection:
        told = record_file(connection, record, policy, actor="site")
        assert (told["new"], told["refused_because"]) == (5, {"years: is no number": 1})
        infinite = screening(8).tail(2).assign(years=[5.0, float("inf")])
        taken = store.screen(connection, name, infinite, cohorts={}, source="observed", actor="site")
        assert (taken.new, taken.reasons) == (1, {"years: is no number": 1})
        screened = store.read_records(connection, name).screened
        eligible = screened.loc[screened["eligible"].astype(bool), "unit_id"]
        store.record_events(connection, name, consents(eligible), source="observed", actor="site")
        store.randomize(connection, name, actor="site")
        given = outcomes(store.read_records(connection, name).assignments, {"usual": 0.3, "treated": 0.75})
        given["value"] = ["1e400", *given["value"].astype(str)[1:]]
        given["observed_at"] = dt.datetime.now(dt.UTC)
        given.to_csv(file, index=False)
        told = record_file(connection, record.model_copy(update={"kind": "outcomes"}), policy, actor="site")
        assert (told["new"], [one["row"] for one in told["refused_rows"]]) == (len(given) - 1, [1])


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
        (made,) = InterimAnalysis.read_all(connection, name)
        assert [look["says"] for look in page.looks] == ["not evaluable"]
        assert (made.decision, made.cumulative_alpha_spent) == ("not_evaluable", 0)
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
        newest = InterimAnalysis.read_newest(connection, name)
        assert newest is not None
        assert newest.boundary_z == report.boundary_z[0]
        assert newest.metrics_snapshot == report
        html = run.report_html(connection, name, lifecycle, blinded=False, actor="carla")
    assert "not evaluable" in html


def test_pages_of_an_empty_experiment_say_so(warehouse, spec, lifecycle, running):
    name = running(spec)
    with warehouse.begin() as connection:
        assert run.assign_waiting(connection, name, actor="site").counts == {"usual": 0, "treated": 0}
        assert run.enrolment_page(connection, name, lifecycle).as_of is None
        assert run.look_page(connection, name, lifecycle, actor="dmc").looks == ()
        assert "running" in run.results_page(connection, name, lifecycle, actor="dmc").reason
        assert run.check_sample_ratio(connection, name, lifecycle, actor="dmc") == (
            True,
            "no unit is assigned yet",
        )
        assert "no twin" in run.fidelity_page(connection, name, lifecycle, actor="dmc").reason
        assert run.report_html(connection, name, lifecycle, blinded=True, actor="dmc").startswith(
            "<!doctype html>"
        )
