"""Models in several files, maps instead of copies, metadata as a column, and readers for DuckDB."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from corpus.make import index, safetensors
from safetensors.numpy import save_file

import aq2_pipeline
from aq2_pipeline import FormatError, InputTypeError, open_reader, scan_safetensors
from aq2_pipeline.io.listing import inspect_file
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.safetensors.source import open_safetensors
from aq2_pipeline.io.tables import source as scanning
from aq2_pipeline.io.tables.predicates import conjuncts

RNG = np.random.default_rng(11)
LAYERS = {name: RNG.normal(size=(6, 10)).astype(np.float32) for name in ("c", "a", "d", "b")}
ORDER = ["c", "a", "d", "b"]  # shards x, y: the files' names decide, then the data


@pytest.fixture
def model(tmp_path):
    """Return a folder of two shards with their index, and a file that is not part of the model."""
    shards = {"y.safetensors": ("d", "b"), "x.safetensors": ("c", "a")}
    for k, (name, layers) in enumerate(shards.items()):
        told = {"format": "pt", f"of {name}": "1", "who": name}
        entries = {layer: ("F32", [6, 10], LAYERS[layer].tobytes()) for layer in layers}
        (tmp_path / name).write_bytes(safetensors({"__metadata__": told} | entries))
        assert k < 2
    weight_map = {layer: name for name, layers in shards.items() for layer in layers}
    (tmp_path / "model.safetensors.index.json").write_bytes(index(weight_map, total_size=4 * 240))
    return tmp_path


def names(lazy):
    """Return the layers of a query in their order."""
    return lazy.collect()["layer_name"].to_list()


# --- which files, in which order -------------------------------------------------------------------------------------


def test_folder_index_and_list_are_one_model(model):
    """A folder, its index, and the list of its files give the same table, with the bytes of each file."""
    files = [model / "x.safetensors", model / "y.safetensors"]
    expected = scan_safetensors(model).collect()
    assert expected["layer_name"].to_list() == ORDER
    for source in (model / "model.safetensors.index.json", str(model), files, tuple(map(str, files))):
        assert scan_safetensors(source).collect().equals(expected)
    for row in expected.iter_rows(named=True):
        np.testing.assert_array_equal(np.float32(row["weights"]).reshape(row["shape"]), LAYERS[row["layer_name"]])
    assert names(scan_safetensors(files[::-1])) == ["d", "b", "c", "a"]


def test_folder_without_an_index_is_all_its_files(model):
    """Without an index all safetensors files count, in the order of their names; with one, only its own."""
    save_file({"z": np.zeros(1, np.float32)}, model / "a.safetensors")
    assert names(scan_safetensors(model)) == ORDER
    (model / "model.safetensors.index.json").unlink()
    assert names(scan_safetensors(model)) == ["z", *ORDER]


def test_index_of_another_name(model):
    """The only index of a folder counts whatever its name; that of pickles never does."""
    path = model / "model.safetensors.index.json"
    path.rename(model / "diffusion_pytorch_model.safetensors.index.json")
    (model / "pytorch_model.bin.index.json").write_bytes(index({"c": "pytorch_model.bin"}))
    save_file({"z": np.zeros(1, np.float32)}, model / "a.safetensors")
    assert names(scan_safetensors(model)) == ORDER
    (model / "other.index.json").write_bytes(index({"z": "a.safetensors"}))
    with pytest.raises(FormatError, match="has 2 indexes"):
        scan_safetensors(model)
    (model / "model.safetensors.index.json").write_bytes(index({"z": "a.safetensors"}))
    assert names(scan_safetensors(model)) == ["z"]


def test_the_source_knows_its_files(model):
    """Files, stamps and each tensor's file are those of the shards, and metadata is merged: the first file wins."""
    source = open_source(model)
    assert [path.name for path in source.files] == ["x.safetensors", "y.safetensors"]
    assert [stamp[0] for stamp in source.stamps] == [path.stat().st_size for path in source.files]
    assert [tensor.file for tensor in source.tensors] == [0, 0, 1, 1]
    assert source.metadata == {"format": "pt", "of x.safetensors": "1", "of y.safetensors": "1", "who": "x.safetensors"}


def test_shards_are_listed_without_their_data(model):
    """`inspect` lists folders and indexes, with and without statistics."""
    for path in (model, model / "model.safetensors.index.json"):
        about, rows, _ = inspect_file(path, stats=False)
        assert about == "4 tensors, 960 bytes"
        assert rows == [{"layer": name, "shape": [6, 10], "dtype": "F32", "bytes": 240} for name in ORDER]
        found = {row["layer"]: row["abs_max"] for row in inspect_file(path)[1]}
        assert found == {name: pytest.approx(np.abs(LAYERS[name]).max()) for name in ORDER}


def test_subfolders_and_extra_keys_of_an_index(model):
    """Shards may lie in folders within the model's, and an index may say more than it must."""
    (model / "deep").mkdir()
    (model / "y.safetensors").rename(model / "deep" / "y.safetensors")
    told = {"metadata": {"total_size": 960.0, "more": [1]}, "weight_map": {"c": "x.safetensors", "a": "x.safetensors"}}
    told["weight_map"] |= {"d": "deep/y.safetensors", "b": "deep/y.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps(told | {"version": 2}))
    assert sorted(names(scan_safetensors(model))) == sorted(ORDER)


def test_only_shards_with_wanted_rows_are_opened(model):
    """A query for the layers of one file works when another one is gone."""
    lazy = scan_safetensors(model)
    (model / "y.safetensors").unlink()
    assert names(lazy.filter(pl.col("layer_name").is_in(["a", "c"]))) == ["c", "a"]
    with pytest.raises(FileNotFoundError):
        lazy.collect()


# --- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_is_a_column_on_request(model):
    """`metadata=True` adds the merged metadata as JSON, last, the same in every row; a filter may use it."""
    lazy = scan_safetensors(model, metadata=True)
    assert lazy.collect_schema().names() == ["layer_name", "shape", "dtype", "weights", "metadata"]
    found = lazy.select("metadata", "layer_name").collect()
    assert [json.loads(text)["who"] for text in found["metadata"]] == ["x.safetensors"] * 4
    wanted = pl.col("metadata").str.json_path_match("$.format") == "pt"
    assert lazy.filter(wanted, pl.col("weights").list.len() > 0).collect().height == 4
    assert lazy.filter(~wanted).collect().schema == lazy.collect_schema()
    assert lazy.select("metadata").collect().height == 4


# --- predicates ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """Return the list of tensors whose bytes are read from now on."""
    found = []
    read = scanning.Opened.read
    monkeypatch.setattr(scanning.Opened, "read", lambda self, *args: (found.append(args[0].name), read(self, *args))[1])
    return found


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_a_conjunction_reads_only_rows_that_pass_without_weights(model, reads, engine):
    """Of `name AND weights`, in any order and nesting, only the rows that pass the first are read."""
    lazy = scan_safetensors(model)
    name, long = pl.col("layer_name").is_in(["a", "b"]), pl.col("weights").list.len() > 3
    for query in (
        lazy.filter(name & long),
        lazy.filter(long, name),
        lazy.filter(long).filter(name, dtype="F32"),
        lazy.filter(long & (pl.col("weights").list.max() < 100) & name),
    ):
        reads.clear()
        assert query.select("layer_name").collect(engine=engine)["layer_name"].to_list() == ["a", "b"]
        assert reads == ["a", "b"]


def test_other_predicates_are_not_split(model, reads):
    """A disjunction with the weights reads all rows, and gives what it says; so does one that Polars keeps."""
    lazy = scan_safetensors(model)
    name, short = pl.col("layer_name") == "a", pl.col("weights").list.len() < 3
    assert names(lazy.filter(name | short)) == ["a"]
    assert reads == ORDER
    assert names(lazy.filter(~(name & short))) == ORDER
    assert names(lazy.filter(name & (pl.col("weights").list.len() == pl.col("weights").list.len().max()))) == ["a"]


def test_conjuncts_are_those_of_the_expression():
    """Only `&` is split: not what has two inputs else, nor bits of integers into less than they are."""
    a, b, c = pl.col("a"), pl.col("b"), pl.col("c")
    for whole in (a | b, a == b, a + b, ~(a & b), pl.any_horizontal(a, b), a.is_in([1, 2]), a ^ b, a.fill_null(b), a):
        assert [part.meta == whole for part in conjuncts(whole)] == [True]
    found = conjuncts((a & (b > 1)) & (c | a))
    assert [str(part) for part in found] == [str(part) for part in (a, b > 1, c | a)]
    chain = a
    for k in range(2000):
        chain = chain & (b > k)
    assert len(conjuncts(chain)) > 0


# --- maps ------------------------------------------------------------------------------------------------------------


def mapped(path):
    """Return where this process has a file mapped: [begin, end) of addresses."""
    found = []
    with open("/proc/self/maps") as lines:  # noqa: PTH123 - no path of the model's
        for line in lines:
            if line.rstrip().endswith(str(path)):
                begin, end = line.split()[0].split("-")
                found.append((int(begin, 16), int(end, 16)))
    return found


@pytest.fixture
def aligned(tmp_path):
    """Return a file with float32 tensors at 4 bytes' multiples, one of float16, and float32 ones at odd bytes."""
    entries = {
        "a": ("F32", [2, 3], np.arange(6, dtype=np.float32).tobytes()),
        "none": ("F32", [0], b""),
        "b": ("F32", [4], np.arange(4, dtype=np.float32).tobytes()),
        "half": ("F16", [2], np.ones(2, np.float16).tobytes()),
        "c": ("F32", [1], np.float32(5).tobytes()),
        "byte": ("U8", [1], b"\1"),
        "odd": ("F32", [2], np.arange(2, dtype=np.float32).tobytes()),
    }
    content = safetensors(entries)
    pad = -len(content[8 : content.index(b"}}") + 2]) % 8
    header = content[8 : content.index(b"}}") + 2] + b" " * pad
    path = tmp_path / "aligned.safetensors"
    path.write_bytes(safetensors(text=header, data=content[content.index(b"}}") + 2 :]))
    return path


def test_a_map_is_the_column(aligned, reads):
    """float32 tensors that follow one another are one buffer within the map; others are read; nothing is read twice."""
    source = open_safetensors(aligned, mmap=True)
    tables = list(source.batches(source.parts()))
    assert [table["layer_name"].to_pylist() for table in tables] == [
        ["a", "none", "b"],
        ["half"],
        ["c"],
        ["byte", "odd"],
    ]
    assert reads == ["half", "odd"]
    [(begin, end)] = mapped(aligned)
    inside = []
    for table in tables:
        values = table["weights"].chunk(0).values.buffers()[1]
        inside.append(values is not None and begin <= values.address < end)
    assert inside == [True, False, True, False]
    assert pa.concat_tables(tables)["weights"].to_pylist() == scan_safetensors(aligned).collect()["weights"].to_list()
    del tables, table, values
    assert mapped(aligned) == []


def test_a_map_is_a_polars_series(aligned):
    """A Polars frame of a mapped file has the map's addresses, and lives on when the scan is gone."""
    frame = scan_safetensors(aligned, mmap=True).filter(pl.col("layer_name").is_in(["a", "b"])).collect()
    [(begin, end)] = mapped(aligned)
    for chunk in frame["weights"].get_chunks():
        values = chunk.to_arrow().values
        assert begin <= values.buffers()[1].address < end
    aligned.unlink()
    assert frame["weights"].to_list() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3]]
    quantized = frame.select(pl.col("weights").aq2.quantize("int8_g4"))
    assert quantized.height == 2


def test_maps_give_what_reads_give(model, aligned):
    """Every query gives the same rows mapped and read: shards, chunks, filters, raw bytes."""
    for path in (model, aligned):
        for more in ({}, {"chunk_weights": 4}, {"raw": True}, {"chunk_weights": 3, "raw": True}):
            read, map_ = (scan_safetensors(path, mmap=mmap, **more) for mmap in (False, True))
            assert map_.collect().equals(read.collect())
            wanted = pl.col("layer_name") != "a"
            assert map_.filter(wanted).collect().equals(read.filter(wanted).collect())
            assert map_.head(3).collect().equals(read.head(3).collect())


def test_maps_notice_changes_before_they_are_made(aligned):
    """A file that has changed since the scan is an error with a map too."""
    lazy = scan_safetensors(aligned, mmap=True)
    aligned.write_bytes(aligned.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="changed since"):
        lazy.collect()


def test_maps_are_not_the_default(aligned):
    """Without `mmap=True` nothing is mapped."""
    frame = scan_safetensors(aligned).collect()
    assert mapped(aligned) == []
    assert frame.height == 7


# --- readers ---------------------------------------------------------------------------------------------------------


def test_a_reader_is_the_layer_table(model):
    """`open_reader` streams the columns of a scan, from files, folders, indexes and lists; raw and chunked too."""
    for source in (model, model / "model.safetensors.index.json", [model / "x.safetensors", model / "y.safetensors"]):
        reader = open_reader(source)
        assert isinstance(reader, pa.RecordBatchReader)
        assert reader.schema.names == ["layer_name", "shape", "dtype", "weights"]
        assert pl.DataFrame(reader.read_all()).equals(scan_safetensors(model).collect())
    for more in ({"raw": True}, {"chunk_weights": 25}):
        found = pl.DataFrame(open_reader(model, **more).read_all())
        assert found.equals(scan_safetensors(model, **more).collect())
    with pytest.raises(InputTypeError, match="chunk_weights is a str"):
        open_reader(model, chunk_weights="3")


def test_a_reader_streams_in_bounded_batches(model, monkeypatch):
    """A batch is read when it is asked for, and holds no more than the limit."""
    monkeypatch.setattr(scanning, "BATCH_BYTES", 240)
    reader = open_reader(model)
    assert reader.read_next_batch()["layer_name"].to_pylist() == ["c"]
    (model / "y.safetensors").write_bytes(b"gone")
    assert reader.read_next_batch()["layer_name"].to_pylist() == ["a"]
    with pytest.raises(FormatError, match="changed since"):
        reader.read_next_batch()


def test_duckdb_reads_a_reader(model):
    """A reader is a table of DuckDB after `con.register`, and by its variable's name; errors keep their text."""
    with duckdb.connect() as con:
        aq2_pipeline.register(con)
        con.register("registered", open_reader(model))
        query = "SELECT layer_name, (aq2_quantize(weights, 'int8_g10', shape)).length FROM {} ORDER BY layer_name"
        expected = [(name, 60) for name in sorted(ORDER)]
        assert con.sql(query.format("registered")).fetchall() == expected
        layers = open_reader(model)
        assert con.sql(query.format("layers")).fetchall() == expected
        layers = open_reader(model, chunk_weights=20)
        assert con.sql("SELECT count(*), sum(len(weights)) FROM layers").fetchall() == [(12, 240)]
        layers = open_reader(model)
        (model / "y.safetensors").write_bytes(b"gone")
        with pytest.raises(duckdb.Error, match="changed since its header was read"):
            con.sql("SELECT sum(len(weights)) FROM layers").fetchall()
        del layers
