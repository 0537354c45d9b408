"""Requests for slot shadow: what slot production (before there is one: staging) has answered is asked once more.

The requests are read from the prediction log, some seconds after they were answered: no answer waits for the shadow,
and a shadow that is slow or down disturbs nobody. Its answers are compared and counted (``ml_shadow_comparisons``),
neither returned nor logged. The supervisor of slot shadow starts this process and ends it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from e2i_dagster.config.serving import MirrorPolicy, ServingPolicy
from e2i_dagster.errors import E2IError
from e2i_dagster.serving.client import score_answerable
from e2i_dagster.serving.state import PROBE_HEADER, ServiceRecord, deployed_name, read_record, service_of
from e2i_dagster.tables import raw_table
from e2i_dagster.tables.description.serving import ml_shadow_comparisons

logger = logging.getLogger("e2i.mirror")

#: An answer is in the prediction log at the latest after this many seconds, unless the warehouse was away.
_LOGGED_SECONDS = 3.0


def mirror(
    engine: sa.Engine, state: Path, name: str, policy: MirrorPolicy, since: dt.datetime, until: dt.datetime
) -> list[dict[str, Any]]:
    """Ask the shadow ``name`` what its source has answered after ``since`` and up to ``until``; record the comparison.

    Args:
        name: under which the service in slot shadow is recorded.

    Returns:
        The recorded rows of ``ml_shadow_comparisons``: one for each model whose source answered in that time.

    Raises:
        UnavailableError: the shadow does not answer.
    """
    shadow = read_record(state, name)
    if shadow is None or shadow.active is None:
        return []
    done = []
    for model_id in shadow.active.model_ids:
        source = _source(state, name, model_id)
        if source is not None:
            row = _mirror_model(engine, shadow, model_id, source, policy, since, until)
            done += [] if row is None else [row]
    if done:
        with engine.begin() as connection:
            connection.execute(sa.insert(ml_shadow_comparisons), done)
    return done


def _source(state: Path, name: str, model_id: str) -> str | None:
    """The version that answers for the model in slot production, else in slot staging."""
    model = model_id.rpartition("/")[0]
    for slot in ("production", "staging"):
        record = read_record(state, deployed_name(service_of(name), slot))
        if record is not None and record.active is not None and record.supervised():
            found = [model_id for model_id in record.active.model_ids if model_id.rpartition("/")[0] == model]
            if found:
                return found[0]
    return None


def _mirror_model(
    engine: sa.Engine,
    shadow: ServiceRecord,
    model_id: str,
    source: str,
    policy: MirrorPolicy,
    since: dt.datetime,
    until: dt.datetime,
) -> dict[str, Any] | None:
    import pandas as pd

    name, _, version = model_id.rpartition("/")
    requests, answered = _answered(engine, source, since, until, policy.most_rows)
    if not answered:
        return None
    frame = pd.DataFrame([dict(row["features_available_at_prediction"]) for row in answered])
    answers, waiting = score_answerable(
        shadow.url,
        frame.assign(row=range(len(frame))),
        model_name=name,
        id_column="row",
        headers={PROBE_HEADER: shadow.token},
    )
    before = pd.DataFrame(answered).loc[answers["row"]]
    difference = (answers["prediction_value"].to_numpy() - before["prediction_value"].astype(float)).abs()
    classes = before["prediction_class"].notna().all()
    same = (answers["prediction"].astype(str).to_numpy() == before["prediction_class"].to_numpy()).sum()
    times = [row["prediction_timestamp"] for row in answered]
    return {
        "model_name": name,
        "shadow_version": version,
        "source_version": source.rpartition("/")[2],
        "first_at": min(times),
        "last_at": max(times),
        "requests": requests,
        "left_out": requests - len(answered),
        "failed": len(waiting),
        "compared": len(answers),
        "same_class": int(same) if classes and len(answers) else None,
        "mean_difference": float(difference.mean()) if len(answers) else None,
        "largest_difference": float(difference.max()) if len(answers) else None,
    }


def _answered(
    engine: sa.Engine, source: str, since: dt.datetime, until: dt.datetime, most: int
) -> tuple[int, list[dict[str, Any]]]:
    """How many requests the source has answered in that time, and the first ``most`` of them."""
    table = raw_table("ml_predictions")
    asked = (
        table.c.origin == "live",
        table.c.model_id == source,
        table.c.prediction_timestamp > since,
        table.c.prediction_timestamp <= until,
    )
    names = (
        "prediction_timestamp",
        "prediction_value",
        "prediction_class",
        "features_available_at_prediction",
    )
    query = sa.select(*(table.c[name] for name in names)).where(*asked)
    with engine.connect() as connection:
        count = connection.scalar(sa.select(sa.func.count()).select_from(table).where(*asked))
        rows = connection.execute(query.order_by(table.c.prediction_timestamp).limit(most)).mappings().all()
    return int(count or 0), [dict(row) for row in rows]


def main(arguments: list[str] | None = None) -> int:
    """Mirror until the supervisor that started this process ends."""
    parser = argparse.ArgumentParser(prog="mirror")
    parser.add_argument("name")
    parser.add_argument("--state", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr
    )
    from e2i_dagster.database.connection import engine

    policy, parent = ServingPolicy.load().mirror, os.getppid()
    since = dt.datetime.now(dt.UTC)
    while os.getppid() == parent:
        time.sleep(min(policy.every_seconds, 1.0))
        until = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=_LOGGED_SECONDS)
        if (until - since).total_seconds() < policy.every_seconds:
            continue
        try:
            mirror(engine("app"), chosen.state, chosen.name, policy, since, until)
        except (E2IError, SQLAlchemyError) as error:
            # Tried again with the same requests; beyond the bound they are counted as left out.
            logger.warning("Requests could not be mirrored: %s", type(error).__name__)
            continue
        since = until
    return 0


if __name__ == "__main__":
    sys.exit(main())
