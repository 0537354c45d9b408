"""All policy files together, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2i_dagster.config.base import PolicyModel
from e2i_dagster.config.environment import config_folder
from e2i_dagster.config.sources import SourcesPolicy
from e2i_dagster.errors import ConfigError

if TYPE_CHECKING:
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.experiment import ExperimentSpec
    from e2i_dagster.config.scope import ScopeSpec


@dataclass(frozen=True)
class Policy:
    """Sources, cohorts, scopes and experiments of one configuration folder.

    ``problems`` maps each file that could not be read to its error; such a file is in no other
    field, so that one broken definition does not take the others down.
    """

    folder: Path
    sources: SourcesPolicy
    cohorts: Mapping[str, CohortDefinition]
    scopes: Mapping[str, ScopeSpec]
    problems: Mapping[str, str] = field(default_factory=dict)
    experiments: Mapping[str, ExperimentSpec] = field(default_factory=dict)

    @property
    def default_scope(self) -> str:
        """The scope that ``make run`` takes when none is named."""
        return next((name for name, scope in self.scopes.items() if scope.default), sorted(self.scopes)[0])


class PolicySummary(PolicyModel):
    """What of the configuration was read, by digest, and what could not be read."""

    cohorts: dict[str, str]
    scopes: dict[str, str]
    sources: str
    problems: dict[str, str]

    @classmethod
    def of(cls, policy: Policy) -> PolicySummary:
        """The summary of ``policy``."""
        return cls(
            cohorts={name: definition.definition_hash for name, definition in policy.cohorts.items()},
            scopes={name: scope.digest() for name, scope in policy.scopes.items()},
            sources=policy.sources.digest(),
            problems={Path(path).name: problem for path, problem in policy.problems.items()},
        )

    def to_metadata(self) -> dict[str, Any]:
        """Counts and names for the UI."""
        return {
            "cohorts": ", ".join(sorted(self.cohorts)),
            "scopes": ", ".join(sorted(self.scopes)),
            "files_with_problems": len(self.problems),
            "problems_md": "\n\n".join(self.problems.values()) or None,
        }


def load_policy(folder: Path) -> Policy:
    """Read ``sources.yaml``, ``cohorts/*.yaml``, ``scopes/*.yaml`` and ``experiments/*.yaml`` of ``folder``.

    Raises:
        ConfigError: ``sources.yaml`` is wrong (nothing works without it). Wrong cohort, scope and
            experiment files are listed in ``problems`` instead.
    """
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.cohort_fields import table_fields
    from e2i_dagster.config.experiment import ExperimentSpec
    from e2i_dagster.config.scope import ScopeSpec, check_against_cohorts

    problems: dict[str, str] = {}
    cohorts: dict[str, CohortDefinition] = {}
    scopes: dict[str, ScopeSpec] = {}
    fields = None
    try:
        fields = table_fields(folder)
    except ConfigError as error:
        problems[str(folder / "vocabulary.yaml")] = str(error)
    for path in sorted((folder / "cohorts").glob("*.yaml")):
        try:
            cohorts[path.stem] = CohortDefinition.from_yaml(path, fields)
        except ConfigError as error:
            problems[str(path)] = str(error)
    for path in sorted((folder / "scopes").glob("*.yaml")):
        try:
            scope = ScopeSpec.from_yaml(path)
            check_against_cohorts(scope, cohorts)
            scopes[path.stem] = scope
        except ConfigError as error:
            problems[str(path)] = str(error)
    experiments: dict[str, ExperimentSpec] = {}
    for path in sorted((folder / "experiments").glob("*.yaml")):
        try:
            experiment = ExperimentSpec.from_yaml(path)
            experiment.criteria(cohorts)
            experiments[path.stem] = experiment
        except ConfigError as error:
            problems[str(path)] = str(error)
    return Policy(folder, SourcesPolicy.load(folder), cohorts, scopes, problems, experiments)


@lru_cache(maxsize=8)
def _cached(folder: Path) -> Policy:
    return load_policy(folder)


def current_policy() -> Policy:
    """The policy of ``E2I_CONFIG`` or of the checkout, read once per process and folder."""
    return _cached(config_folder())
