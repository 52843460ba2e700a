"""Fuzzing: `python -m tests.fuzz --hours N`, from the root of the repository.

The time is shared evenly by what is chosen: `files` (changed bytes, read in children), `values` (calls on every engine)
and `state` (sequences of calls). A crash of files is kept in tests/corpus/bad, to be named and mended; of values and
state, its seed is printed. Ends with 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

KINDS = ("files", "values", "state")


def arguments(given):
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--hours", type=float, default=0)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--only", choices=KINDS, action="append", help="repeat for two; default: all three")
    parser.add_argument("--seed", type=int, help="of the whole run; default: the time, and it is printed")
    parser.add_argument("--workers", type=int, default=2, help="children that read files at the same time")
    parser.add_argument("--write-report", type=Path, metavar="FILE.json", help="write the figures")
    found = parser.parse_args(given)
    found.total = 3600 * found.hours + 60 * found.minutes + found.seconds
    if not found.total > 0:
        parser.error("say how long: --hours, --minutes or --seconds")
    return found


def versions():
    """Return what was tested."""
    from importlib.metadata import version  # noqa: PLC0415 - only for a report

    from aq2_pipeline.version import __version__  # noqa: PLC0415

    names = ("polars", "duckdb", "pyarrow", "numba", "numpy", "hypothesis")
    return {"aq2_pipeline": __version__, "python": sys.version.split()[0]} | {name: version(name) for name in names}


def run(kind, seconds, seed, workers):
    """Return name -> figures of a kind of fuzzing."""
    from fuzz import files  # noqa: PLC0415 - the engines load for what is chosen

    if kind == "files":
        return files.fuzz(files.until(seconds), seed, workers=workers)
    if kind == "values":
        from fuzz import values  # noqa: PLC0415

        return values.fuzz(files.until(seconds), seed)
    from fuzz import machine  # noqa: PLC0415

    return machine.fuzz(files.until(seconds), seed)


def line(kind, name, figures):
    """Return what is printed of figures."""
    told = [f"{kind} {name}: {figures['inputs']} inputs, {len(figures['crashes'])} crashes"]
    if figures.get("slowest_seconds"):
        told.append(f"slowest {figures['slowest_seconds']:.2f} s {figures.get('slowest_input', '')}".rstrip())
    if figures.get("largest_bytes"):
        told.append(f"largest {figures['largest_bytes'] >> 20} MB {figures['largest_input']}")
    return ", ".join(told)


def main(given=None):
    """Run, print and write."""
    asked = arguments(given)
    seed = int(time.time()) % 1_000_000 if asked.seed is None else asked.seed
    kinds = asked.only or KINDS
    print(f"seed {seed}", flush=True)
    only = "".join(f" --only {kind}" for kind in asked.only or ())
    command = f"python -m tests.fuzz --minutes {asked.total / 60:g}{only} --seed {seed} --workers {asked.workers}"
    report = {"command": command, "versions": versions()}
    n_crashes = 0
    for kind in kinds:
        start = time.monotonic()
        found = {
            name: asdict(figures) for name, figures in run(kind, asked.total / len(kinds), seed, asked.workers).items()
        }
        report[kind] = {"seconds": round(time.monotonic() - start, 1), "figures": found}
        for name, figures in found.items():
            print(line(kind, name, figures), flush=True)
            for crash in figures["crashes"]:
                print(f"  {crash['kind']} {crash['input']}\n{crash['text']}", flush=True)
            n_crashes += len(figures["crashes"])
    if asked.write_report:
        asked.write_report.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if n_crashes else 0


if __name__ == "__main__":
    sys.exit(main())
