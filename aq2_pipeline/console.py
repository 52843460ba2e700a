"""What the command prints: tables, JSON and progress, for a terminal or for another program."""

from __future__ import annotations

import itertools
import json
import math
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text
import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Tell = Callable[[str, int, str | None], None]

__all__ = ["figure", "print_json", "print_table", "progress", "shown", "size_of", "size_text"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@contextmanager
def progress(total: int, *, quiet: bool, unit: str = "bytes") -> Iterator[Tell]:
    """Give a function that tells how far the work is: the layer's name, what is done more, and a line about it.

    A bar with rate and time left on a terminal, the lines elsewhere, both on the error stream.
    """
    console = rich.console.Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif not console.is_terminal:
        yield lambda _name, _more, line: None if line is None else typer.echo(line, err=True)
    else:
        columns: list[rich.progress.ProgressColumn] = [
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
        ]
        if unit == "bytes":
            columns += [rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()]
        columns += [rich.progress.TimeRemainingColumn()]
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(unit, total=total)
            yield lambda name, more, _line: bar.update(task, advance=more, description=_name_of(name))


def _name_of(name: str) -> str:
    """Return a name that fits beside a bar, as text and not as markup."""
    told = shown(name)
    return rich.text.Text(told if len(told) <= 40 else "..." + told[-37:]).markup  # noqa: PLR2004


def print_json(value: dict[str, Any]) -> None:
    """Print one object: a line for each of its values, and for each object of a list, such as a layer."""
    encoded = json.JSONEncoder(ensure_ascii=False).encode  # with `indent` it is five times slower
    lines = []
    for name, held in value.items():
        many = isinstance(held, list) and held and isinstance(held[0], dict)
        told = ",\n    ".join(map(encoded, held)) if many else ""
        lines.append(f"  {encoded(name)}: " + (f"[\n    {told}\n  ]" if many else encoded(held)))
    text = "{\n" + ",\n".join(lines) + "\n}"
    typer.echo(text.encode(errors="backslashreplace").decode())  # of names that are not UTF-8; JSON spells it so, too


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table on a terminal, tab-separated lines elsewhere, so that `cut` and `sort` take them."""
    columns = list(rows[0]) if rows else []
    cells = ([_cell(row[column]) for column in columns] for row in rows)
    console = rich.console.Console()
    if not console.is_terminal:
        typer.echo("\n".join(map("\t".join, itertools.chain([columns], cells))))
        return
    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    for k, column in enumerate(columns):  # names fold where the terminal is narrow, figures stay whole
        numbers = any(isinstance(row[column], int | float) for row in rows)
        side: rich.console.JustifyMethod = "right" if numbers else "left"
        header = column.replace("_", "\n")
        table.add_column(header, justify=side, overflow="fold", no_wrap=numbers, min_width=4 if k else 12)
    for line in cells:
        table.add_row(*map(rich.text.Text, line))  # names are data: no markup
    console.print(table, crop=False)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {figure(one)}".strip() for name, one in value.items())
    if isinstance(value, tuple):
        return ", ".join(value)
    return figure(value) if isinstance(value, float) else shown(str(value))


def shown(name: str) -> str:
    """Return a name as a terminal may show it: control characters escaped."""
    return name if name.isprintable() else repr(name)


def figure(value: float | None) -> str:
    """Return a figure in four digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def size_text(n_bytes: int) -> str:
    """Return a size as people read it."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"  # noqa: PLR2004


def size_of(text: str | None) -> int | None:
    """Return the bytes that ``1GB``, ``512MiB`` or a number say."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?i?)b?\s*", text, re.IGNORECASE)
    if not found or found[2].lower() not in _UNITS:
        msg = f"{text!r} is no size; say e.g. 1GB or 800MiB"
        raise typer.BadParameter(msg)
    return int(float(found[1]) * _UNITS[found[2].lower()])


def is_terminal() -> bool:
    """Whether the output is read by a person."""
    return rich.console.Console().is_terminal
