"""What an attacker can prove of the client level, and that the proof itself is sound."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from privfr.coding import Coding, FixedPoint, Noise
from privfr.privacy.accounting import epsilon_of_rho
from privfr.privacy.audit import epsilon_proven
from privfr.privacy.client import ClientLevel, calibrated
from privfr.vector import Update

SIZE, CLIENTS, TRIALS = 24, 6, 1500
STEP = 0.25 / 32767


def level(epsilon: float, central: bool) -> ClientLevel:
    """One round's noise for six clients, of whom one is corrupt."""
    return calibrated(
        epsilon=epsilon, delta=1e-5, multiplier=0.0, clip=0.05, corruption=1 / 6, step=STEP, clients=CLIENTS,
        threshold=CLIENTS, rounds=1, size=SIZE, central=central,
    )  # fmt: skip


def scores(noise: Noise | None, present: bool, trials: int = TRIALS) -> NDArray[np.float64]:
    """How far released means lie in the direction of the canary: the longest update that a client can send.

    The noise that counts: of the honest five, since the corrupt one knows its own; or the server's.
    """
    point = FixedPoint(Coding(0.25, 16, 1, noise=noise), CLIENTS, (), SIZE, bytes(32))
    canary = np.full(SIZE, 9.0 if noise else 0.05 / math.sqrt(SIZE), np.float32)
    zero = Update(np.zeros(SIZE, np.float32), 1.0, {})
    first = Update(canary, 1.0, {}) if present else zero
    found = []
    for _ in range(trials):
        lanes = [point.encode(update, os.urandom) for update in (first, *[zero] * (CLIENTS - 2))]
        total = np.sum(lanes, axis=0, dtype=np.uint64).astype(np.uint32)
        if noise and noise.central:
            total = point.blur(total, noise.variance, os.urandom)
        total &= np.uint32((1 << point.modulus_bits) - 1)
        found.append(float(point.decode(total, CLIENTS - 1).vector.sum()))
    return np.array(found)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("epsilon", [4.0, 8.0])
def test_with_noise_the_attacker_stays_under_what_is_claimed(epsilon: float, central: bool) -> None:
    noise = level(epsilon, central).noise
    proven = epsilon_proven(scores(noise, True), scores(noise, False), 1e-5)
    assert 0.05 * epsilon < proven < epsilon  # above zero: the attack is one


def test_without_noise_the_attacker_knows() -> None:
    assert epsilon_proven(scores(None, True, 200), scores(None, False, 200), 1e-5) > 2.5


def test_too_little_noise_is_found_out() -> None:
    """A tenth of the planned deviation proves more than the plan claims."""
    planned = level(1.0, False).noise
    less = Noise(planned.radius, planned.variance // 100)
    assert epsilon_proven(scores(less, True), scores(less, False), 1e-5) > 1.0


def test_an_update_beyond_the_radius_is_found_out() -> None:
    """What is proven when the clip is left out: noise for a radius of a tenth of what is sent."""
    planned = level(1.0, False).noise
    loose = Noise(10 * planned.radius, planned.variance)
    assert epsilon_proven(scores(loose, True), scores(loose, False), 1e-5) > 1.0


def test_the_proof_is_sound() -> None:
    """On a mechanism of known epsilon it exceeds it in no more than 5 of 100 audits, but for chance."""
    rng, delta = np.random.default_rng(0), 1e-2

    def excess(epsilon: float) -> float:
        """Gaussian of sensitivity and deviation 1: Balle & Wang 2018, arXiv 1805.06530, theorem 8."""
        return norm.cdf(0.5 - epsilon) - math.exp(epsilon) * norm.cdf(-0.5 - epsilon) - delta

    truth = brentq(excess, 0, 10)
    wrong = sum(
        epsilon_proven(rng.normal(1, 1, 400), rng.normal(0, 1, 400), delta) > truth for _ in range(200)
    )
    assert binomtest(wrong, 200, 0.05, "greater").pvalue > 1e-6
    assert truth < epsilon_of_rho(0.5, delta)


def test_the_same_scores_prove_nothing() -> None:
    same = np.random.default_rng(1).normal(size=1000)
    assert epsilon_proven(same, same[::-1], 1e-5) == 0
    assert epsilon_proven(np.zeros(100), np.zeros(100), 1e-5) == 0
