"""What a method is: what is learnt from a client's faces, and which tensors may leave the device.

A method knows no backend and no engine. Adding one is one file with one class of this shape.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from privfr.faces.datasets import Examples, Faces
from privfr.faces.heads import NOBODY
from privfr.faces.recogniser import embed

__all__ = ["Examples", "FaceModel", "Labelled", "Method", "class_means", "is_private"]


class FaceModel(nn.Module):
    """A backbone and maybe an adapter of its embedding, to share, and a head, which is private.

    Tensors are named backbone.*, adapter.* and head.*.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = nn.Identity() if adapter is None else adapter
        self.head = head

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example: float32 [n].  images: float32 [n, 3, height, width]; labels: int64 [n]."""
        embedding = self.backbone(images)
        # The head always in float32: margins of a few hundredths drown in bfloat16's eight bits. So does what
        # an adapter adds.
        with torch.autocast(images.device.type, enabled=False):
            loss: Tensor = self.head(self.adapter(embedding.float()), labels)
        return loss


class Method(Protocol):
    """What is learnt from faces.

    Each tensor is of one of three kinds: shared, which is trained and sent; frozen, which is not trained and
    the same for all; private, which is trained and stays on the device.
    metrics: names of what `loss` averages report, in summand order.  discloses: what leaves the device
    beside the shared tensors and metrics inside the sum; printed in every report.  per_example: whether an
    example's loss depends on that example alone, which example-level privacy needs.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    discloses: ClassVar[tuple[str, ...]]
    per_example: ClassVar[bool]

    def classes(self, faces: Faces) -> int:
        """Rows that a head needs for these faces; 0 for a method that reads no label."""

    def build(self, classes: int, seed: int) -> nn.Module:
        """Make the module one client trains, the same for the same seed."""

    def shared(self, tensor: str) -> bool:
        """Whether the tensor of this name is part of the shared vector."""

    def frozen(self, tensor: str) -> bool:
        """Whether the tensor of this name stays as it is."""

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        """Prepare the private tensors at a round's start. fresh: whether this client has none yet."""

    def examples(
        self, module: nn.Module, faces: Faces, imposters: int, generator: torch.Generator
    ) -> Examples:
        """Say what the passes of this round go over; asked once a round.

        imposters: pictures of nobody that follow the faces.  generator: of whatever is drawn by chance.
        """

    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example: float32 [n], never reduced, so that privacy can clip each by itself.

        images: float32 [views n, 3, height, width], the first view of every example, then the second, ...
        targets: int64 [n].
        """

    def stepped(self, module: nn.Module) -> None:
        """Do what is to be done after each step of the optimiser."""


class Labelled:
    """What methods share whose examples are single pictures with their labels."""

    per_example: ClassVar[bool] = True

    def classes(self, faces: Faces) -> int:
        """One row of the head per identity."""
        return len(faces.names)

    def examples(
        self, module: nn.Module, faces: Faces, imposters: int, generator: torch.Generator
    ) -> Examples:
        """Every picture once; an imposter is nobody of the client's."""
        targets = np.concatenate([faces.labels, np.full(imposters, NOBODY)])
        return Examples(np.arange(len(targets))[:, None], targets)

    def stepped(self, module: nn.Module) -> None:
        """Nothing."""


def is_private(method: Method, tensor: str) -> bool:
    """Tell whether the tensor of this name is trained and stays on the device."""
    return not (method.shared(tensor) or method.frozen(tensor))


def class_means(backbone: nn.Module, faces: Faces) -> Tensor:
    """Mean of the unit embeddings of each identity: float32 [identities, dim]."""
    embedding = torch.from_numpy(embed(backbone, faces.images))
    labels = torch.from_numpy(faces.labels)
    means = torch.zeros(len(faces.names), embedding.shape[1])
    return (
        means.index_add_(0, labels, embedding) / torch.bincount(labels, minlength=len(faces.names))[:, None]
    )
