"""Epsilon, computed in two ways that share nothing."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from privfr.errors import InputError
from privfr.privacy.accounting import (
    Accountant,
    epsilon_of_rho,
    epsilon_of_steps,
    noise_for,
    rho_of_epsilon,
    rho_of_sum,
)


def converted(rho: float, delta: float) -> float:
    """Canonne, Kamath & Steinke 2020, proposition 12, over every order."""

    def epsilon(log_order: float) -> float:
        order = 1 + math.exp(log_order)
        return rho * order + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

    return float(minimize_scalar(epsilon, bounds=(-6, 12), method="bounded", options={"xatol": 1e-9}).fun)


@pytest.mark.parametrize("rounds", [1, 20, 200])
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_two_ways_to_epsilon_agree_within_two_percent(rounds: int, multiplier: float, delta: float) -> None:
    rho = rounds / (2 * multiplier**2)
    found = epsilon_of_rho(rho, delta)
    assert found == pytest.approx(converted(rho, delta), rel=0.02)
    if rho > 5 or delta != 1e-5:
        return  # what follows takes seconds for each
    # The exact epsilon of the continuous Gaussian, which the discrete one can hardly differ from, is below.
    loss = PLDAccountant()
    loss.compose(SelfComposedDpEvent(GaussianDpEvent(multiplier), rounds))
    assert 0.8 * found < loss.get_epsilon(delta) < found


@given(st.floats(0.05, 50), st.floats(1e-12, 1e-2))
@settings(max_examples=50, deadline=None)
def test_a_budget_is_used_up_and_not_exceeded(epsilon: float, delta: float) -> None:
    rho = rho_of_epsilon(epsilon, delta)
    assert epsilon_of_rho(rho, delta) <= epsilon
    assert epsilon_of_rho(rho * 1.001, delta) > epsilon * 0.999


def test_noise_of_many_is_worth_that_of_one_but_for_tau() -> None:
    one = rho_of_sum(1000, 40 * 900, 1, 10**6)
    assert one == pytest.approx(1000**2 / (2 * 40 * 900))
    many = rho_of_sum(1000, 900, 40, 10**6)
    assert one * (1 - 1e-12) <= many < one * (1 + 1e-12)
    # Kairouz et al., theorem 1, by hand: shares of variance 1 are small enough for tau to show.
    tau = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 40))
    assert rho_of_sum(1, 1, 40, 100) == pytest.approx((1 / math.sqrt(40) + 10 * tau) ** 2 / 2)
    # The tail beyond a thousand terms is bounded from above.
    exact = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 5000))
    assert rho_of_sum(1, 1, 5000, 1) >= (1 / math.sqrt(5000) + exact) ** 2 / 2


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_steps_add_up_over_rounds(accountant: Accountant) -> None:
    history = [(1.1, 0.1, 10)] * 3
    whole = [(1.1, 0.1, 30)]
    assert epsilon_of_steps(history, 1e-5, accountant) == epsilon_of_steps(whole, 1e-5, accountant)
    assert epsilon_of_steps([], 1e-5, accountant) == 0
    assert epsilon_of_steps([(0.0, 0.1, 1)], 1e-5, accountant) == math.inf


def test_noise_for_a_budget_is_the_least_there_is() -> None:
    noise = noise_for(4.0, 1e-5, ((0.1, 200),), "rdp")
    assert epsilon_of_steps([(noise, 0.1, 200)], 1e-5, "rdp") <= 4.0
    assert epsilon_of_steps([(noise * 0.99, 0.1, 200)], 1e-5, "rdp") > 4.0
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        noise_for(1e-6, 1e-9, ((1.0, 10**6),), "rdp")


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.2])
def test_next_to_no_noise_takes_next_to_no_time(noise: float) -> None:
    """PRV's grid took 5 GB at 0.1, and at 0.2 a minute, to end in infinity. RDP claims less, so it holds."""
    for rate, steps in ((1.0, 2), (0.1, 1000)):
        found = epsilon_of_steps([(noise, rate, steps)], 1e-5, "prv")
        assert found == epsilon_of_steps([(noise, rate, steps)], 1e-5, "rdp") < math.inf


def test_any_budget_finds_its_noise() -> None:
    noises = [noise_for(epsilon, 1e-5, ((0.1, 1000),), "prv") for epsilon in (40.0, 900.0, 1e6)]
    assert noises == sorted(noises, reverse=True) and noises[-1] >= 0.01
    assert epsilon_of_steps([(noises[1], 0.1, 1000)], 1e-5, "prv") <= 900
    assert noise_for(1e6, 1e-5, ((1.0, 1),), "rdp") == 0.01
