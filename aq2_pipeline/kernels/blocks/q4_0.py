"""Q4_0: 32 weights as a float16 scale `d` and 4-bit codes, `d * (code - 8)`.

Byte j of the 16 behind the scale holds the code of weight j in its low half and
that of weight j + 16 in its high half (ggml-common.h, block_q4_0).
"""

from __future__ import annotations

from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.nibbles import nibbles, store_nibbles
from aq2_pipeline.kernels.blocks.symmetric import symmetric_format

BLOCK, N_BYTES, BATCH = 32, 18, 16

#: Chosen one by one for what each adds on six matrices of MiniLM; the last is for blocks whose furthest weight
#: counts for little: it turns the codes around.
GUESSES = (-8.7, -8.3, -7.2, 7.4)

reference, search, decode = symmetric_format(N_BYTES, 8, store_nibbles, nibbles, GUESSES)
kernels = block_kernels("q4_0", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
