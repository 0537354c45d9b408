"""Pseudonyms of keys: findings name rows without naming patients.

A pseudonym is a keyed hash (HMAC-SHA256). Who has the key and the data can find the row again; who has the
finding alone cannot.
"""

from __future__ import annotations

import hashlib
import hmac

from e2i_dagster.policy_files.secret_key import secret_key

VARIABLE = "E2I_PSEUDONYM_KEY"
_SHOWN = 12


def pseudonym(key: bytes, value: str) -> str:
    """Twelve hexadecimal digits that stand for ``value`` under ``key``."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:_SHOWN]


def pseudonym_key() -> bytes | None:
    """The key of ``E2I_PSEUDONYM_KEY``; on the embedded server a generated one (:func:`secret_key`).

    None: the warehouse is a server of the user's and no key is set. Findings then name no rows.

    Raises:
        ConfigError: the variable is shorter than 32 characters.
        UnavailableError: the state folder cannot be read or written.
    """
    return secret_key(VARIABLE, "pseudonym")
