"""`privfr data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privfr_cli import render

app = typer.Typer(no_args_is_help=True, help="List, inspect and write face data.")

Source = Annotated[str, typer.Argument(help="synthetic, celeba:ROOT, lfw:ROOT or a folder of identities.")]
Side = Annotated[int, typer.Option(help="Side of the square pictures, in pixels.")]


@app.command("list")
def list_() -> None:
    """List where faces can come from."""
    from privfr.faces.datasets import LAYOUT

    render.table(
        "",
        ("source", "what it is"),
        [
            ["synthetic", "drawn by privfr, needs no file; synthetic:identities=60,images=20 says how many"],
            ["celeba:ROOT", "CelebA as torchvision lays it out; --download fetches it"],
            ["lfw:ROOT", "Labeled Faces in the Wild as torchvision lays it out; --download fetches it"],
            ["FOLDER", LAYOUT],
        ],
        prose=True,
    )


@app.command()
def inspect(
    source: Source,
    size: Side = 64,
    download: Annotated[bool, typer.Option("--download", help="Fetch CelebA or LFW where missing.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet here, a row a person (.png).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The figures alone on standard output.")] = False,
) -> None:
    """Count the people and pictures of a source, and say what is wrong with it."""
    import privfr

    faces = privfr.load_faces(source, (size, size), download=download)
    counts = faces.counts
    figures = {
        "pictures": len(faces),
        "people": len(faces.names),
        "fewest": int(counts.min()),
        "median": float(sorted(counts)[len(counts) // 2]),
        "most": int(counts.max()),
        "people_with_one_picture": int((counts == 1).sum()),
        "skipped": [list(entry) for entry in faces.skipped],
    }
    if sheet:
        _sheet(faces, sheet)
    if json:
        render.json(figures)
        return
    render.out.print(f"{figures['pictures']:,} pictures of {figures['people']:,} people", markup=False)
    render.out.print(
        f"pictures a person: {figures['fewest']} to {figures['most']}, median {figures['median']:.0f}; "
        f"{figures['people_with_one_picture']} people have one only and give no genuine pair"
    )
    for file, reason in faces.skipped:
        render.note(f"skipped {file}: {reason}")
    if sheet:
        render.out.print(f"contact sheet: {sheet}", soft_wrap=True)


@app.command()
def write(
    out: Annotated[Path, typer.Argument(help="Folder to make, a sub-folder a person.")],
    identities: Annotated[int, typer.Option(help="How many people.")] = 60,
    images: Annotated[int, typer.Option(help="How many pictures of each.")] = 20,
    size: Side = 64,
    seed: Annotated[int, typer.Option(help="Which people.")] = 0,
) -> None:
    """Write the synthetic faces to a folder of identities."""
    import privfr

    faces = privfr.load_faces(f"synthetic:identities={identities},images={images},seed={seed}", (size, size))
    privfr.write_folder(faces, out)
    render.out.print(f"{len(faces):,} pictures of {len(faces.names):,} people in {out}", soft_wrap=True)


def _sheet(faces: object, path: Path) -> None:
    from PIL import Image

    from privfr.errors import InputError
    from privfr.faces.datasets import Faces, contact_sheet

    assert isinstance(faces, Faces)
    try:
        Image.fromarray(contact_sheet(faces)).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written as a picture ({error})") from None
