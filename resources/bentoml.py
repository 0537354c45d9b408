"""Serving as a Dagster resource: releases, deployments, and what is deployed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from e2i_dagster.config.serving import ServiceName
    from e2i_dagster.serving.control import Progress
    from e2i_dagster.serving.deployment import Deployment, ParitySample
    from e2i_dagster.serving.endpoints import Endpoint
    from e2i_dagster.serving.release import ModelToServe, Release


class Serving(dg.ConfigurableResource):
    """Builds and deploys on this machine.

    Attributes:
        host: address on which services listen; others than loopback belong behind a proxy that
            authenticates.
    """

    host: str = "127.0.0.1"
    warehouse: dg.ResourceDependency[Warehouse]

    def build(self, models: "Sequence[ModelToServe]", service: "ServiceName") -> "Release":
        """The bento of ``service`` with ``models``."""
        from e2i_dagster.serving.release import build_release

        return build_release(models, service=service)

    def deploy(
        self,
        release: "Release",
        *,
        stages: Mapping[str, str],
        parity: "Mapping[str, ParitySample]",
        progress: "Progress | None" = None,
    ) -> "Deployment":
        """Put ``release`` into the slot ``staging`` and record it in the warehouse."""
        from e2i_dagster.policy_files.environment import actor
        from e2i_dagster.serving.deployment import deploy
        from e2i_dagster.serving.records import write_deployment

        deployment = deploy(
            release,
            stages=stages,
            parity=parity,
            host=self.host,
            deployed_by=actor()[0],
            progress=progress,
        )
        write_deployment(self.warehouse.engine(), deployment)
        return deployment

    def endpoints(self) -> "list[Endpoint]":
        """Every deployed model with its health now."""
        from e2i_dagster.serving.endpoints import endpoints

        return endpoints()
