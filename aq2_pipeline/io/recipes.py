"""What becomes of each layer: rules, then one scheme or a policy, and why a layer is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline import policy, schemes
from aq2_pipeline.codecs import IDENTITY
from aq2_pipeline.errors import InputValueError, SchemeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.io.writing.sinks import Layer, Sink
    from aq2_pipeline.schemes import Scheme

__all__ = ["KEEP", "Choice", "Recipe", "parse_rule"]

#: What a rule says instead of a scheme for a layer that is to stay as it is.
KEEP = "keep"
_MATRIX_RANK = 2


class Choice(NamedTuple):
    """What becomes of a layer.

    Attributes
    ----------
    scheme : str or None
        As `quantize` takes it; None where it stays as it is.
    reason : str or None
        Why it stays, or has another scheme than what was asked for.
    """

    scheme: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Which scheme each layer gets.

    Parameters
    ----------
    scheme : str, optional
        For every float tensor of two or more axes.
    mode : str
        The policy, where there is no scheme.
    bits : int
        What the policy is asked for.
    rules : sequence of (str, str)
        Patterns of names and what becomes of these layers: a scheme, or `KEEP`.
        A pattern (``*``, ``?``, ``[...]``) is of a layer's name or of a module's
        that holds it: ``lm_head`` is ``lm_head.weight``, too. The first that fits counts.

    Raises
    ------
    SchemeError
        If there is no such scheme, policy or width.
    """

    scheme: str | None = None
    mode: str = policy.DEFAULT_MODE
    bits: int = 4
    rules: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.scheme is None:
            policy.policy_scheme(None, None, self.bits, self.mode)
        for one in ([] if self.scheme is None else [self.scheme]) + [rule[1] for rule in self.rules]:
            if one != KEEP and schemes.parse(one).input_dtype:
                msg = f"{one!r} says a dtype, and a file knows its own"
                raise SchemeError(msg, "leave out what follows '@'")

    def __str__(self) -> str:
        said = self.scheme or f"policy {self.mode}, {self.bits} bits"
        return "; ".join([*(f"{pattern}={wanted}" for pattern, wanted in self.rules), said])

    def check_rules(self, names: Sequence[str]) -> None:
        """Check that each pattern fits a layer.

        Raises
        ------
        InputValueError
            Naming a pattern that fits none.
        """
        for pattern, _ in self.rules:
            if not any(_fits(name, pattern) for name in names):
                msg = f"the pattern {pattern!r} matched 0 of {len(names)} tensors"
                raise InputValueError(msg, f"the first is {names[0]!r}" if names else None)

    def choose(self, layer: Layer, sink: Sink) -> Choice:
        """Return what becomes of a layer of floats in a target.

        Raises
        ------
        SchemeError
            If a rule asks for what the target cannot hold.
        """
        for pattern, wanted in self.rules:
            if _fits(layer.name, pattern):
                if wanted == KEEP:
                    return Choice(None, f"the rule {pattern}={KEEP}")
                choice = _fitted(layer, wanted, sink)
                sink.check(_as(layer, choice.scheme, sink))
                return choice
        if len(layer.shape) < _MATRIX_RANK and self.scheme is not None:
            return Choice(None, "a tensor of fewer than two axes")
        left = sink.leaves(layer)
        if left:
            return Choice(None, left)
        wanted = self.scheme or policy.policy_scheme(layer.name, list(layer.shape), self.bits, self.mode)
        if schemes.parse(wanted).codec is IDENTITY and self.scheme is None:
            return Choice(None, self._policy_reason(layer))
        choice = _fitted(layer, wanted, sink)
        refused = sink.refusal(_as(layer, choice.scheme, sink))
        return Choice(None, refused) if refused else choice

    def _policy_reason(self, layer: Layer) -> str:
        rules = policy.POLICIES[policy.mode_name(self.mode)]
        return next(rule.reason for rule in rules if rule.matches(layer.name, list(layer.shape)))

    def schemes(self) -> list[Scheme]:
        """Return the schemes that the recipe names; those of a policy are not known before its layers."""
        named = [wanted for _, wanted in self.rules if wanted != KEEP]
        return [schemes.parse(one) for one in ([] if self.scheme is None else [self.scheme]) + named]


def parse_rule(text: str) -> tuple[str, str]:
    """Return the pattern and what it asks for of ``'pattern=scheme'``.

    Raises
    ------
    InputValueError
        If it is not of that form.
    """
    pattern, equals, wanted = text.rpartition("=")
    if not (pattern and equals and wanted):
        msg = f"the rule {text!r} is not of the form 'pattern=scheme'"
        raise InputValueError(msg, f"e.g. 'lm_head=q8_0', '*.bias={KEEP}'")
    return pattern, wanted


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _as(layer: Layer, scheme: str | None, sink: Sink) -> Layer:
    """Return a layer as it would be held."""
    if scheme is None:
        return layer
    parsed = schemes.parse(scheme)
    return layer._replace(scheme=parsed, row_length=sink.row_length(parsed, layer.shape))


def _fitted(layer: Layer, wanted: str, sink: Sink) -> Choice:
    """Return a block format, or what llama.cpp takes instead for rows that its blocks do not fit."""
    scheme = schemes.parse(wanted)
    row_length = sink.row_length(scheme, layer.shape)
    text, reason = wanted, None
    while scheme.block > 1 and not scheme.rotation and row_length % scheme.block:
        text = scheme.fallback
        scheme = schemes.parse(text)
        row_length = sink.row_length(scheme, layer.shape)
        reason = f"rows of {row_length} weights are not whole blocks of {schemes.parse(wanted).name}"
    return Choice(text, reason)
