"""The command `aq2`: inspect, compare, quantize and decode model files.

Exit codes: 0 done, 1 a bad file, scheme or disk (one message, no traceback), 2 a
wrong command line, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from aq2_pipeline import __version__, policy
from aq2_pipeline import schemes as known_schemes
from aq2_pipeline.errors import Aq2Error

try:
    import rich.box
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
    import typer
    import typer.core
except ImportError as error:  # one line, because the command's entry point imports this module
    msg = f"aq2: the command needs the extra [cli]: pip install 'aq2-pipeline[cli]' ({error})"
    raise SystemExit(msg) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

    from aq2_pipeline.comparing import ComparedLayer
    from aq2_pipeline.io.convert import LayerReport, Report

__all__ = ["app", "main"]

INTERRUPTED = 130
TERMINATED = 143
#: What `compare` tries unless told otherwise.
_COMPARED = "int2_g32_asym,int3_g64_asym,int4_g128,int4_g64,int4_g64_asym,int6_g64,int8_g128"

Result = TypeVar("Result")


class _Group(typer.core.TyperGroup):
    """The commands; what they raise becomes a message and an exit code, in one place."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Aq2Error, ImportError) as error:
            typer.echo(f"aq2: {error}", err=True)
        except BrokenPipeError:  # `aq2 inspect m | head`: nobody reads on, and the last flush must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            reason = error.strerror or str(error)
            typer.echo(f"aq2: {error.filename!r}: {reason}" if error.filename else f"aq2: {reason}", err=True)
        except KeyboardInterrupt:
            typer.echo("aq2: interrupted, nothing written", err=True)
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
Mode = StrEnum("Mode", [(name, name) for name in (*policy.POLICIES, *policy.ALIASES)])  # type: ignore[misc]

Source = Annotated[Path, typer.Argument(show_default=False)]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; the result does not depend on it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def main() -> None:
    """Run the command; a termination signal unwinds, so that no temporary file stays."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aq2 {__version__}")
        raise typer.Exit


@app.callback()
def aq2(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Quantize the weights of neural networks, as Polars and DuckDB do it with the same bytes."""


@app.command()
def inspect(
    file: Source,
    stats: Annotated[bool, typer.Option(help="Read the weights for their statistics.")] = True,
    as_json: Json = False,
) -> None:
    """List the layers of a safetensors file, or of a Parquet file of quantized layers."""
    from aq2_pipeline.io import listing  # noqa: PLC0415 - heavy

    title, rows = listing.inspect_file(file, stats=stats)
    if as_json:
        _print_json({"file": str(file), "about": title, "layers": rows})
    else:
        _print_table(title, rows)


@app.command()
def quantize(
    source: Source,
    target: Source,
    scheme: Annotated[
        str | None, typer.Option(help="One scheme for every float tensor, e.g. int4_g64_asym.", show_default=False)
    ] = None,
    policy_name: Annotated[
        Mode | None, typer.Option("--policy", help="A policy that chooses by name, rank and size; default diffusion.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="What the policy is asked for; default 4.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Quantize a safetensors file to a Parquet file."""
    from aq2_pipeline.io.convert import Recipe, quantize_file  # noqa: PLC0415 - heavy
    from aq2_pipeline.io.opening import open_source  # noqa: PLC0415

    if scheme is not None and (policy_name is not None or bits is not None):
        msg = "--scheme is for every tensor: leave out --policy and --bits"
        raise typer.BadParameter(msg)
    if scheme is not None and scheme.isdecimal():  # a shell's words have no types: 4 is an integer here
        scheme = known_schemes.parse(int(scheme)).name
    recipe = Recipe(scheme, policy_name.value if policy_name else policy.DEFAULT_MODE, 4 if bits is None else bits)
    n_layers = len(open_source(source).tensors)
    report = _with_progress(
        n_layers, as_json, lambda tell: quantize_file(source, target, recipe, threads=threads, progress=tell)
    )
    if as_json:
        _print_json(report.as_json())
        return
    _print_left_alone(report)
    bits_per_weight = _figure(report.bits_per_weight)
    typer.echo(
        f"{source} -> {target} ({report.recipe}): {len(report.quantized)} of {len(report.layers)} layers quantized, "
        f"{bits_per_weight} bits per weight, {_size(source.stat().st_size)} -> {_size(target.stat().st_size)}, "
        f"SQNR {_figure(report.sqnr_db)} dB"
    )


@app.command()
def dequantize(source: Source, target: Source, threads: Threads = None, as_json: Json = False) -> None:
    """Decode a Parquet file of quantized layers to float32 in a safetensors file."""
    from aq2_pipeline.io.convert import dequantize_file  # noqa: PLC0415 - heavy
    from aq2_pipeline.io.parquet import QuantizedFile  # noqa: PLC0415

    with QuantizedFile(source) as file:
        n_layers = len(file.layers)
    report = _with_progress(
        n_layers, as_json, lambda tell: dequantize_file(source, target, threads=threads, progress=tell)
    )
    if as_json:
        _print_json(report.as_json())
        return
    _print_left_alone(report)
    size = _size(target.stat().st_size)
    typer.echo(f"{source} -> {target}: {len(report.quantized)} of {len(report.layers)} layers decoded, {size}")


@app.command()
def schemes(as_json: Json = False) -> None:
    """List schemes: bits of a code, bits of a weight with its scales, methods, and what a real model lost.

    A line is one scheme of a family; `--json` has other group sizes, too. Bits a weight are those of a 4096 x 4096
    matrix. dB are the SQNR of six matrices of all-MiniLM-L6-v2, by each method.
    """
    from aq2_pipeline.io import listing  # noqa: PLC0415 - heavy

    if as_json:
        _print_json({"schemes": listing.list_schemes()})
    elif rich.console.Console().is_terminal:
        for title, rows in listing.sections():
            _print_table(title, rows)
        typer.echo("g<n>, channel or tensor may stand for g128.")
    else:
        _print_table("", listing.list_families())


@app.command()
def compare(
    file: Source,
    schemes: Annotated[str, typer.Option(help="Schemes, separated by commas; bits are a scheme, too.")] = _COMPARED,
    layers: Annotated[str, typer.Option(help="Only layers whose names match the pattern, e.g. '*attention*'.")] = "*",
    vectors: Annotated[
        bool, typer.Option(help="Compare float tensors of fewer than two axes too, such as norms and biases.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the table to a .parquet or .csv file.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw error against bits to a .svg, .png or .pdf file.", show_default=False)
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare what schemes take and lose on the float tensors of two or more axes of a safetensors file.

    Figures are pooled over the layers that all schemes take; nothing is decoded.
    """
    from aq2_pipeline import comparing  # noqa: PLC0415 - heavy
    from aq2_pipeline import picture as pictures  # noqa: PLC0415
    from aq2_pipeline.io.opening import open_source  # noqa: PLC0415

    if output is not None:
        comparing.check_table_name(output)
    if picture is not None:
        pictures.check_picture_name(picture)
    words = [word.strip() for word in schemes.split(",") if word.strip()]
    wanted = [int(word) if word.isdecimal() else word for word in words]
    n_layers = len(comparing.layers_of(open_source(file), layers, vectors=vectors))
    table = _with_progress(
        n_layers,
        as_json,
        lambda tell: comparing.compare(file, wanted, layers=layers, vectors=vectors, threads=threads, progress=tell),
        _compared_line,
    )
    n_compared, n_weights = (max(table[name].to_list()) for name in ("n_layers", "n_weights"))
    about = f"{_shown(file.name)}: {n_compared} of {n_layers} layers, {n_weights:,} weights"
    if output is not None:
        comparing.write_table(table, output)
    if picture is not None:
        pictures.draw(table, picture, about)
    if as_json:
        _print_json({"file": str(file), "about": about, "schemes": comparing.as_json(table)})
        return
    _print_refused(table)
    _print_table(about, table.with_columns(table["refused"].list.len()).drop("reason").to_dicts())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the model and the Parquet file go.")] = Path("aq2-demo"),
) -> None:
    """Quantize a real model with Polars, DuckDB and ArrowQuantV2, and compare the bytes."""
    from aq2_pipeline import demo as script  # noqa: PLC0415 - heavy

    script.run(out, typer.echo)


def _with_progress(
    n_layers: int,
    quiet: bool,
    work: Callable[[Callable[[Any], None]], Result],
    line: Callable[[Any], str] | None = None,
) -> Result:
    """Run with a bar on a terminal, a line a layer elsewhere, both on the error stream."""
    told = line or _line
    console = rich.console.Console(stderr=True)
    if quiet:
        return work(lambda _: None)
    if not console.is_terminal:
        return work(lambda layer: typer.echo(told(layer), err=True))
    with rich.progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task("layers", total=n_layers)
        return work(lambda layer: bar.update(task, advance=1, description=rich.text.Text(_shown(layer.name)).plain))


def _line(layer: LayerReport) -> str:
    figures = (
        "" if layer.sqnr_db is None else f" {_figure(layer.bits_per_weight)} bits, SQNR {_figure(layer.sqnr_db)} dB"
    )
    return f"{_shown(layer.name)}: {layer.scheme or 'left out'}{figures}"


def _compared_line(layer: ComparedLayer) -> str:
    figures = (f"{name} {_figure(sqnr)}" for name, sqnr in layer.sqnr_db.items())
    return f"{_shown(layer.name)}: SQNR {', '.join(figures)} dB"


def _print_refused(table: pl.DataFrame) -> None:
    """Say on the error stream which layers a scheme could not take; the table counts them."""
    for row in table.filter(table["refused"].list.len() > 0).iter_rows(named=True):
        names = ", ".join(map(_shown, row["refused"]))
        typer.echo(f"{row['scheme']} refuses {len(row['refused'])} layers: {names}: {row['reason']}", err=True)


def _print_left_alone(report: Report) -> None:
    for layer in report.layers:
        if layer.left_alone is not None:
            kept = f" kept as {layer.scheme}" if layer.scheme else ""
            typer.echo(f"left alone: {_shown(layer.name)} {layer.shape}{kept}: {layer.left_alone}")


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
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
        return _shown(value)
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(figure)}".strip() for name, figure in value.items())
    if isinstance(value, tuple):
        return ", ".join(value)
    return _figure(value) if isinstance(value, float) else _shown(str(value))


def _shown(name: str) -> str:
    """Return a name as a terminal may show it: control characters escaped."""
    return name if name.isprintable() else repr(name)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"  # noqa: PLR2004
