"""``config/alerts.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from e2i_dagster.config.drift_monitoring import SEVERITIES, Severity
from e2i_dagster.policy_files.base import PolicyModel, read_yaml

AlertType = Literal["run_failure", "drift", "data_quality", "leakage", "experiment"]
Level = Literal["critical", "warning"]
Channel = Literal["webhook", "slack", "email"]


class AlertsPolicy(PolicyModel):
    """Where alerts go and how often; owners by category.

    Attributes:
        routes: severity -> channels. Of the severities below ``critical_from`` those of ``medium`` get the digest.
        escalate_after: times that an alert came up after which it is sent again, once, to ``escalation``.
        most_quiet_days: longest time for which an alert is acknowledged or a kind of them silenced.
    """

    deduplicate_seconds: int = Field(ge=0)
    timeout_seconds: float = Field(gt=0, le=60)
    critical_from: Severity
    digest_cron: str = Field(pattern=r"^(\S+\s+){4}\S+$")
    digest_lists: int = Field(ge=1)
    routes: dict[Severity, tuple[Channel, ...]]
    escalate_after: int = Field(ge=2)
    escalation: tuple[Channel, ...] = Field(min_length=1)
    most_quiet_days: int = Field(ge=1)
    owners: dict[AlertType, str]

    @model_validator(mode="after")
    def _every_severity_has_a_route(self) -> AlertsPolicy:
        missing = [name for name in SEVERITIES[1:] if name not in self.routes]
        if missing:
            raise ValueError(f"routes: no channels for {', '.join(missing)}; an empty list sends to none")
        return self

    @classmethod
    def load(cls, folder: Path) -> AlertsPolicy:
        """Read ``alerts.yaml`` in ``folder``."""
        return read_yaml(folder / "alerts.yaml", cls)

    def level(self, severity: Severity) -> Level:
        """``critical`` alerts are sent at once, a ``warning`` waits for the daily digest."""
        return "critical" if SEVERITIES.index(severity) >= SEVERITIES.index(self.critical_from) else "warning"
