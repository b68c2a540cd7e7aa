"""Whole runs under a budget: over backends, interruptions, losses, to the last round and beyond."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from tiny import TINY, experiment, write_people

from privfr.errors import BudgetSpent, InputError
from privfr.plan import client_level
from privfr.privacy.accounting import epsilon_of_rho
from privfr.privacy.ledger import Ledger
from privfr.report import ClientTrained, Event, Notice, Report, RoundEnded
from privfr.runs import resume, run
from privfr_cli import render

PRIVATE = TINY | {"data.clients": 6, "data.test": 5, "privacy.level": "client", "privacy.corruption": 0.1}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two for each of six clients, or a head has nothing to tell apart and every update is zero."""
    return write_people(tmp_path_factory.mktemp("data") / "people", identities=17)


def ledgers(directory: Path) -> list[Ledger]:
    return [Ledger(path) for path in sorted(directory.glob("clients/*/privacy.jsonl"))]


@pytest.mark.parametrize("backend", ["plain", "trusted", "masking", "bfv", "ckks-authority"])
def test_a_budget_is_kept_on_every_backend(people: Path, tmp_path: Path, backend: str) -> None:
    found = run(experiment(people, PRIVATE, federation__backend=backend), tmp_path / "run")
    (level,) = found.privacy
    central = backend in ("plain", "trusted")
    assert (level.level, level.budget, level.delta) == ("client", 8.0, 1e-5)
    assert level.clients == (level.epsilon,) * 6
    # Nobody was lost, so that clients' own shares leave some of the budget.
    assert (7.9 < level.epsilon <= 8.0) if central else (level.epsilon <= 8.0)
    assert found.final is not None and found.finished and not found.stopped
    assert found.experiment["coding"]["max_weight"] == 1
    assert all(not each.metrics and each.saturated == 0 and each.weight == 6 for each in found.rounds)
    assert Report.load(tmp_path / "run" / "report.json").privacy == found.privacy
    moved = safetensors.torch.load_file(tmp_path / "run" / "models" / "federated.safetensors")
    before = safetensors.torch.load_file(tmp_path / "run" / "models" / "untrained.safetensors")
    assert any(not np.array_equal(moved[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("backend", "against"),
    [
        ("masking", "everybody, the server included, while no more than 1 clients collude with it"),
        ("masking-passive", "the server, and up to 1 clients together, but not a server that breaks the"),
        ("bfv", "the server, and up to 1 clients together, but not a client that helps the server"),
        ("ckks-authority", "the server, and up to 1 clients together, but not an authority or client that"),
        ("trusted", "everybody but the aggregator"),
        ("plain", "the other clients and whoever is given the model, but not the server"),
    ],
)
def test_the_report_claims_no_more_than_the_backend_hides(
    people: Path, tmp_path: Path, backend: str, against: str
) -> None:
    found = run(
        experiment(people, PRIVATE, federation__rounds=1, federation__backend=backend), tmp_path / "r"
    )
    assert found.privacy[0].against.startswith(against)


@pytest.mark.parametrize("baseline", ["individual", "centralised"])
def test_what_is_trained_without_noise_is_said_to_be(people: Path, tmp_path: Path, baseline: str) -> None:
    changes = {"privacy.level": "both", "privacy.accountant": "rdp", "federation.rounds": 1}
    alone, beside = (
        run(experiment(people, PRIVATE | changes, baselines=wanted), tmp_path / str(len(wanted))).privacy
        for wanted in ([], [baseline])
    )
    assert not any("baselines" in line for level in alone for line in level.not_covered)
    assert all(any("baselines" in line for line in level.not_covered) for level in beside)
    assert all(any("measured on" in line for line in level.not_covered) for level in alone)


def test_what_is_learnt_gets_through_the_noise(people: Path, tmp_path: Path) -> None:
    """With next to none, and a clip that cuts nothing, the model is that of a run without privacy."""
    base = PRIVATE | {"federation.momentum": 0.0, "federation.rounds": 1}
    loud = base | {"privacy.epsilon": 0.0, "privacy.client_noise": 1e-3, "privacy.client_clip": 2.0}
    run(experiment(people, loud), tmp_path / "private")
    run(experiment(people, base, privacy__level="none"), tmp_path / "open")
    start, private, open_ = (
        np.concatenate([tensor.numpy().ravel() for _, tensor in sorted(safetensors.torch.load_file(
            tmp_path / place / "models" / f"{name}.safetensors").items())])
        for place, name in (("open", "untrained"), ("private", "federated"), ("open", "federated"))
    )  # fmt: skip
    moved = np.linalg.norm(open_ - start)
    assert moved > 0.1
    assert np.linalg.norm(private - open_) < 0.5 * moved


def test_noise_is_fresh_in_every_run(people: Path, tmp_path: Path) -> None:
    """The same seed twice: all that differs is the noise, which follows no seed."""
    for name in ("a", "b"):
        run(experiment(people, PRIVATE, federation__rounds=1), tmp_path / name)
    a, b = (safetensors.torch.load_file(tmp_path / n / "models" / "federated.safetensors") for n in "ab")
    assert all(not np.array_equal(a[name], b[name]) for name in a)


class Interrupt:
    """Break a run off, once, at the n-th step of a client's."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, ClientTrained)
        if self.left == 0:
            self.left = -1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at", [2, 8, 12, 13, 22, 33])
def test_an_interrupted_round_stays_paid(people: Path, tmp_path: Path, at: int) -> None:
    """And so there may be a round less in the end, never more noise-free rounds than the budget allows."""
    wanted = experiment(people, PRIVATE, federation__rounds=3, federation__backend="masking")
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "run", Interrupt(at))
    before = [each.rho for each in ledgers(tmp_path / "run")]
    found = resume(tmp_path / "run")
    after = [each.rho for each in ledgers(tmp_path / "run")]
    assert all(now >= then for then, now in zip(before, after, strict=False))
    assert found.finished and found.privacy[0].epsilon <= 8.0 * (1 + 1e-9)
    paid = [path.read_text().count('"round"') - path.read_text().count("settles")
            for path in sorted((tmp_path / "run").glob("clients/*/privacy.jsonl"))]  # fmt: skip
    assert all(count >= len(found.rounds) for count in paid)
    assert found.privacy[0].clients == tuple(epsilon_of_rho(rho, 1e-5) for rho in after)


def broken_off(people: Path, place: Path, **changes: Any) -> None:
    """A private run that has one round, and pays for its second when it ends."""
    with pytest.raises(KeyboardInterrupt):
        run(experiment(people, PRIVATE, federation__rounds=3, **changes), place, Interrupt(12 + 5))


@pytest.mark.parametrize("lost", ["all", "lines"])
def test_a_ledger_that_knows_less_than_the_report_is_refused(people: Path, tmp_path: Path, lost: str) -> None:
    """Deleted, or cut by whole lines: nothing spent may be forgotten by that."""
    broken_off(people, tmp_path / "run")
    path = tmp_path / "run" / "clients" / "0004" / "privacy.jsonl"
    if lost == "all":
        path.unlink()
    else:
        path.write_text("")
    with pytest.raises(InputError, match=r"0004/privacy\.jsonl: knows of epsilon 0\.00 at the client level"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    "change", [("client_noise = 0.0", "client_noise = 9.0"), ("epsilon = 8.0", "epsilon = 9.0")]
)
def test_a_run_goes_on_with_the_experiment_it_promised(
    people: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    broken_off(people, tmp_path / "run")
    path = tmp_path / "run" / "experiment.toml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=r"experiment\.toml: not the experiment"):
        resume(tmp_path / "run")


def test_a_run_ends_where_its_budget_does(people: Path, tmp_path: Path) -> None:
    """Noise for two rounds, and five are asked for: model and report are kept."""
    two = run(experiment(people, PRIVATE, federation__rounds=2), tmp_path / "two")
    told: list[Event] = []
    wanted = experiment(
        people, PRIVATE, federation__rounds=5, privacy__client_noise=two.privacy[0].noise * 1.0001
    )
    found = run(wanted, tmp_path / "five", told.append)
    assert len([event for event in told if isinstance(event, RoundEnded)]) == len(found.rounds) == 2
    assert found.finished and found.final is not None
    assert "round 3 of 5" in found.stopped
    assert any(isinstance(event, Notice) and "stopped" in event.text for event in told)
    assert (tmp_path / "five" / "models" / "federated.safetensors").exists()


def test_a_budget_that_pays_for_no_round_is_an_error(people: Path, tmp_path: Path) -> None:
    wanted = experiment(people, PRIVATE, privacy__client_noise=0.1, privacy__epsilon=1.0)
    with pytest.raises(BudgetSpent, match=r"privacy\.epsilon: .* does not pay"):
        run(wanted, tmp_path / "run")


def test_a_round_that_loses_more_than_was_stated_has_no_sum(people: Path, tmp_path: Path) -> None:
    """The threshold follows from the stated losses, since noise is planned for that many."""
    lossy = {"engine.losses": 0.5, "engine.phases": ["begin"], "privacy.dropout": 0.0}
    found = run(experiment(people, PRIVATE | lossy, federation__backend="masking"), tmp_path / "run")
    assert found.experiment["federation"]["threshold"] == 6
    assert all(each.failed for each in found.rounds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy.delta": 0.2}, r"privacy\.delta: 0\.2 is not below one in 6 clients"),
        ({"privacy.epsilon": 0.0}, r"privacy\.epsilon: 0 is no budget"),
        ({"privacy.corruption": 0.9, "federation.backend": "masking"}, r"privacy\.corruption: of 6 clients"),
        (
            {"privacy.corruption": 0.4, "federation.backend": "masking"},
            r"privacy\.corruption: 3 of 6 clients may collude, and masking\.corruption says 1",
        ),
        (
            {"privacy.level": "example", "privacy.delta": 0.13},
            r"privacy\.delta: 0\.13 is not below one in the 8 pictures of a client",
        ),
        ({"privacy.level": "example", "privacy.delta": 1e-13}, r'privacy\.delta: 1e-13 .* to "rdp"'),
        ({"privacy.level": "both", "privacy.delta": 1e-300}, r"privacy\.delta: 1e-300 .* PRV"),
        (
            {"privacy.level": "example", "privacy.example_noise": 1e-300},
            r"privacy\.example_noise: 1e-300 .* 0\.01",
        ),
        ({"privacy.level": "example", "privacy.example_noise": 501.0}, r"privacy\.example_noise: 501 .* 500"),
        ({"privacy.level": "example", "privacy.example_clip": 1e-7}, r"privacy\.example_clip: 1e-07"),
        ({"privacy.level": "example", "privacy.epsilon": 1e-3}, r"privacy\.epsilon: 0\.001 cannot be kept"),
        ({"privacy.client_noise": 1e6}, r"privacy\.client_noise: 1e\+06 clips of 1"),
        ({"privacy.client_clip": 1e6, "coding.bits": 24}, r"privacy\.client_clip: 1e\+06 is more than 2\^40"),
        ({"privacy.client_clip": 1e-6}, r"privacy\.client_clip"),
        ({"privacy.client_clip": 3e3}, r"the noise"),
        (
            {"privacy.clip_share": 0.02, "privacy.level": "example"},
            r'clip_share: .* privacy\.level is "example"',
        ),
        ({"privacy.clip_share": 0.02, "privacy.level": "none"}, r'clip_share: .* set that to "client"'),
        ({"privacy.clip_share": 0.07}, r"privacy\.clip_share: 0\.07 .* 0\.265 .* raise coding\.clip"),
    ],
)
def test_a_privacy_that_cannot_be_is_refused_before_anything_is_done(
    people: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(experiment(people, PRIVATE | changes), tmp_path / "run")
    assert not [*tmp_path.glob("run/*")]


@pytest.mark.parametrize("level", ["example", "both"])
def test_both_levels_are_reported_apart(people: Path, tmp_path: Path, level: str) -> None:
    changes = {"privacy.level": level, "privacy.accountant": "rdp", "federation.backend": "masking"}
    found = run(experiment(people, PRIVATE | changes), tmp_path / "run")
    kinds = [each.level for each in found.privacy]
    assert kinds == (["example"] if level == "example" else ["client", "example"])
    example = found.privacy[-1]
    assert 0 < example.epsilon <= 8.0 and len(example.clients) == 6
    assert example.accountant == "rdp" and "one picture" in example.adjacency
    assert found.final is not None and all(not each.metrics for each in found.rounds)
    for ledger in ledgers(tmp_path / "run"):
        _, rate, steps = ledger.steps[0]
        assert (rate, steps, len(ledger.steps)) == (0.5, 2, 2)  # of eight pictures, four at a time
        assert (ledger.rho > 0) == (level == "both")
    if level == "example":  # the weight is still the number of pictures
        assert found.rounds[0].weight == 48


LEARNT = PRIVATE | {
    "privacy.clip_share": 0.05, "privacy.client_clip": 0.01, "coding.clip": 0.01,
    "privacy.epsilon": 0.0, "privacy.client_noise": 1e-3, "privacy.example_noise": 1.0,
}  # fmt: skip
"""Next to no noise, so that where the clip goes can be foretold: up from far below, by 0.1 a round."""


@pytest.mark.parametrize(("backend", "level"), [("masking", "both"), ("bfv", "client")])
def test_the_clip_is_learnt_in_a_run(
    people: Path, tmp_path: Path, backend: str, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"privacy.level": level, "privacy.accountant": "rdp"}
    found = run(experiment(people, LEARNT | changes, federation__backend=backend), tmp_path / "run")
    client = found.privacy[0]
    assert (client.clip, client.clip_share) == (0.01, 0.05)
    assert client.last_clip == pytest.approx(0.01 * math.exp(0.2), rel=0.02)
    assert all(each.last_clip is None and each.clip_share == 0 for each in found.privacy[1:])
    assert found.final is not None and not any(each.failed for each in found.rounds)
    render.report(found, "there")
    shown = "times the clip, which went from 0.01 to 0.0122 as it was learnt with 5.0 % of each round's rho;"
    assert capsys.readouterr().out.count(shown) == 1


def test_a_learnt_clip_outlasts_the_process(people: Path, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(experiment(people, LEARNT, federation__rounds=3), tmp_path / "run", interrupt)
    (before,) = Report.load(tmp_path / "run" / "report.json").privacy
    (after,) = resume(tmp_path / "run").privacy
    assert before.last_clip == pytest.approx(0.01 * math.exp(0.1), rel=0.02)
    assert after.last_clip == pytest.approx(0.01 * math.exp(0.3), rel=0.02)


@pytest.mark.parametrize("part", ["norms", "adapter"])
@pytest.mark.parametrize("backend", ["plain", "masking"])
def test_noise_is_on_the_part_that_is_trained_alone(
    people: Path, tmp_path: Path, part: str, backend: str
) -> None:
    """Both levels: what is frozen stays as it was, to the bit, and the noise is planned for fewer numbers."""
    changes = {"privacy.level": "both", "privacy.accountant": "rdp", "method.trainable": part}
    wanted = experiment(people, PRIVATE | changes, method__rank=4, federation__backend=backend)
    found = run(wanted, tmp_path / "run")
    assert found.parameters == (640 if part == "norms" else 2 * 4 * 128)
    assert [each.level for each in found.privacy] == ["client", "example"]
    assert all(0 < each.epsilon <= 8.0 for each in found.privacy)
    assert all(each.saturated == 0 and not each.failed for each in found.rounds)
    before, after = (
        safetensors.torch.load_file(tmp_path / "run" / "models" / f"{name}.safetensors")
        for name in ("untrained", "federated")
    )
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    norms = {f"{layer}.{kind}" for layer in (1, 4, 7, 10) for kind in ("weight", "bias")}
    # With a bias of 0 there is nothing for an adapter to act on.
    assert moved == (norms if part == "norms" else {"12.1.weight"})


@pytest.mark.parametrize("part", ["all", "norms", "adapter"])
def test_client_noise_is_planned_for_the_numbers_shared(part: str) -> None:
    wanted = experiment("synthetic", PRIVATE, method__trainable=part, method__rank=4)
    level = client_level(wanted.resolved(6, 16))
    assert level is not None
    assert level.size == {"all": 448096, "norms": 640, "adapter": 1024}[part]


def test_an_example_budget_ends_a_run_too(people: Path, tmp_path: Path) -> None:
    base = PRIVATE | {"privacy.level": "example", "privacy.accountant": "rdp"}
    two = run(experiment(people, base), tmp_path / "two")
    more = base | {"privacy.example_noise": two.privacy[0].noise * 1.0001, "federation.rounds": 4}
    found = run(experiment(people, more), tmp_path / "four")
    assert len(found.rounds) == 2 and "round 3 of 4" in found.stopped
