"""Libraries with kernels of their own: ggml, gguf-py, ONNX Runtime, FAISS, pi-quant."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np

from tests.benchmarks.peers.against import Bound, Peer, Running, fastest
from tests.benchmarks.peers.compilers import GROUP, unpacked

#: ggml's numbers of types, and bytes of a block of 32.
Q4_0, Q8_0 = (2, 18), (8, 34)
#: The scale is the largest weight over -8, as float16: the other end of the range is cut off by a step.
Q4_0_BOUND = Bound(32, 1 / 8 + 1e-3)
Q8_0_BOUND = Bound(32, 0.5 / 127 + 6e-4)


def ggml_library():
    """Load the ggml that pywhispercpp ships."""
    files = [f for f in metadata.files("pywhispercpp") if f.name.startswith("libggml-base") and ".so" in f.name]
    if not files:
        msg = "pywhispercpp ships no libggml-base here"
        raise OSError(msg)
    # The copy in pywhispercpp.libs is the one that its extension loads.
    chosen = min(files, key=lambda f: ("pywhispercpp.libs" not in str(f), str(f)))
    library = ctypes.CDLL(str(chosen.locate()))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    pointers, sizes = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 3
    quantize.argtypes = [ctypes.c_int, *pointers, *sizes, ctypes.c_void_p]
    return quantize


def decode_ggml(data, kind):
    """Return what ggml's blocks of 32 stand for."""
    blocks = data.reshape(-1, kind[1])
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == Q8_0:
        return scales * blocks[:, 2:].view(np.int8).astype(np.float32)
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return scales * (halves.astype(np.float32) - 8)


def start_ggml(kind):
    """Return the start of ggml's C code for a type."""

    def start(weights, n_threads):
        quantize = ggml_library()
        n_rows, row_length = weights.shape
        data = np.zeros((n_rows, row_length // 32 * kind[1]), np.uint8)
        pool = ThreadPoolExecutor(n_threads)
        edges = [k * n_rows // n_threads for k in range(n_threads + 1)]

        def run(k):  # ctypes lets go of the interpreter's lock
            first, n = edges[k], edges[k + 1] - edges[k]
            quantize(kind[0], weights.ctypes.data, data.ctypes.data, first * row_length, n, row_length, None)

        def decoded(_result):
            return weights, decode_ggml(data, kind)

        return Running(lambda: list(pool.map(run, range(n_threads))), decoded, pool.shutdown)

    return start


def start_gguf(weights, n_threads):
    """Run gguf-py; rows are shared out to Python threads, for NumPy lets go of the lock."""
    import gguf  # noqa: PLC0415 - a peer

    kind = gguf.GGMLQuantizationType.Q4_0
    pool = ThreadPoolExecutor(n_threads)
    parts = np.array_split(weights, n_threads)

    def decoded(result):
        return weights, np.concatenate([gguf.quants.dequantize(part, kind) for part in result])

    return Running(lambda: list(pool.map(lambda w: gguf.quants.quantize(w, kind), parts)), decoded, pool.shutdown)


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
        "ggml-q4-0",
        "ggml C Q4_0",
        ("pywhispercpp",),
        start_ggml(Q4_0),
        Q4_0_BOUND,
        "pywhispercpp",
        bar=1.5,
        scheme="int4_g32",
        into=True,
        config="ggml_quantize_chunk of the library that pywhispercpp ships, as shipped; one Python thread a core.",
        differs="Blocks of 32 with a float16 scale: compared with our groups of 32.",
    ),
    Peer(
        "ggml-q8-0",
        "ggml C Q8_0",
        ("pywhispercpp",),
        start_ggml(Q8_0),
        Q8_0_BOUND,
        "pywhispercpp",
        bar=4.0,
        scheme="int8_g32",
        into=True,
        config="As ggml C Q4_0.",
        differs="Blocks of 32 with a float16 scale: compared with our groups of 32.",
    ),
    Peer(
        "gguf-py",
        "gguf-py Q4_0",
        ("gguf",),
        start_gguf,
        Q4_0_BOUND,
        "gguf",
        scheme="int4_g32",
        config="gguf.quants.quantize, rows shared out to one Python thread a core.",
        differs="Blocks of 32 with a float16 scale: compared with our groups of 32.",
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
