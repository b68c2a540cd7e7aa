"""What a run has to show: the report, and the events on the way to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from privfr.errors import InputError
from privfr.faces.verification import Verification
from privfr.federation import RoundReport
from privfr.privacy.guard import Guarantee
from privfr.storage import write_atomic

__all__ = [
    "ClientTrained",
    "Event",
    "Individual",
    "Measured",
    "Notice",
    "Observer",
    "Profile",
    "Report",
    "RoundEnded",
    "Stage",
]


class Individual(msgspec.Struct, frozen=True):
    """Every client alone: the equal error rate of each one's own model, and what they amount to."""

    eer: tuple[float, ...]
    mean: float
    spread: float
    best: float
    worst: float


class Profile(msgspec.Struct):
    """Where the rounds' seconds went, summed over workers.

    training: inside `Learner.learn`.  clients: the rest of what members did: checks, encoding, sealing,
    applying.  server: opening, absorbing, closing.
    """

    training: float = 0.0
    clients: float = 0.0
    server: float = 0.0

    @property
    def overhead(self) -> float:
        """Share of everything that was not training, in [0, 1]."""
        rest = self.clients + self.server
        return rest / (self.training + rest) if rest else 0.0


class Report(msgspec.Struct, kw_only=True):
    """One run. Verification figures are on test identities, whom nobody trained on.

    server_learns, trust, discloses: what leaves the devices, in words.  security: what follows from the
    backend's promise, by name.  parameters: numbers that are trained and shared.  frozen: those that are
    not.  start: commits to the network that federation began with, in hex.  eer: after each round.
    overhead: see `Profile`.  finished: False while rounds or baselines are missing.
    """

    run: str
    experiment: dict[str, Any]
    versions: dict[str, str]
    server_learns: str
    trust: str
    discloses: tuple[str, ...]
    security: dict[str, float] = {}
    privacy: list[Guarantee] = []
    stopped: str = ""
    people: dict[str, int]
    pictures: dict[str, int]
    parameters: int
    frozen: int = 0
    untrained: Verification | None = None
    pretrained: Verification | None = None
    start: str = ""
    rounds: list[RoundReport] = []
    eer: list[float] = []
    final: Verification | None = None
    individual: Individual | None = None
    centralised: Verification | None = None
    profile: Profile = msgspec.field(default_factory=Profile)
    overhead: float = 0.0
    seconds: float = 0.0
    finished: bool = False

    def to_json(self) -> bytes:
        """Encode as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    def save(self, path: Path) -> None:
        """Write as JSON, atomically. Raises `InputError` where it cannot be written."""
        write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote. Raises `InputError` for a missing or damaged file."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; give the directory of a `privfr run`") from None
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"{path}: not a report ({error})") from None


class Event(msgspec.Struct, frozen=True, tag_field="event"):
    """Base of what a run tells whoever watches."""


class Stage(Event, frozen=True, tag="stage"):
    """A stage has come to `done` of `total` steps. loss: mean of the last step, None before the first."""

    name: str
    done: int
    total: int
    loss: float | None = None


class ClientTrained(Event, frozen=True, tag="client"):
    """A client has done `done` of `total` local steps. Shown on this screen only, never written down."""

    client: str
    done: int
    total: int
    loss: float


class RoundEnded(Event, frozen=True, tag="round"):
    """A round is over. eer: of the new model on test identities."""

    report: RoundReport
    eer: float | None


class Notice(Event, frozen=True, tag="notice"):
    """Something the user should know, in a sentence."""

    text: str


class Measured(Event, frozen=True, tag="measured"):
    """A model was measured on test identities."""

    model: str
    eer: float
    auc: float


Observer = Callable[[Event], None]
