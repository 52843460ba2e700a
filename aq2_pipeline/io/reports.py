"""What became of the layers of a run, for people and for programs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from aq2_pipeline.differences import decibels

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LayerReport", "Report"]


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer.

    Attributes
    ----------
    name : str
    shape : list of int
    dtype : str or None
        Of the source.
    scheme : str or None
        None where it is stored as it came, in no scheme.
    n_weights, n_bytes : int
        `n_bytes` are those of codes, scales and zero points, or as it came.
    mse, sqnr_db : float or None
        Mean squared error of what decodes; None where the layer is left alone, or empty.
    left_alone : str or None
        Why it is not quantized; None where it is.
    instead : str or None
        Why it has another scheme than the one that was asked for.
    """

    name: str
    shape: list[int]
    dtype: str | None
    scheme: str | None
    n_weights: int = 0
    n_bytes: int = 0
    mse: float | None = None
    sqnr_db: float | None = None
    left_alone: str | None = None
    instead: str | None = None

    @property
    def bits_per_weight(self) -> float | None:
        """The bits that a weight takes, scales included."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else None

    def as_json(self) -> dict[str, Any]:
        """Return the fields for JSON, which has no infinity: a lossless layer has mse 0 and sqnr_db null."""
        lossless = self.sqnr_db is not None and not math.isfinite(self.sqnr_db)
        changed = {"sqnr_db": None} if lossless else {}
        return {**asdict(self), "bits_per_weight": self.bits_per_weight, **changed}


@dataclass
class Report:
    """What became of a model; its figures are over the layers that are quantized.

    Attributes
    ----------
    source : Path
    target : Path or None
        None where nothing is written.
    recipe : str
    layers : list of LayerReport
    planned_bytes : int or None
        Of the target's tensors, where nothing is written.
    """

    source: Path
    target: Path | None
    recipe: str
    layers: list[LayerReport] = field(default_factory=list)
    planned_bytes: int | None = None

    @property
    def quantized(self) -> list[LayerReport]:
        """The layers that lost bits."""
        return [layer for layer in self.layers if layer.left_alone is None and layer.scheme is not None]

    @property
    def bits_per_weight(self) -> float | None:
        """Bits a weight of the quantized layers, scales included."""
        n_weights = sum(layer.n_weights for layer in self.quantized)
        return 8 * sum(layer.n_bytes for layer in self.quantized) / n_weights if n_weights else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise of the quantized layers together, in decibels; None without noise."""
        noise = signal = 0.0
        for layer in self.quantized:
            if layer.mse and layer.sqnr_db is not None:
                noise += layer.mse * layer.n_weights
                signal += layer.mse * layer.n_weights * 10 ** (layer.sqnr_db / 10)
        return decibels(signal, noise) if noise and signal else None

    @property
    def source_bytes(self) -> int:
        """The bytes of the source's files."""
        return _bytes_of(self.source)

    @property
    def target_bytes(self) -> int:
        """The bytes of the target's files, or what they would have."""
        return _bytes_of(self.target) if self.target is not None else self.planned_bytes or 0

    def as_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "source": str(self.source),
            "target": None if self.target is None else str(self.target),
            "recipe": self.recipe,
            "bits_per_weight": self.bits_per_weight,
            "sqnr_db": self.sqnr_db,
            "source_bytes": self.source_bytes,
            "target_bytes": self.target_bytes,
            "layers": [layer.as_json() for layer in self.layers],
        }


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
