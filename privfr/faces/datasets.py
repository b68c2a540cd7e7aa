"""Face pictures in memory, and folders of them.

Pictures are decoded once and kept as bytes. A broken one is left out and listed in `Faces.skipped`, so that
one bad file among thousands costs nobody an afternoon; a set without a single good picture is an InputError.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privfr.errors import InputError
from privfr.faces.pictures import WHOLE, Box, Progress, is_picture, read_pictures

LAYOUT = "expected layout: ROOT/PERSON/PICTURE.jpg, one folder per person"


@dataclass(frozen=True, eq=False)
class Faces:
    """Labelled face pictures, decoded once and kept as bytes.

    images: uint8 [n, height, width, 3], RGB.  labels: int64 [n], an index into `names`.
    names: one name per identity.  files: one name per image, relative to the data's root
    ("Aaron_Eckhart/Aaron_Eckhart_0001.jpg"); what a pairs file refers to.
    skipped: (file, reason) of what was found but left out when loading, for the caller to show.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    files: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError unless the four fields describe the same pictures."""
        n = len(self.files)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise InputError(
                f"images are {self.images.dtype} {self.images.shape}; need uint8 [n, height, width, 3]"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != (n,) or len(self.images) != n:
            raise InputError(
                f"{len(self.images)} images, {n} files and labels {self.labels.dtype} {self.labels.shape}; "
                "need one int64 label and one file name per image"
            )
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.names):
            raise InputError(f"labels must lie in 0..{len(self.names) - 1}, an index into names")
        if len(set(self.names)) != len(self.names):
            raise InputError("names must differ: one name per identity")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.images)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of pictures of each identity, int64 [len(names)]."""
        return np.bincount(self.labels, minlength=len(self.names)).astype(np.int64)

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> Faces:
        """Return the pictures at `indices`, in that order; names, and so labels, stay as they are."""
        rows = np.asarray(indices, dtype=np.int64)
        files = tuple(self.files[row] for row in rows)
        return Faces(self.images[rows], self.labels[rows], self.names, files)

    def of(self, identities: Sequence[str]) -> Faces:
        """All pictures of the named identities, relabelled 0..k-1 in the order given.

        Raises InputError for a name this set does not hold, or one given twice.
        """
        known = {name: label for label, name in enumerate(self.names)}
        for name in identities:
            if name not in known:
                raise InputError(f"no identity named {name!r} in this set{nearest(name, known)}")
        new = np.full(len(self.names), -1, np.int64)
        new[[known[name] for name in identities]] = np.arange(len(identities))
        rows = np.flatnonzero(new[self.labels] >= 0)
        part = self.select(rows)
        return Faces(part.images, new[part.labels], tuple(identities), part.files)


@dataclass(frozen=True, eq=False)
class Examples:
    """What one pass of a round goes over.

    rows: int64 [n, views], the pictures of each example: a client's own are 0, 1, ..., its imposters follow.
    targets: int64 [n], what the loss is told of each.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)


def require_identities(faces: Faces, least: int, purpose: str) -> None:
    """Raise InputError unless `faces` holds pictures of `least` identities, as `purpose` needs."""
    have = int(np.count_nonzero(faces.counts))
    if have < least:
        raise InputError(f"{purpose} needs pictures of at least {least} people, here are {have}; add some")


def load_folder(
    root: str | Path,
    size: tuple[int, int],
    *,
    min_images: int = 1,
    identities: int | None = None,
    box: Box = WHOLE,
    progress: Progress | None = None,
) -> Faces:
    """Load ROOT/PERSON/PICTURE: an identity per sub-folder, in order of name, pictures in order of name.

    Hidden files and files that are not pictures are ignored; pictures that cannot be read, pictures outside
    any person's folder and folders without a picture are listed in `Faces.skipped`.

    Raises InputError if the root is no such folder, a folder's name is blank or not UTF-8, two names look
    the same (they differ in Unicode form only), or no picture at all can be used.
    """
    root = Path(root)
    entries: list[Entry] = []
    skipped: list[tuple[str, str]] = []
    folders = [child for child in _children(root) if child.is_dir() and not child.name.startswith(".")]
    _check_names([folder.name for folder in folders], root)
    seen: dict[Path, str] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder.name)
        if first != folder.name:
            skipped.append((folder.name, f"a link to the same folder as {first!r}"))
            continue
        pictures = [path for path in _children(folder) if is_picture(path) and not path.is_dir()]
        if not pictures:
            skipped.append((folder.name, "no picture directly in this folder"))
        entries += [Entry(folder.name, f"{folder.name}/{path.name}", path) for path in pictures]
    loose = [path.name for path in _children(root) if is_picture(path) and path.is_file()]
    if not entries:
        found = f"{len(loose)} pictures directly in it, but no person's folder" if loose else "no pictures"
        raise InputError(f"{root}: {found}; {LAYOUT}")
    skipped += [(_shown(name), "lies outside any person's folder") for name in loose]
    return assemble(
        entries,
        size,
        root,
        box=box,
        min_images=min_images,
        identities=identities,
        progress=progress,
        skipped=skipped,
    )


class Entry(NamedTuple):
    """One picture found: whose it is, its name relative to the root, and where it lies."""

    name: str
    file: str
    path: Path


def assemble(
    entries: Iterable[Entry],
    size: tuple[int, int],
    root: Path,
    *,
    box: Box = WHOLE,
    min_images: int = 1,
    identities: int | None = None,
    progress: Progress | None = None,
    skipped: Iterable[tuple[str, str]] = (),
) -> Faces:
    """Choose identities, decode their pictures and label them; what every loader ends with.

    Raises InputError if no picture can be read, or no identity has `min_images` of them.
    """
    skips = list(skipped)
    good: list[Entry] = []
    for entry in entries:
        if _is_utf8(entry.file):
            good.append(entry)
        else:
            skips.append((_shown(entry.file), "its name is not UTF-8; rename it"))
    found = Counter(entry.name for entry in good)
    skips += _too_few(found, min_images)
    chosen = set(_choose(found, min_images, identities, root))
    wanted = sorted((entry for entry in good if entry.name in chosen), key=lambda e: (e.name, e.file))
    images, kept, failures = read_pictures([e.path for e in wanted], size, box=box, progress=progress)
    skips += [(wanted[position].file, reason) for position, reason in failures]
    if not kept:
        raise InputError(
            f"{root}: none of its {len(wanted)} pictures can be read, the first: {skips[-len(failures)][1]}"
        )
    read = [wanted[position] for position in kept]
    names = sorted({entry.name for entry in read})
    label = {name: index for index, name in enumerate(names)}
    labels = np.array([label[entry.name] for entry in read], np.int64)
    faces = Faces(images, labels, tuple(names), tuple(entry.file for entry in read), tuple(skips))
    return enough(faces, min_images, None, root)


def write_folder(faces: Faces, root: str | Path) -> None:
    """Write ROOT/NAME/PICTURE.png for every picture; `load_folder` at that size reads the same bytes back.

    A picture keeps its own file name, with the ending .png; where two would collide, "a.jpg" becomes
    "a.jpg.png".
    Raises InputError if the root holds anything already, or a name cannot be a folder's.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: exists and is not an empty folder; give a new one")
    for name in faces.names:
        if not name.strip() or name.startswith(".") or any(sign in name for sign in '/\\\0:*?"<>|'):
            raise InputError(f"identity {name!r} cannot be the name of a folder; rename it")
    taken: set[tuple[str, str]] = set()
    try:
        for image, label, file in zip(faces.images, faces.labels, faces.files, strict=True):
            folder, base = root / faces.names[label], PurePosixPath(file)
            picture = base.stem + ".png"
            if (folder.name, picture) in taken:
                picture = base.name + ".png"
            if (folder.name, picture) in taken:
                raise InputError(f"{file}: two pictures of {folder.name!r} have this name; rename one")
            taken.add((folder.name, picture))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / picture)
    except OSError as error:
        raise InputError(f"{root}: cannot write pictures here ({error.strerror or error})") from None


def enough(faces: Faces, min_images: int, identities: int | None, root: Path) -> Faces:
    """Leave out identities that `_choose` would, now that it is known which pictures could be read."""
    counts = {name: int(count) for name, count in zip(faces.names, faces.counts, strict=True)}
    chosen = _choose(counts, min_images, identities, root)
    if len(chosen) == len(faces.names):
        return faces
    part = faces.of(chosen)
    skips = (*faces.skipped, *_too_few(counts, min_images))
    return Faces(part.images, part.labels, part.names, part.files, skips)


def _too_few(counts: Mapping[str, int], min_images: int) -> list[tuple[str, str]]:
    few = sorted((name, count) for name, count in counts.items() if count < min_images)
    return [(name, f"{count} usable picture(s), fewer than min_images = {min_images}") for name, count in few]


def _choose(counts: dict[str, int], min_images: int, identities: int | None, root: Path) -> list[str]:
    if identities is not None and identities < 1:
        raise InputError(f"identities={identities}: take at least one, or leave it out for all")
    names = sorted(name for name, count in counts.items() if count >= min_images)
    if not names:
        most = max(counts.values(), default=0)
        raise InputError(
            f"{root}: no identity has {min_images} usable pictures, the most is {most}; lower min_images"
        )
    return names[:identities]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; {LAYOUT}") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: a file, not a folder; {LAYOUT}") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None


def _check_names(names: list[str], root: Path) -> None:
    # Two spellings of "é" look alike and are two folders on Linux, one on macOS: a person would silently
    # become two identities, and every genuine pair between them an impostor pair.
    alike: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise InputError(f"{root}: a folder's name is blank ({name!r}); name it after the person")
        if not _is_utf8(name):
            raise InputError(f"{root}: the folder name {_shown(name)} is not UTF-8; rename it")
        other = alike.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise InputError(f"{root}: folders {other!a} and {name!a} look the same; merge or rename")


def _is_utf8(name: str) -> bool:
    # Undecodable bytes of a file name come as lone surrogates, which neither JSON nor a terminal takes.
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _shown(name: str) -> str:
    return name if _is_utf8(name) else ascii(name)


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint at the known name most like `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def contact_sheet(faces: Faces, people: int = 12, pictures: int = 12) -> NDArray[np.uint8]:
    """Lay out the first pictures of the first people, a row a person: uint8 [rows, columns, 3]."""
    height, width = faces.images.shape[1:3]
    shown = range(min(people, len(faces.names)))
    sheet = np.full((len(shown) * height, pictures * width, 3), 255, np.uint8)
    for label in shown:
        for column, row in enumerate(np.flatnonzero(faces.labels == label)[:pictures]):
            top, left = label * height, column * width
            sheet[top : top + height, left : left + width] = faces.images[row]
    return sheet
