"""The monitoring report of a day as one self-contained page, and its heat map."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.drift_monitoring import SEVERITIES
from e2i_dagster.display import Figure, Table, Words
from e2i_dagster.monitoring.drift_report import COLOURS, DriftReport, FeatureDrift
from e2i_dagster.monitoring.estimate import FAILURE_MODE
from e2i_dagster.monitoring.performance import PerformanceReport, performance_figure
from e2i_dagster.monitoring.retraining import alarm_level
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.reports import Section, drawn, html_page, new_figure
from e2i_dagster.tables.description.monitoring import ml_drift_history

_DAYS = 30
_FEATURES = 40
_DISTRIBUTIONS = 6


def pages_folder(scope: str) -> Path:
    """Where the pages about ``scope`` are."""
    return state_folder() / "reports" / "monitoring" / scope


def severities_by_day(connection: sa.Connection, scope: str, *, until: dt.date) -> pd.DataFrame:
    """feature_name, day, state, severity of the last 30 days: the newest report of each day."""
    table = ml_drift_history
    rows = connection.execute(
        sa.select(table.c.feature_name, table.c.day, table.c.state, table.c.severity)
        .where(table.c.scope == scope, table.c.day <= until, table.c.day > until - dt.timedelta(days=_DAYS))
        .order_by(table.c.created_at)
    )
    frame = pd.DataFrame([tuple(row) for row in rows], columns=["feature_name", "day", "state", "severity"])
    return frame.drop_duplicates(["feature_name", "day"], keep="last", ignore_index=True)


def heat_map(history: pd.DataFrame) -> Figure | None:
    """Severity of each feature on each day; None without a day."""
    if history.empty:
        return None
    from matplotlib.colors import ListedColormap

    ranks = history["severity"].map({name: rank + 1 for rank, name in enumerate(SEVERITIES)})
    # 0: not tested.
    value = ranks.where(history["state"] == "executed", 0)
    grid = history.assign(value=value).pivot(index="feature_name", columns="day", values="value")
    order = grid.max(axis=1).sort_values(ascending=False, kind="stable").index[:_FEATURES]
    grid = grid.loc[order]
    figure = new_figure(8, 0.24 * len(grid) + 1.4)
    axes = figure.subplots()
    colours = ListedColormap(["#e5e7e9", *COLOURS.values()])
    shown = np.ma.masked_invalid(grid.to_numpy("float64"))
    picture = axes.imshow(shown, cmap=colours, vmin=-0.5, vmax=len(SEVERITIES) + 0.5, aspect="auto")
    axes.set_yticks(range(len(grid)), grid.index, fontsize=7)
    axes.set_xticks(
        range(len(grid.columns)), [f"{day:%d %b}" for day in grid.columns], rotation=60, fontsize=7
    )
    bar = figure.colorbar(picture, ax=axes, ticks=range(len(SEVERITIES) + 1))
    bar.ax.set_yticklabels(["not tested", *SEVERITIES], fontsize=7)
    return drawn(figure, "severity of each feature by day")


def what_to_do(report: DriftReport, performance: PerformanceReport) -> list[str]:
    """Next steps in words, the first cause to rule out first."""
    level = alarm_level(report, performance)
    found = {
        name for feature in report.tested if feature.effect_severity != "none" for name in _causes(feature)
    }
    steps = []
    if level in ("none", "low"):
        steps.append("Nothing: what drifted, if anything, does not cost the model its performance.")
    else:
        steps.append("Rule out a fault in the data first: `e2i gate show`, then `e2i alerts list`.")
    if "missing" in found or "gone" in found:
        steps.append("Values have stopped arriving: ask whoever delivers the table before training again.")
    if "new" in found:
        steps.append(
            "There are new values: when they are spellings of known ones, add them to the aliases of "
            "`config/vocabulary.yaml`; when they are new, the model needs labels of them."
        )
    if performance.concept_drift:
        steps.append(
            "The outcome depends on the features in another way than in training: train again with labels that are "
            f"newer (`e2i run --scope {report.scope}`)."
        )
    elif performance.severity not in ("none", "low"):
        steps.append(f"The model loses performance: train again (`e2i run --scope {report.scope}`).")
    if performance.basis is None:
        steps.append(f"Performance is not known: {performance.note or 'no window has enough predictions'}.")
    return steps


def report_page(report: DriftReport, performance: PerformanceReport, history: pd.DataFrame) -> str:
    """The page as text."""
    level = alarm_level(report, performance)
    drawing = heat_map(history)
    loss = "not known" if performance.loss is None else f"{performance.loss:.3f} ({performance.basis})"
    verdict = (
        f"Alarm: {level}. Loss of {performance.metric} against {performance.reference_split}: {loss}. "
        f"Features tested: {len(report.tested)}, skipped: {len(report.features) - len(report.tested)}."
    )
    drifted = [
        feature for feature in report.ordered if feature.distribution and feature.effect_severity != "none"
    ]
    sections = [
        Section("What it means", [verdict, Words(report.findings or ("Nothing has drifted.",), "list")]),
        Section("What to do", [Words(what_to_do(report, performance), "list")]),
        Section(
            "Performance",
            [
                drawn(performance_figure(performance), "estimated and realised performance by window"),
                FAILURE_MODE,
            ],
        ),
        Section("Features by day", [drawing or "No day was measured yet."]),
        Section("The population that changed", [population_table(report)]),
        Section(
            "Distributions now against the reference",
            [_distribution(feature) for feature in drifted[:_DISTRIBUTIONS]]
            or ["No distribution has changed."],
        ),
        Section("All features", [report.to_metadata()["drift"]]),
    ]
    return html_page(f"Monitoring of {report.scope}", sections, subtitle=f"{report.day}, {report.model_id}")


def population_table(report: DriftReport) -> Table:
    """Groups of patients whose share changed most, of the features that drifted."""
    rows = [
        (feature.name, words, then, now, now - then, feature.importance)
        for feature in report.tested
        if feature.kind == "data" and feature.effect_severity != "none"
        for words, then, now in feature.changes
    ]
    rows.sort(key=lambda row: -abs(row[4]))
    shares: dict[str, str] = dict.fromkeys(("share in training", "share now", "change", "importance"), ".1%")
    return Table(
        ("feature", "group", "share in training", "share now", "change", "importance"),
        rows[:15],
        shares,
        empty="No group has changed.",
    )


def write_page(report: DriftReport, performance: PerformanceReport, history: pd.DataFrame) -> dict[str, Any]:
    """Write the page of the day; its path and the heat map, as metadata."""
    folder = pages_folder(report.scope)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{report.day}.html"
    page.write_text(report_page(report, performance, history), encoding="utf-8")
    return {
        "alarm": alarm_level(report, performance),
        "report_page": str(page),
        "what_to_do": Words(what_to_do(report, performance), "list"),
        "features_by_day": heat_map(history),
        "population": population_table(report),
    }


def _causes(feature: FeatureDrift) -> set[str]:
    found = set()
    if feature.new_categories:
        found.add("new")
    if feature.missing is None and feature.effect_severity == "critical" and feature.test is None:
        found.add("gone")
    if feature.missing and feature.missing[1] - feature.missing[0] >= 0.05:
        found.add("missing")
    return found


def _distribution(feature: FeatureDrift) -> Figure:
    figure = new_figure(8, 2.6)
    axes = figure.subplots()
    at = np.arange(len(feature.distribution))
    axes.bar(at - 0.2, [then for _, then, _ in feature.distribution], 0.4, color="#7f8c8d", label="training")
    axes.bar(at + 0.2, [now for _, _, now in feature.distribution], 0.4, color="#2e86c1", label="now")
    axes.set_xticks(at, [words for words, _, _ in feature.distribution], rotation=40, ha="right", fontsize=7)
    axes.set_title(f"{feature.name}: {feature.severity}", fontsize=9)
    axes.set_ylabel("share")
    axes.legend(fontsize=7)
    return drawn(figure, f"shares of the values of {feature.name} in training and now")
