"""The Dagster instance of this machine: the one that ``make ui`` and ``dagster dev`` show."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.environment import CHECKOUT, state_folder
from resources.private_dagster import TOGETHER, forget_old_runs


def dagster_home() -> Path:
    """``DAGSTER_HOME`` when set, else ``dagster`` in the state folder with its instance file.

    The instance file is that of the checkout with every ``.e2i/dagster`` made absolute, so that
    commands from any folder, ``make ui`` and a bare ``dagster dev`` meet in the same storage.

    Raises:
        UnavailableError: the state folder cannot be written to.
    """
    if os.environ.get("DAGSTER_HOME"):
        return Path(os.environ["DAGSTER_HOME"])
    home = state_folder() / "dagster"
    document = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(_absolute(document, home), sort_keys=True)
    target = home / "dagster.yaml"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"The state folder {state_folder()} cannot be written to ({error.strerror}).",
            file=state_folder(),
            field="E2I_HOME",
            remedy="Correct its permissions, free space, or set E2I_HOME to another folder.",
        ) from error
    return home


@contextmanager
def local_instance() -> Iterator[dg.DagsterInstance]:
    """The instance in :func:`dagster_home`; old runs are forgotten when the work with it is done."""
    os.environ |= {**TOGETHER, "DAGSTER_HOME": str(dagster_home())}
    with dg.DagsterInstance.get() as instance:
        yield instance
        forget_old_runs(instance)


def _absolute(document: Any, home: Path) -> Any:
    if isinstance(document, dict):
        return {key: _absolute(value, home) for key, value in document.items()}
    if isinstance(document, str) and document.startswith(".e2i/dagster"):
        return str(home / document.removeprefix(".e2i/dagster").lstrip("/"))
    return document
