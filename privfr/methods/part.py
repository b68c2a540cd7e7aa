"""Parts of a network that can be trained while the rest stays as it was pretrained.

The fewer numbers are trained, the less noise it takes to hide them (docs/privacy.md).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.faces.backbones import BACKBONES, initialise

__all__ = ["Adapter", "layers_of", "merged"]

Array = NDArray[np.float32]


class Adapter(nn.Module):
    """A low-rank residual on the embedding, e + U D e (after LoRA, Hu et al. 2021, arXiv 2106.09685).

    down: D, [rank, dim], drawn from the seed.  up: U, [dim, rank], 0 at first, so that it starts as the
    identity. It has no bias and no other non-linearity, so that `merged` can make it part of a layer.
    """

    def __init__(self, dim: int, rank: int, seed: int) -> None:
        super().__init__()
        with torch.device("meta"):  # no storage yet, so torch's own initialisation draws no random number
            self.down = nn.Linear(dim, rank, bias=False)
            self.up = nn.Linear(rank, dim, bias=False)
        initialise(self.to_empty(device="cpu"), seed)
        nn.init.zeros_(self.up.weight)

    def forward(self, embedding: Tensor) -> Tensor:
        """Adapt embeddings, float [n, dim]."""
        return embedding + self.up(self.down(embedding))  # type: ignore[no-any-return]


def merged(layer: Array, down: Array, up: Array) -> Array:
    """Make an adapter part of the linear layer before it, whose weight [dim, inputs] or bias [dim] this is.

    W' = W + U D W and b' = b + U D b, in float64: what is left is the rounding of the result.
    """
    exact = layer.astype(np.float64)
    return (exact + up.astype(np.float64) @ (down.astype(np.float64) @ exact)).astype(np.float32)


@cache
def layers_of(name: str, size: tuple[int, int], dim: int, kind: str) -> tuple[str, ...]:
    """Name a backbone's layers of one kind, such as "Linear", from the pictures to the embedding."""
    with torch.device("meta"):
        network = BACKBONES[name].build(size, dim)
    return tuple(layer for layer, module in network.named_modules() if type(module).__name__ == kind)
