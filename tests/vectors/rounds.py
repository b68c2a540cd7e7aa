"""Whole rounds: every frame both ways, and what comes of it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import reference as ref
from cases import SPEC_FIELDS, Case, case, made_up

__all__ = [
    "ABOUT",
    "CONSENT",
    "FEW",
    "LOST",
    "PASSIVE",
    "ROSTER",
    "ROUNDS",
    "floats",
    "played",
    "played_case",
]

ABOUT = (
    "Whole rounds. entropy: what each client draws, in order: 32 bytes for stochastic rounding, if any; box "
    "secret, 32; mask secret, 32; seed, 32; 16 for each other client, in one draw, unless all are "
    "neighbours; when it shares its mask secret, t - 1 coefficients, 32 each, and a nonce of 24 for each "
    "holder, ascending; when it shares its seed, the same again. Secrets and coefficients are drawn again "
    "while they are not below 2^256 - 189. arrives: whether the client's answer (up) reaches the server. "
    "After the rounds, and in the bad ones, `down` is given to a client and `up` to the server in place of "
    "the frame that the round has there. Where it is not refused, the round goes on: the client's last "
    "answer is `reveal`, or the server's sum `sealed`. Of the bad ones, those with `taken` give several "
    "answers in place of others, which the server takes; the round ends in the error."
)

ROSTER = [0, 3, 200, 70_000, 5_000_000_000]  # every width that msgpack has for them but one
METRICS = ["loss", "accuracy"]
NEAREST = [4.0, 16, 100, "nearest", False, None]
ROTATED = [4.0, 20, 100, "stochastic", True, None]
MODEL = [0.0] * 5

LOST = "lost in advertise and mask"
CONSENT = "lost in mask and consent"
FEW = "few neighbours, lost in share and reveal"
FEW_MASKED = "few neighbours, lost in mask"
PASSIVE = "passive, lost in mask"

# name -> seed of the draws, backend, coding, neighbours and shares, committee and quorum, client -> phase in
# which its answer is lost
ROUNDS: dict[str, tuple[int, str, list[Any], list[int], list[int], dict[int, str]]] = {
    LOST: (1, "masking", NEAREST, [4, 2], [5, 3], {200: "advertise", 3: "mask"}),
    CONSENT: (2, "masking", NEAREST, [4, 2], [4, 2], {5_000_000_000: "mask", 3: "consent"}),
    # With other draws some client's shares would be out of reach.
    FEW: (8, "masking", ROTATED, [3, 2], [3, 2], {70_000: "share", 0: "reveal"}),
    # Of client 200's partners, one is only chosen by it, and one only chose it.
    FEW_MASKED: (2, "masking", ROTATED, [3, 2], [4, 3], {200: "mask"}),
    PASSIVE: (4, "masking-passive", NEAREST, [4, 3], [5, 3], {0: "mask"}),
}


def floats(vector: Sequence[float]) -> bytes:
    """Little-endian float32."""
    return struct.pack(f"<{len(vector)}f", *vector)


def _update(client: int) -> dict[str, Any]:
    drawn = [int.from_bytes(made_up(f"update {client} {i}", 2), "big") for i in range(8)]
    return {
        "weight": 1 + drawn[0] % 100,
        "metrics": {"loss": drawn[1] / 2**13, "accuracy": drawn[2] / 2**16},
        "vector": [(x - 2**15) / 2**14 for x in drawn[3:]],
    }


def played(name: str) -> ref.Round:
    """Play one of `ROUNDS`."""
    seed, backend, coding, graph, committee, lost = ROUNDS[name]
    spec = [
        made_up("run", 16),
        15,
        backend,
        ROSTER,
        3,
        METRICS,
        len(MODEL),
        made_up("layout"),
        hashlib.blake2b(floats(MODEL), digest_size=32).digest(),
        made_up("config"),
        [coding, graph, committee],
    ]
    parties = {
        u: ref.Client(u, made_up(f"identity {u}"), _update(u), ref.Draws(100 * seed + i))
        for i, u in enumerate(ROSTER)
    }
    found = ref.Round(spec, parties, lost)
    found.play()
    return found


def played_case(name: str, found: ref.Round) -> Case:
    """What everybody is given in a round, and all that is said in it."""
    given = {
        "spec": dict(zip(SPEC_FIELDS, found.spec[:10], strict=True)) | {"parameters": found.wire_spec[10]},
        "clients": [
            {"client": u, "identity": p.identity, "key": ref.ed25519_public(p.identity), "update": p.update,
             "entropy": p.draws.taken}
            for u, p in found.parties.items()
        ],
    }  # fmt: skip
    gives = {
        "context": found.context,
        "phases": found.frames,
        "survivors": found.survivors,
        "sealed": found.sealed,
        "mean": found.aggregate,
    }
    return case(name, given, gives)
