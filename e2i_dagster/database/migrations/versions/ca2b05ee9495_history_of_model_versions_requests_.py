"""History of model versions; requests mirrored to slot shadow.

Revision ca2b05ee9495, after 5ad0b7c94e12.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = 'ca2b05ee9495'
down_revision: str | None = '5ad0b7c94e12'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table('ml_model_stage_history',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False, comment='Key, rising with time.'),
    sa.Column('model_name', sa.String(length=255), nullable=False, comment='Name in the MLflow registry.'),
    sa.Column('model_version', sa.String(length=50), nullable=False, comment='Version in the MLflow registry.'),
    sa.Column('action', sa.String(length=20), nullable=False, comment='What happened to the version.'),
    sa.Column('from_stage', sa.String(length=50), nullable=True, comment='Stage before.'),
    sa.Column('to_stage', sa.String(length=50), nullable=False, comment='Stage that was asked for or reached.'),
    sa.Column('actor', sa.String(length=255), nullable=False, comment='Who acted.'),
    sa.Column('authentication', sa.String(length=20), nullable=False, comment='authenticated by the proxy, self-declared, or automatic (a rule acted).'),
    sa.Column('reason', sa.Text(), nullable=False, comment="Why, in the actor's words."),
    sa.Column('evidence_digest', sa.String(length=16), nullable=True, comment='Digest of the measured evidence.'),
    sa.Column('evidence', postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment='The measured evidence.'),
    sa.Column('rules', postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment='Each rule of the transition, whether it was met, and what was found.'),
    sa.Column('simulated_days', sa.Double(), server_default=sa.text('0'), nullable=False, comment='Days in the stage before that were simulated; 0: none.'),
    sa.Column('deployment_id', sa.String(length=36), nullable=True, comment='Deployment that serves the version in the slot of the stage.'),
    sa.Column('run_id', sa.String(length=36), nullable=True, comment='Dagster run that did it.'),
    sa.Column('recorded_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False, comment='When it was recorded.'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_ml_model_stage_history')),
    comment='What happened to registered versions, in order; rows are only added.'
    )
    op.create_index(op.f('ix_ml_model_stage_history_model_name'), 'ml_model_stage_history', ['model_name'], unique=False)
    op.create_table('ml_shadow_comparisons',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False, comment='Key, rising with time.'),
    sa.Column('model_name', sa.Text(), nullable=False, comment='Registered model.'),
    sa.Column('shadow_version', sa.Text(), nullable=False, comment='Version that answered in slot shadow.'),
    sa.Column('source_version', sa.Text(), nullable=False, comment='Version whose answered requests were mirrored.'),
    sa.Column('first_at', sa.TIMESTAMP(timezone=True), nullable=False, comment='Time of the first mirrored answer.'),
    sa.Column('last_at', sa.TIMESTAMP(timezone=True), nullable=False, comment='Time of the last mirrored answer.'),
    sa.Column('requests', sa.Integer(), nullable=False, comment='Answers of the source in that time.'),
    sa.Column('left_out', sa.Integer(), nullable=False, comment='Of these not mirrored, because of the bound.'),
    sa.Column('failed', sa.Integer(), nullable=False, comment='Mirrored, not answered by the shadow.'),
    sa.Column('compared', sa.Integer(), nullable=False, comment='Answered by both.'),
    sa.Column('same_class', sa.Integer(), nullable=True, comment='Of the compared ones with the same class; null without classes.'),
    sa.Column('mean_difference', sa.Double(), nullable=True, comment='Mean absolute difference of the values; null without any.'),
    sa.Column('largest_difference', sa.Double(), nullable=True, comment='Largest absolute difference of the values.'),
    sa.Column('recorded_at', sa.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False, comment='When it was recorded.'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_ml_shadow_comparisons')),
    comment='Requests mirrored to slot shadow and how its answers compare; counts only.'
    )
    op.create_index(op.f('ix_ml_shadow_comparisons_model_name'), 'ml_shadow_comparisons', ['model_name'], unique=False)


def downgrade() -> None:
    op.drop_index(op.f('ix_ml_shadow_comparisons_model_name'), table_name='ml_shadow_comparisons')
    op.drop_table('ml_shadow_comparisons')
    op.drop_index(op.f('ix_ml_model_stage_history_model_name'), table_name='ml_model_stage_history')
    op.drop_table('ml_model_stage_history')
