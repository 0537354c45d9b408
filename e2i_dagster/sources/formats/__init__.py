"""One module for each format of files, and which of them a file is of.

A format is recognised by the content of a file; only text with separators, and a file whose content is of none, goes
by its ending. Each gives the rows as delivered, in batches (:class:`.records.Records`).
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from e2i_dagster.sources.formats import dataset_json, delimited, fhir, meds, parquet, sas
from e2i_dagster.sources.formats.records import Format, Records, open_bytes
from e2i_dagster.sources.formats.refused import Refused, refused_by_content, refused_by_ending

if TYPE_CHECKING:
    from e2i_dagster.config.mapping import FileFormat

FORMATS = (parquet.FORMAT, sas.TRANSPORT, sas.DATASET, dataset_json.FORMAT, fhir.FORMAT, delimited.FORMAT)
#: What is read, in words.
READ = (
    "CSV, TSV, text (.txt, with a declared separator), FHIR R4 as NDJSON or Dataset-JSON, each also as .gz, Parquet, "
    "MEDS, or SAS (XPT, sas7bdat)"
)
#: So many bytes at the beginning of a file tell its format.
_BEGINNING = 1 << 16


def recognise(path: Path) -> Format | Refused | None:
    """The format of a file, one that is known and not read, or None where it is neither."""
    start = _beginning(path)
    found = next((form for form in FORMATS if form.recognise(start)), None)
    if found is parquet.FORMAT and meds.is_meds(path):
        return meds.FORMAT
    if found is not None:
        zipped = path.suffix.lower() == ".gz" and not found.gzipped
        return Refused(f"{found.name} inside gzip", "Decompress it") if zipped else found
    last = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    by_ending = next(
        (form for form in FORMATS if last.suffix.lower() in form.endings and (last is path or form.gzipped)),
        None,
    )
    return refused_by_content(start) or by_ending or refused_by_ending(last)


def is_read(path: Path) -> bool:
    """Whether a file is of a format that is read."""
    return isinstance(recognise(path), Format)


def open_records(path: Path, form: FileFormat) -> Records:
    """The rows of a file; one of no known format is taken for text with separators.

    Raises:
        InputError: the file is of a format that is not read, or cannot be read as ``form`` says.
    """
    found = recognise(path)
    if isinstance(found, Refused):
        raise found.error(path)
    return (found or delimited.FORMAT).open(path, form)


def _beginning(path: Path) -> bytes:
    """The first bytes of a file, decompressed; what cannot be opened is reported where it is read."""
    start = b""
    with contextlib.suppress(OSError, EOFError, zlib.error, gzip.BadGzipFile), open_bytes(path) as stream:
        start = stream.read(_BEGINNING)
    return start


__all__ = [
    "FORMATS",
    "READ",
    "Format",
    "Records",
    "Refused",
    "is_read",
    "open_records",
    "recognise",
]
