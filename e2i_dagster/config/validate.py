"""Every policy file of a configuration folder read once: what is wrong with any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.feature_files import check_feature_files
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.policy import load_policy
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.config.registry import RegistryPolicy
from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import ConfigError
from e2i_dagster.tables.vocabulary import load_vocabulary

#: Files that every run of a scope needs, whichever scope it is.
OF_EVERY_RUN: tuple[Callable[[Path], Any], ...] = (
    AlertsPolicy.load,
    AlgorithmsPolicy.load,
    DriftPolicy.load,
    FeastMaterializationPolicy.load,
    FeatureSelectionPolicy.load,
    check_feature_files,
    OptunaPolicy.load,
    QualityPolicy.load,
    RegistryPolicy.load,
    ServingPolicy.load,
    load_vocabulary,
)
READERS: tuple[Callable[[Path], Any], ...] = (*OF_EVERY_RUN, CausalPolicy.load, LifecyclePolicy.load)


def shared_errors(folder: Path, readers: Sequence[Callable[[Path], Any]] = READERS) -> list[ConfigError]:
    """What is wrong with the files of ``folder`` that no single scope, cohort or experiment owns, each said once."""
    found: dict[str, ConfigError] = {}
    for reader in readers:
        try:
            reader(folder)
        except ConfigError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def folder_errors(folder: Path) -> list[ConfigError]:
    """What is wrong with any file of ``folder``, each said once."""
    try:
        own = load_policy(folder).errors()
    except ConfigError as error:
        own = [error]
    return list({str(error): error for error in (*own, *shared_errors(folder))}.values())


def validate_folder(folder: Path) -> dict[str, str]:
    """Errors by number; empty when every file of ``folder`` is valid."""
    return {str(number): str(error) for number, error in enumerate(folder_errors(folder))}
