"""Labels of a scope: what followed within the window after the index date?

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
from e2i_dagster.cohorts.disclosure import HIDDEN, SMALLEST_SHOWN, is_small, shown_count, shown_steps
from e2i_dagster.cohorts.errors import CohortInputError, ScopeRefused
from e2i_dagster.cohorts.result import Cohort, attrition_table
from e2i_dagster.config.scope import (
    MEASURED_OUTCOMES,
    OUTCOME_TABLES,
    EventRule,
    MeasureRule,
    OutcomeRule,
    ScopeSpec,
)
from e2i_dagster.display import Table
from e2i_dagster.tables import date_column as dated_by
from e2i_dagster.versions.coverage import Coverage, Days

_COLUMNS = ("patient_id", "patient_journey_id", "index_date", "followup_end")

LABELLED, SCORING = "labelled", "scoring"
OUTCOME_SEEN = "outcome in the window"
NO_OUTCOME = "no outcome in the window"
MEASURED = "measured over the window"
CENSORED = "no outcome until the end of follow-up"
NOT_OVER = "window and source lag not closed at the end of the data"
NOT_LOADED = "months of its table were never loaded"
PENDING = "follow-up not over at the end of the data"
SUPERSEDED = "the patient is scored at a later index date"


@dataclass(frozen=True)
class Labels:
    """The patients of a cohort with what is known of their outcome.

    Attributes:
        frame: patient_id, patient_journey_id, hcp_id, index_date, label, set (``labelled`` or ``scoring``),
            reason; one row per patient and index date, sorted by both. The label is 0 or 1 (Int64), the name of a
            class (string) or a number (Float64), null in the scoring set, which has each patient once. The number of
            a time to an event is the day of the event, or negative the last day on which the patient was observed
            without it.
        excluded: patient_id, patient_journey_id, index_date, reason: index dates in neither set.
        attrition: the branches as further rows of the cohort's attrition (the same columns).
        start: eligible and pending patients who came in.
        classes: values that a label can have; empty for numbers. timed: the numbers are times to an event.
    """

    scope: str
    data_end: date
    frame: pd.DataFrame
    excluded: pd.DataFrame
    attrition: pd.DataFrame
    start: int
    classes: tuple[Any, ...] = (0, 1)
    timed: bool = False

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
        """Patients with a label."""
        return self.labelled["patient_id"].nunique()

    @property
    def class_counts(self) -> dict[Any, int]:
        """Labelled patients of each class (0 and 1 of an event); empty for numbers.

        A patient with several index dates counts in each class once.
        """
        if pd.api.types.is_float_dtype(self.frame["label"].dtype):
            return {}
        found = self.labelled.drop_duplicates(["patient_id", "label"])["label"].value_counts()
        return {value: int(found.get(value, 0)) for value in self.classes}

    @property
    def positive_count(self) -> int:
        """Labelled patients with the event; 0 where the outcome is another kind."""
        return self.class_counts.get(1, 0)

    @property
    def prevalence(self) -> float | None:
        """Share of labelled index dates with the event; None when there is none, or the outcome is another kind."""
        labels = self.labelled["label"]
        return float((labels == 1).mean()) if 1 in self.classes and len(labels) else None

    def check_sample(self, scope: ScopeSpec, *, features: int | None = None) -> None:
        """Whether the labelled patients can carry a model.

        Args:
            features: number of features that the model will use; by default those the scope names (one,
                when it says ``all``).

        Raises:
            ScopeRefused: with every reason: too few labelled patients, one class or one value only, or too few
                patients (of the rarest class) for the number of features.
        """
        if features is None:
            features = len(scope.features) if isinstance(scope.features, tuple) else 1
        labelled = self.labelled_count
        needed = scope.minimum_sample.events_per_feature * features
        per_feature = (
            f"{features} feature(s) need at least {needed:,} "
            f"({scope.minimum_sample.events_per_feature} per feature)."
        )
        reasons: list[_Problem] = []
        if labelled < scope.minimum_labelled:
            found = (
                f"{shown_count(labelled)} labelled patients; {scope.problem_type} needs at least "
                f"{scope.minimum_labelled:,}."
            )
            remedy = "Load more patients or a longer period."
            reasons.append((found, remedy, "minimum_sample.labelled", shown_count(labelled)))
        reasons += _outcome_problems(self, scope, needed, per_feature)
        if reasons:
            _, remedy, field, value = reasons[0]
            raise ScopeRefused(
                scope.key,
                tuple(f"{found} {remedy}" for found, remedy, _, _ in reasons),
                file=f"config/scopes/{scope.key}.yaml",
                field=field,
                value=value,
                remedy=remedy,
            )

    def to_metadata(self) -> dict[str, Any]:
        """Counts for people, small cells suppressed."""
        steps = shown_steps(self.attrition, self.start)
        return {
            "scope": self.scope,
            "data_end": self.data_end.isoformat(),
            "labelled_patients": steps[-1].remaining,
            **({"labelled_index_dates": shown_count(len(self.labelled))} if self._repeats() else {}),
            **self._outcome_metadata(),
            "scoring_patients": shown_count(len(self.scoring)),
            "label_attrition": attrition_table(steps),
        }

    def _repeats(self) -> bool:
        """Whether a patient has several labelled index dates."""
        return bool(self.labelled["patient_id"].duplicated().any())

    def _outcome_metadata(self) -> dict[str, Any]:
        counts = self.class_counts
        small = any(map(is_small, counts.values()))
        shown = {name: HIDDEN if small else f"{count:,}" for name, count in counts.items()}
        if 1 in counts:
            return {
                "with_outcome": shown[1],
                "without_outcome": shown[0],
                "prevalence": HIDDEN if small or self.prevalence is None else self.prevalence,
            }
        if counts:
            return {"classes": Table(("class", "patients"), shown.items())}
        numbers = self.labelled["label"].astype("float64")
        if self.timed:
            events = int((numbers > 0).sum())
            small = is_small(events) or is_small(len(numbers) - events)
            return {
                "with_outcome": HIDDEN if small else f"{events:,}",
                "without_outcome": HIDDEN if small else f"{len(numbers) - events:,}",
                "censored_before_the_horizon": shown_count(int((self.labelled["reason"] == CENSORED).sum())),
            }
        if len(numbers) < SMALLEST_SHOWN:
            return {"outcome": HIDDEN}
        quartiles = numbers.quantile([0.25, 0.5, 0.75]).tolist()
        return {
            "outcome": Table(
                (
                    "mean",
                    "standard deviation",
                    "lower quartile",
                    "median",
                    "upper quartile",
                    "share of zeros",
                ),
                [(float(numbers.mean()), float(numbers.std()), *quartiles, float((numbers == 0).mean()))],
            )
        }


#: What was found, what to do, where in the scope's file, and the value there.
_Problem = tuple[str, str, str, Any]


def _outcome_problems(labels: Labels, scope: ScopeSpec, needed: int, per_feature: str) -> list[_Problem]:
    """Why the outcomes of the labelled patients can carry no model: too few of one kind, or all alike."""
    labelled, counts, outcome = labels.labelled_count, labels.class_counts, scope.outcome
    place = f"outcome.{outcome.kind}"
    check = "Check event type, brand and column of the outcome against the loaded events."
    if outcome.kind == "event":
        rarer = min(counts.values())
        missing = "with" if counts[1] == 0 else "without"
        found, remedy = (
            f"{shown_count(rarer)} patients in the rarer class; {per_feature}",
            "Name fewer features.",
        )
        if labelled and rarer == 0:
            found, remedy = f"no labelled patient {missing} the outcome ({outcome.words()}).", check
        return [(found, remedy, place, shown_count(rarer))] if rarer < needed else []
    if outcome.kind == "choice":
        return [
            (
                f"{shown_count(count)} patients in class {name!r}; {per_feature}",
                "Join it with another class, or name fewer features.",
                "outcome.otherwise" if name == outcome.otherwise else f"{place}.{name}",
                shown_count(count),
            )
            for name, count in counts.items()
            if count < needed
        ]
    values = labels.labelled["label"]
    if outcome.kind == "time_to":
        events = labels.labelled.loc[(values > 0).to_numpy(dtype=bool), "patient_id"].nunique()
        found = f"{shown_count(events)} patients with the event of {outcome.words()}; {per_feature}"
        remedy = "Name fewer features, or a longer window."
        return [(found, remedy, place, shown_count(events))] if events < needed else []
    if labelled and values.nunique() < 2:
        value = float(values.iloc[0])
        return [(f"every labelled patient has {value:g} as {outcome.words()}.", check, place, value)]
    found = f"{shown_count(labelled)} labelled patients; {per_feature}"
    return [(found, "Name fewer features.", "features", shown_count(labelled))] if labelled < needed else []


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
            (boolean; pending patients are never labelled): see :func:`cohort_frame`. One row per patient and
            index date. Of the index dates whose outcome is not known yet each patient's last one is to be scored.
        tables: raw tables by name: the outcome's event table and ``patient_journeys`` (for hcp_id).
        data_end, data_start: last and first day that the outcome's table covers.
        unobserved: stretches in between (first and last day) that it does not cover: without an event in the rest of
            the window the outcome is unknown, and so is an outcome before it when ``lookback_days`` reach into one.
        lookback_days: days before the index date by which the cohort judges what came before.

    Returns:
        The labels. Events of a patient count whatever journey they belong to.

    Raises:
        CohortInputError: CC_002 a table or column is missing, CC_004 an index date of a patient occurs twice,
            CC_005 a date column holds no dates.
    """
    index, observed = _checked_dates(scope, cohort_frame)
    end = np.datetime64(pd.Timestamp(data_end).date(), "D")
    found = _find_outcome(scope.outcome, cohort_frame, index, tables)
    n = len(cohort_frame)
    pending = (
        cohort_frame["pending"].to_numpy(dtype=bool) if "pending" in cohort_frame else np.zeros(n, dtype=bool)
    )
    window_end = index.values + scope.horizon_days
    covered = Coverage(data_start, unobserved=tuple(unobserved))
    prior, prior_unknown = (
        found.before,
        ~found.before & ~covered.covers(index.values - lookback_days, index.values),
    )
    if scope.outcome.prior_outcome == "keep":
        prior, prior_unknown = np.zeros((2, n), dtype=bool)
    prior = prior | prior_unknown
    not_over = ~prior & ~pending & (window_end + scope.source_lag_days > end)
    waiting = ~prior & (pending | not_over)
    open_ = ~prior & ~waiting
    # An event that was seen is enough; of a choice nothing may have come before it on days that were not loaded.
    needed_until = np.where(found.seen, index.values + found.decided_on, window_end)
    timed = scope.outcome.kind == "time_to"
    label = found.label.copy()
    if timed:
        label, needed_until = _times(found, index, observed, window_end)
    not_loaded = open_ & ~covered.covers(index.values + scope.outcome.window[0], needed_until)
    if scope.outcome.kind == "event":
        not_loaded &= ~found.seen
    incomplete = open_ & ~found.seen & ~(observed.known & (observed.values >= window_end))
    if scope.outcome.incomplete_followup == "negative":
        incomplete[:] = False
    elif timed:
        incomplete = open_ & (needed_until < index.values + scope.outcome.window[0])
        not_loaded &= ~incomplete
    no_value = open_ & found.no_value
    incomplete |= not_loaded | no_value
    labelled, none = ~(prior | waiting | incomplete), np.zeros(n, dtype=bool)
    superseded = waiting & ~_last_of_each(cohort_frame["patient_id"], index.values, waiting)

    label[~labelled] = pd.NA
    reason = np.select([pending, waiting, found.seen], [PENDING, NOT_OVER, OUTCOME_SEEN], found.otherwise)
    if timed:
        reason = np.where((reason == found.otherwise) & (needed_until < window_end), CENSORED, reason)
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
    kept = rows[labelled | (waiting & ~superseded)]
    removed = prior | incomplete | superseded
    out = rows[removed].drop(columns=["hcp_id", "label", "set"])
    why = np.select(
        [superseded, prior_unknown, prior, not_loaded, no_value],
        [
            SUPERSEDED,
            f"unknown before the window: {NOT_LOADED}",
            "outcome before the window",
            f"unknown: {NOT_LOADED}",
            "unknown: a row in the window has no value",
        ],
        "not observed on any day of the window" if timed else "not observed until the window's end",
    )
    out["reason"] = pd.array(why[removed].astype(object), dtype="string[pyarrow]")
    return Labels(
        scope=scope.key,
        data_end=pd.Timestamp(data_end).date(),
        frame=kept.sort_values(["patient_id", "index_date"], kind="stable", ignore_index=True),
        excluded=out.sort_values(["patient_id", "index_date"], kind="stable", ignore_index=True),
        attrition=_branches(
            scope,
            cohort_frame["patient_id"],
            (prior, prior_unknown),
            (pending & ~prior, none),
            (not_over, none),
            (incomplete, not_loaded | no_value),
        ),
        start=cohort_frame["patient_id"].nunique(),
        classes=(0, 1) if scope.outcome.kind == "event" else scope.outcome.classes,
        timed=timed,
    )


def _checked_dates(scope: ScopeSpec, cohort_frame: pd.DataFrame) -> tuple[TypedColumn, TypedColumn]:
    """Index dates and ends of follow-up of a cohort that can be labelled."""
    require_columns(cohort_frame, _COLUMNS, what=f"Labelling for scope {scope.key}")
    index = date_column(cohort_frame["index_date"], "index_date")
    observed = date_column(cohort_frame["followup_end"], "followup_end")
    if not index.known.all():
        raise CohortInputError(
            "CC_005",
            f"{int((~index.known).sum()):,} patient(s) of the cohort have no index date.",
            field="index_date",
            remedy="Give each its index date, or leave the patient out.",
        )
    repeated = int(
        pd.DataFrame({"patient": cohort_frame["patient_id"].array, "day": index.values}).duplicated().sum()
    )
    if repeated:
        raise CohortInputError(
            "CC_004",
            f"{repeated:,} index date(s) of a patient occur twice in the cohort.",
            field="index_date",
            remedy="Keep one row for each index date of a patient.",
        )
    if scope.outcome.kind == "time_to" and len(cohort_frame) and not observed.known.any():
        raise CohortInputError(
            "CC_005",
            f"Scope {scope.key} asks for a time to an event, and no patient of the cohort has an end of follow-up, "
            "which says until when a patient without the event was observed.",
            field="followup_end",
            value="null",
            remedy="Deliver last_observation_date in patient_clinical, or ask for an event in place of time_to.",
        )
    return index, observed


def _last_of_each(patients: pd.Series, days: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of the rows ``among`` is the last one of its patient by ``days``."""
    rows = np.flatnonzero(among)
    ordered = rows[np.argsort(days[rows], kind="stable")]
    last = np.zeros(len(among), dtype=bool)
    last[ordered[~patients.iloc[ordered].duplicated(keep="last").to_numpy()]] = True
    return last


def _times(
    found: _Found, index: TypedColumn, observed: TypedColumn, window_end: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Signed times of a time to an event, and the day until which each is known."""
    followed = np.where(observed.known, np.minimum(observed.values, window_end), index.values)
    until = np.where(found.seen, index.values + found.decided_on, followed)
    days = (until - index.values).astype("float64")
    return pd.array(np.where(found.seen, days, -days), dtype="Float64"), until


@dataclass(frozen=True)
class _Found:
    """What the events say of each patient.

    Attributes:
        label: as if every window were observed; a pandas array that can be null.
        seen: an event decided the label; decided_on: days from the index date to it (0 where none did).
        before: such a row lies before the window.
        no_value: the label is a sum with a row without value.
        otherwise: why a patient is labelled whose label no event decided.
    """

    label: Any
    seen: np.ndarray
    decided_on: np.ndarray
    before: np.ndarray
    no_value: np.ndarray
    otherwise: str = NO_OUTCOME


def _find_outcome(
    outcome: OutcomeRule, patients: pd.DataFrame, index: TypedColumn, tables: Mapping[str, pd.DataFrame]
) -> _Found:
    n = len(patients)
    first_day, last_day = outcome.window
    events = [_events_of(rule, patients, index, tables) for rule in outcome.rules.values()]
    before = np.zeros(n, dtype=bool)
    for found in events:
        before[found["patient"].to_numpy()[found["day"] < first_day]] = True
    if outcome.kind in MEASURED_OUTCOMES:
        values, no_value = _measure(outcome, events[0], n)
        nobody = np.zeros(n, dtype=bool)
        label = pd.array(values, dtype="Float64")
        return _Found(label, nobody, np.zeros(n, dtype=np.int64), before, no_value, MEASURED)
    after = pd.concat(events, keys=range(len(events)), names=["rule"]).reset_index("rule")
    after = after[after["day"].between(first_day, last_day)]
    first = after.sort_values(["patient", "day", "rule"], kind="stable").drop_duplicates("patient")
    decided_on, seen = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    which = np.full(n, len(events))
    position = first["patient"].to_numpy()
    decided_on[position], which[position], seen[position] = first["day"], first["rule"], True
    if outcome.kind == "time_to":
        # The first of the outcome's rows ends the time; behind a competing one it does not count.
        seen &= which == 0
    if outcome.kind in ("event", "time_to"):
        label = pd.array(seen.astype(np.int64), dtype="Int64")
    else:
        label = pd.array(np.array(outcome.classes, dtype=object)[which], dtype="string[pyarrow]")
    return _Found(label, seen, decided_on, before, np.zeros(n, dtype=bool))


def _events_of(
    rule: EventRule, patients: pd.DataFrame, index: TypedColumn, tables: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The rows that ``rule`` accepts: patient (position in ``patients``), day (days after its index date), value.

    An event of a patient with several index dates is there for each of them.
    """
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
    column = (rule.column,) if isinstance(rule, MeasureRule) else ()
    wanted = ("patient_id", dated, type_column, *(("brand",) if rule.brand else ()), *column)
    require_columns(events, wanted, what=f"The outcome in {rule.table}")
    counts = np.ones(len(events), dtype=bool)
    if rule.event_type:
        counts &= events[type_column].isin(rule.event_type).to_numpy(dtype=bool)
    if rule.brand is not None:
        counts &= (events["brand"] == rule.brand).fillna(False).to_numpy(dtype=bool)
    events = events.loc[counts, ["patient_id", dated, *column]]
    day = date_column(events[dated], dated)
    known = np.flatnonzero(day.known)
    met = pd.DataFrame(
        {"id": events["patient_id"].astype("string[pyarrow]").array[known], "event": known}
    ).merge(
        pd.DataFrame(
            {
                "id": patients["patient_id"].astype("string[pyarrow]").array,
                "patient": np.arange(len(patients)),
            }
        ),
        on="id",
    )
    event, position = met["event"].to_numpy(), met["patient"].to_numpy()
    return pd.DataFrame(
        {
            "patient": position,
            "day": (day.values[event] - index.values[position]).astype("int64"),
            "value": events[column[0]].to_numpy(dtype="float64", na_value=np.nan)[event] if column else 1.0,
        }
    )


def _measure(outcome: OutcomeRule, events: pd.DataFrame, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each of ``n`` patients, and whether a row that belongs to it has no value."""
    first_day, last_day = outcome.window
    supplies = outcome.kind == "days_covered"
    # A supply from before the window may reach into it.
    events = events[(events["day"] <= last_day) & ((events["day"] >= first_day) | supplies)]
    no_value = np.zeros(n, dtype=bool)
    no_value[events.loc[events["value"].isna() & (events["day"] >= first_day), "patient"]] = True
    events = events.dropna(subset=["value"])
    if supplies:
        return days_covered(events, outcome.window, n) / (last_day - first_day + 1), no_value
    return np.bincount(events["patient"], weights=events["value"], minlength=n), no_value


def days_covered(supplies: pd.DataFrame, window: tuple[int, int], n: int) -> np.ndarray:
    """Days of ``window`` on which each of ``n`` patients has a supply.

    A supply that is delivered before the one before it is used up begins when that ends.

    Args:
        supplies: patient (0 to n - 1), day (of delivery, counted as the window's days), value (days supplied).
        window: first and last day, both included.
    """
    ordered = supplies.sort_values(["patient", "day"], kind="stable")
    patient, length = ordered["patient"].to_numpy(), np.floor(ordered["value"].to_numpy())
    by_patient = ordered.assign(length=length).groupby("patient")
    used = by_patient["length"].cumsum().to_numpy() - length
    # end = max(day - 1, end before) + length; without the lengths this is a running maximum.
    start = pd.Series(ordered["day"].to_numpy() - used).groupby(patient).cummax().to_numpy() + used
    covered = np.minimum(start + length - 1, window[1]) - np.maximum(start, window[0]) + 1
    return np.bincount(patient, weights=np.clip(covered, 0, None), minlength=n)


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


def _branches(scope: ScopeSpec, ids: pd.Series, *branches: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """One row for each branch, which patients take in this order: whom it removes, and of them the unknown ones.

    A patient is removed with the last index date that was left.
    """
    window = scope.outcome.window
    patients = pd.factorize(ids)[0]
    left = np.ones(len(patients), dtype=bool)
    remaining = len(np.unique(patients))
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
        left &= ~removed
        before, remaining = remaining, len(np.unique(patients[left]))
        count = before - remaining
        rows.append(
            {
                "order": order,
                "criterion": name,
                "type": "outcome",
                "operator": "is",
                "value": value,
                "removed": count,
                "remaining": remaining,
                "unknown": len(np.unique(patients[unknown])),
                "marginal_gain": count,
                "on_unknown": "exclude",
                "description": description,
                "removed_records": int(np.count_nonzero(removed)),
                "remaining_records": int(np.count_nonzero(left)),
            }
        )
    return pd.DataFrame(rows)
