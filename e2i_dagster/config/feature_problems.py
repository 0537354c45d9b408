"""What is wrong with a file of ``config/features`` beyond its shape, and what in it will drift."""

from __future__ import annotations

from collections.abc import Iterator

from e2i_dagster.config.feature_views import (
    ENTITIES,
    JOURNEYS,
    OF_COLUMN,
    OF_FEATURES,
    ROW_TABLES,
    STATIC_TABLES,
    TIMESTAMP,
    Calculation,
    Feature,
    FeatureView,
    Rows,
    column_dtype,
    has_journey,
    key_column,
    keys_of,
)
from e2i_dagster.policy_files.base import Place, did_you_mean, unknown
from e2i_dagster.tables.own_types import OWN_TABLE
from e2i_dagster.tables.vocabulary import VocabularyPolicy

#: Names that frames of features use for other things.
_TAKEN = {
    *ENTITIES, TIMESTAMP, "patient_journey_id", "index_date", "label", "set", "split", "row", "stamp", "as_of",
}  # fmt: skip
_KEYS = (("patient_id",), ("hcp_id",), ("brand", "region"), ("brand",), ("region",))
_ORDERED = ("sum", "mean", "slope")
#: Calculations that rise with every day since the data began, where their window is open.
_GROWING = frozenset({"count", "distinct", "sum", "any"})
_OUTCOMES = "outcome_events"


def view_problems(view: FeatureView, vocabulary: VocabularyPolicy | None = None) -> Iterator[Place]:
    """Each wrong place of ``view``, and what is wrong there; kinds of events are looked up in ``vocabulary``."""
    if view.keys not in _KEYS:
        known = "; ".join(", ".join(keys) for keys in _KEYS)
        yield ("keys",), f"found {', '.join(view.keys)}; expected one of: {known}"
        return
    seen: set[str] = set()
    for number, feature in enumerate(view.features):
        place = ("features", number)
        if feature.name in _TAKEN or feature.name in seen:
            why = "is a feature of this file already" if feature.name in seen else "has another meaning"
            yield (*place, "name"), f"{feature.name!r} {why}: choose another name"
        seen.add(feature.name)
        found = list(_calculation_problems(place, feature, view, vocabulary))
        yield from found or _missing_problems(place, feature)
        if not found and (circle := _circle(feature.name, view)):
            said = " -> ".join(circle)
            yield (*place, feature.kind), f"{said} is a circle: a feature cannot be made of itself"


def growing(view: FeatureView) -> dict[str, str]:
    """Features whose values rise with the time since the data began, and why: they drift by themselves."""
    found = {}
    for feature in view.features:
        if feature.kind == "ratio":
            continue
        for kind, rows, _ in view.leaves(feature):
            first = kind == "days_since" and rows.occurrence == "first"
            if rows.within[0] is None and (kind in _GROWING or first):
                found[feature.name] = (
                    f"{kind} over {rows.table} without a first day grows with the time since the data begin, so a "
                    "model is trained on one distribution and asked about another. Give a window such as "
                    "within: [-365, -1], or a ratio of two."
                )
    return found


def _calculation_problems(
    place: tuple[int | str, ...],
    calculation: Calculation,
    view: FeatureView,
    vocabulary: VocabularyPolicy | None,
) -> Iterator[Place]:
    if calculation.value is not None:
        yield from _value_problems(place, calculation, view)
    elif calculation.own_type is not None:
        yield (*place, "own_type"), "belongs to a value of one's own column: remove it"
    names = view.feature_names
    for number, operand in enumerate(calculation.operands):
        at = (*place, calculation.kind, number)
        if isinstance(operand, Calculation):
            yield from _calculation_problems(at, operand, view, vocabulary)
            continue
        yield from unknown(at, operand, names, f"feature of {', '.join(view.keys)} in this file")
        named = view.feature(operand)
        if named is not None and named.kind not in OF_FEATURES and named.dtype == "string":
            yield at, f"{operand!r} is a text; a {calculation.kind} is of numbers"
    if calculation.kind not in OF_FEATURES:
        for kind, rows, inside in calculation.own_leaves:
            yield from _rows_problems((*place, *inside), kind, rows, view)
            if rows.table in ROW_TABLES:
                yield from _event_problems((*place, *inside), rows, vocabulary)


def _value_problems(
    place: tuple[int | str, ...], calculation: Calculation, view: FeatureView
) -> Iterator[Place]:
    from e2i_dagster.tables import frame_columns

    at = (*place, "value")
    table, _, column = str(calculation.value).partition(".")
    own = STATIC_TABLES.get(view.keys[0], ()) if len(view.keys) == 1 else ()
    if table not in own:
        many = (
            " Rows of which there are many are counted, or read with last or first."
            if table in ROW_TABLES
            else ""
        )
        known = ", ".join(own) or "none"
        yield (
            at,
            f"{table!r} has no row that is the {' and '.join(view.keys)}'s own (tables that have: {known}).{many}",
        )
    elif table == OWN_TABLE and column not in frame_columns(table) and calculation.own_type is not None:
        if calculation.own_type == "date":
            yield (*place, "own_type"), "a day is no feature: declare number, boolean, text or a code system"
    else:
        yield from _column_problems(at, table, column)
        if calculation.own_type is not None:
            yield (
                (*place, "own_type"),
                f"{calculation.value} is a column of the product with a type: remove it",
            )


def _rows_problems(place: tuple[int | str, ...], kind: str, rows: Rows, view: FeatureView) -> Iterator[Place]:
    if rows.table == _OUTCOMES:
        yield (*place, "table"), f"{_OUTCOMES} is what models predict; it can be no feature"
        return
    if rows.table not in ROW_TABLES:
        yield from unknown((*place, "table"), rows.table, tuple(ROW_TABLES), "table of dated rows")
        return
    last = rows.within[1]
    if last is None or last >= 0:
        shown = "open" if last is None else f"day {last}"
        yield (
            (*place, "within"),
            f"the window ends {shown}; a feature knows nothing of the index date and later. End it with -1 or before",
        )
    keys = keys_of(rows, view)
    yield from unknown((*place, "keys"), rows.keys, view.keys, "key of this view")
    for key in keys:
        if key_column(rows.table, key) is None and not (
            has_journey(rows.table) and key_column(JOURNEYS, key) is not None
        ):
            yield (
                (*place, "table"),
                f"rows of {rows.table} cannot be found by {key}: they have neither it nor a journey",
            )
    if rows.through_journey and not has_journey(rows.table):
        yield (*place, "through_journey"), f"rows of {rows.table} name no patient journey: remove it"
    yield from _condition_problems(place, rows)
    at = (*place, "column")
    if (rows.column is None) == (kind in OF_COLUMN):
        said = (
            f"{kind} needs the column that it is calculated of"
            if rows.column is None
            else f"{kind} counts rows"
        )
        yield at, f"{said}: {'give' if rows.column is None else 'remove'} column"
    elif rows.column is not None and kind == "distinct":
        yield from _column_problems(at, rows.table, rows.column, comparable=False)
    elif rows.column is not None:
        found = list(_column_problems(at, rows.table, rows.column))
        yield from found
        if not found and kind in _ORDERED and column_dtype(rows.table, rows.column) == "string":
            yield at, f"{rows.table}.{rows.column} holds texts; {kind} is of numbers"


def _event_problems(
    place: tuple[int | str, ...], rows: Rows, vocabulary: VocabularyPolicy | None
) -> Iterator[Place]:
    from e2i_dagster.tables import facts, raw_table

    if not rows.event:
        return
    column = rows.event_column
    if not column:
        yield (*place, "event"), f"rows of {rows.table} are of no kinds: write the condition with where"
        return
    listed = facts(raw_table(rows.table).columns[column]).vocabulary
    if listed is not None and vocabulary is not None:
        known = vocabulary.values(listed)
        yield from unknown((*place, "event"), rows.event, known, listed)


def _condition_problems(place: tuple[int | str, ...], rows: Rows) -> Iterator[Place]:
    if not rows.event and not rows.event_column and not rows.codes and not rows.where:
        return
    for criterion in rows.conditions:
        number = next((n for n, condition in enumerate(rows.where) if condition is criterion), None)
        at = (*place, "codes") if number is None else (*place, "where", number, "field")
        if number is not None or criterion.field != rows.event_column:
            yield from _column_problems(
                at, rows.table, criterion.field, comparable=criterion.code_system is None
            )


def _column_problems(
    place: tuple[int | str, ...], table: str, column: str, *, comparable: bool = True
) -> Iterator[Place]:
    """Why the raw column can be no feature: there is none, it is known too late, it is no single value."""
    import sqlalchemy as sa

    from e2i_dagster.tables import facts, frame_columns, raw_table

    columns = frame_columns(table)
    if column not in columns:
        own = " A column of your own needs own_type." if table == OWN_TABLE else ""
        near = did_you_mean(column, columns)
        yield (
            place,
            f"{table} has no column {column!r}.{' ' + near if near else ''}{own} It has {', '.join(columns)}.",
        )
        return
    found = raw_table(table).columns[column]
    if facts(found).known_at == "extract":
        yield (
            place,
            f"{table}.{column} is known only at the time of the extract, so its value on the day of a prediction "
            "cannot be reconstructed and it can be no feature. Use the dated events that it is derived from, or a "
            "static column.",
        )
    elif comparable and column_dtype(table, column) is None:
        day = isinstance(found.type, sa.Date | sa.DateTime)
        what = "days: use days_since" if day else "lists or documents: count rows with codes"
        yield place, f"{table}.{column} holds {what}."


def _missing_problems(place: tuple[int | str, ...], feature: Feature) -> Iterator[Place]:
    value, dtype = feature.on_missing, feature.dtype
    if value is None:
        return
    wrong = isinstance(value, str) != (dtype == "string") or isinstance(value, bool)
    if wrong or (dtype == "int" and not float(value).is_integer()):
        expected = {"int": "a whole number", "float": "a number", "string": "a text"}[dtype]
        yield (*place, "on_missing"), f"found {value!r}; {feature.name} is {expected}"


def _circle(name: str, view: FeatureView, way: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The names on the way from ``name`` back to it or to one on the way; None where no way leads back."""
    if name in way:
        return (*way, name)
    feature = view.feature(name)
    return next(
        (
            circle
            for operand in (_named(feature) if feature else ())
            if (circle := _circle(operand, view, (*way, name)))
        ),
        None,
    )


def _named(calculation: Calculation) -> Iterator[str]:
    for operand in calculation.operands:
        if isinstance(operand, str):
            yield operand
        else:
            yield from _named(operand)
