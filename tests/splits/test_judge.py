"""The leakage audit of a scope: outcomes of holdout patients are not looked at."""

import numpy as np
import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.scope import default_scope
from e2i_dagster.splits import register_split, store_assignments
from e2i_dagster.splits.leakage_check import audit_frame
from e2i_dagster.versions import ledger
from e2i_dagster.versions.ledger import DataVersion


def test_a_feature_that_tells_the_outcome_of_holdout_patients_alone_is_not_seen(database: sa.Engine):
    scope = default_scope()
    draw = np.random.default_rng(3)
    holdout = np.arange(2_000) >= 400
    label = draw.integers(0, 2, 2_000)
    frame = pd.DataFrame(
        {
            "patient_id": [f"P{number}" for number in range(2_000)],
            "index_date": pd.Timestamp("2024-03-01"),
            "label": pd.array(label, dtype="Int64"),
            "measure": np.where(holdout, 20.0 * label - 10, 0) + draw.normal(size=2_000),
        }
    )
    splits = pd.DataFrame({"patient_id": frame["patient_id"], "split": np.where(holdout, "holdout", "train")})
    ledger.record(database, DataVersion("training_frame", scope.key, "digest", 2_000))
    before = audit_frame(database, scope, frame, run_id="nobody is in the holdout yet")
    assert not before.passed and "measure" in before.text
    with database.begin() as connection:
        store_assignments(connection, register_split(connection, scope.cohort, scope.split), splits)
    after = audit_frame(database, scope, frame, run_id="most are")
    assert after.passed, after.text
