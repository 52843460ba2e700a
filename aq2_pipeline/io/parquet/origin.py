"""What a Parquet file says of the model that it was made of, so that it can be made into one again."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.gguf.header import read_header
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.gguf.values import Metadata
from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aq2_pipeline.io.tables.source import Source

__all__ = ["metadata_of", "told_of"]

#: The metadata of a source: as a JSON object of strings, or as a GGUF file without tensors, in base64.
_TEXTS, _GGUF = "aq2.source_metadata", "aq2.source_gguf_metadata"


def told_of(source: Source, recipe: str) -> dict[str, str]:
    """Return what a file says of its source and of how it was made; nothing of the day."""
    tensors = repr([tensor[:3] for tensor in source.tensors]).encode()
    told = {
        "aq2.recipe": recipe,
        "aq2.source": source.path.name,
        "aq2.source_tensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    metadata = source.metadata
    if isinstance(metadata, Metadata):
        told[_GGUF] = base64.b64encode(header_of([], metadata).header).decode()
    elif metadata and all(isinstance(value, str) for value in metadata.values()):
        told[_TEXTS] = json.dumps(dict(metadata), sort_keys=True)
    return told


def metadata_of(told: Mapping[str, str], path: Path) -> Mapping[str, Any]:
    """Return the metadata of the source, with their types, from the key-values of a file.

    Raises
    ------
    FormatError
        Naming the file and the key that is damaged.
    """
    if _GGUF in told:
        try:
            return Metadata(read_header(BytesIO(base64.b64decode(told[_GGUF], validate=True)), path).key_values)
        except binascii.Error:
            raise bad_file(path, f"the key {_GGUF} is not base64") from None
        except FormatError as error:
            raise bad_file(path, f"the key {_GGUF} is no header of GGUF: {error}") from None
    try:
        found = json.loads(told.get(_TEXTS, "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise bad_file(path, f"the key {_TEXTS} is not an object of strings")
    return found
