"""The command `aq2`: inspect, quantize, decode, convert and compare model files of any format.

Exit codes: 0 done, 1 a bad file, scheme or disk (one message, no traceback), 2 a
wrong command line, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from aq2_pipeline import __version__, policy, signals
from aq2_pipeline import schemes as known_schemes
from aq2_pipeline.errors import Aq2Error

try:
    import typer
    import typer.core

    from aq2_pipeline import console
except ImportError as error:  # one line, because the command's entry point imports this module
    msg = f"aq2: the command needs the extra [cli]: pip install 'aq2-pipeline[cli]' ({error})"
    raise SystemExit(msg) from None

if TYPE_CHECKING:
    import polars as pl

    from aq2_pipeline.comparing import ComparedLayer
    from aq2_pipeline.io.recipes import Recipe
    from aq2_pipeline.io.reports import LayerReport, Report

__all__ = ["app", "main"]

INTERRUPTED = 130
#: What `compare` tries unless told otherwise.
_COMPARED = "int2_g32_asym,int3_g64_asym,int4_g128,int4_g64,int4_g64_asym,int6_g64,int8_g128"


class _Group(typer.core.TyperGroup):
    """The commands; what they raise becomes a message and an exit code, in one place."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Aq2Error, ImportError) as error:
            typer.echo(f"aq2: {error}", err=True)
        except MemoryError as error:
            typer.echo(f"aq2: {str(error) or 'out of memory'}", err=True)
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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
To = Annotated[str | None, typer.Option("--to", help="The target's format, if its name does not say it.")]
Memory = Annotated[str | None, typer.Option(help="The memory that the process may take, e.g. 1GB.")]
Resume = Annotated[bool, typer.Option("--resume", help="Take up a run of the same that was killed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and how large; write nothing.")]
ConfigFrom = Annotated[
    Path | None,
    typer.Option(help="The folder, or GGUF file, whose configuration goes along; default the source's own."),
]
ScaleDtype = Annotated[str | None, typer.Option(help="Of scales, in a folder: F32, F16 or BF16; default F32.")]
Compression = Annotated[str | None, typer.Option(help="Of a Parquet file: lz4, snappy or zstd; default none.")]


def main() -> None:
    """Run the command; signals that stop it unwind, so that no temporary file stays."""
    atexit.register(_leave_uncollected)
    with signals.stopping():
        app()


def _leave_uncollected() -> None:
    """Spare what ends with the process the collector, which takes half a second to look at it.

    But DuckDB's binding counts its objects when it is unloaded, and complains of those not collected.
    """
    if "duckdb" not in sys.modules:
        gc.freeze()


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
    metadata: Annotated[bool, typer.Option("--metadata", help="Print the model's own metadata too.")] = False,
    as_json: Json = False,
) -> None:
    """List the layers of a model: safetensors, GGUF, ONNX, NPZ, Parquet, a file, a folder of shards or their index."""
    from aq2_pipeline.io import listing  # noqa: PLC0415 - heavy

    title, rows, about = listing.inspect_file(file, stats=stats)
    if as_json:
        found = {"metadata": about} if metadata else {}
        console.print_json({"file": str(file), "about": title, **found, "layers": rows})
        return
    if metadata:
        for name, value in about.items():
            typer.echo(f"{console.shown(name)}: {console.shown(str(value))}")
    console.print_table(title, rows)


@app.command()
def quantize(
    source: Source,
    target: Source,
    scheme: Annotated[
        str | None,
        typer.Option(help="One scheme for every float tensor of two or more axes, e.g. q4_k.", show_default=False),
    ] = None,
    policy_name: Annotated[
        Mode | None, typer.Option("--policy", help="A policy that chooses by name, rank and size; default diffusion.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="What the policy is asked for; default 4.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="pattern=scheme or pattern=keep, for layers or modules by name; the first that fits counts."),
    ] = None,
    to: To = None,
    config_from: ConfigFrom = None,
    scale_dtype: ScaleDtype = None,
    compression: Compression = None,
    memory: Memory = None,
    threads: Threads = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to Parquet, GGUF, compressed-tensors or MLX, or decoded again to safetensors."""
    from aq2_pipeline.io.recipes import Recipe, parse_rule  # noqa: PLC0415 - heavy

    if scheme is not None and (policy_name is not None or bits is not None):
        msg = "--scheme is for every tensor: leave out --policy and --bits"
        raise typer.BadParameter(msg)
    if scheme is not None and scheme.isdecimal():  # a shell's words have no types: 4 is an integer here
        scheme = known_schemes.parse(int(scheme)).name
    mode = policy_name.value if policy_name else policy.DEFAULT_MODE
    rules = tuple(parse_rule(text) for text in rule or ())
    recipe = Recipe(scheme, mode, 4 if bits is None else bits, rules)
    given = {"to": to, "config_from": config_from, "scale_dtype": scale_dtype, "compression": compression}
    _run(source, target, recipe, given, memory, threads, resume, dry_run, as_json)


@app.command()
def dequantize(
    source: Source,
    target: Source,
    dtype: Annotated[str | None, typer.Option(help="F32, F16 or BF16; default that of each layer's source.")] = None,
    memory: Memory = None,
    threads: Threads = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Decode quantized layers to a safetensors file."""
    given = {"to": "safetensors", "dtype": dtype}
    _run(source, target, None, given, memory, threads, resume, dry_run, as_json)


@app.command()
def convert(
    source: Source,
    target: Source,
    to: To = None,
    config_from: ConfigFrom = None,
    compression: Compression = None,
    memory: Memory = None,
    threads: Threads = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a model in another format, every layer as it is."""
    given = {"to": to, "config_from": config_from, "compression": compression}
    _run(source, target, None, given, memory, threads, resume, dry_run, as_json)


@app.command()
def diff(
    first: Source,
    second: Source,
    layers: Annotated[str, typer.Option(help="Only layers whose names match the pattern.")] = "*",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare two models layer by layer, quantized or not, of any formats; the figures are of decoded weights."""
    from aq2_pipeline import differing  # noqa: PLC0415 - heavy

    total = differing.size_of(first, layers)
    with console.progress(total, quiet=as_json) as tell:
        table = differing.diff(
            first, second, layers=layers, threads=threads, progress=lambda name, n: tell(name, n, None)
        )
    if as_json:
        console.print_json({"files": [str(first), str(second)], **differing.as_json(table)})
        return
    console.print_table(f"{first} and {second}", table.to_dicts())
    typer.echo(differing.summary(table))


@app.command()
def schemes(as_json: Json = False) -> None:
    """List schemes: bits of a code, bits of a weight with its scales, methods, and what a real model lost.

    A line is one scheme of a family; `--json` has other group sizes, too. Bits a weight are those of a 4096 x 4096
    matrix. dB are the SQNR of six matrices of all-MiniLM-L6-v2, by each method.
    """
    from aq2_pipeline.io import listing  # noqa: PLC0415 - heavy

    if as_json:
        console.print_json({"schemes": listing.list_schemes()})
    elif console.is_terminal():
        for title, rows in listing.sections():
            console.print_table(title, rows)
        typer.echo("g<n>, channel or tensor may stand for g128.")
    else:
        console.print_table("", listing.list_families())


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
    """Compare what schemes take and lose on the float tensors of two or more axes of a model.

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
    with console.progress(n_layers, quiet=as_json, unit="layers") as tell:
        table = comparing.compare(
            file,
            wanted,
            layers=layers,
            vectors=vectors,
            threads=threads,
            progress=lambda layer: tell(layer.name, 1, _compared_line(layer)),
        )
    n_compared, n_weights = (max(table[name].to_list()) for name in ("n_layers", "n_weights"))
    about = f"{console.shown(file.name)}: {n_compared} of {n_layers} layers, {n_weights:,} weights"
    if output is not None:
        comparing.write_table(table, output)
    if picture is not None:
        pictures.draw(table, picture, about)
    if as_json:
        console.print_json({"file": str(file), "about": about, "schemes": comparing.as_json(table)})
        return
    _print_refused(table)
    console.print_table(about, table.with_columns(table["refused"].list.len()).drop("reason").to_dicts())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the model and the Parquet file go.")] = Path("aq2-demo"),
) -> None:
    """Quantize a real model with Polars, DuckDB and ArrowQuantV2, and compare the bytes."""
    from aq2_pipeline import demo as script  # noqa: PLC0415 - heavy

    script.run(out, typer.echo)


def _run(
    source: Path,
    target: Path,
    recipe: Recipe | None,
    given: dict[str, Any],
    memory: str | None,
    threads: int | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a model to a target, with progress and a summary."""
    from aq2_pipeline.io import convert  # noqa: PLC0415 - heavy
    from aq2_pipeline.io.opening import open_source  # noqa: PLC0415
    from aq2_pipeline.io.targets import Options, sink_for, target_for  # noqa: PLC0415

    limit = console.size_of(memory)
    model = open_source(source)
    sink = sink_for(target_for(target, given.pop("to")), Options(model, str(recipe or ""), **given))
    if dry_run:
        report = convert.dry_run(model, sink, recipe)
    else:
        total = sum(tensor.n_bytes for tensor in model.tensors)
        with console.progress(total, quiet=as_json) as tell:
            report = convert.convert(
                model,
                target,
                sink,
                recipe,
                memory=limit,
                threads=threads,
                resume=resume,
                progress=lambda name, n, layer: tell(name, n, None if layer is None else _line(layer)),
            )
    if as_json:
        console.print_json(report.as_json())
    else:
        _print_report(report, source, target, quantized=recipe is not None)


def _line(layer: LayerReport) -> str:
    figures = ""
    if layer.sqnr_db is not None:
        figures = f" {console.figure(layer.bits_per_weight)} bits, SQNR {console.figure(layer.sqnr_db)} dB"
    return f"{console.shown(layer.name)}: {layer.scheme or layer.dtype}{figures}"


def _compared_line(layer: ComparedLayer) -> str:
    figures = (f"{name} {console.figure(sqnr)}" for name, sqnr in layer.sqnr_db.items())
    return f"{console.shown(layer.name)}: SQNR {', '.join(figures)} dB"


def _print_refused(table: pl.DataFrame) -> None:
    """Say on the error stream which layers a scheme could not take; the table counts them."""
    for row in table.filter(table["refused"].list.len() > 0).iter_rows(named=True):
        names = ", ".join(map(console.shown, row["refused"]))
        typer.echo(f"{row['scheme']} refuses {len(row['refused'])} layers: {names}: {row['reason']}", err=True)


def _print_report(report: Report, source: Path, target: Path, *, quantized: bool) -> None:
    """Say what was left alone and why, what has another scheme, and what it came to."""
    for layer in report.layers:
        told = f"{console.shown(layer.name)} {layer.shape}"
        if layer.left_alone is not None:
            typer.echo(f"left alone: {told} as {layer.dtype}: {layer.left_alone}")
        elif layer.instead is not None:
            typer.echo(f"{layer.scheme} instead: {told}: {layer.instead}")
    sizes = f"{console.size_text(report.source_bytes)} -> {console.size_text(report.target_bytes)}"
    figures = []
    done = report.quantized if quantized else [layer for layer in report.layers if layer.left_alone is None]
    if quantized and report.bits_per_weight is not None:
        figures.append(f"{console.figure(report.bits_per_weight)} bits per weight")
    if report.sqnr_db is not None:
        figures.append(f"SQNR {console.figure(report.sqnr_db)} dB")
    verb = ("would be " if report.target is None else "") + ("quantized" if quantized else "written")
    counted = f"{len(done)} of {len(report.layers)} layers {verb}"
    names = f"{console.shown(str(source))} -> {console.shown(str(target))}"
    typer.echo(f"{names} ({report.recipe}): {', '.join([counted, *figures, sizes])}")
