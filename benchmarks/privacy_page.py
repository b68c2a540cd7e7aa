"""How `benchmarks.privacy` writes down what it measured: tables, the plot, docs/results/privacy.md."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "results" / "privacy.md"
PLOT = PAGE.with_name("privacy.svg")

Run = dict[str, Any]
LEVELS = {"client": "client level", "example": "example level"}


def series(result: dict[str, Any], level: str) -> dict[float, list[Run]]:
    """Runs of the part that all budgets were tried on, by epsilon; those without privacy serve both."""
    found: dict[float, list[Run]] = {}
    for run in result["runs"]:
        alike = run["part"] == result["part"] and run["clients"] == result["clients"]
        if alike and (run["level"] == level or math.isinf(run["epsilon"])):
            found.setdefault(run["epsilon"], []).append(run)
    return dict(sorted(found.items()))


def starts_of(result: dict[str, Any], runs: list[Run]) -> list[Run]:
    """Give the starts of these runs."""
    return [result["start"][run["seed"]] for run in runs]


def mean(runs: list[Run], key: str) -> float:
    """Mean over runs, in percent."""
    return 100 * statistics.fmean(run[key] for run in runs)


def budgets_table(result: dict[str, Any], level: str) -> str:
    """One row for each epsilon."""
    lines = ["| ε | seeds | noise, in clips | LFW, % | of the start | EER, % | of the start |",
             "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for epsilon, runs in series(result, level).items():
        starts = starts_of(result, runs)
        noise = (
            f"{runs[0]['noise']:.3f}" if runs[0]["noise"] else "0" if math.isinf(epsilon) else "in each step"
        )
        cells = [
            "∞" if math.isinf(epsilon) else f"{epsilon:g}", str(len(runs)), noise,
            f"{mean(runs, 'accuracy'):.2f}", f"{mean(starts, 'accuracy'):.2f}",
            f"{mean(runs, 'eer'):.2f}", f"{mean(starts, 'eer'):.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts_table(result: dict[str, Any]) -> str:
    """What a budget of 8 affords: one row for each part and number of clients, seed 0."""
    lines = ["| part | numbers | clients | noise, in clips | LFW, % | EER, % |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    rows = [
        run for run in result["runs"] if (run["seed"], run["level"], run["epsilon"]) == (0, "client", 8.0)
    ]
    for run in sorted(rows, key=lambda run: (run["numbers"], run["clients"])):
        cells = [
            f"`{run['part']}`", f"{run['numbers']:,}", f"{run['clients']:,}", f"{run['noise']:.2f}",
            f"{100 * run['accuracy']:.2f}", f"{100 * run['eer']:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gains(result: dict[str, Any]) -> str:
    """What was gained over the start, with intervals."""
    lines = []
    for name, found in result["gains"].items():
        level, _, epsilon = name.rpartition("-")
        budget = "without privacy" if epsilon == "inf" else f"{LEVELS[level]}, ε = {epsilon}"
        low, high = 100 * found["low"], 100 * found["high"]
        line = f"- {budget}: {100 * found['mean']:+.2f} points (95 % over people {low:+.2f} to {high:+.2f})"
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)


def draw(result: dict[str, Any], place: Path) -> None:
    """Draw accuracy against epsilon, a panel for each level."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "privfr", "font.size": 11}  # the salt: same picture, same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, level in zip(axes, LEVELS, strict=True):
        found = series(result, level)
        at = range(len(found))
        # Over each run's own start: not every epsilon has the same seeds.
        gained = [
            [
                100 * (run["accuracy"] - start["accuracy"])
                for run, start in zip(runs, starts_of(result, runs), strict=True)
            ]
            for runs in found.values()
        ]
        axis.plot(at, [statistics.fmean(each) for each in gained], "o-", label="mean")
        spread = [(x, value) for x, each in zip(at, gained, strict=True) for value in each]
        axis.plot(*zip(*spread, strict=True), "x", color="0.6", label="each seed")
        axis.axhline(0, linestyle="--", color="0.5", label="start")
        axis.set_xticks(at, ["∞" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon in found])
        crowd = f", {result['clients']:,} clients" if level == "client" else ", each client for itself"
        axis.set_title(LEVELS[level] + crowd, fontsize=11)
        axis.set_xlabel("ε of the whole run")
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel("LFW View 2, points over the start")
    axes[0].legend(loc="best", fontsize=9)
    figure.savefig(place, metadata={"Date": None})
    pyplot.close(figure)


def page(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    clients = f"{result['clients']:,}"
    start = 100 * result["start"][0]["accuracy"]
    return f"""# What a privacy budget costs

Made by `python -m benchmarks.privacy`, whose docstring says how. 40 clients with CelebA's people train
`{result["part"]}` of a network for {result["rounds"]} rounds over `masking`, from a start pretrained on 40
public people; LFW's View 2 judges. "Of the start": what the pretrained model of the same seeds has. Only what
is above it was worth the training.

![Gain over the start against epsilon]({PLOT.name})

What was gained over the start, three seeds:

{gains(result)}

## Client level: all of a client's pictures

For {clients} clients, for whom the 40 stand: each adds the noise that makes that of the mean what it would be
of {clients}. What their people would teach beyond those of 40 is not in these figures. One in twenty may
collude, one in twenty may be lost.

{budgets_table(result, "client")}

Noise: length of what is added to a round's mean, in clips. The mean itself is no longer than one clip, and
the shorter the less clients agree.

## Example level: one picture

Each client keeps to ε by itself. Nothing is simulated. Its head starts from a seed instead of the class
means, which no noise would cover, and has these few steps to get anywhere.

{budgets_table(result, "example")}

## What a budget affords

Client level, ε = 8, seed 0 (start: {start:.2f} %). The noise's length grows with the square root of the
numbers and falls with the clients.

{parts_table(result)}
"""
