"""What a round does to the model: federated averaging, with momentum and with a clip that is learnt.

Server and members each work the next model out for themselves, and must get the same bits on every machine:
float32 element by element, and no function of the C library that may round as it likes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np

from privfr.errors import BadFrame
from privfr.vector import Aggregate, Vector, l2_norm

__all__ = ["AdaptiveClip", "FedAvg"]

RATE = 0.2  # of the clip's logarithm, as in the paper
# Largest |log(C / first)|: beyond, a clip is no clip, and float32 runs out. Whole, which float32 holds, so
# that no sum is rounded past it: what `change` adds is below 0.2, and errs by 2^-27, not by half a step.
REACH = 20.0
_EXACT = Context(prec=40)  # whose exp is correctly rounded; math.exp is the C library's


@dataclass(frozen=True)
class AdaptiveClip:
    """A clip C of clients' updates that follows a quantile of their norms (Andrew, Thakkar, McMahan &
    Ramaswamy 2021, arXiv 1905.03871).

    first: C of the first round, L2.  share: of the squared length of what a client sends, and so of a round's
    rho, that goes into learning C, above 0 and below 1.  quantile: share of the clients whose updates C is
    not to shorten.

    A client sends its update, scaled such that a length of C becomes sqrt(1 - share) first, and after it
    +- sqrt(share) first: plus if it was not longer than C. However C comes about, that is no longer than
    `first`, so privacy does not depend on it. What says C is log(C / first), "log" below.
    """

    first: float
    share: float
    quantile: float = 0.5

    def at(self, log: float) -> float:
        """Give C. Raises `BadFrame` for a number that no rounds lead to."""
        return self.first * self._ratio(log)

    def sent(self, update: Vector, log: float) -> Vector:
        """Give what a client sends for its update, float32 [size]: float32 [size + 1]."""
        clip, length = self.at(log), l2_norm(update)
        factor = self._length / max(clip, length)
        return np.append(update * np.float32(factor), np.float32(self._bit if length <= clip else -self._bit))

    def change(self, mean: Vector, log: float) -> Vector:
        """Read the mean of what clients sent, float32 [size + 1]: the mean update, and how `log` changes."""
        found = mean * np.float32(self._ratio(log) * (self.first / self._length))
        unclipped = (1 + float(mean[-1]) / self._bit) / 2
        # With noise it can leave [0, 1]. Cut off there, it would pull C away from any quantile but 0.5.
        most = max(self.quantile, 1 - self.quantile)
        step = RATE * max(-most, min(unclipped - self.quantile, most))
        found[-1] = np.float32(max(-REACH, min(float(log) - step, REACH)) - float(log))
        return found

    @property
    def _length(self) -> float:
        """Length at which an update of length C is sent."""
        return math.sqrt(1 - self.share) * self.first

    @property
    def _bit(self) -> float:
        return math.sqrt(self.share) * self.first

    def _ratio(self, log: float) -> float:
        """C / first."""
        if not abs(log) <= REACH:  # nor is "not a number"
            raise BadFrame(f"a model whose clip is not within e^{REACH:g} times the first one")
        return float(_EXACT.exp(Decimal(float(log))))


@dataclass(frozen=True)
class FedAvg:
    """The next model is the last one plus the mean update (FedAvg, McMahan et al. 2017, arXiv 1602.05629).

    momentum: share of the last step, the velocity, that is added to the next (FedAvgM, Hsu et al. 2019, arXiv
    1909.06335).  clip: how clients clip, or None.  average: share that a moving average of the models keeps
    of itself each round, 0 for none. It steers nothing: it is what a run ends with (as is customary with
    generators, Yazici et al. 2019, arXiv 1806.04498).

    The model vector holds all that the next step needs, since every member takes it: weights, the clip's
    logarithm where there is one; with momentum a velocity of all those; with an average that, too.
    """

    momentum: float = 0.0
    clip: AdaptiveClip | None = None
    average: float = 0.0

    def begin(self, weights: Vector) -> Vector:
        """Return the model vector a run begins with."""
        shared = np.append(weights, np.float32(0)) if self.clip else weights
        kept = [np.zeros_like(shared)] if self.momentum else []
        return np.concatenate([shared, *kept, shared] if self.average else [shared, *kept])

    @property
    def copies(self) -> int:
        """Numbers in the model vector for each number that a client sends."""
        return 1 + bool(self.momentum) + bool(self.average)

    def step(self, model: Vector, aggregate: Aggregate) -> Vector:
        """Return the next model vector. Raises `BadFrame` as `AdaptiveClip.at`."""
        change = aggregate.vector
        if self.clip:
            change = self.clip.change(change, model[change.size - 1])
        shared, *kept = np.split(model, self.copies)
        if not self.momentum:
            found = [shared + change]
        else:
            velocity = np.float32(self.momentum) * kept[0] + change
            if self.clip:
                velocity[-1] = change[-1]  # momentum would overshoot: C is to follow, not to get anywhere
            found = [shared + velocity, velocity]
        if self.average:
            found.append(kept[-1] + np.float32(1 - self.average) * (found[0] - kept[-1]))
        return np.concatenate(found) if self.copies > 1 else found[0]

    def result(self, model: Vector) -> Vector:
        """Give the weights that a model vector stands for: their average, if there is one."""
        parts = np.split(model, self.copies)
        found = parts[-1] if self.average else parts[0]
        return found[:-1] if self.clip else found
