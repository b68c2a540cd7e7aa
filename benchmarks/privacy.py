"""What does a privacy budget leave of what federated training gains?

    python -m benchmarks.privacy [--clients 1000] [--data ../shared/data] [--out runs/privacy] [--only I/N]

A network is pretrained on 40 public people of CelebA: few, which is where federating is worth most. From
there the 40 clients of benchmarks/celeba_lfw.toml train a part of it over backend `masking`, at either level
of privacy and several epsilons. LFW's View 2 judges.

Client level. CelebA has people for 40 such clients, whom a budget of 8 drowns. They stand for --clients like
them: each adds the noise that makes that in the mean what it would be of so many, calibrated for so many.
What more people would teach is not in it.

Example level. Every client keeps to the epsilon by itself, for each of its pictures; nothing is simulated.

--only 0/2 and 1/2 each make half of the runs, for two processes; a last call finds them all made. Writes
OUT/result.json, docs/results/privacy.md and its plot.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import privfr
from benchmarks.celeba_lfw import HERE, SAMPLES, made
from benchmarks.privacy_page import PAGE, PLOT, draw, page
from privfr.evaluation import listed_trials
from privfr.faces.datasets import Faces
from privfr.faces.verification import Pairs, Trials, bootstrap, lfw_accuracy
from privfr.plan import client_level
from privfr.privacy.client import ClientLevel

EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0, math.inf)
SEEDS = (0, 1, 2)
PART = "norms"
# A part of few numbers can and must move each of them further.
RATES = {"all": 2.5e-3, "adapter": 2e-2, "norms": 2e-2}
# With its share of the clients: more of them where many numbers drown.
OTHERS = (("adapter", 1), ("all", 1), ("all", 100))
ROUNDS = 10
CLIP = 1.0
START = {"data.public": 40, "pretraining.epochs": 20}


@dataclass(frozen=True)
class Cell:
    """One run. level: "client" or "example".  crowd: how many times --clients it stands for."""

    level: str
    part: str
    epsilon: float
    seed: int
    crowd: int = 1

    @property
    def name(self) -> str:
        """Its directory. Without privacy there is one run for both levels."""
        budget = "none" if math.isinf(self.epsilon) else f"{self.level}-{self.epsilon:g}"
        return f"{self.part}-{budget}-{self.crowd}x-seed-{self.seed}"


def cells() -> list[Cell]:
    """All runs, the most telling ones first."""
    wanted = [
        Cell(level, PART, e, s) for s in SEEDS for e in (math.inf, 8.0) for level in ("client", "example")
    ]
    wanted += [Cell(level, PART, e, SEEDS[0]) for e in EPSILONS for level in ("client", "example")]
    wanted += [Cell("client", part, 8.0, SEEDS[0], crowd) for part, crowd in OTHERS]
    return list({cell.name: cell for cell in wanted}.values())


def main() -> None:
    """Run, judge and write down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--only", default="0/1")
    wanted = parser.parse_args()
    turn, turns = map(int, wanted.only.split("/"))
    for cell in cells()[turn::turns]:
        train(cell, wanted)
    if turns > 1:
        return
    result = measured(wanted)
    (wanted.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, PLOT)
    PAGE.write_text(page(result))
    print(page(result))


# The runs


def train(cell: Cell, wanted: argparse.Namespace) -> None:
    """Make or finish one run."""
    print(cell.name, flush=True)
    changes = common(cell.seed, wanted.data) | {
        "pretraining.model": str(start_of(cell.seed, wanted)),
        "pretraining.epochs": 0,
        "method.trainable": cell.part,
        "training.learning_rate": RATES[cell.part],
        "federation.backend": "masking",
        "federation.rounds": ROUNDS,
        "privacy.client_clip": CLIP,
    }
    made(wanted.out / cell.name, changes | budget_of(cell, wanted.clients))


def common(seed: int, data: Path) -> dict[str, Any]:
    """What all runs of a seed share."""
    return START | {"seed": seed, "data.source": str(data / "celeba112"), "coding.bits": 16}


def start_of(seed: int, wanted: argparse.Namespace) -> Path:
    """Find the pretrained model of a seed, or pretrain it: a run of one round, which nobody looks at."""
    changes = common(seed, wanted.data) | {"federation.rounds": 1, "method.trainable": PART}
    return privfr.RunDirectory(made(wanted.out / f"start-seed-{seed}", changes)).model("pretrained")


def budget_of(cell: Cell, clients: int) -> dict[str, Any]:
    """Privacy settings of a run."""
    if math.isinf(cell.epsilon):
        return {"privacy.level": "none"}
    if cell.level == "example":
        return {"privacy.level": "example", "privacy.epsilon": cell.epsilon}
    experiment = privfr.load_experiment(HERE / "celeba_lfw.toml")
    crowd = cell.crowd * clients
    # The noise in a mean over n clients is multiplier / n, for the same shares of losses and corruption.
    noise = level_for(crowd, cell).multiplier * experiment.data.clients / crowd
    return {"privacy.level": "client", "privacy.epsilon": 0.0, "privacy.client_noise": noise}


def level_for(clients: int, cell: Cell) -> ClientLevel:
    """Noise that so many clients need for the epsilon, with a twentieth lost and a twentieth corrupt."""
    changes = {
        "data.clients": clients,
        "method.trainable": cell.part,
        "coding.bits": 16,
        "federation.backend": "masking",
        "federation.rounds": ROUNDS,
        "federation.threshold": clients - clients // 20,
        "privacy.level": "client",
        "privacy.epsilon": cell.epsilon,
        "privacy.delta": min(1e-5, 0.1 / clients),
        "privacy.client_clip": CLIP,
    }
    level = client_level(privfr.load_experiment(HERE / "celeba_lfw.toml", changes))
    assert level is not None
    return level


# The figures


def measured(wanted: argparse.Namespace) -> dict[str, Any]:
    """Judge every model and its start."""
    pairs = privfr.read_pairs(wanted.data / "lfw112_protocol" / "pairs.txt")
    starts = {seed: start_of(seed, wanted) for seed in SEEDS}
    lfw = privfr.load_faces(str(wanted.data / "lfw112"), privfr.Recogniser.load(starts[0]).size)
    before = {seed: trials_of(model, lfw, pairs) for seed, model in starts.items()}
    runs, after = [], {}
    for cell in cells():
        place = wanted.out / cell.name
        after[cell.name] = trials_of(privfr.RunDirectory(place).model("federated"), lfw, pairs)
        report = privfr.Report.load(place / "report.json")
        runs.append(figures(after[cell.name], pairs) | {
            "level": cell.level, "part": cell.part, "epsilon": cell.epsilon, "seed": cell.seed,
            "clients": cell.crowd * wanted.clients, "numbers": report.parameters,
            "noise": noise_of(cell, wanted.clients),
            "claimed": [each.epsilon for each in report.privacy],
        })  # fmt: skip
    return {
        "clients": wanted.clients,
        "rounds": ROUNDS,
        "part": PART,
        "start": {seed: figures(trials, pairs) for seed, trials in before.items()},
        "runs": runs,
        "gains": {
            f"{level}-{epsilon:g}": gain(level, epsilon, before, after, pairs)
            for level in ("client", "example")
            for epsilon in (8.0, math.inf)
        },
    }


def trials_of(model: Path, lfw: Faces, pairs: Pairs) -> Trials:
    """Score LFW's pairs."""
    print(f"judging {model}", flush=True)
    return listed_trials(privfr.Recogniser.load(model), lfw, pairs)


def figures(trials: Trials, pairs: Pairs) -> dict[str, Any]:
    """Accuracy by the official protocol, and EER."""
    return {
        "accuracy": lfw_accuracy(trials.scores, pairs.same, pairs.folds).accuracy,
        "eer": trials.roc().eer,
    }


def noise_of(cell: Cell, clients: int) -> float:
    """Length of the noise in a round's mean, in clips; the mean itself is no longer than one."""
    if cell.level == "example" or math.isinf(cell.epsilon):
        return 0.0
    crowd = cell.crowd * clients
    level = level_for(crowd, cell)
    own = math.sqrt(level.noise.variance) / level.noise.radius
    return own * math.sqrt(level.size / crowd)


def gain(
    level: str, epsilon: float, before: dict[int, Trials], after: dict[str, Trials], pairs: Pairs
) -> dict[str, float]:
    """How much better than its start a model is, over all seeds, with its 95 % interval over people."""

    def difference(weights: Any = None) -> float:
        found = []
        for seed in SEEDS:
            both = after[Cell(level, PART, epsilon, seed).name], before[seed]
            new, old = (lfw_accuracy(t.scores, pairs.same, pairs.folds, weights).accuracy for t in both)
            found.append(new - old)
        return statistics.fmean(found)

    some = before[SEEDS[0]]
    interval = bootstrap(difference, some.identity_a, some.identity_b, SAMPLES)
    return {"mean": difference(), "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    main()
