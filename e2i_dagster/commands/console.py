"""What every command shares at the terminal: errors, ``--json``, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from sqlalchemy.exc import OperationalError

from e2i_dagster.errors import E2IError


def command_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """End with the error's message and exit code instead of a traceback when a user can mend it."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except E2IError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)
        except OperationalError as error:
            said = str(error.orig).strip().splitlines()[0]
            click.echo(
                f"Error: The warehouse stopped answering: {said}\n"
                "Look for a full disk or a stopped server, mend it, and run the command again: what was "
                "begun is taken up or done anew.",
                err=True,
            )
            sys.exit(5)

    return run


as_json = click.option("--json", "json_output", is_flag=True, help="Machine-readable output.")


def say(json_output: bool, text: str) -> None:
    click.echo(text, err=json_output)


def print_table(title: str, rows: list[dict[str, Any]], drop: tuple[str, ...] = ()) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    names = [name for name in rows[0] if name not in drop]
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name in ("rows", "seconds") else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if row[name] is None else str(row[name]) for name in names))
    # Cells are data: `[causal]` and `:name:` in them are no markup.
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    console.print()
    console.print(table)
