"""What does example-level privacy cost, against Opacus used bare and against training without?

    python -m benchmarks.private_training [--backbone resnet] [--pictures 512] [--json FILE]

The same network and head, batch of 32, steps, optimiser and noise multiplier, one thread: `fit_private`;
Opacus's `PrivacyEngine.make_private` with Poisson sampling, in its default mode ("hooks") and with ghost
clipping, both with the gradient sampler for heads that `fit_private` has registered; and `fit`. Seconds are
the process's own (`time.process_time`), the four take turns in one process, and each figure is the median
over the repeats. Nobody's faces: pictures of noise, which take as long.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from privfr.experiment import Training
from privfr.faces.backbones import to_tensor
from privfr.faces.datasets import Faces
from privfr.methods.supervised import Supervised
from privfr.privacy.example import ExampleLevel, fit_private
from privfr.stepping import optimiser_of
from privfr.trainer import fit

TRAINING = Training(batch=32, device="cpu", flip=False, shift=0)  # bare Opacus neither moves nor mirrors
PLAN = ExampleLevel(clip=1.0, noise=1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    method = Supervised(
        backbone=wanted.backbone, size=(64, 64), dim=256, head="cosface", scale=30.0, margin=0.35
    )
    faces = noise_faces(wanted.pictures)
    ways: dict[str, Callable[[], None]] = {
        "private": lambda: privately(method, faces),
        "opacus_hooks": lambda: bare(method, faces, "hooks"),
        "opacus_ghost": lambda: bare(method, faces, "ghost"),
        "no_privacy": lambda: openly(method, faces),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(wanted.repeats + 1):  # the first does not count
        for name, train in ways.items():
            started = time.process_time()
            train()
            if repeat:
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    hooks = seconds["opacus_hooks"]
    ratios = {
        f"{name}_to_opacus_hooks": statistics.median(a / b for a, b in zip(seconds[name], hooks, strict=True))
        for name in ways
        if name != "opacus_hooks"
    }
    result = {"backbone": wanted.backbone, "pictures": wanted.pictures, "seconds": medians, **ratios}
    print(json.dumps(result, indent=2))
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=2) + "\n")


def noise_faces(pictures: int, people: int = 16) -> Faces:
    """Make labelled pictures of noise."""
    rng = np.random.default_rng(0)
    names = tuple(f"person{i}" for i in range(people))
    files = tuple(f"{i}.png" for i in range(pictures))
    images = rng.integers(0, 256, (pictures, 64, 64, 3), np.uint8)
    return Faces(images, np.arange(pictures) % people, names, files)


def built(method: Supervised, faces: Faces) -> nn.Module:
    """Make the network in the memory order that privfr trains in; bare Opacus gets wrong gradients in it."""
    module = method.build(len(faces.names), 0)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def privately(method: Supervised, faces: Faces) -> None:
    """Train one epoch as privfr does."""
    fit_private(built(method, faces), method, faces, TRAINING, PLAN, lambda done: 1e-3, secrets.token_bytes)


def openly(method: Supervised, faces: Faces) -> None:
    """Train one epoch without privacy."""
    fit(built(method, faces), method, faces, TRAINING, lambda done: 1e-3, torch.Generator())


class Mean(nn.Module):
    """What ghost clipping asks of a loss: an attribute `reduction`, "mean" or, when it says so, "none"."""

    reduction = "mean"

    def forward(self, losses: Tensor) -> Tensor:
        """Reduce, or not."""
        return losses if self.reduction == "none" else losses.mean()


def bare(method: Supervised, faces: Faces, mode: str) -> None:
    """Train one epoch as Opacus's own examples do."""
    module = method.build(len(faces.names), 0).train()
    data = TensorDataset(to_tensor(faces.images).contiguous(), torch.from_numpy(faces.labels))
    settings = {"noise_multiplier": PLAN.noise, "max_grad_norm": PLAN.clip, "poisson_sampling": True}
    found = PrivacyEngine().make_private(
        module=module,
        optimizer=optimiser_of(module, TRAINING),
        data_loader=DataLoader(data, batch_size=TRAINING.batch),
        criterion=Mean(),
        grad_sample_mode=mode,
        **settings,
    )
    model, optimiser, loader = found[0], found[1], found[-1]
    criterion = found[2] if mode == "ghost" else Mean()
    for images, labels in loader:
        optimiser.zero_grad()
        criterion(model(images, labels)).backward()
        optimiser.step()


if __name__ == "__main__":
    main()
