"""What building a cohort gives: who is in, who waits, and why everyone else is out.

Values held here are exact. What is shown (``to_metadata``) is suppressed: see :mod:`.disclosure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pandas as pd

from e2i_dagster.cohorts.consort import consort_svg
from e2i_dagster.cohorts.definition_page import examples_table
from e2i_dagster.cohorts.disclosure import HIDDEN, ShownStep, is_small, shown_count, shown_steps
from e2i_dagster.cohorts.own_fields import not_converted_words
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.display import Figure, Table, Words


@dataclass(frozen=True)
class Cohort:
    """The result of one definition on one set of patients.

    Attributes:
        eligible: patient_id, patient_journey_id, index_date, followup_end (last day observed, not after
            the end of the data); one row per patient.
        pending: the same columns, patients who meet every rule but whose required follow-up ends after
            the data: to be scored.
        attrition: one row per rule in order: order, criterion, type, operator, value, removed, remaining,
            unknown, marginal_gain, description (all counts are persons), removed_records,
            remaining_records. ``unknown``: persons with a null among those who reached the rule.
            ``marginal_gain``: persons that dropping this rule alone would bring in.
        reasons: one row per journey: patient_id, patient_journey_id, index_date, mask (int64, bit
            ``order - 1`` set when that rule failed; 0 is eligible), unknown_mask, words.
        kept_with_unknown: eligible patients kept although a rule that reports unknowns was unknown.
        milliseconds: time of each part of the work.
        not_converted: own field -> rows whose value is none of the declared type; they are unknown to the rules.
    """

    definition: CohortDefinition
    data_end: date | None
    input_patients: int
    input_records: int
    eligible: pd.DataFrame
    pending: pd.DataFrame
    attrition: pd.DataFrame
    reasons: pd.DataFrame
    kept_with_unknown: int
    milliseconds: dict[str, int] = field(compare=False)
    not_converted: dict[str, int] = field(default_factory=dict)

    @property
    def eligible_count(self) -> int:
        """Number of eligible patients."""
        return len(self.eligible)

    @property
    def exclusion_rate(self) -> float | None:
        """Share of all patients who are not eligible (pending ones included); None without patients."""
        return 1 - self.eligible_count / self.input_patients if self.input_patients else None

    @property
    def definition_hash(self) -> str:
        """Content digest of the definition's rules."""
        return self.definition.definition_hash

    @property
    def removed_by_followup(self) -> int:
        """Patients removed because they were not observed long enough after the index date.

        A rule on follow-up conditions on the future, so this number belongs in every report.
        """
        return int(self.attrition.loc[self.attrition["criterion"] == "followup", "removed"].iloc[0])

    @property
    def emptied_by(self) -> str | None:
        """Name of the rule after which nobody remained; None when somebody is eligible.

        ``"no patients"`` when there were none to begin with. An empty cohort has the code CC_003.
        """
        if self.eligible_count:
            return None
        if not self.input_patients:
            return "no patients"
        return str(self.attrition.loc[self.attrition["remaining"] == 0, "criterion"].iloc[0])

    @property
    def own_field_notes(self) -> tuple[str, ...]:
        """``not_converted`` in words, as it may be shown."""
        return not_converted_words(self.definition, self.not_converted, self.input_records)

    def shown(self) -> tuple[ShownStep, ...]:
        """The attrition as it may be shown, small cells suppressed."""
        return shown_steps(self.attrition, self.input_patients)

    def to_metadata(self) -> dict[str, Any]:
        """Figures, tables and the CONSORT figure for people; no count below 11 can be read off them."""
        steps = self.shown()
        remaining = steps[-1].remaining if steps else shown_count(self.input_patients)
        hidden = not remaining.replace(",", "").isdigit()
        rate = self.exclusion_rate
        metadata: dict[str, Any] = {
            "cohort": self.definition.key,
            "title": self.definition.title,
            "version": self.definition.version,
            "definition_hash": self.definition_hash,
            "input_patients": _number(shown_count(self.input_patients)),
            "eligible_patients": _number(remaining),
            "exclusion_rate": "suppressed" if hidden or rate is None else rate,
            "pending_patients": _number(_removed(steps, "followup_pending")),
            "removed_by_followup": _number(_removed(steps, "followup")),
            "kept_with_unknown_safety_value": _number(self._shown_kept(steps)),
            "definition": Words(self.definition.sentences(), "list"),
            "attrition": attrition_table(steps, self.attrition["share"].tolist()),
            "consort": Figure.svg(self.consort_svg(), f"CONSORT figure of {self.definition.key}"),
            "examples": examples_table(self.definition),
        }
        if notes := self.own_field_notes:
            metadata["own_fields_not_converted"] = "; ".join(notes)
        if self.data_end is not None:
            metadata["data_end"] = self.data_end.isoformat()
        if self.emptied_by is not None:
            metadata["empty"] = f"CC_003: nobody is left after the rule '{self.emptied_by}'"
        return metadata

    def to_record(self) -> dict[str, Any]:
        """What the data say of this execution, for ``ml_cohort_executions`` (exact values)."""
        empty = self.emptied_by
        return {
            "cohort_id": self.definition.cohort_id,
            "config_hash": self.definition_hash,
            "data_end": self.data_end,
            "input_row_count": self.input_records,
            "input_patient_count": self.input_patients,
            "eligible_row_count": self.eligible_count,
            "pending_row_count": len(self.pending),
            "excluded_row_count": self.input_patients - self.eligible_count,
            "execution_time_ms": sum(self.milliseconds.values()),
            **self.milliseconds,
            "status": "success" if empty is None else "failed",
            "error_code": None if empty is None else "CC_003",
            "error_message": None if empty is None else f"nobody is left after the rule '{empty}'",
        }

    def consort_svg(self) -> str:
        """The CONSORT figure as SVG text, small cells suppressed."""
        steps = self.shown()
        aside: tuple[str, ...] = ()
        if self.kept_with_unknown:
            asked = sum(1 for rule in self.definition.rules if rule.on_unknown == "report")
            aside = (
                f"Of them unknown: {self._shown_kept(steps)}",
                "kept although a safety value is unknown",
                f"({asked} rules report unknown values)",
            )
        return consort_svg(
            title=self.definition.title or self.definition.key,
            start=f"{shown_count(self.input_patients)} patients",
            steps=steps,
            end="eligible",
            aside=aside,
        )

    def _shown_kept(self, steps: tuple[ShownStep, ...]) -> str:
        """Eligible patients with an unknown safety value; hidden where they or the others are few."""
        if not steps or not steps[-1].remaining.replace(",", "").isdigit():
            return HIDDEN
        if is_small(self.eligible_count - self.kept_with_unknown):
            return HIDDEN
        return shown_count(self.kept_with_unknown)


def _number(shown: str) -> int | str:
    """A shown count as a number where it is one, so that it can be plotted over time."""
    digits = shown.replace(",", "")
    return int(digits) if digits.isdigit() else shown


def _removed(steps: tuple[ShownStep, ...], name: str) -> str:
    return next((step.removed for step in steps if step.criterion == name), "0")


def attrition_table(steps: tuple[ShownStep, ...], shares: Sequence[float] | None = None) -> Table:
    """The steps as a table.

    Args:
        shares: share of each rule in who is excluded, whatever the order; shown in whole percent, and only
            where no count of the table is hidden.
    """
    counts = [[_number(n) for n in (s.removed, s.remaining, s.unknown, s.marginal_gain)] for s in steps]
    names = ["#", "rule", "kind", "condition", "removed", "remaining", "unknown", "gained if dropped"]
    rows = [
        [s.order, s.criterion, s.side, s.description, *of_step]
        for s, of_step in zip(steps, counts, strict=True)
    ]
    if shares is not None and all(isinstance(count, int) for of_step in counts for count in of_step):
        names.append("share in exclusions")
        rows = [[*row, share] for row, share in zip(rows, shares, strict=True)]
    return Table(names, rows, {"share in exclusions": ".0%"})
