"""Loading a stored model without pickle, and asking it.

A model is an MLflow model folder with the scikit-learn flavour in skops format. It is read with
skops directly: the flavour's own loader does the same after importing all of MLflow, which costs a
service more than a second at each start, and takes the list of trusted types from the model itself.
Here the types must be on the list of ``config/serving.yaml``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.modelling.survival import RiskAtHorizon
from e2i_dagster.serving.request_schema import Signature, mlmodel, to_frame

if TYPE_CHECKING:
    import pandas as pd

    from e2i_dagster.config.serving import ServingPolicy
    from e2i_dagster.serving.compiled import Compiled
    from e2i_dagster.serving.explained import RowExplainer


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder``, by its path relative to it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differing_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Files below ``folder`` that are missing, added or changed, compared with the ``expected`` digests."""
    found = file_digests(folder)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def check_digests(folder: Path, expected: Mapping[str, str]) -> None:
    """Refuse a model folder whose files are not exactly those of the release.

    Raises:
        VerdictError: a file is missing, added or changed; the files are named.
    """
    differing = differing_files(folder, expected)
    if differing:
        raise VerdictError(
            f"The model files {', '.join(differing)} in {folder} are not those of the release (missing, "
            f"added or changed since it was built).",
            remedy="Build the release again.",
        )


def stored_model(folder: Path) -> Path:
    """The skops file of the MLflow model in ``folder``.

    Raises:
        InputError: the model has another flavour or is stored as pickle.
    """
    flavour = mlmodel(folder).get("flavors", {}).get("sklearn")
    if not flavour:
        raise InputError(
            f"The model in {folder.name} has no scikit-learn flavour; only that one is served.",
            file=folder,
            remedy="Log the model with the scikit-learn flavour.",
        )
    stored = flavour.get("serialization_format")
    if stored != "skops":
        raise InputError(
            f"The model in {folder.name} is stored as {stored}; only skops is loaded, since pickle can run any code.",
            remedy="Log it with serialization_format='skops'.",
        )
    return folder / flavour["pickled_model"]


def untrusted_types(folder: Path, policy: ServingPolicy) -> list[str]:
    """Types in the stored model that neither skops nor the policy trusts, sorted."""
    import skops.io

    return sorted(
        name for name in skops.io.get_untrusted_types(file=stored_model(folder)) if not policy.trusts(name)
    )


@dataclass(frozen=True)
class Predicted:
    """Answers for the rows of one frame, in order.

    Attributes:
        predictions: class label, number, or risk at the horizon of a model of times.
        probabilities: class to probability; None for models without classes.
        values: what the prediction log calls the value: probability of the second of two classes,
            of the predicted class when there are more, or the number itself.
        measured: of a model of effects, the effect that was measured among patients with a predicted effect
            like the row's, with its interval; None for other models.
    """

    predictions: list[Any]
    probabilities: list[dict[str, float]] | None
    values: list[float]
    measured: list[dict[str, float]] | None = None


class LoadedModel:
    """One pipeline in memory.

    Args:
        pipeline: fitted scikit-learn estimator.
        threshold: probability of the second of two classes from which on it is predicted; None
            predicts the most probable class.
        effect_groups: of a model of effects, smallest first: ``above`` (the predicted effect from which on
            a row belongs to the group, None for the first), ``effect``, ``lower``, ``upper``.
        classes: names of the classes that the pipeline knows by number; None where it knows their names.
        risk: of a pipeline that predicts hazard ratios, how one becomes the risk at the horizon that is answered.
    """

    def __init__(
        self,
        pipeline: Any,
        threshold: float | None = None,
        effect_groups: Sequence[Mapping[str, float | None]] = (),
        classes: Sequence[Any] | None = None,
        risk: RiskAtHorizon | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._threshold = threshold
        self._effect_groups = effect_groups
        self._risk = risk
        known = getattr(pipeline, "classes_", None)
        self.classes: list[Any] | None = (
            None if known is None else [_plain(label) for label in classes or known]
        )
        self._names = [str(label) for label in self.classes or ()]
        self._compiled: Compiled | None = None
        self.explainer: RowExplainer | None = None
        self.not_explained = "the model was loaded without its signature"

    def compile(self, signature: Signature) -> None:
        """Answer rows of ``signature`` without scikit-learn's checks of a frame, where the answers are the same."""
        from e2i_dagster.serving.compiled import compile_pipeline

        if self._risk is None:
            self._compiled = compile_pipeline(self._pipeline, signature)

    def prepare_explanations(self, signature: Signature, metadata: Mapping[str, Any]) -> None:
        """Have an ``explainer`` of rows of ``signature``, or know why there is none (``not_explained``).

        Args:
            metadata: of the stored model.
        """
        from e2i_dagster.serving.explained import NotExplainedError, RowExplainer

        try:
            self.explainer = RowExplainer(self._pipeline, metadata, signature, self._names)
        except NotExplainedError as error:
            self.not_explained = str(error)

    @property
    def explains(self) -> str | None:
        """How rows are explained: ``tree`` or ``linear``; None if they are not."""
        return None if self.explainer is None else self.explainer.method

    @property
    def measures_effects(self) -> bool:
        """Whether answers carry the effect measured among patients with a like prediction."""
        return bool(self._effect_groups)

    @property
    def compiled(self) -> bool:
        """Whether rows are answered by array operations, in a fraction of a millisecond."""
        return self._compiled is not None

    def raw(self, signature: Signature, columns: Sequence[Sequence[Any]]) -> Any:
        """Probabilities of the classes, shape (n, classes), numbers or risks at the horizon, shape (n,).

        Args:
            columns: the values of each feature of ``signature``, in order; missing as None.
        """
        if self._compiled is not None:
            return self._compiled(columns)
        return self.raw_of_frame(to_frame(signature, columns))

    def raw_of_frame(self, frame: pd.DataFrame) -> Any:
        """As :meth:`raw`, of a frame with the columns of the signature."""
        import numpy as np

        if self.classes is not None:
            return self._pipeline.predict_proba(frame)
        found = self._pipeline.predict(frame)
        return found if self._risk is None else self._risk.risk(np.log(found.astype("float64")))

    def predict(self, frame: pd.DataFrame) -> Predicted:
        """Answer each row of ``frame`` (columns of the signature)."""
        return self.answers(self.raw_of_frame(frame))

    def chosen(self, matrix: Any) -> Any:
        """Position of the predicted class in each row of the probabilities ``matrix``."""
        if matrix.shape[1] == 2 and self._threshold is not None:
            return (matrix[:, 1] >= self._threshold).astype(int)
        return matrix.argmax(axis=1)

    def answers(self, raw: Any) -> Predicted:
        """What :meth:`raw` gave as answers.

        Raises:
            FloatingPointError: the model gave a number that is not finite.
        """
        import numpy as np

        if not np.isfinite(raw).all():
            raise FloatingPointError
        if self.classes is None:
            numbers = [float(value) for value in raw]
            return Predicted(numbers, None, numbers, self._measured(numbers))
        matrix = raw
        names = self._names
        probabilities = [dict(zip(names, row, strict=True)) for row in matrix.tolist()]
        binary = len(names) == 2
        return Predicted(
            predictions=[self.classes[position] for position in self.chosen(matrix)],
            probabilities=probabilities,
            values=(matrix[:, 1] if binary else matrix.max(axis=1)).tolist(),
        )

    def _measured(self, effects: list[float]) -> list[dict[str, float]] | None:
        import numpy as np

        if not self._effect_groups:
            return None
        starts = [group["above"] for group in self._effect_groups[1:]]
        shown = [
            {name: value for name, value in group.items() if name != "above" and value is not None}
            for group in self._effect_groups
        ]
        return [shown[position] for position in np.searchsorted(starts, effects, side="right")]  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def load_model(
    folder: Path,
    digests: Mapping[str, str],
    policy: ServingPolicy,
    threshold: float | None,
    signature: Signature | None = None,
) -> LoadedModel:
    """Check and load the MLflow model in ``folder``; compiled where its rows have a ``signature``.

    Raises:
        VerdictError: the files are not those of the release, or hold a type that is not trusted.
        InputError: the folder is no model that can be served.
    """
    check_digests(folder, digests)
    stored = stored_model(folder)
    import skops.io

    found = skops.io.get_untrusted_types(file=stored)
    refused = sorted(name for name in found if not policy.trusts(name))
    if refused:
        raise VerdictError(_untrusted(folder.name, refused))
    metadata = mlmodel(folder).get("metadata") or {}
    loaded = LoadedModel(
        skops.io.load(stored, trusted=found),
        threshold,
        metadata.get("effect_groups") or (),
        metadata.get("classes"),
        RiskAtHorizon(**risk) if (risk := metadata.get("risk_at_horizon")) else None,
    )
    if signature is not None:
        loaded.compile(signature)
        loaded.prepare_explanations(signature, metadata)
    return loaded


def _untrusted(name: str, types: list[str]) -> str:
    return (
        f"The stored model {name} contains types that are not trusted: {', '.join(types)}. If they are "
        "safe to load, add them to trusted_types in config/serving.yaml."
    )


def require_trusted(folder: Path, policy: ServingPolicy) -> None:
    """Refuse a stored model with types that are not trusted.

    Raises:
        VerdictError: the types are named.
    """
    refused = untrusted_types(folder, policy)
    if refused:
        raise VerdictError(_untrusted(folder.name, refused))
