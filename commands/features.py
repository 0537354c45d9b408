"""``e2i features``: which features there are, what they say of a cohort or a patient, which could be added."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.console import as_json, command_errors, print_table

if TYPE_CHECKING:
    from e2i_dagster.features.explore import Setting

cohort_option = click.option(
    "--cohort", metavar="COHORT", help="Its patients; the default scope's cohort if not given."
)


@click.group()
def features() -> None:
    """Features of config/features: list, preview, explain, suggest. They only read."""


@features.command("list")
@as_json
@command_errors
def list_command(json_output: bool) -> None:
    """Every feature with how it is calculated, and a warning where it grows with the time since the data began."""
    from e2i_dagster.config.current_features import feature_views
    from e2i_dagster.config.feature_problems import growing

    rows, warnings = [], {}
    for view in feature_views():
        warnings |= growing(view)
        rows += [
            {
                "feature": feature.name,
                "view": view.name,
                "unit": feature.unit,
                "calculation": feature.words(),
                "sources": ", ".join(view.sources(feature)),
                "window_days": view.window_days(feature),
                "on_missing": feature.on_missing,
                "description": feature.description,
            }
            for feature in view.features
        ]
    if json_output:
        click.echo(json.dumps({"features": rows, "warnings": warnings}))
        return
    print_table("Features", rows, drop=("sources", "window_days", "on_missing", "description"))
    for name, said in warnings.items():
        click.echo(f"Warning: {name}: {said}")


@features.command("preview")
@click.argument("names", metavar="[FEATURE]...", nargs=-1)
@cohort_option
@as_json
@command_errors
def preview_command(names: tuple[str, ...], cohort: str | None, json_output: bool) -> None:
    """What features are for a cohort the day before the index dates: missing, mean, quantiles, frequent values."""
    from e2i_dagster.features.explore import preview

    previews = [feature.model_dump() for feature in preview(_setting(cohort)[1], names)]
    if json_output:
        click.echo(json.dumps({"features": previews}))
        return
    rows = []
    for entry in previews:
        quantiles = entry["quantiles"] or {}
        numbers = {"mean": entry["mean"], **{name: quantiles.get(name) for name in ("p05", "p50", "p95")}}
        shown = {name: None if value is None else f"{value:.4g}" for name, value in numbers.items()}
        frequent = ", ".join(
            f"{name} {count:,}" for name, count in list((entry["categories"] or {}).items())[:3]
        )
        share = f"{entry['missing'] / entry['rows']:.1%}" if entry["rows"] else None
        rows.append(
            {
                "feature": entry["feature"],
                "rows": entry["rows"],
                "missing": share,
                **shown,
                "frequent": frequent,
            }
        )
    print_table("Features", rows)


@features.command("explain")
@click.argument("feature")
@click.argument("patient")
@cohort_option
@as_json
@command_errors
def explain_command(feature: str, patient: str, cohort: str | None, json_output: bool) -> None:
    """The value of FEATURE for one PATIENT, and every row of it: which count, and why the others do not.

    Needs E2I_ALLOW_PATIENT_LEVEL=1; each opening is recorded in ml_patient_level_access.
    """
    from e2i_dagster.cohorts.access import record_opening, require_patient_level
    from e2i_dagster.database.connection import engine
    from e2i_dagster.features.explore import explain_feature, feature_named

    require_patient_level("e2i features explain")
    feature_named(feature)
    name, setting = _setting(cohort)
    answer = explain_feature(setting, feature, patient)
    record_opening(engine(role="app"), "features explain", name, patient=patient)
    if json_output:
        click.echo(json.dumps(dataclasses.asdict(answer), default=str))
        return
    value = f"unknown: {answer.unknown_because}" if answer.unknown_because else answer.value
    click.echo(f"{answer.feature} of {patient} on {answer.index_date} is {value}\n{answer.words}")
    print_table("Rows", list(answer.rows))


@features.command("suggest")
@click.argument("cohort")
@click.option(
    "--days",
    type=click.IntRange(min=1),
    help="Window before the index date; the lookback of the cohort if not given.",
)
@click.option(
    "--min-share",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Of patients who have the code.",
)
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    help="A new file of features, such as config/features/own.yaml.",
)
@as_json
@command_errors
def suggest_command(
    cohort: str, days: int | None, min_share: float, write: Path | None, json_output: bool
) -> None:
    """Counts of every kind of event and code that enough patients of COHORT have before their index dates.

    No outcome is looked at. Codes of fewer than 11 patients are left out.
    """
    from e2i_dagster.config.cohort import read_cohort
    from e2i_dagster.errors import InputError
    from e2i_dagster.features.explore import suggest

    if write is not None and write.exists():
        remedy = "Name a new file."
        raise InputError(
            f"{write} exists and is not overwritten. {remedy}", file=write, field="--write", remedy=remedy
        )
    days = days or max(1, read_cohort(cohort).temporal_requirements.lookback_days)
    found = suggest(_setting(cohort)[1], days=days, min_share=min_share)
    suggestions = [dataclasses.asdict(suggestion) for suggestion in found]
    if write is not None and found:
        _write(write, cohort, [suggestion.feature for suggestion in found])
    if json_output:
        click.echo(json.dumps({"suggestions": suggestions, "file": str(write) if write and found else None}))
        return
    rows = [{**record, "feature": record["feature"]["name"]} for record in suggestions]
    print_table("Candidates", rows)
    if not found:
        click.echo(f"No code is on record for enough patients in the {days} days before their index dates.")
    elif write is not None:
        click.echo(f"{write} has {len(found)} features. Take out what is not wanted.")


def _write(path: Path, cohort: str, features: list[dict[str, Any]]) -> None:
    import yaml

    content = {
        "keys": ["patient_id"],
        "description": f"Counts of codes of cohort {cohort}.",
        "features": features,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")


def _setting(cohort: str | None) -> tuple[str, Setting]:
    """The current patients of a cohort and the tables that features are computed from."""
    from e2i_dagster.cohorts.inputs import read_current
    from e2i_dagster.config.cohort import read_cohort
    from e2i_dagster.config.current_features import more_tables
    from e2i_dagster.config.feature_views import FEATURE_TABLES
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.errors import InputError
    from e2i_dagster.features.explore import setting_of
    from e2i_dagster.policy_files.environment import lake_url
    from e2i_dagster.versions import ledger
    from e2i_dagster.versions.coverage import coverage
    from e2i_dagster.versions.lake import Lake

    policy = current_policy()
    name = cohort or policy.scope(policy.default_scope).cohort
    definition = read_cohort(name)
    warehouse, lake = engine(role="app"), Lake(lake_url())
    version = ledger.current(warehouse, "cohort").get(name)
    if version is None or version.file is None:
        remedy = f"Build it first: `e2i run` with a scope on {name}."
        raise InputError(
            f"Cohort {name} was never built. {remedy}", field="cohort", value=name, remedy=remedy
        )
    tables = read_current(warehouse, lake, [*FEATURE_TABLES, *more_tables()], months=policy.sources.months)
    lags = [scope.source_lag_days for scope in policy.scopes.values() if scope.cohort == name]
    return name, setting_of(
        lake.read_frame([version.file]),
        tables,
        brand=definition.brand,
        covered={table: coverage(warehouse, [table], policy.sources.months) for table in tables},
        source_lag_days=max(lags, default=0),
    )
