"""One round over all open experiments: findings to alert on, and looks that are due."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.experiments import store
from e2i_dagster.experiments.lifecycle import bound_to_stop
from e2i_dagster.experiments.looks import due_look
from e2i_dagster.experiments.twin import compare_looks, comparisons
from e2i_dagster.experiments.watch import Finding, check_srm, long_pause, overdue_review, watch


@dataclass(frozen=True)
class Observed:
    """What the monitor saw of one open experiment; ``due`` is the number of the look to make, if any."""

    name: str
    findings: tuple[Finding, ...]
    due: int | None


def observe(
    connection: sa.Connection, policy: LifecyclePolicy, *, now: dt.datetime, actor: str
) -> tuple[Observed, ...]:
    """Look at every experiment that runs, is paused or waits for approval.

    Errors are raised: a monitor that cannot look must not be silent.
    """
    seen = []
    for name, held in store.read_all(connection).items():
        if held.state in ("in_review", "paused"):
            waiting = (
                overdue_review(name, store.review(connection, held, policy), now)
                if held.state == "in_review"
                else long_pause(name, store.paused_at(connection, name), policy, now)
            )
            seen.append(Observed(name, () if waiting is None else (waiting,), None))
        if held.state != "running":
            continue
        records = store.read_records(connection, name)
        made = store.looks(connection, name)
        srm = check_srm(connection, held.spec, records, policy, actor=actor)
        found = watch(held.spec, records, policy, srm, now=now, simulated=held.simulated)
        compare_looks(connection, name, made, policy, actor=actor)
        newest = comparisons(connection, name)[-1:]
        if newest and newest[0]["fidelity_grade"] == "poor":
            # The alert says that the prediction failed, not by how much: that would tell the effect.
            found.append(
                Finding("fidelity", "medium", "the twin's prediction is poor; fit it again on newer data",
                        f"e2i experiment twin {name}")
            )  # fmt: skip
        if made and made[-1]["decision"] != "continue":
            found.append(
                Finding(
                    "look",
                    "critical" if made[-1]["decision"] == "stop_safety" else "high",
                    f"look {made[-1]['analysis_number']} says: stop for review",
                    f"e2i experiment report {name} --unblinded --reason TEXT",
                )
            )
        reached = store.information(held.spec, records.outcomes)
        due = None if bound_to_stop(made) else due_look(held.spec, reached, len(made), ended=False)
        seen.append(Observed(name, tuple(found), due))
    return tuple(seen)
