"""Parts of a network that can be trained while the rest stays as it was pretrained.

The fewer numbers are trained, the less noise it takes to hide them (docs/privacy.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.errors import InputError
from privfr.experiment import Trainable
from privfr.faces.backbones import BACKBONES, backbone, initialise
from privfr.vector import Vector

__all__ = ["Adapter", "PartTrained", "layers_of", "merged"]

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


@dataclass(frozen=True, kw_only=True)
class PartTrained:
    """What methods share that train a backbone, or a part of it, and share that and nothing else.

    backbone, size, dim: of the network, as `privfr.faces.backbones.backbone` takes them.  trainable: "all" of
    the backbone, its "last" linear layer, the "norms", or an "adapter" of this rank.
    """

    backbone: str
    size: tuple[int, int]
    dim: int
    trainable: Trainable = "all"
    rank: int = 16

    def network(self, seed: int) -> tuple[nn.Module, nn.Module | None]:
        """Make the backbone, and the adapter where there is one.

        Raises `InputError` for a backbone that has not the part to train, and for an adapter of more numbers
        than the matrix that it stands for.
        """
        if self.trainable == "adapter" and self.rank > self.dim // 2:
            raise InputError(
                f"method.rank: {self.rank} makes an adapter larger than the {self.dim} x {self.dim} matrix "
                f"it stands for; at most {self.dim // 2}"
            )
        found = backbone(self.backbone, self.size, self.dim, seed=seed)
        if self.trainable == "norms" and not self._part():
            raise InputError(
                f"method.trainable: {self.backbone} has no norms; take last or adapter, or another backbone"
            )
        return found, Adapter(self.dim, self.rank, seed) if self.trainable == "adapter" else None

    def shared(self, tensor: str) -> bool:
        """Share the part that is trained and nothing else."""
        if self.trainable == "all":
            return tensor.startswith("backbone.")
        return tensor.rpartition(".")[0] in self._part()

    def frozen(self, tensor: str) -> bool:
        """Freeze the rest of the backbone."""
        return tensor.startswith("backbone.") and not self.shared(tensor)

    def deployed(self, tensors: Mapping[str, Vector]) -> dict[str, Vector]:
        """Give the tensors of a backbone that embeds as the shared and the frozen ones do together."""
        found = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
        if self.trainable == "adapter":
            down, up = tensors["adapter.down.weight"], tensors["adapter.up.weight"]
            last = self._layers("Linear")[-1]
            for name in (f"{last}.weight", f"{last}.bias"):
                if name in found:  # not every last layer has a bias
                    found[name] = merged(found[name], down, up)
        return {name.removeprefix("backbone."): tensor for name, tensor in found.items()}

    def _part(self) -> tuple[str, ...]:
        """Name the layers that are trained, where not all are."""
        if self.trainable == "adapter":
            return "adapter.down", "adapter.up"
        if self.trainable == "norms":
            return self._layers("GroupNorm")
        return self._layers("Linear")[-1:]

    def _layers(self, kind: str) -> tuple[str, ...]:
        return tuple(f"backbone.{name}" for name in layers_of(self.backbone, self.size, self.dim, kind))
