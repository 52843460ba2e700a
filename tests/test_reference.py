"""The bytes of an independent oracle, on made and on real weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import models, oracle
from support.samples import IDENTITY_SCHEMES, bell, column, shapes

import aq2_pipeline

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMES = [
    f"int{bits}_{group}{asym}"
    for bits in range(2, 9)
    for group in ("g1", "g32", "g50", "channel", "tensor")
    for asym in ("", "_asym")
]
ERROR_SCHEMES = ["int2_g32", "int4_g128", "int4_g50_asym", "int8_channel", "int3_tensor_asym", "f16"]
#: Rank 0 to 4, with short groups, rows shorter than a group, axes of 1 and of 0.
SHAPES = [None, (), (0,), (1,), (131,), (4, 33), (5, 128), (3, 1, 17), (2, 3, 5, 7), (6, 4, 3, 3), (1, 40, 40), (2, 0)]


def rows_of(seed: int) -> tuple[list[np.ndarray], list[tuple | None]]:
    """Return a row for each shape, of mixed magnitudes."""
    rows = []
    for k, shape in enumerate(SHAPES):
        n = 67 if shape is None else math.prod(shape)
        rows.append(
            (bell(n, seed + k) * np.float32(10.0 ** (k % 5 - 2)) + np.float32(0.01 * (k % 3))).astype(np.float32)
        )
    return rows, SHAPES


def edges() -> list[np.ndarray]:
    """Return rows at the edges of float32."""
    largest, smallest, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_normal, np.float32(1e-45)
    rows = [
        [0.0, -0.0, 0.0],
        [3.0] * 9,
        [-3.0] * 9,
        [largest, -largest, 1.0],
        [largest],
        [tiny, -tiny, 3 * tiny],
        [smallest * 7, -smallest, smallest],
        [smallest * 6.9, smallest * 2],
        [1.0] * 40 + [1e30],
        [0.5, 1.5, 2.5, -0.5, -1.5, 7.0],
        [-127.0, 127.0, 126.5, -126.5, 0.5],
        [np.nextafter(np.float32(1), np.float32(2)), 1.0],
        [1e-30, 1e30],
        [-1.0, -2.0],
    ]
    return [np.array(row, np.float32) for row in rows]


def assert_same(found: pa.Array, rows: list[np.ndarray], scheme: str, given: list) -> None:
    """Compare a quantized column, and what it decodes to, with the oracle."""
    decoded = aq2_pipeline.dequantize(found)
    for k, (row, w, shape) in enumerate(zip(found.to_pylist(), rows, given, strict=True)):
        expected = oracle.quantize(w, scheme, shape)
        assert row == expected.as_dict(), (k, shape)
        values = decoded[k].values.to_numpy() if len(w) else np.empty(0, np.float32)
        np.testing.assert_array_equal(values.view(np.int32), oracle.dequantize(expected).view(np.int32))


@pytest.mark.parametrize("scheme", SCHEMES + IDENTITY_SCHEMES)
def test_quantize_and_dequantize_are_the_oracles(scheme):
    """Every scheme, on shapes of rank 0 to 4, gives the oracle's bytes, scales, zero points and decoded bits."""
    rows, given = rows_of(seed=7)
    assert_same(aq2_pipeline.quantize(column(*rows), scheme, shapes(*given)), rows, scheme, given)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if "g1" not in s] + ["f32", "bf16"])
def test_edges_of_float32_are_the_oracles(scheme):
    """Zeros, constants, the largest floats, subnormals and exact halves give the oracle's bytes."""
    rows = edges()
    if scheme == "bf16":
        rows = [row for row in rows if np.abs(row).max() < 3e38]
    assert_same(aq2_pipeline.quantize(column(*rows), scheme), rows, scheme, [None] * len(rows))


@pytest.mark.parametrize(
    "scheme", ["int2_g32", "int4_g128", "int4_g50_asym", "int8_channel", "int3_tensor_asym", "f16"]
)
def test_quantization_error_is_that_of_the_decoded_values(scheme):
    """Every figure is that of the decoded weights in float64, the empty row's are null, and no error is +inf dB."""
    rows, given = rows_of(seed=3)
    rows, given = [*rows, bell(10_000, 5), np.full(9, 0.0, np.float32)], [*given, (8, 1250), None]
    found = aq2_pipeline.quantization_error(column(*rows), scheme, shapes(*given)).to_pylist()
    for row, w, shape in zip(found, rows, given, strict=True):
        expected = oracle.error(w, oracle.quantize(w, scheme, shape))
        cosine = {"cosine": row.pop("cosine")}, {"cosine": expected.pop("cosine")}
        assert oracle.close(*cosine, rel=1e-8)  # `kernels.integer.with_group` says why
        assert oracle.close(row, expected, rel=1e-11)
    assert found[-1]["sqnr_db"] == math.inf
    assert aq2_pipeline.quantization_error(column(rows[-1]), scheme)[0]["cosine"].as_py() == 1


def test_weight_stats_are_the_textbooks():
    """Counts are exact; moments agree with two passes of float64, whether or not a row holds whole blocks."""
    bad = bell(300, 2)
    bad[[0, 17, 299]] = np.nan, np.inf, -np.inf
    spiky = bell(20_000, 9)
    spiky[123] = 5.0
    rows = [bell(n, n + 1) for n in (1, 2, 63, 64, 65, 4095, 4096, 4097, 12_288)]
    rows += [bad, spiky, np.empty(0, np.float32), np.full(5, 2.5, np.float32), np.full(3, np.nan, np.float32)]
    rows += [np.float32(1000) + bell(9000, 4), np.array([0.0, -0.0, 1e-45], np.float32)]
    found = aq2_pipeline.weight_stats(column(*rows)).to_pylist()
    for row, w in zip(found, rows, strict=True):
        assert oracle.close(row, oracle.stats(w), rel=1e-9)
    assert found[10]["outlier_ratio"] == 1 / 20_000
    assert found[-4]["std"] == 0
    assert found[-4]["kurtosis"] is None


def minilm() -> dict[str, np.ndarray]:
    """Return three layers of all-MiniLM-L6-v2: a matrix, a tall matrix, a bias."""
    tensors = models.minilm()
    wanted = ("encoder.layer.0.attention.self.query.weight", "encoder.layer.5.output.dense.weight",
              "encoder.layer.0.output.dense.bias")  # fmt: skip
    return {name: tensors[name] for name in wanted}


def wordllama() -> dict[str, np.ndarray]:
    """Return 2,000 rows of wordllama's embedding, in float16."""
    return {"embedding": models.wordllama()}


@pytest.mark.parametrize("model", [minilm, wordllama])
@pytest.mark.parametrize("scheme", ["int4_g128", "int4_g64_asym", "int8_channel", "int3_tensor", "f16", "bf16"])
def test_real_models_are_the_oracles(model, scheme):
    """Layers of real models give the oracle's bytes, and errors that a model survives."""
    tensors = list(model().values())
    found = aq2_pipeline.quantize(tensors, scheme)
    rows = [tensor.astype(np.float32).ravel() for tensor in tensors]
    assert_same(found, rows, scheme, [tensor.shape for tensor in tensors])
    lost = aq2_pipeline.quantization_error(tensors, scheme).to_pylist()
    for row, w, tensor in zip(lost, rows, tensors, strict=True):
        assert oracle.close(row, oracle.error(w, oracle.quantize(w, scheme, tensor.shape)), rel=1e-9)
        assert row["sqnr_db"] > (0 if scheme == "int3_tensor" else 12)
