"""What is deployed: its health now, stopping it and starting it again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.serving.client import authorities
from e2i_dagster.serving.control import Progress, exclusive, start_supervisor, stop_supervisor
from e2i_dagster.serving.examples import curl
from e2i_dagster.serving.release import read_release
from e2i_dagster.serving.state import ServiceRecord, read_record, read_records, services_folder
from e2i_dagster.serving.watch import watchers


class Endpoint(BaseModel):
    """One model at one public address, as ``e2i status`` shows it.

    ``health`` is what ``/health`` says now (``healthy``, ``degraded``, ``unhealthy``), ``unreachable``
    when the supervisor runs but nobody answers, or ``stopped``. ``watched_by`` says who starts the supervisor
    again if it is killed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    service: str
    url: str
    model_id: str
    slot: str
    health: str
    example: str
    bento_tag: str
    since: str
    restarts: int
    watched_by: str
    reason: str | None = None


def endpoints(state: Path | None = None, *, timeout: float = 2.0) -> list[Endpoint]:
    """Every model of every service that was ever deployed, with its health now."""
    state = (state or state_folder()).absolute()
    found: list[Endpoint] = []
    for record in read_records(state):
        active = record.active
        if active is None:
            continue
        health, reason = _health(record, timeout)
        levels = {entry["model_id"]: entry["status"] for entry in health.get("models", [])}
        try:
            signatures = {model.model_id: model for model in read_release(active.bento).models}
        except InputError as error:
            signatures, reason = {}, reason or str(error)
        found += [
            Endpoint(
                service=record.service,
                url=record.url,
                model_id=model_id,
                slot=active.slot,
                health=levels.get(model_id, health["status"]),
                example=curl(record.url, model_id.rsplit("/", 1)[0], signatures[model_id].signature)
                if model_id in signatures
                else "",
                bento_tag=active.tag,
                since=active.since,
                restarts=active.restarts,
                watched_by=watchers(state, record),
                reason=reason,
            )
            for model_id in active.model_ids
        ]
    return found


def _health(record: ServiceRecord, timeout: float) -> tuple[dict[str, Any], str | None]:
    import httpx

    if not record.supervised():
        when = f"since {record.stopped_at}" if record.stopped_at else "its supervisor was killed"
        return {"status": "stopped"}, f"stopped ({when}); `make ui` starts it again"
    try:
        answer = httpx.get(f"{record.url}/health", timeout=timeout, verify=authorities())
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return {"status": "unreachable"}, f"/health does not answer ({type(error).__name__})"
    if "status" not in body:
        return {"status": "unreachable"}, f"/health answered {answer.status_code}"
    return body, None


def stop_all(state: Path | None = None, *, policy: ServingPolicy | None = None) -> list[str]:
    """Stop every service; returns the names of those that ran. The records stay, for a later start."""
    state = (state or state_folder()).absolute()
    policy = policy or ServingPolicy.load()
    stopped: list[str] = []
    for record in read_records(state):
        with exclusive(state, record.service, policy.deployment.lock_seconds, lambda _: None):
            record = read_record(state, record.service) or record  # noqa: PLW2901 - it may have changed meanwhile
            # One that was killed may have left workers, which would start it again.
            if record.supervisor is not None:
                running = record.supervised()
                stop_supervisor(state, record, policy)
                stopped += [record.service] * running
    return stopped


def restart_recorded(
    state: Path | None = None,
    *,
    policy: ServingPolicy | None = None,
    wait: bool = True,
    progress: Progress | None = None,
) -> list[Endpoint]:
    """Start every recorded service that does not run, with the release it last served.

    Args:
        wait: until each is healthy.

    Raises:
        UnavailableError: a public port is taken, or a service is not healthy in time.
    """
    state = (state or state_folder()).absolute()
    policy = policy or ServingPolicy.load()
    say = progress or (lambda _: None)
    for record in read_records(state):
        if record.active is None:
            continue
        with exclusive(state, record.service, policy.deployment.lock_seconds, say):
            if record.supervised():
                say(f"{record.service} runs already at {record.url}")
                continue
            started = start_supervisor(
                state,
                record.service,
                host=record.host,
                port=record.port,
                earlier=record,
                policy=policy,
                resume=True,
            )
            say(f"{record.service} ({record.active.tag}) starts at {started.url}")
    if wait:
        deadline = time.monotonic() + policy.deployment.start_timeout_seconds
        while any(endpoint.health in ("unreachable", "stopped") for endpoint in endpoints(state)):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "A recorded service did not become healthy in time: "
                    + "; ".join(
                        f"{endpoint.service} {endpoint.reason}"
                        for endpoint in endpoints(state)
                        if endpoint.reason
                    )
                    + ".",
                    file=services_folder(state) / "logs",
                    remedy=f"Logs are in {services_folder(state) / 'logs'}.",
                )
            time.sleep(0.25)
    return endpoints(state)
