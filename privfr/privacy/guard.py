"""A learner that keeps to a privacy budget, and what a run has to say of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from privfr.averaging import AdaptiveClip
from privfr.errors import BudgetSpent
from privfr.experiment import Experiment, Privacy
from privfr.federation import Learner
from privfr.privacy.accounting import Accountant, Steps, epsilon_of_rho, epsilon_of_steps
from privfr.privacy.client import ClientLevel
from privfr.privacy.ledger import Entry, Ledger
from privfr.protocol import Backend
from privfr.vector import Update, Vector

__all__ = ["ExampleBudget", "Guarantee", "Guarded", "guarantees"]


class Guarantee(msgspec.Struct, kw_only=True):
    """What one level promises in a report.

    epsilon: of the run, the worst of the clients', whose pictures no two share; infinite for a level without
    noise. clients: of each, in order.  budget: 0 for none.  noise: standard deviation, in clips, the least of
    the clients'.  clip: of the first round.  clip_share: of each round's rho that learning the clip takes, 0
    for a fixed one.  last_clip: where the rounds have brought it, None for a fixed one.  adjacency: which two
    worlds cannot be told apart.  against: by whom.  not_covered: what the epsilon says nothing of.
    """

    level: str
    epsilon: float
    clients: tuple[float, ...]
    budget: float
    delta: float
    noise: float
    clip: float
    accountant: str
    adjacency: str
    against: str
    not_covered: tuple[str, ...]
    clip_share: float = 0.0
    last_clip: float | None = None


@dataclass(frozen=True)
class ExampleBudget:
    """The example level of one client. steps: of one round, as Opacus counts them.  epsilon: infinite for
    none.
    """

    steps: Steps
    epsilon: float
    delta: float
    accountant: Accountant

    def spent(self, history: Iterable[Steps]) -> float:
        """Give the epsilon of these steps."""
        return epsilon_of_steps(history, self.delta, self.accountant)

    def affords(self, history: Iterable[Steps]) -> bool:
        """Tell whether one more round fits the budget after these steps."""
        return self.spent([*history, self.steps]) <= self.epsilon * (1 + 1e-9)


@dataclass
class Guarded:
    """Books what a round may cost before it trains, and refuses what the budget does not pay for.

    What differs between its updates beside the vector is left out, or it would not be covered: metrics, and
    at the client level the weight. clip: of the client level, where it is learnt; what is sent then is as
    `AdaptiveClip` says, and so one number longer.
    """

    learner: Learner
    ledger: Ledger
    client: ClientLevel | None = None
    example: ExampleBudget | None = None
    clip: AdaptiveClip | None = None

    @property
    def affords(self) -> bool:
        """Whether the budget pays for one more round."""
        return (self.client is None or self.client.affords(self.ledger.rho)) and (
            self.example is None or self.example.affords(self.ledger.steps)
        )

    def learn(self, model: Vector, round: int) -> Update:
        """Train as the learner does. Raises `BudgetSpent`, and `BadFrame` for a clip that cannot be."""
        if not self.affords:
            raise BudgetSpent("this client's privacy budget does not pay for another round")
        weights = model
        if self.clip:
            weights = model[:-1]
            self.clip.at(model[-1])  # refuses before anything is booked
        rho = self.client.most if self.client else 0.0
        self.ledger.book(Entry(round, rho, self.example.steps if self.example else None))
        update = self.learner.learn(weights, round)
        vector = update.vector
        if self.client and not np.isfinite(vector).all():
            vector = np.zeros_like(vector)  # who takes part is public, and must not depend on pictures
        if self.clip:
            vector = self.clip.sent(vector, model[-1])
        return Update(vector, 1.0 if self.client else update.weight, {})

    def settle(self, round: int, survivors: int) -> None:
        """Take note of how many clients' noise a round's sum really has."""
        if self.client:
            self.ledger.settle(round, self.client.rho(survivors))

    def save(self) -> bytes:
        """What the learner keeps from round to round."""
        return self.learner.save()

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave."""
        self.learner.restore(saved)


def guarantees(
    guarded: Sequence[Guarded], experiment: Experiment, backend: Backend, last_clip: float | None = None
) -> list[Guarantee]:
    """Say what the levels of a run promise at this moment. last_clip: where a learnt one is now."""
    found, privacy = [], experiment.privacy
    if level := guarded[0].client:
        rhos = [each.ledger.rho for each in guarded]
        epsilons = tuple(epsilon_of_rho(rho, level.delta) for rho in rhos)
        client = _guarantee("client", epsilons, privacy, level.multiplier, privacy.client_clip, "zCDP",
                            _CLIENT | {"against": _against(level, backend)}, backend)  # fmt: skip
        client.clip_share, client.last_clip = privacy.clip_share, last_clip
        found.append(client)
    if guarded[0].example:
        budgets = [(each.example, each.ledger) for each in guarded if each.example]
        epsilons = tuple(budget.spent(ledger.steps) for budget, ledger in budgets)
        noise = min(budget.steps[0] for budget, _ in budgets)
        found.append(_guarantee("example", epsilons, privacy, noise, privacy.example_clip, privacy.accountant,
                                _EXAMPLE, backend))  # fmt: skip
        if level:
            found[0].not_covered += (
                "how many pictures a client has, of which its example level's epsilon tells",
            )
    if experiment.baselines:
        for each in found:
            each.not_covered += ("the baselines, which are trained and reported without noise",)
    return found


_BOTH = (
    "how long a client takes, which tells of how many pictures it has",
    "people whose pictures the start was trained on, or the results are measured on",
    "other runs over the same people, whose epsilons add up",
    "settings that were chosen by looking at results for the same people",
)
_CLIENT = {
    "adjacency": "one client's updates replaced by zeros; who takes part is public",
    "not_covered": (
        "who takes part, and when",
        "a person who is on several clients",
        *_BOTH,
    ),
}
_EXAMPLE = {
    "adjacency": "one picture of one client added or removed",
    "against": "everybody but the client itself",
    "not_covered": (
        "how many pictures and how many identities a client has",
        "all pictures of a person together, which the client level is for",
        *_BOTH,
    ),
}


def _against(level: ClientLevel, backend: Backend) -> str:
    if not level.noise.central:
        if backend.caveat:
            return f"the server, and up to {level.corrupt} clients together, but not {backend.caveat}"
        return f"everybody, the server included, while no more than {level.corrupt} clients collude with it"
    if backend.server_learns == "updates":
        return "the other clients and whoever is given the model, but not the server, which sees each update"
    return "everybody but the aggregator, which sees each update"


def _guarantee(
    level: str, epsilons: tuple[float, ...], privacy: Privacy, noise: float, clip: float, accountant: str,
    words: dict[str, Any], backend: Backend,
) -> Guarantee:  # fmt: skip
    caveats = (backend.caveat,) if backend.caveat and level == "client" else ()
    return Guarantee(
        level=level, epsilon=max(epsilons), clients=epsilons, budget=privacy.epsilon, delta=privacy.delta,
        noise=noise, clip=clip, accountant=accountant, adjacency=words["adjacency"], against=words["against"],
        not_covered=(*caveats, *words["not_covered"]),
    )  # fmt: skip
