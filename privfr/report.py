"""What a run has to show: the report, and the events on the way to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
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
    "Generated",
    "Measured",
    "Notice",
    "Observer",
    "Own",
    "Profile",
    "Report",
    "RoundEnded",
    "Spread",
    "Stage",
    "collapse",
    "collapsing",
]


class Spread(msgspec.Struct, frozen=True):
    """One equal error rate for each client, and what they amount to."""

    eer: tuple[float, ...]
    mean: float
    spread: float
    best: float
    worst: float

    @classmethod
    def of(cls, eer: Sequence[float]) -> Spread:
        """Sum up."""
        return cls(tuple(eer), statistics.fmean(eer), statistics.pstdev(eer), min(eer), max(eer))


class Own(msgspec.Struct):
    """How well each client's own people are told from people of the test, whom nobody trained on.

    By each model as a device would use it: pictures held out against those trained on. start: the model that
    federation began with.  individual: each client's own model.
    """

    start: Spread
    federated: Spread
    individual: Spread | None = None


class Generated(msgspec.Struct):
    """How a generator of imposters was trained. parameters: of the generator.  rounds: of a federated one."""

    source: str
    parameters: int
    rounds: list[RoundReport] = []
    finished: bool = False


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
    likeness: mean cosine of test pictures of different people, at the start and after each round.
    collapsed: the first round after which two had left a network that tells nobody apart, 0 for none.
    alike: share of the imposters drawn that were left out as too like the client's people.  own: where
    pictures are held out.  overhead: see `Profile`.  finished: False while rounds or baselines are missing.
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
    likeness: list[float] = []
    collapsed: int = 0
    imposters: Generated | None = None
    alike: float | None = None
    own: Own | None = None
    final: Verification | None = None
    individual: Spread | None = None
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


# Mean cosine of different people that no useful network comes near.
COLLAPSE = 0.9


def collapsing(likeness: Sequence[float]) -> bool:
    """Tell whether two rounds in a row have left a network that tells nobody apart, the last no better.

    likeness: at the start and after each round. An untrained network gives everybody much the same embedding,
    too, and so may its first round; but then training takes that down.
    """
    return len(likeness) > 2 and COLLAPSE < likeness[-2] <= likeness[-1]


def collapse(report: Report) -> str:
    """Say that the model has collapsed, or nothing, as where it has got over it."""
    if not report.collapsed or report.likeness[-1] <= COLLAPSE:
        return ""
    after, now = report.collapsed, report.likeness[-1]
    since = f", and now have {now:.3f}" if after + 1 < len(report.likeness) else ""
    return (
        f"collapse: after round {after} faces of different people had a mean cosine of "
        f"{report.likeness[after]:.3f}{since}; give clients something to tell their "
        "people from: --imposters, or more people a client"
    )


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
