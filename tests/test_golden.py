"""Stored bytes never change by accident: every scheme and dtype, on a fixed input, against what is in the repository.

``python tests/test_golden.py --write`` writes the files anew: a stored format
changes only on purpose, with a line in the changelog.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # run as a script, too

from support.samples import bell, column, shapes

import aq2_pipeline
from aq2_pipeline import codecs, schemes

FOLDER = Path(__file__).parent / "golden"
INTEGERS = [
    f"int{bits}_{group}{asym}"
    for bits in range(2, 9)
    for group in ("g32", "g128", "channel", "tensor")
    for asym in ("", "_asym")
]
CODEBOOKS = [
    f"{name}_{group}" for name in ("nf4", "fp4", "fp8_e4m3", "fp8_e5m2") for group in ("g64", "channel", "tensor")
]
#: What a search finds is stored, too: a better one is a change of bytes.
SEARCHED = [
    *(f"{name}:{method}" for name in ("int3_g32", "int4_g128_asym") for method in ("mse", "hqq")),
    "nf4_g64:search",
    "fp4_g64:search",
    "fp8_e4m3_channel:search",
]
BLOCKS = [f"{name}:{method}" for name in codecs.BLOCKS for method in ("search", "reference")]
TENSOR_SCALED = [f"nvfp4_tensor:{method}" for method in codecs.NVFP4_TENSOR]
ROTATED = ["int4_g32_rot32", "int3_g12_asym_rot64", "nf4_g64_rot64"]
SCHEMES = [*INTEGERS, *CODEBOOKS, *SEARCHED, *BLOCKS, *TENSOR_SCALED, *ROTATED, "f32", "f16", "bf16"]
DTYPES = ("f32", "f16", "bf16")


def rows() -> tuple[pa.Array, pa.Array]:
    """Return the fixed weights and their shapes; odd lengths, short groups, a constant, zeros, a wide range."""
    wide = bell(200, 6)
    wide[::3] *= np.float32(2.0**-12)
    weights = [bell(1), bell(3, 2), bell(131, 3), bell(7 * 37, 4), bell(3 * 5 * 3 * 3, 5), wide]
    weights += [np.full(33, 0.1, np.float32), np.zeros(5, np.float32), bell(400, 8) + np.float32(0.25)]
    given = [None, (3,), None, (7, 37), (3, 5, 3, 3), (2, 100), None, (5,), (4, 100)]
    return column(*weights), shapes(*given)


def block_rows() -> tuple[pa.Array, pa.Array]:
    """Return fixed weights that divide into every block: a bell, a shifted one, a wide range, a constant, zeros."""
    wide = bell(1024, 9)
    wide[::3] *= np.float32(2.0**-12)
    weights = [bell(2560, 10), bell(512, 11) + np.float32(0.25), wide, np.full(256, 0.1, np.float32), np.zeros(256)]
    return column(*weights), shapes((5, 512), None, (2, 512), None, None)


def rotated_rows() -> tuple[pa.Array, pa.Array]:
    """Return fixed weights whose matrix rows blocks of 64 divide."""
    weights = [bell(64), bell(1600, 2), bell(5 * 3 * 64, 3), np.full(128, 0.1, np.float32), np.zeros(64, np.float32)]
    return column(*weights), shapes(None, (5, 320), (5, 3, 64), None, (64,))


def as_stored(weights: pa.Array, dtype: str) -> pa.Array:
    """Return the weights as bytes of a dtype."""
    cast = {"f32": lambda w: w, "f16": lambda w: w.astype(np.float16)}
    cast["bf16"] = lambda w: (w.view(np.uint32) >> 16).astype(np.uint16)
    return pa.array([cast[dtype](row.values.to_numpy()).tobytes() for row in weights], pa.large_binary())


def fingerprint(name: str, dtype: str) -> dict:
    """Return what is pinned of a scheme on weights that are stored in a dtype."""
    weights, given = (
        block_rows() if name in [*BLOCKS, *TENSOR_SCALED] else rotated_rows() if name in ROTATED else rows()
    )
    quantized = aq2_pipeline.quantize(as_stored(weights, dtype), f"{name}@{dtype}", given).to_pylist()
    data = [row["quantized_data"] for row in quantized]
    numbers = {k: np.concatenate([np.array(row[k], "<f4") for row in quantized]) for k in ("scales", "zero_points")}
    decoded = aq2_pipeline.dequantize(pa.array(quantized, aq2_pipeline.layout.QUANTIZED)).values.to_numpy()
    return {
        "scheme": quantized[0]["scheme"],
        "lengths": [row["length"] for row in quantized],
        "row_lengths": [row["row_length"] for row in quantized],
        "bytes": [len(one) for one in data],
        "first_bytes": [one[:8].hex() for one in data],
        "sha256": hashlib.sha256(b"".join(data)).hexdigest(),
        "scales": numbers["scales"].tobytes().hex() if name.endswith(("tensor", "tensor_asym")) else
        hashlib.sha256(numbers["scales"].tobytes()).hexdigest(),
        "first_scales": numbers["scales"][:6].tobytes().hex(),
        "zero_points": numbers["zero_points"].tobytes().hex() if name.endswith("hqq") else
        "".join(f"{int(zero):02x}" for zero in numbers["zero_points"]),
        "decoded": hashlib.sha256(decoded.tobytes()).hexdigest(),
    }  # fmt: skip


def path(name: str) -> Path:
    """Return the file of a scheme."""
    return FOLDER / f"{name.replace(':', '-')}.json"


def known() -> dict:
    """Return what is pinned of the names themselves."""
    return {"known_names": schemes.known_names()}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_bytes_are_the_golden_ones(name, dtype):
    """A scheme's bytes, scales, zero points and decoded bits are those in the repository; no file is a failure."""
    assert fingerprint(name, dtype) == json.loads(path(name).read_text())[dtype]


def test_names_are_the_golden_ones():
    """No known name disappears or is renamed; new ones are written into the file on purpose."""
    assert known() == json.loads((FOLDER / "names.json").read_text())


def test_the_fixed_input_is_fixed():
    """The weights are those that the files were made of, whatever NumPy does."""
    weights, _ = rows()
    digest = hashlib.sha256(weights.values.to_numpy().tobytes()).hexdigest()
    assert digest == json.loads((FOLDER / "input.json").read_text())["sha256"]


def test_every_golden_file_is_used():
    """No file outlives its scheme."""
    expected = {path(name).name for name in SCHEMES} | {"names.json", "input.json"}
    assert {file.name for file in FOLDER.iterdir()} == expected


def write() -> None:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    weights, _ = rows()
    files = {path(name): {dtype: fingerprint(name, dtype) for dtype in DTYPES} for name in SCHEMES}
    files[FOLDER / "names.json"] = known()
    files[FOLDER / "input.json"] = {"sha256": hashlib.sha256(weights.values.to_numpy().tobytes()).hexdigest()}
    for file, content in files.items():
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    write()
