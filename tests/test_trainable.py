"""A part of the network is trained and shared, and the rest stays as it was pretrained, to the bit."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runs import interrupt_at
from tiny import WHOLE, differing, experiment, facts, models, write_noise, write_people
from torch import nn

from privfr.backends import backend
from privfr.directory import RunDirectory
from privfr.errors import InputError, LocalProtocolError, PolicyRefused
from privfr.faces.backbones import BACKBONES, to_tensor
from privfr.faces.datasets import Faces, load_folder
from privfr.faces.recogniser import Recogniser, embed
from privfr.federation import Coordinator, Member
from privfr.methods import method_of
from privfr.methods.base import FaceModel, class_means, is_private
from privfr.methods.part import Adapter, layers_of, merged
from privfr.methods.supervised import Supervised
from privfr.models import FacePart
from privfr.report import ClientTrained, Report, RoundEnded, Stage
from privfr.runs import resume, run
from privfr.trainer import Learner, layout_of

RANK = 4
LAST = {"12.1.weight", "12.1.bias"}  # of backbone `small`, in a recogniser's file
NORMS = {f"{layer}.{kind}" for layer in (1, 4, 7, 10) for kind in ("weight", "bias")}
# Which tensors of the finished model may differ from the pretrained one, and how many numbers are shared.
PARTS = {
    "last": (LAST, 2048 * 128 + 128),
    "norms": (NORMS, 2 * (32 + 64 + 96 + 128)),
    "adapter": (LAST, 2 * RANK * 128),
}
every_part = pytest.mark.parametrize("part", PARTS)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("data") / "people")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    root = tmp_path_factory.mktemp("data") / "noise"
    return load_folder(write_noise(root, {"Ann": 3, "Bob": 1, "Cid": 2}), (64, 64))


def wanted(people: Path, part: str, **changes: Any) -> Any:
    return experiment(people, WHOLE, method__trainable=part, method__rank=RANK, **changes)


@pytest.fixture(scope="module")
def runs(people: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Report]]:
    """A run of every stage on `plain` for each part, and for the whole."""
    root = tmp_path_factory.mktemp("runs")
    return {part: (root / part, run(wanted(people, part), root / part)) for part in ("all", *PARTS)}


def method(part: str = "adapter", **changes: Any) -> Supervised:
    return method_of(experiment("synthetic", method__trainable=part, method__rank=RANK, **changes))


def stirred(found: Supervised, seed: int = 1) -> FaceModel:
    """A module whose every tensor is off its start."""
    module = found.build(3, 0)
    assert isinstance(module, FaceModel)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


# Whole runs


def moved(directory: Path, name: str) -> set[str]:
    """Tensors in which a published model differs from the pretrained one."""
    found, before = (
        safetensors.torch.load_file(directory / path) for path in (name, "models/pretrained.safetensors")
    )
    assert found.keys() == before.keys()
    return {name for name in found if not torch.equal(found[name], before[name])}


@every_part
def test_only_the_part_moves(part: str, runs: dict[str, tuple[Path, Report]]) -> None:
    directory, _ = runs[part]
    names = ["models/federated.safetensors", "models/centralised.safetensors"]
    names += [f"clients/{client:04d}/individual.safetensors" for client in (0, 1)]
    # The third has one person, and so nothing to tell apart.
    for name in names:
        assert moved(directory, name) == PARTS[part][0], name


@every_part
def test_pretraining_is_of_the_whole_network(part: str, runs: dict[str, tuple[Path, Report]]) -> None:
    found, whole = (models(runs[kind][0]) for kind in (part, "all"))
    for name in ("untrained", "pretrained", "pretraining-state"):
        assert found[f"models/{name}.safetensors"] == whole[f"models/{name}.safetensors"]
    assert runs[part][1].pretrained == runs["all"][1].pretrained
    whole_moved = moved(runs["all"][0], "models/federated.safetensors")
    assert whole_moved == set(safetensors.torch.load_file(runs["all"][0] / "models/untrained.safetensors"))


@every_part
def test_the_part_alone_is_sent(part: str, runs: dict[str, tuple[Path, Report]]) -> None:
    size = PARTS[part][1]
    report, whole = runs[part][1], runs["all"][1]
    assert report.parameters == size < whole.parameters
    for one, other in zip(report.rounds, whole.rounds, strict=True):
        saved = 3 * 4 * (whole.parameters - size)  # three clients, four bytes a number
        assert abs(other.bytes_up - one.bytes_up - saved) < 50
    kept = safetensors.torch.load_file(runs[part][0] / "models" / "round-2.safetensors")
    assert kept["model"].shape == (2 * size,)  # and the velocity


@every_part
def test_a_client_keeps_its_head_and_nothing_else(part: str, runs: dict[str, tuple[Path, Report]]) -> None:
    for client in range(3):
        kept = safetensors.torch.load_file(runs[part][0] / f"clients/{client:04d}/round-2.safetensors")
        assert set(kept) == {"head.weight"}


@every_part
@pytest.mark.parametrize("kind", ["masking", "bfv", "trusted"])
def test_backends_agree(kind: str, part: str, people: Path, tmp_path: Path) -> None:
    """In parallel and serial, whoever evaluates: the server, or with `bfv` a member."""
    changes = {"coding__bits": 0 if kind == "trusted" else 16, "baselines": []}
    run(wanted(people, part, **changes), tmp_path / "plain")
    run(wanted(people, part, federation__backend=kind, engine__workers=2, **changes), tmp_path / kind)
    assert differing(tmp_path / "plain", tmp_path / kind) == []


MOMENTS: dict[str, tuple[Any, ...]] = {
    "round 0 ended": (RoundEnded, 1, lambda event: True),
    "client 2 trains in round 1": (ClientTrained, 3, lambda event: event.client == "2"),
    "an individual trains": (ClientTrained, 2, lambda event: event.client == "0", "individual"),
    "centralised after a round": (Stage, 1, lambda event: event.name == "centralised"),
}


@every_part
@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_equals_uninterrupted(
    moment: str, part: str, people: Path, runs: dict[str, tuple[Path, Report]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(wanted(people, part), tmp_path / "run", interrupt_at(*MOMENTS[moment]))
    report = resume(tmp_path / "run")
    assert differing(tmp_path / "run", runs[part][0]) == []
    assert facts(report) == facts(runs[part][1])


@pytest.mark.parametrize("part", ["adapter", "all"])
def test_a_run_does_not_go_on_from_another_pretrained_model(part: str, people: Path, tmp_path: Path) -> None:
    """What is frozen comes from it at every resume; its start is that of the baselines."""
    place = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(wanted(people, part), place, interrupt_at(RoundEnded, 1, lambda event: True))
    (place / "models" / "pretrained.safetensors").write_bytes(
        (place / "models" / "untrained.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match=r"pretrained\.safetensors: not the model this run was begun with"):
        resume(place)


def test_a_start_without_pretraining_is_the_untrained_network(people: Path, tmp_path: Path) -> None:
    changes = {"pretraining__epochs": 0, "data__public": 0, "baselines": []}
    run(wanted(people, "last", **changes), tmp_path / "run")
    before, after = (
        safetensors.torch.load_file(tmp_path / "run" / "models" / f"{name}.safetensors")
        for name in ("untrained", "federated")
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == LAST


def test_the_published_model_is_the_trained_one(people: Path, runs: dict[str, tuple[Path, Report]]) -> None:
    """An ordinary backbone embeds as backbone and adapter did."""
    directory, _ = runs["adapter"]
    module = method(data__size=(64, 64)).build(1, 0)
    assert isinstance(module, FaceModel)
    state = Recogniser.load(directory / "models" / "pretrained.safetensors").tensors()
    module.backbone.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in state.items()})
    found = safetensors.torch.load_file(directory / "models" / "round-2.safetensors")["model"].numpy()
    layout = layout_of(method())
    tensors = {name: torch.tensor(tensor) for name, tensor in layout.restore(found[: layout.size]).items()}
    module.load_state_dict(tensors, strict=False)
    images = load_folder(people, (64, 64)).images
    deployed = Recogniser.load(directory / "models" / "federated.safetensors")
    unmerged = embed(nn.Sequential(module.backbone, module.adapter), images)
    assert np.abs(deployed.embed(images) - unmerged).max() < 1e-5
    assert np.abs(embed(module.backbone, images) - unmerged).max() > 1e-3, "an adapter that does something"


# The adapter


def test_an_adapter_starts_as_the_identity_from_its_seed() -> None:
    before = torch.get_rng_state()
    one, same, other = Adapter(32, 4, 0), Adapter(32, 4, 0), Adapter(32, 4, 1)
    assert torch.equal(before, torch.get_rng_state())
    embedding = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(embedding), embedding)
    assert {name: tuple(t.shape) for name, t in one.state_dict().items()} == {
        "down.weight": (4, 32),
        "up.weight": (32, 4),
    }
    assert torch.equal(one.down.weight, same.down.weight)
    assert not torch.equal(one.down.weight, other.down.weight)


@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 40),
    st.floats(-3, 3),
)
@settings(max_examples=60, deadline=None)
def test_merging_changes_nothing(seed: int, dim: int, rank: int, inputs: int, size: float) -> None:
    """(W + U D W) x + (b + U D b) is e + U D e of e = W x + b, for adapters small and large."""
    rng = np.random.default_rng(seed)
    weight, bias, down, up, x = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((dim, inputs), (dim,), (rank, dim), (dim, rank), (inputs,))
    )
    up *= np.float32(10.0**size)
    embedding = weight.astype(np.float64) @ x + bias
    expected = embedding + up.astype(np.float64) @ (down @ embedding)
    found = merged(weight, down, up).astype(np.float64) @ x + merged(bias, down, up)
    # Each number of the merged layer is rounded once; that is all that may differ.
    room = np.abs(merged(weight, down, up)) @ np.abs(x) + np.abs(merged(bias, down, up))
    assert (np.abs(found - expected) <= 2**-23 * room + 1e-9 * np.abs(expected).max()).all()
    np.testing.assert_array_equal(merged(weight, down, 0 * up), weight)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_takes_an_adapter_in(name: str) -> None:
    """With a bias in its last layer or without."""
    size = BACKBONES[name].sizes[0]
    found = method(model__backbone=name, model__dim=32, data__size=size)
    module = stirred(found)
    tensors = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    deployed = Recogniser.new(name, size, 32)
    deployed.load_tensors(found.deployed(tensors))
    expected = embed(nn.Sequential(module.backbone, module.adapter), images)
    assert np.abs(deployed.embed(images) - expected).max() < 1e-5
    assert np.abs(embed(module.backbone, images) - expected).max() > 1e-3


def test_the_head_starts_at_the_means_of_adapted_embeddings(faces: Faces) -> None:
    module = stirred(method())
    method().start(module, faces, True)
    means = class_means(nn.Sequential(module.backbone, module.adapter), faces)
    cosine = nn.functional.cosine_similarity(module.head.weight.detach(), means)
    torch.testing.assert_close(cosine, torch.ones(3))
    bare = nn.functional.cosine_similarity(module.head.weight.detach(), class_means(module.backbone, faces))
    assert float(bare.min()) < 0.999


def test_the_adapter_computes_in_float32_under_autocast(faces: Faces) -> None:
    """What it adds is small beside the embedding, and would drown in eight bits."""
    module, kinds = stirred(method()), []
    module.adapter.register_forward_hook(lambda layer, given, found: kinds.append(found.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        method().loss(module, to_tensor(faces.images), torch.from_numpy(faces.labels))
    assert kinds == [torch.float32]


# Three kinds of tensors


@every_part
@pytest.mark.parametrize("head", ["cosface", "sphereface2"])
@pytest.mark.parametrize("name", ["small", "resnet", "mobilefacenet"])
def test_each_tensor_is_of_one_kind(name: str, head: str, part: str) -> None:
    found = method(part, model__backbone=name, method__head=head, data__size=BACKBONES[name].sizes[0])
    names = set(found.build(3, 0).state_dict())
    shared = {each for each in names if found.shared(each)}
    frozen = {each for each in names if found.frozen(each)}
    private = {each for each in names if is_private(found, each)}
    assert shared | frozen | private == names
    assert len(shared) + len(frozen) + len(private) == len(names)
    assert {each.partition(".")[0] for each in private} == {"head"}
    assert shared and {each.partition(".")[0] for each in frozen} == {"backbone"}
    assert (part == "adapter") == any(each.startswith("adapter.") for each in names)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_last_linear_layer_makes_the_embedding(name: str) -> None:
    size = BACKBONES[name].sizes[0]
    network = BACKBONES[name].build(size, 24)
    last = layers_of(name, size, 24, "Linear")[-1]
    assert list(network.modules())[-1] is network.get_submodule(last)
    assert all(isinstance(network.get_submodule(each), nn.GroupNorm)
               for each in layers_of(name, size, 24, "GroupNorm"))  # fmt: skip


@pytest.mark.parametrize("name", ["sphere20", "sphere64"])
def test_a_network_without_norms_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"method\.trainable: sphere.. has no norms"):
        method("norms", model__backbone=name, data__size=(112, 96)).build(1, 0)


# The learner, and what the members agree on


def learner(found: FacePart, faces: Faces, client: int = 0, **changes: Any) -> Learner:
    training = experiment("synthetic", training__batch=3, training__device="cpu", **changes).training
    return Learner(client, found.method, faces, training, found.layout, 2, 0, frozen=found.frozen)


def pretrained(seed: int) -> Recogniser:
    return Recogniser.new("small", (64, 64), seed=seed)


@every_part
def test_a_learner_trains_the_part_beside_what_it_was_given(part: str, faces: Faces) -> None:
    """Also after another one, on the same worker, whose frozen tensors are others."""
    ours, theirs = (FacePart(method(part), 0, pretrained(seed)) for seed in (7, 8))
    first = learner(ours, faces).learn(ours.start, 0).vector
    other = learner(theirs, faces).learn(theirs.start, 0).vector
    np.testing.assert_array_equal(learner(ours, faces).learn(ours.start, 0).vector, first)
    assert first.shape == (ours.layout.size,) and not np.array_equal(first, other)
    module = learner(ours, faces)._module(ours.start)
    grads = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert grads == set(ours.frozen)
    for name, tensor in ours.frozen.items():
        assert torch.equal(module.state_dict()[name], tensor), name


@every_part
def test_a_learner_makes_no_frozen_tensor_up(part: str, faces: Faces) -> None:
    found = FacePart(method(part), 0, pretrained(7))
    one = learner(found, faces)
    name = max(one.frozen)
    one.frozen = {each: tensor for each, tensor in one.frozen.items() if each != name}
    with pytest.raises(LocalProtocolError, match=name):
        one.learn(found.start, 0)


@every_part
def test_a_run_trains_beside_the_pretrained_network(
    part: str, people: Path, runs: dict[str, tuple[Path, Report]]
) -> None:
    """What a client made alone can be made again from the pretrained model's file."""
    directory, experiment = runs[part][0], wanted(people, part)
    parts = RunDirectory(directory).split()
    found = FacePart(method_of(experiment), 0, Recogniser.load(directory / "models/pretrained.safetensors"))
    faces = parts.faces_of(load_folder(people, (64, 64)), 0)
    one = Learner(0, found.method, faces, experiment.training, found.layout, 2, 0, frozen=found.frozen)
    model = found.start
    for round in range(2):
        model = model + one.learn(model, round).vector
    made = Recogniser.load(directory / "clients/0000/individual.safetensors").tensors()
    again = found.recogniser(model).tensors()
    assert all(np.array_equal(again[name], made[name]) for name in made)


@every_part
def test_a_learner_of_the_whole_is_untouched_by_one_of_a_part(part: str, faces: Faces) -> None:
    whole, found = FacePart(method("all"), 0), FacePart(method(part), 0, pretrained(7))
    before = learner(whole, faces).learn(whole.start, 0).vector
    learner(found, faces).learn(found.start, 0)
    np.testing.assert_array_equal(learner(whole, faces).learn(whole.start, 0).vector, before)


@every_part
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_part_learns(precision: str, part: str, faces: Faces) -> None:
    found = FacePart(method(part), 0)
    one = learner(found, faces, training__epochs=30, training__precision=precision, training__shift=0)
    losses: list[float] = []
    one.stepped = lambda done, total, loss: losses.append(loss)
    one.learn(found.start, 0)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_the_digest_is_the_layouts_where_nothing_is_frozen() -> None:
    whole = FacePart(method("all"), 0, pretrained(7))
    assert whole.frozen == {}
    assert whole.digest == whole.layout.digest == layout_of(method("all")).digest


@every_part
def test_the_digest_commits_to_each_frozen_tensor(part: str) -> None:
    found = FacePart(method(part), 0, pretrained(7))
    assert found.digest == FacePart(method(part), 0, pretrained(7)).digest != found.layout.digest
    for name in found.frozen:
        altered = pretrained(7)
        with torch.no_grad():
            altered.network.get_parameter(name.removeprefix("backbone.")).add_(1e-3)
        assert FacePart(method(part), 0, altered).digest != found.digest, name


@every_part
def test_a_member_refuses_a_round_beside_other_frozen_tensors(part: str, faces: Faces) -> None:
    """Though layout, experiment and the model that is trained from are the same."""
    plain, config, roster = backend("plain"), b"c" * 32, (0, 1)
    keyring, keyrings = plain.provision(roster, secrets.token_bytes)
    ours, theirs = (FacePart(method(part), 0, pretrained(seed)) for seed in (7, 8))
    coordinator = Coordinator(
        run=b"r" * 16, backend=plain, keyring=keyring, roster=roster, threshold=2, layout=theirs.digest,
        config=config, metrics=("loss",), model=theirs.start,
    )  # fmt: skip
    begin = coordinator.open()
    for found, accepts in ((theirs, True), (ours, False)):
        member = Member(
            client=0, backend=plain, keyring=keyrings[0], learner=learner(found, faces), layout=found.digest,
            config=config, metrics=("loss",), entropy=secrets.token_bytes,
        )  # fmt: skip
        if accepts:
            assert member.receive(begin[0])
        else:
            with pytest.raises(PolicyRefused, match="layout"):
                member.receive(begin[0])
