"""Bar of the command line: whatever is wrong with the input, one line says what and what to do; exit code 2.

Progress may come before that line on standard error; standard output stays empty. A run that is refused
for its settings or data leaves no run directory behind, so that the mended command can be given as it was.
"""

from __future__ import annotations

import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import FAST, Command
from PIL import Image
from tiny import differing, experiment, tensors, write_noise

from privfr.directory import RunDirectory
from privfr.faces.recogniser import Recogniser
from privfr.runs import run as run_here


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def untouched(out: Path) -> bool:
    return not out.exists() or not any(out.iterdir())


def cut(path: Path, keep: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


# The data folder


def test_missing_folder(privfr: Command, tmp_path: Path, out: Path) -> None:
    privfr("run", "--data", tmp_path / "nowhere", "--out", out).refused("nowhere: no such folder", "layout")
    assert untouched(out)


def test_folder_is_a_file(privfr: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "file").write_text("x")
    privfr("run", "--data", tmp_path / "file", "--out", out).refused("a file, not a folder")
    assert untouched(out)


def test_empty_folder(privfr: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    privfr("run", "--data", tmp_path / "empty", "--out", out).refused("empty: no pictures", "layout")
    assert untouched(out)


def test_pictures_without_a_persons_folder(privfr: Command, tmp_path: Path, out: Path) -> None:
    write_noise(tmp_path / "root", {"Ann": 2})
    privfr("run", "--data", tmp_path / "root" / "Ann", "--out", out).refused("2 pictures directly in it")
    assert untouched(out)


def test_one_identity(privfr: Command, tmp_path: Path, out: Path) -> None:
    data = write_noise(tmp_path / "data", {"Ann": 4})
    line = privfr("run", "--data", data, "--out", out, *FAST).refused("identit")
    assert "1" in line
    assert untouched(out)


def test_one_identity_cannot_be_evaluated(privfr: Command, tmp_path: Path, trained: Path) -> None:
    data = write_noise(tmp_path / "data", {"Ann": 4})
    privfr("evaluate", trained, "--data", data).refused("at least 2 people", "add some")


def test_one_picture_a_person_cannot_be_evaluated(privfr: Command, tmp_path: Path, trained: Path) -> None:
    data = write_noise(tmp_path / "data", {"Ann": 1, "Bob": 1})
    privfr("evaluate", trained, "--data", data).refused("no person here has two pictures")


def test_identity_with_one_picture_is_left_out_and_named(privfr: Command, noise: Path, out: Path) -> None:
    write_noise(noise, {"Lone": 1})
    outcome = privfr("run", "--data", noise, "--out", out, "--json", *FAST).done()
    assert outcome.json["people"] == {"public": 0, "test": 2, "clients": 2}
    assert "Lone" in outcome.err, "the user is not told that somebody is left out"


def test_only_identities_with_one_picture(privfr: Command, tmp_path: Path, out: Path) -> None:
    data = write_noise(tmp_path / "data", {"Ann": 1, "Bob": 1, "Cid": 1})
    privfr("run", "--data", data, "--out", out, *FAST).refused("2 usable pictures", "min_images")
    assert untouched(out)


# Pictures that are broken: left out, named, and the run goes on


def broken_truncated(path: Path) -> None:
    cut(path)


def broken_empty(path: Path) -> None:
    path.write_bytes(b"")


def broken_text(path: Path) -> None:
    path.write_text("this is no picture")


def broken_huge(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


BROKEN = {
    "truncated": (broken_truncated, "cut short"),
    "zero bytes": (broken_empty, "empty file"),
    "not an image": (broken_text, "not a picture"),
    "100 megapixels": (broken_huge, "10000 x 10000"),
    "a link to itself": (broken_link, "file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_picture_is_skipped_and_named_by_run(
    kind: str, privfr: Command, noise: Path, out: Path
) -> None:
    damage, reason = BROKEN[kind]
    damage(noise / "Bob" / "Bob_0002.png")
    outcome = privfr("run", "--data", noise, "--out", out, "--json", *FAST).done()
    assert sum(outcome.json["pictures"].values()) == 11
    assert "Bob/Bob_0002.png" in outcome.err, "the user is not told which picture is left out"
    assert reason in outcome.err


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_picture_is_skipped_and_named_by_inspect(kind: str, privfr: Command, noise: Path) -> None:
    damage, reason = BROKEN[kind]
    damage(noise / "Bob" / "Bob_0002.png")
    figures = privfr("data", "inspect", noise, "--json").json
    assert figures["pictures"] == 11
    ((file, why),) = figures["skipped"]
    assert file == "Bob/Bob_0002.png"
    assert reason in why


@pytest.mark.parametrize("command", ["evaluate", "embed"])
def test_broken_picture_is_skipped_and_named_by_others(
    command: str, privfr: Command, noise: Path, trained: Path, tmp_path: Path
) -> None:
    (noise / "Bob" / "Bob_0002.png").write_bytes(b"")
    arguments = {
        "evaluate": ["evaluate", trained, "--data", noise],
        "embed": ["embed", trained, noise, "--out", tmp_path / "e.csv"],
    }
    assert "skipped Bob/Bob_0002.png: an empty file" in privfr(*arguments[command]).done().err


def test_every_picture_broken(privfr: Command, noise: Path, out: Path) -> None:
    for path in noise.glob("*/*.png"):
        path.write_bytes(b"")
    privfr("run", "--data", noise, "--out", out).refused("none of its 12 pictures can be read", "empty file")
    assert untouched(out)


def test_broken_pictures_can_cost_a_person(privfr: Command, noise: Path, out: Path) -> None:
    for number in (1, 2):
        (noise / "Bob" / f"Bob_000{number}.png").write_bytes(b"")
    for number in (1, 2):
        (noise / "Ann" / f"Ann_000{number}.png").write_bytes(b"")
    privfr("run", "--data", noise, "--out", out, *FAST).refused("2 clients need 2 identities")
    assert untouched(out)


# Pictures that are odd: read and trained on


def odd_cmyk(path: Path) -> Path:
    new = path.with_suffix(".jpg")
    Image.open(path).convert("CMYK").save(new)
    return new


def odd_16_bit(path: Path) -> Path:
    grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)
    return path


def odd_animated(path: Path) -> Path:
    new = path.with_suffix(".gif")
    first = Image.open(path).convert("P")
    first.save(new, save_all=True, append_images=[first.rotate(90)], duration=50)
    return new


def odd_rgba(path: Path) -> Path:
    picture = Image.open(path).convert("RGBA")
    picture.putalpha(128)
    picture.save(path)
    return path


@pytest.mark.parametrize("change", [odd_cmyk, odd_16_bit, odd_animated, odd_rgba])
def test_odd_picture_is_trained_on(change: object, privfr: Command, noise: Path, out: Path) -> None:
    assert callable(change)
    for path in sorted(noise.glob("*/*_0001.png")):
        if change(path) != path:
            path.unlink()
    outcome = privfr("run", "--data", noise, "--out", out, "--json", *FAST).done()
    assert outcome.json["pictures"] == {"public": 0, "test": 6, "clients": 6}
    assert outcome.json["rounds"][0]["weight"] == 6
    assert "skipped" not in outcome.err


# Names


def test_unicode_names(privfr: Command, tmp_path: Path, out: Path) -> None:
    names = ["Zoë", "李明", "Ærøskøbing O'Neil", "مريم"]
    data = write_noise(tmp_path / "dätä", dict.fromkeys(names, 2))
    privfr("run", "--data", data, "--out", out, "--json", *FAST).done()
    parts = RunDirectory(out).split()
    assert sorted({*parts.test, *(name for share in parts.clients for name in share.names)}) == sorted(names)


def test_blank_name(privfr: Command, noise: Path, out: Path) -> None:
    write_noise(noise, {"  ": 2})
    privfr("run", "--data", noise, "--out", out).refused("blank", "name it after the person")
    assert untouched(out)


def test_two_spellings_of_one_name(privfr: Command, noise: Path, out: Path) -> None:
    write_noise(noise, {"Zo\u00eb": 2, "Zoe\u0308": 2})
    privfr("run", "--data", noise, "--out", out).refused("look the same", "merge or rename")
    assert untouched(out)


def test_name_that_is_not_utf8(privfr: Command, noise: Path, out: Path) -> None:
    try:
        os.rename(noise / "Bob", os.fsencode(noise) + b"/B\xff")  # noqa: PTH104
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    privfr("run", "--data", noise, "--out", out).refused("not UTF-8", "rename")
    assert untouched(out)


# Symbolic links that loop


def test_person_links_to_the_root(privfr: Command, noise: Path, out: Path) -> None:
    (noise / "Loop").symlink_to(noise)
    outcome = privfr("run", "--data", noise, "--out", out, "--json", *FAST).done()
    assert sum(outcome.json["pictures"].values()) == 12


def test_person_links_to_itself(privfr: Command, noise: Path, out: Path) -> None:
    (noise / "Loop").symlink_to("Loop")
    outcome = privfr("run", "--data", noise, "--out", out, "--json", *FAST).done()
    assert sum(outcome.json["pictures"].values()) == 12


def test_root_links_to_itself(privfr: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    privfr("run", "--data", tmp_path / "a", "--out", out).refused("/a: ")
    assert untouched(out)


def test_person_who_is_a_link_to_another(privfr: Command, noise: Path, out: Path) -> None:
    (noise / "Twin").symlink_to("Ann")
    outcome = privfr("run", "--data", noise, "--out", out, "--json", *FAST).done()
    assert sum(outcome.json["pictures"].values()) == 12
    assert "Twin" in outcome.err, "the user is not told that a folder is left out"


# The experiment


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(text)
    return path


CONFIGS = {
    "unknown key": ("[data]\nclents = 3", ["exp.toml", "data.clents", "data.clients"]),
    "unknown table": ("[dta]\nclients = 3", ["exp.toml", "dta", "did you mean data"]),
    "unknown and far": ("[data]\nxyzzy = 3", ["exp.toml", "data.xyzzy", "known here", "scheme"]),
    "text for a number": ('[data]\nclients = "three"', ["exp.toml", "data.clients", "int", "str"]),
    "number for text": ("[model]\nbackbone = 3", ["exp.toml", "model.backbone", "str", "int"]),
    "value for a table": ("data = 3", ["exp.toml", "data", "table"]),
    "below the least": ("[data]\nclients = 0", ["exp.toml", "data.clients", ">= 2"]),
    "dropout of 1": ("[engine]\nlosses = 1.0", ["exp.toml", "engine.losses", "1"]),
    "not a number": ("[training]\nlearning_rate = nan", ["exp.toml", "training.learning_rate"]),
    "enum": ('[data]\nscheme = "some"', ["exp.toml", "data.scheme", "one", "many", "dirichlet"]),
    "enum in a list": ('baselines = ["alone"]', ["exp.toml", "baselines", "individual", "centralised"]),
    "not TOML": ("[data\nclients: 3", ["exp.toml", "TOML", "line 1"]),
    "three sides": ("[data]\nsize = [64, 64, 64]", ["exp.toml", "data.size"]),
    "phase": (
        '[data]\nclients = 3\n[engine]\nphases = ["nonsense"]',
        ["engine.phases", "nonsense", "begin", "result"],
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_config(case: str, privfr: Command, noise: Path, tmp_path: Path, out: Path) -> None:
    text, words = CONFIGS[case]
    arguments = ["run", "--config", config(tmp_path, text), "--out", out]
    if case != "value for a table":  # which no flag can then go into
        arguments += ["--data", noise, "--test", "2", "--rounds", "1", "--set", "engine.cores=1"]
    privfr(*arguments).refused(*words)
    assert untouched(out)


def test_config_missing(privfr: Command, tmp_path: Path, out: Path) -> None:
    privfr("run", "--config", tmp_path / "no.toml", "--out", out).refused("no.toml: cannot be read", "TOML")


def test_config_is_a_folder(privfr: Command, tmp_path: Path, out: Path) -> None:
    privfr("run", "--config", tmp_path, "--out", out).refused(str(tmp_path), "cannot be read")


def test_config_is_not_text(privfr: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "exp.toml").write_bytes(b"\xff\xfe\x00")
    privfr("run", "--config", tmp_path / "exp.toml", "--out", out).refused("exp.toml", "not UTF-8")


SETTINGS = {
    "data.clents=3": ["data.clents", "did you mean data.clients"],
    "data.clients=three": ["data.clients", "expected int, got str"],
    "data.scheme=some": ["data.scheme", "some", "one, many, dirichlet"],
    "training.device=gpu": ["training.device", "gpu", "auto, cpu, cuda"],
    "engine.name=flowr": ["engine.name", "flowr", "local"],
    "data.clients": ["--set", "KEY=VALUE"],
    "=3": ["--set", "KEY=VALUE"],
    "data=3": ["data", "table"],
    "data.size.side=3": ["size"],
    "data.clients.count=3": ["data.clients"],
    "data..clients=3": ["data."],
    "data.clients=": ["data.clients"],
    "training.batch=4\nseed=3": ["training.batch"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_bad_set(setting: str, privfr: Command, noise: Path, out: Path) -> None:
    base = [] if setting.startswith("data") else ["--data", noise, *FAST]
    privfr("run", *base, "--set", setting, "--out", out).refused(*SETTINGS[setting])
    assert untouched(out)


FLAGS = {
    ("--backend", "trustd"): ["trustd", "did you mean 'trusted'"],
    ("--method", "suprvised"): ["suprvised", "did you mean 'supervised'"],
    ("--backbone", "smal"): ["smal", "did you mean 'small'"],
    ("--head", "cosfac"): ["method.head", "cosfac", "cosface", "arcface", "softmax", "sphereface2"],
    ("--trainable", "adaptor"): [
        "method.trainable",
        "did you mean 'adapter'",
        "all, last, adapter, norms",
    ],
    ("--dp", "persons"): ["privacy.level", "persons", "none, example, client, both"],
    ("--target-epsilon", "8"): ["privacy.epsilon", "--dp", "none, example, client, both"],
    ("--trainable", "adapter", "--set", "method.rank=0"): ["method.rank", ">= 1"],
    ("--trainable", "adapter", "--set", "method.rank=65"): ["method.rank", "65", "128", "at most 64"],
    ("--trainable", "norms", "--backbone", "sphere20", "--set", "data.size=[112, 96]"): [
        "method.trainable",
        "sphere20",
        "take last or adapter",
    ],
    ("--scheme", "some"): ["data.scheme", "some", "one, many, dirichlet"],
    ("--engine", "remote"): ["engine.name", "remote", "local"],
    ("--device", "gpu"): ["training.device", "gpu", "auto, cpu, cuda"],
    ("--baseline", "alone"): ["baselines", "alone", "individual", "centralised"],
    ("--clients", "three"): ["--clients", "integer"],
    ("--clients", "0"): ["clients"],
    ("--clients", "1"): ["clients"],
    ("--losses", "1.5"): ["losses", "1"],
    ("--learning-rate", "-1"): ["learning_rate"],
    ("--size", "50"): ["small", "64x64", "50x50"],
    ("--no-such-flag", "3"): ["--no-such-flag"],
    ("--roundz", "3"): ["--roundz", "--rounds"],
    ("--pretrain", "2"): ["pretraining.epochs", "data.public"],
    ("--start", "absent.safetensors"): ["absent.safetensors", "no such file"],
    ("--clients", "40"): ["clients", "40"],
    ("--test", "13"): ["test", "13"],
    ("--set", "data.public=9"): ["public", "9"],
    ("--set", "federation.threshold=4"): ["federation.threshold", "4"],
    ("--set", "model.dim=100000000000"): ["model.dim"],
    ("--backend", "bfv", "--set", "federation.evaluate=server"): ["federation.evaluate", "bfv", "member"],
    ("--backend", "ckks", "--set", "coding.bits=1"): ["bits", "2"],
    ("--set", "federation.evaluate=nobody"): ["federation.evaluate", "auto, server, member"],
}


@pytest.mark.parametrize("flag", FLAGS, ids=" ".join)
def test_bad_flag(flag: tuple[str, ...], privfr: Command, people: Path, out: Path) -> None:
    base = ["--clients", "3", "--rounds", "1", "--test", "4", "--workers", "1", "--set", "engine.cores=1"]
    privfr("run", "--data", people, "--out", out, *base, *flag).refused(*FLAGS[flag])
    assert untouched(out)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("synthetc", ["synthetc", "did you mean 'synthetic'"]),
        ("celba:/data", ["celba:/data", "did you mean 'celeba'"]),
        ("s3:/bucket", ["s3:/bucket", "synthetic, celeba, lfw"]),
        ("synthetic:people=3", ["people", "identities"]),
        ("synthetic:identities=few", ["identities", "few"]),
        ("lfw:", ["lfw"]),
        ("", ["source is empty"]),
    ],
)
def test_bad_source(source: str, words: list[str], privfr: Command, out: Path) -> None:
    privfr("run", "--data", source, "--out", out).refused(*words)
    assert untouched(out)


def test_unknown_command(privfr: Command) -> None:
    privfr("rum").refused("rum", "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(privfr: Command, people: Path, out: Path) -> None:
    privfr("run", "--data", people, "--device", "cuda", "--out", out, *FAST).refused("cuda", "--device cpu")
    assert untouched(out)


# The run directory


def test_out_that_is_not_empty(privfr: Command, people: Path, out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("dear diary")
    privfr("run", "--data", people, "--out", out, *FAST).refused(str(out), "not an empty folder")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_out_that_is_a_file(privfr: Command, people: Path, out: Path) -> None:
    out.write_text("dear diary")
    privfr("run", "--data", people, "--out", out, *FAST).refused(str(out), "cannot be made", "another place")
    assert out.read_text() == "dear diary"


def test_out_below_a_file(privfr: Command, people: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" / "run"
    privfr("run", "--data", people, "--out", place, *FAST).refused(
        str(place), "cannot be made", "another place"
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
def test_out_unwritable(privfr: Command, people: Path) -> None:
    privfr("run", "--data", people, "--out", "/proc/run", *FAST).refused(
        "/proc/run", "cannot be made", "another place"
    )


def test_unwritable_out_is_refused_before_the_pictures_are_read(
    privfr: Command, people: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    outcome = privfr("run", "--data", people, "--out", tmp_path / "file" / "run", *FAST)
    outcome.refused("cannot be made")
    assert "pictures" not in outcome.err, "reading a large data set first costs the user minutes"


def test_resume_with_other_flags(privfr: Command, trained: Path) -> None:
    privfr("run", "--resume", trained, "--rounds", "5").refused("--resume", "no other flag")


def test_resume_of_nothing(privfr: Command, tmp_path: Path) -> None:
    privfr("run", "--resume", tmp_path / "nowhere").refused("nowhere", "privfr run")


def test_resume_of_a_folder_without_a_run(privfr: Command, tmp_path: Path) -> None:
    privfr("run", "--resume", tmp_path).refused(str(tmp_path), "privfr run")


def test_resume_with_a_damaged_report(privfr: Command, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"run": ')
    privfr("run", "--resume", tmp_path).refused("report.json", "not a report")


def interrupted(people: Path, out: Path) -> None:
    """Leave a run that was interrupted after its first round."""

    def observe(event: object) -> None:
        if type(event).__name__ == "RoundEnded":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(experiment(people), out, observe)


def test_resume_with_a_damaged_split(privfr: Command, people: Path, out: Path) -> None:
    interrupted(people, out)
    cut(out / "split.json")
    privfr("run", "--resume", out).refused("split.json")


def test_resume_with_a_damaged_model(privfr: Command, people: Path, out: Path) -> None:
    interrupted(people, out)
    cut(out / "models" / "round-1.safetensors")
    privfr("run", "--resume", out).refused("round-1.safetensors")


def test_resume_with_damaged_private_tensors(privfr: Command, people: Path, out: Path) -> None:
    interrupted(people, out)
    cut(out / "clients" / "0001" / "round-1.safetensors")
    privfr("run", "--resume", out).refused("0001/round-1.safetensors")


def test_resume_with_private_tensors_missing(privfr: Command, people: Path, out: Path) -> None:
    interrupted(people, out)
    (out / "clients" / "0001" / "round-1.safetensors").unlink()
    privfr("run", "--resume", out).refused("0001/round-1.safetensors")


def test_resume_where_the_data_are_gone(privfr: Command, noise: Path, out: Path) -> None:
    def observe(event: object) -> None:
        if type(event).__name__ == "RoundEnded":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(experiment(noise, data__clients=2, data__test=2), out, observe)
    (noise / "Bob").rename(noise / "Rob")
    privfr("run", "--resume", out).refused("Bob")


# A full disk. Root may write everywhere, so the limit on a file's size stands in for the disk's end.


def limited(limit: int) -> object:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_full_disk_at_the_first_model(
    privfr: Command, privfr_process: Command, people: Path, out: Path, trained: Path
) -> None:
    flags = ["--data", people, "--out", out, "--clients", 3, "--test", 5, "--rounds", 2, "--workers", 1]
    flags += ["--set", "training.batch=4", "--set", "engine.cores=1", "--backend", "plain"]
    outcome = privfr_process("run", *flags, before=limited(1_000_000))
    outcome.refused("untrained.safetensors", "cannot be written")
    privfr("run", "--resume", out, "--json").done()
    assert differing(out, trained) == []


def test_full_disk_in_the_middle(privfr: Command, people: Path, out: Path, tmp_path: Path) -> None:
    """An individual's training state, with its head, is larger than any model before it."""
    flags = ["--clients", 3, "--test", 5, "--rounds", 2, "--workers", 2]
    flags += ["--set", "training.batch=4", "--set", "engine.cores=1", "--baseline", "individual"]
    flags += ["--set", "federation.momentum=0"]  # without its velocity a round's model is the smaller
    whole = tmp_path / "whole"
    privfr("run", "--data", people, "--out", whole, *flags).done()
    state = (whole / "clients" / "0000" / "training.safetensors").stat().st_size
    assert all(path.stat().st_size < state for path in (whole / "models").iterdir())
    with file_limit(state - 1):
        privfr("run", "--data", people, "--out", out, *flags).refused("training.safetensors", "cannot")
    privfr("evaluate", out, "--data", people, "--json").done()
    assert not [path for path in out.rglob(".*") if path.is_file()], "temporary files are left"
    privfr("run", "--resume", out, "--json").done()
    assert differing(out, whole) == []


def test_full_disk_at_the_log(privfr: Command, people: Path, out: Path, trained: Path) -> None:
    """The log's last line is torn where the disk ends; after that it must still be read line by line."""
    interrupted(people, out)
    log = out / "log.jsonl"
    # Larger than anything but the log, whose next line then does not fit.
    padding = {"event": "stage", "name": "x" * 3_000_000, "done": 0, "total": 0, "loss": None}
    log.write_bytes(log.read_bytes() + json.dumps({"time": 0.0, **padding}).encode() + b"\n")
    with file_limit(log.stat().st_size + 40):
        privfr("run", "--resume", out).refused("log.jsonl", "cannot be written")
    privfr("run", "--resume", out, "--json").done()
    assert differing(out, trained) == []
    for line in log.read_text().splitlines():
        json.loads(line)


class file_limit:
    """No file grows beyond so many bytes inside of this block."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


# Checkpoints


def foreign_architecture(path: Path, trained: Path) -> None:
    """A file that says "small" and holds a resnet."""
    with safetensors.safe_open(trained / "models" / "federated.safetensors", "numpy") as file:
        metadata = file.metadata()
    path.write_bytes(safetensors.numpy.save(Recogniser.new("resnet", (64, 64)).tensors(), metadata))


def cut_short(path: Path, trained: Path) -> None:
    path.write_bytes((trained / "models" / "federated.safetensors").read_bytes()[:-1000])


def cut_in_the_header(path: Path, trained: Path) -> None:
    path.write_bytes((trained / "models" / "federated.safetensors").read_bytes()[:100])


def not_safetensors(path: Path, trained: Path) -> None:
    path.write_bytes(b"PK\x03\x04 a torch pickle, perhaps")


def not_privfr(path: Path, trained: Path) -> None:
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros(3, np.float32)}))


def lying_header(path: Path, trained: Path) -> None:
    """A header that claims to be as long as the memory."""
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")


def empty_file(path: Path, trained: Path) -> None:
    path.write_bytes(b"")


CHECKPOINTS = {
    foreign_architecture: "another architecture",
    cut_short: "not a whole safetensors file",
    cut_in_the_header: "not a whole safetensors file",
    not_safetensors: "safetensors",
    not_privfr: "not a privfr checkpoint",
    lying_header: "safetensors",
    empty_file: "safetensors",
}


@pytest.mark.parametrize("command", ["evaluate", "verify", "embed"])
@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_bad_checkpoint(
    damage: object, command: str, privfr: Command, trained: Path, people: Path, tmp_path: Path
) -> None:
    assert callable(damage)
    model, picture = tmp_path / "model.safetensors", next(people.glob("*/*.png"))
    damage(model, trained)
    arguments = {
        "evaluate": ["--data", people],
        "verify": [picture, picture, "--model", model],
        "embed": [people, "--out", tmp_path / "e.npz"],
    }[command]
    if command != "verify":
        arguments = [model, *arguments]
    privfr(command, *arguments).refused("model.safetensors: ", CHECKPOINTS[damage])
    assert not (tmp_path / "e.npz").exists()


def test_checkpoint_missing(privfr: Command, people: Path, tmp_path: Path) -> None:
    privfr("evaluate", tmp_path / "no.safetensors", "--data", people).refused("no.safetensors", "no such")


def test_folder_that_is_no_run(privfr: Command, people: Path) -> None:
    privfr("evaluate", people, "--data", people).refused(str(people), "privfr run")


def test_run_that_is_not_finished(privfr: Command, people: Path, out: Path) -> None:
    interrupted(people, out)
    privfr("evaluate", out, "--data", people).refused("no finished federated model", f"--resume {out}")


# evaluate, verify, embed, data


def test_pairs_missing(privfr: Command, trained: Path, people: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", trained, "--data", people, "--pairs", tmp_path / "no.txt"]
    privfr(*arguments).refused("no.txt", "pairs file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["pairs of both kinds"]),
        ("1\nAnn 1\n", [":2:", "name i j"]),
        ("1\nAnn 1 x\nAnn 1 Bob 1\n", [":2:", "'x'"]),
        ("1\nAnn 1 1\nAnn 1 Bob 1\n", [":2:", "itself"]),
        ("2\nAnn 1 2\nAnn 1 Bob 1\n", ["pairs.txt:"]),
    ],
)
def test_bad_pairs(
    text: str, words: list[str], privfr: Command, trained: Path, people: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    arguments = ["evaluate", trained, "--data", people, "--pairs", tmp_path / "pairs.txt"]
    privfr(*arguments).refused("pairs.txt", *words)


def test_pairs_that_are_not_text(privfr: Command, trained: Path, people: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe")
    arguments = ["evaluate", trained, "--data", people, "--pairs", tmp_path / "pairs.txt"]
    privfr(*arguments).refused("pairs.txt", "cannot be read as a pairs file")


def test_pairs_that_name_missing_pictures(
    privfr: Command, trained: Path, noise: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs.txt").write_text("1\nAnn 1 9\nAnn 1 Eve 1\n")
    arguments = ["evaluate", trained, "--data", noise, "--pairs", tmp_path / "pairs.txt"]
    privfr(*arguments).refused("Ann/Ann_0009", "2 images missing")


def test_baselines_of_a_single_checkpoint(privfr: Command, trained: Path, people: Path) -> None:
    model = trained / "models" / "federated.safetensors"
    privfr("evaluate", model, "--data", people, "--baselines").refused("--baselines", "run directory")


@pytest.mark.parametrize("far", ["1e-6", "0.5", "0", "-1", "nan", "inf"])
def test_far_that_was_not_measured(far: str, privfr: Command, trained: Path, people: Path) -> None:
    picture = next(people.glob("*/*.png"))
    arguments = ["verify", picture, picture, "--model", trained, f"--far={far}"]
    line = privfr(*arguments).refused("FAR", "choose from 1e-1")
    assert f"{float(far):g}" in line


@pytest.mark.parametrize("far", ["nonsense", ""])
def test_far_that_is_no_number(far: str, privfr: Command, trained: Path, people: Path) -> None:
    picture = next(people.glob("*/*.png"))
    privfr("verify", picture, picture, "--model", trained, f"--far={far}").refused("--far", "valid")


@pytest.mark.parametrize("far", ["0.1", "1E-1", "1e-1"])
def test_far_written_another_way(far: str, privfr: Command, trained: Path, people: Path) -> None:
    picture = next(people.glob("*/*.png"))
    privfr("verify", picture, picture, "--model", trained, "--far", far).done()


def test_verify_missing_picture(privfr: Command, trained: Path, people: Path, tmp_path: Path) -> None:
    picture = next(people.glob("*/*.png"))
    privfr("verify", picture, tmp_path / "no.jpg", "--model", trained, "--far", "1e-1").refused("no.jpg")


def test_verify_wrong_picture(privfr: Command, trained: Path, people: Path, tmp_path: Path) -> None:
    picture = next(people.glob("*/*.png"))
    (tmp_path / "x.jpg").write_text("no picture")
    arguments = ["verify", tmp_path / "x.jpg", picture, "--model", trained, "--far", "1e-1"]
    privfr(*arguments).refused("x.jpg: not a picture")


def test_embed_unknown_ending(privfr: Command, trained: Path, people: Path, tmp_path: Path) -> None:
    privfr("embed", trained, people, "--out", tmp_path / "e.txt").refused("e.txt", ".npz or .csv")


def test_embed_unwritable(privfr: Command, trained: Path, people: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["embed", trained, people, "--out", tmp_path / "file" / "e.npz"]
    privfr(*arguments).refused("e.npz", "cannot be written")


def test_inspect_missing(privfr: Command, tmp_path: Path) -> None:
    privfr("data", "inspect", tmp_path / "nowhere").refused("nowhere", "no such folder")


@pytest.mark.parametrize("size", ["0", "-3", "99999"])
def test_inspect_size(size: str, privfr: Command, noise: Path) -> None:
    privfr("data", "inspect", noise, "--size", size).refused(size, "pixels")


@pytest.mark.parametrize("name", ["sheet.txt", "sheet", "file/sheet.png"])
def test_sheet_that_cannot_be_written(name: str, privfr: Command, noise: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    privfr("data", "inspect", noise, "--sheet", tmp_path / name).refused(name)


def test_write_into_a_folder_in_use(privfr: Command, noise: Path) -> None:
    privfr("data", "write", noise, "--identities", "2", "--images", "1").refused("not an empty folder")


@pytest.mark.parametrize("flag", ["--identities", "--images", "--size", "--seed"])
def test_write_impossible(flag: str, privfr: Command, tmp_path: Path) -> None:
    base = {"--identities": 1, "--images": 1, "--size": 32, "--seed": 0} | {flag: -1}
    arguments = [word for pair in base.items() for word in pair]
    privfr("data", "write", tmp_path / "w", *arguments).refused("-1")


def test_models_of_the_trained_run_differ(trained: Path) -> None:
    """The comparisons above can fail."""
    one, other = (tensors(trained / "models" / f"{name}.safetensors") for name in ("untrained", "federated"))
    assert one != other
