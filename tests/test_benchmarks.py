"""The benchmark suite is well-formed: its table, its checks of equal work, its page. Nothing here measures time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aq2_pipeline
from tests.benchmarks import __main__ as command
from tests.benchmarks import blocks, kernels, measures, page, sides, table, workers, workloads
from tests.benchmarks.peers import PEERS, Bound
from tests.benchmarks.results import MissingError, Outcome, Result, Timing, at_least, at_most, verdict
from tests.benchmarks.timing import Setting

ROOT = Path(__file__).parents[1]
QUICK = Setting(threads=1, quick=True, runs=1, shortest=0.0)
MACHINE = {
    "date": "2026-01-02",
    "machine": "2 cores of a machine",
    "system": "Linux",
    "versions": {"numpy": "2.4"},
    "peers": {"torch": ""},
}


def fake_run():
    """Return results of every row: the first is missed, the peers on torch are missing, the rest meet their bars."""
    results = []
    for k, row in enumerate(table.ROWS):
        for name in row.threads:
            threads = 1 if name == "one" else 2
            if "torch" in row.name:
                results.append(Result(row.name, threads, "missing", reason="torch: not installed"))
                continue
            value = row.bar.value * (2 if k == 0 else 1)
            times = [Timing("ours", 0.01, 1_000_000), Timing("theirs", 0.02, 1_000_000)]
            series = {"kernel": [(1 << 20, 0.001), (1 << 26, 0.05)]} if row.name == "flat-kernel" else {}
            profile = ["where the time goes"] if k == 0 else []
            outcome = Outcome(value, value, value * 1.5, times, series, profile, sqnr=row.bar.sqnr)
            results.append(Result(row.name, threads, "ran", outcome))
    return page.Run(MACHINE, results, 5, 2)


def test_every_row_has_a_name_of_its_own_and_a_bar():
    """Names are unique and fit a pattern, bars have a sign and a positive value, threads are one or all."""
    names = [row.name for row in table.ROWS]
    assert len(set(names)) == len(names)
    for row in table.ROWS:
        assert row.bar.sign in ("<=", ">=")
        assert row.bar.value > 0
        assert set(row.threads) <= {"one", "all"}
        assert callable(row.run)
        assert "," not in row.name


def test_every_peer_says_how_it_runs():
    """A peer has a configuration, and one whose format is not ours says what it does differently."""
    assert [peer.name for peer in PEERS if not peer.config] == []
    ours = {"numpy", "torch-eager", "torch-compile"}
    assert {peer.name for peer in PEERS if not peer.differs} == ours


def test_the_list_names_every_row(capsys):
    """`--list` prints each row with its bar, and runs nothing."""
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [row.name for row in table.ROWS]


def test_only_takes_names_patterns_and_lists():
    """`--only` may be repeated, joined with commas and a pattern; a name that is nobody's stops the run."""
    assert [row.name for row in table.chosen(["kernel-int4,error", "cold-*"])] == [
        "kernel-int4",
        "error",
        "cold-import",
        "cold-call",
    ]
    with pytest.raises(SystemExit, match="no measurement is called 'nothing'"):
        table.chosen(["error,nothing"])


def test_a_bar_is_met_on_its_own_side():
    """A cost meets its bar from below, a gain from above; what is missing is neither."""
    assert at_most(1.5).met(1.5)
    assert not at_most(1.5).met(1.6)
    assert at_least(3).met(3)
    assert not at_least(3).met(2.9)
    assert verdict(at_least(3), Result("row", 1, "missing", reason="not installed")) == "missing"


def test_a_search_has_two_bars():
    """One that is fast enough is missed where its SQNR is too low, and the other way round."""
    bar = at_least(8, sqnr=22.66)
    found = [(value, sqnr, bar.met(value, sqnr)) for value in (7.9, 8.0) for sqnr in (22.65, 22.66)]
    assert [met for *_, met in found] == [False, False, False, True]
    outcome = Outcome(9.0, 9.0, 9.0, sqnr=22.65)
    assert verdict(bar, Result("row", 1, "ran", outcome)) == "MISSED"
    assert str(bar) == ">= 8 x at 22.66 dB"


@pytest.mark.parametrize("name", ["reference-q4-0", "search-mxfp4", "decode-mxfp4"])
def test_block_formats_run_beside_ggml(name):
    """On the beginning of F; what must be equal is checked within, a search shows the SQNR of both sides."""
    (row,) = table.chosen([f"ggml-{name}"])
    outcome = row.run(QUICK, row.bar)
    ours, theirs = outcome.timings
    assert "ggml C" in theirs.label
    assert ours.n_weights == theirs.n_weights == 6 * 8 * 1536
    assert (outcome.sqnr is not None) == name.startswith("search")
    assert [note.split()[0] for note in outcome.notes] == ["SQNR"] * name.startswith("search")


def test_an_sqnr_may_be_weighed_as_ggml_does():
    """By hand: ggml's weights are |x|, x squared, or |x| and the root of the mean square, by group."""
    values, decoded = np.array([3.0, 4.0, 0.0, 0.0], np.float32), np.array([3.0, 3.0, 0.0, 0.0], np.float32)
    rms = np.sqrt(25 / 2)
    expected = {"q2_k": (27 + 64) / 4, "q3_k": (81 + 256) / 16, "q4_k": (9 * (3 + rms) + 16 * (4 + rms)) / (4 + rms)}
    assert np.isclose(blocks.sqnr(values, decoded), 10 * np.log10(25))
    for name, ratio in expected.items():
        weigh, _ = blocks.OBJECTIVES[name]
        assert np.isclose(blocks.sqnr(values, decoded, weigh, 2), 10 * np.log10(ratio))


def test_rows_of_one_process_share_their_number_of_threads():
    """Jobs are grouped by threads; a row that must be alone is; a quick run keeps only peaks apart."""
    rows = [row for row in table.ROWS if row.name in ("kernel-int4", "python", "peak-python", "peer-numpy")]
    jobs = workers.jobs_of(rows, 2, quick=False)
    groups = [[(job.row, job.threads) for job in group] for group in workers.grouped(jobs, quick=False)]
    assert groups == [
        [("kernel-int4", 1), ("python", 1)],
        [("python", 2)],
        [("peak-python", 2)],
        [("peer-numpy", 1)],
        [("peer-numpy", 2)],
    ]
    jobs = workers.jobs_of(rows, 2, quick=True)
    assert [len(group) for group in workers.grouped(jobs, quick=True)] == [3, 1]


@pytest.mark.parametrize("scheme", ["int4_g128", "int4_g128_asym", "int8_channel"])
def test_the_kernel_alone_gives_the_bytes_of_quantize(scheme):
    """What the benchmarks call a kernel writes the same data, scales and zero points as the function."""
    work = workloads.Workload("test", 7, 4096)
    expected = aq2_pipeline.quantize(workloads.column(work, QUICK), scheme)
    run = kernels.encoder(workloads.values(work, QUICK), workloads.lengths(work), scheme, 1)
    run()
    run.check()
    assert sides.digest([run.data]) == sides.digest(sides.struct_buffers(expected))
    np.testing.assert_array_equal(run.scales, expected.field("scales").values)
    np.testing.assert_array_equal(run.zero_points, expected.field("zero_points").values)
    decoded = kernels.decoder(run, workloads.lengths(work), scheme, 1)
    decoded()
    np.testing.assert_array_equal(decoded.values, aq2_pipeline.dequantize(expected).values)


def test_unequal_work_is_no_ratio():
    """Sides that show other bytes fail the row."""
    four, eight = (sides.python("S", scheme) for scheme in ("int4_g128", "int8_g128"))
    with pytest.raises(AssertionError, match="do not give the same bytes"):
        measures.Ratio(four, eight)(QUICK, at_most(1))


def test_a_missed_bar_brings_its_profile():
    """A ratio over its bar comes with the time of a read, of fresh memory, and of Python."""
    outcome = measures.Ratio(sides.python("S"), sides.kernel("S"))(QUICK, at_most(1e-9))
    text = "\n".join(outcome.profile)
    for word in ("one read", "fresh memory", "cProfile"):
        assert word in text
    assert outcome.low <= outcome.value <= outcome.high
    assert [timing.label for timing in outcome.timings] == ["quantize, int4_g128, S", "kernel, int4_g128, S"]


def test_a_peer_beyond_its_bound_fails():
    """The check takes half a step, and not a whole one."""
    weights = np.array([[7.0, 0.5, -7.0, 3.2]], np.float32)
    Bound(4, 0.5 / 7).check(weights, np.round(weights), "a peer")
    with pytest.raises(AssertionError, match=r"a peer is off by 2\.00 times"):
        Bound(4, 0.5 / 7).check(weights, weights + 1, "a peer")


def test_a_peer_that_is_not_installed_is_missing():
    """The reason is the import's."""
    peer = PEERS[0].__class__("none", "None", ("aq2_no_such_package",), None, Bound(1, 1))
    with pytest.raises(MissingError, match="aq2_no_such_package"):
        command_of(peer)(QUICK, at_least(3))


def command_of(peer):
    """Return what measures a peer."""
    return next(row.run for row in table.ROWS if row.section == "Peers").__class__(peer)


def test_the_page_tells_met_missed_and_missing():
    """The page of fixed results has every row, the missed one in bold with its profile, the missing with the reason."""
    run = fake_run()
    text = page.page(run)
    assert text == page.page(page.Run.from_json(run.to_json()))
    for row in table.ROWS:
        assert row.what in text or row.section == "Peers"
    for peer in PEERS:
        assert f"| {peer.label}" in text
    missed = table.ROWS[0]
    assert f"| {missed.what} | {missed.bar} | 1 | 3.2 (3.2 to 4.8) | **MISSED** |" in text
    assert text.count("MISSED") == 2  # there, and in the counts
    assert f"**{missed.what}, 1 thread**: 3.2 (3.2 to 4.8) x, bar {missed.bar}.\n\n```text\nwhere the time" in text
    assert "torch eager / quantize, int4_g128, M: missing, torch: not installed" in text


def test_the_pictures_depend_on_the_results_only():
    """The same results give the same SVG, with the names of interfaces and peers as text."""
    picture = pytest.importorskip("tests.benchmarks.picture", exc_type=ImportError)
    drawn = picture.pictures(fake_run())
    assert drawn == picture.pictures(fake_run())
    assert set(drawn) == {"benchmarks-ratios.svg", "benchmarks-size.svg"}
    assert "Polars lazy, M" in drawn["benchmarks-ratios.svg"]
    assert "FAISS SQ4" in drawn["benchmarks-ratios.svg"]
    assert all(len(svg) < 100_000 for svg in drawn.values())


def test_the_written_page_has_every_row():
    """docs/benchmarks.md was written with the rows and peers that the table has."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [row.name for row in table.ROWS if row.section != "Peers" and f"| {row.what} |" not in text] == []
    assert [peer.name for peer in PEERS if f"| {peer.label}" not in text] == []
