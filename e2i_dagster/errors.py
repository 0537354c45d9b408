"""Errors that a user can mend. Each says what was found, what was expected and what to do.

Everything else that is raised is a defect of the product. No message may carry a value of a
patient or a secret.
"""


class E2IError(Exception):
    """Base of all errors with a remedy.

    ``exit_code`` is what the ``e2i`` command ends with when the error reaches it.
    """

    exit_code = 1


class ConfigError(E2IError):
    """A file under ``config/`` is wrong: names file, line, field, value and remedy."""

    exit_code = 2


class InputError(E2IError):
    """Delivered data cannot be read or lacks what is required."""

    exit_code = 3


class VerdictError(E2IError):
    """A gate or criterion said no. Retrying cannot help."""

    exit_code = 4


class UnavailableError(E2IError):
    """Something outside (database, port, disk, tracking server) is not available."""

    exit_code = 5
