"""What are made-up faces worth to devices that hold one person each?

    python -m benchmarks.imposters [--seeds 0 1 2] [--data ../shared/data] [--out runs/imposters] [--only I/N]

40 devices hold one of CelebA's people each and train a network pretrained on 300 public people, with
imposters from each source there is: `none`, `device` (each its own generator), `public` (one trained on the
public people), `federated` (one that all train together over the backend), `real` (other devices' pictures,
which no device would have). Head rows start anew at the class mean each round, as the network moves: with
nothing to tell its person from, a device then pulls everybody to one point. The figure: how much of the equal
error rate between `none` and `real`, on 150 people nobody trained on, each source closes, with a 95 %
interval over people.

Runs are kept and resumed; --only 0/2 and 1/2 each make half of the seeds. Writes OUT/result.json and
docs/results/imposters.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import privfr
from benchmarks.celeba_lfw import HERE, SAMPLES, made
from privfr.faces.verification import Trials, bootstrap

CONFIG = HERE / "seed_a.toml"
PAGE = HERE.parent / "docs" / "results" / "imposters.md"
SOURCES = ("none", "device", "public", "federated", "real")
PAIRS = 200_000  # of each kind, that intervals are drawn over


def main() -> None:
    """Run, judge and write down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/imposters"))
    parser.add_argument("--only", default="0/1", help="the I-th of N processes")
    wanted = parser.parse_args()
    mine, processes = (int(part) for part in wanted.only.split("/"))
    faces = privfr.load_faces(str(wanted.data / "celeba112"), (64, 64), min_images=12)
    for number, seed in enumerate(wanted.seeds):
        if number % processes == mine:
            train(seed, wanted.out, str(wanted.data / "celeba112"), faces)
    if processes > 1:
        return
    result = measured(wanted.seeds, wanted.out, faces)
    (wanted.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    PAGE.write_text(page(result))
    print(page(result))


def train(seed: int, out: Path, source: str, faces: privfr.Faces) -> None:
    """Make or finish the runs of one seed, the first of which pretrains."""
    start = out / f"seed-{seed}" / "none"
    for name in SOURCES:
        changes = {"seed": seed, "data.source": source, "imposters.source": name}
        if name != "none":
            changes |= {"pretraining.model": str(start / "models" / "pretrained.safetensors")}
            changes |= {"pretraining.epochs": 0}
        made(out / f"seed-{seed}" / name, changes, CONFIG, faces)


def measured(seeds: list[int], out: Path, faces: privfr.Faces) -> dict[str, Any]:
    """Judge every model, all on the same trials."""
    reports = {
        name: [privfr.Report.load(out / f"seed-{seed}" / name / "report.json") for seed in seeds]
        for name in SOURCES
    }
    trials = {
        name: [trials_of(out / f"seed-{seed}" / name, seed, faces) for seed in seeds] for name in SOURCES
    }

    def closed(name: str, number: int, weights: Any = None) -> float:
        eer = {each: trials[each][number].roc(weights).eer for each in {"none", "real", name}}
        return (eer["none"] - eer[name]) / (eer["none"] - eer["real"])

    shares = {}
    for name in SOURCES[1:-1]:
        each = []
        for number in range(len(seeds)):
            some = trials[name][number]
            bounds = bootstrap(
                lambda w, name=name, number=number: closed(name, number, w),  # type: ignore[misc]
                some.identity_a, some.identity_b, SAMPLES // 5,
            )  # fmt: skip
            each.append({"share": closed(name, number), "low": bounds.low, "high": bounds.high})
        shares[name] = each
    rows = {}
    for name, found in reports.items():
        rows[name] = [
            {
                "start": report.pretrained.eer, "eer": report.final.eer, "likeness": report.likeness[-1],
                "collapsed": report.collapsed, "alike": report.alike,
                "own": report.own.federated.mean if report.own else None,
            }
            for report in found
            if report.pretrained and report.final
        ]  # fmt: skip
    return {"seeds": seeds, "rows": rows, "closed": shares, "experiment": reports["none"][0].experiment}


def trials_of(run: Path, seed: int, faces: privfr.Faces) -> Trials:
    """Score pairs of the people nobody trained on."""
    test = privfr.RunDirectory(run).split().test_faces(faces)
    return Trials.drawn(privfr.recogniser_in(run).embed(test.images), test.labels, PAIRS, seed)


def page(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    lines = [
        "| imposters | EER, unseen people | by seed | closes of none to real, by seed (95 %) "
        "| EER, own people | mean cosine of different people | warned of collapse | left out as too like |",
        "|---|---:|---|---|---:|---:|---|---:|",
    ]
    rows = result["rows"]
    start = statistics.fmean(row["start"] for row in rows["none"])
    lines.append(f"| the start | {100 * start:.2f} | | | | | | |")
    for name, found in rows.items():
        shares = [
            f"{100 * s['share']:.0f} % ({100 * s['low']:.0f} to {100 * s['high']:.0f})"
            for s in result["closed"].get(name, [])
        ]
        warned = ", ".join(f"round {row['collapsed']}" if row["collapsed"] else "no" for row in found)
        alike = [row["alike"] for row in found if row["alike"] is not None]
        cells = [
            f"`{name}`", f"{100 * statistics.fmean(row['eer'] for row in found):.2f}",
            ", ".join(f"{100 * row['eer']:.2f}" for row in found), ", ".join(shares),
            f"{100 * statistics.fmean(row['own'] for row in found):.2f}",
            f"{statistics.fmean(row['likeness'] for row in found):.3f}", warned,
            f"{100 * statistics.fmean(alike):.1f} %" if alike else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    data, made_by = result["experiment"]["data"], result["experiment"]["imposters"]
    return f"""# What made-up faces are worth

Made by `python -m benchmarks.imposters`, whose docstring says how; the settings are `benchmarks/seed_a.toml`.
{data["clients"]} devices with one person of CelebA each, 64x64, {len(result["seeds"])} seeds;
{made_by["ratio"]:g} imposters for each picture. EER in %.

{chr(10).join(lines)}

`none` collapses: with nobody to tell its owner from, each device pulls all faces to one point, and the run
warns of it. `real` is what imposters could reach at best; no device would have other people's pictures.
"""


if __name__ == "__main__":
    main()
