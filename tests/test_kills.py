"""Runs that are killed, interrupted or out of disk: the old file or the new one, whole; and taken up again."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.model_files import names_in

from aq2_pipeline import FormatError
from aq2_pipeline.io import convert
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import groups
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.targets import Options, sink_for, target_for
from aq2_pipeline.io.writing import files as writing
from aq2_pipeline.io.writing import staging
from aq2_pipeline.io.writing.sinks import MANIFEST, Sink
from aq2_pipeline.io.writing.staging import OutFile, Piece, Spec, staged

RNG = np.random.default_rng(83)
SCHEMES = {"parquet": "int4_g64", "gguf": "q8_0", "safetensors": "int8_g64"}
#: Runs that kill themselves after so many steps, each in a process of its own: a process that has all modules forks.
RUNNER = """
import json, os, signal, sys, tempfile
import numpy as np
from safetensors.numpy import save_file
from aq2_pipeline.io import convert
from aq2_pipeline.io.parquet import groups
from aq2_pipeline.io.parquet import sink as parquet
from aq2_pipeline.io.writing import staging
from aq2_pipeline.io.writing import files as writing
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.targets import Options, sink_for, target_for

convert.CHUNK_WEIGHTS = 8192
parquet.ROW_GROUP_BYTES = 4 * 8192
steps = n_rows = kills = 0

def step():
    global steps
    steps += 1
    if steps == kills:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(module, name):
    original = getattr(module, name)
    def call(*arguments, **keywords):
        step()
        result = original(*arguments, **keywords)
        step()
        return result
    setattr(module, name, call)

for module, name in ((staging, "_write"), (writing, "_sync"), (writing, "sync_folder")):
    watched(module, name)
watched(groups.GroupFile, "write")
watched(groups.GroupFile, "close")
watched(staging.Staging, "keep")
watched(staging.Path, "replace")
watched(staging.Path, "rename")
quantize = convert.quantize

def counted(weights, *arguments, **keywords):
    global n_rows
    n_rows += len(weights)
    return quantize(weights, *arguments, **keywords)

convert.quantize = counted

def run(source, target, scheme, resume):
    model = open_source(source)
    recipe = Recipe(scheme)
    sink = sink_for(target_for(target), Options(model, str(recipe)))
    convert.convert(model, target, sink, recipe, resume=resume, threads=1)

with tempfile.TemporaryDirectory() as folder:  # so that no child has to load kernels
    save_file({"w.weight": np.ones((2, 64), np.float32)}, f"{folder}/w.safetensors")
    for target, scheme in (("m.parquet", "int4_g64"), ("m.gguf", "q8_0"), ("m.safetensors", "int8_g64")):
        run(f"{folder}/w.safetensors", f"{folder}/{target}", scheme, False)
steps = n_rows = 0

for line in sys.stdin:
    kills, *arguments = json.loads(line)
    reading, writing_end = os.pipe()
    child = os.fork()
    if not child:
        run(*arguments)
        os.write(writing_end, json.dumps([steps, n_rows]).encode())
        os._exit(0)
    os.close(writing_end)
    told = os.read(reading, 1000).decode()
    os.close(reading)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told]), flush=True)
"""


@pytest.fixture(scope="module")
def runner():
    """Return the process that starts runs."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", RUNNER], text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(runner, model):
    """Return what converts in a process of its own: the steps and the rows quantized, or None where it was killed."""

    def started(target, *, resume=False, kills=0):
        order = [kills, str(model), str(target), SCHEMES[target.suffix[1:]], resume]
        runner.stdin.write(json.dumps(order) + "\n")
        runner.stdin.flush()
        code, told = json.loads(runner.stdout.readline())
        assert code == (-signal.SIGKILL if kills else 0)
        return json.loads(told) if told else None

    return started


@pytest.fixture
def model(tmp_path):
    """Return the path of a model of eight chunks and more."""
    tensors = {f"{k}.weight": RNG.normal(size=(64, 256)).astype(np.float32) for k in range(4)}
    save_file(tensors | {"ids": np.arange(6)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def temporary(folder):
    """Return the temporary files and folders that are there."""
    return [name for name in names_in(folder) if ".tmp-" in name]


@pytest.mark.parametrize("kind", SCHEMES)
def test_killed_runs_are_taken_up(run, tmp_path, kind):
    """Killed at moments all over a run, the old file or the new one is there; what was made is not made again."""
    target = tmp_path / "out" / f"m.{kind}"
    target.parent.mkdir()
    n_steps, n_rows = run(target)
    new = target.read_bytes()
    assert n_rows == 8
    moments = np.unique(np.linspace(1, n_steps, 24).astype(int)).tolist()
    redone = []
    for moment in moments:
        target.write_bytes(b"old")
        assert run(target, kills=moment) is None
        assert target.read_bytes() in (b"old", new)
        assert len(temporary(target.parent)) == 1
        redone.append(run(target, resume=True)[1])
        assert target.read_bytes() == new
        assert names_in(target.parent) == [target.name]
    assert redone[0] == 8
    before = redone[:-3]  # the last moments are after the new file has its name
    assert before == sorted(before, reverse=True)
    assert min(redone) == 0


def test_run_killed_twice_is_taken_up_where_it_came_to(run, tmp_path):
    """A run that is taken up, killed again, and taken up again makes nothing twice."""
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    n_steps, _ = run(target)
    new = target.read_bytes()
    target.unlink()
    assert run(target, kills=n_steps // 3) is None
    assert run(target, kills=n_steps // 4, resume=True) is None
    assert not target.exists()
    assert len(temporary(target.parent)) == 1
    assert 0 < run(target, resume=True)[1] < 8
    assert target.read_bytes() == new


@pytest.mark.parametrize("change", ["source", "scheme", "boot", "new", "torn"])
def test_only_the_same_run_is_taken_up(run, model, tmp_path, monkeypatch, change):
    """Without --resume, with another source or recipe, or after a restart, all is made anew, and what was left goes."""
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    n_steps, _ = run(target)
    new = target.read_bytes()
    assert run(target, kills=n_steps * 3 // 4) is None
    [left] = temporary(target.parent)
    journal = target.parent / left / "journal"
    if change == "source":
        os.utime(model, ns=(1, 1))
    elif change == "scheme":
        monkeypatch.setitem(SCHEMES, "gguf", "q4_0")
    elif change == "boot":
        lines = journal.read_text().splitlines()
        journal.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"boot": "another"}), *lines[1:], ""]))
    elif change == "torn":  # the last line is half there, as a kill may leave it: its chunk is made again
        journal.write_text(journal.read_text()[:-9])
    _, n_rows = run(target, resume=change != "new")
    assert (n_rows < 8) is (change == "torn")
    assert (target.read_bytes() == new) is (change != "scheme")
    assert names_in(target.parent) == ["m.gguf"]


def test_two_runs_do_not_take_up_the_same(run, model, tmp_path, monkeypatch):
    """Where another run was faster to take up what a killed one left, all is made anew, and the other keeps it."""
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    n_steps, _ = run(target)
    assert run(target, kills=n_steps * 3 // 4) is None
    rename, taken = Path.rename, tmp_path / "taken"

    def late(path, new):
        if not taken.exists():
            rename(path, taken)
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", late)
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 8192)  # what the killed run had
    opened, recipe = open_source(model), Recipe(SCHEMES["gguf"])
    sink = sink_for(target_for(target), Options(opened, str(recipe)))
    new = target.read_bytes()
    convert.convert(opened, target, sink, recipe, resume=True, threads=1)
    assert taken.exists()
    assert target.read_bytes() == new
    assert names_in(target.parent) == ["m.gguf"]


# --- signals ---------------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from aq2_pipeline.io import convert
from aq2_pipeline.io.writing import sinks
convert.CHUNK_WEIGHTS = 8192
original = convert.quantize
def slow(*arguments, **keywords):
    print("chunk", flush=True)
    time.sleep(0.2)
    return original(*arguments, **keywords)
convert.quantize = slow
from aq2_pipeline.cli import main
main()
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", ["parquet", "gguf"])
def test_signals_leave_nothing(model, tmp_path, sent, code, kind):
    """Ctrl-C ends the command with 130, SIGTERM with 143: soon, without a temporary file, the old one in its place."""
    target = tmp_path / f"m.{kind}"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", SLOW, "quantize", str(model), str(target), "--scheme", SCHEMES[kind]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "chunk\n"
        assert child.stdout.readline() == "chunk\n"
        assert temporary(tmp_path)
        start = time.monotonic()
        child.send_signal(sent)
        _, told = child.communicate(timeout=60)
        assert time.monotonic() - start < 5  # 0.5 s are asked for
    assert child.returncode == code
    assert "Traceback" not in told
    assert (target.read_bytes(), temporary(tmp_path)) == (b"old", [])


DEAF = """
import signal, sys, time, weakref
from aq2_pipeline.io import listing
class Object:
    pass
def work(*_, **__):
    n_asked = 0
    def ask(_):
        nonlocal n_asked
        n_asked += 1
        signal.raise_signal({sent})
    for _ in range(3):
        there = Object()
        watched = weakref.ref(there, ask)
        del there
    assert n_asked == 3  # nothing stopped it
    time.sleep(60)
listing.inspect_file = work
from aq2_pipeline.cli import main
main()
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_that_nothing_could_catch_are_raised_again(model, sent, code):
    """A signal that comes in a weak reference's callback, where Python drops exceptions, stops the command too."""
    command = [sys.executable, "-c", DEAF.format(sent=int(sent)), "inspect", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == code, done.stderr
    assert "ignored" not in done.stderr
    assert "Traceback" not in done.stderr


# --- disks -----------------------------------------------------------------------------------------------------------


def converted(model, target):
    """Convert in this process."""
    opened = open_source(model)
    recipe = Recipe(SCHEMES[target.suffix[1:]])
    return convert.convert(opened, target, sink_for(target_for(target), Options(opened, str(recipe))), recipe)


@pytest.mark.parametrize("kind", SCHEMES)
def test_full_disk_names_the_target(model, tmp_path, kind):
    """Where a file may not grow, the command says which and what it takes; the old file stays, and nothing else."""
    target = tmp_path / f"m.{kind}"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", "from aq2_pipeline.cli import main; main()", "quantize", model, target]
    done = subprocess.run(
        [*command, "--scheme", SCHEMES[kind]],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"aq2: {str(target)!r}: File too large")
    assert "bytes are needed" in done.stderr
    assert (target.read_bytes(), temporary(tmp_path)) == (b"old", [])


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("what", ["fsync", "replace", "truncate", "write"])
def test_errors_of_the_disk_name_the_target(model, tmp_path, monkeypatch, kind, what):
    """An error of fsync, rename, truncate or write has the target's name; the old file stays, and nothing else."""
    target = tmp_path / f"m.{kind}"
    target.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if what == "fsync":
        monkeypatch.setattr(writing.os, "fsync", fail)
    elif what == "replace":
        replace = Path.replace

        def fail_at_the_end(self, other):
            if Path(other) == target:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self), None, str(other))
            return replace(self, other)

        monkeypatch.setattr(Path, "replace", fail_at_the_end)
    elif kind == "parquet":
        monkeypatch.setattr(*{"truncate": (groups.os, "truncate"), "write": (groups, "writer")}[what], fail)
    elif what == "truncate":

        class File(staging.FileIO):
            truncate = fail

        monkeypatch.setattr(staging, "FileIO", File)
    else:
        monkeypatch.setattr(staging, "_write", fail)
    with pytest.raises(OSError, match=r"Input/output|busy") as caught:
        converted(model, target)
    assert caught.value.filename == str(target)
    assert caught.value.filename2 is None
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == sorted([model.name, target.name])


def test_error_of_the_source_names_the_source(model, tmp_path, monkeypatch):
    """A disk that cannot be read is an error with the name of the source, not of the target."""
    opened = open_source(model)

    class File:
        def __init__(self, path):
            self.file = path.open("rb", buffering=0)
            self.seek, self.fileno = self.file.seek, self.file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def readinto(self, _):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("aq2_pipeline.io.tables.source.open_regular", File)
    with pytest.raises(OSError, match="Input/output") as caught:
        convert.quantize_file(model, tmp_path / "m.gguf", Recipe("q8_0"))
    assert caught.value.filename == str(model)
    assert opened.tensors
    assert names_in(tmp_path) == [model.name]


# --- folders ---------------------------------------------------------------------------------------------------------


class Folder(Sink):
    """A folder with a file of bytes for each tensor, and a manifest."""

    name = "folder"
    folder = True
    takes = "everything"

    def refusal(self, layer):  # noqa: ARG002 - it takes everything
        return None

    def tensors(self, layer):
        return [Spec(layer.name, "", (), layer.scheme.n_bytes(int(np.prod(layer.shape)), layer.row_length))]

    def pieces(self, row):
        size = row.quantized.scheme.sizes(row.start, row.quantized.row_length)[0]
        yield Piece(row.name, size, row.quantized.data)

    def files(self, specs):
        return [OutFile(spec.name, b"", {spec.name: 0}, spec.n_bytes) for spec in specs]

    def finish(self, staging):
        (staging.out / MANIFEST).write_text(json.dumps({"files": sorted(path.name for path in staging.out.iterdir())}))


@pytest.mark.parametrize("exchange", [True, False])
def test_folders_are_exchanged_whole(model, tmp_path, monkeypatch, exchange):
    """A folder target appears whole, replaces one of ours whole, and never one with files of others."""
    save_file({"w": RNG.normal(size=(4, 64)).astype(np.float32)}, model)
    if not exchange:  # as where the system cannot
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    target = tmp_path / "out"
    for scheme in ("q4_0", "q8_0"):
        convert.convert(model, target, Folder(), Recipe(scheme))
        size = {"q4_0": 8 * 18, "q8_0": 8 * 34}[scheme]
        assert {path.name: path.stat().st_size for path in target.iterdir() if path.name != MANIFEST} == {"w": size}
        assert names_in(tmp_path) == ["model.safetensors", "out"]
    (target / "mine.txt").touch()
    with pytest.raises(FormatError, match="did not write"):
        convert.convert(model, target, Folder(), Recipe("q4_0"))
    assert names_in(target) == sorted([MANIFEST, "mine.txt", "w"])


def test_a_folder_that_was_being_exchanged_comes_back(tmp_path):
    """Killed between the two steps of an exchange, the old folder has its name again at the next start."""
    target = tmp_path / "out"
    left = writing.temporary_of(target)
    writing.remove(left)
    (left / "old").mkdir(parents=True)
    (left / "old" / "w").write_bytes(b"old")
    with staged(target):
        assert (target / "w").read_bytes() == b"old"
    assert names_in(tmp_path) == ["out"]


def test_exchanged_folders_are_not_taken_up(tmp_path):
    """Killed after the exchange, a run that is taken up does not take the old folder, which lies there, for its own."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "w").write_bytes(b"old!")
    specs, files = [Spec("w", "", (), 4)], [OutFile("w", b"", {"w": 0}, 4)]

    def made(left, data):
        with staged(target, "same") as run:
            run.plan(specs, files, "same", folder=True)
            n_kept = len(run.rows)
            if not n_kept:
                run.add({}, specs, [Piece("w", 0, np.frombuffer(data, np.uint8))])
            run.check_complete()
            writing.publish(run.out, target)
            if left is not None:
                shutil.copytree(run.folder, left)
        return n_kept

    killed = tmp_path / (writing._temporary_stem(target) + "999999999-00000000")
    assert made(killed, b"new1") == 0
    assert (killed / "exchanged" / "w").read_bytes() == b"old!"
    assert made(None, b"new2") == 0
    assert (target / "w").read_bytes() == b"new2"
    assert names_in(tmp_path) == ["out"]
