"""``python -m commands.reference``: writes the pages of docs/reference from the code, or says which are out of date.

The pages are made of what the code itself uses: the commands as click knows them, the models that policy files are read
into, and the routes of a service. ``tests/conventions/test_reference.py`` says when they are out of date.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from e2i_dagster.policy_files.environment import CHECKOUT

FOLDER = CHECKOUT / "docs" / "reference"
_WRITTEN = "Written by `python -m commands.reference` from the code; changes by hand are lost."


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    return {
        "commands.md": commands_page(),
        "configuration.md": configuration_page(),
        "endpoints.md": endpoints_page(),
    }


# --- commands


def commands_page() -> str:
    """Every command with its arguments and options."""
    from commands.cli import main

    parts = ["# Commands", _WRITTEN]
    for path, command in _commands(main, ("e2i",)):
        parts.append(f"## {' '.join(path)}")
        parts.append("`" + _usage(path, command) + "`")
        parts.append(_paragraphs(command.help or ""))
        rows = [_option_row(option) for option in command.params if isinstance(option, click.Option)]
        if rows:
            parts.append(_table(("option", "value", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _usage(path: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(path))
    return " ".join([" ".join(path), *command.collect_usage_pieces(context)])


def _option_row(option: click.Option) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    kind = "" if option.is_flag else _option_type(option)
    default = option.default
    shown = "" if option.is_flag or _is_unset(default) or callable(default) else f"`{default}`"
    return names, kind, "required" if option.required else shown, option.help or ""


def _is_unset(default: Any) -> bool:
    return default is None or "UNSET" in repr(default)


def _option_type(option: click.Option) -> str:
    kind = option.type
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        words = "whole number" if isinstance(kind, click.IntRange) else "number"
        low = "" if kind.min is None else f" {'above' if kind.min_open else 'from'} {kind.min:g}"
        high = "" if kind.max is None else f" {'below' if kind.max_open else 'to'} {kind.max:g}"
        return words + low + high
    return {"integer": "whole number", "float": "number", "path": "path", "text": "text"}.get(
        kind.name, kind.name
    )


# --- configuration


def policy_models() -> list[tuple[str, type[BaseModel]]]:
    """Each policy file (or pattern of files) with the model that it is read into."""
    from e2i_dagster.config.alerts import AlertsPolicy
    from e2i_dagster.config.algorithms import AlgorithmsPolicy
    from e2i_dagster.config.causal import CausalPolicy
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.drift_monitoring import DriftPolicy
    from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
    from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
    from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
    from e2i_dagster.config.mapping import ImportMapping
    from e2i_dagster.config.optuna_config import OptunaPolicy
    from e2i_dagster.config.quality import QualitySettings, Suite
    from e2i_dagster.config.registry import RegistryPolicy
    from e2i_dagster.config.scope import ScopeSpec
    from e2i_dagster.config.serving import ServingPolicy
    from e2i_dagster.config.sources import SourcesPolicy

    return [
        ("config/alerts.yaml", AlertsPolicy),
        ("config/algorithms.yaml", AlgorithmsPolicy),
        ("config/causal.yaml", CausalPolicy),
        ("config/cohorts/*.yaml", CohortDefinition),
        ("config/drift_monitoring.yaml", DriftPolicy),
        ("config/experiment_lifecycle.yaml", LifecyclePolicy),
        ("config/experiments/*.yaml", ExperimentSpec),
        ("config/feast_materialization.yaml", FeastMaterializationPolicy),
        ("config/feature_selection.yaml", FeatureSelectionPolicy),
        ("config/optuna_config.yaml", OptunaPolicy),
        ("config/quality.yaml", QualitySettings),
        ("config/expectations/*.yaml", Suite),
        ("config/registry.yaml", RegistryPolicy),
        ("config/scopes/*.yaml", ScopeSpec),
        ("config/serving.yaml", ServingPolicy),
        ("config/sources.yaml", SourcesPolicy),
        ("a mapping file (`--mapping`)", ImportMapping),
    ]


def configuration_page() -> str:
    """Every key of every policy file with type, default and meaning."""
    parts = [
        "# Configuration",
        _WRITTEN,
        "Keys are nested as their names say: `request.max_batch` is `max_batch` below `request`; `<name>` stands for a "
        "name of yours, `[]` for each entry of a list. A key without default has to be there. Keys that hang in "
        "several places are listed at the first one. Where there is no meaning, the name and the key above say it.",
    ]
    for file, model in policy_models():
        parts.append(f"## {file}")
        parts.append(_paragraphs(_prose(model)))
        rows = list(_keys(model, "", _comments(file), {model: ""}))
        parts.append(_table(("key", "type", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _keys(
    model: type[BaseModel], prefix: str, comments: Mapping[str, str], listed: dict[type, str]
) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the keys of ``model``; ``listed`` has the models whose keys were listed, and where."""
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        meaning = meanings.get(name) or field.description or comments.get(_plain(key), "")
        inner = list(_models_in(field.annotation))
        if not meaning and len(inner) == 1:
            meaning = _first_sentence(_prose(inner[0][1]))
        before = [listed[nested] for _, nested in inner if nested in listed]
        as_of = f"; keys as of {', '.join(f'`{place}`' for place in dict.fromkeys(before) if place)}"
        words = _type_words(field.annotation) + _bounds(field) + (as_of if any(before) else "")
        yield f"`{key}`", words, _default(field), meaning
        for suffix, nested in inner:
            if nested not in listed:
                listed[nested] = f"{key}{suffix}"
                yield from _keys(nested, f"{key}{suffix}.", comments, listed)


def _plain(key: str) -> str:
    """The key without the parts that stand for names and entries."""
    return re.sub(r"\.<name>|\[\]", "", key)


def _models_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Models inside a type, each with how its keys hang below the key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        yield from _models_in(arguments[0])
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _models_in(argument)
    elif origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        for suffix, model in _models_in(arguments[1]):
            yield f".<name>{suffix}", model
    elif isinstance(origin, type) and issubclass(origin, tuple | list | frozenset | set):
        for argument in arguments:
            if argument is not ...:
                for suffix, model in _models_in(argument):
                    yield f"[]{suffix}", model


_NAMES = {
    "str": "text", "int": "whole number", "float": "number", "bool": "true or false", "date": "date",
    "datetime": "time", "Path": "path", "Any": "anything", "time": "time of day", "NoneType": "null",
}  # fmt: skip


def _type_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        words = _type_words(arguments[0])
    elif origin is Literal:
        words = ", ".join(f"`{value}`" for value in arguments)
    elif origin in (Union, types.UnionType):
        words = " or ".join(dict.fromkeys(_type_words(argument) for argument in arguments))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        words = f"names with {_type_words(arguments[1])}"
    elif isinstance(origin, type) and issubclass(origin, tuple | list | frozenset | set):
        words = "list of " + ", ".join(_type_words(argument) for argument in arguments if argument is not ...)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        words = "keys below"
    else:
        name = getattr(annotation, "__name__", str(annotation))
        words = _NAMES.get(name, name)
    return words


def _bounds(field: FieldInfo) -> str:
    words = {
        "ge": "from",
        "gt": "above",
        "le": "to",
        "lt": "below",
        "min_length": "at least",
        "pattern": "like",
    }
    found = []
    for mark in field.metadata:
        for name, word in words.items():
            value = getattr(mark, name, None)
            if value is not None:
                shown = f"`{value}`" if name == "pattern" else value
                found.append(f"{word} {shown}" + (" long" if name == "min_length" else ""))
    return f" ({', '.join(found)})" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "as the keys below"
    if value is None:
        return "null"
    if isinstance(value, tuple | list | set | frozenset | dict | str) and not value:
        return "empty"
    if isinstance(value, set | frozenset):
        value = tuple(sorted(value))
    parts = (
        value
        if isinstance(value, tuple | list)
        else (str(value).lower() if isinstance(value, bool) else value,)
    )
    return ", ".join(f"`{part}`" for part in parts)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a model and of its bases say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (isinstance(base, type) and issubclass(base, BaseModel)) or base is BaseModel:
            continue
        found |= _listed(base.__doc__ or "")
        found |= _beside(base)
    return found


def _listed(docstring: str) -> dict[str, str]:
    """Entries of the sections Attributes and Args; an entry may name several fields."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(docstring)
    for section in re.findall(r"^(?:Attributes|Args):\n((?:[ ]{4}.*\n?|\n)+)", text, re.MULTILINE):
        for entry in re.split(r"\n(?=\S)|(?<=\.) (?=[a-z_]+: )", textwrap.dedent(section).strip()):
            names, colon, meaning = entry.partition(": ")
            if colon:
                for name in re.split(r",\s*|\s+and\s+", names):
                    found[name.strip()] = " ".join(meaning.split())
    return found


def _beside(model: type[BaseModel]) -> dict[str, str]:
    """Texts below fields."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _comments(file: str) -> dict[str, str]:
    """Dotted key of a shipped policy file -> the comment beside it or right above it."""
    path = CHECKOUT / file
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    together, at = "", -1
    for line in path.read_text(encoding="utf-8").splitlines():
        if (comment := re.match(r"\s*# ?(.*)", line)) is not None:
            above.append(comment[1])
            continue
        key = re.match(r"(\s*)(?:- )?([A-Za-z_][\w ]*):", line)
        if key is None:
            above, at = [], -1
            continue
        indent = len(key[1])
        stack = [entry for entry in stack if entry[0] < indent]
        dotted = ".".join([*(name for _, name in stack), key[2]])
        stack.append((indent, key[2]))
        beside = re.search(r"\s# (.*)$", line)
        said = beside[1] if beside else " ".join(above)
        if not said and indent == at:
            # One comment stands above keys that belong together.
            said = together
        if said:
            found.setdefault(dotted, said)
        together, at, above = ("" if beside else said), indent, []
    return found


# --- endpoints


def endpoints_page() -> str:
    """The routes of a service, as its own schema describes them."""
    from e2i_dagster.config.serving import ServingPolicy
    from e2i_dagster.serving.release import Manifest
    from e2i_dagster.serving.service import application

    # No release has no models; what the routes say does not depend on them.
    manifest = Manifest.model_construct(
        service="classification", models=(), libraries={}, policy=ServingPolicy.load(CHECKOUT / "config")
    )
    routes, _ = application(manifest, "reference")
    app: Any = routes._app
    parts = [
        "# Endpoints",
        _WRITTEN,
        "Every service has these routes. The predictions of one model are below its name, too: `/MODEL/predict` and "
        "`/MODEL/predict_batch`. A living service shows them with the features of its models at `/docs`; "
        "[serving](../serving.md) has examples.",
    ]
    for route in app.routes:
        if not getattr(route, "include_in_schema", False) or not hasattr(route, "responses"):
            continue
        parts.append(f"## {', '.join(sorted(route.methods))} {route.path}")
        parts.append(f"{route.summary}.")
        parameters = [
            (f"`{given['name']}`", given["in"], given.get("description", ""))
            for given in (route.openapi_extra or {}).get("parameters", ())
        ]
        if parameters:
            parts.append(_table(("parameter", "in", "meaning"), parameters))
        answers = {
            "200": "Answered.",
            **{str(code): said["description"] for code, said in route.responses.items()},
        }
        parts.append(_table(("status", "meaning"), sorted(answers.items())))
    return "\n\n".join(parts) + "\n"


# --- text


def _prose(model: type) -> str:
    """The docstring without its sections."""
    text = inspect.cleandoc(model.__doc__ or "") if "__doc__" in vars(model) else ""
    return re.split(r"^(?:Attributes|Args|Raises|Returns):$", text, flags=re.MULTILINE)[0].strip()


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()))[0]


def _paragraphs(text: str) -> str:
    cleaned = re.sub(r":(?:class|func|meth|mod):`~?(?:[\w.]*\.)?([\w]+)`", r"`\1`", text.replace("\b\n", ""))
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", cleaned.replace("``", "`")))


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [
        f"| {' | '.join(_paragraphs(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
