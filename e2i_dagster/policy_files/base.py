"""Reading one YAML file into one pydantic model, with errors that point at the line's key."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files import observed
from e2i_dagster.policy_files.observed import digest_of

Model = TypeVar("Model", bound=BaseModel)


class RemediedError(ValueError):
    """What a validator says of a value, with what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


#: Keys on the way to a wrong place of a file, and what is wrong there.
Place = tuple[tuple[int | str, ...], str]

#: More places of one key are not listed.
_MOST_PLACES = 3

#: libyaml where PyYAML was built with it, which is many times as fast.
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class PolicyModel(BaseModel, observed.Observed):  # noqa: PLW1641 - pydantic hashes frozen models
    """Base of every policy value: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if observed.is_recording() and name in type(self).model_fields:
            observed.read_field(self, name, value)
        return value

    @model_serializer(mode="wrap")
    def _noted(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo):
        """Whoever serializes the model, alone or inside of another one, reads it, or of it what was asked for."""
        observed.read_fields(self, info.include, info.exclude)
        return dump(self)

    def __eq__(self, other: object) -> bool:
        for layer in (self, other):
            if isinstance(layer, PolicyModel):
                observed.read_fields(layer)
        return super().__eq__(other)

    def model_copy(self, **settings: Any) -> Self:
        """As pydantic's; a copy with other values is no longer what stands in a file, and was made of the rest."""
        copied = super().model_copy(**settings)
        if settings.get("update"):
            observed.read_fields(self, exclude=set(settings["update"]))
            vars(copied).pop(observed.PLACE, None)
        return copied

    def digest(self) -> str:
        """Content digest (SHA-256, 16 hex digits) over the canonical JSON of all fields."""
        return digest_of(self.model_dump(mode="json"))


def read_yaml(
    path: Path,
    model: type[Model],
    check: Callable[[Model], Iterable[Place]] | None = None,
    *,
    checks_apart: bool = False,
) -> Model:
    """Read ``path`` and validate it as ``model``.

    Args:
        check: what else is wrong with the value: keys on the way to each place, and a message. The model's
            validators know by the context ``placed`` that they need not say it without a place.
        checks_apart: what ``check`` says of one place does not hang on other places, so that it is asked of what is
            left without the wrong fields, too.

    Raises:
        ConfigError: the file is missing, is not YAML, or a field is wrong; every wrong field is
            listed with its line, value and what was expected (``parts``).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "Create it or set E2I_CONFIG."
        raise ConfigError(f"{path}: the file does not exist. {remedy}", file=path, remedy=remedy) from None
    except UnicodeDecodeError:
        remedy = "Save it as UTF-8."
        raise ConfigError(f"{path}: the file is not UTF-8 text. {remedy}", file=path, remedy=remedy) from None
    try:
        node, document = _parsed(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        said = f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})."
        raise ConfigError(said, file=path) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level.", file=path)
    try:
        value = model.model_validate(document, context={"placed": check is not None})
    except ValidationError as error:
        problems = []
        for problem in _own(model, error.errors(include_url=False)):
            missing = problem["type"] == "missing"
            found = {} if missing else {"value": _short(problem["input"])}
            said = problem["msg"].removeprefix("Value error, ") + (
                f" (found {found['value']})" if found else ""
            )
            remedy = _remedy(model, problem)
            problems.append(_problem(path, node, problem["loc"], said, remedy, missing=missing, **found))
        if check is not None and checks_apart:
            rest = _without(document, [problem["loc"] for problem in error.errors(include_url=False)])
            # What is left may lack what every such file has; of that nothing more can be said.
            with suppress(ValidationError):
                left = model.model_validate(rest, context={"placed": True})
                problems += [_problem(path, node, *problem) for problem in check(left)]
        raise ConfigError.joined(problems) from None
    problems = [_problem(path, node, *problem) for problem in check(value)] if check else []
    if problems:
        raise ConfigError.joined(problems)
    observed.note_file(path, model, value)
    return value


def _problem(
    path: Path,
    node: yaml.Node | None,
    location: tuple[int | str, ...],
    message: str,
    remedy: str = "",
    *,
    missing: bool = False,
    value: str | None = None,
) -> ConfigError:
    """One wrong place of a file, with its line and key."""
    line, keys = _placed(node, location, missing=missing)
    field = ".".join(keys) or "document"
    text = f"{path}:{line}: {field}: {message}" + (f". {remedy}" if remedy else "")
    return ConfigError(text, file=path, field=field, value=value, remedy=remedy or None)


def _parsed(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a YAML text, which know their lines, and its value, from one parse."""
    loader = YAML_LOADER(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _own(model: type[BaseModel], problems: Sequence[Any]) -> Iterator[Any]:
    """Problems without those that others bring about: a list too short for its wrong items alone, a key misspelt."""
    # The remedy of a key that there is not, at its place.
    meant = {
        (*problem["loc"][:-1], _remedy(model, problem))
        for problem in problems
        if problem["type"] == "extra_forbidden"
    }
    for problem in problems:
        place = problem["loc"]
        if problem["type"] == "missing" and (*place[:-1], f"Did you mean {place[-1]!r}?") in meant:
            continue
        within = any(problem["loc"][: len(place)] == place != problem["loc"] for problem in problems)
        if problem["type"] != "too_short" or not within:
            yield problem


def _without(document: Any, locations: Iterable[tuple[int | str, ...]]) -> Any:
    """The document without the deepest key that it has of each location."""
    rest = deepcopy(document)
    for location in locations:
        way: list[tuple[dict[Any, Any], int | str]] = []
        inner = rest
        for key in location:
            if not isinstance(inner, dict) or key not in inner:
                break
            way.append((inner, key))
            inner = inner[key]
        if way:
            holder, last = way[-1]
            del holder[last]
    return rest


def _remedy(model: type[BaseModel], problem: Any) -> str:
    """What a key or a word that there is not was meant to be, and what a validator says; empty where nobody knows."""
    if problem["type"] == "extra_forbidden":
        return _nearest_key(model, problem)
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        return did_you_mean(problem["input"], re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    error = problem.get("ctx", {}).get("error")
    return error.remedy if isinstance(error, RemediedError) else ""


def _nearest_key(model: type[BaseModel], problem: Any) -> str:
    """Where a key belongs that the file's models have, but not there; else the nearest of their keys.

    Nothing for a key that another form of the same thing has: it is at its place, and does not go with the others.
    """
    *way, name = map(str, problem["loc"])
    places = _places_of(model)
    if name not in places:
        return did_you_mean(name, places)
    if any(place and place[-1] in way for place in places[name]):
        return ""
    described = [f"under {'.'.join(place)}" if place else "at the top of the file" for place in places[name]]
    return f"{name!r} belongs {' or '.join(described[:_MOST_PLACES])}."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'?`` for the nearest of the ``known`` names; empty when none is near."""
    near = get_close_matches(name, sorted(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _places_of(model: type[BaseModel]) -> dict[str, list[tuple[str, ...]]]:
    """Each key of a model and of the models in its fields, as written, and the keys under which it may stand."""
    places: dict[str, list[tuple[str, ...]]] = {}
    left: list[tuple[Any, tuple[str, ...]]] = [(model, ())]
    seen: list[tuple[Any, tuple[str, ...]]] = []
    while left:
        kind, path = left.pop(0)
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            left += [(arg, path) for arg in get_args(kind)]
            continue
        if any(kind is other and path[: len(known)] == known for other, known in seen):
            continue  # a model within itself, as a group of criteria
        seen.append((kind, path))
        keys = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
        for key in (*keys, *getattr(kind, "written_keys", ())):
            if path not in places.setdefault(key, []):
                places[key].append(path)
        left += [(inner, (*path, key)) for key, inner in keys.items()]
    return places


def _short(value: Any) -> str:
    text = value.isoformat() if isinstance(value, dt.date) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _placed(
    node: yaml.Node | None, location: tuple[int | str, ...], *, missing: bool
) -> tuple[int, list[str]]:
    """Line (from 1) of the deepest key of ``location`` that the document has, and the keys on the way.

    A location also names the form in which a value was read, which is no key of the document.
    """
    line, keys = 1 if node is None else node.start_mark.line + 1, []
    for place, part in enumerate(location):
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if pair is not None:
                line, found = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = node.value[part].start_mark.line + 1
        if found is not None:
            node = found
        if found is not None or (missing and place == len(location) - 1):
            keys.append(str(part))
    return line, keys


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest key of ``location`` that the document has."""
    return _placed(node, location, missing=False)[0]


def unknown(
    location: Sequence[int | str], named: str | Iterable[str] | None, known: Sequence[str], what: str
) -> Iterator[Place]:
    """A place and a message for each of the ``named`` that is not ``known``; a lone name is its own place."""
    given = [(tuple(location), named)] if isinstance(named, str) else []
    if named is not None and not isinstance(named, str):
        given = [((*location, number), name) for number, name in enumerate(named)]
    for place, name in given:
        if name not in known:
            near = did_you_mean(name, known)
            listed = ", ".join(known) or "none"
            yield place, f"there is no {what} {name!r}. {near + ' ' if near else ''}Known: {listed}."
