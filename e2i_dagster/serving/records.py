"""Deployments in the warehouse: ``ml_bentoml_services`` and ``ml_deployments``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from e2i_dagster.serving.state import service_of
from e2i_dagster.tables.description.serving import ml_bentoml_services, ml_deployments

if TYPE_CHECKING:
    from e2i_dagster.serving.deployment import Deployment


def write_deployment(engine: sa.Engine, deployment: Deployment) -> None:
    """Record ``deployment`` as active and what it replaced as retired, in one transaction.

    Writing the same deployment again changes nothing.
    """
    services, models = ml_bentoml_services.c, ml_deployments.c
    with engine.begin() as connection:
        if connection.scalar(sa.select(services.id).where(services.id == deployment.deployment_id)):
            return
        before = {
            row.deployment_name: row.id
            for row in connection.execute(
                sa.select(models.deployment_name, models.id).where(
                    models.status == "active",
                    models.endpoint_name == deployment.service,
                    models.environment == deployment.slot,
                )
            )
        }
        _retire(connection, deployment.service, deployment.slot, deployment.deployed_at)
        connection.execute(sa.insert(ml_bentoml_services), [deployment.to_record()])
        connection.execute(
            sa.insert(ml_deployments),
            [
                row | {"previous_deployment_id": before.get(row["deployment_name"])}
                for row in deployment.model_records()
            ],
        )


def write_stopped(engine: sa.Engine, service: str, slot: str, at: datetime) -> None:
    """Record that nothing serves ``service`` in ``slot`` any more since ``at``."""
    with engine.begin() as connection:
        _retire(connection, service, slot, at)


def _retire(connection: sa.Connection, service: str, slot: str, at: datetime) -> None:
    services, models = ml_bentoml_services.c, ml_deployments.c
    connection.execute(
        sa.update(ml_deployments)
        .where(models.status == "active", models.endpoint_name == service, models.environment == slot)
        .values(status="retired", deactivated_at=at)
    )
    connection.execute(
        sa.update(ml_bentoml_services)
        .where(services.status == "active", services.service_name == service, services.environment == slot)
        .values(status="retired", stopped_at=at)
    )


def stop_services(state: Path) -> list[str]:
    """Stop every service of ``state`` and record it; returns the names of those that ran.

    A service is stopped before the warehouse, so that its last answers reach the prediction log.
    """
    from e2i_dagster.database.connection import engine
    from e2i_dagster.serving.endpoints import endpoints, stop_all

    slots = {endpoint.service: endpoint.slot for endpoint in endpoints(state)}
    stopped = stop_all(state)
    for service in stopped:
        write_stopped(engine("app"), service_of(service), slots[service], datetime.now(UTC))
    return stopped
