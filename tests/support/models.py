"""Weights to quantize: those of real models, and made ones of every shape that a distribution may have."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

#: Weights of each made set: whole blocks of every format.
SIZE = 32 * 256


def safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Read F32 and F16 tensors by the format's own page: a length, a JSON header, the bytes."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "F16": np.float16}
    found = {}
    for name, entry in header.items():
        if entry["dtype"] in kinds:
            first, last = (8 + n + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[first:last], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


def minilm() -> dict[str, np.ndarray]:
    """Return every tensor of all-MiniLM-L6-v2."""
    with zipfile.ZipFile(io.BytesIO(resources.files("all_minilm_l6_v2").joinpath("model.zip").read_bytes())) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".safetensors"))
        return safetensors(archive.read(name))


@functools.cache
def minilm_outputs() -> tuple[np.ndarray, ...]:
    """Return the output matrices of MiniLM's six layers, float32 [384, 1536] each."""
    tensors = minilm()
    return tuple(tensors[f"encoder.layer.{k}.output.dense.weight"] for k in range(6))


@functools.cache
def wordllama(n_rows: int = 2000) -> np.ndarray:
    """Return the first rows of wordllama's embedding, float16 [n_rows, 256]."""
    folder = resources.files("wordllama").joinpath("weights")
    path = next(path for path in folder.iterdir() if path.name.endswith(".safetensors"))
    return next(iter(safetensors(path.read_bytes()).values()))[:n_rows].copy()


def uniform(n: int, seed: int) -> np.ndarray:
    """Return n float64 numbers in (0, 1): the generator's raw bits, which NumPy promises never to change."""
    return ((np.random.PCG64(seed).random_raw(n) >> np.uint64(12)) + 0.5) * 2.0**-52


def gaussian(n: int, seed: int) -> np.ndarray:
    """Return n float64 numbers from N(0, 1), by Box and Muller."""
    return np.sqrt(-2 * np.log(uniform(n, seed))) * np.cos(2 * np.pi * uniform(n, seed + 1000))


def laplace(n: int, seed: int) -> np.ndarray:
    """Return n float64 numbers from Laplace's distribution."""
    u = uniform(n, seed) - 0.5
    return -np.sign(u) * np.log1p(-2 * np.abs(u))


def student(n: int, seed: int) -> np.ndarray:
    """Return n float64 numbers from Student's t with three degrees of freedom."""
    squares = sum(gaussian(n, seed + k) ** 2 for k in (1, 2, 3))
    return gaussian(n, seed) / np.sqrt(squares / 3)


def outlier(n: int, seed: int) -> np.ndarray:
    """Return Gaussian weights with one that is fifty times as large in every 256."""
    values = gaussian(n, seed)
    at = np.arange(0, n, 256) + (uniform(n // 256, seed + 1) * 256).astype(int)
    values[at] *= 50
    return values


def constants(n: int, seed: int) -> np.ndarray:
    """Return runs of 256 equal weights."""
    return np.repeat(gaussian(n // 256, seed), 256)


def edges(limit: float) -> np.ndarray:
    """Return super-blocks at the edges of the formats, of magnitudes up to a limit that their scales can hold."""
    k = np.arange(256)
    base = 0.02 * gaussian(256, 77)
    sign = np.where(k % 2, -1.0, 1.0)
    rows = [np.zeros(256), np.full(256, -0.0), 0.0 * sign]
    rows += [np.full(256, value) for value in (1.0, -1.0, 0.1, -0.1, 1e-7, limit, -limit)]
    rows += [1e-45 * (k % 9), -1e-40 * k, 1e-38 * base, 1e-7 * base, 1e-5 * base]  # subnormal as float32, as float16
    for at in (0, 31, 32, 100, 255):
        rows += [np.where(k == at, limit, base), np.where(k == at, -limit, 0.0), np.where(k == at, 1e-4, 0.0)]
    rows += [limit * base / np.abs(base).max(), sign, limit * sign, sign * (k // 32), sign * (1 + k // 16)]
    for top in (1, 2, 4, 6, 7, 8, 15, 16, 31, 32, 63, 127):  # codes and halves between them, with an exact scale
        halves = (k % (4 * top + 1)) / 2 - top
        rows += [halves, -halves, 0.0625 * halves, np.where(k % 32 == 5, -top, np.clip(halves, 1 - top, top - 1))]
        rows += [np.abs(halves), np.where(k % 16, 0.5, top)]
    rows += [
        k / 255,
        1 - k / 255,
        (k - 128) / 128,
        np.where(k // 32 == 3, 0.0, base),
        np.where(k // 16 == 3, base, 0.0),
    ]
    rows += [np.where(k // 32 == 5, 1e4 * base, base), np.where(k // 16 == 5, 1e-4 * base, base), base + 1, base - 1]
    rows += [np.where(k == 9, -1e-3, 0.5), np.where(k % 32 == 9, 0.5, -0.25), np.abs(base), -np.abs(base)]
    return np.concatenate(rows)


_MADE: dict[str, Callable[[], np.ndarray]] = {
    "gaussian": lambda: 0.02 * gaussian(SIZE, 1),
    "laplace": lambda: 0.02 * laplace(SIZE, 2),
    "t3": lambda: 0.02 * student(SIZE, 3),
    "uniform": lambda: uniform(SIZE, 4) - 0.5,
    "positive": lambda: 1 + 0.1 * gaussian(SIZE, 5),
    "constant": lambda: constants(SIZE, 6),
    "outlier": lambda: 0.02 * outlier(SIZE, 7),
    "zeros": lambda: np.zeros(SIZE),
    "tiny": lambda: 1e-6 * gaussian(SIZE, 8),
    "edges": lambda: edges(2000.0),
    "largest": lambda: edges(60000.0),
    "minilm": lambda: np.concatenate([matrix[::48].ravel() for matrix in minilm_outputs()]),
    "wordllama": lambda: wordllama(64),
}
#: Names of the sets: made, edges, real.
SETS = tuple(_MADE)


@functools.cache
def weights(name: str) -> np.ndarray:
    """Return a set of `SETS`: float32, whole blocks of 256, read-only."""
    found = np.ascontiguousarray(_MADE[name](), np.float32).ravel()
    found.flags.writeable = False
    return found
