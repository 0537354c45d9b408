"""One delivery: which files are to be loaded, whether drawn from a process or brought by a supplier.

A synthetic set is written as files first and then read like any other delivery, so that both take
the same path into the warehouse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from e2i_dagster.config.own_columns import disagreements
from e2i_dagster.config.sources import FileSource, SourcesPolicy, SyntheticSource
from e2i_dagster.display import Table, Words
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.policy_files import observed
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.policy_files.environment import state_folder

if TYPE_CHECKING:
    import sqlalchemy as sa

    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.loading.load import LoadReport
    from e2i_dagster.sources.files import Delivery


class LoadRefusedError(VerdictError):
    """A table was not loaded because too few of its rows were accepted."""


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
    """One file by name, size and digest of its bytes; ``lines`` below the header where it is text that was read.

    ``format`` as people call it, ``notes`` what the file says of its rows besides their cells, of files that were read.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    digest: str
    lines: int | None = None
    format: str | None = None
    notes: tuple[str, ...] = ()


class DeliveryManifest(BaseModel):
    """A delivery that was checked and can be loaded: where it is and exactly which bytes.

    ``folder`` is relative to the state folder where it lies in it, so that the state can be moved or restored
    elsewhere; ``place`` is where it is now.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    folder: str
    mapping: str | None
    files: tuple[DeliveredFile, ...]
    success_threshold: float
    reason: str | None = None
    resubmit: bool = False
    not_read: dict[str, str] = Field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The folder with the files."""
        return state_folder() / self.folder

    def to_metadata(self) -> dict[str, Any]:
        """Folder, kind, files and what was not read for the UI."""
        notes = [said for file in self.files for said in file.notes]
        return {
            "kind": self.kind,
            "folder": str(self.place),
            "mapping": self.mapping or "none",
            "accepted_share": self.success_threshold,
            "reason": self.reason,
            "files": Table(
                ("file", "format", "bytes", "lines", "digest"),
                [(file.name, file.format, file.size, file.lines, file.digest) for file in self.files],
            ),
            **({"notes": Words("\n\n".join(notes))} if notes else {}),
            "not_read": dict(self.not_read),
        }


def write_synthetic(
    source: SyntheticSource, folder: Path, file_format: Literal["csv", "parquet"]
) -> dict[Path, int]:
    """Draw the synthetic tables and write one file for each into ``folder``; returns rows per file."""
    from e2i_dagster.synthetic.generate import FULL, generate, write

    volumes = {
        name: max(6, round(FULL[name] * source.scale))
        for name in ("n_hcps", "n_patients", "n_metrics", "n_causal_paths", "n_activities")
    }
    tables = generate(
        source.dgp,
        n_hcps=volumes["n_hcps"],
        n_patients=volumes["n_patients"],
        n_metrics=volumes["n_metrics"],
        n_causal_paths=volumes["n_causal_paths"],
        n_activities=volumes["n_activities"],
        seed=source.seed,
        dirty=source.dirty,
    )
    paths = write(tables, folder, format=file_format)
    return {Path(path): len(tables[Path(path).stem]) for path in paths}


def prepare_delivery(
    request: DeliveryRequest,
    policy: SourcesPolicy,
    state: Path,
    cohorts: Mapping[str, CohortDefinition] | None = None,
) -> DeliveryManifest:
    """Find or draw the files of ``request`` and read them once, so that a wrong file stops before any work.

    Args:
        cohorts: definitions that the mapping's types of own columns have to agree with.

    Raises:
        InputError: every problem of the folder's files in one message.
        ConfigError: the mapping is wrong, or declares an own column otherwise than a cohort does.
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
        _agreeing(mapping, cohorts or {})
    manifest = DeliveryManifest(
        kind=source.kind,
        folder=str(folder.relative_to(state_folder()) if folder.is_relative_to(state_folder()) else folder),
        mapping=mapping,
        files=tuple(
            _described(path, path.relative_to(folder).as_posix()) for path in _delivered(folder, mapping)
        ),
        success_threshold=threshold,
        reason=request.reason,
        resubmit=request.resubmit,
    )
    if manifest.resubmit:
        return manifest
    read = read_delivery(manifest)
    # The marks of a synthetic set beside its files are our own.
    left = {} if isinstance(source, SyntheticSource) else dict(read.not_read)
    said: dict[Path, dict[str, Any]] = {}
    for file in (file for table in read.delivered.values() for file in table.files):
        said.setdefault(file.path, {"lines": file.lines, "format": file.format_name, "notes": file.notes})
    counted = tuple(file.model_copy(update=said.get(folder / file.name, {})) for file in manifest.files)
    return manifest.model_copy(update={"not_read": left, "files": counted})


def _agreeing(mapping: str | None, cohorts: Mapping[str, CohortDefinition]) -> None:
    """Refuse a mapping that declares an own column otherwise than a cohort."""
    from e2i_dagster.config.mapping import ImportMapping

    if mapping is None:
        return
    said = list(disagreements(ImportMapping.load(Path(mapping)), cohorts))
    if said:
        raise ConfigError.joined([ConfigError(f"{mapping}: {what}.", file=mapping) for what in said])


def _delivered(folder: Path, mapping: str | None) -> list[Path]:
    """Every file whose bytes decide what is read; the folder's problems are said when it is read."""
    from e2i_dagster.config.mapping import ImportMapping
    from e2i_dagster.sources.files import readable_files

    if not folder.is_dir():
        return []
    tables = ImportMapping() if mapping is None else ImportMapping.load(Path(mapping))
    patterns = (*tables.named_files, *tables.looked_up_files)
    named = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted({*readable_files(folder), *named})


def read_delivery(manifest: DeliveryManifest) -> Delivery:
    """All tables of ``manifest``; kept for the process, because eleven assets read the same delivery."""
    files = [file.digest for file in manifest.files]
    if manifest.mapping is not None and Path(manifest.mapping).is_file():
        files.append(_described(Path(manifest.mapping), "mapping").digest)
    return _read(str(manifest.place), manifest.mapping, tuple(files))


@observed.kept(maxsize=1)
def _read(folder: str, mapping: str | None, digests: tuple[str, ...]) -> Delivery:
    from e2i_dagster.sources.files import read

    return read(folder, mapping)


@dataclass(frozen=True)
class DeliveredRows:
    """One raw table after its load: accepted rows of the asked months, counts, months withheld.

    ``not_kept``: rows of earlier loads that lie outside the range of today, by reason.
    """

    frame: pd.DataFrame
    report: LoadReport | None
    withheld: Mapping[str, str]
    not_kept: Mapping[str, int] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, Any]:
        """Counts of the load; says so when the delivery had nothing for the table."""
        metadata: dict[str, Any] = {
            "load": "the delivery has no file of this table; rows of earlier loads are kept"
        }
        if self.report is not None:
            metadata = self.report.to_metadata()
        return metadata | ({"warehouse_rows_not_kept": dict(self.not_kept)} if self.not_kept else {})


def deliver_table(
    manifest: DeliveryManifest,
    table: str,
    *,
    engine: sa.Engine,
    run_id: str,
    months: Sequence[str] | None = None,
    all_months: bool = True,
    kept: tuple[str, str] | None = None,
) -> DeliveredRows:
    """Load ``table`` of the delivery and read back what the warehouse now has.

    Args:
        months: months (``YYYY-MM``) of an event table whose rows are returned; None for other tables.
        all_months: load every delivered row, also of other months; else rows of ``months`` only.
        kept: first and last month that event tables are kept for; see :func:`.load.load`.

    Raises:
        LoadRefusedError: too few rows were accepted, or a parent table failed; the table is as it was.
    """
    from e2i_dagster.loading.load import load_table
    from e2i_dagster.loading.read import read_accepted, rows_not_kept

    report = None
    if not manifest.resubmit and table in (delivered := read_delivery(manifest)):
        report = load_table(
            table,
            delivered[table],
            delivered=delivered.delivered[table],
            engine=engine,
            success_threshold=manifest.success_threshold,
            threshold_reason=manifest.reason,
            withhold_months=months is not None,
            months=None if months is None or all_months else months,
            kept=kept,
            load_id=run_id,
            run_id=run_id,
        )
        done = report.tables[table]
        if done.status in ("failed", "not_tried"):
            raise LoadRefusedError(f"{table}: {done.message or done.status}")
    withheld = {} if report is None else report.tables[table].withheld
    not_kept: dict[str, int] = {}
    if kept is not None:
        with engine.connect() as connection:
            not_kept = rows_not_kept(connection, table, kept)
    return DeliveredRows(
        read_accepted(engine, table, months),
        report,
        {month: why for month, why in withheld.items() if months is not None and month in months},
        not_kept,
    )


def resubmit_rejects(
    manifest: DeliveryManifest, *, engine: sa.Engine, run_id: str, kept: tuple[str, str] | None = None
) -> LoadReport:
    """Load the corrected rejects in the folder of ``manifest``, parents first, with waiting children.

    Args:
        kept: first and last month that event tables are kept for; see :func:`.load.load`.
    """
    from e2i_dagster.loading.resubmission import resubmit

    return resubmit(engine, str(manifest.place), new_load_id=run_id, run_id=run_id, kept=kept)


def dry_run_report(request: DeliveryRequest) -> dict[str, Any]:
    """Validate and count ``request`` against the warehouse without changing anything."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.loading.load import load

    sources = current_policy().sources
    manifest = prepare_delivery(request, sources, state_folder(), current_policy().cohorts)
    report: LoadReport = load(
        read_delivery(manifest),
        engine=engine(role="app"),
        success_threshold=manifest.success_threshold,
        withhold_months=True,
        kept=sources.kept_months,
        dry_run=True,
    )
    return report.model_dump(mode="json") | {"not_read": manifest.not_read}


def absent_tables(request: DeliveryRequest, policy: SourcesPolicy, engine: sa.Engine) -> dict[str, str]:
    """Raw tables that neither the delivery of ``request`` nor the warehouse has a row of, each with what to do.

    Nothing is read of the files. A folder that cannot be read as it is has no absent tables: its problems are said
    when it is read.
    """
    import sqlalchemy as sa

    from e2i_dagster.config.mapping import ImportMapping
    from e2i_dagster.sources.files import tables_of
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, raw_table

    source = _source_of(request, policy)
    if isinstance(source, SyntheticSource):
        return {}
    folder, mapping = Path(source.folder).expanduser(), source.mapping
    tables = tables_of(folder, ImportMapping() if mapping is None else ImportMapping.load(Path(mapping)))
    lacking = [name for name in (*RAW_TABLES, *OPTIONAL_RAW_TABLES) if tables and name not in tables]
    with engine.connect() as connection:
        return {
            name: f"no file of {folder.name} holds it and none was loaded before; a delivery that has it brings it in"
            for name in lacking
            if not connection.execute(
                sa.select(sa.exists(sa.select(1).select_from(raw_table(name))))
            ).scalar()
        }


def not_read_by(request: DeliveryRequest) -> dict[str, str]:
    """Files and folders of the requested folder that a load does not read, with the reasons."""
    from e2i_dagster.config.mapping import ImportMapping
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.sources.files import not_read

    source = _source_of(request, current_policy().sources)
    if isinstance(source, SyntheticSource):
        return {}
    folder = Path(source.folder).expanduser()
    if not folder.is_dir():
        return {}
    return not_read(
        folder, ImportMapping() if source.mapping is None else ImportMapping.load(Path(source.mapping))
    )


def _source_of(request: DeliveryRequest, policy: SourcesPolicy) -> SyntheticSource | FileSource:
    if request.folder is not None:
        return FileSource(kind="files", folder=request.folder, mapping=request.mapping)
    asked = {
        name: value for name in ("dgp", "scale", "seed") if (value := getattr(request, name)) is not None
    }
    if request.dirty:
        asked["dirty"] = True
    if isinstance(policy.source, SyntheticSource):
        return SyntheticSource.model_validate({**policy.source.model_dump(), **asked})
    return SyntheticSource.model_validate({"kind": "synthetic", **asked}) if asked else policy.source


def _described(path: Path, name: str) -> DeliveredFile:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return DeliveredFile(name=name, size=path.stat().st_size, digest=digest.hexdigest()[:16])
