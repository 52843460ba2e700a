"""Weights that are the same everywhere: from an integer sequence, not from NumPy's random streams."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from aq2_pipeline import layout

INTEGER_SCHEMES = [
    f"int{b}_{g}{asym}" for b in range(2, 9) for g in ("g32", "channel", "tensor") for asym in ("", "_asym")
]
IDENTITY_SCHEMES = ["f32", "f16", "bf16"]


def integers(n: int, seed: int = 1) -> np.ndarray:
    """Return n numbers of 32 bits: the upper half of a 64-bit linear congruential sequence (Knuth's MMIX)."""
    state, found = seed, np.empty(n, np.uint64)
    for k in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found[k] = state >> 32
    return found


def bell(n: int, seed: int = 1) -> np.ndarray:
    """Return n float32 weights shaped like a bell: twelve uniform numbers of 8 bits, summed; every one exact."""
    k = integers(3 * n, seed).reshape(n, 3)
    total = np.zeros(n, np.int64)
    for shift in (0, 8, 16, 24):
        total += ((k >> np.uint64(shift)) & np.uint64(255)).sum(axis=1).astype(np.int64)
    return ((total - 1530) * 2.0**-13).astype(np.float32)


def column(*rows: np.ndarray | list | None) -> pa.Array:
    """Return rows as a large_list<float32>."""
    return pa.array([None if row is None else np.asarray(row, np.float32) for row in rows], layout.FLOATS)


def shapes(*rows: tuple | list | None) -> pa.Array:
    """Return shapes as a large_list<int64>."""
    return pa.array([None if row is None else list(row) for row in rows], layout.INTS)
