"""External validation of a registered version from what warehouse and lake hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.cohorts import build_cohort, patient_frame
from e2i_dagster.cohorts.disclosure import is_small
from e2i_dagster.cohorts.inputs import PATIENT_TABLES, read_current, read_observed
from e2i_dagster.config.cohort import read_cohort
from e2i_dagster.config.feature_views import columns_read
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.policy import Policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.config.subgroups import joined_columns
from e2i_dagster.errors import ConfigError, InputError, VerdictError
from e2i_dagster.features.snapshots import FeatureFiles
from e2i_dagster.pipeline.code import source_code
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.quality.gate import require_raw_gate
from e2i_dagster.registry.evidence import read_evaluation
from e2i_dagster.registry.replay import recorded_run
from e2i_dagster.registry.storage import StoredModel
from e2i_dagster.registry.versions import RegisteredVersion
from e2i_dagster.splits.rows import visible_rows
from e2i_dagster.validation.assess import assess, left_out, require_others
from e2i_dagster.validation.records import ExternalValidation
from e2i_dagster.validation.rows import described, labels_of, require_defined, views_with
from e2i_dagster.validation.store import StoredValidation, find_validation, store_validation
from e2i_dagster.versions import ledger
from e2i_dagster.versions.coverage import coverage
from e2i_dagster.versions.lake import Lake

_AGAIN = "Train and register the model again with `e2i run`."


@dataclass(frozen=True)
class _Made:
    """What a version was made of."""

    model: Any
    frame: pd.DataFrame
    splits: pd.DataFrame
    features: FeatureFiles
    digests: dict[str, str]


def validate_version(
    engine: sa.Engine,
    lake: Lake,
    version: RegisteredVersion,
    cohort: str,
    policy: Policy,
    *,
    by: str,
    tracking_uri: str,
) -> StoredValidation:
    """Judge ``version`` on the patients of another ``cohort``.

    The cohort is built from the current tables; its patients are labelled by the outcome of the version's scope and
    described by the feature definitions that are recorded with the version. Patients who are in a split of the
    version's development cohort are left out. The same request on the same data answers from the store.

    Args:
        cohort: key of a definition in ``config/cohorts``. by: who asks; recorded.

    Raises:
        VerdictError: the version or the cohort cannot be judged: see the message.
        ConfigError, InputError: there is no such cohort, or data are missing.
    """
    scope = _scope_of(version, policy)
    if cohort == scope.cohort:
        raise VerdictError(
            f"{cohort} is the cohort that {version.name} version {version.version} was made of.",
            field="--cohort",
            value=cohort,
            remedy="Name another cohort of config/cohorts; `e2i dossier` shows what was measured on this one.",
        )
    definition = read_cohort(cohort)
    made = _made(engine, lake, version, scope)
    model = made.model
    rules = OptunaPolicy.load()
    grouped = joined_columns(rules.evaluation.subgroups.columns, scope.evaluation.subgroups)
    require_defined(model.features, made.features.views)
    views = views_with(made.features.views, [*model.features, *(group.column for group in grouped)])
    months = policy.sources.months
    of_features = columns_read(views)
    of_cohort = [*PATIENT_TABLES, *scope.outcome.tables, *definition.tables_read]
    named = tuple(dict.fromkeys([*of_cohort, *of_features]))
    read = {table: ledger.current(engine, table, months=months) for table in named}
    inputs = [
        (table, partition, stored.digest)
        for table, found in read.items()
        for partition, stored in found.items()
    ]
    with engine.connect() as connection:
        only = {table: columns for table, columns in of_features.items() if table not in of_cohort}
        require_raw_gate(connection, inputs, reads=only)
    data = made.digests | _digests(read)
    key = digest_of(
        {
            "model": [version.name, version.version, version.model_digest],
            "definitions": [scope.digest(), cohort, definition.version, definition.definition_hash],
            "data": data,
            "policy": [rules.digest(), policy.sources.data_end.isoformat()],
            "code": source_code().digest_of(validate_version),
        }
    )
    known = find_validation(key, scope, tracking_uri=tracking_uri)
    if known is not None:
        return known
    tables = read_current(
        engine,
        lake,
        tuple(dict.fromkeys([*PATIENT_TABLES, *scope.outcome.tables, *of_features])),
        months=months,
    )
    covered = coverage(engine, definition.tables_read, months)
    observed = read_observed(engine, lake, definition.tables_read, tables["patient_journeys"], months=months)
    built = build_cohort(
        definition,
        patient_frame(tables["patient_journeys"], tables["patient_clinical"]),
        observed.events,
        observation_periods=observed.periods,
        data_start=covered.start,
        data_end=covered.end,
        unobserved=covered.unobserved,
    )
    labels = labels_of(scope, built, tables, coverage(engine, scope.outcome.tables, months))
    frame = described(
        labels.frame,
        views,
        tables,
        scope=scope,
        covered={table: coverage(engine, [table], months) for table in of_features},
    )
    others, fitted, held_out = left_out(frame, made.splits)
    require_others(len(others), fitted + held_out, cohort=cohort, development_cohort=scope.cohort)
    development = visible_rows(made.frame, made.splits, model.features, problem_type=model.problem_type).train
    findings = assess(
        model,
        development,
        others,
        cohort=cohort,
        scope=scope.key,
        subgroups=scope.evaluation.subgroups,
        policy=rules,
    )
    found = ExternalValidation(
        key=key,
        model=version.name,
        version=version.version,
        model_digest=version.model_digest,
        algorithm=model.algorithm,
        problem_type=model.problem_type,
        scope=scope.key,
        scope_digest=scope.digest(),
        cohort=cohort,
        cohort_version=definition.version,
        definition_hash=definition.definition_hash,
        development_cohort=scope.cohort,
        overlap_fitted=None if is_small(fitted) else fitted,
        overlap_held_out=None if is_small(held_out) else held_out,
        level=rules.evaluation.level,
        bootstrap=rules.evaluation.bootstrap,
        findings=findings,
        development=read_evaluation(version, tracking_uri=tracking_uri).splits.get("test"),
        data=data,
    )
    return store_validation(found, scope, by=by, tracking_uri=tracking_uri)


def _digests(read: Mapping[str, Mapping[str | None, ledger.DataVersion]]) -> dict[str, str]:
    """One digest for each table, over its partitions."""
    return {
        table: ledger.combined_digest({name or "": stored.digest for name, stored in found.items()})
        for table, found in read.items()
    }


def _scope_of(version: RegisteredVersion, policy: Policy) -> ScopeSpec:
    which = f"{version.name} version {version.version}"
    scope = policy.scopes.get(version.scope or "")
    if scope is None:
        raise ConfigError(
            f"{which} was made for scope {version.scope!r}, which is not in the configuration.",
            file="config/scopes",
            field="scope",
            value=version.scope,
            remedy="Restore the file of the scope.",
        )
    if version.name != scope.model_name:
        raise VerdictError(
            f"{version.name} is a model of effects; what is validated are predictions of an outcome.",
            field="MODEL",
            value=version.name,
            remedy=f"Name {scope.model_name}, or look at the checks of the effect with `e2i causal`.",
        )
    if version.scope_digest != scope.digest():
        raise VerdictError(
            f"The definition of scope {scope.key} has changed since {which} was made ({version.scope_digest} then, "
            f"{scope.digest()} now): its outcome may be another one.",
            file=f"config/scopes/{scope.key}.yaml",
            field="scope",
            value=scope.digest(),
            remedy=f"Restore the definition, or run `e2i run --scope {scope.key}` and validate the new version.",
        )
    return scope


def _made(engine: sa.Engine, lake: Lake, version: RegisteredVersion, scope: ScopeSpec) -> _Made:
    run = recorded_run(engine, f"{version.name}/{version.version}")
    digests: Mapping[str, str] = run["data_digests"]
    found = {
        stage: _stored(engine, stage, scope, version, digests.get(stage))
        for stage in ("trained_model", "training_frame", "splits")
    }
    made_from = found["training_frame"].metadata.get(ledger.MADE_FROM, {})
    views = made_from.get("feature_views", {}).get(scope.key)
    found["feature_views"] = _stored(engine, "feature_views", scope, version, views)
    files: dict[str, Any] = {stage: stored.file for stage, stored in found.items()}
    stored = StoredModel.model_validate(lake.read_document(files["trained_model"], StoredModel))
    return _Made(
        model=stored.model(),
        frame=lake.read_frame([files["training_frame"]]),
        splits=lake.read_frame([files["splits"]]),
        features=FeatureFiles.model_validate(lake.read_document(files["feature_views"], FeatureFiles)),
        digests={stage: stored.digest for stage, stored in found.items()},
    )


def _stored(
    engine: sa.Engine, stage: str, scope: ScopeSpec, version: RegisteredVersion, digest: str | None
) -> ledger.DataVersion:
    for stored in ledger.versions(engine, stage, scope.key):
        if stored.digest == digest and stored.file is not None:
            return stored
    raise _gone(stage, version)


def _gone(stage: str, version: RegisteredVersion) -> InputError:
    return InputError(
        f"The lake has no {stage} that {version.name} version {version.version} was made of.",
        field=stage,
        value=f"{version.name}/{version.version}",
        remedy=_AGAIN,
    )
