"""Designs: the shipped one, ratios, fractions, consent, the secret key."""

from __future__ import annotations

import stat

import pytest
import yaml

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.config.policy import load_policy
from e2i_dagster.errors import ConfigError
from e2i_dagster.experiments.designs.randomization_key import key_fingerprint, randomization_key
from e2i_dagster.policy_files.environment import CHECKOUT, config_folder

SHIPPED = CHECKOUT / "config/experiments/remibrutinib_outreach.yaml"


def changed(tmp_path, **values):
    """The shipped design with values replaced; ``a__b`` is key b of block a."""
    document = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for path, value in values.items():
        target = document
        *outer, last = path.split("__")
        for part in outer:
            target = target[part]
        target[last] = value
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_shipped_design_is_read_with_the_rules_of_its_cohort():
    policy = load_policy(config_folder())
    spec = policy.experiments["remibrutinib_outreach"]
    assert (spec.control, spec.treatments, spec.whole_ratios) == ("usual_contact", ("outreach",), (1, 1))
    inclusion, exclusion = spec.criteria(policy.cohorts)
    assert "urticaria_severity_uas7" in {criterion.field for criterion in inclusion}
    assert "pregnancy_status" in {criterion.field for criterion in exclusion}


def test_wording_leaves_the_design_as_it_is_and_a_ratio_does_not(tmp_path):
    shipped = ExperimentSpec.from_yaml(changed(tmp_path))
    assert (
        ExperimentSpec.from_yaml(changed(tmp_path, title="Other words")).design_digest
        == shipped.design_digest
    )
    other = ExperimentSpec.from_yaml(changed(tmp_path, looks__alpha=0.01))
    assert other.design_digest != shipped.design_digest


def arms(*ratios):
    return [
        {"name": f"arm_{number}", "ratio": ratio, "control": number == 0}
        for number, ratio in enumerate(ratios)
    ]


@pytest.mark.parametrize(
    ("ratios", "blocks", "whole"),
    [
        ((0.333, 0.333, 0.334), [6, 9], (1, 1, 1)),
        ((0.667, 0.333), [3, 6], (2, 1)),
        ((0.5, 0.3, 0.2), [10], (5, 3, 2)),
    ],
)
def test_ratios_become_whole_numbers(tmp_path, ratios, blocks, whole):
    path = changed(tmp_path, arms=arms(*ratios), randomization__block_sizes=blocks)
    assert ExperimentSpec.from_yaml(path).whole_ratios == whole


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"arms": arms(0.5, 0.4)}, "sum to 0.9, not to 1"),
        ({"arms": arms(1.0)}, "arms"),
        ({"arms": [one | {"control": True} for one in arms(0.5, 0.5)]}, "exactly one arm"),
        ({"arms": arms(0.667, 0.333)}, "use multiples of 3"),
        ({"looks__information_fractions": [0.5, 0.25, 1]}, "must increase"),
        ({"looks__information_fractions": [0.5, 1.2]}, "at most at 1"),
        ({"looks__information_fractions": [0.5]}, "the final analysis is a look"),
        ({"looks__alpha": 1.0}, "less than 1"),
        ({"looks__alpha": 0}, "greater than 0"),
        ({"looks__rule": "hwang_shih_decani"}, "gamma"),
        ({"eligibility__consent": {"methods": ["implied"]}}, "never implied"),
        ({"dates": {"start": "2025-02-01", "end": "2025-01-01"}}, "end must be after start"),
        ({"randomization__strata": []}, "method stratified needs strata"),
        ({"stopping__harm": [{"metric": "unheard_of", "relative_worsening": 0.1}]}, "unheard_of"),
        ({"unit": "household"}, "unit"),
    ],
)  # fmt: skip
def test_a_wrong_design_is_refused_with_line_and_reason(tmp_path, values, says):
    with pytest.raises(ConfigError, match=says) as error:
        ExperimentSpec.from_yaml(changed(tmp_path, **values))
    assert "changed.yaml:" in str(error.value)


def test_an_unknown_cohort_is_a_problem_of_that_file_alone(tmp_path):
    import shutil

    folder = tmp_path / "config"
    shutil.copytree(config_folder(), folder)
    text = SHIPPED.read_text(encoding="utf-8").replace("cohort: remibrutinib_csu", "cohort: nobody")
    (folder / "experiments/broken.yaml").write_text(text, encoding="utf-8")
    policy = load_policy(folder)
    assert set(policy.experiments) == {"remibrutinib_outreach"}
    assert "there is no cohort 'nobody'" in "".join(map(str, policy.problems.values()))


def test_every_state_of_the_life_cycle_can_be_reached_and_left():
    transitions = LifecyclePolicy.load(config_folder()).transitions
    reached = {"draft"}
    while True:
        more = reached | {after for state in reached for after in transitions[state]}
        if more == reached:
            break
        reached = more
    assert reached == set(transitions)
    assert [state for state, after in transitions.items() if not after] == ["archived"]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("monitor.srm.critical", 0.02, r"monitor\.srm: .*must be below warning"),
        ("monitor.stale_hours.high", 10, "must increase"),
        ("monitor.fidelity.good", 0.5, "must increase"),
        ("monitor.enrolment.critical_after_days", 3, "above warning_after_days"),
        ("monitor.balance.p", 0, r"monitor\.balance\.p: .*greater than 0"),
        ("analysis.minimum_per_arm", 1, r"analysis\.minimum_per_arm: .*greater than or equal to 2"),
        ("scorecard.weights.roi", 0.5, "weights sum to 1.3, not to 1"),
        ("scorecard.grades.go", 0.95, "must fall"),
        ("analysis.minimum_per_arms", 20, "Did you mean 'minimum_per_arm'"),
        ("transitions.paused", None, "transitions"),
    ],
)
def test_a_wrong_threshold_is_named_with_file_line_and_key(tmp_path, path, value, says):
    document = yaml.safe_load((config_folder() / "experiment_lifecycle.yaml").read_text(encoding="utf-8"))
    target = document
    *outer, last = path.split(".")
    for part in outer:
        target = target[part]
    if value is None:
        del target[last]
    else:
        target[last] = value
    (tmp_path / "experiment_lifecycle.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as error:
        LifecyclePolicy.load(tmp_path)
    assert "experiment_lifecycle.yaml:" in str(error.value)


def test_the_key_is_made_once_for_its_owner_alone(state, new_state, monkeypatch):
    monkeypatch.delenv("E2I_RANDOMIZATION_KEY", raising=False)
    folder = new_state()
    monkeypatch.setenv("E2I_HOME", str(folder))
    key = randomization_key()
    path = folder / "secrets/randomization.key"
    assert len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert randomization_key() == key
    assert key.decode() not in key_fingerprint(key)
    monkeypatch.setenv("E2I_DATABASE_URL", "postgresql://somewhere/else")
    with pytest.raises(ConfigError, match="comes from the environment"):
        randomization_key()
    monkeypatch.setenv("E2I_RANDOMIZATION_KEY", "too short")
    with pytest.raises(ConfigError, match="at least 32"):
        randomization_key()
    monkeypatch.setenv("E2I_RANDOMIZATION_KEY", "k" * 32)
    assert randomization_key() == b"k" * 32


def test_a_cohort_with_groups_of_rules_is_refused_as_eligibility():
    policy = load_policy(config_folder())
    spec = policy.experiments["remibrutinib_outreach"]
    cohort = policy.cohorts["remibrutinib_csu"]
    document = cohort.model_dump(mode="json", exclude={"examples"}, exclude_none=True)
    plain = document["inclusion_criteria"]
    document["inclusion_criteria"] = [{"any_of": plain[:2], "name": "one_of_two"}, *plain[2:]]
    grouped = type(cohort).model_validate(document)
    with pytest.raises(ConfigError, match=r"1 rule.s. of remibrutinib_csu are groups"):
        spec.criteria({"remibrutinib_csu": grouped})
