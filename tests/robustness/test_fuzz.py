"""Cases 87 and 88: a fixed part of the fuzzing, the same inputs everywhere, and every file of the corpus."""

from __future__ import annotations

import pytest
from corpus.make import ENTRIES_OF_FILES, FOLDER, opened
from fuzz import files, machine, values
from fuzz.reading import verdict

import aq2_pipeline

#: Inputs of each format, examples of each check, sequences of calls: together about a minute on a quiet machine.
N_INPUTS = 300
N_EXAMPLES = {"functions": 25, "lying": 25, "chunks": 15}
N_SEQUENCES = 6
#: Of one input, on a machine that may be busy; what takes 5 s of the processor dies of it.
SLOWEST = 30
NAMES = ("safetensors", "index", "gguf", "onnx", "onnx-external", "npz", "parquet")


def test_case_87_changed_files(tmp_path):
    """Files with changed bytes are read or refused with an error of ours: no signal, no time-out, under 512 MB."""
    figures = files.fuzz(lambda k: k < N_INPUTS, kept=tmp_path)
    assert tuple(figures) == NAMES
    for name, found in figures.items():
        assert not found.crashes, f"{name}: {found.crashes}"
        assert found.inputs == found.read + found.refused == N_INPUTS
        assert min(found.read, found.refused) > 0, f"{name}: mutations are too weak or too strong"
        assert found.slowest_seconds < SLOWEST


@pytest.mark.parametrize("kind", values.CHECKS)
def test_case_87_values(kind):
    """Any column, scheme, shape, importance, lying row or cut gives the same bytes, or the same error, everywhere."""
    figures = values.run(kind, N_EXAMPLES[kind])
    assert 0 < figures.errors < figures.inputs


def test_case_87_sequences():
    """Registering, cursors, threads, families and engines in any order change no byte."""
    assert machine.run(N_SEQUENCES, steps=20) > N_SEQUENCES


def test_case_87_a_death_is_noticed_and_kept(tmp_path):
    """A child that is killed is a crash with its input, and the next input has a new child."""
    models = files.seeds()["safetensors"]
    good = files.write(models[0], tmp_path)
    child = files.Child([str(good)])
    try:
        assert child.read(good, thorough=False)["kind"] == "read"
        child.process.kill()
        assert child.read(good, thorough=False)["kind"] == "death"
        assert child.read(good, thorough=False)["kind"] == "read"
        assert child.n_started == 2
    finally:
        child.stop()
    kept = files.keep(models[0], "87-fuzz-x", tmp_path)
    assert kept.read_bytes() == next(iter(models[0].files.values()))


@pytest.mark.parametrize("entry", ENTRIES_OF_FILES)
def test_case_88_every_file_of_the_corpus(entry):
    """What is in the corpus is read or refused in every form, by the engines' ways too, as its folder says."""
    kind, text = verdict(FOLDER / opened(entry), thorough=True)
    assert kind == ("read" if entry.startswith("good/") else "refused"), text


def test_case_88_raw_of_a_file_that_has_codes_only(tmp_path):
    """A Parquet file without bytes of its own has null in `raw`, in every row; it was a KeyError."""
    path = tmp_path / "m.parquet"
    path.write_bytes(next(files.parquet()))
    found = aq2_pipeline.open_reader(path, raw=True).read_all()
    assert found["weights"].to_pylist() == [None, None]
    assert found["layer_name"].to_pylist() == ["a.w", "b"]
