"""Method `supervised`: each client trains the network under a margin head over its own identities.

The head never leaves the device: its rows are identity templates. What is averaged is the backbone alone
(FedAvg, McMahan et al. 2017, arXiv 1602.05629). The head starts at the class means of the model the client
was given (FedFace's mean-feature initialisation, arXiv 2104.03008, eq. 6), so that it agrees with the
backbone at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from privfr.faces.backbones import backbone
from privfr.faces.datasets import Faces
from privfr.faces.heads import head
from privfr.methods.base import FaceModel, class_means

__all__ = ["Supervised"]


@dataclass(frozen=True)
class Supervised:
    """Margin softmax or one-vs-all over the client's own identities.

    backbone, size, dim: of the network, as `privfr.faces.backbones.backbone` takes them.  head, scale,
    margin: of the head, as `privfr.faces.heads.head` takes them.  restart: new class means every round.
    """

    backbone: str
    size: tuple[int, int]
    dim: int
    head: str
    scale: float
    margin: float
    restart: bool = False

    name: ClassVar[str] = "supervised"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    discloses: ClassVar[tuple[str, ...]] = ()
    per_example: ClassVar[bool] = True

    def build(self, identities: int, seed: int) -> nn.Module:
        """Make a `FaceModel` with one head row per identity."""
        settings = {"scale": self.scale} | ({} if self.head == "softmax" else {"margin": self.margin})
        return FaceModel(
            backbone(self.backbone, self.size, self.dim, seed=seed),
            head(self.head, identities, self.dim, seed=seed, **settings),
        )

    def shared(self, tensor: str) -> bool:
        """Share the backbone and nothing else."""
        return tensor.startswith("backbone.")

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        """Put the head's rows at the class means, the first time or every time."""
        assert isinstance(module, FaceModel)
        if fresh or self.restart:
            module.head.set_centres(class_means(module.backbone, faces))  # type: ignore[operator]

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example under the head: float32 [n]."""
        losses: Tensor = module(images, labels)
        return losses
