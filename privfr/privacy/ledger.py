"""What a client has spent of its privacy, in a file that is written before the spending.

One JSON line for each round that a client begins, on disk before it trains, so that no crash can make spent
budget unspent: a round that is begun again after one is another line. What is booked is the most that the
round can cost; a later line settles it at what it did cost, once that is known.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from privfr.errors import InputError
from privfr.privacy.accounting import Steps
from privfr.storage import append_line

__all__ = ["Entry", "Ledger"]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. rho: of the client level, zCDP.  steps: of the example level, as Opacus counts.  settles:
    whether the rho takes the place of the one before it, of the same round.
    """

    round: int
    rho: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    steps: Steps | None = None
    settles: bool = False


class Ledger:
    """The lines of one client's file.

    Raises `InputError` for a file that cannot be read as such: what was spent must not be guessed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = self._read()
        self._begun: int | None = None  # round that was booked here, not before a crash, and is not settled

    @property
    def rho(self) -> float:
        """The zCDP of all rounds together."""
        total = last = 0.0
        for entry in self._entries:
            total += entry.rho - (last if entry.settles else 0.0)
            last = entry.rho
        return total

    @property
    def steps(self) -> list[Steps]:
        """The example level's steps of all rounds."""
        return [entry.steps for entry in self._entries if entry.steps]

    def book(self, entry: Entry) -> None:
        """Write a round down. Raises `InputError` where it cannot be written; then nothing may be spent."""
        if entry.settles:
            raise ValueError("settle what is booked")
        self._append(entry)
        self._begun = entry.round

    def settle(self, round: int, rho: float) -> None:
        """Lower the last line's rho, if it is this round's and was booked by this object: never raise one,
        and never twice. Of a round that a crash broke off nobody knows the survivors any more.
        """
        if round == self._begun and rho < self._entries[-1].rho:
            self._append(Entry(round, rho, settles=True))
            self._begun = None

    def _mended(self, torn: bytes) -> list[bytes]:
        """Give a last line without an end its end, if it lacks nothing else: it may have been spent, and an
        editor have cut it. Of another, a kill broke off the writing, and nothing was spent yet.
        """
        try:
            msgspec.json.decode(torn, type=Entry)
        except msgspec.DecodeError:
            os.truncate(self._path, self._path.stat().st_size - len(torn))
            return []
        append_line(self._path, b"")
        return [torn]

    def _append(self, entry: Entry) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._path, msgspec.json.encode(entry))
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        self._entries.append(entry)

    def _read(self) -> list[Entry]:
        try:
            lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
            if torn := lines.pop():
                lines += self._mended(torn)
            return [msgspec.json.decode(line, type=Entry) for line in lines]
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(
                f"{self._path}: damaged ({error}); what was spent is unknown, so this run cannot go on"
            ) from None
