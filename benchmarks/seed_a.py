"""Solomon & Woubie's system whole: does aggregating beat each device alone, and does secrecy cost accuracy?

    python -m benchmarks.seed_a [--seeds 0 1 2] [--data ../shared/data] [--out runs/seed_a] [--only I/N]

40 devices with CelebA's people learn {supervised, unsupervised}, sending their models to {the server in
clear, a secure aggregator}. Supervised: a device holds its owner's pictures alone, from a network pretrained
on public people, and imposters of a generator that all devices trained together. Unsupervised: a device holds
the pictures of twelve people, of which nothing says who is who, and starts from a network trained on the
public people's pictures in the same way, without their labels. The aggregators: the server in clear (float32,
and integers as the secret ones code them), a trusted aggregator, pairwise masking, CKKS, and masking with
client-level differential privacy.

Each device's trials: pictures held out of its people against those it trained on (genuine), pictures of 150
people nobody trained on against those it trained on (impostor). Every model is judged on the same trials;
then on all pairs of those 150 people, and on LFW's View 2 at 64x64.

Runs are kept and resumed. --only 0/2 and 1/2 each make half of the seeds' runs, for two processes; a last
call finds them all made. Writes OUT/result.json, docs/results/seed_a.md and its picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import privfr
from benchmarks import imposters
from benchmarks.celeba_lfw import HERE, SAMPLES, made
from benchmarks.seed_a_page import PAGE, PICTURE, draw, page
from privfr.evaluation import listed_trials
from privfr.faces.verification import Pairs, all_pairs_roc, bootstrap, lfw_accuracy
from privfr.vector import digest

CONFIG = HERE / "seed_a.toml"
# In clear first: what the others are held against. "first": its individual models are everybody's.
AGGREGATORS: dict[str, dict[str, Any]] = {
    "server in clear": {"federation.backend": "plain", "baselines": ["individual"]},
    "server in clear, integers": {"federation.backend": "plain", "coding.bits": 16},
    "trusted aggregator": {"federation.backend": "trusted"},
    "masking": {"federation.backend": "masking"},
    "ckks": {"federation.backend": "ckks"},
    "masking, client-level DP": {
        "federation.backend": "masking", "privacy.level": "client", "privacy.epsilon": 8.0,
        "privacy.client_clip": 0.5,
    },
}  # fmt: skip
LOSSLESS = ("server in clear, integers", "masking", "ckks")
ALBUMS: dict[str, Any] = {
    "data.scheme": "many", "data.per_client": 12, "pretraining.epochs": 8, "pretraining.batch": 64,
    "pretraining.learning_rate": 2e-3, "federation.rounds": 10, "federation.momentum": 0.8,
    "training.batch": 32, "training.epochs": 1, "training.learning_rate": 1e-3,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"imposters.source": "federated", "pretraining.epochs": 0},
    "unsupervised": ALBUMS | {"method.name": "unsupervised"},
}
# What labels are worth: the supervised method on the albums that the unsupervised one has.
LABELLED = ALBUMS | {"method.restart": False}


def main() -> None:
    """Run, judge and write down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/seed_a"))
    parser.add_argument("--start", type=Path, default=Path("runs/imposters"), help="its runs")
    parser.add_argument("--only", default="0/1", help="the I-th of N processes")
    wanted = parser.parse_args()
    mine, processes = (int(part) for part in wanted.only.split("/"))
    faces = privfr.load_faces(str(wanted.data / "celeba112"), (64, 64), min_images=12)
    for number, seed in enumerate(wanted.seeds):
        if number % processes == mine:
            train(seed, wanted.data, wanted.out, wanted.start, faces)
    if processes > 1:
        return
    result = measured(wanted.seeds, wanted.data, wanted.out, faces)
    (wanted.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    PAGE.write_text(page(result))
    draw(result, PAGE.with_name(PICTURE))
    print(page(result))


def place_of(out: Path, seed: int, method: str, aggregator: str) -> Path:
    """Directory of one run."""
    return out / f"seed-{seed}" / f"{method}-{aggregator.replace(', ', '-').replace(' ', '-')}"


def train(seed: int, data: Path, out: Path, start: Path, faces: privfr.Faces) -> None:
    """Make or finish the runs of one seed. Start and generator are those of benchmarks/imposters.py."""
    source = str(data / "celeba112")
    imposters.train(seed, start, source, faces)
    models = start / f"seed-{seed}" / "federated" / "models"
    shared = {"seed": seed, "data.source": source}
    given = {
        "pretraining.model": str(models / "pretrained.safetensors"),
        "imposters.model": str(models / "generator.safetensors"),
    }
    for method, of_method in METHODS.items():
        for aggregator, of_aggregator in AGGREGATORS.items():
            changes = shared | of_method | of_aggregator | (given if method == "supervised" else {})
            made(place_of(out, seed, method, aggregator), changes, CONFIG, faces)
    made(place_of(out, seed, "labelled", "server in clear"), shared | LABELLED, CONFIG, faces)


def measured(seeds: list[int], data: Path, out: Path, faces: privfr.Faces) -> dict[str, Any]:
    """Judge every model."""
    pairs = privfr.read_pairs(data / "lfw112_protocol" / "pairs.txt")
    lfw = privfr.load_faces(str(data / "lfw112"), (64, 64))
    rows = []
    for method in METHODS:
        for aggregator in AGGREGATORS:
            for seed in seeds:
                rows.append(
                    {"method": method, "aggregator": aggregator, "seed": seed}
                    | figures(place_of(out, seed, method, aggregator), lfw, pairs)
                )
    labelled = [figures(place_of(out, seed, "labelled", "server in clear"), lfw, pairs) for seed in seeds]
    references = [reference(place_of(out, seed, "unsupervised", "server in clear"), faces) for seed in seeds]
    first = privfr.Report.load(place_of(out, seeds[0], "supervised", "server in clear") / "report.json")
    return {
        "seeds": seeds, "rows": rows, "labelled": labelled, "references": references,
        "experiment": first.experiment, "lossless": list(LOSSLESS),
    }  # fmt: skip


def figures(place: Path, lfw: privfr.Faces, pairs: Pairs) -> dict[str, Any]:
    """What one run came to."""
    print(f"judging {place}", flush=True)
    report = privfr.Report.load(place / "report.json")
    assert report.own and report.final
    found = privfr.recogniser_in(place)
    trials = listed_trials(found, lfw, pairs)

    def accuracy(weights: Any = None) -> float:
        return lfw_accuracy(trials.scores, pairs.same, pairs.folds, weights).accuracy

    interval = bootstrap(accuracy, trials.identity_a, trials.identity_b, SAMPLES)
    alone = report.own.individual
    unseen = report.final.intervals["eer"]
    return {
        "own": report.own.federated.mean, "own_spread": report.own.federated.spread,
        "own_start": report.own.start.mean,
        "alone": alone.mean if alone else None, "alone_spread": alone.spread if alone else None,
        "unseen": report.final.eer, "unseen_low": unseen.low, "unseen_high": unseen.high,
        "lfw": accuracy(), "lfw_low": interval.low, "lfw_high": interval.high,
        "lfw_eer": trials.roc().eer,
        "model": digest(np.concatenate([t.ravel() for t in found.tensors().values()])).hex(),
        "seconds": statistics.median(r.seconds for r in report.rounds), "overhead": report.overhead,
        "up": sum(r.bytes_up for r in report.rounds) / len(report.rounds) / report.rounds[0].clients,
        "down": sum(r.bytes_down for r in report.rounds) / len(report.rounds) / report.rounds[0].clients,
        "epsilon": report.privacy[0].epsilon if report.privacy else None,
        "collapsed": report.collapsed,
    }  # fmt: skip


def reference(place: Path, faces: privfr.Faces) -> dict[str, float]:
    """Equal error rates on unseen people of a network that knows nothing, and of pixels as they are."""
    run = privfr.RunDirectory(place)
    test = run.split().test_faces(faces)
    pixels = test.images.reshape(len(test), -1).astype(np.float32) - 127.5
    untrained = run.report().untrained
    assert untrained
    return {"untrained": untrained.eer, "pixels": all_pairs_roc(pixels, test.labels).eer}


if __name__ == "__main__":
    main()
