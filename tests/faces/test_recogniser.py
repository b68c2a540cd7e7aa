"""A recogniser on disk: what is saved comes back, and no damaged file gets further than one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from privfr.errors import InputError
from privfr.faces.recogniser import Recogniser, embed

SIZE = (64, 64)


def pictures(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> Recogniser:
    found = Recogniser.new("small", SIZE, 16, seed=5)
    found.thresholds, found.about = {"1e-1": 0.25, "1e-2": 0.5}, {"run": "abc", "model": "federated"}
    return found


@pytest.fixture(scope="module")
def data(model: Recogniser, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return path.read_bytes()


def metadata(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["privfr"])


def saved(path: Path, model: Recogniser, facts: Any, tensors: dict[str, np.ndarray] | None = None) -> Path:
    text = facts if isinstance(facts, str) else json.dumps(facts)
    path.write_bytes(safetensors.numpy.save(tensors or model.tensors(), {"privfr": text}))
    return path


def test_what_is_saved_comes_back(model: Recogniser, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    found = Recogniser.load(tmp_path / "m.safetensors")
    assert (found.backbone, found.size, found.dim) == ("small", SIZE, 16)
    assert (found.thresholds, found.about) == (model.thresholds, model.about)
    for name, tensor in model.tensors().items():
        np.testing.assert_array_equal(found.tensors()[name], tensor)
    np.testing.assert_array_equal(found.embed(pictures(3)), model.embed(pictures(3)))


def test_embeddings_are_unit_vectors(model: Recogniser) -> None:
    found = model.embed(pictures(5))
    assert found.shape == (5, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_embedding_does_not_depend_on_the_company(model: Recogniser) -> None:
    """A picture's row is the same whatever the batch it came in (batches are of 128)."""
    many = model.embed(pictures(130))
    np.testing.assert_allclose(many[[0, 129]], model.embed(pictures(130)[[0, 129]]), atol=1e-5)
    np.testing.assert_array_equal(many, model.embed(pictures(130)))


def test_a_picture_of_zero_embedding_is_like_nobody(model: Recogniser) -> None:
    silent = Recogniser.new("small", SIZE, 16)
    silent.load_tensors({name: np.zeros_like(tensor) for name, tensor in silent.tensors().items()})
    assert not silent.embed(pictures(2)).any()


def test_embed_needs_pictures(model: Recogniser) -> None:
    with pytest.raises(InputError, match="no pictures"):
        embed(model.network, pictures(0))


def test_embed_needs_pictures_of_its_size(model: Recogniser) -> None:
    with pytest.raises(InputError, match="112x112"):
        model.embed(pictures(1, (112, 112)))


def test_the_same_seed_the_same_model() -> None:
    one, same, other = (Recogniser.new("small", SIZE, seed=seed).tensors() for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_thresholds(model: Recogniser) -> None:
    assert model.threshold_at(0.01) == 0.5
    with pytest.raises(InputError, match=r"FAR 0.001: .* choose from 1e-1, 1e-2"):
        model.threshold_at(1e-3)
    with pytest.raises(InputError, match=r"FAR 0.1: .* more test identities"):
        Recogniser.new("small", SIZE).threshold_at(0.1)


# Damage


@settings(max_examples=40)
@given(share=st.floats(0, 0.999999))
def test_a_file_cut_anywhere_is_refused(
    share: float, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"m\.safetensors: not a whole safetensors file"):
        Recogniser.load(path)


@settings(max_examples=60)
@given(where=st.integers(0, 1500), value=st.integers(0, 255))
def test_a_header_with_a_changed_byte_is_refused_or_read(
    where: int, value: int, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing but an InputError comes out, whatever byte of the header is wrong."""
    path = tmp_path_factory.mktemp("changed") / "m.safetensors"
    path.write_bytes(data[:where] + bytes([value]) + data[where + 1 :])
    try:
        found = Recogniser.load(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert found.backbone == "small"


@given(junk=st.binary(max_size=200))
def test_junk_is_refused(junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("junk") / "m.safetensors"
    path.write_bytes(junk)
    with pytest.raises(InputError, match=r"m\.safetensors"):
        Recogniser.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Recogniser.load(tmp_path / "no.safetensors")
    with pytest.raises(InputError, match=str(tmp_path)):
        Recogniser.load(tmp_path)


FACTS: dict[str, Any] = {
    "an unknown backbone": {"backbone": "transformer"},
    "a backbone that is no text": {"backbone": 3},
    "a size it does not take": {"size": [50, 50]},
    "a size of three": {"size": [64, 64, 3]},
    "a size that is no list": {"size": 64},
    "a size of text": {"size": ["64", "64"]},
    "another width": {"dim": 32},
    "a negative width": {"dim": -1},
    "a width of text": {"dim": "16"},
    "a broken width": {"dim": 16.0},
    "a width beyond memory": {"dim": 10**13},
    "thresholds that are a list": {"thresholds": [0.5]},
    "thresholds of text": {"thresholds": {"1e-1": "high"}},
    "thresholds of nothing": {"thresholds": None},
    "about that is a number": {"about": 3},
}


@pytest.mark.parametrize("case", FACTS)
def test_facts_that_cannot_be_are_refused(case: str, model: Recogniser, data: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", model, metadata(data) | FACTS[case])
    with pytest.raises(InputError, match=r"m\.safetensors"):
        Recogniser.load(path)


@pytest.mark.parametrize("missing", ["backbone", "size", "dim", "thresholds", "about"])
def test_missing_facts_are_named(missing: str, model: Recogniser, data: bytes, tmp_path: Path) -> None:
    facts = metadata(data)
    del facts[missing]
    with pytest.raises(InputError, match=rf"not a privfr checkpoint.*{missing}"):
        Recogniser.load(saved(tmp_path / "m.safetensors", model, facts))


@pytest.mark.parametrize("facts", ["", "[]", "3", "null", "{", '"x"'])
def test_facts_of_another_kind_are_refused(facts: str, model: Recogniser, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a privfr checkpoint"):
        Recogniser.load(saved(tmp_path / "m.safetensors", model, facts))


def test_tensors_of_another_program_are_refused(model: Recogniser, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors.numpy.save(model.tensors()))
    with pytest.raises(InputError, match="not a privfr checkpoint"):
        Recogniser.load(path)


def test_tensors_of_another_architecture_are_refused(model: Recogniser, data: bytes, tmp_path: Path) -> None:
    wrong = Recogniser.new("resnet", SIZE).tensors()
    path = saved(tmp_path / "m.safetensors", model, metadata(data), wrong)
    with pytest.raises(InputError, match="another architecture"):
        Recogniser.load(path)


def test_a_missing_and_an_extra_tensor_are_named(model: Recogniser, data: bytes, tmp_path: Path) -> None:
    name = sorted(model.tensors())[0]
    fewer = {key: value for key, value in model.tensors().items() if key != name}
    with pytest.raises(InputError, match=f"{name!r} does not belong"):
        Recogniser.load(saved(tmp_path / "m.safetensors", model, metadata(data), fewer))
    more = model.tensors() | {"zzz": np.zeros(1, np.float32)}
    with pytest.raises(InputError, match="'zzz' does not belong"):
        Recogniser.load(saved(tmp_path / "m.safetensors", model, metadata(data), more))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(
    value: float, model: Recogniser, data: bytes, tmp_path: Path
) -> None:
    tensors = {name: tensor.copy() for name, tensor in model.tensors().items()}
    name = sorted(tensors)[-1]
    tensors[name].flat[0] = value
    with pytest.raises(InputError, match=f"{name!r} is not finite"):
        Recogniser.load(saved(tmp_path / "m.safetensors", model, metadata(data), tensors))


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32])
def test_numbers_of_another_kind_are_refused(
    kind: type, model: Recogniser, data: bytes, tmp_path: Path
) -> None:
    tensors = {name: tensor.astype(kind) for name, tensor in model.tensors().items()}
    with pytest.raises(InputError, match="float32"):
        Recogniser.load(saved(tmp_path / "m.safetensors", model, metadata(data), tensors))


def test_bfloat16_is_refused(model: Recogniser, data: bytes, tmp_path: Path) -> None:
    """numpy has no such kind, and the reader says so in its own way."""
    import safetensors.torch
    import torch

    tensors = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in model.tensors().items()}
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"privfr": json.dumps(metadata(data))}))
    with pytest.raises(InputError, match=r"m\.safetensors"):
        Recogniser.load(path)


def test_save_names_a_place_it_cannot_write(model: Recogniser, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        model.save(tmp_path / "file" / "m.safetensors")
