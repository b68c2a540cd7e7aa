"""Example-level privacy: gradients apart, exact sums and noise, a secret sample, what an attacker sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm
from tiny import write_people
from torch import Tensor, nn

from privfr.errors import InputError, LocalProtocolError
from privfr.experiment import Training
from privfr.faces.backbones import BACKBONES
from privfr.faces.datasets import Faces, load_folder
from privfr.faces.heads import HEADS
from privfr.methods.base import FaceModel, Labelled
from privfr.methods.supervised import Supervised
from privfr.privacy.accounting import Accountant, epsilon_of_steps
from privfr.privacy.audit import epsilon_proven
from privfr.privacy.example import (
    ExampleLevel,
    _clipped_sum,
    _gradients_apart,
    _lengths,
    _taken,
    _whole,
    fit_private,
    start_private,
    steps_of,
)
from privfr.trainer import Learner, fit, layout_of, shared_vector
from privfr.vector import Vector

REACH = 2**20
STILL = Training(batch=6, device="cpu", flip=False, shift=0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Seeded:
    """Entropy that a test can repeat."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, count: int) -> bytes:
        return self.rng.bytes(count)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    return load_folder(write_people(tmp_path_factory.mktemp("data") / "people", 3, 6), (64, 64))


def supervised(
    backbone: str = "small", head: str = "cosface", size: tuple[int, int] = (64, 64)
) -> Supervised:
    return Supervised(backbone=backbone, size=size, dim=32, head=head, scale=30.0, margin=0.35)


def noise_faces(count: int, size: tuple[int, int] = (64, 64), people: int = 3, seed: int = 0) -> Faces:
    images = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)
    names = tuple(f"person{i}" for i in range(people))
    return Faces(images, np.arange(count) % people, names, tuple(f"{i}.png" for i in range(count)))


def built(method: Any, people: int = 3, stir: float = 0.05) -> nn.Module:
    """A network in training's memory order, moved off its start, where residual branches give nothing."""
    module: nn.Module = method.build(people, 0).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += stir * torch.randn(parameter.shape, generator=generator)
    return module


def trained(plan: ExampleLevel, faces: Faces, seed: int = 0, **changes: Any) -> nn.Module:
    module = built(supervised())
    training = msgspec.structs.replace(STILL, **changes)
    fit_private(module, supervised(), faces, training, plan, lambda done: 1e-3, Seeded(seed))
    return module


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# A method so small that a thousand trainings take seconds, whose gradients can be told beforehand


@dataclass(frozen=True)
class Direct(Labelled):
    """Loss -w.x of pictures labelled 0, nothing of others: gradients are -x or 0, whatever the weights."""

    name: ClassVar[str] = "direct"
    metrics: ClassVar[tuple[str, ...]] = ()
    discloses: ClassVar[tuple[str, ...]] = ()

    def build(self, classes: int, seed: int) -> nn.Module:
        layer = nn.Linear(48, 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def shared(self, tensor: str) -> bool:
        return True

    def frozen(self, tensor: str) -> bool:
        return False

    def start(self, module: nn.Module, faces: Faces, fresh: bool) -> None:
        pass

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return -module(images.flatten(1))[:, 0] * (labels == 0)


def with_canary(present: bool, count: int = 10) -> Faces:
    """Pictures of no gradient, and among them, or not, one whose gradient is seven times the clip."""
    labels = np.ones(count, np.int64)
    labels[-1] = 0 if present else 1
    images = np.full((count, 4, 4, 3), 255, np.uint8)
    return Faces(images, labels, ("canary", "other"), tuple(str(i) for i in range(count)))


def moved(plan: ExampleLevel, faces: Faces, entropy: Any, batch: int, epochs: int = 1) -> NDArray[np.float32]:
    """Weights after training from 0 with rate 1."""
    training = Training(
        batch=batch, epochs=epochs, device="cpu", flip=False, shift=0, optimizer="sgd", weight_decay=0.0
    )
    module = Direct().build(2, 0)
    fit_private(module, Direct(), faces, training, plan, lambda done: 1.0, entropy)
    return module.weight.detach().numpy().flatten()


# The plan


@pytest.mark.parametrize(
    ("clip", "noise"),
    [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, -0.1), (1.0, 501.0), (1.0, math.nan)],
)
def test_a_plan_out_of_range_is_refused_in_one_line(clip: float, noise: float) -> None:
    with pytest.raises(InputError, match=r"^privacy\.example_(clip|noise): .*between") as caught:
        ExampleLevel(clip, noise)
    assert "\n" not in str(caught.value)


@given(st.floats(0, 500), st.integers(1, 10**8))
def test_variance_covers_clip_and_rounding(noise: float, size: int) -> None:
    wanted = (noise * (REACH + math.sqrt(size) / 2)) ** 2
    variance = ExampleLevel(1.0, noise).variance(size)
    assert wanted * (1 - 1e-12) <= variance <= wanted * (1 + 2e-6) + 1
    assert variance <= 2**58


@pytest.mark.parametrize(
    ("pictures", "batch", "epochs", "rate", "steps"),
    [
        (128, 32, 1, 0.25, 4),
        (18, 6, 3, 1 / 3, 9),
        (10, 32, 2, 1.0, 2),
        (100, 32, 1, 0.32, 3),
        (5, 5, 1, 1.0, 1),
        (128, 32, 0.5, 0.25, 2),
        (128, 32, 0.01, 0.25, 1),
    ],
)
def test_steps_of(pictures: int, batch: int, epochs: float, rate: float, steps: int) -> None:
    assert steps_of(pictures, Training(batch=batch, epochs=epochs)) == (pytest.approx(rate), steps)


# Sampling


def test_each_picture_is_taken_with_its_probability_and_by_itself() -> None:
    entropy, draws = Seeded(0), 2000
    taken = np.zeros((draws, 50))
    for row in taken:
        row[_taken(50, 0.3, entropy)] = 1
    assert taken.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / taken.size))
    assert taken.sum(1).var() == pytest.approx(50 * 0.21, rel=0.15)  # of a binomial: no fixed size
    between = np.corrcoef(taken.T)[np.triu_indices(50, 1)]
    assert np.abs(between).max() < 5 / math.sqrt(draws)


def test_the_sample_is_that_of_whole_numbers_in_python() -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    key = bytes(range(32))
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(8 * 1000))
    words = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 8000, 8)]
    for rate in (1e-3, 1 / 3, 0.5, 1 - 2**-53):
        numerator, denominator = rate.as_integer_ratio()
        expected = [i for i, word in enumerate(words) if word < (numerator << 64) // denominator]
        assert _taken(1000, rate, lambda count: key[:count]).tolist() == expected


def test_rate_one_takes_all_and_a_tiny_rate_none() -> None:
    assert _taken(7, 1.0, Seeded(0)).tolist() == list(range(7))
    assert _taken(7, 2.0**-60, Seeded(0)).tolist() == []


# Gradients apart


def gradients(module: nn.Module, method: Any, faces: Faces, rows: list[int]) -> list[Tensor]:
    """Each example's gradient by each parameter, as Opacus's hooks give it."""
    images = torch.from_numpy(faces.images[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
    for parameter in module.parameters():
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    method.loss(module, images, torch.from_numpy(faces.labels[rows])).sum().backward()
    return [parameter.grad_sample for parameter in module.parameters()]  # type: ignore[attr-defined]


def alone(module: nn.Module, method: Any, faces: Faces, row: int) -> list[Tensor]:
    """One example's gradient, by autograd alone."""
    images = torch.from_numpy(faces.images[[row]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    module.zero_grad()
    method.loss(module, images, torch.from_numpy(faces.labels[[row]])).sum().backward()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [parameter.grad.clone() for parameter in trained]  # type: ignore[union-attr]


CASES = [("small", head) for head in HEADS] + [
    (name, "arcface") for name in ("resnet", "mobilefacenet", "sphere20")
]
CASES += [pytest.param("sphere64", "arcface", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("backbone", "head"), CASES)
def test_gradients_are_those_of_single_examples_to_the_bit_in_any_company(backbone: str, head: str) -> None:
    size = BACKBONES[backbone].sizes[0]
    method, faces = supervised(backbone, head, size), noise_faces(11, size)
    module = built(method, stir=0.02).train()
    batches = [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 7, 10, 0, 2, 2, 2], [0] * 8]
    with _gradients_apart(module):
        found = [
            [g[rows.index(0)].clone() for g in gradients(module, method, faces, rows)] for rows in batches
        ]
    names = [name for name, _ in module.named_parameters()]
    for name, single, first, *others in zip(names, alone(module, method, faces, 0), *found, strict=True):
        scale = float(single.abs().max())
        torch.testing.assert_close(first, single, rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name)
        assert all(torch.equal(first, each) for each in others), name


@pytest.mark.parametrize("part", ["last", "norms", "adapter"])
@pytest.mark.parametrize("backbone", ["small", "resnet"])
def test_gradients_of_a_part_are_to_the_bit_in_any_company_too(backbone: str, part: str) -> None:
    method = dataclasses.replace(supervised(backbone), trainable=part, rank=4)
    faces, module = noise_faces(11), built(method, stir=0.02).train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not method.frozen(name))
    rows = [0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 7, 10, 0, 2, 2, 2]
    generator = torch.Generator()
    with _gradients_apart(module):
        # What a picture adds does not depend on whose pictures are beside it.
        own = [
            _clipped_sum(module, method, faces.images, faces.labels, np.array([i]), STILL, 0.5, generator)
            for i in range(11)
        ]
        for each in rows:
            summed = _clipped_sum(
                module, method, faces.images, faces.labels, np.array(each), STILL, 0.5, generator
            )
            assert torch.equal(summed, torch.stack([own[i] for i in each]).sum(0))
    single = alone(module, method, faces, 0)
    assert len(own[0]) == sum(gradient.numel() for gradient in single)
    cosine = torch.cosine_similarity(own[0].float(), torch.cat([g.flatten() for g in single]), dim=0)
    assert float(cosine) > 0.999


def test_neighbours_differ_by_one_pictures_own_vector_and_nothing_else(faces: Faces) -> None:
    """On whole numbers, through the real network: the sum over 18 less that over 17 is that over the 18th."""
    method = supervised("resnet")
    module = built(method).train()

    def summed(rows: list[int]) -> Tensor:
        taken = np.array(rows, np.int64)
        return _clipped_sum(module, method, faces.images, faces.labels, taken, STILL, 0.5, torch.Generator())

    with _gradients_apart(module):
        whole = summed(list(range(18)))
        for gone in (0, 7, 17):
            own = summed([gone])
            assert torch.equal(whole - summed([i for i in range(18) if i != gone]), own)
            assert torch.equal(own, own.round())
            assert 0.99 * REACH < float(own.norm()) <= REACH + math.sqrt(len(own)) / 2
        assert not summed([]).any()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3000),
    st.floats(-25, 25),
    st.floats(0, 12),
    st.floats(1e-6, 1e6),
)
def test_no_example_weighs_more_than_the_clip(
    seed: int, size: int, scale: float, spread: float, clip: float
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size) * 10 ** (scale + spread * rng.standard_normal(size))
    with np.errstate(over="ignore"):
        parts = torch.from_numpy(values.astype(np.float32))[None]
    cut = int(rng.integers(0, size + 1))
    exact = sum(int(x) ** 2 for x in _whole([parts[:, :cut], parts[:, cut:]], clip).tolist())
    assert math.isqrt(exact) <= REACH + math.sqrt(size) / 2


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 300_000])
def test_lengths_are_as_true_as_is_said(size: int) -> None:
    """With equal numbers, whose squares round alike, so that errors add up and do not cancel."""
    rng = np.random.default_rng(size)
    equal = torch.full((1, size), float(np.float32(1 / 3)))
    for rows in (equal, torch.from_numpy(rng.lognormal(0, 3, (2, size)).astype(np.float32))):
        true = rows.double().square().sum(1).sqrt()
        assert float((_lengths([rows]) / true - 1).abs().max()) < 3.1e-5
        clipped = _whole([rows[:1]], 0.5 * float(true[0]))
        assert abs(float(clipped.norm()) - REACH) <= 2e-4 * REACH + math.sqrt(size) / 2


def test_short_gradients_stay_and_long_ones_keep_their_direction() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((1, 500)).astype(np.float32))
    unit = 100.0 / REACH
    torch.testing.assert_close(_whole([rows], 100.0)[None] * unit, rows.double(), rtol=2e-4, atol=unit)
    long = _whole([rows], 1e-3)
    assert float(torch.cosine_similarity(long, rows[0].double(), dim=0)) > 1 - 1e-9


def test_sums_are_exact() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((8, 3)).astype(np.float32) * 1e6)
    rows[:, 1:] = 0  # eight vectors that lie in one direction, each as long as can be
    rows = rows.abs()
    apart = sum(_whole([row[None]], 1.0) for row in rows)
    assert torch.equal(_whole([rows], 1.0), apart)
    assert 8 * (1 - 2e-4) * REACH < float(apart[0]) <= 8 * REACH


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_counts_as_nothing(bad: float) -> None:
    rows = torch.ones(2, 10)
    rows[0, 3] = bad
    assert torch.equal(_whole([rows], 1.0), _whole([rows[1:]], 1.0))


# Noise


def test_noise_has_the_variance_that_is_booked_and_covers_every_weight() -> None:
    plan = ExampleLevel(clip=0.5, noise=1.5)
    entropy = Seeded(0)
    drawn = np.concatenate([moved(plan, with_canary(False), entropy, 10) for _ in range(100)])
    scaled = drawn * 10 / (1.5 * 0.5)  # the mean over ten pictures
    assert len(scaled) == 4800
    assert scaled.mean() == pytest.approx(0, abs=4 / math.sqrt(4800))
    assert scaled.std() == pytest.approx(1, rel=4 / math.sqrt(2 * 4800))


def test_a_step_that_took_nobody_is_one_of_pure_noise() -> None:
    """One of twenty expected: a third of the steps take none, and each moves every weight."""
    module, seen = Direct().build(2, 0), [np.zeros(48)]
    fit_private(
        module, Direct(), with_canary(False, 20), Training(batch=1, device="cpu", optimizer="sgd", epochs=2),
        ExampleLevel(1.0, 1.0), lambda done: 1.0 if done < 0.5 else 0.5, Seeded(0),
        stepped=lambda *step: seen.append(module.weight.detach().numpy().flatten().copy()),
    )  # fmt: skip
    assert len(seen) == 41
    steps = np.diff(np.array(seen), axis=0)
    assert np.count_nonzero(steps) == steps.size
    # Without momentum and rate, what is left is the noise of one step, each time anew.
    rates = np.repeat([1.0, 0.5], 20)[:, None]
    fresh = steps / rates - 0.9 * np.vstack([np.zeros(48), (steps / rates)[:-1]])
    assert fresh.std(1) == pytest.approx(np.ones(40), rel=0.45)
    assert np.abs(np.corrcoef(fresh)[np.triu_indices(40, 1)]).max() < 0.7


def test_the_canary_moves_the_weights_by_the_clip() -> None:
    """Ten pictures expected, one of length 7 cut to 0.5: the mean is 0.05 long."""
    found = moved(ExampleLevel(clip=0.5, noise=0.0), with_canary(True), Seeded(0), 10)
    assert np.linalg.norm(found) == pytest.approx(0.05, rel=2e-4)
    assert np.allclose(found, found[0])


def test_the_mean_is_over_the_pictures_expected_not_over_those_taken() -> None:
    """With the canary one of ten, half of them taken: what it does is clip / 5, however many came along."""
    lengths = {
        round(float(np.linalg.norm(moved(ExampleLevel(1.0, 0.0), with_canary(True), Seeded(seed), 5))), 3)
        for seed in range(40)
    }
    # Two steps of momentum 0.9: taken in neither, the second, the first, or both.
    assert lengths == {0.0, 0.2, 0.38, 0.58}


# Training


@pytest.mark.parametrize(("optimizer", "likeness"), [("sgd", 0.9999), ("adamw", 0.9)])
@pytest.mark.parametrize("backbone", ["small", "resnet"])
def test_without_noise_and_with_all_pictures_it_is_ordinary_training(
    optimizer: str, likeness: float, backbone: str, faces: Faces
) -> None:
    """So gradients, their places in channels-last memory, the mean and the learning rate are right.

    Adam makes a full step of every sign, so gradients near 0, which rounding moves, count as much as others.
    """
    training = msgspec.structs.replace(STILL, batch=18, optimizer=optimizer)
    method = supervised(backbone)
    start = flat(built(method))
    ordinary, private = built(method), built(method)
    fit(ordinary, method, faces, training, lambda done: 1e-3, torch.Generator())
    fit_private(private, method, faces, training, ExampleLevel(300.0, 0.0), lambda done: 1e-3, Seeded(0))
    one, other = flat(ordinary) - start, flat(private) - start
    assert float(torch.cosine_similarity(one, other, dim=0)) > likeness
    assert float(one.norm()) == pytest.approx(float(other.norm()), rel=0.05)


def test_it_learns(faces: Faces) -> None:
    method, module = supervised(), built(supervised(), stir=0)
    training = msgspec.structs.replace(STILL, epochs=8)

    def loss() -> float:
        images = torch.from_numpy(faces.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            return float(method.loss(module, images, torch.from_numpy(faces.labels)).mean())

    before = loss()
    plan = ExampleLevel(clip=10.0, noise=0.02)
    fit_private(module, method, faces, training, plan, lambda done: 2e-3, Seeded(0))
    assert loss() < 0.7 * before


def test_same_entropy_same_bits_other_entropy_other_bits(faces: Faces) -> None:
    plan = ExampleLevel(1.0, 1.0)
    one, other = (flat(trained(plan, faces, 0, flip=True, shift=1)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, flat(trained(plan, faces, 1, flip=True, shift=1)))


def test_it_leaves_global_randomness_and_the_pictures_alone(faces: Faces) -> None:
    state, images = torch.get_rng_state(), faces.images.copy()
    numbers = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    trained(ExampleLevel(1.0, 1.0), faces, flip=True)
    assert torch.equal(state, torch.get_rng_state())
    assert np.random.get_state(legacy=False)["state"]["pos"] == numbers  # noqa: NPY002
    np.testing.assert_array_equal(images, faces.images)


def traces(module: nn.Module) -> list[str]:
    """What Opacus hangs on a module while it works."""
    found = [n for layer in module.modules() for n in ("activations", "max_batch_len") if hasattr(layer, n)]
    found += [
        n for layer in module.modules() for n in ("_forward_hooks", "_backward_hooks") if getattr(layer, n)
    ]
    kept = ("grad_sample", "_forward_counter", "_current_grad_sample")
    return found + [n for parameter in module.parameters() for n in kept if hasattr(parameter, n)]


class Stopped(Exception):
    pass


def test_an_interrupted_training_leaves_no_trace_and_can_begin_again(faces: Faces) -> None:
    method, module, plan = supervised(), built(supervised()), ExampleLevel(1.0, 1.0)

    class Halting(Supervised):
        def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            losses = super().loss(module, images, labels)
            if torch.is_grad_enabled():
                raise Stopped
            return losses

    halting = Halting(backbone="small", size=(64, 64), dim=32, head="cosface", scale=30.0, margin=0.35)
    with pytest.raises(Stopped):
        fit_private(module, halting, faces, STILL, plan, lambda done: 1e-3, Seeded(0))
    assert traces(module) == []
    fit_private(module, method, faces, STILL, plan, lambda done: 1e-3, Seeded(0))
    assert traces(module) == []
    assert not module.training


def test_frozen_parameters_stay_and_others_move(faces: Faces) -> None:
    module = built(supervised())
    for parameter in module.backbone.parameters():
        parameter.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    fit_private(module, supervised(), faces, STILL, ExampleLevel(1.0, 1.0), lambda done: 1e-3, Seeded(0))
    same = {name: torch.equal(before[name], parameter) for name, parameter in module.named_parameters()}
    assert {name for name, still in same.items() if not still} == {"head.weight"}


def test_bfloat16_trains_too(faces: Faces) -> None:
    exact, short = (trained(ExampleLevel(1.0, 0.0), faces, precision=p) for p in ("float32", "bfloat16"))
    assert not torch.equal(flat(exact), flat(short))
    start = flat(built(supervised()))
    assert float(torch.cosine_similarity(flat(exact) - start, flat(short) - start, dim=0)) > 0.8


def test_stepped_hears_steps_and_no_loss(faces: Faces) -> None:
    heard: list[tuple[int, int, float]] = []
    rates: list[float] = []
    training = msgspec.structs.replace(STILL, epochs=2)
    fit_private(
        built(supervised()), supervised(), faces, training, ExampleLevel(1.0, 1.0),
        lambda done: rates.append(done) or 1e-3, Seeded(0),  # type: ignore[func-returns-value]
        stepped=lambda done, total, loss: heard.append((done, total, loss)),
    )  # fmt: skip
    assert [step[:2] for step in heard] == [(i, 6) for i in range(1, 7)]
    assert all(math.isnan(loss) for _, _, loss in heard)
    assert set(rates) == {i / 6 for i in range(6)}


# What is refused


def refused(method: Any, module: nn.Module, faces: Faces) -> str:
    before = flat(module)
    with pytest.raises(InputError) as caught:
        fit_private(module, method, faces, STILL, ExampleLevel(1.0, 1.0), lambda done: 1e-3, Seeded(0))
    assert torch.equal(before, flat(module))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_batchnorm_is_refused_by_name(faces: Faces) -> None:
    module = supervised().build(3, 0)
    assert isinstance(module, FaceModel)
    module.backbone.insert(1, nn.BatchNorm2d(32))  # type: ignore[operator]
    message = refused(supervised(), module, faces)
    assert "backbone.1 is BatchNorm" in message and "GroupNorm" in message


def test_running_values_are_refused_by_name(faces: Faces) -> None:
    module = supervised().build(3, 0)
    module.register_buffer("seen", torch.zeros(1))
    assert "seen is a buffer" in refused(supervised(), module, faces)


class Contrastive(Supervised):
    """Each embedding against all the others: says so."""

    per_example: ClassVar[bool] = False

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        embedding = torch.nn.functional.normalize(module.backbone(images))
        return torch.logsumexp(embedding @ embedding.T, dim=1)


class Lying(Contrastive):
    """The same, and says that it is not."""

    per_example: ClassVar[bool] = True


class Centred(Supervised):
    """Takes the batch's mean loss off each."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        losses = super().loss(module, images, labels)
        return losses - losses.mean()


class Reduced(Supervised):
    """One number for all."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return super().loss(module, images, labels).mean()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Contrastive, "compares pictures"), *((k, "not one per picture") for k in (Lying, Centred, Reduced))],
)
@pytest.mark.parametrize("people", [2, 3])
def test_a_loss_across_examples_is_refused(kind: type[Supervised], reason: str, people: int) -> None:
    method = kind(backbone="small", size=(64, 64), dim=32, head="cosface", scale=30.0, margin=0.35)
    message = refused(method, method.build(people, 0), noise_faces(6, people=people))
    assert reason in message and "supervised" in message


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_let_through(head: str, faces: Faces) -> None:
    module = supervised(head=head).build(3, 0)
    before = flat(module)
    fit_private(
        module, supervised(head=head), faces, STILL, ExampleLevel(1.0, 1.0), lambda done: 1e-3, Seeded(0)
    )
    assert not torch.equal(before, flat(module))


# The private head, and the learner


def test_the_head_starts_from_a_seed_and_from_no_picture() -> None:
    method = supervised()
    heads = []
    for pictures, seed in (
        (noise_faces(18), 1),
        (noise_faces(17), 1),
        (noise_faces(18, seed=5), 1),
        (noise_faces(18), 2),
    ):
        module = method.build(3, 0)
        backbone = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
        start_private(module, method, pictures, seed)
        heads.append(module.head.weight.detach().clone())
        assert all(
            torch.equal(tensor, backbone[name]) for name, tensor in module.backbone.state_dict().items()
        )
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[3])
    torch.testing.assert_close(heads[0].norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("part", ["last", "norms", "adapter"])
def test_a_private_start_leaves_what_is_frozen_as_it_was_pretrained(part: str) -> None:
    method = dataclasses.replace(supervised(), trainable=part, rank=4)
    module = built(method)  # off every start that a seed gives
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    start_private(module, method, noise_faces(18), 1)
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight"}


def learner(faces: Faces, client: int = 1, entropy: Any = None, **changes: Any) -> Learner:
    method = supervised()
    training = msgspec.structs.replace(STILL, **changes)
    found = Learner(client, method, faces, training, layout_of(method), 4, 0)
    found.example, found.entropy = ExampleLevel(1.0, 1.0), entropy or Seeded(0)
    return found


@pytest.fixture(scope="module")
def start() -> Vector:
    return shared_vector(supervised().build(1, 0), supervised(), layout_of(supervised()))


def test_neighbours_start_from_the_same_head(faces: Faces, start: Vector) -> None:
    """Also one whose whole first person looks different; and a client's rows are its own."""
    altered = Faces(faces.images.copy(), faces.labels, faces.names, faces.files)
    altered.images[faces.labels == 0] = 255
    without = faces.select(np.arange(1, 18))
    rows = [
        learner(each, client)._module(start).head.weight.detach().clone()
        for each, client in ((faces, 1), (without, 1), (altered, 1), (faces, 2))
    ]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[3])


def test_the_learner_trains_privately_and_tells_no_loss(faces: Faces, start: Vector) -> None:
    one = learner(faces)
    update = one.learn(start, 0)
    assert update.metrics == {}
    assert update.weight == 18
    assert update.vector.dtype == np.float32 and np.count_nonzero(update.vector) > 0.99 * len(start)
    assert not np.array_equal(update.vector, learner(faces, entropy=Seeded(1)).learn(start, 0).vector)
    np.testing.assert_array_equal(update.vector, learner(faces).learn(start, 0).vector)


def test_the_head_is_trained_by_the_same_noised_gradient_and_kept(faces: Faces, start: Vector) -> None:
    one = learner(faces)
    fresh = one._module(start).head.weight.detach().clone()
    one.learn(start, 0)
    kept = one.private["head.weight"].clone()
    assert not torch.equal(kept, fresh)
    assert torch.equal(one._module(start).head.weight, kept)


def test_a_learner_without_privacy_is_untouched_by_one_with_it(faces: Faces, start: Vector) -> None:
    """On the same worker, in the same module."""

    def openly() -> Vector:
        one = learner(faces)
        one.example = None
        return one.learn(start, 0).vector

    before = openly()
    learner(faces).learn(start, 0)
    np.testing.assert_array_equal(openly(), before)


def test_a_learner_without_entropy_is_told(faces: Faces, start: Vector) -> None:
    one = learner(faces)
    one.entropy = None
    with pytest.raises(LocalProtocolError, match="entropy"):
        one.learn(start, 0)


# What it costs in epsilon


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_three_rounds_cost_what_three_epochs_of_opacus_cost(accountant: Accountant) -> None:
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    noise, delta = 1.1, 1e-5
    faces, training = with_canary(True, 24), Training(batch=8, device="cpu", optimizer="sgd")
    model = nn.Linear(48, 2)
    data = TensorDataset(torch.rand(24, 48), torch.randint(0, 2, (24,), generator=torch.Generator()))
    engine = PrivacyEngine(accountant=accountant)
    private, optimiser, loader = engine.make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8), noise_multiplier=noise, max_grad_norm=1.0,
    )  # fmt: skip
    for _ in range(3):
        for images, labels in loader:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(private(images), labels).backward()
            optimiser.step()

    history: list[tuple[float, float, int]] = []
    heard: list[int] = []
    module = Direct().build(2, 0)
    for _ in range(3):
        history.append((noise, *steps_of(len(faces), training)))
        fit_private(
            module, Direct(), faces, training, ExampleLevel(1.0, noise), lambda done: 0.1, Seeded(0),
            stepped=lambda *step: heard.append(step[0]),
        )  # fmt: skip
    assert (
        len(heard)
        == sum(steps for _, _, steps in history)
        == sum(h[2] for h in engine.accountant.history)
        == 9
    )
    ours = epsilon_of_steps(history, delta, accountant)
    assert ours == pytest.approx(epsilon_of_steps(engine.accountant.history, delta, accountant), abs=1e-6)
    assert ours == pytest.approx(engine.get_epsilon(delta), abs=1e-6)
    assert 1 < ours < 20


SIGMA = 1000


def laws(multiplier: float, rate: float, reach: int) -> Iterator[NDArray[np.float64]]:
    """Logarithms of the discrete Gaussian and of its sampled mixture, over the integers up to `reach`."""
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    shift = round(SIGMA / multiplier)
    centred = -(x**2) / (2 * SIGMA**2)
    centred -= logsumexp(centred)
    yield centred
    ratio = (2 * x * shift - shift**2) / (2 * SIGMA**2)
    yield centred + np.logaddexp(math.log1p(-rate), math.log(rate) + ratio)


@pytest.mark.parametrize(("multiplier", "rate"), [(0.8, 0.1), (2.0, 0.25), (1.25, 0.01)])
def test_the_sampled_discrete_gaussian_costs_what_opacus_says(multiplier: float, rate: float) -> None:
    """Renyi divergences by sums over integers, both ways, at whole orders and between them."""
    from opacus.accountants.analysis.rdp import compute_rdp

    multiplier = SIGMA / round(SIGMA / multiplier)
    centred, mixed = laws(multiplier, rate, 100_000)
    for order in (1.5, 2, 2.5, 3, 4.3, 8, 10.9, 16, 32):
        [claimed] = np.atleast_1d(compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=[order]))
        added = logsumexp(order * mixed + (1 - order) * centred) / (order - 1)
        removed = logsumexp(order * centred + (1 - order) * mixed) / (order - 1)
        assert added == pytest.approx(claimed, rel=1e-6), order
        assert removed <= added * (1 + 1e-9), order


@pytest.mark.parametrize(("multiplier", "rate"), [(0.8, 0.1), (2.0, 0.25)])
def test_the_sampled_discrete_gaussian_hides_as_the_continuous_does(multiplier: float, rate: float) -> None:
    """Delta at several epsilon, which is what PRV is made of, within the 2 g that the docstring derives."""
    shift = round(SIGMA / multiplier)
    slack = 2 * (2 * math.sqrt(50) + 2 * 50) / (24 * SIGMA**2)
    centred, mixed = (np.exp(law) for law in laws(multiplier, rate, 20_000))

    def continuous(epsilon: float) -> float:
        """Delta of adding: what lies beyond the place where the ratio is e^epsilon."""
        ratio = math.log((math.exp(epsilon) - 1 + rate) / rate)
        place = (2 * SIGMA**2 * ratio + shift**2) / (2 * shift)
        tail = norm.sf(place / SIGMA)
        return (1 - rate) * tail + rate * norm.sf((place - shift) / SIGMA) - math.exp(epsilon) * tail

    for epsilon in (0.05, 0.2, 0.5, 1.0):
        found = np.maximum(mixed - math.exp(epsilon) * centred, 0).sum()
        assert continuous(epsilon + slack) <= found <= continuous(epsilon - slack)


# What an attacker sees


TRIALS = 600


def lower_bound(plan: ExampleLevel, batch: int, seed: int = 0) -> float:
    """Epsilon that an attacker proves with 95 % confidence, who knows all but whether the canary was there.

    The score is the inner product of the update with the canary.
    """
    entropy, delta = Seeded(seed), 1e-5
    scores = {
        present: np.array([moved(plan, with_canary(present), entropy, batch).sum() for _ in range(TRIALS)])
        for present in (True, False)
    }
    return epsilon_proven(scores[True], scores[False], delta)


def claimed(noise: float, batch: int) -> float:
    rate, steps = steps_of(10, Training(batch=batch))
    return epsilon_of_steps([(noise, rate, steps)], 1e-5, "prv")


def test_without_noise_the_canary_is_found() -> None:
    assert lower_bound(ExampleLevel(1.0, 0.0), 10) > 4


@pytest.mark.parametrize(("noise", "batch"), [(1.0, 10), (0.7, 5)])
def test_with_noise_the_attacker_stays_under_what_is_claimed(noise: float, batch: int) -> None:
    """And above zero, so the attack is one: all pictures at each step, and half of them, twice."""
    assert 0.1 < lower_bound(ExampleLevel(1.0, noise), batch) < claimed(noise, batch)


def test_a_noise_that_is_too_small_is_found_out() -> None:
    """An eighth of it: the audit proves more than noise 4 would have cost."""
    assert lower_bound(ExampleLevel(1.0, 0.5), 10) > claimed(4.0, 10)
