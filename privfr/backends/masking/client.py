"""The client's side of a masking round. Section numbers are those of docs/spec/masking.md."""

from __future__ import annotations

import msgspec
import numpy as np
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey
from nacl.secret import SecretBox

from privfr.backends.identity import ascending, sign, verify
from privfr.backends.masking import graph, masks, shamir
from privfr.backends.masking.graph import Committee, Graph
from privfr.backends.masking.messages import (
    BOX_BYTES,
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
from privfr.coding import Coding, FixedPoint, pack
from privfr.errors import BadFrame, InputError, PolicyRefused, WrongPhase
from privfr.protocol import Begin, ClientId, Entropy, RoundSpec, parameters_of
from privfr.vector import Update

__all__ = ["ClientState", "Keyring", "Parameters", "client_state", "point_of"]


class Parameters(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What `RoundSpec.parameters` holds for this backend, msgpack-encoded."""

    coding: Coding
    graph: Graph
    committee: Committee

    @classmethod
    def of(cls, spec: RoundSpec) -> Parameters:
        """Read a spec's parameters. Raises `BadFrame` for what is not the encoding of any."""
        return parameters_of(spec.parameters, cls)


def point_of(spec: RoundSpec) -> FixedPoint:
    """Integer coding of a round's summands."""
    coding = Parameters.of(spec).coding
    return FixedPoint(coding, len(spec.clients), spec.metrics, spec.size, spec.context())


class Keyring(msgspec.Struct, frozen=True):
    """What a client is given before the run. identity: its own Ed25519 seed, 32 bytes, secret.
    roster: each client's Ed25519 public key, pinned.
    """

    identity: bytes
    roster: dict[ClientId, bytes]

    def __repr__(self) -> str:
        """Show nothing of the identity."""
        return f"<Keyring for a roster of {len(self.roster)}>"


class ClientState(msgspec.Struct, frozen=True):
    """What a client holds between two messages; what is no longer needed is emptied at once.

    summand: the coded update, uint32 bytes.  seed: of the self mask.  box_secret, mask_secret: X25519.
    neighbours: drawn by this client, they hold its shares.  adverts: those of the neighbours.  agreed: what
    the box keys agree on with each of them.  seed_box_keys: owner -> key of the box with its seed share.
    held_keys, held_seeds: owner -> its share.  survivors: as consented to.
    """

    client: ClientId
    spec: RoundSpec
    context: bytes
    keyring: Keyring
    summand: bytes
    seed: bytes = b""
    box_secret: bytes = b""
    mask_secret: bytes = b""
    neighbours: tuple[ClientId, ...] = ()
    adverts: dict[ClientId, Advert] = {}
    agreed: dict[ClientId, bytes] = {}
    seed_box_keys: dict[ClientId, bytes] = {}
    held_keys: dict[ClientId, bytes] = {}
    held_seeds: dict[ClientId, bytes] = {}
    survivors: tuple[ClientId, ...] = ()

    def __repr__(self) -> str:
        """Name the client only."""
        return f"<ClientState of client {self.client}>"


_with = msgspec.structs.replace


def check(spec: RoundSpec, keyring: Keyring) -> None:
    """Raise `PolicyRefused` for a roster other than the pinned one, `BadFrame` if the sum would not fit."""
    if set(spec.clients) != set(keyring.roster):
        # Not even a smaller one: the server could choose it so that its accomplices are many in it.
        raise PolicyRefused("a roster that is not the one pinned here")
    try:
        point_of(spec)
    except InputError as error:
        raise BadFrame(f"a round that cannot be: {error}") from None


def client_state(
    spec: RoundSpec, client: ClientId, update: Update, keyring: Keyring, entropy: Entropy
) -> ClientState:
    """Begin a client's round with its coded update."""
    summand = point_of(spec).encode(update, entropy).astype("<u4").tobytes()
    return ClientState(client, spec, spec.context(), keyring, summand)


def advertise(state: ClientState, begin: Begin, entropy: Entropy) -> tuple[ClientState, Advertise]:
    """Draw keys and neighbours, and sign the keys (spec 4.1)."""
    spec = state.spec
    if begin.spec.context() != state.context:
        raise WrongPhase("the opening of another round")
    check(spec, state.keyring)
    box_secret, mask_secret, seed = entropy(32), shamir.draw(entropy), shamir.draw(entropy)
    neighbours = graph.draw(state.client, spec.clients, Parameters.of(spec).graph.neighbours, entropy)
    unsigned = Advert(_public(box_secret), _public(mask_secret), b"")
    signature = sign(state.keyring.identity, advert_bytes(state.context, state.client, unsigned))
    state = _with(
        state, seed=seed, box_secret=box_secret, mask_secret=mask_secret, neighbours=neighbours
    )  # fmt: skip
    return state, Advertise(_with(unsigned, signature=signature), neighbours)


def share(state: ClientState, book: KeyBook, entropy: Entropy) -> tuple[ClientState, Shares]:
    """Share the mask key among the neighbours that are there (spec 4.2)."""
    holders = tuple(client for client, _ in book.adverts)
    if not ascending(holders, set(state.neighbours)):
        raise BadFrame("adverts of others than this client's neighbours, out of order or there twice")
    adverts = dict(book.adverts)
    for client, advert in adverts.items():
        _check_advert(state, client, advert)
    shares = shamir.split(state.mask_secret, _enough(state, holders, "have advertised"), holders, entropy)
    agreed = {client: masks.agree(state.box_secret, advert.box_key) for client, advert in adverts.items()}
    state = _with(state, adverts=adverts, agreed=agreed)
    return state, Shares(tuple(_entrust(state, h, _KEY, shares[h], entropy) for h in holders))


def mask(state: ClientState, book: ShareBook, entropy: Entropy) -> tuple[ClientState, Masked]:
    """Mask the summand, share the self mask's seed, forget the secrets (spec 4.3).

    The seed is shared only among neighbours that this very vector is masked with. Had the server a say in
    who opens it, it could have those open it whose masks it left out.
    """
    there = book.neighbours
    if not ascending(there, state.adverts.keys()):
        raise BadFrame("neighbours that have not advertised, out of order or there twice")
    threshold = _enough(state, there, "have shared")
    state, choosers = _take_boxes(state, book)
    partners = {client: state.adverts[client].mask_key for client in there} | choosers
    keys = {
        other: masks.pair_key(state.mask_secret, key, state.context, state.client, other)
        for other, key in partners.items()
    }
    lanes = np.frombuffer(state.summand, "<u4").copy()
    plus = [key for other, key in keys.items() if state.client < other]
    minus = [key for other, key in keys.items() if state.client > other]
    masks.add_masks(lanes, [masks.self_key(state.seed, state.context, state.client), *plus], minus)
    packed = pack(lanes, point_of(state.spec).modulus_bits)
    shares = shamir.split(state.seed, threshold, there, entropy)
    entrusted = tuple(_entrust(state, holder, _SEED, shares[holder], entropy) for holder in there)
    state = _with(
        state, summand=b"", seed=b"", box_secret=b"", mask_secret=b"", adverts={}, agreed={}
    )  # fmt: skip
    return state, Masked(state.context, entrusted, packed)


def consent(state: ClientState, message: Survivors, entropy: Entropy) -> tuple[ClientState, Consent]:
    """Sign the one set of survivors that this client will ever agree to in this round (spec 4.4)."""
    state = _agree(state, message)
    return state, Consent(sign(state.keyring.identity, survivor_bytes(state.context, state.survivors)))


def reveal(state: ClientState, message: Consents, entropy: Entropy) -> tuple[ClientState, Reveal]:
    """Give up shares, once a quorum of the committee has agreed to the same survivors (spec 4.5)."""
    signers = [client for client, _ in message.signatures]
    committee = Parameters.of(state.spec).committee
    members = committee.members(state.spec.clients, state.context)
    if not ascending(signers, members.intersection(state.survivors)):
        raise BadFrame("consents of others than surviving committee members, out of order or there twice")
    if len(signers) < committee.quorum:
        raise PolicyRefused(f"only {len(signers)} of the committee agree; {committee.quorum} must")
    signed = survivor_bytes(state.context, state.survivors)
    for client, signature in message.signatures:
        verify(state.keyring.roster[client], signed, signature)
    return _disclose(state)


def reveal_unsigned(state: ClientState, message: Survivors, entropy: Entropy) -> tuple[ClientState, Reveal]:
    """Give up shares on the server's word (`masking-passive`)."""
    return _disclose(_agree(state, message))


def _agree(state: ClientState, message: Survivors) -> ClientState:
    """Check the survivors and open their boxes."""
    survivors, spec = message.clients, state.spec
    if not ascending(survivors, set(spec.clients)):
        raise BadFrame("survivors that are not of the roster, out of order or there twice")
    if state.client not in survivors:
        raise BadFrame("survivors without this client, who is asked about them")
    if len(survivors) < spec.threshold:
        raise PolicyRefused(f"{len(survivors)} survivors, fewer than the threshold of {spec.threshold}")
    owners = [owner for owner, _ in message.boxes]
    if not ascending(owners, state.seed_box_keys.keys() & set(survivors)):
        raise BadFrame("boxes of others than survivors who chose this client, out of order or there twice")
    seeds = {owner: _opened(state.seed_box_keys[owner], box) for owner, box in message.boxes}
    return _with(state, survivors=survivors, held_seeds=seeds, seed_box_keys={})


def _disclose(state: ClientState) -> tuple[ClientState, Reveal]:
    survivors = set(state.survivors)
    seeds = tuple((owner, share) for owner, share in sorted(state.held_seeds.items()) if share)
    keys = tuple(
        (owner, share) for owner, share in sorted(state.held_keys.items()) if share and owner not in survivors
    )
    return _with(state, held_seeds={}, held_keys={}), Reveal(seeds, keys)


def _public(secret: bytes) -> bytes:
    return bytes(PrivateKey(secret).public_key)


def _check_advert(state: ClientState, client: ClientId, advert: Advert) -> None:
    if len(advert.box_key) != 32 or len(advert.mask_key) != 32:
        raise BadFrame("a public key that is not of 32 bytes")
    verify(state.keyring.roster[client], advert_bytes(state.context, client, advert), advert.signature)


def _enough(state: ClientState, neighbours: tuple[ClientId, ...], what: str) -> int:
    """Refuse to go on with fewer neighbours than the shares' threshold; gives the threshold."""
    threshold = Parameters.of(state.spec).graph.shares
    if len(neighbours) < threshold:
        raise PolicyRefused(f"only {len(neighbours)} of this client's neighbours {what}; {threshold} must")
    return threshold


# Which of the two keys of `masks.box_keys`.
_KEY, _SEED = 0, 1


def _entrust(state: ClientState, holder: ClientId, which: int, share: bytes, entropy: Entropy) -> Entrusted:
    keys = masks.box_keys(state.agreed[holder], state.context, state.client, holder)
    box = SecretBox(keys[which]).encrypt(share, entropy(SecretBox.NONCE_SIZE))
    return Entrusted(holder, bytes(box), share_digest(share, state.context, state.client, holder))


def _take_boxes(state: ClientState, book: ShareBook) -> tuple[ClientState, dict[ClientId, bytes]]:
    """Open the key shares of those who chose this client; gives their mask keys too."""
    owners = [owner for owner, _, _ in book.boxes]
    if not ascending(owners, set(state.spec.clients) - {state.client}):
        raise BadFrame("boxes of nobody else in the roster, out of order or there twice")
    held_keys, seed_box_keys, mask_keys = {}, {}, {}
    for owner, advert, box in book.boxes:
        agreed = _agree_with(state, owner, advert)
        for_key, seed_box_keys[owner] = masks.box_keys(agreed, state.context, owner, state.client)
        held_keys[owner], mask_keys[owner] = _opened(for_key, box), advert.mask_key
    return _with(state, held_keys=held_keys, seed_box_keys=seed_box_keys), mask_keys


def _agree_with(state: ClientState, client: ClientId, advert: Advert) -> bytes:
    """Return what the box keys agree on, for one whose advert may have been seen before."""
    known = state.adverts.get(client)
    if known is None:
        _check_advert(state, client, advert)
        return masks.agree(state.box_secret, advert.box_key)
    if known != advert:
        raise BadFrame("two adverts of one client")
    return state.agreed[client]


def _opened(key: bytes, box: bytes) -> bytes:
    """Open a box with a share; gives nothing for one that does not open, whose owner only harms itself."""
    try:
        return SecretBox(key).decrypt(box) if len(box) == BOX_BYTES else b""
    except CryptoError:
        return b""
