"""Versions, states and files of the lake agree: after damage, and after a run that ended half-way."""

from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from pipeline_runs import said
from sqlalchemy.event import listen, remove

from assets.execution import Produced
from assets.stage import stage_asset
from e2i_dagster.config.policy import PolicySummary
from e2i_dagster.definitions import build_resources
from e2i_dagster.versions import ledger

SUMMARY = "e2i_dagster.config.policy:PolicySummary"
ROWS = pd.DataFrame({"patient_id": ["P1", "P2"], "cost": [1.5, 2.5]})
DOCUMENT = PolicySummary(cohorts={"a": "1"}, scopes={}, sources="2", problems={})


@stage_asset(name="costs", group_name="test", gated=False)
def costs() -> Produced:
    return Produced(ROWS)


@stage_asset(name="summary", group_name="test", gated=False, produces=SUMMARY)
def summary() -> Produced:
    return Produced(DOCUMENT)


@stage_asset(name="looked_at", group_name="test", gated=False, always=True)
def looked_at() -> Produced:
    return Produced(ROWS)


@stage_asset(name="total", group_name="test", gated=False)
def total(costs: "pd.DataFrame", summary: "PolicySummary", looked_at: "pd.DataFrame") -> Produced:
    return Produced(costs.assign(total=costs["cost"].sum(), cohorts=len(summary.cohorts), n=len(looked_at)))


ASSETS = [costs, summary, looked_at, total]
MADE = ("costs", "summary", "looked_at")


def run(pipeline, selection=None):
    return dg.materialize(
        ASSETS,
        instance=pipeline.instance,
        resources=build_resources(),
        selection=selection,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def states(pipeline):
    return {one.stage: one for one in ledger.states(pipeline.warehouse)}


def place(pipeline, asset) -> Path:
    return pipeline.lake / pipeline.versions(asset)[None].path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "bytes long where"),
        (flip, "other content"),
        (Path.unlink, "missing"),
        (empty, "0 bytes long"),
    ],
    ids=["truncated", "a byte flipped", "deleted", "emptied"],
)
def test_a_damaged_version_is_named_and_made_again_and_nothing_else_is(pipeline, harm, words):
    assert run(pipeline).success
    before = {asset: pipeline.versions(asset)[None].digest for asset in (*MADE, "total")}
    for asset in MADE:
        harm(place(pipeline, asset))

    # Who only reads says which file, what is wrong with it, and what to do.
    result = run(pipeline, [total])
    assert not result.success
    text = said(result)
    named = [asset for asset in MADE if str(place(pipeline, asset)) in text]
    assert named and words in text and "Run again what makes" in text

    # What the error tells to do: run again.
    result = run(pipeline)
    assert result.success, said(result)
    found = states(pipeline)
    for asset in ("costs", "summary"):
        assert found[asset].state == "executed"
        assert str(found[asset].reason).startswith(f"damaged: {asset}/all/") and words in str(
            found[asset].reason
        )
    assert found["looked_at"].state == "executed"
    assert found["total"].state == "reused"
    assert {asset: pipeline.versions(asset)[None].digest for asset in before} == before
    for asset in MADE:
        version = pipeline.versions(asset)[None]
        assert place(pipeline, asset).stat().st_size == version.size
    assert run(pipeline).success
    assert {one.state for one in states(pipeline).values()} == {"reused"}


def test_a_version_whose_thing_is_gone_is_made_again_with_the_reason(pipeline):
    wrong = []

    @stage_asset(name="costs", group_name="test", gated=False, fault=lambda rows: "".join(wrong))
    def made() -> Produced:
        return Produced(ROWS)

    def last_state():
        assert dg.materialize([made], instance=pipeline.instance, resources=build_resources()).success
        return states(pipeline)["costs"]

    assert (last_state().state, last_state().state) == ("executed", "reused")
    wrong.append("damaged: views.parquet, missing")
    assert (last_state().state, last_state().reason) == ("executed", "damaged: views.parquet, missing")


class Killed(RuntimeError):
    """Stands for the end of the process between two statements."""


@pytest.mark.parametrize(
    "at", ["INSERT INTO ml_lake_files", "INSERT INTO ml_data_versions", "INSERT INTO ml_stage_states"]
)
def test_a_run_that_ends_half_way_leaves_neither_version_nor_state_and_the_next_one_heals(pipeline, at):
    from e2i_dagster.database.connection import engine

    begun = []

    def end_here(connection, cursor, statement, parameters, context, many):
        if "INSERT INTO ml_lake_files" in statement:
            begun.append(True)
        if begun and statement.startswith(at):
            raise Killed(at)

    listened = engine(role="app")
    listen(listened, "before_cursor_execute", end_here)
    try:
        # The state that the failure leaves is another statement on the same table, so it is not recorded either.
        result = run(pipeline, [costs])
    finally:
        remove(listened, "before_cursor_execute", end_here)
    assert not result.success
    assert pipeline.versions("costs") == {}
    assert states(pipeline)["costs"].state in ("running", "failed")
    assert states(pipeline)["costs"].data_version is None
    assert [path for path in pipeline.lake.rglob("*") if path.is_file()] == []

    assert run(pipeline, [costs]).success
    reached, version = states(pipeline)["costs"], pipeline.versions("costs")[None]
    assert (reached.state, reached.data_version, reached.run_id) == (
        "executed",
        version.digest,
        version.run_id,
    )


def test_a_run_that_ends_when_the_file_has_its_name_and_no_entry_is_made_again(pipeline, monkeypatch):
    from e2i_dagster.versions.lake import Lake

    put = Lake.put

    def end_after(self, pending):
        put(self, pending)
        raise Killed("after the file")

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "put", end_after)
        assert not run(pipeline, [costs]).success
    assert pipeline.versions("costs") == {} and states(pipeline)["costs"].state == "failed"
    assert run(pipeline, [costs]).success
    assert pipeline.stored("costs")["cost"].sum() == 4.0


def test_a_version_names_exactly_the_versions_that_it_was_made_from(pipeline):
    assert run(pipeline).success
    made = {asset: pipeline.versions(asset)[None].digest for asset in MADE}
    found = pipeline.versions("total")[None].metadata[ledger.MADE_FROM]
    assert found == {asset: {"": digest} for asset, digest in made.items()}
    assert pipeline.versions("costs")[None].metadata[ledger.MADE_FROM] == {}
