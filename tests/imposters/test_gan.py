"""The GAN: whose gradient goes where, bounds that hold, pictures that stay apart, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privfr.errors import InputError
from privfr.experiment import Training
from privfr.faces.datasets import Faces
from privfr.imposters.gan import Gan, Generator
from privfr.privacy.example import ExampleLevel, _clipped_sum, _gradients_apart, fit_private
from privfr.trainer import Learner, fit, layout_of, shared_vector

TINY = Gan(width=4, latent=8)
STILL = Training(batch=6, device="cpu", flip=False, shift=0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pictures(count: int, seed: int = 0) -> Faces:
    images = np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)
    return Faces(images, np.zeros(count, np.int64), ("owner",), tuple(f"{i}.png" for i in range(count)))


def built(gan: Gan = TINY) -> nn.Module:
    return gan.build(0, 0).to(memory_format=torch.channels_last)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 5) -> Tensor:
    return 2 * torch.rand(count, 3, 64, 64, generator=stream()) - 1


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]


def seeded(seed: int) -> Any:
    return np.random.default_rng(seed).bytes


# One backward pass


def test_each_network_gets_the_gradient_of_its_own_loss() -> None:
    """As two passes of plain autograd give them, the generator's of the loss that does not saturate."""
    module, images = built(), noise()
    TINY.loss(module, images, torch.zeros(5)).mean().backward()
    at_once = {name: gradients(getattr(module, name)) for name in ("generator", "discriminator")}
    made = module.generator(module.latents(5, images.device))
    margin = module.discriminator(images) - module.discriminator(made)
    for name, loss in (("generator", F.softplus(margin)), ("discriminator", F.softplus(-margin))):
        wanted = torch.autograd.grad(loss.mean(), list(getattr(module, name).parameters()), retain_graph=True)
        assert any(gradient.abs().max() > 1e-4 for gradient in wanted)
        for one, other in zip(at_once[name], wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-9)


def test_a_discriminator_that_is_sure_still_teaches() -> None:
    """The reversed loss alone would give nothing: its gradient is some exp(-20) of the other."""
    module = built()
    images = noise()
    with torch.no_grad():  # until the surest margin is 20 one way or the other
        made = module.generator(module.latents(5, images.device))
        margin = module.discriminator(images) - module.discriminator(made)
        module.discriminator.score.weight.mul_(20 / margin[margin.abs().argmax()])
    loss = TINY.loss(module, images, torch.zeros(5))
    sure = loss.detach() < 1e-8
    assert sure.any()
    loss[sure].sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(module))
    assert max(float(gradient.abs().max()) for gradient in gradients(module.generator)) > 1e-3
    assert max(float(gradient.abs().max()) for gradient in gradients(module.discriminator)) < 1e-2


def test_losses_are_one_per_picture_in_float32() -> None:
    module, images = built(), noise()
    with torch.autocast("cpu", torch.bfloat16):
        losses = TINY.loss(module, images, torch.zeros(5))
    assert losses.shape == (5,) and losses.dtype == torch.float32
    images[2] = 0.0
    other = TINY.loss(module, images, torch.zeros(5))
    assert [i for i in range(5) if not torch.isclose(losses[i], other[i], rtol=0.05)] in ([], [2])
    assert not torch.equal(other[2], TINY.loss(module, noise(), torch.zeros(5))[2])


# What leaves, what is looked at


def test_the_generator_travels_and_the_discriminator_stays() -> None:
    layout = layout_of(TINY)
    assert layout.names and all(name.startswith("generator.") for name in layout.names)
    assert layout.names == tuple(f"generator.{name}" for name in built().generator.state_dict())
    learner = Learner(0, TINY, pictures(12), STILL, layout, rounds=2, seed=0)
    learner.learn(shared_vector(built(), TINY, layout), 0)
    assert set(learner.private) == {f"discriminator.{n}" for n in built().discriminator.state_dict()}


def test_labels_and_imposters_are_not_looked_at() -> None:
    faces = pictures(7)
    other = Faces(faces.images, np.arange(7), tuple("abcdefg"), faces.files)
    found = [
        TINY.examples(built(), each, imposters, stream()) for each, imposters in ((faces, 0), (other, 9))
    ]
    for examples in found:
        np.testing.assert_array_equal(examples.rows, np.arange(7)[:, None])
        np.testing.assert_array_equal(examples.targets, np.zeros(7, np.int64))
    assert TINY.classes(faces) == TINY.classes(other) == 0


# Training


def test_after_each_step_no_layer_of_the_discriminator_stretches() -> None:
    module = built()

    def stretches() -> list[float]:
        layers = [layer for layer in module.discriminator.modules() if hasattr(layer, "weight")]
        return [float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) for layer in layers]

    assert len(stretches()) == 5
    fit(module, TINY, pictures(12), STILL, lambda done: 0.02, stream())
    assert max(stretches()) <= 2 + 1e-5
    with torch.no_grad():
        module.discriminator.layers[0].weight.mul_(0.5)
        module.discriminator.layers[2].weight.mul_(6)
    before = stretches()
    TINY.stepped(module)
    assert stretches()[0] == before[0] < 1.1
    assert before[1] > 2.5 and stretches()[1] == pytest.approx(2, abs=1e-5)


def test_the_same_seed_gives_the_same_training_and_leaves_global_randomness_alone() -> None:
    def trained(seed: int) -> Tensor:
        module = built()
        fit(module, TINY, pictures(12), STILL, lambda done: 2e-3, stream(seed))
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    state = torch.get_rng_state()
    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))
    assert torch.equal(state, torch.get_rng_state())


def test_it_learns_what_pictures_look_like() -> None:
    """Red below and blue above, which no generator makes at first."""
    images = np.full((24, 64, 64, 3), 40, np.uint8)
    images[:, 32:, :, 0] = images[:, :32, :, 2] = 210
    faces = Faces(images, np.zeros(24, np.int64), ("owner",), tuple(map(str, range(24))))

    def distance(module: nn.Module) -> float:
        made = module.generator.sample(16, 0).astype(float).mean(0)
        return float(np.abs(made - images[0]).mean())

    module, before = built(), distance(built())
    training = msgspec.structs.replace(STILL, epochs=40)
    fit(module, TINY, faces, training, lambda done: 3e-3, stream())
    assert before > 60
    assert distance(module) < 0.6 * before


# Privacy of each picture


def test_gradients_stay_apart_to_the_bit_in_any_company() -> None:
    """With the same latent vector beside each, what a picture adds is the same whoever is beside it."""
    faces, module = pictures(11), bare()
    targets = np.zeros(11, np.int64)

    def summed(rows: list[int]) -> Tensor:
        return _clipped_sum(module, TINY, faces.images, targets, np.array(rows), STILL, 0.5, stream())

    with _gradients_apart(module):
        own = [summed([i]) for i in range(11)]
        for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 7, 10, 0, 2, 2, 2]):
            assert torch.equal(summed(rows), torch.stack([own[i] for i in rows]).sum(0))
    for each in own:
        assert 0.99 * 2**20 < float(each.norm()) <= 2**20 + 0.5 * len(each) ** 0.5


class Same(nn.Module):
    """The same latent vector beside every picture, so that a picture's place in a batch does not matter."""

    def forward(self, count: int, device: torch.device) -> Tensor:
        return torch.randn(1, 8, generator=stream(3)).expand(count, -1)


def bare() -> nn.Module:
    """A module in training whose pictures meet no chance."""
    module = built().train()
    module.latents = Same()
    return module


def test_a_pairs_gradient_is_that_of_plain_autograd() -> None:
    faces, module = pictures(3), bare()
    with _gradients_apart(module):
        images = torch.from_numpy(faces.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        TINY.loss(module, images, torch.zeros(3)).sum().backward()
        found = [parameter.grad_sample[1].clone() for parameter in module.parameters()]
    module.zero_grad()
    TINY.loss(module, images[1:2], torch.zeros(1)).sum().backward()
    for one, other in zip(found, gradients(module), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale + 1e-9)


def test_it_trains_with_noise() -> None:
    module, before = built(), gradients_free(built())
    fit_private(module, TINY, pictures(12), STILL, ExampleLevel(1.0, 1.0), lambda done: 1e-3, seeded(0))
    assert not torch.equal(before, gradients_free(module))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def gradients_free(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# Pictures and files


def test_samples_are_pictures_the_same_for_a_seed_and_others_for_another() -> None:
    generator = built().generator
    one = generator.sample(70, 3)
    assert one.shape == (70, 64, 64, 3) and one.dtype == np.uint8 and one.std() > 1
    np.testing.assert_array_equal(one, generator.sample(70, 3))
    assert not np.array_equal(one, generator.sample(70, 4))
    assert len(np.unique(one.reshape(70, -1), axis=0)) == 70
    assert generator.sample(0, 0).shape == (0, 64, 64, 3)


def test_a_generator_comes_back_from_its_file(tmp_path: Path) -> None:
    generator = built().generator
    generator.save(tmp_path / "g.safetensors")
    found = Generator.load(tmp_path / "g.safetensors")
    assert (found.width, found.latent) == (4, 8)
    np.testing.assert_array_equal(found.sample(3, 1), generator.sample(3, 1))


def tensors_of(generator: Generator) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}


def refused(path: Path, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        Generator.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_generator_is_refused_in_one_line(tmp_path: Path) -> None:
    generator, path = built().generator, tmp_path / "g.safetensors"
    refused(path, "no such file")
    generator.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(path, "copy it again")
    path.write_bytes(b"")
    refused(path, "copy it again")
    safetensors.torch.save_file(tensors_of(generator), path)
    refused(path, "not a generator")


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"width": 5, "latent": 8}, "another architecture"),
        ({"width": 10**6, "latent": 8}, "width 1000000 is not between 1 and 512"),
        ({"width": 4, "latent": 0}, "latent 0 is not between"),
        ({"width": "x", "latent": 8}, "not a generator"),
        ({"latent": 8}, "not a generator"),
        ([], "not a generator"),
    ],
)
def test_facts_that_do_not_fit_are_refused(tmp_path: Path, facts: Any, what: str) -> None:
    path, tensors = tmp_path / "g.safetensors", tensors_of(built().generator)
    safetensors.torch.save_file(tensors, path, {"privfr": json.dumps({"generator": facts})})
    refused(path, what)


@pytest.mark.parametrize("damage", ["nan", "half"])
def test_damaged_tensors_are_refused(tmp_path: Path, damage: str) -> None:
    path, tensors = tmp_path / "g.safetensors", tensors_of(built().generator)
    name = "first.bias"
    tensors[name] = tensors[name].half() if damage == "half" else tensors[name] * torch.nan
    facts = {"privfr": json.dumps({"generator": {"width": 4, "latent": 8}})}
    safetensors.torch.save_file(tensors, path, facts)
    refused(path, "'first.bias' is not finite float32")
