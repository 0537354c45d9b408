"""``e2i handover``: what is stored is on the page, and what cannot be read is unknown, not absent."""

import datetime as dt
import json
import os
from unittest.mock import patch

import dagster as dg
import pytest
import sqlalchemy as sa

NOW = dt.datetime.now(dt.UTC)
LATER = NOW + dt.timedelta(days=3)


@pytest.fixture(scope="module")
def stored(environment, command):
    """A row of each kind in the warehouse, a schedule that somebody switched on."""
    from e2i_dagster.tables.description.control import ml_stage_states, ml_table_loads
    from e2i_dagster.tables.description.models import ml_model_stage_history
    from e2i_dagster.tables.description.monitoring import ml_alert_silences, ml_retraining_history
    from e2i_dagster.tables.description.quality import ml_gate_waivers

    assert command("status").returncode == 0
    engine = sa.create_engine(environment["E2I_DATABASE_URL"])
    load = {"source": "f", "delivered": 2, "inserted": 0, "updated": 0, "unchanged": 0, "duplicates": 0}
    event = {
        "model_name": "e2i-m", "model_version": "3", "to_stage": "production", "actor": "anna",
        "authentication": "self-declared", "reason": "seven quiet days", "simulated_days": 0.0,
    }  # fmt: skip
    with engine.begin() as connection:
        for name, at, status in (
            ("triggers", NOW - dt.timedelta(days=2), "failed"),
            ("triggers", NOW, "loaded"),
            ("treatment_events", NOW, "partial"),
        ):
            row = {"load_id": f"{name}{at}", "table_name": name, "status": status, "rejected": 2, **load}
            connection.execute(
                sa.insert(ml_table_loads).values(
                    **row, message="2024-11 is withheld", loaded_at=at, seconds=1.0
                )
            )
        for state in ("failed", "executed"):
            connection.execute(
                sa.insert(ml_stage_states).values(
                    stage=f"stage_{state}", partition="s", state=state, reason="its reason", at=NOW
                )
            )
        for rule, until in (("no_rows", LATER), ("distribution_shift", NOW - dt.timedelta(days=1))):
            connection.execute(
                sa.insert(ml_gate_waivers).values(
                    table_name="triggers", partition="2024-11", digest="d", rule_id=rule, reason="known gap",
                    waived_by="ben", authentication="self-declared", created_at=NOW - dt.timedelta(days=3),
                    expires_at=until,
                )
            )  # fmt: skip
        connection.execute(
            sa.insert(ml_alert_silences).values(
                alert_type="drift", reason="campaign", silenced_by="eva", authentication="self-declared",
                ends_at=LATER,
            )
        )  # fmt: skip
        connection.execute(
            sa.insert(ml_retraining_history).values(
                scope="s", model_id="e2i-m/2", trigger_type="data_drift", trigger_reason="ages moved",
                status="proposed", run_id="r",
            )
        )  # fmt: skip
        for version, actions in {"3": ["proposed"], "2": ["proposed", "rejected"]}.items():
            for action in actions:
                connection.execute(
                    sa.insert(ml_model_stage_history).values(
                        **event | {"model_version": version}, action=action
                    )
                )
    engine.dispose()
    with patch.dict(os.environ, environment, clear=True):
        from e2i_dagster.definitions import defs
        from resources.local_instance import dagster_home

        repository = defs.get_repository_def()
        with dg.DagsterInstance.from_config(str(dagster_home())) as instance:
            from dagster._core.remote_origin import (
                InProcessCodeLocationOrigin,
                RemoteRepositoryOrigin,
            )
            from dagster._core.scheduler.instigation import (
                InstigatorState,
                InstigatorStatus,
                InstigatorType,
                ScheduleInstigatorData,
            )
            from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

            schedule = repository.get_schedule_def("monthly_load")
            origin = RemoteRepositoryOrigin(
                InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="e2i_dagster.definitions")),
                repository.name,
            ).get_instigator_origin(schedule.name)
            instance.add_instigator_state(
                InstigatorState(
                    origin,
                    InstigatorType.SCHEDULE,
                    InstigatorStatus.RUNNING,
                    ScheduleInstigatorData("0 5 6 * *", NOW.timestamp()),
                )
            )


def test_everything_stored_is_on_the_page(stored, command, tmp_path):
    page = tmp_path / "handover.html"
    done = command("handover", "--json", "--html", str(page))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    rows = {key: part["rows"] for key, part in record["parts"].items()}
    assert [part["unknown"] for part in record["parts"].values()] == [None] * len(rows)
    assert [(row["table"], row["status"]) for row in rows["loads"]] == [("treatment_events", "partial")]
    assert [row["stage"] for row in rows["stages"]] == ["stage_failed"]
    assert [row["rule"] for row in rows["waivers"]] == ["no_rows"], "one that expired holds no more"
    assert [row["silenced_by"] for row in rows["silences"]] == ["eva"]
    assert [(row["model"], row["version"]) for row in rows["proposals"]] == [("e2i-m", "3")]
    assert [row["scope"] for row in rows["retraining"]] == ["s"]
    states = {row["name"]: (row["state"], row["set by"]) for row in rows["automations"]}
    assert states["monthly_load"] == ("on", "switched by somebody")
    assert states["daily_digest"] == ("off", "as delivered")
    assert states["run_history_retention"] == ("on", "as delivered")
    assert record["waiting"]["proposals"] == 1 and record["waiting"]["rejects"] == 0
    html = page.read_text(encoding="utf-8")
    for word in ("seven quiet days", "known gap", "campaign", "monthly_load", "2024-11 is withheld"):
        assert word in html
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html


def test_the_text_says_the_same(stored, command):
    done = command("handover")
    assert "Open rejects: No open rejects." in done.stdout
    assert "known gap" in done.stdout and "ages moved" in done.stdout


def test_what_cannot_be_read_is_unknown(environment, command):
    done = command("handover", "--json", E2I_DATABASE_URL="postgresql://x:y@127.0.0.1:1/none")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["parts"]["waivers"]["unknown"] and record["waiting"]["rejects"] is None
    assert record["parts"]["automations"]["unknown"] is None and record["parts"]["automations"]["rows"]
    text = command("handover", E2I_DATABASE_URL="postgresql://x:y@127.0.0.1:1/none").stdout
    assert "Waivers that hold: unknown: " in text


def test_a_draft_names_the_scopes_that_wait_for_it(environment, command, tmp_path):
    import shutil

    config = tmp_path / "config"
    shutil.copytree(environment["E2I_CONFIG"], config)
    cohort = config / "cohorts" / "fabhalta_pnh.yaml"
    text = cohort.read_text(encoding="utf-8")
    start = text.index("status:")
    end = text.index("\n", start)
    cohort.write_text(f"{text[:start]}status: draft{text[end:]}", encoding="utf-8")
    record = json.loads(command("handover", "--json", E2I_CONFIG=str(config)).stdout)
    (row,) = record["parts"]["drafts"]["rows"]
    assert row["cohort"] == "fabhalta_pnh"
    assert "fabhalta_pnh_initiation" in row["scopes that stay in development"]
