"""`privfr imposters`: what it does, and one line for what it cannot do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image
from tiny import TINY, differing, experiment, write_people

from privfr.faces.recogniser import Recogniser
from privfr.runs import run as run_here

FLAGS = [
    "--clients", 3, "--test", 5, "--rounds", 1, "--width", 4, "--batch", 8, "--workers", 1,
    "--backend", "plain", "--set", "engine.cores=1", "--set", "imposters.latent=8",
]  # fmt: skip


SETTINGS = {
    "imposters.source": "federated", "imposters.rounds": 1, "imposters.width": 4, "imposters.latent": 8,
    "imposters.batch": 8, "imposters.ratio": 0.5, "federation.rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a generator and nothing else. Read only."""
    out = tmp_path_factory.mktemp("imposters") / "shared"
    run_here(experiment(people, TINY | SETTINGS), out, imposters_only=True)
    return out


@pytest.fixture(scope="module")
def own(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a generator of each client. Read only."""
    out = tmp_path_factory.mktemp("imposters") / "own"
    run_here(experiment(people, TINY | SETTINGS, imposters__source="device"), out, imposters_only=True)
    return out


@pytest.fixture
def generator(shared: Path) -> Path:
    return shared / "models" / "generator.safetensors"


# train


def test_train_trains_a_generator_and_nothing_else(
    privfr: Command, people: Path, shared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = privfr("imposters", "train", "--data", people, "--out", out, *FLAGS).done()
    assert "imposters" in outcome.err
    assert f"privfr run --resume {out}" in outcome.out
    report = json.loads((out / "report.json").read_text())
    assert report["experiment"]["imposters"]["source"] == "federated"
    assert report["imposters"]["finished"]
    assert len(report["imposters"]["rounds"]) == 1
    assert not report["finished"]
    assert {path.stem for path in (out / "models").iterdir()} == {"generator", "imposters-1"}
    assert differing(out, shared) == []


def test_the_model_can_follow_and_is_that_of_a_run_in_one_go(
    privfr: Command, shared: Path, tmp_path: Path
) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    shutil.copytree(shared, parts)
    assert privfr("run", "--resume", parts, "--json").json["finished"]
    privfr("run", "--config", shared / "experiment.toml", "--out", whole).done()
    assert differing(parts, whole) == []


def test_train_again_changes_nothing(privfr: Command, shared: Path) -> None:
    before = (shared / "models" / "generator.safetensors").stat().st_mtime_ns
    privfr("imposters", "train", "--resume", shared).done()
    assert (shared / "models" / "generator.safetensors").stat().st_mtime_ns == before


def test_train_on_public_people(privfr: Command, people: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--source", "public", "--public", 3, *FLAGS, "--set", "pretraining.epochs=0"]
    privfr("imposters", "train", "--data", people, "--out", out, *flags).done()
    found = privfr("imposters", "audit", out, "--count", 12, "--json").json
    split = json.loads((out / "split.json").read_text())
    assert found["audits"]["shared"]["copies"]["people"] == len(split["public"]) == 3
    assert found["audits"]["shared"]["copies"]["others"] == len(split["test"]) == 5


# sample


def test_sample_writes_a_sheet_and_single_pictures(privfr: Command, shared: Path, tmp_path: Path) -> None:
    sheet, folder = tmp_path / "sheet.png", tmp_path / "pictures"
    privfr("imposters", "sample", shared, "--count", 7, "--out", sheet, "--folder", folder).done()
    single = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert len(single) == 7
    whole = np.asarray(Image.open(sheet))
    assert whole.shape == (2 * 64, 4 * 64, 3)
    assert (whole[64:, :64] == single[4]).all()
    assert (whole[64:, 192:] == 255).all()


def test_sample_is_the_same_for_a_seed(privfr: Command, generator: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        privfr(
            "imposters", "sample", generator, "--seed", seed, "--count", 3, "--out", tmp_path / f"{name}.png"
        ).done()
    one, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert one == same != other


def test_sample_of_a_clients_own_generator(privfr: Command, own: Path, tmp_path: Path) -> None:
    privfr("imposters", "sample", own, "--client", 1, "--count", 2, "--out", tmp_path / "1.png").done()
    line = privfr("imposters", "sample", own, "--count", 2, "--out", tmp_path / "x.png").refused("--client")
    assert "0 to 2" in line
    privfr("imposters", "sample", own, "--client", 3, "--out", tmp_path / "x.png").refused("client 3")
    assert not (tmp_path / "x.png").exists()


def test_sample_overwrites_nothing(privfr: Command, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"mine")
    (tmp_path / "there").mkdir()
    privfr("imposters", "sample", shared, "--out", tmp_path / "here.png").refused("already there")
    privfr("imposters", "sample", shared, "--folder", tmp_path / "there").refused("already there")
    assert (tmp_path / "here.png").read_bytes() == b"mine"
    assert not list((tmp_path / "there").iterdir())


def test_sample_refuses_what_it_cannot_write(privfr: Command, shared: Path, tmp_path: Path) -> None:
    privfr("imposters", "sample", shared).refused("nothing to write", "--out", "--folder")
    privfr("imposters", "sample", shared, "--out", tmp_path / "sheet.tex").refused("sheet.tex", "picture")
    (tmp_path / "file").write_text("")
    privfr("imposters", "sample", shared, "--folder", tmp_path / "file" / "in").refused("cannot be made")


# audit


def test_audit_says_figures_and_verdicts(privfr: Command, shared: Path) -> None:
    outcome = privfr("imposters", "audit", shared, "--count", 20).done()
    for words in (
        "20 imposters",
        "coverage",
        "Frechet",
        "copies",
        "judged by an untrained network",
        "noticed",
    ):
        assert words in outcome.out.lower() or words in outcome.out, outcome.out


def test_audit_of_a_run_knows_who_learnt_from_whom(privfr: Command, shared: Path) -> None:
    found = privfr("imposters", "audit", shared, "--count", 20, "--json").json["audits"]["shared"]
    split = json.loads((shared / "split.json").read_text())
    assert found["imposters"] == 20
    assert found["copies"]["people"] == sum(len(share["names"]) for share in split["clients"]) == 7
    assert found["copies"]["others"] == len(split["test"]) == 5
    assert set(found["passed"]) == {"owners", "copies", "variety", "realism"}


def test_audit_counts_people_left_over_as_held_out(privfr: Command, people: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "run", ["--per-client", 1, *FLAGS]
    privfr("imposters", "train", "--data", people, "--out", out, *flags).done()
    found = privfr("imposters", "audit", out, "--count", 20, "--json").json["audits"]["shared"]["copies"]
    assert (found["people"], found["others"]) == (3, 9)


def test_audit_of_each_clients_own_generator(privfr: Command, own: Path) -> None:
    found = privfr("imposters", "audit", own, "--count", 12, "--json").json["audits"]
    assert sorted(found) == ["client 0", "client 1", "client 2"]
    assert [found[name]["copies"]["people"] for name in sorted(found)] == [3, 2, 2]
    text = privfr("imposters", "audit", own, "--count", 12).done().out
    assert "of each of 3 generators" in text
    assert "worst" in text


def test_audit_of_a_file(
    privfr: Command, generator: Path, people: Path, trained: Path, tmp_path: Path
) -> None:
    others = write_people(tmp_path / "others", 5, 4, seed=3)
    for folder in list(others.iterdir()):
        folder.rename(others / f"other-{folder.name}")
    flags = ["--data", people, "--heldout", others, "--model", trained, "--count", 12]
    found = privfr("imposters", "audit", generator, *flags, "--json").json
    assert found["judge"] == str(trained)
    assert found["audits"]["shared"]["copies"]["people"] == 12
    flags[3] = people
    privfr("imposters", "audit", generator, *flags).refused("among training and held-out people")


def test_audit_of_a_file_needs_to_be_told(
    privfr: Command, generator: Path, people: Path, trained: Path
) -> None:
    line = privfr("imposters", "audit", generator, "--data", people, "--model", trained)
    line.refused("--data, --heldout and --model")


def test_audit_of_a_run_is_not_told(privfr: Command, shared: Path, people: Path) -> None:
    privfr("imposters", "audit", shared, "--heldout", people).refused("--heldout", "a run knows")
    privfr("imposters", "audit", shared, "--count", 3).refused("count")
    privfr("imposters", "audit", shared, "--data", people.parent / "gone").refused("no such folder")


def test_audit_with_a_model_of_another_size(privfr: Command, shared: Path, tmp_path: Path) -> None:
    Recogniser.new("small", (112, 112)).save(tmp_path / "large.safetensors")
    privfr("imposters", "audit", shared, "--model", tmp_path / "large.safetensors").refused("64x64", "112")


# what has no generator


@pytest.mark.parametrize("verb", ["sample", "audit"])
def test_what_has_no_generator(
    privfr: Command, verb: str, trained: Path, shared: Path, tmp_path: Path
) -> None:
    flags = ["--out", tmp_path / "x.png"] if verb == "sample" else []
    told = ["--data", tmp_path, "--heldout", tmp_path, "--model", trained] if verb == "audit" else []
    privfr("imposters", verb, trained, *flags).refused("trains no generator", '"none"')
    privfr("imposters", verb, tmp_path, *flags).refused("no such file", "directory of a `privfr run`")
    privfr("imposters", verb, tmp_path / "gone", *flags, *told).refused("gone: no such file")
    model = trained / "models" / "federated.safetensors"
    privfr("imposters", verb, model, *flags, *told).refused("not a generator of privfr")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(shared, unfinished)
    report = json.loads((unfinished / "report.json").read_text())
    report["imposters"]["finished"] = False
    (unfinished / "report.json").write_text(json.dumps(report))
    privfr("imposters", verb, unfinished, *flags).refused("no finished generator yet", "--resume")


@pytest.mark.parametrize("source", ["real", "gan"])
def test_train_needs_a_source_that_trains(privfr: Command, source: str, people: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = privfr("imposters", "train", "--data", people, "--out", out, "--source", source, *FLAGS)
    line.refused("imposters.source", "federated")
    assert not out.exists()


def test_train_goes_on_with_a_run_that_has_imposters_only(
    privfr: Command, trained: Path, shared: Path
) -> None:
    privfr("imposters", "train", "--resume", trained).refused("trains no generator")
    privfr("imposters", "train", "--resume", shared, "--rounds", 3).refused("takes no other flag")


def test_a_run_that_takes_a_file_has_no_generator_of_its_own(
    privfr: Command, shared: Path, generator: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(shared, given)
    text = (given / "experiment.toml").read_text()
    before, table, rest = text.partition("[imposters]")
    (given / "experiment.toml").write_text(
        before + table + rest.replace('model = ""', f'model = "{generator}"', 1)
    )
    privfr("imposters", "sample", given, "--out", tmp_path / "x.png").refused("give that file")
