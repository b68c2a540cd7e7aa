"""Files that survive a kill: written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from privfr.errors import InputError

__all__ = ["write_atomic"]


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    private: readable by its owner alone. Raises `InputError` naming the path where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
