"""All policy files together, as one frozen value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2i_dagster.config.sources import SourcesPolicy
from e2i_dagster.display import Words
from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.policy_files import base
from e2i_dagster.policy_files.base import PolicyModel, did_you_mean
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.policy_files.observed import ObservedDict, Place, unobserved

if TYPE_CHECKING:
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.experiment import ExperimentSpec
    from e2i_dagster.config.feature_views import FeatureView
    from e2i_dagster.config.names import KnownNames
    from e2i_dagster.config.scope import ScopeSpec


@dataclass(frozen=True)
class Policy:
    """Sources, cohorts, scopes, experiments and features of one configuration folder.

    ``problems`` maps each file that could not be read to its error; such a file is in no other
    field, so that one broken definition does not take the others down.
    """

    folder: Path
    sources: SourcesPolicy
    cohorts: Mapping[str, CohortDefinition]
    scopes: Mapping[str, ScopeSpec]
    problems: Mapping[str, ConfigError] = field(default_factory=dict)
    experiments: Mapping[str, ExperimentSpec] = field(default_factory=dict)
    features: Mapping[str, FeatureView] = field(default_factory=dict)

    @property
    def default_scope(self) -> str:
        """The scope that ``make run`` takes when none is named.

        Raises:
            ConfigError: its file is wrong, or it is not clear which one it is, see
                :func:`e2i_dagster.config.scope.the_default`.
        """
        from e2i_dagster.config.scope import the_default

        if not self.scopes:
            raise self.none_valid("scopes")
        return the_default(self.folder / "scopes", self.scopes, self.broken("scopes")).key

    def scope(self, name: str) -> ScopeSpec:
        """The scope ``name``.

        Raises:
            ConfigError: its file is wrong (says what is wrong in it), or no scope is valid.
            InputError: there is no such file; lists the known names.
        """
        return self._named("scopes", "scope", self.scopes, name)

    def experiment(self, name: str) -> ExperimentSpec:
        """The design ``name``; raises as :meth:`scope` does."""
        return self._named("experiments", "experiment", self.experiments, name)

    def broken(self, kind: str) -> dict[str, ConfigError]:
        """Errors of the files of ``kind`` (``cohorts``, ``scopes``, ``experiments``, ``features``) by file stem."""
        return {
            Path(path).stem: error for path, error in self.problems.items() if Path(path).parent.name == kind
        }

    def errors(self) -> list[ConfigError]:
        """What is wrong with the files, also that there is none where one is needed."""
        empty = [
            self.none_valid(kind)
            for kind, valid in (
                ("cohorts", self.cohorts),
                ("scopes", self.scopes),
                ("features", self.features),
            )
            if not valid and not self.broken(kind)
        ]
        return [*self.problems.values(), *empty]

    def none_valid(self, kind: str) -> ConfigError:
        """The error for a configuration without any valid file of ``kind``."""
        folder = self.folder / kind
        if broken := self.broken(kind):
            return ConfigError.joined(list(broken.values()))
        remedy = f"Add one; the shipped config/{kind} has examples."
        return ConfigError(f"{folder}: no file of {kind} is there. {remedy}", file=folder, remedy=remedy)

    def _named(self, kind: str, word: str, valid: Mapping[str, Any], name: str) -> Any:
        if name in valid:
            return valid[name]
        if (error := self.broken(kind).get(name)) is not None:
            raise error
        if not valid:
            raise self.none_valid(kind)
        near = did_you_mean(name, valid)
        remedy = f"{near} " if near else ""
        remedy += f"Known {kind}: {', '.join(sorted(valid))} (files in config/{kind})."
        raise InputError(f"Unknown {word} {name}. {remedy}", field=word, value=name, remedy=remedy)


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
            problems={Path(path).name: str(problem) for path, problem in policy.problems.items()},
        )

    def to_metadata(self) -> dict[str, Any]:
        """Counts and names for the UI."""
        return {
            "cohorts": ", ".join(sorted(self.cohorts)),
            "scopes": ", ".join(sorted(self.scopes)),
            "files_with_problems": len(self.problems),
            "problems": Words([*self.problems.values()]) if self.problems else None,
        }


@unobserved()
def load_policy(folder: Path) -> Policy:
    """Read ``sources.yaml`` of ``folder``, and ``*.yaml`` in its cohorts, scopes, experiments and features.

    Raises:
        ConfigError: ``sources.yaml`` is wrong (nothing works without it). Wrong files of the four folders
            are listed in ``problems`` instead.
    """
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.cohort_fields import table_fields
    from e2i_dagster.config.experiment import ExperimentSpec
    from e2i_dagster.config.feature_files import read_feature_files
    from e2i_dagster.config.feature_views import feature_names, ordered
    from e2i_dagster.config.names import experiment_problems
    from e2i_dagster.config.scope import ScopeSpec, check_against_cohorts

    problems: dict[str, ConfigError] = {}
    cohorts: dict[str, CohortDefinition] = {}
    scopes: dict[str, ScopeSpec] = {}
    fields = None
    try:
        fields = table_fields(folder)
    except ConfigError as error:
        problems[str(folder / "vocabulary.yaml")] = error
    for path in sorted((folder / "cohorts").glob("*.yaml")):
        try:
            cohorts[path.stem] = CohortDefinition.from_yaml(path, fields)
        except ConfigError as error:
            problems[str(path)] = error
    views, unread = read_feature_files(folder)
    problems |= unread
    known = None
    try:
        known = known_names(folder, feature_names(ordered(views.values())))
    except ConfigError as error:
        problems[error.file or str(folder)] = error
    scope_files = sorted((folder / "scopes").glob("*.yaml"))
    for path in scope_files:
        try:
            scope = ScopeSpec.from_yaml(path, known)
            check_against_cohorts(scope, cohorts, problems)
            scopes[path.stem] = scope
        except ConfigError as error:
            problems[str(path)] = error
    experiments: dict[str, ExperimentSpec] = {}
    designs = sorted((folder / "experiments").glob("*.yaml"))

    def unmatched(spec: ExperimentSpec) -> Iterable[base.Place]:
        files = ([file.stem for file in scope_files], [design.stem for design in designs])
        return experiment_problems(spec, known, *files) if known else ()

    for path in designs:
        try:
            experiment = ExperimentSpec.from_yaml(path, unmatched)
            if broken := problems.get(str(folder / "cohorts" / f"{experiment.eligibility.cohort}.yaml")):
                raise ConfigError(
                    f"{path}: eligibility.cohort: the cohort {experiment.eligibility.cohort!r} is not valid: {broken}",
                    **broken.known,
                )
            experiment.criteria(cohorts)
            experiments[path.stem] = experiment
        except ConfigError as error:
            problems[str(path)] = error
    return Policy(
        folder,
        SourcesPolicy.load(folder),
        _observed("cohorts", cohorts),
        _observed("scopes", scopes),
        problems,
        _observed("experiments", experiments),
        _observed("features", views),
    )


def known_names(folder: Path, features: tuple[str, ...]) -> KnownNames:
    """``features`` and the names of ``algorithms.yaml`` and ``vocabulary.yaml`` in ``folder``.

    Raises:
        ConfigError: one of the two files is missing or wrong.
    """
    from e2i_dagster.config.algorithms import AlgorithmsPolicy
    from e2i_dagster.config.names import KINDS, KnownNames
    from e2i_dagster.tables.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(folder)
    return KnownNames(
        features,
        tuple(AlgorithmsPolicy.load(folder).algorithms),
        vocabulary.values("brand"),
        {table: vocabulary.values(kind) for table, kind in KINDS.items()},
    )


def _observed(folder: str, valid: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who goes through all files of a folder depends on which there are."""
    return ObservedDict(valid, Place(folder, ""))


@lru_cache(maxsize=8)
def _cached(folder: Path) -> Policy:
    return load_policy(folder)


def current_policy() -> Policy:
    """The policy of ``E2I_CONFIG`` or of the checkout, read once per process and folder."""
    return _cached(config_folder())
