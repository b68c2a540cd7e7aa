"""Method `supervised`: each client trains the network under a margin head over its own identities.

The head never leaves the device: its rows are identity templates. What is averaged is the backbone alone, or
a part of it (FedAvg, McMahan et al. 2017, arXiv 1602.05629). The head starts at the class means of the model
the client was given (FedFace's mean-feature initialisation, arXiv 2104.03008, eq. 6), so that it agrees with
the backbone at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from privfr.errors import InputError
from privfr.experiment import Trainable
from privfr.faces.backbones import backbone
from privfr.faces.datasets import Faces
from privfr.faces.heads import head
from privfr.methods.base import FaceModel, Labelled, class_means
from privfr.methods.part import Adapter, layers_of, merged
from privfr.vector import Vector

__all__ = ["Supervised"]


@dataclass(frozen=True)
class Supervised(Labelled):
    """Margin softmax or one-vs-all over the client's own identities.

    backbone, size, dim: of the network, as `privfr.faces.backbones.backbone` takes them.  head, scale,
    margin: of the head, as `privfr.faces.heads.head` takes them.  restart: new class means every round.
    trainable: "all" of the backbone, its "last" linear layer, the "norms", or an "adapter" of this rank.
    """

    backbone: str
    size: tuple[int, int]
    dim: int
    head: str
    scale: float
    margin: float
    restart: bool = False
    trainable: Trainable = "all"
    rank: int = 16

    name: ClassVar[str] = "supervised"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    discloses: ClassVar[tuple[str, ...]] = ()

    def build(self, classes: int, seed: int) -> nn.Module:
        """Make a `FaceModel` with one head row per class.

        Raises `InputError` for a backbone that has not the part to train, and for an adapter of more numbers
        than the matrix that it stands for.
        """
        if self.trainable == "adapter" and self.rank > self.dim // 2:
            raise InputError(
                f"method.rank: {self.rank} makes an adapter larger than the {self.dim} x {self.dim} matrix "
                f"it stands for; at most {self.dim // 2}"
            )
        settings = {"scale": self.scale} | ({} if self.head == "softmax" else {"margin": self.margin})
        found = FaceModel(
            backbone(self.backbone, self.size, self.dim, seed=seed),
            head(self.head, classes, self.dim, seed=seed, **settings),
            Adapter(self.dim, self.rank, seed) if self.trainable == "adapter" else None,
        )
        if self.trainable == "norms" and not self._part():
            raise InputError(
                f"method.trainable: {self.backbone} has no norms; take last or adapter, or another backbone"
            )
        return found

    def shared(self, tensor: str) -> bool:
        """Share the part that is trained and nothing else."""
        if self.trainable == "all":
            return tensor.startswith("backbone.")
        return tensor.rpartition(".")[0] in self._part()

    def frozen(self, tensor: str) -> bool:
        """Freeze the rest of the backbone."""
        return tensor.startswith("backbone.") and not self.shared(tensor)

    def _part(self) -> tuple[str, ...]:
        """Name the layers that are trained, where not all are."""
        if self.trainable == "adapter":
            return "adapter.down", "adapter.up"
        if self.trainable == "norms":
            return self._layers("GroupNorm")
        return self._layers("Linear")[-1:]

    def _layers(self, kind: str) -> tuple[str, ...]:
        return tuple(f"backbone.{name}" for name in layers_of(self.backbone, self.size, self.dim, kind))

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
