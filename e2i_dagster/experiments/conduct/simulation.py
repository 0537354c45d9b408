"""A simulated stream for an experiment: invented patients whose potential outcomes are known.

They are fresh patients of the synthetic process (never those of the warehouse), screened day by day, asked for
consent, assigned by the real randomization, and observed 90 days later: the outcome is the potential outcome of
the arm. Everything that is drawn depends on the seed alone, so a stream can be taken further at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.conduct.enrolment import eligibility

#: Shares of what happens to invented units.
CONSENT, FOLLOWS_ASSIGNMENT, MINOR, MAJOR, LOST, WITHDRAWN, CONSENT_WITHDRAWN = (
    0.92, 0.96, 0.04, 0.01, 0.02, 0.015, 0.01,
)  # fmt: skip
#: Days from assignment to the outcome, as in the synthetic process.
OUTCOME_DAYS = 90
#: Share that opts out, in every arm.
OPT_OUT = 0.05
#: Contacts of a unit: 1 to this many, all alike likely.
MOST_CONTACTS = 6


@dataclass(frozen=True)
class Stream:
    """The units of a simulated stream and all that will happen to them.

    ``units``: unit_id, screened_at and attributes, in order of time. ``draws``: one row per unit with the
    uniform numbers and both probabilities of the outcome. ``true_effect``: mean difference of the two
    probabilities over all units of the stream, a difference of shares.
    """

    units: pd.DataFrame
    draws: pd.DataFrame
    true_effect: float


def draw_stream(
    spec: ExperimentSpec, *, seed: int = 2025, dgp: str = "confounded", null_effect: bool = False
) -> Stream:
    """Draw the stream of ``spec``.

    Args:
        null_effect: the treatment does nothing (both potential outcomes are that of the control).

    Raises:
        InputError: only experiments of patients of a synthetic cohort with a proportion as primary metric (and no
            mean as a secondary one), whose strata and subgroups are ``severity_band`` and ``academic_physician``,
            can be simulated.
    """
    from e2i_dagster.synthetic.population import COHORTS, draw_population
    from e2i_dagster.synthetic.processes import SEVERITY_BANDS
    from e2i_dagster.synthetic.raw_tables import patient_clinical
    from e2i_dagster.synthetic.streams import keys, pick

    cohort = spec.eligibility.cohort
    reasons = [
        text
        for wrong, text in (
            (spec.unit != "patient", f"its units are {spec.unit}s"),
            (cohort not in COHORTS, f"its cohort is {cohort or 'not named'}"),
            (spec.metrics.primary.kind != "proportion", "its primary metric is not a proportion"),
            (any(m.kind == "mean" for m in spec.metrics.secondary), "a secondary metric is a mean"),
            (spec.randomization.method == "cluster", "it randomizes clusters"),
        )
        if wrong
    ]
    if reasons or cohort is None:
        raise InputError(
            f"Experiment {spec.name} cannot be simulated: {'; '.join(reasons)}. A simulated stream has "
            f"patients of one of {', '.join(COHORTS)}, a proportion as primary metric and secondary ones "
            f"of other kinds than mean.",
            remedy="Record your own units instead.",
        )
    size = 6 * spec.sample_size.total
    people = draw_population(dgp, size, seed, [cohort])
    size = people.size
    rng = np.random.default_rng([seed, size])
    # About a third of the screened patients is eligible and consents.
    share = float(people.eligible.mean()) * CONSENT
    day = np.cumsum(rng.exponential(share / spec.sample_size.per_day, size))
    start = pd.Timestamp(spec.dates.start, tz="UTC")
    severity = people.covariates.severity
    band = np.searchsorted([upper for _, _, upper in SEVERITY_BANDS[:-1]], severity, side="left")
    units = pd.DataFrame(
        {
            "unit_id": keys("SIM", np.arange(1, size + 1), 8),
            "screened_at": start + pd.to_timedelta(np.floor(day * 86_400), unit="s"),
            "age_at_diagnosis": people.age.astype("int64"),
            "severity_at_screening": np.round(severity, 2),
            "severity_band": pick([name for name, _, _ in SEVERITY_BANDS], band.astype(np.int64)),
            "academic_physician": people.covariates.academic.astype(bool),
        }
    )
    clinical = patient_clinical(people).drop(columns="patient_journey_id")
    dated = [name for name, dtype in clinical.dtypes.items() if str(dtype).startswith("datetime")]
    units = pd.concat([units, clinical.drop(columns=dated).dropna(axis=1, how="all")], axis=1)
    draws = pd.DataFrame(
        {"unit_id": units["unit_id"], "p0": people.p0, "p1": people.p0 if null_effect else people.p1}
    )
    for name in (
        "consent",
        "method",
        "version",
        "outcome",
        "follows",
        "deviation",
        "end",
        "end_day",
        "opt_out",
        "start_day",
        "contacts",
        "accepted",
    ):
        draws[name] = rng.random(size)
    effect = float((draws["p1"] - draws["p0"])[people.eligible].mean())
    return Stream(units, draws, effect)


def screened_until(stream: Stream, until: pd.Timestamp) -> pd.DataFrame:
    """Units screened before ``until``."""
    return stream.units[stream.units["screened_at"] < until]


def consents(stream: Stream, spec: ExperimentSpec, eligible: pd.Series) -> pd.DataFrame:
    """Consents of the units ``eligible`` (unit ids), a quarter of an hour after screening."""
    both = stream.units[["unit_id", "screened_at"]].merge(stream.draws, on="unit_id")
    both = both[both["unit_id"].isin(eligible) & (both["consent"] < CONSENT)]
    rule = spec.eligibility.consent
    methods, versions = np.array(rule.methods, dtype=object), np.array(rule.versions, dtype=object)
    return pd.DataFrame(
        {
            "unit_id": both["unit_id"],
            "event_type": "consented",
            "occurred_at": both["screened_at"] + pd.Timedelta(minutes=15),
            "consent_method": methods[(both["method"] * len(methods)).astype(int).to_numpy()],
            "consent_version": versions[(both["version"] * len(versions)).astype(int).to_numpy()],
        }
    )


def assignment_times(stream: Stream) -> pd.Series:
    """By unit_id: an hour after screening."""
    times = stream.units.set_index("unit_id")["screened_at"]
    return times + pd.Timedelta(hours=1)


def later_events(
    stream: Stream, spec: ExperimentSpec, assignments: pd.DataFrame, until: pd.Timestamp
) -> pd.DataFrame:
    """What happens to assigned units before ``until``: treatment, deviations, ends."""
    both = assignments[["unit_id", "variant", "assigned_at"]].merge(stream.draws, on="unit_id")
    at = both["assigned_at"]
    arms = list(spec.ratios)
    other = both["variant"].map({arm: arms[(number + 1) % len(arms)] for number, arm in enumerate(arms)})
    received = both["variant"].where(both["follows"] < FOLLOWS_ASSIGNMENT, other)
    base = {"unit_id": both["unit_id"]}
    treatment = pd.DataFrame(
        {
            **base,
            "event_type": "treatment_received",
            "occurred_at": at + pd.Timedelta(days=1),
            "variant_received": received,
        }
    )
    severity = np.where(both["deviation"] < MAJOR, "major", "minor")
    deviation = pd.DataFrame(
        {
            **base,
            "event_type": "deviation",
            "occurred_at": at + pd.Timedelta(days=10),
            "severity": severity,
            "reason": "visit_missed",
        }
    )[(both["deviation"] < MAJOR + MINOR).to_numpy()]
    early = at + pd.to_timedelta(np.floor(5 + both["end_day"] * 80), unit="D")
    kind = np.select(
        [
            both["end"] < LOST,
            both["end"] < LOST + WITHDRAWN,
            both["end"] < LOST + WITHDRAWN + CONSENT_WITHDRAWN,
        ],
        ["lost_to_followup", "withdrawn", "consent_withdrawn"],
        "completed",
    )
    end = pd.DataFrame(
        {
            **base,
            "event_type": kind,
            "occurred_at": early.where(kind != "completed", at + pd.Timedelta(days=OUTCOME_DAYS)),
            "initiated_by": pd.Series(kind).map({"withdrawn": "subject"}),
            "reason": pd.Series("not_stated", index=both.index).where(kind != "completed"),
        }
    )
    events = pd.concat([treatment, deviation, end], ignore_index=True)
    return events[events["occurred_at"] < until].sort_values("occurred_at", kind="stable", ignore_index=True)


def observed_outcomes(
    stream: Stream, spec: ExperimentSpec, assignments: pd.DataFrame, until: pd.Timestamp
) -> pd.DataFrame:
    """Outcomes observed before ``until``; units that were lost or withdrew have none.

    The primary metric is the potential outcome of the arm: the treated arms share one. A survival metric is the day
    of that outcome, censored at day 90; a ratio is accepted contacts by contacts, a proportion the opt-out: both do
    not differ between the arms.
    """
    both = assignments[["unit_id", "variant", "assigned_at"]].merge(stream.draws, on="unit_id")
    both = both[(both["end"] >= LOST + WITHDRAWN + CONSENT_WITHDRAWN).to_numpy()]
    at = both["assigned_at"] + pd.Timedelta(days=OUTCOME_DAYS)
    chance = both["p1"].where(both["variant"] != spec.control, both["p0"])
    frames = []
    responded = both["outcome"] < chance
    contacts = 1 + np.floor(both["contacts"] * MOST_CONTACTS)
    for metric in spec.metrics.all:
        rows = pd.DataFrame(
            {
                "unit_id": both["unit_id"],
                "metric": metric.name,
                "observed_at": at,
                "event": None,
                "denominator": np.nan,
            }
        )
        if metric is spec.metrics.primary:
            rows["value"] = responded.astype(float)
        elif metric.kind == "survival":
            day = 1 + np.floor(both["start_day"] * (OUTCOME_DAYS - 1))
            rows["value"] = day.where(responded, float(OUTCOME_DAYS))
            rows["event"] = responded
        elif metric.kind == "ratio":
            rows["value"] = np.floor(both["accepted"] * (contacts + 1))
            rows["denominator"] = contacts
        else:
            rows["value"] = (both["opt_out"] < OPT_OUT).astype(float)
        frames.append(rows)
    outcomes = pd.concat(frames, ignore_index=True)
    return outcomes[outcomes["observed_at"] < until].sort_values(
        "observed_at", kind="stable", ignore_index=True
    )


def limited(stream: Stream, spec: ExperimentSpec, cohorts: Mapping[str, CohortDefinition]) -> Stream:
    """``stream`` up to the unit with which the planned sample size is reached: screening ends there.

    ``draws`` gains the column ``assigned``: eligible and consenting.
    """
    failed = eligibility(stream.units, *spec.criteria(cohorts))
    fit = (failed.map(len) == 0).to_numpy() & (stream.draws["consent"] < CONSENT).to_numpy()
    full = np.flatnonzero(np.cumsum(fit) >= spec.sample_size.total)
    size = int(full[0]) + 1 if len(full) else len(fit)
    draws = stream.draws.assign(assigned=fit)[:size]
    return Stream(stream.units[:size], draws, stream.true_effect)


def day_of_information(stream: Stream, spec: ExperimentSpec, fraction: float) -> int:
    """Days after the start until ``fraction`` of the information is there, of a stream from :func:`limited`.

    Who is observed does not depend on the arm. The day after the last outcome when it never gets that far.
    """
    observed = stream.draws["assigned"] & (stream.draws["end"] >= LOST + WITHDRAWN + CONSENT_WITHDRAWN)
    times = stream.units.loc[observed.to_numpy(), "screened_at"] + pd.Timedelta(days=OUTCOME_DAYS, hours=1)
    needed = int(np.ceil(fraction * spec.information_target))
    last = times.iloc[min(needed, len(times)) - 1]
    return int((last - pd.Timestamp(spec.dates.start, tz="UTC")) / pd.Timedelta(days=1)) + 1
