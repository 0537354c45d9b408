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
from e2i_dagster.policy_files.observed import ABSENT, ALL_KEYS, Keys, digest_of, plain, unobserved


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
            now = _now(path, of_file["model"], found.st_mtime_ns, found.st_size)
        except (OSError, ConfigError, ImportError, AttributeError):
            return f"{file} (cannot be read as it was)"
        for keys, noted in of_file["keys"].items():
            if now[keys] != noted:
                return f"{file}: {'.'.join(json.loads(keys)) or 'its content'}"
    return None


class _Now(dict[str, str]):
    """The digest of each value of a file, by its keys as a record has them; made when it is first asked for.

    Many versions of a ledger are asked about the same values.
    """

    def __init__(self, value: Any) -> None:
        super().__init__()
        self._value = value

    def __missing__(self, keys: str) -> str:
        found = self[keys] = digest_of(_at(self._value, json.loads(keys)))
        return found


@lru_cache(maxsize=256)
def _now(path: Path, model: str, modified: int, size: int) -> _Now:
    """The values of the file ``path``, or of a folder the names of its files."""
    if not model:
        return _Now(dict.fromkeys(sorted(file.stem for file in path.glob("*.yaml"))))
    kind = resolve_name(model)
    with unobserved():
        return _Now(plain(kind.from_yaml(path) if hasattr(kind, "from_yaml") else read_yaml(path, kind)))


def _at(value: Any, keys: Keys) -> Any:
    """The value at ``keys`` of JSON-like data, as :func:`note` was given it."""
    for key in keys:
        if key == ALL_KEYS:
            return list(value) if isinstance(value, dict) else ABSENT
        if not isinstance(value, dict) or key not in value:
            return ABSENT
        value = value[key]
    return value
