"""Files that survive a crash between any two system calls."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from privfr.errors import InputError
from privfr.storage import write_atomic

# Writes over a file and dies by SIGKILL at the n-th of the calls that touch the disk.
DYING = """
import os, signal, sys
from pathlib import Path
from privfr import storage
calls = 0
def deadly(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.fsync, Path.chmod, Path.replace = deadly(os.fsync), deadly(Path.chmod), deadly(Path.replace)
storage.write_atomic(Path(sys.argv[1]), b"new" * 100_000)
"""


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_atomic(path, b"old and longer")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_crash_leaves_the_old_content(call: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    found = subprocess.run([sys.executable, "-c", DYING, str(path), str(call)])
    assert found.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_without_a_crash_the_same_program_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "file"), "4"], check=True)
    assert (tmp_path / "file").read_bytes() == b"new" * 100_000


def test_what_is_private_is_for_the_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "private", b"x", private=True)
        write_atomic(tmp_path / "public", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="below: cannot be written"):
        write_atomic(tmp_path / "file" / "below", b"x")


def test_a_folder_in_the_way_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match="taken: cannot be written"):
        write_atomic(tmp_path / "taken", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
