"""Names in policy files that stand for something elsewhere: what there is, and which of them match nothing.

A name that matches nothing would be passed over in silence: a model without the feature, a rule without rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from e2i_dagster.config.base import Place, did_you_mean

if TYPE_CHECKING:
    from e2i_dagster.config.algorithms import AlgorithmsPolicy
    from e2i_dagster.config.causal import QuestionRule
    from e2i_dagster.config.experiment import ExperimentSpec
    from e2i_dagster.config.scope import ScopeSpec
    from e2i_dagster.config.vocabulary import VocabularyPolicy

_BOTH = ("binary_classification", "regression")


@dataclass(frozen=True)
class Trained:
    """An algorithm whose models are trained: for which problem types, and the usual ones of its parameters.

    Reading a policy file must not wait for the libraries; they are asked where a parameter is not a usual one.
    """

    problem_types: tuple[str, ...]
    parameters: tuple[str, ...]


_TREES = ("n_estimators", "max_depth", "min_samples_split", "min_samples_leaf")
#: What :mod:`e2i_dagster.selection.pipeline` builds.
TRAINED = {
    "XGBoost": Trained(
        _BOTH, ("n_estimators", "max_depth", "learning_rate", "subsample", "min_child_weight")
    ),
    "LightGBM": Trained(_BOTH, ("n_estimators", "learning_rate", "num_leaves", "min_child_samples")),
    "HistGradientBoosting": Trained(
        _BOTH, ("max_iter", "max_leaf_nodes", "learning_rate", "min_samples_leaf")
    ),
    "RandomForest": Trained(_BOTH, _TREES),
    "ExtraTrees": Trained(_BOTH, _TREES),
    "LogisticRegression": Trained(_BOTH[:1], ("C", "l1_ratio")),
    "Ridge": Trained(_BOTH[1:], ("alpha",)),
    "Lasso": Trained(_BOTH[1:], ("alpha",)),
}
#: Named and ranked by their declared figures; effects are estimated by :mod:`e2i_dagster.causal`.
CAUSAL_ALGORITHMS = ("CausalForest", "LinearDML", "DRLearner", "XLearner")

#: The vocabulary of the kinds of event of each table that outcomes are read from.
_KINDS = {
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


def known_names(folder: Path) -> KnownNames:
    """The names of the product and of ``algorithms.yaml`` and ``vocabulary.yaml`` in ``folder``.

    Raises:
        ConfigError: one of the two files is missing or wrong.
    """
    from e2i_dagster.config.algorithms import AlgorithmsPolicy
    from e2i_dagster.config.vocabulary import load_vocabulary
    from e2i_dagster.features.definitions import feature_names

    vocabulary = load_vocabulary(folder)
    return KnownNames(
        feature_names(),
        tuple(AlgorithmsPolicy.load(folder).algorithms),
        vocabulary.values("brand"),
        {table: vocabulary.values(kind) for table, kind in _KINDS.items()},
    )


def unknown(
    location: Sequence[int | str], named: str | Iterable[str] | None, known: Sequence[str], what: str
) -> Iterator[Place]:
    """A place and a message for each of the ``named`` that is not ``known``; a lone name is its own place."""
    given = [(tuple(location), named)] if isinstance(named, str) else []
    if named is not None and not isinstance(named, str):
        given = [((*location, number), name) for number, name in enumerate(named)]
    for place, name in given:
        if name not in known:
            near = did_you_mean(name, known)
            listed = ", ".join(known) or "none"
            yield place, f"there is no {what} {name!r}. {near + ' ' if near else ''}Known: {listed}."


def scope_problems(scope: ScopeSpec, known: KnownNames) -> Iterator[Place]:
    """Names of a scope that match nothing."""
    event = scope.outcome.event
    if scope.features != "all":
        yield from unknown(["features"], scope.features, known.features, "feature")
    for key in ("preferred_algorithms", "excluded_algorithms"):
        named = getattr(scope.preferences, key)
        yield from unknown(["preferences", key], named, known.algorithms, "algorithm")
    place = ["outcome", "event"]
    kinds = known.event_types[event.table]
    yield from unknown([*place, "event_type"], event.event_type, kinds, f"{_KINDS[event.table]}")
    yield from unknown([*place, "brand"], event.brand, known.brands, "brand")
    yield from unknown(["brand"], scope.brand, known.brands, "brand")


def algorithm_problems(policy: AlgorithmsPolicy) -> Iterator[Place]:
    """Algorithms that nothing trains, problem types that one is not trained for, parameters that it has not."""
    for name, about in policy.algorithms.items():
        place = ("algorithms", name)
        causal = about.family == "causal"
        yield from unknown(place, name, CAUSAL_ALGORITHMS if causal else tuple(TRAINED), "algorithm")
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
            from e2i_dagster.selection.pipeline import parameters_of

            known = parameters_of(name)
        for parameter in about.defaults:
            yield from unknown([*place, "defaults", parameter], parameter, known, f"parameter of {name}")


def vocabulary_problems(policy: VocabularyPolicy) -> Iterator[Place]:
    """Aliases of columns that no raw table has."""
    from e2i_dagster.warehouse.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns

    tables = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
    for table, aliases in policy.column_aliases.items():
        yield from unknown(["column_aliases", table], table, tables, "raw table")
        if table in tables:
            for alias, column in aliases.items():
                yield from unknown(
                    ["column_aliases", table, alias], column, frame_columns(table), f"column of {table}"
                )


def question_problems(question: QuestionRule) -> Iterator[Place]:
    """Names in the question of ``causal.yaml`` that match no feature."""
    from e2i_dagster.features.definitions import feature_names

    for key in ("confounders", "negative_controls"):
        yield from unknown(["question", key], getattr(question, key), feature_names(), "feature")


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
