"""Erased patients: tombstones, keys that no load takes again, files of the lake that changed.

Revision 7f6dec661ffb, after 7c3e5a90d1b8.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = '7f6dec661ffb'
down_revision: str | None = '7c3e5a90d1b8'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table('ml_erasures',
    sa.Column('pseudonym', sa.Text(), nullable=False, comment='Stands for the patient under the key of pseudonyms.'),
    sa.Column('reason', sa.Text(), nullable=False, comment='Why the patient was erased.'),
    sa.Column('erased_by', sa.Text(), nullable=False, comment='Person.'),
    sa.Column('authentication', sa.Text(), nullable=False, comment='How the person is known.'),
    sa.Column('run_id', sa.Text(), nullable=False, comment='Dagster run that erased.'),
    sa.Column('began_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False, comment='Since when loads leave the patient out.'),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True, comment='When everything was erased; null: it was cut off and has to be repeated.'),
    sa.Column('report', postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment='What was erased where, what remains and why; counts only.'),
    sa.CheckConstraint("authentication IN ('authenticated', 'self-declared')", name=op.f('ck_ml_erasures_authentication_known')),
    sa.PrimaryKeyConstraint('pseudonym', name=op.f('pk_ml_erasures')),
    comment='One row per erased patient: the tombstone.'
    )
    op.create_table('ml_erased_files',
    sa.Column('path', sa.Text(), nullable=False, comment='Place in the lake.'),
    sa.Column('pseudonym', sa.Text(), nullable=False, comment='Erased patient.'),
    sa.Column('rows', sa.BigInteger(), nullable=False, comment='Rows that were taken out.'),
    sa.Column('erased_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False, comment='When.'),
    sa.ForeignKeyConstraint(['pseudonym'], ['ml_erasures.pseudonym'], name=op.f('fk_ml_erased_files_pseudonym_ml_erasures')),
    sa.PrimaryKeyConstraint('path', 'pseudonym', name=op.f('pk_ml_erased_files')),
    comment='Files of the lake that are no longer what their digest names: a patient was erased from them.'
    )
    op.create_table('ml_erased_keys',
    sa.Column('key_pseudonym', sa.Text(), nullable=False, comment='Pseudonym of the patient or of a journey.'),
    sa.Column('pseudonym', sa.Text(), nullable=False, comment='Erased patient.'),
    sa.ForeignKeyConstraint(['pseudonym'], ['ml_erasures.pseudonym'], name=op.f('fk_ml_erased_keys_pseudonym_ml_erasures')),
    sa.PrimaryKeyConstraint('key_pseudonym', name=op.f('pk_ml_erased_keys')),
    comment='Pseudonyms of the keys that no load takes again.'
    )
    op.create_index(op.f('ix_ml_erased_keys_pseudonym'), 'ml_erased_keys', ['pseudonym'], unique=False)


def downgrade() -> None:
    op.drop_index(op.f('ix_ml_erased_keys_pseudonym'), table_name='ml_erased_keys')
    op.drop_table('ml_erased_keys')
    op.drop_table('ml_erased_files')
    op.drop_table('ml_erasures')
