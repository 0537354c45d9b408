"""What is made again after a change of policy, mapping or code, and what is not."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pipeline_runs import materialized

from assets.execution import Produced
from assets.stage import stage_asset
from e2i_dagster.config.policy import PolicySummary
from e2i_dagster.config.sources import SourcesPolicy
from e2i_dagster.policy_files.environment import CHECKOUT, config_folder
from e2i_dagster.tables.vocabulary import load_vocabulary


@pytest.fixture
def corrected(tmp_path, monkeypatch):
    """Goes on with a copy of the configuration, in which a file says something else, as the next process does."""
    made = []

    def correct(file, *keys, value):
        folder = shutil.copytree(config_folder(), tmp_path / f"config{len(made)}")
        made.append(folder)
        document = yaml.safe_load((folder / file).read_text(encoding="utf-8"))
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / file).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        monkeypatch.setenv("E2I_CONFIG", str(folder))

    return correct


def states(pipeline):
    """The last state of each stage."""
    return {row["stage"]: row["state"] for row in pipeline.rows("SELECT stage, state FROM ml_stage_states")}


def profiles(pipeline):
    """How many professionals the warehouse and the lake have."""
    (row,) = pipeline.rows("SELECT count(*) AS n FROM hcp_profiles")
    return row["n"], len(pipeline.stored("hcp_profiles"))


def load(pipeline, folder, mapping=None):
    result = pipeline.load(folder, "hcp_profiles", checked=False, mapping=mapping)
    assert result.success
    return states(pipeline)["hcp_profiles"]


def test_a_value_that_is_added_to_the_vocabulary_is_loaded_by_the_next_load(
    pipeline, delivery, drawn, corrected
):
    given = drawn["hcp_profiles"].copy()
    given.loc[given.index[0], "practice_type"] = "village practice"
    folder = delivery(hcp_profiles=given)
    assert load(pipeline, folder) == "executed"
    assert profiles(pipeline) == (len(given) - 1, len(given) - 1)
    assert load(pipeline, folder) == "reused"

    listed = load_vocabulary().values("practice_type")
    corrected(
        "vocabulary.yaml", "vocabularies", "practice_type", "values", value=[*listed, "village practice"]
    )
    assert load(pipeline, folder) == "executed"
    assert profiles(pipeline) == (len(given), len(given))
    assert load(pipeline, folder) == "reused"


def test_a_mapping_that_is_corrected_at_its_place_is_loaded_by_the_next_load(
    pipeline, delivery, drawn, tmp_path
):
    given = drawn["hcp_profiles"].copy()
    given.loc[given.index[0], "practice_type"] = "HOSP"
    folder = delivery(hcp_profiles=given)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("tables:\n  hcp_profiles:\n    values: {practice_type: {CLINIC: community}}\n")
    assert load(pipeline, folder, mapping) == "executed"
    assert profiles(pipeline) == (len(given) - 1, len(given) - 1)
    mapping.write_text("# our codes\n" + mapping.read_text())
    assert load(pipeline, folder, mapping) == "reused", "a comment changes nothing"

    mapping.write_text("tables:\n  hcp_profiles:\n    values: {practice_type: {HOSP: hospital}}\n")
    assert load(pipeline, folder, mapping) == "executed"
    assert profiles(pipeline) == (len(given), len(given))


def reader(made, **kind):
    """A stage whose value is what a key of ``sources.yaml`` says, and which says when it runs."""

    @stage_asset(name="reader", group_name="test", gated=False, produces=SUMMARY, **kind)
    def reader() -> Produced:
        seed = SourcesPolicy.load(config_folder()).source.model_dump(include={"seed"})["seed"]
        made.append(seed)
        return Produced(summary(seed))

    return reader


SUMMARY = "e2i_dagster.config.policy:PolicySummary"


def summary(seed):
    return PolicySummary(cohorts={}, scopes={}, sources=str(seed), problems={})


@pytest.mark.parametrize(("kind", "runs"), [({"pure": True}, [42, 7]), ({}, [42, 7, 42])])
def test_a_value_that_is_taken_back_finds_the_older_version_unless_the_stage_does_more(
    pipeline, corrected, kind, runs
):
    made = []
    stage = reader(made, **kind)
    for seed in (42, 42, 7, 42, 42):
        corrected("sources.yaml", "source", "seed", value=seed)
        corrected("sources.yaml", "load_cron", value=f"0 {len(made)} * * *")
        assert materialized([stage], pipeline).success
        assert pipeline.defs.resources["lake"].load("reader", [None], type(summary(seed))).sources == str(
            seed
        )
    assert made == runs


def placed(made, seed, **kind):
    """An address that depends on a seed, and a stage that works at it on rows that do not."""

    @stage_asset(name="address", group_name="test", gated=False, produces=SUMMARY, always=True)
    def address() -> Produced:
        return Produced(summary(seed))

    @stage_asset(name="rows", group_name="test", gated=False, produces=SUMMARY)
    def rows() -> Produced:
        return Produced(summary(0))

    @stage_asset(name="scored", group_name="test", gated=False, produces=SUMMARY, outside=True, **kind)
    def scored(address: PolicySummary, rows: PolicySummary) -> Produced:
        made.append(address.sources)
        return Produced(rows)

    return [address, rows, scored]


@pytest.mark.parametrize(("kind", "runs"), [({"where": ["address"]}, ["1"]), ({}, ["1", "2"])])
def test_work_is_not_done_again_because_it_would_be_done_elsewhere(pipeline, kind, runs):
    made = []
    for seed in (1, 1, 2):
        assert materialized(placed(made, seed, **kind), pipeline).success
    assert made == runs


#: Prints the code version of every stage after each change of the files that its arguments name, one line each.
CODE_VERSIONS = """
import importlib, json, sys
from pathlib import Path
import dagster as dg
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.pipeline.code import source_code
import e2i_dagster.definitions

def show():
    source_code.cache_clear()
    found = {}
    for path in sorted((CHECKOUT / "assets").glob("*.py")):
        if path.stem not in ("__init__", "execution", "partitions", "stage", "values"):
            module = importlib.reload(importlib.import_module(f"assets.{path.stem}"))
            for value in vars(module).values():
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, dg.AssetsDefinition):
                        found |= {"/".join(key.path): code for key, code in one.code_versions_by_key.items()}
    print(json.dumps(found))

show()
for name in sys.argv[1:]:
    path = CHECKOUT / name
    text = path.read_text()
    path.write_text(text + "\\n_added = 1\\n")
    show()
    path.write_text(text)
"""

#: A module, and the stages that reach it.
REACHED = {
    "e2i_dagster/monitoring/drift.py": {"drift_report", "performance_report", "reference_profile"},
    "e2i_dagster/serving/service.py": {"bento"},
    "e2i_dagster/causal/refute.py": {
        "causal_estimates", "effect_heterogeneity", "effect_model", "effect_bento", "effect_deployment",
    },
    "commands/launch.py": set(),
    "e2i_dagster/cohorts/lint.py": set(),
    "jobs/sequence.py": set(),
}  # fmt: skip


class OtherWords(ast.NodeTransformer):
    """Gives everything that may have a docstring another one."""

    def visit(self, node):
        self.generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            node.body.insert(0, ast.Expr(ast.Constant("Other words.")))
        return node


def code_versions(folder, *changed):
    """The code version of every stage of the code in ``folder``, as it is and after each change."""
    done = subprocess.run(
        [sys.executable, "-c", CODE_VERSIONS, *changed],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A copy of the code, whose every comment, docstring and line break is another."""
    folder = tmp_path_factory.mktemp("code")
    for package in ("e2i_dagster", "assets", "commands", "resources", "jobs", "sensors", "config"):
        shutil.copytree(CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("e2i_dagster", "assets", "resources"):
        for path in (folder / package).rglob("*.py"):
            tree = OtherWords().visit(ast.parse(path.read_text(encoding="utf-8")))
            path.write_text(f"# Another comment.\n{ast.unparse(tree)}\n", encoding="utf-8")
    return folder


def test_words_and_layout_are_no_code_and_a_change_counts_for_whoever_reaches_it(copied):
    from e2i_dagster.definitions import defs

    specs = defs.resolve_all_asset_specs()
    original = {"/".join(spec.key.path): spec.code_version for spec in specs if spec.code_version}
    as_it_is, *after = code_versions(copied, *REACHED)
    assert as_it_is == original and len(original) > 50
    found = {
        name: {stage for stage in as_it_is if changed[stage] != as_it_is[stage]}
        for name, changed in zip(REACHED, after, strict=True)
    }
    assert found == REACHED
