"""The cohort language: criteria, time requirements, examples, and the definitions under ``config/cohorts``.

Only the language and its reading. Evaluating a definition on data is in :mod:`e2i_dagster.cohorts`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from e2i_dagster.config.base import PolicyModel, digest_of, read_yaml
from e2i_dagster.config.environment import config_folder
from e2i_dagster.errors import ConfigError

Operator = Literal["==", "!=", ">", ">=", "<", "<=", "in", "not_in", "between", "contains"]
OnUnknown = Literal["exclude", "include", "report"]
Side = Literal["inclusion", "exclusion", "temporal"]

ORDERING = frozenset({">", ">=", "<", "<="})
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
_ABSENT = {
    "all_of": "nested groups",
    "any_of": "nested groups",
    "at_least": "nested groups",
    "event": "criteria on events",
    "has_event": "criteria on events",
    "within": "criteria on events",
    "derived": "derived fields",
    "journeys": "a choice of journeys other than the earliest eligible one",
    "allowed_gap_days": "observation periods with gaps",
}


class CohortConfigError(ConfigError):
    """A cohort definition is wrong or unknown (code CC_001)."""

    code = "CC_001"


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
        code_system: says that the values are codes, compared without dots and case, where ``L50.*``
            means the code and all its descendants. Fields ending in ``diagnosis_code`` are ``icd10cm``.
        descendants: each code of ``value`` stands for itself and all codes below it.
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

    @model_validator(mode="before")
    @classmethod
    def _only_the_language(cls, data: Any) -> Any:
        return _refuse_absent(data)

    @field_validator("value")
    @classmethod
    def _value_fits_operator(cls, value: Any, info: ValidationInfo) -> Any:
        operator = info.data.get("operator")
        if operator is None:  # the operator itself is wrong and reported
            return value
        return _checked_value(operator, value)

    @field_validator("code_system")
    @classmethod
    def _diagnosis_codes_are_icd(cls, code_system: str | None, info: ValidationInfo) -> str | None:
        if code_system is None and str(info.data.get("field", "")).lower().endswith("diagnosis_code"):
            return "icd10cm"
        return code_system

    @model_validator(mode="after")
    def _codes_are_text(self) -> Criterion:
        if self.descendants and self.code_system is None:
            raise ValueError(f"descendants: true needs a code_system (field {self.field!r} holds no codes)")
        if self.code_system is not None:
            if self.operator in ORDERING or self.operator == "between":
                raise ValueError(f"codes have no order: operator {self.operator} cannot be used on them")
            for code in self.values:
                if not isinstance(code, str) or not re.fullmatch(r"[A-Za-z0-9. -]+\*?", code):
                    raise ValueError(
                        f"{code!r} is not a code: expected letters, digits and dots, and * only at the end"
                    )
        return self

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
        return f"{self.field} {_WORDS[self.operator]} {value}{below}"


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

    @model_validator(mode="before")
    @classmethod
    def _only_the_language(cls, data: Any) -> Any:
        return _refuse_absent(data)


class CohortExample(PolicyModel):
    """An invented patient and the verdict that the definition must reach.

    Attributes:
        patient: values by field; a field that is not given is null.
        expect: ``in``, ``pending``, or ``{out: [names of all rules that fail]}``.
        data_end: end of the data in this example (decides ``pending``).
    """

    name: str
    patient: dict[str, Any]
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
    criterion: Criterion | None = None
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
        examples: invented patients with the expected verdict, run by ``lint``.
    """

    key: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    brand: str = Field(min_length=1)
    indication: str = Field(min_length=1)
    title: str = ""
    version: str = Field(default="1.0.0", pattern=r"^\d+\.\d+\.\d+$")
    status: Literal["draft"] | ApprovedStatus = "draft"
    clinical_rationale: str = ""
    inclusion_criteria: tuple[Criterion, ...] = Field(min_length=1)
    exclusion_criteria: tuple[Criterion, ...] = ()
    temporal_requirements: TemporalRequirements = Field(default_factory=TemporalRequirements)
    examples: tuple[CohortExample, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _only_the_language(cls, data: Any) -> Any:
        data = _refuse_absent(data)
        if not isinstance(data, Mapping) or "index" not in data:
            return data
        index = data["index"]
        if not isinstance(index, Mapping) or set(index) != {"field"}:
            raise ValueError(
                "an index date taken from events is not part of the language yet: "
                "write index: {field: <date column>}"
            )
        times = dict(data.get("temporal_requirements") or {})
        if times.setdefault("index_date_field", index["field"]) != index["field"]:
            raise ValueError("index.field and temporal_requirements.index_date_field differ: keep one")
        return {k: v for k, v in data.items() if k != "index"} | {"temporal_requirements": times}

    @model_validator(mode="after")
    def _names_are_unique(self) -> CohortDefinition:
        if not self.key:
            slug = re.sub(r"[^a-z0-9]+", "_", f"{self.brand}_{self.indication}".lower()).strip("_")
            object.__setattr__(self, "key", slug)
        seen: set[tuple[str, str, str]] = set()
        for criterion in (*self.inclusion_criteria, *self.exclusion_criteria):
            content = (criterion.field, criterion.operator, repr(criterion.value))
            if content in seen:
                raise ValueError(f"criterion '{criterion.words()}' is stated twice: remove one of them")
            seen.add(content)
        names = [rule.name for rule in self.rules]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"rule name(s) used twice: {', '.join(repeated)}. Give each rule its own name")
        if len(names) > MOST_RULES:
            raise ValueError(f"{len(names)} rules; at most {MOST_RULES} fit into a reason mask")
        known = set(names)
        for example in self.examples:
            for name in sorted(example.failed_rules - known):
                near = get_close_matches(name, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"example {example.name!r} expects the unknown rule {name!r}.{hint}")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> CohortDefinition:
        """Read one definition file.

        Raises:
            CohortConfigError: names file, line, field, value and what was expected.
        """
        path = Path(path)
        try:
            definition = read_yaml(path, cls)
        except ConfigError as error:
            raise CohortConfigError(f"CC_001: {error}") from None
        if definition.key != path.stem:
            raise CohortConfigError(
                f"CC_001: {path}: the file is called {path.stem!r} and the cohort {definition.key!r}. "
                f"Rename the file to {definition.key}.yaml or set key: {path.stem}."
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
        return f"cohort_{self.key}_v{self.version.replace('.', '')}"

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
                value=times.index_date_field,
                description=f"The index date ({times.index_date_field}) is known",
            )
        ]
        sides: tuple[tuple[Side, tuple[Criterion, ...]], ...] = (
            ("inclusion", self.inclusion_criteria),
            ("exclusion", self.exclusion_criteria),
        )
        fields = [c.field for _, criteria in sides for c in criteria]
        for side, criteria in sides:
            for criterion in criteria:
                plain = criterion.field if fields.count(criterion.field) == 1 else criterion.words()
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
        required = times.followup_days if times.followup == "require" else 0
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
            (
                "one_index_journey",
                "first",
                "earliest eligible",
                "One journey per patient: the earliest eligible",
            ),
        ]
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
    def required_fields(self) -> tuple[str, ...]:
        """Columns that the patient frame must have."""
        fields = [
            "patient_id",
            "patient_journey_id",
            self.temporal_requirements.index_date_field,
            "first_observation_date",
            "last_observation_date",
            *(c.field for c in (*self.inclusion_criteria, *self.exclusion_criteria)),
        ]
        return tuple(dict.fromkeys(fields))

    @property
    def definition_hash(self) -> str:
        """Content digest of everything that decides who is eligible; wording and examples do not count."""
        wording = {"description", "clinical_rationale"}
        return digest_of(
            {
                "brand": self.brand,
                "indication": self.indication,
                "inclusion": [c.model_dump(mode="json", exclude=wording) for c in self.inclusion_criteria],
                "exclusion": [c.model_dump(mode="json", exclude=wording) for c in self.exclusion_criteria],
                "time": self.temporal_requirements.model_dump(mode="json"),
            }
        )

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
        for rule in self.rules:
            if rule.criterion is None:
                sentences.append(f"{rule.description}.")
            else:
                sentences.append(
                    f"{verbs[rule.side]} {rule.criterion.words()}. {unknown[rule.on_unknown]}"
                    + (f" {rule.criterion.description}." if rule.criterion.description else "")
                )
        return tuple(sentences)


def cohort_folder() -> Path:
    """The folder of the cohort files: ``cohorts`` in the configuration folder."""
    return config_folder() / "cohorts"


def read_cohorts(
    folder: Path | None = None,
) -> tuple[dict[str, CohortDefinition], dict[str, CohortConfigError]]:
    """All definitions by key, and the errors of the files that could not be read by file stem."""
    definitions: dict[str, CohortDefinition] = {}
    broken: dict[str, CohortConfigError] = {}
    for path in sorted((folder or cohort_folder()).glob("*.yaml")):
        try:
            definitions[path.stem] = CohortDefinition.from_yaml(path)
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
    return CohortDefinition.from_yaml(path)


def normal_code(code: str) -> str:
    """A code as it is compared: upper case, without dots and outer blanks."""
    return code.strip().replace(".", "").upper()


def code_patterns(criterion: Criterion) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The codes of a criterion as ``(exact codes, prefixes)``, both normalised."""
    exact, prefixes = [], []
    for value in criterion.values:
        if value.endswith("*") or criterion.descendants:
            prefixes.append(normal_code(value.rstrip("*")))
        else:
            exact.append(normal_code(value))
    return tuple(exact), tuple(prefixes)


def _refuse_absent(data: Any) -> Any:
    if isinstance(data, Mapping):
        for key, what in _ABSENT.items():
            if key in data:
                raise ValueError(f"'{key}': {what} are not part of the cohort language yet")
    return data


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
