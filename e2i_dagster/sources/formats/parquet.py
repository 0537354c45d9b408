"""Parquet: typed columns as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from e2i_dagster.errors import InputError
from e2i_dagster.sources.formats.records import BATCH_ROWS, FileSummary, Format, Records, refusal, with_nulls

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat


def _open(path: Path, form: FileFormat) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size == 0:
        raise refusal(path, "the file is empty (0 bytes)")

    def unreadable(error: Exception) -> InputError:
        reason = str(error).split("\n", 1)[0]
        return refusal(path, f"not readable as Parquet ({reason[:120]})")

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        raise unreadable(error) from None

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    yield with_nulls(batch, form)
        except (pa.ArrowInvalid, pa.ArrowIOError) as error:
            raise unreadable(error) from None

    return Records(schema, batches(), FileSummary())


FORMAT = Format("Parquet", lambda start: start[:4] == b"PAR1", _open, endings=(".parquet",))
