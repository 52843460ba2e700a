"""The formats that are written, one line each: what the command and `quantize_file` choose a sink from."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aq2_pipeline.errors import InputValueError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from aq2_pipeline.io.tables.source import Source
    from aq2_pipeline.io.writing.sinks import Sink

__all__ = ["TARGETS", "Options", "Target", "sink_for", "target_for"]


class Options(NamedTuple):
    """What a user says of a target, beside its name; None is the target's default.

    Attributes
    ----------
    source : Source
        What is written, for its metadata.
    recipe : str
        What the layers become, for the target's metadata; empty where they stay as they are.
    dtype : str or None
        Of decoded weights.
    scale_dtype : str or None
        Of scales, where a format stores them in several.
    compression : str or None
        Of a Parquet file.
    config_from : Path or None
        The folder whose configuration and tokenizer go along.
    """

    source: Source
    recipe: str
    dtype: str | None = None
    scale_dtype: str | None = None
    compression: str | None = None
    config_from: Path | None = None


class Target(NamedTuple):
    """A format that is written.

    Attributes
    ----------
    name : str
    suffixes : tuple of str
        Of files that are of this format unless told otherwise.
    takes : tuple of str
        The attributes of `Options` that it has a use for; with another it is refused.
    module, maker : str
        The function that makes a sink of `Options`.
    """

    name: str
    suffixes: tuple[str, ...]
    takes: tuple[str, ...]
    module: str
    maker: str = "from_options"


TARGETS = [
    Target("parquet", (".parquet",), ("compression",), "parquet.sink"),
    Target("gguf", (".gguf",), ("config_from",), "gguf.sink"),
    Target("safetensors", (".safetensors",), ("dtype",), "safetensors.sink"),
    Target("compressed-tensors", (), ("scale_dtype", "config_from"), "folders.compressed_tensors"),
    Target("mlx", (), ("scale_dtype", "config_from"), "folders.mlx"),
]
#: What a target may have no use for.
_PARTICULAR = ("dtype", "scale_dtype", "compression", "config_from")


def target_for(path: str | os.PathLike[str], name: str | None = None) -> Target:
    """Return the format of a target, by its name or else by the path's suffix.

    Raises
    ------
    InputValueError
        If neither is known.
    """
    known = ", ".join(target.name for target in TARGETS)
    if name is not None:
        for target in TARGETS:
            if target.name == name:
                return target
        msg = f"the format {name!r} is not written"
        raise InputValueError(msg, f"one of {known}")
    suffix = Path(path).suffix.lower()
    for target in TARGETS:
        if suffix in target.suffixes:
            return target
    msg = f"{str(path)!r}: the name does not say a format"
    raise InputValueError(msg, f"say one of {known}")


def sink_for(target: Target, options: Options) -> Sink:
    """Return the sink of a format.

    Raises
    ------
    InputValueError
        If an option is given that the format has no use for.
    """
    for option in _PARTICULAR:
        if option not in target.takes and getattr(options, option) is not None:
            taking = ", ".join(one.name for one in TARGETS if option in one.takes)
            msg = f"a target of the format {target.name} has no use for {option}={getattr(options, option)!s:.80}"
            raise InputValueError(msg, f"leave it out; it is for {taking}")
    maker: Callable[[Any], Sink] = getattr(import_module(f"aq2_pipeline.io.{target.module}"), target.maker)
    return maker(options)
