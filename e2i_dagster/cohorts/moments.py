"""Moments to the second as Narwhals expressions that every engine computes alike: a day and a second of it.

No engine's arithmetic of timestamps and time zones is used: a moment is a date and the seconds since its midnight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import narwhals as nw

SECONDS = 86_400


def shifted(day: nw.Expr, days: int) -> nw.Expr:
    """``day`` moved by ``days``, a date."""
    import narwhals as nw

    # A date plus days would be a time of day, whose comparison with dates is slow.
    return day.dt.offset_by(f"{days}d").cast(nw.Date) if days else day


def second_of(time: nw.Expr, day: nw.Expr) -> nw.Expr:
    """Seconds from midnight to ``time`` (a timestamp); null where it is null or of another day than ``day``."""
    import narwhals as nw

    hour, minute, second = (
        part.cast(nw.Int64) for part in (time.dt.hour(), time.dt.minute(), time.dt.second())
    )
    return nw.when(time.cast(nw.Date) == day).then(hour * 3_600 + minute * 60 + second)


def order(day: nw.Expr, second: nw.Expr) -> nw.Expr:
    """A whole number that is larger the later the moment is; differences of two mean nothing."""
    import narwhals as nw

    year, month, of_month = (part.cast(nw.Int64) for part in (day.dt.year(), day.dt.month(), day.dt.day()))
    return ((year * 12 + month) * 32 + of_month) * SECONDS + second


def moved(day: nw.Expr, second: nw.Expr, hours: int) -> tuple[nw.Expr, nw.Expr]:
    """The moment ``hours`` after the one given, as its day and its second."""
    import narwhals as nw

    days, rest = divmod(hours, 24)
    total = second + rest * 3_600
    over = total >= SECONDS
    return (
        nw.when(over).then(shifted(day, days + 1)).otherwise(shifted(day, days)),
        nw.when(over).then(total - SECONDS).otherwise(total),
    )
