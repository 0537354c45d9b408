"""Requests and answers of a served model, derived from its MLflow signature.

One row is ``{"features": {...}}``, optionally with ``patient_id``, or ``{"patient_id": ...}`` alone, whose features
are looked up online; a batch is ``{"instances": [row, ...]}``. A feature that the signature requires must be there;
it may be null only if the model's metadata says that it was missing for somebody in training (``nullable``). A
feature that is not required may be absent or null. The model sees both as missing. Nothing is converted: text is no
number, ``true`` is no 1. Only a number without fraction written with a point (``3.0``) is a whole number, since JSON
does not tell the two apart. A number outside the possible range of its feature is refused; one outside the range seen
in training is answered with a warning.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
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
from e2i_dagster.features.ages import ViewAge

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
        status: HTTP status, 4xx, or 503 when what the answer needs is not there.
        code: short name of the kind of error.
        problems: one ``{"field", "problem"}`` for each thing wrong; no value of the request.
    """

    def __init__(self, status: int, code: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in problems))
        self.status = status
        self.code = code
        self.problems = [{"field": field, "problem": problem} for field, problem in problems]


#: A number without a range from training may be at most this large: what a 32-bit float of a tree library
#: holds (3.4e38) after scaling.
_LARGEST = 1e30

#: A possible number lies within the range seen in training, widened on each side by this many of its widths.
_POSSIBLE_WIDTHS = 1000.0


class Feature(BaseModel):
    """One column of a signature: whether a request must have it, and whether it may be null.

    Attributes:
        seen: smallest and largest number in training, rounded outwards; None when they are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: FeatureType
    required: bool = True
    nullable: bool = False
    example: float | int | bool | str | None = None
    seen: tuple[float, float] | None = None

    @property
    def possible(self) -> tuple[float, float] | None:
        """Smallest and largest number that is taken; None for text and booleans.

        With a range from training: that range, widened on both sides by 1000 times its width (at least 1, and
        at least its larger end). A value beyond is a wrong unit or a defect of the sender.
        """
        if self.type not in ("double", "long"):
            return None
        most = 2.0**63 if self.type == "long" else _LARGEST
        if self.seen is None:
            return (-most, most)
        low, high = self.seen
        wider = _POSSIBLE_WIDTHS * max(high - low, abs(low), abs(high), 1.0)
        return (max(low - wider, -most), min(high + wider, most))

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
        metadata = described.get("metadata") or {}
        nullable = set(metadata.get("nullable") or [])
        seen = metadata.get("seen_ranges") or {}
        examples = _invented_examples(folder)
        return cls(
            features=tuple(
                Feature(
                    name=column["name"],
                    type=_TYPES[column["type"]],
                    required=column.get("required", True),
                    nullable=column["name"] in nullable or not column.get("required", True),
                    example=examples.get(column["name"]),
                    seen=seen.get(column["name"]),
                )
                for column in columns
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
Long = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
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
    """One validated row: a value for every feature of the signature, in order (missing ones None), and the patient.

    Attributes:
        warnings: features outside the range seen in training, and that range.
        online: where the values come from, if they were looked up.
    """

    names: Sequence[str]
    values: Sequence[Any]
    patient_id: str | None
    warnings: Sequence[tuple[str, str]] = ()
    online: OnlineFeatures | None = None

    @property
    def features(self) -> dict[str, Any]:
        """Value by feature name."""
        return dict(zip(self.names, self.values, strict=True))


@dataclass(frozen=True)
class Batch:
    """The rows of a batch in order: None for one that cannot be used, with what is wrong in ``problems``."""

    rows: list[Row | None]
    problems: list[dict[str, str]]

    @property
    def usable(self) -> list[Row]:
        """The rows that the model is asked for."""
        return [row for row in self.rows if row is not None]

    def warnings(self) -> list[dict[str, str]]:
        """Numbers outside the range seen in training; at most :data:`_TOLD`."""
        found = (
            (f"instances.{number}.features.{name}", problem)
            for number, row in enumerate(self.rows)
            if row is not None
            for name, problem in row.warnings
        )
        return [{"field": field, "problem": problem} for field, problem in islice(found, _TOLD)]


@dataclass(frozen=True)
class RequestSchema:
    """The request bodies of one model as pydantic models; make it with :func:`request_schema`."""

    signature: Signature
    single: type[BaseModel]
    patient: type[BaseModel]
    batch: type[BaseModel]
    max_batch: int

    @cached_property
    def names(self) -> list[str]:
        """Feature names in the order of the signature."""
        return self.signature.names

    @cached_property
    def seen(self) -> list[tuple[int, float, float]]:
        """Place of each feature whose range in training is known, and that range."""
        return [
            (place, *feature.seen) for place, feature in enumerate(self.signature.features) if feature.seen
        ]

    def row(self, payload: Any) -> Row:
        """Validate the body of ``/predict``.

        Raises:
            RequestError: 422, every wrong field named.
        """
        return self._row(_validate(self.single, payload, self.signature))

    def patient_alone(self, payload: Any) -> str | None:
        """The patient whose features are to be looked up; None for a body that is to bring them.

        Raises:
            RequestError: 422, every wrong field named.
        """
        if (
            not isinstance(payload, dict)
            or "features" in payload
            or "instances" in payload
            or payload.get("patient_id") is None
        ):
            return None
        return _validate(self.patient, payload, self.signature).patient_id

    def online_row(self, patient_id: str, values: pd.DataFrame, online: OnlineFeatures) -> Row:
        """The row of a patient with the values that were looked up.

        Args:
            values: one row with a column for each feature that is online.

        Raises:
            RequestError: 422, a feature of the model is not online, or its value is none that the model takes.
        """
        absent = [
            (f"features.{feature.name}", "is not in the online store; send the features")
            for feature in self.signature.features
            if feature.name not in values.columns
        ]
        if absent:
            raise RequestError(422, "not_online", absent)
        try:
            [features] = to_records(self.signature, values)
        except InputError as error:
            raise RequestError(
                422, "not_online", [("patient_id", f"has online values of no use: {error}")]
            ) from None
        validated, wrong = _checked(
            self.single, {"features": features, "patient_id": patient_id}, self.signature
        )
        if wrong:
            found = [(_field(loc), f"{problem} (the online value)") for loc, problem in wrong]
            raise RequestError(422, "not_online", found)
        return replace(self._row(validated), online=online)

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
        validated, wrong = _checked(self.batch, payload, self.signature)
        in_rows = {loc[1] for loc, _ in wrong if len(loc) > 1 and loc[0] == "instances"}
        elsewhere = any(len(loc) < 2 or loc[0] != "instances" for loc, _ in wrong)
        if elsewhere or (wrong and isinstance(instances, list) and len(in_rows) == len(instances)):
            raise _refused(wrong)
        if wrong:
            given = [
                instance for number, instance in enumerate(payload["instances"]) if number not in in_rows
            ]
            validated, _ = _checked(self.batch, payload | {"instances": given}, self.signature)
        usable = iter(validated.instances)
        return Batch(
            [
                None if number in in_rows else self._row(next(usable))
                for number in range(len(payload["instances"]))
            ],
            [{"field": _field(loc), "problem": problem} for loc, problem in wrong],
        )

    def _row(self, validated: Any) -> Row:
        # The fields of the model are those of the signature, in its order.
        values = tuple(validated.features.__dict__.values())
        return Row(self.names, values, validated.patient_id, self._outside(values))

    def _outside(self, values: Sequence[Any]) -> list[tuple[str, str]]:
        return [
            (self.names[place], f"is outside {low:g} to {high:g}, the range seen in training")
            for place, low, high in self.seen
            if (value := values[place]) is not None and not low <= value <= high
        ]


def request_schema(signature: Signature, model_name: str, max_batch: int) -> RequestSchema:
    """The request bodies of the model ``model_name`` with ``signature``."""
    title = "".join(part.capitalize() for part in model_name.replace("_", "-").split("-"))
    strict = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    fields: dict[str, Any] = {}
    for position, feature in enumerate(signature.features):
        # Feature names need not be Python names: the field has one of its own, the request the alias.
        kind: Any = _ANNOTATIONS[feature.type]
        if feature.possible is not None:
            low, high = feature.possible
            # A whole number is compared with whole limits, since 2**63 - 1 is no double.
            limits = (low, high) if feature.type == "double" else (math.ceil(low), min(int(high), 2**63 - 1))
            kind = Annotated[kind, Field(ge=limits[0], le=limits[1])]
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
        patient=create_model(
            f"{title}PatientRequest",
            __config__=strict,
            patient_id=(
                Identifier,
                Field(description="Its features are looked up in the online store; the body has none."),
            ),
            **named,
        ),
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

#: A row or body with more wrong fields is counted these many of them.
_TOLD = 50


def _validate(model: type[BaseModel], payload: Any, signature: Signature) -> Any:
    validated, wrong = _checked(model, payload, signature)
    if wrong:
        raise _refused(wrong)
    return validated


def _checked(model: type[BaseModel], payload: Any, signature: Signature) -> tuple[Any, list[_Wrong]]:
    """``payload`` as ``model``, or what is wrong with it without its values; at most :data:`_TOLD` of each row."""
    try:
        return model.model_validate(payload), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        counted: Counter[tuple[int | str, ...]] = Counter()
        kept: list[_Wrong] = []
        for problem in found:
            row = problem["loc"][:2] if problem["loc"][:1] == ("instances",) else ()
            counted[row] += 1
            if counted[row] <= _TOLD:
                kept.append((problem["loc"], _words(problem, signature)))
        return None, kept


def _words(problem: Any, signature: Signature) -> str:
    if problem["type"] in ("greater_than_equal", "less_than_equal"):
        feature = next(candidate for candidate in signature.features if candidate.name == problem["loc"][-1])
        low, high = feature.possible or (-_LARGEST, _LARGEST)
        seen = f"; training saw {feature.seen[0]:g} to {feature.seen[1]:g}" if feature.seen else ""
        return f"must be between {low:g} and {high:g}{seen}"
    return _SHORT.get(problem["type"], problem["msg"])


def _refused(wrong: Sequence[_Wrong]) -> RequestError:
    return RequestError(422, "invalid_request", [(_field(loc), problem) for loc, problem in wrong])


def _field(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)) or "body"


def decode(body: bytes) -> Any:
    """JSON of a request body.

    A number too large for a double becomes infinite, which the schema refuses with the field's name; so it does
    with a lone surrogate in a text.

    Raises:
        RequestError: 400, the body is not JSON in UTF-8; 422, an object names a key twice.
    """
    try:
        text = body.decode()
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError:
            raise
        except ValueError:
            # Python refuses to read whole numbers of more than some thousand digits.
            return json.loads(text, object_pairs_hook=_unique, parse_int=_whole_or_infinite)
    except UnicodeDecodeError:
        raise RequestError(400, "not_json", [("body", "is not text in UTF-8")]) from None
    except json.JSONDecodeError as error:
        # The parser's message has the position and what it expected, no part of the text.
        raise RequestError(400, "not_json", [("body", f"is not JSON: {error}")]) from None
    except RecursionError:
        raise RequestError(400, "not_json", [("body", "is nested too deeply")]) from None
    except _RepeatedKey:
        path = _repeated(json.loads(text, object_pairs_hook=_Pairs, parse_int=_whole_or_infinite), ())
        raise _refused([(path or (), "is given more than once")]) from None


class _RepeatedKey(Exception):
    """An object of a body names a key twice."""


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as its pairs."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKey
    return found


def _whole_or_infinite(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)


def _repeated(value: Any, path: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    """Path of the first key that is given twice in its object."""
    inside: Iterable[tuple[int | str, Any]] = ()
    if isinstance(value, _Pairs):
        names = Counter(name for name, _ in value)
        for name, count in names.items():
            if count > 1:
                return (*path, name)
        inside = value
    elif isinstance(value, list):
        inside = enumerate(value)
    for name, inner in inside:
        found = _repeated(inner, (*path, name))
        if found is not None:
            return found
    return None


def to_frame(signature: Signature, values: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """The frame that the model gets: columns and order of the signature.

    Args:
        values: the values of each feature, in order; missing as None.

    double is ``float64``; long ``int64``, or ``float64`` with NaN where the signature lets it be
    missing; string and boolean are ``object`` with NaN for missing, or ``bool`` where it cannot be.
    """
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for feature, given in zip(signature.features, values, strict=True):
        if feature.type == "double":
            columns[feature.name] = np.array(given, dtype="float64")
        elif feature.type == "long":
            columns[feature.name] = np.array(given, dtype="float64" if feature.may_be_missing else "int64")
        elif feature.type == "boolean" and not feature.may_be_missing:
            columns[feature.name] = np.array(given, dtype="bool")
        else:
            columns[feature.name] = pd.Series(
                [math.nan if v is None else v for v in given], dtype="object"
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
        if not column.dropna().astype("object").map(type).isin([str]).all():
            raise TypeError
        values = column.astype("object").to_numpy()
    else:
        values = column.astype("Int64" if kind == "long" else "boolean").astype("object").to_numpy()
    values = np.array(values, dtype="object")
    values[column.isna().to_numpy()] = None
    return values.tolist()


class Problem(BaseModel):
    """One thing wrong with a request."""

    field: str
    problem: str


class OnlineFeatures(BaseModel):
    """Where looked-up features come from, and how old they are."""

    version: str = Field(description="Digest of the feature files that are online.")
    views: list[ViewAge]


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
    warnings: list[Problem] = Field(
        default_factory=list,
        description="Numbers outside the range seen in training, online values that are stale; absent without any.",
    )
    online_features: OnlineFeatures | None = Field(
        default=None, description="Only where the request gave the patient alone."
    )


class MeasuredEffect(BaseModel):
    """The mean effect measured among held-out patients with a predicted effect like the row's."""

    effect: float
    lower: float = Field(description="Lower end of its interval: of the group's mean, not of one patient.")
    upper: float


class ExplainedOutput(BaseModel):
    """One output of the model for one row: expected_value and contributions add up to margin."""

    class_name: str | None = Field(
        description="Class whose output is explained: the second of two, each of several; null without classes."
    )
    expected_value: float = Field(
        description="Output before anything is known of the row: of tree models the average over the training rows, "
        "of linear models the output at the average of the training rows."
    )
    contributions: dict[str, float] = Field(
        description="What each feature adds to expected_value (SHAP value), on the scale named."
    )
    margin: float = Field(description="Output of the model before calibration, on the scale named.")
    difference: float = Field(
        description="margin less expected_value and contributions: rounding alone. At most 1e-9 for a margin up to 1 "
        "(of larger ones in proportion); 1e-4 for XGBoost and CoxPH, which compute in 32 bits."
    )


class ModelExplanation(BaseModel):
    """What each feature of the rows contributes. Associations in the model, not effects of a treatment."""

    method: Literal["tree", "linear"] = Field(
        description="tree: exact path-dependent tree SHAP. linear: weight times distance from the training average, "
        "exact for independent columns."
    )
    scale: Literal["log-odds", "probability", "outcome", "log hazard ratio"] = Field(
        description="Scale of expected_value, contributions and margin. Of several classes, log-odds are the "
        "numbers that softmax turns into probabilities."
    )
    calibration: str | None = Field(
        description="What turns the margin into the answer's probability or risk beyond its scale "
        "(temperature, sigmoid, risk_at_horizon); null: nothing."
    )
    adds_up_to: Literal["margin", "probability", "prediction"] = Field(
        description="The number of the answer that expected_value and contributions add up to. margin: only the margin "
        "beside them, from which the answer's probability or risk is computed."
    )


class ExplanationResponse(ModelExplanation):
    """The explanation in an answer: one entry of ``rows`` per row, in order, with its outputs."""

    rows: list[list[ExplainedOutput]]


class PartialExplanationResponse(ModelExplanation):
    """As the explanation of a whole answer, with null in the places of rows that cannot be used."""

    rows: list[list[ExplainedOutput] | None]


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
    explanation: ExplanationResponse | None = Field(
        default=None, description="Only where the request asks for it with `explain=true`."
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
    explanation: PartialExplanationResponse | None = Field(
        default=None, description="Only where the request asks for it with `explain=true`."
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
