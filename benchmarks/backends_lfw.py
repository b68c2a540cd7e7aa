"""Do all backends train the same model, to the bit, round after round?

    python -m benchmarks.backends_lfw [--backends plain masking bfv ckks] [--seed 0] [--rounds 20]
                                      [--data ../shared/data] [--out DIR]

benchmarks/celeba_lfw.toml is run without baselines once for each backend, on the same seed and with the same
coding of 16 bits, each from its own beginning. After every round the global model, its server momentum
included, is hashed. The final models are judged on LFW's View 2. Runs are kept and resumed, so that several
processes can each make some of them first. Writes OUT/result.json and docs/results/backends_lfw.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import privfr
from benchmarks.celeba_lfw import HERE, say
from benchmarks.masking_lfw import accuracy
from privfr.report import Event, RoundEnded

PAGE = HERE.parent / "docs" / "results" / "backends_lfw.md"
BACKENDS = ("plain", "masking", "bfv", "ckks")


def main() -> None:
    """Run, judge and write down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rounds", type=int, default=20, help="fewer for a quicker answer; written on the page"
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/backends_lfw"))
    wanted = parser.parse_args()
    changes = {
        "seed": wanted.seed,
        "data.source": str(wanted.data / "celeba112"),
        "federation.rounds": wanted.rounds,
        "training.epochs": 1.0,
        "coding.bits": 16,
        "baselines": [],
    }
    for name in wanted.backends:
        train(changes | {"federation.backend": name}, wanted.out / name)
    pairs = privfr.read_pairs(wanted.data / "lfw112_protocol" / "pairs.txt")
    size = privfr.recogniser_in(wanted.out / wanted.backends[0]).size
    lfw = privfr.load_faces(str(wanted.data / "lfw112"), size)
    result = {name: figures(wanted.out / name) for name in wanted.backends}
    for name, found in result.items():
        found["accuracy"] = accuracy(wanted.out / name, lfw, pairs)
    (wanted.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    text = page(result, wanted.seed)
    if set(wanted.backends) >= set(BACKENDS):
        PAGE.write_text(text)
    print(text)


def train(changes: dict[str, Any], place: Path) -> None:
    """Make or finish one run, and hash its model after every round."""

    def watch(event: Event) -> None:
        say(event)
        if isinstance(event, RoundEnded):
            done = event.report.round + 1
            model = (place / "models" / f"round-{done}.safetensors").read_bytes()
            with hashes_of(place).open("a") as file:
                file.write(f"{done} {hashlib.sha256(model).hexdigest()}\n")

    if (place / "report.json").exists():
        privfr.resume(place, watch)
    else:
        hashes_of(place).unlink(missing_ok=True)
        privfr.run(privfr.load_experiment(HERE / "celeba_lfw.toml", changes), place, watch)


def hashes_of(place: Path) -> Path:
    """Where the hashes of a run's models are written, beside the run."""
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.with_suffix(".sha256")


def figures(place: Path) -> dict[str, Any]:
    """What a run's report and hashes say."""
    report = privfr.Report.load(place / "report.json")
    lines = [line.split() for line in hashes_of(place).read_text().splitlines()]
    return {
        "models": {int(done): value for done, value in lines},
        "loss": [each.metrics["loss"] for each in report.rounds],
        "eer": report.eer,
        "up": sum(each.bytes_up for each in report.rounds),
        "vectors": sum(each.clients for each in report.rounds) * 4 * report.parameters,
        "overhead": report.overhead,
        "server_learns": report.server_learns,
    }


def page(result: dict[str, Any], seed: int) -> str:
    """Write the result as Markdown."""
    first = next(iter(result))
    reference = result[first]
    rounds = len(reference["eer"])
    lines = [
        "# Every backend trains the same model",
        "",
        f"`benchmarks/celeba_lfw.toml` (40 clients, CelebA), {rounds} rounds, seed {seed}, 16-bit coding, "
        "each run from its own beginning. Made by `python -m benchmarks.backends_lfw`.",
        "",
        f"| backend | rounds with `{first}`'s model, to the bit | same loss and EER | final LFW accuracy, % "
        "| upload, of float32's | work that is not training | the server learns |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, found in result.items():
        same = sum(value == reference["models"].get(done) for done, value in found["models"].items())
        pairs = zip(found["loss"], found["eer"], reference["loss"], reference["eer"], strict=True)
        measured = sum((a, b) == (c, d) for a, b, c, d in pairs)
        lines.append(
            f"| `{name}` | {same} of {rounds} | {measured} of {rounds} | {100 * found['accuracy']:.2f} "
            f"| {found['up'] / found['vectors']:.2f} | {100 * found['overhead']:.1f} % "
            f"| {found['server_learns']} |"
        )
    lines += [
        "",
        "SHA-256 of the model, with its server momentum, after the last round: "
        + "; ".join(f"`{name}` {found['models'][rounds][:16]}" for name, found in result.items())
        + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
