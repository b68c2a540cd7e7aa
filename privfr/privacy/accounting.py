"""What noise is worth: from noise to (epsilon, delta), and from a wanted epsilon to noise.

Client level. The sum of the discrete Gaussians that h clients add, to a sum that one client can change by
`radius` at most, is rho-zCDP (Bun & Steinke 2016, arXiv 1605.02658) with

    rho = (radius / sqrt(h v) + sqrt(d) tau)^2 / 2,   tau = 10 sum over k = 1..h-1 of exp(-2 pi^2 v k/(k+1))

v being the variance of each, d the numbers in the vector (Kairouz, Liu & Steinke 2021, arXiv 2102.06387,
theorem 1 and proposition 14; for h = 1, Canonne et al. 2020, theorem 14, tau = 0). Rounds add up their rho.
Conversion to epsilon is `dp_accounting`'s.

Example level. Opacus's own accountants, over one history of steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from privfr.errors import InputError

__all__ = ["Accountant", "epsilon_of_rho", "epsilon_of_steps", "noise_for", "rho_of_epsilon", "rho_of_sum"]

Accountant = Literal["prv", "rdp"]

# Multipliers of the example level's noise: below, there is none to speak of; above, nothing but noise.
LEAST_NOISE, MOST_NOISE = 0.01, 500.0

# Noise multiplier, sampling rate, steps: what Opacus calls a history.
Steps = tuple[float, float, int]


def rho_of_sum(radius: float, variance: int, noises: int, size: int) -> float:
    """Give the rho of zCDP of one sum, as above. noises: h, at least 1.  size: d."""
    # From k = 1000 on, k/(k+1) is 1 to a thousandth; the rest of the sum is bounded by its largest term.
    terms = min(noises - 1, 1000)
    tau = sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, terms + 1))
    tau += (noises - 1 - terms) * math.exp(-2 * math.pi**2 * variance * 1000 / 1001)
    return (radius / math.sqrt(noises * variance) + math.sqrt(size) * 10 * tau) ** 2 / 2


# Of Renyi divergence, close enough together that the best among them is the best of all to a thousandth.
_ORDERS = tuple(1 + 10 ** (i / 40) for i in range(-60, 241))


@lru_cache(maxsize=1024)
def epsilon_of_rho(rho: float, delta: float) -> float:
    """Convert zCDP to the epsilon at this delta."""
    if not rho:
        return 0.0
    if not math.isfinite(rho):
        return math.inf
    from dp_accounting import ZCDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS)
    accountant.compose(ZCDpEvent(rho))
    return float(accountant.get_epsilon(delta))


def rho_of_epsilon(epsilon: float, delta: float) -> float:
    """Give the largest rho whose epsilon at this delta is not above."""
    low, high = 0.0, 1.0
    while epsilon_of_rho(high, delta) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of_rho(middle, delta) <= epsilon else (low, middle)
    return low


# Above, there is nothing left to be exact about, and PRV's grid takes minutes, then all memory there is.
_MOST = 50.0


def epsilon_of_steps(history: Iterable[Steps], delta: float, accountant: Accountant) -> float:
    """Compose steps of DP-SGD with Poisson sampling, adding or removing one example; 0.0 for none.

    Where RDP, which claims less, comes to more than 50, that is taken in the place of PRV.
    """
    return _composed(tuple(each for each in _merged(history) if each[2]), delta, accountant)


@lru_cache(maxsize=4096)
def _composed(steps: tuple[Steps, ...], delta: float, accountant: Accountant) -> float:
    if not steps:
        return 0.0
    if any(not noise for noise, _, _ in steps):
        return math.inf
    from opacus.accountants import create_accountant

    # Of orders that could reach further, and of logarithms at a grid's edge: they change no result.
    warnings.filterwarnings("ignore", module=r"opacus\.accountants")

    def found(kind: Accountant) -> float:
        made = create_accountant(kind)
        made.history = list(steps)
        return float(made.get_epsilon(delta))

    most = found("rdp")
    return most if accountant == "rdp" or most > _MOST else found("prv")


def _merged(history: Iterable[Steps]) -> list[Steps]:
    """Add up the steps of equal noise and rate: their order does not matter, and accountants take time for
    each.
    """
    steps: dict[tuple[float, float], int] = {}
    for noise, rate, count in history:
        steps[noise, rate] = steps.get((noise, rate), 0) + count
    return [(noise, rate, count) for (noise, rate), count in steps.items()]


@lru_cache(maxsize=1024)
def noise_for(
    epsilon: float, delta: float, plan: tuple[tuple[float, int], ...], accountant: Accountant
) -> float:
    """Give the least noise multiplier, to a thousandth, whose steps stay within epsilon, from 0.01 up.

    plan: sampling rate and steps of each part. Raises `InputError` where not even a multiplier of 500 does.
    """

    def spent(noise: float) -> float:
        return epsilon_of_steps([(noise, *part) for part in plan], delta, accountant)

    low, high = 0.0, 0.5
    while spent(high) > epsilon:
        if high >= MOST_NOISE:
            steps = sum(steps for _, steps in plan)
            raise InputError(f"privacy.epsilon: {epsilon} cannot be kept over {steps} steps; raise it")
        low, high = high, min(2 * high, MOST_NOISE)
    while high - low > 1e-3 * high and high > LEAST_NOISE:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return max(high, LEAST_NOISE)
