"""Secret keys: from the environment, or generated once beside the embedded server."""

from __future__ import annotations

import os
import secrets

from e2i_dagster.errors import ConfigError, UnavailableError
from e2i_dagster.local_files import create_private
from e2i_dagster.policy_files.environment import database_url, state_folder

#: Shorter keys could be found by trying.
_MINIMUM_CHARACTERS = 32


def secret_key(variable: str, name: str) -> bytes | None:
    """The key of the environment variable; on the embedded server a generated one in the state folder (0600).

    Args:
        variable: name of the environment variable; an empty value counts as not set.
        name: the generated key is ``secrets/<name>.key`` of the state folder.

    Returns:
        The key; None where the warehouse is a server of the user's and the variable is not set: a generated key
        would be another one on each machine.

    Raises:
        ConfigError: the variable is shorter than 32 characters.
        UnavailableError: the state folder cannot be read or written.
    """
    given = os.environ.get(variable)
    if given:
        if len(given) < _MINIMUM_CHARACTERS:
            raise ConfigError(
                f"{variable} has {len(given)} characters; a key needs at least {_MINIMUM_CHARACTERS}.",
                file=variable,
                remedy='Make one: python -c "import secrets; print(secrets.token_hex(32))".',
            )
        return given.encode()
    if database_url() is not None:
        return None
    path = state_folder() / "secrets" / f"{name}.key"
    try:
        if not path.exists():
            create_private(path, secrets.token_hex(32))
        return path.read_text(encoding="utf-8").strip().encode()
    except OSError as error:
        raise UnavailableError(
            f"The {name} key {path} cannot be read or made ({error.strerror}).",
            file=str(path),
            remedy=f"Correct the permissions of the state folder, or set {variable}.",
        ) from error


__all__ = ["secret_key"]
