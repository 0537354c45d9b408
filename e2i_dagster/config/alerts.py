"""``config/alerts.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from e2i_dagster.config.drift_monitoring import SEVERITIES, Severity
from e2i_dagster.policy_files.base import PolicyModel, read_yaml

AlertType = Literal["run_failure", "drift", "data_quality", "leakage", "experiment"]
Level = Literal["critical", "warning"]


class AlertsPolicy(PolicyModel):
    """Where alerts go and how often; owners by category."""

    deduplicate_seconds: int = Field(ge=0)
    timeout_seconds: float = Field(gt=0, le=60)
    critical_from: Severity
    digest_cron: str = Field(pattern=r"^(\S+\s+){4}\S+$")
    digest_lists: int = Field(ge=1)
    owners: dict[AlertType, str]

    @classmethod
    def load(cls, folder: Path) -> AlertsPolicy:
        """Read ``alerts.yaml`` in ``folder``."""
        return read_yaml(folder / "alerts.yaml", cls)

    def level(self, severity: Severity) -> Level:
        """``critical`` alerts are sent at once, a ``warning`` waits for the daily digest."""
        return "critical" if SEVERITIES.index(severity) >= SEVERITIES.index(self.critical_from) else "warning"
