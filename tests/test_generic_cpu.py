"""Block formats, codebooks, searches and rotations: the same bytes on a CPU without vector extensions."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from robustness.harness import in_child
from support.samples import bell, column, shapes

import aq2_pipeline
from aq2_pipeline import InputValueError

N, ROW = 2048, 512
#: One of each search and rounding that formats share, both loops over groups, a rotation; True with an importance.
CASES = [
    ("q4_0", False),
    ("q5_1", True),
    ("q8_0", False),
    ("q4_k:reference", False),
    ("q6_k", False),
    ("iq4_nl", False),
    ("mxfp4", False),
    ("nvfp4", False),
    ("tq2_0", False),
    ("nf4_g64:search", True),
    ("fp8_e4m3_g50", False),
    ("int3_g50:mse", False),
    ("int4_g128_asym:hqq", False),
    ("int4_g32_rot64", False),
]
#: What takes each other path through float32: the largest scales, the smallest, none, ties, and codes clipped.
SETS = ("bell", "outliers", "subnormal", "few", "constant", "ties", "wide")


def weights(name: str) -> np.ndarray:
    """Return a set of weights by its name."""
    values = bell(N, 3)
    if name == "outliers":
        values[5::97] *= 40
    elif name == "subnormal":
        values = values.astype(np.float64) * 1e-39
    elif name == "few":
        values[:] = -0.0
        values[[300, 900, 1200]] = 1e-45, -1e-38, 1.0
    elif name == "constant":
        values[: N // 2], values[N // 2 :] = 0.37, -3.0
    elif name == "ties":
        values = np.round(values * 40) / 2
    elif name == "wide":
        values[256:512] *= 1e-30
        values[512:768] *= 1e4
    return values.astype(np.float32)


def digest(scheme: str, given: str, *, weighted: bool) -> str:
    """Return a digest of all that quantizing a set gives: bytes, scales, zero points, weights and errors."""
    arguments = [column(weights(given)), scheme, shapes((N // ROW, ROW))]
    if weighted:
        arguments.append(column(10 ** (4 * bell(ROW, 7))))
    try:
        quantized = aq2_pipeline.quantize(*arguments)
    except InputValueError as error:
        return str(error)
    found = [quantized, aq2_pipeline.dequantize(quantized)]
    if scheme in ("q4_0", "nf4_g64:search", "int4_g32_rot64"):  # what sums errors is compiled for one of a kind
        found.append(aq2_pipeline.quantization_error(*arguments))
    return hashlib.sha256(repr([part.to_pylist() for part in found]).encode()).hexdigest()


def digests() -> dict[str, str]:
    """Return the digests of all cases."""
    return {
        f"{scheme} {given}": digest(scheme, given, weighted=weighted) for scheme, weighted in CASES for given in SETS
    }


def test_the_generic_cpu_gives_the_same_bytes():
    """A child compiles for a CPU without SSE4, AVX, F16C and FMA; every byte, weight and figure is that of this one."""
    code = (
        "import json, test_generic_cpu\n"
        "from numba.core.registry import cpu_target\n"
        "assert '+' not in cpu_target.target_context.codegen()._tm_features\n"
        "print(json.dumps(test_generic_cpu.digests()))"
    )
    told = in_child(code, 600, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert json.loads(told) == digests()
