"""The promises of the policy `diffusion`, measured on a real U-Net."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from diffusion import UNIFORM, Bench, Inputs, cost


@pytest.fixture(scope="module")
def bench():
    """One noisy sample a sigma: the margins are many dB."""
    return Bench(Inputs(batch=1))


@pytest.fixture(scope="module")
def runs(bench):
    """Return the output SQNR of the base policy and of `diffusion`, at 4 bits."""
    return {mode: np.array(bench.sqnr(bench.quantized(mode))) for mode in ("base", "diffusion")}


def test_diffusion_beats_base_by_four_decibels_and_at_every_sigma(runs):
    """At 4 bits the policy buys at least 4 dB on the mean, and something at each noise level."""
    assert runs["diffusion"].mean() >= runs["base"].mean() + 4
    assert (runs["diffusion"] > runs["base"]).all()


def test_diffusion_beats_every_uniform_scheme_by_two_decibels(bench, runs):
    """No group size, symmetric or not, comes within 2 dB of the policy."""
    best = max(np.mean(bench.sqnr(bench.quantized(scheme=scheme))) for scheme in UNIFORM)
    assert runs["diffusion"].mean() >= best + 2


def test_diffusion_takes_at_most_five_bits_a_weight(bench):
    """1-D tensors left out of the count, norms of shape [C, 1, 1] included."""
    assert cost(bench.quantized("diffusion"))[1] <= 5.0


def test_time_aware_is_another_name_of_diffusion(bench):
    """The alias gives the same schemes."""
    names = [{n: r["scheme"] for n, r in bench.quantized(mode).items()} for mode in ("diffusion", "time_aware")]
    assert names[0] == names[1]
