"""Pseudonyms of keys: findings name rows without naming patients.

A pseudonym is a keyed hash (HMAC-SHA256). Who has the key and the data can find the row again; who has the
finding alone cannot.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.environment import database_url, state_folder

VARIABLE = "E2I_PSEUDONYM_KEY"
_LEAST_CHARACTERS = 32
_SHOWN = 12


def pseudonym(key: bytes, value: str) -> str:
    """Twelve hexadecimal digits that stand for ``value`` under ``key``."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:_SHOWN]


def pseudonym_key() -> bytes | None:
    """The key of ``E2I_PSEUDONYM_KEY``; on the embedded server a generated one in the state folder (0600).

    None: the warehouse is a server of the user's and no key is set. Findings then name no rows, because a
    generated key would be another one on each machine.

    Raises:
        ConfigError: the variable is shorter than 32 characters.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if len(given) < _LEAST_CHARACTERS:
            raise ConfigError(
                f"{VARIABLE} has {len(given)} characters; a key needs at least {_LEAST_CHARACTERS}.",
                remedy='Make one: python -c "import secrets; print(secrets.token_hex(32))".',
            )
        return given.encode()
    if database_url() is not None:
        return None
    path = state_folder() / "secrets" / "pseudonym.key"
    if not path.exists():
        _generate(path)
    return path.read_bytes()


def _generate(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
    try:
        os.link(aside, path)  # fails where another process was first: its key is the key
    except FileExistsError:
        return
    finally:
        aside.unlink()
