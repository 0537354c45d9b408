"""MEDS: Parquet with a row for each event of a subject (Medical Event Data Standard, schema ``DataSchema``).

What the standard packs into two columns is given apart, beside them: ``code_system`` and ``code_value`` are the code
before and after its first ``//``; ``birth_time`` is the time of ``MEDS_BIRTH``, ``care_time`` that of everything else
but ``MEDS_DEATH``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from e2i_dagster.sources.formats import parquet
from e2i_dagster.sources.formats.records import Format, Records
from e2i_dagster.tables.arrow import compute

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

SEPARATOR = "//"
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
DERIVED = ("code_system", "code_value", "birth_time", "care_time")


def is_meds(path: Path) -> bool:
    """Whether a Parquet file has the columns of MEDS, of their types; not of one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False  # what is wrong with it is said where it is read as Parquet
    types = {name: schema.field(name).type for name in schema.names}
    return (
        {"subject_id", "time", "code", "numeric_value"} <= set(types)
        and pa.types.is_integer(types["subject_id"])
        and pa.types.is_timestamp(types["time"])
        and pa.types.is_floating(types["numeric_value"])
        and not set(DERIVED) & set(types)
    )


def _open(path: Path, form: FileFormat) -> Records:
    import pyarrow as pa

    plain = parquet.FORMAT.open(path, form)
    time = plain.schema.field("time").type
    schema = plain.schema
    for name, kind in zip(DERIVED, (pa.string(), pa.string(), time, time), strict=True):
        schema = schema.append(pa.field(name, kind))
    summary = plain.summary

    def batches() -> Iterator[pa.RecordBatch]:
        without_time = 0
        for batch in plain.batches:
            without_time += batch.column("time").null_count
            yield pa.RecordBatch.from_arrays([*batch.columns, *_derived(batch)], schema=schema)
        if without_time:
            summary.notes.append(f"{without_time:,} rows have no time (static facts of subjects)")

    return Records(schema, batches(), summary)


def _derived(batch: pa.RecordBatch) -> list[pa.Array]:
    import pyarrow as pa

    pc = compute()
    codes, times = batch.column("code").cast(pa.string()), batch.column("time")
    # Without a separator the whole code is the system, and its value is empty.
    parts = pc.extract_regex(
        pc.if_else(
            pc.match_substring(codes, SEPARATOR),
            codes,
            pc.binary_join_element_wise(codes, pa.scalar(""), pa.scalar(SEPARATOR)),
        ),
        r"(?s)^(?P<system>.*?)//(?P<value>.*)$",
    )
    system, value = pc.struct_field(parts, "system"), pc.struct_field(parts, "value")
    value = pc.if_else(pc.equal(value, ""), pa.scalar(None, pa.string()), value)
    nothing = pa.scalar(None, times.type)
    birth = pc.if_else(pc.equal(codes, BIRTH), times, nothing)
    marker = pc.is_in(codes, value_set=pa.array([BIRTH, DEATH], pa.string()))
    return [system, value, birth, pc.if_else(marker, nothing, times)]


FORMAT = Format("MEDS", lambda start: False, _open)
