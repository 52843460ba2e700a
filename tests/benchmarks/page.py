"""The page docs/benchmarks.md, and the lines on the console, from results."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.peers import PEERS
from tests.benchmarks.results import Result, verdict
from tests.benchmarks.table import ROWS

STAMP = "<!-- Written by python -m tests.benchmarks; edit tests/benchmarks/page.py. -->\n\n"

INTRO = """# Benchmarks

What this page measures is equal work, side by side: two sides take turns in one process, and the figure is the
**ratio** of their times, the median of the turns' ratios with the least and the largest. A ratio holds on other
machines far better than a time, so times are context. Where both sides show their bytes, they are compared; a peer's
decoded weights are checked against its own format's bound. A bar that is missed is printed as missed, with a profile.

```sh
pip install '.[bench]'
python -m tests.benchmarks                   # everything; writes this page
python -m tests.benchmarks --list            # the names of the rows
python -m tests.benchmarks --only 'duckdb-*' # some
python -m tests.benchmarks --quick           # do they run? under a minute, no times
```

A cost, `ours / theirs`, has a bar that it must not exceed; a gain, `theirs / ours`, one that it must reach. Each row
says which it is by the order in its name. At "1" thread, both sides are kept on one core.

- **Read pass**: one thread reads the weights once and takes the largest magnitude, as integers; nothing that reads
  its input can be faster. **Kernel**: compiled code over rows that are prepared, writing to memory that is there.
- **L**: a layer of 1,048,576 float32 weights. **M**: 100 of them in one column, 419 MB. **C**: the same weights as
  25,600 rows of 4,096. **S**: the first 4,096 rows of C. **T**: 64 layers. **E**: 1,000,000 embeddings of 384.
  **R**: the matrices of all-MiniLM-L6-v2. **F**: its six matrices `encoder.layer.*.output.dense.weight`, 3,538,944
  weights.
"""

BLOCKS_INTRO = """\
The time of ggml's C code over ours. It is the library that pywhispercpp ships, as it ships it, with its own search
where it has one, without importance. Both sides run on one thread, and write into memory that is there. A
**reference** gives ggml's bytes, and a **decode** its weights; both are checked. A **search** has two bars, the ratio
and the SQNR of its codes on F, and must meet both. ggml's search of k-quants weighs its errors: the SQNR by these
weights is shown, too, and has no bar. ggml built with `-march=native` is missing: no installed package has its source.

"""

_INTROS = {"Block formats": BLOCKS_INTRO}

PEERS_INTRO = """
## Peers

The time of each over ours for the same weights: over our kernel where the peer writes into memory that is there, as
the kernel does, and over `quantize` where it allocates its result, as `quantize` does. Unless the notes say otherwise,
a peer turns float32 M into 4-bit codes in groups of 128, and packs them. Rows of the engines' own expressions compare
with our function in the same engine.

"""


@dataclass
class Run:
    """Results with what they were made on."""

    machine: dict[str, Any]
    results: list[Result]
    runs: int
    threads: int
    quick: bool = False
    note: str = ""

    def to_json(self):
        """Return plain data."""
        return vars(self) | {"results": [result.to_json() for result in self.results]}

    @classmethod
    def from_json(cls, data):
        """Return the run that `to_json` was asked for."""
        return cls(**data | {"results": [Result.from_json(result) for result in data["results"]]})

    def of(self, row):
        """Return a row's results."""
        return [result for result in self.results if result.row == row.name]


def can_draw():
    """Tell whether the pictures' library is there."""
    return importlib.util.find_spec("matplotlib") is not None


def number(value):
    """Return three figures, or all of a large number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds):
    """Return a time with its unit."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{number(seconds * scale)} {unit}"
    return f"{number(seconds * 1e9)} ns"


def spread(outcome):
    """Return the median, and the least and the largest where they are something else."""
    if outcome.low == outcome.high:
        return number(outcome.value)
    return f"{number(outcome.value)} ({number(outcome.low)} to {number(outcome.high)})"


def context(outcome):
    """Return times, with rates in million weights a second."""
    parts = []
    for timing in outcome.timings:
        rate = f", {number(timing.n_weights / timing.seconds / 1e6)} Mw/s" if timing.n_weights else ""
        parts.append(f"{timing.label}: {duration(timing.seconds)}{rate}")
    return "; ".join([*parts, *outcome.notes])


def line(row, result, *, quick=False):
    """Return a result as the console shows it; a quick run judges no bar."""
    head = f"{row.name:24} {result.threads} thr. "
    if result.outcome is None:
        return f"{head}{result.status}: {result.reason}"
    if quick:
        return f"{head}ran"
    judged = f"bar {row.bar}: {verdict(row.bar, result)}"
    return f"{head}{spread(result.outcome)} {row.bar.unit}, {judged}; {context(result.outcome)}"


def counts(run):
    """Return how many results met their bars, and so on."""
    bars = {row.name: row.bar for row in ROWS}
    return Counter(verdict(bars[result.row], result) for result in run.results)


def summary(run):
    """Return the counts as a text; a quick run judges no bar."""
    found = counts(run)
    if run.quick:
        # "broken": a line of counts with "0 failed" reads, to what reads CI's output, as a test run without a test
        found = Counter({"ran": found["met"] + found["MISSED"], "missing": found["missing"], "broken": found["failed"]})
    return ", ".join(f"{n} {name}" for name, n in found.items())


def table(header, rows):
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"


def _verdict(row, result):
    found = verdict(row.bar, result)
    return f"**{found}**" if found in ("MISSED", "failed") else found


def _measured(row, results):
    cells = []
    for result in results:
        value = spread(result.outcome) if result.outcome else "-"
        times = context(result.outcome) if result.outcome else result.reason
        cells.append((row.what, row.bar, result.threads, value, _verdict(row, result), times))
    return cells


def _sections(run):
    parts = []
    for section in dict.fromkeys(row.section for row in ROWS if row.section != "Peers"):
        rows = [row for row in ROWS if row.section == section]
        cells = [cell for row in rows for cell in _measured(row, run.of(row))]
        if not cells:
            continue
        parts.append(f"\n## {section}\n\n" + _INTROS.get(section, ""))
        parts.append(table(("what", "bar", "threads", "measured", "verdict", "medians, as context"), cells))
        notes = [f"- {row.what}: {row.note}" for row in rows if row.note and run.of(row)]
        parts.append("\n" + "\n".join(notes) + "\n" if notes else "")
    return "".join(parts)


def _peer_cells(peer, row, results, versions):
    ran = [result for result in results if result.outcome]
    values = [f"{r.threads}: {number(r.outcome.value)}" for r in ran]
    times = [
        f"{r.threads}: {duration(r.outcome.timings[1].seconds)} / {duration(r.outcome.timings[0].seconds)}" for r in ran
    ]
    verdicts = list(dict.fromkeys(_verdict(row, result) for result in results))
    package = f"{peer.distribution} {versions.get(peer.distribution, '')}".strip()
    times += [f"{r.threads}: {note}" for r in ran for note in r.outcome.notes]
    return (
        peer.label,
        package,
        f"{peer.scheme}, {peer.work}",
        row.bar,
        "; ".join(values) or "-",
        ", ".join(verdicts),
        "; ".join(times),
    )


def _fastest(found):
    """Return a line for each number of threads: the peer that comes closest to us, engines' expressions aside."""
    others = [(peer, result) for peer, _, results in found for result in results if result.outcome and peer.work == "M"]
    lines = []
    for threads in sorted({result.threads for _, result in others}):
        peer, result = min(((p, r) for p, r in others if r.threads == threads), key=lambda pair: pair[1].outcome.value)
        lines.append(
            f"The closest peer at {threads} thread{'s'[: threads > 1]}: {peer.label}, {spread(result.outcome)} x.\n"
        )
    return "\n" + "".join(lines) if lines else ""


def _peers(run):
    rows = {row.name: row for row in ROWS}
    found = [(peer, rows[f"peer-{peer.name}"]) for peer in PEERS]
    found = [(peer, row, run.of(row)) for peer, row in found if run.of(row)]
    if not found:
        return ""
    versions = run.machine["versions"] | run.machine["peers"]
    header = ("peer", "package", "ours", "bar", "threads: theirs / ours", "verdict", "threads: medians, theirs / ours")
    notes = [f"- {peer.label}: {row.note}" for peer, row, _ in found]
    return (
        PEERS_INTRO
        + table(header, [_peer_cells(*each, versions) for each in found])
        + _fastest(found)
        + "\n"
        + "\n".join(notes)
        + "\n"
    )


def _missed(run):
    rows = {row.name: row for row in ROWS}
    parts = []
    for result in run.results:
        row = rows[result.row]
        if verdict(row.bar, result) == "MISSED":
            text = "\n".join(result.outcome.profile) or "no profile"
            head = f"{row.what}, {result.threads} thread{'s'[: result.threads > 1]}"
            parts.append(
                f"\n**{head}**: {spread(result.outcome)} {row.bar.unit}, bar {row.bar}.\n\n```text\n{text}\n```\n"
            )
    return "\n## Missed bars, and what explains them\n" + "".join(parts) if parts else ""


def _missing(run):
    what = {row.name: row.what for row in ROWS}
    absent = {result.row: result for result in run.results if result.status in ("missing", "failed")}
    if not absent:
        return ""
    lines = [f"- {what[name]}: {result.status}, {result.reason}" for name, result in absent.items()]
    return "\n## Not measured\n\nMissing is not beaten.\n\n" + "\n".join(lines) + "\n"


def _machine(run):
    facts = run.machine
    ours, peers = (", ".join(f"{k} {v}" for k, v in facts[key].items() if v) for key in ("versions", "peers"))
    rows = [("date", facts["date"]), ("machine", facts["machine"]), ("system", facts["system"]), ("versions", ours)]
    rows += [("peers", peers), ("turns a row", run.runs), ("all threads", run.threads)]
    return "\n## Machine\n\n" + table(("fact", "value"), rows)


def page(run):
    """Return docs/benchmarks.md."""
    pictures = (
        "\n![How long each interface, engine and peer takes](images/benchmarks-ratios.svg)\n"
        "\n![Cost of a weight against the size of the column](images/benchmarks-size.svg)\n"
    )
    body = _machine(run) + _sections(run) + _peers(run) + _missed(run) + _missing(run)
    remark = f"\n**{run.note}**\n" if run.note else ""
    return f"{STAMP}{INTRO}\nOf this run's results: {summary(run)}.\n{remark}{pictures}{body}"
