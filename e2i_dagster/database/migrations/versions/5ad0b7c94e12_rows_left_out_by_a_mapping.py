"""Rows left out by a mapping.

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


def upgrade() -> None:
    op.add_column('ml_table_loads', sa.Column('left_out', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False, comment='Rule of the mapping to number of delivered rows that it left out.'))


def downgrade() -> None:
    op.drop_column('ml_table_loads', 'left_out')
