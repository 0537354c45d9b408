"""Building a cohort: every rule once over all patients, as bits of one mask per journey.

Eligibility, attrition and reasons are all read off the same mask, so they cannot disagree.
"""

from __future__ import annotations

import time
from datetime import date

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.columns import TypedColumn, date_column, days, require_columns, typed_column
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.operators import holds
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.cohort import CohortDefinition, Rule
from e2i_dagster.warehouse.frames import extra_frame

FIRST_OBSERVED = "first_observation_date"
LAST_OBSERVED = "last_observation_date"


def patient_frame(journeys: pd.DataFrame, clinical: pd.DataFrame) -> pd.DataFrame:
    """One row per journey: ``patient_journeys`` joined with ``patient_clinical``.

    A journey without a clinical row keeps nulls there and is counted as unknown by the rules. A column
    that both tables have (other than the key) is the journey's; the clinical one becomes ``clinical_<name>``.
    The user's own clinical columns (``extra``) are columns like the others.

    Raises:
        CohortInputError: CC_002 without the key column, CC_004 when a table repeats a journey.
    """
    key = "patient_journey_id"
    for frame, table in ((journeys, "patient_journeys"), (clinical, "patient_clinical")):
        require_columns(frame, (key,), what=f"The table {table}")
        repeated = int(frame[key].duplicated().sum())
        if repeated:
            raise CohortInputError(
                "CC_004",
                f"table {table} repeats {repeated:,} value(s) of {key}; expected one row per journey. "
                "Remove the repeated rows and load again.",
            )
    own = extra_frame(clinical)
    clinical = clinical.drop(columns="extra", errors="ignore").join(
        own[[name for name in own.columns if name not in clinical.columns]]
    )
    return journeys.merge(
        clinical.rename(columns={c: f"clinical_{c}" for c in clinical.columns if c in journeys and c != key}),
        on=key,
        how="left",
        validate="one_to_one",
    )


def build_cohort(
    definition: CohortDefinition,
    patients: pd.DataFrame,
    events: pd.DataFrame | None = None,
    *,
    data_end: date | str | None = None,
) -> Cohort:
    """Apply ``definition`` to ``patients``.

    Args:
        patients: one row per journey (see :func:`patient_frame`) with ``definition.required_fields``.
            The frame is not changed; its order does not matter.
        events: not read: the language has no rule on events (a definition that states one is refused
            when it is read).
        data_end: last day that the data covers. With it, a patient who meets every rule but whose
            required follow-up ends later is ``pending``: neither eligible nor excluded by a rule.

    Returns:
        The cohort. One journey per patient: the earliest that meets every rule (by index date, then key).

    Raises:
        CohortInputError: CC_002 a column is missing, CC_004 keys or values are wrong, CC_005 dates are
            no dates.
    """
    started = time.perf_counter()
    require_columns(patients, definition.required_fields, what=f"Cohort {definition.key}")
    _check_keys(patients)
    rules = definition.rules
    columns = {
        rule.criterion.field: typed_column(patients[rule.criterion.field], rule.criterion.field)
        for rule in rules
        if rule.criterion is not None
    }
    times = definition.temporal_requirements
    index = date_column(patients[times.index_date_field], times.index_date_field)
    first = date_column(patients[FIRST_OBSERVED], FIRST_OBSERVED)
    last = date_column(patients[LAST_OBSERVED], LAST_OBSERVED)
    validated = time.perf_counter()

    failed: dict[str, np.ndarray] = {}
    unknown: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.criterion is not None:
            column = columns[rule.criterion.field]
            unknown[rule.name] = ~column.known
            failed[rule.name] = _fails(rule, column)
    criteria_done = time.perf_counter()

    end = None if data_end is None else np.datetime64(pd.Timestamp(data_end).date(), "D")
    timed, timed_unknown = _time_rules(definition, index, first, last, end)
    failed |= timed
    unknown |= timed_unknown

    person, persons = pd.factorize(patients["patient_id"], use_na_sentinel=False)
    meets_all = np.ones(len(patients), dtype=bool)
    for name, values in failed.items():
        if name != "followup_pending":
            meets_all &= ~values
    failed["one_index_journey"] = meets_all & ~_earliest(meets_all, person, index.values, patients)
    unknown["one_index_journey"] = np.zeros(len(patients), dtype=bool)
    temporal_done = time.perf_counter()

    mask = np.zeros(len(patients), dtype=np.int64)
    unknown_mask = np.zeros(len(patients), dtype=np.int64)
    for rule in rules:
        mask |= failed[rule.name].astype(np.int64) << (rule.order - 1)
        unknown_mask |= unknown[rule.name].astype(np.int64) << (rule.order - 1)

    observed_until = last.values if end is None else np.minimum(last.values, end)
    followup_end = days(TypedColumn(LAST_OBSERVED, "date", observed_until, last.known))
    rows = pd.DataFrame(
        {
            "patient_id": patients["patient_id"].astype("string[pyarrow]").array,
            "patient_journey_id": patients["patient_journey_id"].astype("string[pyarrow]").array,
            "index_date": days(index).array,
            "followup_end": followup_end.array,
        }
    )
    attrition = _attrition(rules, mask, unknown_mask, person, len(persons))
    reported = _bits(rules, lambda rule: rule.on_unknown == "report")
    pending_bit = _bits(rules, lambda rule: rule.name == "followup_pending")
    eligible = mask == 0
    cohort = Cohort(
        definition=definition,
        data_end=None if data_end is None else pd.Timestamp(data_end).date(),
        input_patients=len(persons),
        input_records=len(patients),
        eligible=_sorted(rows[eligible]),
        pending=_sorted(rows[(mask == pending_bit) & (pending_bit != 0)]),
        attrition=attrition,
        reasons=_reasons(rows, rules, mask, unknown_mask),
        kept_with_unknown=int(np.count_nonzero(eligible & ((unknown_mask & reported) != 0))),
        milliseconds={
            "validate_config_ms": _ms(started, validated),
            "apply_criteria_ms": _ms(validated, criteria_done),
            "validate_temporal_ms": _ms(criteria_done, temporal_done),
            "generate_metadata_ms": _ms(temporal_done, time.perf_counter()),
        },
    )
    return cohort


def _check_keys(patients: pd.DataFrame) -> None:
    for key in ("patient_id", "patient_journey_id"):
        empty = int(patients[key].isna().sum())
        if empty:
            raise CohortInputError(
                "CC_004", f"{empty:,} row(s) have no {key}. Load the patients again with their keys."
            )
    repeated = int(patients["patient_journey_id"].duplicated().sum())
    if repeated:
        raise CohortInputError(
            "CC_004",
            f"{repeated:,} row(s) repeat a patient_journey_id; expected one row per journey. "
            "Aggregate the patient frame to journeys first.",
        )


def _fails(rule: Rule, column: TypedColumn) -> np.ndarray:
    assert rule.criterion is not None
    true = holds(rule.criterion, column)
    failed = ~true & column.known if rule.side == "inclusion" else true
    return failed | ~column.known if rule.on_unknown == "exclude" else failed


def _time_rules(
    definition: CohortDefinition,
    index: TypedColumn,
    first: TypedColumn,
    last: TypedColumn,
    end: np.datetime64 | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Failures and unknowns of the rules about time. An unknown date always fails.

    A patient whose window ends after the data is held to being observed on the index date only: whether
    observation ended early cannot be told from the last record of a recent extract.
    """
    times = definition.temporal_requirements
    known_before = index.known & first.known
    known_after = index.known & last.known
    before = (index.values - first.values).astype("int64")
    after = (last.values - index.values).astype("int64")
    required = times.followup_days if times.followup == "require" else 0
    failed = {
        "index_date": ~index.known,
        "lookback": ~(known_before & (before >= times.lookback_days)),
    }
    unknown = {"index_date": ~index.known, "lookback": ~known_before, "followup": ~known_after}
    if times.followup == "require":
        open_window = np.zeros(len(index.known), dtype=bool)
        if end is not None:
            open_window = index.known & (index.values + required > end)
            # An index date after the data's end is no index date of these data.
            inside = known_after & (after >= 0) & (index.values <= end)
            failed["followup"] = np.where(open_window, ~inside, ~(known_after & (after >= required)))
        else:
            failed["followup"] = ~(known_after & (after >= required))
        failed["followup_pending"] = open_window
        unknown["followup_pending"] = np.zeros(len(index.known), dtype=bool)
    else:
        inside = known_after & (after >= 0)
        failed["followup"] = ~inside if end is None else ~(inside & (index.values <= end))
    return failed, unknown


def _earliest(
    meets_all: np.ndarray, person: np.ndarray, index: np.ndarray, patients: pd.DataFrame
) -> np.ndarray:
    """True at the earliest journey of each person among those that meet all rules."""
    rows = np.flatnonzero(meets_all)
    chosen = np.zeros(len(meets_all), dtype=bool)
    if len(np.unique(person[rows])) == len(rows):
        chosen[rows] = True
        return chosen
    keys = patients["patient_journey_id"].iloc[rows].astype(str).to_numpy(dtype=object)
    order = np.lexsort((pd.factorize(keys, sort=True)[0], index[rows], person[rows]))
    ordered = person[rows][order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    chosen[rows[order[is_first]]] = True
    return chosen


def _attrition(
    rules: tuple[Rule, ...], mask: np.ndarray, unknown_mask: np.ndarray, person: np.ndarray, persons: int
) -> pd.DataFrame:
    def count(rows: np.ndarray) -> int:
        return int(np.count_nonzero(np.bincount(person[rows], minlength=persons)))

    alive = np.ones(len(mask), dtype=bool)
    in_cohort = np.zeros(persons, dtype=bool)
    in_cohort[person[mask == 0]] = True
    remaining, remaining_records = persons, len(mask)
    steps = []
    for rule in rules:
        unknown = count(alive & ((unknown_mask & rule.bit) != 0))
        alive &= (mask & rule.bit) == 0
        now, now_records = count(alive), int(np.count_nonzero(alive))
        # Dropping only this rule returns those who fail nothing else and are not in by another journey.
        gained = np.bincount(person[mask == rule.bit], minlength=persons) > 0
        steps.append(
            {
                "order": rule.order,
                "criterion": rule.name,
                "type": rule.side,
                "operator": rule.operator,
                "value": _shown(rule.value),
                "removed": remaining - now,
                "remaining": now,
                "unknown": unknown,
                "marginal_gain": int(np.count_nonzero(gained & ~in_cohort)),
                "on_unknown": rule.on_unknown,
                "description": rule.description,
                "removed_records": remaining_records - now_records,
                "remaining_records": now_records,
            }
        )
        remaining, remaining_records = now, now_records
    return pd.DataFrame(steps)


def _reasons(
    rows: pd.DataFrame, rules: tuple[Rule, ...], mask: np.ndarray, unknown_mask: np.ndarray
) -> pd.DataFrame:
    """Words are built once for each distinct mask, not for each patient."""
    distinct, position = np.unique(mask, return_inverse=True)
    words = ["; ".join(rule.name for rule in rules if value & rule.bit) for value in distinct.tolist()]
    spread = pd.Series(words, dtype="string[pyarrow]").take(position)
    reasons = rows[["patient_id", "patient_journey_id", "index_date"]].copy()
    reasons["mask"] = mask
    reasons["unknown_mask"] = unknown_mask
    reasons["words"] = spread.array
    return _sorted(reasons)


def _bits(rules: tuple[Rule, ...], wanted) -> int:
    return sum(rule.bit for rule in rules if wanted(rule))


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("patient_journey_id", kind="stable", ignore_index=True)


def _shown(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values)


def _ms(start: float, end: float) -> int:
    return round((end - start) * 1_000)
