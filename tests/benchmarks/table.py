"""The table of measurements: a row is a name, what is measured, its bar, and what does it.

To add one, add a row. A scheme's kernel against the read pass, or against a peer, needs nothing else:

    Row("kernel-q4-k", "Q4_K kernel, M / read pass", at_most(9), Ratio(kernel("M", "q4_k"), read_pass("M")))
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.benchmarks import blocks, sql
from tests.benchmarks.interfaces import array_and_kernel, arrow_table, batch, legacy
from tests.benchmarks.measures import Flatness, Ratio, Speedup
from tests.benchmarks.peers import PEERS, Against
from tests.benchmarks.processes import Peak, cold_call, cold_import
from tests.benchmarks.results import Bar, at_least, at_most
from tests.benchmarks.sides import (
    both,
    copy_floor,
    decode_kernel,
    kernel,
    polars_lazy,
    python,
    python_error,
    read_pass,
    real_kernel,
    real_read_pass,
)

ONE, ALL, EACH = ("one",), ("all",), ("one", "all")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes
    ----------
    name : str
        For `--only`.
    what : str
        "ours / theirs" where the bar is a cost, "theirs / ours" where it is a gain.
    bar : Bar
    run : callable
        `run(setting, bar) -> Outcome`.
    threads : tuple of str
        At which numbers of threads: "one", "all".
    alone : bool
        Whether it needs a process of its own: for peaks, and for libraries that change a process.
    section : str
    note : str
        What a reader must know to judge it.
    """

    name: str
    what: str
    bar: Bar
    run: Any
    threads: tuple[str, ...] = ONE
    alone: bool = False
    section: str = "Kernels"
    note: str = ""


KERNELS = [
    Row("kernel-int4", "int4_g128 kernel, M / read pass", at_most(1.6), Ratio(kernel("M"), read_pass("M"))),
    Row(
        "kernel-int4-asym",
        "int4_g128_asym kernel, M / read pass",
        at_most(2.5),
        Ratio(kernel("M", "int4_g128_asym"), read_pass("M")),
    ),
    Row(
        "kernel-int8", "int8_g128 kernel, M / read pass", at_most(2.0), Ratio(kernel("M", "int8_g128"), read_pass("M"))
    ),
    Row(
        "kernel-int4-real",
        "int4_g128 kernel, R / read pass",
        at_most(1.6),
        Ratio(real_kernel, real_read_pass),
        note="R is the matrices of all-MiniLM-L6-v2; M's bar.",
    ),
    Row(
        "decode-int4",
        "dequantize int4_g128 kernel, M / np.copyto",
        at_most(1.3),
        Ratio(decode_kernel("M"), copy_floor("M")),
    ),
    Row("error", "quantization_error, M / quantize", at_most(1.5), Ratio(python_error("M"), python("M"))),
    Row("float16", "quantize float16 / float32, M", at_most(1.0), Ratio(python("M", half=True), python("M"))),
    Row(
        "two-threads",
        "q4_k kernel, T: one thread / two",
        at_least(1.8),
        Speedup(lambda n_threads: kernel("T", "q4_k", n_threads)),
        threads=ALL,
        note="A search, which is bound by arithmetic.",
    ),
    Row(
        "flat-quantize",
        "quantize: cost of a weight, 1M to 400M weights, dearest / cheapest",
        at_most(1.15),
        Flatness("quantize"),
        note="Of the medians.",
    ),
    Row(
        "flat-kernel",
        "int4_g128 kernel: cost of a weight, 1M to 400M weights, dearest / cheapest",
        at_most(1.15),
        Flatness("kernel"),
        note="Of the medians.",
    ),
]

INTERFACES = [
    Row("python", "quantize(column, 4), M / kernel", at_most(1.15), Ratio(python("M"), kernel("M")), EACH),
    Row("quantize-arrow", "quantize_arrow, M / kernel", at_most(1.2), Ratio(arrow_table("M"), kernel("M")), EACH),
    Row("quantize-batch", "quantize_batch, M / kernel", at_most(1.3), Ratio(batch("M"), kernel("M")), EACH),
    Row("legacy-gain", "legacy quantize / quantize_arrow, L", at_least(29), Ratio(arrow_table("L"), legacy("L"))),
    Row("legacy-gain-m", "legacy quantize / quantize_arrow, M", at_least(37), Ratio(arrow_table("M"), legacy("M"))),
    Row(
        "legacy-cost",
        "legacy quantize, L / (np.asarray(list, float32) + kernel)",
        at_most(1.3),
        Ratio(legacy("L"), array_and_kernel("L")),
    ),
    Row(
        "legacy-cost-m",
        "legacy quantize, M / (np.asarray(list, float32) + kernel)",
        at_most(1.3),
        Ratio(legacy("M"), array_and_kernel("M")),
    ),
]

ENGINES = [
    Row("polars-m", "Polars lazy collect, M / kernel", at_most(1.3), Ratio(polars_lazy("M"), kernel("M")), EACH),
    Row("polars-c", "Polars lazy collect, C / kernel", at_most(1.3), Ratio(polars_lazy("C"), kernel("C")), EACH),
    Row(
        "polars-e",
        "Polars lazy collect, E, int8 a row / kernel",
        at_most(1.5),
        Ratio(polars_lazy("E", "int8_channel"), kernel("E", "int8_channel")),
        EACH,
    ),
    Row("duckdb-c", "DuckDB native, C / kernel", at_most(1.3), Ratio(sql.native("C"), kernel("C")), EACH),
    Row("duckdb-gain", "DuckDB Arrow UDF / native, C", at_least(6), Ratio(sql.native("C"), sql.udf("C")), EACH),
    Row(
        "duckdb-udf",
        "DuckDB Arrow UDF, C / (the same UDF with an empty body + kernel)",
        at_most(1.2),
        Ratio(sql.udf("C"), both(sql.empty_udf("C"), kernel("C"))),
        EACH,
    ),
    Row(
        "duckdb-e",
        "DuckDB native, E, int8 a row / kernel",
        at_most(2.0),
        Ratio(sql.native("E", "int8_channel"), kernel("E", "int8_channel")),
        EACH,
    ),
]

PROCESSES = [
    Row(
        "peak-python",
        "peak memory beyond input and output, M, Python",
        at_most(64, "MB"),
        Peak("Python"),
        ALL,
        alone=True,
    ),
    Row(
        "peak-polars",
        "peak memory beyond input and output, M, Polars",
        at_most(64, "MB"),
        Peak("Polars"),
        ALL,
        alone=True,
    ),
    Row("cold-import", "import aq2_pipeline beyond its dependencies", at_most(50, "ms"), cold_import),
    Row("cold-call", "first quantize of a process, kernels cached", at_most(0.5, "s"), cold_call),
]


def _against_ggml(name, what, bar, run):
    return Row(f"ggml-{what}-{name.replace('_', '-')}", f"ggml C / {name} {what}, F", bar, run)


BLOCKS = [
    *(
        _against_ggml(name, "reference", bar, Ratio(kernel("F", f"{name}:reference"), blocks.ggml_encoder(name)))
        for name, bar in blocks.REFERENCES.items()
    ),
    *(_against_ggml(name, "search", bar, blocks.Search(name)) for name, bar in blocks.SEARCHES.items()),
    *(
        _against_ggml(name, "decode", at_least(1), Ratio(blocks.decoder(name), blocks.ggml_decoder(name)))
        for name in blocks.FORMATS
    ),
]


def _peer_row(peer):
    return Row(
        f"peer-{peer.name}",
        f"{peer.label} / {'the kernel' if peer.into else 'quantize'}, {peer.scheme}, {peer.work}",
        at_least(peer.bar),
        Against(peer),
        EACH,
        alone=True,
        section="Peers",
        note=f"{peer.config} {peer.differs}".strip(),
    )


def _in(section, rows):
    return [Row(**vars(row) | {"section": section}) for row in rows]


ROWS = [
    *_in("Kernels", KERNELS),
    *_in("Block formats", BLOCKS),
    *_in("Interfaces", INTERFACES),
    *_in("Engines", ENGINES),
    *_in("Memory and start", PROCESSES),
    *(_peer_row(peer) for peer in PEERS),
]


def chosen(patterns):
    """Return the rows whose names match one of the patterns; all without any."""
    parts = [part for pattern in patterns for part in pattern.split(",") if part]
    for part in parts:
        if not any(fnmatchcase(row.name, part) for row in ROWS):
            msg = f"no measurement is called {part!r}; see --list"
            raise SystemExit(msg)
    return [row for row in ROWS if not parts or any(fnmatchcase(row.name, part) for part in parts)]


def n_cores():
    """Return the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
