"""Copies of a database for tests."""

import secrets


def clone(database: str) -> tuple[str, str]:
    """Name and owner's address of a new copy of ``database``, which nobody may be connected to."""
    from e2i_dagster.database import connection
    from e2i_dagster.database.server import DATABASE

    name = f"e2i_{secrets.token_hex(6)}"
    with connection._admin(connection._url("owner", DATABASE)) as admin:
        # Copied as files: half the processor time of logging every block of a small database.
        admin.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {database} STRATEGY FILE_COPY")
    return name, connection._text(connection._url("owner", name))
