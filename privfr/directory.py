"""The run directory: which file holds what, and how each is written and read.

RUN/experiment.toml  split.json  report.json  log.jsonl
RUN/models/NAME.safetensors      untrained, pretrained, federated, centralised; round-N until N + 1 is there
RUN/clients/NNNN/...             what would stay on that device: private tensors, its model of its own
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from privfr.errors import InputError
from privfr.experiment import Experiment, load_experiment
from privfr.faces.partition import Split
from privfr.faces.recogniser import Recogniser
from privfr.report import Event, Report
from privfr.storage import TEMPORARY, append_line, write_atomic
from privfr.vector import Vector

__all__ = ["RunDirectory", "recogniser_in"]


class RunDirectory:
    """Paths and files of one run. Every file is written whole or not at all."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def claim(self) -> None:
        """Make the directory. Raises `InputError` if it is in use or cannot be written.

        What a start that was killed before it wrote its report has left behind is not in the way.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = {path.name for path in self.root.iterdir() if not path.name.endswith(TEMPORARY)}
        except OSError as error:
            raise InputError(f"{self.root}: cannot be made ({error.strerror}); give another place") from None
        if held - {"experiment.toml", "split.json"}:
            hint = f", or go on with --resume {self.root}" if "report.json" in held else ""
            raise InputError(f"{self.root}: not an empty folder; give a new one{hint}")
        if not os.access(self.root, os.W_OK):
            raise InputError(f"{self.root}: cannot be written to; give another place")

    def forget(self, stage: str, round: int) -> None:
        """Remove the checkpoints of a stage's round that a later one has replaced."""
        own = self.root.glob(f"clients/*/{_checkpoint(stage, round)}.safetensors")
        for left in (self.round(stage, round), *own):
            left.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a kill left half written; no reader ever looks at it."""
        for left in self.root.rglob(f".*{TEMPORARY}"):
            left.unlink(missing_ok=True)

    def model(self, name: str) -> Path:
        """Where the model of this name lies. The directory is the experimenter's: a server may know less."""
        return self.root / "models" / f"{name}.safetensors"

    def round(self, stage: str, round: int) -> Path:
        """Where a federated stage stands after so many rounds."""
        return self.model(_checkpoint(stage, round))

    def private(self, stage: str, client: int, round: int) -> Path:
        """What stays on a client's device after so many rounds of a stage."""
        return self.client(client) / f"{_checkpoint(stage, round)}.safetensors"

    def others(self) -> dict[str, Path]:
        """Models of this run beside the federated one, by name: baselines, and each client's own."""
        names = ("untrained", "pretrained", "centralised")
        found = {name: self.model(name) for name in names if self.model(name).exists()}
        own = sorted(self.root.glob("clients/*/individual.safetensors"))
        return found | {f"individual {int(path.parent.name)}": path for path in own}

    def client(self, client: int) -> Path:
        """Folder of what would be on one client's device."""
        return self.root / "clients" / f"{client:04d}"

    def begin(self, experiment: Experiment, parts: Split, report: Report) -> None:
        """Write what a run starts with; the report last, since it says that a run is here."""
        write_atomic(self.root / "experiment.toml", experiment.to_toml().encode())
        parts.save(self.root / "split.json")
        self.commit(report)

    def commit(self, report: Report) -> None:
        """Make what the report says true: whatever it does not mention is done again on resume."""
        report.save(self.root / "report.json")

    def experiment(self) -> Experiment:
        """Read the experiment."""
        return load_experiment(self.root / "experiment.toml")

    def split(self) -> Split:
        """Read the split."""
        return Split.load(self.root / "split.json")

    def report(self) -> Report:
        """Read the report. Raises `InputError` where no run is."""
        return Report.load(self.root / "report.json")

    def log(self, event: Event) -> None:
        """Append one event to log.jsonl, with the seconds since 1970."""
        line = msgspec.json.encode({"time": round(time.time(), 3), **msgspec.to_builtins(event)})
        append_line(self.root / "log.jsonl", line)


def _checkpoint(stage: str, round: int) -> str:
    return f"{stage}-{round}"


class Checkpoint(msgspec.Struct, frozen=True):
    """Training between two rounds. model: float32 vector.  private, optimiser: tensors by name."""

    done: int
    model: Vector
    private: dict[str, Tensor] = {}
    optimiser: dict[str, Tensor] = {}

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically, readable by its owner alone."""
        tensors = {"model": torch.from_numpy(self.model)}
        tensors |= {f"private.{name}": tensor for name, tensor in self.private.items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimiser.items()}
        write_atomic(path, safetensors.torch.save(tensors, {"done": str(self.done)}), private=True)

    @classmethod
    def load(cls, path: Path) -> Checkpoint | None:
        """Read what `save` wrote, or None where nothing is. Raises `InputError` for a damaged file."""
        if not path.exists():
            return None
        groups: dict[str, dict[str, Tensor]] = {"private": {}, "optimiser": {}}
        try:
            with safetensors.safe_open(path, "pt") as file:
                done = int(file.metadata()["done"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model = tensors.pop("model").numpy()
            for name, tensor in tensors.items():
                group, _, rest = name.partition(".")
                groups[group][rest] = tensor
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it to repeat this part of the run") from None
        return cls(done, model, **groups)


def recogniser_in(place: str | Path, name: str = "federated") -> Recogniser:
    """Load a model from a run directory, or from one checkpoint file."""
    place = Path(place)
    try:
        is_file = not place.is_dir()
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}); give a run directory") from None
    if is_file:
        return Recogniser.load(place)
    directory = RunDirectory(place)
    path = directory.model(name)
    if not path.exists():
        directory.report()  # says so where this is no run at all
        raise InputError(
            f"{place}: has no finished {name} model yet; go on with `privfr run --resume {place}`"
        )
    return Recogniser.load(path)
