"""What do backends `bfv` and `ckks` cost, beside NVFlare's parameters, and are theirs the best ones?

    python -m benchmarks.ckks [--json]     the bars, at a million parameters, 16 bits, 40 clients: minutes
    python -m benchmarks.ckks --page       the same, and docs/results/ckks.md
    ... --parameters 100000 --clients 10   smaller, to see that it works: no bar is meant for it

NVFlare's side is TenSEAL with NVFlare's parameters and calls (`benchmarks.nvflare_ckks`; NVFlare itself is
not needed). Everything is measured in the same run; theirs and ours alternate. All times are processor time
of this process, which other programs on the machine disturb little. Both sides have one thread, although
NVFlare would take one for each core: that would say nothing of the parameters. A ratio is one of medians.

encrypt  A client, from its float32 update to the bytes that it uploads. Ours: coding to whole numbers,
         opening the box with the round's key, packing, encryption, the MAC, the frame. Theirs: weighing,
         encryption, serialisation.
add      The server, from one more client's upload to the sum with it. Ours: checking the frame and each
         coefficient, adding modulo the prime. Theirs: deserialising, adding.
decrypt  A client, from the sum's bytes to the mean as float32. Ours: opening the box, checking the
         MAC, decryption, unpacking, decoding. Theirs: deserialising, decryption, division. NVFlare's server
         multiplies the sum by 1/weight before it sends it, which takes one of two primes off and so spares
         the client more than half of the work: `decrypt_speedup_vs_nvflare_rescaled` is against that, and
         `decrypt_speedup_vs_nvflare` against the sum as it was added up.
upload   All that a client sends in the round, one that makes a key, over its update as float32.
error    `max_error`: the opened sum against the exact sum of the clients' whole numbers, in their steps.
         `max_error_of_mean`: the mean against the exact mean of the float32 updates, as the coding rounds.
memory   Peak of a client process's resident memory (VmHWM) less what it held before it had its update, less
         the update and the upload, at the given size and at three times as many parameters. Linux only.

Settings: see `benchmarks.ckks_settings`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time as clock
from typing import Any

import msgspec
import numpy as np

from benchmarks.ckks_page import PAGE, bars_table, page, settings_table
from benchmarks.ckks_settings import Row, refused, try_all
from benchmarks.nvflare_ckks import NVFlare
from privfr.backends import backend
from privfr.backends.homomorphic.clients import ClientState
from privfr.backends.homomorphic.round import packing_of
from privfr.backends.homomorphic.sealing import Keyring
from privfr.coding import Coding
from privfr.protocol import Begin, ClientSession, RoundSpec, ServerSession
from privfr.vector import Aggregate, Update
from privfr.wire import encode

CODING = Coding(clip=0.25, bits=16, max_weight=1000)
OURS = ("ckks", "bfv")
REPEATS = 9  # of NVFlare's steps; each client of ours is timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, no more")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=40)
    wanted = parser.parse_args()
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # TenSEAL's C++ prints a warning for long vectors
    size, clients = wanted.parameters, wanted.clients
    figures = compare(size, clients)
    for name in OURS:
        figures[name]["client_memory_beyond_vectors_MB"] = client_memory(name, size, clients)
    figures["nvflare"]["client_memory_beyond_vectors_MB"] = client_memory("nvflare", size, clients)
    say("settings")
    rows = try_all(size, clients, CODING)
    if wanted.json:
        table = [as_json(row) for row in rows]
        return print(json.dumps(figures | {"settings": table, "refused": refused()}, indent=2), file=stdout)
    print(bars_table(figures), settings_table(rows), *refused(), sep="\n", file=stdout)
    if wanted.page:
        PAGE.write_text(page(figures, rows, refused(), size, clients))


def say(text: str) -> None:
    """Show that something happens, where JSON is not read."""
    print(text, file=sys.stderr, flush=True)


def as_json(row: Row) -> dict[str, Any]:
    """Give a setting's row as JSON can have it."""
    found = msgspec.to_builtins(row.lattice)
    names = row.lattice.__struct_fields__
    return dict(zip(names, found, strict=True)) | {
        "shipped": row.shipped,
        "bytes": row.bytes,
        "encrypt_ms": row.encrypt_ms,
        "decrypt_ms": row.decrypt_ms,
        "error": row.error,
        "wrong_log2": max(row.wrong, -1000.0),
        "exact": row.exact,
    }


def make_spec(name: str, size: int, clients: int) -> RoundSpec:
    """Specify a round with the default threshold, two thirds."""
    threshold = max(2, -(-2 * clients // 3))
    parameters = backend(name).plan(clients, threshold, CODING, {})
    return RoundSpec(
        b"r" * 16,
        0,
        name,
        tuple(range(clients)),
        threshold,
        ("loss",),
        size,
        b"l" * 32,
        b"m" * 32,
        b"c" * 32,
        parameters,
    )


def make_update(client: int, size: int) -> Update:
    """Make an update that does not clip; nothing beside it is in memory on the way."""
    vector = np.random.default_rng(client).random(size, np.float32)
    vector -= np.float32(0.5)
    vector *= np.float32(0.4)
    return Update(vector, 500.0 + client, {"loss": 1.0})


# One round of ours


class Round:
    """A round of one backend, up to where clients encrypt."""

    def __init__(self, name: str, size: int, clients: int) -> None:
        self.backend, self.spec = backend(name), make_spec(name, size, clients)
        keyring, self.keyrings = self.backend.provision(self.spec.clients, secrets.token_bytes)
        self.server = ServerSession(self.backend, self.spec, self.backend.server_state(self.spec, keyring))
        self.begin = encode(Begin(self.spec, memoryview(b"")))
        started = clock()
        offers = {0: self._session(0, b"").receive(self.begin)}
        self.offer_seconds = clock() - started
        offers |= {c: self._session(c, b"").receive(self.begin) for c in self.spec.clients[1:]}
        self.offer_bytes = len(offers[0])  # client 0 makes a key
        self.chosen = self.server.turn(offers.items())
        self.point = packing_of(self.spec).point
        self.exact = np.zeros(self.point.lanes, np.uint32)

    def _session(self, client: int, summand: bytes) -> ClientSession:
        """Begin a session that does not get to its summand."""
        state = ClientState(client, self.spec, self.keyrings[client], summand)
        return ClientSession(self.backend, state, secrets.token_bytes)

    def encrypt(self, client: int, update: Update) -> tuple[float, bytes]:
        """Take a client from its update to its upload; its summand is noted. Gives the seconds."""
        chosen = self.chosen[client]
        started = clock()
        state = self.backend.client_state(
            self.spec, client, update, self.keyrings[client], secrets.token_bytes
        )
        coded = clock() - started
        assert isinstance(state, ClientState)
        self.exact += np.frombuffer(state.summand, "<u4")
        session = ClientSession(self.backend, state, secrets.token_bytes)
        session.receive(self.begin)
        started = clock()
        upload = session.receive(chosen)
        return coded + clock() - started, upload

    def add(self, client: int, upload: bytes) -> float:
        """Let the server add an upload. Gives the seconds."""
        started = clock()
        taken = self.server.absorb(client, upload)
        seconds = clock() - started
        assert taken, self.server.faults
        return seconds

    def open(self) -> tuple[float, Aggregate]:
        """Open the sum, as a client does. Gives the seconds."""
        if self.server.sealed is None:
            self.server.close()
        assert self.server.sealed is not None
        started = clock()
        mean = self.backend.open(self.spec, self.server.sealed, self.keyrings[1])
        return clock() - started, mean

    def errors(self, mean: Aggregate, exact_mean: np.ndarray) -> dict[str, float]:
        """Compare the mean with the exact sum of whole numbers, and with the exact mean of the updates."""
        spare = np.uint32(32 - self.point.modulus_bits)
        lanes = ((self.exact << spare).view(np.int32) >> spare.astype(np.int32))[-self.spec.size :]
        step = CODING.clip * CODING.max_weight / (((1 << (CODING.bits - 1)) - 1) * mean.weight)
        opened = np.rint(mean.vector.astype(np.float64) / step)  # float32 tells all of them apart
        return {
            "max_error": float(np.abs(opened - lanes).max()),
            "max_error_of_mean": float(np.abs(mean.vector - exact_mean).max()),
            "error_bound_of_mean": mean.error,
        }


# Ours beside NVFlare's


@dataclass
class Times:
    """Seconds of each step, and bytes that a client sends."""

    encrypt: list[float] = field(default_factory=list)
    add: list[float] = field(default_factory=list)
    decrypt: list[float] = field(default_factory=list)
    rescaled: list[float] = field(default_factory=list)
    sent: int = 0

    def milliseconds(self) -> dict[str, float]:
        """Give the medians."""
        steps = {"encrypt": self.encrypt, "add": self.add, "decrypt": self.decrypt, "rescaled": self.rescaled}
        return {f"{name}_ms": 1000 * statistics.median(found) for name, found in steps.items() if found}


def compare(size: int, clients: int) -> dict[str, dict[str, Any]]:
    """Run a round of each backend, with all clients, and NVFlare's steps between."""
    rounds = {name: Round(name, size, clients) for name in OURS}
    times = {name: Times() for name in (*OURS, "nvflare")}
    theirs = Theirs()
    weighted, weight = np.zeros(size), 0.0
    for client in range(clients):
        say(f"client {client + 1} of {clients}")
        update = make_update(client, size)
        weighted += update.weight * update.vector.astype(np.float64)
        weight += update.weight
        for name, each in rounds.items():
            seconds, upload = each.encrypt(client, update)
            times[name].encrypt.append(seconds)
            times[name].add.append(each.add(client, upload))
            times[name].sent = len(upload) + each.offer_bytes
        if client % max(1, clients // REPEATS) == 0:
            theirs.take(update, times["nvflare"])
    say("decryption")
    for _ in range(REPEATS):
        for name, each in rounds.items():
            seconds, _ = each.open()
            times[name].decrypt.append(seconds)
        theirs.decrypt(times["nvflare"])
    found: dict[str, dict[str, Any]] = {}
    for name, each in rounds.items():
        errors = each.errors(each.open()[1], weighted / weight)
        offer = {"offer_ms": 1000 * each.offer_seconds}
        found[name] = ratios(times[name], times["nvflare"], size) | errors | offer
    return found | {"nvflare": theirs.figures(times["nvflare"], size)}


def ratios(ours: Times, theirs: Times, size: int) -> dict[str, Any]:
    """Give the bars' figures of one backend, and the medians behind them."""

    def speedup(step: Callable[[Times], list[float]], beside: Callable[[Times], list[float]]) -> float:
        return statistics.median(beside(theirs)) / statistics.median(step(ours))

    return {
        "upload_over_float32": ours.sent / (4 * size),
        "encrypt_speedup_vs_nvflare": speedup(lambda t: t.encrypt, lambda t: t.encrypt),
        "add_speedup_vs_nvflare": speedup(lambda t: t.add, lambda t: t.add),
        "decrypt_speedup_vs_nvflare": speedup(lambda t: t.decrypt, lambda t: t.decrypt),
        "decrypt_speedup_vs_nvflare_rescaled": speedup(lambda t: t.decrypt, lambda t: t.rescaled),
    } | ours.milliseconds()


class Theirs:
    """NVFlare's clients and server, as many of them as are timed."""

    def __init__(self) -> None:
        self.nvflare, self.total, self.weight = NVFlare(), None, 0.0
        self.weighted: Any = 0.0
        self.error = 0.0

    def take(self, update: Update, times: Times) -> None:
        """Encrypt and add one client's update."""
        started = clock()
        upload = self.nvflare.encrypt(update.vector, update.weight)
        encrypted = clock()
        vector = self.nvflare.read(upload)
        self.total = vector if self.total is None else self.total + vector
        times.add.append(clock() - encrypted)
        times.encrypt.append(encrypted - started)
        times.sent = len(upload)
        self.weighted = self.weighted + update.weight * update.vector.astype(np.float64)
        self.weight += update.weight

    def decrypt(self, times: Times) -> None:
        """Decrypt the sum, and the mean that NVFlare's server makes of it."""
        assert self.total is not None
        whole, mean = self.total.serialize(), self.nvflare.mean(self.total, self.weight)
        started = clock()
        first = self.nvflare.decrypt(whole, self.weight)
        between = clock()
        second = self.nvflare.decrypt(mean)
        times.rescaled.append(clock() - between)
        times.decrypt.append(between - started)
        exact = self.weighted / self.weight
        self.error = max(float(np.abs(found - exact).max()) for found in (first, second))

    def figures(self, times: Times, size: int) -> dict[str, Any]:
        """Give what is shown of NVFlare."""
        return {
            "upload_over_float32": times.sent / (4 * size),
            "context_bytes_not_counted": self.nvflare.context_bytes,
            "max_error_of_mean": self.error,
        } | times.milliseconds()


# Memory of a client


def client_memory(name: str, size: int, clients: int) -> dict[str, float]:
    """Measure a client's memory beyond its update and its upload, in MB, by number of parameters."""
    found = {}
    for count in (size, 3 * size):
        say(f"memory of a client, {name}, {count:,} parameters")
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=be_client, args=(there,))
        process.start()
        there.close()
        for warm_up in (10_000, count):
            here.send_bytes(msgspec.msgpack.encode(_job(name, warm_up, clients)))
        found[str(count)] = msgspec.msgpack.decode(here.recv_bytes()) / 1e6
        process.join()
    return found


Job = tuple[int, RoundSpec | None, Keyring | None, bytes, bytes]


def _job(name: str, size: int, clients: int) -> Job:
    """Put together what a client needs: size, spec, keyring and the server's two frames."""
    if name == "nvflare":
        return size, None, None, b"", b""
    prepared = Round(name, size, clients)
    return size, prepared.spec, prepared.keyrings[clients - 1], prepared.begin, prepared.chosen[clients - 1]


def be_client(connection: Connection) -> None:
    """Be a client, twice, and tell of the second time; in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    theirs = NVFlare()
    for _ in range(2):  # the first time, code and tables are loaded
        size, spec, keyring, begin, chosen = msgspec.msgpack.decode(connection.recv_bytes(), type=Job)
        start = memory("VmRSS")
        if spec is None or keyring is None:
            update = make_update(0, size)
            sent = len(theirs.encrypt(update.vector, update.weight))
        else:
            sent = len(_upload(size, spec, keyring, begin, chosen))
        beyond = memory("VmHWM") - start - 4 * size - sent
    connection.send_bytes(msgspec.msgpack.encode(beyond))


def _upload(size: int, spec: RoundSpec, keyring: Keyring, begin: bytes, chosen: bytes) -> bytes:
    """Take a client from its update to its upload; like a member, it lets its update go once it is coded."""
    serves, update = backend(spec.backend), make_update(0, size)
    state = serves.client_state(spec, keyring.client, update, keyring, secrets.token_bytes)
    del update
    session = ClientSession(serves, state, secrets.token_bytes)
    del state
    session.receive(begin)
    return session.receive(chosen)


def memory(name: str) -> int:
    """Bytes of this process's memory by the kernel's count: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise SystemExit("the kernel does not tell a process's memory: this part needs Linux")


if __name__ == "__main__":
    main()
