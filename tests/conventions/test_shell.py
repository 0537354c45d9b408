"""The shell stays thin: bodies of assets are short sentences; the asset graph changes only on purpose."""

import ast

import pytest

from e2i_dagster.config.environment import CHECKOUT

#: The two modules of assets/ that hold no assets.
MACHINERY = {"stage.py", "partitions.py", "__init__.py"}
ASSET_MODULES = sorted(path for path in (CHECKOUT / "assets").glob("*.py") if path.name not in MACHINERY)
MOST_STATEMENTS = 14


def bodies(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "stage_asset" in ast.unparse(decorator) or "asset_check" in ast.unparse(decorator)
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


def test_asset_graph_snapshot(tmp_path):
    """One line per asset and check. When a change is intended, write the printed text into the file."""
    from e2i_dagster.definitions import graph_lines

    expected = (CHECKOUT / "tests/conventions/asset_graph.txt").read_text(encoding="utf-8")
    actual = "\n".join(graph_lines()) + "\n"
    assert actual == expected, (
        f"The asset graph changed. tests/conventions/asset_graph.txt should be:\n{actual}"
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
