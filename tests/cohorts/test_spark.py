"""The same definitions on Spark as on DuckDB: rules on columns, events, groups, periods, with nulls everywhere."""

import random
from datetime import date, timedelta

import pandas as pd
import pytest
from test_engines import EVENTS, PATIENTS, PERIODS, expected, found_by, frame, frames
from test_hours import TYPES, answer, at, definition
from test_hours import frames as hour_frames

from e2i_dagster.cohorts import CohortInputError, build_cohort, write_cohort
from e2i_dagster.config.cohort import CohortDefinition

DATA_END = date(2024, 3, 12)


@pytest.fixture(scope="module")
def spark():
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.adaptive.enabled": "false",
        # A plan is run once on a few rows: compiling it would take longer than interpreting it.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC "
        # Classes of the installed package: not verified again at each start.
        "-XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote",
        "spark.sql.constraintPropagation.enabled": "false",
        "spark.sql.subexpressionElimination.enabled": "false",
        # The plan as text for a page that is not there: long, and made for each action.
        "spark.sql.maxPlanStringLength": "100",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
    }
    session = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    yield session
    session.stop()


def delivered(seed: int = 4, persons: int = 30):
    """Rows, events and periods in which every value is null now and then."""
    chance = random.Random(seed)

    def some(*values):
        return None if chance.random() < 0.15 else chance.choice(values)

    def day():
        return some(*(date(2024, 3, 1) + timedelta(n) for n in range(-9, 10)))

    rows = [
        {
            "patient_id": f"P{number // 2}",
            "patient_journey_id": f"J{number}",
            "age": some(0, 1, 2, 3, 4),
            "pregnant": some(True, False),
            "stage": some("a", "ab", "", "%"),
            "diagnosis_code": some("L50.1", "l501", " L50.1 ", "M10"),
            "seen": day(),
            "born": some(date(2004, 2, 29), date(2004, 3, 3)),
            "year_born": some(2003, 2004),
            "first_observation_date": some(date(2024, 2, 1), date(2024, 2, 28)),
            "last_observation_date": some(date(2024, 3, 8), date(2024, 3, 30)),
        }
        for number in range(2 * persons)
    ]
    # Events of patients that are not there, and patients without events.
    events = [
        {
            "patient_id": f"P{chance.randrange(5, persons + 5)}",
            "event_date": day(),
            "event_type": some("rx", "dx"),
            "code": some("L50.1", "l501", "M10"),
            "dose": some(0, 1, 2, 3),
        }
        for _ in range(8 * persons)
    ]
    periods = [
        {
            "patient_id": f"P{number % persons}",
            "start_date": date(2024, 2, 1) + timedelta(20 * (number // persons)),
            "end_date": some(date(2024, 2, 19), date(2024, 3, 10), date(2024, 3, 30)),
        }
        for number in range(2 * persons)
    ]
    return rows, events, periods


def on_spark(spark, rows, columns):
    from pyspark.sql import types

    kinds = {"Int64": types.LongType(), "boolean": types.BooleanType(), "date": types.DateType()}
    fields = [types.StructField(name, kinds.get(kind, types.StringType())) for name, kind in columns.items()]
    return spark.createDataFrame(
        [tuple(row[name] for name in columns) for row in rows], types.StructType(fields)
    )


def test_events_groups_and_periods_on_spark_are_those_of_duckdb(spark):
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "index": {"event": "rx", "occurrence": "every", "after": "seen", "after_days": -4},
            "journeys": "first_eligible",
            "observation": {"allowed_gap_days": 1},
            "derived": {"years": {"years_since": "born"}},
            "inclusion_criteria": [
                {
                    "name": "treated",
                    "any_of": [
                        {"has_event": {"event": "rx", "within": [-6, 0], "at_least": 2}},
                        {"field": "years", "operator": ">=", "value": 20},
                        {"field": "stage", "operator": "contains", "value": "%"},
                    ],
                },
                {
                    "name": "codes",
                    "has_event": {"codes": ["L50.*"], "within": [None, 0], "distinct": "code", "at_least": 1},
                },
            ],
            "exclusion_criteria": [
                {"name": "high", "no_event": {"event": "dx", "within": [1, 4]}},
                {"name": "gap", "gap": {"event": "rx", "days": 3, "within": [-2, 3]}},
            ],
            "temporal_requirements": {"lookback_days": 2, "followup_days": 3},
        }
    )
    rows, events, periods = delivered()
    cohort = build_cohort(
        built,
        on_spark(spark, rows, PATIENTS),
        on_spark(spark, events, EVENTS),
        observation_periods=on_spark(spark, periods, PERIODS),
        data_end=DATA_END,
    )
    patients, happened, observed = frames(rows, events, periods)
    other = build_cohort(built, patients, happened, observation_periods=observed, data_end=DATA_END)
    assert cohort.eligible_count
    assert found_by(cohort) == found_by(other) == expected(built, rows, events, periods, DATA_END)
    pd.testing.assert_frame_equal(cohort.attrition, other.attrition)


def test_a_cohort_is_written_by_spark_where_it_was_computed(spark, tmp_path):
    rules = [
        {"field": "age", "operator": "between", "value": [1, 3]},
        {"field": "pregnant", "operator": "!=", "value": True},
        {"field": "diagnosis_code", "operator": "in", "value": ["L50.*"]},
    ]
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "inclusion_criteria": rules,
            "index": {"field": "seen"},
            "temporal_requirements": {"lookback_days": 2, "followup_days": 3},
        }
    )
    rows, _, _ = delivered()
    attrition = write_cohort(
        built, on_spark(spark, rows, PATIENTS), folder=tmp_path / "spark", data_end=DATA_END
    )
    cohort = build_cohort(built, frames(rows, [], None)[0], data_end=DATA_END)
    assert cohort.eligible_count
    pd.testing.assert_frame_equal(attrition, cohort.attrition)
    read = {name: pd.read_parquet(tmp_path / "spark" / f"{name}.parquet") for name in ("eligible", "reasons")}
    assert sorted(read["eligible"]["patient_journey_id"]) == sorted(cohort.eligible["patient_journey_id"])
    masks = dict(zip(cohort.reasons["patient_journey_id"], cohort.reasons["mask"], strict=True))
    assert dict(zip(read["reasons"]["patient_journey_id"], read["reasons"]["mask"], strict=True)) == masks


def test_frames_of_two_engines_are_refused_by_name(spark):
    built = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", "inclusion_criteria": [{"prior_outcome": {"event": "rx"}}]}
    )
    patients = on_spark(spark, [], PATIENTS)
    with pytest.raises(CohortInputError, match=r"CC_004.*patients on spark, events on pandas"):
        build_cohort(built, patients, frames([], [], None)[1])
    with pytest.raises(CohortInputError, match="engine duckdb was asked for, but the frames are on spark"):
        build_cohort(built, patients, on_spark(spark, [], EVENTS), engine="duckdb")


def test_codes_on_spark_are_those_of_duckdb(spark):
    """Spellings, lists, positions and undecided codes, in counts, first events, gaps and the index date."""
    drug, unclear = "00078-0946-61", "0078094661"
    of_drug = {"codes": [drug], "code_system": "ndc"}
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "index": {**of_drug, "occurrence": "last"},
            "inclusion_criteria": [
                {"name": "listed", "has_event": {"codes": ["L50.*"]}},
                {"name": "first", "has_event": {"codes": ["L50.1", "J30.*"], "position": "first"}},
                {"name": "fills", "has_event": {**of_drug, "within": [-5, 5], "at_least": 2}},
                {"name": "new", "has_event": {**of_drug, "within": [-3, 3], "occurrence": "first"}},
                {"name": "none", "no_event": {"where": [
                    {"field": "icd_codes", "operator": "not_in", "value": ["J30.1", "L50.*"]},
                    {"field": "icd_codes", "operator": "contains", "value": "30", "position": "first"},
                ]}},
                {"name": "gap", "gap": {**of_drug, "days": 4, "within": [-6, 0]}},
            ],
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
        }
    )  # fmt: skip
    chance = random.Random(8)
    rows, _, _ = delivered(persons=20)
    columns = {"patient_id": EVENTS["patient_id"], "event_date": "date", "drug_ndc": "string[pyarrow]",
               "icd_codes": "string[pyarrow]"}  # fmt: skip
    spellings = [drug, "0078-0946-61", " 00078094661 ", unclear, "1234567890", None]
    lists = ['["L50.1", "J30.1"]', "{j301,l50.8}", "L501", " M30.0; l50.10", "[]", "J30.2|M10.0", None]
    events = [
        {
            "patient_id": f"P{chance.randrange(20)}",
            "event_date": date(2024, 3, 1) + timedelta(chance.randrange(12)),
            "drug_ndc": chance.choice(spellings),
            "icd_codes": chance.choice(lists),
        }
        for _ in range(90)
    ]
    cohort = build_cohort(built, on_spark(spark, rows, PATIENTS), on_spark(spark, events, columns))
    other = build_cohort(built, frames(rows, [], None)[0], frame(events, list(columns), columns))
    assert found_by(cohort) == found_by(other)
    pd.testing.assert_frame_equal(cohort.attrition, other.attrition)
    seen = other.reasons[["mask", "unknown_mask"]]
    for rule in built.rules[:7]:
        assert any(seen["mask"] & rule.bit) and not all(seen["mask"] & rule.bit)
    for name in ("index_date", "fills", "new", "gap"):
        bit = next(rule.bit for rule in built.rules if rule.name == name)
        assert any(seen["unknown_mask"] & bit)


def test_the_rules_of_quality_control_find_on_spark_what_they_find_in_memory(spark):
    from pyspark.sql import types

    from e2i_dagster.config.quality import current_quality_policy
    from e2i_dagster.quality.engine import check_on_engine
    from e2i_dagster.quality.schemas import check_schema

    kinds = {
        "hcp_id": types.StringType(),
        "npi": types.StringType(),
        "geographic_region": types.StringType(),
        "decile": types.LongType(),
        "digital_engagement_score": types.DoubleType(),
        "coverage_status": types.BooleanType(),
    }
    rows = [
        ("HCP00000001", "1234567893", "east", 1, 0.5, True),
        ("HCP00000001", "1234567890", "south", 11, 1.5, None),
        ("", "123456789x", "East", 0, None, False),
        (None, None, None, None, float("inf"), True),
        ("own", "1234567893\n", "west", 10, -0.1, True),
    ]
    fields = types.StructType([types.StructField(name, kind) for name, kind in kinds.items()])
    policy = current_quality_policy()
    given = pd.DataFrame(rows, columns=list(kinds))
    wanted = {
        one.rule.label: (one.count, one.checked) for one in check_schema(given, "hcp_profiles", policy).faults
    }
    faults = check_on_engine(spark.createDataFrame(rows, fields), "hcp_profiles", policy)
    assert {one.rule.label: (one.count, one.checked) for one in faults} == wanted
    kinds_found = {one.rule.kind for one in faults}
    assert {
        "not_null",
        "unique_key",
        "finite",
        "range",
        "vocabulary",
        "check_digit",
        "key_format",
    } <= kinds_found


def test_windows_in_hours_on_spark_are_those_of_duckdb(spark, tmp_path):
    chance, people = random.Random(8), tuple("ABCDEFGH")
    events = [at(10, "admission", person) for person in people]
    events += [
        at(chance.choice([None, 34, 34.5, 57.9, 58, 80]), chance.choice(TYPES), chance.choice(people))
        for _ in range(40)
    ]
    patients, table = hour_frames(events, people)
    patients.to_parquet(tmp_path / "patients")
    table.assign(event_date=table["event_date"].dt.date).to_parquet(tmp_path / "events")
    for rule in (
        {"event": "death", "hours": [24, 48], "ends": "(]"},
        {"event": "death", "hours": [24, None], "until": {"event": ["discharge", "death"]}},
    ):
        built = definition({"has_event": rule})
        here = answer(built, patients, table)
        there = answer(built, *(spark.read.parquet(str(tmp_path / name)) for name in ("patients", "events")))
        assert there == here and len(set(here.values())) == 3
