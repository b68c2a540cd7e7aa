"""Method `unsupervised`: each client trains the network on pictures of which nobody said who they show.

What stands in for labels is the network's own judgement of which of the client's pictures are alike
(UFace's rule, see `privfr.methods.neighbours`), made anew every round, and chance views of one picture,
which are of one person for certain (`privfr.faces.augmentation`). Faces are compared by the cosine of
embeddings, in training as in use. Three losses learn from this:

siamese: two pictures' cosine is to tell a similar pair from a dissimilar one (UFace; Solomon & Woubie,
arXiv 2312.14001), by binary cross-entropy.
autoencoder: the embedding is to give back the similar pictures, and not the dissimilar ones (arXiv
2312.14395). The decoder stays on the device: it turns embeddings into faces.
contrastive: a picture and a similar one are to find each other in a batch (NT-Xent, Chen et al. 2020, arXiv
2002.05709, whose positives are views of one picture; neighbours as in arXiv 2104.14548).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.faces.augmentation import Augmentation
from privfr.faces.backbones import initialise
from privfr.faces.datasets import Faces
from privfr.faces.recogniser import embed
from privfr.methods.appearance import appearance
from privfr.methods.base import Examples
from privfr.methods.neighbours import partners
from privfr.methods.part import PartTrained

__all__ = ["Unsupervised", "Variant"]

Variant = Literal["siamese", "autoencoder", "contrastive"]

_SIDE = 32  # of what the decoder gives back, in pixels
_MARGIN = 6  # of a picture's sides, the part on each that is not the face


class _Model(nn.Module):
    """A backbone and maybe an adapter, to share, and a decoder, which is private; unit embeddings."""

    def __init__(
        self, backbone: nn.Module, adapter: nn.Module | None, decoder: nn.Module | None, strength: float
    ) -> None:
        super().__init__()
        self.augmentation = Augmentation(strength)
        self.backbone = backbone
        self.adapter = nn.Identity() if adapter is None else adapter
        self.decoder = nn.Identity() if decoder is None else decoder

    def forward(self, images: Tensor) -> Tensor:
        """Embed views of pictures, float32 [n, 3, height, width]: unit vectors, float32 [n, dim]."""
        embedding = self.backbone(self.augmentation(images))
        # In float32 under autocast, too: cosines that differ by a hundredth drown in bfloat16's eight bits.
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.adapter(embedding.float()))


@dataclass(frozen=True, kw_only=True)
class Unsupervised(PartTrained):
    """Learning from likeness, without labels.

    variant: the loss.  neighbours: partners of each kind that a picture has.  similar, dissimilar: cosines
    above and below which pictures are partners.  temperature: what differences of cosines are divided by.
    augmentation: strength of the views' changes.
    """

    variant: Variant = "contrastive"
    neighbours: int = 2
    similar: float = 0.6
    dissimilar: float = 0.2
    temperature: float = 0.05
    augmentation: float = 1.0

    name: ClassVar[str] = "unsupervised"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    discloses: ClassVar[tuple[str, ...]] = ()
    per_example: ClassVar[bool] = False  # its own picture's loss depends on its neighbours'

    def classes(self, faces: Faces) -> int:
        """No label is read."""
        return 0

    def build(self, classes: int, seed: int) -> nn.Module:
        """Make the module. Raises `InputError` as `network`."""
        network, adapter = self.network(seed)
        decoder = _decoder(self.dim, seed) if self.variant == "autoencoder" else None
        return _Model(network, adapter, decoder, self.augmentation)

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        """Nothing: there are no templates."""

    def examples(
        self, module: nn.Module, faces: Faces, imposters: int, generator: torch.Generator
    ) -> Examples:
        """Every picture once, with its partners as further views."""
        assert isinstance(module, _Model)
        found = partners(
            # The mean of both cosines: what a network makes of pictures, and what they look like without one.
            F.normalize(torch.cat([_judged(module, faces.images), appearance(faces.images)], 1)),
            imposters,
            self.neighbours,
            self.similar,
            self.dissimilar,
            generator,
        )
        own = torch.arange(len(faces))[:, None]
        if self.variant == "contrastive":
            # One of the similar ones, by lot; the others of a batch are all the contrast it needs.
            drawn = torch.randint(self.neighbours, own.shape, generator=generator)
            views = [own, found.similar.gather(1, drawn)]
            if imposters:
                views.append(len(faces) + torch.randint(imposters, own.shape, generator=generator))
        else:
            views = [own, *found]
        rows = torch.cat(views, 1)
        return Examples(rows.numpy(), torch.zeros(len(rows), dtype=torch.int64).numpy())

    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example: float32 [n]. What is not its own partner counts in variant contrastive."""
        assert isinstance(module, _Model)
        views = len(images) // len(targets)
        of_variant = {
            "siamese": self._siamese, "autoencoder": self._autoencoder, "contrastive": self._contrastive
        }  # fmt: skip
        return of_variant[self.variant](module, images, views)

    def stepped(self, module: nn.Module) -> None:
        """Nothing."""

    def _siamese(self, module: _Model, images: Tensor, views: int) -> Tensor:
        """Binary cross-entropy of pairs: half of the weight on the similar ones, half on the others."""
        anchor, *others = module(images).chunk(views)
        cosines = torch.stack([(anchor * other).sum(1) for other in others], 1)
        logits = (cosines - (self.similar + self.dissimilar) / 2) / self.temperature
        losses = F.softplus(torch.cat([-logits[:, : self.neighbours], logits[:, self.neighbours :]], 1))
        return losses.mean(1)

    def _autoencoder(self, module: _Model, images: Tensor, views: int) -> Tensor:
        """What is given back is to be like the similar pictures, more than like any others of a batch."""
        count = len(images) // views
        embedding, wanted = module(images[:count]), _shape(images[count:])
        with torch.autocast(images.device.type, enabled=False):
            cosines = F.normalize(module.decoder(embedding)) @ wanted.T
        cosines = cosines.view(count, views - 1, count)
        own = torch.arange(count, device=images.device)
        like = cosines[own, : self.neighbours, own]
        others = torch.zeros_like(cosines, dtype=torch.bool)
        others[own, : self.neighbours, own] = True
        # Not infinite: where there is no other at all, the slope of the sum would not be a number.
        unlike = (cosines / self.temperature).masked_fill(others, -1e9).logsumexp((1, 2))
        # The distance, and the cross-entropy of finding each similar one among those that are not.
        return (1 - like + F.softplus(unlike[:, None] - like / self.temperature)).mean(1)

    def _contrastive(self, module: _Model, images: Tensor, views: int) -> Tensor:
        """NT-Xent: cross-entropy of finding the other view among all pictures of the batch."""
        embeddings = module(images)
        count = len(images) // views
        found = embeddings[: 2 * count]
        logits = found @ embeddings.T / self.temperature
        logits.fill_diagonal_(-torch.inf)
        partner = torch.arange(2 * count, device=images.device).roll(count)
        first, second = F.cross_entropy(logits, partner, reduction="none").chunk(2)
        return (first + second) / 2


def _judged(module: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Embed pictures to compare them with one another: unit vectors, float32 [n, dim].

    A picture is taken together with its mirror image, for a face looks to either side, and what all pictures
    have in common, or most of them differ by, such as light, says little of who they show: the mean
    is taken off, and the covariance C made more even by (C + c)^(-1/2), where c is its mean eigenvalue.
    """
    both = embed(module, images) + embed(module, images[:, :, ::-1])
    centred = torch.from_numpy(both - both.mean(0))
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(images))
    scales = (values + values.mean() + 1e-12).rsqrt()
    return F.normalize(centred @ (vectors * scales))


def _decoder(dim: int, seed: int) -> nn.Module:
    """Linear, so that equal cosines of embeddings mean equal likeness of what they give back."""
    with torch.device("meta"):  # no storage yet, so torch's own initialisation draws no random number
        layer = nn.Linear(dim, _SIDE * _SIDE, bias=False)
    return initialise(layer.to_empty(device="cpu"), seed)


def _shape(images: Tensor) -> Tensor:
    """What of a picture is given back: the face's shapes without light and colour, unit vectors, [n, 1024].

    Grey, without what surrounds the face, less the mean around each pixel, over the deviation around it.
    """
    down, across = images.shape[2] // _MARGIN, images.shape[3] // _MARGIN
    face = images[:, :, down:-down, across:-across].float().mean(1, keepdim=True)
    grey = F.interpolate(face, (_SIDE, _SIDE), mode="area")

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 9, 1, 4, count_include_pad=False)

    edges = grey - around(grey)
    return F.normalize((edges / (around(edges.square()) + 1e-3).sqrt()).flatten(1))
