"""Tables of serving: which bento serves a slot, and which model versions it answers for."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

#: The dictionary's states, and ``retired`` for what served and was replaced or stopped.
DEPLOYMENT_STATES = ("pending", "deploying", "active", "draining", "rolled_back", "failed", "retired")

_states = ", ".join(f"'{state}'" for state in DEPLOYMENT_STATES)
Timestamp = sa.TIMESTAMP(timezone=True)

ml_bentoml_services = sa.Table(
    "ml_bentoml_services",
    metadata,
    column("id", sa.Uuid(as_uuid=False), "Key of the deployment.", primary_key=True),
    column("service_name", sa.Text, "Service, such as classification.", nullable=False, index=True),
    column("bento_tag", sa.Text, "Bento that serves: service:version.", nullable=False),
    column("bento_version", sa.Text, "Digest of the bento's manifest.", nullable=False),
    column("replicas", sa.Integer, "Worker processes.", nullable=False, minimum=1),
    column("environment", sa.Text, "Slot: staging, shadow or production.", nullable=False),
    column("health_status", sa.Text, "Health at the last check.", nullable=False),
    column("last_health_check", Timestamp, "When health was last checked."),
    column("serving_endpoint", sa.Text, "Public address."),
    column("internal_endpoint", sa.Text, "Private address of the colour when it was deployed."),
    column(
        "status",
        sa.Text,
        "State of the deployment.",
        sa.CheckConstraint(f"status IN ({_states})", name="status"),
        nullable=False,
    ),
    column("created_at", Timestamp, "When the deployment began.", nullable=False),
    column("started_at", Timestamp, "When the traffic was switched to it."),
    column("stopped_at", Timestamp, "When it ceased to be the active one."),
    column("created_by", sa.Text, "Who deployed."),
    column("labels", JSONB, "Colour and model ids.", nullable=False),
    comment="One row per deployment of a bento.",
)

ml_deployments = sa.Table(
    "ml_deployments",
    metadata,
    column("id", sa.Uuid(as_uuid=False), "Key of the model's deployment.", primary_key=True),
    column(
        "service_id",
        sa.Uuid(as_uuid=False),
        "Deployment of the bento that holds the model.",
        sa.ForeignKey("ml_bentoml_services.id"),
        nullable=False,
        index=True,
    ),
    column("deployment_name", sa.Text, "service/slot/model.", nullable=False, index=True),
    column("model_name", sa.Text, "Registered model.", nullable=False),
    column("model_version", sa.Text, "Its version.", nullable=False),
    column("environment", sa.Text, "Slot: staging, shadow or production.", nullable=False),
    column("endpoint_name", sa.Text, "Service that answers."),
    column("endpoint_url", sa.Text, "Address of the model."),
    column(
        "status",
        sa.Text,
        "State of the deployment.",
        sa.CheckConstraint(f"status IN ({_states})", name="status"),
        nullable=False,
    ),
    column("deployed_by", sa.Text, "Who deployed."),
    column("deployment_config", JSONB, "Bento, stage, digest, parity and times.", nullable=False),
    column(
        "previous_deployment_id",
        sa.Uuid(as_uuid=False),
        "Deployment of the same name that this one replaced.",
        sa.ForeignKey("ml_deployments.id"),
    ),
    column("created_at", Timestamp, "When the deployment began.", nullable=False),
    column("deployed_at", Timestamp, "When the traffic was switched to it."),
    column("deactivated_at", Timestamp, "When it ceased to be the active one."),
    comment="One row per model version and deployment.",
)

ml_shadow_comparisons = sa.Table(
    "ml_shadow_comparisons",
    metadata,
    column("id", sa.BigInteger, "Key, rising with time.", sa.Identity(always=True), primary_key=True),
    column("model_name", sa.Text, "Registered model.", nullable=False, index=True),
    column("shadow_version", sa.Text, "Version that answered in slot shadow.", nullable=False),
    column("source_version", sa.Text, "Version whose answered requests were mirrored.", nullable=False),
    column("first_at", Timestamp, "Time of the first mirrored answer.", nullable=False),
    column("last_at", Timestamp, "Time of the last mirrored answer.", nullable=False),
    column("requests", sa.Integer, "Answers of the source in that time.", nullable=False, minimum=0),
    column("left_out", sa.Integer, "Of these not mirrored, because of the bound.", nullable=False, minimum=0),
    column("failed", sa.Integer, "Mirrored, not answered by the shadow.", nullable=False, minimum=0),
    column("compared", sa.Integer, "Answered by both.", nullable=False, minimum=0),
    column("same_class", sa.Integer, "Of the compared ones with the same class; null without classes."),
    column("mean_difference", sa.Double, "Mean absolute difference of the values; null without any."),
    column("largest_difference", sa.Double, "Largest absolute difference of the values."),
    column("recorded_at", Timestamp, "When it was recorded.", nullable=False, server_default=sa.func.now()),
    comment="Requests mirrored to slot shadow and how its answers compare; counts only.",
)
