"""Files that survive a kill: written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from privfr.errors import InputError

__all__ = ["TEMPORARY", "append_line", "write_atomic"]

TEMPORARY = ".part"


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    private: readable by its owner alone. Raises `InputError` naming the path where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o600 if private else 0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free or change the place"
        ) from None


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file, or, where the disk is full, none of it. Raises `InputError` then."""
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            data = line + b"\n"
            if file.write(data) != len(data):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); free or change the place") from None
