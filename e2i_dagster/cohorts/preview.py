"""What a definition would do, before it is live: attrition, difference to the live one, effect on scopes.

Nothing is written. What is shown next to the live cohort is suppressed from the step on at which the two
differ by 1 to 10 patients, so that nobody can be found by comparing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pandas as pd

from e2i_dagster.cohorts.build import build_cohort
from e2i_dagster.cohorts.compare import CohortComparison, compare
from e2i_dagster.cohorts.disclosure import HIDDEN, ShownStep, is_small, shown_count
from e2i_dagster.cohorts.outcome import Labels, cohort_frame, label_outcome
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.versions.coverage import Days


@dataclass(frozen=True)
class ScopeEffect:
    """Labelled patients and prevalence of a scope under the live and the new definition.

    ``refused`` has the reasons why the scope could not be trained on the new cohort; empty if it could.
    """

    scope: str
    labelled_before: int | None
    labelled_after: int
    prevalence_before: float | None
    prevalence_after: float | None
    refused: tuple[str, ...]
    small: bool

    def to_metadata(self, *, exact: bool = False) -> dict[str, Any]:
        """Counts for people; hidden where patients could be identified by the difference."""
        hide = self.small and not exact
        return {
            "scope": self.scope,
            "labelled_before": _count(self.labelled_before, exact),
            "labelled_after": HIDDEN if hide else _count(self.labelled_after, exact),
            "prevalence_before": _share(self.prevalence_before),
            "prevalence_after": HIDDEN if hide else _share(self.prevalence_after),
            "refused": "; ".join(self.refused) or "no",
        }


@dataclass(frozen=True)
class Preview:
    """The new cohort, what changes against the live one (None when there is none), and what scopes feel."""

    cohort: Cohort
    live: Cohort | None
    comparison: CohortComparison | None
    scopes: tuple[ScopeEffect, ...]

    def steps(self, *, exact: bool = False) -> list[dict[str, str]]:
        """The attrition of the new definition as rows of text."""
        if exact:
            return [
                {
                    "rule": str(row["criterion"]),
                    "removed": f"{row['removed']:,}",
                    "remaining": f"{row['remaining']:,}",
                    "unknown": f"{row['unknown']:,}",
                    "gained_if_dropped": f"{row['marginal_gain']:,}",
                }
                for row in self.cohort.attrition.to_dict("records")
            ]
        hidden_from = _first_close_step(self.cohort, self.live)
        if self.comparison is not None and self.comparison.shown_counts().get("after") == HIDDEN:
            hidden_from = min(hidden_from, len(self.cohort.attrition))
        return [_step(step, hidden=step.order >= hidden_from) for step in self.cohort.shown()]

    def to_metadata(self, *, exact: bool = False) -> dict[str, Any]:
        """Everything for people; ``exact`` leaves nothing out."""
        steps = self.steps(exact=exact)
        count = self.cohort.eligible_count
        return {
            "cohort": self.cohort.definition.key,
            "version": self.cohort.definition.version,
            "definition_hash": self.cohort.definition_hash,
            "input_patients": _count(self.cohort.input_patients, exact),
            "eligible_patients": f"{count:,}" if exact else steps[-1]["remaining"] if steps else "0",
            "empty": self.cohort.emptied_by,
            "own_fields_not_converted": list(self.cohort.own_field_notes),
            "attrition": steps,
            "difference": None if self.comparison is None else self.comparison.to_metadata(exact=exact),
            "scopes": [effect.to_metadata(exact=exact) for effect in self.scopes],
        }


def preview(
    definition: CohortDefinition,
    patients: pd.DataFrame,
    events: Any = None,
    *,
    observation_periods: Any = None,
    live: CohortDefinition | None = None,
    scopes: Sequence[ScopeSpec] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    data_start: date | str | None = None,
    data_end: date | str | None = None,
    unobserved: Sequence[Days] = (),
) -> Preview:
    """Build ``definition`` and the live one on the same data and compare them. Writes nothing.

    Args:
        patients, events, observation_periods, data_start, data_end, unobserved: as for :func:`.build_cohort`.
        live: the definition in force; None when there is none yet.
        scopes: the scopes on this cohort. tables: raw tables that their outcomes are read from.

    Raises:
        CohortInputError: the data lack a column that either definition needs.
    """
    frames = (patients, events)
    extra: dict[str, Any] = {
        "observation_periods": observation_periods,
        "data_start": data_start,
        "data_end": data_end,
        "unobserved": unobserved,
    }
    new = build_cohort(definition, *frames, **extra)
    old = None if live is None else build_cohort(live, *frames, **extra)
    effects = tuple(
        _effect(scope, new, old, tables or {}, data_end=data_end, unobserved=unobserved)
        for scope in scopes
        if data_end is not None
    )
    return Preview(new, old, None if old is None else compare(old, new), effects)


def _effect(
    scope: ScopeSpec,
    new: Cohort,
    old: Cohort | None,
    tables: Mapping[str, pd.DataFrame],
    **covered: Any,
) -> ScopeEffect:
    from e2i_dagster.cohorts.errors import ScopeRefused

    def labels(cohort: Cohort) -> Labels:
        lookback = cohort.definition.temporal_requirements.lookback_days
        return label_outcome(scope, cohort_frame(cohort), tables, lookback_days=lookback, **covered)

    after = labels(new)
    before = None if old is None else labels(old)
    refused: tuple[str, ...] = ()
    try:
        after.check_sample(scope)
    except ScopeRefused as error:
        refused = error.reasons
    return ScopeEffect(
        scope=scope.key,
        labelled_before=None if before is None else before.labelled_count,
        labelled_after=after.labelled_count,
        prevalence_before=None if before is None else before.prevalence,
        prevalence_after=after.prevalence,
        refused=refused,
        small=_small_cells(after) or (before is not None and _differ_by_few(before, after)),
    )


def _small_cells(labels: Labels) -> bool:
    events = int((labels.labelled["label"] > 0).sum()) if labels.timed else 0
    counts = [*labels.class_counts.values(), labels.labelled_count, events, labels.labelled_count - events]
    return any(map(is_small, counts))


def _differ_by_few(before: Labels, after: Labels) -> bool:
    return any(
        is_small(len(left ^ other))
        for label in (after.classes or (None,))
        for left, other in [(_ids(before, label), _ids(after, label))]
    )


def _ids(labels: Labels, label: Any) -> set[Any]:
    """Labelled patients of a class; all of them where the outcome is a number."""
    frame = labels.labelled
    return set(frame["patient_id"] if label is None else frame.loc[frame["label"] == label, "patient_id"])


def _first_close_step(new: Cohort, live: Cohort | None) -> int:
    """Order of the first rule after which both cohorts have the rule and differ by 1 to 10; else past the end."""
    past = len(new.attrition) + 1
    if live is None:
        return past
    before = dict(zip(live.attrition["criterion"], live.attrition["remaining"], strict=True))
    for row in new.attrition.to_dict("records"):
        name, remaining = row["criterion"], int(row["remaining"])
        last = row["order"] == len(new.attrition)
        other = live.eligible_count if last else before.get(name)
        if other is not None and is_small(abs(remaining - int(other))):
            return int(row["order"])
    return past


def _step(step: ShownStep, *, hidden: bool) -> dict[str, str]:
    return {
        "rule": step.criterion,
        "removed": HIDDEN if hidden else step.removed,
        "remaining": HIDDEN if hidden else step.remaining,
        "unknown": HIDDEN if hidden else step.unknown,
        "gained_if_dropped": HIDDEN if hidden else step.marginal_gain,
    }


def _count(count: int | None, exact: bool) -> str:
    return "-" if count is None else f"{count:,}" if exact else shown_count(count)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"
