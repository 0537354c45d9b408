"""Random OMOP tables and Circe expressions, small enough to be checked person by person."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random
from typing import Any

from e2i_dagster.cohorts.omop import expression as circe
from e2i_dagster.cohorts.omop.domains import DOMAINS, TABLES

PERSONS = 6
DAYS = 120
ORIGIN = date(2000, 1, 1)
CONCEPTS = (1, 2, 3, 4)
#: Columns of events that take small whole numbers; all other concept columns take concepts or nothing.
SMALL = {
    "refills",
    "days_supply",
    "quantity",
    "value_as_number",
    "range_low",
    "range_high",
    "drug_exposure_count",
    "condition_occurrence_count",
    "effective_drug_dose",
}
COMPARED = ("lt", "lte", "eq", "!eq", "gt", "gte", "bt", "!bt")


def day(random: Random) -> str:
    return str(ORIGIN + timedelta(days=random.randrange(DAYS)))


def random_tables(random: Random, events: int = 6, ties: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Up to ``events`` rows per person and table; without ``ties`` a person has one event per day."""
    persons = range(1, PERSONS + 1)
    tables: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES if table != "concept"}
    number = 100
    for person in persons:
        tables["person"].append(
            {
                "person_id": person,
                "year_of_birth": random.choice((1979, 1980, 1981)),
                "gender_concept_id": random.choice((1, 2)),
                "race_concept_id": random.choice((1, 2, None)),
                "ethnicity_concept_id": random.choice((1, 2)),
            }
        )
        ends = sorted(random.sample(range(-20, DAYS + 40), random.choice((2, 4))))
        if random.random() < 0.6:
            ends = [-20, DAYS + 40]
        for begin, end in zip(ends[::2], ends[1::2], strict=True):
            number += 1
            tables["observation_period"].append(
                {
                    "observation_period_id": number,
                    "person_id": person,
                    "observation_period_start_date": str(ORIGIN + timedelta(days=begin)),
                    "observation_period_end_date": str(ORIGIN + timedelta(days=end)),
                    "period_type_concept_id": random.choice(CONCEPTS),
                }
            )
        days = random.sample(range(DAYS), DAYS)
        for domain in DOMAINS.values():
            if domain.table == "observation_period":
                continue
            rows = random.randint(0, 1 if domain.table == "death" else events)
            for _ in range(rows):
                number += 1
                start = random.randrange(DAYS) if ties else days.pop()
                tables[domain.table].append(_row(random, domain.table, number, person, start))
    tables["concept_ancestor"] = [
        {"ancestor_concept_id": above, "descendant_concept_id": below}
        for above, below in ((1, 1), (1, 2), (2, 2), (3, 3), (3, 4), (4, 4))
    ]
    return tables


def _row(random: Random, table: str, number: int, person: int, start: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, kind in TABLES[table].items():
        column, needed = key.removesuffix("*"), key.endswith("*")
        if column == "person_id":
            row[column] = person
        elif column == f"{table}_id":
            row[column] = number
        elif column == "visit_occurrence_id":
            row[column] = random.choice((None, 101, 102, 103, 110, 120))
        elif column.endswith("_end_date"):
            missing = not needed and table != "visit_occurrence" and random.random() < 0.3
            length = timedelta(days=start + random.randrange(25))
            row[column] = None if missing else str(ORIGIN + length)
        elif kind == "date":
            row[column] = str(ORIGIN + timedelta(days=start))
        elif column in SMALL:
            row[column] = random.choice((None, 0, 1, 5, 10))
        elif kind == "text":
            row[column] = random.choice((None, "ab", "bc", "abc"))
        elif column.endswith("_concept_id"):
            row[column] = random.choice(CONCEPTS if needed else (*CONCEPTS, None))
    return row


# ---- expressions ------------------------------------------------------------------------------------


def random_expression(random: Random, depth: int = 2) -> dict[str, Any]:
    sets = [
        {
            "id": number,
            "expression": {
                "items": [
                    {
                        "concept": {"CONCEPT_ID": concept},
                        "isExcluded": random.random() < 0.2,
                        "includeDescendants": random.random() < 0.3,
                    }
                    for concept in random.sample(CONCEPTS, random.randint(1, 3))
                ]
            },
        }
        for number in (0, 1, 2)
    ]
    document: dict[str, Any] = {
        "ConceptSets": sets,
        "PrimaryCriteria": {
            "CriteriaList": [_criteria(random, depth, few=True) for _ in range(random.randint(1, 2))],
            "ObservationWindow": {
                "PriorDays": random.choice((0, 0, 7)),
                "PostDays": random.choice((0, 0, 5)),
            },
            "PrimaryCriteriaLimit": {"Type": random.choice(("All", "All", "First", "Last"))},
        },
        "QualifiedLimit": {"Type": random.choice(("All", "First", "Last"))},
        "ExpressionLimit": {"Type": random.choice(("All", "All", "First", "Last"))},
        "InclusionRules": [
            {"name": f"rule {k}", "expression": _group(random, depth)}
            for k in range(random.choice((0, 1, 1, 2, 3)))
        ],
        "CollapseSettings": {"CollapseType": "ERA", "EraPad": random.choice((0, 0, 4))},
        "CensoringCriteria": [_criteria(random, 0, few=True) for _ in range(random.choice((0, 0, 1, 2)))],
    }
    if random.random() < 0.3:
        document["AdditionalCriteria"] = _group(random, depth)
    chosen = random.random()
    if chosen < 0.3:
        document["EndStrategy"] = {
            "DateOffset": {
                "DateField": random.choice(("StartDate", "EndDate")),
                "Offset": random.choice((-3, 0, 10, 50)),
            }
        }
    elif chosen < 0.6:
        era: dict[str, Any] = {
            "DrugCodesetId": random.choice((0, 1)),
            "GapDays": random.choice((0, 5, 20)),
            "Offset": random.choice((0, 3)),
        }
        if random.random() < 0.3:
            era["DaysSupplyOverride"] = 8
        document["EndStrategy"] = {"CustomEra": era}
    if random.random() < 0.3:
        document["CensorWindow"] = random.choice(
            (
                {"StartDate": "2000-02-01"},
                {"EndDate": "2000-03-15"},
                {"StartDate": "2000-02-01", "EndDate": "2000-03-15"},
            )
        )
    return document


def _group(random: Random, depth: int) -> dict[str, Any]:
    kind = random.choice(("ALL", "ANY", "ANY", "AT_LEAST", "AT_MOST"))
    group: dict[str, Any] = {
        "Type": kind,
        "CriteriaList": [_correlated(random, depth) for _ in range(random.randint(0, 2))],
        "DemographicCriteriaList": [_demographic(random) for _ in range(random.choice((0, 0, 0, 1)))],
        "Groups": [_group(random, depth - 1) for _ in range(random.choice((0, 0, 1)) if depth > 0 else 0)],
    }
    if kind.startswith("AT_"):
        group["Count"] = random.randint(0, 2)
    return group


def _demographic(random: Random) -> dict[str, Any]:
    return random.choice(
        (
            {"Age": _compared(random, (19, 20, 21))},
            {"Gender": [{"CONCEPT_ID": 1}]},
            {"GenderCS": {"CodesetId": 0, "IsExclusion": random.random() < 0.5}},
            {"Race": [{"CONCEPT_ID": 2}], "Ethnicity": [{"CONCEPT_ID": 1}]},
            {"OccurrenceStartDate": _dates(random)},
            {"OccurrenceEndDate": _dates(random)},
        )
    )


def _correlated(random: Random, depth: int) -> dict[str, Any]:
    criteria = _criteria(random, depth - 1)
    (name, inner), *_ = criteria.items()
    occurrence: dict[str, Any] = {
        "Type": random.choice((0, 1, 2, 2, 2)),
        "Count": random.choice((0, 1, 1, 2)),
    }
    if random.random() < 0.3 and "CorrelatedCriteria" not in inner:
        occurrence["IsDistinct"] = True
        known = ["START_DATE", "END_DATE", None, *(["VISIT_ID"] if name != "ConditionEra" else [])]
        domain = DOMAINS[getattr(circe, name)]
        occurrence["CountColumn"] = random.choice([*known, *domain.counted])
    criterion: dict[str, Any] = {
        "Criteria": criteria,
        "StartWindow": _window(random),
        "Occurrence": occurrence,
        "RestrictVisit": random.random() < 0.15,
        "IgnoreObservationPeriod": random.random() < 0.25,
    }
    if random.random() < 0.25:
        criterion["EndWindow"] = _window(random)
    return criterion


def _window(random: Random) -> dict[str, Any]:
    def end(coeff: int) -> dict[str, Any]:
        return {
            "Days": random.choice((None, 0, 3, 30, 60)),
            "Coeff": coeff if random.random() < 0.8 else -coeff,
        }

    window: dict[str, Any] = {"Start": end(-1), "End": end(1)}
    for flag in ("UseIndexEnd", "UseEventEnd"):
        if random.random() < 0.4:
            window[flag] = random.random() < 0.5
    return window


def _compared(random: Random, values: tuple[float, ...]) -> dict[str, Any]:
    op = random.choice(COMPARED)
    low, high = sorted(random.choice(values) for _ in range(2))
    return {"Op": op, "Value": low, **({"Extent": high} if op.endswith("bt") else {})}


def _dates(random: Random) -> dict[str, Any]:
    op = random.choice(COMPARED)
    low, high = sorted(day(random) for _ in range(2))
    return {"Op": op, "Value": low, **({"Extent": high} if op.endswith("bt") else {})}


def _criteria(random: Random, depth: int, few: bool = False) -> dict[str, Any]:
    """One domain with up to two attributes; primary ones (``few``) mostly with none, to find events."""
    model = random.choice(list(DOMAINS))
    domain = DOMAINS[model]
    inner: dict[str, Any] = {}
    if domain.concept is not None and random.random() < 0.6:
        inner["CodesetId"] = random.choice((0, 1, 2))
    if domain.source_concept is not None and random.random() < 0.1:
        inner[circe.circe_key(domain.source_concept[0])] = random.choice((0, 1))
    if "first" in model.model_fields and random.random() < 0.25:
        inner["First"] = True
    names = [name for name in domain.clauses if name != "abnormal"]
    for name in random.sample(names, min(len(names), random.choice((0, 0, 0, 1) if few else (0, 0, 1, 2)))):
        inner[circe.circe_key(name)] = _attribute(random, model, name)
        flag = domain.clauses[name].negated_by
        if flag is not None and random.random() < 0.3:
            inner[circe.circe_key(flag)] = True
    if model is circe.Measurement and random.random() < 0.1:
        # OHDSI's SQL reads value_as_concept_id only when it is asked for.
        inner.update({"Abnormal": True, "ValueAsConceptCS": {"IsExclusion": False}})
    if model is circe.ObservationPeriod and random.random() < 0.3:
        first, last = sorted(day(random) for _ in range(2))
        inner["UserDefinedPeriod"] = {"StartDate": first, "EndDate": last}
    if random.random() < 0.15:
        sides = ("START_DATE", "END_DATE")
        inner["DateAdjustment"] = {
            "StartWith": random.choice(sides),
            "StartOffset": random.choice((-5, 0, 3)),
            "EndWith": random.choice(sides),
            "EndOffset": random.choice((-5, 0, 3)),
        }
    if depth > 0 and random.random() < 0.2:
        inner["CorrelatedCriteria"] = _group(random, depth - 1)
    return {model.__name__: inner}


def _attribute(random: Random, model: type[circe.Criteria], name: str) -> Any:
    annotation = str(model.model_fields[name].annotation)
    if "WholeRange" in annotation:
        return _compared(random, (19, 20, 21) if "age" in name else (0, 1, 5, 10))
    if "NumericRange" in annotation:
        return _compared(random, (0.0, 0.5, 1.0, 5.0))
    if "DateRange" in annotation:
        return _dates(random)
    if "TextFilter" in annotation:
        ops = ("startsWith", "contains", "endsWith", "!startsWith", "!contains", "!endsWith")
        return {"Text": random.choice(("a", "b", "bc")), "Op": random.choice(ops)}
    if "ConceptSetSelection" in annotation:
        return {"CodesetId": random.choice((0, 1, None)), "IsExclusion": random.random() < 0.5}
    return [{"CONCEPT_ID": concept} for concept in random.sample(CONCEPTS, random.randint(1, 2))]
