"""Corrected units of experiments: a unit may have several rows, the newest holds

Revision e7a40c91d2b6, after 5d2f9a81c6e3.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = 'e7a40c91d2b6'
down_revision: str | None = '5d2f9a81c6e3'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = 'ab_experiment_units'


def upgrade() -> None:
    op.drop_constraint(op.f(f'uq_{TABLE}_experiment'), TABLE, type_='unique')


def downgrade() -> None:
    # One row per unit fits the constraint: the newest, which holds.
    op.execute(sa.text(f'ALTER TABLE {TABLE} DISABLE TRIGGER USER'))
    op.execute(sa.text(
        f'DELETE FROM {TABLE} older USING {TABLE} newer WHERE older.experiment = newer.experiment '
        'AND older.unit_id = newer.unit_id AND older.id < newer.id'
    ))
    op.execute(sa.text(f'ALTER TABLE {TABLE} ENABLE TRIGGER USER'))
    op.create_unique_constraint(op.f(f'uq_{TABLE}_experiment'), TABLE, ['experiment', 'unit_id'])
