"""The benchmarks: `python -m tests.benchmarks [--only NAME] [--quick]`, from the root of the repository.

A full run measures every row of `table.ROWS` and writes docs/benchmarks.md with its pictures; `--quick` runs every
row once on tiny weights, to see that it runs and that both sides do equal work, and judges no time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import workers

ROOT = Path(__file__).parents[2]


def arguments(given):
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="names or patterns; repeat, or join with commas"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny weights, one turn; checks shape and equal work, not time"
    )
    parser.add_argument("--list", action="store_true", help="print the rows, run nothing")
    parser.add_argument("--threads", type=int, help="what 'all' threads are; default: the cores of this process")
    parser.add_argument("--runs", type=int, default=7, help="turns of a row, 5 at least; default 7")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing; write the page from saved results"
    )
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help="write docs/benchmarks.md and its pictures; default: where every row has run",
    )
    parser.add_argument("--note", default="", help="a remark that the page shows, such as what else the machine did")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def told(rows, *, quick):
    """Return a function that prints a result as it comes, and what explains a missed bar."""
    from tests.benchmarks import page  # noqa: PLC0415 - not in a child

    by_name = {row.name: row for row in rows}

    def tell(result):
        print(page.line(by_name[result.row], result, quick=quick), flush=True)
        if result.outcome is not None and not quick:
            for line in result.outcome.profile:
                print(f"      {line}", flush=True)

    return tell


def write(run, folder):
    """Write the page and its pictures into a folder."""
    from tests.benchmarks import page, picture  # noqa: PLC0415 - matplotlib is an extra

    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name, svg in picture.pictures(run).items():
        (images / name).write_text(svg)
    (folder / "benchmarks.md").write_text(page.page(run))
    return folder / "benchmarks.md"


def main(given=None):
    """Run; the exit status is 1 where a row failed: a missed bar and a missing peer are answers."""
    asked = arguments(given)
    if asked.worker:
        workers.work(asked.worker)
        return 0
    from tests.benchmarks import machine, page, table  # noqa: PLC0415 - not in a child, before its threads are set

    if asked.render:
        run = page.Run.from_json(json.loads(asked.render.read_text()))
        run.note = asked.note or run.note
        print(write(run, ROOT / "docs"))
        return 0
    rows = table.chosen(asked.only)
    if asked.list:
        for row in rows:
            print(f"{row.name:24} {row.bar!s:19} {row.what}")
        return 0
    to_write = asked.write or (asked.write is None and not asked.only and not asked.quick)
    if to_write and not page.can_draw():
        raise SystemExit("the page has pictures, which matplotlib draws: pip install '.[bench]', or give --no-write")
    n_threads = asked.threads or table.n_cores()
    runs = 1 if asked.quick else max(5, asked.runs)
    options = {"quick": asked.quick, "runs": runs, "shortest": 0.0 if asked.quick else 0.05}
    start = time.perf_counter()
    results = workers.run(workers.jobs_of(rows, n_threads, quick=asked.quick), options, told(rows, quick=asked.quick))
    run = page.Run(machine.describe(), results, runs, n_threads, asked.quick, asked.note)
    if asked.save:
        asked.save.write_text(json.dumps(run.to_json(), indent=1))
    print(f"rows: {page.summary(run)}; {time.perf_counter() - start:.0f} seconds")
    if to_write:
        print(write(run, ROOT / "docs"))
    elif asked.quick:  # the page, too, is checked for shape, where it can be drawn
        with tempfile.TemporaryDirectory() as folder:
            page.page(run)
            if page.can_draw():
                write(run, Path(folder))
    return int(any(result.status == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
