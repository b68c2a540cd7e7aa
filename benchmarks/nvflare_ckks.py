"""NVFlare's homomorphic aggregation, its TenSEAL calls alone: what `benchmarks.ckks` is compared with.

NVFlare need not be installed. Its parameters are those of `nvflare/lighter/impl/he.py`; its calls are those
of `HEModelEncryptor`, `CKKSVectorDecomposer`, `WeightedAggregationHelper` and `HEModelDecryptor` under
`nvflare/app_opt/he` and `nvflare/app_common/aggregators` (read at f3b7c1b, 2.9.0dev0). The whole model is
one layer, which spares NVFlare a part-filled ciphertext at the end of each. Left out, in its favour: its
messages, and that every layer carries the context along and is read with a context of its own.
"""

from __future__ import annotations

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

__all__ = ["NVFlare"]

Vector = NDArray[np.float32]


class NVFlare:
    """A key that all clients hold, and what is done under it. One thread; NVFlare takes one for each core."""

    def __init__(self) -> None:
        self.context = ts.context(
            ts.SCHEME_TYPE.CKKS,
            8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        self.context.generate_relin_keys()
        self.context.global_scale = 2**40
        public = self.context.serialize(
            save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=True
        )
        self.server = ts.context_from(public, n_threads=1)

    @property
    def context_bytes(self) -> int:
        """Bytes of the context that goes with every layer."""
        return len(self.context.serialize())

    def encrypt(self, vector: Vector, weight: float) -> bytes:
        """Weigh float32 [size], encrypt and serialise it, as a client does."""
        data: bytes = ts.ckks_vector(self.context, vector * np.float64(weight)).serialize()
        return data

    def read(self, upload: bytes) -> ts.CKKSVector:
        """Read an upload, as the server does."""
        return ts.ckks_vector_from(self.server, upload)

    def mean(self, total: ts.CKKSVector, weight: float) -> bytes:
        """Divide the sum by the weight; this ends with a rescaling, which takes one of the two primes off."""
        data: bytes = (total * (1.0 / weight)).serialize()
        return data

    def decrypt(self, data: bytes, divisor: float = 1.0) -> Vector:
        """Read and decrypt, as a client does: float32 [size]."""
        values = ts.ckks_vector_from(self.context, data).decrypt(secret_key=self.context.secret_key())
        return (np.array(values, np.float64) / divisor).astype(np.float32)
