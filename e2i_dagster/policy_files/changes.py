"""Whether the policy files still have the values that were noted when something was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import read_yaml
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.policy_files.observed import ABSENT, ALL_KEYS, Keys, digest, plain, unobserved


def changed(record: Mapping[str, Mapping[str, Any]], folder: Path | None = None) -> str | None:
    """The first value of ``record`` (:meth:`.observed.Readings.to_record`) that the files of ``folder`` no longer have.

    Returns:
        File and key in words, or None when every value is as it was.
    """
    folder = folder or config_folder()
    for file, of_file in record.items():
        path = folder / file
        try:
            found = path.stat()
            value = _read(path, of_file["model"], found.st_mtime_ns, found.st_size)
        except (OSError, ConfigError, ImportError, AttributeError):
            return f"{file} (cannot be read as it was)"
        for keys, noted in of_file["keys"].items():
            where = json.loads(keys)
            if digest(_at(value, where)) != noted:
                return f"{file}: {'.'.join(where) or 'its content'}"
    return None


@lru_cache(maxsize=256)
def _read(path: Path, model: str, modified: int, size: int) -> Any:
    """The file ``path`` as JSON-like data, or of a folder the names of its files."""
    if not model:
        return dict.fromkeys(sorted(one.stem for one in path.glob("*.yaml")))
    kind = resolve_name(model)
    with unobserved():
        return plain(kind.from_yaml(path) if hasattr(kind, "from_yaml") else read_yaml(path, kind))


def _at(value: Any, keys: Keys) -> Any:
    """The value at ``keys`` of JSON-like data, as :func:`note` was given it."""
    for key in keys:
        if key == ALL_KEYS:
            return list(value) if isinstance(value, dict) else ABSENT
        if not isinstance(value, dict) or key not in value:
            return ABSENT
        value = value[key]
    return value
