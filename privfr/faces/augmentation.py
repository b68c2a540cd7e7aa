"""Chance changes of a picture that leave its person who they are.

What a network must overlook is said by example: two views of one picture differ in crop, light and colour, in
sharpness and in what is covered, and are to have one embedding (SimCLR, Chen et al. 2020, arXiv 2002.05709,
section 3; the aligned faces here ask for less crop, and for light from a side).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Augmentation"]

# At strength 1. Fractions are of the picture's side; light and colour of the range [-1, 1].
_ZOOM, _MOVE, _TURN = 0.25, 0.08, math.radians(12)
_CONTRAST, _BRIGHTNESS, _TINT, _SIDELIGHT = 0.5, 0.3, 0.25, 0.5
_GREY, _BLURRED, _COVERED = 0.3, 0.3, 0.5  # probabilities
_COVER = 0.4  # side of what is covered, at most


class Augmentation(nn.Module):
    """Views of pictures: every picture is changed on its own, by the coins of a generator.

    strength: factor of how much is changed; 0 changes nothing.  generator: the coins; None, as outside of
    training, changes nothing either.
    """

    generator: torch.Generator | None = None

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Give a view of each picture, float32 [n, 3, height, width] in about [-1, 1]."""
        if self.generator is None or not self.strength:
            return images
        with torch.autocast(images.device.type, enabled=False):
            view = self._moved(images.float())
            view = self._lit(self._tinted(view))
            return self._covered(self._blurred(view)).contiguous(memory_format=torch.channels_last)

    def _even(self, images: Tensor, count: int) -> Tensor:
        """Draw numbers between -strength and strength, float32 [count, n, 1, 1, 1]."""
        assert self.generator is not None
        drawn = torch.rand((count, len(images), 1, 1, 1), generator=self.generator)
        return ((2 * drawn - 1) * self.strength).to(images.device)

    def _chosen(self, images: Tensor, probability: float) -> Tensor:
        """Choose pictures by chance, float32 [n, 1, 1, 1] of 0 and 1."""
        assert self.generator is not None
        drawn = torch.rand((len(images), 1, 1, 1), generator=self.generator)
        return (drawn < min(1.0, probability * self.strength)).to(images.device, torch.float32)

    def _moved(self, images: Tensor) -> Tensor:
        """Zoom, move and turn."""
        zoom, along, across, turn = self._even(images, 4).flatten(1).unbind()
        size = 1 - _ZOOM * (zoom + self.strength) / 2  # never out of the picture
        cos, sin = size * torch.cos(_TURN * turn), size * torch.sin(_TURN * turn)
        rows = [cos, -sin, 2 * _MOVE * along, sin, cos, 2 * _MOVE * across]
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _tinted(self, images: Tensor) -> Tensor:
        """Change contrast, brightness and the balance of colours; make some grey."""
        contrast, brightness, red, blue = self._even(images, 4).unbind()
        tint = torch.cat([red, -(red + blue) / 2, blue], 1)
        grey = self._chosen(images, _GREY)
        images = images + grey * (images.mean(1, keepdim=True) - images)
        return images * (1 + _CONTRAST * contrast) + _BRIGHTNESS * brightness + _TINT * tint * (1 - grey)

    def _lit(self, images: Tensor) -> Tensor:
        """Add light that falls off from one side to the other."""
        along, across = self._even(images, 2).unbind()
        height, width = images.shape[2:]
        x = torch.linspace(-1, 1, width, device=images.device)
        y = torch.linspace(-1, 1, height, device=images.device)[:, None]
        return images + _SIDELIGHT * (along * x + across * y)

    def _blurred(self, images: Tensor) -> Tensor:
        """Blur some."""
        blurred = F.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        return images + self._chosen(images, _BLURRED) * (blurred - images)

    def _covered(self, images: Tensor) -> Tensor:
        """Cover a rectangle of some with grey (random erasing, Zhong et al. 2017, arXiv 1708.04896)."""
        assert self.generator is not None
        drawn = torch.rand((4, len(images), 1, 1, 1), generator=self.generator).to(images.device)
        x, y, width, height = drawn.unbind()
        across = torch.linspace(0, 1, images.shape[3], device=images.device)
        down = torch.linspace(0, 1, images.shape[2], device=images.device)[:, None]
        inside = ((across - x).abs() < width * _COVER / 2) & ((down - y).abs() < height * _COVER / 2)
        return images * (1 - inside * self._chosen(images, _COVERED))
