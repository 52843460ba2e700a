"""safetensors files as they are laid out: a header, then tensors; large models in shards with an index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.writing.staging import OutFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aq2_pipeline.io.writing.staging import Spec

__all__ = ["SHARD_BYTES", "index_of", "one_file", "shards"]

#: What the format's own library reads at the most: https://github.com/huggingface/safetensors#format
_MOST_HEADER_BYTES = 100_000_000
#: The bytes of a shard at the most, unless one tensor has more; what Hugging Face's tools take.
SHARD_BYTES = 5 * 10**9


def one_file(specs: Sequence[Spec], metadata: Mapping[str, str] | None = None, name: str = "") -> OutFile:
    """Lay out a safetensors file.

    Raises
    ------
    FormatError
        If a name cannot be written.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    most = limits().name_bytes
    at = 0
    for spec in specs:
        if spec.name in entries or spec.name == "__metadata__" or len(spec.name.encode()) > most:
            hint = f"names are unique, not '__metadata__', and have at most {most} bytes"
            msg = "safetensors: the name cannot be written"
            raise FormatError(msg, hint).at(layer=spec.name[:64])
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.n_bytes],
        }
        at += spec.n_bytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    ours = limits().header_bytes
    if len(text) > min(ours, _MOST_HEADER_BYTES):
        msg = f"safetensors: the header would have {len(text)} bytes; readers take {min(ours, _MOST_HEADER_BYTES)}"
        raise FormatError(msg, to_change("header_bytes") if ours < _MOST_HEADER_BYTES else None)
    head = len(text).to_bytes(8, "little") + text
    entries.pop("__metadata__", None)
    places = {tensor: len(head) + entry["data_offsets"][0] for tensor, entry in entries.items()}
    return OutFile(name, head, places, len(head) + at)


def shards(specs: Sequence[Spec], metadata: Mapping[str, str] | None = None) -> list[OutFile]:
    """Lay out `model.safetensors`, or shards of at most `SHARD_BYTES` of tensors."""
    groups: list[list[Spec]] = [[]]
    n_bytes = 0
    for spec in specs:
        if groups[-1] and n_bytes + spec.n_bytes > SHARD_BYTES:
            groups.append([])
            n_bytes = 0
        groups[-1].append(spec)
        n_bytes += spec.n_bytes
    if len(groups) == 1:
        return [one_file(specs, metadata, "model.safetensors")]
    names = (f"model-{k:05}-of-{len(groups):05}.safetensors" for k in range(1, len(groups) + 1))
    return [one_file(group, metadata, name) for name, group in zip(names, groups, strict=True)]


def index_of(files: Sequence[OutFile], specs: Sequence[Spec]) -> dict[str, Any]:
    """Return the index of shards, as `model.safetensors.index.json` holds it."""
    weight_map = {tensor: file.name for file in files for tensor in file.places}
    return {
        "metadata": {"total_size": sum(spec.n_bytes for spec in specs)},
        "weight_map": dict(sorted(weight_map.items())),
    }
