"""Rejects from the first load to the corrected row, and a load that was killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.errors import InputError
from e2i_dagster.loading import rejects
from e2i_dagster.loading.delivery import DeliveryManifest, resubmit_rejects
from e2i_dagster.loading.load import load, load_table
from e2i_dagster.loading.resubmission import resubmit
from e2i_dagster.sources import files

ORDER = ("hcp_profiles", "patient_journeys", "treatment_events")


@pytest.fixture
def three_tables(hcps, journeys, make_events):
    """Parents and 200 events."""
    return dict(zip(ORDER, (hcps, journeys, make_events(200)), strict=True))


def test_export_correct_resubmit(database, content, three_tables, tmp_path):
    hcps, journeys, events = (three_tables[name].copy() for name in ORDER)
    hcps.loc[3, "npi"] = "1234567890"
    journeys.loc[5, "gender"] = "X"
    report = load(
        {"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events},
        success_threshold=0.8,
    )
    # The professional's journeys wait for her, and the events for those.
    assert report.tables["hcp_profiles"].reasons == {"npi_check_digit": 1}
    assert report.tables["patient_journeys"].reasons == {"parent_rejected": 2, "unknown_value": 1}
    assert report.tables["treatment_events"].reasons == {"parent_rejected": 15}
    shown = rejects.summary(database)
    assert shown[shown["table"] == "treatment_events"]["rows"].max() == 15
    assert rejects.summary(database, table="triggers").empty
    paths = rejects.export(database, tmp_path)
    assert [path.name for path in paths] == [
        "hcp_profiles.csv",
        "patient_journeys.csv",
        "treatment_events.csv",
    ]
    exported = pd.read_csv(paths[0], dtype="string[pyarrow]")
    assert exported.loc[0, ["_reasons", "npi", "zip_code"]].tolist() == [
        "npi_check_digit npi",
        "1234567890",
        "01003",
    ]

    # Only the professional and the journey with the wrong gender are corrected; the rest follows.
    exported["npi"] = "1234567893"
    exported.to_csv(paths[0], index=False)
    own = pd.read_csv(paths[1], dtype="string[pyarrow]")
    own = own[own["gender"] == "X"].assign(gender="U")
    own.to_csv(paths[1], index=False)
    paths[2].unlink()
    again = resubmit(database, tmp_path)
    assert again.success
    taken = {name: done.inserted for name, done in again.tables.items()}
    assert taken == {"hcp_profiles": 1, "patient_journeys": 3, "treatment_events": 15}
    assert rejects.summary(database).empty
    assert content("patient_journeys").shape[0] == 40
    assert content("treatment_events").shape[0] == 200
    settled = content("load_rejects")
    assert set(settled["resubmitted_load_id"]) == {again.load_id}
    with pytest.raises(InputError, match="no rejects to resubmit"):
        resubmit(database)


def test_orphans_load_when_their_parent_has_come(database, content, hcps, journeys):
    load({"hcp_profiles": hcps.iloc[:19], "patient_journeys": journeys}, success_threshold=0.9)
    assert rejects.summary(database)["reason"].tolist() == ["orphan_hcp_profiles"]
    assert load_table("hcp_profiles", hcps).success
    report = resubmit(database)
    assert report.tables["patient_journeys"].inserted == 2
    assert rejects.summary(database).empty


def test_a_row_that_is_wrong_again_stays_open_once(database, content, hcps, tmp_path):
    hcps.loc[3, "npi"] = "1234567890"
    load({"hcp_profiles": hcps}, success_threshold=0.9)
    rejects.export(database, tmp_path)
    report = resubmit(database, tmp_path)
    assert report.tables["hcp_profiles"].rejected == 1
    assert rejects.summary(database)["rows"].tolist() == [1]
    # A later delivery of the corrected row settles it.
    hcps.loc[3, "npi"] = "1234567893"
    assert load({"hcp_profiles": hcps}).success
    assert rejects.summary(database).empty


def test_rejects_keep_the_untouched_row_and_the_malformed_line(database, content, tmp_path):
    good = "".join(f"H{i};01.02.2024;W\n" for i in range(60))
    (tmp_path / "hcp_profiles_a.csv").write_text("ID;Seen;Region\n" + good + "H70;31.02.2024;W\nH71;x\n")
    (tmp_path / "hcp_profiles_b.csv").write_text("ID;Seen;Region\nH80;01.02.2024;Mars\n")
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        """
format: {separator: ";"}
tables:
  hcp_profiles:
    rename: {ID: hcp_id, Seen: last_interaction_date, Region: geographic_region}
    dates: {last_interaction_date: "%d.%m.%Y"}
    values: {geographic_region: {W: west}}
"""
    )
    report = load(files.read(tmp_path, mapping), success_threshold=0.9)
    done = report.tables["hcp_profiles"]
    assert (done.source, done.inserted) == (63, 60)
    assert done.reasons == {"date_format": 1, "malformed_row": 1, "unknown_value": 1}
    found = content("load_rejects").set_index("reason")
    assert found.loc["date_format", "raw_row"] == {
        "hcp_id": "H70",
        "last_interaction_date": "31.02.2024",
        "geographic_region": "west",
        "_as_delivered": {"ID": "H70", "Seen": "31.02.2024", "Region": "W"},
        "_file": "hcp_profiles_a.csv",
    }
    assert found.loc["malformed_row", "raw_row"] == {"_line": "H71;x", "_file": "hcp_profiles_a.csv"}
    assert found.loc["malformed_row", "row_number"] == 62
    assert found.loc["unknown_value", ["row_number", "value"]].tolist() == [1, "Mars"]
    assert content("ml_table_loads", "source").iloc[0, 0] == "hcp_profiles_a.csv, hcp_profiles_b.csv"
    out = tmp_path / "out"
    rejects.export(database, out)
    rows = pd.read_csv(out / "hcp_profiles.csv", dtype="string[pyarrow]")
    assert set(rows.columns) == {
        "_reject",
        "_reasons",
        "_line",
        "hcp_id",
        "geographic_region",
        "last_interaction_date",
    }
    line = rows["_line"].notna()
    rows.loc[line, ["hcp_id", "last_interaction_date"]] = ["H71", "2024-02-03"]
    rows["geographic_region"] = "south"
    rows.loc[rows["hcp_id"] == "H70", "last_interaction_date"] = "2024-02-29"
    rows.to_csv(out / "hcp_profiles.csv", index=False)
    assert resubmit(database, out).tables["hcp_profiles"].inserted == 3
    assert rejects.summary(database).empty


KILLED = """
import pickle, sys
from e2i_dagster.loading import staging
from e2i_dagster.loading.load import load
tables = pickle.load(open(sys.argv[1], "rb"))
real = staging.Staging._copy_batch
def slow(self, connection, first, batch):
    real(self, connection, first, batch)
    if self.table == "treatment_events" and first >= 1000:
        connection.commit()
        print("copying", flush=True)
        import time
        time.sleep(60)
staging.Staging._copy_batch = slow
load(tables)
"""


def test_a_killed_load_run_again_gives_the_tables_of_an_undisturbed_one(
    database, content, three_tables, make_events, tmp_path
):
    events = make_events(3000)
    events.loc[7, "event_type"] = "unheard of"
    tables = {**three_tables, "treatment_events": events}
    stored = tmp_path / "tables.pickle"
    pd.to_pickle(tables, stored)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(stored)], stdout=subprocess.PIPE, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"copying\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert content("treatment_events").empty
    assert len(content("patient_journeys")) == 40
    report = load(tables)
    assert report.tables["treatment_events"].inserted == 2999
    assert report.tables["patient_journeys"].unchanged == 40
    assert rejects.summary(database)["rows"].tolist() == [1]
    with database.connect() as connection:
        left = connection.execute(sa.text("SELECT count(*) FROM pg_tables WHERE schemaname = 'e2i_staging'"))
        assert left.scalar() == 0
    after = {name: content(name) for name in tables}
    with database.begin() as session:
        session.exec_driver_sql("DELETE FROM treatment_events")
        session.exec_driver_sql("DELETE FROM patient_journeys")
        session.exec_driver_sql("DELETE FROM hcp_profiles")
    load(tables)
    for name in tables:
        pd.testing.assert_frame_equal(content(name), after[name])


def test_a_second_load_of_a_table_waits_for_the_first(database, hcps):
    from threading import Thread

    from e2i_dagster.loading import staging

    said: list[str] = []
    done: list[bool] = []
    with staging.only_load_of(database, "hcp_profiles", said.append):
        thread = Thread(
            target=lambda: done.append(load({"hcp_profiles": hcps}, progress=said.append).success)
        )
        thread.start()
        until = time.monotonic() + 20
        while not any("waiting" in line for line in said) and time.monotonic() < until:
            time.sleep(0.05)
        assert done == []
    thread.join(timeout=20)
    assert done == [True]
    assert json.dumps(said).count("waiting for another load") == 1


def test_corrected_rows_outside_the_kept_range_are_counted_and_not_written(
    database, content, three_tables, tmp_path
):
    hcps, journeys, events = (three_tables[name].copy() for name in ORDER)
    inside = [f"2024-0{1 + row % 3}-10" for row in range(len(events))]
    events["event_date"] = pd.array(inside, dtype=events["event_date"].dtype)
    events.loc[:2, "event_date"] = "no date"
    kept = ("2024-01", "2024-03")
    load({"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events}, kept=kept)
    (path,) = rejects.export(database, tmp_path)
    exported = pd.read_csv(path, dtype="string[pyarrow]")
    exported["event_date"] = ["2023-12-31", "2024-04-01", "2024-02-01"]
    exported.to_csv(path, index=False)
    manifest = DeliveryManifest(
        kind="files", folder=str(tmp_path), mapping=None, files=(), success_threshold=0.95, resubmit=True
    )
    report = resubmit_rejects(manifest, engine=database, run_id="corrected", kept=kept)
    done = report.tables["treatment_events"]
    assert (done.source, done.inserted) == (3, 1)
    assert done.reasons == {"after_data_end": 1, "before_first_month": 1}
    assert "2 rows lie outside 2024-01..2024-03" in str(done.message)
    assert len(content("treatment_events")) == len(events) - 2
    # A wider range takes the same corrected files.
    wider = resubmit_rejects(manifest, engine=database, run_id="wider", kept=("2023-12", "2024-04"))
    assert wider.tables["treatment_events"].inserted == 2
