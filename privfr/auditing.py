"""The generators that a run has trained, and the audit of each: a run knows who was learnt from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privfr.directory import RunDirectory
from privfr.errors import InputError
from privfr.experiment import Experiment
from privfr.faces.datasets import Faces
from privfr.faces.partition import Split
from privfr.faces.recogniser import Recogniser
from privfr.faces.sources import load_faces
from privfr.imposters.audit import Audit, audit
from privfr.imposters.gan import Generator
from privfr.imposters.pool import made_by

__all__ = ["RunAudit", "generators_in"]


def generators_in(place: str | Path) -> dict[str, Path]:
    """Find the generators of a run directory, or the file that is one, by name: "shared", or "client 3".

    Raises `InputError` for a run that has trained none.
    """
    place = Path(place)
    if not place.is_dir():
        return {"shared": place}
    directory = RunDirectory(place)
    report = directory.report()  # says so where this is no run at all
    wanted = directory.experiment().imposters
    if wanted.model:
        raise InputError(f"{place}: took its imposters from {wanted.model}; give that file")
    if not wanted.trained:
        raise InputError(
            f'{place}: trains no generator, as imposters.source is "{wanted.source}"; give a run with '
            "federated, public or device"
        )
    if not (report.imposters and report.imposters.finished):
        raise InputError(
            f"{place}: has no finished generator yet; go on with `privfr imposters train --resume {place}`"
        )
    if wanted.source != "device":
        return {"shared": directory.model("generator")}
    own = sorted(place.glob("clients/*/generator.safetensors"))
    return {f"client {int(path.parent.name)}": path for path in own}


@dataclass(frozen=True)
class RunAudit:
    """What an audit of a run's generators is made with.

    judge: measures likeness; `judged_by` says in words which one.  blind: looks for copies, and has learnt
    from nobody that a generator has.  heldout: people whom no client and no public training had.
    """

    experiment: Experiment
    split: Split
    faces: Faces
    generators: dict[str, Path]
    judge: Recogniser
    judged_by: str
    blind: Recogniser

    @classmethod
    def of(cls, place: str | Path, data: str | None = None, model: str | Path | None = None) -> RunAudit:
        """Collect it from a run directory. data: where its pictures lie now.  model: another judge.

        Raises `InputError` for a run without a generator, other data, or a judge that does not fit.
        """
        generators, directory = generators_in(place), RunDirectory(place)
        experiment, parts = directory.experiment(), directory.split()
        wanted = experiment.data
        faces = load_faces(data or wanted.source, wanted.size, min_images=wanted.min_images)
        judge, judged_by, blind = _judges(directory, experiment, model)
        return cls(experiment, parts, faces, generators, judge, judged_by, blind)

    @property
    def heldout(self) -> Faces:
        """Pictures of people that nothing was trained on: those of the test, and those left over."""
        taken = {*self.split.public, *(name for share in self.split.clients for name in share.names)}
        return self.faces.of([name for name in self.faces.names if name not in taken])

    def audits(self, count: int, seed: int) -> Iterator[tuple[str, Audit]]:
        """Audit each generator, by name, by so many imposters."""
        heldout, clients = self.heldout, range(len(self.split.clients))
        for name, path in self.generators.items():
            made = made_by(Generator.load(path), count, seed, self.experiment.data.size)
            held = clients if name == "shared" else [int(name.removeprefix("client "))]
            owners = [self.split.faces_of(self.faces, client) for client in held]
            yield name, audit(
                made, self._learnt_from(held), heldout, self.judge.embed, owners,
                blind=self.blind.embed, seed=seed,
            )  # fmt: skip

    def _learnt_from(self, clients: range | list[int]) -> Faces:
        if self.experiment.imposters.source == "public":
            return self.split.public_faces(self.faces)
        files = {file for client in clients for file in self.split.clients[client].files}
        return self.faces.select(np.flatnonzero([file in files for file in self.faces.files]))


_UNTRAINED = "an untrained network, which tells people apart poorly; better give --model"
_OWN = "the run's own model, which has learnt to tell imposters from people; better give --model"


def _judges(
    directory: RunDirectory, experiment: Experiment, model: str | Path | None
) -> tuple[Recogniser, str, Recogniser]:
    """Choose who judges likeness, in words, too, and who looks for copies."""
    wanted = experiment.model
    untrained = Recogniser.new(wanted.backbone, experiment.data.size, wanted.dim, experiment.seed)
    if given := model or experiment.pretraining.model:
        judge = Recogniser.load(given)
        return judge, str(given), judge
    if (pretrained := directory.model("pretrained")).exists():
        judge = Recogniser.load(pretrained)
        blind = untrained if experiment.imposters.source == "public" else judge
        return judge, "the run's pretrained model", blind
    if (federated := directory.model("federated")).exists():
        return Recogniser.load(federated), _OWN, untrained
    return untrained, _UNTRAINED, untrained
