"""The server's side of a masking round. Section numbers are those of docs/spec/masking.md."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from nacl.public import PrivateKey
from numpy.typing import NDArray

from privfr.backends.masking import masks, shamir
from privfr.backends.masking.client import Parameters, point_of
from privfr.backends.masking.messages import (
    BOX_BYTES,
    DIGEST_BYTES,
    Advert,
    Advertise,
    Consent,
    Consents,
    Entrusted,
    KeyBook,
    Masked,
    Reveal,
    ShareBook,
    Shares,
    Survivors,
    advert_bytes,
    share_digest,
    survivor_bytes,
    verify,
)
from privfr.coding import pack, unpack
from privfr.errors import BadFrame, LocalProtocolError, TooFewClients, WrongPhase
from privfr.protocol import ENVELOPE, ClientId, RoundSpec, Sealed
from privfr.wire import Message

__all__ = ["ServerState", "server_state"]

# owner -> holder -> digest of the share entrusted
Digests = dict[ClientId, dict[ClientId, bytes]]


@dataclass(repr=False)
class ServerState:
    """What the server knows: keys, who holds whose shares, the running sum, and what is revealed.

    neighbours: client -> those it drew.  key_digests, seed_digests: of the shares entrusted.  boxes: holder
    -> owner -> box, until they are passed on.  total: uint32 [lanes].  keys, seeds: owner -> holder ->
    revealed share.
    """

    spec: RoundSpec
    roster: Mapping[ClientId, bytes]
    context: bytes
    total: NDArray[np.uint32]
    spare: NDArray[np.uint32]
    adverts: dict[ClientId, Advert] = field(default_factory=dict)
    neighbours: dict[ClientId, tuple[ClientId, ...]] = field(default_factory=dict)
    key_digests: Digests = field(default_factory=dict)
    seed_digests: Digests = field(default_factory=dict)
    boxes: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    survivors: list[ClientId] = field(default_factory=list)
    consents: dict[ClientId, bytes] = field(default_factory=dict)
    seeds: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    keys: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = Parameters.of(self.spec)
        self.graph, self.committee = parameters.graph, parameters.committee
        self.members = self.committee.members(self.spec.clients, self.context)
        self.point = point_of(self.spec)


def server_state(spec: RoundSpec, roster: Mapping[ClientId, bytes]) -> ServerState:
    """Begin a round with an empty sum. roster: each client's Ed25519 public key."""
    if set(spec.clients) != set(roster):
        raise LocalProtocolError("a round over another roster than was provisioned")
    lanes = point_of(spec).lanes
    return ServerState(spec, roster, spec.context(), np.zeros(lanes, np.uint32), np.empty(lanes, np.uint32))


_PROBE = bytes(range(32))  # any private key tells a public key of small order

# Advertise (spec 4.1)


def absorb_advert(state: ServerState, client: ClientId, answer: Advertise) -> ServerState:
    """Take a client's keys and neighbours, if they are properly drawn and signed."""
    advert, drawn = answer.advert, answer.neighbours
    others = set(state.spec.clients) - {client}
    if list(drawn) != sorted(set(drawn)) or not set(drawn) <= others:
        raise BadFrame("neighbours that are not of the roster, out of order or there twice")
    if len(drawn) != state.graph.neighbours:
        raise BadFrame(f"{len(drawn)} neighbours where {state.graph.neighbours} are drawn")
    for key in (advert.box_key, advert.mask_key):
        masks.agree(_PROBE, key)  # refuses a key with which every honest client would have to stop
    verify(state.roster[client], advert_bytes(state.context, client, advert), advert.signature)
    state.adverts[client], state.neighbours[client] = advert, drawn
    return state


def close_adverts(state: ServerState) -> tuple[ServerState, dict[ClientId, Message]]:
    """Give each client its neighbours' keys."""
    books = {
        client: KeyBook(tuple((n, state.adverts[n]) for n in drawn if n in state.adverts))
        for client, drawn in state.neighbours.items()
    }
    return state, dict(books)


# Shares (spec 4.2)


def absorb_shares(state: ServerState, client: ClientId, answer: Shares) -> ServerState:
    """Take a client's boxes, one for each of its neighbours that advertised."""
    holders = [n for n in state.neighbours[client] if n in state.adverts]
    state.key_digests[client] = _take_boxes(state, client, holders, answer.entrusted)
    return state


def close_shares(state: ServerState) -> tuple[ServerState, dict[ClientId, Message]]:
    """Give each client the boxes of those who chose it, and the names of its neighbours that have shared."""
    books: dict[ClientId, Message] = {}
    for client in state.key_digests:
        boxes = sorted(state.boxes.get(client, {}).items())
        known = tuple((owner, state.adverts[owner], box) for owner, box in boxes)
        books[client] = ShareBook(_sharers(state, client), known)
    state.boxes = {}
    return state, books


def _sharers(state: ServerState, client: ClientId) -> tuple[ClientId, ...]:
    """Give the neighbours of a client that have shared."""
    return tuple(n for n in state.neighbours[client] if n in state.key_digests)


def _take_boxes(
    state: ServerState, owner: ClientId, holders: Sequence[ClientId], entrusted: tuple[Entrusted, ...]
) -> dict[ClientId, bytes]:
    """Keep an owner's boxes for their holders; gives holder -> digest."""
    if [each.holder for each in entrusted] != list(holders):
        raise BadFrame("boxes for others than this client's neighbours")
    if any(len(each.box) != BOX_BYTES or len(each.digest) != DIGEST_BYTES for each in entrusted):
        raise BadFrame("a box or a digest of another length")
    for each in entrusted:
        state.boxes.setdefault(each.holder, {})[owner] = each.box
    return {each.holder: each.digest for each in entrusted}


# Masked (spec 4.3)


def absorb_masked(state: ServerState, client: ClientId, answer: Masked) -> ServerState:
    """Add one masked summand to the running total."""
    if answer.context != state.context:
        raise WrongPhase("a masked summand of another round or run")
    lanes = unpack(answer.bulk, state.point.modulus_bits, state.point.lanes, state.spare)
    digests = _take_boxes(state, client, _sharers(state, client), answer.entrusted)
    np.add(state.total, lanes, out=state.total)
    state.seed_digests[client] = digests
    state.survivors.append(client)
    return state


def close_masked(state: ServerState) -> tuple[ServerState, dict[ClientId, Message]]:
    """Tell the survivors who they are, unless it is already clear that the sum cannot be opened."""
    state.survivors.sort()
    _check_holders(state, state.survivors)
    survivors = tuple(state.survivors)
    books: dict[ClientId, Message] = {
        client: Survivors(survivors, tuple(sorted(state.boxes.get(client, {}).items())))
        for client in survivors
    }
    state.boxes = {}
    return state, books


# Consent (spec 4.4)


def absorb_consent(state: ServerState, client: ClientId, answer: Consent) -> ServerState:
    """Take a survivor's signature."""
    signed = survivor_bytes(state.context, tuple(state.survivors))
    verify(state.roster[client], signed, answer.signature)
    state.consents[client] = answer.signature
    return state


def close_consents(state: ServerState) -> tuple[ServerState, dict[ClientId, Message]]:
    """Give all who are still there the signatures of a quorum of the committee."""
    _check_holders(state, state.consents)
    signers = sorted(state.members & state.consents.keys())[: state.committee.quorum]
    if len(signers) < state.committee.quorum:
        raise TooFewClients(
            f"{len(signers)} of the committee have consented and {state.committee.quorum} are needed"
        )
    book = Consents(tuple((client, state.consents[client]) for client in signers))
    return state, dict.fromkeys(sorted(state.consents), book)


# Reveal (spec 4.5)


def absorb_reveal(state: ServerState, client: ClientId, answer: Reveal) -> ServerState:
    """Take the shares a client gives up.

    One that does not fit its digest is left out: either its holder or its owner lies, and nobody can tell
    which.
    """
    kinds = ((answer.seeds, state.seed_digests, state.seeds), (answer.keys, _lost(state), state.keys))
    for shares, digests, _ in kinds:
        owners = [owner for owner, _ in shares]
        if owners != sorted(set(owners)):
            raise BadFrame("shares out of order, or twice of one owner")
        if any(client not in digests.get(owner, {}) for owner in owners):
            raise BadFrame("a share that was not asked for")
    for shares, digests, revealed in kinds:
        for owner, share in shares:
            if share_digest(share, state.context, owner, client) == digests[owner][client]:
                revealed.setdefault(owner, {})[client] = share
    return state


def _lost(state: ServerState) -> Digests:
    """Give the key shares' digests of those who have shared and are not in the sum."""
    return {owner: held for owner, held in state.key_digests.items() if owner not in state.seed_digests}


def close_reveal(state: ServerState) -> tuple[ServerState, Sealed]:
    """Take every mask off the total; what is left is the sum."""
    plus, minus = _masks_in(state)
    # What was added comes off: the roles of plus and minus are exchanged.
    masks.add_masks(state.total, minus, plus, threads=os.cpu_count() or 1)
    packed = pack(state.total, state.point.modulus_bits)
    return state, Sealed(tuple(state.survivors), memoryview(packed))


def _masks_in(state: ServerState) -> tuple[list[bytes], list[bytes]]:
    """Keys of the masks that are still in the total: those added, and those subtracted."""
    plus: list[bytes] = []
    minus: list[bytes] = []
    for owner in state.survivors:
        seed = _combine(state, state.seeds, owner)
        plus.append(masks.self_key(seed, state.context, owner))
    survivors = set(state.survivors)
    for owner in sorted(_lost(state)):
        secret = _combine(state, state.keys, owner)
        if bytes(PrivateKey(secret).public_key) != state.adverts[owner].mask_key:
            raise BadFrame(f"the shares of client {owner} do not give its key")
        for partner in sorted(_partners(state, owner) & survivors):
            key = masks.pair_key(secret, state.adverts[partner].mask_key, state.context, owner, partner)
            (plus if partner < owner else minus).append(key)
    return plus, minus


def _partners(state: ServerState, client: ClientId) -> set[ClientId]:
    """With whom a client that has shared exchanges masks: those it chose and those who chose it."""
    chosen_by = {owner for owner, holders in state.key_digests.items() if client in holders}
    return {*_sharers(state, client)} | chosen_by


def _combine(
    state: ServerState, revealed: Mapping[ClientId, dict[ClientId, bytes]], owner: ClientId
) -> bytes:
    shares = revealed.get(owner, {})
    if len(shares) < state.graph.shares:
        raise TooFewClients(f"{len(shares)} shares of client {owner} and {state.graph.shares} are needed")
    return shamir.combine(shares, state.graph.shares)


def _check_holders(state: ServerState, there: Iterable[ClientId]) -> None:
    """Raise `TooFewClients` where too few of the holders of somebody's shares are there to reveal them."""
    left = set(there)
    for owner, holders in (_lost(state) | state.seed_digests).items():
        if len(left.intersection(holders)) < state.graph.shares:
            raise TooFewClients(
                f"{len(left.intersection(holders))} holders of client {owner}'s shares are left "
                f"and {state.graph.shares} are needed"
            )


# Longest answers (spec 5)


def limit_advert(spec: RoundSpec) -> int:
    """Keys, signature, and an identifier of up to 9 bytes for each neighbour."""
    return 9 * Parameters.of(spec).graph.neighbours + ENVELOPE


def limit_shares(spec: RoundSpec) -> int:
    """For each neighbour a box, a digest, an identifier and their headers."""
    return (BOX_BYTES + DIGEST_BYTES + 16) * Parameters.of(spec).graph.neighbours + ENVELOPE


def limit_masked(spec: RoundSpec) -> int:
    """Give the length of the packed summand, of the boxes, and what surrounds them."""
    return point_of(spec).packed_bytes + limit_shares(spec)


def limit_consent(spec: RoundSpec) -> int:
    """One signature."""
    return ENVELOPE


def limit_reveal(spec: RoundSpec) -> int:
    """One share of each client but oneself, at most."""
    return (32 + 16) * len(spec.clients) + ENVELOPE
