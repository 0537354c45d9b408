"""The lake: immutable files, one for each (asset, partition, digest).

A frame is a Parquet file, a pydantic value a JSON file. The path carries the digest of the
values, so a version is never replaced by other values; a file is written aside and renamed, so a reader
never sees half of one. Which version is current, and how long its file is and what checksum it has, is the
ledger's answer, not the lake's.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError
from upath import UPath

from e2i_dagster.errors import DamagedError, UnavailableError
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.versions import files
from e2i_dagster.versions.digest import frame_digest, frame_digests
from e2i_dagster.versions.files import StoredFile

Value = pd.DataFrame | BaseModel
Partition = TypeVar("Partition", bound="str | None")

#: Folder of an asset for the file that stands for its partitions without rows.
NO_ROWS = "no_rows"
#: Files written at the same time: a disk forces several to its plates as fast as one.
_AT_ONCE = 8


@dataclass(frozen=True)
class StoredVersion:
    """One immutable version: its file, what it holds.

    ``rows`` is 1 for a document; ``schema_hash`` covers column names and types in order.
    """

    file: StoredFile
    digest: str
    rows: int
    schema_hash: str

    @property
    def path(self) -> str:
        """Place in the lake."""
        return self.file.path


@dataclass(frozen=True)
class SetAside:
    """A version whose file has not its name yet; ``aside`` is None when it stands there already."""

    version: StoredVersion
    aside: UPath | None


class Lake:
    """Reads and writes versions below ``url``: a local folder, ``s3://``, ``gs://`` or ``abfs://``."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.root = UPath(url, **dict(storage_options or {}))

    def place(self, asset: str, partition: str | None, value: Value, digest: str) -> str:
        """Where ``value`` is stored, relative to the lake; all partitions without rows share one file."""
        frame = isinstance(value, pd.DataFrame)
        folder = NO_ROWS if frame and partition and value.empty else (partition or "all").replace("|", "/")
        target = self.root / asset / folder / f"{digest}.{'parquet' if frame else 'json'}"
        return str(target.relative_to(self.root))

    def write(
        self, asset: str, partition: str | None, value: Value, digest: str | None = None
    ) -> StoredVersion:
        """Store ``value`` and return its version.

        Raises:
            UnavailableError: the lake cannot be written to (no space, no permission).
        """
        path = self.place(asset, partition, value, digest or value_digest(value))
        (pending,) = self.set_aside({path: (value, digest or value_digest(value))}, {})
        self.put([pending])
        return pending.version

    def set_aside(
        self, values: Mapping[str, tuple[Value, str]], known: Mapping[str, StoredFile]
    ) -> list[SetAside]:
        """Write (value, digest) of each path beside its place; :meth:`put` makes them readable.

        A file of ``known`` that is whole has these values already and is not written again.

        Raises:
            UnavailableError: the lake cannot be written to; nothing was changed.
        """
        done: list[SetAside] = []

        def set_aside(path: str) -> SetAside:
            value, digest = values[path]
            rows = len(value) if isinstance(value, pd.DataFrame) else 1
            there = known.get(path)
            if there is not None and there.checksum is not None and not self.damage(there):
                return SetAside(StoredVersion(there, digest, rows, schema_hash(value)), None)
            content = _content(value)
            file = StoredFile(path, len(content), files.checksum_of(content))
            aside = files.write_aside(self.root / path, content)
            pending = SetAside(StoredVersion(file, digest, rows, schema_hash(value)), aside)
            done.append(pending)
            return pending

        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                return list(pool.map(set_aside, values))
        except OSError as error:
            self.discard(done)
            raise self._unwritable(error) from error

    def put(self, pending: Iterable[SetAside]) -> None:
        """Give the files that were set aside their names.

        Raises:
            UnavailableError: the lake cannot be written to.
        """
        try:
            for file in pending:
                if file.aside is not None:
                    files.put(file.aside, self.root / file.version.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def discard(self, pending: Iterable[SetAside]) -> None:
        """Remove the files that were set aside and have no name yet."""
        for file in pending:
            if file.aside is not None:
                with suppress(OSError):
                    file.aside.unlink()

    def _unwritable(self, error: OSError) -> UnavailableError:
        return UnavailableError(
            f"The lake at {self.root} cannot be written to ({error.strerror or error}).",
            remedy="Free space or correct the permissions of E2I_LAKE, then run again; nothing was changed.",
        )

    def damage(self, file: StoredFile, *, whole: bool = True) -> str:
        """What is wrong with ``file`` in words; empty when it is what was written.

        Args:
            file: as it was written. Of one without a checksum only what every file of its kind has is looked at.
            whole: compare the content, too, not only the length.
        """
        path = self.root / file.path
        found = files.damage(path, file.size, file.checksum, whole=whole)
        if found or file.checksum is not None or not whole:
            return found
        return _without_frame(path)

    def not_reusable(self, file: StoredFile) -> str:
        """:meth:`damage` as reuse asks for it: in a store elsewhere, which keeps checksums itself, by length."""
        return self.damage(file, whole=files.is_local(self.root))

    def require_whole(self, file: StoredFile) -> UPath:
        """The place of ``file``, which is what was written.

        Raises:
            DamagedError: it is missing or damaged.
        """
        found = self.damage(file)
        if found:
            raise self._damaged(file, found)
        return self.root / file.path

    def _damaged(self, file: StoredFile, found: str) -> DamagedError:
        return DamagedError.of(
            str(self.root / file.path), found, file.path.rpartition("/")[0].removesuffix("/all")
        )

    def read_frame(self, stored: Sequence[StoredFile]) -> pd.DataFrame:
        """The rows of all files, in order; string columns as ``string[pyarrow]``.

        Raises:
            DamagedError: a file is missing or damaged; it is named.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for file in stored:
            try:
                with self.require_whole(file).open("rb") as stream:
                    tables.append(pq.ParquetFile(stream).read())
            except (pa.ArrowException, FileNotFoundError) as error:
                raise self._damaged(file, f"cannot be read ({error})") from error
        rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        with pd.option_context("mode.string_storage", "pyarrow"):
            return rows.to_pandas()

    def read_document(self, file: StoredFile, model: type[BaseModel]) -> BaseModel:
        """The document ``file`` as ``model``.

        Raises:
            DamagedError: the file is missing or damaged.
        """
        content = self.require_whole(file).read_bytes()
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            if error.errors(include_input=False)[0]["type"] != "json_invalid":
                raise
            raise self._damaged(file, "no JSON") from error

    def folder(self, *parts: str) -> UPath:
        """A folder below the lake for files that another tool writes (feature sources, artifacts)."""
        return self.root.joinpath(*parts)


def _content(value: Value) -> bytes:
    if not isinstance(value, pd.DataFrame):
        return value.model_dump_json().encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(value, preserve_index=False)
    # As `to_parquet` writes it, but what pandas notes of its types once, not again inside the schema of Arrow: of a
    # file of few rows that is a third.
    plain = table.replace_schema_metadata(None)
    stream = io.BytesIO()
    with pq.ParquetWriter(
        stream, plain.schema, coerce_timestamps="us", allow_truncated_timestamps=True
    ) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata(table.schema.metadata)
    return stream.getvalue()


def _without_frame(path: UPath) -> str:
    """Whether the file at ``path`` lacks the first or last bytes that every file of its kind has."""
    first, last = (b"PAR1", b"PAR1") if path.suffix == ".parquet" else (b"{", b"}")
    with path.open("rb") as stream:
        begins = stream.read(len(first)) == first
        stream.seek(-len(last), io.SEEK_END)
        ends = stream.read() == last
    return "" if begins and ends else "cut off"


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
