"""The pictures of docs/benchmarks.md: ratios by engine and peer, and cost against size. Same results, same SVG."""

from __future__ import annotations

import io
from fnmatch import fnmatchcase

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.peers import PEERS
from tests.benchmarks.table import ROWS

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
    "ytick.color": "#333333",
}
_ONE, _ALL, _BAR = "#9aa7b5", "#1f5f99", "#c0392b"

#: Rows of our own interfaces and engines whose ratio is to the kernel.
_OURS = {
    "python": "Python quantize, M",
    "quantize-arrow": "quantize_arrow, M",
    "quantize-batch": "quantize_batch, M",
    "polars-m": "Polars lazy, M",
    "polars-c": "Polars lazy, C",
    "polars-e": "Polars lazy, E",
    "duckdb-c": "DuckDB native, C",
    "duckdb-e": "DuckDB native, E",
}
_PEERS = {
    **{f"peer-{peer.name}": peer.label for peer in PEERS},
    **{row.name: row.what.removesuffix(", F") for row in ROWS if fnmatchcase(row.name, "ggml-[rs]*")},
}


def pictures(run):
    """Return file name -> SVG."""
    with mpl.rc_context(_STYLE):
        return {"benchmarks-ratios.svg": _svg(_ratios(run)), "benchmarks-size.svg": _svg(_sizes(run))}


def _svg(figure):
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", transparent=False, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _points(run, labels):
    """Return (label, bar, {threads: ratio}) of rows that ran."""
    found = []
    for row in ROWS:
        ratios = {result.threads: result.outcome.value for result in run.of(row) if result.outcome}
        if row.name in labels and ratios:
            found.append((labels[row.name], row.bar.value, ratios))
    return found


def _ratios(run):
    ours = _points(run, _OURS)
    peers = sorted(_points(run, _PEERS), key=lambda p: max(p[2].values()))
    shares = [max(len(ours), 1), max(len(peers), 1)]
    figure = Figure(figsize=(7.2, 1.6 + 0.26 * sum(shares)))
    upper, lower = figure.subplots(2, 1, height_ratios=shares)
    figure.subplots_adjust(hspace=0.9 * 3 / max(sum(shares) / 4, 1))
    _dots(upper, ours, run.threads)
    upper.set_title("Our interfaces: time over the kernel's, equal threads (left is better)", loc="left", fontsize=10)
    _dots(lower, peers, run.threads)
    lower.set_title("Peers: time over ours, equal threads (right is better for us)", loc="left", fontsize=10)
    return figure


def _dots(axes, points, n_threads):
    axes.set_xscale("log")
    for y, (_, bar, ratios) in enumerate(reversed(points)):
        axes.plot([bar, bar], [y - 0.35, y + 0.35], color=_BAR, linewidth=1.5)
        for threads, ratio in sorted(ratios.items()):
            axes.plot(ratio, y, "o", markersize=5, color=_ALL if threads == n_threads else _ONE)
        largest = max(ratios.values())
        text = " / ".join(f"{ratio:.3g}" for _, ratio in sorted(ratios.items()))
        axes.annotate(text, (max(largest, bar), y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(points)), [label for label, _, _ in reversed(points)])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(points) - 0.3)
    axes.axvline(1, color="#cccccc", linewidth=0.8, zorder=0)
    every = [value for _, bar, ratios in points for value in (bar, *ratios.values())] or [1.0]
    axes.set_xlim(min(0.9, 0.8 * min(every)), 2.2 * max(every))
    ticks = [
        t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel(
        f"grey: 1 thread, blue: {n_threads} threads, red: the bar; figures: 1 thread / {n_threads}", fontsize=8
    )


def _sizes(run):
    figure = Figure(figsize=(7.2, 3.0))
    axes = figure.subplots()
    series = {}
    for result in run.results:
        if result.outcome:
            series |= result.outcome.series
    top = 0.0
    for (name, points), color in zip(series.items(), (_ALL, _ONE), strict=False):
        weights, costs = zip(*((n, 1e9 * seconds / n) for n, seconds in points), strict=True)
        axes.plot(weights, costs, "o-", color=color, markersize=4)
        axes.annotate(
            name, (weights[-1], costs[-1]), xytext=(8, 0), textcoords="offset points", va="center", color=color
        )
        top = max(top, *costs)
    axes.set_xscale("log")
    if series:
        apart = [n for k, n in enumerate(weights) if k == 0 or n >= 2 * weights[k - 1]]  # labels need the room
        axes.set_xticks(apart, [f"{n / 2**20:.3g}M" for n in apart])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15 * top or 1)
    axes.set_xlabel("float32 weights in the column, in rows of 1M (M: 1,048,576)")
    axes.set_ylabel("ns a weight")
    axes.set_title("Cost of a weight, int4_g128, one thread", loc="left", fontsize=10)
    return figure
