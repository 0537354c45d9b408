"""Quotation marks that are text in OMOP files: nobody is lost without a word."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from omop_cases import CONDITION, expression, period, write_folder

from commands.cli import main
from e2i_dagster.cohorts.omop import build
from e2i_dagster.errors import InputError

PERSONS = 300
DEFINITION = expression(CONDITION)


def folder_with(folder: Path, marked: dict[int, str], separator: str = ",", ending: str = ".csv") -> Path:
    """A condition of each person; ``marked`` says what stands in the text column of some rows."""
    write_folder(folder, {"observation_period": [period(person) for person in range(PERSONS)]})
    names = [
        "condition_occurrence_id",
        "person_id",
        "condition_concept_id",
        "condition_start_date",
        "text",
        "more",
    ]
    rows = [
        [str(person), str(person), "2", "2000-05-01", marked.get(person, "urticaria"), "x"]
        for person in range(PERSONS)
    ]
    text = "\n".join(separator.join(row) for row in [names, *rows]) + "\n"
    path = folder / f"condition_occurrence{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    return folder


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize(
    ("marked", "line", "said"),
    [
        ({100: '"urticaria'}, 102, "a quotation mark is never closed"),
        ({100: '"'}, 102, "a quotation mark is never closed"),
        ({100: '"urticaria', 200: 'urticaria"'}, 102, "holds line breaks together with separators"),
        ({100: '"', 200: '"'}, 102, "holds line breaks together with separators"),
        ({100: '"acute" urticaria'}, 102, "text follows a closing quotation mark"),
    ],
    ids=["one", "alone", "pair", "two alone", "word"],
)
def test_a_mark_that_is_text_is_refused_by_its_line_and_the_advice_works(
    tmp_path, marked, line, said, separator
):
    folder = folder_with(tmp_path / "cdm", marked, separator)
    with pytest.raises(InputError, match=f"condition_occurrence.csv, line {line}: .*{said}") as refused:
        build(DEFINITION, folder)
    assert "`--quote none`" in str(refused.value)
    assert len(build(DEFINITION, folder, quote="none").rows) == PERSONS


def test_the_command_takes_the_advice(tmp_path):
    folder = folder_with(tmp_path / "cdm", {10: '"urticaria', 20: 'urticaria"'}, ending=".csv.gz")
    (tmp_path / "one.json").write_text(json.dumps(DEFINITION))
    arguments = ["cohort", "omop", str(tmp_path / "one.json"), str(folder)]
    refused = CliRunner().invoke(main, [*arguments, "--json"])
    assert refused.exit_code == 3 and "line 12" in json.loads(refused.stdout)["error"]["message"]
    done = CliRunner().invoke(main, [*arguments, "--quote", "none", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["persons"] == str(PERSONS)


def test_quoted_cells_are_read_as_they_are_meant(tmp_path):
    """A separator, a doubled mark and a line break inside quotes belong to the cell."""
    folder = folder_with(
        tmp_path / "cdm", {1: '"acute, severe"', 2: '"so-called ""hives"""', 3: '"two\nlines"', 4: '""'}
    )
    assert len(build(DEFINITION, folder).rows) == PERSONS


def test_parts_have_one_separator(tmp_path):
    folder = folder_with(tmp_path / "cdm", {})
    parts = folder / "condition_occurrence"
    parts.mkdir()
    (folder / "condition_occurrence.csv").rename(parts / "a.csv")
    (parts / "b.csv").write_text((parts / "a.csv").read_text().replace(",", ";"))
    with pytest.raises(InputError, match=r"separated by .,. and .;.\. Use one"):
        build(DEFINITION, folder)
