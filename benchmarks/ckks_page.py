"""How `benchmarks.ckks` writes down what it measured: tables, docs/results/ckks.md."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tenseal

from benchmarks.ckks_settings import Row

PAGE = Path(__file__).parent.parent / "docs" / "results" / "ckks.md"

# figure -> "at most" or "at least", and the bar of ckks and of bfv
BARS = {
    "upload_over_float32": ("at most", 4.2, 2.1),
    "encrypt_speedup_vs_nvflare": ("at least", 2.0, 2.0),
    "add_speedup_vs_nvflare": ("at least", 3.0, 3.0),
    "decrypt_speedup_vs_nvflare": ("at least", 2.0, 2.0),
    "max_error": ("at most", 0.0, 0.0),
}
STEPS = {"encrypt_ms": "encrypt", "add_ms": "add", "decrypt_ms": "decrypt the sum"}

Figures = Mapping[str, Mapping[str, Any]]


def bars_table(figures: Figures) -> str:
    """Write the bars as Markdown."""
    lines = ["| figure | `ckks` | bar | `bfv` | bar |", "|---|---:|---|---:|---|"]
    for name, (which, *bars) in BARS.items():
        cells = []
        for backend, bar in zip(("ckks", "bfv"), bars, strict=True):
            value = figures[backend][name]
            met = value >= bar if which == "at least" else value <= bar
            cells.append(f"{value:.2f} | {which} {bar:g}{'' if met else ': **missed**'}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def steps_table(figures: Figures) -> str:
    """Write the milliseconds behind the bars, and what else was measured, as Markdown."""
    names = ("ckks", "bfv", "nvflare")
    lines = ["| | `ckks` | `bfv` | NVFlare |", "|---|---:|---:|---:|"]
    for step, label in STEPS.items():
        lines.append(f"| {label}, ms | " + " | ".join(f"{figures[n][step]:.0f}" for n in names) + " |")
    lines.append(
        f"| decrypt the mean that its server made, ms | | | {figures['nvflare']['rescaled_ms']:.0f} |"
    )
    uploads = (f"{figures[n]['upload_over_float32']:.2f}" for n in names)
    lines.append(f"| upload over float32 | {' | '.join(uploads)} |")
    errors = (f"{figures[n]['max_error_of_mean']:.1e}" for n in names)
    lines.append(f"| largest error of the mean | {' | '.join(errors)} |")
    for i, size in enumerate(figures["bfv"]["client_memory_beyond_vectors_MB"]):
        beyond = (list(figures[n]["client_memory_beyond_vectors_MB"].values())[i] for n in names)
        cells = " | ".join(f"{round(value, 1) + 0.0:.1f}" for value in beyond)  # not -0.0
        lines.append(f"| client's memory beyond vector and upload, {int(size):,} parameters, MB | {cells} |")
    return "\n".join([*lines, ""])


def settings_table(rows: list[Row]) -> str:
    """Write the settings as Markdown, best first; the shipped ones bear their backend's name."""
    lines = [
        "| scheme | N | primes | a slot | key | MB | encrypt, ms | decrypt, ms | error | wrong | |",
        "|---|---:|---|---:|---|---:|---:|---:|---|---|---|",
    ]
    for row in rows:
        lattice = row.lattice
        cells = [
            lattice.scheme.upper(),
            str(lattice.degree),
            "+".join(map(str, lattice.primes)),
            str(lattice.values),
            "symmetric" if lattice.symmetric else "public",
            f"{row.bytes / 1e6:.2f}",
            f"{row.encrypt_ms:.0f}",
            "" if row.decrypt_ms is None else f"{row.decrypt_ms:.0f}",
            "does not open" if row.error is None else str(row.error),
            "never" if row.wrong == -math.inf else f"2^{row.wrong:.0f}" if row.wrong > -1000 else "< 2^-1000",
            f"**`{row.shipped}`**" if row.shipped else "" if row.exact else "not exact",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def verdict(rows: list[Row]) -> str:
    """Say which setting is best, of all and of each backend's kind, and whether it is the shipped one."""
    sentences = []
    for backend in ("bfv", "ckks", "bfv-authority", "ckks-authority"):
        shipped = next(row for row in rows if row.shipped == backend)
        kind = shipped.lattice.scheme, shipped.lattice.symmetric
        alike = [row for row in rows if (row.lattice.scheme, row.lattice.symmetric) == kind]
        best = min(alike, key=lambda row: row.order)
        found = "is the best" if best is shipped else f"is **not** the best (that is {best.lattice.primes})"
        sentences.append(f"`{backend}`'s {found} of {len(alike)} of its kind")
    overall = min(rows, key=lambda row: row.order)
    of_all = (
        f"the best of all {len(rows)} is `{overall.shipped}`'s" if overall.shipped else "none is best of all"
    )
    return f"{'; '.join(sentences)}; {of_all}."


def page(figures: Figures, rows: list[Row], reasons: list[str], size: int, clients: int) -> str:
    """Write the result as Markdown."""
    nvflare = figures["nvflare"]
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, tenseal {tenseal.__version__}"
    rescaled = {n: f"{figures[n]['decrypt_speedup_vs_nvflare_rescaled']:.1f}" for n in ("ckks", "bfv")}
    return f"""# What homomorphic encryption costs

Made by `python -m benchmarks.ckks --page`; the docstring of `benchmarks/ckks.py` says what is measured and
how. {machine}. All times are processor time of one thread; each ratio is of medians from the same run.

**Which backend?** `bfv`, wherever a homomorphic one is wanted: it opens the same sum as `ckks`, with half
the bytes and in less time, since CKKS has a slot for every second coefficient only. `ckks` is for those who
must use that scheme. [`masking`](masking.md) sends less than half of what `bfv` sends, and no client can open
another's update; take it unless the server may not see the sum either, which only `bfv` and `ckks` keep from
it. Their price: a client that helps the server opens every update.

## One round, {size:,} parameters, 16 bits, {clients} clients

{bars_table(figures)}
A speedup is NVFlare's time over ours. NVFlare: CKKS with N = 8192, primes of 60, 40 and 40 bits, scale 2^40,
symmetric, through TenSEAL. `max_error` is in steps of the coding: 0 means the exact sum of whole numbers.

{steps_table(figures)}
- NVFlare's server divides the sum before it hands it out, which leaves one of two primes and half of the
  client's work. Against that, `ckks` decrypts {rescaled["ckks"]} and `bfv` {rescaled["bfv"]} times as fast.
- The error of our mean is the coding's, 16 bits; NVFlare's is that of float32. More bits cost bytes.
- NVFlare sends its context too, with every layer: {nvflare["context_bytes_not_counted"] / 1e6:.1f} MB that \
are not counted.
- In each round of ours some clients make a key, in {figures["ckks"]["offer_ms"]:.0f} ms (`ckks`) or \
{figures["bfv"]["offer_ms"]:.0f} ms (`bfv`), before they train: not in the times, but in the upload.

## Settings, best first

Exact, then of fewer bytes, then faster. MB and milliseconds are for the whole model; error is that of one sum
tried, in steps; *wrong* bounds the chance that one sum of the model opens wrong, and more than 2^-64 is not
exact, whatever was tried.

{settings_table(rows)}
{verdict(rows)}

Refused before anything is computed, as not 128 bits secure by the Homomorphic Encryption Security Standard:

{chr(10).join(f"- {reason}" for reason in reasons)}
"""
