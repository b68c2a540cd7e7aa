"""Imposters within a run: the generator goes the model's way, over any backend, under any budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tiny import TINY, differing, experiment, facts, tensors, write_people

from privfr.errors import InputError
from privfr.faces.sources import load_faces
from privfr.faces.verification import likeness
from privfr.imposters.gan import Generator
from privfr.imposters.pool import made_by, others, too_like
from privfr.models import own_eer
from privfr.report import Event, Report, RoundEnded, collapse, collapsing
from privfr.runs import resume, run

SMALL = TINY | {
    "imposters.source": "federated", "imposters.rounds": 2, "imposters.width": 8, "imposters.latent": 8,
    "imposters.ratio": 1.0, "federation.threshold": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "people", 12, 5)


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run that nobody interrupted, with everything."""
    place = tmp_path_factory.mktemp("runs") / "whole"
    wanted = experiment(people, SMALL, data__holdout=2, baselines=["individual", "centralised"])
    return place, run(wanted, place)


def test_a_run_with_imposters_has_a_generator_and_says_so(whole: tuple[Path, Report]) -> None:
    place, report = whole
    found = report.imposters
    assert found and found.finished and len(found.rounds) == 2 and found.source == "federated"
    made = Generator.load(place / "models" / "generator.safetensors")
    assert found.parameters == sum(p.numel() for p in made.parameters())
    assert report.alike is not None and 0 <= report.alike <= 1
    private = set(tensors(place / "clients" / "0000" / "imposters-2.safetensors"))
    assert private and all(name.startswith("discriminator.") for name in private)
    assert len(report.likeness) == 1 + len(report.rounds)


def test_each_clients_own_people_are_measured_by_every_model(whole: tuple[Path, Report]) -> None:
    own = whole[1].own
    assert own and own.individual
    for each in (own.start, own.federated, own.individual):
        assert len(each.eer) == 3 and all(0 <= value <= 1 for value in each.eer)
    assert own.start.eer != own.federated.eer != own.individual.eer


CODED = SMALL | {"coding.bits": 16}


@pytest.fixture(scope="module")
def in_clear(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose server adds up integers that it sees."""
    place = tmp_path_factory.mktemp("runs") / "clear"
    run(experiment(people, CODED), place)
    return place


@pytest.mark.parametrize("backend", ["masking", "masking-passive", "bfv", "ckks"])
def test_generator_and_model_are_those_of_integers_in_clear_to_the_bit(
    backend: str, people: Path, in_clear: Path, tmp_path: Path
) -> None:
    run(experiment(people, CODED, federation__backend=backend), tmp_path / "hidden")
    for name in ("generator", "federated"):
        file = Path("models") / f"{name}.safetensors"
        assert tensors(in_clear / file) == tensors(tmp_path / "hidden" / file)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_equals_uninterrupted(
    stop: int, people: Path, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    """Broken off in the generator's rounds, between both trainings, and in the model's rounds."""
    seen = 0

    def leave(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, RoundEnded)
        if seen == stop:
            raise KeyboardInterrupt

    wanted = experiment(people, SMALL, data__holdout=2, baselines=["individual", "centralised"])
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "run", leave)
    report = resume(tmp_path / "run")
    assert differing(tmp_path / "run", whole[0]) == []
    assert facts(report) == facts(whole[1])


def test_workers_change_nothing(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    wanted = experiment(
        people, SMALL, data__holdout=2, baselines=["individual", "centralised"], engine__workers=3
    )
    run(wanted, tmp_path / "run")
    assert differing(tmp_path / "run", whole[0]) == []


@pytest.mark.parametrize("source", ["public", "device", "real"])
def test_the_other_sources(source: str, people: Path, tmp_path: Path) -> None:
    wanted = experiment(people, SMALL, imposters__source=source, data__public=2)
    report = run(wanted, tmp_path / "run")
    own = list(tmp_path.glob("run/clients/*/generator.safetensors"))
    assert len(own) == (3 if source == "device" else 0)
    assert (tmp_path / "run/models/generator.safetensors").exists() == (source == "public")
    assert (report.imposters is None) == (source == "real")
    assert facts(resume(tmp_path / "run")) == facts(report)


def test_a_generator_can_be_given(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    """As a file, it gives the model of the run that trained it."""
    model = str(whole[0] / "models" / "generator.safetensors")
    report = run(experiment(people, SMALL, imposters__model=model, data__holdout=2), tmp_path / "run")
    assert report.imposters is None
    name = "models/federated.safetensors"
    assert tensors(tmp_path / "run" / name) == tensors(whole[0] / name)


@pytest.mark.parametrize("level", ["client", "example", "both"])
def test_generator_and_model_spend_of_one_budget(level: str, people: Path, tmp_path: Path) -> None:
    budget = {
        "privacy.level": level, "privacy.accountant": "rdp", "privacy.corruption": 0.0,
        "federation.backend": "masking", "privacy.epsilon": 8.0,
    }  # fmt: skip
    after: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, RoundEnded):
            stated = Report.load(tmp_path / "run" / "report.json").privacy
            after.append(max(each.epsilon for each in stated))

    report = run(experiment(people, SMALL | budget), tmp_path / "run", watch)
    assert len(after) == 4 and all(b > a for a, b in itertools.pairwise(after))
    for each in report.privacy:
        assert 0.9 * 8 < each.epsilon <= 8 * (1 + 1e-9), "the planned rounds of both are what noise is for"
    assert not report.stopped
    assert report.alike is None or level == "client", "to look at its own people would be without noise"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imposters.source": "public"}, "imposters.source: public needs public identities"),
        ({"imposters.source": "real", "privacy.level": "client"}, "imposters.source: real shows"),
        ({"imposters.source": "device", "privacy.level": "example"}, "imposters.source: device trains"),
        ({"imposters.source": "none", "imposters.model": "x"}, "imposters.model: a generator, and"),
        ({"imposters.model": "x.safetensors"}, "x.safetensors: no such file"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    changes: dict[str, Any], message: str, people: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(experiment(people, SMALL | changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_real_imposters_are_other_clients_people(people: Path) -> None:
    faces = load_faces(people, (64, 64))
    clients = [faces.of(faces.names[:2]), faces.of(faces.names[2:4]), faces.of(faces.names[3:5])]
    drawn = others(clients, 1, 100, 0)
    mine = {picture.tobytes() for picture in clients[1].images}
    assert len(drawn) == 15, "all of the first client's, and of the third's only the person it alone has"
    assert not mine & {picture.tobytes() for picture in drawn}
    assert len(others(clients, 1, 4, 0)) == 4


def test_imposters_like_the_owner_are_told(whole: tuple[Path, Report]) -> None:
    """The owner's own pictures, turned a little, are; random directions are not."""
    rng = np.random.default_rng(0)
    own = np.array([1.0, *[0.0] * 63]) + 0.05 * rng.standard_normal((20, 64))
    more = np.array([1.0, *[0.0] * 63]) + 0.05 * rng.standard_normal((50, 64))
    strangers = rng.standard_normal((50, 64))

    def unit(x: Any) -> Any:
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    assert too_like(unit(more), unit(own)).mean() > 0.2
    assert not too_like(unit(strangers), unit(own)).any()
    assert not too_like(unit(strangers), unit(own[:1])).any()


def test_made_pictures_take_the_size_of_the_run(whole: tuple[Path, Report]) -> None:
    made = Generator.load(whole[0] / "models" / "generator.safetensors")
    small, large = made_by(made, 3, 7, (64, 64)), made_by(made, 3, 7, (112, 96))
    assert small.shape == (3, 64, 64, 3) and large.shape == (3, 112, 96, 3)
    assert np.abs(large.mean((1, 2)) - small.mean((1, 2))).max() < 4


def test_likeness_is_the_mean_cosine_of_different_people() -> None:
    rng = np.random.default_rng(1)
    embeddings = rng.standard_normal((30, 8)).astype(np.float32)
    labels = rng.integers(0, 5, 30)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    apart = labels[:, None] != labels
    assert likeness(embeddings, labels) == pytest.approx(float((units @ units.T)[apart].mean()), abs=1e-6)
    assert likeness(np.ones((4, 3)), np.array([0, 0, 1, 1])) == pytest.approx(1.0)


def test_a_collapse_is_told_from_a_start(whole: tuple[Path, Report]) -> None:
    assert collapsing([0.1, 0.93, 0.95]) and collapsing([0.1, 0.5, 0.91, 0.91])
    assert not collapsing([0.97, 0.98]), "what an untrained network may do"
    assert not collapsing([0.97, 0.98, 0.95]), "training takes it down"
    assert not collapsing([0.1, 0.3, 0.5])
    report = msgspec.structs.replace(whole[1], likeness=[0.1, 0.95, 0.96], collapsed=2)
    assert "after round 2" in collapse(report) and "0.960" in collapse(report)
    assert collapse(msgspec.structs.replace(report, collapsed=0)) == ""
    assert collapse(msgspec.structs.replace(report, likeness=[0.1, 0.95, 0.96, 0.2])) == ""


def test_own_eer_by_hand() -> None:
    """A model that sees only brightness: its people are told by it, or not."""
    torch.manual_seed(0)

    class Brightness:
        def embed(self, images: Any) -> Any:
            level = images.astype(np.float64).mean((1, 2, 3)) / 255
            return np.stack([np.cos(level), np.sin(level)], 1).astype(np.float32)

    def of(*levels: int) -> Any:
        images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])
        return type("Some", (), {"images": images, "labels": np.zeros(len(levels), np.int64)})()

    found: Any = Brightness()
    assert own_eer(found, of(200, 210), of(205), of(10, 20, 30)) == 0.0
    assert own_eer(found, of(200, 210), of(20), of(199, 205)) == 1.0
