"""Declared types of columns of the user's own, by load.

Revision a94c17be52d8, after e7a40c91d2b6.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = 'a94c17be52d8'
down_revision: str | None = 'e7a40c91d2b6'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column('ml_table_loads', sa.Column('own_columns', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False, comment="Declared type of each column of the user's own."))


def downgrade() -> None:
    op.drop_column('ml_table_loads', 'own_columns')
