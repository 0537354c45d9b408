"""Batches as Arrow IPC streams or Parquet files, for jobs that score many rows at once.

Columns are the features of the signature, and optionally ``patient_id``. The answer is an Arrow stream with one row
for each row of the request, in order. Rows are read, answered and sent in parts, so that their number is bounded by
the size of the body alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic_core import to_json

from e2i_dagster.serving.request_schema import Feature, RequestError, Signature

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

    from e2i_dagster.serving.models import LoadedModel

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

#: Rows that are answered and sent at once.
_PART_ROWS = 16_384


def accepts_arrow(accept: str) -> bool:
    """Whether the header ``Accept`` allows the answer."""
    kinds = {part.partition(";")[0].strip() for part in accept.split(",")}
    return not accept or not kinds.isdisjoint((ARROW, "application/*", "*/*"))


def parts(body: IO[bytes], kind: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema of a body of the type ``kind``, and its rows in parts.

    Raises:
        RequestError: 400, the body is not of that type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == PARQUET:
            file = pq.ParquetFile(body)
            return file.schema_arrow, file.iter_batches(batch_size=_PART_ROWS)
        reader = pa.ipc.open_stream(body)
    except (pa.ArrowInvalid, OSError):
        raise RequestError(400, "not_arrow", [("body", f"is not of the type {kind}")]) from None
    return reader.schema, (
        batch.slice(start, _PART_ROWS) for batch in reader for start in range(0, batch.num_rows, _PART_ROWS)
    )


class Columnar:
    """Columns of a request as the values of a model, and its answers as columns.

    Raises:
        RequestError: 422, a column is missing, unknown or of another type; each is named.
    """

    def __init__(self, schema: pa.Schema, signature: Signature) -> None:
        self._signature = signature
        self.has_patient = "patient_id" in schema.names
        wrong = [
            (name, "is not a feature or field of this model")
            for name in schema.names
            if name != "patient_id" and name not in signature.names
        ]
        wrong += [
            (name, "is given more than once") for name in {*schema.names} if schema.names.count(name) > 1
        ]
        for feature in signature.features:
            if feature.name not in schema.names:
                if feature.required:
                    wrong.append((feature.name, "is missing"))
            elif not _fits(schema.field(feature.name).type, feature):
                found = schema.field(feature.name).type
                wrong.append((feature.name, f"must be {feature.type}, the column is {found}"))
        if self.has_patient and not _text(schema.field("patient_id").type):
            wrong.append(("patient_id", "must be text"))
        if wrong:
            raise RequestError(422, "invalid_request", wrong)

    def read(self, batch: pa.RecordBatch) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """Values of each feature; of each row why it cannot be answered, and what is unusual, or None."""
        problems = np.full(batch.num_rows, None, dtype=object)
        warnings = np.full(batch.num_rows, None, dtype=object)
        columns = []
        for feature in self._signature.features:
            if feature.name not in batch.schema.names:
                columns.append(np.full(batch.num_rows, None, dtype=object))
                continue
            columns.append(_values(batch.column(feature.name), feature, problems, warnings))
        return columns, problems, warnings


def _text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _fits(kind: pa.DataType, feature: Feature) -> bool:
    import pyarrow as pa

    if pa.types.is_null(kind):
        return feature.may_be_missing
    if feature.type == "string":
        return _text(kind)
    if feature.type == "boolean":
        return pa.types.is_boolean(kind)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _values(column: pa.Array, feature: Feature, problems: np.ndarray, warnings: np.ndarray) -> Any:
    import pyarrow as pa
    import pyarrow.compute

    # Its functions are made when it is loaded, so that no type checker knows them.
    pc: Any = pyarrow.compute

    def note(where: np.ndarray, text: str, notes: np.ndarray) -> None:
        if where.any():
            free = where & pd.isna(notes)
            notes[free] = f"{feature.name} {text}"

    if feature.type in ("string", "boolean"):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        missing = column.is_null().to_numpy(zero_copy_only=False)
        values: Any = np.array(column.to_pylist(), dtype=object)
        if _text(column.type):
            note(
                pc.fill_null(pc.match_substring(column, "\x00"), False).to_numpy(zero_copy_only=False),
                "contains the character NUL",
                problems,
            )
            long = pc.fill_null(pc.greater(pc.utf8_length(column), 10_000), False)
            note(long.to_numpy(zero_copy_only=False), "has more than 10000 characters", problems)
    else:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        missing = np.isnan(values)
        low, high = feature.possible or (-np.inf, np.inf)
        note(np.isinf(values), "must be a finite number", problems)
        note((values < low) | (values > high), f"must be between {low:g} and {high:g}", problems)
        if feature.type == "long":
            note(~missing & (values != np.round(values)), "must be a whole number", problems)
        if feature.seen is not None:
            low, high = feature.seen
            outside = (values < low) | (values > high)
            note(outside, f"is outside {low:g} to {high:g}, the range seen in training", warnings)
    if not feature.may_be_missing:
        note(missing, "is missing", problems)
    return values


def answer_columns(loaded: LoadedModel, raw: Any) -> dict[str, Any]:
    """Columns of the answer of :meth:`~.models.LoadedModel.raw`.

    Raises:
        FloatingPointError: the model gave a number that is not finite.
    """
    if loaded.classes is None or len(raw) == 0:
        found = loaded.answers(raw)
        columns: dict[str, Any] = {"prediction": found.predictions, "prediction_value": found.values}
        for name in ("effect", "lower", "upper") if found.measured else ():
            columns[f"measured_{name}"] = [effect[name] for effect in found.measured or ()]
        return columns
    if not np.isfinite(raw).all():
        raise FloatingPointError
    chosen = loaded.chosen(raw)
    return {
        "prediction": np.array(loaded.classes)[chosen],
        "prediction_value": raw[:, 1] if raw.shape[1] == 2 else raw.max(axis=1),
        **{f"probability_{name}": raw[:, place] for place, name in enumerate(loaded.classes)},
    }


class ArrowAnswer:
    """An Arrow stream that is written part by part."""

    def __init__(self, model: LoadedModel, *, patient: bool, metadata: dict[str, str]) -> None:
        import pyarrow as pa

        classes = model.classes
        label = pa.float64() if classes is None else pa.array(classes).type
        fields = [("patient_id", pa.string())] if patient else []
        fields += [("prediction", label), ("prediction_value", pa.float64())]
        fields += [(f"probability_{name}", pa.float64()) for name in classes or ()]
        if model.measures_effects:
            fields += [(f"measured_{name}", pa.float64()) for name in ("effect", "lower", "upper")]
        fields += [("problem", pa.string()), ("warning", pa.string())]
        self._schema = pa.schema(fields, metadata=metadata)
        self._sink = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def part(
        self,
        answers: dict[str, Any],
        usable: np.ndarray,
        problems: np.ndarray,
        warnings: np.ndarray,
        patients: Any,
    ) -> bytes:
        """Bytes of the rows of one part; those that are not ``usable`` have no answer."""
        import pyarrow as pa

        places = np.full(len(usable), -1)
        places[usable] = np.arange(int(usable.sum()))
        index = pa.array(places, mask=~usable)
        columns = []
        for field in self._schema:
            if field.name == "patient_id":
                columns.append(patients)
            elif field.name in ("problem", "warning"):
                columns.append(pa.array(problems if field.name == "problem" else warnings, type=field.type))
            else:
                columns.append(pa.array(answers.get(field.name, []), type=field.type).take(index))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        return self._taken()

    def end(self) -> bytes:
        """The end of the stream."""
        self._writer.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


def log_lines(
    *,
    key: str,
    start: int,
    request_id: str,
    model_id: str,
    model_version: str,
    at: datetime,
    names: Sequence[str],
    columns: Sequence[Any],
    answers: dict[str, Any],
    patients: Sequence[str | None] | None,
) -> bytes:
    """The lines of :func:`~.audit.log_row` for the rows of one part, column by column.

    Args:
        start: place of the first row in the request.
    """
    count = len(answers["prediction_value"])
    probabilities = {
        name.removeprefix("probability_"): values
        for name, values in answers.items()
        if name.startswith("probability_")
    }
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    head = {
        "origin": "live",
        "request_id": request_id,
        "model_id": model_id,
        "model_version": model_version,
        "prediction_timestamp": at.isoformat(),
    }
    classes = [str(label) for label in np.asarray(answers["prediction"]).tolist()] if probabilities else None
    confidence = np.max(list(probabilities.values()), axis=0) if probabilities else None
    # Text and values in turn, joined by Arrow: no loop of Python over the rows.
    pieces: list[Any] = [
        to_json(head).decode()[:-1] + f',"prediction_id":"live-{key}-',
        _fragments(np.arange(start, start + count)),
        '","prediction_value":',
        _fragments(answers["prediction_value"]),
        ',"patient_id":',
        _fragments(patients),
        ',"prediction_class":',
        _fragments(classes),
        ',"confidence_score":',
        _fragments(confidence),
        ',"probability_scores":{',
        *_object(probabilities.items()),
        '},"features_available_at_prediction":{',
        *_object(zip(names, columns, strict=True)),
        "}}\n",
        # The last argument is what stands between the others.
        "",
    ]
    lines = pc.binary_join_element_wise(
        *(pa.scalar(piece) if isinstance(piece, str) else piece for piece in pieces)
    )
    ends = np.frombuffer(lines.buffers()[1], dtype="int32")[lines.offset : lines.offset + count + 1]
    return lines.buffers()[2].to_pybytes()[ends[0] : ends[-1]]


def _object(members: Iterable[tuple[str, Any]]) -> list[Any]:
    """The members of an object of JSON: name and value of each in turn."""
    pieces: list[Any] = []
    for name, values in members:
        pieces += [("," if pieces else "") + to_json(name).decode() + ":", _fragments(values)]
    return pieces


def _fragments(values: Any) -> Any:
    """Each value as JSON, as Arrow text; missing as null."""
    import pyarrow as pa

    if values is None:
        return "null"
    column = pa.array(values, from_pandas=True)
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        known = pa.array([to_json(word).decode() for word in encoded.dictionary.to_pylist()], pa.string())
        column = known.take(encoded.indices)
    return column.cast(pa.string()).fill_null("null")
