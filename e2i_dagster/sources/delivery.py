"""One delivery: which files are to be loaded, whether drawn from a process or brought by a supplier.

A synthetic set is written as files first and then read like any other delivery, so that both take
the same path into the warehouse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from e2i_dagster.config.base import digest_of
from e2i_dagster.config.sources import FileSource, SourcesPolicy, SyntheticSource

if TYPE_CHECKING:
    import sqlalchemy as sa

    from e2i_dagster.sources.files import Delivery
    from e2i_dagster.warehouse.load import LoadReport

#: Volumes of the full set that ``scale`` multiplies (facts of the product: docs/synthetic.md).
FULL_VOLUMES: Mapping[str, int] = {
    "n_hcps": 5_000,
    "n_patients": 25_000,
    "n_treatments": 75_000,
    "n_engagements": 15_000,
    "n_outcomes": 10_000,
    "n_predictions": 20_000,
    "n_triggers": 12_000,
    "n_metrics": 10_000,
}


class DeliveryRequest(BaseModel):
    """What somebody asks to load; what is not said comes from ``config/sources.yaml``.

    ``resubmit`` says that ``folder`` holds corrected rejects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str | None = None
    mapping: str | None = None
    dgp: str | None = None
    scale: float | None = Field(default=None, gt=0)
    seed: int | None = None
    dirty: bool = False
    threshold: float | None = Field(default=None, ge=0, le=1)
    reason: str | None = None
    resubmit: bool = False


class DeliveredFile(BaseModel):
    """One file by name, size and digest of its bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    digest: str


class DeliveryManifest(BaseModel):
    """A delivery that was checked and can be loaded: where it is and exactly which bytes."""

    model_config = ConfigDict(frozen=True)

    kind: str
    folder: str
    mapping: str | None
    files: tuple[DeliveredFile, ...]
    success_threshold: float
    reason: str | None = None
    resubmit: bool = False

    def to_metadata(self) -> dict[str, Any]:
        """Folder, kind and files for the UI."""
        lines = ["| file | bytes | digest |", "|---|---:|---|"]
        lines += [f"| {file.name} | {file.size:,} | `{file.digest}` |" for file in self.files]
        return {
            "kind": self.kind,
            "folder": self.folder,
            "mapping": self.mapping or "none",
            "accepted_share": self.success_threshold,
            "reason": self.reason,
            "files_md": "\n".join(lines),
        }


def write_synthetic(source: SyntheticSource, folder: Path, file_format: str) -> dict[Path, int]:
    """Draw the synthetic tables and write one file for each into ``folder``; returns rows per file."""
    from e2i_dagster.sources.synthetic import generate, write

    volumes = {name: max(1, round(full * source.scale)) for name, full in FULL_VOLUMES.items()}
    tables = generate(source.dgp, seed=source.seed, dirty=source.dirty, **volumes)
    paths = write(tables, folder, format=file_format)
    return {Path(path): len(tables[Path(path).stem]) for path in paths}


def prepare_delivery(request: DeliveryRequest, policy: SourcesPolicy, state: Path) -> DeliveryManifest:
    """Find or draw the files of ``request`` and read them once, so that a wrong file stops before any work.

    Raises:
        InputError: every problem of the folder's files in one message.
        ConfigError: the mapping is wrong.
    """
    threshold = policy.success_threshold if request.threshold is None else request.threshold
    source = _source_of(request, policy)
    if isinstance(source, SyntheticSource):
        folder = state / "deliveries" / f"synthetic-{digest_of(source.model_dump(mode='json'))}"
        if not (folder / "complete").exists():
            write_synthetic(source, folder, "parquet")
            (folder / "complete").touch()
        mapping = None
    else:
        folder, mapping = Path(source.folder).expanduser().absolute(), source.mapping
    manifest = DeliveryManifest(
        kind=source.kind,
        folder=str(folder),
        mapping=mapping,
        files=tuple(_described(path) for path in sorted(folder.glob("*")) if path.suffix in (".csv", ".parquet")),
        success_threshold=threshold,
        reason=request.reason,
        resubmit=request.resubmit,
    )
    read_delivery(manifest)
    return manifest


@lru_cache(maxsize=1)
def read_delivery(manifest: DeliveryManifest) -> Delivery:
    """All tables of ``manifest``; kept for the process, because eleven assets read the same delivery."""
    from e2i_dagster.sources.files import read

    return read(manifest.folder, manifest.mapping)


def dry_run_report(request: DeliveryRequest) -> dict[str, Any]:
    """Validate and count ``request`` against the warehouse without changing anything."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.config.environment import state_folder
    from e2i_dagster.warehouse.connection import engine
    from e2i_dagster.warehouse.load import load

    manifest = prepare_delivery(request, current_policy().sources, state_folder())
    report: LoadReport = load(
        read_delivery(manifest),
        engine=_engine(engine),
        success_threshold=manifest.success_threshold,
        dry_run=True,
    )
    return report.model_dump(mode="json")


def _engine(make: Any) -> sa.Engine:
    return make(role="app")


def _source_of(request: DeliveryRequest, policy: SourcesPolicy) -> SyntheticSource | FileSource:
    if request.folder is not None:
        return FileSource(kind="files", folder=request.folder, mapping=request.mapping)
    asked = {
        name: value
        for name in ("dgp", "scale", "seed")
        if (value := getattr(request, name)) is not None
    }
    if request.dirty:
        asked["dirty"] = True
    if isinstance(policy.source, SyntheticSource):
        return SyntheticSource.model_validate({**policy.source.model_dump(), **asked})
    return SyntheticSource.model_validate({"kind": "synthetic", **asked}) if asked else policy.source


def _described(path: Path) -> DeliveredFile:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return DeliveredFile(name=path.name, size=path.stat().st_size, digest=digest.hexdigest()[:16])
