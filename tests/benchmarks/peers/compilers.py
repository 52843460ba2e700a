"""NumPy and torch: the same arithmetic, written with whole arrays, by hand and compiled."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from tests.benchmarks.peers.against import Bound, Peer, Running, fastest

GROUP = 128
HALF_STEP = 0.5 / 7
#: bitsandbytes' own default.
NF4_GROUP = 64


def unpacked(data):
    """Return the two codes of each byte, the low one first."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(data.shape[0], -1)


def decode(data, scales):
    """Return what packed 4-bit codes with one scale a row stand for."""
    return (unpacked(data).astype(np.float32) - 8) * np.asarray(scales).reshape(-1, 1)


def start_numpy(weights, n_threads):
    """Run NumPy in blocks of groups, all outputs preallocated."""
    groups = weights.reshape(-1, GROUP)
    data = np.zeros((len(groups), GROUP // 2), np.uint8)
    scales = np.zeros((len(groups), 1), np.float32)
    parts = [slice(k * len(groups) // n_threads, (k + 1) * len(groups) // n_threads) for k in range(n_threads)]

    def run(part, block):
        scratch, codes = np.empty((block, GROUP), np.float32), np.empty((block, GROUP), np.uint8)
        for at in range(part.start, part.stop, block):
            cut = slice(at, min(at + block, part.stop))
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

    def variant(block):
        pool = ThreadPoolExecutor(n_threads)
        call = partial(_on, pool, partial(run, block=block), parts)
        return Running(call, lambda _: (groups, decode(data, scales)), pool.shutdown)

    return fastest(len(groups), (256, 512, 1024, 4096), variant)


def _on(pool, function, parts):
    return list(pool.map(function, parts))


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
    with torch.inference_mode():
        scales = w.abs().amax(dim=1, keepdim=True) / 7
        codes = ((w / scales).round() + 8).to(torch.uint8)
        return codes[:, ::2] | (codes[:, 1::2] << 4), scales


def _joined(torch, result):
    return [torch.cat(column).numpy() for column in zip(*result, strict=True)]


def start_torch_eager(weights, n_threads):
    """Run torch's operators in blocks of groups, shared out to Python threads, for torch lets go of the lock."""
    torch = _torch(1)
    groups = _tensor(torch, weights).reshape(-1, GROUP)

    def variant(block):
        pool = ThreadPoolExecutor(n_threads)
        call = partial(_on, pool, partial(quantize_groups, torch), groups.split(block))
        return Running(call, lambda result: (groups.numpy(), decode(*_joined(torch, result))), pool.shutdown)

    return fastest(len(groups), (512, 1024, 2048, 8192), variant)


def start_torch_compile(weights, n_threads):
    """Run the same function, fused by torch.compile, on a layer at a time or on everything."""
    torch = _torch(n_threads)
    groups = _tensor(torch, weights).reshape(-1, GROUP)
    compiled = torch.compile(partial(quantize_groups, torch), dynamic=False)

    def variant(block):
        call = partial(_each, compiled, groups.split(block))
        return Running(call, lambda result: (groups.numpy(), decode(*_joined(torch, result))))

    return fastest(len(groups), (8192, len(groups)), variant)


def _each(function, parts):
    return [function(part) for part in parts]


def start_torchao(weights, n_threads):
    """Run torchao's affine quantization, fused by torch.compile, on a layer at a time or on everything."""
    torch = _torch(n_threads)
    from torchao.quantization import quant_primitives as primitives  # noqa: PLC0415 - a peer

    size, given = (1, GROUP), _tensor(torch, weights)

    @partial(torch.compile, dynamic=False)
    def quantize(w):
        with torch.inference_mode():
            kind = primitives.MappingType.SYMMETRIC
            scale, zero = primitives.choose_qparams_affine(w, kind, size, torch.int8, -8, 7, scale_dtype=torch.float32)
            return primitives.quantize_affine(w, size, scale, zero, torch.int8, -8, 7), scale

    def decoded(result):
        codes, scale = (torch.cat(column) for column in zip(*result, strict=True))
        return given.numpy(), primitives.dequantize_affine(codes, size, scale, None, torch.int8, -8, 7).numpy()

    return fastest(
        len(given), (256, len(given)), lambda block: Running(partial(_each, quantize, given.split(block)), decoded)
    )


def start_bitsandbytes(weights, n_threads):
    """Run NF4 on the CPU; ours packs the first of two codes in the low half."""
    torch = _torch(n_threads)
    from bitsandbytes import functional  # noqa: PLC0415 - a peer

    given = _tensor(torch, weights)

    def call():
        return functional.quantize_4bit(given, blocksize=NF4_GROUP, quant_type="nf4")

    def codes(result):
        data = result[0].numpy()
        return [data >> 4 | data << 4]

    return Running(call, lambda result: (given.numpy(), functional.dequantize_4bit(*result).numpy()), codes=codes)


def start_hqq(weights, n_threads):
    """Run hqq without its search."""
    torch = _torch(n_threads)
    from hqq.core.quantize import Quantizer  # noqa: PLC0415 - a peer

    given = _tensor(torch, weights)
    options = {"nbits": 4, "group_size": GROUP, "axis": 1, "optimize": False, "device": "cpu"}
    quantize = partial(Quantizer.quantize, compute_dtype=torch.float32, **options)

    def decoded(result):
        return given.numpy(), torch.cat([Quantizer.dequantize(*part) for part in result]).numpy()

    return fastest(
        len(given), (64, 256, 1024), lambda block: Running(partial(_each, quantize, given.split(block)), decoded)
    )


TORCH_PEERS = [
    Peer(
        "numpy",
        "NumPy",
        ("numpy",),
        start_numpy,
        Bound(GROUP, HALF_STEP),
        "numpy",
        into=True,
        config="Blocks of 256 to 4,096 groups, outputs and scratch preallocated, shared out to Python threads.",
    ),
    Peer(
        "torch-eager",
        "torch eager",
        ("torch",),
        start_torch_eager,
        Bound(GROUP, HALF_STEP),
        "torch",
        config="Blocks of 512 to 8,192 groups, shared out to Python threads, inference mode.",
    ),
    Peer(
        "torch-compile",
        "torch.compile",
        ("torch",),
        start_torch_compile,
        Bound(GROUP, HALF_STEP),
        "torch",
        config="Inductor, static shapes, all or 8,192 groups at once; compiled before the clock starts.",
    ),
    Peer(
        "torchao",
        "torchao",
        ("torch", "torchao"),
        start_torchao,
        Bound(GROUP, 0.5 / 7.5),
        "torchao",
        config="choose_qparams_affine and quantize_affine, symmetric, blocks of (1, 128), compiled as that.",
        differs="Less work: one code a byte, not packed.",
    ),
    Peer(
        "bitsandbytes",
        "bitsandbytes NF4",
        ("torch", "bitsandbytes"),
        start_bitsandbytes,
        Bound(NF4_GROUP, 0.153),
        "bitsandbytes",
        scheme=f"nf4_g{NF4_GROUP}",
        config="quantize_4bit, blocks of 64, CPU.",
        differs="The same codes; it packs the first of two in the high half.",
    ),
    Peer(
        "hqq",
        "hqq without search",
        ("torch", "hqq"),
        start_hqq,
        Bound(GROUP, 0.5 / 7.4),
        "hqq",
        config="Quantizer.quantize, optimize=False, CPU, 64 to 1,024 rows of 4,096 at once.",
        differs="Zero points, as floats; packed.",
    ),
]
