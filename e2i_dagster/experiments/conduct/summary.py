"""Where an experiment stands, as plain values: for the terminal and as JSON."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.experiments.conduct import enrolment, store
from e2i_dagster.experiments.conduct.interim_looks import interim_page
from e2i_dagster.experiments.conduct.lifecycle import Review
from e2i_dagster.experiments.conduct.records import InterimAnalysis, SampleRatioCheck, Transition, Unblinding
from e2i_dagster.experiments.conduct.run import is_blinded


def approval_rows(review: Review) -> list[dict[str, str]]:
    """By role, who approved the design in force and when; what is missing, and when it is or was due."""
    if review.due is None:
        return []
    due = f"{review.due:%Y-%m-%d %H:%M}"
    rows = [
        {
            "role": role,
            "by": approval.by,
            "at": f"{approval.at:%Y-%m-%d %H:%M}",
            "due": due + (" (late)" if review.late(approval) else ""),
        }
        for role, approval in review.given.items()
    ]
    return rows + [{"role": role, "by": "missing", "at": "", "due": due} for role in review.missing]


def summary(connection: sa.Connection, name: str, policy: LifecyclePolicy) -> dict[str, Any]:
    """State, next states, enrolment, ratio, looks (blinded as the design says), history, openings.

    Raises:
        InputError: the experiment is not registered.
    """
    experiment = store.read(connection, name)
    records = store.read_records(connection, name)
    states = records.states(policy)
    report = enrolment.enrolment_report(
        experiment.spec, records.screened, states, records.events, simulated=experiment.simulated
    )
    reached = store.information(experiment.spec, records.outcomes)
    made = InterimAnalysis.read_all(connection, name)
    page = interim_page(experiment, made, reached, blinded=is_blinded(experiment))
    srm = SampleRatioCheck.read_newest(connection, name)
    review = store.review(connection, experiment, policy)
    steps = {
        "planned": report.planned, "screened": report.screened, "eligible": report.eligible,
        "consented": report.consented, "assigned": report.assigned, **report.statuses,
    }  # fmt: skip
    return {
        "experiment": name,
        "state": experiment.state,
        "decision": experiment.decision,
        "units": experiment.source or "no",
        "design_version": experiment.version,
        "design_locked": experiment.locked_at is not None,
        "next_states": list(policy.transitions[experiment.state]),
        "approvals": approval_rows(review),
        "sample_size_review": page.size_proposal or None,
        "enrolment": {step: shown_count(count) for step, count in steps.items()},
        "information_fraction": round(reached, 4),
        "sample_ratio": None if srm is None else f"{srm.severity} (p {srm.p_value:.3g})",
        "looks": [dict(look) for look in page.looks],
        "history": [
            {"at": made.at, "state": made.to_state, "by": made.recorded_by, "why": made.reason}
            for made in Transition.read_all(connection, name)
        ],
        "openings": [
            {"at": opening.at, "by": opening.recorded_by, "why": opening.reason}
            for opening in Unblinding.read_all(connection, name)
        ],
    }
