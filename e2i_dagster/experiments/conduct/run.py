"""One run of an experiment: what each of its assets does, over the tables of :mod:`.store`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.experiments.conduct import enrolment, pages, store
from e2i_dagster.experiments.conduct.digital_twin import (
    FidelityPage,
    TwinSimulation,
    compare_looks,
    record_simulation,
    simulate_twin,
    simulations,
    twin_rows,
)
from e2i_dagster.experiments.conduct.final_analysis import ResultsPage, compute_results
from e2i_dagster.experiments.conduct.interim_looks import (
    InterimPage,
    interim_page,
    make_look,
    present_intervals,
)
from e2i_dagster.experiments.conduct.lifecycle import bound_to_stop, may_read_results
from e2i_dagster.experiments.conduct.records import FidelityRecord, InterimAnalysis, Transition, Unblinding
from e2i_dagster.experiments.conduct.watch import balance_attributes, check_srm
from e2i_dagster.experiments.designs.planning import power
from e2i_dagster.experiments.designs.randomization import BalanceReport, balance
from e2i_dagster.experiments.statistics.stopping import boundaries
from e2i_dagster.reports import drawn


def register_design(
    connection: sa.Connection, spec: ExperimentSpec, *, actor: str
) -> tuple[ExperimentSpec, dict[str, Any]]:
    """The design in force and what to show of it beside its own fields."""
    experiment = store.register(connection, spec, actor=actor)
    figure = pages.boundary_figure(experiment.spec, [], blinded=True)
    power_planned = planned_power(experiment.spec)
    return experiment.spec, {
        "experiment_state": experiment.state,
        "design_version": experiment.version,
        "locked": experiment.locked_at is not None,
        "power_at_minimum_effect": power_planned,
        "boundaries": drawn(figure, "Planned boundaries"),
    }


def planned_power(spec: ExperimentSpec) -> float | None:
    """Power of the planned sample size at the minimum effect, over all looks.

    None without a minimum effect, or without what the kind of metric needs: a baseline (of survival the share of
    units with the event), of a ratio the standard deviation.
    """
    metric = spec.metrics.primary
    effect = metric.minimum_effect
    needed = {"proportion": metric.baseline, "survival": metric.baseline, "ratio": metric.sd}
    if effect is None or needed.get(metric.kind, 0.0) is None:
        return None
    looks = spec.looks
    alpha = looks.alpha / len(spec.treatments)
    bounds = boundaries(
        looks.rule, looks.information_fractions, alpha=alpha, sides=looks.sides, gamma=looks.gamma
    )
    return power(
        metric.kind,
        n=spec.sample_size.total,
        effect=effect * (metric.sign if metric.kind == "proportion" else 1),
        baseline=metric.baseline if metric.kind == "proportion" else None,
        event_probability=metric.baseline if metric.kind == "survival" else None,
        sd=metric.sd,
        alpha=looks.alpha,
        sides=looks.sides,
        ratio=spec.ratios,
        control=spec.control,
        boundaries=bounds,
    )


def assign_waiting(connection: sa.Connection, name: str, *, actor: str) -> BalanceReport:
    """Assign who waits, when the experiment is running; balance of all assignments so far."""
    experiment = store.read(connection, name)
    if (
        experiment.state == "running"
        and not experiment.simulated
        and not bound_to_stop(InterimAnalysis.read_all(connection, name))
    ):
        store.randomize(connection, name, actor=actor)
    records = store.read_records(connection, name)
    spec = experiment.spec
    report = balance(records.assignments, spec.ratios, balance_attributes(spec, records))
    return report.model_copy(update={"waiting": store.not_assignable(records, spec)})


def enrolment_page(
    connection: sa.Connection, name: str, policy: LifecyclePolicy
) -> enrolment.EnrolmentReport:
    """Counts from screening to completion, with the figure against the plan."""
    experiment = store.read(connection, name)
    records = store.read_records(connection, name)
    states = records.states(policy)
    report = enrolment.enrolment_report(
        experiment.spec, records.screened, states, records.events, simulated=experiment.simulated
    )
    figure = pages.enrolment_figure(report)
    return report.model_copy(update={"figure": drawn(figure, "Enrolment against plan")})


def look_page(connection: sa.Connection, name: str, policy: LifecyclePolicy, *, actor: str) -> InterimPage:
    """Make the look that is due, and show what may be shown of all looks."""
    make_look(connection, name, policy=policy, actor=actor)
    experiment = store.read(connection, name)
    made = InterimAnalysis.read_all(connection, name)
    blinded = is_blinded(experiment)
    figure = pages.boundary_figure(experiment.spec, made, blinded=blinded)
    return interim_page(
        experiment,
        made,
        store.information(experiment.spec, store.read_records(connection, name).outcomes),
        blinded=blinded,
        figure=drawn(figure, "Boundaries and looks"),
    )


def results_page(connection: sa.Connection, name: str, policy: LifecyclePolicy, *, actor: str) -> ResultsPage:
    """Results once data collection is over, with the forest plot."""
    page = compute_results(connection, name, policy=policy, actor=actor)
    if not page.available:
        return page
    spec = store.read(connection, name).spec
    figure = pages.forest_figure(page.results, spec.metrics.primary, page.subgroups)
    return page.model_copy(update={"figure": drawn(figure, "Forest plot")})


def check_sample_ratio(
    connection: sa.Connection, name: str, policy: LifecyclePolicy, *, actor: str
) -> tuple[bool, str]:
    """Whether the ratios of the arms hold, and the figures."""
    experiment = store.read(connection, name)
    found = check_srm(connection, experiment.spec, store.read_records(connection, name), policy, actor=actor)
    if found is None:
        return True, "no unit is assigned yet"
    return (
        found.severity == "none",
        f"{found.severity}: {found.actual_counts}, p {found.p_value:.3g} (fixed), "
        f"{found.sequential_p_value:.3g} (valid at every look)",
    )


def is_blinded(experiment: store.Experiment) -> bool:
    """True while only the data monitoring committee may see effects."""
    return experiment.spec.blinding == "dmc" and not may_read_results(experiment.state)


def report_html(
    connection: sa.Connection, name: str, policy: LifecyclePolicy, *, blinded: bool, actor: str
) -> str:
    """The report of an experiment as one HTML page."""
    experiment = store.read(connection, name)
    records, made = store.read_records(connection, name), InterimAnalysis.read_all(connection, name)
    return pages.experiment_report(
        experiment,
        enrolment_page(connection, name, policy),
        Transition.read_all(connection, name),
        made,
        store.review(connection, experiment, policy),
        compute_results(connection, name, policy=policy, actor=actor),
        FidelityRecord.read_all(connection, name),
        check_srm(connection, experiment.spec, records, policy, actor=actor),
        Unblinding.read_all(connection, name),
        ()
        if blinded or experiment.state not in ("running", "paused")
        else present_intervals(experiment.spec, records, made, policy),
        blinded=blinded,
    )


def simulate_and_record(
    connection: sa.Connection,
    spec: ExperimentSpec,
    training_frame: pd.DataFrame,
    splits: pd.DataFrame,
    policy: LifecyclePolicy,
    *,
    scopes: Mapping[str, ScopeSpec],
    actor: str,
) -> TwinSimulation:
    """Simulate the twin of ``spec`` on the patients that models may learn from, and record it."""
    store.register(connection, spec, actor=actor)
    frame = twin_rows(spec, training_frame, splits, scopes)
    simulation = simulate_twin(
        spec, frame, least_per_arm=policy.analysis.twin_minimum_per_arm, trees=policy.analysis.twin_trees
    )
    record_simulation(connection, simulation, actor=actor)
    return simulation


def fidelity_page(
    connection: sa.Connection, name: str, policy: LifecyclePolicy, *, actor: str
) -> FidelityPage:
    """Compare the newest simulation with the looks, and show what may be shown."""
    experiment = store.read(connection, name)
    made = InterimAnalysis.read_all(connection, name)
    reason = compare_looks(connection, name, made, policy, actor=actor)
    found = FidelityRecord.read_all(connection, name)
    blinded = is_blinded(experiment)
    if blinded and found:
        reason = f"{len(found)} comparison(s), blinded until data collection is over"
    shown = () if blinded else tuple(found)
    figure = drawn(pages.fidelity_figure(found), "Prediction and observation") if shown else None
    return FidelityPage(
        experiment=name,
        blinded=blinded,
        simulations=simulations(connection, name),
        comparisons=shown,
        reason=reason,
        figure=figure,
    )
