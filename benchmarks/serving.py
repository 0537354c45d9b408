"""Answers of a deployed service against `mlflow models serve` and bare FastAPI apps, on loopback in one run.

The same XGBoost pipeline answers everywhere, with one worker process and one thread each. Ours checks each request and
writes the prediction log; the others do neither. `bare` is a FastAPI app that gives the pipeline a frame of the
body; `bare_xgboost` one that takes numbers by position and asks XGBoost alone, without preprocessing or calibration.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CONCURRENCY = (1, 8, 32)
TABLE_ROWS = 100_000
MODEL = "e2i-benchmark"

_BARE = """
import sys
import numpy as np, pandas as pd, skops.io
from fastapi import Body, FastAPI
path = sys.argv[1]
pipeline = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
alone = pipeline.named_steps["model"].calibrated_classifiers_[0].estimator.estimator
app = FastAPI()
@app.post("/predict")
async def predict(body: dict = Body()):
    frame = pd.DataFrame([body["features"]]).fillna(np.nan)
    return {"probabilities": pipeline.predict_proba(frame).tolist()}
@app.post("/predict_batch")
async def predict_batch(body: dict = Body()):
    frame = pd.DataFrame([one["features"] for one in body["instances"]]).fillna(np.nan)
    return {"probabilities": pipeline.predict_proba(frame).tolist()}
@app.post("/numbers")
async def numbers(body: dict = Body()):
    return {"probabilities": alone.predict_proba(np.array(body["numbers"])).tolist()}
import uvicorn
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def patients(rows: int, seed: int = 0) -> pd.DataFrame:
    """Twelve numbers, of which one is sometimes missing, and three texts."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame({f"number_{i}": draw.normal(size=rows) for i in range(12)})
    frame.loc[draw.random(rows) < 0.2, "number_3"] = np.nan
    for i in range(3):
        frame[f"text_{i}"] = draw.choice(np.array(["north", "south", "east", "west"], dtype=object), rows)
    return frame


def stored_model(folder: Path) -> Any:
    """Train and store the model as the registry does."""
    import mlflow.sklearn

    from e2i_dagster.config.names import TRUSTED_TYPES
    from e2i_dagster.modelling.model_input import LabelledRows
    from e2i_dagster.registry.mlflow_runs import signature_of
    from e2i_dagster.splits.rows import VisibleRows
    from e2i_dagster.training import train

    parts = []
    for seed, rows in ((0, 4000), (1, 1500)):
        frame = patients(rows, seed)
        chance = 1 / (1 + np.exp(-(frame["number_0"] + frame["number_1"] * (frame["text_0"] == "north"))))
        target = (np.random.default_rng(seed).random(rows) < np.asarray(chance)).astype("int64")
        parts.append(LabelledRows(frame, target))
    parameters = {"n_estimators": 200, "max_depth": 5, "learning_rate": 0.05}
    model = train(VisibleRows(*parts), algorithm="XGBoost", parameters=parameters)
    mlflow.sklearn.save_model(
        model.pipeline,
        str(folder),
        signature=signature_of(model),
        serialization_format="skops",
        skops_trusted_types=list(TRUSTED_TYPES),
        pyfunc_predict_fn="predict_proba",
        metadata={
            "nullable": list(model.nullable),
            "seen_ranges": {name: list(ends) for name, ends in model.seen_ranges.items()},
        },
        pip_requirements=["scikit-learn", "skops", "xgboost"],
    )
    return model


async def _ask(port: int, request: bytes, ends: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < ends:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:15]:
                raise SystemExit(f"not answered: {head[:200]!r}")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            times.append(time.perf_counter() - began)
    finally:
        writer.close()


def load(port: int, path: str, body: Any, concurrency: int, seconds: float) -> tuple[float, float, float]:
    """Answers per second, and the median and 99th percentile of their times in milliseconds."""
    content = json.dumps(body).encode()
    headers = f"host: a\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    head = f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n"
    times: list[float] = []

    async def all_of_them() -> None:
        ends = time.perf_counter() + seconds
        await asyncio.gather(*(_ask(port, head.encode() + content, ends, times) for _ in range(concurrency)))

    asyncio.run(all_of_them())
    middle, high = (1000 * float(value) for value in np.percentile(times, (50, 99)))
    return len(times) / seconds, middle, high


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A server on ``port``, from its first accepted connection to the end of the block; yields its process number."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {command[:4]}")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_mb(pid: int) -> float:
    """Memory of a process and its children."""
    import psutil

    process = psutil.Process(pid)
    return sum(member.memory_info().rss for member in [process, *process.children(recursive=True)]) / 2**20


def table_speeds(url: str, model: Any) -> dict[str, float]:
    """Rows per second of one Arrow request and of the pipeline in this process; the better of two runs each."""
    import httpx
    import pyarrow as pa

    from e2i_dagster.serving.columnar import ARROW

    frame = patients(TABLE_ROWS, seed=3)
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    speeds: dict[str, float] = {"arrow": 0.0, "offline": 0.0}
    for _ in range(2):
        began = time.perf_counter()
        answer = httpx.post(
            f"{url}/predict_batch", content=content, headers={"content-type": ARROW}, timeout=120
        )
        answers = pa.ipc.open_stream(answer.raise_for_status().content).read_all()
        speeds["arrow"] = max(speeds["arrow"], TABLE_ROWS / (time.perf_counter() - began))
        began = time.perf_counter()
        expected = model.pipeline.predict_proba(frame)[:, 1]
        speeds["offline"] = max(speeds["offline"], TABLE_ROWS / (time.perf_counter() - began))
    np.testing.assert_allclose(answers["prediction_value"].to_numpy(), expected, atol=1e-9)
    print(
        f"{TABLE_ROWS:,} rows: Arrow {speeds['arrow']:,.0f}/s, offline {speeds['offline']:,.0f}/s",
        flush=True,
    )
    return speeds


def measure(state: Path, seconds: float) -> dict[str, Any]:
    """Deploy, start the others, ask each in turn."""
    from e2i_dagster.config.serving import ServingPolicy
    from e2i_dagster.serving.deployment import ParitySample, deploy
    from e2i_dagster.serving.endpoints import stop_all
    from e2i_dagster.serving.release import ModelToServe, build_release
    from e2i_dagster.serving.request_schema import Signature, to_records
    from e2i_dagster.serving.state import read_record

    folder = state / "model"
    model = stored_model(folder)
    policy = ServingPolicy.load()
    policy = policy.model_copy(update={"deployment": policy.deployment.model_copy(update={"workers": 1})})
    rows = patients(100, seed=2)
    records = to_records(Signature.of_model(folder), rows)
    instances = [{"features": record} for record in records]
    matrix = model.pipeline.named_steps["preprocess"].transform(rows).tolist()
    to_serve = ModelToServe(
        model_name=MODEL,
        version="1",
        folder=folder,
        problem_type="binary_classification",
        threshold=model.threshold,
    )
    release = build_release([to_serve], state=state, policy=policy)
    sample = ParitySample(rows, model.scores(rows))
    deployed = deploy(release, stages={MODEL: "staging"}, parity={MODEL: sample}, state=state, policy=policy)
    ours = int(deployed.url.rpartition(":")[2])
    bare, served = free_port(), free_port()
    script = state / "bare.py"
    script.write_text(_BARE, encoding="utf-8")
    mlflow = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "-p", str(served)]
    mlflow += ["--env-manager", "local", "-w", "1"]
    split = {"dataframe_split": rows.head(1).replace({np.nan: None}).to_dict("split")}
    split_100 = {"dataframe_split": rows.replace({np.nan: None}).to_dict("split")}
    try:
        with (
            running(
                [sys.executable, str(script), str(folder / "model.skops"), str(bare)], bare
            ) as bare_process,
            running(mlflow, served),
        ):
            asked: dict[tuple[str, str], tuple[int, str, Any]] = {
                ("ours", "one"): (ours, "/predict", instances[0]),
                ("bare", "one"): (bare, "/predict", instances[0]),
                ("bare_xgboost", "one"): (bare, "/numbers", {"numbers": matrix[:1]}),
                ("mlflow", "one"): (served, "/invocations", split),
                ("ours", "batch"): (ours, "/predict_batch", {"instances": instances}),
                ("bare", "batch"): (bare, "/predict_batch", {"instances": instances}),
                ("mlflow", "batch"): (served, "/invocations", split_100),
            }
            found: dict[tuple[str, str, int], tuple[float, float, float]] = {}
            for target in asked.values():
                load(*target, 1, 1.0)
            for concurrency in CONCURRENCY:
                for (who, what), target in asked.items():
                    found[who, what, concurrency] = load(*target, concurrency, seconds)
                    rate, middle, high = found[who, what, concurrency]
                    print(
                        f"{what:<6}{who:<13} x{concurrency:<3} {rate:8.0f}/s  p50 {middle:7.2f} ms  p99 {high:7.2f} ms",
                        flush=True,
                    )
            record = read_record(state, "classification")
            assert record is not None and record.active is not None and record.active.process is not None
            memory = resident_mb(record.active.process.pid) / resident_mb(bare_process)
        speeds = table_speeds(deployed.url, model)
    finally:
        stop_all(state)

    return figures_of(found, speeds, memory)


def figures_of(
    found: dict[tuple[str, str, int], tuple[float, float, float]], speeds: dict[str, float], memory: float
) -> dict[str, Any]:
    """The ratios that count, with their goals."""

    def ratios(what: str, other: str, place: int) -> list[float]:
        return [found["ours", what, n][place] / found[other, what, n][place] for n in CONCURRENCY]

    figures: dict[str, Any] = {}

    def figure(name: str, value: float, goal: float, peer: str, *, most: bool = False) -> None:
        figures[name] = {
            "value": round(value, 2),
            "unit": "x",
            "goal": goal,
            "peer": peer,
            "holds": value <= goal if most else value >= goal,
        }

    at = "the least at 1, 8 and 32 at a time"
    figure("one_row_to_mlflow", min(ratios("one", "mlflow", 0)), 3.0, f"`mlflow models serve`, {at}")
    figure("one_row_to_bare", min(ratios("one", "bare", 0)), 1.0, f"FastAPI app with the pipeline, {at}")
    xgboost = "FastAPI app with XGBoost alone"
    figure("one_row_to_xgboost", min(ratios("one", "bare_xgboost", 0)), 0.7, f"{xgboost}, {at}")
    figure("p99_to_xgboost", max(ratios("one", "bare_xgboost", 2)), 1.5, f"{xgboost}, the largest", most=True)
    figure("batch_to_bare", min(ratios("batch", "bare", 0)), 1.2, f"FastAPI app with the pipeline, {at}")
    rows_rate = min(100 * found["ours", "batch", n][0] / found["ours", "one", n][0] for n in CONCURRENCY)
    figure("batch_rows_to_single", rows_rate, 30.0, f"rows per second of single requests, {at}")
    figure("arrow_to_offline", speeds["arrow"] / speeds["offline"], 0.5, "the pipeline in this process")
    figure("memory_to_bare", memory, 1.3, "FastAPI app with the pipeline, idle", most=True)
    return figures


def main() -> None:
    """Run on an embedded server of its own in a temporary folder, which is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="e2i-serving-") as folder:
        os.environ |= {"E2I_HOME": folder, "E2I_PORT_BASE": "0", "OMP_NUM_THREADS": "1"}
        os.environ.pop("E2I_DATABASE_URL", None)
        from e2i_dagster.database import server
        from e2i_dagster.database.connection import engine

        try:
            engine(role="owner")
            figures = measure(Path(folder), options.seconds)
        finally:
            server.remove_server(Path(folder))
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "serving", "figures": figures, "machine": machine}))
    sys.exit(0 if all(figure["holds"] for figure in figures.values()) else 1)


if __name__ == "__main__":
    main()
