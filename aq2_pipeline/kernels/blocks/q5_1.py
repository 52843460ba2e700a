"""Q5_1: 32 weights as a float16 scale `d` and minimum `m` and 5-bit codes, `d * code + m`.

Byte j of the 16 behind them holds the code of weight j in its low half and that of
weight j + 16 in its high half (ggml-common.h, block_q5_1).
"""

from __future__ import annotations

from aq2_pipeline.kernels.blocks.affine import affine_format, grid
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.nibbles import five_bits, store_five_bits

BLOCK, N_BYTES, BATCH = 32, 24, 16

GUESSES = grid(31, (28.0, 28.8, 29.6, 30.4, 31.2), (-0.4, -0.13, 0.13, 0.4))

reference, search, decode = affine_format(N_BYTES, 31, store_five_bits, five_bits, GUESSES)
kernels = block_kernels("q5_1", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
