"""Where faces come from: one entry point for synthetic people, published data sets and folders."""

from __future__ import annotations

import difflib
from pathlib import Path

from privfr.errors import InputError
from privfr.faces.datasets import Faces, enough, load_folder, nearest
from privfr.faces.pictures import Progress, check_size
from privfr.faces.published import load_celeba, load_lfw
from privfr.faces.synthetic import synthetic_faces

__all__ = ["SOURCES", "load_faces"]

SOURCES = ("synthetic", "celeba", "lfw")


def load_faces(
    source: str | Path,
    size: tuple[int, int],
    *,
    download: bool = False,
    min_images: int = 1,
    identities: int | None = None,
    progress: Progress | None = None,
) -> Faces:
    """Load faces from wherever `source` says, as uint8 [n, height, width, 3] with `size` = (height, width).

    source: "synthetic", "synthetic:identities=60,images=20,seed=1", "celeba:ROOT", "lfw:ROOT" or a folder
    (write "./synthetic" for a folder of that name).
    download: fetch CelebA or LFW into ROOT where missing.
    min_images: leave out identities with fewer pictures.  identities: at most so many, first by name.
    progress(done, total) is called as pictures are decoded.

    Raises InputError for an unknown source, and as `load_folder`, `load_celeba`, `load_lfw` do.
    """
    if not str(source).strip():
        raise InputError(f"the source is empty; give {', '.join(SOURCES)} or a folder")
    kind, colon, rest = str(source).partition(":")
    if kind in ("celeba", "lfw") and (colon or not Path(source).is_dir()):
        if not rest.strip():
            raise InputError(f"source {str(source)!r}: say where it lies, as '{kind}:/data'")
        reader = load_celeba if kind == "celeba" else load_lfw
        return reader(
            rest, size, download=download, min_images=min_images, identities=identities, progress=progress
        )
    if download:
        raise InputError(f"source {str(source)!r}: only celeba:ROOT and lfw:ROOT can be downloaded")
    check_size(size)
    if kind == "synthetic":
        return _synthetic(rest, size, min_images, identities)
    if not Path(source).exists() and (near := difflib.get_close_matches(kind.lower(), SOURCES, 1)):
        raise InputError(f"unknown source {str(source)!r}; did you mean {near[0]!r}?")
    if not Path(source).exists() and colon and len(kind) > 1:
        raise InputError(f"unknown source {str(source)!r}; give {', '.join(SOURCES)} or a folder")
    return load_folder(source, size, min_images=min_images, identities=identities, progress=progress)


def _synthetic(options: str, size: tuple[int, int], min_images: int, identities: int | None) -> Faces:
    values = {"identities": 60, "images": 20, "seed": 0}
    for option in filter(None, options.split(",")):
        key, _, value = (part.strip() for part in option.partition("="))
        if key not in values:
            raise InputError(
                f"synthetic:{options}: unknown option {key!r}{nearest(key, values)}; "
                f"it takes {', '.join(values)}"
            )
        if not value.isascii() or not value.isdigit():
            raise InputError(f"synthetic:{options}: {key} must be a whole number, not {value!r}")
        values[key] = int(value)
    if size[0] != size[1]:
        raise InputError(f"synthetic faces are square; give a size of ({size[0]}, {size[0]}), not {size}")
    faces = synthetic_faces(values["identities"], values["images"], size[0], values["seed"])
    return enough(faces, min_images, identities, Path("synthetic"))
