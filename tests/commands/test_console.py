"""What reaches the terminal: data as they are, and no library's words between programmers."""

import ast

import pandas as pd
import pytest

from commands.console import print_table
from e2i_dagster.policy_files.environment import CHECKOUT
from tests.commands.conftest import e2i

MARKUP = ("pip install 'e2i-dagster[causal]'", "[bold]ALT[/bold]", "[/]", ":pill:", "a[0]", "[red]5", "\\[x]")


@pytest.mark.parametrize("text", MARKUP)
def test_a_table_shows_titles_headers_and_cells_as_they_are(text, capsys):
    print_table(f"Title {text}", [{f"column {text}": f"cell {text}"}])
    shown = capsys.readouterr().out
    for part in ("Title", "column", "cell"):
        assert f"{part} {text}" in shown


def test_only_the_console_writes_with_markup():
    """Every other line of a command is written by click, which has none."""
    writes = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in ("e2i_dagster", "assets", "resources", "sensors")
        for path in (CHECKOUT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich")
        or (isinstance(node, ast.Import) and any(one.name.split(".")[0] == "rich" for one in node.names))
    }
    assert writes == {"commands/console.py"}


def test_a_warning_of_a_library_does_not_reach_the_terminal(environment, tmp_path):
    path = tmp_path / "frame.csv"
    rows = {
        "patient_id": [f"P{n}" for n in range(300)],
        "label": [n % 3 % 2 for n in range(300)],
        "huge": [f"1e{n}" for n in range(300)],
    }
    pd.DataFrame(rows).to_csv(path, index=False)
    arguments = ("leakage-audit", "--file", str(path))
    quiet, developer = (
        e2i({**environment, "PYTHONWARNINGS": filters}, *arguments) for filters in ("", "default")
    )
    assert "RuntimeWarning: overflow" in developer.stderr
    assert "Warning" not in quiet.stderr + quiet.stdout
    assert quiet.returncode == developer.returncode
    assert quiet.stdout == developer.stdout


def test_a_number_that_no_variance_holds_is_refused(command, tmp_path):
    path = tmp_path / "frame.csv"
    frame = {"treated": [n % 2 for n in range(200)], "outcome": [n % 3 for n in range(200)]}
    pd.DataFrame(frame | {"huge": [f"1e{n}" for n in range(200)]}).to_csv(path, index=False)
    named = ("--treatment", "treated", "--outcome", "outcome", "--confounders", "huge")
    done = command("causal", "study", str(path), *named)
    assert done.returncode == 3, done.stderr
    assert "Confounder 'huge' has values up to 1e+199" in done.stderr
