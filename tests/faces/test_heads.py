"""The margin heads, each held against its formula written a second time, in angles, in plain Python."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from privfr.errors import InputError
from privfr.faces.heads import HEADS, NOBODY, ArcFace, Head, head

ANGLES = range(0, 180)
OTHERS = (40.0, 95.0, 150.0)  # where the wrong classes sit, in degrees from the embedding
TOLERANCE = {torch.float32: 2e-2, torch.float64: 1e-6}  # float32 loses up to s * 3e-4 at the angle's ends


def placed(name: str, angle: float, dtype: torch.dtype, **settings: float) -> tuple[Head, torch.Tensor]:
    """A head whose rows lie at `angle`, then OTHERS, degrees from the embedding, and that embedding."""
    made = head(name, 1 + len(OTHERS), 3, **settings).to(dtype)
    radians = torch.tensor([angle, *OTHERS], dtype=torch.float64).deg2rad()
    turn = torch.arange(len(radians), dtype=torch.float64)
    rows = torch.stack([radians.cos(), radians.sin() * turn.cos(), radians.sin() * turn.sin()], dim=1)
    with torch.no_grad():
        made.weight.copy_((rows * 2.5).to(dtype))  # not unit: the head must normalise
    return made, torch.tensor([[7.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)


def softmax_loss(target: float, scale: float) -> float:
    wrong = sum(math.exp(scale * (math.cos(math.radians(o)) - target)) for o in OTHERS)
    return math.log1p(wrong)


def expected(name: str, angle: float, s: float, m: float, bias: float) -> float:
    a = math.radians(angle)
    if name == "softmax":
        return softmax_loss(math.cos(a), s)
    if name == "cosface":
        return softmax_loss(math.cos(a) - m, s)
    if name == "arcface":
        return softmax_loss(math.cos(a + m) if a + m < math.pi else math.cos(a) - m * math.sin(m), s)

    def g(degrees: float) -> float:
        return 2 * ((math.cos(math.radians(degrees)) + 1) / 2) ** 3 - 1

    positive = 0.7 / s * math.log1p(math.exp(-s * (g(angle) - m) - bias))
    return positive + sum(0.3 / s * math.log1p(math.exp(s * (g(o) + m) + bias)) for o in OTHERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name, m", [("softmax", 0.0), ("cosface", 0.35), ("arcface", 0.5), ("sphereface2", 0.4)]
)
def test_loss_is_the_papers_at_every_angle(name: str, m: float, dtype: torch.dtype) -> None:
    for angle in ANGLES:
        if name == "arcface" and abs(math.radians(angle) + m - math.pi) < 0.01:
            continue  # the documented step
        settings = {} if name == "softmax" else {"margin": m}
        made, embedding = placed(name, angle, dtype, scale=16.0, **settings)
        loss = made(embedding, torch.tensor([0]))
        bias = made.bias.item() if name == "sphereface2" else 0.0
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected(name, angle, 16.0, m, bias), abs=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_finite_at_every_angle(name: str, dtype: torch.dtype) -> None:
    for angle in (0.0, 1e-6, 1e-3, *range(1, 180), 180.0 - 1e-6, 180.0):
        made, embedding = placed(name, angle, dtype, scale=64.0)
        made(embedding, torch.tensor([0])).sum().backward()
        assert embedding.grad is not None and embedding.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_loss_never_falls_as_the_angle_grows(name: str) -> None:
    losses = []
    for angle in range(0, 181):
        made, embedding = placed(name, angle, torch.float64)
        losses.append(made(embedding, torch.tensor([0])).item())
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(losses))
    assert losses[180] > losses[0]


@pytest.mark.parametrize("name", HEADS)
def test_one_loss_per_example_each_independent_of_the_batch(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(6, 8, generator=generator)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    made = head(name, 5, 8)
    together = made(embedding, labels)
    alone = torch.cat([made(embedding[i : i + 1], labels[i : i + 1]) for i in range(6)])
    assert together.shape == (6,)
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_lengths_do_not_count(name: str) -> None:
    embedding, labels = (
        torch.randn(4, 8, generator=torch.Generator().manual_seed(2)),
        torch.tensor([0, 1, 2, 0]),
    )
    made = head(name, 3, 8)
    before = made(embedding, labels)
    with torch.no_grad():
        made.weight.mul_(3.0)
    assert torch.allclose(before, made(embedding * 5, labels), atol=1e-4)


@pytest.mark.parametrize("name", ["cosface", "arcface", "sphereface2"])
def test_a_margin_makes_it_harder(name: str) -> None:
    free, embedding = placed(name, 50.0, torch.float64, margin=0.0)
    held, _ = placed(name, 50.0, torch.float64, margin=0.3)
    if name == "sphereface2":
        with torch.no_grad():
            held.bias.copy_(free.bias)
    assert held(embedding, torch.tensor([0])).item() > free(embedding, torch.tensor([0])).item()


@pytest.mark.parametrize("name", HEADS)
def test_it_learns(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    embedding, labels = torch.randn(32, 16, generator=generator), torch.arange(32) % 4
    made = head(name, 4, 16)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    first = made(embedding, labels).mean().item()
    for _ in range(50):
        optimiser.zero_grad()
        made(embedding, labels).mean().backward()
        optimiser.step()
    assert made(embedding, labels).mean().item() < 0.9 * first


def test_arcface_step_lies_at_pi_minus_the_margin() -> None:
    made = ArcFace(2, 2, margin=0.5, generator=torch.Generator())
    edge = math.pi - 0.5
    near, far = (
        made._add_angle(torch.tensor([[math.cos(a)]], dtype=torch.float64))
        for a in (edge - 1e-6, edge + 1e-6)
    )
    assert near.item() == pytest.approx(-1, abs=1e-9)
    assert far.item() == pytest.approx(math.cos(edge) - 0.5 * math.sin(0.5), abs=1e-5)


@pytest.mark.parametrize("classes", [2, 20, 1000])
def test_sphereface2_bias_starts_balanced_for_orthogonal_rows(classes: int) -> None:
    made = head("sphereface2", classes, 2).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor([0.0, 1.0]).expand(classes, 2))
    made(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])).sum().backward()
    assert made.bias.grad.abs().item() < 1e-6


def test_sphereface2_trains_with_one_identity() -> None:
    made = head("sphereface2", 1, 4)
    embedding = torch.randn(3, 4, generator=torch.Generator().manual_seed(4), requires_grad=True)
    loss = made(embedding, torch.zeros(3, dtype=torch.int64))
    loss.sum().backward()
    assert loss.isfinite().all() and embedding.grad is not None and embedding.grad.abs().sum() > 0


@pytest.mark.parametrize("name", HEADS)
def test_centres_start_the_rows_at_the_class_means(name: str) -> None:
    made = head(name, 3, 8)
    means = torch.randn(3, 8, generator=torch.Generator().manual_seed(5)) * 9
    made.set_centres(means)
    assert torch.allclose(made.weight, F.normalize(means), atol=1e-6)
    assert made.weight.requires_grad and made.weight.is_leaf
    assert torch.allclose(made.cosines(means).diagonal(), torch.ones(3), atol=1e-5)


def test_unusable_centres_are_refused() -> None:
    made = head("cosface", 3, 8)
    with pytest.raises(InputError, match=r"\[2, 8\], expected \[3, 8\]"):
        made.set_centres(torch.ones(2, 8))
    means = torch.ones(3, 8)
    means[1] = 0
    with pytest.raises(InputError, match="class 1"):
        made.set_centres(means)
    means[1], means[2, 0] = 1, float("nan")
    with pytest.raises(InputError, match="class 2"):
        made.set_centres(means)


@pytest.mark.parametrize("name", HEADS)
def test_rows_follow_from_the_seed_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, same, other = (head(name, 5, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("cosfase", {}, "'cosface'"),
        ("triplet", {}, "choose one of"),
        ("cosface", {"scales": 3.0}, "no setting 'scales'; it has margin, scale"),
        ("softmax", {"margin": 0.1}, "no setting 'margin'"),
        ("cosface", {"margin": -0.1}, "margin"),
        ("arcface", {"margin": 1.6}, "margin"),
        ("cosface", {"scale": 0.0}, "scale"),
        ("sphereface2", {"balance": 1.0}, "balance"),
        ("sphereface2", {"sharpness": 0.5}, "sharpness"),
        ("sphereface2", {"margin": 1.0}, "margin"),
    ],
)
def test_bad_settings_are_named(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        head(name, 4, 8, **settings)


def test_a_head_needs_a_class() -> None:
    with pytest.raises(InputError, match="at least 1 class"):
        head("cosface", 0, 8)


@pytest.mark.parametrize("name", ["softmax", "cosface", "arcface"])
def test_nobody_is_one_more_class_of_a_fixed_cosine(name: str) -> None:
    made, embedding = placed(name, 40.0, torch.float64)
    plain = made(embedding, torch.tensor([0]))
    made.nobody = 0.3
    own, none = made(embedding, torch.tensor([0])), made(embedding, torch.tensor([NOBODY]))
    logits = [30 * math.cos(math.radians(o)) for o in (40.0, *OTHERS)]
    total = sum(math.exp(x - 9.0) for x in logits)
    assert none.item() == pytest.approx(math.log(1 + total), rel=1e-6), "no margin against nobody"
    target = math.log(1 / (1 - math.exp(-own.item())) - 1)  # nobody and the others against the true one
    without = math.log(1 / (1 - math.exp(-plain.item())) - 1)
    assert own.item() > plain.item() and target < without
    both = made(embedding.repeat(2, 1), torch.tensor([NOBODY, 0]))
    assert both.tolist() == pytest.approx([none.item(), own.item()])


def test_one_person_learns_with_nobody_and_not_without() -> None:
    made = head("cosface", 1, 4)
    embedding = torch.tensor([[1.0, 2.0, 0.5, -1.0]], requires_grad=True)
    assert made(embedding, torch.tensor([0])).item() == 0.0
    made.nobody = 0.35
    made(embedding, torch.tensor([0])).sum().backward()
    assert embedding.grad is not None and embedding.grad.abs().sum() > 0
