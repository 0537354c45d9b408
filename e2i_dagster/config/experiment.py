"""Experiments as data: the designs under ``config/experiments`` and ``config/experiment_lifecycle.yaml``."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from e2i_dagster.config.allocation import RATIO_TOLERANCE, allocation_shares
from e2i_dagster.config.cohort import CohortDefinition, Criterion
from e2i_dagster.display import Table
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import Place, PolicyModel, did_you_mean, digest_of, read_yaml
from e2i_dagster.policy_files.observed import note_file

Unit = Literal["hcp", "patient", "territory", "account"]
Method = Literal["simple", "block", "stratified", "minimization", "cluster"]
MetricKind = Literal["mean", "proportion", "ratio", "survival"]
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
        kind: ``mean`` of a number, ``proportion`` of units with the event (0 or 1), ``ratio`` of two sums
            (each outcome has a ``denominator``), or ``survival`` (days to the event or to the end of observation,
            with ``event`` 1 or 0).
        direction: where benefit lies; of ``survival``, ``increase`` when the event is wanted.
        baseline: expected mean, share or ratio under control, or share of units with the event (``survival``);
            ``sd``: expected standard deviation of a mean, or of the linearized value of a ratio.
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


class SizeReview(PolicyModel):
    """The sample size looked at again at one look, by a rule that is declared before the start.

    What it finds is a proposal; an amendment takes it up.

    Attributes:
        look: its number, from 1. most: units (events, for a survival metric) that are never exceeded.
        rule: ``blinded_variance`` takes the variance of all units together and no effect; ``promising_zone``
            takes the conditional power, at the last look but one.
        variance_above: the size grows when the variance is more than this multiple of the planned one.
    """

    look: int = Field(ge=1)
    rule: Literal["blinded_variance", "promising_zone"]
    most: int = Field(ge=4)
    variance_above: float = Field(default=1.25, ge=1)


class Looks(PolicyModel):
    """Planned interim looks: rule, information fractions, alpha.

    Attributes:
        always_valid: each look also reports a confidence sequence, an interval that holds however often one
            looks. It informs beside the boundary and stops nothing: two rules would spend alpha twice.
        reestimation: the look at which the sample size is looked at again.
    """

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
    always_valid: bool = False
    reestimation: SizeReview | None = None

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

    @model_validator(mode="after")
    def _size_is_reviewed_where_it_can_be(self) -> Looks:
        review, planned = self.reestimation, len(self.information_fractions)
        if review is None:
            return self
        if self.rule in ("obrien_fleming", "pocock", "haybittle_peto"):
            raise ValueError(
                f"reestimation: the constants of {self.rule} hold for the planned size alone; use a spending rule"
            )
        if review.look >= planned:
            raise ValueError(
                f"reestimation.look is {review.look}; it must come before the last of {planned} looks"
            )
        if review.rule == "promising_zone" and review.look != planned - 1:
            raise ValueError(
                f"reestimation: promising_zone belongs to the last look but one, look {planned - 1}"
            )
        return self


class Minimum(PolicyModel):
    """Data without which a rule does not stop an experiment."""

    minimum_days: int = Field(default=0, ge=0)
    minimum_per_arm: int = Field(default=0, ge=0)


class FutilityRule(Minimum):
    """Stop when the effect of the design would hardly be shown any more.

    ``binding``: once a look says so the experiment enrols no more, makes no further look, and can only become
    stopped_futility; the final estimate takes the rule into account. Otherwise the rule advises.
    """

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


class HeterogeneityPlan(PolicyModel):
    """A causal forest that asks, at the end, whether the effect differs along ``covariates`` (at screening)."""

    covariates: tuple[str, ...] = Field(min_length=1)
    trees: int = Field(default=200, ge=4, multiple_of=4)
    seed: int = Field(default=42, ge=0)


class Economics(PolicyModel):
    """What makes the return of the scorecard: money, in one currency.

    Attributes:
        value_of_effect: value of one more unit of the primary metric per unit treated (for a proportion: of one
            more unit with the event). cost_per_unit: of treating one unit.
    """

    value_of_effect: float = Field(gt=0)
    cost_per_unit: float = Field(gt=0)


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
    multiplicity: Literal["holm", "benjamini_hochberg"] = "holm"
    heterogeneity: HeterogeneityPlan | None = None
    economics: Economics | None = None
    twin: Twin | None = None
    may_overlap_with: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _shares_of_the_arms(cls, data: Any) -> Any:
        """``ratio`` of the whole design, or whole parts at the arms, become the arms' shares."""
        arms = data.get("arms") if isinstance(data, Mapping) else None
        if not isinstance(arms, (list, tuple)) or not all(isinstance(arm, Mapping) for arm in arms):
            return data
        names = [str(arm.get("name")) for arm in arms]
        own = [arm["ratio"] for arm in arms if "ratio" in arm]
        if "ratio" in data:
            if own:
                raise ValueError("ratio: give it once, for the design or at each arm, not both")
            shares = allocation_shares(data["ratio"], names)
        elif len(own) == len(arms) and any(isinstance(part, (int, float)) and part >= 1 for part in own):
            shares = allocation_shares(own, names, field="arms.ratio")
        else:
            return data
        rest = {key: value for key, value in data.items() if key != "ratio"}
        return rest | {
            "arms": [{**arm, "ratio": shares[name]} for arm, name in zip(arms, names, strict=True)]
        }

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
                f"the ratios of the arms sum to {total:g}, not to 1. For 2:1 give 2 and 1, or 0.667 and 0.333"
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
            near = did_you_mean(unknown[0], known)
            raise ValueError(
                f"stopping.harm names unknown metric(s): {', '.join(unknown)}. {near + ' ' if near else ''}"
                f"Known: {', '.join(sorted(known))}"
            )
        if self.metrics.primary.kind == "survival" and self.sample_size.events is None:
            raise ValueError("a survival metric counts information in events: give sample_size.events")
        wrong = next(self._what_the_primary_metric_lacks(), None)
        if wrong:
            raise ValueError(wrong)
        return self

    def _what_the_primary_metric_lacks(self) -> Iterator[str]:
        """Parts of the plan that need more of the primary metric than it says."""
        primary, review = self.metrics.primary, self.looks.reestimation
        needed = "baseline" if primary.kind in ("proportion", "survival") else "sd"
        given = getattr(primary, needed) is not None
        if self.looks.always_valid and primary.kind != "survival" and not given:
            yield f"looks.always_valid fixes its width before the start: give metrics.primary.{needed}"
        if self.heterogeneity is not None and primary.kind not in ("mean", "proportion"):
            yield f"heterogeneity: the forest takes a mean or a proportion, not {primary.kind}"
        if len(set(self.subgroups)) < len(self.subgroups):
            yield "subgroups: one is named twice"
        if review is None:
            return
        if review.most < self.information_target:
            yield f"looks.reestimation.most is {review.most}, below the {self.information_target} planned"
        if review.rule == "promising_zone" and len(self.treatments) > 1:
            yield "looks.reestimation: promising_zone takes one arm beside the control"
        if review.rule == "blinded_variance" and primary.kind not in ("mean", "proportion"):
            yield f"looks.reestimation: blinded_variance takes a mean or a proportion, not {primary.kind}"
        if review.rule == "blinded_variance" and not given:
            yield f"looks.reestimation compares with the planned variance: give metrics.primary.{needed}"

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
            near = did_you_mean(own.cohort, cohorts)
            raise ConfigError(
                f"config/experiments/{self.name}.yaml: eligibility.cohort: there is no cohort {own.cohort!r}.",
                file=f"config/experiments/{self.name}.yaml",
                field="eligibility.cohort",
                value=own.cohort,
                remedy=f"{near + ' ' if near else ''}Known: {', '.join(sorted(cohorts)) or 'none'}.",
            )
        base = cohorts[own.cohort]
        grouped = [
            condition
            for condition in (*base.inclusion_criteria, *base.exclusion_criteria)
            if not isinstance(condition, Criterion)
        ]
        if grouped:
            raise ConfigError(
                f"config/experiments/{self.name}.yaml: eligibility.cohort: {len(grouped)} rule(s) of "
                f"{own.cohort} are groups or criteria on events, which a screening cannot answer.",
                remedy="Leave cohort out and write the criteria of the screening as inclusion_criteria "
                "and exclusion_criteria.",
            )
        if base.derived:
            raise ConfigError(
                f"config/experiments/{self.name}.yaml: eligibility.cohort: the cohort {own.cohort!r} has "
                f"derived fields ({', '.join(base.derived)}), which enrolment does not evaluate.",
                remedy="State the criteria of the experiment itself.",
            )
        return (
            (*(c for c in base.inclusion_criteria if isinstance(c, Criterion)), *own.inclusion_criteria),
            (*(c for c in base.exclusion_criteria if isinstance(c, Criterion)), *own.exclusion_criteria),
        )

    def attribute_names(self, cohorts: Mapping[str, CohortDefinition]) -> dict[str, str]:
        """Attributes of units that the design names -> its first place in the design.

        Raises:
            ConfigError: as :meth:`criteria`.
        """
        rule, forest, covariate = self.randomization, self.heterogeneity, self.metrics.primary.covariate
        inclusion, exclusion = self.criteria(cohorts)
        named = [
            ("eligibility", [criterion.field for criterion in (*inclusion, *exclusion)]),
            ("randomization.strata", rule.strata),
            ("randomization.factors", rule.factors),
            ("randomization.cluster", [rule.cluster] if rule.cluster else []),
            ("subgroups", self.subgroups),
            ("heterogeneity.covariates", forest.covariates if forest else ()),
            ("metrics.primary.covariate", [covariate] if covariate else []),
        ]
        places: dict[str, str] = {}
        for place, names in named:
            for name in names:
                places.setdefault(name, place)
        return places

    @property
    def design_digest(self) -> str:
        """Digest of everything that decides assignment, looks and analysis; wording and twin do not count."""
        wording = {"title", "owner", "hypothesis", "twin"}
        return digest_of(self.model_dump(mode="json", exclude=wording))

    def to_metadata(self) -> dict[str, Any]:
        """The design in one table."""
        primary, futility, review = self.metrics.primary, self.stopping.futility, self.looks.reestimation
        rows = {
            "hypothesis": self.hypothesis.strip(),
            "unit": self.unit,
            "arms": ", ".join(
                f"{arm.name} {arm.ratio:.3g}{' (control)' if arm.control else ''}" for arm in self.arms
            ),
            "primary metric": f"{primary.name} ({primary.kind}, benefit is {primary.direction})",
            "secondary metrics": ", ".join(metric.name for metric in self.metrics.secondary) or "none",
            "randomization": self.randomization.method,
            "looks": f"{self.looks.rule} at {', '.join(f'{t:g}' for t in self.looks.information_fractions)}"
            + (", with a confidence sequence" if self.looks.always_valid else ""),
            "futility": "no rule"
            if futility is None
            else f"conditional power below {futility.conditional_power_below:g}, "
            + ("binding" if futility.binding else "non-binding"),
            "size looked at again": "no"
            if review is None
            else f"look {review.look}, {review.rule}, at most {review.most:,}",
            "subgroups": f"{', '.join(self.subgroups)} ({self.multiplicity})" if self.subgroups else "none",
            "heterogeneity": "no forest"
            if self.heterogeneity is None
            else f"causal forest over {', '.join(self.heterogeneity.covariates)}",
            "alpha": f"{self.looks.alpha:g}, {self.looks.sides}-sided",
            "sample size": f"{self.sample_size.total:,}",
            "dates": f"{self.dates.start} to {self.dates.end}",
            "blinding": self.blinding,
        }
        table = Table(("part", "plan"), rows.items())
        return {"design_digest": self.design_digest, "version": self.version, "design": table}

    @classmethod
    def from_yaml(
        cls, path: Path, check: Callable[[ExperimentSpec], Iterable[Place]] | None = None
    ) -> ExperimentSpec:
        """Read one design.

        Args:
            check: what else is wrong with it, as :func:`.base.read_yaml` takes it.

        Raises:
            ConfigError: names file, line, field, value and what was expected.
        """
        spec = read_yaml(path, cls, check)
        if spec.name not in ("", path.stem):
            remedy = "Make them the same."
            raise ConfigError(
                f"{path}: the file is called {path.stem!r} and the experiment {spec.name!r}. {remedy}",
                file=path, field="name", value=spec.name, remedy=remedy,
            )  # fmt: skip
        try:
            named = cls.model_validate({**spec.model_dump(), "name": path.stem})
        except ValueError:
            raise ConfigError(
                f"{path}: the name of the file becomes the name of the experiment.",
                file=path,
                field="name",
                value=path.stem,
                remedy="Name the file in lower case letters, digits and _.",
            ) from None
        note_file(path, cls, named)
        return named


class Approvals(PolicyModel):
    """Who has to approve a design, and within how many hours."""

    roles: tuple[str, ...] = Field(min_length=1)
    hours: int = Field(gt=0)


class EnrolmentWatch(PolicyModel):
    """From when on slow enrolment is said."""

    units_per_day: float = Field(gt=0)
    warning_after_days: int = Field(gt=0)
    critical_after_days: int = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> EnrolmentWatch:
        if self.critical_after_days <= self.warning_after_days:
            raise ValueError("critical_after_days must be above warning_after_days")
        return self


class SrmWatch(PolicyModel):
    """p-values of the sequential test of the ratios, and the units it needs."""

    minimum_units: int = Field(ge=2)
    warning: float = Field(gt=0, lt=1)
    critical: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> SrmWatch:
        if self.critical >= self.warning:
            raise ValueError(f"critical ({self.critical:g}) must be below warning ({self.warning:g})")
        return self


class BalanceWatch(PolicyModel):
    """How often the balance of the arms is looked at, and what is reported.

    Attributes:
        largest_difference: standardized difference of an attribute between two arms that is reported when it is also
            beyond chance (``p``, adjusted over the attributes).
    """

    every_days: int = Field(gt=0)
    minimum_units: int = Field(ge=2)
    largest_difference: float = Field(gt=0)
    p: float = Field(gt=0, lt=1)


class StaleHours(PolicyModel):
    """Hours without a new record after which the data are stale."""

    low: float = Field(gt=0)
    high: float
    critical: float

    @model_validator(mode="after")
    def _in_order(self) -> StaleHours:
        if not self.low < self.high < self.critical:
            raise ValueError("low, high and critical must increase")
        return self


class FidelityGrades(PolicyModel):
    """Upper bounds of the relative error of each grade; above ``fair`` is poor."""

    excellent: float = Field(gt=0)
    good: float
    fair: float

    @model_validator(mode="after")
    def _in_order(self) -> FidelityGrades:
        if not self.excellent < self.good < self.fair:
            raise ValueError("excellent, good and fair must increase")
        return self


class Monitor(PolicyModel):
    """What the sensor of running experiments watches."""

    enrolment: EnrolmentWatch
    srm: SrmWatch
    balance: BalanceWatch
    stale_hours: StaleHours
    fidelity: FidelityGrades


class AnalysisPolicy(PolicyModel):
    """Data without which a figure is not estimable, and what is noted beside a result.

    Attributes:
        minimum_per_arm: observed units per arm of any comparison (also within a subgroup).
        forest_minimum_per_arm, twin_minimum_per_arm: units per arm of the forest of effects, and of the twin's.
        twin_trees: trees of the twin's forest.
        missing_difference_p, covariate_difference_p: a note is added when the arms differ this clearly in missing
            outcomes, or in the covariate.
    """

    minimum_per_arm: int = Field(ge=2)
    forest_minimum_per_arm: int = Field(ge=30)
    twin_minimum_per_arm: int = Field(ge=30)
    twin_trees: int = Field(ge=4, multiple_of=4)
    missing_difference_p: float = Field(gt=0, lt=1)
    covariate_difference_p: float = Field(gt=0, lt=1)


class ScorecardWeights(PolicyModel):
    """Share of each part in the score; they sum to 1."""

    significance: float = Field(ge=0)
    practical: float = Field(ge=0)
    confidence: float = Field(ge=0)
    roi: float = Field(ge=0)
    alignment: float = Field(ge=0)

    @model_validator(mode="after")
    def _sum_to_one(self) -> ScorecardWeights:
        total = self.significance + self.practical + self.confidence + self.roi + self.alignment
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the weights sum to {total:g}, not to 1")
        return self


class ScorecardGrades(PolicyModel):
    """Least score of each recommendation; below ``consider`` is no go."""

    strong_go: float = Field(gt=0, le=1)
    go: float = Field(gt=0, lt=1)
    consider: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> ScorecardGrades:
        if not self.strong_go > self.go > self.consider:
            raise ValueError("strong_go, go and consider must fall")
        return self


class Scorecard(PolicyModel):
    """How a result is scored for the decision: weights, what earns each part whole, and the grades."""

    weights: ScorecardWeights
    significance_p: float = Field(gt=0, lt=1)
    practical_lift: float = Field(gt=0)
    confidence: float = Field(gt=0, le=1)
    roi: float = Field(gt=0)
    grades: ScorecardGrades


class LifecyclePolicy(PolicyModel):
    """States, approvals, decisions and the thresholds of the analysis, the scorecard and the monitor."""

    transitions: dict[State, tuple[State, ...]]
    approvals: Approvals
    longest_pause_days: int = Field(gt=0)
    decisions: tuple[str, ...] = Field(min_length=1)
    minor_deviations_that_exclude: int = Field(gt=0)
    analysis: AnalysisPolicy
    scorecard: Scorecard
    monitor: Monitor

    @field_validator("transitions")
    @classmethod
    def _every_state(cls, transitions: dict[State, tuple[State, ...]]) -> dict[State, tuple[State, ...]]:
        absent = [state for state in get_args(State) if state not in transitions]
        if absent:
            raise ValueError(
                f"state(s) {', '.join(absent)} are missing; give [] for one that nothing follows"
            )
        return transitions

    @classmethod
    def load(cls, folder: Path) -> LifecyclePolicy:
        """Read ``experiment_lifecycle.yaml`` in ``folder``."""
        return read_yaml(folder / "experiment_lifecycle.yaml", cls)
