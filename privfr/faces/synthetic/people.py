"""Who a synthetic face is, and how a picture of it is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfr.errors import InputError

Array = NDArray[Any]  # float32 throughout, which numpy's stubs lose sight of in mixed arithmetic
Colour = tuple[float, float, float]

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


def stream(*key: int) -> np.random.Generator:
    """The generator of one key, independent of that of every other."""
    return np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:]))


def natural(key: str, value: object, least: int) -> int:
    """Return `value` if it is a whole number from `least`. Raises `InputError` naming `key`."""
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
    rng = stream(natural("seed", seed, 0), 0, natural("index", index, 0))
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
