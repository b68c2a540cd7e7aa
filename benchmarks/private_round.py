"""What does client-level privacy cost a masked round, in time and bytes?

    python -m benchmarks.private_round [--clients 40] [--parameters 1000000] [--json FILE]

The same round of backend `masking`, of the same updates, with and without noise for epsilon 8 over 20 rounds.
The updates are twice as long as the clip, so that clients have to shorten them. The rounds take turns in one
process; nothing is trained. Seconds are processor time (see `benchmarks.masking`); each figure is a ratio of
medians over the repeats, of a client's seconds or of everybody's together. The sum is checked: exact without
noise, within its bound with it. The bytes are all that a client sends; beside the head-room that the noise
needs in each number there should be none that are more than without it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.masking import DEFAULT, Measured, make_spec, whole_round
from privfr.backends.masking import MASKING
from privfr.backends.masking.client import point_of
from privfr.coding import Coding
from privfr.privacy.client import ClientLevel, calibrated
from privfr.protocol import RoundSpec
from privfr.vector import Update

CLIP = 1.0


def main() -> None:
    """Measure and print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    vector = np.random.default_rng(0).normal(size=wanted.parameters)
    update = Update((2 * CLIP * vector / np.linalg.norm(vector)).astype(np.float32), 1.0, {})
    coding = Coding(0.25, 16, 1)
    clear = with_coding(make_spec(wanted.clients, wanted.parameters), coding)
    level = planned(clear, coding)
    noisy = with_coding(clear, msgspec.structs.replace(coding, noise=level.noise))
    found: dict[str, list[Measured]] = {"clear": [], "noisy": []}
    for _ in range(wanted.repeats):
        found["clear"].append(whole_round(clear, update, set()))
        found["noisy"].append(whole_round(noisy, update, set(), bound(noisy, coding)))
    result = figures(found, clear, noisy)
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def with_coding(spec: RoundSpec, coding: Coding) -> RoundSpec:
    """Give the same round another coding, and no metrics."""
    parameters = MASKING.plan(len(spec.clients), spec.threshold, coding, DEFAULT)
    return msgspec.structs.replace(spec, parameters=parameters, metrics=())


def planned(spec: RoundSpec, coding: Coding) -> ClientLevel:
    """Epsilon 8 for each client over 20 rounds, one in twenty of whom may collude."""
    return calibrated(
        epsilon=8.0, delta=1e-5, multiplier=0.0, clip=CLIP, corruption=0.05,
        step=coding.step, clients=len(spec.clients), threshold=spec.threshold, rounds=20,
        size=spec.size, central=False,
    )  # fmt: skip


def bound(spec: RoundSpec, coding: Coding) -> float:
    """Most that noise moves a number of the mean, but for a chance of 2^-40."""
    private = point_of(spec).coding
    clients = len(spec.clients)
    steps = private.reach(clients) - coding.reach(clients)
    return steps / clients * coding.step


def figures(found: dict[str, list[Measured]], clear: RoundSpec, noisy: RoundSpec) -> dict[str, float]:
    """Ratios of medians, and bits of a number."""

    def median(name: str, of: str) -> float:
        clients = len(clear.clients)
        values = {
            "client": [sum(each.client_seconds.values()) / clients for each in found[name]],
            "round": [each.seconds for each in found[name]],
            "bytes": [float(sum(each.client_bytes.values())) / clients for each in found[name]],
        }
        return statistics.median(values[of])

    ratios = {
        f"{of}_over_masking": round(median("noisy", of) / median("clear", of), 4)
        for of in ("client", "round", "bytes")
    }
    wide, narrow = point_of(noisy), point_of(clear)
    more = median("noisy", "bytes") - median("clear", "bytes")
    noise = wide.coding.noise
    assert noise is not None
    return ratios | {
        "bits": wide.modulus_bits,
        "bits_without_noise": narrow.modulus_bits,
        "bytes": median("noisy", "bytes"),
        "bytes_without_noise": median("clear", "bytes"),
        "bytes_more_but_head_room": more - (wide.packed_bytes - narrow.packed_bytes),
        "client_seconds": median("noisy", "client"),
        "client_seconds_without_noise": median("clear", "client"),
        "noise_steps_a_client": math.sqrt(noise.variance),
    }


if __name__ == "__main__":
    main()
