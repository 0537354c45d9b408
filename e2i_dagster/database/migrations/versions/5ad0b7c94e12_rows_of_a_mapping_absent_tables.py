"""Rows that a mapping leaves out and makes; absent tables.

Revision 5ad0b7c94e12, after c8f1a2d94b37.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = '5ad0b7c94e12'
down_revision: str | None = 'c8f1a2d94b37'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


STATES = 'ml_stage_states'
KNOWN = ['executed', 'reused', 'blocked', 'skipped', 'failed', 'unavailable', 'running']
BEFORE = 'executed, reused, blocked, skipped, failed, unavailable or running.'
AFTER = BEFORE.replace('skipped, ', 'skipped, absent, ')


def _known(states: list[str]) -> None:
    op.drop_constraint(op.f(f'ck_{STATES}_state_known'), STATES, type_='check')
    listed = ', '.join(f"'{state}'" for state in states)
    op.create_check_constraint(op.f(f'ck_{STATES}_state_known'), STATES, f'state IN ({listed})')


def upgrade() -> None:
    op.add_column('ml_table_loads', sa.Column('added', sa.BigInteger(), server_default='0', nullable=False, comment='Rows that the mapping made of numbered columns, beside the first of each line.'))
    op.add_column('ml_table_loads', sa.Column('left_out', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False, comment='Rule of the mapping to number of delivered rows that it left out.'))
    _known([*KNOWN[:4], 'absent', *KNOWN[4:]])
    op.alter_column(STATES, 'state', existing_type=sa.Text(), existing_nullable=False, existing_comment=BEFORE, comment=AFTER)


def downgrade() -> None:
    op.execute(f"DELETE FROM {STATES} WHERE state = 'absent'")
    _known(KNOWN)
    op.alter_column(STATES, 'state', existing_type=sa.Text(), existing_nullable=False, existing_comment=AFTER, comment=BEFORE)
    op.drop_column('ml_table_loads', 'left_out')
    op.drop_column('ml_table_loads', 'added')
