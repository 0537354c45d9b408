"""The lake: what was stored is read as it was written, or named as damaged, and storing it again mends it."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from e2i_dagster.errors import DamagedError
from e2i_dagster.versions.files import StoredFile
from e2i_dagster.versions.lake import Lake, value_digest


class Summary(BaseModel):
    """A document of the lake."""

    name: str
    counts: dict[str, int]


FRAME = pd.DataFrame({"patient_id": [f"P{n}" for n in range(200)], "cost": range(200)})
SUMMARY = Summary(name="all", counts={str(n): n for n in range(50)})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position % len(content)] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARMS = {
    truncate: "bytes long where",
    flip: "other content",
    delete: "missing",
    empty: "0 bytes long",
}


def stored(lake: Lake, value) -> StoredFile:
    return lake.write("costs", "2024-01", value).file


def read(lake: Lake, file: StoredFile):
    return lake.read_frame([file]) if file.path.endswith(".parquet") else lake.read_document(file, Summary)


def same(one, other) -> bool:
    return value_digest(one) == value_digest(other)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("value", [FRAME, SUMMARY], ids=["frame", "document"])
def test_a_damaged_file_is_named_and_storing_the_value_again_replaces_it(tmp_path, value, harm):
    lake = Lake(str(tmp_path))
    file = stored(lake, value)
    assert lake.damage(file) == "" and same(read(lake, file), value)

    harm(tmp_path / file.path)
    with pytest.raises(DamagedError) as caught:
        read(lake, file)
    assert file.path in str(caught.value) and HARMS[harm] in str(caught.value)
    assert caught.value.file == str(tmp_path / file.path) and "Run again" in str(caught.value.remedy)

    pending = lake.set_aside({file.path: (value, value_digest(value))}, {file.path: file})
    lake.put(pending)
    assert same(read(lake, pending[0].version.file), value)
    assert [path.name for path in (tmp_path / "costs" / "2024-01").iterdir()] == [Path(file.path).name]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    return lake, (stored(lake, FRAME), stored(lake, SUMMARY))


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 1), position=st.integers(0, 100_000), cut=st.booleans())
def test_no_byte_changes_and_no_end_is_lost_unseen(two, which, position, cut):
    lake, files = two
    path = Path(str(lake.root / files[which].path))
    whole = path.read_bytes()
    try:
        if cut:
            path.write_bytes(whole[: position % len(whole)])
        else:
            flip(path, position)
        assert lake.damage(files[which])
        with pytest.raises(DamagedError, match="is damaged"):
            read(lake, files[which])
    finally:
        path.write_bytes(whole)
    assert lake.damage(files[which]) == ""


@pytest.mark.parametrize("value", [FRAME, SUMMARY], ids=["frame", "document"])
@pytest.mark.parametrize("harm", [truncate, delete, empty], ids=lambda harm: harm.__name__)
def test_a_file_from_before_checksums_were_kept_is_looked_at_too(tmp_path, value, harm):
    lake = Lake(str(tmp_path))
    old = StoredFile(stored(lake, value).path)
    assert lake.not_reusable(old) == "" and same(read(lake, old), value)
    harm(tmp_path / old.path)
    assert lake.not_reusable(old)
    with pytest.raises(DamagedError, match="is damaged"):
        read(lake, old)


def test_a_whole_file_is_not_written_again(tmp_path):
    lake = Lake(str(tmp_path))
    file = stored(lake, FRAME)
    before = (tmp_path / file.path).stat()
    # The same values in another order: equal digest, other bytes.
    turned = FRAME.iloc[::-1].reset_index(drop=True)
    (again,) = lake.set_aside({file.path: (turned, value_digest(turned))}, {file.path: file})
    assert again.aside is None and again.version.file == file
    assert (tmp_path / file.path).stat().st_ino == before.st_ino


def test_nothing_is_left_of_what_was_set_aside_and_not_put(tmp_path):
    lake = Lake(str(tmp_path))
    pending = lake.set_aside({"costs/all/a.parquet": (FRAME, "a"), "costs/all/b.json": (SUMMARY, "b")}, {})
    assert len(list((tmp_path / "costs" / "all").iterdir())) == 2
    lake.discard(pending)
    assert list((tmp_path / "costs" / "all").iterdir()) == []


def test_one_file_that_cannot_be_written_leaves_nothing_of_the_others(tmp_path):
    from e2i_dagster.errors import UnavailableError

    lake = Lake(str(tmp_path))
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    with pytest.raises(UnavailableError, match="cannot be written to"):
        lake.set_aside({"costs/all/a.json": (SUMMARY, "a"), "blocked/all/b.json": (SUMMARY, "b")}, {})
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".part")] == []
