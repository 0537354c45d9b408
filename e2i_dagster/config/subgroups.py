"""Which columns make the subgroups that a model is evaluated in, by policy and by scope."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from e2i_dagster.policy_files.base import PolicyModel


class SubgroupColumn(PolicyModel):
    """A column of the training frame whose levels are subgroups; in a file its name alone, or both keys.

    Attributes:
        edges: of a number, ascending: a band begins at each and ends below the next. None given: each value is a level.
    """

    column: str = Field(min_length=1)
    edges: tuple[float, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"column": given} if isinstance(given, str) else given

    @field_validator("edges")
    @classmethod
    def _edges_ascend(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(edges)):
            raise ValueError(f"edges ascend (found: {', '.join(f'{edge:g}' for edge in edges)})")
        return edges

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands between the edges, in their order."""
        if not self.edges:
            return ()
        between = [f"{low:g} to below {high:g}" for low, high in pairwise(self.edges)]
        return f"below {self.edges[0]:g}", *between, f"{self.edges[-1]:g} and above"


def _distinct(columns: tuple[SubgroupColumn, ...]) -> tuple[SubgroupColumn, ...]:
    if len({column.column for column in columns}) < len(columns):
        raise ValueError("a column is named twice")
    return columns


#: Columns, each named once.
SubgroupColumns = Annotated[tuple[SubgroupColumn, ...], AfterValidator(_distinct)]


class SubgroupPolicy(PolicyModel):
    """Subgroups of every scope.

    Attributes:
        columns: of the training frame.
        minimum_patients: a level with fewer is listed as not estimable.
        floor: of the ROC-AUC, of a time the C-index, of every subgroup, for scopes that state none; None: there is no
            such criterion. Scopes of a number state their own, of R².
    """

    columns: SubgroupColumns = ()
    minimum_patients: int = Field(default=50, ge=11)
    floor: float | None = Field(default=None, ge=0, le=1)


class ScopeEvaluation(PolicyModel):
    """What a scope asks of the evaluation of its model.

    Attributes:
        subgroups: columns beside those of the policy; one of the same name takes its place.
    """

    subgroups: SubgroupColumns = ()


def joined_columns(
    policy: Iterable[SubgroupColumn], scope: Iterable[SubgroupColumn]
) -> tuple[SubgroupColumn, ...]:
    """The columns of ``policy`` and ``scope``, each once; where both name one, that of ``scope``."""
    return tuple(({column.column: column for column in (*policy, *scope)}).values())
