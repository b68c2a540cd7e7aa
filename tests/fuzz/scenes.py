"""Rounds to fuzz: true clients whose answers are remembered, and liars among them who know their own keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import msgspec
from fuzz.choices import Choices, altered, mutated
from insecure import CODING, InsecureEntropy, spec_of, whole_update

from privfr.backends import backend as backend_named
from privfr.backends import plain
from privfr.backends.identity import sign
from privfr.backends.masking import client as masking
from privfr.backends.masking.client import ClientState, Parameters
from privfr.backends.masking.graph import Committee, Graph
from privfr.backends.masking.messages import (
    SHARE_BYTES,
    Advertise,
    Entrusted,
    Masked,
    Reveal,
    Shares,
    advert_bytes,
    share_digest,
)
from privfr.backends.plain import PLAIN
from privfr.coding import FixedPoint
from privfr.errors import RemoteProtocolError
from privfr.protocol import Backend, Begin, ClientId, ClientSession, RoundSpec, ServerSession
from privfr.vector import Update
from privfr.wire import Message, decode, encode

# Backend `plain` with the integers of `masking`, as `coding.bits` makes it.
PLAIN_CODED = replace(PLAIN, integers=True)

Heard = tuple[bytes, ...]  # the frames that a client has received in this round
Answer = bytes | RemoteProtocolError


@dataclass
class Scene:
    """A round, provisioned once; `said` is what each client says, worked out once for what it has heard."""

    backend: Backend
    spec: RoundSpec
    said: dict[tuple[ClientId, Heard], tuple[bytes, Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.updates: dict[ClientId, Update] = {c: whole_update(c) for c in self.spec.clients}
        _, self.keys = self.backend.provision(self.spec.clients, InsecureEntropy(0))
        self.opening = encode(Begin(self.spec, memoryview(b"")))

    @property
    def point(self) -> FixedPoint | None:
        """The integers that are added up, None for float32."""
        masked = self.backend.name.startswith("masking")
        return masking.point_of(self.spec) if masked else plain.point_of(self.spec)

    def answer(self, client: ClientId, heard: Heard) -> Answer:
        """Give the true answer to the last frame, or the error with which the client refuses it."""
        return self._reply(client, heard)[1]

    def elsewhere(self, client: ClientId, truth: Message) -> bytes:
        """Give a client's answer in the run's next round: its first, or this one where it names its round."""
        spec = msgspec.structs.replace(self.spec, round=self.spec.round + 1)
        if hasattr(truth, "context"):
            return encode(msgspec.structs.replace(truth, context=spec.context()))
        return self._session(spec, client).receive(encode(Begin(spec, memoryview(b""))))

    def state(self, client: ClientId, heard: Heard) -> ClientState:
        """Give what a masking client holds after it has heard these frames."""
        saved = msgspec.msgpack.decode(self._reply(client, heard)[0])
        return msgspec.convert(saved[1], ClientState)

    def server(self) -> ServerSession:
        """Begin the server's side."""
        keyring, _ = self.backend.provision(self.spec.clients, InsecureEntropy(0))
        return ServerSession(self.backend, self.spec, self.backend.server_state(self.spec, keyring))

    def _session(self, spec: RoundSpec, client: ClientId) -> ClientSession:
        entropy = InsecureEntropy(100 * client)
        update, key = self.updates[client], self.keys[client]
        return ClientSession(
            self.backend, self.backend.client_state(spec, client, update, key, entropy), entropy
        )

    def _reply(self, client: ClientId, heard: Heard) -> tuple[bytes, Answer]:
        """Session as saved, and answer. Entropy follows from what was heard, so that the answer does."""
        if (client, heard) not in self.said:
            if len(self.said) > 4000:
                self.said.clear()
            self.said[client, heard] = self._worked_out(client, heard)
        return self.said[client, heard]

    def _worked_out(self, client: ClientId, heard: Heard) -> tuple[bytes, Answer]:
        if not heard:
            return self._session(self.spec, client).save(), b""
        entropy = InsecureEntropy(100 * client + len(heard))
        session = ClientSession.restore(self.backend, self._reply(client, heard[:-1])[0], entropy)
        try:
            answer: Answer = session.receive(heard[-1])
        except RemoteProtocolError as error:
            answer = error
        return session.save(), answer


def _sparse_spec() -> RoundSpec:
    """Six clients who draw three neighbours each: not everyone masks with everyone."""
    parameters = msgspec.msgpack.encode(Parameters(CODING, Graph(3, 2), Committee(5, 3)))
    return spec_of(backend_named("masking"), range(1, 7), threshold=4, parameters=parameters)


@cache
def scene(name: str) -> Scene:
    """Provision a round by its name in `SCENES`: of four clients, or of six in a sparse graph."""
    if name == "sparse":
        return Scene(backend_named("masking"), _sparse_spec())
    backend = PLAIN_CODED if name == "plain-coded" else backend_named(name)
    return Scene(backend, spec_of(backend, range(1, 5), threshold=2))


SCENES = ("masking", "masking-passive", "sparse", "plain", "plain-coded", "trusted")


# Liars: clients of the roster, who sign and encrypt lies properly.

# What is passed off as a share: too short, beyond the prime, or one of another polynomial.
FALSE_SHARES = (b"short", b"\xff" * 32, bytes(32))


def forged(scene: Scene, client: ClientId, heard: Heard, truth: bytes, choices: Choices) -> bytes:
    """Give a lie that fits its signature, box or digest, where this phase of masking has any."""
    step = scene.backend.server_steps[len(heard) - 1]
    if step.collects is Advertise:
        return _forged_advert(scene, client, decode(truth, Advertise), choices)
    if step.collects is Shares:
        shares = decode(truth, Shares)
        return encode(
            Shares(_forged_shares(scene.state(client, heard), shares.entrusted, masking._KEY, choices))
        )
    if step.collects is Masked:
        masked = decode(truth, Masked)
        lies = _forged_shares(scene.state(client, heard[:-1]), masked.entrusted, masking._SEED, choices)
        return encode(msgspec.structs.replace(masked, entrusted=lies))
    if step.collects is Reveal:
        return _forged_reveal(decode(truth, Reveal), choices)
    return altered(decode(truth, step.collects), choices)


def _forged_advert(scene: Scene, liar: ClientId, truth: Advertise, choices: Choices) -> bytes:
    key = choices.pick(
        (bytes(32), b"\x01" + bytes(31), b"\xff" * 32, mutated(bytes(range(32)), choices)[:32])
    )
    field = choices.pick(("box_key", "mask_key"))
    advert = msgspec.structs.replace(truth.advert, **{field: key})
    signature = sign(scene.keys[liar].identity, advert_bytes(scene.spec.context(), liar, advert))
    return encode(msgspec.structs.replace(truth, advert=msgspec.structs.replace(advert, signature=signature)))


def _forged_shares(
    state: ClientState, truth: tuple[Entrusted, ...], which: int, choices: Choices
) -> tuple[Entrusted, ...]:
    """Entrust some holders with false shares, whose digests fit or do not. which: key or seed."""
    entrusted = list(truth)
    for at in range(1 + choices.below(len(entrusted))):
        holder, share, digest = entrusted[at].holder, choices.pick(FALSE_SHARES), choices.pick(FALSE_SHARES)
        lie = masking._entrust(state, holder, which, share.ljust(SHARE_BYTES), InsecureEntropy(0))
        seen = share_digest(digest, state.context, state.client, holder)
        entrusted[at] = msgspec.structs.replace(lie, digest=seen)
    return tuple(entrusted)


def _forged_reveal(truth: Reveal, choices: Choices) -> bytes:
    false = choices.pick(FALSE_SHARES)
    which = choices.pick(("seeds", "keys"))
    shares: Sequence[tuple[ClientId, bytes]] = getattr(truth, which)
    lies = tuple((owner, false) for owner, _ in shares)
    return encode(msgspec.structs.replace(truth, **{which: lies}))
