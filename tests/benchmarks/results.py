"""What a measurement says: a bar, an outcome, a result. Plain data that goes through a pipe as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


class MissingError(Exception):
    """What a row needs is not there; the text says what."""


@dataclass(frozen=True)
class Bar:
    """A bar: `at most` or `at least` a value; a search has to reach an SQNR besides, in dB."""

    sign: str
    value: float
    unit: str = "x"
    sqnr: float | None = None

    def met(self, value, sqnr=None):
        """Tell whether a value meets it, with an SQNR if it asks for one."""
        if self.sqnr is not None and sqnr < self.sqnr:
            return False
        return value <= self.value if self.sign == "<=" else value >= self.value

    def __str__(self):
        return f"{self.sign} {self.value:g} {self.unit}" + (f" at {self.sqnr:.2f} dB" if self.sqnr is not None else "")


def at_most(value, unit="x"):
    """Return the bar of a cost."""
    return Bar("<=", value, unit)


def at_least(value, unit="x", *, sqnr=None):
    """Return the bar of a gain."""
    return Bar(">=", value, unit, sqnr)


@dataclass
class Timing:
    """The median of one side's runs, as context; `n_weights` of 0 gives no rate."""

    label: str
    seconds: float
    n_weights: int = 0


@dataclass
class Outcome:
    """A measured value with its spread, in the unit of its bar.

    Attributes
    ----------
    value, low, high : float
        The median over the runs, the least and the largest.
    timings : list of Timing
    series : dict
        Name -> list of (weights, seconds): what the picture of cost against size is drawn from.
    profile : list of str
        What explains the value; filled where the bar is missed.
    notes : list of str
    sqnr : float or None
        In dB, where the bar asks for it.
    """

    value: float
    low: float
    high: float
    timings: list[Timing] = field(default_factory=list)
    series: dict[str, list] = field(default_factory=dict)
    profile: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sqnr: float | None = None


@dataclass
class Result:
    """One row at one number of threads: `status` is "ran", "missing" or "failed"; `reason` says why not "ran"."""

    row: str
    threads: int
    status: str
    outcome: Outcome | None = None
    reason: str = ""

    def to_json(self):
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data):
        """Return the result that `to_json` was asked for."""
        outcome = data["outcome"]
        if outcome is not None:
            outcome = Outcome(**outcome | {"timings": [Timing(**timing) for timing in outcome["timings"]]})
        return cls(**data | {"outcome": outcome})


def verdict(bar, result):
    """Return "met", "MISSED", or why there is no answer."""
    if result.status != "ran":
        return result.status
    return "met" if bar.met(result.outcome.value, result.outcome.sqnr) else "MISSED"
