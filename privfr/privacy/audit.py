"""How much epsilon an attack proves there to be, whatever was promised.

An attacker who scores what was released, many times with somebody's data in it and many times without, and
guesses from the score, is bounded by (epsilon, delta)-privacy:

    true positive rate <= e^epsilon * false positive rate + delta,   and likewise for the negatives

(Kairouz, Oh & Viswanath 2015, arXiv 1311.0776). Rates are known within Clopper-Pearson intervals, so what
they prove holds with the stated confidence (Jagielski et al. 2020, arXiv 2006.07709). A claim below it is
false.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["epsilon_proven"]

Scores = NDArray[np.float64]


def epsilon_proven(present: Scores, absent: Scores, delta: float, confidence: float = 0.95) -> float:
    """Give a lower bound on epsilon from scores of both worlds, float [n] each, higher for "present"; 0 for
    none.

    The threshold is chosen on one half of the scores, and the rates are counted on the other, so that
    choosing the best does not count as evidence.
    """
    threshold = _best_threshold(present[::2], absent[::2], delta)
    return _proven(present[1::2] > threshold, absent[1::2] > threshold, delta, confidence)


def _best_threshold(present: Scores, absent: Scores, delta: float) -> float:
    candidates = np.quantile(np.concatenate([present, absent]), np.linspace(0.01, 0.99, 99))
    return float(max(candidates, key=lambda t: _proven(present > t, absent > t, delta, 0.95)))


def _proven(found: NDArray[np.bool_], mistaken: NDArray[np.bool_], delta: float, confidence: float) -> float:
    # Half of what may fail for each of the two rates, whose bounds are one-sided.
    tail = (1 - confidence) / 2
    least = _below(int(found.sum()), len(found), tail)
    most = 1 - _below(len(mistaken) - int(mistaken.sum()), len(mistaken), tail)
    if least - delta <= 0 or 1 - most - delta <= 0:
        return 0.0
    positives = math.log((least - delta) / most)
    negatives = math.log((1 - most - delta) / (1 - least)) if least < 1 else math.inf
    return max(0.0, positives, negatives)


def _below(count: int, trials: int, tail: float) -> float:
    """Give the Clopper-Pearson lower limit of a rate: what it is below with a chance of `tail` at most."""
    from scipy.stats import beta

    return float(beta.ppf(tail, count, trials - count + 1)) if count else 0.0
