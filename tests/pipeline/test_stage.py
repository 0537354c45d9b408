"""Values between stages: stored as what their asset declares, read as that in any later run."""

import dagster as dg
import pandas as pd
import pytest

from assets.stage import Produced, stage_asset, stage_check
from e2i_dagster.definitions import build_resources
from resources.lake import DOCUMENT
from tests.pipeline_runs import said

SUMMARY = "e2i_dagster.config.policy:PolicySummary"


def materialized(assets, pipeline, selection=None):
    return dg.materialize(
        assets,
        instance=pipeline.instance,
        resources=build_resources(),
        selection=selection,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def asset_of(value, produces):
    @stage_asset(name="made", group_name="test", gated=False, produces=produces)
    def made() -> Produced:
        return Produced(value())

    return made


def summary():
    from e2i_dagster.config.policy import PolicySummary

    return PolicySummary(cohorts={"a": "1"}, scopes={}, sources="2", problems={})


def rows():
    return pd.DataFrame({"patient_id": ["P1", "P2"]})


@pytest.mark.parametrize(("value", "produces"), [(rows, SUMMARY), (summary, None)])
def test_a_value_of_another_type_than_declared_is_refused_and_not_stored(pipeline, value, produces):
    result = materialized([asset_of(value, produces)], pipeline)
    assert not result.success
    assert "correct `produces`" in said(result)
    assert pipeline.versions("made") == {}


@pytest.mark.parametrize(("value", "produces"), [(rows, None), (summary, SUMMARY)])
def test_stage_and_check_of_a_later_run_read_the_declared_type(pipeline, value, produces):
    made = asset_of(value, produces)
    seen = []

    @stage_asset(name="reader", group_name="test", gated=False)
    def reader(made: "pd.DataFrame") -> Produced:
        seen.append(made)
        return Produced(rows())

    @stage_check(asset=made, name="read_again")
    def read_again(context: dg.AssetCheckExecutionContext, made: "pd.DataFrame") -> dg.AssetCheckResult:
        seen.append(made)
        return dg.AssetCheckResult(passed=context.run is not None)

    assert materialized([made], pipeline).success
    assert materialized([made, reader], pipeline, [reader]).success
    assert materialized([made, read_again], pipeline, dg.AssetSelection.checks(read_again)).success
    assert [type(one) for one in seen] == [type(value())] * 2
    for one in seen:
        assert one.equals(value()) if isinstance(one, pd.DataFrame) else one == value()


def test_the_declared_type_is_shown_with_the_asset():
    (shown,) = asset_of(summary, SUMMARY).metadata_by_key.values()
    assert (shown[DOCUMENT].module, shown[DOCUMENT].name) == ("e2i_dagster.config.policy", "PolicySummary")
