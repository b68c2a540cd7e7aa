"""Face pictures in memory, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Faces:
    """Labelled face pictures, decoded once and kept as bytes.

    images: uint8 [n, height, width, 3], RGB.  labels: int64 [n], an index into `names`.
    names: one name per identity.  files: one name per image, relative to the data's root
    ("Aaron_Eckhart/Aaron_Eckhart_0001.jpg"); what a pairs file refers to.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    files: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.images)
