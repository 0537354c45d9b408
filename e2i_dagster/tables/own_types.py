"""Types of a team's own clinical columns, as a mapping (``own``) or a cohort (``own_fields``) declares them.

What a cell of each type is: :mod:`e2i_dagster.tables.own_columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.mapping import ImportMapping

CodeSystem = Literal["icd10cm", "icd9cm", "ndc", "cpt", "hcpcs", "loinc", "npi"]
#: ``text`` is what an undeclared column is; a code system is text whose cells are codes of it.
OwnType = Literal["text", "number", "boolean", "date", CodeSystem]

CODE_SYSTEMS: tuple[str, ...] = get_args(CodeSystem)
#: The raw table that keeps columns of one's own.
OWN_TABLE = "patient_clinical"


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
