"""``e2i import``: what a supplier's folder is, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.console import as_json, command_errors, print_table, stop

if TYPE_CHECKING:
    from e2i_dagster.cohorts.coverage import RuleHits
    from e2i_dagster.errors import InputError
    from e2i_dagster.sources.check import ImportCheck, TableCheck


@click.group("import")
def import_group() -> None:
    """Your own files: what they hold and how they map to our tables."""


@import_group.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--mapping", type=click.Path(path_type=Path), help="Judge this mapping instead of proposing one."
)
@click.option("--write-mapping", is_flag=True, help="Write the proposal to FOLDER/mapping.yaml.")
@as_json
@command_errors
def check_command(folder: Path, mapping: Path | None, write_mapping: bool, json_output: bool) -> None:
    """Which file of FOLDER is which table, which column is ours, what a load would reject, what rules find.

    Nothing is loaded. Exit code 3 when the folder cannot be read with the mapping yet.
    """
    from e2i_dagster.config.mapping import ImportMapping
    from e2i_dagster.config.quality import QualityPolicy
    from e2i_dagster.errors import ConfigError, InputError
    from e2i_dagster.policy_files.environment import config_folder
    from e2i_dagster.sources.check import check_folder, mapping_yaml, quality_yaml
    from e2i_dagster.tables.vocabulary import load_vocabulary

    if write_mapping and mapping is not None:
        raise click.UsageError("--write-mapping writes a proposal; with --mapping there is none.")
    target = folder / "mapping.yaml"
    if write_mapping and target.exists():
        remedy = f"Judge it with `--mapping {target}`, or move it."
        raise ConfigError(
            f"{target} is there already and is not overwritten. {remedy}",
            file=target, field="--write-mapping", remedy=remedy,
        )  # fmt: skip
    given = None if mapping is None else ImportMapping.load(mapping)
    quality = QualityPolicy.load(
        config_folder(), beside=target.parent if mapping is None else mapping.parent
    ).settings
    expected = {table: settings.expected for table, settings in quality.tables.items()}
    found = check_folder(folder, load_vocabulary(), given, expected=expected)
    hits = _hits(found)
    write_mapping = write_mapping and bool(found.tables)
    if write_mapping:
        target.write_text(mapping_yaml(found), encoding="utf-8")
        beside = target.with_name("quality.yaml")
        proposal = None if beside.exists() else quality_yaml(found, expected)
        if proposal is not None:
            beside.write_text(proposal, encoding="utf-8")
    record = found.to_record() | {"rules": [hit.to_metadata() for hit in hits]}
    if not json_output:
        _print(found, hits)
        if write_mapping:
            also = f" and {beside}, what quality control expects of it" if proposal is not None else ""
            click.echo(f"\nWritten: {target}{also}. Read it, then:")
        elif mapping is None and found.tables:
            click.echo("\n`--write-mapping` writes this proposal to mapping.yaml in the folder. Then:")
        if found.tables:
            click.echo(f"  e2i load --from {folder} --mapping {mapping or target} --dry-run")
    if found.problems or found.unassigned:
        stop(InputError.joined(_unread(folder, found)), json_output=json_output, report=record)
    if json_output:
        click.echo(json.dumps(record))


def _unread(folder: Path, found: ImportCheck) -> list[InputError]:
    """Each thing that keeps the folder from being read: files of no table, then what is wrong with the mapping."""
    from e2i_dagster.errors import InputError

    # What a file of no table lacks says more than that it is one.
    known = [
        error
        for error in found.errors
        if error.field != "files" or Path(error.file or "").name not in found.unassigned
    ]
    refused = {problem.file for problem in known}
    remedy = "Name it under `files` of a table in the mapping, or move it out of the folder."
    files = [
        InputError(
            f"{folder / name}: holds none of our tables ({why}). {remedy}",
            file=folder / name, field="files", value=name, remedy=remedy,
        )
        for name, why in found.unassigned.items()
        if str(folder / name) not in refused
    ]  # fmt: skip
    return [*files, *known]


def _hits(found: ImportCheck) -> list[RuleHits]:
    """What the rules of each cohort find in the mapped rows."""
    from e2i_dagster.cohorts import patient_frame
    from e2i_dagster.cohorts.coverage import rule_hits
    from e2i_dagster.config.cohort import read_cohorts
    from e2i_dagster.config.own_columns import disagreements
    from e2i_dagster.sources.check import readable_rows
    from e2i_dagster.tables.vocabulary import load_vocabulary

    wanted = ("patient_journeys", "patient_clinical")
    if found.delivery is None or any(table not in found.delivery for table in wanted):
        return []
    journeys, clinical = (readable_rows(table, found.delivery[table], load_vocabulary()) for table in wanted)
    patients = patient_frame(journeys, clinical)
    definitions, broken = read_cohorts()
    for error in broken.values():
        click.echo(f"Not looked at: {error}", err=True)
    for said in disagreements(found.mapping, definitions):
        click.echo(f"A load would refuse: {said}.", err=True)
    return [hit for definition in definitions.values() for hit in rule_hits(definition, patients)]


def _print_findings(table: TableCheck) -> None:
    if table.missing_required:
        click.echo(f"Required and not found: {', '.join(table.missing_required)}")
    if table.not_delivered:
        click.echo(
            f"Without a single value, counted as empty by quality control: {', '.join(table.not_delivered)}. "
            f"If that is how these data are, say what tables.{table.table}.expected is in a "
            "quality.yaml beside the mapping, or take them out of config/quality.yaml."
        )
    for partial in table.partial_dates:
        click.echo(f"To choose: {partial.column}: {partial.note}.")
    for said in table.notes:
        click.echo(f"To know: {said}")
    for rule, count in table.left_out.items():
        click.echo(f"Left out by the mapping: {rule}, {count:,} rows")
    for reason, count in table.rejected.items():
        click.echo(f"A load would reject: {reason}, {count:,} rows")


def _print(found: ImportCheck, hits: list[RuleHits]) -> None:
    from e2i_dagster.config.mapping import ImportMapping

    if found.shape:
        click.echo(f"Read as {found.shape}. To look at:")
        for note in found.notes:
            click.echo(f"  - {note}")
    for table in found.tables:
        kinds = ", ".join(f"{name} ({table.formats[name]})" for name in table.files if name in table.formats)
        click.echo(f"\n{table.table}: {kinds or ', '.join(table.files)}, {table.rows:,} rows")
        rows: list[dict[str, Any]] = [
            {
                "file column": match.file_column,
                **({"its label": table.labels.get(match.file_column, "")} if table.labels else {}),
                "ours": match.column,
                "score": f"{match.score:.2f}",
                "date format": match.date_format or "",
                "to look at": "; ".join(match.notes),
            }
            for match in table.matches
            if match.file_column != match.column or match.date_format or match.notes
        ]
        if len(rows) < len(table.matches):
            click.echo(f"{len(table.matches) - len(rows)} columns have our names.")
        print_table("Columns", rows)
        for ours, pattern in table.lists.items():
            click.echo(f"{ours} is the list of {pattern}, empty ones left out.")
        if table.unmatched:
            fate = "kept under their own names" if table.kept_as_own else "not loaded"
            click.echo(f"No match ({fate}): {', '.join(table.unmatched)}")
        if table.own:
            click.echo(
                f"Types of your own columns: {', '.join(f'{n} {kind}' for n, kind in table.own.items())}."
            )
            click.echo(
                "Where no other type is certain it is text, as which all are kept; declare it under `own`."
            )
        _print_findings(table)
    if not found.tables and found.mapping == ImportMapping():
        click.echo("No file holds one of our tables, so no mapping is proposed.")
    left = {name: reason for name, reason in found.not_read.items() if name not in found.unassigned}
    print_table("Not read", [{"file": name, "why": reason} for name, reason in left.items()])
    cohorts = dict.fromkeys(hit.cohort for hit in hits)
    absent = [
        name
        for name in cohorts
        if (coded := [hit for hit in hits if hit.cohort == name and hit.codes])
        and not any(rows for hit in coded for rows in hit.codes.values())
    ]
    shown = [hit.to_metadata() for hit in hits if hit.cohort not in absent]
    print_table("What the rules of the cohorts find (rows are journeys)", shown)
    if absent:
        click.echo(f"\nNo row has a code of: {', '.join(absent)}.")
    if hits and len(absent) == len(cohorts):
        click.echo(
            "These data are of none of the cohorts in config/cohorts: docs/own_data.md says how to add yours."
        )
