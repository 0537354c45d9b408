"""What features say of a cohort and of one patient, and which codes could be features. Reads only.

No label is looked at here: a candidate is found by how many patients have it, never by what it predicts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from e2i_dagster.cohorts.disclosure import HIDDEN, SMALLEST_SHOWN, is_small
from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feature_views import (
    ROW_TABLES,
    Feature,
    FeatureView,
    Rows,
)
from e2i_dagster.errors import InputError
from e2i_dagster.features.compute import OTHERS, Statement, compute_view, entity_table, observed, prepare
from e2i_dagster.features.snapshots import spine
from e2i_dagster.features.statistics import FeatureStatistics, feature_statistics
from e2i_dagster.policy_files.base import did_you_mean
from e2i_dagster.tables.codes import (
    LIST_MARKS,
    LIST_SEPARATOR,
    SYSTEMS,
    fits,
    readings,
)
from e2i_dagster.versions.coverage import Coverage

#: Where candidates are looked for: table, column, and the system of its codes or None for a kind of row.
CANDIDATES = (
    ("treatment_events", "event_type", ()),
    ("treatment_events", "icd_codes", ("icd10cm", "icd9cm")),
    ("treatment_events", "cpt_codes", ("hcpcs",)),
    ("treatment_events", "loinc_codes", ("loinc",)),
    ("treatment_events", "drug_ndc", ("ndc",)),
    ("engagement_events", "engagement_type", ()),
    ("triggers", "trigger_type", ()),
)


@dataclass(frozen=True)
class Setting:
    """The data that features are computed from.

    Attributes:
        rows: patients with their keys and index dates, as :func:`.spine` makes them.
        tables: raw tables by name.
        covered: days that each table covers. source_lag_days: days that a source needs to deliver.
    """

    rows: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]
    covered: Mapping[str, Coverage]
    source_lag_days: int

    def entities(self, view: FeatureView) -> pd.DataFrame:
        """Entities of ``view`` the day before the index dates, each once."""
        journeys = ["patient_journey_id"] if view.keys == ("patient_id",) else []
        rows = self.rows.dropna(subset=list(view.keys))
        days = pd.to_datetime(rows["index_date"]).dt.normalize() - pd.Timedelta(days=1)
        keyed = rows[[*view.keys, *journeys]].assign(as_of=days)
        return keyed.drop_duplicates([*view.keys, "as_of"]).reset_index(drop=True)

    @property
    def known(self) -> dict[str, Any]:
        """Arguments of :func:`.compute_view` beside view and entities."""
        return {
            "tables": self.tables,
            "covered": self.covered,
            "source_lag_days": self.source_lag_days,
        }


def setting_of(
    cohort: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    *,
    brand: str,
    covered: Mapping[str, Coverage],
    source_lag_days: int,
) -> Setting:
    """The setting of the patients of ``cohort``: patient_id, patient_journey_id, index_date."""
    hcps = tables["patient_journeys"].set_index("patient_journey_id")["hcp_id"]
    keyed = cohort[["patient_id", "patient_journey_id", "index_date"]].assign(
        hcp_id=cohort["patient_journey_id"].map(hcps)
    )
    return Setting(spine(keyed, tables, brand=brand), tables, covered, source_lag_days)


def feature_named(name: str, views: Iterable[FeatureView] | None = None) -> tuple[FeatureView, Feature]:
    """The feature called ``name`` and its view.

    Raises:
        InputError: there is no such feature; names the nearest.
    """
    known = {feature.name: (view, feature) for view in views or feature_views() for feature in view.features}
    if name not in known:
        near = did_you_mean(name, known)
        remedy = f"{near} " if near else ""
        remedy += "`e2i features list` shows all."
        raise InputError(
            f"There is no feature {name!r}. {remedy}", field="FEATURE", value=name, remedy=remedy
        )
    return known[name]


def with_only(view: FeatureView, names: Iterable[str]) -> FeatureView:
    """``view`` with the features called ``names`` and those that they are made of."""
    wanted = set(names)
    while (
        more := {
            operand
            for name in wanted
            if (feature := view.feature(name)) is not None
            for part in view.parts(feature)
            for operand in part.operands
            if isinstance(operand, str)
        }
        - wanted
    ):
        wanted |= more
    return view.model_copy(
        update={"features": tuple(feature for feature in view.features if feature.name in wanted)}
    )


def preview(setting: Setting, names: Iterable[str] = ()) -> tuple[FeatureStatistics, ...]:
    """Statistics of the named features, or of all, over the entities of the cohort; small cells are left out.

    Raises:
        InputError: there is no such feature, or a table was not given.
    """
    wanted = tuple(names)
    for name in wanted:
        feature_named(name)
    found: list[FeatureStatistics] = []
    for view in feature_views():
        asked = [name for name in view.feature_names if name in wanted or not wanted]
        if asked:
            part = with_only(view, asked)
            frame = compute_view(part, setting.entities(part), **setting.known)
            found += [
                statistic for statistic in feature_statistics(frame, (part,)) if statistic.feature in asked
            ]
    return tuple(found)


@dataclass(frozen=True)
class Explained:
    """The value of a feature for one patient and the rows behind it.

    ``rows``: of each row of the patient its table, day, the day from which it is known, what it holds, and whether it
    counts or why not.
    """

    feature: str
    words: str
    patient: str
    index_date: dt.date
    entity: dict[str, str]
    value: Any
    unknown_because: str
    rows: tuple[dict[str, Any], ...]


def explain_feature(setting: Setting, name: str, patient: str) -> Explained:
    """How the value of the feature ``name`` for ``patient`` comes about.

    Raises:
        InputError: there is no such feature, or the patient is not in the cohort.
    """
    import duckdb

    view, feature = feature_named(name)
    mine = setting.rows[(setting.rows["patient_id"] == patient).fillna(False).to_numpy(dtype=bool)]
    if mine.empty:
        remedy = "Name one of its patients, as `e2i cohort explain COHORT PATIENT` does."
        raise InputError(
            f"{patient} is not a patient of the cohort. {remedy}", field="PATIENT", remedy=remedy
        )
    own_setting = Setting(mine, setting.tables, setting.covered, setting.source_lag_days)
    part = with_only(view, [name])
    entities = own_setting.entities(part)
    index = pd.Timestamp(mine["index_date"].iloc[0]).date()
    if entities.empty:
        absent = f"the patient has no {' and '.join(view.keys)} that is known on the index date"
        return Explained(name, feature.words(), patient, index, {}, None, absent, ())
    value = compute_view(part, entities, **own_setting.known)[name].iloc[0]
    why = ""
    if not observed(view, feature, entities["as_of"], setting.covered).all():
        tables = sorted({table for table, _ in view.windows(feature)} & set(setting.covered))
        days = "; ".join(f"{table} covers {setting.covered[table].words()}" for table in tables)
        why = f"{days}; a day of its window is not covered"
    statement = Statement(part)
    shown_rows: list[dict[str, Any]] = []
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.register("entities", entity_table(part, entities))
        prepare(connection, statement, setting.tables, setting.source_lag_days, setting.covered)
        for _, rows, _ in dict.fromkeys(view.leaves(feature)):
            shown_rows += _rows_of(connection, statement, rows)
    shown = None if pd.isna(value) else value.item() if hasattr(value, "item") else value
    entity = {key: str(entities[key].iloc[0]) for key in view.keys}
    return Explained(name, feature.words(), patient, index, entity, shown, why, tuple(shown_rows))


def _rows_of(connection: Any, statement: Statement, rows: Rows) -> list[dict[str, Any]]:
    asked = statement.conditions(rows)
    owner = " AND ".join(sql for sql, label in asked.items() if label == OTHERS)
    why = " ".join(
        f"WHEN NOT coalesce({sql}, false) THEN '{label}'" for sql, label in asked.items() if label != OTHERS
    )
    day = ROW_TABLES[rows.table][1]
    read = dict.fromkeys([*rows.columns, *([rows.event_column] if rows.event_column in rows.columns else [])])
    columns = ", ".join(f't."{name}"' for name in read if name != day) or "NULL"
    found = connection.sql(
        f"SELECT t.day, t.known_on, concat_ws(', ', {columns}) AS content, CASE {why} ELSE 'counts' END AS verdict "
        f"FROM entities e JOIN {rows.table}_dated t ON {owner} ORDER BY t.day, content"
    ).fetchall()
    return [
        {
            "rows": rows.words(),
            "day": day.isoformat(),
            "known_on": known.isoformat(),
            "holds": content,
            "verdict": said,
        }
        for day, known, content, said in found
    ]


@dataclass(frozen=True)
class Suggestion:
    """A candidate: which rows, how many patients have one, and the feature to write into a file.

    ``patients`` is hidden where few patients do not have it.
    """

    table: str
    column: str
    code: str
    patients: str
    feature: dict[str, Any]


def suggest(setting: Setting, *, days: int = 365, min_share: float = 0.01) -> tuple[Suggestion, ...]:
    """Counts of every kind of event and every code that enough patients have in the ``days`` before their index.

    Args:
        min_share: share of the patients from which a code is a candidate; never fewer than eleven patients.

    Returns:
        Candidates by table and column, the most frequent first. No outcome is read.

    Raises:
        InputError: a table or column is missing.
    """
    import duckdb

    features = [
        {"name": f"c{place}", "description": "Candidates.",
         "distinct": {"table": table, "column": column, "within": [-days, -1]}}
        for place, (table, column, _) in enumerate(CANDIDATES)
    ]  # fmt: skip
    view = FeatureView.model_validate(
        {"name": "candidates", "keys": ["patient_id"], "description": "Candidates.", "features": features}
    )
    entities = setting.entities(view)
    least = max(SMALLEST_SHOWN, int(-(-len(entities) * min_share // 1)))
    statement = Statement(view)
    found: list[Suggestion] = []
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.register("entities", entity_table(view, entities))
        prepare(connection, statement, setting.tables, setting.source_lag_days, setting.covered)
        for feature, (table, column, systems) in zip(view.features, CANDIDATES, strict=True):
            (leaf,) = feature.own_leaves
            met = " AND ".join(statement.conditions(leaf.rows))
            _read_codes(connection, table, column, systems)
            counts = connection.sql(
                f"SELECT c.system, c.code, count(DISTINCT e.row) AS patients FROM entities e "
                f'JOIN {table}_dated t ON {met} JOIN codes c ON c.cell = t."{column}" '
                f"GROUP BY ALL HAVING patients >= {least} ORDER BY patients DESC, c.code"
            ).fetchall()
            found += [
                Suggestion(
                    table, column, code,
                    HIDDEN if is_small(len(entities) - patients) else f"{patients:,}",
                    _candidate(table, system, code, days),
                )
                for system, code, patients in counts
            ]  # fmt: skip
    return tuple(found)


def _read_codes(connection: Any, table: str, column: str, systems: tuple[str, ...]) -> None:
    """The table ``codes``: of each distinct cell the codes in it, as they are compared, and their system."""
    import re

    cells = connection.sql(f'SELECT DISTINCT "{column}" FROM {table} WHERE "{column}" IS NOT NULL').fetchall()
    read: set[tuple[str, str, str]] = set()
    for (cell,) in cells:
        several = (
            [cell]
            if systems in ((), ("ndc",))
            else re.split(LIST_SEPARATOR, re.sub(LIST_MARKS, "", cell.upper()))
        )
        for text in map(str.strip, several):
            system = next((known for known in systems if fits(text, known)), None)
            if not systems:
                read.add((cell, "", text))
            elif system is not None and len(known := readings(text, system)) == 1:
                read.add((cell, system, known[0]))
    frame = pd.DataFrame(sorted(read), columns=["cell", "system", "code"], dtype="string[pyarrow]")
    connection.register("codes", frame)


def _candidate(table: str, system: str, code: str, days: int) -> dict[str, Any]:
    name = "".join(letter if letter.isalnum() else "_" for letter in code.lower())
    rows: dict[str, Any] = {"table": table, "within": [-days, -1]}
    rows |= {"codes": [code], "code_system": system} if system else {"event": code}
    what = f"{SYSTEMS[system].title} {code}" if system else f"{ROW_TABLES[table][0]} {code}"
    return {
        "name": f"n_{system + '_' if system else ''}{name}_{days}d",
        "description": f"Rows of {table} with {what} in the last {days} days.",
        "unit": "events",
        "count": rows,
    }
