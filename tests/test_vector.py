"""Layouts, updates, and the law: the decoded sum of the summands is the weighted mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from privfr.errors import BadFrame, LocalProtocolError
from privfr.vector import (
    Aggregate,
    Layout,
    Update,
    Vector,
    digest,
    from_bytes,
    mean_of_sum,
)

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.dictionaries(st.text(max_size=6), shapes, max_size=5).map(
    lambda found: Layout(tuple(found), tuple(found.values()))
)


def tensors_of(layout: Layout, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        n: rng.normal(size=s).astype(np.float32) for n, s in zip(layout.names, layout.shapes, strict=True)
    }


@given(layouts, st.integers(0, 99))
def test_flatten_and_restore_are_inverse(layout: Layout, seed: int) -> None:
    tensors = tensors_of(layout, seed)
    vector = layout.flatten(tensors)
    assert vector.shape == (layout.size,)
    assert vector.dtype == np.float32
    restored = layout.restore(vector)
    assert list(restored) == list(layout.names)
    for name, tensor in tensors.items():
        assert restored[name].shape == tensor.shape
        assert np.array_equal(restored[name], tensor)
    assert Layout.of(tensors) == layout


def test_vector_order_is_the_layouts_not_the_mappings() -> None:
    layout = Layout(("a", "b"), ((1,), (2,)))
    tensors = {
        "b": np.array([2, 3], np.float32),
        "other": np.ones(9, np.float32),
        "a": np.array([1], np.float32),
    }
    assert layout.flatten(tensors).tolist() == [1, 2, 3]


def test_restore_views_and_flatten_copies() -> None:
    layout = Layout(("a",), ((2, 2),))
    tensors = tensors_of(layout, 0)
    vector = layout.flatten(tensors)
    assert not np.shares_memory(vector, tensors["a"])
    assert np.shares_memory(vector, layout.restore(vector)["a"])


@given(layouts, layouts)
def test_a_digest_stands_for_names_and_shapes(one: Layout, other: Layout) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_digests_tell_near_layouts_apart() -> None:
    near = [
        Layout(("a", "b"), ((2,), (3,))),
        Layout(("b", "a"), ((2,), (3,))),
        Layout(("a", "b"), ((3,), (2,))),
        Layout(("a", "b"), ((2, 1), (3,))),
        Layout(("ab",), ((5,),)),
    ]
    assert len({layout.digest for layout in near}) == len(near)
    assert {len(layout.digest) for layout in near} == {32}


def test_a_tensor_missing_or_of_another_shape_is_refused() -> None:
    layout = Layout(("a", "b"), ((2,), (3,)))
    for tensors in (
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros((3, 1), np.float32)},
    ):
        with pytest.raises(LocalProtocolError, match="'b'"):
            layout.flatten(tensors)
    for wrong in (np.zeros(4, np.float32), np.zeros((5, 1), np.float32)):
        with pytest.raises(LocalProtocolError):
            layout.restore(wrong)


numbers = st.floats(-1e3, 1e3, width=32)
updates = st.integers(0, 4).flatmap(
    lambda size: st.lists(
        st.builds(
            lambda vector, weight, loss, accuracy: Update(
                np.array(vector, np.float32), weight, {"loss": loss, "accuracy": accuracy}
            ),
            st.lists(numbers, min_size=size, max_size=size), st.floats(0.5, 500, width=32), numbers, numbers,
        ),
        min_size=1,
        max_size=6,
    )
)  # fmt: skip


@given(updates)
def test_the_decoded_sum_of_summands_is_the_weighted_mean(found: list[Update]) -> None:
    weights = np.array([u.weight for u in found], np.float64)
    total: Vector = np.array([u.summand(("loss", "accuracy")) for u in found]).sum(axis=0)
    mean = mean_of_sum(total, len(found), ("loss", "accuracy"))
    assert isinstance(mean, Aggregate)
    assert mean.count == len(found)
    assert mean.weight == pytest.approx(weights.sum(), rel=1e-5)
    assert mean.vector.dtype == np.float32
    expected = weights @ np.array([u.vector for u in found], np.float64) / weights.sum()
    # Seven digits a term, of terms up to 1000.
    assert np.allclose(mean.vector, expected, rtol=0, atol=5e-3)
    for name in ("loss", "accuracy"):
        expected_metric = weights @ np.array([u.metrics[name] for u in found]) / weights.sum()
        assert mean.metrics[name] == pytest.approx(expected_metric, abs=5e-3)


def test_a_summand_holds_weight_metrics_vector_in_this_order() -> None:
    update = Update(np.array([10, -20], np.float32), 3, {"loss": 5.0})
    summand = update.summand(("loss",))
    assert summand.dtype == np.float32
    assert summand.tolist() == [3, 15, 30, -60]
    assert update.vector.tolist() == [10, -20]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-50])
def test_a_weight_that_is_not_a_float32_above_0_is_refused(weight: float) -> None:
    with np.errstate(all="ignore"), pytest.raises(LocalProtocolError, match="weight"):
        Update(np.ones(1, np.float32), weight, {}).summand(())


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_sum_without_weight_is_refused(weight: float) -> None:
    with pytest.raises(BadFrame):
        mean_of_sum(np.array([weight, 1], np.float32), 1, ())


def test_a_summand_takes_its_metrics_by_name() -> None:
    update = Update(np.array([1], np.float32), 2, {"loss": 5.0, "accuracy": 7.0})
    assert update.summand(("loss", "accuracy")).tolist() == [2, 10, 14, 2]
    assert update.summand(("accuracy", "loss")).tolist() == [2, 14, 10, 2]
    for other in ((), ("loss",), ("loss", "acc"), ("loss", "accuracy", "more")):
        with pytest.raises(LocalProtocolError, match="metrics"):
            update.summand(other)


def test_bytes_are_viewed_not_copied() -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    vector = from_bytes(data, 6)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.shares_memory(vector, np.frombuffer(data, np.uint8))
    assert from_bytes(b"", 0).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -2e19])
@pytest.mark.parametrize("at", [0, 500, 999])
def test_bytes_with_one_impossible_number_are_refused(bad: float, at: int) -> None:
    vector = np.zeros(1000, "<f4")
    vector[at] = bad
    with pytest.raises(BadFrame):
        from_bytes(vector.tobytes(), 1000)


def test_infinities_that_cancel_are_refused() -> None:
    with pytest.raises(BadFrame):
        from_bytes(np.array([np.inf, -np.inf], "<f4").tobytes(), 2)


@pytest.mark.parametrize("length", [0, 7, 11, 12, 13, 16])
def test_bytes_of_another_length_are_refused(length: int) -> None:
    if length == 12:
        assert from_bytes(bytes(length), 3).tolist() == [0, 0, 0]
        return
    with pytest.raises(BadFrame):
        from_bytes(bytes(length), 3)


def test_a_digest_is_of_the_numbers_not_of_their_place_in_memory() -> None:
    vector: Vector = np.arange(8, dtype=np.float32)
    assert digest(vector[::2]) == digest(vector[::2].copy()) != digest(vector[:4])
    assert len(digest(vector)) == 32


def test_an_updates_repr_shows_its_size_alone() -> None:
    update = Update(np.array([0.19069], np.float32), 3, {"loss": 5.0})
    assert repr(update) == str(update) == "<Update of 1 numbers>"
