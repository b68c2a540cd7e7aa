"""The server's side of a masking round. Section numbers are those of docs/spec/masking.md."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from nacl.public import PrivateKey
from numpy.typing import NDArray

from privfr.backends.identity import ascending, verify
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
)
from privfr.backends.masking.shamir import SHARE_BYTES
from privfr.coding import add_packed, pack
from privfr.cores import usable_cores
from privfr.errors import BadFrame, LocalProtocolError, TooFewClients, WrongPhase
from privfr.protocol import ENVELOPE, ClientId, OnDemand, RoundSpec, Sealed
from privfr.wire import Message

__all__ = ["ServerState", "server_state"]


@dataclass(frozen=True, slots=True, repr=False)
class Trust:
    """What one owner entrusted to its holders, without an object for each: there are tens of thousands.

    holders: ascending.  boxes, digests: of all of them, one after the other.
    """

    holders: tuple[ClientId, ...]
    boxes: bytes
    digests: bytes

    def box(self, holder: ClientId) -> bytes:
        """Box for one of the holders."""
        if not self.boxes:
            raise LocalProtocolError("the frames of a phase that is over: its boxes were delivered")
        at = bisect_left(self.holders, holder)
        return self.boxes[at * BOX_BYTES : (at + 1) * BOX_BYTES]

    def digest(self, holder: ClientId) -> bytes:
        """Digest of the share of one of the holders."""
        at = bisect_left(self.holders, holder)
        return self.digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]

    def delivered(self) -> Trust:
        """Forget the boxes, once every holder has been sent its own."""
        return Trust(self.holders, b"", self.digests)


@dataclass(repr=False)
class ServerState:
    """What the server knows: keys, who holds whose shares, the running sum, and what is revealed.

    neighbours: client -> those it drew.  key_trust, seed_trust: owner -> what it entrusted in steps `share`
    and `mask`; those with a key_trust have shared, those with a seed_trust are in the sum.  lost: those of
    the former that are not in the latter.  total: uint32 [lanes].  keys, seeds: owner -> holder -> revealed
    share.
    """

    spec: RoundSpec
    roster: Mapping[ClientId, bytes]
    context: bytes
    total: NDArray[np.uint32]
    adverts: dict[ClientId, Advert] = field(default_factory=dict)
    neighbours: dict[ClientId, tuple[ClientId, ...]] = field(default_factory=dict)
    key_trust: dict[ClientId, Trust] = field(default_factory=dict)
    seed_trust: dict[ClientId, Trust] = field(default_factory=dict)
    survivors: tuple[ClientId, ...] = ()
    lost: dict[ClientId, Trust] = field(default_factory=dict)
    consents: dict[ClientId, bytes] = field(default_factory=dict)
    seeds: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    keys: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = Parameters.of(self.spec)
        self.graph, self.committee = parameters.graph, parameters.committee
        self.members = self.committee.members(self.spec.clients, self.context)
        self.point = point_of(self.spec)
        self.one_object = {client: client for client in self.spec.clients}


def server_state(spec: RoundSpec, roster: Mapping[ClientId, bytes]) -> ServerState:
    """Begin a round with an empty sum. roster: each client's Ed25519 public key."""
    if set(spec.clients) != set(roster):
        raise LocalProtocolError("a round over another roster than was provisioned")
    lanes = point_of(spec).lanes
    return ServerState(spec, roster, spec.context(), np.zeros(lanes, np.uint32))


_PROBE = bytes(range(32))  # any private key tells a public key of small order

# Advertise (spec 4.1)


def absorb_advert(state: ServerState, client: ClientId, answer: Advertise) -> ServerState:
    """Take a client's keys and neighbours, if they are properly drawn and signed."""
    advert, drawn = answer.advert, answer.neighbours
    if not ascending(drawn, state.one_object.keys()) or client in drawn:
        raise BadFrame("neighbours that are not of the roster, out of order or there twice")
    if len(drawn) != state.graph.neighbours:
        raise BadFrame(f"{len(drawn)} neighbours where {state.graph.neighbours} are drawn")
    for key in (advert.box_key, advert.mask_key):
        masks.agree(_PROBE, key)  # refuses a key with which every honest client would have to stop
    verify(state.roster[client], advert_bytes(state.context, client, advert), advert.signature)
    # The roster's own number objects, not this message's: there are k of them in each of n messages.
    state.neighbours[client] = tuple(state.one_object[n] for n in drawn)
    state.adverts[client] = advert
    return state


def close_adverts(state: ServerState) -> tuple[ServerState, Mapping[ClientId, Message]]:
    """Give each client its neighbours' keys."""

    def book(client: ClientId) -> KeyBook:
        return KeyBook(tuple((n, state.adverts[n]) for n in _advertisers(state, client)))

    return state, OnDemand(state.adverts, book)


def _advertisers(state: ServerState, client: ClientId) -> tuple[ClientId, ...]:
    """Give the neighbours of a client that have advertised."""
    return tuple(n for n in state.neighbours[client] if n in state.adverts)


# Shares (spec 4.2)


def absorb_shares(state: ServerState, client: ClientId, answer: Shares) -> ServerState:
    """Take a client's boxes, one for each of its neighbours that advertised."""
    state.key_trust[client] = _trust(_advertisers(state, client), answer.entrusted)
    return state


def close_shares(state: ServerState) -> tuple[ServerState, Mapping[ClientId, Message]]:
    """Give each client the boxes of those who chose it, and the names of its neighbours that have shared."""
    chosen_by = _owners(state.key_trust)

    def book(client: ClientId) -> ShareBook:
        owners = chosen_by.get(client, ())
        boxes = tuple((owner, state.adverts[owner], state.key_trust[owner].box(client)) for owner in owners)
        return ShareBook(_sharers(state, client), boxes)

    return state, OnDemand(state.key_trust, book)


def _sharers(state: ServerState, client: ClientId) -> tuple[ClientId, ...]:
    """Give the neighbours of a client that have shared."""
    return tuple(n for n in state.neighbours[client] if n in state.key_trust)


def _trust(holders: tuple[ClientId, ...], entrusted: tuple[Entrusted, ...]) -> Trust:
    """Take what an owner entrusted, if it is to just these holders."""
    if tuple(each.holder for each in entrusted) != holders:
        raise BadFrame("boxes for others than this client's neighbours")
    if any(len(each.box) != BOX_BYTES or len(each.digest) != DIGEST_BYTES for each in entrusted):
        raise BadFrame("a box or a digest of another length")
    return Trust(holders, b"".join(e.box for e in entrusted), b"".join(e.digest for e in entrusted))


def _owners(trust: Mapping[ClientId, Trust]) -> dict[ClientId, list[ClientId]]:
    """Give holder -> owners that entrusted something to it, ascending."""
    owners: dict[ClientId, list[ClientId]] = {}
    for owner in sorted(trust):
        for holder in trust[owner].holders:
            owners.setdefault(holder, []).append(owner)
    return owners


# Masked (spec 4.3)


def absorb_masked(state: ServerState, client: ClientId, answer: Masked) -> ServerState:
    """Add one masked summand to the running total."""
    if answer.context != state.context:
        raise WrongPhase("a masked summand of another round or run")
    trust = _trust(_sharers(state, client), answer.entrusted)
    add_packed(state.total, answer.bulk, state.point.modulus_bits)
    state.seed_trust[client] = trust
    return state


def close_masked(state: ServerState) -> tuple[ServerState, Mapping[ClientId, Message]]:
    """Tell the survivors who they are, unless it is already clear that the sum cannot be opened."""
    state.key_trust = {owner: trust.delivered() for owner, trust in state.key_trust.items()}
    state.survivors = tuple(sorted(state.seed_trust))
    state.lost = {owner: trust for owner, trust in state.key_trust.items() if owner not in state.seed_trust}
    _check_holders(state, state.survivors)
    chosen_by = _owners(state.seed_trust)

    def message(client: ClientId) -> Survivors:
        owners = chosen_by.get(client, ())
        return Survivors(state.survivors, tuple((o, state.seed_trust[o].box(client)) for o in owners))

    return state, OnDemand(state.survivors, message)


# Consent (spec 4.4)


def absorb_consent(state: ServerState, client: ClientId, answer: Consent) -> ServerState:
    """Take a survivor's signature."""
    signed = survivor_bytes(state.context, state.survivors)
    verify(state.roster[client], signed, answer.signature)
    state.consents[client] = answer.signature
    return state


def close_consents(state: ServerState) -> tuple[ServerState, Mapping[ClientId, Message]]:
    """Give all who are still there the signatures of a quorum of the committee."""
    state.seed_trust = {owner: trust.delivered() for owner, trust in state.seed_trust.items()}
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
    kinds = ((answer.seeds, state.seed_trust, state.seeds), (answer.keys, state.lost, state.keys))
    for shares, trust, _ in kinds:
        owners = [owner for owner, _ in shares]
        if owners != sorted(set(owners)):
            raise BadFrame("shares out of order, or twice of one owner")
        if any(owner not in trust or client not in trust[owner].holders for owner in owners):
            raise BadFrame("a share that was not asked for")
    for shares, trust, revealed in kinds:
        for owner, share in shares:
            found = revealed.setdefault(owner, {})
            enough = len(found) >= state.graph.shares
            if not enough and share_digest(share, state.context, owner, client) == trust[owner].digest(
                client
            ):
                found[client] = share
    return state


def close_reveal(state: ServerState) -> tuple[ServerState, Sealed]:
    """Take every mask off the total; what is left is the sum."""
    plus, minus = _masks_in(state)
    # What was added comes off: the roles of plus and minus are exchanged.
    masks.add_masks(state.total, minus, plus, threads=usable_cores())
    return state, Sealed(state.survivors, pack(state.total, state.point.modulus_bits))


def _masks_in(state: ServerState) -> tuple[list[bytes], list[bytes]]:
    """Keys of the masks that are still in the total: those added, and those subtracted."""
    plus: list[bytes] = []
    minus: list[bytes] = []
    for owner in state.survivors:
        seed = _combine(state, state.seeds, owner)
        plus.append(masks.self_key(seed, state.context, owner))
    chosen_by = _owners(state.key_trust)
    for owner in sorted(state.lost):
        secret = _combine(state, state.keys, owner)
        if bytes(PrivateKey(secret).public_key) != state.adverts[owner].mask_key:
            raise BadFrame(f"the shares of client {owner} do not give its key")
        # It exchanged masks with those it chose and those who chose it.
        partners = {*_sharers(state, owner), *chosen_by.get(owner, ())}
        for partner in sorted(partners & state.seed_trust.keys()):
            key = masks.pair_key(secret, state.adverts[partner].mask_key, state.context, owner, partner)
            (plus if partner < owner else minus).append(key)
    return plus, minus


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
    for owner, trust in (state.lost | state.seed_trust).items():
        there_are = len(left.intersection(trust.holders))
        if there_are < state.graph.shares:
            raise TooFewClients(
                f"{there_are} holders of client {owner}'s shares are left and {state.graph.shares} are needed"
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
    return (SHARE_BYTES + 16) * len(spec.clients) + ENVELOPE
