"""Allocation ratios as people write them, wherever a ratio is read."""

import pytest
from hypothesis import given as any_of
from hypothesis import strategies as st

from e2i_dagster.config.allocation import allocation_shares
from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.errors import InputError
from e2i_dagster.experiments import power, sample_size, sequential_srm_test, srm_test
from e2i_dagster.experiments.designs.randomization import RandomizationPlan
from tests.experiments.conftest import DESIGN

TWO_TO_ONE = ["2:1", " 2 : 1 ", [2, 1], (4, 2), ["2", 1], {"a": 2, "b": 1}, [0.6667, 0.3333], "0.6667:0.3333"]


@pytest.mark.parametrize("ratio", TWO_TO_ONE)
def test_two_to_one_is_the_same_however_it_is_written(ratio):
    assert srm_test({"a": 200, "b": 100}, ratio).expected["a"] == pytest.approx(200, abs=0.1)
    assert sequential_srm_test({"a": 200, "b": 100}, ratio).expected_ratio["a"] == pytest.approx(
        2 / 3, abs=1e-4
    )
    control = "b" if isinstance(ratio, dict) else "control"
    planned = sample_size(effect=0.3, ratio=ratio, control=control)
    number = sample_size(effect=0.3, ratio=2.0)
    assert sorted(planned.per_arm.values()) == pytest.approx(sorted(number.per_arm.values()), abs=1)
    assert planned.per_arm[control] == min(planned.per_arm.values())
    assert power(n=300, effect=0.3, ratio=ratio, control=control) == pytest.approx(
        power(n=300, effect=0.3, ratio=2.0), abs=1e-4
    )
    given = {"experiment": "x", "method": "simple", "arms": ("a", "b"), "ratios": ratio, "weights": ()}
    plan = RandomizationPlan.model_validate(given)
    assert plan.ratios == pytest.approx((2 / 3, 1 / 3), abs=1e-3)


def arms(*ratios):
    named = [{"name": "usual", "control": True}, {"name": "treated"}]
    return [arm | ({} if not ratios else {"ratio": ratios[k]}) for k, arm in enumerate(named)]


@pytest.mark.parametrize("ratio", ["1:2", [1, 2], {"treated": 2, "usual": 1}])
def test_a_design_takes_the_ratio_of_all_arms_or_whole_parts_at_each(ratio):
    blocks = {"method": "block", "block_sizes": [3, 6]}
    base = {**DESIGN, "randomization": blocks}
    whole = ExperimentSpec.model_validate({**base, "arms": arms(1, 2)})
    assert ExperimentSpec.model_validate({**base, "arms": arms(), "ratio": ratio}) == whole
    assert whole.ratios == pytest.approx({"usual": 1 / 3, "treated": 2 / 3})
    assert whole.whole_ratios == (1, 2)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ("2:0", "ratio: arm arm_2 has 0; every arm's part is above 0"),
        ([1, -1], "ratio: arm arm_2 has -1"),
        ("2:x", "ratio: arm arm_2 has 'x', which is not a number"),
        ([1, True], "ratio: arm arm_2 has True"),
        ([1, float("nan")], "not a number"),
        ("2", "ratio: 1 arm"),
        ([0.5, 0.6], "sums to 1.1, not to 1, and the values are not whole numbers"),
        ([1.5, 1], "sums to 2.5"),
        (121, "YAML reads 2:1 without them as 121"),
    ],
)
def test_what_is_no_ratio_is_named(ratio, message):
    with pytest.raises(ValueError, match=message):
        allocation_shares(ratio)
    if ratio != 121:
        with pytest.raises(InputError, match="ratio"):
            sample_size(effect=0.3, ratio=ratio)


def test_the_number_of_arms_and_their_names_must_fit():
    with pytest.raises(InputError, match=r"ratio: 3 values for 2 arms \(a, b\)"):
        srm_test({"a": 1, "b": 1}, "1:1:1")
    with pytest.raises(ValueError, match="names the arms a, c, the arms are a, b"):
        allocation_shares({"a": 1, "c": 1}, ["a", "b"])
    with pytest.raises(ValueError, match="not both"):
        ExperimentSpec.model_validate({**DESIGN, "arms": arms(1, 1), "ratio": "1:1"})


@any_of(st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_parts_text_and_shares_say_the_same(parts):
    expected = [part / sum(parts) for part in parts]
    for written in (parts, ":".join(map(str, parts)), expected):
        assert list(allocation_shares(written).values()) == pytest.approx(expected)
