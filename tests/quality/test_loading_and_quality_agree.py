"""A cell is judged once: what a load rejects, quality control finds, on every engine, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.quality import ExpectationSpec, QualityPolicy, Suite, current_quality_policy
from e2i_dagster.quality.engine import check_on_engine
from e2i_dagster.quality.expectations import validate
from e2i_dagster.quality.rules import Rule, rules_for
from e2i_dagster.quality.schemas import check_schema, pandera_schema
from e2i_dagster.quality.typed import typed
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, primary_key, required_columns
from e2i_dagster.tables.cells import Kind, to_arrow
from e2i_dagster.tables.cells import read as read_cells
from e2i_dagster.tables.constraints import REJECTED_AS, families, spans
from e2i_dagster.tables.rules import check

TABLES = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
#: Cells that some reader of text has an opinion about; every kind of column gets all of them.
CELLS = (
    "true", "T", "yes", "N", "1", "0", "1.0", "0.0", "2", "TRUE ", " yes", "on", "", "-1", "5", "10.01", "121",
    "1e1", "+5", "5.", ".5", "1e999", "inf", "-Infinity", "nan", "1_000", "2147483647", "2147483648", "-2147483648",
    "-2147483649", "999999999999", "1000000000000", "0x10", "12,5", " 7 ", "2024-03-01", "2024-03-01T10:00:00Z",
    "2024-03-01 23:30:00-05:00", "20240301", "2024-03", "2024", "03/04/2024", "13/04/2024", "1-2-24", "2024-02-30",
    "9999-12-31", "0001-01-01", "1500-01-01", "2024-W05", "2024-3-1", "2024-03-01T25:00", "now", "high", "High",
    " high", "Remibrutinib", "east", "1234567893", "1234567890", "123456789x", "1234567893\n", "PJ0000000000000001",
    "x\x00y", '["a","b"]', "{a,b}", "[1,2]", '{"a":1}', '{"a":NaN}', "[", "L50.1", '["L50.1"]', "null", "[]", "{}",
)  # fmt: skip
_DIGITS = st.integers(-(10**13), 10**13).map(str) | st.floats(width=32).map(str)
_DAYS = st.dates().map(str) | st.datetimes(timezones=st.none() | st.timezones()).map(
    lambda when: when.isoformat()
)


def cells(kind: Kind, values: tuple[str, ...]) -> st.SearchStrategy[str | None]:
    """Texts of a column of ``kind``: right and wrong ones, at the limits, and those of other kinds."""
    own: dict[str, st.SearchStrategy[str]] = {
        "integer": _DIGITS,
        "number": _DIGITS,
        "date": _DAYS,
        "timestamp": _DAYS,
    }
    named = st.sampled_from(values) if values else st.sampled_from(CELLS)
    return st.none() | st.sampled_from(CELLS) | own.get(kind, st.text(max_size=12)) | named


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[str, pd.DataFrame]:
    """A raw table and up to eight rows of it as text, of which any cell may say anything."""
    table = draw(st.sampled_from(TABLES))
    kinds = families(table)
    values: dict[str, tuple[str, ...]] = {}
    for rule in rules_for(table, current_quality_policy()):
        values[rule.column] = (*values.get(rule.column, ()), *rule.values, *_limits(rule))
    rows = draw(st.integers(1, 8))
    free = [name for name in kinds if name not in required_columns(table)]
    paired = [name for span in spans(table) for name in (span.column, str(span.other))]
    chosen = {*required_columns(table), *paired, *draw(st.sets(st.sampled_from(free), max_size=6))}
    columns = {
        name: draw(st.lists(cells(kinds[name], values.get(name, ())), min_size=rows, max_size=rows))
        for name in kinds
        if name in chosen and name != "extra"
    }
    return table, pd.DataFrame(
        {name: pd.array(texts, dtype="string[pyarrow]") for name, texts in columns.items()}
    )


def _limits(rule: Rule) -> tuple[str, ...]:
    limits = [limit for limit in (rule.minimum, rule.maximum) if limit is not None]
    return tuple(repr(one) for limit in limits for one in (limit, np.nextafter(limit, np.inf), limit - 1))


Verdicts = set[tuple[str, int, str]]


def _loader(table: str, frame: pd.DataFrame, policy: QualityPolicy) -> Verdicts:
    """(column, row, reason) of a load; what a cell cannot be read as is one reason here."""
    found = check(table, frame, policy.vocabularies).faults_frame()
    known = set(REJECTED_AS.values())
    return {
        (column, row, reason if reason in known else "unreadable")
        for column, row, reason in zip(found["column"], found["position"], found["reason"], strict=True)
    }


def _layer_1(table: str, frame: pd.DataFrame, policy: QualityPolicy) -> Verdicts:
    """The same of layer 1, without the findings that no load asks for."""
    found: Verdicts = set()
    loaded = {(span.column, span.other) for span in spans(table)}
    for fault in check_schema(frame, table, policy).faults:
        rule = fault.rule
        if rule.kind == "order" and (rule.column, rule.other) not in loaded:
            continue
        reason = "unreadable" if rule.kind in ("type", "finite") else REJECTED_AS.get(rule.kind)
        if reason is not None:
            found |= {(rule.other or rule.column, int(row), reason) for row in fault.positions}
    return found


@settings(max_examples=60, deadline=None)
@given(delivery=deliveries())
def test_a_load_rejects_what_layer_one_finds(delivery: tuple[str, pd.DataFrame]) -> None:
    policy = current_quality_policy()
    table, frame = delivery
    assert _loader(table, frame, policy) == _layer_1(table, frame, policy)


def _every_cell(table: str) -> pd.DataFrame:
    """Each cell in each column, in another row of each, so that pairs of columns differ."""
    texts = np.array([*CELLS, None], dtype=object)
    names = [name for name in families(table) if name != "extra"]
    return pd.DataFrame(
        {
            name: pd.array(np.roll(texts, 7 * place), dtype="string[pyarrow]")
            for place, name in enumerate(names)
        }
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_in_every_column_is_judged_alike(policy: QualityPolicy, table: str) -> None:
    frame = _every_cell(table)
    assert _loader(table, frame, policy) == _layer_1(table, frame, policy)


def _counts(table: str, frame: Any, policy: QualityPolicy) -> dict[str, tuple[int, int]]:
    return {one.rule.label: (one.count, one.checked) for one in check_on_engine(frame, table, policy)}


@settings(max_examples=25, deadline=None)
@given(delivery=deliveries())
def test_duckdb_finds_what_layer_one_finds(delivery: tuple[str, pd.DataFrame]) -> None:
    policy = current_quality_policy()
    table, frame = delivery
    in_memory = {
        one.rule.label: (one.count, one.checked) for one in check_schema(frame, table, policy).faults
    }
    assert _counts(table, frame, policy) == in_memory


@pytest.mark.parametrize(
    "kind", ["boolean", "integer", "number", "date", "timestamp", "json", "list", "text"]
)
def test_what_a_cell_says_does_not_depend_on_its_neighbours(kind: Kind) -> None:
    together = pd.Series([*CELLS, None], dtype="string[pyarrow]")
    found = read_cells(kind, to_arrow(together), infinite=True)
    values = found.values.to_pylist()
    for row, text in enumerate(together):
        alone = read_cells(kind, to_arrow(pd.Series([text], dtype="string[pyarrow]")), infinite=True)
        assert repr(alone.values.to_pylist()[0]) == repr(values[row]), text
        for reason, mask in found.refused.items():
            assert bool(alone.refused.get(reason, [False])[0]) == bool(mask[row].as_py()), (text, reason)


EXPECTED_AS: dict[str, str] = {
    "range": "between",
    "vocabulary": "in_set",
    "order": "not_before",
    "not_null": "not_null",
}


@pytest.mark.parametrize("table", ["patient_journeys", "business_metrics"])
def test_a_suite_finds_the_rows_that_layer_one_finds(policy: QualityPolicy, table: str) -> None:
    # Only to a suite an empty text is a value and an infinite number one that can be compared.
    read = typed(_every_cell(table).replace(["", "inf", "-Infinity", "1e999"], None), table)
    rules = [
        rule
        for rule in rules_for(table, policy)
        if rule.kind in EXPECTED_AS and read.absent.isdisjoint({rule.column, rule.other or rule.column})
    ]
    specs = tuple(_spec(rule) for rule in rules)
    suites = QualityPolicy(
        policy.settings, {table: Suite(table=table, expectations=specs)}, policy.vocabularies
    )
    rows = [str(row) for row in range(read.cells.num_rows)]
    parts = validate(read, table, policy=suites, codes=np.arange(len(rows)), labels=rows)
    by_suite = {(specs[one.position].title, row) for row in rows for one in parts[row].failures}
    faults = check_schema(read, table, policy).faults
    named = {rule: spec.title for rule, spec in zip(rules, specs, strict=True)}
    found = {(named[one.rule], str(row)) for one in faults if one.rule in named for row in one.positions}
    assert {rule.kind for rule in rules} == set(EXPECTED_AS) and found
    # What cannot be read is empty to a suite.
    unreadable = {
        (f"{one.rule.column} not_null", str(row))
        for one in faults
        if one.rule.kind == "type"
        for row in one.positions
    }
    assert by_suite == found | (unreadable & {(title, row) for title in named.values() for row in rows})


def _spec(rule: Rule) -> ExpectationSpec:
    columns = {"column": rule.other, "other": rule.column} if rule.other else {"column": rule.column}
    more: dict[str, Any] = {"min": rule.minimum, "max": rule.maximum} if rule.kind == "range" else {}
    more |= {"values": rule.values} if rule.kind == "vocabulary" else {}
    return ExpectationSpec.model_validate(
        {"expect": EXPECTED_AS[rule.kind], "because": rule.label, **columns, **more}
    )


@pytest.mark.filterwarnings("ignore::pandera.errors.SchemaWarning")
@settings(max_examples=8, deadline=None)
@given(delivery=deliveries())
def test_a_schema_of_pandera_fails_where_layer_one_finds_something_fatal(
    delivery: tuple[str, pd.DataFrame],
) -> None:
    from pandera.errors import SchemaErrors

    policy = current_quality_policy()
    table, delivered = delivery
    frame = typed(delivered, table).frame
    wanted = {
        one.rule.label: one.count
        for one in check_schema(frame, table, policy).faults
        if one.rule.severity == "fatal"
    }
    schema = pandera_schema(table, policy)
    assert set(schema.columns) == set(families(table)) and schema.columns[primary_key(table)].required
    try:
        schema.validate(frame, lazy=True)
        found: dict[str, int] = {}
    except SchemaErrors as errors:
        found = errors.failure_cases.groupby("check")["index"].nunique().to_dict()
    assert found == wanted
