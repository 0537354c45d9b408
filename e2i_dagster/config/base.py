"""Reading one YAML file into one pydantic model, with errors that point at the line's key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from e2i_dagster.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class PolicyModel(BaseModel):
    """Base of every policy value: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """Content digest (SHA-256, 16 hex digits) over the canonical JSON of all fields."""
        return digest_of(self.model_dump(mode="json"))


def digest_of(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of the canonical JSON of ``value``."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Read ``path`` and validate it as ``model``.

    Raises:
        ConfigError: the file is missing, is not YAML, or a field is wrong; every wrong field is
            listed with its line, value and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: the file does not exist. Create it or set E2I_CONFIG.") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{path}:{_line_of(node, problem['loc'])}: "
            f"{'.'.join(str(part) for part in problem['loc']) or 'document'}: {problem['msg']}"
            + ("" if problem["type"] == "missing" else f" (found {_short(problem['input'])})")
            for problem in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(problems)) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest key of ``location`` that the YAML document has."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            item: yaml.Node = node.value[part]
            line, node = item.start_mark.line + 1, item
        else:
            break
    return line


def read_digest(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of a policy file's content, comments and order of keys aside."""
    return digest_of(yaml.safe_load(path.read_text(encoding="utf-8")))
