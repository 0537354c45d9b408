"""A cohort expression evaluated person by person, in plain Python: slow, and nothing of it is shared.

It states what Circe means in words of its own; the engine must give the same answer for every definition.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One event of a domain; ``count`` holds what distinct occurrences may be counted by."""

    number: int
    start: date
    end: date | None
    visit: int | None
    sort: date
    count: dict[str, Any]


@dataclass(frozen=True)
class Index:
    """An event that others are counted around, in its observation period."""

    start: date
    end: date | None
    visit: int | None
    observed: tuple[date, date]


#: Table, column of the concept, column and end of the dates, counted columns.
DATES = {
    "ConditionOccurrence": ("condition_occurrence", "condition_concept_id", "condition_start_date"),
    "ConditionEra": ("condition_era", "condition_concept_id", "condition_era_start_date"),
    "DrugExposure": ("drug_exposure", "drug_concept_id", "drug_exposure_start_date"),
    "DrugEra": ("drug_era", "drug_concept_id", "drug_era_start_date"),
    "ProcedureOccurrence": ("procedure_occurrence", "procedure_concept_id", "procedure_date"),
    "Measurement": ("measurement", "measurement_concept_id", "measurement_date"),
    "Observation": ("observation", "observation_concept_id", "observation_date"),
    "VisitOccurrence": ("visit_occurrence", "visit_concept_id", "visit_start_date"),
    "Death": ("death", "cause_concept_id", "death_date"),
    "ObservationPeriod": ("observation_period", None, "observation_period_start_date"),
}
COLUMNS = {
    "Refills": "refills",
    "Quantity": "quantity",
    "DaysSupply": "days_supply",
    "EffectiveDrugDose": "effective_drug_dose",
    "ValueAsNumber": "value_as_number",
    "RangeLow": "range_low",
    "RangeHigh": "range_high",
    "RouteConcept": "route_concept_id",
    "DoseUnit": "dose_unit_concept_id",
    "ConditionStatus": "condition_status_concept_id",
    "Modifier": "modifier_concept_id",
    "Operator": "operator_concept_id",
    "ValueAsConcept": "value_as_concept_id",
    "Unit": "unit_concept_id",
    "Qualifier": "qualifier_concept_id",
    "StopReason": "stop_reason",
    "LotNumber": "lot_number",
    "ValueAsString": "value_as_string",
}
#: Keys of a criterion that are no filter of their own.
STRUCTURE = {"CodesetId", "First", "CorrelatedCriteria", "DateAdjustment", "UserDefinedPeriod"}


class Interpreter:
    """The expression ``document`` over ``tables`` (rows with ISO dates)."""

    def __init__(self, document: Row, tables: dict[str, list[Row]]) -> None:
        self.document = document
        self.below: dict[int, set[int]] = {}
        for row in tables["concept_ancestor"]:
            self.below.setdefault(row["ancestor_concept_id"], set()).add(row["descendant_concept_id"])
        self.sets = {one["id"]: self.concepts(one) for one in document["ConceptSets"]}
        self.tables = tables
        self.person: Row = {}
        self.rows: dict[str, list[Row]] = {}

    def concepts(self, concept_set: Row) -> set[int]:
        found: dict[bool, set[int]] = {True: set(), False: set()}
        for item in concept_set["expression"]["items"]:
            concept = item["concept"]["CONCEPT_ID"]
            found[item["isExcluded"]] |= {concept}
            if item["includeDescendants"]:
                found[item["isExcluded"]] |= self.below.get(concept, set())
        return found[False] - found[True]

    # ---- the whole ----------------------------------------------------------------------------------

    def answer(self) -> tuple[list[tuple[int, str, str]], dict[int, int], dict[int, int]]:
        """Cohort rows, persons by mask of the best event, events by mask."""
        rows: list[tuple[int, str, str]] = []
        by_person: Counter[int] = Counter()
        by_event: Counter[int] = Counter()
        for person in self.tables["person"]:
            self.person = person
            self.rows = {
                table: [row for row in all_rows if row.get("person_id") == person["person_id"]]
                for table, all_rows in self.tables.items()
            }
            qualified = self.qualified()
            rules = self.document.get("InclusionRules", [])
            masks = [
                sum(1 << k for k, rule in enumerate(rules) if self.meets(rule["expression"], index))
                for index in qualified
            ]
            included = [i for i, mask in zip(qualified, masks, strict=True) if mask == (1 << len(rules)) - 1]
            included = self.limited(included, self.document["ExpressionLimit"]["Type"])
            spans = [(index.start, end) for index in included if (end := self.exit(index)) is not None]
            rows += [(person["person_id"], *span) for span in self.collapsed(spans)]
            by_event.update(masks if rules else [])
            if rules and masks:
                ranked = sorted(
                    zip(masks, qualified, strict=True),
                    key=lambda pair: (-pair[0].bit_count(), pair[0] & -pair[0], pair[1].start),
                )
                by_person[ranked[0][0]] += 1
        return sorted(rows), dict(by_person), dict(by_event)

    def qualified(self) -> list[Index]:
        primary = self.document["PrimaryCriteria"]
        window, limit = primary["ObservationWindow"], primary["PrimaryCriteriaLimit"]["Type"]
        before, after = (timedelta(days=window[key]) for key in ("PriorDays", "PostDays"))
        found = [
            (event.sort, event.number, k, Index(event.start, event.end, event.visit, observed))
            for k, criteria in enumerate(primary["CriteriaList"])
            for event in self.events(criteria)
            for observed in self.periods(event.start)
            if observed[0] + before <= event.start and event.start + after <= observed[1]
        ]
        found.sort(key=lambda one: (one[1], one[2]))
        found.sort(key=lambda one: one[0], reverse=limit == "Last")
        events = [index for *_, index in found][: None if limit == "All" else 1]
        group = self.document.get("AdditionalCriteria")
        if group is None:
            return events
        events = [index for index in events if self.meets(group, index)]
        return self.limited(events, self.document["QualifiedLimit"]["Type"])

    @staticmethod
    def limited(events: list[Index], limit: str) -> list[Index]:
        ordered = sorted(events, key=lambda index: index.start, reverse=limit == "Last")
        return events if limit == "All" else ordered[:1]

    def periods(self, day: date) -> list[tuple[date, date]]:
        spans = [
            (when(row["observation_period_start_date"]), when(row["observation_period_end_date"]))
            for row in self.rows["observation_period"]
        ]
        return [span for span in spans if span[0] <= day <= span[1]]

    # ---- exits --------------------------------------------------------------------------------------

    def exit(self, index: Index) -> date | None:
        ends = []
        strategy = self.document.get("EndStrategy", {})
        offset = strategy.get("DateOffset")
        if offset is None:
            ends.append(index.observed[1])
        else:
            day = index.start if offset["DateField"] == "StartDate" else index.end
            last = index.observed[1]
            ends.append(last if day is None else min(last, day + timedelta(days=offset["Offset"])))
        if "CustomEra" in strategy:
            ends += self.exposed_until(index.start, strategy["CustomEra"])
        for criteria in self.document.get("CensoringCriteria", []):
            ends += [
                event.start
                for event in self.events(criteria)
                if index.start <= event.start <= index.observed[1]
            ]
        return min((end for end in ends if end >= index.start), default=None)

    def exposed_until(self, day: date, era: Row) -> list[date]:
        wanted, gap = self.sets[era["DrugCodesetId"]], timedelta(days=era["GapDays"])
        reach: list[list[date]] = []
        for row in self.rows["drug_exposure"]:
            if row["drug_concept_id"] in wanted or row["drug_source_concept_id"] in wanted:
                start = when(row["drug_exposure_start_date"])
                end = exposure_end(row)
                if "DaysSupplyOverride" in era:
                    end = start + timedelta(days=era["DaysSupplyOverride"])
                reach.append([start, end + gap + timedelta(days=era["Offset"])])
        return [end - gap for start, end in merged(reach) if start <= day <= end - gap]

    def collapsed(self, spans: list[tuple[date, date]]) -> list[tuple[str, str]]:
        pad = timedelta(days=self.document["CollapseSettings"]["EraPad"])
        window = self.document.get("CensorWindow", {})
        shown = []
        for start, end in merged([[start, end + pad] for start, end in spans]):
            first = max(start, when(window.get("StartDate", "1900-01-01")))
            last = min(end - pad, when(window.get("EndDate", "2900-01-01")))
            if first <= last:
                shown.append((str(first), str(last)))
        return shown

    # ---- groups -------------------------------------------------------------------------------------

    def meets(self, group: Row, index: Index) -> bool:
        met = [self.counted(one, index) for one in group["CriteriaList"]]
        met += [self.is_like(one, index) for one in group.get("DemographicCriteriaList", [])]
        met += [self.meets(one, index) for one in group.get("Groups", [])]
        if not met:
            return True
        return {
            "ALL": all(met),
            "ANY": any(met),
            "AT_LEAST": sum(met) >= group.get("Count", 0),
            "AT_MOST": sum(met) <= group.get("Count", 0),
        }[group["Type"]]

    def counted(self, criterion: Row, index: Index) -> bool:
        occurrence = criterion["Occurrence"]
        events = [one for one in self.events(criterion["Criteria"]) if self.near(one, criterion, index)]
        number = len(events)
        if occurrence.get("IsDistinct"):
            column = occurrence.get("CountColumn") or "DOMAIN_CONCEPT"
            number = len({one.count[column] for one in events} - {None})
        wanted = occurrence["Count"]
        # An event around which nothing is found is only looked at when none may be enough.
        if number == 0 and not (occurrence["Type"] == 1 or wanted == 0) and not events:
            return False
        return {0: number == wanted, 1: number <= wanted, 2: number >= wanted}[occurrence["Type"]]

    @staticmethod
    def near(event: Event, criterion: Row, index: Index) -> bool:
        observed = not criterion["IgnoreObservationPeriod"]
        first, last = index.observed
        if observed and not first <= event.start <= last:
            return False
        if criterion["RestrictVisit"] and (event.visit is None or event.visit != index.visit):
            return False
        for key, by_end in (("StartWindow", False), ("EndWindow", True)):
            window = criterion.get(key)
            if window is None:
                continue
            day = event.end if window.get("UseEventEnd", by_end) else event.start
            around = index.end if window.get("UseIndexEnd") else index.start
            for side, sign in (("Start", 1), ("End", -1)):
                days, coeff = window[side]["Days"], window[side]["Coeff"]
                if days is None:
                    if not observed:
                        continue
                    bound = first if coeff == -1 else last
                elif around is None:
                    return False
                else:
                    bound = around + timedelta(days=days * coeff)
                if day is None or (day - bound).days * sign < 0:
                    return False
        return True

    def is_like(self, criterion: Row, index: Index) -> bool:
        for key, wanted in criterion.items():
            value = {
                "Age": index.start.year - self.person["year_of_birth"],
                "OccurrenceStartDate": index.start,
                "OccurrenceEndDate": index.end,
            }.get(key, self.person.get(f"{key.removesuffix('CS').lower()}_concept_id"))
            if not self.fits(value, wanted):
                return False
        return True

    # ---- events -------------------------------------------------------------------------------------

    def events(self, criteria: Row) -> list[Event]:
        ((domain, inner),) = criteria.items()
        table, concept, start_column = DATES[domain]
        source = next((key for key in inner if key.endswith("SourceConcept")), None)
        rows = [
            row
            for row in self.rows[table]
            if inner.get("CodesetId") is None or row[concept or ""] in self.sets[inner["CodesetId"]]
        ]
        if source is not None:
            column = "cause_source_concept_id" if domain == "Death" else f"{snake(source)}_id"
            rows = [row for row in rows if row[column] in self.sets[inner[source]]]
        rows.sort(key=lambda row: (row[start_column], row.get(f"{table}_id", 0)))
        if inner.get("First"):
            rows = rows[:1]
        found = []
        for row in rows:
            start, end = self.dates(domain, row)
            adjustment = inner.get("DateAdjustment")
            if adjustment is not None:
                sides = {"START_DATE": start, "END_DATE": end}
                begin = start if domain == "Death" else sides[adjustment["StartWith"]]
                last = end if domain == "Death" else sides[adjustment["EndWith"]]
                if begin is None or last is None:
                    continue
                start = begin + timedelta(days=adjustment["StartOffset"])
                end = last + timedelta(days=adjustment["EndOffset"])
                if end < start:
                    continue
            if not all(
                self.passes(domain, row, start, end, key, value, inner)
                for key, value in inner.items()
                if key not in STRUCTURE and not key.endswith(("SourceConcept", "Exclude"))
            ):
                continue
            period = inner.get("UserDefinedPeriod")
            shown = (start, end)
            if period is not None:
                if end is None or any(not start <= when(day) <= end for day in period.values()):
                    continue
                shown = (when(period["StartDate"]), when(period["EndDate"]))
            event = self.event(domain, row, start, shown)
            group = inner.get("CorrelatedCriteria")
            if group is None or self.is_empty(group) or self.meets_itself(group, event):
                found.append(event)
        return found

    @staticmethod
    def is_empty(group: Row) -> bool:
        return not (group["CriteriaList"] or group.get("DemographicCriteriaList") or group.get("Groups"))

    def meets_itself(self, group: Row, event: Event) -> bool:
        return any(
            self.meets(group, Index(event.start, event.end, event.visit, observed))
            for observed in self.periods(event.start)
        )

    def event(self, domain: str, row: Row, sort: date, shown: tuple[date, date | None]) -> Event:
        table, concept, _ = DATES[domain]
        start, end = shown
        visit = None if domain in ("ConditionEra", "DrugEra", "Death") else row.get("visit_occurrence_id")
        one_day = domain in ("ProcedureOccurrence", "Measurement", "Observation", "Death")
        count = {
            "START_DATE": start,
            "END_DATE": end,
            "VISIT_ID": visit,
            "DURATION": 1 if one_day else None if end is None else (end - start).days,
            "DOMAIN_CONCEPT": row["period_type_concept_id"] if concept is None else row[concept],
            "ERA_OCCURRENCES": row.get("condition_occurrence_count", row.get("drug_exposure_count")),
            **{
                key: row.get(key.lower()) for key in ("DAYS_SUPPLY", "QUANTITY", "REFILLS", "VALUE_AS_NUMBER")
            },
            **{key: row.get(key.lower()) for key in ("RANGE_LOW", "RANGE_HIGH")},
        }
        if domain == "Death":
            count["DOMAIN_CONCEPT"] = row["cause_concept_id"] or 0
        number = row["person_id"] if domain == "Death" else row[f"{table}_id"]
        return Event(number, start, end, visit, sort, count)

    @staticmethod
    def dates(domain: str, row: Row) -> tuple[date, date | None]:
        start = when(row[DATES[domain][2]])
        if domain == "DrugExposure":
            return start, exposure_end(row)
        if domain == "ConditionOccurrence" and row["condition_end_date"] is None:
            return start, start + timedelta(days=1)
        end = row.get(DATES[domain][2].replace("_start_", "_end_")) if "_start_" in DATES[domain][2] else None
        if domain in (
            "ConditionOccurrence",
            "ConditionEra",
            "DrugEra",
            "VisitOccurrence",
            "ObservationPeriod",
        ):
            return start, None if end is None else when(end)
        return start, start + timedelta(days=1)

    def passes(
        self, domain: str, row: Row, start: date, end: date | None, key: str, wanted: Any, inner: Row
    ) -> bool:
        name = key.removesuffix("CS")
        if name == "VisitType" and domain != "VisitOccurrence":
            visit = row["visit_occurrence_id"]
            visits = [one for one in self.rows["visit_occurrence"] if one["visit_occurrence_id"] == visit]
            return any(self.fits(one["visit_concept_id"], wanted) for one in visits)
        if key == "Abnormal":
            value, low, high = (row[column] for column in ("value_as_number", "range_low", "range_high"))
            return (
                (value is not None and low is not None and value < low)
                or (value is not None and high is not None and value > high)
                or row["value_as_concept_id"] in (4155142, 4155143)
            )
        return self.fits(self.value(domain, row, start, end, name), wanted, bool(inner.get(f"{key}Exclude")))

    def value(self, domain: str, row: Row, start: date, end: date | None, name: str) -> Any:
        """What an attribute is compared with."""
        born, number = self.person["year_of_birth"], row.get("value_as_number")
        prefix = domain.removesuffix("Occurrence").removesuffix("Exposure").removesuffix("Period")
        typed = "period" if domain == "ObservationPeriod" else prefix.lower()
        ratios = {
            ratio: None if number is None or not row.get(bound) else number / row[bound]
            for ratio, bound in (("RangeLowRatio", "range_low"), ("RangeHighRatio", "range_high"))
        }
        last = start if domain == "DrugExposure" else end
        length = None if end is None else (end - start).days
        known = {
            **dict.fromkeys(("Age", "AgeAtStart"), start.year - born),
            "AgeAtEnd": None if end is None else end.year - born,
            "Gender": self.person["gender_concept_id"],
            **dict.fromkeys(("OccurrenceStartDate", "EraStartDate", "PeriodStartDate"), start),
            **dict.fromkeys(("OccurrenceEndDate", "EraEndDate", "PeriodEndDate"), last),
            **dict.fromkeys(("EraLength", "VisitLength", "PeriodLength"), length),
            "OccurrenceCount": row.get("condition_occurrence_count", row.get("drug_exposure_count")),
            f"{typed.capitalize()}Type": row.get(f"{typed}_type_concept_id"),
            **ratios,
        }
        return known[name] if name in known else row[COLUMNS[name]]

    def fits(self, value: Any, wanted: Any, excluded: bool = False) -> bool:
        """Whether a value is as wanted; a missing value never is."""
        if isinstance(wanted, list):
            numbers = {concept["CONCEPT_ID"] for concept in wanted}
            return value is not None and (value in numbers) != excluded
        if "IsExclusion" in wanted:
            if wanted.get("CodesetId") is None:
                return (value is None) == wanted["IsExclusion"]
            return value is not None and (value in self.sets[wanted["CodesetId"]]) != wanted["IsExclusion"]
        if value is None:
            return False
        if "Text" in wanted:
            op, text = wanted["Op"], wanted["Text"]
            found = {
                "startsWith": value.startswith(text),
                "endsWith": value.endswith(text),
                "contains": text in value,
            }[op.removeprefix("!")]
            return found != op.startswith("!")
        low, high = wanted["Value"], wanted.get("Extent")
        if isinstance(value, date):
            low, high = when(low), None if high is None else when(high)
        return {
            "lt": lambda: value < low,
            "lte": lambda: value <= low,
            "eq": lambda: value == low,
            "!eq": lambda: value != low,
            "gt": lambda: value > low,
            "gte": lambda: value >= low,
            "bt": lambda: low <= value <= high,
            "!bt": lambda: not low <= value <= high,
        }[wanted["Op"]]()


def when(text: str) -> date:
    return date.fromisoformat(text)


def exposure_end(row: Row) -> date:
    if row["drug_exposure_end_date"] is not None:
        return when(row["drug_exposure_end_date"])
    days = 1 if row["days_supply"] is None else row["days_supply"]
    return when(row["drug_exposure_start_date"]) + timedelta(days=days)


def merged(spans: list[list[date]]) -> list[list[date]]:
    """Overlapping or touching spans as one, sorted."""
    together: list[list[date]] = []
    for start, end in sorted(spans):
        if together and start <= together[-1][1]:
            together[-1][1] = max(together[-1][1], end)
        else:
            together.append([start, end])
    return together


def snake(key: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key).lstrip("_")
