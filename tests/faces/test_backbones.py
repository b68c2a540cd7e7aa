"""The face networks: their shapes, their sizes, their determinism, and what they must not hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from privfr.errors import InputError
from privfr.faces.backbones import BACKBONES, Features, backbone, initialise, to_tensor
from privfr.stepping import drawing

EVERY = [(name, size) for name, entry in BACKBONES.items() for size in entry.sizes]


def faces(n: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return to_tensor(np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_to_tensor_maps_bytes_onto_minus_one_to_one() -> None:
    images = np.zeros((2, 4, 6, 3), dtype=np.uint8)
    images[0, 1, 2] = (255, 51, 0)
    pixels = to_tensor(images)
    assert pixels.shape == (2, 3, 4, 6) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0, :, 1, 2], torch.tensor([1.0, -0.6, -1.0]))
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_to_tensor_leaves_its_input_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    kept = images.copy()
    to_tensor(images)
    to_tensor(images[:, :, ::-1])  # a flip is a view with negative strides
    assert np.array_equal(images, kept)


@pytest.mark.parametrize(
    "shape, dtype", [((2, 4, 4, 3), np.float32), ((4, 4, 3), np.uint8), ((2, 3, 4, 4), np.uint8)]
)
def test_to_tensor_refuses_other_shapes_and_types(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(InputError, match="uint8"):
        to_tensor(np.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("name, size", EVERY)
def test_embedding_has_the_asked_width_and_is_finite(name: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        out = backbone(name, size, 24)(faces(2, size))
    assert out.shape == (2, 24) and out.dtype == torch.float32
    assert out.isfinite().all() and out.std() > 1e-3


@pytest.mark.parametrize("name", BACKBONES)
def test_no_batch_statistics_an_embedding_depends_on_its_own_picture_only(name: str) -> None:
    model = backbone(name).train()
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
    assert not list(model.buffers())
    pictures = faces(3, BACKBONES[name].sizes[0])
    with torch.inference_mode():
        assert torch.allclose(model(pictures)[:1], model(pictures[:1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("small", 300e3, 500e3),
        ("resnet", 1.6e6, 1.8e6),
        ("mobilefacenet", 0.9e6, 1.1e6),  # 0.99 M in the paper
        ("sphere20", 22e6, 25e6),
        ("sphere64", 45e6, 50e6),
    ],
)
def test_parameter_counts(name: str, low: float, high: float) -> None:
    assert low < count(backbone(name)) < high


def test_spherenet_counts_its_layers_and_has_biases_only_where_the_paper_has() -> None:
    for name, depth in (("sphere20", 20), ("sphere64", 64)):
        model = backbone(name)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == depth  # as the paper counts, the embedding's layer apart
        assert all((c.bias is not None) == (c.stride == (2, 2)) for c in convolutions)
        assert not any(isinstance(m, nn.GroupNorm) for m in model.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_follow_from_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    one = backbone(name, seed=7).state_dict()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    same, other = backbone(name, seed=7).state_dict(), backbone(name, seed=8).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_initialise_leaves_nothing_of_what_was_there() -> None:
    model = backbone("mobilefacenet", seed=3)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialise(model, 3)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["small", "resnet", "mobilefacenet", "sphere20"])
def test_one_gradient_step_lowers_the_loss(name: str) -> None:
    # The target is near the output: what is tested is that the gradient reaches the weights, not learning.
    model, pictures = backbone(name), faces(4, BACKBONES[name].sizes[0])
    target = model(pictures).detach() + 0.1

    def loss() -> torch.Tensor:
        return (model(pictures) - target).square().mean()

    first = loss()
    first.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    total = torch.stack([g.square().sum() for g in gradients if g is not None]).sum()
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            assert g is not None
            p -= 0.05 * first / total * g
        assert loss() < first


def test_an_unknown_network_names_the_near_one() -> None:
    with pytest.raises(InputError, match="'mobilefacenet'"):
        backbone("mobilfacenet")
    with pytest.raises(InputError, match="small, resnet"):
        backbone("vgg")


def test_a_size_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="sphere20 takes 112x96 or 112x112 pictures, not 64x64"):
        backbone("sphere20", (64, 64))
    with pytest.raises(InputError, match="dim"):
        backbone("small", dim=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_can_drop_features(name: str) -> None:
    module, (height, width) = backbone(name), BACKBONES[name].sizes[0]
    images = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        whole = module(images)
        with drawing(module, 0.5, torch.Generator().manual_seed(2)):
            dropped = module(images)
        assert not torch.equal(dropped, whole)
        assert torch.equal(module(images), whole)  # nothing is dropped any more


def test_dropping_keeps_the_mean_and_gives_each_picture_its_own() -> None:
    features = Features()
    ones = torch.ones(200, 5, 10, 10)
    with drawing(features, 0.4, torch.Generator().manual_seed(3)):
        found = features(ones)
    assert found.shape == (200, 500)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert abs(float(found.mean()) - 1) < 0.01
    assert not torch.equal(found[0], found[1])
    with pytest.raises(RuntimeError), drawing(features, 0.4, torch.Generator()):
        raise RuntimeError
    assert torch.equal(features(ones), ones.flatten(1))
