"""What a definition finds in rows that are not loaded yet: per rule the share known and true, per code its rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.columns import typed_column
from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.operators import decidable, holds
from e2i_dagster.cohorts.own_fields import not_converted_words, with_own_fields
from e2i_dagster.config.cohort import CohortDefinition, Criterion


class RuleHits(BaseModel):
    """How a rule fares in the rows: ``known`` and ``true`` are rows (journeys), None when it cannot be asked.

    ``codes``: rows of each code of a rule on codes. ``problem``: why it cannot be asked, or for which rows not.
    """

    model_config = ConfigDict(frozen=True)

    cohort: str
    rule: str
    field: str
    rows: int
    known: int | None = None
    true: int | None = None
    codes: dict[str, int] = {}
    problem: str | None = None

    def to_metadata(self) -> dict[str, Any]:
        """The same for people, counts below 11 hidden."""
        share = "-" if self.known is None or not self.rows else f"{self.known / self.rows:.0%}"
        few = self.known is not None and min(self.known, self.rows - self.known) in range(1, 11)
        return {
            "cohort": self.cohort,
            "rule": self.rule,
            "field": self.field,
            "known": "suppressed" if few else share,
            "rows_true": "-" if self.true is None else shown_count(self.true),
            "codes": ", ".join(f"{code} {shown_count(rows)}" for code, rows in self.codes.items()),
            "problem": self.problem or "",
        }


def rule_hits(definition: CohortDefinition, patients: pd.DataFrame) -> tuple[RuleHits, ...]:
    """Every criterion on a field of the patient frame, asked of all rows by itself.

    Args:
        patients: one row per journey (:func:`.patient_frame`); columns may be missing.
    """
    patients, lost = with_own_fields(definition, patients)
    notes = dict(zip(lost, not_converted_words(definition, lost, len(patients)), strict=True))
    found = []
    for rule in definition.rules:
        if not isinstance(rule.criterion, Criterion):
            continue
        field = rule.criterion.field
        facts: dict[str, Any] = {
            "cohort": definition.key,
            "rule": rule.name,
            "field": field,
            "rows": len(patients),
        }
        if field not in patients.columns:
            found.append(RuleHits(**facts, problem="no column of this name was delivered"))
            continue
        try:
            column = decidable(rule.criterion, typed_column(patients[field], field))
            true = holds(rule.criterion, column)
        except CohortInputError as error:
            found.append(RuleHits(**facts, problem=str(error)))
            continue
        codes = {}
        if rule.criterion.code_system is not None and column.kind == "text":
            for code in rule.criterion.values:
                criterion = rule.criterion.model_copy(update={"operator": "in", "value": (code,)})
                codes[str(code)] = int(holds(criterion, column).sum())
        found.append(
            RuleHits(
                **facts,
                known=int(column.known.sum()),
                true=int(true.sum()),
                codes=codes,
                problem=notes.get(field),
            )
        )
    return tuple(found)
