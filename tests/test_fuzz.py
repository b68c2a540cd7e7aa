"""What the fuzzer found is replayed here, with or without atheris; where that is installed, it runs too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from fuzz.choices import Choices
from fuzz.homomorphic import Asked, Served, Telling
from fuzz.member import ME, MEMBERS, Told, recorded
from fuzz.scenes import SCENES, scene
from fuzz.server import Round
from fuzz.targets import TARGETS, run, seeds

FUZZ = Path(__file__).parent / "fuzz"
CORPUS = FUZZ / "corpus"
SECONDS = 3

every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_the_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            run(name, path.read_bytes())
        except Exception as error:
            pytest.fail(f"{path.relative_to(FUZZ)}: {type(error).__name__}: {error}")


def test_the_corpus_is_small() -> None:
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert len(sizes) <= 250
    assert sum(sizes) <= 300_000


@every_target
def test_the_inputs_to_begin_with(name: str) -> None:
    for data in seeds(name):
        run(name, data)


@pytest.mark.parametrize("name", SCENES)
def test_where_all_tell_the_truth_the_server_has_a_sum(name: str) -> None:
    """A target that never came to a sum would never find one wrong."""
    played = Round(scene(name), Choices(b""))
    played.play()
    assert played.server.sealed is not None
    assert set(played.summands) == set(played.scene.spec.clients)
    assert not played.liars


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_follows_the_recorded_rounds_to_their_end(name: str) -> None:
    told = Told(recorded(name), Choices(b""))
    for _ in recorded(name).frames[ME]:
        told.step("next")
    assert told.at == len(recorded(name).frames[ME])
    assert [said[-1] for said in told.answered.values()] == ["ack", "ack"]
    assert not told.led_astray


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_where_all_tell_the_truth_every_client_opens_the_sum(name: str) -> None:
    played = Served(name, Choices(b""))
    played.play()
    sealed = played.server.sealed
    assert sealed is not None
    assert sealed.survivors == (1, 2, 3)
    played.truth.lanes[1][0] += 1
    try:
        with pytest.raises(AssertionError, match="not the true one"):
            played.check(sealed)
    finally:
        played.truth.lanes[1][0] -= 1


@pytest.mark.parametrize("name", ["bfv-authority", "ckks-authority"])
def test_the_authority_opens_the_true_sum_and_another_is_noticed(name: str) -> None:
    asked = Asked(name, Choices(b""))
    assert asked.open is not None
    asked.step("open")
    assert asked.open is None
    asked.step("begin altered")
    asked.step("begin")
    later = Asked(name, Choices(b""))
    later.lanes[1][0] += 1
    with pytest.raises(AssertionError, match="not the true one"):
        later.step("open")


@pytest.mark.parametrize("name", ["bfv", "ckks", "bfv-authority", "ckks-authority"])
def test_a_homomorphic_member_follows_the_recorded_rounds_to_their_end(name: str) -> None:
    told = Telling(recorded(name), Choices(b""))
    for _ in recorded(name).frames[ME]:
        told.step("next")
    assert [said[-1] for said in told.answered.values()] == ["ack", "ack"]


def test_a_sum_that_is_not_exact_is_noticed() -> None:
    """The target's own check can fail: a summand more or less in what it expects."""
    played = Round(scene("masking"), Choices(b""))
    played.play()
    assert played.server.sealed is not None
    del played.summands[4]
    with pytest.raises(AssertionError, match="other survivors"):
        played.check_sum(played.server.sealed)
    played.server.sealed = msgspec.structs.replace(played.server.sealed, survivors=(1, 2, 3))
    with pytest.raises(AssertionError, match="not exact"):
        played.check_sum(played.server.sealed)


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
@every_target
def test_a_few_seconds_of_fuzzing(name: str, tmp_path: Path) -> None:
    command = [sys.executable, FUZZ / "run.py", "--seconds", str(SECONDS), "--target", name]
    done = subprocess.run([*command, "--corpus", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
    assert any((tmp_path / name).iterdir()), "the fuzzer has covered nothing"
