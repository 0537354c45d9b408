"""Feature views, each a file of ``config/features``: keys, features, and how each feature is calculated.

A feature says in the words of the cohort language which rows it is made of (``event``, ``codes``, ``where``,
``within``) and what is calculated of them. The Feast objects, the statements of the engine, the columns that are
read and the reference page are derived from these files; :mod:`e2i_dagster.config.feature_problems` says what is
wrong with one.

Only columns that are static or dated by their own row can be read. A column that is known at the time of the
extract (a current status, a later acceptance) is refused by name: its value on the day of the prediction cannot be
reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from e2i_dagster.config.criteria import EventPattern, closed_window
from e2i_dagster.policy_files.base import Place, PolicyModel, read_yaml
from e2i_dagster.policy_files.observed import note_file, unobserved
from e2i_dagster.tables.own_types import OWN_TABLE, OwnType

Dtype = Literal["int", "float", "string"]
Window = tuple[int | None, int | None]

#: Column of a feature frame that says when a row's values were known.
TIMESTAMP = "event_timestamp"
#: Column of a raw table that says when a row arrived.
ARRIVAL = "source_timestamp"
JOURNEYS = "patient_journeys"
JOURNEY = "patient_journey_id"

#: Entity keys, all real columns with text values: what each identifies.
ENTITIES: dict[str, str] = {
    "patient_id": "Patient.",
    "hcp_id": "Healthcare professional.",
    "brand": "Brand.",
    "region": "Region of residence of the patients.",
}
#: Columns by which a key is called on raw rows.
KEY_COLUMNS = {key: (key,) for key in ENTITIES} | {"region": ("region", "geographic_region")}
#: Tables with one row for an entity, whose columns are values as of the index date.
STATIC_TABLES = {"patient_id": (JOURNEYS, OWN_TABLE), "hcp_id": ("hcp_profiles",)}
#: Tables whose rows are calculated with: the column of the kind of row, if there is one, and of its day.
ROW_TABLES: dict[str, tuple[str | None, str]] = {
    "treatment_events": ("event_type", "event_date"),
    "engagement_events": ("engagement_type", "engagement_date"),
    "triggers": ("trigger_type", "trigger_timestamp"),
    "business_metrics": ("metric_type", "metric_date"),
    JOURNEYS: (None, "journey_start_date"),
}
#: Raw tables that the shipped features are computed from.
FEATURE_TABLES = (
    "hcp_profiles",
    "patient_journeys",
    "treatment_events",
    "engagement_events",
    "triggers",
    "business_metrics",
)
#: What is calculated of rows; of a column of theirs; of other features.
OF_ROWS = ("count", "any", "days_since")
OF_COLUMN = ("distinct", "sum", "mean", "min", "max", "first", "last", "slope", "most_frequent")
OF_FEATURES = ("ratio", "difference")
OPERATIONS = ("value", *OF_ROWS, *OF_COLUMN, "score", *OF_FEATURES)
#: Without any row these are 0, not unknown.
ZERO_WITHOUT_ROWS = frozenset({"count", "any", "distinct", "sum", "score"})


class Rows(EventPattern):
    """Which rows of one table count for an entity.

    Attributes:
        table: the raw table.
        within: first and last day relative to the index date, both included, before it; null is open.
        column: column of the table that is calculated with.
        keys: keys of the view by which rows are found; all by default.
        through_journey: the row's patient journey, too, must be the entity's, as far as it has the key.
        at_least: number of rows from which ``any`` and a line of a score are true.
        occurrence: which row ``days_since`` counts from.
    """

    written_keys: ClassVar[tuple[str, ...]] = ("ends",)

    table: str = "treatment_events"
    within: Window = (None, -1)
    column: str | None = None
    keys: tuple[str, ...] | None = None
    through_journey: bool = False
    at_least: int = Field(default=1, ge=1)
    occurrence: Literal["first", "last"] = "last"

    @model_validator(mode="before")
    @classmethod
    def _ends_read(cls, data: Any) -> Any:
        return closed_window(dict(data)) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _says_something(self) -> Rows:
        """Without event, codes and where all rows of the table are meant."""
        return self

    @property
    def event_column(self) -> str:
        return ROW_TABLES[self.table][0] or ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads beside keys and day."""
        read = [criterion.field for criterion in self.conditions]
        return tuple(dict.fromkeys([*read, *([self.column] if self.column else [])]))

    def words(self) -> str:
        """The rows in words."""
        said = super().words() if self.event or self.codes or self.where else "row"
        first, last = self.within
        until = "the day before the index date" if last == -1 else f"day {last}"
        since = "any time" if first is None else f"day {first}"
        return f"{said} of {self.table} from {since} to {until}"


class ScoreLine(Rows):
    """One line of a score: its points are added when it holds and no line of ``unless`` does."""

    name: str = Field(min_length=1)
    points: float | int = 1
    unless: tuple[str, ...] = ()


class Score(PolicyModel):
    """Points of the lines that hold, added up. Table, window and code words given here are those of every line."""

    SHARED: ClassVar[tuple[str, ...]] = ("table", "within", "ends", "code_system", "descendants")
    written_keys: ClassVar[tuple[str, ...]] = SHARED

    of: tuple[ScoreLine, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _shared_by_the_lines(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("of"), (list, tuple)):
            return data
        shared = {key: data[key] for key in cls.SHARED if key in data}
        rest = {key: value for key, value in data.items() if key not in shared}
        return rest | {"of": [shared | line if isinstance(line, dict) else line for line in data["of"]]}

    @model_validator(mode="after")
    def _lines_are_known(self) -> Score:
        names = [line.name for line in self.of]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two lines of the score are called {', '.join(repeated)}")
        wrong = sorted({name for line in self.of for name in line.unless} - set(names))
        if wrong:
            raise ValueError(f"unless names no line of the score: {', '.join(wrong)}")
        return self


class Leaf(NamedTuple):
    """One calculation of rows: what, of which, and the keys on the way to it in the file."""

    kind: str
    rows: Rows
    place: tuple[int | str, ...]


class Calculation(PolicyModel):
    """Exactly one of the operations.

    Attributes:
        value: ``table.column`` of the entity's own row, as of the index date.
        own_type: type of a column of one's own (``patient_clinical``) that ``value`` names.
        count, any, days_since: of rows. distinct, sum, mean, min, max, first, last, slope (per day), most_frequent: of
            a column of rows; equal days are decided by the key of the rows, equal frequencies by the last use.
        score: points of conditions.
        ratio, difference: of two, each the name of a feature of the same view or a calculation.
    """

    value: str | None = Field(default=None, pattern=r"^[a-z_]+\.\w+$")
    own_type: OwnType | None = None
    count: Rows | None = None
    any: Rows | None = None
    days_since: Rows | None = None
    distinct: Rows | None = None
    sum: Rows | None = None
    mean: Rows | None = None
    min: Rows | None = None
    max: Rows | None = None
    first: Rows | None = None
    last: Rows | None = None
    slope: Rows | None = None
    most_frequent: Rows | None = None
    score: Score | None = None
    ratio: tuple[str | Calculation, str | Calculation] | None = None
    difference: tuple[str | Calculation, str | Calculation] | None = None

    @model_validator(mode="after")
    def _one_operation(self) -> Calculation:
        given = [name for name in OPERATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(OPERATIONS)}; found {found}")
        return self

    @property
    def kind(self) -> str:
        """Name of its operation."""
        return next(name for name in OPERATIONS if getattr(self, name) is not None)

    @property
    def operands(self) -> tuple[str | Calculation, ...]:
        """The two of a ratio or difference."""
        return self.ratio or self.difference or ()

    @property
    def own_leaves(self) -> Iterator[Leaf]:
        """The calculations of rows in it; of named operands none."""
        kind = self.kind
        if kind == "score":
            assert self.score is not None
            for number, line in enumerate(self.score.of):
                yield Leaf("any", line, ("score", "of", number))
        elif isinstance(rows := getattr(self, kind), Rows):
            yield Leaf(kind, rows, (kind,))
        for number, operand in enumerate(self.operands):
            if isinstance(operand, Calculation):
                for leaf in operand.own_leaves:
                    yield leaf._replace(place=(kind, number, *leaf.place))

    @property
    def dtype(self) -> Dtype:
        """Type of its values; a yes or no is 1 or 0."""
        kind = self.kind
        if kind in ("count", "any", "days_since", "distinct"):
            return "int"
        if kind == "score":
            assert self.score is not None
            return "int" if all(float(line.points).is_integer() for line in self.score.of) else "float"
        if kind == "value":
            assert self.value is not None
            if self.own_type is not None:
                own: dict[str, Dtype] = {"number": "float", "boolean": "int"}
                return own.get(self.own_type, "string")
            return column_dtype(*self.value.split(".", 1)) or "string"
        if kind in ("min", "max", "first", "last", "most_frequent"):
            rows = getattr(self, kind)
            return column_dtype(rows.table, rows.column or "") or "string"
        return "float"

    def words(self) -> str:
        """How it is calculated, in words."""
        kind = self.kind
        if kind == "value":
            return f"{self.value} as of the index date"
        if kind == "score":
            assert self.score is not None
            lines = (f"{line.points:g} for {line.name}" for line in self.score.of)
            return f"points: {', '.join(lines)}"
        if self.operands:
            shown = [
                operand if isinstance(operand, str) else f"({operand.words()})" for operand in self.operands
            ]
            return " / ".join(shown) if kind == "ratio" else " - ".join(shown)
        rows = getattr(self, kind)
        of = f"{rows.column} of " if rows.column else ""
        which = f" the {rows.occurrence}" if kind == "days_since" else ""
        return f"{kind.replace('_', ' ')}{which} {of}{rows.words()}"


class Feature(Calculation):
    """One feature: what it is called and means, how it is calculated, and what stands where there is nothing.

    Attributes:
        on_missing: value for a known entity without one; unknown if it is not given, except that counts and sums
            of no rows are 0.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str = Field(min_length=1)
    unit: str | None = None
    on_missing: int | float | str | None = None


class FeatureView(PolicyModel):
    """One view: its entity keys and its features. ``name`` is the stem of its file."""

    name: str = ""
    keys: tuple[str, ...] = Field(min_length=1)
    description: str = Field(min_length=1)
    source: str = ""
    features: tuple[Feature, ...] = Field(min_length=1)

    @classmethod
    def from_yaml(
        cls, path: Path, check: Callable[[FeatureView], Iterable[Place]] | None = None
    ) -> FeatureView:
        """The view of a file, called like it; ``check`` says what else is wrong with it.

        Raises:
            ConfigError: names file, line, field, value and what was expected.
        """
        with unobserved():
            view = read_yaml(path, cls, check).model_copy(update={"name": path.stem})
        note_file(path, cls, view)
        return view

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features in declared order."""
        return tuple(feature.name for feature in self.features)

    def feature(self, name: str) -> Feature | None:
        """The feature called ``name``, or None."""
        return next((feature for feature in self.features if feature.name == name), None)

    def parts(self, calculation: Calculation) -> Iterator[Calculation]:
        """``calculation`` and every one that it is made of, through the names of other features."""
        yield calculation
        for operand in calculation.operands:
            part = self.feature(operand) if isinstance(operand, str) else operand
            if part is not None:
                yield from self.parts(part)

    def leaves(self, calculation: Calculation) -> Iterator[Leaf]:
        """The calculations of rows that ``calculation`` is made of, through the names of other features."""
        for part in self.parts(calculation):
            if not part.operands:
                yield from part.own_leaves

    def sources(self, feature: Calculation) -> tuple[str, ...]:
        """Raw columns (``table.column``) that the values of ``feature`` are made of."""
        found = [part.value for part in self.parts(feature) if part.value is not None]
        for _, rows, _ in self.leaves(feature):
            named = rows.columns or (ROW_TABLES[rows.table][1],)
            found += [f"{rows.table}.{column}" for column in named]
        return tuple(dict.fromkeys(found))

    def window_days(self, feature: Calculation) -> int | None:
        """Days before the index date that ``feature`` looks back at most; None where that is open."""
        firsts = [rows.within[0] for _, rows, _ in self.leaves(feature)]
        return None if not firsts or None in firsts else -min(first for first in firsts if first is not None)

    def windows(self, feature: Calculation) -> tuple[tuple[str, Window], ...]:
        """Tables kept by month whose rows ``feature`` is made of, each with a window within which rows count."""
        from e2i_dagster.tables import date_column

        dated = (rows for _, rows, _ in self.leaves(feature) if date_column(rows.table) is not None)
        return tuple(dict.fromkeys((rows.table, rows.within) for rows in dated))


def column_dtype(table: str, column: str) -> Dtype | None:
    """Type of a feature that is a value of the raw column; None for days, lists, documents and own columns."""
    import sqlalchemy as sa

    from e2i_dagster.tables import raw_table

    found = raw_table(table).columns.get(column)
    if found is None or isinstance(found.type, sa.Date | sa.DateTime | sa.ARRAY | sa.JSON):
        return None
    if isinstance(found.type, sa.Integer | sa.Boolean):
        return "int"
    return "float" if isinstance(found.type, sa.Numeric | sa.Float) else "string"


def ordered(views: Iterable[FeatureView]) -> tuple[FeatureView, ...]:
    """Views of patients first, then in the order of their keys and names."""
    keys = list(ENTITIES)
    return tuple(sorted(views, key=lambda view: ([keys.index(key) for key in view.keys], view.name)))


def feature_names(views: Iterable[FeatureView]) -> tuple[str, ...]:
    """Names of all features in the order of the views: the columns that a model may take."""
    return tuple(name for view in views for name in view.feature_names)


def dtypes(views: Iterable[FeatureView]) -> dict[str, str]:
    """pandas dtype of every feature: ``Int64``, ``float64`` or ``string[pyarrow]``."""
    names = {"int": "Int64", "float": "float64", "string": "string[pyarrow]"}
    return {feature.name: names[feature.dtype] for view in views for feature in view.features}


def key_column(table: str, key: str) -> str | None:
    """Column of the raw table that holds the entity key, or None."""
    from e2i_dagster.tables import frame_columns

    columns = frame_columns(table)
    return next((name for name in KEY_COLUMNS[key] if name in columns), None)


def has_journey(table: str) -> bool:
    """Whether rows of the raw table name the patient journey that they belong to."""
    from e2i_dagster.tables import frame_columns

    return table != JOURNEYS and JOURNEY in frame_columns(table)


def keys_of(rows: Rows, view: FeatureView) -> tuple[str, ...]:
    """Keys by which ``rows`` are found."""
    return view.keys if rows.keys is None else rows.keys


def journey_keys(rows: Rows, view: FeatureView) -> dict[str, str]:
    """Keys that a row's patient journey must have, and the column of journeys that holds each; empty where the row
    alone says whose it is."""
    asked = keys_of(rows, view)
    wanted = [key for key in asked if rows.through_journey or key_column(rows.table, key) is None]
    return {key: column for key in wanted if (column := key_column(JOURNEYS, key)) is not None}


def source_columns(view: FeatureView) -> dict[str, tuple[str, ...]]:
    """Raw tables and their columns that the values of ``view`` are computed from: those of its features, and what
    finds, dates and orders the rows."""
    from e2i_dagster.tables import frame_columns, primary_key

    read: dict[str, dict[str, None]] = {}

    def reads(table: str, *columns: str | None) -> None:
        known = frame_columns(table)
        of_table = read.setdefault(table, {})
        of_table |= dict.fromkeys(name for name in columns if name in known)

    if view.keys == ("patient_id",):
        reads(JOURNEYS, "patient_id", JOURNEY, "journey_start_date", ARRIVAL)
    if view.keys == ("hcp_id",):
        reads("hcp_profiles", "hcp_id")
    for feature in view.features:
        for source in view.sources(feature):
            table, _, column = source.partition(".")
            reads(table, column)
            if table == OWN_TABLE:
                reads(table, JOURNEY, "diagnosis_date", None if column in frame_columns(table) else "extra")
        for kind, rows, _ in view.leaves(feature):
            keys = keys_of(rows, view)
            ordering = primary_key(rows.table) if kind in ("first", "last") else None
            on_row = [key_column(rows.table, key) for key in keys]
            reads(rows.table, *on_row, ROW_TABLES[rows.table][1], ARRIVAL, ordering)
            if on_journey := journey_keys(rows, view):
                reads(rows.table, JOURNEY)
                reads(JOURNEYS, JOURNEY, "journey_start_date", ARRIVAL, *on_journey.values())
    return {table: tuple(columns) for table, columns in read.items()}


def columns_read(views: Iterable[FeatureView]) -> dict[str, tuple[str, ...]]:
    """Columns of each raw table that features are computed from; a fault in another one does not concern them."""
    # What rows are joined and placed by, beside what the views read.
    read = {JOURNEYS: {JOURNEY, "geographic_region"}, "hcp_profiles": {"hcp_id"}}
    for view in views:
        for table, columns in source_columns(view).items():
            read.setdefault(table, set()).update(columns)
    return {table: tuple(sorted(columns)) for table, columns in sorted(read.items())}


Calculation.model_rebuild()
