"""Trials of the hyperparameter searches, and what they found best.

Revision e30c46282b16, after 9f050b10b16f.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = 'e30c46282b16'
down_revision: str | None = '9f050b10b16f'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table('hpo_pattern_memory',
    sa.Column('study_name', sa.String(length=255), nullable=False, comment='Finished study.'),
    sa.Column('scope', sa.String(length=100), nullable=False, comment='Scope that was searched for.'),
    sa.Column('algorithm_name', sa.String(length=100), nullable=False, comment='Algorithm.'),
    sa.Column('problem_type', sa.String(length=50), nullable=False, comment='Problem type.'),
    sa.Column('metric', sa.String(length=50), nullable=False, comment='Metric on validation rows.'),
    sa.Column('training_rows', sa.Integer(), nullable=False, comment='Training patients.'),
    sa.Column('n_features', sa.Integer(), nullable=False, comment='Features.'),
    sa.Column('trials', postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment='Best trials, best first: number, parameters, value.'),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False, comment='When it was last written.'),
    sa.PrimaryKeyConstraint('study_name', name=op.f('pk_hpo_pattern_memory')),
    comment='What earlier searches found best: later ones of the same algorithm and problem type begin there.'
    )
    op.create_index('ix_hpo_pattern_memory_algorithm_name_problem_type', 'hpo_pattern_memory', ['algorithm_name', 'problem_type'], unique=False)
    op.create_table('ml_hpo_trials',
    sa.Column('study_name', sa.String(length=255), nullable=False, comment='Study: scope, algorithm, digest of rows and settings.'),
    sa.Column('number', sa.Integer(), autoincrement=False, nullable=False, comment='Number in the study, from 0.'),
    sa.Column('point', sa.String(length=16), nullable=False, comment='Digest of the parameters; a study tries no point twice.'),
    sa.Column('state', sa.String(length=20), nullable=False, comment='waiting, running, complete or pruned.'),
    sa.Column('origin', sa.Text(), nullable=False, comment='drawn, defaults, or the earlier study and trial that it comes from.'),
    sa.Column('parameters', postgresql.JSONB(astext_type=sa.Text()).with_variant(sa.JSON(), 'sqlite'), nullable=False, comment='Values of the searched parameters.'),
    sa.Column('value', sa.Double(), nullable=True, comment='Metric on validation rows of a complete trial.'),
    sa.Column('steps', postgresql.JSONB(astext_type=sa.Text()).with_variant(sa.JSON(), 'sqlite'), nullable=False, comment='Pairs of trees and metric, as reported on the way.'),
    sa.Column('sampler_state', postgresql.JSONB(astext_type=sa.Text()).with_variant(sa.JSON(), 'sqlite'), nullable=False, comment='What sampler and pruner keep of the trial.'),
    sa.Column('rounds', sa.Integer(), nullable=True, comment='Trees that were kept, when boosting ended early.'),
    sa.Column('worker', sa.Text(), nullable=True, comment='Process that runs it: host, process, its start.'),
    sa.Column('restarts', sa.Integer(), nullable=False, comment='Times that its process was lost and it began anew.'),
    sa.Column('seconds', sa.Double(), nullable=True, comment='Time of its run.'),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True, comment='When it was last begun.'),
    sa.CheckConstraint("state IN ('waiting', 'running', 'complete', 'pruned')", name=op.f('ck_ml_hpo_trials_state_known')),
    sa.PrimaryKeyConstraint('study_name', 'number', name=op.f('pk_ml_hpo_trials')),
    sa.UniqueConstraint('study_name', 'point', name=op.f('uq_ml_hpo_trials_study_name')),
    comment='Trials of the hyperparameter searches: what several processes share and a stopped search resumes from.'
    )


def downgrade() -> None:
    op.drop_table('ml_hpo_trials')
    op.drop_index('ix_hpo_pattern_memory_algorithm_name_problem_type', table_name='hpo_pattern_memory')
    op.drop_table('hpo_pattern_memory')
