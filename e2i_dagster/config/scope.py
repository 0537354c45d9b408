"""Scopes: what is to be predicted for which cohort, and what a model must reach. Files: ``config/scopes``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from e2i_dagster.config.names import KnownNames, scope_problems
from e2i_dagster.config.subgroups import ScopeEvaluation
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import PolicyModel, did_you_mean, read_yaml
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.policy_files.observed import note_file

ProblemType = Literal[
    "binary_classification", "multiclass_classification", "regression", "survival", "causal_inference"
]
Split = Literal["train", "validation", "test", "holdout"]
Estimate = Literal["point", "lower", "upper"]

#: Labelled patients that a problem needs at least. The prior platform's values.
MINIMUM_LABELLED: Mapping[str, int] = {
    "binary_classification": 500,
    "multiclass_classification": 1_000,
    "regression": 300,
    "survival": 500,  # as for an event without its time
    "causal_inference": 1_000,
}

#: Tables that an outcome can be read from, with the column that says what kind of event a row is.
OUTCOME_TABLES: Mapping[str, str] = {
    "treatment_events": "event_type",
    "engagement_events": "engagement_type",
    "outcome_events": "outcome_type",
}

_METRICS = {
    "min_auc": ("roc_auc", "at_least"),
    "min_pr_auc": ("pr_auc", "at_least"),
    "min_precision": ("precision", "at_least"),
    "min_recall": ("recall", "at_least"),
    "min_f1": ("f1", "at_least"),
    "min_accuracy": ("accuracy", "at_least"),
    "max_brier": ("brier", "at_most"),
    "min_c_index": ("c_index", "at_least"),
    "min_r2": ("r2", "at_least"),
    "max_rmse": ("rmse", "at_most"),
    "max_mae": ("mae", "at_most"),
    "max_mape": ("mape", "at_most"),
}
#: Read as text, because a file that is wrong says it, too.
_SAYS_DEFAULT = re.compile(r"""^["']?default["']?:\s*(true|yes|on)\b""", re.IGNORECASE | re.MULTILINE)
_NUMBER_CRITERIA = frozenset({"min_r2", "max_rmse", "max_mae", "max_mape"})
#: Success criteria that are measured of each kind of model.
CRITERIA: Mapping[str, frozenset[str]] = {
    "binary_classification": frozenset(_METRICS) - _NUMBER_CRITERIA - {"min_c_index"},
    "multiclass_classification": frozenset({"min_auc", "min_f1", "min_accuracy", "max_brier"}),
    "regression": _NUMBER_CRITERIA,
    "survival": frozenset({"min_c_index", "min_auc", "max_brier"}),
}

#: What kind of question each kind of outcome asks.
PROBLEM_OF_OUTCOME: Mapping[str, ProblemType] = {
    "event": "binary_classification",
    "choice": "multiclass_classification",
    "sum": "regression",
    "count": "regression",
    "days_covered": "regression",
    "time_to": "survival",
}
#: Outcomes that are measured over the whole window.
MEASURED_OUTCOMES = ("sum", "count", "days_covered")


class Threshold(PolicyModel):
    """A bound on a metric: of which split, and on the point estimate or an end of its interval."""

    value: float
    split: Split = "test"
    estimate: Estimate = "point"


class SuccessRule(PolicyModel):
    """One bound as a model is judged by it: ``metric`` of ``split`` at least or at most ``value``."""

    name: str
    metric: str
    direction: Literal["at_least", "at_most"]
    value: float
    split: Split
    estimate: Estimate

    def words(self) -> str:
        which = "" if self.estimate == "point" else f" ({self.estimate} end of the interval)"
        return f"{self.metric} on {self.split}{which} {self.direction.replace('_', ' ')} {self.value:g}"


class CalibrationRule(PolicyModel):
    """Acceptable slope and intercept of the calibration line on ``split``.

    Chance alone fails no model: a figure misses only when its whole interval lies outside its limits.
    """

    slope: tuple[float, float] = (0.8, 1.25)
    intercept: tuple[float, float] = (-0.25, 0.25)
    split: Split = "test"

    @model_validator(mode="after")
    def _hold_the_perfect_line(self) -> CalibrationRule:
        for name, (low, high), perfect in (("slope", self.slope, 1), ("intercept", self.intercept, 0)):
            if not low <= perfect <= high:
                raise ValueError(
                    f"{name} [{low:g}, {high:g}] must hold {perfect}, that of a calibrated model"
                )
        return self

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Metric -> lowest and highest acceptable value."""
        return {"calibration_slope": self.slope, "calibration_intercept": self.intercept}

    def words(self, metric: str) -> str:
        low, high = self.limits[metric]
        return f"{metric} on {self.split} between {low:g} and {high:g}"


class SuccessCriteria(PolicyModel):
    """What a model must reach to be registered. A bound is a number (judged on the test split's point
    estimate) or ``{value, split, estimate}``.

    ``min_auc``, ``min_f1`` and ``max_brier`` of several classes: ROC-AUC and F1 averaged over the classes, each against
    the rest; Brier score summed over them. Of a time to an event: of the risk at the horizon.

    ``calibration``: of every model of probabilities, class by class where there are several; other limits may be
    named, and it cannot be left out.

    ``beats_baseline``: the model must beat every baseline (prevalence, one variable, logistic) on test.

    ``subgroup_floor``: of the ROC-AUC of every subgroup on test (of a time the C-index, of a number R²); missed when
    the whole interval of one lies below it. None takes that of the policy (``optuna_config.yaml``), which may be none
    and is not one of R².
    """

    min_auc: Threshold | None = None
    min_pr_auc: Threshold | None = None
    min_precision: Threshold | None = None
    min_recall: Threshold | None = None
    min_f1: Threshold | None = None
    min_accuracy: Threshold | None = None
    max_brier: Threshold | None = None
    min_c_index: Threshold | None = None
    min_r2: Threshold | None = None
    max_rmse: Threshold | None = None
    max_mae: Threshold | None = None
    max_mape: Threshold | None = None
    calibration: CalibrationRule = CalibrationRule()
    beats_baseline: bool = False
    subgroup_floor: float | None = Field(default=None, ge=0, le=1)

    @field_validator(*_METRICS, mode="before")
    @classmethod
    def _number_is_a_bound_on_test(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @property
    def rules(self) -> tuple[SuccessRule, ...]:
        """The bounds that are set, each with its metric and direction (``beats_baseline`` is apart)."""
        found = []
        for name, (metric, direction) in _METRICS.items():
            bound: Threshold | None = getattr(self, name)
            if bound is not None:
                found.append(
                    SuccessRule(
                        name=name,
                        metric=metric,
                        direction=direction,  # pyright: ignore[reportArgumentType]
                        value=bound.value,
                        split=bound.split,
                        estimate=bound.estimate,
                    )
                )
        return tuple(found)


class EventRule(PolicyModel):
    """Which rows of an event table count. A row counts when all given properties match.

    Attributes:
        table: ``treatment_events``, ``engagement_events`` or ``outcome_events``.
        event_type: accepted values of the table's type column.
        brand: accepted value of the column ``brand``; None accepts every brand.
    """

    table: str
    event_type: tuple[str, ...] = Field(min_length=1)
    brand: str | None = None

    @field_validator("table")
    @classmethod
    def _table_has_outcomes(cls, table: str) -> str:
        if table not in OUTCOME_TABLES:
            raise ValueError(f"outcomes are read from {', '.join(OUTCOME_TABLES)}")
        return table

    @field_validator("event_type", mode="before")
    @classmethod
    def _one_type_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def words(self) -> str:
        kinds = " or ".join(self.event_type) or "rows"
        brand = f" of {self.brand}" if self.brand else ""
        return f"{kinds}{brand} ({self.table})"


class ClassRule(EventRule):
    """The rows that make a patient one of the class ``name``."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")


class MeasureRule(EventRule):
    """A number in the rows of an event table.

    Attributes:
        event_type: accepted values of the table's type column; none given accepts every row.
        column: of the table, numeric, such as ``cost`` or ``duration_days``.
    """

    event_type: tuple[str, ...] = ()
    column: str

    @model_validator(mode="after")
    def _column_is_a_number(self) -> MeasureRule:
        from sqlalchemy import Integer, Numeric

        from e2i_dagster.tables import raw_table

        numeric = [c.name for c in raw_table(self.table).columns if isinstance(c.type, (Integer, Numeric))]
        if self.column not in numeric:
            near = did_you_mean(self.column, numeric)
            raise ValueError(
                f"column {self.column!r} is no number of {self.table}. {near + ' ' if near else ''}"
                f"Numbers: {', '.join(numeric)}"
            )
        return self

    def words(self) -> str:
        return f"{self.column} of {super().words()}"


class OutcomeRule(PolicyModel):
    """How a patient's label is found: exactly one of ``event``, ``choice``, ``sum``, ``count``, ``days_covered``,
    ``time_to``.

    Attributes:
        event: the rows that make the label 1 (binary classification).
        choice: classes with their rows; the label is the class of the first such row in the window, on one day the
            class that is named first (multiclass classification).
        otherwise: of a ``choice``, the class of patients without any of its rows in the window.
        sum: a column added up over the rows in the window, such as cost (regression).
        count: number of rows in the window (regression).
        days_covered: proportion of the window's days that are covered by supplies, 0 to 1; ``column`` has the days
            supplied. A supply that overlaps the one before begins when that ends (proportion of days covered:
            Nau, Pharmacy Quality Alliance 2012) (regression).
        time_to: the rows whose first one ends the time (survival); the horizon is the window's end.
        competing: of a ``time_to``, rows after which the event is no longer counted. Such a patient stays at risk
            without the event as long as observed, so that the predicted risk is the cumulative incidence (Fine and
            Gray, JASA 94, 1999, section 3, complete censoring times). A death that ends the observation is none.
        window: first and last day after the index date, both included; starts after the index date.
        prior_outcome: ``exclude`` removes patients with such a row before the window (on the index date
            or earlier); ``keep`` does not look. ``exclude`` by default for an event or a choice, else ``keep``.
        incomplete_followup: patients without the event who are not observed until the end of the window
            are not labelled (``exclude``) or count as 0, or ``otherwise`` (``negative``). An outcome that was seen
            counts. Numbers are always measured over the whole window. Of a ``time_to`` they are known to be
            without it until their follow-up ends (``censor``).
    """

    event: EventRule | None = None
    choice: tuple[ClassRule, ...] = ()
    otherwise: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    sum: MeasureRule | None = None
    count: EventRule | None = None
    days_covered: MeasureRule | None = None
    time_to: EventRule | None = None
    competing: tuple[EventRule, ...] = ()
    window: tuple[int, int] = (1, 90)
    prior_outcome: Literal["exclude", "keep"] = "exclude"
    incomplete_followup: Literal["exclude", "negative", "censor"] = "exclude"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and any(name in given for name in MEASURED_OUTCOMES):
            return {"prior_outcome": "keep", **given}
        if isinstance(given, Mapping) and "time_to" in given:
            return {"incomplete_followup": "censor", **given}
        return given

    @field_validator("window")
    @classmethod
    def _window_is_after_the_index(cls, window: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= window[0] <= window[1]:
            raise ValueError(
                f"the window {list(window)} must start on day 1 or later and not end before it starts"
            )
        return window

    @model_validator(mode="after")
    def _one_outcome(self) -> OutcomeRule:
        given = [name for name in PROBLEM_OF_OUTCOME if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(PROBLEM_OF_OUTCOME)} says what the outcome is "
                f"(found: {', '.join(given) or 'none'})"
            )
        if self.kind == "choice":
            self._check_choice()
        elif self.otherwise is not None:
            raise ValueError(f"otherwise names a class of a choice; the outcome is {self.kind}")
        censored, timed = self.incomplete_followup == "censor", self.kind == "time_to"
        if censored and not timed:
            raise ValueError(
                f"incomplete_followup censor: {self.kind} has no time to censor; use time_to or exclude"
            )
        if timed and not censored:
            raise ValueError(
                f"incomplete_followup {self.incomplete_followup}: a time without censoring takes patients who were "
                "observed for a short time for patients without the event; use censor"
            )
        if self.competing and not timed:
            raise ValueError(f"competing events belong to a time_to; the outcome is {self.kind}")
        if self.kind in MEASURED_OUTCOMES and self.incomplete_followup == "negative":
            raise ValueError(
                f"incomplete_followup negative: {self.kind} over part of the window is not that of the whole; "
                "use exclude"
            )
        return self

    def _check_choice(self) -> None:
        if self.otherwise is None:
            raise ValueError(
                "a choice needs otherwise, the class of patients with none of its rows in the window"
            )
        named = ", ".join(rule.name for rule in self.choice)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"a class is named twice (found: {named}; otherwise {self.otherwise})")
        if len(self.choice) < 2:
            raise ValueError(
                f"a choice has two classes or more beside otherwise (found: {named}); a single one is an event"
            )

    @property
    def kind(self) -> str:
        """Which of the outcomes it is: a key of :data:`PROBLEM_OF_OUTCOME`."""
        return next(name for name in PROBLEM_OF_OUTCOME if getattr(self, name))

    @property
    def rules(self) -> dict[str, EventRule]:
        """Place in the file below ``outcome`` -> the rows that it names."""
        if self.choice:
            return {f"choice.{position}": rule for position, rule in enumerate(self.choice)}
        competing = {f"competing.{position}": rule for position, rule in enumerate(self.competing)}
        return {self.kind: getattr(self, self.kind), **competing}

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables that the outcome is read from."""
        return tuple(dict.fromkeys(rule.table for rule in self.rules.values()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of a choice, ``otherwise`` last."""
        return (*(rule.name for rule in self.choice), self.otherwise) if self.otherwise is not None else ()

    def words(self) -> str:
        """What is looked for, without the window."""
        if self.choice:
            named = [f"{rule.name} ({rule.words()})" for rule in self.choice]
            return f"which comes first, {', '.join(named)}, or else {self.otherwise}"
        rule: EventRule = getattr(self, self.kind)
        before = {
            "event": "",
            "sum": "the sum of ",
            "count": "the number of ",
            "days_covered": "the proportion of days covered by ",
            "time_to": "the time to ",
        }
        others = " or ".join(event.words() for event in self.competing)
        return before[self.kind] + rule.words() + (f", unless {others} comes first" if others else "")


class Constraints(PolicyModel):
    """What an algorithm must keep to be a candidate."""

    max_latency_ms: float | None = Field(default=None, gt=0)
    max_memory_gb: float | None = Field(default=None, gt=0)
    interpretability_required: bool = False


class Preferences(PolicyModel):
    """Algorithms by name (``config/algorithms.yaml``) that rank higher or are left out."""

    preferred_algorithms: tuple[str, ...] = ()
    excluded_algorithms: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _not_both(self) -> Preferences:
        both = sorted(set(self.preferred_algorithms) & set(self.excluded_algorithms))
        if both:
            raise ValueError(f"both preferred and excluded: {', '.join(both)}")
        return self


class SplitPolicy(PolicyModel):
    """How the cohort's patients are split.

    Attributes:
        mode: ``hash`` (keyed hash inside strata) or ``temporal`` (by index date).
        salt: key of the hash; configuration, not a secret. A new salt is a fresh test set.
        ratios: shares of train, validation, test, holdout.
        gap_days: days between two splits in temporal mode.
    """

    mode: Literal["hash", "temporal"] = "hash"
    salt: str = Field(min_length=1)
    ratios: tuple[float, float, float, float] = (0.60, 0.20, 0.15, 0.05)  # prior platform's ratios
    gap_days: int = Field(default=7, ge=0)  # prior platform's temporal gap

    @field_validator("ratios")
    @classmethod
    def _ratios_add_up(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-9:
            raise ValueError(f"the four ratios must be above 0 and add up to 1 (found: {sum(ratios):g})")
        return ratios


class MinimumSample(PolicyModel):
    """How many labelled patients are needed.

    Attributes:
        labelled: patients with a label; None takes the value of the problem type.
        events_per_feature: patients of the rarer class for each feature.
    """

    labelled: int | None = Field(default=None, ge=1)
    events_per_feature: int = Field(default=10, ge=1)  # Peduzzi et al., J Clin Epidemiol 1996


class ScopeSpec(PolicyModel):
    """One question to be answered by a model.

    Attributes:
        key: name of the scope: its file and its partition.
        default: the scope that is run when none is named (exactly one file says so).
        cohort: key of the cohort; the scope's brand and indication are the cohort's.
        target: what is predicted, in one word. model_type: last part of the registered model's name,
            ``{indication}_{target}`` by default.
        source_lag_days: days until the sources have delivered an event; a window is closed that much later, and
            a feature counts a row without an arrival time from then on.
        features: ``all``, or the names of the features to use.
        evaluation: what is evaluated beside what the policy asks for.
    """

    key: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    default: bool = False
    title: str
    business_objective: str = ""
    brand: str = Field(min_length=1)
    indication: str = Field(min_length=1)
    cohort: str = Field(min_length=1)
    problem_type: ProblemType
    target: str = Field(min_length=1, pattern=r"^[a-z0-9_]+$")
    model_type: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    outcome: OutcomeRule
    source_lag_days: int = Field(default=14, ge=0)
    success_criteria: SuccessCriteria
    constraints: Constraints = Constraints()
    preferences: Preferences = Field(default_factory=Preferences)
    split: SplitPolicy
    minimum_sample: MinimumSample = MinimumSample()
    features: Literal["all"] | tuple[str, ...] = "all"
    evaluation: ScopeEvaluation = ScopeEvaluation()

    @model_validator(mode="after")
    def _whole(self) -> ScopeSpec:
        if not self.model_type:
            object.__setattr__(self, "model_type", f"{self.indication}_{self.target}".lower())
        answered = PROBLEM_OF_OUTCOME[self.outcome.kind]
        if self.problem_type != answered:
            needed = [name for name, kind in PROBLEM_OF_OUTCOME.items() if kind == self.problem_type]
            raise ValueError(
                f"problem_type {self.problem_type}: outcome.{self.outcome.kind} answers {answered} only; "
                + (
                    f"{self.problem_type} needs outcome.{' or outcome.'.join(needed)}"
                    if needed
                    else "effects are asked for in config/causal.yaml"
                )
            )
        wrong = [
            name
            for name in sorted(set(_METRICS) - CRITERIA[self.problem_type])
            if getattr(self.success_criteria, name) is not None
        ]
        if wrong:
            raise ValueError(f"success criteria {', '.join(wrong)} do not belong to {self.problem_type}")
        if isinstance(self.features, tuple) and len(set(self.features)) != len(self.features):
            raise ValueError("a feature is named twice")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path, known: KnownNames | None = None) -> ScopeSpec:
        """Read one scope file; its stem is the scope's key.

        Args:
            known: what the names in the file are checked against.

        Raises:
            ConfigError: names file, line, field, value and what was expected.
        """
        path = Path(path)
        scope = read_yaml(path, cls, (lambda read: scope_problems(read, known)) if known else None)
        if scope.key not in ("", path.stem):
            remedy = "Use one name."
            raise ConfigError(
                f"{path}: the file is called {path.stem!r}, the scope {scope.key!r}. {remedy}",
                file=path, field="key", value=scope.key, remedy=remedy,
            )  # fmt: skip
        scope = scope.model_copy(update={"key": path.stem})
        note_file(path, cls, scope)
        return scope

    @property
    def horizon_days(self) -> int:
        """Last day of the outcome window after the index date."""
        return self.outcome.window[1]

    @property
    def model_name(self) -> str:
        """Name in the model registry: ``e2i-{brand}-{model_type}``."""
        return f"e2i-{self.brand}-{self.model_type}".lower().replace("_", "-")

    @property
    def effect_model_name(self) -> str:
        """Name of the model of effects on this scope's outcome in the model registry."""
        return f"{self.model_name}-effect"

    @property
    def minimum_labelled(self) -> int:
        """Labelled patients needed: the scope's own figure, or that of its problem type."""
        return self.minimum_sample.labelled or MINIMUM_LABELLED[self.problem_type]

    def sentences(self) -> tuple[str, ...]:
        """The question in words, for people."""
        from e2i_dagster.modelling.problem import HEADLINE

        first, last = self.outcome.window
        calibration = self.success_criteria.calibration
        rules = [rule.words() for rule in self.success_criteria.rules]
        if self.problem_type != "regression":
            rules += [calibration.words(metric) for metric in calibration.limits]
        if self.success_criteria.beats_baseline:
            rules.append("better than every baseline")
        if self.success_criteria.subgroup_floor is not None:
            rules.append(
                f"{HEADLINE[self.problem_type]} of no subgroup below {self.success_criteria.subgroup_floor:g}"
            )
        prior = {
            "exclude": "Patients who had it before are removed.",
            "keep": "Patients who had it before stay.",
        }
        incomplete = {
            "exclude": "Patients without it and not observed until the window's end are not labelled.",
            "negative": "Patients without it and not observed until the window's end count as without.",
            "censor": "Patients without it count as without as long as they are observed.",
        }
        whole = "Patients not observed until the window's end are not labelled."
        what = self.outcome.words()
        question = f"does {what} follow" if self.outcome.kind == "event" else f"what is {what}"
        if self.outcome.choice:
            question = what
        return (
            f"{self.title}.",
            f"For the patients of cohort {self.cohort}: {question} within days {first} to {last} after the index date?",
            prior[self.outcome.prior_outcome],
            whole if self.outcome.kind in MEASURED_OUTCOMES else incomplete[self.outcome.incomplete_followup],
            f"A label counts {self.source_lag_days} days after its window, when late rows have arrived.",
            f"A model is accepted when: {'; '.join(rules) or 'no criterion is set'}.",
        )


def scope_folder() -> Path:
    """The folder of the scope files: ``scopes`` in the configuration folder."""
    return config_folder() / "scopes"


def read_scopes(folder: Path | None = None) -> tuple[dict[str, ScopeSpec], dict[str, ConfigError]]:
    """All scopes by key, and the errors of the files that could not be read by file stem."""
    scopes: dict[str, ScopeSpec] = {}
    broken: dict[str, ConfigError] = {}
    for path in sorted((folder or scope_folder()).glob("*.yaml")):
        try:
            scopes[path.stem] = ScopeSpec.from_yaml(path)
        except ConfigError as error:
            broken[path.stem] = error
    return scopes, broken


def read_scope(key: str, folder: Path | None = None) -> ScopeSpec:
    """The scope ``key``.

    Raises:
        ConfigError: there is no such file (lists the known keys), or it is wrong.
    """
    folder = folder or scope_folder()
    path = folder / f"{key}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        near = get_close_matches(key, known, n=1)
        raise ConfigError(
            f"There is no scope {key!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            file=path,
            field="scope",
            value=key,
            remedy=f"Known: {', '.join(known) or 'none'}. Add a file to {folder} for another.",
        )
    return ScopeSpec.from_yaml(path)


def default_scope(folder: Path | None = None) -> ScopeSpec:
    """The scope whose file says ``default: true``, see :func:`the_default`."""
    folder = folder or scope_folder()
    return the_default(folder, *read_scopes(folder))


def the_default(
    folder: Path, scopes: Mapping[str, ScopeSpec], broken: Mapping[str, ConfigError]
) -> ScopeSpec:
    """The one of ``scopes`` that says ``default: true``, or the only one that there is.

    Args:
        folder: of the files. scopes: the valid ones by file stem. broken: errors of the others by file stem.

    Raises:
        ConfigError: a file that says so is wrong: no other question is answered in its place. Or none or several
            say so.
    """
    wrong = [
        error
        for name, error in broken.items()
        if not scopes
        or _SAYS_DEFAULT.search((folder / f"{name}.yaml").read_text(encoding="utf-8", errors="replace"))
    ]
    if wrong:
        raise ConfigError.joined(wrong)
    marked = [scope for scope in scopes.values() if scope.default]
    if not marked and len(scopes) == 1 and not broken:
        marked = list(scopes.values())
    if len(marked) != 1:
        found = ", ".join(scope.key for scope in marked) or "none"
        remedy = "Write it in one of them, or name a scope with --scope."
        raise ConfigError(
            f"{folder}: exactly one file must say default: true (found: {found}). {remedy}",
            file=folder,
            field="default",
            value=found,
            remedy=remedy,
        )
    return marked[0]


def check_against_cohorts(
    scope: ScopeSpec, cohorts: Mapping[str, Any], problems: Mapping[str, ConfigError] | None = None
) -> None:
    """Check that the scope's cohort is among ``cohorts`` (definitions by key) and answers its question.

    ``problems``: errors of the files that could not be read, by path.

    Raises:
        ConfigError: the cohort is unknown, its brand or indication is another, or a patient may be in it
            several times.
    """
    cohort = cohorts.get(scope.cohort)
    if cohort is None:
        for path, error in (problems or {}).items():
            if Path(path).parent.name == "cohorts" and Path(path).stem == scope.cohort:
                raise ConfigError(
                    f"Scope {scope.key}: its cohort {scope.cohort} is not valid: {error}", **error.known
                )
        near = did_you_mean(scope.cohort, cohorts)
        remedy = f"{near + ' ' if near else ''}Known: {', '.join(sorted(cohorts)) or 'none'}."
        raise ConfigError(
            f"Scope {scope.key}: there is no cohort {scope.cohort!r}. {remedy}",
            file=f"scopes/{scope.key}.yaml",
            field="cohort",
            value=scope.cohort,
            remedy=remedy,
        )
    mine = (scope.brand.lower(), scope.indication.lower())
    theirs = (cohort.brand.lower(), cohort.indication.lower())
    if mine != theirs:
        raise ConfigError(
            f"Scope {scope.key} is about {'/'.join(mine)}, its cohort {scope.cohort} about {'/'.join(theirs)}.",
            remedy="Name the cohort of the same brand and indication.",
        )
    if cohort.journeys == "every" and scope.split.mode == "temporal":
        raise ConfigError(
            f"Scope {scope.key}: a patient is in its cohort {scope.cohort} once for every index date, and all of "
            f"these belong to one split, so splits cannot follow each other in time.",
            file=f"scopes/{scope.key}.yaml",
            field="split.mode",
            value="temporal",
            remedy="Use mode: hash, or a cohort with journeys: first_eligible (or first).",
        )
