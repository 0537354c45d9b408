"""A definition as one plan of Narwhals expressions: the same on pandas, DuckDB and Spark.

Every condition becomes two expressions that are never null, ``true`` and ``unknown``, so that the
three-valued logic is ours and no engine's. Every rule becomes one bit of a mask per index date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

from e2i_dagster.cohorts.columns import Kind
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.moments import SECONDS, moved, order, shifted
from e2i_dagster.config.cohort import CohortDefinition, EventIndex, Rule
from e2i_dagster.config.criteria import Criterion, EventCriterion, EventPattern, Group, code_patterns
from e2i_dagster.tables.codes import (
    BAR,
    BETWEEN,
    BLANKS,
    DASHES,
    LIST_MARKS,
    LIST_SEPARATOR,
    NDC_DIGITS,
    NDC_FORMS,
    NDC_FRACTION,
    NDC_SEPARATOR,
    NDC_UNDECIDED,
    NDC_UNREADABLE,
    NDC_ZEROS,
    ONLY_DIGITS,
    READABLE_PART,
)
from e2i_dagster.versions.coverage import Coverage

if TYPE_CHECKING:
    import narwhals as nw

PATIENT, JOURNEY = "patient_id", "patient_journey_id"
INDEX, FOLLOWUP_END = "index_date", "followup_end"
MASK, UNKNOWN_MASK = "mask", "unknown_mask"
EVENT_DAY, EVENT_TIME, EVENT_SECOND = "event_date", "event_time", "_event_second"
_INDEX_SECOND = "_index_second"
FIRST_OBSERVED, LAST_OBSERVED = "first_observation_date", "last_observation_date"
_FIRST, _LAST = "_first_observed", "_last_observed"
#: Up to so many codes are looked for one by one.
_FEW_CODES = 4
#: Last day of a period that goes on and on: later than any window, early enough to add days to.
_ENDLESS = date(9000, 1, 1)

_EXPECTED: dict[str, str] = {
    "boolean": "true or false",
    "number": "a number",
    "date": "a date (YYYY-MM-DD)",
    "text": "a text",
}


@dataclass(frozen=True)
class Truth:
    """A condition: where it is true, and where it cannot be known. False is neither.

    ``possible``: of codes, where it is true or would be by what a code is read as; a null is not.
    """

    true: nw.Expr
    unknown: nw.Expr
    possible: nw.Expr | None = None


@dataclass(frozen=True)
class Source:
    """A lazy frame and the kind of each column that the definition reads."""

    frame: nw.LazyFrame
    kinds: Mapping[str, Kind]


def cohort_plan(
    definition: CohortDefinition,
    patients: Source,
    events: Source | None,
    periods: Source | None,
    *,
    covered: Coverage,
    several_rows: bool,
) -> nw.LazyFrame:
    """One row per index date: keys, index_date, followup_end, mask, unknown_mask.

    Args:
        covered: days that the events cover; where there are none, the data.
        several_rows: a patient may have several rows, so that one of them has to be chosen.
    """
    import narwhals as nw

    patients = with_drug_codes(patients, _criteria(definition.conditions))
    if events is not None:
        patterns = [event for condition in definition.conditions for event in condition.events()]
        indexed = [] if definition.index is None else [definition.index]
        indexed += [event.until for event in patterns if event.until is not None]
        events = with_drug_codes(
            events, [condition for pattern in (*patterns, *indexed) for condition in pattern.conditions]
        )
    rows, keys = _indexed(definition, patients, events)
    if events is not None and definition.index is not None and EVENT_TIME in events.kinds:
        rows = _index_moment(rows, definition.index, events)
    kinds = dict(patients.kinds)
    data_end = covered.end
    rows = _observed(rows, keys, definition, periods, data_end)
    for name, derived in definition.derived.items():
        rows = rows.with_columns(_years(derived.years_since, kinds).alias(name))
        kinds[name] = "number"
    counted: dict[int, Truth] = {}
    if events is not None:
        rows, counted = _event_counts(rows, keys, definition, events, covered)
    failed: dict[str, nw.Expr] = {}
    unknown: dict[str, nw.Expr] = {}
    for rule in definition.rules:
        if rule.criterion is not None:
            truth = _truth(rule.criterion, kinds, counted)
            failed[rule.name] = _fails(truth, rule)
            unknown[rule.name] = truth.unknown
    timed, timed_unknown = _time_rules(definition, covered)
    failed |= timed
    unknown |= timed_unknown
    end = nw.col(_LAST)
    if data_end is not None:
        end = nw.when(end > nw.lit(data_end)).then(nw.lit(data_end)).otherwise(end)
    elif periods is not None:
        end = nw.when(end < nw.lit(_ENDLESS)).then(end)
    for first, _ in reversed(covered.unobserved):
        cut = (nw.col(INDEX) < nw.lit(first)) & (end >= nw.lit(first))
        end = nw.when(cut).then(nw.lit(first - timedelta(1))).otherwise(end)
    rules = definition.rules
    rows = rows.select(
        PATIENT,
        JOURNEY,
        INDEX,
        end.cast(nw.Date).alias(FOLLOWUP_END),
        _mask(rules, failed).alias(MASK),
        _mask(rules, unknown).alias(UNKNOWN_MASK),
    )
    earliest = next((rule for rule in rules if rule.name == "one_index_journey"), None)
    if earliest is None or not several_rows:
        return rows
    return _one_index(rows, earliest, rules, eligible_first=definition.journeys == "first_eligible")


def _fails(truth: Truth, rule: Rule) -> nw.Expr:
    removed_if_unknown = rule.on_unknown == "exclude"
    if rule.side == "inclusion":
        return ~truth.true if removed_if_unknown else ~(truth.true | truth.unknown)
    return truth.true | truth.unknown if removed_if_unknown else truth.true


def _mask(rules: tuple[Rule, ...], wanted: Mapping[str, nw.Expr]) -> nw.Expr:
    import narwhals as nw

    bits = [
        nw.when(wanted[rule.name]).then(nw.lit(rule.bit)).otherwise(nw.lit(0)).cast(nw.Int64)
        for rule in rules
        if rule.name in wanted
    ]
    return reduce(lambda left, right: left + right, bits)


def _indexed(
    definition: CohortDefinition, patients: Source, events: Source | None
) -> tuple[nw.LazyFrame, list[str]]:
    """Patient rows with their index date, and the columns that identify a row."""
    import narwhals as nw

    index = definition.index
    if index is None:
        field = definition.temporal_requirements.index_date_field
        return patients.frame.with_columns(nw.col(field).cast(nw.Date).alias(INDEX)), [JOURNEY]
    assert events is not None
    # Where an event that may be of the pattern or not would be the first or last, the index date is unknown.
    undecided = _can_be_undecided(index) and index.occurrence != "every"
    day = nw.col(EVENT_DAY)
    matching = _matching(index, events, undecided=undecided).select(
        nw.col(PATIENT).alias("_event_patient"),
        day.alias("_index"),
        (nw.when(_matches(index, events.kinds)).then(day) if undecided else day).alias("_sure"),
    )
    of_patient = [PATIENT, JOURNEY, *([index.after] if index.after else [])]
    found = patients.frame.select(list(dict.fromkeys(of_patient))).join(
        matching, left_on=PATIENT, right_on="_event_patient", how="inner"
    )
    if index.after is not None:
        start = shifted(nw.col(index.after).cast(nw.Date), index.after_days)
        found = found.filter(~nw.col(index.after).is_null()).filter(nw.col("_index") >= start)
    if index.occurrence == "every":
        found = found.select(JOURNEY, "_index").unique()
    else:
        first = index.occurrence == "first"
        days = [nw.col(name).min() if first else nw.col(name).max() for name in ("_index", "_sure")]
        found = found.group_by(JOURNEY).agg(*days).filter(nw.col("_index") == nw.col("_sure"))
    found = found.select(nw.col(JOURNEY).alias("_journey"), nw.col("_index").alias(INDEX))
    rows = patients.frame.join(found, left_on=JOURNEY, right_on="_journey", how="left")
    return rows, [JOURNEY, INDEX]


def _index_moment(rows: nw.LazyFrame, index: EventIndex, events: Source) -> nw.LazyFrame:
    """Adds the second of the index day at which the index event was; null where one of that day has no time."""
    import narwhals as nw

    second = nw.col(EVENT_SECOND)
    matching = _matching(index, events, undecided=True)
    timed = matching.with_columns(
        nw.when(second.is_null() | ~_matches(index, events.kinds))
        .then(nw.lit(1))
        .otherwise(nw.lit(0))
        .alias("_no_time")
    )
    at = second.max() if index.occurrence == "last" else second.min()
    days = timed.group_by(PATIENT, EVENT_DAY).agg(at.alias("_at"), nw.col("_no_time").max().alias("_no_time"))
    found = days.select(
        nw.col(PATIENT).alias("_event_patient"),
        nw.col(EVENT_DAY).alias("_event_day"),
        nw.when(nw.col("_no_time") == 0).then(nw.col("_at")).alias(_INDEX_SECOND),
    )
    return rows.join(found, left_on=[PATIENT, INDEX], right_on=["_event_patient", "_event_day"], how="left")


def _observed(
    rows: nw.LazyFrame,
    keys: list[str],
    definition: CohortDefinition,
    periods: Source | None,
    data_end: date | None,
) -> nw.LazyFrame:
    """Adds the first and last day of the observed span that holds the index date."""
    import narwhals as nw

    if periods is None:
        return rows.with_columns(
            nw.col(FIRST_OBSERVED).cast(nw.Date).alias(_FIRST),
            nw.col(LAST_OBSERVED).cast(nw.Date).alias(_LAST),
        )
    # A period without an end goes on; supplied as 9999-12-31 it is the same.
    last = nw.col("end_date").cast(nw.Date)
    until = nw.when(last < nw.lit(_ENDLESS)).then(last).otherwise(nw.lit(data_end or _ENDLESS))
    open_ended = periods.frame.with_columns(until.cast(nw.Date).alias("end_date"))
    spans = observed_spans(open_ended, definition.observation.allowed_gap_days)
    holding = (
        rows.select(list(dict.fromkeys([PATIENT, *keys, INDEX])))
        .join(spans, left_on=PATIENT, right_on="_span_patient", how="inner")
        .filter((nw.col(INDEX) >= nw.col("_start")) & (nw.col(INDEX) <= nw.col("_end")))
        .select(
            *(nw.col(key).alias(f"_span_{key}") for key in keys),
            nw.col("_start").alias(_FIRST),
            nw.col("_end").alias(_LAST),
        )
    )
    return rows.join(holding, left_on=keys, right_on=[f"_span_{key}" for key in keys], how="left")


def observed_spans(periods: nw.LazyFrame, allowed_gap_days: int) -> nw.LazyFrame:
    """Observation periods merged where at most ``allowed_gap_days`` unobserved days lie between two.

    Returns:
        ``_span_patient``, ``_start``, ``_end``; both days observed. Spans of a patient do not overlap.
    """
    import narwhals as nw

    days = periods.select(
        nw.col(PATIENT).alias("_span_patient"),
        nw.col("start_date").cast(nw.Date).alias("_from"),
        nw.col("end_date").cast(nw.Date).alias("_until"),
    ).filter(~nw.col("_from").is_null() & ~nw.col("_until").is_null() & (nw.col("_from") <= nw.col("_until")))
    days = days.group_by("_span_patient", "_from").agg(nw.col("_until").max())
    reached = days.with_columns(
        nw.col("_until").cum_max().over("_span_patient", order_by="_from").alias("_reached")
    )
    before = reached.with_columns(
        nw.col("_reached").shift(1).over("_span_patient", order_by="_from").alias("_before")
    )
    opens = nw.col("_before").is_null() | (shifted(nw.col("_before"), allowed_gap_days + 1) < nw.col("_from"))
    counted = before.with_columns(nw.when(opens).then(nw.lit(1)).otherwise(nw.lit(0)).alias("_opens"))
    numbered = counted.with_columns(
        nw.col("_opens").cum_sum().over("_span_patient", order_by="_from").alias("_span")
    )
    return (
        numbered.group_by("_span_patient", "_span")
        .agg(nw.col("_from").min().alias("_start"), nw.col("_until").max().alias("_end"))
        .select("_span_patient", "_start", "_end")
    )


def _years(field: str, kinds: Mapping[str, Kind]) -> nw.Expr:
    """Completed years from ``field`` to the index date."""
    import narwhals as nw

    at, born = nw.col(INDEX), nw.col(field)
    if kinds[field] in ("number", "empty"):
        return at.dt.year().cast(nw.Float64) - born.cast(nw.Float64)
    born = born.cast(nw.Date)
    before_birthday = (at.dt.month() < born.dt.month()) | (
        (at.dt.month() == born.dt.month()) & (at.dt.day() < born.dt.day())
    )
    years = at.dt.year().cast(nw.Float64) - born.dt.year().cast(nw.Float64)
    return years - nw.when(before_birthday).then(nw.lit(1.0)).otherwise(nw.lit(0.0))


def _matching(pattern: EventPattern, events: Source, *, undecided: bool = False) -> nw.LazyFrame:
    return events.frame.filter(_matches(pattern, events.kinds, undecided=undecided))


def _matches(pattern: EventPattern, kinds: Mapping[str, Kind], *, undecided: bool = False) -> nw.Expr:
    """Events of the pattern; a null is not one of them.

    Args:
        undecided: those, too, that are events of the pattern or not by what their codes are read as.
    """

    def meets(criterion: Criterion) -> nw.Expr:
        truth = condition_truth(criterion, kinds)
        return truth.possible if undecided and truth.possible is not None else truth.true

    return reduce(lambda left, right: left & right, map(meets, pattern.conditions))


def _can_be_undecided(pattern: EventPattern) -> bool:
    return any(criterion.code_system is not None for criterion in pattern.conditions)


def _event_counts(
    rows: nw.LazyFrame,
    keys: list[str],
    definition: CohortDefinition,
    events: Source,
    covered: Coverage,
) -> tuple[nw.LazyFrame, dict[int, Truth]]:
    """Adds what each event criterion needs, and gives the criteria's truth by identity.

    Counts of all criteria come from one join and one grouping.
    """
    import narwhals as nw

    criteria = [event for condition in definition.conditions for event in condition.events()]
    name = {id(criterion): f"_events_{place}" for place, criterion in enumerate(criteria)}
    open_ = {
        id(criterion): f"{name[id(criterion)]}_open" for criterion in criteria if _can_be_undecided(criterion)
    }
    at = rows.select(list(dict.fromkeys([PATIENT, *keys, INDEX])))
    counts = [
        (column[id(c)], c, column is open_)
        for c in criteria
        if c.gap_days is None and c.occurrence == "any" and c.hours is None
        for column in (name, open_)
        if id(c) in column
    ]
    if counts:
        rows = _with_counts(rows, at, keys, counts, events)
    for criterion in criteria:
        identity = id(criterion)
        if criterion.occurrence != "any":
            rows = _with_occurrence(rows, criterion, name[identity], events)
            if identity in open_:
                rows = _with_open_occurrence(rows, at, keys, criterion, name[identity], events)
        elif criterion.hours is not None:
            rows = _with_moments(rows, keys, criterion, name[identity], events)
        elif criterion.gap_days is not None:
            rows = _with_gap(rows, at, keys, criterion, name[identity], events)
            if identity in open_:
                rows = _with_gap(rows, at, keys, criterion, open_[identity], events, undecided=True)
    truths = {}
    for criterion in criteria:
        if criterion.occurrence != "any":
            found, most = nw.col(name[id(criterion)]), _open_column(open_.get(id(criterion)))
            truths[id(criterion)] = _occurrence_truth(criterion, found, most, definition, covered)
            continue
        found = _or_none(name[id(criterion)])
        if criterion.hours is not None:
            truths[id(criterion)] = _moments_truth(criterion, name[id(criterion)], definition, covered)
            continue
        most = _open_column(open_.get(id(criterion)))
        observed = _window_observed(criterion, definition, covered)
        truths[id(criterion)] = _count_truth(criterion, found, most, observed)
    return rows, truths


def _or_none(column: str) -> nw.Expr:
    import narwhals as nw

    return nw.when(nw.col(column).is_null()).then(nw.lit(0)).otherwise(nw.col(column))


def _open_column(column: str | None) -> nw.Expr | None:
    return None if column is None else _or_none(column)


def _kept(since: nw.Expr, until: nw.Expr, covered: Coverage) -> nw.Expr:
    """Whether every day from ``since`` to ``until`` is covered."""
    import narwhals as nw

    answers = [(until < nw.lit(first)) | (since > nw.lit(last)) for first, last in covered.unobserved]
    if covered.start is not None:
        answers.append(since >= nw.lit(covered.start))
    if covered.end is not None:
        answers.append(until <= nw.lit(covered.end))
    return reduce(lambda left, right: left & right, answers, nw.lit(True))


def _window_observed(criterion: EventCriterion, definition: CohortDefinition, covered: Coverage) -> nw.Expr:
    """Whether the window was observed as a whole.

    An open end goes as far as observation does, by the convention of incident users: it is observed where the
    definition's lookback is before the index date, and its follow-up after it (Ray, Am J Epidemiol 2003;158:915).
    """
    import narwhals as nw

    first, last = criterion.within
    times = definition.temporal_requirements
    since = shifted(nw.col(INDEX), -times.lookback_days if first is None else first)
    until = shifted(nw.col(INDEX), times.required_followup if last is None else last)
    seen = (since >= nw.col(_FIRST)) & (until <= nw.col(_LAST))
    return _false_if_null(seen & _kept(since, until, covered))


def _occurrence_truth(
    criterion: EventCriterion,
    seen: nw.Expr,
    most: nw.Expr | None,
    definition: CohortDefinition,
    covered: Coverage,
) -> Truth:
    """Whether the first (last) event of all lies in the window, as far as what was ``seen`` can say.

    The first event that was seen is the first of all when the definition's lookback before it was observed, the
    last when the follow-up after it was. What was not seen can only be earlier than the first (later than the
    last): one on the far side of the window settles that it is not in it. Else absence needs an observed window.
    ``most``: 1 where an event whose code cannot be decided would be the first (last) and decide otherwise.
    """
    import narwhals as nw

    first, last = criterion.within
    times = definition.temporal_requirements
    before = nw.lit(False) if first is None else seen < shifted(nw.col(INDEX), first)
    after = nw.lit(False) if last is None else seen > shifted(nw.col(INDEX), last)
    before, after = _false_if_null(before), _false_if_null(after)
    inside = ~seen.is_null() & ~before & ~after
    if criterion.occurrence == "first":
        since = shifted(seen, -times.lookback_days)
        settled = (since >= nw.col(_FIRST)) & _kept(since, seen, covered)
        out = before
    else:
        until = shifted(seen, times.required_followup)
        settled = (until <= nw.col(_LAST)) & _kept(seen, until, covered)
        out = after
    observed = _window_observed(criterion, definition, covered)
    sure_in = inside & _false_if_null(settled)
    sure_out = out | (~inside & observed)
    if_in, if_out = (
        count >= criterion.at_least and (criterion.at_most is None or count <= criterion.at_most)
        for count in (1, 0)
    )
    undecided = nw.lit(False) if if_in == if_out else ~sure_in & ~sure_out
    unknown = nw.col(INDEX).is_null() | undecided
    if most is not None and if_in != if_out:
        unknown = unknown | (most > 0)
    holds = nw.lit(if_in) if if_in == if_out else sure_in if if_in else sure_out
    return Truth(true=holds & ~unknown, unknown=unknown)


def _count_truth(
    criterion: EventCriterion,
    count: nw.Expr,
    most: nw.Expr | None,
    observed: nw.Expr,
) -> Truth:
    """Presence is proved by what was seen; absence only in time that was observed.

    Events that were not seen can raise a count and close a gap: a count that may still rise to ``at_least`` or
    above ``at_most``, and a gap, are unknown where the window was not observed as a whole.

    Args:
        most: ``count`` with the events that are of the pattern or not by what their codes are read as: where
            they decide, the answer is unknown. None where there can be no such events.
        observed: whether the window was observed as a whole.
    """
    import narwhals as nw

    by_reading = None
    if criterion.gap_days is not None:
        holds = undecided = count > 0
        if most is not None:
            by_reading = holds & (most == 0)
    elif criterion.at_most is None:
        holds, undecided = count >= criterion.at_least, count < criterion.at_least
        if most is not None:
            by_reading = undecided & (most >= criterion.at_least)
    else:
        undecided = count <= criterion.at_most
        holds = undecided & (count >= criterion.at_least)
        if most is not None:
            too_few = count < criterion.at_least
            rises = (too_few & (most >= criterion.at_least)) | (~too_few & (most > criterion.at_most))
            by_reading = undecided & rises
    unknown = nw.col(INDEX).is_null() | (undecided & ~observed)
    if by_reading is not None:
        unknown = unknown | by_reading
    return Truth(true=holds & ~unknown, unknown=unknown)


def _with_moments(
    rows: nw.LazyFrame, keys: list[str], criterion: EventCriterion, column: str, events: Source
) -> nw.LazyFrame:
    """Adds how many events surely lie in a window in hours, and how many may; and where its ending event is.

    An event without a time may lie anywhere on its day, and so may one of which its codes do not decide what it is.
    """
    import narwhals as nw

    day, second = nw.col(EVENT_DAY), nw.col(EVENT_SECOND)
    at = rows.select(list(dict.fromkeys([PATIENT, *keys, INDEX, _INDEX_SECOND])))
    at = at.filter(~nw.col(INDEX).is_null() & ~nw.col(_INDEX_SECOND).is_null())
    until, until_day, unclear_day = (f"{column}_{suffix}" for suffix in ("until", "until_day", "unclear_day"))
    start = order(nw.col(INDEX), nw.col(_INDEX_SECOND))
    if criterion.until is not None:
        sure = _matches(criterion.until, events.kinds) & ~second.is_null()
        ends = _matching(criterion.until, events, undecided=True).select(
            nw.col(PATIENT).alias("_event_patient"), EVENT_DAY, EVENT_SECOND, sure.alias("_sure")
        )
        met = at.join(ends, left_on=PATIENT, right_on="_event_patient", how="inner")
        later = nw.col("_sure") & (order(day, second) > start)
        # The latest that an end without a time can be is the last second of its day.
        unclear = ~nw.col("_sure") & (order(day, nw.lit(SECONDS - 1)) > start)
        met = met.with_columns(
            nw.when(later).then(order(day, second)).alias(until),
            nw.when(later).then(day).alias(until_day),
            nw.when(unclear).then(day).alias(unclear_day),
        )
        names = (until, until_day, unclear_day)
        found = met.group_by(keys).agg(*(nw.col(name).min().alias(name) for name in names))
        rows = _joined(rows, _keyed(found, keys, *names), keys)
        at = _joined(at, _keyed(found, keys, *names), keys)
    flagged = _matching(criterion, events, undecided=True).select(
        nw.col(PATIENT).alias("_event_patient"),
        EVENT_DAY,
        EVENT_SECOND,
        _matches(criterion, events.kinds).alias("_sure"),
    )
    met = at.join(flagged, left_on=PATIENT, right_on="_event_patient", how="inner")
    earliest = order(day, nw.when(second.is_null()).then(nw.lit(0)).otherwise(second))
    latest = order(day, nw.when(second.is_null()).then(nw.lit(SECONDS - 1)).otherwise(second))
    assert criterion.hours is not None
    first, last = criterion.hours
    inside, possible = [nw.col("_sure")], []
    if first is not None:
        low = order(*moved(nw.col(INDEX), nw.col(_INDEX_SECOND), first))
        open_ = criterion.ends[0] == "("
        inside.append(earliest > low if open_ else earliest >= low)
        possible.append(latest > low if open_ else latest >= low)
    high = [] if last is None else [order(*moved(nw.col(INDEX), nw.col(_INDEX_SECOND), last))]
    if criterion.until is not None:
        high.append(nw.col(until))
    for bound in high:
        open_ = criterion.ends[1] == ")"
        before, may_be = (latest < bound, earliest < bound) if open_ else (latest <= bound, earliest <= bound)
        # Where no ending event was seen, it bounds nothing; that it was not missed is asked for elsewhere.
        inside.append(bound.is_null() | before)
        possible.append(bound.is_null() | may_be)
    counts = {
        column: reduce(lambda left, right: left & right, inside),
        f"{column}_open": reduce(lambda left, right: left & right, possible, nw.lit(True)),
    }
    hits = {
        name: nw.when(hit).then(nw.lit(1)).otherwise(nw.lit(0)).alias(name) for name, hit in counts.items()
    }
    found = met.with_columns(*hits.values()).group_by(keys).agg(*(nw.col(name).sum() for name in counts))
    return _joined(rows, _keyed(found, keys, *counts), keys)


def _moments_truth(
    criterion: EventCriterion, column: str, definition: CohortDefinition, covered: Coverage
) -> Truth:
    """The truth of a count in a window in hours, of what :func:`_with_moments` has added.

    As for days, presence is proved by what was seen. Not so in a window that ends with an event: an earlier one may
    have been missed, so that everything is unknown unless all days up to its end were observed.
    """
    import narwhals as nw

    assert criterion.hours is not None
    first, last = criterion.hours
    times = definition.temporal_requirements
    index, second = nw.col(INDEX), nw.col(_INDEX_SECOND)
    since = shifted(index, -times.lookback_days) if first is None else moved(index, second, first)[0]
    until = shifted(index, times.required_followup) if last is None else moved(index, second, last)[0]
    unknown = index.is_null() | second.is_null()
    if criterion.until is not None:
        end, unclear = nw.col(f"{column}_until_day"), nw.col(f"{column}_unclear_day")
        ended = ~end.is_null() if last is None else ~end.is_null() & (end < until)
        until = nw.when(ended).then(end).otherwise(until)
        since = since if first is not None and first < 0 else index if first is not None else since
        if last is None:
            unknown = unknown | end.is_null()
        unknown = unknown | _false_if_null(~unclear.is_null() & (unclear <= until))
    seen = (since >= nw.col(_FIRST)) & (until <= nw.col(_LAST)) & _kept(since, until, covered)
    observed = _false_if_null(seen)
    if criterion.until is not None:
        unknown = unknown | ~observed
    found = _count_truth(criterion, _or_none(column), _or_none(f"{column}_open"), observed)
    unknown = unknown | found.unknown
    return Truth(true=found.true & ~unknown, unknown=unknown)


def _false_if_null(condition: nw.Expr) -> nw.Expr:
    import narwhals as nw

    return nw.when(condition).then(nw.lit(True)).otherwise(nw.lit(False))


def _inside(criterion: EventCriterion, day: str = EVENT_DAY) -> nw.Expr:
    """Whether the event's ``day`` lies in the window around the index date."""
    import narwhals as nw

    first, last = criterion.within
    inside = ~nw.col(INDEX).is_null() & ~nw.col(day).is_null()
    if first is not None:
        inside = inside & (nw.col(day) >= shifted(nw.col(INDEX), first))
    if last is not None:
        inside = inside & (nw.col(day) <= shifted(nw.col(INDEX), last))
    return _false_if_null(inside)


def _keyed(frame: nw.LazyFrame, keys: list[str], *values: str) -> nw.LazyFrame:
    import narwhals as nw

    return frame.select(*(nw.col(key).alias(f"_row_{key}") for key in keys), *values)


def _joined(rows: nw.LazyFrame, found: nw.LazyFrame, keys: list[str]) -> nw.LazyFrame:
    return rows.join(found, left_on=keys, right_on=[f"_row_{key}" for key in keys], how="left")


def _with_counts(
    rows: nw.LazyFrame,
    at: nw.LazyFrame,
    keys: list[str],
    criteria: list[tuple[str, EventCriterion, bool]],
    events: Source,
) -> nw.LazyFrame:
    """Adds a count for each of ``criteria``: its column, the criterion, whether with the undecided events."""
    import narwhals as nw

    flags = {column: f"{column}_is" for column, _, _ in criteria}
    distinct = {column: criterion.distinct for column, criterion, _ in criteria if criterion.distinct}
    flagged = events.frame.with_columns(
        **{
            flags[column]: _matches(criterion, events.kinds, undecided=undecided)
            for column, criterion, undecided in criteria
        }
    )
    relevant = reduce(lambda left, right: left | right, [nw.col(flag) for flag in flags.values()])
    kept = dict.fromkeys([EVENT_DAY, *flags.values(), *distinct.values()])
    flagged = flagged.filter(relevant).select(
        nw.col(PATIENT).alias("_event_patient"), *(nw.col(column).alias(_own(column)) for column in kept)
    )
    # What has no index date or lies in no window counts nothing: it is left out before it is grouped.
    indexed = at.filter(~nw.col(INDEX).is_null())
    met = indexed.join(flagged, left_on=PATIENT, right_on="_event_patient", how="inner")
    inside = [nw.col(_own(flags[column])) & _inside(criterion) for column, criterion, _ in criteria]
    met = met.filter(reduce(lambda left, right: left | right, inside))
    # Columns first, then plain aggregates of them: no engine takes less in a grouping.
    hits, aggregates, counts = {}, [], []
    for (column, criterion, _), hit in zip(criteria, inside, strict=True):
        if criterion.distinct is None:
            hits[column] = nw.when(hit).then(nw.lit(1)).otherwise(nw.lit(0))
            aggregates.append(nw.col(column).sum())
            counts.append(nw.col(column))
        else:
            value = nw.col(_own(criterion.distinct))
            known = hit & ~value.is_null()
            none, values = f"{column}_none", f"{column}_values"
            hits |= {
                none: nw.when(known).then(nw.lit(0)).otherwise(nw.lit(1)),
                values: nw.when(known).then(value),
            }
            aggregates += [nw.col(none).max(), nw.col(values).n_unique()]
            # A null among the values is counted as a value, so it is taken away again.
            counts.append((nw.col(values) - nw.col(none)).alias(column))
    counted = met.with_columns(**hits).group_by(keys).agg(*aggregates).select(*keys, *counts)
    return _joined(rows, _keyed(counted, keys, *(column for column, _, _ in criteria)), keys)


def _own(name: str) -> str:
    """Events keep their columns apart from those of the patients."""
    return name if name == EVENT_DAY else f"_of_event_{name}"


def _with_occurrence(
    rows: nw.LazyFrame, criterion: EventCriterion, column: str, events: Source
) -> nw.LazyFrame:
    """Adds the day of the first or last event that was seen; null where none was."""
    import narwhals as nw

    day = nw.col(EVENT_DAY)
    chosen = day.min() if criterion.occurrence == "first" else day.max()
    found = (
        _matching(criterion, events)
        .group_by(PATIENT)
        .agg(chosen.alias("_day"))
        .select(nw.col(PATIENT).alias("_event_patient"), nw.col("_day").alias(column))
    )
    return rows.join(found, left_on=PATIENT, right_on="_event_patient", how="left")


def _with_open_occurrence(
    rows: nw.LazyFrame,
    at: nw.LazyFrame,
    keys: list[str],
    criterion: EventCriterion,
    column: str,
    events: Source,
) -> nw.LazyFrame:
    """1 where an undecided event would be the first (or last) of all and would decide otherwise.

    Reads what :func:`_with_occurrence` has added: in ``column`` the day of the first (or last) sure event.
    """
    import narwhals as nw

    possible = _matching(criterion, events, undecided=True).select(
        nw.col(PATIENT).alias("_event_patient"), EVENT_DAY
    )
    known = _keyed(rows, keys, column)
    met = _joined(at.join(possible, left_on=PATIENT, right_on="_event_patient", how="inner"), known, keys)
    before = (
        nw.col(EVENT_DAY) < nw.col(column)
        if criterion.occurrence == "first"
        else nw.col(EVENT_DAY) > nw.col(column)
    )
    would_be, now = _inside(criterion), _inside(criterion, column)
    met = met.filter((nw.col(column).is_null() | before) & (would_be != now))
    found = met.with_columns(nw.lit(1).alias("_found")).group_by(keys).agg(nw.col("_found").max())
    return _joined(rows, _keyed(found, keys, "_found"), keys).rename({"_found": f"{column}_open"})


def _with_gap(
    rows: nw.LazyFrame,
    at: nw.LazyFrame,
    keys: list[str],
    criterion: EventCriterion,
    column: str,
    events: Source,
    *,
    undecided: bool = False,
) -> nw.LazyFrame:
    """1 where some stretch of the window without events is longer than allowed; null without any event."""
    import narwhals as nw

    assert criterion.gap_days is not None
    first, last = criterion.within
    assert first is not None
    assert last is not None
    longest = criterion.gap_days
    matching = _matching(criterion, events, undecided=undecided)
    days = matching.select(nw.col(PATIENT).alias("_event_patient"), EVENT_DAY).unique()
    met = at.join(days, left_on=PATIENT, right_on="_event_patient", how="inner").filter(_inside(criterion))
    before = met.with_columns(nw.col(EVENT_DAY).shift(1).over(*keys, order_by=EVENT_DAY).alias("_previous"))
    since = nw.when(nw.col("_previous").is_null()).then(shifted(nw.col(INDEX), first - 1).cast(nw.Date))
    before = before.with_columns(since.otherwise(nw.col("_previous")).alias("_since"))
    long = nw.col(EVENT_DAY) > shifted(nw.col("_since"), longest + 1)
    tail = shifted(nw.col(EVENT_DAY), longest) < shifted(nw.col(INDEX), last)
    flagged = before.with_columns(nw.when(long | tail).then(nw.lit(1)).otherwise(nw.lit(0)).alias("_long"))
    # The days after an event count only after the last one; earlier tails are covered by the next event.
    newest = flagged.with_columns(nw.col(EVENT_DAY).max().over(*keys).alias("_newest"))
    newest = newest.with_columns(
        nw.when(long | (tail & (nw.col(EVENT_DAY) == nw.col("_newest"))))
        .then(nw.lit(1))
        .otherwise(nw.lit(0))
        .alias("_long")
    )
    found = newest.group_by(keys).agg(nw.col("_long").max().alias("_found"))
    rows = _joined(rows, _keyed(found, keys, "_found"), keys)
    empty = 1 if last - first + 1 > longest else 0
    value = nw.when(nw.col("_found").is_null()).then(nw.lit(empty)).otherwise(nw.col("_found"))
    return rows.with_columns(value.alias(column)).drop("_found")


def _truth(
    condition: Criterion | EventCriterion | Group, kinds: Mapping[str, Kind], counted: dict[int, Truth]
) -> Truth:
    if isinstance(condition, Criterion):
        return condition_truth(condition, kinds)
    if isinstance(condition, EventCriterion):
        return counted[id(condition)]
    return group_truth([_truth(member, kinds, counted) for member in condition.members], condition.needed)


def group_truth(members: list[Truth], needed: int) -> Truth:
    """At least ``needed`` members are true; unknown while the unknown ones could still decide it."""
    import narwhals as nw

    def number(conditions: Iterator[nw.Expr]) -> nw.Expr:
        ones = [nw.when(condition).then(nw.lit(1)).otherwise(nw.lit(0)) for condition in conditions]
        return reduce(lambda left, right: left + right, ones)

    true = number(member.true for member in members)
    unknown = number(member.unknown for member in members)
    return Truth(true=true >= needed, unknown=(true < needed) & (true + unknown >= needed))


def condition_truth(criterion: Criterion, kinds: Mapping[str, Kind]) -> Truth:
    """A criterion on a column of known kind; on one of drug codes, of a frame of :func:`with_drug_codes`.

    Raises:
        CohortInputError: CC_004, operator or value do not fit the kind of the column.
    """
    import narwhals as nw

    kind = kinds[criterion.field]
    column = nw.col(criterion.field)
    if kind == "empty":
        return Truth(true=column.is_null() & ~column.is_null(), unknown=column.is_null() | ~column.is_null())
    known = ~column.is_null()
    if kind == "number":
        column = column.cast(nw.Float64)
        known = known & ~column.is_nan()
    if kind == "date":
        column = column.cast(nw.Date)
    if criterion.code_system is not None and kind != "text":
        raise _misfit(criterion, kind, "codes are texts")
    if criterion.code_system is not None:
        return _drug_truth(criterion) if criterion.code_system == "ndc" else _listed_truth(criterion, column)
    answer = _text(criterion, kind) if kind == "text" else _compared(criterion, kind, column)
    # What is not known is false whatever the answer would be: false and null is false.
    return Truth(true=known & answer, unknown=~known)


def _compared(criterion: Criterion, kind: Kind, column: nw.Expr) -> nw.Expr:  # noqa: PLR0911
    import narwhals as nw

    unordered = kind == "boolean" and criterion.operator in (">", ">=", "<", "<=", "between")
    if criterion.operator == "contains" or unordered:
        raise _misfit(criterion, kind, f"operator {criterion.operator} cannot be used on it")
    values = [nw.lit(_as_kind(criterion, kind, value)) for value in criterion.values]
    match criterion.operator:
        case "==" | "in":
            return reduce(lambda left, right: left | right, [column == value for value in values])
        case "!=" | "not_in":
            return reduce(lambda left, right: left & right, [column != value for value in values])
        case ">":
            return column > values[0]
        case ">=":
            return column >= values[0]
        case "<":
            return column < values[0]
        case "<=":
            return column <= values[0]
        case _:
            return (column >= values[0]) & (column <= values[1])


def _text(criterion: Criterion, kind: Kind) -> nw.Expr:
    import narwhals as nw

    if criterion.operator in (">", ">=", "<", "<=", "between"):
        raise _misfit(criterion, kind, f"operator {criterion.operator} needs numbers or dates")
    wrong = [value for value in criterion.values if not isinstance(value, str)]
    if wrong:
        raise _misfit(criterion, kind, f"the definition compares it with {wrong[0]!r}")
    column = nw.col(criterion.field)
    if criterion.operator == "contains":
        answer = column.str.contains(criterion.value, literal=True)
    else:
        answer = column.is_in(list(criterion.values))
    return ~answer if criterion.operator in ("!=", "not_in") else answer


def _listed_truth(criterion: Criterion, column: nw.Expr) -> Truth:
    """Whether a code of the criterion is among those of the cell, as :func:`.codes.listed` reads them.

    Unknown where none is and a part cannot be read (:func:`.codes.is_readable`).
    """
    import narwhals as nw

    text = column.str.to_uppercase().str.replace_all(DASHES, "-")
    text = text.str.replace_all(LIST_MARKS, "").str.strip_chars(BLANKS)
    listed = nw.concat_str(nw.lit(BAR), text.str.replace_all(LIST_SEPARATOR, BETWEEN), nw.lit(BAR))
    if criterion.position == "first":
        readable = listed.str.contains(f"^{READABLE_PART}")
    else:
        readable = listed.str.replace_all(READABLE_PART, "") == ""
    answers = _among(criterion, listed.str.replace_all(".", "", literal=True))
    # Each of the two once in every expression: not every engine computes the same only once.
    found = _false_if_null(reduce(lambda left, right: left | right, answers))
    readable = _false_if_null(readable)
    unknown = ~(found | readable)
    if criterion.operator in ("!=", "not_in"):
        return Truth(true=~found & readable, unknown=unknown, possible=~found & ~column.is_null())
    return Truth(true=found, unknown=unknown, possible=~column.is_null() & (found | ~readable))


def _among(criterion: Criterion, codes: nw.Expr) -> list[nw.Expr]:
    """For each code of the criterion whether it is among ``codes``, as :func:`.codes.normal_list` has them."""
    exact, prefixes = code_patterns(criterion)
    if criterion.operator == "contains":
        # Codes are letters, digits, blanks and hyphens: in an expression they stand for themselves.
        inside = "" if criterion.position == "any" else rf"^\{BAR}[^{BAR}]*"
        return [codes.str.contains(inside + pattern, literal=not inside) for pattern in (*exact, *prefixes)]
    sought = [*(f"{BAR}{code}{BAR}" for code in exact), *(f"{BAR}{prefix}" for prefix in prefixes)]
    if len(sought) > _FEW_CODES:
        # One expression: engines make the list of codes anew for each of several.
        begin = "^" if criterion.position == "first" else ""
        return [codes.str.contains(begin + _alternatives(sought))]
    if criterion.position == "first":
        return [codes.str.starts_with(text) for text in sought]
    return [codes.str.contains(text, literal=True) for text in sought]


def _alternatives(texts: list[str]) -> str:
    """An expression for any of ``texts`` of letters, digits, blanks, hyphens and bars."""
    escaped = [text.replace(BAR, rf"\{BAR}") for text in texts]
    return f"(?:{'|'.join(escaped)})"


def with_drug_codes(source: Source, criteria: Iterable[Criterion]) -> Source:
    """``source`` with what the drug codes that ``criteria`` compare can be read as: for :func:`condition_truth`.

    For each column the code as 11 digits (:func:`.codes.normal_code`), whether it is open which code is meant and
    what it is then read as, and whether it cannot be read. In steps, each a column that the next ones use: written
    into one expression, an engine would plan each step as often as it is used, for seconds.
    """
    import narwhals as nw

    frame = source.frame
    fields = {
        criterion.field
        for criterion in criteria
        if criterion.code_system == "ndc" and source.kinds.get(criterion.field) == "text"
    }
    for field in sorted(fields):
        text, digits, padded = (nw.col(_reading(field, step)) for step in ("text", "digits", "padded"))
        written = nw.col(field).str.strip_chars(BLANKS).str.to_uppercase().str.replace_all(DASHES, "-")
        frame = frame.with_columns(written.alias(_reading(field, "text")))
        frame = frame.with_columns(
            text.str.replace_all(NDC_SEPARATOR, "").alias(_reading(field, "digits")),
            text.str.replace_all(NDC_FRACTION, "").str.zfill(NDC_DIGITS).alias(_reading(field, "padded")),
        )
        normal = text
        unreadable = text.str.contains(NDC_UNREADABLE) & ~text.str.contains(ONLY_DIGITS)
        for form, place in NDC_FORMS:
            has_form = text.str.contains(form)
            normal = (
                nw.when(has_form)
                .then(digits if place is None else _with_zero(digits, place))
                .otherwise(normal)
            )
            unreadable &= ~has_form
        frame = frame.with_columns(
            normal.alias(_reading(field, "normal")),
            unreadable.alias(_reading(field, "unreadable")),
            _false_if_null(text.str.contains(NDC_UNDECIDED)).alias(_reading(field, "open")),
            *(_with_zero(padded, place).alias(_reading(field, place)) for place in NDC_ZEROS),
        )
    return Source(frame, source.kinds)


def _reading(field: str, step: object) -> str:
    return f"_drug_{step}_of_{field}"


def _criteria(conditions: Iterable[Criterion | EventCriterion | Group]) -> Iterator[Criterion]:
    """The criteria on columns among ``conditions`` and the members of groups."""
    for condition in conditions:
        if isinstance(condition, Criterion):
            yield condition
        elif isinstance(condition, Group):
            yield from _criteria(condition.members)


def _drug_truth(criterion: Criterion) -> Truth:
    """Reads what :func:`with_drug_codes` has added; unknown where the readings of a code decide otherwise."""
    import narwhals as nw

    exact, prefixes = code_patterns(criterion)

    def among(step: object) -> nw.Expr:
        code = nw.col(_reading(criterion.field, step))
        answers = [code.str.starts_with(prefix) for prefix in prefixes]
        answers += [code.is_in(list(exact))] if exact else []
        return reduce(lambda left, right: left | right, answers)

    read_as = [among(place) for place in NDC_ZEROS]
    open_, unreadable = (nw.col(_reading(criterion.field, step)) for step in ("open", "unreadable"))
    every = reduce(lambda left, right: left & right, read_as)
    some = reduce(lambda left, right: left | right, read_as)
    found = _false_if_null(nw.when(open_).then(every).otherwise(among("normal")))
    undecided = _false_if_null((open_ & some & ~every) | (unreadable & ~open_))
    unknown = nw.col(criterion.field).is_null() | undecided
    true = (~found if criterion.operator in ("!=", "not_in") else found) & ~unknown
    return Truth(true=true, unknown=unknown, possible=true | undecided)


def _with_zero(digits: nw.Expr, place: int) -> nw.Expr:
    import narwhals as nw

    tail = nw.concat_str(nw.lit("0"), digits.str.slice(place))
    return nw.concat_str(digits.str.slice(0, place), tail) if place else tail


def _as_kind(criterion: Criterion, kind: Kind, value: object) -> Any:
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "date" and isinstance(value, date):
        return value
    if kind == "date" and isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise _misfit(criterion, kind, f"the definition compares it with {value!r}") from None
    raise _misfit(criterion, kind, f"the definition compares it with {value!r}")


def _misfit(criterion: Criterion, kind: Kind, why: str) -> CohortInputError:
    return CohortInputError(
        "CC_004",
        f"criterion '{criterion.words()}': column {criterion.field!r} holds values of kind {kind}; {why}.",
        field=criterion.field,
        value=kind,
        remedy=f"Write a condition on {_EXPECTED[kind]}.",
    )


def _time_rules(
    definition: CohortDefinition, covered: Coverage
) -> tuple[dict[str, nw.Expr], dict[str, nw.Expr]]:
    """Failures and unknowns of the rules about time; see :func:`.on_columns._time_rules` for what they mean."""
    import narwhals as nw

    times = definition.temporal_requirements
    index, first, last = nw.col(INDEX), nw.col(_FIRST), nw.col(_LAST)
    known = ~index.is_null()
    known_before, known_after = known & ~first.is_null(), known & ~last.is_null()
    required = times.required_followup
    long_enough = known_after & (shifted(index, required) <= last)
    failed = {
        "index_date": ~known,
        "lookback": ~(known_before & (shifted(first, times.lookback_days) <= index)),
        "followup": ~long_enough,
    }
    unknown = {"index_date": ~known, "lookback": ~known_before, "followup": ~known_after}
    pending = nw.lit(False)
    if covered.end is not None:
        inside = known_after & (index <= last) & (index <= nw.lit(covered.end))
        failed["followup"] = ~inside
        if times.followup == "require":
            pending = known & (shifted(index, required) > nw.lit(covered.end))
            failed["followup"] = (pending & ~inside) | (~pending & ~long_enough)
    before = _kept(shifted(index, -times.lookback_days), index, replace(covered, end=None))
    after = _kept(index, shifted(index, required), Coverage(unobserved=covered.unobserved))
    for rule, kept in (("lookback", before), ("followup", after)):
        unkept = known & ~kept
        unknown[rule] = unknown[rule] | (~failed[rule] & unkept)
        failed[rule] = failed[rule] | unkept
    if times.followup == "require":
        failed["followup_pending"] = pending
    return failed, unknown


def _one_index(
    rows: nw.LazyFrame, single_index: Rule, rules: tuple[Rule, ...], *, eligible_first: bool
) -> nw.LazyFrame:
    """Adds the bit of the rule that keeps one index date per patient: by date, then by journey."""
    import narwhals as nw

    pending = sum(rule.bit for rule in rules if rule.name == "followup_pending")
    if eligible_first:
        candidate = (nw.col(MASK) == 0) | (nw.col(MASK) == pending) if pending else nw.col(MASK) == 0
    else:
        candidate = ~nw.col(INDEX).is_null()
    rows = rows.with_columns(candidate.alias("_candidate"))
    earliest = nw.when(nw.col("_candidate")).then(nw.col(INDEX)).min().over(PATIENT)
    rows = rows.with_columns(earliest.alias("_earliest"))
    on_day = _false_if_null(nw.col("_candidate") & (nw.col(INDEX) == nw.col("_earliest")))
    rows = rows.with_columns(nw.when(on_day).then(nw.col(JOURNEY)).min().over(PATIENT).alias("_journey"))
    chosen = _false_if_null(on_day & (nw.col(JOURNEY) == nw.col("_journey")))
    bit = nw.when(nw.col("_candidate") & ~chosen).then(nw.lit(single_index.bit)).otherwise(nw.lit(0))
    return rows.with_columns((nw.col(MASK) + bit).cast(nw.Int64).alias(MASK)).select(
        PATIENT, JOURNEY, INDEX, FOLLOWUP_END, MASK, UNKNOWN_MASK
    )
