"""One round over all experiments: findings to alert on, and looks that are due."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from e2i_dagster.config.experiment import ENDED_STATES, LifecyclePolicy
from e2i_dagster.experiments.conduct import store
from e2i_dagster.experiments.conduct.digital_twin import compare_looks
from e2i_dagster.experiments.conduct.interim_looks import answered, due_look
from e2i_dagster.experiments.conduct.lifecycle import bound_to_stop
from e2i_dagster.experiments.conduct.records import FidelityRecord, InterimAnalysis
from e2i_dagster.experiments.conduct.run import is_blinded
from e2i_dagster.experiments.conduct.watch import Finding, check_srm, long_pause, overdue_review, watch


@dataclass(frozen=True)
class Observed:
    """What the monitor saw of one experiment; ``due`` is the number of the look to make, if any."""

    name: str
    findings: tuple[Finding, ...]
    due: int | None


def observe(
    connection: sa.Connection, policy: LifecyclePolicy, *, now: dt.datetime, actor: str
) -> tuple[Observed, ...]:
    """Look at every experiment that runs, is paused, waits for approval, or has ended.

    Errors are raised: a monitor that cannot look must not be silent.
    """
    seen = []
    for name, experiment in store.read_all(connection).items():
        if experiment.state == "running":
            seen.append(_running(connection, experiment, policy, now, actor))
        elif experiment.state == "in_review":
            late = overdue_review(name, store.review(connection, experiment, policy), now)
            seen.append(Observed(name, _given(late), None))
        elif experiment.state == "paused":
            pause = long_pause(name, store.paused_at(connection, name), policy, now)
            seen.append(Observed(name, _given(pause), None))
        elif experiment.state in ENDED_STATES and experiment.state != "archived":
            seen.append(Observed(name, _given(_poor_prediction(connection, experiment)), None))
    return tuple(seen)


def _given(finding: Finding | None) -> tuple[Finding, ...]:
    return () if finding is None else (finding,)


def _running(
    connection: sa.Connection,
    experiment: store.Experiment,
    policy: LifecyclePolicy,
    now: dt.datetime,
    actor: str,
) -> Observed:
    name, records = experiment.name, store.read_records(connection, experiment.name)
    made = InterimAnalysis.read_all(connection, name)
    srm = check_srm(connection, experiment.spec, records, policy, actor=actor)
    found = watch(experiment.spec, records, policy, srm, now=now, simulated=experiment.simulated)
    compare_looks(connection, name, made, policy, actor=actor)
    found += _given(_poor_prediction(connection, experiment))
    if made and made[-1].metrics_snapshot.not_evaluable:
        found.append(_unanswered(experiment, made[-1]))
    if made and made[-1].decision not in ("continue", "not_evaluable"):
        # While blinded every stop looks alike: a severity of its own would tell benefit from harm.
        harm = made[-1].decision == "stop_safety" and not is_blinded(experiment)
        found.append(
            Finding(
                "look",
                "critical" if harm else "high",
                f"look {made[-1].analysis_number} says: stop for review",
                f"e2i experiment report {name} --unblinded --reason TEXT",
            )
        )
    reached = store.information(experiment.spec, records.outcomes)
    used = len(answered(experiment.spec, made))
    due = None if bound_to_stop(made) else due_look(experiment.spec, reached, used, ended=False)
    return Observed(name, tuple(found), due)


def _unanswered(experiment: store.Experiment, look: InterimAnalysis) -> Finding:
    """That a look could not judge everything: nobody may take it for "no harm" or "no effect"."""
    why = "the committee's report has the reasons"
    if not is_blinded(experiment):
        why = "; ".join(look.metrics_snapshot.not_evaluable)
    return Finding(
        "look",
        "high",
        f"look {look.analysis_number} is not evaluable in part or whole: {why}",
        f"e2i experiment report {experiment.name} --unblinded --reason TEXT",
        once=f"{experiment.name}:not_evaluable:{look.analysis_number}",
    )


def _poor_prediction(connection: sa.Connection, experiment: store.Experiment) -> Finding | None:
    """That the twin's prediction failed. Not while blinded: poor means that the effect is not what was predicted."""
    newest = FidelityRecord.read_newest(connection, experiment.name)
    if is_blinded(experiment) or newest is None or newest.fidelity_grade != "poor":
        return None
    return Finding(
        "fidelity",
        "medium",
        f"the twin's prediction was poor at look {newest.analysis_number}; fit it again on newer data",
        f"e2i experiment twin {experiment.name}",
        once=f"{experiment.name}:fidelity:{newest.id}",
    )
