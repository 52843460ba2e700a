"""Write the reference pages from the tables in the code: `python docs/generate.py`; `tests/test_docs.py` compares."""
# ruff: noqa: INP001 - a script

from __future__ import annotations

import importlib
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

import aq2_pipeline
import aq2_pipeline.duckdb
import aq2_pipeline.polars
from aq2_pipeline import errors, layout, policy, rotations, schemes
from aq2_pipeline.functions import FUNCTIONS, Argument, Function
from aq2_pipeline.io import listing
from aq2_pipeline.io.parquet.writing import RAW
from aq2_pipeline.io.writing.sinks import MANIFEST

ROOT = Path(__file__).parents[1]
STAMP = "<!-- Written by docs/generate.py from the code; edit that. -->\n\n"

#: What each kind of argument takes. A kind that is missing here stops the generator.
KINDS = {
    "weights": "a list of floats a row, or binary (see [accepted types](layout.md#weight-columns))",
    "quantized": "the struct that `quantize` returns (see [layout](layout.md#quantized))",
    "scheme": "bits, a name, or a column of either (see [schemes](schemes.md))",
    "shape": "a list of integers a row, whose product is the row's length",
    "importance": "a list of floats a row, one a weight or one an input channel, for schemes that search "
    "(see [importance](../explanation/formats.md#importance))",
    "text": "a string",
    "integer": "an integer",
}

#: What the fields of each result mean. A field that is missing here stops the generator.
MEANINGS = {
    "scheme": "canonical name; decoding needs nothing but the row",
    "length": "number of weights",
    "row_length": "weights a matrix row, where groups restart; equals `length` where no shape was given",
    "quantized_data": "codes, packed, little-endian bit order; each group starts on a byte; padding bits are 0; of a "
    "block format, its blocks as ggml has them",
    "scales": "one a group; empty for block formats, whose scales are in the data, and for `f32`, `f16`, `bf16`",
    "zero_points": "one a group of an asymmetric scheme, whole numbers; else empty",
    "mse": "mean squared error; with importance, this and all but `max_abs` and the bits are weighted",
    "rmse": "its square root",
    "max_abs": "largest absolute error",
    "sqnr_db": "10 log10 of the sum of squared weights over the sum of squared errors; +inf without error",
    "cosine": "cosine of the angle between weights and decoded weights; 1 without error",
    "bits_per_weight": "8 * (bytes of data + 4 * (scales + zero points)) / length",
    "count": "values in the row, null ones included",
    "zeros": "values that are 0 or -0",
    "non_finite": "NaN, infinite and null values; the figures leave them out",
    "min": "least finite value",
    "max": "largest finite value",
    "mean": "mean",
    "std": "standard deviation of the population",
    "abs_max": "largest magnitude",
    "kurtosis": "Fisher's excess; null where `std` is 0",
    "outlier_ratio": "share of the finite values further than 6 `std` from the mean",
    "layer_name": "the layer",
    "shape": "the tensor's shape; of a chunk, the chunk's own",
    "dtype": "the type in the file that the layer comes from",
    "chunk": "the number of the chunk, from 0",
    "start": "the weights of the layer before the chunk",
    "tensor_shape": "the whole layer's shape",
    "raw": "elements of `dtype`, little-endian, of a layer that has no scheme",
}

#: The key-values of a Parquet file that the command writes.
PARQUET_KEYS = {
    "aq2_pipeline": "the package's version",
    "aq2.recipe": "what layers were to become: rules, then a scheme or a policy; empty where they stayed as they were",
    "aq2.source": "the name of the source's file or folder",
    "aq2.source_tensors_sha256": "a hash of the source's names, dtypes and shapes, in their order",
    "aq2.source_metadata": "the source's own metadata, if all of it is strings, as a JSON object",
    "aq2.source_gguf_metadata": "the key-values of a GGUF source: a GGUF file without tensors, in base64",
}

#: What a manifest says.
MANIFEST_KEYS = {
    "package": "`aq2-pipeline` and its version",
    "format": "the target's format, as `--to` spells it",
    "scale_dtype": "of the scales of integers",
    "files": "name -> bytes, of every file of the folder but the manifest",
    "layers": "a list: `name`, `shape` and `dtype` of the source; `scheme`, or in `left_alone` why there is none",
}


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def engine_types(kind: pa.DataType) -> tuple[str, str, str]:
    """Return (pyarrow, Polars, DuckDB) names of a type; an engine is asked, not told."""
    empty = pa.table({"x": pa.array([], kind)})
    polars = pl.DataFrame(empty).schema["x"]
    with duckdb.connect() as con:
        sql = con.from_arrow(empty).types[0]
    return str(kind).replace("item: ", ""), str(polars), str(sql)


def field_table(kind: pa.StructType) -> str:
    """Return the fields of a struct type, as each engine names them."""
    rows = []
    for field in kind:
        arrow, polars, sql = engine_types(field.type)
        rows.append((f"`{field.name}`", f"`{arrow}`", f"`{polars}`", f"`{sql}`", MEANINGS[field.name]))
    return table(("field", "pyarrow", "Polars", "DuckDB", "meaning"), rows)


def spelled(function: Function, prefix: str = "") -> str:
    """Return a call with its arguments; what may be left out in brackets."""
    required = [a.name for a in function.arguments if not a.optional]
    optional = "".join(f"[, {a.name}" for a in function.arguments if a.optional)
    return f"{prefix}{function.name}({', '.join(required)}{optional}{']' * optional.count('[')})"


def result_name(function: Function) -> str:
    """Return the result type as the documentation calls it."""
    names = {
        layout.QUANTIZED: "[`QUANTIZED`](LAYOUT#quantized)",
        layout.ERROR: "[`ERROR`](LAYOUT#error)",
        layout.STATS: "[`STATS`](LAYOUT#stats)",
    }
    return names.get(function.result) or f"`{engine_types(function.result)[0]}`"


def function_table(reference: str) -> str:
    """Return the table of functions, as README and the reference have it."""
    rows = [
        (
            f"[`{f.name}`]({reference}functions.md#{f.name})",
            f"`{spelled(f, 'aq2_')}`",
            result_name(f).replace("LAYOUT", f"{reference}layout.md"),
            f.summary,
        )
        for f in FUNCTIONS.values()
    ]
    return table(("Python and Polars", "SQL and pyarrow", "result", "what it does"), rows)


def argument_row(argument: Argument) -> tuple[str, str, str]:
    """Return an argument's row."""
    return f"`{argument.name}`", "no" if argument.optional else "yes", KINDS[argument.kind]


def functions_page() -> str:
    """Return the page of functions."""
    parts = [
        (
            "# Functions\n\nOne table in the code declares them and every engine reads it: the names, the order of the "
            "arguments and the results are the same everywhere. In SQL and pyarrow a name has the prefix `aq2_`; in "
            "Polars it is a method of `Expr.aq2` and `Series.aq2`, and a function in `aq2_pipeline.polars`.\n\n"
            "Null weights give null, whatever else. A null shape or importance is one that is not given. Non-null "
            "weights with a null scheme are an error.\n\n"
        ),
        function_table(""),
    ]
    for function in FUNCTIONS.values():
        python = getattr(aq2_pipeline, function.name)
        free = getattr(aq2_pipeline.polars, function.name)
        parts.append(f"\n## {function.name}\n\n{function.summary} Result: {result_name(function)}.\n\n")
        parts.append(table(("argument", "required", "takes"), [argument_row(a) for a in function.arguments]))
        parts.append(
            f"\n```text\nSQL     {spelled(function, 'aq2_')}\n"
            f"Python  {function.name}{signature(python)}\nPolars  {function.name}{signature(free)}\n```\n\n"
            f"Python's documentation:\n\n```text\n{inspect.getdoc(python)}\n```\n"
        )
    return "".join(parts).replace("LAYOUT", "layout.md")


def signature(function: Any) -> str:
    """Return names and defaults, without the types, which `help` shows."""
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(inspect.Signature(bare))


def decibels(value: float | None) -> str:
    """Return a figure; a dash where nothing was measured, or lost."""
    return "-" if value is None else f"{value:.2f}"


def family_table(rows: list[dict[str, Any]]) -> str:
    """Return the schemes that stand for families of the same methods, with a column a method."""
    methods = rows[0]["sqnr_db_by_method"]
    in_blocks, grouped = rows[0]["block"] is not None, rows[0]["group"] is not None
    loaders = len({row["loaded_by"] for row in rows}) > 1
    header = ["name", *["measured"] * grouped, "bits a code", "bits a weight", *["block"] * in_blocks]
    header += [f"SQNR, dB: `{m}`" if m else "SQNR, dB" for m in methods]
    header += [*["for other rows"] * in_blocks, "what it is", *["loaded by"] * loaders]
    lines = []
    for row in rows:
        family = next(f for f in schemes.FAMILIES if f.pattern.fullmatch(row["scheme"]))
        line = [f"`{family.template.replace('{group}', '<group>')}`", *[f"`{row['scheme']}`"] * grouped]
        line += [row["bits"], f"{row['bits_per_weight']:g}", *[row["block"]] * in_blocks]
        line += [decibels(row["sqnr_db_by_method"][m]) for m in methods]
        lines.append((*line, *[f"`{row['fallback']}`"] * in_blocks, row["summary"], *[row["loaded_by"]] * loaders))
    return table(tuple(header), lines)


def group_table(by_name: dict[str, dict[str, Any]]) -> str:
    """Return the SQNR of each family with groups, by its default method, in groups of each listed size."""
    groups = ("g32", "g64", "g128", "channel", "tensor")
    lines = []
    for family in schemes.FAMILIES:
        if family.grouped:
            figures = (decibels(by_name[family.template.format(group=group)]["sqnr_db"]) for group in groups)
            lines.append((f"`{family.template.replace('{group}', '<group>')}`", *figures))
    return table(("name", *(f"`{group}`" for group in groups)), lines)


def other_table(by_name: dict[str, dict[str, Any]]) -> str:
    """Return the listed names that are more than a family and a group; nothing if there are none."""
    plain = {f.template.format(group=f"g{g}") for f in schemes.FAMILIES for g in (32, 64, 128)}
    plain |= {f.template.format(group=group) for f in schemes.FAMILIES for group in ("channel", "tensor")}
    others = [row for name, row in by_name.items() if name not in plain]
    if not others:
        return ""
    lines = []
    for row in others:
        figures = ", ".join(f"`{method}` {decibels(figure)}" for method, figure in row["sqnr_db_by_method"].items())
        lines.append((f"`{row['scheme']}`", f"{row['bits_per_weight']:g}", figures))
    return "\n## With a suffix\n\n" + table(("name", "bits a weight", "SQNR, dB"), lines)


def schemes_page() -> str:
    """Return the page of schemes."""
    by_name = {row["scheme"]: row for row in listing.list_schemes()}
    families = "".join(
        f"\n{title[0].upper() + title[1:]}.\n\n" + family_table([by_name[row["scheme"]] for row in rows])
        for title, rows in listing.sections()
    )
    dtypes = ", ".join(f"`{d}`" for d in schemes.INPUT_DTYPES)
    return (
        "# Schemes\n\nA scheme is written `<name>[:<method>][@<input dtype>]`. Only the name is stored. "
        f"An integer from {schemes.WIDTHS.start} to {schemes.WIDTHS.stop - 1} is that many bits in groups of "
        f"{schemes.DEFAULT_GROUP}: `4` is `int4_g{schemes.DEFAULT_GROUP}`. Names are exact; case counts.\n\n"
        "[Formats](../explanation/formats.md) says what the methods do and where the layouts are written down. Bits a "
        "weight are those of a 4096 x 4096 matrix, scales included. SQNR is that of the six matrices "
        "`encoder.layer.?.output.dense.weight` of all-MiniLM-L6-v2 together, measured by `python docs/quality.py "
        "--sqnr`; a dash is nothing lost. A higher SQNR is a closer copy of these weights and no more than that: see "
        "[quality](../explanation/quality.md).\n\n## Families\n"
        + families
        + "\nA matrix row that the blocks of a format do not divide is refused. `for other rows` is what llama.cpp "
        "takes then, if 32 divides the row, and else `f16`.\n"
        + "\n## Groups\n\n`<group>` is\n\n"
        + table(
            ("group", "means"),
            [
                ("`g1` to `g2147483647`", "that many weights; the last group of a matrix row may be short"),
                ("`channel`", "one group a matrix row"),
                ("`tensor`", "one group for everything"),
            ],
        )
        + "\nBehind the names of integers and codebooks, `_rot<k>` [rotates](../explanation/rotation.md) blocks of k "
        "weights first: k is a power of two from 2 to "
        f"{rotations.MOST} that divides a matrix row. `int4_g64_asym_rot64` is an example.\n"
        + "\nSQNR in dB by the default method, as above:\n\n"
        + group_table(by_name)
        + "\nA matrix row is where groups restart. Without a shape, and for ranks 0 and 1, it is the whole row of the "
        "column. For rank 2 it is the last axis. For more, trailing axes are joined from the last until a row holds "
        "a group, never with the first axis: a 3 x 3 convolution `[64, 32, 3, 3]` in groups of 128 has matrix rows "
        "of 288.\n"
        + other_table(by_name)
        + f"\n## Input dtypes\n\n`@<input dtype>`, one of {dtypes}, says what binary and 16-bit unsigned weights hold; "
        "without it binary is `f32`. Other columns know their type and refuse it.\n\nThe formulas of integers are in "
        "[rounding](../explanation/rounding.md).\n"
    )


def policies_page() -> str:
    """Return the page of policies."""
    conditions = [field.name for field in fields(policy.Rule) if field.name not in ("scheme", "reason")]
    parts = [
        "# Policies\n\nA policy is a list of rules over a layer's name, rank and size; the first rule that a layer "
        "meets decides its scheme. `{b}` is the asked bit width. A layer of unknown shape meets no rule about rank or "
        "size. `ArrowQuantV2(mode=...)` names a policy, and the function "
        "[`policy_scheme`](functions.md#policy_scheme) asks one in a query.\n\n"
        f"The default mode is `{policy.DEFAULT_MODE}`. Aliases: "
        + ", ".join(f"`{alias}` is `{name}`" for alias, name in policy.ALIASES.items())
        + ".\n"
    ]
    for name, rules in policy.POLICIES.items():
        rows = [
            (k, *(condition(getattr(rule, c)) for c in conditions), f"`{rule.scheme}`", rule.reason)
            for k, rule in enumerate(rules, 1)
        ]
        parts.append(f"\n## {name}\n\n" + table(("rule", *conditions, "scheme", "reason"), rows))
    return "".join(parts)


def condition(value: Any) -> str:
    """Return a rule's condition; a dash where there is none."""
    if value is None or value == ():
        return "-"
    return ", ".join(f"`{v}`" for v in value) if isinstance(value, tuple) else f"{value:,}"


def errors_page() -> str:
    """Return the page of errors."""
    named = [getattr(errors, name) for name in errors.__all__]
    known = [e for e in named if isinstance(e, type) and issubclass(e, errors.Aq2Error)]
    rows = [(f"`{e.__name__}`", ", ".join(f"`{b.__name__}`" for b in e.__bases__), inspect.getdoc(e)) for e in known]
    rows = [(name, bases, text.splitlines()[0]) for name, bases, text in rows]
    lines = inspect.getdoc(errors.Place).splitlines()
    return (
        "# Errors\n\nAll are importable from `aq2_pipeline`. A text is complete without its class, because DuckDB "
        "keeps only the text.\n\n"
        + table(("error", "is a", "when"), rows)
        + "\nAn error's text is `<function>: <layer>, <row>, <position>: <reason>. Hint: <what to do>`, with what is "
        "known. The same parts are attributes: `function`, `layer`, `row`, `position`, `value`, `reason`, `hint`, and "
        "`place`, which holds the first five and `batch`:\n\n```text\n"
        + "\n".join(lines[lines.index("Attributes") + 2 :])
        + "\n```\n\nThe lowest bad row is reported, whatever the number of threads. In eager calls `row` counts over "
        "the whole column. Inside a query it counts in the batch that the engine handed over, and the text says so: "
        "`row 17 of this batch of 2048`.\n"
    )


def layout_page() -> str:
    """Return the page of types."""
    return (
        "# Layout\n\nThe types of inputs and results. Every reader finds fields by name and takes 32-bit, large and "
        "view forms of strings, binary and lists.\n\n## Weight columns\n\n"
        + table(
            ("column", "elements", "copied?"),
            [
                ("`list`, `large_list`, `fixed_size_list`, list views", "float32", "no: kernels read the buffer"),
                ("the same, sliced, chunked, with null rows", "float32", "no"),
                ("`fixed_shape_tensor`, nested `fixed_size_list`", "float32; their shape is used", "no"),
                ("the same", "float16, float64, decimal", "converted to float32"),
                ("the same", "uint16, with `@f16` or `@bf16`", "converted to float32"),
                ("`binary`, `large_binary`, `fixed_size_binary`", "little-endian float32", "no, if aligned to 4 bytes"),
                ("`binary_view`", "as binary", "yes"),
                ("binary with `@f16`, `@bf16`, `@f64`", "little-endian", "converted to float32"),
                ("lists of integers", "", "refused, with a hint to cast"),
            ],
        )
        + "\n## QUANTIZED\n\nOne struct for every scheme: one SQL function has one result type, and engines drop field "
        "metadata, so a row describes itself.\n\n"
        + field_table(layout.QUANTIZED)
        + "\nA missing or null `row_length` means `length`.\n\n## ERROR\n\nWhat `quantization_error` returns. "
        "The fields of an empty row are null.\n\n"
        + field_table(layout.ERROR)
        + "\n## STATS\n\nWhat `weight_stats` returns. Figures are those of the finite values, null where there are "
        "none; of an empty row only `count` is not null.\n\n"
        + field_table(layout.STATS)
        + "\n## The layer table\n\nThe same from every source: these columns, then `weights` (a list of float32, or "
        "binary) or `quantized` (`QUANTIZED`).\n\n"
        + field_table(pa.struct(list(layout.LAYER_FIELDS)))
        + "\nWhere rows may be chunks of a layer, a table has these columns before `weights` or `quantized`. They are "
        "null in the row of a whole layer; see [chunk rows](../how-to/large-models.md#a-tensor-that-does-not-fit-chunk-"
        "rows).\n\n"
        + field_table(pa.struct(list(layout.CHUNK_FIELDS)))
        + "\nSinks take one column more, after `quantized`, where layers have no scheme; Parquet files hold it. "
        "Binary `weights` (`raw=True`) mean the same.\n\n" + field_table(pa.struct([RAW])) + files_section()
    )


def files_section() -> str:
    """Return what the files say beside the layers."""
    keys, manifest = (
        table(("key", "what it is"), [(f"`{key}`", meaning) for key, meaning in told.items()])
        for told in (PARQUET_KEYS, MANIFEST_KEYS)
    )
    return (
        "\n## A Parquet file\n\nThe key-values of a file that the command writes; `sink_parquet` writes the first, and "
        "those of its argument `metadata`. Nothing in them depends on the day, so that the same run makes the same "
        "bytes.\n\n"
        + keys
        + f"\n## The manifest of a folder\n\n`{MANIFEST}` in a folder of [compressed-tensors](../how-to/compressed-"
        "tensors.md) or [MLX](../how-to/mlx.md), written last. A folder that has files which it does not name is never "
        "replaced.\n\n" + manifest
    )


def command_page() -> str:
    """Return the page of the command `aq2`."""
    import typer  # noqa: PLC0415 - an extra

    from aq2_pipeline import cli  # noqa: PLC0415 - needs the extra

    main = typer.main.get_command(cli.app)
    extras = (
        "`aq2` comes with the extra `[cli]`; pictures need `[plot]`. [Convert](../how-to/convert.md) says how the "
        "commands work, what they leave alone, and what [exit codes](../how-to/convert.md#output-and-exit-codes) mean."
    )
    parts = [f"# The command\n\n{extras}\n"]
    for name, command in main.commands.items():
        parts.append(f"\n## aq2 {name}\n\n{inspect.cleandoc(command.help or '')}\n\n")
        rows = []
        for p in command.params:
            spelling = p.name.upper() if p.param_type_name == "argument" else ", ".join(p.opts + p.secondary_opts)
            default = "-" if p.required or p.default is None or callable(p.default) else f"`{p.default}`"
            rows.append((f"`{spelling}`", "yes" if p.required else "no", default, getattr(p, "help", "") or ""))
        parts.append(table(("parameter", "required", "default", "what it is"), rows))
    return "".join(parts)


def readme() -> str:
    """Return the README with its table of functions renewed."""
    text = (ROOT / "README.md").read_text()
    begin, end = "<!-- functions -->\n", "<!-- end of functions -->"
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    return head + begin + function_table("docs/reference/") + end + tail


def documented(name: str, thing: Any, level: str) -> str:
    """Return the section of a public name: how it is called, and its documentation."""
    called = (
        signature(thing.__init__ if inspect.isclass(thing) else thing).replace("(self, ", "(").replace("(self)", "()")
    )
    return f"\n{level} {name}\n\n```text\n{name}{called}\n\n{inspect.getdoc(thing)}\n```\n"


def forwarded(thing: Any) -> Any:
    """Return the function that an export hands over to, which its documentation names; or itself."""
    found = re.fullmatch(r"[^\n]*: see `(aq2_pipeline[\w.]+)\.(\w+)`\.", inspect.getdoc(thing) or "")
    return getattr(importlib.import_module(found[1]), found[2]) if found else thing


def python_page() -> str:
    """Return the page of what the package exports beside the functions and the errors."""
    parts = ["# Python\n\nWhat `aq2_pipeline` exports beside the [functions](functions.md) and [errors](errors.md).\n"]
    things = {name: getattr(aq2_pipeline, name) for name in aq2_pipeline.__all__ if name not in FUNCTIONS}
    for name, thing in things.items():
        if inspect.isclass(thing) and issubclass(thing, Exception):
            continue
        parts.append(documented(name, forwarded(thing), "##"))
        if inspect.isclass(thing):
            methods = ((n, m) for n, m in vars(thing).items() if not n.startswith("_") and callable(m))
            parts += (documented(f"{name}.{n}", m, "###") for n, m in methods)
    parts.append("\n## aq2_pipeline.duckdb\n\nBeside `register` and `unregister`:\n")
    for name in ("connect", "enable", "path"):
        parts.append(documented(f"duckdb.{name}", getattr(aq2_pipeline.duckdb, name), "###"))
    return "".join(parts)


def pages() -> dict[Path, str]:
    """Return path -> text of every generated page."""
    reference = {
        "functions": functions_page,
        "python": python_page,
        "schemes": schemes_page,
        "policies": policies_page,
        "errors": errors_page,
        "layout": layout_page,
        "command": command_page,
    }
    written = {ROOT / "docs" / "reference" / f"{name}.md": STAMP + page() for name, page in reference.items()}
    return written | {ROOT / "README.md": readme()}


def main() -> None:
    """Write what has changed."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stderr.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
