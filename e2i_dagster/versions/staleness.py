"""Questions to the ledger about what is newer than what."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from e2i_dagster.tables.description.control import ml_data_versions as versions


def older_than(
    connection: sa.Connection,
    asset: str,
    partitions: Sequence[str],
    upstream: Sequence[str],
    upstream_partition: str | None = None,
) -> list[str]:
    """Those ``partitions`` of ``asset`` that were never stored, or stored before an ``upstream`` asset.

    ``upstream_partition`` limits the upstream versions to one partition.
    """
    newest_upstream = sa.select(sa.func.max(versions.c.version_id)).where(
        versions.c.asset.in_(list(upstream))
    )
    if upstream_partition is not None:
        newest_upstream = newest_upstream.where(versions.c.partition == upstream_partition)
    upstream_id = connection.execute(newest_upstream).scalar()
    if upstream_id is None:
        return []
    rows = connection.execute(
        sa.select(versions.c.partition, sa.func.max(versions.c.version_id))
        .where(versions.c.asset == asset)
        .group_by(versions.c.partition)
    )
    stored = {row[0]: row[1] for row in rows}
    return [partition for partition in partitions if stored.get(partition, -1) < upstream_id]


def labels_since_training(connection: sa.Connection, scope: str) -> int:
    """Labelled patients that ``scope`` has now and had not when its current model was trained.

    0 when no model was trained yet.
    """
    trained_id = connection.execute(
        sa.select(sa.func.max(versions.c.version_id)).where(
            versions.c.asset == "trained_model", versions.c.partition == scope
        )
    ).scalar()
    if trained_id is None:
        return 0
    frames = sa.select(versions.c.rows).where(
        versions.c.asset == "training_frame", versions.c.partition == scope
    )
    newest = frames.order_by(versions.c.version_id.desc()).limit(1)
    at_training = (
        frames.where(versions.c.version_id < trained_id).order_by(versions.c.version_id.desc()).limit(1)
    )
    now, then = connection.execute(newest).scalar(), connection.execute(at_training).scalar()
    return max(0, (now or 0) - (then or 0))
