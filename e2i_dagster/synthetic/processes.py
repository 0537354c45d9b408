"""The five data-generating processes: who is treated, and what follows, as equations.

Notation. ``S`` disease_severity (0 to 10), ``z = (S - 5) / 2``, ``A`` academic_hcp, ``C`` consultations and
``R`` prescriptions of other drugs before the index date, ``a = (age - mean age of the cohort) / 15``,
``I`` a term of insurance_type, ``t`` years from 2022-01-01 to the index date, ``T`` the treatment
(engagement_score >= 5 at the index date), ``Y`` the outcome (brand prescribed in the 90 days after the index
date), ``sigma`` the logistic function. In every process::

    P(T = 1 | x) = e(x)                            the propensity, between 0.05 and 0.95
    P(Y = 1 | x, T) = sigma(g(x) + h(x) * T)
    g(x) = b + 1.15 z + 0.7 A + 1.0 (C - 0.7) + 1.6 (R - 0.5) - 0.3 a + I  (+ what the process adds)
    CATE(x) = sigma(g(x) + h(x)) - sigma(g(x))     in probability, in closed form

``Y`` is drawn with one uniform number per patient, so both potential outcomes exist and T has no other way
to Y. The coefficients are chosen so that 30 to 50 % of each cohort start treatment and the Bayes AUC of the
four shipped scopes of initiation lies between 0.86 and 0.90: with the default process and seed 0.881
(remibrutinib_csu), 0.883 (fabhalta_pnh), 0.881 (fabhalta_c3g) and 0.880 (kisqali_hr_her2_bc).

What becomes of a treatment that was begun is the same in every process, see :func:`course_probabilities`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from e2i_dagster.errors import InputError
from e2i_dagster.synthetic.streams import Flags, Floats, sigmoid

#: Bands of disease severity, as (name, lower bound excluded, upper bound included).
SEVERITY_BANDS: tuple[tuple[str, float, float], ...] = (
    ("low", -np.inf, 4.0),
    ("medium", 4.0, 7.0),
    ("high", 7.0, np.inf),
)

#: Effect of each type of insurance on the logit of the outcome (``I``).
INSURANCE_EFFECT: Mapping[str, float] = {
    "commercial": 0.2,
    "medicare": 0.0,
    "medicaid": -0.3,
    "uninsured": -0.6,
    "cash": -0.3,
    "other": 0.0,
}


@dataclass(frozen=True)
class Covariates:
    """What treatment and outcome depend on; arrays with one value per patient.

    Attributes:
        severity: 0 to 10. academic: 0 or 1. age: years from the cohort's mean age, divided by 15.
        insurance: term of the insurance type on the logit. consultations, prescriptions: counts before the
        index date. years: from 2022-01-01 to the index date.
    """

    severity: Floats
    academic: Floats
    age: Floats
    insurance: Floats
    consultations: Floats
    prescriptions: Floats
    years: Floats

    @property
    def z(self) -> Floats:
        """Severity in standard deviations from its mean."""
        return (self.severity - 5.0) / 2.0


@dataclass(frozen=True)
class Process:
    """One data-generating process.

    Attributes:
        name: key of the process.
        intercept: ``b`` of the outcome.
        propensity_logit: logit of ``e(x)``.
        effect_logit: ``h(x)``.
        added_logit: what the process adds to ``g(x)``.
        adjustment_set: what an analyst adjusts for, in words.
        selection: P(observed | severity, outcome), or None where everyone is observed.
    """

    name: str
    intercept: float
    propensity_logit: Callable[[Covariates], Floats]
    effect_logit: Callable[[Covariates], Floats]
    added_logit: Callable[[Covariates], Floats]
    adjustment_set: tuple[str, ...]
    selection: Callable[[Floats, Flags], Floats] | None = None

    def propensity(self, x: Covariates) -> Floats:
        """P(T = 1 | x), between 0.05 and 0.95."""
        return sigmoid(self.propensity_logit(x))

    def outcome_probabilities(self, x: Covariates) -> tuple[Floats, Floats]:
        """P(Y = 1 | x, T = 0) and P(Y = 1 | x, T = 1)."""
        base = (
            self.intercept
            + 1.15 * x.z
            + 0.7 * x.academic
            + 1.0 * (x.consultations - 0.7)
            + 1.6 * (x.prescriptions - 0.5)
            - 0.3 * x.age
            + x.insurance
            + self.added_logit(x)
        )
        return sigmoid(base), sigmoid(base + self.effect_logit(x))


def _zero(x: Covariates) -> Floats:
    return np.zeros_like(x.severity)


def _constant_effect(x: Covariates) -> Floats:
    return np.full_like(x.severity, 1.5)


def _confounded_propensity(x: Covariates) -> Floats:
    return -0.75 + 0.7 * x.z + 1.0 * x.academic


def simple_linear() -> Process:
    """No confounding: ``e(x) = 0.45`` for everyone, ``h(x) = 1.5``.

    The difference of the means of the two groups estimates the effect.
    """
    return Process(
        name="simple_linear",
        intercept=-1.45,
        propensity_logit=lambda x: np.full_like(x.severity, np.log(0.45 / 0.55)),
        effect_logit=_constant_effect,
        added_logit=_zero,
        adjustment_set=(),
    )


def confounded() -> Process:
    """Severity and academic centre drive treatment and outcome.

    ``logit e(x) = -0.75 + 0.7 z + 1.0 A``, ``h(x) = 1.5``. Adjust for severity and academic centre (the
    other terms of ``g`` do not drive treatment; adding them only narrows the interval).
    """
    return Process(
        name="confounded",
        intercept=-1.45,
        propensity_logit=_confounded_propensity,
        effect_logit=_constant_effect,
        added_logit=_zero,
        adjustment_set=("disease_severity", "academic_hcp"),
    )


def _effect_by_band(x: Covariates) -> Floats:
    return np.select([x.severity <= 4.0, x.severity <= 7.0], [0.35, 0.9], 4.2)


def _base_by_band(x: Covariates) -> Floats:
    return np.select([x.severity <= 4.0, x.severity <= 7.0], [0.0, 0.0], -2.2)


def heterogeneous() -> Process:
    """As ``confounded``, with an effect by severity band.

    ``h(x) = 0.35`` for S <= 4, ``0.9`` for 4 < S <= 7, ``4.2`` for S > 7; in the highest band ``g`` is lower
    by 2.2 (severe disease is seldom treated without engagement). In probability the mean effect of
    each band is at least three times that of the band below.
    """
    return Process(
        name="heterogeneous",
        intercept=-0.85,
        propensity_logit=_confounded_propensity,
        effect_logit=_effect_by_band,
        added_logit=_base_by_band,
        adjustment_set=("disease_severity", "academic_hcp"),
    )


def time_series() -> Process:
    """The effect decays; outcomes carry trend and season over calendar time.

    ``logit e(x) = -0.7 + 0.6 z + 0.8 A + 0.4 (t - 1.5)``, ``h(x) = 0.6 + 1.8 exp(-t)``; ``g`` has in addition
    ``0.3 (t - 1.5) + 0.4 cos(2 pi t)``. Adjust for severity, academic centre, time and season.
    """
    return Process(
        name="time_series",
        intercept=-1.2,
        propensity_logit=lambda x: -0.7 + 0.6 * x.z + 0.8 * x.academic + 0.4 * (x.years - 1.5),
        effect_logit=lambda x: 0.6 + 1.8 * np.exp(-x.years),
        added_logit=lambda x: 0.3 * (x.years - 1.5) + 0.4 * np.cos(2.0 * np.pi * x.years),
        adjustment_set=("disease_severity", "academic_hcp", "diagnosis_date"),
    )


def selection_probability(severity: Floats, outcome: Flags) -> Floats:
    """P(observed | S, Y) of ``selection_bias``: ``sigma(0.4 + 0.8 z (2 Y - 1))``, between 0.16 and 0.92.

    Severe patients who start treatment and mild ones who do not stay under observation; the others tend to
    be lost.
    """
    z = (severity - 5.0) / 2.0
    return sigmoid(0.4 + 0.8 * z * (2.0 * np.asarray(outcome, dtype=float) - 1.0))


def selection_bias() -> Process:
    """As ``confounded``, and only part of the population is observed.

    ``g`` has in addition ``-0.7 z``. A patient of the population enters the tables with probability
    :func:`selection_probability`. The true ATE is that of the population; weighting each observed patient by
    1 / P(observed | S, Y) and adjusting for severity and academic centre recovers it, adjusting alone does
    not.
    """
    return Process(
        name="selection_bias",
        intercept=-1.45,
        propensity_logit=_confounded_propensity,
        effect_logit=_constant_effect,
        added_logit=lambda x: -0.7 * x.z,
        adjustment_set=("disease_severity", "academic_hcp"),
        selection=selection_probability,
    )


#: What becomes of a treatment, in the order of :func:`course_probabilities`.
COURSES: tuple[str, ...] = ("adherent", "switch", "discontinue")


def course_probabilities(x: Covariates) -> Floats:
    """P(adherent), P(switch) and P(discontinue) of each patient if the drug is filled (n x 3).

    A multinomial logit against ``adherent``, with the notation of the module::

        switch       -1.7 - 0.8 z - 0.8 A + 1.6 (R - 0.5)
        discontinue  -0.4 - 1.3 z - 0.8 A - 0.9 (C - 0.7) - 2.0 I

    Patients with severe disease and those of academic centres stay; who has tried other drugs switches; who has
    seldom been seen and whose insurance pays little stops.
    """
    switch = -1.7 - 0.8 * x.z - 0.8 * x.academic + 1.6 * (x.prescriptions - 0.5)
    stop = -0.4 - 1.3 * x.z - 0.8 * x.academic - 0.9 * (x.consultations - 0.7) - 2.0 * x.insurance
    odds = np.exp(np.column_stack([np.zeros_like(switch), switch, stop]))
    return odds / odds.sum(axis=1, keepdims=True)


#: Every process by its name.
PROCESSES: Mapping[str, Callable[[], Process]] = {
    "simple_linear": simple_linear,
    "confounded": confounded,
    "heterogeneous": heterogeneous,
    "time_series": time_series,
    "selection_bias": selection_bias,
}


def process(name: str) -> Process:
    """The process ``name``.

    Raises:
        InputError: there is no such process; the known ones are listed.
    """
    if name not in PROCESSES:
        raise InputError(f"There is no process {name!r}.", remedy=f"Use one of: {', '.join(PROCESSES)}.")
    return PROCESSES[name]()
