"""A measured value with its interval."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict


class Estimate(BaseModel):
    """A value with its interval; None where it is not estimable."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, low: float, high: float) -> Estimate:
        """The estimate of these numbers; what is not finite is None."""
        finite = (float(number) if math.isfinite(number) else None for number in (value, low, high))
        return cls(**dict(zip(("value", "low", "high"), finite, strict=True)))

    @property
    def with_interval(self) -> tuple[float | None, float | None, float | None]:
        """The value and the ends of its interval."""
        return self.value, self.low, self.high
