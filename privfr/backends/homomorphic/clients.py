"""The key held by the clients: made afresh each round by one of them, sealed to the others.

    offer       a few clients, others every round, each make a key and seal it to the whole roster
    contribute  the server passes one of the offers on; everybody encrypts under that key

The round ends with the encrypted sum and the chosen offer together, so that whoever is in the roster can open
it, also one who dropped out, and nobody else can. The server never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from nacl.public import PrivateKey

from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.lattice import Key
from privfr.backends.homomorphic.mac import Mac
from privfr.backends.homomorphic.messages import Bundle, Chosen, Cipher, Offer
from privfr.backends.homomorphic.sealing import BOX_BYTES, Keyring, open_from, seal_to, sealed_bytes, subkey
from privfr.errors import BadFrame, PolicyRefused, TooFewClients, WrongPhase
from privfr.protocol import ENVELOPE, Begin, ClientId, Entropy, OnDemand, RoundSpec, Sealed
from privfr.vector import Aggregate, Update
from privfr.wire import Message, decode, encode

PURPOSE = b"privfr round key"
MODEL_PURPOSE = b"privfr the model"


def makers(spec: RoundSpec) -> tuple[ClientId, ...]:
    """Who makes a key in this round, the preferred one first: another every round.

    So many that one of them is left for as long as `threshold` clients are.
    """
    roster, count = spec.clients, len(spec.clients)
    turn = spec.round % count
    return (roster[turn:] + roster[:turn])[: count - spec.threshold + 1]


def provision(clients: tuple[ClientId, ...], entropy: Entropy) -> tuple[None, dict[ClientId, Keyring]]:
    """Give each client a key of its own and everybody's public keys."""
    secrets = {client: entropy(PrivateKey.SIZE) for client in clients}
    roster = {client: bytes(PrivateKey(secret).public_key) for client, secret in secrets.items()}
    return None, {client: Keyring(client, secret, roster) for client, secret in secrets.items()}


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
    if set(spec.clients) != set(keyring.roster):
        raise PolicyRefused("a roster that is not the one pinned here")
    rounds.check(spec)


def client_state(
    spec: RoundSpec, client: ClientId, update: Update, keyring: Keyring, entropy: Entropy
) -> ClientState:
    """Begin a client's round with its coded update."""
    return ClientState(client, spec, keyring, rounds.coded(spec, update, entropy))


def offer(state: ClientState, begin: Begin, entropy: Entropy) -> tuple[ClientState, Offer]:
    """Make a key, if it is this client's turn, and seal it to the roster (spec 4.1)."""
    spec = state.spec
    if begin.spec != spec:
        raise WrongPhase("the opening of another round")
    check(spec, state.keyring)
    context = spec.context()
    if state.client not in makers(spec):
        return state, Offer(context, (), memoryview(b""))
    key = Key.generate(rounds.packing_of(spec).lattice).export()
    boxes, bulk = seal_to(state.keyring, spec.clients, PURPOSE, context, key, entropy)
    return state, Offer(context, boxes, memoryview(bulk))


def contribute(state: ClientState, chosen: Chosen, entropy: Entropy) -> tuple[ClientState, Cipher]:
    """Encrypt the summand under the round's key (spec 4.2)."""
    spec = state.spec
    key, mac = _take_up(spec, state.keyring, chosen.maker, chosen.box, chosen.bulk)
    lanes = np.frombuffer(state.summand, "<u4")
    tag, bulk = rounds.encrypted(rounds.packing_of(spec), key, mac, state.client, lanes)
    return msgspec.structs.replace(state, summand=memoryview(b"")), Cipher(spec.context(), tag, bulk)


def open_sum(spec: RoundSpec, sealed: Sealed, keyring: Keyring | None) -> Aggregate:
    """Open a round's sum, as any client of the roster can and the server cannot (spec 4.3)."""
    if keyring is None:
        raise BadFrame("a sum that only the clients can open")
    bundle = decode(sealed.bulk, Bundle)
    if len(bundle.boxes) != len(spec.clients):
        raise BadFrame("not a box for each client of the roster")
    box = bundle.boxes[spec.clients.index(keyring.client)]
    key, mac = _take_up(spec, keyring, bundle.maker, box, bundle.key)
    packing = rounds.packing_of(spec)
    lanes = rounds.opened(packing, key, mac, sealed.survivors, bundle.tag, bundle.bulk)
    return packing.point.decode(lanes, len(sealed.survivors))


def seal_model(
    keyring: Keyring, clients: tuple[ClientId, ...], context: bytes, model: bytes, entropy: Entropy
) -> tuple[tuple[bytes, ...], bytes]:
    """Seal the model to clients that lack it (spec 4.4)."""
    return seal_to(keyring, clients, MODEL_PURPOSE, context, model, entropy)


def open_model(keyring: Keyring, sender: ClientId, context: bytes, box: bytes, bulk: memoryview) -> bytes:
    """Open a model that a fellow client has sealed to this one."""
    return open_from(keyring, sender, MODEL_PURPOSE, context, box, bulk)[1]


def _take_up(
    spec: RoundSpec, keyring: Keyring, maker: ClientId, box: bytes, bulk: bytes | memoryview
) -> tuple[Key, Mac]:
    """Open an offer: the keys of encryption and of tags."""
    if maker not in makers(spec):
        raise BadFrame("a key made by a client that is to make none in this round")
    lattice, context = rounds.packing_of(spec).lattice, spec.context()
    secret, exported = open_from(keyring, maker, PURPOSE, context, box, bulk)
    pads = dict.fromkeys(spec.clients, subkey(secret, b"pads"))
    return Key.load(lattice, exported), Mac(lattice, context, subkey(secret, b"mac"), pads)


# The server


@dataclass(repr=False)
class ServerState:
    """The offers, and the running sum of the ciphertexts."""

    total: rounds.Total
    ready: list[ClientId] = field(default_factory=list)
    offers: dict[ClientId, Offer] = field(default_factory=dict)
    maker: ClientId = -1


def server_state(spec: RoundSpec, keyring: None = None) -> ServerState:
    """Begin a round with an empty sum."""
    return ServerState(rounds.Total(spec))


def absorb_offer(state: ServerState, client: ClientId, answer: Offer) -> ServerState:
    """Keep an offer, as a copy: the frame need not stay."""
    spec, packing = state.total.spec, state.total.packing
    if answer.context != state.total.context:
        raise WrongPhase("an offer for another round or run")
    making = client in makers(spec)
    boxes = [BOX_BYTES] * len(spec.clients) if making else []
    length = sealed_bytes(packing.lattice.key_bytes) if making else 0
    if [len(box) for box in answer.boxes] != boxes or len(answer.bulk) != length:
        raise BadFrame("an offer of another form than this client's must have")
    state.ready.append(client)
    if making:
        state.offers[client] = msgspec.structs.replace(answer, bulk=memoryview(bytes(answer.bulk)))
    return state


def close_offers(state: ServerState) -> tuple[ServerState, Mapping[ClientId, Message]]:
    """Pass the first offer on."""
    spec = state.total.spec
    found = [client for client in makers(spec) if client in state.offers]
    if not found:
        raise TooFewClients(f"round {spec.round}, phase offer: every maker of a key is lost")
    state.maker = found[0]
    chosen = state.offers[state.maker]
    state.offers = {state.maker: chosen}

    def message(client: ClientId) -> Chosen:
        return Chosen(state.maker, chosen.boxes[spec.clients.index(client)], chosen.bulk)

    return state, OnDemand(sorted(state.ready), message)


def close(state: ServerState) -> tuple[ServerState, Sealed]:
    """End the round with the encrypted sum, and the offer by which clients open it."""
    chosen, total = state.offers[state.maker], state.total
    bundle = Bundle(state.maker, chosen.boxes, bytes(chosen.bulk), total.tag, total.packed())
    return state, Sealed(tuple(sorted(total.survivors)), memoryview(encode(bundle)))


def limit_offer(spec: RoundSpec) -> int:
    """Most bytes of an offer."""
    boxes = len(spec.clients) * (BOX_BYTES + 5)
    return boxes + sealed_bytes(rounds.packing_of(spec).lattice.key_bytes) + ENVELOPE
