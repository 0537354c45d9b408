"""Pictures of an experiment for the UI and its report: boundaries, enrolment, forest, twin fidelity; the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.experiments.enrolment import EnrolmentReport
from e2i_dagster.experiments.final import ResultsPage, SetResult, effect_rows
from e2i_dagster.experiments.interim import boundaries
from e2i_dagster.experiments.store import Experiment
from e2i_dagster.reports import Image, Section, Table, figure_markdown, figure_png, html_page, new_figure

_BLUE, _RED, _GREY, _GREEN = "#1f5fa8", "#b3261e", "#6b7280", "#1a7f37"


def boundary_figure(spec: ExperimentSpec, made: Sequence[Mapping[str, Any]], *, blinded: bool) -> Any:
    """Planned boundaries over information; the looks made, and the path of z when it may be seen.

    Boundaries at the fractions that looks were really made at are those of the looks; later ones those planned.
    """
    planned = spec.looks.information_fractions
    alpha = spec.looks.alpha / len(spec.treatments)
    plan = boundaries(spec.looks.rule, planned, alpha=alpha, sides=spec.looks.sides, gamma=spec.looks.gamma)
    reached = [look["information_fraction"] for look in made]
    fractions = [*reached, *planned[len(made) :]]
    bounds = [*(look["boundary_z"] for look in made), *plan.z[len(made) :]]
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    axes.plot(fractions, bounds, color=_RED, marker="o", label=f"stop for benefit ({spec.looks.rule})")
    if spec.looks.sides == 2:
        axes.plot(
            fractions, [-z for z in bounds], color=_GREY, linestyle="--", label="its mirror (other side)"
        )
    if not blinded:
        for number, arm in enumerate(spec.treatments):
            path = [
                (look["information_fraction"], one["z"])
                for look in made
                for one in look["metrics_snapshot"]["arms"]
                if one["arm"] == arm and one["z"] is not None
            ]
            if path:
                colour = (_BLUE, _GREEN)[number % 2]
                axes.plot(*zip((0.0, 0.0), *path, strict=True), color=colour, marker="s", label=f"z of {arm}")
    for fraction in reached:
        axes.axvline(fraction, color=_GREY, linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("information fraction (dotted: looks made)")
    axes.set_ylabel("z, positive for benefit")
    axes.set_xlim(0, max(1.05, *(fraction * 1.05 for fraction in fractions)))
    # Beside a legend above the axes nothing of the curves is covered.
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    if blinded and made:
        axes.text(0.5, 0.55, "z is blinded", transform=axes.transAxes, ha="center", color=_GREY, fontsize=11)
    return figure


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
    results: Sequence[SetResult], primary: str, subgroups: Mapping[str, Any] | None = None
) -> Any:
    """Effect on the primary metric by analysed set, and by pre-registered subgroup."""
    rows: list[tuple[str, float, float, float]] = []
    ratio = False
    for result in results:
        if result.metric != primary or result.analysis is None:
            continue
        for one in result.analysis.comparisons:
            if one.effect is not None and one.lower is not None and one.upper is not None:
                ratio = one.effect_type == "hazard_ratio"
                rows.append((f"{one.arm}: {result.analysis_set}", one.effect, one.lower, one.upper))
    for group in (subgroups or {}).get("subgroups", ()):
        for level in group["levels"]:
            found = level["comparison"]
            if found["effect"] is not None and found["lower"] is not None:
                rows.append(
                    (
                        f"  {group['subgroup']} = {level['level']}",
                        found["effect"],
                        found["lower"],
                        found["upper"],
                    )
                )
    figure = new_figure(8, 1.2 + 0.38 * max(len(rows), 1))
    axes = figure.subplots()
    for position, (label, effect, lower, upper) in enumerate(reversed(rows)):
        inner = label.startswith("  ")
        axes.plot([lower, upper], [position, position], color=_GREY if inner else _BLUE, linewidth=1.6)
        axes.plot(effect, position, "o" if inner else "s", color=_GREY if inner else _BLUE)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.axvline(1.0 if ratio else 0.0, color="black", linewidth=0.8)
    axes.set_xlabel("hazard ratio" if ratio else "difference to the control (95 % interval)")
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
    results: ResultsPage,
    fidelity: Sequence[Mapping[str, Any]],
    srm: Mapping[str, Any] | None,
    *,
    blinded: bool,
) -> str:
    """One self-contained HTML page of an experiment; while ``blinded`` without effects, statistics and z."""
    spec = held.spec
    fractions = ", ".join(f"{fraction:g}" for fraction in spec.looks.information_fractions)
    sections = [
        Section(
            "Design",
            [spec.hypothesis.strip()],
            [
                Table(
                    ("", ""),
                    [
                        ("unit", spec.unit),
                        ("arms", ", ".join(f"{arm.name} ({arm.ratio:.3g})" for arm in spec.arms)),
                        ("primary metric", f"{spec.metrics.primary.name}, {spec.metrics.primary.kind}"),
                        ("randomization", spec.randomization.method),
                        ("looks", f"{spec.looks.rule}: {fractions}"),
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
    if results.available:
        sections.append(_results_section(spec, results))
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
    subtitle = f"{held.name}: {held.state}" + (f", decision {held.decision}" if held.decision else "")
    return html_page(spec.title, sections, subtitle=subtitle + (". Blinded page." if blinded else "."))


def _steps(enrolment: EnrolmentReport) -> dict[str, str]:
    from e2i_dagster.cohorts.disclosure import shown_count

    steps = {
        "screened": enrolment.screened, "eligible": enrolment.eligible, "consented": enrolment.consented,
        "assigned": enrolment.assigned, **enrolment.statuses,
    }  # fmt: skip
    return {name: shown_count(count) for name, count in steps.items()}


def _looks_section(spec: ExperimentSpec, made: Sequence[Mapping[str, Any]], blinded: bool) -> Section:
    rows = []
    for look in made:
        row = [
            look["analysis_number"],
            f"{look['information_fraction']:.3f}",
            f"{look['sample_size_at_analysis']:,}",
        ]
        if blinded:
            row.append("continue" if look["decision"] == "continue" else "stop for review")
        else:
            z = look["test_statistic"]
            row += ["" if z is None else f"{z:.3f}", f"{look['boundary_z']:.3f}", look["decision"]]
        rows.append(row)
    head = ("look", "information", "units", "says") if blinded else (
        "look", "information", "units", "z", "boundary", "says",
    )  # fmt: skip
    said = [] if blinded else [look["decision_rationale"] for look in made]
    figure = boundary_figure(spec, made, blinded=blinded)
    return Section(
        "Looks",
        said,
        [Table(head, rows)] if rows else [],
        [Image(figure_png(figure), "Boundaries and looks")],
    )


def _results_section(spec: ExperimentSpec, results: ResultsPage) -> Section:
    said = []
    adjusted = results.adjusted
    if adjusted is not None and math.isfinite(float(adjusted["median_unbiased"])):
        said.append(
            f"Adjusted for the looks: median-unbiased estimate {adjusted['median_unbiased']:.4f} in the direction of "
            f"benefit ({adjusted['lower']:.4f} to {adjusted['upper']:.4f}), p {adjusted['p_value']:.3g}."
        )
    figure = forest_figure(results.results, spec.metrics.primary.name, results.subgroups)
    return Section(
        "Results",
        said,
        [Table(("metric", "set", "arm", "effect", "interval", "p"), effect_rows(results.results))],
        [Image(figure_png(figure), "Effects by analysed set and subgroup")],
    )


def _fidelity_section(fidelity: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            one["analysis_number"],
            f"{one['predicted_effect']:.4f}",
            f"{one['actual_effect']:.4f}",
            "" if one["relative_prediction_error"] is None else f"{one['relative_prediction_error']:.1%}",
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
