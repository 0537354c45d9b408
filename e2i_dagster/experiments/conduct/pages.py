"""Pictures of an experiment for the UI and its report: boundaries, enrolment, forest, twin fidelity; the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.config.experiment import ExperimentSpec, Metric
from e2i_dagster.experiments.conduct.enrolment import EnrolmentReport
from e2i_dagster.experiments.conduct.final_analysis import (
    EFFECT_COLUMNS,
    EFFECTS,
    ResultsPage,
    SetResult,
    adjusted_sentence,
    effect_rows,
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
from e2i_dagster.experiments.conduct.store import Experiment
from e2i_dagster.experiments.statistics.stopping import SPENDING_RULES, Boundaries, z_of_conditional_power
from e2i_dagster.experiments.statistics.subgroups import SubgroupAnalysis
from e2i_dagster.reports import Image, Section, Table, figure_markdown, figure_png, html_page, new_figure

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


def boundary_figure(spec: ExperimentSpec, made: Sequence[Mapping[str, Any]], *, blinded: bool) -> Any:
    """Boundaries over information; the looks made, and the path of z when it may be seen.

    Boundaries of looks that were made are theirs; later ones follow from what those spent. The line of futility is
    the z at which the conditional power falls to the design's limit.
    """
    looks = answered(spec, [dict(look) for look in made])
    made = looks
    reached, times = progress(spec, looks)
    ended = bool(looks) and looks[-1]["analysis_type"] == "final"
    bounds = _planned_boundaries(spec, reached, times, ended=ended)
    fractions = bounds.information_fractions
    z = (*(look["boundary_z"] for look in made), *bounds.z[len(made) :])
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
                (fraction, one["z"])
                for fraction, look in zip(reached, made, strict=True)
                for one in look["metrics_snapshot"]["arms"]
                if one["arm"] == arm and one["z"] is not None
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
    seen = [] if blinded else [one["z"] or 0.0 for look in made for one in look["metrics_snapshot"]["arms"]]
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
        (f"{one.arm}: {_SETS[result.analysis_set]}", one, False)
        for result in results
        if result.metric == primary.name and result.analysis is not None
        for one in result.analysis.comparisons
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
    for position, (label, one, inner) in enumerate(reversed(rows)):
        known = one.effect is not None and one.lower is not None and one.upper is not None
        labels.append(label if known else f"{label} (not estimable)")
        if known:
            colour = _GREY if inner else _BLUE
            axes.plot([one.lower, one.upper], [position, position], color=colour, linewidth=1.6)
            axes.plot(one.effect, position, "o" if inner else "s", color=colour)
    axes.set_yticks(range(len(rows)), labels)
    axes.axvline(1.0 if ratio else 0.0, color="black", linewidth=0.8)
    if ratio:
        axes.set_xscale("log")
    side = "right" if (primary.direction == "increase") else "left"
    axes.set_xlabel(f"{EFFECTS[primary.kind]} (95 % interval); benefit lies to the {side}")
    axes.margins(y=0.5 / max(len(rows), 1))
    return figure


def fidelity_figure(comparisons: Sequence[Mapping[str, Any]]) -> Any:
    """Predicted against observed effect at each look, with their intervals."""
    figure = new_figure(8, 3.4)
    axes = figure.subplots()
    for shift, prefix, colour, label in (
        (-0.06, "predicted", _GREY, "twin prediction"),
        (0.06, "actual", _BLUE, "observed"),
    ):
        for number, one in enumerate(comparisons):
            x = one["analysis_number"] + shift
            axes.plot(
                [x, x], [one[f"{prefix}_ci_lower"], one[f"{prefix}_ci_upper"]], color=colour, linewidth=1.6
            )
            axes.plot(x, one[f"{prefix}_effect"], "o", color=colour, label=label if number == 0 else None)
    axes.set_xticks([one["analysis_number"] for one in comparisons])
    axes.set_xlabel("look")
    axes.set_ylabel("effect")
    axes.axhline(0, color="black", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def as_markdown(figure: Any, alt: str) -> str:
    """``figure`` as one markdown image."""
    return figure_markdown(figure, alt)


def experiment_report(
    held: Experiment,
    enrolment: EnrolmentReport,
    history: Sequence[Mapping[str, Any]],
    made: Sequence[Mapping[str, Any]],
    review: Review,
    results: ResultsPage,
    fidelity: Sequence[Mapping[str, Any]],
    srm: Mapping[str, Any] | None,
    openings: Sequence[Mapping[str, Any]],
    now: Sequence[PresentInterval] = (),
    *,
    blinded: bool,
) -> str:
    """One self-contained HTML page of an experiment; while ``blinded`` without effects, statistics and z.

    Args:
        now: confidence sequences of the present rows, between looks; only for an unblinded page.
    """
    spec = held.spec
    fractions = ", ".join(f"{fraction:g}" for fraction in spec.looks.information_fractions)
    sections = [
        Section(
            "Design",
            [spec.hypothesis.strip()],
            [
                Table(
                    ("part", "plan"),
                    [
                        ("unit", spec.unit),
                        ("arms", ", ".join(f"{arm.name} ({arm.ratio:.3g})" for arm in spec.arms)),
                        ("primary metric", f"{spec.metrics.primary.name}, {spec.metrics.primary.kind}"),
                        ("randomization", spec.randomization.method),
                        ("looks", f"{spec.looks.rule}: {fractions}"),
                        ("approvals", _approvals(review)),
                        ("sample size", f"{spec.sample_size.total:,}"),
                        ("design", f"version {held.version}, digest {spec.design_digest}"),
                        ("units", "invented (simulated stream)" if held.simulated else "observed"),
                    ],
                )
            ],
        ),
        Section(
            "Enrolment",
            [
                f"{enrolment.assigned:,} of {enrolment.planned:,} units assigned"
                + ("" if enrolment.rate is None else f", {enrolment.rate:.1f} a day.")
            ],
            [
                Table(
                    ("step", "units"),
                    [(str(key), str(value)) for key, value in _steps(enrolment).items()],
                )
            ],
            [Image(figure_png(enrolment_figure(enrolment)), "Units assigned against the plan")],
        ),
    ]
    if srm is not None:
        sections.append(
            Section(
                "Sample ratio",
                [f"Severity {srm['severity']}: p {srm['p_value']:.3g} (fixed test), {srm['sequential_p_value']:.3g} "
                 "(valid at every look)."],
                [Table(("arm", "units"), [(arm, f"{count:,}") for arm, count in srm["actual_counts"].items()])],
            )
        )  # fmt: skip
    sections.append(_looks_section(spec, made, blinded))
    if now and not blinded:
        sections.append(_present_section(now))
    if results.available:
        sections += _results_sections(spec, results)
    if fidelity and not blinded:
        sections.append(_fidelity_section(fidelity))
    sections.append(
        Section(
            "History",
            [],
            [
                Table(
                    ("at", "state", "by", "why"),
                    [
                        (
                            f"{one['recorded_at']:%Y-%m-%d %H:%M}",
                            one["to_state"],
                            one["recorded_by"],
                            one["reason"],
                        )
                        for one in history
                    ],
                )
            ],
        )
    )
    if openings:
        sections.append(
            Section(
                "Openings of the unblinded report",
                [],
                [
                    Table(
                        ("at", "by", "why"),
                        [
                            (f"{one['recorded_at']:%Y-%m-%d %H:%M}", one["recorded_by"], one["reason"])
                            for one in openings
                        ],
                    )
                ],
            )
        )
    subtitle = f"{held.name}: {held.state}" + (f", decision {held.decision}" if held.decision else "")
    return html_page(
        spec.title, sections, subtitle=subtitle + (". Blinded page." if blinded else _unblinded(held))
    )


def _unblinded(held: Experiment) -> str:
    if held.spec.blinding == "open" or may_read_results(held.state):
        return "."
    return ". Unblinded, for the data monitoring committee alone; this opening is recorded."


def _approvals(review: Review) -> str:
    given = [
        f"{role}: {one.by} on {one.at:%Y-%m-%d %H:%M}{' (late)' if review.late(one) else ''}"
        for role, one in review.given.items()
    ]
    return "; ".join([*given, *(f"{role}: missing" for role in review.missing)])


#: What a rule of harm says; None before the units that the design asks for are there.
_HARM = {True: "harmful", False: "no", None: "too early"}


def _steps(enrolment: EnrolmentReport) -> dict[str, str]:
    steps = {
        "screened": enrolment.screened, "eligible": enrolment.eligible, "consented": enrolment.consented,
        "assigned": enrolment.assigned, **enrolment.statuses,
    }  # fmt: skip
    return {name: shown_count(count) for name, count in steps.items()}


def _looks_section(spec: ExperimentSpec, made: Sequence[Mapping[str, Any]], blinded: bool) -> Section:
    tables = []
    if made and blinded:
        rows = [
            (
                look["analysis_number"], f"{look['information_fraction']:.3f}",
                f"{look['sample_size_at_analysis']:,}",
                blinded_advice(look),
            )
            for look in made
        ]  # fmt: skip
        tables.append(Table(("look", "information", "units", "says"), rows))
    elif made:
        tables.append(_arms_table(made))
        harm = [
            (
                look["analysis_number"],
                one["arm"],
                one["metric"],
                _HARM[one["harmful"]] if one.get("status") != "not_evaluable" else "not evaluable",
                one["reason"],
            )
            for look in made
            for one in look["metrics_snapshot"]["harm"]
        ]
        if harm:
            tables.append(Table(("look", "arm", "harm by", "harmful", "found"), harm))
    said = (
        [] if blinded else [f"Look {look['analysis_number']}: {look['decision_rationale']}" for look in made]
    )
    proposal = size_review_text(spec, [dict(look) for look in made], blinded=blinded)
    if proposal:
        said.append(f"Sample size looked at again: {proposal}")
    figure = boundary_figure(spec, made, blinded=blinded)
    return Section("Looks", said, tables, [Image(figure_png(figure), "Boundaries and looks")])


def _arms_table(made: Sequence[Mapping[str, Any]]) -> Table:
    """Each arm at each look, with the repeated confidence interval and the chances. Unblinded."""
    rows = [
        (
            look["analysis_number"], f"{look['information_fraction']:.3f}", arm["arm"],
            *(
                (
                    f"{arm['effect']:.4f}", f"{arm['lower']:.4f} to {arm['upper']:.4f}", f"{arm['z']:.3f}",
                    f"{look['boundary_z']:.3f}", f"{arm['conditional_power']:.3f}", f"{arm['predictive_power']:.3f}",
                    arm["advice"],
                )
                if arm["estimable"]
                else (
                    "not estimable", arm["reason"], "" if arm["z"] is None else f"{arm['z']:.3f}",
                    f"{look['boundary_z']:.3f}", "", "", arm["advice"].replace("_", " "),
                )
            ),
        )
        for look in made
        for arm in look["metrics_snapshot"]["arms"]
    ]  # fmt: skip
    head = (
        "look", "information", "arm", "effect", "repeated interval", "z", "boundary", "conditional power",
        "predictive power", "says",
    )  # fmt: skip
    return Table(head, rows)


def _present_section(now: Sequence[PresentInterval]) -> Section:
    return Section(
        "Between the looks",
        [
            "The confidence sequence of all rows recorded so far. It holds however often it is opened, and spends no "
            "alpha; it stops nothing by itself."
        ],
        [
            Table(
                ("arm", "units", "effect", "interval", "p", "note"),
                [
                    (
                        one.arm,
                        f"{one.units:,}",
                        one.shown_effect,
                        one.shown_interval,
                        _p(one.p_value),
                        one.reason,
                    )
                    for one in now
                ],
            )
        ],
    )


def _results_sections(spec: ExperimentSpec, results: ResultsPage) -> list[Section]:
    figure = forest_figure(results.results, spec.metrics.primary, results.subgroups)
    adjusted = results.adjusted
    sections = [
        Section(
            "Results",
            []
            if adjusted is None
            else [f"Adjusted for the looks (median-unbiased): {adjusted_sentence(adjusted)}."],
            [Table(EFFECT_COLUMNS, effect_rows(results.results))],
            [Image(figure_png(figure), "Effects by analysed set and subgroup")],
        )
    ]
    if results.subgroups:
        sections.append(
            Section(
                "Pre-registered subgroups",
                [f"Does the effect differ between the levels? Test of interaction, adjusted by {spec.multiplicity}."],
                [
                    Table(
                        ("arm", "subgroup", "interaction p", "adjusted p", "note"),
                        [
                            (found.arm, group.subgroup, _p(group.interaction_p_value),
                             _p(group.adjusted_interaction_p_value), group.reason or "")
                            for found in results.subgroups
                            for group in found.subgroups
                        ],
                    )
                ],
            )
        )  # fmt: skip
    if results.heterogeneity:
        sections.append(_heterogeneity_section(results))
    if results.scorecard is not None:
        sections.append(
            Section(
                "Scorecard",
                [results.scorecard.sentence + ". It advises; who decided, and why, is in the history."],
                [Table(("part", "weight", "score", "found"), results.scorecard.rows)],
            )
        )
    return sections


def _heterogeneity_section(results: ResultsPage) -> Section:
    said, tables = [], []
    for found in results.heterogeneity:
        if found.status == "not_estimable":
            said.append(f"{found.arm}: not estimable, {found.reason}.")
            continue
        said.append(
            f"{found.arm}: calibration slope {found.calibration_slope:.2f} (1 where predicted differences are real, 0 "
            f"where they are noise), p {_p(found.p_value)}."
        )
        tables.append(
            Table(
                ("third by predicted effect", "units", "effect", "interval"),
                [
                    (g.group, shown_count(g.units), f"{g.effect:.4f}", f"{g.lower:.4f} to {g.upper:.4f}")
                    for g in found.groups
                ],
            )
        )
    return Section("Does the effect differ? (causal forest)", said, tables)


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _fidelity_section(fidelity: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            one["analysis_number"],
            f"{one['predicted_effect']:.4f}",
            f"{one['actual_effect']:.4f}",
            one["reason"]
            if one["relative_prediction_error"] is None
            else f"{one['relative_prediction_error']:.1%}",
            one["fidelity_grade"],
        )
        for one in fidelity
    ]
    return Section(
        "Digital twin",
        [],
        [Table(("look", "predicted", "observed", "error", "grade"), rows)],
        [Image(figure_png(fidelity_figure(fidelity)), "Predicted and observed effect at each look")],
    )
