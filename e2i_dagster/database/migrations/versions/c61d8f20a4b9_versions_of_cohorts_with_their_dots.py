"""Identifiers of cohorts with the dots of their version: 1.10.0 and 11.0.0 were both 1100.

Revision c61d8f20a4b9, after b2d94c07e1f5.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = 'c61d8f20a4b9'
down_revision: str | None = 'b2d94c07e1f5'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

DEFINITIONS = 'ml_cohort_definitions'
CHILDREN = ('ml_cohort_executions', 'ml_cohort_eligibility_log', 'ml_patient_cohort_assignments')


def upgrade() -> None:
    _rename("'cohort_' || cohort_key || '_v' || version", 'true')


def downgrade() -> None:
    # Of versions that would share an identifier again only the one that was recorded first gets it.
    plain = "'cohort_' || cohort_key || '_v' || replace(version, '.', '')"
    _rename(plain, f'cohort_id = (SELECT min(o.cohort_id) FROM {DEFINITIONS} o WHERE '
            "o.cohort_key = d.cohort_key AND replace(o.version, '.', '') = replace(d.version, '.', ''))")


def _rename(identifier: str, which: str) -> None:
    for table in CHILDREN:
        op.drop_constraint(op.f(f'fk_{table}_cohort_id_{DEFINITIONS}'), table, type_='foreignkey')
        op.execute(sa.text(
            f'UPDATE {table} t SET cohort_id = n.new_id FROM '
            f'(SELECT cohort_id, {identifier} AS new_id FROM {DEFINITIONS} d WHERE {which}) n '
            'WHERE t.cohort_id = n.cohort_id AND n.new_id <> n.cohort_id'
        ))
    op.execute(sa.text(f'UPDATE {DEFINITIONS} d SET cohort_id = {identifier} WHERE {which}'))
    for table in CHILDREN:
        op.create_foreign_key(
            op.f(f'fk_{table}_cohort_id_{DEFINITIONS}'), table, DEFINITIONS, ['cohort_id'], ['cohort_id'],
            ondelete='CASCADE',
        )
