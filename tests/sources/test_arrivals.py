"""Which expected files are overdue on a day."""

import datetime as dt

import pytest

from e2i_dagster.config.sources import SourcesPolicy
from e2i_dagster.sources.arrivals import overdue_files

POLICY = SourcesPolicy.model_validate(
    {
        "first_month": "2024-11",
        "data_end": "2025-01-31",
        "source": {"kind": "files", "folder": "deliveries"},
        "expected": {"triggers": {"pattern": "triggers_{month}.csv", "delivery_day": 5}},
    }
)


def files(present, today):
    return [late.file for late in overdue_files(POLICY, present, today)]


def test_nothing_is_overdue_on_its_day():
    assert files([], dt.date(2024, 12, 5)) == []


def test_the_day_after_and_over_new_year():
    assert files([], dt.date(2024, 12, 6)) == ["triggers_2024-11.csv"]
    assert files(["triggers_2024-11.csv"], dt.date(2025, 1, 6)) == ["triggers_2024-12.csv"]


def test_everything_there():
    present = [f"triggers_{month}.csv" for month in POLICY.months]
    assert files(present, dt.date(2030, 1, 1)) == []


def test_a_pattern_without_the_month_is_refused():
    with pytest.raises(ValueError, match=r"must contain \{month\}"):
        SourcesPolicy.model_validate(
            POLICY.model_dump() | {"expected": {"triggers": {"pattern": "triggers.csv", "delivery_day": 5}}}
        )
