"""Procedural faces: people who do not exist, drawn from a seed with numpy alone.

For demonstrations and tests that must run where no face data is. Who it is (`SyntheticIdentity`) is a set
of shape and albedo parameters; what else a picture shows (`Shot`: pose, light, expression, occlusion,
lens) is drawn anew each time and moves far more pixels than the identity does, as in real photographs.

A head is two shells, skin and hair. A shell is a stack of ellipses, one per height y, so a ray meets it in
closed form whatever the yaw; its texture, over the angle u around the head and y, holds albedo, normals
and relief. A picture then is: paint the expression into the texture, cast one ray per pixel, shade
(Lambert with a wrapped terminator, ambient from above, Blinn's highlight), and look through a Gaussian lens.
Lengths are in half face widths, x to the right, y up, z to the camera; angles in radians; light is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces

__all__ = ["Shot", "SyntheticIdentity", "draw", "identity", "render", "shot", "synthetic_faces"]

Array = NDArray[Any]  # float32 throughout, which numpy's stubs lose sight of in mixed arithmetic
Colour = tuple[float, float, float]

_U, _Y = 2.5, 2.0  # a texture spans the angles -_U.._U and the heights _Y (first row) .. -_Y (last row)
_VIEW = 1.62  # half the height of the picture at scale 1
_FINE = 2048  # rows of a profile
_SKIN = ((252, 222, 200), (240, 196, 164), (226, 174, 136), (202, 146, 106), (160, 106, 74), (108, 70, 52))
_HAIR = ((18, 15, 15), (42, 28, 22), (78, 52, 34), (126, 88, 54), (186, 146, 90), (216, 188, 138))
_IRIS = ((46, 28, 18), (84, 52, 26), (112, 92, 48), (88, 116, 84), (92, 130, 158), (130, 150, 162))


@dataclass(frozen=True)
class SyntheticIdentity:
    """Who it is: everything that stays the same in all pictures of one person."""

    face_width: float
    chin: float  # height of the chin's tip
    chin_width: float
    jaw: float
    forehead: float
    crown: float
    eye_spacing: float
    eye_width: float
    eye_height: float
    eye_level: float
    eye_tilt: float
    eye_depth: float
    lid: float  # how deep the crease above the eye is
    brow_gap: float
    brow_thickness: float
    brow_tilt: float
    brow_arch: float
    nose_length: float
    nose_width: float
    nose_height: float
    nose_bridge: float
    nose_tip: float
    mouth_level: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    cheekbone: float
    fold: float  # nasolabial fold and other lines of age
    ear: float
    beard: float
    freckles: float
    hairline: float
    recession: float
    fringe: float  # how far hair falls over the forehead; below 0, it is parted like a curtain
    parting: float
    hair_length: float  # height at which the hair ends
    hair_volume: float
    curl: float
    skin: Colour
    lips: Colour
    hair: Colour
    iris: Colour
    grain: int  # seeds moles, freckles and strands

    @property
    def bald(self) -> bool:
        """Only a wreath of hair above the ears is left."""
        return self.hair_volume == 0.0

    @property
    def nose_base(self) -> float:
        """Height of the nostrils."""
        return self.eye_level - self.nose_length

    @property
    def mouth_line(self) -> float:
        """Height at which the lips meet."""
        return self.nose_base - self.mouth_level


_RANGES: dict[str, tuple[float, float]] = {
    "face_width": (0.88, 1.06), "chin": (-1.40, -1.16), "chin_width": (0.36, 0.72), "jaw": (0.70, 0.94),
    "forehead": (0.84, 1.0), "crown": (1.28, 1.42), "eye_spacing": (0.34, 0.48), "eye_width": (0.17, 0.255),
    "eye_height": (0.07, 0.135), "eye_level": (0.06, 0.22), "eye_tilt": (-0.16, 0.26),
    "eye_depth": (0.02, 0.11), "lid": (0.0, 1.0), "brow_gap": (0.2, 0.33), "brow_thickness": (0.03, 0.062),
    "brow_tilt": (-0.1, 0.22), "brow_arch": (0.0, 0.1), "nose_length": (0.42, 0.68),
    "nose_width": (0.15, 0.29), "nose_height": (0.2, 0.36), "nose_bridge": (0.05, 0.12),
    "nose_tip": (0.09, 0.16), "mouth_level": (0.2, 0.32), "mouth_width": (0.29, 0.45),
    "upper_lip": (0.045, 0.105), "lower_lip": (0.065, 0.145), "cheekbone": (0.0, 0.09), "ear": (0.8, 1.25),
    "hairline": (0.78, 1.06), "parting": (-1.0, 1.0), "hair_volume": (0.05, 0.22),
}  # fmt: skip
"""Uniform ranges of the parameters that depend on nothing else."""


@dataclass(frozen=True)
class Shot:
    """Everything else: what changes from picture to picture. The defaults are a neutral portrait."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    light: tuple[float, float] = (0.3, 0.5)  # azimuth and elevation of the key light
    key: Colour = (0.85, 0.83, 0.8)
    ambient: Colour = (0.45, 0.46, 0.48)
    exposure: float = 1.0
    contrast: float = 1.0
    blur: float = 0.9  # of the lens, in rendered (half) pixels
    noise: float = 0.0
    smile: float = 0.1
    mouth: float = 0.0  # how far open
    brow: float = 0.0  # raised
    frown: float = 0.0
    eyes: float = 1.0  # how far open
    gaze: tuple[float, float] = (0.0, 0.0)
    make_up: float = 0.0
    backdrop: Colour = (0.3, 0.33, 0.36)
    clutter: float = 0.0
    cloth: Colour = (0.08, 0.1, 0.2)
    accessory: Colour = (0.02, 0.02, 0.03)
    glasses: float = 0.0  # 0 none, else size
    tint: float = 0.0  # of the lenses: 1 is black
    hat: bool = False
    scarf: bool = False
    hand: float = 0.0  # 0 none, else the side it comes from, -1 or 1
    strand: float = 0.0  # 0 none, else where a lock of hair hangs


# --- who and how -----------------------------------------------------------------------------------------


def _rng(*key: int) -> np.random.Generator:
    """The generator of one key, independent of that of every other."""
    return np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:]))


def _natural(key: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{key} is {value!r}: give a whole number, at least {least}")
    return int(value)


def _shade_of(palette: tuple[tuple[int, int, int], ...], at: float) -> NDArray[np.float64]:
    """The linear colour a fraction `at` along a palette of sRGB colours (gamma taken as 2)."""
    steps = np.linspace(0.0, 1.0, len(palette))
    return np.array([np.interp(at, steps, channel) for channel in np.array(palette).T / 255.0]) ** 2


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = np.maximum(values, 0.002)
    return float(red), float(green), float(blue)


def identity(seed: int, index: int) -> SyntheticIdentity:
    """Person `index` of the population `seed`; the same however many others exist.

    InputError: either is not a whole number from 0.
    """
    rng = _rng(_natural("seed", seed, 0), 0, _natural("index", index, 0))
    values: dict[str, Any] = {name: float(rng.uniform(*span)) for name, span in _RANGES.items()}
    man, age, dark = rng.random() < 0.5, rng.random(), rng.random() ** 1.3
    fair = rng.random() * (1.0 - 0.9 * min(1.0, 1.4 * dark))  # fair hair and light eyes go with fair skin
    tone = _shade_of(_SKIN, dark) * (1.0 + rng.uniform(-0.06, 0.06, 3))
    grey = rng.random() * max(0.0, age - 0.55) * 2.0
    hair = _shade_of(_HAIR, fair * 1.1) * (1.0 + fair * rng.random() * np.array([0.5, -0.15, -0.4]))
    bald = man and rng.random() < 0.1 + 0.25 * age
    short = man if rng.random() < 0.85 else not man
    values |= {
        "fold": 0.15 + 0.85 * age,
        "beard": float(rng.choice([0.0, 0.2, 0.45, 0.95])) if man else 0.0,
        "freckles": max(0.0, rng.random() - 0.5 - 0.6 * dark) * 2.0,
        "recession": float(rng.uniform(0.0, 0.2)) * man,
        "fringe": 0.0 if man and age > 0.4 else float(rng.uniform(-0.6, 0.42)),
        "hair_length": float(rng.uniform(-0.35, 0.25) if short else rng.uniform(-1.9, -0.7)),
        "curl": max(0.0, float(rng.uniform(-0.6, 1.0))),
    }
    if bald:
        values |= {
            "hairline": 1.3,
            "hair_volume": 0.0,
            "fringe": 0.0,
            "hair_length": 0.1,
            "curl": 0.0,
            "crown": 1.28,
        }
    if man:
        values["brow_thickness"] *= 1.3
        values["jaw"] += 0.04
    lips = tone * np.array([0.85, 0.42, 0.45]) * rng.uniform(0.7, 1.05)
    iris = _shade_of(_IRIS, min(1.0, fair * 1.3)) * rng.uniform(0.8, 1.2)
    colours = {"skin": tone, "lips": lips, "hair": hair * (1 - grey) + grey * 0.42, "iris": iris}
    values |= {name: _colour(value) for name, value in colours.items()}
    return SyntheticIdentity(**values, grain=int(rng.integers(2**31)))


def _scene(rng: np.random.Generator) -> Shot:
    """Pose, light, lens, background and clothes."""
    warmth, tinge = rng.normal(0.0, 0.24), rng.normal(0.0, 0.08)
    cast = np.exp([warmth, tinge, -warmth])
    fill = cast * np.exp(rng.normal(0.0, 0.12, 3))
    hard = rng.uniform(0.3, 0.98)  # share of the light that comes from one side
    backdrop, cloth, plastic = (
        rng.uniform(0.05, 0.9) ** 2 * np.exp(rng.normal(0.0, spread, 3)) for spread in (0.3, 0.5, 0.6)
    )
    return Shot(
        yaw=float(np.clip(rng.normal(0.0, 0.36), -0.7, 0.7)),
        pitch=float(np.clip(rng.normal(0.0, 0.13), -0.3, 0.3)),
        roll=float(rng.normal(0.0, 0.12)),
        scale=float(np.exp(rng.normal(-0.02, 0.09))),
        shift=(float(rng.normal(0.0, 0.1)), float(rng.normal(0.0, 0.1))),
        light=(float(rng.uniform(-1.4, 1.4)), float(rng.uniform(-0.2, 1.1))),
        key=_colour(1.3 * hard * cast),
        ambient=_colour((0.84 - 0.68 * hard) * fill),
        exposure=float(np.exp(rng.normal(0.06, 0.42))),
        contrast=float(rng.uniform(0.7, 1.2)),
        blur=float(rng.uniform(0.75, 1.9)),
        noise=float(rng.uniform(0.0, 0.03)),
        backdrop=_colour(backdrop),
        clutter=float(rng.uniform(0.0, 1.3)),
        cloth=_colour(np.minimum(cloth, 0.9)),
        accessory=_colour(np.minimum(0.7 * plastic, 0.8)),
    )


def _acted(rng: np.random.Generator, how: Shot) -> Shot:
    """The scene with an expression, and now and then something that hides a part of the face."""
    laugh = max(0.0, rng.normal(0.3, 0.5))
    chance = rng.random(9)
    return replace(
        how,
        smile=float(min(1.0, laugh) if chance[0] < 0.8 else -0.35),
        mouth=float(max(0.0, rng.normal(0.5 * laugh - 0.2, 0.4))),
        brow=float(rng.normal(0.0, 0.035)),
        frown=float(max(0.0, rng.normal(0.0, 0.5))),
        eyes=float(np.clip(rng.normal(0.95, 0.16), 0.5, 1.3) if chance[1] < 0.95 else 0.06),
        gaze=(float(rng.normal(0.0, 0.22)), float(rng.normal(0.0, 0.12))),
        make_up=float(np.clip(rng.normal(-0.2, 0.5), 0.0, 1.0)),
        glasses=float(rng.uniform(0.85, 1.15)) if chance[2] < 0.15 else 0.0,
        tint=0.9 if chance[3] < 0.15 else 0.0,
        hat=bool(chance[4] < 0.12),
        scarf=bool(chance[5] < 0.05),
        hand=float(np.sign(chance[6] - 0.5)) if chance[7] < 0.06 else 0.0,
        strand=float(rng.uniform(-0.7, 0.7)) if chance[8] < 0.12 else 0.0,
    )


def shot(rng: np.random.Generator) -> Shot:
    """Conditions of one picture, as they vary where nobody asks people to hold still."""
    return _acted(rng, _scene(rng))


# --- small mathematics -----------------------------------------------------------------------------------


def _step(value: Array, width: float) -> Array:
    """0 to 1 as `value` goes from -width/2 to width/2, smoothly."""
    ramp = np.minimum(np.maximum(value * (1.0 / width) + 0.5, 0.0), 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def _bell(x: Array, y: Array, x0: float, y0: float, sx: float, sy: float) -> Array:
    """Gaussian bump of height 1 at (x0, y0)."""
    return np.exp(((x - x0) / sx) ** 2 * -0.5 + ((y - y0) / sy) ** 2 * -0.5)


def _ridge(value: Array, width: float | Array) -> Array:
    """Gaussian of height 1 and standard deviation `width` around 0."""
    return np.asarray(np.exp(-0.5 * (value / width) ** 2))


@lru_cache(maxsize=256)
def _resample(out: int, into: int, sigma: float) -> Array:
    """[out, into] matrix that resamples a line with a Gaussian of `sigma` input samples; rows sum to one."""
    centres = (np.arange(out) + 0.5) * (into / out)
    weights = np.exp(-0.5 * ((centres[:, None] - np.arange(into) - 0.5) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _cloud(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int], planes: int = 1
) -> Array:
    """Smooth noise [planes, *shape] with `cells` independent values; standard deviation about a half."""
    coarse = rng.standard_normal((planes, *cells), dtype=np.float32)
    return _resample(shape[0], cells[0], 0.6) @ coarse @ _resample(shape[1], cells[1], 0.6).T


# --- shells: geometry, relief, albedo --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Shell:
    """A stack of ellipses and what is on it.

    profile: [_FINE, 3], half width, half depth and centre's z of each ellipse, from y = _Y to -_Y.
    texture: [8, rows, columns]: albedo (3), normal (3), relief towards z (skin) or opacity (hair), gloss.
    x: [rows, columns], y: [rows, 1], where each texel lies when the head faces the camera.
    """

    profile: Array
    texture: Array
    x: Array
    y: Array


def _heights(rows: int) -> Array:
    return (_Y - (np.arange(rows, dtype=np.float32) + 0.5) * (2 * _Y / rows)).astype(np.float32)


def _skin_profile(who: SyntheticIdentity) -> Array:
    """The head: wide at the cheekbones, jaw and chin as the identity says."""
    y = _heights(_FINE)
    knots = [who.chin - 0.6, who.chin, 0.55 * who.chin, 0.0, 0.75, who.crown + 0.5]
    widths = [who.chin_width, who.chin_width * 1.15, who.jaw, 1.0, who.forehead, who.forehead * 0.95]
    smooth = np.interp(y, knots, np.array(widths) * who.face_width).astype(np.float32)
    blur = _ridge(np.arange(-240, 241), 80.0).astype(np.float32)
    smooth = np.convolve(np.pad(smooth, 240, mode="edge"), blur / blur.sum(), mode="valid").astype(np.float32)
    below, above = np.clip(y / who.chin, 0.0, 1.0), np.clip(y / who.crown, 0.0, 1.0)
    round_off = np.sqrt(np.maximum(0.0, (1.0 - below**5) * (1.0 - above**3.2)))
    width = smooth * round_off
    front = np.sqrt(np.maximum(0.0, 1.0 - above**3.2)) * (1.0 - 0.06 * below**2)
    depth = width * (1.0 + 0.1 * (1.0 - below))
    return np.stack([width, depth, front - depth], axis=1).astype(np.float32)


def _hair_profile(who: SyntheticIdentity) -> Array:
    """The hair's hull: the skull plus the hair's thickness, down to where the hair ends."""
    y = _heights(_FINE)
    top, bottom = who.crown + 0.7 * who.hair_volume, min(who.hair_length, 0.1) - 0.35
    above = np.clip(y / top, 0.0, 1.0)
    below = np.clip((0.35 - y) / (0.35 - bottom), 0.0, 1.0)
    full = who.face_width * (1.0 + who.hair_volume) * (1.0 + 0.08 * np.clip(-y, 0.0, 1.5))
    full *= 1.0 + 0.07 * who.curl * _cloud(np.random.default_rng(who.grain), (1, _FINE), (1, 30))[0, 0]
    width = full * np.sqrt(np.maximum(0.0, (1.0 - above**2.8) * (1.0 - below**6)))
    front = np.sqrt(np.maximum(0.0, 1.0 - above**2.8)) * (1.02 + 0.5 * who.hair_volume)
    depth = width * 1.12
    return np.stack([width, depth, front - depth], axis=1).astype(np.float32)


def _grid(profile: Array, rows: int, columns: int) -> tuple[Array, Array, Array, Array]:
    """Angle u [1, columns], height y [rows, 1], and x and z [rows, columns] of each texel."""
    u = (((np.arange(columns, dtype=np.float32) + 0.5) / columns * 2 - 1) * _U)[None, :]
    y = _heights(rows)[:, None]
    nearest = profile[((np.arange(rows) + 0.5) * (_FINE / rows)).astype(int)]
    x = nearest[:, :1] * np.sin(u)
    z = nearest[:, 2:] + nearest[:, 1:2] * np.cos(u)
    return u, y, x.astype(np.float32), z.astype(np.float32)


def _normals(x: Array, y: Array, z: Array) -> Array:
    """Unit outward normals [3, rows, columns] of the surface (x, y, z)."""
    xu, zu = np.gradient(x, axis=1), np.gradient(z, axis=1)
    rise = -np.gradient(y, axis=0)
    xy, zy = -np.gradient(x, axis=0), -np.gradient(z, axis=0)
    normal = np.stack([-zu * rise, zu * xy - xu * zy, xu * rise])
    return np.asarray(normal / np.sqrt((normal**2).sum(axis=0) + 1e-12), np.float32)


def _relief(who: SyntheticIdentity, x: Array, y: Array) -> Array:
    """Height of nose, brow, sockets, cheeks, lips and chin over the smooth head."""
    side, tip = np.abs(x), who.nose_base
    mouth = who.mouth_line
    down = np.clip((who.eye_level + 0.08 - y) / (who.nose_length + 0.08), 0.0, 1.0)
    ridge = _ridge(x, who.nose_bridge + 0.045 * down) * _step(y - tip + 0.01, 0.13)
    height = who.nose_height * (0.28 + 0.55 * down) * down**0.5 * ridge
    height += 0.45 * who.nose_height * _bell(x, y, 0.0, tip + 0.06, who.nose_tip * 0.8, 0.085)
    height += 0.32 * who.nose_height * _bell(side, y, who.nose_width * 0.72, tip + 0.05, 0.06, 0.065)
    height -= (0.05 + who.eye_depth) * _bell(side, y, who.eye_spacing, who.eye_level, 0.17, 0.13)
    height += 0.055 * _bell(side, y, who.eye_spacing, who.eye_level, 0.11, 0.075)
    height += (0.02 + 0.4 * who.eye_depth) * _bell(
        side, y, who.eye_spacing * 0.95, who.eye_level + 0.27, 0.28, 0.08
    )
    height += who.cheekbone * _bell(side, y, 0.62, who.eye_level - 0.32, 0.2, 0.15)
    height -= 0.035 * _bell(side, y, 0.6, mouth, 0.18, 0.25)
    height += 0.07 * _bell(x, y, 0.0, mouth, who.mouth_width * 0.75, 0.2)
    height -= 0.02 * _bell(x, y, 0.0, tip - 0.09, 0.035, 0.06)
    height -= 0.05 * _bell(x, y, 0.0, mouth - who.lower_lip - 0.09, who.mouth_width * 0.5, 0.05)
    height += 0.07 * _bell(x, y, 0.0, who.chin + 0.17, 0.16, 0.12)
    fold = side - (who.nose_width + 0.05 + 0.45 * np.clip(tip + 0.06 - y, 0.0, 1.0))
    along = _step(tip + 0.08 - y, 0.12) * _step(y - mouth + 0.08, 0.2)
    return np.asarray(height - 0.02 * who.fold * _ridge(fold, 0.035) * along, np.float32)


def _hair_edge(who: SyntheticIdentity, u: Array) -> Array:
    """Height of the hairline at each angle; hair is above it."""
    side = np.abs(u)
    sweep = _ridge(u - 0.5 * who.parting, 0.16)
    front = who.hairline + who.recession * _ridge(side - 0.62, 0.2)
    front = front - max(who.fringe, 0.0) * (1.0 - 0.6 * sweep) + 0.1 * who.parting * u - 0.12 * side**2
    front = front - 0.6 * max(-who.fringe, 0.0) * np.abs(u - 0.4 * who.parting)
    front = np.minimum(front, who.crown - 0.12)
    edge = front + (who.hair_length - front) * _step(side - (1.2 if who.hair_length > -0.5 else 1.0), 0.5)
    if who.hair_length > -0.5:  # short hair leaves the ear free
        edge += (0.36 - who.hair_length) * _ridge(side - 1.68, 0.17)
    return edge.astype(np.float32)


def _dimming(who: SyntheticIdentity, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """How much darker than the bare skin each texel is: sockets, nostrils, wrinkles, moles, freckles."""
    side, base = np.abs(x), who.nose_base
    tired = 0.12 * (0.4 + who.fold)
    dim = 1.0 - 0.22 * _bell(side, y, who.eye_spacing, who.eye_level, who.eye_width * 1.25, 0.12)
    dim -= tired * _bell(side, y, who.eye_spacing * 0.95, who.eye_level - 0.14, 0.14, 0.04)
    dim -= 0.6 * _bell(side, y, who.nose_width * 0.48, base - 0.02, 0.032, 0.02)
    dim -= 0.12 * _bell(x, y, 0.0, base - 0.05, who.nose_width * 0.7, 0.04)
    for level in (0.16, 0.3, 0.44):
        wrinkle = y - who.eye_level - who.brow_gap - level + 0.06 * x**2
        dim -= 0.16 * max(0.0, who.fold - 0.5) * _ridge(wrinkle, 0.02) * _step(0.55 - side, 0.3)
    for _ in range(int(rng.integers(0, 4)) + int(60 * who.freckles)):
        spot, size = (rng.normal(0, 0.35), rng.normal(-0.15, 0.3)), rng.uniform(0.012, 0.022)
        dim -= rng.uniform(0.1, 0.3 if who.freckles else 0.6) * _bell(x, y, *spot, size, size)
    return dim


def _beard(who: SyntheticIdentity, x: Array, y: Array, u: Array, rng: np.random.Generator) -> Array:
    """Opacity of beard or stubble."""
    side = np.abs(x)
    rows, columns = x.shape
    area = _step(who.nose_base - 0.1 - y + 0.5 * np.clip(side - 0.3, 0.0, 1.0), 0.25)
    area = area * _step(1.75 - np.abs(u), 0.3)
    area *= 1.0 - 0.9 * _bell(x, y, 0.0, who.mouth_line, who.mouth_width * 0.85, 0.09)
    hairs = _cloud(rng, (rows, columns), (rows // 2, columns // 2))[0]
    return np.asarray(who.beard * area * np.clip(0.85 + 0.25 * hairs, 0.0, 1.0))


def _complexion(who: SyntheticIdentity, x: Array, y: Array, u: Array, relief: Array) -> Array:
    """Skin albedo [3, rows, columns] without eyes, brows and mouth."""
    rng = np.random.default_rng(who.grain)
    rows, columns = relief.shape
    side, base = np.abs(x), who.nose_base
    blush = 0.05 * _cloud(rng, (rows, columns), (24, 32))[0]
    blush += 0.25 * _bell(side, y, 0.55, base + 0.05, 0.22, 0.2)
    blush += 0.22 * _bell(x, y, 0.0, base + 0.04, 0.16, 0.12)
    blush += 0.2 * _bell(np.abs(u), y, 1.6, 0.0, 0.2, 0.3)
    dim = _dimming(who, x, y, rng)
    around = _resample(rows, rows, rows * 0.02) @ relief @ _resample(columns, columns, columns * 0.02).T
    dim *= 1.0 - np.clip(3.5 * (around - relief), -0.1, 0.35)  # creases see less of the sky
    if not who.bald:  # shadow of the hair
        dim *= 1.0 - 0.42 * _step(y - _hair_edge(who, u) + 0.12, 0.4)
    tint = _column((0.1, -0.28, -0.25))[:, None]  # of blood under the skin
    albedo = _column(who.skin)[:, None] * np.clip(dim, 0.08, 1.1) * (1.0 + tint * blush)
    beard = _beard(who, x, y, u, rng)
    return np.asarray(albedo + beard * (0.8 * _column(who.hair)[:, None] - albedo), np.float32)


@lru_cache(maxsize=4)
def _head(who: SyntheticIdentity, size: int) -> _Shell:
    profile = _skin_profile(who)
    u, y, x, z = _grid(profile, 5 * size // 2, 7 * size // 2)
    relief = _relief(who, x, y) * (np.cos(np.clip(u, -1.5, 1.5)) > 0.05)
    texture = np.empty((8, *x.shape), np.float32)
    texture[0:3] = _complexion(who, x, y, u, relief)
    texture[3:6] = _normals(x, np.broadcast_to(y, x.shape), z + relief)
    texture[6] = relief
    texture[7] = 0.16 + 0.12 * _bell(x, y, 0.0, 0.0, 0.25, 0.6)
    return _Shell(profile, texture, x, y)


@lru_cache(maxsize=4)
def _hair(who: SyntheticIdentity, size: int) -> _Shell:
    profile = _hair_profile(who)
    u, y, x, z = _grid(profile, 5 * size // 2, 7 * size // 2)
    rng = np.random.default_rng(who.grain + 1)
    rows, columns = x.shape
    strands = _cloud(rng, (rows, columns), (5 + int(25 * who.curl), 90))[0]
    locks = _cloud(rng, (rows, columns), (4 + int(14 * who.curl), 26))[0]
    ragged = 0.4 + 1.2 * max(who.fringe, 0.0) + 0.5 * who.curl
    edge = y - _hair_edge(who, u) + ragged * (0.05 * strands + 0.05 * locks)
    if who.bald:
        edge = np.minimum(edge - 0.05, 0.8 - 0.15 * np.abs(np.abs(u) - 2.2) - y + 0.05 * strands)
    texture = np.empty((8, rows, columns), np.float32)
    tone = np.clip(1.0 + 0.35 * strands + 0.3 * locks, 0.35, 1.8) * (0.6 + 0.4 * _step(edge - 0.1, 0.3))
    texture[0:3] = _column(who.hair)[:, None] * tone
    texture[3:6] = _normals(
        x, np.broadcast_to(y, x.shape), z + 0.02 * strands + (0.02 + 0.03 * who.curl) * locks
    )
    texture[6] = _step(edge, 0.09)
    texture[7] = 0.5 * (1.0 - 0.6 * who.curl)
    return _Shell(profile, texture, x, y)


# --- one picture -----------------------------------------------------------------------------------------


def _column(colour: Colour) -> Array:
    """A colour as [3, 1], to meet [3, n]."""
    return np.array(colour, np.float32)[:, None]


def _blend(under: Array, opacity: Array, over: Sequence[Array | float] | Array) -> None:
    """Lay `over` on the planes of `under`, in place."""
    for plane, value in zip(under, over, strict=True):
        plane += opacity * (value - plane)


def _lay(canvas: Array, pixels: NDArray[np.intp], opacity: Array, colour: Array) -> None:
    """Blend `colour` [3, k] or [3, 1] over `pixels` of the canvas [3, n]."""
    under = canvas.take(pixels, axis=1)
    canvas[:, pixels] = under + opacity * (colour - under)


def _window(shell: _Shell, left: float, right: float, low: float, high: float) -> tuple[slice, slice]:
    """Rows and columns of the texture between two angles and two heights."""
    rows, columns = shell.x.shape
    row = [int((_Y - y) * rows / (2 * _Y)) for y in (high, low)]
    column = [int((u + _U) * columns / (2 * _U)) for u in (left, right)]
    return slice(max(row[0], 0), row[1]), slice(max(column[0], 0), column[1])


def _paint_eyes(who: SyntheticIdentity, how: Shot, skin: Array, x: Array, y: Array) -> None:
    """Eyeballs and lids into the albedo [3, rows, columns]."""
    side = np.sign(x)
    out = np.abs(x) - who.eye_spacing  # outwards from the middle of either eye
    e, r = out / who.eye_width, y - who.eye_level - who.eye_tilt * out
    bow = np.sqrt(np.maximum(0.0, 1.0 - e * e))
    upper = how.eyes * who.eye_height * bow * (1.0 - 0.12 * e)
    squint = min(1.0, how.eyes * 1.3) * (1.0 - 0.3 * max(0.0, how.smile))
    lower = -0.62 * who.eye_height * squint * bow * (1.0 + 0.12 * e)
    inside = _step(upper - r, 0.03) * _step(r - lower, 0.03) * _step(1.0 - np.abs(e), 0.1)
    white = np.clip(0.52 - 0.22 * e * e - 2.2 * np.clip(r - upper + 0.06, 0.0, 0.1), 0.1, 1.0)
    _blend(skin, inside, (white, white * 0.93, white * 0.9))
    gx, gy = side * out - how.gaze[0] * 0.07, r - how.gaze[1] * 0.04 - 0.008
    radius = np.sqrt(gx * gx + gy * gy)
    iris = 0.1
    _blend(skin, inside * _step(iris - radius, 0.025), tuple(c * 0.3 for c in who.iris))
    _blend(skin, inside * _step(iris * 0.8 - radius, 0.025), tuple(c * 1.2 for c in who.iris))
    _blend(skin, inside * _step(iris * 0.42 - radius, 0.02), (0.004, 0.004, 0.005))
    glint = np.sqrt((gx - 0.035 * np.sin(how.light[0])) ** 2 + (gy - 0.03) ** 2)
    _blend(skin, inside * _step(0.017 - glint, 0.02), (1.3, 1.3, 1.3))
    lash = _ridge(r - upper - 0.008, 0.016) * _step(1.08 - np.abs(e), 0.2)
    _blend(skin, (0.75 + 0.2 * how.make_up) * lash, (0.01, 0.008, 0.008))
    rim = 0.3 * _ridge(r - lower, 0.014) * _step(1.0 - np.abs(e), 0.2)
    _blend(skin, rim, (0.06, 0.03, 0.03))
    crease = _ridge(r - upper - 0.055, 0.016) * _step(1.05 - np.abs(e), 0.4)
    _blend(skin, 0.45 * who.lid * crease, tuple(c * 0.35 for c in who.skin))


def _paint_brows(who: SyntheticIdentity, how: Shot, skin: Array, x: Array, y: Array) -> None:
    """Brows, raised or frowning, into the albedo [3, rows, columns]."""
    out = np.abs(x) - who.eye_spacing
    along = (out + 0.02) / (who.eye_width + 0.06)
    middle = who.eye_level + who.brow_gap + how.brow - 0.045 * how.frown * _step(0.1 - out, 0.3)
    middle = middle + who.brow_tilt * out - who.brow_arch * along**2 + 0.4 * who.brow_arch
    thick = who.brow_thickness * np.clip(1.0 - 0.45 * along, 0.3, 1.4)
    hairs = np.exp(-(((y - middle) / thick) ** 4)) * _step(1.0 - np.abs(along), 0.35)
    _blend(skin, 0.85 * hairs, tuple(0.6 * c + 0.012 for c in who.hair))


def _paint_mouth(who: SyntheticIdentity, how: Shot, skin: Array, x: Array, y: Array) -> None:
    """Lips, teeth and the line between the lips into the albedo [3, rows, columns]."""
    level = who.mouth_line
    width = who.mouth_width * (1.0 + 0.2 * how.smile - 0.12 * how.mouth)
    m = x / width
    bow = np.maximum(0.0, 1.0 - m * m)
    middle = y - level - (how.smile + 0.2) * (0.1 * m * m - 0.03) + 0.012 * _ridge(m, 0.15)
    gap = 0.5 * bow * min(0.3, 0.2 * how.mouth)
    top = who.upper_lip * (1.0 - 0.25 * how.smile) * bow**0.7 * (1.0 - 0.22 * _ridge(m, 0.14))
    low = who.lower_lip * (1.0 - 0.15 * how.smile) * bow**0.6
    paint = tuple(
        c * (1.0 - 0.4 * how.make_up) + 0.4 * how.make_up * t
        for c, t in zip(who.lips, (0.42, 0.03, 0.06), strict=True)
    )
    ends = _step(1.0 - np.abs(m), 0.12)
    upper = _step(gap + top - middle, 0.035) * _step(middle - gap, 0.02) * ends
    lower = _step(middle + gap + low, 0.035) * _step(-gap - middle, 0.02) * ends
    _blend(skin, 0.9 * upper, tuple(c * 0.75 for c in paint))
    _blend(skin, 0.9 * lower, paint)
    sheen = _bell(m, middle, 0.0, -0.5 * who.lower_lip, 0.4, 0.025)
    _blend(skin, 0.25 * sheen * lower, tuple(c * 1.5 + 0.08 for c in paint))
    hollow = _step(gap - np.abs(middle), 0.02) * ends
    _blend(skin, hollow, (0.05, 0.012, 0.012))
    _blend(skin, hollow * _step(middle + 0.2 * gap, 0.03) * _step(0.8 - np.abs(m), 0.3), (0.66, 0.62, 0.54))
    line = _ridge(middle, 0.014) * _step(1.06 - np.abs(m), 0.15) * (1.0 - _step(gap - 0.02, 0.03))
    _blend(skin, 0.75 * line, tuple(c * 0.2 for c in who.lips))
    under = _bell(m, middle, 0.0, -who.lower_lip - 0.07, 0.5, 0.03)
    _blend(skin, 0.25 * under, tuple(c * 0.4 for c in who.skin))
    cheek = np.abs(x) - (who.nose_width + 0.06 + 0.5 * np.clip(who.nose_base - y, 0.0, 1.0))
    laugh = _ridge(cheek, 0.025) * _step(y - level + 0.06, 0.15) * _step(level + 0.3 - y, 0.1)
    laugh = laugh * (0.5 * max(0.0, how.smile) * (0.4 + 0.6 * who.fold))
    _blend(skin, laugh, tuple(c * 0.35 for c in who.skin))


def _paint_extras(who: SyntheticIdentity, how: Shot, texture: Array, shell: _Shell) -> None:
    """Glasses and scarf of this picture into the skin's texture."""
    if how.glasses:
        window = _window(shell, -1.6, 1.6, who.eye_level - 0.4, who.eye_level + 0.35)
        x, r = np.abs(shell.x[window]), shell.y[window[0]] - who.eye_level + 0.04
        wide, tall = 0.31 * how.glasses, 0.22 * how.glasses
        lens = (((x - who.eye_spacing - 0.01) / wide) ** 4 + (r / tall) ** 4) ** 0.25
        _blend(texture[0:3][:, *window], _step(1.0 - lens, 0.1) * (0.06 + how.tint), (0.02, 0.02, 0.025))
        frame = np.exp(-0.5 * ((lens - 1.0) / 0.075) ** 4)
        ends = _step(0.1 - x, 0.03) + _step(x - 0.7, 0.03)  # the bridge and the temples
        frame = np.maximum(frame, _step(0.035 - np.abs(r - 0.06), 0.03) * ends)
        _blend(texture[0:3][:, *window], np.minimum(frame, 1.0), how.accessory)
        texture[7][window] += 0.3 * frame
    if how.scarf:
        tip = who.nose_base
        cover = _step(tip + 0.06 + 0.1 * np.abs(shell.x) - shell.y, 0.05)
        weave = 1.0 + 0.12 * np.sin(shell.y * 60.0 + 4.0 * shell.x**2)
        _blend(texture[0:3], cover, tuple(c * weave for c in how.accessory))
        texture[7] *= 1.0 - cover


def _dressed_skin(who: SyntheticIdentity, how: Shot, size: int) -> tuple[_Shell, Array]:
    """The skin shell and a copy of its texture with this picture's expression and accessories."""
    shell = _head(who, size)
    texture = shell.texture.copy()
    for paint, low, high in ((_paint_eyes, -0.22, 0.25), (_paint_brows, 0.05, 0.5)):
        window = _window(shell, -1.0, 1.0, who.eye_level + low, who.eye_level + high)
        paint(who, how, texture[0:3][:, *window], shell.x[window], shell.y[window[0]])
    level = who.mouth_line
    window = _window(shell, -0.95, 0.95, level - 0.4, level + 0.4)
    _paint_mouth(who, how, texture[0:3][:, *window], shell.x[window], shell.y[window[0]])
    if how.strand and not who.bald:
        window = _window(shell, -1.2, 1.2, who.eye_level - 0.3, who.crown)
        centre = how.strand * (0.4 + 0.7 * np.maximum(1.0 - shell.y[window[0]], 0.0) ** 1.5)
        lock = _ridge(shell.x[window] - centre, 0.05) * _step(shell.y[window[0]] - who.eye_level + 0.1, 0.3)
        _blend(texture[0:3][:, *window], lock, who.hair)
    if how.glasses or how.scarf:
        _paint_extras(who, how, texture, shell)
    return shell, texture


def _dressed_hair(who: SyntheticIdentity, how: Shot, size: int) -> tuple[_Shell, Array]:
    """The hair shell and its texture, under a hat if this picture has one."""
    shell = _hair(who, size)
    if not how.hat:
        return shell, shell.texture
    texture = shell.texture.copy()
    rim = shell.y - (min(who.hairline, 1.0) - 0.22)
    cover = np.broadcast_to(_step(rim, 0.03), shell.x.shape)
    knit = 1.0 - 0.25 * _step(0.02 - np.abs(rim - 0.24), 0.03)
    knit = knit * (1.0 + 0.1 * np.sin(np.arange(shell.x.shape[1]) * 1.3))
    _blend(texture[0:3], cover, tuple((c * knit).astype(np.float32) for c in how.accessory))
    texture[6] = np.maximum(texture[6], cover)
    texture[7] *= 1.0 - cover
    return shell, texture


def _turn(how: Shot) -> Array:
    """Rotation [3, 3] from head to camera: yaw, then pitch, then roll."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (how.yaw, how.pitch, how.roll))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(roll @ pitch @ yaw, np.float32)


class _Light:
    """Key light and sky of one picture, in the head's coordinates."""

    def __init__(self, how: Shot) -> None:
        azimuth, elevation = how.light
        to_head = _turn(how).T
        key = [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
        self.how, self.key = how, to_head @ np.array(key, np.float32)
        half = self.key + to_head[:, 2]
        self.sky = np.array(how.ambient, np.float32)[:, None]
        self.axes = np.stack([self.key, to_head[:, 1], half / np.linalg.norm(half)])  # key, up, highlight

    def shade(self, albedo: Array, normal: Array, gloss: Array | float, lit: Array | float = 1.0) -> Array:
        """Colour [3, n] of a surface; `lit` is the share of the key light that arrives."""
        facing, up, shine = self.axes @ normal
        sky = 0.68 + 0.32 * up
        shine = np.maximum(shine, 0.0) ** 2
        shine *= shine
        shine *= shine
        shine = shine * shine * gloss * (lit * 0.5)
        colour = np.empty_like(albedo)
        for plane, wrap in enumerate((0.3, 0.18, 0.12)):  # red light wanders further under the skin
            key, ambient = self.how.key[plane], self.how.ambient[plane]
            diffuse = np.maximum(facing * (1.0 / (1.0 + wrap)) + wrap / (1.0 + wrap), 0.0) * lit
            colour[plane] = albedo[plane] * (diffuse * key + sky * ambient) + shine * key
        return colour


@dataclass(frozen=True, eq=False)
class _Rays:
    """Where the rays of a picture's pixels pass the head.

    x, y: [n], after undoing shift, scale, roll and pitch.
    """

    x: Array
    y: Array
    how: Shot
    per_unit: float  # pixels per unit of length

    def meet(
        self, shell: _Shell, relief: Array | None = None, wanted: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.int32], Array]:
        """(pixels, among the `wanted`, that hit the shell; their texels; share of the pixel covered)."""
        sine, cosine = float(np.sin(self.how.yaw)), float(np.cos(self.how.yaw))
        width, depth, centre = shell.profile.T
        reach = np.sqrt((width * cosine) ** 2 + (depth * sine) ** 2)
        phase = np.arctan2(depth * sine, width * cosine).astype(np.float32)
        table = np.stack([centre * sine, 1.0 / np.maximum(reach, 1e-3), reach]).astype(np.float32)
        line = np.clip((_Y - self.y) * (_FINE / (2 * _Y)), 0, _FINE - 1).astype(np.int32)
        middle, inverse, reach = table.take(line, axis=1)
        sideways = (self.x - middle) * inverse
        cover = np.clip((1.0 - np.abs(sideways)) * reach * self.per_unit + 0.5, 0.0, 1.0)
        cover[reach < 0.02] = 0.0
        hit = np.flatnonzero(cover if wanted is None else cover * wanted)
        sideways, inverse, line = sideways[hit], inverse[hit], line[hit]
        phase = phase[line]
        rows, columns = shell.x.shape
        row = (line * rows) // _FINE
        texel = self._texel(sideways, phase, row, columns)
        for flat in () if relief is None else (relief.ravel(),) * 2:
            lift = flat[texel]  # what stands out is seen shifted: two steps to the fixed point
            y = self.y[hit] + lift * np.sin(self.how.pitch)
            row = np.clip((_Y - y) * (rows / (2 * _Y)), 0, rows - 1).astype(np.int32)
            texel = self._texel(sideways - lift * sine * inverse, phase, row, columns)
        return hit, texel, cover[hit]

    @staticmethod
    def _texel(sideways: Array, phase: Array, row: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
        angle = np.arcsin(np.clip(sideways, -1.0, 1.0)) - phase
        column = np.clip((angle + _U) * (columns / (2 * _U)), 0, columns - 1).astype(np.int32)
        texel: NDArray[np.int32] = row * columns + column
        return texel


def _rays(how: Shot, size: int) -> _Rays:
    line = (((np.arange(2 * size) + 0.5) / size - 1.0) * _VIEW).astype(np.float32)
    x, y = (line[None, :] - how.shift[0]) / how.scale, (-line[:, None] - 0.05 - how.shift[1]) / how.scale
    cosine, sine = float(np.cos(how.roll)), float(np.sin(how.roll))
    x, y = x * cosine + y * sine, y * cosine - x * sine
    # For the pitch alone, a paraboloid stands in for the head's depth: no ray then misses by rounding.
    depth = np.maximum(0.0, 1.0 - (x / 1.15) ** 2 - (y / 1.6) ** 2)
    y = (y + depth * np.sin(how.pitch)) / np.cos(how.pitch)
    return _Rays(x.ravel(), y.ravel().astype(np.float32), how, size / _VIEW * how.scale)


def _shadow(relief: Array, texel: NDArray[np.int32], light: _Light) -> Array:
    """Share of the key light that reaches each texel past the nose and the brow."""
    rows, columns = relief.shape
    flat = relief.ravel()
    here, lit = flat[texel], np.ones(len(texel), np.float32)
    for distance in (0.07, 0.14, 0.22, 0.32):
        up = round(float(light.key[1]) * distance * rows / (2 * _Y))
        right = round(float(light.key[0]) * distance * columns / (2 * _U))
        there = flat[np.clip(texel - up * columns + right, 0, flat.size - 1)]
        above = there - here - distance * max(0.1, float(light.key[2]))
        lit = np.minimum(lit, 1.0 - np.clip(above * 9.0, 0.0, 0.75))
    return lit


def _background(how: Shot, rng: np.random.Generator, side: int) -> Array:
    """[3, 2 side, 2 side]: a wall, its light falling off, with blurred things before it."""
    wall = np.array(how.backdrop, np.float32)[:, None, None]
    fall = 1.0 + 0.5 * _cloud(rng, (side, side), (2, 2))
    things = _cloud(rng, (side, side), (int(rng.integers(2, 9)), int(rng.integers(2, 9))), 4)
    shapes = (things[3:] + 0.3 * things[:3]) * how.clutter * (0.4 + _step(things[3:], 0.15))
    colour = np.clip(wall * fall * np.exp(shapes), 0.002, 1.2).astype(np.float32)
    return colour.repeat(2, axis=1).repeat(2, axis=2)  # so smooth that half the samples do


def _body(who: SyntheticIdentity, how: Shot, rays: _Rays, light: _Light, canvas: Array) -> None:
    """Neck and clothed shoulders, onto the canvas [3, n]."""
    wide = 0.68 * who.jaw * who.face_width
    across = (rays.x + 0.1 * np.sin(how.yaw)) / wide
    hit = np.flatnonzero((rays.y < who.chin + 0.6) & (np.abs(across) < 1.05))
    across, fall = across[hit], who.chin - rays.y[hit]
    rim = np.clip(across, -1.0, 1.0)
    normal = np.stack([rim, np.zeros_like(rim), np.sqrt(1.0 - rim * rim)])
    tone = _column(who.skin) * (0.35 + 0.4 * np.clip(fall * 2.0, 0.0, 1.0))
    _lay(canvas, hit, _step(1.0 - np.abs(across), 0.05), light.shade(tone, normal, 0.05))
    side = np.abs(rays.x)
    collar = 0.1 + 0.1 * _ridge(rays.x, 0.5 * wide) + 0.22 * np.maximum(side - wide, 0.0) ** 1.3
    fall = who.chin - collar - rays.y
    hit = np.flatnonzero(fall > -0.03)
    x = rays.x[hit]
    normal = np.stack([np.clip(x * 0.6, -0.7, 0.7), np.full_like(x, 0.45), np.full_like(x, 0.7)])
    tone = _column(how.cloth) * (0.7 + 0.3 * np.minimum(fall[hit] * 5.0, 1.0))
    _lay(canvas, hit, _step(fall[hit], 0.04), light.shade(tone, normal, 0.02))


def _ear(
    who: SyntheticIdentity, how: Shot, rays: _Rays, light: _Light, canvas: Array, side: float, opacity: float
) -> None:
    """The ear of one side (-1 or 1); a head that turns away shows it broader."""
    turned = max(0.0, -side * float(np.sin(how.yaw)))
    middle = side * who.face_width * 0.99 * np.cos(how.yaw) - 0.1 * np.sin(how.yaw)
    x, y = rays.x - middle, rays.y - who.eye_level + 0.14
    hit = np.flatnonzero((np.abs(x) < 0.25 * who.ear) & (np.abs(y) < 0.3 * who.ear))
    v = y[hit] / (0.27 * who.ear)
    u = x[hit] / ((0.14 + 0.05 * turned) * who.ear) - side * 0.25 * v
    far = np.sqrt(u * u + v * v)
    normal = np.stack([u * 0.6, v * 0.4, np.full_like(u, 0.75)])
    dim = 0.95 - 0.45 * _ridge(far - 0.5, 0.2) * _step(v + 0.3, 0.8)
    tone = _column(who.skin) * _column((1.0, 0.82, 0.8))
    _lay(canvas, hit, opacity * _step(1.0 - far, 0.15), light.shade(tone * dim, normal, 0.08))


def _hand(who: SyntheticIdentity, how: Shot, rays: _Rays, light: _Light, canvas: Array) -> None:
    """Four fingers over cheek and mouth, from the side `how.hand`."""
    for finger, length in enumerate((0.75, 0.9, 0.85, 0.65)):
        x, y = rays.x * how.hand - 0.2 - 0.05 * finger, rays.y + 0.35 + 0.2 * finger
        x, y = x * 0.9 + y * 0.44, y * 0.9 - x * 0.44
        beyond = x - np.clip(x, 1.0 - length, 1.9)
        far = np.sqrt(beyond * beyond + y * y) / 0.115
        hit = np.flatnonzero(far < 1.1)
        rim = np.clip(far[hit], 0.0, 1.0)
        normal = np.stack([beyond[hit] * how.hand * 6.0, y[hit] * 8.0, np.sqrt(1.0 - 0.9 * rim * rim)])
        tone = _column(who.skin) * (1.0 - 0.55 * rim**4)
        _lay(canvas, hit, _step(1.0 - far[hit], 0.1), light.shade(tone, normal, 0.1))


def _lens(canvas: Array, how: Shot, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Blur, halve, expose and quantise linear light [3, 2 size, 2 size] to a picture."""
    matrix = _resample(size, 2 * size, round(how.blur, 1))
    image = np.maximum(matrix @ canvas @ matrix.T, 0.0) * np.float32(how.exposure * 1.15)
    image = image / (1.0 + np.maximum(image - 0.5, 0.0) * 0.55)  # a film's shoulder instead of clipping
    image = (np.sqrt(image) - 0.45) * np.float32(how.contrast) + np.float32(0.45)
    image += np.float32(how.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.ascontiguousarray((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def draw(who: SyntheticIdentity, how: Shot, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Picture of `who` under the conditions `how`: uint8 [size, size, 3], RGB.

    `rng` gives the background's shapes and the noise. InputError: size is no whole number from 16.
    """
    size = _natural("size", size, 16)
    rays, light = _rays(how, size), _Light(how)
    canvas = _background(how, rng, size).reshape(3, -1)
    (skin, paint), (hair, strands) = _dressed_skin(who, how, size), _dressed_hair(who, how, size)
    hit, texel, cover = rays.meet(hair)
    if not who.bald:  # the inner side of the hair, seen behind the head
        inner = cover * _step(rays.y[hit] - who.hair_length + 0.1, 0.1)
        _lay(canvas, hit, inner, _column(who.hair) * 0.3 * (light.sky + 0.2))
    _body(who, how, rays, light, canvas)
    for side in (-1.0, 1.0):
        _ear(who, how, rays, light, canvas, side, 1.0)
    opacity = cover * strands[6].ravel()[texel]
    seen = np.flatnonzero(opacity)
    outer, strand, opacity = hit[seen], strands.reshape(8, -1).take(texel[seen], axis=1), opacity[seen]
    bare = np.ones(canvas.shape[1], np.bool_)
    bare[outer[opacity > 0.995]] = False  # under opaque hair no skin need be shaded
    hit, texel, cover = rays.meet(skin, paint[6], bare)
    point = paint.reshape(8, -1).take(texel, axis=1)
    _lay(canvas, hit, cover, light.shade(point[0:3], point[3:6], point[7], _shadow(paint[6], texel, light)))
    if abs(how.yaw) > 0.1:  # the near ear lies before the cheek, the far one behind it
        _ear(who, how, rays, light, canvas, -np.sign(how.yaw), min(1.0, 4.0 * abs(how.yaw) - 0.4))
    _lay(canvas, outer, opacity, light.shade(strand[0:3], strand[3:6], strand[7]))
    if how.hand:
        _hand(who, how, rays, light, canvas)
    return _lens(canvas.reshape(3, 2 * size, 2 * size), how, rng, size)


def render(identity: SyntheticIdentity, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """A new picture of `identity`, its conditions drawn from `rng`: uint8 [size, size, 3], RGB."""
    return draw(identity, shot(rng), rng, size)


def synthetic_faces(identities: int = 60, images: int = 20, size: int = 64, seed: int = 0) -> Faces:
    """`images` pictures of each of `identities` people who do not exist, as `Faces` of size x size pixels.

    Picture (i, j) depends on `seed`, `size`, i and j only, so a larger set begins with the smaller one's
    pictures and two seeds share nobody. Bit-reproducible with one numpy on one kind of processor.
    InputError: a count below 1, a size below 16 or a seed below 0.
    """
    identities, images = _natural("identities", identities, 1), _natural("images", images, 1)
    size, seed = _natural("size", size, 16), _natural("seed", seed, 0)
    people = [identity(seed, i) for i in range(identities)]
    pictures = [render(who, _rng(seed, 1, i, j), size) for i, who in enumerate(people) for j in range(images)]
    names = tuple(f"synthetic-{i:04d}" for i in range(identities))
    return Faces(
        images=np.stack(pictures),
        labels=np.repeat(np.arange(identities, dtype=np.int64), images),
        names=names,
        files=tuple(f"{name}/{j:04d}.png" for name in names for j in range(images)),
    )
