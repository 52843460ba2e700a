"""The methods `mse` and `hqq` of integers: what each promises of its errors, on columns of every kind of data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from support.samples import column, shapes

import aq2_pipeline
from aq2_pipeline import SchemeError, pieces, schemes

N, GROUP = 40 * 64, 64
EXPONENT = np.float32(0.7 - 1)


def sets():
    """Return the weights that are tried, by name: 40 groups of 64 each."""
    rng = np.random.default_rng(5)
    bell = rng.normal(size=N)
    one = np.where(np.arange(N) % GROUP == 7, 50.0, 1.0)
    found = {
        "bell": bell / 20,
        "laplace": rng.laplace(size=N),
        "heavy tails": rng.standard_t(3, N) * 40,
        "uniform": rng.uniform(size=N),
        "negative": -(rng.uniform(size=N) ** 2),
        "constant": np.repeat(bell[::GROUP], GROUP),
        "an outlier": bell * one,
        "zeros": np.zeros(N),
        "whole numbers": rng.integers(-8, 8, N),
        "tiny": bell * 1e-30,
        "subnormal": bell * 1e-38,
        "huge": np.clip(bell, -3.4, 3.4) * 1e38,
        "of all sizes": bell * 10.0 ** rng.integers(-20, 20, N),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


SETS = sets()
IMPORTANCE = (np.random.default_rng(6).uniform(size=N) ** 4).astype(np.float32)


def stored(w, scheme, importance=None):
    """Return (decoded values in groups, the row as Python has it)."""
    given = None if importance is None else pa.array([importance], pa.large_list(pa.float32()))
    quantized = aq2_pipeline.quantize(column(w), scheme, importance=given)
    decoded = aq2_pipeline.dequantize(quantized)
    return decoded.values.to_numpy().astype(np.float64).reshape(-1, GROUP), quantized[0].as_py()


def losses(w, decoded, importance=None):
    """Return the squared error of each group."""
    e = (w.astype(np.float64).reshape(-1, GROUP) - decoded) ** 2
    return (e if importance is None else e * importance.astype(np.float64).reshape(-1, GROUP)).sum(axis=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scheme", ["int2_g64:mse", "int4_g64:mse", "int8_g64:mse", "int4_g64:hqq",
                                    "int2_g64_asym:mse", "int4_g64_asym:mse", "int8_g64_asym:mse"])  # fmt: skip
def test_mse_is_never_worse(scheme, weighted):
    """No group's squared error, with its importance or without, is larger than that of `minmax`."""
    importance, name = IMPORTANCE if weighted else None, scheme.partition(":")[0]
    for kind, w in SETS.items():
        plain, _ = stored(w, name)
        found, row = stored(w, scheme, importance)
        assert (losses(w, found, importance) <= losses(w, plain, importance) * (1 + 1e-12)).all(), kind
        zeros = np.array(row["zero_points"])
        assert row["scheme"] == name
        assert (zeros == zeros.round()).all()
        assert not name.endswith("asym") or (np.array(row["scales"]) >= 0).all()


@pytest.mark.parametrize(("name", "gain"), [("int2_g64", 1.5), ("int2_g64_asym", 1.3), ("int4_g64", 1.1),
                                            ("int4_g64_asym", 1.05), ("int8_g64_asym", 1.001)])  # fmt: skip
def test_mse_is_better(name, gain):
    """On bells and heavier tails, the squared error falls by more than a factor."""
    for kind in ("bell", "laplace", "heavy tails"):
        w = SETS[kind]
        plain, found = (losses(w, stored(w, f"{name}:{method}")[0]).sum() for method in ("minmax", "mse"))
        assert plain > gain * found, kind


@pytest.mark.parametrize("name", ["int2_g64", "int4_g64", "int2_g64_asym:mse", "int4_g64_asym:hqq"])
def test_importance_lowers_the_weighted_error(name):
    """With an importance, the error that it weighs is smaller in total than without."""
    scheme = name if ":" in name else f"{name}:mse"
    for kind in ("bell", "laplace", "uniform"):
        w = SETS[kind]
        found, without = (losses(w, stored(w, scheme, given)[0], IMPORTANCE).sum() for given in (IMPORTANCE, None))
        assert found < without, kind


def hqq(w, bits):
    """Return what half-quadratic quantization decodes to, in float64 and by its formulas: see `kernels.zero_points`."""
    w, top = w.astype(np.float64).reshape(-1, GROUP), 2**bits - 1
    low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
    steps = top / (high - low)
    plain = np.round(low * -steps)
    found = (np.clip(np.round(w * steps[:, None]) + plain[:, None], 0, top) - plain[:, None]) / steps[:, None]
    for k, row in enumerate(w):
        s, zero, beta, least, best = steps[k], -low[k] * steps[k], 10.0, np.inf, row
        for _ in range(20):
            q = np.clip(np.round(row * s + zero), 0, top)
            decoded = (q - zero) / s
            e = row - decoded
            if np.abs(e).mean() >= least:
                break
            least, best = np.abs(e).mean(), decoded
            with np.errstate(divide="ignore"):
                shrunk = np.sign(e) * np.maximum(np.abs(e) - np.abs(e) ** EXPONENT / beta, 0)
            zero = np.clip((q - (row - shrunk) * s).mean(), 0, top)
            beta *= 1.01
        if (np.abs(row - best) ** 0.7).sum() < (np.abs(row - found[k]) ** 0.7).sum():
            found[k] = best
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["bell", "laplace", "heavy tails", "uniform", "negative", "an outlier"])
def test_hqq_is_its_formula(kind, bits):
    """The signal-to-noise ratio is that of a plain NumPy version, within 0.1 dB; zero points are codes."""
    w = SETS[kind]
    found, row = stored(w, f"int{bits}_g64_asym:hqq")
    expected = losses(w, hqq(w, bits)).sum()
    assert abs(10 * np.log10(losses(w, found).sum() / expected)) < 0.1
    zeros = np.array(row["zero_points"])
    assert ((zeros >= 0) & (zeros <= 2**bits - 1)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_lowers_its_norm(bits):
    """The sum of |error|**0.7 is never larger than that of `minmax` in any group, and smaller in total."""
    for kind, w in SETS.items():
        grouped = w.astype(np.float64).reshape(-1, GROUP)
        sizes = [np.abs(grouped - stored(w, f"int{bits}_g64_asym:{m}")[0]) for m in ("minmax", "hqq")]
        plain, found = ((each**0.7).sum(axis=1) for each in sizes)
        assert (found <= plain * (1 + 1e-5)).all(), kind
        assert found.sum() < plain.sum() or kind not in ("bell", "laplace", "heavy tails"), kind


@pytest.mark.parametrize("scheme", ["int4_g64:mse", "int4_g64:hqq", "int3_g64_asym:mse", "int4_g64_asym:hqq"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_is_that_of_the_round_trip(scheme, weighted):
    """`quantization_error` reports what quantizing and dequantizing would do, on every kind of data."""
    given = pa.array([IMPORTANCE], pa.large_list(pa.float32())) if weighted else None
    weights = IMPORTANCE.astype(np.float64) if weighted else np.ones(N)
    for kind, w in SETS.items():
        decoded, _ = stored(w, scheme, IMPORTANCE if weighted else None)
        e = w.astype(np.float64) - decoded.reshape(-1)
        figures = aq2_pipeline.quantization_error(column(w), scheme, importance=given)[0].as_py()
        np.testing.assert_allclose(figures["mse"], (weights * e * e).sum() / weights.sum(), rtol=1e-10, err_msg=kind)
        assert figures["max_abs"] == np.abs(e).max(), kind


@pytest.mark.parametrize("scheme", ["int4_tensor:mse", "int4_tensor_asym:hqq", "int4_channel_asym:mse", "int4_g64:hqq",
                                    "int4_g21_asym:mse"])  # fmt: skip
@pytest.mark.parametrize("each", [False, True])
def test_long_rows_are_cut_between_groups_only(scheme, each, monkeypatch):
    """Rows longer than a slice, of float32 and float16, with importance a weight or a channel: as without a cut."""
    w = SETS["laplace"].astype(np.float16)
    given = pa.array([IMPORTANCE if each else IMPORTANCE[:640]] * 2, pa.large_list(pa.float32()))
    both = pa.array([w.tobytes()] * 2), column(w, w)
    shape = shapes((4, 640), (4, 640))

    def results():
        names = f"{scheme}@f16", scheme
        for importance in (None, given):
            for weights, name in zip(both, names, strict=True):
                yield aq2_pipeline.quantize(weights, name, shape, importance=importance)
                yield aq2_pipeline.quantization_error(weights, name, shape, importance=importance)

    expected = list(results())
    assert expected[0].equals(expected[2])
    monkeypatch.setattr(pieces, "SLICE_SIZE", 100)
    found = list(results())
    assert [one.equals(other) for one, other in zip(expected[::2], found[::2], strict=True)] == [True] * 4
    for one, other in zip(expected[1::2], found[1::2], strict=True):  # sums are cut at their blocks
        np.testing.assert_allclose(one.field("mse").to_numpy(), other.field("mse").to_numpy(), rtol=1e-12)


def test_rows_and_groups_are_matters_of_their_own():
    """A group becomes the same wherever it stands, and whatever stands beside it."""
    w = SETS["heavy tails"]
    for scheme in ("int3_g64:mse", "int3_g64:hqq", "int3_g64_asym:mse", "int3_g64_asym:hqq"):
        whole, row = stored(w, scheme)
        for k in (0, 7, 39):
            alone, other = stored(w[k * GROUP : (k + 1) * GROUP], scheme)
            np.testing.assert_array_equal(alone[0], whole[k])
            assert other["scales"] == row["scales"][k : k + 1]
            assert other["zero_points"] == row["zero_points"][k : k + 1]


def test_methods_are_not_stored():
    """The stored name says no method, so any reader reads it; an unknown one is named with those there are."""
    for name in ("int4_g64", "int4_g64_asym"):
        assert schemes.parse(name) == schemes.parse(f"{name}:minmax")
        for method in ("minmax", "mse", "hqq"):
            assert stored(SETS["bell"], f"{name}:{method}")[1]["scheme"] == name
        with pytest.raises(SchemeError, match=r"methods of .*'minmax', 'mse', 'hqq'"):
            schemes.parse(f"{name}:awq")


def test_minmax_refuses_an_importance():
    """Nothing is searched for there, and the default is no search."""
    for name in ("int4_g64", "int4_g64_asym:minmax"):
        with pytest.raises(SchemeError, match="cannot use importance"):
            stored(SETS["bell"], name, IMPORTANCE)
