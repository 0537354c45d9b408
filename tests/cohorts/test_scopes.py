"""Scope files: the shipped ones, and what is refused."""

import pytest
import yaml

from e2i_dagster.config.cohort import read_cohorts
from e2i_dagster.config.scope import (
    ScopeSpec,
    check_against_cohorts,
    default_scope,
    read_scope,
    read_scopes,
    scope_folder,
)
from e2i_dagster.errors import ConfigError

SHIPPED = yaml.safe_load((scope_folder() / "fabhalta_pnh_initiation.yaml").read_text())


def read(folder, **changes):
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(SHIPPED | changes))
    return ScopeSpec.from_yaml(path)


def test_shipped_scopes_are_of_every_kind_and_fit_their_cohorts():
    scopes, broken = read_scopes()
    cohorts, _ = read_cohorts()
    assert not broken
    assert len(scopes) == len({scope.model_name for scope in scopes.values()}) == 12
    assert {scope.outcome.kind for scope in scopes.values()} == {
        "event",
        "choice",
        "sum",
        "days_covered",
        "time_to",
    }
    for key, scope in scopes.items():
        check_against_cohorts(scope, cohorts)
        assert scope.key == key
        assert (scope.source_lag_days, scope.split.ratios) == (14, (0.60, 0.20, 0.15, 0.05))
        assert scope.success_criteria.beats_baseline
        assert len(scope.success_criteria.rules) == 1
    # Scopes of a cohort share its split.
    for cohort in cohorts:
        assert len({scope.split.salt for scope in scopes.values() if scope.cohort == cohort}) == 1
    assert default_scope().key == "remibrutinib_csu_initiation"


def test_each_cohort_has_its_question_of_initiation():
    scopes, _ = read_scopes()
    initiation = [scope for scope in scopes.values() if scope.target == "initiation"]
    # Who is on therapy has begun it.
    assert {scope.cohort for scope in initiation} == set(read_cohorts()[0]) - {"fabhalta_on_therapy"}
    for scope in initiation:
        assert scope.outcome.event.brand == scope.brand
        assert (scope.outcome.window, scope.minimum_labelled) == ((1, 90), 500)
        assert [rule.words() for rule in scope.success_criteria.rules] == ["roc_auc on test at least 0.75"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": SHIPPED["outcome"] | {"window": [0, 90]}}, "must start on day 1"),
        ({"outcome": SHIPPED["outcome"] | {"window": [30, 7]}}, "must start on day 1"),
        ({"outcome": SHIPPED["outcome"] | {"incomplete_followup": "censor"}}, "no time to censor"),
        ({"outcome": {"event": {"table": "triggers", "event_type": "x"}}}, "outcomes are read from"),
        ({"problem_type": "regression"}, "binary_classification only"),
        ({"problem_type": "time_series"}, "Input should be"),
        ({"split": {"salt": "s", "ratios": [0.5, 0.2, 0.2, 0.2]}}, "add up to 1"),
        ({"success_criteria": {"max_rmse": 10}}, "do not belong"),
        ({"success_criteria": {"min_auc": {"value": 0.7, "split": "live"}}}, "Input should be"),
        ({"preferences": {"preferred_algorithms": ["A"], "excluded_algorithms": ["A"]}}, "both preferred"),
        ({"features": ["a", "a"]}, "named twice"),
        ({"evaluation": {"subgroups": ["a", {"column": "a", "edges": [1]}]}}, "a column is named twice"),
        ({"evaluation": {"subgroups": [{"column": "a", "edges": [40, 40]}]}}, "edges ascend"),
        ({"evaluation": {"groups": ["a"]}}, "Extra inputs"),
        ({"success_criteria": {"subgroup_floor": 1.5}}, "less than or equal to 1"),
        ({"key": "other"}, "Use one name"),
        ({"horizon": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_scope_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, **changes)


def test_a_scope_of_a_number_names_subgroups_and_a_floor_of_its_own_measure(tmp_path):
    numbers = read_scope("remibrutinib_csu_cost").model_dump(mode="json", exclude={"key", "default"})
    asked = {"evaluation": {"subgroups": ["gender"]}}
    criteria = numbers["success_criteria"] | {"subgroup_floor": 0.1}
    (tmp_path / "cost.yaml").write_text(yaml.safe_dump(numbers | asked | {"success_criteria": criteria}))
    scope = ScopeSpec.from_yaml(tmp_path / "cost.yaml")
    assert [column.column for column in scope.evaluation.subgroups] == ["gender"]
    assert "r2 of no subgroup below 0.1" in " ".join(scope.sentences())


def test_a_misspelt_key_is_said_once(tmp_path):
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump({("chort" if key == "cohort" else key): SHIPPED[key] for key in SHIPPED}))
    with pytest.raises(ConfigError, match="Did you mean 'cohort'") as refused:
        ScopeSpec.from_yaml(path)
    assert "Field required" not in str(refused.value)


def test_a_bound_is_a_number_or_says_split_and_end_of_the_interval(tmp_path):
    criteria = {"min_auc": 0.8, "max_brier": {"value": 0.2, "split": "validation", "estimate": "upper"}}
    rules = read(tmp_path, success_criteria=criteria).success_criteria.rules
    assert [(r.metric, r.direction, r.split, r.estimate) for r in rules] == [
        ("roc_auc", "at_least", "test", "point"),
        ("brier", "at_most", "validation", "upper"),
    ]


def test_unknown_scopes_cohorts_and_defaults_are_named(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'fabhalta_pnh_initiation'"):
        read_scope("fabhalta_pnh")
    scope = read(tmp_path, cohort="fabhalta_c3g")
    cohorts, _ = read_cohorts()
    with pytest.raises(ConfigError, match="its cohort fabhalta_c3g about fabhalta/c3g"):
        check_against_cohorts(scope, cohorts)
    with pytest.raises(ConfigError, match="no cohort 'fabhalta_c3g'"):
        check_against_cohorts(scope, {})
    scope = read(tmp_path)
    several = cohorts[scope.cohort].model_copy(update={"journeys": "every"})
    check_against_cohorts(scope, {scope.cohort: several})
    in_time = read(tmp_path, split=SHIPPED["split"] | {"mode": "temporal"})
    check_against_cohorts(in_time, cohorts)
    with pytest.raises(ConfigError, match=r"once for every index date.*first_eligible"):
        check_against_cohorts(in_time, {scope.cohort: several})


def test_the_default_is_the_one_that_says_so_or_the_only_one_and_no_other_answers_for_it(tmp_path):
    first = read(tmp_path)
    assert default_scope(tmp_path).key == first.key
    other = tmp_path / "other.yaml"
    (file,) = tmp_path.glob("*.yaml")
    text = file.read_text(encoding="utf-8")
    other.write_text(text.replace(f"key: {first.key}", "key: other"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"must say default: true \(found: none\)"):
        default_scope(tmp_path)
    file.write_text(f"default: true\n{text}", encoding="utf-8")
    assert default_scope(tmp_path).key == first.key
    other.write_text("bogus: 1\n", encoding="utf-8")
    assert default_scope(tmp_path).key == first.key
    file.write_text(f"bogus: 1\ndefault: true\n{text}", encoding="utf-8")
    other.write_text(text.replace(f"key: {first.key}", "key: other"), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{first.key}.yaml:1: bogus"):
        default_scope(tmp_path)
