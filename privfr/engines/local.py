"""The in-process engine: every client on this machine, in worker threads where that is faster.

Threads, not processes: training and cryptography release the interpreter lock, frames and the model
need not be copied, and a kill leaves no orphans. Answers come back in the outbox's order whatever
the workers do, and each client computes with a fixed number of threads of its own, so that a
parallel run equals a serial one to the bit.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from privfr.errors import InputError, RemoteProtocolError
from privfr.federation import Member
from privfr.protocol import Begin, ClientId
from privfr.wire import Frame, decode, kind

__all__ = ["Dropouts", "LocalEngine"]


@dataclass(frozen=True)
class Dropouts:
    """Which frames get lost, decided by a seed alone.

    rate: share of frames, in [0, 1).  phases: kinds of the server's messages it happens to ("begin",
    "result", ...); empty for all. Of those lost, half never reach the client and half lose its answer.
    """

    rate: float
    seed: int = 0
    phases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise InputError(f"dropout {self.rate}: give a share of at least 0 and below 1")

    def lost(self, round: int, phase: str, client: ClientId) -> str:
        """Return "request", "answer", or "" where nothing is lost."""
        if self.phases and phase not in self.phases:
            return ""
        draw = hashlib.blake2b(f"{self.seed} {round} {phase} {client}".encode(), digest_size=9).digest()
        if int.from_bytes(draw[:8], "big") >= self.rate * 2**64:
            return ""
        return "request" if draw[8] & 1 else "answer"


@dataclass
class LocalEngine:
    """Carries frames to members in this process; `exchange` is the engine.

    workers: threads that serve clients at once.  stop: called when an exchange is broken off, to tell members
    at work to give up.  seconds: CPU seconds spent inside members, all threads together.  refusals: why a
    member kept silent.
    """

    members: Mapping[ClientId, Member]
    workers: int = 1
    dropouts: Dropouts = Dropouts(0.0)
    stop: Callable[[], None] = lambda: None
    seconds: float = 0.0
    refusals: list[tuple[ClientId, str]] = field(default_factory=list)
    _round: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def exchange(self, outbox: Mapping[ClientId, bytes]) -> Iterator[tuple[ClientId, Frame]]:
        """Deliver each frame; yields the answers in the outbox's order as they become ready."""
        serve = self._in_turn if self.workers == 1 else self._in_parallel
        for client, answer in serve(outbox):
            if answer is not None:
                yield client, answer

    def _in_turn(self, outbox: Mapping[ClientId, bytes]) -> Iterator[tuple[ClientId, Frame | None]]:
        for client, frame in outbox.items():
            yield client, self._serve(client, frame)

    def _in_parallel(self, outbox: Mapping[ClientId, bytes]) -> Iterator[tuple[ClientId, Frame | None]]:
        waiting: deque[tuple[ClientId, Future[Frame | None]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="client")
        try:
            for client, frame in outbox.items():
                waiting.append((client, pool.submit(self._serve, client, frame)))
                # A bounded window, so that a slow server does not pile up answers in memory.
                if len(waiting) > 2 * self.workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BaseException:
            self.stop()  # before the pool is waited for, or a Ctrl-C would wait for whole trainings
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self, client: ClientId, frame: bytes) -> Frame | None:
        phase = kind(frame)
        if phase == "begin":
            self._round = decode(frame, Begin).spec.round
        lost = self.dropouts.lost(self._round, phase, client)
        if lost == "request":
            return None
        started = time.thread_time()
        try:
            answer = self.members[client].receive(frame)
        except RemoteProtocolError as error:
            self.refusals.append((client, f"{phase}: {type(error).__name__}: {error}"))
            return None
        finally:
            with self._lock:
                self.seconds += time.thread_time() - started
        return None if lost else answer
