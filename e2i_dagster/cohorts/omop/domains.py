"""What each event domain of Circe means on the OMOP tables: dates, identifiers and attributes as SQL.

Expressions use three aliases: ``r`` the row of the domain's table (with ``start_date`` and ``end_date``),
``p`` its person, ``v`` its visit. They are constants of this module; values of a definition are bound as
parameters (see :mod:`.sql_plan`). Source: the builders and templates of OHDSI circe-be.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from e2i_dagster.cohorts.omop import expression as circe

#: Columns that are read, with their type; those marked with ``*`` must be there.
TABLES: dict[str, dict[str, str]] = {
    "person": {
        "person_id*": "id",
        "year_of_birth": "id",
        "gender_concept_id": "id",
        "race_concept_id": "id",
        "ethnicity_concept_id": "id",
    },
    "observation_period": {
        "observation_period_id": "id",
        "person_id*": "id",
        "observation_period_start_date*": "date",
        "observation_period_end_date*": "date",
        "period_type_concept_id": "id",
    },
    "visit_occurrence": {
        "visit_occurrence_id*": "id",
        "person_id*": "id",
        "visit_concept_id": "id",
        "visit_start_date": "date",
        "visit_end_date": "date",
        "visit_type_concept_id": "id",
        "visit_source_concept_id": "id",
    },
    "condition_occurrence": {
        "condition_occurrence_id*": "id",
        "person_id*": "id",
        "condition_concept_id*": "id",
        "condition_start_date*": "date",
        "condition_end_date": "date",
        "condition_type_concept_id": "id",
        "condition_status_concept_id": "id",
        "stop_reason": "text",
        "visit_occurrence_id": "id",
        "condition_source_concept_id": "id",
    },
    "condition_era": {
        "condition_era_id*": "id",
        "person_id*": "id",
        "condition_concept_id*": "id",
        "condition_era_start_date*": "date",
        "condition_era_end_date*": "date",
        "condition_occurrence_count": "id",
    },
    "drug_exposure": {
        "drug_exposure_id*": "id",
        "person_id*": "id",
        "drug_concept_id*": "id",
        "drug_exposure_start_date*": "date",
        "drug_exposure_end_date": "date",
        "drug_type_concept_id": "id",
        "stop_reason": "text",
        "refills": "id",
        "quantity": "number",
        "days_supply": "id",
        "route_concept_id": "id",
        "effective_drug_dose": "number",
        "dose_unit_concept_id": "id",
        "lot_number": "text",
        "visit_occurrence_id": "id",
        "drug_source_concept_id": "id",
    },
    "drug_era": {
        "drug_era_id*": "id",
        "person_id*": "id",
        "drug_concept_id*": "id",
        "drug_era_start_date*": "date",
        "drug_era_end_date*": "date",
        "drug_exposure_count": "id",
    },
    "procedure_occurrence": {
        "procedure_occurrence_id*": "id",
        "person_id*": "id",
        "procedure_concept_id*": "id",
        "procedure_date*": "date",
        "procedure_type_concept_id": "id",
        "modifier_concept_id": "id",
        "quantity": "id",
        "visit_occurrence_id": "id",
        "procedure_source_concept_id": "id",
    },
    "measurement": {
        "measurement_id*": "id",
        "person_id*": "id",
        "measurement_concept_id*": "id",
        "measurement_date*": "date",
        "measurement_type_concept_id": "id",
        "operator_concept_id": "id",
        "value_as_number": "number",
        "value_as_concept_id": "id",
        "unit_concept_id": "id",
        "range_low": "number",
        "range_high": "number",
        "visit_occurrence_id": "id",
        "measurement_source_concept_id": "id",
    },
    "observation": {
        "observation_id*": "id",
        "person_id*": "id",
        "observation_concept_id*": "id",
        "observation_date*": "date",
        "observation_type_concept_id": "id",
        "value_as_number": "number",
        "value_as_string": "text",
        "value_as_concept_id": "id",
        "qualifier_concept_id": "id",
        "unit_concept_id": "id",
        "visit_occurrence_id": "id",
        "observation_source_concept_id": "id",
    },
    "death": {
        "person_id*": "id",
        "death_date*": "date",
        "death_type_concept_id": "id",
        "cause_concept_id": "id",
        "cause_source_concept_id": "id",
    },
    "concept_ancestor": {"ancestor_concept_id*": "id", "descendant_concept_id*": "id"},
    "concept": {"concept_id*": "id", "invalid_reason": "text"},
}

#: Measurement values that mean abnormally low and abnormally high.
ABNORMAL_CONCEPTS = (4155142, 4155143)

LENGTH = "datediff('day', r.start_date, r.end_date)"
AGE_AT_START = "year(r.start_date) - p.year_of_birth"
AGE_AT_END = "year(r.end_date) - p.year_of_birth"


@dataclass(frozen=True)
class Clause:
    """One attribute: the SQL expression that its value is compared with.

    ``negated_by`` names the flag of the criterion that turns membership into its opposite.
    """

    expression: str
    negated_by: str | None = None


@dataclass(frozen=True)
class Domain:
    """One event domain.

    Attributes:
        start, end: dates of an event over the raw columns of ``r``.
        visit: the visit that an event belongs to.
        counted: what ``Occurrence.CountColumn`` may count, as SQL.
        clauses: SQL expression of each attribute that filters events.
        source_concept: the attribute that names a set of source concepts, and its column.
    """

    table: str
    id_column: str
    start: str
    end: str
    concept: str | None
    source_concept: tuple[str, str] | None = None
    visit: str = "NULL::BIGINT"
    counted: dict[str, str] = field(default_factory=dict)
    clauses: dict[str, Clause] = field(default_factory=dict)


def _with_concepts(names: dict[str, Clause]) -> dict[str, Clause]:
    """Each attribute of a list of concepts has a twin ``*_cs`` that names a concept set."""
    return {**names, **{f"{name}_cs": Clause(clause.expression) for name, clause in names.items()}}


def _person(*, era: bool = False) -> dict[str, Clause]:
    ages = (
        {"age_at_start": Clause(AGE_AT_START), "age_at_end": Clause(AGE_AT_END)}
        if era
        else {"age": Clause(AGE_AT_START)}
    )
    return {**ages, **_with_concepts({"gender": Clause("p.gender_concept_id")})}


def _typed(prefix: str) -> dict[str, Clause]:
    return _with_concepts(
        {f"{prefix}_type": Clause(f"r.{prefix}_type_concept_id", negated_by=f"{prefix}_type_exclude")}
    )


START = {"occurrence_start_date": Clause("r.start_date")}
IN_VISIT = _with_concepts({"visit_type": Clause("v.visit_concept_id")})

DOMAINS: dict[type[circe.Criteria], Domain] = {
    circe.ConditionOccurrence: Domain(
        table="condition_occurrence",
        id_column="condition_occurrence_id",
        start="r.condition_start_date",
        end="coalesce(r.condition_end_date, r.condition_start_date + 1)",
        concept="condition_concept_id",
        source_concept=("condition_source_concept", "condition_source_concept_id"),
        visit="r.visit_occurrence_id",
        counted={"DOMAIN_CONCEPT": "r.condition_concept_id", "DURATION": LENGTH},
        clauses={
            **START,
            "occurrence_end_date": Clause("r.end_date"),
            **_typed("condition"),
            "stop_reason": Clause("r.stop_reason"),
            **_person(),
            **IN_VISIT,
            **_with_concepts({"condition_status": Clause("r.condition_status_concept_id")}),
        },
    ),
    circe.ConditionEra: Domain(
        table="condition_era",
        id_column="condition_era_id",
        start="r.condition_era_start_date",
        end="r.condition_era_end_date",
        concept="condition_concept_id",
        counted={
            "DOMAIN_CONCEPT": "r.condition_concept_id",
            "ERA_OCCURRENCES": "r.condition_occurrence_count",
            "DURATION": LENGTH,
        },
        clauses={
            "era_start_date": Clause("r.start_date"),
            "era_end_date": Clause("r.end_date"),
            "occurrence_count": Clause("r.condition_occurrence_count"),
            "era_length": Clause(LENGTH),
            **_person(era=True),
        },
    ),
    circe.DrugExposure: Domain(
        table="drug_exposure",
        id_column="drug_exposure_id",
        start="r.drug_exposure_start_date",
        end=(
            "coalesce(r.drug_exposure_end_date, r.drug_exposure_start_date + r.days_supply::INTEGER, "
            "r.drug_exposure_start_date + 1)"
        ),
        concept="drug_concept_id",
        source_concept=("drug_source_concept", "drug_source_concept_id"),
        visit="r.visit_occurrence_id",
        counted={
            "DAYS_SUPPLY": "r.days_supply",
            "DOMAIN_CONCEPT": "r.drug_concept_id",
            "DURATION": LENGTH,
            "QUANTITY": "r.quantity",
            "REFILLS": "r.refills",
        },
        clauses={
            **START,
            # OHDSI's generator compares the start, whatever the name says: same cohort as theirs.
            "occurrence_end_date": Clause("r.start_date"),
            **_typed("drug"),
            "stop_reason": Clause("r.stop_reason"),
            "refills": Clause("r.refills"),
            "quantity": Clause("r.quantity"),
            "days_supply": Clause("r.days_supply"),
            **_with_concepts({"route_concept": Clause("r.route_concept_id")}),
            "effective_drug_dose": Clause("r.effective_drug_dose"),
            **_with_concepts({"dose_unit": Clause("r.dose_unit_concept_id")}),
            "lot_number": Clause("r.lot_number"),
            **_person(),
            **IN_VISIT,
        },
    ),
    circe.DrugEra: Domain(
        table="drug_era",
        id_column="drug_era_id",
        start="r.drug_era_start_date",
        end="r.drug_era_end_date",
        concept="drug_concept_id",
        counted={
            "DOMAIN_CONCEPT": "r.drug_concept_id",
            "ERA_OCCURRENCES": "r.drug_exposure_count",
            "DURATION": LENGTH,
        },
        clauses={
            "era_start_date": Clause("r.start_date"),
            "era_end_date": Clause("r.end_date"),
            "occurrence_count": Clause("r.drug_exposure_count"),
            "era_length": Clause(LENGTH),
            **_person(era=True),
        },
    ),
    circe.ProcedureOccurrence: Domain(
        table="procedure_occurrence",
        id_column="procedure_occurrence_id",
        start="r.procedure_date",
        end="r.procedure_date + 1",
        concept="procedure_concept_id",
        source_concept=("procedure_source_concept", "procedure_source_concept_id"),
        visit="r.visit_occurrence_id",
        counted={"DOMAIN_CONCEPT": "r.procedure_concept_id", "DURATION": "1", "QUANTITY": "r.quantity"},
        clauses={
            **START,
            **_typed("procedure"),
            **_with_concepts({"modifier": Clause("r.modifier_concept_id")}),
            "quantity": Clause("r.quantity"),
            **_person(),
            **IN_VISIT,
        },
    ),
    circe.Measurement: Domain(
        table="measurement",
        id_column="measurement_id",
        start="r.measurement_date",
        end="r.measurement_date + 1",
        concept="measurement_concept_id",
        source_concept=("measurement_source_concept", "measurement_source_concept_id"),
        visit="r.visit_occurrence_id",
        counted={
            "DOMAIN_CONCEPT": "r.measurement_concept_id",
            "DURATION": "1",
            "VALUE_AS_NUMBER": "r.value_as_number",
            "RANGE_HIGH": "r.range_high",
            "RANGE_LOW": "r.range_low",
        },
        clauses={
            **START,
            **_typed("measurement"),
            **_with_concepts(
                {
                    "operator": Clause("r.operator_concept_id"),
                    "value_as_concept": Clause("r.value_as_concept_id"),
                    "unit": Clause("r.unit_concept_id"),
                }
            ),
            "value_as_number": Clause("r.value_as_number"),
            "range_low": Clause("r.range_low"),
            "range_high": Clause("r.range_high"),
            "range_low_ratio": Clause("r.value_as_number / nullif(r.range_low, 0)"),
            "range_high_ratio": Clause("r.value_as_number / nullif(r.range_high, 0)"),
            "abnormal": Clause(
                "(r.value_as_number < r.range_low OR r.value_as_number > r.range_high "
                f"OR r.value_as_concept_id IN {ABNORMAL_CONCEPTS})"
            ),
            **_person(),
            **IN_VISIT,
        },
    ),
    circe.Observation: Domain(
        table="observation",
        id_column="observation_id",
        start="r.observation_date",
        end="r.observation_date + 1",
        concept="observation_concept_id",
        source_concept=("observation_source_concept", "observation_source_concept_id"),
        visit="r.visit_occurrence_id",
        counted={
            "DOMAIN_CONCEPT": "r.observation_concept_id",
            "DURATION": "1",
            "VALUE_AS_NUMBER": "r.value_as_number",
        },
        clauses={
            **START,
            **_typed("observation"),
            "value_as_number": Clause("r.value_as_number"),
            "value_as_string": Clause("r.value_as_string"),
            **_with_concepts(
                {
                    "value_as_concept": Clause("r.value_as_concept_id"),
                    "qualifier": Clause("r.qualifier_concept_id"),
                    "unit": Clause("r.unit_concept_id"),
                }
            ),
            **_person(),
            **IN_VISIT,
        },
    ),
    circe.VisitOccurrence: Domain(
        table="visit_occurrence",
        id_column="visit_occurrence_id",
        start="r.visit_start_date",
        end="r.visit_end_date",
        concept="visit_concept_id",
        source_concept=("visit_source_concept", "visit_source_concept_id"),
        visit="r.visit_occurrence_id",
        counted={"DOMAIN_CONCEPT": "r.visit_concept_id", "DURATION": LENGTH},
        clauses={
            **START,
            "occurrence_end_date": Clause("r.end_date"),
            **_typed("visit"),
            "visit_length": Clause(LENGTH),
            **_person(),
        },
    ),
    circe.Death: Domain(
        table="death",
        id_column="person_id",
        start="r.death_date",
        end="r.death_date + 1",
        concept="cause_concept_id",
        source_concept=("death_source_concept", "cause_source_concept_id"),
        counted={"DOMAIN_CONCEPT": "coalesce(r.cause_concept_id, 0)", "DURATION": "1"},
        clauses={**START, **_typed("death"), **_person()},
    ),
    circe.ObservationPeriod: Domain(
        table="observation_period",
        id_column="observation_period_id",
        start="r.observation_period_start_date",
        end="r.observation_period_end_date",
        concept=None,
        counted={"DOMAIN_CONCEPT": "r.period_type_concept_id"},
        clauses={
            "period_start_date": Clause("r.start_date"),
            "period_end_date": Clause("r.end_date"),
            **_with_concepts({"period_type": Clause("r.period_type_concept_id")}),
            "period_length": Clause(LENGTH),
            "age_at_start": Clause(AGE_AT_START),
            "age_at_end": Clause(AGE_AT_END),
        },
    ),
}
