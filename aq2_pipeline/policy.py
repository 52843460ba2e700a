"""Policies: which scheme a layer gets from its name, rank and size. Data, never position, so rows and models agree."""

from __future__ import annotations

import fnmatch
import functools
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aq2_pipeline.errors import InputTypeError, InputValueError, SchemeError
from aq2_pipeline.schemes import WIDTHS

__all__ = ["ALIASES", "DEFAULT_MODE", "POLICIES", "Rule", "mode_name", "policy_scheme"]


@dataclass(frozen=True)
class Rule:
    """A condition, and the scheme of the layers that meet it.

    Parameters
    ----------
    scheme : str
        A scheme's name; ``{b}`` stands for the asked bits.
    reason : str
        Why, with the measurement.
    names : tuple of str
        Globs over the layer's name, of which one must match; none matches all.
    ranks : tuple of int
        Ranks that it is for; none is for all, a layer without a shape included.
    max_size : int, optional
        The most weights; a layer without a shape does not meet it.
    """

    scheme: str
    reason: str
    names: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    max_size: int | None = None

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """All globs as one regular expression."""
        return re.compile("|".join(map(fnmatch.translate, self.names)))

    def matches(self, name: str, shape: Sequence[int] | None) -> bool:
        """Whether a layer meets the condition."""
        if self.names and not self.pattern.match(name):
            return False
        if shape is None:
            return not self.ranks and self.max_size is None
        if self.ranks and len(shape) not in self.ranks:
            return False
        return self.max_size is None or math.prod(shape) <= self.max_size


#: Attention projections of diffusion models: large in total, and inert at four bits where it was measured.
_ATTENTION = ("*attn*", "*attention*", "*.qkv.*", "*block*.proj_out.*")

#: The first and last layers and the embeddings of what conditions a model, in the namings of diffusers (UNet,
#: PixArt, SD3, Flux), of the original latent and guided diffusion code, and of DiT. What conditions each block
#: (`emb_layers`, `time_emb_proj`, `adaLN_modulation`) is not among them: what is large of it buys nothing.
_ENDS = (
    "*conv_in.*", "*conv_out.*", "input_blocks.0.0.*", "*.input_blocks.0.0.*", "out.2.*", "*.out.2.*", "proj_out.*",
    "*time_embed*", "*label_emb*", "*class_embed*", "*add_embedding*", "*time_text_embed*", "*timestep_embedder*",
    "*caption_projection*", "*patch_embed*", "*pos_embed*", "*x_embedder*", "*t_embedder*", "*y_embedder*",
    "*context_embedder*", "*img_in.*", "*txt_in.*", "*time_in.*", "*vector_in.*", "*guidance_in.*",
    "*final_layer.*", "norm_out.*", "*.norm_out.*",
)  # fmt: skip

#: Each policy is an ordered list of rules; the first that matches decides. The figures are output SQNR of a
#: diffusion U-Net at 4 bits, mean over seven noise levels: docs/explanation/policies.md.
POLICIES: dict[str, tuple[Rule, ...]] = {
    "base": (Rule("int{b}_g128", "every tensor at the asked width"),),
    "diffusion": (
        Rule("f32", "vectors cost nothing", ranks=(0, 1), max_size=65_536),
        Rule(
            "f32",
            "biases and norms by name, for rows without a shape",
            names=("bias", "*.bias", "*norm.weight", "*norm[0-9].weight"),
        ),
        Rule("f32", "the smallest tensors, norms of rank 3 among them: floats take less than scales", max_size=1024),
        Rule("int{b}_g64", "attention, small too: sparing it takes 0.15 bits a weight and buys 0 dB", names=_ATTENTION),
        Rule("int8_g64", "small layers carry the fine resolution: +7.5 dB for 0.38 bits a weight", max_size=20_000),
        Rule("int8_g64", "ends and embeddings, where they are not small: +1.9 dB without the rule above", names=_ENDS),
        Rule("int{b}_g64", "the rest"),
    ),
}
ALIASES = {"time_aware": "diffusion"}
DEFAULT_MODE = "diffusion"


def mode_name(mode: Any) -> str:
    """Return the policy that a mode names.

    Raises
    ------
    SchemeError
        If there is none.
    """
    known = ALIASES.get(mode, mode) if isinstance(mode, str) else None
    if known not in POLICIES:
        names = ", ".join(map(repr, (*POLICIES, *ALIASES)))
        msg = f"mode: {mode!r} is no policy"
        raise SchemeError(msg, f"one of {names}")
    return known


def _check_layer(layer_name: Any, shape: Any) -> None:
    if not isinstance(layer_name, str | None):
        msg = f"layer_name is a {type(layer_name).__name__}"
        raise InputTypeError(msg, "expected a string")
    if shape is None:
        return
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        msg = f"shape is a {type(shape).__name__}"
        raise InputTypeError(msg, "expected a list of integers")
    if any(not isinstance(axis, int | None) or isinstance(axis, bool) for axis in shape):
        msg = f"the shape {list(shape)} has an axis that is no integer"
        raise InputTypeError(msg, "expected a list of integers")
    if any(axis is None or axis < 0 for axis in shape):
        msg = f"the shape {list(shape)} has an axis that is no length"
        raise InputValueError(msg, "an axis is an integer from 0; leave out a shape that is not known")


def checked_width(bit_width: Any) -> int:
    """Return the asked bits.

    Raises
    ------
    SchemeError
        If they are none.
    """
    try:
        width = None if isinstance(bit_width, bool) else operator.index(bit_width)
    except TypeError:
        width = None
    if width is None or width not in WIDTHS:
        msg = f"bit_width: {bit_width!r} is no width"
        raise SchemeError(msg, f"an integer from {WIDTHS.start} to {WIDTHS.stop - 1}")
    return width


def policy_scheme(layer_name: str | None, shape: Sequence[int] | None, bit_width: int, mode: str = DEFAULT_MODE) -> str:
    """Return the scheme that a named policy gives a layer.

    Parameters
    ----------
    layer_name : str or None
        None matches no rule about names.
    shape : sequence of int or None
        None is a layer of unknown rank and size.
    bit_width : int
        The asked bits, 2 to 8.
    mode : {"diffusion", "time_aware", "base"}
        The policy.

    Raises
    ------
    SchemeError
        For another mode or width.
    InputTypeError, InputValueError
        For a name or a shape that cannot be.

    Examples
    --------
    >>> policy_scheme("layer.0.weight", [1_000_000], 4)
    'int4_g64'
    >>> policy_scheme("blocks.0.norm.weight", [768], 4)
    'f32'
    >>> policy_scheme("layer.0.weight", [1024, 1024], 4, "base")
    'int4_g128'
    """
    rules = POLICIES[mode_name(mode)]
    width = checked_width(bit_width)
    _check_layer(layer_name, shape)
    rule = next(rule for rule in rules if rule.matches(layer_name or "", shape))
    return rule.scheme.format(b=width)
