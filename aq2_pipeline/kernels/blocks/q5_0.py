"""Q5_0: 32 weights as a float16 scale `d` and 5-bit codes, `d * (code - 16)`.

Behind the scale follow the fifth bits, bit j of a 32-bit word that of weight j, and
16 bytes with the other four bits of weight j in the low half and those of weight
j + 16 in the high half of byte j (ggml-common.h, block_q5_0).
"""

from __future__ import annotations

from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.nibbles import five_bits, store_five_bits
from aq2_pipeline.kernels.blocks.symmetric import symmetric_format

BLOCK, N_BYTES, BATCH = 32, 22, 16

#: Chosen as those of Q4_0 are.
GUESSES = (-16.8, -16.4, -15.6, -15.0, -14.0, -13.0, 15.2)

reference, search, decode = symmetric_format(N_BYTES, 16, store_five_bits, five_bits, GUESSES)
kernels = block_kernels("q5_0", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
