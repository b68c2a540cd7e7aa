"""What does backend `masking` cost, beside Flower's SecAgg+ and beside the keystream alone?

    python -m benchmarks.masking [--json] [--quick]     the bars of one round: minutes
    python -m benchmarks.masking --growth               time and bytes from 10 to 1,000 clients
    python -m benchmarks.masking --page                 both, and docs/results/masking.md with its plot

Everything is measured in the same run, at a million parameters and 16 bits, beside Flower's own client mod
and server workflow (`benchmarks.flower_masking`; needs `pip install 'flwr>=1.41'`). All times are processor
time of this process, its threads together, which other programs on the machine disturb little.

client  One client with 100 neighbours, from its update and what they sent it to the frame it uploads. Ours:
        encoding, checking 100 signatures, opening 100 boxes, agreeing on the keys of 101 masks, adding them,
        packing, and sharing the self mask's seed in 100 boxes. Flower's: quantising, opening 100 boxes,
        agreeing on the keys of 101 masks, adding them; it has shared the seed before. The floor is what
        OpenSSL takes for as many bytes of ChaCha20 as the 101 masks have, measured here. Runs alternate; a
        figure is a ratio of shortest times, each of seven.
round   100 clients, 5 lost after they have shared and before they upload. All parties take turns in this
        process; ours over real frames, with the graph that follows from the default promise, and with
        consent. Ours three times (median), around two of Flower's. Nothing is sampled or scaled, and all
        sums are checked. In our graph a client shares its secrets with `neighbours` but masks with about
        twice as many, since those who chose it count too; in Flower's both are the same clients. The ratio
        is for as many masks, rounded down, so that Flower adds no more than ours; the ratio for as many
        holders of shares is printed beside it.
upload  All frames that a client sends in that round, over float32.
memory  The server of a round with 1,000 clients, 50 of them lost, in a process of its own, fed through a
        socket: the peak of its resident memory (VmHWM) less what it held before it made its state. The
        clients are real sessions, with signed adverts, boxes, shares and consents, but without a summand;
        instead of it a random one of the right length is sent. So the sum means nothing, but the server
        stores, adds and unmasks what it always does. Linux only.

One vector is the model as float32: 4 bytes times the parameters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import socket
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time as clock
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from benchmarks.masking_page import PAGE, PLOT, Row, bars_table, draw, growth_table, page
from privfr.backends import backend
from privfr.backends.masking import MASKING, graph_of
from privfr.backends.masking.client import ClientState, point_of
from privfr.backends.masking.graph import Promise
from privfr.backends.masking.messages import Masked
from privfr.coding import Coding
from privfr.protocol import Begin, ClientSession, RoundSpec, ServerSession
from privfr.vector import Update
from privfr.wire import decode, encode

CODING = Coding(clip=0.25, bits=16, max_weight=1000)
DEFAULT: dict[str, Any] = {"corruption": 0.05, "dropout": 0.05, "neighbours": 0, "shares": 0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures of the bars as JSON, no more")
    parser.add_argument(
        "--quick", action="store_true", help="small, to see that it works: no bar is meant for it"
    )
    parser.add_argument("--growth", action="store_true", help="measure growth with the clients instead")
    parser.add_argument(
        "--page", action="store_true", help=f"measure both, and write {PAGE.name} and its plot"
    )
    wanted = parser.parse_args()
    if wanted.growth:
        counts = (10, 30, 100) if wanted.quick else (10, 30, 100, 300, 1000)
        return print(growth_table(grow(counts, 100_000)))
    bars, details = measure_bars(wanted.quick)
    if wanted.json:
        return print(json.dumps(bars, indent=2))
    print(bars_table(bars), *details, sep="\n")
    if wanted.page:
        rows = grow((10, 30, 100, 300, 1000), 100_000)
        draw(rows, PLOT)
        PAGE.write_text(page(bars, details, rows))
        print(growth_table(rows))


def say(text: str) -> None:
    """Show that something happens, where JSON is not read."""
    print(text, file=sys.stderr, flush=True)


# A round of ours


def make_spec(clients: int, size: int, options: dict[str, Any] = DEFAULT) -> RoundSpec:
    """Specify a round of backend `masking` that may lose as many clients as it promises."""
    promise, _ = graph_of(clients, options)
    threshold = max(MASKING.fewest(clients, options), clients - promise.dropped(clients))
    parameters = MASKING.plan(clients, threshold, CODING, options)
    roster = tuple(range(clients))
    return RoundSpec(
        b"r" * 16,
        0,
        "masking",
        roster,
        threshold,
        ("loss",),
        size,
        b"l" * 32,
        b"m" * 32,
        b"c" * 32,
        parameters,
    )


def make_update(size: int) -> Update:
    """Make an update that does not clip."""
    vector = np.random.default_rng(0).uniform(-0.2, 0.2, size).astype(np.float32)
    return Update(vector, 500.0, {"loss": 1.0})


@dataclass
class Measured:
    """A round. client_seconds, client_bytes: of each client that stayed, by id; bytes it sent."""

    server_seconds: float = 0.0
    lost_seconds: float = 0.0
    client_seconds: dict[int, float] = field(default_factory=dict)
    client_bytes: dict[int, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What all parties took together, one after the other."""
        return self.server_seconds + self.lost_seconds + sum(self.client_seconds.values())


def whole_round(spec: RoundSpec, update: Update, lost: set[int], noise: float = 0.0) -> Measured:
    """Run a round in which `lost` do not send their masked summand; checks the sum, but for so much noise."""
    server_keyring, keyrings = MASKING.provision(spec.clients, secrets.token_bytes)
    found, spent = Measured(), dict.fromkeys(spec.clients, 0.0)
    sent = dict.fromkeys(spec.clients, 0)

    started = clock()
    server = ServerSession(MASKING, spec, MASKING.server_state(spec, server_keyring))
    inbox = dict.fromkeys(spec.clients, encode(Begin(spec, memoryview(b""))))
    found.server_seconds = clock() - started
    clients = {}
    for client in spec.clients:
        started = clock()
        state = MASKING.client_state(spec, client, update, keyrings[client], secrets.token_bytes)
        clients[client] = ClientSession(MASKING, state, secrets.token_bytes)
        spent[client] += clock() - started
    while server.phase != "done":
        phase = server.phase
        for client, frame in inbox.items():
            if phase == "mask" and client in lost:
                continue
            started = clock()
            answer = clients[client].receive(frame)
            answered = clock()
            server.absorb(client, answer)
            found.server_seconds += clock() - answered
            spent[client] += answered - started
            sent[client] += len(answer)
            found.phases[phase] = found.phases.get(phase, 0.0) + answered - started
        started = clock()
        inbox = server.close()
        found.server_seconds += clock() - started
    started = clock()
    assert server.sealed is not None and not server.faults
    mean = MASKING.open(spec, server.sealed, server_keyring)
    found.server_seconds += clock() - started
    assert mean.count == len(spec.clients) - len(lost)
    assert np.abs(mean.vector - update.vector).max() <= mean.error + noise
    found.client_seconds = {client: spent[client] for client in spec.clients if client not in lost}
    found.client_bytes = {client: sent[client] for client in found.client_seconds}
    found.lost_seconds = sum(spent[client] for client in lost)
    return found


def spread(clients: int, count: int) -> set[int]:
    """Choose `count` clients evenly over the roster."""
    return {i * clients // count for i in range(count)}


# Bars


def measure_bars(quick: bool) -> tuple[dict[str, float], list[str]]:
    """Measure what the bars are about; gives it, and lines with what lies behind it."""
    size, clients, crowd, neighbours = (100_000, 20, 60, 20) if quick else (1_000_000, 100, 1000, 100)
    client, client_lines = compare_client(size, neighbours)
    whole, round_lines = compare_round(size, clients)
    say(f"memory of a server with {crowd} clients")
    vectors = server_memory(size, crowd)
    return client | whole | {"server_memory_vectors": vectors}, [*client_lines, *round_lines]


def compare_client(size: int, neighbours: int, repeats: int = 7) -> tuple[dict[str, float], list[str]]:
    """Time the masking step of a client, ours and Flower's, and the keystream it cannot do without."""
    from benchmarks import flower_masking as flower

    say(f"a client with {neighbours} neighbours")
    corrupt = Promise(0.05, 0.05).corrupt(neighbours + 1)
    shares = (neighbours + 1 - corrupt) // 2 + corrupt  # of a complete graph, as `graph.derive` has it
    update = make_update(size)
    ours, lanes = masking_client(size, neighbours, shares, update)
    theirs = flower.MaskingClient(update.vector, neighbours, shares).mask
    times: dict[str, list[float]] = {"encode": [], "mask": [], "ours": [], "flower": [], "floor": []}
    for _ in range(repeats):
        encoding, masking = ours()
        times["encode"].append(encoding)
        times["mask"].append(masking)
        times["ours"].append(encoding + masking)
        times["flower"].append(theirs())
        times["floor"].append(keystream(4 * lanes * (neighbours + 1)))
    best = {name: min(each) for name, each in times.items()}
    figures = {
        "client_speedup_vs_flower": best["flower"] / best["ours"],
        "client_over_keystream_floor": best["ours"] / best["floor"],
    }
    rate = 4 * lanes * (neighbours + 1) / best["floor"] / 1e9
    return figures, [
        f"Client with {neighbours} neighbours: {1000 * best['ours']:.0f} ms, "
        f"{1000 * best['encode']:.1f} of them for encoding; Flower {1000 * best['flower']:.0f} ms; "
        f"keystream alone {1000 * best['floor']:.0f} ms, {rate:.1f} GB/s. Shortest of {repeats}."
    ]


def masking_client(
    size: int, neighbours: int, shares: int, update: Update
) -> tuple[Callable[[], tuple[float, float]], int]:
    """Bring a client to the point where it masks; gives what times it (encoding, masking), and its lanes."""
    clients = neighbours + 1  # the complete graph
    spec = make_spec(clients, size, DEFAULT | {"neighbours": neighbours, "shares": shares})
    chosen = clients // 2  # half of the masks are added, half subtracted
    server_keyring, keyrings = MASKING.provision(spec.clients, secrets.token_bytes)
    server = ServerSession(MASKING, spec, MASKING.server_state(spec, server_keyring))

    def begin() -> ClientState:
        state = MASKING.client_state(spec, chosen, update, keyrings[chosen], secrets.token_bytes)
        assert isinstance(state, ClientState)
        return state

    # The others never get to their summand.
    states = {c: ClientState(c, spec, spec.context(), keyrings[c], b"") for c in spec.clients} | {
        chosen: begin()
    }
    sessions = {c: ClientSession(MASKING, state, secrets.token_bytes) for c, state in states.items()}
    inbox = dict.fromkeys(spec.clients, encode(Begin(spec, memoryview(b""))))
    while server.phase != "mask":
        inbox = server.turn((c, sessions[c].receive(frame)) for c, frame in inbox.items())
    saved = sessions[chosen].save()

    def step() -> tuple[float, float]:
        started = clock()
        begin()
        encoded = clock()
        session = ClientSession.restore(MASKING, saved, secrets.token_bytes)
        restored = clock()
        session.receive(inbox[chosen])
        return encoded - started, clock() - restored

    return step, point_of(spec).lanes


def keystream(size: int) -> float:
    """Seconds OpenSSL takes for `size` bytes of ChaCha20, 64 KiB at a time as fits its caches."""
    zeros, out = bytes(1 << 16), bytearray(1 << 16)
    cipher = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor()
    started = clock()
    for _ in range(size >> 16):
        cipher.update_into(zeros, out)
    cipher.update_into(zeros[: size & 0xFFFF], out)
    return clock() - started


def compare_round(size: int, clients: int) -> tuple[dict[str, float], list[str]]:
    """Time a whole round, ours and Flower's, with the same clients and the same losses."""
    from benchmarks import flower_masking as flower

    spec, update = make_spec(clients, size), make_update(size)
    lost = spread(clients, clients // 20)
    facts = MASKING.describe(clients, spec.threshold, DEFAULT)
    holders, shares = int(facts["neighbours"]) // 2 * 2, int(facts["shares"])
    partners = int(facts["masks"] - 1) // 2 * 2

    def theirs(neighbours: int) -> float:
        say(f"a round of {clients}, Flower's, {neighbours} neighbours")
        threshold = min(shares, neighbours)
        seconds, mean = flower.whole_round(update.vector, clients, neighbours, threshold, len(lost))
        assert np.abs(mean - update.vector).max() < 1e-4
        return seconds

    def ours() -> Measured:
        say(f"a round of {clients}, ours")
        return whole_round(spec, update, lost)

    runs, with_partners = [ours()], theirs(partners)
    runs, with_holders = [*runs, ours()], theirs(holders) if holders != partners else with_partners
    runs.append(ours())
    seconds = statistics.median(run.seconds for run in runs)
    sent = statistics.fmean(runs[0].client_bytes.values())
    lines = [
        f"Round of {clients}, {len(lost)} lost: {seconds:.1f} s ("
        + ", ".join(f"{run.seconds:.1f}" for run in runs)
        + f"; server {statistics.median(run.server_seconds for run in runs):.1f}), each client sharing with "
        f"{facts['neighbours']:.0f} and masking with {facts['masks'] - 1:.1f}.",
        f"Flower, sharing and masking with {partners}: {with_partners:.1f} s, "
        f"{with_partners / seconds:.1f} times ours; with {holders}: {with_holders:.1f} s, "
        f"{with_holders / seconds:.1f} times ours. {shares} shares open a secret in all of them.",
        f"Upload: {sent / 1e6:.2f} MB a client.",
    ]
    return {
        "round_speedup_vs_flower": with_partners / seconds,
        "upload_over_float32": sent / (4 * size),
    }, lines


# Memory of the server


def server_memory(size: int, clients: int) -> float:
    """Peak of a server process's memory beyond its start, in vectors."""
    spec = make_spec(clients, size)
    roster, keyrings = MASKING.provision(spec.clients, secrets.token_bytes)
    here, there = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    there.close()
    send(here, msgspec.msgpack.encode((spec, roster)))
    sessions = {
        c: ClientSession(MASKING, ClientState(c, spec, spec.context(), keyrings[c], b""), secrets.token_bytes)
        for c in spec.clients
    }
    lost, point = spread(clients, clients // 20), point_of(spec)
    inbox: dict[int, bytes] = dict.fromkeys(spec.clients, encode(Begin(spec, memoryview(b""))))
    for step in MASKING.client_steps:
        for client, frame in inbox.items():
            if step.phase == "mask" and client in lost:
                continue
            answer = sessions[client].receive(frame)
            if step.phase == "mask":  # the last byte 0: bits after the last lane must be
                bulk = secrets.token_bytes(point.packed_bytes - 1) + b"\0"
                masked = msgspec.structs.replace(decode(answer, Masked), bulk=memoryview(bulk))
                answer = encode(masked)
            send(here, client.to_bytes(4, "big") + answer)
        send(here, b"")
        inbox = {client: bytes(frame) for client, frame in frames(here)}
    start, peak = msgspec.msgpack.decode(receive(here), type=tuple[int, int])
    process.join()
    return (peak - start) / (4 * size)


def serve(connection: socket.socket) -> None:
    """Be the server of one round; in a process of its own."""
    spec, roster = msgspec.msgpack.decode(receive(connection), type=tuple[RoundSpec, dict[int, bytes]])
    start = memory("VmRSS")
    masking = backend(spec.backend)
    server = ServerSession(masking, spec, masking.server_state(spec, roster))
    while server.phase != "done":
        for client, frame in server.turn(frames(connection)).items():
            send(connection, client.to_bytes(4, "big") + frame)
        send(connection, b"")
    assert server.sealed is not None and not server.faults, server.faults[:1]
    send(connection, msgspec.msgpack.encode((start, memory("VmHWM"))))


def frames(connection: socket.socket) -> Iterator[tuple[int, memoryview]]:
    """Receive a phase's frames, up to an empty one, one at a time, each into the place of the last."""
    while view := receive(connection):
        yield int.from_bytes(view[:4], "big"), view[4:]


def send(connection: socket.socket, data: bytes) -> None:
    """Send some bytes, their number before them."""
    connection.sendall(len(data).to_bytes(4, "big"))
    connection.sendall(data)


_place = bytearray(1 << 23)  # of which a process only takes what frames fill


def receive(connection: socket.socket) -> memoryview:
    """Receive what `send` sent; it is there until the next is received."""
    _fill(connection, memoryview(_place)[:4])
    view = memoryview(_place)[: int.from_bytes(_place[:4], "big")]
    _fill(connection, view)
    return view


def _fill(connection: socket.socket, view: memoryview) -> None:
    while view:
        got = connection.recv_into(view)
        if not got:
            raise SystemExit("the other process has gone")
        view = view[got:]


def memory(name: str) -> int:
    """Bytes of this process's memory by the kernel's count: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise SystemExit("the kernel does not tell a process's memory: this part needs Linux")


# Growth


def grow(counts: tuple[int, ...], size: int, repeats: int = 3) -> list[Row]:
    """Measure whole rounds of these numbers of clients, a twentieth of each lost before masking."""
    rows = []
    for clients in counts:
        say(f"growth: {clients} clients, {repeats} rounds")
        spec, update = make_spec(clients, size), make_update(size)
        facts = MASKING.describe(clients, spec.threshold, DEFAULT)
        runs = [whole_round(spec, update, spread(clients, clients // 20)) for _ in range(repeats)]
        rows.append(
            Row(
                clients=clients,
                neighbours=int(facts["neighbours"]),
                degree=facts["masks"] - 1,
                client_seconds=statistics.median(
                    statistics.fmean(run.client_seconds.values()) for run in runs
                ),
                sent=statistics.fmean(runs[0].client_bytes.values()),
                summand=point_of(spec).packed_bytes,
                server_seconds=statistics.median(run.server_seconds for run in runs),
            )
        )
    return rows


if __name__ == "__main__":
    main()
