"""Faults of a definition that can be seen without, or with, the data: run before a cohort is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.build import build_cohort, date_column
from e2i_dagster.cohorts.columns import typed_column
from e2i_dagster.cohorts.disclosure import SMALLEST_SHOWN, is_small
from e2i_dagster.cohorts.operators import holds
from e2i_dagster.cohorts.own_fields import not_converted_words, with_own_fields
from e2i_dagster.config.cohort import CohortDefinition, CohortExample, Criterion, normal_code
from e2i_dagster.config.cohort_fields import is_list_of_codes
from e2i_dagster.display import Table
from e2i_dagster.tables.codes import EVENT_CODE_COLUMNS

#: A column with more nulls than this is reported (share of the patients who reach the rule).
MOSTLY_NULL = 0.5


class Finding(BaseModel):
    """One fault: what it is, where, and what to do."""

    model_config = ConfigDict(frozen=True)

    kind: str
    severity: Literal["error", "warning"]
    rule: str
    message: str


class LintReport(BaseModel):
    """All findings on one definition. ``passed`` is False when one is an error."""

    model_config = ConfigDict(frozen=True)

    cohort: str
    definition_hash: str
    examples: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def to_metadata(self) -> dict[str, Any]:
        return {
            "cohort": self.cohort,
            "definition_hash": self.definition_hash,
            "examples_run": self.examples,
            "errors": sum(f.severity == "error" for f in self.findings),
            "warnings": sum(f.severity == "warning" for f in self.findings),
            "findings": Table(
                ("severity", "kind", "rule", "finding"),
                [
                    (finding.severity, finding.kind, finding.rule, finding.message)
                    for finding in self.findings
                ],
                empty="No findings.",
            ),
        }


def lint(
    definition: CohortDefinition,
    data: pd.DataFrame | None = None,
    events: pd.DataFrame | None = None,
    observation_periods: pd.DataFrame | None = None,
) -> LintReport:
    """Check ``definition``: its examples, contradictions, and with ``data`` what the data make of it.

    Args:
        data, events, observation_periods: frames as for :func:`build_cohort`. Optional.

    Raises:
        CohortInputError: ``data`` lacks a column that the definition needs, or holds the wrong kind.
    """
    findings = [*_contradictions(definition), *_examples(definition)]
    if data is not None:
        read, lost = with_own_fields(definition, data)
        words = not_converted_words(definition, lost, len(read))
        findings += [
            Finding(kind="own_field_not_converted", severity="warning", rule=name, message=f"{said}.")
            for name, said in zip(lost, words, strict=True)
        ]
        findings += _against(definition, read, events, observation_periods)
    return LintReport(
        cohort=definition.key,
        definition_hash=definition.definition_hash,
        examples=len(definition.examples),
        findings=tuple(findings),
    )


def run_examples(definition: CohortDefinition) -> pd.DataFrame:
    """The verdict of each example: name, expected, found (``in``, ``pending`` or the failed rules)."""
    together: dict[Any, list[int]] = {}
    for number, example in enumerate(definition.examples):
        together.setdefault(_kinds(definition, example), []).append(number)
    found = {number: said for numbers in together.values() for number, said in _verdicts(definition, numbers)}
    rows = []
    for number, example in enumerate(definition.examples):
        expected = "; ".join(
            rule.name for rule in definition.rules if rule.name in example.failed_rules
        ) or str(example.expect)
        rows.append({"name": example.name, "expected": expected, "found": found[number]})
    return pd.DataFrame(rows, columns=["name", "expected", "found"])


def _kinds(definition: CohortDefinition, example: CohortExample) -> Any:
    """Examples for which this is the same fit into one frame: each column is of one kind, as for one alone."""
    values = dict.fromkeys(definition.required_fields) | example.patient
    of_rows = (
        frozenset((name, type(value)) for row in rows for name, value in row.items())
        for rows in ([values], example.events, example.observation_periods)
    )
    return example.data_end, *of_rows


def _verdicts(definition: CohortDefinition, numbers: Sequence[int]) -> Iterable[tuple[int, str]]:
    """What the definition says of the examples with these numbers, which are of the same kinds."""
    examples = {f"example {number}": definition.examples[number] for number in numbers}
    nothing = dict.fromkeys(definition.required_fields)
    patients = [
        nothing | example.patient | {"patient_id": key, "patient_journey_id": key}
        for key, example in examples.items()
    ]
    events = [
        {"patient_id": key, **_coded(row)} for key, example in examples.items() for row in example.events
    ]
    periods = [
        {"patient_id": key, **row} for key, example in examples.items() for row in example.observation_periods
    ]
    cohort = build_cohort(
        definition,
        pd.DataFrame(patients, dtype=object),
        pd.DataFrame(events, columns=list(definition.event_fields), dtype=object)
        if definition.reads_events
        else None,
        observation_periods=pd.DataFrame(periods, dtype=object) if periods else None,
        data_end=definition.examples[numbers[0]].data_end,
    )
    # With several index dates the patient is in when one of them is.
    words = cohort.reasons.drop_duplicates("patient_id").set_index("patient_id")["words"]
    eligible, pending = set(cohort.eligible["patient_id"]), set(cohort.pending["patient_id"])
    for number, key in zip(numbers, examples, strict=True):
        yield number, "pending" if key in pending else "in" if key in eligible else str(words[key])


def _coded(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event of an example: its ``code`` is one of whatever system a rule asks for, its lists are cells."""
    of_code = dict.fromkeys(EVENT_CODE_COLUMNS, event["code"]) if "code" in event else {}
    written = {
        name: "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        for name, value in event.items()
    }
    return {**of_code, **written}


def _examples(definition: CohortDefinition) -> Iterable[Finding]:
    if not definition.examples:
        yield Finding(
            kind="no_examples",
            severity="warning",
            rule="",
            message="The file has no examples: add invented patients with the verdict you expect.",
        )
        return
    known = set(definition.required_fields)
    for example in definition.examples:
        for name in sorted(set(example.patient) - known):
            yield Finding(
                kind="example_field",
                severity="error",
                rule="",
                message=f"Example '{example.name}' gives {name}, which no rule reads.",
            )
    verdicts = run_examples(definition)
    wrong = verdicts[verdicts["expected"] != verdicts["found"]]
    for name, expected, found in zip(wrong["name"], wrong["expected"], wrong["found"], strict=True):
        yield Finding(
            kind="example_verdict",
            severity="error",
            rule="",
            message=f"Example '{name}': expected {expected}, the definition says {found}.",
        )
    used = {"one_index_journey", *(name for example in definition.examples for name in example.failed_rules)}
    if any(example.expect == "pending" for example in definition.examples):
        used.add("followup_pending")
    idle = [rule.name for rule in definition.rules if rule.name not in used]
    if idle:
        yield Finding(
            kind="rule_without_example",
            severity="warning",
            rule=", ".join(idle),
            message="No example is removed by it: add an invented patient on each side of the bound.",
        )


def _contradictions(definition: CohortDefinition) -> Iterable[Finding]:
    included = [c for c in definition.inclusion_criteria if isinstance(c, Criterion)]
    excluded = [c for c in definition.exclusion_criteria if isinstance(c, Criterion)]
    for name in sorted({c.field for c in included}):
        inclusion = [c for c in included if c.field == name]
        exclusion = [c for c in excluded if c.field == name]
        message = _empty_range(inclusion, exclusion) or _empty_set(inclusion, exclusion)
        if message:
            yield Finding(kind="contradiction", severity="error", rule=name, message=message)


def _empty_range(inclusion: list[Criterion], exclusion: list[Criterion]) -> str | None:
    """Whether the ordered conditions leave no value: each bound is (value, whether it is included)."""
    opposite = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}
    bounds = [(c.operator, c.value) for c in inclusion if c.operator in opposite]
    bounds += [(opposite[c.operator], c.value) for c in exclusion if c.operator in opposite]
    for c in inclusion:
        if c.operator == "between":
            bounds += [(">=", c.value[0]), ("<=", c.value[1])]
    lows = [(value, operator == ">=") for operator, value in bounds if operator in (">", ">=")]
    highs = [(value, operator == "<=") for operator, value in bounds if operator in ("<", "<=")]
    if not lows or not highs:
        return None
    low, low_in = max(lows, key=lambda bound: (bound[0], not bound[1]))
    high, high_in = min(highs, key=lambda bound: (bound[0], bound[1]))
    if low > high or (low == high and not (low_in and high_in)):
        return f"no value can be {'at least' if low_in else 'more than'} {low} and " + (
            f"{'at most' if high_in else 'less than'} {high}"
        )
    return None


def _empty_set(inclusion: list[Criterion], exclusion: list[Criterion]) -> str | None:
    """Whether the listed values leave none. Not judged: codes with wildcards, cells that hold several codes."""
    if any(_has_wildcards(c) or is_list_of_codes(c.field) for c in (*inclusion, *exclusion)):
        return None
    allowed: set[Any] | None = None
    for c in inclusion:
        if c.operator in ("==", "in"):
            values = _plain(c)
            allowed = values if allowed is None else allowed & values
    if allowed is None:
        return None
    for c in inclusion:
        if c.operator in ("!=", "not_in"):
            allowed = allowed - _plain(c)
    for c in exclusion:
        if c.operator in ("==", "in"):
            allowed = allowed - _plain(c)
    return None if allowed else "the rules on this field leave no value that is accepted"


def _has_wildcards(criterion: Criterion) -> bool:
    return criterion.code_system is not None and (
        criterion.descendants or any(str(v).endswith("*") for v in criterion.values)
    )


def _plain(criterion: Criterion) -> set[Any]:
    if criterion.code_system is not None:
        return {normal_code(str(v), criterion.code_system) for v in criterion.values}
    return set(criterion.values)


def _against(
    definition: CohortDefinition,
    data: pd.DataFrame,
    events: pd.DataFrame | None,
    observation_periods: pd.DataFrame | None,
) -> Iterable[Finding]:
    cohort = build_cohort(definition, data, events, observation_periods=observation_periods)
    if cohort.emptied_by is not None:
        yield Finding(
            kind="empty",
            severity="error",
            rule=cohort.emptied_by,
            message="CC_003: nobody is left after this rule.",
        )
    times = definition.temporal_requirements
    first = date_column(data["first_observation_date"], "first_observation_date")
    last = date_column(data["last_observation_date"], "last_observation_date")
    both = first.known & last.known
    if both.any():
        span = int((last.values[both].max() - first.values[both].min()).astype("int64"))
        needed = times.lookback_days + times.required_followup
        if needed > span:
            yield Finding(
                kind="windows_longer_than_data",
                severity="error",
                rule="lookback, followup",
                message=f"{needed} days around the index date are required; the data span {span} days.",
            )
    steps = cohort.attrition.to_dict("records")
    for rule in definition.rules:
        if rule.criterion is not None and not isinstance(rule.criterion, Criterion) and len(data):
            masks = cohort.reasons["mask"].to_numpy(dtype="int64")
            if rule.side == "inclusion" and (masks & rule.bit).all():
                yield Finding(
                    kind="never_true",
                    severity="error",
                    rule=rule.name,
                    message=f"No row fulfils it: {rule.criterion.words()}.",
                )
        if not isinstance(rule.criterion, Criterion) or not len(data):
            continue
        if rule.criterion.field in definition.derived:
            continue
        column = typed_column(data[rule.criterion.field], rule.criterion.field)
        # Judged on the patients who reach the rule: a column is empty for the other indications.
        reached = cohort.input_patients if rule.order == 1 else int(steps[rule.order - 2]["remaining"])
        nulls = steps[rule.order - 1]["unknown"] / reached if reached else 0.0
        if nulls > MOSTLY_NULL:
            yield Finding(
                kind="mostly_null",
                severity="warning",
                rule=rule.name,
                message=(
                    f"{nulls:.0%} of the patients who reach it have no value of {rule.criterion.field}."
                    if reached >= SMALLEST_SHOWN and not is_small(round(reached * (1 - nulls)))
                    else f"Most of the patients who reach it have no value of {rule.criterion.field}."
                ),
            )
        true = holds(rule.criterion, column)
        if rule.side == "inclusion" and not true.any():
            yield Finding(
                kind="never_true",
                severity="error",
                rule=rule.name,
                message=f"No row fulfils it: {rule.criterion.words()}.",
            )
        if rule.criterion.code_system is not None and rule.criterion.operator in ("==", "in"):
            unused = [
                value
                for value in rule.criterion.values
                if not holds(
                    rule.criterion.model_copy(update={"operator": "in", "value": (value,)}), column
                ).any()
            ]
            if unused and true.any():
                yield Finding(
                    kind="unused_codes",
                    severity="warning",
                    rule=rule.name,
                    message=f"Codes that occur in no row: {', '.join(unused)}.",
                )
