"""The whole language on generated definitions and data with nulls: every engine against a plain evaluation."""

from datetime import date, timedelta

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from patient_by_patient import evaluate

from e2i_dagster.cohorts import CohortInputError, build_cohort, count_cohort, write_cohort
from e2i_dagster.config.cohort import CohortDefinition

START = date(2024, 3, 1)
day = st.integers(-9, 9).map(lambda n: START + timedelta(n))


def maybe(s):
    return st.one_of(st.none(), s)


codes = ["L50.1", "l501", "L50", "L50.10", "M10", " L50.1 "]
fields = st.one_of(
    st.builds(
        lambda o, v: {"field": "age", "operator": o, "value": v},
        st.sampled_from(["==", "!=", ">", ">=", "<", "<="]),
        st.integers(0, 4),
    ),
    st.builds(
        lambda o, v: {"field": "age", "operator": o, "value": v},
        st.sampled_from(["in", "not_in"]),
        st.lists(st.integers(0, 4), min_size=1, max_size=3),
    ),
    st.builds(
        lambda a, b: {"field": "age", "operator": "between", "value": sorted([a, b])},
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    st.builds(
        lambda o, v: {"field": "pregnant", "operator": o, "value": v},
        st.sampled_from(["==", "!="]),
        st.booleans(),
    ),
    st.builds(
        lambda o, v: {"field": "stage", "operator": o, "value": v},
        st.sampled_from(["==", "!=", "contains"]),
        st.sampled_from(["a", "b", "%", "_"]),
    ),
    st.builds(
        lambda o, v, d: {"field": "diagnosis_code", "operator": o, "value": v, "descendants": d},
        st.sampled_from(["in", "not_in"]),
        st.lists(st.sampled_from(["L50.1", "L50.*", "M10"]), min_size=1, max_size=2),
        st.booleans(),
    ),
    st.builds(
        lambda o, v: {"field": "years", "operator": o, "value": v},
        st.sampled_from(["==", ">=", "<"]),
        st.integers(19, 22),
    ),
)
pattern = st.one_of(
    st.just({"event": "rx"}),
    st.just({"codes": ["L50.*"]}),
    st.just({"event": ["rx", "dx"], "codes": ["L50.1"]}),
    st.just({"event": "rx", "where": [{"field": "dose", "operator": ">", "value": 1}]}),
)
win = st.one_of(
    st.tuples(st.integers(-6, 6), st.integers(0, 6)).map(lambda t: [t[0], t[0] + t[1]]),
    st.just([None, -1]),
    st.just([0, None]),
    st.just([None, None]),
)
closed = st.tuples(st.integers(-6, 6), st.integers(0, 6)).map(lambda t: [t[0], t[0] + t[1]])
ev = st.one_of(
    st.builds(
        lambda p, w, n: {"has_event": {**p, "within": w, "at_least": n}}, pattern, win, st.integers(1, 3)
    ),
    st.builds(
        lambda p, w, n: {"has_event": {**p, "within": w, "at_least": n, "distinct": "code"}},
        pattern,
        win,
        st.integers(1, 2),
    ),
    st.builds(
        lambda p, w, n: {"has_event": {**p, "within": w, "at_most": n}}, pattern, win, st.integers(0, 2)
    ),
    st.builds(
        lambda p, w, o: {"has_event": {**p, "within": w, "occurrence": o}},
        pattern,
        win,
        st.sampled_from(["first", "last"]),
    ),
    st.builds(lambda p, w: {"no_event": {**p, "within": w}}, pattern, win),
    st.builds(lambda p, w: {"no_event": {**p, "within": w, "occurrence": "first"}}, pattern, win),
    st.builds(lambda p, n: {"washout": {**p, "days": n}}, pattern, st.integers(1, 6)),
    st.builds(lambda p: {"prior_outcome": p}, pattern),
    st.builds(lambda p, w, n: {"gap": {**p, "within": w, "days": n}}, pattern, closed, st.integers(1, 4)),
)
cond = st.recursive(
    st.one_of(fields, ev),
    lambda c: st.one_of(
        st.builds(lambda m: {"all_of": m}, st.lists(c, min_size=1, max_size=3)),
        st.builds(lambda m: {"any_of": m}, st.lists(c, min_size=1, max_size=3)),
        st.builds(
            lambda m: {"at_least": {"n": min(2, len(m)), "of": m}}, st.lists(c, min_size=1, max_size=3)
        ),
    ),
    max_leaves=4,
)


@st.composite
def definition(draw):
    inc = draw(st.lists(cond, min_size=1, max_size=3))
    exc = draw(st.lists(cond, max_size=2))
    pol = st.sampled_from([None, "exclude", "include", "report"])
    inc = [{**c, "name": f"in{k}", "on_unknown": draw(pol)} for k, c in enumerate(inc)]
    exc = [{**c, "name": f"ex{k}", "on_unknown": draw(pol)} for k, c in enumerate(exc)]
    t = {
        "lookback_days": draw(st.integers(0, 4)),
        "followup_days": draw(st.integers(0, 4)),
        "followup": draw(st.sampled_from(["require", "censor"])),
    }
    body = dict(
        brand="X",
        indication="y",
        inclusion_criteria=inc,
        exclusion_criteria=exc,
        temporal_requirements=t,
        journeys=draw(st.sampled_from(["first_eligible", "first", "every"])),
        derived={"years": {"years_since": draw(st.sampled_from(["born", "year_born"]))}},
        observation={"allowed_gap_days": draw(st.integers(0, 3))},
    )
    if draw(st.booleans()):
        t["index_date_field"] = "seen"
    else:
        body["index"] = {**draw(pattern), "occurrence": draw(st.sampled_from(["first", "last", "every"]))}
        if draw(st.booleans()):
            body["index"] |= {"after": "seen", "after_days": draw(st.integers(-1, 2))}
    try:
        return CohortDefinition.model_validate(body)
    except ValueError as error:
        if "stated twice" in str(error):
            reject()
        raise


pid = st.sampled_from(["A", "B", "C"])
rows = st.lists(
    st.fixed_dictionaries(
        {
            "patient_id": pid,
            "age": maybe(st.integers(0, 4)),
            "pregnant": maybe(st.booleans()),
            "stage": maybe(st.sampled_from(["a", "ab", "", "%", "_"])),
            "diagnosis_code": maybe(st.sampled_from(codes)),
            "seen": maybe(day),
            "born": maybe(st.sampled_from([date(2004, 2, 29), date(2004, 3, 3), date(2003, 12, 31)])),
            "year_born": maybe(st.integers(2002, 2005)),
            "first_observation_date": maybe(day),
            "last_observation_date": maybe(day),
        }
    ),
    min_size=1,
    max_size=6,
)
events = st.lists(
    st.fixed_dictionaries(
        {
            "patient_id": st.sampled_from(["A", "B", "C", "Z"]),
            "event_date": maybe(day),
            "event_type": maybe(st.sampled_from(["rx", "dx"])),
            "code": maybe(st.sampled_from(codes)),
            "dose": maybe(st.integers(0, 3)),
        }
    ),
    max_size=10,
)
periods = st.one_of(
    st.none(),
    st.lists(
        st.fixed_dictionaries({"patient_id": pid, "start_date": maybe(day), "end_date": maybe(day)}),
        max_size=6,
    ),
)


def frame(rs, cols, types):
    f = pd.DataFrame(rs, columns=cols).astype(object)
    for c, t in types.items():
        f[c] = pd.to_datetime(f[c]).astype("datetime64[us]") if t == "date" else f[c].astype(t)
    return f


S = "string[pyarrow]"

PATIENTS = {
    "patient_id": S,
    "patient_journey_id": S,
    "age": "Int64",
    "pregnant": "boolean",
    "stage": S,
    "diagnosis_code": S,
    "seen": "date",
    "born": "date",
    "year_born": "Int64",
    "first_observation_date": "date",
    "last_observation_date": "date",
}
EVENTS = {"patient_id": S, "event_date": "date", "event_type": S, "code": S, "dose": "Int64"}
PERIODS = {"patient_id": S, "start_date": "date", "end_date": "date"}


def frames(rs, es, ps):
    return (
        frame(rs, list(PATIENTS), PATIENTS),
        frame(es, list(EVENTS), EVENTS),
        None if ps is None else frame(ps, list(PERIODS), PERIODS),
    )


def day_or_none(value):
    return None if pd.isna(value) else value.date()


def found_by(cohort):
    r = cohort.reasons
    columns = (r["patient_journey_id"], r["index_date"], r["mask"], r["unknown_mask"])
    reasons = {(j, day_or_none(i)): (int(m), int(u)) for j, i, m, u in zip(*columns, strict=True)}
    e = cohort.eligible
    columns = (e["patient_journey_id"], e["index_date"], e["followup_end"])
    return reasons, {(j, day_or_none(i)): day_or_none(x) for j, i, x in zip(*columns, strict=True)}


def expected(built, rs, es, ps, data_end, data_start=None, holes=()):
    bits = {rule.name: rule.bit for rule in built.rules}
    plain = evaluate(built, rs, es, ps, data_end, data_start, holes)
    reasons = {
        (row[1], row[2]): (sum(bits[n] for n in set(row[3])), sum(bits[n] for n in set(row[4])))
        for row in plain
    }
    return reasons, {(row[1], row[2]): row[5] for row in plain if not row[3]}


def plain_attrition(built, cohort):
    """Persons removed, remaining, unknown and gained by rule, person by person as the words say it."""
    by_person = {}
    for person, mask, unknown in zip(*(cohort.reasons[n] for n in REASONS), strict=True):
        by_person.setdefault(person, []).append((mask, unknown))
    left, found = len(by_person), []
    for rule in built.rules:
        before = rule.bit - 1
        reached = [[row for row in rows if not row[0] & before] for rows in by_person.values()]
        now = sum(any(not mask & rule.bit for mask, _ in rows) for rows in reached)
        unknown = sum(any(u & rule.bit for _, u in rows) for rows in reached)
        masks = [{mask for mask, _ in rows} for rows in by_person.values()]
        gained = sum(rule.bit in of_person and 0 not in of_person for of_person in masks)
        found.append((rule.name, left - now, now, unknown, gained))
        left = now
    return found


REASONS = ("patient_id", "mask", "unknown_mask")
STEPS = ("criterion", "removed", "remaining", "unknown", "marginal_gain")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(definition(), rows, events, periods, maybe(day), maybe(day), st.lists(day, max_size=4, unique=True))
def test_engines_agree_with_a_plain_evaluation(built, rs, es, ps, data_start, data_end, ends):
    ends = sorted(ends)
    holes = tuple(zip(ends[::2], ends[1::2], strict=False))
    rs = [{**row, "patient_journey_id": f"J{k}"} for k, row in enumerate(rs)]
    patients, happened, observed = frames(rs, es, ps)
    wanted = expected(built, rs, es, ps, data_end, data_start, holes)
    assert CohortDefinition.model_validate(built.model_dump(mode="json")) == built
    known = {
        "observation_periods": observed, "data_start": data_start, "data_end": data_end, "unobserved": holes
    }  # fmt: skip
    cohort = build_cohort(built, patients, happened, engine="duckdb", **known)
    assert found_by(cohort) == wanted
    assert list(zip(*(cohort.attrition[n] for n in STEPS), strict=True)) == plain_attrition(built, cohort)
    counted = count_cohort(built, patients, happened, **known)
    pd.testing.assert_frame_equal(counted, cohort.attrition)
    # Events outside the covered days were never there.
    first, last = data_start or date.min, data_end or date.max
    covered = [one for one in es if one["event_date"] is None or first <= one["event_date"] <= last]
    if len(covered) < len(es):
        fewer = build_cohort(built, patients, frames(rs, covered, None)[1], **known)
        assert found_by(fewer) == wanted


columns_only = fields.filter(lambda criterion: criterion["field"] != "years")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    columns_only,
    columns_only,
    rows,
    maybe(day),
    st.sampled_from(["require", "censor"]),
    st.sampled_from([1, 9, None]),
)
def test_frames_files_and_duckdb_agree_on_rules_on_columns(
    tmp_path_factory, inside, outside, rs, data_end, followup, key_step
):
    """Persons with several rows, and persons with one each whose keys are ascending or not."""
    if inside == outside:
        reject()
    rs = [{**row, "patient_journey_id": f"J{k}"} for k, row in enumerate(rs)]
    if key_step is not None:
        keys = [f"{k * key_step % 10}" for k in range(len(rs))]
        rs = [
            {**row, "patient_id": k, "patient_journey_id": f"J{k}"} for k, row in zip(keys, rs, strict=True)
        ]
    times = {"lookback_days": 2, "followup_days": 3, "index_date_field": "seen", "followup": followup}
    rules = {
        "inclusion_criteria": [{**inside, "name": "a"}],
        "exclusion_criteria": [{**outside, "name": "b"}],
    }
    built = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", **rules, "temporal_requirements": times}
    )
    patients = frames(rs, [], None)[0]
    one = build_cohort(built, patients, data_end=data_end, engine="pandas")
    other = build_cohort(built, patients, data_end=data_end, engine="duckdb")
    assert found_by(one) == found_by(other) == expected(built, rs, [], None, data_end)
    pd.testing.assert_frame_equal(one.attrition, other.attrition)
    folder = tmp_path_factory.mktemp("written")
    patients.to_parquet(folder / "patients.parquet", row_group_size=2)
    attrition = write_cohort(built, folder / "patients.parquet", folder=folder, data_end=data_end)
    pd.testing.assert_frame_equal(attrition, one.attrition)
    counted = count_cohort(built, folder / "patients.parquet", data_end=data_end)
    pd.testing.assert_frame_equal(counted, one.attrition)
    for name, frame in (("reasons", one.reasons.drop(columns="words")), ("eligible", one.eligible)):
        read = pd.read_parquet(folder / f"{name}.parquet").sort_values("patient_journey_id")
        read = read[list(frame)].reset_index(drop=True).astype(dict(frame.dtypes))
        pd.testing.assert_frame_equal(read, frame)


def test_pandas_refuses_rules_on_events_by_name():
    built = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", "inclusion_criteria": [{"prior_outcome": {"event": "rx"}}]}
    )
    with pytest.raises(CohortInputError, match="need engine duckdb"):
        build_cohort(built, *frames([], [], None)[:2], engine="pandas")


@pytest.mark.parametrize(("repeats", "persons"), [(False, 3), (True, 2)])
def test_a_written_cohort_is_the_cohort_in_memory(tmp_path, repeats, persons):
    day = date(2024, 3, 1)
    rs = [
        {
            "patient_id": "B" if repeats and k else f"A{k}",
            "patient_journey_id": f"J{k}",
            "age": 20 * k,
            "seen": day + timedelta(k),
            "first_observation_date": date(2023, 1, 1),
            "last_observation_date": date(2025, 1, 1),
        }
        for k in range(3)
    ]
    rules = [{"field": "age", "operator": ">=", "value": 18}]
    built = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", "inclusion_criteria": rules, "index": {"field": "seen"}}
    )
    patients = frames(rs, [], None)[0]
    patients.to_parquet(tmp_path / "patients.parquet")
    cohort = build_cohort(built, patients)
    assert cohort.input_patients == persons
    attrition = write_cohort(built, tmp_path / "patients.parquet", folder=tmp_path / "cohort")
    pd.testing.assert_frame_equal(attrition, cohort.attrition)
    pd.testing.assert_frame_equal(count_cohort(built, tmp_path / "patients.parquet"), cohort.attrition)
    read = {
        name: pd.read_parquet(tmp_path / "cohort" / f"{name}.parquet") for name in ("eligible", "reasons")
    }
    assert sorted(read["eligible"]["patient_journey_id"]) == sorted(cohort.eligible["patient_journey_id"])
    masks = dict(zip(cohort.reasons["patient_journey_id"], cohort.reasons["mask"], strict=True))
    assert dict(zip(read["reasons"]["patient_journey_id"], read["reasons"]["mask"], strict=True)) == masks


@pytest.mark.parametrize("end", [None, date(9999, 12, 31)])
@pytest.mark.parametrize("data_end", [None, START])
def test_follow_up_in_a_period_without_end_is_open_until_the_data_end(end, data_end):
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 1}],
            "index": {"field": "seen"},
            "temporal_requirements": {"lookback_days": 9, "followup": "censor"},
            "observation": {"allowed_gap_days": 30},
        }
    )
    rs = [{"patient_id": "A", "patient_journey_id": "J", "age": 3, "seen": START}]
    ps = [{"patient_id": "A", "start_date": START - timedelta(9), "end_date": end}]
    patients = frames(rs, [], None)[0]
    observed = pd.DataFrame(ps, dtype=object)
    cohort = build_cohort(built, patients, observation_periods=observed, data_end=data_end)
    assert [day_or_none(found) for found in cohort.eligible["followup_end"]] == [data_end]


def test_patients_without_events_and_events_without_patients_change_nobody_else():
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "inclusion_criteria": [{"has_event": {"event": "rx", "within": [-5, 0]}}],
            "index": {"field": "seen"},
            "temporal_requirements": {"lookback_days": 5, "followup_days": 0},
        }
    )
    seen = {"seen": START, "first_observation_date": START - timedelta(9), "last_observation_date": START}
    rs = [{"patient_id": name, "patient_journey_id": name, **seen} for name in "AB"]
    es = [
        {"patient_id": who, "event_type": "rx", "event_date": when}
        for who, when in (("A", START), ("Z", START), (None, START), ("B", None))
    ]
    patients, happened, _ = frames(rs, es, None)
    cohort = build_cohort(built, patients, happened)
    assert cohort.eligible["patient_id"].tolist() == ["A"]
    assert (cohort.input_patients, cohort.input_records) == (2, 2)


def test_a_table_without_rows_is_counted(tmp_path):
    rules = [{"has_event": {"event": "rx", "within": [-5, 0]}}, {"field": "age", "operator": ">", "value": 1}]
    built = CohortDefinition.model_validate(
        {"brand": "X", "indication": "y", "inclusion_criteria": rules, "index": {"field": "seen"}}
    )
    cohort = build_cohort(built, *frames([], [], None)[:2])
    assert (cohort.input_patients, cohort.eligible_count, cohort.emptied_by) == (0, 0, "no patients")
    frames([], [], None)[0].to_parquet(tmp_path / "patients.parquet")
    plain = built.model_copy(update={"inclusion_criteria": built.inclusion_criteria[1:]})
    attrition = write_cohort(plain, tmp_path / "patients.parquet", folder=tmp_path)
    assert attrition["remaining"].tolist() == [0] * len(plain.rules)
    assert pd.read_parquet(tmp_path / "reasons.parquet").empty


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seen": ["2024-03-01", "soon", None]}, "CC_005.*'seen' must hold dates, but holds values of text"),
        ({"patient_id": ["A", None, "C"]}, "CC_004: 1 row.* have no patient_id"),
        ({"patient_journey_id": ["J", "J", "K"]}, "CC_004: 1 row.* repeat a patient_journey_id"),
        ({"age": ["old", "new", "old"]}, "CC_004.*'age' holds values of kind text"),
        ({"age": None}, "CC_002.*'age'"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, change, words):
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}],
            "index": {"field": "seen"},
        }
    )
    days = pd.Series([pd.Timestamp(2024, 3, 1)] * 3)
    columns = {
        "patient_id": list("ABC"),
        "patient_journey_id": list("JKL"),
        "age": [20, 30, 40],
        "seen": days,
    }
    columns |= {"first_observation_date": days, "last_observation_date": days} | change
    path = tmp_path / "patients.parquet"
    pd.DataFrame({name: values for name, values in columns.items() if values is not None}).to_parquet(path)
    with pytest.raises(CohortInputError, match=words):
        build_cohort(built, path)
    with pytest.raises(CohortInputError, match=words):
        write_cohort(built, path, folder=tmp_path / "cohort")
    assert not list(tmp_path.glob("cohort/**/*.parquet*"))


def test_an_index_date_that_is_null_in_a_file_removes_and_is_counted(tmp_path):
    built = CohortDefinition.model_validate(
        {
            "brand": "X",
            "indication": "y",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 1}],
            "index": {"field": "seen"},
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
        }
    )
    row = {"age": 3, "first_observation_date": START, "last_observation_date": START}
    rs = [
        {"patient_id": name, "patient_journey_id": name, "seen": seen, **row}
        for name, seen in (("A", START), ("B", None))
    ]
    path = tmp_path / "patients.parquet"
    frames(rs, [], None)[0].to_parquet(path)
    cohort = build_cohort(built, path)
    assert cohort.eligible["patient_id"].tolist() == ["A"]
    assert cohort.attrition.set_index("criterion").loc["index_date", ["removed", "unknown"]].tolist() == [
        1,
        1,
    ]
