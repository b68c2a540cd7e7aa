"""Example level: training whose result hardly tells whether any one picture was there.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133); gradients of each example by Opacus, noise and sampling from a
keystream.

Each step takes each picture with probability q, brings the gradient of each (all trained tensors, those of a
private head included, as one vector of d numbers) to length `clip` at most, adds them up with discrete
Gaussian noise, and divides by the q n pictures expected. The optimiser sees nothing else. Neighbours differ
by one picture, added or removed; how many pictures and identities there are, q and the steps count as public.

What a ledger books is (`noise`, q, steps) of `steps_of`, for the Poisson-sampled Gaussian (Mironov, Talwar &
Zhang 2019, arXiv 1908.10530). That this holds for what is really computed:

Sensitivity. Gradients become whole numbers, in units of clip / 2^20, picture by picture and before they are
added. Whole numbers add up without error, so a picture changes the sum by its own vector, of length at most
R = 2^20 + sqrt(d) / 2, the second term for rounding; the variance is (noise R)^2, rounded up. The gradient of
a picture must then be the same bits in whatever company it is computed, hence batches of always eight: tests
check our networks on the CPU.

Sampling. A picture is taken if 64 bits of keystream are below floor(q 2^64): with a probability of at most q,
and less than 2^-64 below.

Noise. The accountants are of the continuous Gaussian, the noise is discrete of variance v on whole numbers.
For a whole-numbered shift t and a whole order k, the expectation of (shifted / unshifted)^k under the
unshifted is exp((k^2 - k) |t|^2 / 2v), exactly as for the continuous: both sums run over the same integers.
The moments of the sampled mechanism are made of these and q alone (Mironov et al., section 3.3), and the
other direction is never larger (theorem 5, by the reflection x -> t - x, which maps integers to integers). So
RDP at whole orders, in any dimension, is the same number. For other orders and PRV: up to an event of
probability e^-s, densities of the discrete and of the rounded continuous Gaussian, which is the continuous
one's post-processing, differ by a factor within e^g, g = (2 sqrt(d s) + 2 s) / 24 v (Laurent & Massart 2000,
lemma 1), so every step may add 2 g to epsilon: 2e-9 for noise 1, two million parameters and s = 50.

Time. A step takes longer the more pictures it took; who can time the steps learns their eighth part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from privfr.discrete import DiscreteGaussian
from privfr.errors import InputError
from privfr.experiment import Training
from privfr.faces.datasets import Faces
from privfr.faces.heads import HEADS
from privfr.methods.base import Method, is_private
from privfr.stepping import drawing, optimiser_of, pictures_of

__all__ = ["ExampleLevel", "fit_private", "start_private", "steps_of"]

Entropy = Callable[[int], bytes]
Pictures = NDArray[np.uint8]

# Whole numbers that a gradient of the length `clip` is long.
_REACH = 1 << 20
# Pictures whose gradients are computed together: sums of eight numbers up to 2^20 are exact in float32.
_TOGETHER = 8
# Squares that are added in float32: their sum misses by less than 1024 / 2^24 of itself, a length by 3.1e-5.
_BLOCK = 1024
# What gradients are clipped shorter by: more than that, and the rounding of a factor and a product.
_SLACK = 1e-4


@dataclass(frozen=True)
class ExampleLevel:
    """How much one picture may do, and what hides it.

    clip: L2 length that a picture's gradient is cut to, 1e-6 to 1e6.  noise: multiplier of the sensitivity,
    the one that accountants want, at most 500; 0 for none, whose epsilon is infinite.
    Raises `InputError` out of these ranges.
    """

    clip: float
    noise: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1e-6 <= self.clip <= 1e6:
            raise InputError(f"privacy.example_clip: {self.clip} is not between 1e-6 and 1e6")
        if not 0 <= self.noise <= 500:
            raise InputError(f"privacy.example_noise: {self.noise} is not between 0 and 500 times the clip")

    def variance(self, size: int) -> int:
        """Variance of the noise on each of `size` gradients, in squared units of clip / 2^20: (noise R)^2."""
        reach = _REACH + Fraction(math.isqrt(size) + 1, 2)
        return math.ceil((Fraction(self.noise) * reach) ** 2)


def steps_of(pictures: int, training: Training) -> tuple[float, int]:
    """Give the sampling rate q and the steps of one round: what a ledger books before it is trained."""
    rate = min(1.0, training.batch / pictures)
    return rate, max(1, round(training.epochs * round(1 / rate)))


def start_private(module: nn.Module, method: Method, faces: Faces, seed: int) -> None:
    """Start the private tensors as `method.build` draws them from a seed, looking at no picture.

    This takes the place of `Method.start`: a head that started at class means would show its pictures,
    without noise, to each gradient that passes through it, and so would one that is restarted there. It is
    trained by `fit_private` instead, with the rest.
    faces: only their number of identities counts.
    """
    fresh = method.build(method.classes(faces), seed).state_dict()
    own = {name: tensor for name, tensor in fresh.items() if is_private(method, name)}
    module.load_state_dict(own, strict=False)


def fit_private(
    module: nn.Module,
    method: Method,
    faces: Faces,
    training: Training,
    plan: ExampleLevel,
    rate: Callable[[float], float],
    entropy: Entropy,
    *,
    imposters: Pictures | None = None,
    stepped: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train in place for the steps of one round, as `privfr.trainer.fit` does, with a fresh optimiser.

    rate: share of this training done, in [0, 1) -> learning rate.  entropy: n -> n unpredictable bytes;
    whoever can repeat them can take the noise off.  imposters: pictures of nobody, uint8
    [n, height, width, 3]; what they tell of the faces is not accounted for here.  stepped(done, total, nan):
    called after each step; the loss is left out, since no noise covers it.
    Raises `InputError` for a network or a loss that lets pictures meet.
    """
    _refuse_company(module, method, faces)
    images = faces.images if imposters is None else np.concatenate([faces.images, imposters])
    sampling, steps = steps_of(len(images), training)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    noise = _Noise(plan, sum(parameter.numel() for parameter in trained), entropy)
    # Moving, mirroring and dropping need no keystream: what is promised holds for every way that each
    # picture's coins may fall, if only they fall independently of the pictures. The seed is secret all the
    # same.
    generator = torch.Generator().manual_seed(int.from_bytes(entropy(8), "big") >> 1)
    targets = method.examples(module, faces, len(images) - len(faces), generator).targets
    optimiser = optimiser_of(module, training)
    module.train()
    with _gradients_apart(module):
        for done in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate(done / steps)
            taken = _taken(len(images), sampling, entropy)
            total = noise.upon(
                _clipped_sum(module, method, images, targets, taken, training, plan.clip, generator)
            )
            _set_gradients(trained, total * (plan.clip / _REACH / (sampling * len(images))))
            optimiser.step()
            method.stepped(module)
            if stepped:
                stepped(done + 1, steps, math.nan)
    module.eval()


# Sampling and noise


def _taken(count: int, rate: float, entropy: Entropy) -> NDArray[np.int64]:
    """Take each of `count` with probability floor(rate 2^64) / 2^64: int64 [taken], ascending."""
    threshold = int(Fraction(rate) * (1 << 64))
    if threshold >= 1 << 64:
        return np.arange(count)
    keystream = Cipher(algorithms.ChaCha20(entropy(32), bytes(16)), None).encryptor()
    words = np.frombuffer(keystream.update(bytes(8 * count)), "<u8")
    return np.flatnonzero(words < np.uint64(threshold))


class _Noise:
    """The noise of one plan on gradients of `size` numbers."""

    def __init__(self, plan: ExampleLevel, size: int, entropy: Entropy) -> None:
        variance = plan.variance(size)
        self._law = DiscreteGaussian(Fraction(variance)) if variance else None
        self._size = size
        self._entropy = entropy

    def upon(self, total: Tensor) -> Tensor:
        """Add it to whole numbers, float64 [size]; exact, since both stay far below 2^53."""
        if self._law is None:
            return total
        drawn = torch.from_numpy(self._law.sample(self._size, self._entropy))
        return total + drawn.to(total.device)


# Gradients


@contextmanager
def _gradients_apart(module: nn.Module) -> Iterator[None]:
    """Let Opacus keep each example's gradient as `parameter.grad_sample`; leaves no trace in the module.

    Its ghost clipping, which never holds them all, is no faster for `resnet` on a CPU, 1.4 times as fast for
    `small`; but it adds gradients up within a convolution, where they cannot be made whole one by one.
    """
    hooks = _opacus()(module, loss_reduction="sum")
    try:
        yield
    finally:
        hooks.cleanup()
        for layer in module.modules():  # what an interrupted step leaves behind
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)


@cache
def _opacus() -> Any:
    """Opacus's hooks, taught our heads and our memory order; imported late, since that takes a second."""
    from opacus.grad_sample import GradSampleHooks, register_grad_sampler
    from opacus.grad_sample.conv import compute_conv_grad_sample

    warnings.filterwarnings("ignore", "Full backward hook is firing")  # pictures need no gradient
    register_grad_sampler(list(HEADS.values()))(_head_gradients)

    def convolution(layer: nn.Module, inputs: list[Tensor], pulls: Tensor) -> Any:
        # Opacus 1.6 cuts windows out of memory as if it were contiguous: from channels-last pictures it takes
        # wrong numbers, and some of the next picture's.
        return compute_conv_grad_sample(layer, [inputs[0].contiguous()], pulls)

    class Hooks(GradSampleHooks):  # type: ignore[misc]
        GRAD_SAMPLERS = {**GradSampleHooks.GRAD_SAMPLERS, nn.Conv2d: convolution}  # noqa: RUF012

    return Hooks


class _Bare(nn.Module):
    """A head without its hooks, which would run again while gradients are being taken apart."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        return self.head.forward(embedding, labels)  # type: ignore[no-any-return]


def _head_gradients(head: nn.Module, inputs: list[Tensor], pulls: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradient of each example's loss by each of a head's parameters: [n, *shape].

    inputs: embedding [n, dim] and labels [n].  pulls: gradient by each loss, [n].
    """
    embedding, labels = inputs
    bare = _Bare(head)
    parameters = dict(bare.named_parameters())

    def loss(values: dict[str, Tensor], one: Tensor, label: Tensor, pull: Tensor) -> Tensor:
        found: Tensor = functional_call(bare, values, (one[None], label[None]))
        return found[0] * pull

    values = {name: parameter.detach() for name, parameter in parameters.items()}
    apart = vmap(grad(loss), in_dims=(None, 0, 0, 0))(values, embedding, labels, pulls)
    return {parameters[name]: found for name, found in apart.items()}


def _clipped_sum(
    module: nn.Module,
    method: Method,
    faces: Pictures,
    targets: NDArray[np.int64],
    taken: NDArray[np.int64],
    training: Training,
    clip: float,
    generator: torch.Generator,
) -> Tensor:
    """Add up the clipped gradients of the pictures taken, in units of clip / 2^20: whole, float64 [d]."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = trained[0].device
    total = torch.zeros(sum(parameter.numel() for parameter in trained), dtype=torch.float64, device=device)
    for start in range(0, len(taken), _TOGETHER):
        rows = taken[start : start + _TOGETHER]
        count = len(rows)
        # Always as many: batches of fewer go other ways through the processor, to other last bits.
        rows = np.pad(rows, (0, _TOGETHER - count), mode="edge")
        images = pictures_of(faces, rows, training, generator).to(device)
        labels = torch.from_numpy(targets[rows]).to(device)
        for parameter in trained:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"),
            drawing(module, training.dropout, generator),
        ):
            losses = method.loss(module, images, labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        total += _whole([_gradient(parameter)[:count] for parameter in trained], clip)
    return total


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Each example's gradient by one parameter: float32 [8, numbers]; zeros where it is not used."""
    found: Tensor | None = parameter.grad_sample  # type: ignore[attr-defined]
    if found is None:
        return torch.zeros(_TOGETHER, parameter.numel(), device=parameter.device)
    return found.detach().float().reshape(_TOGETHER, -1)


def _whole(gradients: list[Tensor], clip: float) -> Tensor:
    """Clip each example's gradients to 2^20 units of length, round and add them up: float64 [d].

    gradients: float32 [n, numbers] of each parameter, n at most 8. An example whose gradient is not finite
    counts as 0.
    """
    scales = [
        (1 - _SLACK) * _REACH / max(length, clip) if math.isfinite(length) else 0.0
        for length in _lengths(gradients).tolist()
    ]
    sums: list[Tensor] = []
    for rows in gradients:
        total = torch.zeros_like(rows[0])
        for row, scale in zip(rows, scales, strict=True):
            if scale:
                total += (row * scale).round_()
        sums.append(total)
    return torch.cat(sums).double()


def _lengths(gradients: list[Tensor]) -> Tensor:
    """L2 length of each example's gradients: float64 [n], true to 3.1e-5 of itself however numbers round."""
    squares = torch.zeros(len(gradients[0]), dtype=torch.float64, device=gradients[0].device)
    for rows in gradients:
        even = rows.shape[1] // _BLOCK * _BLOCK
        blocks = rows[:, :even].reshape(len(rows), even // _BLOCK, _BLOCK)
        for block in (blocks, rows[:, None, even:]):
            squares += torch.linalg.vector_norm(block, dim=2).double().square().sum(1)
    return squares.sqrt()


def _set_gradients(trained: list[nn.Parameter], gradient: Tensor) -> None:
    """Give each parameter its part of a gradient, float64 [d].

    In the parameter's own memory order: a fused step walks both as flat memory.
    """
    parts = torch.split(gradient, [parameter.numel() for parameter in trained])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))


# What is refused


def _refuse_company(module: nn.Module, method: Method, faces: Faces) -> None:
    """Raise `InputError` where a picture's loss depends on other pictures: clipping it would not bound it."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            raise InputError(
                f"privacy: {name} is BatchNorm, which mixes the pictures of a batch; use GroupNorm"
            )
    for name, _ in module.named_buffers():
        raise InputError(f"privacy: {name} is a buffer, which changes without noise; use a layer without")
    remedy = "take another method, or privacy per client"
    if not method.per_example:
        raise InputError(f"privacy: the loss of method {method.name} compares pictures; {remedy}")
    if not _apart(module, method, faces):
        raise InputError(f"privacy: the loss of method {method.name} is not one per picture; {remedy}")


def _apart(module: nn.Module, method: Method, faces: Faces, count: int = 8) -> bool:
    """Tell whether one example of a batch of noise can be exchanged without moving the others' losses."""
    device = next(module.parameters()).device
    shape = (count + 1, 3, *faces.images.shape[1:3])
    images = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) - 1
    labels = (torch.arange(count + 1) % max(1, method.classes(faces))).to(device)
    module.train()
    with torch.no_grad():
        one = method.loss(module, images[1:], labels[1:])
        images[1], labels[1] = images[0], labels[0]
        other = method.loss(module, images[1:], labels[1:])
    return one.shape == other.shape == (count,) and torch.allclose(one[1:], other[1:], rtol=1e-4, atol=1e-5)
