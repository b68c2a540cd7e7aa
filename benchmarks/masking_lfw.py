"""Does masking cost accuracy, and what if clients keep dropping out?

    python -m benchmarks.masking_lfw [--seeds 0 1 2] [--rounds 20] [--data ../shared/data] [--out DIR]

For each seed benchmarks/celeba_lfw.toml is run three times, without baselines: on backend `plain` in float32,
on `masking`, and on `masking` while a tenth of the clients is lost in every round, each in a phase drawn at
random. The models are judged on LFW's View 2 by its official protocol. Runs are kept and resumed. Writes
OUT/result.json and docs/results/masking_lfw.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import privfr
from benchmarks.celeba_lfw import HERE, made
from privfr.evaluation import listed_trials
from privfr.faces.datasets import Faces
from privfr.faces.verification import Pairs, lfw_accuracy

PAGE = HERE.parent / "docs" / "results" / "masking_lfw.md"
# A client is sent six messages a round; each is lost with this probability, so that 1 - (1 - p)^6 is a tenth.
LOSS = 1 - 0.9 ** (1 / 6)
ARMS: dict[str, dict[str, Any]] = {
    "masking": {"federation.backend": "masking"},
    "masking, 10 % lost": {"federation.backend": "masking", "engine.losses": LOSS},
    "plain, float32": {"federation.backend": "plain"},
}


def main() -> None:
    """Run, judge and write down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rounds", type=int, default=20, help="fewer for a quicker answer; written on the page"
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/masking_lfw"))
    wanted = parser.parse_args()
    common = {
        "data.source": str(wanted.data / "celeba112"),
        "federation.rounds": wanted.rounds,
        "training.epochs": 1.0,
        "baselines": [],
    }
    runs: dict[str, list[Path]] = {name: [] for name in ARMS}
    for seed in wanted.seeds:
        for number, (name, changes) in enumerate(ARMS.items()):
            place = wanted.out / f"seed-{seed}-arm-{number}"
            runs[name].append(made(place, common | changes | {"seed": seed}))
    pairs = privfr.read_pairs(wanted.data / "lfw112_protocol" / "pairs.txt")
    size = privfr.recogniser_in(runs["masking"][0]).size
    lfw = privfr.load_faces(str(wanted.data / "lfw112"), size)
    result = {
        name: {
            "accuracy": [accuracy(run, lfw, pairs) for run in found],
            "rounds": [rounds_of(run) for run in found],
        }
        for name, found in runs.items()
    }
    (wanted.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    PAGE.write_text(page(result, wanted.seeds))
    print(page(result, wanted.seeds))


def accuracy(run: Path, lfw: Faces, pairs: Pairs) -> float:
    """Official accuracy of a run's federated model on View 2."""
    trials = listed_trials(privfr.Recogniser.load(privfr.RunDirectory(run).model("federated")), lfw, pairs)
    return lfw_accuracy(trials.scores, pairs.same, pairs.folds).accuracy


def rounds_of(run: Path) -> dict[str, Any]:
    """What the report says of a run's rounds."""
    report = privfr.Report.load(run / "report.json")
    return {
        "completed": sum(not each.failed for each in report.rounds),
        "of": len(report.rounds),
        "lost": statistics.fmean(len(each.dropped) / each.clients for each in report.rounds),
        "phases": sorted({phase for each in report.rounds for phase in each.dropped.values()}),
        "error": max(each.error for each in report.rounds),
        "saturated": sum(each.saturated for each in report.rounds),
        "up": sum(each.bytes_up for each in report.rounds),
        "overhead": report.overhead,
    }


def page(result: dict[str, Any], seeds: list[int]) -> str:
    """Write the result as Markdown."""
    lines = [
        "# What masking costs in accuracy",
        "",
        "LFW View 2 accuracy of the federated model of `benchmarks/celeba_lfw.toml` (40 clients, CelebA), "
        f"after {result['masking']['rounds'][0]['of']} rounds. Made by `python -m benchmarks.masking_lfw`.",
        "",
        "| accuracy, % | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " | mean | spread between seeds |",
        "|---|" + "---:|" * (len(seeds) + 2),
    ]
    for name, found in result.items():
        values = [100 * value for value in found["accuracy"]]
        cells = " | ".join(
            f"{value:.2f}" for value in [*values, statistics.fmean(values), max(values) - min(values)]
        )
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        "| | rounds completed | clients lost a round | upload, of float32's | work that is not training "
        "| largest coding error | clipped updates |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    whole = sum(each["up"] for each in result["plain, float32"]["rounds"])
    for name, found in result.items():
        rounds = found["rounds"]
        lines.append(
            f"| {name} | {sum(r['completed'] for r in rounds)} of {sum(r['of'] for r in rounds)} "
            f"| {100 * statistics.fmean(r['lost'] for r in rounds):.1f} % "
            f"| {sum(r['up'] for r in rounds) / whole:.2f} "
            f"| {100 * statistics.fmean(r['overhead'] for r in rounds):.1f} % "
            f"| {max(r['error'] for r in rounds):.1e} | {sum(r['saturated'] for r in rounds)} |"
        )
    lost = sorted({phase for r in result["masking, 10 % lost"]["rounds"] for phase in r["phases"]})
    lines += ["", f"Phases in which clients were lost: {', '.join(lost)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
