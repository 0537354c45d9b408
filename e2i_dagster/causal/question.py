"""The shipped question: what does contact with an engaged professional do to the scope's outcome?"""

from __future__ import annotations

import pandas as pd

from e2i_dagster.config.causal import CausalPolicy, QuestionRule
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.errors import InputError
from e2i_dagster.splits import Seal

OUTCOME = "label"
#: ``train`` or ``validation``.
SPLIT = "split"


def treated_before(
    patients: pd.DataFrame, engagement_events: pd.DataFrame, question: QuestionRule
) -> pd.Series:
    """Whether the best contact in the window before the index date reaches the threshold.

    The window is days 1 to ``window_days`` before the index date; the index day itself and later days do
    not count, as they may follow from the outcome's beginning.

    Args:
        patients: patient_journey_id, index_date. engagement_events: patient_journey_id, engagement_date,
            quality_score.

    Returns:
        Booleans in the order of ``patients``. No contact in the window is not treated.
    """
    contacts = engagement_events[["patient_journey_id", "engagement_date", "quality_score"]].dropna()
    joined = patients[["patient_journey_id", "index_date"]].merge(contacts, on="patient_journey_id")
    ahead = (pd.to_datetime(joined["index_date"]) - pd.to_datetime(joined["engagement_date"])).dt.days
    counted = ahead.between(1, question.window_days) & (joined["quality_score"] >= question.threshold)
    treated = joined.loc[counted, "patient_journey_id"].unique()
    return patients["patient_journey_id"].isin(treated).rename(question.treatment)


def causal_frame(
    scope: ScopeSpec,
    training_frame: pd.DataFrame,
    splits: pd.DataFrame,
    engagement_events: pd.DataFrame,
    policy: CausalPolicy,
) -> pd.DataFrame:
    """Train and validation patients (column ``split``) with treatment, label, confounders and negative controls.

    Test and holdout rows stay sealed.

    Raises:
        InputError: a confounder or negative control is no feature of the scope, or a patient has no split.
    """
    question = policy.question
    wanted = [*question.confounders, *question.negative_controls]
    absent = [name for name in wanted if name not in training_frame.columns]
    if absent:
        raise InputError(
            f"config/causal.yaml names {', '.join(absent)}, which the features of scope {scope.key} do not have. "
            "Name features of docs/features.md."
        )
    seen = Seal(scope.key, scope.split.salt, splits).visible(training_frame)
    rows = pd.concat([seen["train"], seen["validation"]], ignore_index=True)
    split = ["train"] * len(seen["train"]) + ["validation"] * len(seen["validation"])
    treated = treated_before(rows, engagement_events, question)
    frame = rows[["patient_id", OUTCOME, *wanted]].copy()
    frame.insert(1, SPLIT, split)
    frame.insert(2, question.treatment, treated.to_numpy())
    return frame


def question_words(scope: ScopeSpec, question: QuestionRule) -> str:
    """The question in words, for people."""
    return (
        f"What does {question.treatment} do to the outcome of scope {scope.key} ({scope.outcome.event.words()} within "
        f"days {scope.outcome.window[0]} to {scope.outcome.window[1]})? Treated: the best contact in the "
        f"{question.window_days} days before the index date has a quality of {question.threshold:g} or more. "
        f"Adjusted for {', '.join(question.confounders)}. The answer is causal only if these are all that drive "
        "both."
    )
