"""How a table is described: SQLAlchemy Core plus meaning, unit, vocabulary, privacy and time.

One description per column. The migration, the loader's rules, the quality schemas, the import
templates and the column pages are all derived from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from e2i_dagster.tables.codes import cell_shape

#: Naming convention, so that migrations can name constraints.
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

KnownAt = Literal["static", "row", "extract"]
CheckDigit = Literal["npi"]
Privacy = Literal["public", "internal", "pseudonym", "quasi", "direct"]


@dataclass(frozen=True)
class ColumnFacts:
    """What SQL cannot say about a column (kept in ``Column.info["facts"]``).

    Attributes:
        meaning: one sentence for people.
        unit: unit of measurement, or None.
        vocabulary: name of the list in ``config/vocabulary.yaml`` whose values are accepted.
        minimum, maximum: accepted closed range.
        pattern: shape of a key; a convention (finding), never fatal.
        check_digit: how the last digit of a number is made from the others.
        not_before: column of the start of a span that this column ends; it must not be later (or larger).
        codes: code systems whose codes the column holds (:mod:`e2i_dagster.tables.codes`), of which the
            pattern is made.
        privacy: ``direct`` identifies a person, ``quasi`` may in combination, ``pseudonym`` is a key.
        known_at: ``static``, ``row`` (dated by the table's ``date_column``) or ``extract``.
        applies_to: cohort keys for which a clinical column is expected; empty means all rows.
    """

    meaning: str
    unit: str | None = None
    vocabulary: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    privacy: Privacy = "internal"
    known_at: KnownAt = "static"
    applies_to: tuple[str, ...] = ()
    check_digit: CheckDigit | None = None
    codes: tuple[str, ...] = ()
    not_before: str | None = None


def column(
    name: str,
    type_: Any,
    meaning: str,
    *args: Any,
    unit: str | None = None,
    vocabulary: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    pattern: str | None = None,
    privacy: Privacy = "internal",
    known_at: KnownAt = "static",
    applies_to: Sequence[str] = (),
    check_digit: CheckDigit | None = None,
    codes: Sequence[str] = (),
    not_before: str | None = None,
    **kwargs: Any,
) -> sa.Column[Any]:
    """A SQLAlchemy column that carries its :class:`ColumnFacts`."""
    facts = ColumnFacts(
        meaning,
        unit,
        vocabulary,
        minimum,
        maximum,
        cell_shape(codes, several=isinstance(type_, sa.ARRAY)) if codes else pattern,
        privacy,
        known_at,
        tuple(applies_to),
        check_digit,
        tuple(codes),
        not_before,
    )
    return sa.Column(name, type_, *args, info={"facts": facts}, comment=meaning, **kwargs)


def facts(col: sa.Column[Any]) -> ColumnFacts:
    """The :class:`ColumnFacts` of ``col``."""
    return col.info["facts"]
