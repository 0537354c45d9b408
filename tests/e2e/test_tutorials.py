"""The tutorials of docs/tutorials, done command by command as they are written."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
#: Variables of the machine that would lead the tutorial elsewhere.
NOT_INHERITED = (
    "E2I_LAKE",
    "E2I_DATABASE_URL",
    "E2I_CONFIG",
    "E2I_HOME",
    "MLFLOW_TRACKING_URI",
    "DAGSTER_HOME",
)
PAGES = sorted((CHECKOUT / "docs" / "tutorials").glob("*.md"))


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def added(before: Any, after: Any) -> Iterator[str]:
    """Keys that ``after`` has and ``before`` has not; everything else must be the same."""
    if isinstance(before, dict):
        yield from after.keys() - before.keys()
        for key, value in before.items():
            yield from added(value, after[key])
    elif isinstance(before, list):
        for left, right in zip(before, after, strict=True):
            yield from added(left, right)
    else:
        assert before == after


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_ends_at_an_endpoint_that_answers(page: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="e2i-tut-"))
    (root / "docs").symlink_to(CHECKOUT / "docs")
    shutil.copytree(CHECKOUT / "config", root / "config")
    (root / "bin").mkdir()
    (root / "bin" / "e2i").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m commands.cli "$@"\n')
    (root / "bin" / "e2i").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "E2I_PORT_BASE": "0",
        "E2I_ACTOR": "test",
    }
    # One shell, as for a reader: folder and variables stay; the answer is asked for between run and down.
    script = ["set -e"]
    for command in commands_of(page):
        if command == "e2i down":
            script.append("eval \"$(grep '^curl' run.txt)\" > answer.json")
        if command.endswith("extract/mapping.yaml") and command.startswith("cp "):
            script.append("cp extract/mapping.yaml proposed.yaml")
        script.append(f"{command} > run.txt" if command == "e2i run" else command)
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        folder = root / f"my_{page.stem}"
        answer = json.loads((folder / "answer.json").read_text())
        assert 0 < answer["probabilities"][0]["1"] < 1, answer
        proposed, edited = (
            yaml.safe_load((folder / name).read_text())["tables"]
            for name in ("proposed.yaml", "extract/mapping.yaml")
        )
        # The page names all that was added to the proposal.
        assert set(added(proposed, edited)) <= {"brand", "patient_clinical"}
    finally:
        state = root / f"my_{page.stem}" / "state"
        subprocess.run(
            ["bash", "-c", "e2i down"],
            env=environment | {"E2I_HOME": str(state)},
            cwd=root,
            capture_output=True,
            check=False,
        )
        shutil.rmtree(root, ignore_errors=True)
