"""The rules of layer 1: the one list of the table description, with what the policy adds to it.

Here belongs which rules a table has and what a violation means. Their masks are in
:mod:`e2i_dagster.tables.constraints`; ``schemas`` asks them of a frame in memory, ``engine`` of any engine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from e2i_dagster.config.quality import QualityPolicy, Severity
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.policy_files.observed import kept
from e2i_dagster.tables import required_columns
from e2i_dagster.tables.constraints import Constraint, families, of_column, spans

#: Raised when a rule or a formula of the quality stage changes its meaning: it makes stored verdicts stale.
RULES_VERSION = 3


@dataclass(frozen=True)
class Rule(Constraint):
    """A rule of the table description, or one of the policy, and what its violation means.

    Attributes:
        severity: ``fatal`` blocks, ``convention`` and ``characterization`` are reported.
    """

    severity: Severity = field(kw_only=True)

    @property
    def id(self) -> str:
        """Name of the rule, of its page ``docs/rules/<id>.md`` and in waivers."""
        return f"schema_{self.kind}"

    @property
    def label(self) -> str:
        """Rule, table and column in one name; unique in a table."""
        return ".".join(part for part in (self.id, self.table, self.column, self.other) if part)


@kept(maxsize=64)
def rules_for(table: str, policy: QualityPolicy) -> tuple[Rule, ...]:
    """All layer 1 rules of ``table`` under ``policy``, in the order of the columns.

    What the table description asks of a cell or a span (:mod:`.constraints`), which a load asks as well, and what
    the policy adds: a column without default and without null is a required column, one of the ``expected`` list
    an expected one, and all others may be absent; pairs of ``ordered`` join the spans.
    """
    settings = policy.settings.tables[table]
    kinds = families(table)
    required = set(required_columns(table))
    asked: list[Constraint] = []
    for name, kind in kinds.items():
        if name in required:
            asked.append(Constraint("required_column", table, name, kind))
        elif name in settings.expected:
            asked.append(Constraint("expected_column", table, name, kind))
        asked.extend(of_column(table, name, policy.vocabularies))
    ordered = (
        Constraint("order", table, first, kinds[first], other=second) for first, second in settings.ordered
    )
    asked.extend(dict.fromkeys((*spans(table), *ordered)))
    return tuple(Rule(**vars(rule), severity=policy.settings.severities[rule.kind]) for rule in asked)


def ruleset_hash(policy: QualityPolicy, table: str) -> str:
    """Digest of everything that decides the verdict of ``table``: rules, thresholds, suite, formulas.

    A verdict counts only under the hash it was given under: changed rules need a new check.
    """
    suite = policy.suite(table)
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
