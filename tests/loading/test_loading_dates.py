"""Days at every door: what is completed by a declared rule, and the same answer from every kind of file."""

import datetime as dt
import json
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from commands.cli import main
from e2i_dagster.cohorts.omop import build
from e2i_dagster.config.mapping import ImportMapping
from e2i_dagster.errors import InputError
from e2i_dagster.loading import rejects
from e2i_dagster.loading.load import load
from e2i_dagster.loading.read import recorded_load
from e2i_dagster.loading.resubmission import resubmit
from e2i_dagster.sources import files
from e2i_dagster.sources.check import check_folder, mapping_yaml
from e2i_dagster.tables import rules
from e2i_dagster.tables.vocabulary import load_vocabulary

PARTIAL = ["2024-01-05", "2024-02", "02/2024", "2024", "2024-02-10T08:00:00Z", "2024-W05"]


@pytest.fixture
def delivered(tmp_path, hcps, journeys, make_events):
    """A folder with six events, of which three are dated by a month or a year, and one by a week."""
    hcps.to_csv(tmp_path / "hcp_profiles.csv", index=False)
    journeys.to_csv(tmp_path / "patient_journeys.csv", index=False)
    make_events(6).assign(event_date=PARTIAL).to_csv(tmp_path / "treatment_events.csv", index=False)
    return tmp_path


def with_rule(folder, rule):
    return files.read(
        folder,
        ImportMapping.model_validate(
            {"tables": {"treatment_events": {"partial_dates": {"event_date": rule}}}}
        ),
    )


@pytest.mark.parametrize(
    ("rule", "days"),
    [
        ("first", ["2024-02-01", "2024-02-01", "2024-01-01"]),
        ("middle", ["2024-02-15", "2024-02-15", "2024-07-01"]),
        ("last", ["2024-02-29", "2024-02-29", "2024-12-31"]),
    ],
)
def test_a_declared_rule_completes_and_what_was_delivered_stays_beside_it(
    database, content, delivered, rule, days
):
    report = load(with_rule(delivered, rule), success_threshold=0, load_id=rule)
    done = report.tables["treatment_events"]
    assert done.reasons == {"date_format": 1}
    assert done.completed == {"event_date": {"month": 2, "year": 1}}
    events = content("treatment_events")
    assert [str(day) for day in events["event_date"][1:4]] == days
    kept = content("load_completed_dates")
    assert kept["delivered"].tolist() == PARTIAL[1:4]
    assert kept["precision"].tolist() == ["month", "month", "year"]
    assert kept["row_key"].tolist() == events["treatment_event_id"][1:4].tolist()
    assert {*kept["rule"], *kept["load_id"]} == {rule}
    assert recorded_load(database, rule)["tables"]["treatment_events"]["completed"] == done.completed


def test_a_day_that_comes_later_takes_the_place_of_the_month(database, content, delivered, make_events):
    load(with_rule(delivered, "first"), success_threshold=0)
    later = ["2024-01-05", "2024-02-17", "02/2024", "2024", "2024-02-10", "2024-02-01"]
    make_events(6).assign(event_date=later).to_csv(delivered / "treatment_events.csv", index=False)
    done = load(with_rule(delivered, "first"), load_id="later").tables["treatment_events"]
    assert (done.inserted, done.updated, done.unchanged) == (1, 1, 4)
    kept = content("load_completed_dates")
    assert kept["delivered"].tolist() == ["02/2024", "2024"] and set(kept["load_id"]) == {"later"}
    # A delivery without the column says nothing about it.
    make_events(6).drop(columns="cost").assign(event_date=later).iloc[:1].to_csv(
        delivered / "treatment_events.csv", index=False
    )
    load(with_rule(delivered, "first"))
    assert len(content("load_completed_dates")) == 2


def test_nothing_is_kept_of_a_load_that_writes_nothing(database, content, delivered):
    dry = load(with_rule(delivered, "first"), success_threshold=0, dry_run=True).tables["treatment_events"]
    assert dry.completed == {"event_date": {"month": 2, "year": 1}}
    failed = load(with_rule(delivered, "first"), success_threshold=0.99).tables["treatment_events"]
    assert (failed.status, failed.completed) == ("failed", {})
    assert content("load_completed_dates").empty


@pytest.mark.parametrize("rule", [None, "reject"])
def test_without_a_rule_a_month_is_no_day(database, delivered, rule):
    delivery = files.read(delivered) if rule is None else with_rule(delivered, rule)
    done = load(delivery, success_threshold=0).tables["treatment_events"]
    assert done.reasons == {"partial_date": 3, "date_format": 1} and done.completed == {}


def test_a_rule_for_what_is_no_date_column_is_refused(delivered):
    mapping = {"tables": {"treatment_events": {"partial_dates": {"cost": "first"}}}}
    with pytest.raises(InputError, match="`partial_dates` names cost, no date column of treatment_events"):
        files.read(delivered, ImportMapping.model_validate(mapping))


def test_import_check_proposes_a_rule_that_passes_the_load_and_says_what_it_means(
    database, delivered, tmp_path, make_events
):
    dates = [*PARTIAL[:5], "Mar 2024"]
    make_events(6).assign(event_date=dates).to_csv(delivered / "treatment_events.csv", index=False)
    journeys = pd.read_csv(delivered / "patient_journeys.csv", dtype=str)
    journeys.loc[:2, "journey_start_date"] = ["2023", "2023-03", "2023-03"]
    journeys["journey_end_date"] = journeys["journey_start_date"]
    journeys.to_csv(delivered / "patient_journeys.csv", index=False)
    found = check_folder(delivered, load_vocabulary())
    tables = {table.table: table for table in found.tables}
    assert found.mapping.table("patient_journeys").partial_dates == {
        "journey_start_date": "first",
        "journey_end_date": "last",
    }
    start, end = tables["patient_journeys"].partial_dates
    assert (start.column, start.rule, start.months, start.years) == ("journey_start_date", "first", 2, 1)
    assert (end.column, end.rule) == ("journey_end_date", "last")
    (event,) = tables["treatment_events"].partial_dates
    assert (event.months, event.years) == (2, 1)
    assert tables["patient_journeys"].rejected == {}
    path = delivered / "mapping.yaml"
    path.write_text(mapping_yaml(found))
    said = path.read_text()
    assert (
        "patient_journeys.journey_start_date: 2 a month and 1 a year without a day; `partial_dates: first`"
        in said
    )
    assert ImportMapping.load(path) == found.mapping
    report = load(files.read(delivered, path), success_threshold=0)
    assert report.tables["patient_journeys"].rejected == 0
    # One text that no format of its column fits is left, and named.
    assert report.tables["treatment_events"].reasons == {"date_format": 1}


def test_the_command_shows_the_choice_and_writes_it(delivered):
    done = CliRunner().invoke(main, ["import", "check", str(delivered), "--write-mapping"])
    assert done.exit_code == 0, done.output
    assert (
        "To choose: event_date: 2 a month and 1 a year without a day; `partial_dates: first`" in done.output
    )
    assert "partial_dates: {event_date: first}" in (delivered / "mapping.yaml").read_text()
    judged = CliRunner().invoke(
        main, ["import", "check", str(delivered), "--mapping", str(delivered / "mapping.yaml"), "--json"]
    )
    events = next(one for one in json.loads(judged.stdout)["tables"] if one["table"] == "treatment_events")
    assert events["partial_dates"] == [{"column": "event_date", "rule": "first", "months": 2, "years": 1}]


@pytest.mark.parametrize(
    ("cell", "reason", "key", "value", "day"),
    [
        ("2024-02", "partial_date", "partial_dates", "first", "2024-02-01"),
        ("2024", "partial_date", "partial_dates", "middle", "2024-07-01"),
        ("02/2024", "partial_date", "partial_dates", "last", "2024-02-29"),
        ("05-02-24", "two_digit_year", "dates", "%d-%m-%y", "2024-02-05"),
        ("05/02/2024", "ambiguous_date", "dates", "%d/%m/%Y", "2024-02-05"),
        ("5. 2. 2024", "date_format", "dates", "%d. %m. %Y", "2024-02-05"),
    ],
)
def test_every_remedy_that_a_reason_names_loads_the_row(
    database, content, delivered, make_events, cell, reason, key, value, day
):
    make_events(1).assign(event_date=cell).to_csv(delivered / "treatment_events.csv", index=False)
    refused = load(files.read(delivered), success_threshold=0).tables["treatment_events"]
    assert refused.reasons == {reason: 1}
    named = rules.REASONS[reason]
    assert f"`{key}`" in named
    assert value in named or reason == "date_format"
    mapping = ImportMapping.model_validate({"tables": {"treatment_events": {key: {"event_date": value}}}})
    taken = load(files.read(delivered, mapping)).tables["treatment_events"]
    assert (taken.inserted, taken.rejected) == (1, 0)
    assert str(content("treatment_events")["event_date"].iloc[0]) == day


def doors(folder, cell):
    """Day or reason of one cell by each door: CSV, Parquet, `import check`, and OMOP from both kinds of file."""
    ids = {name: ["x"] for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
    found = {}
    for kind in ("csv", "parquet"):
        inside = folder / kind
        inside.mkdir()
        table = pa.table({**ids, "event_date": [cell]})
        omop = pa.table(
            {
                "drug_exposure_id": [1],
                "person_id": [1],
                "drug_concept_id": [1],
                "drug_exposure_start_date": [cell],
            }
        )
        (inside / "cdm").mkdir()
        if kind == "csv":
            table.to_pandas().to_csv(inside / "treatment_events.csv", index=False)
            omop.to_pandas().to_csv(inside / "cdm" / "drug_exposure.csv", index=False)
        else:
            pq.write_table(table, inside / "treatment_events.parquet")
            pq.write_table(omop, inside / "cdm" / "drug_exposure.parquet")
        (inside / "cdm" / "observation_period.csv").write_text(
            "person_id,observation_period_start_date,observation_period_end_date\n1,0001-01-01,9999-12-31\n"
        )
        checked = rules.check("treatment_events", files.read(inside)["treatment_events"], load_vocabulary())
        faults = checked.faults_frame().query("column == 'event_date'")["reason"].tolist()
        found[f"load {kind}"] = faults[0] if faults else checked.rows.column("event_date")[0].as_py()
        judged = check_folder(inside, load_vocabulary(), ImportMapping()).tables[0].rejected
        named = [reason.split(" ")[0] for reason in judged if reason.endswith("in event_date")]
        found[f"check {kind}"] = named[0] if named else found[f"load {kind}"]
        found[f"omop {kind}"] = _omop(inside / "cdm")
    return found


def _omop(folder):
    expression = {
        "ConceptSets": [{"id": 1, "expression": {"items": [{"concept": {"CONCEPT_ID": 1}}]}}],
        "PrimaryCriteria": {
            "CriteriaList": [{"DrugExposure": {"CodesetId": 1}}],
            "ObservationWindow": {"PriorDays": 0, "PostDays": 0},
            "PrimaryCriteriaLimit": {"Type": "All"},
        },
    }
    try:
        rows = build(expression, folder).rows
    except InputError as error:
        return str(error).split("(YYYY-MM-DD): 1 ")[1].split(".")[0]
    return rows["cohort_start_date"].iloc[0].date() if len(rows) else "missing_value"


_CELLS = st.one_of(
    st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2199, 12, 31)).flatmap(
        lambda at: st.sampled_from(
            [f"{at:%Y-%m-%d}", f"{at:%Y%m%d}", f"{at:%Y-%m-%dT%H:%M:%S}Z", f"{at:%Y-%m-%dT%H:%M:%S}-05:00",
             f"{at:%Y-%m-%d %H:%M}", f"{at:%Y-%m}", f"{at:%Y}", f"{at:%d-%m-%y}", f"{at:%d/%m/%Y}", f"{at:%Y-%m-%d}x"]
        )
    ),
    st.text(alphabet="0123456789-/T:Z.", min_size=1, max_size=11),
)  # fmt: skip


@given(_CELLS)
@example("2024-02-10T23:30:00-05:00")
@example("2013-07")
@example("05-01-23")
@example("9999-12-31")
@example("0001-01-01")
@example("")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_cell_has_one_day_or_one_refusal_at_every_door(tmp_path_factory, cell):
    found = doors(tmp_path_factory.mktemp("doors"), cell)
    assert len(set(found.values())) == 1, found


DECLARED = ImportMapping.model_validate(
    {
        "format": {"time_zone": "America/New_York"},
        "tables": {
            "treatment_events": {"partial_dates": {"event_date": "middle", "source_timestamp": "last"}},
            "patient_clinical": {"own": {"biopsy": "date"}, "partial_dates": {"biopsy": "first"}},
        },
    }
)


def readings(folder, cell, kind, mapping):
    """What a day, a moment and an own day are by the load and by `import check`, a value or a reason each."""
    folder.mkdir()
    ids = {name: ["x"] for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
    tables = {
        "treatment_events": pa.table({**ids, "event_date": [cell], "source_timestamp": [cell]}),
        "patient_clinical": pa.table({"patient_journey_id": ["x"], "biopsy": [cell]}),
    }
    for name, table in tables.items():
        if kind == "csv":
            table.to_pandas().to_csv(folder / f"{name}.csv", index=False)
        else:
            pq.write_table(table, folder / f"{name}.parquet")
    delivery = files.read(folder, mapping)
    judged = {one.table: one.rejected for one in check_folder(folder, load_vocabulary(), mapping).tables}
    found = {}
    for name, columns in (
        ("treatment_events", ["event_date", "source_timestamp"]),
        ("patient_clinical", ["biopsy"]),
    ):
        checked = rules.check(name, delivery[name], load_vocabulary(), delivery.delivered[name].own)
        faults = checked.faults_frame()
        for column in columns:
            reason = faults.loc[faults["column"] == column, "reason"].tolist()
            value = (
                delivery[name]["biopsy"] if column == "biopsy" else checked.rows.column(column).to_pandas()
            )
            found[column] = reason[0] if reason else str(value.iloc[0])
            by_check = [text.split(" ")[0] for text in judged[name] if text.endswith(f"in {column}")]
            assert by_check == reason, (column, judged)
    return found


@given(_CELLS)
@example("2024-02-10T23:30:00")
@example("2024-11-03T01:30")
@example("2013-07")
@example("2013")
@example("9999-12-31T23:59:59")
@settings(max_examples=10, deadline=None)
def test_check_and_load_agree_about_what_a_mapping_declares_from_every_kind_of_file(tmp_path_factory, cell):
    folder = tmp_path_factory.mktemp("declared")
    found = [readings(folder / kind, cell, kind, DECLARED) for kind in ("csv", "parquet")]
    assert found[0] == found[1]
    plain = readings(folder / "plain", cell, "parquet", ImportMapping.model_validate(
        {"tables": {"patient_clinical": {"own": {"biopsy": "date"}}}}
    ))  # fmt: skip
    # What is declared decides nothing about other cells: days and moments with an offset stay.
    if "partial_date" not in plain.values():
        assert found[0]["event_date"] == plain["event_date"] and found[0]["biopsy"] == plain["biopsy"]
        if re.fullmatch(r".*([Zz]|[+-]\d\d:\d\d)|[\d-]*", cell):
            assert found[0] == plain


@pytest.mark.parametrize(
    ("zone", "local", "moment"),
    [
        ("America/New_York", "2024-02-10T23:30:00", "2024-02-11T04:30:00"),
        ("America/New_York", "2024-07-10 23:30", "2024-07-11T03:30:00"),
        ("Europe/Berlin", "2024-02-10T00:00:00", "2024-02-09T23:00:00"),
        # Shown twice: the later one. Skipped: the end of the skip.
        ("America/New_York", "2024-11-03T01:30:00.25", "2024-11-03T06:30:00.250000"),
        ("America/New_York", "2024-03-10T02:30:00", "2024-03-10T07:00:00"),
        ("UTC", "2024-02-10T23:30:00", "2024-02-10T23:30:00"),
    ],
)
def test_a_moment_without_an_offset_is_one_of_the_declared_zone(tmp_path, zone, local, moment):
    """From text and from Parquet, by ISO and by a declared format; a date column has the day that is written."""
    ids = {name: ["x"] for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
    typed = pa.array([dt.datetime.fromisoformat(local)], pa.timestamp("us"))
    cells = {"text": pa.array([local]), "typed": typed, "formatted": pa.array([local.replace("-", "/")])}
    day = pa.array([local])
    for kind, cell in cells.items():
        table = {"time_zone": zone}
        if kind == "formatted":
            clock = {16: "%H:%M", 19: "%H:%M:%S"}.get(len(local), "%H:%M:%S.%f")
            table["dates"] = {"source_timestamp": f"%Y/%m/%d{local[10]}{clock}"}
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / "treatment_events.parquet"
        pq.write_table(pa.table({**ids, "event_date": day, "source_timestamp": cell}), path)
        mapping = ImportMapping.model_validate({"tables": {"treatment_events": table}})
        frame = files.read(path.parent, mapping)["treatment_events"]
        checked = rules.check("treatment_events", frame, load_vocabulary())
        assert not checked.bad.any(), checked.faults_frame()
        at = checked.rows.column("source_timestamp")[0].as_py()
        assert at == dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC), kind
        assert checked.rows.column("event_date")[0].as_py().isoformat() == local[:10]


def test_an_unknown_zone_is_refused_when_the_mapping_is_read():
    with pytest.raises(ValidationError, match="not a time zone; for example Europe/Berlin"):
        ImportMapping.model_validate({"format": {"time_zone": "Mars/Olympus"}})


def test_an_own_day_without_its_day_is_completed_and_stays_beside_it(
    database, content, hcps, journeys, tmp_path
):
    load({"hcp_profiles": hcps, "patient_journeys": journeys})
    keys = journeys["patient_journey_id"].tolist()[:3]
    cells = ["2013-07", "2013-07-09", "2013"]
    clinical = pd.DataFrame({"patient_journey_id": keys, "biopsy": cells})
    clinical.to_csv(tmp_path / "patient_clinical.csv", index=False)
    own = {"own": {"biopsy": "date"}}
    plain = ImportMapping.model_validate({"tables": {"patient_clinical": own}})
    refused = load(files.read(tmp_path, plain), success_threshold=0, dry_run=True).tables["patient_clinical"]
    assert refused.reasons == {"partial_date": 2}
    mapping = ImportMapping.model_validate(
        {"tables": {"patient_clinical": {**own, "partial_dates": {"biopsy": "last"}}}}
    )
    (judged,) = check_folder(tmp_path, load_vocabulary(), mapping).tables
    assert judged.rejected == {} and (judged.partial_dates[0].months, judged.partial_dates[0].years) == (1, 1)
    done = load(files.read(tmp_path, mapping)).tables["patient_clinical"]
    assert (done.inserted, done.completed) == (3, {"biopsy": {"month": 1, "year": 1}})
    kept = content("patient_clinical", "extra").iloc[:, 0]
    assert [one["biopsy"] for one in kept] == ["2013-07-31", "2013-07-09", "2013-12-31"]
    beside = content("load_completed_dates")
    assert beside[["row_key", "column_name", "delivered", "precision", "rule"]].to_numpy().tolist() == [
        [keys[0], "biopsy", "2013-07", "month", "last"],
        [keys[2], "biopsy", "2013", "year", "last"],
    ]
    # A text column of one's own has no days to complete.
    with pytest.raises(InputError, match="names biopsy, no date column of patient_clinical"):
        files.read(tmp_path, ImportMapping.model_validate(
            {"tables": {"patient_clinical": {"partial_dates": {"biopsy": "last"}}}}
        ))  # fmt: skip


def test_a_corrected_row_is_completed_by_the_rule_of_its_load(
    database, content, hcps, journeys, make_events, tmp_path
):
    """The reject shows the month as it was delivered; another one in its place is completed, too."""
    (tmp_path / "in").mkdir()
    load({"hcp_profiles": hcps, "patient_journeys": journeys})
    events = make_events(3).assign(event_date=["2024-02", "2024", "2024-02-10"])
    right = events["event_type"].iloc[0]
    events.loc[:1, "event_type"] = "unheard of"
    events.to_csv(tmp_path / "in" / "treatment_events.csv", index=False)
    first = load(with_rule(tmp_path / "in", "last"), success_threshold=0, load_id="first")
    assert first.tables["treatment_events"].reasons == {"unknown_value": 2}
    (path,) = rejects.export(database, tmp_path / "corrections")
    rows = pd.read_csv(path, dtype="string[pyarrow]")
    assert rows["event_date"].tolist() == ["2024-02", "2024"]
    # Wrong again first: the rule goes with the row.
    rows.assign(event_type="still unheard of").to_csv(path, index=False)
    again = resubmit(database, tmp_path / "corrections", new_load_id="again")
    assert again.tables["treatment_events"].reasons == {"unknown_value": 2}
    (path,) = rejects.export(database, tmp_path / "corrections")
    rows = pd.read_csv(path, dtype="string[pyarrow]")
    rows.assign(event_type=right, event_date=["2024-02", "2024-04"]).to_csv(path, index=False)
    done = resubmit(database, tmp_path / "corrections", new_load_id="third").tables["treatment_events"]
    assert (done.inserted, done.completed, done.lines) == (2, {"event_date": {"month": 2}}, None)
    dated = content("treatment_events").set_index("treatment_event_id")["event_date"].astype(str)
    keys = events["treatment_event_id"].tolist()
    assert dated.loc[keys].tolist() == ["2024-02-29", "2024-04-30", "2024-02-10"]
    beside = content("load_completed_dates")
    assert beside[["row_key", "delivered", "rule", "load_id"]].to_numpy().tolist() == [
        [keys[0], "2024-02", "last", "third"],
        [keys[1], "2024-04", "last", "third"],
    ]


MOMENT = pd.Timestamp("2024-02-10T23:30:00-05:00")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "-05:00"])
def test_a_moment_of_parquet_is_on_the_day_of_its_text(tmp_path, unit, zone):
    """With a zone it is that moment, on its day in UTC; without one it is taken as UTC."""
    value = MOMENT if zone else MOMENT.tz_localize(None)
    ids = {name: ["x"] for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
    found = []
    for kind in ("csv", "parquet"):
        inside = tmp_path / kind
        inside.mkdir()
        if kind == "csv":
            pd.DataFrame({**ids, "event_date": [value.isoformat()]}).to_csv(
                inside / "treatment_events.csv", index=False
            )
        else:
            cell = pa.array([value], pa.timestamp(unit, zone))
            pq.write_table(pa.table({**ids, "event_date": cell}), inside / "treatment_events.parquet")
        checked = rules.check("treatment_events", files.read(inside)["treatment_events"], load_vocabulary())
        found += checked.rows.column("event_date").to_pylist()
    assert found == [dt.date(2024, 2, 11 if zone else 10)] * 2


def test_parts_of_a_table_with_and_without_a_zone_keep_their_moments(tmp_path):
    """One file has dates, one moments of New York, one moments without a zone, one text."""
    cells = [
        pa.array([dt.date(2024, 2, 10)]),
        pa.array([MOMENT], pa.timestamp("us", "America/New_York")),
        pa.array([MOMENT.tz_localize(None)], pa.timestamp("ns")),
        pa.array(["2024-02-10T23:30:00-05:00"]),
    ]
    for number, cell in enumerate(cells):
        ids = {name: [str(number)] for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
        pq.write_table(pa.table({**ids, "event_date": cell}), tmp_path / f"treatment_events_{number}.parquet")
    checked = rules.check("treatment_events", files.read(tmp_path)["treatment_events"], load_vocabulary())
    assert [day.day for day in checked.rows.column("event_date").to_pylist()] == [10, 11, 10, 11]
