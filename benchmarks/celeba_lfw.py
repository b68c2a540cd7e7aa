"""How much of centralised training does federated training reach, when nobody's pictures move?

    python -m benchmarks.celeba_lfw [--seeds 0 1 2] [--data ../shared/data] [--out runs/celeba_lfw]

For each seed one run of benchmarks/celeba_lfw.toml on CelebA: a network pretrained on public identities; the
same network trained on by 40 clients together (`federated`), by each of them alone (`individual`) and on all
their pictures in one place (`centralised`), for the same pictures and steps. All are judged on LFW's
View 2 by its official protocol. The figure is the share of the error between pretrained and centralised
that federated training closes, with a 95 % interval over people (identity bootstrap, paired). Runs are kept
and resumed. Writes OUT/result.json and docs/results/celeba_lfw.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import privfr
from privfr.evaluation import listed_trials
from privfr.faces.datasets import Faces
from privfr.faces.verification import Interval, Pairs, Trials, bootstrap, lfw_accuracy
from privfr.report import Event, RoundEnded, Stage

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "celeba_lfw.md"
MODELS = ("untrained", "pretrained", "federated", "centralised")
SAMPLES = 1000


def main() -> None:
    """Run, judge and write down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/celeba_lfw"))
    parser.add_argument("--config", type=Path, default=HERE / "celeba_lfw.toml")
    wanted = parser.parse_args()
    runs = [train(seed, wanted.config, wanted.data, wanted.out / f"seed-{seed}") for seed in wanted.seeds]

    pairs = privfr.read_pairs(wanted.data / "lfw112_protocol" / "pairs.txt")
    size = privfr.recogniser_in(runs[0]).size
    lfw = privfr.load_faces(str(wanted.data / "lfw112"), size)
    judged = [judge(run, lfw, pairs) for run in runs]
    result = summarise(wanted.seeds, judged, pairs)
    result["experiment"] = privfr.Report.load(runs[0] / "report.json").experiment
    result["rounds"] = [[r.metrics for r in privfr.Report.load(run / "report.json").rounds] for run in runs]
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(result))
    print(page(result))


def train(seed: int, config: Path, data: Path, place: Path) -> Path:
    """Make or finish one run."""
    source = str(data / "celeba112")
    changes = {"seed": seed, "data.source": source, "baselines": ["centralised", "individual"]}
    return made(place, changes, config)


def made(
    place: Path,
    changes: dict[str, Any],
    config: Path = HERE / "celeba_lfw.toml",
    faces: Faces | None = None,
) -> Path:
    """Make the run of an experiment with these changes, or finish it where it has been begun."""
    if (place / "report.json").exists():
        privfr.resume(place, say, faces)
    else:
        privfr.run(privfr.load_experiment(config, changes), place, say, faces)
    return place


def say(event: Event) -> None:
    """Show that something happens."""
    if isinstance(event, RoundEnded):
        report = event.report
        eer = "" if event.eer is None else f"EER {event.eer:.4f}, "
        print(f"  round {report.round + 1}: {eer}{report.seconds:.1f} s", flush=True)
    elif isinstance(event, Stage) and event.name != "pictures":
        print(f"{event.name} {event.done}/{event.total} {event.loss or ''}", flush=True)


def judge(run: Path, lfw: Faces, pairs: Pairs) -> dict[str, Trials]:
    """Score LFW's pairs with every model of a run."""
    print(f"judging the models of {run}", flush=True)
    models = privfr.RunDirectory(run).others() | {"federated": privfr.RunDirectory(run).model("federated")}
    return {name: listed_trials(privfr.Recogniser.load(path), lfw, pairs) for name, path in models.items()}


def summarise(seeds: list[int], judged: list[dict[str, Trials]], pairs: Pairs) -> dict[str, Any]:
    """Turn scores into figures: per seed, and the share of the gap over all seeds with its interval."""

    def accuracy(name: str, trials: dict[str, Trials], weights: NDArray[np.float64] | None = None) -> float:
        return lfw_accuracy(trials[name].scores, pairs.same, pairs.folds, weights).accuracy

    def closed(chosen: list[dict[str, Trials]], weights: NDArray[np.float64] | None = None) -> float:
        mean = {n: statistics.fmean(accuracy(n, each, weights) for each in chosen) for n in MODELS[1:]}
        return (mean["federated"] - mean["pretrained"]) / (mean["centralised"] - mean["pretrained"])

    per_seed = []
    for seed, trials in zip(seeds, judged, strict=True):
        alone = [accuracy(name, trials) for name in trials if name.startswith("individual")]
        figures: dict[str, Any] = {"seed": seed, "gap_closed": closed([trials])}
        for name in MODELS:
            curve = trials[name].roc()
            figures[name] = {
                "accuracy": accuracy(name, trials),
                "eer": curve.eer,
                "auc": curve.auc,
                "tar_at_far": curve.tar_at_far_table(),
            }
        mean, spread = statistics.fmean(alone), statistics.pstdev(alone)
        figures["individual"] = {"mean": mean, "spread": spread, "best": max(alone), "worst": min(alone)}
        per_seed.append(figures)
    a, b = judged[0]["federated"].identity_a, judged[0]["federated"].identity_b
    interval: Interval = bootstrap(lambda w: closed(judged, w), a, b, SAMPLES)
    share = {"mean": closed(judged), "low": interval.low, "high": interval.high, "level": interval.level}
    return {"seeds": per_seed, "gap_closed": share}


def page(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    share, seeds = result["gap_closed"], result["seeds"]
    data, federation = result["experiment"]["data"], result["experiment"]["federation"]
    epochs = result["experiment"]["training"]["epochs"]
    lines = [
        "# Federated training on CelebA, judged on LFW",
        "",
        f"{data['clients']} clients, {federation['rounds']} rounds of {epochs:g} epochs, backend "
        f"`{federation['backend']}`, "
        f"{data['public']} public identities to pretrain on, {len(seeds)} seeds. Made by "
        "`python -m benchmarks.celeba_lfw`; the experiment is `benchmarks/celeba_lfw.toml`.",
        "",
        f"**Federated training closes {100 * share['mean']:.1f} % of the error between pretrained and "
        f"centralised training** (95 % interval over people {100 * share['low']:.1f} to "
        f"{100 * share['high']:.1f} %; by seed "
        + ", ".join(f"{100 * each['gap_closed']:.1f} %" for each in seeds)
        + ").",
        "",
        "| LFW View 2 accuracy, % | " + " | ".join(f"seed {each['seed']}" for each in seeds) + " | mean |",
        "|---|" + "---:|" * (len(seeds) + 1),
    ]
    rows: dict[str, list[float]] = {name: [each[name]["accuracy"] for each in seeds] for name in MODELS}
    rows = {
        "untrained": rows["untrained"],
        "pretrained": rows["pretrained"],
        "individual, worst of the clients": [each["individual"]["worst"] for each in seeds],
        "individual, mean of the clients": [each["individual"]["mean"] for each in seeds],
        "individual, best of the clients": [each["individual"]["best"] for each in seeds],
        "**federated**": rows["federated"],
        "centralised": rows["centralised"],
    }
    for name, values in rows.items():
        cells = " | ".join(f"{100 * value:.2f}" for value in [*values, statistics.fmean(values)])
        lines.append(f"| {name} | {cells} |")
    lines += ["", "| mean over seeds | EER | AUC | TAR at FAR 1e-2 |", "|---|---:|---:|---:|"]
    for name in MODELS:
        eer, auc = (statistics.fmean(each[name][key] for each in seeds) for key in ("eer", "auc"))
        tar = statistics.fmean(each[name]["tar_at_far"]["1e-2"] for each in seeds)
        lines.append(f"| {name} | {100 * eer:.2f} % | {auc:.4f} | {100 * tar:.1f} % |")
    lines += [
        "",
        "`individual`: each client trains the pretrained network alone, for as many steps as it trains in "
        "the federation. `centralised`: one network over all clients' pictures, for as many steps as all of "
        "them together; the upper bound that federated training can hope for.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
