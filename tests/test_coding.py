"""Fixed-point coding: exact sums that never wrap, an error within its bound, and a dense bit stream."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privfr.coding import CHUNK, METRIC_CLIP, Coding, FixedPoint, Lanes, Noise, add_packed, pack, unpack
from privfr.errors import BadFrame, InputError, LocalProtocolError
from privfr.vector import Aggregate, Update

CONTEXT = bytes(range(32))


def entropy_of(seed: int) -> Callable[[int], bytes]:
    return lambda count: hashlib.shake_256(b"test" + seed.to_bytes(8, "big")).digest(count)


def no_entropy(count: int) -> bytes:
    raise AssertionError("rounding to nearest asks for no randomness")


def update_of(vector: Any, weight: float = 1, **metrics: float) -> Update:
    return Update(np.array(vector, np.float32), weight, metrics)


def centred(lanes: Lanes, bits: int) -> list[int]:
    """Residues modulo 2^bits as the numbers nearest to 0, in Python integers."""
    assert not (lanes >> np.uint64(bits)).any()
    return [lane - (1 << bits) if lane >> (bits - 1) else lane for lane in lanes.tolist()]


def residues(numbers: list[int], bits: int) -> Lanes:
    return np.array([number % (1 << bits) for number in numbers], np.uint32)


def total_of(point: FixedPoint, updates: list[Update], seed: int = 0) -> Lanes:
    lanes = [point.encode(update, entropy_of(seed + i)) for i, update in enumerate(updates)]
    total: Lanes = np.sum(lanes, axis=0, dtype=np.uint64)
    return (total % (1 << point.modulus_bits)).astype(np.uint32)


def exact_mean(updates: list[Update], max_weight: int) -> NDArray[np.float64]:
    weights = np.array([min(u.weight, max_weight) for u in updates], np.float64)
    mean: NDArray[np.float64] = weights @ np.array([u.vector for u in updates], np.float64) / weights.sum()
    return mean


def test_lanes_by_hand() -> None:
    # L = 127; weights 1..300 take two 7-bit digits; 3 * 127 = 381 needs 9 bits and a sign.
    point = FixedPoint(Coding(clip=2.0, bits=8, max_weight=300), 3, ("loss", "accuracy"), 5, CONTEXT)
    assert (point.modulus_bits, point.lanes, point.packed_bytes) == (10, 2 + 1 + 2 + 5, 13)
    update = update_of([2, -2, 1, 0, -0.5], 150, accuracy=1.0, loss=-64.0)
    lanes = point.encode(update, no_entropy)
    assert lanes.dtype == np.uint32
    # 150 = 22 + 1 * 128; half the weight: 63.5 steps to the clip, and halves round to even.
    # loss: 63.5 * -64 / 128 = -31.75; accuracy: 63.5 / 128 = 0.496; 63.5 / 2 = 31.75; 63.5 / 4 = 15.875.
    assert centred(lanes, 10) == [22, 1, 0, -32, 0, 64, -64, 32, 0, -16]
    assert lanes[3] == 1024 - 32


def test_a_mean_by_hand() -> None:
    point = FixedPoint(Coding(clip=1.0, bits=3, max_weight=3), 4, ("loss",), 2, CONTEXT)
    # Base 4: weights 3 and 2 are one digit. L = 3. Sum of the lanes 3 and -1, over a weight of 5.
    found = point.decode(residues([5, 1, 2, 3, -1], point.modulus_bits), 2)
    assert isinstance(found, Aggregate)
    assert found.vector.dtype == np.float32
    assert found.vector.tolist() == [np.float32(3 * 3 / (3 * 5)), np.float32(-3 / (3 * 5))]
    assert found.metrics == {"loss": pytest.approx(2 * METRIC_CLIP * 3 / (3 * 5))}
    assert (found.weight, found.count, found.saturated) == (5.0, 2, 1)
    assert found.error == point.error_bound(2, 5.0)


def test_an_aggregate_that_was_not_rounded_has_no_error() -> None:
    plain = Aggregate(np.zeros(1, np.float32), 1.0, 1, {})
    assert (plain.error, plain.saturated) == (0.0, 0)


bits_and_clients = st.tuples(st.integers(2, 24), st.integers(1, 1000)).filter(
    lambda found: found[1] * (2 ** (found[0] - 1) - 1) < 2**31
)


@given(bits_and_clients, st.sampled_from([1, -1]), st.sampled_from(["nearest", "stochastic"]))
def test_the_sum_does_not_wrap_at_the_extremes(found: tuple[int, int], sign: int, rounding: Any) -> None:
    """Every client at the clip, with the largest weight whose digits are all L, and saturated."""
    bits, clients = found
    largest = 2 ** (bits - 1) - 1
    coding = Coding(1.0, bits, min(2 ** (2 * (bits - 1)) - 1, 1 << 32), rounding)
    point = FixedPoint(coding, clients, ("loss",), 3, CONTEXT)
    lanes = point.encode(update_of([sign, -sign, 9 * sign], 1e12, loss=sign * METRIC_CLIP), entropy_of(1))
    one = centred(lanes, point.modulus_bits)
    assert one[-5:] == [1, sign * largest, sign * largest, -sign * largest, sign * largest]
    total = ((lanes.astype(np.uint64) * clients) % (1 << point.modulus_bits)).astype(np.uint32)
    assert centred(total, point.modulus_bits) == [clients * lane for lane in one]
    mean = point.decode(total, clients)
    assert mean.vector.tolist() == [sign, -sign, sign]
    assert mean.metrics["loss"] == pytest.approx(sign * METRIC_CLIP)
    assert (mean.weight, mean.saturated) == (clients * coding.max_weight, clients)


@given(st.integers(2, 24), st.integers(1, 1000))
def test_the_modulus_is_the_smallest_with_room(bits: int, clients: int) -> None:
    largest = clients * (2 ** (bits - 1) - 1)
    if largest >= 2**31:
        with pytest.raises(InputError, match=f"{bits}.*{clients} clients.*set bits to") as refused:
            FixedPoint(Coding(1.0, bits, 1), clients, (), 1, CONTEXT)
        better = int(str(refused.value).split("set bits to ")[1].split()[0])
        assert FixedPoint(Coding(1.0, better, 1), clients, (), 1, CONTEXT).modulus_bits <= 32
        assert better + 1 == bits or clients * (2**better - 1) >= 2**31
        return
    modulus_bits = FixedPoint(Coding(1.0, bits, 1), clients, (), 1, CONTEXT).modulus_bits
    assert largest <= 2 ** (modulus_bits - 1) - 1
    assert largest > 2 ** (modulus_bits - 2) - 1


codings = st.builds(
    Coding, st.floats(1e-3, 100), st.integers(2, 20), st.integers(1, 10**7),
    st.sampled_from(["nearest", "stochastic"]), st.booleans(),
)  # fmt: skip


@st.composite
def rounds(draw: st.DrawFn) -> tuple[FixedPoint, list[Update]]:
    coding = draw(codings)
    count, size, seed = draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, coding.max_weight + 1, count)
    updates = []
    for weight in weights.tolist():
        reach = coding.clip * coding.max_weight / weight / (math.sqrt(size) if coding.rotate else 1)
        vector = rng.uniform(-reach, reach, size) * draw(st.sampled_from([1.0, 0.5, 1e-3]))
        updates.append(update_of(vector, weight, loss=rng.uniform(-1, 1) * METRIC_CLIP))
    return FixedPoint(coding, draw(st.integers(count, 20)), ("loss",), size, CONTEXT), updates


@given(rounds())
def test_decoding_gives_the_exact_integer_sums(found: tuple[FixedPoint, list[Update]]) -> None:
    point, updates = found
    point = replace(point, coding=msgspec.structs.replace(point.coding, rotate=False))
    coding, bits = point.coding, point.modulus_bits
    each = [centred(point.encode(u, entropy_of(i)), bits) for i, u in enumerate(updates)]
    sums = [sum(column) for column in zip(*each, strict=True)]
    total = total_of(point, updates)
    assert centred(total, bits) == sums
    mean = point.decode(total, len(updates))
    weight = sum(int(u.weight) for u in updates)
    assert mean.weight == weight
    scale = coding.max_weight / ((2 ** (coding.bits - 1) - 1) * weight)
    expected = [lane * (coding.clip * scale) for lane in sums[-point.size :]]
    assert np.allclose(mean.vector, np.array(expected), rtol=1e-7, atol=0)
    assert mean.metrics["loss"] == pytest.approx(sums[-point.size - 1] * METRIC_CLIP * scale)


@settings(max_examples=300)
@given(rounds())
def test_the_mean_is_within_its_error_bound(found: tuple[FixedPoint, list[Update]]) -> None:
    point, updates = found
    mean = point.decode(total_of(point, updates), len(updates))
    assume(mean.saturated == 0)
    error = np.abs(mean.vector - exact_mean(updates, point.coding.max_weight)).max()
    assert error <= mean.error


@pytest.mark.parametrize(("rounding", "part"), [("nearest", 0.49), ("stochastic", 1e-6)])
@pytest.mark.parametrize("size", [64, 4096])
def test_the_error_bound_is_reached(rounding: Any, part: float, size: int) -> None:
    """Within a factor of 1.2: coordinates just below half a step, or, stochastic, far from what is drawn."""
    for bits in (4, 12, 20):
        point = FixedPoint(Coding(1.0, bits, 10, rounding), 5, (), size, CONTEXT)
        step = 1 / (2 ** (bits - 1) - 1)
        if rounding == "nearest":
            updates = [update_of(np.full(size, part * step * 10 / 4), 4)] * 5
        else:  # one client, many draws: the largest of them is near 1
            updates = [update_of(np.linspace(0.001, 0.999, size) * step * 10 / 4, 4)]
        mean = point.decode(total_of(point, updates), len(updates))
        error = np.abs(mean.vector - exact_mean(updates, 10)).max()
        assert mean.error / 1.2 < error <= mean.error


@pytest.mark.parametrize("size", [2, 64, 3000, 4096, 10000])
def test_the_error_bound_is_reached_with_rotation(size: int) -> None:
    """A single coordinate spreads over its block; if each part is just below half a step, all is lost."""
    block = min(4096, 1 << (size - 1).bit_length())
    for bits in (4, 12, 16):
        point = FixedPoint(Coding(1.0, bits, 1, rotate=True), 3, (), size, CONTEXT)
        vector = np.zeros(size)
        vector[size // 2] = 0.49 * math.sqrt(block) / (2 ** (bits - 1) - 1)
        mean = point.decode(total_of(point, [update_of(vector)] * 3), 3)
        assert not mean.vector.any()
        assert mean.error / 1.2 < vector.max() <= mean.error


def test_the_error_bound_counts_the_rounding_to_float32() -> None:
    point = FixedPoint(Coding(1.5, 24, 1), 1, (), 200_000, CONTEXT)
    update = update_of(np.random.default_rng(3).uniform(-1.5, 1.5, 200_000))
    mean = point.decode(point.encode(update, no_entropy), 1)
    error = np.abs(mean.vector.astype(np.float64) - update.vector).max()
    assert 0.5 * 1.5 / (2**23 - 1) < error <= mean.error


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4095, 4096, 4097, CHUNK - 1, CHUNK + 1, 2 * CHUNK + 4100])
def test_every_size_comes_back(size: int, rotate: bool) -> None:
    point = FixedPoint(Coding(1.0, 22, 1, rotate=rotate), 3, (), size, CONTEXT)
    vector = np.random.default_rng(size).uniform(-0.1, 0.1, size)
    mean = point.decode(point.encode(update_of(vector), no_entropy), 1)
    assert mean.vector.shape == (size,)
    assert np.abs(mean.vector - vector).max() < 1e-5
    padded = point.lanes - 2
    if not rotate:
        assert padded == size
    elif size <= 4096:
        assert padded == 1 << (size - 1).bit_length()
    else:
        assert padded % 4096 == 0 and 0 <= padded - size < 4096


def sylvester(size: int) -> NDArray[np.float64]:
    """The Hadamard matrix by its definition: (-1)^popcount(i & j)."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    return np.array(signs) / math.sqrt(size)


@pytest.mark.parametrize("size", [1, 2, 8, 200, 256])
def test_the_rotation_is_signs_and_a_hadamard_matrix(size: int) -> None:
    point = FixedPoint(Coding(4.0, 20, 1, rotate=True), 1, (), size, CONTEXT)
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    padded = 1 << (size - 1).bit_length()
    stream = hashlib.shake_256(b"privfr rotation" + CONTEXT).digest(-(-padded // 8))
    signs = [1 - 2 * (stream[i // 8] >> (i % 8) & 1) for i in range(padded)]
    expected = sylvester(padded) @ (np.array(signs) * np.pad(vector, (0, padded - size)))
    lanes = centred(point.encode(update_of(vector), no_entropy), point.modulus_bits)
    step = 4.0 / (2**19 - 1)
    found = np.array(lanes[2:]) * step
    assert np.abs(found - expected).max() < step


def test_the_blocks_of_a_rotation_do_not_mix() -> None:
    point = FixedPoint(Coding(1.0, 16, 1, rotate=True), 1, (), 3 * 4096 - 5, CONTEXT)
    vector = np.zeros(point.size)
    vector[4096] = 1
    lanes = np.array(centred(point.encode(update_of(vector), no_entropy), point.modulus_bits))[2:]
    assert np.flatnonzero(lanes).tolist() == list(range(4096, 8192))
    assert set(np.abs(lanes[4096:8192]).tolist()) == {round(32767 / 64)}


def test_every_block_of_a_rotation_has_its_own_signs() -> None:
    size = 2 * CHUNK
    point = FixedPoint(Coding(1.0, 16, 1, rotate=True), 1, (), size, CONTEXT)
    vector = np.zeros(size)
    vector[::4096] = 1  # the first coordinate alone: its sign is that of the whole block
    lanes = point.encode(update_of(vector), no_entropy)
    blocks = np.array(centred(lanes, point.modulus_bits))[2:].reshape(-1, 4096)
    stream = hashlib.shake_256(b"privfr rotation" + CONTEXT).digest(size // 8)
    expected = [-1 if stream[i // 8] & 1 else 1 for i in range(0, size, 4096)]
    assert np.array_equal(np.sign(blocks), np.repeat(np.array(expected)[:, None], 4096, axis=1))


def test_a_rotation_flattens_outliers_and_depends_on_the_round() -> None:
    vector = np.zeros(4096)
    vector[7] = 10.0
    coding = Coding(0.5, 16, 1)
    assert FixedPoint(coding, 1, (), 4096, CONTEXT).encode(update_of(vector), no_entropy)[1] == 1
    rotated = msgspec.structs.replace(coding, rotate=True)
    one, other = (
        FixedPoint(rotated, 1, (), 4096, context).encode(update_of(vector), no_entropy)
        for context in (CONTEXT, bytes(32))
    )
    assert one[1] == other[1] == 0
    two = update_of(np.random.default_rng(1).uniform(-0.1, 0.1, 4096))
    assert not np.array_equal(
        FixedPoint(rotated, 1, (), 4096, CONTEXT).encode(two, no_entropy),
        FixedPoint(rotated, 1, (), 4096, bytes(32)).encode(two, no_entropy),
    )


def test_who_saturates_is_counted() -> None:
    point = FixedPoint(Coding(1.0, 8, 10), 9, ("loss",), CHUNK + 2, CONTEXT)
    inside = np.zeros(CHUNK + 2)
    inside[[0, -1]] = 1, -1
    first, last = inside.copy(), inside.copy()
    first[0], last[-1] = 1.01, -1.01
    updates = [
        update_of(inside, 10, loss=METRIC_CLIP),  # at the clip, not beyond it
        update_of(first, 10, loss=0.0),
        update_of(last, 10, loss=0.0),
        update_of(inside, 10, loss=-1.01 * METRIC_CLIP),
        update_of(first * 1.9, 5, loss=0.0),  # half the weight, twice the range
        update_of(first * 9, 10, loss=900.0),  # counts once
    ]
    found = [point.encode(update, no_entropy) for update in updates]
    assert [int(lanes[1]) for lanes in found] == [0, 1, 1, 1, 0, 1]
    mean = point.decode(total_of(point, updates), 6)
    assert mean.saturated == 4


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_coordinate_at_the_clip_never_saturates(rounding: Any) -> None:
    for clip in (1.0, 0.1, 0.3, 1 / 3, 7.7):
        for bits in (2, 8, 24):
            point = FixedPoint(Coding(clip, bits, 3, rounding), 1, (), 1000, CONTEXT)
            largest = np.float32(clip) if np.float32(clip) <= clip else np.nextafter(np.float32(clip), 0)
            vector = np.where(np.arange(1000) % 2, largest, -largest)
            assert point.encode(update_of(vector, 3), entropy_of(bits))[point.lanes - 1001] == 0


def test_stochastic_rounding_is_unbiased() -> None:
    size = 200_000
    point = FixedPoint(Coding(1.0, 5, 1, "stochastic"), 1, (), size, CONTEXT)
    for target in (-15, -3.9, -0.5, 0, 0.01, 0.25, 2.7, 14.999):
        y = float(np.float32(target / 15)) * 15
        lanes = point.encode(update_of(np.full(size, target / 15)), entropy_of(int(1000 * target) + 10**5))
        found = np.array(centred(lanes, point.modulus_bits))[-size:]
        assert set(found.tolist()) <= {math.floor(y), math.floor(y) + 1}
        part = y - math.floor(y)
        deviation = math.sqrt(part * (1 - part) / size)
        assert abs(found.mean() - y) <= 4 * deviation + 1e-9


def test_stochastic_rounding_draws_anew_for_each_lane_and_each_client() -> None:
    size = 2 * CHUNK
    point = FixedPoint(Coding(1.0, 2, 1, "stochastic"), 4, (), size, CONTEXT)
    update = update_of(np.full(size, 0.5))
    one, other = (point.encode(update, entropy_of(seed))[2:] for seed in (1, 2))
    for a, b in ((one, other), (one[:CHUNK], one[CHUNK:]), (one[:-1], one[1:])):
        assert abs((a == b).mean() - 0.5) < 0.01
    assert np.array_equal(one, point.encode(update, entropy_of(1))[2:])


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=50), st.integers(2, 24))
def test_weights_are_summed_exactly(weights: list[int], bits: int) -> None:
    point = FixedPoint(Coding(1.0, bits, 10**7), 50, (), 1, CONTEXT)
    updates = [update_of([0], weight) for weight in weights]
    assert point.decode(total_of(point, updates), len(weights)).weight == sum(weights)


def test_weights_take_as_many_lanes_as_they_need() -> None:
    for bits, max_weight, digits in ((8, 10**7, 4), (8, 127, 1), (8, 128, 2), (2, 5, 3), (24, 1, 1)):
        point = FixedPoint(Coding(1.0, bits, max_weight), 2, (), 1, CONTEXT)
        assert point.lanes == digits + 1 + 1


def test_a_weight_above_the_largest_counts_as_the_largest() -> None:
    point = FixedPoint(Coding(1.0, 16, 100), 2, (), 1, CONTEXT)
    for weight in (101, 10**9, 1e300):
        assert np.array_equal(
            point.encode(update_of([0.5], weight), no_entropy),
            point.encode(update_of([0.5], 100), no_entropy),
        )
    mean = point.decode(total_of(point, [update_of([0.5], 10**6), update_of([-0.5], 50)]), 2)
    assert mean.weight == 150
    assert mean.vector[0] == pytest.approx(0.5 / 3, abs=mean.error)


@pytest.mark.parametrize("weight", [0, -1, 0.5, 1.5, math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_whole_number_is_refused(weight: float) -> None:
    point = FixedPoint(Coding(1.0, 16, 100), 2, (), 1, CONTEXT)
    with pytest.raises(LocalProtocolError, match="weight"):
        point.encode(update_of([0], weight), no_entropy)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float, rotate: bool) -> None:
    point = FixedPoint(Coding(1.0, 16, 1, rotate=rotate), 2, ("loss",), CHUNK + 9, CONTEXT)
    for at in (0, CHUNK + 8):
        vector = np.zeros(CHUNK + 9)
        vector[at] = bad
        with pytest.raises(LocalProtocolError, match="finite"):
            point.encode(update_of(vector, loss=0.0), no_entropy)
    with pytest.raises(LocalProtocolError, match="finite"):
        point.encode(update_of(np.zeros(CHUNK + 9), loss=bad), no_entropy)


def test_an_update_of_another_shape_or_with_other_metrics_is_refused() -> None:
    point = FixedPoint(Coding(1.0, 16, 1), 2, ("loss",), 2, CONTEXT)
    for wrong in (update_of([1], loss=1.0), update_of([[1, 2]], loss=1.0)):
        with pytest.raises(LocalProtocolError, match="2 numbers"):
            point.encode(wrong, no_entropy)
    for wrong in (update_of([1, 2]), update_of([1, 2], loss=1.0, accuracy=1.0)):
        with pytest.raises(LocalProtocolError, match="metrics"):
            point.encode(wrong, no_entropy)


def test_encoding_leaves_the_update_alone() -> None:
    vector = np.random.default_rng(1).uniform(-2, 2, 5000).astype(np.float32)
    vector.flags.writeable = False
    for rotate in (False, True):
        point = FixedPoint(Coding(1.0, 16, 1, "stochastic", rotate), 2, (), 5000, CONTEXT)
        point.encode(Update(vector, 1, {}), entropy_of(1))


# Lanes: two weight digits in base 8, saturated, loss, vector. 4 clients, L = 7.
@pytest.mark.parametrize(
    "garbled",
    [
        [0, 0, 0, 0, 0],  # no weight at all
        [1, 0, 0, 0, 0],  # a weight of 1 for 2 clients
        [14, 13, 0, 0, 0],  # 118, more than 2 * 50
        [-1, 1, 0, 0, 0],  # a negative digit
        [5, 0, -1, 0, 0],
        [5, 0, 3, 0, 0],  # 3 of 2 clients
        [5, 0, 0, 15, 0],  # beyond 2 * 7
        [5, 0, 0, 0, 15],
        [5, 0, 0, 0, -15],
    ],
)
def test_a_garbled_sum_is_refused(garbled: list[int]) -> None:
    point = FixedPoint(Coding(1.0, 4, 50), 4, ("loss",), 1, CONTEXT)
    point.decode(residues([5, 0, 2, 14, -14], point.modulus_bits), 2)
    with pytest.raises(BadFrame, match="the sum is garbled: "):
        point.decode(residues(garbled, point.modulus_bits), 2)


def test_a_sum_that_is_still_masked_is_refused() -> None:
    point = FixedPoint(Coding(1.0, 16, 500), 10, (), 1000, CONTEXT)
    rng = np.random.default_rng(1)
    for _ in range(50):
        noise = rng.integers(0, 1 << point.modulus_bits, point.lanes).astype(np.uint32)
        with pytest.raises(BadFrame, match="garbled"):
            point.decode(noise, 10)


def test_a_sum_of_another_shape_is_a_mistake_on_this_side() -> None:
    point = FixedPoint(Coding(1.0, 16, 1), 2, (), 2, CONTEXT)
    good = point.encode(update_of([0, 0]), no_entropy)
    wrong: Any  # one of them has a type that mypy would not let pass
    for wrong, count in ((good[1:], 1), (good.astype(np.int64), 1), (good, 0), (good, 3)):
        with pytest.raises(LocalProtocolError):
            point.decode(wrong, count)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"clip": 0.0}, "clip"), ({"clip": math.nan}, "clip"), ({"clip": math.inf}, "clip"),
        ({"clip": -1.0}, "clip"), ({"bits": 1}, "bits"), ({"bits": 25}, "bits"),
        ({"max_weight": 0}, "max_weight"), ({"max_weight": 2**32 + 1}, "max_weight"),
        ({"rounding": "up"}, "rounding"),
    ],
)  # fmt: skip
def test_a_coding_that_cannot_be_is_refused(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Coding(**{"clip": 1.0, "bits": 16, "max_weight": 1, **changed})


def test_a_coding_travels() -> None:
    coding = Coding(0.25, 16, 500, "stochastic", True)
    sent = msgspec.msgpack.encode(coding)
    assert msgspec.msgpack.decode(sent, type=Coding) == coding
    with pytest.raises(msgspec.ValidationError, match="bits"):
        msgspec.msgpack.decode(msgspec.msgpack.encode((0.25, 99, 500, "nearest", False)), type=Coding)


def test_too_many_clients_for_any_precision() -> None:
    with pytest.raises(InputError, match="fewer clients"):
        FixedPoint(Coding(1.0, 2, 1), 2**31, (), 1, CONTEXT)
    for clients, size in ((0, 1), (1, 0)):
        with pytest.raises(LocalProtocolError):
            FixedPoint(Coding(1.0, 2, 1), clients, (), size, CONTEXT)


@pytest.mark.parametrize("rotate", [False, True])
def test_encoding_takes_little_more_memory_than_its_result(rotate: bool) -> None:
    size = 1 << 20
    point = FixedPoint(Coding(1.0, 16, 1, "stochastic", rotate), 10, (), size, CONTEXT)
    update = update_of(np.zeros(size))
    tracemalloc.start()
    try:
        point.encode(update, entropy_of(1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * point.lanes + 3_000_000


# Packing


def packed_slowly(numbers: list[int], bits: int) -> bytes:
    """The definition: one large integer, lane 0 in its lowest bits."""
    whole = sum(number << (i * bits) for i, number in enumerate(numbers))
    return whole.to_bytes(-(-len(numbers) * bits // 8), "little")


def test_packing_by_hand() -> None:
    assert pack(np.array([1, 2, 3], np.uint32), 4) == bytes([0x21, 0x03])
    assert pack(np.array([0x7FFFFF, 1], np.uint32), 23) == bytes([0xFF, 0xFF, 0xFF, 0, 0, 0])
    assert pack(np.array([0x01020304], np.uint32), 32) == bytes([4, 3, 2, 1])
    assert pack(np.empty(0, np.uint32), 9) == b""
    assert pack(np.array([0x1F, 1], np.uint32), 4) == bytes([0x1F])  # modulo 2^4


@pytest.mark.parametrize("bits", range(1, 33))
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 63, 64, 1001])
def test_packing_and_unpacking_are_inverse(bits: int, count: int) -> None:
    lanes = np.random.default_rng(bits * 1009 + count).integers(0, 1 << bits, count).astype(np.uint32)
    lanes[count // 2 :][:1] = (1 << bits) - 1
    data = pack(lanes, bits)
    assert data == packed_slowly(lanes.tolist(), bits)
    assert np.array_equal(unpack(data, bits, count), lanes)
    total = lanes.copy()
    add_packed(total, memoryview(data), bits)
    assert np.array_equal(total, lanes + lanes)


@pytest.mark.parametrize("bits", [1, 5, 23, 32])
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 13])
def test_packing_goes_on_from_chunk_to_chunk(bits: int, count: int) -> None:
    lanes = np.random.default_rng(count).integers(0, 1 << bits, count).astype(np.uint32)
    stream = (lanes[:, None] >> np.arange(bits, dtype=np.uint32)) & 1
    data = pack(lanes, bits)
    assert data == np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
    assert np.array_equal(unpack(data, bits, count), lanes)


@given(st.integers(1, 32), st.integers(0, 40), st.integers(-3, 3))
def test_packed_bytes_of_another_length_are_refused(bits: int, count: int, more: int) -> None:
    length = -(-count * bits // 8)
    assume(more and length + more >= 0)
    with pytest.raises(BadFrame, match="bytes"):
        unpack(bytes(length + more), bits, count)


@given(st.integers(1, 32), st.integers(1, 40), st.data())
def test_packed_bits_after_the_last_number_are_refused(bits: int, count: int, data: st.DataObject) -> None:
    assume(count * bits % 8)
    packed = bytearray(pack(np.full(count, 0xFFFFFFFF, np.uint32), bits))
    unpack(bytes(packed), bits, count)
    packed[-1] |= 1 << data.draw(st.integers(count * bits % 8, 7))
    with pytest.raises(BadFrame, match="zero"):
        unpack(bytes(packed), bits, count)


@given(rounds())
def test_an_update_comes_back_through_the_bit_stream(found: tuple[FixedPoint, list[Update]]) -> None:
    point, updates = found
    lanes = point.encode(updates[0], entropy_of(1))
    data = pack(lanes, point.modulus_bits)
    assert len(data) == point.packed_bytes
    assert np.array_equal(unpack(data, point.modulus_bits, point.lanes), lanes)


# Noise


def noisy(
    radius: int, variance: int, central: bool = False, clients: int = 5, size: int = 50, **coding: Any
) -> FixedPoint:
    return FixedPoint(
        Coding(1.0, 12, 1, noise=Noise(radius, variance, central), **coding), clients, (), size, CONTEXT
    )


def vectors(size: int, largest: float = 1e6) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-largest, largest, width=32), min_size=size, max_size=size)


@given(st.integers(1, 3000), vectors(20), st.booleans(), st.sampled_from(["nearest", "stochastic"]))
def test_no_update_is_longer_than_the_radius(
    radius: int, values: list[float], rotate: bool, rounding: str
) -> None:
    """Exactly, in integers, whatever the update: rounding has no part in the sensitivity."""
    point = noisy(radius, 100, central=True, size=20, rotate=rotate, rounding=rounding)
    lanes = centred(point.encode(update_of(values), entropy_of(radius)), point.modulus_bits)
    assert sum(lane * lane for lane in lanes[2:]) <= radius**2
    assert lanes[:2] == [1, 0]  # the weight, and nothing of what was clipped


def test_what_is_short_enough_is_encoded_as_without_noise() -> None:
    point = noisy(10**6, 100, central=True)
    without = FixedPoint(replace_noise(point.coding, None), 5, (), 50, CONTEXT)
    update = update_of(np.linspace(-0.01, 0.01, 50))
    bits = min(point.modulus_bits, without.modulus_bits)
    assert centred(point.encode(update, entropy_of(0)), point.modulus_bits) == centred(
        without.encode(update, no_entropy), without.modulus_bits
    )
    assert bits == without.modulus_bits


def replace_noise(coding: Coding, noise: Noise | None) -> Coding:
    return msgspec.structs.replace(coding, noise=noise)


def test_what_is_too_long_keeps_its_direction() -> None:
    point = noisy(500, 100, central=True)
    values = np.linspace(-1, 1, 50)
    lanes = np.array(centred(point.encode(update_of(values), entropy_of(0)), point.modulus_bits)[2:])
    assert 480 <= np.linalg.norm(lanes) <= 500
    assert lanes @ values / np.linalg.norm(lanes) / np.linalg.norm(values) > 0.999


@pytest.mark.parametrize(("radius", "size"), [(500, 50), (3000, 5000), (1000, 100_000)])
@pytest.mark.parametrize("rotate", [False, True])
def test_what_is_too_long_is_shortened_but_once(radius: int, size: int, rotate: bool) -> None:
    """Stochastic rounding asks for entropy at each attempt."""
    point = noisy(radius, 100, central=True, size=size, rotate=rotate, rounding="stochastic")
    values = np.random.default_rng(size).normal(size=size)
    values *= 3 * radius * point.coding.step / np.linalg.norm(values)
    asked = 0

    def entropy(count: int) -> bytes:
        nonlocal asked
        asked += 1
        return entropy_of(0)(count)

    lanes = np.array(centred(point.encode(update_of(values), entropy), point.modulus_bits)[2:])
    assert asked == 1
    assert 0.98 * radius <= np.linalg.norm(lanes) <= radius


@pytest.mark.parametrize("central", [False, True])
def test_the_sum_has_the_noise_it_should(central: bool) -> None:
    """Of 5 clients: five shares, or the one of whoever adds up."""
    point = noisy(100, 40_000, central, size=20_000)
    updates = [update_of(np.zeros(20_000)) for _ in range(5)]
    total = total_of(point, updates)
    if central:
        total = point.blur(total, 40_000, entropy_of(99))
    found = np.array(centred(total, point.modulus_bits)[2:])
    expected = 40_000 * (1 if central else 5)
    assert abs(found.var() / expected - 1) < 0.05
    assert abs(found.mean()) < 5 * math.sqrt(expected / 20_000)
    assert centred(total, point.modulus_bits)[:2] == [5, 0]


@given(st.integers(2, 24), st.integers(1, 2000), st.integers(1, 2**40), st.booleans(), st.integers(-1, 1))
def test_a_sum_with_noise_up_to_the_planned_bound_never_wraps(
    bits: int, clients: int, variance: int, central: bool, sign: int
) -> None:
    """Every client at the end of its range, and the noise at the bound: the lane is read as it is."""
    coding = Coding(1.0, bits, 1, noise=Noise(10, variance, central))
    assume(coding.modulus_bits(clients) <= 32)
    point = FixedPoint(coding, clients, (), 1, CONTEXT)
    noises = 1 if central else clients
    bound = math.isqrt(102 * noises * variance) + 1
    lane = sign * (clients * ((1 << (bits - 1)) - 1) + bound)
    total = residues([*digits(clients, bits), 0, lane], point.modulus_bits)
    if len(total) == point.lanes:
        mean = point.decode(total, clients).vector[0]
        assert mean == np.float32(lane * (1.0 / ((2 ** (bits - 1) - 1) * clients)))
    # And the noise is beyond the bound in one of 2^32 lanes with a chance below 2^-40.
    assert 2**32 * 2 * math.exp(-(bound**2) / (2 * noises * variance)) < 2**-40


def digits(weight: int, bits: int) -> list[int]:
    """The weight lanes of a sum over clients of weight 1: one digit, or as many as max_weight 1 needs."""
    return [weight] * (-(-1 // (bits - 1)))


def test_noise_needs_equal_weights_and_no_metrics() -> None:
    with pytest.raises(InputError, match="max_weight is 2"):
        Coding(1.0, 16, 2, noise=Noise(10, 100))
    point = noisy(10, 100, size=1)
    with pytest.raises(LocalProtocolError, match="weight 1"):
        point.encode(update_of([0.0], 2), entropy_of(0))
    point = FixedPoint(point.coding, 5, ("loss",), 1, CONTEXT)
    with pytest.raises(LocalProtocolError, match="no metrics"):
        point.encode(update_of([0.0], 1, loss=1.0), entropy_of(0))


@pytest.mark.parametrize(("radius", "variance"), [(0, 1), (2**40 + 1, 1), (1, 0), (1, 2**58 + 1)])
def test_noise_that_cannot_be_is_refused(radius: int, variance: int) -> None:
    with pytest.raises(InputError, match="noise's"):
        Noise(radius, variance)


def test_noise_without_room_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match=r"the noise: .* raise coding\.clip"):
        FixedPoint(Coding(1.0, 16, 1, noise=Noise(10, 2**58)), 5, (), 1, CONTEXT)
