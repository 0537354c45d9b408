"""How old online values are; apart from what computes it, since every service describes its answers by it."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FreshnessStatus = Literal["fresh", "warning", "stale", "never"]


class ViewAge(BaseModel):
    """How old the values of one view are."""

    model_config = ConfigDict(frozen=True)

    view: str
    event_time: dt.datetime | None = Field(
        description="Up to when the values describe the patient; null: there are none."
    )
    age_hours: float | None = Field(description="Hours from event_time to the answer.")
    arrived_at: dt.datetime = Field(description="When the values were put online.")
    hours_online: float = Field(description="Hours from arrived_at to the answer.")
    status: FreshnessStatus = Field(
        description="hours_online against the limits of config/feast_materialization.yaml."
    )
