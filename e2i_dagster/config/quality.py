"""``config/quality.yaml`` and ``config/expectations/*.yaml``: what data must satisfy to be used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import YAML_LOADER, PolicyModel, _line_of, did_you_mean, read_yaml
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.policy_files.observed import unobserved
from e2i_dagster.tables.codes import fits
from e2i_dagster.tables.description.base import SchemaKind
from e2i_dagster.tables.vocabulary import VocabularyPolicy, load_vocabulary

if TYPE_CHECKING:
    from e2i_dagster.tables import ColumnFacts

Severity = Literal["fatal", "convention", "characterization"]
Dimension = Literal["completeness", "validity", "consistency", "uniqueness", "timeliness"]
DIMENSIONS: tuple[Dimension, ...] = ("completeness", "validity", "consistency", "uniqueness", "timeliness")
PlausibilityKind = Literal[
    "orphan_key",
    "other_patient",
    "before_birth",
    "before_journey",
    "after_journey",
    "outside_observation",
    "future",
    "clinical_range",
    "unit",
    "spelling",
]


class TableSettings(PolicyModel):
    """What is expected of one raw table beyond its description.

    ``expected`` columns are those whose cells completeness counts; ``ordered`` lists pairs
    (earlier or smaller, later or larger) of columns of one type.
    """

    expected: tuple[str, ...] = Field(min_length=1)
    ordered: tuple[tuple[str, str], ...] = ()


class Indication(PolicyModel):
    """Diagnosis codes that make the columns of a cohort applicable: a code and what lies below it."""

    codes: tuple[str, ...] = Field(min_length=1)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Codes as they are compared: upper case, without dots."""
        return tuple(code.replace(".", "").upper() for code in self.codes)


class ClinicalRange(PolicyModel):
    """Scale of a clinical value: ``min`` and ``max`` belong to it, ``above`` does not."""

    min: float | None = None
    above: float | None = None
    max: float | None = None
    whole: bool = False

    @model_validator(mode="after")
    def _limited(self) -> ClinicalRange:
        if self.min is None and self.above is None and self.max is None:
            raise ValueError("a clinical range needs min, above or max")
        return self

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Mask of the numbers that lie on the scale; NaN does not."""
        inside = np.isfinite(values)
        if self.min is not None:
            inside &= values >= self.min
        if self.above is not None:
            inside &= values > self.above
        if self.max is not None:
            inside &= values <= self.max
        return inside & (values == np.floor(values)) if self.whole else inside

    @property
    def words(self) -> str:
        """The scale in words."""
        named = (("at least", self.min), ("more than", self.above), ("at most", self.max))
        limits = [f"{word} {limit:g}" for word, limit in named if limit is not None]
        return ", ".join([*limits, *(["whole numbers"] if self.whole else [])])


class OtherUnit(PolicyModel):
    """A unit that a measurement is often delivered in by mistake.

    Attributes:
        other: the unit.
        factor: what a value in it is multiplied with to have the described unit.
        typical: closed range of values in the described unit that need no explanation.
    """

    other: str
    factor: float = Field(gt=0)
    typical: tuple[float, float]


class PlausibilitySettings(PolicyModel):
    """What is implausible, by table and column.

    Attributes:
        severities: of each kind.
        may_be_future: date columns that may lie after the last day of the data.
        max_categories: text columns with more different values are no categories.
    """

    severities: dict[PlausibilityKind, Severity]
    may_be_future: dict[str, tuple[str, ...]] = {}
    clinical_ranges: dict[str, dict[str, ClinicalRange]] = {}
    units: dict[str, dict[str, OtherUnit]] = {}
    max_categories: int = Field(ge=2)

    @field_validator("severities")
    @classmethod
    def _every_kind(cls, severities: dict[PlausibilityKind, Severity]) -> dict[PlausibilityKind, Severity]:
        missing = sorted(set(PlausibilityKind.__args__) - set(severities))
        if missing:
            raise ValueError(f"severities lack {', '.join(missing)}")
        return severities


class ShiftSettings(PolicyModel):
    """Distribution shift between loads, which is reported and decides nothing.

    Attributes:
        max_psi: population stability index (less its mean under no shift) above which a column is named.
        min_rows: rows of a partition below which it has no profile.
        max_values: categories that are counted one by one; rarer ones are counted together.
    """

    max_psi: float = Field(gt=0)
    min_rows: int = Field(ge=20)
    max_values: int = Field(ge=2)


class LeakageSettings(PolicyModel):
    """Limits of the leakage audit."""

    max_correlation: float = Field(gt=0, le=1)
    max_auc: float = Field(gt=0.5, le=1)
    warn_auc: float = Field(gt=0.5, le=1)
    honest_auc: float = Field(gt=0.5, le=1)
    min_rows: int = Field(ge=10)
    near_duplicate_share: float = Field(gt=0.5, le=1)
    near_duplicate_tolerance: float = Field(ge=0, le=0.1)


class WaiverSettings(PolicyModel):
    """How long a waiver of the gate may hold."""

    max_days: int = Field(ge=1, le=366)


class QualitySettings(PolicyModel):
    """All of ``config/quality.yaml``."""

    weights: dict[Dimension, float]
    floors: dict[Dimension, float]
    warn_below: dict[Dimension, float]
    overall: float = Field(ge=0, le=1)
    max_age_days: int = Field(ge=1)
    min_pass_rate: float = Field(gt=0, le=1)
    severities: dict[SchemaKind, Severity]
    indications: dict[str, Indication]
    tables: dict[str, TableSettings]
    plausibility: PlausibilitySettings
    shift: ShiftSettings
    leakage: LeakageSettings
    waivers: WaiverSettings

    @field_validator("weights")
    @classmethod
    def _sum_to_one(cls, weights: dict[Dimension, float]) -> dict[Dimension, float]:
        missing = sorted(set(DIMENSIONS) - set(weights))
        if missing:
            raise ValueError(f"weights lack {', '.join(missing)}")
        if min(weights.values()) < 0 or abs(sum(weights.values()) - 1) > 1e-9:
            raise ValueError("weights must not be negative and must add up to 1")
        return weights

    @field_validator("severities")
    @classmethod
    def _every_kind(cls, severities: dict[SchemaKind, Severity]) -> dict[SchemaKind, Severity]:
        missing = sorted(set(SchemaKind.__args__) - set(severities))
        if missing:
            raise ValueError(f"severities lack {', '.join(missing)}")
        return severities


Expect = Literal["row_count", "not_null", "in_set", "between", "unique", "matches", "not_before"]
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "row_count": ("min",),
    "not_null": ("column",),
    "in_set": ("column",),
    "between": ("column",),
    "unique": ("column",),
    "matches": ("column",),
    "not_before": ("column",),
}
#: What an expectation that leaves it out takes from the table description.
_DESCRIBED: Mapping[str, tuple[str, ...]] = {
    "in_set": ("values", "vocabulary"),
    "between": ("min", "max"),
    "matches": ("pattern",),
    "not_before": ("other",),
}


class ExpectationSpec(PolicyModel):
    """One expectation of a suite.

    Attributes:
        expect: ``row_count`` (at least ``min``), ``not_null``, ``in_set`` (``values`` or a
            ``vocabulary``), ``between`` (``min``, ``max``), ``unique``, ``matches`` (``pattern``),
            ``not_before`` (``column`` is not before ``other``). What is left out is taken from the table
            description (:meth:`described`), so that a suite repeats nothing.
        mostly: share of rows with a value that must satisfy it.
        critical: a failure blocks the partition; otherwise it lowers the pass rate.
        because: why it is expected, shown with a failure.
    """

    expect: Expect
    because: str
    column: str | None = None
    other: str | None = None
    min: float | None = None
    max: float | None = None
    values: tuple[str | int | float | bool, ...] = ()
    vocabulary: str | None = None
    pattern: str | None = None
    mostly: float = Field(default=1.0, gt=0, le=1)
    critical: bool = False

    @model_validator(mode="after")
    def _complete(self) -> ExpectationSpec:
        missing = [field for field in _NEEDS[self.expect] if getattr(self, field) is None]
        if missing:
            raise ValueError(f"{self.expect} needs {', '.join(missing)}")
        if self.expect == "in_set" and self.values and self.vocabulary is not None:
            raise ValueError("in_set needs either values or vocabulary")
        return self

    @property
    def lacks(self) -> tuple[str, ...]:
        """Fields of which one is needed and none is given."""
        fields = _DESCRIBED.get(self.expect, ())
        return () if any(getattr(self, field) not in (None, ()) for field in fields) else fields

    def described(self, about: ColumnFacts) -> ExpectationSpec:
        """The expectation with what it leaves out from the description of its column."""
        known = {
            "vocabulary": about.vocabulary,
            "min": about.minimum,
            "max": about.maximum,
            "pattern": about.pattern,
            "other": about.not_before,
        }
        return self.model_copy(update={field: known[field] for field in self.lacks if field in known})

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @property
    def columns(self) -> dict[str, str]:
        """Key of the file to the column that it names."""
        named = {"column": self.column, "other": self.other}
        return {key: column for key, column in named.items() if column is not None}

    @property
    def title(self) -> str:
        """The expectation in a few words, without any value of a row."""
        limits = ", ".join(
            f"{key} {value:g}" for key, value in (("min", self.min), ("max", self.max)) if value is not None
        )
        parts = [self.column, self.expect, self.other, self.vocabulary, limits]
        share = f"(at least {self.mostly:.0%})" if self.mostly < 1 else None
        return " ".join(part for part in [*parts, share] if part)


class SourceQuality(PolicyModel):
    """What a ``quality.yaml`` beside a mapping says of its source, in the place of what ``config/`` says of it."""

    tables: dict[str, TableSettings] = {}


class Suite(PolicyModel):
    """The expectations of one raw table, in the order of its file."""

    table: str
    expectations: tuple[ExpectationSpec, ...] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class QualityPolicy:
    """Thresholds, suites and the vocabularies they use, checked against the described tables."""

    settings: QualitySettings
    suites: Mapping[str, Suite]
    vocabularies: VocabularyPolicy

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """Accepted values of the vocabulary ``name``."""
        return self.vocabularies.values(name)

    def suite(self, table: str) -> Suite | None:
        """The suite of ``table``, if it has one, with what its file leaves out from the table description."""
        given = self.suites.get(table)
        return None if given is None else _described(given)

    @classmethod
    @unobserved()
    def load(cls, folder: Path | None = None, beside: Path | None = None) -> QualityPolicy:
        """Read ``quality.yaml``, ``expectations/*.yaml`` and ``vocabulary.yaml`` of ``folder``.

        Args:
            beside: folder of a source, whose ``quality.yaml`` and ``expectations/`` stand for those of ``folder`` for
                the tables that they name; by default that of the mapping in ``sources.yaml``.

        Raises:
            ConfigError: a file is missing or wrong, or names a table or column that does not exist;
                names file, line and key of every such place.
        """
        folder = folder or config_folder()
        path = folder / "quality.yaml"
        settings = read_yaml(path, QualitySettings)
        vocabularies = load_vocabulary(folder)
        problems = list(_settings_problems(path, settings))
        folders = [folder]
        beside = beside or _folder_of_source(folder)
        if beside is not None and beside.resolve() != folder.resolve():
            folders.append(beside)
            own = beside / "quality.yaml"
            if own.is_file():
                said = read_yaml(own, SourceQuality).tables
                problems.extend(_table_problems(own, said))
                tables = {
                    name: settings.tables[name].model_copy(
                        update={key: getattr(text, key) for key in text.model_fields_set}
                    )
                    for name, text in said.items()
                    if name in settings.tables
                }
                settings = settings.model_copy(update={"tables": {**settings.tables, **tables}})
        suites: dict[str, Suite] = {}
        for file in (file for folder in folders for file in sorted((folder / "expectations").glob("*.yaml"))):
            suite = read_yaml(file, Suite)
            problems.extend(_suite_problems(file, _described(suite), vocabularies))
            suites[suite.table] = suite
        if problems:
            raise ConfigError.joined([_as_error(problem) for problem in problems])
        return cls(settings, suites, vocabularies)


def _folder_of_source(folder: Path) -> Path | None:
    """The folder of the mapping that ``sources.yaml`` names; None where it names none."""
    from e2i_dagster.config.sources import FileSource, SourcesPolicy

    if not (folder / "sources.yaml").is_file():
        return None
    source = SourcesPolicy.load(folder).source
    return (
        Path(source.mapping).expanduser().parent
        if isinstance(source, FileSource) and source.mapping
        else None
    )


@lru_cache(maxsize=8)
def _cached(folder: Path) -> QualityPolicy:
    return QualityPolicy.load(folder)


def current_quality_policy() -> QualityPolicy:
    """The policy of ``E2I_CONFIG`` or of the checkout, read once per process and folder."""
    return _cached(config_folder())


def _as_error(problem: str) -> ConfigError:
    """A problem as an error that knows its file and key: they begin it (:func:`_place`)."""
    place, field, _ = problem.split(": ", 2)
    return ConfigError(problem, file=place.rpartition(":")[0], field=field)


def _place(path: Path, *location: int | str) -> str:
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=YAML_LOADER)
    return f"{path}:{_line_of(node, location)}: {'.'.join(str(part) for part in location)}"


def _settings_problems(path: Path, settings: QualitySettings) -> Iterator[str]:
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES

    for table in RAW_TABLES + OPTIONAL_RAW_TABLES:
        if table not in settings.tables:
            yield f"{_place(path, 'tables')}: lacks the raw table {table}; every table states what it expects."
    yield from _table_problems(path, settings.tables)
    yield from _plausibility_problems(path, settings.plausibility)
    yield from _indication_problems(path, settings)


def _table_problems(path: Path, tables: Mapping[str, TableSettings]) -> Iterator[str]:
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns, raw_table

    known = RAW_TABLES + OPTIONAL_RAW_TABLES
    for table, about in tables.items():
        if table not in known:
            yield f"{_place(path, 'tables', table)}: {_no_table(table)}"
            continue
        columns = frame_columns(table)
        for position, column in enumerate(about.expected):
            if column not in columns:
                yield _no_column(_place(path, "tables", table, "expected", position), table, column, columns)
        for position, pair in enumerate(about.ordered):
            place = _place(path, "tables", table, "ordered", position)
            missing = [column for column in pair if column not in columns]
            for column in missing:
                yield _no_column(place, table, column, columns)
            if not missing:
                first, second = (type(raw_table(table).columns[column].type) for column in pair)
                if first is not second:
                    yield f"{place}: {pair[0]} and {pair[1]} differ in type and cannot be compared."


def _indication_problems(path: Path, settings: QualitySettings) -> Iterator[str]:
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, facts, frame_columns, raw_table

    described = {
        cohort
        for table in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
        for column in frame_columns(table)
        for cohort in facts(raw_table(table).columns[column]).applies_to
    }
    for indication in sorted(set(settings.indications) - described):
        place = _place(path, "indications", indication)
        near = did_you_mean(indication, described)
        yield f"{place}: no column applies to it. {near + ' ' if near else ''}Known: {', '.join(sorted(described))}."
    for indication, about in settings.indications.items():
        for number, code in enumerate(about.codes):
            if not fits(code, "icd10cm"):
                place = _place(path, "indications", indication, "codes", number)
                yield f"{place}: {code!r} is no ICD-10-CM code or category, such as L50 or D59.5."
    for cohort in sorted(described - set(settings.indications)):
        yield f"{_place(path, 'indications')}: lacks {cohort}, which clinical columns apply to."


def _plausibility_problems(path: Path, settings: PlausibilitySettings) -> Iterator[str]:
    import sqlalchemy as sa

    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns, raw_table

    known = RAW_TABLES + OPTIONAL_RAW_TABLES
    named = (
        *(
            ("may_be_future", table, column)
            for table, listed in settings.may_be_future.items()
            for column in listed
        ),
        *(
            ("clinical_ranges", table, column)
            for table, listed in settings.clinical_ranges.items()
            for column in listed
        ),
        *(("units", table, column) for table, listed in settings.units.items() for column in listed),
    )
    for key, table, column in named:
        place = _place(path, "plausibility", key, table)
        if table not in known:
            yield f"{place}: {_no_table(table)}"
        elif column not in frame_columns(table):
            yield _no_column(place, table, column, frame_columns(table))
        elif key == "may_be_future" and not isinstance(
            raw_table(table).columns[column].type, (sa.Date, sa.DateTime)
        ):
            yield f"{place}: {column} of {table} holds no dates, so that it cannot lie in the future. Take it out."


def _described(suite: Suite) -> Suite:
    """The suite with what its expectations leave out from the table description."""
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, facts, raw_table

    # All of it is read, and what comes out is no longer what the file says.
    suite = Suite.model_validate(suite.model_dump())
    if suite.table not in RAW_TABLES + OPTIONAL_RAW_TABLES:
        return suite
    columns = raw_table(suite.table).columns
    return suite.model_copy(
        update={
            "expectations": tuple(
                spec.described(facts(columns[spec.column]))
                if spec.column and spec.column in columns
                else spec
                for spec in suite.expectations
            )
        }
    )


def _suite_problems(path: Path, suite: Suite, vocabularies: VocabularyPolicy) -> Iterator[str]:
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns

    known = RAW_TABLES + OPTIONAL_RAW_TABLES
    if suite.table not in known:
        yield f"{_place(path, 'table')}: {_no_table(suite.table)}"
        return
    if path.stem != suite.table:
        yield f"{_place(path, 'table')}: found {suite.table!r} in the file of {path.stem!r}; they must agree."
    columns = frame_columns(suite.table)
    for position, spec in enumerate(suite.expectations):
        for key, column in spec.columns.items():
            if column not in columns:
                yield _no_column(_place(path, "expectations", position, key), suite.table, column, columns)
        if spec.lacks:
            place = _place(path, "expectations", position)
            wanted = " or ".join(spec.lacks)
            yield f"{place}: {spec.expect} needs {wanted}: the description of {spec.column} has none. Give it here."
        if spec.vocabulary is not None and spec.vocabulary not in vocabularies.vocabularies:
            place = _place(path, "expectations", position, "vocabulary")
            listed = ", ".join(sorted(vocabularies.vocabularies))
            near = did_you_mean(spec.vocabulary, vocabularies.vocabularies)
            yield f"{place}: found {spec.vocabulary!r}; expected one of {listed}. {near}".rstrip()


def _no_table(table: str) -> str:
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES

    known = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
    near = did_you_mean(table, known)
    return f"no raw table is called {table!r}. {near + ' ' if near else ''}Known: {', '.join(known)}."


def _no_column(place: str, table: str, column: str, columns: tuple[str, ...]) -> str:
    import difflib

    near: list[Any] = difflib.get_close_matches(column, columns, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{place}: table {table} has no column {column!r}. {hint}It has: {', '.join(columns)}."
