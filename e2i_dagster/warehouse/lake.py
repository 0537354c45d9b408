"""The lake: immutable files, one for each (asset, partition, digest).

A frame is a Parquet file, a pydantic value a JSON file. The path carries the digest of the
values, so a version is never overwritten; a file is written aside and renamed, so a reader
never sees half of one. Which version is current is the ledger's answer, not the lake's.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel
from upath import UPath

from e2i_dagster.config.base import digest_of
from e2i_dagster.errors import UnavailableError
from e2i_dagster.warehouse.digest import frame_digest, frame_digests

Value = pd.DataFrame | BaseModel
Partition = TypeVar("Partition", bound="str | None")


@dataclass(frozen=True)
class StoredVersion:
    """One immutable version: where it is, what it holds.

    ``rows`` is 1 for a document; ``schema_hash`` covers column names and types in order.
    """

    path: str
    digest: str
    rows: int
    schema_hash: str


class Lake:
    """Reads and writes versions below ``url``: a local folder, ``s3://``, ``gs://`` or ``abfs://``."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.root = UPath(url, **dict(storage_options or {}))

    def write(
        self, asset: str, partition: str | None, value: Value, digest: str | None = None
    ) -> StoredVersion:
        """Store ``value`` and return its version; a version that is already there is not written again.

        Raises:
            UnavailableError: the lake cannot be written to (no space, no permission).
        """
        digest = digest or value_digest(value)
        suffix = "parquet" if isinstance(value, pd.DataFrame) else "json"
        target = self.root / asset / (partition or "all").replace("|", "/") / f"{digest}.{suffix}"
        if not target.exists():
            self._write_aside(target, value)
        rows = len(value) if isinstance(value, pd.DataFrame) else 1
        return StoredVersion(str(target.relative_to(self.root)), digest, rows, schema_hash(value))

    def _write_aside(self, target: UPath, value: Value) -> None:
        aside = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, pd.DataFrame):
                with aside.open("wb") as stream:
                    value.to_parquet(
                        stream, index=False, coerce_timestamps="us", allow_truncated_timestamps=True
                    )
            else:
                aside.write_text(value.model_dump_json(), encoding="utf-8")
            if target.protocol in ("", "file", "local"):
                os.replace(str(aside), str(target))  # noqa: PTH105 - atomic, which UPath does not promise
            else:
                aside.rename(target)
        except OSError as error:
            if aside.exists():
                aside.unlink()
            raise UnavailableError(
                f"The lake at {self.root} cannot be written to ({error.strerror or error}). "
                "Free space or correct the permissions of E2I_LAKE, then run again; nothing was changed."
            ) from error

    def read_frame(self, paths: Sequence[str]) -> pd.DataFrame:
        """The rows of all ``paths`` (relative to the lake), in order; string columns as ``string[pyarrow]``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for path in paths:
            with (self.root / path).open("rb") as stream:
                tables.append(pq.ParquetFile(stream).read())
        rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        with pd.option_context("mode.string_storage", "pyarrow"):
            return rows.to_pandas()

    def read_document(self, path: str, model: type[BaseModel]) -> BaseModel:
        """The document at ``path`` as ``model``."""
        return model.model_validate_json((self.root / path).read_text(encoding="utf-8"))

    def folder(self, *parts: str) -> UPath:
        """A folder below the lake for files that another tool writes (feature sources, artifacts)."""
        return self.root.joinpath(*parts)


def value_digest(value: Value) -> str:
    """Digest of the values: of a frame independent of row order, of a document of its JSON.

    Fields that a document's class names in ``volatile_fields`` (durations, pictures) are not values.
    """
    if isinstance(value, pd.DataFrame):
        return frame_digest(value)
    return digest_of(value.model_dump(mode="json", exclude=getattr(type(value), "volatile_fields", None)))


def value_digests(values: Mapping[Partition, Value]) -> dict[Partition, str]:
    """:func:`value_digest` of each of ``values``, of the parts of one frame in one pass."""
    frames = {key: value for key, value in values.items() if isinstance(value, pd.DataFrame)}
    if len(frames) < len(values):
        return {key: value_digest(value) for key, value in values.items()}
    return frame_digests(frames)


def schema_hash(value: Value) -> str:
    """Digest of column names and types of a frame, or of the fields of a document."""
    if isinstance(value, pd.DataFrame):
        return digest_of([[str(name), str(dtype)] for name, dtype in value.dtypes.items()])
    return digest_of(sorted(type(value).model_fields))
