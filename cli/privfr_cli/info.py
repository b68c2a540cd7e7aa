"""`privfr info`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from privfr_cli import render

_PACKAGES = ("privfr", "torch", "torchvision", "tenseal", "opacus", "pynacl", "cryptography", "flwr")


def command(
    clients: Annotated[
        int | None, typer.Option(help="Also show what masking among so many clients comes to.")
    ] = None,
    corruption: Annotated[float, typer.Option(help="Share that may collude with the server.")] = 0.05,
    dropout: Annotated[float, typer.Option(help="Share that may be lost in a round.")] = 0.05,
    json: Annotated[bool, typer.Option("--json", help="The facts alone on standard output.")] = False,
) -> None:
    """Show versions, this machine, and for each backend who learns what."""
    import torch

    from privfr.backends import BACKENDS, backend
    from privfr.cores import usable_cores

    options = {"corruption": corruption, "dropout": dropout, "neighbours": 0, "shares": 0}
    derived = _derived(clients, options) if clients is not None else {}

    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    machine = {"cores": usable_cores(), "cuda": torch.cuda.is_available()}
    backends = [{"name": name, **_facts(backend(name))} for name in BACKENDS]
    if json:
        masking = {"masking": {"clients": clients, **derived}} if derived else {}
        render.json({"versions": versions, "machine": machine, "backends": backends} | masking)
        return
    render.out.print("  ".join(f"{name} {found}" for name, found in versions.items()), soft_wrap=True)
    render.out.print(f"{machine['cores']} cores, {'a GPU' if machine['cuda'] else 'no GPU'}\n")
    rows = [[each["name"], each["server_learns"], each["trust"]] for each in backends]
    render.table("Backends", ("name", "server learns", "who sees what"), rows, prose=True)
    if derived:
        render.out.print(f"\nMasking among {clients} clients", style="bold")
        render.promise(derived)


def _derived(clients: int, options: dict[str, float]) -> dict[str, float]:
    """What masking among so many clients comes to, with the threshold that `privfr run` takes."""
    from privfr.backends import backend
    from privfr.experiment import Data, Experiment

    masking = backend("masking")
    fewest = masking.fewest(clients, options)
    threshold = Experiment(data=Data(clients=clients)).resolved(fewest).federation.threshold
    return masking.describe(clients, threshold, options)


def _facts(found: object) -> dict[str, str]:
    return {name: getattr(found, name) for name in ("server_learns", "trust")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
