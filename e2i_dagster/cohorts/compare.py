"""Two versions of a cohort side by side: rules changed in words, patients gained and lost by rule.

What is shown is suppressed so that no group below 11 can be read off, neither directly nor from the
difference of the two eligible counts. The frames are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.disclosure import HIDDEN, is_small, shown_count, shown_partition
from e2i_dagster.config.cohort import CohortDefinition, Rule

NOT_THERE = "not in the data"


class Compared(Protocol):
    """What is compared: a :class:`~.result.Cohort` or a :class:`~.executions.RecordedCohort`."""

    @property
    def definition(self) -> CohortDefinition: ...
    @property
    def eligible(self) -> pd.DataFrame: ...
    @property
    def reasons(self) -> pd.DataFrame: ...
    @property
    def input_patients(self) -> int: ...


@dataclass(frozen=True)
class RuleChange:
    """One rule that differs. ``before`` and ``after`` are its words; empty where it does not exist."""

    change: Literal["added", "removed", "changed", "renamed", "moved"]
    rule: str
    before: str
    after: str

    def words(self) -> str:
        """The change as a sentence."""
        match self.change:
            case "added":
                return f"New rule {self.rule}: {self.after}."
            case "removed":
                return f"Rule {self.rule} is gone: {self.before}."
            case "renamed":
                return f"Rule {self.rule} has another name: {self.before} is now {self.after}."
            case "moved":
                return f"Rule {self.rule} is applied {self.after} instead of {self.before}."
        return f"Rule {self.rule}: was '{self.before}', is now '{self.after}'."


@dataclass(frozen=True)
class CohortComparison:
    """What differs between an old and a new version.

    Attributes:
        rules: changed rules. Empty when both have the same rules.
        old_count, new_count: eligible patients; None when only definitions were compared.
        lost: patient_id, patient_journey_id, rule (first rule that the patient fails in the new version),
            rules (all of them); one row per patient who was eligible in the old version only.
        gained: the same for patients eligible in the new version only, with the rules of the old one.
    """

    cohort: str
    old_version: str
    new_version: str
    rules: tuple[RuleChange, ...]
    old_count: int | None
    new_count: int | None
    lost: pd.DataFrame
    gained: pd.DataFrame

    @property
    def unchanged(self) -> bool:
        """Whether rules and eligible patients are the same."""
        return not self.rules and self.lost.empty and self.gained.empty

    def shown_counts(self) -> dict[str, str]:
        """Eligible patients before and after, lost and gained, none of which gives away a small group."""
        if self.old_count is None or self.new_count is None:
            return {}
        small = is_small(len(self.lost)) or is_small(len(self.gained))
        return {
            "before": shown_count(self.old_count),
            "after": HIDDEN if small else shown_count(self.new_count),
            "lost": HIDDEN if small and not is_small(len(self.lost)) else shown_count(len(self.lost)),
            "gained": HIDDEN if small and not is_small(len(self.gained)) else shown_count(len(self.gained)),
        }

    def by_rule(self, side: Literal["lost", "gained"], *, exact: bool = False) -> list[dict[str, str]]:
        """Patients by the first rule that decided; small groups hidden together with a neighbour."""
        counts = {str(rule): int(count) for rule, count in getattr(self, side)["rule"].value_counts().items()}
        total = self.shown_counts().get(side, "0")
        shown = (
            {rule: f"{count:,}" for rule, count in counts.items()}
            if exact
            else shown_partition(counts, total_shown=total not in (HIDDEN, "<11"))
        )
        return [{"rule": rule, "patients": patients} for rule, patients in shown.items()]

    def to_metadata(self, *, exact: bool = False) -> dict[str, Any]:
        """Counts and tables for people; ``exact`` leaves nothing out."""
        record: dict[str, Any] = {
            "cohort": self.cohort,
            "old_version": self.old_version,
            "new_version": self.new_version,
            "rules_changed": [change.words() for change in self.rules],
        }
        if self.old_count is None or self.new_count is None:
            return record
        counts = (
            {
                "before": f"{self.old_count:,}",
                "after": f"{self.new_count:,}",
                "lost": f"{len(self.lost):,}",
                "gained": f"{len(self.gained):,}",
            }
            if exact
            else self.shown_counts()
        )
        return record | {
            "eligible_before": counts["before"],
            "eligible_after": counts["after"],
            "lost": counts["lost"],
            "gained": counts["gained"],
            "lost_by_rule": self.by_rule("lost", exact=exact),
            "gained_by_rule": self.by_rule("gained", exact=exact),
        }


def compare(old: Compared | CohortDefinition, new: Compared | CohortDefinition) -> CohortComparison:
    """Compare two versions of a cohort, or the same version on two versions of the data.

    Args:
        old, new: both built (or read back) cohorts, or definitions. With a definition on either side only
            the rules are compared.
    """
    before = old if isinstance(old, CohortDefinition) else old.definition
    after = new if isinstance(new, CohortDefinition) else new.definition
    empty = pd.DataFrame(columns=["patient_id", "patient_journey_id", "rule", "rules"])
    lost = gained = empty
    old_count = new_count = None
    if not isinstance(old, CohortDefinition) and not isinstance(new, CohortDefinition):
        old_ids, new_ids = set(old.eligible["patient_id"]), set(new.eligible["patient_id"])
        old_count, new_count = len(old_ids), len(new_ids)
        lost = _decided(old_ids - new_ids, new)
        gained = _decided(new_ids - old_ids, old)
    return CohortComparison(
        cohort=after.key,
        old_version=before.version,
        new_version=after.version,
        rules=compare_rules(before, after),
        old_count=old_count,
        new_count=new_count,
        lost=lost,
        gained=gained,
    )


def compare_rules(old: CohortDefinition, new: CohortDefinition) -> tuple[RuleChange, ...]:
    """The rules that differ, in the order of the new definition; those that are gone at the end."""
    before, after = {rule.name: rule for rule in old.rules}, {rule.name: rule for rule in new.rules}
    gone = {rule_words(rule): name for name, rule in before.items() if name not in after}
    changes: list[RuleChange] = []
    for name, rule in after.items():
        now = rule_words(rule)
        if name not in before:
            other = gone.pop(now, None)
            if other is not None:
                changes.append(RuleChange("renamed", other, other, name))
            else:
                changes.append(RuleChange("added", name, "", now))
        elif rule_words(before[name]) != now:
            changes.append(RuleChange("changed", name, rule_words(before[name]), now))
    changes += _moved(old.rules, new.rules)
    changes += [RuleChange("removed", name, words, "") for words, name in gone.items()]
    return tuple(changes)


def rule_words(rule: Rule) -> str:
    """What a rule demands, with what becomes of unknown values; the author's description does not count."""
    if rule.criterion is None:
        return rule.description
    verb = "remove when" if rule.side == "exclusion" else "keep when"
    unknown = {"exclude": "removed", "include": "kept", "report": "kept and reported"}[rule.on_unknown]
    return f"{verb} {rule.criterion.words()}; unknown is {unknown}"


def _moved(old: Sequence[Rule], new: Sequence[Rule]) -> list[RuleChange]:
    """Criteria whose order among the shared ones differs: attrition is reported in another order."""
    both = {rule.name for rule in old} & {rule.name for rule in new}
    first = [rule.name for rule in old if rule.name in both]
    second = [rule.name for rule in new if rule.name in both]
    return [
        RuleChange("moved", name, f"at place {first.index(name) + 1}", f"at place {place + 1}")
        for place, name in enumerate(second)
        if first[place] != name
    ]


def _decided(patients: set[Any], by: Compared) -> pd.DataFrame:
    """Why each of ``patients`` is not eligible in ``by``: of several rows the one with fewest failed rules."""
    rules = by.definition.rules
    rows = by.reasons.loc[by.reasons["patient_id"].isin(patients)]
    rows = rows.loc[rows["mask"] != 0, ["patient_id", "patient_journey_id", "mask"]]
    failed = np.bitwise_count(rows["mask"].to_numpy(dtype=np.int64))
    closest = (
        rows.assign(failed=failed)
        .sort_values(["patient_id", "failed", "patient_journey_id"], kind="stable")
        .drop_duplicates("patient_id")
    )
    first, words = _mask_words(closest["mask"].to_numpy(dtype=np.int64), rules)
    missing = sorted(patients - set(closest["patient_id"]), key=str)
    return pd.DataFrame(
        {
            "patient_id": [*closest["patient_id"], *missing],
            "patient_journey_id": [*closest["patient_journey_id"], *[None] * len(missing)],
            "rule": [*first, *[NOT_THERE] * len(missing)],
            "rules": [*words, *[NOT_THERE] * len(missing)],
        }
    )


def _mask_words(masks: np.ndarray, rules: Sequence[Rule]) -> tuple[list[str], list[str]]:
    """First failed rule and all failed rules of each mask; built once for each distinct mask."""
    distinct, position = np.unique(masks, return_inverse=True)
    named = [[rule.name for rule in rules if mask & rule.bit] for mask in distinct.tolist()]
    return [named[k][0] for k in position], ["; ".join(named[k]) for k in position]
