"""For whom and for which days features are computed, and the Parquet files that Feast reads.

A feature file is complete: it holds every snapshot of its view. Its name is the digest of its
values, so a file is never changed, a source pinned to a path is pinned to a version, and the same
values are not written twice. Length and checksum tell a damaged file from the one that was written.
"""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict
from upath import UPath

from e2i_dagster.config.current_features import feature_views, view_named
from e2i_dagster.config.feast_materialization import SnapshotPolicy
from e2i_dagster.config.feature_views import ARRIVAL, TIMESTAMP, Feature, FeatureView
from e2i_dagster.display import Table
from e2i_dagster.errors import DamagedError, InputError, UnavailableError
from e2i_dagster.features.compute import end_of_day
from e2i_dagster.policy_files.base import digest_of

#: Each patient's keys of the other views: what a request that names the patient alone is answered by. Never a feature.
PATIENT_KEYS = FeatureView(
    name="patient_keys",
    keys=("patient_id",),
    description="Professional, brand and region by which the values of a patient are found.",
    features=(
        Feature(
            name="hcp_id", description="Professional at the index date.", value="patient_journeys.hcp_id"
        ),
        Feature(name="brand", description="Brand of the scope.", value="patient_journeys.brand"),
        Feature(
            name="region",
            description="Region at the index date.",
            value="patient_journeys.geographic_region",
        ),
    ),
)

_SPINE = ("patient_id", "patient_journey_id", "hcp_id", "index_date")


class FeatureFile(BaseModel):
    """One immutable file: the rows of one view.

    ``oldest`` and ``newest`` are event timestamps; ``size`` (bytes) and ``checksum`` (SHA-256) those of the file,
    None of one that was written before they were kept. ``definition``: how the values were made.
    """

    model_config = ConfigDict(frozen=True)

    view: str
    path: str
    digest: str
    rows: int
    oldest: dt.datetime | None
    newest: dt.datetime | None
    size: int | None = None
    checksum: str | None = None
    definition: FeatureView | None = None


class FeatureFiles(BaseModel):
    """One file for each view, together one version of a scope's features.

    ``patient_keys``: the file of :data:`PATIENT_KEYS`; None of files that were written before it was kept.
    """

    model_config = ConfigDict(frozen=True)

    files: tuple[FeatureFile, ...]
    patient_keys: FeatureFile | None = None

    @property
    def stored(self) -> tuple[FeatureFile, ...]:
        """All files: those of the views, and that of the patients' keys."""
        return self.files if self.patient_keys is None else (*self.files, self.patient_keys)

    @property
    def digest(self) -> str:
        """Digest over views and digests of the files; paths do not matter."""
        return digest_of(sorted((file.view, file.digest) for file in self.stored))

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """The views as they were when the files were written, whatever is configured now."""
        return tuple(file.definition or view_named(file.view) for file in self.files)

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def of(self, view: str) -> FeatureFile:
        """The file of ``view``."""
        for file in self.stored:
            if file.view == view:
                return file
        raise InputError(
            f"There is no file of {view}; there are files of {', '.join(file.view for file in self.files)}.",
            field="view",
            value=view,
        )

    def damage(self) -> str:
        """The first file that is missing or not what was written, and what is wrong with it; empty when none is."""
        return next((f"damaged: {file.path}, {found}" for file, found in self._damaged()), "")

    def require_whole(self) -> None:
        """Refuse to read files that are not what was written.

        Raises:
            DamagedError: a file is missing or damaged; it is named.
        """
        for file, found in self._damaged():
            raise DamagedError.of(file.path, found, "feature_values")

    def _damaged(self) -> Iterator[tuple[FeatureFile, str]]:
        from e2i_dagster.versions.files import damage

        for file in self.stored:
            found = damage(UPath(file.path), file.size, file.checksum)
            if found:
                yield file, found

    def to_metadata(self) -> dict[str, Any]:
        """Rows and digest of each view, and the digest over all."""
        views = Table(
            ("view", "rows", "from", "to", "digest"),
            [
                (file.view, file.rows, _day(file.oldest), _day(file.newest), file.digest)
                for file in self.files
            ],
        )
        return {"rows": self.rows, "digest": self.digest, "views": views}


def spine(cohort: pd.DataFrame, tables: Mapping[str, pd.DataFrame], *, brand: str) -> pd.DataFrame:
    """The cohort's patients with every key that the views are joined by.

    Args:
        cohort: patient_id, patient_journey_id, hcp_id (may be null), index_date; one row per patient and index
            date.
            ``label``, ``set`` and any other column are carried along.
        tables: raw tables; ``patient_journeys`` gives the region and says when its rows arrived.
        brand: the scope's brand.

    Returns:
        ``cohort`` with ``brand`` and ``region`` (null where the patient's region is), in its order. Region and
        professional come from the patient's row, so both are null where it arrived after the index date.

    Raises:
        InputError: a column is missing, an index date is null or repeated for a patient.
    """
    absent = [name for name in _SPINE if name not in cohort.columns]
    if absent:
        raise InputError(
            f"The cohort lacks {', '.join(absent)}; features need {', '.join(_SPINE)}.",
            field=absent[0],
            remedy="Give the frame of a cohort, as `build_cohort` returns it.",
        )
    undated = int(cohort["index_date"].isna().sum())
    if undated:
        raise InputError(
            f"{undated} patients of the cohort have no index date; a cohort gives one to each.",
            field="index_date",
            remedy="Give the frame of a cohort, as `build_cohort` returns it.",
        )
    repeated = int(cohort.duplicated(["patient_id", "index_date"]).sum())
    if repeated:
        raise InputError(
            f"{repeated} rows of the cohort repeat an index date of a patient.",
            field="index_date",
            remedy="Keep one row for each index date of a patient.",
        )
    journeys = tables["patient_journeys"][["patient_journey_id", "geographic_region", ARRIVAL]]
    regions = journeys.drop_duplicates("patient_journey_id").set_index("patient_journey_id")
    result = cohort.reset_index(drop=True)
    result["brand"] = pd.Series(brand, index=result.index, dtype="string[pyarrow]")
    found = result["patient_journey_id"].map(regions["geographic_region"])
    result["region"] = found.astype("string[pyarrow]")
    arrived = pd.to_datetime(result["patient_journey_id"].map(regions[ARRIVAL]), utc=True).dt.tz_localize(
        None
    )
    late = arrived.dt.normalize() > pd.to_datetime(result["index_date"]).dt.normalize()
    result.loc[late, ["hcp_id", "region"]] = pd.NA
    return result


def labelled_spine(labels: pd.DataFrame, journeys: pd.DataFrame, *, brand: str) -> pd.DataFrame:
    """:func:`spine` of the patients of ``labels`` whose outcome is known, with their ``label``."""
    return spine(_of_set(labels, "labelled"), {"patient_journeys": journeys}, brand=brand)


def scoring_spine(labels: pd.DataFrame, journeys: pd.DataFrame, *, brand: str) -> pd.DataFrame:
    """:func:`spine` of the patients of ``labels`` whose outcome is not known yet; without ``label``."""
    rows = spine(_of_set(labels, "scoring"), {"patient_journeys": journeys}, brand=brand)
    return rows.drop(columns="label")


def _of_set(labels: pd.DataFrame, which: str) -> pd.DataFrame:
    return labels[(labels["set"] == which).to_numpy()]


def snapshot_entities(
    rows: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    *,
    data_end: dt.date,
    policy: SnapshotPolicy,
) -> dict[str, pd.DataFrame]:
    """Entities and days for which each view is computed, by the keys of the view.

    Every view gets the day before each index date. Professionals, and brands and regions, also get the last
    month ends up to ``data_end`` (professionals: all of them). With ``scoring_patients_at:
    data_end`` the patients whose ``set`` is ``scoring`` also get the last day of the data.

    Args:
        rows: the frame of :func:`spine`.
        tables: raw tables; ``hcp_profiles`` lists the professionals.
        data_end: last day of the data.
        policy: which month ends, which day for scoring patients.

    Returns:
        Frames with keys and ``as_of`` by view name, for :func:`~e2i_dagster.features.compute.compute_views`.
    """
    last = pd.Timestamp(data_end)
    patients = rows[["patient_id", "patient_journey_id"]].assign(as_of=_day_before(rows["index_date"]))
    if policy.scoring_patients_at == "data_end":
        if "set" not in rows.columns:
            raise InputError(
                "The cohort has no column set, which says who is to be scored.",
                field="set",
                remedy="Give the labelled cohort, as `label_cohort` returns it.",
            )
        scoring = patients[(rows["set"] == "scoring").to_numpy()].assign(as_of=last)
        patients = pd.concat([patients, scoring])
    patients = patients.drop_duplicates(["patient_id", "as_of"]).reset_index(drop=True)

    needed = rows.assign(as_of=_day_before(rows["index_date"]))
    professionals = tables["hcp_profiles"][["hcp_id"]].dropna().drop_duplicates()

    def of_keys(keys: tuple[str, ...]) -> pd.DataFrame:
        if keys == ("patient_id",):
            return patients
        named = professionals if keys == ("hcp_id",) else rows[list(keys)].dropna().drop_duplicates()
        count = policy.hcp_month_ends if keys == ("hcp_id",) else policy.market_month_ends
        return _with_month_ends(needed[[*keys, "as_of"]], named, _month_ends(last, count))

    return {view.name: of_keys(view.keys) for view in feature_views()}


def _day_before(days: pd.Series) -> pd.Series:
    return pd.to_datetime(days).dt.normalize().astype("datetime64[us]") - pd.Timedelta(days=1).as_unit("us")


def _month_ends(last: pd.Timestamp, count: int) -> pd.DatetimeIndex:
    newest = last if last.is_month_end else last - pd.offsets.MonthEnd(1)
    return pd.date_range(end=newest, periods=count, freq="ME")


def _with_month_ends(needed: pd.DataFrame, keys: pd.DataFrame, days: pd.DatetimeIndex) -> pd.DataFrame:
    ends = keys.merge(pd.DataFrame({"as_of": days.astype("datetime64[us]")}), how="cross")
    return pd.concat([needed.dropna(), ends]).drop_duplicates().reset_index(drop=True)


def patient_keys(rows: pd.DataFrame) -> pd.DataFrame:
    """The frame of :data:`PATIENT_KEYS`: each patient's keys, known the day before each index date.

    Args:
        rows: the frame of :func:`spine`.
    """
    keys = rows[["patient_id"]].astype("string[pyarrow]")
    keys[TIMESTAMP] = end_of_day(_day_before(rows["index_date"]))
    for name in PATIENT_KEYS.feature_names:
        keys[name] = rows[name].astype("string[pyarrow]")
    return keys.reset_index(drop=True)


def write_views(
    frames: Mapping[str, pd.DataFrame], folder: Any, *, keys: pd.DataFrame | None = None
) -> FeatureFiles:
    """Write one Parquet file per view to ``folder/<view>/<digest>.parquet``.

    A file that is there and whole is not written again. Rows are sorted, so that equal values are equal files.
    Files are written aside and renamed.

    Args:
        frames: computed frames by view name; every view must be there.
        folder: a path or address that ``universal-pathlib`` understands.
        keys: the frame of :func:`patient_keys`; without it nobody is answered by the patient's key alone.

    Raises:
        InputError: a view is missing, a frame is not one of its view, a key and time is repeated.
        UnavailableError: the folder cannot be written to.
    """
    views = feature_views()
    absent = [view.name for view in views if view.name not in frames]
    if absent:
        raise InputError(
            f"There is no frame of {', '.join(absent)}: all views are written together.",
            field="frames",
            value=absent[0],
            remedy="Give the frame of every view.",
        )
    root = UPath(folder)
    return FeatureFiles(
        files=tuple(_written(view, frames[view.name], root) for view in views),
        patient_keys=None if keys is None else _written(PATIENT_KEYS, keys, root),
    )


def _written(view: FeatureView, given: pd.DataFrame, root: UPath) -> FeatureFile:
    from e2i_dagster.versions.digest import frame_digest
    from e2i_dagster.versions.files import checksum_of, damage

    frame = _checked(view, given)
    digest = frame_digest(frame)
    target = root / view.name / f"{digest}.parquet"
    content = _content(view, frame)
    size, checksum = len(content), checksum_of(content)
    if damage(target, size, checksum):
        _write(content, target)
    stamps = frame[TIMESTAMP]
    return FeatureFile(
        view=view.name,
        path=str(target),
        digest=digest,
        rows=len(frame),
        oldest=None if frame.empty else stamps.min().to_pydatetime(),
        newest=None if frame.empty else stamps.max().to_pydatetime(),
        size=size,
        checksum=checksum,
        definition=view,
    )


def _checked(view: FeatureView, frame: pd.DataFrame) -> pd.DataFrame:
    name = view.name
    expected = [*view.keys, TIMESTAMP, *view.feature_names]
    if list(frame.columns) != expected:
        raise InputError(
            f"{name}: found the columns {', '.join(frame.columns)}.",
            field=name,
            remedy=f"Give the columns {', '.join(expected)}.",
        )
    if str(frame[TIMESTAMP].dtype) != "datetime64[us, UTC]":
        raise InputError(
            f"{name}.{TIMESTAMP}: found {frame[TIMESTAMP].dtype}; expected datetime64[us, UTC], "
            "because the point-in-time join compares microseconds.",
            field=f"{name}.{TIMESTAMP}",
            value=str(frame[TIMESTAMP].dtype),
        )
    repeated = int(frame.duplicated([*view.keys, TIMESTAMP]).sum())
    if repeated:
        raise InputError(
            f"{name}: {repeated} rows repeat the same keys and time.", field=name, remedy="Give each once."
        )
    return frame


def _content(view: FeatureView, frame: pd.DataFrame) -> bytes:
    """The Parquet file of ``frame``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"int": pa.int64(), "float": pa.float64(), "string": pa.string()}
    schema = pa.schema(
        [
            *((key, pa.string()) for key in view.keys),
            (TIMESTAMP, pa.timestamp("us", tz="UTC")),
            *((feature.name, types[feature.dtype]) for feature in view.features),
        ]
    )
    ordered = frame.sort_values([*view.keys, TIMESTAMP])
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(ordered, schema=schema, preserve_index=False), stream)
    return stream.getvalue()


def _write(content: bytes, target: UPath) -> None:
    from e2i_dagster.versions.files import put, write_aside

    try:
        put(write_aside(target, content), target)
    except OSError as error:
        raise UnavailableError(
            f"The feature files cannot be written to {target.parent} ({error.strerror or error}).",
            remedy="Free space or correct the permissions of the lake, then run again; nothing was changed.",
        ) from error


def _day(stamp: dt.datetime | None) -> str:
    return "" if stamp is None else stamp.date().isoformat()
