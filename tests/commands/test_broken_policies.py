"""A policy file that is wrong, whatever the command: never a traceback, and where it is in the way its own error."""

import json
import shutil

import click
import pytest
from click.testing import CliRunner

from commands.cli import main
from e2i_dagster.policy_files.environment import CHECKOUT
from tests.commands.test_refusals import ALL, filled

#: They stay in the foreground or hand over to another program, or stop what runs.
LEFT_OUT = {"ui", "serve", "feast", "down"}
SCOPE, EXPERIMENT = "fabhalta_pnh_initiation", "remibrutinib_outreach"
#: What is broken, by kind; every file of the kind at once.
KINDS = {
    "scopes": "scopes/*.yaml",
    "cohorts": "cohorts/*.yaml",
    "experiments": "experiments/*.yaml",
    "features": "features/*.yaml",
    "sources": "sources.yaml",
    "vocabulary": "vocabulary.yaml",
    "algorithms": "algorithms.yaml",
    "all others": "[adforqc]*.yaml",
}
#: Commands that cannot do without the kind, named with a definition of the kind.
IN_THE_WAY = {
    "scopes": {"plan", "run", "leakage-audit", "causal estimate", "causal deploy", "causal show", "causal report"},
    "cohorts": {"plan", "run", "leakage-audit", "causal estimate", "causal deploy", "causal show", "experiment run"},
    "experiments": {"experiment run", "experiment simulate", "experiment twin"},
    "features": {"run", "features list"},
    "sources": {"plan", "run", "load", "causal estimate", "causal show", "leakage-audit"},
    "vocabulary": {"run"},
    "algorithms": {"run"},
    "all others": {"run"},
}  # fmt: skip


def arguments_of(path, command, folder):
    """What is typed: definitions that are there, and for the rest what nothing knows."""
    given = [
        EXPERIMENT if one == "nobody" and path[0] == "experiment" else one for one in filled(command, folder)
    ]
    if path == ("generate",):
        given[0] = str(folder / "file" / "out")
    options = {name for one in command.params for name in one.opts}
    if path == ("load",):
        given += ["--from", str(folder)]
    return [*path, *given, *(["--scope", SCOPE] if "--scope" in options else []), "--json"]


@pytest.fixture(scope="module", autouse=True)
def _definitions():
    """As the commands that run jobs import them: once in a process, here with the shipped files."""
    import e2i_dagster.definitions

    return e2i_dagster.definitions.defs


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_knows_what_is_wrong_with_the_files(kind, tmp_path, monkeypatch):
    config = shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    broken = sorted(config.glob(KINDS[kind]))
    assert broken
    for path in broken:
        path.write_text("bogus_key: 1\n", encoding="utf-8")
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("E2I_CONFIG", str(config))
    monkeypatch.setenv("E2I_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("E2I_DATABASE_URL", "postgresql+psycopg://e2i:s3cret@127.0.0.1:9/e2i")
    for parameter in ALL:
        path, command = parameter.values
        name = " ".join(path)
        if path[0] in LEFT_OUT or isinstance(command, click.Group):
            continue
        done = CliRunner().invoke(main, arguments_of(path, command, tmp_path))
        assert done.exception is None or isinstance(done.exception, SystemExit), f"{name}: {done.exception!r}"
        told = json.loads(done.stdout.splitlines()[-1]).get("error") if done.exit_code else None
        if name == "plan":  # it ends with the error, or names every file that is wrong and goes on
            assert all(f"{one}:1: bogus_key" in done.stderr for one in broken) or told, done.stderr
        if told is None:
            assert name not in IN_THE_WAY.get(kind, ()), name
            continue
        for word in (
            "IndexError",
            "KeyError",
            "Traceback",
            f"Unknown scope {SCOPE}",
            f"nknown experiment {EXPERIMENT}",
        ):
            assert word not in told["message"] + done.stderr, f"{name}: {told['message']}"
        if name in IN_THE_WAY.get(kind, ()):
            assert done.exit_code == 2, f"{name}: {told['message']}"
            assert told["file"] in map(str, broken), f"{name}: {told}"
            assert told["field"] and "bogus_key" in told["message"], f"{name}: {told}"
