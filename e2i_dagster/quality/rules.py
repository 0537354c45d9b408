"""The rule table of layer 1: every rule of a raw table, derived from its one description.

Here belongs what a rule is and where it comes from. How it is checked on a pandas frame is in
``schemas``, how it is counted on an engine in ``dimensions``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from e2i_dagster.config.base import digest_of
from e2i_dagster.config.observed import kept
from e2i_dagster.config.quality import QualityPolicy, Severity
from e2i_dagster.warehouse.tables import (
    facts,
    frame_columns,
    raw_table,
    required_columns,
)

Family = Literal["text", "integer", "number", "boolean", "date", "timestamp"]
Kind = Literal[
    "required_column",
    "expected_column",
    "type",
    "not_null",
    "unique_key",
    "finite",
    "range",
    "vocabulary",
    "order",
    "key_format",
    "check_digit",
]

#: Raised when a rule or a formula of the quality stage changes its meaning: it makes stored verdicts stale.
RULES_VERSION = 2


@dataclass(frozen=True)
class Rule:
    """One rule on one column (``order``: on two).

    Attributes:
        kind: what is asked; the rule id is ``schema_<kind>``.
        severity: ``fatal`` blocks, ``convention`` and ``characterization`` are reported.
        family: the described type of the column.
        other: for ``order`` the column that must not be earlier (or smaller) than ``column``.
        minimum, maximum: closed range of ``range``.
        values: accepted values of ``vocabulary``.
        pattern: regular expression of ``key_format``.
    """

    kind: Kind
    table: str
    column: str
    severity: Severity
    family: Family
    other: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    pattern: str | None = None

    @property
    def id(self) -> str:
        """Name of the rule, of its page ``docs/rules/<id>.md`` and in waivers."""
        return f"schema_{self.kind}"

    @property
    def label(self) -> str:
        """Rule, table and column in one name; unique in a table."""
        return ".".join(part for part in (self.id, self.table, self.column, self.other) if part)


def family(column: sa.Column) -> Family:  # type: ignore[type-arg]
    """The type family of a described column; arrays and JSON are text in frames."""
    kinds: tuple[tuple[type, Family], ...] = (
        (sa.Boolean, "boolean"),
        (sa.Integer, "integer"),
        (sa.Numeric, "number"),
        (sa.Float, "number"),
        (sa.DateTime, "timestamp"),
        (sa.Date, "date"),
    )
    fitting: list[Family] = [name for kind, name in kinds if isinstance(column.type, kind)]
    return fitting[0] if fitting else "text"


def families(table: str) -> dict[str, Family]:
    """Type family of every column that a frame of ``table`` has, in the described order."""
    columns = raw_table(table).columns
    return {name: family(columns[name]) for name in frame_columns(table)}


@kept(maxsize=64)
def rules_for(table: str, policy: QualityPolicy) -> tuple[Rule, ...]:
    """All layer 1 rules of ``table`` under ``policy``, in the order of the columns.

    A column without default and without null is a required column; a column of the policy's
    ``expected`` list is an expected one; all others may be absent.
    """
    rules: list[Rule] = []
    required = set(required_columns(table))
    settings = policy.settings.tables[table]
    for name, kind_of_value in families(table).items():
        column = raw_table(table).columns[name]
        about = facts(column)

        def add(kind: Kind, name: str = name, value: Family = kind_of_value, **more: object) -> None:
            severity = policy.settings.severities[kind]
            rules.append(Rule(kind, table, name, severity, value, **more))  # type: ignore[arg-type]

        if name in required:
            add("required_column")
        elif name in settings.expected:
            add("expected_column")
        add("type")
        if not column.nullable:
            add("not_null")
        if column.primary_key or column.unique:
            add("unique_key")
        if kind_of_value == "number":
            add("finite")
        if about.minimum is not None or about.maximum is not None:
            add("range", minimum=about.minimum, maximum=about.maximum)
        if about.vocabulary is not None:
            add("vocabulary", values=policy.vocabulary(about.vocabulary))
        if about.check_digit is not None:
            add("check_digit")
        elif about.pattern is not None:
            add("key_format", pattern=about.pattern)
    kinds = families(table)
    rules.extend(
        Rule("order", table, earlier, policy.settings.severities["order"], kinds[earlier], other=later)
        for earlier, later in settings.ordered
    )
    return tuple(rules)


def ruleset_hash(policy: QualityPolicy, table: str) -> str:
    """Digest of everything that decides the verdict of ``table``: rules, thresholds, suite, formulas.

    A verdict counts only under the hash it was given under: changed rules need a new check.
    """
    suite = policy.suites.get(table)
    named = {spec.vocabulary for spec in suite.expectations if spec.vocabulary} if suite else set()
    return digest_of(
        {
            "version": RULES_VERSION,
            "rules": [dataclasses.asdict(rule) for rule in rules_for(table, policy)],
            "thresholds": policy.settings.model_dump(mode="json", exclude={"tables", "leakage", "waivers"}),
            "table": policy.settings.tables[table].model_dump(mode="json"),
            "suite": suite.model_dump(mode="json") if suite else None,
            "suite_values": {name: policy.vocabulary(name) for name in sorted(named)},
        }
    )
