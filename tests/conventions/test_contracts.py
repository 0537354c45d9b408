"""What each asset and check declares, and what its body hands over to which core function.

The table ``asset_contracts.txt`` says it for every one. Core functions are recorded here, not run: what they do with
what they get is tested where they are.
"""

import importlib
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from recording import text_of, ways

from assets.stage import AlsoReads
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, date_column
from resources.lake import asset_name

TABLE = Path(__file__).with_name("asset_contracts.txt")
MODULES = sorted(
    path.stem
    for path in (CHECKOUT / "assets").glob("*.py")
    if path.stem not in ("__init__", "execution", "partitions", "stage", "values")
)
#: What people read; the graph by group is in tests/conventions/asset_graph.txt.
NOT_SHOWN = {"description", "kinds", "group_name", "owners", "name", "key", "asset"}


class Declared:
    """One use of a decorator: its arguments and the body."""

    def __init__(self, kind: str, arguments: Mapping[str, Any], body: Any) -> None:
        self.kind, self.arguments, self.body = kind, arguments, body

    @property
    def name(self) -> str:
        given = self.arguments.get("key") or self.arguments.get("name") or self.body.__name__
        own = asset_name(given) if isinstance(given, dg.AssetKey) else given
        return own if self.kind == "asset" else f"{named(self.arguments['asset'])}:{own}"


def declarations() -> Iterator[Declared]:
    """Every asset and check, read off the modules with decorators that only note what they are given."""
    found: list[Declared] = []

    def decorator(kind: str, **arguments: Any) -> Any:
        def note(body: Any) -> Declared:
            found.append(Declared(kind, arguments, body))
            return found[-1]

        return note

    # The real modules come first: they are not to see the decorators below.
    importlib.import_module("e2i_dagster.definitions")
    stage = importlib.import_module("assets.stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "stage_asset", partial(decorator, "asset"))
        patch.setattr(dg, "asset_check", partial(decorator, "check"))
        for name in MODULES:
            # Executed beside the real module, which stays as it is.
            real = importlib.import_module(f"assets.{name}")
            code = compile(Path(str(real.__file__)).read_bytes(), str(real.__file__), "exec")
            exec(code, types.ModuleType(f"assets.{name}").__dict__)
    yield from found


def named(value: Any) -> str:  # noqa: PLR0911
    """A value of a declaration in the words of ``assets/``."""
    match value:
        case Declared():
            return value.name
        case dg.AssetsDefinition():
            return asset_name(value.key)
        case dg.AssetKey():
            return asset_name(value)
        case (
            dg.AssetDep(asset_key=key, partition_mapping=mapping)
            | dg.AssetIn(key=key, partition_mapping=mapping)
        ):
            # A mapping of all partitions is an empty tuple, so false.
            return (asset_name(key) if key else "") + (f" by {named(mapping)}" if mapping is not None else "")
        case dg.BackfillPolicy():
            return value.policy_type.name.lower()
        case dg.PartitionsDefinition() | dg.PartitionMapping():
            known = vars(importlib.import_module("assets.partitions")).items()
            return next((name for name, one in known if one is value), type(value).__name__)
        case Mapping():
            return ", ".join(f"{key}: {named(one)}" if named(one) else str(key) for key, one in value.items())
        case list() | tuple():
            return ", ".join(map(named, value))
        case AlsoReads():
            return f"{named(value.tables)}; of one partition {named(value.of)}"
    return text_of(value) if inspect.isfunction(value) else str(value)


def contract(one: Declared) -> str:
    """The entry of ``one`` in the table, without its heading."""
    declared = sorted((name, value) for name, value in one.arguments.items() if name not in NOT_SHOWN)
    lines = [f"  {name}: {named(value)}" for name, value in declared if value not in (None, [], ())]
    lines.append(f"  inputs: {', '.join(inspect.signature(one.body).parameters)}")
    for way in ways(one.body):
        lines += [f"    {line}" for line in way]
    return "\n".join(lines)


def table() -> str:
    """All entries in the order of the modules; what differs by the name of its raw table alone is one entry."""
    together: dict[str, list[str]] = {}
    for one in declarations():
        subject = one.name.split(":")[0].rpartition("/")[2]
        entry = f"{one.kind} {one.name}\n{contract(one)}"
        if subject in (*RAW_TABLES, *OPTIONAL_RAW_TABLES):
            entry = re.sub(rf"\b{subject}\b", "TABLE", entry)
            entry = entry.replace(f"'{date_column(subject)}'", "date_column('TABLE')")
        together.setdefault(entry, []).append(subject)
    return (
        "\n\n".join(
            entry.replace("\n", f" for {', '.join(subjects)}\n", 1) if "TABLE" in entry else entry
            for entry, subjects in together.items()
        )
        + "\n"
    )


def test_every_asset_and_check_is_declared_here():
    from e2i_dagster.definitions import defs

    graph = defs.resolve_asset_graph()
    real = {asset_name(key) for key in graph.get_all_asset_keys()}
    real |= {f"{asset_name(one.asset_key)}:{one.name}" for one in graph.asset_check_keys}
    assert {one.name for one in declarations()} == real


def test_bodies_hand_over_what_the_table_says():
    """When a change is intended, write the printed text into the file."""
    expected = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    actual = table()
    assert actual == expected, f"{TABLE.relative_to(CHECKOUT)} should be:\n{actual}"
