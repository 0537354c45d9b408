"""Partition sets. A run has one of them; ``docs/pipeline.md`` says which job has which.

Importing this module reads only ``config/``. A file that is broken drops its partition here and
shows as a failed check ``config_valid``.
"""

import dagster as dg

from e2i_dagster.config.policy import current_policy

_policy = current_policy()

#: Every month of the configured range. Dagster's own monthly partitions leave out the months that are not over.
MONTHS = dg.StaticPartitionsDefinition(_policy.sources.months)
COHORTS = dg.StaticPartitionsDefinition(sorted(_policy.cohorts))
SCOPES = dg.StaticPartitionsDefinition(sorted(_policy.scopes))
#: Days on which endpoints were asked: up to today, wherever the data end.
DAYS = dg.DailyPartitionsDefinition(start_date=f"{_policy.sources.first_month}-01", end_offset=1)
DAYS_BY_SCOPE = dg.MultiPartitionsDefinition({"day": DAYS, "scope": SCOPES})

#: Which cohort a scope is built on: scopes of one cohort share its members and its split.
COHORT_OF_SCOPE = dg.StaticPartitionMapping(
    {
        cohort: {name for name, scope in _policy.scopes.items() if scope.cohort == cohort}
        for cohort in _policy.cohorts
    }
)
EXPERIMENTS = dg.StaticPartitionsDefinition(sorted(_policy.experiments))
#: From which scope's training frame an experiment's twin is predicted.
EXPERIMENT_OF_SCOPE = dg.StaticPartitionMapping(
    {
        scope: {
            name
            for name, experiment in _policy.experiments.items()
            if experiment.twin and experiment.twin.scope == scope
        }
        for scope in _policy.scopes
    }
)
ALL_MONTHS = dg.AllPartitionMapping()
SCOPE_OF_DAY = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="scope")
