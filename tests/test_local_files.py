"""Files are replaced whole or not at all, private ones are their owner's alone, and a lock keeps others out."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from e2i_dagster.local_files import create_private, file_lock, replacing, write_private, write_text


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.txt"
    write_text(path, "whole ä")
    with pytest.raises(OSError, match="disk"), replacing(path) as aside:
        aside.write_text("half")
        raise OSError("disk")
    assert path.read_text(encoding="utf-8") == "whole ä"
    assert list(path.parent.iterdir()) == [path]


def test_private_files_are_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text("readable by all")
    write_private(path, "secret")
    assert path.read_text() == "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_first_of_two_makes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "a.key"
    create_private(path, "first")
    create_private(path, "second")
    assert path.read_text() == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_keeps_another_process_out_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.lock"
    code = (
        "import sys\nfrom pathlib import Path\nfrom e2i_dagster.local_files import file_lock\n"
        "with file_lock(Path(sys.argv[1])):\n    print('mine', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(TimeoutError), file_lock(path, 0):
            pass
        other.kill()
        other.wait()
        with file_lock(path, 10):
            assert path.exists()
