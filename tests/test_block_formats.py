"""The block formats of GGUF: ggml's bytes where they are asked for, never a larger error where they are searched."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from support import ggml, oracle
from support.models import SETS, SIZE, minilm_outputs, uniform, weights
from support.samples import column, shapes

import aq2_pipeline
from aq2_pipeline import InputValueError, SchemeError, layout

NAMES = list(ggml.FORMATS)
#: What a search must reach on the output matrices of MiniLM, all weights together, in dB.
LEAST_SQNR = {
    "q4_0": 20.87, "q4_1": 22.69, "q5_0": 26.85, "q5_1": 28.95, "q2_k": 11.46, "q3_k": 16.29, "q4_k": 22.66,
    "q5_k": 28.50, "q6_k": 34.78, "iq4_nl": 22.08, "nvfp4": 21.68, "mxfp4": 18.73,
}  # fmt: skip
#: What llama.cpp stores instead where a row does not divide into blocks.
FALLBACKS = {
    "q2_k": "q4_0", "q3_k": "q4_0", "tq1_0": "q4_0", "tq2_0": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}  # fmt: skip
#: Squared errors are sums of float64 of up to 10^5 terms; equal errors may differ by their rounding.
ROUNDING = 1e-9

formats = pytest.mark.parametrize("name", NAMES)
every_set = pytest.mark.parametrize("given", SETS)


def bytes_of(quantized: pa.Array) -> np.ndarray:
    """Return the bytes of all rows, one after the other."""
    return np.frombuffer(b"".join(quantized.field("quantized_data").to_pylist()), np.uint8)


def quantized(values: np.ndarray, scheme: str, row_length: int | None = None, importance=None) -> np.ndarray:
    """Return our bytes of one row of weights."""
    shape = None if row_length is None else shapes((values.size // row_length, row_length))
    given = [] if importance is None else [column(importance)]
    found = aq2_pipeline.quantize(column(values), scheme, *([] if shape is None and not given else [shape, *given]))
    assert found.field("scheme").to_pylist() == [scheme.split(":", maxsplit=1)[0]]
    assert len(found[0]["scales"]) == len(found[0]["zero_points"]) == 0
    return bytes_of(found)


def decoded(data: np.ndarray, name: str, n: int) -> np.ndarray:
    """Return the weights that we decode from the bytes of a format."""
    row = {"scheme": name, "length": n, "row_length": n, "quantized_data": data.tobytes()}
    row |= {"scales": [], "zero_points": []}
    return aq2_pipeline.dequantize(pa.array([row], layout.QUANTIZED)).values.to_numpy()


def tame(values: np.ndarray, name: str) -> np.ndarray:
    """Return the super-blocks that a format's reference defines: see `support.ggml`."""
    largest = np.abs(values.reshape(-1, ggml.FORMATS[name].weights)).max(axis=1)
    if name == "nvfp4":  # above, ggml cuts off what a search may refuse
        good = largest <= 2688
    elif name == "mxfp4":  # below, ggml's exponent wraps around
        good = (largest == 0) | (largest >= 2.0**-125)
    else:
        return values
    return values.reshape(-1, 256)[good.reshape(values.size // 256, -1).all(axis=1)].ravel()


def assert_same_bytes(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Compare blocks; a failure names the first block and field that differ."""
    assert found.size == expected.size, f"{name}: {found.size} bytes, ggml has {expected.size}"
    different = (found != expected).nonzero()[0]
    if different.size:
        size = ggml.FORMATS[name].bytes
        block, offset = divmod(int(different[0]), size)
        n_blocks = np.unique(different // size).size
        ours, theirs = (data[block * size : (block + 1) * size].tobytes().hex() for data in (found, expected))
        pytest.fail(
            f"{name}: block {block} differs first in {ggml.field_at(name, offset)}, byte {offset} of {size}; "
            f"{n_blocks} of {found.size // size} blocks differ\nours {ours}\nggml {theirs}"
        )


def assert_same_bits(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Compare decoded weights bit for bit, the signs of zeros included."""
    different = (found.view(np.uint32) != expected.view(np.uint32)).nonzero()[0]
    if different.size:
        block, at = divmod(int(different[0]), ggml.FORMATS[name].weights)
        ours, theirs = found[different[0]], expected[different[0]]
        pytest.fail(f"{name}: {different.size} weights differ, first {at} of block {block}: {ours!r}, ggml {theirs!r}")


def squared_errors(values: np.ndarray, data: np.ndarray, name: str) -> np.ndarray:
    """Return the squared error of each block, or super-block, of what ggml decodes."""
    lost = values.astype(np.float64) - ggml.dequantize(name, data, values.size)
    return (lost**2).reshape(-1, ggml.FORMATS[name].weights).sum(axis=1)


@formats
def test_the_table_of_formats_is_ggmls(name):
    """Each number, size of a block and number of bytes is what ggml says itself, and no format needs importance."""
    form = ggml.FORMATS[name]
    assert ggml.described(name) == (name, form.weights, form.bytes, False)


@formats
@every_set
def test_reference_has_ggmls_bytes(name, given):
    """The method `reference` writes what ggml writes without importance, on every set."""
    values = tame(weights(given), name)
    assert_same_bytes(quantized(values, f"{name}:reference"), ggml.quantize(name, values), name)


@formats
def test_matrix_rows_are_quantized_one_by_one(name):
    """A matrix has the bytes of its rows, for both methods."""
    values = minilm_outputs()[3][:4]
    for scheme in (name, f"{name}:reference"):
        rows = [quantized(row, scheme) for row in values]
        assert_same_bytes(quantized(values.ravel(), scheme, 1536), np.concatenate(rows), name)


@formats
@every_set
def test_decoded_bits_are_ggmls(name, given):
    """What a search wrote, and what ggml wrote, decodes to the very bits that ggml decodes."""
    values = tame(weights(given), name)
    for data in (ggml.quantize(name, values), quantized(values, name)):
        assert_same_bits(decoded(data, name, values.size), ggml.dequantize(name, data, values.size), name)


@formats
def test_random_bytes_decode_to_ggmls_bits(name):
    """Any codes under any finite scales, those of no quantizer too, decode to the very bits that ggml decodes."""
    n_blocks = 1 << 11
    data = ggml.random_blocks(name, n_blocks, seed=5)
    expected = ggml.dequantize(name, data, n_blocks * ggml.FORMATS[name].weights)
    assert np.isfinite(expected).all()
    assert_same_bits(decoded(data, name, expected.size), expected, name)


@formats
@every_set
def test_search_never_loses_more_than_ggml(name, given):
    """On every block or super-block, and so in total, the search's squared error is at most that of ggml."""
    values = tame(weights(given), name)
    ours = squared_errors(values, quantized(values, name), name)
    theirs = squared_errors(values, ggml.quantize(name, values), name)
    worse = (ours > theirs * (1 + ROUNDING)).nonzero()[0]
    if worse.size:
        k = worse[np.argmax(ours[worse] / theirs[worse])] if theirs[worse].all() else worse[0]
        pytest.fail(f"{name}: {worse.size} of {ours.size} blocks lose more; block {k}: {ours[k]:.6g} > {theirs[k]:.6g}")
    assert ours.sum() <= theirs.sum() * (1 + ROUNDING)


@pytest.mark.parametrize("name", LEAST_SQNR)
def test_search_reaches_its_decibels_on_minilm(name):
    """The output matrices of all six layers, pooled, keep at least the stated signal to noise."""
    power = lost = 0.0
    for matrix in minilm_outputs():
        data = quantized(matrix.ravel(), name, matrix.shape[1])
        lost += squared_errors(matrix.ravel(), data, name).sum()
        power += (matrix.astype(np.float64) ** 2).sum()
    assert 10 * math.log10(power / lost) >= LEAST_SQNR[name]


@formats
@pytest.mark.parametrize("method", ["search", "reference"])
def test_quantization_error_is_that_of_the_round_trip(name, method):
    """Every figure agrees with those of the decoded weights in float64; the bits a weight are the blocks'."""
    form, scheme = ggml.FORMATS[name], f"{name}:{method}"
    for given in ("gaussian", "outlier", "minilm", "edges"):
        values = tame(weights(given), name)[:SIZE]
        found = aq2_pipeline.quantization_error(column(values), scheme).to_pylist()[0]
        data = quantized(values, scheme)
        expected = oracle.figures(values, ggml.dequantize(name, data, values.size), data.size)
        assert expected["bits_per_weight"] == 8 * form.bytes / form.weights
        assert oracle.close(found, expected, rel=1e-9), given


@formats
def test_a_row_that_is_no_whole_blocks_is_refused(name):
    """Rows that do not divide into blocks are a SchemeError that names what llama.cpp would store instead."""
    size = ggml.FORMATS[name].weights
    fallback, odd = FALLBACKS.get(name, "f16"), size + (32 if size > 32 else 1)
    assert quantized(np.ones(size), name).size == ggml.FORMATS[name].bytes
    for values, shape in ((np.ones(odd), None), (np.ones(size * odd), (size, odd)), (np.ones(odd - size), None)):
        with pytest.raises(SchemeError, match=rf"\b{fallback}\b"):
            aq2_pipeline.quantize(column(values), name, *([] if shape is None else [shapes(shape)]))


@pytest.mark.parametrize("name", FALLBACKS)
def test_a_row_that_no_block_divides_falls_back_to_f16(name):
    """Where not even the fallback's blocks of 32 divide a row, f16 is named, as llama.cpp takes it then."""
    with pytest.raises(SchemeError, match=r"\bf16\b"):
        aq2_pipeline.quantize(column(np.ones(257)), name)


@formats
def test_rows_do_not_know_of_each_other(name):
    """Quantizing three rows at once, in chunks, or one by one gives the same bytes."""
    rows = [weights(given)[: 256 * n] for given, n in (("gaussian", 3), ("outlier", 1), ("minilm", 7))]
    for scheme in (name, f"{name}:reference"):
        whole = aq2_pipeline.quantize(column(*rows), scheme)
        alone = [aq2_pipeline.quantize(column(row), scheme) for row in rows]
        assert whole == pa.concat_arrays(alone)
        chunked = pa.chunked_array([column(rows[0]), column(*rows[1:])])
        assert aq2_pipeline.quantize(chunked, scheme).combine_chunks() == whole


@formats
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_place(name, bad):
    """NaN and infinities name their row and position, for both methods."""
    rows = [weights("gaussian")[:512].copy() for _ in range(3)]
    rows[2][300] = bad
    for scheme in (name, f"{name}:reference"):
        with pytest.raises(InputValueError) as caught:
            aq2_pipeline.quantize(column(*rows), scheme)
        assert (caught.value.row, caught.value.position) == (2, 300)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mxfp4"])
@pytest.mark.parametrize("huge", [1e30, -1e30])
def test_a_value_that_no_scale_can_hold_is_refused(name, huge):
    """A weight whose scale would be infinite as it is stored is an InputValueError that names its row."""
    rows = [weights("gaussian")[:256].copy() for _ in range(2)]
    rows[1][7] = huge
    for scheme in (name, f"{name}:reference"):
        with pytest.raises(InputValueError) as caught:
            aq2_pipeline.quantize(column(*rows), scheme)
        assert caught.value.row == 1


def test_mxfp4_holds_what_float16_cannot():
    """Scales that are powers of two reach 2**125, so large weights are no error there."""
    values = (np.float32(1e34) * weights("gaussian")[:256]).astype(np.float32)
    assert_same_bytes(quantized(values, "mxfp4:reference"), ggml.quantize("mxfp4", values), "mxfp4")
    assert squared_errors(values, quantized(values, "mxfp4"), "mxfp4").sum() < 0.02 * (values.astype(float) ** 2).sum()


def weighted_errors(name: str, values: np.ndarray, importance: np.ndarray) -> tuple[float, float]:
    """Return the weighted squared error of the search with importance, and without."""
    weighting = np.resize(importance, values.size).astype(np.float64)
    with_it, without = (
        (weighting * (values.astype(np.float64) - ggml.dequantize(name, data, values.size)) ** 2).sum()
        for data in (quantized(values, name, 1536, importance), quantized(values, name, 1536))
    )
    return with_it, without


@formats
@pytest.mark.parametrize("given", ["minilm", "laplace", "outlier"])
def test_importance_never_costs_weighted_error(name, given):
    """With importance, of channels or of weights, the error weighted by it is in total at most that of the search."""
    values = weights(given)[: 4 * 1536]
    for importance in (10 ** (2 * uniform(1536, 11)), uniform(values.size, 12) + 1e-3):
        with_it, without = weighted_errors(name, values, importance.astype(np.float32))
        assert with_it <= without * (1 + ROUNDING)


@pytest.mark.parametrize("name", [*LEAST_SQNR, "iq4_xs"])
def test_importance_is_heeded(name):
    """Where a search has a choice, importance that spans two decades lowers the error that it weights."""
    with_it, without = weighted_errors(name, weights("minilm")[: 8 * 1536], 10 ** (2 * uniform(1536, 11)))
    assert with_it < without


@formats
def test_importance_of_a_channel_is_that_of_its_weights(name):
    """One number a channel is the same as that number repeated in every matrix row, and ones are no importance."""
    values = weights("minilm")[: 3 * 1536]
    importance = (uniform(1536, 13) + 0.1).astype(np.float32)
    once = quantized(values, name, 1536, importance)
    assert_same_bytes(once, quantized(values, name, 1536, np.tile(importance, 3)), name)
    ones = quantized(values, name, 1536, np.ones(1536, np.float32))
    assert_same_bytes(ones, quantized(values, name, 1536), name)
