"""Masking under every interleaving of answers, losses, lies, replays and restarts that a network can make.

The graph is complete, so that nothing is left to chance: a round with enough true answers must end with the
exact sum. The clients are honest; what lies is the network between them and the server, who has no keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from insecure import InsecureEntropy, round_in_hand
from numpy.typing import NDArray

from privfr.backends.masking.client import point_of
from privfr.backends.masking.messages import Consent, Masked, Reveal, Shares
from privfr.coding import pack, unpack
from privfr.errors import LocalProtocolError, RemoteProtocolError, TooFewClients
from privfr.protocol import Ack, Begin, ClientId, ClientSession, Sealed
from privfr.wire import Message, decode, encode, kind

OUTSIDERS = [99, 0, -1, 2**70]

going_on = precondition(lambda self: not self.over)
harmful = precondition(lambda self: not self.over and (self.victims | self.heard) & set(self.outbox))


class HostileNetwork(RuleBasedStateMachine):
    """One round, and the model beside it.

    outbox: what the server asks in this phase.  said: who has received it, and its true answer.  heard: whose
    answer the server has seen, true or not.  taken: those of them it should have accepted.  spoilt: whose
    shares were changed on the way.  total: the lanes that should be in the sum.

    Harm comes to the victims, mostly so few that the round can still end, and to others once they were heard.
    What the rules leave unfinished is finished truthfully, so that most examples come to a sum.
    """

    name = "masking"

    @initialize(n=st.integers(2, 7), seed=st.integers(0, 3), data=st.data())
    def begins(self, n: int, seed: int, data: st.DataObject) -> None:
        self.round = round_in_hand(self.name, n, 2, seed)
        spare = data.draw(st.sampled_from([n - self.round.spec.threshold] * 3 + [n]))
        self.chosen = data.draw(st.sets(self.clients(), min_size=min(1, spare), max_size=spare))
        self.harm_from = data.draw(st.sampled_from([step.phase for step in self.round.backend.server_steps]))
        self.server, self.point = self.round.server, point_of(self.round.spec)
        self.total = np.zeros(self.point.lanes, np.uint32)
        self.past: list[tuple[ClientId, bytes]] = []  # answers of earlier phases
        self.past_requests: dict[ClientId, list[bytes]] = {client: [] for client in self.round.spec.clients}
        self.spoilt: set[ClientId] = set()
        self.survivors: set[ClientId] = set()
        self.lost: dict[ClientId, str] = {}
        self.faults: list[ClientId] = []
        self.over = False
        self.asks(self.round.opening())

    def asks(self, outbox: Mapping[ClientId, bytes]) -> None:
        self.outbox = outbox
        self.said: dict[ClientId, bytes] = {}
        self.heard: set[ClientId] = set()
        self.taken: set[ClientId] = set()

    def clients(self) -> st.SearchStrategy[ClientId]:
        return st.sampled_from(self.round.spec.clients)

    @property
    def victims(self) -> set[ClientId]:
        """Who may be harmed before it is heard: the chosen, from a certain phase on."""
        phases = [step.phase for step in self.round.backend.server_steps]
        in_danger = not self.over and phases.index(self.server.phase) >= phases.index(self.harm_from)
        return self.chosen if in_danger else set()

    def harmed(self) -> st.SearchStrategy[ClientId]:
        """Who is harmed: a victim, or where none is left someone whose answer of this phase was heard."""
        asked = set(self.outbox)
        return st.sampled_from(sorted((self.victims & asked) - self.heard or self.heard & asked))

    def true_answer(self, client: ClientId) -> bytes:
        """Let a client hear the server, if it has not; an honest server's message is never refused."""
        if client not in self.said:
            self.said[client] = self.round.clients[client].receive(self.outbox[client])
        return self.said[client]

    def deliver(self, client: ClientId, frame: bytes) -> bool:
        """Deliver an answer; whether it was accepted, which only the first one of a phase may be."""
        accepted = self.server.absorb(client, frame)
        assert not (accepted and (client in self.heard or client not in self.outbox))
        self.heard.add(client)
        if not accepted:
            self.faults.append(client)
            return False
        self.taken.add(client)
        if kind(frame) == "masking.masked":
            self.survivors.add(client)
            self.total += self.point.encode(self.round.updates[client], InsecureEntropy(0))
        return True

    def must_be_refused(self, client: ClientId, frame: bytes) -> None:
        assert not self.deliver(client, frame)

    @going_on
    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        """Once it is accepted; a second time, or out of turn, it is a fault."""
        client = data.draw(self.clients())
        in_turn = client in self.outbox and client not in self.heard
        frame = self.true_answer(client) if client in self.outbox else encode(Ack(b""))
        assert self.deliver(client, frame) == in_turn

    @going_on
    @rule(data=st.data())
    def the_others_answer_and_it_closes(self, data: st.DataObject) -> None:
        """All but some of the victims, for whom another round's answers come; or few rounds would end."""
        silent = data.draw(st.sets(st.sampled_from(sorted(self.victims)))) if self.victims else set()
        for client in sorted(silent & set(self.outbox)):
            if data.draw(st.booleans()):
                self.must_be_refused(client, self.elsewhere(client, round=1))
        self.finish_phase(data.draw(st.permutations(sorted(set(self.outbox) - self.heard - silent))))

    def finish_phase(self, clients: Iterable[ClientId]) -> None:
        for client in clients:
            assert self.deliver(client, self.true_answer(client))
        self.closes()

    def teardown(self) -> None:
        while not getattr(self, "over", True):
            self.finish_phase(sorted(set(self.outbox) - self.heard))

    @going_on
    @rule(data=st.data())
    def hears_without_being_heard(self, data: st.DataObject) -> None:
        client = data.draw(self.clients())
        if client in self.outbox:
            self.true_answer(client)

    @going_on
    @rule(data=st.data())
    def is_asked_again(self, data: st.DataObject) -> None:
        """A client says each thing once: asked again it refuses, and stays as it was."""
        client = data.draw(self.clients())
        requests = [*self.past_requests[client], *([self.outbox[client]] if client in self.said else [])]
        if requests:
            self.refuses(client, data.draw(st.sampled_from(requests)))

    @going_on
    @rule(data=st.data(), garbage=st.binary(max_size=60))
    def is_asked_nonsense(self, data: st.DataObject, garbage: bytes) -> None:
        client = data.draw(self.clients())
        other = data.draw(st.sampled_from([encode(Ack(b"")), encode(Begin(self.round.spec, b"x")), garbage]))  # type: ignore[arg-type]
        if kind_of(other) != "begin" or self.round.clients[client].phase != "advertise":
            self.refuses(client, other)

    def refuses(self, client: ClientId, frame: bytes) -> None:
        before = self.round.clients[client].save()
        with pytest.raises(RemoteProtocolError):
            self.round.clients[client].receive(frame)
        assert self.round.clients[client].save() == before

    @going_on
    @rule(data=st.data())
    def is_restarted(self, data: st.DataObject) -> None:
        client = data.draw(self.clients())
        saved = self.round.clients[client].save()
        restored = ClientSession.restore(self.round.backend, saved, InsecureEntropy(2000 + client))
        assert restored.save() == saved
        self.round.clients[client] = restored

    @harmful
    @rule(data=st.data(), garbage=st.binary(max_size=200))
    def sends_garbage(self, data: st.DataObject, garbage: bytes) -> None:
        self.must_be_refused(data.draw(self.harmed()), garbage)

    @harmful
    @rule(data=st.data())
    def is_cut_short_or_run_on(self, data: st.DataObject) -> None:
        client = data.draw(self.harmed())
        frame = self.true_answer(client)
        end = data.draw(st.integers(0, len(frame) - 1))
        self.must_be_refused(client, data.draw(st.sampled_from([frame[:end], frame + frame[end:]])))

    @harmful
    @rule(data=st.data(), flip=st.integers(1, 255))
    def is_mutated(self, data: st.DataObject, flip: int) -> None:
        """What is signed is refused; a share and a masked number cannot be seen through."""
        client = data.draw(self.harmed())
        frame = bytearray(self.true_answer(client))
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= flip
        if not self.deliver(client, bytes(frame)):
            return
        what = kind(bytes(frame))
        assert what in ("masking.shares", "masking.masked", "masking.reveal")
        if what == "masking.masked":
            self.total += self.lanes(bytes(frame)) - self.lanes(self.said[client])
        self.spoilt.add(client)

    @precondition(lambda self: not self.over and self.server.phase in ("share", "mask") and self.fresh())
    @rule(data=st.data(), flip=st.integers(1, 255))
    def entrusts_what_is_spoilt(self, data: st.DataObject, flip: int) -> None:
        """A box that does not open, a digest that does not fit: they cost their owner a holder, no more."""
        client = data.draw(st.sampled_from(self.fresh()))
        frame = self.true_answer(client)
        answer: Any = decode(frame, Shares if self.server.phase == "share" else Masked)
        entrusted = list(answer.entrusted)
        at, field = (
            data.draw(st.integers(0, len(entrusted) - 1)),
            data.draw(st.sampled_from(["box", "digest"])),
        )
        true = getattr(entrusted[at], field)
        entrusted[at] = msgspec.structs.replace(entrusted[at], **{field: bytes([true[0] ^ flip]) + true[1:]})
        self.spoilt.add(client)
        assert self.deliver(client, encode(msgspec.structs.replace(answer, entrusted=tuple(entrusted))))

    def fresh(self) -> list[ClientId]:
        """Give the chosen that have not been heard in this phase, whether in danger yet or not."""
        return sorted((self.chosen & set(self.outbox)) - self.heard)

    def lanes(self, frame: bytes) -> NDArray[np.uint32]:
        return unpack(decode(frame, Masked).bulk, self.point.modulus_bits, self.point.lanes)

    @harmful
    @rule(data=st.data())
    def sends_what_another_client_sent(self, data: st.DataObject) -> None:
        """Each answer is signed by its client, or meant for all but its client.

        Only a reveal may be taken, where the other has no share of this client's: then none of it is used.
        """
        client, other = data.draw(self.harmed()), data.draw(st.sampled_from(sorted(self.outbox)))
        frame = self.true_answer(other)
        if client == other:
            return
        if self.deliver(client, frame):
            assert kind(frame) == "masking.reveal"
            self.spoilt.add(client)

    @harmful
    @rule(data=st.data())
    def is_replayed(self, data: st.DataObject) -> None:
        """From an earlier phase, whoever said it."""
        if self.past:
            self.must_be_refused(data.draw(self.harmed()), data.draw(st.sampled_from(self.past))[1])

    @harmful
    @rule(data=st.data(), change=st.sampled_from([{"round": 1}, {"run": b"s" * 16}, {"model": b"m" * 32}]))
    def is_replayed_from_elsewhere(self, data: st.DataObject, change: dict[str, object]) -> None:
        client = data.draw(self.harmed())
        self.must_be_refused(client, self.elsewhere(client, **change))

    def elsewhere(self, client: ClientId, **change: object) -> bytes:
        """Give what a client says in another round: the masked summand, else its advert."""
        spec = msgspec.structs.replace(self.round.spec, **change)
        if self.server.phase == "mask":
            answer = decode(self.true_answer(client), Masked)
            return encode(msgspec.structs.replace(answer, context=spec.context()))
        return self.round.session(client, spec).receive(encode(Begin(spec, memoryview(b""))))

    @harmful
    @rule(data=st.data())
    def is_too_large(self, data: st.DataObject) -> None:
        message: dict[str, Message] = {
            "mask": Masked(self.round.spec.context(), (), memoryview(bytes(100_000))),
            "consent": Consent(bytes(100_000)),
            "reveal": Reveal(((1, bytes(100_000)),), ()),
        }
        client = data.draw(self.harmed())
        first = client not in self.heard
        self.must_be_refused(client, encode(message.get(self.server.phase, Consent(bytes(100_000)))))
        assert not first or "TooLarge" in self.server.faults[-1][1]

    @going_on
    @rule(data=st.data(), client=st.sampled_from(OUTSIDERS))
    def comes_from_outside_the_roster(self, data: st.DataObject, client: ClientId) -> None:
        frame = self.true_answer(data.draw(st.sampled_from(sorted(self.outbox))))
        self.must_be_refused(client, frame)

    @precondition(lambda self: not self.over and self.heard >= set(self.outbox) - self.victims)
    @rule()
    def closes_without_the_victims(self) -> None:
        self.closes()

    def closes(self) -> None:
        phase, asked = self.server.phase, dict(self.outbox)
        self.lost.update(dict.fromkeys(set(asked) - self.taken, phase))
        enough = len(self.taken) >= self.round.spec.threshold
        try:
            outbox = self.server.close()
        except TooFewClients:
            self.over = True
            # With enough true answers a round goes on; only spoilt shares can be too few all the same.
            assert not enough or (phase == "reveal" and self.spoilt)
            assert self.server.sealed is None
            return
        assert enough
        assert self.server.dropped == self.lost
        for client, answer in self.said.items():
            self.past.append((client, answer))
            self.past_requests[client].append(asked[client])
        if outbox:
            assert phase != "reveal"
            assert set(outbox) == self.taken
            return self.asks(outbox)
        self.over = True
        self.has_the_sum()

    def has_the_sum(self) -> None:
        sealed = self.server.sealed
        assert sealed is not None
        assert set(sealed.survivors) == self.survivors
        assert bytes(sealed.bulk) == pack(self.total, self.point.modulus_bits)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def goes_on_after_the_end(self, data: st.DataObject) -> None:
        assert self.server.phase == "done"
        with pytest.raises(LocalProtocolError):
            self.server.absorb(data.draw(self.clients()), encode(Sealed((1, 2), memoryview(b""))))
        with pytest.raises(LocalProtocolError):
            self.server.close()

    @invariant()
    def faults_name_the_sender(self) -> None:
        if hasattr(self, "faults"):
            assert [client for client, _ in self.server.faults] == self.faults

    @invariant()
    def no_client_is_opened_twice(self) -> None:
        """Of nobody does the server see shares of both the self mask and the key."""
        if hasattr(self, "faults"):
            assert not set(self.server.state.seeds) & set(self.server.state.keys)
            assert set(self.server.state.seeds) <= self.survivors
            assert not set(self.server.state.keys) & self.survivors


def kind_of(frame: bytes) -> str:
    try:
        return kind(frame)
    except RemoteProtocolError:
        return ""


class HostileNetworkPassive(HostileNetwork):
    name = "masking-passive"


TestHostileNetwork = HostileNetwork.TestCase
TestHostileNetworkPassive = HostileNetworkPassive.TestCase
TestHostileNetwork.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestHostileNetworkPassive.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
