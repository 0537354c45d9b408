"""Mappings that compute: each kind of expression by known answers, rows chosen and counted, and what is refused."""

import datetime as dt
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.mapping import ImportMapping
from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources import files
from e2i_dagster.sources.check import check_folder
from e2i_dagster.tables.rules import check
from e2i_dagster.tables.vocabulary import load_vocabulary


@pytest.fixture
def folder(tmp_path):
    def write(**contents: str) -> Path:
        for name, content in contents.items():
            (tmp_path / name.replace("__", ".", 1)).write_text(content)
        return tmp_path

    return write


def read_with(folder: Path, mapping: str) -> files.Delivery:
    (folder / "m.yaml").write_text(mapping)
    return files.read(folder, folder / "m.yaml")


def column(folder: Path, expression: str, ours: str = "drug_name") -> list[str | None]:
    """The cells of ``ours`` in treatment_events, computed from claims.csv."""
    delivery = read_with(
        folder,
        f"""
tables:
  treatment_events:
    files: [claims.csv]
    columns:
      treatment_event_id: ID
      patient_journey_id: P
      patient_id: P
      event_date: {{constant: 2024-01-01}}
      {ours}: {expression}
""",
    )
    return [None if pd.isna(cell) else cell for cell in delivery["treatment_events"][ours]]


CLAIMS = (
    "ID,P,A,B,C,dx1,dx2,dx10,poa1,poa2,poa10,from,thru,day0\n"
    "1,p1,x,y,1.10,L50.1,,I10,Y,N,Y,2024-01-31,2024-03-01,3\n"
    "2,p1,,y,2.20,,J45,,N,Y,,20240229,2025-02-28,-1\n"
    '3,p2,"q""\\",,,,,,,,,2024-02-30,,x\n'
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("A", ["x", None, 'q"\\']),
        ("{from: A, map: {x: one}}", ["one", None, 'q"\\']),
        ("{from: A, map: {x: one}, else: rest}", ["one", None, "rest"]),
        ('{from: A, map: {"": none, x: ""}, else: rest}', [None, "none", "rest"]),
        ("{constant: fixed}", ["fixed"] * 3),
        ('{concat: [A, B], separator: "-"}', ["x-y", "y", 'q"\\']),
        ('{concat: [{constant: "n:"}, B]}', ["n:y", "n:y", None]),
        ("{first_of: [A, B]}", ["x", "y", 'q"\\']),
        ('{first_of: "dx{n}"}', ["L50.1", "J45", None]),
        ('{first_of: "dx{n}", where: {column: "poa{n}", equals: "N"}}', [None, None, None]),
        (
            '{first_of: "dx{n}", where: {column: "poa{n}", equals: "Y"}, map: {J45: asthma}}',
            ["L50.1", "asthma", None],
        ),
        ('{lookup: name, in: "codes.csv", by: {A: code}}', ["the x", None, None]),
        ('{lookup: name, in: "codes.csv", by: {A: code}, map: {the x: X}}', ["X", None, None]),
    ],
)
def test_text_is_computed(folder, expression, expected):
    where = folder(claims__csv=CLAIMS)
    if "codes.csv" in expression:
        folder(codes__csv="code,name\nx,the x\nz,the z\n")
    assert column(where, expression) == expected


@pytest.mark.parametrize(
    ("ours", "expression", "expected"),
    [
        # What cannot be computed is as delivered, for the reject.
        ("cost", "{sum: [C, day0]}", ["4.1", "1.2", "x"]),
        ("cost", '{sum: ["C"]}', ["1.1", "2.2", None]),
        ("duration_days", "{days_between: [from, thru]}", ["30", "365", "2024-02-30"]),
        ("duration_days", "{years_between: [{constant: 2000-02-29}, thru]}", ["24", "24", None]),
        ("event_date", "{day_after: from, days: day0}", ["2024-02-03", "2024-02-28", "x"]),
        ("source_timestamp", "{day_after: thru, days: 1}", ["2024-03-02", "2025-03-01", None]),
        ("icd_codes", '{list: "dx{n}"}', ['["L50.1", "I10"]', '["J45"]', None]),
        ("icd_codes", '{list: "dx*"}', ['["L50.1", "I10"]', '["J45"]', None]),
        (
            "icd_codes",
            '{list: "dx{n}", where: {column: "poa{n}", equals: "Y"}}',
            ['["L50.1", "I10"]', '["J45"]', None],
        ),
        ("icd_codes", "{list: [dx10, A]}", ['["I10", "x"]', None, r'["q\"\\"]']),
        ("cost", "{from: C, unit: mg, to: g}", ["0.0011", "0.0022", None]),
        ("cost", "{from: C, unit: mmol/L, to: mg/dL, molar_mass: 180.156}", ["19.81716", "39.63432", None]),
    ],
)
def test_numbers_days_and_lists_are_computed(folder, ours, expression, expected):
    where = folder(claims__csv=CLAIMS)
    if ours == "event_date":
        text = (
            "tables: {treatment_events: {files: [claims.csv], rename: {ID: treatment_event_id}, columns: "
            f"{{patient_journey_id: P, patient_id: P, event_date: {expression}}}}}}}"
        )
        found = read_with(where, text)["treatment_events"][ours]
        assert [None if pd.isna(cell) else cell for cell in found] == expected
    else:
        assert column(where, expression, ours) == expected


def test_a_cell_that_cannot_be_computed_rejects_its_row(folder):
    where = folder(claims__csv=CLAIMS)
    column(where, "{sum: [C, day0]}", "cost")
    frame = files.read(where, where / "m.yaml")["treatment_events"]
    (fault,) = check("treatment_events", frame, load_vocabulary(), {}).faults
    assert (fault.reason, fault.column, fault.positions.tolist()) == ("number_format", "cost", [2])


def test_days_by_a_declared_format_and_a_year_completed(folder):
    where = folder(claims__csv="ID,P,born,seen\n1,p,1950,15.06.2020\n2,p,,15.06.2020\n")
    found = read_with(
        where,
        """
tables:
  patient_journeys:
    files: [claims.csv]
    columns:
      patient_journey_id: ID
      patient_id: P
      journey_start_date: seen
      age_at_diagnosis: {years_between: [birth, journey_start_date], partial: middle}
      birth: born
    dates: {journey_start_date: "%d.%m.%Y"}
""",
    )["patient_journeys"]
    # `dates` are applied to the result: an expression reads what was delivered.
    assert found["age_at_diagnosis"].fillna("-").tolist() == ["15.06.2020", "15.06.2020"]
    text = (
        (where / "m.yaml")
        .read_text()
        .replace("journey_start_date], partial", 'journey_start_date], format: "%d.%m.%Y", partial')
    )
    # The format is for both days, so the year of birth is read first.
    assert read_with(where, text)["patient_journeys"]["age_at_diagnosis"].fillna("-").tolist() == ["69", "-"]


def test_a_surrogate_key_is_stable_and_hides_what_it_is_of(folder):
    keys = column(folder(claims__csv=CLAIMS), "{key: [P, A], prefix: PJ-}")
    assert keys == column(folder(claims__csv=CLAIMS), "{key: [P, A], prefix: PJ-}")
    assert len(set(keys)) == 3 and all(len(key) == 35 and "p1" not in key for key in keys)
    # Cells do not run into each other: (ab, c) is not (a, bc), and an empty one counts.
    other = column(folder(claims__csv="ID,P,A,B\n1,p,ab,c\n2,p,a,bc\n3,p,abc,\n4,p,,\n"), "{key: [A, B]}")
    assert len(set(other[:3])) == 3 and other[3] is None


def test_one_file_feeds_two_tables_and_one_column_two_of_ours(folder):
    where = folder(
        all__csv="id,patient,start,dx\nJ1,P1,2024-01-05,L50.1\nJ2,P2,2024-02-05,\n",
    )
    delivery = read_with(
        where,
        """
tables:
  patient_journeys:
    files: [all.csv]
    rename: {id: patient_journey_id, patient: patient_id, start: journey_start_date}
    ignore: [dx]
  patient_clinical:
    files: [all.csv]
    where: [{column: dx, is: filled}]
    columns: {patient_journey_id: id, diagnosis_code: dx, diagnosis_date: start, first_observation_date: start}
    ignore: [patient]
""",
    )
    assert delivery["patient_journeys"]["patient_journey_id"].tolist() == ["J1", "J2"]
    clinical = delivery.delivered["patient_clinical"]
    assert clinical.frame.to_dict("records") == [
        {
            "patient_journey_id": "J1",
            "diagnosis_code": "L50.1",
            "diagnosis_date": "2024-01-05",
            "first_observation_date": "2024-01-05",
        }
    ]
    assert clinical.left_out == {"dx is empty": 1}
    assert clinical.raw["dx"].tolist() == ["L50.1"] and clinical.row_numbers.tolist() == [1]
    assert not delivery.not_read or set(delivery.not_read) == {"m.yaml"}


def test_files_of_several_shapes_make_one_table(folder):
    where = folder(
        drugs__csv="k,who,day,ndc\n1,P1,2024-01-02,00078-0001-15\n2,P2,2024-01-03,\n",
        visits__csv="visit;member;date\n1;P1;05.01.2024\n",
    )
    table = read_with(
        where,
        """
tables:
  treatment_events:
    parts:
      - files: [drugs.csv]
        rename: {day: event_date, ndc: drug_ndc}
        columns: &keys
          treatment_event_id: {concat: [event_type, {constant: "-"}, k]}
          patient_journey_id: who
          patient_id: who
        constants: {event_type: prescription}
      - files: [visits.csv]
        separator: ";"
        rename: {visit: k, member: who, date: event_date}
        columns: *keys
        constants: {event_type: consultation}
        dates: {event_date: "%d.%m.%Y"}
""",
    ).delivered["treatment_events"]
    assert table.frame[["treatment_event_id", "patient_id", "event_date", "drug_ndc"]].fillna(
        "-"
    ).values.tolist() == [
        ["prescription-1", "P1", "2024-01-02", "00078-0001-15"],
        ["prescription-2", "P2", "2024-01-03", "-"],
        ["consultation-1", "P1", "2024-01-05", "-"],
    ]
    assert table.file_of_rows(pd.Series([0, 2]).to_numpy()) == ["drugs.csv", "visits.csv"]


def test_numbered_columns_become_rows(folder):
    where = folder(claims__csv=CLAIMS)
    table = read_with(
        where,
        """
tables:
  treatment_events:
    files: [claims.csv]
    unpivot: {columns: {code: "dx{n}", present: "poa{n}"}}
    where: [{column: code, is: filled}, {column: present, in: ["Y"]}]
    columns:
      treatment_event_id: {concat: [ID, n], separator: "/"}
      patient_journey_id: P
      patient_id: P
      event_date: from
      event_subtype: code
""",
    ).delivered["treatment_events"]
    assert table.frame[["treatment_event_id", "event_subtype", "event_date"]].values.tolist() == [
        ["1/1", "L50.1", "2024-01-31"],
        ["1/10", "I10", "2024-01-31"],
        ["2/2", "J45", "20240229"],
    ]
    assert table.row_numbers.tolist() == [1, 1, 2]
    # Line 3 makes no row; of the five made, one has no code and none other is left out.
    assert table.left_out == {"all of dx{n}, poa{n} are empty": 1, "code is empty": 2}
    assert table.added == 3
    assert len(table.frame) + sum(table.left_out.values()) == 3 + table.added


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("{column: A, is: empty}", [2]),
        ("{column: A, is: filled}", [1, 3]),
        ("{column: A, equals: x}", [1]),
        ("{column: A, not_equals: x}", [2, 3]),
        ("{column: A, in: [x, z]}", [1]),
        ("{column: A, not_in: [x]}", [2, 3]),
        ("{column: C, at_least: 1.1}", [1, 2]),
        ("{column: C, more_than: 1.1}", [2]),
        ("{column: C, at_most: 1.1}", [1]),
        ("{column: C, less_than: 1}", []),
        ("{column: from, less_than: 2024-02-01}", [1]),
        ("{column: day0, less_than: 100}", [1, 2]),
        ("{column: patient_journey_id, equals: J-p2}", [3]),
    ],
)
def test_rows_are_taken_by_declared_conditions(folder, rule, kept):
    where = folder(claims__csv=CLAIMS)
    table = read_with(
        where,
        "tables: {treatment_events: {files: [claims.csv], rename: {ID: treatment_event_id}, columns: {"
        "patient_journey_id: {concat: [{constant: J-}, P]}, patient_id: P, event_date: {constant: 2024-01-01}}, "
        f"where: [{rule}]}}}}",
    ).delivered["treatment_events"]
    assert table.row_numbers.tolist() == kept
    assert sum(table.left_out.values()) == 3 - len(kept)


def test_one_row_of_those_that_agree(folder):
    where = folder(
        a__csv="p,d\nP1,2024-03-01\nP2,2024-02-01\n",
        b__csv="p,d\nP1,20240105\nP1,2024-01-05\nP2,\n,2024-01-01\n",
    )
    table = read_with(
        where,
        """
tables:
  patient_journeys:
    files: [a.csv, b.csv]
    columns: {patient_journey_id: p, patient_id: p, journey_start_date: d}
    one_row: {per: patient_journey_id, earliest: journey_start_date}
""",
    ).delivered["patient_journeys"]
    # Without a key a row is nobody's, and the loader rejects it.
    assert table.frame["journey_start_date"].tolist() == ["2024-02-01", "20240105", "2024-01-01"]
    assert table.left_out == {"not the earliest journey_start_date of its patient_journey_id": 3}
    assert table.row_numbers.tolist() == [2, 1, 4]
    assert table.file_of_rows(pd.Series([0, 1, 2]).to_numpy()) == ["a.csv", "b.csv", "b.csv"]


def test_a_value_is_looked_up_in_another_file(folder):
    where = folder(
        claims__csv="ID,P\n1,p1\n2,p2\n3,\n",
        people_1__csv="who,sex,since\np1,F,2020-01-02\n,X,2019-01-01\n",
        people_2__csv="who,sex,since\np1,F,2019-05-01\n",
    )
    assert column(where, '{lookup: sex, in: "people_*.csv", by: {P: who}}') == ["F", None, None]
    assert column(where, '{lookup: since, in: "people_*.csv", by: {P: who}, take: earliest}') == [
        "2019-05-01",
        None,
        None,
    ]
    assert column(where, '{lookup: since, in: "people_*.csv", by: {P: who}, take: first}')[0] == "2020-01-02"
    with pytest.raises(InputError, match=r"several values for one who \(1 of them\).*`take`"):
        column(where, '{lookup: since, in: "people_*.csv", by: {P: who}}')
    with pytest.raises(
        InputError, match=r"looks up gender, which is no column of it.*Found: who, sex, since"
    ):
        column(where, '{lookup: gender, in: "people_*.csv", by: {P: who}}')
    with pytest.raises(InputError, match=r"no file matches persons\.csv"):
        column(where, "{lookup: sex, in: persons.csv, by: {P: who}}")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("{drug_name: {from: A, sum: [C]}}", r"drug_name.*exactly one of .*\(found from and sum\)"),
        ("{drug_name: {separator: x}}", r"exactly one of .*\(found none\)"),
        ("{drug_name: {from: A, separator: x}}", r"separator does not go with from; beside it may stand map"),
        ("{drug_name: {from: A, else: x}}", "else needs map beside it"),
        ("{drug_name: {day_after: A}}", "day_after needs days"),
        ("{drug_name: {lookup: A}}", "lookup needs in and by"),
        ("{cost: {from: C, unit: mg, to: mL}}", "mg and mL do not measure the same"),
        ("{cost: {from: C, unit: mmol/L, to: mg/dL}}", "say `molar_mass`, in g/mol"),
        ("{cost: {from: C, unit: foo, to: g}}", "'foo' is no unit"),
        (
            "{drug_name: {sum: [C]}}",
            r"m.yaml:1: tables\.\S+\.drug_name: sum makes a number, and drug_name is text",
        ),
        ("{costs: {sum: [C]}}", r"no column costs. Did you mean 'cost'\?"),
        ("{drug_name: {concat: [{sum: [C]}]}}", "sum makes a number and stands alone"),
        (
            "{drug_name: {from: drug_class}, drug_class: {from: drug_name}}",
            "drug_name -> drug_class -> drug_name go round",
        ),
        ("{drug_name: {eval: A}}", r"columns.drug_name.eval"),
    ],
)
def test_expressions_that_are_wrong_are_refused_when_the_mapping_is_read(tmp_path, columns, said):
    path = tmp_path / "m.yaml"
    path.write_text(f"tables: {{treatment_events: {{columns: {columns}}}}}")
    with pytest.raises(ConfigError, match=said):
        ImportMapping.load(path)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("{where: [{column: A}]}", "say exactly one of `is: empty`"),
        ("{where: [{column: A, equals: x, in: [y]}]}", "say exactly one of `is: empty`"),
        ("{unpivot: {columns: {code: dx*}}}", "write the number as {n}"),
        ("{unpivot: {columns: {n: 'dx{n}'}}}", "both a column and the number"),
        ("{one_row: {per: patient_id}}", "either `earliest: <date column>`"),
        ("{parts: [{files: [a.csv]}], rename: {A: cost}}", "rename beside `parts`"),
        ("{parts: [{rename: {A: cost}}]}", "part 1 names no `files`"),
        ("{rename: {A: cost}, columns: {cost: B}}", "cost is both renamed and computed"),
    ],
)
def test_rules_that_are_wrong_are_refused_when_the_mapping_is_read(tmp_path, mapping, said):
    path = tmp_path / "m.yaml"
    path.write_text(f"tables: {{treatment_events: {mapping}}}")
    with pytest.raises(ConfigError, match=said):
        ImportMapping.load(path)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (
            "{from: dx3}",
            r"`columns.drug_name` names dx3, which is no column. Did you mean 'dx2'\?.*Found: ID, P, A",
        ),
        ("{from: drug_name}", "`columns.drug_name` names drug_name, which is no column"),
        ('"dx*"', "stands for several columns"),
        ('{list: "px{n}"}', "no column"),
    ],
)
def test_names_that_the_file_lacks_are_told_before_anything_is_loaded(folder, expression, said):
    ours = "icd_codes" if "list" in expression else "drug_name"
    with pytest.raises(InputError, match=said):
        column(folder(claims__csv=CLAIMS), expression, ours)


def test_files_left_out_are_named(folder):
    where = folder(hcp_profiles__csv="hcp_id\nH1\n", weather__csv="a\n1\n")
    assert (
        read_with(where, "ignore: [weather.csv]").not_read["weather.csv"]
        == "left out by the mapping (`ignore`)"
    )
    with pytest.raises(InputError, match=r"hcp_profiles\.csv: named under `files` and under `ignore`"):
        read_with(where, "{ignore: ['*.csv'], tables: {hcp_profiles: {files: [hcp_profiles.csv]}}}")


CELL = st.one_of(st.none(), st.sampled_from(["a", "b", 'q"', "\\", ",", "ü", "1"]))


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=12))
def test_every_filled_cell_is_in_the_list_and_in_the_rows_once_and_in_order(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("wide")
    wide = pd.DataFrame(rows, columns=["dx1", "dx2", "dx3"]).assign(P="p", ID=range(len(rows)))
    wide.to_csv(folder / "claims.csv", index=False)
    lists = [
        None if cells is None else json.loads(cells)
        for cells in column(folder, '{list: "dx{n}"}', "icd_codes")
    ]
    expected = [[cell for cell in row if cell is not None] for row in rows]
    assert lists == [cells or None for cells in expected]
    long = read_with(
        folder,
        "tables: {treatment_events: {files: [claims.csv], unpivot: {columns: {code: 'dx{n}'}}, columns: "
        "{treatment_event_id: ID, patient_journey_id: P, patient_id: P, event_date: {constant: 2024-01-01}, "
        "drug_name: code}}}",
    ).delivered["treatment_events"]
    assert long.frame["drug_name"].tolist() == [cell for cells in expected for cell in cells]
    # Every delivered line is a row, several, or left out.
    assert len(long.frame) + sum(long.left_out.values()) == len(rows) + long.added


@settings(max_examples=50, deadline=None)
@given(
    day=st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1)),
    days=st.integers(-40_000, 40_000),
    cents=st.lists(st.integers(-(10**7), 10**7), min_size=2, max_size=4),
)
def test_days_and_sums_agree_with_exact_arithmetic(tmp_path_factory, day, days, cents):
    folder = tmp_path_factory.mktemp("sums")
    amounts = {f"c{place}": f"{value / 100:.2f}" for place, value in enumerate(cents)}
    pd.DataFrame([{"ID": 1, "P": "p", "day": day, "offset": days, **amounts}]).to_csv(
        folder / "claims.csv", index=False
    )
    (moved,) = column(folder, "{day_after: day, days: offset}", "source_timestamp")
    assert moved == (day + dt.timedelta(days)).isoformat()
    (total,) = column(folder, '{sum: "c*"}', "cost")
    assert total is not None and round(float(total) * 100) == sum(cents) and "e" not in total
    assert total == str(total).rstrip(".") and len(total.partition(".")[2]) <= 2


def test_the_check_counts_what_the_mapping_leaves_out(folder):
    where = folder(claims__csv=CLAIMS)
    (where / "m.yaml").write_text(
        "tables: {treatment_events: {files: [claims.csv], where: [{column: A, is: filled}], columns: {"
        "treatment_event_id: ID, patient_journey_id: P, patient_id: P, event_date: {constant: 2024-01-01}}}}"
    )
    (table,) = check_folder(where, load_vocabulary(), ImportMapping.load(where / "m.yaml")).tables
    assert table.left_out == {"A is empty": 1} and table.rows == 2


def test_numbered_columns_of_codes_are_proposed_as_lists(folder):
    where = folder(
        events__csv="event_id,patient_journey_id,patient_id,event_date,DX_1,DX_2,DX_10,proc1,proc2,proc3,q1,q2,q3\n"
        "1,J1,P1,2024-01-01,L50.1,,I10,99213,,J2357,a,b,c\n2,J2,P2,2024-01-02,J45,L50.8,,,96372,,a,b,c\n"
    )
    (table,) = check_folder(where, load_vocabulary()).tables
    assert table.table == "treatment_events"
    assert table.lists == {"icd_codes": "DX_{n}", "cpt_codes": "proc{n}"}
    assert table.unmatched == ("q1", "q2", "q3")
    mapping = check_folder(where, load_vocabulary()).mapping
    rows = files.read(where, mapping)["treatment_events"]
    assert rows["icd_codes"].tolist() == ['["L50.1", "I10"]', '["J45", "L50.8"]']
    assert rows["cpt_codes"].tolist() == ['["99213", "J2357"]', '["96372"]']


def _examples() -> list[tuple[str, dict[str, str], str, dict[str, str], str]]:
    """Each section of the page with a mapping: its title, files, mapping, what comes out, and what is counted."""
    page = (CHECKOUT / "docs/mapping.md").read_text(encoding="utf-8")
    found = []
    for section in page.split("\n## ")[1:]:
        blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        mapping = next((text for kind, _, text in blocks if kind == "yaml"), None)
        if mapping is not None:
            given = {name: text for kind, name, text in blocks if kind == "csv" and name.endswith(".csv")}
            expected = {name: text for kind, name, text in blocks if kind == "csv" and name not in given}
            counted = "".join(text for kind, _, text in blocks if kind == "text")
            found.append((section.splitlines()[0], given, mapping, expected, counted))
    return found


@pytest.mark.parametrize("example", _examples(), ids=lambda one: one[0])
def test_examples_of_the_page(tmp_path, example):
    _, given, mapping, expected, counted = example
    for name, text in given.items():
        (tmp_path / name).write_text(text)
    delivery = read_with(tmp_path, mapping)
    assert list(delivery) == list(expected)
    for name, text in expected.items():
        wanted = pd.read_csv(io.StringIO(text), dtype="string[pyarrow]")
        pd.testing.assert_frame_equal(delivery[name][list(wanted.columns)], wanted)
    for line in counted.splitlines():
        what, _, count = line.rpartition(" ")
        (table,) = delivery.delivered.values()
        told = table.added if what == "added:" else table.left_out[what.removeprefix("left out: ")]
        assert told == int(count)
