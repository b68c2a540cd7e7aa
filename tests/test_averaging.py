"""One model to the next: the clip finds its quantile, and never lets more through than it may."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from insecure import InsecureEntropy

from privfr.averaging import REACH, AdaptiveClip, FedAvg
from privfr.coding import Coding, FixedPoint, Noise
from privfr.errors import BadFrame, LocalProtocolError
from privfr.vector import Aggregate, Update, Vector

CONTEXT = b"c" * 32
BITS = 16
logs = st.floats(-REACH, REACH, width=32)


def point_of(first: float, size: int, variance: int = 1, clients: int = 1, **coding: Any) -> FixedPoint:
    """A coding whose clip no number of a vector as long as `first` exceeds, and whose noise is central."""
    radius = (1 << (BITS - 1)) - 1
    found = Coding(first, BITS, 1, noise=Noise(radius, variance, central=True), **coding)
    return FixedPoint(found, clients, (), size, CONTEXT)


def mean_of(vector: Vector | list[float], count: int = 1) -> Aggregate:
    return Aggregate(np.array(vector, np.float32), count, count, {})


def test_the_model_vector_holds_what_the_next_step_needs() -> None:
    weights, clip = np.array([3, 4], np.float32), AdaptiveClip(1.0, 0.1)
    assert FedAvg().begin(weights).tolist() == [3, 4]
    assert FedAvg(0.5).begin(weights).tolist() == [3, 4, 0, 0]
    assert FedAvg(0.0, clip).begin(weights).tolist() == [3, 4, 0]
    assert FedAvg(0.5, clip).begin(weights).tolist() == [3, 4, 0, 0, 0, 0]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_step_scales_the_mean_back_and_moves_the_clip_without_momentum(momentum: float) -> None:
    """Written out anew for C = e: eight of ten clients were not longer, and the quantile is 0.5."""
    clip = AdaptiveClip(2.0, 0.36)
    rule = FedAvg(momentum, clip)
    model = rule.begin(np.array([10, 20], np.float32))
    model[2] = 1.0
    mean = mean_of([0.8, -1.6, 0.6 * 2.0 * (0.8 - 0.2)], 10)
    for steps in (1, 2):
        velocity = np.array([1, -2]) * (math.exp(1.0 - 0.06 * (steps - 1)) + momentum * math.e * (steps - 1))
        before = model[:2].copy()
        model = rule.step(model, mean)
        assert model.dtype == np.float32
        assert model[:2] == pytest.approx(before + velocity, rel=1e-6)
        assert model[2] == pytest.approx(1.0 - 0.2 * (0.8 - 0.5) * steps, abs=1e-6)


def tracked(start: float, quantile: float, multiplier: float, momentum: float) -> tuple[float, float]:
    """The quantile of 40 clients' norms, and where C is after 80 rounds: mean of the last 30, in logs."""
    rng, size, clients = np.random.default_rng(5), 7, 40
    norms = np.exp(rng.normal(0, 0.5, clients))
    clip = AdaptiveClip(start, 0.05, quantile)
    rule = FedAvg(momentum, clip)
    point = point_of(start, size + 1, max(1, round((multiplier * 32767) ** 2)), clients)
    model, seen, entropy = rule.begin(np.zeros(size, np.float32)), [], InsecureEntropy(1)
    for _ in range(80):
        total = np.zeros(point.lanes, np.uint32)
        for norm in norms:
            away = rng.normal(size=size)
            update = (away * norm / np.linalg.norm(away)).astype(np.float32)
            total += point.encode(Update(clip.sent(update, model[size]), 1, {}), entropy)
        total = point.blur(total & np.uint32(2**point.modulus_bits - 1), point.coding.noise.variance, entropy)
        model = rule.step(model, point.decode(total, clients))
        seen.append(float(model[size]))
    return float(np.quantile(norms, quantile)), clip.at(float(np.mean(seen[50:])))


@pytest.mark.parametrize("start", [10.0, 0.1])
@pytest.mark.parametrize(("multiplier", "within"), [(0.0, 0.05), (3.0, 0.12)])
def test_the_clip_finds_the_median_from_far_off(start: float, multiplier: float, within: float) -> None:
    median, found = tracked(start, 0.5, multiplier, 0.6)
    assert abs(math.log(found / median)) < within


def test_much_noise_does_not_pull_the_clip_off_another_quantile() -> None:
    """Its standard deviation is 0.75 of the clients: cut off at 0 and 1 it sends C up without end."""
    quantile, found = tracked(1.0, 0.9, 20.0, 0.0)
    assert abs(math.log(found / quantile)) < 0.5


@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    share=st.floats(1e-6, 1 - 1e-6),
    first=st.floats(1e-3, 1e3),
    log=logs,
    rotate=st.booleans(),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    cut=st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_what_is_sent_is_never_longer_than_the_radius(
    values: list[float], share: float, first: float, log: float, rotate: bool, rounding: Any, cut: float
) -> None:
    """Whatever clip a server makes up, and also where the coding cuts numbers off."""
    sent = AdaptiveClip(first, share).sent(np.array(values, np.float32), log)
    assert sent.dtype == np.float32
    assert np.linalg.norm(sent.astype(np.float64)) <= first * (1 + 1e-6)
    point = point_of(first, sent.size, rotate=rotate, rounding=rounding)
    point = FixedPoint(
        Coding(cut * first, BITS, 1, rounding, rotate, point.coding.noise), 1, (), sent.size, CONTEXT
    )
    lanes = point.encode(Update(sent, 1, {}), InsecureEntropy(0)).astype(np.int64)
    centred = np.where(lanes >> (point.modulus_bits - 1), lanes - 2**point.modulus_bits, lanes)
    assert sum(int(lane) ** 2 for lane in centred[2:]) <= point.coding.noise.radius**2


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    share=st.floats(0.01, 0.9),
    first=st.floats(1e-2, 1e2),
    log=st.floats(-5, 5, width=32),
)
@settings(deadline=None)
def test_one_clients_update_comes_back_as_long_as_the_clip_lets_it(
    values: list[float], share: float, first: float, log: float
) -> None:
    clip, update = AdaptiveClip(first, share, 0.25), np.array(values, np.float32)
    norm, limit = float(np.linalg.norm(update.astype(np.float64))), first * math.exp(log)
    change = clip.change(clip.sent(update, log), log)
    assert change[:-1] == pytest.approx(update * min(1.0, limit / norm if norm else 1.0), rel=1e-5, abs=1e-30)
    if abs(norm - limit) > 1e-9 * limit:
        assert change[-1] == pytest.approx(-0.2 * (0.75 if norm < limit else -0.25), abs=1e-5)


def test_with_a_rotation_the_bits_are_read_all_the_same() -> None:
    """It mixes the bit with the update; turned back, both are there."""
    clip, size = AdaptiveClip(1.0, 0.02), 300
    point = point_of(1.0, size + 1, clients=4, rotate=True)
    total = np.zeros(point.lanes, np.uint32)
    for scale in (0.5, 0.7, 0.9, 3.0):
        update = np.full(size, scale / math.sqrt(size), np.float32)
        total += point.encode(Update(clip.sent(update, 0.0), 1, {}), InsecureEntropy(0))
    change = clip.change(point.decode(total & np.uint32(2**point.modulus_bits - 1), 4).vector, 0.0)
    assert change[-1] == pytest.approx(-0.2 * (0.75 - 0.5), abs=1e-3)
    assert change[:-1] == pytest.approx(
        np.full(size, (0.5 + 0.7 + 0.9 + 1.0) / 4 / math.sqrt(size)), abs=1e-3
    )


@given(log=logs)
@example(log=-16.767578125)  # which glibc 2.36's exp rounds the other way
def test_the_clip_is_the_exponential_rounded_right(log: float) -> None:
    """Worked out anew in fractions, so that it is not left to a machine's own library."""
    term, total = Fraction(1), Fraction(1)
    for k in range(1, 120):
        term *= Fraction(log) / k
        total += term
    assert AdaptiveClip(1.0, 0.1).at(np.float32(log)) == float(total)


@given(log=logs, bit=st.floats(-1e9, 1e9, width=32), quantile=st.floats(0.01, 0.99))
def test_no_sum_takes_the_clip_out_of_reach(log: float, bit: float, quantile: float) -> None:
    clip = AdaptiveClip(1.0, 0.1, quantile)
    moved = FedAvg(0.0, clip).step(np.array([0, log], np.float32), mean_of([0, bit]))
    assert abs(float(moved[1]) - log) <= 0.2 + 1e-5
    clip.at(moved[1])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("side", [-1, 1])
def test_every_clip_that_is_driven_to_the_reach_gets_there_and_is_taken(side: int, momentum: float) -> None:
    """From where one step leads to the end or beyond, in float32's own steps: none is rounded past it."""
    clip = AdaptiveClip(1.0, 0.1, 0.01 if side < 0 else 0.99)
    rule = FedAvg(momentum, clip)
    first, last = np.array([REACH - 0.2 * 0.99 + 1e-5, REACH], np.float32).view(np.uint32)
    for log in (side * np.arange(first, last + 1, dtype=np.uint32).view(np.float32))[::7]:
        begun = rule.begin(np.zeros(1, np.float32))
        begun[1] = log
        moved = rule.step(begun, mean_of([0, -side * 1e9]))
        assert moved[1] == side * REACH
        clip._ratio(moved[1])


@pytest.mark.parametrize("log", [math.nan, math.inf, -math.inf, 20.1, -20.1, 3e38])
def test_a_clip_that_no_rounds_lead_to_is_refused(log: float) -> None:
    clip = AdaptiveClip(1.0, 0.1)
    with pytest.raises(BadFrame, match="a model whose clip"):
        clip.sent(np.ones(2, np.float32), log)
    with pytest.raises(BadFrame, match="a model whose clip"):
        FedAvg(0.5, clip).step(np.array([1, log, 0, 0], np.float32), mean_of([1, 0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_not_sent(bad: float) -> None:
    with np.errstate(invalid="ignore"):
        sent = AdaptiveClip(1.0, 0.1).sent(np.array([1, bad], np.float32), 0.0)
    with pytest.raises(LocalProtocolError, match="not finite"):
        point_of(1.0, 3).encode(Update(sent, 1, {}), InsecureEntropy(0))
