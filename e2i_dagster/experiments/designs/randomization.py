"""Randomization: simple, permuted blocks within strata, minimization, clusters; concealed and auditable.

Every list of assignments is a function of a secret key, the experiment, its seed, the plan and the stratum:
SHAKE-256 as an extendable stream, so that position 1,000 can be drawn without those before it being stored,
and so that no table of past assignments tells the next one. Block sizes are drawn at random and are stored
nowhere. Assigning goes on where the last call ended: a stratum's next position is the number of its units.

Methods: permuted blocks of random size (ICH E9; Matts and Lachin, Control. Clin. Trials 1988), minimization
with a biased coin (Pocock and Simon, Biometrics 1975), both generalised to any whole ratios.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from e2i_dagster.config.allocation import RATIO_TOLERANCE, allocation_shares
from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError, VerdictError

Method = Literal["simple", "block", "stratified", "minimization", "cluster"]
#: Columns of a frame of assignments.
ASSIGNMENT_COLUMNS = ("unit_id", "variant", "stratum", "cluster", "sequence")


class RandomizationPlan(BaseModel):
    """What the lists depend on besides the key.

    ``weights`` are the whole ratios of the arms; ``ratios`` their shares.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    method: Method
    arms: tuple[str, ...]
    ratios: tuple[float, ...]
    weights: tuple[int, ...]
    strata: tuple[str, ...] = ()
    block_sizes: tuple[int, ...] = ()
    factors: tuple[str, ...] = ()
    probability: float = 0.8
    cluster: str | None = None
    seed: int = 0

    @field_validator("ratios", mode="before")
    @classmethod
    def _shares(cls, ratios: Any, info: ValidationInfo) -> Any:
        """Parts as people write them become shares; shares, by which lists were drawn, stay as they are."""
        plain = isinstance(ratios, (list, tuple)) and all(isinstance(part, float) for part in ratios)
        if plain and abs(sum(ratios) - 1.0) <= RATIO_TOLERANCE:
            return ratios
        return tuple(allocation_shares(ratios, info.data.get("arms"), field="ratios").values())

    @classmethod
    def of(cls, spec: ExperimentSpec) -> RandomizationPlan:
        """The plan of a design."""
        rule = spec.randomization
        blocks = rule.method in ("block", "stratified", "cluster")
        return cls(
            experiment=spec.name,
            method=rule.method,
            arms=tuple(spec.ratios),
            ratios=tuple(spec.ratios.values()),
            weights=spec.whole_ratios if blocks or rule.method == "minimization" else (),
            strata=rule.strata,
            block_sizes=rule.block_sizes if blocks else (),
            factors=rule.factors,
            probability=rule.probability,
            cluster=rule.cluster,
            seed=rule.seed,
        )

    @property
    def attributes(self) -> tuple[str, ...]:
        """Columns of the units that the plan reads."""
        return (*self.strata, *self.factors, *((self.cluster,) if self.cluster else ()))


def assign(
    units: pd.DataFrame, plan: RandomizationPlan, *, key: bytes, before: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Draw an arm for each unit that has none yet, in the order of ``units``.

    Args:
        units: ``unit_id`` and the attributes that the plan reads; one row per unit.
        key: the secret (:func:`e2i_dagster.experiments.designs.randomization_key.randomization_key`).
        before: all earlier assignments of the experiment (``ASSIGNMENT_COLUMNS``; for minimization with the
            factors beside them), in order of ``sequence``.

    Returns:
        One row for each new unit, with ``ASSIGNMENT_COLUMNS``. Units that are in ``before`` are left out:
        they keep their arm.

    Raises:
        InputError: a column or a value is missing, or a unit is given twice.
    """
    if before is None:
        before = _nobody(plan)
    _check(units, plan)
    new = units[~units["unit_id"].isin(before["unit_id"]).to_numpy()].reset_index(drop=True)
    first = int(before["sequence"].max()) + 1 if len(before) else 1
    cluster = new[plan.cluster].astype(str) if plan.cluster else pd.Series([None] * len(new), dtype=object)
    if plan.method == "cluster":
        stratum, variant = _by_cluster(new, cluster, plan, key, before)
    else:
        stratum = stratum_labels(new, plan.strata)
        if plan.method == "minimization":
            variant = _minimized(new, plan, key, before)
        else:
            variant = _listed(stratum, plan, key, before["stratum"])
    return pd.DataFrame(
        {
            "unit_id": new["unit_id"].astype("string[pyarrow]"),
            "variant": pd.array(variant, dtype="string[pyarrow]"),
            "stratum": pd.array(stratum, dtype="string[pyarrow]"),
            "cluster": cluster.astype("string[pyarrow]"),
            "sequence": np.arange(first, first + len(new), dtype=np.int64),
        }
    )


def merged(before: pd.DataFrame, given: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Those of ``given`` (unit_id, variant) that are new, after a check against what is assigned.

    For assignments that were drawn elsewhere.

    Raises:
        InputError: an arm is unknown, or a unit is given twice with different arms.
        VerdictError: a unit is assigned already, with another arm. Nobody is moved.
    """
    unknown = sorted(set(given["variant"].dropna().astype(str)) - set(arms))
    if unknown or given[["unit_id", "variant"]].isna().to_numpy().any():
        raise InputError(
            f"assignments: unknown or missing arm ({', '.join(unknown) or 'null'}). Arms: {', '.join(arms)}.",
            field="assignments",
        )
    single = given[["unit_id", "variant"]].drop_duplicates()
    torn = int(single["unit_id"].duplicated().sum())
    if torn:
        raise InputError(
            f"assignments: {torn:,} unit(s) are given with two different arms.", field="assignments"
        )
    both = single.merge(before[["unit_id", "variant"]], on="unit_id", how="left", suffixes=("", "_before"))
    moved = int((both["variant_before"].notna() & (both["variant_before"] != both["variant"])).sum())
    if moved:
        raise VerdictError(
            f"assignments: {moved:,} unit(s) are already assigned to another arm. An assignment is never "
            "changed: correct the delivery, or record a deviation for what the unit really received.",
            field="assignments",
        )
    return both.loc[both["variant_before"].isna(), ["unit_id", "variant"]].reset_index(drop=True)


def verify(
    assignments: pd.DataFrame,
    units: pd.DataFrame,
    plan: RandomizationPlan,
    *,
    key: bytes,
    before: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Draw everything again, with the key, and return the assignments that differ (none, if all is right).

    Args:
        assignments: assignments of the experiment drawn under ``plan``, one after the other.
        units: ``unit_id`` and attributes of at least the assigned units.
        before: the assignments before these, as for :func:`assign`.
    """
    ordered = assignments.sort_values("sequence")
    again = units.set_index("unit_id").loc[ordered["unit_id"].tolist()].reset_index()
    drawn = assign(again, plan, key=key, before=before)
    wrong = (
        (drawn["variant"].to_numpy() != ordered["variant"].to_numpy())
        | (drawn["stratum"].to_numpy() != ordered["stratum"].to_numpy())
        | (drawn["sequence"].to_numpy() != ordered["sequence"].to_numpy())
    )
    return ordered[wrong]


def batch_seal(assignments: pd.DataFrame, *, key: bytes, previous: str) -> str:
    """Keyed digest of a batch and of the seal before it: a changed, missing or added row breaks the chain."""
    seal = hmac.new(key, previous.encode(), hashlib.sha256)
    for name in ("unit_id", "variant", "stratum", "cluster"):
        seal.update("\x1f".join(assignments[name].astype(object).fillna("\x00").astype(str)).encode())
        seal.update(b"\x1e")
    seal.update(np.ascontiguousarray(assignments["sequence"].to_numpy(dtype="<i8")).tobytes())
    return seal.hexdigest()


def stratum_labels(units: pd.DataFrame, strata: Sequence[str]) -> np.ndarray:
    """Canonical text of each unit's stratum: JSON of its values, empty without strata. Shape (units,)."""
    if not strata or units.empty:
        return np.full(len(units), "", dtype=object)
    names = list(strata)
    codes = units.groupby(names, sort=False, observed=True).ngroup().to_numpy()
    first = units[names].iloc[np.unique(codes, return_index=True)[1]].astype(object)
    rows = first.itertuples(index=False, name=None)
    texts = np.array([json.dumps([_plain(value) for value in row]) for row in rows], dtype=object)
    return texts[codes]


class BalanceReport(BaseModel):
    """How the arms turned out: units per arm, worst difference inside a stratum, balance of attributes.

    ``standardized_difference`` is, per attribute, the largest difference between two arms' shares of a level
    (or means) in standard deviations; it is descriptive, never a test of the randomization. ``waiting`` counts
    units that could not be assigned yet, by reason.
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    expected: dict[str, float]
    strata: int
    worst_stratum_imbalance: float
    standardized_difference: dict[str, float]
    waiting: dict[str, int] = {}

    def to_metadata(self) -> dict[str, Any]:
        """Counts and balance for the UI."""
        return {
            "units": sum(self.counts.values()),
            "strata": self.strata,
            "waiting_for": self.waiting or None,
            "worst_stratum_imbalance": self.worst_stratum_imbalance,
            "arms": Table(
                ("arm", "units", "expected"), [(arm, n, self.expected[arm]) for arm, n in self.counts.items()]
            ),
            "balance": Table(
                ("attribute", "largest standardized difference"), self.standardized_difference.items()
            )
            if self.standardized_difference
            else None,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values."""
        return self.model_dump(mode="json")


def balance(
    assignments: pd.DataFrame,
    ratios: Mapping[str, float],
    attributes: pd.DataFrame | None = None,
) -> BalanceReport:
    """Balance of ``assignments`` over the arms of ``ratios``.

    Args:
        attributes: one row per assignment, in the same order: categories or numbers known before assignment.

    The imbalance of a stratum is the largest difference, over pairs of arms, of units divided by the arm's
    whole ratio (for 1:1 plainly the difference of the two counts).
    """
    arms = list(ratios)
    counts = assignments["variant"].value_counts()
    total = len(assignments)
    smallest = min(ratios.values())
    worst, strata = 0.0, 0
    if total:
        table = pd.crosstab(assignments["stratum"], assignments["variant"]).reindex(
            columns=arms, fill_value=0
        )
        scaled = table.to_numpy() / (np.array([ratios[arm] for arm in arms]) / smallest)
        worst, strata = float((scaled.max(axis=1) - scaled.min(axis=1)).max()), len(table)
    different: dict[str, float] = {}
    if attributes is not None and total:
        variant = assignments["variant"].to_numpy()
        for name in attributes.columns:
            different[str(name)] = _standardized(attributes[name], variant, arms)
    return BalanceReport(
        counts={arm: int(counts.get(arm, 0)) for arm in arms},
        expected={arm: total * share for arm, share in ratios.items()},
        strata=strata,
        worst_stratum_imbalance=worst,
        standardized_difference=different,
    )


def _standardized(values: pd.Series, variant: np.ndarray, arms: Sequence[str]) -> float:
    numbers = values.dtype.kind in "iuf" and values.nunique() > 2
    levels = (
        values.astype("float64").to_frame()
        if numbers
        else pd.get_dummies(values.astype(str)).astype("float64")
    )
    means, variances = levels.groupby(variant).mean(), levels.groupby(variant).var(ddof=0)
    present = [arm for arm in arms if arm in means.index]
    spread = np.sqrt(variances.loc[present].mean(axis=0))
    gap = means.loc[present].max(axis=0) - means.loc[present].min(axis=0)
    known = spread > 0
    return float((gap[known] / spread[known]).max()) if known.any() else 0.0


def _nobody(plan: RandomizationPlan) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=object) for name in (*ASSIGNMENT_COLUMNS, *plan.attributes)})


def _check(units: pd.DataFrame, plan: RandomizationPlan) -> None:
    needed = ("unit_id", *plan.attributes)
    absent = [name for name in needed if name not in units.columns]
    if absent:
        raise InputError(
            f"units of experiment {plan.experiment}: column(s) {', '.join(absent)} are missing; "
            f"{plan.method} randomization reads {', '.join(needed)}.",
            field=absent[0],
            remedy="Add the columns.",
        )
    empty = {name: int(units[name].isna().sum()) for name in needed if units[name].isna().any()}
    if empty:
        said = ", ".join(f"{name} ({count:,})" for name, count in empty.items())
        raise InputError(
            f"units of experiment {plan.experiment}: values are missing in {said}. Every unit needs all of them "
            "before it is assigned.",
            field=plan.attributes[0] if plan.attributes else "unit_id",
            remedy="Give unknown values a level of their own.",
        )
    twice = int(units["unit_id"].duplicated().sum())
    if twice:
        raise InputError(
            f"units of experiment {plan.experiment}: {twice:,} unit(s) are given more than once.",
            field="unit_id",
            remedy="Give each once.",
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _stream(key: bytes, plan: RandomizationPlan, *what: str) -> bytes:
    """Seed of one of the plan's streams."""
    named = json.dumps(
        [
            plan.experiment,
            plan.seed,
            plan.method,
            plan.arms,
            plan.weights or plan.ratios,
            plan.block_sizes,
            *what,
        ]
    )
    return hmac.new(key, named.encode(), hashlib.sha256).digest()


def _draws(seed: bytes, count: int) -> np.ndarray:
    """The first ``count`` numbers of a stream, uint64. A longer call begins with the same numbers."""
    return np.frombuffer(hashlib.shake_256(seed).digest(8 * count), dtype="<u8")


def _uniform(seed: bytes, count: int) -> np.ndarray:
    """The first ``count`` numbers of a stream in [0, 1)."""
    return (_draws(seed, count) >> np.uint64(11)) * 2.0**-53


def _listed(
    stratum: np.ndarray, plan: RandomizationPlan, key: bytes, stratum_before: pd.Series
) -> np.ndarray:
    """The next arms of each stratum's list, in the order of the units."""
    used = stratum_before.value_counts()
    codes, labels = pd.factorize(stratum)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(labels)))
    variant = np.empty(len(stratum), dtype=object)
    arms = np.array(plan.arms, dtype=object)
    for number, label in enumerate(labels):
        rows = order[ends[number - 1] if number else 0 : ends[number]]
        begin = int(used.get(label, 0))
        variant[rows] = arms[_allocation(plan, key, str(label), begin + len(rows))[begin:]]
    return variant


def _allocation(plan: RandomizationPlan, key: bytes, stratum: str, count: int) -> np.ndarray:
    """The first ``count`` entries of a stratum's list, as positions in ``plan.arms``."""
    if plan.method == "simple":
        chosen = np.searchsorted(
            np.cumsum(plan.ratios), _uniform(_stream(key, plan, "coin"), count), side="right"
        )
        return np.minimum(chosen, len(plan.arms) - 1)
    sizes = np.array(sorted(plan.block_sizes))
    blocks = -(-count // int(sizes.min()))
    drawn = sizes[_draws(_stream(key, plan, "sizes", stratum), blocks) % np.uint64(len(sizes))]
    ends = np.cumsum(drawn)
    blocks = int(np.searchsorted(ends, count)) + 1
    drawn, ends = drawn[:blocks], ends[:blocks]
    length = int(ends[-1])
    block = np.repeat(np.arange(blocks), drawn)
    order = np.lexsort((_draws(_stream(key, plan, "order", stratum), length), block))
    # Within its block, a position's rank among the drawn numbers says which arm of the block it gets.
    rank = np.empty(length, dtype=np.int64)
    rank[order] = np.arange(length)
    rank -= (ends - drawn)[block]
    edges = np.cumsum(plan.weights)
    repeats = (drawn // int(edges[-1]))[block]
    return np.searchsorted(edges, rank // repeats, side="right")[:count]


def _by_cluster(
    new: pd.DataFrame, cluster: pd.Series, plan: RandomizationPlan, key: bytes, before: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Stratum and arm of each unit: those of its cluster, which is assigned as a whole."""
    stratum = stratum_labels(new, plan.strata)
    per_cluster = pd.DataFrame({"cluster": cluster.to_numpy(), "stratum": stratum}).drop_duplicates()
    torn = int(per_cluster["cluster"].duplicated().sum())
    if torn:
        raise InputError(
            f"units of experiment {plan.experiment}: {torn:,} cluster(s) lie in more than one stratum. Strata of "
            "cluster randomization are attributes of the cluster: the same for all of its units.",
            field=plan.strata[0],
            remedy="Give all units of a cluster the same.",
        )
    known = before.drop_duplicates("cluster").set_index("cluster")
    fresh = per_cluster[~per_cluster["cluster"].isin(known.index).to_numpy()]
    drawn = _listed(fresh["stratum"].to_numpy(dtype=object), plan, key, known["stratum"])
    arm_of = dict(zip(known.index, known["variant"], strict=True)) | dict(
        zip(fresh["cluster"], drawn, strict=True)
    )
    stratum_of = dict(zip(known.index, known["stratum"], strict=True)) | dict(
        zip(fresh["cluster"], fresh["stratum"], strict=True)
    )
    names = cluster.astype(object)
    return names.map(stratum_of).to_numpy(dtype=object), names.map(arm_of).to_numpy(dtype=object)


def _minimized(new: pd.DataFrame, plan: RandomizationPlan, key: bytes, before: pd.DataFrame) -> np.ndarray:
    """Pocock and Simon's minimization: with ``probability`` the arm that leaves the factors best balanced.

    The imbalance of an arm is the sum over factors of the range, over arms, of the units at the new unit's
    level divided by the arm's weight. Ties and the coin are drawn from the keyed stream. Sequential by nature.
    """
    absent = [name for name in plan.factors if name not in before.columns]
    if absent:
        raise InputError(
            f"experiment {plan.experiment}: earlier assignments came without factor(s) {', '.join(absent)}; "
            "minimization needs them.",
            field=absent[0],
            remedy="Give earlier assignments with their factors.",
        )
    arms, weights = len(plan.arms), np.array(plan.weights, dtype=float)
    position = {arm: number for number, arm in enumerate(plan.arms)}
    codes, counts = [], []
    for name in plan.factors:
        joined = pd.concat([before[name].astype(str), new[name].astype(str)], ignore_index=True)
        code, levels = pd.factorize(joined)
        codes.append(code[len(before) :])
        tally = np.zeros((len(levels), arms))
        np.add.at(tally, (code[: len(before)], before["variant"].map(position).to_numpy(dtype=int)), 1)
        counts.append(tally)
    begin = len(before)
    coins = _uniform(_stream(key, plan, "coin"), 2 * (begin + len(new))).reshape(-1, 2)[begin:]
    shares = np.array(plan.ratios)
    chosen = np.empty(len(new), dtype=int)
    trial = np.eye(arms)
    for unit in range(len(new)):
        imbalance = np.zeros(arms)
        for code, tally in zip(codes, counts, strict=True):
            after = (tally[code[unit]] + trial) / weights
            imbalance += after.max(axis=1) - after.min(axis=1)
        best = np.isclose(imbalance, imbalance.min())
        chances = shares * best / (shares * best).sum()
        if not best.all():
            others = shares * ~best
            chances = plan.probability * chances + (1 - plan.probability) * others / others.sum()
        arm = min(int(np.searchsorted(np.cumsum(chances), coins[unit, 0], side="right")), arms - 1)
        chosen[unit] = arm
        for code, tally in zip(codes, counts, strict=True):
            tally[code[unit], arm] += 1
    return np.array(plan.arms, dtype=object)[chosen]
