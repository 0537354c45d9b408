"""Audit of a training frame for leakage: what knows the answer, or knows the test set.

Five checks. *known_at*: columns whose value is as of the extract, refused by name. *temporal*: dates
after the index date, events counted back from after it, rows of one patient whose outcome windows overlap.
*target*: single columns that give the label away, by themselves or by being missing, and large categories that
cannot have the outcome. *window*: dates and
lengths of windows that depend on the label. *contamination*: patients, equal rows or nearly equal rows
shared by any two splits. Each finding names the columns, the evidence and the remedy; no value of a row is
in it. An error inside a check is a finding that blocks.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml

from e2i_dagster.config.quality import LeakageSettings, QualityPolicy, Severity, current_quality_policy
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import PolicyModel, digest_of
from e2i_dagster.quality import near_duplicates as twins
from e2i_dagster.quality import proxies
from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    facts,
    frame_columns,
    raw_table,
)
from e2i_dagster.tables.moments import ParsedMoments, earlier, moments

Kind = Literal["known_at", "temporal", "target", "window", "contamination"]
CHECKS: tuple[Kind, ...] = ("known_at", "temporal", "target", "window", "contamination")
#: Raised when a check changes its meaning: audits of before no longer count.
AUDIT_VERSION = 4
_SEED = 20240229
_MOST_DATES_PAIRED = 10
#: A category without an event is a finding when chance makes one in any column of the frame less often than this.
_BY_CHANCE = 1e-4
#: Smaller categories are not named: they could tell of persons.
_LEAST_OF_A_CATEGORY = 11
#: A number with more values than this is a measure, not a code.
_MOST_CODES = 100
_HOLDOUT = "holdout"
_ISO_DATE = re.compile(r"\s*\d{4}-\d{2}-\d{2}")
_SINCE = re.compile(r"(^|_)(days|weeks|months|hours)_since(_|$)")
#: Keys and bookkeeping of a training frame: never features.
_BOOKKEEPING = frozenset({"patient_journey_id", "hcp_id", "set", "reason", "event_timestamp", "as_of"})


class LeakageFinding(PolicyModel):
    """One leak: what, where, how it was seen, what to do.

    ``severity`` ``fatal`` blocks, ``convention`` warns. ``proposal``: a rule for a cohort file (YAML) that removes
    the rows it is about.
    """

    kind: Kind
    rule: str
    columns: tuple[str, ...]
    severity: Severity
    evidence: str
    remedy: str
    affected: int | None = None
    proposal: str | None = None

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
        return {
            "blocking": self.blocking,
            "rows": self.rows,
            "features": len(self.features),
            "splits": list(self.splits),
            "findings": Table(
                ("severity", "kind", "columns", "rows", "evidence", "remedy", "page"),
                [
                    (
                        *(
                            finding.severity,
                            finding.kind,
                            finding.columns,
                            finding.affected,
                            finding.evidence,
                        ),
                        *(
                            finding.remedy
                            if finding.proposal is None
                            else f"{finding.remedy}: {finding.proposal}",
                            finding.page,
                        ),
                    )
                    for finding in self.findings
                ],
                empty="No findings.",
            ),
            "checks": Table(
                ("check", "state"),
                [(check.kind, "ran" if check.ran else f"skipped: {check.reason}") for check in self.checks],
            ),
        }

    def to_record(self) -> dict[str, list[dict[str, Any]]]:
        """``{"rows": [...]}`` for ``ml_leakage_audit``: one for each finding, one for each clean check."""
        level = {"fatal": "critical", "convention": "warning", "characterization": "info"}
        rows: list[dict[str, Any]] = [
            {
                "check_type": finding.kind,
                "passed": finding.severity != "fatal",
                "severity": level[finding.severity],
                "details": f"{', '.join(finding.columns)}: {finding.evidence}",
                "affected_records": finding.affected,
                "remediation_action": finding.remedy
                if finding.proposal is None
                else f"{finding.remedy}: {finding.proposal}",
            }
            for finding in self.findings
        ]
        found = {finding.kind for finding in self.findings}
        rows.extend(
            {
                "check_type": check.kind,
                "passed": True,
                "severity": "info",
                "details": "nothing found",
                "affected_records": None,
                "remediation_action": None,
            }
            for check in self.checks
            if check.ran and check.kind not in found
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
    horizon_days: int | None = None,
    extract_columns: Collection[str] | None = None,
    settings: LeakageSettings | None = None,
    outcome_window: Sequence[str] = (),
) -> LeakageReport:
    """Audit a training frame (rows: patients) for leakage.

    Args:
        frame: features, target, keys and, if named, index date and split. Not changed. Every column that
            is not target, key, date or split is audited as a feature, listed anywhere or not.
        target: label column; binary, multiclass, text or numeric. Rows without a label are left out of
            the target check, and so are rows of a split named ``holdout``.
        id_column: column that identifies the patient.
        index_date: column with the index date of each row, or one date for all. None: the temporal check
            is skipped and says so.
        date_columns: columns to compare with the index date. Default: every date and timestamp column, and
            every text column whose values are ISO dates.
        splits: column with the split of each row, or split name to frame (which then are audited for
            contamination with each other; ``frame`` is audited for all else). None: skipped.
        horizon_days: length of the outcome window, which begins the day after the index date.
        extract_columns: names that are refused as features. Default: the raw columns described as known
            at the extract only.
        settings: limits. Default: ``leakage`` of config/quality.yaml.
        outcome_window: columns that describe the outcome window, such as its end; neither features nor dates.

    Raises:
        InputError: a named column does not exist, or two columns have one name.
    """
    limits = settings or current_quality_policy().settings.leakage
    index_column = index_date if isinstance(index_date, str) else None
    split_column = splits if isinstance(splits, str) else None
    _require(frame, [target, id_column, *(date_columns or ()), *outcome_window, index_column, split_column])
    parts = _parts(frame, splits, id_column)
    dates = list(date_columns) if date_columns is not None else _dates(frame)
    dates = [name for name in dates if name not in {index_column, target, "event_timestamp", *outcome_window}]
    _require_days(frame, [*(date_columns or ()), *([index_column] if index_column else [])])
    apart = {target, id_column, index_column, split_column, *outcome_window, *dates} | _BOOKKEEPING
    features = [name for name in frame.columns if name not in apart]
    refused = extract_only_columns() if extract_columns is None else frozenset(extract_columns)

    labelled = frame[_may_be_looked_at(frame, target, split_column)]
    index = None if index_date is None else _index(frame, index_date)
    unlabelled = _why_no_target(labelled[target], limits)
    checks: dict[Kind, tuple[str, Callable[[], Iterable[LeakageFinding]]]] = {
        "known_at": ("", lambda: _known_at([*features, *dates], refused)),
        "temporal": (
            "no index date was given" if index is None else "",
            lambda: _temporal(frame, features, dates, index, id_column, horizon_days),
        ),
        "target": (unlabelled, lambda: _target(labelled, features, dates, target, limits)),
        "window": (
            unlabelled,
            lambda: _windows(
                labelled, dates, None if index is None else index[labelled.index], target, limits
            ),
        ),
        "contamination": (
            "no splits were given" if parts is None else "",
            lambda: _contamination(parts or {}, id_column, features, limits),
        ),
    }
    findings: list[LeakageFinding] = []
    states: list[CheckState] = []
    for kind, (not_run, run) in checks.items():
        reason = not_run
        if not reason:
            try:
                findings.extend(run())
            except Exception as error:  # noqa: BLE001 - an error in a check is a finding: it blocks
                findings.append(_error(kind, error))
                reason = f"it ended in {type(error).__name__}"
        states.append(CheckState(kind=kind, ran=not reason, reason=reason))
    return LeakageReport(
        rows=len(frame),
        target=target,
        features=tuple(str(name) for name in features),
        splits=tuple(parts or ()),
        checks=tuple(states),
        findings=tuple(findings),
    )


def audit_rules(policy: QualityPolicy | None = None) -> str:
    """Digest of everything that decides the verdict of an audit; a verdict counts only under its own rules."""
    limits = (policy or current_quality_policy()).settings.leakage
    return digest_of(
        {
            "version": AUDIT_VERSION,
            "limits": limits.model_dump(mode="json"),
            "extract": sorted(extract_only_columns()),
        }
    )


@lru_cache(maxsize=1)
def extract_only_columns() -> frozenset[str]:
    """Raw columns whose value is as of the extract in every raw table that has them."""
    known: dict[str, set[str]] = {}
    for table in RAW_TABLES + OPTIONAL_RAW_TABLES:
        for name in frame_columns(table):
            known.setdefault(name, set()).add(facts(raw_table(table).columns[name]).known_at)
    return frozenset(name for name, times in known.items() if times == {"extract"})


def _error(kind: Kind, error: Exception) -> LeakageFinding:
    # The text of an exception may hold values of patients: only its type and place are reported.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return LeakageFinding(
        kind=kind,
        rule="check_error",
        columns=(),
        severity="fatal",
        evidence=f"the check ended in {type(error).__name__} at {place}",
        remedy="mend what the check met; nothing counts as passed that did not run",
    )


def _require(frame: pd.DataFrame, names: Sequence[str | None]) -> None:
    if not frame.columns.is_unique:
        twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
        raise InputError(
            f"The audited frame has two columns of one name: {', '.join(twice)}.", remedy="Rename one."
        )
    missing = [name for name in names if name is not None and name not in frame.columns]
    if missing:
        raise InputError(
            f"The audited frame has no column {', '.join(missing)}.",
            field=missing[0],
            remedy=f"It has: {', '.join(map(str, frame.columns))}.",
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
            raise InputError(
                f"The frame of split {name} has no column {id_column}.", field=id_column, remedy="Add it."
            )
    return {str(name): part for name, part in splits.items()}


def _may_be_looked_at(frame: pd.DataFrame, target: str, split_column: str | None) -> np.ndarray:
    """Rows with a label whose outcome is not sealed for ever: those of the holdout are not looked at."""
    kept = frame[target].notna().to_numpy(dtype=bool)
    if split_column is not None:
        kept &= (frame[split_column].astype(object) != _HOLDOUT).to_numpy(dtype=bool)
    return kept


def _why_no_target(label: pd.Series, limits: LeakageSettings) -> str:
    if len(label) < limits.min_rows:
        return f"{len(label)} labelled rows, at least {limits.min_rows} are needed"
    return "the label has a single value" if proxies.hashable(label).nunique() < 2 else ""


def _dates(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if _holds_dates(frame[name])]


def _holds_dates(column: pd.Series) -> bool:
    kind = str(column.dtype)
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or kind.startswith(("date", "timestamp", "period")):
        return True
    if not proxies.is_text(column):
        return False
    cells = column.dropna().head(1_000).tolist()
    # Any other Python value is no date, whatever its text is.
    written = [cell.isoformat() if isinstance(cell, dt.date) else cell for cell in cells]
    sample = [text if isinstance(text, str) else "" for text in written]
    judged = _parsed(pd.Series(sample, dtype=object))
    dated = judged.values.is_valid().to_numpy(zero_copy_only=False)
    if "ambiguous_date" in judged.refused:
        dated = dated | judged.refused["ambiguous_date"].to_numpy(zero_copy_only=False)
    # A day with a word behind it is a date that cannot be read, not another kind of text.
    dated = dated | np.array([bool(_ISO_DATE.match(text)) for text in sample], dtype=bool)
    return bool(dated.sum() > len(sample) / 2)


def _parsed(column: pd.Series) -> ParsedMoments:
    import pyarrow as pa

    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return moments(pa.array(column))
    return moments(pa.array(column.astype("string").astype(object), pa.large_string(), from_pandas=True))


def _known_at(names: Sequence[str], refused: Collection[str]) -> list[LeakageFinding]:
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
        if str(name).strip().lower() in refused
    ]


def _moments(column: pd.Series) -> pd.Series:
    """Moments in UTC as the loader reads them; null where a cell is empty or refused."""
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    return _parsed(column).values.to_pandas().set_axis(column.index)


def _unread(column: pd.Series) -> dict[str, int]:
    """Cells of a date column that the loader would refuse, by reason."""
    if isinstance(column.dtype, pd.PeriodDtype):
        return {}
    refused = _parsed(column).refused.items()
    counts = {reason: int(mask.to_numpy(zero_copy_only=False).astype(bool).sum()) for reason, mask in refused}
    return {reason: rows for reason, rows in counts.items() if rows}


def _require_days(frame: pd.DataFrame, named: Sequence[str]) -> None:
    for name in named:
        for reason, rows in _unread(frame[name]).items():
            raise InputError(
                f"Column {name} has {rows:,} value(s) refused as {reason}.",
                remedy="Write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ.",
            )


def _index(frame: pd.DataFrame, index_date: str | dt.date) -> pd.Series:
    if isinstance(index_date, str):
        return _moments(frame[index_date])
    moment = pd.Timestamp(index_date)
    moment = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
    return pd.Series(moment, index=frame.index)


def _temporal(
    frame: pd.DataFrame,
    features: Sequence[str],
    dates: Sequence[str],
    index: pd.Series | None,
    id_column: str,
    horizon_days: int | None,
) -> Iterator[LeakageFinding]:
    if index is None:
        return
    day = index.dt.normalize()
    for name in dates:
        for reason, rows in _unread(frame[name]).items():
            yield LeakageFinding(
                kind="temporal",
                rule="leakage_temporal",
                columns=(str(name),),
                severity="convention",
                evidence=f"{rows:,} values are refused as {reason}: whether they are after the index date is unknown",
                remedy="write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ",
                affected=rows,
            )
        moment = _moments(frame[name])
        after = earlier(index, moment)
        late = int(after.sum())
        if not late:
            continue
        evidence = f"{late:,} of {int(moment.notna().sum()):,} dates are after the index date"
        if horizon_days is not None:
            inside = after & (moment.dt.normalize() <= day + pd.Timedelta(days=horizon_days))
            evidence += f", {int(inside.sum()):,} of them inside the outcome window of {horizon_days} days"
        yield LeakageFinding(
            kind="temporal",
            rule="leakage_temporal",
            columns=(str(name),),
            severity="fatal",
            evidence=evidence,
            remedy="make the feature from rows dated before the index date only; a column that describes the "
            "outcome window is named with --outcome-window",
            affected=late,
        )
    for name in features:
        number = proxies.as_numbers(frame[name]) if _SINCE.search(str(name)) else None
        late = 0 if number is None else int((number < 0).sum())
        if late:
            yield LeakageFinding(
                kind="temporal",
                rule="leakage_temporal",
                columns=(str(name),),
                severity="fatal",
                evidence=f"{late:,} values are negative: the event was after the index date",
                remedy="make the feature from rows dated before the index date only",
                affected=late,
            )
    if horizon_days is not None:
        yield from _overlaps(frame[id_column], day, horizon_days)


def _overlaps(person: pd.Series, day: pd.Series, horizon_days: int) -> Iterator[LeakageFinding]:
    rows = pd.DataFrame(
        {"person": proxies.hashable(person).to_numpy(), "day": day.dt.tz_localize(None).to_numpy()}
    ).dropna()
    rows = rows.sort_values(["person", "day"], kind="stable")
    gap = rows.groupby("person", observed=True)["day"].diff()
    inside = int((gap <= pd.Timedelta(days=horizon_days)).sum())
    if inside:
        yield LeakageFinding(
            kind="temporal",
            rule="leakage_outcome_window",
            columns=(str(person.name),),
            severity="convention",
            evidence=f"{inside:,} rows begin inside the outcome window of an earlier row of the same patient",
            remedy=f"keep one row of a patient, or rows more than {horizon_days} days apart",
            affected=inside,
        )


def _target(
    labelled: pd.DataFrame,
    features: Sequence[str],
    dates: Sequence[str],
    target: str,
    limits: LeakageSettings,
) -> Iterator[LeakageFinding]:
    asked = _Asked(labelled[target], limits)
    told_of: set[str] = set()
    for found in _telling(labelled, features, dates, asked, limits):
        told_of.update(found.columns)
        yield found
    left = [name for name in features if str(name) not in told_of]
    left_dates = [name for name in dates if str(name) not in told_of]
    yield from _without_event(labelled, left, left_dates, target)


def _telling(
    labelled: pd.DataFrame,
    features: Sequence[str],
    dates: Sequence[str],
    asked: _Asked,
    limits: LeakageSettings,
) -> Iterator[LeakageFinding]:
    """Features and dates that give the label away."""
    for name in features:
        column = labelled[name]
        related = proxies.correlation(proxies.as_numbers(column), asked.number)
        if related is not None and abs(related) > limits.max_correlation:
            evidence = f"correlation with the label {related:+.3f}"
            yield _proxy("target", "leakage_target", (name,), "fatal", evidence)
            continue
        missing = asked.missing(column)
        if missing is not None:
            yield _proxy("target", "leakage_missing", (name,), *missing)
            continue
        finding = asked.groups(proxies.groups_of(column), "alone it tells the label")
        for part, groups in proxies.pieces_of_text(column).items():
            finding = finding or asked.groups(
                groups, f"{part} tell the label" if part[-1] == "s" else f"{part} tells it"
            )
        if finding is not None:
            yield _proxy("target", "leakage_target", (name,), *finding)
    for name in dates:
        missing = asked.missing(_moments(labelled[name]))
        if missing is not None:
            yield _proxy("target", "leakage_missing", (name,), *missing)


class _Category(NamedTuple):
    """Rows of one kind: how many, how many of them with the event, which, and the rule that leaves them out."""

    rows: int
    events: int
    which: str
    side: Literal["inclusion_criteria", "exclusion_criteria"]
    rule: dict[str, Any]


def _without_event(
    labelled: pd.DataFrame, features: Sequence[str], dates: Sequence[str], target: str
) -> Iterator[LeakageFinding]:
    """Categories too large to have no event by chance: who is in them cannot have the outcome.

    If events came at the overall rate ``p``, ``n`` rows would have none with probability ``(1 - p)**n``, the
    binomial probability of zero (an exact upper bound for a rate of 0 of n: Clopper and Pearson, Biometrika
    1934;26:404). It is compared with 1e-4 divided by the number of categories looked at (Bonferroni). Asked of
    labels that are 0 or 1 and of the categories of :func:`_categories`.
    """
    number = proxies.as_numbers(labelled[target])
    if number is None or not np.isin(number, (0.0, 1.0)).all():
        return
    event, rate = number == 1.0, float((number == 1.0).mean())
    looked_at = [
        (str(name), category)
        for name in (*features, *dates)
        for category in _categories(labelled[name], event, dated=name in dates)
        if category.rows >= _LEAST_OF_A_CATEGORY
    ]
    for name, column in looked_at:
        if column.events or (1.0 - rate) ** column.rows >= _BY_CHANCE / len(looked_at):
            continue
        shown = yaml.safe_dump(
            [{"field": name, **column.rule}],
            default_flow_style=True,
            width=1_000,
            sort_keys=False,
            allow_unicode=True,
        )
        yield LeakageFinding(
            kind="target",
            rule="leakage_no_event",
            columns=(name,),
            severity="convention",
            evidence=f"cannot have the outcome: none of {column.rows:,} rows{column.which} has it, {rate:.1%} of all "
            "rows have it",
            remedy="leave them out by a rule of the cohort, unless the outcome is possible for them",
            affected=column.rows,
            proposal=f"{column.side}: {shown.strip()}",
        )


def _categories(column: pd.Series, event: np.ndarray, *, dated: bool) -> Iterator[_Category]:
    """Rows without a value and rows with one, where there are both, and the rows of each single value.

    Of a number with more than a hundred values, which is a measure and no code, the most frequent value alone; of
    a date none. Where no row with a value has the event, its single values say nothing more.
    """
    filled = column.notna().to_numpy(dtype=bool)
    if filled.any() and not filled.all():
        known = _known(column, dated=dated)
        empty = _Category(
            int((~filled).sum()), int(event[~filled].sum()), " without a value", "inclusion_criteria",
            {**known, "on_unknown": "exclude"},
        )  # fmt: skip
        given = _Category(
            int(filled.sum()), int(event[filled].sum()), " with a value", "exclusion_criteria", known
        )
        yield from (empty, given)
        if not given.events:
            return
    if dated:
        return
    cells = pd.DataFrame({"value": proxies.hashable(column).to_numpy(), "event": event})
    sizes = cells.groupby("value", observed=True)["event"].agg(["size", "sum"])
    if _is_number(column) and len(sizes) > _MOST_CODES:
        sizes = sizes.nlargest(1, "size")
    for value, rows, events in zip(sizes.index, sizes["size"], sizes["sum"], strict=True):
        rule = {"operator": "==", "value": _plain(value)}
        yield _Category(int(rows), int(events), "", "exclusion_criteria", rule)


def _is_number(column: pd.Series) -> bool:
    return proxies.as_numbers(column) is not None and not pd.api.types.is_bool_dtype(column.dtype)


def _known(column: pd.Series, *, dated: bool) -> dict[str, Any]:
    """A condition of a cohort file that holds for every value that the column has."""
    if dated:
        return {"operator": ">=", "value": "1800-01-01"}
    if pd.api.types.is_bool_dtype(column.dtype):
        return {"operator": "in", "value": [True, False]}
    if not _is_number(column):
        return {"operator": "!=", "value": ""}
    number = pd.Series(proxies.as_numbers(column))
    least = float(number[np.isfinite(number)].min())
    # A round number below all of them: the least value itself may be one person's.
    return {"operator": ">=", "value": -(10.0 ** math.ceil(math.log10(-least))) if least < 0 else 0}


def _plain(value: Any) -> Any:
    """A value as YAML writes it: whole numbers without a fraction."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _windows(
    labelled: pd.DataFrame,
    dates: Sequence[str],
    index: pd.Series | None,
    target: str,
    limits: LeakageSettings,
) -> Iterator[LeakageFinding]:
    """Dates of a row that depend on its label: when the index is, how far a date lies from it, how long a
    window between two dates is.
    """
    asked = _Asked(labelled[target], limits)
    moments = {name: _moments(labelled[name]) for name in dates}
    reported: set[str] = set()
    if index is not None:
        verdict = asked.groups(proxies.groups_of(index), "the index date tells the label")
        if verdict is not None:
            yield _proxy("window", "leakage_window", ("index date",), *verdict)
            return
    for name, moment in moments.items():
        distance = moment if index is None else (moment - index).dt.total_seconds()
        evidence = (
            "the date tells the label" if index is None else "its distance from the index tells the label"
        )
        verdict = asked.groups(proxies.groups_of(distance), evidence)
        if verdict is not None:
            reported.add(name)
            yield _proxy("window", "leakage_window", (name,), *verdict)
    left = [name for name in moments if name not in reported][:_MOST_DATES_PAIRED]
    for first, second in itertools.combinations(left, 2):
        length = (moments[second] - moments[first]).dt.total_seconds()
        verdict = asked.groups(proxies.groups_of(length), "the time between the two dates tells the label")
        if verdict is not None:
            yield _proxy("window", "leakage_window", (first, second), *verdict)


class _Asked:
    """The label as questions, and what a column answers: severity and evidence, or None."""

    def __init__(self, label: pd.Series, limits: LeakageSettings) -> None:
        self.limits = limits
        self.answers = proxies.questions(label)
        self.number = proxies.as_numbers(label)
        self.halves = np.random.default_rng(_SEED).permutation(len(label)) % 2 == 0

    def missing(self, column: pd.Series) -> tuple[Severity, str] | None:
        empty = column.isna().to_numpy(dtype=bool)
        if not empty.any() or empty.all():
            return None
        best = max(
            ((proxies.indicator_auc(empty, answer), answer) for answer in self.answers),
            key=lambda pair: pair[0],
        )
        return self._verdict(*best, "being empty or not tells the label: AUC {auc:.3f}")

    def groups(self, groups: np.ndarray, evidence: str) -> tuple[Severity, str] | None:
        if groups.max(initial=0) == groups.min(initial=0):
            return None
        best = max(
            ((proxies.out_of_fold_auc(groups, answer, self.halves), answer) for answer in self.answers),
            key=lambda pair: pair[0],
        )
        return self._verdict(*best, evidence + ": out-of-fold AUC {auc:.3f}")

    def _verdict(self, auc: float, answer: np.ndarray, evidence: str) -> tuple[Severity, str] | None:
        # Few rows make a large AUC by chance: what it could be at least must be beyond an honest feature.
        if auc <= self.limits.warn_auc or proxies.lower_bound(auc, answer) <= self.limits.honest_auc:
            return None
        return "fatal" if auc > self.limits.max_auc else "convention", evidence.format(auc=auc)


def _proxy(
    kind: Kind, rule: str, columns: Sequence[str], severity: Severity, evidence: str
) -> LeakageFinding:
    return LeakageFinding(
        kind=kind,
        rule=rule,
        columns=tuple(str(name) for name in columns),
        severity=severity,
        evidence=evidence,
        remedy="find out when the value is known; drop it unless it is known before the index date"
        if kind == "target"
        else "choose index and windows by the same rule for all patients, before the outcome is looked at",
    )


def _contamination(
    parts: Mapping[str, pd.DataFrame], id_column: str, features: Sequence[str], limits: LeakageSettings
) -> Iterator[LeakageFinding]:
    ids = {name: pd.Index(part[id_column].dropna().unique()) for name, part in parts.items()}
    for first, second in itertools.combinations(parts, 2):
        both = len(ids[first].intersection(ids[second]))
        if both:
            yield LeakageFinding(
                kind="contamination",
                rule="leakage_shared_patients",
                columns=(id_column,),
                severity="fatal",
                evidence=f"{both:,} patients are in {first} and in {second}",
                remedy="assign splits by patient; all rows of a patient belong to one split",
                affected=both,
            )
    columns = [name for name in features if all(name in part.columns for part in parts.values())]
    copies = twins.find_copies(
        dict(parts),
        id_column=id_column,
        columns=columns,
        near_share=limits.near_duplicate_share,
        tolerance=limits.near_duplicate_tolerance,
    )
    for copy in copies:
        same = "nearly the features" if copy.near else "the features"
        yield LeakageFinding(
            kind="contamination",
            rule="leakage_near_duplicate_rows" if copy.near else "leakage_duplicate_rows",
            columns=tuple(str(name) for name in columns),
            severity="fatal",
            evidence=(
                f"{copy.rows:,} rows of {copy.second} have {same} of a row of {copy.first} under another "
                f"patient; {copy.by_chance:.0f} would be expected by chance"
            ),
            remedy="look for patients delivered under two identifiers; keep one of each",
            affected=copy.rows,
        )
