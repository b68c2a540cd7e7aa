"""Client level: nobody can tell from the sums whether a client's pictures were there.

Adjacency: two runs that differ in one client, whose updates are all zeros in one of them ("zero-out"). Who
takes part is public. Each client's update, as whole numbers, is at most `radius` long; each sum is blurred
with discrete Gaussian noise, which the clients add themselves, a share each, so that no server has to be
trusted with it. Where the backend's aggregator sees the updates anyway, it adds the noise, once.

Somebody who colludes knows his own share of the noise, and a client that is lost adds none. So the shares are
chosen such that those of `threshold` survivors, less the corrupt ones, are enough: a round with fewer has no
sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from privfr.coding import Noise
from privfr.errors import InputError
from privfr.privacy.accounting import epsilon_of_rho, rho_of_epsilon, rho_of_sum

__all__ = ["ClientLevel", "calibrated", "honest"]

# Below, a sum of discrete Gaussians is no longer close to one (Kairouz et al. 2021, theorem 1's tau).
LEAST_VARIANCE = 4


@dataclass(frozen=True)
class ClientLevel:
    """The noise of a run, and what its rounds cost.

    noise: as the coding has it.  size: numbers in the vector.  corrupt: clients that may collude, at most.
    threshold: fewest survivors of a round.  epsilon: the budget, infinite for none.  delta: of all epsilons.
    """

    noise: Noise
    size: int
    corrupt: int
    threshold: int
    epsilon: float
    delta: float

    def rho(self, survivors: int) -> float:
        """Give the zCDP of one round's sum over so many clients."""
        return rho_of_sum(self.noise.radius, self.noise.variance, self._noises(survivors), self.size)

    @property
    def most(self) -> float:
        """Most that a round can cost, in zCDP."""
        return self.rho(self.threshold)

    @property
    def multiplier(self) -> float:
        """Standard deviation of the noise that counts in a sum, in radii."""
        return math.sqrt(self._noises(self.threshold) * self.noise.variance) / self.noise.radius

    def _noises(self, survivors: int) -> int:
        """Count the shares of noise in a sum over so many clients that nobody who colludes knows."""
        return 1 if self.noise.central else survivors - self.corrupt

    def affords(self, rho: float) -> bool:
        """Tell whether one more round fits the budget when so much is spent."""
        # To a billionth: the budget of a planned number of rounds is a sum of roundings.
        return epsilon_of_rho(rho + self.most, self.delta) <= self.epsilon * (1 + 1e-9)


def honest(threshold: int, clients: int, corruption: float) -> tuple[int, int]:
    """Count the corrupt clients, and the honest ones that a sum holds at least.

    Raises `InputError` for a cohort too small for the stated share.
    """
    corrupt = math.ceil(corruption * clients - 1e-9)
    if threshold - corrupt < 1:
        raise InputError(
            f"privacy.corruption: of {clients} clients {corrupt} may collude, and a sum may be over only "
            f"{threshold}, so that nobody's noise is left; lower it, or have more clients"
        )
    return corrupt, threshold - corrupt


def calibrated(
    *, epsilon: float, delta: float, multiplier: float, clip: float, corruption: float, step: float,
    clients: int, threshold: int, rounds: int, size: int, central: bool,
) -> ClientLevel:  # fmt: skip
    """Choose the noise that `rounds` rounds within the budget need, or take a given multiplier.

    clip: largest L2 norm of an update.  multiplier: standard deviation of the noise that counts in a sum, in
    clips; 0 to work it out.  step: of the coding.
    Raises `InputError` for a budget, a cohort or a coding that cannot be.
    """
    corrupt, noises = honest(threshold, clients, 0.0 if central else corruption)
    noises = 1 if central else noises
    radius = math.floor(clip / step)
    if radius < 1:
        raise InputError(
            f"privacy.client_clip: {clip} is less than one step of the coding; lower coding.clip or raise "
            "coding.bits"
        )
    if radius > 1 << 40:
        raise InputError(
            f"privacy.client_clip: {clip:g} is more than 2^40 steps of the coding; lower it, or raise "
            "coding.clip"
        )

    def level(variance: int) -> ClientLevel:
        noise = Noise(radius, variance, central)
        return ClientLevel(noise, size, corrupt, threshold, epsilon or math.inf, delta)

    if multiplier:
        variance = math.ceil((multiplier * radius) ** 2 / noises)
        if variance > 1 << 58:
            raise InputError(
                f"privacy.client_noise: {multiplier:g} clips of {clip:g} is more noise than can be drawn; "
                "lower one of them, or raise coding.clip"
            )
    else:
        variance = _least(lambda v: level(v).most, rho_of_epsilon(epsilon, delta) / rounds)
    if variance < LEAST_VARIANCE:
        raise InputError(
            f"privacy.client_clip: noise of variance {variance} in steps of the coding, below "
            f"{LEAST_VARIANCE}, is no longer Gaussian enough; raise coding.bits or lower coding.clip"
        )
    return level(variance)


def _least(cost: Callable[[int], float], most: float) -> int:
    """Find the least variance whose cost is not above `most`."""
    high = 1
    while cost(high) > most:
        high *= 2
        if high > 1 << 58:
            raise InputError(
                "privacy.epsilon: no noise that can be drawn is enough; raise it or lower privacy.client_clip"
            )
    low = high // 2
    while high - low > max(1, high >> 24):
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= most else (middle, high)
    return high
