"""Names in policy files that stand for something elsewhere: what there is, and which of them match nothing.

A name that matches nothing would be passed over in silence: a model without the feature, a rule without rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2i_dagster.policy_files.base import Place, did_you_mean, unknown

if TYPE_CHECKING:
    from e2i_dagster.config.algorithms import Algorithm, AlgorithmsPolicy
    from e2i_dagster.config.causal import QuestionRule
    from e2i_dagster.config.experiment import ExperimentSpec
    from e2i_dagster.config.scope import ScopeSpec

_CLASSES = ("binary_classification", "multiclass_classification")
_NUMBERS = ("regression",)
_EVERY = (*_CLASSES, *_NUMBERS)


@dataclass(frozen=True)
class Trained:
    """An algorithm whose models are trained: for which problem types, and the usual ones of its parameters.

    Reading a policy file must not wait for the libraries; they are asked where a parameter is not a usual one.
    """

    problem_types: tuple[str, ...]
    parameters: tuple[str, ...]


_TREES = ("n_estimators", "max_depth", "min_samples_split", "min_samples_leaf")
#: What :mod:`e2i_dagster.modelling.estimators` builds.
TRAINED = {
    "XGBoost": Trained(
        (*_EVERY, "survival"),
        ("n_estimators", "max_depth", "learning_rate", "subsample", "min_child_weight"),
    ),
    "LightGBM": Trained(_EVERY, ("n_estimators", "learning_rate", "num_leaves", "min_child_samples")),
    "HistGradientBoosting": Trained(
        _EVERY, ("max_iter", "max_leaf_nodes", "learning_rate", "min_samples_leaf")
    ),
    "RandomForest": Trained(_EVERY, _TREES),
    "ExtraTrees": Trained(_EVERY, _TREES),
    "LogisticRegression": Trained(_CLASSES, ("C", "l1_ratio")),
    "Ridge": Trained(_NUMBERS, ("alpha",)),
    "Lasso": Trained(_NUMBERS, ("alpha",)),
    "CoxPH": Trained(("survival",), ("n_estimators", "learning_rate", "reg_lambda", "reg_alpha")),
}
#: Named and ranked by their declared figures; effects are estimated by :mod:`e2i_dagster.causal`.
#: The parameters of each are listed whole: no estimator is built from them that could refuse another one.
CAUSAL_ALGORITHMS = {
    "CausalForest": ("n_estimators", "max_depth", "min_samples_leaf"),
    "LinearDML": ("model_y", "model_t", "cv"),
    "DRLearner": ("min_propensity", "cv"),
    "XLearner": ("n_estimators", "min_samples_leaf"),
}
#: Names of the models of outcome and treatment in EconML (``econml.sklearn_extensions.model_selection``).
_NUISANCE_MODELS = ("auto", "automl", "linear", "poly", "forest", "gbf", "nnet")

#: Types beyond skops' own list that our pipelines consist of. Everything else is refused when a model is
#: stored and when it is loaded: a model file cannot bring code of its own.
TRUSTED_TYPES: tuple[str, ...] = (
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
)

#: The vocabulary of the kinds of event of each table that outcomes are read from.
KINDS = {
    "treatment_events": "event_type",
    "engagement_events": "engagement_type",
    "outcome_events": "outcome_type",
}


@dataclass(frozen=True)
class KnownNames:
    """What policy files can name: features, algorithms, brands, and the kinds of event of each table."""

    features: tuple[str, ...]
    algorithms: tuple[str, ...]
    brands: tuple[str, ...]
    event_types: Mapping[str, tuple[str, ...]]


def scope_problems(scope: ScopeSpec, known: KnownNames) -> Iterator[Place]:
    """Names of a scope that match nothing."""
    if scope.features != "all":
        yield from unknown(["features"], scope.features, known.features, "feature")
    for number, group in enumerate(scope.evaluation.subgroups):
        place = ["evaluation", "subgroups", number]
        yield from unknown(place, group.column, known.features, "feature")
    for key in ("preferred_algorithms", "excluded_algorithms"):
        named = getattr(scope.preferences, key)
        yield from unknown(["preferences", key], named, known.algorithms, "algorithm")
    for named, event in scope.outcome.rules.items():
        place = ["outcome", *(int(part) if part.isdigit() else part for part in named.split("."))]
        kinds = known.event_types[event.table]
        yield from unknown([*place, "event_type"], event.event_type, kinds, f"{KINDS[event.table]}")
        yield from unknown([*place, "brand"], event.brand, known.brands, "brand")
    yield from unknown(["brand"], scope.brand, known.brands, "brand")


def algorithm_problems(policy: AlgorithmsPolicy) -> Iterator[Place]:
    """Algorithms that nothing trains, problem types that one is not trained for, parameters that it has not."""
    for name, about in policy.algorithms.items():
        place = ("algorithms", name)
        causal = about.family == "causal"
        yield from unknown(place, name, tuple(CAUSAL_ALGORITHMS if causal else TRAINED), "algorithm")
        if causal and name in CAUSAL_ALGORITHMS:
            yield from _causal_parameter_problems(name, about)
        if causal or name not in TRAINED:
            continue
        yield from unknown(
            [*place, "problem_types"],
            about.problem_types,
            TRAINED[name].problem_types,
            f"model of {name} for",
        )
        known = TRAINED[name].parameters
        if not set(about.defaults) <= set(known):
            from e2i_dagster.modelling.estimators import parameters_of

            known = parameters_of(name)
        for parameter in about.defaults:
            yield from unknown([*place, "defaults", parameter], parameter, known, f"parameter of {name}")


def _causal_parameter_problems(name: str, about: Algorithm) -> Iterator[Place]:
    """Parameters that a causal algorithm has not, and models of outcome or treatment that EconML has not."""
    for parameter, value in about.defaults.items():
        place = ("algorithms", name, "defaults", parameter)
        yield from unknown(place, parameter, CAUSAL_ALGORITHMS[name], f"parameter of {name}")
        if parameter in ("model_y", "model_t"):
            yield from unknown(place, str(value), _NUISANCE_MODELS, f"{parameter} of {name}")
            searched = about.search_space.get(parameter)
            choices = searched.choices if searched is not None and searched.kind == "categorical" else ()
            place = ("algorithms", name, "search_space", parameter, "choices")
            yield from unknown(place, map(str, choices), _NUISANCE_MODELS, f"{parameter} of {name}")


def trusted_type_problems(names: Sequence[str]) -> Iterator[Place]:
    """Trusted types of packages that are not installed, and types that an installed package has not.

    The types that the registry itself stores are known; for any other one its package is imported.
    """
    from importlib.util import find_spec

    for number, name in enumerate(names):
        package = name.partition(".")[0]
        if not package.isidentifier() or find_spec(package) is None:
            said: str | None = f"no package {package!r} is installed (found {name!r})."
        else:
            said = None if name in TRUSTED_TYPES else _untraceable(name)
        if said is not None:
            yield ("trusted_types", number), said


def _untraceable(name: str) -> str | None:
    """Why ``name`` is no type of an installed package, nor ``package.*`` of one; None where it is."""
    from importlib import import_module
    from pkgutil import iter_modules
    from types import ModuleType

    below = name.endswith(".*")
    way: list[str] = []
    found: Any = None
    for part in name.removesuffix(".*").split("."):
        before, way = ".".join(way), [*way, part]
        if way[1:] and hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = import_module(".".join(way))
        except ModuleNotFoundError:
            within = [module.name for module in iter_modules(getattr(found, "__path__", ()))]
            near = did_you_mean(part, {*dir(found), *within})
            return f"there is no {part!r} in {before} (found {name!r}). {near}".rstrip()
        except ImportError as error:
            return f"{'.'.join(way)} cannot be imported (found {name!r}): {error}"
    if isinstance(found, ModuleType) and not below:
        return f"{name!r} is a module. Name a type in it, or write {name + '.*'!r} for everything below it."
    return None


def question_problems(question: QuestionRule, features: Sequence[str]) -> Iterator[Place]:
    """Names in the question of ``causal.yaml`` that are none of the ``features``."""
    for key in ("confounders", "negative_controls"):
        yield from unknown(["question", key], getattr(question, key), features, "feature")


def experiment_problems(
    spec: ExperimentSpec, known: KnownNames, scopes: Sequence[str], experiments: Sequence[str]
) -> Iterator[Place]:
    """Names of a design that match nothing; attributes of units are known when the units are recorded.

    Args:
        scopes: keys of the scope files. experiments: names of the design files.
    """
    yield from unknown(["brand"], spec.brand, known.brands, "brand")
    yield from unknown(["may_overlap_with"], spec.may_overlap_with, experiments, "experiment")
    if spec.twin is not None:
        yield from unknown(["twin", "scope"], spec.twin.scope, scopes, "scope")
        yield from unknown(["twin", "feature"], spec.twin.feature, known.features, "feature")
        yield from unknown(["twin", "confounders"], spec.twin.confounders, known.features, "feature")
