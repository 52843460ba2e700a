"""What was tried to break it: `python docs/reliability.py [--reports FOLDER]` writes docs/reliability.md.

The figures are those of reports in docs/measured, which other tools write with `--write-report FILE.json`; `--reports`
takes the reports of another folder there first. Which cases have tests is counted from the tests.
"""
# ruff: noqa: INP001 - a script

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MEASURED = ROOT / "docs" / "measured"


class Section(NamedTuple):
    """A heading, the report that its figures come from, the keys of it that are shown, and what they are."""

    title: str
    report: str
    keys: tuple[str, ...]
    command: str
    about: str


SECTIONS = (
    Section(
        "Property examples",
        "fuzz",
        ("values", "state"),
        "python -m tests.fuzz",
        "Hypothesis: columns of any type, slices, nulls, chunks and schemes, asked of every engine, singly (`values`) "
        "and in long series of calls (`state`); the bytes have to be the same.",
    ),
    Section(
        "Fuzzed files, and the worst of them",
        "fuzz",
        ("files",),
        "python -m tests.fuzz",
        "Files of every format with bytes changed, each read in a child with limits of memory and time. The slowest, "
        "and the one that took most memory, are in the table.",
    ),
    Section(
        "Crashes while a file is written",
        "crashes",
        (),
        "python -m tests.robustness.crashes",
        "`kill -9` at random moments over a good file: afterwards it is the old one or the new one, never `lost`.",
    ),
    Section(
        "Memory against size",
        "files",
        (),
        "python -m tests.benchmarks.files",
        "`aq2 quantize` of models of 1, 3 and 10 GB under `ulimit -d` 2 GiB; medians of runs and of their parts, each "
        "alone: reading the file, the kernel over as many weights, writing as many bytes and fsync. A command takes a "
        "second to start, and sums errors, which no part does: the rate is lower for small files, and where disks are "
        "fast. In another run the same 1.3 GB were written in 1.5 s, and the rates at 10 GB were 0.56, 0.91 and 0.72.",
    ),
    Section(
        "Time to interrupt",
        "interrupts",
        (),
        "python -m tests.robustness.interrupts",
        "From the signal to the end of the call, and files left behind. Of the command, `exit 0` is a job that was "
        "done before the signal came, `exit -2` and `exit -15` a signal that came while Python itself was starting.",
    ),
    Section(
        "Soak",
        "soak",
        (),
        "python -m tests.soak --minutes 60",
        "Random work on all engines for long: memory, descriptors and temporary files have to stay flat.",
    ),
    Section(
        "Versions",
        "versions",
        (),
        "tests/versions.sh",
        "The oldest versions that pyproject.toml allows and the newest, each in an environment of its own.",
    ),
)

#: What the list of cases has: prefix -> what it is called, and how many there are.
KINDS = {"": ("inputs", 88), "F": ("faults", 14), "L": ("loads", 6)}

#: Cases that are held by tests or tools that do not have their number in the name.
ELSEWHERE = {
    "61": ["test_reference.py", "test_block_formats.py"],
    "83": ["test_targets_that_cannot_be", "test_fsync_failure_keeps_the_old_file"],
    "84": ["test_same_input_gives_the_same_file", "test_written_safetensors_are_read_by_the_library"],
    "86": ["test_model_without_floats_is_an_error"],
    "87": ["fuzz/__main__.py"],
    "88": ["test_a_bad_file_is_a_format_error"],
    "F10": ["test_polars_is_refused_in_a_child_of_a_process_that_used_it", "test_python_works_in_every_child"],
    "F14": ["versions.sh"],
    "L1": ["benchmarks/files.py"],
    "L4": ["soak.py", "soak/__main__.py"],
}

#: Why a case has none.
REASONS = {
    "F13": "it is about clusters, which later work brings",
    "L6": "it is about clusters, which later work brings",
}

_ANY_ENGINE = re.compile(r"\b(agreed|decoded|everywhere|ENGINES|BY_NAME|refused_everywhere)\b")
#: Surface -> what a test says that asks it.
SURFACES = {
    "Polars": re.compile(r"\.aq2\b|aq2_pipeline\.polars|polars-(eager|lazy|streaming)"),
    "DuckDB, Arrow": re.compile(r"\bconnected\(|\bregister\(|con\.(sql|execute)\("),
    "DuckDB, native": re.compile(r"\bPATHS\b|\"native\"|duckdb[-_]native"),
    "pyarrow": re.compile(r"call_function\(|register_pyarrow"),
    "Python": re.compile(r"aq2_pipeline\.(de)?quantize|aq2_pipeline\.(weight_stats|quantization_error)|\bquantize\("),
    "`ArrowQuantV2`": re.compile(r"\bArrowQuantV2\b"),
    "files": re.compile(r"\b(scan|sink|open)_(\w+)\(|open_source|\b(de)?quantize_file\(|read_header"),
    "command": re.compile(r"aq2_pipeline\.cli|\bcli\b|CliRunner|\b_command\("),
}
_ENGINES = list(SURFACES)[:6]


def numbers(name: str, docstring: str) -> set[str]:
    """Return the cases that a test is about, by its name and the first words of its docstring."""
    found = set()
    for prefix, pattern in {"": r"case_([0-9_]+)", "F": r"fault_05_([0-9]+)", "L": r"load_([0-9]+)"}.items():
        match = re.search(pattern, name)
        if match:
            found |= {f"{prefix}{int(number)}" for number in match[1].strip("_").split("_") if number}
    told = re.match(r"Cases? (\d+)(?:(, | and | to )(\d+))?", docstring)
    if told:
        first, how, last = told.groups()
        found |= {str(k) for k in range(int(first), int(last) + 1)} if how == " to " else {first, last or first}
    return found


class Tests:
    """The functions of a file of tests, with the text of all local ones that each uses."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        tree, lines = ast.parse(text), text.split("\n")
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        self.nodes = {node.name: node for node in functions}
        # Not `ast.get_source_segment`, which splits the whole text anew for each.
        self.texts = {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in functions}
        self.harness = {
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == "robustness.harness"
            for alias in node.names
        }

    def reached(self, name: str) -> str:
        """Return the text of a test, of its fixtures and of what it calls in its file."""
        seen, left = set(), [name]
        while left:
            if (here := left.pop()) not in seen:
                seen.add(here)
                left += set(re.findall(r"\w+", self.texts[here])) & self.texts.keys()
        return "\n".join(self.texts[each] for each in sorted(seen))

    def surfaces(self, name: str) -> set[str]:
        """Return what a test asks."""
        text = self.reached(name)
        found = {surface for surface, pattern in SURFACES.items() if pattern.search(text)}
        if _ANY_ENGINE.search(text) or ("refused" in self.harness and "refused(" in text):
            found |= set(_ENGINES)
        return found


def counted() -> dict[str, set[str]]:
    """Return case -> the surfaces that its tests ask, for each case that has a test."""
    found: dict[str, set[str]] = {}
    there: set[str] = set()
    for path in sorted((ROOT / "tests").rglob("*")):
        there.add(path.relative_to(ROOT / "tests").as_posix())
        if not re.fullmatch(r"test_\w+\.py", path.name):
            continue
        tests = Tests(path)
        there |= tests.nodes.keys()
        for name, node in tests.nodes.items():
            for number in numbers(name, ast.get_docstring(node) or "") if name.startswith("test_") else ():
                found.setdefault(number, set()).update(tests.surfaces(name))
    for number in {path.name.split("-")[0] for path in (ROOT / "tests" / "corpus" / "bad").iterdir()}:
        if number.isdecimal():
            found.setdefault(str(int(number)), set()).add("files")
    for number, names in ELSEWHERE.items():
        if there & set(names):
            found.setdefault(number, set())
    return found


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def cases() -> str:
    """Return the section of the cases."""
    found = counted()
    text = "## Cases\n\nWhich cases of the list have tests, counted from these by `python docs/reliability.py`.\n\n"
    rows = []
    for prefix, (what, n) in KINDS.items():
        every = [f"{prefix}{k}" for k in range(1, n + 1)]
        missing = [number for number in every if number not in found]
        told = [f"{number} ({REASONS[number]})" if number in REASONS else number for number in missing]
        rows.append([what, n, n - len(missing), ", ".join(told) or "none"])
    text += table(["what", "on the list", "have a test", "no test yet"], rows)
    text += "\nA case of the inputs counts for each surface that its tests ask.\n\n"
    inputs = [surfaces for number, surfaces in found.items() if number.isdecimal()]
    return text + table(["surface", "cases"], [[each, sum(each in held for held in inputs)] for each in SURFACES])


def figures(value: Any) -> str:
    """Return a report's figures whatever it calls them: lines for single ones, a table where each label has some."""
    plain = {key: each for key, each in value.items() if not isinstance(each, dict)}
    nested = {key: each for key, each in value.items() if isinstance(each, dict)}
    text = "".join(f"- {spelled(key)}: {shown(each)}\n" for key, each in plain.items())
    rows = {
        key: each for key, each in nested.items() if not any(isinstance(cell, dict) and cell for cell in each.values())
    }
    if rows:
        names = list(dict.fromkeys(name for each in rows.values() for name in each))
        lines = [[spelled(key), *(shown(each.get(name, "-")) for name in names)] for key, each in rows.items()]
        text += ("\n" if text else "") + table(["", *map(spelled, names)], lines)
    for key, each in nested.items():
        if key not in rows:
            text += ("\n" if text else "") + f"{spelled(key)}:\n\n{figures(each)}"
    return text


def spelled(key: str) -> str:
    """Return a key as a reader has it."""
    return str(key).replace("_", " ")


def shown(value: Any) -> str:
    """Return a figure; of numbers, from which to which, of another list, how many, of an empty mapping nothing."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, list):
        numbers_only = value and all(isinstance(each, int | float) for each in value)
        return " to ".join(map(shown, value)) if numbers_only else str(len(value))
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 10**6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value == {} else str(value)


def section(each: Section, reports: dict[str, dict[str, Any]]) -> str:
    """Return a section; a report that is not there is said so."""
    text = f"## {each.title}\n\n{each.about}\n\n"
    report = reports.get(each.report)
    if report is None or (each.keys and not any(key in report for key in each.keys)):
        return text + f"Not measured yet: `{each.command} --write-report docs/measured/{each.report}.json`.\n"
    chosen = {key: report[key] for key in each.keys or report if key in report and key != "command"}
    command = report.get("command", each.command).removesuffix(" --write-report")
    return text + f"`{command} --write-report docs/measured/{each.report}.json`\n\n{figures(chosen)}"


def page(folder: Path = MEASURED) -> str:
    """Return the page."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    first = (
        "# Reliability\n\n<!-- Written by docs/reliability.py from docs/measured; edit that. -->\n\n"
        "What was tried to break this package, on every surface, and what it took. What is promised is in "
        "[SECURITY.md](../SECURITY.md). A figure has the command that measured it beside it.\n"
    )
    return "\n".join([first, cases(), *(section(each, reports) for each in SECTIONS)])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, help="take the reports of this folder into docs/measured first")
    given = parser.parse_args()
    MEASURED.mkdir(exist_ok=True)
    known = {each.report for each in SECTIONS}
    for path in sorted(given.reports.glob("*.json")) if given.reports else ():
        if path.stem not in known:
            parser.error(f"{path}: no section shows it; the reports are {', '.join(sorted(known))}")
        shutil.copyfile(path, MEASURED / path.name)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
