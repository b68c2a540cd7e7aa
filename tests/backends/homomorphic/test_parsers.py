"""No byte of a peer's reaches TenSEAL's parsers, which are C++ and can be crashed with one changed byte.

What these do with changed bytes, seen with TenSEAL 0.3.18 in processes of their own: 2500 changed contexts of
each scheme crashed nothing; five in six raised ValueError or RuntimeError, one in six was taken. But the
2255th changed vector of each scheme ended its process by a segmentation fault: where the field with the
vector's sizes is gone, the vector is taken all the same, and its decryption reads from nowhere (`CRASHES`).
So no `try` around them protects anybody. What does is that only this machine's own files get there, in which
nothing but coefficients was replaced, each checked to be below its prime; `Recorder` looks at every one. The
server calls no C++ at all.
"""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal as ts
import tenseal.sealapi as seal
from insecure import InsecureEntropy, round_in_hand
from numpy.typing import NDArray

from privfr.backends.homomorphic import lattice as lattices
from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.clients import PURPOSE, makers
from privfr.backends.homomorphic.lattice import Key, Lattice, _key_moduli, _mould, pack_words
from privfr.backends.homomorphic.mac import CHECKS, Mac
from privfr.backends.homomorphic.messages import Bundle, Chosen, OpenSum, PublicKey, key_bytes, survivor_bytes
from privfr.backends.homomorphic.sealing import seal_to
from privfr.backends.identity import sign
from privfr.errors import BadFrame, RemoteProtocolError
from privfr.protocol import Sealed
from privfr.wire import decode, encode, kind

EMPTY = memoryview(b"")
NAMES = ["bfv", "ckks", "bfv-authority", "ckks-authority"]
every = pytest.mark.parametrize("name", NAMES)
ROOT = Path(__file__).resolve().parents[3]


# What reaches TenSEAL ---------------------------------------------------------------------------------------

LOADERS = ("context_from", "bfv_vector_from", "ckks_vector_from")


class Recorder:
    """Everything that is handed to a parser of TenSEAL's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, bytes]] = []
        for name in LOADERS:
            monkeypatch.setattr(ts, name, self.recording(name, getattr(ts, name)))

    def recording(self, name: str, true: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any, **options: Any) -> Any:
            self.seen.append((name, next(each for each in arguments if isinstance(each, bytes))))
            return true(*arguments, **options)

        return record

    def check(self, lattice: Lattice) -> int:
        """How many; each is one of this machine's own files, with other coefficients below their primes."""
        for name, data in self.seen:
            is_key = name == "context_from"
            moduli = _key_moduli(lattice) if is_key else np.full(lattice.words, lattice.prime, np.uint64)
            start, own = own_file(lattice, is_key, moduli.size)
            end = start + 8 * moduli.size
            assert data[:start] == own[:start]
            assert data[end:] == own[end:]
            assert len(data) == len(own)
            assert (np.frombuffer(data[start:end], "<u8") < moduli).all()
        return len(self.seen)


def own_file(lattice: Lattice, is_key: bool, count: int) -> tuple[int, bytes]:
    """A file as this machine writes it, and where its coefficients begin."""
    marked = np.arange(1, count + 1, dtype="<u8")
    mould = _mould(lattice)
    data = mould.key_with(marked) if is_key else mould.vector_with(marked)
    return data.index(marked.tobytes()), data


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def hostile(true: bytes, moduli: NDArray[np.uint64], bits: int, alien: bytes) -> Iterator[bytes]:
    """Bytes in place of a key or a ciphertext. alien: a file of TenSEAL's own."""
    rng = np.random.default_rng(len(true))
    yield from (b"", b"\0", true[:-1], true + b"\0", true[1:], bytes(len(true)), b"\xff" * len(true))
    yield from (alien, (alien * (1 + len(true) // len(alien)))[: len(true)], true[::-1], rng.bytes(len(true)))
    yield from (pack_words(words, bits) for words in (moduli - np.uint64(1), np.zeros_like(moduli), moduli))
    for _ in range(4):
        yield pack_words(rng.integers(0, 1 << 62, moduli.size, np.uint64) % moduli, bits)
    for at in rng.integers(0, len(true), 10):
        yield true[:at] + bytes([true[at] ^ (1 << int(rng.integers(0, 8)))]) + true[at + 1 :]


def aliens(lattice: Lattice) -> dict[str, bytes]:
    """TenSEAL's files, of which one changed byte crashes whoever takes them."""
    fresh = lattices._new_context(lattice)
    return {
        "key": fresh.serialize(),
        "cipher": lattices._encrypt(fresh, lattice, np.ones(lattice.slots, np.int64)),
    }


@every
def test_only_own_files_with_coefficients_below_their_primes_reach_tenseal(
    name: str, recorder: Recorder
) -> None:
    """Of keys and ciphertexts of any kind, from whomever: by the decoders that all of them pass through."""
    round_ = round_in_hand(name)
    packing = rounds.packing_of(round_.spec)
    lattice, alien = packing.lattice, aliens(packing.lattice)
    key = Key.generate(lattice)
    moduli, bits = _key_moduli(lattice), max(lattice.primes)
    taken = 0
    for data in hostile(key.export(), moduli, bits, alien["key"]):
        with suppress(BadFrame):
            Key.load(lattice, data)
            taken += 1
    assert recorder.check(lattice) == taken >= 6
    true = pack_words(key.encrypt(np.ones(lattice.slots, np.int64)), lattice.primes[0])
    moduli = np.full(lattice.words, lattice.prime, np.uint64)
    for data in hostile(true, moduli, lattice.primes[0], alien["cipher"]):
        with suppress(BadFrame):
            for words in rounds.ciphertexts_of(packing, data):
                key.decrypt(words)
    assert recorder.check(lattice) >= taken + 6


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_what_makers_and_servers_send_to_clients_is_checked_first(
    name: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: a malicious maker's properly sealed key, and a malicious server's sum."""
    round_ = round_in_hand(name)
    spec, packing = round_.spec, rounds.packing_of(round_.spec)
    sealed, lattice = round_.play().sealed, packing.lattice
    assert sealed is not None
    bundle, maker, alien = decode(sealed.bulk, Bundle), makers(spec)[0], aliens(lattice)
    moduli, bits = _key_moduli(lattice), max(lattice.primes)
    before = len(recorder.seen)
    for data in hostile(Key.generate(lattice).export(), moduli, bits, alien["key"]):
        boxes, bulk = seal_to(
            round_.client_keys[maker], spec.clients, PURPOSE, spec.context(), data, InsecureEntropy(1)
        )
        session = round_.session(2)
        session.receive(round_.opening()[2])
        with suppress(RemoteProtocolError):
            session.receive(encode(Chosen(maker, boxes[spec.clients.index(2)], memoryview(bulk))))
    reached = recorder.check(lattice)
    assert reached >= before + 6
    moduli = np.full(lattice.words, lattice.prime, np.uint64)
    sums = list(hostile(bytes(bundle.bulk), moduli, lattice.primes[0], alien["cipher"]))

    def open_all() -> int:
        at = len(recorder.seen)
        for data in sums:
            lie = Bundle(bundle.maker, bundle.boxes, bundle.key, bundle.tag, memoryview(data))
            with suppress(RemoteProtocolError):
                ended = Sealed(sealed.survivors, memoryview(encode(lie)))
                round_.backend.open(spec, ended, round_.client_keys[1])
        recorder.check(lattice)
        return sum(loader != "context_from" for loader, _ in recorder.seen[at:])

    assert open_all() == 0, "what has no fitting tag is not decrypted at all"
    with monkeypatch.context() as without:
        without.setattr(Mac, "check", lambda self, clients, tag, ciphertexts: None)
        assert open_all() >= 6, "and if it were: see the recorder's check"


@pytest.mark.parametrize("name", ["bfv-authority", "ckks-authority"])
def test_what_is_sent_to_the_authority_and_by_it_is_checked_first(
    name: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = round_in_hand(name)
    spec, packing = round_.spec, rounds.packing_of(round_.spec)
    lattice, line = packing.lattice, round_.server_key
    authority, alien = line.relay.__self__, aliens(lattice)
    moduli, bits = _key_moduli(lattice), max(lattice.primes)
    true = bytes(round_.server.state.key.bulk)
    for data in hostile(true, moduli, bits, alien["key"]):
        session = round_.session(2)
        session.receive(round_.opening()[2])
        signature = sign(authority._identity, key_bytes(spec.context(), data))
        with suppress(RemoteProtocolError):
            session.receive(encode(PublicKey(signature, memoryview(data))))
    assert recorder.check(lattice) >= 6
    cipher = pack_words(Key.generate(lattice).encrypt(np.ones(lattice.slots, np.int64)), lattice.primes[0])
    moduli = np.full(lattice.words, lattice.prime, np.uint64)
    kept, signed = authority._round, survivor_bytes(spec.context(), (1, 2))
    consents = tuple((c, sign(round_.client_keys[c].identity, signed)) for c in (1, 2))
    lies = list(hostile(cipher, moduli, lattice.primes[0], alien["cipher"]))

    def ask_all() -> int:
        at = len(recorder.seen)
        for data in lies:
            authority._round = kept
            lie = OpenSum((1, 2), consents, (0,) * CHECKS, memoryview(data))
            assert kind(line.relay(encode(lie))) == "refused"
        recorder.check(lattice)
        return len(recorder.seen) - at

    assert ask_all() == 0, "what has no fitting tag is not decrypted at all"
    with monkeypatch.context() as without:
        without.setattr(Mac, "check", lambda self, clients, tag, ciphertexts: None)
        assert ask_all() >= 6, "and if it were: see the recorder's check"


def test_a_file_with_one_foreign_byte_is_noticed(recorder: Recorder) -> None:
    """The control: the recorder can find something wrong."""
    lattice = rounds.packing_of(round_in_hand("bfv").spec).lattice
    zeros = np.zeros(_key_moduli(lattice).size, np.uint64)
    data = bytearray(_mould(lattice).key_with(zeros))
    ts.context_from(bytes(data), n_threads=1)
    assert recorder.check(lattice) == 1
    beyond = _mould(lattice).key_with(_key_moduli(lattice))
    for wrong in (bytes(data[:-1]), bytes([data[0] ^ 1]) + bytes(data[1:]), beyond):
        recorder.seen = [("context_from", wrong)]
        with pytest.raises(AssertionError):
            recorder.check(lattice)


# What of TenSEAL's is used in the package at all; of these only `LOADERS` parse anything.
USED = {
    *LOADERS, "Context", "ENCRYPTION_TYPE", "SCHEME_TYPE", "bfv_vector", "ckks_vector", "context",
}  # fmt: skip


def test_no_other_part_of_tenseal_is_used() -> None:
    used: dict[str, set[str]] = {"ts": set(), "seal": set()}
    for path in (ROOT / "privfr").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "import tenseal" not in text:
            continue
        assert path.name == "lattice.py"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
                used[node.value.id].add(node.attr)
    assert used == {"ts": USED, "seal": {"CoeffModulus"}}


class Nothing:
    """In the place of a library that must not be called."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the server calls {name}")


def outside(relay: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The authority, which is another party and has its libraries."""

    def asked(frame: bytes) -> bytes:
        with pytest.MonkeyPatch.context() as there:
            there.setattr(lattices, "ts", ts)
            there.setattr(lattices, "seal", seal)
            return relay(frame)

    return asked


@every
def test_the_server_calls_no_cplusplus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing that any client sends can take it down that way."""
    round_ = round_in_hand(name)
    if name.endswith("authority"):
        line = round_.server.state.line
        object.__setattr__(line, "relay", outside(line.relay))
    outbox: Mapping[int, bytes] = round_.opening()
    for _ in round_.backend.server_steps:
        answers = {c: round_.clients[c].receive(frame) for c, frame in outbox.items()}
        with monkeypatch.context() as without:
            without.setattr(lattices, "ts", Nothing())
            without.setattr(lattices, "seal", Nothing())
            for frame in (answers[1][:-1], answers[1] + b"\0", b""):
                assert not round_.server.absorb(99, frame)
            assert not round_.server.absorb(4, answers[4][:-1]) if 4 in answers else True
            outbox = dict(round_.server.turn([(c, f) for c, f in answers.items() if c != 4]))
    assert round_.server.sealed is not None
    with monkeypatch.context() as without, pytest.raises(AssertionError, match="the server calls"):
        without.setattr(lattices, "ts", Nothing())
        Key.generate(rounds.packing_of(round_.spec).lattice)


# What TenSEAL's parsers do ----------------------------------------------------------------------------------

DIRECT = """
import json, sys
import numpy as np, tenseal as ts
what, scheme, changes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
bfv = scheme == "bfv"
context = ts.context(
    ts.SCHEME_TYPE.BFV if bfv else ts.SCHEME_TYPE.CKKS, 4096, plain_modulus=40961 if bfv else None,
    coeff_mod_bit_sizes=[45, 36], encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC, n_threads=1,
)
vector = ts.bfv_vector(context, [1] * 64) if bfv else ts.ckks_vector(context, [1.0] * 64, scale=2.0**20)
true = context.serialize(True, True, False, False) if what == "context" else vector.serialize()
load = ts.bfv_vector_from if bfv else ts.ckks_vector_from
rng, found = np.random.default_rng(0), {}
def changed():
    data, how = bytearray(true), rng.integers(0, 4)
    at = int(rng.integers(0, 300 if rng.integers(0, 3) else len(data)))
    if how == 0:
        data[at] ^= int(rng.integers(1, 256))
    elif how == 1:
        del data[at:]
    elif how == 2:
        data[at:at] = rng.bytes(int(rng.integers(1, 9)))
    else:
        data[at : at + 8] = rng.bytes(8)
    return bytes(data)
def one(data):
    try:
        if what == "context":
            ts.context_from(data, n_threads=1).is_private()
        else:
            load(context, data).decrypt()
        return "taken"
    except Exception as error:
        return type(error).__name__
if isinstance(changes, list):
    at, value = changes
    inputs = [true[:at] + bytes([value]) + true[at + 1 :]]
else:
    inputs = (changed() for _ in range(changes))
for data in inputs:
    what_happened = one(data)
    found[what_happened] = found.get(what_happened, 0) + 1
print(json.dumps(found))
"""


def direct(what: str, scheme: str, changes: int | list[int]) -> subprocess.CompletedProcess[str]:
    """Hand changed bytes to TenSEAL, in a process of its own."""
    command = [sys.executable, "-c", DIRECT, what, scheme, json.dumps(changes)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
@pytest.mark.parametrize("what", ["context", "vector"])
def test_tenseals_parsers_raise_at_changed_bytes_or_take_them_or_crash(what: str, scheme: str) -> None:
    """What may come to pass there: that is why nothing of a peer's may get there."""
    done = direct(what, scheme, 150)
    assert done.returncode == 0 or done.returncode < 0, done.stderr[-2000:]
    if done.returncode == 0:
        found = json.loads(done.stdout)
        assert found.keys() <= {"taken", "ValueError", "RuntimeError", "IndexError", "MemoryError"}
        assert found.get("ValueError", 0) + found.get("RuntimeError", 0) > 50
        assert sum(found.values()) == 150


# The first byte of a vector's file says that its sizes follow (field 1, 0x0a); as field 3 they are skipped.
CRASHES = [0, 0x1A]


@pytest.mark.skipif(ts.__version__ != "0.3.18", reason="seen with TenSEAL 0.3.18")
@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_one_changed_byte_crashes_tenseal(scheme: str) -> None:
    assert direct("vector", scheme, [0, 0x0A]).returncode == 0, "the file as it is"
    assert direct("vector", scheme, CRASHES).returncode == -signal.SIGSEGV


@every
def test_the_file_that_crashes_tenseal_is_refused_for_its_length(name: str) -> None:
    round_ = round_in_hand(name)
    packing = rounds.packing_of(round_.spec)
    crashing = bytearray(aliens(packing.lattice)["cipher"])
    crashing[0] = CRASHES[1]
    with pytest.raises(BadFrame, match="bytes where"):
        next(rounds.ciphertexts_of(packing, bytes(crashing)))
    with pytest.raises(BadFrame, match="bytes where"):
        Key.load(packing.lattice, bytes(crashing))
