"""Refused attempts at patient level beside the openings; openings that are about no cohort.

Revision 7c3e5a90d1b8, after e30c46282b16.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = '7c3e5a90d1b8'
down_revision: str | None = 'e30c46282b16'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'ml_patient_level_access'
OLD = 'Every opening of patient-level answers and exact small counts. Rows are only added.'
NEW = 'Every opening of patient-level answers and exact small counts, and refused ones. Rows are only added.'


def upgrade() -> None:
    op.add_column(
        TABLE,
        sa.Column(
            'outcome', sa.Text(), server_default='opened', nullable=False, comment='opened, or refused'
        ),
    )
    op.create_check_constraint(
        op.f('ck_ml_patient_level_access_outcome'), TABLE, "outcome IN ('opened', 'refused')"
    )
    op.alter_column(
        TABLE, 'cohort_key', nullable=True, existing_comment='Cohort: the name of its file',
        comment='Cohort: the name of its file; null when none was asked for',
    )
    op.alter_column(
        TABLE, 'purpose', existing_comment='What was opened: explain, or exact figures of a command',
        comment='What was opened: explain, trace, or exact figures of a command',
    )
    op.create_table_comment(TABLE, NEW, existing_comment=OLD)


def downgrade() -> None:
    # What the older table cannot hold goes: openings without a cohort, and attempts that were refused.
    op.execute(sa.text(f"DELETE FROM {TABLE} WHERE outcome = 'refused' OR cohort_key IS NULL"))
    op.create_table_comment(TABLE, OLD, existing_comment=NEW)
    op.alter_column(
        TABLE, 'purpose', existing_comment='What was opened: explain, trace, or exact figures of a command',
        comment='What was opened: explain, or exact figures of a command',
    )
    op.alter_column(
        TABLE, 'cohort_key', nullable=False,
        existing_comment='Cohort: the name of its file; null when none was asked for',
        comment='Cohort: the name of its file',
    )
    op.drop_constraint(op.f('ck_ml_patient_level_access_outcome'), TABLE, type_='check')
    op.drop_column(TABLE, 'outcome')
