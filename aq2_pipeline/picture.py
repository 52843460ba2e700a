"""The picture of a comparison: signal to noise against bits a weight. Same table, same SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.errors import InputValueError
from aq2_pipeline.io.writing.files import replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import polars as pl
    from matplotlib.axes import Axes

    from aq2_pipeline.weights import Array

__all__ = ["DB_PER_BIT", "check_picture_name", "draw"]

#: What each bit buys at the most for a Gaussian source, D(R) = s^2 2^(-2R): 20 log10(2) dB.
DB_PER_BIT = 20 * math.log10(2)

_SUFFIXES = (".svg", ".png", ".pdf")
#: Text stays text, ids do not depend on the run: small files that differ only where figures do.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aq2",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
_BEST, _OTHER, _LINE, _TEXT = "#1f5f99", "#9aa7b5", "#c0392b", "#333333"
_KEY = "blue: no other scheme takes less and loses less"
#: Where a label may be, in points from its dot: nearest first, right of it before above, left and below.
_DISTANCES = (7, 11, 18, 26, 36, 48, 62, 78, 96)
_DIRECTIONS = (0, 30, -30, 60, -60, 90, -90, 120, -120, 150, -150, 180, 15, -15, 45, -45, 75, -75, 105, -105, 135, -135)
#: Labels further than this from their dot get a line to it.
_LEADER = 8
_DOT = 5.0


def check_picture_name(target: str | os.PathLike[str]) -> None:
    """Check, before work is spent, that `draw` could write such a file.

    Raises
    ------
    InputValueError
        If the suffix is no picture's.
    ImportError
        Without the extra ``[plot]``.
    """
    if Path(target).suffix.lower() not in _SUFFIXES:
        msg = f"{str(target)!r}: a picture is written as {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"
        raise InputValueError(msg)
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - an extra
    except ImportError:
        msg = "pictures need the extra [plot]: pip install 'aq2-pipeline[plot]'"
        raise ImportError(msg) from None


def draw(table: pl.DataFrame, target: str | os.PathLike[str], title: str = "") -> None:
    """Draw schemes as dots, bits a weight across and SQNR up, with the line of a Gaussian source.

    Parameters
    ----------
    table : polars.DataFrame
        With the columns `scheme`, `bits_per_weight` and `sqnr_db`, as
        `comparing.compare` returns it. Rows that are null are left out; those
        without error, which have no place on the axis, are named below it.
    target : str or Path
        Its suffix, .svg, .png or .pdf, says what is written.
    title : str
        A line above.

    Raises
    ------
    InputValueError
        If the suffix is none of these, or no row has a place.
    ImportError
        Without the extra ``[plot]``.
    OSError
        If the file cannot be written; an earlier one stays.

    Notes
    -----
    The line is the rate-distortion function of a memoryless Gaussian source,
    6.02 dB a bit (Cover & Thomas, Elements of Information Theory, 10.3.2). It
    is a ruler, not a bound on real weights, whose spread differs between layers.
    A dot is blue if no other scheme takes fewer bits, or as many, and loses less.
    """
    check_picture_name(target)
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = table.select("scheme", "bits_per_weight", "sqnr_db").drop_nulls().rows()
    dots = [row for row in rows if math.isfinite(row[2])]
    if not dots:
        msg = "no scheme has an error to draw"
        raise InputValueError(msg, "compare with a scheme that loses something")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 5.2), dpi=72, layout="constrained")  # a pixel is a point
        axes = figure.subplots()
        _place_dots(axes, dots)
        exact = ", ".join(f"{name} ({bits:.4g} bits)" for name, bits, sqnr in rows if sqnr == math.inf)
        axes.set_xlabel("bits a weight, scales included" + (f"\nwithout error: {exact}" if exact else ""))
        axes.set_ylabel("SQNR of the weights, dB")
        axes.set_title(title, loc="left", fontsize=10, color=_TEXT, parse_math=False)
        figure.draw_without_rendering()  # the axes have their place, and texts their sizes
        figure.set_layout_engine("none")
        _place_labels(axes, dots)
        kind = Path(target).suffix.lower()[1:]
        stamps: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
        with replacing(target) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=stamps.get(kind))


def _place_dots(axes: Axes, dots: Sequence[tuple[str, float, float]]) -> None:
    """Draw the line and the dots, and leave room for the labels at the ends."""
    bits, decibels = [bits for _, bits, _ in dots], [sqnr for *_, sqnr in dots]
    room_x, room_y = max(0.5, 0.08 * (max(bits) - min(bits))), max(3.0, 0.08 * (max(decibels) - min(decibels)))
    left, right = max(0.0, min(bits) - room_x), max(bits) + 1.5 * room_x
    bottom, top = min(decibels) - room_y, max(*decibels, DB_PER_BIT * max(bits)) + room_y
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.plot([left, right], [DB_PER_BIT * left, DB_PER_BIT * right], color=_LINE, linewidth=1, zorder=1)
    best = _front(dots)
    for name, x, y in dots:
        axes.plot(x, y, "o", markersize=_DOT, color=_BEST if name in best else _OTHER, zorder=3, clip_on=False)


def _front(dots: Sequence[tuple[str, float, float]]) -> set[str]:
    """Return the schemes that no other beats: no more bits, no lower SQNR, and one of them better."""
    return {
        name
        for name, bits, sqnr in dots
        if not any(b <= bits and s >= sqnr and (b, s) != (bits, sqnr) for _, b, s in dots)
    }


def _place_labels(axes: Axes, dots: Sequence[tuple[str, float, float]]) -> None:
    """Write each scheme's name where it covers least, and what the line is."""
    frame = axes.get_window_extent()
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    places = to_pixels([dot for _, *dot in dots])
    key = axes.text(0.99, 0.02, _KEY, transform=axes.transAxes, fontsize=8, color=_BEST, ha="right", va="bottom")
    taken = np.concatenate([_around(places, _DOT + 2), _name_line(axes), [key.get_window_extent().extents]])
    best = _front(dots)
    for (name, *dot), place in zip(dots, places, strict=True):
        color = _BEST if name in best else _TEXT
        label = axes.text(*dot, name, fontsize=8, color=color, va="bottom", parse_math=False)
        size = label.get_window_extent()
        box, leader = free_place(place, (size.width, size.height), taken, np.array(frame.extents))
        taken = np.concatenate([taken, [box], leader])
        label.set_position(tuple(to_data(box[:2])))
        if len(leader):
            line = np.array([dot, to_data(_nearest(place, box))]).T
            axes.plot(*line, color="#bbbbbb", linewidth=0.6, zorder=2)


def free_place(place: Array, size: tuple[float, float], taken: Array, whole: Array) -> tuple[Array, Array]:
    """Return where a label covers least, the nearest such place, and the boxes of the line that leads there.

    Parameters
    ----------
    place : float array
        The dot, in pixels, as everything here.
    size : tuple of float
        Of the label.
    taken : float array, (n, 4)
        Boxes: left, bottom, right, top.
    whole : float array
        The box that labels stay in.

    Returns
    -------
    float array, float array (n, 4)
    """
    least, found = math.inf, (place, place)  # every label covers less than infinity
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:  # the box touches a circle around the dot
            direction = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
            corner = place + distance * direction + np.array(size) * (direction - 1) / 2
            box = np.concatenate([corner, corner + size])
            leader = _leader(place, box)
            outside = size[0] * size[1] - _overlap(box[None], whole[None])
            covered = _overlap(np.concatenate([box[None], leader]), taken) + 10 * outside
            if covered < least - 0.5:  # less than half a pixel is no reason to go further
                least, found = covered, (box, leader)
        if least < 1:
            break
    return found


def _overlap(boxes: Array, others: Array) -> float:
    """Return the area that boxes share with others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return float(np.prod(np.maximum(high - low, 0), axis=2).sum())


def _nearest(place: Array, box: Array) -> Array:
    return np.clip(place, box[:2], box[2:])


def _leader(place: Array, box: Array) -> Array:
    """Return what a line from a dot to its label would cover; nothing where the label is near enough."""
    way = _nearest(place, box) - place
    length = math.hypot(*way)
    steps = np.arange(_DOT, length, 3) if length > _LEADER else np.empty(0)
    return _around(place + steps[:, None] / (length or 1) * way, 3)


def _around(places: Array, side: float) -> Array:
    """Return squares around places."""
    return np.concatenate([places - side / 2, places + side / 2], axis=1)


def _name_line(axes: Axes) -> Array:
    """Write along the line what it is; return the boxes of line and text."""
    frame = axes.get_window_extent()
    zero, one = axes.transData.transform([(0, 0), (1, DB_PER_BIT)])
    way = (one - zero) / math.hypot(*(one - zero))
    length = min((frame.x1 - zero[0]) / way[0], (frame.y1 - zero[1]) / way[1])
    angle = math.atan2(way[1], way[0])
    text = axes.text(
        *axes.transData.inverted().transform(zero + length * way),
        "Gaussian source: 6.02 dB a bit      ",
        color=_LINE,
        fontsize=8,
        ha="right",
        va="bottom",
        rotation=math.degrees(angle),
        rotation_mode="anchor",
    )
    height = 12.0
    width = (text.get_window_extent().width - height * math.sin(angle)) / math.cos(angle)
    line = np.arange(0, length, 3)[:, None] * way + zero
    above = np.arange(length - width, length, height / 2)[:, None] * way + zero
    above = above + height / 2 * np.array([-math.sin(angle), math.cos(angle)])
    return np.concatenate([_around(line, 3), _around(above, height)])
