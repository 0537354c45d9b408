"""The ledger: the newest row of an asset and partition is its version."""

import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.errors import InputError
from e2i_dagster.versions import ledger
from e2i_dagster.versions.coverage import coverage
from e2i_dagster.versions.ledger import DataVersion, SnapshotMember, StageState


def version(asset="raw/triggers", partition="2024-01", digest="a", **more) -> DataVersion:
    return DataVersion(asset, partition, digest, rows=3, **more)


def test_the_newest_version_is_current(database):
    assert ledger.latest(database, "raw/triggers", "2024-01") is None
    first = ledger.record(database, version(metadata={"score": 0.9}, path="raw/x"))
    assert first.at is not None and first.at.tzinfo is not None
    assert ledger.latest(database, "raw/triggers", "2024-01") == first
    second = ledger.record(database, version(digest="b", run_id="run"))
    # Back to earlier values: the order of recording counts, not the digest.
    third = ledger.record(database, version(digest="a"))
    assert ledger.latest(database, "raw/triggers", "2024-01") == third
    assert ledger.versions(database, "raw/triggers") == [third, second, first]
    assert ledger.versions(database, "raw/triggers", "2024-01", limit=1) == [third]
    assert ledger.versions(database, "raw/triggers", "2024-02") == []


def test_partitions_and_assets_do_not_mix(database):
    january = ledger.record(database, version())
    february = ledger.record(database, version(partition="2024-02"))
    whole = ledger.record(database, version(asset="raw/hcp_profiles", partition=None))
    assert ledger.latest(database, "raw/hcp_profiles") == whole and whole.partition is None
    assert ledger.current(database, "raw/triggers") == {"2024-01": january, "2024-02": february}
    assert ledger.latest(database, "raw/triggers") is None


def test_a_fingerprint_finds_what_was_made_from_the_same_inputs(database):
    first = ledger.record(database, version(fingerprint="f1"))
    made = ledger.record(database, version(digest="b", fingerprint="f1"))
    ledger.record(database, version(digest="c", fingerprint="f2"))
    assert ledger.with_fingerprint(database, "raw/triggers", "f1") == [made, first]
    assert ledger.with_fingerprint(database, "raw/triggers", "f3") == []
    assert ledger.with_fingerprint(database, "raw/other", "f1") == []


def test_versions_recorded_together_read_as_those_recorded_one_by_one(database):
    """What all of them were made from is stored once and read with each."""
    read = {"quality.yaml": {"keys": {"x": "1" * 2_000}}}
    made = [
        version(
            partition=f"2024-{month:02}", metadata={"read": read}, path="raw/shared", size=3, checksum="c"
        )
        for month in range(1, 13)
    ]
    other = version(partition="2025-01", metadata={"read": {}, "told": [["note", "n"]]})
    with database.begin() as connection:
        ledger.record_all(connection, [*made, other])
    found = ledger.current(database, "raw/triggers")
    assert list(found) == [*(f"2024-{month:02}" for month in range(1, 13)), "2025-01"]
    assert all(one.metadata["read"] == read and one.size == 3 for one in list(found.values())[:12])
    assert ledger.latest(database, "raw/triggers", "2024-07") == found["2024-07"]
    assert found["2025-01"].metadata == {"read": {}, "told": [["note", "n"]]}
    with database.connect() as connection:
        stored = connection.execute(
            sa.text("SELECT count(*) FROM ml_data_versions WHERE length(metadata::text) > 1000")
        ).scalar_one()
    assert stored == 1


def test_a_caller_s_transaction_is_the_caller_s(database):
    with database.connect() as connection:
        ledger.record(connection, version())
        connection.rollback()
    assert ledger.latest(database, "raw/triggers", "2024-01") is None


def test_snapshots(database):
    ledger.record(database, version(digest="old"))
    ledger.record(database, version())
    ledger.record(database, version(partition="2024-02", digest="b"))
    ledger.record(database, version(asset="raw/hcp_profiles", partition=None, digest="h"))
    snapshot = ledger.current_snapshot(database, ["raw/triggers", "raw/hcp_profiles"])
    assert [(m.table, m.partition, m.digest) for m in snapshot.members] == [
        ("raw/hcp_profiles", None, "h"),
        ("raw/triggers", "2024-01", "a"),
        ("raw/triggers", "2024-02", "b"),
    ]
    assert ledger.snapshot_of(reversed(snapshot.members)) == snapshot
    ledger.record_snapshot(database, snapshot)
    assert ledger.record_snapshot(database, snapshot) == snapshot
    assert ledger.read_snapshot(database, snapshot.digest) == snapshot
    assert ledger.read_snapshot(database, "none") is None
    ledger.record(database, version(digest="new"))
    assert ledger.current_snapshot(database, ["raw/triggers", "raw/hcp_profiles"]).digest != snapshot.digest
    with pytest.raises(InputError, match="raw/nothing"):
        ledger.current_snapshot(database, ["raw/triggers", "raw/nothing"])


def test_a_snapshot_digest_covers_every_member():
    base = [SnapshotMember("a", "1", "x", 1), SnapshotMember("b", None, "y", 1)]
    digests = {
        ledger.snapshot_of(members).digest
        for members in (
            base,
            base[:1],
            [base[0], SnapshotMember("b", None, "z", 1)],
            [SnapshotMember("a", "2", "x", 1), base[1]],
            [SnapshotMember("c", "1", "x", 1), base[1]],
        )
    }
    assert len(digests) == 5
    with pytest.raises(InputError, match="twice"):
        ledger.snapshot_of([base[0], base[0]])


def test_a_combined_digest_does_not_depend_on_order():
    assert ledger.combined_digest({"1": "a", "2": "b"}) == ledger.combined_digest({"2": "b", "1": "a"})
    assert ledger.combined_digest({"1": "a", "2": "b"}) != ledger.combined_digest({"1": "b", "2": "a"})


def test_a_stage_has_one_state(database):
    ledger.record_state(database, StageState("qc", "2024-01", "running"))
    ledger.record_state(database, StageState("qc", "2024-01", "blocked", reason="completeness", rows=5))
    ledger.record_state(database, StageState("load", None, "executed", seconds=1.5))
    states = ledger.states(database)
    assert [(s.stage, s.partition, s.state, s.reason) for s in states] == [
        ("load", None, "executed", None),
        ("qc", "2024-01", "blocked", "completeness"),
    ]
    assert all(s.at is not None for s in states)
    assert [s.stage for s in ledger.states(database, "qc")] == ["qc"]


def test_rules_on_events_need_one_event_table_at_least(database, tmp_path):
    from e2i_dagster.cohorts.inputs import EVENT_TABLES, read_current
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.versions.lake import Lake

    lake, months = Lake(str(tmp_path)), current_policy().sources.months
    ledger.record_absent(database, dict.fromkeys(EVENT_TABLES, "no file holds it"))
    with pytest.raises(InputError, match="outcome_events: absent, no delivery holds any of them"):
        read_current(database, lake, EVENT_TABLES, months=months, needs_events=True)
    assert all(len(read) == 0 for read in read_current(database, lake, EVENT_TABLES, months=months).values())
    table = EVENT_TABLES[0]
    stored = lake.write(table, months[0], pd.DataFrame({"treatment_event_id": ["E"]}), "E")
    ledger.record(database, ledger.DataVersion(table, months[0], "E", 1, path=stored.path))
    found = read_current(database, lake, EVENT_TABLES, months=months, needs_events=True)
    assert [len(found[name]) for name in EVENT_TABLES] == [1, 0, 0]


def test_months_that_are_not_kept_any_more_are_neither_read_nor_shown_as_checked(database, tmp_path):
    """The range was wider once: its months stay in ledger and lake, and nothing takes them for current."""
    from commands.status import months_never_loaded, status_report
    from e2i_dagster.cohorts.inputs import read_current
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.quality.table_check import document_table, gate_result, gate_state
    from e2i_dagster.versions.lake import Lake

    table, months = "treatment_events", current_policy().sources.months
    lake = Lake(str(tmp_path))
    for month in ("1999-12", months[0]):
        stored = lake.write(table, month, pd.DataFrame({"treatment_event_id": [month]}), month)
        ledger.record(database, ledger.DataVersion(table, month, month, 1, path=stored.path))
        ledger.record_state(database, ledger.StageState(f"raw/{table}", month, "executed"))
    ledger.record_state(database, ledger.StageState("cohort", "remibrutinib_csu", "executed"))
    assert set(ledger.current(database, table)) == {"1999-12", months[0]}
    assert set(ledger.current(database, table, months=months)) == {months[0]}
    read = read_current(database, lake, [table], months=months)[table]
    assert read["treatment_event_id"].tolist() == [months[0]]
    assert {row["partition"] for row in gate_state(database) if row["table"] == table} == {months[0]}
    assert gate_result(database, table, None).versions == 1
    with pytest.raises(InputError, match="has no partition '1999-12'"):
        document_table(database, table, "1999-12", lambda partitions: read)
    report = status_report()
    assert report["never_loaded"] == {table: [f"{months[1]}..{months[-1]}"]}
    assert months_never_loaded() == report["never_loaded"]
    stages = report["stages"]
    assert {(one["name"], one["partition"]) for one in stages} == {
        (f"raw/{table}", months[0]),
        ("cohort", "remibrutinib_csu"),
    }


def test_a_table_that_nobody_delivers_says_nothing_of_the_days_that_others_cover(database):
    months = ["2024-01", "2024-02"]
    for month in months:
        ledger.record(database, version(asset="treatment_events", partition=month))
    tables = ("treatment_events", "engagement_events")
    # Never asked for: what happened to these patients in the contacts is unknown.
    assert coverage(database, tables, months).unobserved
    ledger.record_absent(database, {"engagement_events": "no file holds it"})
    found = coverage(database, tables, months)
    assert (str(found.start), str(found.end), found.unobserved) == ("2024-01-01", "2024-02-29", ())
    assert coverage(database, ("engagement_events",), months).unobserved
