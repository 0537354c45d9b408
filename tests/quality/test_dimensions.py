"""Layer 2: known answers, one pass for all months, the same on every engine."""

from __future__ import annotations

import datetime as dt
from typing import Any

import duckdb
import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.quality.dimensions import ColumnScore, DimensionScores, score
from e2i_dagster.quality.engine import EngineFrame, engine_frame, with_vocabularies
from e2i_dagster.quality.rules import Rule
from e2i_dagster.quality.schemas import check_schema
from e2i_dagster.quality.typed import typed
from e2i_dagster.tables.constraints import sound

END = dt.date(2024, 12, 31)


@pytest.mark.parametrize("engine", ["duckdb", "pandas"])
def test_known_answers(events: pd.DataFrame, policy: QualityPolicy, engine: str) -> None:
    frame = events.assign(hcp_id=["HCP00000001"] * 324 + [None] * 36)  # 36 of 7 x 360 expected cells
    frame.loc[:19, "event_type"] = "unheard"  # 20 of 1080 cells with a value rule
    frame.loc[:3, "cost"] = -1.0  # 4 more
    frame.loc[[1, 2], "treatment_event_id"] = frame["treatment_event_id"][0]
    whole = score(frame, "treatment_events", policy=policy, as_of=END, engine=engine).whole  # type: ignore[arg-type]
    assert whole.completeness == pytest.approx(1 - 36 / (7 * 360))
    assert whole.validity == pytest.approx(1 - 24 / (3 * 360))
    assert whole.consistency == 1
    assert whole.uniqueness == pytest.approx(358 / 360)
    age = (END - dt.date(2024, 2, 28)).days
    assert whole.age_days == age
    assert whole.timeliness == pytest.approx(30 / age)
    weighted = (
        0.25 * whole.completeness + 0.25 * whole.validity + 0.20 + 0.15 * whole.uniqueness + 0.15 * 30 / age
    )
    assert whole.overall == pytest.approx(weighted)


def test_each_month_is_scored_in_the_same_call(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.copy()
    frame.loc[months == "2024-01", "event_type"] = None
    together = score(frame, "treatment_events", policy=policy, as_of=END, partitions=months)
    assert sorted(together.partitions) == ["2023-12", "2024-01", "2024-02"]
    assert together.partitions["2024-01"].completeness == pytest.approx(6 / 7)
    for month, scores in together.partitions.items():
        alone = score(
            frame[months == month],
            "treatment_events",
            policy=policy,
            as_of=END,
            partitions=months[months == month],
        )
        assert alone.partitions[month] == scores
        assert scores.timeliness == alone.whole.timeliness == 1  # against the month's own end


def test_a_relation_gives_the_same_as_the_frame(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy
) -> None:
    frame = events.assign(month=months.astype(str))
    frame.loc[5:9, "cost"] = np.nan
    relation = duckdb.connect().from_df(frame)
    assert score(relation, "treatment_events", policy=policy, as_of=END, partitions="month") == score(
        frame, "treatment_events", policy=policy, as_of=END, partitions=months
    )


def test_only_applicable_clinical_cells_count(policy: QualityPolicy) -> None:
    frame = pd.DataFrame(
        {
            "patient_journey_id": ["a", "b", "c"],
            "diagnosis_code": ["L50.1", "d59.50", None],
            "diagnosis_date": pd.Timestamp("2024-01-01"),
            "urticaria_severity_uas7": [20.0, np.nan, np.nan],
            "ldh_ratio": [np.nan, 2.0, 3.0],
        }
    )
    found = score(frame, "patient_clinical", policy=policy)
    by_column = {one.column: one for one in found.columns}
    assert (by_column["urticaria_severity_uas7"].applicable, by_column["urticaria_severity_uas7"].filled) == (
        1,
        1,
    )
    # The third row has no diagnosis: its value is there but was not asked for.
    assert (by_column["ldh_ratio"].applicable, by_column["ldh_ratio"].filled) == (1, 1)
    assert by_column["egfr"].applicable == 0
    assert by_column["prior_antihistamine_therapy"].applicable == 1
    # 5 columns for all, 6 for urticaria, 6 for haemoglobinuria.
    assert found.whole.completeness == pytest.approx((3 + 2 + 3 + 1 + 1) / (5 * 3 + 6 + 6))


def test_ordered_pairs_lower_consistency_by_their_share(
    journeys: pd.DataFrame, policy: QualityPolicy
) -> None:
    frame = journeys.copy()
    frame.loc[[1, 3], "journey_end_date"] = pd.Timestamp("2023-01-01")
    # Two checks measured: columns (1.0) and start before end (18 of 20).
    assert score(frame, "patient_journeys", policy=policy).whole.consistency == pytest.approx((1 + 0.9) / 2)


def test_nothing_to_measure_is_none_and_leaves_the_mean(events: pd.DataFrame, policy: QualityPolicy) -> None:
    empty = score(events.iloc[:0], "treatment_events", policy=policy, as_of=END)
    assert empty.whole.overall is None
    assert empty.whole.completeness is None
    assert empty.partitions == {}
    undated = score(events, "treatment_events", policy=policy).whole
    assert undated.timeliness is None
    assert undated.overall == 1


def test_one_row_all_null_and_unreadable_cells(events: pd.DataFrame, policy: QualityPolicy) -> None:
    assert score(events.iloc[:1], "treatment_events", policy=policy).whole.overall == 1
    null = score(events.assign(event_type=None), "treatment_events", policy=policy)
    assert null.whole.completeness == pytest.approx(6 / 7)
    broken = events.assign(cost=["x"] * 36 + [1.0] * 324)
    scores = score(broken, "treatment_events", policy=policy)
    assert scores.whole.validity == pytest.approx(1 - 36 / (3 * 360))
    column = next(one for one in scores.columns if one.column == "cost")
    assert (column.filled, column.invalid) == (360, 36)


@pytest.mark.parametrize("repeated", [0, 1, 1_500])
@pytest.mark.parametrize("empty", [0, 1, 7])
def test_distinct_keys_are_counted_once(
    events: pd.DataFrame, policy: QualityPolicy, repeated: int, empty: int
) -> None:
    keys: list[Any] = (
        [f"k{i}" for i in range(4_000)] + [f"k{i % 1_500}" for i in range(repeated)] + [None] * empty
    )
    frame = events.iloc[np.arange(len(keys)) % len(events)].assign(treatment_event_id=keys)
    whole = score(frame, "treatment_events", policy=policy).whole
    assert whole.uniqueness == 4_000 / (4_000 + repeated)
    assert score(frame, "treatment_events", policy=policy, engine="pandas").whole == whole


def test_a_vocabulary_may_hold_any_text() -> None:
    values = ("it's", 'say "so"', "[a, b]", "", "ü; DROP TABLE x --")
    rule = Rule("vocabulary", "t", 'a "b" c', "text", values=values, severity="convention")
    cells = [*values, "other", None]
    relation = duckdb.connect().from_arrow(pa.table({rule.column: pa.array(cells, pa.string())}))
    on = with_vocabularies(EngineFrame(nw.from_native(relation), frozenset()), [rule])
    known = on.native.select(known=sound([rule], on.known)).collect()["known"].to_list()
    assert known == [True] * len(values) + [False, False]


def test_a_relation_with_a_column_of_another_type_counts_as_invalid(
    events: pd.DataFrame, policy: QualityPolicy
) -> None:
    relation = duckdb.connect().from_df(events.assign(cost="much"))
    column = next(
        one for one in score(relation, "treatment_events", policy=policy).columns if one.column == "cost"
    )
    assert (column.filled, column.invalid) == (360, 360)


def _of_whole(frame: pd.DataFrame, policy: QualityPolicy) -> list[tuple[ColumnScore, ...]]:
    """The scores without partitions: on two engines, and of a table that DuckDB has compressed."""
    stored = duckdb.connect()
    stored.register("given", engine_frame(frame, "treatment_events", engine="pandas").native.to_native())
    stored.execute("CREATE TABLE events AS SELECT * FROM given; CHECKPOINT")
    return [
        score(frame, "treatment_events", policy=policy).columns,
        score(frame, "treatment_events", policy=policy, engine="pandas").columns,
        score(stored.table("events"), "treatment_events", policy=policy).columns,
    ]


_values = st.lists(
    st.tuples(
        st.sampled_from(["prescription", "consultation", "unheard", None]),
        st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 5.5, float("inf")])),
        st.one_of(st.none(), st.sampled_from([-1, 0, 30])),
        st.sampled_from(["2023-12", "2024-01"]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=15, deadline=None)
@given(rows=_values)
def test_engines_and_the_schema_layer_agree_on_invalid_cells(rows: list[tuple]) -> None:
    policy = _policy()
    frame = pd.DataFrame(
        {
            "treatment_event_id": [f"k{i}" for i in range(len(rows))],
            "event_type": [row[0] for row in rows],
            "cost": [row[1] for row in rows],
            "duration_days": [row[2] for row in rows],
        }
    )
    labels = pd.Series([row[3] for row in rows])
    scored: list[DimensionScores] = [
        score(frame, "treatment_events", policy=policy, partitions=labels, engine=engine)
        for engine in ("duckdb", "pandas")
    ]
    assert scored[0] == scored[1]
    assert _of_whole(frame, policy) == [scored[0].columns] * 3
    read = typed(frame, "treatment_events")
    by_mask: dict[str, set[int]] = {}
    for fault in check_schema(read, "treatment_events", policy).faults:
        if fault.rule.kind in ("type", "range", "vocabulary", "finite"):
            by_mask.setdefault(fault.rule.column, set()).update(fault.positions.tolist())
    counted = {one.column: one.invalid for one in scored[0].columns if one.invalid}
    assert counted == {column: len(positions) for column, positions in by_mask.items()}


def _policy() -> QualityPolicy:
    if not _loaded:
        _loaded.append(QualityPolicy.load(CHECKOUT / "config"))
    return _loaded[0]


_loaded: list[QualityPolicy] = []
