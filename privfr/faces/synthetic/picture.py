"""One picture: expression painted on, rays cast, light and lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfr.faces.synthetic.people import Array, Shot, SyntheticIdentity, natural
from privfr.faces.synthetic.shells import (
    FINE,
    U_SPAN,
    Y_SPAN,
    Shell,
    bell,
    cloud,
    column,
    hair_shell,
    head_shell,
    resample,
    ridge,
    step,
)

VIEW = 1.62  # half the height of the picture at scale 1

# --- one picture -----------------------------------------------------------------------------------------


def _blend(under: Array, opacity: Array, over: Sequence[Array | float] | Array) -> None:
    """Lay `over` on the planes of `under`, in place."""
    for plane, value in zip(under, over, strict=True):
        plane += opacity * (value - plane)


def _lay(canvas: Array, pixels: NDArray[np.intp], opacity: Array, colour: Array) -> None:
    """Blend `colour` [3, k] or [3, 1] over `pixels` of the canvas [3, n]."""
    under = canvas.take(pixels, axis=1)
    canvas[:, pixels] = under + opacity * (colour - under)


def _window(shell: Shell, left: float, right: float, low: float, high: float) -> tuple[slice, slice]:
    """Rows and columns of the texture between two angles and two heights."""
    rows, columns = shell.x.shape
    row = [int((Y_SPAN - y) * rows / (2 * Y_SPAN)) for y in (high, low)]
    column = [int((u + U_SPAN) * columns / (2 * U_SPAN)) for u in (left, right)]
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
    inside = step(upper - r, 0.03) * step(r - lower, 0.03) * step(1.0 - np.abs(e), 0.1)
    white = np.clip(0.52 - 0.22 * e * e - 2.2 * np.clip(r - upper + 0.06, 0.0, 0.1), 0.1, 1.0)
    _blend(skin, inside, (white, white * 0.93, white * 0.9))
    gx, gy = side * out - how.gaze[0] * 0.07, r - how.gaze[1] * 0.04 - 0.008
    radius = np.sqrt(gx * gx + gy * gy)
    iris = 0.1
    _blend(skin, inside * step(iris - radius, 0.025), tuple(c * 0.3 for c in who.iris))
    _blend(skin, inside * step(iris * 0.8 - radius, 0.025), tuple(c * 1.2 for c in who.iris))
    _blend(skin, inside * step(iris * 0.42 - radius, 0.02), (0.004, 0.004, 0.005))
    glint = np.sqrt((gx - 0.035 * np.sin(how.light[0])) ** 2 + (gy - 0.03) ** 2)
    _blend(skin, inside * step(0.017 - glint, 0.02), (1.3, 1.3, 1.3))
    lash = ridge(r - upper - 0.008, 0.016) * step(1.08 - np.abs(e), 0.2)
    _blend(skin, (0.75 + 0.2 * how.make_up) * lash, (0.01, 0.008, 0.008))
    rim = 0.3 * ridge(r - lower, 0.014) * step(1.0 - np.abs(e), 0.2)
    _blend(skin, rim, (0.06, 0.03, 0.03))
    crease = ridge(r - upper - 0.055, 0.016) * step(1.05 - np.abs(e), 0.4)
    _blend(skin, 0.45 * who.lid * crease, tuple(c * 0.35 for c in who.skin))


def _paint_brows(who: SyntheticIdentity, how: Shot, skin: Array, x: Array, y: Array) -> None:
    """Brows, raised or frowning, into the albedo [3, rows, columns]."""
    out = np.abs(x) - who.eye_spacing
    along = (out + 0.02) / (who.eye_width + 0.06)
    middle = who.eye_level + who.brow_gap + how.brow - 0.045 * how.frown * step(0.1 - out, 0.3)
    middle = middle + who.brow_tilt * out - who.brow_arch * along**2 + 0.4 * who.brow_arch
    thick = who.brow_thickness * np.clip(1.0 - 0.45 * along, 0.3, 1.4)
    hairs = np.exp(-(((y - middle) / thick) ** 4)) * step(1.0 - np.abs(along), 0.35)
    _blend(skin, 0.85 * hairs, tuple(0.6 * c + 0.012 for c in who.hair))


def _paint_mouth(who: SyntheticIdentity, how: Shot, skin: Array, x: Array, y: Array) -> None:
    """Lips, teeth and the line between the lips into the albedo [3, rows, columns]."""
    level = who.mouth_line
    width = who.mouth_width * (1.0 + 0.2 * how.smile - 0.12 * how.mouth)
    m = x / width
    bow = np.maximum(0.0, 1.0 - m * m)
    middle = y - level - (how.smile + 0.2) * (0.1 * m * m - 0.03) + 0.012 * ridge(m, 0.15)
    gap = 0.5 * bow * min(0.3, 0.2 * how.mouth)
    top = who.upper_lip * (1.0 - 0.25 * how.smile) * bow**0.7 * (1.0 - 0.22 * ridge(m, 0.14))
    low = who.lower_lip * (1.0 - 0.15 * how.smile) * bow**0.6
    paint = tuple(
        c * (1.0 - 0.4 * how.make_up) + 0.4 * how.make_up * t
        for c, t in zip(who.lips, (0.42, 0.03, 0.06), strict=True)
    )
    ends = step(1.0 - np.abs(m), 0.12)
    upper = step(gap + top - middle, 0.035) * step(middle - gap, 0.02) * ends
    lower = step(middle + gap + low, 0.035) * step(-gap - middle, 0.02) * ends
    _blend(skin, 0.9 * upper, tuple(c * 0.75 for c in paint))
    _blend(skin, 0.9 * lower, paint)
    sheen = bell(m, middle, 0.0, -0.5 * who.lower_lip, 0.4, 0.025)
    _blend(skin, 0.25 * sheen * lower, tuple(c * 1.5 + 0.08 for c in paint))
    hollow = step(gap - np.abs(middle), 0.02) * ends
    _blend(skin, hollow, (0.05, 0.012, 0.012))
    _blend(skin, hollow * step(middle + 0.2 * gap, 0.03) * step(0.8 - np.abs(m), 0.3), (0.66, 0.62, 0.54))
    line = ridge(middle, 0.014) * step(1.06 - np.abs(m), 0.15) * (1.0 - step(gap - 0.02, 0.03))
    _blend(skin, 0.75 * line, tuple(c * 0.2 for c in who.lips))
    under = bell(m, middle, 0.0, -who.lower_lip - 0.07, 0.5, 0.03)
    _blend(skin, 0.25 * under, tuple(c * 0.4 for c in who.skin))
    cheek = np.abs(x) - (who.nose_width + 0.06 + 0.5 * np.clip(who.nose_base - y, 0.0, 1.0))
    laugh = ridge(cheek, 0.025) * step(y - level + 0.06, 0.15) * step(level + 0.3 - y, 0.1)
    laugh = laugh * (0.5 * max(0.0, how.smile) * (0.4 + 0.6 * who.fold))
    _blend(skin, laugh, tuple(c * 0.35 for c in who.skin))


def _paint_extras(who: SyntheticIdentity, how: Shot, texture: Array, shell: Shell) -> None:
    """Glasses and scarf of this picture into the skin's texture."""
    if how.glasses:
        window = _window(shell, -1.6, 1.6, who.eye_level - 0.4, who.eye_level + 0.35)
        x, r = np.abs(shell.x[window]), shell.y[window[0]] - who.eye_level + 0.04
        wide, tall = 0.31 * how.glasses, 0.22 * how.glasses
        lens = (((x - who.eye_spacing - 0.01) / wide) ** 4 + (r / tall) ** 4) ** 0.25
        _blend(texture[0:3][:, *window], step(1.0 - lens, 0.1) * (0.06 + how.tint), (0.02, 0.02, 0.025))
        frame = np.exp(-0.5 * ((lens - 1.0) / 0.075) ** 4)
        ends = step(0.1 - x, 0.03) + step(x - 0.7, 0.03)  # the bridge and the temples
        frame = np.maximum(frame, step(0.035 - np.abs(r - 0.06), 0.03) * ends)
        _blend(texture[0:3][:, *window], np.minimum(frame, 1.0), how.accessory)
        texture[7][window] += 0.3 * frame
    if how.scarf:
        tip = who.nose_base
        cover = step(tip + 0.06 + 0.1 * np.abs(shell.x) - shell.y, 0.05)
        weave = 1.0 + 0.12 * np.sin(shell.y * 60.0 + 4.0 * shell.x**2)
        _blend(texture[0:3], cover, tuple(c * weave for c in how.accessory))
        texture[7] *= 1.0 - cover


def _dressed_skin(who: SyntheticIdentity, how: Shot, size: int) -> tuple[Shell, Array]:
    """The skin shell and a copy of its texture with this picture's expression and accessories."""
    shell = head_shell(who, size)
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
        lock = ridge(shell.x[window] - centre, 0.05) * step(shell.y[window[0]] - who.eye_level + 0.1, 0.3)
        _blend(texture[0:3][:, *window], lock, who.hair)
    if how.glasses or how.scarf:
        _paint_extras(who, how, texture, shell)
    return shell, texture


def _dressed_hair(who: SyntheticIdentity, how: Shot, size: int) -> tuple[Shell, Array]:
    """The hair shell and its texture, under a hat if this picture has one."""
    shell = hair_shell(who, size)
    if not how.hat:
        return shell, shell.texture
    texture = shell.texture.copy()
    rim = shell.y - (min(who.hairline, 1.0) - 0.22)
    cover = np.broadcast_to(step(rim, 0.03), shell.x.shape)
    knit = 1.0 - 0.25 * step(0.02 - np.abs(rim - 0.24), 0.03)
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
        self, shell: Shell, relief: Array | None = None, wanted: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.int32], Array]:
        """(pixels, among the `wanted`, that hit the shell; their texels; share of the pixel covered)."""
        sine, cosine = float(np.sin(self.how.yaw)), float(np.cos(self.how.yaw))
        width, depth, centre = shell.profile.T
        reach = np.sqrt((width * cosine) ** 2 + (depth * sine) ** 2)
        phase = np.arctan2(depth * sine, width * cosine).astype(np.float32)
        table = np.stack([centre * sine, 1.0 / np.maximum(reach, 1e-3), reach]).astype(np.float32)
        line = np.clip((Y_SPAN - self.y) * (FINE / (2 * Y_SPAN)), 0, FINE - 1).astype(np.int32)
        middle, inverse, reach = table.take(line, axis=1)
        sideways = (self.x - middle) * inverse
        cover = np.clip((1.0 - np.abs(sideways)) * reach * self.per_unit + 0.5, 0.0, 1.0)
        cover[reach < 0.02] = 0.0
        hit = np.flatnonzero(cover if wanted is None else cover * wanted)
        sideways, inverse, line = sideways[hit], inverse[hit], line[hit]
        phase = phase[line]
        rows, columns = shell.x.shape
        row = (line * rows) // FINE
        texel = self._texel(sideways, phase, row, columns)
        for flat in () if relief is None else (relief.ravel(),) * 2:
            lift = flat[texel]  # what stands out is seen shifted: two steps to the fixed point
            y = self.y[hit] + lift * np.sin(self.how.pitch)
            row = np.clip((Y_SPAN - y) * (rows / (2 * Y_SPAN)), 0, rows - 1).astype(np.int32)
            texel = self._texel(sideways - lift * sine * inverse, phase, row, columns)
        return hit, texel, cover[hit]

    @staticmethod
    def _texel(sideways: Array, phase: Array, row: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
        angle = np.arcsin(np.clip(sideways, -1.0, 1.0)) - phase
        column = np.clip((angle + U_SPAN) * (columns / (2 * U_SPAN)), 0, columns - 1).astype(np.int32)
        texel: NDArray[np.int32] = row * columns + column
        return texel


def _rays(how: Shot, size: int) -> _Rays:
    line = (((np.arange(2 * size) + 0.5) / size - 1.0) * VIEW).astype(np.float32)
    x, y = (line[None, :] - how.shift[0]) / how.scale, (-line[:, None] - 0.05 - how.shift[1]) / how.scale
    cosine, sine = float(np.cos(how.roll)), float(np.sin(how.roll))
    x, y = x * cosine + y * sine, y * cosine - x * sine
    # For the pitch alone, a paraboloid stands in for the head's depth: no ray then misses by rounding.
    depth = np.maximum(0.0, 1.0 - (x / 1.15) ** 2 - (y / 1.6) ** 2)
    y = (y + depth * np.sin(how.pitch)) / np.cos(how.pitch)
    return _Rays(x.ravel(), y.ravel().astype(np.float32), how, size / VIEW * how.scale)


def _shadow(relief: Array, texel: NDArray[np.int32], light: _Light) -> Array:
    """Share of the key light that reaches each texel past the nose and the brow."""
    rows, columns = relief.shape
    flat = relief.ravel()
    here, lit = flat[texel], np.ones(len(texel), np.float32)
    for distance in (0.07, 0.14, 0.22, 0.32):
        up = round(float(light.key[1]) * distance * rows / (2 * Y_SPAN))
        right = round(float(light.key[0]) * distance * columns / (2 * U_SPAN))
        there = flat[np.clip(texel - up * columns + right, 0, flat.size - 1)]
        above = there - here - distance * max(0.1, float(light.key[2]))
        lit = np.minimum(lit, 1.0 - np.clip(above * 9.0, 0.0, 0.75))
    return lit


def _background(how: Shot, rng: np.random.Generator, side: int) -> Array:
    """[3, 2 side, 2 side]: a wall, its light falling off, with blurred things before it."""
    wall = np.array(how.backdrop, np.float32)[:, None, None]
    fall = 1.0 + 0.5 * cloud(rng, (side, side), (2, 2))
    things = cloud(rng, (side, side), (int(rng.integers(2, 9)), int(rng.integers(2, 9))), 4)
    shapes = (things[3:] + 0.3 * things[:3]) * how.clutter * (0.4 + step(things[3:], 0.15))
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
    tone = column(who.skin) * (0.35 + 0.4 * np.clip(fall * 2.0, 0.0, 1.0))
    _lay(canvas, hit, step(1.0 - np.abs(across), 0.05), light.shade(tone, normal, 0.05))
    side = np.abs(rays.x)
    collar = 0.1 + 0.1 * ridge(rays.x, 0.5 * wide) + 0.22 * np.maximum(side - wide, 0.0) ** 1.3
    fall = who.chin - collar - rays.y
    hit = np.flatnonzero(fall > -0.03)
    x = rays.x[hit]
    normal = np.stack([np.clip(x * 0.6, -0.7, 0.7), np.full_like(x, 0.45), np.full_like(x, 0.7)])
    tone = column(how.cloth) * (0.7 + 0.3 * np.minimum(fall[hit] * 5.0, 1.0))
    _lay(canvas, hit, step(fall[hit], 0.04), light.shade(tone, normal, 0.02))


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
    dim = 0.95 - 0.45 * ridge(far - 0.5, 0.2) * step(v + 0.3, 0.8)
    tone = column(who.skin) * column((1.0, 0.82, 0.8))
    _lay(canvas, hit, opacity * step(1.0 - far, 0.15), light.shade(tone * dim, normal, 0.08))


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
        tone = column(who.skin) * (1.0 - 0.55 * rim**4)
        _lay(canvas, hit, step(1.0 - far[hit], 0.1), light.shade(tone, normal, 0.1))


def _lens(canvas: Array, how: Shot, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Blur, halve, expose and quantise linear light [3, 2 size, 2 size] to a picture."""
    matrix = resample(size, 2 * size, round(how.blur, 1))
    image = np.maximum(matrix @ canvas @ matrix.T, 0.0) * np.float32(how.exposure * 1.15)
    image = image / (1.0 + np.maximum(image - 0.5, 0.0) * 0.55)  # a film's shoulder instead of clipping
    image = (np.sqrt(image) - 0.45) * np.float32(how.contrast) + np.float32(0.45)
    image += np.float32(how.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.ascontiguousarray((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def draw(who: SyntheticIdentity, how: Shot, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Picture of `who` under the conditions `how`: uint8 [size, size, 3], RGB.

    `rng` gives the background's shapes and the noise. InputError: size is no whole number from 16.
    """
    size = natural("size", size, 16)
    rays, light = _rays(how, size), _Light(how)
    canvas = _background(how, rng, size).reshape(3, -1)
    (skin, paint), (hair, strands) = _dressed_skin(who, how, size), _dressed_hair(who, how, size)
    hit, texel, cover = rays.meet(hair)
    if not who.bald:  # the inner side of the hair, seen behind the head
        inner = cover * step(rays.y[hit] - who.hair_length + 0.1, 0.1)
        _lay(canvas, hit, inner, column(who.hair) * 0.3 * (light.sky + 0.2))
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
