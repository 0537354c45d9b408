"""Deploying a release.

:func:`deploy` starts the new colour beside the one that serves, waits until it is healthy, compares
its answers with those of the offline model, switches, and lets the old one end. Until the switch the
old one serves; whatever fails before leaves nothing behind.
"""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.serving import ServingPolicy, Slot
from e2i_dagster.display import Table, Words
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.policy_files.environment import port as configured_port
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.serving.client import authorities, score
from e2i_dagster.serving.control import (
    Control,
    DeploymentError,
    Progress,
    exclusive,
    start_supervisor,
    stop_supervisor,
)
from e2i_dagster.serving.endpoints import Endpoint, endpoints, restart_recorded, stop_all
from e2i_dagster.serving.examples import curl
from e2i_dagster.serving.release import Release, read_release
from e2i_dagster.serving.state import (
    PROBE_HEADER,
    ActiveColour,
    ServiceRecord,
    deployed_name,
    log_path,
    make_private,
    read_record,
    services_folder,
)
from e2i_dagster.serving.supervisor import new_colour_name

if TYPE_CHECKING:
    import httpx
    import pandas as pd


@dataclass(frozen=True)
class ParitySample:
    """Rows that the offline model has answered.

    Attributes:
        features: the columns of the signature, any number of rows.
        predictions: the offline model's value for each row, in order: probability of the second of
            two classes, of the most probable class when there are more, or the number.
    """

    features: pd.DataFrame
    predictions: Sequence[float] | Any


class Parity(BaseModel):
    """Comparison of live answers with the offline model."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: str
    rows: int
    max_difference: float
    tolerance: float
    holds: bool


class DeployedModel(BaseModel):
    """One model version that a deployment answers for."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str
    version: str
    model_id: str
    stage: str
    digest: str
    example: str


class Deployment(BaseModel):
    """A release that was switched to.

    Attributes:
        deployment_id: UUID.
        colour: name of the colour that serves it.
        previous_release: bento tag that served before; None if nothing did.
        parity: one comparison for each model for which rows were given; a model that the previous
            colour already served, file for file, may be without.
        seconds: time of each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    #: How and when it was switched to; what answers is release, slot and address.
    volatile_fields: ClassVar[set[str]] = {
        "deployment_id",
        "colour",
        "deployed_at",
        "deployed_by",
        "internal_url",
        "parity",
        "previous_release",
        "seconds",
        "started_at",
    }

    deployment_id: str
    service: str
    slot: Slot
    url: str
    internal_url: str
    bento_tag: str
    release_version: str
    colour: str
    workers: int
    models: tuple[DeployedModel, ...]
    previous_release: str | None
    parity: tuple[Parity, ...]
    seconds: dict[str, float]
    deployed_by: str
    started_at: datetime
    deployed_at: datetime

    @property
    def deployed_name(self) -> str:
        """Under which the service in this slot is recorded."""
        return deployed_name(self.service, self.slot)

    @property
    def parity_holds(self) -> bool:
        """Whether every comparison was within its tolerance."""
        return all(check.holds for check in self.parity)

    @property
    def parity_table(self) -> Table:
        """How far the answers through HTTP are from those of the offline models."""
        return Table(
            ("model", "rows", "largest difference", "tolerance", "holds"),
            [
                (check.model_id, check.rows, check.max_difference, check.tolerance, check.holds)
                for check in self.parity
            ],
            {"largest difference": ".2e", "tolerance": ".0e"},
        )

    def to_metadata(self) -> dict[str, Any]:
        """Address, models, parity and times for the asset's page."""
        return {
            "url": self.url,
            "service": self.service,
            "slot": self.slot,
            "bento": self.bento_tag,
            "previous_bento": self.previous_release or "none",
            "seconds": sum(self.seconds.values()),
            "models": Table(
                ("model", "stage", "digest"),
                [(model.model_id, model.stage, model.digest) for model in self.models],
            ),
            "parity": self.parity_table,
            "steps": Table(("step", "seconds"), self.seconds.items()),
            "examples": Words([model.example for model in self.models], "code"),
        }

    def to_record(self) -> dict[str, Any]:
        """The row of ``ml_bentoml_services``."""
        return {
            "id": self.deployment_id,
            "service_name": self.service,
            "bento_tag": self.bento_tag,
            "bento_version": self.release_version,
            "replicas": self.workers,
            "environment": self.slot,
            "health_status": "healthy",
            "last_health_check": self.deployed_at,
            "serving_endpoint": self.url,
            "internal_endpoint": self.internal_url,
            "status": "active",
            "created_at": self.started_at,
            "started_at": self.deployed_at,
            "created_by": self.deployed_by,
            "labels": {"colour": self.colour, "models": [model.model_id for model in self.models]},
        }

    def model_records(self) -> list[dict[str, Any]]:
        """The rows of ``ml_deployments``: one for each model."""
        parity = {check.model_id: check.model_dump(mode="json") for check in self.parity}
        return [
            {
                "id": str(uuid.uuid5(uuid.UUID(self.deployment_id), model.model_id)),
                "service_id": self.deployment_id,
                "deployment_name": f"{self.service}/{self.slot}/{model.model_name}",
                "model_name": model.model_name,
                "model_version": model.version,
                "environment": self.slot,
                "endpoint_name": self.service,
                "endpoint_url": f"{self.url}/{model.model_name}/predict",
                "status": "active",
                "deployed_by": self.deployed_by,
                "deployment_config": {
                    "bento_tag": self.bento_tag,
                    "stage": model.stage,
                    "model_digest": model.digest,
                    "parity": parity.get(model.model_id),
                    "seconds": self.seconds,
                },
                "created_at": self.started_at,
                "deployed_at": self.deployed_at,
            }
            for model in self.models
        ]


def deploy(
    release: Release,
    *,
    stages: Mapping[str, str],
    parity: Mapping[str, ParitySample],
    slot: Slot = "staging",
    state: Path | None = None,
    policy: ServingPolicy | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    audit: bool = True,
    deployed_by: str | None = None,
    progress: Progress | None = None,
) -> Deployment:
    """Put ``release`` behind the public port of its service.

    Args:
        stages: registry stage of each model, by model name.
        parity: rows and offline answers, by model name. A model may be left out only when the colour
            that serves now has exactly the same model files.
        slot: a pipeline deploys to staging; the way to the others is a promotion. The release that slot production
            had before stays warm (:func:`switch_back`).
        port: public port; by default that of the service and slot above ``E2I_PORT_BASE`` (0: a free one,
            the same as before where possible). Only used when the service does not run yet.
        audit: write answers to ``ml_predictions``.
        progress: called with a sentence at each step.

    Raises:
        InputError: a stage or parity rows are missing, or rows do not fit the signature.
        UnavailableError: the public port is taken, or another deployment does not end.
        DeploymentError: the colour does not start, is not healthy or does not agree with the
            offline model; what served before still does.
    """
    policy = policy or ServingPolicy.load()
    state = (state or state_folder()).absolute()
    say = progress or (lambda _: None)
    began = time.monotonic()
    started_at = datetime.now(UTC)
    make_private(services_folder(state))
    seconds: dict[str, float] = {}
    name = deployed_name(release.service, slot)
    with exclusive(state, name, policy.deployment.lock_seconds, say):
        record = read_record(state, name)
        previous = _serving(record)
        by_id = _checked(release, stages, parity, previous)
        if record is None or not record.supervised():
            if port is None:
                port = configured_port(policy.port_offset(release.service, slot))
            record = start_supervisor(
                state, name, host=host, port=port, earlier=record, policy=policy, resume=False
            )
            fresh = True
        else:
            fresh = False
        colour = ActiveColour(
            colour=new_colour_name(release.version),
            bento=release.path,
            tag=release.tag,
            version=release.version,
            slot=slot,
            stages=by_id,
            audit=audit,
            model_ids=tuple(model.model_id for model in release.models),
            since=started_at.isoformat(timespec="seconds"),
        )
        try:
            with Control(record) as control:
                seconds["supervisor"] = round(time.monotonic() - began, 3)
                say(f"starting {release.tag} beside {previous.tag if previous else 'nothing'}")
                candidate = control.ask(
                    "start",
                    colour=colour.model_dump(mode="json"),
                    deployment=policy.deployment.model_dump(mode="json"),
                )
                internal = f"http://127.0.0.1:{candidate['port']}"
                mark = time.monotonic()
                _wait_healthy(control, candidate, release, log=log_path(state, name), policy=policy, say=say)
                seconds["start"] = round(time.monotonic() - mark, 3)
                mark = time.monotonic()
                compared = _compare(release, parity, url=internal, token=record.token, policy=policy, say=say)
                seconds["parity"] = round(time.monotonic() - mark, 3)
                mark = time.monotonic()
                control.ask("switch", warm=policy.deployment.warm_seconds if slot == "production" else 0)
                seconds["switch"] = round(time.monotonic() - mark, 3)
        except BaseException:
            if fresh:
                stop_supervisor(state, record, policy)
            raise
        switched = read_record(state, name)
        say(f"{release.tag} answers at {record.url}")
    return _deployment(
        release,
        colour,
        record,
        internal=internal,
        previous=previous,
        parity=compared,
        seconds=seconds,
        workers=switched.active.workers if switched and switched.active else 1,
        deployed_by=deployed_by,
        started_at=started_at,
    )


def switch_back(
    release: Release,
    *,
    slot: Slot,
    state: Path | None = None,
    policy: ServingPolicy | None = None,
    deployed_by: str | None = None,
    progress: Progress | None = None,
) -> Deployment | None:
    """Send the traffic of ``slot`` to ``release`` again, which served it before and is still warm.

    Nothing is started or compared: the colour was proven when it was deployed. The one that is left stays warm.

    Returns:
        None when no warm colour serves exactly this release; it has to be deployed then.
    """
    policy = policy or ServingPolicy.load()
    state = (state or state_folder()).absolute()
    say = progress or (lambda _: None)
    began, started_at = time.monotonic(), datetime.now(UTC)
    name = deployed_name(release.service, slot)
    with exclusive(state, name, policy.deployment.lock_seconds, say):
        record = read_record(state, name)
        previous = _serving(record)
        if record is None or previous is None:
            return None
        with Control(record) as control:
            answer = control.ask(
                "switch_back", version=release.version, warm=policy.deployment.warm_seconds, check=False
            )
        if not answer["ok"]:
            return None
        seconds = {"switch": round(time.monotonic() - began, 3)}
    say(f"{release.tag} answers at {record.url} again")
    colour = ActiveColour.model_validate(answer["colour"])
    return _deployment(
        release,
        colour,
        record,
        internal=f"http://127.0.0.1:{colour.port}",
        previous=previous,
        parity=(),
        seconds=seconds,
        workers=colour.workers,
        deployed_by=deployed_by,
        started_at=started_at,
    )


def _deployment(
    release: Release,
    colour: ActiveColour,
    record: ServiceRecord,
    *,
    internal: str,
    previous: ActiveColour | None,
    parity: tuple[Parity, ...],
    seconds: dict[str, float],
    workers: int,
    deployed_by: str | None,
    started_at: datetime,
) -> Deployment:
    return Deployment(
        deployment_id=str(uuid.uuid4()),
        service=release.service,
        slot=colour.slot,  # type: ignore[arg-type] - the record's slots are text
        url=record.url,
        internal_url=internal,
        bento_tag=release.tag,
        release_version=release.version,
        colour=colour.colour,
        workers=workers,
        models=tuple(
            DeployedModel(
                model_name=model.model_name,
                version=model.version,
                model_id=model.model_id,
                stage=colour.stages[model.model_id],
                digest=model.digest,
                example=curl(record.url, model.model_name, model.signature),
            )
            for model in release.models
        ),
        previous_release=previous.tag if previous else None,
        parity=parity,
        seconds=seconds,
        deployed_by=deployed_by or getpass.getuser(),
        started_at=started_at,
        deployed_at=datetime.now(UTC),
    )


def _serving(record: ServiceRecord | None) -> ActiveColour | None:
    return record.active if record is not None and record.supervised() else None


def _checked(
    release: Release,
    stages: Mapping[str, str],
    parity: Mapping[str, ParitySample],
    previous: ActiveColour | None,
) -> dict[str, str]:
    """Stage by model id; refuses models without stage, and unknown ones without parity rows."""
    nowhere = [model.model_name for model in release.models if model.model_name not in stages]
    if nowhere:
        raise InputError(
            f"No stage was given for {', '.join(nowhere)}; every answer names it.",
            field="stages",
            value=nowhere[0],
            remedy="Give the stage of each model.",
        )
    compared_before: set[str] = set()
    if previous is not None and (previous.bento / "bento.yaml").is_file():
        compared_before = {
            f"{model.model_name}:{model.digest}" for model in read_release(previous.bento).models
        }
    unproven = [
        model.model_name
        for model in release.models
        if f"{model.model_name}:{model.digest}" not in compared_before
        and (model.model_name not in parity or not len(parity[model.model_name].features))
    ]
    if unproven:
        raise InputError(
            f"No parity rows were given for {', '.join(unproven)}, which the service does not answer for yet.",
            remedy="Give rows with the offline model's answers.",
        )
    strange = sorted(set(parity) - {model.model_name for model in release.models})
    if strange:
        raise InputError(
            f"Parity rows were given for {', '.join(strange)}, which the release does not have.",
            field="parity",
            value=next(iter(strange)),
            remedy="Give rows of models of the release only.",
        )
    return {model.model_id: stages[model.model_name] for model in release.models}


def _wait_healthy(
    control: Control,
    candidate: Mapping[str, Any],
    release: Release,
    *,
    log: Path,
    policy: ServingPolicy,
    say: Progress,
) -> None:
    """Wait until the candidate says that it is healthy and serves this release."""
    import httpx

    began = time.monotonic()
    limit = policy.deployment.start_timeout_seconds
    failure = Path(candidate["failure"])
    reported = began
    address = f"http://127.0.0.1:{candidate['port']}"
    with httpx.Client(base_url=address, timeout=2, verify=authorities()) as client:
        while True:
            if failure.exists() and (why := failure.read_text(encoding="utf-8")):
                raise DeploymentError(f"{release.tag} could not start: {why}")
            alive = control.ask("alive", check=False)
            if not alive["ok"]:
                raise DeploymentError(
                    f"{release.tag} ended while it started (exit code {alive['code']}). Its log is {log}."
                )
            if _is_healthy(client, release):
                say(f"{release.tag} is healthy after {time.monotonic() - began:.1f} s")
                return
            if time.monotonic() - began > limit:
                raise DeploymentError(
                    f"{release.tag} was not healthy within {limit:g} s (start_timeout_seconds in "
                    f"config/serving.yaml). Its log is {log}."
                )
            if time.monotonic() - reported > 5:
                reported = time.monotonic()
                say(f"waiting for {release.tag}: {reported - began:.0f} of at most {limit:g} s")
            time.sleep(0.1)


def _is_healthy(client: httpx.Client, release: Release) -> bool:
    """Whether the candidate says that it is healthy and serves this release."""
    import httpx

    try:
        answer = client.get("/health")
    except httpx.TransportError:  # until the worker accepts, a connection waits or is refused
        return False
    if answer.status_code != 200 or not answer.headers["content-type"].startswith("application/json"):
        return False
    found = answer.json()
    return found.get("status") == "healthy" and found.get("release") == release.version


def _compare(
    release: Release,
    parity: Mapping[str, ParitySample],
    *,
    url: str,
    token: str,
    policy: ServingPolicy,
    say: Progress,
) -> tuple[Parity, ...]:
    """Answers of the candidate over HTTP against those of the offline model."""
    import numpy as np

    compared: list[Parity] = []
    for model in release.models:
        sample = parity.get(model.model_name)
        if sample is None:
            continue
        offline = np.asarray(sample.predictions, dtype="float64")
        if offline.shape != (len(sample.features),):
            raise InputError(
                f"Parity of {model.model_name}: {len(sample.features)} rows but answers of shape {offline.shape}.",
                field=model.model_name,
                remedy="Give one number for each row.",
            )
        try:
            live = score(
                url,
                sample.features,
                model_name=model.model_name,
                id_column=None,
                headers={PROBE_HEADER: token},
                timeout=policy.request.timeout_seconds,
            )
        except UnavailableError as error:
            raise DeploymentError(
                f"{release.tag} failed on the parity rows of {model.model_name}: {error}"
            ) from None
        except InputError as error:
            raise DeploymentError(
                f"{release.tag} refused the parity rows of {model.model_name}: {error}"
            ) from None
        difference = np.abs(live["prediction_value"].to_numpy() - offline)
        largest = float(difference.max())
        tolerance = policy.deployment.parity_tolerance
        result = Parity(
            model_id=model.model_id,
            rows=len(offline),
            max_difference=largest,
            tolerance=tolerance,
            # A NaN on either side is no agreement.
            holds=bool((difference <= tolerance).all()),
        )
        if not result.holds:
            raise DeploymentError(
                f"{model.model_id} answers differently over HTTP than offline: "
                f"{int((~(difference <= tolerance)).sum())} of {result.rows} rows differ by more than "
                f"{tolerance:g} (at most {largest:.3g}). "
                "Check that offline and live use the same model version and the same column types."
            )
        say(f"{model.model_id}: {result.rows} rows agree with the offline model")
        compared.append(result)
    return tuple(compared)


__all__ = [
    "DeployedModel",
    "Deployment",
    "DeploymentError",
    "Endpoint",
    "Parity",
    "ParitySample",
    "Slot",
    "deploy",
    "endpoints",
    "restart_recorded",
    "stop_all",
    "switch_back",
]
