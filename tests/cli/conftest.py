"""The command as its user meets it: arguments in; exit code, standard output and standard error out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tiny import write_noise, write_people

from privfr_cli.app import main

FAST = ["--clients", "2", "--rounds", "1", "--test", "2", "--workers", "1", "--set", "engine.cores=1"]
# Masking protects nobody among two.
FAST += ["--backend", "plain"]


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def done(self) -> Outcome:
        """Assert success."""
        assert self.code == 0, self.err
        return self

    def refused(self, *words: str) -> str:
        """Assert that one last line on standard error says what is wrong, and holds these words."""
        assert self.code == 2, f"exit code {self.code}: {self.err}"
        assert self.out == ""
        assert "Traceback" not in self.err
        said = [line for line in self.err.splitlines() if line.startswith("privfr: ")]
        assert len(said) == 1, self.err
        assert self.err.endswith(f"{said[0]}\n"), self.err
        for word in words:
            assert word in said[0], f"{word!r} is not in: {said[0]}"
        return said[0]


Command = Callable[..., Outcome]


@pytest.fixture
def privfr() -> Iterator[Command]:
    """Call the command in this process: importing torch anew for each of a hundred tests takes minutes."""

    def call(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            patch.object(sys, "argv", ["privfr", *map(str, arguments)]),
        ):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return Outcome(code, out.getvalue(), err.getvalue())

    yield call


@pytest.fixture(scope="session")
def privfr_process() -> Command:
    """Call the command in a process of its own."""

    def call(*arguments: object, before: Callable[[], None] | None = None) -> Outcome:
        found = subprocess.run(
            [sys.executable, "-m", "privfr_cli.app", *map(str, arguments)],
            capture_output=True,
            text=True,
            preexec_fn=before,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100"},
            timeout=120,
        )
        return Outcome(found.returncode, found.stdout, found.stderr)

    return call


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic people with four pictures each, in a folder. Read only."""
    return write_people(tmp_path_factory.mktemp("data") / "people")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Four people with three pictures each; a test's own, to break as it likes."""
    return write_noise(tmp_path / "noise", dict.fromkeys(["Ann", "Bob", "Cid", "Dee"], 3))


@pytest.fixture(scope="session")
def trained(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory. Read only."""
    from tiny import experiment

    from privfr.runs import run

    directory = tmp_path_factory.mktemp("runs") / "trained"
    run(experiment(people), directory)
    return directory
