"""The label ledger: each prediction keeps the end of its outcome window, labels arrive and are settled.

A label counts when its window and the source lag are over: an outcome that is seen earlier would count before the
absence of one can, and performance would look as if everybody had it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.tables import raw_table
from e2i_dagster.tables.description.monitoring import ml_prediction_labels, ml_prediction_windows
from e2i_dagster.versions.ledger import latest

#: What becomes of a label that arrives.
ARRIVALS = (
    "accepted", "corrected", "repeated", "taken_back", "conflicting", "before_prediction", "unknown_prediction",
)  # fmt: skip
#: Where a prediction stands: its window is open, or over without a label, or its label counts, or it repeats another.
STATES = ("open", "awaited", "closed", "repeated")


@dataclass(frozen=True)
class SettledLabels:
    """What is known of the outcomes of predictions.

    Attributes:
        predictions: prediction_id, model_id, patient_id, predicted_at, score, closes_on, label (float, NaN: none
            counts), state (:data:`STATES`); one row per prediction, by time.
        arrivals: prediction_id, label, arrived_at, result (:data:`ARRIVALS`), in the order of arrival.
    """

    predictions: pd.DataFrame
    arrivals: pd.DataFrame

    def until(self, day: dt.date) -> SettledLabels:
        """What is known of the predictions up to the end of ``day``, and of labels for none of the later ones."""
        end = pd.Timestamp(day, tz="UTC") + pd.Timedelta(days=1)
        later = pd.to_datetime(self.predictions["predicted_at"], utc=True) >= end
        if not later.any():
            return self
        gone = self.arrivals["prediction_id"].isin(self.predictions.loc[later, "prediction_id"])
        return SettledLabels(self.predictions[~later], self.arrivals[~gone])

    @property
    def counts(self) -> dict[str, int]:
        """Predictions by state and labels by result."""
        return {
            **{name: int((self.predictions["state"] == name).sum()) for name in STATES},
            **{name: int((self.arrivals["result"] == name).sum()) for name in ARRIVALS},
        }


def settle_labels(predictions: pd.DataFrame, arrivals: pd.DataFrame, *, as_of: dt.date) -> SettledLabels:
    """Find the label that counts for each prediction.

    A label known before the prediction was made is none of it. The latest of several holds; the same again changes
    nothing; two different ones at the same time count for neither. A patient who was asked about several times in
    a day by one model version counts once, with the first answer.

    Args:
        predictions: prediction_id, model_id, patient_id (null: not known), predicted_at (UTC), score, closes_on
            (date). The same prediction_id twice is one prediction.
        arrivals: prediction_id, label (null takes an earlier one back), arrived_at (UTC), in any order.
        as_of: day on which windows are over or not.
    """
    known = predictions.drop_duplicates("prediction_id").sort_values(
        ["predicted_at", "prediction_id"], kind="stable", ignore_index=True
    )
    came = arrivals.sort_values("arrived_at", kind="stable", ignore_index=True)
    made = came["prediction_id"].map(known.set_index("prediction_id")["predicted_at"])
    results: list[str] = []
    holding: dict[str, tuple[float, dt.datetime]] = {}
    for key, label, arrived, predicted in zip(
        came["prediction_id"], came["label"], came["arrived_at"], made, strict=True
    ):
        before = holding.get(key)
        if pd.isna(predicted):
            results.append("unknown_prediction")
        elif arrived < predicted:
            results.append("before_prediction")
        elif pd.isna(label):
            holding.pop(key, None)
            results.append("taken_back")
        elif before is None:
            holding[key] = (float(label), arrived)
            results.append("accepted")
        elif before[0] == label:
            results.append("repeated")
        elif before[1] == arrived:
            # NaN differs from every label, so that a third one conflicts as well.
            holding[key] = (float("nan"), arrived)
            results.append("conflicting")
        else:
            holding[key] = (float(label), arrived)
            results.append("corrected")
    label = known["prediction_id"].map({key: value for key, (value, _) in holding.items()}).astype("float64")
    over = pd.to_datetime(known["closes_on"]) <= pd.Timestamp(as_of)
    again = _repeated(known)
    state = pd.Series("open", index=known.index).mask(over, "awaited").mask(over & label.notna(), "closed")
    return SettledLabels(
        known.assign(label=label.where(over & ~again), state=state.mask(again, "repeated")),
        came.assign(result=pd.Series(results, index=came.index, dtype="string")),
    )


def _repeated(predictions: pd.DataFrame) -> pd.Series:
    """Further answers of a model version about a patient on one day; ``predictions`` are ordered by time."""
    asked = pd.DataFrame(
        {
            "patient": predictions["patient_id"],
            "model": predictions["model_id"],
            "day": pd.to_datetime(predictions["predicted_at"], utc=True).dt.date,
        }
    )
    return asked.duplicated() & asked["patient"].notna()


def outcome_windows(answers: pd.DataFrame, outcomes: pd.DataFrame, scope: ScopeSpec) -> pd.DataFrame:
    """``answers`` with ``window_end`` and ``closes_on`` (dates).

    A patient's window runs from the index date, as it does for the labels of training: the last one that is not
    after the prediction, else the first. Of a patient whom the cohort does not have, it runs from the day of the
    prediction, which belongs to the time before it.

    Args:
        answers: patient_id, predicted_at.
        outcomes: patient_id, index_date (the scope's ``outcome_labels``).
    """
    asked = pd.to_datetime(answers["predicted_at"], utc=True).dt.tz_localize(None).dt.normalize()
    kinds = {"patient_id": "string[pyarrow]", "index_date": "datetime64[us]"}
    dates = outcomes[["patient_id", "index_date"]].astype(kinds)
    dates = dates.sort_values("index_date", kind="stable")
    first = answers["patient_id"].map(
        dates.drop_duplicates("patient_id").set_index("patient_id")["index_date"]
    )
    wanted = pd.DataFrame(
        {
            "patient_id": answers["patient_id"].astype("string[pyarrow]"),
            "asked": asked.astype("datetime64[us]"),
        }
    )
    before = pd.merge_asof(
        wanted.reset_index(drop=True).reset_index().sort_values("asked", kind="stable"),
        dates,
        left_on="asked",
        right_on="index_date",
        by="patient_id",
    ).set_index("index")["index_date"]
    start = pd.Series(before.sort_index().to_numpy(), index=answers.index).fillna(pd.to_datetime(first))
    end = start.fillna(asked) + pd.Timedelta(days=scope.horizon_days)
    closes = end + pd.Timedelta(days=scope.source_lag_days + 1)
    return answers.assign(window_end=end.dt.date, closes_on=closes.dt.date)


def enter_predictions(
    connection: sa.Connection, scope: ScopeSpec, outcomes: pd.DataFrame, *, until: dt.datetime
) -> int:
    """Enter live predictions of the scope's model before ``until`` that the ledger has not; returns their number."""
    log, windows = raw_table("ml_predictions"), ml_prediction_windows
    found = connection.execute(
        sa.select(
            log.c.prediction_id, log.c.model_id, log.c.patient_id, log.c.prediction_timestamp, log.c.prediction_value
        )
        .where(
            log.c.origin == "live",
            log.c.model_id.startswith(f"{scope.model_name}/", autoescape=True),
            log.c.prediction_timestamp < until,
            log.c.prediction_value.is_not(None),
            ~sa.exists().where(windows.c.prediction_id == log.c.prediction_id),
        )
    ).all()  # fmt: skip
    if not found:
        return 0
    answers = pd.DataFrame(
        [tuple(row) for row in found],
        columns=["prediction_id", "model_id", "patient_id", "predicted_at", "score"],
    )
    rows = outcome_windows(answers, outcomes, scope).assign(scope=scope.key)
    known = rows.astype(object).where(rows.notna(), None)
    records = [dict(zip(rows.columns, row, strict=True)) for row in known.itertuples(index=False)]
    connection.execute(insert(windows).on_conflict_do_nothing(), records)
    return len(rows)


def enter_labels(
    connection: sa.Connection,
    scope: ScopeSpec,
    outcomes: pd.DataFrame,
    *,
    arrived_at: dt.datetime,
    run_id: str,
) -> int:
    """Enter the labels of ``outcomes`` that the ledger does not have yet; returns their number.

    Args:
        outcomes: patient_id, index_date, label (null: not known yet). Of a patient with several index dates the
            label is that of the one from which the prediction's window runs.
        arrived_at: when these outcomes became known.
    """
    windows = ml_prediction_windows
    of_patients = connection.execute(
        sa.select(windows.c.prediction_id, windows.c.patient_id, windows.c.window_end).where(
            windows.c.scope == scope.key, windows.c.patient_id.is_not(None)
        )
    ).all()
    last = {
        row.prediction_id: row.label
        for row in connection.execute(
            sa.select(ml_prediction_labels.c.prediction_id, ml_prediction_labels.c.label)
            .where(ml_prediction_labels.c.scope == scope.key)
            .order_by(ml_prediction_labels.c.id)
        )
    }
    ends = pd.to_datetime(outcomes["index_date"]) + pd.Timedelta(days=scope.horizon_days)
    by_window = dict(
        zip(zip(outcomes["patient_id"], ends.dt.date, strict=True), outcomes["label"], strict=True)
    )
    single = outcomes.drop_duplicates("patient_id", keep=False)
    by_patient = dict(zip(single["patient_id"], single["label"], strict=True))
    new = []
    for key, patient, window_end in of_patients:
        # The index date of a patient may have been corrected since the prediction.
        label = by_patient.get(patient, by_window.get((patient, window_end)))
        value = None if label is None or pd.isna(label) else float(label)
        known = last.get(key)
        if value != known:
            new.append(
                {
                    "prediction_id": key,
                    "scope": scope.key,
                    "label": value,
                    "arrived_at": arrived_at,
                    "run_id": run_id,
                }
            )
    if new:
        connection.execute(ml_prediction_labels.insert(), new)
    return len(new)


def read_ledger(connection: sa.Connection, scope: str, *, as_of: dt.date) -> SettledLabels:
    """Predictions and labels of ``scope``, settled."""
    windows, labels = ml_prediction_windows, ml_prediction_labels
    predictions = _frame(
        connection,
        sa.select(
            windows.c.prediction_id, windows.c.model_id, windows.c.patient_id, windows.c.predicted_at,
            windows.c.score, windows.c.closes_on,
        ).where(windows.c.scope == scope),
    )  # fmt: skip
    arrivals = _frame(
        connection,
        sa.select(labels.c.prediction_id, labels.c.label, labels.c.arrived_at)
        .where(labels.c.scope == scope)
        .order_by(labels.c.id),
    )
    return settle_labels(predictions, arrivals, as_of=as_of)


def update_ledger(
    connection: sa.Connection,
    scope: ScopeSpec,
    outcomes: pd.DataFrame,
    *,
    day: dt.date,
    run_id: str,
    now: dt.datetime,
) -> SettledLabels:
    """Enter the predictions up to the end of ``day`` and the labels that ``outcomes`` bring; the ledger as of ``now``.

    Args:
        outcomes: the scope's current ``outcome_labels``; their version in the data ledger says since when they are
            known.
    """
    version = latest(connection, "outcome_labels", scope.key)
    arrived_at = now if version is None or version.at is None else version.at
    until = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), dt.UTC)
    enter_predictions(connection, scope, outcomes, until=until)
    # The ledger holds numbers; which class a patient came to have is none.
    if scope.problem_type != "multiclass_classification":
        enter_labels(connection, scope, outcomes, arrived_at=arrived_at, run_id=run_id)
    return read_ledger(connection, scope.key, as_of=now.date())


def labels_enough_from(
    connection: sa.Connection, scope: str, *, missing: int, after: dt.date
) -> dt.date | None:
    """From which day on ``missing`` more labels are expected; None when fewer windows are open."""
    windows = ml_prediction_windows
    by_patient = (
        sa.select(sa.func.max(windows.c.closes_on).label("closes_on"))
        .where(windows.c.scope == scope, windows.c.closes_on > after)
        .group_by(sa.func.coalesce(windows.c.patient_id, windows.c.prediction_id))
        .subquery()
    )
    query = (
        sa.select(by_patient.c.closes_on)
        .order_by(by_patient.c.closes_on)
        .offset(max(missing - 1, 0))
        .limit(1)
    )
    return connection.execute(query).scalar()


def _frame(connection: sa.Connection, query: sa.Select) -> pd.DataFrame:
    rows = connection.execute(query)
    frame = pd.DataFrame([tuple(row) for row in rows], columns=list(rows.keys()))
    times = {name: "datetime64[us, UTC]" for name in ("predicted_at", "arrived_at") if name in frame}
    return frame.astype({**times, **{name: "float64" for name in ("score", "label") if name in frame}})
