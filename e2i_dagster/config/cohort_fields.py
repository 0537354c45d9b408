"""Which fields a definition of ``config/cohorts`` can name: the columns of the raw tables, and at which grain.

Frames of one's own, given to ``build_cohort``, have their own columns and are not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from e2i_dagster.config.criteria import EVENT_KEYS, ORDERING, Criterion, EventPattern, Group
from e2i_dagster.tables.own_types import CODE_SYSTEMS, OwnType

if TYPE_CHECKING:
    import sqlalchemy as sa

    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.criteria import EventCriterion

Kind = Literal["boolean", "number", "date", "text", "other"]
#: A place in a file, and what is wrong there.
Problem = tuple[tuple[int | str, ...], str]

#: Event tables, with the columns that hold the kind of event and its day.
EVENT_COLUMNS = {
    "treatment_events": ("event_type", "event_date"),
    "engagement_events": ("engagement_type", "engagement_date"),
    "outcome_events": ("outcome_type", "outcome_date"),
}
#: The table of spans in which a patient was observed; a delivery may be without it.
OBSERVATION = "observation_periods"
_EXPECTED = {
    "boolean": "true or false, compared by ==, !=, in or not_in",
    "number": "numbers",
    "date": "dates (YYYY-MM-DD)",
    "text": "texts, which have no order",
    "other": "lists or documents, which cannot be compared but for lists of codes by a code_system",
}


@dataclass(frozen=True)
class TableFields:
    """Columns by grain.

    Attributes:
        patient: columns of the patient frame, one row per journey, with their kind.
        events: columns of the events, many rows per patient; kind None where the tables differ.
        elsewhere: columns of tables that no rule reads, and the table of each.
        event_types: accepted values of ``event_type``; empty when they are not known.
        accepted: vocabulary and its values of each column that has one, of patients and of events.
    """

    patient: Mapping[str, Kind]
    events: Mapping[str, Kind | None]
    elsewhere: Mapping[str, str]
    event_types: tuple[str, ...]
    accepted: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


def table_fields(config: Path | None = None) -> TableFields:
    """The fields of the raw tables, with the event types of ``vocabulary.yaml`` in ``config``.

    Raises:
        ConfigError: ``vocabulary.yaml`` is missing or wrong.
    """
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, facts, frame_columns, raw_table
    from e2i_dagster.tables.vocabulary import load_vocabulary

    def kinds(table: str) -> dict[str, Kind]:
        return {name: _kind(raw_table(table).c[name]) for name in frame_columns(table)}

    patient = kinds("patient_journeys")
    for name, kind in kinds("patient_clinical").items():
        if name not in ("extra", "patient_journey_id"):
            patient[f"clinical_{name}" if name in patient else name] = kind
    events: dict[str, Kind | None] = {"code": "text", "table": "text"}
    for table, (type_column, day_column) in EVENT_COLUMNS.items():
        for name, kind in kinds(table).items():
            shown = {type_column: "event_type", day_column: "event_date"}.get(name, name)
            events[shown] = kind if events.get(shown, kind) == kind else None
    known = {*patient, *events}
    elsewhere = {
        name: table
        for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
        for name in frame_columns(table)
        if name not in known and name != "extra"
    }
    vocabulary = load_vocabulary(config)
    accepted: dict[str, tuple[str, tuple[str, ...]]] = {}
    for table in ("patient_journeys", "patient_clinical", *EVENT_COLUMNS):
        for name in frame_columns(table):
            listed = facts(raw_table(table).c[name]).vocabulary
            # Kinds of event are one field of three tables; they are looked at where an event is named.
            if listed is not None and name not in {kind for kind, _ in EVENT_COLUMNS.values()}:
                accepted[name] = (listed, vocabulary.values(listed))
    types = [v for name in ("event_type", "engagement_type", "outcome_type") for v in vocabulary.values(name)]
    return TableFields(patient, events, elsewhere, tuple(dict.fromkeys(types)), accepted)


def field_problems(definition: CohortDefinition, fields: TableFields) -> Iterator[Problem]:
    """Every field, event type and value of ``definition`` that the raw tables cannot answer."""
    own = definition.own_fields
    patient = _Patient(fields, own, set(definition.derived))
    for name in sorted(own.keys() & {*fields.patient, *definition.derived}):
        what = "a column of the raw tables" if name in fields.patient else "a derived field"
        yield ("own_fields",), f"{name!r} is {what} already: take it out of own_fields"
    times = definition.temporal_requirements
    if definition.index is None:
        # Written in one of the two places; the other is no part of the file.
        place = ("index", "field", "temporal_requirements", "index_date_field")
        yield from patient.dated(place, times.index_date_field)
    else:
        yield from _pattern(("index",), definition.index, fields)
        if definition.index.after is not None:
            yield from patient.dated(("index", "after"), definition.index.after)
    for name, derived in definition.derived.items():
        yield from patient.dated(("derived", name, "years_since"), derived.years_since, also="number")
    sides = {
        "inclusion_criteria": definition.inclusion_criteria,
        "exclusion_criteria": definition.exclusion_criteria,
    }
    for side, conditions in sides.items():
        for place, condition in enumerate(conditions):
            yield from _condition((side, place), condition, patient, fields)
    yield from _examples(definition, patient, fields)


def _examples(definition: CohortDefinition, patient: _Patient, fields: TableFields) -> Iterator[Problem]:
    """Fields of invented patients and events that there are not: a verdict on them would be one on nothing."""
    known = {*fields.patient, *definition.own_fields, *definition.derived}
    for number, example in enumerate(definition.examples):
        for name in example.patient:
            if name not in known:
                yield ("examples", number, "patient", name), patient.missing(name, "text")
        for place, event in enumerate(example.events):
            for name in event:
                if name not in fields.events:
                    yield ("examples", number, "events", place, name), _not_of_events(name, fields)


def _condition(
    place: tuple[int | str, ...],
    condition: Criterion | EventCriterion | Group,
    patient: _Patient,
    fields: TableFields,
) -> Iterator[Problem]:
    if isinstance(condition, Criterion):
        yield from patient.criterion(place, condition)
    elif isinstance(condition, Group):
        for number, member in enumerate(condition.members):
            inside = (
                (condition.kind, "of", number) if condition.kind == "at_least" else (condition.kind, number)
            )
            yield from _condition((*place, *inside), member, patient, fields)
    else:
        # Whichever of the keys the file has; the others are no part of the place.
        inside = (*place, *EVENT_KEYS)
        yield from _pattern(inside, condition, fields)
        if condition.distinct is not None and condition.distinct not in fields.events:
            yield (*inside, "distinct"), _not_of_events(condition.distinct, fields)


def _pattern(place: tuple[int | str, ...], pattern: EventPattern, fields: TableFields) -> Iterator[Problem]:
    for value in pattern.event:
        if fields.event_types and value not in fields.event_types:
            known = ", ".join(fields.event_types)
            yield (
                (*place, "event"),
                f"no event type {value!r}.{_nearest(value, fields.event_types)} Known (vocabulary.yaml): {known}",
            )
    for number, criterion in enumerate(pattern.where):
        at = (*place, "where", number)
        if criterion.field not in fields.events:
            yield (*at, "field"), _not_of_events(criterion.field, fields)
        else:
            yield from _value(at, criterion, fields.events[criterion.field], fields)


@dataclass(frozen=True)
class _Patient:
    """Fields of the patient frame, with those that the definition adds."""

    fields: TableFields
    own: Mapping[str, OwnType]
    derived: set[str]

    def criterion(self, place: tuple[int | str, ...], criterion: Criterion) -> Iterator[Problem]:
        name = criterion.field
        if name in self.derived:
            return
        if name in self.own:
            yield from _own_value(place, criterion, self.own[name])
        elif name not in self.fields.patient:
            yield (*place, "field"), self.missing(name, _own_type_for(criterion))
        else:
            yield from _value(place, criterion, self.fields.patient[name], self.fields)

    def dated(
        self, place: tuple[int | str, ...], name: str, *, also: Kind | None = None
    ) -> Iterator[Problem]:
        if name in self.derived:
            return
        if name in self.own:
            if self.own[name] not in ("date", also):
                yield (
                    place,
                    f"own field {name!r} is read as {self.own[name]}; expected a column of dates. Declare "
                    f"own_fields: {{{name}: date}}",
                )
            return
        kind = self.fields.patient.get(name)
        if kind is None:
            yield place, self.missing(name, "date")
        elif kind not in ("date", also):
            yield place, f"{name!r} holds {_EXPECTED[kind].split(',')[0]}; expected a column of dates"

    def missing(self, name: str, own_type: OwnType) -> str:
        if name in self.fields.events:
            return (
                f"{name!r} is a column of the events, of which a patient has many: ask for it in an event "
                f"criterion, such as has_event: {{event: prescription, where: [{{field: {name}, ...}}]}}"
            )
        near = _nearest(name, [*self.fields.patient, *self.own, *self.derived])
        if name in self.fields.elsewhere:
            return (
                f"{name!r} is a column of {self.fields.elsewhere[name]}, which is no table of patients.{near}"
            )
        return (
            f"no column {name!r} in patient_journeys or patient_clinical.{near} A clinical column of your own "
            f"is declared: own_fields: {{{name}: {own_type}}}"
        )


def _not_of_events(name: str, fields: TableFields) -> str:
    if name in fields.patient:
        return (
            f"{name!r} is a column of the patient, not of the events: make it a criterion of its own, outside "
            "the event criterion"
        )
    return f"the events have no column {name!r}.{_nearest(name, fields.events)}"


def _own_value(place: tuple[int | str, ...], criterion: Criterion, kind: OwnType) -> Iterator[Problem]:
    """What is wrong with a criterion on an own column that is read as ``kind``."""
    if kind == "text" and _own_type_for(criterion) != "text":
        yield (
            (*place, "value"),
            f"'{criterion.words()}' does not fit: {criterion.field} is read as text, as it was delivered. Declare "
            f"what it is: own_fields: {{{criterion.field}: {_own_type_for(criterion)}}}",
        )
    elif kind in CODE_SYSTEMS and criterion.code_system != kind:
        yield (
            (*place, "code_system"),
            f"{criterion.field!r} is declared as {kind} in own_fields and compared as {criterion.code_system}: "
            "keep one",
        )
    elif kind != "text":
        as_kind: Kind = "text" if kind in CODE_SYSTEMS else kind  # type: ignore[assignment]
        yield from _value(place, criterion, as_kind)


def _own_type_for(criterion: Criterion) -> OwnType:
    """The type that an own column needs for a criterion."""
    values = criterion.values
    if all(isinstance(value, bool) for value in values):
        return "boolean"
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "number"
    ordered = criterion.operator in ORDERING or criterion.operator == "between"
    if any(not isinstance(value, str) for value in values) or (ordered and all(_is_day(v) for v in values)):
        return "date"
    return "number" if ordered else "text"


def _value(
    place: tuple[int | str, ...], criterion: Criterion, kind: Kind | None, fields: TableFields | None = None
) -> Iterator[Problem]:
    """What is wrong with the values of ``criterion`` on a column of ``kind``; ``fields`` of a raw table's column."""
    if kind is None:
        return
    operator, values = criterion.operator, criterion.values
    ordered = operator in ORDERING or operator == "between"
    fits = {
        "boolean": not ordered and operator != "contains" and all(isinstance(v, bool) for v in values),
        "number": operator != "contains"
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values),
        "date": operator != "contains" and all(_is_day(v) for v in values),
        "text": not ordered and all(isinstance(v, str) for v in values),
        "other": False,
    }[kind]
    codes = criterion.code_system is not None
    if kind == "other" and codes and is_list_of_codes(criterion.field):
        return
    if not fits or (codes and kind != "text"):
        yield (
            (*place, "value"),
            f"'{criterion.words()}' does not fit: {criterion.field} holds {_EXPECTED[kind]}",
        )
    elif fields is not None and criterion.field in fields.accepted and operator != "contains":
        name, accepted = fields.accepted[criterion.field]
        for value in values:
            if str(value) not in accepted:
                yield (
                    (*place, "value"),
                    f"no {criterion.field} is {value!r}.{_nearest(str(value), accepted)} Known (vocabulary.yaml: "
                    f"{name}): {', '.join(accepted)}",
                )


def is_list_of_codes(name: str) -> bool:
    """Whether the column ``name`` of the raw tables holds several codes to a cell."""
    return name.endswith("_codes")


def _is_day(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, date)
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _kind(column: sa.Column[Any]) -> Kind:
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import ARRAY, JSONB

    kinds: tuple[tuple[Kind, tuple[type[Any], ...]], ...] = (
        ("boolean", (sa.Boolean,)),
        ("date", (sa.DateTime, sa.Date)),
        ("number", (sa.Integer, sa.Numeric, sa.Float)),
        ("other", (JSONB, ARRAY)),
    )
    for kind, types in kinds:
        if isinstance(column.type, types):
            return kind
    return "text"
