"""Pictures of an experiment for the UI and its report: boundaries, enrolment, forest, twin fidelity; the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.config.experiment import ExperimentSpec, Metric
from e2i_dagster.display import Figure, Table, text
from e2i_dagster.experiments.conduct.digital_twin import fidelity_table
from e2i_dagster.experiments.conduct.enrolment import EnrolmentReport
from e2i_dagster.experiments.conduct.final_analysis import (
    EFFECTS,
    ResultsPage,
    SetResult,
    adjusted_sentence,
    effects_table,
)
from e2i_dagster.experiments.conduct.interim_looks import (
    PresentInterval,
    answered,
    blinded_advice,
    look_boundaries,
    progress,
    size_review_text,
)
from e2i_dagster.experiments.conduct.lifecycle import Review, may_read_results
from e2i_dagster.experiments.conduct.records import (
    FidelityComparison,
    InterimAnalysis,
    SampleRatioCheck,
    Transition,
    Unblinding,
)
from e2i_dagster.experiments.conduct.store import Experiment
from e2i_dagster.experiments.statistics.stopping import SPENDING_RULES, Boundaries, z_of_conditional_power
from e2i_dagster.experiments.statistics.subgroups import SubgroupAnalysis, interaction_table
from e2i_dagster.reports import Section, drawn, html_page, new_figure

_BLUE, _RED, _GREY, _GREEN, _ORANGE, _VIOLET = (
    "#1f5fa8",
    "#b3261e",
    "#6b7280",
    "#1a7f37",
    "#b45309",
    "#6d28d9",
)
_ARMS = (_BLUE, _GREEN, _VIOLET)
_SETS = {"itt": "intention to treat", "per_protocol": "per protocol", "as_treated": "as treated"}


def boundary_figure(spec: ExperimentSpec, made: Sequence[InterimAnalysis], *, blinded: bool) -> Any:
    """Boundaries over information; the looks made, and the path of z when it may be seen.

    Boundaries of looks that were made are theirs; later ones follow from what those spent. The line of futility is
    the z at which the conditional power falls to the design's limit.
    """
    made = answered(spec, made)
    reached, times = progress(spec, made)
    ended = bool(made) and made[-1].analysis_type == "final"
    bounds = _planned_boundaries(spec, reached, times, ended=ended)
    fractions = bounds.information_fractions
    z = (*(look.boundary_z for look in made), *bounds.z[len(made) :])
    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    axes.plot(fractions, z, color=_RED, marker="o", label=f"stop for benefit ({spec.looks.rule})")
    if spec.looks.sides == 2:
        axes.plot(
            fractions, [-value for value in z], color=_GREY, linestyle="--", label="its mirror (other side)"
        )
    futility = spec.stopping.futility
    if futility is not None and bounds.complete:
        grid = np.linspace(max(min(fractions) * 0.5, 0.05), 0.999, 60)
        limit = futility.conditional_power_below
        line = [z_of_conditional_power(limit, float(t), final_z=bounds.final_z) for t in grid]
        axes.plot(
            grid, line, color=_ORANGE, linewidth=1.2,
            label=f"futility: conditional power {limit:g} ({'binding' if futility.binding else 'advice'})",
        )  # fmt: skip
    if not blinded:
        for number, arm in enumerate(spec.treatments):
            path = [
                (fraction, reading.z)
                for fraction, look in zip(reached, made, strict=True)
                for reading in look.metrics_snapshot.arms
                if reading.arm == arm and reading.z is not None
            ]
            if path:
                axes.plot(
                    *zip((0.0, 0.0), *path, strict=True),
                    color=_ARMS[number % len(_ARMS)], marker="s", label=f"z of {arm}",
                )  # fmt: skip
    for fraction in reached:
        axes.axvline(fraction, color=_GREY, linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("information fraction (dotted: looks made)")
    axes.set_ylabel("z, positive for benefit")
    axes.set_xlim(0, max(1.05, *(fraction * 1.05 for fraction in fractions)))
    # By the boundaries, which every page has alike: a range that followed z would tell it.
    seen = [] if blinded else [arm.z or 0.0 for look in made for arm in look.metrics_snapshot.arms]
    highest = max(abs(value) for value in (*z, *seen) if math.isfinite(value))
    axes.set_ylim(-1.12 * highest, 1.12 * highest)
    # Beside a legend above the axes nothing of the curves is covered.
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    if blinded and made:
        axes.text(
            0.98, 0.93, "z is blinded: the committee's report shows it", transform=axes.transAxes, ha="right",
            color=_GREY, fontsize=10,
        )  # fmt: skip
    return figure


def _planned_boundaries(
    spec: ExperimentSpec, reached: Sequence[float], times: Sequence[float], *, ended: bool
) -> Boundaries:
    """Boundaries of the looks made and, unless the last of them was the final one, of those still planned."""
    planned = spec.looks.information_fractions
    if spec.looks.rule not in SPENDING_RULES:
        return look_boundaries(spec, planned, final=True)
    newest = reached[-1] if reached else 0.0
    later = [] if ended else [fraction for fraction in planned[len(reached) :] if fraction > newest]
    return look_boundaries(spec, [*reached, *later], times=[*times, *later], final=True)


def enrolment_figure(report: EnrolmentReport) -> Any:
    """Units assigned against the plan, by day."""
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    if report.by_day:
        days = pd.to_datetime(list(report.by_day))
        axes.step(days, list(report.by_day.values()), where="post", color=_BLUE, label="assigned")
        span = max((days[-1] - days[0]).days, 1)
        planned = np.minimum(np.arange(span + 1) * report.per_day_planned, report.planned)
        axes.plot(
            pd.date_range(days[0], periods=span + 1), planned, color=_GREY, linestyle="--",
            label=f"planned ({report.per_day_planned:g} a day)",
        )  # fmt: skip
        axes.axhline(report.planned, color=_RED, linewidth=0.8, label=f"sample size {report.planned:,}")
        figure.autofmt_xdate()
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    else:
        axes.text(0.5, 0.5, "no unit is assigned yet", transform=axes.transAxes, ha="center", color=_GREY)
        axes.set_xticks([])
    axes.set_ylabel("units")
    axes.set_ylim(bottom=0)
    return figure


def forest_figure(
    results: Sequence[SetResult], primary: Metric, subgroups: Sequence[SubgroupAnalysis] = ()
) -> Any:
    """Effect on the primary metric by analysed set, and by pre-registered subgroup."""
    ratio = primary.kind == "survival"
    rows = [
        (f"{comparison.arm}: {_SETS[result.analysis_set]}", comparison, False)
        for result in results
        if result.metric == primary.name and result.analysis is not None
        for comparison in result.analysis.comparisons
    ]
    for found in subgroups:
        rows += [
            (f"{found.arm}: {group.subgroup} = {level.level}", level.comparison, True)
            for group in found.subgroups
            for level in group.levels
        ]
    figure = new_figure(8, 1.3 + 0.36 * max(len(rows), 1))
    axes = figure.subplots()
    labels = []
    for position, (label, interval, inner) in enumerate(reversed(rows)):
        known = interval.effect is not None and interval.lower is not None and interval.upper is not None
        labels.append(label if known else f"{label} (not estimable)")
        if known:
            colour = _GREY if inner else _BLUE
            axes.plot([interval.lower, interval.upper], [position, position], color=colour, linewidth=1.6)
            axes.plot(interval.effect, position, "o" if inner else "s", color=colour)
    axes.set_yticks(range(len(rows)), labels)
    axes.axvline(1.0 if ratio else 0.0, color="black", linewidth=0.8)
    if ratio:
        axes.set_xscale("log")
    side = "right" if (primary.direction == "increase") else "left"
    axes.set_xlabel(f"{EFFECTS[primary.kind]} (95 % interval); benefit lies to the {side}")
    axes.margins(y=0.5 / max(len(rows), 1))
    return figure


def fidelity_figure(comparisons: Sequence[FidelityComparison]) -> Any:
    """Predicted against observed effect at each look, with their intervals."""
    figure = new_figure(8, 3.4)
    axes = figure.subplots()
    looks = np.array([comparison.analysis_number for comparison in comparisons])
    predicted = [
        (comparison.predicted_effect, comparison.predicted_ci_lower, comparison.predicted_ci_upper)
        for comparison in comparisons
    ]
    observed = [
        (comparison.actual_effect, comparison.actual_ci_lower, comparison.actual_ci_upper)
        for comparison in comparisons
    ]
    for shift, values, colour, label in (
        (-0.06, predicted, _GREY, "twin prediction"), (0.06, observed, _BLUE, "observed"),
    ):  # fmt: skip
        effects, lower, upper = zip(*values, strict=True)
        axes.vlines(looks + shift, lower, upper, color=colour, linewidth=1.6)
        axes.plot(looks + shift, effects, "o", color=colour, label=label)
    axes.set_xticks(looks)
    axes.set_xlabel("look")
    axes.set_ylabel("effect")
    axes.axhline(0, color="black", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def experiment_report(
    experiment: Experiment,
    enrolment: EnrolmentReport,
    history: Sequence[Transition],
    made: Sequence[InterimAnalysis],
    review: Review,
    results: ResultsPage,
    fidelity: Sequence[FidelityComparison],
    srm: SampleRatioCheck | None,
    openings: Sequence[Unblinding],
    now: Sequence[PresentInterval] = (),
    *,
    blinded: bool,
) -> str:
    """One self-contained HTML page of an experiment; while ``blinded`` without effects, statistics and z.

    Args:
        now: confidence sequences of the present rows, between looks; only for an unblinded page.
    """
    spec = experiment.spec
    fractions = ", ".join(f"{fraction:g}" for fraction in spec.looks.information_fractions)
    design = {
        "unit": spec.unit,
        "arms": ", ".join(f"{arm.name} ({arm.ratio:.3g})" for arm in spec.arms),
        "primary metric": f"{spec.metrics.primary.name}, {spec.metrics.primary.kind}",
        "randomization": spec.randomization.method,
        "looks": f"{spec.looks.rule}: {fractions}",
        "approvals": _approvals(review),
        "sample size": spec.sample_size.total,
        "design": f"version {experiment.version}, digest {spec.design_digest}",
        "units": "invented (simulated stream)" if experiment.simulated else "observed",
    }
    sections = [
        Section("Design", [spec.hypothesis.strip(), Table(("part", "plan"), design.items())]),
        Section(
            "Enrolment",
            [
                f"{enrolment.assigned:,} of {enrolment.planned:,} units assigned"
                + ("" if enrolment.rate is None else f", {enrolment.rate:.1f} a day."),
                enrolment.table,
                drawn(enrolment_figure(enrolment), "Units assigned against the plan"),
            ],
        ),
    ]
    if srm is not None:
        tests = (
            f"Severity {srm.severity}: p {text(srm.p_value)} (fixed test), {text(srm.sequential_p_value)} "
            "(valid at every look)."
        )
        counts = Table(("arm", "units"), srm.actual_counts.items())
        sections.append(Section("Sample ratio", [tests, counts]))
    sections.append(_looks_section(spec, made, blinded))
    if now and not blinded:
        sections.append(_present_section(now))
    if results.available:
        sections += _results_sections(spec, results)
    if fidelity and not blinded:
        figure = drawn(fidelity_figure(fidelity), "Predicted and observed effect at each look")
        sections.append(Section("Digital twin", [fidelity_table(fidelity), figure]))
    states = [(change.at, change.to_state, change.recorded_by, change.reason) for change in history]
    sections.append(Section("History", [Table(("at", "state", "by", "why"), states)]))
    if openings:
        opened = [(opening.at, opening.recorded_by, opening.reason) for opening in openings]
        table = Table(("at", "by", "why"), opened)
        sections.append(Section("Openings of the unblinded report", [table]))
    subtitle = f"{experiment.name}: {experiment.state}" + (
        f", decision {experiment.decision}" if experiment.decision else ""
    )
    return html_page(
        spec.title, sections, subtitle=subtitle + (". Blinded page." if blinded else _unblinded(experiment))
    )


def _unblinded(experiment: Experiment) -> str:
    if experiment.spec.blinding == "open" or may_read_results(experiment.state):
        return "."
    return ". Unblinded, for the data monitoring committee alone; this opening is recorded."


def _approvals(review: Review) -> str:
    given = [
        f"{role}: {approval.by} on {approval.at:%Y-%m-%d %H:%M}{' (late)' if review.late(approval) else ''}"
        for role, approval in review.given.items()
    ]
    return "; ".join([*given, *(f"{role}: missing" for role in review.missing)])


#: What a rule of harm says; None before the units that the design asks for are there.
_HARM = {True: "harmful", False: "no", None: "too early"}


def _looks_section(spec: ExperimentSpec, made: Sequence[InterimAnalysis], blinded: bool) -> Section:
    content: list[str | Table | Figure] = []
    if not blinded:
        content += [f"Look {look.analysis_number}: {look.decision_rationale}" for look in made]
    proposal = size_review_text(spec, made, blinded=blinded)
    if proposal:
        content.append(f"Sample size looked at again: {proposal}")
    if made and blinded:
        rows = [
            (
                *(look.analysis_number, look.information_fraction, look.sample_size_at_analysis),
                blinded_advice(look),
            )
            for look in made
        ]
        content.append(Table(("look", "information", "units", "says"), rows))
    elif made:
        content.append(_arms_table(made))
        harm = [
            (
                *(look.analysis_number, check.arm, check.metric),
                _HARM[check.harmful] if check.status != "not_evaluable" else "not evaluable",
                check.reason,
            )
            for look in made
            for check in look.metrics_snapshot.harm
        ]
        if harm:
            content.append(Table(("look", "arm", "harm by", "harmful", "found"), harm))
    figure = boundary_figure(spec, made, blinded=blinded)
    return Section("Looks", [*content, drawn(figure, "Boundaries and looks")])


def _arms_table(made: Sequence[InterimAnalysis]) -> Table:
    """Each arm at each look, with the repeated confidence interval and the chances. Unblinded."""
    rows = [
        (
            *(look.analysis_number, look.information_fraction, arm.arm),
            *((arm.effect, (arm.lower, arm.upper)) if arm.estimable else ("not estimable", arm.reason)),
            *(arm.z, look.boundary_z, arm.conditional_power, arm.predictive_power),
            arm.advice.replace("_", " "),
        )
        for look in made
        for arm in look.metrics_snapshot.arms
    ]
    head = (
        "look", "information", "arm", "effect", "repeated interval", "z", "boundary", "conditional power",
        "predictive power", "says",
    )  # fmt: skip
    return Table(head, rows)


def _present_section(now: Sequence[PresentInterval]) -> Section:
    rows = [
        (
            *(
                item.arm,
                item.units,
                "not estimable" if item.effect is None else item.effect,
                (item.lower, item.upper),
            ),
            *(item.p_value, item.reason),
        )
        for item in now
    ]
    return Section(
        "Between the looks",
        [
            "The confidence sequence of all rows recorded so far. It holds however often it is opened, and spends no "
            "alpha; it stops nothing by itself.",
            Table(("arm", "units", "effect", "interval", "p", "note"), rows),
        ],
    )


def _results_sections(spec: ExperimentSpec, results: ResultsPage) -> list[Section]:
    adjusted = results.adjusted
    looks = (
        []
        if adjusted is None
        else [f"Adjusted for the looks (median-unbiased): {adjusted_sentence(adjusted)}."]
    )
    figure = forest_figure(results.results, spec.metrics.primary, results.subgroups)
    picture = drawn(figure, "Effects by analysed set and subgroup")
    sections = [Section("Results", [*looks, effects_table(results.results), picture])]
    if results.subgroups:
        asked = f"Does the effect differ between the levels? Test of interaction, adjusted by {spec.multiplicity}."
        sections.append(Section("Pre-registered subgroups", [asked, interaction_table(results.subgroups)]))
    if results.heterogeneity:
        sections.append(_heterogeneity_section(results))
    if results.scorecard is not None:
        advice = f"{results.scorecard.sentence}. It advises; who decided, and why, is in the history."
        sections.append(Section("Scorecard", [advice, results.scorecard.table]))
    return sections


def _heterogeneity_section(results: ResultsPage) -> Section:
    content: list[str | Table] = []
    for found in results.heterogeneity:
        if found.status == "not_estimable":
            content.append(f"{found.arm}: not estimable, {found.reason}.")
            continue
        content += [
            f"{found.arm}: calibration slope {text(found.calibration_slope)} (1 where predicted differences are real, "
            f"0 where they are noise), p {text(found.p_value)}.",
            found.groups_table,
        ]
    return Section("Does the effect differ? (causal forest)", content)
