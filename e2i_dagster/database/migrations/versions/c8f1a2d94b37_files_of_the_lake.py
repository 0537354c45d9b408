"""Files of the lake as they were written: length and checksum.

Revision c8f1a2d94b37, after f4b8d2a61c97.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = 'c8f1a2d94b37'
down_revision: str | None = 'f4b8d2a61c97'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'ml_lake_files'


def upgrade() -> None:
    op.create_table(TABLE,
    sa.Column('path', sa.Text(), nullable=False, comment='Place in the lake.'),
    sa.Column('size', sa.BigInteger(), nullable=False, comment='Length as written.'),
    sa.Column('checksum', sa.Text(), nullable=False, comment='SHA-256 of its bytes as written.'),
    sa.Column('run_id', sa.Text(), nullable=True, comment='Dagster run that noted it last.'),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False, comment='When it was noted last.'),
    sa.PrimaryKeyConstraint('path', name=op.f(f'pk_{TABLE}')),
    comment='Files of the lake as they were written: a file that differs is damaged.'
    )


def downgrade() -> None:
    op.drop_table(TABLE)
