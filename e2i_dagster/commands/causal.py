"""``e2i causal``: estimate a scope's effect, show what was found, write it as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e2i_dagster.commands.console import as_json, command_errors, print_table, say
from e2i_dagster.commands.launch import exit_code, failure_text, launch

if TYPE_CHECKING:
    from e2i_dagster.causal.heterogeneity import EffectHeterogeneity
    from e2i_dagster.causal.study import CausalEstimates

scope_option = click.option("--scope", default=None, help="A scope; the default one if not given.")


@click.group()
def causal() -> None:
    """The effect of the question in config/causal.yaml on a scope's outcome."""


@causal.command("estimate")
@scope_option
@as_json
@command_errors
def estimate_command(scope: str | None, json_output: bool) -> None:
    """Estimate, cross-validate and try to refute the effect for SCOPE (job `estimate_effects`)."""
    from sensors.plan import PlannedRun

    key = _known(scope)
    say(json_output, f"estimate_effects {key}")
    result = launch("estimate_effects", planned=PlannedRun("estimate_effects", key), show=not json_output)
    if not result.success:
        click.echo(f"Error: {failure_text(result)}", err=True)
        sys.exit(exit_code(result))
    _show(key, json_output)


@causal.command("show")
@scope_option
@as_json
@command_errors
def show_command(scope: str | None, json_output: bool) -> None:
    """What the newest estimate for SCOPE says."""
    _show(_known(scope), json_output)


@causal.command("report")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@scope_option
@command_errors
def report_command(file: Path, scope: str | None) -> None:
    """Write the newest estimate for SCOPE as one self-contained HTML page to FILE."""
    from e2i_dagster.causal.pages import study_page
    from e2i_dagster.errors import UnavailableError

    study, heterogeneity = _stored(_known(scope))
    try:
        file.write_text(study_page(study, heterogeneity), encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"{file}: cannot be written ({error.strerror}). Name another file.") from None
    click.echo(str(file))


def _known(scope: str | None) -> str:
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.config.scope import read_scope

    return (
        read_scope(scope, current_policy().folder / "scopes").key if scope else current_policy().default_scope
    )


def _stored(scope: str) -> tuple[CausalEstimates, EffectHeterogeneity]:
    from e2i_dagster.causal.heterogeneity import EffectHeterogeneity
    from e2i_dagster.causal.study import CausalEstimates
    from e2i_dagster.config.environment import lake_url
    from e2i_dagster.errors import InputError
    from e2i_dagster.warehouse import ledger
    from e2i_dagster.warehouse.connection import engine
    from e2i_dagster.warehouse.lake import Lake

    lake = Lake(lake_url())
    with engine(role="app").connect() as connection:
        study = ledger.current(connection, "causal_estimates").get(scope)
        heterogeneity = ledger.current(connection, "effect_heterogeneity").get(scope)
    if study is None or study.path is None or heterogeneity is None or heterogeneity.path is None:
        raise InputError(
            f"No effect was estimated for scope {scope}. Run `e2i causal estimate --scope {scope}`."
        )
    return (
        CausalEstimates.model_validate(lake.read_document(study.path, CausalEstimates)),
        EffectHeterogeneity.model_validate(lake.read_document(heterogeneity.path, EffectHeterogeneity)),
    )


def _show(scope: str, json_output: bool) -> None:
    from e2i_dagster.causal.pages import calibration_sentence, heterogeneity_sentence

    study, heterogeneity = _stored(scope)
    if json_output:
        record = {"scope": scope, "estimates": study.to_record(), "heterogeneity": heterogeneity.to_record()}
        click.echo(json.dumps(record))
        return
    found = study.found
    click.echo(study.question)
    if found.consensus_effect is None or found.consensus_interval is None:
        click.echo(f"\nNot estimable: {found.reason}")
        return
    print_table(
        "Effect",
        [
            {
                "estimator": one.label,
                "estimand": one.estimand,
                "effect": "-" if one.point is None else f"{one.point:.3f}",
                "interval": "-" if one.point is None else f"{one.lower:.3f} to {one.upper:.3f}",
                "state": one.state if not one.reason else f"{one.state}: {one.reason}",
            }
            for one in found.effects.estimates
        ],
    )
    lower, upper = found.consensus_interval
    agreement = "undefined" if found.agreement_score is None else f"{found.agreement_score:.0%}"
    click.echo(
        f"\nConsensus {found.consensus_effect:.3f} ({lower:.3f} to {upper:.3f}), agreement {agreement}, "
        f"{found.effects.rows:,} patients."
    )
    print_table(
        "Refuters",
        [
            {
                "refuter": one.name,
                "expected": f"{one.expected:.4f}",
                "found": "-" if one.found is None else f"{one.found:.4f}",
                "verdict": "passed" if one.passed else "FAILED",
            }
            for one in study.refutations
        ],
    )
    click.echo(f"\nNegative controls: {calibration_sentence(study)}")
    click.echo(f"Who to treat: {heterogeneity_sentence(heterogeneity)}")
