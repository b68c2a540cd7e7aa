"""docs/experiment.md names every key of the experiment, with its default and its choices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from privfr.experiment import Experiment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "experiment.md"
ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+) \| `([^`]+)` \| (.+) \|$", re.MULTILINE)


def keys(node: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf: dotted key, annotation, default as JSON writes it."""
    for field in msgspec.structs.fields(node):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.type, json.dumps(msgspec.to_builtins(field.default))


def choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    for inner in get_args(annotation):
        yield from choices(inner)


ROWS = {match[1]: match for match in ROW.finditer(PAGE.read_text("utf-8"))}
KEYS = list(keys(Experiment))


def test_page_has_the_keys_of_the_experiment_and_no_other() -> None:
    assert set(ROWS) == {key for key, _, _ in KEYS}


@pytest.mark.parametrize(("key", "annotation", "default"), KEYS)
def test_default_and_choices_are_the_codes(key: str, annotation: Any, default: str) -> None:
    assert ROWS[key][3] == default
    for choice in choices(annotation):
        assert f'"{choice}"' in ROWS[key][2], f"{key}: the page does not name {choice!r}"
