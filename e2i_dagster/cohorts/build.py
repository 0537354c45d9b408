"""Building a cohort: every rule once over all patients, as bits of one mask per journey.

Eligibility, attrition and reasons are all read off the same mask, so they cannot disagree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from e2i_dagster.cohorts.attrition import Counts, attrition
from e2i_dagster.cohorts.columns import date_column, is_ascending, key_column, require_columns, typed_column
from e2i_dagster.cohorts.engine import Engine, counts_of_plan, planned, written_rows
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.files import ELIGIBLE, REASONS, ROW_FIELDS, pass_over
from e2i_dagster.cohorts.on_columns import answers, date_fields, one_index_failed, reads_columns_only
from e2i_dagster.cohorts.own_fields import with_own_fields
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.cohort import CohortDefinition, Criterion, Rule
from e2i_dagster.tables.frames import extra_frame
from e2i_dagster.versions.coverage import Coverage, Days

pc: Any = pyarrow.compute


def patient_frame(journeys: pd.DataFrame, clinical: pd.DataFrame) -> pd.DataFrame:
    """One row per journey: ``patient_journeys`` joined with ``patient_clinical``.

    A journey without a clinical row keeps nulls there and is counted as unknown by the rules. A column
    that both tables have (other than the key) is the journey's; the clinical one becomes ``clinical_<name>``.
    The user's own clinical columns (``extra``) are columns like the others, of text as it was delivered.

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
                f"table {table} repeats {repeated:,} value(s) of {key}; expected one row per journey.",
                remedy="Remove the repeated rows and load again.",
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
    data_start: date | str | None = None,
    data_end: date | str | None = None,
    unobserved: Sequence[Days] = (),
    engine: Engine | None = None,
) -> Cohort:
    """Apply ``definition`` to ``patients``.

    Args:
        patients: one row per journey (see :func:`patient_frame`) with ``definition.required_fields``.
            A pandas frame, the path of a Parquet file, a DuckDB relation or a Spark frame. It is not
            changed; its order does not matter. Own columns of a pandas frame are read under the types of
            ``definition.own_fields``; elsewhere they have the types of the frame.
        events: patient_id, event_date and ``definition.event_fields``; needed when a rule reads events.
            Events of other patients and events without a date count nowhere.
        observation_periods: patient_id, start_date, end_date. With it, observed time is the span that holds
            the index date; without it, first to last observation of the patient frame.
        data_start: first day that the data covers. What happened before it is unknown: a lookback that reaches
            before it fails as unknown, and in an event window that does, absence is unknown.
        data_end: last day that the data covers. With it, a patient who meets every rule but whose
            required follow-up ends later is ``pending``: neither eligible nor excluded by a rule.
        unobserved: stretches in between (first and last day) that the data do not cover, in order: what happened
            then is unknown, as before ``data_start``. Follow-up that reaches into one fails as unknown, or with
            ``followup: censor`` ends before it.
        engine: where pandas frames are computed: ``pandas`` (rules on columns only) or ``duckdb``; chosen by
            the definition when it is not given. Spark frames are computed on their own Spark session, and
            DuckDB relations on their connection: there is nothing to choose.

    Returns:
        The cohort, in memory. One index date per patient, unless the definition takes ``every`` one.

    Raises:
        CohortInputError: CC_002 a column is missing, CC_004 keys or values are wrong, CC_005 dates are
            no dates.
    """
    covered = _covered(data_start, data_end, unobserved)
    frames = (patients, events, observation_periods)
    in_memory = all(frame is None or isinstance(frame, pd.DataFrame) for frame in frames)
    patients, lost = with_own_fields(definition, patients)
    on_columns = observation_periods is None and not unobserved and reads_columns_only(definition)
    if in_memory and engine != "duckdb" and on_columns:
        return replace(_build_on_columns(definition, patients, covered), not_converted=lost)
    if engine == "pandas":
        raise CohortInputError(
            "CC_004",
            f"Cohort {definition.key}: engine pandas computes rules on columns of a patient frame in memory. Rules "
            "on events, groups, derived fields, observation periods, unobserved days and files need engine duckdb.",
            field="engine",
            value="pandas",
            remedy="Build it with engine duckdb.",
        )
    built = _build_on_engine(definition, patients, events, observation_periods, covered, engine)
    return replace(built, not_converted=lost)


def write_cohort(
    definition: CohortDefinition,
    patients: Any,
    events: Any = None,
    *,
    folder: Path,
    observation_periods: Any = None,
    data_start: date | str | None = None,
    data_end: date | str | None = None,
    unobserved: Sequence[Days] = (),
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

    covered = _covered(data_start, data_end, unobserved)
    patients, _ = with_own_fields(definition, patients)
    counts = None
    if events is None and observation_periods is None and not unobserved:
        counts = pass_over(definition, patients, (covered.start, covered.end), folder=folder)
    if counts is None:
        plan = planned(definition, patients, events, observation_periods, covered=covered)
        folder.mkdir(parents=True, exist_ok=True)
        written = written_rows(plan.rows, folder / REASONS, plan.connection)
        eligible = written.filter(nw.col("mask") == 0).select(*ROW_FIELDS)
        written_rows(eligible, folder / ELIGIBLE, plan.connection)
        counts = counts_of_plan(written, several_rows=plan.several_rows)
    found = attrition(definition.rules, counts)
    found.to_parquet(folder / "attrition.parquet")
    return found


def count_cohort(
    definition: CohortDefinition,
    patients: Any,
    events: Any = None,
    *,
    observation_periods: Any = None,
    data_start: date | str | None = None,
    data_end: date | str | None = None,
    unobserved: Sequence[Days] = (),
) -> pd.DataFrame:
    """The attrition alone: nothing per patient leaves the engine.

    Raises:
        CohortInputError: as :func:`build_cohort`.
    """
    covered = _covered(data_start, data_end, unobserved)
    patients, _ = with_own_fields(definition, patients)
    counts = None
    if events is None and observation_periods is None and not unobserved:
        counts = pass_over(definition, patients, (covered.start, covered.end))
    if counts is None:
        plan = planned(definition, patients, events, observation_periods, covered=covered)
        counts = counts_of_plan(plan.rows, several_rows=plan.several_rows)
    return attrition(definition.rules, counts)


def _covered(start: date | str | None, end: date | str | None, unobserved: Sequence[Days]) -> Coverage:
    first, last = (None if day is None else pd.Timestamp(day).date() for day in (start, end))
    return Coverage(first, last, tuple(unobserved))


@dataclass(frozen=True)
class _Found:
    """Index dates in the order of journey key and date; dates are datetime64[D], NaT where unknown."""

    patient: pa.Array
    journey: pa.Array
    index_date: np.ndarray
    followup_end: np.ndarray
    mask: np.ndarray
    unknown_mask: np.ndarray

    def taken(self, rows: np.ndarray) -> _Found:
        return _Found(*(getattr(self, name).take(rows) for name in self.__dataclass_fields__))


def _build_on_engine(
    definition: CohortDefinition,
    patients: Any,
    events: Any,
    observation_periods: Any,
    covered: Coverage,
    engine: Engine | None,
) -> Cohort:
    started = time.perf_counter()
    plan = planned(definition, patients, events, observation_periods, covered=covered, engine=engine)
    validated = time.perf_counter()
    rows = plan.rows.collect(backend="pyarrow").to_arrow()
    rows = rows.sort_by([("patient_journey_id", "ascending"), ("index_date", "ascending")])
    keys = (rows[name].cast(pa.string()).combine_chunks() for name in ROW_FIELDS[:2])
    days = (rows[name].to_numpy().astype("datetime64[D]") for name in ROW_FIELDS[2:])
    masks = (rows[name].to_numpy().astype(np.int64, copy=False) for name in ("mask", "unknown_mask"))
    found = _Found(*keys, *days, *masks)
    applied = time.perf_counter()
    return _cohort(
        definition,
        covered.end,
        found,
        *_persons(found.patient),
        records=plan.records,
        milliseconds={
            "validate_config_ms": _ms(started, validated),
            "apply_criteria_ms": _ms(validated, applied),
            "validate_temporal_ms": 0,
        },
        since=applied,
    )


def _build_on_columns(definition: CohortDefinition, patients: pd.DataFrame, covered: Coverage) -> Cohort:
    """A definition whose rules read columns of the patient frame only, on arrays."""
    started = time.perf_counter()
    require_columns(patients, definition.required_fields, what=f"Cohort {definition.key}")
    patient, journey = (key_column(patients[name]) for name in ROW_FIELDS[:2])
    in_order = _check_keys(patient, journey)
    fields = {c.field for c in definition.conditions if isinstance(c, Criterion)}
    columns = {
        name: typed_column(patients[name], name) for name in definition.required_fields if name in fields
    }
    dates = {name: date_column(patients[name], name) for name in date_fields(definition)}
    validated = time.perf_counter()

    answered = answers(definition, columns, dates, covered.end, covered.start)
    found = _Found(
        patient,
        journey,
        answered.index_date,
        answered.followup_end,
        answered.mask,
        answered.unknown_mask,
    )
    if not in_order:
        found = found.taken(pc.sort_indices(journey).to_numpy())
    criteria_done = time.perf_counter()

    person, persons = _persons(found.patient)
    if persons != len(person):
        earliest = one_index_failed(definition, found.mask, found.index_date, person)
        found = replace(found, mask=found.mask | earliest)
    temporal_done = time.perf_counter()
    return _cohort(
        definition,
        covered.end,
        found,
        person,
        persons,
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
    found: _Found,
    person: np.ndarray,
    persons: int,
    *,
    records: int,
    milliseconds: dict[str, int],
    since: float,
) -> Cohort:
    """Everything that is read off the masks, the same for every engine."""
    rules = definition.rules
    reported = _bits(rules, lambda rule: rule.on_unknown == "report")
    pending_bit = _bits(rules, lambda rule: rule.name == "followup_pending")
    eligible = found.taken(np.flatnonzero(found.mask == 0))
    pending = found.taken(np.flatnonzero((found.mask == pending_bit) & (pending_bit != 0)))
    counts = Counts.of_rows(found.mask, found.unknown_mask, person, persons)
    return Cohort(
        definition=definition,
        data_end=data_end,
        input_patients=persons,
        input_records=records,
        eligible=_frame(eligible, followup_end=_days(eligible.followup_end)),
        pending=_frame(pending, followup_end=_days(pending.followup_end)),
        attrition=attrition(rules, counts),
        reasons=_frame(
            found, mask=found.mask, unknown_mask=found.unknown_mask, words=_words(rules, found.mask)
        ),
        kept_with_unknown=int(np.count_nonzero(eligible.unknown_mask & reported)),
        milliseconds=milliseconds | {"generate_metadata_ms": _ms(since, time.perf_counter())},
    )


def _check_keys(patient: pa.Array, journey: pa.Array) -> bool:
    """Whether the journeys are in ascending order; every row has its keys and no journey comes twice."""
    for key, values in zip(ROW_FIELDS, (patient, journey), strict=False):
        if values.null_count:
            raise CohortInputError(
                "CC_004",
                f"{values.null_count:,} row(s) have no {key}.",
                remedy="Load the patients again with their keys.",
            )
    if is_ascending(journey):
        return True
    repeated = len(journey) - len(journey.unique())
    if repeated:
        raise CohortInputError(
            "CC_004",
            f"{repeated:,} row(s) repeat a patient_journey_id; expected one row per journey.",
            field="patient_journey_id",
            remedy="Aggregate the patient frame to journeys first.",
        )
    return False


def _persons(patient: pa.Array) -> tuple[np.ndarray, int]:
    """The number of each row's person, and how many persons there are."""
    if is_ascending(patient):
        return np.arange(len(patient)), len(patient)
    coded = patient.dictionary_encode()
    return coded.indices.to_numpy(), len(coded.dictionary)


def _frame(found: _Found, **more: Any) -> pd.DataFrame:
    columns = {
        "patient_id": _texts(found.patient),
        "patient_journey_id": _texts(found.journey),
        "index_date": _days(found.index_date),
    }
    return pd.DataFrame(columns | more, copy=False)


def _words(rules: tuple[Rule, ...], mask: np.ndarray) -> Any:
    """Words are built once for each distinct mask, not for each index date."""
    coded = pa.array(mask).dictionary_encode()
    names = [(rule.bit, rule.name) for rule in rules]
    words = [
        "; ".join([name for bit, name in names if value & bit]) for value in coded.dictionary.to_pylist()
    ]
    return _texts(pa.array(words, type=pa.string()).take(coded.indices))


def _texts(array: pa.Array) -> Any:
    return array.to_pandas(types_mapper=lambda _: pd.StringDtype("pyarrow")).array


def _days(days: np.ndarray) -> np.ndarray:
    return days.astype("datetime64[us]")


def _bits(rules: tuple[Rule, ...], wanted) -> int:
    return sum(rule.bit for rule in rules if wanted(rule))


def _ms(start: float, end: float) -> int:
    return round((end - start) * 1_000)
