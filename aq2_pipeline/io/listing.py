"""What is in a file, and which schemes there are, as rows to print."""

from __future__ import annotations

import itertools
import json
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aq2_pipeline import schemes
from aq2_pipeline.errors import SchemeError
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables.collecting import collector_paused
from aq2_pipeline.udfs.python import weight_stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aq2_pipeline.io.tables.parts import Tensor
    from aq2_pipeline.io.tables.source import Source

    Row = dict[str, Any]

__all__ = ["inspect_file", "list_families", "list_schemes", "measured", "sections", "shown_name"]

#: Of `aq2_weight_stats`, those that fit a line.
_STATS = ("std", "abs_max", "kurtosis", "outlier_ratio", "non_finite")
#: The side of the matrix that bits per weight are told of, or the next whole number of blocks.
SIDE = 4096
#: What schemes lose, as `python docs/quality.py --sqnr` has measured it.
MEASURED = Path(__file__).parents[1] / "measured.json"


def inspect_file(source: Any, *, stats: bool = True) -> tuple[str, list[Row], Mapping[str, Any]]:
    """Return a line about a model, a row for each of its layers, and its metadata.

    Parameters
    ----------
    source : str or Path
        A file of any format that is read.
    stats : bool
        Read the weights of layers that are not quantized, for `aq2_weight_stats`.

    Raises
    ------
    FormatError
        If the file is of none.
    OSError
    """
    model = open_source(source)
    figures = _stats(model) if stats and not model.has_own_chunks else {}
    with collector_paused():
        rows = [_row(model, tensor, figures) for tensor in model.tensors]
    about = f"{len(rows)} tensors, {sum(tensor.n_bytes for tensor in model.tensors)} bytes"
    return about, rows, model.metadata


def _row(model: Source, tensor: Tensor, figures: dict[str, dict[str, Any]]) -> Row:
    row = {"layer": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "bytes": tensor.n_bytes}
    if model.native:
        scheme = model.scheme_of(tensor)
        row["scheme"] = scheme
        row["bits_per_weight"] = 8 * tensor.n_bytes / tensor.size if scheme and tensor.size else None
    if figures:
        row |= {name: figures[tensor.name][name] if tensor.name in figures else None for name in _STATS}
    return row


def _stats(model: Source) -> dict[str, dict[str, Any]]:
    """Return the statistics of the layers of floats."""
    parts = [part for part in model.parts() if model.holds_weights(part.tensor)]
    found: dict[str, dict[str, Any]] = {}
    for table in model.batches(parts):
        figures = weight_stats(table["weights"].chunk(0)).to_pylist()
        found |= dict(zip(table["layer_name"].to_pylist(), figures, strict=True))
    return found


def measured() -> dict[str, float | None]:
    """Return scheme, with its method if it has any -> the SQNR in decibels on a model; None without error.

    `docs/quality.py` writes it, and says of which layers.
    """
    found: dict[str, float | None] = json.loads(MEASURED.read_text(encoding="utf-8"))["sqnr_db"]
    return found


def list_schemes() -> list[Row]:
    """Return a row for each known scheme: what it takes, what it loses, and what its family says."""
    figures = measured()
    return [_scheme_row(name, figures) for name in schemes.known_names()]


def shown_name(family: schemes.Family) -> str:
    """Return the name that stands for a family's where one line has to do."""
    return family.template.format(group=f"g{schemes.DEFAULT_GROUP}")


def list_families() -> list[Row]:
    """Return the row of one scheme of each family."""
    figures = measured()
    return [_scheme_row(shown_name(family), figures) for family in schemes.FAMILIES]


def sections() -> Iterator[tuple[str, list[Row]]]:
    """Yield families of the same methods, a title and rows with a column a method; what all share is in the title."""
    for methods, group in itertools.groupby(list_families(), key=operator.itemgetter("methods")):
        rows = list(group)
        parts = [f"methods: {methods[0]} (default), {', '.join(methods[1:])}".rstrip(", ")] if methods else []
        shared = {row["loaded_by"] for row in rows}
        parts += [f"loaded by {text}" for text in shared if len(shared) == 1]
        yield "; ".join(parts), [_line(row, with_loaded_by=len(shared) > 1) for row in rows]


def _is_known(scheme: str) -> bool:
    try:
        schemes.parse(scheme)
    except SchemeError:  # of what else the name says, the method makes no sense
        return False
    return True


def _line(row: Row, *, with_loaded_by: bool) -> Row:
    found = {name: row[name] for name in ("scheme", "bits", "bits_per_weight")}
    found |= {name: row[name] for name in ("group", "block") if row[name] is not None}
    found |= {f"{method}_dB".strip("_"): figure for method, figure in row["sqnr_db_by_method"].items()}
    return found | {name: row[name] for name in ("loaded_by", "summary") if name == "summary" or with_loaded_by}


def _scheme_row(name: str, figures: dict[str, float | None]) -> Row:
    scheme = schemes.parse(name)
    family, match = next((f, m) for f in schemes.FAMILIES if (m := f.pattern.fullmatch(name)))
    is_plain = not family.grouped or name == family.template.format(group=match["group"])
    side = -(-SIDE // scheme.block) * scheme.block
    group = {schemes.PER_CHANNEL: "channel", schemes.PER_TENSOR: "tensor"}.get(scheme.group, scheme.group)
    methods = tuple(method for method in family.methods if _is_known(f"{name}:{method}"))
    by_method = {method: figures.get(f"{name}:{method}".rstrip(":")) for method in methods or ("",)}
    return {
        "scheme": name,
        "bits": scheme.bit_width,
        "bits_per_weight": 8 * scheme.n_bytes(side * side, side) / side**2,
        "group": group if family.grouped else None,
        "block": scheme.block if scheme.block > 1 else None,
        "methods": methods or None,
        "fallback": family.fallback or None,
        "loaded_by": (family.loaded_by if is_plain else "") or "this package",
        "sqnr_db": next(iter(by_method.values())),
        "sqnr_db_by_method": by_method,
        "summary": family.summary,
    }
