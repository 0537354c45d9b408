"""One table, all layers, one verdict for each partition."""

from __future__ import annotations

import datetime as dt
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import DIMENSIONS, QualityPolicy, Severity
from e2i_dagster.display import Figure, Table
from e2i_dagster.policy_files.base import PolicyModel
from e2i_dagster.policy_files.pseudonyms import pseudonym
from e2i_dagster.quality import dimensions, expectations, plausibility, schemas, shift
from e2i_dagster.quality.dimensions import WHOLE, ColumnScore, DimensionScores, Scores
from e2i_dagster.quality.drawings import heat_map, score_trend
from e2i_dagster.quality.expectations import PartExpectations
from e2i_dagster.quality.rules import Rule, ruleset_hash
from e2i_dagster.quality.shift import ColumnProfile
from e2i_dagster.quality.typed import TypedFrame, smallest_keys, typed
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, facts, raw_table
from e2i_dagster.tables.codes import SYSTEMS

Verdict = Literal["passed", "warning", "failed", "error"]
Layer = Literal["schema", "plausibility", "dimensions", "expectations", "shift"]
Trend = Literal["new", "existing", "resolved"]
Result = TypeVar("Result")

_RANK: dict[Verdict, int] = {"passed": 0, "warning": 1, "failed": 2, "error": 3}
#: Scores of a table: one a dimension, and the overall one.
SCORES = (*DIMENSIONS, "overall")
#: Rules of which a column can violate several, distinguished by what they say.
_SEVERAL = ("schema_order", "expectation", "expectation_critical", "check_error")


class Finding(PolicyModel):
    """One violated rule in one partition.

    Attributes:
        rule: id; its page is ``docs/rules/<rule>.md``.
        severity: ``fatal`` blocks the partition, ``convention`` makes it a warning,
            ``characterization`` is only reported.
        count, checked: rows (cells) that violate it and that were looked at; None where the rule is
            about a score.
        detail: what was found and expected, without any value of a row.
        sample_keys: pseudonyms of the keys of a few of the rows, the smallest keys first.
        trend: against the previous data version of the partition.
    """

    rule: str
    layer: Layer
    severity: Severity
    partition: str
    column: str | None = None
    count: int | None = None
    checked: int | None = None
    detail: str
    sample_keys: tuple[str, ...] = ()
    trend: Trend = "new"

    @property
    def identity(self) -> tuple[str, str | None, str]:
        """What makes it the same finding in another data version."""
        return self.rule, self.column, self.detail if self.rule in _SEVERAL else ""

    @property
    def share(self) -> float | None:
        """Share of the looked-at rows that violate the rule."""
        return self.count / self.checked if self.count is not None and self.checked else None

    @property
    def page(self) -> str:
        """Page of the rule in the documentation."""
        return rule_page(self.rule)


def rule_page(rule: str) -> str:
    """Page in the documentation of the rule ``rule``."""
    return f"docs/rules/{rule}.md"


class Previous(PolicyModel):
    """What is known of the previous data version of a partition."""

    findings: tuple[Finding, ...] = ()
    profile: dict[str, ColumnProfile] = {}
    overall: float | None = None


class PartitionQuality(PolicyModel):
    """Everything that was found about one partition.

    Attributes:
        resolved: findings of the previous data version that this one does not have.
        profile: counts by column that the next data version is compared with.
    """

    partition: str
    rows: int
    verdict: Verdict
    scores: Scores | None
    expectations: PartExpectations | None
    findings: tuple[Finding, ...]
    resolved: tuple[Finding, ...] = ()
    profile: dict[str, ColumnProfile] = {}

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings that keep the partition from being used."""
        return decide(self.findings)

    def to_metadata(self) -> dict[str, Any]:
        """Verdict, rows and overall score of this partition."""
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "overall_score": None if self.scores is None else self.scores.overall,
            "blocking_rules": ", ".join(sorted({rule.rule for rule in self.blocking})) or None,
        }


class QualityReport(PolicyModel):
    """Verdict, scores and findings of one raw table, as a whole and of each partition."""

    report_id: str
    table: str
    rows: int
    rules_checked: int
    ruleset_hash: str
    as_of: dt.date | None
    checked_at: dt.datetime
    seconds: float
    required_overall: float
    whole: Scores | None
    columns: tuple[ColumnScore, ...]
    partitions: tuple[PartitionQuality, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all partitions."""
        worst: Verdict = "passed"
        for part in self.partitions:
            worst = part.verdict if _RANK[part.verdict] > _RANK[worst] else worst
        return worst

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the blocking ones first."""
        order = ("fatal", "convention", "characterization")
        found = [finding for part in self.partitions for finding in part.findings]
        return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings that keep partitions from being used."""
        return decide(self.findings)

    @property
    def resolved(self) -> tuple[Finding, ...]:
        """Findings of previous data versions that are gone."""
        return tuple(finding for part in self.partitions for finding in part.resolved)

    @property
    def scores(self) -> dict[str, float | None]:
        """Score of each dimension and the overall one, over all rows; None where it is not measured."""
        return {name: getattr(self.whole, name, None) for name in SCORES}

    def heat_map(self) -> Figure:
        """Columns by dimensions."""
        return Figure.svg(heat_map(self.columns), f"{self.table}: columns by dimensions")

    def trend(self) -> Figure:
        """Overall score of each partition."""
        drawing = score_trend(
            [part.partition for part in self.partitions],
            [part.scores.overall if part.scores else None for part in self.partitions],
            [part.verdict for part in self.partitions],
            required=self.required_overall,
        )
        return Figure.svg(drawing, f"{self.table}: overall score by partition")

    @property
    def failing_partitions(self) -> tuple[str, ...]:
        """Partitions that may not be used."""
        return tuple(part.partition for part in self.partitions if part.blocking)

    def partition(self, name: str) -> PartitionQuality:
        """The part ``name``.

        Raises:
            KeyError: the report has no such partition.
        """
        return next((part for part in self.partitions if part.partition == name), None) or _missing(name)

    def to_metadata(self) -> dict[str, Any]:
        """What the UI shows: verdict, scores, tables of findings, partitions and columns, heat map."""
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "rules_checked": self.rules_checked,
            "blocking_findings": len(self.blocking),
            "failing_partitions": list(self.failing_partitions),
            **self.scores,
            "findings": findings_table(self.findings),
            "resolved": findings_table(self.resolved) if self.resolved else None,
            "heat_map": self.heat_map(),
            "trend": self.trend(),
            "partitions": _partitions_table(self.partitions),
            "columns": _columns_table(self.columns),
            "ruleset_hash": self.ruleset_hash,
            "as_of": self.as_of.isoformat() if self.as_of else None,
            "seconds": self.seconds,
        }

    def to_record(self) -> dict[str, list[dict[str, Any]]]:
        """Rows for ``ml_data_quality_reports`` (one a partition) and ``data_quality_results`` (one a finding)."""
        reports, results = [], []
        for part in self.partitions:
            identity = str(uuid.uuid5(uuid.UUID(self.report_id), part.partition))
            reports.append(_report_record(self, part, identity))
            findings = (*part.findings, *part.resolved)
            results.extend(_result_record(self, finding, identity) for finding in findings)
        return {"ml_data_quality_reports": reports, "data_quality_results": results}


def decide(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that block: an overall score or a dimension under its floor, a failed critical
    expectation, a fatal schema rule, an error in a check. Empty: the part may be used.
    """
    return tuple(finding for finding in findings if finding.severity == "fatal")


def check_table(
    name: str,
    frame: pd.DataFrame,
    *,
    policy: QualityPolicy,
    partitions: pd.Series | None = None,
    expected_partitions: Sequence[str] | None = None,
    as_of: dt.date | None = None,
    references: Mapping[str, pd.DataFrame] | None = None,
    previous: Mapping[str, Previous] | None = None,
    key: bytes | None = None,
) -> QualityReport:
    """Check all rows of a raw table in one pass of each layer, with a verdict for each partition.

    Args:
        name: raw table.
        frame: its rows, of one or many partitions; not changed.
        policy: rules and thresholds.
        partitions: label (``YYYY-MM``) of each row, in the order of ``frame``; None: one part, ``all``.
        expected_partitions: labels that get a verdict even without rows (the months of a range).
        as_of: date that the data is as of; None leaves timeliness unmeasured and nothing in the future.
        references: rows of the tables of :func:`.related_tables`; what needs one that is not
            given is not asked.
        previous: what is known of the previous data version of each partition.
        key: secret of the pseudonyms under which findings name rows; None: they name none.

    Returns:
        The report. An exception inside a layer becomes the finding ``check_error``, which blocks
        every partition.

    Raises:
        InputError: there is no such raw table, or the frame has two columns of one name.
        ValueError: ``partitions`` has another length than ``frame``, or a row without a label.
    """
    started = time.perf_counter()
    codes, labels = _codes(frame, partitions, expected_partitions)
    read = typed(frame, name)
    found = _Collected(read, codes, labels, key)
    before = dict(previous or {})
    checked = found.layer("schema", lambda: schemas.check_schema(read, name, policy))
    if checked is not None:
        found.schema_faults(checked)
    odd = found.layer(
        "plausibility",
        lambda: plausibility.check_plausibility(
            read, name, policy, references=references, as_of=as_of, codes=codes
        ),
    )
    found.implausible(odd or ())
    series = pd.Series(np.asarray(labels, dtype=object)[codes], dtype="string[pyarrow]")
    scores = found.layer(
        "dimensions",
        lambda: dimensions.score(read, name, policy=policy, as_of=as_of, partitions=series),
    )
    suites = found.layer(
        "expectations",
        lambda: expectations.validate(read, name, policy=policy, codes=codes, labels=labels),
    )
    profiles = found.layer("shift", lambda: shift.profiles(read, codes, labels, policy)) or {}
    past = {label: report.profile for label, report in before.items() if report.profile}
    shifted = found.layer("shift", lambda: shift.shifts(read, codes, labels, profiles, past, policy)) or {}
    parts = []
    for position, label in enumerate(labels):
        part_scores = _part_scores(scores, label)
        suite = suites[label] if suites is not None else None
        findings = found.of[label]
        if part_scores is not None:
            findings.extend(_score_findings(part_scores, label, policy))
        if suite is not None:
            findings.extend(_expectation_findings(suite, label, policy))
        findings.extend(_shift_findings(shifted.get(label, ()), label))
        if not found.sizes[position]:
            findings.append(_no_rows(label, optional=name in OPTIONAL_RAW_TABLES))
        marked, resolved = _trended(findings, before.get(label, Previous()).findings)
        parts.append(
            PartitionQuality(
                partition=label,
                rows=int(found.sizes[position]),
                verdict=_verdict(findings),
                scores=part_scores,
                expectations=suite,
                findings=marked,
                resolved=resolved,
                profile=profiles.get(label, {}),
            )
        )
    return QualityReport(
        report_id=str(uuid.uuid4()),
        table=name,
        rows=len(frame),
        rules_checked=checked.rules_checked if checked is not None else 0,
        ruleset_hash=ruleset_hash(policy, name),
        as_of=as_of,
        checked_at=dt.datetime.now(dt.UTC),
        seconds=time.perf_counter() - started,
        required_overall=policy.settings.overall,
        whole=scores.whole if scores is not None else None,
        columns=scores.columns if scores is not None else (),
        partitions=tuple(parts),
    )


class _Collected:
    """Findings of each part while the layers run."""

    def __init__(self, read: TypedFrame, codes: np.ndarray, labels: Sequence[str], key: bytes | None) -> None:
        self.read, self.codes, self.labels, self.key = read, codes, labels, key
        self.sizes = np.bincount(codes, minlength=len(labels))
        self.of: dict[str, list[Finding]] = {label: [] for label in labels}

    def layer(self, kind: Layer, run: Callable[[], Result]) -> Result | None:
        """What ``run`` returns; an exception becomes a finding of every part."""
        try:
            return run()
        except Exception as error:  # noqa: BLE001 - an error in a check is a verdict: it blocks
            for label in self.labels:
                self.of[label].append(_error_finding(kind, label, error))
            return None

    def schema_faults(self, checked: schemas.SchemaResult) -> None:
        for fault in checked.faults:
            rule = fault.rule
            absent = rule.kind in ("required_column", "expected_column")
            if absent:
                positions = looked_at = np.arange(len(self.codes))
            else:
                positions = fault.positions
                filled = self.read.frame[rule.column].notna().to_numpy(dtype=bool)
                looked_at = slice(None) if rule.kind in ("not_null", "type") else filled
            about = Finding(
                rule=rule.id,
                layer="schema",
                severity=rule.severity,
                partition="",
                column=rule.column,
                detail=_asked(rule),
            )
            self._attribute(about, positions, looked_at, everywhere=absent)

    def implausible(self, faults: Sequence[plausibility.PlausibilityFault]) -> None:
        for fault in faults:
            about = Finding(
                rule=f"plausibility_{fault.rule}",
                layer="plausibility",
                severity=fault.severity,
                partition="",
                column=fault.column,
                detail=fault.detail,
            )
            self._attribute(about, fault.positions, fault.looked_at)

    def _attribute(
        self,
        about: Finding,
        positions: np.ndarray,
        looked_at: np.ndarray | slice,
        *,
        everywhere: bool = False,
    ) -> None:
        """One finding for each part that has some of the rows (``everywhere``: for each part)."""
        hits = np.bincount(self.codes[positions], minlength=len(self.labels))
        checked = np.bincount(self.codes[looked_at], minlength=len(self.labels))
        for code, label in enumerate(self.labels):
            if everywhere or hits[code]:
                own = positions[self.codes[positions] == code]
                self.of[label].append(
                    about.model_copy(
                        update={
                            "partition": label,
                            "count": int(hits[code]),
                            "checked": int(checked[code]),
                            "sample_keys": () if everywhere else self._pseudonyms(own),
                        }
                    )
                )

    def _pseudonyms(self, positions: np.ndarray) -> tuple[str, ...]:
        if self.key is None:
            return ()
        return tuple(pseudonym(self.key, key) for key in smallest_keys(self.read, positions))


def _trended(
    findings: Sequence[Finding], before: Sequence[Finding]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """``findings`` marked new or existing, and those of ``before`` that are gone."""
    known, present = {finding.identity for finding in before}, {finding.identity for finding in findings}
    marked = tuple(
        finding.model_copy(update={"trend": "existing" if finding.identity in known else "new"})
        for finding in findings
    )
    gone = (finding for finding in before if finding.identity not in present and finding.layer != "shift")
    return marked, tuple(
        finding.model_copy(update={"trend": "resolved", "sample_keys": ()}) for finding in gone
    )


def _shift_findings(shifted: Sequence[shift.Shift], label: str) -> list[Finding]:
    return [
        Finding(
            rule="distribution_shift",
            layer="shift",
            severity="characterization",
            partition=label,
            column=column.column,
            detail=f"distributed otherwise than in {column.reference} (PSI {column.psi:.2f})",
        )
        for column in shifted
    ]


def _no_rows(label: str, *, optional: bool) -> Finding:
    """Nothing to do about a table that need not be delivered."""
    return Finding(
        rule="no_rows",
        layer="dimensions",
        severity="characterization" if optional else "convention",
        partition=label,
        detail="no rows: nothing could be scored",
    )


def _codes(
    frame: pd.DataFrame, partitions: pd.Series | None, expected: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    if partitions is None:
        return np.zeros(len(frame), dtype=int), [WHOLE]
    if len(partitions) != len(frame):
        raise ValueError(f"partitions has {len(partitions)} labels for {len(frame)} rows; one for each row.")
    if partitions.isna().any():
        raise ValueError(f"{int(partitions.isna().sum())} rows have no partition label; label or drop them.")
    text = partitions.astype("string[pyarrow]")
    labels = sorted({*text.unique().tolist(), *(expected or ())})
    return pd.Categorical(text.to_numpy(dtype=object), categories=labels).codes.astype(int), labels


def _asked(rule: Rule) -> str:  # noqa: PLR0911 - one for each kind
    match rule.kind:
        case "required_column":
            return "the column is missing and has no default"
        case "expected_column":
            return "the column is missing; its cells count as empty"
        case "type":
            return f"cells that cannot be read as {rule.family}"
        case "not_null":
            return "empty cells in a column that must be filled"
        case "unique_key":
            return "rows that share their key with another row"
        case "finite":
            return "infinite numbers"
        case "range":
            limits = [
                f"{sign} {limit:g}"
                for sign, limit in (("at least", rule.minimum), ("at most", rule.maximum))
                if limit is not None
            ]
            return f"cells outside the range: {', '.join(limits)} expected"
        case "vocabulary":
            shown = ", ".join(rule.values[:8]) + (", ..." if len(rule.values) > 8 else "")
            return f"cells that are not among the accepted values ({shown})"
        case "order":
            return f"{rule.column} is later (or larger) than {rule.other}"
        case "check_digit":
            return "numbers that are not ten digits ending in the Luhn digit over prefix 80840"
        case _:
            systems = facts(raw_table(rule.table).columns[rule.column]).codes
            if not systems:
                return f"keys of another shape than {rule.pattern}"
            about = [f"{SYSTEMS[name].title}: {SYSTEMS[name].expected}" for name in systems]
            open_ = " (ten digits of an NDC without hyphens can be three codes)" if "ndc" in systems else ""
            return f"codes of another shape than {'; or '.join(about)}{open_}"


def _score_findings(scores: Scores, label: str, policy: QualityPolicy) -> list[Finding]:
    settings = policy.settings
    found = []

    def add(rule: str, severity: Severity, detail: str) -> None:
        found.append(
            Finding(rule=rule, layer="dimensions", severity=severity, partition=label, detail=detail)
        )

    for name in DIMENSIONS:
        value = scores.dimension(name)
        if value is None:
            continue
        floor, warn = settings.floors.get(name), settings.warn_below.get(name)
        if floor is not None and value < floor:
            add(f"dimension_{name}", "fatal", f"{name} is {value:.3f}, its floor is {floor:.2f}")
        elif warn is not None and value < warn:
            add(f"dimension_{name}", "convention", f"{name} is {value:.3f}, below {warn:.2f}")
    if scores.age_days is not None and scores.age_days > settings.max_age_days:
        detail = f"the newest row is {scores.age_days:.0f} days old, at most {settings.max_age_days} expected"
        add("dimension_timeliness", "convention", detail)
    if scores.overall is not None and scores.overall < settings.overall:
        add("overall_score", "fatal", f"overall is {scores.overall:.3f}, {settings.overall:.2f} is required")
    return found


def _expectation_findings(suite: PartExpectations, label: str, policy: QualityPolicy) -> list[Finding]:
    found = []
    for failure in suite.failures:
        if failure.error is not None:
            rule, severity = "check_error", "fatal"
            detail = f"expectation {failure.title} could not be evaluated ({failure.error})"
        else:
            rule = "expectation_critical" if failure.critical else "expectation"
            severity = "fatal" if failure.critical else "characterization"
            detail = f"not met: {failure.title}; {failure.because}"
        found.append(
            Finding(
                rule=rule,
                layer="expectations",
                severity=severity,
                partition=label,
                column=failure.column,
                detail=detail,
            )
        )
    rate, wanted = suite.pass_rate, policy.settings.min_pass_rate
    if rate is not None and rate < wanted:
        found.append(
            Finding(
                rule="expectation_pass_rate",
                layer="expectations",
                severity="convention",
                partition=label,
                count=len(suite.failures),
                checked=suite.evaluated,
                detail=f"{suite.passed} of {suite.evaluated} expectations hold, {wanted:.0%} expected",
            )
        )
    return found


def _error_finding(layer: Layer, label: str, error: Exception) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    # The text of the exception stays out: it may hold a value of a row.
    detail = f"the layer {layer} stopped with {type(error).__name__} at {place}; nothing it checks counts as passed"
    return Finding(rule="check_error", layer=layer, severity="fatal", partition=label, detail=detail)


def _verdict(findings: Sequence[Finding]) -> Verdict:
    if any(finding.rule == "check_error" for finding in findings):
        return "error"
    if decide(findings):
        return "failed"
    return "warning" if any(finding.severity == "convention" for finding in findings) else "passed"


def _part_scores(scores: DimensionScores | None, label: str) -> Scores | None:
    return None if scores is None else scores.partitions.get(label)


def _missing(name: str) -> PartitionQuality:
    raise KeyError(name)


def findings_table(findings: Sequence[Finding], most: int = 50) -> Table:
    """The first ``most`` findings; a note says how many more there are."""
    columns = (
        "severity",
        "trend",
        "rule",
        "partition",
        "column",
        "rows",
        "share",
        "what",
        "keys (pseudonyms)",
        "page",
    )
    rows = [
        (
            *(
                finding.severity,
                finding.trend,
                finding.rule,
                finding.partition,
                finding.column,
                finding.count,
                finding.share,
                finding.detail,
            ),
            *(", ".join(finding.sample_keys) or None, finding.page),
        )
        for finding in findings[:most]
    ]
    more = len(findings) - most
    note = f"{more} more in data_quality_results." if more > 0 else ""
    return Table(columns, rows, {"share": ".2%"}, note=note, empty="No findings.")


def _partitions_table(parts: Sequence[PartitionQuality]) -> Table:
    rows = [
        (
            *(
                part.partition,
                part.verdict,
                part.rows,
                *(getattr(part.scores, name, None) for name in SCORES),
            ),
            f"{part.expectations.passed} of {part.expectations.evaluated}" if part.expectations else None,
        )
        for part in parts
    ]
    return Table(
        ("partition", "verdict", "rows", *SCORES, "expectations"), rows, dict.fromkeys(SCORES, ".3f")
    )


def _columns_table(columns: Sequence[ColumnScore]) -> Table:
    names = ("column", "expected", "filled", "applicable", "completeness", "invalid", "validity")
    rows = [[getattr(column, name) for name in names] for column in columns]
    return Table(names, rows, {"completeness": ".3f", "validity": ".3f"})


def _report_record(report: QualityReport, part: PartitionQuality, identity: str) -> dict[str, Any]:
    suite = part.expectations
    failures = suite.failures if suite else ()
    return {
        "id": identity,
        "report_name": f"{report.table}/{part.partition}",
        "expectation_suite_name": report.table,
        "table_name": report.table,
        "partition": part.partition,
        "row_count": part.rows,
        "overall_status": part.verdict,
        "expectations_evaluated": suite.evaluated if suite else 0,
        "expectations_passed": suite.passed if suite else 0,
        "expectations_failed": len(failures),
        "success_rate": suite.pass_rate if suite else None,
        "failed_expectations": [failure.model_dump(mode="json") for failure in failures],
        **{f"{name}_score": part.scores.dimension(name) if part.scores else None for name in DIMENSIONS},
        "overall_score": part.scores.overall if part.scores else None,
        "ruleset_hash": report.ruleset_hash,
        "profile": {name: column.model_dump(mode="json") for name, column in part.profile.items()},
        "as_of": report.as_of,
        "run_at": report.checked_at,
        "duration_seconds": report.seconds,
    }


def _result_record(report: QualityReport, finding: Finding, identity: str) -> dict[str, Any]:
    return {
        "report_id": identity,
        "table_name": report.table,
        "partition": finding.partition,
        "rule_id": finding.rule,
        "layer": finding.layer,
        "severity": finding.severity,
        "column_name": finding.column,
        "rows_failed": finding.count,
        "rows_checked": finding.checked,
        "detail": finding.detail,
        "sample_keys": list(finding.sample_keys),
        "trend": finding.trend,
        "page": finding.page,
        "checked_at": report.checked_at,
    }
