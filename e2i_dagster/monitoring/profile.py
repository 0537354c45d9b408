"""The reference of drift, read once and stored: what later days are compared with, without the training rows.

A number is stored as counted support points, a text as counts by value. Values of a later day are counted against
the same points in one pass, and every statistic (stability index, Kolmogorov-Smirnov, Jensen-Shannon, Wasserstein)
is computed from those counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.binning import Bins, quantile_bins
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.training.evaluate import Estimate

#: Distinct numbers up to which a profile keeps all of them; of more it keeps quantiles.
_EXACT = 4_096
_SUPPORT = 1_024
#: Quantiles that the Wasserstein distance is integrated over.
_QUANTILES = 512
#: Values of a text that a profile counts apart.
MAX_CATEGORIES = 1_000
#: Rows from which on counting by cells is faster than sorting.
_CELLS_FROM = 20_000
_CELLS = 1 << 15


class NumberProfile(BaseModel):
    """Distribution of a number in the reference.

    Attributes:
        rows, missing: of the reference.
        points: ascending numbers: all distinct ones when ``exact``, otherwise quantiles, and the bounds of the bins.
        at_most: reference values that are at most each point.
        edges, single, counts: bins of the stability index (:class:`~e2i_dagster.binning.Bins`) and rows in each.
        mean, deviation: of the finite values.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["number"] = "number"
    rows: int
    missing: int
    points: tuple[float, ...]
    at_most: tuple[int, ...]
    exact: bool
    edges: tuple[float, ...]
    single: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    deviation: float

    @property
    def bins(self) -> Bins:
        return Bins(self.edges, self.single)


class TextProfile(BaseModel):
    """Counts of the values of a text or boolean in the reference, the most frequent first; ``other``: the rest."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["text"] = "text"
    rows: int
    missing: int
    counts: dict[str, int]
    other: int


FeatureProfile = NumberProfile | TextProfile


@dataclass(frozen=True)
class NumberCounts:
    """Values of a day counted against the points of a profile.

    Attributes:
        below, at_most: values below each point, and at most it.
        missing, rows: of the day.
        distance: :func:`wasserstein`.
    """

    below: np.ndarray
    at_most: np.ndarray
    missing: int
    rows: int
    distance: float | None = None

    @property
    def values(self) -> int:
        """Values that are there."""
        return self.rows - self.missing


class Recalibration(BaseModel):
    """Logistic regression of the outcome on logit(score): intercept, slope and their covariance (2, 2).

    It says how far a score is a probability, and how sure that is. Cox, Biometrika 45:562 (1958).
    """

    model_config = ConfigDict(frozen=True)

    intercept: float
    slope: float
    covariance: tuple[tuple[float, float], tuple[float, float]]


class ErrorSize(BaseModel):
    """The squared error of a model of a number as a function of its prediction, and how sure that is.

    ``mean_square * exp(b0 + b1 z + b2 z^2)`` with ``z = (prediction - center) / spread``.

    Attributes:
        range: lowest and highest prediction for the validation rows; nothing is known beyond.
        mean_square: mean squared error of the validation rows.
        coefficients, covariance: b0, b1, b2, and their covariance.
    """

    model_config = ConfigDict(frozen=True)

    center: float
    spread: float
    range: tuple[float, float]
    mean_square: float
    coefficients: tuple[float, float, float]
    covariance: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


class ModelReference(BaseModel):
    """What a deployed model did on its validation rows, for estimates of performance.

    Attributes:
        metric: what performance is measured by.
        performance: its value before deployment, with its interval, and the split it comes from.
        scores, target: of the validation rows, in one order; no key of a patient is kept.
        places: feature -> bin of each validation row (bins of the reference, then missing).
        importance: feature -> share of the model's importance; None: not known.
        label: distribution of the outcome in the training rows; that of an event as a truth value.
        recalibration: of a model of an outcome. error_size: of a model of a number. None: not estimable.
    """

    model_config = ConfigDict(frozen=True)

    metric: str
    performance: Estimate
    split: str
    threshold: float | None
    scores: tuple[float, ...]
    target: tuple[float, ...]
    places: dict[str, tuple[int, ...]]
    importance: dict[str, float]
    recalibration: Recalibration | None
    error_size: ErrorSize | None = None
    label: FeatureProfile | None = None


class ReferenceProfile(BaseModel):
    """Training data of one model version as later days are compared with it.

    Attributes:
        features: in the order of training.
        prediction: scores of the validation rows.
        sample: up to some thousand reference rows by column, in random order, for what needs rows: the domain
            classifier and the principal components.
        unavailable: why performance is neither measured nor estimated where there is no ``model``.
    """

    model_config = ConfigDict(frozen=True)

    model_digest: str = ""
    rows: int
    features: dict[str, FeatureProfile]
    prediction: FeatureProfile | None = None
    model: ModelReference | None = None
    unavailable: str = ""
    sample: dict[str, tuple[float | str | None, ...]] = {}

    def require_model(self, digest: str, scope: str) -> Self:
        """This profile, when it is that of the model with ``digest``.

        Raises:
            InputError: it belongs to another model; says what to materialize.
        """
        if digest != self.model_digest:
            remedy = f"Materialize reference_profile of {scope} (`e2i run --scope {scope}`)."
            raise InputError(
                f"reference_profile of {scope}: it belongs to another model than the registered version.",
                file="reference_profile",
                field=scope,
                value=self.model_digest[:12],
                remedy=remedy,
            )
        return self

    def to_metadata(self) -> dict[str, Any]:
        """Sizes, kinds and shares; no value of a patient."""
        model = self.model
        return {
            "reference_rows": self.rows,
            "model_digest": self.model_digest,
            "features": Table(
                ("feature", "kind", "missing", "values or points", "importance"),
                [
                    (
                        name,
                        feature.kind,
                        feature.missing / feature.rows if feature.rows else None,
                        len(feature.points) if isinstance(feature, NumberProfile) else len(feature.counts),
                        None if model is None else model.importance.get(name),
                    )
                    for name, feature in self.features.items()
                ],
                {"missing": ".1%", "importance": ".1%"},
            ),
            **(
                {}
                if model is None
                else {
                    f"{model.split}_{model.metric}": Table(("value",), [(model.performance.with_interval,)])
                }
            ),
        }


class ParquetColumns:
    """A day in a Parquet file that is read a column at a time, so that memory holds one of them."""

    def __init__(self, path: Path) -> None:
        from pyarrow.parquet import ParquetFile

        self._file = ParquetFile(path)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return self._file.schema_arrow.names

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __getitem__(self, name: str) -> pd.Series:
        import pyarrow as pa

        texts = {pa.string(): pd.StringDtype("pyarrow"), pa.large_string(): pd.StringDtype("pyarrow")}
        return self._file.read(columns=[name]).to_pandas(types_mapper=texts.get, self_destruct=True)[name]


def profile_frame(frame: pd.DataFrame, *, bins: int) -> ReferenceProfile:
    """The profile of every column of ``frame``: numbers, text and booleans (as text)."""
    return ReferenceProfile(
        rows=len(frame),
        features={str(name): profile_values(frame[name], bins=bins) for name in frame.columns},
    )


def profile_values(values: pd.Series, *, bins: int) -> FeatureProfile:
    """The profile of one column; ``bins`` of the stability index."""
    if not is_numeric(values):
        counts = text_counts(values)
        missing = int(values.isna().sum())
        kept = counts[:MAX_CATEGORIES]
        return TextProfile(
            rows=len(values),
            missing=missing,
            counts={str(name): int(count) for name, count in kept.items()},
            other=int(counts[MAX_CATEGORIES:].sum()),
        )
    numbers = present_numbers(values)
    distinct, repeats = np.unique(numbers, return_counts=True)
    exact = len(distinct) <= _EXACT
    own = quantile_bins(numbers, bins)
    kept = distinct
    if not exact:
        ranks = np.linspace(0, len(numbers) - 1, _SUPPORT).round().astype("int64")
        kept = distinct[np.searchsorted(np.cumsum(repeats), ranks, side="right")]
    points = np.unique(np.concatenate([kept, own.edges, own.points]))
    finite = numbers[np.isfinite(numbers)]
    at_most = np.concatenate([[0], np.cumsum(repeats)])[np.searchsorted(distinct, points, side="right")]
    return NumberProfile(
        rows=len(values),
        missing=len(values) - len(numbers),
        points=tuple(points.tolist()),
        at_most=tuple(at_most.tolist()),
        exact=exact,
        edges=own.edges,
        single=own.points,
        counts=tuple(own.counts(numbers).tolist()),
        mean=float(finite.mean()) if len(finite) else 0.0,
        deviation=float(finite.std()) if len(finite) else 0.0,
    )


def count_numbers(profile: NumberProfile, numbers: np.ndarray, rows: int) -> NumberCounts:
    """Count ``numbers``, those that are there of ``rows``, against the points of ``profile``.

    One pass, without sorting when they are many.
    """
    points = np.asarray(profile.points)
    missing = rows - len(numbers)
    if not len(points):
        empty = np.zeros(0, dtype="int64")
        return NumberCounts(empty, empty, missing, rows)
    if len(numbers) < _CELLS_FROM:
        ordered = np.sort(numbers)
        below, at_most = (np.searchsorted(ordered, points, side=side) for side in ("left", "right"))
    else:
        places = _place_counts(points, numbers)
        ends = np.cumsum(places)
        below, at_most = ends[0:-1:2], ends[1::2]
    return NumberCounts(below, at_most, missing, rows, wasserstein(profile, numbers))


def bin_counts(bins: Bins, points: np.ndarray, below: np.ndarray, at_most: np.ndarray, n: int) -> np.ndarray:
    """Rows in each of ``bins``, from counts at ``points``, which hold every edge and single value."""
    at = np.searchsorted(points, bins.edges)
    upto = np.concatenate([[0], at_most[at], [n]]) if len(bins.edges) else np.array([0, n])
    intervals = np.diff(upto).astype("float64")
    if not bins.points:
        return intervals
    single_at = np.searchsorted(points, bins.points)
    single = (at_most[single_at] - below[single_at]).astype("float64")
    # A single value lies in the interval that it is taken out of.
    inside = np.searchsorted(np.asarray(bins.edges), bins.points, side="left")
    np.subtract.at(intervals, inside, single)
    return np.concatenate([intervals, single])


def quantiles_of(points: np.ndarray, at_most: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Quantiles of counted values: the first point that at least a share of them does not exceed."""
    ranks = shares * at_most[-1]
    return points[np.minimum(np.searchsorted(at_most, ranks, side="left"), len(points) - 1)]


def wasserstein(profile: NumberProfile, numbers: np.ndarray) -> float | None:
    """Wasserstein-1 distance in standard deviations of the reference; None for a constant one or an infinite distance.

    The mean difference of the quantiles of both sides (Vallender 1974), at 512 shares.
    """
    if not len(numbers) or not profile.points or profile.deviation == 0:
        return None
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    then = quantiles_of(np.asarray(profile.points), np.asarray(profile.at_most), shares)
    at = np.minimum((shares * len(numbers)).astype("int64"), len(numbers) - 1)
    # Of many values a regular subset is enough for a distance; tests use all of them.
    if len(numbers) > _CELLS_FROM:
        numbers = numbers[:: len(numbers) // _CELLS_FROM]
        at = np.minimum((shares * len(numbers)).astype("int64"), len(numbers) - 1)
    now = np.sort(numbers)[at]
    with np.errstate(invalid="ignore", over="ignore"):
        distance = float(np.abs(now - then).mean() / profile.deviation)
    return distance if np.isfinite(distance) else None


def text_counts(values: pd.Series) -> pd.Series:
    """Rows by value as text, missing ones left out, most frequent first; ties by value."""
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        counts = values.value_counts(sort=False)
        counts = counts[counts > 0]
    else:
        counts = values.value_counts(sort=False)
    counts.index = counts.index.astype(str)
    return counts.groupby(level=0).sum().sort_index().sort_values(ascending=False, kind="stable")


def is_numeric(values: pd.Series) -> bool:
    """Whether ``values`` are numbers and not truth values."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def present_numbers(values: pd.Series) -> np.ndarray:
    """The numbers of ``values`` that are there, as float64; not copied when all are."""
    numbers = (
        values.to_numpy()
        if values.dtype == np.dtype("float64")
        else values.to_numpy(dtype="float64", na_value=np.nan)
    )
    absent = np.isnan(numbers)
    return numbers[~absent] if absent.any() else numbers


def places_in(profile: FeatureProfile, values: pd.Series) -> np.ndarray:
    """Number of the bin of each of ``values`` in the order of :func:`binned`; missing is the last."""
    if isinstance(profile, TextProfile):
        names = {name: place for place, name in enumerate(profile.counts)}
        text = values.astype("string").astype(object).where(values.notna(), None)
        places = [len(names) + 1 if value is None else names.get(str(value), len(names)) for value in text]
        return np.asarray(places, dtype="int64")
    numbers = values.to_numpy(dtype="float64", na_value=np.nan)
    there = ~np.isnan(numbers)
    places = np.full(len(numbers), profile.bins.size)
    places[there] = profile.bins.place(numbers[there])
    return places


def _place_counts(points: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Numbers below the first point, at it, between it and the second, and so on; shape (2 len(points) + 1,).

    The range of the points is cut into equal cells. A cell without a point lies between two of them and is counted
    whole; in a cell with one point each number is compared with it, in the others it is searched.
    """
    low, high = points[0], points[-1]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scale = (_CELLS - 2) / (high - low)
    if not np.isfinite(scale) or scale <= 0 or not np.isfinite(scale * max(abs(low), abs(high))):
        left, right = (np.searchsorted(points, numbers, side=side) for side in ("left", "right"))
        return np.bincount(left + right, minlength=2 * len(points) + 1)
    cells = _cells(numbers, low, scale)
    cell_of_point = _cells(points, low, scale)
    per_cell = np.bincount(cell_of_point, minlength=_CELLS)
    first = np.concatenate([[0], np.cumsum(per_cell)[:-1]])  # points in cells before
    by_cell = np.bincount(cells, minlength=_CELLS)
    free = per_cell == 0
    counts = np.bincount(2 * first[free], weights=by_cell[free], minlength=2 * len(points) + 1)
    counts = counts.astype("int64")
    at = np.flatnonzero((per_cell > 0)[cells])
    if len(at):
        rest, cell = numbers[at], cells[at]
        # The first point of a cell decides for cells with one.
        alone = per_cell[cell] == 1
        point = first[cell[alone]]
        value = points[point]
        places = 2 * point + (rest[alone] >= value) + (rest[alone] > value)
        counts += np.bincount(places, minlength=len(counts))
        many = rest[~alone]
        if len(many):
            left, right = (np.searchsorted(points, many, side=side) for side in ("left", "right"))
            counts += np.bincount(left + right, minlength=len(counts))
    return counts


def _cells(numbers: np.ndarray, low: float, scale: float) -> np.ndarray:
    """Cell of each number: 0 below the range, the last above; ascending with the number."""
    with np.errstate(over="ignore"):
        cells = numbers - low
        cells *= scale
    cells += 1
    np.clip(cells, 0, _CELLS - 1, out=cells)
    return cells.astype("int32")


def sample_rows(frame: pd.DataFrame, rows: int, seed: int) -> Mapping[str, tuple[Any, ...]]:
    """Up to ``rows`` rows of ``frame`` by column, in random order; missing as None."""
    drawn = frame.sample(min(rows, len(frame)), random_state=seed)
    return {
        str(name): tuple(
            None if absent else value for value, absent in zip(column, column.isna(), strict=True)
        )
        for name, column in drawn.astype(object).items()
    }
