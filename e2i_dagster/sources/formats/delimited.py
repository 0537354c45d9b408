"""Text with separators: CSV, TSV and whatever else a mapping declares. Every value is read as text.

Leading zeros of codes, ZIP and NDC survive so.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2i_dagster.errors import InputError
from e2i_dagster.sources.formats.records import FileSummary, Format, Records, open_bytes, refusal

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

#: Endings of text files, also with ``.gz`` after them, and what separates the fields where the ending says it.
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": None}
ENDINGS = tuple(SEPARATORS)
# A cell may hold a document; what is too much is decided by rows, not by this reader.
csv.field_size_limit(sys.maxsize)


def text_ending(path: Path) -> str:
    """``.csv``, ``.tsv`` or ``.txt``, also before ``.gz``; empty for other files."""
    last = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return last.suffix.lower() if last.suffix.lower() in ENDINGS else ""


def read(path: Path, form: FileFormat, block_size: int = 1 << 22) -> Records:
    """Rows of a text file; ``block_size`` is how many bytes the parser takes at once.

    Lines are counted on the bytes, apart from the parser, and both counts must agree: a quotation mark
    that is text would otherwise fold the lines that follow into one cell without a word.
    """
    import pyarrow as pa

    header, has_rows = _read_header(path, form)
    schema = pa.schema([(name, pa.string()) for name in header])
    if not has_rows:
        return Records(schema, iter(()), FileSummary(lines=0))
    lines, quoted = count_lines(path, form)
    judged = count_rows(path, form) if quoted or _is_wide(form) else None
    summary = FileSummary()
    return Records(schema, _batches(path, form, schema, lines, judged, summary, block_size), summary)


def _batches(
    path: Path,
    form: FileFormat,
    schema: pa.Schema,
    lines: int,
    judged: RowCounts | None,
    summary: FileSummary,
    block_size: int,
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    def skip(row: Any) -> str:
        summary.malformed.append((row.number - 1, row.text))
        return "skip"

    # Arrow itself tells what is compressed by an ending in lower case only.
    compression = "gzip" if path.suffix.lower() == ".gz" else None
    parsed = 0
    try:
        # Only the reader with one thread knows row numbers.
        for batch in arrow_csv.open_csv(
            pa.input_stream(str(path), compression=compression),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, encoding=_python_encoding(form), block_size=block_size
            ),
            # Free text may hold line breaks inside quotes.
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator_of(path, form),
                quote_char=False if form.quote == "none" else form.quote,
                newlines_in_values=judged is not None and judged.lines > judged.rows,
                invalid_row_handler=skip,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=schema, strings_can_be_null=True, null_values=["", *form.nulls]
            ),
        ):
            parsed += batch.num_rows
            yield batch
    except pa.ArrowInvalid as error:
        reason = str(error).split("\n", 1)[0]
        if "UTF" in reason:
            raise _not_encoded(path, form) from None
        raise refusal(path, f"not a readable text file ({reason[:120]})") from None
    except UnicodeError:
        raise _not_encoded(path, form) from None
    parsed += len(summary.malformed)
    if judged is None and lines != parsed + 1:
        # Blank lines are no rows.
        judged = count_rows(path, form)
    if judged is not None and judged.rows != parsed:
        raise refusal(
            path,
            f"{judged.rows:,} rows by its lines, {parsed:,} by the parser",
            "Write `quote: none` in the mapping if the file is written without quoting, or deliver it again.",
            field="quote",
            value=form.quote,
        )
    summary.lines = parsed if judged is None else judged.lines


@dataclass(frozen=True)
class RowCounts:
    """What the lines of a text file are, header and blank lines aside.

    Attributes:
        rows: rows. lines: the lines that they take; more than rows where cells hold line breaks.
        uneven: rows with another number of fields than the header.
    """

    rows: int
    lines: int
    uneven: int


def _is_wide(form: FileFormat) -> bool:
    return form.encoding.startswith(("utf-16", "utf-32"))


def open_text(path: Path, form: FileFormat) -> io.TextIOWrapper:
    """The text of a file, decompressed, its line ends as they are."""
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def separator_of(path: Path, form: FileFormat) -> str:
    """The declared separator, else that of the file's ending: a tab in ``.tsv``, a comma in ``.csv``.

    Parts of one table may be written differently: the ending holds, too, where only its separator stands in the header.
    """
    own = SEPARATORS.get(text_ending(path))
    if own is None or own == form.separator:
        return form.separator
    if "separator" not in form.model_fields_set:
        return own
    with open_text(path, form) as stream:
        header = stream.readline()
    return own if own in header and form.separator not in header else form.separator


def records_of(lines: Iterable[str], path: Path, form: FileFormat, *, strict: bool) -> Any:
    """The standard library's reader over ``lines`` in the format of the file."""
    quoting: dict[str, Any] = (
        {"quoting": csv.QUOTE_NONE} if form.quote == "none" else {"quotechar": form.quote}
    )
    return csv.reader(lines, delimiter=separator_of(path, form), strict=strict, **quoting)


def count_lines(path: Path, form: FileFormat) -> tuple[int, bool]:
    """Lines of a file, blank ones too, and whether it has a quotation mark; nothing is parsed."""
    mark = b"" if form.quote == "none" else form.quote.encode()
    lines, quoted, last = 0, False, b"\n"
    with open_bytes(path) as stream:
        while block := stream.read(1 << 22):
            lines += block.count(b"\n")
            if returns := block.count(b"\r"):
                lines += returns - block.count(b"\r\n")
            # The pair of a line's end may lie in two blocks.
            lines -= last == b"\r" and block[:1] == b"\n"
            quoted = quoted or (bool(mark) and mark in block)
            last = block[-1:]
    return lines + (last not in (b"\n", b"\r")), quoted


def count_rows(path: Path, form: FileFormat, advice: str | None = None) -> RowCounts:
    """Count the rows of a text file and the lines they take, by the rules of quoting (RFC 4180).

    Args:
        advice: what to do about a quotation mark that is text, for files that no mapping describes.

    Raises:
        InputError: a quotation mark that is text: text follows a closing quote, a quote is never closed,
            a row over several lines has another number of fields than the header, or a cell holds line
            breaks together with separators (accepted where the format declares ``line_breaks``).
    """
    separator = separator_of(path, form)
    rows = lines = uneven = width = end = 0
    with open_text(path, form) as stream:
        reader = records_of(stream, path, form, strict=True)
        try:
            for record in reader:
                first, end = end + 1, reader.line_num
                if not record:
                    continue
                several = end > first
                if several and not form.line_breaks:
                    folded = not width or any(
                        separator in cell and ("\n" in cell or "\r" in cell) for cell in record
                    )
                    if folded or len(record) != width or width == 1:
                        what = "a cell holds line breaks together with separators"
                        raise _stray_quote(path, first, form, what, advice, breaks=True)
                if not width:
                    width = len(record)
                    continue
                rows += 1
                lines += end - first + 1
                uneven += len(record) != width
        except csv.Error as error:
            closed = "unexpected end" not in str(error)
            what = "text follows a closing quotation mark" if closed else "a quotation mark is never closed"
            raise _stray_quote(path, end + 1, form, what, advice) from None
        except UnicodeError:
            raise _not_encoded(path, form) from None
    return RowCounts(rows, lines, uneven)


def _stray_quote(
    path: Path, line: int, form: FileFormat, what: str, advice: str | None, *, breaks: bool = False
) -> InputError:
    meant = (
        ", or `line_breaks: true` if such cells are meant so"
        if breaks
        else f", or double the mark inside quoted cells ({form.quote * 2})"
    )
    advice = advice or (
        f"Write `quote: none` in the mapping if the file is written without quoting and {form.quote} is "
        f"text{meant}."
    )
    said = f"{path.name}, line {line}: {what}, so lines or text would be lost."
    return InputError(said, file=path.name, field="quote", value=f"line {line}", remedy=advice)


def proposed_quoting(path: Path, form: FileFormat) -> dict[str, Any]:
    """What a mapping must say about the quotes of a file: nothing, ``quote: none`` or ``line_breaks: true``.

    Where quotes do not hold, that reading is proposed under which fewer rows have a wrong number of fields.
    """
    readings: list[tuple[float, dict[str, Any]]] = []
    for said in ({}, {"quote": "none"}, {"line_breaks": True}):
        try:
            judged = count_rows(path, form.model_copy(update=said))
        except InputError:
            continue
        if not said:
            return {}
        readings.append((judged.uneven / max(judged.rows, 1), said))
    return min(readings, key=lambda reading: reading[0])[1] if readings else {}


def _python_encoding(form: FileFormat) -> str:
    return "utf8" if form.encoding == "utf-8" else form.encoding


def empty_file(path: Path) -> InputError:
    """The refusal of a file without a header."""
    return refusal(path, "the file is empty, without even a header", "Deliver it again or remove it.")


def _not_encoded(path: Path, form: FileFormat) -> InputError:
    return refusal(
        path,
        f"not {form.encoding} text",
        "Save it as UTF-8, or say in the mapping what it is, for example `encoding: latin-1` or `encoding: cp1252`.",
        field="encoding",
        value=form.encoding,
    )


def _read_header(path: Path, form: FileFormat) -> tuple[list[str], bool]:
    """Column names, and whether any row follows."""
    with open_bytes(path) as stream:
        start = stream.read(1 << 16)
        more = bool(stream.read(1))
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise empty_file(path)
    wide = _is_wide(form)
    if not wide and (start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in start[:4096]):
        raise refusal(
            path,
            f"the file is UTF-16, expected {form.encoding}",
            "Save it as UTF-8, or write `encoding: utf-16` in the mapping.",
            field="encoding",
            value="utf-16",
        )
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    try:
        # A chunk may end inside a character.
        beginning = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        raise _not_encoded(path, form) from None
    text = io.StringIO(beginning, newline="")
    header = next((line for line in records_of(text, path, form, strict=False) if line), [])
    if any("\n" in name or "\r" in name for name in header) and not form.line_breaks:
        raise _stray_quote(
            path, 1, form, "a quotation mark of the header is not closed in its line", None, breaks=True
        )
    has_rows = bool(text.read().strip()) or more
    problems = []
    separator = separator_of(path, form)
    others = [mark for mark in (",", ";", "\t", "|") if mark != separator]
    if len(header) == 1 and (mark := max(others, key=header[0].count)) in header[0]:
        shown, expected = ({"\t": "\\t"}.get(text, text) for text in (mark, separator))
        remedy = f'Write `separator: "{shown}"` in the mapping, or save it with "{expected}".'
        if "separator" in form.model_fields_set:
            remedy += " One separator is declared for all parts of a table: save parts alike."
        what = f'the fields are separated by "{shown}", expected "{expected}"'
        problems.append(refusal(path, what, remedy, field="separator", value=mark))
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        repeated = ", ".join(twice)
        problems.append(
            refusal(path, f"the header repeats {repeated}", "Keep each column once.", field=repeated)
        )
    if "" in names and not problems:
        nameless = f"column {names.index('') + 1}"
        problems.append(refusal(path, f"{nameless} has no name", "Name or remove it.", field=nameless))
    if problems:
        raise InputError.joined(problems)
    return header, has_rows


FORMAT = Format("CSV", lambda start: False, read, endings=ENDINGS, gzipped=True)
