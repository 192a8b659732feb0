"""Packing one matrix: it loses no bit, takes the promised room, and damage to it is found."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxm_hf.packing.format import check_packed, index_bits, pack, packed_shapes, row_pattern, unpack
from nxm_hf.patterns import NM, PATTERNS, parse

PAIRS = [(1, 2), (2, 4), (1, 4), (2, 3), (3, 5), (5, 7), (4, 8), (33, 40), (10, 100), (1, 256), (255, 256)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn]


def bits(tensor):
    """View a tensor as whole numbers, so that NaN equals itself and -0.0 does not equal 0.0."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def random_matrix(n, m, dtype=torch.float32, rows=7, groups=3, seed=0):
    """Return random bits, of which each group keeps between none and n."""
    torch.manual_seed(seed)
    kept = torch.rand(rows, groups, m).argsort(-1) < torch.randint(0, n + 1, (rows, groups, 1))
    entries = bits(torch.empty(0, dtype=dtype)).dtype
    low, high = torch.iinfo(entries).min, torch.iinfo(entries).max
    return (torch.randint(low, high, kept.shape, dtype=entries) * kept).flatten(1).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_matrix_of_any_bits_comes_back_bit_for_bit(pair, dtype):
    matrix, pattern = random_matrix(*pair, dtype), NM(*pair)
    packed = pack(matrix, pattern)
    check_packed(*packed, pattern, tuple(matrix.shape), "layer")
    assert (tuple(packed.values.shape), tuple(packed.indices.shape)) == packed_shapes(tuple(matrix.shape), pattern)
    assert packed.values.dtype == dtype and packed.indices.dtype == torch.uint8
    assert torch.equal(bits(unpack(*packed, pattern)), bits(matrix))


@given(st.data())
def test_every_pair_of_numbers_comes_back(data):
    m = data.draw(st.integers(2, 256))
    n = data.draw(st.integers(1, m - 1))
    matrix = random_matrix(n, m, rows=2, groups=2, seed=m)
    assert torch.equal(bits(unpack(*pack(matrix, NM(n, m)), NM(n, m))), bits(matrix))


def test_negative_zeros_nan_and_infinities_are_kept():
    matrix = torch.tensor([[0.0, -0.0, float("nan"), 0.0, float("inf"), 0.0, 0.0, 1e-45]])
    values, indices = pack(matrix, NM(2, 4))
    assert values.signbit().tolist() == [[True, False, False, False]]
    assert torch.equal(bits(unpack(values, indices, NM(2, 4))), bits(matrix))


def test_the_bytes_are_those_that_the_format_promises():
    """Positions 1 and 3, then 0 and 1 for an empty group: 01 11 00 01 from the low bits on."""
    packed = pack(torch.tensor([[0.0, 3.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0]]), NM(2, 4))
    assert packed.values.tolist() == [[3, 5, 0, 0]] and packed.indices.tolist() == [[0b01_00_11_01]]
    three_bits = pack(torch.tensor([[0.0, 0.0, 7.0, 8.0, 9.0] * 2]), NM(3, 5))  # 2 3 4 2 3 4
    number = sum(position << 3 * place for place, position in enumerate([2, 3, 4, 2, 3, 4]))
    assert bytes(three_bits.indices.flatten().tolist()) == number.to_bytes(3, "little")


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.bfloat16, 0.5625), (torch.float16, 0.5625), (torch.float32, 0.53125)]
)
def test_two_of_four_takes_the_promised_share_of_the_dense_bytes(dtype, share):
    matrix = parse("2:4").project(torch.randn(64, 256).to(dtype))
    assert sum(tensor.nbytes for tensor in pack(matrix, NM(2, 4))) == share * matrix.nbytes


def test_a_matrix_larger_than_the_scratch_memory_comes_back():
    matrix = parse("2:4").project(torch.randn(300, 2048))
    packed = pack(matrix, NM(2, 4))
    check_packed(*packed, NM(2, 4), (300, 2048), "layer")
    out = torch.full((2048, 300), 7.0)
    assert torch.equal(unpack(*packed, NM(2, 4), out=out.t()), matrix) and torch.equal(out.t(), matrix)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_an_empty_matrix_comes_back(shape):
    packed = pack(torch.zeros(shape), NM(2, 4))
    check_packed(*packed, NM(2, 4), shape, "layer")
    assert unpack(*packed, NM(2, 4)).shape == shape


@pytest.mark.parametrize("pattern_class", PATTERNS)
def test_patterns_along_a_row_can_be_packed_and_others_cannot(pattern_class):
    for text in pattern_class.examples:
        row = row_pattern(text)
        assert (row is not None) == (pattern_class.kind in ("nm", "transposable"))
        assert row is None or row.density == parse(text).density


def test_a_matrix_that_breaks_the_pattern_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layer\.0\.query breaks 2:4 in 2 groups.*nxm convert"):
        pack(torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0, 1.0, -0.0, 0.0]]), NM(2, 4), "layer.0.query")


def packed_example(pattern):
    """Return a packed matrix of two rows of two groups, and its shape."""
    shape = (2, 2 * pattern.m)
    return pack(pattern.project(torch.randn(shape)), pattern), shape


@pytest.mark.parametrize(
    ("pattern", "damage", "problem"),
    [
        (NM(2, 4), lambda v, i: (v[:, :2], i), r"values have the shape \(2, 2\)"),
        (NM(2, 4), lambda v, i: (v, i[:1]), r"indices have the shape \(1, 1\)"),
        (NM(2, 4), lambda v, i: (v, i.to(torch.int16)), "indices are int16; they must be uint8"),
        (NM(2, 4), lambda v, i: (v, i * 0), "do not ascend"),
        (NM(2, 4), lambda v, i: (v, i * 0 + 0b11_10_01_11), "do not ascend"),
        (NM(1, 5), lambda v, i: (v, i * 0 + 0b00_000_101), "reach 5; those of 1:5 end at 4"),
        (NM(1, 5), lambda v, i: (v, i | 0b01_000_000), "do not end with zero bits"),
    ],
)
def test_damage_is_an_error_that_names_the_layer(pattern, damage, problem):
    packed, shape = packed_example(pattern)
    with pytest.raises(ValueError, match=rf"^layer\.0\.query is damaged: its packed .*{problem}.*again"):
        check_packed(*damage(*packed), pattern, shape, "layer.0.query")


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_flipped_bits_are_found_or_still_hold_the_pattern(pair):
    """Every single bit of the indices is flipped in turn, and then many at random."""
    pattern = NM(*pair)
    (values, indices), shape = packed_example(pattern)
    values = torch.ones_like(values)
    generator = torch.Generator().manual_seed(0)
    flips = [torch.randint(0, 256, indices.shape, generator=generator, dtype=torch.uint8) for _ in range(20)]
    for place in range(min(indices.numel(), 32)):
        for bit in range(8):
            flip = torch.zeros_like(indices)
            flip.view(-1)[place] = 1 << bit
            flips.append(flip)
    for flip in flips:
        try:
            check_packed(values, indices ^ flip, pattern, shape, "layer")
        except ValueError as error:
            assert "layer is damaged" in str(error)
        else:
            mask = unpack(values, indices ^ flip, pattern)
            assert int(mask.count_nonzero()) == values.numel() and pattern.violations(mask) == 0


def test_positions_need_as_few_bits_as_they_can():
    assert [index_bits(m) for m in (2, 3, 4, 5, 8, 9, 128, 129, 256)] == [1, 2, 2, 3, 3, 4, 7, 8, 8]
