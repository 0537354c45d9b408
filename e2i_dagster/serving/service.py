"""The application that answers requests, and the BentoML service it is mounted into.

Routes: ``POST /predict``, ``POST /{model_name}/predict``, ``POST /predict_batch``,
``POST /{model_name}/predict_batch``, ``GET /models``, ``GET /health``, the pages ``/`` and ``/docs`` for
people; ``GET /metrics``, ``/livez`` and ``/readyz`` are BentoML's, with our metrics among its own.
``/predict`` and ``/predict_batch`` answer for the only model of a release; when there are several, the
body or the path must name one, since two models that take the same features would both answer and only
one is meant.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# FastAPI reads annotations from the module, so its names must be here. Only processes that serve and
# the build import this module.
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.serving import audit
from e2i_dagster.serving.health import GAUGE, Answers, Level
from e2i_dagster.serving.models import LoadedModel, Predicted, load_model
from e2i_dagster.serving.release import Manifest, ReleasedModel
from e2i_dagster.serving.request_schema import (
    Batch,
    ErrorResponse,
    PartialResponse,
    PredictionResponse,
    RequestError,
    RequestSchema,
    decode,
    request_schema,
    to_frame,
)
from e2i_dagster.serving.state import PROBE_HEADER, ColourSettings, ProcessIdentity, journal_folder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

#: Names the file with the :class:`ColourSettings` of the process.
SETTINGS_VARIABLE = "E2I_COLOUR_SETTINGS"

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


@dataclass
class ServedModel:
    """A model of the release while it is served."""

    released: ReleasedModel
    loaded: LoadedModel
    answers: Answers
    stage: str


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
            one.model_name: ServedModel(
                released=one,
                loaded=load_model(folder / one.folder, one.files, policy, one.threshold),
                answers=Answers(policy.health),
                stage=settings.stages[one.model_id],
            )
            for one in manifest.models
        }
        self.meters = Meters(registry)
        for name in self.models:
            self.meters.health.labels(name).set(GAUGE["healthy"])
        self.journal = (
            audit.Journal(journal_folder(settings.state), store or audit.WarehouseStore(), policy.audit)
            if settings.audit
            else None
        )

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
            one.model_name: request_schema(one.signature, one.model_name, manifest.policy.request.max_batch)
            for one in manifest.models
        }

    # -- answering ---------------------------------------------------------------------------------

    async def answer(self, request: Request, route: str, name_in_path: str | None) -> Response:
        """Answer one request of ``route`` (``predict`` or ``predict_batch``)."""
        runtime = self._running()
        began = time.perf_counter()
        given_id = request.headers.get("x-request-id", "")
        request_id = given_id if _REQUEST_ID.match(given_id) else uuid.uuid4().hex
        probe = request.headers.get(PROBE_HEADER) == runtime.settings.probe_token
        # Only names that are served become a label: anybody can ask for any name.
        name = name_in_path if name_in_path in runtime.models else "none"
        status, body, error_code = 500, b"", "internal"
        try:
            payload = decode(await self._body(request))
            model = self._model(name_in_path, payload)
            name = model.released.model_name
            schema = self.schemas[name]
            batch = Batch([schema.row(payload)], []) if route == "predict" else schema.rows(payload)
            body = await self._predict(model, batch, request_id, began, probe=probe)
            status = 207 if batch.problems else 200
        except RequestError as error:
            status, error_code, body = (
                error.status,
                error.code,
                _error(error.code, str(error), error.problems),
            )
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
        latency = time.perf_counter() - began
        if not probe:
            self._count(name, route, status, error_code, latency)
        return _json(status, body, request_id)

    async def _body(self, request: Request) -> bytes:
        limit = self.manifest.policy.request.max_body_bytes
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise RequestError(
                    413,
                    "body_too_large",
                    [("body", f"is larger than {limit} bytes; send fewer rows at once")],
                )
            parts.append(part)
        return b"".join(parts)

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

    async def _predict(
        self, model: ServedModel, batch: Batch, request_id: str, began: float, *, probe: bool
    ) -> bytes:
        from anyio.to_thread import run_sync

        runtime = self._running()
        rows = batch.usable
        features = [row.features for row in rows]
        started = time.perf_counter()
        predicted: Predicted = await run_sync(
            lambda: model.loaded.predict(to_frame(model.released.signature, features))
        )
        inside = time.perf_counter() - started
        at = audit.now()
        if runtime.journal is not None and not probe:
            probabilities = predicted.probabilities or [None] * len(rows)
            kept = runtime.journal.append(
                [
                    audit.log_row(
                        request_id=request_id,
                        model_id=model.released.model_id,
                        model_version=model.released.version,
                        features=row.features,
                        value=value,
                        prediction=prediction,
                        probabilities=probability,
                        patient_id=row.patient_id,
                        at=at,
                    )
                    for row, value, prediction, probability in zip(
                        rows, predicted.values, predicted.predictions, probabilities, strict=True
                    )
                ]
            )
            if not kept:
                runtime.meters.dropped.inc(len(rows))
        return json.dumps(
            {
                "predictions": _in_place(batch, predicted.predictions),
                "probabilities": _in_place(batch, predicted.probabilities),
                "model_id": model.released.model_id,
                **(
                    {}
                    if predicted.measured is None
                    else {"measured_effects": _in_place(batch, predicted.measured)}
                ),
                **({"problems": batch.problems} if batch.problems else {}),
                "prediction_time_ms": round(inside * 1000, 3),
                "_metadata": {
                    "model_name": model.released.model_name,
                    "latency_ms": round((time.perf_counter() - began) * 1000, 3),
                    "timestamp": at.isoformat(),
                    "slot": runtime.settings.slot,
                    "stage": model.stage,
                    "request_id": request_id,
                    "service": self.manifest.service,
                    "release": self.version,
                },
            },
            allow_nan=False,
        ).encode()

    def _count(self, name: str, route: str, status: int, code: str, latency: float) -> None:
        runtime = self._running()
        runtime.meters.requests.labels(name, route, str(status)).inc()
        runtime.meters.latency.labels(name, route).observe(latency)
        if status >= 400:
            runtime.meters.errors.labels(name, code).inc()
        model = runtime.models.get(name)
        # A refused request says nothing about the model.
        if model is not None and (status < 400 or status >= 500):
            model.answers.add(latency * 1000, failed=status >= 500)
            runtime.meters.health.labels(name).set(GAUGE[model.answers.health().level])

    # -- about the service -------------------------------------------------------------------------

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of ``/health``: the worst level of all models and of the log."""
        runtime = self._running()
        found = {name: model.answers.health() for name, model in runtime.models.items()}
        log = runtime.journal.state() if runtime.journal is not None else None
        levels: list[Level] = [one.level for one in found.values()]
        if log is not None and (log.dropped or log.refused):
            levels.append("degraded")
        level = min(levels, key=lambda one: GAUGE[one])
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
                    "model_name": one.model_name,
                    "version": one.version,
                    "model_id": one.model_id,
                    "stage": runtime.settings.stages[one.model_id],
                    "problem_type": one.problem_type,
                    "scope": one.scope,
                    "threshold": one.threshold,
                    "classes": runtime.models[one.model_name].loaded.classes,
                    "features": [feature.model_dump() for feature in one.signature.features],
                    "digest": one.digest,
                }
                for one in self.manifest.models
            ],
            "max_batch": self.manifest.policy.request.max_batch,
        }

    def page(self) -> str:
        """The page at ``/``: what the service answers for and where to go on. It loads nothing."""
        from e2i_dagster.display import Table
        from e2i_dagster.reports.page import Link, Section, html_page

        _, health = self.health()
        models = [
            [one["model_name"], one["model_id"], one["stage"], one["status"], one["answers"]]
            for one in health["models"]
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


def _error(code: str, message: str, problems: list[dict[str, str]]) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "problems": problems}}).encode()


def _json(status: int, body: bytes, request_id: str) -> Response:
    return Response(body, status, {"x-request-id": request_id}, media_type="application/json")


def application(manifest: Manifest, version: str) -> tuple[FastAPI, Application]:
    """The FastAPI application of a release, and the object that holds its state."""
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
    single = {name: schema.single for name, schema in holder.schemas.items()}
    batch = {name: schema.batch for name, schema in holder.schemas.items()}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": description}
        for status, description in (
            (400, "The body is not JSON."),
            (404, "The model is not served."),
            (413, "Too many rows, or too large a body."),
            (
                422,
                "A field is missing, unknown or of the wrong type; each is named. Of a batch: no row can be used, or "
                "what is wrong is no row.",
            ),
            (500, "The model failed."),
        )
    }

    partly: dict[int | str, dict[str, Any]] = {
        207: {
            "model": PartialResponse,
            "description": "Some rows cannot be used: null in their place, each wrong field named in `problems`; the "
            "others are answered and are in the prediction log.",
        }
    }

    def post(
        path: str, route: str, models: Mapping[str, Any], name_in_path: str | None, summary: str
    ) -> None:
        async def endpoint(request: Request) -> Any:
            return await holder.answer(request, route, name_in_path)

        references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models.values()]
        app.post(
            path,
            summary=summary,
            name=f"{route} {name_in_path or ''}".strip(),
            response_model=PredictionResponse,
            responses=errors if route == "predict" else errors | partly,
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": references[0] if len(references) == 1 else {"anyOf": references}
                        }
                    },
                }
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

    @app.post("/{model_name}/predict", include_in_schema=False)
    async def predict_unknown(model_name: str, request: Request) -> Any:
        return await holder.answer(request, "predict", model_name)

    @app.post("/{model_name}/predict_batch", include_in_schema=False)
    async def predict_batch_unknown(model_name: str, request: Request) -> Any:
        return await holder.answer(request, "predict_batch", model_name)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(holder.page())

    @app.get("/health", summary="Health of the service and of each model")
    async def health() -> JSONResponse:
        status, body = holder.health()
        return JSONResponse(body, status)

    @app.get("/models", summary="The models and the features they take")
    async def models() -> JSONResponse:
        return JSONResponse(holder.models())

    @app.api_route("/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def nothing_here(path: str, request: Request) -> Response:
        return _nothing_here(app, path, request)

    _describe_requests(app, [*single.values(), *batch.values()])
    return app, holder


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
        workers=manifest.policy.deployment.workers,
        resources={"cpu": str(service_policy.cpu), "memory": service_policy.memory},
        traffic={"timeout": manifest.policy.request.timeout_seconds},
        logging={"access": {"enabled": False}},
    )
    return decorate(bentoml.asgi_app(app, path="/")(Service))


def start_worker(holder: Application, folder: Path) -> None:
    """Load models and open the log in a worker process.

    Raises:
        ConfigError: the process has no settings.
        VerdictError: as in :class:`Runtime`. The reason is also written where the deployment looks.
    """
    path = os.environ.get(SETTINGS_VARIABLE)
    if not path:
        raise ConfigError(
            f"{SETTINGS_VARIABLE} is not set: a bento is started by the supervisor (`e2i serve`), which knows "
            "slot and stages.",
            file=SETTINGS_VARIABLE,
            remedy="Start it with `e2i serve`.",
        )
    settings = ColourSettings.model_validate_json(Path(path).read_bytes())
    # What is imported for a model stays, as on the command line.
    gc.set_threshold(10_000)
    try:
        holder.runtime = Runtime(holder.manifest, folder, settings)
    except Exception as error:
        settings.failure.write_text(str(error) or type(error).__name__, encoding="utf-8")
        raise
    # Libraries and models stay as long as the worker: no answer waits for a search for garbage among them.
    gc.freeze()
    if settings.supervisor is not None:
        _end_with(settings.supervisor)


def _end_with(supervisor: ProcessIdentity) -> None:
    """End this worker when the supervisor or BentoML's parent process is gone: nobody else would."""
    import signal
    import threading

    parent = os.getppid()

    def watch() -> None:
        while supervisor.running() and os.getppid() == parent:
            time.sleep(0.5)
        if os.getppid() == parent:
            os.kill(parent, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        # The usual end stores the prediction log; what is left after this is in the journal.
        time.sleep(20)
        os._exit(1)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
