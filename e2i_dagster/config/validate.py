"""Every policy file of a configuration folder read once, for the check ``config_valid``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.policy import load_policy
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.config.registry import RegistryPolicy
from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.config.vocabulary import load_vocabulary
from e2i_dagster.errors import ConfigError

READERS: tuple[Callable[[Path], Any], ...] = (
    AlertsPolicy.load,
    AlgorithmsPolicy.load,
    CausalPolicy.load,
    DriftPolicy.load,
    FeastMaterializationPolicy.load,
    FeatureSelectionPolicy.load,
    LifecyclePolicy.load,
    OptunaPolicy.load,
    QualityPolicy.load,
    RegistryPolicy.load,
    ServingPolicy.load,
    load_vocabulary,
)


def validate_folder(folder: Path) -> dict[str, str]:
    """Errors by what could not be read, policy files by number; empty when every file of ``folder`` is valid."""
    problems: dict[str, str] = {}
    try:
        found = load_policy(folder)
        problems.update({str(number): str(error) for number, error in enumerate(found.errors())})
    except ConfigError as error:
        problems["sources"] = str(error)
    for reader in READERS:
        try:
            reader(folder)
        except ConfigError as error:
            problems[getattr(reader, "__qualname__", str(reader))] = str(error)
    return problems
