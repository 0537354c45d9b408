"""The job and the sensor in this process, on an instance of the test's own."""

from __future__ import annotations

import datetime as dt
import shutil
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa

from commands.launch import failure_text
from e2i_dagster.config.policy import current_policy
from e2i_dagster.definitions import build_resources
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.conduct import simulation, store
from e2i_dagster.experiments.conduct.interim_looks import make_look
from e2i_dagster.experiments.conduct.records import InterimAnalysis
from e2i_dagster.experiments.conduct.run import report_html
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.description import experiments as tables
from e2i_dagster.tables.description.monitoring import ml_monitoring_alerts
from sensors.experiments import experiment_monitor

NAME = "remibrutinib_outreach"


@pytest.fixture
def defs(warehouse, tmp_path, monkeypatch):
    from e2i_dagster.definitions import defs

    monkeypatch.setenv("E2I_LAKE", str(tmp_path / "lake"))
    return defs


def run_job(defs, instance, job, config=None, partition=None):
    from jobs.sequence import PlannedRun, execute

    return execute(defs, PlannedRun(job, partition), instance, config)


def look_around(instance, cursor=None) -> Any:
    resources = build_resources()
    given = {name: resources[name] for name in ("warehouse", "alerts")}
    with dg.build_sensor_context(instance=instance, resources=given, cursor=cursor) as context:
        return experiment_monitor(context)


def changed_config(tmp_path, monkeypatch, before, after):
    """The folder of policy with one text of the shipped design replaced, in force from now on."""
    folder = tmp_path / "changed"
    shutil.copytree(CHECKOUT / "config", folder)
    path = folder / f"experiments/{NAME}.yaml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    monkeypatch.setenv("E2I_CONFIG", str(folder))


def change(defs, instance, **fields):
    config = {"ops": {"change": {"config": {"experiment": NAME, **fields}}}}
    return run_job(defs, instance, "change_experiment", config)


def test_the_shipped_example_from_draft_to_its_first_look(defs, warehouse, lifecycle, tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        refused = change(
            defs, instance, action="transition", state="approved", reason="too early", people="x"
        )
        assert not refused.success
        for state in ("in_review", "approved", "scheduled", "running"):
            if state == "approved":
                for role in lifecycle.approvals.roles:
                    assert change(
                        defs, instance, action="approve", role=role, reason="fine", people=role
                    ).success
            step = {"action": "transition", "state": state, "reason": "test", "people": "analyst"}
            assert change(defs, instance, **step).success
        assert change(defs, instance, action="simulate").success
        (request,) = look_around(instance).run_requests
        assert (request.partition_key, request.run_key) == (NAME, f"{NAME}:look:1")
        # Until the look is made every tick asks with the same key, which Dagster runs once.
        assert look_around(instance).run_requests[0].run_key == request.run_key
        done = run_job(defs, instance, "run_experiment", partition=NAME)
        assert done.success
        made = {
            event.asset_key.path[-1]: event
            for event in done.get_asset_materialization_events()
            if event.asset_key is not None
        }
        assert set(made) == {
            "experiment_design", "assignments", "enrolment", "interim", "results", "twin_fidelity",
        }  # fmt: skip
        with warehouse.begin() as connection:
            held = store.read(connection, NAME)
            (look,) = InterimAnalysis.read_all(connection, NAME)
            blinded = report_html(connection, NAME, lifecycle, blinded=True, actor="test")
        assert held.simulated
        assert look.information_fraction >= 0.25
        # The committee alone knows z and the effect: neither is on a page, in metadata or in the lake.
        secret = [f"{look.test_statistic:.3f}", f"{look.effect_estimate:.4f}"]
        shown = str([event.materialization.metadata for event in made.values()]) + blinded
        stored = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "lake").rglob("*.json"))
        for value in secret:
            assert value not in shown
            assert value not in stored
        assert "SIM0000" not in shown + stored
        # Its look is made: the monitor asks for it no more.
        assert not look_around(instance).run_requests
        again = run_job(defs, instance, "run_experiment", partition=NAME)
        assert again.success
        # Locked since the first assignment: a changed file blocks the job until it is an amendment.
        changed_config(
            tmp_path, monkeypatch, "missing_outcomes: complete_cases", "missing_outcomes: non_responder"
        )
        blocked = run_job(defs, instance, "run_experiment", partition=NAME)
        assert not blocked.success
        assert "locked since its first assignment" in failure_text(blocked)
        assert change(defs, instance, action="amend", reason="agreed with the committee").success
    designs = tables.ab_experiment_designs
    with warehouse.begin() as connection:
        (made,) = InterimAnalysis.read_all(connection, NAME)
        assert made.cumulative_alpha_spent == look.cumulative_alpha_spent
        rows = connection.execute(
            sa.select(designs.c.version, designs.c.amendment, designs.c.reason).order_by(designs.c.version)
        ).all()
        assert rows == [(1, False, "registered"), (2, True, "agreed with the committee")]
        assert make_look(connection, NAME, policy=lifecycle, actor="test") is None
        assert store.audit(connection, NAME).passed


def test_an_overdue_approval_is_told_once(warehouse, lifecycle):
    past = dt.datetime.now(dt.UTC) - dt.timedelta(hours=lifecycle.approvals.hours + 1)
    with warehouse.begin() as connection:
        store.register(connection, current_policy().experiments[NAME], actor="carla")
        connection.execute(
            tables.ab_experiment_transitions.insert().values(
                experiment=NAME, from_state="draft", to_state="in_review", reason="complete", evidence={},
                recorded_by="carla", recorded_at=past,
            )
        )  # fmt: skip
        connection.execute(tables.ab_experiments.update().values(state="in_review"))
    with dg.DagsterInstance.ephemeral() as instance:
        first = look_around(instance)
        assert "approval of analytics_lead, brand_lead was due" in str(first.skip_reason)
        assert "was due" not in str(look_around(instance, first.cursor).skip_reason)
    with warehouse.begin() as connection:
        alerts = connection.execute(
            sa.select(ml_monitoring_alerts.c.title, ml_monitoring_alerts.c.occurrences)
        )
        assert alerts.all() == [(f"approval of experiment {NAME}", 1)]


def test_an_error_of_the_monitor_is_no_skip(warehouse, monkeypatch):
    def broken(*_, **__):
        raise InputError("the records cannot be read")

    monkeypatch.setattr("e2i_dagster.experiments.conduct.monitor.observe", broken)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(InputError, match="cannot be read"):
        look_around(instance)


def test_a_stream_is_what_its_effects_say_and_goes_on_where_it_was():
    spec = current_policy().experiments[NAME]
    stream = simulation.draw_stream(spec, seed=5)
    units = stream.units
    assert units["screened_at"].is_monotonic_increasing
    assigned = pd.DataFrame(
        {
            "unit_id": units["unit_id"],
            "variant": [spec.control, spec.treatments[0]] * (len(units) // 2),
            "assigned_at": units["screened_at"],
        }
    )
    end = pd.Timestamp("2100-01-01", tz="UTC")
    whole = simulation.observed_outcomes(stream, spec, assigned, end)
    primary = whole[whole["metric"] == spec.metrics.primary.name].merge(assigned, on="unit_id")
    means = primary.groupby("variant")["value"].mean()
    assert means[spec.treatments[0]] - means[spec.control] == pytest.approx(
        float((stream.draws["p1"] - stream.draws["p0"]).mean()), abs=0.05
    )
    part = simulation.observed_outcomes(stream, spec, assigned, units["screened_at"].iloc[500])
    assert part.merge(whole, how="left", indicator=True)["_merge"].eq("both").all()
    nothing = simulation.draw_stream(spec, seed=5, null_effect=True)
    assert nothing.true_effect == 0
