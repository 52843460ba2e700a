"""The child that reads changed files: a path a line on its input, a verdict a line on its output.

What it dies of is on the disk before it is told of it. A signal ends it where
an input takes more than `SECONDS` of processor time: a busy machine is no hang.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

#: Of the processor, for one input.
SECONDS = 5
#: What the system gives to a child: beyond it an allocation is a MemoryError.
DATA_BYTES = 2 << 30
#: What an input may make resident; more is a defect.
MOST_BYTES = 512 << 20


def clear_peak():
    """Forget the largest resident size so far; whether the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak():
    """Return the largest resident size since it was last forgotten, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024


def read(path, thorough):
    """Read all that a file has, in every form; `thorough` also by the ways of the engines and into another file."""
    import aq2_pipeline  # noqa: PLC0415 - after the limits
    from aq2_pipeline.io.convert import quantize_file  # noqa: PLC0415
    from aq2_pipeline.io.opening import open_source  # noqa: PLC0415
    from aq2_pipeline.io.recipes import Recipe  # noqa: PLC0415
    from aq2_pipeline.io.tables.frames import lazy_frame, reader  # noqa: PLC0415

    source = open_source(path)
    dict(source.metadata)
    forms = ["weights", "raw"] + ["quantized"] * source.native
    failures = []
    for form in forms:  # what one form refuses another may read
        for chunk_weights in (None, 7):
            parts = source.parts(chunk_weights)
            try:
                for table in source.batches(parts, form, chunked=chunk_weights is not None):
                    table.validate(full=True)
            except aq2_pipeline.Aq2Error as error:
                failures.append(error)
    if thorough:
        calls = [
            lambda: lazy_frame(source, "weights", 5).collect(),
            lambda: lazy_frame(source, "raw", metadata=not source.native).collect(engine="streaming"),
            lambda: reader(source, "weights").read_all(),
            lambda: quantize_file(path, f"{folder}/out.safetensors", Recipe("int4_g32")),
        ]
        for call in calls:
            with TemporaryDirectory() as folder, suppress(aq2_pipeline.Aq2Error):  # without floats it is no bad file
                call()
    if failures:
        raise failures[0]


def verdict(path, thorough):
    """Return what an input came to: read, refused, or a defect with its text."""
    from aq2_pipeline import Aq2Error  # noqa: PLC0415 - after the limits

    try:
        read(path, thorough)
    except Aq2Error as error:
        text = str(error)
        if not text.isprintable() or len(text) > 4000:
            return "defect", f"the text of the error: {text[:500]!r}"
        return "refused", text
    except FileNotFoundError as error:
        return "refused", str(error)
    except BaseException:  # noqa: BLE001 - Polars' panics are no Exception
        return "defect", traceback.format_exc(limit=-6)
    return "read", ""


def warm(folder):
    """Read one good file of each format, so that what is imported and compiled is not counted to an input."""
    for path in folder:
        kind, text = verdict(Path(path), thorough=True)
        if kind != "read":
            message = f"the good file {path} is not read: {text}"
            raise ValueError(message)


def main():
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warm(json.loads(sys.stdin.readline()))
    clears = clear_peak()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        before = peak() if clears and clear_peak() else 0
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        start = time.perf_counter()
        kind, text = verdict(Path(asked["path"]), asked["thorough"])
        seconds = time.perf_counter() - start
        signal.setitimer(signal.ITIMER_PROF, 0)
        most = peak()
        if most > MOST_BYTES and clears and kind != "defect":
            kind, text = "defect", f"{most >> 20} MB were resident, {before >> 20} MB before"
        print(json.dumps({"kind": kind, "text": text, "seconds": seconds, "bytes": most}), flush=True)


if __name__ == "__main__":
    main()
