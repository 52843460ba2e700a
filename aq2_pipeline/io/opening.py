"""Any model file as a source: which format it is, is told by how it begins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from aq2_pipeline.io.paths import source_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aq2_pipeline.io.tables.source import Source

__all__ = ["FORMATS", "Format", "open_source"]


class Format(NamedTuple):
    """A file format that is read.

    Attributes
    ----------
    name : str
    suffixes : tuple of str
        Of files that are of this format if their first bytes do not say otherwise.
    magics : tuple of bytes
        How its files begin; empty where they have no mark.
    module, opener : str
        The function that returns a `Source`; imported when it is needed.
    """

    name: str
    suffixes: tuple[str, ...]
    magics: tuple[bytes, ...]
    module: str
    opener: str

    def open(self, source: Any) -> Source:
        """Return the source of a path."""
        opener: Callable[[Any], Source] = getattr(import_module(f"aq2_pipeline.io.{self.module}"), self.opener)
        return opener(source)


#: The first that fits; safetensors takes what nothing else does, and says what is wrong with it.
FORMATS = [
    Format("parquet", (".parquet",), (b"PAR1",), "parquet.source", "open_parquet"),
    Format("GGUF", (".gguf",), (b"GGUF",), "gguf.source", "open_gguf"),
    Format("onnx", (".onnx",), (), "onnx.source", "open_onnx"),
    Format("npz", (".npz",), (), "npz.source", "open_npz"),  # no mark: a zip file of another name stays refused
    Format("safetensors", (".safetensors", ".index.json"), (), "safetensors.source", "open_safetensors"),
]


def format_of(path: Path) -> Format:
    """Return the format of a file, by its first bytes or else by its name."""
    begins = b""
    if path.is_file():
        with path.open("rb") as file:
            begins = file.read(8)
    for known in FORMATS:
        if any(begins.startswith(magic) for magic in known.magics):
            return known
    named = (known for known in FORMATS if path.name.lower().endswith(known.suffixes))
    return next(named, FORMATS[-1])


def open_source(source: Any, function: str = "open_reader") -> Source:
    """Return the tensors of a model file of any format that is read.

    Raises
    ------
    InputTypeError
        If it is no path.
    FormatError
        If the file is of no such format, or not what it claims to be.
    OSError
        If it is missing or may not be read.
    """
    if isinstance(source, list | tuple):
        return FORMATS[-1].open(source)
    return format_of(source_path(source, function, reads=(".npz",))).open(source)
