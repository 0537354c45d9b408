"""Requests near the valid ones of an OpenAPI document: each made from a seed, so that a run can be repeated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**30, 10**308,
    10**400, 0.5, -0.0, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 3.4e38, 3.5e38, 1e30, 1.1e30, 1e-300,
    "", "a", "0", "null", "a\x00b", "\ud800", "\U0001f600", "x" * 10_001, "é" * 99, [], [1], {}, {"a": 1}, [[[]]],
)  # fmt: skip
#: Text that no encoder of JSON writes.
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 5000,
    "01",
    "1.",
    ".5",
    "+1",
    '"\\ud800"',
    "tru",
    "",
)


def paths_of(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """POST path -> the schemas of its JSON body, with their references resolved."""
    found = {}
    for path, methods in document["paths"].items():
        if "post" in methods:
            schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            found[path] = [_resolved(one, document) for one in schema.get("anyOf", [schema])]
    return found


def _resolved(schema: Any, document: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_resolved(one, document) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    return {name: _resolved(one, document) for name, one in schema.items()}


def valid(schema: dict[str, Any], draw: random.Random) -> Any:
    """A value that ``schema`` allows."""
    if "anyOf" in schema:
        return valid(draw.choice(schema["anyOf"]), draw)
    if "const" in schema:
        return schema["const"]
    if "properties" in schema:
        return {name: valid(one, draw) for name, one in schema["properties"].items()}
    if "items" in schema:
        return [valid(schema["items"], draw) for _ in range(draw.randint(1, 3))]
    low, high = schema.get("minimum", 0), schema.get("maximum", 9)
    ordinary = {
        "number": [low, high, draw.uniform(0, 5)],
        "integer": [int(low), int(high), draw.randint(0, 5)],
        "boolean": [True, False],
        "null": [None],
    }
    return draw.choice(ordinary.get(schema.get("type", ""), ["a", "south", "x" * 50]))


def mutated(document: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` paths and bodies: valid ones with some things changed, dropped, added, repeated or cut."""
    draw = random.Random(seed)
    paths = paths_of(document)
    for _ in range(count):
        path = draw.choice(sorted(paths))
        body = valid(draw.choice(paths[path]), draw)
        marks: dict[str, str] = {}
        for number in range(draw.choice([0, 1, 1, 1, 2, 3])):
            body = _changed(body, draw, marks, f"@{number}@")
        text = json.dumps(body)
        for mark, raw in marks.items():
            text = text.replace(f'"{mark}"', raw)
        if draw.random() < 0.05 and '": ' in text:
            name = text[text.index('"') :].split(": ")[0]
            text = text.replace(name, f"{name}: 1, {name}", 1)
        data = text.encode()
        if draw.random() < 0.05 and data:
            place = draw.randrange(len(data))
            data = (
                data[:place]
                + bytes([draw.randrange(256)]) * draw.randint(0, 2)
                + data[place + draw.randint(0, 2) :]
            )
        yield path, data


def _changed(value: Any, draw: random.Random, marks: dict[str, str], mark: str) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name, kind = draw.choice(sorted(value)), draw.random()
        changed = value | {name: value[name] if kind < 0.2 else _changed(value[name], draw, marks, mark)}
        if kind < 0.1:
            changed[draw.choice(["extra", "", "\ud800", "__proto__", "features"])] = draw.choice(ODD)
        elif kind < 0.2:
            del changed[name]
        return changed
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        changed_row = _changed(value[place], draw, marks, mark)
        return [*value[:place], changed_row, *value[place + 1 :]] * draw.choice([0, 1, 1, 1, 1, 1, 1, 2, 101])
    if draw.random() < 0.2:
        marks[mark] = draw.choice(RAW)
        return mark
    return draw.choice(ODD)
