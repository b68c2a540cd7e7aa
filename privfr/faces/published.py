"""CelebA and LFW, in the folder layout that torchvision's `CelebA` and `LFWPeople` use.

torchvision fetches and verifies CelebA. Its readers are not used: CelebA's refuses any subset (it demands
hash-identical attribute files that face recognition never reads) and LFW's demands that the downloaded
archive be kept beside the pictures; neither decodes in parallel.

The crops turn each set's own alignment into the one recognition networks are trained with (ArcFace,
arXiv 1801.07698: five landmarks in a fixed place of a square): a box fitted over scale and shift.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from privfr.errors import InputError
from privfr.faces.datasets import Entry, Faces, assemble, load_folder
from privfr.faces.pictures import WHOLE, Box, Progress, is_picture

CELEBA_BOX: Box = (30 / 178, 57 / 218, 147 / 178, 174 / 218)
"""117 x 117 of the aligned 178 x 218 pictures: eyes at 46 %, mouth at 81 % of its height."""
LFW_BOX: Box = (61 / 250, 55 / 250, 189 / 250, 183 / 250)
"""128 x 128 of the 250 x 250 pictures, around the face as the funnelled sets centre it."""

_LFW_FOLDERS = ("lfw_funneled", "lfw-deepfunneled", "lfw")


class Archive(NamedTuple):
    """A file to fetch: its name, its address and the SHA-256 it must have."""

    file: str
    url: str
    sha256: str


LFW_ARCHIVE = Archive(
    "lfw-funneled.tgz",
    "https://ndownloader.figshare.com/files/5976015",
    "b47c8422c8cded889dc5a13418c4bc2abbda121092b3533a83306f90d900100a",
)
"""The copy scikit-learn fetches: the original host is gone, and torchvision's own download with it."""
LFW_PAIRS = Archive(
    "pairs.txt",
    "https://ndownloader.figshare.com/files/5976006",
    "ea42330c62c92989f9d7c03237ed5d591365e89b3e649747777b70e692dc1592",
)


def load_celeba(
    root: str | Path,
    size: tuple[int, int],
    *,
    download: bool = False,
    align_crop: bool = True,
    min_images: int = 1,
    identities: int | None = None,
    progress: Progress | None = None,
) -> Faces:
    """Load CelebA (Liu et al., 2015) from ROOT/celeba/img_align_celeba/*.jpg and identity_CelebA.txt.

    Names are CelebA's identity numbers as text. align_crop: cut `CELEBA_BOX`; without it, the largest centred
    part of the target's aspect ratio. All 202,599 pictures at 112 x 112 take 7.6 GB: see `identities`.
    A partial copy is fine; pictures that are listed but absent are counted in `Faces.skipped`.

    Raises InputError if the set is not there, its identity file is malformed, or the download fails.
    """
    root = Path(root)
    if download:
        _download_celeba(root)
    folder, listing = root / "celeba" / "img_align_celeba", root / "celeba" / "identity_CelebA.txt"
    if not folder.is_dir() or not listing.is_file():
        missing = listing if folder.is_dir() else folder
        raise InputError(f"{missing}: not there; {_celeba_by_hand(root)}, or ask for the download")
    owners = _read_identities(listing)
    present = {path.name: path for path in folder.iterdir() if is_picture(path)}
    entries = [
        Entry(owner, f"celeba/img_align_celeba/{file}", present[file])
        for file, owner in owners.items()
        if file in present
    ]
    if not entries:
        raise InputError(f"{folder}: holds none of the pictures in {listing.name}; {_celeba_by_hand(root)}")
    absent = len(owners) - len(entries)
    skipped = [("celeba/img_align_celeba", f"{absent} of {len(owners)} pictures listed are absent")]
    return assemble(
        entries,
        size,
        root,
        box=CELEBA_BOX if align_crop else WHOLE,
        min_images=min_images,
        identities=identities,
        progress=progress,
        skipped=skipped if absent else (),
    )


def load_lfw(
    root: str | Path,
    size: tuple[int, int],
    *,
    download: bool = False,
    align_crop: bool = True,
    min_images: int = 1,
    identities: int | None = None,
    progress: Progress | None = None,
) -> Faces:
    """Load Labeled Faces in the Wild (Huang et al., 2007) from ROOT/lfw-py/lfw_funneled/NAME/NAME_0001.jpg.

    "lfw-deepfunneled" or "lfw" (not aligned) is taken where "lfw_funneled" is absent. File names are relative
    to that folder, as pairs.txt expects. align_crop: cut `LFW_BOX`.

    Raises InputError if the set is not there or the download fails.
    """
    base = Path(root) / "lfw-py"
    if download and not (base / _LFW_FOLDERS[0]).is_dir():
        download_lfw(base, (LFW_PAIRS, LFW_ARCHIVE))
    folder = next((base / name for name in _LFW_FOLDERS if (base / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{base}: no LFW there; {_lfw_by_hand(base)}, or ask for the download")
    box = LFW_BOX if align_crop else WHOLE
    return load_folder(folder, size, min_images=min_images, identities=identities, box=box, progress=progress)


def download_lfw(base: Path, archives: tuple[Archive, ...]) -> None:
    """Fetch each archive into `base`, verify its SHA-256 and unpack it if it is a .tgz.

    Raises InputError, saying what to do by hand, if one cannot be fetched or is not what it should be.
    """
    from torchvision.datasets.utils import download_url, extract_archive

    for archive in archives:
        target = base / archive.file
        try:
            download_url(archive.url, str(base), archive.file)
            with target.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != archive.sha256:
                target.unlink()
                raise InputError(
                    f"{archive.url}: not the expected file, its SHA-256 is {digest}; {_lfw_by_hand(base)}"
                )
            if target.suffix == ".tgz":
                extract_archive(str(target))
        except (OSError, RuntimeError) as error:
            raise InputError(f"LFW cannot be downloaded ({_line(error)}); {_lfw_by_hand(base)}") from None


def _download_celeba(root: Path) -> None:
    from torchvision.datasets import CelebA

    try:
        CelebA(str(root), split="all", target_type="identity", download=True)
    except Exception as error:  # gdown raises its own kinds, for a quota, a login page, a lost connection
        raise InputError(f"CelebA cannot be downloaded ({_line(error)}); {_celeba_by_hand(root)}") from None


def _read_identities(listing: Path) -> dict[str, str]:
    owners: dict[str, str] = {}
    try:
        text = listing.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: cannot be read ({error}); download it again") from None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if len(words) != 2 and words:
            raise InputError(
                f"{listing}: line {number} is {line[:60]!r}, not 'PICTURE IDENTITY'; get it anew"
            )
        if words:
            owners[words[0]] = words[1]
    return owners


def _celeba_by_hand(root: Path) -> str:
    return (
        "get img_align_celeba.zip and identity_CelebA.txt from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and unpack them into "
        f"{root / 'celeba'}"
    )


def _lfw_by_hand(base: Path) -> str:
    return (
        f"get {LFW_ARCHIVE.file} from {LFW_ARCHIVE.url} (or the Kaggle copy 'jessicali9530/lfw-dataset') "
        f"and unpack it into {base}"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
