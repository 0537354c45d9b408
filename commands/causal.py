"""``e2i causal``: estimate a scope's effect, show what was found, write it as a page, serve individual effects."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.console import as_json, command_errors, mapping_option, print_table, refuse, say
from commands.launch import launch, refuse_failed
from e2i_dagster.display import text

if TYPE_CHECKING:
    import pandas as pd

    from e2i_dagster.causal.heterogeneity import EffectHeterogeneity
    from e2i_dagster.causal.nuisances import Estimand
    from e2i_dagster.causal.registration import EffectModel
    from e2i_dagster.causal.rows import MissingOutcome
    from e2i_dagster.causal.study import CausalEstimates
    from e2i_dagster.config.causal import CausalPolicy

scope_option = click.option("--scope", default=None, help="A scope; the default one if not given.")


class Bounds(click.ParamType):
    """LOW,HIGH: two probabilities."""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in value.split(","))
        except ValueError:
            low, high = 1.0, 0.0
        if not 0 <= low < high <= 1:
            self.fail(
                f"{value!r}: expected two probabilities, the lower one first, such as 0.1,0.9", param, ctx
            )
        return low, high


@click.group()
def causal() -> None:
    """The effect of the question in config/causal.yaml on a scope's outcome."""


@causal.command("estimate")
@scope_option
@as_json
@command_errors
def estimate_command(scope: str | None, json_output: bool) -> None:
    """Estimate, cross-validate and try to refute the effect for SCOPE (job `estimate_effects`)."""
    key = _known(scope)
    _launch("estimate_effects", key, json_output)
    _show(key, json_output)


@causal.command("deploy")
@scope_option
@as_json
@command_errors
def deploy_command(scope: str | None, json_output: bool) -> None:
    """Put SCOPE's model of effects behind the causal service (job `deploy_effects`).

    The service answers for every promoted model of effects. A model that is not promoted is refused with the
    reason (exit code 4).
    """
    from e2i_dagster.serving.deployment import Deployment

    key = _known(scope)
    (model,) = _stored(key, effect_model=_effect_model_type())
    model.require_promoted()
    _launch("deploy_effects", key, json_output)
    (deployed,) = _stored(key, effect_deployment=Deployment)
    if json_output:
        click.echo(deployed.model_dump_json())
        return
    click.echo(f"\n{deployed.url} answers with {deployed.bento_tag}. Ask it:")
    for version in deployed.models:
        click.echo(version.example)


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
@as_json
@command_errors
def report_command(file: Path, scope: str | None, json_output: bool) -> None:
    """Write the newest estimate for SCOPE as one self-contained HTML page to FILE."""
    from e2i_dagster.causal.pages import study_page

    _write(file, study_page(*_found(_known(scope))))
    click.echo(json.dumps({"page": str(file)}) if json_output else str(file))


@causal.command("study")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--treatment", required=True, help="Column of 0/1 or false/true.")
@click.option("--outcome", required=True, help="Numeric or boolean column.")
@click.option(
    "--confounders", required=True, help="Columns measured before the treatment, separated by commas."
)
@click.option("--negative-controls", default="", help="Columns that the treatment cannot have changed.")
@click.option(
    "--missing-outcome",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="Rows without an outcome: refuse the file, or leave them out and count them.",
)
@click.option(
    "--trim",
    type=Bounds(),
    default=None,
    help="Leave out rows whose propensity is outside these bounds, such as 0.1,0.9.",
)
@click.option(
    "--estimand",
    type=click.Choice(["ate", "att"]),
    default="ate",
    show_default=True,
    help="The effect on everyone (ate), or on the treated (att).",
)
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to this file."
)
@mapping_option
@as_json
@command_errors
def study_command(
    file: Path,
    treatment: str,
    outcome: str,
    confounders: str,
    negative_controls: str,
    missing_outcome: MissingOutcome,
    trim: tuple[float, float] | None,
    estimand: Estimand,
    page: Path | None,
    mapping: Path | None,
    json_output: bool,
) -> None:
    """The effect in a file of your own (CSV or Parquet, one row per unit), with refuters and heterogeneity.

    Nothing is stored. Exit code 4 when the effect is not estimable; the reason is printed, with the unadjusted
    difference under that name, and what can be asked instead.
    """
    from e2i_dagster.causal.pages import study_page
    from e2i_dagster.causal.study import study_effect, study_heterogeneity, study_population
    from e2i_dagster.config.causal import CausalPolicy
    from e2i_dagster.config.mapping import HandedMapping
    from e2i_dagster.errors import VerdictError, in_file
    from e2i_dagster.policy_files.environment import config_folder
    from e2i_dagster.sources.handed import identifier_notes, is_identifier, read_handed

    asked: dict[str, Any] = {
        "treatment": treatment,
        "outcome": outcome,
        "confounders": _names(confounders),
        "policy": CausalPolicy.load(config_folder()),
    }
    given = HandedMapping() if mapping is None else HandedMapping.load(mapping)
    # What is named was measured, so its dates have passed.
    named = (treatment, outcome, *_names(confounders), *_names(negative_controls))
    frame = read_handed(
        file,
        text=[name for name in named if is_identifier(name)],
        times=[name for name in named if name in given.dates],
        measured=named,
        mapping=given,
    )
    notes = [
        *identifier_notes(frame, _names(confounders)),
        *_date_notes(frame, _names(confounders), given.dates, "adjusted for"),
        *_date_notes(frame, _names(negative_controls), given.dates, "judged"),
    ]
    with in_file(file):
        population = study_population(frame, missing_outcome=missing_outcome, trim=trim, **asked)
        study = population.note(
            study_effect(
                population.frame,
                question=f"What does {treatment} do to {outcome} in {file.name}? Adjusted for {confounders}.",
                controls=_names(negative_controls),
                estimand=estimand,
                **asked,
            )
        )
    found = study.found
    heterogeneity = study_heterogeneity(
        population.frame,
        estimable=found.state == "estimated" and estimand == "ate",
        reason=found.reason or "whose effect is larger is asked of everyone (`--estimand ate`).",
        **asked,
    )
    if page is not None:
        _write(page, study_page(study, heterogeneity))
    record = {"estimates": study.to_record(), "heterogeneity": heterogeneity.to_record(), "notes": notes}
    if found.state != "estimated":
        remedy = _instead(study, asked["policy"])
        naive = found.effects.unadjusted
        if naive is not None and not json_output:
            click.echo(naive.sentence)
        reason = found.reason.rstrip(".")
        error = VerdictError(
            f"{file}: the effect is not estimable: {reason}.{remedy and f' {remedy}'}",
            file=file,
            field=treatment,
            value=found.reason,
            remedy=remedy or None,
        )
        refuse(error.to_record(), error.exit_code, json_output=json_output, report=record)
    if json_output:
        click.echo(json.dumps(record))
    else:
        _print(study, heterogeneity)
        for note in notes:
            click.echo(f"Note: {note}")


def _date_notes(frame: pd.DataFrame, names: Sequence[str], declared: Collection[str], used: str) -> list[str]:
    """Which of the columns ``names`` were taken for days without being ``declared`` as such."""
    return [
        f"{name} holds days and is {used} as such. Where it is a category, name it under `text` in --mapping; "
        "how its days are written is declared under `dates`."
        for name in names
        if name in frame.columns and name not in declared and str(frame[name].dtype).startswith("datetime64")
    ]


def _instead(study: CausalEstimates, policy: CausalPolicy) -> str:
    """What this command can still answer where arms do not overlap; empty where nothing would help."""
    from e2i_dagster.causal.overlap import COMMON

    effects = study.found.effects
    overlap = effects.overlap
    if overlap is None or not overlap.refusal or overlap.auc >= policy.overlap.maximum_auc:
        return ""
    ways = []
    if effects.trim is None and overlap.common is not None and min(overlap.common) >= policy.minimum_arm:
        treated, control = overlap.common
        ways.append(
            f"`--trim {COMMON[0]:g},{COMMON[1]:g}` estimates the effect on those who could have been in either arm "
            f"({treated:,} treated and {control:,} control rows)"
        )
    above = overlap.share_above
    if effects.estimand == "ate" and above is not None and above <= policy.overlap.maximum_share_outside:
        ways.append("`--estimand att` estimates the effect on the treated, who have controls like them")
    return f"Ask what these rows can answer: {'; '.join(ways)}." if ways else ""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _write(file: Path, page: str) -> None:
    from e2i_dagster.errors import UnavailableError

    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        remedy = "Name another file."
        said = f"{file}: cannot be written ({error.strerror}). {remedy}"
        raise UnavailableError(said, file=file, remedy=remedy) from None


def _known(scope: str | None) -> str:
    from e2i_dagster.config.policy import current_policy

    policy = current_policy()
    return policy.scope(scope or policy.default_scope).key


def _launch(job: str, scope: str, json_output: bool) -> None:
    from jobs.sequence import PlannedRun

    say(json_output, f"{job} {scope}")
    result = launch(job, planned=PlannedRun(job, scope), show=not json_output)
    if not result.success:
        refuse_failed(result, json_output=json_output)


def _found(scope: str) -> tuple[CausalEstimates, EffectHeterogeneity, EffectModel]:
    from e2i_dagster.causal.heterogeneity import EffectHeterogeneity
    from e2i_dagster.causal.study import CausalEstimates

    study, heterogeneity, model = _stored(
        scope,
        causal_estimates=CausalEstimates,
        effect_heterogeneity=EffectHeterogeneity,
        effect_model=_effect_model_type(),
    )
    return study, heterogeneity, model


def _effect_model_type() -> type[EffectModel]:
    from e2i_dagster.causal.registration import EffectModel

    return EffectModel


def _stored(scope: str, **documents: type[Any]) -> list[Any]:
    """The newest document of each asset for ``scope``, read as its type."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.errors import InputError
    from e2i_dagster.policy_files.environment import lake_url
    from e2i_dagster.versions import ledger
    from e2i_dagster.versions.lake import Lake

    lake = Lake(lake_url())
    with engine(role="app").connect() as connection:
        versions = {name: ledger.current(connection, name).get(scope) for name in documents}
    stored = {
        name: version.file
        for name, version in versions.items()
        if version is not None and version.file is not None
    }
    if len(stored) < len(documents):
        remedy = f"Run `e2i causal estimate --scope {scope}`."
        raise InputError(f"No effect was estimated for scope {scope}. {remedy}", file=scope, remedy=remedy)
    return [kind.model_validate(lake.read_document(stored[name], kind)) for name, kind in documents.items()]


def _show(scope: str, json_output: bool) -> None:
    study, heterogeneity, model = _found(scope)
    if json_output:
        record = {
            "scope": scope,
            "estimates": study.to_record(),
            "heterogeneity": heterogeneity.to_record(),
            "effect_model": model.to_record(),
        }
        click.echo(json.dumps(record))
        return
    _print(study, heterogeneity)
    click.echo(f"Model of effects: {model.sentence()}")


def _print(study: CausalEstimates, heterogeneity: EffectHeterogeneity) -> None:
    from e2i_dagster.causal.effects import estimates_table
    from e2i_dagster.causal.pages import calibration_sentence, heterogeneity_sentence, refuters_table

    found = study.found
    click.echo(study.question)
    naive = found.effects.unadjusted
    if found.consensus_effect is None or found.consensus_interval is None:
        click.echo(f"\nNot estimable: {found.reason}")
        if naive is not None:
            click.echo(naive.sentence)
        return
    print_table("Effect", estimates_table(found))
    consensus = text((found.consensus_effect, *found.consensus_interval))
    agreement = "undefined" if found.agreement_score is None else f"{found.agreement_score:.0%}"
    click.echo(
        f"\nConsensus {consensus}, agreement {agreement}, "
        f"{found.effects.rows:,} patients. On {found.effects.population}."
    )
    if naive is not None:
        click.echo(naive.sentence)
    print_table("Refuters", refuters_table(study))
    click.echo(f"\nNegative controls: {calibration_sentence(study)}")
    click.echo(f"Who to treat: {heterogeneity_sentence(heterogeneity)}")
