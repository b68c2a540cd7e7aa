"""Backend `masking`: the server gets the exact sum of the clients' updates and nothing else.

Pairwise masking after Bonawitz et al. 2017 (CCS, eprint 2017/281) over a sparse random graph in the spirit of
Bell et al. 2020 (CCS, eprint 2020/704). What is sent, computed and signed stands in docs/spec/masking.md;
who, colluding with whom, learns what in docs/threat-model.md.

`MASKING` holds against a server that lies: five phases. `MASKING_PASSIVE` leaves out the consent of the
clients to one set of survivors: four phases, for a server that is curious but keeps to the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from nacl.signing import SigningKey

from privfr.backends.masking import client, server
from privfr.backends.masking.client import Keyring, Parameters, client_state, point_of
from privfr.backends.masking.graph import (
    Graph,
    Promise,
    check,
    convene,
    derive,
    fewest,
    partners,
    risk,
)
from privfr.backends.masking.messages import (
    Advertise,
    Consent,
    Consents,
    KeyBook,
    Masked,
    Reveal,
    ShareBook,
    Shares,
    Survivors,
)
from privfr.coding import Coding, unpack
from privfr.errors import InputError
from privfr.protocol import (
    Backend,
    Begin,
    ClientId,
    ClientStep,
    Entropy,
    RoundSpec,
    Sealed,
    ServerStep,
)
from privfr.vector import Aggregate

__all__ = ["MASKING", "MASKING_PASSIVE", "graph_of", "plan"]


def graph_of(clients: int, options: Mapping[str, Any]) -> tuple[Promise, Graph]:
    """Derive the graph from the promise, or check the raw numbers against it.

    options: corruption, dropout (shares of the clients), neighbours, shares (0 to derive them).
    """
    promise = Promise(options["corruption"], options["dropout"])
    raw = Graph(options["neighbours"], options["shares"])
    if bool(raw.neighbours) != bool(raw.shares):
        raise InputError("masking.neighbours and masking.shares: give both, or neither to derive them")
    if not raw.neighbours:
        return promise, derive(clients, promise)
    check(clients, promise, raw)
    return promise, raw


def plan(clients: int, threshold: int, coding: Coding | None, options: Mapping[str, Any]) -> bytes:
    """Work out a run's parameters. Raises `InputError` for a promise that cannot be kept."""
    if coding is None:
        raise InputError("coding.bits: masking adds up whole numbers; give 2 to 24 bits, usually 16")
    coding.check_fits(clients)
    promise, graph = graph_of(clients, options)
    least = _fewest(clients, options)
    if threshold < least:
        raise InputError(
            f"federation.threshold: {threshold} survivors could not open a sum over {clients} clients; "
            f"give at least {least}"
        )
    return msgspec.msgpack.encode(Parameters(coding, graph, convene(clients, promise, graph)))


def describe(clients: int, threshold: int, options: Mapping[str, Any]) -> dict[str, float]:
    """What follows from the promise.

    dropped: clients that may be lost.  masks: those one client adds, on average.  committee, quorum: who
    agrees on the survivors.  privacy, correctness: log2 of the probability that the guarantee fails in a
    round.
    """
    promise, graph = graph_of(clients, options)
    committee = convene(clients, promise, graph)
    privacy, correctness = risk(clients, promise, graph)
    return {
        "corrupt": promise.corrupt(clients),
        "dropped": clients - threshold if graph.complete(clients) else promise.dropped(clients),
        "neighbours": graph.neighbours,
        "shares": graph.shares,
        "masks": round(1 + partners(clients, graph), 1),
        "committee": committee.size,
        "quorum": committee.quorum,
        "privacy": max(privacy, -999.0),
        "correctness": max(correctness, -999.0),
    }


def _fewest(clients: int, options: Mapping[str, Any]) -> int:
    promise, graph = graph_of(clients, options)
    return fewest(clients, graph, convene(clients, promise, graph))


def _provision(
    clients: tuple[ClientId, ...], entropy: Entropy
) -> tuple[dict[ClientId, bytes], dict[ClientId, Keyring]]:
    identities = {each: entropy(32) for each in clients}
    roster = {each: bytes(SigningKey(seed).verify_key) for each, seed in identities.items()}
    return roster, {each: Keyring(seed, roster) for each, seed in identities.items()}


def _open(spec: RoundSpec, sealed: Sealed, keyring: object) -> Aggregate:
    point = point_of(spec)
    return point.decode(unpack(sealed.bulk, point.modulus_bits, point.lanes), len(sealed.survivors))


_OPENING = (
    (
        ClientStep("advertise", Begin, client.advertise),
        ServerStep("advertise", Advertise, server.absorb_advert, server.close_adverts, server.limit_advert),
    ),
    (
        ClientStep("share", KeyBook, client.share),
        ServerStep("share", Shares, server.absorb_shares, server.close_shares, server.limit_shares),
    ),
    (
        ClientStep("mask", ShareBook, client.mask),
        ServerStep("mask", Masked, server.absorb_masked, server.close_masked, server.limit_masked),
    ),
)
_CONSENT = (
    ClientStep("consent", Survivors, client.consent),
    ServerStep("consent", Consent, server.absorb_consent, server.close_consents, server.limit_consent),
)
_REVEAL = ServerStep("reveal", Reveal, server.absorb_reveal, server.close_reveal, server.limit_reveal)
_ACTIVE = (*_OPENING, _CONSENT, (ClientStep("reveal", Consents, client.reveal), _REVEAL))
_PASSIVE = (*_OPENING, (ClientStep("reveal", Survivors, client.reveal_unsigned), _REVEAL))

MASKING = Backend(
    name="masking",
    server_learns="sum",
    trust="The server sees the sum alone, even if it lies, while no more clients collude than stated.",
    client_steps=tuple(step for step, _ in _ACTIVE),
    server_steps=tuple(step for _, step in _ACTIVE),
    plan=plan,
    fewest=_fewest,
    provision=_provision,
    client_state_type=client.ClientState,
    client_state=client_state,
    server_state=server.server_state,
    open=_open,
    check=client.check,
    table="masking",
    integers=True,
    describe=describe,
)

MASKING_PASSIVE = replace(
    MASKING,
    name="masking-passive",
    trust="The server sees the sum alone if it keeps to the protocol and no more collude than stated.",
    caveat="a server that breaks the protocol, and opens each update with that client's own noise alone",
    client_steps=tuple(step for step, _ in _PASSIVE),
    server_steps=tuple(step for _, step in _PASSIVE),
)
