"""Building a cohort: every rule once over all patients, as bits of one mask per journey.

Eligibility, attrition and reasons are all read off the same mask, so they cannot disagree.
"""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.columns import TypedColumn, date_column, days, require_columns, typed_column
from e2i_dagster.cohorts.engine import Engine, Planned, collected, histogram, planned, written_rows
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.operators import holds
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.cohort import CohortDefinition, Criterion, Rule

if TYPE_CHECKING:
    import narwhals as nw
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
    patients: Any,
    events: Any = None,
    *,
    observation_periods: Any = None,
    data_end: date | str | None = None,
    engine: Engine | None = None,
) -> Cohort:
    """Apply ``definition`` to ``patients``.

    Args:
        patients: one row per journey (see :func:`patient_frame`) with ``definition.required_fields``.
            A pandas frame, the path of a Parquet file, a DuckDB relation or a Spark frame. It is not
            changed; its order does not matter.
        events: patient_id, event_date and ``definition.event_fields``; needed when a rule reads events.
            Events of other patients and events without a date count nowhere.
        observation_periods: patient_id, start_date, end_date. With it, observed time is the span that holds
            the index date; without it, first to last observation of the patient frame.
        data_end: last day that the data covers. With it, a patient who meets every rule but whose
            required follow-up ends later is ``pending``: neither eligible nor excluded by a rule.
        engine: where pandas frames are computed: ``pandas`` (rules on columns only) or ``duckdb``; chosen by
            the definition when it is not given. Spark frames are computed on their own Spark session, and
            DuckDB relations on their connection: there is nothing to choose.

    Returns:
        The cohort, in memory. One index date per patient, unless the definition takes ``every`` one.

    Raises:
        CohortInputError: CC_002 a column is missing, CC_004 keys or values are wrong, CC_005 dates are
            no dates.
    """
    end = None if data_end is None else pd.Timestamp(data_end).date()
    frames = (patients, events, observation_periods)
    in_memory = all(frame is None or isinstance(frame, pd.DataFrame) for frame in frames)
    if in_memory and engine != "duckdb" and observation_periods is None and _on_columns_only(definition):
        return _build_on_columns(definition, patients, end)
    if engine == "pandas":
        raise CohortInputError(
            "CC_004",
            f"Cohort {definition.key}: engine pandas computes rules on columns of a patient frame in memory. Rules "
            "on events, groups, derived fields, observation periods and files need engine duckdb.",
        )
    return _build_on_engine(definition, patients, events, observation_periods, end, engine)


def write_cohort(
    definition: CohortDefinition,
    patients: Any,
    events: Any = None,
    *,
    folder: Path,
    observation_periods: Any = None,
    data_end: date | str | None = None,
) -> pd.DataFrame:
    """Compute a cohort that need not fit into memory, and write it as Parquet into ``folder``.

    Writes ``reasons`` (keys, index_date, followup_end, mask, unknown_mask for every index date; words follow
    from the mask and the attrition), ``eligible`` (rows whose mask is 0) and ``attrition``. DuckDB writes one
    file for each, Spark a folder of parts.

    Returns:
        The attrition.

    Raises:
        CohortInputError: as :func:`build_cohort`.
    """
    import narwhals as nw

    end = None if data_end is None else pd.Timestamp(data_end).date()
    plan = planned(definition, patients, events, observation_periods, data_end=end)
    folder.mkdir(parents=True, exist_ok=True)
    written = written_rows(plan.rows, folder / "reasons.parquet", plan.connection)
    eligible = written.filter(nw.col("mask") == 0).select(
        "patient_id", "patient_journey_id", "index_date", "followup_end"
    )
    written_rows(eligible, folder / "eligible.parquet", plan.connection)
    attrition = _engine_attrition(definition, written, plan)
    attrition.to_parquet(folder / "attrition.parquet")
    return attrition


def count_cohort(
    definition: CohortDefinition,
    patients: Any,
    events: Any = None,
    *,
    observation_periods: Any = None,
    data_end: date | str | None = None,
) -> pd.DataFrame:
    """The attrition alone: nothing per patient leaves the engine.

    Raises:
        CohortInputError: as :func:`build_cohort`.
    """
    end = None if data_end is None else pd.Timestamp(data_end).date()
    plan = planned(definition, patients, events, observation_periods, data_end=end)
    return _engine_attrition(definition, plan.rows, plan)


def _on_columns_only(definition: CohortDefinition) -> bool:
    plain = all(isinstance(condition, Criterion) for condition in definition.conditions)
    return (
        plain
        and definition.index is None
        and not definition.derived
        and definition.journeys == "first_eligible"
    )


def _engine_attrition(definition: CohortDefinition, rows: nw.LazyFrame, plan: Planned) -> pd.DataFrame:
    """The attrition from counts by mask; persons with several rows are looked at one by one."""
    rules = definition.rules
    if not plan.several_rows:
        counts = histogram(rows)
        mask, unknown_mask, records = (
            counts[name].to_numpy(dtype=np.int64) for name in ("mask", "unknown_mask", "records")
        )
        return _attrition(rules, mask, unknown_mask, np.arange(len(mask)), records)
    found = collected(rows.select("patient_id", "mask", "unknown_mask"))
    person, persons = pd.factorize(found["patient_id"])
    return _attrition(
        rules,
        found["mask"].to_numpy(dtype=np.int64),
        found["unknown_mask"].to_numpy(dtype=np.int64),
        person,
        np.ones(len(persons), dtype=np.int64),
    )


def _build_on_engine(
    definition: CohortDefinition,
    patients: Any,
    events: Any,
    observation_periods: Any,
    end: date | None,
    engine: Engine | None,
) -> Cohort:
    started = time.perf_counter()
    plan = planned(definition, patients, events, observation_periods, data_end=end, engine=engine)
    validated = time.perf_counter()
    found = collected(plan.rows)
    applied = time.perf_counter()
    person, persons = pd.factorize(found["patient_id"])
    mask = found["mask"].to_numpy(dtype=np.int64)
    unknown_mask = found["unknown_mask"].to_numpy(dtype=np.int64)
    return _cohort(
        definition,
        end,
        rows=found[["patient_id", "patient_journey_id", "index_date", "followup_end"]],
        mask=mask,
        unknown_mask=unknown_mask,
        person=person,
        persons=len(persons),
        records=plan.records,
        milliseconds={
            "validate_config_ms": _ms(started, validated),
            "apply_criteria_ms": _ms(validated, applied),
            "validate_temporal_ms": 0,
        },
        since=applied,
    )


def _build_on_columns(definition: CohortDefinition, patients: pd.DataFrame, data_end: date | None) -> Cohort:
    """A definition whose rules read columns of the patient frame only, on arrays."""
    started = time.perf_counter()
    require_columns(patients, definition.required_fields, what=f"Cohort {definition.key}")
    _check_keys(patients)
    rules = definition.rules
    columns = {
        rule.criterion.field: typed_column(patients[rule.criterion.field], rule.criterion.field)
        for rule in rules
        if isinstance(rule.criterion, Criterion)
    }
    times = definition.temporal_requirements
    index = date_column(patients[times.index_date_field], times.index_date_field)
    first = date_column(patients[FIRST_OBSERVED], FIRST_OBSERVED)
    last = date_column(patients[LAST_OBSERVED], LAST_OBSERVED)
    validated = time.perf_counter()

    failed: dict[str, np.ndarray] = {}
    unknown: dict[str, np.ndarray] = {}
    for rule in rules:
        if isinstance(rule.criterion, Criterion):
            column = columns[rule.criterion.field]
            unknown[rule.name] = ~column.known
            failed[rule.name] = _fails(rule, column)
    criteria_done = time.perf_counter()

    end = None if data_end is None else np.datetime64(data_end, "D")
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
    return _cohort(
        definition,
        data_end,
        rows=rows,
        mask=mask,
        unknown_mask=unknown_mask,
        person=person,
        persons=len(persons),
        records=len(patients),
        milliseconds={
            "validate_config_ms": _ms(started, validated),
            "apply_criteria_ms": _ms(validated, criteria_done),
            "validate_temporal_ms": _ms(criteria_done, temporal_done),
        },
        since=temporal_done,
    )


def _cohort(
    definition: CohortDefinition,
    data_end: date | None,
    *,
    rows: pd.DataFrame,
    mask: np.ndarray,
    unknown_mask: np.ndarray,
    person: np.ndarray,
    persons: int,
    records: int,
    milliseconds: dict[str, int],
    since: float,
) -> Cohort:
    """Everything that is read off the masks, the same for every engine."""
    rules = definition.rules
    reported = _bits(rules, lambda rule: rule.on_unknown == "report")
    pending_bit = _bits(rules, lambda rule: rule.name == "followup_pending")
    eligible = mask == 0
    return Cohort(
        definition=definition,
        data_end=data_end,
        input_patients=persons,
        input_records=records,
        eligible=_sorted(rows[eligible]),
        pending=_sorted(rows[(mask == pending_bit) & (pending_bit != 0)]),
        attrition=_attrition(rules, mask, unknown_mask, person, np.ones(persons, dtype=np.int64)),
        reasons=_reasons(rows, rules, mask, unknown_mask),
        kept_with_unknown=int(np.count_nonzero(eligible & ((unknown_mask & reported) != 0))),
        milliseconds=milliseconds | {"generate_metadata_ms": _ms(since, time.perf_counter())},
    )


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
    assert isinstance(rule.criterion, Criterion)
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
    rules: tuple[Rule, ...],
    mask: np.ndarray,
    unknown_mask: np.ndarray,
    person: np.ndarray,
    weight: np.ndarray,
) -> pd.DataFrame:
    """Counts per rule.

    ``weight`` says for how many persons each position of ``person`` stands, so that persons of one row can
    be given by combination of failed rules. ``share`` is the Shapley value of the rule in who is excluded:
    an index date that fails k rules counts 1/k for each, so it does not depend on the order.
    """
    records = weight[person] if len(person) else weight

    def count(rows: np.ndarray) -> int:
        reached = np.bincount(person[rows], minlength=len(weight)) > 0
        return int(weight[reached].sum())

    failing = np.bitwise_count(mask.astype(np.uint64)).astype(np.int64)
    excluded = int(records[mask != 0].sum())
    alive = np.ones(len(mask), dtype=bool)
    in_cohort = np.zeros(len(weight), dtype=bool)
    in_cohort[person[mask == 0]] = True
    remaining, remaining_records = int(weight.sum()), int(records.sum())
    steps = []
    for rule in rules:
        unknown = count(alive & ((unknown_mask & rule.bit) != 0))
        fails = (mask & rule.bit) != 0
        alive &= ~fails
        now, now_records = count(alive), int(records[alive].sum())
        # Dropping only this rule returns those who fail nothing else and are not in by another journey.
        gained = np.bincount(person[mask == rule.bit], minlength=len(weight)) > 0
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
                "marginal_gain": int(weight[gained & ~in_cohort].sum()),
                "share": float((records[fails] / failing[fails]).sum() / excluded) if excluded else 0.0,
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
    keys = ["patient_journey_id", "index_date"]
    return rows.sort_values(keys, kind="stable", ignore_index=True)


def _shown(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values)


def _ms(start: float, end: float) -> int:
    return round((end - start) * 1_000)
