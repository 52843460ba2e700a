"""`aq2 demo`: a real model through Polars, DuckDB and ArrowQuantV2, byte against byte."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pyarrow as pa

import aq2_pipeline
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.io.parquet.writing import write_quantized
from aq2_pipeline.io.writing.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], Any]

__all__ = ["next_queries", "run"]

PACKAGE = "all_minilm_l6_v2"
N_SHOWN = 8
_FIELDS = ("scheme", "quantized_data", "scales", "zero_points")

_POLARS = """\
import polars as pl, aq2_pipeline
layers = pl.scan_parquet({path!r}).filter(pl.col("layer_name").str.contains("query.weight"))
print(layers.select("layer_name", weights=pl.col("quantized").aq2.dequantize()).collect())
"""
_DUCKDB = """\
import duckdb, aq2_pipeline
con = duckdb.connect()
aq2_pipeline.register(con)
con.sql("SELECT layer_name, quantized.scheme, octet_length(quantized.quantized_data) AS bytes, "
        "aq2_dequantize(quantized)[:3] AS first_weights "
        "FROM {path} WHERE shape = [384, 1536]").show()
con.close()
"""


def run(out: Path, say: Say) -> None:
    """Quantize all-MiniLM-L6-v2 three times, compare, and leave the model and a Parquet file behind.

    Parameters
    ----------
    out : Path
        A directory; made where it is missing.
    say : callable
        Takes each line.

    Raises
    ------
    ImportError
        Without the extra ``[demo]``.
    Aq2Error
        If two engines disagree about a byte.
    """
    model = extract_model(out)
    say(f"model: {model}")
    layers = aq2_pipeline.scan_safetensors(model).filter(pl.col("weights").is_not_null()).collect()
    n_weights = layers["weights"].list.len().sum()
    say(f"{len(layers)} float layers, {n_weights:,} weights; policy 'diffusion', 4 bits\n")
    digests, polars_table = _compare(layers, say)
    if len(set(digests)) != 1:
        msg = "the engines disagree"
        raise Aq2Error(msg, "please report this with the lines above")
    say("the same bytes from all three\n")
    _show_errors(layers, say)
    path = out / "minilm-int4.parquet"
    write_quantized([polars_table], path, {"aq2.recipe": "policy diffusion, 4 bits", "aq2.source": model.name})
    say(f"\nwrote {path}: {path.stat().st_size:,} bytes, the weights had {4 * n_weights:,}")
    for engine, query in next_queries(path).items():
        say(f"\nnext, in {engine}:\n\n{query}")


def package_file() -> Path:
    """Return the path of the zip file with the model, its tokenizer and its configuration.

    Raises
    ------
    ImportError
        Without the extra ``[demo]``.
    """
    spec = importlib.util.find_spec(PACKAGE)  # located, not imported: importing it prints
    if spec is None or spec.origin is None:
        msg = "the demo needs the extra [demo]: pip install 'aq2-pipeline[demo]'"
        raise ImportError(msg)
    return Path(spec.origin).parent / "model.zip"


def extract_model(out: Path) -> Path:
    """Return the path of the model's safetensors file in `out`, copied there from the package if it is not yet."""
    package = package_file()
    out.mkdir(parents=True, exist_ok=True)
    target = out / "model.safetensors"
    with zipfile.ZipFile(package) as archive:
        member = archive.getinfo("model.safetensors")
        if not target.exists() or target.stat().st_size != member.file_size:
            with replacing(target) as temporary, archive.open(member) as source, temporary.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    return target


def next_queries(path: Path) -> dict[str, str]:
    """Return engine -> Python that runs as it is, on the Parquet file at `path`."""
    name = str(path)
    quoted = "'" + name.replace("'", "''").replace("\\", "\\\\").replace('"', '\\"') + "'"
    return {"Polars": _POLARS.format(path=name), "DuckDB": _DUCKDB.format(path=quoted)}


def _compare(layers: pl.DataFrame, say: Say) -> tuple[list[str], pl.DataFrame]:
    """Run the three engines; return a digest of each, and the layer table that Polars made."""
    digests, kept = [], pl.DataFrame()
    for engine, quantize in (("Polars", _with_polars), ("DuckDB", _with_duckdb), ("ArrowQuantV2", _with_quantizer)):
        quantize(layers.head(1))  # kernels load at their first use, which is not what is timed
        start = time.perf_counter()
        result = quantize(layers)
        seconds = time.perf_counter() - start
        digests.append(_digest(result))
        say(f"{engine:<13} {seconds:6.3f} s  sha256 {digests[-1]}")
        kept = result if engine == "Polars" else kept
    return digests, kept


def _with_polars(layers: pl.DataFrame) -> pl.DataFrame:
    scheme = pl.col("layer_name").aq2.policy_scheme(pl.col("shape"), 4, "diffusion")  # type: ignore[attr-defined]
    quantized = pl.col("weights").aq2.quantize(scheme, pl.col("shape"))  # type: ignore[attr-defined]
    return layers.select("layer_name", "shape", "dtype", quantized=quantized)


def _with_duckdb(layers: pl.DataFrame) -> pl.DataFrame:
    con = duckdb.connect()
    try:
        aq2_pipeline.register(con)
        con.register("layers", layers.to_arrow())
        result: pl.DataFrame = con.sql(
            "SELECT layer_name, aq2_quantize(weights, aq2_policy_scheme(layer_name, shape, 4, 'diffusion'), shape)"
            " AS quantized FROM layers"
        ).pl()
    finally:
        con.close()
    return result


def _with_quantizer(layers: pl.DataFrame) -> pl.DataFrame:
    flat = aq2_pipeline.ArrowQuantV2(mode="diffusion").quantize_arrow(layers.drop("dtype"), bit_width=4)
    return pl.DataFrame(flat).select("layer_name", quantized=pl.struct(_FIELDS))


def _digest(result: pl.DataFrame) -> str:
    """Return the SHA-256 of every layer's name, scheme, codes, scales and zero points."""
    digest = hashlib.sha256()
    for row in result.sort("layer_name").unnest("quantized").select("layer_name", *_FIELDS).iter_rows(named=True):
        for name in ("layer_name", "scheme"):
            digest.update(row[name].encode() + b"\0")
        digest.update(row["quantized_data"])
        for name in ("scales", "zero_points"):
            digest.update(pa.array(row[name], pa.float32()).to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def _show_errors(layers: pl.DataFrame, say: Say) -> None:
    """Print the layers that lose most, and the sums over all that lose anything."""
    scheme = pl.col("layer_name").aq2.policy_scheme(pl.col("shape"), 4, "diffusion")  # type: ignore[attr-defined]
    error = pl.col("weights").aq2.quantization_error(scheme, pl.col("shape"))  # type: ignore[attr-defined]
    table = layers.select("layer_name", n=pl.col("weights").list.len(), scheme=scheme, error=error).unnest("error")
    lossy = table.filter(pl.col("mse") > 0).sort("sqnr_db", "layer_name")
    say(f"{'layer':<52} {'scheme':<10} {'bits':>6} {'SQNR dB':>8} {'max error':>9}")
    for row in lossy.head(N_SHOWN).iter_rows(named=True):
        figures = f"{row['bits_per_weight']:6.3f} {row['sqnr_db']:8.2f} {row['max_abs']:9.5f}"
        say(f"{row['layer_name']:<52} {row['scheme']:<10} {figures}")
    noise = pl.col("mse") * pl.col("n")
    total = lossy.select(
        bits=(pl.col("bits_per_weight") * pl.col("n")).sum() / pl.col("n").sum(),
        sqnr=10 * ((noise * 10 ** (pl.col("sqnr_db") / 10)).sum() / noise.sum()).log10(),
    )
    say(
        f"... all {len(lossy)} quantized layers: {total['bits'][0]:.3f} bits per weight, "
        f"SQNR {total['sqnr'][0]:.2f} dB; {len(table) - len(lossy)} layers stay float32"
    )
