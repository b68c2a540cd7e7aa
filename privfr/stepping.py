"""What one step of any training is made of: its pictures, what is dropped of them, the optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.experiment import Training
from privfr.faces.backbones import Features, to_tensor

__all__ = ["drawing", "optimiser_of", "pictures_of"]


def pictures_of(
    images: NDArray[np.uint8], rows: NDArray[np.int64], training: Training, generator: torch.Generator
) -> Tensor:
    """Give the pictures of one step, each moved and mirrored by chance: float32 [rows, 3, height, width]."""
    found = to_tensor(_shifted(images[rows], training.shift, generator))
    return _flipped(found, generator) if training.flip else found


def optimiser_of(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Make a fresh optimiser of the parameters that are trained.

    Decay acts on matrices and filters alone, not on biases and norms (He et al. 2019, arXiv 1812.01187).
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)


@contextmanager
def drawing(module: nn.Module, dropout: float, generator: torch.Generator) -> Iterator[None]:
    """Let every layer that draws by chance, which has an attribute `generator`, draw from this one.

    dropout: share of the features of a backbone that are dropped. When it ends, layers draw no more.
    """
    # A GAN has a network of this name.
    found = [
        layer
        for layer in module.modules()
        if isinstance(getattr(layer, "generator", module), torch.Generator | None)
    ]

    def give(generator: torch.Generator | None, dropout: float) -> None:
        for layer in found:
            layer.generator = generator  # type: ignore[assignment]
            if isinstance(layer, Features):
                layer.share = dropout

    give(generator, dropout)
    try:
        yield
    finally:
        give(None, 0.0)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images[mirrored] = images[mirrored].flip(3)
    return images


def _shifted(images: NDArray[np.uint8], most: int, generator: torch.Generator) -> NDArray[np.uint8]:
    """Move each picture by up to `most` pixels either way; its edge fills what comes into view."""
    if not most:
        return images
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = torch.randint(0, 2 * most + 1, (len(images), 2), generator=generator).tolist()
    return np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)])
