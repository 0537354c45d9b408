"""Alerts as a Dagster resource: the table always, a webhook when ``E2I_ALERT_WEBHOOK_URL`` is set."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

from e2i_dagster.policy_files.environment import config_folder
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from e2i_dagster.monitoring.alerts import Alert, Digest


class Alerts(dg.ConfigurableResource):
    """Sends alerts. ``webhook_url`` overrides ``E2I_ALERT_WEBHOOK_URL``."""

    webhook_url: str = ""
    warehouse: dg.ResourceDependency[Warehouse]

    def send(self, alert: "Alert") -> str:
        """Record ``alert``, notify, and return what became of the notification."""
        from e2i_dagster.config.alerts import AlertsPolicy
        from e2i_dagster.monitoring.alerts import send

        with self.warehouse.engine().begin() as connection:
            return send(connection, alert, AlertsPolicy.load(config_folder()), self._url())

    def send_all(self, alerts: "Iterable[Alert]") -> list[str]:
        """Send each of ``alerts``."""
        return [self.send(alert) for alert in alerts]

    def send_digest(self) -> "Digest":
        """Tell the open warnings in one message."""
        from e2i_dagster.config.alerts import AlertsPolicy
        from e2i_dagster.monitoring.alerts import send_digest

        with self.warehouse.engine().begin() as connection:
            return send_digest(connection, AlertsPolicy.load(config_folder()), self._url())

    def _url(self) -> str | None:
        return self.webhook_url or os.environ.get("E2I_ALERT_WEBHOOK_URL")
