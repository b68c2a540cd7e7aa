"""How much noise the client level takes, and whether any honest subset has it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privfr.errors import InputError
from privfr.privacy.accounting import epsilon_of_rho
from privfr.privacy.client import ClientLevel, calibrated

PLAN: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-5, "multiplier": 0.0, "clip": 1.0, "corruption": 0.05, "step": 0.25 / 32767,
    "clients": 100, "threshold": 95, "rounds": 20, "size": 10_000, "central": False,
}  # fmt: skip


def plan(**changes: Any) -> ClientLevel:
    return calibrated(**PLAN | changes)


@given(
    epsilon=st.floats(0.1, 30),
    delta=st.floats(1e-9, 1e-3),
    clients=st.integers(2, 2000),
    dropped=st.floats(0, 0.5),
    corruption=st.floats(0, 0.5),
    rounds=st.integers(1, 500),
    central=st.booleans(),
    survivors=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_the_planned_rounds_keep_the_budget_whoever_is_lost_or_colludes(
    epsilon: float, delta: float, clients: int, dropped: float, corruption: float, rounds: int, central: bool,
    survivors: float,
) -> None:  # fmt: skip
    threshold = max(2, math.ceil(clients * (1 - dropped)))
    corrupt = 0 if central else math.ceil(corruption * clients - 1e-9)
    assume(threshold <= clients and threshold > corrupt)
    found = plan(
        epsilon=epsilon, delta=delta, clients=clients, threshold=threshold, corruption=corruption,
        rounds=rounds, central=central,
    )  # fmt: skip
    # Fewest survivors, all the corrupt among them.
    assert epsilon_of_rho(rounds * found.most, delta) <= epsilon * (1 + 1e-9)
    assert found.affords((rounds - 1) * found.most)
    # No more noise than that takes.
    assert epsilon_of_rho(rounds * found.most, delta) > epsilon * 0.99 or found.noise.variance < 2**10
    # More survivors only add noise: any honest subset of the planned size has the planned variance.
    more = threshold + round(survivors * (clients - threshold))
    assert found.rho(more) <= found.most
    honest = 1 if central else threshold - corrupt
    assert honest * found.noise.variance >= (found.multiplier * found.noise.radius) ** 2 * (1 - 1e-12)


def test_one_round_more_than_planned_is_not_affordable() -> None:
    found = plan()
    assert found.affords(19 * found.most)
    assert not found.affords(20 * found.most)


def test_a_given_multiplier_is_taken() -> None:
    found = plan(multiplier=2.0, epsilon=0.0)
    assert found.multiplier == pytest.approx(2.0, rel=1e-6)
    assert found.affords(1e9)


def test_central_noise_needs_no_share_for_the_corrupt() -> None:
    alone, shared = plan(central=True), plan()
    assert alone.multiplier == pytest.approx(shared.multiplier, rel=1e-3)
    assert alone.noise.variance == pytest.approx(90 * shared.noise.variance, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corruption": 0.95}, r"privacy\.corruption: of 100 clients 95 may collude"),
        ({"clip": 1e-6}, r"privacy\.client_clip: 1e-06 is less than one step"),
        ({"step": 1.0, "multiplier": 1.0, "epsilon": 0.0}, r"no longer Gaussian enough; raise coding\.bits"),
        ({"epsilon": 1e-7, "rounds": 10**6}, r"privacy\.epsilon: no noise"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**changes)
