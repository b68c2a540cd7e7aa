"""privfr: federated face recognition in which nobody sees anybody else's face or model.

    experiment = privfr.load_experiment("exp.toml")
    report = privfr.run(experiment, "runs/first")
    model = privfr.recogniser_in("runs/first")
    faces = privfr.load_faces("photos", model.size)
    figures = privfr.evaluate_on(model, faces)

Whatever is named here is loaded when it is first used, so that `import privfr` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privfr.auditing import RunAudit as RunAudit
    from privfr.backends import BACKENDS as BACKENDS
    from privfr.backends import backend as backend
    from privfr.directory import RunDirectory as RunDirectory
    from privfr.directory import recogniser_in as recogniser_in
    from privfr.errors import InputError as InputError
    from privfr.errors import PrivfrError as PrivfrError
    from privfr.evaluation import Evaluation as Evaluation
    from privfr.evaluation import evaluate_on as evaluate_on
    from privfr.experiment import Experiment as Experiment
    from privfr.experiment import load_experiment as load_experiment
    from privfr.faces.datasets import Faces as Faces
    from privfr.faces.datasets import write_folder as write_folder
    from privfr.faces.partition import split as split
    from privfr.faces.pictures import read_picture as read_picture
    from privfr.faces.recogniser import Recogniser as Recogniser
    from privfr.faces.sources import load_faces as load_faces
    from privfr.faces.verification import read_pairs as read_pairs
    from privfr.imposters.audit import Audit as Audit
    from privfr.imposters.audit import audit as audit
    from privfr.imposters.gan import Generator as Generator
    from privfr.report import Report as Report
    from privfr.runs import resume as resume
    from privfr.runs import run as run

_HOME = {
    "Audit": "privfr.imposters.audit",
    "BACKENDS": "privfr.backends",
    "Evaluation": "privfr.evaluation",
    "Experiment": "privfr.experiment",
    "Faces": "privfr.faces.datasets",
    "Generator": "privfr.imposters.gan",
    "InputError": "privfr.errors",
    "PrivfrError": "privfr.errors",
    "Recogniser": "privfr.faces.recogniser",
    "Report": "privfr.report",
    "RunAudit": "privfr.auditing",
    "RunDirectory": "privfr.directory",
    "audit": "privfr.imposters.audit",
    "backend": "privfr.backends",
    "evaluate_on": "privfr.evaluation",
    "load_experiment": "privfr.experiment",
    "load_faces": "privfr.faces.sources",
    "read_pairs": "privfr.faces.verification",
    "read_picture": "privfr.faces.pictures",
    "recogniser_in": "privfr.directory",
    "resume": "privfr.runs",
    "run": "privfr.runs",
    "split": "privfr.faces.partition",
    "write_folder": "privfr.faces.datasets",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module 'privfr' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
