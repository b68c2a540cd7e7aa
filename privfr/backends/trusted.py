"""Backend `trusted`: the secure aggregator of Solomon & Woubie (arXiv 2403.05344), a party of its own.

Each client seals its summand to the aggregator's public key (libsodium's sealed box: X25519,
XSalsa20-Poly1305). The server relays ciphertext and gets back the sum alone. The aggregator runs the
very same addition as backend `plain`, so that nothing is lost: both give the same model to the bit.

Who learns what
    The server: the sum, its weight, its metrics, who took part. The aggregator: every client's update;
    it must be trusted, and must not collude with the server. A sealed box names no sender, so a server
    that makes up clients of its own and relays one true one learns that one's update: the roster's
    size protects against an honest-but-curious server only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from privfr.backends import plain
from privfr.backends.party import answer, ask
from privfr.errors import BadFrame, PolicyRefused, WrongPhase
from privfr.protocol import (
    ENVELOPE,
    Begin,
    ClientId,
    ClientStep,
    Entropy,
    RoundSpec,
    Sealed,
    ServerSession,
    ServerStep,
)
from privfr.wire import Frame, Message, decode, encode, register

__all__ = ["TRUSTED", "Aggregator"]

# Plaintext of a box: the client's number in 16 bytes, which keep the frame after it aligned, then a
# `Summand` frame. Without the number a server could pass one client's box off as another's.
_NAME_BYTES = 16


@register
class Boxed(Message, frozen=True, tag="trusted.boxed"):
    """Client to server: a summand sealed to the aggregator."""

    bulk: memoryview


@register
class Forward(Message, frozen=True, tag="trusted.forward"):
    """Server to aggregator: a client's box."""

    client: ClientId
    bulk: memoryview


@register
class Finish(Message, frozen=True, tag="trusted.finish"):
    """Server to aggregator: nobody else will come; give the sum."""


@register
class Accepted(Message, frozen=True, tag="trusted.accepted"):
    """Aggregator to server: added, or the round is open."""


class Aggregator:
    """The aggregator: a third party that alone can open what clients sealed.

    `receive` answers one frame of the server's with one of its own, as a `Member` does; it holds one
    round's sum at a time, and a round that is finished, with a sum or with too few clients, is over.
    floor: fewest clients whose sum it gives away.
    """

    def __init__(self, entropy: Entropy, floor: int = 2) -> None:
        self._entropy = entropy
        self._key = PrivateKey(entropy(PrivateKey.SIZE))
        self._box = SealedBox(self._key)
        self._floor = floor
        self._round: ServerSession | None = None
        self._opened: set[bytes] = set()

    @property
    def public_key(self) -> bytes:
        """What clients pin before the run: 32 bytes, X25519."""
        return bytes(self._key.public_key)

    def receive(self, frame: Frame) -> bytes:
        """Answer the server; with `Refused`, and no change of the sum, where a message is unacceptable."""
        handlers: dict[str, Callable[[Frame], Message]] = {
            "begin": self._open,
            "trusted.forward": self._add,
            "trusted.finish": self._finish,
        }
        return answer(handlers, frame)

    def _open(self, frame: Frame) -> Message:
        spec = decode(frame, Begin).spec
        spec.check()
        plain.check(spec)
        if spec.threshold < self._floor:
            raise PolicyRefused(
                f"threshold {spec.threshold} is below the aggregator's floor of {self._floor}"
            )
        if spec.context() in self._opened:
            # The difference of two sums of one round is somebody's update.
            raise WrongPhase("this round was opened before")
        state = plain.server_state(spec)
        state.entropy = self._entropy
        self._round = ServerSession(plain.PLAIN, spec, state)
        self._opened.add(spec.context())
        return Accepted()

    def _add(self, frame: Frame) -> Message:
        message = decode(frame, Forward)
        session = self._session()
        try:
            plaintext = memoryview(self._box.decrypt(bytes(message.bulk)))
        except CryptoError:
            raise BadFrame("the box does not open") from None
        if int.from_bytes(plaintext[:_NAME_BYTES], "big") != message.client:
            raise BadFrame("the box is another client's")
        if not session.absorb(message.client, plaintext[_NAME_BYTES:]):
            raise BadFrame(session.faults[-1][1])
        return Accepted()

    def _finish(self, frame: Frame) -> Message:
        decode(frame, Finish)
        session, self._round = self._session(), None
        session.close()
        sealed = session.sealed
        assert sealed is not None  # plain has one phase, and it has just been closed
        return sealed

    def _session(self) -> ServerSession:
        if self._round is None:
            raise WrongPhase("no round is open")
        return self._round

    def __repr__(self) -> str:
        """Say nothing of the key."""
        return "<Aggregator>"


@dataclass(frozen=True)
class ServerState:
    """The server's state: a line to the aggregator, and who was accepted."""

    relay: Callable[[bytes], bytes]
    survivors: tuple[ClientId, ...] = ()


def _seal(state: plain.ClientState, begin: Begin, entropy: Entropy) -> tuple[plain.ClientState, Message]:
    state, summand = plain.contribute(state, begin, entropy)
    plaintext = state.client.to_bytes(_NAME_BYTES, "big") + encode(summand)
    return state, Boxed(memoryview(SealedBox(PublicKey(state.key)).encrypt(plaintext)))


def _server_state(spec: RoundSpec, relay: Callable[[bytes], bytes]) -> ServerState:
    ask(relay, Begin(spec, memoryview(b"")), Accepted)
    return ServerState(relay)


def _absorb(state: ServerState, client: ClientId, answer: Boxed) -> ServerState:
    ask(state.relay, Forward(client, answer.bulk), Accepted)
    return replace(state, survivors=(*state.survivors, client))


def _close(state: ServerState) -> tuple[ServerState, Sealed]:
    sealed = ask(state.relay, Finish(), Sealed)
    if sealed.survivors != tuple(sorted(state.survivors)):
        raise BadFrame("the aggregator's sum is over other clients than it accepted")
    return state, sealed


def _limit(spec: RoundSpec) -> int:
    return plain.limit(spec) + _NAME_BYTES + ENVELOPE


def _provision(
    clients: tuple[ClientId, ...], entropy: Entropy
) -> tuple[Callable[[Frame], bytes], dict[ClientId, bytes]]:
    aggregator = Aggregator(entropy)
    return aggregator.receive, dict.fromkeys(clients, aggregator.public_key)


TRUSTED = replace(
    plain.PLAIN,
    name="trusted",
    server_learns="sum",
    trust="The server sees the sum alone; the aggregator sees each update and must not collude with it.",
    client_steps=(ClientStep("contribute", Begin, _seal),),
    server_steps=(ServerStep("contribute", Boxed, _absorb, _close, _limit),),
    provision=_provision,
    server_state=_server_state,
)
