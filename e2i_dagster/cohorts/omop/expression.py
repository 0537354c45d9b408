"""The subset of OHDSI Circe cohort expression JSON that is read, as typed values.

Every key is declared here. A key that is not, a value of another type and an attribute that the engine
does not evaluate are refused with their path in the JSON before anything is computed. Names of fields are
Circe's keys in snake case (``CodesetId`` is ``codeset_id``).

Source of the format: the classes of ``org.ohdsi.circe.cohortdefinition`` in OHDSI circe-be.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from e2i_dagster.errors import ConfigError

#: Rule masks are 64-bit integers, as in OHDSI's ``cohort_inclusion_result``.
MOST_RULES = 62
#: How many problems one message lists.
SHOWN_PROBLEMS = 20


#: Domains of Circe whose tables are not read.
UNREAD_DOMAINS = {
    "DeviceExposure",
    "DoseEra",
    "LocationRegion",
    "PayerPlanPeriod",
    "Specimen",
    "VisitDetail",
}


def circe_key(name: str) -> str:
    """Circe's key of a field: ``use_index_end`` is ``UseIndexEnd``, ``gender_cs`` is ``GenderCS``."""
    words = name.split("_")
    return "".join("CS" if word == "cs" else word.capitalize() for word in words)


class CirceModel(BaseModel):
    """Base of everything read: frozen, strict types, unknown keys refused, keys as Circe writes them."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=circe_key,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


@dataclass(frozen=True)
class Refusal:
    """Validator of a known key that is not evaluated: null and empty mean nothing, all else is refused."""

    reason: str

    def __call__(self, value: Any) -> None:
        if value not in (None, [], False):
            raise PydanticCustomError("outside_subset", "{reason}", {"reason": self.reason})


Item = TypeVar("Item")
if TYPE_CHECKING:
    Several = tuple[Item, ...]
    Flag = bool
else:
    # Atlas writes null for lists and flags that were never touched.
    Several = Annotated[tuple[Item, ...] | None, AfterValidator(lambda value: value or ())]
    Flag = Annotated[bool | None, AfterValidator(bool)]

ProviderRefused = Annotated[None, BeforeValidator(Refusal("needs the provider table, which is not read"))]
CareSiteRefused = Annotated[None, BeforeValidator(Refusal("needs the care_site table, which is not read"))]
MappedRefused = Annotated[
    None, BeforeValidator(Refusal("mapped concepts need the concept_relationship table, which is not read"))
]
GapDaysRefused = Annotated[
    None, BeforeValidator(Refusal("OHDSI's generator compares gap_days with the bounds of EraLength instead"))
]
GenderColumnRefused = Annotated[
    None,
    BeforeValidator(Refusal("OHDSI's generator looks the gender up in this set; list the concepts instead")),
]


#: Days that a date is moved by: more than a thousand years is a slip of the pen.
Days = Annotated[int, Field(ge=-366_000, le=366_000)]


class Concept(CirceModel):
    """One concept; only its number is used."""

    model_config = ConfigDict(alias_generator=str.upper)

    concept_id: int
    concept_name: str | None = None
    standard_concept: str | None = None
    standard_concept_caption: str | None = None
    invalid_reason: str | None = None
    invalid_reason_caption: str | None = None
    concept_code: str | None = None
    domain_id: str | None = None
    vocabulary_id: str | None = None
    concept_class_id: str | None = None


class ConceptSetItem(CirceModel):
    """A concept of a set: with its descendants, or taken out of the set."""

    model_config = ConfigDict(alias_generator=None)

    concept: Concept
    is_excluded: Flag = Field(False, alias="isExcluded")
    include_descendants: Flag = Field(False, alias="includeDescendants")
    include_mapped: MappedRefused = Field(None, alias="includeMapped")


class ConceptSetItems(CirceModel):
    model_config = ConfigDict(alias_generator=None)

    items: Several[ConceptSetItem] = ()


class ConceptSet(CirceModel):
    model_config = ConfigDict(alias_generator=None)

    id: int
    name: str | None = None
    expression: ConceptSetItems


class ConceptSetSelection(CirceModel):
    """Membership of a column in a concept set; without a set, whether the column has a value."""

    codeset_id: int | None = None
    is_exclusion: Flag = False


Operator = Literal["lt", "lte", "eq", "!eq", "gt", "gte", "bt", "!bt"]


def _check_ends(op: str, value: Any, extent: Any) -> None:
    if not op.endswith("bt"):
        return
    if extent is None:
        raise PydanticCustomError("no_extent", "Op {op} needs an Extent", {"op": op})
    if value > extent:
        raise PydanticCustomError("reversed", "Value is above Extent: no value can lie between")


class WholeRange(CirceModel):
    """A comparison of a whole number (ages, days, counts)."""

    op: Operator
    value: int
    extent: int | None = None

    @model_validator(mode="after")
    def _ends(self) -> WholeRange:
        _check_ends(self.op, self.value, self.extent)
        return self


class NumericRange(CirceModel):
    """A comparison of a measured value. OHDSI's SQL writes its bounds with four decimals."""

    op: Operator
    value: float
    extent: float | None = None

    @model_validator(mode="after")
    def _ends(self) -> NumericRange:
        _check_ends(self.op, self.value, self.extent)
        return self


class DateRange(CirceModel):
    op: Operator
    value: date
    extent: date | None = None

    @model_validator(mode="after")
    def _ends(self) -> DateRange:
        _check_ends(self.op, self.value, self.extent)
        return self


class TextFilter(CirceModel):
    text: str
    op: Literal["startsWith", "contains", "endsWith", "!startsWith", "!contains", "!endsWith"]


class Period(CirceModel):
    start_date: date | None = None
    end_date: date | None = None


def _capitalized(given: object) -> object:
    return given.capitalize() if isinstance(given, str) else given


class ResultLimit(CirceModel):
    """Which of the events count, in any case: Circe compares without it, and its own tests write ``all``."""

    type: Annotated[Literal["First", "Last", "All"], BeforeValidator(_capitalized)] = "First"


class DateAdjustment(CirceModel):
    start_with: Literal["START_DATE", "END_DATE"] = "START_DATE"
    start_offset: Days = 0
    end_with: Literal["START_DATE", "END_DATE"] = "END_DATE"
    end_offset: Days = 0


class Criteria(CirceModel):
    """What every domain has: a nested group about the event itself, and shifted dates."""

    correlated_criteria: Group | None = Field(None, alias="CorrelatedCriteria")
    date_adjustment: DateAdjustment | None = None


Concepts = Several[Concept]
Selection = ConceptSetSelection | None
Whole = WholeRange | None
Number = NumericRange | None
Dates = DateRange | None
Text = TextFilter | None


class ConditionOccurrence(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    occurrence_start_date: Dates = None
    occurrence_end_date: Dates = None
    condition_type: Concepts = ()
    condition_type_cs: Selection = None
    condition_type_exclude: Flag = False
    stop_reason: Text = None
    condition_source_concept: int | None = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    provider_specialty: ProviderRefused = None
    provider_specialty_cs: ProviderRefused = None
    visit_type: Concepts = ()
    visit_type_cs: Selection = None
    condition_status: Concepts = ()
    condition_status_cs: Selection = None


class ConditionEra(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    era_start_date: Dates = None
    era_end_date: Dates = None
    occurrence_count: Whole = None
    era_length: Whole = None
    age_at_start: Whole = None
    age_at_end: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None


class DrugExposure(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    occurrence_start_date: Dates = None
    occurrence_end_date: Dates = None
    drug_type: Concepts = ()
    drug_type_cs: Selection = None
    drug_type_exclude: Flag = False
    stop_reason: Text = None
    refills: Whole = None
    quantity: Number = None
    days_supply: Whole = None
    route_concept: Concepts = ()
    route_concept_cs: Selection = None
    effective_drug_dose: Number = None
    dose_unit: Concepts = ()
    dose_unit_cs: Selection = None
    lot_number: Text = None
    drug_source_concept: int | None = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    provider_specialty: ProviderRefused = None
    provider_specialty_cs: ProviderRefused = None
    visit_type: Concepts = ()
    visit_type_cs: Selection = None


class DrugEra(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    era_start_date: Dates = None
    era_end_date: Dates = None
    occurrence_count: Whole = None
    gap_days: GapDaysRefused = None
    era_length: Whole = None
    age_at_start: Whole = None
    age_at_end: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None


class ProcedureOccurrence(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    occurrence_start_date: Dates = None
    procedure_type: Concepts = ()
    procedure_type_cs: Selection = None
    procedure_type_exclude: Flag = False
    modifier: Concepts = ()
    modifier_cs: Selection = None
    quantity: Whole = None
    procedure_source_concept: int | None = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    provider_specialty: ProviderRefused = None
    provider_specialty_cs: ProviderRefused = None
    visit_type: Concepts = ()
    visit_type_cs: Selection = None


class Measurement(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    occurrence_start_date: Dates = None
    measurement_type: Concepts = ()
    measurement_type_cs: Selection = None
    measurement_type_exclude: Flag = False
    operator: Concepts = ()
    operator_cs: Selection = None
    value_as_number: Number = None
    value_as_concept: Concepts = ()
    value_as_concept_cs: Selection = None
    unit: Concepts = ()
    unit_cs: Selection = None
    range_low: Number = None
    range_high: Number = None
    range_low_ratio: Number = None
    range_high_ratio: Number = None
    abnormal: Flag = False
    measurement_source_concept: int | None = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    provider_specialty: ProviderRefused = None
    provider_specialty_cs: ProviderRefused = None
    visit_type: Concepts = ()
    visit_type_cs: Selection = None


class Observation(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    occurrence_start_date: Dates = None
    observation_type: Concepts = ()
    observation_type_cs: Selection = None
    observation_type_exclude: Flag = False
    value_as_number: Number = None
    value_as_string: Text = None
    value_as_concept: Concepts = ()
    value_as_concept_cs: Selection = None
    qualifier: Concepts = ()
    qualifier_cs: Selection = None
    unit: Concepts = ()
    unit_cs: Selection = None
    observation_source_concept: int | None = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    provider_specialty: ProviderRefused = None
    provider_specialty_cs: ProviderRefused = None
    visit_type: Concepts = ()
    visit_type_cs: Selection = None


class VisitOccurrence(Criteria):
    codeset_id: int | None = None
    first: Flag = False
    occurrence_start_date: Dates = None
    occurrence_end_date: Dates = None
    visit_type: Concepts = ()
    visit_type_cs: Selection = None
    visit_type_exclude: Flag = False
    visit_source_concept: int | None = None
    visit_length: Whole = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    provider_specialty: ProviderRefused = None
    provider_specialty_cs: ProviderRefused = None
    place_of_service: CareSiteRefused = None
    place_of_service_cs: CareSiteRefused = None
    place_of_service_location: CareSiteRefused = None


class Death(Criteria):
    codeset_id: int | None = None
    occurrence_start_date: Dates = None
    death_type: Concepts = ()
    death_type_cs: Selection = None
    death_type_exclude: Flag = False
    death_source_concept: int | None = None
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None


class ObservationPeriod(Criteria):
    first: Flag = False
    period_start_date: Dates = None
    period_end_date: Dates = None
    user_defined_period: Period | None = None
    period_type: Concepts = ()
    period_type_cs: Selection = None
    period_length: Whole = None
    age_at_start: Whole = None
    age_at_end: Whole = None


class EventCriteria(CirceModel):
    """One criterion on events: an object with exactly one key, the domain."""

    condition_era: ConditionEra | None = None
    condition_occurrence: ConditionOccurrence | None = None
    death: Death | None = None
    drug_era: DrugEra | None = None
    drug_exposure: DrugExposure | None = None
    measurement: Measurement | None = None
    observation: Observation | None = None
    observation_period: ObservationPeriod | None = None
    procedure_occurrence: ProcedureOccurrence | None = None
    visit_occurrence: VisitOccurrence | None = None

    @model_validator(mode="after")
    def _one_domain(self) -> EventCriteria:
        found = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(found) != 1:
            raise PydanticCustomError(
                "domain", "expected exactly one domain, found {found}", {"found": len(found)}
            )
        return self

    @property
    def criteria(self) -> Criteria:
        """The criterion of the one domain."""
        return next(value for name in type(self).model_fields if (value := getattr(self, name)) is not None)


class WindowEnd(CirceModel):
    """Days before (``coeff`` -1) or after (1) the index; no days: the end of the observation period."""

    days: Days | None = None
    coeff: Literal[-1, 1]

    @property
    def offset(self) -> int | None:
        """Signed days from the index date; None when unbounded."""
        return None if self.days is None else self.days * self.coeff


class Window(CirceModel):
    start: WindowEnd
    end: WindowEnd
    use_index_end: bool | None = None
    use_event_end: bool | None = None


CountColumn = Literal[
    "DAYS_SUPPLY",
    "DOMAIN_CONCEPT",
    "DURATION",
    "END_DATE",
    "ERA_OCCURRENCES",
    "QUANTITY",
    "RANGE_HIGH",
    "RANGE_LOW",
    "REFILLS",
    "START_DATE",
    "VALUE_AS_NUMBER",
    "VISIT_ID",
]


class Occurrence(CirceModel):
    """How many events: ``type`` 0 exactly, 1 at most, 2 at least ``count``."""

    type: Literal[0, 1, 2]
    count: Annotated[int, Field(ge=0)]
    is_distinct: Flag = False
    count_column: CountColumn | None = None


class CorrelatedCriteria(CirceModel):
    """Events counted around an index event."""

    criteria: EventCriteria
    start_window: Window
    end_window: Window | None = None
    occurrence: Occurrence
    restrict_visit: Flag = False
    ignore_observation_period: Flag = False


class DemographicCriteria(CirceModel):
    age: Whole = None
    gender: Concepts = ()
    gender_cs: Selection = None
    race: Concepts = ()
    race_cs: GenderColumnRefused = None
    ethnicity: Concepts = ()
    ethnicity_cs: GenderColumnRefused = None
    occurrence_start_date: Dates = None
    occurrence_end_date: Dates = None


class Group(CirceModel):
    """Criteria joined by ALL, ANY, AT_LEAST or AT_MOST ``count``. An empty group is met by every event."""

    type: Literal["ALL", "ANY", "AT_LEAST", "AT_MOST"] | None = None
    count: Annotated[int, Field(ge=0)] | None = None
    criteria_list: Several[CorrelatedCriteria] = ()
    demographic_criteria_list: Several[DemographicCriteria] = ()
    groups: Several[Group] = ()

    @model_validator(mode="after")
    def _complete(self) -> Group:
        if not self.is_empty and self.type is None:
            raise PydanticCustomError("no_type", "Type is missing: ALL, ANY, AT_LEAST or AT_MOST")
        if not self.is_empty and self.count is None and self.type in ("AT_LEAST", "AT_MOST"):
            raise PydanticCustomError("no_count", "{type} needs a Count", {"type": self.type})
        return self

    @property
    def is_empty(self) -> bool:
        """True without any criterion, demographic criterion or group."""
        return not (self.criteria_list or self.demographic_criteria_list or self.groups)


class InclusionRule(CirceModel):
    model_config = ConfigDict(alias_generator=None)

    name: str | None = None
    description: str | None = None
    expression: Group


class ObservationWindow(CirceModel):
    """Continuous observation asked for before and after the primary event, in days."""

    prior_days: Days = 0
    post_days: Days = 0


class PrimaryCriteria(CirceModel):
    criteria_list: Annotated[Several[EventCriteria], Field(min_length=1)]
    observation_window: ObservationWindow = ObservationWindow()
    primary_criteria_limit: ResultLimit = ResultLimit()


class DateOffset(CirceModel):
    """Exit a fixed number of days after the event's start or end, not after the observation period."""

    date_field: Literal["StartDate", "EndDate"] = "StartDate"
    offset: Days = 0


class CustomEra(CirceModel):
    """Exit with the end of the continuous drug era that holds the event's start."""

    drug_codeset_id: int
    gap_days: Days = 0
    offset: Days = 0
    days_supply_override: Days | None = None


class EndStrategy(CirceModel):
    date_offset: DateOffset | None = None
    custom_era: CustomEra | None = None

    @model_validator(mode="after")
    def _one(self) -> EndStrategy:
        if (self.date_offset is None) == (self.custom_era is None):
            raise PydanticCustomError("strategy", "expected exactly one of DateOffset and CustomEra")
        return self


class CollapseSettings(CirceModel):
    collapse_type: Literal["ERA"] = "ERA"
    era_pad: Annotated[int, Field(ge=0, le=366_000)] = 0


class CohortExpression(CirceModel):
    """One cohort definition."""

    cdm_version_range: str | None = Field(None, alias="cdmVersionRange")
    title: str | None = None
    primary_criteria: PrimaryCriteria
    additional_criteria: Group | None = None
    concept_sets: Several[ConceptSet] = ()
    qualified_limit: ResultLimit = ResultLimit()
    expression_limit: ResultLimit = ResultLimit()
    inclusion_rules: Annotated[Several[InclusionRule], Field(max_length=MOST_RULES)] = ()
    end_strategy: EndStrategy | None = None
    censoring_criteria: Several[EventCriteria] = ()
    collapse_settings: CollapseSettings = CollapseSettings()
    censor_window: Period | None = None


def read_expression(circe_json: str | Path | dict[str, Any]) -> CohortExpression:
    """Read a Circe cohort expression.

    Args:
        circe_json: path of a file, JSON text, or the parsed document.

    Raises:
        ConfigError: not JSON, or parts outside the subset; each with its path in the JSON.
    """
    name, document = _document(circe_json)
    try:
        expression = CohortExpression.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = [_problem(problem, document) for problem in error.errors(include_url=False)]
        raise _refusal(name, problems) from None
    problems = _codeset_problems(expression, document)
    if problems:
        raise _refusal(name, problems)
    return expression


def _document(circe_json: str | Path | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name for messages and the parsed document."""
    name, text = "the cohort expression", ""
    if isinstance(circe_json, dict):
        return name, circe_json
    if isinstance(circe_json, str) and circe_json.lstrip()[:1] in ("{", "["):
        text = circe_json
    else:
        name = str(circe_json)
        try:
            text = Path(circe_json).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(
                f"{name}: the file cannot be read ({error.strerror}).", remedy="Give a Circe JSON file."
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{name}: not UTF-8 text.", remedy="Give a Circe JSON file.") from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}).",
            file=name,
            remedy="Give a Circe JSON file.",
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(
            f"{name}: expected a JSON object with PrimaryCriteria at the top level.",
            file=name,
            field="PrimaryCriteria",
            remedy="Give a Circe JSON file.",
        )
    if "PrimaryCriteria" not in document and isinstance(document.get("expression"), dict | str):
        raise ConfigError(
            f"{name}: this is an Atlas definition around a cohort expression.",
            remedy="Give the value of `expression`.",
        )
    return name, document


def _refusal(name: str, problems: list[str]) -> ConfigError:
    more = len(problems) - SHOWN_PROBLEMS
    lines = problems[:SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])
    listed = "\n".join(f"  {line}" for line in lines)
    return ConfigError(
        f"{name}: {len(problems)} part{'s' * (len(problems) > 1)} outside the subset of Circe that is read "
        f"(docs/omop.md); nothing was computed.\n{listed}",
        file=name,
        value=problems[0],
        remedy="Leave these parts out, or write them as docs/omop.md has them.",
    )


def json_path(location: tuple[int | str, ...]) -> str:
    """``$.InclusionRules[0].expression`` for ("InclusionRules", 0, "expression")."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _problem(problem: Any, document: dict[str, Any]) -> str:
    location = tuple(problem["loc"])
    path = json_path(location)
    if problem["type"] == "missing":
        return f"{path}: is missing"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        if location[-1] in UNREAD_DOMAINS:
            return f"{path}: not supported; domains that are read: {', '.join(known)}"
        near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.8)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: not supported; {hint}"
    if problem["type"] == "outside_subset":
        return f"{path}: not supported; {problem['msg']}"
    found = problem["input"]
    shown = "" if isinstance(found, dict | list) else f" (found {str(json.dumps(found, default=str))[:60]})"
    return f"{path}: {problem['msg']}{shown}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys of the object at a location, from the models."""
    model: type[BaseModel] = CohortExpression
    for part in location:
        if isinstance(part, str):
            name = next(name for name, field in model.model_fields.items() if (field.alias or name) == part)
            model = _model_in(get_type_hints(model)[name])
    return [
        str(field.alias or name)
        for name, field in model.model_fields.items()
        if not any(isinstance(getattr(item, "func", None), Refusal) for item in field.metadata)
    ]


def _model_in(annotation: Any) -> type[BaseModel]:
    """The model that an annotation such as ``Several[Model] | None`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not BaseModel:
            return found
    return BaseModel


def _codeset_problems(expression: CohortExpression, document: dict[str, Any]) -> list[str]:
    """Concept sets named twice, and references to sets that the document does not define."""
    counted = Counter(concept_set.id for concept_set in expression.concept_sets)
    problems = [
        f"$.ConceptSets: the id {number} is given to {times} concept sets"
        for number, times in counted.items()
        if times > 1
    ]
    known = ", ".join(str(number) for number in sorted(counted)) or "none"
    for path, number in _codeset_references(document, "$"):
        if number is not None and number not in counted:
            problems.append(f"{path}: there is no concept set {number}; defined: {known}")
    return problems


def _codeset_references(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [found for k, item in enumerate(value) for found in _codeset_references(item, f"{path}[{k}]")]
    if not isinstance(value, dict):
        return []
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        if re.fullmatch(r"(Drug)?CodesetId|\w+SourceConcept", key):
            found.append((f"{path}.{key}", item))
        else:
            found.extend(_codeset_references(item, f"{path}.{key}"))
    return found
