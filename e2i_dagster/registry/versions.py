"""Versions in the MLflow Model Registry: registration and promotion. Stages are tags and aliases."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.registry import RegistryPolicy, Stage
from e2i_dagster.display import text
from e2i_dagster.errors import VerdictError
from e2i_dagster.registry.mlflow_runs import silence_telemetry
from e2i_dagster.registry.model_files import ModelFiles
from e2i_dagster.registry.stages import Evidence, Transition, check_transition
from e2i_dagster.training import Evaluation, TrainedModel

_STAGE_TAG = "e2i.stage"
_SINCE_TAG = "e2i.stage_since"
_SUPERSEDED_TAG = "e2i.superseded_since"


class RegisteredVersion(BaseModel):
    """One version in the registry.

    Attributes:
        since: when it reached ``stage``.
        scope, scope_digest: the scope it was made for and the digest of its definition then; None when not recorded.
        files: those of its model; None of a version from before they were noted.
        new: False when the same model was registered before and that version is returned.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    stage: Stage
    since: dt.datetime
    superseded_since: dt.datetime | None
    run_id: str
    uri: str
    model_digest: str
    scope: str | None = None
    scope_digest: str | None = None
    files: ModelFiles | None = None
    new: bool = False

    def damage(self) -> str:
        """What is wrong with the stored model in words; empty when it is what was logged."""
        return self.files.damage() if self.files else ""

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows."""
        return {
            "model": self.name,
            "version": self.version,
            "stage": self.stage,
            "since": self.since.isoformat(),
            "mlflow_run_id": self.run_id,
            "model_uri": f"models:/{self.name}/{self.version}",
            "alias_uri": f"models:/{self.name}@{self.stage}",
            "model_digest": self.model_digest,
            "newly_registered": self.new,
        }


def register(
    model: TrainedModel,
    evaluation: Evaluation,
    *,
    name: str,
    model_uri: str,
    run_id: str,
    tags: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
) -> RegisteredVersion:
    """Register the stored model as a new version of ``name``, in stage development.

    A model that computes the same as a registered version (equal digest and data digests) and is stored with the
    same training averages is that version, as long as its files are whole; nothing is added.

    Raises:
        VerdictError: a success criterion is not met. Such a model stays a training run.
    """
    if evaluation.model_digest != model.digest:
        raise VerdictError("the evaluation is of another model than the one to register.")
    if not evaluation.accepted:
        raise VerdictError("not registered: " + " ".join(evaluation.reasons()))
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
    identity = _identity(model)
    for known in client.search_model_versions(f"name='{name}'"):
        if known.tags.get("e2i.identity") == identity and not _version(client, known).damage():
            return _version(client, known)
    created = client.create_model_version(
        name,
        model_uri,
        run_id=run_id,
        description=_description(model, evaluation),
        tags={
            **(tags or {}),
            "e2i.identity": identity,
            "e2i.model_digest": model.digest,
            _STAGE_TAG: "development",
            _SINCE_TAG: _now().isoformat(),
        },
    )
    client.set_registered_model_alias(name, "development", created.version)
    return _version(client, client.get_model_version(name, created.version)).model_copy(update={"new": True})


def version_at(
    name: str, stage_or_version: str, *, tracking_uri: str | None = None
) -> RegisteredVersion | None:
    """The version with that alias or number, or None."""
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    try:
        if stage_or_version.isdigit():
            return _version(client, client.get_model_version(name, stage_or_version))
        return _version(client, client.get_model_version_by_alias(name, stage_or_version))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def versions_of(name: str, *, tracking_uri: str | None = None) -> list[RegisteredVersion]:
    """Every version of the registered model ``name``, oldest first; empty when there is none."""
    client = _client(tracking_uri)
    found = [_version(client, version) for version in client.search_model_versions(f"name='{name}'")]
    return sorted(found, key=lambda version: int(version.version))


def models_with(stage: str, *, tracking_uri: str | None = None) -> list[str]:
    """Names of the registered models that have the alias ``stage``, sorted."""
    client = _client(tracking_uri)
    found, token = [], None
    while True:
        page = client.search_registered_models(page_token=token)
        found += [model.name for model in page if stage in (model.aliases or {})]
        token = page.token
        if not token:
            return sorted(found)


def registered_models(*, tracking_uri: str | None = None) -> list[str]:
    """Names of all registered models, sorted."""
    return sorted(model.name for model in _client(tracking_uri).search_registered_models(max_results=1000))


def promote(
    version: RegisteredVersion,
    to_stage: Stage,
    evidence: Evidence,
    *,
    policy: RegistryPolicy | None = None,
    tracking_uri: str | None = None,
    now: dt.datetime | None = None,
) -> tuple[RegisteredVersion, Transition]:
    """Move ``version`` to ``to_stage`` when every rule of ``config/registry.yaml`` is met.

    The days in the present stage and since it was superseded are taken from the registry, not from
    ``evidence``. The alias of the stage moves to this version, and the version whose stage it was is marked as
    superseded. A version that has the stage already is returned as it is.

    Raises:
        VerdictError: a rule is not met; names each. Nothing is changed then.
    """
    present, measured, verdict = assess_promotion(
        version, to_stage, evidence, policy=policy, tracking_uri=tracking_uri, now=now
    )
    if present.stage == to_stage:
        return present, verdict
    require_allowed(present, verdict)
    return set_stage(present, to_stage, measured, tracking_uri=tracking_uri, now=now), verdict


def assess_promotion(
    version: RegisteredVersion,
    to_stage: Stage,
    evidence: Evidence,
    *,
    policy: RegistryPolicy | None = None,
    tracking_uri: str | None = None,
    now: dt.datetime | None = None,
) -> tuple[RegisteredVersion, Evidence, Transition]:
    """The version as the registry has it now, the evidence with the registry's days, and what the rules say.

    Raises:
        VerdictError: the evidence is about another model.
    """
    client = _client(tracking_uri)
    now = now or _now()
    present = _version(client, client.get_model_version(version.name, version.version))
    if present.stage == to_stage:
        return present, evidence, Transition(from_stage=to_stage, to_stage=to_stage, results=())
    if present.model_digest != evidence.model_digest:
        raise VerdictError(
            f"the evidence is about the model {evidence.model_digest}, version {version.version} of "
            f"{version.name} is {present.model_digest}.",
            field="evidence",
            value=evidence.model_digest,
            remedy="Train and register the model again with `e2i run`.",
        )
    superseded = present.superseded_since
    measured = evidence.model_copy(
        update={
            "days_in_stage": (now - present.since).total_seconds() / 86_400,
            "days_superseded": None if superseded is None else (now - superseded).total_seconds() / 86_400,
        }
    )
    return present, measured, check_transition(present.stage, to_stage, measured, policy=policy)


def require_allowed(version: RegisteredVersion, verdict: Transition) -> None:
    """Refuse a transition of which a rule is not met.

    Raises:
        VerdictError: names each rule that is not met.
    """
    if not verdict.allowed:
        raise VerdictError(
            f"{version.name} version {version.version} does not go from {verdict.from_stage} to "
            f"{verdict.to_stage}: " + " ".join(verdict.reasons()),
            file="config/registry.yaml",
            field=verdict.unmet[0],
            value=f"{version.name}/{version.version}",
        )


def set_stage(
    version: RegisteredVersion,
    to_stage: Stage,
    evidence: Evidence,
    *,
    tracking_uri: str | None = None,
    now: dt.datetime | None = None,
) -> RegisteredVersion:
    """Give ``version`` the stage, and its alias; who had it before is marked as superseded. Judges nothing."""
    client = _client(tracking_uri)
    now = now or _now()
    before = version_at(version.name, to_stage, tracking_uri=tracking_uri) if to_stage != "archived" else None
    client.set_model_version_tag(version.name, version.version, _SINCE_TAG, now.isoformat())
    client.set_model_version_tag(version.name, version.version, _STAGE_TAG, to_stage)
    client.set_model_version_tag(version.name, version.version, "e2i.evidence", evidence.measured_digest())
    if to_stage == "archived":
        for alias in client.get_model_version(version.name, version.version).aliases:
            client.delete_registered_model_alias(version.name, alias)
    else:
        client.set_registered_model_alias(version.name, to_stage, version.version)
        _supersede(client, before, version, to_stage, now)
    return _version(client, client.get_model_version(version.name, version.version))


def set_back(
    version: RegisteredVersion, stage: Stage, *, tracking_uri: str | None = None
) -> RegisteredVersion:
    """Give the alias ``stage`` back to ``version``, which had it before; who has it now is marked as superseded."""
    client = _client(tracking_uri)
    before = version_at(version.name, stage, tracking_uri=tracking_uri)
    client.set_registered_model_alias(version.name, stage, version.version)
    if _SUPERSEDED_TAG in client.get_model_version(version.name, version.version).tags:
        client.delete_model_version_tag(version.name, version.version, _SUPERSEDED_TAG)
    _supersede(client, before, version, stage, _now())
    return _version(client, client.get_model_version(version.name, version.version))


def _supersede(
    client: Any, before: RegisteredVersion | None, by: RegisteredVersion, stage: Stage, now: dt.datetime
) -> None:
    """A version that has gone further than ``stage`` is not superseded by one that takes its alias there."""
    if before is not None and before.version != by.version and before.stage == stage:
        client.set_model_version_tag(before.name, before.version, _SUPERSEDED_TAG, now.isoformat())


def _client(tracking_uri: str | None) -> Any:
    silence_telemetry()
    import mlflow

    return mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _description(model: TrainedModel, evaluation: Evaluation) -> str:
    """The version in words: algorithm, features, patients, and what each success criterion measured."""
    measured = "; ".join(f"{criterion.rule}: {text(criterion.value)}" for criterion in evaluation.criteria)
    return (
        f"{model.algorithm} for {model.problem_type.replace('_', ' ')}, {len(model.features)} features, "
        f"{model.training_rows:,} training patients. {measured}"
    )


def _identity(model: TrainedModel) -> str:
    from e2i_dagster.policy_files.base import digest_of

    # A version stored without the averages is another one: its rows cannot be explained.
    averages = {"training_means": list(model.training_means)} if model.training_means else {}
    return digest_of({"model": model.digest, "data": model.data_digests, **averages})


def _version(client: Any, found: Any) -> RegisteredVersion:
    tags = found.tags
    created = dt.datetime.fromtimestamp(found.creation_timestamp / 1000, dt.UTC)
    superseded = tags.get(_SUPERSEDED_TAG)
    return RegisteredVersion(
        name=found.name,
        version=str(found.version),
        stage=tags.get(_STAGE_TAG, "development"),
        since=dt.datetime.fromisoformat(tags[_SINCE_TAG]) if _SINCE_TAG in tags else created,
        superseded_since=None if superseded is None else dt.datetime.fromisoformat(superseded),
        run_id=found.run_id or "",
        uri=found.source,
        model_digest=tags.get("e2i.model_digest", ""),
        scope=tags.get("e2i.scope"),
        scope_digest=tags.get("e2i.scope_digest"),
        files=ModelFiles.noted(client, found.source),
    )


def _now() -> dt.datetime:
    return dt.datetime.fromtimestamp(time.time(), dt.UTC)
