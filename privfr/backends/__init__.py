"""Backends: interchangeable ways of adding up. A name is imported only when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module

from privfr.errors import InputError
from privfr.protocol import Backend

__all__ = ["BACKENDS", "backend"]

# name -> module and constant; a new backend joins the CLI, the report and the contract tests by a line here.
BACKENDS = {
    "plain": ("privfr.backends.plain", "PLAIN"),
    "trusted": ("privfr.backends.trusted", "TRUSTED"),
    "masking": ("privfr.backends.masking", "MASKING"),
    "masking-passive": ("privfr.backends.masking", "MASKING_PASSIVE"),
    "bfv": ("privfr.backends.homomorphic", "BFV"),
    "ckks": ("privfr.backends.homomorphic", "CKKS"),
    "bfv-authority": ("privfr.backends.homomorphic", "BFV_AUTHORITY"),
    "ckks-authority": ("privfr.backends.homomorphic", "CKKS_AUTHORITY"),
}


def backend(name: str) -> Backend:
    """Look a backend up by its name. Raises `InputError` for an unknown one."""
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(BACKENDS)}"
        raise InputError(f"backend {name!r} does not exist: {hint}")
    module, constant = BACKENDS[name]
    found: Backend = getattr(import_module(module), constant)
    return found
