"""Labels of a scope: did the outcome follow within the window after the index date?

Only event tables are read. A patient whose window, plus the source lag, is not closed by the end of the
data has no label yet and belongs to the scoring set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.columns import TypedColumn, date_column, require_columns
from e2i_dagster.cohorts.disclosure import shown_count, shown_steps
from e2i_dagster.cohorts.errors import CohortInputError, ScopeRefused
from e2i_dagster.cohorts.result import Cohort, attrition_table
from e2i_dagster.config.scope import OUTCOME_TABLES, EventRule, ScopeSpec
from e2i_dagster.tables import date_column as dated_by
from e2i_dagster.versions.coverage import Coverage, Days

_COLUMNS = ("patient_id", "patient_journey_id", "index_date", "followup_end")

LABELLED, SCORING = "labelled", "scoring"
OUTCOME_SEEN = "outcome in the window"
NO_OUTCOME = "no outcome in the window"
NOT_OVER = "window and source lag not closed at the end of the data"
NOT_LOADED = "months of its table were never loaded"
PENDING = "follow-up not over at the end of the data"


@dataclass(frozen=True)
class Labels:
    """The patients of a cohort with what is known of their outcome.

    Attributes:
        frame: patient_id, patient_journey_id, hcp_id, index_date, label (Int64: 0, 1 or null), set
            (``labelled`` or ``scoring``), reason; one row per patient, sorted by patient_id.
        excluded: patient_id, patient_journey_id, index_date, reason: patients in neither set.
        attrition: the branches as further rows of the cohort's attrition (the same columns).
        start: eligible and pending patients who came in.
    """

    scope: str
    data_end: date
    frame: pd.DataFrame
    excluded: pd.DataFrame
    attrition: pd.DataFrame
    start: int

    @property
    def labelled(self) -> pd.DataFrame:
        """Rows of ``frame`` with a label."""
        return self.frame[self.frame["set"] == LABELLED].reset_index(drop=True)

    @property
    def scoring(self) -> pd.DataFrame:
        """Rows of ``frame`` that wait for their outcome."""
        return self.frame[self.frame["set"] == SCORING].reset_index(drop=True)

    @property
    def labelled_count(self) -> int:
        return int((self.frame["set"] == LABELLED).sum())

    @property
    def positive_count(self) -> int:
        return int((self.frame["label"] == 1).sum())

    @property
    def prevalence(self) -> float | None:
        """Share of labelled patients with the outcome; None when nobody is labelled."""
        return self.positive_count / self.labelled_count if self.labelled_count else None

    def check_sample(self, scope: ScopeSpec, *, features: int | None = None) -> None:
        """Whether the labelled patients can carry a model.

        Args:
            features: number of features that the model will use; by default those the scope names (one,
                when it says ``all``).

        Raises:
            ScopeRefused: with every reason: too few labelled patients, one class only, or too few
                patients of the rarer class for the number of features.
        """
        if features is None:
            features = len(scope.features) if isinstance(scope.features, tuple) else 1
        labelled, positive = self.labelled_count, self.positive_count
        rarer = min(positive, labelled - positive)
        reasons = []
        if labelled < scope.minimum_labelled:
            reasons.append(
                f"{shown_count(labelled)} labelled patients; {scope.problem_type} needs at least "
                f"{scope.minimum_labelled:,}. Load more patients or a longer period."
            )
        if labelled and rarer == 0:
            missing = "with" if positive == 0 else "without"
            reasons.append(
                f"no labelled patient {missing} the outcome ({scope.outcome.event.words()}). "
                "Check event type and brand of the outcome against the loaded events."
            )
        elif rarer < scope.minimum_sample.events_per_feature * features:
            reasons.append(
                f"{shown_count(rarer)} patients in the rarer class; {features} feature(s) need at least "
                f"{scope.minimum_sample.events_per_feature * features:,} "
                f"({scope.minimum_sample.events_per_feature} per feature). Name fewer features."
            )
        if reasons:
            raise ScopeRefused(scope.key, tuple(reasons))

    def to_metadata(self) -> dict[str, Any]:
        """Counts for people, small cells suppressed."""
        steps = shown_steps(self.attrition, self.start)
        positive = self.positive_count
        negative = self.labelled_count - positive
        small = 0 < positive < 11 or 0 < negative < 11
        return {
            "scope": self.scope,
            "data_end": self.data_end.isoformat(),
            "labelled_patients": steps[-1].remaining,
            "with_outcome": "suppressed" if small else f"{positive:,}",
            "without_outcome": "suppressed" if small else f"{negative:,}",
            "prevalence": "suppressed" if small or self.prevalence is None else self.prevalence,
            "scoring_patients": shown_count(len(self.frame) - self.labelled_count),
            "label_attrition": attrition_table(steps),
        }


def cohort_frame(cohort: Cohort) -> pd.DataFrame:
    """Eligible and pending patients in one frame with the column ``pending`` (what labelling takes)."""
    frame = pd.concat([cohort.eligible, cohort.pending], ignore_index=True)
    frame["pending"] = np.repeat([False, True], [len(cohort.eligible), len(cohort.pending)])
    return frame


def label_outcome(
    scope: ScopeSpec,
    cohort_frame: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    *,
    data_end: date | str,
    data_start: date | None = None,
    unobserved: Sequence[Days] = (),
    lookback_days: int = 0,
) -> Labels:
    """Label the patients of a cohort by the scope's outcome rule.

    Args:
        cohort_frame: patient_id, patient_journey_id, index_date, followup_end, and optionally ``pending``
            (boolean; pending patients are never labelled). One row per patient: see :func:`cohort_frame`.
        tables: raw tables by name: the outcome's event table and ``patient_journeys`` (for hcp_id).
        data_end, data_start: last and first day that the outcome's table covers.
        unobserved: stretches in between (first and last day) that it does not cover: without an event in the rest of
            the window the outcome is unknown, and so is an outcome before it when ``lookback_days`` reach into one.
        lookback_days: days before the index date by which the cohort judges what came before.

    Returns:
        The labels. Events of a patient count whatever journey they belong to.

    Raises:
        CohortInputError: CC_002 a table or column is missing, CC_004 a patient occurs twice, CC_005 a
            date column holds no dates.
    """
    require_columns(cohort_frame, _COLUMNS, what=f"Labelling for scope {scope.key}")
    repeated = int(cohort_frame["patient_id"].duplicated().sum())
    if repeated:
        raise CohortInputError(
            "CC_004",
            f"{repeated:,} patient(s) occur twice in the cohort.",
            field="patient_id",
            remedy="Keep one row of each patient.",
        )
    end = np.datetime64(pd.Timestamp(data_end).date(), "D")
    index = date_column(cohort_frame["index_date"], "index_date")
    observed = date_column(cohort_frame["followup_end"], "followup_end")
    if not index.known.all():
        raise CohortInputError(
            "CC_005",
            f"{int((~index.known).sum()):,} patient(s) of the cohort have no index date.",
            field="index_date",
            remedy="Give each its index date, or leave the patient out.",
        )
    last_day = scope.horizon_days
    in_window, before = _outcome_days(scope.outcome.event, cohort_frame, index, tables, scope.outcome.window)

    n = len(cohort_frame)
    pending = (
        cohort_frame["pending"].to_numpy(dtype=bool) if "pending" in cohort_frame else np.zeros(n, dtype=bool)
    )
    window_end = index.values + last_day
    covered = Coverage(data_start, unobserved=tuple(unobserved))
    prior, prior_unknown = before, ~before & ~covered.covers(index.values - lookback_days, index.values)
    if scope.outcome.prior_outcome == "keep":
        prior, prior_unknown = np.zeros((2, n), dtype=bool)
    prior = prior | prior_unknown
    not_over = ~prior & ~pending & (window_end + scope.source_lag_days > end)
    waiting = ~prior & (pending | not_over)
    unknown = ~prior & ~waiting & ~in_window
    not_loaded = unknown & ~covered.covers(index.values + scope.outcome.window[0], window_end)
    incomplete = unknown & ~(observed.known & (observed.values >= window_end))
    if scope.outcome.incomplete_followup == "negative":
        incomplete[:] = False
    incomplete |= not_loaded
    labelled, none = ~(prior | waiting | incomplete), np.zeros(n, dtype=bool)

    label = pd.array(np.where(in_window, 1, 0), dtype="Int64")
    label[~labelled] = pd.NA
    reason = np.select([pending, waiting, in_window], [PENDING, NOT_OVER, OUTCOME_SEEN], NO_OUTCOME)
    rows = pd.DataFrame(
        {
            "patient_id": cohort_frame["patient_id"].astype("string[pyarrow]").array,
            "patient_journey_id": cohort_frame["patient_journey_id"].astype("string[pyarrow]").array,
            "hcp_id": _hcp(cohort_frame, tables),
            "index_date": index.values.astype("datetime64[us]"),
            "label": label,
            "set": pd.array(np.where(labelled, LABELLED, SCORING), dtype="string[pyarrow]"),
            "reason": pd.array(reason.astype(object), dtype="string[pyarrow]"),
        }
    )
    kept = rows[labelled | waiting]
    out = rows[prior | incomplete].drop(columns=["hcp_id", "label", "set"])
    why = np.select(
        [prior_unknown, prior, not_loaded],
        [f"unknown before the window: {NOT_LOADED}", "outcome before the window", f"unknown: {NOT_LOADED}"],
        "not observed until the window's end",
    )
    out["reason"] = pd.array(why[prior | incomplete].astype(object), dtype="string[pyarrow]")
    return Labels(
        scope=scope.key,
        data_end=pd.Timestamp(data_end).date(),
        frame=kept.sort_values("patient_id", kind="stable", ignore_index=True),
        excluded=out.sort_values("patient_id", kind="stable", ignore_index=True),
        attrition=_branches(
            scope,
            (prior, prior_unknown),
            (pending & ~prior, none),
            (not_over, none),
            (incomplete, not_loaded),
        ),
        start=n,
    )


def _outcome_days(
    rule: EventRule,
    patients: pd.DataFrame,
    index: TypedColumn,
    tables: Mapping[str, pd.DataFrame],
    window: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Per patient: whether an outcome lies in the days ``window`` after the index date, and before it."""
    first_day, last_day = window
    type_column, dated = OUTCOME_TABLES[rule.table], dated_by(rule.table)
    assert dated is not None
    if rule.table not in tables:
        raise CohortInputError(
            "CC_002",
            f"the outcome is read from {rule.table}, which was not given.",
            field="tables",
            value=rule.table,
            remedy="Give it.",
        )
    events = tables[rule.table]
    wanted = ("patient_id", dated, type_column, *(("brand",) if rule.brand else ()))
    require_columns(events, wanted, what=f"The outcome in {rule.table}")
    counts = events[type_column].isin(rule.event_type).to_numpy(dtype=bool)
    if rule.brand is not None:
        counts &= (events["brand"] == rule.brand).fillna(False).to_numpy(dtype=bool)
    events = events.loc[counts, ["patient_id", dated]]
    day = date_column(events[dated], dated)
    position = pd.Index(patients["patient_id"].astype("string[pyarrow]")).get_indexer(
        pd.Index(events["patient_id"].astype("string[pyarrow]"))
    )
    mine = (position >= 0) & day.known
    position = position[mine]
    after = (day.values[mine] - index.values[position]).astype("int64")
    in_window = np.zeros(len(patients), dtype=bool)
    before = np.zeros(len(patients), dtype=bool)
    in_window[position[(after >= first_day) & (after <= last_day)]] = True
    before[position[after < first_day]] = True
    return in_window, before


def _hcp(patients: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> Any:
    if "patient_journeys" not in tables:
        raise CohortInputError(
            "CC_002",
            "the HCP is read from patient_journeys, which was not given.",
            field="tables",
            value="patient_journeys",
            remedy="Give it.",
        )
    journeys = tables["patient_journeys"]
    require_columns(journeys, ("patient_journey_id", "hcp_id"), what="The HCP of a journey")
    known = pd.Index(journeys["patient_journey_id"].astype("string[pyarrow]"))
    position = known.get_indexer(pd.Index(patients["patient_journey_id"].astype("string[pyarrow]")))
    if (position < 0).any():
        raise CohortInputError(
            "CC_004",
            f"{int((position < 0).sum()):,} journey(s) of the cohort are not in patient_journeys.",
            remedy="Label with the tables that the cohort was built from.",
        )
    return journeys["hcp_id"].astype("string[pyarrow]").take(position).array


def _branches(scope: ScopeSpec, *branches: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """One row for each branch, which patients take in this order: whom it removes, and of them the unknown ones."""
    window = scope.outcome.window
    remaining = len(branches[0][0])
    rows = []
    for order, ((name, value, description), (removed, unknown)) in enumerate(
        zip(
            (
                ("prior_outcome", scope.outcome.prior_outcome, "No outcome before the window"),
                (
                    "followup_pending",
                    "to be scored",
                    "Follow-up of the cohort is over (else: to be scored)",
                ),
                (
                    "window_closed",
                    f"{window[1]} + {scope.source_lag_days} days",
                    f"Window of {window[1]} days and source lag of {scope.source_lag_days} days are over "
                    "(else: to be scored)",
                ),
                (
                    "outcome_observed",
                    scope.outcome.incomplete_followup,
                    "Outcome seen, or observed until the end of the window",
                ),
            ),
            branches,
            strict=True,
        ),
        start=1,
    ):
        count = int(np.count_nonzero(removed))
        remaining -= count
        rows.append(
            {
                "order": order,
                "criterion": name,
                "type": "outcome",
                "operator": "is",
                "value": value,
                "removed": count,
                "remaining": remaining,
                "unknown": int(np.count_nonzero(unknown)),
                "marginal_gain": count,
                "on_unknown": "exclude",
                "description": description,
                "removed_records": count,
                "remaining_records": remaining,
            }
        )
    return pd.DataFrame(rows)
