"""Waiting until answers are in the prediction log, which a service writes after it has answered."""

from __future__ import annotations

import time

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.errors import UnavailableError
from e2i_dagster.tables import raw_table


def wait_until_logged(engine: sa.Engine, answers: pd.DataFrame, *, seconds: float = 60.0) -> int:
    """Wait until every answer is a row of ``ml_predictions``; returns their number.

    Args:
        answers: answers of one call of :func:`e2i_dagster.serving.client.score`, with ``request_id``.

    Raises:
        UnavailableError: rows are still missing after ``seconds``; says how many.
    """
    table = raw_table("ml_predictions")
    requests = sorted(set(answers["request_id"].astype(str)))
    query = sa.select(sa.func.count()).where(table.c.origin == "live", table.c.request_id.in_(requests))
    deadline = time.monotonic() + seconds
    while True:
        with engine.connect() as connection:
            found = connection.execute(query).scalar_one()
        if found >= len(answers):
            return found
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{len(answers) - found} of {len(answers)} answers are not in the prediction log after "
                f"{seconds:.0f} s.",
                remedy="`e2i status` shows the health of the service and its log.",
            )
        time.sleep(0.1)
