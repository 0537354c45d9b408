"""The secret key of randomization: without it the next assignment cannot be computed."""

from __future__ import annotations

import hashlib
import hmac

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.secret_key import secret_key

VARIABLE = "E2I_RANDOMIZATION_KEY"


def randomization_key() -> bytes:
    """The key of ``E2I_RANDOMIZATION_KEY``; on the embedded server a generated one (:func:`secret_key`).

    Raises:
        ConfigError: the variable is shorter than 32 characters; or the warehouse is a server of the user's
            and the variable is not set, because a generated key would live on one machine only.
        UnavailableError: the state folder cannot be read or written.
    """
    key = secret_key(VARIABLE, "randomization")
    if key is None:
        raise ConfigError(
            f"{VARIABLE} is not set. With E2I_DATABASE_URL the key of randomization comes from the environment, "
            "the same wherever units are assigned.",
            file=VARIABLE,
            remedy=f"Set {VARIABLE}; keep it where those who enrol cannot read it.",
        )
    return key


def key_fingerprint(key: bytes) -> str:
    """Tells two keys apart without telling anything of them."""
    return hmac.new(key, b"e2i randomization fingerprint", hashlib.sha256).hexdigest()[:16]
