"""Requests and answers of a served model, derived from its MLflow signature.

One row is ``{"features": {...}}``, optionally with ``patient_id``; a batch is
``{"instances": [row, ...]}``. A feature that the signature requires must be there; it may be null only
if the model's metadata says that it was missing for somebody in training (``nullable``). A feature
that is not required may be absent or null. The model sees both as missing. Nothing is converted: text
is no number, ``true`` is no 1. Only a number without fraction written with a point (``3.0``) is a
whole number, since JSON does not tell the two apart.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    create_model,
)

from e2i_dagster.errors import E2IError, InputError

if TYPE_CHECKING:
    import pandas as pd

FeatureType = Literal["double", "long", "string", "boolean"]

#: MLflow's column types and the kind of value that a request carries for them.
_TYPES: Mapping[str, FeatureType] = {
    "double": "double",
    "float": "double",
    "long": "long",
    "integer": "long",
    "string": "string",
    "boolean": "boolean",
}


class RequestError(E2IError):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status, 4xx.
        code: short name of the kind of error.
        problems: one ``{"field", "problem"}`` for each thing wrong; no value of the request.
    """

    def __init__(self, status: int, code: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in problems))
        self.status = status
        self.code = code
        self.problems = [{"field": field, "problem": problem} for field, problem in problems]


class Feature(BaseModel):
    """One column of a signature: whether a request must have it, and whether it may be null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: FeatureType
    required: bool = True
    nullable: bool = False
    example: float | int | bool | str | None = None

    @property
    def may_be_missing(self) -> bool:
        """Whether the model may see a missing value."""
        return self.nullable or not self.required


class Signature(BaseModel):
    """The columns that a model takes, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[Feature, ...] = Field(min_length=1)

    @property
    def names(self) -> list[str]:
        """Feature names in the order of the signature."""
        return [feature.name for feature in self.features]

    @classmethod
    def of_model(cls, folder: Path) -> Signature:
        """Read the signature of the MLflow model in ``folder``.

        Raises:
            InputError: there is no model, no signature, or a column of a kind that cannot be served.
        """
        described = mlmodel(folder)
        inputs = (described.get("signature") or {}).get("inputs")
        if not inputs:
            raise InputError(
                f"The model in {folder.name} has no input signature, so its requests cannot be checked.",
                remedy="Log it with `signature=`.",
            )
        columns = json.loads(inputs)
        wrong = [
            str(column.get("name", "without name"))
            for column in columns
            if "name" not in column or column.get("type") not in _TYPES
        ]
        if wrong:
            raise InputError(
                f"Columns {', '.join(wrong)} of the signature cannot be served: each needs a name and "
                f"one of the types {', '.join(_TYPES)}.",
                file=folder,
                field=wrong[0],
                remedy="Log the model with such a signature.",
            )
        nullable = set((described.get("metadata") or {}).get("nullable") or [])
        examples = _invented_examples(folder)
        return cls(
            features=tuple(
                Feature(
                    name=one["name"],
                    type=_TYPES[one["type"]],
                    required=one.get("required", True),
                    nullable=one["name"] in nullable or not one.get("required", True),
                    example=examples.get(one["name"]),
                )
                for one in columns
            )
        )


def _invented_examples(folder: Path) -> dict[str, Any]:
    """Values of the input example that was stored with the model, which training invents from averages."""
    path = folder / "input_example.json"
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    row = dict(zip(stored["columns"], stored["data"][0], strict=True))
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}


def mlmodel(folder: Path) -> dict[str, Any]:
    """The ``MLmodel`` description in ``folder``.

    Raises:
        InputError: the file is not there or is not a mapping.
    """
    path = folder / "MLmodel"
    if not path.is_file():
        raise InputError(
            f"{folder} is not an MLflow model: it has no file MLmodel.",
            file=folder,
            remedy="Give the folder of a logged model.",
        )
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict):
        raise InputError(
            f"{path}: expected a mapping, found {type(described).__name__}.",
            file=path,
            value=type(described).__name__,
            remedy="Log the model again.",
        )
    return described


def _whole(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _storable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode text") from None
    if "\x00" in value:
        raise ValueError("contains the character NUL")
    return value


Double = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Long = Annotated[int, BeforeValidator(_whole), Field(strict=True, ge=-(2**63), le=2**63 - 1)]
Text = Annotated[StrictStr, Field(max_length=10_000), AfterValidator(_storable)]
Identifier: Any = Annotated[StrictStr, Field(min_length=1, max_length=100), AfterValidator(_storable)]

_ANNOTATIONS: Mapping[FeatureType, Any] = {
    "double": Double,
    "long": Long,
    "string": Text,
    "boolean": StrictBool,
}


@dataclass(frozen=True)
class Row:
    """One validated row: every feature of the signature (missing ones None) and the optional patient."""

    features: dict[str, Any]
    patient_id: str | None


@dataclass(frozen=True)
class Batch:
    """The rows of a batch in order: None for one that cannot be used, with what is wrong in ``problems``."""

    rows: list[Row | None]
    problems: list[dict[str, str]]

    @property
    def usable(self) -> list[Row]:
        """The rows that the model is asked for."""
        return [row for row in self.rows if row is not None]


@dataclass(frozen=True)
class RequestSchema:
    """The request bodies of one model as pydantic models; make it with :func:`request_schema`."""

    signature: Signature
    single: type[BaseModel]
    batch: type[BaseModel]
    max_batch: int

    def row(self, payload: Any) -> Row:
        """Validate the body of ``/predict``.

        Raises:
            RequestError: 422, every wrong field named.
        """
        return self._row(_validate(self.single, payload))

    def rows(self, payload: Any) -> Batch:
        """Validate the body of ``/predict_batch``; a row that cannot be used does not stop the others.

        Raises:
            RequestError: 413 for too many rows, else 422: something else than a row is wrong, or every row is.
        """
        instances = payload.get("instances") if isinstance(payload, dict) else None
        if isinstance(instances, list) and len(instances) > self.max_batch:
            raise RequestError(
                413,
                "batch_too_large",
                [("instances", f"has {len(instances)} rows; at most {self.max_batch} are answered at once")],
            )
        validated, wrong = _checked(self.batch, payload)
        in_rows = {loc[1] for loc, _ in wrong if len(loc) > 1 and loc[0] == "instances"}
        elsewhere = any(len(loc) < 2 or loc[0] != "instances" for loc, _ in wrong)
        if elsewhere or (wrong and isinstance(instances, list) and len(in_rows) == len(instances)):
            raise _refused(wrong)
        if wrong:
            given = [one for number, one in enumerate(payload["instances"]) if number not in in_rows]
            validated, _ = _checked(self.batch, payload | {"instances": given})
        usable = iter(validated.instances)
        return Batch(
            [
                None if number in in_rows else self._row(next(usable))
                for number in range(len(payload["instances"]))
            ],
            [{"field": _field(loc), "problem": problem} for loc, problem in wrong],
        )

    def _row(self, validated: Any) -> Row:
        return Row(validated.features.model_dump(by_alias=True), validated.patient_id)


def request_schema(signature: Signature, model_name: str, max_batch: int) -> RequestSchema:
    """The request bodies of the model ``model_name`` with ``signature``."""
    title = "".join(part.capitalize() for part in model_name.replace("_", "-").split("-"))
    strict = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    fields: dict[str, Any] = {}
    for position, feature in enumerate(signature.features):
        # Feature names need not be Python names: the field has one of its own, the request the alias.
        kind = _ANNOTATIONS[feature.type]
        if feature.may_be_missing:
            kind = kind | None
        fields[f"feature_{position}"] = (
            (kind, Field(alias=feature.name))
            if feature.required
            else (kind, Field(default=None, alias=feature.name))
        )
    features = create_model(f"{title}Features", __config__=strict, **fields)
    row_fields: dict[str, Any] = {
        "features": (features, ...),
        "patient_id": (Identifier | None, Field(default=None, description="For the prediction log only.")),
    }
    named: dict[str, Any] = {
        "model_name": (Literal[model_name] | None, Field(default=None, description="The model asked.")),  # type: ignore[valid-type]
    }
    instance: Any = create_model(f"{title}Row", __config__=strict, **row_fields)
    batch_fields: dict[str, Any] = {
        "instances": (list[instance], Field(min_length=1, max_length=max_batch)),
    }
    return RequestSchema(
        signature=signature,
        single=create_model(f"{title}Request", __config__=strict, **row_fields, **named),
        batch=create_model(f"{title}BatchRequest", __config__=strict, **batch_fields, **named),
        max_batch=max_batch,
    )


_SHORT: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not a feature or field of this model",
    "finite_number": "must be a finite number; use null for a missing value where that is allowed",
}


#: Where something is wrong in a body, and what.
_Wrong = tuple[tuple[int | str, ...], str]

#: A row or body with more wrong fields is told these many of them.
_TOLD = 50


def _validate(model: type[BaseModel], payload: Any) -> Any:
    validated, wrong = _checked(model, payload)
    if wrong:
        raise _refused(wrong)
    return validated


def _checked(model: type[BaseModel], payload: Any) -> tuple[Any, list[_Wrong]]:
    """``payload`` as ``model``, or what is wrong with it without its values; at most :data:`_TOLD` of each row."""
    try:
        return model.model_validate(payload), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        told: Counter[tuple[int | str, ...]] = Counter()
        kept: list[_Wrong] = []
        for problem in found:
            row = problem["loc"][:2] if problem["loc"][:1] == ("instances",) else ()
            told[row] += 1
            if told[row] <= _TOLD:
                kept.append((problem["loc"], _SHORT.get(problem["type"], problem["msg"])))
        return None, kept


def _refused(wrong: Sequence[_Wrong]) -> RequestError:
    return RequestError(422, "invalid_request", [(_field(loc), problem) for loc, problem in wrong])


def _field(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)) or "body"


def decode(body: bytes) -> Any:
    """JSON of a request body.

    Raises:
        RequestError: 400, the body is not JSON.
    """
    from pydantic_core import from_json

    try:
        return from_json(body)
    except ValueError as error:
        # The parser's message has the position and what it expected, no part of the text.
        raise RequestError(400, "not_json", [("body", f"is not JSON: {error}")]) from None


def to_frame(signature: Signature, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame that the model gets: one row each, columns and order of the signature.

    double is ``float64``; long ``int64``, or ``float64`` with NaN where the signature lets it be
    missing; string and boolean are ``object`` with NaN for missing, or ``bool`` where it cannot be.
    """
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for feature in signature.features:
        values = [row.get(feature.name) for row in rows]
        if feature.type == "double":
            columns[feature.name] = np.array([math.nan if v is None else v for v in values], dtype="float64")
        elif feature.type == "long":
            columns[feature.name] = (
                np.array(values, dtype="int64")
                if not feature.may_be_missing
                else np.array([math.nan if v is None else v for v in values], dtype="float64")
            )
        elif feature.type == "boolean" and not feature.may_be_missing:
            columns[feature.name] = np.array(values, dtype="bool")
        else:
            columns[feature.name] = pd.Series(
                [math.nan if v is None else v for v in values], dtype="object"
            ).to_numpy()
    return pd.DataFrame(columns, columns=signature.names)


def to_records(signature: Signature, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The features of ``frame`` as JSON values for requests: one mapping per row, missing as None.

    Raises:
        InputError: a required feature has no column in ``frame``, or values that its type forbids.
    """
    missing = [f.name for f in signature.features if f.required and f.name not in frame.columns]
    if missing:
        raise InputError(
            f"The frame lacks {', '.join(missing)}.",
            field=missing[0],
            remedy=f"The model takes {', '.join(signature.names)}.",
        )
    columns: dict[str, list[Any]] = {}
    for feature in signature.features:
        if feature.name in frame.columns:
            if frame[feature.name].isin([math.inf, -math.inf]).any():
                raise InputError(
                    f"Column {feature.name} has an infinite value; JSON has none.",
                    remedy="Correct those rows, or leave them out.",
                )
            try:
                columns[feature.name] = _json_values(frame[feature.name], feature.type)
            except (TypeError, ValueError):
                raise InputError(
                    f"Column {feature.name} is {frame[feature.name].dtype}; the model takes {feature.type}.",
                    remedy="Convert the column first.",
                ) from None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _json_values(column: pd.Series, kind: FeatureType) -> list[Any]:
    import numpy as np

    if kind == "double":
        values = column.to_numpy(dtype="float64", na_value=np.nan).astype("object")
    elif kind == "string":
        # Not by conversion: the number 1 is not the text "1".
        if not column.dropna().map(type).isin([str]).all():
            raise TypeError
        values = column.astype("object").to_numpy()
    else:
        values = column.astype("Int64" if kind == "long" else "boolean").astype("object").to_numpy()
    values = np.array(values, dtype="object")
    values[column.isna().to_numpy()] = None
    return values.tolist()


class ResponseMetadata(BaseModel):
    """Where an answer comes from."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    latency_ms: float = Field(description="Time from the whole request to the answer, milliseconds.")
    timestamp: str = Field(description="When it was answered, ISO 8601, UTC.")
    slot: str = Field(description="Slot of the deployment.")
    stage: str = Field(description="Stage of the model version in the registry when it was deployed.")
    request_id: str = Field(description="The request's X-Request-ID, or one made for it.")
    service: str
    release: str


class Problem(BaseModel):
    """One thing wrong with a request."""

    field: str
    problem: str


class MeasuredEffect(BaseModel):
    """The mean effect measured among held-out patients with a predicted effect like the row's."""

    effect: float
    lower: float = Field(description="Lower end of its interval: of the group's mean, not of one patient.")
    upper: float


class PredictionResponse(BaseModel):
    """The answer when every row has one: one entry per row, in order."""

    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True)

    predictions: list[bool | int | float | str]
    probabilities: list[dict[str, float]] | None = Field(
        description="Probability of each class; null for models without classes."
    )
    measured_effects: list[MeasuredEffect] | None = Field(
        default=None, description="Only of models of effects, whose predictions are effects."
    )
    model_id: str = Field(description="Registered model, name/version.")
    prediction_time_ms: float = Field(description="Time inside the model, milliseconds.")
    metadata: ResponseMetadata = Field(alias="_metadata")


class PartialResponse(BaseModel):
    """The answer to a batch in which some rows cannot be used: null in their place, the others answered."""

    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True)

    predictions: list[bool | int | float | str | None]
    probabilities: list[dict[str, float] | None] | None = Field(
        description="Probability of each class; null for models without classes."
    )
    measured_effects: list[MeasuredEffect | None] | None = Field(
        default=None, description="Only of models of effects, whose predictions are effects."
    )
    problems: list[Problem] = Field(
        description="What is wrong with each row without an answer; the field begins with `instances.` and the "
        "place of the row, counted from 0."
    )
    model_id: str = Field(description="Registered model, name/version.")
    prediction_time_ms: float = Field(description="Time inside the model, milliseconds.")
    metadata: ResponseMetadata = Field(alias="_metadata")


class ErrorBody(BaseModel):
    """What is wrong; the values of the request are not repeated."""

    code: str
    message: str
    problems: list[Problem]


class ErrorResponse(BaseModel):
    """The answer to a request that cannot be served."""

    error: ErrorBody
