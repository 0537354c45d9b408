"""The shipped question: what does contact with an engaged professional do to the scope's outcome?"""

from __future__ import annotations

import pandas as pd

from e2i_dagster.config.causal import CausalPolicy, QuestionRule
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.splits import Seal
from e2i_dagster.versions.coverage import EVERY_DAY, Coverage

OUTCOME = "label"
#: Problem types of scopes on whose outcome an effect is estimated.
ANSWERED = ("binary_classification", "regression")
#: ``train`` or ``validation``.
SPLIT = "split"


def treated_before(
    patients: pd.DataFrame,
    engagement_events: pd.DataFrame,
    question: QuestionRule,
    *,
    covered: Coverage = EVERY_DAY,
) -> pd.Series:
    """Whether the best contact in the window before the index date reaches the threshold.

    The window is days 1 to ``window_days`` before the index date; the index day itself and later days do
    not count, as they may follow from the outcome's beginning.

    Args:
        patients: patient_journey_id, index_date. engagement_events: patient_journey_id, engagement_date,
            quality_score.
        covered: days that the contacts cover.

    Returns:
        Nullable booleans in the order of ``patients``. No contact in the window is not treated; null where part of
        the window is not covered and no contact was seen in the rest.
    """
    contacts = engagement_events[["patient_journey_id", "engagement_date", "quality_score"]].dropna()
    if covered.start is not None:
        contacts = contacts[pd.to_datetime(contacts["engagement_date"]) >= pd.Timestamp(covered.start)]
    joined = patients[["patient_journey_id", "index_date"]].merge(contacts, on="patient_journey_id")
    ahead = (pd.to_datetime(joined["index_date"]) - pd.to_datetime(joined["engagement_date"])).dt.days
    counted = ahead.between(1, question.window_days) & (joined["quality_score"] >= question.threshold)
    treated = joined.loc[counted, "patient_journey_id"].unique()
    found = patients["patient_journey_id"].isin(treated).astype("boolean").rename(question.treatment)
    index = pd.to_datetime(patients["index_date"]).to_numpy().astype("datetime64[D]")
    seen = covered.covers(index - question.window_days, index - 1)
    return found.mask(~found & ~seen)


def causal_frame(
    scope: ScopeSpec,
    training_frame: pd.DataFrame,
    splits: pd.DataFrame,
    engagement_events: pd.DataFrame,
    policy: CausalPolicy,
    *,
    covered: Coverage = EVERY_DAY,
) -> pd.DataFrame:
    """Train and validation patients (column ``split``) with treatment, label, confounders and negative controls.

    Test and holdout rows stay sealed. Who cannot be said to be treated or not, because part of the window is not
    ``covered`` by the contacts, is left out.

    Raises:
        InputError: a confounder or negative control is no feature of the scope, or a patient has no split.
        VerdictError: the outcome is one of several classes or a time, of which no effect is estimated, or a patient
            has several index dates.
    """
    question = policy.question
    if scope.problem_type not in ANSWERED:
        raise VerdictError(
            f"Scope {scope.key}: an effect is a difference of means or of probabilities; its outcome is "
            f"{scope.problem_type}.",
            file=f"config/scopes/{scope.key}.yaml",
            field="problem_type",
            value=scope.problem_type,
            remedy="Ask for the effect on a scope with an event or a number as outcome.",
        )
    wanted = [*question.confounders, *question.negative_controls]
    absent = [name for name in wanted if name not in training_frame.columns]
    if absent:
        raise InputError(
            f"config/causal.yaml names {', '.join(absent)}, which the features of scope {scope.key} do not have.",
            remedy="Name features of docs/features.md.",
        )
    if training_frame["patient_id"].duplicated().any():
        raise VerdictError(
            f"Scope {scope.key}: its cohort {scope.cohort} has a patient once for every index date, and estimators of "
            "effects take their rows for independent.",
            file=f"config/cohorts/{scope.cohort}.yaml",
            field="journeys",
            value="every",
            remedy="Ask for the effect on a scope whose cohort has journeys: first_eligible (or first).",
        )
    rows = visible_frame(scope, training_frame, splits)
    treated = treated_before(rows, engagement_events, question, covered=covered)
    known = treated.notna().to_numpy()
    frame = rows[["patient_id", SPLIT, OUTCOME, *wanted]].copy()
    frame.insert(2, question.treatment, treated)
    frame = frame[known].reset_index(drop=True)
    return frame.astype({question.treatment: bool})


def visible_frame(scope: ScopeSpec, training_frame: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``training_frame`` in train and validation, which the column ``split`` says."""
    seen = Seal(scope.key, scope.split.salt, splits).visible(training_frame)
    return pd.concat(
        [seen[name].assign(**{SPLIT: name}) for name in ("train", "validation")], ignore_index=True
    )


def question_words(scope: ScopeSpec, question: QuestionRule) -> str:
    """The question in words, for people."""
    return (
        f"What does {question.treatment} do to the outcome of scope {scope.key} ({scope.outcome.words()} within "
        f"days {scope.outcome.window[0]} to {scope.outcome.window[1]})? Treated: the best contact in the "
        f"{question.window_days} days before the index date has a quality of {question.threshold:g} or more. "
        f"Adjusted for {', '.join(question.confounders)}. The answer is causal only if these are all that drive "
        "both."
    )
