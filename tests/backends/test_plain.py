"""Backend `plain`: a summand that would spoil the sum never becomes part of it."""

from __future__ import annotations

import numpy as np
import pytest
from insecure import spec_of

from privfr.backends import plain
from privfr.errors import BadFrame
from privfr.vector import LARGEST_NORM


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 3e38, 1.01 * LARGEST_NORM])
def test_a_refused_summand_leaves_the_sum_as_it_was(number: float) -> None:
    spec = spec_of(plain.PLAIN, (0, 1, 2), 1)
    state = plain.server_state(spec)
    good = np.arange(1, spec.length + 1, dtype="<f4")
    state = plain.absorb(state, 0, plain.Summand(spec.context(), memoryview(good.tobytes())))
    bad = good.copy()
    bad[-1] = number
    with pytest.raises(BadFrame, match="not finite"):
        plain.absorb(state, 1, plain.Summand(spec.context(), memoryview(bad.tobytes())))
    state = plain.absorb(state, 2, plain.Summand(spec.context(), memoryview(good.tobytes())))
    np.testing.assert_array_equal(state.total, 2 * good)
    assert state.survivors == [0, 2]
