"""Chance changes of a picture that leave its person who they are.

What a network must overlook is said by example: two views of one picture differ in light, in colour and in
how much surrounds the face, and are to have one embedding (SimCLR, Chen et al. 2020, arXiv 2002.05709,
section 3). Its crops are not for faces that are aligned: where an eye lies tells people apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Augmentation"]

# At strength 1: most that is covered on each side, as a share of the side; the others of the range [-1, 1].
_FRAME = 0.3
_CONTRAST, _BRIGHTNESS, _TINT, _SIDELIGHT = 0.2, 0.2, 0.1, 0.2


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
        drawn = torch.rand((10, len(images), 1, 1, 1), generator=self.generator).to(images.device)
        return _lit(images, self.strength * (2 * drawn[:6] - 1)) * self._frame(images, drawn[6:])

    def _frame(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Give 0 for what surrounds the face, more or less of it on each side, and 1 for the rest."""
        left, right, top, bottom = (drawn * min(0.5, _FRAME * self.strength)).unbind()
        x = torch.linspace(0, 1, images.shape[3], device=images.device)
        y = torch.linspace(0, 1, images.shape[2], device=images.device)[:, None]
        return ((x >= left) & (x <= 1 - right) & (y >= top) & (y <= 1 - bottom)).to(images.dtype)


def _lit(images: Tensor, change: Tensor) -> Tensor:
    """Change contrast, brightness and balance of colours, and light from a side: float32 [6, n, 1, 1, 1]."""
    contrast, brightness, red, blue, across, down = change.unbind()
    x = torch.linspace(-1, 1, images.shape[3], device=images.device)
    y = torch.linspace(-1, 1, images.shape[2], device=images.device)[:, None]
    tint = _TINT * torch.cat([red, -(red + blue) / 2, blue], 1)
    light = _BRIGHTNESS * brightness + _SIDELIGHT * (across * x + down * y)
    return images * (1 + _CONTRAST * contrast) + tint + light
