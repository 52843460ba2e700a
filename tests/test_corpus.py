"""The corpus of crafted files: each is refused or read, as the folder that it is in says."""

from __future__ import annotations

from contextlib import suppress

import pytest
from corpus.make import ENTRIES_OF_FILES as ENTRIES
from corpus.make import FILES, FOLDER, opened, write

from aq2_pipeline import Aq2Error, FormatError
from aq2_pipeline.io.opening import open_source


def read(path):
    """Read all that a file has."""
    source = open_source(path)
    rows = [row for table in source.batches(source.parts()) for row in table.to_pylist()]
    assert [row["layer_name"] for row in rows] == [tensor.name for tensor in source.tensors]


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.startswith("bad/")])
def test_a_bad_file_is_a_format_error(entry):
    """What contradicts its format is a FormatError that names a file, and that any terminal may show."""
    with pytest.raises(FormatError, match=r"tests.corpus.bad") as caught:
        read(FOLDER / opened(entry))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.startswith("good/")])
def test_a_good_file_is_read(entry):
    """What is unusual but right is read whole."""
    read(FOLDER / opened(entry))


def test_the_folder_is_what_its_script_writes(tmp_path):
    """The files in the repository are those of the table, byte for byte."""
    there = {
        str(path.relative_to(FOLDER)): path.read_bytes()
        for kind in ("good", "bad")
        for path in (FOLDER / kind).rglob("*")
        if path.is_file()
    }
    assert there == FILES
    write(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.endswith(".safetensors")])
def test_one_byte_more_or_less_never_breaks_out(entry, tmp_path):
    """Files with a byte cut, added or changed are read or refused, and end in no other error."""
    content = FILES[entry]
    for k in range(0, min(len(content), 400), 7):
        changed = bytearray(content)
        changed[k] ^= 1 << k % 8
        for kind, mutant in (
            ("cut", content[:k]),
            ("changed", bytes(changed)),
            ("added", content[:k] + b"9" + content[k:]),
        ):
            path = tmp_path / f"{kind}.safetensors"
            path.write_bytes(mutant)
            with suppress(Aq2Error):
                read(path)
