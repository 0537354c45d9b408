"""The reference pages are what the code says now, and name every command, key and route."""

import click
import pytest

from commands import reference

PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name):
    stored = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert stored == PAGES[name], "write the pages again: python -m commands.reference"


def test_every_command_and_option_is_listed():
    from commands.cli import main

    for command in main.commands.values():
        for inner in command.commands.values() if isinstance(command, click.Group) else [command]:
            if not command.hidden:
                for option in inner.params:
                    if isinstance(option, click.Option):
                        assert f"`{option.opts[0]}`" in PAGES["commands.md"]


def test_known_keys_have_type_default_and_meaning():
    page = PAGES["configuration.md"]
    (row,) = [line for line in page.splitlines() if line.startswith("| `request.max_batch` |")]
    assert (
        row
        == "| `request.max_batch` | whole number (from 1) |  | Rows of one batch (prior platform's value). |"
    )
    assert "| `request.max_explained` | whole number (from 0) | `0` | rows of one request" in page
    assert "`digest_lists` | whole number (from 1) |  | When the digest of the warnings is made" in page


def test_every_key_of_the_shipped_files_is_listed():
    import re

    import yaml

    from e2i_dagster.policy_files.environment import CHECKOUT

    def names(value):
        if isinstance(value, dict):
            return {str(key) for key in value} | {name for inner in value.values() for name in names(inner)}
        return {name for inner in value for name in names(inner)} if isinstance(value, list) else set()

    page = PAGES["configuration.md"]
    for file, model in reference.policy_models():
        path = CHECKOUT / file
        if path.is_file():
            section = page.split(f"## {file}\n")[1].split("\n## ")[0]
            listed = set(re.findall(r"[\w]+", " ".join(re.findall(r"^\| `([^`]+)`", section, re.MULTILINE))))
            top = set(yaml.safe_load(path.read_text(encoding="utf-8")))
            assert top <= listed, f"{file}: {top - listed}"
            assert names(model.model_json_schema().get("properties", {}).keys()) <= listed


def test_the_routes_of_a_service_are_listed():
    page = PAGES["endpoints.md"]
    for route in ("POST /predict", "POST /predict_batch", "GET /health", "GET /models"):
        assert f"## {route}\n" in page
    assert "| 413 | Too many rows, or too large a body. |" in page
