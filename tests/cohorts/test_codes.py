"""All spellings of one code give the same cohort, on arrays and in a plan."""

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2i_dagster.cohorts import build_cohort
from e2i_dagster.cohorts.columns import typed_column
from e2i_dagster.cohorts.narwhals_plan import Source, condition_truth, with_drug_codes
from e2i_dagster.cohorts.operators import decidable, holds
from e2i_dagster.config.cohort import CohortDefinition, Criterion
from e2i_dagster.config.criteria import EventPattern
from e2i_dagster.tables.codes import SYSTEMS, cell_shape, fits, luhn_sum
from e2i_dagster.tables.own_columns import read_as

NDC = [
    "00078-0946-61", "00078094661", "0078-0946-61", " 00078-0946-61 ",
    "00078\u20130946\u201361", "0078\u20100946\u201161", "00078\u22120946\u221261",
]  # fmt: skip
#: Which of them it is that is meant, or whether it is one at all, cannot be told: zeros lost in a column of numbers or
#: by a spreadsheet, two codes in a cell, words beside one.
OPEN_NDC = [
    "0078094661", "78094661", "78094661.0", "78-946-61", "00078-0946-61, 00078-0946-62", "00078094661;00078094662",
    "00078-0946-61 00078-0946-62", "00078-0946-61/00078-0946-62", "NDC 00078-0946-61", "0007-80946-61",
]  # fmt: skip
SPELLINGS = [
    ("ndc", NDC, OPEN_NDC),
    ("ndc", ["12345-0678-90", "12345-678-90", "12345067890"], ["1234567890"]),
    ("ndc", ["12345-6789-01", "12345-6789-1", "12345678901"], []),
    (
        "icd10cm",
        ["L50.1", "l501", " L50.1 ", "L50.1\u00a0", "\u200bL50.1"],
        [
            "J30.1 L50.1",
            "J30.1/L50.1",
            "J30.1^L50.1",
            "J30.1~L50.1",
            "J30.1\tL50.1",
            "L50 .1",
            "ICD10:L50.1",
            "L50.1*",
            "\uff2c\uff15\uff10.\uff11",
            "R05; J30.1 L50.1",
        ],
    ),
    ("icd9cm", ["708.1", "7081"], ["708.1 995.3", "ICD9 708.1"]),
    ("cpt", ["0001F", "0001f "], ["0001F-59", "CPT:0001F", "95004.0"]),
    ("hcpcs", ["J2357", "j2357"], ["J2357-JW", "95004.0"]),
    ("loinc", ["718-7", "718\u20137", " 718\u20117"], ["0718-7", "718-7 2532-0", "LOINC:718-7"]),
]


@pytest.mark.parametrize(
    ("system", "code"),
    [("ndc", "00078\u20130946\u201161"), ("loinc", "718\u20137"), ("loinc", "718\u00ad-7".replace("-", ""))],
)
def test_a_dash_is_a_hyphen_for_shapes_own_columns_and_cells_alike(system, code):
    assert fits(code, system) and re.fullmatch(cell_shape([system]), code)
    kept, lost = read_as(pd.Series([code], dtype="string[pyarrow]"), system)
    assert lost == 0 and kept[0] == code


@pytest.mark.parametrize("engine", [None, "duckdb"])
@pytest.mark.parametrize(
    "cell",
    ["['J30.1', 'L50.1']", "(L50.1)", "\u201cL50.1\u201d; J30.1", "J30.1\uff0c L50.1", "J30.1 X; L50.1"],
)
def test_every_kind_of_quote_and_bracket_is_no_part_of_a_code(cell, engine):
    rule = {"field": "x", "operator": "in", "value": ["L50.1"], "code_system": "icd10cm"}
    criterion = Criterion.model_validate(rule)
    if engine is None:
        assert holds(criterion, typed_column(pd.Series([cell]), "x")).tolist() == [True]
        return
    import duckdb
    import narwhals as nw

    frame = nw.from_native(duckdb.sql("SELECT $1 AS x", params=[cell]))
    answer = frame.select(condition_truth(criterion, {"x": "text"}).true.alias("is"))
    assert answer.to_native().fetchall() == [(True,)]


@pytest.mark.parametrize("engine", [None, "duckdb"])
@pytest.mark.parametrize(("system", "same", "undecided"), SPELLINGS)
def test_all_spellings_of_a_code_give_the_same_cohort(system, same, undecided, engine):
    codes = [*same, *undecided, "99999-9999-99"]
    patients = pd.DataFrame(
        {
            "patient_id": [f"P{i}" for i in range(len(codes))],
            "patient_journey_id": [f"J{i}" for i in range(len(codes))],
            "x": codes,
            "diagnosis_date": pd.Timestamp("2023-06-01"),
            "first_observation_date": pd.Timestamp("2022-01-01"),
            "last_observation_date": pd.Timestamp("2024-06-01"),
        }
    )
    wild = {NDC[0]: ["00078-*", "0078\u20130946-*", "00078.*"]}.get(same[0], [])
    # How a definition spells a code is read before any engine.
    for written in [*same, *wild] if engine is None else [same[-1], *wild[-1:]]:
        rule = {"field": "x", "operator": "in", "value": [written], "code_system": system}
        definition = CohortDefinition.model_validate(
            {
                "brand": "b",
                "indication": "i",
                "title": "t",
                "version": "1.0.0",
                "inclusion_criteria": [rule],
                "temporal_requirements": {
                    "lookback_days": 0,
                    "followup_days": 0,
                    "index_date_field": "diagnosis_date",
                },
            }
        )
        cohort = build_cohort(definition, patients, engine=engine)
        assert sorted(cohort.eligible["patient_id"]) == [f"P{i}" for i in range(len(same))]
        assert cohort.attrition["unknown"].sum() == len(undecided)


@pytest.mark.parametrize("engine", [None, "duckdb"])
def test_digits_of_other_systems_and_of_no_reading_are_known_not_to_be_a_drug(engine):
    others = [
        "95004",
        "J2357",
        "L50.1",
        "718-7",
        "402408009",
        "24801000119102",
        "99078094661",
        "78094662",
        "",
        "none",
    ]
    rule = Criterion(field="x", operator="in", value=["00078-0946-61"], code_system="ndc", description="d")
    column = typed_column(pd.Series(others), "x")
    assert decidable(rule, column).known[: len(others)].all() and not holds(rule, column).any()
    if engine:
        import duckdb
        import narwhals as nw

        frame = nw.from_native(duckdb.from_df(pd.DataFrame({"x": others}))).lazy()
        source = with_drug_codes(Source(frame, {"x": "text"}), [rule])
        truth = condition_truth(rule, source.kinds)
        read = source.frame.select(truth.true.alias("true"), truth.unknown.alias("unknown")).to_native().df()
        assert not read.to_numpy().any()


@pytest.mark.parametrize("engine", [None, "duckdb"])
@pytest.mark.parametrize(
    ("position", "cell", "known"),
    [
        ("any", "J30.1; 99213-25", False),
        ("first", "J30.1; 99213-25", True),
        ("first", "99213-25; J30.1", False),
    ],
)
def test_a_part_that_cannot_be_read_is_unknown_only_where_its_position_is_asked_for(
    position, cell, known, engine
):
    rule = {
        "field": "x",
        "operator": "not_in",
        "value": ["L50.1"],
        "code_system": "icd10cm",
        "position": position,
    }
    criterion = Criterion.model_validate(rule)
    others = ["99213", "J2357", "718-7", "402408009", "78-946-61", "0JH60DZ", "", "none", "[]"]
    column = pd.Series([cell, *others])
    if engine is None:
        truth = decidable(criterion, typed_column(column, "x")).known.tolist()
        true = holds(criterion, typed_column(column, "x")).tolist()
    else:
        import duckdb
        import narwhals as nw

        found = condition_truth(criterion, {"x": "text"})
        frame = nw.from_native(duckdb.from_df(pd.DataFrame({"x": column})))
        read = frame.select((~found.unknown).alias("known"), found.true.alias("true")).to_native().df()
        truth, true = read["known"].tolist(), read["true"].tolist()
    assert truth == [known, *[True] * len(others)] and true == truth


def test_a_part_of_a_drug_code_is_refused_and_its_beginning_is_not():
    shared = {"field": "drug_ndc", "description": "a drug", "code_system": "ndc"}
    with pytest.raises(ValueError, match="its spellings differ: use in"):
        Criterion(operator="contains", value="0946-61", **shared)
    assert Criterion(operator="in", value=["0078-0946-*"], **shared).values == ("0078-0946-*",)


VALID = {
    "icd10cm": ["L50.1", "d59.5", "C50911", "M1A.00X0", "T36.0X1A", "N03.A", "QA0.0101", "Z3A.39"],
    "icd9cm": ["708", "708.1", "7081", "V58.69", "V5869", "E905.3", "e9053", "001.0"],
    "cpt": ["95004", "00100", "0001F", "0075t", "0001U", "0002M"],
    "hcpcs": ["J2357", "G0008", "95004", "0075T"],
    "ndc": ["00078-0946-61", "0078-0946-61", "12345-678-90", "12345-6789-0", "00078094661", "0078094661",
            "00078 0946 61"],
    "loinc": ["718-7", "2532-0", "14804-9", "100746-7", "2160-0", "4548-4"],
    "npi": ["1234567893", "1245319599"],
}  # fmt: skip
INVALID = {
    "icd10cm": ["50.1", "L5", "L50.", "L50.12345", "95004", "LL0.1"],
    "icd9cm": ["70", "708.123", "V5", "E90", "E905.33", "L50.1"],
    "cpt": ["9500", "J2357", "0001X", "950044"],
    "hcpcs": ["W0001", "JJ123", "J235"],
    "ndc": ["12345", "123-45-6", "0007-80946-61", "ABCDE-0946-61", "123456789012"],
    "loinc": ["718-8", "2532-1", "25320", "2532-", "100746-8", "0718-7"],
    "npi": ["1234567890", "123456789", "12345678930"],
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_codes_that_a_system_can_have(system):
    assert [code for code in VALID[system] if not fits(code, system)] == []
    assert [code for code in INVALID[system] if fits(code, system)] == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [("NDC", "ndc"), ("ICD-10-CM", "icd10cm"), ("icd10", "icd10cm"), ("ICD9", "icd9cm"), ("icd_9_cm", "icd9cm"),
     ("CPT-4", "cpt"), ("HCPCS", "hcpcs"), ("Loinc", "loinc")],
)  # fmt: skip
def test_a_system_is_known_by_its_usual_names(name, meant):
    rule = {"field": "x", "operator": "in", "value": [VALID[meant][0]]}
    assert Criterion.model_validate({**rule, "code_system": name}).code_system == meant
    assert EventPattern(codes=(VALID[meant][0],), code_system=name).code_system == meant


@pytest.mark.parametrize(
    ("name", "words"),
    [("typo", "no code system 'typo'. Known: icd10cm, icd9cm"), ("ncd", "Did you mean 'ndc'"),
     ("icd10pm", "Did you mean 'icd10cm'"), ("loin", "Did you mean 'loinc'")],
)  # fmt: skip
def test_an_unknown_system_is_refused_with_the_nearest_and_the_list(name, words):
    for read in (
        lambda: Criterion(field="x", operator="==", value="L50.1", code_system=name),
        lambda: EventPattern(codes=("L50.1",), code_system=name),
    ):
        with pytest.raises(ValueError, match=words):
            read()


def test_a_code_of_another_system_is_refused_with_the_systems_that_have_it():
    with pytest.raises(ValueError, match=r"'95004' is no ICD-10-CM.*shape of icd9cm, cpt, hcpcs: say"):
        EventPattern(codes=("95004",))
    with pytest.raises(ValueError, match="'718-8' is no LOINC"):
        EventPattern(codes=("718-7", "718-8"), code_system="loinc")
    with pytest.raises(ValueError, match="drug codes come one to a cell"):
        EventPattern(codes=("00078-0946-61",), code_system="ndc", position="first")
    with pytest.raises(ValueError, match="position belongs to codes"):
        EventPattern(event=("rx",), position="first")
    with pytest.raises(ValueError, match="position belongs to codes"):
        Criterion(field="stage", operator="==", value="a", position="first")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=18))
def test_exactly_one_check_digit_fits_and_one_wrong_digit_never_does(digits):
    fitting = [d for d in range(10) if luhn_sum([*digits, d]) % 10 == 0]
    assert len(fitting) == 1
    # By the definition of ISO/IEC 7812-1: from the check digit leftwards every second digit doubled, digits added.
    doubled = [sum(map(int, str(2 * d))) if place % 2 == 0 else d for place, d in enumerate(reversed(digits))]
    assert fitting == [-sum(doubled) % 10]
    whole = [*digits, fitting[0]]
    for place, digit in enumerate(whole):
        others = [d for d in range(10) if d != digit]
        assert all(luhn_sum([*whole[:place], d, *whole[place + 1 :]]) % 10 for d in others)


@given(st.integers(0, 10**9 - 1).map("{:09d}".format), st.integers(0, 9))
def test_the_prefix_of_an_npi_is_a_part_of_its_number(base, digit):
    npi = f"{base}{digit}"
    assert fits(npi, "npi") == (luhn_sum([int(d) for d in f"80840{npi}"]) % 10 == 0)


def test_an_unclear_drug_code_that_is_none_of_the_codes_is_not_unknown():
    rule = Criterion(field="x", operator="in", value=["00078094661"], code_system="ndc")
    column = typed_column(pd.Series(["0078094661", "1234567890", "00078094661", None]), "x")
    assert decidable(rule, column).known.tolist() == [False, True, True, False]
    assert holds(rule, column).tolist() == [False, False, True, False]
    assert holds(rule.model_copy(update={"operator": "not_in"}), column).tolist() == [
        False,
        True,
        False,
        False,
    ]
