"""The privacy budgets of all clients of a run: what their learners may still do, and what was spent."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from privfr.averaging import FedAvg
from privfr.directory import RunDirectory
from privfr.errors import InputError
from privfr.experiment import Experiment
from privfr.federation import RoundReport
from privfr.plan import client_level, example_budget
from privfr.privacy.example import ExampleLevel
from privfr.privacy.guard import Guarantee, Guarded, guarantees
from privfr.privacy.ledger import Ledger
from privfr.protocol import Backend
from privfr.trainer import Learner
from privfr.vector import Vector

__all__ = ["Budgets"]


@dataclass
class Budgets:
    """Budgets that every stage of a run draws on, and the learners of the present one.

    guarded: learners, each under its client's budget, in order; empty for a run without privacy.
    """

    experiment: Experiment
    backend: Backend
    place: RunDirectory
    guarded: list[Guarded] = field(default_factory=list)

    def guard(
        self, learners: Sequence[Learner], rule: FedAvg, generator: bool
    ) -> Sequence[Learner] | Sequence[Guarded]:
        """Put the learners of a stage under their budgets, if there are any.

        generator: whether what they train is a generator.
        """
        if self.experiment.privacy.level == "none":
            return learners
        self.guarded = [
            self._guarded(learner, client, rule, generator) for client, learner in enumerate(learners)
        ]
        return self.guarded

    def _guarded(self, learner: Learner, client: int, rule: FedAvg, generator: bool) -> Guarded:
        privacy, budget = self.experiment.privacy, None
        if privacy.example:
            budget = example_budget(self.experiment, len(learner.faces), generator)
            learner.example = ExampleLevel(privacy.example_clip, budget.steps[0])
            learner.entropy = secrets.token_bytes
        level = client_level(self.experiment)
        return Guarded(learner, Ledger(self._ledger(client)), level, budget, rule.clip)

    def shortage(self, threshold: int) -> str:
        """Say that too few clients can pay for another round, or nothing where enough can."""
        able = sum(each.affords for each in self.guarded)
        if not self.guarded or able >= threshold:
            return ""
        return f"the privacy budget of {len(self.guarded) - able} of {len(self.guarded)} clients does not pay"

    def settle(self, outcome: RoundReport) -> None:
        """Book what a round has really cost, now that its survivors are known."""
        for each in self.guarded:
            if not outcome.failed:
                each.settle(outcome.round, outcome.survivors)

    def stated(self, rule: FedAvg, model: Vector | None = None) -> list[Guarantee]:
        """Say what the ledgers say: also of rounds that were broken off. model: of the last round."""
        if not self.guarded:
            return []
        last_clip = None
        if rule.clip and model is not None:
            last_clip = rule.clip.at(model[model.size // rule.copies - 1])
        return guarantees(self.guarded, self.experiment, self.backend, last_clip)

    def compare(self, stated: Sequence[Guarantee], rule: FedAvg) -> None:
        """Refuse ledgers that know of less than a report does: a file has gone, or has lost lines."""
        if not stated:
            return
        for then, now in zip(stated, self.stated(rule), strict=True):
            for client, (before, after) in enumerate(zip(then.clients, now.clients, strict=True)):
                if after < before * (1 - 1e-9):
                    raise InputError(
                        f"{self._ledger(client)}: knows of epsilon {after:.2f} at the {now.level} level, and "
                        f"report.json of {before:.2f}; put the file back: what was spent stays spent"
                    )

    def _ledger(self, client: int) -> Path:
        return self.place.client(client) / "privacy.jsonl"
