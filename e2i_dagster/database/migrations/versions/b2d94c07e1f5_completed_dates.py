"""Dates that were delivered without their day: what was delivered, and the rule.

Revision b2d94c07e1f5, after 9b64c0e1f7a8.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = 'b2d94c07e1f5'
down_revision: str | None = '9b64c0e1f7a8'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'load_completed_dates'


def upgrade() -> None:
    op.create_table(TABLE,
    sa.Column('table_name', sa.Text(), nullable=False, comment='Raw table of the row.'),
    sa.Column('row_key', sa.Text(), nullable=False, comment='Key of the row.'),
    sa.Column('column_name', sa.Text(), nullable=False, comment='Date column that was delivered without its day.'),
    sa.Column('delivered', sa.Text(), nullable=False, comment='What was delivered, such as 2013-07.'),
    sa.Column('precision', sa.Text(), nullable=False, comment='month or year.'),
    sa.Column('rule', sa.Text(), nullable=False, comment='first, middle or last: the day that stands in the row.'),
    sa.Column('load_id', sa.Text(), nullable=False, comment='Newest load that delivered it so.'),
    sa.CheckConstraint("precision IN ('month', 'year')", name=op.f(f'ck_{TABLE}_precision_known')),
    sa.CheckConstraint("rule IN ('first', 'middle', 'last')", name=op.f(f'ck_{TABLE}_rule_known')),
    sa.PrimaryKeyConstraint('table_name', 'row_key', 'column_name', name=op.f(f'pk_{TABLE}')),
    comment='Dates of the raw tables that were delivered without their day and completed by a declared rule.'
    )
    op.create_index(op.f(f'ix_{TABLE}_load_id'), TABLE, ['load_id'], unique=False)


def downgrade() -> None:
    op.drop_table(TABLE)
