"""Whether a stored version is still what a stage would make, and if not, what has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from e2i_dagster.policy_files import changes
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.versions import ledger
from e2i_dagster.versions.files import StoredFile
from e2i_dagster.versions.ledger import DataVersion

Partition = str | None


@dataclass(frozen=True)
class Reuse:
    """What was found for the partitions of a stage.

    Attributes:
        versions: the version to use again of each partition; empty when the stage has to run.
        reason: what has changed since the current version, in words; empty when nothing was stored before.
        older: whether a version is among ``versions`` that is not the current one.
    """

    versions: Mapping[Partition, DataVersion]
    reason: str = ""
    older: bool = False


def fingerprint_of(inputs: Sequence[tuple[str, Partition, str]], waivers: Sequence[str], code: str) -> str:
    """Digest of what is known of a stage before it runs.

    Args:
        inputs: (asset, partition, digest) of everything that it reads of the lake.
        waivers: those under which its inputs passed the gate.
        code: digest of the code that it reaches; empty for a stage whose work is done outside, which no change
            of code does again.
    """
    return digest_of([sorted(map(list, inputs), key=str), list(waivers), code])


def find_reusable(
    bind: ledger.Bind,
    asset: str,
    partitions: Sequence[Partition],
    fingerprint: str,
    *,
    code: str,
    any_version: bool,
    damage: Callable[[StoredFile], str],
) -> Reuse:
    """The stored versions that have ``fingerprint``, were made from policy values that still stand, and are whole.

    Args:
        any_version: an older version than the current one is as good, because the stage makes nothing but its value.
        damage: what is wrong with a file of the lake in words; empty when it is whole.
    """
    current = ledger.current(bind, asset)
    candidates: dict[Partition, list[DataVersion]] = {
        partition: [current[partition]] for partition in partitions if partition in current
    }
    if any_version:
        for version in ledger.with_fingerprint(bind, asset, fingerprint):
            if version.partition in candidates:
                candidates[version.partition].append(version)
    found: dict[Partition, DataVersion] = {}
    for partition in partitions:
        standing = (
            candidate
            for candidate in candidates.get(partition, ())
            if candidate.fingerprint == fingerprint
            and changes.changed(candidate.metadata.get(ledger.READ, {})) is None
        )
        faults: dict[str, str] = {}
        version = next((version for version in standing if not _damaged(version, damage, faults)), None)
        if version is None:
            damaged = "; ".join(f"damaged: {path}, {fault}" for path, fault in faults.items())
            return Reuse({}, damaged or _why(current.get(partition), fingerprint, code))
        found[partition] = version
    return Reuse(found, older=any(version != current[name] for name, version in found.items()))


def _damaged(version: DataVersion, damage: Callable[[StoredFile], str], faults: dict[str, str]) -> bool:
    """Whether the file of ``version`` is not what was written; ``faults`` says what is wrong with it, by path."""
    fault = damage(version.file) if version.file is not None else ""
    if fault and version.path is not None:
        faults[version.path] = fault
    return bool(fault)


def _why(current: DataVersion | None, fingerprint: str, code: str) -> str:
    """What has changed since ``current`` was made."""
    if current is None:
        return ""
    if current.fingerprint == fingerprint:
        return f"changed: {changes.changed(current.metadata.get(ledger.READ, {}))}"
    return "changed: its code" if code and current.code_version != code else "changed: its inputs"
