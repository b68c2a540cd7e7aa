"""Loading faces: every picture kind a user's folder holds, every way a data set can be broken."""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from privfr.errors import InputError
from privfr.faces import pictures, published
from privfr.faces.datasets import Faces, load_folder, require_identities, write_folder
from privfr.faces.pictures import BACKGROUND, read_picture
from privfr.faces.published import Archive, download_lfw, load_celeba, load_lfw
from privfr.faces.sources import load_faces

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
RED, GREEN, BLUE = (220, 30, 40), (30, 200, 50), (20, 60, 210)


def plain(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def halves(left: tuple[int, int, int], right: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.abs(picture.astype(int) - colour).max() <= tolerance)


def people(root: Path, **counts: int) -> Path:
    for who, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise(100 * who + i).save(root / name / f"{name}_{i + 1:04d}.png")
    return root


# One picture


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "gif", "tiff", "ppm"])
def test_common_kinds_give_their_colour(tmp_path: Path, ending: str) -> None:
    plain().save(path := tmp_path / f"x.{ending}", **({"quality": 95} if ending in ("jpg", "webp") else {}))
    picture = read_picture(path, (24, 20))
    assert picture.shape == (24, 20, 3) and picture.dtype == np.uint8
    assert near(picture, RED)


def test_the_ending_does_not_matter(tmp_path: Path) -> None:
    plain().save(path := tmp_path / "really_a_png.jpg", format="PNG")
    assert near(read_picture(path, (8, 8)), RED)


def test_grey_palette_bilevel_and_cmyk(tmp_path: Path) -> None:
    plain().convert("L").save(tmp_path / "grey.png")
    plain().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    Image.new("1", (9, 9), 1).save(tmp_path / "bilevel.png")
    plain().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    plain().convert("CMYK").save(tmp_path / "cmyk.tif")
    level = plain().convert("L").getpixel((0, 0))
    assert near(read_picture(tmp_path / "grey.png", (8, 8)), (level,) * 3, 0)
    assert near(read_picture(tmp_path / "palette.png", (8, 8)), RED)
    assert near(read_picture(tmp_path / "bilevel.png", (8, 8)), (255, 255, 255), 0)
    assert near(read_picture(tmp_path / "cmyk.jpg", (8, 8)), RED)
    assert near(read_picture(tmp_path / "cmyk.tif", (8, 8)), RED)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    levels = np.full((8, 8), 200 * 257, np.uint16)
    levels[:, 4:] = 40 * 257
    Image.fromarray(levels).save(path := tmp_path / f"x.{ending}")
    picture = read_picture(path, (8, 8))
    assert (picture[:, :4] == 200).all() and (picture[:, 4:] == 40).all()


def test_floating_point_and_wide_samples_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(InputError, match=r"float\.tif: pixels of kind 'F'; save it as 8-bit"):
        read_picture(tmp_path / "float.tif", (8, 8))
    with pytest.raises(InputError, match=r"wide\.tif: samples of more than 16 bits"):
        read_picture(tmp_path / "wide.tif", (8, 8))


def test_transparency_shows_the_stated_grey(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((*BLUE, 255), (4, 0, 8, 8))
    clear.save(tmp_path / "rgba.png")
    clear.save(tmp_path / "rgba.webp", lossless=True)
    Image.new("LA", (8, 8), (250, 0)).save(tmp_path / "la.png")
    (palette := Image.new("P", (8, 8), 1)).putpalette([*RED, *BLUE, *GREEN])
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("RGB", (8, 8), RED).save(tmp_path / "key.png", transparency=RED)
    for name in ("rgba.png", "rgba.webp"):
        picture = read_picture(tmp_path / name, (8, 8))
        assert near(picture[:, :4], BACKGROUND, 0) and near(picture[:, 4:], BLUE, 0)
    for name in ("la.png", "palette.png", "key.png"):
        assert near(read_picture(tmp_path / name, (8, 8)), BACKGROUND, 0)


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_first_frame_of_an_animation(tmp_path: Path, ending: str) -> None:
    frames = [plain(GREEN), plain(RED), plain(BLUE)]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(path := tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as written:
        assert getattr(written, "n_frames", 1) == 3
    assert near(read_picture(path, (8, 8)), GREEN, 2)


# EXIF orientation: what stands on the left of the stored picture comes to lie where the tag says.
@pytest.mark.parametrize(
    ("tag", "red_at"), [(1, "left"), (2, "right"), (3, "right"), (6, "top"), (8, "bottom")]
)
def test_exif_orientation(tmp_path: Path, tag: int, red_at: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    halves(RED, BLUE, (64, 64)).save(path := tmp_path / "x.jpg", exif=exif, quality=95, subsampling=0)
    picture = read_picture(path, (16, 16))
    side = {"left": picture[:, :6], "right": picture[:, 10:], "top": picture[:6], "bottom": picture[10:]}
    assert near(side[red_at], RED, 20)


def test_crop_is_centred_and_keeps_proportions(tmp_path: Path) -> None:
    wide = Image.new("RGB", (90, 30), RED)
    wide.paste(GREEN, (30, 0, 60, 30))
    wide.save(path := tmp_path / "wide.png")
    assert near(read_picture(path, (30, 30)), GREEN, 0)
    wide.rotate(90, expand=True).save(path)
    assert near(read_picture(path, (30, 30)), GREEN, 0)
    wide.save(path)
    assert near(read_picture(path, (10, 30))[:, 13:17], GREEN, 6)
    assert near(read_picture(path, (10, 30))[:, :7], RED, 6)


def test_box_cuts_a_part_at_every_resolution(tmp_path: Path) -> None:
    for width in (80, 800):
        halves(RED, BLUE, (width, width)).save(path := tmp_path / f"{width}.jpg", quality=95, subsampling=0)
        assert near(read_picture(path, (16, 16), box=(0.55, 0.2, 0.95, 0.6)), BLUE, 12)


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("x.png", "x.jpg"):
        Image.fromarray(stripes).save(tmp_path / name)
        assert near(read_picture(tmp_path / name, (8, 8))[1:-1, 1:-1], (128, 128, 128), 6)


def test_same_size_is_left_untouched_and_small_is_enlarged(tmp_path: Path) -> None:
    (picture := noise(1)).save(path := tmp_path / "x.png")
    assert (read_picture(path, (16, 16)) == np.asarray(picture)).all()
    plain(GREEN, (1, 1)).save(path)
    assert near(read_picture(path, (12, 12)), GREEN, 0)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_picture(tmp_path: Path, ending: str, share: float) -> None:
    noise(3, (64, 64)).save(path := tmp_path / f"cut.{ending}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=rf"cut\.{ending}: .*; .*delete it$") as caught:
        read_picture(path, (8, 8))
    assert "\n" not in str(caught.value)


def test_empty_fake_missing_and_special_files(tmp_path: Path) -> None:
    (empty := tmp_path / "empty.jpg").touch()
    (fake := tmp_path / "fake.jpg").write_text("<html>not found</html>")
    os.mkfifo(tmp_path / "pipe.jpg")
    # Pillow would hand this to Ghostscript; no reader of ours takes it.
    (script := tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for path, words in [
        (empty, "an empty file; copy it again or delete it"),
        (fake, "not a picture of a known kind, or damaged; convert it"),
        (script, "not a picture of a known kind"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path / "pipe.jpg", "not a file"),
        (tmp_path, "not a file"),
    ]:
        with pytest.raises(InputError) as caught:
            read_picture(path, (8, 8))
        assert str(caught.value).startswith(f"{path}: {words}")


def huge_png(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")))
    return path


@pytest.mark.parametrize("side", [(8_001, 8_000), (10_000, 10_000), (40_000, 40_000), (64_000_001, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_pictures_are_refused_from_the_header(tmp_path: Path, side: tuple[int, int]) -> None:
    path = huge_png(tmp_path / "bomb.png", *side)
    with pytest.raises(InputError, match=r"bomb\.png: .*more than 64 million pixels; scale it down first"):
        read_picture(path, (8, 8))


def test_the_largest_allowed_picture_is_read(tmp_path: Path) -> None:
    # Refusals come from the limit, not from the crafted file: a real one at the limit is decoded.
    Image.new("1", (8_000, 8_000), 1).save(path := tmp_path / "x.png")
    assert pictures.MAX_PIXELS == 8_000 * 8_000
    assert near(read_picture(path, (8, 8)), (255, 255, 255), 0)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8, 5000), (8.0, 8), (8,)])
def test_impossible_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    plain().save(path := tmp_path / "x.png")
    with pytest.raises(InputError, match="give \\(height, width\\)"):
        read_picture(path, size)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]),
    places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 400),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_give_a_picture_or_an_input_error(
    tmp_path: Path, kind: str, places: list[tuple[int, int]], cut: int
) -> None:
    noise(5, (12, 10)).save(path := tmp_path / "x.jpg", format=kind)
    data = bytearray(path.read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    path.write_bytes(data[: len(data) - cut // 4])
    try:
        picture = read_picture(path, (8, 8))
    except InputError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert picture.shape == (8, 8, 3)


# A folder of people


def test_folder_order_names_and_files(tmp_path: Path) -> None:
    people(tmp_path, Bob=2, Ann=3)
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "Ann" / "notes.txt").write_text("hello")
    (tmp_path / "Ann" / "._Ann_0001.png").write_bytes(b"resource fork")
    (tmp_path / ".cache").mkdir()
    plain().save(tmp_path / ".cache" / "x.png")
    faces = load_folder(tmp_path, (16, 16))
    assert faces.names == ("Ann", "Bob")
    assert faces.files == tuple(
        f"{n}/{n}_{i:04d}.png" for n, k in (("Ann", 3), ("Bob", 2)) for i in range(1, k + 1)
    )
    assert faces.labels.tolist() == [0, 0, 0, 1, 1] and faces.labels.dtype == np.int64
    assert faces.counts.tolist() == [3, 2]
    assert faces.skipped == ()
    for image, file in zip(faces.images, faces.files, strict=True):
        assert (image == np.asarray(Image.open(tmp_path / file))).all()


def test_unicode_names_stay_as_on_disk(tmp_path: Path) -> None:
    names = ["Zoe\u0308", "李雷", "محمد", "O'Brien, Ann"]
    people(tmp_path, **dict.fromkeys(names, 1))
    assert set(load_folder(tmp_path, (8, 8)).names) == set(names)


def test_names_that_look_the_same_are_refused(tmp_path: Path) -> None:
    people(tmp_path, **{"Zo\u00eb": 1, "Zoe\u0308": 1})
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes both spellings for one name")
    with pytest.raises(InputError, match=r"folders .*\\xeb.* look the same; merge or rename"):
        load_folder(tmp_path, (8, 8))


@pytest.mark.parametrize("name", [" ", "\u3000", "\t"])
def test_blank_names_are_refused(tmp_path: Path, name: str) -> None:
    people(tmp_path, Ann=1, **{name: 1})
    with pytest.raises(InputError, match="name is blank"):
        load_folder(tmp_path, (8, 8))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    people(tmp_path, Ann=1)
    try:
        noise(9).save(os.fsdecode(os.fsencode(tmp_path / "Ann") + b"/b\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    faces = load_folder(tmp_path, (8, 8))
    assert len(faces) == 1 and "not UTF-8" in faces.skipped[0][1]
    (tmp_path / "Ann").rename(os.fsdecode(os.fsencode(tmp_path) + b"/A\xff"))
    with pytest.raises(InputError, match="not UTF-8; rename"):
        load_folder(tmp_path, (8, 8))


def test_symbolic_link_loops_and_doubles(tmp_path: Path) -> None:
    people(tmp_path, Ann=2)
    (tmp_path / "Ann" / "up").symlink_to(tmp_path)
    (tmp_path / "Ann" / "self.jpg").symlink_to(tmp_path / "Ann" / "self.jpg")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "root").symlink_to(tmp_path)
    (tmp_path / "Twin").symlink_to(tmp_path / "Ann")
    faces = load_folder(tmp_path, (8, 8))
    assert faces.names == ("Ann",) and len(faces) == 2
    reasons = dict(faces.skipped)
    assert reasons["Twin"] == "a link to the same folder as 'Ann'"
    assert "no such file" in reasons["Ann/self.jpg"] or "not a file" in reasons["Ann/self.jpg"]
    assert reasons["root"] == "no picture directly in this folder"


def test_broken_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    people(tmp_path, Ann=3, Bob=2, Cid=1)
    (tmp_path / "Ann" / "Ann_0002.png").write_bytes(b"")
    (tmp_path / "Bob" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    huge_png(tmp_path / "Bob" / "bomb.png", 10_000, 10_000)
    (tmp_path / "Cid" / "Cid_0001.png").write_text("gone")
    (tmp_path / "empty").mkdir()
    noise(1).save(tmp_path / "loose.png")
    faces = load_folder(tmp_path, (8, 8))
    assert faces.files == ("Ann/Ann_0001.png", "Ann/Ann_0003.png", "Bob/Bob_0001.png", "Bob/Bob_0002.png")
    assert faces.names == ("Ann", "Bob")  # Cid has no picture left
    whole = load_folder(tmp_path, (8, 8), identities=1)
    assert (whole.images == faces.images[:2]).all()
    reasons = dict(faces.skipped)
    assert set(reasons) == {
        "Ann/Ann_0002.png", "Bob/phone.heic", "Bob/bomb.png", "Cid/Cid_0001.png", "empty", "loose.png",
    }  # fmt: skip
    assert reasons["Ann/Ann_0002.png"].startswith("an empty file")
    assert "64 million" in reasons["Bob/bomb.png"]


def test_min_images_counts_readable_pictures(tmp_path: Path) -> None:
    people(tmp_path, Ann=3, Bob=3, Cid=2)
    (tmp_path / "Bob" / "Bob_0001.png").write_bytes(b"")
    faces = load_folder(tmp_path, (8, 8), min_images=3)
    assert faces.names == ("Ann",) and faces.labels.tolist() == [0, 0, 0]
    assert [name for name, _ in faces.skipped] == ["Cid", "Bob/Bob_0001.png", "Bob"]
    assert load_folder(tmp_path, (8, 8), min_images=2, identities=2).names == ("Ann", "Bob")
    with pytest.raises(
        InputError, match="no identity has 4 usable pictures, the most is 3; lower min_images"
    ):
        load_folder(tmp_path, (8, 8), min_images=4)
    with pytest.raises(InputError, match="identities=0"):
        load_folder(tmp_path, (8, 8), identities=0)


def test_unusable_roots(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; expected layout: ROOT/PERSON/PICTURE"):
        load_folder(tmp_path / "nowhere", (8, 8))
    plain().save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: a file, not a folder"):
        load_folder(tmp_path / "x.png", (8, 8))
    with pytest.raises(
        InputError, match="1 pictures directly in it, but no person's folder; expected layout"
    ):
        load_folder(tmp_path, (8, 8))
    (tmp_path / "x.png").unlink()
    with pytest.raises(InputError, match="no pictures; expected layout"):
        load_folder(tmp_path, (8, 8))
    (tmp_path / "Ann").mkdir()
    (tmp_path / "Ann" / "a.jpg").write_text("no")
    with pytest.raises(InputError, match="none of its 1 pictures can be read, the first: not a picture"):
        load_folder(tmp_path, (8, 8))


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    people(tmp_path, Ann=3, Bob=2)
    calls: list[tuple[int, int]] = []
    load_folder(tmp_path, (8, 8), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]


def test_interrupt_while_loading_passes_through(tmp_path: Path) -> None:
    people(tmp_path, Ann=30)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_folder(tmp_path, (8, 8), progress=stop)


# Faces


def small() -> Faces:
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    labels = np.array([0, 1, 1, 2, 0], np.int64)
    return Faces(images, labels, ("a", "b", "c"), tuple(f"{i}.png" for i in range(5)))


def test_select_and_of() -> None:
    faces = small()
    part = faces.select([4, 1])
    assert (part.images == faces.images[[4, 1]]).all() and part.files == ("4.png", "1.png")
    assert part.names == faces.names and part.labels.tolist() == [0, 1]
    part = faces.of(["c", "a"])
    assert part.names == ("c", "a") and part.labels.tolist() == [1, 0, 1]
    assert part.files == ("0.png", "3.png", "4.png") and part.counts.tolist() == [1, 2]
    assert len(faces.select([])) == 0 and len(faces.of([])) == 0
    with pytest.raises(InputError, match="no identity named 'd'"):
        faces.of(["d"])
    with pytest.raises(InputError, match="names must differ"):
        faces.of(["a", "a"])


def test_inconsistent_fields_are_refused() -> None:
    faces = small()
    for images, labels, names, files in [
        (faces.images.astype(np.float32), faces.labels, faces.names, faces.files),
        (faces.images[..., 0], faces.labels, faces.names, faces.files),
        (faces.images, faces.labels.astype(np.int32), faces.names, faces.files),
        (faces.images, faces.labels[:3], faces.names, faces.files),
        (faces.images, faces.labels, faces.names, faces.files[:3]),
        (faces.images, faces.labels, faces.names[:2], faces.files),
        (faces.images, faces.labels, ("a", "b", "b"), faces.files),
    ]:
        with pytest.raises(InputError):
            Faces(images, labels, names, files)


def test_require_identities() -> None:
    require_identities(small(), 3, "verification")
    with pytest.raises(InputError, match="verification needs pictures of at least 2 people, here are 1"):
        require_identities(small().select([0, 4]), 2, "verification")


def test_written_folder_reads_back(tmp_path: Path) -> None:
    faces = small()
    write_folder(faces, tmp_path / "out")
    back = load_folder(tmp_path / "out", (4, 4))
    order = np.argsort(faces.labels, kind="stable")
    assert (back.images == faces.images[order]).all() and (back.labels == faces.labels[order]).all()
    assert back.names == faces.names and back.files[0] == "a/0.png"
    with pytest.raises(InputError, match="not an empty folder"):
        write_folder(faces, tmp_path / "out")


def test_written_names_never_collide_or_escape(tmp_path: Path) -> None:
    faces = small()
    same = Faces(
        faces.images, faces.labels, faces.names, ("a/1.png", "b/1.jpg", "b/1.bmp", "c/1.jpg", "a/1.webp")
    )
    write_folder(same, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 5
    with pytest.raises(InputError, match=r"x: two pictures of 'b' have this name"):
        write_folder(Faces(faces.images, faces.labels, faces.names, ("x",) * 5), tmp_path / "double")
    for name in ("../up", "", "a/b", "..", " "):
        with pytest.raises(InputError, match="cannot be the name of a folder"):
            write_folder(Faces(faces.images, faces.labels, (name, "b", "c"), faces.files), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


# Published sets, in torchvision's layout


def celeba(root: Path) -> Path:
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    owners = {"000001.jpg": 2880, "000002.jpg": 35, "000003.jpg": 2880, "000004.jpg": 7, "000005.jpg": 7}
    lines = [f"{file} {owner}\n" for file, owner in owners.items()]
    (root / "celeba" / "identity_CelebA.txt").write_text("".join(lines))
    for file in list(owners)[:4]:
        picture = Image.new("RGB", (178, 218), RED)
        picture.paste(GREEN, (30, 57, 147, 174))
        picture.save(folder / file, quality=95, subsampling=0)
    return root


def test_celeba(tmp_path: Path) -> None:
    faces = load_faces(f"celeba:{celeba(tmp_path)}", (64, 64))
    assert faces.names == ("2880", "35", "7") and faces.labels.tolist() == [0, 0, 1, 2]
    assert faces.files[:2] == ("celeba/img_align_celeba/000001.jpg", "celeba/img_align_celeba/000003.jpg")
    assert near(faces.images[:, 2:-2, 2:-2], GREEN, 12)  # the stated crop, nothing around it
    assert faces.skipped == (("celeba/img_align_celeba", "1 of 5 pictures listed are absent"),)
    assert near(load_celeba(tmp_path, (64, 64), align_crop=False).images[0][:, :4], RED, 12)
    assert load_faces(f"celeba:{tmp_path}", (64, 64), min_images=2).names == ("2880",)


def test_celeba_absent_or_malformed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"img_align_celeba: not there; get img_align_celeba\.zip .*unpack"):
        load_faces(f"celeba:{tmp_path}", (64, 64))
    listing = celeba(tmp_path) / "celeba" / "identity_CelebA.txt"
    listing.write_text("000001.jpg 2880\n000002.jpg\n")
    with pytest.raises(InputError, match=r"identity_CelebA\.txt: line 2 is '000002\.jpg'"):
        load_faces(f"celeba:{tmp_path}", (64, 64))
    listing.write_text("999999.jpg 1\n")
    with pytest.raises(InputError, match="holds none of the pictures"):
        load_faces(f"celeba:{tmp_path}", (64, 64))
    listing.unlink()
    with pytest.raises(InputError, match=r"identity_CelebA\.txt: not there"):
        load_faces(f"celeba:{tmp_path}", (64, 64))


@pytest.mark.parametrize("folder", ["lfw_funneled", "lfw-deepfunneled", "lfw"])
def test_lfw(tmp_path: Path, folder: str) -> None:
    for name, count in (("Aaron_Eckhart", 1), ("Abba_Eban", 2)):
        (tmp_path / "lfw-py" / folder / name).mkdir(parents=True)
        for i in range(1, count + 1):
            picture = Image.new("RGB", (250, 250), RED)
            picture.paste(GREEN, (61, 55, 189, 183))
            picture.save(
                tmp_path / "lfw-py" / folder / name / f"{name}_{i:04d}.jpg", quality=95, subsampling=0
            )
    (tmp_path / "lfw-py" / folder / "pairs_01.txt").write_text("")
    faces = load_faces(f"lfw:{tmp_path}", (32, 32))
    assert faces.files[0] == "Aaron_Eckhart/Aaron_Eckhart_0001.jpg" and faces.counts.tolist() == [1, 2]
    assert near(faces.images[:, 2:-2, 2:-2], GREEN, 12)
    assert near(load_lfw(tmp_path, (32, 32), align_crop=False).images[0][:4], RED, 12)


def test_lfw_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lfw-py: no LFW there; get lfw-funneled\.tgz from https"):
        load_faces(f"lfw:{tmp_path}", (32, 32))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder over HTTP on this machine, as (folder, address)."""
    (folder := tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_lfw_download_verifies_and_unpacks(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    people(tmp_path / "made", Ann=1, Bob=2)
    with tarfile.open(folder / "lfw-funneled.tgz", "w:gz") as tar:
        tar.add(tmp_path / "made", "lfw_funneled")
    digest = hashlib.sha256((folder / "lfw-funneled.tgz").read_bytes()).hexdigest()
    good = Archive("lfw-funneled.tgz", f"{address}/lfw-funneled.tgz", digest)
    base = tmp_path / "data" / "lfw-py"
    with pytest.raises(InputError, match=f"not the expected file, its SHA-256 is {digest}; get "):
        download_lfw(base, (good._replace(sha256="0" * 64),))
    assert not (base / good.file).exists()  # or the next attempt would take it for a finished download
    download_lfw(base, (good,))
    assert load_lfw(tmp_path / "data", (8, 8)).counts.tolist() == [1, 2]


def test_failed_downloads_say_what_to_do_by_hand(tmp_path: Path) -> None:
    closed = Archive("lfw-funneled.tgz", "http://127.0.0.1:9/lfw-funneled.tgz", "0" * 64)
    with pytest.raises(
        InputError, match=r"LFW cannot be downloaded \(.*\); get lfw-funneled\.tgz from"
    ) as caught:
        download_lfw(tmp_path / "lfw-py", (closed,))
    assert "\n" not in str(caught.value)
    (tmp_path / "file").touch()  # fails before any network is needed: the folder cannot be made
    with pytest.raises(InputError, match=r"CelebA cannot be downloaded \(.*\); get img_align_celeba\.zip"):
        load_celeba(tmp_path / "file", (8, 8), download=True)


def test_archives_are_pinned_by_hash() -> None:
    for archive in (published.LFW_ARCHIVE, published.LFW_PAIRS):
        assert archive.url.startswith("https://") and len(bytes.fromhex(archive.sha256)) == 32


# One entry point


def test_load_synthetic() -> None:
    faces = load_faces("synthetic:identities=3,images=2,seed=1", (32, 32))
    assert faces.images.shape == (6, 32, 32, 3) and faces.counts.tolist() == [2, 2, 2]
    again = load_faces("synthetic:identities=3,images=2,seed=1", (32, 32))
    other = load_faces("synthetic:identities=3,images=2,seed=2", (32, 32))
    assert (again.images == faces.images).all() and (other.images != faces.images).any()
    assert load_faces("synthetic:identities=3,images=2", (32, 32), identities=2).names == faces.names[:2]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("synthetic:people=3", "unknown option 'people'"),
        ("synthetic:image=3", "did you mean 'images'"),
        ("synthetic:images=two", "images must be a whole number, not 'two'"),
        ("synthetic:images=-2", "images must be a whole number"),
        ("synthetc", "did you mean 'synthetic'"),
        ("celebra:/data", "did you mean 'celeba'"),
        ("imagenet:/data", "give synthetic, celeba, lfw or a folder"),
        ("celeba", "say where it lies, as 'celeba:/data'"),
        ("lfw:", "say where it lies"),
        ("/no/such/folder", "no such folder; expected layout"),
        ("", "the source is empty; give synthetic"),
    ],
)
def test_unknown_sources(source: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_faces(source, (32, 32))
    assert words in str(caught.value)


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only celeba:ROOT and lfw:ROOT can be downloaded"):
        load_faces(tmp_path, (32, 32), download=True)
    with pytest.raises(InputError, match="synthetic faces are square"):
        load_faces("synthetic", (32, 24))
    with pytest.raises(InputError, match="give \\(height, width\\)"):
        load_faces("synthetic", (0, 0))


def test_load_takes_a_folder_as_text_or_path(tmp_path: Path) -> None:
    people(tmp_path, Ann=1, Bob=1)
    assert load_faces(str(tmp_path), (8, 8)).files == load_faces(tmp_path, (8, 8)).files


@pytest.mark.skipif(not (REAL / "photos").is_dir(), reason="no ../shared/data/photos here")
def test_real_photos() -> None:
    faces = load_faces(REAL / "photos", (112, 112))
    assert len(faces.names) == 16 and len(faces) > 100 and faces.skipped == ()
    assert faces.images.std() > 40


@pytest.mark.skipif(not (REAL / "orl").is_dir(), reason="no ../shared/data/orl here")
def test_real_grey_faces() -> None:
    faces = load_faces(REAL / "orl", (56, 46))
    assert faces.counts.tolist() == [10] * 40
    assert (faces.images[..., 0] == faces.images[..., 2]).all()
