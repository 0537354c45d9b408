"""Asking a running service from Python."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.serving.request_schema import Signature, to_records

if TYPE_CHECKING:
    import ssl

    import httpx
    import pandas as pd

#: Waiting time before a second, third and fourth attempt, seconds (prior platform's 0.5 * 2^n).
_PAUSES = (0.5, 1.0, 2.0)


@cache
def authorities() -> ssl.SSLContext:
    """Whom HTTPS is to trust, read once in a process: each client of httpx's own would read every certificate."""
    import httpx

    return httpx.create_ssl_context()


def score(
    endpoint_url: str,
    frame: pd.DataFrame,
    *,
    model_name: str | None = None,
    id_column: str | None = "patient_id",
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Score every row of ``frame`` with a model of the service at ``endpoint_url``.

    Args:
        endpoint_url: address of the service, such as ``http://127.0.0.1:3001``.
        frame: one row each; the features of the model by name, further columns are not sent.
        model_name: which model; may be left out when the service has one.
        id_column: column sent as ``patient_id`` for the prediction log and given back; None sends none.
        headers: further HTTP headers.
        timeout: seconds for one request.
        progress: called with the rows done and the rows in all after each request.

    Returns:
        Frame with the index of ``frame``: the id column, ``prediction`` (class or number),
        ``prediction_value`` (probability of the second of two classes, of the predicted class when
        there are more, or the number), ``probability_<class>`` for each class, ``model_id``,
        ``request_id``, ``prediction_timestamp`` (UTC). Of a model of effects also ``measured_effect``,
        ``measured_lower``, ``measured_upper``: of patients with a predicted effect like the row's.

    Raises:
        InputError: a feature is missing or of another type, or the service refuses the rows.
        UnavailableError: the service cannot be reached (retried) or fails to answer.
    """
    answers, refused = _score(
        endpoint_url,
        frame,
        model_name=model_name,
        id_column=id_column,
        headers=headers,
        timeout=timeout,
        progress=progress,
    )
    if refused:
        raise InputError(
            f"{len(refused)} of {len(frame)} rows are refused, the first because {next(iter(refused.values()))}.",
            remedy="Correct them, or leave them out.",
        )
    return answers


def _score(
    endpoint_url: str,
    frame: pd.DataFrame,
    *,
    model_name: str | None,
    id_column: str | None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, dict[int, str]]:
    """The answers of :func:`score`, and why each row without one was refused, by its place in ``frame``."""
    import httpx
    import numpy as np
    import pandas as pd

    if id_column is not None and id_column not in frame.columns:
        raise InputError(
            f"The frame has no column {id_column}.",
            remedy="Pass id_column=None to send no patient identifiers.",
        )
    with httpx.Client(
        base_url=endpoint_url, timeout=timeout, headers=dict(headers or {}), verify=authorities()
    ) as client:
        described, max_batch = _described(client, model_name)
        signature = Signature(features=described["features"])
        records = to_records(signature, frame)
        patients = (
            [None] * len(frame)
            if id_column is None
            else frame[id_column].astype("object").where(frame[id_column].notna(), None).tolist()
        )
        answers: list[dict[str, Any]] = []
        refused: dict[int, str] = {}
        for start in range(0, len(records), max_batch):
            instances = [
                {"features": features} | ({} if patient is None else {"patient_id": str(patient)})
                for features, patient in zip(
                    records[start : start + max_batch], patients[start : start + max_batch], strict=True
                )
            ]
            answer, wrong = _ask(
                client, f"/{described['model_name']}/predict_batch", {"instances": instances}
            )
            refused |= {start + place: reason for place, reason in wrong.items()}
            if answer is not None:
                answers.append(answer)
            if progress is not None:
                progress(min(start + max_batch, len(records)), len(records))
    scored = _frame(answers, described["classes"])
    answered = np.ones(len(frame), dtype=bool)
    answered[list(refused)] = False
    scored.index = frame.index[answered]
    if id_column is not None:
        scored.insert(0, id_column, frame.loc[answered, id_column])
    if scored.empty:
        scored["prediction_timestamp"] = pd.to_datetime(scored["prediction_timestamp"], utc=True)
    return scored, refused


def score_answerable(
    endpoint_url: str, frame: pd.DataFrame, *, model_name: str, id_column: str = "patient_id", **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """:func:`score` for the rows that the model can answer; the others wait and do not stop them.

    Returns:
        The answers, and of each row that waits the id column and ``reason``: the features without a value that the
        model never saw missing, or what the service says against the row.

    Raises:
        InputError, UnavailableError: as :func:`score`, for what is wrong with the whole frame.
    """
    import httpx
    import numpy as np
    import pandas as pd

    timeout = options.get("timeout", 30.0)
    with httpx.Client(base_url=endpoint_url, timeout=timeout, verify=authorities()) as client:
        described, _ = _described(client, model_name)
    features = Signature(features=described["features"]).features
    numbers = [
        feature.name
        for feature in features
        if feature.type in ("double", "long") and feature.name in frame.columns
    ]
    # JSON has no infinity, so a request with one could not even be written.
    infinite = frame[numbers].isin([float("inf"), float("-inf")])
    always = [
        feature.name for feature in features if not feature.may_be_missing and feature.name in frame.columns
    ]
    lacking = frame[always].isna()
    reasons = pd.Series(pd.NA, frame.index, dtype="string")
    reasons[infinite.any(axis=1)] = [f"{names} is not finite" for names in _named(infinite)]
    reasons[lacking.any(axis=1)] = [
        f"no value of {names}, which the model never saw missing" for names in _named(lacking)
    ]
    asked = reasons.isna().to_numpy(dtype=bool)
    answers, refused = _score(
        endpoint_url, frame[asked], model_name=model_name, id_column=id_column, **options
    )
    reasons.iloc[np.flatnonzero(asked)[list(refused)]] = list(refused.values())
    waiting = pd.DataFrame({id_column: frame[id_column], "reason": reasons})[reasons.notna()]
    return answers, waiting


def with_waiting(answers: pd.DataFrame, waiting: pd.DataFrame) -> pd.DataFrame:
    """``answers`` and, after them, the rows that wait: without an answer, ``reason`` says why."""
    import pandas as pd

    answers = answers.assign(reason=pd.Series(pd.NA, answers.index, dtype="string"))
    rest = waiting.reindex(columns=answers.columns).astype(answers.dtypes.to_dict(), errors="ignore")
    return pd.concat([answers, rest]) if len(waiting) else answers


def waiting_words(waiting: pd.DataFrame) -> str:
    """How many rows wait, and for what; empty when none does."""
    reasons = [f"{count:,} with {reason}" for reason, count in waiting["reason"].value_counts().items()]
    if not reasons:
        return ""
    rest = len(reasons) - 3
    more = f"; {rest} more {'reason' if rest == 1 else 'reasons'}" if rest > 0 else ""
    who = "1 patient waits" if len(waiting) == 1 else f"{len(waiting):,} patients wait"
    return f"{who} without an answer: {'; '.join(reasons[:3])}{more}"


def _frame(answers: list[dict[str, Any]], classes: list[Any] | None) -> pd.DataFrame:
    import pandas as pd

    predictions = [prediction for answer in answers for prediction in answer["predictions"]]
    columns: dict[str, Any] = {"prediction": predictions}
    if classes is None:
        columns["prediction_value"] = pd.Series(predictions, dtype="float64")
        measured = [effect for answer in answers for effect in answer.get("measured_effects") or ()]
        if measured:
            for name in ("effect", "lower", "upper"):
                columns[f"measured_{name}"] = [effect[name] for effect in measured]
    else:
        names = [str(label) for label in classes]
        rows = [row for answer in answers for row in answer["probabilities"]]
        probabilities = pd.DataFrame(rows, columns=names, dtype="float64")
        columns["prediction_value"] = (
            probabilities[names[1]] if len(names) == 2 else probabilities.max(axis=1)
        ).astype("float64")
        columns |= {f"probability_{name}": probabilities[name] for name in names}
    sizes = [len(answer["predictions"]) for answer in answers]
    for name, values in {
        "model_id": [answer["model_id"] for answer in answers],
        "request_id": [answer["_metadata"]["request_id"] for answer in answers],
        "prediction_timestamp": [answer["_metadata"]["timestamp"] for answer in answers],
    }.items():
        columns[name] = [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
    frame = pd.DataFrame(columns)
    frame["prediction_timestamp"] = pd.to_datetime(frame["prediction_timestamp"], utc=True)
    return frame


def _described(client: httpx.Client, model_name: str | None) -> tuple[dict[str, Any], int]:
    body = _send(client, "GET", "/models", None)
    models = {entry["model_name"]: entry for entry in body["models"]}
    if model_name is None and len(models) == 1:
        model_name = next(iter(models))
    if model_name not in models:
        asked = "No model was named" if model_name is None else f"The model {model_name} is not served"
        raise InputError(
            f"{asked}.",
            field="model_name",
            value=model_name,
            remedy=f"Name one of: {', '.join(sorted(models))}.",
        )
    return models[model_name], body["max_batch"]


def _named(wrong: pd.DataFrame) -> list[str]:
    """The columns that are true in each row with one."""
    cells = wrong.to_numpy(dtype=bool)
    return [
        ", ".join(name for name, is_wrong in zip(wrong.columns, row, strict=True) if is_wrong)
        for row in cells[cells.any(axis=1)]
    ]


def _ask(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[int, str]]:
    """The answers of a batch (None when no row got one), and why each row without one was refused, by its place.

    Raises:
        InputError: something else than single rows is wrong.
    """
    response = _sent(client, "POST", path, body)
    if response.status_code == 207:
        answer = response.json()
        wrong = _wrong_rows(answer["problems"])
        for name in ("predictions", "probabilities", "measured_effects"):
            if answer.get(name) is not None:
                answer[name] = [value for place, value in enumerate(answer[name]) if place not in wrong]
        return answer, wrong
    if response.status_code == 422:
        wrong = _wrong_rows(response.json()["error"]["problems"])
        if len(wrong) == len(body["instances"]):
            return None, wrong
    return _answer(response), {}


def _wrong_rows(problems: list[dict[str, str]]) -> dict[int, str]:
    """What is wrong with each row of a batch, in order, from the fields ``instances.<place>.<field>``."""
    found: dict[int, list[str]] = {}
    for problem in problems:
        parts = problem["field"].split(".", 2)
        if len(parts) > 1 and parts[0] == "instances":
            name = parts[2].removeprefix("features.") if len(parts) > 2 else "the row"
            found.setdefault(int(parts[1]), []).append(f"{name} {problem['problem']}")
    return {place: "; ".join(found[place]) for place in sorted(found)}


def _send(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    return _answer(_sent(client, method, path, body))


def _sent(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
    """One request; connections that fail, and a service that is just starting, are tried again."""
    import httpx

    # The same id at each attempt: an answer that was lost on the way can be found in the log.
    headers = {"x-request-id": uuid.uuid4().hex}
    for pause in (*_PAUSES, None):
        try:
            response = client.request(method, path, json=body, headers=headers)
        except httpx.TransportError as error:
            if pause is None:
                raise UnavailableError(
                    f"The service at {client.base_url} cannot be reached ({type(error).__name__}).",
                    remedy="See `e2i status`; start it with `make ui` or deploy again.",
                ) from None
        else:
            if response.status_code != 503 or pause is None:
                return response
        time.sleep(pause)
    raise AssertionError("unreachable")


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code == 200:
        return response.json()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    path = response.request.url.path
    found = f"{path} answered {response.status_code}: {message}"
    if 400 <= response.status_code < 500:
        raise InputError(found, file=path, remedy="Correct the request as the answer says.")
    raise UnavailableError(
        found, file=path, remedy="See `e2i status`; the reason is in the log of the service."
    )
