"""Each example is a program that asserts its claim: run as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_the_examples_are_all_here():
    """All of them exist; an empty folder would pass silently."""
    assert [path.stem[:2] for path in EXAMPLES] == [f"{k:02}" for k in range(1, 10)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_its_claims_hold(path, tmp_path):
    """It exits with 0, with warnings as errors, writes nothing where it runs, and prints something."""
    done = subprocess.run(
        [sys.executable, "-W", "error", path], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    """It has fewer than 60 lines."""
    assert len(path.read_text().splitlines()) < 60
