"""``config/alerts.yaml``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from e2i_dagster.config.base import PolicyModel, read_yaml
from e2i_dagster.config.drift_monitoring import Severity


class AlertsPolicy(PolicyModel):
    """Where alerts go and how often; owners by category."""

    deduplicate_seconds: int = Field(ge=0)
    timeout_seconds: float = Field(gt=0, le=60)
    webhook_from_severity: Severity
    owners: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> AlertsPolicy:
        """Read ``alerts.yaml`` in ``folder``."""
        return read_yaml(folder / "alerts.yaml", cls)
