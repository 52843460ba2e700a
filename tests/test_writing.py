"""Files that appear whole or not at all: temporary files, what killed processes left, targets that cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.model_files import names_in

from aq2_pipeline.io.writing import files as writing
from aq2_pipeline.io.writing.files import replacing

KILLED = """
import os, signal, sys
from aq2_pipeline.io.writing.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(temporary, flush=True)
    sys.stdin.read()
"""


def _other_process(target, what):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", KILLED, str(target), what], text=True, **pipes)


@pytest.mark.parametrize("name", ["m.parquet", "[x] *.parquet", "é" * 127])
def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path, name):
    """`<target>.tmp-*` of dead processes is removed when the target is written again, that of living ones never."""
    target = tmp_path / name
    target.write_bytes(b"old")
    with _other_process(target, "killed") as killed:
        killed.communicate()
    [left] = set(names_in(tmp_path)) - {name}
    assert target.read_bytes() == b"old"
    assert left.startswith(f"{name}.tmp-" if len(name) < 100 else ".aq2-")
    assert ".tmp-" in left
    for unrelated in (f"{name[:9]}.tmp-1", "other" + left[-40:], "plain"):
        (tmp_path / unrelated).touch()
    kept = set(names_in(tmp_path)) - {left}
    with _other_process(target, "alive") as alive:
        theirs = Path(alive.stdout.readline().strip())
        with replacing(target) as first:
            first.write_bytes(b"new")
            with replacing(target) as second:  # as in another thread
                second.write_bytes(b"newer")
            assert {first.name, theirs.name} | kept == set(names_in(tmp_path))
        assert target.read_bytes() == b"new"
        alive.communicate("")
    assert target.read_bytes() == b"half"
    assert set(names_in(tmp_path)) == kept


def test_temporary_file_of_an_earlier_process_with_this_number(tmp_path):
    """In a container every run may have the same pid: a file with it that this process does not write is stale."""
    with replacing(tmp_path / "x") as temporary:
        temporary.write_bytes(b"new")
        stale = temporary.name[:-8] + "00000000"
        (tmp_path / stale).touch()
    with replacing(tmp_path / "x") as temporary:
        assert not (tmp_path / stale).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left"), LookupError()])
def test_temporary_file_is_removed(tmp_path, error):
    """Whatever ends the writing, the old file stays and no temporary one; a full disk names the target."""
    (tmp_path / "x").write_bytes(b"old")

    def fail():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    if isinstance(error, OSError):
        assert caught.value.filename == str(tmp_path / "x")
    assert names_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_target_is_replaced_with_the_usual_rights(tmp_path):
    """A new file has the rights that the umask gives; names of 255 bytes and symbolic links work."""
    long = tmp_path / ("é" * 127)
    (tmp_path / "plain").touch()
    with replacing(long) as temporary:
        temporary.write_bytes(b"new")
    assert long.stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to(long.name)
    with replacing(tmp_path / "link") as temporary:
        temporary.write_bytes(b"newer")
    assert long.read_bytes() == b"newer"
    assert (tmp_path / "link").is_symlink()


def test_targets_that_cannot_be(tmp_path):
    """A directory, a device and a missing directory are OSErrors that name the target."""
    for target in (tmp_path, Path("/dev/null"), tmp_path / "none" / "q"):
        with pytest.raises(OSError, match=r"no regular file|No such file") as caught, replacing(target):
            pass
        assert str(target) in str(caught.value)


def test_fsync_failure_keeps_the_old_file(tmp_path, monkeypatch):
    """An error of fsync is raised, and the old file stays."""

    def fail(_):
        raise OSError(5, "Input/output error")

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"), replacing(tmp_path / "x") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names_in(tmp_path) == ["x"]
