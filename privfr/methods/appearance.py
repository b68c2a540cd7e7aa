"""What pictures look like, compared without a network: whom a network that knows nothing yet may learn from.

Eigenfaces (Turk & Pentland 1991), whitened: what differs most between pictures is light and pose, and is to
weigh no more than what differs little. Of CelebA's people, twelve to a client, two thirds of the
nearest pictures are of the same person (benchmarks/README.md); by an untrained network, under a half.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["appearance"]

_EDGE = 3 / 16  # left out on each side: hair and background say more of the day than of the person
_SIDE = 20  # pixels compared


def appearance(images: NDArray[np.uint8]) -> Tensor:
    """Describe pictures, uint8 [n, height, width, 3], by unit vectors, float32 [n, 400].

    Of each picture and its mirror image; relative to all these pictures together.
    """
    seen, mirrored = _middle(images), _middle(images[:, :, ::-1])
    both = torch.cat([seen, mirrored])
    mean = both.mean(0)
    _, lengths, axes = torch.linalg.svd(both - mean, full_matrices=False)
    variance = lengths.square() / len(both)
    # A mean variance more for each: few pictures say little of a direction in which they hardly differ.
    scale = (variance + variance.mean()).clamp(min=1e-12).rsqrt()
    views = [F.normalize((part - mean) @ axes.T * scale @ axes) for part in (seen, mirrored)]
    return F.normalize(views[0] + views[1])


def _middle(images: NDArray[np.uint8]) -> Tensor:
    """Grey pictures of what lies in the middle: float32 [n, 400]."""
    height, width = images.shape[1:3]
    top, left = round(_EDGE * height), round(_EDGE * width)
    grey = images[:, top : height - top, left : width - left].astype(np.float32).mean(3)
    small = F.interpolate(torch.from_numpy(grey)[:, None], (_SIDE, _SIDE), mode="area")
    return small.flatten(1) / 255
