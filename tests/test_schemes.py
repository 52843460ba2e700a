"""Names, integers and keywords, and what a policy promises."""

from __future__ import annotations

import decimal

import numpy as np
import pytest
from support import oracle

import aq2_pipeline
from aq2_pipeline import SchemeError, policy_scheme, schemes
from aq2_pipeline.schemes import parse, spelled


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_integer_is_that_many_bits_in_groups_of_128(bits):
    """`b` means `int{b}_g128`, for Python's and NumPy's integers."""
    for number in (bits, np.int64(bits), np.uint8(bits)):
        scheme = parse(number)
        assert (scheme.name, scheme.bit_width, scheme.group) == (f"int{bits}_g128", bits, 128)


@pytest.mark.parametrize("name", [*schemes.known_names(), "int4_g1", "int7_g100_asym", f"int2_g{2**31 - 1}"])
def test_names_are_canonical(name):
    """A name parses to itself, as often as it is asked."""
    assert parse(name).name == str(parse(name)) == name
    assert parse(name) is parse(name)
    assert parse(parse(name)) == parse(name)


@pytest.mark.parametrize(
    ("name", "bits", "group"),
    [("int4_channel", 4, 0), ("int3_tensor_asym", 3, -1), ("f32", 32, 1), ("f16", 16, 1), ("bf16", 16, 1)],
)
def test_parts_of_a_name(name, bits, group):
    """Width and group are what the name says."""
    assert (parse(name).bit_width, parse(name).group) == (bits, group)


@pytest.mark.parametrize(
    ("scheme", "keywords", "name"),
    [
        (4, {"group_size": 64}, "int4_g64"),
        (4, {"symmetric": False}, "int4_g128_asym"),
        (4, {"symmetric": True}, "int4_g128"),
        (3, {"group_size": "channel", "symmetric": False}, "int3_channel_asym"),
        (8, {"group_size": "tensor"}, "int8_tensor"),
        (8, {"group_size": np.int64(32)}, "int8_g32"),
        ("int4_g64", {"group_size": 64, "symmetric": True}, "int4_g64"),
        ("int4_g64_asym", {"symmetric": False}, "int4_g64_asym"),
        ("int4_g64", {"method": "minmax"}, "int4_g64"),
        ("int4_g64", {"rotate": False}, "int4_g64"),
        (4, {"rotate": True}, "int4_g128_rot128"),
        (4, {"group_size": 64, "symmetric": False, "rotate": True}, "int4_g64_asym_rot64"),
        ("int4_g64", {"rotate": np.True_}, "int4_g64_rot64"),
        ("int4_g64:minmax@bf16", {"rotate": True}, "int4_g64_rot64"),
        ("int4_g64_rot32", {"rotate": True, "group_size": 64, "symmetric": True, "method": "minmax"}, "int4_g64_rot32"),
        ("int4_g64_asym_rot32", {"symmetric": False}, "int4_g64_asym_rot32"),
        ("int4_channel_rot128", {"group_size": "channel", "rotate": True}, "int4_channel_rot128"),
    ],
)
def test_keywords_are_sugar(scheme, keywords, name):
    """Keywords build the name, and may repeat what it says."""
    assert parse(scheme, **keywords).name == name


@pytest.mark.parametrize(
    ("scheme", "keywords"),
    [
        ("int4_g64", {"group_size": 128}),
        ("int4_g64", {"symmetric": False}),
        ("int4_g64_asym", {"symmetric": True}),
        ("int4_channel", {"group_size": "tensor"}),
        ("int4_tensor", {"group_size": 64}),
        ("f16", {"group_size": 64}),
        ("f16", {"symmetric": False}),
        ("int4_g64_rot64", {"rotate": False}),
        ("int4_g64_rot64", {"group_size": 32}),
        ("int4_g64_rot64", {"symmetric": False}),
        ("int4_channel", {"rotate": True}),
        (4, {"group_size": "tensor", "rotate": True}),
        (4, {"group_size": 96, "rotate": True}),
        (4, {"group_size": 1, "rotate": True}),
        (4, {"group_size": 2**14, "rotate": True}),
        ("f16", {"rotate": True}),
        ("q4_0", {"rotate": True}),
        (4, {"rotate": 64}),
        (4, {"method": "unknown"}),
    ],
)
def test_keywords_that_contradict_are_errors(scheme, keywords):
    """A keyword never wins over a name, and none is ignored."""
    with pytest.raises(SchemeError):
        parse(scheme, **keywords)


@pytest.mark.parametrize(
    "bits", [0, 1, 9, -4, 8.5, 4.0, None, True, False, np.True_, b"int4_g64", [4], 2**70, decimal.Decimal(4)]
)
def test_bad_widths(bits):
    """What is no integer from 2 to 8 is a SchemeError that names the parameter and what is allowed."""
    with pytest.raises(SchemeError, match="scheme") as caught:
        parse(bits)
    assert "from 2 to 8" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("8", "", " ", "INT4_G64", "Int4_g64", " int4_g64", "int4_g64 ", "int4_g64\n", "int4_g64\0", "int4\0_g64"),
        *("int4_g0", "int4_g064", "int4_g-1", "int4_g", "int4", "int9_g64", "int1_g64", "int4_g64_sym", "int4_group64"),
        *("int\uff14_g64", "int4_g\u0663", "int4_g64_asym_asym", "int4_g64:", "int4_g64:magic", "int4_g64@"),
        *("int4_g64@f8", "int4_g64@bf16:minmax", "f32_g64", "f64", f"int4_g{2**31}", f"int4_g{2**40}"),
        *("int4_g64_rot", "int4_g64_rot0", "int4_g64_rot1", "int4_g64_rot96", "int4_g64_rot064", "int4_g64_rot16384"),
        *("int4_g64_rot64_asym", "int4_rot64", "int4_g64_rot64_rot64", "f32_rot64", "q4_0_rot32", "int4_g100_rot8192"),
        *("int4_g64_rot-64", "int4_g64_rot64 ", "int4_g16384_rot64", "int4_g64_rot" + "9" * 5000),
        "int4_g" + "9" * 5000,
    ],
)  # fmt: skip
def test_bad_names(name):
    """Names are exact: no folding, no trimming, no leading zero, no other script's digits."""
    with pytest.raises(SchemeError, match="scheme"):
        parse(name)


@pytest.mark.parametrize("size", [0, -1, 2**31, 2**40, 1.5, "64", True, None.__class__, "Channel"])
def test_bad_group_sizes(size):
    """A group size that cannot be names its keyword."""
    with pytest.raises(SchemeError, match="group_size"):
        parse(4, group_size=size)


@pytest.mark.parametrize(
    ("name", "close"),
    [("int4_g65x", "int4_g64"), ("INT4_G128", "int4_g128"), ("bfloat16", "bf16"), ("int4_chanel", "int4_channel")],
)
def test_the_closest_names_are_told(name, close):
    """An unknown name comes with the closest known ones."""
    with pytest.raises(SchemeError) as caught:
        parse(name)
    assert repr(close) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_parts_of_a_rotated_name():
    """The blocks are what the name says, and what divides a matrix row; groups and bits stay those of the name."""
    scheme = parse("int3_g96_asym_rot64:minmax@bf16")
    assert (scheme.rotation, scheme.block, scheme.group, scheme.bit_width) == (64, 64, 96, 3)
    assert (scheme.name, spelled(scheme)) == ("int3_g96_asym_rot64", "int3_g96_asym_rot64:minmax@bf16")
    assert parse("int3_g96_asym").rotation == 0


def test_method_and_input_dtype_are_not_stored():
    """They are part of what is asked, and `spelled` gives it back; the name is without them."""
    scheme = parse("int4_g64:minmax@bf16")
    assert (scheme.name, scheme.method, scheme.input_dtype) == ("int4_g64", "minmax", "bf16")
    assert parse(spelled(scheme)) == scheme
    row = aq2_pipeline.quantize(np.ones(3, np.float32), "int4_g64:minmax")[0].as_py()
    assert row["scheme"] == "int4_g64"


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        # shape, then the row length of int4_g64, int4_channel and f32
        ((), (1, 1, 1)),
        ((10,), (10, 10, 10)),
        ((0,), (0, 0, 0)),
        ((5, 7), (7, 7, 7)),
        ((5, 0), (0, 0, 0)),
        ((64, 32, 3, 3), (288, 288, 3)),
        ((8, 64, 5), (320, 320, 5)),
        ((8, 2, 64), (64, 128, 64)),
        ((2, 3, 4), (12, 12, 4)),
        ((1000, 1, 1, 1), (1, 1, 1)),
        ((100, 1, 1, 2), (2, 2, 2)),
        ((4, 10, 7, 9), (630, 630, 9)),
    ],
)
def test_matrix_rows(shape, lengths):
    """Trailing axes are joined until a row holds a group, never the first axis; a channel is the first axis' index."""
    for name, group, length in zip(("int4_g64", "int4_channel", "f32"), (64, "channel", 1), lengths, strict=True):
        assert parse(name).row_length(shape) == length
        n = 1
        for axis in shape:
            n *= axis
        assert oracle.matrix_row(shape, n, group) == length


def test_taken_names_are_refused():
    """A second family cannot have a first one's names."""
    with pytest.raises(SchemeError, match="already"):
        schemes.add_family(next(family for family in schemes.FAMILIES if family.grouped))


# --- Policies: only what the contract promises -----------------------------------------------------------------------


def test_the_guides_own_example_has_four_bits():
    """1-D, 1,000,000 weights, diffusion, 4 bits: 4 bits."""
    for mode in ("diffusion", "time_aware", "base"):
        assert parse(policy_scheme("layer.0.weight", (1_000_000,), 4, mode)).bit_width == 4
    assert parse(policy_scheme("layer.0.weight", (1000, 1000), 4)).bit_width == 4


@pytest.mark.parametrize("mode", ["Diffusion", "", "base ", None, 4, "int4_g64", b"base", 4.5])
def test_unknown_modes(mode):
    """Anything but the three names is a SchemeError that lists them."""
    with pytest.raises(SchemeError, match="mode") as caught:
        policy_scheme("a", (10, 10), 4, mode)
    assert all(name in str(caught.value) for name in ("diffusion", "time_aware", "base"))


@pytest.mark.parametrize("bits", [0, 1, 9, None, True, "4", 4.5])
def test_unknown_widths(bits):
    """A width is an integer from 2 to 8, for layers that a rule keeps at full width too."""
    for shape in ((3,), (1000, 1000)):
        with pytest.raises(SchemeError, match="from 2 to 8"):
            policy_scheme("norm.bias", shape, bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_base_is_every_tensor_at_the_asked_width(bits):
    """`base` has no exceptions."""
    for shape in (None, (), (7,), (64, 64), (64, 3, 3, 3)):
        assert policy_scheme("model.norm.bias", shape, bits, "base") == f"int{bits}_g128"


@pytest.mark.parametrize("bits", range(2, 9))
def test_policies_name_schemes(bits):
    """What a policy gives is a known scheme, and `time_aware` is `diffusion`."""
    for name in ("blocks.0.attn.q.weight", "norm.bias", "conv_in.weight", "", "x" * 1000):
        for shape in (None, (), (8,), (8, 8), (320, 4, 3, 3), (2**20,), (2**16, 2**16)):
            found = policy_scheme(name, shape, bits)
            assert parse(found).name == found
            assert policy_scheme(name, shape, bits, "time_aware") == found


def test_a_row_without_a_shape_meets_no_rule_of_rank_or_size():
    """An unknown shape gives what a large matrix of that name gets."""
    for name in ("layers.3.mlp.weight", "a", ""):
        assert policy_scheme(name, None, 4) == policy_scheme(name, (4096, 4096), 4)
    assert policy_scheme("layers.3.mlp.weight", (8,), 4) != policy_scheme("layers.3.mlp.weight", None, 4)
