"""Days of OMOP folders: periods without an end, moments with a zone, and what is refused and by which name."""

from __future__ import annotations

import datetime as dt
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from omop_cases import CONDITION, condition, counted, drug, expression, period, rows, rule, write_folder

from commands.cli import main
from e2i_dagster.cohorts.omop import build
from e2i_dagster.errors import InputError

KINDS = pytest.mark.parametrize("kind", ["csv", "parquet"])
HEAD = "drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date\n"


def folder_of(tmp_path, exposure, kind="csv"):
    """One person observed in 2024 to 2025; the exposure's day is one cell: text of a CSV or an Arrow array."""
    (tmp_path / "observation_period.csv").write_text(
        "person_id,observation_period_start_date,observation_period_end_date\n1,2024-01-01,2025-12-31\n"
    )
    if kind == "csv":
        (tmp_path / "drug_exposure.csv").write_text(f"{HEAD}1,1,1,{exposure}\n")
        return tmp_path
    ids = {name: [1] for name in HEAD.split(",")[:3]}
    pq.write_table(
        pa.table({**ids, "drug_exposure_start_date": exposure}), tmp_path / "drug_exposure.parquet"
    )
    return tmp_path


@KINDS
def test_a_person_whose_observation_has_no_end_stays_until_the_last_day_of_the_data(tmp_path, kind):
    """Person 1 is observed until a known day, persons 2 and 3 still are; the last thing that began was on 2 May."""
    tables = {
        "observation_period": [
            period(1, end="2001-01-01"), period(2, end=None), period(3, start="2001-04-01", end=None),
            period(4, end="9999-12-31"),
        ],
        "drug_exposure": [
            drug(1, 1, "2000-06-01"), drug(2, 2, "2001-05-02"), drug(3, 3, "2001-04-02"), drug(4, 4, "2000-06-01"),
        ],
    }  # fmt: skip
    cohort = build(expression(), write_folder(tmp_path, tables, kind))
    assert rows(cohort) == [
        (1, "2000-06-01", "2001-01-01"),
        (2, "2001-05-02", "2001-05-02"),
        (3, "2001-04-02", "2001-05-02"),
        (4, "2000-06-01", "9999-12-31"),
    ]
    found = cohort.open_periods
    assert (found.count, found.subjects, found.until) == (2, (2, 3), dt.date(2001, 5, 2))
    assert (cohort.to_record()["open_periods"], cohort.to_record()["observed_until"]) == (2, "2001-05-02")
    assert (cohort.to_metadata()["open_periods"], cohort.to_metadata()["observed_until"]) == (
        "<11",
        "2001-05-02",
    )


def test_the_end_of_the_data_can_be_given_and_a_later_start_is_not_moved(tmp_path):
    tables = {
        "observation_period": [period(1, end=None), period(2, start="2001-03-01", end=None)],
        "drug_exposure": [drug(1, 1, "2000-06-01"), drug(2, 2, "2001-03-01")],
        "condition_occurrence": [condition(1, 1, "2000-05-31")],
    }
    folder = write_folder(tmp_path, tables)
    cohort = build(
        expression(InclusionRules=[rule("any", counted(CONDITION, -30, 0))]),
        folder,
        data_end=dt.date(2001, 2, 1),
    )
    assert rows(cohort) == [(1, "2000-06-01", "2001-02-01")]
    assert rows(build(expression(), folder, data_end=dt.date(2001, 2, 1))) == [
        (1, "2000-06-01", "2001-02-01"),
        (2, "2001-03-01", "2001-03-01"),
    ]


def test_without_an_open_period_nothing_is_said(tmp_path):
    cohort = build(expression(), folder_of(tmp_path, "2024-05-10"))
    assert (cohort.open_periods.count, cohort.open_periods.until) == (0, None)
    assert "open_periods" not in cohort.to_metadata()


def test_the_command_says_how_many_periods_have_no_end(tmp_path):
    tables = {
        "observation_period": [period(k, end=None) for k in range(1, 13)],
        "drug_exposure": [drug(k, k, "2000-06-01") for k in range(1, 13)],
    }
    folder = write_folder(tmp_path / "cdm", tables)
    (tmp_path / "one.json").write_text(json.dumps(expression()))
    told = ["cohort", "omop", str(tmp_path / "one.json"), str(folder)]
    shown = CliRunner().invoke(main, told)
    assert shown.exit_code == 0, shown.output
    assert "12 observation periods have no end; they are taken to go on until 2000-06-01" in shown.output
    given = json.loads(CliRunner().invoke(main, [*told, "--data-end", "2000-12-31", "--json"]).stdout)
    assert (given["open_periods"], given["observed_until"]) == ("12", "2000-12-31")


LATE = pd.Timestamp("2024-02-10T23:30:00-05:00")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "-05:00"])
def test_one_moment_is_on_one_day_in_parquet_as_in_csv(tmp_path, unit, zone):
    """Half past eleven in the evening, five hours behind UTC, is the next day in UTC, whatever holds it."""
    (tmp_path / "csv").mkdir()
    by_text = build(expression(), folder_of(tmp_path / "csv", LATE.isoformat()))
    (tmp_path / "parquet").mkdir()
    cell = pa.array([LATE], pa.timestamp(unit, zone))
    by_type = build(expression(), folder_of(tmp_path / "parquet", cell, "parquet"))
    assert rows(by_text) == rows(by_type) == [(1, "2024-02-11", "2025-12-31")]


@pytest.mark.parametrize(
    "cell",
    [
        pa.array([dt.datetime(2024, 5, 10, 23, 30)], pa.timestamp("ns")),
        pa.array(["2024-05-10 23:30:00"]),
        pa.array([20240510]),
        pa.array([dt.date(2024, 5, 10)]),
    ],
    ids=["timestamp", "text", "number", "date"],
)
def test_a_moment_without_a_zone_is_on_its_own_day(tmp_path, cell):
    assert rows(build(expression(), folder_of(tmp_path, cell, "parquet"))) == [
        (1, "2024-05-10", "2025-12-31")
    ]


def test_a_datetime_column_beside_the_date_is_not_read(tmp_path):
    """OHDSI's SQL reads the date columns alone, and so does this."""
    folder = folder_of(tmp_path, "2024-05-10")
    (folder / "drug_exposure.csv").write_text(
        HEAD.strip() + ",drug_exposure_start_datetime\n1,1,1,2024-05-10,2024-05-11T02:00:00Z\n"
    )
    assert rows(build(expression(), folder)) == [(1, "2024-05-10", "2025-12-31")]


@pytest.mark.parametrize("missing", ["", "NA", "NULL", "NaN"])
@KINDS
def test_a_missing_day_is_missing_in_parquet_text_as_in_csv(tmp_path, missing, kind):
    folder = folder_of(tmp_path, missing if kind == "csv" else pa.array([missing]), kind)
    assert rows(build(expression(), folder)) == []


@pytest.mark.parametrize(
    ("cell", "reason", "remedy"),
    [
        ("05-01-23", "two_digit_year", "2024-01-05"),
        ("5/1/23", "two_digit_year", "2024-01-05"),
        ("2013-07", "partial_date", "2024-07-01"),
        ("2013", "partial_date", "2024-01-01"),
        ("05/01/2024", "ambiguous_date", "2024-05-01"),
        ("2024-02-30", "date_format", "2024-02-29"),
        ("9999-12-31T23:59:59-05:00", "date_format", "2024-12-31"),
    ],
)
@KINDS
def test_a_cell_that_is_no_certain_day_is_counted_by_its_reason_and_the_remedy_is_one(
    tmp_path, cell, reason, remedy, kind
):
    folder = folder_of(tmp_path, cell if kind == "csv" else pa.array([cell]), kind)
    with pytest.raises(InputError) as refused:
        build(expression(), folder)
    said = (
        f"drug_exposure_start_date: a value is not one of dates (YYYY-MM-DD): 1 {reason}. Write the days as "
    )
    assert said in str(refused.value) and cell not in str(refused.value).replace("(YYYY-MM-DD)", "")
    assert (refused.value.known["field"], refused.value.known["file"]) == (
        "drug_exposure_start_date",
        f"drug_exposure.{kind}",
    )
    folder_of(folder, remedy if kind == "csv" else pa.array([remedy]), kind)
    assert rows(build(expression(), folder)) == [(1, remedy, "2025-12-31")]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.date32()])
def test_a_typed_day_after_the_year_9999_is_refused_as_text_is(tmp_path, kind):
    days = pa.array([2_932_897], pa.int32()).cast(pa.date32())
    cell = days if kind == pa.date32() else days.cast(pa.timestamp("us")).cast(pa.int64()).cast(kind)
    with pytest.raises(InputError, match=r"drug_exposure_start_date: .* 1 date_format"):
        build(expression(), folder_of(tmp_path, cell, "parquet"))


def test_reasons_are_counted_over_the_whole_column(tmp_path):
    folder = folder_of(tmp_path, "2024-05-10")
    cells = ["05-01-23", "05-01-23", "2013-07", "NA", "2024-05-11"]
    lines = "".join(f"{k},1,1,{cell}\n" for k, cell in enumerate(cells))
    (folder / "drug_exposure.csv").write_text(HEAD + lines)
    with pytest.raises(InputError, match=r"\(YYYY-MM-DD\): 1 partial_date, 2 two_digit_year\. Write"):
        build(expression(), folder)
