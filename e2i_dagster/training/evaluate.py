"""Evaluation of one trained model: every split, intervals, baselines, the scope's criteria, figures.

The test rows come sealed; they are opened at most once, for the model that is evaluated, on record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.config.optuna_config import EvaluationPolicy, OptunaPolicy
from e2i_dagster.config.scope import CalibrationRule, SuccessCriteria, SuccessRule
from e2i_dagster.config.subgroups import SubgroupColumn, joined_columns
from e2i_dagster.display import Figure, Table, text
from e2i_dagster.modelling.estimators import build_estimator, one_thread, raw_scores
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.modelling.preprocessing import build_preprocessor, column_origins
from e2i_dagster.modelling.problem import CLASSIFICATION, HEADLINE
from e2i_dagster.modelling.survival import kaplan_meier, known_at
from e2i_dagster.reports import figure_png, new_figure
from e2i_dagster.splits.rows import SealedRows, VisibleRows
from e2i_dagster.training.chance import ChanceTest, chance_test
from e2i_dagster.training.decision_curve import (
    DecisionPoint,
    decision_curve,
    decision_figure,
    decision_table,
)
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.fit import TrainedModel
from e2i_dagster.training.learning_curve import (
    LearningPoint,
    learning_curve,
    learning_figure,
    learning_table,
)
from e2i_dagster.training.metrics import (
    binary_metrics,
    calibration_bins,
    calibration_line,
    incidence_bins,
    interval,
    jackknife_errors,
    multiclass_metrics,
    regression_metrics,
    resamples,
    roc_points,
    survival_calibration,
    survival_metrics,
)
from e2i_dagster.training.subgroups import Subgroup, subgroup_performance, subgroup_table

_SMALL = 11


class SplitMetrics(BaseModel):
    """Metrics of one split, or the reason why there are none."""

    model_config = ConfigDict(frozen=True)

    n: int
    positives: int | None
    metrics: dict[str, Estimate]
    note: str = ""
    patients: int | None = None

    def size_words(self) -> str:
        """The number of rows, and of patients where these have several."""
        of_patients = "" if self.patients is None else f", of {shown_count(self.patients)} patients"
        return f"n = {shown_count(self.n)}{of_patients}"


class Baseline(BaseModel):
    """One baseline, judged on the same patients. ``difference`` is model minus baseline (paired)."""

    model_config = ConfigDict(frozen=True)

    name: Literal["prevalence", "mean", "kaplan_meier", "one_variable", "logistic", "linear", "cox"]
    detail: str
    split: str
    metric: str
    value: float
    difference: Estimate
    required: float
    beaten: bool


class CriterionResult(BaseModel):
    """One success criterion. ``distance`` is how far on the good side the judged value is."""

    model_config = ConfigDict(frozen=True)

    name: str
    rule: str
    split: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float | None
    distance: float | None
    passed: bool
    reason: str


class Evaluation(BaseModel):
    """Everything measured about one model. ``accepted`` is True when every criterion is met.

    ``chance`` is of the test rows, or while those are closed of the validation rows, which chose the parameters; None
    where that split is not estimable.

    ``learning_curve`` is of the validation rows; empty when the policy switches it off.

    ``subgroups`` are of the test rows and empty while those are closed; ``decision_curve`` is so too, and of a model of
    an event alone.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")
    volatile_fields: ClassVar[set[str]] = {"figure", "decision_figure", "learning_figure", "seconds"}

    algorithm: str
    problem_type: str
    model_digest: str
    threshold: float | None
    level: float
    bootstrap: int
    splits: dict[str, SplitMetrics]
    baselines: tuple[Baseline, ...]
    criteria: tuple[CriterionResult, ...]
    accepted: bool
    test_opened: bool
    figure: bytes
    chance: ChanceTest | None = None
    subgroups: tuple[Subgroup, ...] = ()
    decision_curve: tuple[DecisionPoint, ...] = ()
    decision_figure: bytes = b""
    learning_curve: tuple[LearningPoint, ...] = ()
    learning_figure: bytes = b""
    seconds: float

    def metric(self, split: str, name: str) -> float | None:
        """The value of metric ``name`` on ``split``, or None when it was not estimated."""
        measured = self.splits.get(split)
        found = None if measured is None else measured.metrics.get(name)
        return None if found is None else found.value

    @property
    def figure_title(self) -> str:
        """What the figure shows."""
        if self.problem_type == "causal":
            return "uplift curve"
        if self.problem_type == "survival":
            return "observed incidence by predicted risk, and calibration at the horizon"
        return "ROC curve and calibration" if self.problem_type in CLASSIFICATION else "means and errors"

    def flat(self) -> dict[str, float]:
        """``<split>_<metric>`` -> value, and ``_low``/``_high`` for the ends of the interval."""
        values: dict[str, float] = {}
        for split, measured in self.splits.items():
            for name, estimate in measured.metrics.items():
                for suffix, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                    if value is not None:
                        values[f"{split}_{name}{suffix}"] = value
        return values

    def reasons(self) -> tuple[str, ...]:
        """Why the model is not accepted, one sentence for each criterion that it misses."""
        return tuple(result.reason for result in self.criteria if not result.passed)

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows."""
        headline = HEADLINE.get(self.problem_type, "r2")
        return {
            "accepted": self.accepted,
            **{
                f"{split}_{headline}": value
                for split in self.splits
                if (value := self.metric(split, headline)) is not None
            },
            "threshold": self.threshold,
            "test_opened": self.test_opened,
            "model_digest": self.model_digest,
            "seconds": self.seconds,
            "criteria": Table(
                ("criterion", "value", "interval", "threshold", "distance", "met"),
                [
                    (
                        criterion.rule,
                        criterion.value,
                        (criterion.low, criterion.high),
                        criterion.threshold,
                        criterion.distance,
                        criterion.passed,
                    )
                    for criterion in self.criteria
                ],
            ),
            "metrics": self._metrics_table(),
            "baselines": Table(
                ("baseline", "measure", "its value", "model minus baseline", "required", "beaten"),
                [
                    (
                        *(
                            f"{baseline.name} ({baseline.detail})",
                            f"{baseline.metric} on {baseline.split}",
                            baseline.value,
                        ),
                        *(baseline.difference.with_interval, f"above {baseline.required:g}", baseline.beaten),
                    )
                    for baseline in self.baselines
                ],
            ),
            "learning_curve": learning_table(self.learning_curve, headline),
            **(
                {
                    "learning_curve_figure": Figure.png(
                        self.learning_figure, f"{headline} by training patients"
                    )
                }
                if self.learning_figure
                else {}
            ),
            **({} if self.chance is None else {"better_than_chance": _chance_table(self.chance)}),
            "figure": Figure.png(self.figure, self.figure_title),
            **({"subgroups": subgroup_table(self.subgroups, self.problem_type)} if self.subgroups else {}),
            **(
                {
                    "net_benefit": decision_table(self.decision_curve),
                    "decision_curve": Figure.png(
                        self.decision_figure, "net benefit of the model, of treat all and of treat none"
                    ),
                }
                if self.decision_curve
                else {}
            ),
        }

    def to_record(self) -> dict[str, Any]:
        """JSON values without the figures and the time it took."""
        return self.model_dump(mode="json", exclude=self.volatile_fields)

    def _metrics_table(self) -> Table:
        splits = self.splits
        names = dict.fromkeys(name for split in splits.values() for name in split.metrics)
        none = Estimate(value=None, low=None, high=None)
        return Table(
            ("metric", *(f"{name} ({split.size_words()})" for name, split in splits.items())),
            [
                (name, *(split.metrics.get(name, none).with_interval for split in splits.values()))
                for name in names
            ],
            note="; ".join(f"{name}: {split.note}" for name, split in splits.items() if split.note),
        )


def evaluate(
    model: TrainedModel,
    rows: VisibleRows,
    sealed: SealedRows | None = None,
    *,
    criteria: SuccessCriteria,
    subgroups: Sequence[SubgroupColumn] = (),
    policy: OptunaPolicy | None = None,
) -> Evaluation:
    """Judge ``model``.

    Args:
        rows: the training rows the model was fitted on (baselines are fitted on them too), and the
            validation rows that chose its parameters; their figures are optimistic.
        sealed: the test rows; None leaves them closed, and every criterion on them is then not met.
        subgroups: columns whose levels the model is evaluated in, beside those of the policy.

    Returns:
        Metrics with percentile bootstrap intervals over patients (calibration line: normal
        approximation), the baselines on the judged split (test when open, else validation), one result
        for each criterion; subgroups on test, and of a model of an event the decision curve.
    """
    started = time.perf_counter()
    policy = policy or OptunaPolicy.load()
    rules = policy.evaluation
    parts: dict[str, LabelledRows] = {"train": rows.train, "validation": rows.validation}
    if sealed is not None:
        parts["test"] = sealed.open_for(model.digest)
    with one_thread():
        scores = {name: model.scores(part.features) for name, part in parts.items()}
        splits = {name: measure(part, scores[name], model, rules) for name, part in parts.items()}
        judged = "test" if "test" in parts else "validation"
        baselines = (
            _baselines(
                model,
                rows,
                parts[judged],
                scores=scores[judged],
                split=judged,
                policy=policy,
            )
            if splits[judged].metrics
            else ()
        )
        learned = learning_curve(model, rows, policy)
    results = [_check_rule(rule, splits) for rule in criteria.rules]
    if model.problem_type in CLASSIFICATION or model.risk is not None:
        results += _check_calibration(criteria.calibration, splits, model.classes)
    if criteria.beats_baseline:
        results.append(_check_baselines(baselines, judged))
    chance = (
        chance_test(
            *_first_of_each_patient(parts[judged], scores[judged]),
            model.problem_type,
            split=judged,
            policy=rules.better_than_chance,
            seed=rules.seed,
        )
        if splits[judged].metrics
        else None
    )
    if rules.better_than_chance.gate:
        results.append(_check_chance(chance, rules.better_than_chance.maximum_p_value, judged))
    grouped: tuple[Subgroup, ...] = ()
    curve: tuple[DecisionPoint, ...] = ()
    if "test" in parts:
        test, columns = parts["test"], joined_columns(rules.subgroups.columns, subgroups)
        grouped = subgroup_performance(
            test.target,
            scores["test"],
            test.features if test.groups is None else test.groups,
            columns,
            rules,
            problem_type=model.problem_type,
            horizon_days=None if model.risk is None else model.risk.horizon_days,
            patients=test.patients,
        )
        if model.problem_type == "binary_classification" and splits["test"].metrics:
            curve = decision_curve(test.target, scores["test"], rules, test.patients)
    metric = HEADLINE[model.problem_type]
    # The policy's floor is one of concordance, 0.5 being chance; R² has another scale.
    common_floor = None if metric == "r2" else rules.subgroups.floor
    floor = common_floor if criteria.subgroup_floor is None else criteria.subgroup_floor
    if floor is not None:
        results.append(_subgroup_floor(grouped, metric, floor, opened="test" in parts))
    return Evaluation(
        algorithm=model.algorithm,
        problem_type=model.problem_type,
        model_digest=model.digest,
        threshold=model.threshold,
        level=rules.level,
        bootstrap=rules.bootstrap,
        splits=splits,
        baselines=tuple(baselines),
        criteria=tuple(results),
        accepted=all(result.passed for result in results),
        test_opened="test" in parts,
        figure=_figure({name: (part.target, scores[name]) for name, part in parts.items()}, model),
        chance=chance,
        subgroups=grouped,
        decision_curve=curve,
        decision_figure=decision_figure(curve) if curve else b"",
        learning_curve=learned,
        learning_figure=learning_figure(learned, metric)
        if any(point.validation.value is not None for point in learned)
        else b"",
        seconds=time.perf_counter() - started,
    )


def _first_of_each_patient(rows: LabelledRows, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets and scores with one row of each patient: outcomes of one patient cannot change places."""
    if rows.patients is None:
        return rows.target, scores
    first = np.unique(rows.patients, return_index=True)[1]
    return rows.target[first], scores[first]


def measure(
    rows: LabelledRows, scores: np.ndarray, model: TrainedModel, rules: EvaluationPolicy
) -> SplitMetrics:
    """The metrics of ``model`` on ``rows``, with percentile bootstrap intervals over patients (calibration line: normal
    approximation); none, and the reason, where an outcome has too few patients.

    Args:
        scores: what ``model`` says of ``rows``, shape (n,), of several classes (n, classes).
    """
    target, n = rows.target, len(rows)
    positives = int(target.sum()) if model.problem_type == "binary_classification" else None
    kinds = [np.ones(n, dtype=bool)]
    if model.problem_type in CLASSIFICATION:
        kinds = [target == code for code in range(len(model.classes) or 2)]
    if model.risk is not None:
        happened, known = known_at(target, model.risk.horizon_days)
        positives = int(happened.sum())
        kinds = [happened.astype(bool), (known > 0) & ~happened.astype(bool)]
    smallest = min(_patients(rows, of_kind) for of_kind in kinds)
    patients = None if rows.patients is None else _patients(rows)
    if smallest < rules.minimum_per_class:
        return SplitMetrics(
            n=n,
            positives=positives,
            metrics={},
            note=f"not estimable: fewer than {rules.minimum_per_class} patients"
            + (" of one outcome" if len(kinds) > 1 else ""),
            patients=patients,
        )
    points = _metrics(target, scores, model, None)
    blocks = resamples(n, rules.bootstrap, rules.seed, rows.patients)
    drawn = [_metrics(target, scores, model, block) for block in blocks]
    metrics = {}
    for name, value in points.items():
        low, high = interval(np.concatenate([block[name] for block in drawn]), rules.level)
        metrics[name] = Estimate.of(value[0], low, high)
    for name, (value, error) in _calibration(rows, scores, model).items():
        width = NormalDist().inv_cdf((1 + rules.level) / 2)
        metrics[name] = Estimate.of(value, value - width * error, value + width * error)
    return SplitMetrics(n=n, positives=positives, metrics=metrics, patients=patients)


def _patients(rows: LabelledRows, among: np.ndarray | None = None) -> int:
    """Number of patients, or of those who have a row ``among`` the given ones."""
    kept = np.ones(len(rows), dtype=bool) if among is None else among
    return int(kept.sum()) if rows.patients is None else len(np.unique(rows.patients[kept]))


def _metrics(
    target: np.ndarray, scores: np.ndarray, model: TrainedModel, weights: np.ndarray | None
) -> dict[str, np.ndarray]:
    if model.threshold is not None:
        return binary_metrics(target, scores, model.threshold, weights)
    if model.risk is not None:
        return survival_metrics(target, scores, model.risk.horizon_days, weights)
    if model.classes:
        return multiclass_metrics(target, scores, weights)
    return regression_metrics(target, scores, weights)


def _calibration(
    rows: LabelledRows, scores: np.ndarray, model: TrainedModel
) -> dict[str, tuple[float, float]]:
    """Slope and intercept (of each class) with their standard errors; none of a model of numbers."""
    lines = _calibration_lines(rows.target, scores, model)
    patients = rows.patients
    if patients is None:
        return lines

    def values(kept: np.ndarray) -> list[float]:
        return [value for value, _ in _calibration_lines(rows.target[kept], scores[kept], model).values()]

    errors = jackknife_errors(values, patients)
    return {
        name: (value, float(error)) for (name, (value, _)), error in zip(lines.items(), errors, strict=True)
    }


def _calibration_lines(
    target: np.ndarray, scores: np.ndarray, model: TrainedModel
) -> dict[str, tuple[float, float]]:
    if model.risk is not None:
        return survival_calibration(target, scores, model.risk.horizon_days)
    if model.problem_type not in CLASSIFICATION:
        return {}
    return {
        f"{name}{suffix}": found
        for suffix, mine, chance in _one_against_rest(target, scores, model.classes)
        for name, found in calibration_line(mine, chance).items()
    }


def _one_against_rest(
    target: np.ndarray, scores: np.ndarray, classes: Sequence[str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """For each class its suffix in names of metrics, 1 where the target is it, and its probability."""
    if not classes:
        return [("", target, scores)]
    return [
        (f"_{name}", (target == code).astype("int64"), scores[:, code]) for code, name in enumerate(classes)
    ]


_LOGISTIC = ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0})
#: Names of the constant and of the linear baseline of a problem type, and the latter's algorithm and parameters.
_RIVALS: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "binary_classification": ("prevalence", "logistic", *_LOGISTIC),
    "multiclass_classification": ("prevalence", "logistic", *_LOGISTIC),
    "regression": ("mean", "linear", "Ridge", {"alpha": 1.0}),
    "survival": (
        "kaplan_meier",
        "cox",
        "CoxPH",
        {"n_estimators": 200, "learning_rate": 0.5, "reg_lambda": 0.001},
    ),
}


def _baselines(
    model: TrainedModel,
    rows: VisibleRows,
    judged: LabelledRows,
    *,
    scores: np.ndarray,
    split: str,
    policy: OptunaPolicy,
) -> tuple[Baseline, ...]:
    train_rows, validation_rows = rows.train, rows.validation
    metric = HEADLINE[model.problem_type]
    constant_name, linear_name, algorithm, defaults = _RIVALS[model.problem_type]

    preprocessor = build_preprocessor(model.kinds, policy.preprocessing.max_levels).fit(train_rows.features)
    learn, choose, test = (
        np.asarray(preprocessor.transform(part.features)) for part in (train_rows, validation_rows, judged)
    )
    origins = np.array(column_origins(preprocessor))

    def fitted(columns: np.ndarray) -> Any:
        return build_estimator(algorithm, model.problem_type, defaults, seed=policy.sampler.seed).fit(
            learn[:, columns], train_rows.target
        )

    def measured(target: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return _metrics(target, values, model, weights)[metric]

    # The best single feature is chosen on validation rows, never on the rows that judge.
    singles = {name: fitted(origins == name) for name in model.kinds}
    best = max(
        singles,
        key=lambda name: measured(
            validation_rows.target, raw_scores(singles[name], choose[:, origins == name], model.problem_type)
        )[0],
    )
    everything = np.ones(len(origins), dtype=bool)
    average = (
        np.bincount(train_rows.target, minlength=len(model.classes)) / len(train_rows)
        if model.classes
        else float(train_rows.target.mean())
    )
    constant = np.broadcast_to(average, (len(judged), *np.shape(average)))
    rivals: list[tuple[Any, str, np.ndarray, float]] = [
        (constant_name, "the training average for everybody", constant, 0.0),
        ("one_variable", best, raw_scores(singles[best], test[:, origins == best], model.problem_type), 0.0),
        (
            linear_name,
            "all features, default penalty",
            raw_scores(fitted(everything), test, model.problem_type),
            -policy.evaluation.logistic_margin,
        ),
    ]
    own = float(measured(judged.target, scores)[0])
    blocks = resamples(len(judged), policy.evaluation.bootstrap, policy.evaluation.seed, judged.patients)
    own_drawn = np.concatenate([measured(judged.target, scores, block) for block in blocks])
    found = []
    for name, detail, values, required in rivals:
        value = float(measured(judged.target, values)[0])
        drawn = np.concatenate([measured(judged.target, values, block) for block in blocks])
        low, high = interval(own_drawn - drawn, policy.evaluation.level)
        found.append(
            Baseline(
                name=name,
                detail=detail,
                split=split,
                metric=metric,
                value=value,
                difference=Estimate.of(own - value, low, high),
                required=required,
                beaten=own - value > required or (required < 0 and own - value >= required),
            )
        )
    return tuple(found)


def _check_rule(rule: SuccessRule, splits: Mapping[str, SplitMetrics]) -> CriterionResult:
    measured = splits.get(rule.split)
    estimate = None if measured is None else measured.metrics.get(rule.metric)
    value, low, high = (
        (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    )
    seen = {"point": value, "lower": low, "upper": high}[rule.estimate]
    at_least = rule.direction == "at_least"
    if seen is None:
        distance, passed = None, False
        why = (
            f"the {rule.split} rows were not opened"
            if measured is None
            else measured.note or f"{rule.metric} is not estimable on {rule.split}"
        )
        reason = f"{rule.words()}: not measured, {why}."
    else:
        distance = seen - rule.value if at_least else rule.value - seen
        passed = distance >= 0
        reason = (
            f"{rule.words()}: {seen:.4f} is {'met' if passed else f'short by {-distance:.4f}'} "
            f"(interval {text((low, high), '.4f')})."
        )
    return CriterionResult(
        name=rule.name,
        rule=rule.words(),
        split=rule.split,
        value=value,
        low=low,
        high=high,
        threshold=rule.value,
        distance=distance,
        passed=passed,
        reason=reason,
    )


def _check_calibration(
    rule: CalibrationRule, splits: Mapping[str, SplitMetrics], classes: Sequence[str]
) -> list[CriterionResult]:
    """Slope and intercept (of each class): missed when the whole interval is outside the limits, or when there is
    none."""
    measured = splits.get(rule.split)
    results = []
    suffixes = [f"_{name}" for name in classes] or [""]
    for line, suffix in product(rule.limits, suffixes):
        lowest, highest = rule.limits[line]
        metric = f"{line}{suffix}"
        words = rule.words(line).replace(line, metric, 1)
        found = None if measured is None else measured.metrics.get(metric)
        if found is None or found.value is None or found.low is None or found.high is None:
            why = (
                f"the {rule.split} rows were not opened"
                if measured is None
                else measured.note or "the calibration line has no maximum (constant or separated scores)"
            )
            value = low = high = threshold = distance = None
            passed, reason = False, f"{words}: not evaluable, {why}."
        else:
            value, low, high = found.value, found.low, found.high
            threshold = lowest if high - lowest < highest - low else highest
            distance = min(high - lowest, highest - low)
            passed = distance >= 0
            reason = (
                f"{words}: {value:.4f} (interval {text((low, high), '.4f')}) "
                f"{'reaches the limits: met' if passed else 'lies outside the limits'}."
            )
        results.append(
            CriterionResult(
                name=metric, rule=words, split=rule.split, value=value, low=low, high=high,
                threshold=threshold, distance=distance, passed=passed, reason=reason,
            )
        )  # fmt: skip
    return results


def _check_baselines(baselines: Sequence[Baseline], judged: str) -> CriterionResult:
    """The hardest baseline decides: the smallest margin above what is required."""
    common = {
        "name": "beats_baseline",
        "rule": "beats every baseline on test",
        "split": "test",
    }
    nothing: dict[str, Any] = {"value": None, "low": None, "high": None, "threshold": None, "distance": None}
    if judged != "test" or not baselines:
        why = "the test rows were not opened" if judged != "test" else "the test rows are too few"
        return CriterionResult(
            **common, **nothing, passed=False, reason=f"beats every baseline: not measured, {why}."
        )
    hardest = min(baselines, key=lambda item: (item.difference.value or 0.0) - item.required)
    gained = hardest.difference.value or 0.0
    passed = all(item.beaten for item in baselines)
    return CriterionResult(
        **common,
        value=gained,
        low=hardest.difference.low,
        high=hardest.difference.high,
        threshold=hardest.required,
        distance=gained - hardest.required,
        passed=passed,
        reason=f"{hardest.metric} less that of the {hardest.name} baseline ({hardest.detail}): {gained:+.4f}, "
        f"required above {hardest.required:g}: {'met' if passed else 'not met'}.",
    )


def _check_chance(chance: ChanceTest | None, limit: float, judged: str) -> CriterionResult:
    rule = f"p-value of the permutation test on test at most {limit:g}"
    common: dict[str, Any] = {
        "name": "better_than_chance", "rule": rule, "split": "test", "threshold": limit, "low": None, "high": None,
    }  # fmt: skip
    if chance is None or judged != "test":
        why = "the test rows were not opened" if judged != "test" else "the test rows are too few"
        return CriterionResult(
            **common, value=None, distance=None, passed=False, reason=f"{rule}: not measured, {why}."
        )
    return CriterionResult(
        **common,
        value=chance.p_value,
        distance=limit - chance.p_value,
        passed=chance.passed,
        reason=f"{rule}: {chance.words}: {'met' if chance.passed else 'not met'}.",
    )


def _chance_table(chance: ChanceTest) -> Table:
    return Table(
        ("split", "statistic", "permutations", "at least as large", "p-value"),
        [(chance.split, chance.statistic, chance.permutations, chance.as_large, chance.p_value)],
        formats={"p-value": ".4f"},
        note="Outcomes permuted against the predictions. Validation rows chose the parameters, which makes their "
        "p-value too small."
        if chance.split == "validation"
        else "Outcomes permuted against the predictions.",
    )


def _subgroup_floor(
    subgroups: Sequence[Subgroup], metric: str, floor: float, *, opened: bool
) -> CriterionResult:
    """Missed when the whole interval of a subgroup lies below ``floor``, or when no subgroup is estimable."""
    rule = f"{metric} of every subgroup on test at least {floor:g} (upper end of the interval)"
    measured = {
        place: (group.metrics[metric], high)
        for place, group in enumerate(subgroups)
        if group.status == "estimated" and (high := group.metrics[metric].high) is not None
    }
    unknown = [
        f"{group.name} ({group.reason or f'no {metric}'})"
        for place, group in enumerate(subgroups)
        if place not in measured
    ]
    left_out = f" Not estimable: {', '.join(unknown)}." if unknown else ""
    common: dict[str, Any] = {"name": "subgroup_floor", "rule": rule, "split": "test", "threshold": floor}
    if not measured:
        why = "no subgroup is estimable" if opened else "the test rows were not opened"
        return CriterionResult(
            **common, value=None, low=None, high=None, distance=None, passed=False,
            reason=f"{rule}: not measured, {why}.{left_out}",
        )  # fmt: skip
    below = [place for place, (_, high) in measured.items() if high < floor]
    lowest = min(measured, key=lambda place: measured[place][1])
    estimate, highest = measured[lowest]
    named = ", ".join(
        f"{subgroups[place].name} {text(measured[place][0].with_interval, '.4f')}"
        for place in below or [lowest]
    )
    return CriterionResult(
        **common,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        distance=highest - floor,
        passed=not below,
        reason=f"{rule}: {f'{named} lies below' if below else f'met, lowest {named}'}.{left_out}",
    )


def _figure(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], model: TrainedModel) -> bytes:
    figure = new_figure(9.0, 4.0)
    left, right = figure.subplots(1, 2)
    colours = {"train": "#8c959f", "validation": "#0969da", "test": "#cf222e"}
    if model.problem_type in CLASSIFICATION:
        left.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
        right.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
        if model.classes:
            # One curve for each class; of the rows that judge alone, so that they can be told apart.
            judged = list(parts)[-1]
            curves = [
                (f"{suffix[1:]}, {judged}", f"C{number}", True, *pair)
                for number, (suffix, *pair) in enumerate(_one_against_rest(*parts[judged], model.classes))
            ]
        else:
            curves = [(name, colours[name], name != "train", *part) for name, part in parts.items()]
        for name, colour, calibrated, target, scores in curves:
            if min(target.sum(), len(target) - target.sum()) < _SMALL:
                continue
            left.plot(*roc_points(target, scores), color=colour, label=name)
            if calibrated:
                bins = calibration_bins(target, scores)
                right.plot(
                    [item["predicted"] for item in bins],
                    [item["observed"] for item in bins],
                    marker="o",
                    color=colour,
                    label=name,
                )
        left.set(title="ROC", xlabel="false-alarm rate", ylabel="sensitivity")
        right.set(
            title="Calibration in groups of equal size",
            xlabel="predicted",
            ylabel="observed",
            xlim=(0, 1),
            ylim=(0, 1),
        )
    elif model.risk is not None:
        _draw_incidence(left, right, parts, model.risk.horizon_days, colours)
    else:
        for name, (target, scores) in parts.items():
            bins = calibration_bins(target, scores)
            left.plot(
                [i["predicted"] for i in bins],
                [i["observed"] for i in bins],
                "o-",
                color=colours[name],
                label=name,
            )
            right.hist(
                target - scores, bins=15, histtype="step", density=True, color=colours[name], label=name
            )
        left.set(title="Means in groups of equal size", xlabel="predicted", ylabel="observed")
        right.set(title="Errors", xlabel="true value minus prediction", ylabel="density")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure_png(figure)


def _draw_incidence(
    left: Any,
    right: Any,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    horizon_days: int,
    colours: Mapping[str, str],
) -> None:
    """Observed incidence of thirds by predicted risk, and calibration at the horizon; no group below 11 patients."""
    judged = list(parts)[-1]
    target, risk = parts[judged]
    days = np.linspace(0, horizon_days, 31)
    groups = np.array_split(np.argsort(risk, kind="stable"), 3)
    for name, part in zip(("lowest", "middle", "highest"), groups, strict=True):
        if len(part) >= _SMALL:
            curve = [kaplan_meier(target[part], day)[0] for day in days]
            left.plot(days, curve, label=f"{name} third of predicted risk, {judged}")
    right.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
    highest = 0.0
    for name in list(parts)[1:]:
        bins = incidence_bins(*parts[name], horizon_days)
        pairs = [(item["predicted"], item["observed"]) for item in bins]
        highest = max([highest, *(value for pair in pairs for value in pair)])
        right.plot(*zip(*pairs, strict=True), marker="o", color=colours[name], label=name) if pairs else None
    left.set(title="Observed incidence (Kaplan-Meier)", xlabel="days", ylabel="share with the event")
    limits = (0, max(1.1 * highest, 0.01))
    right.set(
        title=f"Calibration at {horizon_days} days",
        xlabel="predicted",
        ylabel="observed",
        xlim=limits,
        ylim=limits,
    )


__all__ = [
    "Baseline",
    "CriterionResult",
    "Estimate",
    "Evaluation",
    "SplitMetrics",
    "evaluate",
    "measure",
]
