"""The application that answers requests, and the BentoML service it is mounted into.

Routes: ``POST /predict``, ``POST /{model_name}/predict``, ``POST /predict_batch``,
``POST /{model_name}/predict_batch``, ``GET /models``, ``GET /health``, ``GET /metrics``, the pages ``/`` and
``/docs`` for people; ``/livez`` and ``/readyz`` are BentoML's. A batch may also be an Arrow stream or a Parquet file.
``/predict`` and ``/predict_batch`` answer for the only model of a release; when there are several, the
body or the path must name one, since two models that take the same features would both answer and only
one is meant.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import parse_qsl

# FastAPI reads annotations from the module, so its names must be here. Only processes that serve and
# the build import this module.
import pandas as pd
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic_core import to_json

from e2i_dagster.errors import ConfigError, UnavailableError, VerdictError
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.serving import audit
from e2i_dagster.serving.columnar import (
    ARROW,
    PARQUET,
    ArrowAnswer,
    Columnar,
    accepts_arrow,
    answer_columns,
    log_lines,
    parts,
)
from e2i_dagster.serving.explained import RowExplainer
from e2i_dagster.serving.health import GAUGE, Answers, Level
from e2i_dagster.serving.models import LoadedModel, Predicted, load_model
from e2i_dagster.serving.release import Manifest, ReleasedModel
from e2i_dagster.serving.request_schema import (
    Batch,
    ErrorResponse,
    OnlineFeatures,
    PartialResponse,
    PredictionResponse,
    RequestError,
    RequestSchema,
    Row,
    decode,
    request_schema,
)
from e2i_dagster.serving.state import (
    FORWARD_HEADER,
    PROBE_HEADER,
    ColourSettings,
    journal_folder,
)
from e2i_dagster.serving.watch import watch_supervisor

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from e2i_dagster.features.online import OnlinePatient, OnlinePatients

logger = logging.getLogger(__name__)

#: Names the file with the :class:`ColourSettings` of the process.
SETTINGS_VARIABLE = "E2I_COLOUR_SETTINGS"

Route = Literal["predict", "predict_batch"]
#: Route and the model that its path names.
Target = tuple[Route, str | None]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PROBE = PROBE_HEADER.encode()
_HEADERS_READ = frozenset(
    (b"x-request-id", b"content-length", b"content-type", b"accept", FORWARD_HEADER, _PROBE)
)
#: A larger batch of columns waits in a file that has no name, bytes.
_TABLE_IN_MEMORY = 16 * 1024 * 1024
#: A model that is not served is refused in the words of this service.
_PREDICTION_PATH = re.compile(r"^/(?P<name>[^/]+)/(?P<route>predict|predict_batch)$")
#: How often the gauge of a model's health is set, seconds.
_LEVEL_SECONDS = 1.0
_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.:\-]{1,100}$")


class Meters:
    """Prometheus metrics; made in the worker, after BentoML has set its multi-process folder."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        kept = registry or REGISTRY
        self.requests = Counter(
            "e2i_model_requests_total",
            "Requests by model and HTTP status.",
            ["model_name", "route", "status"],
            registry=kept,
        )
        self.errors = Counter(
            "e2i_model_errors_total",
            "Requests that got no prediction, by model and kind of error.",
            ["model_name", "code"],
            registry=kept,
        )
        # Buckets of the prior platform, .005 to 5 s.
        self.latency = Histogram(
            "e2i_model_request_latency_seconds",
            "Time from the whole request to the answer, by model.",
            ["model_name", "route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            registry=kept,
        )
        self.health = Gauge(
            "e2i_model_health_status",
            "1 healthy, 0.5 degraded, 0 unhealthy; the worst worker counts.",
            ["model_name"],
            multiprocess_mode="livemin",
            registry=kept,
        )
        self.dropped = Counter(
            "e2i_audit_dropped_total", "Answers that are missing in the prediction log.", registry=kept
        )


@dataclass(frozen=True)
class Asked:
    """What is known of a request beside its rows.

    Attributes:
        key: begins the keys of its rows in the prediction log.
        probe: a comparison of a deployment, neither logged nor counted.
        began: clock when the whole head had come, seconds.
    """

    request_id: str
    key: str
    probe: bool
    began: float


class ClientGoneError(Exception):
    """The client went away before its whole request had come."""


class AnswerBrokenError(Exception):
    """A part of an answer could not be made after others were sent: the connection ends."""


class ServedModel:
    """A model of the release while it is served."""

    def __init__(self, released: ReleasedModel, loaded: LoadedModel, answers: Answers, stage: str) -> None:
        self.released = released
        self.loaded = loaded
        self.answers = answers
        self.stage = stage
        self.queue = Queue(self)


#: A model asked on the loop of the process may hold up other requests for this many rows.
_ROWS_ON_LOOP = 256


class Queue:
    """Rows of requests that come together are one question to the model.

    Requests that were read in one turn of the loop, or that came while the model worked, are asked as one. Nobody
    waits for others to come. A compiled model answers on the loop itself: handing one row to a thread costs as much
    as the answer.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._waiting: list[tuple[Sequence[Sequence[Any]], asyncio.Future[Any]]] = []
        self._working = False

    async def answer(self, rows: Sequence[Sequence[Any]]) -> Any:
        """What :meth:`LoadedModel.raw` gives for ``rows``; raises what it raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((rows, future))
        if not self._working:
            self._working = True
            loop.call_soon(self._next)
        return await future

    def _next(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            self._working = False
            return
        count = sum(len(rows) for rows, _ in waiting)
        loop = asyncio.get_running_loop()
        if self._model.loaded.compiled and count <= _ROWS_ON_LOOP:
            self._give(waiting, self._ask_all(waiting))
            loop.call_soon(self._next)
            return

        def done(work: asyncio.Future[list[Any]]) -> None:
            self._give(waiting, work.result())
            self._next()

        loop.run_in_executor(None, self._ask_all, waiting).add_done_callback(done)

    def _ask_all(self, waiting: list[tuple[Sequence[Sequence[Any]], Any]]) -> list[Any]:
        """An answer or an exception for each; one that the model fails on does not stop the others."""
        try:
            together = self._ask([row for rows, _ in waiting for row in rows])
        except Exception as error:  # noqa: BLE001 - given to the request it belongs to
            if len(waiting) == 1:
                return [error]
            return [answer for request in waiting for answer in self._ask_all([request])]
        found, start = [], 0
        for rows, _ in waiting:
            found.append(together[start : start + len(rows)])
            start += len(rows)
        return found

    def _ask(self, rows: list[Sequence[Any]]) -> Any:
        return self._model.loaded.raw(self._model.released.signature, list(zip(*rows, strict=True)))

    @staticmethod
    def _give(waiting: list[tuple[Any, asyncio.Future[Any]]], answers: list[Any]) -> None:
        for (_, future), answer in zip(waiting, answers, strict=True):
            if future.done():  # the request was given up
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class Runtime:
    """What the application has once its process has started: models, log, metrics.

    Args:
        manifest: of the release.
        folder: the bento's source folder, where the models are.
        settings: of the colour.
        store: writes the prediction log; the warehouse by default.
        registry: of the metrics; Prometheus' own by default.

    Raises:
        VerdictError: a model's files or the library versions are not those of the release.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        settings: ColourSettings,
        *,
        store: audit.Store | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        policy = manifest.policy
        _require_libraries(manifest)
        self.settings = settings
        self.started = time.monotonic()
        self.models = {
            model.model_name: ServedModel(
                released=model,
                loaded=load_model(
                    folder / model.folder, model.files, policy, model.threshold, model.signature
                ),
                answers=Answers(policy.health),
                stage=settings.stages[model.model_id],
            )
            for model in manifest.models
        }
        self.meters = Meters(registry)
        self._online: dict[str, OnlinePatients] = {}
        self._opening = threading.Lock()
        self._counted: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._looked = 0.0
        for name in self.models:
            self.meters.health.labels(name).set(GAUGE["healthy"])
        self.journal = (
            audit.Journal(journal_folder(settings.state), store or audit.WarehouseStore(), policy.audit)
            if settings.audit
            else None
        )

    def find_online(self, scope: str, patient_id: str) -> OnlinePatient | None:
        """The online values of a patient, see :meth:`.OnlinePatients.find`; the first of a worker loads Feast."""
        from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
        from e2i_dagster.features.online import OnlinePatients
        from e2i_dagster.features.store import settings_for

        with self._opening:
            if scope not in self._online:
                self._online[scope] = OnlinePatients(
                    settings_for(scope, state=self.settings.state),
                    FeastMaterializationPolicy.load(config_folder()).freshness,
                )
        return self._online[scope].find(patient_id)

    def log(
        self, model: ServedModel, rows: Sequence[Row], predicted: Predicted, asked: Asked, at: datetime
    ) -> None:
        """Append the answers to the journal of the prediction log."""
        if self.journal is None:
            return
        probabilities = predicted.probabilities or [None] * len(rows)
        kept = self.journal.append(
            [
                audit.log_row(
                    prediction_id=f"live-{'' if row.online is None else 'online-'}{asked.key}-{place}",
                    request_id=asked.request_id,
                    model_id=model.released.model_id,
                    model_version=model.released.version,
                    features=row.features,
                    value=value,
                    prediction=prediction,
                    probabilities=probability,
                    patient_id=row.patient_id,
                    at=at,
                )
                for place, (row, value, prediction, probability) in enumerate(
                    zip(rows, predicted.values, predicted.predictions, probabilities, strict=True)
                )
            ]
        )
        if not kept:
            self.meters.dropped.inc(len(rows))

    def count(self, name: str, route: str, status: int, code: str, latency: float) -> None:
        """Count one answer in the metrics and, where it says something about the model, in its health."""
        counted = self._counted.get((name, route, status))
        if counted is None:
            counted = self._counted[name, route, status] = (
                self.meters.requests.labels(name, route, str(status)),
                self.meters.latency.labels(name, route),
            )
        counted[0].inc()
        counted[1].observe(latency)
        if status >= 400:
            self.meters.errors.labels(name, code).inc()
        model = self.models.get(name)
        # A refused request, or one whose features are not there (503), says nothing about the model.
        if model is not None and (status < 400 or status == 500):
            model.answers.add(latency * 1000, failed=status == 500)
            now = time.monotonic()
            # The level looks at all the last answers; once in a while is enough for who scrapes it.
            if status == 500 or now - self._looked > _LEVEL_SECONDS:
                self._looked = now
                self.meters.health.labels(name).set(GAUGE[model.answers.health().level])

    def close(self) -> None:
        """Store the rest of the prediction log."""
        if self.journal is not None:
            self.journal.close()


def _require_libraries(manifest: Manifest) -> None:
    from importlib.metadata import version

    differing = [
        f"{name} {version(name)} (release: {wanted})"
        for name, wanted in manifest.libraries.items()
        if version(name) != wanted
    ]
    if differing:
        raise VerdictError(
            f"The release was built with other library versions: {', '.join(differing)}.",
            remedy="Build it again.",
        )


class Application:
    """Routes of one release. The runtime is set when the process starts to serve."""

    def __init__(self, manifest: Manifest, version: str) -> None:
        self.manifest = manifest
        self.version = version
        self.runtime: Runtime | None = None
        self.schemas: dict[str, RequestSchema] = {
            model.model_name: request_schema(
                model.signature, model.model_name, manifest.policy.request.max_batch
            )
            for model in manifest.models
        }

    # -- answering ---------------------------------------------------------------------------------

    async def answer(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        """Answer one request of a prediction route."""
        runtime = self._running()
        began = time.perf_counter()
        route, name_in_path = target
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS_READ}
        given_id = headers.get(b"x-request-id", "")
        request_id = given_id if _REQUEST_ID.match(given_id) else uuid.uuid4().hex
        asked = Asked(
            request_id=request_id,
            key=headers.get(FORWARD_HEADER) or uuid.uuid4().hex,
            probe=headers.get(_PROBE) == runtime.settings.probe_token,
            began=began,
        )
        explaining = 0.0
        # Only names that are served become a label: anybody can ask for any name.
        name = name_in_path if name_in_path in runtime.models else "none"
        status, body, error_code = 500, b"", "internal"
        try:
            explain = _explain(scope["query_string"])
            kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if kind in (ARROW, PARQUET) and route == "predict_batch":
                if explain:
                    raise RequestError(
                        422, "not_explained", [("explain", "is answered for requests in JSON alone")]
                    )
                model = self._model(name_in_path, None)
                name = model.released.model_name
                await self._table(model, kind, headers, receive, send, asked)
                if not asked.probe:
                    runtime.count(name, route, 200, "", time.perf_counter() - began)
                return
            payload = decode(await self._body(headers, receive))
            model = self._model(name_in_path, payload)
            name = model.released.model_name
            schema = self.schemas[name]
            if route == "predict":
                patient = schema.patient_alone(payload)
                row = (
                    schema.row(payload) if patient is None else await self._looked_up(model, schema, patient)
                )
                batch = Batch([row], [])
            else:
                batch = schema.rows(payload)
            explainer = self._explainer(model, len(batch.rows)) if explain else None
            body, explaining = await self._predict(
                model, batch, asked, single=route == "predict", explainer=explainer
            )
            status = 207 if batch.problems else 200
        except RequestError as error:
            status, error_code, body = (
                error.status,
                error.code,
                _error(error.code, str(error), error.problems),
            )
        except ClientGoneError:
            return
        except AnswerBrokenError:
            raise
        # A defect of the model must not look like one of the request, nor show a value of it: messages
        # of scikit-learn quote values, so neither the answer nor the log repeats them.
        except Exception as error:  # noqa: BLE001
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            logger.error(
                "Request %s to %s failed with %s at\n%s", request_id, name, type(error).__name__, where
            )
            message = (
                f"The model failed ({type(error).__name__}); the service's log has request {request_id}."
            )
            body = _error("internal", message, [])
        if not asked.probe:
            # Explanations say nothing about how fast predictions are.
            runtime.count(name, route, status, error_code, time.perf_counter() - began - explaining)
        await _send(send, status, body, request_id, close=status == 413)

    async def _table(
        self,
        model: ServedModel,
        kind: str,
        headers: Mapping[bytes, str],
        receive: Receive,
        send: Send,
        asked: Asked,
    ) -> None:
        """Answer a batch of columns part by part."""
        if not accepts_arrow(headers.get(b"accept", "")):
            raise RequestError(406, "not_acceptable", [("accept", f"must allow {ARROW}")])
        limit = self.manifest.policy.request.max_table_bytes
        loop = asyncio.get_running_loop()
        with tempfile.SpooledTemporaryFile(_TABLE_IN_MEMORY) as body:
            async for part in _received(headers, receive, limit):
                body.write(part)
            body.seek(0)
            answers = self._parts(model, body, kind, asked)
            started = False
            try:
                while (part := await loop.run_in_executor(None, next, answers, None)) is not None:
                    if not started:
                        started = True
                        await _start(send, 200, asked.request_id, (b"content-type", ARROW.encode()))
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except Exception as error:
                if started:
                    raise AnswerBrokenError from error
                raise
            await send({"type": "http.response.body", "body": b""})

    def _parts(self, model: ServedModel, body: Any, kind: str, asked: Asked) -> Iterator[bytes]:
        """The answer to a batch of columns in parts; each part's answers are in the journal before it is sent."""
        runtime = self._running()
        released, loaded = model.released, model.loaded
        schema, batches = parts(body, kind)
        request = Columnar(schema, released.signature)
        answer = ArrowAnswer(
            loaded,
            patient=request.has_patient,
            metadata={
                "model_id": released.model_id,
                "request_id": asked.request_id,
                "slot": runtime.settings.slot,
                "stage": model.stage,
                "release": self.version,
            },
        )
        done = 0
        for batch in batches:
            columns, problems, warnings = request.read(batch)
            usable = pd.isna(problems)
            if not usable.all():
                columns = [column[usable] for column in columns]
            answers = answer_columns(loaded, loaded.raw(released.signature, columns)) if usable.any() else {}
            patients = batch.column("patient_id").cast("string") if request.has_patient else None
            if runtime.journal is not None and not asked.probe and usable.any():
                lines = log_lines(
                    key=asked.key,
                    start=done,
                    request_id=asked.request_id,
                    model_id=released.model_id,
                    model_version=released.version,
                    at=audit.now(),
                    names=released.signature.names,
                    columns=columns,
                    answers=answers,
                    patients=None if patients is None else patients.filter(usable).to_pylist(),
                )
                if not runtime.journal.append_lines(lines, int(usable.sum())):
                    runtime.meters.dropped.inc(int(usable.sum()))
            done += int(usable.sum())
            yield answer.part(answers, usable, problems, warnings, patients)
        yield answer.end()

    async def _body(self, headers: Mapping[bytes, str], receive: Receive) -> bytes:
        limit = self.manifest.policy.request.max_body_bytes
        return b"".join([part async for part in _received(headers, receive, limit)])

    def _model(self, name_in_path: str | None, payload: Any) -> ServedModel:
        models = self._running().models
        known = ", ".join(sorted(models))
        named = payload.get("model_name") if isinstance(payload, dict) else None
        if named is not None and not isinstance(named, str):
            raise RequestError(422, "invalid_request", [("model_name", "must be text")])
        if name_in_path is not None and named is not None and named != name_in_path:
            raise RequestError(422, "invalid_request", [("model_name", "differs from the model in the path")])
        name = name_in_path or named
        if name is None:
            if len(models) == 1:
                return next(iter(models.values()))
            raise RequestError(
                422,
                "model_not_named",
                [("model_name", f"is missing; this service has several models, name one of: {known}")],
            )
        if name not in models:
            raise RequestError(404, "unknown_model", [("model_name", f"is not served; known: {known}")])
        return models[name]

    async def _looked_up(self, model: ServedModel, schema: RequestSchema, patient_id: str) -> Row:
        """The row of a patient with the features that are online.

        Raises:
            RequestError: 404, nothing of the patient is online; 422, the model cannot be asked with what is; 503, the
                store cannot be read.
        """
        scope = model.released.scope
        if scope is None:
            why = "cannot be looked up: the model belongs to no scope; send the features"
            raise RequestError(422, "not_online", [("patient_id", why)])
        try:
            # On a thread: other requests are answered meanwhile.
            found = await asyncio.get_running_loop().run_in_executor(
                None, self._running().find_online, scope, patient_id
            )
        except (UnavailableError, ConfigError) as error:
            logger.warning("Online features of %s: %s", scope, error)
            raise RequestError(503, "features_unavailable", [("patient_id", str(error))]) from None
        if found is None:
            why = f"is not known: no features of this patient are online for {scope}; send the features"
            raise RequestError(404, "unknown_patient", [("patient_id", why)])
        online = OnlineFeatures(version=found.version, views=found.views)
        return schema.online_row(patient_id, found.values, online)

    def _explainer(self, model: ServedModel, rows: int) -> RowExplainer:
        """What explains the rows of ``model``.

        Raises:
            RequestError: 422, there is no exact explanation; 413, too many rows.
        """
        limit = self.manifest.policy.request.max_explained
        if model.loaded.explainer is None:
            why = f"is not possible: {model.loaded.not_explained}"
            raise RequestError(422, "not_explained", [("explain", why)])
        if limit == 0:
            why = "is not possible: `request.max_explained` of this release is 0"
            raise RequestError(422, "not_explained", [("explain", why)])
        if rows > limit:
            raise RequestError(
                413,
                "batch_too_large",
                [("instances", f"has {rows} rows; at most {limit} are explained at once")],
            )
        return model.loaded.explainer

    async def _predict(
        self,
        model: ServedModel,
        batch: Batch,
        asked: Asked,
        *,
        single: bool,
        explainer: RowExplainer | None,
    ) -> tuple[bytes, float]:
        """The answer, and how long its explanation took, seconds."""
        runtime = self._running()
        rows = batch.usable
        started = time.perf_counter()
        raw = await model.queue.answer([row.values for row in rows])
        inside = time.perf_counter() - started
        predicted = model.loaded.answers(raw)
        explanation: dict[str, Any] | None = None
        explaining = 0.0
        if explainer is not None:
            began = time.perf_counter()
            columns = list(zip(*(row.values for row in rows), strict=True))
            # On a thread: other requests are answered meanwhile.
            found = await asyncio.get_running_loop().run_in_executor(None, explainer.explain, columns)
            explanation = {**found, "rows": _in_place(batch, found["rows"])}
            explaining = time.perf_counter() - began
        at = audit.now()
        if not asked.probe:
            runtime.log(model, rows, predicted, asked, at)
        warnings = batch.warnings() if not single else _warnings(rows[0])
        answer: dict[str, Any] = {
            "predictions": _in_place(batch, predicted.predictions),
            "probabilities": _in_place(batch, predicted.probabilities),
            "model_id": model.released.model_id,
        }
        if predicted.measured is not None:
            answer["measured_effects"] = _in_place(batch, predicted.measured)
        if explanation is not None:
            answer["explanation"] = explanation
        if batch.problems:
            answer["problems"] = batch.problems
        answer["prediction_time_ms"] = round(inside * 1000, 3)
        answer["_metadata"] = {
            "model_name": model.released.model_name,
            "latency_ms": round((time.perf_counter() - asked.began) * 1000, 3),
            "timestamp": at.isoformat(),
            "slot": runtime.settings.slot,
            "stage": model.stage,
            "request_id": asked.request_id,
            "service": self.manifest.service,
            "release": self.version,
            **({"warnings": warnings} if warnings else {}),
        }
        if single and rows[0].online is not None:
            answer["_metadata"]["online_features"] = rows[0].online
        return to_json(answer), explaining

    # -- about the service -------------------------------------------------------------------------

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of ``/health``: the worst level of all models and of the log."""
        runtime = self._running()
        found = {name: model.answers.health() for name, model in runtime.models.items()}
        log = runtime.journal.state() if runtime.journal is not None else None
        levels: list[Level] = [health.level for health in found.values()]
        if log is not None and (log.dropped or log.refused):
            levels.append("degraded")
        level = min(levels, key=lambda candidate: GAUGE[candidate])
        body = {
            "status": level,
            "service": self.manifest.service,
            "release": self.version,
            "slot": runtime.settings.slot,
            "colour": runtime.settings.colour,
            "uptime_seconds": round(time.monotonic() - runtime.started, 3),
            "models": [
                {
                    "model_name": name,
                    "model_id": model.released.model_id,
                    "stage": model.stage,
                    "status": found[name].level,
                    "answers": found[name].answers,
                    "error_rate": found[name].error_rate,
                    "latency_p95_ms": found[name].latency_ms,
                }
                for name, model in runtime.models.items()
            ],
            "prediction_log": None
            if log is None
            else {
                "pending_bytes": log.pending_bytes,
                "stored": log.stored,
                "dropped": log.dropped,
                "refused": log.refused,
                "problem": log.problem,
            },
        }
        return (503 if level == "unhealthy" else 200), body

    def models(self) -> dict[str, Any]:
        """Body of ``/models``: what each model takes."""
        runtime = self._running()
        return {
            "models": [
                {
                    "model_name": model.model_name,
                    "version": model.version,
                    "model_id": model.model_id,
                    "stage": runtime.settings.stages[model.model_id],
                    "problem_type": model.problem_type,
                    "scope": model.scope,
                    "threshold": model.threshold,
                    "classes": runtime.models[model.model_name].loaded.classes,
                    "features": [feature.model_dump() for feature in model.signature.features],
                    "digest": model.digest,
                    "explains": runtime.models[model.model_name].loaded.explains,
                }
                for model in self.manifest.models
            ],
            "max_batch": self.manifest.policy.request.max_batch,
            "max_explained": self.manifest.policy.request.max_explained,
        }

    def page(self) -> str:
        """The page at ``/``: what the service answers for and where to go on. It loads nothing."""
        from e2i_dagster.display import Table
        from e2i_dagster.reports.page import Link, Section, html_page

        _, health = self.health()
        models = [
            [entry["model_name"], entry["model_id"], entry["stage"], entry["status"], entry["answers"]]
            for entry in health["models"]
        ]
        links = [
            Link("docs", "How to ask: every route, with a form to try it"),
            Link("models", "Models and the features they take (JSON)"),
            Link("health", "Health (JSON)"),
            Link("metrics", "Metrics (Prometheus)"),
            Link("openapi.json", "OpenAPI document (JSON)"),
        ]
        return html_page(
            f"e2i {self.manifest.service}",
            [
                Section("Models", [Table(("model", "version", "stage", "health", "recent answers"), models)]),
                Section("Pages", links),
            ],
            subtitle=f"Slot {health['slot']}, release {self.version}, {health['status']}",
        )

    def _running(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeError("The application got a request before its process had started.")
        return self.runtime


def _in_place(batch: Batch, answers: Sequence[Any] | None) -> list[Any] | None:
    """``answers`` of the usable rows at the places of their rows, None at the others."""
    if answers is None:
        return None
    given = iter(answers)
    return [None if row is None else next(given) for row in batch.rows]


def _explain(query: bytes) -> bool:
    """Whether a request asks for explanations.

    Raises:
        RequestError: 422, it says neither true nor false, or more than one thing.
    """
    if b"explain" not in query:
        return False
    given = [value for name, value in parse_qsl(query.decode("latin-1"), True) if name == "explain"]
    if not given:
        return False
    if given not in (["true"], ["false"]):
        raise RequestError(422, "invalid_request", [("explain", "must be true or false, once")])
    return given == ["true"]


def _error(code: str, message: str, problems: list[dict[str, str]]) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "problems": problems}}).encode()


def _warnings(row: Row) -> list[dict[str, str]]:
    found = [{"field": f"features.{name}", "problem": problem} for name, problem in row.warnings]
    if row.online is None:
        return found
    return found + [
        {
            "field": "patient_id",
            "problem": f"has stale values of {view.view}: they were put online {view.hours_online:g} hours ago",
        }
        for view in row.online.views
        if view.status == "stale"
    ]


async def _received(headers: Mapping[bytes, str], receive: Receive, limit: int) -> AsyncIterator[bytes]:
    """The body of a request as it comes.

    Raises:
        RequestError: 413, it is larger than ``limit`` bytes; before any of it is read, where its length is given.
        ClientGoneError: the client went away.
    """
    too_large = RequestError(
        413, "body_too_large", [("body", f"is larger than {limit} bytes; send fewer rows at once")]
    )
    length = headers.get(b"content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        yield part
        more = message.get("more_body", False)


async def _start(send: Send, status: int, request_id: str, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"x-request-id", request_id.encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Send, status: int, body: bytes, request_id: str, *, close: bool) -> None:
    more = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if close:
        # The rest of the request is not read.
        more.append((b"connection", b"close"))
    await _start(send, status, request_id, *more)
    await send({"type": "http.response.body", "body": body})


class Predictions:
    """ASGI application: prediction routes go to ``holder`` at once, everything else to ``app``.

    The routes are known to ``app`` too, which describes them. Its own way to them would cost each request more
    than the model.
    """

    def __init__(self, app: FastAPI, holder: Application, targets: Mapping[str, Target]) -> None:
        self._app = app
        self._holder = holder
        self._targets = targets

    @property
    def routes(self) -> list[Any]:
        """The routes of ``app``: its pages build the addresses of what they load from those of what is mounted."""
        return self._app.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"]
            target = self._targets.get(path)
            if target is None and (unknown := _PREDICTION_PATH.match(path)):
                target = (cast("Route", unknown["route"]), unknown["name"])
            if target is not None:
                await self._holder.answer(scope, receive, send, target)
                return
        await self._app(scope, receive, send)


def application(manifest: Manifest, version: str) -> tuple[Predictions, Application]:
    """The application of a release, and the object that holds its state."""
    from fastapi_swagger import patch_fastapi

    holder = Application(manifest, version)
    app = FastAPI(
        title=f"e2i {manifest.service}",
        version=version,
        description="Predictions of registered models. Requests are checked against the model's signature.",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    patch_fastapi(
        app,
        redirect_from_root_to_docs=False,
        # Swagger UI would have the document judged by a service of its makers.
        swagger_ui_parameters={"tryItOutEnabled": True, "validatorUrl": None},
    )
    single = {name: (schema.single, schema.patient) for name, schema in holder.schemas.items()}
    batch = {name: (schema.batch,) for name, schema in holder.schemas.items()}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": description}
        for status, description in (
            (400, "The body is not JSON."),
            (404, "The model is not served, or nothing of the patient is online."),
            (413, "Too many rows, or too large a body."),
            (
                422,
                "A field is missing, unknown or of the wrong type; each is named. Of a batch: no row can be used, or "
                "what is wrong is no row. Or the rows of the model cannot be explained.",
            ),
            (500, "The model failed."),
            (503, "The features of the patient cannot be looked up now; the problem says what to do."),
        )
    }

    partly: dict[int | str, dict[str, Any]] = {
        207: {
            "model": PartialResponse,
            "description": "Some rows cannot be used: null in their place, each wrong field named in `problems`; the "
            "others are answered and are in the prediction log.",
        }
    }

    targets: dict[str, Target] = {}

    def post(
        path: str, route: Route, models: Mapping[str, tuple[Any, ...]], name_in_path: str | None, summary: str
    ) -> None:
        async def endpoint() -> None:
            raise AssertionError("answered before FastAPI is asked")

        targets[path] = (route, name_in_path)
        references = [
            {"$ref": f"#/components/schemas/{body.__name__}"} for bodies in models.values() for body in bodies
        ]
        app.post(
            path,
            summary=summary,
            name=f"{route} {name_in_path or ''}".strip(),
            response_model=PredictionResponse,
            responses=errors if route == "predict" else errors | partly,
            openapi_extra={
                "parameters": [_EXPLAIN],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": references[0] if len(references) == 1 else {"anyOf": references}
                        },
                        **(_TABLES if route == "predict_batch" else {}),
                    },
                },
            },
        )(endpoint)

    post("/predict", "predict", single, None, "Predict one row")
    post("/predict_batch", "predict_batch", batch, None, "Predict a batch of rows")
    for name in holder.schemas:
        post(f"/{name}/predict", "predict", {name: single[name]}, name, f"Predict one row with {name}")
        post(
            f"/{name}/predict_batch",
            "predict_batch",
            {name: batch[name]},
            name,
            f"Predict a batch of rows with {name}",
        )

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(holder.page())

    @app.get("/health", summary="Health of the service and of each model")
    async def health() -> JSONResponse:
        status, body = holder.health()
        return JSONResponse(body, status)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(*_metrics())

    @app.get("/models", summary="The models and the features they take")
    async def models() -> JSONResponse:
        return JSONResponse(holder.models())

    @app.api_route("/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def nothing_here(path: str, request: Request) -> Response:
        return _nothing_here(app, path, request)

    _describe_requests(app, [body for bodies in (*single.values(), *batch.values()) for body in bodies])
    return Predictions(app, holder, targets), holder


def _metrics() -> tuple[bytes, int, dict[str, str]]:
    """The metrics of all workers, for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(registry), 200, {"content-type": CONTENT_TYPE_LATEST}


def _nothing_here(app: FastAPI, path: str, request: Request) -> Response:
    """The answer to GET of a path that is none of ours.

    Without it BentoML, behind this application, answers with a page and a document that name other hosts.
    """
    from starlette.routing import Match

    other = any(route.matches(request.scope)[0] is Match.PARTIAL for route in app.routes)
    if other:
        body = _error("method_not_allowed", f"/{path} is asked with POST; /docs has a form to try it.", [])
        return Response(body, 405, {"allow": "POST"}, media_type="application/json")
    body = _error("not_found", f"There is nothing at /{path}; / names what there is.", [])
    return Response(body, 404, media_type="application/json")


_EXPLAIN = {
    "name": "explain",
    "in": "query",
    "required": False,
    "description": "`true`: the answer has `explanation`, what each feature of a row adds to the model's output (exact "
    "SHAP values). Of requests in JSON alone, of a batch up to the service's `max_explained` rows. 422 "
    "`not_explained` says why a model's rows cannot be explained exactly.",
    "schema": {"type": "boolean", "default": False},
}

#: Bodies of a scoring job, in the OpenAPI document.
_TABLES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (ARROW, PARQUET)}


def _describe_requests(app: FastAPI, models: list[Any]) -> None:
    """Add the request bodies to the OpenAPI document: the routes read the body themselves, so that
    its size is bounded before it is parsed, and FastAPI does not know them."""
    from pydantic.json_schema import models_json_schema

    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def bento_service(folder: Path) -> Any:
    """The BentoML service of the release whose manifest is in ``folder``.

    Models are loaded when a worker process starts, not when the module is imported: BentoML imports
    it to build and in its parent process too.
    """
    import bentoml

    manifest = Manifest.read(folder)
    service_policy = manifest.policy.services[manifest.service]
    app, holder = application(manifest, manifest.version)
    # Where it is only built there are none.
    settings = _settings() if SETTINGS_VARIABLE in os.environ else None

    class Service:
        def __init__(self) -> None:
            start_worker(holder, folder)

        @bentoml.on_shutdown
        def close(self) -> None:
            if holder.runtime is not None:
                holder.runtime.close()

    Service.__name__ = Service.__qualname__ = manifest.service
    decorate: Callable[[type], Any] = bentoml.service(
        name=manifest.service,
        workers=settings.workers if settings is not None else manifest.policy.deployment.workers,
        resources={"cpu": str(service_policy.cpu), "memory": service_policy.memory},
        traffic={"timeout": manifest.policy.request.timeout_seconds},
        logging={"access": {"enabled": False}},
        # BentoML's own count every path that anybody asks for; ours are at the same address.
        metrics={"enabled": False},
    )
    return decorate(bentoml.asgi_app(app, path="/")(Service))


def _settings() -> ColourSettings:
    path = os.environ.get(SETTINGS_VARIABLE)
    if not path:
        raise ConfigError(
            f"{SETTINGS_VARIABLE} is not set: a bento is started by the supervisor (`e2i serve`), which knows "
            "slot and stages.",
            file=SETTINGS_VARIABLE,
            remedy="Start it with `e2i serve`.",
        )
    return ColourSettings.model_validate_json(Path(path).read_bytes())


def start_worker(holder: Application, folder: Path) -> None:
    """Load models and open the log in a worker process.

    Raises:
        ConfigError: the process has no settings.
        VerdictError: as in :class:`Runtime`. The reason is also written where the deployment looks.
    """
    settings = _settings()
    # What is imported for a model stays, as on the command line.
    gc.set_threshold(10_000)
    try:
        holder.runtime = Runtime(holder.manifest, folder, settings)
    except Exception as error:
        settings.failure.write_text(str(error) or type(error).__name__, encoding="utf-8")
        raise
    # Libraries and models stay as long as the worker: no answer waits for a search for garbage among them.
    gc.freeze()
    if settings.service:
        threading.Thread(
            target=watch_supervisor, args=(settings, os.getppid()), name="supervisor-watch", daemon=True
        ).start()
