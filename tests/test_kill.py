"""SIGKILL at any moment, then `--resume`: the models are those of a run that nobody killed, to the bit.

The runs are the command's own, each in a process forked from a server that has torch loaded already.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tiny import WHOLE, differing, experiment, facts, write_people

from privfr.privacy.accounting import epsilon_of_rho
from privfr.privacy.ledger import Ledger
from privfr.report import Report

_SERVER = multiprocessing.get_context("forkserver")
# torch._dynamo is what the first optimiser of a process imports, for seconds.
_SERVER.set_forkserver_preload(["privfr.runs", "privfr_cli.render", "torch._dynamo", "test_kill"])

WORKERS = 2


def command(arguments: list[str], log: str) -> None:
    """Be the `privfr` process."""
    from privfr_cli.app import main

    with Path(log).open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.argv = ["privfr", *arguments]
        main()


def start(arguments: list[str], log: Path) -> BaseProcess:
    process = _SERVER.Process(target=command, args=(arguments, str(log)))
    process.start()
    return process


def await_run(out: Path, process: BaseProcess) -> None:
    """Wait until there is a run: what is killed before is a start, and a start is cheap to repeat."""
    while not (out / "report.json").exists() and process.exitcode is None:
        time.sleep(0.002)


def finish(arguments: list[str], log: Path, out: Path | None = None) -> float:
    """Run to the end; gives the seconds it took, once there was a run."""
    process = start(arguments, log)
    if out is not None:
        await_run(out, process)
    started = time.perf_counter()
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return time.perf_counter() - started


def killed(arguments: list[str], log: Path, delay: float, out: Path | None = None) -> bool:
    """Run, and kill so many seconds after there is a run; whether it was still alive then."""
    process = start(arguments, log)
    if out is not None:
        await_run(out, process)
    process.join(delay)
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    return process.exitcode == -signal.SIGKILL


class Kills:
    """One run that nobody killed, and the means to compare others with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        people = write_people(root / "people")
        self.config = root / "exp.toml"
        wanted = experiment(people, WHOLE, federation__rounds=3, engine__workers=WORKERS, engine__losses=0.1)
        self.config.write_text(wanted.to_toml())
        self.whole = root / "whole"
        finish(["info"], root / "log")  # starts the server, which is not the run's time
        self.seconds = finish(self.run(self.whole), root / "log", self.whole)
        self.report = Report.load(self.whole / "report.json")

    def run(self, out: Path) -> list[str]:
        return ["run", "--config", str(self.config), "--out", str(out)]

    def survive(self, name: str, delays: list[float]) -> str:
        """Kill after each delay in turn, resume to the end, compare; gives the stage first killed in.

        The stage is empty where the process had come to its end before the kill.
        """
        out, log = self.root / name, self.root / f"{name}.log"
        log.touch()
        if not killed(self.run(out), log, delays[0], out):
            return ""
        stage = reached(out)
        for delay in delays[1:]:
            killed(["run", "--resume", str(out)], log, delay)
        finish(["run", "--resume", str(out)], log)
        assert differing(out, self.whole) == [], f"killed after {delays} s, in {stage}"
        assert facts(Report.load(out / "report.json")) == facts(self.report)
        return stage


def reached(out: Path) -> str:
    """What a run has committed to when it is killed."""
    report = Report.load(out / "report.json")
    if report.individual is not None:
        return "centralised"
    if report.final is not None:
        return "individual"
    if report.pretrained is not None:
        return f"round {len(report.rounds)}"
    return "pretraining" if report.untrained is not None else "untrained"


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Kills:
    return Kills(tmp_path_factory.mktemp("kills"))


def test_killed_before_there_is_a_run(kills: Kills) -> None:
    """Nothing is there to go on with, and nothing that stands in the way for good."""
    out, log = kills.root / "early", kills.root / "early.log"
    assert killed(kills.run(out), log, 0.02)
    assert not (out / "report.json").exists(), "the machine is too fast for this test"
    finish(kills.run(out if not out.exists() else out.with_name("early-again")), log)


def test_two_kills(kills: Kills) -> None:
    """The short form: killed, resumed, killed again, resumed."""
    assert kills.survive("short", [0.5 * kills.seconds, 0.3 * kills.seconds])


@pytest.mark.slow
def test_twenty_kills(kills: Kills, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty moments, one in each twentieth of the run; after every second of them the resumed run too."""
    draw, stages = random.Random(20260101), []
    for part in range(20):
        fraction = (part + draw.random()) / 20
        again = [draw.random() * kills.seconds] if part % 2 else []
        stage, attempt = "", 0
        while not stage:  # the machine may be faster now than when it was measured
            assert attempt < 20
            delay = fraction * kills.seconds * 0.9**attempt
            stage = kills.survive(f"kill-{part}-{attempt}", [delay, *again])
            attempt += 1
        stages.append(stage)
        shutil.rmtree(kills.root / f"kill-{part}-{attempt - 1}")
    with capsys.disabled():
        sys.stderr.write(f"\n20 kills over {kills.seconds:.1f} s, in: {', '.join(stages)}\n")
    assert len(set(stages)) >= 4, stages


PRIVATE = {
    "privacy.level": "both", "privacy.accountant": "rdp", "data.clients": 4, "federation.rounds": 4,
    "federation.backend": "masking", "privacy.corruption": 0.0, "pretraining.epochs": 0, "baselines": [],
}  # fmt: skip


def spent(out: Path) -> dict[str, float]:
    """What each client's file says it has spent, client level; a client that has booked nothing has none."""
    return {path.parent.name: Ledger(path).rho for path in sorted(out.glob("clients/*/privacy.jsonl"))}


def never_less(now: dict[str, float], before: dict[str, float]) -> bool:
    return all(now.get(client, 0.0) >= rho * (1 - 1e-12) for client, rho in before.items())


def test_a_private_run_killed_at_any_moment_forgets_nothing_it_spent(kills: Kills) -> None:
    """Six kills: what is spent never falls, the budget holds, the report says what the files say."""
    out, log = kills.root / "private", kills.root / "private.log"
    config = kills.root / "private.toml"
    people = kills.root / "people"
    config.write_text(
        experiment(people, WHOLE, **{k.replace(".", "__"): v for k, v in PRIVATE.items()}).to_toml()
    )
    draw, before = random.Random(3), dict[str, float]()
    arguments = ["run", "--config", str(config), "--out", str(out)]
    for _ in range(6):
        if not killed(arguments, log, 0.1 + 0.5 * draw.random() * kills.seconds, out):
            break
        now = spent(out)
        assert never_less(now, before)
        before, arguments = now, ["run", "--resume", str(out)]
    finish(["run", "--resume", str(out)], log)
    report, found = Report.load(out / "report.json"), spent(out)
    assert never_less(found, before)
    client, example = report.privacy
    assert client.clients == tuple(epsilon_of_rho(rho, client.delta) for rho in found.values())
    assert max(client.epsilon, example.epsilon) <= 8 * (1 + 1e-9)
    assert report.finished and (len(report.rounds) == 4 or report.stopped)
