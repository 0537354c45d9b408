"""Files of this machine: replaced in one step, readable by their owner alone, locked against other processes.

What is kept in the lake, on this machine or elsewhere, is written by :mod:`e2i_dagster.versions.files`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to. It gets the name ``path`` when the block ends, and is gone if it fails.

    The folder is made if it is not there. No reader sees half of a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a file with ``text`` in UTF-8."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_private(path: Path, text: str, user: str | None = None) -> None:
    """Replace ``path`` by a file with ``text`` that its owner alone reads (0600); it is on the disk on return.

    Args:
        user: login of the owner; None: whose process this is.
    """
    with replacing(path) as aside, _new_private(aside) as stream:
        if user is not None:
            import pwd

            entry = pwd.getpwnam(user)
            os.fchown(stream.fileno(), entry.pw_uid, entry.pw_gid)
        _write_to_disk(stream, text)


def create_private(path: Path, text: str) -> None:
    """Make ``path`` (0600, in a folder 0700) with ``text``, unless it is there: the first of two processes wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _new_private(aside) as stream:
            _write_to_disk(stream, text)
        # A link fails where a file has the name; a rename would replace it.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _new_private(path: Path) -> IO[str]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _write_to_disk(stream: IO[str], text: str) -> None:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def file_lock(path: Path, seconds: float = -1) -> Iterator[None]:
    """Hold ``path`` against other processes; the lock ends with the process, and the file stays.

    Args:
        seconds: how long another process is waited for; negative: until it ends.

    Raises:
        TimeoutError: another process holds it for longer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=seconds, mode=0o600):
        yield


__all__ = ["create_private", "file_lock", "replacing", "write_private", "write_text"]
