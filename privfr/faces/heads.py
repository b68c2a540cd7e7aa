"""Margin heads: embeddings and labels in, one loss per example out.

A head holds one row per identity; a row, once trained, is that person's template. In federated training the
head therefore stays on the client. Losses are per example, never reduced here, because differential privacy
clips example by example.
"""

from __future__ import annotations

import math
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privfr.errors import InputError

__all__ = ["HEADS", "NOBODY", "ArcFace", "CosFace", "Head", "Softmax", "SphereFace2", "head"]

NOBODY = -1  # label of a face that is none of a head's people


class Head(nn.Module):
    """What every head shares: unit rows against unit embeddings, so that only angles count.

    weight: float32 [classes, dim], one row per identity, normalised when used.
    scale: what cosines are multiplied by before the softmax or sigmoid.  margin: how much harder than
    needed the true class is made.  nobody: cosine above which a face is one of these people, so that one that
    is not can be told so; 0 for a head that knows only its people (SphereFace2 does without).
    Raises InputError on settings outside the stated ranges.
    """

    weight: nn.Parameter
    nobody = 0.0

    def __init__(
        self, classes: int, dim: int, scale: float, margin: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        if classes < 1 or dim < 1:
            raise InputError(f"head: needs at least 1 class and 1 dimension, not {classes} and {dim}")
        if not 0 < scale < math.inf:
            raise InputError(f"head: scale must be positive and finite, not {scale}")
        self.scale = scale
        self.margin = margin
        # Gaussian directions are uniform on the sphere.
        self.weight = nn.Parameter(F.normalize(torch.randn(classes, dim, generator=generator)))

    def cosines(self, embedding: Tensor) -> Tensor:
        """Cosine of every embedding [n, dim] with every class row: [n, classes]."""
        return F.linear(F.normalize(embedding), F.normalize(self.weight))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example: float [n].  embedding: float [n, dim]; labels: int64 [n], in 0..classes-1."""
        raise NotImplementedError

    @torch.no_grad()
    def set_centres(self, means: Tensor) -> None:
        """Start every row at its class's mean embedding: float [classes, dim], of any length but zero.

        A head that starts there agrees with the backbone at once and sends it no random gradient.
        Raises InputError on another shape, or on a mean that is zero or not finite.
        """
        if means.shape != self.weight.shape:
            raise InputError(
                f"head: centres have shape {list(means.shape)}, expected {list(self.weight.shape)}; "
                "give one mean embedding per class"
            )
        norms = means.norm(dim=1)
        unusable = torch.nonzero(~(norms.isfinite() & (norms > 0))).flatten()
        if len(unusable):
            raise InputError(f"head: the centre of class {int(unusable[0])} is zero or not finite")
        self.weight.copy_(F.normalize(means))


def _cross_entropy(head: Head, cosines: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss of scaled cosines [n, classes] with the true class's one replaced by `target` [n, 1].

    A head that knows nobody has one more class, of a fixed cosine; a face of label `NOBODY` belongs to that.
    """
    if not head.nobody:
        logits = head.scale * cosines.scatter(1, labels[:, None], target)
        return F.cross_entropy(logits, labels, reduction="none")
    # One column more for all, so that the label of nobody has a place, too.
    fixed = torch.full_like(cosines[:, :1], head.nobody)
    classes = torch.where(labels == NOBODY, cosines.shape[1], labels)
    aims = torch.where(labels[:, None] == NOBODY, head.nobody, target)
    logits = head.scale * torch.cat([cosines, fixed], 1).scatter(1, classes[:, None], aims)
    return F.cross_entropy(logits, classes, reduction="none")


def _true(cosines: Tensor, labels: Tensor) -> Tensor:
    """Cosine with the true class [n, 1]; of nobody's, one that does not count."""
    return cosines.gather(1, labels.clamp(min=0)[:, None])


def _check_margin(name: str, margin: float, below: float) -> None:
    if not 0 <= margin < below:
        raise InputError(f"{name}: margin must be at least 0 and below {below:.4g}, not {margin}")


class Softmax(Head):
    """Softmax over scaled cosines, no margin, no bias: NormFace (Wang et al. 2017, arXiv 1704.06369)."""

    def __init__(self, classes: int, dim: int, *, scale: float = 30.0, generator: torch.Generator) -> None:
        super().__init__(classes, dim, scale, 0.0, generator)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example: float [n]."""
        cosines = self.cosines(embedding)
        return _cross_entropy(self, cosines, _true(cosines, labels), labels)


class CosFace(Head):
    """s (cos a - m) for the true class (Wang et al. 2018, arXiv 1801.09414, eq. 4)."""

    def __init__(
        self,
        classes: int,
        dim: int,
        *,
        scale: float = 30.0,
        margin: float = 0.35,
        generator: torch.Generator,
    ) -> None:
        _check_margin("cosface", margin, 2.0)
        super().__init__(classes, dim, scale, margin, generator)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example: float [n]."""
        cosines = self.cosines(embedding)
        return _cross_entropy(self, cosines, _true(cosines, labels) - self.margin, labels)


class ArcFace(Head):
    """s cos(a + m) for the true class (Deng et al. 2019, arXiv 1801.07698, eq. 3).

    Beyond a + m = pi, where cos(a + m) would rise again, the target goes on as cos a - m sin m, the authors'
    own extension: it falls everywhere, with a step at pi - m.
    """

    def __init__(
        self, classes: int, dim: int, *, scale: float = 30.0, margin: float = 0.5, generator: torch.Generator
    ) -> None:
        _check_margin("arcface", margin, math.pi / 2)
        super().__init__(classes, dim, scale, margin, generator)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example: float [n]."""
        cosines = self.cosines(embedding)
        return _cross_entropy(self, cosines, self._add_angle(_true(cosines, labels)), labels)

    def _add_angle(self, cosine: Tensor) -> Tensor:
        # cos(a + m) by the addition theorem: no arccos, whose slope is infinite at both ends. So is the
        # square root's, hence the inner `where`: at the ends its gradient is 0, not 0 * inf.
        squared = 1 - cosine.square()
        inside = squared > torch.finfo(cosine.dtype).eps
        sine = torch.where(inside, torch.where(inside, squared, 1.0).sqrt(), 0.0)
        added = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine > -math.cos(self.margin), added, beyond)


class SphereFace2(Head):
    """One sigmoid per class: is this face that person? (Wen et al. 2022, arXiv 2108.01513, eq. 5-8, type C.)

    With g(c) = 2 ((c + 1) / 2)^t - 1 and the sum over the wrong classes i, an example's loss is
    balance / r log(1 + exp(-r (g(cos a_y) - m) - b))
    + (1 - balance) / r sum_i log(1 + exp(r (g(cos a_i) + m) + b)).
    No softmax couples the classes, so it trains even where a client has a single identity.
    scale is r, margin m, balance lambda (in 0..1: the share of the positive), sharpness t (at least 1).
    bias: float32 scalar b, learnt, started where it balances both terms for orthogonal rows.
    """

    bias: nn.Parameter

    def __init__(
        self,
        classes: int,
        dim: int,
        *,
        scale: float = 30.0,
        margin: float = 0.4,
        balance: float = 0.7,
        sharpness: float = 3.0,
        generator: torch.Generator,
    ) -> None:
        _check_margin("sphereface2", margin, 1.0)
        if not 0 < balance < 1:
            raise InputError(f"sphereface2: balance must be between 0 and 1, not {balance}")
        if not 1 <= sharpness < math.inf:
            raise InputError(f"sphereface2: sharpness must be at least 1, not {sharpness}")
        super().__init__(classes, dim, scale, margin, generator)
        self.balance = balance
        self.sharpness = sharpness
        self.bias = nn.Parameter(torch.tensor(self._balanced_bias(classes)))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example: float [n]."""
        cosines = self.cosines(embedding)
        # Not F.one_hot, which looks at the labels' values and so cannot be run example by example by vmap.
        classes = torch.arange(cosines.shape[1], device=labels.device)
        positive = (labels[:, None] == classes).to(cosines.dtype)
        sign = 1 - 2 * positive  # -1 for the true class
        # Rounding can carry a cosine past -1, where a fractional power is not a number.
        half = ((cosines + 1) / 2).clamp(min=0)
        g = 2 * half.pow(self.sharpness) - 1
        losses = F.softplus(sign * (self.scale * g + self.bias) + self.scale * self.margin)
        weights = positive * self.balance + (1 - positive) * (1 - self.balance)
        return (weights * losses).sum(dim=1) / self.scale

    def _balanced_bias(self, classes: int) -> float:
        """Where the bias's gradient is 0 if every cosine is 0, as between random directions."""
        g = 2 * 0.5**self.sharpness - 1
        low, high = -10.0 * self.scale, 10.0 * self.scale
        for _ in range(60):  # the gradient rises with b: bisect
            bias = (low + high) / 2
            pull = self.balance * _sigmoid(-self.scale * (g - self.margin) - bias)
            push = (1 - self.balance) * (classes - 1) * _sigmoid(self.scale * (g + self.margin) + bias)
            low, high = (bias, high) if pull > push else (low, bias)
        # With a single class nothing pushes: the search runs to its end. Start such a head at its threshold.
        return bias if classes > 1 else -self.scale * g


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


HEADS: dict[str, type[Head]] = {
    "softmax": Softmax,
    "cosface": CosFace,
    "arcface": ArcFace,
    "sphereface2": SphereFace2,
}


def head(name: str, classes: int, dim: int, *, seed: int = 0, **settings: float) -> Head:
    """Build the head called `name` (a key of HEADS) with random unit rows drawn from `seed`.

    settings: the head's own keyword arguments (scale, margin, ...); what is left out takes its paper's value.
    Raises InputError on an unknown name, an unknown setting or a value out of range.
    """
    if name not in HEADS:
        near = get_close_matches(name, HEADS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(HEADS)}"
        raise InputError(f"head: no head is called {name!r}; {hint}")
    kind = HEADS[name]
    known = set(kind.__init__.__kwdefaults__ or {})
    for key in settings:
        if key not in known:
            raise InputError(f"head: {name} has no setting {key!r}; it has {', '.join(sorted(known))}")
    generator = torch.Generator().manual_seed(seed)
    return kind(classes, dim, generator=generator, **settings)
