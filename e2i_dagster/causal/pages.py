"""What people see: forest plot, love plot, overlap, uplift curve, and the tables beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from e2i_dagster.causal.effects import CrossValidation
from e2i_dagster.causal.overlap import Overlap
from e2i_dagster.cohorts.disclosure import is_small, shown_count
from e2i_dagster.display import Figure, Table, text
from e2i_dagster.reports import Section, drawn, html_page, new_figure

if TYPE_CHECKING:
    from e2i_dagster.causal.heterogeneity import EffectHeterogeneity
    from e2i_dagster.causal.registration import EffectModel
    from e2i_dagster.causal.study import CausalEstimates

BLUE, ORANGE, GREY = "#1f6feb", "#d9730d", "#8c959f"
#: Confounders drawn in a love plot: beyond it the most different ones.
MOST_CONFOUNDERS = 25


def forest_plot(found: CrossValidation) -> Any:
    """Point and interval of each library, the consensus below; those without a point are named."""
    shown = [estimate for estimate in found.effects.estimates if estimate.point is not None]
    absent = [
        f"{estimate.label}: {estimate.state}"
        for estimate in found.effects.estimates
        if estimate.point is None
    ]
    figure = new_figure(8.0, 1.5 + 0.42 * (len(shown) + 1 + len(absent)))
    axes = figure.subplots()
    labels = []
    for row, estimate in enumerate(shown):
        color = BLUE if estimate.in_consensus else GREY
        point, lower, upper = (
            float(estimate.point or 0.0),
            float(estimate.lower or 0.0),
            float(estimate.upper or 0.0),
        )
        axes.errorbar(
            point, row, xerr=[[point - lower], [upper - point]], fmt="s", color=color, capsize=3, markersize=6
        )
        why = "overlap-weighted, left out" if estimate.estimand != "ate" else "the same mean, counted once"
        labels.append(estimate.label if estimate.in_consensus else f"{estimate.label}\n({why})")
    if found.consensus_effect is not None and found.consensus_interval is not None:
        row, (lower, upper) = len(shown), found.consensus_interval
        corners = [(lower, row), (found.consensus_effect, row - 0.22), (upper, row)]
        corners += [(found.consensus_effect, row + 0.22)]
        axes.fill(*zip(*corners, strict=True), color=ORANGE)
        labels.append("consensus")
    axes.set_yticks(range(len(labels)), labels)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel(_effect_unit(found))
    axes.set_title(f"Effect of {found.effects.treatment} on {found.effects.outcome}", loc="left", fontsize=11)
    if absent:
        axes.text(0, -0.28, "not shown: " + "; ".join(absent), transform=axes.transAxes, fontsize=8)
    _plain(axes)
    return figure


def _effect_unit(found: CrossValidation) -> str:
    level = f"{found.effects.level:.0%} interval"
    if found.effects.outcome_is_binary:
        return f"difference of probabilities, treated minus control ({level})"
    return f"difference of means, treated minus control ({level})"


def love_plot(overlap: Overlap, bound: float) -> Any:
    """Absolute standardized mean differences before and after weighting."""
    rows = overlap.balance[:MOST_CONFOUNDERS]
    figure = new_figure(8.0, 1.6 + 0.3 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))
    before, after = [abs(row.before) for row in rows], [abs(row.after) for row in rows]
    axes.hlines(places, np.minimum(before, after), np.maximum(before, after), color=GREY, linewidth=1)
    axes.plot(before, places, "o", color=ORANGE, label="before weighting", markerfacecolor="white")
    axes.plot(after, places, "o", color=BLUE, label="after weighting")
    axes.axvline(bound, color="black", linestyle="--", linewidth=0.8, label=f"balanced below {bound:g}")
    axes.set_yticks(places, [row.confounder for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=-0.01)
    axes.set_xlabel("absolute standardized mean difference")
    axes.set_title("Balance of the confounders", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    _plain(axes)
    return figure


def overlap_plot(overlap: Overlap) -> Any:
    """Share of each arm by propensity, mirrored; what lies outside the clipping bounds is shaded."""
    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    edges = np.linspace(0, 1, len(overlap.treated_histogram) + 1)
    width = edges[1] - edges[0]
    axes.bar(edges[:-1], overlap.treated_histogram, width=width, align="edge", color=BLUE, label="treated")
    axes.bar(
        edges[:-1],
        -np.array(overlap.control_histogram),
        width=width,
        align="edge",
        color=ORANGE,
        label="control",
    )
    for lower, upper in ((0, overlap.floor), (1 - overlap.floor, 1)):
        axes.axvspan(lower, upper, color=GREY, alpha=0.4, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlim(0, 1)
    ticks = axes.get_yticks()
    axes.set_yticks(ticks, [f"{abs(tick):.0%}" for tick in ticks])
    axes.set_xlabel("estimated propensity (shaded: clipped)")
    axes.set_ylabel("share of the arm")
    axes.set_title("Overlap of the arms", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return figure


def uplift_plot(found: EffectHeterogeneity) -> Any:
    """Gain of treating first those with the largest predicted effect, against treating by lot."""
    figure = new_figure(8.0, 3.8)
    axes = figure.subplots()
    shares = [point.share for point in found.curve]
    axes.fill_between(
        shares,
        [point.lower for point in found.curve],
        [point.upper for point in found.curve],
        color=BLUE,
        alpha=0.15,
    )
    axes.plot(
        shares, [point.gain for point in found.curve], color=BLUE, label="largest predicted effect first"
    )
    axes.plot(shares, [point.random for point in found.curve], color=GREY, linestyle="--", label="by lot")
    axes.set_xlabel("share treated")
    axes.set_ylabel("gain in mean outcome")
    axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axes.set_title(f"Uplift of {found.treatment} ({found.model})", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    _plain(axes)
    return figure


def group_plot(found: EffectHeterogeneity) -> Any:
    """Effect by fifth of the predicted effect."""
    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    places = [group.group for group in found.groups]
    effects = np.array([group.effect for group in found.groups])
    reach = np.array([[group.effect - group.lower, group.upper - group.effect] for group in found.groups]).T
    axes.errorbar(
        places, effects, yerr=reach, fmt="s", color=BLUE, capsize=3, label="measured (doubly robust)"
    )
    axes.plot(places, [group.predicted for group in found.groups], "x", color=ORANGE, label="predicted")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(places, ["smallest\nfifth", "2", "3", "4", "largest\nfifth"])
    axes.set_ylabel("effect")
    axes.set_title("Effect by fifth of the predicted effect", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    _plain(axes)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def refuters_table(study: CausalEstimates) -> Table:
    """What each refuter expected and found."""
    return Table(
        ("refuter", "expected", "found (range)", "verdict", "meaning"),
        [
            (
                *(
                    refutation.name,
                    refutation.expected,
                    (refutation.found, refutation.lower, refutation.upper),
                ),
                *("passed" if refutation.passed else "FAILED", refutation.meaning),
            )
            for refutation in study.refutations
        ],
    )


def sensitivity_table(study: CausalEstimates) -> Table:
    """How strong an unobserved confounder must be."""
    columns = ("figure", "value", "meaning")
    found = study.sensitivity
    if found is None:
        return Table(columns, [])
    rows: list[tuple[str, Any, str]] = []
    if found.e_value is not None:
        value = found.e_value
        rows.append(
            (
                "E-value",
                f"{text(value.point)} (interval {text(value.limit)})",
                f"Risk ratio {text((value.risk_ratio, value.lower, value.upper))}; an unobserved confounder needs "
                "this risk ratio with treatment and with outcome to explain it away.",
            )
        )
    rows.append(
        (
            "robustness value",
            f"{text(found.robustness_value)} (significance {text(found.robustness_value_significant)})",
            "Share of what is left of treatment and outcome that an unobserved confounder must explain "
            f"to bring the linear effect of {text(found.linear_effect)} to zero.",
        )
    )
    rows += [
        (
            f"{bound.multiple:g} x {bound.confounder}",
            "no confounder can be that strong"
            if bound.estimate is None
            else (bound.estimate, bound.lower, bound.upper),
            "Linear effect left if an unobserved confounder is that strong.",
        )
        for bound in found.bounds
    ]
    return Table(columns, rows)


def controls_table(study: CausalEstimates) -> Table:
    """Effect on each negative-control outcome in its deviations, and what they say of the estimate."""
    found = study.calibration
    return Table(
        ("negative control", "effect", "standard error", "covers zero"),
        [
            (control.outcome, control.effect, control.error, control.covers_zero)
            for control in (found.controls if found else ())
        ],
        {"effect": "+.3f"},
        note=calibration_sentence(study),
    )


def calibration_sentence(study: CausalEstimates) -> str:
    """What the negative controls say of the estimate."""
    found = study.calibration
    if found is None:
        return ""
    if found.effect is None or found.bias is None or found.spread is None:
        return f"Not calibrated: {found.reason}."
    return (
        f"Systematic error {found.bias:+.3f} (deviation {found.spread:.3f}) in standard deviations of the outcome; "
        f"calibrated effect {found.effect:.3f} ({found.lower:.3f} to {found.upper:.3f}), p = {found.p_value:.2g}."
    )


def estimates_metadata(study: CausalEstimates) -> dict[str, Any]:
    """What the UI shows of the asset ``causal_estimates``."""
    effects = study.found.effects
    metadata: dict[str, Any] = {"question": study.question, "labelled_patients": shown_count(effects.rows)}
    if not is_small(effects.treated) and not is_small(effects.rows - effects.treated):
        metadata["treated_patients"] = effects.treated
    metadata |= study.found.to_metadata()
    if effects.unadjusted is not None and study.found.consensus_effect is None:
        metadata["unadjusted"] = effects.unadjusted.sentence
    if study.found.consensus_effect is not None:
        metadata["forest_plot"] = drawn(forest_plot(study.found), "forest plot")
    if effects.overlap is not None:
        metadata["overlap_auc"] = effects.overlap.auc
        metadata["share_outside_overlap"] = effects.overlap.share_outside
        metadata["love_plot"] = drawn(love_plot(effects.overlap, study.balanced_difference), "love plot")
        metadata["overlap_plot"] = drawn(overlap_plot(effects.overlap), "overlap")
    if study.refutations:
        metadata["refuted_by"] = ", ".join(study.refuted_by) or "none"
        metadata["refuters"] = refuters_table(study)
        metadata["sensitivity"] = sensitivity_table(study)
        metadata["negative_controls"] = controls_table(study)
    return metadata


def heterogeneity_metadata(found: EffectHeterogeneity) -> dict[str, Any]:
    """What the UI shows of the asset ``effect_heterogeneity``."""
    if found.state != "estimated":
        return {"effect_state": found.state, "reason": found.reason}
    metadata: dict[str, Any] = {
        "effect_state": found.state,
        "model": found.model,
        "calibration_slope": found.calibration_slope,
        "slope_p_value": found.slope_p_value,
        "qini": found.qini,
        "uplift_curve": drawn(uplift_plot(found), "uplift curve"),
        "groups_plot": drawn(group_plot(found), "effects by fifth"),
        "verdict": heterogeneity_sentence(found),
        "policies": policies_table(found),
        "models": Table(("model", "held-out loss"), found.losses.items()),
        "contrasts": contrasts_table(found),
    }
    return {name: value for name, value in metadata.items() if value is not None}


def policies_table(found: EffectHeterogeneity) -> Table:
    """What each policy of treatment is worth."""
    return Table(
        ("treat", "share treated", "net value"),
        [
            (policy.policy, policy.share_treated, (policy.value, policy.lower, policy.upper))
            for policy in found.policies
        ],
        {"share treated": ".0%"},
    )


def contrasts_table(found: EffectHeterogeneity) -> Table:
    """Means of the confounders in the extreme fifths."""
    return Table(
        ("confounder", "smallest fifth", "largest fifth", "difference in deviations"),
        [
            (contrast.confounder, contrast.smallest, contrast.largest, contrast.standardized_difference)
            for contrast in found.contrasts
        ],
        {"difference in deviations": "+.2f"},
    )


def heterogeneity_sentence(found: EffectHeterogeneity) -> str:
    """Whether effects differ, in words."""
    if found.qini is None or found.qini_lower is None or found.qini_upper is None:
        return found.reason
    area = f"Area between uplift curve and lot {found.qini:.4f} ({found.qini_lower:.4f} to {found.qini_upper:.4f})"
    if found.qini_lower > 0:
        return f"{area}: whom to treat first can be predicted from the confounders."
    return f"{area}: it includes zero, so ranking by predicted effect is not shown to beat lot."


def model_section(model: EffectModel) -> Section:
    """What became of the model of individual effects, and why."""
    if model.evaluation is None:
        return Section("Model of individual effects", [model.sentence()])
    criteria = [
        (criterion.name, criterion.rule, criterion.value, criterion.passed)
        for criterion in model.evaluation.criteria
    ]
    return Section(
        "Model of individual effects",
        [
            model.sentence(),
            "Judged on validation patients that it has not seen.",
            Table(("criterion", "rule", "value", "met"), criteria),
            Figure.png(model.evaluation.figure, "uplift curve on validation patients"),
        ],
    )


def study_page(
    study: CausalEstimates,
    heterogeneity: EffectHeterogeneity | None = None,
    model: EffectModel | None = None,
) -> str:
    """The whole study as one self-contained HTML page."""
    effects = study.found.effects
    sections = [Section("Question", [study.question])]
    overlap = [drawn(overlap_plot(effects.overlap), "overlap")] if effects.overlap else []
    unadjusted = [effects.unadjusted.sentence] if effects.unadjusted else []
    if study.found.consensus_effect is None or study.found.consensus_interval is None:
        sections.append(Section("Not estimable", [study.found.reason, *unadjusted, *overlap]))
        return html_page(f"Effect of {effects.treatment}", sections)
    consensus = text((study.found.consensus_effect, *study.found.consensus_interval))
    agreement = study.found.agreement_score
    sections.append(
        Section(
            "Effect",
            [
                f"Consensus {consensus}; agreement of the libraries "
                f"{'undefined: only one' if agreement is None else f'{agreement:.0%}'}. On {effects.population}.",
                *unadjusted,
                *(f"Left out: {name} ({why})." for name, why in study.found.left_out.items()),
                drawn(forest_plot(study.found), "forest plot"),
            ],
        )
    )
    if effects.overlap is not None:
        balance = drawn(love_plot(effects.overlap, study.balanced_difference), "love plot")
        sections.append(Section("Overlap and balance", [*overlap, balance]))
    sections += [
        Section("Refuters", [refuters_table(study)]),
        Section("Sensitivity", [sensitivity_table(study)]),
        Section("Negative controls", [controls_table(study)]),
    ]
    if heterogeneity is not None and heterogeneity.state == "estimated":
        sections.append(
            Section(
                "Who to treat",
                [
                    heterogeneity_sentence(heterogeneity),
                    policies_table(heterogeneity),
                    contrasts_table(heterogeneity),
                    drawn(uplift_plot(heterogeneity), "uplift curve"),
                    drawn(group_plot(heterogeneity), "effects by fifth"),
                ],
            )
        )
    if model is not None:
        sections.append(model_section(model))
    return html_page(f"Effect of {effects.treatment} on {effects.outcome}", sections)
