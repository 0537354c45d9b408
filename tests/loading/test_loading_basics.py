"""What a load does to the tables, and that its counts reconcile."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2i_dagster.errors import InputError
from e2i_dagster.loading.load import LoadReport, TableLoad, load, load_table
from e2i_dagster.sources import files
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns

TEMPLATES = Path(__file__).resolve().parents[2] / "docs" / "templates"


def test_templates_cover_every_table_and_column_and_load_without_rejects(database, content):
    delivery = files.read(TEMPLATES)
    assert set(delivery) == {*RAW_TABLES, *OPTIONAL_RAW_TABLES}
    for table, frame in delivery.items():
        assert tuple(frame.columns) == frame_columns(table)
        assert 5 <= len(frame) <= 6
    report = load(delivery)
    assert report.success, report.failures
    assert {name: done.reasons for name, done in report.tables.items() if done.rejected} == {}
    assert sum(done.inserted for done in report.tables.values()) == sum(map(len, delivery.values()))
    # Leading zeros, decimals, lists and JSON arrive as they were written.
    hcps = content("hcp_profiles").set_index("hcp_id")
    assert hcps.loc["HCP00000001", "zip_code"] == "02115"
    assert hcps.loc["HCP00000001", "affiliation_secondary"] == ["Regional Clinic"]
    assert sorted(content("business_metrics")["value"].astype(float))[0] == 0.072
    assert content("treatment_events", "lab_values").iloc[2, 0] == {"ldh": 520, "hemoglobin": 9.1}
    # The same files again change nothing.
    again = load(files.read(TEMPLATES))
    assert all(done.unchanged == done.source and not done.loaded for done in again.tables.values())
    assert all(done.partitions == () for done in again.tables.values())


def test_new_changed_and_known_rows_are_counted_apart(database, content, hcps, journeys, make_events):
    events = make_events(100)
    first = load({"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events})
    assert first.success
    assert first.tables["treatment_events"].inserted == 100
    changed = make_events(120)
    changed.loc[:4, "cost"] = "1000.5"
    changed.loc[0, "event_date"] = "2025-06-01"
    before = content("treatment_events").set_index("treatment_event_id")
    done = load_table("treatment_events", changed).tables["treatment_events"]
    assert (done.source, done.inserted, done.updated, done.unchanged) == (120, 20, 5, 95)
    after = content("treatment_events").set_index("treatment_event_id")
    assert len(after) == 120
    assert (after["cost"].iloc[:5].astype(float) == 1000.5).all()
    pd.testing.assert_frame_equal(after.iloc[5:100], before.iloc[5:100])
    # Both the old and the new month of a row that moved were touched.
    assert {"2024-01", "2025-06"} <= set(done.partitions)


def test_columns_that_are_not_delivered_are_left_alone(database, content, hcps):
    load({"hcp_profiles": hcps})
    assert content("hcp_profiles", "coverage_status").iloc[:, 0].all()
    done = load({"hcp_profiles": hcps[["hcp_id", "decile"]].assign(decile="3")}).tables["hcp_profiles"]
    assert done.updated == 18
    assert (content("hcp_profiles", "zip_code").iloc[:, 0].str.len() == 5).all()


def test_numbers_and_times_survive_to_the_last_digit(database, content):
    frame = pd.DataFrame(
        {
            "metric_id": ["a", "b", "c"],
            "metric_date": pd.to_datetime(["2024-01-01", "2024-02-29", "2022-12-31"]),
            "value": [0.072, 123456789012.123456, np.nan],
            "sample_size": pd.array([1, None, 3], dtype="Int64"),
        }
    )
    assert load({"business_metrics": frame}).success
    stored = content("business_metrics")
    assert [str(value) for value in stored["value"][:2]] == ["0.072", "123456789012.12346"]
    assert pd.isna(stored["value"][2])
    assert str(stored["metric_date"][1]) == "2024-02-29"
    assert load({"business_metrics": frame}).tables["business_metrics"].unchanged == 3


def test_duplicates_and_contradictions_in_one_file(database, content, hcps):
    again = pd.concat([hcps, hcps.iloc[:3], hcps.iloc[[5]].assign(decile="9")], ignore_index=True)
    report = load({"hcp_profiles": again}, success_threshold=0.9)
    done = report.tables["hcp_profiles"]
    assert (done.inserted, done.duplicate, done.reasons) == (19, 3, {"duplicate_key_conflict": 2})
    assert "HCP00000005" not in set(content("hcp_profiles", "hcp_id").iloc[:, 0])


def test_a_dry_run_counts_the_same_and_writes_nothing(database, content, hcps, journeys, make_events):
    load({"hcp_profiles": hcps.iloc[:10].assign(decile="10"), "patient_journeys": journeys.iloc[:0]})
    events = make_events(50)
    events.loc[3, "event_type"] = "unheard of"
    tables = {"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events}
    state = [content(name) for name in ("hcp_profiles", "load_rejects", "ml_table_loads")]
    dry = load(tables, dry_run=True)
    for before, name in zip(state, ("hcp_profiles", "load_rejects", "ml_table_loads"), strict=True):
        pd.testing.assert_frame_equal(content(name), before)
    with database.connect() as connection:
        left = connection.execute(sa.text("SELECT count(*) FROM pg_tables WHERE schemaname = 'e2i_staging'"))
        assert left.scalar() == 0
    real = load(tables)
    counts = {"seconds", "batches", "retries"}
    for name in tables:
        assert dry.tables[name].model_dump(exclude=counts) == real.tables[name].model_dump(exclude=counts)


def test_the_report_has_the_documented_form(database, content, hcps):
    report = load({"hcp_profiles": hcps}, load_id="the-load", actor="someone", run_id="run-1")
    form = json.loads(report.model_dump_json())
    assert form["success"] is True
    assert form["load_id"] == "the-load"
    counts = {"source", "loaded", "inserted", "updated", "unchanged", "rejected", "duplicate"}
    assert {*counts, "seconds", "status", "reasons", "partitions"} <= set(form["tables"]["hcp_profiles"])
    metadata = report.to_metadata()
    assert metadata["rows_source"] == 20
    assert [row[:3] for row in metadata["tables"].rows] == [("hcp_profiles", "loaded", 20)]
    recorded = content("ml_table_loads").iloc[0]
    assert (recorded["load_id"], recorded["actor"], recorded["run_id"]) == ("the-load", "someone", "run-1")
    assert (recorded["delivered"], recorded["inserted"], recorded["status"]) == (20, 20, "loaded")


def test_a_report_that_does_not_reconcile_cannot_exist():
    with pytest.raises(ValueError, match="source is not"):
        TableLoad(source=3, loaded=1, inserted=1, status="loaded")
    with pytest.raises(ValueError, match="sum of its reasons"):
        TableLoad(source=1, rejected=1, status="failed")


def test_input_frames_are_not_changed(database, hcps):
    before = hcps.copy(deep=True)
    load({"hcp_profiles": hcps})
    pd.testing.assert_frame_equal(hcps, before)


def test_wrong_headers_are_one_error_before_any_work(database, content, hcps, journeys):
    tables = {
        "hcp_profiles": hcps,
        "patient_journeys": journeys.drop(columns=["patient_id", "journey_start_date"]),
        "triggers": pd.DataFrame({"trigger_id": ["x"]}),
        "hcps": hcps,
    }
    with pytest.raises(InputError) as error:
        load(tables)
    text = str(error.value)
    assert "patient_journeys: required columns patient_id, journey_start_date missing" in text
    assert "triggers: required columns" in text
    assert "hcps: not a raw table" in text
    assert content("hcp_profiles").empty


def test_own_clinical_columns_are_kept_as_text_and_by_column(database, content, hcps, journeys):
    clinical = pd.DataFrame(
        {
            "patient_journey_id": journeys["patient_journey_id"].iloc[:2],
            "own_marker": pd.array(["1.5", None], dtype="string[pyarrow]"),
            "site": pd.array(["007", "8"], dtype="string[pyarrow]"),
            "extra": pd.array(['{"before": true, "dose": 1.50}', None], dtype="string[pyarrow]"),
        }
    )
    report = load({"hcp_profiles": hcps, "patient_journeys": journeys, "patient_clinical": clinical})
    assert report.success
    assert report.tables["patient_clinical"].ignored_columns == ()
    assert content("patient_clinical", "extra").iloc[:, 0].tolist() == [
        {"before": "true", "dose": "1.50", "own_marker": "1.5", "site": "007"},
        {"own_marker": None, "site": "8"},
    ]
    # A column that a delivery does not have keeps its cells, an empty cell empties one.
    again = clinical[["patient_journey_id"]].assign(site=pd.array([None, "8"], dtype="string[pyarrow]"))
    dry = load({"patient_clinical": again}, dry_run=True).tables["patient_clinical"]
    done = load({"patient_clinical": again}).tables["patient_clinical"]
    assert (done.updated, done.unchanged) == (dry.updated, dry.unchanged) == (1, 1)
    assert content("patient_clinical", "extra").iloc[:, 0].tolist() == [
        {"before": "true", "dose": "1.50", "own_marker": "1.5", "site": None},
        {"own_marker": None, "site": "8"},
    ]
    other = load({"hcp_profiles": hcps.assign(shoe_size="44")})
    assert other.tables["hcp_profiles"].ignored_columns == ("shoe_size",)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["1", "5", "11", "", "x"])), max_size=14))
def test_counts_reconcile_whatever_is_delivered(database, content, rows):
    frame = pd.DataFrame(
        {
            "hcp_id": [f"HCP{key:08d}" if key else None for key, _ in rows],
            "decile": [d or None for _, d in rows],
        },
        dtype="string[pyarrow]",
    )
    report = load({"hcp_profiles": frame}, success_threshold=0)
    done = report.tables["hcp_profiles"]
    assert done.source == len(rows) == done.loaded + done.unchanged + done.rejected + done.duplicate
    # What was taken is what a reader would take by hand: one content per key, all of it in range.
    taken = {
        key
        for key, _ in rows
        if key
        and {d for k, d in rows if k == key} <= {"1", "5", ""}
        and len({d for k, d in rows if k == key}) == 1
    }
    assert done.loaded + done.unchanged == len(taken)
    again = load({"hcp_profiles": frame}, success_threshold=0).tables["hcp_profiles"]
    assert (again.loaded, again.unchanged) == (0, len(taken))
    assert isinstance(report, LoadReport)


def test_rows_outside_the_kept_range_are_counted_by_reason_and_not_written(
    database, content, hcps, journeys, make_events
):
    events = make_events(100)
    events.loc[:1, "event_date"] = "2023-12-31"
    events.loc[2:4, "event_date"] = "2024-05-01"
    events.loc[5, "event_date"] = "no date"
    parents = {"hcp_profiles": hcps, "patient_journeys": journeys}
    settings = {"kept": ("2024-01", "2024-04"), "withhold_months": True}
    for dry_run in (True, False):
        report = load({**parents, "treatment_events": events}, dry_run=dry_run, **settings)
        done = report.tables["treatment_events"]
        # Six of a hundred rows are not taken; the five without a fault do not count against the threshold.
        assert report.success and done.source == 100 and done.inserted == 94
        assert done.reasons == {"after_data_end": 3, "before_first_month": 2, "date_format": 1}
        assert "5 rows lie outside 2024-01..2024-04" in str(done.message)
    written = pd.to_datetime(content("treatment_events")["event_date"])
    assert len(written) == 94 and written.between("2024-01-01", "2024-04-30").all()
    # With a wider range the same files bring them.
    again = load_table("treatment_events", events, kept=("2023-12", "2024-05"), withhold_months=True)
    assert again.tables["treatment_events"].inserted == 5


def test_rows_outside_the_range_decide_nothing_about_rows_inside(
    database, content, hcps, journeys, make_events
):
    """A row that is not kept contradicts no other, repeats no other, and is no reject."""
    inside = make_events(60)
    beyond = inside.head(8).assign(event_date=["2023-12-31"] * 4 + ["2024-05-01"] * 4)
    beyond.loc[[0, 5], "event_type"] = "no such type"
    parents = {"hcp_profiles": hcps, "patient_journeys": journeys}
    load({**parents, "treatment_events": inside}, kept=("2024-01", "2024-04"))
    alone = content("treatment_events")
    with database.begin() as session:
        session.exec_driver_sql("DELETE FROM treatment_events")
    both = pd.concat([beyond, inside], ignore_index=True)
    done = load_table("treatment_events", both, kept=("2024-01", "2024-04")).tables["treatment_events"]
    assert (done.source, done.inserted, done.duplicate) == (68, 60, 0)
    assert done.reasons == {"after_data_end": 4, "before_first_month": 4}
    again = content("treatment_events")
    pd.testing.assert_frame_equal(alone, again)


def test_rows_of_a_range_that_was_wider_are_counted_by_reason(database, hcps, journeys, make_events):
    from e2i_dagster.loading.read import rows_not_kept

    events = make_events(100)
    events.loc[:1, "event_date"] = "2023-12-31"
    events.loc[2:4, "event_date"] = "2024-05-01"
    load({"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events})
    with database.connect() as connection:
        kept = ("2024-01", "2024-04")
        assert rows_not_kept(connection, "treatment_events", kept) == {
            "before_first_month": 2,
            "after_data_end": 3,
        }
        assert rows_not_kept(connection, "treatment_events", ("2023-12", "2024-05")) == {}
        assert rows_not_kept(connection, "hcp_profiles", kept) == {}


RESTATED = "tables: {treatment_events: {restates: month}}\n"


def restated(folder, events, mapping=RESTATED):
    """The events as a supplier's file, with a mapping that says that its months are whole."""
    folder.mkdir(exist_ok=True)
    events.to_csv(folder / "treatment_events.csv", index=False)
    (folder / "mapping.yaml").write_text(mapping)
    return files.read(folder, folder / "mapping.yaml")


def test_what_a_restated_month_does_not_deliver_again_is_withdrawn_and_kept_in_history(
    database, content, hcps, journeys, make_events, tmp_path
):
    events = make_events(100)
    month = events["event_date"].str[:7]
    load({"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events})
    january, february = (events[month == name].reset_index(drop=True) for name in ("2024-01", "2024-02"))
    # Of January one row is gone, one was moved to February and one breaks a rule; February is not delivered else.
    gone, moved, broken = january["treatment_event_id"].iloc[:3]
    again = january.iloc[1:].copy()
    again.loc[again["treatment_event_id"] == moved, "event_date"] = "2024-02-03"
    again.loc[again["treatment_event_id"] == broken, "event_type"] = "unheard_of"
    again = pd.concat([again, february], ignore_index=True)
    before = content("treatment_events").set_index("treatment_event_id")

    dry = load(restated(tmp_path / "in", again), dry_run=True, success_threshold=0.9)
    assert dry.tables["treatment_events"].withdrawn == 1
    assert len(content("treatment_events")) == 100 and content("load_withdrawals").empty

    done = load(restated(tmp_path / "in", again), success_threshold=0.9, load_id="second").tables[
        "treatment_events"
    ]
    assert (done.source, done.updated, done.rejected, done.withdrawn) == (len(again), 1, 1, 1)
    assert set(done.partitions) == {"2024-01", "2024-02"}
    after = content("treatment_events").set_index("treatment_event_id")
    assert set(before.index) - set(after.index) == {gone}
    # Months that were not delivered are as they were.
    later = events[month > "2024-02"]["treatment_event_id"]
    pd.testing.assert_frame_equal(after.loc[later], before.loc[later])
    (kept,) = content("load_withdrawals").to_dict("records")
    assert (kept["row_key"], kept["month"], kept["load_id"]) == (gone, "2024-01", "second")
    assert kept["content"]["patient_id"] == january["patient_id"].iloc[0]

    # The same delivery again changes nothing; with the row in it, the row is back.
    same = load(restated(tmp_path / "in", again), success_threshold=0.9).tables["treatment_events"]
    assert (same.loaded, same.withdrawn, same.partitions) == (0, 0, ())
    back = pd.concat([again, january.iloc[:1]], ignore_index=True)
    returned = load(restated(tmp_path / "in", back), success_threshold=0.9).tables["treatment_events"]
    assert (returned.inserted, returned.withdrawn) == (1, 0)


def test_nothing_is_withdrawn_without_the_declaration_or_beside_malformed_rows(
    database, content, hcps, journeys, make_events, tmp_path
):
    events = make_events(100)
    load({"hcp_profiles": hcps, "patient_journeys": journeys, "treatment_events": events})
    plain = load(restated(tmp_path / "in", events.iloc[50:], "tables: {treatment_events: {}}\n"))
    assert plain.tables["treatment_events"].withdrawn == 0
    delivery = restated(tmp_path / "in", events.iloc[50:])
    path = tmp_path / "in" / "treatment_events.csv"
    path.write_text(path.read_text() + "one,field,too,few\n")
    delivery = files.read(tmp_path / "in", tmp_path / "in" / "mapping.yaml")
    done = load(delivery, success_threshold=0.9).tables["treatment_events"]
    assert done.withdrawn == 0 and "nothing of treatment_events was withdrawn" in str(done.message)
    assert len(content("treatment_events")) == 100


def test_a_table_that_is_not_kept_by_month_cannot_be_restated(tmp_path, hcps):
    hcps.to_csv(tmp_path / "hcp_profiles.csv", index=False)
    (tmp_path / "mapping.yaml").write_text("tables: {hcp_profiles: {restates: month}}\n")
    with pytest.raises(InputError, match=r"hcp_profiles: the mapping says `restates: month`.*Leave it out"):
        files.read(tmp_path, tmp_path / "mapping.yaml")
    (tmp_path / "mapping.yaml").write_text("tables: {hcp_profiles: {restates: all}}\n")
    with pytest.raises(
        InputError, match=r"`restates: all`, but rows of patient_journeys, .* refer to its rows"
    ):
        files.read(tmp_path, tmp_path / "mapping.yaml")


def test_a_table_without_months_is_restated_as_a_whole(
    database, content, hcps, journeys, make_events, tmp_path
):
    periods = pd.DataFrame(
        {
            "observation_period_id": [f"O{i}" for i in range(40)],
            "patient_id": journeys["patient_id"],
            "start_date": "2023-01-01",
            "end_date": "2023-12-31",
        }
    )
    load({"hcp_profiles": hcps, "patient_journeys": journeys, "observation_periods": periods})

    def delivered(rows, restates):
        rows.to_csv(tmp_path / "observation_periods.csv", index=False)
        mapping = tmp_path / "mapping.yaml"
        mapping.write_text(f"tables: {{observation_periods: {{restates: {restates}}}}}\n")
        return files.read(tmp_path, mapping)

    # The remedy of each message is one that is accepted.
    with pytest.raises(InputError, match=r"no date, so it is not kept by month\. Write `restates: all`"):
        delivered(periods, "month")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"kept by month\. Write `restates: month`"):
        restated(tmp_path / "other", make_events(1), "tables: {treatment_events: {restates: all}}\n")
    again = periods.iloc[2:].copy()
    again.loc[5, "start_date"] = "no date"
    dry = load(delivered(again, "all"), dry_run=True, success_threshold=0.9).tables["observation_periods"]
    assert [(one.row, one.month, one.reason) for one in dry.going] == [
        ("O0", None, "not_delivered"),
        ("O1", None, "not_delivered"),
    ]
    done = load(delivered(again, "all"), success_threshold=0.9).tables["observation_periods"]
    assert (done.withdrawn, done.unchanged, done.rejected, done.partitions) == (2, 37, 1, ())
    assert len(content("observation_periods")) == 38
    # Without an accepted row nothing is restated.
    assert load(delivered(again.iloc[:0], "all")).tables["observation_periods"].withdrawn == 0
