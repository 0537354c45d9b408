"""Errors that a user can mend. Each says what was found, what was expected and what to do.

Everything else that is raised is a defect of the product. No message may carry a value of a
patient or a secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


class E2IError(Exception):
    """Base of all errors with a remedy.

    ``exit_code`` is what the ``e2i`` command ends with when the error reaches it, ``code`` names the kind for
    programs.

    Args:
        message: what people read: what was found and what was expected. The remedy is added where it is not in it.
        file: file, folder or variable that is wrong. field: key, column, option or step in it.
        value: what was found there; never of a patient. remedy: what to do.
        parts: the single errors, when the message tells of several.
    """

    exit_code = 1
    code = "error"

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        field: str | None = None,
        value: Any = None,
        remedy: str | None = None,
        parts: Sequence[E2IError] = (),
    ) -> None:
        super().__init__(message if remedy is None or remedy in message else f"{message} {remedy}")
        self.file = None if file is None else str(file)
        self.field = field
        self.value = value
        self.remedy = remedy
        self.parts = tuple(parts)

    @classmethod
    def joined(cls, parts: Sequence[E2IError]) -> Self:
        """One error that tells of all ``parts``; its file, field, value and remedy are those of the first."""
        return cls("\n".join(map(str, parts)), **parts[0].known, parts=parts if len(parts) > 1 else ())

    @property
    def known(self) -> dict[str, Any]:
        """File, field, value and remedy."""
        return {"file": self.file, "field": self.field, "value": self.value, "remedy": self.remedy}

    def to_record(self) -> dict[str, Any]:
        """``code``, ``message``, ``file``, ``field``, ``value``, ``remedy``; null where not known.

        ``problems`` has the same of each single error when there are several.
        """
        record = {"code": self.code, "message": str(self), **self.known}
        return record | ({"problems": [one.to_record() for one in self.parts]} if self.parts else {})


class ConfigError(E2IError):
    """A file under ``config/`` is wrong: names file, line, field, value and remedy."""

    exit_code = 2
    code = "configuration"


class InputError(E2IError):
    """Delivered data cannot be read or lacks what is required."""

    exit_code = 3
    code = "input"


class DamagedError(InputError):
    """A stored file is missing or is not what was written."""

    code = "damaged"

    @classmethod
    def of(cls, file: str | Path, found: str, made_by: str) -> Self:
        """The error that ``file`` is damaged.

        Args:
            file: the damaged file.
            found: what is wrong with it.
            made_by: the stage that stores it.
        """
        remedy = (
            f"Run again what makes {made_by} (`e2i run`; of delivered tables `e2i load` of the same files): what is "
            "damaged is not reused but made and stored again."
        )
        return cls(
            f"{file}, stored by {made_by}, is damaged: {found}.", file=file, value=found, remedy=remedy
        )


class VerdictError(E2IError):
    """A gate or criterion said no. Retrying cannot help."""

    exit_code = 4
    code = "refused"


class UnavailableError(E2IError):
    """Something outside (database, port, disk, tracking server) is not available."""

    exit_code = 5
    code = "unavailable"


@contextmanager
def in_file(file: str | Path) -> Iterator[None]:
    """What is refused inside the block is refused of ``file``, where the error does not know another one."""
    try:
        yield
    except E2IError as error:
        error.file = error.file or str(file)
        raise
