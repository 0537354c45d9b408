"""The parser of delivered days and moments: what text or a typed column says, or why it says nothing.

Every door asks here: the loader, `import check`, OMOP folders, files of experiments and audits. The table in
docs/loading.md says the same in words. A moment without an offset is UTC, and a moment belongs to its UTC day,
so that one moment is one day whichever kind of file holds it. A year or a month without a day is no day; where
the user declares a rule it is completed by it, and its precision is stored beside it.
"""

from __future__ import annotations

import calendar
import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from e2i_dagster.tables.arrow import compute

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Why a cell is no day, in the order in which the patterns are tried; what fits none is not a date at all.
REFUSED: dict[str, str] = {
    "partial_date": (
        r"^((18|19|20|21)\d{2}(0[1-9]|1[0-2])?|\d{4}([-/.](0[1-9]|1[0-2])|[-/][1-9])|(0?[1-9]|1[0-2])[-/.]\d{4})$"
    ),
    "two_digit_year": r"^\d{1,2}[-/. ](\d{1,2}|[A-Za-z]{3})[-/. ]\d{2}([T ].*)?$",
    "ambiguous_date": r"^(0?[1-9]|1[0-2])[-/. ](0?[1-9]|1[0-2])[-/. ]\d{4}([T ,].*)?$",
}
_DAY = (
    r"(?:(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})"
    r"|(?P<cy>(?:18|19|20|21)\d{2}|9999)(?P<cm>\d{2})(?P<cd>\d{2}))"
)
_CLOCK = (
    r"(?:[Tt ](?P<h>\d{2}):(?P<n>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    r" ?(?:[Zz]|(?P<sign>[+-])(?P<oh>\d{2})(?::?(?P<om>\d{2}))?)?)?"
)
_MOMENT = f"^{_DAY}{_CLOCK}$"
#: A moment without an offset; open ends (9999) are no moments of any zone.
_LOCAL = (
    r"^(?:[0-8]\d{3}|9[0-8]\d{2}|99[0-8]\d|999[0-8])[-\d]{4,6}[Tt ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?$"
)
_SECOND = 1_000_000
#: The seconds from 1970 to the first of year 1 and to the end of year 9999: no calendar date and no database has more.
_FIRST, _END = -62_135_596_800, 253_402_300_800
#: Since when an end is one that nobody knows, in those seconds.
_OPEN = 253_370_764_800

#: How a date without its day is completed: to the first, middle (the 15th, 1 July) or last day of what it says.
Completion = Literal["first", "middle", "last"]
Precision = Literal["month", "year"]
_CENTURY = r"(?P<y>(?:18|19|20|21)\d{2})"
_PARTIAL = tuple(
    re.compile(pattern)
    for pattern in (
        _CENTURY,
        _CENTURY + r"(?P<m>0[1-9]|1[0-2])",
        r"(?P<y>\d{4})(?:[-/.](?P<m>\d{2})|[-/](?P<s>\d))",
        r"(?P<m>\d{1,2})[-/.](?P<y>\d{4})",
    )
)


@dataclass(frozen=True)
class ParsedMoments:
    """What the cells of a column say.

    Attributes:
        values: ``date32``, or ``timestamp[us, UTC]``; null where a cell is empty or refused.
        refused: reason (a key of :data:`REFUSED`, or ``format``) to boolean array over the cells.
    """

    values: pa.Array
    refused: dict[str, pa.Array]


@dataclass(frozen=True)
class Completed:
    """A date that was delivered without its day, its day by the rule, and what was delivered of it."""

    day: dt.date
    precision: Precision


def completed(text: str, rule: Completion) -> Completed | None:
    """The day of a year (1800 to 2199) or a month that ``text`` is; None where it is neither.

    A week, and what only looks like a month (``2013-13``), is not completed.
    """
    for pattern in _PARTIAL:
        found = pattern.fullmatch(text.strip())
        if found is None:
            continue
        parts = found.groupdict()
        year, month = int(parts["y"]), int(parts.get("m") or parts.get("s") or 0)
        if "m" not in parts:
            day = {"first": (1, 1), "middle": (7, 1), "last": (12, 31)}[rule]
            return Completed(dt.date(year, *day), "year")
        if year and 1 <= month <= 12:
            last = calendar.monthrange(year, month)[1]
            return Completed(dt.date(year, month, {"first": 1, "middle": 15, "last": last}[rule]), "month")
    return None


def days(given: pa.Array) -> ParsedMoments:
    """The day of each cell; a moment is cut to its UTC day."""
    import pyarrow as pa

    if pa.types.is_date(given.type):
        kept, refused = _within(given)
        return ParsedMoments(kept.cast(pa.date32()), refused)
    found = moments(given)
    micros = _micros(found.values)
    day = np.floor_divide(micros, 86_400 * _SECOND).astype(np.int32)
    missing = found.values.is_null().to_numpy(zero_copy_only=False)
    return ParsedMoments(pa.array(day, pa.int32(), mask=missing).cast(pa.date32()), found.refused)


def moments(given: pa.Array) -> ParsedMoments:
    """The moment of each cell in UTC; a day is its first moment, a moment without an offset is UTC.

    What lies outside the years 1 to 9999, also by its offset alone, is refused as ``format``.
    """
    import pyarrow as pa

    if pa.types.is_timestamp(given.type) or pa.types.is_date(given.type):
        kept, refused = _within(given)
        plain = kept.cast(pa.timestamp("us", getattr(given.type, "tz", None)), safe=False)
        return ParsedMoments(plain.cast(pa.int64()).cast(pa.timestamp("us", "UTC")), refused)
    coded = given.cast(pa.large_string()).dictionary_encode()
    distinct = _of_text(coded.dictionary)
    return ParsedMoments(
        distinct.values.take(coded.indices),
        {reason: mask.take(coded.indices) for reason, mask in distinct.refused.items()},
    )


def earlier(first: pd.Series, second: pd.Series) -> pd.Series:
    """True where ``first`` lies before ``second`` at the coarser precision of the two; false where one is null.

    A time of exactly midnight in UTC is a day: it is compared with a moment by the day alone, because nobody
    knows when on that day it was.

    Args:
        first, second: times of the same index, both in UTC or both without a zone.
    """
    days = first.dt.normalize(), second.dt.normalize()
    by_day = (first == days[0]) | (second == days[1])
    return (days[0] < days[1]).where(by_day, first < second)


def not_earlier(second: str, first: str) -> Any:
    """Narwhals mask for any engine, the converse of :func:`earlier`: true where ``second`` is not before ``first``.

    Where one of the two is null it is null or false.

    Args:
        second, first: columns of timestamps in UTC, of an engine whose session is in UTC.
    """
    import narwhals as nw

    before, after = nw.col(first), nw.col(second)
    # A day that is the day of a moment is the only time before it that is not earlier.
    return (before <= after) | (before.dt.truncate("1d") == after)


def _within(given: pa.Array) -> tuple[pa.Array, dict[str, pa.Array]]:
    """Typed days or moments without those outside the years 1 to 9999, and which these are, by their reason."""
    import pyarrow as pa

    pc = compute()
    if pa.types.is_date32(given.type):
        counts, first, end = given.cast(pa.int32()), _FIRST // 86_400, _END // 86_400
    else:
        unit = "ms" if pa.types.is_date64(given.type) else given.type.unit
        if unit == "ns":
            return given, {}
        a_second = {"s": 1, "ms": 1_000, "us": _SECOND}[unit]
        counts, first, end = given.cast(pa.int64()), _FIRST * a_second, _END * a_second
    beyond = pc.fill_null(pc.or_(pc.less(counts, first), pc.greater_equal(counts, end)), False)
    if not pc.any(beyond).as_py():
        return given, {}
    return pc.if_else(beyond, pa.scalar(None, given.type), given), {"format": beyond}


def in_zone(given: pa.Array, zone: str) -> pa.Array:
    """Moments without an offset as moments in UTC, read by the clocks of ``zone``; every other cell unchanged.

    Of an hour that the clocks show twice the later one is meant, and a time that they skip is the end of the skip:
    nothing is known too early. Open ends (year 9999) are no moments of any zone.

    Args:
        given: text, or timestamps without a zone.

    Returns:
        Text (ISO, in UTC) of text, ``timestamp[us, UTC]`` of timestamps.
    """
    import pyarrow as pa

    from e2i_dagster.tables.arrow import compute

    pc = compute()

    def utc(local: pa.Array) -> pa.Array:
        text = pc.assume_timezone(local, zone, ambiguous="latest", nonexistent="latest")
        return text.cast(pa.timestamp("us", "UTC"))

    if pa.types.is_timestamp(given.type):
        as_utc = given.cast(pa.timestamp("us")).cast(pa.int64())
        ends = pc.greater_equal(as_utc, _OPEN * _SECOND)
        return pc.if_else(ends, as_utc.cast(pa.timestamp("us", "UTC")), utc(given))
    clocks = _of_text(given).values
    local = pc.and_kleene(
        pc.match_substring_regex(pc.utf8_trim_whitespace(given), _LOCAL), pc.is_valid(clocks)
    )
    text = pc.strftime(utc(clocks.cast(pa.int64()).cast(pa.timestamp("us"))), format="%Y-%m-%dT%H:%M:%SZ")
    return pc.if_else(pc.fill_null(local, False), text.cast(given.type), given)


def _of_text(given: pa.Array) -> ParsedMoments:
    import pyarrow as pa

    pc = compute()
    text = pc.utf8_trim_whitespace(given)
    parts = pc.extract_regex(text, pattern=_MOMENT)
    good = pc.is_valid(parts).to_numpy(zero_copy_only=False)

    def number(name: str) -> np.ndarray:
        field = pc.fill_null(pc.struct_field(parts, name), "")
        return pc.if_else(pc.equal(field, ""), "0", field).cast(pa.int64()).to_numpy(zero_copy_only=False)

    year, month, day = number("y") + number("cy"), number("m") + number("cm"), number("d") + number("cd")
    hour, minute, second = number("h"), number("n"), number("s")
    digits = pc.utf8_slice_codeunits(pc.fill_null(pc.struct_field(parts, "f"), ""), 0, 6)
    fraction = pc.utf8_rpad(digits, 6, "0").cast(pa.int64()).to_numpy(zero_copy_only=False)
    east = pc.fill_null(pc.equal(pc.struct_field(parts, "sign"), "+"), False).to_numpy(zero_copy_only=False)
    offset = np.where(east, 1, -1) * (number("oh") * 60 + number("om"))
    good &= (year > 0) & (month >= 1) & (month <= 12) & (hour < 24) & (minute < 60) & (second < 60)
    good &= (number("oh") < 16) & (number("om") < 60)
    first = (np.where(good, (year - 1970) * 12 + month - 1, 0)).astype("datetime64[M]")
    length = ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(np.int64)
    good &= (day >= 1) & (day <= length)
    seconds = (first.astype("datetime64[D]").astype(np.int64) + day - 1) * 86_400
    seconds += hour * 3_600 + minute * 60 + second - offset * 60
    good &= (seconds >= _FIRST) & (seconds < _END)
    values = pa.array(seconds * _SECOND + fraction, pa.int64(), mask=~good)
    left = ~good & text.is_valid().to_numpy(zero_copy_only=False)
    refused: dict[str, pa.Array] = {}
    for reason, pattern in REFUSED.items():
        fits = left & pc.fill_null(pc.match_substring_regex(text, pattern), False).to_numpy(
            zero_copy_only=False
        )
        refused[reason] = pa.array(fits)
        left = left & ~fits
    refused["format"] = pa.array(left)
    return ParsedMoments(values.cast(pa.timestamp("us", "UTC")), refused)


def _micros(values: Any) -> np.ndarray:
    import pyarrow as pa

    return values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)


def iso_text(text: str, form: str) -> str | None:
    """``text`` read by the strptime format ``form``, as ISO text; None where it does not fit."""
    # Not pandas, whose nanoseconds end in 2262 while open ends are written as 9999-12-31.
    text = text.strip()
    try:
        moment = dt.datetime.strptime(text, form)
    except ValueError:
        return None
    if re.search("%[YymdjHMS]%[mdjHMS]", form) and len(text) < len(moment.strftime(form)):
        # Without separators 201312 would be 2 January by %Y%m%d.
        return None
    if not re.search("%[djxcuwaA]", form):
        return f"{moment.year:04d}-{moment.month:02d}" if re.search("%[mbB]", form) else f"{moment.year:04d}"
    plain = moment.tzinfo is None and not re.search("%[HIMSfXcTR]", form)
    return moment.date().isoformat() if plain else moment.isoformat()
