"""The table ``hpo_pattern_memory``: what finished searches found best."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.tables.description.models import hpo_pattern_memory as MEMORY
from e2i_dagster.training.warm_start import Pattern, RememberedTrial, StudyData


def write_pattern(engine: sa.Engine, pattern: Pattern) -> None:
    """Remember a study; written again, it is replaced."""
    values = {
        "scope": pattern.scope,
        "algorithm_name": pattern.data.algorithm,
        "problem_type": pattern.data.problem_type,
        "metric": pattern.data.metric,
        "training_rows": pattern.data.training_rows,
        "n_features": pattern.data.n_features,
        "trials": [trial.model_dump(mode="json") for trial in pattern.trials],
    }
    statement = insert(MEMORY).values(study_name=pattern.study_name, **values)
    with engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["study_name"], set_={**values, "updated_at": sa.func.now()}
            )
        )


def read_patterns(engine: sa.Engine, algorithm: str, problem_type: str) -> list[Pattern]:
    """Earlier studies of ``algorithm`` and ``problem_type``, by name of the study."""
    query = (
        sa.select(MEMORY)
        .where(MEMORY.c.algorithm_name == algorithm, MEMORY.c.problem_type == problem_type)
        .order_by(MEMORY.c.study_name)
    )
    with engine.connect() as connection:
        return [_pattern(row) for row in connection.execute(query)]


def _pattern(row: sa.Row[tuple[object, ...]]) -> Pattern:
    found = row._mapping
    return Pattern(
        study_name=found["study_name"],
        scope=found["scope"],
        data=StudyData(
            algorithm=found["algorithm_name"],
            problem_type=found["problem_type"],
            metric=found["metric"],
            training_rows=found["training_rows"],
            n_features=found["n_features"],
        ),
        trials=tuple(RememberedTrial.model_validate(trial) for trial in found["trials"]),
    )
