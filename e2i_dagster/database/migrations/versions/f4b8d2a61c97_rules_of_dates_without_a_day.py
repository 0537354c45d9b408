"""The rules by which a load completed dates, for its corrected rejects; what a look may advise.

Revision f4b8d2a61c97, after d18e3b7c50f4.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = 'f4b8d2a61c97'
down_revision: str | None = 'd18e3b7c50f4'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ADVICE = 'continue, stop_efficacy, stop_futility or stop_safety (the rules\' advice; people decide).'


def upgrade() -> None:
    op.add_column('ml_table_loads', sa.Column('partial_dates', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False, comment='Date column to the rule by which years and months are completed.'))
    op.alter_column('ab_interim_analyses', 'decision', existing_type=sa.Text(), existing_nullable=False, existing_comment=ADVICE, comment=ADVICE.replace('stop_futility or stop_safety', 'stop_futility, stop_safety or not_evaluable'))


def downgrade() -> None:
    op.alter_column('ab_interim_analyses', 'decision', existing_type=sa.Text(), existing_nullable=False, existing_comment=ADVICE.replace('stop_futility or stop_safety', 'stop_futility, stop_safety or not_evaluable'), comment=ADVICE)
    op.drop_column('ml_table_loads', 'partial_dates')
