"""``python -m e2i_dagster.database.revision MESSAGE``: the next migration, made on a scratch database."""

from __future__ import annotations

import secrets
import sys

from e2i_dagster.database.connection import drop_database, scratch_database
from e2i_dagster.database.schema import write_revision


def main(arguments: list[str]) -> int:
    """``MESSAGE``: write the next migration, with the help of a scratch database."""
    if len(arguments) != 1:
        sys.stderr.write('Usage: python -m e2i_dagster.database.revision "why the tables change"\n')
        return 2
    name = f"e2i_scratch_{secrets.token_hex(4)}"
    url = scratch_database(name)
    try:
        path = write_revision(arguments[0], url)
    finally:
        drop_database(name)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
