"""Section 5 of the contract, written plainly in NumPy and apart from the package: what tests compare bytes with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

F32 = np.float32
LARGEST = np.finfo(np.float32).max
SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
WIDTHS = range(2, 9)


@dataclass
class Quantized:
    """One row, as the contract's section 4 lists it."""

    scheme: str
    length: int
    row_length: int
    quantized_data: bytes
    scales: np.ndarray
    zero_points: np.ndarray

    def as_dict(self) -> dict:
        """Return the row as `StructArray.to_pylist` gives it."""
        return {
            "scheme": self.scheme,
            "length": self.length,
            "row_length": self.row_length,
            "quantized_data": self.quantized_data,
            "scales": self.scales.tolist(),
            "zero_points": self.zero_points.tolist(),
        }


def parts(scheme: str) -> tuple[int, int | str, bool]:
    """Return (bits, group size or "channel" or "tensor", asymmetric) of an integer scheme's name."""
    bits, group, *rest = scheme.removeprefix("int").split("_")
    return int(bits), group if group in ("channel", "tensor") else int(group[1:]), rest == ["asym"]


def matrix_row(shape: Sequence[int] | None, length: int, group: int | str) -> int:
    """Return the weights of a matrix row."""
    if shape is None or len(shape) < 2:
        return length
    if len(shape) == 2:
        return shape[1]
    joined = 1
    for axis in list(shape[1:])[::-1]:
        joined *= axis
        if isinstance(group, int) and joined >= group:
            return joined
    return joined


def groups(length: int, row_length: int, group: int | str) -> Iterator[tuple[int, int]]:
    """Yield where each group starts and stops."""
    if group == "tensor":
        if length:
            yield 0, length
        return
    for row in range(0, length, max(row_length, 1)):
        step = row_length if group == "channel" else group
        for start in range(row, row + row_length, step):
            yield start, min(start + step, row + row_length)


def packed(codes: np.ndarray, bits: int) -> bytes:
    """Pack codes: value i of a group starts at bit i * bits; the padding is 0."""
    spread = (codes.astype(np.int64)[:, None] >> np.arange(bits)) & 1
    return np.packbits(spread.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpacked(data: bytes, bits: int, n: int) -> np.ndarray:
    """Return the first n codes of a group."""
    spread = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: n * bits].reshape(n, bits)
    return (spread.astype(np.int64) << np.arange(bits)).sum(axis=1)


def symmetric(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32, int]:
    """Return (codes, scale, zero point) of one group."""
    half = 2 ** (bits - 1)
    scale = F32(np.float64(np.abs(w).max()) / (half - 1))
    if scale < SMALLEST_NORMAL:
        return np.full(w.size, half), F32(0), half
    inverse = F32(1 / np.float64(scale))
    return np.rint(w * inverse).astype(np.int64) + half, scale, half


def asymmetric(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32, int]:
    """Return (codes, scale, zero point) of one group."""
    top = 2**bits - 1
    low, high = min(w.min(), F32(0)), max(w.max(), F32(0))
    scale = F32((np.float64(high) - np.float64(low)) / top)
    if scale < SMALLEST_NORMAL:
        return np.zeros(w.size, np.int64), F32(0), 0
    inverse = F32(1 / np.float64(scale))
    zero = int(np.clip(np.rint(-low * inverse), 0, top))
    return np.clip(np.rint(w * inverse).astype(np.int64) + zero, 0, top), scale, zero


def quantize(w: np.ndarray, scheme: str, shape: Sequence[int] | None = None) -> Quantized:
    """Quantize one row of float32 weights."""
    w = np.ascontiguousarray(w, np.float32).ravel()
    if scheme in ("f32", "f16", "bf16"):
        kind = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[scheme]
        none = np.empty(0, np.float32)
        return Quantized(scheme, w.size, matrix_row(shape, w.size, 1), w.astype(kind).tobytes(), none, none)
    bits, group, has_zeros = parts(scheme)
    row_length = matrix_row(shape, w.size, group)
    data, scales, zeros = [], [], []
    for start, stop in groups(w.size, row_length, group):
        codes, scale, zero = (asymmetric if has_zeros else symmetric)(w[start:stop], bits)
        assert codes.min() >= (0 if has_zeros else 1)
        assert codes.max() <= 2**bits - 1
        data.append(packed(codes, bits))
        scales.append(scale)
        if has_zeros:
            zeros.append(zero)
    return Quantized(scheme, w.size, row_length, b"".join(data), np.array(scales, F32), np.array(zeros, F32))


def dequantize(q: Quantized) -> np.ndarray:
    """Decode one row."""
    if q.scheme in ("f32", "f16", "bf16"):
        kind = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[q.scheme]
        return np.frombuffer(q.quantized_data, kind).astype(np.float32)
    bits, group, has_zeros = parts(q.scheme)
    values, at = np.empty(q.length, np.float32), 0
    for k, (start, stop) in enumerate(groups(q.length, q.row_length, group)):
        size = math.ceil((stop - start) * bits / 8)
        codes = unpacked(q.quantized_data[at : at + size], bits, stop - start)
        zero = int(q.zero_points[k]) if has_zeros else 2 ** (bits - 1)
        with np.errstate(over="ignore"):
            values[start:stop] = np.clip((codes - zero).astype(np.float32) * q.scales[k], -LARGEST, LARGEST)
        at += size
    assert at == len(q.quantized_data)
    return values


def scale_of_each(q: Quantized) -> np.ndarray:
    """Return the scale of each weight."""
    _, group, _ = parts(q.scheme)
    scales = np.empty(q.length, np.float32)
    for k, (start, stop) in enumerate(groups(q.length, q.row_length, group)):
        scales[start:stop] = q.scales[k]
    return scales


def error(w: np.ndarray, q: Quantized) -> dict[str, float | None]:
    """Return what `quantization_error` says, from the decoded values in float64."""
    return figures(w, dequantize(q), len(q.quantized_data) + 4 * (q.scales.size + q.zero_points.size))


def figures(w: np.ndarray, decoded: np.ndarray, n_bytes: int) -> dict[str, float | None]:
    """Return the figures of an error, of any weights and what was decoded from so many bytes."""
    if w.size == 0:
        return dict.fromkeys(("mse", "rmse", "max_abs", "sqnr_db", "cosine", "bits_per_weight"))
    exact, decoded = w.astype(np.float64), decoded.astype(np.float64)
    squared, power = np.sum((exact - decoded) ** 2), np.sum(exact**2)
    norm = math.sqrt(power) * math.sqrt(np.sum(decoded**2))
    return {
        "mse": squared / w.size,
        "rmse": math.sqrt(squared / w.size),
        "max_abs": np.abs(exact - decoded).max(),
        "sqnr_db": math.inf if squared == 0 else 10 * math.log10(power / squared) if power else -math.inf,
        "cosine": 1.0 if squared == 0 else min(np.sum(exact * decoded) / norm, 1.0) if norm else 0.0,
        "bits_per_weight": 8 * n_bytes / w.size,
    }


def stats(w: np.ndarray) -> dict[str, float | None]:
    """Return what `weight_stats` says, by the textbook's two passes."""
    figures = ("min", "max", "mean", "std", "abs_max", "kurtosis", "outlier_ratio")
    if w.size == 0:
        return {"count": 0, "zeros": None, "non_finite": None} | dict.fromkeys(figures)
    counts = {"count": w.size, "zeros": int((w == 0).sum()), "non_finite": int((~np.isfinite(w)).sum())}
    x = w[np.isfinite(w)].astype(np.float64)
    if x.size == 0:
        return counts | dict.fromkeys(figures)
    d = x - x.mean()
    std = math.sqrt(np.mean(d**2))
    return counts | {
        "min": x.min(),
        "max": x.max(),
        "mean": x.mean(),
        "std": std,
        "abs_max": np.abs(x).max(),
        "kurtosis": np.mean(d**4) / std**4 - 3 if std else None,
        "outlier_ratio": float(np.mean(np.abs(d) > 6 * std)),
    }


def close(found: dict, expected: dict, rel: float) -> bool:
    """Whether figures agree: null where null, infinite where infinite, else within a relative error."""
    return found.keys() == expected.keys() and all(
        found[name] is value if value is None else math.isclose(found[name], value, rel_tol=rel, abs_tol=1e-12 * rel)
        for name, value in expected.items()
    )
