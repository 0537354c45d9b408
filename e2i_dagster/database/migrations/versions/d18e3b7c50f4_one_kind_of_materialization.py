"""One kind of materialization: a version of the feature files is always written whole.

Revision d18e3b7c50f4, after c61d8f20a4b9.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = 'd18e3b7c50f4'
down_revision: str | None = 'c61d8f20a4b9'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'ml_feast_materialization_jobs'


def upgrade() -> None:
    op.drop_constraint(op.f(f'ck_{TABLE}_job_type_known'), TABLE, type_='check')
    op.drop_column(TABLE, 'job_type')


def downgrade() -> None:
    op.add_column(TABLE, sa.Column('job_type', sa.Text(), server_default='full', nullable=False, comment='full or incremental.'))
    op.alter_column(TABLE, 'job_type', server_default=None)
    op.create_check_constraint(op.f(f'ck_{TABLE}_job_type_known'), TABLE, "job_type IN ('full', 'incremental')")
