"""How much does the protocol machine cost on top of the additions it exists for?

    python -m benchmarks.aggregation_core [--clients 1000] [--size 1000000] [--json FILE]

The server's side of one round of backend `plain`, fed 1,000 clients' frames, against a bare numpy loop that
adds the same frames' numbers in place. Both run alternately in one process; the figure is the ratio.
Memory is the peak that the round allocates, in vectors, counted by tracemalloc in a run of its own.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from privfr.backends import backend
from privfr.protocol import Begin, ClientSession, RoundSpec, ServerSession
from privfr.vector import Update
from privfr.wire import encode

DISTINCT = 16  # frames; clients share them, since a summand does not name its client


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    roster = tuple(range(wanted.clients))
    spec = RoundSpec(b"r" * 16, 0, "plain", roster, 1, ("loss",), wanted.size, b"l", b"m", b"c")
    frames = make_frames(spec)

    machine, bare = [], []
    for _ in range(wanted.repeats):
        started = time.perf_counter()
        sealed_by_machine(spec, frames)
        machine.append(time.perf_counter() - started)
        started = time.perf_counter()
        added_by_numpy(spec, frames)
        bare.append(time.perf_counter() - started)
    result = {
        "clients": wanted.clients,
        "size": wanted.size,
        "machine_seconds": statistics.median(machine),
        "numpy_seconds": statistics.median(bare),
        "ratio": statistics.median(m / b for m, b in zip(machine, bare, strict=True)),
        "gigabytes_per_second": wanted.clients * len(frames[0]) / statistics.median(machine) / 1e9,
        "peak_memory_vectors": peak_vectors(spec, frames),
        "same_sum": bool(np.array_equal(sealed_by_machine(spec, frames), added_by_numpy(spec, frames))),
    }
    print(json.dumps(result, indent=2))
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=2) + "\n")


def make_frames(spec: RoundSpec) -> list[bytes]:
    """Let real client sessions make the frames."""
    rng, plain, begin = np.random.default_rng(0), backend("plain"), encode(Begin(spec, memoryview(b"")))
    frames = []
    for client in range(min(DISTINCT, len(spec.clients))):
        update = Update(rng.standard_normal(spec.size, np.float32), 100.0 + client, {"loss": 1.0})
        session = ClientSession(plain, plain.client_state(spec, client, update, None), secrets.token_bytes)
        frames.append(session.receive(begin))
    return frames


def inbox(spec: RoundSpec, frames: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Give every client of the roster one of the frames."""
    for client in spec.clients:
        yield client, frames[client % len(frames)]


def sealed_by_machine(spec: RoundSpec, frames: list[bytes]) -> np.ndarray:
    """Sum by the round machine."""
    plain = backend("plain")
    session = ServerSession(plain, spec, plain.server_state(spec, None))
    session.turn(inbox(spec, frames))
    assert session.sealed is not None and not session.faults
    return np.frombuffer(session.sealed.bulk, np.float32)


def added_by_numpy(spec: RoundSpec, frames: list[bytes]) -> np.ndarray:
    """Sum the same numbers by nothing but additions in place."""
    total = np.zeros(spec.length, np.float32)
    for _, frame in inbox(spec, frames):
        total += np.frombuffer(frame, np.float32, offset=len(frame) - 4 * spec.length)
    return total


def peak_vectors(spec: RoundSpec, frames: list[bytes]) -> float:
    """Peak of what the round allocates, each frame freshly received and then let go, in vectors."""
    fresh = ((client, bytes(memoryview(frame))) for client, frame in inbox(spec, frames))
    plain = backend("plain")
    tracemalloc.start()
    session = ServerSession(plain, spec, plain.server_state(spec, None))
    session.turn(fresh)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (4 * spec.length)


if __name__ == "__main__":
    main()
