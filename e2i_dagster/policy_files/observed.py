"""Which values of policy files a computation reads, noted while it runs.

A model that :func:`.base.read_yaml` returns knows the file that it comes from. While somebody records, each value
that is read of it is noted with its digest, so that a stored result is used again only as long as the values that
it was made from are still those of the files. Whoever keeps a model for the process loses nothing: a note is made
when a value is read, not when the file is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from e2i_dagster.policy_files.environment import config_folder

#: Last part of the place of a mapping's keys: who goes through all of them depends on which there are, in which order.
ALL_KEYS = "*"
#: Name under which a model keeps its :class:`Place`; no field of a model begins like this.
PLACE = "__place__"
ABSENT = "absent"

Keys = tuple[str, ...]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Place:
    """Where a value stands: the file (below the configuration folder or absolute), how it is read, the keys."""

    file: str
    model: str
    keys: Keys = ()

    def __truediv__(self, key: object) -> Place:
        return Place(self.file, self.model, (*self.keys, str(key)))


@dataclass(eq=False)
class Readings:
    """Digest of every value that was read while recording."""

    values: dict[Place, str] = field(default_factory=dict)

    def to_record(self) -> dict[str, dict[str, Any]]:
        """As JSON: file -> the model it is read as, and the digest at each of its keys (``a.b``)."""
        record: dict[str, dict[str, Any]] = {}
        for place in sorted(self.values, key=lambda value: (value.file, value.keys)):
            whole = (Place(place.file, place.model, place.keys[:length]) for length in range(len(place.keys)))
            if any(place in self.values for place in whole):
                continue
            of_file = record.setdefault(place.file, {"model": place.model, "keys": {}})
            of_file["keys"][json.dumps(place.keys)] = self.values[place]
        return record


#: Everybody who records now. Threads of a computation belong to it, so this is not kept for each thread.
_recording: list[Readings] = []


@contextmanager
def recording() -> Iterator[Readings]:
    """What is read of policy files inside the block, as :class:`Readings`."""
    readings = Readings()
    _recording.append(readings)
    try:
        yield readings
    finally:
        _recording.remove(readings)


def is_recording() -> bool:
    """Whether anybody records."""
    return bool(_recording)


@contextmanager
def unobserved() -> Iterator[None]:
    """Nothing is noted inside the block: whether files fit together is asked of all, whoever needs one of them."""
    paused = _recording[:]
    _recording.clear()
    try:
        yield
    finally:
        _recording.extend(paused)


def kept(maxsize: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """:func:`functools.lru_cache` for a function that reads policy: a kept result notes again what it was made of."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @lru_cache(maxsize=maxsize)
        def computed(*given: Any, **named: Any) -> tuple[R, Readings]:
            with recording() as readings:
                return function(*given, **named), readings

        @wraps(function)
        def call(*given: P.args, **named: P.kwargs) -> R:
            value, readings = computed(*given, **named)
            for recorder in _recording:
                recorder.values |= readings.values
            return value

        return call

    return decorate


def note(place: Place, value: Callable[[], Any]) -> None:
    """Note that a ``value``, as JSON-like data, was read at ``place``."""
    if any(place not in recorder.values for recorder in _recording):
        found = digest_of(value())
        for recorder in _recording:
            recorder.values[place] = found


def note_file(path: Path, model: type[BaseModel], value: BaseModel) -> None:
    """Give ``value``, which was read from the file ``path`` as ``model``, its place."""
    _put(value, Place(_name(path), f"{model.__module__}:{model.__qualname__}"))


def _put(value: Any, place: Place) -> None:
    value.__dict__[PLACE] = place
    for name in type(value).model_fields:
        inner = value.__dict__.get(name)
        if _placed(inner):
            _put(inner, place / name)
        elif isinstance(inner, dict):
            value.__dict__[name] = ObservedDict(inner, place / name)
            for key, item in inner.items():
                if _placed(item):
                    _put(item, place / name / key)


def _placed(value: Any) -> bool:
    """Whether ``value`` notes by itself what is read of it."""
    return isinstance(value, Observed)


def read_field(model: BaseModel, name: str, value: Any) -> None:
    """Note that the field ``name`` of ``model`` was read, unless its ``value`` notes what is read of it."""
    place = model.__dict__.get(PLACE)
    if place is not None and not _placed(value):
        note(place / name, lambda: _field(model, name))


def read_fields(model: BaseModel, include: Any = None, exclude: Any = None) -> None:
    """Note that all of ``model`` was read, or of its fields what is asked for, as pydantic is asked."""
    place = model.__dict__.get(PLACE)
    if place is None or not _recording:
        return
    if include is None and not exclude:
        note(place, lambda: plain(model))
        return
    left_out = {
        name for name in exclude or () if not isinstance(exclude, Mapping) or exclude[name] in (True, ...)
    }
    for name in set(type(model).model_fields if include is None else include) - left_out:
        if isinstance(model.__dict__[name], ObservedDict):
            note(place / name, lambda name=name: _field(model, name))
        else:
            read_field(model, name, model.__dict__[name])


def _field(model: BaseModel, name: str) -> Any:
    return plain(model.__dict__[name])


class Observed:
    """Base of what notes by itself what is read of it."""


class ObservedDict(dict[Any, Any], Observed):
    """The mapping at a place of a policy file: notes each key that is asked for, or that all were."""

    def __init__(self, values: Mapping[Any, Any], place: Place) -> None:
        super().__init__(values)
        self.place = place

    def __getitem__(self, key: Any) -> Any:
        return self._noted(key, super().__getitem__(key))

    def get(self, key: Any, default: Any = None) -> Any:
        return self._noted(key, super().__getitem__(key)) if self._has(key) else default

    def __contains__(self, key: object) -> bool:
        return self._has(key)

    def __iter__(self) -> Iterator[Any]:
        self._note_all()
        return super().__iter__()

    def __len__(self) -> int:
        self._note_all()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._note_all()
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def keys(self) -> Any:
        self._note_all()
        return super().keys()

    def items(self) -> Any:
        self._note_all()
        return super().items()

    def values(self) -> Any:
        self._note_all()
        return super().values()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(super().items()),)

    def _has(self, key: object) -> bool:
        found = super().__contains__(key)
        if _recording and not found:
            note(self.place / key, lambda: ABSENT)
        elif _recording:
            self._noted(key, super().__getitem__(key))
        return found

    def _noted(self, key: Any, value: Any) -> Any:
        if _recording and not _placed(value):
            note(self.place / key, lambda: plain(value))
        return value

    def _note_all(self) -> None:
        if _recording:
            note(self.place / ALL_KEYS, lambda: list(map(str, dict.keys(self))))
            for key, value in super().items():
                self._noted(key, value)


def plain(value: Any) -> Any:
    """``value`` as JSON-like data; nothing is noted."""
    if isinstance(value, BaseModel):
        return {name: plain(value.__dict__[name]) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in dict.items(value)}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _name(path: Path) -> str:
    """``path`` below the configuration folder, else absolute."""
    absolute, folder = path.absolute(), config_folder().absolute()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)


def digest_of(value: Any) -> str:
    """Sixteen hexadecimal digits of SHA-256 over ``value`` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
