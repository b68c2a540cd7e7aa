"""`privfr evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfr_cli import render

if TYPE_CHECKING:
    from privfr.evaluation import Evaluation


def command(
    model: Annotated[Path, typer.Argument(help="Run directory, or a .safetensors checkpoint.")],
    data: Annotated[str, typer.Option(help="synthetic, celeba:ROOT, lfw:ROOT or a folder of identities.")],
    pairs: Annotated[Path | None, typer.Option(help="LFW pairs file; all pairs without it.")] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Judge the run's other models too: pretrained, individual, ..."),
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch CelebA or LFW where missing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The figures alone on standard output.")] = False,
) -> None:
    """See how well a trained model recognises the people of a data set."""
    import privfr
    from privfr.evaluation import evaluate_on

    if baselines and not model.is_dir():
        raise privfr.InputError(f"{model}: --baselines needs a run directory, not one checkpoint")
    recogniser = privfr.recogniser_in(model)
    listed = privfr.read_pairs(pairs) if pairs else None
    faces = privfr.load_faces(data, recogniser.size, download=download)
    for file, reason in faces.skipped:
        render.note(f"skipped {file}: {reason}")
    found = evaluate_on(recogniser, faces, listed)
    others = _others(model, faces, listed) if baselines else {}
    if json:
        render.json(
            _flat(found)
            | ({"models": {name: _flat(each) for name, each in others.items()}} if baselines else {})
        )
        return
    render.evaluation("federated" if model.is_dir() else model.stem, found, others)


def _others(model: Path, faces: Any, listed: Any) -> dict[str, Evaluation]:
    import privfr
    from privfr.evaluation import evaluate_on

    paths = privfr.RunDirectory(model).others()
    found = {}
    for name, path in paths.items():
        render.note(f"judging {name}")
        found[name] = evaluate_on(privfr.Recogniser.load(path), faces, listed)
    return found


def _flat(found: Evaluation) -> dict[str, Any]:
    import msgspec

    return {key: value for key, value in msgspec.to_builtins(found).items() if value is not None}
