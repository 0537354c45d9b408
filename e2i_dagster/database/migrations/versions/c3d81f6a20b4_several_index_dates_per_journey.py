"""Several index dates of one journey in a cohort.

Revision c3d81f6a20b4, after 54d5c6334587.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op


revision: str = 'c3d81f6a20b4'
down_revision: str | None = '54d5c6334587'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'ml_patient_cohort_assignments'
KEY = ['patient_journey_id', 'cohort_id', 'execution_id']


def upgrade() -> None:
    op.add_column(TABLE, sa.Column('index_number', sa.Integer(), server_default='1', nullable=False, comment="Which of the journey's index dates, by date; 1 unless the index is every event of a kind"))
    op.drop_constraint(op.f(f'pk_{TABLE}'), TABLE, type_='primary')
    op.create_primary_key(op.f(f'pk_{TABLE}'), TABLE, [*KEY, 'index_number'])


def downgrade() -> None:
    # Only the first index date of a journey fits the shorter key.
    op.execute(sa.text(f'DELETE FROM {TABLE} WHERE index_number > 1'))
    op.drop_constraint(op.f(f'pk_{TABLE}'), TABLE, type_='primary')
    op.create_primary_key(op.f(f'pk_{TABLE}'), TABLE, KEY)
    op.drop_column(TABLE, 'index_number')
