"""docs/reliability.py: the page is what the reports and the tests say, and shows any report that a tool writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

REPORTS = {
    "crashes": {
        "command": "python -m tests.robustness.crashes --tries 20 --write-report",
        "targets": {"q.parquet": {"old": 12, "new": 8, "lost": 0}, "m.gguf": {"old": 20, "new": 0, "lost": 0}},
    },
    "fuzz": {
        "command": "python -m tests.fuzz --minutes 2 --seed 7",
        "versions": {"numpy": "2.4.6"},
        "files": {"seconds": 60.04, "figures": {"gguf": {"inputs": 123456, "slowest_seconds": 0.25, "crashes": []}}},
    },
    "soak": {"command": "python -m tests.soak --minutes 60 --write-report", "minutes": 60, "wrong_rows": 0},
}


@pytest.fixture(scope="module")
def reliability():
    """Return docs/reliability.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_reliability", DOCS / "reliability.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_fresh(reliability):
    """What docs/reliability.py would write is what is there."""
    assert reliability.PAGE.read_text() == reliability.page(), "run: python docs/reliability.py"


def test_every_report_is_shown_with_its_command(reliability, tmp_path):
    """A table has a row a label and a column a figure; lists are counted; single figures are lines."""
    for name, report in REPORTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    page = reliability.page(tmp_path)
    for line in (
        "`python -m tests.robustness.crashes --tries 20 --write-report docs/measured/crashes.json`",
        "|  | old | new | lost |",
        "| q.parquet | 12 | 8 | 0 |",
        "`python -m tests.fuzz --minutes 2 --seed 7 --write-report docs/measured/fuzz.json`",
        "- seconds: 60.04",
        "|  | inputs | slowest seconds | crashes |",
        "| gguf | 123,456 | 0.25 | 0 |",
        "- wrong rows: 0",
    ):
        assert line in page.splitlines()


def test_what_was_not_measured_is_said_so(reliability, tmp_path):
    """A section without a report, or whose part of it is missing, has the command that would measure it."""
    assert reliability.page(tmp_path).count("Not measured yet: `") == len(reliability.SECTIONS)
    (tmp_path / "fuzz.json").write_text(json.dumps(REPORTS["fuzz"]))
    page = reliability.page(tmp_path)
    assert "Not measured yet: `python -m tests.fuzz --write-report docs/measured/fuzz.json`" in page
    assert page.count("Not measured yet: `") == len(reliability.SECTIONS) - 1


@pytest.mark.parametrize(
    ("name", "docstring", "found"),
    [
        ("test_case_07_subnormals", "", {"7"}),
        ("test_case_31_32_every_layout", "", {"31", "32"}),
        ("test_fault_05_01_kill", "", {"F1"}),
        ("test_load_03_layer", "", {"L3"}),
        ("test_templates", "Case 79: a chat template.", {"79"}),
        ("test_entries", "Cases 73 to 75: lengths.", {"73", "74", "75"}),
        ("test_headers", "Cases 71 and 72: magic.", {"71", "72"}),
        ("test_cases", "In any case, 5 are 5.", set()),
    ],
)
def test_a_test_says_which_cases_it_holds(reliability, name, docstring, found):
    """Numbers are in a test's name, or first in its docstring."""
    assert reliability.numbers(name, docstring) == found


def test_surfaces_are_those_that_a_test_asks(reliability):
    """A test that asks every engine counts for all six; one of files for these; one that only Python runs for it."""
    found = reliability.counted()
    assert set(list(reliability.SURFACES)[:6]) <= found["1"]
    assert "files" in found["62"]
    assert "Polars" not in found["62"]
    assert "F13" not in found
