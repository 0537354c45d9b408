"""Types of a team's own clinical columns, as a mapping (``own``) or a cohort (``own_fields``) declares them.

What a cell of each type is: :mod:`e2i_dagster.tables.own_columns`.
"""

from __future__ import annotations

from typing import Literal, get_args

CodeSystem = Literal["icd10cm", "icd9cm", "ndc", "cpt", "hcpcs", "loinc", "npi"]
#: ``text`` is what an undeclared column is; a code system is text whose cells are codes of it.
OwnType = Literal["text", "number", "boolean", "date", CodeSystem]

CODE_SYSTEMS: tuple[str, ...] = get_args(CodeSystem)
#: The raw table that keeps columns of one's own.
OWN_TABLE = "patient_clinical"
