"""What each command does when all is well."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image
from tiny import WHOLE, differing, experiment, facts

from privfr.directory import RunDirectory
from privfr.experiment import load_experiment
from privfr.faces.recogniser import Recogniser
from privfr.report import Report

FLAGS = [
    "--clients", 3, "--test", 5, "--rounds", 2, "--workers", 1,
    "--set", "training.batch=4", "--set", "engine.cores=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ran(people: Path, privfr_process: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run by the command in a process of its own, with --json: its directory and standard output."""
    out = tmp_path_factory.mktemp("ran") / "run"
    outcome = privfr_process("run", "--data", people, "--out", out, "--json", *FLAGS).done()
    assert "round" in outcome.err, "progress belongs on standard error"
    return out, outcome.out


# run


def test_run_json_is_the_report_alone(ran: tuple[Path, str]) -> None:
    document = json.loads(ran[1])
    assert 0 <= document["untrained"]["eer"] <= 1
    assert 0 <= document["final"]["eer"] <= 1
    assert 0 <= document["final"]["auc"] <= 1
    assert document["server_learns"] == "sum"
    assert document["security"]["shares"] == 2
    assert all(0 < round["error"] < 1e-3 for round in document["rounds"])
    phases = [phase["phase"] for phase in document["rounds"][0]["phases"]]
    assert phases == ["advertise", "share", "mask", "consent", "reveal", "result"]
    assert document["finished"] is True
    assert len(document["rounds"]) == 2
    for round in document["rounds"]:
        assert 3 * 2 * document["parameters"] < round["bytes_up"] < 3 * 4 * document["parameters"]
        assert round["bytes_down"] > 3 * 2 * document["parameters"]
        assert round["seconds"] > 0
        assert round["dropped"] == {}


def test_run_json_equals_the_file(ran: tuple[Path, str]) -> None:
    assert json.loads(ran[1]) == json.loads((ran[0] / "report.json").read_text())


def test_run_directory_holds_everything(ran: tuple[Path, str]) -> None:
    names = {path.name for path in ran[0].iterdir()}
    assert {"experiment.toml", "split.json", "report.json", "log.jsonl", "models", "clients"} <= names
    model = Recogniser.load(ran[0] / "models" / "federated.safetensors")
    assert model.about["run"] == json.loads(ran[1])["run"]
    assert model.thresholds


def test_run_without_json_shows_figures(privfr: Command, people: Path, tmp_path: Path) -> None:
    outcome = privfr("run", "--data", people, "--out", tmp_path / "r", *FLAGS, "--backend", "trusted").done()
    for word in ("untrained", "federated", "EER", "2 rounds, 3 clients", "server learns", str(tmp_path)):
        assert word in outcome.out.replace("\n", " ")
    assert outcome.err.count("round   ") == 2


def test_run_shows_who_dropped_out(privfr: Command, people: Path, tmp_path: Path) -> None:
    flags = ["--losses", 0.4, "--seed", 3, "--set", "federation.threshold=2", "--backend", "plain", "--json"]
    outcome = privfr("run", "--data", people, "--out", tmp_path / "r", *FLAGS, *flags)
    rounds = outcome.json["rounds"]
    lost = {client for round in rounds for client in round["dropped"]}
    assert lost, "take another seed"
    assert "dropped: " in outcome.err or "failed: " in outcome.err


def test_run_takes_a_default_directory(
    privfr: Command, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    privfr("run", "--data", people, *FLAGS).done()
    (directory,) = (tmp_path / "runs").iterdir()
    assert RunDirectory(directory).report().finished


def test_trainable_shares_a_part(privfr: Command, people: Path, tmp_path: Path) -> None:
    flags = ["--trainable", "adapter", "--set", "method.rank=2", "--json"]
    report = privfr("run", "--data", people, "--out", tmp_path / "r", *FLAGS, *flags).done().json
    assert report["parameters"] == 2 * 2 * 128
    assert load_experiment(tmp_path / "r" / "experiment.toml").method.trainable == "adapter"
    privfr("evaluate", tmp_path / "r", "--data", people, "--json").done()


@pytest.mark.parametrize(("part", "shown"), [("norms", "640 of 448,096"), ("all", "448,096")])
def test_the_screen_says_how_much_is_trained(
    part: str, shown: str, privfr: Command, people: Path, tmp_path: Path
) -> None:
    outcome = privfr("run", "--data", people, "--out", tmp_path / "r", *FLAGS, "--trainable", part).done()
    assert f"people, {shown} parameters trained and shared" in " ".join(outcome.out.split())


def test_config_and_flags_give_one_experiment(
    privfr: Command, people: Path, ran: tuple[Path, str], tmp_path: Path
) -> None:
    config = tmp_path / "exp.toml"
    config.write_text(
        f"[data]\nsource = {json.dumps(str(people))}\nclients = 3\ntest = 5\nsize = 64\n"
        "[federation]\nrounds = 2\n[training]\nbatch = 4\n[engine]\nworkers = 1\ncores = 1\n"
    )
    privfr("run", "--config", config, "--out", tmp_path / "r").done()
    assert (tmp_path / "r" / "experiment.toml").read_text() == (ran[0] / "experiment.toml").read_text()
    assert differing(tmp_path / "r", ran[0]) == []


def test_flags_win_over_the_config(privfr: Command, people: Path, tmp_path: Path) -> None:
    config = tmp_path / "exp.toml"
    config.write_text('seed = 1\n[data]\nclients = 9\n[method]\nhead = "arcface"\n')
    flags = ["--seed", 5, "--data", people, "--out", tmp_path / "r"]
    privfr("run", "--config", config, *flags, *FLAGS).done()
    used = load_experiment(tmp_path / "r" / "experiment.toml")
    assert (used.seed, used.data.clients, used.method.head) == (5, 3, "arcface")


def test_every_flag_reaches_its_key(privfr: Command, people: Path, tmp_path: Path) -> None:
    flags = {
        "--method": "supervised", "--backend": "trusted", "--engine": "local", "--clients": 2, "--rounds": 1,
        "--epochs": 2, "--public": 3, "--test": 3, "--scheme": "many", "--per-client": 2, "--pretrain": 1,
        "--backbone": "small", "--size": 64, "--head": "softmax", "--learning-rate": 0.01, "--device": "cpu",
        "--losses": 0.1, "--workers": 1, "--seed": 9, "--corruption": 0.2, "--dropout": 0.1,
        "--trainable": "norms", "--dp": "example", "--target-epsilon": 900, "--delta": 1e-6,
        "--baseline": "centralised", "--set": "engine.cores=1",
    }  # fmt: skip
    words = [word for pair in flags.items() for word in pair]
    privfr("run", "--data", people, "--out", tmp_path / "r", *words).done()
    wanted = {
        "federation.backend": "trusted", "data.clients": 2, "federation.rounds": 1, "training.epochs": 2,
        "data.public": 3, "data.test": 3, "data.per_client": 2, "pretraining.epochs": 1,
        "method.head": "softmax", "method.trainable": "norms",
        "training.learning_rate": 0.01, "training.device": "cpu", "engine.losses": 0.1, "engine.workers": 1,
        "masking.corruption": 0.2, "masking.dropout": 0.1, "privacy.corruption": 0.2, "privacy.dropout": 0.1,
        "privacy.level": "example", "privacy.epsilon": 900, "privacy.delta": 1e-6,
        "seed": 9, "baselines": ["centralised"], "engine.cores": 1, "data.source": str(people),
    }  # fmt: skip
    assert load_experiment(tmp_path / "r" / "experiment.toml") == load_experiment(None, wanted).resolved()


def test_the_written_experiment_repeats_the_run(
    privfr: Command, ran: tuple[Path, str], tmp_path: Path
) -> None:
    privfr("run", "--config", ran[0] / "experiment.toml", "--out", tmp_path / "r").done()
    assert differing(tmp_path / "r", ran[0]) == []
    again, first = Report.load(tmp_path / "r" / "report.json"), Report.load(ran[0] / "report.json")
    assert facts(again) == facts(first)
    assert again.run != first.run


def test_resume_of_a_finished_run_gives_its_report(privfr: Command, ran: tuple[Path, str]) -> None:
    assert privfr("run", "--resume", ran[0], "--json").json == json.loads(ran[1])


def test_interrupt_says_how_to_go_on(
    privfr: Command, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privfr_cli import render

    show = render.Watch.__call__

    def interrupt(watch: render.Watch, event: object) -> None:
        show(watch, event)  # type: ignore[arg-type]
        if type(event).__name__ == "RoundEnded":
            raise KeyboardInterrupt

    out = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr(render.Watch, "__call__", interrupt)
        outcome = privfr("run", "--data", people, "--out", out, *FLAGS)
    assert outcome.code == 130
    assert f"privfr run --resume {out}" in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
    assert privfr("run", "--resume", out, "--json").json["finished"]


def test_log_is_read_line_by_line_and_holds_no_clients_loss(ran: tuple[Path, str]) -> None:
    events = [json.loads(line) for line in (ran[0] / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("round") == 2
    assert {event["event"] for event in events} <= {"stage", "round", "measured", "notice"}
    assert all(event["time"] > 1e9 for event in events)
    assert not any("client" in event for event in events)
    for event in events:
        if event["event"] == "round":
            assert set(event["report"]["metrics"]) == {"loss"}


# evaluate, verify, embed


def test_evaluate_all_pairs(privfr: Command, ran: tuple[Path, str], people: Path) -> None:
    figures = privfr("evaluate", ran[0], "--data", people, "--json").json
    assert figures["genuine"] == 12 * 6
    assert figures["impostor"] == 48 * 47 // 2 - 12 * 6
    assert 0 <= figures["eer"] <= 1
    assert 0 <= figures["auc"] <= 1
    assert figures["tar_at_far"]
    assert "accuracy" not in figures


def test_evaluate_pairs(privfr: Command, ran: tuple[Path, str], people: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in people.iterdir())
    lfw = tmp_path / "lfw"
    for name in names:
        (lfw / name).mkdir(parents=True)
        for number, path in enumerate(sorted((people / name).iterdir()), 1):
            shutil.copy(path, lfw / name / f"{name}_{number:04d}.png")
    rows = ["2\t4"]
    for fold in range(2):
        rows += [f"{name}\t1\t2" for name in names[6 * fold : 6 * fold + 4]]
        rows += [f"{names[6 * fold + i]}\t3\t{names[6 * fold + i + 1]}\t4" for i in range(4)]
    (tmp_path / "pairs.txt").write_text("\n".join(rows) + "\n")
    arguments = ["evaluate", ran[0], "--data", lfw, "--pairs", tmp_path / "pairs.txt"]
    figures = privfr(*arguments, "--json").json
    assert (figures["genuine"], figures["impostor"]) == (8, 8)
    assert 0 <= figures["accuracy"] <= 1
    assert 0 <= figures["eer"] <= 1
    assert "tar_at_far" in figures
    shown = privfr(*arguments).done().out
    assert "accuracy" in shown
    assert "8 genuine and 8 impostor pairs" in shown


def test_evaluate_a_checkpoint_as_its_run(privfr: Command, ran: tuple[Path, str], people: Path) -> None:
    model = ran[0] / "models" / "federated.safetensors"
    one = privfr("evaluate", model, "--data", people, "--json").json
    assert one == privfr("evaluate", ran[0], "--data", people, "--json").json


def test_evaluate_baselines(privfr: Command, people: Path, tmp_path: Path) -> None:
    from privfr.runs import run

    run(experiment(people, WHOLE), tmp_path / "r")
    arguments = ["evaluate", tmp_path / "r", "--data", people, "--baselines"]
    figures = privfr(*arguments, "--json").json
    alone = {f"individual {client}" for client in range(3)}
    assert set(figures["models"]) == {"untrained", "pretrained", "centralised"} | alone
    assert all(0 <= each["eer"] <= 1 for each in figures["models"].values())
    assert "centralised" in privfr(*arguments).done().out


def test_verify(privfr: Command, ran: tuple[Path, str], people: Path) -> None:
    picture, *_ = sorted(people.glob("*/*.png"))
    stranger = sorted(people.glob("*/*.png"))[-1]
    base = ["verify", "--model", ran[0], "--far", "1e-1"]
    same = privfr(*base, picture, picture, "--json").json
    assert same["score"] == pytest.approx(1, abs=1e-5)
    assert same["same"] is True
    assert same["far"] == 0.1
    assert same["threshold"] == Recogniser.load(ran[0] / "models/federated.safetensors").thresholds["1e-1"]
    nearest = privfr("verify", "--model", ran[0], picture, picture, "--json").json
    assert nearest == same, "without --far, 1e-2 or the nearest there is"
    other = privfr(*base, picture, stranger, "--json").json
    assert other["same"] == (other["score"] >= other["threshold"])
    assert "the same person: score 1.000" in privfr(*base, picture, picture).done().out


def test_embed_npz(privfr: Command, ran: tuple[Path, str], people: Path, tmp_path: Path) -> None:
    privfr("embed", ran[0], people, "--out", tmp_path / "e.npz").done()
    with np.load(tmp_path / "e.npz", allow_pickle=False) as found:
        assert found["embeddings"].shape == (48, 128)
        np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-5)
        assert len(set(found["names"].tolist())) == 12
        assert all((people / file).is_file() for file in found["files"].tolist())


def test_embed_csv_holds_the_same(
    privfr: Command, ran: tuple[Path, str], people: Path, tmp_path: Path
) -> None:
    privfr("embed", ran[0], people, "--out", tmp_path / "e.npz").done()
    privfr("embed", ran[0], people, "--out", tmp_path / "e.csv").done()
    with (tmp_path / "e.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["file", "name", "e0"]
    with np.load(tmp_path / "e.npz") as found:
        numbers = np.array([[float(value) for value in row[2:]] for row in rows])
        np.testing.assert_allclose(numbers, found["embeddings"], atol=1e-6)
        assert [row[0] for row in rows] == found["files"].tolist()


# data, info, help


def test_data_list(privfr: Command) -> None:
    shown = privfr("data", "list").done().out
    assert all(word in shown for word in ("synthetic", "celeba:ROOT", "lfw:ROOT", "FOLDER"))


def test_data_write_and_inspect(privfr: Command, tmp_path: Path) -> None:
    words = ["--identities", 3, "--images", 2, "--size", 32, "--seed", 4]
    privfr("data", "write", tmp_path / "w", *words).done()
    figures = privfr("data", "inspect", tmp_path / "w", "--size", 32, "--json").json
    assert (figures["people"], figures["pictures"], figures["skipped"]) == (3, 6, [])
    assert (figures["fewest"], figures["most"], figures["people_with_one_picture"]) == (2, 2, 0)
    drawn = privfr("data", "inspect", "synthetic:identities=3,images=2,seed=4", "--json").json
    assert drawn["people"] == 3


def test_data_inspect_sheet(privfr: Command, people: Path, tmp_path: Path) -> None:
    shown = privfr("data", "inspect", people, "--sheet", tmp_path / "sheet.png").done().out
    assert "48 pictures of 12 people" in shown
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 * 64, 12 * 64)


def test_info(privfr: Command) -> None:
    facts = privfr("info", "--json").json
    assert {"privfr", "torch", "python"} <= set(facts["versions"])
    assert {each["name"]: each["server_learns"] for each in facts["backends"]} == {
        "plain": "updates",
        "masking": "sum",
        "masking-passive": "sum",
        "trusted": "sum",
        "bfv": "nothing",
        "ckks": "nothing",
        "bfv-authority": "sum",
        "ckks-authority": "sum",
    }
    assert "trusted" in privfr("info").done().out


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["evaluate"], ["verify"], ["embed"], ["data"], ["data", "list"], ["data", "inspect"],
     ["data", "write"], ["info"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_help(command: list[str], privfr: Command) -> None:
    shown = privfr(*command, "--help").done().out
    assert "Usage:" in shown
    text = [line for line in shown.splitlines() if line.strip() and "Usage:" not in line]
    assert text[0].strip()[0].isupper(), "a command says what it does"
    assert "--help" in shown


def test_help_is_fast_and_does_without_torch() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = subprocess.run([sys.executable, "-m", "privfr_cli.app", "--help"], capture_output=True)
        seconds.append(time.perf_counter() - started)
        assert found.returncode == 0
    assert min(seconds) < 0.5, f"{min(seconds):.2f} s"
    code = "import sys, privfr, privfr_cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_info_derives_the_graph_of_masking(privfr: Command) -> None:
    found = privfr("info", "--clients", 100, "--json").json["masking"]
    assert (found["clients"], found["corrupt"], found["dropped"]) == (100, 5, 5)
    assert (found["neighbours"], found["shares"], found["committee"], found["quorum"]) == (16, 11, 16, 11)
    assert found["privacy"] < -40
    shown = privfr("info", "--clients", 1000, "--corruption", 0.1, "--dropout", 0.1).done().out
    for words in (
        "84 neighbours",
        "50 of whom",
        "100 of the clients collude",
        "113 of 156 must agree",
        "2^-41",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clients", 2], ["1 of 2 clients may be corrupt", "--corruption 0"]),
        (["--clients", 10, "--corruption", 0.6, "--dropout", 0.3], ["lower --corruption or --dropout"]),
        (["--clients", 10, "--dropout", 1.5], ["dropout", "share"]),
    ],
)
def test_info_refuses_a_promise_that_cannot_be_kept(
    privfr: Command, flags: list[object], words: list[str]
) -> None:
    privfr("info", *flags).refused(*words)


def test_run_refuses_raw_numbers_that_break_the_promise(
    privfr: Command, people: Path, tmp_path: Path
) -> None:
    raw = ["--set", "masking.neighbours=2", "--set", "masking.shares=1"]
    privfr("run", "--data", people, "--out", tmp_path / "r", *FLAGS, *raw).refused("privacy", "2^-40")
    half = ["--set", "masking.neighbours=2"]
    privfr("run", "--data", people, "--out", tmp_path / "r", *FLAGS, *half).refused("masking.shares", "both")
    many = ["--clients", 300, "--set", "coding.bits=24"]
    privfr("run", "--data", people, "--out", tmp_path / "r", *many).refused("bits is 24", "set bits to 23")
    assert not (tmp_path / "r").exists()
