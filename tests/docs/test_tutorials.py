"""Every command and every line of Python in the README and the tutorials runs, in the reader's order."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from privfr_cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def privfr(line: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run `privfr ...` as its entry point does; gives the exit status."""
    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    try:
        app.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for language, text in BLOCK.findall(page.read_text("utf-8")):
        if language == "python":
            exec(compile(text, f"{page.name} (python)", "exec"), namespace)
            ran += 1
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("$ privfr "):
                assert privfr(line.removeprefix("$ "), monkeypatch) in (0, None), line
                ran += 1
    assert ran, "nothing on this page was run"
