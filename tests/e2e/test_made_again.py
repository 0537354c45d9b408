"""After changes of policy, exactly what reads the changed values is made again; nobody is scored twice."""

import datetime as dt
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2i_dagster.policy_files import changes, observed
from e2i_dagster.policy_files.base import YAML_LOADER

SCOPE = "remibrutinib_csu_initiation"
MODEL = "e2i-remibrutinib-csu-initiation"


def as_yaml(document: Any) -> str:
    """``document`` as a YAML text, by libyaml where it is there."""
    return yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def put(file: Path, *keys: Any, value: Any) -> None:
    """Write ``value`` at ``keys`` of a YAML file."""
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(as_yaml(document), encoding="utf-8")


SIDE_EFFECTS = """
SELECT (SELECT count(*) FROM ml_predictions WHERE origin = 'live') AS live,
       (SELECT count(*) FROM ml_training_runs) AS attempts
"""


@pytest.fixture(scope="module")
def notes(deployed, again, tmp_path_factory):
    """What each stage of the plan read of policy files (stage -> file -> its notes), and a copy of these."""
    read = deployed.python(
        """
import json
from e2i_dagster.versions import ledger
from e2i_dagster.database.connection import engine
read = {}
for stage in {state.stage for state in ledger.states(engine())}:
    for version in ledger.current(engine(), stage).values():
        for file, of_file in version.metadata.get(ledger.READ, {}).items():
            kept = read.setdefault(stage, {}).setdefault(file, {"model": of_file["model"], "keys": {}})
            kept["keys"] |= of_file["keys"]
print(json.dumps(read))
"""
    )
    return read, shutil.copytree(deployed.config, tmp_path_factory.mktemp("policy") / "config")


@pytest.fixture(scope="module")
def redeployed(deployed, notes):
    """Limits of a request and threads of the service are changed, and what no stage read; then the plan runs."""
    (before,) = deployed.rows(SIDE_EFFECTS)
    serving, algorithms = deployed.config / "serving.yaml", deployed.config / "algorithms.yaml"
    put(serving, "request", "max_batch", value=50)
    put(serving, "deployment", "threads", value=2)
    put(algorithms, "algorithms", "XGBoost", "search_space", "max_depth", "high", value=7)
    put(deployed.config / "sources.yaml", "load_cron", value="0 4 7 * *")
    done = deployed.e2i("run", "--scope", "default", "--json")
    (after,) = deployed.rows(SIDE_EFFECTS)
    return json.loads(done.stdout.splitlines()[-1]), before, after


def test_only_the_endpoint_is_made_again(redeployed):
    report, _, _ = redeployed
    executed = {stage["name"] for stage in report["stages"] if stage["state"] == "executed"}
    # `policy` sums up all of sources.yaml; what other tests asked the endpoint is in the log of the day.
    of_the_day = {"prediction_log", "performance_report", "drift_report"}
    assert executed - of_the_day == {"policy", "bento", "deployment"}
    assert "prediction_log" in executed or not of_the_day & executed
    why = {stage["name"]: stage["reason"] for stage in report["stages"]}
    assert why["bento"].startswith("changed: serving.yaml")
    assert why["live_scores"].startswith("unchanged")


def test_the_live_service_answers_under_the_new_limits(deployed, redeployed):
    report, _, _ = redeployed
    (endpoint,) = report["endpoints"]
    with urllib.request.urlopen(f"{endpoint['url']}/models", timeout=20) as answer:
        assert json.load(answer)["max_batch"] == 50
    body = json.loads(endpoint["example"].partition("-d '")[2].rstrip("'"))
    for rows, status in ((50, 200), (51, 413)):
        assert asked(f"{endpoint['url']}/{MODEL}/predict_batch", {"instances": [body] * rows}) == status
    record = json.loads((deployed.home / "services" / "classification.json").read_text(encoding="utf-8"))
    environment = Path(f"/proc/{record['active']['process']['pid']}/environ").read_bytes()
    assert b"OMP_NUM_THREADS=2" in environment.split(b"\0"), (
        "the supervisor goes by the new times and threads, too"
    )


def asked(url: str, body: Any) -> int:
    """Status of the answer to ``body``."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_patient_is_scored_and_no_attempt_is_recorded_again(redeployed):
    _, before, after = redeployed
    assert before["live"] > 0 and before["attempts"] == 1
    assert after == before


def test_the_rules_of_the_gate_are_no_input_of_what_it_lets_pass(notes):
    """It is asked each time; other limits of an audit train no model again."""
    stages, _ = notes
    audited = {
        "feature_selection",
        "algorithm",
        "hyperparameters",
        "trained_model",
        "evaluation",
        "tracked_run",
    }
    assert not {stage for stage in audited if {"quality.yaml", "sources.yaml"} & stages.get(stage, {}).keys()}


#: Keys that no stage of the plan reads, or that one reads only when it comes to that, and who does.
READ_ELSEWHERE = {
    "alerts.yaml: *": "alerts, and the digest of the day",
    "algorithms.yaml: algorithms.*.description": "words for people",
    "algorithms.yaml: algorithms.*.family": "held against the problem types when the file is read",
    "algorithms.yaml: algorithms.*.defaults.*": "only of algorithms for the scope's kind of problem",
    "algorithms.yaml: algorithms.*.search_space.*": "only of the algorithm that was chosen",
    "algorithms.yaml: selection.minimum_interpretability": "when a scope asks for interpretability",
    "causal.yaml: *": "the stages of the causal job",
    "drift_monitoring.yaml: impact.*": "when a feature drifts that much",
    "drift_monitoring.yaml: performance.*": "as far as predictions and labels of a window are enough",
    "drift_monitoring.yaml: multivariate.*": "when the features together have enough rows and drift",
    "drift_monitoring.yaml: alerts.*": "the sensor that looks at drift reports",
    "drift_monitoring.yaml: retraining.*": "the sensor that looks at drift reports",
    "drift_monitoring.yaml: severity_psi.*": "when a difference is significant",
    "drift_monitoring.yaml: severity_weight.*": "when a feature drifts that much",
    "experiment_lifecycle.yaml: *": "the stages of experiments",
    "experiments/*": "the stages of experiments",
    "features/templates/*": "whoever copies a template into the folder above it",
    "feast_materialization.yaml: freshness.*": "the sensor that judges online features",
    "optuna_config.yaml: warm_start.*": "when there are earlier studies",
    "optuna_config.yaml: optimization.timeout_seconds": "while a study is not finished",
    "quality.yaml: leakage.*": "the leakage audit, a check that every run makes",
    "quality.yaml: waivers.*": "the command that grants a waiver",
    "registry.yaml: stages.*": "only of the stage that a version is brought to; commands for the later ones",
    "scopes/*": "of the scopes that were not asked for only what names their models",
    "vocabulary.yaml: column_matching.*": "the proposal for a supplier's columns",
}


#: Other values of keys for which the document shows none.
ANOTHER: dict[str, Any] = {
    "first_month": "2022-02", "version": "9.9.9", "memory": "1Gi", "followup": "censor", "window": [1, 60],
    "features": ["disease_severity"], "dgp": "heterogeneous", "prior_outcome": "keep", "split": "validation",
    "incomplete_followup": "negative", "estimate": "lower", "scoring_patients_at": "data_end",
    "preferred_algorithms": ["XGBoost"], "excluded_algorithms": ["XGBoost"],
    "column": "days_from_diagnosis", "occurrence": "last",
    "All_Brands": "other", "learning": "monitoring", "confirmed": "pending",
}  # fmt: skip
#: Keys that have one value only, alone or beside the others of their file.
ONE_VALUE = (
    "algorithms.yaml: *.problem_types", "algorithms.yaml: *.kind", "cohorts/*: brand", "cohorts/*: indication",
    "optuna_config.yaml: sampler.name", "optuna_config.yaml: pruner.name", "optuna_config.yaml: metric.*",
    "optuna_config.yaml: threshold.rule", "scopes/*: problem_type", "scopes/*: outcome.*.table",
    # Of numbers and times.
    "scopes/*_adherence.yaml: outcome.incomplete_followup", "scopes/*_cost.yaml: outcome.incomplete_followup",
    "scopes/*_time_to_*.yaml: outcome.incomplete_followup",
    "scopes/*: split.mode", "sources.yaml: source.kind",
)  # fmt: skip
#: What a file may leave out, because it is made of other keys.
MADE_OF = {("model_type",): [("indication",), ("target",), ("model_type",)]}


def leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys on the way to every value that is no mapping."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*keys, str(key)))
    else:
        yield keys


def others(document: Any, keys: tuple[str, ...]) -> Iterator[tuple[Any, list[tuple[str, ...]]]]:
    """The document with another value at ``keys``, and which keys differ: values that must fit change in pairs."""
    value, around = at(document, keys), at(document, keys[:-1])
    given = [ANOTHER[keys[-1]]] if keys[-1] in ANOTHER else []
    if keys[-1] == "followup":
        given.append("require")
    if isinstance(value, bool):
        given += [not value]
    elif isinstance(value, int | float):
        given += [value + 1, value - 1, value * 2, value // 2, value * 0.9, value / 2, value + 0.25]
    elif isinstance(value, dt.date):
        given += [value - dt.timedelta(days=31)]
    elif isinstance(value, str):
        given += [f"{value}x", *words(around), *dict.fromkeys(words(document))]
    elif isinstance(value, list):
        given += [value[:-1], value[::-1], [*value, *value[:1]], [*value, "x"]]
    for one in given:
        if one != value:
            yield with_value(document, keys, one), [keys]
    for name, beside in around.items():
        if type(beside) is type(value) and beside != value:
            there = (*keys[:-1], str(name))
            yield with_value(with_value(document, keys, beside), there, value), [keys, there]


def words(value: Any) -> Iterator[str]:
    """All texts in a document."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from words(inner)


def covers(noted: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    """Whether what was noted at ``noted`` is, holds or is held by the value at ``keys``, or is made of it."""
    if noted in MADE_OF:
        return keys in MADE_OF[noted]
    if noted[-1:] == (observed.ALL_KEYS,):
        return noted[:-1] == keys[: len(noted) - 1] and len(keys) < len(noted)
    shorter = min(len(noted), len(keys))
    return noted[:shorter] == keys[:shorter]


def at(document: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        document = next(inner for name, inner in document.items() if str(name) == key)
    return document


def with_value(document: Any, keys: tuple[str, ...], value: Any) -> Any:
    """``document`` with ``value`` at ``keys``."""
    if not keys:
        return value
    return {
        name: with_value(inner, keys[1:], value) if str(name) == keys[0] else inner
        for name, inner in document.items()
    }


def first_valid(
    candidates: Iterator[tuple[Any, list[tuple[str, ...]]]], name: str, model: str, folder: Path
) -> tuple[Path, list[tuple[str, ...]]] | None:
    """A folder with the file ``name`` in the first form that can be read as ``model``, and which keys differ in it."""
    for number, (changed, differ) in enumerate(candidates):
        file = folder / str(number) / name
        file.parent.mkdir(parents=True)
        file.write_text(as_yaml(changed), encoding="utf-8")
        if changes.changed({name: {"model": model, "keys": {}}}, folder / str(number)) is None:
            return folder / str(number), differ
    return None


def test_changing_a_key_makes_exactly_the_stages_run_again_that_read_it(notes, tmp_path):
    stages, config = notes
    checked, unread, fixed, wrong = 0, [], [], []
    for file in sorted(config.rglob("*.yaml")):
        name = file.relative_to(config).as_posix()
        document = yaml.load(file.read_text(encoding="utf-8"), YAML_LOADER)
        reads = {stage: of_files[name] for stage, of_files in stages.items() if name in of_files}
        noted = {stage: [tuple(json.loads(one)) for one in read["keys"]] for stage, read in reads.items()}
        for keys in leaves(document):
            where = f"{name}: {'.'.join(keys)}"
            if not any(covers(one, keys) for read in noted.values() for one in read):
                unread.append(where)
                continue
            if any(fnmatch(where, known) for known in ONE_VALUE):
                continue
            model = next(iter(reads.values()))["model"]
            changed = first_valid(others(document, keys), name, model, tmp_path / where.replace("/", " "))
            if changed is None:
                fixed.append(where)
                continue
            folder, differ = changed
            expected = {
                stage for stage in noted if any(covers(one, key) for one in noted[stage] for key in differ)
            }
            found = {
                stage for stage, read in reads.items() if changes.changed({name: read}, folder) is not None
            }
            checked += len(expected) > 0
            if found != expected:
                wrong.append((where, sorted(found - expected), sorted(expected - found)))
    assert not wrong, "too often, and not at all"
    assert not fixed, "give another value of it"
    assert not [where for where in unread if not any(fnmatch(where, known) for known in READ_ELSEWHERE)]
    assert checked > 300
