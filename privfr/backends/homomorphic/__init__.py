"""Backends `bfv`, `ckks`, `bfv-authority`, `ckks-authority`: the sum is of ciphertexts.

TenSEAL does the cryptography, PyNaCl carries the keys. What is sent, computed and sealed stands in
docs/spec/ckks.md; who, colluding with whom, learns what in docs/threat-model.md.

`BFV` and `CKKS` keep the key among the clients: the server learns nothing, not even the sum. The `-authority`
ones give it to a third party that opens sums only: the server learns the sum, as with masking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from privfr.backends.homomorphic import authority, clients
from privfr.backends.homomorphic.authority import Authority
from privfr.backends.homomorphic.messages import Chosen, Cipher, Consent, Offer, PublicKey, Ready, Survivors
from privfr.backends.homomorphic.round import absorb_cipher, limit_cipher, plan
from privfr.coding import Coding
from privfr.protocol import Backend, Begin, ClientStep, Handover, ServerStep

__all__ = ["BFV", "BFV_AUTHORITY", "CKKS", "CKKS_AUTHORITY", "Authority"]


def _plan(
    name: str, clients: int, threshold: int, coding: Coding | None, options: Mapping[str, Any]
) -> bytes:
    return plan(name, clients, coding)


BFV = Backend(
    name="bfv",
    server_learns="nothing",
    trust="The server sees no sum and no model; a single client that helps it can show it every update.",
    caveat="a client that helps the server, and opens each update with that client's own noise alone",
    client_steps=(
        ClientStep("offer", Begin, clients.offer),
        ClientStep("contribute", Chosen, clients.contribute),
    ),
    server_steps=(
        ServerStep("offer", Offer, clients.absorb_offer, clients.close_offers, clients.limit_offer),
        ServerStep("contribute", Cipher, absorb_cipher, clients.close, limit_cipher),
    ),
    plan=partial(_plan, "bfv"),
    fewest=lambda clients, options: 2,
    provision=clients.provision,
    client_state_type=clients.ClientState,
    client_state=clients.client_state,
    server_state=clients.server_state,
    open=clients.open_sum,
    check=clients.check,
    integers=True,
    handover=Handover(clients.seal_model, clients.open_model),
    describe=lambda clients, threshold, options: {"makers": clients - threshold + 1},
)

CKKS = replace(BFV, name="ckks", plan=partial(_plan, "ckks"))

BFV_AUTHORITY = replace(
    BFV,
    name="bfv-authority",
    server_learns="sum",
    trust="The server sees the sum alone; an authority or client that helps it can show it every update.",
    caveat="an authority or client that helps the server, and opens each update with its own noise alone",
    client_steps=(
        ClientStep("ready", Begin, authority.ready),
        ClientStep("contribute", PublicKey, authority.contribute),
        ClientStep("consent", Survivors, authority.consent),
    ),
    server_steps=(
        ServerStep("ready", Ready, authority.absorb_ready, authority.close_ready, authority.limit_short),
        ServerStep("contribute", Cipher, absorb_cipher, authority.close_ciphers, limit_cipher),
        ServerStep("consent", Consent, authority.absorb_consent, authority.close, authority.limit_short),
    ),
    plan=partial(_plan, "bfv-authority"),
    provision=authority.provision,
    client_state_type=authority.ClientState,
    client_state=authority.client_state,
    server_state=authority.server_state,
    open=authority.open_sum,
    handover=None,
    check=authority.check,
    describe=lambda clients, threshold, options: {"consents": threshold},
)

CKKS_AUTHORITY = replace(BFV_AUTHORITY, name="ckks-authority", plan=partial(_plan, "ckks-authority"))
