"""What a run will do with each layer, decided by names and shapes before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aq2_pipeline import schemes
from aq2_pipeline.errors import InputValueError, SchemeError
from aq2_pipeline.io.writing.sinks import Layer, Plan, PlannedLayer

if TYPE_CHECKING:
    from aq2_pipeline.io.recipes import Recipe
    from aq2_pipeline.io.tables.parts import Tensor
    from aq2_pipeline.io.tables.source import Source
    from aq2_pipeline.io.writing.sinks import Sink

__all__ = ["plan"]

#: The side of a matrix that whole blocks and groups of every scheme fit: what a target is asked about first.
_SIDE = 1 << 13


def plan(source: Source, sink: Sink, recipe: Recipe | None) -> Plan:
    """Choose what becomes of each layer; nothing is read but names and shapes.

    Raises
    ------
    SchemeError
        For a scheme, or with a rule a layer, that the target cannot hold.
    InputValueError
        If nothing is left to quantize, or a rule is of no layer.
    """
    if recipe is not None:
        recipe.check_rules([tensor.name for tensor in source.tensors])
        for scheme in recipe.schemes():
            refused = sink.refusal(Layer("model.weight", (_SIDE, _SIDE), "F32", scheme, row_length=_SIDE))
            if refused:  # of any layer
                msg = f"{sink.name}: {refused}"
                raise SchemeError(msg, f"it takes {sink.takes}")
    layers = [_planned(source, tensor, sink, recipe) for tensor in source.tensors]
    if recipe is not None and not any(layer.wanted for layer in layers):
        msg = f"{str(source.path)!r}: 0 of {len(layers)} tensors would be quantized"
        raise InputValueError(msg, f"the first is left alone: {layers[0].reason}" if layers else None)
    return Plan(layers, [spec for layer in layers if layer.form for spec in sink.tensors(layer.held)])


def _planned(source: Source, tensor: Tensor, sink: Sink, recipe: Recipe | None) -> PlannedLayer:
    """Return what becomes of a tensor."""
    kept = source.scheme_of(tensor)
    plain = Layer(tensor.name, tensor.shape, tensor.dtype)
    if not source.is_stored(tensor):
        return PlannedLayer(tensor, None, "only its name is stored", None, plain)
    if recipe is None:
        wanted, reason = None, None
    elif not source.holds_weights(tensor):
        wanted, reason = None, f"{tensor.dtype} is no float dtype"
    else:
        wanted, reason = recipe.choose(plain, sink)
    scheme = wanted or kept
    if scheme is None:
        sink.check(plain)
        return PlannedLayer(tensor, None, reason, "raw", plain)
    parsed = schemes.parse(scheme)
    row_length = sink.row_length(parsed, tensor.shape) if wanted else source.row_length(tensor, parsed)
    held = plain._replace(scheme=parsed, row_length=row_length)
    sink.check(held)
    return PlannedLayer(tensor, wanted, reason, "weights" if wanted else "quantized", held)
