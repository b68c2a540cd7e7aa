"""What is spent stays spent, whatever happens to the process or the file."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from privfr.averaging import AdaptiveClip
from privfr.coding import Noise
from privfr.errors import BudgetSpent, InputError
from privfr.privacy.accounting import epsilon_of_rho
from privfr.privacy.client import ClientLevel
from privfr.privacy.guard import ExampleBudget, Guarded
from privfr.privacy.ledger import Entry, Ledger
from privfr.vector import Update, Vector

MODEL = np.ones(5, np.float32)


def level(rounds: int) -> ClientLevel:
    """A budget that pays for so many rounds."""
    noise = Noise(1000, 10**6)
    rho = ClientLevel(noise, 5, 1, 5, 1.0, 1e-5).most
    return ClientLevel(noise, 5, 1, 5, epsilon_of_rho(rounds * rho, 1e-5), 1e-5)


class Echo:
    """Learns nothing, and remembers when it was asked to."""

    def __init__(self, update: Update | None = None) -> None:
        self.asked: list[int] = []
        self.update = update

    def learn(self, model: Vector, round: int) -> Update:
        self.asked.append(round)
        return self.update or Update(model * 2, 17.0, {"loss": 3.0})

    def save(self) -> bytes:
        return b"echo"

    def restore(self, saved: bytes) -> None:
        assert saved == b"echo"


def test_rounds_add_up_and_survive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a" / "privacy.jsonl"
    ledger = Ledger(path)
    assert (ledger.rho, ledger.steps) == (0.0, [])
    ledger.book(Entry(0, 0.5, (1.1, 0.1, 10)))
    ledger.book(Entry(1, 0.5, (1.1, 0.1, 10)))
    for found in (ledger, Ledger(path)):
        assert (found.rho, found.steps) == (1.0, [(1.1, 0.1, 10)] * 2)


def test_a_round_is_settled_once_and_only_downwards(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "privacy.jsonl")
    ledger.settle(0, 0.1)  # nothing is booked yet
    ledger.book(Entry(0, 0.5))
    ledger.settle(0, 0.7)
    assert ledger.rho == 0.5
    ledger.settle(1, 0.1)  # another round
    assert ledger.rho == 0.5
    ledger.settle(0, 0.4)
    assert ledger.rho == pytest.approx(0.4)
    ledger.settle(0, 0.1)
    assert Ledger(tmp_path / "privacy.jsonl").rho == pytest.approx(0.4)


def test_a_round_begun_twice_is_paid_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "privacy.jsonl")
    ledger.book(Entry(0, 0.5))
    ledger.book(Entry(0, 0.5))
    ledger.settle(0, 0.3)
    assert ledger.rho == pytest.approx(0.8)


def test_a_line_cut_short_was_never_spent(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    ledger = Ledger(path)
    ledger.book(Entry(0, 0.5))
    path.write_bytes(path.read_bytes() + b'{"round":1,"rh')
    again = Ledger(path)
    assert again.rho == 0.5
    again.book(Entry(1, 0.5))
    assert Ledger(path).rho == 1.0


def test_a_line_that_lacks_its_end_only_was_perhaps_spent(tmp_path: Path) -> None:
    """As an editor leaves it that strips what ends a file."""
    path = tmp_path / "privacy.jsonl"
    ledger = Ledger(path)
    ledger.book(Entry(0, 0.5))
    ledger.book(Entry(1, 0.5))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    again = Ledger(path)
    assert again.rho == 1.0
    again.book(Entry(2, 0.5))
    assert Ledger(path).rho == 1.5


def test_a_round_that_a_crash_broke_off_is_never_settled(tmp_path: Path) -> None:
    """Its sum may have been over fewer than that of the second try, which this client may have missed."""
    path = tmp_path / "privacy.jsonl"
    Ledger(path).book(Entry(3, 0.5))
    Ledger(path).settle(3, 0.1)
    assert Ledger(path).rho == 0.5


@pytest.mark.parametrize("damage", [b"nonsense\n", b'{"round":"x"}\n', b'{"round":1,"rho":-3.0}\n', b"\n"])
def test_a_damaged_ledger_is_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "privacy.jsonl"
    path.write_bytes(damage)
    with pytest.raises(InputError, match=r"privacy\.jsonl: damaged"):
        Ledger(path)


def test_a_ledger_that_cannot_be_written_stops_the_round(tmp_path: Path) -> None:
    path, echo = tmp_path / "privacy.jsonl", Echo()
    guarded = Guarded(echo, Ledger(path), level(5))
    path.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        guarded.learn(MODEL, 0)
    assert echo.asked == []


def test_a_guarded_learner_gives_the_vector_alone(tmp_path: Path) -> None:
    guarded = Guarded(Echo(), Ledger(tmp_path / "privacy.jsonl"), level(5))
    update = guarded.learn(MODEL, 0)
    assert (update.weight, update.metrics, update.vector.tolist()) == (1.0, {}, [2.0] * 5)
    guarded.restore(guarded.save())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [None, AdaptiveClip(2.0, 0.36)])
def test_a_client_that_diverges_sends_zeros(tmp_path: Path, bad: float, clip: AdaptiveClip | None) -> None:
    """Were it silent, or the run broken off, that would tell of its pictures without noise."""
    diverged = Update(np.array([1.0, bad], np.float32), 1.0, {})
    guarded = Guarded(Echo(diverged), Ledger(tmp_path / "privacy.jsonl"), level(5), clip=clip)
    vector = guarded.learn(np.zeros(3, np.float32), 0).vector
    assert vector.tolist() == pytest.approx([0.0, 0.0] + ([1.2] if clip else []))


def test_the_budget_is_spent_to_the_last_round_and_no_further(tmp_path: Path) -> None:
    echo, path = Echo(), tmp_path / "privacy.jsonl"
    guarded = Guarded(echo, Ledger(path), level(3))
    for round in range(3):
        assert guarded.affords
        guarded.learn(MODEL, round)
    assert not guarded.affords
    with pytest.raises(BudgetSpent, match="does not pay"):
        guarded.learn(MODEL, 3)
    assert echo.asked == [0, 1, 2]
    assert not Guarded(echo, Ledger(path), level(3)).affords  # nor in another process


def test_more_survivors_leave_some_of_the_budget(tmp_path: Path) -> None:
    guarded = Guarded(Echo(), Ledger(tmp_path / "privacy.jsonl"), level(3))
    for round in range(3):
        guarded.learn(MODEL, round)
        guarded.settle(round, 10)
    assert guarded.ledger.rho == pytest.approx(3 * level(3).most * 4 / 9)  # the noise of 9 for that of 4
    assert guarded.affords


def test_the_example_budget_counts_steps(tmp_path: Path) -> None:
    steps = (1.0, 0.2, 5)
    spent = ExampleBudget(steps, math.inf, 1e-5, "rdp").spent([steps] * 2)
    budget = ExampleBudget(steps, spent, 1e-5, "rdp")
    guarded = Guarded(Echo(), Ledger(tmp_path / "privacy.jsonl"), example=budget)
    for round in range(2):
        update = guarded.learn(MODEL, round)
        assert (update.weight, update.metrics) == (17.0, {})
    with pytest.raises(BudgetSpent):
        guarded.learn(MODEL, 2)


SPENDER = """
import sys
from pathlib import Path
from privfr.privacy.ledger import Entry, Ledger
ledger, used = Ledger(Path(sys.argv[1])), Path(sys.argv[2])
for round in range(10**6):
    ledger.book(Entry(round, 1.0))
    with used.open("ab", buffering=0) as file:  # stands for the noise, used after the booking
        file.write(b".")
"""


def test_no_kill_at_any_moment_loses_what_was_spent(tmp_path: Path) -> None:
    path, used = tmp_path / "privacy.jsonl", tmp_path / "used"
    for kills in range(1, 9):
        process = subprocess.Popen([sys.executable, "-c", SPENDER, str(path), str(used)])
        before, deadline = path.stat().st_size if path.exists() else 0, time.monotonic() + 30
        while time.monotonic() < deadline and (not path.exists() or path.stat().st_size < before + 200):
            time.sleep(0.001)
        time.sleep(0.0007 * kills)
        process.kill()
        process.wait()
        assert used.stat().st_size <= Ledger(path).rho <= used.stat().st_size + kills
