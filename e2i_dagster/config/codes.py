"""Codes as they are compared: one form for all spellings of a code, by its system."""

from __future__ import annotations

import re

#: Lengths of the parts of a National Drug Code with hyphens, and where the missing zero belongs.
NDC_FORMS: tuple[tuple[str, int | None], ...] = (
    (r"^[0-9]{5}-[0-9]{4}-[0-9]{2}$", None),
    (r"^[0-9]{4}-[0-9]{4}-[0-9]{2}$", 0),
    (r"^[0-9]{5}-[0-9]{3}-[0-9]{2}$", 5),
    (r"^[0-9]{5}-[0-9]{4}-[0-9]$", 9),
)
#: Ten digits without hyphens: which part lacks its zero cannot be told.
NDC_UNDECIDED = r"^[0-9]{10}$"


def normal_code(code: str, system: str | None = None) -> str:
    """A code as it is compared: upper case, without dots and outer blanks; a drug code (``ndc``) as 11 digits.

    A drug code of no known form is left as it is written.
    """
    text = code.strip().upper()
    if system != "ndc":
        return text.replace(".", "")
    for form, place in NDC_FORMS:
        if re.match(form, text):
            digits = text.replace("-", "")
            return digits if place is None else f"{digits[:place]}0{digits[place:]}"
    return text


def normal_prefix(code: str, system: str | None = None) -> str:
    """The beginning of codes as they are compared; of a drug code its closed parts get their missing zeros."""
    text = code.strip().upper()
    if system != "ndc":
        return text.replace(".", "")
    *closed, last = text.removesuffix(".").split("-")
    return "".join(part.zfill(width) for part, width in zip(closed, (5, 4, 2), strict=False)) + last


def is_undecided(code: str, system: str | None) -> bool:
    """Whether it cannot be known which code is meant: a drug code of ten digits without hyphens."""
    return system == "ndc" and re.match(NDC_UNDECIDED, code.strip()) is not None
