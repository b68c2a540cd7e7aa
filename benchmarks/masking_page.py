"""How `benchmarks.masking` writes down what it measured: tables, the plot, docs/results/masking.md."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "results" / "masking.md"
PLOT = PAGE.with_name("masking-growth.svg")

BARS = {
    "client_speedup_vs_flower": ("at least", 4.0),
    "client_over_keystream_floor": ("at most", 1.6),
    "round_speedup_vs_flower": ("at least", 5.0),
    "upload_over_float32": ("at most", 0.75),
    "server_memory_vectors": ("at most", 6.0),
}


@dataclass(frozen=True)
class Row:
    """Costs of a round: means over the clients that stayed, medians over the repeats.

    neighbours: others that a client draws, who hold its shares.  degree: others that it masks with, on
    average.  sent: bytes, the packed summand among them.
    """

    clients: int
    neighbours: int
    degree: float
    client_seconds: float
    sent: float
    summand: int
    server_seconds: float

    @property
    def beside(self) -> float:
        """Bytes that a client sends beside the packed summand."""
        return self.sent - self.summand


def bars_table(bars: dict[str, float]) -> str:
    """Write the bars as Markdown."""
    lines = ["| figure | measured | bar |", "|---|---:|---|"]
    for name, (which, bar) in BARS.items():
        met = bars[name] >= bar if which == "at least" else bars[name] <= bar
        lines.append(f"| `{name}` | {bars[name]:.2f} | {which} {bar:g}{'' if met else ': **missed**'} |")
    return "\n".join([*lines, ""])


def growth_table(rows: list[Row]) -> str:
    """Write the growth as Markdown."""
    lines = [
        "| clients | shares with | masks with | client, ms | it sends, kB | beside its summand | server, s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            f"{row.clients:,}",
            f"{row.neighbours}",
            f"{row.degree:.1f}",
            f"{1000 * row.client_seconds:.1f}",
            f"{row.sent / 1e3:.0f}",
            f"{row.beside / 1e3:.1f}",
            f"{row.server_seconds:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", fits(rows)])


def fits(rows: list[Row]) -> str:
    """Say how well costs follow the degree (client) and n log n (server)."""
    degree, seconds = np.array([r.degree for r in rows]), np.array([r.client_seconds for r in rows])
    slope, start = np.polyfit(degree, seconds, 1)
    missed = np.abs(seconds / (start + slope * degree) - 1).max()
    each = [r.server_seconds / n_log_n(r) for r in rows]
    return (
        f"Client: {1000 * start:.1f} ms and {1000 * slope:.2f} ms for each other client that it masks with "
        f"(least squares; off by {100 * missed:.0f} % at most). Server: {1e6 * min(each):.0f} to "
        f"{1e6 * max(each):.0f} µs times n ln n, for n that grows by {rows[-1].clients // rows[0].clients}."
    )


def n_log_n(row: Row) -> float:
    """The law that the server is held against."""
    return row.clients * math.log(row.clients)


def draw(rows: list[Row], place: Path) -> None:
    """Draw the growth, log-log: time and bytes of a client, time of the server."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "privfr", "font.size": 11}  # the salt: same picture, same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    time, sent, server = "One client's time, ms", "It sends beside its summand, kB", "The server's time, s"
    panels: list[tuple[str, Callable[[Row], float], str, Callable[[Row], float]]] = [
        (time, lambda r: 1000 * r.client_seconds, "~ masks", lambda r: 1 + r.degree),
        (sent, lambda r: r.beside / 1e3, "~ shares", lambda r: r.neighbours),
        (server, lambda r: r.server_seconds, "~ n log n", n_log_n),
    ]
    for axis, (title, measured, law, follows) in zip(axes, panels, strict=True):
        counts, values = [r.clients for r in rows], [measured(r) for r in rows]
        scale = math.exp(statistics.fmean(math.log(measured(r) / follows(r)) for r in rows))
        expected = [scale * follows(r) for r in rows]
        axis.plot(counts, expected, "--", color="0.5", label=law)
        axis.plot(counts, values, "o-", label="measured")
        _scale(axis, counts, values + expected)
        axis.set_title(title, fontsize=11)
        axis.legend(loc="lower right")
    figure.savefig(place, metadata={"Date": None})
    pyplot.close(figure)


def _scale(axis: Any, counts: list[int], values: list[float]) -> None:
    """Make both axes logarithmic, with whole decades and plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    axis.set(xlabel="clients n", xscale="log", yscale="log")
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, alpha=0.3)


def page(bars: dict[str, float], details: list[str], rows: list[Row]) -> str:
    """Write the result as Markdown."""
    import flwr

    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, flwr {flwr.__version__}"
    return f"""# What masking costs

Made by `python -m benchmarks.masking --page`; the docstring of `benchmarks/masking.py` says what is measured
and how. {machine}. All times are processor time; each ratio is of times from the same run.

## One round, a million parameters, 16 bits

{bars_table(bars)}
{chr(10).join(f"- {line}" for line in details)}

Flower runs as it ships, by its own client mod and workflow, and does less: keys are not signed, the clients
do not agree on who survived, weights and metrics travel in clear, and the masks come from NumPy's Mersenne
Twister with a seed of 32 bits (flwr issue 7522), which is no cryptographic generator.

## From 10 to 1,000 clients, 100,000 parameters

The default promise: a twentieth of the clients corrupt, a twentieth lost, here after they have shared. Up to
50 clients everyone is everyone's neighbour; from there on the graph is sparse.

{growth_table(rows)}

![Growth with the number of clients]({PLOT.name})

Dashed: the law, through the middle of the points. The server adds n summands and takes off n self masks, and
those that a twentieth of the clients, which were lost, had with others.
"""
