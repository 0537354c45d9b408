"""Codes of events: each system in its own column, every position of a list, spellings, and what cannot be decided."""

import json
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts import CohortInputError, build_cohort, count_cohort
from e2i_dagster.cohorts.inputs import event_frame
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.tables.codes import BAR, fits, normal_list, readings

DRUG = "00078-0946-61"
TEXT = "string[pyarrow]"
EVENT = {"drug_ndc": None, "icd_codes": None, "cpt_codes": None, "loinc_codes": None}


def cohort_of(condition, side="inclusion", **more):
    everybody = {"field": "age", "operator": ">=", "value": 0}
    rules = {"inclusion_criteria": [condition]} if side == "inclusion" else {
        "inclusion_criteria": [everybody], "exclusion_criteria": [condition]
    }  # fmt: skip
    body = {
        "brand": "b",
        "indication": "i",
        "index": {"field": "diagnosis_date"},
        "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
        **rules,
        **more,
    }
    return CohortDefinition.model_validate(body)


def people(*keys):
    return pd.DataFrame(
        {
            "patient_id": list(keys),
            "patient_journey_id": [f"J{key}" for key in keys],
            "age": 40,
            "diagnosis_date": pd.Timestamp("2023-06-01"),
            "first_observation_date": pd.Timestamp("2022-01-01"),
            "last_observation_date": pd.Timestamp("2024-06-01"),
        }
    )


def events(rows):
    """Events as the raw table has them: (patient, day, values)."""
    table = pd.DataFrame(
        [
            {
                "patient_id": who,
                "patient_journey_id": f"J{who}",
                "event_type": "visit",
                "event_date": pd.Timestamp(day),
                **EVENT,
                **{n: json.dumps(v) if isinstance(v, list) else v for n, v in values.items()},
            }
            for who, day, values in rows
        ]
    )
    table = table.astype(dict.fromkeys([*EVENT, "patient_id", "patient_journey_id", "event_type"], TEXT))
    keys = table[["patient_journey_id", "patient_id"]].drop_duplicates()
    return event_frame({"treatment_events": table}, keys)


def verdicts(definition, rows, who=None):
    """By patient: in, out or unknown, as the first rule says it."""
    who = who or sorted({row[0] for row in rows})
    built = build_cohort(definition, people(*who), events(rows), data_end=date(2024, 12, 31))
    bit = next(r.bit for r in definition.rules if r.criterion is not None and r.name != "age")
    return {
        key: "unknown" if unknown & bit else "no" if mask & bit else "yes"
        for key, mask, unknown in zip(
            *(built.reasons[n] for n in ("patient_id", "mask", "unknown_mask")), strict=True
        )
    }


DAY = "2023-06-01"
#: A fill with diagnoses, procedures and laboratory tests beside its drug.
FILL = {
    "drug_ndc": DRUG,
    "icd_codes": ["J30.1", "L50.8"],
    "cpt_codes": ["95004", "J2357", "0075T"],
    "loinc_codes": ["718-7", "2532-0"],
}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ({"codes": ["0078-0946-61"], "code_system": "ndc"}, True),
        ({"codes": ["00078-0947-61"], "code_system": "ndc"}, False),
        ({"codes": ["J30.1"]}, True),
        ({"codes": ["L50.8"]}, True),
        ({"codes": ["l508"]}, True),
        ({"codes": ["L50.*"]}, True),
        ({"codes": ["L50"], "descendants": True}, True),
        ({"codes": ["L50"]}, False),
        ({"codes": ["J30.1"], "position": "first"}, True),
        ({"codes": ["J30.*"], "position": "first"}, True),
        ({"codes": ["L50.8"], "position": "first"}, False),
        ({"codes": ["L50.*"], "position": "first"}, False),
        ({"codes": ["95004"], "code_system": "cpt"}, True),
        ({"codes": ["0075t"], "code_system": "CPT"}, True),
        ({"codes": ["9500*"], "code_system": "cpt"}, True),
        ({"codes": ["95004"], "code_system": "hcpcs"}, True),
        ({"codes": ["J2357"], "code_system": "hcpcs"}, True),
        ({"codes": ["95005"], "code_system": "cpt"}, False),
        ({"codes": ["2532-0"], "code_system": "loinc"}, True),
        ({"codes": ["2951-2"], "code_system": "loinc"}, False),
        ({"where": [{"field": "icd_codes", "operator": "==", "value": "L50.8"}]}, True),
        ({"where": [{"field": "icd_codes", "operator": "!=", "value": "L50.8"}]}, False),
        ({"where": [{"field": "icd_codes", "operator": "not_in", "value": ["M10.0", "L50.1"]}]}, True),
        ({"where": [{"field": "icd_codes", "operator": "contains", "value": "50"}]}, True),
        (
            {"where": [{"field": "icd_codes", "operator": "contains", "value": "50", "position": "first"}]},
            False,
        ),
        ({"where": [{"field": "drug_ndc", "operator": "==", "value": "00078094661"}]}, True),
        # A diagnosis beside the drug of one fill.
        (
            {
                "codes": ["00078094661"],
                "code_system": "ndc",
                "where": [{"field": "icd_codes", "operator": "in", "value": ["L50.*"]}],
            },
            True,
        ),
    ],
)
def test_every_code_of_an_event_is_reachable(pattern, found):
    definition = cohort_of({"has_event": {**pattern, "within": [0, 0]}})
    assert verdicts(definition, [("A", DAY, FILL)]) == {"A": "yes" if found else "no"}


def test_a_code_of_another_event_is_not_beside_the_drug():
    """The drug on one day and the diagnosis on another are no fill with the diagnosis."""
    definition = cohort_of(
        {
            "has_event": {
                "codes": [DRUG],
                "code_system": "ndc",
                "where": [{"field": "icd_codes", "operator": "==", "value": "L50.8"}],
            }
        }
    )
    rows = [("A", DAY, {"drug_ndc": DRUG, "icd_codes": ["J30.1"]}), ("A", DAY, {"icd_codes": ["L50.8"]})]
    assert verdicts(definition, rows) == {"A": "no"}


def test_events_with_one_code_each_have_it_in_code():
    frame = pd.DataFrame(
        {"patient_id": ["A", "B"], "event_date": pd.Timestamp(DAY), "code": ["0078-0946-61", "L50.8"]}
    )
    for pattern, who in (
        ({"codes": [DRUG], "code_system": "ndc"}, ["A"]),
        ({"codes": ["L50.*"]}, ["B"]),
    ):
        built = build_cohort(cohort_of({"has_event": pattern}), people("A", "B"), frame)
        assert list(built.eligible["patient_id"]) == who
    with pytest.raises(CohortInputError, match="'icd_codes'"):
        build_cohort(cohort_of({"has_event": {"codes": ["L50.*"]}}), people("A"), frame.drop(columns="code"))


#: Ten digits without hyphens that are DRUG, read as 4-4-2, and ten that are it in no reading.
OPEN, OTHER = "0078094661", "1234567890"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"has_event": {}}, {"sure": "yes", "open": "unknown", "other": "no", "both": "yes"}),
        ({"no_event": {}}, {"sure": "no", "open": "unknown", "other": "yes", "both": "no"}),
        ({"has_event": {"at_least": 2}}, {"sure": "no", "open": "no", "other": "no", "both": "unknown"}),
        ({"has_event": {"at_most": 1}}, {"sure": "yes", "open": "yes", "other": "yes", "both": "unknown"}),
        (
            {"has_event": {"at_least": 2, "at_most": 3}},
            {"sure": "no", "open": "no", "other": "no", "both": "unknown"},
        ),
        (
            {"has_event": {"at_least": 2, "distinct": "event_date"}},
            {"sure": "no", "open": "no", "other": "no", "both": "unknown"},
        ),
        (
            {"has_event": {"at_least": 2, "distinct": "event_type"}},
            {"sure": "no", "open": "no", "other": "no", "both": "no"},
        ),
        # 'both': the sure event on day 0, the open one on day -10.
        (
            {"has_event": {"occurrence": "first", "within": [-5, 5]}},
            {"sure": "yes", "open": "no", "other": "no", "both": "unknown"},
        ),
        (
            {"has_event": {"occurrence": "first", "within": [-15, 5]}},
            {"sure": "yes", "open": "unknown", "other": "no", "both": "yes"},
        ),
        (
            {"has_event": {"occurrence": "last", "within": [-15, -5]}},
            {"sure": "no", "open": "unknown", "other": "no", "both": "no"},
        ),
        (
            {"gap": {"days": 12, "within": [-20, 0]}},
            {"sure": "yes", "open": "unknown", "other": "yes", "both": "unknown"},
        ),
        ({"washout": {"days": 30}}, {"sure": "yes", "open": "unknown", "other": "yes", "both": "unknown"}),
        ({"prior_outcome": {}}, {"sure": "no", "open": "unknown", "other": "no", "both": "unknown"}),
        (
            {"any_of": [{"prior_outcome": {}}, {"has_event": {"within": [0, 0]}}]},
            {"sure": "yes", "open": "unknown", "other": "no", "both": "yes"},
        ),
    ],
)
def test_a_drug_code_that_can_be_several_is_unknown_where_it_decides(condition, expected):
    def of_drug(written):
        if "any_of" in written:
            return {"any_of": [of_drug(one) for one in written["any_of"]]}
        ((key, inside),) = written.items()
        return {key: {"codes": [DRUG], "code_system": "ndc", **inside}}

    before = "2023-05-22"
    rows = [
        ("sure", DAY, {"drug_ndc": DRUG}),
        ("open", before, {"drug_ndc": OPEN}),
        ("other", before, {"drug_ndc": OTHER}),
        ("both", DAY, {"drug_ndc": DRUG}),
        ("both", before, {"drug_ndc": OPEN}),
    ]
    assert verdicts(cohort_of(of_drug(condition)), rows) == expected


def test_unknown_by_a_drug_code_is_counted_and_follows_the_rule_of_unknowns():
    rows = [("sure", DAY, {"drug_ndc": DRUG}), ("open", DAY, {"drug_ndc": OPEN})]
    rule = {"codes": [DRUG], "code_system": "ndc", "name": "drug"}
    for condition, side, kept in (
        ({"has_event": rule}, "inclusion", ["sure"]),
        ({"has_event": rule, "on_unknown": "report"}, "inclusion", ["open", "sure"]),
        ({"has_event": rule}, "exclusion", ["open"]),
        ({"has_event": rule, "on_unknown": "exclude"}, "exclusion", []),
    ):
        definition = cohort_of(condition, side)
        built = build_cohort(definition, people("open", "sure"), events(rows))
        assert sorted(built.eligible["patient_id"]) == kept
        assert built.attrition.set_index("criterion").loc["drug", "unknown"] == 1
    counted = count_cohort(definition, people("open", "sure"), events(rows))
    pd.testing.assert_frame_equal(counted, built.attrition)


@pytest.mark.parametrize(
    ("system", "column", "code", "cells"),
    [
        ("icd10cm", "icd_codes", "L50.1", ["J30.1 L50.1", ["J30.1/L50.1"]]),
        ("cpt", "cpt_codes", "99213", ["99213-25", ["99213-25"], "99213.0"]),
        ("loinc", "loinc_codes", "718-7", ["0718-7", ["LOINC:718-7"]]),
    ],
)
def test_an_event_whose_codes_cannot_be_read_proves_neither_presence_nor_absence(system, column, code, cells):
    keys = [f"open{place}" for place in range(len(cells))]
    rows = [(key, DAY, {column: cell}) for key, cell in zip(keys, cells, strict=True)]
    rows += [("sure", DAY, {column: [code, "99213-25"]}), ("other", DAY, {column: ["R05", "2951-2"]})]
    open_ = dict.fromkeys(keys, "unknown")
    for kind, sure, other in (("has_event", "yes", "no"), ("no_event", "no", "yes")):
        definition = cohort_of({kind: {"codes": [code], "code_system": system}})
        assert verdicts(definition, rows) == {**open_, "sure": sure, "other": other}


@pytest.mark.parametrize(
    ("column", "system", "code", "unclear"),
    [("drug_ndc", "ndc", DRUG, OPEN), ("icd_codes", "icd10cm", "L50.1", ["J30.1 L50.1"])],
)
@pytest.mark.parametrize(
    ("occurrence", "days"),
    [
        ("first", {"sure": "2023-06-01", "open": None, "early": None, "late": "2023-06-01"}),
        ("last", {"sure": "2023-06-01", "open": None, "early": "2023-06-01", "late": None}),
    ],
)
def test_an_index_date_that_a_code_leaves_open_is_unknown(occurrence, days, column, system, code, unclear):
    rows = [
        ("sure", DAY, {column: code}),
        ("open", DAY, {column: unclear}),
        ("early", DAY, {column: code}),
        ("early", "2023-05-01", {column: unclear}),
        ("late", DAY, {column: code}),
        ("late", "2023-07-01", {column: unclear}),
    ]
    index = {"codes": [code], "code_system": system, "occurrence": occurrence}
    definition = cohort_of({"field": "age", "operator": ">=", "value": 0}, index=index)
    built = build_cohort(definition, people(*days), events(rows))
    found = built.reasons.set_index("patient_id")["index_date"]
    assert {k: None if pd.isna(d) else str(d.date()) for k, d in found.items()} == days
    unknown = built.attrition.set_index("criterion").loc["index_date", "unknown"]
    assert unknown == sum(day is None for day in days.values())


digits = st.integers(0, 10**11 - 1).map("{:011d}".format)
letters = st.sampled_from("ABCDEZ")


SYSTEMS = st.sampled_from(["ndc", "icd10cm", "icd9cm", "cpt", "hcpcs", "loinc"])


@st.composite
def spelled(draw, system):
    """Spellings of one code of a system that are of no other code."""
    if system == "ndc":
        # Few digits, so that codes of different parts have spellings in common.
        code = draw(st.sampled_from(["00078094601", "01234567890", "12340567809", "00000000000"]) | digits)
        parts = code[:5], code[5:9], code[9:]
        ways = [parts]
        ways += [(p[1:], q, r) for p, q, r in [parts] if p[0] == "0"]
        ways += [(p, q[1:], r) for p, q, r in [parts] if q[0] == "0"]
        ways += [(p, q, r[1:]) for p, q, r in [parts] if r[0] == "0"]
        written = [code, *("-".join(way) for way in ways), *(" ".join(way) for way in ways)]
    elif system == "icd10cm":
        code = draw(letters) + draw(st.sampled_from(["50", "5A", "00"]))
        tail = draw(st.sampled_from(["", "1", "10", "X1A", "0XXA"]))
        written = [code + tail, f"{code}.{tail}".removesuffix(".")]
    elif system == "icd9cm":
        code = draw(st.sampled_from(["708", "V58", "E905", "001"]))
        tail = draw(st.sampled_from(["", "1", "9"]))
        written = [code + tail, f"{code}.{tail}".removesuffix(".")]
    elif system == "loinc":
        written = [draw(st.sampled_from(["718-7", "2532-0", "14804-9", "100746-7"]))]
    else:
        more = [] if system == "cpt" else ["J2357", "G0008"]
        written = [draw(st.sampled_from(["95004", "00100", "0001F", "0075T", "0001U", *more]))]
    return [*written, *(one.lower() for one in written), *(f" {one} " for one in written), f"\t{written[0]}"]


COLUMN = {"ndc": "drug_ndc", "icd10cm": "icd_codes", "icd9cm": "icd_codes", "loinc": "loinc_codes"}
NOISE = {"icd_codes": "R05", "cpt_codes": "99499", "loinc_codes": "2951-2"}


def cell(column, code, form):
    if column == "drug_ndc" or form == "alone":
        return code
    noise = NOISE[column]
    return {
        "json": json.dumps([noise, code.replace("\t", " ")]),
        "braces": f"{{{code},{noise}}}",
        "text": f"{noise}; {code}",
    }[form]


@st.composite
def coded_events(draw):
    """A code that is asked for, and events with spellings of it and of other codes."""
    system = draw(SYSTEMS)
    column = COLUMN.get(system, "cpt_codes")
    asked = draw(spelled(system))
    others = draw(st.lists(spelled(system), min_size=1, max_size=4))
    codes = [draw(st.sampled_from(one)) for one in [asked, asked, *others]]
    forms = st.sampled_from(["alone", "json", "braces", "text"])
    cells = [cell(column, code, draw(forms)) for code in codes]
    return system, column, draw(st.sampled_from(asked)).strip(), codes, cells


def found_by_engine(system, column, asked, cells):
    """Which events are found: in a plan on events, and with the cells as a column of the patients, on arrays."""
    keys = [f"P{k}" for k in range(len(cells))]
    frame = pd.DataFrame({"patient_id": keys, "event_date": pd.Timestamp(DAY), column: cells})
    rule = {"codes": [asked], "code_system": system}
    yield build_cohort(cohort_of({"has_event": rule}), people(*keys), frame)
    on_column = {"field": "x", "operator": "in", "value": [asked], "code_system": system}
    yield build_cohort(cohort_of(on_column), people(*keys).assign(x=cells), engine="pandas")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(coded_events())
def test_spellings_of_one_code_match_on_every_engine_and_other_codes_never(drawn):
    system, column, asked, codes, cells = drawn
    (meant,) = readings(asked, system)
    wanted = [f"P{k}" for k, code in enumerate(codes) if readings(code, system) == (meant,)]
    assert len(wanted) >= 2
    for built in found_by_engine(system, column, asked, cells):
        assert sorted(built.eligible["patient_id"]) == wanted


@settings(max_examples=200, deadline=None)
@given(SYSTEMS.flatmap(lambda system: st.tuples(st.just(system), spelled(system))))
def test_all_spellings_are_of_the_system_and_of_one_code(drawn):
    system, written = drawn
    assert all(fits(one, system) for one in written)
    assert len({readings(one, system) for one in written}) == 1
    if system != "ndc":
        assert {normal_list(one) for one in written} == {f"{BAR}{readings(written[0], system)[0]}{BAR}"}


@pytest.mark.parametrize("position", ["any", "first"])
@pytest.mark.parametrize("operator", ["in", "not_in"])
def test_a_long_list_of_codes_answers_as_its_codes_one_by_one(operator, position):
    """Many codes are looked for in one expression, few in one each."""
    import duckdb
    import narwhals as nw

    from e2i_dagster.cohorts.narwhals_plan import condition_truth
    from e2i_dagster.config.criteria import Criterion

    codes = ("L50.1", "J30", "E11.*", "C50", "I10", "K70.3")
    cells = [
        '["L50.1", "I10"]',
        "l501",
        "{L50.10}",
        "E11.9; J45",
        '["J45","C50"]',
        "J30.1",
        None,
        "",
        "XI10",
        "K703|A",
    ]
    frame = nw.from_native(duckdb.from_df(pd.DataFrame({"n": range(len(cells)), "icd_codes": cells})))

    def answers(*value):
        criterion = Criterion(
            field="icd_codes", operator=operator, value=value, code_system="icd10cm", position=position
        )
        truth = condition_truth(criterion, {"icd_codes": "text"})
        found = frame.with_columns(found=truth.true).sort("n").to_native().df()["found"]
        return found.to_numpy(dtype=bool)

    one_by_one = [answers(code) for code in codes]
    together = np.logical_or if operator == "in" else np.logical_and
    assert answers(*codes).tolist() == together.reduce(one_by_one).tolist()


def test_a_text_column_without_any_value_is_no_number():
    """Nobody has filled a brand yet: a column keeps the type of its table, and a null is no brand."""
    rows = [("A", "2023-05-01", {"brand": None})]
    condition = {"event": "visit", "where": [{"field": "brand", "operator": "==", "value": "Kisqali"}]}
    frame = events(rows)
    assert frame["brand"].isna().all() and str(frame["brand"].dtype) != "float64"
    wanted = cohort_of({"name": "n", "no_event": {**condition, "within": [-60, -1]}})
    built = build_cohort(wanted, people("A"), frame, data_end=date(2024, 12, 31))
    assert list(built.eligible["patient_id"]) == ["A"]
