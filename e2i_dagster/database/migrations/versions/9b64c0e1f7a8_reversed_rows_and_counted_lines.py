"""Reversed rows and counted lines.

Revision 9b64c0e1f7a8, after a94c17be52d8.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = '9b64c0e1f7a8'
down_revision: str | None = 'a94c17be52d8'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'load_withdrawals'
LOADS = 'ml_table_loads'


def upgrade() -> None:
    json = postgresql.JSONB(astext_type=sa.Text())
    op.add_column(LOADS, sa.Column('reversals', sa.BigInteger(), server_default='0', nullable=False, comment='Delivered rows that take another row back.'))
    op.add_column(LOADS, sa.Column('restored', sa.BigInteger(), server_default='0', nullable=False, comment='Reversed rows that came back, because a more recent one is reversed instead.'))
    op.add_column(LOADS, sa.Column('lines', sa.BigInteger(), nullable=True, comment='Lines of the text files below their headers, counted apart from the parser; null without text files.'))
    op.add_column(LOADS, sa.Column('reversal_rule', json, nullable=True, comment='Rule of the mapping by which reversals found their originals.'))
    op.alter_column(LOADS, 'withdrawn', existing_type=sa.BigInteger(), existing_nullable=False, existing_server_default='0', comment='Rows that left the table: not delivered again, or reversed.')
    op.add_column(TABLE, sa.Column('reason', sa.Text(), server_default='not_delivered', nullable=False, comment='not_delivered: a restated month or table is without it; reversed: another row took it back.'))
    op.add_column(TABLE, sa.Column('reversal_key', sa.Text(), nullable=True, comment='Key of the row that took it back.'))
    op.add_column(TABLE, sa.Column('reversal', json, nullable=True, comment='The row that took it back, as delivered.'))
    op.add_column(TABLE, sa.Column('restored_load_id', sa.Text(), nullable=True, comment='Load since which another row is reversed in its place.'))
    op.alter_column(TABLE, 'month', existing_type=sa.Text(), nullable=True, comment='Month of the row; null in a table without months.')
    op.alter_column(TABLE, 'load_id', existing_type=sa.Text(), existing_nullable=False, comment='Load that withdrew the row.')
    op.create_table_comment(TABLE, 'Rows that left a raw table, as they were: not delivered again, or reversed.')
    op.create_check_constraint(op.f(f'ck_{TABLE}_reason_known'), TABLE, "reason IN ('not_delivered', 'reversed')")
    op.create_check_constraint(op.f(f'ck_{TABLE}_reversed_by'), TABLE, "(reason = 'reversed') = (reversal_key IS NOT NULL)")
    op.create_index(f'ix_{TABLE}_table_name_reversal_key', TABLE, ['table_name', 'reversal_key'], unique=False)


def downgrade() -> None:
    op.drop_index(f'ix_{TABLE}_table_name_reversal_key', table_name=TABLE)
    op.drop_constraint(op.f(f'ck_{TABLE}_reversed_by'), TABLE, type_='check')
    op.drop_constraint(op.f(f'ck_{TABLE}_reason_known'), TABLE, type_='check')
    # A row without a month cannot be kept in the earlier form.
    op.execute(f'DELETE FROM {TABLE} WHERE month IS NULL')
    op.alter_column(TABLE, 'month', existing_type=sa.Text(), nullable=False, comment='Month that was restated.')
    op.alter_column(TABLE, 'load_id', existing_type=sa.Text(), existing_nullable=False, comment='Load that did not deliver the row again.')
    op.create_table_comment(TABLE, 'Rows that a restated month did not deliver again, as they were.')
    for name in ('restored_load_id', 'reversal', 'reversal_key', 'reason'):
        op.drop_column(TABLE, name)
    op.alter_column(LOADS, 'withdrawn', existing_type=sa.BigInteger(), existing_nullable=False, existing_server_default='0', comment='Rows that a restated month did not deliver again.')
    for name in ('reversal_rule', 'lines', 'restored', 'reversals'):
        op.drop_column(LOADS, name)
