"""``e2i cohort omop`` as it is typed."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from click.testing import CliRunner
from omop_cases import CONDITION, condition, counted, drug, expression, period, rule, write_folder

from commands.cli import main
from e2i_dagster.cohorts.omop import build


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """40 persons with an exposure, 30 of them with a condition before, 35 with one after, 28 with both."""
    folder = tmp_path_factory.mktemp("omop")
    before = [condition(k, k, "2000-05-01") for k in range(30)]
    after = [condition(100 + k, k, "2000-07-01") for k in (*range(28), *range(30, 37))]
    write_folder(
        folder / "cdm",
        {
            "observation_period": [period(k) for k in range(40)],
            "drug_exposure": [drug(k, k, "2000-06-01") for k in range(40)],
            "condition_occurrence": before + after,
        },
    )
    definition = expression(InclusionRules=[rule("before", counted(CONDITION, -90, -1))])
    (folder / "one.json").write_text(json.dumps(definition))
    definition["InclusionRules"].append(rule("after", counted(CONDITION, 1, 90)))
    (folder / "two.json").write_text(json.dumps(definition))
    return folder


def run(*arguments: object):
    return CliRunner().invoke(main, ["cohort", "omop", *map(str, arguments)])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_written_and_counts_shown(given, tmp_path, suffix):
    out = tmp_path / f"rows.{suffix}"
    done = run(given / "one.json", given / "cdm", "--out", out)
    assert done.exit_code == 0, done.output
    assert "30 persons with 30 periods" in done.output and "before" in done.output
    written = pd.read_csv(out, dtype=str) if suffix == "csv" else pd.read_parquet(out).astype(str)
    assert written.loc[0].tolist() == ["0", "2000-06-01", "2001-01-01"]
    assert len(written) == 30
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_json_has_no_small_count_nor_a_way_to_find_one(given):
    """2 persons meet only the first rule, 7 only the second: with 30 and 35 shown they could be subtracted."""
    told = json.loads(run(given / "two.json", given / "cdm", "--json").stdout)
    assert told == {
        "persons": "28",
        "periods": "28",
        "rules": [
            {"rule": "before", "persons": "suppressed", "gain": "<11"},
            {"rule": "after", "persons": "suppressed", "gain": "<11"},
        ],
        "out": None,
    }
    exact = build(given / "two.json", given / "cdm")
    assert exact.inclusion_masks == {0b00: 3, 0b01: 2, 0b10: 7, 0b11: 28}
    assert exact.to_record()["inclusion_masks"] == {"0": 3, "1": 2, "2": 7, "3": 28}
    assert "28" in exact.to_metadata()["persons"] and "30" not in str(exact.to_metadata()["rules"])


def test_faults_end_with_their_code(given, tmp_path):
    (tmp_path / "bad.json").write_text('{"Frob": 1}')
    assert run(tmp_path / "bad.json", given / "cdm").exit_code == 2
    assert run(given / "one.json", tmp_path / "nowhere").exit_code == 3
    for out in (tmp_path / "rows.xlsx", tmp_path / "nowhere/rows.csv"):
        refused = run(given / "one.json", given / "cdm", "--out", out)
        assert refused.exit_code == 2 and "--out takes" in refused.output
