"""``config/sources.yaml``: what is delivered, from where, for which months."""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from e2i_dagster.policy_files.base import Place, PolicyModel, RemediedError, read_yaml, unknown


class SyntheticSource(PolicyModel):
    """Data drawn from a documented process with known effects (docs/synthetic.md).

    ``scale`` multiplies every volume of the full set (1.0: 25,000 patients; 0.1: the small set).
    """

    kind: Literal["synthetic"]
    dgp: Literal["simple_linear", "confounded", "heterogeneous", "time_series", "selection_bias"] = (
        "confounded"
    )
    scale: float = Field(default=1.0, gt=0, le=100)
    seed: int = Field(default=42, ge=0)
    dirty: bool = False


class FileSource(PolicyModel):
    """Files delivered by a data supplier, one folder, one file or more for each table."""

    kind: Literal["files"]
    folder: str
    mapping: str | None = None


class ExpectedFile(PolicyModel):
    """Which file of a table is due when.

    Attributes:
        pattern: name in the delivery folder; ``{month}`` stands for ``YYYY-MM``.
        delivery_day: day of the following month until which it is expected.
    """

    pattern: str
    delivery_day: int = Field(ge=1, le=28)

    @field_validator("pattern")
    @classmethod
    def _names_the_month(cls, value: str) -> str:
        if "{month}" not in value:
            raise ValueError("the pattern must contain {month}, for example treatment_events_{month}.csv")
        return value


class SourcesPolicy(PolicyModel):
    """First month and end of the data, the delivery, and when each table's files are due."""

    first_month: str = Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    data_end: dt.date
    source: Annotated[SyntheticSource | FileSource, Field(discriminator="kind")]
    success_threshold: float = Field(default=0.95, ge=0, le=1)
    load_cron: str = "0 5 6 * *"
    expected: dict[str, ExpectedFile] = {}

    @field_validator("data_end")
    @classmethod
    def _end_of_month(cls, value: dt.date) -> dt.date:
        if (value + dt.timedelta(days=1)).day != 1:
            before = value.replace(day=1) - dt.timedelta(days=1)
            last = value.replace(day=calendar.monthrange(value.year, value.month)[1])
            raise RemediedError(
                "data_end must be the last day of a month, because event tables are kept by month",
                f"Write {before} or {last}.",
            )
        return value

    @model_validator(mode="after")
    def _has_months(self) -> SourcesPolicy:
        if not self.months:
            raise ValueError(
                f"first_month {self.first_month} lies after data_end {self.data_end}; give an earlier month"
            )
        return self

    @property
    def first_day(self) -> dt.date:
        """The first day that is kept: of what happened before, nothing is known."""
        return dt.date.fromisoformat(f"{self.first_month}-01")

    @property
    def covered(self) -> tuple[str, str]:
        """First and last day that is kept, ``YYYY-MM-DD``."""
        return self.first_day.isoformat(), self.data_end.isoformat()

    @property
    def kept_months(self) -> tuple[str, str]:
        """First and last month that event tables are kept for."""
        return self.months[0], self.months[-1]

    @property
    def months(self) -> list[str]:
        """All months ``YYYY-MM`` from ``first_month`` to the month of ``data_end``."""
        year, month = (int(part) for part in self.first_month.split("-"))
        months = []
        while (year, month) <= (self.data_end.year, self.data_end.month):
            months.append(f"{year:04d}-{month:02d}")
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
        return months

    @classmethod
    def load(cls, folder: Path) -> SourcesPolicy:
        """Read ``sources.yaml`` in ``folder``."""
        return read_yaml(folder / "sources.yaml", cls, _expected_tables)


def _expected_tables(policy: SourcesPolicy) -> Iterator[Place]:
    """Tables under ``expected`` that there are not."""
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES

    for table in policy.expected:
        yield from unknown(["expected", table], table, (*RAW_TABLES, *OPTIONAL_RAW_TABLES), "raw table")
