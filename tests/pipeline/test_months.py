"""Event tables by month: ranges over New Year, one bad month among good ones, a stop half-way."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_runs import EVENTS, MONTHS, said

from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import state_folder
from resources.lake import split_by_month

LOADED = EVENTS


def spoiled(events: pd.DataFrame, month: str, share: float = 0.3, value: str = "unheard_of") -> pd.DataFrame:
    """``events`` where a ``share`` of the rows of ``month`` has an unknown event type."""
    events = events.copy()
    of_month = events.index[events["event_date"].dt.strftime("%Y-%m") == month]
    events.loc[of_month[: max(1, round(share * len(of_month)))], "event_type"] = value
    return events


def counts(events: pd.DataFrame) -> dict[str, int]:
    return {
        str(month): int(n) for month, n in events["event_date"].dt.strftime("%Y-%m").value_counts().items()
    }


def test_one_bad_month_is_withheld_and_named_and_the_good_ones_stand(after_load, delivery, drawn):
    pipeline = after_load
    events = drawn["treatment_events"]
    before = pipeline.versions("treatment_events")
    assert list(before) == list(MONTHS)

    changed = spoiled(events.assign(cost=events["cost"] + 1), "2024-01")
    result = pipeline.load(delivery(*EVENTS, treatment_events=changed), *EVENTS)

    assert not result.success
    text = said(result)
    assert "2024-01" in text and "1 of 4 partitions withheld" in text
    assert not any(month in text for month in MONTHS if month != "2024-01")
    after = pipeline.versions("treatment_events")
    assert after["2024-01"].digest == before["2024-01"].digest
    assert all(after[month].digest != before[month].digest for month in MONTHS if month != "2024-01")
    # The old rows of the bad month are what everybody reads, in the lake and in the warehouse.
    for month, raised in (("2024-01", 0), ("2024-02", 1)):
        expected = events.loc[events["event_date"].dt.strftime("%Y-%m") == month, "cost"].sum()
        rows = pipeline.stored("treatment_events", month)
        assert rows["cost"].sum() == pytest.approx(expected + raised * rows["cost"].notna().sum())
    (january,) = pipeline.rows(
        "SELECT count(*) FILTER (WHERE event_type = 'unheard_of') AS bad, count(*) AS all_rows "
        "FROM treatment_events WHERE event_date BETWEEN '2024-01-01' AND '2024-01-31'"
    )
    assert january["bad"] == 0 and january["all_rows"] == counts(events)["2024-01"]
    (state,) = pipeline.rows("SELECT state, reason FROM ml_stage_states WHERE stage = 'treatment_events'")
    assert state["state"] == "failed" and "2024-01" in state["reason"]
    # The UI shows the good months as materialized in this run, each with its own digest.
    shown = {
        entry.asset_materialization.partition: entry.asset_materialization.metadata["digest"].value
        for entry in pipeline.instance.all_logs(result.run_id)
        if entry.asset_materialization and entry.asset_materialization.asset_key.path == ["treatment_events"]
    }
    assert shown == {month: after[month].digest for month in MONTHS if month != "2024-01"}


def test_the_run_goes_on_after_the_bad_month_was_corrected(pipeline, delivery, drawn):
    events = drawn["treatment_events"]
    assert not pipeline.load(delivery(*EVENTS, treatment_events=spoiled(events, "2023-12")), *EVENTS).success
    assert "2023-12" not in pipeline.versions("treatment_events")
    with pytest.raises(InputError, match="2023-12 never materialized"):
        pipeline.stored("treatment_events", "2023-12")

    again = pipeline.load(delivery(treatment_events=events), *EVENTS)

    assert again.success, said(again)
    assert {month: v.rows for month, v in pipeline.versions("treatment_events").items()} == {
        month: counts(events)[month] for month in MONTHS
    }
    # The unchanged parent table was judged before; its verdict stands.
    made = {row["stage"]: row["state"] for row in pipeline.rows("SELECT stage, state FROM ml_stage_states")}
    assert made["quality/patient_journeys"] == "reused" and made["quality/treatment_events"] == "executed"


def test_range_over_new_year_keeps_the_same_month_of_two_years_apart(pipeline, delivery, drawn):
    events = drawn["treatment_events"]
    assert pipeline.load(delivery(*EVENTS), *EVENTS, months=("2022-12", "2024-01")).success
    stored = pipeline.versions("treatment_events")
    assert len(stored) == 14
    assert {month: version.rows for month, version in stored.items()} == {
        month: counts(events)[month] for month in stored
    }
    for month in ("2023-01", "2024-01"):
        assert set(pipeline.stored("treatment_events", month)["event_date"].dt.strftime("%Y-%m")) == {month}
    # Quality has a verdict of its own for each month, too.
    assert list(pipeline.versions("quality/treatment_events")) == list(stored)


def test_one_month_alone_changes_no_other(after_load, delivery, drawn):
    pipeline = after_load
    events = drawn["treatment_events"]
    before = pipeline.versions("treatment_events")
    folder = delivery(*EVENTS, treatment_events=events.assign(cost=events["cost"] + 1))
    result = pipeline.run(
        "load_and_qc", partition="2023-12", assets=["source_files", "treatment_events"], folder=folder
    )
    assert result.success, said(result)
    after = pipeline.versions("treatment_events")
    assert {month for month in MONTHS if after[month].digest != before[month].digest} == {"2023-12"}


def test_stop_between_write_and_switch_leaves_the_old_version_readable(after_load, delivery, drawn):
    from e2i_dagster.versions.lake import Lake

    pipeline = after_load
    old = pipeline.stored("treatment_events", "2024-01")
    # The new file is complete in the lake; the process ended before the ledger named it.
    written = Lake(str(pipeline.lake)).write("treatment_events", "2024-01", old.assign(cost=0.0))
    assert (pipeline.lake / written.path).exists()
    pd.testing.assert_frame_equal(pipeline.stored("treatment_events", "2024-01"), old)
    # The next run takes up the written file instead of stumbling over it.
    events = drawn["treatment_events"]
    of_month = events["event_date"].dt.strftime("%Y-%m") == "2024-01"
    changed = events.assign(cost=events["cost"].mask(of_month, 0.0))
    assert pipeline.load(delivery(*EVENTS, treatment_events=changed), *EVENTS).success
    assert pipeline.versions("treatment_events")["2024-01"].digest == written.digest
    assert not list(pipeline.lake.rglob("*.part")), "half a file stayed behind"


def test_values_of_rejected_rows_appear_nowhere_in_the_run(pipeline, delivery, drawn, caplog):
    """A canary in rows of patients: not in events, errors, metadata, states, verdicts or figures."""
    canary = "CANARY7Q"
    journeys = drawn["patient_journeys"].copy()
    journeys.loc[journeys.index[:40], "zip_code"] = canary
    hcps = drawn["hcp_profiles"].assign(first_name=canary, last_name=canary)
    folder = delivery(
        *EVENTS,
        patient_journeys=journeys,
        hcp_profiles=hcps,
        patient_clinical=drawn["patient_clinical"],
        treatment_events=spoiled(drawn["treatment_events"], "2024-01", value=canary),
    )
    with caplog.at_level("DEBUG"):
        result = pipeline.load(folder, *EVENTS, "patient_clinical")
        pipeline.load(delivery(treatment_events=drawn["treatment_events"]), *EVENTS, "patient_clinical")
        built = pipeline.run("build_cohorts", partition="remibrutinib_csu")
    assert not result.success and built.success, said(built)
    events = [
        entry.to_json()
        for run in pipeline.instance.get_runs()
        for entry in pipeline.instance.all_logs(run.run_id)
    ]
    assert events and not [text for text in events if canary in text]
    assert canary not in said(result) and canary not in caplog.text
    kept = {"load_rejects", "hcp_profiles", "patient_journeys"}
    for row in pipeline.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    ):
        table = row["table_name"]
        if table not in kept:
            found = pipeline.rows(
                f"SELECT count(*) AS n FROM \"{table}\" AS t WHERE t::text LIKE '%{canary}%'"
            )
            assert found[0]["n"] == 0, f"{table} repeats a value of a patient's row"
    for path in state_folder().rglob("*"):
        inside = path.relative_to(state_folder()).parts
        if path.is_file() and inside[0] != "postgres" and path.stat().st_size < 20_000_000:
            assert canary.encode() not in path.read_bytes(), path


@settings(max_examples=60, deadline=None)
@given(
    days=st.lists(st.integers(0, 1200), max_size=60),
    months=st.lists(
        st.sampled_from([f"{year}-{month:02d}" for year in (2022, 2023, 2024) for month in range(1, 13)]),
        unique=True,
        max_size=36,
    ),
)
def test_the_union_of_the_months_is_the_whole(days, months):
    dates = pd.Timestamp("2022-01-01") + pd.to_timedelta(pd.Series(days, dtype="int64"), unit="D")
    frame = pd.DataFrame({"key": range(len(days)), "date": dates.astype("datetime64[us]")})
    given_frame = frame.copy()
    pieces = split_by_month(frame, "date", months)
    pd.testing.assert_frame_equal(frame, given_frame)
    assert list(pieces) == months
    together = pd.concat([*pieces.values(), frame.iloc[:0]])
    expected = frame[frame["date"].dt.strftime("%Y-%m").isin(months)]
    assert sorted(together["key"]) == sorted(expected["key"])
    for month, piece in pieces.items():
        assert set(piece["date"].dt.strftime("%Y-%m")) <= {month}
        assert list(piece.dtypes) == list(frame.dtypes)


def test_months_after_the_last_delivered_row_say_what_to_set(pipeline, delivery, drawn):
    events = drawn["treatment_events"]
    result = pipeline.load(
        delivery(*EVENTS, treatment_events=events[events["event_date"] < "2024-01-15"]), *EVENTS
    )
    assert not result.success
    checks = {one.check_name: one for one in result.get_asset_check_evaluations() if not one.passed}
    text = str(checks["qc_gate"].description)
    assert "partition 2024-02: expectation_critical" in text and "partition 2024-01" not in text
    assert "no rows after 2024-01" in text and "set data_end in config/sources.yaml" in text


def test_months_cost_what_they_hold(pipeline, delivery, drawn):
    """What is said of a whole table is written once, and all months without rows are one file."""
    events = drawn["treatment_events"]
    (filled,) = counts(events[events["event_date"].dt.strftime("%Y-%m") == "2023-05"])
    only = events[events["event_date"].dt.strftime("%Y-%m") == filled]
    result = pipeline.load(
        delivery(*EVENTS, treatment_events=only), *EVENTS, months=("2022-01", "2024-12"), checked=False
    )
    assert result.success, said(result)
    made = sorted(
        (
            event.step_materialization_data.materialization
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None and event.asset_key.path == ["treatment_events"]
        ),
        key=lambda one: one.partition,
    )
    assert [one.partition for one in made] == list(pipeline.versions("treatment_events")) and len(made) == 36
    assert all(set(one.metadata) == {"state", "digest", "dagster/row_count"} for one in made[:-1])
    assert {"load_id", "tables", "partition_count"} <= set(made[-1].metadata)
    rows = {one.partition: one.metadata["dagster/row_count"].value for one in made}
    assert rows.pop(filled) == len(only) and not any(rows.values())
    assert len(list((pipeline.lake / "treatment_events").rglob("*.parquet"))) == 2
    assert pipeline.stored("treatment_events", "2024-03").empty
    pd.testing.assert_index_equal(
        pipeline.stored("treatment_events", "2024-03").columns,
        pipeline.stored("treatment_events", filled).columns,
    )


def test_a_table_nobody_delivers_is_absent_in_a_load_of_the_ui_too(pipeline, delivery, drawn):
    """Steps of the whole job, as the UI and the schedule launch them: nothing is made of what there is not."""
    patients, events = (
        drawn[name].drop(columns="hcp_id") for name in ("patient_journeys", "treatment_events")
    )
    folder = delivery(
        *("patient_journeys", "patient_clinical", "treatment_events"),
        patient_journeys=patients,
        treatment_events=events,
    )
    result = pipeline.run("load_and_qc", months=(MONTHS[0], MONTHS[-1]), folder=folder)
    absent = {
        row["stage"]: row["reason"]
        for row in pipeline.rows("SELECT stage, reason FROM ml_stage_states WHERE state = 'absent'")
    }
    assert {"hcp_profiles", "engagement_events", "triggers", "observation_periods"} <= set(absent)
    assert "no file of delivery holds it" in absent["triggers"]
    for table in absent:
        assert not pipeline.versions(table) and not pipeline.versions(f"quality/{table}"), table
    skipped = {event.step_key for event in result.all_events if event.is_step_skipped}
    assert {"quality__triggers", "quality__hcp_profiles_qc_gate"} <= skipped
    told = [one.asset_key.path[-1] for one in result.get_asset_check_evaluations()]
    assert "treatment_events" in told and not set(told) & set(absent)
    months = {event.partition for event in result.get_asset_materialization_events() if event.partition}
    assert months == set(MONTHS)
    # The rest went through: patients without their doctors.
    assert pipeline.versions("treatment_events") and pipeline.versions("quality/treatment_events")
    assert pipeline.stored("engagement_events", MONTHS[0]).empty
    made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}
    assert not made & (set(absent) - {"hcp_profiles"})
