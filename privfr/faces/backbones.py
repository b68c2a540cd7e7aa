"""Face networks: pictures in, embeddings out.

No network here holds BatchNorm. Its running statistics average badly over clients whose data differ
(Hsieh et al. 2020, arXiv 1910.00189) and its batch statistics mix examples, which forbids the per-example
gradients of DP-SGD. GroupNorm (Wu & He 2018, arXiv 1803.08494) has neither fault; SphereNet uses no
normalisation at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.errors import InputError

__all__ = ["BACKBONES", "Architecture", "Features", "backbone", "initialise", "to_tensor"]

Size = tuple[int, int]


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn pictures into what every backbone expects.

    images: uint8 [n, height, width, 3], RGB.  Returns float32 [n, 3, height, width], (x - 127.5) / 127.5,
    so in [-1, 1] (InsightFace's convention; SphereFace and FedFace divide by 128 instead).
    The memory stays channels-last, as in `images`, which CPU convolutions prefer.
    Raises InputError on any other shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(
            f"images: expected uint8 [n, height, width, 3], got {images.dtype} {list(images.shape)}; "
            "give RGB pictures as bytes"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return pixels.to(torch.float32).sub_(127.5).div_(127.5)


def _norm(channels: int) -> nn.GroupNorm:
    # 16 channels a group is among the best of Wu & He's table 3, whatever the width.
    return nn.GroupNorm(max(1, channels // 16), channels)


class Features(nn.Flatten):
    """What an embedding is projected from, made flat.

    In training a share of the numbers can be dropped by chance, each picture's own, so that no identity is
    learnt by a few of them alone (Srivastava et al. 2014; as ArcFace does here, arXiv 1801.07698, 3.1).
    share: of the numbers.  generator: their coins; None, as outside of `privfr.stepping.drawing`, drops
    none.
    """

    share = 0.0
    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Flatten [n, ...] to [n, numbers]; those that are not dropped grow, so that their mean stays."""
        flat = super().forward(x)
        if self.generator is None or not self.share:
            return flat
        kept = torch.rand(flat.shape, generator=self.generator) >= self.share
        return flat * kept.to(flat.device, flat.dtype).div_(1 - self.share)


def _embedding(channels: int, size: Size, dim: int) -> nn.Sequential:
    """Flatten what four halvings leave of `size` and project it: faces are aligned, so position tells."""
    height, width = (math.ceil(side / 16) for side in size)
    return nn.Sequential(Features(), nn.Linear(channels * height * width, dim))


class _Residual(nn.Module):
    """x + branch(x), or shortcut(x) + branch(x) where the shape changes, then an activation."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.branch(x))  # type: ignore[no-any-return]


def _basic_block(inner: int, outer: int, stride: int) -> _Residual:
    """ResNet's two-convolution block (He et al. 2016), GroupNorm for BatchNorm."""
    branch = nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
        _norm(outer),
        nn.ReLU(),
        nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
        _norm(outer),
    )
    if stride == 1 and inner == outer:
        return _Residual(branch, nn.Identity(), nn.ReLU())
    shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), _norm(outer))
    return _Residual(branch, shortcut, nn.ReLU())


def _small(size: Size, dim: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64), (64, 96), (96, 128)):
        layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), _norm(outer), nn.ReLU()]
    return nn.Sequential(*layers, _embedding(128, size, dim))


def _resnet(size: Size, dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False),
        _norm(32),
        nn.ReLU(),
        _basic_block(32, 32, 1),
        _basic_block(32, 64, 2),
        _basic_block(64, 128, 2),
        _basic_block(128, 192, 2),
        _embedding(192, size, dim),
    )


def _bottleneck(inner: int, outer: int, expansion: int, stride: int) -> nn.Module:
    """MobileNetV2's inverted residual with PReLU; linear at its end (MobileFaceNet, section 3.2)."""
    wide = inner * expansion
    branch = nn.Sequential(
        nn.Conv2d(inner, wide, 1, bias=False),
        _norm(wide),
        nn.PReLU(wide),
        nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
        _norm(wide),
        nn.PReLU(wide),
        nn.Conv2d(wide, outer, 1, bias=False),
        _norm(outer),
    )
    if stride == 1 and inner == outer:
        return _Residual(branch, nn.Identity(), nn.Identity())
    return branch


def _mobilefacenet(size: Size, dim: int) -> nn.Module:
    """Chen et al. 2018, arXiv 1804.07573, table 1."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, 2, 1, bias=False),
        _norm(64),
        nn.PReLU(64),
        nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False),
        _norm(64),
        nn.PReLU(64),
    ]
    inner = 64
    for expansion, outer, repeat, stride in (
        (2, 64, 5, 2),
        (4, 128, 1, 2),
        (2, 128, 6, 1),
        (4, 128, 1, 2),
        (2, 128, 2, 1),
    ):
        for i in range(repeat):
            layers.append(_bottleneck(inner, outer, expansion, stride if i == 0 else 1))
            inner = outer
    layers += [nn.Conv2d(128, 512, 1, bias=False), _norm(512), nn.PReLU(512)]
    # Global depthwise convolution: a learnt weight per position instead of an average. No norm follows it:
    # on a 1x1 map GroupNorm would force the same energy on every group of the embedding.
    layers += [nn.Conv2d(512, 512, (size[0] // 16, size[1] // 16), groups=512, bias=False)]
    return nn.Sequential(*layers, Features(), nn.Linear(512, dim, bias=False))


def _sphere_unit(channels: int) -> _Residual:
    branch = nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        nn.PReLU(channels),
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        nn.PReLU(channels),
    )
    return _Residual(branch, nn.Identity(), nn.Identity())


def _sphere(units: tuple[int, int, int, int]) -> Callable[[Size, int], nn.Module]:
    """SphereNet (Liu et al. 2017, arXiv 1704.08063, table 2): convolutions that halve, then residual units.

    As in the authors' network the halving convolutions have a bias and those inside a unit have none.
    """

    def build(size: Size, dim: int) -> nn.Module:
        layers: list[nn.Module] = []
        inner = 3
        for outer, repeat in zip((64, 128, 256, 512), units, strict=True):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.PReLU(outer)]
            layers += [_sphere_unit(outer) for _ in range(repeat)]
            inner = outer
        return nn.Sequential(*layers, _embedding(512, size, dim))

    return build


@dataclass(frozen=True)
class Architecture:
    """How to build one network.

    build: (size, dim) -> module.  sizes: the (height, width) it takes, its own first.  dim: its own width.
    """

    build: Callable[[Size, int], nn.Module]
    sizes: tuple[Size, ...]
    dim: int


BACKBONES: dict[str, Architecture] = {
    "small": Architecture(_small, ((64, 64), (112, 112)), 128),
    "resnet": Architecture(_resnet, ((64, 64), (112, 112)), 256),
    "mobilefacenet": Architecture(_mobilefacenet, ((112, 112),), 128),
    "sphere20": Architecture(_sphere((1, 2, 4, 1)), ((112, 96), (112, 112)), 512),
    "sphere64": Architecture(_sphere((3, 8, 16, 3)), ((112, 96), (112, 112)), 512),
}


def backbone(name: str, size: Size | None = None, dim: int | None = None, *, seed: int = 0) -> nn.Module:
    """Build and initialise the network called `name` (a key of BACKBONES).

    size: (height, width) of the pictures; dim: width of the embedding; None takes the network's own.
    The module maps float32 [n, 3, height, width] (see `to_tensor`) to float32 [n, dim], not normalised.
    The same arguments give the same weights, bit for bit; no global random state is read or moved.
    Raises InputError on an unknown name, a size the network does not take, or dim out of 1..4096.
    """
    if name not in BACKBONES:
        near = get_close_matches(name, BACKBONES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(BACKBONES)}"
        raise InputError(f"backbone: no network is called {name!r}; {hint}")
    architecture = BACKBONES[name]
    size = architecture.sizes[0] if size is None else size
    dim = architecture.dim if dim is None else dim
    if size not in architecture.sizes:
        taken = " or ".join(f"{height}x{width}" for height, width in architecture.sizes)
        raise InputError(f"backbone: {name} takes {taken} pictures, not {size[0]}x{size[1]}; resize them")
    if not 1 <= dim <= 4096:
        raise InputError(f"backbone: dim must be from 1 to 4096, not {dim}")
    with torch.device("meta"):  # no storage yet, so torch's own initialisation draws no random number
        module = architecture.build(size, dim)
    return initialise(module.to_empty(device="cpu"), seed)


def initialise(module: nn.Module, seed: int) -> nn.Module:
    """Draw every weight of `module` afresh from `seed`, in place, and return it.

    Convolutions He-normal, linear layers Xavier, biases 0, PReLU slopes 0.25, GroupNorm the identity. Every
    residual branch starts near nothing, so that a deep network trains from its first step: its last
    GroupNorm gain at 0 (Goyal et al. 2017, arXiv 1706.02677, 5.1), or without norm its convolutions at
    N(0, 0.01) as SphereFace.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            _draw(layer, generator)
        for layer in module.modules():
            if isinstance(layer, _Residual):
                _quieten(layer.branch, generator)
    return module


def _draw(layer: nn.Module, generator: torch.Generator) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    elif isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
    elif isinstance(layer, nn.GroupNorm):
        nn.init.ones_(layer.weight)
    elif isinstance(layer, nn.PReLU):
        nn.init.constant_(layer.weight, 0.25)
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


def _quieten(branch: nn.Sequential, generator: torch.Generator) -> None:
    last = branch[-1]
    if isinstance(last, nn.GroupNorm):
        nn.init.zeros_(last.weight)
        return
    for layer in branch:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
