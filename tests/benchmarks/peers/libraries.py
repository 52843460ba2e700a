"""Libraries with kernels of their own: gguf-py, ONNX Runtime, FAISS, pi-quant; ggml is in `blocks`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.benchmarks.peers.against import Bound, Peer, Running, fastest
from tests.benchmarks.peers.compilers import GROUP, unpacked

#: The scale is the largest weight over -8, as float16: the other end of the range is cut off by a step.
Q4_0_BOUND = Bound(32, 1 / 8 + 1e-3)


def start_gguf(weights, n_threads):
    """Run gguf-py; rows are shared out to Python threads, for NumPy lets go of the lock."""
    import gguf  # noqa: PLC0415 - a peer

    kind = gguf.GGMLQuantizationType.Q4_0
    pool = ThreadPoolExecutor(n_threads)
    parts = np.array_split(weights, n_threads)

    def decoded(result):
        return weights, np.concatenate([gguf.quants.dequantize(part, kind) for part in result])

    def call():
        return list(pool.map(lambda w: gguf.quants.quantize(w, kind), parts))

    return Running(call, decoded, pool.shutdown, codes=list)


def start_onnxruntime(weights, _threads):
    """Run the MatMulNBits quantizer on matrices of 1,024 rows; groups lie along their first axis."""
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits  # noqa: PLC0415 - a peer

    n_inner, n_groups = 1024, 1024 // GROUP

    def variant(n_outer):
        matrices = weights.reshape(-1, n_inner, n_outer)
        n_blocks = len(matrices) * n_outer * n_groups
        packed = np.zeros((len(matrices), n_outer, n_groups, GROUP // 2), np.uint8)
        scales, zeros = (
            np.zeros(n_blocks, np.float32).reshape(len(matrices), -1),
            np.zeros(n_outer * n_groups, np.uint8),
        )

        def call():
            for k, matrix in enumerate(matrices):
                quantize_matmul_4bits(packed[k], matrix, scales[k], zeros, GROUP, n_outer, n_inner, True)  # noqa: FBT003 - symmetric

        def decoded(_result):
            codes = unpacked(packed.reshape(-1, GROUP // 2)).astype(np.float32) - 8
            return matrices.transpose(0, 2, 1).reshape(-1, GROUP), codes * scales.reshape(-1, 1)

        return Running(call, decoded)

    return fastest(weights.size // n_inner, (512, 1024, 4096), variant)


def start_faiss(weights, n_threads):
    """Run the scalar quantizer with 4 bits; it is trained before the clock starts."""
    import faiss  # noqa: PLC0415 - a peer

    faiss.omp_set_num_threads(n_threads)
    quantizer = faiss.ScalarQuantizer(weights.shape[1], faiss.ScalarQuantizer.QT_4bit_uniform)
    quantizer.train(weights)
    codes = np.zeros((len(weights), quantizer.code_size), np.uint8)
    given, taken = faiss.swig_ptr(weights), faiss.swig_ptr(codes)

    def call():
        quantizer.compute_codes_c(given, taken, len(weights))

    return Running(call, lambda _: (weights, quantizer.decode(codes)))


def start_piquant(weights, n_threads):
    """Run pi-quant: the range, then the codes."""
    import piquant  # noqa: PLC0415 - a peer

    context = piquant.Context(n_threads)
    source, target = piquant.DataType.F32, piquant.DataType.UINT4
    data = np.zeros(weights.size // 2, np.uint8)
    nearest = piquant.RoundMode.NEAREST

    def call():
        given = weights.ctypes.data
        scale, zero = context.compute_quant_params_ptr_float32(given, target, weights.size)
        context.quantize_ptr(given, source, data.ctypes.data, target, weights.size, scale, zero, nearest)
        return scale, zero

    def decoded(result):
        values = np.zeros_like(weights)
        scale, zero = result
        replace = piquant.ReduceOp.SET
        context.dequantize_ptr(data.ctypes.data, target, values.ctypes.data, source, weights.size, scale, zero, replace)
        return weights, values

    return Running(call, decoded)


LIBRARY_PEERS = [
    Peer(
        "gguf-py",
        "gguf-py Q4_0",
        ("gguf",),
        start_gguf,
        Q4_0_BOUND,
        "gguf",
        scheme="q4_0:reference",
        config="gguf.quants.quantize, rows shared out to one Python thread a core.",
        differs="Blocks of 32, the same bytes as q4_0:reference.",
    ),
    Peer(
        "onnxruntime",
        "onnxruntime quantize_matmul_4bits",
        ("onnxruntime",),
        start_onnxruntime,
        Bound(GROUP, 1 / 8),
        "onnxruntime",
        into=True,
        config="Matrices of 1,024 rows and 512 to 4,096 columns, blocks of 128, symmetric, into arrays that are there.",
        differs="Groups lie along the first axis. Its threads are as many as the cores it sees.",
    ),
    Peer(
        "faiss",
        "FAISS SQ4",
        ("faiss",),
        start_faiss,
        Bound(0, 1 / 15),
        "faiss-cpu",
        into=True,
        config="QT_4bit_uniform, vectors of 4,096, its fastest; into arrays that are there.",
        differs="Less work: one range for everything, found before the clock starts.",
    ),
    Peer(
        "pi-quant",
        "pi-quant",
        ("piquant",),
        start_piquant,
        Bound(0, 0.1),
        "pypiquant",
        into=True,
        config="compute_quant_params and quantize to UINT4, rounding to nearest, into memory that is there.",
        differs="One scale and zero point for everything.",
    ),
]
