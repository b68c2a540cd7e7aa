"""Picture files to RGB bytes: every common kind is converted properly, every broken one refused in a line.

Sizes are (height, width) in pixels. A `Box` is (left, top, right, bottom) in fractions of a picture's width
and height, so that one box fits every resolution of the same layout.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from privfr.cores import usable_cores
from privfr.errors import InputError

Box = tuple[float, float, float, float]
Progress = Callable[[int, int], None]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
MAX_PIXELS = 64_000_000
"""Largest picture decoded, in pixels: above any phone's photo in use, 192 MB as RGB."""
BACKGROUND = (128, 128, 128)
"""Mid grey, put behind transparent pixels: an input of zero for a network that reads (x - 127.5) / 127.5."""
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"}
    | {".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".heic", ".heif", ".avif"}
)
"""File name endings taken for pictures. The last three cannot be decoded: they are reported, not ignored."""

# Only these decoders run, whatever a file calls itself: Pillow's EPS reader, for one, starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM")
# What Pillow's decoders raise on damaged files: fuzzing shows the first three, their sources name the others.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error)


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture and not hidden (a leading dot, as macOS's `._x.jpg`)."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError unless `size` is (height, width) in pixels, each from 1 to 4096."""
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= 4096 for side in size):
        raise InputError(f"size {size!r}: give (height, width) in pixels, each from 1 to 4096, as (112, 112)")


def read_picture(path: str | Path, size: tuple[int, int], *, box: Box = WHOLE) -> NDArray[np.uint8]:
    """Read one picture as RGB, uint8 [height, width, 3].

    EXIF orientation is applied; grey, palette, CMYK and 1-bit become RGB; 16-bit samples are scaled from
    their full range (value / 257); transparency is composed over `BACKGROUND`; of an animation the first
    frame counts. The part inside `box` is cut, then its largest centred part of the target's aspect ratio
    is resized with an antialiasing (Lanczos) filter.

    Raises InputError, naming the file and the remedy, for whatever is not a sound picture of at most
    `MAX_PIXELS`; the limit is read off the header, before any pixel is decoded.
    """
    check_size(size)
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}; give a picture file")
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            _refuse_huge(picture.size, path)
            _draft(picture, size, box)
            picture.load()
            return _fit(_rgb(ImageOps.exif_transpose(picture), path), size, box)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: {_unidentified(path)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{path}: {_TOO_LARGE}") from None
    except _DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read, probably cut short or damaged ({error}); copy it again or delete it"
        ) from None


def read_pictures(
    paths: Sequence[Path], size: tuple[int, int], *, box: Box = WHOLE, progress: Progress | None = None
) -> tuple[NDArray[np.uint8], list[int], list[tuple[int, str]]]:
    """Read many pictures in threads (Pillow decodes without the GIL); the order is that of `paths`.

    Returns images uint8 [k, height, width, 3], the positions in `paths` of those k, and (position, reason)
    of each one that could not be read. `progress(done, total)` is called after each picture, in this thread.
    """
    check_size(size)

    def attempt(path: Path) -> NDArray[np.uint8] | str:
        try:
            return read_picture(path, size, box=box)
        except InputError as error:
            return str(error).removeprefix(f"{path}: ")

    images = _room(len(paths), size)
    kept: list[int] = []
    failures: list[tuple[int, str]] = []
    pool = ThreadPoolExecutor(min(8, usable_cores()), thread_name_prefix="privfr-pictures")
    try:
        # The warning of Pillow's own, laxer limit is noise here: ours is checked on the next line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for position, outcome in enumerate(pool.map(attempt, paths)):
                if isinstance(outcome, str):
                    failures.append((position, outcome))
                else:
                    images[len(kept)] = outcome
                    kept.append(position)
                if progress is not None:
                    progress(position + 1, len(paths))
    finally:
        # An interrupt must not wait for thousands of queued pictures.
        pool.shutdown(wait=True, cancel_futures=True)
    return images[: len(kept)], kept, failures


_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} million pixels; scale it down first"


def _room(count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        return np.empty((count, *size, 3), np.uint8)
    except MemoryError:
        need = count * size[0] * size[1] * 3 / 1e9
        raise InputError(
            f"{count} pictures of {size[0]} x {size[1]} need {need:.1f} GB of memory; "
            "take fewer identities or a smaller size"
        ) from None


def _refuse_huge(size: tuple[int, int], path: Path) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{path}: {size[0]} x {size[1]}, {_TOO_LARGE}")


def _unidentified(path: Path) -> str:
    if path.stat().st_size == 0:
        return "an empty file; copy it again or delete it"
    return "not a picture of a known kind, or damaged; convert it to JPEG or PNG, or delete it"


def _draft(picture: Image.Image, size: tuple[int, int], box: Box) -> None:
    # JPEG can be decoded at 1/2, 1/4, 1/8 by leaving out DCT coefficients. Twice the target is asked for so
    # that the Lanczos filter still decides the result; the longer side, as EXIF may yet turn the picture.
    share = min(box[2] - box[0], box[3] - box[1])
    side = round(2 * max(size) / share)
    picture.draft(None, (side, side))


def _rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode.startswith("I"):
        return _from_integers(np.asarray(picture), path)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    if picture.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise InputError(f"{path}: pixels of kind {picture.mode!r}; save it as 8-bit RGB or grey")
    return picture.convert("RGB")


def _from_integers(samples: NDArray[np.generic], path: Path) -> Image.Image:
    # Pillow gives 16-bit grey as I;16 or, for PGM, as 32-bit I; its own convert() would clip at 255.
    values = samples.astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise InputError(f"{path}: samples of more than 16 bits; save it as 8-bit or 16-bit grey")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _fit(picture: Image.Image, size: tuple[int, int], box: Box) -> NDArray[np.uint8]:
    width, height = picture.size
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    # The largest centred part of the box that has the target's aspect ratio.
    scale = min((right - left) / size[1], (bottom - top) / size[0])
    across, down = scale * size[1] / 2, scale * size[0] / 2
    middle, centre = (left + right) / 2, (top + bottom) / 2
    part = (
        max(0.0, middle - across),
        max(0.0, centre - down),
        min(width, middle + across),
        min(height, centre + down),
    )
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS, part))
