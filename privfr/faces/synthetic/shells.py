"""The head as two shells: their geometry, relief and albedo, from a `SyntheticIdentity` alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from privfr.faces.synthetic.people import Array, Colour, SyntheticIdentity

U_SPAN, Y_SPAN = (
    2.5,
    2.0,
)  # a texture spans the angles -U_SPAN..U_SPAN, the heights Y_SPAN (first row)..-Y_SPAN
FINE = 2048  # rows of a profile

# --- small mathematics -----------------------------------------------------------------------------------


def step(value: Array, width: float) -> Array:
    """0 to 1 as `value` goes from -width/2 to width/2, smoothly."""
    ramp = np.minimum(np.maximum(value * (1.0 / width) + 0.5, 0.0), 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def bell(x: Array, y: Array, x0: float, y0: float, sx: float, sy: float) -> Array:
    """Gaussian bump of height 1 at (x0, y0)."""
    return np.exp(((x - x0) / sx) ** 2 * -0.5 + ((y - y0) / sy) ** 2 * -0.5)


def ridge(value: Array, width: float | Array) -> Array:
    """Gaussian of height 1 and standard deviation `width` around 0."""
    return np.asarray(np.exp(-0.5 * (value / width) ** 2))


@lru_cache(maxsize=256)
def resample(out: int, into: int, sigma: float) -> Array:
    """[out, into] matrix that resamples a line with a Gaussian of `sigma` input samples; rows sum to one."""
    centres = (np.arange(out) + 0.5) * (into / out)
    weights = np.exp(-0.5 * ((centres[:, None] - np.arange(into) - 0.5) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def cloud(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int], planes: int = 1) -> Array:
    """Smooth noise [planes, *shape] with `cells` independent values; standard deviation about a half."""
    coarse = rng.standard_normal((planes, *cells), dtype=np.float32)
    return resample(shape[0], cells[0], 0.6) @ coarse @ resample(shape[1], cells[1], 0.6).T


def column(colour: Colour) -> Array:
    """A colour as [3, 1], to meet [3, n]."""
    return np.array(colour, np.float32)[:, None]


# --- shells: geometry, relief, albedo --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shell:
    """A stack of ellipses and what is on it.

    profile: [FINE, 3], half width, half depth and centre's z of each ellipse, from y = Y_SPAN to -Y_SPAN.
    texture: [8, rows, columns]: albedo (3), normal (3), relief towards z (skin) or opacity (hair), gloss.
    x: [rows, columns], y: [rows, 1], where each texel lies when the head faces the camera.
    """

    profile: Array
    texture: Array
    x: Array
    y: Array


def _heights(rows: int) -> Array:
    return (Y_SPAN - (np.arange(rows, dtype=np.float32) + 0.5) * (2 * Y_SPAN / rows)).astype(np.float32)


def _skin_profile(who: SyntheticIdentity) -> Array:
    """The head: wide at the cheekbones, jaw and chin as the identity says."""
    y = _heights(FINE)
    knots = [who.chin - 0.6, who.chin, 0.55 * who.chin, 0.0, 0.75, who.crown + 0.5]
    widths = [who.chin_width, who.chin_width * 1.15, who.jaw, 1.0, who.forehead, who.forehead * 0.95]
    smooth = np.interp(y, knots, np.array(widths) * who.face_width).astype(np.float32)
    blur = ridge(np.arange(-240, 241), 80.0).astype(np.float32)
    smooth = np.convolve(np.pad(smooth, 240, mode="edge"), blur / blur.sum(), mode="valid").astype(np.float32)
    below, above = np.clip(y / who.chin, 0.0, 1.0), np.clip(y / who.crown, 0.0, 1.0)
    round_off = np.sqrt(np.maximum(0.0, (1.0 - below**5) * (1.0 - above**3.2)))
    width = smooth * round_off
    front = np.sqrt(np.maximum(0.0, 1.0 - above**3.2)) * (1.0 - 0.06 * below**2)
    depth = width * (1.0 + 0.1 * (1.0 - below))
    return np.stack([width, depth, front - depth], axis=1).astype(np.float32)


def _hair_profile(who: SyntheticIdentity) -> Array:
    """The hair's hull: the skull plus the hair's thickness, down to where the hair ends."""
    y = _heights(FINE)
    top, bottom = who.crown + 0.7 * who.hair_volume, min(who.hair_length, 0.1) - 0.35
    above = np.clip(y / top, 0.0, 1.0)
    below = np.clip((0.35 - y) / (0.35 - bottom), 0.0, 1.0)
    full = who.face_width * (1.0 + who.hair_volume) * (1.0 + 0.08 * np.clip(-y, 0.0, 1.5))
    full *= 1.0 + 0.07 * who.curl * cloud(np.random.default_rng(who.grain), (1, FINE), (1, 30))[0, 0]
    width = full * np.sqrt(np.maximum(0.0, (1.0 - above**2.8) * (1.0 - below**6)))
    front = np.sqrt(np.maximum(0.0, 1.0 - above**2.8)) * (1.02 + 0.5 * who.hair_volume)
    depth = width * 1.12
    return np.stack([width, depth, front - depth], axis=1).astype(np.float32)


def _grid(profile: Array, rows: int, columns: int) -> tuple[Array, Array, Array, Array]:
    """Angle u [1, columns], height y [rows, 1], and x and z [rows, columns] of each texel."""
    u = (((np.arange(columns, dtype=np.float32) + 0.5) / columns * 2 - 1) * U_SPAN)[None, :]
    y = _heights(rows)[:, None]
    nearest = profile[((np.arange(rows) + 0.5) * (FINE / rows)).astype(int)]
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
    nose = ridge(x, who.nose_bridge + 0.045 * down) * step(y - tip + 0.01, 0.13)
    height = who.nose_height * (0.28 + 0.55 * down) * down**0.5 * nose
    height += 0.45 * who.nose_height * bell(x, y, 0.0, tip + 0.06, who.nose_tip * 0.8, 0.085)
    height += 0.32 * who.nose_height * bell(side, y, who.nose_width * 0.72, tip + 0.05, 0.06, 0.065)
    height -= (0.05 + who.eye_depth) * bell(side, y, who.eye_spacing, who.eye_level, 0.17, 0.13)
    height += 0.055 * bell(side, y, who.eye_spacing, who.eye_level, 0.11, 0.075)
    height += (0.02 + 0.4 * who.eye_depth) * bell(
        side, y, who.eye_spacing * 0.95, who.eye_level + 0.27, 0.28, 0.08
    )
    height += who.cheekbone * bell(side, y, 0.62, who.eye_level - 0.32, 0.2, 0.15)
    height -= 0.035 * bell(side, y, 0.6, mouth, 0.18, 0.25)
    height += 0.07 * bell(x, y, 0.0, mouth, who.mouth_width * 0.75, 0.2)
    height -= 0.02 * bell(x, y, 0.0, tip - 0.09, 0.035, 0.06)
    height -= 0.05 * bell(x, y, 0.0, mouth - who.lower_lip - 0.09, who.mouth_width * 0.5, 0.05)
    height += 0.07 * bell(x, y, 0.0, who.chin + 0.17, 0.16, 0.12)
    fold = side - (who.nose_width + 0.05 + 0.45 * np.clip(tip + 0.06 - y, 0.0, 1.0))
    along = step(tip + 0.08 - y, 0.12) * step(y - mouth + 0.08, 0.2)
    return np.asarray(height - 0.02 * who.fold * ridge(fold, 0.035) * along, np.float32)


def _hair_edge(who: SyntheticIdentity, u: Array) -> Array:
    """Height of the hairline at each angle; hair is above it."""
    side = np.abs(u)
    sweep = ridge(u - 0.5 * who.parting, 0.16)
    front = who.hairline + who.recession * ridge(side - 0.62, 0.2)
    front = front - max(who.fringe, 0.0) * (1.0 - 0.6 * sweep) + 0.1 * who.parting * u - 0.12 * side**2
    front = front - 0.6 * max(-who.fringe, 0.0) * np.abs(u - 0.4 * who.parting)
    front = np.minimum(front, who.crown - 0.12)
    edge = front + (who.hair_length - front) * step(side - (1.2 if who.hair_length > -0.5 else 1.0), 0.5)
    if who.hair_length > -0.5:  # short hair leaves the ear free
        edge += (0.36 - who.hair_length) * ridge(side - 1.68, 0.17)
    return edge.astype(np.float32)


def _dimming(who: SyntheticIdentity, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """How much darker than the bare skin each texel is: sockets, nostrils, wrinkles, moles, freckles."""
    side, base = np.abs(x), who.nose_base
    tired = 0.12 * (0.4 + who.fold)
    dim = 1.0 - 0.22 * bell(side, y, who.eye_spacing, who.eye_level, who.eye_width * 1.25, 0.12)
    dim -= tired * bell(side, y, who.eye_spacing * 0.95, who.eye_level - 0.14, 0.14, 0.04)
    dim -= 0.6 * bell(side, y, who.nose_width * 0.48, base - 0.02, 0.032, 0.02)
    dim -= 0.12 * bell(x, y, 0.0, base - 0.05, who.nose_width * 0.7, 0.04)
    for level in (0.16, 0.3, 0.44):
        wrinkle = y - who.eye_level - who.brow_gap - level + 0.06 * x**2
        dim -= 0.16 * max(0.0, who.fold - 0.5) * ridge(wrinkle, 0.02) * step(0.55 - side, 0.3)
    for _ in range(int(rng.integers(0, 4)) + int(60 * who.freckles)):
        spot, size = (rng.normal(0, 0.35), rng.normal(-0.15, 0.3)), rng.uniform(0.012, 0.022)
        dim -= rng.uniform(0.1, 0.3 if who.freckles else 0.6) * bell(x, y, *spot, size, size)
    return dim


def _beard(who: SyntheticIdentity, x: Array, y: Array, u: Array, rng: np.random.Generator) -> Array:
    """Opacity of beard or stubble."""
    side = np.abs(x)
    rows, columns = x.shape
    area = step(who.nose_base - 0.1 - y + 0.5 * np.clip(side - 0.3, 0.0, 1.0), 0.25)
    area = area * step(1.75 - np.abs(u), 0.3)
    area *= 1.0 - 0.9 * bell(x, y, 0.0, who.mouth_line, who.mouth_width * 0.85, 0.09)
    hairs = cloud(rng, (rows, columns), (rows // 2, columns // 2))[0]
    return np.asarray(who.beard * area * np.clip(0.85 + 0.25 * hairs, 0.0, 1.0))


def _complexion(who: SyntheticIdentity, x: Array, y: Array, u: Array, relief: Array) -> Array:
    """Skin albedo [3, rows, columns] without eyes, brows and mouth."""
    rng = np.random.default_rng(who.grain)
    rows, columns = relief.shape
    side, base = np.abs(x), who.nose_base
    blush = 0.05 * cloud(rng, (rows, columns), (24, 32))[0]
    blush += 0.25 * bell(side, y, 0.55, base + 0.05, 0.22, 0.2)
    blush += 0.22 * bell(x, y, 0.0, base + 0.04, 0.16, 0.12)
    blush += 0.2 * bell(np.abs(u), y, 1.6, 0.0, 0.2, 0.3)
    dim = _dimming(who, x, y, rng)
    around = resample(rows, rows, rows * 0.02) @ relief @ resample(columns, columns, columns * 0.02).T
    dim *= 1.0 - np.clip(3.5 * (around - relief), -0.1, 0.35)  # creases see less of the sky
    if not who.bald:  # shadow of the hair
        dim *= 1.0 - 0.42 * step(y - _hair_edge(who, u) + 0.12, 0.4)
    tint = column((0.1, -0.28, -0.25))[:, None]  # of blood under the skin
    albedo = column(who.skin)[:, None] * np.clip(dim, 0.08, 1.1) * (1.0 + tint * blush)
    beard = _beard(who, x, y, u, rng)
    return np.asarray(albedo + beard * (0.8 * column(who.hair)[:, None] - albedo), np.float32)


@lru_cache(maxsize=4)
def head_shell(who: SyntheticIdentity, size: int) -> Shell:
    """Build the head of a person, for pictures of `size` pixels."""
    profile = _skin_profile(who)
    u, y, x, z = _grid(profile, 5 * size // 2, 7 * size // 2)
    relief = _relief(who, x, y) * (np.cos(np.clip(u, -1.5, 1.5)) > 0.05)
    texture = np.empty((8, *x.shape), np.float32)
    texture[0:3] = _complexion(who, x, y, u, relief)
    texture[3:6] = _normals(x, np.broadcast_to(y, x.shape), z + relief)
    texture[6] = relief
    texture[7] = 0.16 + 0.12 * bell(x, y, 0.0, 0.0, 0.25, 0.6)
    return Shell(profile, texture, x, y)


@lru_cache(maxsize=4)
def hair_shell(who: SyntheticIdentity, size: int) -> Shell:
    """Build the hair of a person, for pictures of `size` pixels."""
    profile = _hair_profile(who)
    u, y, x, z = _grid(profile, 5 * size // 2, 7 * size // 2)
    rng = np.random.default_rng(who.grain + 1)
    rows, columns = x.shape
    strands = cloud(rng, (rows, columns), (5 + int(25 * who.curl), 90))[0]
    locks = cloud(rng, (rows, columns), (4 + int(14 * who.curl), 26))[0]
    ragged = 0.4 + 1.2 * max(who.fringe, 0.0) + 0.5 * who.curl
    edge = y - _hair_edge(who, u) + ragged * (0.05 * strands + 0.05 * locks)
    if who.bald:
        edge = np.minimum(edge - 0.05, 0.8 - 0.15 * np.abs(np.abs(u) - 2.2) - y + 0.05 * strands)
    texture = np.empty((8, rows, columns), np.float32)
    tone = np.clip(1.0 + 0.35 * strands + 0.3 * locks, 0.35, 1.8) * (0.6 + 0.4 * step(edge - 0.1, 0.3))
    texture[0:3] = column(who.hair)[:, None] * tone
    texture[3:6] = _normals(
        x, np.broadcast_to(y, x.shape), z + 0.02 * strands + (0.02 + 0.03 * who.curl) * locks
    )
    texture[6] = step(edge, 0.09)
    texture[7] = 0.5 * (1.0 - 0.6 * who.curl)
    return Shell(profile, texture, x, y)
