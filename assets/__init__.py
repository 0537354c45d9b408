"""The Dagster shell of the pipeline: one module per group, in DAG order. Bodies call one core function."""

import warnings

import dagster as dg

# Single-run backfills, data versions and multi-dimension mappings are marked beta in Dagster 1.13;
# the pinned lock and the tests guard what we use of them.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
