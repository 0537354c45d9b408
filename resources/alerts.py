"""Alerts as a Dagster resource: the table always, and the channels whose environment variables are set."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

from e2i_dagster.policy_files.environment import config_folder
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from e2i_dagster.monitoring.alerts import Alert, Digest
    from e2i_dagster.monitoring.channels import Channels


class Alerts(dg.ConfigurableResource):
    """Sends alerts. ``webhook_url`` overrides ``E2I_ALERT_WEBHOOK_URL``."""

    webhook_url: str = ""
    warehouse: dg.ResourceDependency[Warehouse]

    def send(self, alert: "Alert") -> str:
        """Record ``alert``, notify, and return what became of the notification."""
        from e2i_dagster.config.alerts import AlertsPolicy
        from e2i_dagster.monitoring.alerts import send

        with self.warehouse.engine().begin() as connection:
            return send(connection, alert, AlertsPolicy.load(config_folder()), self.channels())

    def send_all(self, alerts: "Iterable[Alert]") -> list[str]:
        """Send each of ``alerts``."""
        return [self.send(alert) for alert in alerts]

    def send_digest(self) -> "Digest":
        """Tell the open warnings in one message."""
        from e2i_dagster.config.alerts import AlertsPolicy
        from e2i_dagster.monitoring.alerts import send_digest

        with self.warehouse.engine().begin() as connection:
            return send_digest(connection, AlertsPolicy.load(config_folder()), self.channels())

    def channels(self) -> "Channels":
        """The channels by the environment."""
        from e2i_dagster.monitoring.channels import Channels

        return Channels(
            webhook_url=self.webhook_url or os.environ.get("E2I_ALERT_WEBHOOK_URL", ""),
            slack_url=os.environ.get("E2I_ALERT_SLACK_URL", ""),
            smtp_url=os.environ.get("E2I_ALERT_SMTP_URL", ""),
            email_from=os.environ.get("E2I_ALERT_EMAIL_FROM", ""),
            email_to=os.environ.get("E2I_ALERT_EMAIL_TO", ""),
            ui_url=os.environ.get("E2I_UI_URL", ""),
        )
