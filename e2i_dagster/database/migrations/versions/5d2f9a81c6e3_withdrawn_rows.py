"""Rows that a restated month did not deliver again.

Revision 5d2f9a81c6e3, after c3d81f6a20b4.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = '5d2f9a81c6e3'
down_revision: str | None = 'c3d81f6a20b4'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'load_withdrawals'


def upgrade() -> None:
    op.add_column('ml_table_loads', sa.Column('withdrawn', sa.BigInteger(), server_default='0', nullable=False, comment='Rows that a restated month did not deliver again.'))
    op.create_table(TABLE,
    sa.Column('withdrawal_id', sa.BigInteger(), sa.Identity(always=True), nullable=False, comment='Key of the withdrawal.'),
    sa.Column('load_id', sa.Text(), nullable=False, comment='Load that did not deliver the row again.'),
    sa.Column('table_name', sa.Text(), nullable=False, comment='Raw table that the row was in.'),
    sa.Column('row_key', sa.Text(), nullable=False, comment='Key of the row.'),
    sa.Column('month', sa.Text(), nullable=False, comment='Month that was restated.'),
    sa.Column('content', postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment='The row as it was.'),
    sa.Column('withdrawn_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False, comment='When it was withdrawn.'),
    sa.PrimaryKeyConstraint('withdrawal_id', name=op.f(f'pk_{TABLE}')),
    comment='Rows that a restated month did not deliver again, as they were.'
    )
    op.create_index(op.f(f'ix_{TABLE}_load_id'), TABLE, ['load_id'], unique=False)
    op.create_index(f'ix_{TABLE}_table_name_row_key', TABLE, ['table_name', 'row_key'], unique=False)


def downgrade() -> None:
    op.drop_table(TABLE)
    op.drop_column('ml_table_loads', 'withdrawn')
