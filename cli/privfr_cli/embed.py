"""`privfr embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privfr_cli import render


def command(
    model: Annotated[Path, typer.Argument(help="Run directory, or a .safetensors checkpoint.")],
    data: Annotated[str, typer.Argument(help="synthetic, celeba:ROOT, lfw:ROOT or a folder of identities.")],
    out: Annotated[Path, typer.Option(help="File to write: .npz or .csv.")],
    download: Annotated[bool, typer.Option("--download", help="Fetch CelebA or LFW where missing.")] = False,
) -> None:
    """Write the embedding of every picture; a row a picture, of length 1."""
    import io

    import numpy as np

    import privfr
    from privfr.storage import write_atomic

    if out.suffix not in (".npz", ".csv"):
        raise privfr.InputError(f"{out}: unknown ending; give a .npz or .csv file")
    recogniser = privfr.recogniser_in(model)
    faces = privfr.load_faces(data, recogniser.size, download=download)
    embeddings = recogniser.embed(faces.images)
    names = np.array(faces.names)[faces.labels]
    if out.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, embeddings=embeddings, names=names, files=np.array(faces.files))
        write_atomic(out, buffer.getvalue())
    else:
        write_atomic(out, _csv(faces.files, names.tolist(), embeddings.tolist()).encode())
    for file, reason in faces.skipped:
        render.note(f"skipped {file}: {reason}")
    render.out.print(f"{len(faces)} embeddings of {embeddings.shape[1]} numbers in {out}", soft_wrap=True)


def _csv(files: tuple[str, ...], names: list[str], embeddings: list[list[float]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "name", *(f"e{i}" for i in range(len(embeddings[0])))])
    for file, name, embedding in zip(files, names, embeddings, strict=True):
        writer.writerow([file, name, *(f"{value:.7g}" for value in embedding)])
    return text.getvalue()
