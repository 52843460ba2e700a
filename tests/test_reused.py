"""Memory that batches share one after the other: never while anything of it is still held."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

import aq2_pipeline
from aq2_pipeline import build
from aq2_pipeline.io.tables.reused import Reused

N = 1 << 20


def address(array):
    return array.__array_interface__["data"][0]


HOLDERS = {
    "the array": lambda array: array,
    "a view": lambda array: array[5:10],
    "a view of a view": lambda array: array.view(np.uint8)[16:][4:8],
    "a transposed matrix": lambda array: array.reshape(-1, 16).T,
    "a memoryview": lambda array: memoryview(array)[3:4],
    "an arrow array": lambda array: build.float_lists(np.array([0, array.size]), array, None),
    "arrow's child": lambda array: build.float_lists(np.array([0, array.size]), array, None).values,
    "arrow's slice as numpy": lambda array: (
        build.float_lists(np.array([0, array.size]), array, None).values[7:9].to_numpy()
    ),
    "a polars series": lambda array: pl.Series(build.float_lists(np.array([0, array.size]), array, None)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_held_is_not_given_again(holder):
    """A block comes again once nothing of it is held, whoever held it."""
    memory = Reused()
    array = memory.empty(N, np.float32)
    array[:] = 7
    first = address(array)
    held = HOLDERS[holder](array)
    del array
    other = memory.empty(N, np.float32)
    assert address(other) != first
    other[:] = 0
    del held
    assert address(memory.empty(N, np.float32)) == first


def test_blocks_of_another_size_are_not_kept():
    """A block serves arrays of its size down to half of it; what does not fit is let go."""
    memory = Reused()
    first = address(memory.empty(2 * N, np.float32))
    half = memory.empty(2 * N, np.uint16)
    assert (address(half), half.dtype, half.size) == (first, np.uint16, 2 * N)
    del half
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    large = memory.empty(3 * N, np.float32)
    assert pool.bytes_allocated() - before == 4 * N  # the block of 8 MB went
    del large
    small = memory.empty(N, np.uint8)
    assert pool.bytes_allocated() - before == N - 8 * N
    del small, memory
    assert pool.bytes_allocated() == before - 8 * N


def test_every_batch_of_a_scan_keeps_its_own_weights(tmp_path):
    """Batches that are all held have their own weights, though those let go are read over."""
    weights = {f"w{k}": np.full((512, 1024), k, np.float32) for k in range(24)}
    save_file(weights, tmp_path / "m.safetensors")
    reader = aq2_pipeline.open_reader(tmp_path / "m.safetensors")
    held = [batch for k, batch in enumerate(reader) if k % 2 == 0]
    found = {row["layer_name"]: set(row["weights"]) for batch in held for row in batch.to_pylist()}
    assert found
    assert found == {name: {float(name[1:])} for name in found}
    lf = aq2_pipeline.scan_safetensors(tmp_path / "m.safetensors")
    sums = lf.select("layer_name", total=pl.col("weights").list.sum()).collect(engine="streaming")
    assert dict(sums.iter_rows()) == {name: float(array.sum()) for name, array in weights.items()}
