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

import numpy as np
from numpy.typing import NDArray

from privfr.faces.datasets import Faces
from privfr.faces.synthetic.people import Shot, SyntheticIdentity, identity, natural, shot, stream
from privfr.faces.synthetic.picture import draw

__all__ = ["Shot", "SyntheticIdentity", "draw", "identity", "render", "shot", "synthetic_faces"]


def render(identity: SyntheticIdentity, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """A new picture of `identity`, its conditions drawn from `rng`: uint8 [size, size, 3], RGB."""
    return draw(identity, shot(rng), rng, size)


def synthetic_faces(identities: int = 60, images: int = 20, size: int = 64, seed: int = 0) -> Faces:
    """`images` pictures of each of `identities` people who do not exist, as `Faces` of size x size pixels.

    Picture (i, j) depends on `seed`, `size`, i and j only, so a larger set begins with the smaller one's
    pictures and two seeds share nobody. Bit-reproducible with one numpy on one kind of processor.
    InputError: a count below 1, a size below 16 or a seed below 0.
    """
    identities, images = natural("identities", identities, 1), natural("images", images, 1)
    size, seed = natural("size", size, 16), natural("seed", seed, 0)
    people = [identity(seed, i) for i in range(identities)]
    pictures = [
        render(who, stream(seed, 1, i, j), size) for i, who in enumerate(people) for j in range(images)
    ]
    names = tuple(f"synthetic-{i:04d}" for i in range(identities))
    return Faces(
        images=np.stack(pictures),
        labels=np.repeat(np.arange(identities, dtype=np.int64), images),
        names=names,
        files=tuple(f"{name}/{j:04d}.png" for name in names for j in range(images)),
    )
