"""The key held by an authority: a party that opens sums, and sums only.

    ready       clients have trained; the server asks the authority for the round's public key
    contribute  everybody encrypts under it
    consent     the clients whose ciphertexts are in the sum sign who they are; the authority opens it

The server learns the sum, as with masking. The authority learns it too, and nothing else unless the server
and a client together pass something else on as the sum; see `mac`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from nacl.public import Box, PrivateKey
from nacl.public import PublicKey as BoxKey
from nacl.signing import SigningKey

from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.lattice import Key
from privfr.backends.homomorphic.mac import Mac
from privfr.backends.homomorphic.messages import (
    Cipher,
    Consent,
    OpenSum,
    PublicKey,
    Ready,
    Survivors,
    key_bytes,
    mac_context,
    survivor_bytes,
)
from privfr.backends.identity import ascending, sign, verify
from privfr.backends.party import Relay, answer, ask
from privfr.coding import pack, unpack
from privfr.errors import BadFrame, PolicyRefused, WrongPhase
from privfr.protocol import ENVELOPE, Begin, ClientId, Entropy, RoundSpec, Sealed
from privfr.vector import Aggregate, Update
from privfr.wire import Frame, Message, decode

__all__ = ["Authority"]


class Keyring(msgspec.Struct, frozen=True):
    """What a client is given before the run.

    identity: its own Ed25519 seed; shared: what its X25519 key and the authority's agree on; group: what all
    clients and the authority share; 32 bytes each, secret.  authority: the authority's Ed25519 key.  roster:
    the clients it is summed with. All pinned.
    """

    identity: bytes
    shared: bytes
    group: bytes
    authority: bytes
    roster: tuple[ClientId, ...]

    def __repr__(self) -> str:
        """Show no secret."""
        return f"<Keyring for a roster of {len(self.roster)}>"


class Enrolled(msgspec.Struct, frozen=True):
    """What the authority knows of a client. identity: its Ed25519 public key.  shared: secret, 32 bytes."""

    identity: bytes
    shared: bytes

    def __repr__(self) -> str:
        """Show no secret."""
        return "<Enrolled>"


class Authority:
    """Who holds the keys. `receive` answers one frame of the server's with one of its own.

    It makes a key for each round, opens one sum with it, and forgets it. It serves one run, the first that is
    begun.  identity: its Ed25519 seed.  group: shared with all clients, 32 bytes.  floor: fewest clients
    whose sum it opens.
    """

    def __init__(
        self, identity: bytes, group: bytes, clients: Mapping[ClientId, Enrolled], floor: int = 2
    ) -> None:
        self._identity, self._group, self._clients, self._floor = identity, group, dict(clients), floor
        self._round: tuple[RoundSpec, Key, bytes] | None = None
        self._run, self._last = b"", -1

    def receive(self, frame: Frame) -> bytes:
        """Answer the server; with `Refused`, and nothing opened, where a message is unacceptable."""
        handlers = {"begin": self._begin, "homomorphic.opensum": self._open}
        return answer(handlers, frame)

    def _begin(self, frame: Frame) -> Message:
        spec = decode(frame, Begin).spec
        spec.check()
        rounds.check(spec)
        if rounds.packing_of(spec).lattice.symmetric:
            raise PolicyRefused("a round whose key the clients hold")
        if set(spec.clients) != set(self._clients):
            raise PolicyRefused("a roster that is not the one pinned here")
        if spec.threshold < self._floor:
            raise PolicyRefused(f"a threshold of {spec.threshold} is below the authority's {self._floor}")
        if self._run not in (b"", spec.run) or spec.round <= self._last:
            # The difference of two sums of one round is somebody's update.
            raise WrongPhase("a round that was begun before, or one of another run")
        key = Key.generate(rounds.packing_of(spec).lattice)
        public = key.export()
        bound = mac_context(spec.context(), public)
        self._round, self._run, self._last = (spec, key, bound), spec.run, spec.round
        return PublicKey(sign(self._identity, key_bytes(spec.context(), public)), memoryview(public))

    def _open(self, frame: Frame) -> Message:
        asked = decode(frame, OpenSum)
        if self._round is None:
            raise WrongPhase("no round is open")
        spec, key, bound = self._round
        self._check_consents(spec, asked)
        self._round = None  # one answer for a key, whatever it is: a second would compare two ciphertexts
        packing = rounds.packing_of(spec)
        pads = {client: known.shared for client, known in self._clients.items()}
        mac = Mac(packing.lattice, bound, self._group, pads)
        lanes = rounds.opened(packing, key, mac, asked.survivors, asked.tag, asked.bulk)
        packing.point.decode(lanes, len(asked.survivors))  # refuses what is no sum of encoded updates
        return Sealed(asked.survivors, pack(lanes, packing.point.modulus_bits))

    def _check_consents(self, spec: RoundSpec, asked: OpenSum) -> None:
        """See that enough of the survivors have signed that it is they."""
        signers = [client for client, _ in asked.consents]
        if not ascending(asked.survivors, set(spec.clients)) or not ascending(signers, set(asked.survivors)):
            raise BadFrame("survivors or signers out of order, there twice, or not of the roster")
        if len(signers) < spec.threshold:
            raise PolicyRefused(f"{len(signers)} of the survivors have signed, and {spec.threshold} must")
        signed = survivor_bytes(spec.context(), asked.survivors)
        for client, signature in asked.consents:
            verify(self._clients[client].identity, signed, signature)

    def __repr__(self) -> str:
        """Say nothing of keys."""
        return "<Authority>"


@dataclass(frozen=True)
class Line:
    """The server's line to the authority, and by which keys it knows its clients."""

    relay: Relay
    roster: Mapping[ClientId, bytes]

    def __repr__(self) -> str:
        """Say how many."""
        return f"<Line to an authority, {len(self.roster)} clients>"


def provision(clients: tuple[ClientId, ...], entropy: Entropy) -> tuple[Line, dict[ClientId, Keyring]]:
    """Set up an authority, and enrol each client with it."""
    identity, group, secret = entropy(32), entropy(32), PrivateKey(entropy(PrivateKey.SIZE))
    seeds = {client: entropy(32) for client in clients}
    own = {client: PrivateKey(entropy(PrivateKey.SIZE)) for client in clients}
    roster = {client: bytes(SigningKey(seed).verify_key) for client, seed in seeds.items()}
    enrolled = {
        client: Enrolled(roster[client], agree(secret, bytes(own[client].public_key))) for client in clients
    }
    public = bytes(SigningKey(identity).verify_key)
    keyrings = {
        client: Keyring(seeds[client], agree(own[client], bytes(secret.public_key)), group, public, clients)
        for client in clients
    }
    return Line(Authority(identity, group, enrolled).receive, roster), keyrings


def agree(own: PrivateKey, other: bytes) -> bytes:
    """X25519, hashed (libsodium's crypto_box_beforenm): 32 secret bytes that both sides get."""
    return Box(own, BoxKey(other)).shared_key()


# The client


class ClientState(msgspec.Struct, frozen=True):
    """What a client holds between two messages. summand: lanes, uint32 bytes; emptied once it is sent."""

    client: ClientId
    spec: RoundSpec
    keyring: Keyring
    summand: memoryview

    def __repr__(self) -> str:
        """Name the client only."""
        return f"<ClientState of client {self.client}>"


def check(spec: RoundSpec, keyring: Keyring) -> None:
    """Raise `PolicyRefused` for a roster other than the pinned one, `BadFrame` for what cannot be."""
    if spec.clients != keyring.roster:
        raise PolicyRefused("a roster that is not the one pinned here")
    rounds.check(spec)


def client_state(
    spec: RoundSpec, client: ClientId, update: Update, keyring: Keyring, entropy: Entropy
) -> ClientState:
    """Begin a client's round with its coded update."""
    return ClientState(client, spec, keyring, rounds.coded(spec, update, entropy))


def ready(state: ClientState, begin: Begin, entropy: Entropy) -> tuple[ClientState, Ready]:
    """Say that the training is done (spec 5.1)."""
    if begin.spec != state.spec:
        raise WrongPhase("the opening of another round")
    check(state.spec, state.keyring)
    return state, Ready(state.spec.context())


def contribute(state: ClientState, key: PublicKey, entropy: Entropy) -> tuple[ClientState, Cipher]:
    """Encrypt the summand under the authority's key (spec 5.2)."""
    spec = state.spec
    context, packing = spec.context(), rounds.packing_of(spec)
    verify(state.keyring.authority, key_bytes(context, key.bulk), key.signature)
    lattice, keyring = packing.lattice, state.keyring
    mac = Mac(lattice, mac_context(context, key.bulk), keyring.group, {state.client: keyring.shared})
    lanes = np.frombuffer(state.summand, "<u4")
    tag, bulk = rounds.encrypted(packing, Key.load(lattice, key.bulk), mac, state.client, lanes)
    return msgspec.structs.replace(state, summand=memoryview(b"")), Cipher(context, tag, bulk)


def consent(state: ClientState, survivors: Survivors, entropy: Entropy) -> tuple[ClientState, Consent]:
    """Sign the survivors, if this client is one and they are enough (spec 5.3)."""
    spec, named = state.spec, survivors.clients
    if not ascending(named, set(spec.clients)):
        raise BadFrame("survivors that are not of the roster, out of order or there twice")
    if state.client not in named:
        raise BadFrame("survivors without this client")
    if len(named) < spec.threshold:
        raise PolicyRefused(f"{len(named)} survivors, fewer than the threshold of {spec.threshold}")
    return state, Consent(sign(state.keyring.identity, survivor_bytes(spec.context(), named)))


# The server


@dataclass(repr=False)
class ServerState:
    """The round's public key, the running sum of the ciphertexts, and who has consented."""

    total: rounds.Total
    line: Line
    key: PublicKey
    ready: list[ClientId] = field(default_factory=list)
    survivors: tuple[ClientId, ...] = ()
    consents: dict[ClientId, bytes] = field(default_factory=dict)


def server_state(spec: RoundSpec, line: Line) -> ServerState:
    """Begin a round with the authority's key and an empty sum."""
    return ServerState(rounds.Total(spec), line, ask(line.relay, Begin(spec, memoryview(b"")), PublicKey))


def absorb_ready(state: ServerState, client: ClientId, answer: Ready) -> ServerState:
    """Note that a client has trained."""
    if answer.context != state.total.context:
        raise WrongPhase("ready for another round or run")
    state.ready.append(client)
    return state


def close_ready(state: ServerState) -> tuple[ServerState, Mapping[ClientId, PublicKey]]:
    """Pass the public key on."""
    return state, dict.fromkeys(sorted(state.ready), state.key)


def close_ciphers(state: ServerState) -> tuple[ServerState, Mapping[ClientId, Survivors]]:
    """Name the survivors to the survivors."""
    state.survivors = tuple(sorted(state.total.survivors))
    return state, dict.fromkeys(state.survivors, Survivors(state.survivors))


def absorb_consent(state: ServerState, client: ClientId, answer: Consent) -> ServerState:
    """Keep a signature that the authority will accept."""
    verify(state.line.roster[client], survivor_bytes(state.total.context, state.survivors), answer.signature)
    state.consents[client] = answer.signature
    return state


def close(state: ServerState) -> tuple[ServerState, Sealed]:
    """Have the authority open the sum."""
    consents, total = tuple(sorted(state.consents.items())), state.total
    question = OpenSum(state.survivors, consents, total.tag, total.packed())
    sealed = ask(state.line.relay, question, Sealed)
    if sealed.survivors != state.survivors:
        raise BadFrame("the authority's sum is over other clients than it was asked for")
    return state, sealed


def open_sum(spec: RoundSpec, sealed: Sealed, keyring: object) -> Aggregate:
    """Read the opened sum as the weighted mean."""
    point = rounds.packing_of(spec).point
    return point.decode(unpack(sealed.bulk, point.modulus_bits, point.lanes), len(sealed.survivors))


def limit_short(spec: RoundSpec) -> int:
    """Most bytes of an answer without ciphertext."""
    return ENVELOPE
