"""Assignments: balance, continuation, reproducibility, concealment, audit, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments.designs.randomization import (
    RandomizationPlan,
    assign,
    balance,
    batch_seal,
    merged,
    verify,
)

KEY = b"a key of the tests, thirty-two chars."


def plan(method="stratified", **changed) -> RandomizationPlan:
    given = {
        "experiment": "example", "method": method, "arms": ("control", "treatment"), "ratios": (0.5, 0.5),
        "weights": (1, 1), "strata": ("severity", "site") if method == "stratified" else (),
        "block_sizes": (4, 6, 8), "factors": ("severity", "site") if method == "minimization" else (),
        "cluster": "hcp" if method == "cluster" else None, "seed": 3,
    }  # fmt: skip
    return RandomizationPlan.model_validate(given | changed)


def units(count: int, seed: int = 0, first: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "unit_id": [f"U{number:06d}" for number in range(first, first + count)],
            "severity": rng.choice(["low", "medium", "high"], count, p=[0.2, 0.5, 0.3]),
            "site": rng.integers(1, 6, count),
            "hcp": [f"H{number}" for number in rng.integers(0, max(count // 8, 2), count)],
        }
    )


def running_difference(assigned: pd.DataFrame) -> int:
    step = pd.Series(np.where(assigned["variant"] == "treatment", 1, -1))
    return int(step.groupby(assigned["stratum"].to_numpy()).cumsum().abs().max())


def test_blocks_never_differ_by_more_than_half_the_largest_block():
    assigned = assign(units(5_000), plan(), key=KEY)
    assert assigned["stratum"].nunique() == 15
    assert running_difference(assigned) <= 4
    assert balance(assigned, {"control": 0.5, "treatment": 0.5}).worst_stratum_imbalance <= 4


@settings(max_examples=25, deadline=None)
@given(
    weights=st.sampled_from([(1, 1), (2, 1), (1, 1, 1), (3, 2, 1)]),
    multiples=st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True),
    count=st.integers(1, 200),
    cut=st.integers(0, 200),
    seed=st.integers(0, 5),
)
def test_any_ratio_is_kept_by_blocks_and_a_stop_changes_nothing(weights, multiples, count, cut, seed):
    total = sum(weights)
    arms = tuple(f"arm_{number}" for number in range(len(weights)))
    given = plan(
        "block", arms=arms, ratios=tuple(weight / total for weight in weights), weights=weights,
        block_sizes=tuple(total * multiple for multiple in multiples), seed=seed,
    )  # fmt: skip
    everybody = units(count)
    once = assign(everybody, given, key=KEY)
    first = assign(everybody[:cut], given, key=KEY)
    second = assign(everybody, given, key=KEY, before=first)
    again = pd.concat([first, second], ignore_index=True)
    pd.testing.assert_frame_equal(again.astype(str), once.astype(str))
    largest = max(given.block_sizes)
    for number, arm in enumerate(arms):
        share = weights[number] / total
        gap = np.cumsum(once["variant"].to_numpy() == arm) - share * np.arange(1, count + 1)
        assert np.abs(gap).max() <= share * largest + 1e-9


def test_simple_and_multi_arm_come_close_to_their_ratios():
    given = plan("simple", arms=("a", "b", "c"), ratios=(0.5, 0.3, 0.2), weights=())
    shares = assign(units(20_000), given, key=KEY)["variant"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.011)


def test_the_same_key_and_seed_give_the_same_list_and_others_do_not():
    everybody = units(400)
    first = assign(everybody, plan(), key=KEY)["variant"]
    assert first.equals(assign(everybody, plan(), key=KEY)["variant"])
    for key, seed, name in ((KEY + b"x", 3, "example"), (KEY, 4, "example"), (KEY, 3, "other")):
        other = assign(everybody, plan(seed=seed, experiment=name), key=key)["variant"]
        assert 0.35 < (first.to_numpy() == other.to_numpy()).mean() < 0.65


def test_the_next_assignment_cannot_be_told_from_the_table():
    """Guessing the arm that is behind in the stratum gains little over a coin, because blocks end at random."""
    assigned = assign(units(20_000), plan("block", block_sizes=(4, 6, 8, 10, 12)), key=KEY)
    step = np.where(assigned["variant"] == "treatment", 1, -1)
    before = np.concatenate([[0], np.cumsum(step)[:-1]])
    right = np.where(before == 0, 0.5, np.sign(-before) == step).mean()
    assert right < 0.72
    # Units of one stratum that meet the same table elsewhere get another list: it depends on the key alone.
    assert "block" not in "".join(assigned.columns)


def test_units_keep_their_arm_and_are_not_assigned_twice():
    everybody = units(120)
    first = assign(everybody, plan(), key=KEY)
    changed = everybody.assign(severity="low")
    assert assign(changed, plan(), key=KEY, before=first).empty


def test_minimization_balances_factors_better_than_a_coin_and_goes_on():
    everybody = units(300)
    given = plan("minimization")
    ratios = {"control": 0.5, "treatment": 0.5}
    factors = everybody[["severity", "site"]].astype(str)
    minimized = assign(everybody, given, key=KEY)
    tossed = assign(everybody, plan("simple", weights=()), key=KEY)
    of_minimized = balance(minimized, ratios, factors).standardized_difference
    of_tossed = balance(tossed, ratios, factors).standardized_difference
    assert max(of_minimized.values()) < 0.05 < max(of_tossed.values())
    first = assign(everybody[:150], given, key=KEY)
    with_factors = first.merge(everybody[["unit_id", "severity", "site"]], on="unit_id")
    second = assign(everybody, given, key=KEY, before=with_factors)
    assert [*first["variant"], *second["variant"]] == minimized["variant"].tolist()


def test_minimization_follows_unequal_ratios():
    given = plan("minimization", ratios=(1 / 3, 2 / 3), weights=(1, 2))
    counts = assign(units(600), given, key=KEY)["variant"].value_counts()
    assert counts["treatment"] / 600 == pytest.approx(2 / 3, abs=0.03)


def test_a_cluster_is_assigned_as_a_whole_now_and_later():
    everybody = units(400)
    given = plan("cluster", block_sizes=(4,))
    first = assign(everybody[:200], given, key=KEY)
    second = assign(everybody, given, key=KEY, before=first)
    both = pd.concat([first, second])
    assert (both.groupby("cluster")["variant"].nunique() == 1).all()
    arms = both.drop_duplicates("cluster")["variant"].value_counts()
    assert abs(arms["control"] - arms["treatment"]) <= 2


def test_an_audit_with_the_key_finds_what_was_changed():
    everybody = units(200)
    assigned = assign(everybody, plan(), key=KEY)
    assert verify(assigned, everybody, plan(), key=KEY).empty
    moved = assigned.copy()
    moved.loc[17, "variant"] = "control" if moved.loc[17, "variant"] == "treatment" else "treatment"
    assert verify(moved, everybody, plan(), key=KEY)["sequence"].tolist() == [18]
    seal = batch_seal(assigned, key=KEY, previous="")
    assert seal != batch_seal(moved, key=KEY, previous="")
    assert seal != batch_seal(assigned, key=KEY, previous="another")
    assert seal != batch_seal(assigned[:-1], key=KEY, previous="")


def test_a_unit_given_with_another_arm_is_refused_and_the_same_arm_is_not():
    before = assign(units(50), plan(), key=KEY)
    same = before[["unit_id", "variant"]]
    assert merged(before, same, ["control", "treatment"]).empty
    other = same.assign(variant=same["variant"].map({"control": "treatment", "treatment": "control"}))
    with pytest.raises(VerdictError, match=r"50 unit.s. are already assigned to another arm"):
        merged(before, other, ["control", "treatment"])
    with pytest.raises(InputError, match="two different arms"):
        merged(before, pd.concat([same, other]), ["control", "treatment"])
    with pytest.raises(InputError, match="placebo"):
        merged(before, same.assign(variant="placebo"), ["control", "treatment"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.drop(columns="severity"), "column.s. severity are missing"),
        (lambda frame: frame.assign(site=[None, *frame["site"][1:]]), r"site \(1\)"),
        (lambda frame: pd.concat([frame, frame[:2]]), "2 unit.s. are given more than once"),
    ],
)
def test_units_that_cannot_be_assigned_are_refused_before_any_is(change, says):
    with pytest.raises(InputError, match=says):
        assign(change(units(20)), plan(), key=KEY)


def test_a_cluster_in_two_strata_is_refused():
    with pytest.raises(InputError, match="more than one stratum"):
        assign(units(100), plan("cluster", strata=("severity",)), key=KEY)


def test_nobody_is_a_valid_call_and_inputs_stay_as_they_were():
    everybody = units(30)
    kept = everybody.copy()
    assert assign(everybody[:0], plan(), key=KEY).empty
    assign(everybody, plan(), key=KEY)
    pd.testing.assert_frame_equal(everybody, kept)
