"""A refused command says the same to people and to programs, whichever command it is."""

import ast
import json
import re
import shutil
from typing import Any, cast

import click
import pandas as pd
import pyreadstat
import pytest
import yaml
from click.testing import CliRunner

from commands.cli import main
from e2i_dagster.policy_files.environment import CHECKOUT

#: They stay in the foreground or hand over to another program: there is no result to print as JSON.
WITHOUT_JSON = {"ui", "serve", "feast"}
SHAPE = {"code", "message", "file", "field", "value", "remedy"}


def commands(group, path=()):
    for name, one in group.commands.items():
        yield from commands(one, (*path, name)) if isinstance(one, click.Group) else [((*path, name), one)]


ALL = [pytest.param(path, one, id=" ".join(path)) for path, one in commands(main)]


def filled(command, tmp_path):
    """A value for everything that ``command`` demands, nothing of which is known to the product."""
    file = tmp_path / "given.csv"
    file.write_text("patient_id\nPAT1\n", encoding="utf-8")
    for one in command.params:
        if one.required:
            if isinstance(one.type, click.Choice):
                value = one.type.choices[0]
            elif isinstance(one.type, click.Path):
                value = str(file if one.type.file_okay else tmp_path)
            elif isinstance(one.type, click.DateTime):
                value = "2024-01-01"
            else:
                value = "nobody"
            yield from [value] if isinstance(one, click.Argument) else [one.opts[0], value]


@pytest.fixture
def nothing_works(tmp_path, monkeypatch):
    """A configuration without files, a warehouse that does not answer, and a state folder below a file."""
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    (tmp_path / "config").mkdir()
    monkeypatch.setenv("E2I_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("E2I_HOME", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("E2I_DATABASE_URL", "postgresql+psycopg://e2i:s3cret@127.0.0.1:9/e2i")
    return tmp_path


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_tells_programs_what_it_tells_people(path, command, nothing_works, monkeypatch):
    if path[0] in WITHOUT_JSON:
        return
    arguments = [*path, *filled(command, nothing_works)]
    if path == ("generate",):
        arguments[1] = str(nothing_works / "file" / "folder")
    if path == ("forget",):
        arguments += ["--reason", "asked for it"]
    if path == ("handover",):
        return  # it says of each part that it is unknown, and why
    told = CliRunner().invoke(main, arguments, catch_exceptions=False)
    as_json = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert told.exit_code == as_json.exit_code != 0, told.output
    error = json.loads(as_json.stdout)["error"]
    assert set(error) - {"problems"} == SHAPE
    assert told.stderr.endswith(f"Error: {error['message']}\n")
    assert error["code"] and error["message"]


@pytest.mark.parametrize(("path", "command"), ALL)
def test_a_wrong_use_is_told_in_the_same_form(path, command):
    if path == ("feast",):
        return  # it hands its arguments on
    done = CliRunner().invoke(main, [*path, "--no-such-option", "--json"], catch_exceptions=False)
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert set(error) == SHAPE and error["code"] == "usage"
    assert error["field"] == "--no-such-option" and " ".join(path) in error["remedy"]


def test_a_folder_without_a_required_column_names_it(command, tmp_path):
    files = tmp_path / "files"
    assert command("generate", str(files), "--patients", "40").returncode == 0
    professionals = pd.read_csv(files / "hcp_profiles.csv", dtype=str)
    professionals.drop(columns="hcp_id").to_csv(files / "hcp_profiles.csv", index=False)
    for more in ((), ("--dry-run",)):
        done = command("load", "--from", str(files), *more, "--json")
        assert done.returncode == 3, done.stderr
        told = json.loads(done.stdout)
        error = told["error"]
        assert not told["success"] and error["code"] == "input"
        assert error["file"] == str(files / "hcp_profiles.csv") and error["field"] == "hcp_id"
        assert "rename" in error["remedy"] and error["message"] in done.stderr


def test_each_problem_of_a_folder_has_its_file_and_its_remedy(command, tmp_path):
    events = pd.DataFrame({"outcome_event_id": ["O1"], "patient_id": ["P1"]})
    pyreadstat.write_xport(cast("Any", events), tmp_path / "outcome_events.xpt")
    cut = (tmp_path / "outcome_events.xpt").read_bytes()[:-80]
    paths = "path_id,discovery_date,causal_chain\n"
    pd.DataFrame(columns=paths.strip().split(",")).to_parquet(tmp_path / "causal_paths_2.parquet")
    for name, content in {
        "hcp_profiles.csv": "hcp_id\nH1\n".encode("utf-16"),
        "patient_journeys.csv": b"",
        "treatment_events.csv": b"patient_id,patient_id\nP1,P1\n",
        "engagement_events.txt": b"engagement_event_id,hcp_id,engagement_date\n",
        "causal_paths.csv": paths.encode(),
        "outcome_events.xpt": cut,
    }.items():
        (tmp_path / name).write_bytes(content)
    done = command("load", "--from", str(tmp_path), "--dry-run", "--json")
    assert done.returncode == 3, done.stderr
    error = json.loads(done.stdout)["error"]
    told = {one["file"]: (one["field"], one["value"]) for one in error["problems"]}
    assert told == {
        str(tmp_path / "hcp_profiles.csv"): ("encoding", "utf-16"),
        str(tmp_path / "patient_journeys.csv"): (None, None),
        str(tmp_path / "treatment_events.csv"): ("patient_id", None),
        str(tmp_path / "engagement_events.txt"): ("separator", None),
        str(tmp_path): ("files", "causal_paths"),
        str(tmp_path / "outcome_events.xpt"): (None, None),
    }
    assert f"{len(error['problems'])} problems" in error["message"] and error["message"] in done.stderr
    for one in error["problems"]:
        assert set(one) == SHAPE and one["message"] in error["message"]
        assert one["remedy"] and one["message"].endswith(one["remedy"])


def test_a_table_below_the_threshold_says_so(command, tmp_path):
    files = tmp_path / "files"
    assert command("generate", str(files), "--patients", "40").returncode == 0
    professionals = pd.read_csv(files / "hcp_profiles.csv", dtype=str)
    professionals.assign(npi="1").to_csv(files / "hcp_profiles.csv", index=False)
    for more, code in ((("--dry-run",), 1), ((), 4)):
        done = command("load", "--from", str(files), *more, "--json")
        assert done.returncode == code, done.stderr
        told = json.loads(done.stdout)
        assert told["tables"]["hcp_profiles"]["status"] == "failed"
        assert set(told["error"]) - {"problems"} == SHAPE
        assert "hcp_profiles" in told["error"]["message"]


@pytest.fixture
def configuration(environment, tmp_path):
    return shutil.copytree(environment["E2I_CONFIG"], tmp_path / "config")


def test_the_file_of_a_named_scope_is_named_with_what_is_wrong_in_it(command, configuration):
    (configuration / "scopes" / "mine.yaml").write_text("title: Mine\nchort: x\n", encoding="utf-8")
    for arguments in (("plan",), ("run",), ("leakage-audit",), ("causal", "show"), ("causal", "estimate")):
        done = command(*arguments, "--scope", "mine", "--json", E2I_CONFIG=str(configuration))
        assert done.returncode == 2, done.stderr
        error = json.loads(done.stdout)["error"]
        assert error["file"].endswith("mine.yaml") and "chort" in error["message"]
        assert "Did you mean 'cohort'?" in error["message"]


def test_a_scope_whose_cohort_is_wrong_says_what_is_wrong_in_the_cohort(command, configuration):
    broken = configuration / "cohorts" / "fabhalta_pnh.yaml"
    broken.write_text(broken.read_text(encoding="utf-8").replace("brand:", "brnd:", 1), encoding="utf-8")
    done = command("plan", "--scope", "fabhalta_pnh_initiation", E2I_CONFIG=str(configuration))
    assert done.returncode == 2
    assert "fabhalta_pnh.yaml" in done.stderr and "brnd" in done.stderr


def test_a_broken_design_is_told_by_its_file(command, configuration):
    (configuration / "experiments" / "mine.yaml").write_text("titel: Mine\n", encoding="utf-8")
    done = command("experiment", "run", "mine", "--json", E2I_CONFIG=str(configuration))
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["file"].endswith("mine.yaml")


def test_a_broken_design_is_told_whatever_is_asked_of_it(command, configuration):
    (path,) = (configuration / "experiments").glob("*.yaml")
    design = yaml.safe_load(path.read_text(encoding="utf-8"))
    for arm, ratio in zip(design["arms"], (0.5, 0.6), strict=True):
        arm["ratio"] = ratio
    path.write_text(yaml.safe_dump(design, sort_keys=False), encoding="utf-8")
    for word in ("list", "show", "audit", "report", "heterogeneity"):
        rest = () if word == "list" else (path.stem,)
        more = ("--covariates", "age") if word == "heterogeneity" else ()
        done = command("experiment", word, *rest, *more, "--json", E2I_CONFIG=str(configuration))
        assert done.returncode == 2, f"{word}: {done.stderr}"
        error = json.loads(done.stdout)["error"]
        assert error["file"] == str(path) and "sum to 1.1" in error["message"], word
    # Beside a valid design the list goes on without it, and says so.
    other = shutil.copytree(CHECKOUT / "config", configuration.with_name("other"))
    (other / "experiments" / "mine.yaml").write_text("titel: Mine\n", encoding="utf-8")
    done = command("experiment", "list", "--json", E2I_CONFIG=str(other))
    assert done.returncode == 0 and [one["experiment"] for one in json.loads(done.stdout)["experiments"]] == [
        path.stem
    ]
    (left,) = json.loads(done.stdout)["left_out"]
    assert left["file"].endswith("mine.yaml") and "titel" in left["message"]
    assert "Left out: " in done.stderr and "mine.yaml" in done.stderr and "titel" in done.stderr
    for name, said in ((path.stem, "is not registered yet"), ("other", "Unknown experiment other.")):
        done = command("experiment", "show", name, "--json", E2I_CONFIG=str(other))
        assert done.returncode == 3 and said in json.loads(done.stdout)["error"]["message"]


def test_a_broken_cohort_is_told_whatever_is_asked_of_it(command, configuration):
    path = configuration / "cohorts" / "remibrutinib_csu.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("brand:", "brnd:", 1), encoding="utf-8")
    for arguments in (("diff", path.stem), ("explain", path.stem, "PAT1")):
        done = command(
            "cohort", *arguments, "--json", E2I_CONFIG=str(configuration), E2I_ALLOW_PATIENT_LEVEL="1"
        )
        assert done.returncode == 2, done.stderr
        error = json.loads(done.stdout)["error"]
        assert error["file"] == str(path) and error["field"] and "brnd" in error["message"]


def test_no_other_scope_answers_for_a_broken_default(command, configuration):
    (path,) = (
        one
        for one in (configuration / "scopes").glob("*.yaml")
        if "default: true" in one.read_text(encoding="utf-8")
    )
    path.write_text(f"bogus_key: 1\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    for arguments in (("plan",), ("run",), ("causal", "show"), ("leakage-audit",)):
        done = command(*arguments, "--json", E2I_CONFIG=str(configuration))
        assert done.returncode == 2, arguments
        error = json.loads(done.stdout)["error"]
        assert (error["file"], error["field"]) == (str(path), "bogus_key"), arguments
    told = command("plan", "--scope", "fabhalta_pnh_initiation", "--json", E2I_CONFIG=str(configuration))
    planned = json.loads(told.stdout)
    assert [(one["file"], one["needed"]) for one in planned["left_out"]] == [(str(path), False)]
    assert {"job": "scope_pipeline", "partitions": "fabhalta_pnh_initiation"} in planned["plan"]


@pytest.mark.parametrize("file", ["vocabulary.yaml", "algorithms.yaml", "expectations/triggers.yaml"])
def test_a_file_that_every_run_needs_stops_it_and_is_named_by_plan_and_status(command, configuration, file):
    path = configuration / file
    path.write_text(f"bogus_key: 1\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    told = command("plan", "--scope", "fabhalta_pnh_initiation", E2I_CONFIG=str(configuration))
    assert told.returncode == 0
    assert f"No run without it: {path}:1: bogus_key" in told.stderr
    done = command("run", "--scope", "fabhalta_pnh_initiation", "--json", E2I_CONFIG=str(configuration))
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert (error["file"], error["field"]) == (str(path), "bogus_key")
    (known,) = json.loads(command("status", "--json", E2I_CONFIG=str(configuration)).stdout)["configuration"]
    assert (known["file"], known["field"]) == (str(path), "bogus_key")


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_valid_scope_there_is_one_clear_error(command, configuration, broken):
    for path in (configuration / "scopes").glob("*.yaml"):
        if broken:
            path.write_text("title: [unclosed\n", encoding="utf-8")
        else:
            path.unlink()
    for arguments in (
        ("plan",),
        ("plan", "--scope", "all"),
        ("run",),
        ("causal", "show"),
        ("leakage-audit",),
    ):
        done = command(*arguments, E2I_CONFIG=str(configuration))
        assert done.returncode == 2, done.stderr
        assert ("not valid YAML" if broken else "no file of scopes") in done.stderr
    status = command("status", "--json", E2I_CONFIG=str(configuration))
    assert status.returncode == 0
    told = json.dumps(json.loads(status.stdout)["configuration"])
    assert ("not valid YAML" if broken else "no file of scopes") in told


def test_only_the_console_ends_a_command():
    """Whatever ends with another code than 0 goes through one door, which tells programs why."""
    ends = {
        f"{path.name}:{node.lineno}"
        for path in (*(CHECKOUT / "e2i_dagster/commands").glob("*.py"), CHECKOUT / "commands/cli.py")
        if path.name != "console.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("sys.exit", "exit", "os._exit", "SystemExit", "click.exceptions.Exit")
        and not ast.unparse(node).startswith("sys.exit(supervise(")
    }
    assert ends == set()


def leaking_file(tmp_path):
    path = tmp_path / "frame.csv"
    answer = [number % 3 == 0 for number in range(300)]
    rows = {
        "patient_id": [f"P{n}" for n in range(300)],
        "label": answer,
        "call": [7 if a else 3 for a in answer],
    }
    pd.DataFrame(rows).assign(label=lambda one: one["label"].astype(int)).to_csv(path, index=False)
    return ("leakage-audit", "--file", str(path)), 4, {"file": str(path), "field": "call"}


def folder_of_no_table(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "menu.csv").write_text("dish,price\nsoup,3\n", encoding="utf-8")
    return ("import", "check", str(folder)), 3, {"file": str(folder / "menu.csv"), "field": "files"}


def folder_with_a_stray_quote(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "hcp_profiles.csv").write_text('hcp_id,specialty\nHCP1,"open\nHCP2,x\n', encoding="utf-8")
    known = {"file": str(folder / "hcp_profiles.csv"), "field": "quote", "value": "line 2"}
    return ("load", "--from", str(folder), "--dry-run"), 3, known


def folder_without_a_required_column(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "hcp_profiles.csv").write_text("dish,price\nsoup,3\n", encoding="utf-8")
    known = {"file": str(folder / "hcp_profiles.csv"), "field": "hcp_id"}
    return ("import", "check", str(folder)), 3, known


def cohort_against_its_example(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (CHECKOUT / "config/cohorts/fabhalta_pnh.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("    expect: in\n", "    expect: pending\n", 1), encoding="utf-8")
    return ("cohort", "lint", str(path)), 4, {"code": "refused"}


def table_that_there_is_not(tmp_path):
    asked = ("gate", "waive", "nobody", "--rule", "dimension_validity", "--reason", "we know this delivery")
    return asked, 3, {"field": "table", "value": "nobody"}


def cohort_that_was_never_built(tmp_path):
    return ("cohort", "diff", "fabhalta_c3g"), 3, {"file": "fabhalta_c3g"}


def mapping_that_is_there(tmp_path):
    target = tmp_path / "mapping.yaml"
    target.write_text("{}\n", encoding="utf-8")
    asked = ("import", "check", str(tmp_path), "--write-mapping")
    return asked, 2, {"file": str(target), "field": "--write-mapping"}


NOT_DONE = (
    table_that_there_is_not,
    cohort_that_was_never_built,
    mapping_that_is_there,
    folder_with_a_stray_quote,
)


@pytest.mark.parametrize("case", NOT_DONE)
def test_what_a_refusal_knows_is_told_apart(case, command, tmp_path):
    arguments, code, known = case(tmp_path)
    done = command(*arguments, "--json")
    assert done.returncode == code, done.stderr
    error = json.loads(done.stdout)["error"]
    assert {name: error[name] for name in known} == known
    assert error["remedy"] and error["remedy"] in error["message"]


NO = (leaking_file, folder_of_no_table, folder_without_a_required_column, cohort_against_its_example)


@pytest.mark.parametrize("case", NO)
def test_an_answer_of_no_is_an_error_with_its_particulars(case, command, tmp_path):
    arguments, code, known = case(tmp_path)
    told, as_json = command(*arguments), command(*arguments, "--json")
    assert told.returncode == as_json.returncode == code, told.stderr
    answer = json.loads(as_json.stdout)
    error = answer["error"]
    assert answer["success"] is False and set(error) - {"problems"} == SHAPE
    assert {name: error[name] for name in known} == known and error["remedy"] in error["message"]
    assert f"Error: {error['message']}" in told.stderr and told.stdout.strip()


def test_a_delivery_that_the_gate_blocks_says_why(command, configuration, tmp_path):
    files = tmp_path / "files"
    assert command("generate", str(files), "--patients", "60").returncode == 0
    path = files / "patient_journeys.csv"
    sparse = pd.read_csv(path, dtype=str)
    empty = ("insurance_type", "gender", "age_group", "geographic_region")
    sparse.assign(**dict.fromkeys(empty, "")).to_csv(path, index=False)
    sources = configuration / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    delivered = re.sub(r"source:\n(  .*\n)+", f"source: {{kind: files, folder: {files}}}\n", text)
    sources.write_text(delivered, encoding="utf-8")
    for arguments in (("load", "--from", str(files)), ("run",)):
        done = command(*arguments, "--json", E2I_CONFIG=str(configuration))
        assert done.returncode == 4, done.stderr
        told = json.loads(done.stdout)
        error = told["error"]
        assert told["success"] is False and error["code"] == "refused", error
        assert "dimension_completeness" in error["message"]
        assert done.stderr.endswith(f"Error: {error['message']}\n")
        assert "Error: dagster" not in done.stderr and "DagsterAssetCheck" not in error["message"]
        problems = {one["file"]: one for one in error.get("problems", [error])}
        blocked = problems["patient_journeys"]
        assert blocked["field"] == "all" and blocked["value"] == "dimension_completeness"
        assert blocked["remedy"] in error["message"]
        assert "e2i gate waive patient_journeys --partition all --rule dimension_compl" in blocked["remedy"]
        assert set(blocked) == SHAPE and {**error, **blocked}.keys() - {"problems"} == SHAPE
    shown = command("gate", "show", "--json")
    assert shown.returncode == 4
    told = json.loads(shown.stdout)
    assert told["success"] is False and told["data_versions"]
    problems = {one["file"]: one for one in told["error"].get("problems", [told["error"]])}
    blocked = problems["patient_journeys"]
    assert "dimension_completeness" in blocked["value"] and "e2i gate waive" in blocked["remedy"]
    assert told["error"]["message"] in shown.stderr
