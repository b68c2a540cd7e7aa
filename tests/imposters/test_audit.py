"""The audit: it notices planted faults, each by its own question, and passes what has none."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from privfr.faces.datasets import Faces
from privfr.faces.recogniser import Recogniser
from privfr.faces.sources import load_faces
from privfr.imposters.audit import Audit, audit

Pictures = NDArray[np.uint8]
COUNT = 200


def people(first: int, last: int) -> Faces:
    faces = everybody()
    return faces.of(faces.names[first:last])


@cache
def everybody() -> Faces:
    torch.set_num_threads(1)
    return load_faces("synthetic:identities=90,images=5,seed=4", (64, 64))


TRAINING, HELDOUT, STRANGERS = (0, 30), (30, 60), (60, 90)


@cache
def recogniser() -> Recogniser:
    return Recogniser.new("small", (64, 64), seed=1)


def embed(images: Pictures) -> NDArray[np.float32]:
    return recogniser().embed(images)


def drawn(faces: Faces, count: int = COUNT, seed: int = 0) -> Pictures:
    return faces.images[np.random.default_rng(seed).integers(len(faces), size=count)]


def blurred(pictures: Pictures) -> Pictures:
    """As a young generator's: nearer to everything than sharp ones."""
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    soft = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(planes, 8), (64, 64), mode="bilinear"
    )
    return soft.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def noisy(pictures: Pictures) -> Pictures:
    noise = np.random.default_rng(1).normal(0, 10, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def mirrored(pictures: Pictures) -> Pictures:
    return np.ascontiguousarray(pictures[:, :, ::-1])


def moved(pictures: Pictures) -> Pictures:
    return np.roll(pictures, 3, axis=2)


def found(made: Pictures, seed: int = 0) -> Audit:
    return audit(made, people(*TRAINING), people(*HELDOUT), embed, seed=seed)
