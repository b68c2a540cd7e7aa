"""The imposters of one client: drawn from a generator or, to measure by, from other clients' pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from privfr.faces.datasets import Faces
from privfr.imposters.gan import Generator

__all__ = ["made_by", "others", "too_like"]

Pictures = NDArray[np.uint8]


def made_by(generator: Generator, count: int, seed: int, size: tuple[int, int]) -> Pictures:
    """Have a generator make pictures of this size: uint8 [count, height, width, 3]."""
    made = generator.sample(count, seed)
    if made.shape[1:3] == size:
        return made
    planes = torch.from_numpy(made).permute(0, 3, 1, 2).float()
    resized = interpolate(planes, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return resized.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def others(clients: Sequence[Faces], client: int, count: int, seed: int) -> Pictures:
    """Draw pictures of other clients' people, at most as many as there are: uint8 [n, height, width, 3]."""
    names = set(clients[client].names)
    rows = [
        (other, row)
        for other, faces in enumerate(clients)
        for row, label in enumerate(faces.labels.tolist())
        if faces.names[label] not in names
    ]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return np.stack([clients[other].images[row] for other, row in (rows[i] for i in drawn)])


def too_like(made: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which imposters could be the client's own people: bool [n].

    made, own: unit embeddings, [n, dim] and [m, dim]. An imposter is too like them if it is as near to one of
    their pictures as half of these are to the nearest other one.
    """
    among = own @ own.T
    np.fill_diagonal(among, -1)
    threshold = np.median(among.max(axis=1)) if len(own) > 1 else 1.0
    found: NDArray[np.bool_] = (made @ own.T).max(axis=1) >= threshold
    return found
