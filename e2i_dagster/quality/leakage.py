"""Audit of a training frame for leakage: what knows the answer, or knows the test set.

Five checks. *known_at*: columns whose value is as of the extract, refused by name. *temporal*: dates
after the index date. *target*: single features that give the label away, by themselves or by being
missing. *contamination*: patients or rows shared by any two splits. Each finding names the columns,
the evidence and the remedy; no value of a row is in it.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from e2i_dagster.config.base import PolicyModel
from e2i_dagster.config.quality import LeakageSettings, Severity, current_quality_policy
from e2i_dagster.errors import InputError
from e2i_dagster.warehouse.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    facts,
    frame_columns,
    raw_table,
)

Kind = Literal["known_at", "temporal", "target", "contamination"]
_CHECKS: tuple[Kind, ...] = ("known_at", "temporal", "target", "contamination")
_BINS = 32
_MAX_CLASSES = 20
_SEED = 20240229
#: Keys and bookkeeping of a training frame: never features.
_BOOKKEEPING = frozenset({"patient_journey_id", "hcp_id", "set", "reason", "event_timestamp", "as_of"})


class LeakageFinding(PolicyModel):
    """One leak: what, where, how it was seen, what to do.

    ``severity`` ``fatal`` blocks, ``convention`` warns.
    """

    kind: Kind
    rule: str
    columns: tuple[str, ...]
    severity: Severity
    evidence: str
    remedy: str
    affected: int | None = None

    @property
    def page(self) -> str:
        """Page of the rule in the documentation."""
        return f"docs/rules/{self.rule}.md"


class CheckState(PolicyModel):
    """Whether a check of the audit ran; ``reason`` says why not."""

    kind: Kind
    ran: bool
    reason: str = ""


class LeakageReport(PolicyModel):
    """Findings of one audit and the state of each of its checks."""

    rows: int
    target: str
    features: tuple[str, ...]
    splits: tuple[str, ...]
    checks: tuple[CheckState, ...]
    findings: tuple[LeakageFinding, ...]

    @property
    def blocking(self) -> bool:
        """True if the frame may not be trained on."""
        return any(finding.severity == "fatal" for finding in self.findings)

    def to_metadata(self) -> dict[str, Any]:
        """What the UI shows: counts, the table of findings, which checks ran."""
        lines = [
            "| severity | kind | columns | rows | evidence | remedy | page |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in self.findings:
            rows = "–" if one.affected is None else f"{one.affected:,}"
            columns = ", ".join(one.columns).replace("|", "\\|")
            lines.append(
                f"| {one.severity} | {one.kind} | {columns} | {rows} | {one.evidence} | {one.remedy} | {one.page} |"
            )
        states = ["| check | state |", "|---|---|"]
        states += [
            f"| {one.kind} | {'ran' if one.ran else 'skipped: ' + one.reason} |" for one in self.checks
        ]
        return {
            "blocking": self.blocking,
            "rows": self.rows,
            "features": len(self.features),
            "splits": list(self.splits),
            "findings": len(self.findings),
            "findings_md": "\n".join(lines) if self.findings else "No findings.",
            "checks_md": "\n".join(states),
        }

    def to_record(self) -> dict[str, list[dict[str, Any]]]:
        """``{"rows": [...]}`` for ``ml_leakage_audit``: one for each finding, one for each clean check."""
        level = {"fatal": "critical", "convention": "warning", "characterization": "info"}
        rows: list[dict[str, Any]] = [
            {
                "check_type": one.kind,
                "passed": one.severity != "fatal",
                "severity": level[one.severity],
                "details": f"{', '.join(one.columns)}: {one.evidence}",
                "affected_records": one.affected,
                "remediation_action": one.remedy,
            }
            for one in self.findings
        ]
        found = {one.kind for one in self.findings}
        rows.extend(
            {
                "check_type": one.kind,
                "passed": True,
                "severity": "info",
                "details": "nothing found",
                "affected_records": None,
                "remediation_action": None,
            }
            for one in self.checks
            if one.ran and one.kind not in found
        )
        return {"rows": rows}


def audit(
    frame: pd.DataFrame,
    *,
    target: str,
    id_column: str = "patient_id",
    index_date: str | dt.date | None = None,
    date_columns: Sequence[str] | None = None,
    splits: str | Mapping[str, pd.DataFrame] | None = None,
    extract_columns: Collection[str] | None = None,
    settings: LeakageSettings | None = None,
) -> LeakageReport:
    """Audit a training frame (rows: patients) for leakage.

    Args:
        frame: features, target, keys and, if named, index date and split. Not changed. Every column that
            is not target, key, date or split is audited as a feature, listed anywhere or not.
        target: label column; binary, multiclass, text or numeric. Rows without a label are left out of
            the target check.
        id_column: column that identifies the patient.
        index_date: column with the index date of each row, or one date for all. None: the temporal check
            is skipped and says so.
        date_columns: columns to compare with the index date. Default: every datetime column, and every
            text column named like a date whose values are dates.
        splits: column with the split of each row, or split name to frame (which then are audited for
            contamination with each other; ``frame`` is audited for all else). None: skipped.
        extract_columns: names that are refused as features. Default: the raw columns described as known
            at the extract only.
        settings: limits. Default: ``leakage`` of config/quality.yaml.

    Raises:
        InputError: a named column does not exist.
    """
    limits = settings or current_quality_policy().settings.leakage
    index_column = index_date if isinstance(index_date, str) else None
    split_column = splits if isinstance(splits, str) else None
    _require(frame, [target, id_column, *(date_columns or ()), index_column, split_column])
    parts = _parts(frame, splits, id_column)
    dates = list(date_columns) if date_columns is not None else _dates(frame)
    dates = [name for name in dates if name not in {index_column, target, "event_timestamp"}]
    apart = {target, id_column, index_column, split_column, *dates} | _BOOKKEEPING
    features = [name for name in frame.columns if name not in apart]
    refused = extract_only_columns() if extract_columns is None else frozenset(extract_columns)

    findings = [*_known_at([*features, *dates], refused)]
    reasons: dict[Kind, str] = {}
    if index_date is None:
        reasons["temporal"] = "no index date was given"
    else:
        findings.extend(_temporal(frame, dates, index_date))
    labelled = int(frame[target].notna().sum())
    if labelled < limits.min_rows:
        reasons["target"] = f"{labelled} labelled rows, at least {limits.min_rows} are needed"
    elif frame[target].nunique() < 2:
        reasons["target"] = "the label has a single value"
    else:
        findings.extend(_target(frame, features, target, limits))
    if parts is None:
        reasons["contamination"] = "no splits were given"
    else:
        findings.extend(_contamination(parts, id_column, features))
    return LeakageReport(
        rows=len(frame),
        target=target,
        features=tuple(str(name) for name in features),
        splits=tuple(parts or ()),
        checks=tuple(
            CheckState(kind=kind, ran=kind not in reasons, reason=reasons.get(kind, "")) for kind in _CHECKS
        ),
        findings=tuple(findings),
    )


@lru_cache(maxsize=1)
def extract_only_columns() -> frozenset[str]:
    """Raw columns whose value is as of the extract in every raw table that has them."""
    known: dict[str, set[str]] = {}
    for table in RAW_TABLES + OPTIONAL_RAW_TABLES:
        for name in frame_columns(table):
            known.setdefault(name, set()).add(facts(raw_table(table).columns[name]).known_at)
    return frozenset(name for name, times in known.items() if times == {"extract"})


def _require(frame: pd.DataFrame, names: Sequence[str | None]) -> None:
    missing = [name for name in names if name is not None and name not in frame.columns]
    if missing:
        raise InputError(
            f"The audited frame has no column {', '.join(missing)}. It has: {', '.join(map(str, frame.columns))}."
        )


def _parts(
    frame: pd.DataFrame, splits: str | Mapping[str, pd.DataFrame] | None, id_column: str
) -> dict[str, pd.DataFrame] | None:
    if splits is None:
        return None
    if isinstance(splits, str):
        return {str(name): part for name, part in frame.groupby(splits, sort=True, observed=True)}
    for name, part in splits.items():
        if id_column not in part.columns:
            raise InputError(f"The frame of split {name} has no column {id_column}.")
    return {str(name): part for name, part in splits.items()}


def _dates(frame: pd.DataFrame) -> list[str]:
    found = []
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            found.append(name)
        elif any(part in str(name).lower() for part in ("date", "time")) and _is_text(column):
            filled = column.dropna()
            read = pd.to_datetime(filled.astype(str), errors="coerce", utc=True, format="ISO8601")
            if len(filled) and read.notna().mean() > 0.5:
                found.append(name)
    return found


def _is_text(column: pd.Series) -> bool:
    return column.dtype == object or isinstance(column.dtype, pd.StringDtype | pd.CategoricalDtype)


def _known_at(names: Sequence[Hashable], refused: Collection[str]) -> list[LeakageFinding]:
    return [
        LeakageFinding(
            kind="known_at",
            rule="leakage_known_at",
            columns=(str(name),),
            severity="fatal",
            evidence="its value is as of the extract, after the outcome could be known",
            remedy="drop it; where events tell the same with a date, make the feature from those before the index",
        )
        for name in names
        if name in refused
    ]


def _moments(column: pd.Series) -> pd.Series:
    if _is_text(column):
        return pd.to_datetime(
            column.astype("string").astype(object), errors="coerce", utc=True, format="ISO8601"
        )
    return pd.to_datetime(column, errors="coerce", utc=True)


def _temporal(frame: pd.DataFrame, dates: Sequence[str], index_date: str | dt.date) -> list[LeakageFinding]:
    if isinstance(index_date, str):
        index = _moments(frame[index_date])
    else:
        index = pd.Series(pd.Timestamp(index_date, tz="UTC"), index=frame.index)
    found = []
    for name in dates:
        moment = _moments(frame[name])
        # A date of the index day itself has no time of day and is the index.
        late = int((moment.dt.normalize() > index.dt.normalize()).sum())
        if late:
            found.append(
                LeakageFinding(
                    kind="temporal",
                    rule="leakage_temporal",
                    columns=(str(name),),
                    severity="fatal",
                    evidence=f"{late:,} of {int(moment.notna().sum()):,} dates are after the index date",
                    remedy="make the feature from rows dated before the index date only",
                    affected=late,
                )
            )
    return found


def _target(
    frame: pd.DataFrame, features: Sequence[str], target: str, limits: LeakageSettings
) -> list[LeakageFinding]:
    labelled = frame[frame[target].notna()]
    answers = _answers(labelled[target])
    number = _numbers(labelled[target])
    halves = np.random.default_rng(_SEED).permutation(len(labelled)) % 2 == 0
    found = []
    for name in features:
        column = labelled[name]
        correlation = _correlation(column, number)
        auc = _best_auc(_groups(column), answers, halves)
        empty = column.isna().to_numpy(dtype=bool)
        gap = max((_indicator_auc(empty, answer) for answer in answers), default=0.5) if empty.any() else 0.5
        if correlation is not None and abs(correlation) > limits.max_correlation:
            found.append(
                _proxy(name, "fatal", f"correlation with the label {correlation:+.3f}", "leakage_target")
            )
        elif gap > limits.warn_auc:
            severity: Severity = "fatal" if gap > limits.max_auc else "convention"
            evidence = f"being empty or not tells the label: AUC {gap:.3f}"
            found.append(_proxy(name, severity, evidence, "leakage_missing"))
        elif auc > limits.warn_auc:
            severity = "fatal" if auc > limits.max_auc else "convention"
            evidence = f"alone it tells the label: out-of-fold AUC {auc:.3f}"
            found.append(_proxy(name, severity, evidence, "leakage_target"))
    return found


def _proxy(name: Hashable, severity: Severity, evidence: str, rule: str) -> LeakageFinding:
    return LeakageFinding(
        kind="target",
        rule=rule,
        columns=(str(name),),
        severity=severity,
        evidence=evidence,
        remedy="find out when the value is known; drop it unless it is known before the index date",
    )


def _numbers(column: pd.Series) -> np.ndarray | None:
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        return column.astype("Float64").to_numpy(dtype="float64", na_value=np.nan)
    return None


def _answers(target: pd.Series) -> list[np.ndarray]:
    """The label as yes/no questions: one for two classes, one a class for several, quartiles for numbers."""
    number = _numbers(target)
    if number is not None and target.nunique() > _MAX_CLASSES:
        return [number > limit for limit in np.unique(np.quantile(number, [0.25, 0.5, 0.75]))]
    codes, values = pd.factorize(target.astype(object))
    kept = pd.Series(codes).value_counts().index[:_MAX_CLASSES]
    questions = [codes == code for code in kept]
    return questions[:1] if len(values) == 2 else questions


def _correlation(column: pd.Series, target: np.ndarray | None) -> float | None:
    number = _numbers(column)
    if number is None or target is None:
        return None
    both = np.isfinite(number) & np.isfinite(target)
    if both.sum() < 3 or np.ptp(number[both]) == 0 or np.ptp(target[both]) == 0:
        return None
    return float(np.corrcoef(number[both], target[both])[0, 1])


def _groups(column: pd.Series) -> np.ndarray:
    """Small integer group of each cell: categories as they are, numbers by quantile; null is group 0."""
    number = _numbers(column)
    if number is not None and column.nunique() > _BINS:
        finite = np.isfinite(number)
        edges = np.unique(np.quantile(number[finite], np.linspace(0, 1, _BINS + 1)[1:-1]))
        return np.where(finite, np.searchsorted(edges, number, side="right") + 1, 0)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        column = column.astype("int64").where(column.notna())
    elif column.dtype == object:
        column = column.map(str, na_action="ignore")
    codes, _ = pd.factorize(column, use_na_sentinel=True)
    return np.asarray(codes) + 1


def _best_auc(groups: np.ndarray, answers: Sequence[np.ndarray], halves: np.ndarray) -> float:
    """Largest AUC of the label's rate by group, learned on one half and judged on the other, both ways.

    A feature with a group for each row (an identifier) has nothing to learn and comes out at 0.5.
    """
    best = 0.5
    size = int(groups.max(initial=0)) + 1
    for answer in answers:
        judged = []
        for learn in (halves, ~halves):
            totals = np.bincount(groups[learn], minlength=size)
            hits = np.bincount(groups[learn], weights=answer[learn], minlength=size)
            # One pseudo-row at the overall rate: unseen groups get the overall rate.
            rate = (hits + answer[learn].mean()) / (totals + 1)
            judged.append(_auc(rate[groups[~learn]], answer[~learn]))
        best = max(best, sum(judged) / 2)
    return best


def _auc(scores: np.ndarray, answer: np.ndarray) -> float:
    positive = int(answer.sum())
    negative = len(answer) - positive
    if not positive or not negative:
        return 0.5
    ranks = pd.Series(scores).rank(method="average").to_numpy()
    return float((ranks[answer].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _indicator_auc(flag: np.ndarray, answer: np.ndarray) -> float:
    if answer.all() or not answer.any():
        return 0.5
    return 0.5 + abs(float(flag[answer].mean()) - float(flag[~answer].mean())) / 2


def _contamination(
    parts: Mapping[str, pd.DataFrame], id_column: str, features: Sequence[str]
) -> list[LeakageFinding]:
    found = []
    ids = {name: pd.Index(part[id_column].dropna().unique()) for name, part in parts.items()}
    shared_columns = [name for name in features if all(name in part.columns for part in parts.values())]
    prints = (
        {name: _row_prints(part, shared_columns) for name, part in parts.items()} if shared_columns else {}
    )
    for first, second in itertools.combinations(parts, 2):
        both = ids[first].intersection(ids[second])
        if len(both):
            found.append(
                LeakageFinding(
                    kind="contamination",
                    rule="leakage_shared_patients",
                    columns=(id_column,),
                    severity="fatal",
                    evidence=f"{len(both):,} patients are in {first} and in {second}",
                    remedy="assign splits by patient; all rows of a patient belong to one split",
                    affected=len(both),
                )
            )
        if not prints:
            continue
        known_first = parts[first][id_column].isin(both).to_numpy(dtype=bool)
        known_second = parts[second][id_column].isin(both).to_numpy(dtype=bool)
        copies, expected = _copies(prints[first][~known_first], prints[second][~known_second])
        if copies > expected + 4 * np.sqrt(expected + 1):
            found.append(
                LeakageFinding(
                    kind="contamination",
                    rule="leakage_duplicate_rows",
                    columns=tuple(str(name) for name in shared_columns),
                    severity="fatal",
                    evidence=(
                        f"{copies:,} rows of {second} have the features of a row of {first} under another "
                        f"patient; {expected:.0f} would be expected by chance"
                    ),
                    remedy="look for patients delivered under two identifiers; keep one of each",
                    affected=copies,
                )
            )
    return found


def _row_prints(part: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """One hash for each row over the feature values."""
    plain = pd.DataFrame(
        {
            name: part[name].map(str, na_action="ignore") if part[name].dtype == object else part[name]
            for name in columns
        }
    )
    return cast(np.ndarray, pd.util.hash_pandas_object(plain, index=False).to_numpy())


def _copies(first: np.ndarray, second: np.ndarray) -> tuple[int, float]:
    """Rows of ``second`` whose features occur in ``first``, and how many chance explains.

    Few or coarse features coincide by chance. The share of rows of ``first`` that have a twin within
    ``first`` says how often.
    """
    if not len(first) or not len(second):
        return 0, 0.0
    values, counts = np.unique(first, return_counts=True)
    twins = float(counts[counts > 1].sum()) / len(first)
    return int(np.isin(second, values).sum()), twins * len(second)
