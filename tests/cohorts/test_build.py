"""Building a cohort: against a plain evaluation patient by patient, at window edges, on bad input."""

import time
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts import CohortDefinition, CohortInputError, build_cohort, patient_frame, read_cohort

START = date(2024, 1, 1)


def definition(**changes) -> CohortDefinition:
    return CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}],
            "exclusion_criteria": [{"field": "pregnant", "operator": "==", "value": True}],
            "temporal_requirements": {"lookback_days": 10, "followup_days": 5, "index_date_field": "seen"},
        }
        | changes
    )


def patients(rows: list[dict]) -> pd.DataFrame:
    """Rows with everything in order unless a field says otherwise; keys are numbered."""
    default = {"age": 40, "pregnant": False, "seen": START, "first_observation_date": START - timedelta(99)}
    default["last_observation_date"] = START + timedelta(99)
    full = [
        {"patient_id": f"P{k}", "patient_journey_id": f"J{k}", **default, **row} for k, row in enumerate(rows)
    ]
    return pd.DataFrame(full).astype(object)


def words(cohort) -> list[str]:
    return cohort.reasons["words"].tolist()


# A plain evaluation, one patient after the other, with None for unknown.


def plain_condition(criterion, value):  # noqa: PLR0911
    if value is None:
        return None
    match criterion.operator:
        case "==":
            return value == criterion.value
        case "!=":
            return value != criterion.value
        case ">":
            return value > criterion.value
        case ">=":
            return value >= criterion.value
        case "<":
            return value < criterion.value
        case "<=":
            return value <= criterion.value
        case "in":
            return value in criterion.value
        case "not_in":
            return value not in criterion.value
        case "between":
            return criterion.value[0] <= value <= criterion.value[1]
        case _:
            return criterion.value in value


def plain_reasons(cohort_definition, rows, data_end):  # noqa: PLR0912
    times = cohort_definition.temporal_requirements
    require = times.followup == "require"
    result = {}
    for row in rows:
        failed = []
        index, first, last = row["seen"], row["first_observation_date"], row["last_observation_date"]
        if index is None:
            failed.append("index_date")
        for rule in cohort_definition.rules:
            if rule.criterion is None:
                continue
            truth = plain_condition(rule.criterion, row[rule.criterion.field])
            wrong = truth != (rule.side == "inclusion") if truth is not None else rule.on_unknown == "exclude"
            if wrong:
                failed.append(rule.name)
        if index is None or first is None or (index - first).days < times.lookback_days:
            failed.append("lookback")
        needed = times.followup_days if require else 0
        is_open = require and data_end is not None and index is not None
        is_open = is_open and index + timedelta(needed) > data_end
        if index is None or last is None:
            failed.append("followup")
        elif is_open:
            if last < index or index > data_end:
                failed.append("followup")
        elif (last - index).days < needed or (not require and data_end is not None and index > data_end):
            failed.append("followup")
        if is_open:
            failed.append("followup_pending")
        result[row["patient_journey_id"]] = failed
    taken = set()
    for row in sorted(rows, key=lambda r: (r["seen"] or date.max, r["patient_journey_id"])):
        failed = result[row["patient_journey_id"]]
        if set(failed) <= {"followup_pending"}:
            if row["patient_id"] in taken:
                failed.append("one_index_journey")
            taken.add(row["patient_id"])
    order = [rule.name for rule in cohort_definition.rules]
    return {key: sorted(failed, key=order.index) for key, failed in result.items()}


numbers = st.integers(0, 5)
ages = st.one_of(
    st.builds(
        lambda o, v: {"operator": o, "value": v}, st.sampled_from(["==", "!=", ">", ">=", "<", "<="]), numbers
    ),
    st.builds(
        lambda o, v: {"operator": o, "value": v},
        st.sampled_from(["in", "not_in"]),
        st.lists(numbers, min_size=1, max_size=3),
    ),
    st.builds(lambda a, b: {"operator": "between", "value": sorted([a, b])}, numbers, numbers),
)
flags = st.builds(lambda o, v: {"operator": o, "value": v}, st.sampled_from(["==", "!="]), st.booleans())
texts = st.one_of(
    st.builds(
        lambda o, v: {"operator": o, "value": v},
        st.sampled_from(["==", "!=", "contains"]),
        st.sampled_from(["a", "b", "ab"]),
    ),
    st.just({"operator": "not_in", "value": ["a", "ab"]}),
)
unknown = st.sampled_from(
    [{}, {"on_unknown": "exclude"}, {"on_unknown": "include"}, {"on_unknown": "report"}]
)


@st.composite
def criteria(draw, side):
    fields = draw(st.lists(st.sampled_from(["age", "pregnant", "stage"]), unique=True, min_size=side == "in"))
    kinds = {"age": ages, "pregnant": flags, "stage": texts}
    return [{"field": f, "name": f"{side}_{f}"} | draw(kinds[f]) | draw(unknown) for f in fields]


@st.composite
def definitions(draw):
    inclusion, exclusion = draw(criteria("in")), draw(criteria("ex"))
    said = {(c["field"], c["operator"], str(c["value"])) for c in inclusion}
    exclusion = [c for c in exclusion if (c["field"], c["operator"], str(c["value"])) not in said]
    times = {
        "lookback_days": draw(st.integers(0, 4)),
        "followup_days": draw(st.integers(0, 4)),
        "index_date_field": "seen",
        "followup": draw(st.sampled_from(["require", "censor"])),
    }
    return definition(inclusion_criteria=inclusion, exclusion_criteria=exclusion, temporal_requirements=times)


def maybe(values):
    return st.one_of(st.none(), values)


days = st.integers(-6, 6).map(lambda n: START + timedelta(n))
rows_of = st.lists(
    st.fixed_dictionaries(
        {
            "patient_id": st.sampled_from(["A", "B", "C", "D"]),
            "age": maybe(numbers),
            "pregnant": maybe(st.booleans()),
            "stage": maybe(st.sampled_from(["a", "b", "ab", ""])),
            "seen": maybe(days),
            "first_observation_date": maybe(days),
            "last_observation_date": maybe(days),
        }
    ),
    max_size=12,
)


def typed(rows):
    columns = ["patient_id", "patient_journey_id", "age", "pregnant", "stage", "seen"]
    frame = pd.DataFrame(rows, columns=[*columns, "first_observation_date", "last_observation_date"]).astype(
        object
    )
    frame = frame.astype({"age": "Int64", "pregnant": "boolean", "stage": "string[pyarrow]"})
    for name in ("seen", "first_observation_date", "last_observation_date"):
        frame[name] = pd.to_datetime(frame[name]).astype("datetime64[us]")
    return frame


@settings(max_examples=120, deadline=None)
@given(definitions(), rows_of, st.one_of(st.none(), days), st.randoms())
def test_masks_agree_with_a_plain_evaluation(built, rows, data_end, random):
    rows = [row | {"patient_journey_id": f"J{k:02}"} for k, row in enumerate(rows)]
    frame = typed(rows)
    before = frame.copy(deep=True)
    cohort = build_cohort(built, frame, data_end=data_end)
    expected = plain_reasons(built, rows, data_end)
    found = dict(zip(cohort.reasons["patient_journey_id"], cohort.reasons["words"], strict=True))
    assert found == {key: "; ".join(failed) for key, failed in expected.items()}
    pd.testing.assert_frame_equal(frame, before)

    # Attrition adds up, and ends with the eligible.
    attrition = cohort.attrition
    remaining = cohort.input_patients - attrition["removed"].cumsum()
    assert (remaining == attrition["remaining"]).all()
    assert attrition["remaining"].iloc[-1] == cohort.eligible_count == cohort.eligible["patient_id"].nunique()
    assert attrition["remaining_records"].iloc[-1] == cohort.eligible_count
    assert not set(cohort.eligible["patient_id"]) & set(cohort.pending["patient_id"])
    assert cohort.pending["patient_id"].is_unique

    # The order of the rows does not matter, nor does their dtype.
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = build_cohort(built, frame.iloc[order].astype(object), data_end=data_end)
    for name in ("eligible", "pending", "reasons", "attrition"):
        pd.testing.assert_frame_equal(getattr(shuffled, name), getattr(cohort, name))


@settings(max_examples=40, deadline=None)
@given(definitions(), rows_of, st.integers(0, 9))
def test_marginal_gain_is_what_dropping_the_rule_returns(built, rows, place):
    rows = [row | {"patient_journey_id": f"J{k:02}"} for k, row in enumerate(rows)]
    sides = {
        "inclusion_criteria": list(built.inclusion_criteria),
        "exclusion_criteria": list(built.exclusion_criteria),
    }
    side = "exclusion_criteria" if place % 2 and sides["exclusion_criteria"] else "inclusion_criteria"
    if side == "inclusion_criteria" and len(sides[side]) < 2:
        return
    dropped = sides[side].pop(place % len(sides[side]))
    without = built.model_copy(update={name: tuple(rules) for name, rules in sides.items()})
    frame = typed(rows)
    cohort, wider = build_cohort(built, frame), build_cohort(without, frame)
    gain = cohort.attrition.set_index("criterion").loc[dropped.name, "marginal_gain"]
    assert wider.eligible_count - cohort.eligible_count == gain


def test_windows_are_closed_at_their_edges():
    frame = patients(
        [
            {"first_observation_date": START - timedelta(10)},
            {"first_observation_date": START - timedelta(9)},
            {"last_observation_date": START + timedelta(5)},
            {"last_observation_date": START + timedelta(4)},
            {"first_observation_date": None},
            {"last_observation_date": None},
            {"seen": None},
        ]
    )
    found = words(build_cohort(definition(), frame))
    assert found == ["", "lookback", "", "followup", "lookback", "followup", "index_date; lookback; followup"]


def test_follow_up_that_the_data_cut_off_is_pending_and_that_is_not_the_same_as_lost():
    frame = patients([{}, {"seen": START + timedelta(1)}, {"last_observation_date": START + timedelta(2)}])
    cohort = build_cohort(definition(), frame, data_end=START + timedelta(5))
    assert words(cohort) == ["", "followup_pending", "followup"]
    assert cohort.pending["patient_id"].tolist() == ["P1"]
    assert cohort.eligible["followup_end"].tolist() == [pd.Timestamp(START + timedelta(5))]
    assert cohort.removed_by_followup == 1


def test_censoring_keeps_short_follow_up_and_says_how_long_it_was():
    times = {"lookback_days": 0, "followup_days": 5, "index_date_field": "seen", "followup": "censor"}
    frame = patients(
        [{"last_observation_date": START + timedelta(2)}, {"last_observation_date": START - timedelta(1)}]
    )
    cohort = build_cohort(definition(temporal_requirements=times), frame, data_end="2024-12-31")
    assert words(cohort) == ["", "followup"]
    assert cohort.eligible["followup_end"].tolist() == [pd.Timestamp(START + timedelta(2))]


def test_the_earliest_eligible_journey_is_the_index_journey():
    frame = patients(
        [
            {"patient_id": "A", "seen": START - timedelta(20), "age": 17},
            {"patient_id": "A", "seen": START + timedelta(3)},
            {"patient_id": "A", "seen": START},
            {"patient_id": "B", "seen": START},
            {"patient_id": "B", "seen": START},
        ]
    )
    cohort = build_cohort(definition(), frame)
    assert cohort.eligible["patient_journey_id"].tolist() == ["J2", "J3"]
    assert (cohort.input_patients, cohort.input_records) == (2, 5)
    assert words(cohort) == ["age", "one_index_journey", "", "", "one_index_journey"]
    assert cohort.attrition.set_index("criterion").loc["age", "removed"] == 0  # nobody lost all journeys
    assert cohort.attrition.set_index("criterion").loc["age", "removed_records"] == 1


@pytest.mark.parametrize(("policy", "kept"), [("exclude", 0), ("include", 1), ("report", 1), (None, 1)])
def test_an_unknown_safety_value_follows_its_policy_and_is_counted(policy, kept):
    rule = {"field": "pregnant", "operator": "==", "value": True, "on_unknown": policy}
    cohort = build_cohort(definition(exclusion_criteria=[rule]), patients([{"pregnant": None}]))
    assert cohort.eligible_count == kept
    assert cohort.attrition.set_index("criterion").loc["pregnant", "unknown"] == 1
    assert cohort.kept_with_unknown == (policy in ("report", None))


def test_a_missing_column_is_an_error_with_the_nearest_name():
    frame = patients([{}]).rename(columns={"pregnant": "is_pregnant"})
    with pytest.raises(CohortInputError, match=r"CC_002.*'pregnant' \(nearest: 'is_pregnant'\)"):
        build_cohort(definition(), frame)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"patient_journey_id": "J"}, {"patient_journey_id": "J"}], "CC_004: 1 row"),
        ([{"patient_id": None}], "CC_004: 1 row.* have no patient_id"),
        ([{"seen": "2024-01-01"}, {"seen": "soon"}], "CC_005: column 'seen' must hold dates, but 1 of 2"),
        ([{"seen": 20240101}], "CC_005"),
        ([{"age": "forty"}], "CC_004"),
    ],
)
def test_bad_rows_are_one_clear_error(rows, code):
    with pytest.raises(CohortInputError, match=code):
        build_cohort(definition(), patients(rows))


def test_dates_as_texts_are_read():
    assert words(build_cohort(definition(), patients([{"seen": "2024-01-01"}, {"seen": None}])))[0] == ""


def test_no_patients_and_nobody_eligible_are_results_with_a_reason():
    empty = build_cohort(definition(), patients([{}]).iloc[:0])
    assert (empty.eligible_count, empty.exclusion_rate, empty.emptied_by) == (0, None, "no patients")
    nobody = build_cohort(definition(), patients([{"age": 3}, {"pregnant": True}]))
    assert (nobody.exclusion_rate, nobody.emptied_by) == (1.0, "pregnant")
    assert "CC_003" in nobody.to_metadata()["empty"]
    assert nobody.to_record()["error_code"] == "CC_003"
    empty.to_metadata()


def test_a_journey_without_clinical_row_is_kept_and_unknown():
    journeys = pd.DataFrame(
        {"patient_journey_id": ["J1", "J2"], "patient_id": ["A", "B"], "source": ["x", "y"]}
    )
    clinical = pd.DataFrame({"patient_journey_id": ["J2"], "age": [50], "source": ["z"]})
    frame = patient_frame(journeys, clinical)
    assert frame["age"].isna().tolist() == [True, False]
    assert frame["source"].tolist() == ["x", "y"]
    assert "clinical_source" in frame
    with pytest.raises(CohortInputError, match="patient_clinical repeats 1"):
        patient_frame(journeys, pd.concat([clinical, clinical]))


def test_the_work_does_not_grow_with_each_patient_apart():
    """One pass over whole columns: processor time per patient is that of array code, not of a loop over rows."""
    n = 100_000
    rng = np.random.default_rng(5)
    index = np.datetime64("2023-01-01") + rng.integers(0, 500, n)
    shipped = read_cohort("remibrutinib_csu")
    frame = pd.DataFrame(
        {name: pd.array(rng.random(n) < 0.1, dtype="boolean") for name in shipped.required_fields}
    )
    frame["patient_id"] = frame["patient_journey_id"] = pd.array(
        np.arange(n).astype(str), dtype="string[pyarrow]"
    )
    frame["age_at_diagnosis"] = pd.array(rng.integers(10, 90, n), dtype="Int64")
    frame["urticaria_severity_uas7"] = rng.uniform(0, 42, n)
    frame["diagnosis_code"] = pd.array(rng.choice(["L50.1", "L50.8", "L50.3"], n), dtype="string[pyarrow]")
    frame["diagnosis_date"] = index.astype("datetime64[us]")
    frame["first_observation_date"] = (index - 200).astype("datetime64[us]")
    frame["last_observation_date"] = (index + 200).astype("datetime64[us]")
    spent = []
    for _ in range(3):
        before = time.process_time()
        build_cohort(shipped, frame)
        spent.append(time.process_time() - before)
    assert min(spent) / n < 20e-6  # seconds; a Python loop over rows and rules needs several times as much
