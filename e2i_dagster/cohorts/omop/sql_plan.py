"""A cohort expression as one list of DuckDB statements for all persons at once.

The relations follow the SQL that OHDSI circe-be generates: primary events, qualified events, one relation
of events per inclusion rule, included events, cohort ends, collapsed eras. Every value of the definition
is a bound parameter; names of tables and columns come from :mod:`.domains` alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from e2i_dagster.cohorts.omop import expression as circe
from e2i_dagster.cohorts.omop.domains import DOMAINS, TABLES, Clause, Domain
from e2i_dagster.cohorts.omop.expression import circe_key
from e2i_dagster.errors import ConfigError

COMPARED = {"lt": "<", "lte": "<=", "eq": "=", "!eq": "<>", "gt": ">", "gte": ">="}
OCCURRENCE = {0: "=", 1: "<=", 2: ">="}
EXPOSURE_END = DOMAINS[circe.DrugExposure].end


@dataclass(frozen=True)
class Statement:
    """One SQL statement with its bound values."""

    sql: str
    values: dict[str, Any]


@dataclass
class Plan:
    """Statements in order, and what they read.

    Attributes:
        needed: table to the path in the definition that first asked for it.
        asked: (table, column) to the path of the attribute that filters by it.
        persons: table of the persons who can still enter, once the primary events are known.
        events: table of the events of each criterion (and column counted).
        values: everything bound so far.
    """

    statements: list[Statement] = field(default_factory=list)
    needed: dict[str, str] = field(default_factory=dict)
    asked: dict[tuple[str, str], str] = field(default_factory=dict)
    persons: str | None = None
    events: dict[tuple[circe.Criteria, str | None], str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: Any) -> str:
        """A parameter for ``value`` in the statement being written."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f"${name}"

    def run(self, sql: str) -> None:
        """End the statement being written."""
        used = set(re.findall(r"\$(v\d+)", sql))
        self.statements.append(
            Statement(sql, {name: value for name, value in self.values.items() if name in used})
        )

    def read(self, table: str, path: str) -> str:
        """Name of a table of the folder, noted as needed."""
        self.needed.setdefault(table, path)
        return f"cdm_{table}"


def compile_plan(expression: circe.CohortExpression) -> Plan:
    """The statements that leave ``cohort`` (person_id, start_date, end_date) and ``masked_events``.

    Raises:
        ConfigError: an occurrence counts a column that its domain does not have.
    """
    plan = Plan()
    plan.read("observation_period", "$.PrimaryCriteria")
    _concept_sets(plan, expression)
    _primary_events(plan, expression.primary_criteria)
    _qualified_events(plan, expression)
    _masked_events(plan, expression)
    _included_events(plan, expression)
    _cohort_ends(plan, expression)
    _eras(plan, expression)
    return plan


def _concept_sets(plan: Plan, expression: circe.CohortExpression) -> None:
    plan.run("CREATE TEMP TABLE codesets (codeset_id BIGINT, concept_id BIGINT)")
    plan.run("CREATE TEMP TABLE codeset_items (codeset_id BIGINT, concept_id BIGINT, excluded BOOLEAN)")
    for k, concept_set in enumerate(expression.concept_sets):
        for excluded in (False, True):
            items = [item for item in concept_set.expression.items if item.is_excluded == excluded]
            below = [item.concept.concept_id for item in items if item.include_descendants]
            number, flag = plan.bind(concept_set.id), plan.bind(excluded)
            own = plan.bind([item.concept.concept_id for item in items])
            plan.run(f"INSERT INTO codeset_items SELECT {number}, unnest({own}::BIGINT[]), {flag}")
            if below:
                table = plan.read("concept_ancestor", f"$.ConceptSets[{k}].expression (includeDescendants)")
                plan.run(
                    f"INSERT INTO codeset_items SELECT {number}, descendant_concept_id, {flag} FROM {table} "
                    f"WHERE ancestor_concept_id IN (SELECT unnest({plan.bind(below)}::BIGINT[])) "
                    "AND descendant_concept_id NOT IN "
                    "(SELECT concept_id FROM cdm_concept WHERE invalid_reason IS NOT NULL)"
                )
    plan.run(
        "INSERT INTO codesets SELECT DISTINCT codeset_id, concept_id FROM codeset_items i WHERE NOT excluded "
        "AND NOT EXISTS (SELECT 1 FROM codeset_items e WHERE e.excluded AND e.codeset_id = i.codeset_id "
        "AND e.concept_id = i.concept_id)"
    )


def _primary_events(plan: Plan, primary: circe.PrimaryCriteria) -> None:
    events = [
        _events(plan, criteria, f"$.PrimaryCriteria.CriteriaList[{k}]")
        for k, criteria in enumerate(primary.criteria_list)
    ]
    window = primary.observation_window
    union = " UNION ALL ".join(f"SELECT *, {k} AS criterion FROM {name}" for k, name in enumerate(events))
    limit = primary.primary_criteria_limit.type
    plan.run(
        f"""CREATE TEMP TABLE primary_events AS
        SELECT row_number() OVER () AS key, * FROM (
          SELECT e.person_id, e.start_date, e.end_date, e.visit_occurrence_id,
            op.observation_period_start_date AS op_start_date, op.observation_period_end_date AS op_end_date,
            row_number() OVER (PARTITION BY e.person_id ORDER BY e.sort_date {_order(limit)}, e.event_id,
              e.criterion, e.start_date, e.end_date, op.observation_period_start_date) AS ordinal
          FROM ({union}) e
          JOIN cdm_observation_period op ON op.person_id = e.person_id
            AND e.start_date >= op.observation_period_start_date
            AND e.start_date <= op.observation_period_end_date
          WHERE op.observation_period_start_date + {plan.bind(window.prior_days)}::INTEGER <= e.start_date
            AND e.start_date + {plan.bind(window.post_days)}::INTEGER <= op.observation_period_end_date
        ) {"" if limit == "All" else "WHERE ordinal = 1"}"""
    )
    plan.run("CREATE TEMP TABLE index_persons AS SELECT DISTINCT person_id FROM primary_events")
    plan.persons = "index_persons"


def _qualified_events(plan: Plan, expression: circe.CohortExpression) -> None:
    group, limit = expression.additional_criteria, expression.qualified_limit.type
    where = ""
    if group is not None and not group.is_empty:
        where = f"WHERE key IN ({_group(plan, group, 'primary_events', '$.AdditionalCriteria')})"
    first = "" if group is None or limit == "All" else "WHERE qualified_ordinal = 1"
    plan.run(
        f"""CREATE TEMP TABLE qualified_events AS SELECT * FROM (
          SELECT *, row_number() OVER (PARTITION BY person_id ORDER BY start_date {_order(limit)}, ordinal)
            AS qualified_ordinal
          FROM primary_events {where}) {first}"""
    )


def _masked_events(plan: Plan, expression: circe.CohortExpression) -> None:
    """Qualified events with ``mask``: bit i is set when inclusion rule i is met."""
    bits = ["SELECT NULL::BIGINT AS key, 0::BIGINT AS bit WHERE false"]
    for k, rule in enumerate(expression.inclusion_rules):
        met = _group(plan, rule.expression, "qualified_events", f"$.InclusionRules[{k}].expression")
        plan.run(f"CREATE TEMP TABLE rule_{k} AS {met}")
        bits.append(f"SELECT key, {1 << k}::BIGINT AS bit FROM rule_{k}")
    plan.run(
        f"""CREATE TEMP TABLE masked_events AS
        SELECT q.*, coalesce(m.mask, 0) AS mask FROM qualified_events q
        LEFT JOIN (SELECT key, bit_or(bit) AS mask FROM ({" UNION ALL ".join(bits)}) GROUP BY key) m
          ON m.key = q.key"""
    )


def _included_events(plan: Plan, expression: circe.CohortExpression) -> None:
    limit = expression.expression_limit.type
    plan.run(
        f"""CREATE TEMP TABLE included_events AS SELECT * FROM (
          SELECT *, row_number() OVER (PARTITION BY person_id ORDER BY start_date {_order(limit)}, ordinal)
            AS included_ordinal
          FROM masked_events WHERE mask = {plan.bind((1 << len(expression.inclusion_rules)) - 1)})
        {"" if limit == "All" else "WHERE included_ordinal = 1"}"""
    )


def _cohort_ends(plan: Plan, expression: circe.CohortExpression) -> None:
    """Each included event with its first end that is not before its start."""
    strategy = expression.end_strategy or circe.EndStrategy.model_construct()
    ends = []
    if strategy.date_offset is None:
        ends.append("SELECT key, op_end_date AS end_date FROM included_events")
    else:
        column = {"StartDate": "start_date", "EndDate": "end_date"}[strategy.date_offset.date_field]
        ends.append(
            f"SELECT key, least(op_end_date, {column} + {plan.bind(strategy.date_offset.offset)}::INTEGER) "
            "AS end_date FROM included_events"
        )
    if strategy.custom_era is not None:
        ends.append(_drug_eras(plan, strategy.custom_era))
    for k, criteria in enumerate(expression.censoring_criteria):
        events = _events(plan, criteria, f"$.CensoringCriteria[{k}]")
        ends.append(
            f"""SELECT i.key, min(c.start_date) AS end_date FROM included_events i
            JOIN {events} c ON c.person_id = i.person_id AND c.start_date >= i.start_date
              AND c.start_date <= i.op_end_date
            GROUP BY i.key"""
        )
    plan.run(
        f"""CREATE TEMP TABLE cohort_rows AS
        SELECT i.person_id, i.start_date, min(e.end_date) AS end_date FROM included_events i
        JOIN ({" UNION ALL ".join(ends)}) e ON e.key = i.key AND e.end_date >= i.start_date
        GROUP BY i.key, i.person_id, i.start_date"""
    )


def _drug_eras(plan: Plan, strategy: circe.CustomEra) -> str:
    table = plan.read("drug_exposure", "$.EndStrategy.CustomEra")
    end = EXPOSURE_END
    if strategy.days_supply_override is not None:
        end = f"r.drug_exposure_start_date + {plan.bind(strategy.days_supply_override)}::INTEGER"
    codeset = plan.bind(strategy.drug_codeset_id)
    gap, pad = plan.bind(strategy.gap_days), plan.bind(strategy.gap_days + strategy.offset)
    exposures = f"""SELECT r.person_id, r.drug_exposure_start_date AS start_date,
          {end} + {pad}::INTEGER AS end_date FROM {table} r
        WHERE r.person_id IN (SELECT person_id FROM included_events)
          AND (r.drug_concept_id IN (SELECT concept_id FROM codesets WHERE codeset_id = {codeset})
            OR r.drug_source_concept_id IN (SELECT concept_id FROM codesets WHERE codeset_id = {codeset}))"""
    return f"""SELECT i.key, era.end_date - {gap}::INTEGER AS end_date FROM included_events i
        JOIN ({_collapsed(exposures)}) era ON era.person_id = i.person_id
          AND i.start_date >= era.start_date AND i.start_date <= era.end_date - {gap}::INTEGER"""


def _eras(plan: Plan, expression: circe.CohortExpression) -> None:
    pad = plan.bind(expression.collapse_settings.era_pad)
    eras = _collapsed(f"SELECT person_id, start_date, end_date + {pad}::INTEGER AS end_date FROM cohort_rows")
    start, end = "start_date", f"end_date - {pad}::INTEGER"
    window = expression.censor_window or circe.Period()
    if window.start_date is not None:
        start = f"greatest(start_date, {plan.bind(window.start_date)}::DATE)"
    if window.end_date is not None:
        end = f"least({end}, {plan.bind(window.end_date)}::DATE)"
    censored = window.start_date is not None or window.end_date is not None
    plan.run(
        f"""CREATE TEMP TABLE cohort AS SELECT * FROM (
          SELECT person_id, {start} AS start_date, {end} AS end_date FROM ({eras}))
        {"WHERE start_date <= end_date" if censored else ""}"""
    )


def _collapsed(spans: str) -> str:
    """Overlapping or touching spans (person_id, start_date, end_date) of each person as one."""
    return f"""SELECT person_id, min(start_date) AS start_date, max(end_date) AS end_date FROM (
        SELECT person_id, start_date, end_date, sum(is_start) OVER (PARTITION BY person_id
          ORDER BY start_date, is_start DESC ROWS UNBOUNDED PRECEDING) AS era
        FROM (SELECT person_id, start_date, end_date,
            CASE WHEN max(end_date) OVER (PARTITION BY person_id ORDER BY start_date, end_date
              ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) >= start_date THEN 0 ELSE 1 END AS is_start
          FROM ({spans}))) GROUP BY person_id, era"""


def _group(plan: Plan, group: circe.Group, events: str, path: str) -> str:
    """SQL that gives the ``key`` of each event of the table ``events`` that meets the group."""
    if group.is_empty:
        return f"SELECT DISTINCT key FROM {events}"
    met = [
        *(
            _correlated(plan, criterion, events, f"{path}.CriteriaList[{k}]")
            for k, criterion in enumerate(group.criteria_list)
        ),
        *(
            _demographic(plan, criterion, events, f"{path}.DemographicCriteriaList[{k}]")
            for k, criterion in enumerate(group.demographic_criteria_list)
        ),
        *(_group(plan, inner, events, f"{path}.Groups[{k}]") for k, inner in enumerate(group.groups)),
    ]
    wanted = {
        "ALL": f"= {len(met)}",
        "ANY": "> 0",
        "AT_LEAST": f">= {group.count}",
        "AT_MOST": f"<= {group.count}",
    }[group.type or "ALL"]
    # Events that meet none of the criteria have no row to count, so they are joined from the left.
    none_is_enough = group.type == "AT_MOST" or (group.type == "AT_LEAST" and group.count == 0)
    join = "LEFT JOIN" if none_is_enough else "JOIN"
    union = " UNION ALL ".join(f"SELECT {k} AS criterion, key FROM ({query})" for k, query in enumerate(met))
    return (
        f"SELECT e.key FROM {events} e {join} ({union}) m ON m.key = e.key "
        f"GROUP BY e.key HAVING count(m.criterion) {wanted}"
    )


def _correlated(plan: Plan, criterion: circe.CorrelatedCriteria, index: str, path: str) -> str:
    occurrence = criterion.occurrence
    column = (occurrence.count_column or "DOMAIN_CONCEPT") if occurrence.is_distinct else None
    events = _events(plan, criterion.criteria, f"{path}.Criteria", counted=column, at=path)
    observed = not criterion.ignore_observation_period
    clauses = ["a.person_id = i.person_id"]
    if observed:
        clauses.append("a.start_date >= i.op_start_date AND a.start_date <= i.op_end_date")
    window = criterion.start_window
    event_date = "a.end_date" if window.use_event_end else "a.start_date"
    clauses += _window(plan, window, event_date, observed)
    if criterion.end_window is not None:
        window = criterion.end_window
        event_date = "a.start_date" if window.use_event_end is False else "a.end_date"
        clauses += _window(plan, window, event_date, observed)
    if criterion.restrict_visit:
        clauses.append("a.visit_occurrence_id = i.visit_occurrence_id")
    matched = f"SELECT i.key, a.counted FROM {index} i JOIN {events} a ON {' AND '.join(clauses)}"
    having = f"HAVING count({'DISTINCT m.counted' if column else 'm.key'}) " + (
        f"{OCCURRENCE[occurrence.type]} {occurrence.count}"
    )
    if occurrence.type == 1 or occurrence.count == 0:
        return f"SELECT i.key FROM {index} i LEFT JOIN ({matched}) m ON m.key = i.key GROUP BY i.key {having}"
    return f"SELECT m.key FROM ({matched}) m GROUP BY m.key {having}"


def _window(plan: Plan, window: circe.Window, event_date: str, observed: bool) -> list[str]:
    """Both ends inclusive; an end without days is the end of the observation period, if that counts."""
    index_date = "i.end_date" if window.use_index_end else "i.start_date"
    clauses = []
    for side, compare in ((window.start, ">="), (window.end, "<=")):
        if side.offset is not None:
            clauses.append(f"{event_date} {compare} {index_date} + {plan.bind(side.offset)}::INTEGER")
        elif observed:
            bound = "i.op_start_date" if side.coeff == -1 else "i.op_end_date"
            clauses.append(f"{event_date} {compare} {bound}")
    return clauses


def _demographic(plan: Plan, criterion: circe.DemographicCriteria, events: str, path: str) -> str:
    clauses = _clauses(
        plan,
        criterion,
        {
            "age": Clause("year(e.start_date) - p.year_of_birth"),
            "gender": Clause("p.gender_concept_id"),
            "gender_cs": Clause("p.gender_concept_id"),
            "race": Clause("p.race_concept_id"),
            "ethnicity": Clause("p.ethnicity_concept_id"),
            "occurrence_start_date": Clause("e.start_date"),
            "occurrence_end_date": Clause("e.end_date"),
        },
        path,
        None,
    )
    person = plan.read("person", path)
    where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    return f"SELECT e.key FROM {events} e JOIN {person} p ON p.person_id = e.person_id {where} GROUP BY e.key"


def _events(
    plan: Plan,
    event: circe.EventCriteria,
    path: str,
    *,
    counted: str | None = None,
    at: str = "",
) -> str:
    """Name of the table of a criterion's events; equal criteria share one.

    Columns: person_id, event_id, start_date, end_date, visit_occurrence_id, sort_date, counted.
    """
    criteria = event.criteria
    if (criteria, counted) in plan.events:
        return plan.events[criteria, counted]
    domain = DOMAINS[type(criteria)]
    path = f"{path}.{type(criteria).__name__}"
    name = f"events_{len(plan.events)}"
    plan.events[criteria, counted] = name
    sql = _event_query(plan, criteria, domain, path, _counted(domain, counted, criteria, at))
    group = criteria.correlated_criteria
    if group is None or not _has_group(criteria):
        plan.run(f"CREATE TEMP TABLE {name} AS {sql}")
        return name
    plan.run(f"CREATE TEMP TABLE {name}_alone AS {sql}")
    plan.run(
        f"""CREATE TEMP TABLE {name}_observed AS
        SELECT q.event_key AS key, q.person_id, q.start_date, q.end_date, q.visit_occurrence_id,
          op.observation_period_start_date AS op_start_date, op.observation_period_end_date AS op_end_date
        FROM {name}_alone q JOIN cdm_observation_period op ON op.person_id = q.person_id
          AND op.observation_period_start_date <= q.start_date
          AND op.observation_period_end_date >= q.start_date"""
    )
    met = _group(plan, group, f"{name}_observed", f"{path}.CorrelatedCriteria")
    alone = f"SELECT * EXCLUDE (event_key) FROM {name}_alone"
    plan.run(f"CREATE TEMP TABLE {name} AS {alone} WHERE event_key IN ({met})")
    return name


def _has_group(criteria: circe.Criteria) -> bool:
    return criteria.correlated_criteria is not None and not criteria.correlated_criteria.is_empty


def _counted(domain: Domain, column: str | None, criteria: circe.Criteria, path: str) -> str:
    """SQL of the column that distinct occurrences are counted by, over ``r``."""
    if column is None:
        return "NULL::BIGINT"
    known = {"START_DATE": "r.start_date", "END_DATE": "r.end_date", **domain.counted}
    if not isinstance(criteria, circe.ConditionEra):
        known["VISIT_ID"] = domain.visit
    if column not in known:
        raise ConfigError(
            f"the cohort expression: {path}.Occurrence.CountColumn: {column} does not exist in "
            f"{type(criteria).__name__}.",
            field=f"{path}.Occurrence.CountColumn",
            value=column,
            remedy=f"Use one of: {', '.join(sorted(known))}.",
        )
    return known[column]


def _event_query(plan: Plan, criteria: circe.Criteria, domain: Domain, path: str, counted: str) -> str:
    table = plan.read(domain.table, path)
    start, end = _dates(plan, criteria, domain)
    key = "row_number() OVER () AS event_key, " if _has_group(criteria) else ""
    inner = [f"r.person_id IN (SELECT person_id FROM {plan.persons})"] if plan.persons else []
    for attribute, column in (("codeset_id", domain.concept), domain.source_concept or ("", None)):
        number = getattr(criteria, attribute, None)
        if number is not None and column is not None:
            inner.append(
                f"r.{column} IN (SELECT concept_id FROM codesets WHERE codeset_id = {plan.bind(number)})"
            )
            plan.asked.setdefault((domain.table, column), f"{path}.{circe_key(attribute)}")
    outer = _clauses(plan, criteria, domain.clauses, path, domain.table)
    if criteria.date_adjustment is not None:
        outer.append("r.end_date >= r.start_date")
    first = ""
    if getattr(criteria, "first", False):
        first = (
            f", row_number() OVER (PARTITION BY r.person_id ORDER BY {domain.start}, r.{domain.id_column}) "
            "AS first_ordinal"
        )
        outer.append("r.first_ordinal = 1")
    shown_start, shown_end = "r.start_date", "r.end_date"
    period = getattr(criteria, "user_defined_period", None)
    if period is not None:
        for day in (period.start_date, period.end_date):
            if day is not None:
                outer.append(f"{plan.bind(day)}::DATE BETWEEN r.start_date AND r.end_date")
        shown_start = shown_start if period.start_date is None else f"{plan.bind(period.start_date)}::DATE"
        shown_end = shown_end if period.end_date is None else f"{plan.bind(period.end_date)}::DATE"
    joins = ""
    if any(re.search(r"\bp\.", clause) for clause in outer):
        joins += f" JOIN {plan.read('person', path)} p ON p.person_id = r.person_id"
    if any(re.search(r"\bv\.", clause) for clause in outer):
        joins += (
            f" JOIN {plan.read('visit_occurrence', path)} v "
            "ON v.visit_occurrence_id = r.visit_occurrence_id AND v.person_id = r.person_id"
        )
    return f"""SELECT {key}r.person_id, r.{domain.id_column} AS event_id,
          {shown_start} AS start_date, {shown_end} AS end_date, {domain.visit} AS visit_occurrence_id,
          r.start_date AS sort_date, {counted} AS counted
        FROM (SELECT r.*, {start} AS start_date, {end} AS end_date{first} FROM {table} r
          {f"WHERE {' AND '.join(inner)}" if inner else ""}) r{joins}
        {f"WHERE {' AND '.join(outer)}" if outer else ""}"""


def _dates(plan: Plan, criteria: circe.Criteria, domain: Domain) -> tuple[str, str]:
    """Start and end of an event over the raw row, shifted as the criterion says."""
    adjustment = criteria.date_adjustment
    if adjustment is None:
        return domain.start, domain.end
    sides = {"START_DATE": domain.start, "END_DATE": domain.end}
    start, end = sides[adjustment.start_with], sides[adjustment.end_with]
    if isinstance(criteria, circe.Death):
        start, end = domain.start, domain.end  # a death has one date, whatever the adjustment starts with
    return (
        f"{start} + {plan.bind(adjustment.start_offset)}::INTEGER",
        f"{end} + {plan.bind(adjustment.end_offset)}::INTEGER",
    )


def _clauses(
    plan: Plan, criteria: circe.CirceModel, known: dict[str, Clause], path: str, table: str | None
) -> list[str]:
    """SQL of every attribute of the criterion that is set."""
    clauses = []
    for name, clause in known.items():
        value = getattr(criteria, name)
        if value is None or value == () or value is False:
            continue
        negated = clause.negated_by is not None and getattr(criteria, clause.negated_by)
        clauses.append(_clause(plan, clause.expression, value, negated))
        for alias, column in re.findall(r"\b([rpv])\.(\w+)", clause.expression):
            source = {"r": table, "p": "person", "v": "visit_occurrence"}[alias]
            if source is not None and any(column in (key, key[:-1]) for key in TABLES[source]):
                plan.asked.setdefault((source, column), f"{path}.{circe_key(name)}")
    return clauses


def _clause(plan: Plan, expression: str, value: Any, negated: bool) -> str:
    if isinstance(value, circe.ConceptSetSelection) and value.codeset_id is None:
        return f"{expression} IS {'' if value.is_exclusion else 'NOT'} NULL"
    if isinstance(value, circe.ConceptSetSelection):
        return (
            f"{expression} {'NOT' if value.is_exclusion else ''} IN "
            f"(SELECT concept_id FROM codesets WHERE codeset_id = {plan.bind(value.codeset_id)})"
        )
    if isinstance(value, tuple):
        numbers = plan.bind([concept.concept_id for concept in value])
        return f"{expression} {'NOT' if negated else ''} IN (SELECT unnest({numbers}::BIGINT[]))"
    if isinstance(value, circe.TextFilter):
        before = "%" if value.op.endswith(("endsWith", "contains")) else ""
        after = "%" if value.op.endswith(("startsWith", "contains")) else ""
        pattern = plan.bind(f"{before}{value.text}{after}")
        return f"{expression} {'NOT' if value.op.startswith('!') else ''} LIKE {pattern}"
    if isinstance(value, circe.WholeRange | circe.NumericRange | circe.DateRange):
        return _compared(plan, expression, value)
    return expression  # a flag, such as Abnormal


def _compared(
    plan: Plan, expression: str, value: circe.WholeRange | circe.NumericRange | circe.DateRange
) -> str:
    kind = "DATE" if isinstance(value, circe.DateRange) else "DOUBLE"
    low = f"{plan.bind(_bound(value.value))}::{kind}"
    if not value.op.endswith("bt"):
        return f"{expression} {COMPARED[value.op]} {low}"
    high = f"{plan.bind(_bound(value.extent))}::{kind}"
    return f"{'NOT ' if value.op.startswith('!') else ''}({expression} BETWEEN {low} AND {high})"


def _bound(value: Any) -> Any:
    """Measured bounds have four decimals, as in the SQL that OHDSI generates."""
    if isinstance(value, float):
        return float(Decimal(str(value)).quantize(Decimal("0.0001"), ROUND_HALF_UP))
    return value


def _order(limit: str) -> str:
    return "DESC" if limit == "Last" else "ASC"
