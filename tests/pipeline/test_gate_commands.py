"""`e2i gate` and `e2i leakage-audit` as they are typed; and what production refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from pipeline_runs import PATIENTS

from commands.cli import main
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.environment import production, refuse_generated_secret

RULE = "dimension_completeness"


def e2i(*arguments):
    return CliRunner().invoke(main, arguments)


def test_a_block_is_shown_waived_and_shown_as_waived(pipeline, delivery, drawn):
    sparse = drawn["patient_journeys"].assign(
        insurance_type=None, gender=None, age_group=None, geographic_region=None
    )
    assert not pipeline.load(delivery(*PATIENTS, patient_journeys=sparse), *PATIENTS).success

    shown = e2i("gate", "show", "--json")

    assert shown.exit_code == 4
    states = {row["table"]: row for row in json.loads(shown.stdout)["data_versions"]}
    assert states["patient_journeys"]["state"] == "blocked" and states["patient_journeys"]["rules"] == RULE
    assert states["hcp_profiles"]["state"] == "not_checked"
    assert states["patient_clinical"]["state"] in ("passed", "warning")
    assert "blocked" in e2i("gate", "show", "--table", "patient_journeys").output

    refused = e2i("gate", "waive", "patient_journeys", "--rule", "schema_order", "--reason", "we know this")
    assert refused.exit_code == 4 and "cannot be waived" in refused.output
    assert "No waivers" in e2i("gate", "waivers").output

    made = e2i("gate", "waive", "patient_journeys", "--rule", RULE, "--reason", "resent on Monday", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["waived_by"] == os.environ["E2I_ACTOR"]
    (waiver,) = json.loads(e2i("gate", "waivers", "--json").stdout)
    assert (waiver["rule"], waiver["reason"]) == (RULE, "resent on Monday")
    shown = e2i("gate", "show", "--table", "patient_journeys", "--json")
    assert shown.exit_code == 0 and json.loads(shown.stdout)["data_versions"][0]["state"] == "waived"


def test_data_docs_of_a_table_are_built_on_demand(pipeline, delivery, drawn):
    profiles = drawn["hcp_profiles"].assign(sales_rep_id="canary-12")
    assert pipeline.load(delivery(hcp_profiles=profiles), "hcp_profiles").success

    made = e2i("gate", "docs", "hcp_profiles", "--json")

    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert told["expectations"].startswith("all: ") and told["expectations"].split("; not")[0] in page
    assert not any(text in page for text in (profiles["npi"].iloc[0], "HCP0", "canary-12", "https:"))


def test_warnings_of_the_gate_are_told_by_the_digest_job(pipeline):
    from e2i_dagster.monitoring.alerts import gate_alerts
    from e2i_dagster.quality.table_check import GateResult

    alerts = pipeline.defs.resources["alerts"]
    passing = GateResult(True, "WARN: 1 waived", 2, ("triggers [2024-03]: rule waived",), ("2024-01",))
    assert [one.severity for one in gate_alerts("triggers", passing, run_id="r")] == ["medium", "medium"]
    assert gate_alerts("triggers", GateResult(True, "all 2 passed", 2), run_id="r") == []
    (block,) = gate_alerts("triggers", GateResult(False, "blocked", 2), run_id="r")
    assert block.severity == "critical" and block.link == "/runs/r"
    for alert in gate_alerts("triggers", passing, run_id="r"):
        alerts.send(alert)
    done = pipeline.defs.resolve_job_def("alert_digest").execute_in_process(instance=pipeline.instance)
    assert done.success
    rows = pipeline.rows("SELECT title, level, notification, digested_at FROM ml_monitoring_alerts")
    assert {row["title"] for row in rows} == {"triggers is used under a waiver", "triggers has warnings"}
    assert all(row["level"] == "warning" and row["digested_at"] is not None for row in rows)
    assert {row["notification"] for row in rows} == {"not_configured"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_of_ones_own_is_audited(tmp_path, suffix):
    rng = np.random.default_rng(1)
    answer = np.where(rng.random(300) < 0.4, "yes", "no")
    frame = pd.DataFrame(
        {
            "person": np.arange(300),
            "day": "2024-03-01",
            "answer": answer,
            "age": rng.integers(18, 80, 300),
            "part": rng.choice(["a", "b"], 300),
        }
    )
    path = tmp_path / f"frame.{suffix}"
    arguments = ("--file", str(path), "--target", "answer", "--id", "person", "--index-date", "day")

    def write(frame):
        (frame.to_csv if suffix == "csv" else frame.to_parquet)(path, index=False)

    write(frame)
    clean = e2i("leakage-audit", *arguments, "--splits", "part")
    assert clean.exit_code == 0, clean.output
    write(frame.assign(call=np.where(answer == "yes", 7, 3), visit="2024-03-09"))
    leaking = e2i("leakage-audit", *arguments, "--json")
    assert leaking.exit_code == 4
    told = json.loads(leaking.stdout)
    assert {(one["rule"], one["columns"]) for one in told["findings"]} == {
        ("leakage_temporal", "visit"),
        ("leakage_target", "call"),
    }
    assert told["not_run"] == ["contamination: no splits were given"]
    write(frame.assign(outcome_window_end="2024-04-30"))
    named = e2i("leakage-audit", *arguments, "--json")
    assert [one["columns"] for one in json.loads(named.stdout)["findings"]] == ["outcome_window_end"]
    assert e2i("leakage-audit", *arguments, "--outcome-window", "outcome_window_end").exit_code == 0
    missing = e2i("leakage-audit", "--file", str(path), "--target", "outcome")
    assert missing.exit_code == 3 and "has no column outcome" in missing.output


def test_scope_without_a_frame_and_unreadable_file_are_told(pipeline, tmp_path):
    none = e2i("leakage-audit")
    assert none.exit_code == 3 and "never materialized" in none.output
    (tmp_path / "frame.parquet").write_text("no parquet")
    unreadable = e2i("leakage-audit", "--file", str(tmp_path / "frame.parquet"))
    assert unreadable.exit_code == 3 and "not readable as Parquet" in unreadable.output


def test_production_refuses_secrets_that_would_be_generated(monkeypatch, tmp_path):
    from e2i_dagster.database.server import ensure_server

    assert not production()
    refuse_generated_secret("key", "E2I_SOME_KEY")
    monkeypatch.setenv("E2I_ENVIRONMENT", "production")
    with pytest.raises(ConfigError, match="Set E2I_DATABASE_URL") as caught:
        ensure_server(tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state").exists(), "nothing was made before the refusal"
    monkeypatch.setenv("E2I_ENVIRONMENT", "prod")
    with pytest.raises(ConfigError, match="Set it to development or production"):
        ensure_server(tmp_path / "state")


def test_stage_with_broken_policy_ends_with_a_state(pipeline, tmp_path, monkeypatch):
    """The policy that a stage depends on is read before its body: its fault is a state of the stage, too."""
    import assets.cohorts as module

    def broken():
        raise ConfigError("cohorts/remibrutinib_csu.yaml:3: found 'x'; expected a date")

    monkeypatch.setattr(module, "current_policy", broken)
    result = pipeline.run("build_cohorts", partition="remibrutinib_csu", assets=["cohort_definition"])
    assert not result.success
    (state,) = pipeline.rows("SELECT state, reason FROM ml_stage_states WHERE stage = 'cohort_definition'")
    assert state["state"] == "failed" and "remibrutinib_csu.yaml:3" in state["reason"]
