"""The cohort language: criteria, time requirements, examples, and the definitions under ``config/cohorts``.

Only the language and its reading. Evaluating a definition on data is in :mod:`e2i_dagster.cohorts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from e2i_dagster.config.cohort_fields import (
    EVENT_COLUMNS,
    OBSERVATION,
    TableFields,
    field_problems,
    table_fields,
)
from e2i_dagster.config.criteria import (
    EVENT_KEYS,
    Condition,
    Criterion,
    EventCriterion,
    EventPattern,
    Group,
    OnUnknown,
    Operator,
    Side,
    code_patterns,
)
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files import observed
from e2i_dagster.policy_files.base import PolicyModel, digest_of, read_yaml
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.tables.codes import normal_code
from e2i_dagster.tables.own_types import CODE_SYSTEMS, OwnType

__all__ = [
    "Condition",
    "Criterion",
    "EventCriterion",
    "EventPattern",
    "Group",
    "Operator",
    "code_patterns",
    "normal_code",
]

#: Names of the rules that time and the choice of one journey add to the criteria.
TIME_RULES = ("index_date", "lookback", "followup", "one_index_journey", "followup_pending")
#: A rule is one bit of a signed 64-bit integer.
MOST_RULES = 62

#: Meaning of the error codes of the cohort stage.
ERROR_CODES = {
    "CC_001": "invalid configuration",
    "CC_002": "missing required fields",
    "CC_003": "empty cohort",
    "CC_004": "data validation error",
    "CC_005": "temporal validation failed",
    "CC_006": "storage error",
    "CC_007": "timeout",
}


class CohortConfigError(ConfigError):
    """A cohort definition is wrong or unknown (code CC_001)."""

    code = "CC_001"


class TemporalRequirements(PolicyModel):
    """Observed time that a patient needs around the index date.

    Attributes:
        lookback_days: days observed before the index date (index - first_observation_date >= N).
        followup_days: days of follow-up after it (last_observation_date - index >= N).
        index_date_field: date column that gives the index date.
        followup: ``require`` removes patients observed for less (this conditions on the future);
            ``censor`` keeps them and ``followup_end`` says how long they were observed.
    """

    lookback_days: int = Field(default=180, ge=0)  # prior platform's default
    followup_days: int = Field(default=90, ge=0)  # prior platform's default
    index_date_field: str = Field(default="diagnosis_date", min_length=1)
    followup: Literal["require", "censor"] = "require"

    @property
    def required_followup(self) -> int:
        """Days after the index date that a patient must be observed; 0 where follow-up is censored."""
        return self.followup_days if self.followup == "require" else 0


class EventIndex(EventPattern):
    """The index date is the day of an event.

    Attributes:
        occurrence: which of the events that match; ``every`` gives one index date per distinct day.
        after: date column of the patient frame; only events on or after that day (plus ``after_days``) count.
    """

    occurrence: Literal["first", "last", "every"] = "first"
    after: str | None = None
    after_days: int = 0

    def words(self) -> str:
        """The index in words: ``the first prescription on or after diagnosis_date``."""
        when = ""
        if self.after is not None:
            later = f"{self.after_days} days after " if self.after_days else ""
            when = f" on or after {later}{self.after}"
        return f"{'each' if self.occurrence == 'every' else 'the ' + self.occurrence} {super().words()}{when}"


class Observation(PolicyModel):
    """How observed time is read from the table ``observation_periods``, where it is delivered.

    Attributes:
        allowed_gap_days: days without observation that do not end a span (30 where enrolment is recorded
            by month, 0 for exact records).
    """

    allowed_gap_days: int = Field(default=0, ge=0)


class DerivedField(PolicyModel):
    """A field that is computed at the index date.

    Attributes:
        years_since: date column, or column of years of birth: completed years until the index date. From a
            year alone, the difference of the calendar years.
    """

    years_since: str = Field(min_length=1)


class CohortExample(PolicyModel):
    """An invented patient and the verdict that the definition must reach.

    Attributes:
        patient: values by field; a field that is not given is null.
        events: the patient's events: event_type, event_date, code and other columns.
        observation_periods: start_date and end_date of each observed span.
        expect: ``in``, ``pending``, or ``{out: [names of all rules that fail]}``.
        data_end: end of the data in this example (decides ``pending``).
    """

    name: str
    patient: dict[str, Any]
    events: tuple[dict[str, Any], ...] = ()
    observation_periods: tuple[dict[str, Any], ...] = ()
    expect: Literal["in", "pending"] | dict[Literal["out"], str | tuple[str, ...]]
    data_end: date | None = None

    @property
    def failed_rules(self) -> frozenset[str]:
        """Names of the rules that must fail; empty when the patient is in or pending."""
        if isinstance(self.expect, str):
            return frozenset()
        out = self.expect["out"]
        return frozenset([out] if isinstance(out, str) else out)


class Rule(PolicyModel):
    """One step of a definition: a named criterion, or a requirement of time.

    ``order`` counts from 1; the rule's bit in a reason mask is ``order - 1``.
    """

    order: int
    name: str
    side: Side
    operator: str
    value: Any
    criterion: Condition | None = None
    description: str = ""
    clinical_rationale: str = ""
    on_unknown: OnUnknown = "exclude"

    @property
    def bit(self) -> int:
        return 1 << (self.order - 1)


class Consent(PolicyModel):
    """Who approved a definition, and when."""

    by: str = Field(min_length=1)
    on: date

    @model_validator(mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and True in data and "on" not in data:
            return {"on" if key is True else key: value for key, value in data.items()}
        return data


class ApprovedStatus(PolicyModel):
    """The rules are agreed: ``status: {approved: {by: name, on: YYYY-MM-DD}}``."""

    approved: Consent


class CohortDefinition(PolicyModel):
    """Who belongs to a cohort.

    Attributes:
        key: the name of the cohort, its file and its partition; ``{brand}_{indication}`` by default.
        version: raised by the author whenever a rule changes.
        status: ``draft`` while the rules are being found, or who approved them and when:
            ``approved: {by: ..., on: ...}``. A model on a draft cohort stays in development.
        inclusion_criteria: all must hold. exclusion_criteria: any removes.
        index: the day that everything is counted from, when it comes from events instead of a column.
        journeys: which index date of a patient counts: the ``first_eligible``, the ``first`` (whether or not
            it is eligible), or ``every`` one.
        observation: how observation periods become spans.
        derived: fields computed at the index date, usable in criteria.
        own_fields: clinical columns of one's own that criteria read, with the type that each is read as (a list
            of names: all text); every other field has to be a column of the raw tables.
        examples: invented patients with the expected verdict, run by ``lint``.
    """

    key: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    brand: str = Field(min_length=1)
    indication: str = Field(min_length=1)
    title: str = ""
    version: str = Field(default="1.0.0", pattern=r"^\d+\.\d+\.\d+$")
    status: Literal["draft"] | ApprovedStatus = "draft"
    clinical_rationale: str = ""
    index: EventIndex | None = None
    journeys: Literal["first_eligible", "first", "every"] = "first_eligible"
    observation: Observation = Field(default_factory=Observation)
    derived: dict[str, DerivedField] = Field(default_factory=dict)
    own_fields: dict[str, OwnType] = Field(default_factory=dict)
    inclusion_criteria: tuple[Condition, ...] = Field(min_length=1)
    exclusion_criteria: tuple[Condition, ...] = ()
    temporal_requirements: TemporalRequirements = Field(default_factory=TemporalRequirements)
    examples: tuple[CohortExample, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _index_by_field(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("index"), Mapping):
            return data
        index = data["index"]
        times = dict(data.get("temporal_requirements") or {})
        if "field" not in index:
            if "index_date_field" in times:
                raise ValueError(
                    "the index date comes from events and from temporal_requirements.index_date_field: keep one"
                )
            return data
        if set(index) != {"field"}:
            raise ValueError("index has a field or an event, not both: index: {field: <date column>}")
        if times.setdefault("index_date_field", index["field"]) != index["field"]:
            raise ValueError("index.field and temporal_requirements.index_date_field differ: keep one")
        return {k: v for k, v in data.items() if k != "index"} | {"temporal_requirements": times}

    @model_validator(mode="before")
    @classmethod
    def _own_codes_have_their_system(cls, data: Any) -> Any:
        """A criterion on an own column of codes compares codes of the declared system."""
        own = data.get("own_fields") if isinstance(data, Mapping) else None
        if not isinstance(own, Mapping):
            return data
        systems = {name: kind for name, kind in own.items() if kind in CODE_SYSTEMS}
        sides = ("inclusion_criteria", "exclusion_criteria")
        return {**data, **{side: _with_systems(data[side], systems) for side in sides if side in data}}

    @field_validator("own_fields", mode="before")
    @classmethod
    def _listed_fields_are_text(cls, own: Any) -> Any:
        return dict.fromkeys(own, "text") if isinstance(own, list | tuple) else own

    @model_serializer(mode="wrap")
    def _one_index(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """With an index by event there is no index field, so that what is written can be read again."""
        observed.read_fields(self, info.include, info.exclude)
        written = dump(self)
        if self.index is not None and "temporal_requirements" in written:
            written["temporal_requirements"].pop("index_date_field", None)
        return written

    @model_validator(mode="after")
    def _rules_are_distinct(self, info: ValidationInfo) -> CohortDefinition:
        if not self.key:
            slug = re.sub(r"[^a-z0-9]+", "_", f"{self.brand}_{self.indication}".lower()).strip("_")
            object.__setattr__(self, "key", slug)
        if not (info.context or {}).get("placed"):
            for _, message in self._problems():
                raise ValueError(message)
        return self

    def _problems(self) -> Iterator[tuple[tuple[int | str, ...], str]]:
        """Rules that are stated twice or share a name, and examples of rules that there are not, with places."""
        sides = {"inclusion": self.inclusion_criteria, "exclusion": self.exclusion_criteria}
        places = [(f"{side}_criteria", n) for side, criteria in sides.items() for n in range(len(criteria))]
        seen: set[tuple[str, str, str]] = set()
        for place, criterion in zip(places, self.conditions, strict=True):
            content = (" ".join(criterion.fields), criterion.operator, repr(criterion.value))
            if content in seen:
                yield place, f"criterion '{criterion.words()}' is stated twice: remove one of them"
                return
            seen.add(content)
        if self.index is None:
            for place, criterion in zip(places, self.conditions, strict=True):
                if any(event.hours is not None for event in criterion.events()):
                    yield (
                        place,
                        f"criterion '{criterion.words()}': hours count from the moment of an index event, and "
                        f"{self.index_words} is a day: give index: {{event: ...}}, or write within",
                    )
        names = [rule.name for rule in self.rules]
        taken = {rule.name for rule in self.rules if rule.criterion is None}
        for place, rule in zip(places, (r for r in self.rules if r.criterion is not None), strict=True):
            if rule.name in taken:
                yield place, f"rule name used twice: {rule.name}. Give each rule its own name"
            taken.add(rule.name)
        if len(names) > MOST_RULES:
            yield (), f"{len(names)} rules; at most {MOST_RULES} fit into a reason mask"
        for number, example in enumerate(self.examples):
            for name in sorted(example.failed_rules - set(names)):
                near = get_close_matches(name, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                yield (
                    ("examples", number, "expect"),
                    f"example {example.name!r} expects the unknown rule {name!r}.{hint}",
                )

    @classmethod
    def from_file(cls, path: str | Path, fields: TableFields | None = None) -> CohortDefinition:
        """Read a definition from a file of any name, such as a copy that is being worked on.

        Args and raises as :meth:`from_yaml`.
        """

        def problems(read: CohortDefinition) -> Iterator[tuple[tuple[int | str, ...], str]]:
            yield from field_problems(read, fields) if fields else ()
            yield from read._problems()

        try:
            return read_yaml(Path(path), cls, problems)
        except ConfigError as error:
            raise CohortConfigError(f"CC_001: {error}", **error.known, parts=error.parts) from None

    @classmethod
    def from_yaml(cls, path: str | Path, fields: TableFields | None = None) -> CohortDefinition:
        """Read one definition file.

        Args:
            fields: what the raw tables hold (:func:`.cohort_fields.table_fields`), for a definition that will
                be used on them: its fields, event types and values are checked against it.

        Raises:
            CohortConfigError: names file, line, field, value and what was expected.
        """
        path = Path(path)
        definition = cls.from_file(path, fields)
        if definition.key != path.stem:
            raise CohortConfigError(
                f"CC_001: {path}: the file is called {path.stem!r} and the cohort {definition.key!r}.",
                remedy=f"Rename the file to {definition.key}.yaml or set key: {path.stem}.",
            )
        return definition

    @classmethod
    def from_brand(cls, brand: str, indication: str, folder: Path | None = None) -> CohortDefinition:
        """The definition of a brand and indication (any case) among the files of ``config/cohorts``.

        Raises:
            CohortConfigError: there is none; the message lists the known pairs.
        """
        definitions, broken = read_cohorts(folder)
        wanted = (brand.strip().lower(), indication.strip().lower())
        for definition in definitions.values():
            if (definition.brand.lower(), definition.indication.lower()) == wanted:
                return definition
        known = ", ".join(f"{d.brand.lower()}/{d.indication.lower()}" for d in definitions.values()) or "none"
        unread = f" Files that could not be read: {', '.join(sorted(broken))}." if broken else ""
        raise CohortConfigError(
            f"CC_001: no cohort for brand {brand!r} and indication {indication!r}. Known: {known}.{unread} "
            f"Add a file to {folder or cohort_folder()}."
        )

    @property
    def approval(self) -> Consent | None:
        """Who approved the definition and when; None for a draft."""
        return self.status.approved if isinstance(self.status, ApprovedStatus) else None

    @property
    def cohort_id(self) -> str:
        """Identifier of this version in the warehouse, the same on every day."""
        return f"cohort_{self.key}_v{self.version}"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules in the order in which they are applied."""
        times = self.temporal_requirements
        rules: list[Rule] = [
            Rule(
                order=1,
                name="index_date",
                side="temporal",
                operator="known",
                value=self.index_words,
                description=f"The index date ({self.index_words}) is known",
            )
        ]
        sides: tuple[tuple[Side, tuple[Condition, ...]], ...] = (
            ("inclusion", self.inclusion_criteria),
            ("exclusion", self.exclusion_criteria),
        )
        fields = [c.fields for _, criteria in sides for c in criteria]
        for side, criteria in sides:
            for criterion in criteria:
                by_field = isinstance(criterion, Criterion) and fields.count(criterion.fields) == 1
                plain = criterion.fields[0] if by_field else criterion.words()
                rules.append(
                    Rule(
                        order=len(rules) + 1,
                        name=criterion.name or plain,
                        side=side,
                        operator=criterion.operator,
                        value=criterion.value,
                        criterion=criterion,
                        description=criterion.description or criterion.words(),
                        clinical_rationale=criterion.clinical_rationale,
                        on_unknown=criterion.unknown_policy(side),
                    )
                )
        required = times.required_followup
        followup = (
            f"Observed for at least {required} days after the index date"
            if times.followup == "require"
            else "Observed on the index date; shorter follow-up is censored"
        )
        timed: list[tuple[str, str, Any, str]] = [
            (
                "lookback",
                ">=",
                times.lookback_days,
                f"Observed for at least {times.lookback_days} days before the index date",
            ),
            ("followup", ">=", required, followup),
        ]
        if self.journeys == "first_eligible":
            rule = "One journey per patient: the earliest eligible"
            timed.append(("one_index_journey", "first", "earliest eligible", rule))
        elif self.journeys == "first":
            rule = "One journey per patient: the earliest, eligible or not"
            timed.append(("one_index_journey", "first", "earliest", rule))
        if times.followup == "require":
            timed.append(
                (
                    "followup_pending",
                    "<=",
                    "end of data",
                    f"The {required} days of follow-up are over at the end of the data (else: to be scored)",
                )
            )
        for name, operator, value, description in timed:
            rules.append(
                Rule(
                    order=len(rules) + 1,
                    name=name,
                    side="temporal",
                    operator=operator,
                    value=value,
                    description=description,
                )
            )
        return tuple(rules)

    @property
    def conditions(self) -> tuple[Criterion | EventCriterion | Group, ...]:
        """Inclusion and exclusion criteria in order."""
        return (*self.inclusion_criteria, *self.exclusion_criteria)

    @property
    def index_words(self) -> str:
        """Where the index date comes from."""
        return self.temporal_requirements.index_date_field if self.index is None else self.index.words()

    @property
    def reads_events(self) -> bool:
        """Whether the definition needs a frame of events."""
        return self.index is not None or any(True for c in self.conditions for _ in c.events())

    @property
    def tables_read(self) -> tuple[str, ...]:
        """Raw tables that the definition reads beside the patients."""
        return (*(EVENT_COLUMNS if self.reads_events else ()), OBSERVATION)

    @property
    def event_fields(self) -> tuple[str, ...]:
        """Columns that the events must have; empty when no rule reads events."""
        if not self.reads_events:
            return ()
        patterns = [event for condition in self.conditions for event in condition.events()]
        read = [field for pattern in patterns for field in pattern.event_fields]
        if self.index is not None:
            read += [criterion.field for criterion in self.index.conditions]
        return tuple(dict.fromkeys(["patient_id", "event_date", *read]))

    @property
    def required_fields(self) -> tuple[str, ...]:
        """Columns that the patient frame must have."""
        index = self.index
        dated = (
            [self.temporal_requirements.index_date_field]
            if index is None
            else [index.after]
            if index.after
            else []
        )
        read = [field for condition in self.conditions for field in condition.fields]
        fields = [
            "patient_id",
            "patient_journey_id",
            *dated,
            "first_observation_date",
            "last_observation_date",
            *(field for field in read if field not in self.derived),
            *(field.years_since for field in self.derived.values()),
        ]
        return tuple(dict.fromkeys(fields))

    @property
    def definition_hash(self) -> str:
        """Content digest of everything that decides who is eligible; wording and examples do not count."""
        content = {
            "brand": self.brand,
            "indication": self.indication,
            "inclusion": [_content(c) for c in self.inclusion_criteria],
            "exclusion": [_content(c) for c in self.exclusion_criteria],
            "time": self.temporal_requirements.model_dump(mode="json"),
        }
        optional = {
            "index": self.index and _said(self.index.model_dump(mode="json")),
            "journeys": None if self.journeys == "first_eligible" else self.journeys,
            "observation": self.observation.allowed_gap_days,
            "derived": {name: field.model_dump(mode="json") for name, field in self.derived.items()},
            # Text is what is kept: to read it as such decides nothing.
            "own": {name: kind for name, kind in self.own_fields.items() if kind != "text"},
        }
        return digest_of(content | {name: value for name, value in optional.items() if value})

    def sentences(self) -> tuple[str, ...]:
        """The definition in words, one sentence per rule."""
        unknown = {
            "exclude": "Patients with an unknown value are removed.",
            "include": "Patients with an unknown value are kept.",
            "report": "Patients with an unknown value are kept and reported.",
        }
        sentences = [
            f"{self.title or self.key} (brand {self.brand}, indication {self.indication}, "
            f"version {self.version})."
        ]
        verbs = {"inclusion": "Include patients whose", "exclusion": "Remove patients whose"}
        verbs_of_events = {"inclusion": "Include patients with", "exclusion": "Remove patients with"}
        for name, field in self.derived.items():
            sentences.append(
                f"{name} is the number of completed years from {field.years_since} to the index date."
            )
        for rule in self.rules:
            if rule.criterion is None:
                sentences.append(f"{rule.description}.")
            else:
                said = verbs_of_events if isinstance(rule.criterion, EventCriterion) else verbs
                sentences.append(
                    f"{said[rule.side]} {rule.criterion.words()}. {unknown[rule.on_unknown]}"
                    + "".join(f" {words}" for words in self._open_words(rule.criterion))
                    + (f" {rule.criterion.description}." if rule.criterion.description else "")
                )
        return tuple(sentences)

    def _open_words(self, condition: Criterion | EventCriterion | Group) -> tuple[str, ...]:
        """What an open end of a window, and the first or last event of all, mean where observation has an end."""
        times = self.temporal_requirements
        back = f"it is unknown where fewer than {times.lookback_days} days before"
        ahead = f"it is unknown where fewer than {times.required_followup} days after"
        words = []
        for event in condition.events():
            if event.occurrence == "first":
                words.append(f"First means since observation began; {back} that event were observed.")
            elif event.occurrence == "last":
                words.append(f"Last means until observation ends; {ahead} that event were observed.")
            first, last = event.within if event.hours is None else event.hours
            if first is None:
                words.append(
                    f"The window begins where observation began; unless such an event was seen, {back} the index date "
                    "were observed."
                )
            if last is None and event.until is None:
                words.append(
                    f"The window ends where observation ends; unless such an event was seen, {ahead} the index date "
                    "were observed."
                )
        return tuple(dict.fromkeys(words))


def cohort_folder() -> Path:
    """The folder of the cohort files: ``cohorts`` in the configuration folder."""
    return config_folder() / "cohorts"


def read_cohorts(
    folder: Path | None = None,
) -> tuple[dict[str, CohortDefinition], dict[str, CohortConfigError]]:
    """All definitions by key, and the errors of the files that could not be read by file stem."""
    definitions: dict[str, CohortDefinition] = {}
    broken: dict[str, CohortConfigError] = {}
    fields = table_fields()
    for path in sorted((folder or cohort_folder()).glob("*.yaml")):
        try:
            definitions[path.stem] = CohortDefinition.from_yaml(path, fields)
        except CohortConfigError as error:
            broken[path.stem] = error
    return definitions, broken


def read_cohort(key: str, folder: Path | None = None) -> CohortDefinition:
    """The definition of the cohort ``key``.

    Raises:
        CohortConfigError: there is no such file (lists the known keys), or it is wrong.
    """
    folder = folder or cohort_folder()
    path = folder / f"{key}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        near = get_close_matches(key, known, n=1)
        raise CohortConfigError(
            f"CC_001: no cohort {key!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" Known: {', '.join(known) or 'none'}. Add a file to {folder}."
        )
    return CohortDefinition.from_yaml(path, table_fields())


def _with_systems(conditions: Any, systems: Mapping[str, str]) -> Any:
    """Conditions as written, at any depth outside of events, with the code system of the fields in ``systems``."""
    if isinstance(conditions, list | tuple):
        return [_with_systems(condition, systems) for condition in conditions]
    if isinstance(conditions, Criterion | Group) and set(conditions.fields) & systems.keys():
        conditions = conditions.model_dump(exclude_unset=True)
    if not isinstance(conditions, Mapping):
        return conditions
    if conditions.get("field") in systems and conditions.get("code_system") is None:
        return {**conditions, "code_system": systems[conditions["field"]]}
    return {
        key: value if key in (*EVENT_KEYS, "where", "value") else _with_systems(value, systems)
        for key, value in conditions.items()
    }


def _content(condition: Criterion | EventCriterion | Group) -> Any:
    """What decides, without the words for people, at any depth."""

    return _said(condition.model_dump(mode="json"), without=("description", "clinical_rationale"))


#: What decides nothing because it is not asked for.
_NOT_SAID = [("position", "any"), ("hours", None), ("until", None), ("ends", "[]")]


def _said(value: Any, without: tuple[str, ...] = ()) -> Any:
    """A dump at any depth without the keys ``without``, and without a position that is not asked for."""
    if isinstance(value, dict):
        return {
            k: _said(v, without) for k, v in value.items() if k not in without and (k, v) not in _NOT_SAID
        }
    return [_said(item, without) for item in value] if isinstance(value, list) else value
