"""The page and the picture of benchmarks/seed_a.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "seed_a.md"
PICTURE = "seed_a.svg"

Row = dict[str, Any]


def of(result: dict[str, Any], method: str, aggregator: str) -> list[Row]:
    """Rows of one configuration, a seed each."""
    return [r for r in result["rows"] if (r["method"], r["aggregator"]) == (method, aggregator)]


def names(result: dict[str, Any], key: str) -> list[str]:
    """Methods or aggregators, in order."""
    return list(dict.fromkeys(row[key] for row in result["rows"]))


def percent(values: list[float]) -> str:
    """Mean over seeds, and the spread between them where there are several."""
    spread = f" ± {100 * statistics.pstdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def table(result: dict[str, Any], method: str) -> str:
    """Accuracy, time and bytes of one method under every aggregator."""
    lines = [
        "| aggregator | own people: EER, mean of devices | unseen people: EER | LFW View 2 accuracy "
        "| LFW EER | s a round | up, MB | ε |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    clear = of(result, method, "server in clear")
    for title, key in (("each device alone", "alone"), ("the start", "own_start")):
        lines.append(f"| {title} | {percent([r[key] for r in clear])} | | | | | | |")
    for aggregator in names(result, "aggregator"):
        rows = of(result, method, aggregator)
        epsilon = rows[0]["epsilon"]
        cells = [
            f"**{aggregator}**",
            *(percent([r[key] for r in rows]) for key in ("own", "unseen", "lfw", "lfw_eer")),
            f"{statistics.fmean(r['seconds'] for r in rows):.1f}",
            f"{statistics.fmean(r['up'] for r in rows) / 1e6:.1f}",
            "" if epsilon is None else f"{epsilon:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def against_alone(result: dict[str, Any]) -> str:
    """Aggregated against individual models, seed by seed, in the four configurations."""
    lines = ["| configuration | " + " | ".join(f"seed {s}" for s in result["seeds"]) + " |"]
    lines.append("|---|" + "---:|" * len(result["seeds"]))
    for method in names(result, "method"):
        alone = [r["alone"] for r in of(result, method, "server in clear")]
        for title, aggregator in (("central server", "server in clear"), ("secure aggregator", "masking")):
            own = [r["own"] for r in of(result, method, aggregator)]
            cells = [f"{100 * o:.2f} < {100 * a:.2f}" if o < a else f"**{100 * o:.2f} ≥ {100 * a:.2f}**"
                     for o, a in zip(own, alone, strict=True)]  # fmt: skip
            lines.append(f"| {method}, {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losslessness(result: dict[str, Any]) -> str:
    """Whether the aggregators that sum integers give one model, and how far that is from float32."""
    lines = []
    for method in names(result, "method"):
        groups = [of(result, method, aggregator) for aggregator in result["lossless"]]
        same = all(len({row["model"] for row in each}) == 1 for each in zip(*groups, strict=True))
        clear = of(result, method, "server in clear")
        apart = max(abs(a["unseen"] - b["unseen"]) for a, b in zip(groups[0], clear, strict=True))
        spread = statistics.pstdev([row["unseen"] for row in clear]) if len(clear) > 1 else float("nan")
        given = "the same model to the bit" if same else "**different models**"
        lines.append(
            f"- {method}: {', '.join(result['lossless'])} give {given} in every seed; its EER on unseen "
            f"people is at most {100 * apart:.3f} points from that of float32 in clear (between seeds: "
            f"{100 * spread:.2f})"
        )
    return "\n".join(lines)


def references(result: dict[str, Any]) -> str:
    """What the unsupervised method is held against."""
    found, clear = result["references"], of(result, "unsupervised", "server in clear")
    eer = [row["unseen"] for row in clear]
    lines = ["| EER on unseen people | % |", "|---|---:|"]
    for title, values in (
        ("untrained network", [each["untrained"] for each in found]),
        ("cosine of pixels", [each["pixels"] for each in found]),
        ("unsupervised, federated", eer),
        ("supervised, federated, the same albums with labels", [row["unseen"] for row in result["labelled"]]),
    ):  # fmt: skip
        lines.append(f"| {title} | {percent(values)} |")
    for key, title in (("untrained", "the untrained network"), ("pixels", "pixels")):
        gains = [1 - own / each[key] for own, each in zip(eer, found, strict=True)]
        lines += ["", f"Lower than {title} by {', '.join(f'{100 * g:.0f} %' for g in gains)} (by seed)."]
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    data = result["experiment"]["data"]
    return f"""# The seed system: {{supervised, unsupervised}} × {{central server, secure aggregator}}

Made by `python -m benchmarks.seed_a`, whose docstring says how; the settings are `benchmarks/seed_a.toml`.
{data["clients"]} devices, CelebA at 64x64, {len(result["seeds"])} seeds (the figure after ± is the spread
between them). EER and accuracy in %.

![Equal error rates]({PICTURE})

## Aggregated against individual models

Mean EER over the devices, each on its own trials, the aggregated model on the same ones:

{against_alone(result)}

## Supervised: each device holds its owner alone, with imposters

{table(result, "supervised")}

## Unsupervised: each device holds twelve people, and nobody says who is who

{table(result, "unsupervised")}

{references(result)}

## What secrecy costs

{losslessness(result)}

Differential privacy is the only one that costs accuracy: with 40 devices and the whole network, ε = 8 leaves
what the tables show. [What a privacy budget costs](privacy.md) says how many devices it takes.

Time is of one machine with two cores that plays all parties, two runs at once: compare rows, not seconds.
"""


def draw(result: dict[str, Any], place: Path) -> None:
    """Draw the equal error rates on the devices' own trials, a panel for each method."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "privfr", "font.size": 11}  # the salt: same picture, same file
    from matplotlib import pyplot

    methods, aggregators = names(result, "method"), names(result, "aggregator")
    figure, axes = pyplot.subplots(1, len(methods), figsize=(11, 4), layout="constrained", sharey=True)
    for axis, method in zip(axes, methods, strict=True):
        bars = {"each device alone": [r["alone"] for r in of(result, method, "server in clear")]}
        bars |= {name: [r["own"] for r in of(result, method, name)] for name in aggregators}
        at = range(len(bars))
        means = [100 * statistics.fmean(values) for values in bars.values()]
        axis.barh(list(at), means, color=["0.7", *["tab:blue"] * (len(bars) - 2), "tab:orange"], alpha=0.8)
        for y, values in zip(at, bars.values(), strict=True):
            axis.plot([100 * value for value in values], [y] * len(values), "k|", markersize=10)
        axis.set_yticks(list(at), list(bars))
        axis.invert_yaxis()
        axis.set_title(method, fontsize=11)
        axis.set_xlabel("EER on own trials, %, mean of devices; a tick for each seed")
        axis.grid(True, axis="x", alpha=0.3)
    figure.savefig(place, metadata={"Date": None})
    pyplot.close(figure)
