"""`privfr verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privfr_cli import render


def command(
    first: Annotated[Path, typer.Argument(help="A picture of a face, cut as the model's training pictures.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    model: Annotated[Path, typer.Option(help="Run directory, or a .safetensors checkpoint.")],
    far: Annotated[
        float | None,
        typer.Option(help="False accept rate to decide at; default 1e-2, or the nearest there is."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The decision alone on standard output.")] = False,
) -> None:
    """Decide whether two pictures show one person."""
    import numpy as np

    import privfr

    recogniser = privfr.recogniser_in(model)
    if far is None:  # few test people resolve no 1e-2
        far = max(1e-2, min(map(float, recogniser.thresholds), default=1e-2))
    threshold = recogniser.threshold_at(far)
    pictures = np.stack([privfr.read_picture(path, recogniser.size) for path in (first, second)])
    one, other = recogniser.embed(pictures)
    score = float(one @ other)
    same = score >= threshold
    if json:
        render.json({"score": score, "threshold": threshold, "far": far, "same": same})
        return
    verdict = "the same person" if same else "different people"
    render.out.print(
        f"{verdict}: score {score:.3f}, threshold {threshold:.3f} (FAR {far:g} on the run's test people)"
    )
