"""``config/algorithms.yaml``: the algorithms, their search spaces, and how one is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from e2i_dagster.config.names import algorithm_problems
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import PolicyModel, did_you_mean, read_yaml
from e2i_dagster.policy_files.environment import config_folder

ProblemType = Literal[
    "binary_classification", "multiclass_classification", "regression", "survival", "causal_inference"
]
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)


class IntRange(PolicyModel):
    """Whole numbers from ``low`` to ``high`` in steps of ``step``."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def holds(self, value: str | int | float | bool) -> bool:
        """``value`` can be drawn."""
        if isinstance(value, (str, bool)) or value != int(value):
            return False
        return self.low <= value <= self.high and (int(value) - self.low) % self.step == 0

    def nearest(self, value: str | int | float | bool) -> int | None:
        """The value that can be drawn and lies nearest to ``value``; None where that is no number."""
        if isinstance(value, (str, bool)):
            return None
        steps = round((min(max(value, self.low), self.high) - self.low) / self.step)
        return self.low + min(steps, (self.high - self.low) // self.step) * self.step


class FloatRange(PolicyModel):
    """Numbers from ``low`` to ``high``, on a logarithmic scale or in steps."""

    kind: Literal["float"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> FloatRange:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range needs low > 0 and no step")
        return self

    def holds(self, value: str | int | float | bool) -> bool:
        """``value`` can be drawn."""
        if isinstance(value, (str, bool)) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8

    def nearest(self, value: str | int | float | bool) -> float | None:
        """The value that can be drawn and lies nearest to ``value``; None where that is no number."""
        if isinstance(value, (str, bool)):
            return None
        inside = min(max(float(value), self.low), self.high)
        if self.step is None:
            return inside
        last = int((self.high - self.low) / self.step + 1e-8)
        return self.low + min(round((inside - self.low) / self.step), last) * self.step


class Choice(PolicyModel):
    """One of a few values."""

    kind: Literal["categorical"]
    choices: tuple[str | int | float | bool, ...] = Field(min_length=1)

    def holds(self, value: str | int | float | bool) -> bool:
        """``value`` can be drawn."""
        return value in self.choices

    def nearest(self, value: str | int | float | bool) -> str | int | float | bool | None:
        """``value`` where it is a choice; None otherwise, since choices have no order."""
        return value if self.holds(value) else None


Dimension = Annotated[IntRange | FloatRange | Choice, Field(discriminator="kind")]


class Algorithm(PolicyModel):
    """What is declared about one algorithm.

    ``latency_ms`` is for one row, ``memory_gb`` for the loaded model, ``interpretability`` is in [0, 1].
    """

    description: str
    family: Literal["causal", "gradient_boosting", "ensemble", "linear"]
    problem_types: tuple[ProblemType, ...] = Field(min_length=1)
    latency_ms: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    interpretability: float = Field(ge=0, le=1)
    defaults: dict[str, str | int | float | bool]
    search_space: dict[str, Dimension]

    @model_validator(mode="after")
    def _causal_is_its_own_problem(self) -> Algorithm:
        mixed = (self.family == "causal") != (self.problem_types == ("causal_inference",))
        if mixed:
            raise ValueError(
                "a causal algorithm estimates effects and nothing else, and no other algorithm does: "
                f"family {self.family}, problem types {', '.join(self.problem_types)}"
            )
        unknown = sorted(set(self.search_space) - set(self.defaults))
        if unknown:
            near = did_you_mean(unknown[0], self.defaults)
            raise ValueError(f"searched parameters without a default: {', '.join(unknown)}. {near}".rstrip())
        return self

    @property
    def start(self) -> dict[str, str | int | float | bool]:
        """The point where a search begins: defaults of the searched parameters, moved into a narrowed space.

        A default that is no choice any more is left out: the search draws it.
        """
        near = {name: dimension.nearest(self.defaults[name]) for name, dimension in self.search_space.items()}
        return {
            name: self.defaults[name] if self.search_space[name].holds(self.defaults[name]) else value
            for name, value in near.items()
            if value is not None
        }

    @property
    def moved(self) -> dict[str, str]:
        """For each default outside its range what the search begins with instead, in words."""
        start = self.start
        return {
            name: f"default {self.defaults[name]} is outside the search space, "
            + (f"begun at {start[name]:g}" if name in start else "drawn")
            for name, dimension in self.search_space.items()
            if not dimension.holds(self.defaults[name])
        }


class SuitabilityWeights(PolicyModel):
    """Weights of the declared figures."""

    latency: float = Field(ge=0)
    memory: float = Field(ge=0)
    interpretability: float = Field(ge=0)
    preferred: float = Field(ge=0)


class SelectionPolicy(PolicyModel):
    """How candidates are measured and ranked."""

    tie_margin: float = Field(ge=0)
    deviation_penalty: float = Field(ge=0)
    folds: int = Field(ge=2)
    benchmark_rows: int = Field(ge=100)
    latency_repeats: int = Field(ge=1)
    minimum_interpretability: float = Field(ge=0, le=1)
    weights: SuitabilityWeights
    latency_scale_ms: float = Field(gt=0)
    memory_scale_gb: float = Field(gt=0)
    alternatives: int = Field(ge=0)


class AlgorithmsPolicy(PolicyModel):
    """The whole file."""

    selection: SelectionPolicy
    algorithms: dict[str, Algorithm] = Field(min_length=1)

    @classmethod
    def load(cls, folder: Path | None = None) -> AlgorithmsPolicy:
        """Read ``algorithms.yaml`` of ``folder`` (default: the configuration folder)."""
        return read_yaml((folder or config_folder()) / "algorithms.yaml", cls, algorithm_problems)

    def algorithm(self, name: str) -> Algorithm:
        """The algorithm called ``name``.

        Raises:
            ConfigError: it is not in the file.
        """
        try:
            return self.algorithms[name]
        except KeyError:
            raise ConfigError(
                f"config/algorithms.yaml: found no algorithm {name!r}.",
                file="config/algorithms.yaml",
                field="algorithms",
                value=name,
                remedy=f"Use one of: {', '.join(self.algorithms)}.",
            ) from None
