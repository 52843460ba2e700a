"""Q4_1: 32 weights as a float16 scale `d` and minimum `m` and 4-bit codes, `d * code + m`.

Byte j of the 16 behind them holds the code of weight j in its low half and that of
weight j + 16 in its high half (ggml-common.h, block_q4_1).
"""

from __future__ import annotations

from aq2_pipeline.kernels.blocks.affine import affine_format, grid
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.nibbles import nibbles, store_nibbles

BLOCK, N_BYTES, BATCH = 32, 20, 16

GUESSES = grid(15, (14.0, 14.7, 15.4), (-0.4, -0.13, 0.13, 0.4))

reference, search, decode = affine_format(N_BYTES, 15, store_nibbles, nibbles, GUESSES)
kernels = block_kernels("q4_1", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
