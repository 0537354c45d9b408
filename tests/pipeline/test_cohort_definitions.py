"""Definition files in real runs: what changes with them, what does not, and what is refused."""

import shutil

import dagster as dg
import pandas as pd
import pytest
from pipeline_runs import PATIENTS, said

from e2i_dagster.cohorts import compare, explain
from e2i_dagster.cohorts.executions import find_execution, read_execution
from e2i_dagster.config.cohort import read_cohort
from e2i_dagster.policy_files.environment import CHECKOUT

CSU, PNH = "remibrutinib_csu", "fabhalta_pnh"
LOADED = PATIENTS
EVENT_FILES = ("treatment_events", "engagement_events", "outcome_events")
#: Of the events two months are loaded, on both sides of New Year.
EVENT_MONTHS = ("2023-12", "2024-01")
ALL_MONTHS = ("2022-01", "2024-12")


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Makes a configuration with changes to the file of one cohort and puts it in force.

    ``kept``: first month and last day that events are kept for.
    """
    made = []

    def edit(cohort: str, kept: tuple[str, str] = ("2022-01", "2024-12-31"), **changes: str) -> None:
        config = shutil.copytree(CHECKOUT / "config", tmp_path / f"config-{len(made)}")
        path = config / "sources.yaml"
        text = path.read_text(encoding="utf-8")
        for before, after in zip(('"2022-01"', "2024-12-31"), (f'"{kept[0]}"', kept[1]), strict=True):
            assert before in text
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")
        path = config / "cohorts" / f"{cohort}.yaml"
        text = path.read_text(encoding="utf-8")
        for before, after in changes.values():
            assert before in text
            text = text.replace(before, after, 1)
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("E2I_CONFIG", str(config))
        made.append(config)

    return edit


def built(pipeline, cohort):
    """The run, and the states of its two stages."""
    result = pipeline.run("build_cohorts", partition=cohort)
    rows = pipeline.rows(f"SELECT stage, state FROM ml_stage_states WHERE partition = '{cohort}'")
    return result, {row["stage"]: row["state"] for row in rows}


def check_of(result, name):
    (found,) = (check for check in result.get_asset_check_evaluations() if check.check_name == name)
    return found


def test_only_what_changed_is_built_again_and_a_version_is_one_set_of_rules(after_load, edited):
    pipeline = after_load
    for cohort in (CSU, PNH):
        first, states = built(pipeline, cohort)
        assert first.success, said(first)
        assert set(states.values()) == {"executed"}
    (execution,) = pipeline.rows(
        "SELECT e.* FROM ml_cohort_executions e JOIN ml_cohort_definitions USING (cohort_id) "
        f"WHERE cohort_key = '{CSU}'"
    )
    assert execution["code_version"]
    members = pipeline.rows(
        f"SELECT table_name FROM ml_snapshots WHERE digest = '{execution['input_dataset']}'"
    )
    assert {row["table_name"] for row in members} == {"patient_journeys", "patient_clinical"}

    # The same rules, data and code: nothing is computed and nothing recorded again.
    assert set(built(pipeline, CSU)[1].values()) == {"reused"}
    assert len(pipeline.rows("SELECT 1 FROM ml_cohort_executions")) == 2

    harder = ("value: 16 #", "value: 28 #")
    edited(CSU, rule=harder)
    refused, states = built(pipeline, CSU)
    assert not refused.success and states["cohort_definition"] == "failed"
    assert "Raise 'version:'" in said(refused)
    assert "was 'keep when urticaria_severity_uas7 is at least 16" in said(refused)

    edited(CSU, rule=harder, version=("version: 1.0.0", "version: 2.0.0"))
    again, states = built(pipeline, CSU)
    assert again.success, said(again)
    assert set(states.values()) == {"executed"}
    assert set(built(pipeline, PNH)[1].values()) == {"reused"}

    impossible = ("value: 18 #", "value: 118 #")
    edited(CSU, rule=impossible, version=("version: 1.0.0", "version: 3.0.0"))
    empty, states = built(pipeline, CSU)
    assert states["cohort"] == "executed"
    verdict = check_of(empty, "cohort_not_empty")
    assert not verdict.passed and verdict.blocking
    assert "CC_003: nobody is left after the rule 'age_at_diagnosis'" in str(verdict.description)
    assert check_of(again, "cohort_not_empty").passed
    lint = check_of(empty, "definition_lint")
    assert not lint.passed, "the examples expect the old rule"


def test_every_index_date_of_a_journey_is_built_and_recorded(after_load, delivery, edited):
    pipeline = after_load
    folder = delivery(*PATIENTS, *EVENT_FILES)
    edited(
        CSU,
        field=("  index_date_field: diagnosis_date\n", ""),
        index=(
            "inclusion_criteria:",
            "index: {event: consultation, occurrence: every}\njourneys: every\ninclusion_criteria:",
        ),
        version=("version: 1.0.0", "version: 2.0.0"),
    )
    assert pipeline.load(folder, *PATIENTS, *EVENT_FILES, months=ALL_MONTHS).success
    done, _ = built(pipeline, CSU)
    assert done.success, said(done)
    wanted = {
        row["patient_journey_id"]: row["dates"]
        for row in pipeline.rows(
            "SELECT j.patient_journey_id, greatest(1, count(DISTINCT e.event_date)) AS dates FROM patient_journeys j "
            "LEFT JOIN treatment_events e ON e.patient_id = j.patient_id AND event_type = 'consultation' GROUP BY 1"
        )
    }
    rows = pipeline.rows(
        "SELECT * FROM ml_patient_cohort_assignments ORDER BY patient_journey_id, index_number"
    )
    found = pd.DataFrame(rows)
    assert found.groupby("patient_journey_id").size().to_dict() == wanted
    assert max(wanted.values()) > 1
    assert (found.groupby("patient_journey_id")["index_number"].max() == pd.Series(wanted)).all()
    dated = found.dropna(subset="index_date")
    assert dated.groupby("patient_journey_id")["index_date"].is_monotonic_increasing.all()
    (execution,) = pipeline.rows("SELECT * FROM ml_cohort_executions")
    assert execution["eligible_row_count"] == found["is_eligible"].sum()
    assert execution["input_row_count"] == len(wanted)
    several = dated.loc[dated["index_number"] > 1, "patient_journey_id"].iloc[0]
    with pipeline.warehouse.connect() as connection:
        told = explain(connection, CSU, several)
        again = read_execution(connection, find_execution(connection, CSU))
    assert [j.index_date for j in told.journeys] == [
        day.isoformat() for day in dated.loc[dated["patient_journey_id"] == several, "index_date"]
    ]
    assert len(again.reasons) == len(found)
    assert compare(again, again).unchanged


def test_a_definition_on_events_reads_checked_events_and_delivered_periods(after_load, delivery, edited):
    pipeline = after_load
    folder = delivery(*PATIENTS, *EVENT_FILES)
    journeys = pd.read_csv(folder / "patient_journeys.csv", dtype="string[pyarrow]")
    patients = sorted(journeys["patient_id"].unique())
    # Observed throughout, but every third patient has no record of enrolment at all.
    enrolled = [patient for place, patient in enumerate(patients) if place % 3]
    periods = pd.DataFrame({"patient_id": enrolled, "start_date": "2015-01-01", "end_date": ""})
    periods["observation_period_id"] = [f"OP{place}" for place in range(len(periods))]
    periods.to_csv(folder / "observation_periods.csv", index=False)
    edited(
        CSU,
        rule=(
            "exclusion_criteria:",
            "exclusion_criteria:\n  - {name: seen, has_event: {event: consultation, within: [-365, -1]}}",
        ),
        version=("version: 1.0.0", "version: 2.0.0"),
    )
    without, states = built(pipeline, CSU)
    assert states["cohort"] == "failed"
    assert "treatment_events, engagement_events, outcome_events: absent, no delivery holds any" in said(
        without
    )

    # A definition without events does not depend on them, whatever the graph shows of the others.
    assert built(pipeline, PNH)[1]["cohort"] == "executed"
    assert pipeline.load(folder, *EVENT_FILES, months=EVENT_MONTHS, checked=False).success
    assert built(pipeline, PNH)[1]["cohort"] == "reused"
    unchecked, states = built(pipeline, CSU)
    assert states["cohort"] == "blocked"
    assert "treatment_events" in said(unchecked)

    tables = (*PATIENTS, *EVENT_FILES, "observation_periods")
    assert pipeline.load(folder, *tables, months=EVENT_MONTHS).success
    # Of the other months nothing is known: whose lookback reaches into one is counted, not taken for "no event".
    short, states = built(pipeline, CSU)
    assert states["cohort"] == "executed", said(short)
    assert not check_of(short, "cohort_not_empty").passed
    counts = pipeline.rows(
        "SELECT unknown_count FROM ml_cohort_eligibility_log WHERE criterion_name = 'lookback' ORDER BY log_id"
    )
    assert counts[-1]["unknown_count"] > 0
    assert pipeline.load(folder, *EVENT_FILES, months=ALL_MONTHS).success
    done, states = built(pipeline, CSU)
    assert states["cohort"] == "executed", said(done)
    rows = pipeline.rows(
        "SELECT patient_id, index_date, failed_mask, is_eligible FROM ml_patient_cohort_assignments "
        "JOIN ml_cohort_executions e USING (execution_id) WHERE status = 'success' "
        f"AND e.cohort_id = 'cohort_{CSU}_v2.0.0'"
    )
    names = [rule.name for rule in read_cohort(CSU).rules]
    failed = {
        name: {r["patient_id"] for r in rows if r["failed_mask"] >> names.index(name) & 1} for name in names
    }
    assert failed["lookback"] >= set(patients) - set(enrolled)
    # Enrolled since 2015, but rows are kept since 2022: 180 days before these index dates are not observed.
    reaching = {r["patient_id"] for r in rows if r["index_date"] and str(r["index_date"]) < "2022-06-30"}
    assert failed["lookback"] & set(enrolled) == reaching & set(enrolled) != set()
    events = pipeline.rows(
        "SELECT DISTINCT patient_id FROM treatment_events WHERE event_type = 'consultation'"
    )
    assert failed["seen"]
    assert failed["seen"] <= {row["patient_id"] for row in events}
    assert any(row["is_eligible"] for row in rows)


def test_the_asset_graph_shows_every_table_that_a_definition_may_read():
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.definitions import defs

    parents = {
        key.to_user_string() for key in defs.resolve_asset_graph().get(dg.AssetKey("cohort")).parent_keys
    }
    read = {table for cohort in current_policy().cohorts.values() for table in cohort.tables_read}
    for table in {*read, *EVENT_FILES, "observation_periods"}:
        assert {table, f"quality/{table}"} <= parents


def test_events_of_a_range_that_was_wider_are_counted_and_their_time_is_unknown(
    after_load, delivery, drawn, edited
):
    """Loaded with a wide range, then a narrow one: nothing before or after it is known, for anybody."""
    from commands.status import status_report
    from e2i_dagster.loading.delivery import DeliveryRequest, dry_run_report

    pipeline = after_load
    folder = delivery(*PATIENTS, *EVENT_FILES)
    rules = {
        "rule": (
            "exclusion_criteria:",
            "  - {name: washout, washout: {event: consultation, days: 90}}\n"
            "  - {name: never, no_event: {event: consultation, within: [null, -1]}}\n"
            "exclusion_criteria:",
        ),
        "version": ("version: 1.0.0", "version: 2.0.0"),
    }
    names = ("washout", "never", "lookback")

    def load_and_build(first: str, last: str) -> tuple[dict, pd.DataFrame]:
        """What the load counted, and for each patient the rules it failed and those that are unknown."""
        edited(CSU, kept=(first, last), **rules)
        assert pipeline.load(folder, *PATIENTS, *EVENT_FILES, months=(first, last[:7])).success
        done, states = built(pipeline, CSU)
        assert states["cohort"] == "executed", said(done)
        with pipeline.warehouse.connect() as connection:
            recorded = read_execution(connection, find_execution(connection, CSU))
        order = [rule.name for rule in recorded.definition.rules]
        found = recorded.reasons.set_index("patient_id")
        for name in names:
            bit = 1 << order.index(name)
            found[name] = (found["mask"] & bit) != 0
            found[f"{name}?"] = (found["unknown_mask"] & bit) != 0
        return done, found

    _, wide = load_and_build("2022-01", "2024-12-31")
    assert status_report()["not_kept"] == {}

    _, narrow = load_and_build("2023-04", "2024-06-30")
    events = drawn["treatment_events"]
    day = pd.to_datetime(events["event_date"])
    early, late = day < "2023-04-01", day > "2024-06-30"
    assert early.sum() > 100 and late.sum() > 50
    counted = {"before_first_month": early.sum(), "after_data_end": late.sum()}
    planned = dry_run_report(DeliveryRequest(folder=str(folder)))["tables"]["treatment_events"]
    assert planned["reasons"] == counted and planned["unchanged"] == len(events) - early.sum() - late.sum()
    assert status_report()["not_kept"]["treatment_events"] == counted

    # Nobody's answer became another one: it stays, or nothing is known any more.
    index = pd.to_datetime(narrow["index_date"])
    consulted = events[(events["event_type"] == "consultation") & ~early & ~late]
    seen = consulted.merge(index.rename("index_date"), left_on="patient_id", right_index=True)
    before = (pd.to_datetime(seen["index_date"]) - pd.to_datetime(seen["event_date"])).dt.days
    short = wide.index[wide["lookback"] & ~wide["lookback?"]]
    for name, reach, proved in (
        ("washout", 90, seen.loc[before.between(1, 90), "patient_id"]),
        ("never", 180, seen.loc[before >= 1, "patient_id"]),
        ("lookback", 180, short),
    ):
        unkept = index < pd.Timestamp("2023-04-01") + pd.Timedelta(days=reach)
        if name != "lookback":
            unkept |= index > pd.Timestamp("2024-07-01")
        unknown = index.isna() | unkept | wide[f"{name}?"].reindex(narrow.index)
        unknown = unknown.mask(narrow.index.isin(proved), False)
        assert unknown.sum() > wide[f"{name}?"].sum(), name
        pd.testing.assert_series_equal(narrow[f"{name}?"], unknown, check_names=False, obj=name)
        known = narrow.index[~narrow[f"{name}?"]]
        assert narrow.loc[known, name].equals(wide.loc[known, name]), name
