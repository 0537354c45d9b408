"""Explain, diff, preview: what changed and why, for those who may know, and suppressed for the others."""

import json
import uuid

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from e2i_dagster.cohorts import (
    CohortDefinition,
    build_cohort,
    compare,
    explain,
    preview,
    read_cohort,
    record_cohort,
)
from e2i_dagster.cohorts.disclosure import shown_partition
from e2i_dagster.cohorts.executions import find_execution, read_execution
from e2i_dagster.config.scope import read_scope
from e2i_dagster.errors import InputError
from e2i_dagster.tables.description.cohorts import ml_patient_level_access
from e2i_dagster.tables.description.control import ml_data_versions
from e2i_dagster.tables.description.models import ml_experiments, ml_model_registry, ml_training_runs

DAY = pd.Timestamp("2024-01-01")


def definition(**changes) -> CohortDefinition:
    return CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}],
            "exclusion_criteria": [{"field": "risk", "operator": "==", "value": True}],
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
        }
        | changes
    )


def adults_from(age: int, **changes) -> CohortDefinition:
    return definition(inclusion_criteria=[{"field": "age", "operator": ">=", "value": age}], **changes)


def patients(ages, risk=None) -> pd.DataFrame:
    n = len(ages)
    return pd.DataFrame(
        {
            "patient_id": [f"P{k:03d}" for k in range(n)],
            "patient_journey_id": [f"J{k:03d}" for k in range(n)],
            "age": np.array(ages, dtype=float),
            "risk": pd.array(risk or [False] * n, dtype="boolean"),
            "diagnosis_date": DAY,
            "first_observation_date": DAY,
            "last_observation_date": DAY,
        }
    )


def test_rules_that_changed_are_said_in_words():
    old = definition()
    new = definition(
        version="2.0.0",
        inclusion_criteria=[
            {"field": "age", "operator": ">=", "value": 21},
            {"field": "stage", "operator": "in", "value": ["a"], "on_unknown": "include"},
        ],
        exclusion_criteria=[{"field": "risk", "operator": "==", "value": True, "name": "at_risk"}],
        temporal_requirements={"lookback_days": 30, "followup_days": 0},
    )
    said = [change.words() for change in compare(old, new).rules]
    assert said == [
        "Rule age: was 'keep when age is at least 18; unknown is removed', is now "
        "'keep when age is at least 21; unknown is removed'.",
        "New rule stage: keep when stage is one of a; unknown is kept.",
        "Rule risk has another name: risk is now at_risk.",
        "Rule lookback: was 'Observed for at least 0 days before the index date', is now "
        "'Observed for at least 30 days before the index date'.",
    ]
    assert compare(old, old).unchanged
    back = [change.change for change in compare(new, old).rules]
    assert back == ["changed", "renamed", "changed", "removed"]


def test_lost_and_gained_have_the_rule_that_did_it():
    frame = patients([17] * 20 + [19] * 30 + [40] * 50, risk=[False] * 50 + [True] * 15 + [False] * 35)
    old, new = build_cohort(definition(), frame), build_cohort(adults_from(21, exclusion_criteria=[]), frame)
    found = compare(old, new)
    assert (found.old_count, found.new_count) == (65, 50)
    assert found.lost["rule"].tolist() == ["age"] * 30
    assert found.gained["rule"].tolist() == ["risk"] * 15
    assert set(found.lost["patient_id"]) == {f"P{k:03d}" for k in range(20, 50)}
    told = found.to_metadata()
    assert (told["eligible_before"], told["eligible_after"], told["lost"], told["gained"]) == (
        "65", "50", "30", "15",
    )  # fmt: skip
    assert told["lost_by_rule"] == [{"rule": "age", "patients": "30"}]


def test_other_data_lose_patients_who_are_not_there_any_more():
    frame = patients([40] * 60)
    found = compare(build_cohort(definition(), frame), build_cohort(definition(), frame.iloc[:40]))
    assert not found.rules and not found.unchanged
    assert set(found.lost["rule"]) == {"not in the data"} and len(found.lost) == 20


def test_a_small_difference_is_hidden_on_both_sides_of_the_subtraction():
    frame = patients([17] * 20 + [19] * 3 + [40] * 50)
    found = compare(build_cohort(definition(), frame), build_cohort(adults_from(21), frame))
    told = found.to_metadata()
    assert (told["eligible_before"], told["eligible_after"]) == ("53", "suppressed")
    assert (told["lost"], told["gained"]) == ("<11", "suppressed")
    assert told["lost_by_rule"] == [{"rule": "age", "patients": "suppressed"}]
    exact = found.to_metadata(exact=True)
    assert (exact["eligible_after"], exact["lost"], exact["gained"]) == ("50", "3", "0")
    seen = preview(adults_from(21), frame, live=definition(), data_end=None).to_metadata()
    assert seen["eligible_patients"] == "suppressed"
    assert [step["remaining"] for step in seen["attrition"]][:2] == ["73", "suppressed"]
    assert "50" not in json.dumps(seen["attrition"]) and "53" not in json.dumps(seen["attrition"])


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"a": 40, "b": 20}, {"a": "40", "b": "20"}),
        ({"a": 40, "b": 20, "c": 3}, {"a": "40", "b": "suppressed", "c": "suppressed"}),
        ({"a": 40, "b": 6, "c": 7}, {"a": "40", "c": "suppressed", "b": "suppressed"}),
        ({"a": 40, "b": 2, "c": 2}, {"a": "suppressed", "b": "suppressed", "c": "suppressed"}),
        ({}, {}),
    ],
)
def test_groups_that_add_up_to_a_shown_total(counts, shown):
    assert shown_partition(counts) == shown


def test_preview_of_a_shipped_cohort_says_what_its_scope_would_feel():
    """Narrower rules: fewer labelled patients, and the scope's own refusal when they are too few."""
    from e2i_dagster.cohorts import patient_frame
    from e2i_dagster.synthetic.generate import generate

    tables = generate("confounded", n_hcps=60, n_patients=1_200, n_treatments=3_600, n_metrics=6,
                      n_causal_paths=6, n_activities=6, seed=3)  # fmt: skip
    live = read_cohort("remibrutinib_csu")
    severe = live.model_copy(
        update={
            "version": "1.1.0",
            "inclusion_criteria": tuple(
                rule.model_copy(update={"value": 28}) if rule.field == "urticaria_severity_uas7" else rule
                for rule in live.inclusion_criteria
            ),
        }
    )
    frame = patient_frame(tables["patient_journeys"], tables["patient_clinical"])
    before = frame.copy()
    seen = preview(
        severe, frame, live=live, scopes=[read_scope("remibrutinib_csu_initiation")], tables=tables,
        data_end="2024-12-31",
    )  # fmt: skip
    pd.testing.assert_frame_equal(frame, before)
    (effect,) = seen.scopes
    assert effect.labelled_before > effect.labelled_after > 0
    assert any("labelled patients" in reason for reason in effect.refused)
    assert seen.comparison.gained.empty
    assert set(seen.comparison.lost["rule"]) == {"urticaria_severity_uas7"}
    told = seen.to_metadata()
    assert told["difference"]["rules_changed"][0].startswith("Rule urticaria_severity_uas7: was ")


def shipped_rows():
    """Three invented patients: in, two rules failed, unknown kept."""
    typical = read_cohort("remibrutinib_csu").examples[0].patient
    changes = ({}, {"age_at_diagnosis": 17, "urticaria_severity_uas7": None}, {"pregnancy_status": None})
    rows = [
        {**typical, **change, "patient_id": f"P{k}", "patient_journey_id": f"J{k}"}
        for k, change in enumerate(changes)
    ]
    return pd.DataFrame(rows).astype(object)


def test_explain_says_every_rule_and_is_as_of_an_execution(connection):
    shipped = read_cohort("remibrutinib_csu")
    frame = shipped_rows()
    record_cohort(connection, build_cohort(shipped, frame, data_end="2024-12-31"), execution_id="run-1:x")
    frame.loc[1, "age_at_diagnosis"] = 40
    record_cohort(connection, build_cohort(shipped, frame, data_end="2024-12-31"), execution_id="run-2:x")
    (now,) = explain(connection, "remibrutinib_csu", "P1").journeys
    (then,) = explain(connection, "remibrutinib_csu", "J1", as_of="run-1").journeys
    assert now.failed_rules == ("urticaria_severity_uas7",)
    assert then.failed_rules == ("age_at_diagnosis", "urticaria_severity_uas7")
    assert then.words() == "excluded by age_at_diagnosis, urticaria_severity_uas7"
    verdicts = {rule.rule: rule.verdict for rule in then.rules}
    assert (verdicts["age_at_diagnosis"], verdicts["urticaria_severity_uas7"]) == (
        "failed",
        "unknown, removed",
    )
    (kept,) = explain(connection, "remibrutinib_csu", "P2").journeys
    assert kept.verdict == "eligible"
    assert {rule.rule: rule.verdict for rule in kept.rules}["pregnancy_status"] == "unknown, kept"


def test_what_explain_does_not_know_is_named(connection):
    with pytest.raises(InputError, match="has no recorded execution"):
        explain(connection, "remibrutinib_csu", "P1")
    record_cohort(
        connection, build_cohort(read_cohort("remibrutinib_csu"), shipped_rows()), execution_id="a:x"
    )
    with pytest.raises(InputError, match="no patient and no journey with this key") as error:
        explain(connection, "remibrutinib_csu", "SOMEBODY")
    assert "SOMEBODY" not in str(error.value)
    with pytest.raises(InputError, match="no version, no run and no model 'b'") as error:
        explain(connection, "remibrutinib_csu", "P1", as_of="b")
    assert "a:x" in str(error.value)


def test_as_of_a_model_is_the_build_that_it_learned_from(database):
    shipped, frame = read_cohort("remibrutinib_csu"), shipped_rows()
    scope = "remibrutinib_csu_initiation"
    registered = ("e2i-remibrutinib-classification", "3")
    with database.begin() as opened:

        def build(run, asset_digests=()):
            record_cohort(opened, build_cohort(shipped, frame), execution_id=f"{run}:remibrutinib_csu")
            for asset, digest in asset_digests:
                opened.execute(ml_data_versions.insert().values(
                    asset=asset, partition=scope, digest=digest, rows=1, run_id=run))  # fmt: skip

        build("run-1", [("outcome_labels", "l1"), ("training_frame", "f1")])
        frame.loc[1, "age_at_diagnosis"] = 40
        build("run-2", [("outcome_labels", "l2"), ("training_frame", "f2")])
        experiment, model, run = (uuid.uuid4() for _ in range(3))
        opened.execute(ml_experiments.insert().values(
            id=experiment, experiment_name="e", prediction_target="t", scope=scope, problem_type="classification",
            target_population="remibrutinib_csu", scope_digest="s"))  # fmt: skip
        opened.execute(ml_model_registry.insert().values(
            id=model, model_name=registered[0], model_version=registered[1], mlflow_run_id="m", algorithm="a",
            hyperparameters={}, stage="staging", model_digest="d"))  # fmt: skip
        empty = {
            name: {} for name in ("hyperparameters", "train_metrics", "validation_metrics", "test_metrics")
        }
        opened.execute(ml_training_runs.insert().values(
            id=run, experiment_id=experiment, mlflow_run_id="m", algorithm="a", training_samples=1, feature_names=[],
            criteria=[], data_digests={"training_frame": "f1"}, model_digest="d", status="accepted",
            completed_at=sa.func.clock_timestamp(), **empty))  # fmt: skip
        build("run-3")
        for named in ("/".join(registered), "models:/" + "/".join(registered), registered[0]):
            told = explain(opened, "remibrutinib_csu", "P1", as_of=named)
            assert told.execution_id == "run-1:remibrutinib_csu"
            assert told.journeys[0].failed_rules == ("age_at_diagnosis", "urticaria_severity_uas7")
        with pytest.raises(InputError, match=r"has no version '9'\. Registered, newest first: 3"):
            explain(opened, "remibrutinib_csu", "P1", as_of=f"{registered[0]}/9")
        record_cohort(opened, build_cohort(definition(), patients([40])), execution_id="other")
        with pytest.raises(
            InputError, match="trained on the cohort remibrutinib_csu, not on examplumab_demo"
        ):
            find_execution(opened, "examplumab_demo", registered[0])
        opened.execute(sa.update(ml_training_runs).values(data_digests={}))
        with pytest.raises(InputError, match="does not have the build"):
            explain(opened, "remibrutinib_csu", "P1", as_of=registered[0])


def test_recorded_executions_compare_like_built_ones(connection):
    frame = patients([17] * 20 + [19] * 30 + [40] * 50)
    old, new = build_cohort(definition(), frame), build_cohort(adults_from(21, version="1.1.0"), frame)
    record_cohort(connection, old, execution_id="run-1:x")
    record_cohort(connection, new, execution_id="run-2:x")
    read = [
        read_execution(connection, find_execution(connection, "examplumab_demo", version))
        for version in ("1.0.0", "1.1.0")
    ]
    recorded, built = compare(*read), compare(old, new)
    assert recorded.to_metadata() == built.to_metadata()
    pd.testing.assert_frame_equal(recorded.lost, built.lost, check_dtype=False)


@pytest.fixture
def cohort_command(database, monkeypatch):
    """The command in this process, on a warehouse with one execution."""
    from commands.cli import main

    with database.begin() as opened:
        record_cohort(
            opened, build_cohort(read_cohort("remibrutinib_csu"), shipped_rows()), execution_id="run-1:x"
        )

    def run(*arguments: str, allowed: bool = False):
        monkeypatch.setenv("E2I_ALLOW_PATIENT_LEVEL", "1" if allowed else "")
        return CliRunner().invoke(main, ["cohort", *arguments])

    return run


def test_the_command_refuses_or_records_each_opening(cohort_command, database, tmp_path):
    def openings():
        with database.connect() as opened:
            return opened.execute(sa.select(ml_patient_level_access)).all()

    for arguments in (["explain", "remibrutinib_csu", "P1"], ["diff", "remibrutinib_csu", "--exact"]):
        refused = cohort_command(*arguments)
        assert refused.exit_code == 4
        assert "E2I_ALLOW_PATIENT_LEVEL=1" in refused.output
    assert not openings()
    told = cohort_command("explain", "remibrutinib_csu", "P1", allowed=True)
    assert told.exit_code == 0, told.output
    assert "excluded by age_at_diagnosis, urticaria_severity_uas7" in told.output
    unknown = cohort_command("explain", "remibrutinib_csu", "NOBODY", allowed=True)
    assert unknown.exit_code == 3
    (opening,) = openings()
    assert (opening.purpose, opening.patient_id, opening.actor) == ("explain", "P1", "test")
    from e2i_dagster.database.connection import engine

    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), engine("app").begin() as opened:
        opened.execute(ml_patient_level_access.delete())

    misspelt = cohort_command("explain", "remibrutinib_cs", "P1", allowed=True)
    assert misspelt.exit_code == 2
    assert "Did you mean 'remibrutinib_csu'?" in misspelt.output
    once = cohort_command("diff", "remibrutinib_csu")
    assert once.exit_code == 3
    assert "built once only" in once.output
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("brand: X\n")
    assert cohort_command("preview", str(wrong)).exit_code == 2
    assert cohort_command("lint").exit_code == 0
    listed = cohort_command("lint", "kisqali_hr_her2_bc", "--json")
    assert json.loads(listed.output)["cohorts"][0]["cohort"] == "kisqali_hr_her2_bc"
