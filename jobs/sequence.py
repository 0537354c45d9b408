"""The plan: which job follows which, for which keys, and how one is run in this process.

A Dagster run has one partition set, so the whole path is several jobs in order. The command line
executes them one after the other; in the UI a run-status sensor requests the next one.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from e2i_dagster.config.policy import current_policy
from e2i_dagster.errors import InputError

#: Jobs that load.
LOADS = ("load", "resubmit_rejects", "load_and_qc")


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan: a job for one partition key, or for a range of months."""

    job: str
    first: str | None = None
    last: str | None = None

    @property
    def label(self) -> str:
        """The keys as people write them."""
        if self.first is None:
            return ""
        return self.first if self.last in (None, self.first) else f"{self.first}..{self.last}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which Dagster knows a range of partitions in a single run."""
        if self.first is None or self.last is None:
            return {}
        return {
            "dagster/asset_partition_range_start": self.first,
            "dagster/asset_partition_range_end": self.last,
        }


def scopes_named(text: str) -> list[str]:
    """Scopes of ``default``, ``all`` or a comma-separated list of names.

    Raises:
        InputError: a name is not a scope of the configuration; the known ones are listed.
        ConfigError: the file of a named scope is wrong, or no scope is valid.
    """
    policy = current_policy()
    if text == "all":
        if not policy.scopes:
            raise policy.none_valid("scopes")
        return sorted(policy.scopes)
    names = [policy.default_scope if name == "default" else name for name in text.split(",")]
    return [policy.scope(name).key for name in names]


def plan(scopes: Sequence[str], today: dt.date | None = None) -> Iterator[PlannedRun]:
    """The runs of the whole path for ``scopes``, in order."""
    policy = current_policy()
    months = policy.sources.months
    yield PlannedRun("load_and_qc", months[0], months[-1])
    for cohort in sorted(policy.cohorts):
        yield PlannedRun("build_cohorts", cohort)
    for scope in scopes:
        yield PlannedRun("scope_pipeline", scope)
    day = (today or dt.datetime.now(dt.UTC).date()).isoformat()
    for scope in scopes:
        yield PlannedRun("monitor", f"{day}|{scope}")


def monitored_days(scope: str, first: dt.date, last: dt.date) -> PlannedRun:
    """One run of ``monitor`` over the days ``first`` to ``last`` of one scope.

    Raises:
        InputError: not one scope, or days that are not a range of the past.
    """
    names = scopes_named(scope)
    start = dt.date.fromisoformat(f"{current_policy().sources.first_month}-01")
    today = dt.datetime.now(dt.UTC).date()
    if len(names) != 1:
        raise InputError(
            f"--scope {scope}: one scope is watched in a run, these are {len(names)}.",
            field="scope", value=scope, remedy="Name one.",
        )  # fmt: skip
    if not start <= first <= last <= today:
        raise InputError(
            f"days {first} to {last}: expected a range within {start} to {today}, the first day first.",
            field="--from, --to", value=f"{first} to {last}",
            remedy=f"Give days of that range, for example --from {today} --to {today}.",
        )  # fmt: skip
    keys = [dg.MultiPartitionKey({"day": day.isoformat(), "scope": names[0]}) for day in (first, last)]
    return PlannedRun("monitor", str(keys[0]), None if first == last else str(keys[1]))


def execute(
    defs: dg.Definitions,
    planned: PlannedRun,
    instance: dg.DagsterInstance,
    run_config: Mapping[str, Any] | None = None,
    quiet: bool = True,
    without: Sequence[str] = (),
) -> dg.ExecuteInProcessResult:
    """Run ``planned`` in this process, recorded in ``instance`` like a run of the UI.

    Args:
        without: raw tables that the run leaves alone, with their quality reports and checks.
    """
    job = defs.resolve_job_def(planned.job)
    keys = (
        [key for key in job.asset_layer.selected_asset_keys if key.path[-1] not in without]
        if without
        else None
    )
    config = dict(run_config or {})
    if quiet:
        config["loggers"] = {"console": {"config": {"log_level": "CRITICAL"}}}
    partition_key = planned.first if planned.last is None else None
    return job.execute_in_process(
        run_config=config,
        instance=instance,
        partition_key=partition_key,
        asset_selection=keys,
        tags=planned.tags,
        raise_on_error=False,
    )


def months_of(job: str) -> tuple[str | None, str | None]:
    """First and last month for a job over monthly assets; nothing for other jobs."""
    months = current_policy().sources.months
    return (months[0], months[-1]) if job in LOADS else (None, None)
