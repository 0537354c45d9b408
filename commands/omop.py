"""``e2i cohort omop``: a cohort definition of OHDSI's tools over OMOP tables in files."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from commands.console import as_json, command_errors, print_table

if TYPE_CHECKING:
    import pandas as pd


@click.command("omop")
@click.argument("circe", metavar="CIRCE.json", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the cohort rows there (.csv or .parquet).",
)
@click.option(
    "--data-end",
    type=click.DateTime(["%Y-%m-%d"]),
    help="End of observation periods that have none (default: the last day of the data).",
)
@click.option(
    "--quote",
    type=click.Choice(['"', "none"]),
    default='"',
    show_default=True,
    help="Mark around cells of CSV files; none where they are written without quoting.",
)
@as_json
@command_errors
def omop_command(
    circe: Path,
    folder: Path,
    out: Path | None,
    data_end: datetime | None,
    quote: Literal['"', "none"],
    json_output: bool,
) -> None:
    """Persons and periods of an OHDSI Circe cohort expression over the OMOP tables in FOLDER.

    Shows counts; --out writes subject_id, cohort_start_date, cohort_end_date of every person of your files.
    The part of Circe that is read is in docs/omop.md.
    """
    from e2i_dagster.cohorts.omop import build

    if out is not None and (out.suffix not in (".csv", ".parquet") or not out.absolute().parent.is_dir()):
        raise click.UsageError("--out takes a file .csv or .parquet in a folder that exists.")
    cohort = build(circe, folder, data_end=None if data_end is None else data_end.date(), quote=quote)
    if out is not None:
        _write(cohort.rows, out)
    shown = cohort.to_metadata()
    if json_output:
        record = shown | {"rules": cohort.shown_rules(), "out": None if out is None else str(out)}
        click.echo(json.dumps(record))
        return
    click.echo(f"{shown['persons']} persons with {shown['periods']} periods in the cohort.")
    if "open_periods" in shown:
        click.echo(
            f"{shown['open_periods']} observation periods have no end; they are taken to go on until "
            f"{shown['observed_until']} ({'as given' if data_end else 'the last day of the data; --data-end sets it'})."
        )
    print_table("Inclusion rules (gain: persons who fail this rule alone)", list(cohort.shown_rules()))
    if out is not None:
        click.echo(f"Written: {out}")


def _write(rows: pd.DataFrame, out: Path) -> None:
    """The rows as a file, complete or not at all."""
    part = out.with_name(f".{out.name}.part")
    if out.suffix == ".csv":
        rows.to_csv(part, index=False, date_format="%Y-%m-%d")
    else:
        rows.to_parquet(part, index=False)
    part.replace(out)
