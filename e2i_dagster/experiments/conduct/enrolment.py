"""Enrolment: eligibility, consent, withdrawal, deviations, loss; everything is an event, states derive from them.

Nothing here changes a record: a state of a unit is what its events say. The analysed sets derive from the
same events: ``itt`` keeps every assigned unit in its arm, ``per_protocol`` those that received what they were
assigned and adhered to the protocol, ``as_treated`` those that received something, by what they received.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.columns import require_columns, typed_column
from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.cohorts.operators import decidable, holds
from e2i_dagster.config.cohort import CohortDefinition, Criterion
from e2i_dagster.config.experiment import Consent, ExperimentSpec
from e2i_dagster.display import Figure, Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.conduct.intake import (
    Fault,
    Taken,
    attribute_kinds,
    booleans,
    equal,
    numbers,
    recorded_before,
    same_time,
    sift,
    times,
    typed_attributes,
    with_columns,
)
from e2i_dagster.policy_files.base import did_you_mean
from e2i_dagster.tables.frames import json_text
from e2i_dagster.tables.moments import earlier

EVENT_TYPES = (
    "consented", "treatment_received", "deviation", "consent_withdrawn", "withdrawn", "lost_to_followup", "completed",
)  # fmt: skip
#: Events that only an assigned unit can have.
_AFTER_ASSIGNMENT = ("treatment_received", "deviation", "withdrawn", "lost_to_followup", "completed")
#: A unit has at most one of these.
_ENDS = ("withdrawn", "lost_to_followup", "completed")
INITIATORS = ("subject", "investigator", "sponsor", "system")
SEVERITIES = ("minor", "major", "critical")
EVENT_COLUMNS = (
    "unit_id", "event_type", "occurred_at", "consent_method", "consent_version", "initiated_by", "severity",
    "variant_received", "reason",
)  # fmt: skip
OUTCOME_COLUMNS = ("unit_id", "metric", "value", "event", "denominator", "observed_at")


def eligibility(
    units: pd.DataFrame, inclusion: Sequence[Criterion], exclusion: Sequence[Criterion]
) -> pd.Series:
    """Names of the criteria that each unit fails, as a list per unit; empty for an eligible one.

    An unknown value fails an inclusion criterion unless it says otherwise; for an exclusion criterion the
    unit is kept unless the criterion says ``on_unknown: exclude``.

    Raises:
        CohortInputError: a column is missing or its values do not fit the criterion.
    """
    require_columns(
        units, tuple(criterion.field for criterion in (*inclusion, *exclusion)), what="The screening"
    )
    failed = np.zeros((len(units), len(inclusion) + len(exclusion)), dtype=bool)
    names = []
    for number, criterion in enumerate((*inclusion, *exclusion)):
        column = decidable(criterion, typed_column(units[criterion.field], criterion.field))
        true = holds(criterion, column)
        side = "inclusion" if number < len(inclusion) else "exclusion"
        fails = ~true & column.known if side == "inclusion" else true
        if criterion.unknown_policy(side) == "exclude":
            fails = fails | ~column.known
        failed[:, number] = fails
        names.append(criterion.name or criterion.field)
    labels = np.array(names, dtype=object)
    return pd.Series([labels[row].tolist() for row in failed], index=units.index, dtype=object)


@dataclass(frozen=True)
class IntakeResult:
    """A delivery sorted by what becomes of its rows: ``rows`` are to be recorded, ``taken`` says the rest."""

    rows: pd.DataFrame
    taken: Taken


def check_events(
    events: pd.DataFrame,
    *,
    screened: pd.DataFrame,
    assignments: pd.DataFrame,
    known: pd.DataFrame,
    consent: Consent,
    arms: Sequence[str],
) -> IntakeResult:
    """The events that are new. One that cannot be used is refused with its reason, and stops no other.

    Args:
        events: ``EVENT_COLUMNS``; absent ones are null. The index is the number of a row in its file, from 0.
        screened: unit_id, screened_at. assignments: unit_id, assigned_at. known: recorded events.

    Raises:
        InputError: the columns are not those of events.
    """
    key = ["unit_id", "event_type", "occurred_at"]
    rest = [name for name in EVENT_COLUMNS if name not in key]
    given = with_columns(events, EVENT_COLUMNS, "events", key)
    given = given.astype(dict.fromkeys([*key[:2], *rest], "string[pyarrow]"))
    given["occurred_at"] = times(given["occurred_at"])
    repeated = given.duplicated().to_numpy()
    given = given[~repeated]
    recorded = known.assign(occurred_at=times(known["occurred_at"]))
    unchanged, changed = recorded_before(given, recorded, key, dict.fromkeys(rest, equal))
    twice = Fault("event_type", "is given twice with other values", given.duplicated(key, keep=False))
    screened_at = _by_unit(screened, "screened_at")
    assigned_at = _by_unit(assignments, "assigned_at")
    return _intake(
        given,
        unchanged,
        repeated,
        lambda rows: [
            *_faults_of_events(rows, recorded[key], screened_at, assigned_at, consent, arms), *changed, twice,
        ],
    )  # fmt: skip


def _intake(
    given: pd.DataFrame,
    unchanged: pd.Series,
    repeated: np.ndarray,
    faults_of: Callable[[pd.DataFrame], Iterable[Fault]],
) -> IntakeResult:
    """The new rows of ``given`` without those that break a rule, and what became of the delivery."""
    new, refused = sift(given[~unchanged], faults_of)
    taken = Taken(
        new=len(new), known=int(unchanged.sum()), duplicate=int(repeated.sum()), refused=tuple(refused)
    )
    return IntakeResult(new.reset_index(drop=True), taken)


def _faults_of_events(
    new: pd.DataFrame,
    known: pd.DataFrame,
    screened: pd.Series,
    assigned: pd.Series,
    consent: Consent,
    arms: Sequence[str],
) -> list[Fault]:
    """Rules of events in the order in which they are reported; ``known``: key columns of the recorded ones."""
    kind, at, unit = new["event_type"], new["occurred_at"], new["unit_id"]
    screened_at, assigned_at = times(unit.map(screened)), times(unit.map(assigned))
    everything = pd.concat([part for part in (known, new[list(known.columns)]) if len(part)] or [new])
    agreed = times(unit.map(_first(everything, "consented")))
    ends = everything[everything["event_type"].isin(_ENDS)].groupby("unit_id").size()
    after, consents = kind.isin(_AFTER_ASSIGNMENT), kind == "consented"

    def lacks(event: str, column: str, allowed: Sequence[str]) -> Fault:
        said = f"is none of {', '.join(allowed)}, which the event {event} needs"
        return Fault(column, said, (kind == event) & ~new[column].isin(allowed))

    return [
        Fault("unit_id", "is missing", unit.isna()),
        Fault("event_type", f"is none of {', '.join(EVENT_TYPES)}", ~kind.isin(EVENT_TYPES)),
        Fault("occurred_at", "is missing or no time", at.isna()),
        Fault("unit_id", "is no unit that was screened", screened_at.isna()),
        Fault("occurred_at", "lies before the unit was screened", earlier(at, screened_at)),
        Fault("unit_id", "is a unit that is not assigned", after & assigned_at.isna()),
        Fault("occurred_at", "lies before the unit was assigned", after & earlier(at, assigned_at)),
        Fault(
            "consent_method",
            f"is none of {', '.join(consent.methods)} (consent is never implied)",
            consents & ~new["consent_method"].isin(consent.methods),
        ),
        lacks("consented", "consent_version", consent.versions),
        Fault(
            "event_type",
            "withdraws a consent that was not given before",
            (kind == "consent_withdrawn") & (agreed.isna() | earlier(at, agreed)),
        ),
        lacks("withdrawn", "initiated_by", INITIATORS),
        lacks("deviation", "severity", SEVERITIES),
        lacks("treatment_received", "variant_received", arms),
        Fault(
            "event_type",
            f"is a second end of the unit ({', '.join(_ENDS)})",
            kind.isin(_ENDS) & (unit.map(ends).fillna(0) > 1),
        ),
    ]


def check_outcomes(
    outcomes: pd.DataFrame,
    *,
    spec: ExperimentSpec,
    assignments: pd.DataFrame,
    events: pd.DataFrame,
    known: pd.DataFrame,
) -> IntakeResult:
    """The outcomes that are new. One that cannot be used is refused with its reason, and stops no other.

    Args:
        outcomes: ``OUTCOME_COLUMNS`` (``event`` for survival metrics, ``denominator`` for ratios, only). The index is
            the number of a row in its file, from 0.
        assignments: unit_id, assigned_at. known: recorded outcomes.

    Raises:
        InputError: the columns are not those of outcomes.
    """
    key = ["unit_id", "metric"]
    delivered = with_columns(outcomes, OUTCOME_COLUMNS, "outcomes", [*key, "value", "observed_at"])
    kinds = {metric.name: metric.kind for metric in spec.metrics.all}
    given = delivered.astype(dict.fromkeys(key, "string[pyarrow]"))
    given["observed_at"] = times(given["observed_at"])
    number, yes_no = numbers(given["value"]), booleans(given["value"]).astype("float64")
    is_share = given["metric"].map(kinds) == "proportion"
    given["value"] = number.where(~is_share | number.notna(), yes_no)
    given["denominator"] = numbers(given["denominator"])
    given["event"] = booleans(given["event"])
    # What was delivered and cannot be read is not missing.
    unread = {name: delivered[name].notna() & given[name].isna() for name in delivered.columns}
    legible = ~pd.DataFrame(unread).any(axis=1)
    repeated = (given.duplicated() & legible).to_numpy()
    given = given[~repeated]
    same = {"value": equal, "event": equal, "denominator": equal, "observed_at": same_time}
    unchanged, changed = recorded_before(
        given, known.assign(observed_at=times(known["observed_at"])), key, same
    )
    unchanged = unchanged & legible[~repeated]
    twice = Fault(
        "metric", "is given twice for the unit, with other values", given.duplicated(key, keep=False)
    )
    assigned_at = _by_unit(assignments, "assigned_at")
    gone = _first(events, "consent_withdrawn")
    return _intake(
        given,
        unchanged,
        repeated,
        lambda rows: [
            *_faults_of_outcomes(rows, kinds, assigned_at, gone),
            *(Fault(name, "cannot be read", unread[name]) for name in ("event", "denominator")),
            *changed, twice,
        ],
    )  # fmt: skip


def _faults_of_outcomes(
    given: pd.DataFrame, kinds: Mapping[str, str], assigned: pd.Series, withdrawn: pd.Series
) -> list[Fault]:
    """Rules of outcomes in the order in which they are reported."""
    unit, at, value, denominator = (
        given[name] for name in ("unit_id", "observed_at", "value", "denominator")
    )  # fmt: skip
    kind = given["metric"].map(kinds)
    assigned_at, gone = times(unit.map(assigned)), times(unit.map(withdrawn))
    is_ratio, is_survival = kind == "ratio", kind == "survival"
    infinite = pd.Series(np.isinf(denominator.to_numpy()), index=given.index)
    return [
        Fault("unit_id", "is missing", unit.isna()),
        Fault("metric", f"is none of {', '.join(kinds)}", kind.isna()),
        Fault("unit_id", "is a unit that is not assigned", assigned_at.isna()),
        Fault("observed_at", "is missing or no time", at.isna()),
        Fault("observed_at", "lies before the unit was assigned", earlier(at, assigned_at)),
        Fault("observed_at", "lies after the unit withdrew its consent", earlier(gone, at)),
        Fault(
            "value",
            "is missing or no finite number (leave a missing outcome out)",
            pd.Series(~np.isfinite(value.to_numpy()), index=given.index) & (kind != "proportion"),
        ),
        Fault(
            "value",
            "is neither 0 nor 1, as a proportion needs (leave a missing outcome out)",
            (kind == "proportion") & ~value.isin([0.0, 1.0]),
        ),
        Fault("value", "is no time above 0, which a survival metric needs", is_survival & ~(value > 0)),
        Fault(
            "event",
            "is neither true nor false, which a survival metric needs",
            is_survival & given["event"].isna(),
        ),
        Fault(
            "denominator",
            "is no number of 0 or more, which a ratio needs",
            is_ratio & (~(denominator >= 0) | infinite),
        ),
        Fault("denominator", "belongs to a ratio alone", ~is_ratio & denominator.notna()),
    ]


def check_units(
    units: pd.DataFrame,
    *,
    spec: ExperimentSpec,
    cohorts: Mapping[str, CohortDefinition],
    known: pd.DataFrame,
    assignments: pd.DataFrame,
    events: pd.DataFrame,
) -> IntakeResult:
    """The units that are new or corrected. One that cannot be used is refused with its reason, and stops no other.

    Args:
        units: ``unit_id``, ``screened_at`` and attributes. The index is the number of a row in its file, from 0.
        known: recorded screenings, the newest of each unit. assignments, events: what rests on them.

    Returns:
        Rows with ``unit_id``, ``screened_at`` and ``attributes`` (mappings).

    Raises:
        InputError: a column that the design needs is missing.
    """
    needs_columns(units, spec, cohorts)
    apart = ("unit_id", "screened_at")
    given, untyped = typed_attributes(units, attribute_kinds(spec, cohorts), apart)
    given["unit_id"] = given["unit_id"].astype("string[pyarrow]")
    given["screened_at"] = times(given["screened_at"])
    texts = given.astype(object).where(given.notna(), None).astype(str)
    repeated = (texts.duplicated() & given["unit_id"].notna()).to_numpy()
    given = given[~repeated]
    faults = [
        Fault("unit_id", "is missing", given["unit_id"].isna()),
        Fault("screened_at", "is missing or no time", given["screened_at"].isna()),
        *untyped,
        Fault("unit_id", "is given twice with other values", given.duplicated("unit_id", keep=False)),
    ]
    usable, refused = sift(given, lambda _: faults)
    plain = usable.drop(columns=list(apart)).astype(object)
    # Without any attribute pandas has no records.
    records = plain.where(plain.notna(), None).to_dict("records") or [{}] * len(plain)
    values = pd.Series([json.loads(json_text(row)) for row in records], index=usable.index, dtype=object)
    rows = usable[list(apart)].assign(attributes=values)
    before = known.set_index("unit_id")
    there = rows["unit_id"].isin(before.index)
    earlier, again = before.loc[rows.loc[there, "unit_id"].tolist()], rows[there]
    recorded = [_mapping(text) for text in earlier["attributes"]]
    moved = ~same_time(again["screened_at"], times(earlier["screened_at"]).set_axis(again.index))
    differing = [
        sorted(name for name, value in row.items() if old.get(name) != value) + ["screened_at"] * late
        for row, old, late in zip(again["attributes"], recorded, moved, strict=True)
    ]
    again = again.assign(
        attributes=[old | row for row, old in zip(again["attributes"], recorded, strict=True)],
        differing=pd.Series(differing, index=again.index, dtype=object),
    )
    changed = again[np.array([bool(names) for names in differing], dtype=bool)]
    corrected, fixed = sift(changed, lambda rows: _faults_of_corrections(rows, assignments, events))
    new = rows[~there]
    taken = Taken(
        new=len(new),
        updated=len(corrected),
        known=len(again) - len(changed),
        duplicate=int(repeated.sum()),
        refused=tuple([*refused, *fixed]),
    )
    columns = ["unit_id", "screened_at", "attributes"]
    return IntakeResult(pd.concat([new[columns], corrected[columns]], ignore_index=True), taken)


def _faults_of_corrections(
    changed: pd.DataFrame, assignments: pd.DataFrame, events: pd.DataFrame
) -> list[Fault]:
    """An assignment stands on the values at screening, and no event lies before it."""
    assigned = changed["unit_id"].isin(assignments["unit_id"])
    first = times(changed["unit_id"].map(events.groupby("unit_id")["occurred_at"].min()))
    names = changed["differing"].map(", ".join)
    return [
        *(
            Fault(
                columns[0],
                f"differs from what the unit was assigned by, which stays (of {', '.join(columns)})",
                assigned & (names == ", ".join(columns)),
            )
            for columns in {", ".join(names): names for names in changed["differing"]}.values()
        ),
        Fault("screened_at", "lies after an event of the unit", earlier(first, changed["screened_at"])),
    ]


def needs_columns(units: pd.DataFrame, spec: ExperimentSpec, cohorts: Mapping[str, CohortDefinition]) -> None:
    """Check that ``units`` has every column that the design names.

    Raises:
        InputError: names each missing one with its place in the design and the nearest column that is there.
    """
    given = [str(name) for name in units.columns]
    missing = [
        f"{name} ({place}){' ' + near if (near := did_you_mean(name, given)) else ''}"
        for name, place in spec.attribute_names(cohorts).items()
        if name not in given
    ]
    missing = [name for name in ("unit_id", "screened_at") if name not in given] + missing
    if missing:
        raise InputError(
            f"units: column(s) are missing: {'; '.join(missing)}. The design of {spec.name} names them: add them to "
            f"the file, or correct config/experiments/{spec.name}.yaml. The file has: {', '.join(given)}.",
            field=missing[0].split(" ")[0],
        )


def _mapping(attributes: Any) -> dict[str, Any]:
    return json.loads(attributes) if isinstance(attributes, str) else dict(attributes)


def _by_unit(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame.set_index("unit_id")[column]


def _first(events: pd.DataFrame, kind: str) -> pd.Series:
    """By unit, when an event of ``kind`` happened first."""
    return (
        events.loc[(events["event_type"] == kind).to_numpy(dtype=bool)]
        .groupby("unit_id")["occurred_at"]
        .min()
    )


def unit_states(
    assignments: pd.DataFrame, events: pd.DataFrame, *, minor_deviations_that_exclude: int
) -> pd.DataFrame:
    """What the events say of each assigned unit.

    Returns:
        One row per assignment: its columns and ``status`` (active, withdrawn, lost_to_followup, completed),
        ``consent_method``, ``consent_version``, ``consent_withdrawn_at``, ``received`` (null: not known),
        ``minor``, ``major`` (major or critical deviations), ``adherent``.
    """
    result = assignments.reset_index(drop=True).copy()
    unit = result["unit_id"]
    ordered = events.sort_values("occurred_at", kind="stable")

    def last(kind: str, column: str) -> pd.Series:
        found = ordered.loc[ordered["event_type"] == kind].drop_duplicates("unit_id", keep="last")
        return unit.map(found.set_index("unit_id")[column])

    def count(rows: pd.Series) -> pd.Series:
        return unit.map(ordered.loc[rows].groupby("unit_id").size()).fillna(0).astype("int64")

    ended = ordered.loc[ordered["event_type"].isin(_ENDS)].drop_duplicates("unit_id", keep="last")
    status = unit.map(ended.set_index("unit_id")["event_type"])
    result["consent_method"] = last("consented", "consent_method")
    result["consent_version"] = last("consented", "consent_version")
    result["consent_withdrawn_at"] = pd.to_datetime(last("consent_withdrawn", "occurred_at"), utc=True)
    status = status.mask(result["consent_withdrawn_at"].notna(), "withdrawn")
    result["status"] = status.fillna("active").astype("string[pyarrow]")
    result["received"] = last("treatment_received", "variant_received").astype("string[pyarrow]")
    deviations = ordered["event_type"] == "deviation"
    result["minor"] = count(deviations & (ordered["severity"] == "minor"))
    result["major"] = count(deviations & ordered["severity"].isin(["major", "critical"]))
    result["adherent"] = (
        (result["major"] == 0)
        & (result["minor"] < minor_deviations_that_exclude)
        & (result["status"] != "withdrawn")
    )
    return result


def analysis_frame(
    states: pd.DataFrame, outcomes: pd.DataFrame, attributes: pd.DataFrame, spec: ExperimentSpec
) -> pd.DataFrame:
    """One row per assigned unit: arm, sets, attributes, and a column per metric (null: not observed).

    A survival metric has a second column ``<metric>_event``, a ratio ``<metric>_denominator``.
    """
    frame = states.merge(attributes, on="unit_id", how="left", validate="one_to_one")
    for metric in spec.metrics.all:
        found = outcomes.loc[outcomes["metric"] == metric.name].set_index("unit_id")
        frame[metric.name] = frame["unit_id"].map(found["value"]).astype("float64")
        if metric.kind == "survival":
            frame[f"{metric.name}_event"] = frame["unit_id"].map(found["event"].astype("float64"))
        if metric.kind == "ratio":
            frame[f"{metric.name}_denominator"] = frame["unit_id"].map(found["denominator"])
    return frame


class EnrolmentReport(BaseModel):
    """From screening to completion, over all arms together, and enrolment against the plan.

    ``failed`` counts units by criterion (one unit may fail several). ``by_day`` is the number of units
    assigned up to each day.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    simulated: bool
    screened: int
    eligible: int
    consented: int
    assigned: int
    statuses: dict[str, int]
    failed: dict[str, int]
    deviations: dict[str, int]
    planned: int
    per_day_planned: float
    by_day: dict[str, int]
    as_of: str | None
    figure: Figure | None = None

    @property
    def rate(self) -> float | None:
        """Units assigned per day so far; None before the second day."""
        if len(self.by_day) < 2:
            return None
        days = pd.to_datetime(list(self.by_day))
        span = int((days[-1] - days[0]) / pd.Timedelta(days=1)) + 1
        return self.assigned / span

    @property
    def table(self) -> Table:
        """Units at each step; cells below 11 are hidden."""
        reached = {name: getattr(self, name) for name in ("screened", "eligible", "consented", "assigned")}
        steps = reached | self.statuses
        return Table(("step", "units"), [(name, shown_count(n)) for name, n in steps.items()])

    def to_metadata(self) -> dict[str, Any]:
        """Counts for the UI; cells below 11 are hidden."""
        failed = [(name, shown_count(count)) for name, count in self.failed.items()]
        return {
            "stream": "simulated" if self.simulated else "observed",
            "assigned_of_planned": f"{self.assigned:,} of {self.planned:,}",
            "units_per_day": self.rate,
            "as_of": self.as_of,
            "enrolment": self.table,
            "not_eligible": Table(("criterion", "units that fail it"), failed) if failed else None,
            "against_plan": self.figure,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"figure"})


def enrolment_report(
    spec: ExperimentSpec,
    screened: pd.DataFrame,
    states: pd.DataFrame,
    events: pd.DataFrame,
    *,
    simulated: bool,
) -> EnrolmentReport:
    """Count ``screened`` (unit_id, screened_at, eligible, failed_criteria) and ``states`` into a report."""
    consents = events.loc[events["event_type"] == "consented", "unit_id"].nunique()
    failed = screened["failed_criteria"].explode().dropna().value_counts()
    days = states["assigned_at"].dt.strftime("%Y-%m-%d").value_counts().sort_index().cumsum()
    times = [screened["screened_at"], states["assigned_at"], events["occurred_at"]]
    newest = pd.concat([part for part in times if len(part)]).max() if any(map(len, times)) else None
    return EnrolmentReport(
        experiment=spec.name,
        simulated=simulated,
        screened=len(screened),
        eligible=int(screened["eligible"].sum()),
        consented=int(consents),
        assigned=len(states),
        statuses={str(name): int(n) for name, n in states["status"].value_counts().items()},
        failed={str(name): int(n) for name, n in failed.items()},
        deviations={"minor": int(states["minor"].sum()), "major": int(states["major"].sum())},
        planned=spec.sample_size.total,
        per_day_planned=spec.sample_size.per_day,
        by_day={str(day): int(n) for day, n in days.items()},
        as_of=None if newest is None else newest.isoformat(),
    )


def attribute_frame(screened: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """``unit_id`` and one column per attribute recorded at screening; ``columns`` are there in any case."""
    rows = [json.loads(text) if isinstance(text, str) else text for text in screened["attributes"]]
    values = pd.DataFrame(rows, index=screened.index)
    for name in columns:
        if name not in values.columns:
            values[name] = None
    return pd.concat([screened[["unit_id"]], values.drop(columns="unit_id", errors="ignore")], axis=1)
