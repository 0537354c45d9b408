"""Rows of an experiment's append-only tables as frozen values, read here and nowhere else.

Attributes have the names of their columns. What a look found (``metrics_snapshot``) is the report it was recorded from.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any, ClassVar, Literal, Self

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from e2i_dagster.experiments.designs.reestimation import NoReestimation, Reestimation
from e2i_dagster.experiments.statistics import sample_ratio
from e2i_dagster.experiments.statistics.estimation import AlwaysValid
from e2i_dagster.tables.description import experiments as tables

Advice = Literal["continue", "stop_efficacy", "stop_futility", "stop_safety", "not_evaluable"]
Grade = Literal["excellent", "good", "fair", "poor", "unvalidated"]


class ArmLook(BaseModel):
    """One arm against the control at one look; ``z`` is positive for benefit.

    ``z`` None: there is no test either, and the arm is not evaluable. ``estimable``: the effect has an estimate; a test
    may exist without (an arm without events).
    ``lower`` and ``upper`` are the repeated confidence interval (Jennison and Turnbull 1989): the estimate plus
    and minus the boundary times its standard error, valid at all looks together. ``futility_z``: below it the
    design's rule of futility says stop. ``always_valid``: confidence sequence, where the design asks for one.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    estimable: bool
    reason: str = ""
    effect: float | None = None
    lower: float | None = None
    upper: float | None = None
    z: float | None = None
    p_value: float | None = None
    conditional_power: float | None = None
    predictive_power: float | None = None
    futility_z: float | None = None
    always_valid: AlwaysValid | None = None
    always_valid_reason: str = ""
    advice: Advice = "continue"
    rationale: str = ""


class HarmCheck(BaseModel):
    """One rule of harm for one arm.

    ``harmful`` is None, which is no "no", where the rule does not judge: ``too_early`` below the units that the design
    asks for, ``not_evaluable`` where the data allow no test.
    """

    model_config = ConfigDict(frozen=True)

    metric: str
    arm: str
    relative_worsening: float | None = None
    p_value: float | None = None
    harmful: bool | None = None
    reason: str
    status: Literal["evaluated", "too_early", "not_evaluable"] = "evaluated"


class LookReport(BaseModel):
    """Everything one look found. For the data monitoring committee; pages show what :func:`.interim_page` lets
    through.

    ``information_target`` and ``spending_time`` keep what the fraction meant when an amendment changes the size; looks
    recorded without them spent alpha at their fraction.
    ``binding_stop``: the look stopped for futility by a binding rule. ``size_proposal``: what the declared review of
    the sample size proposes. ``not_evaluable``: arms and rules of harm about which the data say nothing, and why.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    look: int
    of: int
    final: bool
    design_digest: str
    information_fraction: float
    planned_fraction: float
    information_target: int | None = None
    spending_time: float = Field(default_factory=lambda given: min(given["information_fraction"], 1.0))
    units: int
    units_by_arm: dict[str, int]
    data_as_of: str
    snapshot_digest: str
    rule: str
    alpha: float
    alpha_spent: float
    fractions: tuple[float, ...]
    boundary_z: tuple[float, ...]
    arms: tuple[ArmLook, ...]
    harm: tuple[HarmCheck, ...]
    advice: Advice
    rationale: str
    binding_stop: bool = False
    size_proposal: Reestimation | NoReestimation | None = None
    not_evaluable: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the primary metric of any arm was tested: only then alpha is spent."""
        return any(arm.z is not None for arm in self.arms)

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values."""
        return self.model_dump(mode="json")


class Record(BaseModel):
    """A row of ``table``, whose rows rise in ``order``: who recorded it and when."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    table: ClassVar[sa.Table]
    order: ClassVar[str] = "id"

    recorded_by: str
    recorded_at: dt.datetime

    @property
    def at(self) -> str:
        """The minute in which it was recorded, as text."""
        return f"{self.recorded_at:%Y-%m-%d %H:%M}"

    @classmethod
    def read_all(cls, connection: sa.Connection, experiment: str) -> list[Self]:
        """The rows of ``experiment``, oldest first."""
        query = cls._of(experiment).order_by(cls.table.c[cls.order])
        return [cls.model_validate(row) for row in connection.execute(query)]

    @classmethod
    def read_newest(cls, connection: sa.Connection, experiment: str) -> Self | None:
        """The newest row of ``experiment``; None without any."""
        query = cls._of(experiment).order_by(cls.table.c[cls.order].desc()).limit(1)
        row = connection.execute(query).one_or_none()
        return None if row is None else cls.model_validate(row)

    @classmethod
    def _of(cls, experiment: str) -> sa.Select[Any]:
        return sa.select(cls.table).where(cls.table.c.experiment == experiment)


class Transition(Record):
    """A change of state, with what was checked for it."""

    table = tables.ab_experiment_transitions

    to_state: str
    reason: str
    evidence: dict[str, str]


class InterimAnalysis(Record):
    """A look that was made. Unblinded: whoever shows it records that (:func:`.store.open_report`).

    The columns of statistics are those of the arm with the largest z.
    """

    table = tables.ab_interim_analyses

    analysis_number: int
    analysis_type: Literal["scheduled", "final"]
    last_outcome_id: int
    last_event_id: int
    snapshot_digest: str
    data_as_of: dt.datetime
    information_fraction: float
    sample_size_at_analysis: int
    target_sample_size: int
    cumulative_alpha_spent: float
    boundary_z: float
    test_statistic: float | None
    effect_estimate: float | None
    effect_ci_lower: float | None
    effect_ci_upper: float | None
    decision: Advice
    decision_rationale: str
    metrics_snapshot: LookReport

    @property
    def effect(self) -> tuple[float, float, float] | None:
        """Effect and its repeated interval (effect, lower, upper); None without an estimate."""
        effect, lower, upper = self.effect_estimate, self.effect_ci_lower, self.effect_ci_upper
        return None if effect is None or lower is None or upper is None else (effect, lower, upper)


class Unblinding(Record):
    """An opening of the unblinded report."""

    table = tables.ab_unblinding_log

    reason: str


class SampleRatioCheck(Record):
    """Units of each arm against the shares of the design, by the fixed and by the sequential test."""

    table = tables.ab_srm_checks

    expected_ratio: dict[str, float]
    actual_counts: dict[str, int]
    p_value: float
    log_e_maximum: float
    sequential_p_value: float
    severity: sample_ratio.Severity


class SimulationRecord(Record):
    """A prediction on twins, as far as it is shown and compared with looks."""

    table = tables.twin_simulations
    order = "recorded_at"

    simulation_id: uuid.UUID
    twin_count: int
    simulated_ate: float
    simulated_ci_lower: float
    simulated_ci_upper: float
    recommendation: str
    recommendation_rationale: str


class FidelityComparison(BaseModel):
    """A prediction on twins against the effect that one look observed. Unblinded."""

    model_config = ConfigDict(frozen=True)

    analysis_number: int
    predicted_effect: float
    predicted_ci_lower: float
    predicted_ci_upper: float
    actual_effect: float
    actual_ci_lower: float
    actual_ci_upper: float
    relative_prediction_error: float | None
    confidence_interval_coverage: bool
    direction_match: bool
    fidelity_grade: Grade
    reason: str


class FidelityRecord(Record, FidelityComparison):
    """A comparison as it was recorded, with its key and that of its simulation."""

    table = tables.ab_fidelity_comparisons

    id: int
    simulation_id: uuid.UUID
