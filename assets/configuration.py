"""Configuration as an asset, so that a broken file shows in the UI instead of taking the pipeline down."""

import dagster as dg

from assets.execution import Produced
from assets.stage import stage_asset
from e2i_dagster.config.policy import PolicySummary, current_policy
from e2i_dagster.policy_files.environment import config_folder


@stage_asset(
    produces="e2i_dagster.config.policy:PolicySummary",
    always=True,
    group_name="configuration",
    kinds={"yaml"},
    description="Cohorts, scopes and sources as they were read; files that could not be read, with their error.",
)
def policy() -> Produced:
    summary = PolicySummary.of(current_policy())
    return Produced(summary, summary)


@dg.asset_check(asset=policy, description="Every file under config/ could be read; a broken one is named.")
def config_valid() -> dg.AssetCheckResult:
    from e2i_dagster.config.validate import validate_folder

    problems = validate_folder(config_folder())
    return dg.AssetCheckResult(
        passed=not problems,
        description="\n\n".join(problems.values()) or "every configuration file is valid",
    )
