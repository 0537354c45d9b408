"""What every command shares at the terminal: errors, ``--json``, tables."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
from sqlalchemy.exc import OperationalError

from e2i_dagster.display import Table
from e2i_dagster.errors import E2IError, UnavailableError


def refuse(
    record: dict[str, Any], exit_code: int, *, json_output: bool, report: dict[str, Any] | None = None
) -> NoReturn:
    """End the command: the message for people on stderr and, with ``--json``, all that is known on stdout.

    Args:
        record: as :meth:`E2IError.to_record` makes it. report: what the command found before it was refused.
    """
    click.echo(f"Error: {record['message']}", err=True)
    if json_output:
        click.echo(json.dumps({"success": False, **(report or {}), "error": record}, default=str))
    sys.exit(exit_code)


def stop(error: E2IError, *, json_output: bool, report: dict[str, Any] | None = None) -> NoReturn:
    """End a command that has an answer, and the answer is no: ``report`` is what was found, ``error`` why it stops.

    People have been shown what was found before; programs get it here, beside the error.
    """
    refuse(error.to_record(), error.exit_code, json_output=json_output, report=report)


def command_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """End with the error's message and exit code instead of a traceback when a user can mend it."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        json_output = kwargs.get("json_output", False)
        try:
            return function(*args, **kwargs)
        except E2IError as error:
            refuse(error.to_record(), error.exit_code, json_output=json_output)
        except OperationalError as error:
            remedy = (
                "Look for a full disk or a stopped server, mend it, and run the command again: what was "
                "begun is taken up or done anew."
            )
            said = str(error.orig).strip().splitlines()[0]
            stopped = UnavailableError(f"The warehouse stopped answering: {said}\n{remedy}", remedy=remedy)
            refuse(stopped.to_record(), stopped.exit_code, json_output=json_output)

    return run


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Keep the warnings of libraries from the terminal; they go to the log ``py.warnings``.

    They are words between programmers, with the file and line of a library; what a user can act on is said by the
    product. Python's own switches (``PYTHONWARNINGS``, ``-W``) show them.
    """

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        text = warnings.formatwarning(message, category, filename, lineno)
        logging.getLogger("py.warnings").debug("%s", text)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = note
        yield


class Commands(click.Group):
    """The root of the command: a wrong use under ``--json`` is reported in the form of every other error."""

    def main(self, args: Any = None, *arguments: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """As :meth:`click.Group.main`, without libraries' warnings on the terminal."""
        with quiet_warnings():
            return self._main(args, *arguments, standalone_mode=standalone_mode, **named)

    def _main(self, args: Any, *arguments: Any, standalone_mode: bool, **named: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        if not standalone_mode or "--json" not in given:
            return super().main(args, *arguments, standalone_mode=standalone_mode, **named)
        try:
            ended = super().main(given, *arguments, standalone_mode=False, **named)
        except click.ClickException as error:
            refuse(_usage_record(error), error.exit_code, json_output=True)
        except click.Abort:
            sys.exit(1)
        sys.exit(ended if isinstance(ended, int) else 0)


def _usage_record(error: click.ClickException) -> dict[str, Any]:
    parameter = getattr(error, "param", None)
    name = None if parameter is None else max(parameter.opts, key=len)
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "e2i"
    remedy = f"`{path} --help` shows how it is used."
    said = E2IError(error.format_message(), field=name or getattr(error, "option_name", None), remedy=remedy)
    return said.to_record() | {"code": "usage"}


mapping_option = click.option(
    "--mapping",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="How the file is written, in the words of an import mapping (docs/loading.md).",
)
as_json = click.option("--json", "json_output", is_flag=True, help="Machine-readable output.")


def say(json_output: bool, text: str) -> None:
    click.echo(text, err=json_output)


def print_table(title: str, rows: Table | list[dict[str, Any]], drop: tuple[str, ...] = ()) -> None:
    """A table, or rows that all have the columns of the first; without rows nothing.

    Columns of numbers and those named ``rows`` and ``seconds`` are aligned to the right. Values of rows are written as
    they are, those of a table as everywhere; ``drop`` names columns that are left out.
    """
    from rich.console import Console
    from rich.table import Table as Printed

    if not isinstance(rows, Table):
        names = [name for name in rows[0] if name not in drop] if rows else []
        rows = Table(names, [["" if row[name] is None else str(row[name]) for name in names] for row in rows])
    if not rows.rows:
        return
    table = Printed(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name, kind in zip(rows.columns, rows.types, strict=True):
        right = name in ("rows", "seconds") or kind in ("int", "float")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows.texts:
        table.add_row(*row)
    # Cells are data: `[causal]` and `:name:` in them are no markup.
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    console.print()
    console.print(table)
