"""Experiments as data: the designs under ``config/experiments`` and ``config/experiment_lifecycle.yaml``."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from e2i_dagster.config.base import PolicyModel, digest_of, read_yaml
from e2i_dagster.config.cohort import CohortDefinition, Criterion
from e2i_dagster.errors import ConfigError

Unit = Literal["hcp", "patient", "territory", "account"]
Method = Literal["simple", "block", "stratified", "minimization", "cluster"]
MetricKind = Literal["mean", "proportion", "survival"]
ConsentMethod = Literal["email", "phone", "in_person", "digital"]
State = Literal[
    "draft", "in_review", "approved", "scheduled", "running", "paused", "stopped_success", "stopped_futility",
    "stopped_harm", "stopped_other", "completed", "analyzed", "decided", "rejected", "cancelled", "archived",
]  # fmt: skip
#: States in which an experiment may still meet another one for the same units.
OPEN_STATES: tuple[State, ...] = ("in_review", "approved", "scheduled", "running", "paused")
#: States in which data collection is over.
ENDED_STATES: tuple[State, ...] = (
    "stopped_success", "stopped_futility", "stopped_harm", "stopped_other", "completed", "analyzed", "decided",
    "archived",
)  # fmt: skip

#: Names of arms, metrics and experiments become keys in tables and files.
NAME = r"^[a-z][a-z0-9_]{0,49}$"
#: Ratios may miss 1 by rounding: 0.333 three times.
RATIO_TOLERANCE = 0.001
#: Ratios are fractions of at most this denominator, so that a block can hold them exactly.
_LARGEST_RATIO_SUM = 24


class Arm(PolicyModel):
    """One arm: its share of the units; exactly one arm of an experiment is the control."""

    name: str = Field(pattern=NAME)
    ratio: float = Field(gt=0, lt=1)
    control: bool = False
    description: str = ""


class Metric(PolicyModel):
    """One outcome per unit.

    Attributes:
        kind: ``mean`` of a number, ``proportion`` of units with the event (0 or 1), or ``survival``
            (days to the event or to the end of observation, with ``event`` 1 or 0).
        direction: where benefit lies.
        baseline: expected mean or share under control; ``sd``: expected standard deviation of a mean.
        minimum_effect: smallest difference that would change the decision: of means, of shares, or for
            ``survival`` the hazard ratio.
        covariate: a number known before assignment, used to lower the variance.
    """

    name: str = Field(pattern=NAME)
    kind: MetricKind
    direction: Literal["increase", "decrease"] = "increase"
    description: str = ""
    baseline: float | None = None
    sd: float | None = Field(default=None, gt=0)
    minimum_effect: float | None = None
    covariate: str | None = None

    @property
    def sign(self) -> int:
        """+1 when more is better, -1 when less is."""
        return 1 if self.direction == "increase" else -1


class Metrics(PolicyModel):
    """The primary metric, which decides, and the secondary ones."""

    primary: Metric
    secondary: tuple[Metric, ...] = ()

    @property
    def all(self) -> tuple[Metric, ...]:
        """Primary first."""
        return (self.primary, *self.secondary)

    @model_validator(mode="after")
    def _names_differ(self) -> Metrics:
        names = [metric.name for metric in self.all]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"metric name(s) used twice: {', '.join(twice)}")
        return self


class Consent(PolicyModel):
    """Which consents count. There is no implied consent: a unit without a recorded one is not assigned."""

    required: bool = True
    versions: tuple[str, ...] = ("1.0",)
    methods: tuple[ConsentMethod, ...] = ("email", "phone", "in_person", "digital")

    @model_validator(mode="before")
    @classmethod
    def _never_implied(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "implied" in (data.get("methods") or ()):
            raise ValueError("consent is never implied: list email, phone, in_person or digital")
        return data


class Eligibility(PolicyModel):
    """Who may be assigned: criteria of the cohort language on values known at screening.

    ``cohort`` takes the inclusion and exclusion criteria of that definition; further criteria are added.
    Rules about observed time are left to the cohort: a trial follows its units from assignment on.
    """

    cohort: str | None = None
    inclusion_criteria: tuple[Criterion, ...] = ()
    exclusion_criteria: tuple[Criterion, ...] = ()
    consent: Consent = Field(default_factory=Consent)


class Randomization(PolicyModel):
    """How arms are drawn.

    Attributes:
        strata: attributes of the unit (of the cluster, for ``cluster``) within which arms are balanced.
        block_sizes: sizes of permuted blocks, drawn at random; multiples of the sum of the whole ratios.
        factors: attributes that ``minimization`` balances; ``probability`` of the arm that balances best.
        cluster: attribute that names the unit's cluster (an HCP or a territory).
        seed: lists differ between seeds; without the secret key a seed tells nothing.
    """

    method: Method
    strata: tuple[str, ...] = ()
    block_sizes: tuple[int, ...] = (4, 6)
    factors: tuple[str, ...] = ()
    probability: float = Field(default=0.8, gt=0.5, le=1)
    cluster: str | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits_method(self) -> Randomization:
        wants = {
            "stratified": ("strata", self.strata),
            "minimization": ("factors", self.factors),
            "cluster": ("cluster", self.cluster),
        }
        if self.method in wants and not wants[self.method][1]:
            raise ValueError(f"method {self.method} needs {wants[self.method][0]}")
        if self.strata and self.method not in ("stratified", "cluster"):
            raise ValueError(f"method {self.method} has no strata: use stratified, or leave them out")
        if self.factors and self.method != "minimization":
            raise ValueError(f"method {self.method} has no factors: use minimization, or leave them out")
        if self.cluster and self.method != "cluster":
            raise ValueError(f"method {self.method} ignores cluster: use method cluster, or leave it out")
        if not self.block_sizes or min(self.block_sizes) < 2:
            raise ValueError("block_sizes needs at least one size of 2 or more")
        return self


class Looks(PolicyModel):
    """Planned interim looks: rule, information fractions, alpha."""

    rule: Literal[
        "obrien_fleming",
        "pocock",
        "haybittle_peto",
        "lan_demets_obf",
        "lan_demets_pocock",
        "hwang_shih_decani",
    ] = "lan_demets_obf"
    information_fractions: tuple[float, ...] = (1.0,)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    sides: Literal[1, 2] = 2
    gamma: float | None = None

    @field_validator("information_fractions")
    @classmethod
    def _increasing_to_one(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not fractions or any(not 0 < value <= 1 for value in fractions):
            raise ValueError("information_fractions lie above 0 and at most at 1")
        if any(later <= earlier for earlier, later in pairwise(fractions)):
            raise ValueError("information_fractions must increase")
        if fractions[-1] != 1:
            raise ValueError("the last of information_fractions must be 1: the final analysis is a look")
        return fractions

    @model_validator(mode="after")
    def _gamma_where_needed(self) -> Looks:
        if (self.rule == "hwang_shih_decani") != (self.gamma is not None):
            raise ValueError("gamma belongs to hwang_shih_decani, which needs it")
        return self


class Minimum(PolicyModel):
    """Data without which a rule does not stop an experiment."""

    minimum_days: int = Field(default=0, ge=0)
    minimum_per_arm: int = Field(default=0, ge=0)


class FutilityRule(Minimum):
    """Stop when the effect of the design would hardly be shown any more."""

    conditional_power_below: float = Field(default=0.20, gt=0, lt=1)
    binding: bool = False


class HarmRule(PolicyModel):
    """A metric that got worse by so much, with so small a p-value (one-sided), stops the experiment."""

    metric: str
    relative_worsening: float = Field(ge=0)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    minimum_per_arm: int = Field(default=50, ge=1)


class Stopping(PolicyModel):
    """Efficacy stops for benefit only; harm is its own rule and needs no minimum of days."""

    efficacy: Minimum = Field(default_factory=Minimum)
    futility: FutilityRule | None = None
    harm: tuple[HarmRule, ...] = ()


class SampleSize(PolicyModel):
    """Units (or events, for a survival metric) of the whole experiment.

    Attributes:
        total: units planned over all arms. events: planned events of a survival metric.
        per_day: expected enrolment.
    """

    total: int = Field(ge=4)
    events: int | None = Field(default=None, ge=4)
    power: float = Field(default=0.80, ge=0.5, lt=1)
    per_day: float = Field(default=5.0, gt=0)


class Dates(PolicyModel):
    """First and last day of the experiment, both included."""

    start: dt.date
    end: dt.date

    @model_validator(mode="after")
    def _in_order(self) -> Dates:
        if self.end <= self.start:
            raise ValueError("end must be after start")
        return self


class Twin(PolicyModel):
    """The observational question whose fitted effects simulate the intervention.

    Attributes:
        scope: its training frame gives the rows, its label the outcome.
        feature, at_least: a unit counts as treated when this feature is at least so large; null is untreated.
        confounders: features that treatment and outcome depend on, measured before both.
        size: twins drawn from the cohort.
    """

    scope: str
    feature: str
    at_least: float
    confounders: tuple[str, ...] = Field(min_length=1)
    size: int = Field(default=10_000, ge=100)
    seed: int = Field(default=42, ge=0)


class ExperimentSpec(PolicyModel):
    """One experiment, complete before its first unit is assigned."""

    name: str = Field(default="", pattern=r"^([a-z][a-z0-9_]{0,49})?$")
    title: str = Field(min_length=1)
    hypothesis: str = Field(min_length=10)
    brand: str = Field(min_length=1)
    owner: str = Field(min_length=1)
    version: str = Field(default="1.0.0", pattern=r"^\d+\.\d+\.\d+$")
    unit: Unit
    arms: tuple[Arm, ...] = Field(min_length=2)
    metrics: Metrics
    eligibility: Eligibility = Field(default_factory=Eligibility)
    randomization: Randomization
    looks: Looks = Field(default_factory=Looks)
    stopping: Stopping = Field(default_factory=Stopping)
    sample_size: SampleSize
    dates: Dates
    blinding: Literal["dmc", "open"] = "dmc"
    missing_outcomes: Literal["complete_cases", "refuse", "non_responder", "bounds"] = "complete_cases"
    subgroups: tuple[str, ...] = ()
    twin: Twin | None = None
    may_overlap_with: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentSpec:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError("two arms have the same name")
        if sum(arm.control for arm in self.arms) != 1:
            raise ValueError("exactly one arm has control: true")
        total = sum(arm.ratio for arm in self.arms)
        if abs(total - 1) > RATIO_TOLERANCE + 1e-12:
            raise ValueError(
                f"the ratios of the arms sum to {total:g}, not to 1. For 2:1 give 0.667 and 0.333"
            )
        if self.randomization.method in ("block", "stratified", "cluster"):
            whole = sum(self.whole_ratios)
            wrong = [size for size in self.randomization.block_sizes if size % whole]
            if wrong:
                raise ValueError(
                    f"block size(s) {', '.join(map(str, wrong))} cannot hold the ratios "
                    f"{':'.join(map(str, self.whole_ratios))}: use multiples of {whole}"
                )
        known = {metric.name for metric in self.metrics.all}
        unknown = sorted({rule.metric for rule in self.stopping.harm} - known)
        if unknown:
            raise ValueError(f"stopping.harm names unknown metric(s): {', '.join(unknown)}")
        if self.metrics.primary.kind == "survival" and self.sample_size.events is None:
            raise ValueError("a survival metric counts information in events: give sample_size.events")
        return self

    @property
    def control(self) -> str:
        """Name of the control arm."""
        return next(arm.name for arm in self.arms if arm.control)

    @property
    def treatments(self) -> tuple[str, ...]:
        """Names of the other arms."""
        return tuple(arm.name for arm in self.arms if not arm.control)

    @property
    def ratios(self) -> dict[str, float]:
        """Share of each arm, scaled to sum to exactly 1."""
        total = sum(arm.ratio for arm in self.arms)
        return {arm.name: arm.ratio / total for arm in self.arms}

    @property
    def whole_ratios(self) -> tuple[int, ...]:
        """The ratios as smallest whole numbers (1:1, 2:1, ...).

        Raises:
            ValueError: no whole numbers with a sum of at most 24 come within the tolerance.
        """
        shares = list(self.ratios.values())
        for total in range(len(shares), _LARGEST_RATIO_SUM + 1):
            whole = [round(share * total) for share in shares]
            fits = sum(whole) == total and min(whole) > 0
            if fits and all(
                abs(part / total - share) <= RATIO_TOLERANCE
                for part, share in zip(whole, shares, strict=True)
            ):
                divisor = math.gcd(*whole)
                return tuple(part // divisor for part in whole)
        nearest = ", ".join(str(Fraction(share).limit_denominator(_LARGEST_RATIO_SUM)) for share in shares)
        raise ValueError(
            f"the ratios cannot be put into blocks of whole units (nearest fractions {nearest}); use method simple"
        )

    @property
    def information_target(self) -> int:
        """Units with an outcome (events, for a survival metric) at information fraction 1."""
        return self.sample_size.events or self.sample_size.total

    def criteria(
        self, cohorts: Mapping[str, CohortDefinition]
    ) -> tuple[tuple[Criterion, ...], tuple[Criterion, ...]]:
        """Inclusion and exclusion criteria, those of the cohort first.

        Raises:
            ConfigError: the cohort is not among ``cohorts``, or has rules that a screening cannot answer.
        """
        own = self.eligibility
        if own.cohort is None:
            return own.inclusion_criteria, own.exclusion_criteria
        if own.cohort not in cohorts:
            raise ConfigError(
                f"config/experiments/{self.name}.yaml: eligibility.cohort: there is no cohort {own.cohort!r}. "
                f"Known: {', '.join(sorted(cohorts)) or 'none'}."
            )
        base = cohorts[own.cohort]
        grouped = [
            condition
            for condition in (*base.inclusion_criteria, *base.exclusion_criteria)
            if not isinstance(condition, Criterion)
        ]
        if grouped:
            raise ConfigError(
                f"config/experiments/{self.name}.yaml: eligibility.cohort: {len(grouped)} rule(s) of {own.cohort} are "
                "groups or criteria on events, which a screening cannot answer. Leave cohort out and write the "
                "criteria of the screening as inclusion_criteria and exclusion_criteria."
            )
        other = [
            c.words()
            for c in (*base.inclusion_criteria, *base.exclusion_criteria)
            if not isinstance(c, Criterion)
        ]
        if other or base.derived:
            raise ConfigError(
                f"config/experiments/{self.name}.yaml: eligibility.cohort: the cohort {own.cohort!r} has rules on "
                f"events, groups or derived fields ({', '.join([*other, *base.derived])}), which enrolment does "
                "not evaluate. State the criteria of the experiment itself."
            )
        return (
            (*(c for c in base.inclusion_criteria if isinstance(c, Criterion)), *own.inclusion_criteria),
            (*(c for c in base.exclusion_criteria if isinstance(c, Criterion)), *own.exclusion_criteria),
        )

    @property
    def design_digest(self) -> str:
        """Digest of everything that decides assignment, looks and analysis; wording and twin do not count."""
        wording = {"title", "owner", "hypothesis", "twin"}
        return digest_of(self.model_dump(mode="json", exclude=wording))

    def to_metadata(self) -> dict[str, Any]:
        """The design in one table."""
        primary = self.metrics.primary
        rows = {
            "hypothesis": self.hypothesis.strip(),
            "unit": self.unit,
            "arms": ", ".join(
                f"{arm.name} {arm.ratio:.3g}{' (control)' if arm.control else ''}" for arm in self.arms
            ),
            "primary metric": f"{primary.name} ({primary.kind}, benefit is {primary.direction})",
            "secondary metrics": ", ".join(metric.name for metric in self.metrics.secondary) or "none",
            "randomization": self.randomization.method,
            "looks": f"{self.looks.rule} at {', '.join(f'{t:g}' for t in self.looks.information_fractions)}",
            "alpha": f"{self.looks.alpha:g}, {self.looks.sides}-sided",
            "sample size": f"{self.sample_size.total:,}",
            "dates": f"{self.dates.start} to {self.dates.end}",
            "blinding": self.blinding,
        }
        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        return {"design_digest": self.design_digest, "version": self.version, "design_md": "\n".join(lines)}

    @classmethod
    def from_yaml(cls, path: Path) -> ExperimentSpec:
        """Read one design.

        Raises:
            ConfigError: names file, line, field, value and what was expected.
        """
        spec = read_yaml(path, cls)
        if spec.name not in ("", path.stem):
            raise ConfigError(
                f"{path}: the file is called {path.stem!r} and the experiment {spec.name!r}. Make them the same."
            )
        try:
            return cls.model_validate({**spec.model_dump(), "name": path.stem})
        except ValueError:
            raise ConfigError(
                f"{path}: the name of the file becomes the name of the experiment: lower case letters, digits and _."
            ) from None


class Approvals(PolicyModel):
    """Who has to approve a design, and within how many hours."""

    roles: tuple[str, ...] = Field(min_length=1)
    hours: int = Field(gt=0)


class EnrolmentWatch(PolicyModel):
    """From when on slow enrolment is said."""

    units_per_day: float = Field(gt=0)
    warning_after_days: int = Field(gt=0)
    critical_after_days: int = Field(gt=0)


class SrmWatch(PolicyModel):
    """p-values of the sequential test of the ratios, and the units it needs."""

    minimum_units: int = Field(ge=2)
    warning: float = Field(gt=0, lt=1)
    critical: float = Field(gt=0, lt=1)


class StaleHours(PolicyModel):
    """Hours without a new record after which the data are stale."""

    low: float = Field(gt=0)
    high: float
    critical: float


class FidelityGrades(PolicyModel):
    """Upper bounds of the relative error of each grade; above ``fair`` is poor."""

    excellent: float = Field(gt=0)
    good: float
    fair: float


class Monitor(PolicyModel):
    """What the sensor of running experiments watches."""

    enrolment: EnrolmentWatch
    srm: SrmWatch
    stale_hours: StaleHours
    fidelity: FidelityGrades


class LifecyclePolicy(PolicyModel):
    """States, approvals, decisions and the thresholds of the monitor."""

    transitions: dict[State, tuple[State, ...]]
    approvals: Approvals
    longest_pause_days: int = Field(gt=0)
    decisions: tuple[str, ...] = Field(min_length=1)
    minor_deviations_that_exclude: int = Field(gt=0)
    monitor: Monitor

    @classmethod
    def load(cls, folder: Path) -> LifecyclePolicy:
        """Read ``experiment_lifecycle.yaml`` in ``folder``."""
        return read_yaml(folder / "experiment_lifecycle.yaml", cls)
