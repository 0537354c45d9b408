"""The patients behind the tables: covariates, dates, treatment, outcomes, clinical facts, eligibility.

Everything here is arrays with one value per journey. What the tables show and what is true of it both
come from the same :class:`Population`, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError
from e2i_dagster.synthetic.processes import INSURANCE_EFFECT, Covariates, Process, process
from e2i_dagster.synthetic.streams import (
    DATA_END,
    Flags,
    Floats,
    Ints,
    Streams,
    booleans,
    integers,
    numbers,
    pick,
)

#: Initiation is looked for from the first to the last of these days after the index date.
OUTCOME_WINDOW = (1, 90)
#: The days of the engagement window before the index date.
ENGAGEMENT_WINDOW = 180
#: Events that carry signal lie within this many days before the index date.
HISTORY_DAYS = 170
#: From this engagement score on, a patient counts as treated.
HIGH_ENGAGEMENT = 5.0
#: Least observed days on either side of an index date.
LEAST_HISTORY, LEAST_FOLLOW_UP = 5, 10


@dataclass(frozen=True)
class CohortPopulation:
    """How the patients of one cohort are drawn.

    Attributes:
        key: name of the cohort definition. brand: brand of its journeys. line: index of the group of
        professionals who treat it. lookback, followup: days that the definition requires.
        mean_age, sd_age: of patients of full age. minors: share below 18 years.
        female: share of women. codes: diagnosis codes that qualify, with their weights.
        decoys: codes that do not. qualifying: share of patients with a qualifying code.
        titles: words for codes, by prefix.
    """

    key: str
    brand: str
    line: int
    lookback: int
    followup: int
    mean_age: float
    sd_age: float
    minors: float
    female: float
    codes: tuple[tuple[str, float], ...]
    decoys: tuple[tuple[str, float], ...]
    qualifying: float


#: The populations, in the order in which patients are dealt out.
COHORTS: Mapping[str, CohortPopulation] = MappingProxyType(
    {
        cohort.key: cohort
        for cohort in (
            CohortPopulation(
                "remibrutinib_csu", "Remibrutinib", 0, 180, 90, 43.0, 14.0, 0.03, 0.65,
                (("L50.1", 0.5), ("L50.8", 0.2), ("L50.9", 0.3)),
                (("L50.0", 0.4), ("L50.2", 0.2), ("L50.6", 0.2), ("L20.9", 0.2)), 0.86,
            ),
            CohortPopulation(
                "fabhalta_pnh", "Fabhalta", 1, 365, 180, 47.0, 15.0, 0.03, 0.52,
                (("D59.5", 1.0),),
                (("D59.1", 0.4), ("D59.3", 0.3), ("D61.9", 0.3)), 0.91,
            ),
            CohortPopulation(
                "fabhalta_c3g", "Fabhalta", 1, 365, 180, 40.0, 15.0, 0.04, 0.48,
                (("N03.6", 0.15), ("N04.6", 0.15), ("N05.6", 0.2), ("N03.A", 0.2), ("N04.A", 0.1), ("N05.A", 0.2)),
                (("N02.8", 0.4), ("N05.9", 0.3), ("N04.2", 0.3)), 0.87,
            ),
            CohortPopulation(
                "kisqali_hr_her2_bc", "Kisqali", 2, 365, 180, 59.0, 11.0, 0.015, 0.99,
                (("C50.911", 0.3), ("C50.912", 0.3), ("C50.411", 0.2), ("C50.412", 0.1), ("C50.9", 0.1)),
                (("D05.11", 0.5), ("D24.1", 0.3), ("C79.81", 0.2)), 0.93,
            ),
        )
    }
)  # fmt: skip

#: Insurance types with their shares.
INSURANCE: tuple[tuple[str, float], ...] = (
    ("commercial", 0.55),
    ("medicare", 0.20),
    ("medicaid", 0.15),
    ("uninsured", 0.04),
    ("cash", 0.02),
    ("other", 0.04),
)


@dataclass(frozen=True)
class Population:
    """The observed journeys and, for every process, what is true of them.

    Arrays have one value per journey; days count from 2022-01-01 (``synthetic_streams.FIRST_DAY``).

    Attributes:
        process: the process that made them. cohorts: the populations drawn from. cohort: index into it.
        covariates: what treatment and outcome depend on.
        age: years; insurance: index into ``INSURANCE``.
        index, first_seen, last_seen: days of diagnosis, first and last observation.
        propensity, p0, p1: true probabilities of treatment and of the two potential outcomes.
        treated, y0, y1: the draws. days_to_treatment: days to initiation, used where ``outcome``.
        selection: probability of being observed (1 where the process observes everyone).
        ate: mean of ``p1 - p0`` over the population, observed or not.
        population_size: people over whom ``ate`` is the mean.
        population_prevalence: mean of the outcome's probability over them, as treated.
        clinical: columns of patient_clinical that are clinical measures. female: sex.
        code: text array of diagnosis codes.
        full_rules: meets every rule but completed follow-up; eligible: meets every rule.
    """

    process: Process
    cohorts: tuple[CohortPopulation, ...]
    cohort: Ints
    covariates: Covariates
    age: Ints
    insurance: Ints
    index: Ints
    first_seen: Ints
    last_seen: Ints
    propensity: Floats
    p0: Floats
    p1: Floats
    treated: Flags
    y0: Flags
    y1: Flags
    days_to_treatment: Ints
    selection: Floats
    ate: float
    population_size: int
    population_prevalence: float
    clinical: Mapping[str, Any]
    female: Flags
    code: Any
    full_rules: Flags
    eligible: Flags

    @property
    def size(self) -> int:
        """Number of journeys."""
        return len(self.cohort)

    @property
    def outcome(self) -> Flags:
        """The outcome that is observed: the potential outcome under the treatment received."""
        return np.where(self.treated, self.y1, self.y0)

    @property
    def probability(self) -> Floats:
        """True probability of the outcome given everything that precedes it and being observed.

        With selection, Bayes' rule: ``p s1 / (p s1 + (1 - p) s0)`` with ``s`` the probability of being
        observed under either outcome.
        """
        p = np.where(self.treated, self.p1, self.p0)
        if self.process.selection is None:
            return p
        yes = np.ones(self.size, dtype=bool)
        s1 = self.process.selection(self.covariates.severity, yes)
        s0 = self.process.selection(self.covariates.severity, ~yes)
        return p * s1 / (p * s1 + (1.0 - p) * s0)

    def of_cohort(self, attribute: str) -> Any:
        """The value of a cohort's attribute for every journey."""
        return np.asarray([getattr(cohort, attribute) for cohort in self.cohorts])[self.cohort]


def cohort_populations(cohorts: Sequence[str] | None) -> tuple[CohortPopulation, ...]:
    """The populations named, or all four.

    Raises:
        InputError: a name is unknown or none is given.
    """
    names = tuple(COHORTS) if cohorts is None else tuple(cohorts)
    unknown = [name for name in names if name not in COHORTS]
    if unknown or not names or len(set(names)) != len(names):
        raise InputError(
            f"cohorts={list(names)!r}: expected different names out of {', '.join(COHORTS)}"
            + (f"; unknown: {', '.join(map(repr, unknown))}." if unknown else "."),
            field="cohorts",
            value=list(names),
        )
    return tuple(COHORTS[name] for name in names)


def draw_population(dgp: str, n_patients: int, seed: int, cohorts: Sequence[str] | None = None) -> Population:
    """Draw ``n_patients`` observed journeys of the process ``dgp``, dealt out evenly over ``cohorts``.

    Raises:
        InputError: unknown process or cohort, fewer patients than cohorts, or a negative seed.
    """
    chosen = cohort_populations(cohorts)
    rule = process(dgp)
    if n_patients < len(chosen):
        raise InputError(
            f"n_patients={n_patients}: expected at least {len(chosen)}, one for each cohort drawn from.",
            field="n_patients",
            value=n_patients,
        )
    if seed < 0:
        raise InputError(f"seed={seed}: expected an integer of 0 or more.", field="seed", value=seed)
    streams = Streams(seed)
    if rule.selection is None:
        return _with_clinical(_candidates(rule, chosen, n_patients, streams), streams)
    # Enough candidates that every cohort fills its share of the observed patients: twice the inverse of the
    # selection rate, doubled until it suffices (tiny sets only).
    candidates_wanted = 4 * n_patients + 64
    while True:
        pool = _candidates(rule, chosen, candidates_wanted, streams)
        observed = streams.happens("patient.observed", pool.selection, pool.size)
        wanted = np.arange(n_patients) % len(chosen)
        rows = np.full(n_patients, -1)
        for number in range(len(chosen)):
            of_cohort = np.flatnonzero(observed & (pool.cohort == number))
            places = np.flatnonzero(wanted == number)
            found = min(len(of_cohort), len(places))
            rows[places[:found]] = of_cohort[:found]
        if (rows >= 0).all():
            return _with_clinical(_take(pool, rows), streams)
        candidates_wanted *= 2


def _take(pool: Population, rows: Ints) -> Population:
    arrays = {
        name: value[rows]
        for name, value in vars(pool).items()
        if isinstance(value, np.ndarray) and len(value) == pool.size
    }
    covariates = Covariates(**{name: value[rows] for name, value in vars(pool.covariates).items()})
    return replace(pool, covariates=covariates, **arrays)


def _candidates(
    rule: Process, chosen: tuple[CohortPopulation, ...], size: int, streams: Streams
) -> Population:
    cohort = np.arange(size) % len(chosen)

    def of_cohort(attribute: str) -> Any:
        return np.asarray([getattr(item, attribute) for item in chosen])[cohort]

    severity = np.round(np.clip(5.0 + 2.0 * streams.normal("patient.severity", size), 0.0, 10.0), 2)
    academic = streams.happens("patient.academic", 0.3, size).astype(float)
    adult = np.clip(
        np.round(of_cohort("mean_age") + of_cohort("sd_age") * streams.normal("patient.age", size)), 18, 89
    )
    minor = streams.happens("patient.minor", of_cohort("minors"), size)
    age = np.where(minor, streams.integer("patient.minor_age", 12, 17, size), adult).astype(np.int64)
    insurance = streams.choice("patient.insurance", [share for _, share in INSURANCE], size)
    index, first_seen, last_seen = _dates(of_cohort("lookback"), of_cohort("followup"), size, streams)
    covariates = Covariates(
        severity=severity,
        academic=academic,
        age=(age - of_cohort("mean_age")) / 15.0,
        insurance=np.asarray([INSURANCE_EFFECT[name] for name, _ in INSURANCE])[insurance],
        consultations=streams.choice("patient.consultations", [0.55, 0.25, 0.15, 0.05], size).astype(float),
        prescriptions=streams.choice("patient.prescriptions", [0.62, 0.26, 0.12], size).astype(float),
        years=index / 365.25,
    )
    propensity = rule.propensity(covariates)
    p0, p1 = rule.outcome_probabilities(covariates)
    treated = streams.happens(f"law.{rule.name}.treated", propensity, size)
    draw = streams.uniform(f"law.{rule.name}.outcome", size)
    y0, y1 = draw < p0, draw < p1
    outcome = np.where(treated, y1, y0)
    latest = np.minimum(last_seen - index, OUTCOME_WINDOW[1] - 1)
    days = 7 + np.floor(streams.uniform("patient.days_to_treatment", size) ** 1.3 * (latest - 6))
    return Population(
        process=rule,
        cohorts=chosen,
        cohort=cohort,
        covariates=covariates,
        age=age,
        insurance=insurance,
        index=index,
        first_seen=first_seen,
        last_seen=last_seen,
        propensity=propensity,
        p0=p0,
        p1=p1,
        treated=treated,
        y0=y0,
        y1=y1,
        days_to_treatment=days.astype(np.int64),
        selection=np.ones(size) if rule.selection is None else rule.selection(severity, outcome),
        ate=float(np.mean(p1 - p0)),
        population_size=size,
        population_prevalence=float(np.mean(np.where(treated, p1, p0))),
        clinical={},
        female=streams.happens("patient.female", of_cohort("female"), size),
        code=None,
        full_rules=np.zeros(size, dtype=bool),
        eligible=np.zeros(size, dtype=bool),
    )


def _dates(lookback: Ints, followup: Ints, size: int, streams: Streams) -> tuple[Ints, Ints, Ints]:
    """Days of diagnosis, first and last observation.

    13 % have a recent diagnosis whose follow-up is still open at the end of the data, 7 % of the others
    are lost before their follow-up is complete, 10 % of all have too short a history.
    """
    recent = streams.happens("patient.recent", 0.13, size)
    short = streams.happens("patient.short_history", 0.10, size)
    earliest = np.where(recent, DATA_END - followup + 1, np.where(short, LEAST_HISTORY, lookback))
    latest = np.where(recent, DATA_END - LEAST_FOLLOW_UP, DATA_END - followup)
    # Short histories come mostly at the beginning of the data, and so give its first weeks outcomes.
    draw = streams.uniform("patient.index", size)
    draw = np.where(short & ~recent, draw**2, draw)
    index = (earliest + np.floor(draw * (latest - earliest + 1))).astype(np.int64)
    seen_before = np.where(
        short,
        streams.integer("patient.short_days", LEAST_HISTORY, np.minimum(lookback - 1, index), size),
        streams.integer("patient.history_days", lookback, np.minimum(lookback + 400, index), size),
    )
    lost = ~recent & streams.happens("patient.lost", 0.07 / 0.87, size)
    ongoing = recent | streams.happens("patient.ongoing", 0.45, size)
    complete = np.where(
        ongoing,
        DATA_END,
        streams.integer(
            "patient.followed", index + followup, np.minimum(index + followup + 540, DATA_END), size
        ),
    )
    dropped = index + streams.integer("patient.lost_day", LEAST_FOLLOW_UP, followup - 1, size)
    return index, index - seen_before, np.where(lost, dropped, complete)


def age_unknown(size: int, streams: Streams) -> Flags:
    """Journeys whose age is not known to the tables."""
    return streams.happens("patient.age.null", 0.01, size)


def _with_clinical(people: Population, streams: Streams) -> Population:
    """``people`` with clinical measures, diagnosis codes and what the four definitions say of them."""
    size = people.size
    clinical: dict[str, Any] = {}
    history = people.index - people.first_seen
    passes = (
        (people.age >= 18) & ~age_unknown(people.size, streams) & (history >= people.of_cohort("lookback"))
    )
    code = np.zeros(size, dtype=np.int64)
    options: list[str] = []
    for number, cohort in enumerate(people.cohorts):
        qualifying = streams.happens("clinical.qualifying", cohort.qualifying, size)
        good = streams.choice("clinical.code", [weight for _, weight in cohort.codes], size)
        other = streams.choice("clinical.decoy", [weight for _, weight in cohort.decoys], size)
        mine = people.cohort == number
        position = len(options) + np.where(qualifying, good, len(cohort.codes) + other)
        code = np.where(mine, position, code)
        passes &= ~mine | qualifying
        options += [name for name, _ in cohort.codes + cohort.decoys]
    draws = _Clinical(people, streams, clinical, passes)

    _urticaria(draws)
    _complement(draws)
    _breast_cancer(draws)
    complete = people.last_seen - people.index >= people.of_cohort("followup")
    return replace(
        people,
        clinical=MappingProxyType(clinical),
        code=pick(options, code),
        full_rules=draws.passes,
        eligible=draws.passes & complete,
    )


def _urticaria(draws: _Clinical) -> None:
    people, csu = draws.people, draws.of("remibrutinib_csu")
    uas7 = np.clip(np.round(23.0 + 3.0 * people.covariates.z + 6.5 * draws.normal("uas7")), 0, 42)
    draws.measure("urticaria_severity_uas7", csu, uas7, 0, uas7 >= 16)
    draws.flag("prior_antihistamine_therapy", csu, 0.88, 0.02, wanted=True)
    draws.flag("active_autoimmune_condition", csu, 0.04, 0.02)
    draws.flag("concurrent_immunosuppressive", csu, 0.04, 0.02)
    draws.flag("pregnancy_status", csu, np.where(people.female & (people.age < 46), 0.06, 0.0), 0.02)
    draws.flag("severe_hepatic_impairment", csu | draws.of("kisqali_hr_her2_bc"), 0.02, 0.02)


def _complement(draws: _Clinical) -> None:
    """Paroxysmal nocturnal haemoglobinuria and C3 glomerulopathy, which share safety rules."""
    z, pnh, c3g = draws.people.covariates.z, draws.of("fabhalta_pnh"), draws.of("fabhalta_c3g")
    ldh = np.clip(np.round(np.exp(0.9 + 0.2 * z + 0.45 * draws.normal("ldh")), 2), 0.5, 15.0)
    draws.measure("ldh_ratio", pnh, ldh, 2, ldh >= 1.5)
    status = draws.choice("complement", [0.62, 0.30, 0.08])
    draws.category("complement_inhibitor_status", pnh, ("current", "prior", "never"), status, status < 2)
    draws.flag("active_serious_infection", pnh | c3g, 0.05, 0.02)
    draws.flag("meningococcal_vaccination_current", pnh | c3g, 0.90, 0.03, wanted=True)
    draws.flag("bone_marrow_transplant_recent", pnh, 0.03, 0.02)
    draws.flag("severe_renal_impairment", pnh, 0.04, 0.02)
    protein = np.clip(np.round(np.exp(0.55 + 0.2 * z + 0.5 * draws.normal("proteinuria")), 2), 0.05, 20.0)
    draws.measure("proteinuria_g_day", c3g, protein, 2, protein >= 1.0)
    egfr = np.clip(np.round(75.0 - 5.0 * z + 24.0 * draws.normal("egfr")), 6, 140)
    draws.measure("egfr", c3g, egfr, 0, egfr >= 30)
    draws.flag("dialysis_dependent", c3g, np.where(egfr < 15, 0.6, 0.04), 0.02)


def _breast_cancer(draws: _Clinical) -> None:
    breast = draws.of("kisqali_hr_her2_bc")
    receptor = ("positive", "negative", "equivocal", "unknown")
    hormone = draws.choice("hr", [0.91, 0.07, 0.01, 0.01])
    draws.category("hr_status", breast, receptor, hormone, hormone == 0)
    growth = draws.choice("her2", [0.06, 0.91, 0.02, 0.01])
    draws.category("her2_status", breast, receptor, growth, growth == 1)
    stages = ("metastatic", "advanced", "stage_iv", "locally_advanced", "stage_iii", "stage_ii", "stage_i")
    stage = draws.choice("stage", [0.40, 0.20, 0.17, 0.12, 0.05, 0.04, 0.02])
    draws.category("disease_stage", breast, stages, stage, stage < 4)
    latent = (0.35 * draws.people.covariates.z + draws.normal("ecog")) / 1.06
    ecog = np.searchsorted([-0.1, 1.3, 1.9, 2.4], latent)
    draws.count("ecog_performance_status", breast, ecog, ecog <= 1)
    draws.flag("prior_cdk46_inhibitor", breast, 0.05, 0.02)
    draws.flag("qtc_prolongation", breast, 0.03, 0.02)
    draws.flag("active_cns_metastases", breast, 0.04, 0.02)
    draws.flag("concurrent_strong_cyp3a_inhibitor", breast, 0.03, 0.02)


class _Clinical:
    """Collects clinical columns, and which journeys meet the rules that rest on them.

    An unknown value of an inclusion rule removes the patient; an unknown safety value keeps the patient,
    except of the meningococcal vaccination, which the Fabhalta definitions require to be known.
    """

    def __init__(self, people: Population, streams: Streams, columns: dict[str, Any], passes: Flags) -> None:
        self.people, self.streams, self.columns, self.passes = people, streams, columns, passes

    def of(self, cohort: str) -> Flags:
        """Journeys of the cohort ``cohort``; none if it is not drawn from."""
        names = [item.key for item in self.people.cohorts]
        return self.people.cohort == (names.index(cohort) if cohort in names else -1)

    def normal(self, name: str) -> Floats:
        """Standard normal numbers for a clinical measure."""
        return self.streams.normal(f"clinical.{name}", self.people.size)

    def choice(self, name: str, weights: Sequence[float]) -> Ints:
        """Positions drawn with ``weights`` for a clinical category."""
        return self.streams.choice(f"clinical.{name}", weights, self.people.size)

    def _unknown(self, name: str, applies: Flags, share: float) -> Flags:
        return applies & self.streams.happens(f"clinical.{name}.unknown", share, self.people.size)

    def measure(self, name: str, applies: Flags, values: Any, decimals: int, qualifies: Flags) -> None:
        """A measured value that is unknown in 2 % and must qualify."""
        unknown = self._unknown(name, applies, 0.02)
        self.columns[name] = numbers(values, decimals, ~applies | unknown)
        self.passes = self.passes & (~applies | (qualifies & ~unknown))

    def count(self, name: str, applies: Flags, values: Ints, qualifies: Flags) -> None:
        """A whole number that is unknown in 2 % and must qualify."""
        unknown = self._unknown(name, applies, 0.02)
        self.columns[name] = integers(values, ~applies | unknown)
        self.passes = self.passes & (~applies | (qualifies & ~unknown))

    def category(
        self, name: str, applies: Flags, options: Sequence[str], values: Ints, qualifies: Flags
    ) -> None:
        """A category that is unknown in 1 % and must qualify."""
        unknown = self._unknown(name, applies, 0.01)
        self.columns[name] = pick(options, values, ~applies | unknown)
        self.passes = self.passes & (~applies | (qualifies & ~unknown))

    def flag(
        self, name: str, applies: Flags, share: Floats | float, unknown_share: float, *, wanted: bool = False
    ) -> None:
        """A yes-or-no fact: ``wanted`` ones must be known to be true, the others must not be true."""
        value = self.streams.happens(f"clinical.{name}", share, self.people.size)
        unknown = self._unknown(name, applies, unknown_share)
        self.columns[name] = booleans(value & applies & ~unknown, ~applies | unknown)
        met = (value & ~unknown) if wanted else (~value | unknown)
        self.passes = self.passes & (~applies | met)


def bayes_auc(probability: Floats) -> float:
    """The expected ROC-AUC of the true probabilities as a score of their own outcomes.

    With ``p`` sorted ascending: ``sum over pairs of P(case, control) * [p_case > p_control]`` (ties count
    half) divided by ``sum of P(case) * sum of P(control)`` without pairs of a patient with itself.
    """
    values = pd.Series(probability).value_counts().sort_index()
    p, count = values.index.to_numpy(dtype=float), values.to_numpy(dtype=float)
    cases, controls = p * count, (1.0 - p) * count
    below = np.cumsum(controls) - controls
    same = cases * controls - p * (1.0 - p) * count
    concordant = float(np.sum(cases * below) + 0.5 * np.sum(same))
    pairs = float(cases.sum() * controls.sum() - np.sum(p * (1.0 - p) * count))
    return concordant / pairs


__all__ = ["COHORTS", "Population", "bayes_auc", "cohort_populations", "draw_population"]
