"""A federation so small that a test can train it in a second, and what two runs are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
from PIL import Image

from privfr.experiment import Experiment, load_experiment
from privfr.faces.datasets import write_folder
from privfr.faces.sources import load_faces
from privfr.report import Report

SIZE = (64, 64)
# One computing thread: several small threads that wait for each other on busy cores cost minutes here.
TINY: dict[str, Any] = {
    "data.clients": 3,
    "data.test": 5,  # with four pictures each: enough impostor pairs for a threshold at FAR 1e-1
    "federation.rounds": 2,
    "federation.backend": "plain",
    "training.batch": 4,
    "engine.workers": 1,
    "engine.cores": 1,
}
WHOLE = TINY | {
    "data.public": 2,
    "pretraining.epochs": 2,
    "pretraining.warmup": 0.5,
    "baselines": ["individual", "centralised"],
}
"""Every stage that a run can have."""

_CLOCKS = {"run", "seconds", "server_seconds", "client_seconds", "profile", "overhead"}


def write_people(root: Path, identities: int = 12, images: int = 4, seed: int = 0) -> Path:
    """Draw synthetic people into a folder of identities."""
    source = f"synthetic:identities={identities},images={images},seed={seed}"
    write_folder(load_faces(source, SIZE), root)
    return root


def write_noise(root: Path, people: dict[str, int], side: int = 64) -> Path:
    """Make a folder of identities of noise: for tests that only need files to be there."""
    rng = np.random.default_rng(7)
    for name, count in people.items():
        (root / name).mkdir(parents=True)
        for number in range(1, count + 1):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{number:04d}.png")
    return root


def experiment(source: Path | str, base: dict[str, Any] = TINY, **changes: Any) -> Experiment:
    """Make an experiment; "data__clients=3" changes data.clients."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return load_experiment(None, base | {"data.source": str(source)} | dotted)


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor of a safetensors file, with its shape, as bytes."""
    found = safetensors.torch.load_file(path)
    return {
        f"{name} {tuple(tensor.shape)} {tensor.dtype}": tensor.contiguous().numpy().tobytes()
        for name, tensor in found.items()
    }


def models(directory: Path) -> dict[str, dict[str, bytes]]:
    """Every tensor a run left behind: its models, and what would be on the clients' devices."""
    paths = sorted(directory.rglob("*.safetensors"))
    assert paths, f"no model in {directory}"
    return {str(path.relative_to(directory)): tensors(path) for path in paths}


def differing(one: Path, other: Path) -> list[str]:
    """Files of two run directories that differ in a tensor, or that only one of them has."""
    first, second = models(one), models(other)
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]


def facts(report: Report) -> Any:
    """A report without what depends on the clock, the place and the run's own number."""
    tree = msgspec.to_builtins(report)
    tree["experiment"].pop("engine")
    tree["experiment"]["federation"].pop("backend")
    return _without_clocks(tree)


def _without_clocks(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_clocks(value) for key, value in node.items() if key not in _CLOCKS}
    if isinstance(node, list | tuple):
        return [_without_clocks(value) for value in node]
    return node
