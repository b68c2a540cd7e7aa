"""The documents say of each backend what the backend says of itself."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from privfr.backends import BACKENDS, backend, trusted

ROOT = Path(__file__).resolve().parents[2]


def words(text: str) -> str:
    """Text without its line breaks, quote marks and code marks."""
    return " ".join(line.removeprefix("> ") for line in text.replace("`", "").splitlines()).replace("  ", " ")


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "docs/threat-model.md"])
def test_page_quotes_every_backends_trust(page: str, name: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert f"`{name}`" in text
    assert backend(name).trust in words(text)


def test_threat_model_quotes_the_trusted_backends_own_account() -> None:
    _, _, account = inspect.cleandoc(trusted.__doc__ or "").partition("Who learns what\n")
    account = " ".join(account.split("\n\n")[0].split())
    assert len(account) > 100
    assert account in " ".join(words((ROOT / "docs/threat-model.md").read_text("utf-8")).split())
