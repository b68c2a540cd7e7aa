"""Method `supervised`: each client trains the network under a margin head over its own identities.

The head never leaves the device: its rows are identity templates. What is averaged is the backbone alone, or
a part of it (FedAvg, McMahan et al. 2017, arXiv 1602.05629). The head starts at the class means of the model
the client was given (FedFace's mean-feature initialisation, arXiv 2104.03008, eq. 6), so that it agrees with
the backbone at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from privfr.faces.datasets import Faces
from privfr.faces.heads import head
from privfr.methods.base import FaceModel, Labelled, class_means
from privfr.methods.part import PartTrained

__all__ = ["Supervised"]


@dataclass(frozen=True, kw_only=True)
class Supervised(PartTrained, Labelled):
    """Margin softmax or one-vs-all over the client's own identities.

    head, scale, margin, nobody: of the head, as `privfr.faces.heads` has them.  restart: new class means
    every round.
    """

    head: str
    scale: float
    margin: float
    nobody: float = 0.0
    restart: bool = False

    name: ClassVar[str] = "supervised"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    discloses: ClassVar[tuple[str, ...]] = ()

    def build(self, classes: int, seed: int) -> nn.Module:
        """Make a `FaceModel` with one head row per class. Raises `InputError` as `network`."""
        settings = {"scale": self.scale} | ({} if self.head == "softmax" else {"margin": self.margin})
        network, adapter = self.network(seed)
        found = head(self.head, classes, self.dim, seed=seed, **settings)
        found.nobody = self.nobody
        return FaceModel(network, found, adapter)

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        """Put the head's rows at the class means, the first time or every time."""
        assert isinstance(module, FaceModel)
        if fresh or self.restart:
            embedder = nn.Sequential(module.backbone, module.adapter)
            module.head.set_centres(class_means(embedder, faces))  # type: ignore[operator]

    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example under the head: float32 [n]."""
        losses: Tensor = module(images, targets)
        return losses
