"""Values between stages: stored as what their asset declares, read as that in any later run."""

import dagster as dg
import pandas as pd
import pytest
from click.testing import CliRunner
from pipeline_runs import materialized, said

from assets.execution import Produced
from assets.stage import stage_asset
from assets.values import DataFrame
from commands.cli import main
from commands.status import status_report
from e2i_dagster.config.policy import PolicySummary
from e2i_dagster.serving.client import waiting_words
from resources.lake import DOCUMENT

SUMMARY = "e2i_dagster.config.policy:PolicySummary"


def asset_of(value, produces):
    @stage_asset(name="made", group_name="test", gated=False, produces=produces)
    def made() -> Produced:
        return Produced(value())

    return made


def summary():
    return PolicySummary(cohorts={"a": "1"}, scopes={}, sources="2", problems={})


def rows():
    return pd.DataFrame({"patient_id": ["P1", "P2"]})


@pytest.mark.parametrize(("value", "produces"), [(rows, SUMMARY), (summary, None)])
def test_a_value_of_another_type_than_declared_is_refused_and_not_stored(pipeline, value, produces):
    result = materialized([asset_of(value, produces)], pipeline)
    assert not result.success
    assert "correct `produces`" in said(result)
    assert pipeline.versions("made") == {}


def readers_of(made, annotation, seen):
    """A stage and a check that read ``made`` as an ``annotation``."""

    @stage_asset(name="reader", group_name="test", gated=False)
    def reader(made: annotation) -> Produced:
        seen.append(made)
        return Produced(rows())

    @dg.asset_check(asset=made)
    def read_again(made: annotation) -> dg.AssetCheckResult:
        seen.append(made)
        return dg.AssetCheckResult(passed=True)

    return reader, read_again


@pytest.mark.parametrize(
    ("value", "produces", "annotation"), [(rows, None, DataFrame), (summary, SUMMARY, PolicySummary)]
)
def test_stage_and_check_of_a_later_run_read_the_declared_type(pipeline, value, produces, annotation):
    made, seen = asset_of(value, produces), []
    reader, check = readers_of(made, annotation, seen)
    assert materialized([made], pipeline).success
    assert materialized([made, reader], pipeline, [reader]).success
    assert materialized([made, check], pipeline, dg.AssetSelection.checks(check)).success
    assert [type(one) for one in seen] == [type(value())] * 2
    for one in seen:
        assert one.equals(value()) if isinstance(one, pd.DataFrame) else one == value()


def test_a_stage_that_expects_another_type_than_declared_does_not_run(pipeline):
    made, seen = asset_of(summary, SUMMARY), []
    reader, check = readers_of(made, DataFrame, seen)
    result = materialized([made, reader, check], pipeline)
    assert {event.step_key for event in result.get_step_failure_events()} == {"reader", "made_read_again"}
    assert 'expected type "DataFrame"' in said(result)
    assert seen == []


def test_the_ui_names_what_an_asset_is_and_what_a_stage_reads():
    @stage_asset(name="reader", group_name="test", gated=False)
    def reader(made: PolicySummary, other: DataFrame) -> Produced:
        return Produced(other.assign(scopes=len(made.scopes)))

    (shown,) = asset_of(summary, SUMMARY).metadata_by_key.values()
    assert (shown[DOCUMENT].module, shown[DOCUMENT].name) == ("e2i_dagster.config.policy", "PolicySummary")
    types = {one.name: one.dagster_type.display_name for one in reader.op.input_defs}
    assert types == {"made": "PolicySummary", "other": "DataFrame"}


def test_what_of_a_good_result_waits_is_shown_to_people_and_programs(pipeline):
    """Also by the run that takes the stage over unchanged."""

    @stage_asset(name="made", group_name="test", gated=False)
    def made() -> Produced:
        return Produced(rows(), note="1 patient waits without an answer: 1 with no age")

    for state in ("executed", "reused"):
        assert materialized([made], pipeline).success
        (stage,) = [one for one in status_report()["stages"] if one["name"] == "made"]
        assert stage["state"] == state
        assert stage["note"] == "1 patient waits without an answer: 1 with no age"
        shown = CliRunner().invoke(main, ["status"], catch_exceptions=False)
        assert "1 patient waits without an answer" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        ([], ""),
        (["no age"], "1 patient waits without an answer: 1 with no age"),
        (["no age", "no age"], "2 patients wait without an answer: 2 with no age"),
        (
            ["a", "a", "b", "c", "d"],
            "5 patients wait without an answer: 2 with a; 1 with b; 1 with c; 1 more reason",
        ),
    ],
)
def test_who_waits_is_said_in_plain_words(reasons, words):
    assert waiting_words(pd.DataFrame({"reason": reasons})) == words
