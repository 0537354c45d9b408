"""What a stage depends on is observed: values of policy files as they are read, code as it is reached."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from e2i_dagster.config.policy import load_policy
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.config.serving import RequestPolicy, ServingPolicy
from e2i_dagster.pipeline.code import SourceCode
from e2i_dagster.policy_files import changes, observed
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.quality.rules import ruleset_hash


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    monkeypatch.setenv("E2I_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def change(path: Path, *keys, value) -> None:
    document = yaml.safe_load(path.read_text())
    *way, last = keys
    inner = document
    for key in way:
        inner = inner[key]
    inner[last] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def test_only_what_was_read_counts(folder):
    with observed.recording() as readings:
        assert load_policy(folder).sources.months[0] == "2022-01"
    record = readings.to_record()
    assert {json.loads(key)[0] for key in record["sources.yaml"]["keys"]} == {"first_month", "data_end"}
    assert changes.changed(record) is None

    change(folder / "sources.yaml", "load_cron", value="0 6 6 * *")
    assert changes.changed(record) is None, "nobody read when loads are scheduled"
    text = (folder / "sources.yaml").read_text()
    (folder / "sources.yaml").write_text(f"# a comment\n{text}")
    assert changes.changed(record) is None

    change(folder / "sources.yaml", "first_month", value="2022-03")
    assert changes.changed(record) == "sources.yaml: first_month"


def test_a_value_that_is_added_counts_for_who_read_all_values(folder):
    with observed.recording() as all_values:
        QualityPolicy.load(folder).vocabulary("brand")
    with observed.recording() as other:
        QualityPolicy.load(folder).vocabulary("region")
    listed = yaml.safe_load((folder / "vocabulary.yaml").read_text())["vocabularies"]["brand"]["values"]
    change(folder / "vocabulary.yaml", "vocabularies", "brand", "values", value=[*listed, "Newbrand"])
    assert changes.changed(all_values.to_record()) == "vocabulary.yaml: vocabularies.brand.values.*"
    assert changes.changed(other.to_record()) is None


def test_the_settings_of_one_table_are_nothing_to_another(folder):
    records = {}
    for table in ("treatment_events", "triggers"):
        policy = QualityPolicy.load(folder)
        with observed.recording() as readings:
            ruleset_hash(policy, table)
        records[table] = readings.to_record()
    suite = folder / "expectations" / "triggers.yaml"
    document = yaml.safe_load(suite.read_text())
    document["expectations"] = document["expectations"][:1]
    suite.write_text(yaml.safe_dump(document, sort_keys=False))
    assert changes.changed(records["treatment_events"]) is None
    assert changes.changed(records["triggers"]) == "expectations/triggers.yaml: its content"


def test_a_kept_result_notes_again_what_it_was_made_of(folder):
    made = []

    @observed.kept(maxsize=4)
    def first_month(where: Path) -> str:
        made.append(where)
        return load_policy(where).sources.first_month

    first_month(folder)
    with observed.recording() as readings:
        first_month(folder)
    assert made == [folder]
    assert list(readings.to_record()) == ["sources.yaml"]


def test_of_two_recordings_that_saw_the_same_each_ends_its_own(folder):
    policy = QualityPolicy.load(folder)
    with observed.recording() as outer:
        with observed.recording():
            policy.vocabulary("brand")
        policy.vocabulary("region")
    assert any("region" in key for key in outer.to_record()["vocabulary.yaml"]["keys"])


def test_which_files_there_are_counts_for_who_goes_through_all(folder):
    policy = load_policy(folder)
    with observed.recording() as all_scopes:
        [scope.model_name for scope in policy.scopes.values()]
    with observed.recording() as one_scope:
        policy.scope("remibrutinib_csu_initiation")
    shutil.copy(folder / "scopes" / "remibrutinib_csu_initiation.yaml", folder / "scopes" / "mine.yaml")
    change(folder / "scopes" / "mine.yaml", "key", value="mine")
    assert changes.changed(one_scope.to_record()) is None
    assert changes.changed(all_scopes.to_record()) == "scopes: *"


class Carrier(BaseModel):
    """Any document that a policy value is put into."""

    inside: RequestPolicy


OTHERS_THAN_THE_BATCH = [
    *("request.max_body_bytes", "request.max_explained", "request.max_table_bytes", "request.timeout_seconds")
]


@pytest.mark.parametrize(
    ("reads", "keys"),
    [
        (lambda request: request.model_dump(), ["request"]),
        (lambda request: request.model_dump_json(), ["request"]),
        (lambda request: Carrier(inside=request).model_dump(mode="json"), ["request"]),
        (lambda request: Carrier(inside=request).model_dump_json(), ["request"]),
        (lambda request: TypeAdapter(list[Any]).dump_json([request]), ["request"]),
        (lambda request: request.model_dump(include={"max_batch"}), ["request.max_batch"]),
        (
            lambda request: request.model_dump(exclude={"max_batch"}),
            OTHERS_THAN_THE_BATCH,
        ),
        (
            lambda request: (
                request
                == RequestPolicy(
                    max_batch=1, max_body_bytes=1024, max_table_bytes=1024, max_explained=1, timeout_seconds=1
                )
            ),
            ["request"],
        ),
        (
            lambda request: request.model_copy(update={"max_batch": 7}),
            OTHERS_THAN_THE_BATCH,
        ),
    ],
)
def test_whoever_takes_a_model_as_a_whole_reads_its_values(folder, reads, keys):
    request = ServingPolicy.load(folder).request
    with observed.recording() as readings:
        reads(request)
    found = readings.to_record().get("serving.yaml", {"keys": {}})["keys"]
    assert sorted(".".join(json.loads(key)) for key in found) == keys


def test_of_the_models_inside_only_what_is_asked_for_is_read(folder):
    policy = ServingPolicy.load(folder)
    with observed.recording() as readings:
        policy.model_dump(include={"request": {"max_batch"}, "services": True})
        policy.model_dump(include={"audit"}, exclude={"audit": {"batch_rows"}})
    found = [".".join(json.loads(key)) for key in readings.to_record()["serving.yaml"]["keys"]]
    assert sorted(found) == [
        "audit.close_seconds",
        "audit.flush_seconds",
        "audit.max_journal_bytes",
        "request.max_batch",
        "services",
    ]


def test_a_file_that_is_gone_or_broken_is_a_change(folder):
    with observed.recording() as readings:
        load_policy(folder).sources.first_month  # noqa: B018
    (folder / "sources.yaml").write_text("first_month: [")
    assert changes.changed(readings.to_record()) == "sources.yaml (cannot be read as it was)"
    (folder / "sources.yaml").unlink()
    assert changes.changed(readings.to_record()) == "sources.yaml (cannot be read as it was)"


KEYS = [
    ("sources.yaml", ("success_threshold",), 0.5),
    ("sources.yaml", ("first_month",), "2022-02"),
    ("sources.yaml", ("source", "seed"), 7),
    ("sources.yaml", ("load_cron",), "1 1 1 * *"),
]


@given(st.lists(st.sampled_from(range(len(KEYS))), unique=True), st.integers(0, len(KEYS) - 1))
@settings(max_examples=20, deadline=None)
def test_a_changed_key_is_noticed_exactly_by_who_read_it(tmp_path_factory, read, changed):
    folder = tmp_path_factory.mktemp("policy") / "config"
    folder.mkdir()
    shutil.copy(CHECKOUT / "config" / "sources.yaml", folder)
    from e2i_dagster.config.sources import SourcesPolicy

    policy = SourcesPolicy.load(folder)
    with observed.recording() as readings:
        for number in read:
            value = policy
            for key in KEYS[number][1]:
                value = getattr(value, key)
    file, keys, value = KEYS[changed]
    change(folder / file, *keys, value=value)
    assert (changes.changed(readings.to_record()) is not None) == (changed in read)


BODY = """
from typing import TYPE_CHECKING
import e2i_dagster.far

if TYPE_CHECKING:
    from e2i_dagster.types import Frame

LIMIT = 3
OTHER = 4

def helper():
    return LIMIT

def body(frame: "Frame"):
    from e2i_dagster.core import compute
    return compute(frame, helper())

def other():
    return OTHER
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    files = {
        "assets/__init__.py": "",
        "assets/some.py": BODY,
        "e2i_dagster/__init__.py": "",
        "e2i_dagster/core/__init__.py": "from e2i_dagster.core.near import compute\n"
        "from e2i_dagster.core.beside import more\n",
        "e2i_dagster/core/near.py": "from e2i_dagster import deep\n\n"
        "def compute(frame, limit):\n    return deep.f(frame)\n",
        "e2i_dagster/core/beside.py": "def more():\n    return 1\n",
        "e2i_dagster/deep.py": "def f(x):\n    '''Words.'''\n    return x\n",
        "e2i_dagster/types.py": "class Frame:\n    pass\n",
        "e2i_dagster/far.py": "X = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def digest(tree: Path, kept_in: Path | None = None) -> str:
    line = next(
        number
        for number, text in enumerate((tree / "assets/some.py").read_text().splitlines(), 1)
        if text.startswith("def body")
    )
    return SourceCode(tree, kept_in).digest_at("assets.some", line)


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("e2i_dagster/deep.py", "return x", "return x + 1", True),
        ("e2i_dagster/deep.py", "'''Words.'''", "'''Other words.'''", False),
        ("e2i_dagster/deep.py", "return x", "return x  # a comment", False),
        ("e2i_dagster/deep.py", "def f", "\n\n\ndef f", False),
        ("e2i_dagster/types.py", "pass", "size = 1", True),
        ("e2i_dagster/core/beside.py", "return 1", "return 2", False),
        ("e2i_dagster/far.py", "X = 1", "X = 2", False),
        ("assets/some.py", "LIMIT = 3", "LIMIT = 5", True),
        ("assets/some.py", "OTHER = 4", "OTHER = 5", False),
        ("assets/some.py", "compute(frame, helper())", "compute(frame, 2)", True),
    ],
)
def test_only_a_change_of_reached_code_counts(tree, tmp_path_factory, file, old, new, counts):
    kept_in = tmp_path_factory.mktemp("kept")
    before = digest(tree, kept_in)
    assert digest(tree, kept_in) == before == digest(tree)
    text = (tree / file).read_text()
    assert old in text
    (tree / file).write_text(text.replace(old, new, 1))
    assert (digest(tree, kept_in) != before) is counts
    assert digest(tree, kept_in) == digest(tree)
