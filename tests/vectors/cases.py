"""The form of a test vector, and bytes that nobody chose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

__all__ = ["OURS", "SPEC_FIELDS", "Case", "bad", "case", "made_up"]

OURS = "privfr, independent reference in tests/vectors/reference.py"

# Of a RoundSpec, in the order of its encoding; its parameters come after them.
SPEC_FIELDS = (
    "run", "round", "backend", "clients", "threshold", "metrics", "size", "layout", "model", "config"
)  # fmt: skip

Case = dict[str, Any]


def case(name: str, given: Mapping[str, Any], gives: Mapping[str, Any], source: str = OURS) -> Case:
    """What a step makes of something."""
    return {"name": name, "source": source, "given": given, "gives": gives}


def bad(name: str, error: str, source: str = OURS, /, **given: Any) -> Case:
    """What a step refuses, and the class of the error."""
    return {"name": name, "source": source, "given": given, "error": error}


def made_up(text: str, length: int = 32) -> bytes:
    """SHAKE-256 of a text."""
    return hashlib.shake_256(text.encode()).digest(length)
