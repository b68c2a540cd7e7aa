"""A clip that is learnt, between a coordinator and members: one everywhere, and no part of the privacy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from insecure import CONFIG, LAYOUT, OPTIONS, RUN, Federation, InsecureEntropy, member_of
from tiny import TINY, experiment

from privfr.averaging import AdaptiveClip, FedAvg
from privfr.backends import backend as backend_named
from privfr.coding import Coding
from privfr.errors import BadFrame, BudgetSpent
from privfr.federation import Coordinator, run_round
from privfr.plan import client_level
from privfr.privacy.client import ClientLevel, calibrated
from privfr.privacy.guard import Guarded
from privfr.privacy.ledger import Ledger
from privfr.protocol import Begin
from privfr.vector import Update, Vector, digest
from privfr.wire import decode, encode

SIZE, CLIENTS, FIRST, STEP = 6, 4, 8.0, 8.0 / 32767
CLIP = AdaptiveClip(FIRST, 0.1)
FIXED = {  # what the level needs beside a clip, for a noise that is there and does not hide the bits
    "epsilon": 0.0, "delta": 1e-5, "multiplier": 0.01, "clip": FIRST, "corruption": 0.0, "step": STEP,
    "clients": CLIENTS, "threshold": 2, "rounds": 9, "size": SIZE + 1,
}  # fmt: skip


class Walker:
    """Gives an update as long as its number, wherever it is, and remembers which weights it was given."""

    def __init__(self, client: int) -> None:
        self.client, self.given = client, np.empty(0, np.float32)

    def learn(self, model: Vector, round: int) -> Update:
        self.given = model
        away = np.random.default_rng((self.client, round)).normal(size=SIZE)
        return Update((away * self.client / np.linalg.norm(away)).astype(np.float32), 9.0, {"loss": 1.0})

    def save(self) -> bytes:
        return b""

    def restore(self, saved: bytes) -> None:
        assert saved == b""


def level_of(central: bool) -> ClientLevel:
    return calibrated(central=central, **FIXED)  # type: ignore[arg-type]


def guarded(client: int, place: Path, level: ClientLevel, clip: AdaptiveClip | None = CLIP) -> Guarded:
    return Guarded(Walker(client), Ledger(place / f"{client}.jsonl"), level, clip=clip)


def clipping(name: str, place: Path, momentum: float) -> Federation:
    """Clients 1 to 4, whose updates are as long as that, under a clip that begins at 8."""
    backend, roster, rule = backend_named(name), tuple(range(1, CLIENTS + 1)), FedAvg(momentum, CLIP)
    level = level_of(backend.central)
    coding = Coding(FIRST, 16, 1, noise=level.noise)
    server_key, keys = backend.provision(roster, InsecureEntropy(0))
    threshold = max(2, backend.fewest(CLIENTS, OPTIONS))
    parameters = backend.plan(CLIENTS, threshold, coding, OPTIONS)
    common: dict[str, Any] = {"parameters": parameters, "rule": rule, "metrics": ()}
    model = rule.begin(np.zeros(SIZE, np.float32))
    coordinator = Coordinator(
        RUN, backend, server_key, roster, threshold, LAYOUT, CONFIG, model=model, **common
    )
    members = {c: member_of(backend, c, keys[c], learner=guarded(c, place, level), **common) for c in roster}
    return Federation(coordinator, members)


def assert_agreed(found: Federation) -> Vector:
    """Give the one model that all up-to-date members, and a server that may, hold."""
    held = {c: found.members[c].holds(found.coordinator.digest) for c in sorted(found.coordinator.current)}
    models = [model for model in held.values() if model is not None]
    assert len(models) == len(held) >= 2
    if found.coordinator.model is not None:
        models.append(found.coordinator.model)
    assert len({model.tobytes() for model in models}) == 1
    return models[0]


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("plain", 0.6), ("trusted", 0.0), ("masking", 0.0), ("masking", 0.6), ("bfv", 0.6), ("ckks", 0.0)],
)
def test_members_and_server_hold_one_model_whoever_is_lost(
    name: str, momentum: float, tmp_path: Path
) -> None:
    """The clip comes down from 8, above all, by 0.1 a round; it is in the model, not in the weights."""
    found = clipping(name, tmp_path, momentum)
    for number in range(5):
        lost = {1: "begin", 3: "result"}.get(number)
        found.lose = lambda client, what, lost=lost: "answer" if (client, what) == (2, lost) else ""
        report = run_round(found.exchange, found.coordinator)
        assert not report.failed and not report.faults
        assert report.survivors == (3 if lost == "begin" else 4)
        model = assert_agreed(found)
        assert model[SIZE] == pytest.approx(-0.1 * (number + 1), abs=0.02)
        assert np.abs(model[:SIZE]).max() > 0.1
    assert all(member.learner.learner.given.shape == (SIZE,) for member in found.members.values())


def test_the_clip_ends_between_the_norms(tmp_path: Path) -> None:
    """Of 1, 2, 3 and 4 the median is between 2 and 3."""
    found = clipping("plain", tmp_path, 0.0)
    for _ in range(20):
        run_round(found.exchange, found.coordinator)
    assert 1.9 < CLIP.at(assert_agreed(found)[SIZE]) < 3.1


def copied(found: Federation, place: Path) -> Federation:
    """The same federation in another process: what was saved, files, and the randomness where it was."""
    old = found.coordinator
    coordinator = replace(old, current=set(old.current))
    members = {}
    for client, member in found.members.items():
        again = guarded(client, place, member.learner.client)
        members[client] = replace(member, learner=again, model=None)
        members[client].restore(member.save())
    return Federation(coordinator, members)


def test_a_federation_that_is_taken_up_again_goes_on_exactly(tmp_path: Path) -> None:
    """To the bit, clip and velocity included: each of two with the same randomness."""
    whole, broken = (clipping("masking", tmp_path / name, 0.6) for name in ("whole", "broken"))
    for number in range(4):
        if number == 2:
            broken = copied(broken, tmp_path / "broken")
        for found in (whole, broken):
            run_round(found.exchange, found.coordinator)
        assert assert_agreed(whole).tobytes() == assert_agreed(broken).tobytes()
    rhos = [[each.learner.ledger.rho for each in f.members.values()] for f in (whole, broken)]
    assert rhos[0] == rhos[1]


@pytest.mark.parametrize("log", [math.nan, math.inf, -1e9, 20.5])
def test_a_server_that_makes_up_a_clip_gets_no_answer_and_costs_no_budget(log: float, tmp_path: Path) -> None:
    found = clipping("plain", tmp_path, 0.0)
    model = np.array([0.0] * SIZE + [log], np.float32)
    spec = msgspec.structs.replace(decode(found.coordinator.open()[1], Begin).spec, model=digest(model))
    member = found.members[1]
    with pytest.raises(BadFrame, match=r"a model whose clip|not finite"):
        member.receive(encode(Begin(spec, model.data.cast("B"))))
    assert member.learner.ledger.rho == 0 and member.learner.learner.given.size == 0
    assert member.model is None
    run_round(found.exchange, found.coordinator)  # the round itself is not spent either
    assert member.model is not None


def test_what_is_booked_does_not_depend_on_the_clip(tmp_path: Path) -> None:
    level = level_of(False)
    for log, name in ((-20.0, "a"), (0.0, "b"), (20.0, "c")):
        one = guarded(1, tmp_path / name, level)
        update = one.learn(np.array([0.0] * SIZE + [log], np.float32), 0)
        assert one.ledger.rho == level.most
        assert (update.weight, update.metrics, update.vector.shape) == (1.0, {}, (SIZE + 1,))
        assert np.linalg.norm(update.vector.astype(np.float64)) <= FIRST * (1 + 1e-6)


def test_a_spent_budget_comes_before_the_clip(tmp_path: Path) -> None:
    broke = guarded(1, tmp_path, replace(level_of(False), epsilon=0.0))
    with pytest.raises(BudgetSpent):
        broke.learn(np.array([0.0] * SIZE + [math.nan], np.float32), 0)


@pytest.mark.parametrize("backend", ["plain", "masking"])
def test_learning_the_clip_takes_no_more_noise(backend: str) -> None:
    """The same epsilon, the same radius, the same variance: one number more is noised, and that is all."""
    base = TINY | {"data.clients": 6, "privacy.level": "client", "federation.backend": backend}
    plans = [
        experiment("synthetic", base, privacy__clip_share=share).resolved(6, 16) for share in (0.0, 0.05)
    ]
    fixed, learnt = (client_level(plan) for plan in plans)
    assert fixed is not None and learnt is not None
    assert learnt.size == fixed.size + 1
    assert learnt.noise == fixed.noise
    assert learnt.most == pytest.approx(fixed.most, rel=1e-9)
