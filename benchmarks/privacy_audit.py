"""How much of the claimed epsilon can an attacker prove, and does noise that is left out show?

    python -m benchmarks.privacy_audit [--trials 4000] [--json FILE]

An attacker who knows everything but whether a canary took part scores what is released, many times in each
world; `privfr.privacy.audit` turns scores into a lower bound on epsilon that holds with 95 % confidence.

client   The canary is a client that sends the longest update there can be, through the coding of one round of
8
         clients, one of them corrupt, whose own noise the attacker knows and takes off.
example  The canary is a picture with the longest gradient there can be, among nine of no gradient, through
         `fit_private`: one round, one step with all pictures (q = 1), or two with half of them each (q =
         1/2).

Each line: epsilon claimed, epsilon proven. Proven must be below claimed and above 0; `no noise` is the
positive control, in which it must be far above. Bounds grow with the trials.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.coding import Coding, FixedPoint, Noise
from privfr.experiment import Training
from privfr.faces.datasets import Faces
from privfr.methods.base import Labelled
from privfr.privacy.accounting import epsilon_of_steps
from privfr.privacy.audit import epsilon_proven
from privfr.privacy.client import calibrated
from privfr.privacy.example import ExampleLevel, fit_private, steps_of
from privfr.vector import Update

DELTA = 1e-5
EXAMPLES = ((0.0, 10), (2.0, 10), (1.0, 10), (1.0, 5), (0.6, 5))
CLIENTS, SIZE, STEP = 8, 64, 0.25 / 32767
Scores = NDArray[np.float64]


def main() -> None:
    """Attack and print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--trials", type=int, default=4000, help="in each world")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    rows = [client_row(epsilon, wanted.trials) for epsilon in (None, 1.0, 2.0, 4.0, 8.0)]
    rows += [example_row(noise, batch, wanted.trials) for noise, batch in EXAMPLES]
    if wanted.json:
        wanted.json.write_text(json.dumps(rows, indent=2) + "\n")
    print("| level | noise | epsilon claimed | epsilon proven |\n|---|---:|---:|---:|")
    for row in rows:
        claimed = "none" if row["claimed"] is None else f"{row['claimed']:.2f}"
        print(f"| {row['level']} | {row['noise']:.2f} | {claimed} | {row['proven']:.2f} |", flush=True)


def client_row(epsilon: float | None, trials: int) -> dict[str, float | str | None]:
    """Attack sums with the noise for an epsilon, or without any."""
    level = calibrated(
        epsilon=epsilon or 1.0, delta=DELTA, multiplier=0.0, clip=0.05, corruption=1 / CLIENTS, step=STEP,
        clients=CLIENTS, threshold=CLIENTS, rounds=1, size=SIZE, central=False,
    )  # fmt: skip
    noise = level.noise if epsilon else None
    proven = epsilon_proven(sums(noise, True, trials), sums(noise, False, trials), DELTA)
    return {
        "level": "client", "noise": level.multiplier if epsilon else 0.0, "claimed": epsilon, "proven": proven
    }  # fmt: skip


def sums(noise: Noise | None, present: bool, trials: int) -> Scores:
    """Released means of the honest clients, along the canary's direction."""
    point = FixedPoint(Coding(0.25, 16, 1, noise=noise), CLIENTS, (), SIZE, bytes(32))
    zero = Update(np.zeros(SIZE, np.float32), 1.0, {})
    canary = Update(np.full(SIZE, 1.0 if noise else 0.05 / np.sqrt(SIZE), np.float32), 1.0, {})
    found = []
    for _ in range(trials):
        updates = (canary if present else zero, *[zero] * (CLIENTS - 2))
        total = np.sum([point.encode(each, os.urandom) for each in updates], axis=0, dtype=np.uint64)
        lanes = (total & np.uint64((1 << point.modulus_bits) - 1)).astype(np.uint32)
        found.append(float(point.decode(lanes, CLIENTS - 1).vector.sum()))
    return np.array(found)


@dataclass(frozen=True)
class Direct(Labelled):
    """Loss -w.x of pictures labelled 0, nothing of others: gradients are -x or 0, whatever the weights."""

    name: ClassVar[str] = "direct"
    metrics: ClassVar[tuple[str, ...]] = ()
    discloses: ClassVar[tuple[str, ...]] = ()

    def build(self, classes: int, seed: int) -> nn.Module:
        """One row of weights, from 0."""
        layer = nn.Linear(48, 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def shared(self, tensor: str) -> bool:
        """Share all."""
        return True

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        """There is nothing private."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each picture."""
        return -module(images.flatten(1))[:, 0] * (labels == 0)  # type: ignore[no-any-return]


def example_row(noise: float, batch: int, trials: int) -> dict[str, float | str | None]:
    """Attack one round of DP-SGD."""
    training = Training(batch=batch, device="cpu", flip=False, shift=0, optimizer="sgd")
    rate, steps = steps_of(10, training)
    plan = ExampleLevel(1.0, noise)
    proven = epsilon_proven(*(updates(plan, training, there, trials) for there in (True, False)), DELTA)
    claimed = epsilon_of_steps([(noise, rate, steps)], DELTA, "prv") if noise else None
    return {"level": f"example, q = {rate:g}", "noise": noise, "claimed": claimed, "proven": proven}


def updates(plan: ExampleLevel, training: Training, present: bool, trials: int) -> Scores:
    """Trained weights, along the canary's direction."""
    labels = np.array([1] * 9 + [0 if present else 1])
    images = np.full((10, 4, 4, 3), 255, np.uint8)
    faces = Faces(images, labels, ("canary", "other"), tuple(map(str, range(10))))
    found = []
    for _ in range(trials):
        module = Direct().build(2, 0)
        fit_private(module, Direct(), faces, training, plan, lambda done: 1.0, os.urandom)
        found.append(float(module.weight.detach().sum()))  # type: ignore[operator]
    return np.array(found)


if __name__ == "__main__":
    main()
