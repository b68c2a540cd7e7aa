"""docs/protocol.md shows the tables that the machine runs, not those it ran once."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from privfr.backends import BACKENDS, backend

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def diagram() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "diagram.py"), run_name="diagram")


def test_page_is_what_the_generator_makes(diagram: dict[str, Any]) -> None:
    page = (DOCS / "protocol.md").read_text("utf-8")
    assert diagram["updated"](page) == page, "stale: run `python docs/diagram.py`"


def test_hand_written_text_outside_the_markers_stays(diagram: dict[str, Any]) -> None:
    start, end = diagram["START"], diagram["END"]
    page = diagram["updated"](f"before\n{start}\nold\n{end}\nafter\n")
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    assert "\nold\n" not in page


@pytest.mark.parametrize("name", list(BACKENDS))
def test_diagram_shows_every_phase_in_order(diagram: dict[str, Any], name: str) -> None:
    drawn = "\n".join(diagram["sequence"](backend(name)))
    at = [drawn.index(f"C->>S: {diagram['tag'](step.collects)} (") for step in backend(name).server_steps]
    assert at == sorted(at)
    assert (
        drawn.index("S->>C: begin (") < at[0] < drawn.index("S->>C: result (") < drawn.index("C->>S: ack (")
    )
