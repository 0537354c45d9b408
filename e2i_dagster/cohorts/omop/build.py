"""From a Circe expression and a folder of OMOP tables to a cohort."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from e2i_dagster.cohorts.disclosure import HIDDEN, is_small, shown_count
from e2i_dagster.cohorts.omop.expression import CohortExpression, read_expression
from e2i_dagster.cohorts.omop.folder import OpenPeriods, Quote, find_tables, load_tables
from e2i_dagster.cohorts.omop.sql_plan import Plan, compile_plan
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True)
class OmopCohort:
    """A cohort as OHDSI's tools would write it.

    Attributes:
        rows: subject_id (int64), cohort_start_date, cohort_end_date (dates at midnight); one row per
            person and era, sorted.
        inclusion_masks: mask to persons. Bit i is set when inclusion rule i is met by the person's best
            event: the one that meets most rules, then the earliest rule, then the earliest event (mode 1
            of OHDSI's ``cohort_inclusion_result``). Empty without inclusion rules, as there.
        event_masks: mask to qualified events (mode 0 of ``cohort_inclusion_result``).
        rules: names of the inclusion rules, bit 0 first.
        open_periods: observation periods without an end, their persons, and the day taken for their end.
    """

    rows: pd.DataFrame
    inclusion_masks: dict[int, int]
    event_masks: dict[int, int]
    rules: tuple[str, ...]
    open_periods: OpenPeriods = field(default_factory=OpenPeriods)

    @property
    def persons(self) -> int:
        """Number of persons in the cohort."""
        return int(self.rows["subject_id"].nunique())

    @property
    def rule_counts(self) -> pd.DataFrame:
        """One row per inclusion rule: rule, persons (who meet it), gain (who meet all rules but it)."""
        everything = (1 << len(self.rules)) - 1
        counts = [
            {
                "rule": name,
                "persons": sum(n for mask, n in self.inclusion_masks.items() if mask >> k & 1),
                "gain": self.inclusion_masks.get(everything - (1 << k), 0),
            }
            for k, name in enumerate(self.rules)
        ]
        return pd.DataFrame(counts, columns=["rule", "persons", "gain"])

    def shown_rules(self) -> list[dict[str, str]]:
        """``rule_counts`` as they may be shown, in text.

        Who meets a rule less who is in the cohort less the gains of the other rules is a count of
        persons, too: when one of those is small, no count of who meets a rule is shown.
        """
        counts = self.rule_counts.to_dict("records")
        derived = [self.persons, *(row["gain"] for row in counts)]
        derived += [row["persons"] - self.inclusion_masks.get((1 << len(counts)) - 1, 0) for row in counts]
        hidden = any(is_small(count) for count in derived)
        return [
            {
                "rule": str(row["rule"]),
                "persons": HIDDEN if hidden else shown_count(row["persons"]),
                "gain": shown_count(row["gain"]),
            }
            for row in counts
        ]

    def to_metadata(self) -> dict[str, Any]:
        """Counts that may be shown: cells of 1 to 10 persons are suppressed."""
        shown: dict[str, Any] = {"persons": shown_count(self.persons), "periods": shown_count(len(self.rows))}
        if self.open_periods.count:
            shown |= {
                "open_periods": shown_count(self.open_periods.count),
                "observed_until": str(self.open_periods.until),
            }
        if self.rules:
            names = ("rule", "persons", "gain")
            shown["rules"] = Table(names, [[row[name] for name in names] for row in self.shown_rules()])
        return shown

    def to_record(self) -> dict[str, Any]:
        """Exact counts, without any person."""
        return {
            "persons": self.persons,
            "periods": len(self.rows),
            "open_periods": self.open_periods.count,
            "observed_until": self.open_periods.until and self.open_periods.until.isoformat(),
            "rules": self.rule_counts.to_dict("records"),
            "inclusion_masks": {str(mask): n for mask, n in self.inclusion_masks.items()},
            "event_masks": {str(mask): n for mask, n in self.event_masks.items()},
        }


def build(
    circe_json: str | Path | dict[str, Any],
    folder: str | Path,
    *,
    data_end: dt.date | None = None,
    quote: Quote = '"',
) -> OmopCohort:
    """Evaluate a cohort expression of OHDSI Circe over a folder of OMOP tables.

    Args:
        circe_json: path, JSON text or parsed document, in the subset that docs/omop.md lists.
        folder: CSV or Parquet files named as the OMOP tables; only those that the expression reads.
        data_end: the end of observation periods that have none. By default the last day of the data: the
            latest day on which something begins, or an observation period ends, in the tables that are read
            (days from 2099-12-31 on aside).
        quote: ``none`` where CSV files are written without quoting and a quotation mark is text.

    Raises:
        ConfigError: the expression is not in the subset; each part with its path in the JSON.
        InputError: a needed table or column is missing or cannot be read.
    """
    import duckdb

    expression = read_expression(circe_json)
    plan = compile_plan(expression)
    files = find_tables(Path(folder), plan)
    settings: dict[Any, Any] = {"python_enable_replacements": False, "preserve_insertion_order": False}
    with duckdb.connect(config=settings) as connection:
        open_periods = load_tables(connection, files, plan, data_end, quote)
        try:
            return replace(_run(connection, expression, plan), open_periods=open_periods)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            said = str(error).splitlines()[0]
            raise InputError(
                f"{folder}: a file cannot be read ({said[:200]}).", remedy="Write it again."
            ) from None
        except (duckdb.ConversionException, duckdb.OutOfRangeException):
            # What DuckDB says here quotes the value.
            raise InputError(
                f"{folder}: a date or number is too large to count with.",
                remedy="Look for days_supply and dates.",
            ) from None


def _run(connection: DuckDBPyConnection, expression: CohortExpression, plan: Plan) -> OmopCohort:
    for statement in plan.statements:
        connection.execute(statement.sql, statement.values)
    rows = connection.execute(
        "SELECT person_id AS subject_id, start_date AS cohort_start_date, end_date AS cohort_end_date "
        "FROM cohort ORDER BY ALL"
    ).df()
    by_event: dict[int, int] = {}
    by_person: dict[int, int] = {}
    if expression.inclusion_rules:
        by_event = _masks(connection, "masked_events")
        by_person = _masks(connection, BEST_EVENTS)
    names = (rule.name or f"rule {k}" for k, rule in enumerate(expression.inclusion_rules))
    return OmopCohort(rows, by_person, by_event, tuple(names))


#: One event per person: most rules met, then the earliest rule, then the earliest event.
BEST_EVENTS = """(SELECT mask FROM masked_events QUALIFY row_number() OVER (PARTITION BY person_id ORDER BY
  bit_count(mask) DESC, CASE WHEN mask = 0 THEN 0 ELSE mask & -mask END, start_date, ordinal) = 1)"""


def _masks(connection: DuckDBPyConnection, relation: str) -> dict[int, int]:
    found = connection.execute(
        f"SELECT mask, count(*) FROM {relation} GROUP BY mask ORDER BY mask"
    ).fetchall()
    return {int(mask): int(count) for mask, count in found}
