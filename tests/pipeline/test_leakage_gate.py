"""Nothing is trained on a frame, or on splits, that leak or were never audited; in one run and across runs."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from pipeline_runs import said

from commands.cli import main
from e2i_dagster.features.selection import FeatureSelection
from e2i_dagster.pipeline.states import Execution
from e2i_dagster.quality.gate import QCGateBlockedError, require_audit
from e2i_dagster.versions.lake import value_digest
from resources.lake import Outcome, Pieces

SCOPE = "remibrutinib_csu_initiation"
SELECTION = FeatureSelection(rows=1, kept=("strong",), dropped=(), mutual_information={"strong": 0.3})


def clean(n=600, seed=1):
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=n)
    label = (2 * strong + rng.logistic(size=n) > 0).astype("int64")
    more = {f"measure_{number}": rng.normal(size=n) for number in range(6)}
    return pd.DataFrame(
        {
            "patient_id": pd.array([f"PAT{number:08d}" for number in range(n)], dtype="string[pyarrow]"),
            "patient_journey_id": pd.array(
                [f"PJ{number:016d}" for number in range(n)], dtype="string[pyarrow]"
            ),
            "index_date": pd.Timestamp("2024-01-10"),
            "label": pd.array(label, dtype="Int64"),
            "strong": strong,
            **more,
        }
    )


def leaking():
    frame = clean()
    return frame.assign(refills_after=frame["label"].astype("float64") * 2)


def doubled():
    """Every tenth patient comes again under a second identifier."""
    frame = clean()
    again = frame.iloc[::10].assign(
        patient_id=pd.array([f"PAT9{number:07d}" for number in range(60)], dtype="string[pyarrow]")
    )
    return pd.concat([frame, again], ignore_index=True)


@pytest.fixture
def store(pipeline):
    """Puts a value into lake and ledger, as the step of the asset would."""

    def write(asset, value):
        pieces = Pieces({SCOPE: value}, {SCOPE: value_digest(value)}, "made by hand", "test")
        execution = Execution(asset, [SCOPE], "run-by-hand")
        pipeline.defs.resources["lake"].store(Outcome(execution, pieces))

    return write


def audit(pipeline, scope=SCOPE):
    return pipeline.defs.resolve_job_def("leakage_audit").execute_in_process(
        run_config={"ops": {"audit_scope": {"config": {"scope": scope}}}},
        instance=pipeline.instance,
        raise_on_error=False,
    )


def versions(pipeline, *assets):
    return [(asset, SCOPE, pipeline.versions(asset)[SCOPE].digest) for asset in assets]


def checks_of(result):
    return {
        (check.asset_key.to_user_string(), check.check_name): check
        for check in result.get_asset_check_evaluations()
    }


def test_frame_is_audited_before_it_is_split_and_its_verdict_holds_across_runs(pipeline, store):
    store("training_frame", clean())
    refused = pipeline.run("scope_pipeline", partition=SCOPE, assets=["scope_spec", "splits"])
    assert not refused.success
    text = said(refused)
    assert f"table training_frame, partition {SCOPE}: not_checked" in text
    assert f"e2i leakage-audit --scope {SCOPE}" in text

    assert audit(pipeline).success
    made = pipeline.run("scope_pipeline", partition=SCOPE, assets=["scope_spec", "splits"])
    assert made.success, said(made)
    gate = checks_of(made)["splits", "leakage_gate"]
    assert gate.passed and gate.blocking and gate.description == "no leak was found"

    # Another version of the frame is not covered by the verdict on the first one.
    store("feature_selection", SELECTION)
    store("training_frame", leaking())
    refused = said(pipeline.run("scope_pipeline", partition=SCOPE, assets=["algorithm"]))
    assert "table training_frame" in refused and "table splits" in refused and "not_checked" in refused

    audited = audit(pipeline)
    assert not audited.success and "refills_after" in said(audited)
    shown = checks_of(audited)["training_frame", "leakage_gate"]
    assert not shown.passed and "refills_after" in shown.description
    refused = pipeline.run("scope_pipeline", partition=SCOPE, assets=["algorithm"])
    assert not refused.success
    text = said(refused)
    assert "leakage_target on refills_after" in text and "docs/rules/leakage_target.md" in text
    assert "never waived" in text and "gate waive" not in text
    (state,) = pipeline.rows("SELECT state FROM ml_stage_states WHERE stage = 'algorithm'")
    assert state["state"] == "blocked"

    store("training_frame", clean())
    with pipeline.warehouse.connect() as connection:
        assert len(require_audit(connection, versions(pipeline, "training_frame", "splits"))) == 2


def test_leaking_splits_stop_training_in_the_same_run(pipeline, store):
    store("training_frame", doubled())
    store("feature_selection", SELECTION)
    assert audit(pipeline).success, "the frame by itself has no splits yet"
    result = pipeline.run("scope_pipeline", partition=SCOPE, assets=["scope_spec", "splits", "algorithm"])
    assert not result.success
    gate = checks_of(result)["splits", "leakage_gate"]
    assert not gate.passed and gate.blocking and "leakage_duplicate_rows" in gate.description
    started = {event.step_key for event in result.all_events if event.event_type_value == "STEP_START"}
    assert "algorithm" not in started
    (alert,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts")
    assert (alert["alert_type"], alert["subject"], alert["level"]) == ("leakage", "splits", "critical")
    with (
        pipeline.warehouse.connect() as connection,
        pytest.raises(QCGateBlockedError, match="duplicate_rows"),
    ):
        require_audit(connection, versions(pipeline, "training_frame", "splits"))


def test_frame_that_cannot_be_audited_blocks(pipeline, store):
    store("training_frame", clean(n=30))
    audited = audit(pipeline)
    assert not audited.success
    assert "leakage check target did not run: 30 labelled rows" in said(audited)


def test_unknown_scope_and_missing_frame_are_told(pipeline):
    assert "never materialized" in said(audit(pipeline))
    assert "Known scopes" in said(audit(pipeline, scope="nobody"))


def test_the_command_prints_every_finding_with_its_remedy_whether_it_blocks_or_not(pipeline, store):
    """A patient with two outcome windows that overlap is a warning: it is told, and the verdict stays yes."""
    frame = clean()
    again = frame.iloc[:3].assign(index_date=pd.Timestamp("2024-01-20"))
    store("training_frame", pd.concat([frame, again], ignore_index=True))
    warned = CliRunner().invoke(main, ["leakage-audit", "--scope", SCOPE, "--json"], catch_exceptions=False)
    assert warned.exit_code == 0, warned.output
    told = json.loads(warned.stdout)
    assert not told["blocking"] and told["findings"]
    assert all(one["severity"] != "fatal" and one["remedy"] for one in told["findings"])

    store("training_frame", pd.concat([leaking(), again], ignore_index=True))
    refused = CliRunner().invoke(main, ["leakage-audit", "--scope", SCOPE, "--json"], catch_exceptions=False)
    assert refused.exit_code == 4, refused.output
    told = json.loads(refused.stdout)
    by_severity = {one["severity"] for one in told["findings"]}
    assert told["blocking"] and told["findings"][0]["severity"] == "fatal" and len(by_severity) > 1
    (fatal,) = [one for one in told["findings"] if one["severity"] == "fatal"]
    assert (fatal["asset"], fatal["rule"], fatal["columns"]) == (
        "training_frame", "leakage_target", "refills_after",
    )  # fmt: skip
    assert told["error"]["field"] == "refills_after"
    assert fatal["remedy"].lower() in told["error"]["message"].lower()
