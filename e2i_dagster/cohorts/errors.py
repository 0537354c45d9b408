"""Errors of the cohort stage. Each carries one of the codes of ``config.cohort.ERROR_CODES``."""

from __future__ import annotations

from typing import Any

from e2i_dagster.errors import InputError, UnavailableError, VerdictError


class CohortInputError(InputError):
    """The patient frame does not fit the definition (CC_002 missing fields, CC_004 data, CC_005 time)."""

    def __init__(self, code: str, message: str, **known: Any) -> None:
        super().__init__(f"{code}: {message}", **known)
        self.code = code


class CohortStorageError(UnavailableError):
    """A cohort could not be written to the warehouse (CC_006)."""

    code = "CC_006"


class ScopeRefused(VerdictError):
    """The data cannot answer the scope's question: all reasons are in the message."""

    def __init__(self, scope: str, reasons: tuple[str, ...], **known: Any) -> None:
        listed = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(f"Scope {scope} is refused:{listed}", **known)
        self.scope = scope
        self.reasons = reasons
