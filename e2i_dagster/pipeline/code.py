"""Digest of the code that a function reaches: what its module defines for it, and the modules that it imports.

The digest is of the syntax trees without comments, docstrings and layout, so that only a change of what the code
does counts. Imports are followed from the function: into a package only to the module that defines the imported
name. Types that are imported for annotations count, because the values are of them and their methods run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from e2i_dagster.local_files import write_text
from e2i_dagster.policy_files.environment import CHECKOUT, state_folder

#: Packages whose modules are followed.
PACKAGES = ("e2i_dagster", "resources")
#: Thin modules whose functions are followed one by one instead of as a whole.
SHELL = "assets"
#: Modules that carry every stage and decide no value.
CARRIERS = frozenset({"assets.execution", "assets.partitions", "assets.stage"})

#: File of the digests that were found last, beside the parsed modules.
KNOWN = "digests.json"

#: (module, name): ``import module`` has no name.
Import = tuple[str, str | None]


@dataclass(frozen=True)
class Part:
    """One statement of a module: what it binds, uses and imports, and the digest of its syntax tree."""

    binds: tuple[str, ...]
    uses: tuple[str, ...]
    imports: tuple[tuple[str, Import], ...]
    digest: str
    first_line: int
    last_line: int


@dataclass(frozen=True)
class Module:
    """The statements of a module."""

    parts: tuple[Part, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of all statements but imports, whose targets have digests of their own."""
        return _digest_of(part.digest for part in self.parts if part.digest)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """What is imported anywhere in the module, of the followed packages."""
        targets = {target: None for part in self.parts for _, target in part.imports}
        return tuple(target for target in targets if target[0].partition(".")[0] in PACKAGES)


@dataclass
class SourceCode:
    """The modules below ``root``, parsed once for each content.

    Attributes:
        root: folder of the packages.
        kept_in: folder where parsed modules are kept by the digest of their bytes, and what was found as long as no
            file has another time or size; None keeps nothing.
    """

    root: Path
    kept_in: Path | None = None
    _modules: dict[str, Module | None] = field(default_factory=dict)
    _reached: dict[Import, frozenset[str]] = field(default_factory=dict)
    _defined: dict[Import, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each module and package."""
        found: dict[str, Path] = {}
        for package in (*PACKAGES, SHELL):
            for folder, _, names in os.walk(self.root / package):
                below = ".".join(Path(folder).relative_to(self.root).parts)
                for name in names:
                    stem = name.removesuffix(".py")
                    if stem != name:
                        found[below if stem == "__init__" else f"{below}.{stem}"] = Path(folder, name)
        return found

    def digest_of(self, function: Callable[..., Any], also: Sequence[str] = ()) -> str:
        """Digest (16 hex digits) of the code that ``function`` reaches.

        Args:
            function: a function of a module of this checkout.
            also: ``module`` or ``module:name`` that it reaches by other ways than imports.
        """
        return self.digest_at(function.__module__, function.__code__.co_firstlineno, also)

    def digest_at(self, module: str, line: int, also: Sequence[str] = ()) -> str:
        """:meth:`digest_of` the function that begins at ``line`` of ``module``."""
        asked = json.dumps([module, line, *also])
        if asked not in self._known:
            self._known[asked] = self._found_at(module, line, also)
            if self.kept_in is not None:
                _write(self.kept_in / KNOWN, json.dumps({"files": self._files_now, "digests": self._known}))
        return self._known[asked]

    @cached_property
    def _known(self) -> dict[str, str]:
        """Digests that were found when every file had the time and size that it has now."""
        if self.kept_in is not None:
            with suppress(OSError, ValueError, KeyError):
                kept = json.loads((self.kept_in / KNOWN).read_text(encoding="utf-8"))
                if kept["files"] == self._files_now:
                    return kept["digests"]
        return {}

    @cached_property
    def _files_now(self) -> str:
        """Digest of times and sizes of all files, and of what reads them."""
        found = ((file, file.stat()) for _, file in sorted(self.files.items()))
        return _digest_of(
            [sys.version, *(f"{file} {status.st_mtime_ns} {status.st_size}" for file, status in found)]
        )

    def _found_at(self, module: str, line: int, also: Sequence[str]) -> str:
        digests, modules = self._shell(module, range(line, line + 1))
        for entry in also:
            name, _, attribute = entry.partition(":")
            modules |= self.reach((name, attribute or None))
        digests |= {f"{name} {self._digest(name)}" for name in modules}
        return _digest_of(sorted(digests))

    def digest_of_module(self, name: str) -> str:
        """Digest (16 hex digits) of the code that importing the module ``name`` reaches."""
        return _digest_of(
            sorted(f"{definition} {self._digest(definition)}" for definition in self.reach((name, None)))
        )

    def _digest(self, name: str) -> str:
        module = self.module(name)
        return module.digest if module else ""

    def _shell(self, name: str, lines: range | Iterable[str]) -> tuple[set[str], set[str]]:
        """Digests of the statements of the shell module ``name`` that are needed, and the modules they reach.

        ``lines``: those of a function, or the names that are needed.
        """
        module = self.module(name)
        if module is None:
            return set(), set()
        by_name = {bound: part for part in module.parts for bound in part.binds}
        imported = {bound: target for part in module.parts for bound, target in part.imports}
        digests: set[str] = set()
        modules: set[str] = set()
        seen: set[int] = set()
        if isinstance(lines, range):
            waiting = [part for part in module.parts if part.first_line <= lines.start <= part.last_line]
        else:
            waiting = [by_name[needed] for needed in lines if needed in by_name]
            # What the module itself imports and another one takes from it, such as a type.
            for needed in lines:
                if needed in imported and needed not in by_name:
                    more, reached = self._target(imported[needed])
                    digests |= more
                    modules |= reached
        while waiting:
            part = waiting.pop()
            if id(part) in seen:
                continue
            seen.add(id(part))
            digests.add(f"{name} {part.digest}")
            targets = [target for _, target in part.imports]
            for used in part.uses:
                if used in by_name:
                    waiting.append(by_name[used])
                elif used in imported:
                    targets.append(imported[used])
            for target in targets:
                more, reached = self._target(target)
                digests |= more
                modules |= reached
        return digests, modules

    def _target(self, target: Import) -> tuple[set[str], set[str] | frozenset[str]]:
        name, attribute = target
        if name in CARRIERS:
            return set(), set()
        if name.partition(".")[0] == SHELL:
            return self._shell(name, [attribute] if attribute else [])
        return set(), self.reach(target)

    def reach(self, target: Import) -> frozenset[str]:
        """Modules that importing ``target`` needs, itself among them."""
        if target not in self._reached:
            found: set[str] = set()
            waiting = [target]
            seen = {target}
            while waiting:
                for name in self._defining(waiting.pop()):
                    if name in found:
                        continue
                    found.add(name)
                    module = self.module(name)
                    for imported in module.imports if module else ():
                        if imported not in seen:
                            seen.add(imported)
                            waiting.append(imported)
            self._reached[target] = frozenset(found)
        return self._reached[target]

    def _defining(self, target: Import) -> tuple[str, ...]:
        """The modules that define what ``target`` imports: of a package the one that it takes the name from."""
        if target not in self._defined:
            self._defined[target] = tuple(self._find(target))
        return self._defined[target]

    def _find(self, target: Import) -> Iterator[str]:
        name, attribute = target
        if attribute is not None and f"{name}.{attribute}" in self.files:
            yield f"{name}.{attribute}"
            return
        module = self.module(name)
        if module is None:
            return
        if attribute is not None and self.files[name].name == "__init__.py":
            taken = [target for part in module.parts for bound, target in part.imports if bound == attribute]
            if taken:
                for taken_target in taken:
                    yield from self._defining(taken_target)
                return
        yield name

    def module(self, name: str) -> Module | None:
        """The module ``name``; None when this checkout has none of that name."""
        if name not in self._modules:
            file = self.files.get(name)
            self._modules[name] = None if file is None else self._read(name, file)
        return self._modules[name]

    def _read(self, name: str, file: Path) -> Module:
        source = file.read_bytes()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        if self.kept_in is None:
            return parse(source, package)
        kept = self.kept_in / f"{hashlib.sha256(package.encode() + source).hexdigest()[:32]}.json"
        with suppress(FileNotFoundError, ValueError, TypeError):
            return _from_record(json.loads(kept.read_text(encoding="utf-8")))
        module = parse(source, package)
        _write(kept, json.dumps(_to_record(module)))
        return module


@cache
def source_code() -> SourceCode:
    """The code of this checkout."""
    beside = CHECKOUT if os.access(CHECKOUT, os.W_OK) else state_folder()
    return SourceCode(CHECKOUT, beside / ".e2i" / "cache" / "code")


def parse(source: bytes, package: str) -> Module:
    """The statements of a module in ``package``."""
    tree = ast.parse(source)
    _without_docstrings(tree)
    return Module(tuple(_part(node, package) for node in _statements(tree.body)))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            yield from _statements(node.body)
        else:
            yield node


def _part(node: ast.stmt, package: str) -> Part:
    imports = tuple(imported for inner in ast.walk(node) for imported in _imports(inner, package))
    plain = isinstance(node, ast.Import | ast.ImportFrom)
    first = min(
        [
            node.lineno,
            *(
                decorator.lineno
                for inner in ast.walk(node)
                for decorator in getattr(inner, "decorator_list", ())
            ),
        ]
    )
    for inner in ast.walk(node):
        # What a decorator declares is words for people, or already an input of the stage.
        if isinstance(inner, ast.FunctionDef):
            inner.decorator_list = []
    uses = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    uses |= {part for inner in ast.walk(node) for part in _quoted(inner)}
    listed = isinstance(node, ast.Assign) and any(_name(target) == "__all__" for target in node.targets)
    return Part(
        binds=tuple(_bound(node)),
        uses=tuple(sorted(uses)),
        imports=imports,
        digest="" if plain or listed else hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16],
        first_line=first,
        last_line=node.end_lineno or node.lineno,
    )


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
    elif not isinstance(node, ast.Import | ast.ImportFrom):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id


def _quoted(node: ast.AST) -> Iterator[str]:
    """Names in an annotation that stands in quotes."""
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
        for inner in ast.walk(node.annotation):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                with suppress(SyntaxError):
                    for name in ast.walk(ast.parse(inner.value)):
                        if isinstance(name, ast.Name):
                            yield name.id


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, Import]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], (alias.name, None)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            yield alias.asname or alias.name, (module, alias.name)


def _without_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and body and ast.get_docstring(node, clean=False) is not None:
            del body[0]


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _digest_of(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _to_record(module: Module) -> list[list[Any]]:
    return [
        [part.binds, part.uses, part.imports, part.digest, part.first_line, part.last_line]
        for part in module.parts
    ]


def _from_record(record: Any) -> Module:
    return Module(
        tuple(
            Part(
                tuple(binds),
                tuple(uses),
                tuple((bound, (name, attribute)) for bound, (name, attribute) in imports),
                digest,
                first,
                last,
            )
            for binds, uses, imports, digest, first, last in record
        )
    )


def _write(path: Path, text: str) -> None:
    """Keep ``text``; where nothing can be written the module is parsed again next time."""
    with suppress(OSError):
        write_text(path, text)


__all__ = ["SourceCode", "parse", "source_code"]
