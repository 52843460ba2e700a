"""NumPy and torch: the same arithmetic, written with whole arrays, by hand and compiled."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.benchmarks.peers.against import Bound, Peer, Running

GROUP = 128
#: Groups that NumPy and eager torch take at once, so that what is between two steps stays in the cache; the fastest
#: of 128 to 8,192.
N_AT_ONCE = 512
HALF_STEP = 0.5 / 7


def unpacked(data):
    """Return the two codes of each byte, the low one first."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(data.shape[0], -1)


def decode(data, scales):
    """Return what packed 4-bit codes with one scale a row stand for."""
    return (unpacked(data).astype(np.float32) - 8) * np.asarray(scales).reshape(-1, 1)


def start_numpy(weights, n_threads):
    """Run NumPy in blocks, all outputs preallocated."""
    groups = weights.reshape(-1, GROUP)
    data = np.zeros((len(groups), GROUP // 2), np.uint8)
    scales = np.zeros((len(groups), 1), np.float32)
    pool = ThreadPoolExecutor(n_threads)

    def run(part):
        scratch, codes = np.empty((N_AT_ONCE, GROUP), np.float32), np.empty((N_AT_ONCE, GROUP), np.uint8)
        for at in range(part.start, part.stop, N_AT_ONCE):
            cut = slice(at, min(at + N_AT_ONCE, part.stop))
            w, n = groups[cut], cut.stop - at
            s, x, c = scales[cut], scratch[:n], codes[:n]
            np.abs(w, out=x)
            np.max(x, axis=1, keepdims=True, out=s)
            np.divide(s, 7, out=s)
            np.divide(w, s, out=x)
            np.rint(x, out=x)
            np.add(x, 8, out=x)
            np.copyto(c, x, casting="unsafe")
            np.left_shift(c[:, 1::2], 4, out=data[cut])
            np.bitwise_or(data[cut], c[:, ::2], out=data[cut])

    parts = [slice(k * len(groups) // n_threads, (k + 1) * len(groups) // n_threads) for k in range(n_threads)]
    return Running(lambda: list(pool.map(run, parts)), lambda _: (groups, decode(data, scales)), pool.shutdown)


def _torch(n_threads):
    import torch  # noqa: PLC0415 - a peer

    torch.set_num_threads(n_threads)
    return torch


def _tensor(torch, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the buffer is read-only, and nothing here writes to it
        return torch.from_numpy(weights)


def quantize_groups(torch, w):
    """Return (packed codes, scales) of float32[n, 128]."""
    scales = w.abs().amax(dim=1, keepdim=True) / 7
    codes = ((w / scales).round() + 8).to(torch.uint8)
    return codes[:, ::2] | (codes[:, 1::2] << 4), scales


def start_torch_eager(weights, n_threads):
    """Run torch's operators in blocks."""
    torch = _torch(n_threads)
    groups = _tensor(torch, weights).reshape(-1, GROUP)
    parts = groups.split(16 * N_AT_ONCE)

    def call():
        with torch.inference_mode():
            return [quantize_groups(torch, part) for part in parts]

    def decoded(result):
        data, scales = (torch.cat(column).numpy() for column in zip(*result, strict=True))
        return groups.numpy(), decode(data, scales)

    return Running(call, decoded)


def start_torch_compile(weights, n_threads):
    """Run the same function, fused by torch.compile."""
    torch = _torch(n_threads)
    groups = _tensor(torch, weights).reshape(-1, GROUP)
    compiled = torch.compile(lambda w: quantize_groups(torch, w), dynamic=False)

    def call():
        with torch.inference_mode():
            return compiled(groups)

    return Running(call, lambda result: (groups.numpy(), decode(result[0].numpy(), result[1].numpy())))


def start_torchao(weights, n_threads):
    """Run torchao's affine quantization, fused by torch.compile."""
    torch = _torch(n_threads)
    from torchao.quantization import quant_primitives as primitives  # noqa: PLC0415 - a peer

    block, given = (1, GROUP), _tensor(torch, weights)

    def quantize(w):
        kind = primitives.MappingType.SYMMETRIC
        scale, zero = primitives.choose_qparams_affine(w, kind, block, torch.int8, -8, 7, scale_dtype=torch.float32)
        return primitives.quantize_affine(w, block, scale, zero, torch.int8, -8, 7), scale, zero

    compiled = torch.compile(quantize, dynamic=False)

    def call():
        with torch.inference_mode():
            return compiled(given)

    def decoded(result):
        codes, scale, _zero = result
        return given.numpy(), primitives.dequantize_affine(codes, block, scale, None, torch.int8, -8, 7).numpy()

    return Running(call, decoded)


def start_bitsandbytes(weights, n_threads):
    """Run NF4 on the CPU."""
    torch = _torch(n_threads)
    from bitsandbytes import functional  # noqa: PLC0415 - a peer

    given = _tensor(torch, weights)

    def call():
        return functional.quantize_4bit(given, blocksize=GROUP, quant_type="nf4")

    return Running(call, lambda result: (given.numpy(), functional.dequantize_4bit(*result).numpy()))


def start_hqq(weights, n_threads):
    """Run hqq without its search."""
    torch = _torch(n_threads)
    from hqq.core.quantize import Quantizer  # noqa: PLC0415 - a peer

    given = _tensor(torch, weights)
    options = {"nbits": 4, "group_size": GROUP, "axis": 1, "optimize": False, "device": "cpu"}

    def call():
        return Quantizer.quantize(given, compute_dtype=torch.float32, **options)

    return Running(call, lambda result: (given.numpy(), Quantizer.dequantize(*result).numpy()))


TORCH_PEERS = [
    Peer(
        "numpy",
        "NumPy",
        ("numpy",),
        start_numpy,
        Bound(GROUP, HALF_STEP),
        "numpy",
        into=True,
        config="Blocks of 512 groups, outputs and scratch preallocated, one Python thread a core.",
    ),
    Peer(
        "torch-eager",
        "torch eager",
        ("torch",),
        start_torch_eager,
        Bound(GROUP, HALF_STEP),
        "torch",
        config="Blocks of 8,192 groups, inference mode.",
    ),
    Peer(
        "torch-compile",
        "torch.compile",
        ("torch",),
        start_torch_compile,
        Bound(GROUP, HALF_STEP),
        "torch",
        config="Inductor, static shapes, inference mode; compiled before the clock starts.",
    ),
    Peer(
        "torchao",
        "torchao",
        ("torch", "torchao"),
        start_torchao,
        Bound(GROUP, 0.5 / 7.5),
        "torchao",
        config="choose_qparams_affine and quantize_affine, symmetric, blocks of (1, 128), under torch.compile.",
        differs="Less work: one code a byte, not packed.",
    ),
    Peer(
        "bitsandbytes",
        "bitsandbytes NF4",
        ("torch", "bitsandbytes"),
        start_bitsandbytes,
        Bound(GROUP, 0.153),
        "bitsandbytes",
        config="quantize_4bit, blocks of 128, CPU.",
        differs="A codebook of 16 values; packed.",
    ),
    Peer(
        "hqq",
        "hqq without search",
        ("torch", "hqq"),
        start_hqq,
        Bound(GROUP, 0.5 / 7.4),
        "hqq",
        config="Quantizer.quantize, optimize=False, CPU.",
        differs="Zero points, as floats; packed.",
    ),
]
