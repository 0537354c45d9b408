"""Deployment settings: where state, configuration and services are. Read at call, never at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from e2i_dagster.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]


def state_folder() -> Path:
    """``E2I_HOME``, or ``.e2i`` at the root of the checkout. Not created here."""
    return Path(os.environ.get("E2I_HOME") or CHECKOUT / ".e2i").expanduser().absolute()


def config_folder() -> Path:
    """``E2I_CONFIG``, or ``config`` at the root of the checkout."""
    return Path(os.environ.get("E2I_CONFIG") or CHECKOUT / "config").expanduser().absolute()


def lake_url() -> str:
    """``E2I_LAKE`` (a folder or s3://, gs://, abfs:// address), or ``lake`` in the state folder."""
    return os.environ.get("E2I_LAKE") or str(state_folder() / "lake")


def database_url() -> str | None:
    """``E2I_DATABASE_URL`` of a PostgreSQL server, or None for the embedded server."""
    return os.environ.get("E2I_DATABASE_URL") or None


def production() -> bool:
    """True when ``E2I_ENVIRONMENT`` is ``production``; ``development`` (default) and nothing else besides.

    Raises:
        ConfigError: another value.
    """
    value = os.environ.get("E2I_ENVIRONMENT") or "development"
    if value not in ("development", "production"):
        raise ConfigError(
            f"E2I_ENVIRONMENT: found {value!r}.",
            file="E2I_ENVIRONMENT",
            value=value,
            remedy="Set it to development or production.",
        )
    return value == "production"


def refuse_generated_secret(what: str, variable: str) -> None:
    """To be called before a secret is generated: production takes all of them from the environment.

    Raises:
        ConfigError: this is production; names the variable to set.
    """
    if production():
        raise ConfigError(
            f"E2I_ENVIRONMENT is production, and the {what} would be generated. Production takes its secrets "
            f"from the environment.",
            file=variable,
            remedy=f"Set {variable}, or unset E2I_ENVIRONMENT on a machine for development.",
        )


def port(offset: int) -> int:
    """``E2I_PORT_BASE`` (default 3000) plus ``offset``; 0 when the base is 0 (pick a free port).

    Offsets: 0 Dagster UI, 1 classification, 2 regression, 3 causal, 4 MLflow UI.
    """
    base = int(os.environ.get("E2I_PORT_BASE", "3000"))
    return base + offset if base else 0


def actor() -> tuple[str, Literal["authenticated", "self-declared"]]:
    """Who acts, and how that is known: ``(name, "self-declared")`` from ``E2I_ACTOR`` or the login."""
    import getpass

    return os.environ.get("E2I_ACTOR") or getpass.getuser(), "self-declared"


def patient_level_allowed() -> bool:
    """Whether ``E2I_ALLOW_PATIENT_LEVEL`` is ``1``: answers about one patient and exact small counts."""
    return os.environ.get("E2I_ALLOW_PATIENT_LEVEL") == "1"
