"""Enrolment: eligibility, consent, withdrawal, deviations, loss; everything is an event, states derive from them.

Nothing here changes a record: a state of a unit is what its events say. The analysed sets derive from the
same events: ``itt`` keeps every assigned unit in its arm, ``per_protocol`` those that received what they were
assigned and adhered to the protocol, ``as_treated`` those that received something, by what they received.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.columns import require_columns, typed_column
from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.cohorts.operators import decidable, holds
from e2i_dagster.config.cohort import Criterion
from e2i_dagster.config.experiment import Consent, ExperimentSpec
from e2i_dagster.errors import InputError
from e2i_dagster.warehouse.frames import convert

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


def with_columns(frame: pd.DataFrame, columns: Sequence[str], what: str) -> pd.DataFrame:
    """``frame`` with exactly ``columns``; those that are absent are null.

    Raises:
        InputError: there is a column that is none of them.
    """
    unknown = sorted(set(frame.columns) - set(columns))
    if unknown:
        raise InputError(f"{what}: unknown column(s) {', '.join(unknown)}. Known: {', '.join(columns)}.")
    return frame.reindex(columns=list(columns))


def check_events(
    events: pd.DataFrame,
    *,
    screened: pd.DataFrame,
    assignments: pd.DataFrame,
    known: pd.DataFrame,
    consent: Consent,
    arms: Sequence[str],
) -> pd.DataFrame:
    """The events that are new, after all of them were checked; nothing is taken when one is wrong.

    Args:
        events: ``EVENT_COLUMNS``; further columns are refused, absent ones are null.
        screened: unit_id, screened_at. assignments: unit_id, assigned_at. known: recorded events.

    Raises:
        InputError: with the number of events of each kind of problem; no unit is named.
    """
    given = with_columns(events, EVENT_COLUMNS, "events")
    given["unit_id"] = given["unit_id"].astype("string[pyarrow]")
    given["occurred_at"] = pd.to_datetime(given["occurred_at"], utc=True, errors="coerce")
    given = given.drop_duplicates(ignore_index=True)
    named = ["unit_id", "event_type", "occurred_at"]
    given["event_type"] = given["event_type"].astype("string[pyarrow]")
    seen = pd.MultiIndex.from_frame(known[named].astype(str))
    new = given[~pd.MultiIndex.from_frame(given[named].astype(str)).isin(seen)].reset_index(drop=True)
    kind, at, unit = new["event_type"], new["occurred_at"], new["unit_id"]
    screened_at = _time_of(unit, screened.set_index("unit_id")["screened_at"])
    assigned_at = _time_of(unit, assignments.set_index("unit_id")["assigned_at"])
    everything = pd.concat(
        [part[named] for part in (known, new) if len(part)] or [new[named]], ignore_index=True
    )
    agreed = _time_of(unit, _first(everything, "consented"))
    ends = everything[everything["event_type"].isin(_ENDS)].groupby("unit_id").size()
    after = kind.isin(_AFTER_ASSIGNMENT)
    consents = kind == "consented"
    problems = {
        f"of unknown type (known: {', '.join(EVENT_TYPES)})": ~kind.isin(EVENT_TYPES),
        "without a readable time": at.isna(),
        "of units that were not screened": screened_at.isna(),
        "before the unit was screened": earlier(at, screened_at),
        "of units that are not assigned": after & assigned_at.isna(),
        "before the unit was assigned": after & earlier(at, assigned_at),
        f"consents without one of the methods {', '.join(consent.methods)} (consent is never implied)": consents
        & ~new["consent_method"].isin(consent.methods),
        f"consents without one of the versions {', '.join(consent.versions)}": consents
        & ~new["consent_version"].isin(consent.versions),
        "withdrawals of a consent that was not given before": (kind == "consent_withdrawn")
        & (agreed.isna() | earlier(at, agreed)),
        f"withdrawals without one of {', '.join(INITIATORS)} in initiated_by": (kind == "withdrawn")
        & ~new["initiated_by"].isin(INITIATORS),
        f"deviations without one of {', '.join(SEVERITIES)} in severity": (kind == "deviation")
        & ~new["severity"].isin(SEVERITIES),
        f"treatments without one of the arms {', '.join(arms)} in variant_received": (
            kind == "treatment_received"
        )
        & ~new["variant_received"].isin(arms),
        "of units with two different ends (withdrawn, lost_to_followup, completed)": kind.isin(_ENDS)
        & (unit.map(ends).fillna(0) > 1),
    }
    refuse("events", problems, len(new))
    return new


def check_outcomes(
    outcomes: pd.DataFrame,
    *,
    spec: ExperimentSpec,
    assignments: pd.DataFrame,
    events: pd.DataFrame,
    known: pd.DataFrame,
) -> pd.DataFrame:
    """The outcomes that are new, after all of them were checked; nothing is taken when one is wrong.

    Args:
        outcomes: ``OUTCOME_COLUMNS`` (``event`` for survival metrics, ``denominator`` for ratios, only).
        assignments: unit_id, assigned_at. known: recorded outcomes.

    Raises:
        InputError: with the number of outcomes of each kind of problem; no unit is named.
    """
    given = with_columns(outcomes, OUTCOME_COLUMNS, "outcomes")
    given["unit_id"] = given["unit_id"].astype("string[pyarrow]")
    given["observed_at"] = pd.to_datetime(given["observed_at"], utc=True, errors="coerce")
    given["value"] = pd.to_numeric(given["value"], errors="coerce").astype("float64")
    given["denominator"] = pd.to_numeric(given["denominator"], errors="coerce").astype("float64")
    given["event"] = convert(given["event"], sa.Boolean(), where="outcomes.event")
    given = given.drop_duplicates(ignore_index=True)
    kinds = {metric.name: metric.kind for metric in spec.metrics.all}
    kind = given["metric"].map(kinds)
    assigned_at = _time_of(given["unit_id"], assignments.set_index("unit_id")["assigned_at"])
    gone = _time_of(given["unit_id"], _first(events, "consent_withdrawn"))
    both = given.merge(
        known[["unit_id", "metric", "value", "denominator"]].assign(there=True),
        on=["unit_id", "metric"], how="left", suffixes=("", "_known"),
    )  # fmt: skip
    there = both["there"].notna()
    value = given["value"]
    problems = {
        f"of unknown metric (known: {', '.join(kinds)})": kind.isna(),
        "of units that are not assigned": assigned_at.isna(),
        "without a readable time": given["observed_at"].isna(),
        "observed before the unit was assigned": earlier(given["observed_at"], assigned_at),
        "observed after the unit withdrew its consent": earlier(gone, given["observed_at"]),
        "without a finite value (leave a missing outcome out)": ~np.isfinite(value.to_numpy()),
        "of a proportion that are neither 0 nor 1": (kind == "proportion") & ~value.isin([0.0, 1.0]),
        "of a survival metric without a time above 0 and event true or false": (kind == "survival")
        & ~((value > 0) & given["event"].notna()),
        "of a ratio without a denominator of 0 or more": (kind == "ratio") & ~(given["denominator"] >= 0)
        | (kind == "ratio") & np.isinf(given["denominator"].to_numpy()),
        "with a denominator, of a metric that is no ratio": (kind != "ratio") & given["denominator"].notna(),
        "given twice for a unit and metric with different values": given.duplicated(
            ["unit_id", "metric"], keep=False
        ),
        "recorded already with another value": there
        & (
            (both["value"] != both["value_known"])
            | ((kind == "ratio").to_numpy() & (both["denominator"] != both["denominator_known"]))
        ),
    }
    refuse("outcomes", problems, len(given))
    return given[~there.to_numpy()].reset_index(drop=True)


def earlier(one: pd.Series, other: pd.Series) -> pd.Series:
    """True where ``one`` lies before ``other`` at the coarser precision of the two; false where one is null.

    A time of exactly midnight in UTC is a day: it is compared with a moment by the day alone, because nobody
    knows when on that day it was.
    """
    days = one.dt.normalize(), other.dt.normalize()
    by_day = (one == days[0]) | (other == days[1])
    return (days[0] < days[1]).where(by_day, one < other)


def _time_of(unit: pd.Series, times: pd.Series) -> pd.Series:
    """The time of each unit, null where there is none; a time whatever the number of rows."""
    return pd.to_datetime(unit.map(times), utc=True)


def _first(events: pd.DataFrame, kind: str) -> pd.Series:
    """By unit, when an event of ``kind`` happened first."""
    return (
        events.loc[(events["event_type"] == kind).to_numpy(dtype=bool)]
        .groupby("unit_id")["occurred_at"]
        .min()
    )


def refuse(what: str, problems: dict[str, Any], total: int) -> None:
    """Raise when any row has a problem: how many of ``total`` rows have which, and that nothing was taken."""
    found = {text: int(np.asarray(rows, dtype=bool).sum()) for text, rows in problems.items()}
    said = [f"{count:,} {text}" for text, count in found.items() if count]
    if said:
        raise InputError(
            f"{what}: {'; '.join(said)}. None of the {total:,} {what} was recorded: correct them and record all "
            "of them again; those that are recorded already are recognised."
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
    figure_md: str = ""

    @property
    def rate(self) -> float | None:
        """Units assigned per day so far; None before the second day."""
        if len(self.by_day) < 2:
            return None
        days = pd.to_datetime(list(self.by_day))
        span = int((days[-1] - days[0]) / pd.Timedelta(days=1)) + 1
        return self.assigned / span

    def to_metadata(self) -> dict[str, Any]:
        """Counts for the UI; cells below 11 are hidden."""
        rows = {
            "screened": self.screened,
            "eligible": self.eligible,
            "consented": self.consented,
            "assigned": self.assigned,
            **self.statuses,
        }
        table = [
            "| step | units |",
            "|---|---:|",
            *(f"| {name} | {shown_count(n)} |" for name, n in rows.items()),
        ]
        failed = ["| criterion | units that fail it |", "|---|---:|"]
        failed += [f"| {name} | {shown_count(count)} |" for name, count in self.failed.items()]
        return {
            "stream": "simulated" if self.simulated else "observed",
            "assigned_of_planned": f"{self.assigned:,} of {self.planned:,}",
            "units_per_day": None if self.rate is None else round(self.rate, 2),
            "as_of": self.as_of,
            "enrolment_md": "\n".join(table),
            "not_eligible_md": "\n".join(failed) if self.failed else None,
            "against_plan_md": self.figure_md or None,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"figure_md"})


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
