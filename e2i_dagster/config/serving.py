"""``config/serving.yaml``: services, limits of a request, health levels, deployment, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from e2i_dagster.config.names import trusted_type_problems
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import PolicyModel, read_yaml
from e2i_dagster.policy_files.environment import config_folder

ServiceName = Literal["classification", "regression", "causal"]
Slot = Literal["staging", "shadow", "production"]
ServedProblem = Literal[
    "binary_classification", "multiclass_classification", "regression", "survival", "causal"
]


class ServicePolicy(PolicyModel):
    """One service: where it listens and what kind of model it takes."""

    port_offset: int = Field(ge=1, le=99)
    problem_types: tuple[ServedProblem, ...] = Field(min_length=1)
    cpu: int = Field(ge=1)
    memory: str = Field(pattern=r"^\d+(Mi|Gi)$")


class RequestPolicy(PolicyModel):
    """What one request may hold.

    Args:
        max_explained: rows of one request that are explained; 0, as in releases built before there were
            explanations: none.
    """

    max_batch: int = Field(ge=1)
    max_explained: int = Field(default=0, ge=0)
    max_body_bytes: int = Field(ge=1024)
    max_table_bytes: int = Field(ge=1024)
    timeout_seconds: float = Field(gt=0)


class HealthPolicy(PolicyModel):
    """Levels over the last ``window`` answers; nothing is concluded from fewer than ``min_answers``."""

    window: int = Field(ge=1)
    min_answers: int = Field(ge=1)
    degraded_error_rate: float = Field(gt=0, lt=1)
    unhealthy_error_rate: float = Field(gt=0, le=1)
    degraded_latency_ms: float = Field(gt=0)
    unhealthy_latency_ms: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.unhealthy_error_rate < self.degraded_error_rate:
            raise ValueError("unhealthy_error_rate must not be below degraded_error_rate")
        if self.unhealthy_latency_ms < self.degraded_latency_ms:
            raise ValueError("unhealthy_latency_ms must not be below degraded_latency_ms")
        if self.min_answers > self.window:
            raise ValueError("min_answers must not exceed window")
        return self


class DeploymentPolicy(PolicyModel):
    """Start, parity, switch and restart of a colour. Times in seconds."""

    workers: int = Field(ge=1)
    worker_memory_mb: int = Field(ge=1)
    threads: int = Field(ge=1)
    start_timeout_seconds: float = Field(gt=0)
    parity_tolerance: float = Field(gt=0)
    drain_seconds: float = Field(ge=0)
    warm_seconds: float = Field(ge=0)
    stop_seconds: float = Field(gt=0)
    restart_first_seconds: float = Field(gt=0)
    restart_most_seconds: float = Field(gt=0)
    lock_seconds: float = Field(ge=0)


class AuditPolicy(PolicyModel):
    """How answers reach ``ml_predictions``."""

    batch_rows: int = Field(ge=1)
    flush_seconds: float = Field(gt=0)
    max_journal_bytes: int = Field(ge=1)
    close_seconds: float = Field(gt=0)


class MirrorPolicy(PolicyModel):
    """How requests reach slot shadow."""

    every_seconds: float = Field(gt=0)
    most_rows: int = Field(ge=1)


class ServingPolicy(PolicyModel):
    """The whole file."""

    services: dict[ServiceName, ServicePolicy]
    slot_port_offsets: dict[Slot, int]
    request: RequestPolicy
    health: HealthPolicy
    deployment: DeploymentPolicy
    audit: AuditPolicy
    mirror: MirrorPolicy
    trusted_types: tuple[str, ...]

    @field_validator("slot_port_offsets")
    @classmethod
    def _every_slot_has_its_own(cls, offsets: dict[Slot, int]) -> dict[Slot, int]:
        if set(offsets) != set(get_args(Slot)) or len(set(offsets.values())) != len(offsets):
            raise ValueError(f"give each of {', '.join(get_args(Slot))} an offset of its own")
        return offsets

    @classmethod
    def load(cls, folder: Path | None = None) -> ServingPolicy:
        """Read ``serving.yaml`` of ``folder`` (default: the configuration folder)."""
        return read_yaml(
            (folder or config_folder()) / "serving.yaml",
            cls,
            lambda read: trusted_type_problems(read.trusted_types),
        )

    def port_offset(self, service: ServiceName, slot: Slot) -> int:
        """Offset of the port of ``service`` in ``slot`` from ``E2I_PORT_BASE``."""
        return self.services[service].port_offset + self.slot_port_offsets[slot]

    def service_of(self, problem_type: str) -> ServiceName | None:
        """The service that takes models of ``problem_type``; None if none does."""
        return next(
            (name for name, service in self.services.items() if problem_type in service.problem_types), None
        )

    def require_service(self, problem_type: str) -> ServiceName:
        """The service that takes models of ``problem_type``.

        Raises:
            ConfigError: none does.
        """
        found = self.service_of(problem_type)
        if found is None:
            raise ConfigError(
                f"config/serving.yaml: no service takes models of {problem_type}.",
                file="config/serving.yaml",
                field="services",
                value=problem_type,
                remedy=f"Add {problem_type} to the problem_types of one of: {', '.join(self.services)}.",
            )
        return found

    def trusts(self, type_name: str) -> bool:
        """Whether a stored model may contain ``type_name``."""
        return any(
            type_name.startswith(trusted[:-1]) if trusted.endswith(".*") else type_name == trusted
            for trusted in self.trusted_types
        )
