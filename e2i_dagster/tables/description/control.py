"""Bookkeeping of the warehouse: vocabularies, loads, rejects, versions, snapshots, stage states."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

Timestamp = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_EMPTY = sa.text("'{}'::jsonb")

vocabulary = sa.Table(
    "vocabulary",
    metadata,
    column("name", sa.Text, "Vocabulary.", primary_key=True, privacy="public"),
    column("value", sa.Text, "Accepted value.", primary_key=True, privacy="public"),
    column(
        "meaning", sa.Text, "What the value stands for.", nullable=False, server_default="", privacy="public"
    ),
    comment="Values that the vocabulary columns of the raw tables accept (config/vocabulary.yaml).",
)

load_rejects = sa.Table(
    "load_rejects",
    metadata,
    column("reject_id", sa.BigInteger, "Key of the reject.", sa.Identity(always=True), primary_key=True),
    column("load_id", sa.Text, "Load that rejected the row.", nullable=False, index=True),
    column("table_name", sa.Text, "Raw table that the row was meant for.", nullable=False),
    column("row_number", sa.BigInteger, "Row of the delivery, from 1.", nullable=False),
    column("row_key", sa.Text, "Key of the row as delivered.", privacy="pseudonym"),
    column("reason", sa.Text, "Reason code, such as npi_check_digit.", nullable=False),
    column("column_name", sa.Text, "Column that the reason is about."),
    column("value", sa.Text, "Value of that column as delivered.", privacy="direct"),
    column("parent_table", sa.Text, "Table of the parent that is missing or was rejected."),
    column("parent_key", sa.Text, "Key of that parent.", privacy="pseudonym"),
    column("raw_row", JSONB, "The row as delivered.", nullable=False, privacy="direct"),
    column("state", sa.Text, "open or resubmitted.", nullable=False, server_default="open"),
    column("resubmitted_load_id", sa.Text, "Load that took the row after its correction."),
    column("rejected_at", Timestamp, "When it was rejected.", nullable=False, server_default=_NOW),
    sa.Index("ix_load_rejects_table_name_reason", "table_name", "reason"),
    sa.Index("ix_load_rejects_table_name_row_key", "table_name", "row_key"),
    sa.Index("ix_load_rejects_parent_table_parent_key", "parent_table", "parent_key"),
    sa.CheckConstraint("state IN ('open', 'resubmitted')", name="state_known"),
    comment="Rows that a load did not take, each with its reason.",
)

load_withdrawals = sa.Table(
    "load_withdrawals",
    metadata,
    column(
        "withdrawal_id", sa.BigInteger, "Key of the withdrawal.", sa.Identity(always=True), primary_key=True
    ),
    column("load_id", sa.Text, "Load that withdrew the row.", nullable=False, index=True),
    column("table_name", sa.Text, "Raw table that the row was in.", nullable=False),
    column("row_key", sa.Text, "Key of the row.", nullable=False, privacy="pseudonym"),
    column("month", sa.Text, "Month of the row; null in a table without months."),
    column(
        "reason",
        sa.Text,
        "not_delivered: a restated month or table is without it; reversed: another row took it back.",
        nullable=False,
        server_default="not_delivered",
    ),
    column("reversal_key", sa.Text, "Key of the row that took it back.", privacy="pseudonym"),
    column("reversal", JSONB, "The row that took it back, as delivered.", privacy="direct"),
    column("restored_load_id", sa.Text, "Load since which another row is reversed in its place."),
    column("content", JSONB, "The row as it was.", nullable=False, privacy="direct"),
    column("withdrawn_at", Timestamp, "When it was withdrawn.", nullable=False, server_default=_NOW),
    sa.Index("ix_load_withdrawals_table_name_row_key", "table_name", "row_key"),
    sa.Index("ix_load_withdrawals_table_name_reversal_key", "table_name", "reversal_key"),
    sa.CheckConstraint("reason IN ('not_delivered', 'reversed')", name="reason_known"),
    sa.CheckConstraint("(reason = 'reversed') = (reversal_key IS NOT NULL)", name="reversed_by"),
    comment="Rows that left a raw table, as they were: not delivered again, or reversed.",
)

load_completed_dates = sa.Table(
    "load_completed_dates",
    metadata,
    column("table_name", sa.Text, "Raw table of the row.", primary_key=True),
    column("row_key", sa.Text, "Key of the row.", primary_key=True, privacy="pseudonym"),
    column("column_name", sa.Text, "Date column that was delivered without its day.", primary_key=True),
    column("delivered", sa.Text, "What was delivered, such as 2013-07.", nullable=False, privacy="quasi"),
    column("precision", sa.Text, "month or year.", nullable=False),
    column("rule", sa.Text, "first, middle or last: the day that stands in the row.", nullable=False),
    column("load_id", sa.Text, "Newest load that delivered it so.", nullable=False, index=True),
    sa.CheckConstraint("precision IN ('month', 'year')", name="precision_known"),
    sa.CheckConstraint("rule IN ('first', 'middle', 'last')", name="rule_known"),
    comment="Dates of the raw tables that were delivered without their day and completed by a declared rule.",
)

ml_table_loads = sa.Table(
    "ml_table_loads",
    metadata,
    column("load_id", sa.Text, "Load.", primary_key=True),
    column("table_name", sa.Text, "Raw table.", primary_key=True),
    column("status", sa.Text, "loaded, unchanged, failed, skipped or dry_run.", nullable=False),
    column("message", sa.Text, "What went wrong, if anything did."),
    column("source", sa.Text, "Where the rows came from."),
    column("delivered", sa.BigInteger, "Rows of the delivery.", nullable=False),
    column("inserted", sa.BigInteger, "New rows.", nullable=False),
    column("updated", sa.BigInteger, "Changed rows.", nullable=False),
    column("unchanged", sa.BigInteger, "Rows that were there already.", nullable=False),
    column("duplicates", sa.BigInteger, "Repeated rows of the delivery.", nullable=False),
    column(
        "reversals",
        sa.BigInteger,
        "Delivered rows that take another row back.",
        nullable=False,
        server_default="0",
    ),
    column("rejected", sa.BigInteger, "Rejected rows.", nullable=False),
    column(
        "withdrawn",
        sa.BigInteger,
        "Rows that left the table: not delivered again, or reversed.",
        nullable=False,
        server_default="0",
    ),
    column(
        "restored",
        sa.BigInteger,
        "Reversed rows that came back, because a more recent one is reversed instead.",
        nullable=False,
        server_default="0",
    ),
    column(
        "lines",
        sa.BigInteger,
        "Lines of the text files below their headers, counted apart from the parser; null without text files.",
    ),
    column("reversal_rule", JSONB, "Rule of the mapping by which reversals found their originals."),
    column(
        "reasons", JSONB, "Reason code to number of rejected rows.", nullable=False, server_default=_EMPTY
    ),
    column(
        "added",
        sa.BigInteger,
        "Rows that the mapping made of numbered columns, beside the first of each line.",
        nullable=False,
        server_default="0",
    ),
    column(
        "left_out",
        JSONB,
        "Rule of the mapping to number of delivered rows that it left out.",
        nullable=False,
        server_default=_EMPTY,
    ),
    column("partitions", JSONB, "Month to number of rows.", nullable=False, server_default=_EMPTY),
    column(
        "own_columns",
        JSONB,
        "Declared type of each column of the user's own.",
        nullable=False,
        server_default=_EMPTY,
    ),
    column(
        "partial_dates",
        JSONB,
        "Date column to the rule by which years and months are completed.",
        nullable=False,
        server_default=_EMPTY,
    ),
    column("batches", sa.Integer, "Batches that were copied.", nullable=False, server_default="0"),
    column("retries", sa.Integer, "Batches that were tried again.", nullable=False, server_default="0"),
    column("threshold", sa.Double, "Share of rows that had to be taken.", minimum=0, maximum=1),
    column("threshold_reason", sa.Text, "Why another threshold than the default was accepted."),
    column("seconds", sa.Double, "Duration.", unit="seconds", minimum=0, nullable=False),
    column("run_id", sa.Text, "Dagster run."),
    column("actor", sa.Text, "Who loaded."),
    column("loaded_at", Timestamp, "When the table was done.", nullable=False, server_default=_NOW),
    comment="One row per load and table: counts that reconcile.",
)

ml_data_versions = sa.Table(
    "ml_data_versions",
    metadata,
    column("version_id", sa.BigInteger, "Order of recording.", sa.Identity(always=True), primary_key=True),
    column("asset", sa.Text, "Asset, such as raw/treatment_events.", nullable=False),
    column("partition", sa.Text, "Partition; empty for assets without.", nullable=False, server_default=""),
    column("digest", sa.Text, "Digest of the values.", nullable=False),
    column("schema_hash", sa.Text, "Digest of column names and types.", nullable=False, server_default=""),
    column("code_version", sa.Text, "Version of the code that made it.", nullable=False, server_default=""),
    column(
        "fingerprint",
        sa.Text,
        "Digest of all inputs (snapshot, definition, code): equal fingerprints give equal values.",
    ),
    column("rows", sa.BigInteger, "Rows.", nullable=False),
    column("run_id", sa.Text, "Dagster run that made it.", index=True),
    column(
        "at", Timestamp, "When it was recorded.", nullable=False, server_default=sa.text("clock_timestamp()")
    ),
    column("path", sa.Text, "Place in the lake."),
    column("metadata", JSONB, "Further facts.", nullable=False, server_default=_EMPTY),
    sa.Index("ix_ml_data_versions_asset_partition_version_id", "asset", "partition", "version_id"),
    sa.Index("ix_ml_data_versions_asset_digest", "asset", "digest"),
    sa.Index("ix_ml_data_versions_fingerprint", "fingerprint"),
    comment="The ledger: one row per write of an asset's partition. The newest row is the current version.",
)

ml_lake_files = sa.Table(
    "ml_lake_files",
    metadata,
    column("path", sa.Text, "Place in the lake.", primary_key=True),
    column("size", sa.BigInteger, "Length as written.", nullable=False, unit="bytes", minimum=0),
    column("checksum", sa.Text, "SHA-256 of its bytes as written.", nullable=False),
    column("run_id", sa.Text, "Dagster run that noted it last."),
    column("at", Timestamp, "When it was noted last.", nullable=False, server_default=_NOW),
    comment="Files of the lake as they were written: a file that differs is damaged.",
)

ml_snapshots = sa.Table(
    "ml_snapshots",
    metadata,
    column("digest", sa.Text, "Digest of the sorted members.", primary_key=True),
    column("table_name", sa.Text, "Table or asset that was read.", primary_key=True),
    column("partition", sa.Text, "Its partition; empty without.", primary_key=True, server_default=""),
    column("member_digest", sa.Text, "Digest of the values that were read.", nullable=False),
    column("rows", sa.BigInteger, "Rows that were read.", nullable=False),
    column("created_at", Timestamp, "When it was first recorded.", nullable=False, server_default=_NOW),
    comment="What an asset read: the members of each snapshot.",
)

ml_stage_states = sa.Table(
    "ml_stage_states",
    metadata,
    column("stage", sa.Text, "Stage.", primary_key=True),
    column("partition", sa.Text, "Partition; empty without.", primary_key=True, server_default=""),
    column(
        "state",
        sa.Text,
        "executed, reused, blocked, skipped, absent, failed, unavailable or running.",
        nullable=False,
    ),
    column("reason", sa.Text, "Why, for all states but executed."),
    column("rows", sa.BigInteger, "Rows made."),
    column("seconds", sa.Double, "Duration.", unit="seconds", minimum=0),
    column("data_version", sa.Text, "Digest of what was made."),
    column("run_id", sa.Text, "Dagster run."),
    column("at", Timestamp, "When the state was reached.", nullable=False, server_default=_NOW),
    sa.CheckConstraint(
        "state IN ('executed', 'reused', 'blocked', 'skipped', 'absent', 'failed', 'unavailable', 'running')",
        name="state_known",
    ),
    comment="The last state of each stage and partition; a stage without a row never ran.",
)

ml_erasures = sa.Table(
    "ml_erasures",
    metadata,
    column("pseudonym", sa.Text, "Stands for the patient under the key of pseudonyms.", primary_key=True),
    column("reason", sa.Text, "Why the patient was erased.", nullable=False),
    column("erased_by", sa.Text, "Person.", nullable=False),
    column("authentication", sa.Text, "How the person is known.", nullable=False),
    column("run_id", sa.Text, "Dagster run that erased.", nullable=False),
    column(
        "began_at", Timestamp, "Since when loads leave the patient out.", nullable=False, server_default=_NOW
    ),
    column("ended_at", Timestamp, "When everything was erased; null: it was cut off and has to be repeated."),
    column("report", JSONB, "What was erased where, what remains and why; counts only."),
    sa.CheckConstraint("authentication IN ('authenticated', 'self-declared')", name="authentication_known"),
    comment="One row per erased patient: the tombstone.",
)

ml_erased_keys = sa.Table(
    "ml_erased_keys",
    metadata,
    column("key_pseudonym", sa.Text, "Pseudonym of the patient or of a journey.", primary_key=True),
    column(
        "pseudonym",
        sa.Text,
        "Erased patient.",
        sa.ForeignKey("ml_erasures.pseudonym"),
        nullable=False,
        index=True,
    ),
    comment="Pseudonyms of the keys that no load takes again.",
)

ml_erased_files = sa.Table(
    "ml_erased_files",
    metadata,
    column("path", sa.Text, "Place in the lake.", primary_key=True),
    column("pseudonym", sa.Text, "Erased patient.", sa.ForeignKey("ml_erasures.pseudonym"), primary_key=True),
    column("rows", sa.BigInteger, "Rows that were taken out.", nullable=False, minimum=0),
    column("erased_at", Timestamp, "When.", nullable=False, server_default=_NOW),
    comment="Files of the lake that are no longer what their digest names: a patient was erased from them.",
)
