"""Label drift: words of two columns of ml_drift_history.

Revision 8b2e64d0c7f3, after 7f6dec661ffb.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = '8b2e64d0c7f3'
down_revision: str | None = '7f6dec661ffb'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

WORDS = {
    'drift_type': (
        'data (a feature), prediction (the score), or multivariate.',
        'data (a feature), prediction (the score), label, or multivariate.',
    ),
    'feature_name': ('Feature, or `prediction`.', 'Feature, `prediction`, `label`, or a test of all together.'),
}


def upgrade() -> None:
    for column, (before, after) in WORDS.items():
        op.alter_column('ml_drift_history', column, existing_type=sa.Text(), existing_nullable=False,
                        existing_comment=before, comment=after)


def downgrade() -> None:
    for column, (before, after) in WORDS.items():
        op.alter_column('ml_drift_history', column, existing_type=sa.Text(), existing_nullable=False,
                        existing_comment=after, comment=before)
