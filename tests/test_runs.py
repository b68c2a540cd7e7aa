"""Runs that must come to one result, to the bit: over backends, workers, interruptions, orders."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import TINY, WHOLE, differing, experiment, facts, models, write_people

from privfr.errors import InputError
from privfr.experiment import Experiment
from privfr.faces.datasets import Faces, load_folder
from privfr.methods import method_of
from privfr.report import ClientTrained, Event, Measured, Report, RoundEnded, Stage
from privfr.runs import resume, run
from privfr.trainer import Learner, layout_of, shared_vector


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("data") / "people")


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run of every stage that nobody interrupted, serial, on `plain`."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, run(experiment(people, WHOLE), directory)


LOSSY = TINY | {"engine.losses": 0.3, "federation.rounds": 4, "federation.threshold": 2, "seed": 1}


@pytest.fixture(scope="module")
def lossy(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A serial run in which messages get lost in every phase."""
    directory = tmp_path_factory.mktemp("lossy") / "run"
    return directory, run(lossy_experiment(people), directory)


def lossy_experiment(people: Path, **changes: Any) -> Experiment:
    return experiment(people, LOSSY, **changes)


# One result whatever the backend and however parallel


def test_the_comparison_can_fail(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    run(experiment(people, WHOLE, seed=5), tmp_path / "other")
    found = differing(tmp_path / "other", whole[0])
    assert {"models/federated.safetensors", "models/pretrained.safetensors"} <= set(found)
    assert "clients/0000/round-2.safetensors" in found


def test_a_run_leaves_every_model(whole: tuple[Path, Report]) -> None:
    names = ("untrained", "pretrained", "federated", "centralised")
    found = models(whole[0])
    assert {f"models/{name}.safetensors" for name in names} <= set(found)
    for client in range(3):
        assert found[f"clients/{client:04d}/round-2.safetensors"], "a client has its head"
        assert found[f"clients/{client:04d}/individual.safetensors"]
    distinct = {tuple(sorted(found[f"models/{name}.safetensors"].items())) for name in names}
    assert len(distinct) == 4


def test_trusted_equals_plain(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    report = run(experiment(people, WHOLE, federation__backend="trusted"), tmp_path / "trusted")
    assert differing(tmp_path / "trusted", whole[0]) == []
    assert report.eer == whole[1].eer
    assert report.final == whole[1].final
    assert (whole[1].server_learns, report.server_learns) == ("updates", "sum")


CODED = WHOLE | {"coding.bits": 16, "federation.rounds": 3}


@pytest.fixture(scope="module")
def coded(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A serial run on `plain` whose updates are added up as whole numbers."""
    directory = tmp_path_factory.mktemp("coded") / "run"
    return directory, run(experiment(people, CODED), directory)


@pytest.mark.parametrize(
    ("backend", "workers"),
    [
        ("masking", 1), ("masking", 3), ("masking-passive", 1),
        ("bfv", 1), ("bfv", 3), ("ckks", 1), ("bfv-authority", 1), ("ckks-authority", 3),
    ],
)  # fmt: skip
def test_every_backend_that_hides_updates_is_lossless(
    backend: str, workers: int, people: Path, coded: tuple[Path, Report], tmp_path: Path
) -> None:
    """What the server may not see adds up to what `plain` makes of the same numbers, in every round."""
    wanted = experiment(people, CODED, federation__backend=backend, engine__workers=workers)
    report = run(wanted, tmp_path / "run")
    assert differing(tmp_path / "run", coded[0]) == []
    assert report.eer == coded[1].eer
    assert [round.metrics for round in report.rounds] == [round.metrics for round in coded[1].rounds]
    assert [round.error for round in report.rounds] == [round.error for round in coded[1].rounds]


def test_coding_changes_no_number_by_more_than_it_says(
    people: Path, coded: tuple[Path, Report], tmp_path: Path
) -> None:
    """The first round trains from one model on both sides, so that its aggregates can be compared."""
    wanted = {"federation.rounds": 1, "federation.momentum": 0.0, "baselines": []}
    found = []
    for name, bits in (("floats", 0), ("integers", 16)):
        report = run(experiment(people, WHOLE | wanted | {"coding.bits": bits}), tmp_path / name)
        model = safetensors.torch.load_file(tmp_path / name / "models" / "federated.safetensors")
        found.append((report.rounds[0], torch.cat([tensor.flatten() for tensor in model.values()])))
    (exact, floats), (rounded, integers) = found
    assert exact.error == 0 < rounded.error < 1e-4
    assert rounded.saturated == 0
    worst = float((floats - integers).abs().max())
    assert 0 < worst <= rounded.error + 1e-6  # the models' own float32


def test_masking_with_losses_in_every_phase(people: Path, tmp_path: Path) -> None:
    changes = {"data.clients": 6, "data.test": 3, "engine.losses": 0.06, "federation.rounds": 6, "seed": 1}
    wanted = TINY | changes | {"federation.backend": "masking"}
    report = run(experiment(people, wanted), tmp_path / "run")
    where = {phase for round in report.rounds for phase in round.dropped.values()}
    assert len(where) >= 4, "take another seed"
    assert sum(not round.failed for round in report.rounds) >= 3
    assert all("needed" in round.failed for round in report.rounds if round.failed)


def test_masking_resumed_equals_uninterrupted(
    people: Path, coded: tuple[Path, Report], tmp_path: Path
) -> None:
    wanted = experiment(people, CODED, federation__backend="masking")
    with pytest.raises(KeyboardInterrupt):
        run(
            wanted,
            tmp_path / "run",
            interrupt_at(ClientTrained, 2, lambda event: event.client == "1", "federated"),
        )
    resume(tmp_path / "run")
    assert differing(tmp_path / "run", coded[0]) == []


@pytest.mark.parametrize("backend", ["plain", "trusted"])
@pytest.mark.parametrize("workers", [2, 3])
def test_parallel_equals_serial(
    backend: str, workers: int, people: Path, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    wanted = experiment(people, WHOLE, federation__backend=backend, engine__workers=workers)
    report = run(wanted, tmp_path / "run")
    assert differing(tmp_path / "run", whole[0]) == []
    assert report.individual == whole[1].individual


def test_dropouts_hit_several_phases(lossy: tuple[Path, Report]) -> None:
    """The seed of the tests below is one that shows something."""
    rounds = lossy[1].rounds
    assert {phase for round in rounds for phase in round.dropped.values()} == {"contribute", "result"}
    assert any(not round.failed for round in rounds)


@pytest.mark.parametrize(("backend", "workers"), [("plain", 3), ("trusted", 1), ("trusted", 3)])
def test_dropouts_are_those_of_the_seed(
    backend: str, workers: int, people: Path, lossy: tuple[Path, Report], tmp_path: Path
) -> None:
    wanted = lossy_experiment(people, federation__backend=backend, engine__workers=workers)
    report = run(wanted, tmp_path / "run")
    assert differing(tmp_path / "run", lossy[0]) == []
    assert [sorted(round.dropped) for round in report.rounds] == [
        sorted(round.dropped) for round in lossy[1].rounds
    ]
    assert [round.missed for round in report.rounds] == [round.missed for round in lossy[1].rounds]


def test_dropout_in_one_phase_only(people: Path, tmp_path: Path) -> None:
    wanted = lossy_experiment(people, engine__phases=["result"])
    report = run(wanted, tmp_path / "run")
    phases = {phase for round in report.rounds for phase in round.dropped.values()}
    assert phases == {"result"}
    assert [round.survivors for round in report.rounds] == [3, 3, 3, 3]
    missed = [round.missed for round in report.rounds]
    assert any(missed)


def test_a_client_that_missed_a_result_is_sent_the_model(lossy: tuple[Path, Report]) -> None:
    rounds = lossy[1].rounds
    model = 2 * 4 * lossy[1].parameters  # with its velocity
    for before, after in pairwise(rounds):
        assert after.phases[0].bytes_down // model == len(before.missed)


# Interruptions


def interrupt_at(
    kind: type[Event], number: int, where: Callable[[Any], bool], stage: str = ""
) -> Callable[[Event], None]:
    """Interrupt at the n-th event of a kind for which `where` holds, once a stage (any if "") is reached."""
    seen, reached = 0, not stage

    def observe(event: Event) -> None:
        nonlocal seen, reached
        reached = reached or (isinstance(event, Stage) and event.name == stage)
        if reached and isinstance(event, kind) and where(event):
            seen += 1
            if seen == number:
                raise KeyboardInterrupt

    return observe


MOMENTS: dict[str, tuple[Any, ...]] = {
    "untrained measured": (Measured, 1, lambda event: event.model == "untrained"),
    "pretraining, in its first epoch": (ClientTrained, 1, lambda event: event.client == "pretraining"),
    "pretraining, after its first epoch": (Stage, 1, lambda event: event.name == "pretraining"),
    "pretraining, in its second epoch": (ClientTrained, 2, lambda event: event.client == "pretraining"),
    "pretrained measured": (Measured, 1, lambda event: event.model == "pretrained"),
    "federation opened": (Stage, 1, lambda event: event.name == "federated"),
    "client 1 trains in round 0": (ClientTrained, 1, lambda event: event.client == "1"),
    "client 2 trains in round 1": (ClientTrained, 3, lambda event: event.client == "2"),
    "round 0 ended": (RoundEnded, 1, lambda event: True),
    "round 1 ended": (RoundEnded, 2, lambda event: True),
    "federated measured": (Measured, 1, lambda event: event.model == "federated"),
    "an individual trains": (ClientTrained, 2, lambda event: event.client == "0", "individual"),
    "one individual done": (Stage, 2, lambda event: event.name == "individual"),
    "all individuals done": (Stage, 4, lambda event: event.name == "individual"),
    "centralised trains": (ClientTrained, 2, lambda event: event.client == "centralised"),
    "centralised after a round": (Stage, 1, lambda event: event.name == "centralised"),
    "centralised measured": (Measured, 1, lambda event: event.model == "centralised"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_equals_uninterrupted(
    moment: str, people: Path, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(experiment(people, WHOLE), tmp_path / "run", interrupt_at(*MOMENTS[moment]))
    report = resume(tmp_path / "run")
    assert differing(tmp_path / "run", whole[0]) == []
    assert facts(report) == facts(whole[1])
    assert report.finished


def test_resumed_again_and_again(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    """Interrupted every few events, in parallel, until nothing is left to do."""

    def impatient(patience: int) -> Callable[[Event], None]:
        seen = 0

        def observe(event: Event) -> None:
            nonlocal seen
            if isinstance(event, ClientTrained) or (isinstance(event, Stage) and event.name == "pictures"):
                return
            seen += 1
            if seen == patience:
                raise KeyboardInterrupt

        return observe

    place, interruptions, report = tmp_path / "run", 0, None
    while report is None and interruptions < 20:
        observe = impatient(3 + interruptions // 4)
        try:
            if interruptions:
                report = resume(place, observe)
            else:
                report = run(experiment(people, WHOLE, engine__workers=3), place, observe)
        except KeyboardInterrupt:
            interruptions += 1
    assert report is not None and interruptions >= 3
    assert differing(place, whole[0]) == []
    assert facts(report) == facts(whole[1])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_resumed_with_dropouts(number: int, people: Path, lossy: tuple[Path, Report], tmp_path: Path) -> None:
    """Who missed a result, and so is sent the model, outlasts the process."""
    with pytest.raises(KeyboardInterrupt):
        run(lossy_experiment(people), tmp_path / "run", interrupt_at(RoundEnded, number, lambda _: True))
    report = resume(tmp_path / "run")
    assert differing(tmp_path / "run", lossy[0]) == []
    assert facts(report) == facts(lossy[1])


@pytest.mark.parametrize("number", [1, 2])
def test_resumed_with_momentum(number: int, people: Path, tmp_path: Path) -> None:
    """The velocity outlasts the process as the model does; parallel `trusted` for good measure."""
    momentum = {"federation__momentum": 0.7, "federation__rounds": 3}
    report = run(experiment(people, **momentum), tmp_path / "one")
    wanted = experiment(people, **momentum, federation__backend="trusted", engine__workers=3)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "other", interrupt_at(RoundEnded, number, lambda _: True))
    again = resume(tmp_path / "other")
    assert differing(tmp_path / "one", tmp_path / "other") == []
    assert again.eer == report.eer
    plain = run(experiment(people, federation__rounds=3), tmp_path / "plain")
    assert plain.eer != report.eer or differing(tmp_path / "one", tmp_path / "plain")


def test_resume_of_a_finished_run_trains_nothing(whole: tuple[Path, Report]) -> None:
    events: list[Event] = []
    report = resume(whole[0], events.append)
    assert facts(report) == facts(whole[1])
    assert not [event for event in events if isinstance(event, ClientTrained)]


def test_run_refuses_a_directory_in_use(people: Path, whole: tuple[Path, Report]) -> None:
    with pytest.raises(InputError, match="--resume"):
        run(experiment(people), whole[0])


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="privfr run"):
        resume(tmp_path)


# What a client keeps to itself


def learners(people: Path, head: str) -> tuple[list[Learner], np.ndarray]:
    """Three clients with as many people each, so that a worker's module serves them all."""
    faces = load_folder(people, (64, 64))
    method = method_of(experiment(people, method__head=head))
    layout = layout_of(method)
    training = experiment(people).training
    groups: list[Faces] = [faces.of(faces.names[i : i + 2]) for i in (0, 2, 4)]
    made = [Learner(i, method, group, training, layout, 2, 0) for i, group in enumerate(groups)]
    return made, shared_vector(method.build(1, 0), method, layout)


@pytest.mark.parametrize("head", ["cosface", "arcface", "softmax", "sphereface2"])
def test_nothing_of_one_client_reaches_the_next_on_its_worker(head: str, people: Path) -> None:
    """The released code of FedFace lets the last client's head linger; here the order changes nothing."""
    found = []
    for order in ((0, 1, 2), (2, 1, 0)):
        made, start = learners(people, head)
        updates = {client: made[client].learn(start, 0) for client in order}
        found.append((made, updates))
    (first, one), (second, other) = found
    for client in range(3):
        np.testing.assert_array_equal(one[client].vector, other[client].vector)
        assert one[client].metrics == other[client].metrics
        assert first[client].private.keys() == second[client].private.keys() != set()
        for name, tensor in first[client].private.items():
            assert torch.equal(tensor, second[client].private[name]), name


def test_sphereface2_learns_a_private_bias(people: Path) -> None:
    """The case above is a real one: there is a tensor that no class mean overwrites."""
    made, start = learners(people, "sphereface2")
    fresh = made[0].method.build(2, 0).state_dict()
    made[0].learn(start, 0)
    moved = {name for name, tensor in made[0].private.items() if not torch.equal(tensor, fresh[name])}
    assert any("bias" in name for name in moved), moved


@pytest.mark.parametrize("head", ["softmax", "sphereface2"])
def test_heads_resume(head: str, people: Path, tmp_path: Path) -> None:
    wanted = experiment(people, method__head=head, engine__workers=2)
    run(wanted, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "other", interrupt_at(RoundEnded, 1, lambda _: True))
    resume(tmp_path / "other")
    assert differing(tmp_path / "one", tmp_path / "other") == []


def test_models_hold_no_head_and_private_files_are_private(whole: tuple[Path, Report]) -> None:
    for path in (whole[0] / "models").glob("*.safetensors"):
        held = set(safetensors.torch.load_file(path))
        if path.name in ("pretraining-state.safetensors", "centralised-state.safetensors"):
            continue  # states of training in one place, which hold all that training needs
        assert not [name for name in held if "head" in name], path.name
    for name in ("round-2.safetensors", "training.safetensors"):
        path = whole[0] / "clients" / "0000" / name
        assert path.stat().st_mode & 0o077 == 0, name


# Ways to deal the faces out


@pytest.mark.parametrize("scheme", ["one", "dirichlet"])
def test_scheme(scheme: str, people: Path, tmp_path: Path) -> None:
    wanted = experiment(people, data__scheme=scheme, federation__rounds=1, data__clients=4)
    report = run(wanted, tmp_path / "run")
    assert report.finished
    assert report.final is not None and 0 <= report.final.eer <= 1
    assert report.rounds[0].survivors == 4
    if scheme == "one":
        assert report.people["clients"] == 4


def test_training_teaches(people: Path, tmp_path: Path) -> None:
    report = run(experiment(people, federation__rounds=4, training__epochs=2), tmp_path / "run")
    losses = [round.metrics["loss"] for round in report.rounds]
    assert losses[-1] < losses[0]
    assert report.overhead == report.profile.overhead > 0


# Ctrl-C, and what a start that was killed leaves behind


@pytest.mark.parametrize("stage", ["federated", "individual"])
def test_ctrl_c_ends_clients_at_their_next_step(stage: str, people: Path, tmp_path: Path) -> None:
    """Not at the end of their training: that may be minutes away."""
    steps: list[tuple[int, int]] = []
    reached = False

    def observe(event: Event) -> None:
        nonlocal reached
        reached = reached or (isinstance(event, Stage) and event.name == stage)
        if reached and isinstance(event, ClientTrained):
            steps.append((event.done, event.total))
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    epochs = 400 if stage == "federated" else 60
    wanted = experiment(
        people, training__epochs=epochs, engine__workers=2, federation__rounds=1, baselines=["individual"]
    )
    # A shell starts background jobs with Ctrl-C ignored, and the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(wanted, tmp_path / "run", observe)
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(done < total / 2 for done, total in steps), steps[-1]


def test_a_start_that_was_killed_is_not_in_the_way(people: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "experiment.toml").write_text("seed = 1")
    (place / ".split.json.abc.part").write_text("{")
    assert run(experiment(people), place).finished
    with pytest.raises(InputError, match="--resume"):
        run(experiment(people), place)


def test_what_names_people_is_readable_by_its_owner_alone(whole: tuple[Path, Report]) -> None:
    for name in ("split.json", "clients/0000/individual.safetensors"):
        assert (whole[0] / name).stat().st_mode & 0o077 == 0, name


def test_a_threshold_of_one_is_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threshold: 1"):
        run(experiment(people, federation__threshold=1), tmp_path / "run")


def test_a_run_can_start_from_a_model(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    """It is what pretraining would have made: all that follows is the same."""
    given = str(whole[0] / "models" / "pretrained.safetensors")
    run(experiment(people, WHOLE, pretraining__epochs=0, pretraining__model=given), tmp_path / "run")
    other = set(differing(tmp_path / "run", whole[0]))
    assert other <= {"models/pretraining-state.safetensors"}


def test_a_model_to_start_from_must_fit(people: Path, whole: tuple[Path, Report], tmp_path: Path) -> None:
    given = str(whole[0] / "models" / "pretrained.safetensors")
    refused: list[tuple[str, str, dict[str, int]]] = [
        ("epochs to 0", given, {"pretraining__epochs": 1}),
        ("model.dim", given, {"pretraining__epochs": 0, "model__dim": 64}),
        ("no such file", str(tmp_path / "none"), {"pretraining__epochs": 0}),
    ]
    for words, model, changes in refused:
        with pytest.raises(InputError, match=words):
            run(experiment(people, WHOLE, pretraining__model=model, **changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_pretraining_can_have_a_scale_of_its_own(
    people: Path, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    """The method's own unless said otherwise; clients keep theirs."""
    run(experiment(people, WHOLE, pretraining__scale=30.0), tmp_path / "same")
    assert differing(tmp_path / "same", whole[0]) == []
    run(experiment(people, WHOLE, pretraining__scale=8.0), tmp_path / "other")
    found = differing(tmp_path / "other", whole[0])
    assert {"models/pretrained.safetensors", "models/centralised.safetensors"} <= set(found)
    assert "models/untrained.safetensors" not in found
