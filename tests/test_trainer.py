"""The local loop and the learner: it learns, it repeats to the bit, and private tensors stay."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import experiment, write_people

from privfr import trainer
from privfr.errors import InputError
from privfr.experiment import Training
from privfr.faces.datasets import Faces, load_folder
from privfr.methods import method_of
from privfr.methods.supervised import Supervised
from privfr.trainer import Learner, device_of, fit, layout_of, learning_rate, shared_vector
from privfr.vector import Vector

TRAINING = Training(batch=6, device="cpu")  # three batches of the eighteen pictures


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    return load_folder(write_people(tmp_path_factory.mktemp("data") / "people", 3, 6), (64, 64))


@pytest.fixture(scope="module")
def method() -> Supervised:
    return method_of(experiment("synthetic"))


@pytest.fixture(scope="module")
def start(method: Supervised) -> Vector:
    return shared_vector(method.build(1, 0), method, layout_of(method))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def learner(method: Supervised, faces: Faces, rounds: int = 4, seed: int = 0, **changes: Any) -> Learner:
    training = msgspec.structs.replace(TRAINING, **changes)
    return Learner(1, method, faces, training, layout_of(method), rounds, seed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The rate's course


def test_learning_rate_follows_half_a_cosine() -> None:
    course = [learning_rate(0.1, 0.2, step / 4) for step in range(5)]
    assert course[0] == pytest.approx(0.1)
    assert course[2] == pytest.approx(0.06)
    assert course[4] == pytest.approx(0.02)
    assert course == sorted(course, reverse=True)
    assert course[1] == pytest.approx(0.1 * (0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2))


def test_learning_rate_without_decay_stays() -> None:
    assert [learning_rate(0.1, 1.0, step / 4) for step in range(5)] == pytest.approx([0.1] * 5)


# The loop


def fitted(method: Supervised, faces: Faces, seed: int = 0, **changes: Any) -> tuple[list[float], Vector]:
    module = method.build(len(faces.names), 0)
    method.start(module, faces, True)
    losses: list[float] = []
    training = msgspec.structs.replace(TRAINING, **changes)
    hear = lambda done, total, loss: losses.append(loss)  # noqa: E731
    fit(module, method, faces, training, lambda done: 1e-3, generator(seed), stepped=hear)
    return losses, shared_vector(module, method, layout_of(method))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fit_lowers_the_loss(optimizer: str, method: Supervised, faces: Faces) -> None:
    losses, _ = fitted(method, faces, epochs=6, optimizer=optimizer)
    assert len(losses) == 6 * 3
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_fit_returns_the_last_epochs_mean_over_pictures(method: Supervised, faces: Faces) -> None:
    module = method.build(3, 0)
    method.start(module, faces, True)
    losses: list[tuple[int, int, float]] = []
    training = msgspec.structs.replace(TRAINING, epochs=2, batch=5)
    hear = lambda *step: losses.append(step)  # noqa: E731
    mean = fit(module, method, faces, training, lambda done: 1e-3, generator(), stepped=hear)
    assert [step[:2] for step in losses] == [(i, 8) for i in range(1, 9)]
    last = [loss for _, _, loss in losses[4:]]
    assert mean == pytest.approx((5 * last[0] + 5 * last[1] + 4 * last[2] + 4 * last[3]) / 18)
    assert not module.training


@pytest.mark.parametrize(("batch", "steps"), [(1, 18), (5, 4), (8, 2), (13, 1), (18, 1), (1000, 1)])
def test_batches_are_even(batch: int, steps: int, method: Supervised, faces: Faces) -> None:
    """Never a last batch of two pictures, which would take a full step on their noise."""
    assert len(fitted(method, faces, batch=batch)[0]) == steps


@pytest.mark.parametrize(
    ("epochs", "batch", "pictures"),
    [(0.5, 5, [9]), (0.01, 5, [1]), (1.5, 18, [18, 9]), (2.25, 4, [18, 18, 4]), (1.0, 4, [18])],
)
def test_part_of_an_epoch(
    epochs: float, batch: int, pictures: list[int], method: Supervised, faces: Faces, monkeypatch: Any
) -> None:
    """So many pictures are seen in each pass, none twice, and a part is another one next time."""
    seen: list[list[int]] = []
    kept = trainer.pictures_of

    def look(images: Any, rows: Any, *rest: Any) -> Any:
        seen.append(rows.tolist())
        return kept(images, rows, *rest)

    monkeypatch.setattr(trainer, "pictures_of", look)
    for seed in (0, 1):
        fitted(method, faces, seed, epochs=epochs, batch=batch)
    rows = [row for step in seen for row in step]
    runs = [rows[: sum(pictures)], rows[sum(pictures) :]]
    for run in runs:
        for count in pictures:
            each, run = run[:count], run[count:]
            assert len(set(each)) == count
        assert not run
    assert runs[0] != runs[1]


def test_fit_repeats_to_the_bit(method: Supervised, faces: Faces) -> None:
    (one, first), (other, second) = fitted(method, faces), fitted(method, faces)
    assert one == other
    np.testing.assert_array_equal(first, second)


def test_fit_follows_its_generator(method: Supervised, faces: Faces) -> None:
    assert fitted(method, faces, seed=0)[0] != fitted(method, faces, seed=1)[0]


def test_fit_leaves_global_randomness_alone(method: Supervised, faces: Faces) -> None:
    before = torch.get_rng_state()
    numbers = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    fitted(method, faces)
    assert torch.equal(before, torch.get_rng_state())
    assert np.random.get_state(legacy=False)["state"]["pos"] == numbers  # noqa: NPY002


def test_fit_leaves_the_pictures_alone(method: Supervised, faces: Faces) -> None:
    before = faces.images.copy()
    fitted(method, faces, flip=True)
    np.testing.assert_array_equal(before, faces.images)


def test_flip_matters_only_where_it_is_on(method: Supervised, faces: Faces) -> None:
    assert fitted(method, faces, flip=True)[0] != fitted(method, faces, flip=False)[0]


def test_weight_decay_shrinks_matrices_and_spares_biases(method: Supervised, faces: Faces) -> None:
    """With a rate so small that gradients hardly move anything, decay is all there is to see."""
    plain, decayed = method.build(3, 0), method.build(3, 0)
    for module, decay in ((plain, 0.0), (decayed, 1000.0)):
        training = msgspec.structs.replace(TRAINING, weight_decay=decay)
        fit(module, method, faces, training, lambda done: 1e-5, generator())
    for (name, one), other in zip(plain.named_parameters(), decayed.parameters(), strict=True):
        before, after = float(one.detach().norm()), float(other.detach().norm())
        ratio = after / before if before else 1.0
        if one.ndim > 1:
            assert ratio == pytest.approx((1 - 1e-2) ** 3, abs=3e-3), name
        elif "backbone" in name and name.endswith("weight") and before > 0.5:
            assert ratio == pytest.approx(1, abs=1e-3), name


def test_frozen_parameters_stay(method: Supervised, faces: Faces) -> None:
    module = method.build(3, 0)
    frozen = next(module.parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    fit(module, method, faces, TRAINING, lambda done: 1e-3, generator())
    assert torch.equal(before, frozen)


def test_bfloat16_trains_and_is_not_float32(method: Supervised, faces: Faces) -> None:
    exact, _ = fitted(method, faces, epochs=2)
    short, vector = fitted(method, faces, epochs=2, precision="bfloat16")
    assert np.isfinite(short).all()
    assert vector.dtype == np.float32
    assert short != exact
    assert short[0] == pytest.approx(exact[0], rel=0.1)


# The layout, and what leaves


def test_layout_holds_the_backbone_alone(method: Supervised) -> None:
    layout = layout_of(method)
    names = set(method.build(5, 0).state_dict())
    assert set(layout.names) == {name for name in names if name.startswith("backbone.")}
    assert any(name.startswith("head.") for name in names)
    assert layout.size == sum(math.prod(shape) for shape in layout.shapes)


def test_update_is_the_difference_of_the_shared_tensors(
    method: Supervised, faces: Faces, start: Vector
) -> None:
    one = learner(method, faces)
    update = one.learn(start, 0)
    assert update.vector.shape == (layout_of(method).size,)
    assert update.vector.dtype == np.float32
    assert update.weight == len(faces)
    assert set(update.metrics) == {"loss"}
    assert 0 < np.abs(update.vector).max() < 1
    moved = layout_of(method).restore(update.vector)
    assert all(np.any(tensor) for name, tensor in moved.items() if tensor.ndim > 1)


def test_update_holds_no_head(method: Supervised, faces: Faces, start: Vector) -> None:
    """Whatever the head is, as many numbers leave, and none of them is one of the head's."""
    one = learner(method, faces)
    update = one.learn(start, 0)
    assert one.private and all(name.startswith("head.") for name in one.private)
    sent = set(np.concatenate([update.vector, update.vector + start]).tolist())
    for name, tensor in one.private.items():
        values = tensor.flatten().tolist()
        shared = [value for value in values if value in sent and value not in (0.0, 1.0)]
        assert len(shared) <= len(values) // 20, name


def test_start_is_left_alone(method: Supervised, faces: Faces, start: Vector) -> None:
    before = start.copy()
    learner(method, faces).learn(start, 0)
    np.testing.assert_array_equal(before, start)


# Repeating a round


def test_same_seed_same_bits(method: Supervised, faces: Faces, start: Vector) -> None:
    one, other = learner(method, faces).learn(start, 0), learner(method, faces).learn(start, 0)
    np.testing.assert_array_equal(one.vector, other.vector)
    assert one.metrics == other.metrics


@pytest.mark.parametrize("change", ["seed", "client", "round"])
def test_other_seed_client_or_round_other_bits(
    change: str, method: Supervised, faces: Faces, start: Vector
) -> None:
    one, other = learner(method, faces), learner(method, faces, seed=int(change == "seed"))
    other.client = 2 if change == "client" else 1
    first, second = one.learn(start, 0), other.learn(start, int(change == "round"))
    assert not np.array_equal(first.vector, second.vector)


def test_private_tensors_last_from_round_to_round(method: Supervised, faces: Faces, start: Vector) -> None:
    one, fresh = learner(method, faces), learner(method, faces)
    one.learn(start, 0)
    kept = one.learn(start, 1)
    assert not np.array_equal(kept.vector, fresh.learn(start, 1).vector)


def test_a_saved_learner_goes_on_as_it_would_have(method: Supervised, faces: Faces, start: Vector) -> None:
    one = learner(method, faces)
    one.learn(start, 0)
    saved = one.save()
    assert set(safetensors.torch.load(saved)) == set(one.private)
    other = learner(method, faces)
    other.restore(saved)
    np.testing.assert_array_equal(one.learn(start, 1).vector, other.learn(start, 1).vector)


def test_a_learner_that_never_trained_saves_nothing(method: Supervised, faces: Faces) -> None:
    one = learner(method, faces)
    one.restore(one.save())
    assert one.private == {}


def test_restart_gives_new_class_means_every_round(faces: Faces, start: Vector) -> None:
    restarting = method_of(experiment("synthetic", method__restart=True))
    one, other = learner(restarting, faces), learner(restarting, faces)
    one.learn(start, 0)
    np.testing.assert_array_equal(one.learn(start, 1).vector, other.learn(start, 1).vector)


def test_rate_falls_over_the_rounds(method: Supervised, faces: Faces, start: Vector) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    for round in (0, 99):
        one = learner(method, faces, rounds=100, decay=0.01, batch=len(faces))
        length = float(np.median(np.abs(one.learn(start, round).vector)))
        expected = learning_rate(TRAINING.learning_rate, 0.01, round / 100)
        assert length == pytest.approx(expected, rel=0.2)


def test_a_continuous_training_goes_on_where_it_was_saved(
    method: Supervised, faces: Faces, start: Vector
) -> None:
    """Saving between rounds changes nothing; a fresh optimiser each round is another training."""

    def trained(lasting: bool, saved: bool) -> Vector:
        one, model = learner(method, faces), start
        one.optimiser = {} if lasting else None
        for round in range(3):
            if saved and one.optimiser is not None:
                state = safetensors.torch.load(safetensors.torch.save(one.optimiser))
                other = learner(method, faces)
                other.private, other.optimiser, one = one.private, state, other
            model = model + one.learn(model, round).vector
        return model

    np.testing.assert_array_equal(trained(True, True), trained(True, False))
    assert not np.array_equal(trained(True, False), trained(False, False))


def test_shifting_moves_pictures_and_keeps_their_size(method: Supervised, faces: Faces) -> None:
    still, _ = fitted(method, faces, epochs=2)
    moved, _ = fitted(method, faces, epochs=2, shift=3)
    again, _ = fitted(method, faces, epochs=2, shift=3)
    assert moved == again != still


def test_dropping_is_part_of_training_alone_and_follows_its_generator(
    method: Supervised, faces: Faces
) -> None:
    whole, _ = fitted(method, faces, epochs=2)
    dropped, _ = fitted(method, faces, epochs=2, dropout=0.4)
    again, _ = fitted(method, faces, epochs=2, dropout=0.4)
    assert dropped == again != whole


def test_stepped_hears_every_step(method: Supervised, faces: Faces, start: Vector) -> None:
    one, heard = learner(method, faces), []
    one.stepped = lambda done, total, loss: heard.append((done, total))
    one.learn(start, 0)
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_another_number_of_people_on_the_same_worker(method: Supervised, faces: Faces, start: Vector) -> None:
    two = faces.of(faces.names[:2])
    expected = learner(method, two).learn(start, 0).vector
    learner(method, faces).learn(start, 0)
    np.testing.assert_array_equal(learner(method, two).learn(start, 0).vector, expected)


def test_repr_shows_no_tensor(method: Supervised, faces: Faces) -> None:
    assert repr(learner(method, faces)) == "<Learner 1>"


# The device


def test_device_cpu() -> None:
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_without_a_gpu() -> None:
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="--device cpu"):
        device_of("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_with_a_gpu(method: Supervised, faces: Faces, start: Vector) -> None:
    assert device_of("auto").type == device_of("cuda").type == "cuda"
    update = learner(method, faces, device="cuda").learn(start, 0)
    close = learner(method, faces).learn(start, 0)
    assert update.metrics["loss"] == pytest.approx(close.metrics["loss"], rel=0.05)
