"""A trained model as a document of the lake: skops bytes of its pipeline and everything beside it.

skops stores no code: reading it makes only types that are listed as trusted.
"""

from __future__ import annotations

import base64
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.errors import InputError
from e2i_dagster.modelling.survival import RiskAtHorizon
from e2i_dagster.registry.mlflow_runs import TRUSTED_TYPES
from e2i_dagster.training import TrainedModel


class StoredModel(BaseModel):
    """A :class:`~e2i_dagster.training.TrainedModel` that can be written and read.

    ``pipeline`` is base64 of the skops file; its bytes carry times, so that the digest of the document
    is that of ``digest``, of what the model computes, and the fields beside it.
    """

    model_config = ConfigDict(frozen=True)
    volatile_fields: ClassVar[set[str]] = {"pipeline", "seconds"}

    pipeline: str
    algorithm: str
    problem_type: str
    parameters: dict[str, Any]
    kinds: dict[str, Literal["number", "string"]]
    nullable: tuple[str, ...]
    threshold: float | None
    calibration: str
    calibration_note: str
    training_rows: int
    validation_rows: int
    prevalence: float | None
    input_example: dict[str, Any]
    data_digests: dict[str, str]
    digest: str
    seconds: float
    seen_ranges: dict[str, tuple[float, float]] = {}
    classes: tuple[str, ...] = ()
    risk: RiskAtHorizon | None = None
    training_means: tuple[float, ...] = ()

    @classmethod
    def of(cls, model: TrainedModel) -> StoredModel:
        """The document of ``model``."""
        import skops.io

        fields = {
            name: getattr(model, name)
            for name in cls.model_fields
            if name not in ("pipeline", "input_example")
        }
        example = model.input_example.astype(object).where(model.input_example.notna(), None)
        return cls(
            pipeline=base64.b64encode(skops.io.dumps(model.pipeline)).decode(),
            input_example={str(name): value for name, value in example.to_dict("records")[0].items()},
            **fields,
        )

    def model(self) -> TrainedModel:
        """The trained model.

        Raises:
            InputError: the pipeline contains a type that is not trusted.
        """
        import skops.io

        raw = base64.b64decode(self.pipeline)
        unknown = sorted(set(skops.io.get_untrusted_types(data=raw)) - set(TRUSTED_TYPES))
        if unknown:
            raise InputError(
                f"The stored model contains types that are not trusted: {', '.join(unknown)}.",
                field="pipeline",
                value=unknown[0],
                remedy="Train it again with `e2i run`.",
            )
        fields: dict[str, Any] = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name not in ("pipeline", "input_example")
        }
        example = pd.DataFrame([self.input_example], columns=list(self.kinds))
        numbers = [name for name, kind in self.kinds.items() if kind == "number"]
        return TrainedModel(
            pipeline=skops.io.loads(raw, trusted=list(TRUSTED_TYPES)),
            input_example=example.astype({name: "float64" for name in numbers}),
            **fields,
        )
