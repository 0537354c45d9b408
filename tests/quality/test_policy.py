"""config/quality.yaml and config/expectations: read, checked against the described tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.quality import ruleset_hash
from e2i_dagster.quality.rules import rules_for
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, raw_table
from e2i_dagster.tables.cells import kind_of
from e2i_dagster.tables.constraints import families


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "config"
    copy.mkdir()
    for name in ("quality.yaml", "vocabulary.yaml"):
        shutil.copy(CHECKOUT / "config" / name, copy / name)
    shutil.copytree(CHECKOUT / "config" / "expectations", copy / "expectations")
    return copy


def _edit(path: Path, old: str, new: str) -> int:
    """Replace once and return the line of the change."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_every_raw_table_has_a_suite_with_few_critical_expectations(policy: QualityPolicy) -> None:
    assert set(policy.suites) == {*RAW_TABLES, *OPTIONAL_RAW_TABLES}
    for table in RAW_TABLES:
        suite = policy.suites[table]
        critical = sum(spec.critical for spec in suite.expectations)
        assert 1 <= critical < len(suite.expectations)


def test_a_suite_that_names_a_missing_column_names_file_line_and_key(folder: Path) -> None:
    file = folder / "expectations" / "treatment_events.yaml"
    line = _edit(file, "column: event_type, mostly", "column: event_typ, mostly")
    with pytest.raises(ConfigError) as caught:
        QualityPolicy.load(folder)
    assert f"{file}:{line}: expectations.2.column" in str(caught.value)
    assert "has no column 'event_typ'" in str(caught.value)
    assert "Did you mean 'event_type'?" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("quality.yaml", "completeness: 0.25", "completeness: 0.35", "add up to 1"),
        ("quality.yaml", "expected: [hcp_id, npi", "expected: [hcp_id, npii", "has no column 'npii'"),
        (
            "quality.yaml",
            "[first_observation_date, diagnosis_date]",
            "[first_observation_date, diagnosis_code]",
            "differ in type",
        ),
        ("quality.yaml", "remibrutinib_csu: {codes", "csu: {codes", "lacks remibrutinib_csu"),
        ("quality.yaml", "overall: 0.80", "overal: 0.80", "overal"),
        ("expectations/triggers.yaml", "table: triggers", "table: trigger", "Did you mean 'triggers'?"),
        (
            "expectations/triggers.yaml",
            "column: priority, mostly",
            "column: priority, vocabulary: priorities, mostly",
            "found 'priorities'",
        ),
        ("expectations/triggers.yaml", "expect: in_set", "expect: inset", "expect"),
        ("expectations/triggers.yaml", "other: trigger_timestamp, ", "", "not_before needs other"),
        (
            "expectations/triggers.yaml",
            "column: priority, mostly",
            "column: trigger_id, mostly",
            "needs values or",
        ),
        (
            "expectations/hcp_profiles.yaml",
            "column: decile, mostly",
            "column: npi, mostly",
            "needs min or max",
        ),
    ],
)
def test_a_wrong_policy_is_refused_with_its_place(
    folder: Path, file: str, old: str, new: str, said: str
) -> None:
    _edit(folder / file, old, new)
    with pytest.raises(ConfigError, match=r"\.yaml:\d+: ") as caught:
        QualityPolicy.load(folder)
    assert said in str(caught.value)


def test_a_suite_takes_what_it_leaves_out_from_the_table_description(
    policy: QualityPolicy, folder: Path
) -> None:
    suite = policy.suite("patient_journeys")
    assert suite is not None and policy.suite("no table") is None
    specs = {(spec.expect, spec.column): spec for spec in suite.expectations}
    assert specs["in_set", "brand"].vocabulary == "brand"
    assert (specs["between", "age_at_diagnosis"].min, specs["between", "age_at_diagnosis"].max) == (0, 120)
    assert specs["not_before", "journey_end_date"].other == "journey_start_date"
    _edit(
        folder / "expectations" / "patient_journeys.yaml",
        "column: age_at_diagnosis,",
        "column: age_at_diagnosis, min: 18,",
    )
    own = QualityPolicy.load(folder).suite("patient_journeys")
    assert own is not None
    assert [(spec.min, spec.max) for spec in own.expectations if spec.column == "age_at_diagnosis"] == [
        (18, None)
    ]


def test_rules_are_derived_for_every_column(policy: QualityPolicy) -> None:
    for table in RAW_TABLES + OPTIONAL_RAW_TABLES:
        rules = rules_for(table, policy)
        assert {rule.column for rule in rules if rule.kind == "type"} == set(families(table))
        assert len({rule.label for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("disease_severity", "number"),
        ("age_at_diagnosis", "integer"),
        ("journey_start_date", "date"),
        ("source_timestamp", "timestamp"),
        ("source_stacking_flag", "boolean"),
        ("comorbidities", "list"),
    ],
)
def test_families_follow_the_described_types(column: str, expected: str) -> None:
    assert families("patient_journeys")[column] == expected


def test_numeric_columns_are_numbers() -> None:
    assert kind_of(sa.Column("x", sa.Numeric(18, 6))) == "number"
    assert kind_of(raw_table("treatment_events").columns["cost"]) == "number"


def test_the_ruleset_hash_changes_with_what_decides_and_with_nothing_else(
    folder: Path, policy: QualityPolicy
) -> None:
    same = QualityPolicy.load(folder)
    assert ruleset_hash(same, "triggers") == ruleset_hash(policy, "triggers")
    _edit(folder / "expectations" / "triggers.yaml", "mostly: 0.95", "mostly: 0.90")
    changed = QualityPolicy.load(folder)
    assert ruleset_hash(changed, "triggers") != ruleset_hash(policy, "triggers")
    assert ruleset_hash(changed, "hcp_profiles") == ruleset_hash(policy, "hcp_profiles")
    _edit(folder / "quality.yaml", "overall: 0.80", "overall: 0.81")
    stricter = QualityPolicy.load(folder)
    assert ruleset_hash(stricter, "hcp_profiles") != ruleset_hash(policy, "hcp_profiles")
    _edit(folder / "vocabulary.yaml", "[Remibrutinib, Fabhalta", "[Own, Remibrutinib, Fabhalta")
    assert ruleset_hash(QualityPolicy.load(folder), "hcp_profiles") == ruleset_hash(stricter, "hcp_profiles")


def test_an_own_vocabulary_value_is_accepted_and_changes_the_rules(
    folder: Path, policy: QualityPolicy
) -> None:
    _edit(folder / "vocabulary.yaml", "[Remibrutinib, Fabhalta", "[Own, Remibrutinib, Fabhalta")
    own = QualityPolicy.load(folder)
    assert "Own" in own.vocabulary("brand")
    assert ruleset_hash(own, "patient_journeys") != ruleset_hash(policy, "patient_journeys")


def test_every_rule_has_a_page() -> None:
    from e2i_dagster.config.quality import DIMENSIONS, PlausibilityKind, SchemaKind

    rules = {f"schema_{kind}" for kind in SchemaKind.__args__} | {f"dimension_{name}" for name in DIMENSIONS}
    rules |= {f"plausibility_{kind}" for kind in PlausibilityKind.__args__} | {"distribution_shift"}
    rules |= {"overall_score", "expectation", "expectation_critical", "expectation_pass_rate", "no_rows"}
    rules |= {"check_error", "not_checked", "leakage_known_at", "leakage_temporal", "leakage_target"}
    rules |= {"leakage_missing", "leakage_shared_patients", "leakage_duplicate_rows"}
    rules |= {"leakage_window", "leakage_outcome_window", "leakage_near_duplicate_rows", "leakage_no_event"}
    pages = {page.stem for page in (CHECKOUT / "docs" / "rules").glob("*.md")}
    assert rules == pages


def test_what_a_source_expects_lies_beside_its_mapping(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "expectations").mkdir(parents=True)
    (source / "quality.yaml").write_text("tables: {treatment_events: {expected: [treatment_event_id, cost]}}")
    suite = "table: treatment_events\nexpectations: [{expect: not_null, column: cost, because: billed}]"
    (source / "expectations/treatment_events.yaml").write_text(suite)
    (folder / "sources.yaml").write_text(
        'first_month: "2024-01"\ndata_end: 2024-12-31\n'
        f"source: {{kind: files, folder: in, mapping: {source / 'mapping.yaml'}}}"
    )
    ours, theirs = QualityPolicy.load(folder, beside=folder), QualityPolicy.load(folder)
    assert theirs.settings.tables["treatment_events"].expected == ("treatment_event_id", "cost")
    assert [one.column for one in theirs.suites["treatment_events"].expectations] == ["cost"]
    # What it does not say stays ours.
    (source / "quality.yaml").write_text("tables: {triggers: {expected: [trigger_id]}}")
    said = QualityPolicy.load(folder).settings.tables["triggers"]
    assert said.expected == ("trigger_id",) and said.ordered == ours.settings.tables["triggers"].ordered != ()
    (source / "quality.yaml").write_text("tables: {treatment_events: {expected: [treatment_event_id, cost]}}")
    assert theirs.settings.tables["triggers"] == ours.settings.tables["triggers"]
    assert ruleset_hash(ours, "treatment_events") != ruleset_hash(theirs, "treatment_events")
    _edit(source / "quality.yaml", "cost", "costs")
    with pytest.raises(
        ConfigError, match=r"source/quality\.yaml:1: tables\.treatment_events\.expected\.1: .*'cost'"
    ):
        QualityPolicy.load(folder)
