"""A model judged on rows of patients who had no part in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.disclosure import is_small, shown_count
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.subgroups import SubgroupColumn, joined_columns
from e2i_dagster.errors import VerdictError
from e2i_dagster.modelling.estimators import one_thread
from e2i_dagster.modelling.model_input import LabelledRows, labelled_rows
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.training import TrainedModel
from e2i_dagster.training.evaluate import measure
from e2i_dagster.training.subgroups import subgroup_performance
from e2i_dagster.validation.case_mix import case_mix
from e2i_dagster.validation.records import Findings

#: Patients with and without the event below which a validation is imprecise.
ADVISED_EVENTS = 100


def left_out(frame: pd.DataFrame, splits: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """The rows of patients who are in no split of the model's development cohort.

    Args:
        frame: validation frame: patient_id and further columns.
        splits: patient_id, split of the development cohort.

    Returns:
        The rows, and how many patients were left out because they are in the training or validation split, and in
        the test or holdout split (whose rows stay sealed).
    """
    split = (
        frame["patient_id"]
        .astype(str)
        .map(
            splits.assign(patient_id=splits["patient_id"].astype(str))
            .set_index("patient_id")["split"]
            .astype(str)
        )
    )
    fitted = frame.loc[split.isin(["train", "validation"]), "patient_id"].nunique()
    known = frame.loc[split.notna(), "patient_id"].nunique()
    return frame[split.isna().to_numpy()].reset_index(drop=True), fitted, known - fitted


def require_others(rows: int, overlap: int, *, cohort: str, development_cohort: str) -> None:
    """Refuse a cohort whose labelled patients all belong to the development cohort.

    Raises:
        VerdictError: all do.
    """
    if rows == 0 and overlap:
        raise VerdictError(
            f"Every labelled patient of {cohort} ({shown_count(overlap)}) is in a split of {development_cohort}, of "
            "which the model was made.",
            field="--cohort",
            value=cohort,
            remedy="Name a cohort with other patients.",
        )


def require_features(frame: pd.DataFrame, development: LabelledRows, *, cohort: str) -> None:
    """Refuse rows of which nobody has a feature that somebody in development has.

    Raises:
        VerdictError: names each such feature.
    """
    absent = [
        name
        for name in development.features.columns
        if frame[name].isna().all() and development.features[name].notna().any()
    ]
    if absent:
        raise VerdictError(
            f"No patient of {cohort} has a value of {', '.join(absent)}, which the model reads.",
            field="--cohort",
            value=cohort,
            remedy=f"`e2i features preview {absent[0]}` shows the feature; load the tables that it is computed "
            "from, or name a cohort that has it.",
        )


def require_outcomes(model: TrainedModel, rows: LabelledRows, *, cohort: str, scope: str) -> None:
    """Refuse rows without any label, or with one class, one value or no event alone.

    Raises:
        VerdictError: says which.
    """
    remedy = (
        f"Check that the outcome of scope {scope} can be seen in the tables of {cohort} (`e2i cohort preview` shows "
        "counts), load a longer period, or name another cohort."
    )

    def refused(said: str) -> VerdictError:
        return VerdictError(f"{cohort}: {said}", field="--cohort", value=cohort, remedy=remedy)

    if not len(rows):
        raise refused(f"no patient has a label by the outcome of scope {scope}.")
    if model.problem_type in CLASSIFICATION:
        there = np.bincount(rows.target, minlength=len(model.classes) or 2)
        names = model.classes or ("without the outcome", "with the outcome")
        missing = [name for name, count in zip(names, there, strict=True) if not count]
        if missing:
            raise refused(
                f"nobody who is labelled is {' or '.join(missing)}; a validation needs every class."
            )
    elif model.risk is not None and not (rows.target > 0).any():
        raise refused("no labelled patient has the event; a validation needs events.")
    elif model.risk is None and np.ptp(rows.target) == 0:
        raise refused(f"every labelled patient has the same outcome, {rows.target[0]:g}.")


def assess(
    model: TrainedModel,
    development: LabelledRows,
    frame: pd.DataFrame,
    *,
    cohort: str,
    scope: str,
    subgroups: Sequence[SubgroupColumn] = (),
    policy: OptunaPolicy | None = None,
) -> Findings:
    """Measure ``model`` on the rows of ``frame``, which no patient of its development is among.

    Args:
        development: the training rows of the model.
        frame: patient_id, label, and all features of the model; other columns may make subgroups.
        cohort, scope: named in errors.
        subgroups: columns beside those of the policy.

    Raises:
        VerdictError: nobody has one of the features, or there are too few outcomes of a kind.
    """
    policy = policy or OptunaPolicy.load()
    rules = policy.evaluation
    if len(frame):
        require_features(frame, development, cohort=cohort)
    validation = labelled_rows(frame, model.kinds, problem_type=model.problem_type, classes=model.classes)
    require_outcomes(model, validation, cohort=cohort, scope=scope)
    with one_thread():
        scores = model.scores(validation.features)
        performance = measure(validation, scores, model, rules)
    if not performance.metrics:
        raise VerdictError(
            f"{cohort}: {performance.note} ({shown_count(performance.n)} labelled rows).",
            field="--cohort",
            value=cohort,
            remedy="Load more patients or a longer period, or name a larger cohort.",
        )
    groups = subgroup_performance(
        validation.target,
        scores,
        frame,
        joined_columns(rules.subgroups.columns, subgroups),
        rules,
        problem_type=model.problem_type,
        horizon_days=None if model.risk is None else model.risk.horizon_days,
        patients=validation.patients,
    )
    return Findings(
        performance=performance,
        subgroups=groups,
        case_mix=case_mix(model, development, validation, policy),
        notes=_notes(model, validation),
    )


def _notes(model: TrainedModel, rows: LabelledRows) -> tuple[str, ...]:
    """What limits the figures: few events (Collins et al., Statistics in Medicine 35:214, 2016)."""
    if model.problem_type == "regression":
        return ()
    if model.risk is not None:
        counts = [int((rows.target > 0).sum())]
    else:
        counts = np.bincount(rows.target, minlength=len(model.classes) or 2).tolist()
    if min(counts) >= ADVISED_EVENTS:
        return ()
    found = "fewer than 11" if is_small(min(counts)) else str(min(counts))
    return (
        f"The rarest outcome has {found} rows; at least {ADVISED_EVENTS} are advised for a precise validation.",
    )
