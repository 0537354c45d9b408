"""Files that are kept for good: written whole or not at all, and known again by length and SHA-256.

A file is written aside, forced to the disk and renamed, so that no reader and no cut of power leaves half of one
under its name. Its length and checksum are kept beside it (in the ledger, or in the document that names it), and a
reader compares: a disk that fails, a copy that broke off or a hand that edits is named before anything is made
of it.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upath import UPath

#: Files of this machine that had their checksum when this process read them: path -> (state, checksum).
_verified: dict[str, tuple[tuple[int, int, int], str]] = {}
#: A file that changes twice within one tick of the file system's clock has the same time twice.
_TICK = 100_000_000


@dataclass(frozen=True)
class StoredFile:
    """A file as it was written.

    Attributes:
        path: place in the lake.
        size: length in bytes; None of a file that was stored before lengths were kept.
        checksum: SHA-256 of its bytes; None likewise.
    """

    path: str
    size: int | None = None
    checksum: str | None = None


def checksum_of(content: bytes) -> str:
    """SHA-256 of ``content``, as :class:`StoredFile` keeps it."""
    return hashlib.sha256(content).hexdigest()


def is_local(path: UPath) -> bool:
    """Whether ``path`` is on this machine, where a file is replaced in one step and read at no cost."""
    return path.protocol in ("", "file", "local")


def write_aside(target: UPath, content: bytes) -> UPath:
    """Write ``content`` beside ``target``, on the disk when this returns; :func:`put` gives it its name.

    Raises:
        OSError: no space, no permission; nothing is left behind.
    """
    aside = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            stream.write(content)
            if is_local(target):
                stream.flush()
                os.fsync(stream.fileno())
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise
    return aside


def put(aside: UPath, target: UPath) -> None:
    """Give the file ``aside`` the name ``target``; what had it is replaced."""
    if is_local(target):
        os.replace(str(aside), str(target))  # noqa: PTH105 - atomic, which UPath does not promise
    else:
        aside.rename(target)


def damage(path: UPath, size: int | None, checksum: str | None, *, whole: bool = True) -> str:
    """What is wrong with the file at ``path``: it is missing, or its length or content is another one.

    The content is read once in a process, as long as the file is not written to.

    Args:
        path: the file.
        size: the length that was written, in bytes; None: only asked whether it is there and not empty.
        checksum: SHA-256 of what was written.
        whole: compare the content, too.

    Returns:
        What was found and what was expected, in words; empty for a whole file.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    if found.st_size != (size or found.st_size) or not found.st_size:
        written = "" if size is None else f" where {size:,} were written"
        return f"{found.st_size:,} bytes long{written}"
    if checksum is None or not whole:
        return ""
    local = is_local(path)
    state = (found.st_size, getattr(found, "st_mtime_ns", 0), getattr(found, "st_ino", 0))
    if local and _verified.get(str(path)) == (state, checksum):
        return ""
    with path.open("rb") as stream:
        read = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    if read != checksum:
        return f"other content (SHA-256 {read[:12]}) than was written ({checksum[:12]})"
    if local and time.time_ns() - state[1] > _TICK:
        _verified[str(path)] = (state, checksum)
    return ""
