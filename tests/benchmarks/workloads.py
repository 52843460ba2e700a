"""The weights that are measured: L, M, C, E and R of the benchmark page, cut from one buffer that is filled once.

L is one layer of 1,048,576 float32 weights; M 100 such layers in one column; C the same weights as 25,600 rows of
4,096; E 1,000,000 embeddings of 384; R a real model of the test dependencies; F its six FFN output matrices, on which
the errors of block formats are judged; T 64 layers, for threads. `--quick` has the same shapes, tiny.
"""

from __future__ import annotations

import functools
import io
import zipfile
from dataclasses import dataclass
from importlib import resources

import numpy as np
import pyarrow as pa

from aq2_pipeline.pieces import SLICE_SIZE
from tests.support.models import minilm_outputs

#: Record batches that DuckDB shares out to its threads.
N_BATCHES = 16

#: Columns of F's matrices.
F_COLUMNS = 1536

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Workload:
    """Rows of equal length."""

    name: str
    n_rows: int
    row_length: int

    @property
    def n_weights(self):
        """Weights in all."""
        return self.n_rows * self.row_length


def workload(name, setting):
    """Return a workload; `S` is C's beginning, for what would take C hours."""
    layer = 1 << (17 if setting.quick else 20)
    return {
        "L": Workload("L", 1, layer),
        "M": Workload("M", 4 if setting.quick else 100, layer),
        "C": Workload("C", 32 if setting.quick else 25_600, 4096),
        "S": Workload("S", 16 if setting.quick else 4096, 4096),
        # Thirty-two slices of `pieces.SLICE_SIZE`: two threads have sixteen each.
        "T": Workload("T", 16 if setting.quick else 64, layer),
        "F": Workload("F", 6, F_COLUMNS * (8 if setting.quick else 384)),
        "E": Workload("E", 500 if setting.quick else 1_000_000, 384),
    }[name]


def sizes(setting):
    """Return the columns of layers over which the cost of a weight must be flat."""
    layer = 1 << (12 if setting.quick else 20)
    return [Workload(f"{n}M", n, layer) for n in (1, 4, 16, 64, 256, 400)]


class _Buffer:
    """Normal weights, made up to where they are needed; unused memory is never touched."""

    def __init__(self):
        self.values = np.empty(0, np.float32)
        self.n_made = 0

    def first(self, n, limit):
        """Return the first `n`; `limit` is the most that this process will ask for."""
        if self.values.size < n:
            self.values, self.n_made = np.empty(max(n, limit), np.float32), 0
        while self.n_made < n:
            block = self.values[self.n_made : self.n_made + _BLOCK]
            np.random.default_rng(self.n_made).standard_normal(dtype=np.float32, out=block)
            self.n_made += block.size
        return self.values[:n]


_BUFFER = _Buffer()


def values(work, setting):
    """Return the weights of a workload, flat and read-only, as engines see them."""
    if work.name == "F":
        return ffn_outputs(work.row_length)
    found = _BUFFER.first(work.n_weights, sizes(setting)[-1].n_weights).view()
    found.flags.writeable = False
    return found


def column(work, setting):
    """Return a large_list column of one chunk that shares the buffer."""
    offsets = np.arange(work.n_rows + 1, dtype=np.int64) * work.row_length
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values(work, setting)))


def fixed_column(work, setting):
    """Return a fixed_size_list column of one chunk that shares the buffer."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values(work, setting)), work.row_length)


def batches(array):
    """Return a table of one column `w` in `N_BATCHES` record batches."""
    size = -(-len(array) // N_BATCHES)
    return pa.Table.from_batches(pa.table({"w": array}).to_batches(max_chunksize=size))


def lengths(work):
    """Return the length of each row."""
    return np.full(work.n_rows, work.row_length, np.int64)


def names(work):
    """Return a name for each row."""
    return [f"layer.{k}.weight" for k in range(work.n_rows)]


@functools.cache
def ffn_outputs(n):
    """Return the first n weights of each FFN output matrix of all-MiniLM-L6-v2."""
    found = np.concatenate([matrix.ravel()[:n] for matrix in minilm_outputs()])
    found.flags.writeable = False
    return found


@functools.cache
def real_model():
    """Return the weights of all-MiniLM-L6-v2: (flat values, lengths of its matrices, the largest in parts)."""
    from safetensors.numpy import load  # noqa: PLC0415 - an extra

    with zipfile.ZipFile(io.BytesIO(resources.files("all_minilm_l6_v2").joinpath("model.zip").read_bytes())) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".safetensors"))
        tensors = load(archive.read(name))
    kept = [tensors[name] for name in sorted(tensors)]  # the library's order is another each time
    matrices = [tensor.ravel() for tensor in kept if tensor.ndim == 2 and tensor.dtype == np.float32]
    found = np.concatenate(matrices)
    found.flags.writeable = False
    # The table of words has more weights than a call of a kernel takes.
    sizes = [part.size for matrix in matrices for part in np.array_split(matrix, 1 + matrix.size // SLICE_SIZE)]
    return found, np.array(sizes, np.int64)
