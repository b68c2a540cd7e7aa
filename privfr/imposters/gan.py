"""A small GAN of 64x64 faces, as one method: it trains, travels and is guarded like any other.

The generator is shared. The discriminator stays on the device: it has seen its owner's pictures, and tells
them apart from all else.

One backward pass trains both. The discriminator's loss of a pair, a real picture x and a made one y, is
softplus(-m), m = D(x) - D(y): relativistic (Jolicoeur-Martineau 2018, arXiv 1807.00734), in pairs as in R3GAN
(Huang et al. 2024, arXiv 2501.05441). The generator's is softplus(m), which does not saturate. Both are seen
through D(y) alone, so on its way from discriminator to generator a pair's gradient is multiplied by
d softplus(m) / d softplus(-m) = -exp(m). That is gradient reversal (Ganin & Lempitsky 2015, arXiv 1409.7495)
with a length for each pair. Nothing mixes pictures, so privacy can guard each by itself.

The discriminator is kept from running away: after each step its layers are projected on the matrices of a
spectral norm of at most 2 (Gouk et al. 2018, arXiv 1804.04368). That bounds what Miyato et al. (2018,
arXiv 1802.05957) bound, but leaves parameters plain. A bound of 1 is too tight for so short a training: after
30,000 pictures there was texture and no face, where with 2 there were faces. Changing what the discriminator
sees at random (DiffAugment, Zhao et al. 2020, arXiv 2006.10738) left its holes in the made pictures.

What it wants: AdamW with betas (0, 0.99), and in a federation a learning rate above what one machine takes,
since clients' steps partly cancel in the mean.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from privfr.errors import InputError
from privfr.faces.backbones import initialise
from privfr.faces.datasets import Examples, Faces
from privfr.storage import write_atomic

__all__ = ["SIZE", "Gan", "Generator"]

SIZE = (64, 64)
_BATCH = 64  # pictures made at once
_SLOPE = 0.2  # of leaky ReLUs, as is customary in GANs
_BOUND = 2.0  # of a discriminator's layer, its spectral norm
_STEEP = 30.0  # margin beyond which a pair's gradient is not made longer: exp(30) is far from overflow


class _Latents(nn.Module):
    """Where made pictures come from: normal vectors.

    generator: what they are drawn from, lent by `privfr.stepping.drawing`; without, always the same ones.
    """

    generator: torch.Generator | None = None

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(self, count: int, device: torch.device) -> Tensor:
        """Draw float32 [count, latent]."""
        generator = self.generator or torch.Generator().manual_seed(0)
        return torch.randn(count, self.latent, generator=generator).to(device)


class _Styled(nn.Module):
    """A convolution whose normalised features are scaled and moved by the latent vector.

    Self-modulation (Chen et al. 2018, arXiv 1810.01365), with GroupNorm for BatchNorm.
    """

    def __init__(self, inner: int, outer: int, latent: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inner, outer, 3, 1, 1)
        self.groups = outer // math.gcd(outer, 16)  # of 16 channels, as in the backbones
        self.style = nn.Linear(latent, 2 * outer)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        gain, shift = self.style(latents)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu(F.group_norm(self.convolution(x), self.groups) * (1 + gain) + shift, _SLOPE)


class Generator(nn.Module):
    """Latent vectors in, pictures out.

    width: channels at 32x32; it has up to four times as many below.  latent: numbers in a latent vector.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.width, self.latent = width, latent
        self.first = nn.Linear(latent, 4 * width * 16)
        self.blocks = nn.ModuleList(
            _Styled(inner * width, outer * width, latent) for inner, outer in ((4, 4), (4, 4), (4, 2), (2, 1))
        )
        # No block at 64x64, which would cost the most.
        self.picture = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Make pictures in [-1, 1], [n, 3, 64, 64], of latent vectors [n, latent]."""
        x = self.first(latents).unflatten(1, (4 * self.width, 4, 4))
        for i, block in enumerate(self.blocks):
            x = block(F.interpolate(x, scale_factor=2.0) if i else x, latents)
        return torch.tanh(self.picture(F.interpolate(x, scale_factor=2.0)))

    def sample(self, count: int, seed: int) -> NDArray[np.uint8]:
        """Make uint8 [count, 64, 64, 3]; the same for the same seed, on the same kind of machine."""
        device = next(self.parameters()).device
        latents = torch.randn(count, self.latent, generator=torch.Generator().manual_seed(seed))
        made = np.empty((count, *SIZE, 3), np.uint8)
        with torch.inference_mode():
            for start in range(0, count, _BATCH):
                pictures = self(latents[start : start + _BATCH].to(device)).float()
                bytes_ = (pictures * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
                made[start : start + _BATCH] = bytes_.permute(0, 2, 3, 1).cpu().numpy()
        return made

    def save(self, path: str | Path, *, private: bool = False) -> None:
        """Write as safetensors, atomically. private: readable by its owner alone.

        Raises `InputError` where the path cannot be written.
        """
        facts = {"generator": {"width": self.width, "latent": self.latent}}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        serialised = safetensors.torch.save(tensors, {"privfr": json.dumps(facts)})
        write_atomic(Path(path), serialised, private=private)

    @classmethod
    def load(cls, path: str | Path) -> Generator:
        """Read what `save` wrote. Raises `InputError` for a missing, damaged or foreign file."""
        path = Path(path)
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["privfr"])["generator"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            width, latent = int(facts["width"]), int(facts["latent"])
            with torch.device("meta"):
                found = cls(_bounded("width", width), _bounded("latent", latent))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; give a generator that privfr trained") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); copy it again") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a generator of privfr ({error}); train one with `privfr imposters train`"
            ) from None
        _check_tensors(found, tensors, path)
        found.to_empty(device="cpu").load_state_dict(tensors)
        return found.to(memory_format=torch.channels_last)


def _bounded(key: str, value: int) -> int:
    """Refuse a size whose network would take all memory. Raises `ValueError`."""
    if not 1 <= value <= 512:
        raise ValueError(f"{key} {value} is not between 1 and 512")
    return value


def _check_tensors(found: Generator, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tensor.shape for name, tensor in found.state_dict().items()}
    held = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != held:
        odd = min(expected.items() ^ held.items())[0]
        raise InputError(f"{path}: tensor {odd!r} does not belong to this generator: another architecture")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise InputError(f"{path}: tensor {name!r} is not finite float32; the file is damaged")


class Discriminator(nn.Module):
    """Pictures in, one number each: how real it looks, beside others. Four halvings, no norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        self.layers = nn.Sequential()
        for inner, outer in pairwise(widths):
            self.layers += nn.Sequential(nn.Conv2d(inner, outer, 4, 2, 1), nn.LeakyReLU(_SLOPE))
        self.score = nn.Linear(4 * width * 16, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Judge pictures, float [n, 3, 64, 64]: float [n]."""
        seen = self.layers(images).flatten(1)
        # In float32: what counts is the difference of two scores, which bfloat16's eight bits do not hold.
        with torch.autocast(images.device.type, enabled=False):
            scores: Tensor = self.score(seen.float())
        return scores[:, 0]


class _Pair(nn.Module):
    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.latents = _Latents(latent)
        self.generator = Generator(width, latent)
        self.discriminator = Discriminator(width)


@dataclass(frozen=True)
class Gan:
    """The method: an example is one real picture and one made one; labels are not looked at.

    width, latent: as `Generator` takes them; the discriminator has the same width.
    """

    width: int = 16
    latent: int = 64

    name: ClassVar[str] = "gan"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    discloses: ClassVar[tuple[str, ...]] = ()
    per_example: ClassVar[bool] = True

    def classes(self, faces: Faces) -> int:
        """No label is used."""
        return 0

    def build(self, classes: int, seed: int) -> nn.Module:
        """Make generator and discriminator."""
        with torch.device("meta"):  # no storage yet, so torch's own initialisation draws no random number
            module = _Pair(self.width, self.latent)
        initialise(module.to_empty(device="cpu"), seed)
        self.stepped(module)
        return module

    def shared(self, tensor: str) -> bool:
        """Share the generator alone."""
        return tensor.startswith("generator.")

    def frozen(self, tensor: str) -> bool:
        """Train everything."""
        return False

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        """Nothing to prepare."""

    def examples(
        self, module: nn.Module, faces: Faces, imposters: int, generator: torch.Generator
    ) -> Examples:
        """Every picture of the faces once; imposters are what it makes, not what it learns from."""
        return Examples(np.arange(len(faces))[:, None], np.zeros(len(faces), np.int64))

    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of the discriminator for each picture and one made beside it: float32 [n].

        Its gradient is the discriminator's there, and in the generator that of the generator's own loss.
        """
        assert isinstance(module, _Pair)
        made = module.generator(module.latents(len(images), images.device))
        real_score, made_score = module.discriminator(images), module.discriminator(made)
        margin = (real_score - made_score).float()
        if made.requires_grad:
            turn = -margin.detach().clamp(max=_STEEP).exp().to(made.dtype)
            made.register_hook(lambda gradient: gradient * turn[:, None, None, None])
        return F.softplus(-margin)

    def stepped(self, module: nn.Module) -> None:
        """Project the discriminator's layers on a spectral norm of at most 2."""
        assert isinstance(module, _Pair)
        with torch.no_grad():
            for layer in module.discriminator.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.div_((_spectral_norm(layer.weight) / _BOUND).clamp(min=1))


def _spectral_norm(weight: Tensor) -> Tensor:
    """Largest singular value of a layer's weight as a matrix, outputs times the rest: float32 [].

    By the small Gram matrix, ten times as fast as by the singular values, and without a state to carry along.
    """
    matrix = weight.flatten(1)
    largest: Tensor = torch.linalg.eigvalsh(matrix @ matrix.mT)[-1]
    return largest.clamp(min=0).sqrt()
