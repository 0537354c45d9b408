"""The secret key of randomization: without it the next assignment cannot be computed."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from e2i_dagster.errors import ConfigError, UnavailableError
from e2i_dagster.policy_files.environment import database_url, state_folder

VARIABLE = "E2I_RANDOMIZATION_KEY"
#: Shorter keys could be tried out.
_LEAST_CHARACTERS = 32


def randomization_key() -> bytes:
    """The key of ``E2I_RANDOMIZATION_KEY``; on the embedded server a generated one in the state folder (0600).

    Raises:
        ConfigError: the variable is shorter than 32 characters; or the warehouse is a server of the user's
            and the variable is not set, because a generated key would live on one machine only.
        UnavailableError: the state folder cannot be read or written.
    """
    given = os.environ.get(VARIABLE)
    if given:
        if len(given) < _LEAST_CHARACTERS:
            raise ConfigError(
                f"{VARIABLE} has {len(given)} characters; a key needs at least {_LEAST_CHARACTERS}.",
                remedy='Make one: python -c "import secrets; print(secrets.token_hex(32))".',
            )
        return given.encode()
    if database_url() is not None:
        raise ConfigError(
            f"{VARIABLE} is not set. With E2I_DATABASE_URL the key of randomization comes from the environment, "
            "the same wherever units are assigned.",
            file=VARIABLE,
            remedy=f"Set {VARIABLE}; keep it where those who enrol cannot read it.",
        )
    return _generated(state_folder() / "secrets" / "randomization.key")


def key_fingerprint(key: bytes) -> str:
    """Tells two keys apart without telling anything of them."""
    return hmac.new(key, b"e2i randomization fingerprint", hashlib.sha256).hexdigest()[:16]


def _generated(path: Path) -> bytes:
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(secrets.token_hex(32))
                stream.flush()
                os.fsync(stream.fileno())
            # A link, not a rename: of two processes that make a key at once, the first one's stays.
            try:
                os.link(aside, path)
            except FileExistsError:
                pass
            finally:
                aside.unlink()
        return path.read_text(encoding="utf-8").strip().encode()
    except OSError as error:
        raise UnavailableError(
            f"The key of randomization {path} cannot be read or made ({error.strerror}).",
            remedy=f"Correct the permissions of the state folder, or set {VARIABLE}.",
        ) from error
