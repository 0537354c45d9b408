"""The shell stays thin: bodies of assets are short sentences; the asset graph changes only on purpose."""

import ast
import inspect
import re

import dagster as dg
import pandas as pd
import pytest
from pydantic import BaseModel

from e2i_dagster.policy_files.environment import CHECKOUT

#: The modules of assets/ that hold no assets.
MACHINERY = {"__init__.py", "execution.py", "metadata.py", "partitions.py", "stage.py", "values.py"}
ASSET_MODULES = sorted(path for path in (CHECKOUT / "assets").glob("*.py") if path.name not in MACHINERY)
DECORATORS = {"stage_asset", "scope_asset", "dg.asset_check"}
MOST_STATEMENTS = 14


def bodies(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in DECORATORS
            for decorator in node.decorator_list
        ):
            yield node


@pytest.mark.parametrize("path", ASSET_MODULES, ids=lambda path: path.name)
def test_bodies_are_short_and_plain(path):
    for body in bodies(path):
        statements = [node for node in ast.walk(body) if isinstance(node, ast.stmt)][1:]
        where = f"{path.name}: {body.name}"
        assert len(statements) <= MOST_STATEMENTS, (
            f"{where} has {len(statements)} statements; move work into the core"
        )
        for node in ast.walk(body):
            assert not isinstance(node, (ast.For, ast.While, ast.Try)), (
                f"{where}: loops and try blocks belong into the core"
            )
        assert "os.environ" not in ast.unparse(body), f"{where}: the environment is read by resources"


def body_of(definition):
    return inspect.unwrap(definition.op.compute_fn.decorated_fn)


def test_every_body_is_looked_at():
    from e2i_dagster.definitions import defs

    defined = {body_of(one).__name__ for one in [*(defs.assets or []), *(defs.asset_checks or [])]}
    assert defined == {body.name for path in ASSET_MODULES for body in bodies(path)}


def test_every_declared_type_is_a_document():
    from e2i_dagster.definitions import defs
    from resources.lake import document_type

    declared = [document_type(spec.metadata) for spec in defs.resolve_all_asset_specs()]
    documents = [one for one in declared if one is not None]
    assert len(documents) > 30 and all(issubclass(one, BaseModel) for one in documents)


def test_what_a_body_reads_is_what_its_input_declares():
    """A value is read as its producer declares it, and compared with the annotation of the reader."""
    from e2i_dagster.definitions import defs
    from resources.lake import document_type

    nodes = defs.resolve_asset_graph()
    compared = 0
    for definition in [*(defs.assets or []), *(defs.asset_checks or [])]:
        for declared in definition.op.input_defs:
            if declared.dagster_type.is_nothing:
                continue
            key = definition.keys_by_input_name[declared.name]
            document = document_type(nodes.get(key).metadata) or pd.DataFrame
            where = f"{definition.op.name}: {declared.name} is a {document.__name__}"
            assert declared.dagster_type.display_name == document.__name__, where
            assert dg.check_dagster_type(declared.dagster_type, document.__new__(document)).success, where
            compared += 1
    assert compared > 100


def test_types_of_values_are_the_classes_that_the_type_checker_sees():
    from assets import values

    tree = ast.parse((CHECKOUT / "assets" / "values.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: one.key for name, one in vars(values).items() if isinstance(one, dg.DagsterType)} == seen


def test_asset_graph_snapshot(tmp_path):
    """One line per asset and check. When a change is intended, write the printed text into the file."""
    from e2i_dagster.definitions import graph_lines

    expected = (CHECKOUT / "tests/conventions/asset_graph.txt").read_text(encoding="utf-8")
    actual = "\n".join(graph_lines()) + "\n"
    assert actual == expected, (
        f"The asset graph changed. tests/conventions/asset_graph.txt should be:\n{actual}"
    )


@pytest.mark.parametrize("package", ["e2i_dagster", "assets", "sensors"])
def test_tables_and_figures_are_drawn_in_one_place(package):
    """Whoever shows something makes a Table, a Figure or Words; no other text has the marks of Markdown or HTML."""
    markup = re.compile(r"\|\s*:?-{2,}|!\[|;base64,|<t[dr]\b|MetadataValue\.(md|table)\b")
    drawing = {"e2i_dagster/display.py", "e2i_dagster/reports/page.py", "assets/metadata.py"}
    for path in sorted((CHECKOUT / package).rglob("*.py")):
        found = markup.search(path.read_text(encoding="utf-8"))
        assert found is None or path.relative_to(CHECKOUT).as_posix() in drawing, (
            f"{path}: {found and found.group()!r}; make a value of e2i_dagster.display instead"
        )


def test_no_test_is_skipped_without_saying_why():
    for path in sorted((CHECKOUT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("skip", "xfail", "importorskip")
            ):
                assert node.args or node.keywords, f"{path}:{node.lineno}: say why"


def test_every_asset_says_what_it_is():
    from e2i_dagster.definitions import defs

    for spec in defs.resolve_all_asset_specs():
        assert spec.description, f"{spec.key}: no description"
        assert spec.group_name not in (None, "default"), f"{spec.key}: no group"
        assert spec.owners, f"{spec.key}: no owner"
