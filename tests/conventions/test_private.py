"""What is used of a library beyond its public API: in one file for each, and still there after an upgrade."""

import ast
import inspect
from importlib.metadata import version
from pkgutil import resolve_name

import pytest

from e2i_dagster.policy_files.environment import CHECKOUT

GX = "e2i_dagster/quality/private_great_expectations.py"
DAGSTER = "resources/private_dagster.py"
MLFLOW = "resources/mlflow.py"
#: Beginnings of the names of modules that a library does not document.
UNDOCUMENTED = (
    "dagster._",
    "dagster_mlflow.resources",
    "great_expectations.data_context.types",
    "great_expectations.render",
    "great_expectations.validator",
)
#: Attributes likewise, wherever they stand.
UNDOCUMENTED_ATTRIBUTES = {"step_context", "get_step_execution_context"}

#: What is used: file -> name -> its attributes, or with ``()`` its parameters.
USED = {
    DAGSTER: {
        "dagster._core.events:ASSET_EVENTS": "",
        "dagster._core.events.log:EventLogEntry": "run_id dagster_event_type dagster_event",
        "dagster._core.storage.event_log:EventLogStorage": "",
        "dagster._core.storage.event_log:SqliteEventLogStorage": (
            "run_connection index_connection index_transaction store_event store_event_batch wipe dispose "
            "path_for_shard conn_string_for_shard _initdb _event_to_row _store_asset_event_tags _store_asset_event"
        ),
        "dagster._core.storage.event_log:SqliteEventLogStorage._initdb": "() engine for_index_shard",
        "dagster._core.storage.event_log:SqliteEventLogStorage._store_asset_event": "() conn event event_id",
        "dagster._core.storage.event_log:SqliteEventLogStorage._store_asset_event_tags": (
            "() conn events event_ids"
        ),
        "dagster._core.storage.event_log.schema:SqlEventLogStorageTable": "insert",
        "dagster._core.storage.event_log.sqlite.sqlite_event_log:INDEX_SHARD_NAME": "",
        "dagster._core.storage.sqlite:SQLITE_BUSY_TIMEOUT_SECONDS": "",
        "dagster._core.storage.sqlite_storage:DagsterSqliteStorage": "event_log_storage from_local",
        "dagster._serdes:ConfigurableClassData": "",
        "dagster:InputContext": "step_context",
        "dagster._core.execution.context.system:StepExecutionContext": (
            "is_asset_check_step has_partition_key partition_key run_id"
        ),
    },
    MLFLOW: {"dagster_mlflow.resources:MlFlow": "() context"},
    GX: {
        "great_expectations.data_context.types.base:ProgressBarsConfig": "() globally metric_calculations",
        "great_expectations.render.view:DefaultJinjaPageView": "render",
        "great_expectations.render.renderer.page_renderer:ValidationResultsPageRenderer": "render",
        "great_expectations.validator.v1_validator:Validator": (
            "() batch_definition result_format batch_parameters"
        ),
        "great_expectations.validator.v1_validator:Validator.validate_expectation_suite": (
            "() expectation_suite"
        ),
    },
}


def undocumented(path):
    """Names that the module at ``path`` uses of modules and attributes that are not documented."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(UNDOCUMENTED):
            yield from (f"{node.module}:{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(UNDOCUMENTED))
        elif isinstance(node, ast.Attribute) and node.attr in UNDOCUMENTED_ATTRIBUTES:
            yield node.attr


def test_what_is_not_documented_is_used_in_one_file_for_each_library():
    found = {
        (path.relative_to(CHECKOUT).as_posix(), name)
        for package in ("e2i_dagster", "assets", "resources", "sensors", "feature_repo")
        for path in (CHECKOUT / package).rglob("*.py")
        for name in undocumented(path)
    }
    listed = {(file, name) for file, names in USED.items() for name in names}
    attributes = {(DAGSTER, "step_context")}
    assert found - attributes <= listed, "list it in USED, or better use what is documented"


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, names in USED.items() for name in names], ids=lambda one: one
)
def test_what_is_not_documented_is_as_it_was(file, name):
    library = name.partition(":")[0].partition(".")[0].replace("_", "-")
    told = f"{library} {version(library)} has changed {name}, which {file} uses"
    try:
        there = resolve_name(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{told}: {error}")
    call, *members = USED[file][name].split() or [""]
    if call == "()":
        assert set(members) <= set(inspect.signature(there).parameters), f"{told}: parameters"
    else:
        missing = [one for one in (call, *members) if one and not hasattr(there, one)]
        assert not missing, f"{told}: no {', '.join(missing)}"
