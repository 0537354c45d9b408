"""Reads ``config/features/*.yaml``: one feature view a file."""

from __future__ import annotations

from pathlib import Path

from e2i_dagster.config.feature_problems import view_problems
from e2i_dagster.config.feature_views import FeatureView, feature_names, ordered
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import read_yaml
from e2i_dagster.policy_files.observed import note_file, unobserved
from e2i_dagster.tables.vocabulary import VocabularyPolicy, load_vocabulary


def read_feature_file(path: Path, vocabulary: VocabularyPolicy | None = None) -> FeatureView:
    """Read one file; the view is called like it.

    Args:
        vocabulary: what kinds of events are looked up in.

    Raises:
        ConfigError: names file, line, field, value and what was expected.
    """
    read = read_yaml(path, FeatureView, lambda view: view_problems(view, vocabulary))
    view = read.model_copy(update={"name": path.stem})
    note_file(path, FeatureView, view)
    return view


def read_feature_files(folder: Path) -> tuple[dict[str, FeatureView], dict[str, ConfigError]]:
    """Every view of ``features/*.yaml`` in ``folder`` by name, and what is wrong with each other file by path."""
    views: dict[str, FeatureView] = {}
    problems: dict[str, ConfigError] = {}
    owner: dict[str, str] = {}
    try:
        vocabulary = load_vocabulary(folder)
    except ConfigError as error:
        vocabulary = None
        problems[str(folder / "vocabulary.yaml")] = error
    for path in sorted((folder / "features").glob("*.yaml")):
        try:
            view = read_feature_file(path, vocabulary)
            for feature in view.features:
                if feature.name in owner:
                    remedy = "Features of all views are columns of one frame: rename one."
                    raise ConfigError(
                        f"{path}: features: {feature.name!r} is a feature of {owner[feature.name]}.yaml, too. {remedy}",
                        file=path, field="features", value=feature.name, remedy=remedy,
                    )  # fmt: skip
            owner |= dict.fromkeys(view.feature_names, view.name)
            views[view.name] = view
        except ConfigError as error:
            problems[str(path)] = error
    return views, problems


@unobserved()
def check_feature_files(folder: Path) -> None:
    """Read every view of ``folder``.

    Raises:
        ConfigError: the first file that is wrong.
    """
    for error in read_feature_files(folder)[1].values():
        raise error


@unobserved()
def names_in(folder: Path) -> tuple[str, ...]:
    """Names of all features of the valid files of ``folder``."""
    return feature_names(ordered(read_feature_files(folder)[0].values()))
