"""Types of a team's own clinical columns, as a mapping (``own``) or a cohort (``own_fields``) declares them.

What a cell of each type is: :mod:`e2i_dagster.warehouse.own_columns`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from e2i_dagster.config.codes import DASHES, NDC_FORMS

if TYPE_CHECKING:
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.mapping import ImportMapping

CodeSystem = Literal["icd10cm", "icd9cm", "ndc", "cpt", "hcpcs", "loinc", "npi"]
#: ``text`` is what an undeclared column is; a code system is text whose cells are codes of it.
OwnType = Literal["text", "number", "boolean", "date", CodeSystem]

CODE_SYSTEMS: tuple[str, ...] = get_args(CodeSystem)
#: The raw table that keeps columns of one's own.
OWN_TABLE = "patient_clinical"

_PROCEDURE = r"[0-9]{5}|[0-9]{4}[FTUM]|[A-Z][0-9]{4}"
#: Shapes of codes in upper case; drug codes also as ten digits, of which it is unknown which code is meant.
_SHAPES: Mapping[str, str] = {
    "icd10cm": r"[A-Z][0-9AB][0-9A-Z](\.?[0-9A-Z]{1,4})?",
    # Diagnoses, supplementary V and E codes, and procedures.
    "icd9cm": r"[0-9]{3}(\.?[0-9]{1,2})?|V[0-9]{2}(\.?[0-9]{1,2})?|E[0-9]{3}(\.?[0-9])?|[0-9]{2}(\.[0-9]{1,2})?",
    "ndc": "|".join([*(form.strip("^$") for form, _ in NDC_FORMS), "[0-9]{10,11}"]),
    "cpt": _PROCEDURE,
    "hcpcs": _PROCEDURE,
    "loinc": r"[0-9]{1,7}-[0-9]",
    "npi": r"[0-9]{10}",
}


def is_code(text: str, system: str) -> bool:
    """Whether ``text`` has the shape of a code of ``system`` with a right check digit.

    Outer blanks, case and kinds of dashes do not count. LOINC codes end in a Luhn digit, provider identifiers in one
    over the prefix 80840 (CMS, 2004).
    """
    code = re.sub(DASHES, "-", text.strip().upper())
    if re.fullmatch(_SHAPES[system], code) is None:
        return False
    if system == "npi":
        return _ends_in_luhn_digit(f"80840{code}")
    return system != "loinc" or _ends_in_luhn_digit(code.replace("-", ""))


def _ends_in_luhn_digit(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def disagreements(mapping: ImportMapping, cohorts: Mapping[str, CohortDefinition]) -> Iterator[str]:
    """What differs where a mapping and a cohort declare an own column with other types.

    A cohort that reads a column as text agrees with every type, because text is what is kept.
    """
    declared = mapping.table(OWN_TABLE).own
    for key, cohort in cohorts.items():
        for name, read_as in cohort.own_fields.items():
            given = declared.get(name, read_as)
            if read_as not in ("text", given):
                yield (
                    f"own column {name!r} is {given} in the mapping (tables.{OWN_TABLE}.own) and {read_as} in cohort "
                    f"{key} (own_fields). Declare one type in both, or take it out of the mapping's `own`"
                )
