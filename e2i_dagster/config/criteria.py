"""Conditions of the cohort language: on a field, on events in a window, and groups of conditions.

Each condition is true, false or unknown for an index date; ``on_unknown`` of the outermost one says what
becomes of an unknown patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from e2i_dagster.policy_files.base import PolicyModel
from e2i_dagster.tables.codes import (
    SYSTEMS,
    fits,
    is_undecided,
    known_system,
    normal_code,
    normal_prefix,
    plain,
)

Operator = Literal["==", "!=", ">", ">=", "<", "<=", "in", "not_in", "between", "contains"]
OnUnknown = Literal["exclude", "include", "report"]
Side = Literal["inclusion", "exclusion", "temporal"]
Position = Literal["any", "first"]

ORDERING = frozenset({">", ">=", "<", "<="})
#: Keys by which an event criterion and a group are written.
EVENT_KEYS = ("has_event", "no_event", "washout", "prior_outcome", "gap")
GROUP_KEYS = ("all_of", "any_of", "at_least")
#: Which ends of a window belong to it; both when it is not said.
WINDOW_ENDS = ("[]", "[)", "(]", "()")

#: System of the codes in each code column of the events, where a criterion does not say it.
_SYSTEM_OF_COLUMN = {
    "drug_ndc": "ndc",
    "icd_codes": "icd10cm",
    "cpt_codes": "hcpcs",
    "loinc_codes": "loinc",
}

_WORDS = {
    "==": "is",
    "!=": "is not",
    ">": "is more than",
    ">=": "is at least",
    "<": "is less than",
    "<=": "is at most",
    "in": "is one of",
    "not_in": "is none of",
    "between": "lies between",
    "contains": "contains",
}


class Criterion(PolicyModel):
    """One rule about one field of the patient frame.

    Attributes:
        field: column of the patient frame.
        operator: one of ``== != > >= < <= in not_in between contains``; ``between`` includes both
            ends, ``contains`` is a literal substring (never a regular expression).
        value: a scalar, a list for ``in`` and ``not_in``, ``[low, high]`` for ``between``.
        name: name of the rule in attrition and reasons; the field's name by default.
        on_unknown: what happens to a patient whose value is null: ``exclude``, ``include``, or
            ``report`` (kept, counted, warned about). Default: exclude for an inclusion rule, report
            for an exclusion rule.
        code_system: says that the values are codes of a system of :mod:`.codes`, compared by what they mean,
            where ``L50.*`` means the code and all its descendants. Fields ending in ``diagnosis_code(s)`` are
            ``icd10cm``, the code columns of the events those of their system.
        descendants: each code of ``value`` stands for itself and all codes below it.
        position: which codes of a cell with several count, ``any`` or the ``first``.
    """

    field: str = Field(min_length=1)
    operator: Operator
    value: Any
    name: str | None = None
    description: str = ""
    clinical_rationale: str = ""
    on_unknown: OnUnknown | None = None
    code_system: str | None = Field(default=None, validate_default=True)
    descendants: bool = False
    position: Position = "any"

    @field_validator("value")
    @classmethod
    def _value_fits_operator(cls, value: Any, info: ValidationInfo) -> Any:
        operator = info.data.get("operator")
        if operator is None:  # the operator itself is wrong and reported
            return value
        return _checked_value(operator, value)

    @field_validator("code_system")
    @classmethod
    def _system_of_the_field(cls, code_system: str | None, info: ValidationInfo) -> str | None:
        if code_system is not None:
            return known_system(code_system)
        field = str(info.data.get("field", "")).lower()
        if field.endswith(("diagnosis_code", "diagnosis_codes")):
            return "icd10cm"
        return _SYSTEM_OF_COLUMN.get(field)

    @model_validator(mode="after")
    def _codes_are_text(self) -> Criterion:
        if self.descendants and self.code_system is None:
            raise ValueError(f"descendants: true needs a code_system (field {self.field!r} holds no codes)")
        if self.code_system is not None:
            if self.operator in ORDERING or self.operator == "between":
                raise ValueError(f"codes have no order: operator {self.operator} cannot be used on them")
            if self.operator == "contains" and self.code_system == "ndc":
                raise ValueError(
                    "a part of a drug code cannot be compared, because its spellings differ: use in, with * at the end"
                )
            _check_codes(self.values, self.code_system, self.position, whole=self.operator != "contains")
        elif self.position != "any":
            raise ValueError(f"position belongs to codes: give a code_system (field {self.field!r})")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of the patient frame that it reads."""
        return (self.field,)

    def events(self) -> Iterator[EventCriterion]:
        """The event criteria in this condition: none."""
        return iter(())

    @property
    def values(self) -> tuple[Any, ...]:
        """The value as a tuple, whatever the operator."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def unknown_policy(self, side: Side) -> OnUnknown:
        """``on_unknown``, or the default of an inclusion or exclusion rule."""
        return self.on_unknown or ("report" if side == "exclusion" else "exclude")

    def words(self) -> str:
        """The condition in words: ``age_at_diagnosis is at least 18``."""
        shown = [str(v).lower() if isinstance(v, bool) else str(v) for v in self.values]
        between = self.operator == "between"
        value = f"{shown[0]} and {shown[1]} (both included)" if between else ", ".join(shown)
        below = " or a code below" if self.descendants else ""
        first = "the first of " if self.position == "first" else ""
        return f"{first}{self.field} {_WORDS[self.operator]} {value}{below}"


class EventPattern(PolicyModel):
    """Which events are meant.

    Attributes:
        event: value, or values, of the column ``event_type``; every event when it is not given.
        codes: codes that the events have, with literal wildcards (``L50.*``), in the column of their system:
            ``drug_ndc``, ``icd_codes``, ``cpt_codes`` or ``loinc_codes``; of events without it, in ``code``.
        code_system: the system of the codes (:mod:`.codes`); ``icd10cm`` by default.
        descendants: each code stands for itself and all codes below it.
        position: which codes of an event with several count, ``any`` or the ``first``.
        where: further conditions on columns of the events; all must be true. A null is not true.
    """

    event: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    code_system: str = "icd10cm"
    descendants: bool = False
    position: Position = "any"
    where: tuple[Criterion, ...] = ()

    @field_validator("event", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("code_system")
    @classmethod
    def _known(cls, code_system: str) -> str:
        return known_system(code_system)

    @model_validator(mode="after")
    def _says_something(self) -> EventPattern:
        if not (self.event or self.codes or self.where):
            raise ValueError("say which events are meant: event, codes or where")
        if self.position != "any" and not self.codes:
            raise ValueError("position belongs to codes: give codes, or write it inside where")
        _check_codes(self.codes, self.code_system, self.position)
        return self

    @property
    def event_column(self) -> str:
        """Column of the events that ``event`` is a value of."""
        return "event_type"

    @property
    def conditions(self) -> tuple[Criterion, ...]:
        """The pattern as conditions on columns of the events, all of which must be true."""
        found = []
        if self.event:
            found.append(Criterion(field=self.event_column, operator="in", value=self.event))
        if self.codes:
            found.append(
                Criterion(
                    field=SYSTEMS[self.code_system].event_column,
                    operator="in",
                    value=self.codes,
                    code_system=self.code_system,
                    descendants=self.descendants,
                    position=self.position,
                )
            )
        return (*found, *self.where)

    def words(self) -> str:
        """The events in words: ``prescription with code L50.1``."""
        said = " or ".join(self.event) or "event"
        if self.codes:
            below = " or below" if self.descendants else ""
            first = "first " if self.position == "first" else ""
            said += f" with {first}code {', '.join(self.codes)}{below}"
        if self.where:
            said += " where " + " and ".join(criterion.words() for criterion in self.where)
        return said


class EventCriterion(EventPattern):
    """A count of events in a window of days around the index date.

    Written with one of the keys ``has_event`` (``at_least`` 1 by default), ``no_event``, ``washout``
    (no such event in the ``days`` before the index date), ``prior_outcome`` (one at any time before it)
    and ``gap`` (a stretch of more than ``days`` without such an event inside the window), which are read
    into one form.

    Attributes:
        within: first and last day relative to the index date, both included; null is open. Written with
            ``ends: "[)"``, ``"(]"`` or ``"()"``, a round end is not included.
        at_least, at_most: bounds of the count, both included.
        distinct: column of the events whose distinct values are counted instead of rows.
        occurrence: count only the patient's first or last such event of all.
        gap_days: instead of a count: true when some stretch without events inside the window is longer.
            The window must be closed; its ends bound the outermost stretches.
        hours: instead of ``within``: first and last moment as hours after the moment of the index event; null is
            open. The events need ``event_time``; one without a time may lie anywhere on its day.
        until: the window ends with the first such event after the index moment, if that is earlier than its
            last hour. Where nobody can know that such an event was not missed, the criterion is unknown.
        ends: which ends of a window in hours belong to it.
    """

    written_keys: ClassVar[tuple[str, ...]] = (*EVENT_KEYS, "days")

    within: tuple[int | None, int | None] = (None, None)
    at_least: int = Field(default=0, ge=0)
    at_most: int | None = Field(default=None, ge=0)
    distinct: str | None = None
    occurrence: Literal["any", "first", "last"] = "any"
    gap_days: int | None = Field(default=None, ge=1)
    hours: tuple[int | None, int | None] | None = None
    until: EventPattern | None = None
    ends: Literal["[]", "[)", "(]", "()"] = "[]"
    name: str | None = None
    description: str = ""
    clinical_rationale: str = ""
    on_unknown: OnUnknown | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_the_written_form(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        written = [key for key in EVENT_KEYS if key in data]
        if not written:
            return data
        if len(written) > 1:
            raise ValueError(f"{' and '.join(written)} in one criterion: write two")
        key = written[0]
        inside = data[key]
        if not isinstance(inside, Mapping):
            raise ValueError(f"{key} needs a mapping such as {{event: prescription, within: [-180, -1]}}")
        rest = {name: value for name, value in data.items() if name != key}
        twice = sorted(set(rest) & set(inside))
        if twice:
            raise ValueError(f"{', '.join(twice)} is given beside and inside {key}: keep one")
        return _read_event(key, {**rest, **inside})

    @field_validator("within")
    @classmethod
    def _in_order(cls, within: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
        first, last = within
        if first is not None and last is not None and first > last:
            raise ValueError(f"the window is reversed: day {first} is after day {last}")
        return within

    @field_validator("hours")
    @classmethod
    def _hours_in_order(cls, hours: tuple[int | None, int | None] | None) -> Any:
        if hours is not None and None not in hours and hours[0] > hours[1]:  # type: ignore[operator]
            raise ValueError(f"the window is reversed: hour {hours[0]} is after hour {hours[1]}")
        return hours

    @model_validator(mode="after")
    def _hours_are_counted(self) -> EventCriterion:
        if self.hours is None:
            if self.until is not None:
                raise ValueError("until ends a window in hours: give hours: [first hour, last hour or null]")
            if self.ends != "[]":
                raise ValueError("ends is written beside within or hours")
            return self
        if self.within != (None, None):
            raise ValueError("a window in hours has no days: keep hours or within")
        if self.gap_days is not None or self.distinct or self.occurrence != "any":
            raise ValueError(
                "events in a window in hours are counted: remove gap, distinct and occurrence, or write within"
            )
        return self

    @model_validator(mode="after")
    def _can_be_counted(self) -> EventCriterion:
        if self.gap_days is not None:
            if None in self.within:
                raise ValueError("gap needs a closed window: within: [first day, last day]")
            if self.at_least or self.at_most is not None or self.distinct or self.occurrence != "any":
                raise ValueError("gap has no count: remove at_least, at_most, distinct, occurrence")
            return self
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is below at_least {self.at_least}")
        if not self.at_least and self.at_most is None:
            raise ValueError("at_least 0 is true for everybody: give at_least or at_most")
        return self

    @property
    def operator(self) -> str:
        return "gap" if self.gap_days is not None else "no_event" if self.at_most == 0 else "has_event"

    @property
    def value(self) -> str:
        """The criterion in one line, for records."""
        return self.words()

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of the patient frame that it reads: none."""
        return ()

    @property
    def event_fields(self) -> tuple[str, ...]:
        """Columns of the events that it reads."""
        read = [criterion.field for criterion in self.conditions]
        read += [] if self.until is None else [criterion.field for criterion in self.until.conditions]
        timed = [] if self.hours is None else ["event_time"]
        return tuple(dict.fromkeys([*read, *([self.distinct] if self.distinct else []), *timed]))

    def events(self) -> Iterator[EventCriterion]:
        """The event criteria in this condition: itself."""
        yield self

    def unknown_policy(self, side: Side) -> OnUnknown:
        """``on_unknown``, or the default of an inclusion or exclusion rule."""
        return self.on_unknown or ("report" if side == "exclusion" else "exclude")

    def words(self) -> str:
        """The condition in words: ``at least 2 prescription from day -180 to day -1``."""
        first, last = self.within if self.hours is None else self.hours
        unit = "day" if self.hours is None else "hour"
        when = (
            "at any time"
            if first is None and last is None
            else f"until {unit} {last}"
            if first is None
            else f"from {unit} {first} on"
            if last is None
            else f"from {unit} {first} to {unit} {last}"
        )
        if self.ends != "[]":
            when += {"[)": " (the end excluded)", "(]": " (the start excluded)"}.get(
                self.ends, " (both excluded)"
            )
        if self.until is not None:
            when += f", at most until the next {self.until.words()}"
        if self.gap_days is not None:
            return f"a stretch of more than {self.gap_days} days without {super().words()} {when}"
        if self.at_most == 0:
            count = "no"
        elif self.at_most is None:
            count = f"at least {self.at_least}"
        elif self.at_least == self.at_most:
            count = f"exactly {self.at_least}"
        elif self.at_least:
            count = f"{self.at_least} to {self.at_most}"
        else:
            count = f"at most {self.at_most}"
        distinct = f" distinct {self.distinct} of" if self.distinct else ""
        which = "" if self.occurrence == "any" else f" (the {self.occurrence} of all)"
        return f"{count}{distinct} {super().words()}{which} {when}"


class Group(PolicyModel):
    """Conditions of which all, any, or at least ``n`` must be true.

    Unknown when the unknown members could still decide it. Written as ``all_of: [...]``,
    ``any_of: [...]`` or ``at_least: {n: 2, of: [...]}``; groups nest.
    """

    written_keys: ClassVar[tuple[str, ...]] = GROUP_KEYS

    kind: Literal["all_of", "any_of", "at_least"]
    members: tuple[Condition, ...] = Field(min_length=1, alias="of")
    n: int = Field(default=1, ge=1)
    name: str | None = None
    description: str = ""
    clinical_rationale: str = ""
    on_unknown: OnUnknown | None = None

    model_config = {**PolicyModel.model_config, "populate_by_name": True}

    @model_validator(mode="before")
    @classmethod
    def _from_the_written_form(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        written = [key for key in GROUP_KEYS if key in data]
        if not written:
            return data
        if len(written) > 1:
            raise ValueError(f"{' and '.join(written)} in one group: nest one in the other")
        key = written[0]
        rest = {name: value for name, value in data.items() if name != key}
        if key != "at_least":
            return {**rest, "kind": key, "of": data[key]}
        inside = data[key]
        if not isinstance(inside, Mapping) or set(inside) != {"n", "of"}:
            raise ValueError("at_least needs {n: number, of: [criteria]}")
        return {**rest, "kind": key, **inside}

    @model_validator(mode="after")
    def _can_hold(self) -> Group:
        if self.kind == "at_least" and self.n > len(self.members):
            raise ValueError(f"at least {self.n} of {len(self.members)} criteria can never hold")
        return self

    @property
    def operator(self) -> str:
        return self.kind

    @property
    def value(self) -> str:
        """The group in one line, for records."""
        return self.words()

    @property
    def needed(self) -> int:
        """How many members must be true."""
        return {"all_of": len(self.members), "any_of": 1, "at_least": self.n}[self.kind]

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of the patient frame that its members read."""
        return tuple(dict.fromkeys(field for member in self.members for field in member.fields))

    def events(self) -> Iterator[EventCriterion]:
        """The event criteria among its members, at any depth."""
        for member in self.members:
            yield from member.events()

    def unknown_policy(self, side: Side) -> OnUnknown:
        """``on_unknown``, or the default of an inclusion or exclusion rule."""
        return self.on_unknown or ("report" if side == "exclusion" else "exclude")

    def words(self) -> str:
        """The condition in words, members in brackets."""
        members = [f"({member.words()})" for member in self.members]
        if self.kind == "at_least":
            return f"at least {self.n} of {', '.join(members)}"
        return (" and " if self.kind == "all_of" else " or ").join(members)


def _form(value: Any) -> str:
    if isinstance(value, Criterion):
        return "criterion"
    if isinstance(value, EventCriterion):
        return "events"
    if isinstance(value, Group):
        return "group"
    keys = set(value) if isinstance(value, Mapping) else set()
    if keys & {*EVENT_KEYS, "within", "hours"}:
        return "events"
    return "group" if keys & {*GROUP_KEYS, "kind"} else "criterion"


#: One rule of a definition, or a member of a group.
Condition = Annotated[
    Annotated[Criterion, Tag("criterion")]
    | Annotated[EventCriterion, Tag("events")]
    | Annotated[Group, Tag("group")],
    Discriminator(_form),
]
Group.model_rebuild()


def closed_window(written: dict[str, Any]) -> dict[str, Any]:
    """``ends`` read into the window: windows are of whole days, so an excluded end is the day inside it."""
    ends = written.pop("ends", "[]")
    if ends not in WINDOW_ENDS:
        raise ValueError(f"ends is {ends!r}; expected one of {', '.join(WINDOW_ENDS)}")
    if ends == "[]":
        return written
    within = written.get("within")
    if not isinstance(within, (list, tuple)) or len(within) != 2:
        raise ValueError("ends says which ends of a window belong to it: give within: [first day, last day]")
    if any(day is not None and (isinstance(day, bool) or not isinstance(day, int)) for day in within):
        raise ValueError(f"within needs two whole days or null (found {list(within)!r})")
    first, last = within
    first = first + 1 if first is not None and ends[0] == "(" else first
    last = last - 1 if last is not None and ends[1] == ")" else last
    if first is not None and last is not None and first > last:
        raise ValueError(f"no day lies in the window {list(within)} with ends {ends}")
    return {**written, "within": (first, last)}


def _read_event(key: str, written: dict[str, Any]) -> dict[str, Any]:
    if "hours" in written or "until" in written:
        if key not in ("has_event", "no_event"):
            raise ValueError(f"{key} says its window in days: remove hours and until, or write has_event")
        return _counted(key, written)
    if key in ("washout", "prior_outcome") and "ends" in written:
        raise ValueError(f"{key} says its window itself: remove ends, or write has_event")
    written = closed_window(written)
    days = written.pop("days", None)
    if key in ("washout", "gap") and (isinstance(days, bool) or not isinstance(days, int) or days < 1):
        raise ValueError(f"{key} needs days: a whole number of at least 1 (found {days!r})")
    if key not in ("washout", "gap") and days is not None:
        raise ValueError(f"days belongs to washout and gap; {key} has within: [first day, last day]")
    if key in ("washout", "prior_outcome"):
        given = sorted({"within", "at_least", "at_most"} & set(written))
        if given:
            raise ValueError(f"{key} says its window itself: remove {', '.join(given)}, or write has_event")
    match key:
        case "has_event" | "no_event":
            return _counted(key, written)
        case "washout":
            return {**written, "within": (-int(days or 0), -1), "at_most": 0}
        case "prior_outcome":
            return {**written, "within": (None, -1), "at_least": 1}
        case _:
            return {**written, "gap_days": days}


def _counted(key: str, written: dict[str, Any]) -> dict[str, Any]:
    if key == "has_event":
        return written if "at_most" in written else {"at_least": 1, **written}
    if {"at_least", "at_most"} & set(written):
        raise ValueError("no_event has no count: remove at_least and at_most, or write has_event")
    return {**written, "at_most": 0}


def code_patterns(criterion: Criterion) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The codes of a criterion as ``(exact codes, prefixes)``, both normalised."""
    exact, prefixes = [], []
    for value in criterion.values:
        if value.endswith("*") or criterion.descendants:
            begins = value.endswith("*")
            normal = normal_prefix if begins else normal_code
            prefixes.append(normal(value.rstrip("*"), criterion.code_system))
        else:
            exact.append(normal_code(value, criterion.code_system))
    return tuple(exact), tuple(prefixes)


def _check_codes(codes: Iterable[Any], system: str, position: Position, *, whole: bool = True) -> None:
    """Raises ValueError for a code that says nothing: a whole one that the system cannot have never matches."""
    if position == "first" and system == "ndc":
        raise ValueError("drug codes come one to a cell: remove position")
    for code in codes:
        if not isinstance(code, str) or not re.fullmatch(r"[A-Z0-9. -]+\*?", plain(code)):
            raise ValueError(
                f"{code!r} is not a code: expected letters, digits and dots, and * only at the end"
            )
        if is_undecided(code, system):
            raise ValueError(f"{code!r} can be three drug codes: write it with hyphens or with 11 digits")
        if whole and not code.endswith("*") and not fits(code, system):
            raise ValueError(_misfit(code, system))


def _misfit(code: str, system: str) -> str:
    others = [name for name in SYSTEMS if fits(code, name)]
    other = f" It has the shape of {', '.join(others)}: say code_system." if others else ""
    about = SYSTEMS[system]
    return f"{code!r} is no {about.title} code ({system}): expected {about.expected}.{other}"


def _checked_value(operator: str, value: Any) -> Any:
    if operator in ("in", "not_in"):
        if not isinstance(value, (list, tuple, set, frozenset)) or not value:
            raise ValueError(f"operator {operator} needs a list with at least one value")
        values = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return tuple(_scalar(operator, v) for v in values)
    if operator == "between":
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError("operator between needs [low, high]")
        low, high = (_ordered(operator, v) for v in value)
        if isinstance(low, date) != isinstance(high, date):
            raise ValueError("the two bounds of between are of different kinds")
        if low > high:
            raise ValueError(f"the bounds of between are reversed: {low} is more than {high}")
        return (low, high)
    if operator in ORDERING:
        return _ordered(operator, value)
    if operator == "contains":
        if not isinstance(value, str) or not value:
            raise ValueError("operator contains needs a text that is not empty")
        return value
    return _scalar(operator, value)


def _scalar(operator: str, value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str, date)) or _is_nan(value):
        raise ValueError(
            f"operator {operator} needs a text, number, date or true/false; null is covered by on_unknown"
        )
    return value


def _ordered(operator: str, value: Any) -> Any:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"operator {operator} needs a number or a date (YYYY-MM-DD)") from None
    if isinstance(value, bool) or not isinstance(value, (int, float, date)) or _is_nan(value):
        raise ValueError(f"operator {operator} needs a number or a date (YYYY-MM-DD)")
    return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
