"""A row replaces what has its key, but for the columns that are kept."""

import sqlalchemy as sa

from e2i_dagster.database.locks import acquire_lock, lock_transaction
from e2i_dagster.database.upsert import upsert


def test_a_row_replaces_what_has_its_key(database: sa.Engine) -> None:
    table = sa.Table(
        "upserted",
        sa.MetaData(),
        sa.Column("a", sa.Integer, primary_key=True),
        sa.Column("b", sa.Text, primary_key=True),
        sa.Column("changed", sa.Text),
        sa.Column("kept", sa.Text),
        sa.Column("times", sa.Integer, server_default="1"),
        prefixes=["TEMPORARY"],
    )
    with database.begin() as connection:
        table.create(connection)
        for text in ("first", "second"):
            rows = [{"a": 1, "b": key, "changed": text, "kept": text} for key in ("x", text)]
            statement = upsert(table, rows[0], keep=["kept"], change={"times": table.c.times + 1})
            connection.execute(statement, rows)
        found = connection.execute(sa.select(table).order_by(table.c.b)).all()
    assert found == [
        (1, "first", "first", "first", 1),
        (1, "second", "second", "second", 1),
        (1, "x", "second", "first", 2),
    ]


def test_a_lock_of_the_server_ends_with_its_transaction_or_connection(database: sa.Engine) -> None:
    waited = []

    def free() -> bool:
        try:
            acquire_lock(database.url, "mine", seconds=0, waiting=waited.append).close()
        except TimeoutError:
            return False
        return True

    with database.begin() as connection:
        lock_transaction(connection, "mine")
        assert not free()
        assert len(waited) == 1
        acquire_lock(database.url, "other", seconds=0).close()
    assert free()
    with acquire_lock(database.url, "mine"):
        assert not free()
    assert free()
