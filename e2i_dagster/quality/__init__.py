"""Data quality in three layers, the gate over exact data versions, and the audit for leakage.

``check_table`` judges a raw table and each of its partitions; ``record_verdicts`` stores the verdicts;
``require_gate`` refuses to read what has none or a blocking one; ``leakage.audit`` judges a training
frame and its splits.
"""

from e2i_dagster.config.quality import QualityPolicy, current_quality_policy
from e2i_dagster.quality.gate import (
    BlockedRule,
    DataRef,
    GateVerdict,
    QCGateBlockedError,
    find_verdicts,
    record_leakage,
    record_verdicts,
    require_gate,
    require_raw_gate,
)
from e2i_dagster.quality.report import Finding, PartitionQuality, QualityReport, check_table, decide
from e2i_dagster.quality.rules import ruleset_hash

__all__ = [
    "BlockedRule",
    "DataRef",
    "Finding",
    "GateVerdict",
    "PartitionQuality",
    "QCGateBlockedError",
    "QualityPolicy",
    "QualityReport",
    "check_table",
    "current_quality_policy",
    "decide",
    "find_verdicts",
    "record_leakage",
    "record_verdicts",
    "require_gate",
    "require_raw_gate",
    "ruleset_hash",
]
